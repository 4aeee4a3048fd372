"""Test rows -> the numbers behind figures and slider: curves with bands, counts at thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import pandas as pd

from equipoise.compare.evidence import first_run
from equipoise.core.records import CALIBRATED, RAW, Predictions
from equipoise.evaluation.intervals import Evaluation
from equipoise.evaluation.resamples import patient_resamples
from equipoise.evaluation.sample import decide, roc_steps

#: Where curves are read: false alarms or recall, 0..1.
GRID = np.linspace(0, 1, 101)
#: Thresholds that the slider can be moved to. The page's script has the same float64, so that it
#: decides as the program does.
EDGES = np.arange(1001) / 1000
#: Resamples of patients behind the bands. They serve the eye; the intervals in tables have
#: `compare.resamples`.
RESAMPLES = 200
#: Thresholds of a decision curve, as positions in `EDGES`: 0.01 to 0.99.
_DECISION_STEPS = np.arange(10, 1000, 10)
#: Precision exists only where something was found: at recall 0 it is read just above.
_LEAST_RECALL = 1e-9
#: A recall that misses a grid point by the last digits of a quotient has reached it.
_ROUNDING = 1e-12


class Tested(Protocol):
    """A result of a study, or a method of anybody: what is drawn of it."""

    def __hash__(self) -> int:
        """Each is drawn once."""

    @property
    def backbone(self) -> str:
        """Name; empty where there are none."""

    @property
    def scenario(self) -> str:
        """Name of the scenario or method."""

    @property
    def predictions(self) -> Predictions:
        """Of test, perhaps of more."""

    @property
    def evaluation(self) -> Evaluation:
        """Of all test rows."""


def is_binary(result: Tested) -> bool:
    """Whether there are two classes: then only the positive one has curves."""
    return len(result.predictions.classes) == 2


class Band(NamedTuple):
    """A curve with its pointwise interval over patients; all float64 of one length.

    Attributes:
        x: Where the curve is read, 0..1.
        estimate: Its height there.
        low: Lower end of the interval.
        high: Upper end.
    """

    x: np.ndarray
    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Bands(NamedTuple):
    """The two curves that need no threshold.

    Attributes:
        roc: Sensitivity over 1 - specificity, 102 points: the corner, then `GRID`.
        precision_recall: Precision over recall, 101 points: `GRID`.
    """

    roc: Band
    precision_recall: Band


class Reliability(NamedTuple):
    """Predicted against observed, float64 with one entry per bin.

    Attributes:
        predicted: Mean probability of the bin's images, 0..1.
        observed: Share of them that are of the class, 0..1.
        low: Lower end of the share's interval over patients.
        high: Upper end.
        images: How many images the bin holds.
    """

    predicted: np.ndarray
    observed: np.ndarray
    low: np.ndarray
    high: np.ndarray
    images: np.ndarray


@dataclass(frozen=True)
class StepCounts:
    """Test rows of one repeat and seed, counted for the slider.

    The page's script reads these names.

    Attributes:
        positives: Rows of the class: pairs of a step and a number, for the steps that hold any.
        negatives: The other rows, likewise.
        totals: Number of positives and of negatives.
        locked: True and false alarms at the locked threshold.
        raw: True and false alarms at 0.5 on raw probabilities.
        thresholds: Locked thresholds of the folds; empty for more than two classes.
    """

    positives: list[list[int]]
    negatives: list[list[int]]
    totals: list[int]
    locked: list[int]
    raw: list[int]
    thresholds: list[float]


class DecisionCurve(NamedTuple):
    """Net benefit per row over the threshold, float64 (99,).

    Attributes:
        thresholds: 0.01 to 0.99.
        model: Net benefit of deciding by the model.
        treat_all: Net benefit of calling every row positive.
    """

    thresholds: np.ndarray
    model: np.ndarray
    treat_all: np.ndarray


def shown(result: Tested) -> dict[int, str]:
    """Say which labels have a curve, and how each curve is called.

    Of two classes it is the positive one, of more each class against the rest.
    """
    predictions = result.predictions
    if len(predictions.classes) == 2:
        return {predictions.positive_label: result.scenario}
    return {label: f"{result.scenario}, {name}" for label, name in enumerate(predictions.classes)}


def tables(results: Sequence[Tested]) -> dict[str, pd.DataFrame]:
    """Put the curves of all results into tables for `dvc plots`.

    Returns:
        "roc", "precision_recall" and "calibration" -> columns backbone, scenario, x and y.
    """
    roc = []
    precision_recall = []
    calibration = []
    for result in results:
        for label, name in shown(result).items():
            drawn = bands(result, label)
            roc.append(_line(result, name, drawn.roc.x, drawn.roc.estimate))
            band = drawn.precision_recall
            precision_recall.append(_line(result, name, band.x, band.estimate))
            bins = reliability(result, CALIBRATED, label)
            calibration.append(_line(result, name, bins.predicted, bins.observed))
    return {
        "roc": pd.concat(roc, ignore_index=True),
        "precision_recall": pd.concat(precision_recall, ignore_index=True),
        "calibration": pd.concat(calibration, ignore_index=True),
    }


def _line(result: Tested, name: str, x: np.ndarray, y: np.ndarray) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "backbone": result.backbone,
            "scenario": name,
            "x": x,
            "y": y,
        }
    )


# --- curves that need no threshold ----------------------------------------------------------------


@lru_cache(maxsize=32)
def bands(result: Tested, label: int) -> Bands:
    """ROC and precision-recall of one class against the rest, with a pointwise band over patients.

    Curves are averaged vertically over repeats, folds and seeds, as the AUROC of the tables is.

    Args:
        result: Of one scenario.
        label: The class.
    """
    test = result.predictions.part("test")
    truth = _is_class(test, label)
    scores = test.probabilities(RAW)[:, label]
    weights = _weights(test)
    rounds = test.table.groupby(["repeat", "fold", "seed"], sort=True)
    roc_curves = []
    precision_curves = []
    for rows in rounds.indices.values():
        weights_of_rows = weights[:, rows]
        true, false = roc_steps(truth[rows], scores[rows], weights_of_rows)
        roc_curves.append(_roc(true, false))
        precision_curves.append(_precision(true, false))
    ends = _ends(result)
    from_corner = np.append(0, GRID)
    roc = _band(from_corner, roc_curves, ends)
    precision_recall = _band(GRID, precision_curves, ends)
    return Bands(roc, precision_recall)


def _roc(true: np.ndarray, false: np.ndarray) -> np.ndarray:
    """Sensitivity in the corner and over `GRID`, float64 (B + 1, 102), from `roc_steps`."""
    with np.errstate(divide="ignore", invalid="ignore"):
        sensitivities = true / true[:, -1:]
        alarms = false / false[:, -1:]
    curves = []
    for x, y in zip(alarms, sensitivities):
        x_from_corner = np.append(0, x)
        y_from_corner = np.append(0, y)
        on_grid = np.interp(GRID, x_from_corner, y_from_corner)
        curves.append(np.append(0, on_grid))
    return np.stack(curves)


def _precision(true: np.ndarray, false: np.ndarray) -> np.ndarray:
    """Precision over recall, float64 (B + 1, 101): where each recall of `GRID` is first reached."""
    with np.errstate(divide="ignore", invalid="ignore"):
        recalls = true / true[:, -1:]
        precisions = true / (true + false)
    wanted = np.maximum(GRID, _LEAST_RECALL) - _ROUNDING
    last_step = precisions.shape[1] - 1
    curves = []
    for recall, precision in zip(recalls, precisions):
        reached = np.searchsorted(recall, wanted)
        steps = np.minimum(reached, last_step)
        curves.append(precision[steps])
    return np.stack(curves)


def _band(x: np.ndarray, curves: list[np.ndarray], ends: list[float]) -> Band:
    """Average the rounds' curves (B + 1, n): the estimate, then one curve for each resample."""
    mean = np.mean(curves, axis=0)
    estimate = mean[0]
    resampled = mean[1:]
    low, high = np.nanquantile(resampled, ends, axis=0)
    return Band(x, estimate, low, high)


