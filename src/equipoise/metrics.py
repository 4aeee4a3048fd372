"""Predictions -> numbers with patient-clustered intervals.

Every metric is computed for all resamples at once: a resample is a weight per image (how often its patient was drawn),
so one sort and cumulative sums serve 2,000 of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy.special import expit, ndtri

from equipoise.config import Compare
from equipoise.errors import ConfigError, DataError, unknown_name
from equipoise.records import Predictions

_BLOCK = 256
_BINS = 10
#: Probabilities are kept this far from 0 and 1 where a logarithm is taken.
_EPSILON = 1e-12
_NEWTON_STEPS = 40


@dataclass(frozen=True)
class Sample:
    """Test rows of one model, with resamples.

    Attributes:
        labels: int (n,).
        probabilities: float64 (n, C), raw or calibrated.
        decisions: int (n,), the label decided for.
        positive: Index of the positive class; for more than two classes metrics are macro averages.
        weights: float (B, n), how often each row counts in each resample.
        floor: For `specificity_at_sensitivity` and its reverse, within 0..1.
        threshold: float (n,), the operating point of the decisions, for `net_benefit`.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    decisions: np.ndarray
    positive: int
    weights: np.ndarray
    floor: float
    threshold: np.ndarray | float = 0.5

    @property
    def binary(self) -> bool:
        """Whether there are two classes."""
        return self.probabilities.shape[1] == 2

    def classes(self) -> list[int]:
        """The classes a macro average runs over: the positive one alone when there are two."""
        return [self.positive] if self.binary else list(range(self.probabilities.shape[1]))

    def total(self, rows: np.ndarray) -> np.ndarray:
        """Weighted number of the rows marked, or weighted sum of values, float (B,)."""
        kind = self.weights.dtype if rows.dtype == bool else np.float64
        return np.asarray(self.weights @ rows.astype(kind), dtype=np.float64)

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Weighted mean of values (n,), float (B,)."""
        return _ratio(self.total(values), self.weights.sum(axis=1, dtype=np.float64))


# --- rank metrics ----------------------------------------------------------------------------------------------------


def roc_steps(truth: np.ndarray, scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """True and false positives, weighted, as the threshold falls past each distinct score.

    Args:
        truth: bool (n,).
        scores: float (n,), higher means positive.
        weights: float (B, n).

    Returns:
        Two float64 (B, number of distinct scores): cumulative true and false positives.
    """
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.append(np.flatnonzero(np.diff(ranked)), len(ranked) - 1)
    sorted_weights, positive = weights[:, order], truth[order]
    true = np.cumsum(sorted_weights * positive, axis=1, dtype=np.float64)[:, ends]
    false = np.cumsum(sorted_weights * ~positive, axis=1, dtype=np.float64)[:, ends]
    return true, false


def _ranked(sample: Sample, of_steps: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> np.ndarray:
    values = np.zeros(len(sample.weights))
    for label in sample.classes():
        truth, scores = sample.labels == label, sample.probabilities[:, label]
        blocks = [
            of_steps(*roc_steps(truth, scores, sample.weights[start : start + _BLOCK]))
            for start in range(0, len(sample.weights), _BLOCK)
        ]
        values += np.concatenate(blocks) / len(sample.classes())
    return values


def auroc(sample: Sample) -> np.ndarray:
    """Area under the ROC curve, ties count one half; macro one-vs-rest for more than two classes. (B,), 0..1."""
    return _ranked(sample, _auroc)


def average_precision(sample: Sample) -> np.ndarray:
    r"""Average precision $\sum_k (R_k - R_{k-1}) P_k$, macro one-vs-rest for more than two classes. (B,), 0..1."""
    return _ranked(sample, _average_precision)


def specificity_at_sensitivity(sample: Sample) -> np.ndarray:
    """The best specificity on the ROC curve where sensitivity is at least the floor. Two classes only. (B,), 0..1."""
    return _ranked(sample, lambda true, false: _specificity_at(true, false, sample.floor))


def sensitivity_at_specificity(sample: Sample) -> np.ndarray:
    """The best sensitivity on the ROC curve where specificity is at least the floor. Two classes only. (B,), 0..1."""
    return specificity_at_sensitivity(replace(sample, positive=1 - sample.positive))


def _auroc(true: np.ndarray, false: np.ndarray) -> np.ndarray:
    below = np.diff(true, axis=1, prepend=0) / 2
    area = ((true - below) * np.diff(false, axis=1, prepend=0)).sum(axis=1)
    return _ratio(area, true[:, -1] * false[:, -1])


def _average_precision(true: np.ndarray, false: np.ndarray) -> np.ndarray:
    precision = np.divide(true, true + false, out=np.zeros_like(true), where=true + false > 0)
    return _ratio((np.diff(true, axis=1, prepend=0) * precision).sum(axis=1), true[:, -1])


def _specificity_at(true: np.ndarray, false: np.ndarray, floor: float) -> np.ndarray:
    enough = true >= (floor - 1e-12) * true[:, -1:]
    first = enough.argmax(axis=1)
    alarms = false[np.arange(len(false)), first]
    return np.where(true[:, -1] > 0, 1 - _ratio(alarms, false[:, -1]), np.nan)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


# --- decisions and probabilities -------------------------------------------------------------------------------------


def _macro(sample: Sample, of_class: Callable[[int], np.ndarray]) -> np.ndarray:
    return np.mean([of_class(label) for label in sample.classes()], axis=0)


def accuracy(sample: Sample) -> np.ndarray:
    """Share of correct decisions. (B,), 0..1."""
    return sample.mean(sample.decisions == sample.labels)


def sensitivity(sample: Sample) -> np.ndarray:
    """Share of the positive class decided as such; macro for more than two classes. (B,), 0..1."""
    return _macro(sample, lambda c: _recall(sample, sample.labels == c, sample.decisions == c))


def specificity(sample: Sample) -> np.ndarray:
    """Share of the others not decided as positive; macro for more than two classes. (B,), 0..1."""
    return _macro(sample, lambda c: _recall(sample, sample.labels != c, sample.decisions != c))


def balanced_accuracy(sample: Sample) -> np.ndarray:
    """Mean over classes of the share decided correctly. (B,), 0..1."""
    labels = range(sample.probabilities.shape[1])
    return np.mean([_recall(sample, sample.labels == c, sample.decisions == c) for c in labels], axis=0)


def precision(sample: Sample) -> np.ndarray:
    """Share of positive decisions that are right, 0 where there is none; macro for more classes. (B,), 0..1."""
    return _macro(sample, lambda c: np.nan_to_num(_recall(sample, sample.decisions == c, sample.labels == c)))


def negative_predictive_value(sample: Sample) -> np.ndarray:
    """Share of negative decisions that are right, 0 where there is none; macro for more classes. (B,), 0..1."""
    return _macro(sample, lambda c: np.nan_to_num(_recall(sample, sample.decisions != c, sample.labels != c)))


def mcc(sample: Sample) -> np.ndarray:
    """Matthews' correlation of decisions and labels (Gorodkin 2004 for more classes), else 0. (B,), -1..1."""
    classes = range(sample.probabilities.shape[1])
    total = sample.weights.sum(axis=1, dtype=np.float64)
    truth = np.stack([sample.total(sample.labels == c) for c in classes])
    decided = np.stack([sample.total(sample.decisions == c) for c in classes])
    covariance = sample.total(sample.decisions == sample.labels) * total - (truth * decided).sum(axis=0)
    spread = np.sqrt((total**2 - (truth**2).sum(axis=0)) * (total**2 - (decided**2).sum(axis=0)))
    return np.nan_to_num(_ratio(covariance, spread))


