"""Predictions of images -> predictions of patients, so that every metric and interval exists for them too."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.special import softmax

from equipoise.core.config import Threshold
from equipoise.core.records import Predictions
from equipoise.evaluation import calibration
from equipoise.evaluation.metrics import decide

#: How the images of a patient become one score: mean logit, highest probability, share of images decided positive.
RULES = ("mean", "max", "vote")
_EPSILON = 1e-12
_ROUND = ["repeat", "fold", "seed"]


def by_patient(
    predictions: Predictions, rule: str, threshold: Threshold, sensitivity_floor: float
) -> Predictions:
    """One row per patient, round and part, with `image_id` the patient; the threshold is locked again on val patients.

    A patient with images of both classes is positive; with more classes those who show several are left out, and
    `meta["left_out"]` counts them among the test patients.

    Args:
        predictions: Of images, with val rows; a round without any keeps the threshold of its images.
        rule: `mean`: softmax of the mean image logit. `max`: the highest probability of the positive class (of each
            class, scaled to sum to 1, when there are more). `vote`: the share of the patient's images decided for the
            class, at 0.5 in `prob_...` and at the locked threshold of the images in `calibrated_...`.
        threshold: The study's rule for the locked threshold. `cost` needs probabilities: a vote is then by majority.
        sensitivity_floor: Within 0..1.
    """
    table, positive = predictions.table, predictions.positive_label
    groups = table.groupby([*_ROUND, "part", "patient_id"], sort=True)
    place, labels = groups.ngroup().to_numpy(), groups["label"]
    rows = groups.agg(overlap=("overlap", "any"), threshold=("threshold", "first")).reset_index()
    rows.insert(0, "image_id", rows["patient_id"])
    two = len(predictions.classes) == 2
    shown = (table["label"] == positive).groupby(place).any() if two else labels.first()
    rows["label"] = np.where(shown, positive, 1 - positive) if two else shown.to_numpy()
    for kind in ("prob", "calibrated"):
        at = table["threshold"].to_numpy(dtype=float) if kind == "calibrated" else 0.5
        values = _scores(predictions.probabilities(kind), place, rule, positive, at)
        rows[[f"{kind}_{name}" for name in predictions.classes]] = values
    mixed = np.zeros(len(rows), bool) if two else (labels.nunique() > 1).to_numpy()
    left_out = int(rows.loc[mixed & (rows["part"] == "test"), "patient_id"].nunique())
    rows = rows[~mixed].reset_index(drop=True)
    if two:
        for _, own in rows.groupby(_ROUND):
            val = own[own["part"] == "val"]
            if rule == "vote" and threshold.rule == "cost":
                rows.loc[own.index, "threshold"] = 0.5
            elif len(val):
                prob, truth = (
                    val[f"calibrated_{predictions.classes[positive]}"],
                    val["label"] == positive,
                )
                locked = calibration.lock_threshold(
                    prob.to_numpy(), truth.to_numpy(), threshold, sensitivity_floor
                )
                rows.loc[own.index, "threshold"] = locked
    return replace(
        predictions, table=rows, meta={**predictions.meta, "left_out": left_out}, digest=""
    )


def _scores(
    values: np.ndarray, place: np.ndarray, rule: str, positive: int, threshold: np.ndarray | float
) -> np.ndarray:
    """Probabilities of patients (P, C) from those of images (n, C); `place` is the patient of each image."""
    classes = values.shape[1]
    if rule == "mean":
        return softmax(_grouped(np.log(np.clip(values, _EPSILON, 1)), place, "mean"), axis=1)
    if rule == "vote":
        return _grouped(np.eye(classes)[decide(values, positive, threshold)], place, "mean")
    highest = _grouped(values, place, "max")
    if classes == 2:
        highest[:, 1 - positive] = 1 - highest[:, positive]
    return highest / highest.sum(axis=1, keepdims=True)


def _grouped(values: np.ndarray, place: np.ndarray, how: str) -> np.ndarray:
    return np.array(pd.DataFrame(values).groupby(place).agg(how))
