"""Register winners, promote, roll back. Evidence travels as tags of the version; aliases are plain MLflow aliases."""

from __future__ import annotations

import importlib.metadata
import io
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from PIL import Image

from equipoise import checks, images, ingest, parallel, tracking
from equipoise.config import Study
from equipoise.errors import ConfigError, DataError, PromotionRefused
from equipoise.records import Manifest, Predictions, Splits, read_json, read_table

CHAMPION, PREVIOUS, CHALLENGER = "champion", "previous-champion", "challenger"
#: Served probabilities may differ from the stored ones by this much: rounding, never another model.
TOLERANCE = 1e-5
_CHECKED_IMAGES = 16
#: What service imports; versions are those of this environment.
_REQUIREMENTS = (
    *("mlflow", "tensorflow", "keras", "numpy", "pandas", "pillow", "scipy", "pyarrow", "pydantic", "pyyaml"),
    *("joblib", "tqdm"),
)


def model_name(study: str) -> str:
    """Name of a study's registered model."""
    return f"equipoise-{study}"


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
        store.create_registered_model(name, description=f"Winners of the Equipoise study '{study.name}'.")
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
            raise DataError(f"{folder} is newer than {study.reports_path}/comparison.json. Run `dvc repro` first.")
        checks.written_plan_within_train(read_table(folder / "plan.parquet")[0], splits)
        version, fresh = _version_of(store, study, backbone, scenario, folder, summary, comparison)
        store.set_registered_model_alias(name, f"best-{backbone}", version)
        if backbone == comparison["challenger"]:
            store.set_registered_model_alias(name, CHALLENGER, version)
        done.append({"backbone": backbone, "scenario": scenario, "version": version, "new": fresh})
    return done


def promote(study: str, version: str | None = None) -> dict[str, Any]:
    """Move `champion` to the challenger, or to a version, after its artifact has loaded; the old one is kept.

    Raises:
        PromotionRefused: When there is nothing to promote or the model does not load.
    """
    store, name = tracking.client(), model_name(study)
    target = _version(store, name, version) if version else by_alias(store, name, CHALLENGER)
    if target is None:
        asked = f"version {version}" if version else f"alias {CHALLENGER}"
        raise PromotionRefused(f"{name} has no {asked}. Run `equipoise register --study {study}` first.")
    current = by_alias(store, name, CHAMPION)
    if current and current.version == target.version:
        return {"name": name, "champion": target.version, "previous": None, "moved": False}
    _loads(name, target.version)
    _move(store, name, target, current)
    return {"name": name, "champion": target.version, "previous": current.version if current else None, "moved": True}


def rollback(study: str) -> dict[str, Any]:
    """Return `champion` to the version it was before the last promotion, after that one has loaded.

    Raises:
        PromotionRefused: Without a previous champion.
    """
    store, name = tracking.client(), model_name(study)
    previous, current = by_alias(store, name, PREVIOUS), by_alias(store, name, CHAMPION)
    if previous is None:
        raise PromotionRefused(f"{name} has no previous champion to return to.")
    _loads(name, previous.version)
    _move(store, name, previous, current)
    return {
        "name": name,
        "champion": previous.version,
        "previous": current.version if current else None,
        "moved": True,
    }


def by_alias(store: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """The version an alias points to, or None."""
    try:
        return store.get_model_version_by_alias(name, alias)
    except MlflowException:
        return None


def load(uri: str) -> Any:
    """Load a registered model; a missing one is a ConfigError."""
    import mlflow

    tracking.client()
    try:
        return mlflow.pyfunc.load_model(uri)
    except MlflowException as error:
        raise ConfigError(f"{uri} cannot be loaded: {str(error).splitlines()[0]}") from error


def _move(store: MlflowClient, name: str, target: ModelVersion, current: ModelVersion | None) -> None:
    # The way back is written first: a kill in between leaves the old champion serving.
    if current:
        store.set_registered_model_alias(name, PREVIOUS, current.version)
    store.set_registered_model_alias(name, CHAMPION, target.version)


def _loads(name: str, version: str) -> None:
    try:
        load(f"models:/{name}/{version}")
    except Exception as error:
        raise PromotionRefused(f"Version {version} of {name} does not load: {error}") from error


def _version(store: MlflowClient, name: str, version: str) -> ModelVersion | None:
    try:
        return store.get_model_version(name, version)
    except MlflowException:
        return None


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
    for version in store.search_model_versions(f"name = '{name}'"):
        if version.tags.get(tracking.DIGEST) == digest:
            return version.version, False
    run_id, _ = tracking.mirror(store, study, backbone, scenario, folder)
    with tempfile.TemporaryDirectory() as scratch:
        package = save(study, backbone, folder, Path(scratch), run_id)
        difference = _check(study, backbone, folder, package)
        store.log_artifacts(run_id, str(package), "model")
    source = f"{store.get_run(run_id).info.artifact_uri}/model"
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
        **{f"equipoise.digest.{part}": value for part, value in summary["digests"].items()},
        **{f"equipoise.check.{check['code']}": check["answer"] for check in summary["checks"]},
        **_metric_tags(summary["metrics"]),
        **tracking.version_tags(),
    }
    made = store.create_model_version(name, source, run_id, tags=tags, description=comparison["verdict"])
    return made.version, True