def g_mean(sample: Sample) -> np.ndarray:
    """Geometric mean over classes of the share decided correctly. (B,), 0..1."""
    labels = range(sample.probabilities.shape[1])
    recalls = [_recall(sample, sample.labels == c, sample.decisions == c) for c in labels]
    return np.prod(recalls, axis=0) ** (1 / len(recalls))


def net_benefit(sample: Sample) -> np.ndarray:
    r"""True less false positives per image, a false one weighing $t/(1-t)$ (Vickers 2006). Two classes only. (B,)."""
    alarms, true = sample.decisions == sample.positive, sample.labels == sample.positive
    threshold = np.asarray(sample.threshold, dtype=np.float64)
    return sample.mean(alarms * np.where(true, 1.0, -threshold / (1 - np.minimum(threshold, 1 - _EPSILON))))


def f1(sample: Sample) -> np.ndarray:
    """Harmonic mean of precision and sensitivity; macro for more than two classes. (B,), 0..1."""

    def one(label: int) -> np.ndarray:
        both = sample.total((sample.labels == label) & (sample.decisions == label))
        either = sample.total(sample.labels == label) + sample.total(sample.decisions == label)
        return np.nan_to_num(_ratio(2 * both, either))

    return _macro(sample, one)


def brier(sample: Sample) -> np.ndarray:
    """Mean squared error of the probability of the positive class; summed over classes for more than two. (B,)."""
    truth = np.eye(sample.probabilities.shape[1])[sample.labels]
    return sample.mean(((sample.probabilities - truth) ** 2)[:, sample.classes()].sum(axis=1))


