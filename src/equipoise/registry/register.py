"""Make winners versions of a registered model.

Their evidence travels with them. Aliases are plain MLflow aliases.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
from mlflow.entities import LoggedModel, LoggedModelOutput, Metric
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.tracking import MlflowClient
from mlflow.types import ColSpec, DataType, Schema
from mlflow.types.schema import AnyType
from mlflow.utils.mlflow_tags import MLFLOW_MODEL_VERSIONS
from PIL import Image
from sqlalchemy.exc import SQLAlchemyError

from equipoise.core import parallel
from equipoise.core.config import Study
from equipoise.core.documents import (
    Comparison,
    IngestSummary,
    ScenarioRow,
    ScenarioSummary,
)
from equipoise.core.documents import ServedModel as ModelDescription
from equipoise.core.environment import PACKAGE
from equipoise.core.errors import DataError, PromotionRefused
from equipoise.core.files import digest_of, file_digest, read_table
from equipoise.core.records import CALIBRATED, Manifest, Predictions, Splits, probability_columns
from equipoise.embed import imported
from equipoise.registry import checkout, runs, tracking
from equipoise.registry.audit import CHALLENGER, model_name
from equipoise.registry.checkout import Code
from equipoise.split import checks

if TYPE_CHECKING:
    from equipoise.registry.evidence import Evidence
    from equipoise.service.packaged import Packaged

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
#: MLflow keeps so many of a description.
_DESCRIPTION_CHARACTERS = 5000
#: Tag of a run: the logged model that a registration has begun and not finished.
_UNFINISHED = "equipoise.unfinished_model"
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
    if present.tags.get(checkout.DIGEST_TAG) != code.digest:
        return None
    for key, value in code.tags().items():
        store.set_model_version_tag(winner.model, number, key, value)
    return replace(kept, renewed=True)


def _make_version(store: MlflowClient, winner: Winner) -> Registered:
    study = winner.study
    run = tracking.mirror(store, study, winner.backbone, winner.scenario, winner.folder)
    runs.write_verdict(store, run.run_id, winner.comparison, winner.backbone, winner.scenario)
    folder = _own_folder(store, winner.model)
    model = _open_model(store, winner, run.run_id, folder)
    try:
        made = _fill_version(store, winner, model, folder)
    except BaseException:
        with contextlib.suppress(MlflowException, SQLAlchemyError):
            store.delete_logged_model(model.model_id)
        raise
    return Registered(winner.backbone, winner.scenario, str(made.version), new=True)


def _open_model(store: MlflowClient, winner: Winner, run_id: str, folder: str) -> LoggedModel:
    """Open the logged model of a version, in place of one that a killed call left unfinished.

    The run names it until it is done: MLflow 3.17 cannot search logged models on PostgreSQL.
    """
    run = store.get_run(run_id)
    unfinished = run.data.tags.get(_UNFINISHED)
    if unfinished:
        with contextlib.suppress(MlflowException):  # it may be gone already
            store.delete_logged_model(unfinished)
    model = store.create_logged_model(
        run.info.experiment_id,
        name=f"{winner.study.name}-{winner.backbone}-{winner.scenario}",
        source_run_id=run_id,
        params={"backbone": winner.backbone, "scenario": winner.scenario},
        tags={runs.VERDICT: winner.row.verdict},
        model_type="classifier",
    )
    store.set_tag(run_id, _UNFINISHED, model.model_id)
    return model


def _fill_version(
    store: MlflowClient, winner: Winner, model: LoggedModel, folder: str
) -> ModelVersion:
    """Write model, card and evidence, check what is served, and make the version."""
    # What a version is made with takes seconds to import: that is paid where one is made only.
    from equipoise.registry import evidence as evidence_

    code = Code.of(winner.study.root)
    run_id = str(model.source_run_id)
    expected = expected_predictions(winner.folder)
    evidence = evidence_.collect(winner.study, winner.folder, winner.summary.digests, expected)
    card = _card(winner, code)
    with tempfile.TemporaryDirectory() as name:
        package = package_model(winner.study, winner.backbone, winner.folder, Path(name), model)
        log_package(store, model, card, package, folder)
    with served(model.artifact_location) as packaged:
        difference = verify_served(winner, packaged, evidence)
        log_evidence(store, run_id, packaged, evidence, folder)
    store.log_dict(run_id, record(winner, difference), f"{folder}/registered.json")
    store.finalize_logged_model(model.model_id, "READY")
    store.log_batch(run_id, metrics=_metrics_of(model, winner))
    store.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])
    made = store.create_model_version(
        winner.model,
        source=model.artifact_location,
        run_id=run_id,
        tags=version_tags(winner, code) | {evidence_.FOLDER: folder},
        description=_description(winner, card),
        model_id=model.model_id,
    )
    # A server does this itself; a database that is written to directly does not.
    linked = json.dumps([{"name": winner.model, "version": made.version}])
    store.set_logged_model_tags(model.model_id, {MLFLOW_MODEL_VERSIONS: linked})
    store.delete_tag(run_id, _UNFINISHED)
    return made


def _metrics_of(model: LoggedModel, winner: Winner) -> list[Metric]:
    """The numbers of the run as those of the model; the run has them with the same time, so only once."""
    end = runs.span(winner.study, winner.summary, winner.folder).end
    metrics = []
    for name, value in runs.numbers(winner.summary):
        metrics.append(
            Metric(name, value, end, 0, model_id=model.model_id, run_id=model.source_run_id)
        )
    return metrics


def _card(winner: Winner, code: Code) -> str:
    """The model card."""
    from equipoise.compare import card

    software = _versions(_image_packages()) | {"commit": code.commit}
    return card.card(winner.study, winner.backbone, winner.scenario, software)


def _description(winner: Winner, text: str) -> str:
    """What the page says of the winner, a paragraph for each sentence, and those sections of its card that fit."""
    from equipoise.compare import card

    rule = winner.study.settings.threshold.rule
    parts = card.said(winner.comparison, winner.backbone, winner.scenario, rule)
    parts.append(f"All of the card is `{card.FILE_NAME}`, beside the model.")
    room = _DESCRIPTION_CHARACTERS - len("\n\n".join(parts))
    for section in text.split("\n## ")[1:]:
        paragraph = f"## {section.strip()}"
        needed = len(paragraph) + len("\n\n")
        if needed <= room:
            parts.append(paragraph)
            room -= needed
    return "\n\n".join(parts)


def existing_version(store: MlflowClient, winner: Winner) -> ModelVersion | None:
    """The newest version that holds a winner's result, or None."""
    clause = f"name = '{winner.model}' and tags.`{runs.DIGEST}` = '{winner.summary.result_digest}'"
    versions = store.search_model_versions(clause)
    return max(versions, key=lambda version: int(version.version), default=None)


