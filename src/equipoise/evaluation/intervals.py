"""Test rows of a result -> every metric with its interval, over resamples of whole patients.

The same seed and patients give the same resamples, so differences between results are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import ndtr, ndtri, stdtrit
from threadpoolctl import threadpool_limits

from equipoise.core.config import Compare
from equipoise.core.documents import Interval, MeasuredMetric, MetricTable
from equipoise.core.errors import DataError
from equipoise.core.records import CALIBRATED, RAW, Predictions
from equipoise.evaluation.metrics import BLOCK, REGISTRY, Endpoint, Sample, decide

#: Effective patients of an evaluation that was made without counting them: the plain percentile interval.
_MANY_PATIENTS = 1e6


# --- one interval ---------------------------------------------------------------------------------


class Bounds(NamedTuple):
    """The ends of an interval."""

    low: float
    high: float


def wilson(successes: float, trials: int, alpha: float) -> Bounds:
    """Wilson's score interval of a proportion (Wilson 1927), covering 1 - alpha.

    It is written out because statsmodels' differs in the last bit and ends at 0.9999999999999999 where this ends at 1.

    >>> [round(end, 4) for end in wilson(15, 16, 0.05)]
    [0.7167, 0.9889]
    """
    quantile = float(ndtri(1 - alpha / 2))
    share = successes / trials
    spread = quantile**2 / trials
    centre = (share + spread / 2) / (1 + spread)
    variance = share * (1 - share) * spread
    half_width = np.sqrt(variance + spread**2 / 4) / (1 + spread)
    low = max(centre - half_width, 0.0)
    high = min(centre + half_width, 1.0)
    return Bounds(float(low), float(high))


class Effect(NamedTuple):
    """A number and the ends of its interval."""

    value: float
    low: float
    high: float

    def document(self) -> Interval:
        """As it stands in files."""
        return Interval(value=self.value, low=self.low, high=self.high)


def effect(draws: np.ndarray, alpha: float, patients: float) -> Effect:
    """Estimate and interval of a number, from its values in the resamples; resamples without a value are left out.

    The interval is the expanded percentile interval (Hesterberg 2015): with few patients the plain one is too narrow,
    as a normal quantile in place of Student's would be (benchmarks/README.md).

    Args:
        draws: float (B + 1,), the estimate first.
        alpha: The interval covers 1 - alpha.
        patients: Effective number of them, as `Evaluation.effective_patients`.
    """
    estimate = float(draws[0])
    resampled = draws[1:]
    if np.isnan(resampled).all():
        return Effect(estimate, np.nan, np.nan)
    degrees = patients - 1
    student = stdtrit(degrees, 1 - alpha / 2)
    expansion = np.sqrt(patients / degrees)
    tail = ndtr(-expansion * student)
    low, high = np.nanquantile(resampled, [tail, 1 - tail])
    return Effect(estimate, float(low), float(high))


# --- resamples ------------------------------------------------------------------------------------


class Resamples(NamedTuple):
    """Whole patients, drawn with replacement.

    Attributes:
        patients: (P,), their ids, sorted.
        drawn: float32 (B + 1, P), how often each is drawn; the first row is all ones.
    """

    patients: np.ndarray
    drawn: np.ndarray


def patient_resamples(
    patients: np.ndarray, labels: np.ndarray, resamples: int, seed: int
) -> Resamples:
    """Draw whole patients with replacement, within strata of the classes that a patient shows.

    Args:
        patients: (n,), patient of each row; their order does not matter.
        labels: int (n,).
        resamples: B.
        seed: The same seed and patients give the same resamples, so differences between models are paired.
    """
    rows = pd.DataFrame({"patient": patients, "label": labels})
    by_patient = rows.groupby("patient")["label"]
    strata = by_patient.agg(_distinct).sort_index()
    drawn = np.ones((resamples + 1, len(strata)), dtype=np.float32)
    rng = np.random.default_rng(seed)
    for stratum in sorted(strata.unique()):
        members = np.flatnonzero(strata == stratum)
        number = len(members)
        chances = np.full(number, 1 / number)
        drawn[1:, members] = rng.multinomial(number, chances, size=resamples)
    return Resamples(strata.index.to_numpy(), drawn)


def _distinct(values: pd.Series) -> tuple[int, ...]:
    return tuple(sorted(set(values)))


@lru_cache(maxsize=1)
def _shared_resamples(
    patients: tuple[str, ...], labels: tuple[int, ...], resamples: int, seed: int
) -> Resamples:
    """Drawn once for all results on the same test rows."""
    ids = np.array(patients, dtype=object)
    return patient_resamples(ids, np.array(labels), resamples, seed)


# --- an evaluation --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evaluation:
    """All numbers of one result on one set of test rows.

    Attributes:
        draws: float64 (B + 1,) for each endpoint: the estimate first, then one value per resample.
        among: Patients in the denominator, for each endpoint that is a proportion.
        by_seed: One estimate per seed.
        alpha: Intervals cover 1 - alpha.
        by_fold: One estimate per repeat and fold, the mean over seeds; empty for a single fold.
        row_per_patient: Every row is another patient, so that proportions are binomial and Wilson's interval is right.
        effective_patients: Effective number of patients of the rarest class: unequal numbers of images per patient
            count as fewer patients (Kish 1965).
    """

    draws: dict[Endpoint, np.ndarray]
    among: dict[Endpoint, int]
    by_seed: dict[Endpoint, list[float]]
    alpha: float
    by_fold: dict[Endpoint, list[float]] = field(default_factory=dict)
    row_per_patient: bool = False
    effective_patients: float = _MANY_PATIENTS

    def interval(self, endpoint: Endpoint) -> MeasuredMetric:
        """Estimate and interval of a metric, how the interval was made, and how many resamples lack the metric."""
        draws = self.draws[endpoint]
        is_undefined = np.isnan(draws[1:])
        estimate, low, high = effect(draws, self.alpha, self.effective_patients)
        how = "patient bootstrap"
        if is_undefined.all():
            how = "none: undefined in every resample"
        patients = self.among.get(endpoint, 0)
        score = None
        if patients:
            score = wilson(estimate * patients, patients, self.alpha)
        if score and estimate in (0.0, 1.0):
            # All resamples of 24 out of 24 are 24 out of 24; the patients behind it still bound what is known.
            low, high = score
            how = f"Wilson, {patients} patients"
        elif patients == 1:
            low = high = np.nan
            how = "none: one patient, who is in every resample"
        metric = MeasuredMetric(
            value=estimate,
            low=low,
            high=high,
            interval=how,
            degenerate=int(is_undefined.sum()),
        )
        if score is None or not self.row_per_patient:
            return metric
        return metric.model_copy(update={"wilson_low": score.low, "wilson_high": score.high})

    def table(self) -> MetricTable:
        """Operating point -> metric -> its interval and one estimate per seed."""
        nested: MetricTable = {}
        for endpoint in self.draws:
            metric = self.interval(endpoint)
            metric = metric.model_copy(update={"by_seed": self.by_seed[endpoint]})
            of_point = nested.setdefault(endpoint.point, {})
            of_point[endpoint.metric] = metric
        return nested


# Several threads gain nothing on sums this small, and wait for each other where the machine is busy.
@threadpool_limits.wrap(limits=1, user_api="blas")
def evaluate(
    predictions: Predictions,
    settings: Compare,
    sensitivity_floor: float,
    endpoints: Collection[Endpoint] = (),
    one_class: int | None = None,
) -> Evaluation:
    """Compute every metric on test rows, at both operating points, with resamples.

    "free" needs no threshold; "raw" is 0.5 on raw probabilities; "locked" is the threshold of val on calibrated ones.
    Rank metrics are averaged over folds, decisions pooled; repeats and seeds are averaged.

    Args:
        predictions: With test rows; others are left aside.
        settings: Resamples, their seed and the level.
        sensitivity_floor: Within 0..1.
        endpoints: Only these; all when empty.
        one_class: Of more than two classes, this one against the rest instead of the mean over all.

    Raises:
        DataError: When a class is absent from the test rows, or an image is there twice.
    """
    test = predictions.part("test")
    _require_every_class(test)
    _require_rows_once(test.table)
    resamples = _shared_resamples(
        tuple(test.table["patient_id"]),
        tuple(test.table["label"].tolist()),
        settings.resamples,
        settings.seed,
    )

    def measure(rows: Predictions) -> dict[Endpoint, MetricValues]:
        group = _Group.of(rows, sensitivity_floor, one_class)
        return group.measure(endpoints, resamples)

    runs = _runs(test, measure)
    is_another_row = test.table.duplicated(["repeat", "seed", "patient_id"])
    measured = runs[0].values
    return Evaluation(
        draws={endpoint: _mean_draws(runs, endpoint) for endpoint in measured},
        among={
            endpoint: values.patients for endpoint, values in measured.items() if values.patients
        },
        by_seed={endpoint: mean_by_seed(runs, endpoint) for endpoint in measured},
        alpha=settings.alpha,
        by_fold=_by_fold(runs),
        row_per_patient=not is_another_row.any(),
        effective_patients=_effective_patients(test.table),
    )


def _require_every_class(test: Predictions) -> None:
    counts = np.bincount(test.table["label"], minlength=len(test.classes))
    if (counts > 0).all():
        return
    words = [f"{name} {count}" for name, count in zip(test.classes, counts)]
    raise DataError(
        f"The test rows lack a class ({', '.join(words)}), so nothing can be compared. Split again."
    )


def _require_rows_once(table: pd.DataFrame) -> None:
    columns = ["image_id", "repeat", "fold", "seed"]
    repeated = table.duplicated(columns)
    if not repeated.any():
        return
    image, repeat, fold, seed = table.loc[repeated, columns].iloc[0]
    raise DataError(
        f"Image '{image}' is predicted more than once in repeat {repeat}, fold {fold}, seed {seed}, "
        f"and would count as often. Run `equipoise scenario` again."
    )


def _effective_patients(table: pd.DataFrame) -> float:
    """Kish's effective number of patients of the rarest class, at least 2."""
    images = table.groupby(["label", "patient_id"]).size()
    squares = images**2
    total = images.groupby("label").sum()
    total_of_squares = squares.groupby("label").sum()
    effective = total**2 / total_of_squares
    return max(float(effective.min()), 2.0)


