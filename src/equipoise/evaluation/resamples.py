"""Whole patients drawn with replacement, the same ones for every result on the same patients.

The same seed and patients give the same resamples, so differences between results are paired.
"""

from __future__ import annotations

from collections import Counter
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
import pandas as pd

from equipoise.core.config import Compare
from equipoise.evaluation.metrics import REGISTRY

#: The classes that a patient shows, in ascending order.
Stratum: TypeAlias = tuple[int, ...]

#: Beside the seed, so that patients at large are drawn apart from those within their classes.
_AT_LARGE = 1

#: Sets of resamples that are kept: of the test patients, and of those of a few subgroups.
_KEPT_RESAMPLES = 4


class Resamples(NamedTuple):
    """Whole patients, drawn with replacement.

    Attributes:
        patients: (P,), their ids, sorted.
        drawn: float32 (B + 1, P), how often each is drawn; the first row is all ones. uint8 where they are kept.
    """

    patients: np.ndarray
    drawn: np.ndarray


def patient_resamples(
    patients: np.ndarray,
    labels: np.ndarray,
    resamples: int,
    seed: int,
    at_large: bool = False,
) -> Resamples:
    """Draw whole patients with replacement, within strata of the classes that a patient shows, or at large.

    Within strata the classes stay as common as they are: right for what does not depend on that, too narrow for the
    rest. A patient who is alone in a stratum is drawn with those of the rarest class that he shows, or else he would be
    in every resample.

    Args:
        patients: (n,), patient of each row; their order does not matter.
        labels: int (n,).
        resamples: B.
        seed: The same seed and patients give the same resamples, so differences between models are paired.
        at_large: Draw from all patients at once, whatever their classes.
    """
    strata = _strata(patients, labels)
    if at_large:
        drawn = _drawn_at_large(len(strata), resamples, seed)
    else:
        drawn = _drawn_within(_joined(strata), resamples, seed)
    return Resamples(strata.index.to_numpy(), drawn.astype(np.float32))


def _strata(patients: np.ndarray, labels: np.ndarray) -> pd.Series:
    """The stratum of each patient, by patient."""
    rows = pd.DataFrame({"patient": patients, "label": labels})
    shown = rows.drop_duplicates().sort_values(["patient", "label"])
    labels_of: dict[str, list[int]] = {}
    for patient, label in zip(shown["patient"].tolist(), shown["label"].tolist()):
        labels_of.setdefault(patient, []).append(label)
    strata = [tuple(of_patient) for of_patient in labels_of.values()]
    return pd.Series(strata, index=list(labels_of), dtype=object)


def _joined(strata: pd.Series) -> pd.Series:
    """Strata without a patient who is alone in his, where another stratum shows one of his classes.

    He joins patients of a single class, of the rarest there is, or else the smallest stratum.
    """
    counts = Counter(strata)
    joined_by: dict[Stratum, Stratum] = {}
    lone = [stratum for stratum, count in counts.items() if count == 1]
    for stratum in sorted(lone, key=lambda shown: (-len(shown), shown)):
        # Somebody may have come meanwhile.
        if counts[stratum] > 1:
            continue
        others = [other for other in counts if other != stratum and set(other) & set(stratum)]
        if not others:
            continue
        company = min(others, key=lambda other: (len(other), counts[other], other))
        joined_by[stratum] = company
        counts[company] += 1
        del counts[stratum]
    stratum_of = [joined_by.get(stratum, stratum) for stratum in strata]
    return pd.Series(stratum_of, index=strata.index, dtype=object)


def _drawn_within(strata: pd.Series, resamples: int, seed: int) -> np.ndarray:
    drawn = np.ones((resamples + 1, len(strata)), dtype=np.uint8)
    rng = np.random.default_rng(seed)
    for stratum in sorted(strata.unique()):
        members = np.flatnonzero(strata == stratum)
        drawn[1:, members] = _drawn(rng, len(members), resamples)
    return drawn


def _drawn_at_large(num_patients: int, resamples: int, seed: int) -> np.ndarray:
    drawn = np.ones((resamples + 1, num_patients), dtype=np.uint8)
    rng = np.random.default_rng([seed, _AT_LARGE])
    drawn[1:] = _drawn(rng, num_patients, resamples)
    return drawn


def _drawn(rng: np.random.Generator, number: int, resamples: int) -> np.ndarray:
    """How often each of a number of patients is drawn, int (resamples, number)."""
    chances = np.full(number, 1 / number)
    return rng.multinomial(number, chances, size=resamples)


class ResamplesOfBoth(NamedTuple):
    """The same patients drawn within their classes, and at large."""

    within: Resamples
    at_large: Resamples

    def for_metric(self, name: str) -> Resamples:
        """Those that a metric needs."""
        return self.at_large if REGISTRY[name].depends_on_mix else self.within


def resamples_of(table: pd.DataFrame, settings: Compare) -> ResamplesOfBoth:
    """Drawn once for all results on the same test patients, whether of their images or of themselves."""
    strata = _strata(table["patient_id"].to_numpy(), table["label"].to_numpy())
    return _shared_resamples(
        tuple(strata.index),
        tuple(strata),
        settings.resamples,
        settings.seed,
    )


@lru_cache(maxsize=_KEPT_RESAMPLES)
def _shared_resamples(
    patients: tuple[str, ...],
    strata: tuple[Stratum, ...],
    resamples: int,
    seed: int,
) -> ResamplesOfBoth:
    ids = np.array(patients, dtype=object)
    shown = pd.Series(list(strata), index=list(patients), dtype=object)
    within = _drawn_within(_joined(shown), resamples, seed)
    at_large = _drawn_at_large(len(ids), resamples, seed)
    return ResamplesOfBoth(Resamples(ids, within), Resamples(ids, at_large))