def _is_class(predictions: Predictions, label: int) -> np.ndarray:
    """Whether each row is of the class, bool (n,)."""
    labels = predictions.table["label"].to_numpy()
    return labels == label


def _weights(test: Predictions, at_large: bool = False) -> np.ndarray:
    """How often each test row counts, float (RESAMPLES + 1, n); the first row is all ones.

    `at_large` is for what depends on how common the classes are.
    """
    patients = test.table["patient_id"].to_numpy()
    labels = test.table["label"].to_numpy()
    people, drawn = patient_resamples(patients, labels, RESAMPLES, 0, at_large)
    column_of_row = np.searchsorted(people, patients)
    return drawn[:, column_of_row]


def _ends(result: Tested) -> list[float]:
    """The shares of resamples below the two ends of an interval."""
    alpha = result.evaluation.alpha
    return [alpha / 2, 1 - alpha / 2]


# --- calibration ----------------------------------------------------------------------------------


def reliability(result: Tested, kind: str, label: int, bins: int = 10) -> Reliability:
    """Mean probability and observed share in bins of equal numbers, first repeat and seed.

    Args:
        result: Of one scenario.
        kind: `RAW` or `CALIBRATED`.
        label: The class.
        bins: At most; fewer where there are fewer rows.
    """
    test = first_run(result.predictions)
    prob = test.probabilities(kind)[:, label]
    truth = _is_class(test, label)
    resamples = _weights(test, at_large=True)[1:]
    ends = _ends(result)
    bins = min(bins, len(prob))
    by_prob = np.argsort(prob, kind="stable")
    columns = []
    for rows in np.array_split(by_prob, bins):
        predicted = prob[rows].mean()
        observed = truth[rows].mean()
        drawn = resamples[:, rows]
        drawn_of_class = drawn @ truth[rows]
        with np.errstate(divide="ignore", invalid="ignore"):
            shares = drawn_of_class / drawn.sum(axis=1)
        low, high = np.nanquantile(shares, ends)
        columns.append([predicted, observed, low, high, len(rows)])
    return Reliability(*np.array(columns).T)


