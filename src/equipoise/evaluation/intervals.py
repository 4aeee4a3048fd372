"""Test rows of a result -> every metric with its interval, over resamples of whole patients.

The same seed and patients give the same resamples, so differences between results are paired.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy.special import expit, logit, ndtr, ndtri, stdtrit
from threadpoolctl import threadpool_limits

from equipoise.core.config import Compare
from equipoise.core.documents import Interval, MeasuredMetric, MetricTable
from equipoise.core.errors import DataError
from equipoise.core.records import CALIBRATED, RAW, Predictions
from equipoise.evaluation.metrics import REGISTRY, Endpoint, Metric
from equipoise.evaluation.resamples import Resamples, ResamplesOfBoth, resamples_of
from equipoise.evaluation.sample import BLOCK, Sample, decide

#: Effective patients of an evaluation that was made without counting them: the plain percentile interval.
_MANY_PATIENTS = 1e6

#: What is read off one step of the ROC curve is shown from so many steps in every fold on.
FEWEST_STEPS = 20

#: A metric whose interval is made on the logit scale.
_AUROC = "auroc"

#: Operating points, in the order of files: no threshold, 0.5 on raw, the locked one on calibrated probabilities.
POINTS = ("free", "raw", "locked")

#: What stands in files where a patient alone in a class would be in every resample.
ONE_PATIENT_DECIDES = "none: one patient decides"


# --- one interval ---------------------------------------------------------------------------------


class Bounds(NamedTuple):
    """The ends of an interval."""

    low: float
    high: float


def wilson(successes: float, trials: float, alpha: float) -> Bounds:
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


def effect_on_logits(draws: np.ndarray, alpha: float, patients: float) -> Effect:
    r"""Estimate and interval of a number that stays between 0 and 1, which few patients push against its end.

    Student's t on the logit scale, with the standard deviation s over resamples:
    $\mathrm{logit}\,a \pm t\,s / (a(1-a))$, and back. At 0 or 1 exactly no resample differs: then Wilson's interval of
    as many patients, of whom all, or none, were ranked rightly against another patient.

    Args:
        draws: float (B + 1,), the estimate first.
        alpha: The interval covers 1 - alpha.
        patients: Effective number of them, as `Evaluation.effective_patients`.
    """
    estimate = float(draws[0])
    resampled = draws[1:]
    if np.isnan(estimate) or np.isnan(resampled).all():
        return Effect(estimate, np.nan, np.nan)
    if estimate <= 0 or estimate >= 1:
        bounds = wilson(estimate * patients, patients, alpha)
        return Effect(estimate, bounds.low, bounds.high)
    deviation = np.nanstd(resampled)
    student = stdtrit(patients - 1, 1 - alpha / 2)
    half_width = student * deviation / (estimate * (1 - estimate))
    low = expit(logit(estimate) - half_width)
    high = expit(logit(estimate) + half_width)
    return Effect(estimate, float(low), float(high))


# --- an evaluation --------------------------------------------------------------------------------


class _Interval(NamedTuple):
    """The ends of an interval, and how it was made, in words."""

    low: float
    high: float
    how: str

    @classmethod
    def none(cls, reason: str) -> _Interval:
        """No interval."""
        return cls(np.nan, np.nan, reason)


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
        one_patient_decides: A class has one patient, so that nothing that compares the classes can be judged.
        hidden: Why a number is neither computed nor shown, for each endpoint that these rows are too few for.
    """

    draws: dict[Endpoint, np.ndarray]
    among: dict[Endpoint, int]
    by_seed: dict[Endpoint, list[float]]
    alpha: float
    by_fold: dict[Endpoint, list[float]] = field(default_factory=dict)
    row_per_patient: bool = False
    effective_patients: float = _MANY_PATIENTS
    one_patient_decides: bool = False
    hidden: dict[Endpoint, str] = field(default_factory=dict)

    def interval(self, endpoint: Endpoint) -> MeasuredMetric:
        """Estimate and interval of a metric, how the interval was made, and how many resamples lack the metric."""
        if endpoint in self.hidden:
            reason = self.hidden[endpoint]
            return MeasuredMetric(value=None, low=None, high=None, interval=reason)
        draws = self.draws[endpoint]
        is_undefined = np.isnan(draws[1:])
        estimate = float(draws[0])
        patients = self.among.get(endpoint, 0)
        score = None
        if patients:
            score = wilson(estimate * patients, patients, self.alpha)
        made = self._interval_of(endpoint, is_undefined, score)
        metric = MeasuredMetric(
            value=estimate,
            low=made.low,
            high=made.high,
            interval=made.how,
            degenerate=int(is_undefined.sum()),
        )
        if score is None or not self.row_per_patient:
            return metric
        return metric.model_copy(update={"wilson_low": score.low, "wilson_high": score.high})

    def _interval_of(
        self, endpoint: Endpoint, is_undefined: np.ndarray, score: Bounds | None
    ) -> _Interval:
        """The interval of an endpoint, and how it was made; `score` is Wilson's, of a proportion."""
        draws = self.draws[endpoint]
        patients = self.among.get(endpoint, 0)
        if is_undefined.all():
            return _Interval.none("none: undefined in every resample")
        if patients == 1 or (self.one_patient_decides and not patients):
            return _Interval.none(ONE_PATIENT_DECIDES)
        if score and draws[0] in (0.0, 1.0):
            # All resamples of 24 out of 24 are 24 out of 24; the patients behind it still bound what is known.
            return _Interval(score.low, score.high, f"Wilson, {patients} patients")
        if endpoint.metric == _AUROC:
            return self._interval_of_auroc(draws)
        ends = effect(draws, self.alpha, self.effective_patients)
        how = "patient bootstrap"
        if REGISTRY[endpoint.metric].depends_on_mix:
            how = "patient bootstrap at large"
        return _Interval(ends.low, ends.high, how)

    def _interval_of_auroc(self, draws: np.ndarray) -> _Interval:
        ends = effect_on_logits(draws, self.alpha, self.effective_patients)
        how = "patient bootstrap, Student's t on logits"
        if ends.value in (0.0, 1.0):
            how = f"Wilson, {self.effective_patients:.3g} patients of the rarest class"
        return _Interval(ends.low, ends.high, how)

    def table(self) -> MetricTable:
        """Operating point -> metric -> its interval and one estimate per seed."""
        nested: MetricTable = {}
        for endpoint in sorted([*self.draws, *self.hidden], key=_place):
            metric = self.interval(endpoint)
            if endpoint in self.draws:
                metric = metric.model_copy(update={"by_seed": self.by_seed[endpoint]})
            of_point = nested.setdefault(endpoint.point, {})
            of_point[endpoint.metric] = metric
        return nested