def brier_skill(sample: Sample) -> np.ndarray:
    """1 - Brier score over that of always predicting the share of each class. (B,), at most 1; 0 is no skill."""
    shares = [sample.mean(sample.labels == c) for c in sample.classes()]
    return 1 - _ratio(brier(sample), np.sum([share * (1 - share) for share in shares], axis=0))


def log_loss(sample: Sample) -> np.ndarray:
    """Mean negative logarithm of the probability of the true class. (B,), >= 0."""
    own = sample.probabilities[np.arange(len(sample.labels)), sample.labels]
    return sample.mean(-np.log(np.clip(own, _EPSILON, 1)))


def ece(sample: Sample) -> np.ndarray:
    """Expected calibration error (Guo 2017) in 10 bins of equal width, the upper edge inside. (B,), 0..1.

    For more than two classes it is of the class decided for.
    """
    if sample.binary:
        prob, hit = sample.probabilities[:, sample.positive], sample.labels == sample.positive
    else:
        prob, hit = sample.probabilities.max(axis=1), sample.probabilities.argmax(axis=1) == sample.labels
    inside = np.searchsorted(np.arange(1, _BINS) / _BINS, prob)
    gaps = [np.abs(sample.total((hit - prob) * (inside == place))) for place in range(_BINS)]
    return _ratio(np.sum(gaps, axis=0), sample.weights.sum(axis=1, dtype=np.float64))


def calibration_slope(sample: Sample) -> np.ndarray:
    r"""$b$ of the logistic fit $a + b \operatorname{logit} p$; 1 is right, below it too extreme. Two classes. (B,)."""
    return _recalibrated(sample, slope=True)[:, 1]


def calibration_intercept(sample: Sample) -> np.ndarray:
    r"""$a$ of $a + \operatorname{logit} p$; 0 is right, above 0 the disease is underestimated. Two classes. (B,)."""
    return _recalibrated(sample, slope=False)[:, 0]


def _recalibrated(sample: Sample, slope: bool) -> np.ndarray:
    """Intercept and slope (B, 2) by Newton's method, all resamples of a block at once; NaN where classes separate."""
    prob = np.clip(sample.probabilities[:, sample.positive], _EPSILON, 1 - _EPSILON)
    logit, truth = np.log(prob / (1 - prob)), (sample.labels == sample.positive).astype(np.float64)
    # The estimate first: from there every resample is a few steps away.
    start = _newton(sample.weights[:1], logit, truth, slope, np.array([[0.0, 1.0]]))
    start = np.where(np.isnan(start), [[0.0, 1.0]], start)
    blocks = [sample.weights[first : first + _BLOCK] for first in range(0, len(sample.weights), _BLOCK)]
    return np.concatenate([_newton(block, logit, truth, slope, start) for block in blocks])