# --- decisions at a threshold ---------------------------------------------------------------------


def counts(predictions: Predictions, label: int) -> list[StepCounts]:
    """Count the test rows of a class, and the rest, at each step of the slider.

    Args:
        predictions: Of images or of patients, with test rows.
        label: The class.

    Returns:
        One entry per repeat and seed.
    """
    test = predictions.part("test")
    truth = _is_class(test, label)
    positive = predictions.positive_label
    calibrated = test.probabilities(CALIBRATED)
    threshold = test.table["threshold"].to_numpy(dtype=np.float64)
    decided_locked = decide(calibrated, positive, threshold) == label
    raw = test.probabilities(RAW)
    decided_raw = decide(raw, positive) == label
    scores = calibrated[:, label]
    step = np.searchsorted(EDGES, scores, side="right") - 1
    binary = len(test.classes) == 2
    runs = test.table.groupby(["repeat", "seed"], sort=True)
    entries = []
    for rows in runs.indices.values():
        is_class = truth[rows]
        steps = step[rows]
        positives = steps[is_class]
        negatives = steps[~is_class]
        thresholds = np.unique(threshold[rows])
        entry = StepCounts(
            positives=_numbers_by_step(positives),
            negatives=_numbers_by_step(negatives),
            totals=[len(positives), len(negatives)],
            locked=_alarms(decided_locked[rows], is_class),
            raw=_alarms(decided_raw[rows], is_class),
            thresholds=thresholds.tolist() if binary else [],
        )
        entries.append(entry)
    return entries


def _numbers_by_step(steps: np.ndarray) -> list[list[int]]:
    values, numbers = np.unique(steps, return_counts=True)
    pairs = np.transpose([values, numbers])
    return pairs.tolist()


def _alarms(decided: np.ndarray, is_class: np.ndarray) -> list[int]:
    true = decided & is_class
    false = decided & ~is_class
    return [int(true.sum()), int(false.sum())]


def net_benefit(entries: Sequence[StepCounts]) -> DecisionCurve:
    """Decision curve: what deciding by the model is worth at each threshold (Vickers 2006).

    Net benefit is true less false alarms per row; at threshold t a false one weighs t / (1 - t).

    Args:
        entries: From `counts`; the curve is their mean.
    """
    thresholds = EDGES[_DECISION_STEPS]
    odds = thresholds / (1 - thresholds)
    curves = []
    for entry in entries:
        true = _reached(entry.positives)
        false = _reached(entry.negatives)
        positives, negatives = entry.totals
        rows = positives + negatives
        model = true - false * odds
        treat_all = positives - negatives * odds
        curves.append([model / rows, treat_all / rows])
    model, treat_all = np.mean(curves, axis=0)
    return DecisionCurve(thresholds, model, treat_all)


def _reached(numbers_by_step: list[list[int]]) -> np.ndarray:
    """How many rows lie at or above each threshold of a decision curve, float64 (99,)."""
    steps = [step for step, _ in numbers_by_step]
    numbers = [number for _, number in numbers_by_step]
    at_step = np.bincount(steps, numbers, minlength=len(EDGES))
    from_above = np.cumsum(at_step[::-1])
    at_or_above = from_above[::-1]
    return at_or_above[_DECISION_STEPS]
