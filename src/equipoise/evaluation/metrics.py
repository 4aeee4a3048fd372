"""What a metric is: labels, probabilities and decisions -> a number.

Every metric is computed for all resamples at once: a resample is a weight per image (how often its patient was drawn),
so one sort and cumulative sums serve 2,000 of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property, wraps
from typing import Literal, NamedTuple

import numpy as np
from scipy.special import expit

from equipoise.core.errors import ConfigError, unknown_name


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities float64 (n, C) of logits (n, C)."""
    shifted = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shifted / shifted.sum(axis=1, keepdims=True)


#: Resamples at a time: their steps stay in the processor's cache.
BLOCK = 64


_BINS = 10


#: Probabilities are kept this far from 0 and 1 where a logarithm is taken.
_EPSILON = 1e-12


_NEWTON_STEPS = 40


class Endpoint(NamedTuple):
    """A metric at an operating point, written "point.metric" in files.

    Attributes:
        point: free (no threshold), raw (0.5 on raw probabilities) or locked (the threshold of val).
        metric: A name of `REGISTRY`.

    >>> str(Endpoint.parse("locked.sensitivity")), Endpoint("free", "auroc").metric
    ('locked.sensitivity', 'auroc')
    """

    point: str
    metric: str

    @classmethod
    def parse(cls, text: str) -> Endpoint:
        """Read "point.metric"."""
        point, _, metric = text.partition(".")
        return cls(point, metric)

    def __str__(self) -> str:
        return f"{self.point}.{self.metric}"


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
        shares: float (n,), 1 / images of the row's patient, for `patient_recognition_rate`.
        alone: Of more than two classes, look at the positive one against the rest instead of at all of them.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    decisions: np.ndarray
    positive: int
    weights: np.ndarray
    floor: float
    threshold: np.ndarray | float = 0.5
    shares: np.ndarray | None = None
    alone: bool = False

    @property
    def binary(self) -> bool:
        """Whether there are two classes."""
        return self.probabilities.shape[1] == 2

    def classes(self) -> list[int]:
        """The classes a macro average runs over: the positive one alone when there are two."""
        return (
            [self.positive]
            if self.binary or self.alone
            else list(range(self.probabilities.shape[1]))
        )

    def blocks(self) -> Iterator[Sample]:
        """The same rows with a few of the resamples each."""
        for start in range(0, len(self.weights), BLOCK):
            yield replace(self, weights=self.weights[start : start + BLOCK])

    @cached_property
    def steps(self) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """`roc_steps` of each class, once for all rank metrics."""
        return {
            c: roc_steps(self.labels == c, self.probabilities[:, c], self.weights)
            for c in self.classes()
        }

    def total(self, rows: np.ndarray) -> np.ndarray:
        """Weighted number of the rows marked, or weighted sum of values, float (B,)."""
        kind = self.weights.dtype if rows.dtype == bool else np.float64
        return np.asarray(self.weights @ rows.astype(kind), dtype=np.float64)

    def mean(self, values: np.ndarray) -> np.ndarray:
        """Weighted mean of values (n,), float (B,)."""
        return _ratio(self.total(values), self.weights.sum(axis=1, dtype=np.float64))


