"""What a version of a model carries as proof, written at registration and read by the gates."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from equipoise.core import images
from equipoise.core.config import Study
from equipoise.core.errors import ConfigError, DataError, EquipoiseError
from equipoise.core.files import read_table, write_table
from equipoise.core.records import Manifest, Predictions, Splits
from equipoise.core.text import first_line
from equipoise.ingest import originals
from equipoise.service import tracking

#: Served probabilities may differ from the stored ones by this much: rounding, never another model.
TOLERANCE = 1e-5


_CHECKED_IMAGES = 16


_BATCH = 32


@dataclass(frozen=True)
class Evidence:
    """What a version carries: test predictions of the served model, and a row per image of its study.

    Attributes:
        version: Its number.
        predictions: Test rows of the served seed (k-fold: out of fold).
        images: image_id, patient_id, sha256, picture, fitted (in its train or val), and served_<class> where stored.
        meta: digests, several (folds), group_by, pseudonym_key, example (what it says of the input example).
    """

    version: str
    predictions: Predictions
    images: pd.DataFrame
    meta: dict[str, Any]


def load(uri: str) -> Any:
    """Load a registered model; a missing one is a ConfigError, a lost server a StoreError."""
    import mlflow

    tracking.client()
    try:
        return mlflow.pyfunc.load_model(uri)
    except MlflowException as error:
        raise tracking.store_error(error) or ConfigError(
            f"{uri} cannot be loaded: {first_line(error)}"
        ) from error


def collect(
    study: Study, folder: Path, digests: Mapping[str, str], expected: pd.DataFrame
) -> Evidence:
    """Gather the evidence of a result from its files; `expected` is what its served model must say, by image."""
    manifest, splits = Manifest.read(study.manifest_path), Splits.read(study.splits_path)
    predictions = Predictions.read(folder / "predictions.parquet").part("test")
    several, table = splits.folds > 1, predictions.table
    # Other seeds are other models; without folds so are other repeats, whose train rows may be tested here.
    served = (table["seed"] == study.settings.train.seeds[0]) & (several | (table["repeat"] == 0))
    predictions = replace(predictions, table=table[served].reset_index(drop=True))
    rows = splits.round(0, 0)
    table = rows[["image_id", "patient_id"]].merge(
        manifest.table[["image_id", "sha256", "picture"]], on="image_id"
    )
    table["fitted"] = (
        rows["part"] != "test"
    ).to_numpy() | several  # folds are served by a refit on all rows
    answers = expected.rename(columns=lambda name: name.replace("calibrated_", "served_"))
    meta = {
        **{"digests": dict(digests), "several": several, "group_by": splits.meta["group_by"]},
        "pseudonym_key": manifest.meta.get("pseudonym_key"),
    }
    return Evidence("", predictions, table.merge(answers, on="image_id", how="left"), meta)


def write(evidence: Evidence, folder: Path) -> Path:
    """Write the artifact `evidence` into a folder."""
    evidence.predictions.write(folder / "test_predictions.parquet")
    write_table(folder / "images.parquet", evidence.images, evidence.meta)
    return folder


def read(store: MlflowClient, version: ModelVersion) -> Evidence:
    """Read the evidence of a version back from its run.

    Raises:
        DataError: When the run or its artifact is gone.
    """
    with tempfile.TemporaryDirectory() as scratch:
        try:
            folder = Path(store.download_artifacts(version.run_id, "evidence", scratch))
            predictions = Predictions.read(folder / "test_predictions.parquet")
            table, meta = read_table(folder / "images.parquet")
        except (MlflowException, OSError, DataError) as error:
            raise DataError(
                f"the evidence of version {version.version} cannot be read from run {version.run_id} "
                f"({first_line(error)})"
            ) from error
    return Evidence(str(version.version), predictions, table, meta)


def differences(study: Study, model: Any, evidence: Evidence) -> tuple[float, str]:
    """Largest difference between what a model serves and what is stored, and on what it was found.

    On a few images of the raw folder; on the input example where none of them is there.
    """
    columns = [name for name in evidence.images if name.startswith("served_")]
    stored = evidence.images.dropna(subset=columns)
    some = stored.iloc[
        np.linspace(0, len(stored) - 1, min(_CHECKED_IMAGES, len(stored))).astype(int)
    ]
    found = {name: data for name, data in _files(study, some).items() if data is not None}
    if found:
        rows = some.set_index("image_id").loc[list(found), columns].to_numpy()
        answer, on = (
            model.predict(pd.DataFrame({"image": list(found.values())})),
            f"{len(found)} images",
        )
    elif "example" not in evidence.meta:
        raise DataError(
            f"None of the images is in {study.raw} as it was, so the saved model cannot be checked."
        )
    else:
        example = evidence.meta["example"]
        rows = np.array([[example[name.replace("served_", "prob_")] for name in columns]])
        answer, on = (
            model.predict(model.input_example),
            "the input example; the raw images are not here",
        )
    values = answer[[name.replace("served_", "prob_") for name in columns]].to_numpy(dtype=float)
    return float(np.abs(values - rows).max()), on


def _files(study: Study, rows: pd.DataFrame) -> dict[str, bytes | None]:
    """Bytes of images by id, None for those that are not in the raw folder as they were."""
    try:
        places = originals.locate(study, Manifest.read(study.manifest_path))
    except EquipoiseError:
        places = {}
    found: dict[str, bytes | None] = {}
    for name, digest in rows[["image_id", "sha256"]].itertuples(index=False):
        try:
            data = images.read(study.raw, places.get(name, name))
        except OSError:
            data = b""
        found[name] = data if hashlib.sha256(data).hexdigest() == digest else None
    return found


def _rescored(study: Study, model: Any, rows: pd.DataFrame) -> pd.DataFrame:
    parts = []
    for start in range(0, len(rows), _BATCH):
        found = _files(study, rows.iloc[start : start + _BATCH])
        lacking = [name for name, data in found.items() if data is None]
        if lacking:
            raise DataError(
                f"other test rows, and image '{lacking[0]}' is not in {study.raw} to score it again"
            )
        parts.append(
            model.predict(pd.DataFrame({"image": list(found.values())})).set_axis(list(found))
        )
    return pd.concat(parts)
