"""What a version of a model carries as proof, written at registration and read by the gates."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from pydantic import ValidationError

from equipoise.core.config import Study
from equipoise.core.documents import Part
from equipoise.core.errors import DataError, EquipoiseError
from equipoise.core.files import read_table, write_table
from equipoise.core.records import CALIBRATED, Manifest, Predictions, Splits, probability_columns
from equipoise.core.text import first_line
from equipoise.ingest import originals
from equipoise.service import vectors
from equipoise.service.answers import ANSWERED_CALIBRATED

#: Served probabilities may differ from the stored ones by this much: rounding, never another model.
TOLERANCE = 1e-5
#: Tag of a version: its own folder among the artifacts of its run.
FOLDER = "equipoise.folder"
#: Beginning of the columns of `Evidence.images` with what the served model answers (calibrated).
SERVED = "served"
#: How many images are predicted again to see whether a model reproduces its evidence.
_CHECKED_IMAGES = 16
#: Images per call of a model that scores rows again.
_BATCH_IMAGES = 32


class Origin(Part):
    """Where evidence comes from: the metadata of images.parquet.

    Attributes:
        digests: Of what the result was made from.
        several: Whether there were several folds; a refit on all rows is then served.
        group_by: The column by which rows were kept together.
        pseudonym_key: Name of the key that hashed the ids; None for plain ids.
        example: What the model answers for its input example; absent where it was never asked.
    """

    digests: dict[str, str]
    several: bool
    group_by: str | None
    pseudonym_key: str | None
    example: dict[str, Any] | None = None


@dataclass(frozen=True)
class Evidence:
    """What a version carries: test predictions of its model, and a row per image of its study.

    Attributes:
        version: Its number.
        predictions: Test rows of the served seed (k-fold: out of fold).
        images: image_id, patient_id, sha256, picture, fitted (in its train or val), and
            served_<class> where stored.
        origin: What the two were made from.
    """

    version: str
    predictions: Predictions
    images: pd.DataFrame
    origin: Origin


# --- collect, write, read -------------------------------------------------------------------------


def collect(
    study: Study, folder: Path, digests: Mapping[str, str], expected: pd.DataFrame
) -> Evidence:
    """Gather the evidence of a result from its files.

    Args:
        study: For manifest, split and seeds.
        folder: Of the result.
        digests: Of what it was made from.
        expected: What its served model must answer: `image_id` and `calibrated_<class>`.
    """
    manifest = Manifest.read(study.manifest_path)
    splits = Splits.read(study.splits_path)
    predictions = Predictions.read(folder / "predictions.parquet").part("test")
    several = splits.folds > 1
    # Other seeds are other models. So are other repeats without folds: they may train on these rows.
    of_served_seed = predictions.table["seed"] == study.settings.train.seeds[0]
    of_served_repeat = several | (predictions.table["repeat"] == 0)
    served = predictions.table[of_served_seed & of_served_repeat]
    return Evidence(
        version="",
        predictions=replace(predictions, table=served.reset_index(drop=True)),
        images=_images(manifest, splits, expected),
        origin=Origin(
            digests=dict(digests),
            several=several,
            group_by=splits.meta["group_by"],
            pseudonym_key=manifest.meta.get("pseudonym_key"),
        ),
    )


def _images(manifest: Manifest, splits: Splits, expected: pd.DataFrame) -> pd.DataFrame:
    """A row per image of the study, see `Evidence.images`."""
    rows = splits.round(0, 0)
    pictures = manifest.table[["image_id", "sha256", "picture"]]
    images = rows[["image_id", "patient_id"]].merge(pictures, on="image_id")
    served_by_refit = splits.folds > 1  # and a refit is fitted on all rows
    images["fitted"] = (rows["part"] != "test").to_numpy() | served_by_refit
    stored_names = probability_columns(CALIBRATED, manifest.classes)
    served_names = probability_columns(SERVED, manifest.classes)
    answers = expected.rename(columns=dict(zip(stored_names, served_names)))
    return images.merge(answers, on="image_id", how="left")


def artifact_place(tags: Mapping[str, str], name: str) -> str:
    """Where an artifact of a version lies in its run.

    Each version has a folder there, so that registering a result again never writes over what another version serves.
    A version of before that has its artifacts at the top.

    Args:
        tags: Of the version.
        name: model, evidence or MODEL_CARD.md.
    """
    folder = tags.get(FOLDER)
    return f"{folder}/{name}" if folder else name


def write(evidence: Evidence, folder: Path) -> Path:
    """Write the artifact `evidence` into a folder."""
    evidence.predictions.write(folder / "test_predictions.parquet")
    write_table(folder / "images.parquet", evidence.images, evidence.origin.as_dict())
    return folder


def read(store: MlflowClient, version: ModelVersion) -> Evidence:
    """Read the evidence of a version back from its run.

    Raises:
        DataError: When the run or its artifact is gone, or holds something else.
    """
    with tempfile.TemporaryDirectory() as scratch:
        try:
            place = artifact_place(version.tags, "evidence")
            folder = Path(store.download_artifacts(version.run_id, place, scratch))
            predictions = Predictions.read(folder / "test_predictions.parquet")
            images, meta = read_table(folder / "images.parquet")
            origin = Origin.model_validate(meta)
        except (MlflowException, OSError, DataError, ValidationError) as error:
            raise DataError(
                f"the evidence of version {version.version} cannot be read from run {version.run_id} "
                f"({first_line(error)})"
            ) from error
    return Evidence(str(version.version), predictions, images, origin)


# --- ask the model again --------------------------------------------------------------------------


class ServedDifference(NamedTuple):
    """How far the answers of a model are from what is stored.

    Attributes:
        largest: Largest absolute difference between two probabilities.
        measured_on: What it was measured on, in words.
    """

    largest: float
    measured_on: str


def differences(study: Study, model: Any, evidence: Evidence) -> ServedDifference:
    """Compare what a model answers with what is stored.

    A few images of the raw folder are predicted again; the input example where none of them is
    there.

    Raises:
        DataError: When there is neither an image nor an input example.
    """
    classes = evidence.predictions.classes
    answered_names = probability_columns(ANSWERED_CALIBRATED, classes)
    served_names = probability_columns(SERVED, classes)
    stored = evidence.images.dropna(subset=served_names)
    places = np.linspace(0, len(stored) - 1, min(_CHECKED_IMAGES, len(stored)))
    some = stored.iloc[places.astype(int)]
    features = evidence.origin.digests.get("features")
    contents = _requests(study, model, some, features)
    if contents:
        wanted = some.set_index("image_id").loc[list(contents), served_names].to_numpy()
        answers = _ask(model, contents)
        measured_on = f"{len(contents)} images"
    elif evidence.origin.example is not None:
        wanted = np.array([[evidence.origin.example[name] for name in answered_names]])
        answers = model.predict(model.input_example)
        measured_on = "the input example; the raw images are not here"
    else:
        raise DataError(
            f"None of the images is in {_raw_folder(study)} as it was, so the saved model cannot be checked."
        )
    served = answers[answered_names].to_numpy(dtype=float)
    return ServedDifference(float(np.abs(served - wanted).max()), measured_on)


def rescore(study: Study, model: Any, rows: pd.DataFrame) -> pd.DataFrame:
    """Answers of a model for images of the raw folder.

    Args:
        study: For the raw folder.
        model: A registered model.
        rows: image_id and sha256.

    Returns:
        `prob_<class>` (calibrated), `raw_<class>` and so on, by image_id.

    Raises:
        DataError: When an image is not there as it was.
    """
    answers = []
    for start in range(0, len(rows), _BATCH_IMAGES):
        batch = rows.iloc[start : start + _BATCH_IMAGES]
        contents = _requests(study, model, batch)
        for image_id in batch["image_id"]:
            if image_id not in contents:
                raise DataError(
                    f"other test rows, and image '{image_id}' is not in {_raw_folder(study)} to score it again"
                )
        answers.append(_ask(model, contents))
    return pd.concat(answers)


def _requests(
    study: Study, model: Any, rows: pd.DataFrame, features: str | None = None
) -> dict[str, Any]:
    """What a model takes of images, by image id: bytes of files, or vectors; of those that are here.

    Args:
        study: Whose images they are.
        model: A registered model.
        rows: image_id and sha256.
        features: Digest of the features that are meant, for a model of vectors; None takes any.
    """
    backbone = vectors.made_by(model)
    if backbone is not None:
        return vectors.stored(study, backbone, rows, features)
    return _unchanged(study, rows, _paths(study))


def _ask(model: Any, contents: Mapping[str, Any]) -> pd.DataFrame:
    """Answers of a model, by image id."""
    column = "image" if vectors.made_by(model) is None else vectors.COLUMN
    answers = model.predict(pd.DataFrame({column: list(contents.values())}))
    return answers.set_axis(list(contents))


def _paths(study: Study) -> dict[str, str]:
    """Path inside the raw folder by image id; empty where the originals cannot be located."""
    try:
        return originals.locate(study, Manifest.read(study.manifest_path))
    except EquipoiseError:
        return {}


def _unchanged(study: Study, rows: pd.DataFrame, paths: Mapping[str, str]) -> dict[str, bytes]:
    """Bytes by image id of those rows whose image lies in the raw folder as `ingest` read it."""
    contents = {}
    for image_id, sha256 in rows[["image_id", "sha256"]].itertuples(index=False):
        path = paths.get(image_id, image_id)
        try:
            contents[image_id] = originals.read_unchanged(study.raw, path, sha256)
        except DataError:
            continue
    return contents


def _raw_folder(study: Study) -> Path:
    """The raw folder as messages name it; the log keeps them, so it is relative to the root."""
    if study.raw.is_relative_to(study.root):
        return study.raw.relative_to(study.root)
    return study.raw
