"""What stands behind a verdict: patients, counts in plain numbers, subgroups, classes, the prior."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from statsmodels.stats.contingency_tables import mcnemar as exact_test

from equipoise.core.config import Compare
from equipoise.core.records import Manifest, Predictions
from equipoise.evaluation import intervals
from equipoise.evaluation.intervals import Evaluation
from equipoise.evaluation.metrics import decide
from equipoise.strategies import base as strategies

#: Below so many patients the numbers of a subgroup are marked.
FEW_PATIENTS = 10
_POINTS = {"raw": "at 0.5", "locked": "at the locked threshold"}


def mcnemar(patients: Predictions, baseline: Predictions, units: str) -> dict[str, dict[str, Any]]:
    """Exact McNemar test on discordant patients at both operating points (McNemar 1947; binomial).

    Args:
        patients: Of a scenario, from `by_patient`; the first repeat and seed count, a patient in several folds once.
        baseline: Of the baseline, the same patients.
        units: "patients", or "images" where there are no patient ids.
    """
    mine, other = _right(patients), _right(baseline)
    found = {}
    for point in _POINTS:
        cells = pd.crosstab(mine[point], other[point]).reindex(
            index=[True, False], columns=[True, False], fill_value=0
        )
        (both, only), (only_baseline, neither) = cells.to_numpy().tolist()
        found[point] = {
            **{"units": units, "both_right": both, "only_scenario_right": only},
            **{"only_baseline_right": only_baseline, "both_wrong": neither},
            "p_value": float(
                exact_test([[both, only], [only_baseline, neither]], exact=True).pvalue
            ),
        }
    return found


def _right(patients: Predictions) -> pd.DataFrame:
    """Whether each patient is decided rightly, a column for each operating point; rows are test patients."""
    test, positive = first_run(patients), patients.positive_label
    rows = test.table
    raw = decide(test.probabilities("prob"), positive)
    locked = decide(
        test.probabilities("calibrated"), positive, rows["threshold"].to_numpy(dtype=float)
    )
    right = pd.DataFrame({"raw": raw == rows["label"], "locked": locked == rows["label"]})
    return right.set_axis(rows["patient_id"])[
        ~rows["patient_id"].duplicated().to_numpy()
    ].sort_index()


def first_run(predictions: Predictions) -> Predictions:
    """Test rows of the first repeat and seed: each image once."""
    test = predictions.part("test")
    first = (test.table["repeat"] == test.table["repeat"].min()) & (
        test.table["seed"] == test.table["seed"].iloc[0]
    )
    return Predictions(test.table[first].reset_index(drop=True), test.meta)


def per_thousand(
    evaluation: Evaluation, baseline: Evaluation, predictions: Predictions, units: str
) -> dict[str, dict[str, Any]]:
    """Differences to the baseline in found positives and false alarms per 1,000, at the share of positives in test.

    Args:
        evaluation: Of a scenario, two classes.
        baseline: Of the baseline, on the same resamples.
        predictions: What `evaluation` was made from; the share of positives is that of its test rows.
        units: "patients" or "images", whichever its rows are.
    """
    test = predictions.part("test")
    share = float((test.table["label"] == test.positive_label).mean())
    name, found = test.classes[test.positive_label], {}
    for point, words in _POINTS.items():
        gained, spared = (
            evaluation.draws[f"{point}.{metric}"] - baseline.draws[f"{point}.{metric}"]
            for metric in ("sensitivity", "specificity")
        )
        positives = intervals.effect(
            1000 * share * gained, evaluation.alpha, evaluation.effective_patients
        )
        alarms = intervals.effect(
            -1000 * (1 - share) * spared, evaluation.alpha, evaluation.effective_patients
        )
        found[point] = {
            **{"positives_per_1000": 1000 * share, "found": positives, "false_alarms": alarms},
            "sentence": f"Per 1,000 {units}, {1000 * share:.0f} of them {name}, {words}: "
            f"{_more(positives, 'found')}, {_more(alarms, 'false alarms')}.",
        }
    return found


def _more(effect: Mapping[str, float], what: str) -> str:
    """7 more found (-3 to +17)."""
    value, low, high = (round(effect[end]) for end in ("value", "low", "high"))
    word = what.removesuffix("s") if abs(value) == 1 else what
    count = (
        f"{abs(value)} {'more' if value > 0 else 'fewer'} {word}" if value else f"as many {what}"
    )
    return f"{count} ({low:+d} to {high:+d})"


def prior_correction(
    scenario: str,
    choices: Sequence[Mapping[str, Any]],
    plan: pd.DataFrame,
    labels: pd.Series,
    positive: int,
) -> dict[str, Any] | None:
    r"""Whether the calibrator, fitted on val, undid what plan, weights and offsets did to the odds. Two classes, probe.

    Training multiplies the odds of the positive class by $\frac{w_1 m_1 / n_1}{w_0 m_0 / n_0} e^{-(o_1 - o_0)}$, with n
    train images and m draws (their weights summed), so minus its logarithm brings the raw logit back. The calibrator's
    own is intercept over slope: where its probability is one half.

    Args:
        scenario: Name of the strategy, which gives w and o.
        choices: Contents of best.json.
        plan: Contents of plan.parquet.
        labels: Label of each image id.
        positive: Index of the positive class.

    Returns:
        expected, found, slope: means over the rounds with a fitted calibrator, their number as rounds; None without
        one, or with a focal objective, which has no such odds.

    Reference: prior correction, Saerens et al. 2002, https://doi.org/10.1162/089976602753284446
    """
    rows = []
    drawn = plan.assign(label=labels.loc[plan["image_id"]].to_numpy())
    sums = drawn.groupby(["repeat", "fold", "seed", "label"])["weight"].sum()
    for choice in choices:
        objective = (
            strategies.load_strategy(scenario)
            .of(choice["settings"])
            .objective(np.array(choice["plan_counts"]))
        )
        if objective.focusing or choice["calibrator"]["reason"]:
            continue
        counts = (
            sums.loc[choice["repeat"], choice["fold"], choice["seed"]]
            .reindex([0, 1], fill_value=0)
            .to_numpy()
        )
        with np.errstate(divide="ignore"):
            logit = np.log(objective.weights * counts / choice["train_counts"]) - objective.offsets
        biases, slope = choice["calibrator"]["biases"], choice["calibrator"]["slope"]
        rows.append(
            (
                logit[1 - positive] - logit[positive],
                (biases[positive] - biases[1 - positive]) / slope,
                slope,
            )
        )
    if not rows:
        return None
    expected, found, slope = np.mean(rows, axis=0).tolist()
    return {"expected": expected, "found": found, "slope": slope, "rounds": len(rows)}


def subgroups(
    predictions: Predictions, manifest: Manifest, settings: Compare, floor: float
) -> list[dict[str, Any]]:
    """Numbers for each value of the dataset's own columns (magnification, tumour type, bacteria or virus).

    A column counts when it has 2 to 12 values among the test images and is neither an id nor the published split. A
    subgroup that lacks a class (bacteria have no healthy films) is compared with all test images of that class, for
    the AUROC; of sensitivity and specificity only the one about its own images is given.
    """
    test = predictions.part("test")
    own = {*Manifest.COLUMNS, *manifest.meta.get("readings", ()), "official_split"}
    described = manifest.table.set_index("image_id").loc[test.table["image_id"]].reset_index()
    two, found = len(test.classes) == 2, []
    for column in [name for name in manifest.table.columns if name not in own]:
        values = sorted(described[column].dropna().unique().tolist())
        if not 2 <= len(values) <= 12:
            continue
        for value in values:
            inside = (described[column] == value).to_numpy()
            rows = test.table[inside]
            once, labels = rows.drop_duplicates("image_id"), test.table["label"]
            lacking = sorted(set(labels) - set(rows["label"]))
            people = once.groupby("label")["patient_id"].nunique()
            entry: dict[str, Any] = {
                **{"column": column, "value": str(value), "images": len(once)},
                "patients": int(once["patient_id"].nunique()),
                "patients_per_class": {
                    name: int(people.get(label, 0)) for label, name in enumerate(test.classes)
                },
                "few": once["patient_id"].nunique() < FEW_PATIENTS,
                "against": " and ".join(f"all of {test.classes[label]}" for label in lacking),
            }
            names = ["free.auroc", "raw.patient_recognition_rate"]
            names += ["locked.sensitivity", "locked.specificity"] if two else ["locked.accuracy"]
            cells: dict[str, Any] = {name.split(".")[1]: None for name in names}
            if two or not lacking:
                rows = test.table[inside | labels.isin(lacking).to_numpy()].reset_index(drop=True)
                for cell in (
                    intervals.evaluate(Predictions(rows, test.meta), settings, floor, names)
                    .table()
                    .values()
                ):
                    cells |= cell
            if lacking and two:
                # These would speak of the images that were added.
                theirs = "sensitivity" if test.positive_label in lacking else "specificity"
                cells |= {theirs: None, "patient_recognition_rate": None}
            found.append(entry | cells)
    return found


def per_class(predictions: Predictions, settings: Compare, floor: float) -> dict[str, Any]:
    """Each of more than two classes against the rest: {class: {point: {metric: interval}}}; {} for two classes."""
    if len(predictions.classes) == 2:
        return {}
    names = ["free.auroc", "free.average_precision"]
    proportions = ("sensitivity", "specificity", "precision", "negative_predictive_value", "f1")
    names += [f"{point}.{metric}" for point in _POINTS for metric in proportions]
    return {
        name: intervals.evaluate(predictions, settings, floor, names, one=label).table()
        for label, name in enumerate(predictions.classes)
    }
