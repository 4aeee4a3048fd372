"""Make winners versions of a registered model.

Their evidence travels with them. Aliases are plain MLflow aliases.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import AnyType
from PIL import Image

import equipoise
from equipoise.core import parallel
from equipoise.core.config import Study
from equipoise.core.documents import (
    Comparison,
    IngestSummary,
    Interval,
    ScenarioRow,
    ScenarioSummary,
)
from equipoise.core.documents import ServedModel as ModelDescription
from equipoise.core.errors import DataError, PromotionRefused
from equipoise.core.files import digest_of, file_digest, read_table
from equipoise.core.records import CALIBRATED, Manifest, Predictions, Splits, probability_columns
from equipoise.embed import imported
from equipoise.service import tracking, vectors
from equipoise.service.audit import CHALLENGER, model_name
from equipoise.service.packaged import Packaged
from equipoise.split import checks

if TYPE_CHECKING:
    from equipoise.service.evidence import Evidence

#: What service imports; versions are those of this environment.
_REQUIREMENTS = (
    "mlflow",
    "tensorflow",
    "keras",
    "numpy",
    "pandas",
    "pillow",
    "imagecodecs",
    "tifffile",
    "scipy",
    "pyarrow",
    "pydantic",
    "pyyaml",
    "joblib",
    "tqdm",
)
#: What reads DICOM; a served model needs them where this machine has them.
_DICOM_REQUIREMENTS = (
    "pydicom",
    "pylibjpeg",
    "pylibjpeg-libjpeg",
    "pylibjpeg-openjpeg",
    "pylibjpeg-rle",
)
#: The same for a model of vectors.
_VECTOR_REQUIREMENTS = (
    "mlflow",
    "numpy",
    "pandas",
    "scipy",
    "pyarrow",
    "pydantic",
    "pyyaml",
    "joblib",
    "threadpoolctl",
    "tqdm",
)
#: MLflow cuts a tag at 8,000 characters.
_UNCOMMITTED_CHARACTERS = 5000
#: Tag of a version: digest of code and params at its registration.
_CODE_DIGEST = "equipoise.digest.code"
#: Grey images are expected where at most one in so many images of a study has colours.
_IMAGES_PER_COLOURED = 100


@dataclass(frozen=True)
class Registered:
    """A winner and the version that serves it.

    Attributes:
        backbone: Of the winner.
        scenario: That won.
        version: Its number.
        new: Whether this call made the version.
        renewed: Whether this call wrote the commit that its code is of.
    """

    backbone: str
    scenario: str
    version: str
    new: bool
    renewed: bool = False


@dataclass(frozen=True)
class Winner:
    """The winner of a backbone, with what its version is made from."""

    study: Study
    backbone: str
    scenario: str
    folder: Path
    summary: ScenarioSummary
    comparison: Comparison

    @property
    def model(self) -> str:
        """Name of the registered model."""
        return model_name(self.study.name)

    @property
    def row(self) -> ScenarioRow:
        """The winner's row in the comparison."""
        return self.comparison.rows[self.backbone][self.scenario]


@dataclass(frozen=True)
class Code:
    """The code at the time of registration.

    Attributes:
        commit: Tags with the git commit.
        uncommitted: Files of code and params that differ from it; None where there is no git.
        digest: Of the files as they lie there; None where there is no git.
    """

    commit: dict[str, str]
    uncommitted: list[str] | None
    digest: str | None

    @classmethod
    def of(cls, root: Path) -> Code:
        """The code of a checkout now."""
        from equipoise.service import gates

        return cls(tracking.commit_tags(root), gates.uncommitted(root), gates.code_digest(root))

    def tags(self) -> dict[str, str]:
        """What a version says of its code."""
        tags = dict(self.commit)
        tags["equipoise.uncommitted"] = _uncommitted_text(self)
        tags[_CODE_DIGEST] = self.digest or "no git"
        return tags


def register(study: Study) -> list[Registered]:
    """Make each backbone's winner a version of `equipoise-<study>`, once per result.

    A version whose code was not committed when it was registered learns its commit, or is followed by one of what is
    committed now.

    Raises:
        PromotionRefused: When patients stand on both published sides.
        DataError: When results are not those of the comparison, or a saved model does not reproduce
            them.
    """
    comparison = Comparison.read(study.reports_path / "comparison.json")
    if not comparison.registrable:
        raise PromotionRefused(
            f"Nothing is registered from study '{study.name}': patients or pictures are on both published sides "
            f"(EQ-OFFICIAL). Use split.scheme: holdout, or a split.group_by under which the sides share nobody."
        )
    splits = Splits.read(study.splits_path)
    checks.check_split(splits, Manifest.read(study.manifest_path))
    store = tracking.client(study.root)
    name = model_name(study.name)
    _make_model(store, name, f"Winners of the Equipoise study '{study.name}'.")
    registered = []
    winners = comparison.winners.items()
    for backbone, scenario in parallel.progress(winners, "saving models", len(winners), "models"):
        winner = _read_winner(study, backbone, scenario, comparison)
        checks.written_plan_within_train(read_table(winner.folder / "plan.parquet")[0], splits)
        row = _version_of(store, winner)
        store.set_registered_model_alias(name, f"best-{backbone}", row.version)
        if backbone == comparison.challenger:
            store.set_registered_model_alias(name, CHALLENGER, row.version)
        registered.append(row)
    return registered