def _newton(weights: np.ndarray, logit: np.ndarray, truth: np.ndarray, slope: bool, start: np.ndarray) -> np.ndarray:
    """Fits of `truth` on a + b * logit under each row of weights, (B, 2); b stays where `slope` is false."""
    share = weights / weights.sum(axis=1, keepdims=True, dtype=np.float64)
    fitted = np.tile(start, (len(weights), 1))
    for _ in range(_NEWTON_STEPS):
        guess = expit(fitted[:, :1] + fitted[:, 1:] * logit)
        miss, curve = share * (truth - guess), share * guess * (1 - guess)
        first, a = miss.sum(axis=1), curve.sum(axis=1)
        second, b, c = (miss @ logit, curve @ logit, curve @ logit**2) if slope else (0 * a, 0 * a, 0 * a + 1)
        determinant = np.maximum(a * c - b * b, np.finfo(float).tiny)
        step = np.stack([c * first - b * second, a * second - b * first], axis=1) / determinant[:, None]
        fitted += np.clip(step, -2, 2)
        if np.abs(step).max() < 1e-9:
            break
    return np.where(np.abs(step).max(axis=1, keepdims=True) < 1e-6, fitted, np.nan)


def _recall(sample: Sample, among: np.ndarray, right: np.ndarray) -> np.ndarray:
    return _ratio(sample.total(among & right), sample.total(among))


@dataclass(frozen=True)
class Metric:
    """One row of the registry.

    Attributes:
        function: Sample -> float (B,).
        kind: rank (averaged over folds), decision or probability (pooled over folds).
        better: Direction; None where a certain value is right, so that it can be neither searched for nor compared by.
        binary: Whether it needs two classes.
        among: For proportions, the rows of the denominator: their patients give a Wilson interval at 0 and 1.
    """

    function: Callable[[Sample], np.ndarray]
    kind: Literal["rank", "decision", "probability"]
    better: Literal["higher", "lower"] | None = "higher"
    among: Callable[[Sample], np.ndarray] | None = None
    binary: bool = False


REGISTRY: dict[str, Metric] = {
    "auroc": Metric(auroc, "rank"),
    "average_precision": Metric(average_precision, "rank"),
    "specificity_at_sensitivity": Metric(specificity_at_sensitivity, "rank", binary=True),
    "sensitivity_at_specificity": Metric(sensitivity_at_specificity, "rank", binary=True),
    "accuracy": Metric(accuracy, "decision", among=lambda s: np.ones(len(s.labels), dtype=bool)),
    "balanced_accuracy": Metric(balanced_accuracy, "decision"),
    "sensitivity": Metric(sensitivity, "decision", among=lambda s: s.labels == s.positive),
    "specificity": Metric(specificity, "decision", among=lambda s: s.labels != s.positive),
    "precision": Metric(precision, "decision", among=lambda s: s.decisions == s.positive),
    "negative_predictive_value": Metric(
        negative_predictive_value, "decision", among=lambda s: s.decisions != s.positive
    ),
    "f1": Metric(f1, "decision"),
    "mcc": Metric(mcc, "decision"),
    "g_mean": Metric(g_mean, "decision"),
    "net_benefit": Metric(net_benefit, "decision", binary=True),
    "brier": Metric(brier, "probability", "lower"),
    "brier_skill": Metric(brier_skill, "probability"),
    "log_loss": Metric(log_loss, "probability", "lower"),
    "ece": Metric(ece, "probability", "lower"),
    "calibration_slope": Metric(calibration_slope, "probability", None, binary=True),
    "calibration_intercept": Metric(calibration_intercept, "probability", None, binary=True),
}


def load_metric(name: str, classes: int = 2) -> Metric:
    """A metric that results can be ordered by; a ConfigError names the nearest when there is none.

    Args:
        name: A key of `REGISTRY`.
        classes: Number of classes it is wanted for.
    """
    if name not in REGISTRY:
        raise unknown_name("metric", name, REGISTRY)
    metric = REGISTRY[name]
    if metric.better is None:
        raise ConfigError(f"{name} has one right value, so results cannot be ordered by it. Choose another metric.")
    if metric.binary and classes > 2:
        raise ConfigError(
            f"{name} needs two classes; these data have {classes}. Set tune.objective and compare.primary to auroc."
        )
    return metric