def verify_served(winner: Winner, model: Any, evidence: Evidence) -> float:
    """The largest difference between what the saved model answers and what is stored.

    Raises:
        DataError: When it is larger than rounding.
    """
    from equipoise.registry import evidence as evidence_

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
    from equipoise.service.packaged import Packaged

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
    from equipoise.registry import evidence as evidence_

    answer = model.predict(model.input_example).iloc[0].to_dict()
    origin = evidence.origin.model_copy(update={"example": answer})
    with tempfile.TemporaryDirectory() as scratch:
        written = evidence_.write(replace(evidence, origin=origin), Path(scratch))
        store.log_artifacts(run_id, str(written), f"{folder}/evidence")


def log_package(
    store: MlflowClient, model: LoggedModel, card: str, package: Path, folder: str
) -> None:
    """Write the files of a model with its card, and the card into its run."""
    path = package / "MODEL_CARD.md"
    path.write_text(card, encoding="utf-8")
    store.log_artifact(str(model.source_run_id), str(path), folder)
    store.log_model_artifacts(model.model_id, str(package))


def version_tags(winner: Winner, code: Code) -> dict[str, str]:
    """What people and the gates ask a version for; the rest is in `record`."""
    from equipoise.registry import gates

    study = winner.study
    answers = [f"{check.code} {check.answer}" for check in winner.comparison.checks]
    tags = {
        runs.DIGEST: winner.summary.result_digest,
        "equipoise.study": study.name,
        "equipoise.backbone": winner.backbone,
        "equipoise.scenario": winner.scenario,
        "equipoise.verdict": winner.row.verdict,
        "equipoise.threshold": _threshold_text(winner.folder),
        "equipoise.grey": str(_expects_grey(study)),
        gates.CHECKS: ", ".join(answers),
    }
    for name in ("splits", "test"):
        tags[f"equipoise.digest.{name}"] = winner.summary.digests[name]
    return tags | code.tags()


