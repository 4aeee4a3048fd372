"""Predictions of several methods, whoever made them -> differences with intervals, verdicts and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from equipoise.compare import wording
from equipoise.compare.judging import (
    SECONDARY,
    Family,
    Judged,
    differences,
    judge,
    primary_endpoint,
    sign_of,
)
from equipoise.core.config import Judging
from equipoise.core.documents import (
    BASELINE,
    ClassCount,
    Comparison,
    Controls,
    Difference,
    JudgedPredictions,
    JudgedRow,
    MeasuredMetric,
    ScenarioRow,
)
from equipoise.core.errors import ConfigError, unknown_name
from equipoise.core.records import Predictions, class_table, minority_labels
from equipoise.core.text import in_words
from equipoise.evaluation import intervals, metrics
from equipoise.evaluation.intervals import Evaluation
from equipoise.evaluation.metrics import Endpoint
from equipoise.judge.foreign import Foreign, Method, read_methods

#: What is measured beside the primary endpoint and the differences; all metrics would take six times as long.
_OF_TWO = (Endpoint("free", "specificity_at_sensitivity"),)
_OF_SEVERAL = (Endpoint("raw", "accuracy"), Endpoint("locked", "accuracy"))
_NOTES = (wording.roles, wording.intervals, wording.no_patient_ids, wording.lost_resamples)
_AUROC = "auroc"
#: There are no backbones: all methods stand under this name.
_NOWHERE = ""
#: What stands where a study has its name.
_TITLE = "predictions"
_NOT_MEASURED = MeasuredMetric(value=None, low=None, high=None)
#: Controls need the images.
_NO_CONTROLS = Controls(metadata_only=_NOT_MEASURED, permuted_labels={})


@dataclass(frozen=True, eq=False)
class Tested:
    """A method with its numbers, as figures take them.

    Attributes:
        scenario: Name of the method.
        predictions: Of test.
        evaluation: Of them.
        backbone: Empty.
    """

    scenario: str
    predictions: Predictions
    evaluation: Evaluation
    backbone: str = _NOWHERE


@dataclass(frozen=True)
class JudgedMethods:
    """What `judge` found.

    Attributes:
        comparison: As `compare` writes it, with one nameless backbone, no winner, and without what needs a study.
        tested: The methods in its order.
        settings: By which they were judged.
    """

    comparison: Comparison
    tested: tuple[Tested, ...]
    settings: Judging

    def document(self) -> JudgedPredictions:
        """The same for other programs."""
        comparison = self.comparison
        return JudgedPredictions(
            headline=comparison.headline,
            baseline=comparison.baseline,
            primary=comparison.primary,
            classes=comparison.classes,
            positive_class=comparison.positive_class,
            units=comparison.units,
            test_images=comparison.test_images,
            test_patients=comparison.test_patients,
            folds=comparison.folds,
            effective_patients=comparison.effective_patients,
            margin=comparison.margin,
            alpha=comparison.alpha,
            resamples=comparison.resamples,
            seed=self.settings.compare.seed,
            sensitivity_floor=comparison.sensitivity_floor,
            rows={
                name: _judged_row(row, comparison.primary)
                for name, row in comparison.rows[_NOWHERE].items()
            },
            notes=comparison.notes,
        )


def _judged_row(row: ScenarioRow, primary: str) -> JudgedRow:
    delta = row.delta.get(primary, Difference(value=None, low=None, high=None))
    auroc = row.free[_AUROC]
    return JudgedRow(
        verdict=row.verdict,
        reason=row.reason,
        value=delta.value,
        low=delta.low,
        high=delta.high,
        p_adjusted=delta.p_adjusted,
        standard_error=delta.standard_error,
        detectable=delta.detectable,
        patients_to_settle=delta.patients_to_settle,
        auroc=auroc.value,
        auroc_low=auroc.low,
        auroc_high=auroc.high,
        metrics={"free": row.free, "raw": row.raw, "locked": row.locked},
    )


def judge_files(
    paths: Sequence[Path],
    settings: Judging,
    baseline: str | None = None,
    positive: str | None = None,
) -> JudgedMethods:
    """Judge methods by files of their predictions, as `compare` judges the scenarios of a study.

    Args:
        paths: CSV or Parquet, a file for each method or a column `method`.
        settings: Endpoint, margin, level, resamples.
        baseline: What the others are compared with; the one called baseline, or else the first, when left out.
        positive: The positive class of two.

    Raises:
        DataError: For files that cannot be used, with the rows.
        ConfigError: For an unknown baseline, class or metric.
    """
    return judge_methods(read_methods(paths, positive), settings, baseline)


def judge_methods(
    foreign: Foreign, settings: Judging, baseline: str | None = None
) -> JudgedMethods:
    """Judge methods that were tested on the same rows; the arguments are those of `judge_files`."""
    methods = _in_order(foreign.methods, settings.scenarios)
    baseline = _baseline_of([method.name for method in methods], foreign, baseline)
    has_locked = all(method.has_locked for method in methods)
    _require_threshold(settings.compare.primary, has_locked)
    tested = tuple(_tested(method, settings, has_locked) for method in methods)
    family = _family(tested, baseline, foreign.units, settings)
    bare = _described(tested, family, baseline, foreign.units, settings)
    judged = judge(family, settings.compare)
    rows = _rows(tested, family, judged, wording.terms_of(bare))
    comparison = bare.model_copy(update={"rows": {_NOWHERE: rows}})
    worded = _in_words(comparison, _notes(comparison, foreign))
    return JudgedMethods(worded, tested, settings)


def _in_order(methods: Sequence[Method], scenarios: Sequence[str]) -> list[Method]:
    """Those called like our scenarios first and in the order of `run`, in which `compare` has them.

    Simultaneous intervals are simulated, and their last digits depend on the order of rivals.
    """
    place_of = {name: place for place, name in enumerate(scenarios)}
    return sorted(methods, key=lambda method: place_of.get(method.name, len(place_of)))


def _baseline_of(names: Sequence[str], foreign: Foreign, baseline: str | None) -> str:
    if baseline is None:
        return BASELINE if BASELINE in names else foreign.methods[0].name
    if baseline not in names:
        raise unknown_name("method", baseline, names)
    return baseline


def _require_threshold(primary: str, has_locked: bool) -> None:
    if metrics.load_metric(primary).kind == "rank" or has_locked:
        return
    raise ConfigError(
        f"compare.primary is {primary}, which is taken at a locked threshold on calibrated probabilities, and not "
        "every method brings these. Judge by a metric of ranks, for example auroc."
    )


# --- the numbers ----------------------------------------------------------------------------------


def _tested(method: Method, settings: Judging, has_locked: bool) -> Tested:
    primary = settings.compare.primary
    asked = [*SECONDARY, Endpoint("free", primary), Endpoint("locked", primary)]
    asked += _OF_TWO if len(method.predictions.classes) == 2 else _OF_SEVERAL
    shown = [endpoint for endpoint in asked if has_locked or endpoint.point != "locked"]
    evaluation = intervals.evaluate(
        method.predictions,
        settings.compare,
        settings.sensitivity_floor,
        shown,
        cost_ratio=settings.cost_ratio,
    )
    return Tested(method.name, method.predictions, evaluation)


def _family(tested: Sequence[Tested], baseline: str, units: str, settings: Judging) -> Family:
    first = tested[0]
    primary = primary_endpoint(
        settings.compare.primary, first.evaluation, first.predictions.classes
    )
    counts = wording.counted(_class_counts(first), units)
    rivals = [method.scenario for method in tested if method.scenario != baseline]
    return Family(
        evaluations={method.scenario: method.evaluation for method in tested},
        baselines=dict.fromkeys(rivals, baseline),
        primary=primary,
        sign=sign_of(primary.metric),
        folds=int(first.predictions.table["fold"].nunique()),
        patients=min(counts.values()),
    )


def _class_counts(method: Tested) -> dict[str, ClassCount]:
    """Images and patients of each class, each image once."""
    images = method.predictions.table.drop_duplicates("image_id")
    labels = images["label"].to_numpy()
    return class_table(labels, images["patient_id"], method.predictions.classes)


def _rows(
    tested: Sequence[Tested], family: Family, judged: Mapping[str, Judged], terms: wording.Terms
) -> dict[str, ScenarioRow]:
    """One row for each method, in the order of the methods."""
    rows = {}
    for method in tested:
        table = method.evaluation.table()
        row = ScenarioRow(
            inner_score=None,
            result_digest="",
            seed_has_effect=None,
            free=table.get("free", {}),
            raw=table.get("raw", {}),
            locked=table.get("locked", {}),
            verdict=BASELINE,
        )
        if method.scenario in judged:
            row = _with_verdict(row, method, family, judged[method.scenario], terms)
        rows[method.scenario] = row
    return rows


def _with_verdict(
    row: ScenarioRow, method: Tested, family: Family, judged: Judged, terms: wording.Terms
) -> ScenarioRow:
    baseline = family.evaluations[family.baselines[method.scenario]]
    deltas = differences(method.evaluation, baseline, family.primary, judged.delta)
    reason = wording.reason(
        method.scenario, judged.verdict, judged.delta, terms, obstacle=judged.obstacle
    )
    return row.model_copy(update={"verdict": judged.verdict, "reason": reason, "delta": deltas})


# --- the document ---------------------------------------------------------------------------------


def _described(
    tested: Sequence[Tested], family: Family, baseline: str, units: str, settings: Judging
) -> Comparison:
    """The document without its rows and words."""
    first = tested[0]
    predictions = first.predictions
    table = predictions.table
    counts = _class_counts(first)
    images = np.array([count.images for count in counts.values()])
    return Comparison(
        study=_TITLE,
        classes=list(predictions.classes),
        positive_class=predictions.classes[predictions.positive_label],
        majority_class=predictions.classes[int(images.argmax())],
        minority_classes=[predictions.classes[label] for label in minority_labels(images)],
        weights={},
        mode=wording.PREDICTIONS,
        test=counts,
        test_images=int(table["image_id"].nunique()),
        test_patients=int(table["patient_id"].nunique()),
        test_digest=predictions.test_digest(),
        primary=str(family.primary),
        sensitivity_floor=settings.sensitivity_floor,
        alpha=settings.compare.alpha,
        resamples=settings.compare.resamples,
        units=units,
        comparisons=len(family.baselines),
        seeds=int(table["seed"].nunique()),
        folds=family.folds,
        controls=_NO_CONTROLS,
        checks=[],
        scheme="kfold" if family.folds > 1 else "holdout",
        group_by=units.removesuffix("s"),
        rows={_NOWHERE: {}},
        winners={},
        challenger=_NOWHERE,
        registrable=False,
        margin=settings.compare.margin,
        effective_patients=family.effective_patients,
        headline="",
        verdict="",
        notes=[],
        digest="",
        baseline=baseline,
    )


def _in_words(comparison: Comparison, notes: Sequence[str]) -> Comparison:
    headed = comparison.model_copy(update={"headline": wording.headline(comparison, [])})
    sentences = wording.verdict(headed)
    return headed.model_copy(update={"verdict": " ".join(sentences), "notes": [*notes]})


def _notes(comparison: Comparison, foreign: Foreign) -> list[str]:
    """What a reader must know before believing the table."""
    facts = wording.Facts(comparison, choices={}, tune={})
    notes: list[str] = []
    for note in _NOTES:
        notes.extend(note(facts))
    without = [method.name for method in foreign.methods if not method.has_locked]
    if without:
        notes.append(
            f"Without calibrated probabilities and a threshold of their own: {in_words(without)}. So decisions are "
            "shown at 0.5 (two classes) or by the largest probability alone."
        )
    return [*notes, *(f"{remark}." for remark in foreign.remarks)]
