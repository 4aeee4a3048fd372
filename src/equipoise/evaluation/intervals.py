"""Test rows of a result -> every metric with its interval, over resamples of whole patients.

The same seed and patients give the same resamples, so differences between results are paired.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri, stdtrit
from threadpoolctl import threadpool_limits

from equipoise.core.config import Compare
from equipoise.core.errors import DataError
from equipoise.core.records import Predictions
from equipoise.evaluation.metrics import BLOCK, REGISTRY, Sample, decide


def wilson(successes: float, trials: int, alpha: float) -> tuple[float, float]:
    """Wilson's score interval of a proportion (Wilson 1927), covering 1 - alpha.

    >>> [round(end, 4) for end in wilson(15, 16, 0.05)]
    [0.7167, 0.9889]
    """
    squared = float(ndtri(1 - alpha / 2)) ** 2
    share, spread = successes / trials, squared / trials
    centre = (share + spread / 2) / (1 + spread)
    half = np.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return float(max(centre - half, 0.0)), float(min(centre + half, 1.0))


def effect(draws: np.ndarray, alpha: float, patients: float) -> dict[str, float]:
    """Estimate and expanded percentile interval (Hesterberg 2015); resamples without a value go.

    Args:
        draws: float (B + 1,), the estimate first.
        alpha: The interval covers 1 - alpha.
        patients: Effective number of them, as `Evaluation.effective_patients`: with few, the plain percentile interval
            is too narrow, as a normal quantile in place of Student's would be (benchmarks/README.md).
    """
    tail = ndtr(-np.sqrt(patients / (patients - 1)) * stdtrit(patients - 1, 1 - alpha / 2))
    low, high = (
        np.nanquantile(draws[1:], [tail, 1 - tail])
        if not np.isnan(draws[1:]).all()
        else [np.nan] * 2
    )
    return {"value": float(draws[0]), "low": float(low), "high": float(high)}


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
    shown = (
        rows.groupby("patient")["label"].agg(lambda values: tuple(sorted(set(values)))).sort_index()
    )
    drawn = np.ones((resamples + 1, len(shown)), dtype=np.float32)
    rng = np.random.default_rng(seed)
    for stratum in sorted(shown.unique()):
        members = np.flatnonzero(shown == stratum)
        drawn[1:, members] = rng.multinomial(
            len(members), np.full(len(members), 1 / len(members)), size=resamples
        )
    return shown.index.to_numpy(), drawn


@lru_cache(maxsize=1)
def _resamples(
    patients: tuple[str, ...], labels: tuple[int, ...], resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Drawn once for all results on the same test rows."""
    return patient_resamples(np.array(patients, dtype=object), np.array(labels), resamples, seed)


@dataclass(frozen=True)
class Evaluation:
    """All numbers of one result on one set of test rows.

    Attributes:
        draws: "point.metric" -> float64 (B + 1,): the estimate first, then one value per resample.
        among: "point.metric" -> patients in the denominator of a proportion.
        by_seed: "point.metric" -> one estimate per seed.
        alpha: Intervals cover 1 - alpha.
        by_fold: "point.metric" -> one estimate per repeat and fold, the mean over seeds; empty for a single fold.
        effective_patients: That many of equal size are worth those of the rarest class (Kish 1965).
        row_per_patient: Every row is another patient, so that proportions are binomial and Wilson's interval is right.
    """

    draws: dict[str, np.ndarray]
    among: dict[str, int]
    by_seed: dict[str, list[float]]
    alpha: float
    by_fold: dict[str, list[float]] = field(default_factory=dict)
    row_per_patient: bool = False
    effective_patients: float = 1e6

    def interval(self, name: str) -> dict[str, Any]:
        """Estimate, interval and how it was made, and the number of resamples in which the metric does not exist."""
        found: dict[str, Any] = effect(self.draws[name], self.alpha, self.effective_patients)
        lacking, patients = int(np.isnan(self.draws[name][1:]).sum()), self.among.get(name, 0)
        how = (
            "none: undefined in every resample"
            if lacking == len(self.draws[name]) - 1
            else "patient bootstrap"
        )
        low, high = (
            wilson(found["value"] * patients, patients, self.alpha)
            if patients
            else (np.nan, np.nan)
        )
        if patients and found["value"] in (0.0, 1.0):
            # All resamples of 24 out of 24 are 24 out of 24; the patients behind it still bound what is known.
            found |= {"low": low, "high": high}
            how = f"Wilson, {patients} patients"
        elif patients == 1:
            found, how = (
                found | {"low": np.nan, "high": np.nan},
                "none: one patient, who is in every resample",
            )
        found |= {"interval": how, "degenerate": lacking}
        return found | (
            {"wilson_low": low, "wilson_high": high} if self.row_per_patient and patients else {}
        )

    def table(self) -> dict[str, dict[str, Any]]:
        """{"free" | "raw" | "locked": {metric: interval}}."""
        nested: dict[str, dict[str, Any]] = {}
        for name in self.draws:
            point, metric = name.split(".")
            nested.setdefault(point, {})[metric] = {
                **self.interval(name),
                "by_seed": self.by_seed[name],
            }
        return nested


