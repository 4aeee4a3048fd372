"""Calibrator and threshold of a model, from scores of patients that it never saw.

They are locked here: nothing that is tested later moves them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from equipoise.core.documents import Calibration
from equipoise.evaluation import calibration
from equipoise.evaluation.calibration import Calibrator
from equipoise.scenario.matrix import Inputs

_NOTHING_TO_CALIBRATE_ON = (
    "a class has fewer than 2 train patients, so no inner fold scored any; the threshold is 0.5 or "
    "that of the costs"
)


@dataclass(frozen=True)
class UnseenScores:
    """Scores of patients that the scoring model never saw, none of them in test of the round.

    Attributes:
        logits: float64 (num_rows, C).
        labels: int (num_rows,).
        patients: (num_rows,), patient of each row.
        where: What the rows are, in words.
    """

    logits: np.ndarray
    labels: np.ndarray
    patients: np.ndarray
    where: str


class Locked(NamedTuple):
    """What turns the logits of a model into probabilities and answers.

    Attributes:
        calibrator: Logits to probabilities.
        threshold: The operating point on calibrated probabilities; None for more than two classes.
    """

    calibrator: Calibrator
    threshold: float | None


def lock(inputs: Inputs, unseen: UnseenScores) -> Locked:
    """Fit the calibrator, and choose the threshold on what it gives."""
    calibrator = _calibrator(inputs, unseen)
    return Locked(calibrator, _threshold(inputs, calibrator, unseen))


def _calibrator(inputs: Inputs, unseen: UnseenScores) -> Calibrator:
    if not len(unseen.logits):
        num_classes = len(inputs.manifest.classes)
        return Calibrator.identity(num_classes, _NOTHING_TO_CALIBRATE_ON)
    min_patients = inputs.study.settings.calibrate.min_patients
    return Calibrator.fit(unseen.logits, unseen.labels, unseen.patients, min_patients, unseen.where)


def _threshold(inputs: Inputs, calibrator: Calibrator, unseen: UnseenScores) -> float | None:
    if len(inputs.manifest.classes) > 2:
        return None
    settings = inputs.study.settings
    positive = inputs.positive
    prob = calibrator.apply(unseen.logits)[:, positive]
    is_positive = unseen.labels == positive
    floor = settings.tune.sensitivity_floor
    return calibration.lock_threshold(prob, is_positive, settings.threshold, floor)


def written(calibrator: Calibrator) -> Calibration:
    """A calibrator as JSON files hold it."""
    biases = calibrator.biases.tolist()
    return Calibration(slope=calibrator.slope, biases=biases, reason=calibrator.reason)
