"""Paired differences to the baseline, their intervals and corrected p."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri, stdtr
from statsmodels.stats.multitest import multipletests

from equipoise.compare.wording import UNCLEAR
from equipoise.core.documents import Difference
from equipoise.core.errors import DataError
from equipoise.evaluation import intervals
from equipoise.evaluation.metrics import Endpoint


class PairedDifference(NamedTuple):
    """Rival less baseline: estimate, ends of the interval, two-sided p."""

    value: float
    low: float
    high: float
    p_value: float

    def document(self) -> Difference:
        """As it stands in files."""
        return Difference(value=self.value, low=self.low, high=self.high, p_value=self.p_value)


class Judged(NamedTuple):
    """A rival against its baseline: the difference, and "better", "worse" or "no clear difference"."""

    delta: Difference
    verdict: str


def paired(
    evaluations: Mapping[str, intervals.Evaluation],
    baselines: Mapping[str, str],
    primary: Endpoint,
    alpha: float,
    better: int,
) -> dict[str, Judged]:
    """The written procedure behind every verdict.

    1. Of each rival, take the difference to its baseline in the primary endpoint, on the test rows and on the same
       resamples of whole patients: estimate, expanded percentile interval (`intervals.effect`), and the two-sided p
       that goes with it: of the smaller share of resamples on either side of 0, the estimate counted as one of them,
       the normal quantile is taken and doubled in Student's tail for the effective number of patients.
    2. Correct all p together after Holm (1979), over scenarios and backbones.
    3. With a corrected p not below alpha: "no clear difference". Else "better" or "worse", by the sign of the estimate.

    Args:
        evaluations: Of rivals and baselines, by any key, on the same resamples.
        baselines: Key of a rival -> key of its baseline.
        primary: The endpoint that is judged.
        alpha: Of the intervals and of the family of comparisons.
        better: 1 where higher is better, -1 where lower is.

    Returns:
        Key of a rival -> its difference, with p_value and p_holm, and the verdict.

    Raises:
        DataError: When the endpoint exists in no resample.
    """
    differences: dict[str, PairedDifference] = {}
    for rival, baseline in baselines.items():
        try:
            differences[rival] = difference(
                evaluations[rival], evaluations[baseline], primary, alpha
            )
        except DataError as error:
            raise DataError(f"{rival}: {error}") from error
    corrected = holm([delta.p_value for delta in differences.values()])
    judged = {}
    for (rival, delta), p_holm in zip(differences.items(), corrected):
        verdict = UNCLEAR
        if p_holm < alpha:
            verdict = "better" if better * delta.value > 0 else "worse"
        judged[rival] = Judged(delta.document().model_copy(update={"p_holm": p_holm}), verdict)
    return judged


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrected p (Holm 1979); no p, none corrected.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03, 0.005])]
    [0.03, 0.06, 0.06, 0.02]
    """
    if not len(p_values):
        return []
    return multipletests(p_values, method="holm")[1].tolist()


def difference(
    rival: intervals.Evaluation, baseline: intervals.Evaluation, endpoint: Endpoint, alpha: float
) -> PairedDifference:
    """Rival less baseline on the same resamples: estimate, expanded percentile interval, two-sided p as of `paired`.

    Raises:
        DataError: When the endpoint exists in no resample.
    """
    draws = rival.draws[endpoint] - baseline.draws[endpoint]
    resampled = draws[1:]
    resampled = resampled[~np.isnan(resampled)]
    if not len(resampled):
        raise DataError(f"{endpoint} exists in no resample; the test part is too small.")
    patients = rival.effective_patients
    value, low, high = intervals.effect(draws, alpha, patients)
    return PairedDifference(value, low, high, _two_sided_p(resampled, patients))


def _two_sided_p(resampled: np.ndarray, patients: float) -> float:
    """The p of a difference of 0, of its resampled values (num_resamples,), by Student's tail for few patients."""
    at_most_zero = (resampled <= 0).sum()
    at_least_zero = (resampled >= 0).sum()
    # The estimate counts as one resample, so that p is never 0.
    tail = min(at_most_zero, at_least_zero) + 1
    share = min(0.5, tail / (len(resampled) + 1))
    shrunk = np.sqrt((patients - 1) / patients) * ndtri(share)
    return 2 * float(stdtr(patients - 1, shrunk))
