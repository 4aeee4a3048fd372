"""What stands behind a verdict: patients, decisions that differ, counts in plain numbers, subgroups, classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pandas as pd
from scipy.stats import binom

from equipoise.compare.results import Result
from equipoise.core import parallel
from equipoise.core.documents import (
    McNemar,
    MetricTable,
    PatientLevel,
    PerThousand,
    Subgroup,
)
from equipoise.core.records import CALIBRATED, RAW, Predictions
from equipoise.evaluation import intervals
from equipoise.evaluation.intervals import Evaluation
from equipoise.evaluation.measured import Conditions
from equipoise.evaluation.metrics import Endpoint
from equipoise.evaluation.patients import RULES, PatientPredictions, by_patient
from equipoise.evaluation.sample import decide

#: Operating points, in the words of a sentence.
_POINTS = {"raw": "at 0.5", "locked": "at the locked threshold"}


# --- all of it, for every result ------------------------------------------------------------------


#: Operating point -> counts beside the baseline's.
CountsByPoint = dict[str, PerThousand]

#: Operating point -> class -> test against the baseline.
TestsByPoint = dict[str, dict[str, McNemar]]


@dataclass(frozen=True)
class RowEvidence:
    """What stands behind one row of a comparison.

    Attributes:
        by_fold: "point.metric" -> one estimate per repeat and fold; empty for a single fold.
        patient: Rule -> numbers of patients; empty without patient ids.
        subgroups: Numbers by the dataset's own columns.
        per_class: Of more than two classes, each against the rest; empty for two.
        mcnemar: Operating point -> class -> test against the baseline; empty for the baseline.
        per_1000: Units -> operating point -> counts beside the baseline's; two classes only.
    """

    by_fold: dict[str, list[float | None]] = field(default_factory=dict)
    patient: dict[str, PatientLevel] = field(default_factory=dict)
    subgroups: list[Subgroup] = field(default_factory=list)
    per_class: dict[str, MetricTable] = field(default_factory=dict)
    mcnemar: TestsByPoint = field(default_factory=dict)
    per_1000: dict[str, CountsByPoint] = field(default_factory=dict)


def evidence_of(results: Sequence[Result], conditions: Conditions) -> dict[str, RowEvidence]:
    """What stands behind each result, by its key; the baseline of every backbone must be among them."""
    rows: dict[str, RowEvidence] = {}
    by_mean: dict[str, PatientPredictions] = {}
    for result in parallel.progress(results, "patients and subgroups", len(results), "results"):
        by_rule = patients_of(result, conditions)
        by_mean[result.key] = by_rule["mean"]
        rows[result.key] = RowEvidence(
            by_fold=by_fold_of(result.evaluation),
            patient=levels_of(by_rule, conditions.units),
            subgroups=result.numbers.subgroups,
            per_class=result.numbers.per_class,
        )
    tests = mcnemar_of(results, by_mean, conditions.units)
    for key, by_point in tests.items():
        rows[key] = replace(rows[key], mcnemar=by_point)
    counts = per_thousand_of(results, by_mean, conditions.units)
    for key, by_units in counts.items():
        rows[key] = replace(rows[key], per_1000=by_units)
    return rows


def by_fold_of(evaluation: Evaluation) -> dict[str, list[float | None]]:
    """One estimate per repeat and fold, by "point.metric"; empty for a single fold."""
    return {str(endpoint): [*values] for endpoint, values in evaluation.by_fold.items()}


def patients_of(result: Result, conditions: Conditions) -> dict[str, PatientPredictions]:
    """Patients instead of images, under each rule, with the numbers that the result keeps."""
    by_rule = {}
    for rule in RULES:
        people = by_patient(
            result.predictions,
            rule,
            conditions.threshold,
            conditions.sensitivity_floor,
        )
        by_rule[rule] = PatientPredictions(people, result.numbers.patients.get(rule))
    return by_rule


def levels_of(by_rule: Mapping[str, PatientPredictions], units: str) -> dict[str, PatientLevel]:
    """Numbers of patients under each rule; nothing is said of patients where there are no ids."""
    if units != "patients":
        return {}
    return {rule: people.level() for rule, people in by_rule.items()}


# --- decisions that differ ------------------------------------------------------------------------


def mcnemar_of(
    results: Sequence[Result], by_mean: Mapping[str, PatientPredictions], units: str
) -> dict[str, TestsByPoint]:
    """McNemar's test of every rival against its baseline; the p of each operating point are corrected together (Holm).

    Together are all rivals and classes: a family of questions about the same decisions.
    """
    tests = {}
    for result in results:
        if result.is_baseline:
            continue
        people = by_mean[result.key].predictions
        baseline = by_mean[result.baseline_key].predictions
        tests[result.key] = mcnemar(people, baseline, units)
    for point in _POINTS:
        of_point = [by_point[point] for by_point in tests.values()]
        _correct(of_point)
    return tests


def holm(p_values: Sequence[float]) -> list[float]:
    """Corrected p (Holm 1979); no p, none corrected.

    >>> [round(p, 3) for p in holm([0.01, 0.04, 0.03, 0.005])]
    [0.03, 0.06, 0.06, 0.02]
    """
    order = np.argsort(p_values)
    still_tested = np.arange(len(order), 0, -1)
    multiplied = np.asarray(p_values)[order] * still_tested
    corrected = np.empty(len(order))
    corrected[order] = np.minimum(np.maximum.accumulate(multiplied), 1.0)
    return corrected.tolist()


def _correct(families: Sequence[dict[str, McNemar]]) -> None:
    """Put the p after Holm's correction over all tests into each of them."""
    p_values = [test.p_value for by_class in families for test in by_class.values()]
    corrected = iter(holm(p_values))
    for by_class in families:
        for name, test in by_class.items():
            by_class[name] = test.model_copy(update={"p_holm": next(corrected)})


