"""Register winners, promote, roll back. Evidence travels with the version; aliases are plain MLflow aliases."""

from __future__ import annotations

import importlib.metadata
import io
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from PIL import Image

import equipoise
from equipoise.compare import card
from equipoise.core import parallel
from equipoise.core.config import Study
from equipoise.core.errors import DataError, PromotionRefused
from equipoise.core.files import digest_of, file_digest, read_json, read_table
from equipoise.core.records import Manifest, Predictions, Splits
from equipoise.service import evidence as evidence_
from equipoise.service import gates, tracking
from equipoise.service.audit import CHALLENGER, model_name
from equipoise.service.evidence import TOLERANCE, load
from equipoise.split import checks

#: What service imports; versions are those of this environment.
_REQUIREMENTS = (
    *(
        "mlflow",
        "tensorflow",
        "keras",
        "numpy",
        "pandas",
        "pillow",
        "scipy",
        "pyarrow",
        "pydantic",
        "pyyaml",
    ),
    *("joblib", "tqdm"),
)


def register(study: Study) -> list[dict[str, Any]]:
    """Make each backbone's winner a version of `equipoise-<study>`, once per result.

    Returns:
        Per backbone: scenario, version, whether it is new.

    Raises:
        PromotionRefused: When patients stand on both published sides.
        DataError: When results are not those of the comparison, or a saved model does not reproduce them.
    """
    comparison = read_json(study.reports_path / "comparison.json")
    if not comparison["registrable"]:
        raise PromotionRefused(
            f"Nothing is registered from study '{study.name}': patients or pictures are on both published sides "
            f"(EQ-OFFICIAL). Use split.scheme: holdout, or a split.group_by under which the sides share nobody."
        )
    splits = Splits.read(study.splits_path)
    checks.run(splits, Manifest.read(study.manifest_path))
    store = tracking.client()
    name = model_name(study.name)
    try:
        store.create_registered_model(
            name, description=f"Winners of the Equipoise study '{study.name}'."
        )
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    done = []
    winners = comparison["winners"].items()
    for backbone, scenario in parallel.progress(winners, "saving models", len(winners), "models"):
        row = comparison["rows"][backbone][scenario]
        folder = study.result_path(backbone, scenario)
        summary = read_json(folder / "metrics.json")
        if summary["result_digest"] != row["result_digest"]:
            raise DataError(
                f"{folder} is newer than {study.reports_path}/comparison.json. Run `dvc repro` first."
            )
        checks.written_plan_within_train(read_table(folder / "plan.parquet")[0], splits)
        version, fresh = _version_of(store, study, backbone, scenario, folder, summary, comparison)
        store.set_registered_model_alias(name, f"best-{backbone}", version)
        if backbone == comparison["challenger"]:
            store.set_registered_model_alias(name, CHALLENGER, version)
        done.append({"backbone": backbone, "scenario": scenario, "version": version, "new": fresh})
    return done


def _digests(version: ModelVersion) -> dict[str, str]:
    names = (
        tracking.DIGEST,
        "equipoise.git_commit",
        "equipoise.digest.splits",
        "equipoise.digest.test",
    )
    return {
        name.removeprefix("equipoise."): version.tags[name]
        for name in names
        if name in version.tags
    }