def _place(endpoint: Endpoint) -> tuple[int, int]:
    """Where an endpoint stands in files: by operating point, then as in the registry."""
    return POINTS.index(endpoint.point), list(REGISTRY).index(endpoint.metric)


# Several threads gain nothing on sums this small, and wait for each other where the machine is busy.
@threadpool_limits.wrap(limits=1, user_api="blas")
def evaluate(
    predictions: Predictions,
    settings: Compare,
    sensitivity_floor: float,
    endpoints: Collection[Endpoint] = (),
    one_class: int | None = None,
    cost_ratio: float = 1.0,
) -> Evaluation:
    """Compute every metric on test rows, at both operating points, with resamples.

    "free" needs no threshold; "raw" is 0.5 on raw probabilities; "locked" is the threshold of val (k-fold: of the
    inner out-of-fold scores) on calibrated ones.
    Rank metrics are averaged over folds, decisions pooled; repeats and seeds are averaged.

    Args:
        predictions: With test rows; others are left aside.
        settings: Resamples, their seed and the level.
        sensitivity_floor: Within 0..1.
        endpoints: Only these; all when empty.
        one_class: Of more than two classes, this one against the rest instead of the mean over all.
        cost_ratio: What a missed positive costs, in false alarms; for net benefit, which is the same for every model.

    Raises:
        DataError: When a class is absent from the test rows, or an image is there twice.
    """
    test = predictions.part("test")
    _require_every_class(test)
    _require_rows_once(test.table)
    resamples = resamples_of(test.table, settings)
    worth = 1 / (1 + cost_ratio)
    asked = _existing(test, endpoints)
    hidden = _hidden(asked, test)
    shown = [endpoint for endpoint in asked if endpoint not in hidden]

    def measure(rows: Predictions) -> dict[Endpoint, MetricValues]:
        group = _Group.of(rows, sensitivity_floor, worth, one_class)
        return group.measure(shown, resamples)

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
        one_patient_decides=_one_patient_decides(test.table, one_class),
        hidden=hidden,
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


def _one_patient_decides(table: pd.DataFrame, one_class: int | None) -> bool:
    """Whether a class has one patient; `one_class` as of `evaluate`."""
    labels = table["label"]
    if one_class is not None:
        labels = labels == one_class
    patients = table["patient_id"].groupby(labels.to_numpy()).nunique()
    return bool(patients.min() == 1)


def _existing(test: Predictions, only: Collection[Endpoint]) -> list[Endpoint]:
    """Which metrics exist at which operating point: ranks need no threshold, all else does.

    Args:
        test: Their classes count.
        only: As `endpoints` of `evaluate`.
    """
    is_binary = len(test.classes) == 2
    existing = []
    for point in POINTS:
        for name, metric in REGISTRY.items():
            endpoint = Endpoint(point, name)
            if only and endpoint not in only:
                continue
            if (metric.kind == "rank") != (point == "free"):
                continue
            if metric.binary and not is_binary:
                continue
            existing.append(endpoint)
    return existing