def record(winner: Winner, difference: float) -> dict[str, Any]:
    """What a version was made from, for who looks closer.

    Args:
        winner: That is registered.
        difference: The largest one between what is served and what is stored.
    """
    study = winner.study
    digests = dict(winner.summary.digests)
    digests["raw"] = _raw_digest(study)
    digests["dvc_lock"] = _lock_digest(study.root)
    digests["comparison"] = winner.comparison.digest
    checks_asked = [check.as_dict() for check in winner.comparison.checks]
    return {
        "result": winner.summary.result_digest,
        "digests": digests,
        "checks": checks_asked,
        "served_difference": difference,
    }


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


# --- the saved model ------------------------------------------------------------------------------


def package_model(
    study: Study, backbone: str, folder: Path, scratch: Path, model: LoggedModel
) -> Path:
    """Save a result as an MLflow model (models from code), and return its folder.

    Args:
        study: For the backbone's weights.
        backbone: Of the result.
        folder: Of the result.
        scratch: Folder to write into.
        model: That the files will be logged to.
    """
    from equipoise.scenario import artifact

    network = artifact.save(study, backbone, folder, scratch / "network")
    description = ModelDescription.read(network / "model.json")
    program = _program_of(description)
    # All of it goes along: the server has no checkout.
    mlflow.pyfunc.save_model(
        scratch / "model",
        python_model=str(PACKAGE / "service" / program.file),
        code_paths=[str(PACKAGE)],
        artifacts={"model": str(network)},
        mlflow_model=Model(
            artifact_path=model.artifact_location,
            run_id=model.source_run_id,
            model_id=model.model_id,
        ),
        input_example=program.example,
        signature=ModelSignature(program.request, _answer_columns(description.classes)),
        model_config=program.config,
        metadata=program.metadata,
        pip_requirements=[
            f"{name}=={version}" for name, version in _versions(program.packages).items()
        ],
    )
    return scratch / "model"


@dataclass(frozen=True)
class _Program:
    """What MLflow runs, and what goes with it: it differs between models of images and models of vectors.

    Attributes:
        file: Name of the program in the room `service`.
        example: A request.
        request: Columns of a request.
        config: What callers may change when they load it.
        metadata: What tells the two kinds apart.
        packages: What service imports.
    """

    file: str
    example: pd.DataFrame
    request: Schema
    config: dict[str, Any]
    metadata: dict[str, str]
    packages: tuple[str, ...]


def _program_of(description: ModelDescription) -> _Program:
    from equipoise.service import vectors

    if description.weights != imported.WEIGHTS:
        return _Program(
            file="served.py",
            example=_input_example(),
            request=_request_columns(),
            config={"image_folder": None},
            metadata={},
            packages=_image_packages(),
        )
    # An example goes into the artifact, so it is never a patient's vector.
    nothing = [0.0] * (description.num_features or 0)
    return _Program(
        file="served_vectors.py",
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
    types = {"image": DataType.binary, "path": DataType.string, "pixels": AnyType()}
    return Schema([ColSpec(of_column, name, required=False) for name, of_column in types.items()])


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