# --- repeats and seeds ----------------------------------------------------------------------------


@dataclass(frozen=True)
class MetricValues:
    """One metric of one repeat and seed.

    Attributes:
        draws: float64 (B + 1,), the estimate first.
        patients: In a proportion's denominator; 0 for what is no proportion.
        folds: One estimate per fold.
    """

    draws: np.ndarray
    patients: int
    folds: list[float]


@dataclass(frozen=True)
class Run:
    """One repeat and one seed."""

    repeat: int
    seed: int
    values: dict[Endpoint, MetricValues]


def _runs(
    test: Predictions, measure: Callable[[Predictions], dict[Endpoint, MetricValues]]
) -> list[Run]:
    """Measure every repeat and seed; where the seed has no effect the same rows come again and are measured once."""
    runs: list[Run] = []
    tables: list[pd.DataFrame] = []
    for (repeat, seed), rows in test.table.groupby(["repeat", "seed"], sort=True):
        rows = rows.reset_index(drop=True)
        table = rows.drop(columns="seed")
        values = _values_of_same(table, tables, runs)
        if values is None:
            values = measure(replace(test, table=rows))
        runs.append(Run(repeat, seed, values))
        tables.append(table)
    return runs


def _values_of_same(
    table: pd.DataFrame, tables: Sequence[pd.DataFrame], runs: Sequence[Run]
) -> dict[Endpoint, MetricValues] | None:
    """Values of the run with the same rows; None where there is none. `tables` are those of `runs`."""
    for run, other in zip(runs, tables):
        if other.equals(table):
            return run.values
    return None