def _metric_tags(table: Mapping[str, Any]) -> dict[str, str]:
    def text(cell: Mapping[str, Any]) -> str:
        return " ".join("nan" if cell[key] is None else f"{cell[key]:.4f}" for key in ("value", "low", "high"))

    return {f"equipoise.{point}.{name}": text(cell) for point, cells in table.items() for name, cell in cells.items()}


def save(study: Study, backbone: str, folder: Path, scratch: Path, run_id: str) -> Path:
    """Save a result as an MLflow model (models from code) that names its run, and return its folder."""
    import mlflow
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema

    from equipoise import model

    network = model.save(study, backbone, folder, scratch / "network")
    classes = read_json(network / "model.json")["classes"]
    outputs = [ColSpec(DataType.double, f"{kind}_{name}") for kind in ("prob", "raw") for name in classes]
    outputs += [ColSpec(DataType.string, "decision"), ColSpec(DataType.double, "threshold")]
    grey = io.BytesIO()
    Image.new("L", (64, 64), 128).save(grey, "png")  # an example goes into the artifact: never a patient's image
    package = Path(__file__).parent
    mlflow.pyfunc.save_model(
        scratch / "model",
        python_model=str(package / "served.py"),
        code_paths=[str(package)],
        artifacts={"model": str(network)},
        mlflow_model=Model(artifact_path="model", run_id=run_id),
        input_example=pd.DataFrame({"image": [grey.getvalue()]}),
        signature=ModelSignature(Schema([ColSpec(DataType.binary, "image")]), Schema(outputs)),
        pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in _REQUIREMENTS],
    )
    return scratch / "model"


def _check(study: Study, backbone: str, folder: Path, package: Path) -> float:
    """Largest difference between what the package serves and what is stored, on a few images."""
    import mlflow

    stored = expected_predictions(folder)
    places = ingest.locate(study, Manifest.read(study.manifest_path))
    some = stored.iloc[np.linspace(0, len(stored) - 1, min(_CHECKED_IMAGES, len(stored))).astype(int)]
    data = [images.read(study.raw, places[name]) for name in some["image_id"]]
    served = mlflow.pyfunc.load_model(str(package)).predict(pd.DataFrame({"image": data}))
    columns = [name for name in stored.columns if name.startswith("calibrated_")]
    values = served[[name.replace("calibrated_", "prob_") for name in columns]].to_numpy()
    difference = float(np.abs(values - some[columns].to_numpy()).max())
    if not difference <= TOLERANCE:
        raise DataError(
            f"The saved model of {folder} serves probabilities that differ from the stored ones by {difference:.2e} "
            f"(allowed: {TOLERANCE:.0e}). Run `dvc repro --force scenario@{study.name}-{backbone}-{folder.name}`."
        )
    return difference


def expected_predictions(folder: Path) -> pd.DataFrame:
    """What the served model of a result must reproduce: `image_id` and `calibrated_<class>`."""
    refit = folder / "model" / "refit_predictions.parquet"
    if refit.is_file():
        return read_table(refit)[0]
    predictions = Predictions.read(folder / "predictions.parquet")
    table = predictions.table
    served = table[(table["repeat"] == 0) & (table["fold"] == 0) & (table["seed"] == table["seed"].iloc[0])]
    return served[["image_id", *(f"calibrated_{name}" for name in predictions.classes)]]
