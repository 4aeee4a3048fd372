"""Predictions of images -> predictions of patients, so that every metric and interval exists for them too."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from equipoise.core.config import Compare, Threshold
from equipoise.core.documents import PatientLevel
from equipoise.core.records import CALIBRATED, RAW, Predictions, probability_columns
from equipoise.evaluation import calibration
from equipoise.evaluation.intervals import Evaluation, evaluate
from equipoise.evaluation.metrics import EPSILON, Endpoint, softmax
from equipoise.evaluation.sample import decide

#: How the images of a patient become one score: mean logit, highest probability, share of images decided positive.
RULES = ("mean", "max", "vote")
_ROUND = ["repeat", "fold", "seed"]

#: What is shown of patients. Probabilities were calibrated for images, so that only the order of patients and the
#: decisions on them mean something: no Brier score, no log loss, no calibration.
_RANKED = (Endpoint("free", "auroc"),)
_DECIDED_OF_TWO = (
    "patient_recognition_rate",
    "sensitivity",
    "specificity",
    "precision",
    "negative_predictive_value",
)
_DECIDED_OF_SEVERAL = ("accuracy", "patient_recognition_rate", "balanced_accuracy")


# --- one row per patient --------------------------------------------------------------------------


def by_patient(
    predictions: Predictions, rule: str, threshold: Threshold, sensitivity_floor: float
) -> Predictions:
    """One row per patient, round and part, with `image_id` the patient; the threshold is locked again on val patients.

    K-fold has no val: there the threshold that the images locked is kept.

    A patient with images of both classes is positive; with more classes those who show several are left out, and
    `meta["left_out"]` counts them among the test patients.

    Args:
        predictions: Of images, val included where there is one.
        rule: `mean`: softmax of the mean image logit. `max`: the highest probability of the positive class (of each
            class, scaled to sum to 1, when there are more). `vote`: the share of the patient's images decided for the
            class, at 0.5 in `prob_...` and at the locked threshold of the images in `calibrated_...`.
        threshold: The study's rule for the locked threshold. `cost` needs probabilities: a vote is then by majority.
        sensitivity_floor: Within 0..1.
    """
    images = predictions.table
    groups = images.groupby([*_ROUND, "part", "patient_id"], sort=True)
    patient_of_image = groups.ngroup().to_numpy()
    rows = groups.agg(
        overlap=("overlap", "any"),
        threshold=("threshold", "first"),
    ).reset_index()
    rows.insert(0, "image_id", rows["patient_id"])
    binary = len(predictions.classes) == 2
    if binary:
        rows["label"] = _positive_if_any(images["label"], patient_of_image, predictions)
        shows_several = np.zeros(len(rows), dtype=bool)
    else:
        rows["label"] = groups["label"].first().to_numpy()
        shows_several = (groups["label"].nunique() > 1).to_numpy()
    locked = images["threshold"].to_numpy(dtype=float)
    for kind, at in ((RAW, 0.5), (CALIBRATED, locked)):
        scores = _scores(predictions, kind, patient_of_image, rule, at)
        rows[probability_columns(kind, predictions.classes)] = scores
    left_out = rows[shows_several & (rows["part"] == "test")]
    rows = rows[~shows_several].reset_index(drop=True)
    if binary:
        rows = _with_threshold(rows, predictions, rule, threshold, sensitivity_floor)
    meta = dict(predictions.meta)
    meta["left_out"] = int(left_out["patient_id"].nunique())
    return replace(predictions, table=rows, meta=meta, digest="")


def _positive_if_any(
    labels: pd.Series, patient_of_image: np.ndarray, predictions: Predictions
) -> np.ndarray:
    """Label of each patient (P,): positive when any image is."""
    positive = predictions.positive_label
    is_positive = labels == positive
    shows_positive = is_positive.groupby(patient_of_image).any()
    return np.where(shows_positive, positive, 1 - positive)


def _scores(
    predictions: Predictions,
    kind: str,
    patient_of_image: np.ndarray,
    rule: str,
    threshold: np.ndarray | float,
) -> np.ndarray:
    """Probabilities of patients (P, C) from those of their images."""
    prob = predictions.probabilities(kind)
    num_classes = len(predictions.classes)
    positive = predictions.positive_label
    if rule == "mean":
        logits = np.log(np.clip(prob, EPSILON, 1))
        mean_logits = _grouped(logits, patient_of_image, "mean")
        return softmax(mean_logits)
    if rule == "vote":
        decided = decide(prob, positive, threshold)
        votes = np.eye(num_classes)[decided]
        return _grouped(votes, patient_of_image, "mean")
    highest = _grouped(prob, patient_of_image, "max")
    if num_classes == 2:
        highest[:, 1 - positive] = 1 - highest[:, positive]
    return highest / highest.sum(axis=1, keepdims=True)


def _grouped(values: np.ndarray, patient_of_image: np.ndarray, how: str) -> np.ndarray:
    """Values (P, C) of patients from those of images (n, C); `how` is the name of an aggregate of pandas."""
    groups = pd.DataFrame(values).groupby(patient_of_image)
    return np.array(groups.agg(how))


def _with_threshold(
    rows: pd.DataFrame,
    predictions: Predictions,
    rule: str,
    threshold: Threshold,
    sensitivity_floor: float,
) -> pd.DataFrame:
    """The rows of patients with a threshold that the val patients of each round lock. Two classes."""
    positive_name = predictions.classes[predictions.positive_label]
    for _, of_round in rows.groupby(_ROUND):
        val = of_round[of_round["part"] == "val"]
        if rule == "vote" and threshold.rule == "cost":
            rows.loc[of_round.index, "threshold"] = 0.5
        elif len(val):
            prob = val[f"{CALIBRATED}_{positive_name}"].to_numpy()
            is_positive = val["label"] == predictions.positive_label
            truth = is_positive.to_numpy()
            locked = calibration.lock_threshold(prob, truth, threshold, sensitivity_floor)
            rows.loc[of_round.index, "threshold"] = locked
    return rows


# --- their numbers --------------------------------------------------------------------------------


@dataclass(frozen=True)
class PatientPredictions:
    """Predictions of patients and their numbers.

    Attributes:
        predictions: One row per patient, round and part.
        evaluation: None where those who show several classes left a class without any patient.
    """

    predictions: Predictions
    evaluation: Evaluation | None

    def level(self) -> PatientLevel:
        """Its numbers as they stand in evidence.json."""
        test = self.predictions.part("test").table
        level = PatientLevel(
            patients=int(test["patient_id"].nunique()),
            left_out=self.predictions.meta["left_out"],
        )
        if self.evaluation is None:
            return level
        return level.model_copy(update=self.evaluation.table())


def measured_by_patient(
    predictions: Predictions,
    rule: str,
    threshold: Threshold,
    settings: Compare,
    sensitivity_floor: float,
) -> PatientPredictions:
    """`by_patient` and what is shown of its test rows; the arguments are those of `by_patient` and `evaluate`."""
    people = by_patient(predictions, rule, threshold, sensitivity_floor)
    if not of_every_class(people):
        return PatientPredictions(people, None)
    evaluation = evaluate(people, settings, sensitivity_floor, shown(len(people.classes)))
    return PatientPredictions(people, evaluation)


def of_every_class(people: Predictions) -> bool:
    """Whether the test patients are of every class: not where all of them have an image of the positive one."""
    test = people.part("test").table
    return test["label"].nunique() == len(people.classes)


def shown(num_classes: int) -> list[Endpoint]:
    """The metrics of patients: what follows from their order and from the decisions on them."""
    decided = _DECIDED_OF_TWO if num_classes == 2 else _DECIDED_OF_SEVERAL
    endpoints = list(_RANKED)
    for point in ("raw", "locked"):
        endpoints += [Endpoint(point, metric) for metric in decided]
    return endpoints