# Several threads gain nothing on sums this small, and wait for each other where the machine is busy.
@threadpool_limits.wrap(limits=1, user_api="blas")
def evaluate(
    predictions: Predictions,
    settings: Compare,
    sensitivity_floor: float,
    names: Collection[str] = (),
    one: int | None = None,
) -> Evaluation:
    """Compute every metric on test rows, at both operating points, with resamples.

    "free" needs no threshold; "raw" is 0.5 on raw probabilities; "locked" is the threshold of val on calibrated ones.
    Rank metrics are averaged over folds, decisions pooled; repeats and seeds are averaged.

    Args:
        predictions: With test rows; others are left aside.
        settings: Resamples, their seed and the level.
        sensitivity_floor: Within 0..1.
        names: Only these, as "point.metric"; all when empty.
        one: Of more than two classes, this one against the rest instead of the mean over all.

    Raises:
        DataError: When a class is absent from the test rows, or an image is there twice.
    """
    test = predictions.part("test")
    labels = test.table["label"].to_numpy()
    num_classes = len(test.classes)
    present = np.bincount(labels, minlength=num_classes)
    if (present == 0).any():
        counts = ", ".join(f"{name} {count}" for name, count in zip(test.classes, present))
        raise DataError(
            f"The test rows lack a class ({counts}), so nothing can be compared. Split again."
        )
    once = ["image_id", "repeat", "fold", "seed"]
    if (twice := test.table.duplicated(once)).any():
        image, *place = test.table.loc[twice, once].iloc[0]
        raise DataError(
            "Image '{}' is predicted more than once in repeat {}, fold {}, seed {}, and would count as often. "
            "Run `equipoise scenario` again.".format(image, *place)
        )
    patients, drawn = _resamples(
        tuple(test.table["patient_id"]), tuple(labels.tolist()), settings.resamples, settings.seed
    )
    column = pd.Series(np.arange(len(patients)), index=patients)
    groups: list[tuple[tuple[int, int], dict[str, _Found]]] = []
    seen: list[tuple[pd.DataFrame, dict[str, _Found]]] = []
    for (repeat, seed), rows in test.table.groupby(["repeat", "seed"], sort=True):
        group = replace(test, table=rows.reset_index(drop=True))
        # Where the seed has no effect the same rows come again.
        bare = group.table.drop(columns="seed")
        known = next((values for other, values in seen if other.equals(bare)), None)
        known = known or _evaluate_group(group, drawn, column, sensitivity_floor, names, one)
        seen.append((bare, known))
        groups.append(((repeat, seed), known))
    found = list(groups[0][1])
    draws = {name: np.mean([values[name].draws for _, values in groups], axis=0) for name in found}
    among = {name: groups[0][1][name].patients for name in found if groups[0][1][name].patients}

    def means(name: str, of: str, place: int) -> list[Any]:
        """Mean estimate (or estimates of the folds) of the groups of each repeat (place 0) or seed (place 1)."""
        return [
            np.mean(
                [getattr(values[name], of) for own, values in groups if own[place] == key], axis=0
            )
            for key in sorted({own[place] for own, _ in groups})
        ]

    by_seed = {name: [float(draws[0]) for draws in means(name, "draws", 1)] for name in found}
    by_fold = {
        name: [float(value) for folds in means(name, "folds", 0) for value in folds]
        for name in found
    }
    alone = not test.table.duplicated(["repeat", "seed", "patient_id"]).any()
    many = any(len(values) > 1 for values in by_fold.values())
    sizes = test.table.groupby(["label", "patient_id"]).size()
    effective = float((sizes.groupby("label").sum() ** 2 / (sizes**2).groupby("label").sum()).min())
    return Evaluation(
        draws, among, by_seed, settings.alpha, by_fold if many else {}, alone, max(effective, 2.0)
    )


