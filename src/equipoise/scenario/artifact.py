"""The model folder of a result: what stands in it, and the network made from it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from equipoise.core.config import Study
from equipoise.core.errors import DataError
from equipoise.core.files import read_json, write_json
from equipoise.embed import backbones
from equipoise.scenario.head import Head
from equipoise.scenario.network import with_head

#: Images per call of the backbone while predicting.
_BATCH = 32


def assemble(study: Study, backbone: str, result: Path) -> Any:
    """Build the whole network of a result: pixels -> logits, one flat Keras model.

    Args:
        study: For the backbone's weights.
        backbone: Its name.
        result: Folder of the result, as `scenario.run` wrote it.

    Raises:
        DataError: When the backbone's weights are no longer those the result was made with.
    """
    description = read_json(result / "model" / "model.json")
    weights = study.settings.embed.weights_for(backbone)
    network = backbones.build(
        backbone, weights, description["image_size_px"], description["pipeline"]
    )
    if backbones.weights_digest(network) != description["weights_digest"]:
        raise DataError(
            f"The weights of {backbone} have changed since {result} was made. Restore them, or run `dvc repro`."
        )
    tuned = result / "model" / "backbone.npz"
    if tuned.is_file():
        with np.load(tuned, allow_pickle=False) as saved:
            network.set_weights([saved[name] for name in sorted(saved.files)])
    return with_head(network, Head.load(result / "model" / "head.npz"))


def save(study: Study, backbone: str, result: Path, folder: Path) -> Path:
    """Write model.keras and model.json, all that service needs, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    assemble(study, backbone, result).save(folder / "model.keras")
    write_json(folder / "model.json", read_json(result / "model" / "model.json"))
    return folder
