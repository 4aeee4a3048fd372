"""metrics.json: every number of a result, and digests of what it was made from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from equipoise.core.config import SCENARIO_SECTIONS
from equipoise.core.documents import (
    CheckAnswer,
    Choices,
    ClassCount,
    RowCount,
    ScenarioSummary,
    WithoutOverlap,
)
from equipoise.core.files import digest_of
from equipoise.core.records import (
    RAW,
    Predictions,
    class_table,
    minority_labels,
    probability_columns,
)
from equipoise.evaluation import draws, intervals
from equipoise.evaluation.measured import Conditions, FreshNumbers
from equipoise.scenario.matrix import Inputs
from equipoise.split import checks


def summarise(
    inputs: Inputs,
    predictions: Predictions,
    evaluation: intervals.Evaluation,
    choices: Choices,
    plan: pd.DataFrame,
    answers: Sequence[checks.Check],
) -> ScenarioSummary:
    """Put the numbers of a result together and describe what they were made from.

    Args:
        inputs: What the scenario read.
        predictions: As written.
        evaluation: Of the predictions.
        choices: Entries of best.json.
        plan: The table of plan.parquet.
        answers: Answers of the coded checks.
    """
    classes = inputs.manifest.classes
    counts = inputs.manifest.counts()
    features = inputs.store.meta
    test = _test_images(predictions)
    digests = _digests(inputs, predictions)
    settings = _settings(inputs)
    meta = predictions.meta
    result_digest = digest_of([digests, settings, choices.as_list(), meta])
    return ScenarioSummary(
        study=inputs.study.name,
        backbone=inputs.backbone,
        scenario=inputs.scenario,
        classes=list(classes),
        positive_class=inputs.manifest.positive_class,
        mode=inputs.study.settings.train.mode,
        weights=features["weights"],
        # Of the backbone, whatever came after them.
        passes=features.get("passes"),
        majority_class=classes[int(counts.argmax())],
        minority_classes=[classes[label] for label in minority_labels(counts)],
        test=_class_counts(test, classes),
        rows=_row_count(test),
        inner_score=_inner_score(choices),
        metrics=evaluation.table(),
        distribution=_distribution(inputs, plan),
        non_overlapping=_without_overlap(inputs, predictions),
        seed_has_effect=_seed_has_effect(predictions),
        checks=_check_answers(answers),
        digests=digests,
        settings=settings,
        result_digest=result_digest,
    )


#: Metrics that the last line of a scenario shows.
_SHOWN = {
    "auroc": "AUROC",
    "specificity_at_sensitivity": "specificity at {floor:g} % sensitivity",
}


def summary_text(summary: ScenarioSummary) -> str:
    """One line: what was run, and its main numbers on test."""
    numbers = []
    floor = summary.settings["tune"]["sensitivity_floor"]
    for name, title in _SHOWN.items():
        measured = summary.metrics["free"].get(name)
        # In a small test part a number may be hidden.
        if measured is not None and measured.value is not None and np.isfinite(measured.value):
            ends = f"{_end(measured.low)}, {_end(measured.high)}"
            numbers.append(f"{title.format(floor=100 * floor)} {measured.value:.3f} [{ends}]")
    what = f"{summary.scenario} on {summary.study}, {summary.backbone}"
    return f"{what}: test {', '.join(numbers)}"


def _end(value: float | None) -> str:
    """An end of an interval, a dash where there is none."""
    if value is None or not np.isfinite(value):
        return "-"
    return f"{value:.3f}"


def evaluate(inputs: Inputs, predictions: Predictions, folder: Path) -> intervals.Evaluation:
    """Compute every number of a result, and keep the resamples in its folder for whoever asks later.

    Args:
        inputs: What the scenario read.
        predictions: As written.
        folder: Of the result.
    """
    conditions = Conditions.of(inputs.study.settings, inputs.manifest)
    numbers = FreshNumbers(predictions, inputs.manifest, conditions)
    draws.write(folder, numbers)
    return numbers.images


def _evaluate(inputs: Inputs, predictions: Predictions) -> intervals.Evaluation:
    settings = inputs.study.settings
    floor = settings.tune.sensitivity_floor
    return intervals.evaluate(
        predictions,
        settings.compare,
        floor,
        cost_ratio=settings.threshold.cost_ratio,
    )


def _test_images(predictions: Predictions) -> pd.DataFrame:
    """One row per test image, whatever the number of repeats and seeds."""
    test = predictions.part("test")
    return test.table.drop_duplicates("image_id")


def _row_count(test: pd.DataFrame) -> RowCount:
    num_patients = test["patient_id"].nunique()
    return RowCount(test=len(test), patients=int(num_patients))


def _class_counts(rows: pd.DataFrame, classes: Sequence[str]) -> dict[str, ClassCount]:
    """Images, patients and share of each class among rows with `label` and `patient_id`."""
    labels = rows["label"].to_numpy()
    return class_table(labels, rows["patient_id"], classes)


def _inner_score(choices: Choices) -> float | None:
    """Mean inner score of the rounds; None when one of them had no search."""
    scores = [choice.score for choice in choices.root]
    if None in scores:
        return None
    return float(np.mean(scores))  # type: ignore[arg-type]


def _distribution(inputs: Inputs, plan: pd.DataFrame) -> dict[str, dict[str, ClassCount]]:
    """Class counts before the split, in each part of the first round, and in its plan."""
    labels = inputs.manifest.table[["image_id", "label"]]
    rows = inputs.splits.round(0, 0)
    rows = rows.merge(labels, on="image_id")
    first_seed = plan["seed"].iloc[0]
    drawn = plan
    for column, value in (("repeat", 0), ("fold", 0), ("seed", first_seed)):
        drawn = drawn[drawn[column] == value]
    classes = inputs.manifest.classes
    counts = {"all": _class_counts(rows, classes)}
    for part in inputs.splits.parts:
        in_part = rows[rows["part"] == part]
        counts[part] = _class_counts(in_part, classes)
    drawn_rows = drawn[["image_id"]].merge(rows, on="image_id")
    counts["plan"] = _class_counts(drawn_rows, classes)
    return counts


def _without_overlap(inputs: Inputs, predictions: Predictions) -> WithoutOverlap | None:
    """Numbers on the test images that share no patient or picture with train; None where all are such.

    Without the shared patients a class may be gone. Then there is nothing to measure.
    """
    test = _test_images(predictions)
    if not test["overlap"].any():
        return None
    table = predictions.table
    apart = table[~table["overlap"]].reset_index(drop=True)
    rest = Predictions(apart, predictions.meta)
    test = _test_images(rest)
    num_classes = test["label"].nunique()
    numbers = None
    if num_classes == len(rest.classes):
        numbers = _evaluate(inputs, rest).table()
    return WithoutOverlap(rows=_row_count(test), metrics=numbers)


def _seed_has_effect(predictions: Predictions) -> bool | None:
    """Whether any probability differs between seeds; None when there is one seed."""
    columns = probability_columns(RAW, predictions.classes)
    by_seed = predictions.table.groupby("seed", sort=True)
    probabilities = [rows[columns].to_numpy() for _, rows in by_seed]
    first, *others = probabilities
    if not others:
        return None
    same = [np.array_equal(first, other) for other in others]
    return not all(same)


def _check_answers(answers: Sequence[checks.Check]) -> list[CheckAnswer]:
    return [CheckAnswer(**answer.as_dict()) for answer in answers]


def _digests(inputs: Inputs, predictions: Predictions) -> dict[str, str]:
    return {
        "manifest": inputs.manifest.digest,
        "splits": inputs.splits.digest,
        "features": inputs.store.digest,
        "predictions": predictions.digest,
        "test": predictions.test_digest(),
    }


def _settings(inputs: Inputs) -> dict[str, Any]:
    """The settings that a result depends on, as kept beside it."""
    study = inputs.study
    settings = study.settings.sections("split", "embed", "augment", *SCENARIO_SECTIONS)
    settings["scenario"] = study.scenario_settings.get(inputs.scenario, {})
    return settings
