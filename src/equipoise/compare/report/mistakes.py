"""The most confident mistakes of each backbone's winner, with maps of what spoke for the wrong decision."""

from __future__ import annotations

import base64
import hashlib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from equipoise.compare.card import wrongly_decided
from equipoise.compare.results import Result
from equipoise.core import images
from equipoise.core.config import Study
from equipoise.core.errors import DataError
from equipoise.core.files import read_json
from equipoise.core.records import Manifest
from equipoise.ingest import originals

_SHOWN = 6
_SIDE_PX = 224


def mistakes(
    study: Study, comparison: Mapping[str, Any], results: Sequence[Result]
) -> dict[str, Any]:
    """Find and draw them.

    Args:
        study: Name and settings; `compare.mistakes` says how many a backbone shows at most.
        comparison: Its `winners` name the scenario of each backbone.
        results: What the comparison was made from.

    Returns:
        rows: one per image, the most confident first within a backbone: backbone, scenario, image_id, truth, decided,
        prob (calibrated, of the class decided for), picture and overlay (data URIs), note; note: how many mistakes
        there are, and why some or all are not shown.
    """
    manifest = Manifest.read(study.manifest_path)
    shown = study.settings.compare.mistakes
    if shown is None:
        shown = 0 if manifest.meta.get("pseudonym_key") else _SHOWN
    rows: list[dict[str, Any]] = []
    notes = (
        [] if shown else ["No picture is shown (compare.mistakes is 0, or null with hashed ids)."]
    )
    for result in results:
        if comparison["winners"].get(result.backbone) != result.scenario:
            continue
        wrong, tested = wrongly_decided(result.predictions)
        name = f"{result.backbone}, {result.scenario}"
        notes.append(
            f"{name}: {len(wrong)} of {tested} test images are decided wrongly at the locked threshold."
        )
        try:
            rows += _drawn(study, result, manifest, wrong.head(shown))
        except DataError as error:
            notes.append(f"{name}: no picture is shown. {error}")
    return {"rows": rows, "note": " ".join(notes)}


def _drawn(
    study: Study, result: Result, manifest: Manifest, wrong: pd.DataFrame
) -> list[dict[str, Any]]:
    digests = manifest.table.set_index("image_id")["sha256"]
    places = originals.locate(study, manifest)
    try:
        files = {name: images.read(study.raw, places[name]) for name in wrong["image_id"]}
    except OSError as error:
        raise DataError(f"The originals are not in {study.raw} ({error.strerror}).") from error
    if changed := [
        name for name, data in files.items() if hashlib.sha256(data).hexdigest() != digests[name]
    ]:
        raise DataError(
            f"{len(changed)} of {len(files)} originals in {study.raw} have changed since `ingest`."
        )
    if not files:
        return []
    from equipoise.compare.gradcam import GradCam, overlay
    from equipoise.embed.embedder import Embedder
    from equipoise.scenario import artifact

    folder: Path = study.result_path(result.backbone, result.scenario)
    description = read_json(folder / "model" / "model.json")
    network = artifact.assemble(study, result.backbone, folder)
    embedder, cam = (
        Embedder(network, description["image_size_px"], description["pipeline"]),
        GradCam(network),
    )
    refit = (folder / "model" / "refit_predictions.parquet").is_file()
    rows = []
    for row in wrong.itertuples():
        picture = Image.fromarray(images.decode(files[row.image_id]))
        picture.thumbnail((_SIDE_PX, _SIDE_PX))
        heat = cam.heat_map(embedder.load(files[row.image_id]), int(row.decided), *picture.size)
        notes = (
            ["The map is of the refit on all rows, the decision of the fold's model."]
            if refit
            else []
        )
        notes += (
            [] if heat.any() else ["No place speaks for the class decided for; the map is empty."]
        )
        rows.append(
            {
                **{
                    "backbone": result.backbone,
                    "scenario": result.scenario,
                    "image_id": row.image_id,
                },
                **{"truth": manifest.classes[row.truth], "decided": manifest.classes[row.decided]},
                **{"prob": float(row.prob), "picture": _data_uri(picture)},
                **{
                    "overlay": _data_uri(Image.fromarray(overlay(np.asarray(picture), heat))),
                    "note": " ".join(notes),
                },
            }
        )
    return rows


def _data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "jpeg", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