def decide(probabilities: np.ndarray, positive: int, threshold: float | np.ndarray = 0.5) -> np.ndarray:
    """Label decided for each row: positive when its probability reaches the threshold, argmax for more classes.

    Args:
        probabilities: float (n, C).
        positive: Index of the positive class.
        threshold: One number or one per row; unused for more than two classes.
    """
    if probabilities.shape[1] > 2:
        return probabilities.argmax(axis=1)
    return np.where(probabilities[:, positive] >= threshold, positive, 1 - positive)


def wilson(successes: int, trials: int, alpha: float) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927), covering 1 - alpha.

    >>> [round(end, 4) for end in wilson(15, 16, 0.05)]
    [0.7167, 0.9889]
    """
    squared = float(ndtri(1 - alpha / 2)) ** 2
    share, spread = successes / trials, squared / trials
    centre = (share + spread / 2) / (1 + spread)
    half = np.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return float(max(centre - half, 0.0)), float(min(centre + half, 1.0))


# --- resamples and intervals -----------------------------------------------------------------------------------------


def patient_resamples(
    patients: np.ndarray, labels: np.ndarray, resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Draw whole patients with replacement, within strata of the classes a patient shows.

    Args:
        patients: (n,), patient of each row; their order does not matter.
        labels: int (n,).
        resamples: B.
        seed: The same seed and patients give the same resamples, so differences between models are paired.

    Returns:
        Patient ids (P,), sorted, and float32 (B + 1, P): how often each is drawn; the first row is all ones.
    """
    rows = pd.DataFrame({"patient": patients, "label": labels})
    shown = rows.groupby("patient")["label"].agg(lambda values: tuple(sorted(set(values)))).sort_index()
    drawn = np.ones((resamples + 1, len(shown)), dtype=np.float32)
    rng = np.random.default_rng(seed)
    for stratum in sorted(shown.unique()):
        members = np.flatnonzero(shown == stratum)
        drawn[1:, members] = rng.multinomial(len(members), np.full(len(members), 1 / len(members)), size=resamples)
    return shown.index.to_numpy(), drawn


@dataclass(frozen=True)
class Evaluation:
    """All numbers of one result on one set of test rows.

    Attributes:
        draws: "point.metric" -> float64 (B + 1,): the estimate first, then one value per resample.
        among: "point.metric" -> patients in the denominator of a proportion.
        by_seed: "point.metric" -> one estimate per seed.
        alpha: Intervals cover 1 - alpha.
    """

    draws: dict[str, np.ndarray]
    among: dict[str, int]
    by_seed: dict[str, list[float]]
    alpha: float

    def interval(self, name: str) -> dict[str, Any]:
        """Estimate, percentile interval, and the number of resamples in which the metric does not exist."""
        estimate, draws = float(self.draws[name][0]), self.draws[name][1:]
        return {"value": estimate, **self._bounds(name, estimate, draws), "degenerate": int(np.isnan(draws).sum())}

    def _bounds(self, name: str, estimate: float, draws: np.ndarray) -> dict[str, Any]:
        patients = self.among.get(name)
        if patients and estimate in (0.0, 1.0):
            # All resamples of 24 out of 24 are 24 out of 24; the patients behind it still bound what is known.
            low, high = wilson(round(estimate * patients), patients, self.alpha)
            return {"low": low, "high": high, "interval": f"Wilson, {patients} patients"}
        if np.isnan(draws).all():
            return {"low": float("nan"), "high": float("nan"), "interval": "none: undefined in every resample"}
        low, high = np.nanquantile(draws, [self.alpha / 2, 1 - self.alpha / 2])
        return {"low": float(low), "high": float(high), "interval": "patient bootstrap"}

    def table(self) -> dict[str, dict[str, Any]]:
        """{"free" | "raw" | "locked": {metric: interval}}."""
        nested: dict[str, dict[str, Any]] = {}
        for name in self.draws:
            point, metric = name.split(".")
            nested.setdefault(point, {})[metric] = {**self.interval(name), "by_seed": self.by_seed[name]}
        return nested