def roc_steps(
    truth: np.ndarray, scores: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
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
    # take keeps a resample's weights side by side in memory; after [:, order] the sums take three times as long.
    sorted_weights = np.take(weights, order, axis=1)
    true = np.cumsum(sorted_weights * truth[order], axis=1, dtype=np.float64)
    false = np.cumsum(sorted_weights, axis=1, dtype=np.float64) - true
    return (true, false) if len(ends) == len(order) else (true[:, ends], false[:, ends])


def _ranked(
    of_steps: Callable[[np.ndarray, np.ndarray, float], np.ndarray],
) -> Callable[[Sample], np.ndarray]:
    """A metric of a `Sample` from one of true and false positives (B, steps) and the floor; mean over its classes."""

    @wraps(of_steps)
    def metric(sample: Sample) -> np.ndarray:
        if len(sample.weights) > BLOCK:
            return np.concatenate([metric(block) for block in sample.blocks()])
        return np.mean(
            [of_steps(*sample.steps[label], sample.floor) for label in sample.classes()], axis=0
        )

    return metric


@_ranked
def auroc(true: np.ndarray, false: np.ndarray, floor: float) -> np.ndarray:
    """Area under the ROC curve, ties count one half; macro one-vs-rest for more than two classes. (B,), 0..1."""
    # The shoelace formula, which needs no array of differences.
    twice = (
        true[:, -1] * false[:, -1]
        + np.vecdot(true[:, :-1], false[:, 1:])
        - np.vecdot(true[:, 1:], false[:, :-1])
    )
    return _ratio(twice / 2, true[:, -1] * false[:, -1])


@_ranked
def average_precision(true: np.ndarray, false: np.ndarray, floor: float) -> np.ndarray:
    r"""Average precision $\sum_k (R_k - R_{k-1}) P_k$, macro one-vs-rest for more than two classes. (B,), 0..1."""
    precision = np.divide(true, true + false, out=np.zeros_like(true), where=true + false > 0)
    return _ratio((np.diff(true, axis=1, prepend=0) * precision).sum(axis=1), true[:, -1])


@_ranked
def specificity_at_sensitivity(true: np.ndarray, false: np.ndarray, floor: float) -> np.ndarray:
    """The best specificity on the ROC curve where sensitivity is at least the floor. Two classes only. (B,), 0..1."""
    first = (true >= (floor - 1e-12) * true[:, -1:]).argmax(axis=1)
    alarms = false[np.arange(len(false)), first]
    return np.where(true[:, -1] > 0, 1 - _ratio(alarms, false[:, -1]), np.nan)


@_ranked
def sensitivity_at_specificity(true: np.ndarray, false: np.ndarray, floor: float) -> np.ndarray:
    """The best sensitivity on the ROC curve where specificity is at least the floor. Two classes only. (B,), 0..1."""
    few = (false <= (1 - floor + 1e-12) * false[:, -1:]).sum(axis=1)
    found = np.where(few > 0, true[np.arange(len(true)), few - 1], 0.0)
    return np.where(false[:, -1] > 0, _ratio(found, true[:, -1]), np.nan)


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole > 0, part / whole, np.nan)


def _macro(sample: Sample, of_class: Callable[[int], np.ndarray]) -> np.ndarray:
    return np.mean([of_class(label) for label in sample.classes()], axis=0)


def accuracy(sample: Sample) -> np.ndarray:
    """Share of correct decisions. (B,), 0..1."""
    return sample.mean(sample.decisions == sample.labels)


def patient_recognition_rate(sample: Sample) -> np.ndarray:
    """Mean over patients of the share of their images decided correctly (Spanhol 2016). (B,), 0..1.

    Raises:
        ConfigError: Where it is not known whose images the rows are, as in the search.
    """
    if sample.shares is None:
        raise ConfigError(
            "patient_recognition_rate needs to know whose image a row is, which only the test rows tell. "
            "Set tune.objective to another metric."
        )
    return _ratio(
        sample.total(sample.shares * (sample.decisions == sample.labels)),
        sample.total(sample.shares),
    )


def sensitivity(sample: Sample) -> np.ndarray:
    """Share of the positive class decided as such; macro for more than two classes. (B,), 0..1."""
    return _macro(sample, lambda c: _recall(sample, sample.labels == c, sample.decisions == c))


def specificity(sample: Sample) -> np.ndarray:
    """Share of the others not decided as positive; macro for more than two classes. (B,), 0..1."""
    return _macro(sample, lambda c: _recall(sample, sample.labels != c, sample.decisions != c))


def _recalls(sample: Sample) -> np.ndarray:
    """Share of each class decided correctly, float (C, B)."""
    labels = range(sample.probabilities.shape[1])
    return np.stack([_recall(sample, sample.labels == c, sample.decisions == c) for c in labels])


def balanced_accuracy(sample: Sample) -> np.ndarray:
    """Mean over classes of the share decided correctly. (B,), 0..1."""
    return np.mean(_recalls(sample), axis=0)


def precision(sample: Sample) -> np.ndarray:
    """Share of positive decisions that are right, 0 where there is none; macro for more classes. (B,), 0..1."""
    return _macro(
        sample, lambda c: np.nan_to_num(_recall(sample, sample.decisions == c, sample.labels == c))
    )


