"""The state of a fine-tuning on disk, so that a killed run goes on where it was saved last."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from equipoise.core.files import write_arrays


class Evaluation(NamedTuple):
    """What the weights kept so far say about the slice that is set aside.

    Attributes:
        step: Steps taken by then; 0 is the start.
        logits: float64 (num_held, C).
    """

    step: int
    logits: np.ndarray


class Losses(NamedTuple):
    """A row of curve.parquet.

    Attributes:
        step: Steps taken by then; 0 is the start.
        train_loss: Mean of the steps since the evaluation before; NaN at the start.
        slice_loss: The objective on the slice, of the weights at this step, kept or not.
    """

    step: int
    train_loss: float
    slice_loss: float


@dataclass(frozen=True)
class KeptWeights:
    """The weights with the lowest objective on the slice so far.

    Attributes:
        step: After which they were evaluated; 0 is the start.
        loss: Their objective on the slice.
        logits: float64 (num_held, C), what they say about the slice.
        weights: Of the whole network, in Keras' order.
    """

    step: int
    loss: float
    logits: np.ndarray
    weights: list[np.ndarray]


@dataclass(frozen=True)
class TrainingState:
    """Everything that a training goes on from.

    Attributes:
        evaluations: From step 0 on.
        curve: The losses at each of them.
        best: The weights kept so far.
        weights: Of the whole network now, in Keras' order.
        optimizer: Variables of the optimizer, in its order.
    """

    evaluations: list[Evaluation]
    curve: list[Losses]
    best: KeptWeights
    weights: list[np.ndarray]
    optimizer: list[np.ndarray]

    @property
    def step(self) -> int:
        """The last step taken."""
        return self.evaluations[-1].step


class Checkpoint:
    """One file in a folder of its own, written whole."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "state.npz"

    def save(self, state: TrainingState) -> None:
        """Write the state in place of an older one."""
        evaluations = state.evaluations
        arrays = {
            "steps": np.array([evaluation.step for evaluation in evaluations]),
            "logits": np.stack([evaluation.logits for evaluation in evaluations]),
            "curve": np.array(state.curve),
            "loss": np.array(state.best.loss),
            "kept": np.array(state.best.step),
        }
        arrays |= _numbered("now", state.weights)
        arrays |= _numbered("best", state.best.weights)
        arrays |= _numbered("optimizer", state.optimizer)
        write_arrays(self.path, **arrays)

    def load(self) -> TrainingState | None:
        """Read what `save` wrote; None where nothing readable is there."""
        try:
            with np.load(self.path, allow_pickle=False) as saved:
                arrays = {name: saved[name] for name in saved.files}
            return _state_of(arrays)
        except Exception:  # a damaged file may raise anything, and all of it means: begin anew
            return None

    def remove(self) -> None:
        """Remove the file and its folder."""
        shutil.rmtree(self.path.parent, ignore_errors=True)


def _state_of(arrays: Mapping[str, np.ndarray]) -> TrainingState:
    evaluations = []
    for step, logits in zip(arrays["steps"], arrays["logits"]):
        evaluations.append(Evaluation(int(step), logits))
    curve = [Losses(int(row[0]), float(row[1]), float(row[2])) for row in arrays["curve"]]
    best = KeptWeights(
        step=int(arrays["kept"]),
        loss=float(arrays["loss"]),
        logits=evaluations[-1].logits,
        weights=_in_order("best", arrays),
    )
    return TrainingState(
        evaluations=evaluations,
        curve=curve,
        best=best,
        weights=_in_order("now", arrays),
        optimizer=_in_order("optimizer", arrays),
    )


def _numbered(prefix: str, values: list[np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{prefix}{index:04d}": value for index, value in enumerate(values)}


def _in_order(prefix: str, arrays: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    names = sorted(name for name in arrays if name.startswith(prefix))
    return [arrays[name] for name in names]
