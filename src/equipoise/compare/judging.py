"""Resampled numbers of rivals and baselines -> differences with intervals, and a verdict for each rival."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from equipoise.compare.simultaneous import PairedDifference, Word, paired_differences
from equipoise.core.config import Compare
from equipoise.core.documents import Difference
from equipoise.core.errors import ConfigError
from equipoise.evaluation import intervals, metrics
from equipoise.evaluation.intervals import Evaluation
from equipoise.evaluation.metrics import Endpoint

#: Of fewer resamples with a number no standard deviation is taken.
_FEWEST_RESAMPLES = 20


#: Differences shown beside the primary one.
SECONDARY = (
    Endpoint("free", "auroc"),
    Endpoint("free", "average_precision"),
    Endpoint("raw", "sensitivity"),
    Endpoint("raw", "specificity"),
    Endpoint("raw", "balanced_accuracy"),
    Endpoint("raw", "brier"),
    Endpoint("locked", "sensitivity"),
    Endpoint("locked", "specificity"),
    Endpoint("locked", "balanced_accuracy"),
    Endpoint("locked", "brier"),
)


def primary_endpoint(name: str, evaluation: Evaluation, classes: Sequence[str]) -> Endpoint:
    """The endpoint of `compare.primary`: without a threshold for ranks, at the locked threshold for all else.

    Raises:
        ConfigError: When the metric is unknown, or does not exist for these classes.
    """
    metric = metrics.load_metric(name)
    primary = Endpoint("free" if metric.kind == "rank" else "locked", name)
    if primary not in evaluation.draws and primary not in evaluation.hidden:
        raise ConfigError(f"compare.primary is {name}, which does not exist for {tuple(classes)}.")
    return primary


def sign_of(name: str) -> int:
    """1 for a metric of which a higher number is better, -1 for one of which a lower number is."""
    return 1 if metrics.load_metric(name).better == "higher" else -1


@dataclass(frozen=True)
class Family:
    """All rivals of a study, each with its baseline; their intervals hold together.

    Attributes:
        evaluations: Of rivals and baselines by any key, on the same resamples.
        baselines: Key of a rival -> key of its baseline.
        primary: The endpoint that is judged.
        sign: 1 where a higher number is better, -1 where a lower one is.
        folds: Folds of a repeat; 1 where there is a single test part.
        patients: Test patients of the rarer class.
    """

    evaluations: Mapping[str, Evaluation]
    baselines: Mapping[str, str]
    primary: Endpoint
    sign: int
    folds: int
    patients: int

    @property
    def effective_patients(self) -> float:
        """Patients of the rarer class, counted as many as equal ones they are worth."""
        return min(of_result.effective_patients for of_result in self.evaluations.values())

    def gains(self, rival: str) -> np.ndarray:
        """By how much a rival is better than its baseline, float (B + 1,), the estimate first."""
        baseline = self.evaluations[self.baselines[rival]]
        draws = self.evaluations[rival].draws[self.primary] - baseline.draws[self.primary]
        return self.sign * draws

    def obstacle(self, rival: str) -> str:
        """Why a rival cannot be judged; empty where it can."""
        hidden = self.evaluations[rival].hidden.get(self.primary)
        if hidden is not None:
            return f"{self.primary.metric} is not computed: {hidden.removeprefix('none: ')}"
        if self.evaluations[rival].one_patient_decides:
            return "one patient of the rarer class decides, so there is no interval"
        gains = self.gains(rival)
        exists = ~np.isnan(gains)
        if not exists[0] or exists[1:].sum() < _FEWEST_RESAMPLES:
            return f"{self.primary.metric} does not exist in enough resamples of these few patients"
        return ""


@dataclass(frozen=True)
class Judged:
    """A rival's verdict and the difference behind it.

    Attributes:
        verdict: better, worse, equivalent or inconclusive.
        delta: Rival minus baseline, in the direction of the metric itself.
        obstacle: Why there is no interval; empty where there is one.
    """

    verdict: Word
    delta: Difference
    obstacle: str = ""


def judge(family: Family, settings: Compare) -> dict[str, Judged]:
    """The written procedure behind every verdict.

    1. Of each rival, take the difference to its baseline in the primary endpoint, on the test rows and on the same
       resamples of whole patients.
    2. Give all of them one simultaneous interval each (`simultaneous.paired_differences`).
    3. Above 0: "better". Below 0: "worse". Within the margin: "equivalent". Else "inconclusive".

    Returns:
        Key of a rival -> its verdict. Where one patient decides, and where the endpoint does not exist, there is no
        interval and the verdict is "inconclusive".
    """
    judged = {rival: _unjudged(family, rival) for rival in family.baselines}
    measurable = [rival for rival in judged if not judged[rival].obstacle]
    if not measurable:
        return judged
    columns = [family.gains(rival) for rival in measurable]
    differences = paired_differences(
        np.stack(columns, axis=1),
        family.effective_patients,
        family.folds,
        settings.alpha,
    )
    for rival, difference in zip(measurable, differences):
        judged[rival] = Judged(
            verdict=difference.verdict(settings.margin),
            delta=_document(difference, family, settings.margin),
        )
    return judged


def _unjudged(family: Family, rival: str) -> Judged:
    """The estimate alone, with what stands in the way of an interval."""
    delta = Difference(value=None, low=None, high=None)
    if family.primary not in family.evaluations[rival].hidden:
        estimate = family.sign * float(family.gains(rival)[0])
        delta = Difference(value=estimate, low=np.nan, high=np.nan)
    return Judged("inconclusive", delta, family.obstacle(rival))


def _document(difference: PairedDifference, family: Family, margin: float) -> Difference:
    ends = [family.sign * difference.low, family.sign * difference.high]
    return Difference(
        value=family.sign * difference.value,
        low=min(ends),
        high=max(ends),
        p_adjusted=difference.p_adjusted,
        standard_error=difference.standard_error,
        detectable=difference.detectable,
        patients_to_settle=difference.patients_to_settle(family.patients, margin),
    )


# --- without a verdict ----------------------------------------------------------------------------


def difference(rival: Evaluation, baseline: Evaluation, endpoint: Endpoint) -> Difference:
    """Rival minus baseline on the same resamples, with an interval of its own; nothing is judged by it.

    There is no number where one of the two hides the endpoint.
    """
    if endpoint in rival.hidden or endpoint in baseline.hidden:
        return Difference(value=None, low=None, high=None)
    draws = rival.draws[endpoint] - baseline.draws[endpoint]
    value, low, high = intervals.effect(draws, rival.alpha, rival.effective_patients)
    return Difference(value=value, low=low, high=high)


def differences(
    rival: Evaluation, baseline: Evaluation, primary: Endpoint, judged: Difference
) -> dict[str, Difference]:
    """The difference that was judged, and after it those that stand beside it, by "point.metric"."""
    of_endpoint = {str(primary): judged}
    for endpoint in SECONDARY:
        if endpoint != primary and endpoint in rival.draws:
            of_endpoint[str(endpoint)] = difference(rival, baseline, endpoint)
    return of_endpoint