def _mean_draws(runs: Sequence[Run], endpoint: Endpoint) -> np.ndarray:
    """Mean over runs, the estimate first, float (B + 1,)."""
    draws = [run.values[endpoint].draws for run in runs]
    return np.mean(draws, axis=0)


def mean_by_seed(runs: Sequence[Run], endpoint: Endpoint) -> list[float]:
    """Mean estimate over repeats, one for each seed."""
    estimates = []
    for seed in sorted({run.seed for run in runs}):
        of_seed = [run for run in runs if run.seed == seed]
        draws = _mean_draws(of_seed, endpoint)
        estimates.append(float(draws[0]))
    return estimates


def _by_fold(runs: Sequence[Run]) -> dict[Endpoint, list[float]]:
    """`mean_by_fold` of every endpoint; empty for a single repeat and fold."""
    estimates = {}
    for endpoint in runs[0].values:
        estimates[endpoint] = mean_by_fold(runs, endpoint)
    if all(len(of_endpoint) == 1 for of_endpoint in estimates.values()):
        return {}
    return estimates


def mean_by_fold(runs: Sequence[Run], endpoint: Endpoint) -> list[float]:
    """Mean estimate over seeds, one for each repeat and fold."""
    estimates: list[float] = []
    for repeat in sorted({run.repeat for run in runs}):
        of_repeat = [run for run in runs if run.repeat == repeat]
        folds = [run.values[endpoint].folds for run in of_repeat]
        mean = np.mean(folds, axis=0)
        estimates.extend(mean.tolist())
    return estimates


# --- one repeat and seed --------------------------------------------------------------------------