@dataclass(frozen=True)
class _Found:
    """One metric of one repeat and seed: draws (B + 1,), patients in a proportion's denominator or 0, per fold."""

    draws: np.ndarray
    patients: int
    folds: list[float]


def _evaluate_group(
    group: Predictions,
    drawn: np.ndarray,
    column: pd.Series,
    floor: float,
    names: Collection[str],
    one: int | None,
) -> dict[str, _Found]:
    table, positive = group.table, group.positive_label if one is None else one
    raw, calibrated = group.probabilities("prob"), group.probabilities("calibrated")
    threshold, labels = table["threshold"].to_numpy(dtype=np.float64), table["label"].to_numpy()
    shares = 1 / table.groupby("patient_id")["image_id"].transform("size").to_numpy()
    points = {
        point: Sample(
            labels,
            prob,
            decide(prob, positive, at),
            positive,
            np.ones((1, len(table))),
            floor,
            at,
            shares,
            one is not None,
        )
        for point, prob, at in (
            ("free", raw, 0.5),
            ("raw", raw, 0.5),
            ("locked", calibrated, threshold),
        )
    }
    wanted = {
        f"{point}.{name}": (sample, metric)
        for point, sample in points.items()
        for name, metric in REGISTRY.items()
        if (metric.kind == "rank") == (point == "free")
        and (sample.binary or not metric.binary)
        and (not names or f"{point}.{name}" in names)
    }
    folds = list(table.groupby("fold", sort=True).indices.values())
    place = column.loc[table["patient_id"]].to_numpy()
    draws: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
    # A few resamples at a time: memory holds no more, and all metrics share what is sorted and summed for them.
    for start in range(0, len(drawn), BLOCK):
        weights = np.take(drawn[start : start + BLOCK], place, axis=1)
        # Scores of different folds come from different models: ranks are compared within a fold only.
        parts = {
            point: [_subset(whole, rows) for rows in folds] if point == "free" else [whole]
            for point, whole in (
                (point, replace(sample, weights=weights)) for point, sample in points.items()
            )
        }
        for name, (_, metric) in wanted.items():
            draws[name].append(
                np.mean([metric.function(part) for part in parts[name.split(".")[0]]], axis=0)
            )
    found: dict[str, _Found] = {}
    for name, (sample, metric) in wanted.items():
        values, patients = np.concatenate(draws[name]), 0
        single = [float(values[0])]
        if len(folds) > 1:
            single = [float(metric.function(_subset(sample, rows))[0]) for rows in folds]
        if metric.among is not None and (sample.binary or sample.alone):
            patients = int(table.loc[metric.among(sample), "patient_id"].nunique())
        found[name] = _Found(values, patients, single)
    return found


def _subset(sample: Sample, rows: np.ndarray) -> Sample:
    if len(rows) == len(sample.labels):
        return sample
    return replace(
        sample,
        labels=sample.labels[rows],
        probabilities=sample.probabilities[rows],
        decisions=sample.decisions[rows],
        weights=np.take(sample.weights, rows, axis=1),
        threshold=sample.threshold[rows]
        if isinstance(sample.threshold, np.ndarray)
        else sample.threshold,
        shares=None if sample.shares is None else sample.shares[rows],
    )