def negative_predictive_value(sample: Sample) -> np.ndarray:
    """Share of negative decisions that are right, 0 where there is none; macro for more classes. (B,), 0..1."""
    return _macro(
        sample, lambda c: np.nan_to_num(_recall(sample, sample.decisions != c, sample.labels != c))
    )


def mcc(sample: Sample) -> np.ndarray:
    """Matthews' correlation of decisions and labels (Gorodkin 2004 for more classes), else 0. (B,), -1..1."""
    classes = range(sample.probabilities.shape[1])
    total = sample.weights.sum(axis=1, dtype=np.float64)
    truth = np.stack([sample.total(sample.labels == c) for c in classes])
    decided = np.stack([sample.total(sample.decisions == c) for c in classes])
    covariance = sample.total(sample.decisions == sample.labels) * total - (truth * decided).sum(
        axis=0
    )
    spread = np.sqrt((total**2 - (truth**2).sum(axis=0)) * (total**2 - (decided**2).sum(axis=0)))
    return np.nan_to_num(_ratio(covariance, spread))


def g_mean(sample: Sample) -> np.ndarray:
    """Geometric mean over classes of the share decided correctly. (B,), 0..1."""
    recalls = _recalls(sample)
    return np.prod(recalls, axis=0) ** (1 / len(recalls))


def net_benefit(sample: Sample) -> np.ndarray:
    r"""True less false positives per image, a false one weighing $t/(1-t)$ (Vickers 2006). Two classes only. (B,)."""
    alarms, true = sample.decisions == sample.positive, sample.labels == sample.positive
    threshold = np.asarray(sample.threshold, dtype=np.float64)
    return sample.mean(
        alarms * np.where(true, 1.0, -threshold / (1 - np.minimum(threshold, 1 - _EPSILON)))
    )


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
        prob, hit = (
            sample.probabilities.max(axis=1),
            sample.probabilities.argmax(axis=1) == sample.labels,
        )
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
    start = _newton(np.ones((1, len(truth))), logit, truth, slope, np.array([[0.0, 1.0]]))
    start = np.where(np.isnan(start), [[0.0, 1.0]], start)
    return np.concatenate(
        [_newton(block.weights, logit, truth, slope, start) for block in sample.blocks()]
    )


def _newton(
    weights: np.ndarray, logit: np.ndarray, truth: np.ndarray, slope: bool, start: np.ndarray
) -> np.ndarray:
    """Fits of `truth` on a + b * logit under each row of weights, (B, 2); b stays where `slope` is false."""
    share = weights / weights.sum(axis=1, keepdims=True, dtype=np.float64)
    fitted = np.tile(start, (len(weights), 1))
    for _ in range(_NEWTON_STEPS):
        guess = expit(fitted[:, :1] + fitted[:, 1:] * logit)
        miss, curve = share * (truth - guess), share * guess * (1 - guess)
        first, a = miss.sum(axis=1), curve.sum(axis=1)
        second, b, c = (
            (miss @ logit, curve @ logit, curve @ logit**2) if slope else (0 * a, 0 * a, 0 * a + 1)
        )
        determinant = np.maximum(a * c - b * b, np.finfo(float).tiny)
        step = (
            np.stack([c * first - b * second, a * second - b * first], axis=1)
            / determinant[:, None]
        )
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
    "patient_recognition_rate": Metric(patient_recognition_rate, "decision"),
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
        raise ConfigError(
            f"{name} has one right value, so results cannot be ordered by it. Choose another metric."
        )
    if metric.binary and classes > 2:
        raise ConfigError(
            f"{name} needs two classes; these data have {classes}. Set tune.objective and compare.primary to auroc."
        )
    return metric


def decide(
    probabilities: np.ndarray, positive: int, threshold: float | np.ndarray = 0.5
) -> np.ndarray:
    """Label decided for each row: positive when its probability reaches the threshold, argmax for more classes.

    Args:
        probabilities: float (n, C).
        positive: Index of the positive class.
        threshold: One number or one per row; unused for more than two classes.
    """
    if probabilities.shape[1] > 2:
        return probabilities.argmax(axis=1)
    return np.where(probabilities[:, positive] >= threshold, positive, 1 - positive)
