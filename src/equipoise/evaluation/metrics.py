"""What a metric is: labels, probabilities and decisions -> a number.

Every metric is computed for all resamples at once. A resample is a weight for each image (how often its patient was
drawn), so one sort and cumulative sums serve 2,000 resamples.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Literal, NamedTuple

import numpy as np
from scipy import special

from equipoise.core.errors import ConfigError, unknown_name
from equipoise.evaluation.recalibration import fit_intercept, fit_slope
from equipoise.evaluation.sample import BLOCK, ROUNDING, Outcomes, RocSteps, Sample, ratio

#: Bins of equal width in the expected calibration error.
_BINS = 10

#: Probabilities are kept this far from 0 and 1 where a logarithm is taken.
EPSILON = 1e-12

#: The mean specificity near the floor begins this far below it.
BELOW_FLOOR = 0.05


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities (n, C) of logits (n, C)."""
    return special.softmax(logits, axis=1)


class Endpoint(NamedTuple):
    """A metric at an operating point, written "point.metric" in files.

    Attributes:
        point: free (no threshold), raw (0.5 on raw probabilities) or locked (on patients outside test).
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


# --- ranks: no threshold --------------------------------------------------------------------------


def _ranked(of_steps: Callable[[RocSteps, float], np.ndarray]) -> Callable[[Sample], np.ndarray]:
    """Make a metric of a `Sample` from one of the ROC steps of one class and the floor.

    The metric is the mean over the sample's classes, computed for a few resamples at a time.
    """

    @wraps(of_steps)
    def metric(sample: Sample) -> np.ndarray:
        if len(sample.weights) > BLOCK:
            blocks = [metric(block) for block in sample.blocks()]
            return np.concatenate(blocks)
        values = []
        for label in sample.classes():
            steps = sample.steps[label]
            values.append(of_steps(steps, sample.floor))
        return np.mean(values, axis=0)

    return metric


@_ranked
def auroc(steps: RocSteps, floor: float) -> np.ndarray:
    """How often an image of the positive class scores above one of the others; equal scores count one half.

    This is the area under the ROC curve. More than two classes: the mean over each one against the rest.

    Returns:
        float (B,), 0..1.
    """
    true, false = steps
    pairs = steps.positives * steps.negatives
    # The shoelace formula, which needs no array of differences.
    forward = np.vecdot(true[:, :-1], false[:, 1:])
    backward = np.vecdot(true[:, 1:], false[:, :-1])
    twice_the_area = pairs + forward - backward
    return ratio(twice_the_area / 2, pairs)


@_ranked
def average_precision(steps: RocSteps, floor: float) -> np.ndarray:
    r"""How many of the alarms are right, averaged over all thresholds that find one more positive image.

    $\sum_k (R_k - R_{k-1}) P_k$ with recall R and precision P. More than two classes: the mean over each one against
    the rest.

    Returns:
        float (B,), 0..1.
    """
    true, false = steps
    alarms = true + false
    no_alarm = np.zeros_like(true)
    precision = np.divide(true, alarms, out=no_alarm, where=alarms > 0)
    newly_found = np.diff(true, axis=1, prepend=0)
    total = (newly_found * precision).sum(axis=1)
    return ratio(total, steps.positives)


@_ranked
def specificity_at_sensitivity(steps: RocSteps, floor: float) -> np.ndarray:
    """The specificity where the sensitivity is at the floor.

    Of each positive image take the share of the others that score above it; of these shares the quantile at the floor,
    in a straight line between the middles of two steps of the ROC curve (Hazen 1914). At the upper ends of the steps 19
    positive images would be held to a sensitivity of 1 and 20 to one of 0.95. Two classes only.

    Returns:
        float (B,), 0..1.
    """
    false_alarms = _quantile(steps.true, steps.false, floor)
    specificity = 1 - ratio(false_alarms, steps.negatives)
    return np.where(steps.positives > 0, specificity, np.nan)


@_ranked
def mean_specificity_near_floor(steps: RocSteps, floor: float) -> np.ndarray:
    r"""The specificity averaged over all sensitivities from a little (0.05) below the floor up to 1.

    $\frac{1}{1-a} \int_a^1 \mathrm{specificity}(s)\,ds$ with $a$ = floor - 0.05, at least 0: the part of the area under
    the ROC curve that a reader who must not miss a case cares about. Two classes only.

    Returns:
        float (B,), 0..1.
    """
    lowest = max(floor - BELOW_FLOOR, 0.0) * steps.positives
    alarms_there = _on_the_curve(steps, lowest)
    # The curve from there on: all steps before it are moved to where it begins.
    true = np.maximum(steps.true, lowest[:, None])
    false = np.maximum(steps.false, alarms_there[:, None])
    first_rise = (true[:, 0] - lowest) * (false[:, 0] + alarms_there)
    rises = np.diff(true, axis=1)
    twice_the_area = first_rise + np.vecdot(rises, false[:, 1:] + false[:, :-1])
    height = steps.positives - lowest
    return 1 - ratio(twice_the_area / 2, height * steps.negatives)


def _on_the_curve(steps: RocSteps, detected: np.ndarray) -> np.ndarray:
    """False alarms (B,) where the ROC curve has detected so many positives, float (B,)."""
    true, false = steps
    reached = true >= (detected - ROUNDING * steps.positives)[:, None]
    step = reached.argmax(axis=1)
    every = np.arange(len(reached))
    is_first = step == 0
    true_before = np.where(is_first, 0.0, true[every, step - 1])
    false_before = np.where(is_first, 0.0, false[every, step - 1])
    rise = true[every, step] - true_before
    share = np.divide(detected - true_before, rise, out=np.zeros(len(rise)), where=rise > 0)
    share = np.clip(share, 0.0, 1.0)
    return false_before + share * (false[every, step] - false_before)


@_ranked
def sensitivity_at_specificity(steps: RocSteps, floor: float) -> np.ndarray:
    """The sensitivity where the specificity is at the floor.

    As `specificity_at_sensitivity`, with the classes swapped. Two classes only.

    Returns:
        float (B,), 0..1.
    """
    # The lowest score first, and of each class what lies below the threshold.
    cleared = steps.negatives[:, None] - _before_each_step(steps.false)
    missed = steps.positives[:, None] - _before_each_step(steps.true)
    missed_there = _quantile(cleared[:, ::-1], missed[:, ::-1], floor)
    sensitivity = 1 - ratio(missed_there, steps.positives)
    return np.where(steps.negatives > 0, sensitivity, np.nan)


def _before_each_step(counts: np.ndarray) -> np.ndarray:
    """Cumulative counts (B, K) before each step instead of after it."""
    before = np.zeros_like(counts)
    before[:, 1:] = counts[:, :-1]
    return before


def _quantile(rising: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """What `other` is where `rising` has reached a share of its end, between the middles of its steps.

    Args:
        rising: float (B, K), cumulative numbers of images, as often as they are drawn.
        other: float (B, K), cumulative.
        share: Within 0..1.

    Returns:
        float (B,).
    """
    total = rising[:, -1]
    place = share * total + 0.5
    before = np.clip(np.floor(place), 1, np.maximum(total, 1))
    after = np.minimum(before + 1, total)
    beyond = np.clip(place - before, 0, 1)
    at_before = _halfway(rising, other, before)
    at_after = _halfway(rising, other, after)
    return at_before + beyond * (at_after - at_before)


def _halfway(rising: np.ndarray, other: np.ndarray, image: np.ndarray) -> np.ndarray:
    """What `other` is at the images (B,) of `rising`, counted from 1; where scores are equal, half of theirs."""
    reached = rising >= image[:, None]
    step = reached.argmax(axis=1)
    every = np.arange(len(reached))
    at_step = other[every, step]
    before_step = np.where(step > 0, other[every, step - 1], 0.0)
    return (before_step + at_step) / 2


# --- decisions: at a threshold --------------------------------------------------------------------


def _one_versus_rest(of_class: Callable[[Outcomes], np.ndarray]) -> Callable[[Sample], np.ndarray]:
    """Make a metric of a `Sample` from one of what was decided of a class.

    The metric is the mean over the sample's classes; for two classes the value of the positive one.
    """

    @wraps(of_class)
    def metric(sample: Sample) -> np.ndarray:
        values = [of_class(sample.outcomes(label)) for label in sample.classes()]
        return np.mean(values, axis=0)

    return metric


def accuracy(sample: Sample) -> np.ndarray:
    """Share of the images decided correctly.

    Returns:
        float (B,), 0..1.
    """
    right = np.trace(sample.confusion)
    return ratio(right, sample.total_weight)


def patient_recognition_rate(sample: Sample) -> np.ndarray:
    """Share of a patient's images decided correctly, averaged over patients (Spanhol 2016).

    Returns:
        float (B,), 0..1.

    Raises:
        ConfigError: Where it is not known whose images the rows are, as in the search.
    """
    if sample.shares is None:
        raise ConfigError(
            "patient_recognition_rate needs to know whose image a row is, which only the test rows tell. "
            "Set tune.objective to another metric."
        )
    right = sample.decisions == sample.labels
    shares_decided_rightly = sample.total(sample.shares * right)
    return ratio(shares_decided_rightly, sample.total(sample.shares))


@_one_versus_rest
def sensitivity(outcomes: Outcomes) -> np.ndarray:
    """Share of the images of the positive class that are decided as positive; macro for more classes.

    Returns:
        float (B,), 0..1.
    """
    return ratio(outcomes.detected, outcomes.detected + outcomes.missed)


@_one_versus_rest
def specificity(outcomes: Outcomes) -> np.ndarray:
    """Share of the other images that are not decided as positive; macro for more than two classes.

    Returns:
        float (B,), 0..1.
    """
    return ratio(outcomes.cleared, outcomes.cleared + outcomes.alarms)


def _recalls(sample: Sample) -> np.ndarray:
    """Share of each class decided correctly, float (C, B)."""
    right = np.diagonal(sample.confusion).T
    of_class = sample.confusion.sum(axis=1)
    return ratio(right, of_class)


def balanced_accuracy(sample: Sample) -> np.ndarray:
    """Share of each class decided correctly, averaged over the classes.

    Returns:
        float (B,), 0..1.
    """
    return np.mean(_recalls(sample), axis=0)


@_one_versus_rest
def precision(outcomes: Outcomes) -> np.ndarray:
    """Share of the positive decisions that are right, 0 where there is none; macro for more classes.

    Returns:
        float (B,), 0..1.
    """
    share = ratio(outcomes.detected, outcomes.detected + outcomes.alarms)
    return outcomes.where_both(np.nan_to_num(share))


@_one_versus_rest
def negative_predictive_value(outcomes: Outcomes) -> np.ndarray:
    """Share of the negative decisions that are right, 0 where there is none; macro for more classes.

    Returns:
        float (B,), 0..1.
    """
    share = ratio(outcomes.cleared, outcomes.cleared + outcomes.missed)
    return outcomes.where_both(np.nan_to_num(share))


@_one_versus_rest
def f1(outcomes: Outcomes) -> np.ndarray:
    """Harmonic mean of precision and sensitivity; macro for more than two classes.

    Returns:
        float (B,), 0..1.
    """
    right_twice = 2 * outcomes.detected
    either = right_twice + outcomes.missed + outcomes.alarms
    return outcomes.where_both(ratio(right_twice, either))


def mcc(sample: Sample) -> np.ndarray:
    """Correlation of decisions and true classes (Matthews), 0 where one class is decided for all images.

    Reference: Gorodkin 2004 for more than two classes, https://doi.org/10.1016/j.compbiolchem.2004.09.006

    Returns:
        float (B,), -1..1.
    """
    truth = sample.confusion.sum(axis=1)
    decided = sample.confusion.sum(axis=0)
    total = sample.total_weight
    right = np.trace(sample.confusion)
    by_chance = (truth * decided).sum(axis=0)
    covariance = right * total - by_chance
    truth_variance = total**2 - (truth**2).sum(axis=0)
    decided_variance = total**2 - (decided**2).sum(axis=0)
    spread = np.sqrt(truth_variance * decided_variance)
    correlation = np.nan_to_num(ratio(covariance, spread))
    has_every_class = (truth > 0).all(axis=0)
    return np.where(has_every_class, correlation, np.nan)


def g_mean(sample: Sample) -> np.ndarray:
    """Share of each class decided correctly, multiplied over the classes, and the root taken.

    Returns:
        float (B,), 0..1.
    """
    recalls = _recalls(sample)
    product = np.prod(recalls, axis=0)
    return product ** (1 / len(recalls))


# --- probabilities --------------------------------------------------------------------------------


def net_benefit(sample: Sample) -> np.ndarray:
    r"""True alarms less false alarms per image, a false one weighing as much as its cost says.

    An alarm is a probability of at least t = 1 / (1 + cost of a miss over that of a false alarm); the weight of a false
    alarm is $t/(1-t)$ (Vickers 2006). t is the same for every model, so that they can be compared. Two classes only.

    Returns:
        float (B,), at most the share of the positive class.
    """
    alarms = sample.probabilities[:, sample.positive] >= sample.worth
    truth = sample.labels == sample.positive
    harm = -sample.worth / (1 - sample.worth)
    gain = np.where(truth, 1.0, harm)
    return sample.mean(alarms * gain)


def brier(sample: Sample) -> np.ndarray:
    """Mean squared difference between the probability and what was true (0 or 1).

    Two classes: of the positive class; more: summed over the classes.

    Returns:
        float (B,), 0 is best.
    """
    one_hot = np.eye(sample.num_classes)
    truth = one_hot[sample.labels]
    squared_error = (sample.probabilities - truth) ** 2
    counted = squared_error[:, sample.classes()]
    return sample.mean(counted.sum(axis=1))


def brier_skill(sample: Sample) -> np.ndarray:
    """How much smaller the Brier score is than that of always predicting the share of each class.

    Returns:
        float (B,), at most 1; 0 is no skill.
    """
    spreads = []
    for label in sample.classes():
        share = sample.mean(sample.labels == label)
        spreads.append(share * (1 - share))
    without_skill = np.sum(spreads, axis=0)
    return 1 - ratio(brier(sample), without_skill)


def log_loss(sample: Sample) -> np.ndarray:
    """Mean negative logarithm of the probability given to the true class: confident mistakes cost most.

    Returns:
        float (B,), 0 is best.
    """
    every = np.arange(len(sample.labels))
    prob_of_truth = sample.probabilities[every, sample.labels]
    above_zero = np.clip(prob_of_truth, EPSILON, 1)
    return sample.mean(-np.log(above_zero))


def ece(sample: Sample) -> np.ndarray:
    """How far probabilities are from what was observed, on average over ten bins of equal width.

    Expected calibration error (Guo 2017), the upper edge of a bin inside. Two classes: of the positive class; more: of
    the class decided for.

    Returns:
        float (B,), 0..1, 0 is best.
    """
    if sample.binary:
        prob = sample.probabilities[:, sample.positive]
        hit = sample.labels == sample.positive
    else:
        prob = sample.probabilities.max(axis=1)
        hit = sample.labels == sample.probabilities.argmax(axis=1)
    inner_edges = np.arange(1, _BINS) / _BINS
    bin_of_row = np.searchsorted(inner_edges, prob)
    is_in_bin = np.eye(_BINS)[bin_of_row]
    gap_of_row = hit - prob
    gap_of_bin = sample.total(gap_of_row[:, None] * is_in_bin)
    total_gap = np.abs(gap_of_bin).sum(axis=1)
    return ratio(total_gap, sample.total_weight)


def calibration_slope(sample: Sample) -> np.ndarray:
    r"""Whether probabilities are too extreme (below 1) or too timid (above 1); 1 is right.

    $b$ of the logistic fit $a + b \operatorname{logit} p$ of the truth. Two classes only.

    Returns:
        float (B,); NaN where the classes are separated.
    """
    logit, truth = _logits_and_truth(sample)
    return fit_slope(sample.weights, logit, truth).slope


def calibration_intercept(sample: Sample) -> np.ndarray:
    r"""Whether the positive class is underestimated (above 0) or overestimated (below 0); 0 is right.

    $a$ of the logistic fit $a + \operatorname{logit} p$ of the truth. Two classes only.

    Returns:
        float (B,); NaN where a class is absent.
    """
    logit, truth = _logits_and_truth(sample)
    return fit_intercept(sample.weights, logit, truth)


def _logits_and_truth(sample: Sample) -> tuple[np.ndarray, np.ndarray]:
    """Logits float (n,) of the positive class, and whether a row is of it, bool (n,)."""
    prob = sample.probabilities[:, sample.positive]
    prob = np.clip(prob, EPSILON, 1 - EPSILON)
    logit = np.log(prob / (1 - prob))
    return logit, sample.labels == sample.positive


# --- the registry ---------------------------------------------------------------------------------


def _every_row(sample: Sample) -> np.ndarray:
    return np.ones(len(sample.labels), dtype=bool)


def _positives(sample: Sample) -> np.ndarray:
    return sample.labels == sample.positive


def _negatives(sample: Sample) -> np.ndarray:
    return sample.labels != sample.positive


def _decided_positive(sample: Sample) -> np.ndarray:
    return sample.decisions == sample.positive


def _decided_negative(sample: Sample) -> np.ndarray:
    return sample.decisions != sample.positive


@dataclass(frozen=True)
class Metric:
    """One row of the registry.

    Attributes:
        function: Sample -> float (B,). Its name is the metric's name, its first line says what it means.
        kind: rank (averaged over folds), decision or probability (pooled over folds).
        title: What tables and figures call it.
        better: Direction; None where a certain value is right, so that it can be neither searched for nor compared by.
        among: For proportions, the rows of the denominator: their patients give a Wilson interval at 0 and 1.
        binary: Whether it needs two classes.
        depends_on_mix: Whether it depends on how common the classes are, so that patients are resampled at large and
            not within their classes.
        read_at: For what is read off one step of the ROC curve, which rows make the steps: where a fold has few of them
            the number is not shown, and folds count by the number of their other rows.
    """

    function: Callable[[Sample], np.ndarray]
    kind: Literal["rank", "decision", "probability"]
    title: str
    better: Literal["higher", "lower"] | None = "higher"
    among: Callable[[Sample], np.ndarray] | None = None
    binary: bool = False
    depends_on_mix: bool = False
    read_at: Literal["positives", "negatives"] | None = None

    @property
    def name(self) -> str:
        """The word that settings and files use."""
        return self.function.__name__

    @property
    def meaning(self) -> str:
        """The first line of its documentation."""
        documentation = self.function.__doc__ or ""
        return documentation.partition("\n")[0]


#: In the order in which files and tables list them.
_METRICS = (
    Metric(auroc, "rank", "AUROC"),
    Metric(average_precision, "rank", "average precision", depends_on_mix=True),
    Metric(
        specificity_at_sensitivity,
        "rank",
        "specificity at sensitivity",
        binary=True,
        read_at="positives",
    ),
    Metric(
        mean_specificity_near_floor,
        "rank",
        "mean specificity near the floor",
        binary=True,
    ),
    Metric(
        sensitivity_at_specificity,
        "rank",
        "sensitivity at specificity",
        binary=True,
        read_at="negatives",
    ),
    Metric(accuracy, "decision", "accuracy", among=_every_row, depends_on_mix=True),
    Metric(
        patient_recognition_rate,
        "decision",
        "patient recognition rate",
        depends_on_mix=True,
    ),
    Metric(balanced_accuracy, "decision", "balanced accuracy"),
    Metric(sensitivity, "decision", "sensitivity", among=_positives),
    Metric(specificity, "decision", "specificity", among=_negatives),
    Metric(
        precision,
        "decision",
        "precision",
        among=_decided_positive,
        depends_on_mix=True,
    ),
    Metric(
        negative_predictive_value,
        "decision",
        "negative predictive value",
        among=_decided_negative,
        depends_on_mix=True,
    ),
    Metric(f1, "decision", "F1", depends_on_mix=True),
    Metric(mcc, "decision", "MCC", depends_on_mix=True),
    Metric(g_mean, "decision", "G-mean"),
    Metric(
        net_benefit,
        "probability",
        "net benefit",
        binary=True,
        depends_on_mix=True,
    ),
    Metric(
        brier,
        "probability",
        "Brier score",
        better="lower",
        depends_on_mix=True,
    ),
    Metric(brier_skill, "probability", "Brier skill", depends_on_mix=True),
    Metric(
        log_loss,
        "probability",
        "log loss",
        better="lower",
        depends_on_mix=True,
    ),
    Metric(ece, "probability", "ECE", better="lower", depends_on_mix=True),
    Metric(
        calibration_slope,
        "probability",
        "calibration slope",
        better=None,
        binary=True,
        depends_on_mix=True,
    ),
    Metric(
        calibration_intercept,
        "probability",
        "calibration intercept",
        better=None,
        binary=True,
        depends_on_mix=True,
    ),
)

REGISTRY: dict[str, Metric] = {metric.name: metric for metric in _METRICS}


def load_metric(name: str, classes: int = 2) -> Metric:
    """A metric that results can be ordered by.

    Args:
        name: A key of `REGISTRY`.
        classes: Number of classes it is wanted for.

    Raises:
        ConfigError: When there is none of that name (the nearest one is named), when it has one right value, or when it
            needs two classes and there are more.
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