def _make_model(store: MlflowClient, name: str, description: str) -> None:
    try:
        store.create_registered_model(name, description=description)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _read_winner(study: Study, backbone: str, scenario: str, comparison: Comparison) -> Winner:
    """A winner whose result is the one that was compared."""
    folder = study.result_path(backbone, scenario)
    summary = ScenarioSummary.read(folder / "metrics.json")
    winner = Winner(study, backbone, scenario, folder, summary, comparison)
    if summary.result_digest != winner.row.result_digest:
        raise DataError(
            f"{folder} is newer than {study.reports_path}/comparison.json. Run `dvc repro` first."
        )
    return winner


def _version_of(store: MlflowClient, winner: Winner) -> Registered:
    """The version of a winner, made when there is none of its result that can stay."""
    present = existing_version(store, winner)
    if present is not None:
        kept = _kept(store, winner, present)
        if kept is not None:
            return kept
    return _make_version(store, winner)


def _kept(store: MlflowClient, winner: Winner, present: ModelVersion) -> Registered | None:
    """A version that is there; None where its code was never committed and other code is now.

    Where what it was registered with has been committed since, it says so from now on.
    """
    number = str(present.version)
    kept = Registered(winner.backbone, winner.scenario, number, new=False)
    if present.tags.get("equipoise.uncommitted") == "":
        return kept
    code = Code.of(winner.study.root)
    if code.uncommitted != []:
        return kept
    if present.tags.get(_CODE_DIGEST) != code.digest:
        return None
    for key, value in code.tags().items():
        store.set_model_version_tag(winner.model, number, key, value)
    return replace(kept, renewed=True)


def _make_version(store: MlflowClient, winner: Winner) -> Registered:
    # What a version is made with takes seconds to import: that is paid where one is made only.
    from equipoise.service import evidence as evidence_

    study = winner.study
    run = tracking.mirror(store, study, winner.backbone, winner.scenario, winner.folder)
    tracking.write_verdict(store, run.run_id, winner.row, winner.comparison.primary)
    code = Code.of(study.root)
    evidence = evidence_.collect(
        study, winner.folder, winner.summary.digests, expected_predictions(winner.folder)
    )
    folder = _own_folder(store, winner.model)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        package = package_model(study, winner.backbone, winner.folder, scratch, run.run_id)
        log_package(store, run.run_id, winner, code, package, folder)
    address = f"{store.get_run(run.run_id).info.artifact_uri}/{folder}"
    with served(f"{address}/model") as model:
        difference = verify_served(winner, model, evidence)
        log_evidence(store, run.run_id, model, evidence, folder)
    made = store.create_model_version(
        winner.model,
        source=f"{address}/model",
        run_id=run.run_id,
        tags=version_tags(winner, code, difference) | {evidence_.FOLDER: folder},
        description=_description(winner),
    )
    return Registered(winner.backbone, winner.scenario, str(made.version), new=True)


def _description(winner: Winner) -> str:
    """What the page and the card say of the winner, a paragraph for each sentence."""
    from equipoise.compare import card

    rule = winner.study.settings.threshold.rule
    said = card.said(winner.comparison, winner.backbone, winner.scenario, rule)
    return "\n\n".join(said)


def existing_version(store: MlflowClient, winner: Winner) -> ModelVersion | None:
    """The newest version that holds a winner's result, or None."""
    clause = (
        f"name = '{winner.model}' and tags.`{tracking.DIGEST}` = '{winner.summary.result_digest}'"
    )
    versions = store.search_model_versions(clause)
    return max(versions, key=lambda version: int(version.version), default=None)


def verify_served(winner: Winner, model: Any, evidence: Evidence) -> float:
    """The largest difference between what the saved model answers and what is stored.

    Raises:
        DataError: When it is larger than rounding.
    """
    from equipoise.service import evidence as evidence_

    difference = evidence_.differences(winner.study, model, evidence).largest
    if not difference <= evidence_.TOLERANCE:  # not a number is no agreement either
        stage = f"scenario@{winner.study.name}-{winner.backbone}-{winner.scenario}"
        raise DataError(
            f"The saved model of {winner.folder} serves probabilities that differ from the stored ones by "
            f"{difference:.2e} (allowed: {evidence_.TOLERANCE:.0e}). Run `dvc repro --force {stage}`."
        )
    return difference