@dataclass(frozen=True)
class _Group:
    """The test rows of one repeat and seed.

    Attributes:
        patients: (n,), patient of each row.
        folds: The rows of each fold, int arrays.
        samples: Operating point -> its sample, every row with weight one.
    """

    patients: pd.Series
    folds: list[np.ndarray]
    samples: dict[str, Sample]

    @classmethod
    def of(cls, rows: Predictions, sensitivity_floor: float, one_class: int | None) -> _Group:
        """The samples of some test rows; `one_class` as of `evaluate`."""
        table = rows.table
        positive = rows.positive_label if one_class is None else one_class
        images_of_patient = table.groupby("patient_id")["image_id"].transform("size")
        shares = 1 / images_of_patient.to_numpy()
        labels = table["label"].to_numpy()
        once = np.ones((1, len(table)))

        def sample(prob: np.ndarray, threshold: np.ndarray | float) -> Sample:
            return Sample(
                labels=labels,
                probabilities=prob,
                decisions=decide(prob, positive, threshold),
                positive=positive,
                weights=once,
                floor=sensitivity_floor,
                threshold=threshold,
                shares=shares,
                alone=one_class is not None,
            )

        raw = rows.probabilities(RAW)
        calibrated = rows.probabilities(CALIBRATED)
        locked = table["threshold"].to_numpy(dtype=np.float64)
        samples = {
            "free": sample(raw, 0.5),
            "raw": sample(raw, 0.5),
            "locked": sample(calibrated, locked),
        }
        rows_of_fold = table.groupby("fold", sort=True).indices
        return cls(table["patient_id"], list(rows_of_fold.values()), samples)

    def measure(
        self, only: Collection[Endpoint], resamples: Resamples
    ) -> dict[Endpoint, MetricValues]:
        """Every metric, or only some; `only` as `endpoints` of `evaluate`."""
        endpoints = self._endpoints(only)
        values = {}
        for endpoint, draws in self._draws(endpoints, resamples).items():
            estimate = float(draws[0])
            values[endpoint] = MetricValues(
                draws=draws,
                patients=self._patients_among(endpoint),
                folds=self._by_fold(endpoint, estimate),
            )
        return values

    def _endpoints(self, only: Collection[Endpoint]) -> list[Endpoint]:
        """Which metrics exist at which operating point: ranks need no threshold, all else does."""
        endpoints = []
        for point, sample in self.samples.items():
            for name, metric in REGISTRY.items():
                endpoint = Endpoint(point, name)
                if only and endpoint not in only:
                    continue
                if (metric.kind == "rank") != (point == "free"):
                    continue
                if metric.binary and not sample.binary:
                    continue
                endpoints.append(endpoint)
        return endpoints

    def _draws(
        self, endpoints: Sequence[Endpoint], resamples: Resamples
    ) -> dict[Endpoint, np.ndarray]:
        """Values in all resamples, float (B + 1,).

        A few resamples at a time: memory holds no more, and all metrics share what is sorted and summed for them.
        """
        every = np.arange(len(resamples.patients))
        column_of = pd.Series(every, index=resamples.patients)
        columns = column_of.loc[self.patients].to_numpy()
        pieces: dict[Endpoint, list[np.ndarray]] = {endpoint: [] for endpoint in endpoints}
        for start in range(0, len(resamples.drawn), BLOCK):
            stop = start + BLOCK
            weights = np.take(resamples.drawn[start:stop], columns, axis=1)
            parts = self._weighted(weights)
            for endpoint in endpoints:
                function = REGISTRY[endpoint.metric].function
                values = [function(part) for part in parts[endpoint.point]]
                mean = np.mean(values, axis=0)
                pieces[endpoint].append(mean)
        return {endpoint: np.concatenate(blocks) for endpoint, blocks in pieces.items()}

    def _weighted(self, weights: np.ndarray) -> dict[str, list[Sample]]:
        """Operating point -> what a metric is averaged over: the folds for ranks, all rows for the others.

        Scores of different folds come from different models, so ranks are compared within a fold only.
        """
        parts = {}
        for point, sample in self.samples.items():
            weighted = replace(sample, weights=weights)
            if point == "free":
                parts[point] = [weighted.subset(rows) for rows in self.folds]
            else:
                parts[point] = [weighted]
        return parts

    def _by_fold(self, endpoint: Endpoint, estimate: float) -> list[float]:
        if len(self.folds) == 1:
            return [estimate]
        function = REGISTRY[endpoint.metric].function
        sample = self.samples[endpoint.point]
        estimates = []
        for rows in self.folds:
            values = function(sample.subset(rows))
            estimates.append(float(values[0]))
        return estimates

    def _patients_among(self, endpoint: Endpoint) -> int:
        """Patients in a proportion's denominator; 0 for what is no proportion, and for means over several classes."""
        sample = self.samples[endpoint.point]
        among = REGISTRY[endpoint.metric].among
        is_one_class = sample.binary or sample.alone
        if among is None or not is_one_class:
            return 0
        patients = self.patients[among(sample)]
        return int(patients.nunique())