def mcnemar(patients: Predictions, baseline: Predictions, units: str) -> TestsByPoint:
    """Whether patients of a class decided rightly by only one of two models are too uneven for chance.

    McNemar 1947; exact. Of the positive class this is about sensitivity, of the other one about specificity.

    Args:
        patients: Of a scenario, from `by_patient`; the first repeat and seed count, a patient in several folds once.
        baseline: Of the baseline, the same patients.
        units: "patients", or "images" where there are no patient ids.

    Returns:
        raw and locked: the test of each class at each operating point.
    """
    decisions = _decided_rightly(patients)
    baseline_decisions = _decided_rightly(baseline)
    tests: TestsByPoint = {}
    for point in _POINTS:
        tests[point] = {}
        for label, name in enumerate(patients.classes):
            is_of_class = decisions["label"] == label
            right = decisions.loc[is_of_class, point]
            baseline_right = baseline_decisions[point].loc[right.index]
            tests[point][name] = _exact_test(right, baseline_right, units, name)
    return tests


def _exact_test(
    right: pd.Series, baseline_right: pd.Series, units: str, class_name: str
) -> McNemar:
    """The test of decisions of a scenario beside the baseline's on the same patients, bool."""
    cells = pd.crosstab(right, baseline_right)
    yes_no = [True, False]
    cells = cells.reindex(index=yes_no, columns=yes_no, fill_value=0)
    counts = cells.to_numpy().tolist()
    (both, only_scenario), (only_baseline, neither) = counts
    return McNemar(
        units=units,
        class_name=class_name,
        both_right=both,
        only_scenario_right=only_scenario,
        only_baseline_right=only_baseline,
        both_wrong=neither,
        p_value=exact_p(only_scenario, only_baseline),
    )


def exact_p(only_first: int, only_second: int) -> float:
    """McNemar's exact p of two counts of decisions that one of two got right and the other wrong.

    Were both equally good, either would have got each of them right with probability one half.

    >>> exact_p(2, 10)
    0.03857421875
    """
    differing = only_first + only_second
    return min(1.0, 2 * float(binom.cdf(min(only_first, only_second), differing, 0.5)))


