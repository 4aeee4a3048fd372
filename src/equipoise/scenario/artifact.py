"""The model folder of a result: the parts of a served model written, and a network made of them again.

`head.npz` is the head, `backbone.npz` the weights of a fine-tuned backbone, `model.json` everything
else that a prediction needs. `refit_predictions.parquet` is there after several folds only: what the
refitted model says about every image, which service must reproduce.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from equipoise.core.config import Study
from equipoise.core.documents import ServedModel
from equipoise.core.errors import DataError
from equipoise.core.files import write_arrays, write_table
from equipoise.core.records import CALIBRATED, probability_table
from equipoise.embed import backbones, imported
from equipoise.evaluation.calibration import Calibrator
from equipoise.scenario.finetuning.network import with_head
from equipoise.scenario.heads.head import HEAD, Head

_BACKBONE = "backbone.npz"
_DESCRIPTION = "model.json"
_REFIT_PREDICTIONS = "refit_predictions.parquet"


@dataclass(frozen=True)
class ServedParts:
    """What a served model consists of, beside the backbone's own weights.

    Attributes:
        head: Logits from features.
        backbone_weights: Tuned weights in Keras' order; None where the backbone was not trained.
        calibrator: Probabilities from logits.
        threshold: Locked operating point; None for more than two classes.
    """

    head: Head
    backbone_weights: list[np.ndarray] | None
    calibrator: Calibrator
    threshold: float | None


def write(folder: Path, parts: ServedParts, description: ServedModel) -> None:
    """Write the parts of a served model into a model folder."""
    parts.head.save(folder / HEAD)
    # Of an earlier, fine-tuned result: it would be taken for this one's backbone.
    (folder / _BACKBONE).unlink(missing_ok=True)
    if parts.backbone_weights is not None:
        # The numbers in the names keep Keras' order when the names are sorted.
        named = {f"w{index:04d}": value for index, value in enumerate(parts.backbone_weights)}
        write_arrays(folder / _BACKBONE, **named)
    description.write(folder / _DESCRIPTION)


def write_refit_predictions(
    folder: Path,
    image_ids: Sequence[str] | pd.Series,
    calibrated: np.ndarray,
    classes: Sequence[str],
) -> None:
    """Write what a refitted model says about every image.

    Args:
        folder: The model folder.
        image_ids: (num_images,).
        calibrated: float64 (num_images, C), calibrated probabilities.
        classes: C names.
    """
    table = probability_table(CALIBRATED, calibrated, classes)
    table.insert(0, "image_id", image_ids)
    write_table(folder / _REFIT_PREDICTIONS, table, {})


def assemble(study: Study, backbone: str, result: Path) -> Any:
    """Build the whole network of a result: pixels -> logits, one flat Keras model.

    Args:
        study: For the backbone's weights.
        backbone: Its name.
        result: Folder of the result, as the scenario stage wrote it.

    Raises:
        DataError: When the backbone's weights are no longer those the result was made with.
    """
    folder = result / "model"
    description = ServedModel.read(folder / _DESCRIPTION)
    if description.weights == imported.WEIGHTS:
        raise DataError(
            f"The vectors of {backbone} were imported, so no network leads from a picture to them."
        )
    network = backbones.build(
        backbone,
        study.settings.embed.weights_for(backbone),
        description.image_size_px,
        description.pipeline,
        study.root,
    )
    if backbones.weights_digest(network) != description.weights_digest:
        raise DataError(
            f"The weights of {backbone} have changed since {result} was made. Restore them, or run "
            f"`dvc repro`."
        )
    tuned = folder / _BACKBONE
    if tuned.is_file():
        with np.load(tuned, allow_pickle=False) as saved:
            network.set_weights([saved[name] for name in sorted(saved.files)])
    return with_head(network, Head.load(folder / HEAD))


def save(study: Study, backbone: str, result: Path, folder: Path) -> Path:
    """Write all that service needs into a folder: model.json, and model.keras or, for imported vectors, the head."""
    folder.mkdir(parents=True, exist_ok=True)
    description = ServedModel.read(result / "model" / _DESCRIPTION)
    if description.weights == imported.WEIGHTS:
        Head.load(result / "model" / HEAD).save(folder / HEAD)
    else:
        network = assemble(study, backbone, result)
        network.save(folder / "model.keras")
    description.write(folder / _DESCRIPTION)
    return folder
