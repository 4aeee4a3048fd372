"""The most confident mistakes of each backbone's winner.

Each is shown with a map of what spoke for the wrong decision.
"""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from equipoise.compare.card import wrongly_decided
from equipoise.compare.results import Result
from equipoise.core import images
from equipoise.core.config import Study
from equipoise.core.documents import ServedModel
from equipoise.core.errors import DataError
from equipoise.core.records import Manifest
from equipoise.ingest import originals

#: Mistakes that a backbone shows where `compare.mistakes` does not say.
_SHOWN = 6
#: Longer side of a picture on the page.
_SIDE_PX = 224


@dataclass(frozen=True)
class Mistake:
    """A test image that was decided wrongly, as the page shows it.

    Attributes:
        backbone: Of the model.
        scenario: Of the model.
        image_id: Of the image.
        truth: Its class.
        decided: The class that was decided for.
        prob: Calibrated probability of that class, 0..1.
        picture: The image, as a data URI; empty when it is not shown.
        overlay: The image with its map, as a data URI; empty when it is not shown.
        note: What a reader of the map must know.
    """

    backbone: str
    scenario: str
    image_id: str
    truth: str
    decided: str
    prob: float
    picture: str
    overlay: str
    note: str


@dataclass(frozen=True)
class Mistakes:
    """The mistakes to show, and what is said about them.

    Attributes:
        entries: The most confident first within a backbone.
        note: How many mistakes there are, and why some or all are not shown.
    """

    entries: list[Mistake]
    note: str


def mistakes(study: Study, winners: Mapping[str, str], results: Sequence[Result]) -> Mistakes:
    """Find and draw them.

    Args:
        study: Its `compare.mistakes` says how many a backbone shows at most.
        winners: The scenario of each backbone whose mistakes are looked at.
        results: What the comparison was made from.
    """
    manifest = Manifest.read(study.manifest_path)
    shown = _number_shown(study.settings.compare.mistakes, manifest)
    entries: list[Mistake] = []
    notes = []
    if not shown:
        notes.append("No picture is shown (compare.mistakes is 0, or null with hashed ids).")
    for result in results:
        if winners.get(result.backbone) != result.scenario:
            continue
        wrong = wrongly_decided(result.predictions)
        name = f"{result.backbone}, {result.scenario}"
        notes.append(
            f"{name}: {len(wrong.table)} of {wrong.tested} test images are decided wrongly at the "
            "locked threshold."
        )
        try:
            entries += _draw(study, result, manifest, wrong.table.head(shown))
        except DataError as error:
            reason = _without_root(str(error), study.root)
            notes.append(f"{name}: no picture is shown. {reason}")
    return Mistakes(entries, " ".join(notes))


def _number_shown(setting: int | None, manifest: Manifest) -> int:
    """Decide how many mistakes a backbone shows; with hashed ids only those asked for."""
    if setting is not None:
        return setting
    has_hashed_ids = bool(manifest.meta.get("pseudonym_key"))
    return 0 if has_hashed_ids else _SHOWN


def _without_root(text: str, root: Path) -> str:
    """A page is read on other machines: paths in it begin at the study's root."""
    return text.replace(f"{root}{os.sep}", "") if root.is_absolute() else text


def _draw(study: Study, result: Result, manifest: Manifest, wrong: pd.DataFrame) -> list[Mistake]:
    contents = _originals(study, manifest, wrong["image_id"].tolist())
    if not contents:
        return []
    explainer = _Explainer(study, result)
    entries = []
    for row in wrong.itertuples():
        explained = explainer.explain(contents[row.image_id], int(row.decided))
        entry = Mistake(
            backbone=result.backbone,
            scenario=result.scenario,
            image_id=row.image_id,
            truth=manifest.classes[row.truth],
            decided=manifest.classes[row.decided],
            prob=float(row.prob),
            picture=explained.picture,
            overlay=explained.overlay,
            note=explained.note,
        )
        entries.append(entry)
    return entries


def _originals(study: Study, manifest: Manifest, image_ids: Sequence[str]) -> dict[str, bytes]:
    """Bytes of some originals by image id.

    The errors name the folder and no file, because with hashed ids a file's name is a secret.

    Raises:
        DataError: When an original is missing, or is no longer what `ingest` read.
    """
    path_of = originals.locate(study, manifest)
    digest_of = manifest.table.set_index("image_id")["sha256"]
    contents = {}
    changed = 0
    for image_id in image_ids:
        try:
            contents[image_id] = originals.read_unchanged(
                study.raw, path_of[image_id], digest_of[image_id]
            )
        except DataError as error:
            if isinstance(error.__cause__, OSError):
                reason = error.__cause__.strerror
                raise DataError(f"The originals are not in {study.raw} ({reason}).") from error
            changed += 1
    if changed:
        raise DataError(
            f"{changed} of {len(image_ids)} originals in {study.raw} have changed since `ingest`."
        )
    return contents


class _Explained(NamedTuple):
    """A picture and the picture under its map, as data URIs, and what to know about the map."""

    picture: str
    overlay: str
    note: str


class _Explainer:
    """The model of one result, which draws what speaks for a decision.

    TensorFlow is imported when it is made, not before.
    """

    def __init__(self, study: Study, result: Result) -> None:
        from equipoise.compare.gradcam import GradCam
        from equipoise.embed.embedder import Embedder
        from equipoise.scenario import artifact

        folder = study.result_path(result.backbone, result.scenario)
        model = ServedModel.read(folder / "model" / "model.json")
        network = artifact.assemble(study, result.backbone, folder)
        self.embedder = Embedder(network, model.image_size_px, model.pipeline)
        self.cam = GradCam(network)
        self.is_refit = (folder / "model" / "refit_predictions.parquet").is_file()

    def explain(self, content: bytes, decided: int) -> _Explained:
        """Draw what speaks for the label `decided` in an image file's bytes."""
        from equipoise.compare.gradcam import overlay

        picture = Image.fromarray(images.decode(content, scale=self.embedder.scale))
        picture.thumbnail((_SIDE_PX, _SIDE_PX))
        width_px, height_px = picture.size
        resized = self.embedder.load(content)
        heat = self.cam.heat_map(resized, decided, width_px, height_px)
        notes = []
        if self.is_refit:
            notes.append("The map is of the refit on all rows, the decision of the fold's model.")
        if not heat.any():
            notes.append("No place speaks for the class decided for; the map is empty.")
        covered = Image.fromarray(overlay(np.asarray(picture), heat))
        return _Explained(_data_uri(picture), _data_uri(covered), " ".join(notes))


def _data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "jpeg", quality=85)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f"data:image/jpeg;base64,{encoded}"