def _version_of(
    store: MlflowClient,
    study: Study,
    backbone: str,
    scenario: str,
    folder: Path,
    summary: Mapping[str, Any],
    comparison: Mapping[str, Any],
) -> tuple[str, bool]:
    name, digest = model_name(study.name), summary["result_digest"]
    for version in store.search_model_versions(
        f"name = '{name}' and tags.`{tracking.DIGEST}` = '{digest}'"
    ):
        return str(version.version), False
    run_id, _ = tracking.mirror(store, study, backbone, scenario, folder)
    commit, changed = tracking.version_tags(), gates.uncommitted()
    evidence = evidence_.collect(study, folder, summary["digests"], expected_predictions(folder))
    with tempfile.TemporaryDirectory() as scratch:
        package = save(study, backbone, folder, Path(scratch), run_id)
        model = load(str(package))
        difference, _ = evidence_.differences(study, model, evidence)
        if not difference <= TOLERANCE:
            raise DataError(
                f"The saved model of {folder} serves probabilities that differ from the stored ones by "
                f"{difference:.2e} (allowed: {TOLERANCE:.0e}). Run `dvc repro --force "
                f"scenario@{study.name}-{backbone}-{scenario}`."
            )
        answer = model.predict(model.input_example).iloc[0].to_dict()
        evidence = replace(evidence, meta={**evidence.meta, "example": answer})
        store.log_artifacts(
            run_id, str(evidence_.write(evidence, Path(scratch) / "evidence")), "evidence"
        )
        software = {**_versions(), "commit": commit["equipoise.git_commit"]}
        (package / "MODEL_CARD.md").write_text(
            card.card(study, backbone, scenario, software), encoding="utf-8"
        )
        store.log_artifact(run_id, str(package / "MODEL_CARD.md"))
        store.log_artifacts(run_id, str(package), "model")
    source = f"{store.get_run(run_id).info.artifact_uri}/model"
    threshold = read_json(folder / "model" / "model.json")["threshold"]
    raw = Manifest.read(study.manifest_path).table[["image_id", "sha256"]].sort_values("image_id")
    lock = Path("dvc.lock")
    tags = {
        tracking.DIGEST: digest,
        "equipoise.study": study.name,
        "equipoise.backbone": backbone,
        "equipoise.scenario": scenario,
        "equipoise.mode": summary["mode"],
        "equipoise.weights": summary["weights"],
        "equipoise.positive_class": summary["positive_class"],
        "equipoise.verdict": comparison["rows"][backbone][scenario]["verdict"],
        "equipoise.comparison": comparison["digest"],
        "equipoise.served_difference": f"{difference:.1e}",
        "equipoise.threshold": "argmax" if threshold is None else f"{threshold:.6f}",
        "equipoise.grey": str(_grey(study)),
        **{f"equipoise.digest.{part}": value for part, value in summary["digests"].items()},
        "equipoise.digest.raw": digest_of(raw.to_numpy().tolist()),
        "equipoise.digest.dvc_lock": file_digest(lock) if lock.is_file() else "none",
        **{f"equipoise.check.{check['code']}": check["answer"] for check in comparison["checks"]},
        **{
            f"equipoise.{point}.{metric}": _interval(cell)
            for point, cells in summary["metrics"].items()
            for metric, cell in cells.items()
        },
        **commit,
        "equipoise.uncommitted": "no git" if changed is None else ", ".join(changed)[:5000],
    }
    made = store.create_model_version(
        name, source, run_id, tags=tags, description=comparison["verdict"]
    )
    return str(made.version), True


def _grey(study: Study) -> bool | None:
    """Whether grey images are expected: at most one in a hundred of the study has colours."""
    summary = read_json(study.manifest_path.with_suffix(".json"))
    return summary["flagged"]["colour"] <= summary["images"] / 100 if "flagged" in summary else None


def _interval(cell: Mapping[str, Any]) -> str:
    return " ".join(
        "nan" if cell[key] is None else f"{cell[key]:.4f}" for key in ("value", "low", "high")
    )


def save(study: Study, backbone: str, folder: Path, scratch: Path, run_id: str) -> Path:
    """Save a result as an MLflow model (models from code) that names its run, and return its folder."""
    import mlflow
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import AnyType

    from equipoise.scenario import artifact

    network = artifact.save(study, backbone, folder, scratch / "network")
    classes = read_json(network / "model.json")["classes"]
    outputs = [
        ColSpec(DataType.double, f"{kind}_{name}") for kind in ("prob", "raw") for name in classes
    ]
    outputs += [ColSpec(DataType.string, "decision"), ColSpec(DataType.long, "label")]
    outputs += [ColSpec(DataType.double, "threshold", required=False)]
    given = {
        "image": DataType.binary,
        "path": DataType.string,
        "pixels": AnyType(),
    }  # one of them in each row
    inputs = [ColSpec(kind, name, required=False) for name, kind in given.items()]
    grey = io.BytesIO()
    Image.new("L", (64, 64), 128).save(
        grey, "png"
    )  # an example goes into the artifact: never a patient's image
    package = Path(equipoise.__file__).parent
    mlflow.pyfunc.save_model(
        scratch / "model",
        python_model=str(package / "service" / "served.py"),
        code_paths=[str(package)],
        artifacts={"model": str(network)},
        mlflow_model=Model(artifact_path="model", run_id=run_id),
        input_example=pd.DataFrame({"image": [grey.getvalue()]}),
        signature=ModelSignature(Schema(inputs), Schema(outputs)),
        model_config={"image_folder": None},
        pip_requirements=[f"{name}=={version}" for name, version in _versions().items()],
    )
    return scratch / "model"


def _versions() -> dict[str, str]:
    return {name: importlib.metadata.version(name) for name in _REQUIREMENTS}


def expected_predictions(folder: Path) -> pd.DataFrame:
    """What the served model of a result must reproduce: `image_id` and `calibrated_<class>`."""
    refit = folder / "model" / "refit_predictions.parquet"
    if refit.is_file():
        return read_table(refit)[0]
    predictions = Predictions.read(folder / "predictions.parquet")
    table = predictions.table
    served = table[
        (table["repeat"] == 0) & (table["fold"] == 0) & (table["seed"] == table["seed"].iloc[0])
    ]
    return served[["image_id", *(f"calibrated_{name}" for name in predictions.classes)]]