def _hidden(endpoints: Iterable[Endpoint], test: Predictions) -> dict[Endpoint, str]:
    """Why a number is not shown: the ROC curve of a fold has too few steps to read it off one of them."""
    is_positive = test.table["label"] == test.positive_label
    folds = is_positive.groupby([test.table[column] for column in ("repeat", "fold", "seed")])
    positives = int(folds.sum().min())
    negatives = int((folds.size() - folds.sum()).min())
    fewest = {True: positives, False: negatives}
    reasons = {}
    for endpoint in endpoints:
        side = REGISTRY[endpoint.metric].read_at
        if side is None:
            continue
        steps = fewest[side == "positives"]
        if steps < FEWEST_STEPS:
            reasons[endpoint] = (
                f"none: a fold has {steps} {side}, {FEWEST_STEPS} are needed to read a single step"
            )
    return reasons


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
    several_seeds = test.table["seed"].nunique() > 1
    for (repeat, seed), rows in test.table.groupby(["repeat", "seed"], sort=True):
        rows = rows.reset_index(drop=True)
        table = rows.drop(columns="seed")
        values = _values_of_same(table, tables, runs) if several_seeds else None
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
    def of(
        cls, rows: Predictions, sensitivity_floor: float, worth: float, one_class: int | None
    ) -> _Group:
        """The samples of some test rows; `worth` is of `Sample`, `one_class` as of `evaluate`."""
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
                worth=worth,
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
        self, endpoints: Sequence[Endpoint], resamples: ResamplesOfBoth
    ) -> dict[Endpoint, MetricValues]:
        """The metrics asked for, in this order."""
        values = {}
        for endpoint, draws in self._draws(endpoints, resamples).items():
            estimate = float(draws[0])
            values[endpoint] = MetricValues(
                draws=draws,
                patients=self._patients_among(endpoint),
                folds=self._by_fold(endpoint, estimate),
            )
        return values

    def _draws(
        self, endpoints: Sequence[Endpoint], resamples: ResamplesOfBoth
    ) -> dict[Endpoint, np.ndarray]:
        """Values in all resamples, float (B + 1,), in the order of the endpoints."""
        draws = {}
        for drawn in resamples:
            needed = [name for name in endpoints if resamples.for_metric(name.metric) is drawn]
            draws.update(self._draws_of(needed, drawn))
        return {endpoint: draws[endpoint] for endpoint in endpoints}

    def _draws_of(
        self, endpoints: Sequence[Endpoint], resamples: Resamples
    ) -> dict[Endpoint, np.ndarray]:
        """Values in all resamples, float (B + 1,).

        A few resamples at a time: memory holds no more, and all metrics share what is sorted and summed for them.
        """
        if not endpoints:
            return {}
        every = np.arange(len(resamples.patients))
        column_of = pd.Series(every, index=resamples.patients)
        columns = column_of.loc[self.patients].to_numpy()
        pieces: dict[Endpoint, list[np.ndarray]] = {endpoint: [] for endpoint in endpoints}
        points = {endpoint.point for endpoint in endpoints}
        for start in range(0, len(resamples.drawn), BLOCK):
            stop = start + BLOCK
            block = resamples.drawn[start:stop].astype(np.float32)
            weights = np.take(block, columns, axis=1)
            parts = {point: self._weighted(point, weights) for point in points}
            for endpoint in endpoints:
                values = _averaged(REGISTRY[endpoint.metric], parts[endpoint.point])
                pieces[endpoint].append(values)
        return {endpoint: np.concatenate(blocks) for endpoint, blocks in pieces.items()}

    def _weighted(self, point: str, weights: np.ndarray) -> list[Sample]:
        """What a metric at an operating point is averaged over: the folds for ranks, all rows for the others.

        Scores of different folds come from different models, so ranks are compared within a fold only.
        """
        weighted = replace(self.samples[point], weights=weights)
        if point == "free":
            return [weighted.subset(rows) for rows in self.folds]
        return [weighted]

    def _by_fold(self, endpoint: Endpoint, estimate: float) -> list[float]:
        if len(self.folds) == 1:
            return [estimate]
        function = REGISTRY[endpoint.metric].function
        return [float(function(sample)[0]) for sample in self._samples_of_folds[endpoint.point]]

    @cached_property
    def _samples_of_folds(self) -> dict[str, list[Sample]]:
        """Operating point -> the sample of each fold, so that metrics share what is counted there."""
        return {
            point: [sample.subset(rows) for rows in self.folds]
            for point, sample in self.samples.items()
        }

    def _patients_among(self, endpoint: Endpoint) -> int:
        """Patients in a proportion's denominator; 0 for what is no proportion, and for means over several classes."""
        sample = self.samples[endpoint.point]
        among = REGISTRY[endpoint.metric].among
        is_one_class = sample.binary or sample.alone
        if among is None or not is_one_class:
            return 0
        patients = self.patients[among(sample)]
        return int(patients.nunique())


def _averaged(metric: Metric, parts: Sequence[Sample]) -> np.ndarray:
    """Mean of a metric over folds, float (B,).

    What is read at one step counts by the images of the other class: false alarms are counted over all folds, each at
    its own threshold.
    """
    values = [metric.function(part) for part in parts]
    if metric.read_at is None or len(parts) == 1:
        return np.mean(values, axis=0)
    counts = []
    for part in parts:
        is_positive = part.labels == part.positive
        others = ~is_positive if metric.read_at == "positives" else is_positive
        counts.append(part.total(others))
    return np.sum(np.multiply(values, counts), axis=0) / np.sum(counts, axis=0)
