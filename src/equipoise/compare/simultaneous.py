"""Several rivals against doing nothing: one interval for each that holds for all of them together.

Looking at ten rivals makes it likely that one of them looks good by chance. These intervals are wide
enough that, in 95 studies of 100, every one of them covers its true difference; so whichever rival a
reader picks afterwards, its interval still means what it says.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.special import chdtr, ndtri, stdtrit
from scipy.stats import qmc

Word = Literal["better", "worse", "equivalent", "inconclusive"]

#: Two to this power are the draws behind the critical value; with their seed the same study always
#: gives the same interval.
_LOG2_DRAWS = 15
_SEED = 20260801
#: Below so many patients of the rarer class the training sets of folds differ by more than theory says.
FEW_PATIENTS = 30
_FEW_PATIENTS_INFLATION = 1.5
#: A difference is called detectable when four studies of five of this size would find it.
POWER = 0.8


@dataclass(frozen=True)
class PairedDifference:
    """A rival's difference to its baseline, with the interval that holds for all rivals together.

    Attributes:
        value: The difference; above 0 the rival is better.
        low: Low end of the simultaneous interval.
        high: High end of it.
        standard_error: Of the difference, training sets that overlap between folds included.
        p_adjusted: Chance of a difference this large somewhere among the rivals if all were equal.
        detectable: The smallest difference that four studies of five of this size would find.
    """

    value: float
    low: float
    high: float
    standard_error: float
    p_adjusted: float
    detectable: float

    def verdict(self, margin: float) -> Word:
        """What the interval allows to say; `margin` is the difference that nobody would care about.

        >>> PairedDifference(0.02, 0.01, 0.03, 0.004, 0.001, 0.013).verdict(margin=0.01)
        'better'
        >>> PairedDifference(0.0, -0.004, 0.004, 0.002, 1.0, 0.006).verdict(margin=0.01)
        'equivalent'
        >>> PairedDifference(0.0, -0.04, 0.04, 0.02, 1.0, 0.06).verdict(margin=0.01)
        'inconclusive'
        """
        if self.low > 0:
            return "better"
        if self.high < 0:
            return "worse"
        if -margin < self.low and self.high < margin:
            return "equivalent"
        return "inconclusive"

    def patients_to_settle(self, patients: float, margin: float) -> float:
        """About how many patients of the rarer class would settle a difference of `margin`.

        At most about: standard errors fall faster than with the root of the number of patients.
        """
        return patients * (self.detectable / margin) ** 2


def paired_differences(
    draws: np.ndarray, effective_patients: float, folds: int, alpha: float
) -> list[PairedDifference]:
    """Simultaneous intervals of K differences by the largest of their t statistics (single-step max-T).

    The variance over resamples of patients is that of fitted heads. A remedy is judged by heads trained
    on folds that overlap, which adds 1/(folds-1) of it (Nadeau and Bengio 2003).

    Args:
        draws: float (B + 1, K), each rival minus its baseline on the same resamples of patients, the
            estimate first; above 0 the rival is better. Resamples with a missing number are left out.
        effective_patients: Patients of the rarer class, counted as many as equal ones they are worth.
        folds: Folds of a repeat; 1 for a single test part.
        alpha: The K intervals together cover 1 - alpha.

    Returns:
        One record per column.

    Reference: Hothorn, Bretz and Westfall 2008, https://doi.org/10.1002/bimj.200810425;
    Nadeau and Bengio 2003, https://doi.org/10.1023/A:1024068626366
    """
    estimates = draws[0]
    resampled = draws[1:]
    resampled = resampled[~np.isnan(resampled).any(axis=1)]
    degrees_of_freedom = effective_patients - 1
    deviations = resampled.std(axis=0)
    errors = deviations * np.sqrt(_inflation(effective_patients, folds))
    varying = deviations > 0
    largest = _largest_of(resampled[:, varying])
    critical = _critical_value(largest, degrees_of_freedom, alpha)
    power_quantile = float(ndtri(POWER))
    differences = []
    for estimate, error in zip(estimates.tolist(), errors.tolist()):
        half_width = critical * error
        differences.append(
            PairedDifference(
                value=estimate,
                low=estimate - half_width,
                high=estimate + half_width,
                standard_error=error,
                p_adjusted=_p_adjusted(largest, degrees_of_freedom, estimate, error),
                detectable=(critical + power_quantile) * error,
            )
        )
    return differences


def _inflation(effective_patients: float, folds: int) -> float:
    if folds <= 1:
        return 1.0
    if effective_patients < FEW_PATIENTS:
        return _FEW_PATIENTS_INFLATION
    return 1 + 1 / (folds - 1)


def _largest_of(resampled: np.ndarray) -> np.ndarray:
    """The largest of K standard normal numbers in size, correlated like the columns, many times."""
    num_varying = resampled.shape[1]
    if num_varying == 0:
        return np.zeros(1)
    correlation = np.atleast_2d(np.corrcoef(resampled, rowvar=False))
    eigenvalues, eigenvectors = np.linalg.eigh(correlation)
    root = eigenvectors * np.sqrt(np.maximum(eigenvalues, 0.0))
    uniform = qmc.Sobol(num_varying, rng=_SEED).random_base2(_LOG2_DRAWS)
    normal = ndtri(uniform)
    return np.abs(normal @ root.T).max(axis=1)


def _exceeds(largest: np.ndarray, degrees_of_freedom: float, bound: float) -> float:
    """P(max |t| >= bound): the normal draws are given, the chi-square scale is integrated out."""
    scaled = degrees_of_freedom * (largest / bound) ** 2
    return float(chdtr(degrees_of_freedom, scaled).mean())


def _critical_value(largest: np.ndarray, degrees_of_freedom: float, alpha: float) -> float:
    """The bound that max |t| passes with probability alpha."""
    if not largest.any():
        return float(stdtrit(degrees_of_freedom, 1 - alpha / 2))
    return float(
        brentq(lambda bound: _exceeds(largest, degrees_of_freedom, bound) - alpha, 1e-6, 1e6)
    )


def _p_adjusted(
    largest: np.ndarray, degrees_of_freedom: float, estimate: float, error: float
) -> float:
    if error == 0:
        return 1.0 if estimate == 0 else 0.0
    if estimate == 0:
        return 1.0
    return _exceeds(largest, degrees_of_freedom, abs(estimate) / error)