def _decided_rightly(patients: Predictions) -> pd.DataFrame:
    """Whether each test patient is decided rightly, a column for each operating point; beside it the label."""
    test = first_run(patients)
    rows = test.table
    positive = patients.positive_label
    locked = rows["threshold"].to_numpy(dtype=float)
    decided = {
        "raw": decide(test.probabilities(RAW), positive),
        "locked": decide(test.probabilities(CALIBRATED), positive, locked),
    }
    right = pd.DataFrame(decided).eq(rows["label"], axis="index")
    right = right.assign(label=rows["label"])
    right = right.set_axis(rows["patient_id"])
    is_repeated = rows["patient_id"].duplicated().to_numpy()
    return right[~is_repeated].sort_index()


def first_run(predictions: Predictions) -> Predictions:
    """Test rows of the first repeat and seed: each image once."""
    test = predictions.part("test")
    table = test.table
    is_first_repeat = table["repeat"] == table["repeat"].min()
    is_first_seed = table["seed"].isin(table["seed"].head(1))  # of patients there may be none
    rows = table[is_first_repeat & is_first_seed]
    return Predictions(rows.reset_index(drop=True), test.meta)


# --- plain numbers --------------------------------------------------------------------------------


def per_thousand_of(
    results: Sequence[Result], by_mean: Mapping[str, PatientPredictions], units: str
) -> dict[str, dict[str, CountsByPoint]]:
    """Counts per 1,000 images, and per 1,000 patients where there are ids, of every rival; two classes only."""
    of_key = {result.key: result for result in results}
    counts = {}
    for result in results:
        is_binary = len(result.predictions.classes) == 2
        if result.is_baseline or not is_binary:
            continue
        by_units = {}
        people = by_mean[result.key]
        baseline_people = by_mean[result.baseline_key]
        if units == "patients" and people.evaluation and baseline_people.evaluation:
            by_units["patients"] = per_thousand(
                people.evaluation,
                baseline_people.evaluation,
                people.predictions,
                "patients",
            )
        baseline = of_key[result.baseline_key]
        by_units["images"] = per_thousand(
            result.evaluation,
            baseline.evaluation,
            result.predictions,
            "images",
        )
        counts[result.key] = by_units
    return counts


def per_thousand(
    evaluation: Evaluation, baseline: Evaluation, predictions: Predictions, units: str
) -> dict[str, PerThousand]:
    """How many more positives are found and how many more false alarms there are, of 1,000 like the test rows.

    Args:
        evaluation: Of a scenario, two classes.
        baseline: Of the baseline, on the same resamples.
        predictions: What `evaluation` was made from; the share of positives is that of its test rows.
        units: "patients" or "images", whichever its rows are.

    Returns:
        raw and locked: the differences to the baseline at each operating point.
    """
    test = predictions.part("test")
    is_positive = test.table["label"] == test.positive_label
    share = float(is_positive.mean())
    name = test.classes[test.positive_label]

    def change(point: str, metric: str, per_unit: float) -> intervals.Effect:
        endpoint = Endpoint(point, metric)
        gain = evaluation.draws[endpoint] - baseline.draws[endpoint]
        draws = per_unit * gain
        return intervals.effect(draws, evaluation.alpha, evaluation.effective_patients)

    counts = {}
    for point, words in _POINTS.items():
        positives = change(point, "sensitivity", 1000 * share)
        alarms = change(point, "specificity", -1000 * (1 - share))
        sentence = (
            f"Per 1,000 {units}, {1000 * share:.0f} of them {name}, {words}: "
            f"{_more(positives, 'found')}, {_more(alarms, 'false alarms')}."
        )
        counts[point] = PerThousand(
            positives_per_1000=1000 * share,
            found=positives.document(),
            false_alarms=alarms.document(),
            sentence=sentence,
        )
    return counts


def _more(effect: intervals.Effect, what: str) -> str:
    """7 more found (-3 to +17)."""
    value, low, high = (round(number) for number in effect)
    ends = f"({low:+d} to {high:+d})"
    if value == 0:
        return f"as many {what} {ends}"
    word = what.removesuffix("s") if abs(value) == 1 else what
    direction = "more" if value > 0 else "fewer"
    return f"{abs(value)} {direction} {word} {ends}"
