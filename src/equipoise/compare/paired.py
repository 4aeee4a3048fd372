"""Paired differences to the baseline, their intervals and corrected p."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.special import ndtri, stdtr
from statsmodels.stats.multitest import multipletests

from equipoise.compare.wording import UNCLEAR
from equipoise.core.errors import DataError
from equipoise.evaluation import intervals


def paired(
    evaluations: Mapping[str, intervals.Evaluation],
    baselines: Mapping[str, str],
    primary: str,
    alpha: float,
    better: int,
) -> dict[str, dict[str, Any]]:
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
        primary: "point.metric".
        alpha: Of the intervals and of the family of comparisons.
        better: 1 where higher is better, -1 where lower is.

    Returns:
        Key of a rival -> value, low, high, p_value, p_holm, verdict.

    Raises:
        DataError: When the endpoint exists in no resample.
    """
    found: dict[str, dict[str, Any]] = {}
    for rival, baseline in baselines.items():
        try:
            found[rival] = difference(evaluations[rival], evaluations[baseline], primary, alpha)
        except DataError as error:
            raise DataError(f"{rival}: {error}") from error
    for row, p_holm in zip(found.values(), holm([row["p_value"] for row in found.values()])):
        side = "better" if better * row["value"] > 0 else "worse"
        row |= {"p_holm": p_holm, "verdict": side if p_holm < alpha else UNCLEAR}
    return found


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrected p (Holm 1979); no p, none corrected.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03, 0.005])]
    [0.03, 0.06, 0.06, 0.02]
    """
    return multipletests(p_values, method="holm")[1].tolist() if len(p_values) else []


def difference(
    one: intervals.Evaluation, other: intervals.Evaluation, name: str, alpha: float
) -> dict[str, Any]:
    """Paired difference: estimate, expanded percentile interval, two-sided p, as `paired` has them."""
    draws = one.draws[name] - other.draws[name]
    resampled = draws[1:][~np.isnan(draws[1:])]
    if not len(resampled):
        raise DataError(f"{name} exists in no resample; the test part is too small.")
    # The estimate counts as one resample, so that p is never 0.
    tail = min((resampled <= 0).sum(), (resampled >= 0).sum()) + 1
    patients, share = one.effective_patients, min(0.5, tail / (len(resampled) + 1))
    p_value = 2 * float(stdtr(patients - 1, np.sqrt((patients - 1) / patients) * ndtri(share)))
    return {**intervals.effect(draws, alpha, patients), "p_value": p_value}