def _own_folder(store: MlflowClient, model: str) -> str:
    """Folder of the next version among the artifacts of its run.

    No other version has it, also not one of a model of this name that was deleted; a killed call finds its own again.
    """
    made_at = store.get_registered_model(model).creation_timestamp
    versions = store.search_model_versions(f"name = '{model}'")
    newest = max((int(version.version) for version in versions), default=0)
    return f"versions/{made_at}-{newest + 1}"


@contextmanager
def served(address: str) -> Iterator[Packaged]:
    """A model as it will be served: from where it was logged, by the code that lies beside it."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = mlflow.artifacts.download_artifacts(artifact_uri=address, dst_path=scratch)
        model = Packaged(Path(folder))
        try:
            yield model
        finally:
            model.close()


def log_evidence(
    store: MlflowClient, run_id: str, model: Any, evidence: Evidence, folder: str
) -> None:
    """Write the evidence into a run, with what the model answers for its input example."""
    from equipoise.service import evidence as evidence_

    answer = model.predict(model.input_example).iloc[0].to_dict()
    origin = evidence.origin.model_copy(update={"example": answer})
    with tempfile.TemporaryDirectory() as scratch:
        written = evidence_.write(replace(evidence, origin=origin), Path(scratch))
        store.log_artifacts(run_id, str(written), f"{folder}/evidence")


def log_package(
    store: MlflowClient, run_id: str, winner: Winner, code: Code, package: Path, folder: str
) -> None:
    """Write the model into a run, and its card beside it and into it."""
    from equipoise.compare import card

    software = _versions(_image_packages()) | {"commit": code.commit["equipoise.git_commit"]}
    text = card.card(winner.study, winner.backbone, winner.scenario, software)
    path = package / "MODEL_CARD.md"
    path.write_text(text, encoding="utf-8")
    store.log_artifact(run_id, str(path), folder)
    store.log_artifacts(run_id, str(package), f"{folder}/model")


def version_tags(winner: Winner, code: Code, difference: float) -> dict[str, str]:
    """Everything that a version says of itself, for people and for the gates."""
    study = winner.study
    summary = winner.summary
    tags = {
        tracking.DIGEST: summary.result_digest,
        "equipoise.study": study.name,
        "equipoise.backbone": winner.backbone,
        "equipoise.scenario": winner.scenario,
        "equipoise.mode": summary.mode,
        "equipoise.weights": summary.weights,
        "equipoise.positive_class": summary.positive_class,
        "equipoise.verdict": winner.row.verdict,
        "equipoise.comparison": winner.comparison.digest,
        "equipoise.served_difference": f"{difference:.1e}",
        "equipoise.threshold": _threshold_text(winner.folder),
        "equipoise.grey": str(_expects_grey(study)),
    }
    tags |= tracking.digest_tags(summary)
    tags["equipoise.digest.raw"] = _raw_digest(study)
    tags["equipoise.digest.dvc_lock"] = _lock_digest(study.root)
    for check in winner.comparison.checks:
        tags[f"equipoise.check.{check.code}"] = check.answer
    for point, table in summary.metrics.items():
        for metric, measured in table.items():
            tags[f"equipoise.{point}.{metric}"] = _interval_text(measured)
    return tags | code.tags()


def _threshold_text(folder: Path) -> str:
    threshold = ModelDescription.read(folder / "model" / "model.json").threshold
    return "argmax" if threshold is None else f"{threshold:.6f}"


def _expects_grey(study: Study) -> bool:
    summary = IngestSummary.read(study.manifest_path.with_suffix(".json"))
    return summary.flagged["colour"] <= summary.images / _IMAGES_PER_COLOURED


def _raw_digest(study: Study) -> str:
    """Digest of the originals: their ids and digests, in the order of the ids."""
    table = Manifest.read(study.manifest_path).table
    originals = table[["image_id", "sha256"]].sort_values("image_id")
    return digest_of(originals.to_numpy().tolist())


def _lock_digest(root: Path) -> str:
    lock = root / "dvc.lock"
    return file_digest(lock) if lock.is_file() else "none"


def _interval_text(measured: Interval) -> str:
    numbers = (measured.value, measured.low, measured.high)
    return " ".join("nan" if number is None else f"{number:.4f}" for number in numbers)


def _uncommitted_text(code: Code) -> str:
    if code.uncommitted is None:
        return "no git"
    return ", ".join(code.uncommitted)[:_UNCOMMITTED_CHARACTERS]


# --- the saved model ------------------------------------------------------------------------------


def package_model(study: Study, backbone: str, folder: Path, scratch: Path, run_id: str) -> Path:
    """Save a result as an MLflow model (models from code), and return its folder.

    Args:
        study: For the backbone's weights.
        backbone: Of the result.
        folder: Of the result.
        scratch: Folder to write into.
        run_id: The run that the model will be logged to.
    """
    from equipoise.scenario import artifact

    network = artifact.save(study, backbone, folder, scratch / "network")
    description = ModelDescription.read(network / "model.json")
    kind = _kind_of(description)
    # All of it goes along: the server has no checkout.
    package = Path(equipoise.__file__).parent
    mlflow.pyfunc.save_model(
        scratch / "model",
        python_model=str(package / "service" / kind.program),
        code_paths=[str(package)],
        artifacts={"model": str(network)},
        mlflow_model=Model(artifact_path="model", run_id=run_id),
        input_example=kind.example,
        signature=ModelSignature(kind.request, _answer_columns(description.classes)),
        model_config=kind.config,
        metadata=kind.metadata,
        pip_requirements=[
            f"{name}=={version}" for name, version in _versions(kind.packages).items()
        ],
    )
    return scratch / "model"


@dataclass(frozen=True)
class _Kind:
    """What differs between models of images and models of vectors.

    Attributes:
        program: The file of this folder that MLflow runs.
        example: A request.
        request: Columns of a request.
        config: What callers may change when they load it.
        metadata: What tells the two kinds apart.
        packages: What service imports.
    """

    program: str
    example: pd.DataFrame
    request: Schema
    config: dict[str, Any]
    metadata: dict[str, str]
    packages: tuple[str, ...]


def _kind_of(description: ModelDescription) -> _Kind:
    if description.weights != imported.WEIGHTS:
        return _Kind(
            program="served.py",
            example=_input_example(),
            request=_request_columns(),
            config={"image_folder": None},
            metadata={},
            packages=_image_packages(),
        )
    # An example goes into the artifact, so it is never a patient's vector.
    nothing = [0.0] * (description.num_features or 0)
    return _Kind(
        program="served_vectors.py",
        example=pd.DataFrame({vectors.COLUMN: [nothing]}),
        request=Schema([ColSpec(AnyType(), vectors.COLUMN)]),
        config={},
        metadata={
            vectors.MADE_BY: description.backbone,
            vectors.POOL: imported.pool_of(description.pipeline),
        },
        packages=_VECTOR_REQUIREMENTS,
    )


def _request_columns() -> Schema:
    """Columns of a request; each row holds one of them."""
    kinds = {"image": DataType.binary, "path": DataType.string, "pixels": AnyType()}
    return Schema([ColSpec(kind, name, required=False) for name, kind in kinds.items()])


def _answer_columns(classes: list[str]) -> Schema:
    """Columns of an answer, as `Predictor.predict` gives them."""
    from equipoise.service.answers import ANSWERED_CALIBRATED, ANSWERED_RAW

    names = probability_columns(ANSWERED_CALIBRATED, classes)
    names += probability_columns(ANSWERED_RAW, classes)
    columns = [ColSpec(DataType.double, name) for name in names]
    columns.append(ColSpec(DataType.string, "decision"))
    columns.append(ColSpec(DataType.long, "label"))
    columns.append(ColSpec(DataType.double, "threshold", required=False))
    return Schema(columns)


def _input_example() -> pd.DataFrame:
    """A request with a plain grey picture.

    An example goes into the artifact, so it is never a patient's image.
    """
    grey = io.BytesIO()
    Image.new("L", (64, 64), 128).save(grey, "png")
    return pd.DataFrame({"image": [grey.getvalue()]})


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in packages}


def _image_packages() -> tuple[str, ...]:
    """What a model of images needs, with what reads DICOM where this machine has it."""
    there = []
    for name in _DICOM_REQUIREMENTS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version(name)
            there.append(name)
    return (*_REQUIREMENTS, *there)


def expected_predictions(folder: Path) -> pd.DataFrame:
    """What the served model of a result must reproduce: `image_id` and `calibrated_<class>`."""
    refit = folder / "model" / "refit_predictions.parquet"
    if refit.is_file():
        return read_table(refit)[0]
    predictions = Predictions.read(folder / "predictions.parquet")
    table = predictions.table
    of_first_round = (table["repeat"] == 0) & (table["fold"] == 0)
    of_first_seed = table["seed"] == table["seed"].iloc[0]
    served = table[of_first_round & of_first_seed]
    return served[["image_id", *probability_columns(CALIBRATED, predictions.classes)]]