def evaluate(predictions: Predictions, settings: Compare, sensitivity_floor: float) -> Evaluation:
    """Compute every metric on test rows, at both operating points, with resamples.

    "free" needs no threshold; "raw" is 0.5 on raw probabilities; "locked" is the threshold of val on calibrated ones.
    Rank metrics are averaged over folds, decisions pooled; repeats and seeds are averaged.

    Raises:
        DataError: When a class is absent from the test rows.
    """
    test = predictions.part("test")
    labels = test.table["label"].to_numpy()
    num_classes = len(test.classes)
    present = np.bincount(labels, minlength=num_classes)
    if (present == 0).any():
        counts = ", ".join(f"{name} {count}" for name, count in zip(test.classes, present))
        raise DataError(f"The test rows lack a class ({counts}), so nothing can be compared. Split again.")
    patients, drawn = patient_resamples(test.table["patient_id"].to_numpy(), labels, settings.resamples, settings.seed)
    column = pd.Series(np.arange(len(patients)), index=patients)
    groups = []
    for (_, seed), rows in test.table.groupby(["repeat", "seed"], sort=True):
        group = replace(test, table=rows.reset_index(drop=True))
        groups.append((int(seed), _evaluate_group(group, drawn, column, sensitivity_floor)))
    names = list(groups[0][1])
    draws = {name: np.mean([values[name][0] for _, values in groups], axis=0) for name in names}
    among = {name: groups[0][1][name][1] for name in names if groups[0][1][name][1]}
    seeds = sorted({seed for seed, _ in groups})
    by_seed = {
        name: [float(np.mean([values[name][0][0] for own, values in groups if own == seed])) for seed in seeds]
        for name in names
    }
    return Evaluation(draws, among, by_seed, settings.alpha)


def _evaluate_group(
    group: Predictions, drawn: np.ndarray, column: pd.Series, floor: float
) -> dict[str, tuple[np.ndarray, int]]:
    """One repeat and seed: name -> (float64 (B + 1,), patients in the denominator of a proportion or 0)."""
    table, positive = group.table, group.positive_label
    kinds = {kind: group.probabilities(kind) for kind in ("prob", "calibrated")}
    threshold = table["threshold"].to_numpy(dtype=np.float64)
    points = {
        "free": (kinds["prob"], decide(kinds["prob"], positive)),
        "raw": (kinds["prob"], decide(kinds["prob"], positive)),
        "locked": (kinds["calibrated"], decide(kinds["calibrated"], positive, threshold)),
    }
    weights = drawn[:, column.loc[table["patient_id"]].to_numpy()]
    folds = list(table.groupby("fold", sort=True).indices.values())
    found: dict[str, tuple[np.ndarray, int]] = {}
    for point, (probabilities, decisions) in points.items():
        at = threshold if point == "locked" else 0.5
        whole = Sample(table["label"].to_numpy(), probabilities, decisions, positive, weights, floor, at)
        for name, metric in REGISTRY.items():
            if (metric.kind == "rank") != (point == "free"):
                continue
            if metric.binary and not whole.binary:
                continue
            if metric.kind == "rank":
                # Scores of different folds come from different models: ranks are compared within a fold only.
                values = np.mean([metric.function(_subset(whole, rows)) for rows in folds], axis=0)
            else:
                values = metric.function(whole)
            patients = 0
            if metric.among is not None and whole.binary:
                patients = int(table.loc[metric.among(whole), "patient_id"].nunique())
            found[f"{point}.{name}"] = (values, patients)
    return found


def _subset(sample: Sample, rows: np.ndarray) -> Sample:
    return replace(
        sample,
        labels=sample.labels[rows],
        probabilities=sample.probabilities[rows],
        decisions=sample.decisions[rows],
        weights=sample.weights[:, rows],
    )
