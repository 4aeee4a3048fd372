"""The comparison of a study: results in, verdicts, winners and what stands behind them out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from equipoise.compare import controls, wording
from equipoise.compare.evidence import Conditions, RowEvidence, evidence_of
from equipoise.compare.paired import Judged, difference, paired
from equipoise.compare.results import Result, read_results
from equipoise.compare.wording import BASELINE
from equipoise.core import parallel
from equipoise.core.config import Settings, Study
from equipoise.core.documents import (
    CheckAnswer,
    Comparison,
    Controls,
    Difference,
    IngestSummary,
    MeasuredMetric,
    ScenarioRow,
    SplitSummary,
)
from equipoise.core.errors import ConfigError
from equipoise.core.files import digest_of
from equipoise.core.records import Manifest, Splits
from equipoise.evaluation import calibration, metrics
from equipoise.evaluation.metrics import Endpoint
from equipoise.scenario.matrix import Inputs
from equipoise.split import checks

#: Differences shown beside the primary one.
_SECONDARY = (
    Endpoint("free", "auroc"),
    Endpoint("free", "average_precision"),
    Endpoint("raw", "sensitivity"),
    Endpoint("raw", "specificity"),
    Endpoint("raw", "balanced_accuracy"),
    Endpoint("raw", "brier"),
    Endpoint("locked", "sensitivity"),
    Endpoint("locked", "specificity"),
    Endpoint("locked", "balanced_accuracy"),
    Endpoint("locked", "brier"),
)

#: What comparison.json keeps of all the numbers, beside the primary one.
_SHORT_RANKS = ("auroc", "average_precision")
_SHORT_DECISIONS = (
    "sensitivity",
    "specificity",
    "accuracy",
    "f1",
    "balanced_accuracy",
    "brier",
)

#: backbone -> scenario -> its row.
Rows = dict[str, dict[str, ScenarioRow]]

EvidenceOf = Callable[[Sequence[Result], Manifest, Conditions], Mapping[str, RowEvidence]]


class Compared(NamedTuple):
    """The comparison as evidence.json holds it, and the results that it was made from."""

    comparison: Comparison
    results: list[Result]


def run(study: Study, evidence: EvidenceOf = evidence_of) -> Compared:
    """Compare the configured scenarios of a study; write evidence.json and its short form, comparison.json.

    Args:
        study: Its name, settings and files.
        evidence: Gives what stands behind each row; it takes most of the time.

    Raises:
        ConfigError: Without the baseline, or for an unknown metric.
        DataError: When a result is missing, or was tested on other rows than the rest.
    """
    results = read_results(study)
    controlled = control(study, results)
    comparison = compare(study, results, controlled, evidence)
    comparison.write(study.reports_path / "evidence.json")
    short_form(comparison).write(study.reports_path / "comparison.json")
    # What is printed and drawn is what was written: where a metric does not exist the file says null.
    return Compared(Comparison.read(study.reports_path / "evidence.json"), results)


def control(study: Study, results: Sequence[Result]) -> Controls:
    """The controls of `controls.py`: files' metadata alone, and permuted labels on each backbone's features."""
    manifest = Manifest.read(study.manifest_path)
    splits = Splits.read(study.splits_path)
    settings = study.settings.compare
    metadata = controls.metadata_only(
        manifest, splits, settings, study.settings.tune.sensitivity_floor
    )
    first_repeat = [
        controls.sides(manifest, splits.round(repeat, fold))
        for repeat, fold in splits.rounds()
        if repeat == 0
    ]
    baselines = [result for result in results if result.is_baseline]
    permuted = {}
    for result in parallel.progress(baselines, "permuting labels", len(baselines), "backbones"):
        permuted[result.backbone] = controls.permuted_labels(
            Inputs.read(study, result.backbone, BASELINE),
            first_repeat,
            result.choices[0].settings["l2"],
            settings.permutations,
            settings.seed,
        )
    return Controls(metadata_only=metadata, permuted_labels=permuted)


def compare(
    study: Study,
    results: Sequence[Result],
    controlled: Controls,
    evidence: EvidenceOf = evidence_of,
) -> Comparison:
    """Build the comparison from results and controls: intervals, paired differences, Holm, verdicts and winners."""
    settings = study.settings
    ingest = IngestSummary.read(study.manifest_path.with_suffix(".json"))
    conditions = Conditions(
        compare=settings.compare,
        threshold=settings.threshold,
        sensitivity_floor=settings.tune.sensitivity_floor,
        units="patients" if ingest.patient_ids else "images",
    )
    primary = primary_endpoint(settings.compare.primary, results[0])
    judged = judge(results, primary, settings.compare.alpha)
    manifest = Manifest.read(study.manifest_path)
    behind = evidence(results, manifest, conditions)
    rows = build_rows(results, primary, judged, behind, settings.compare.alpha)
    objective = metrics.load_metric(settings.tune.objective)
    winners = choose_winners(rows, _sign(objective))
    comparison = describe(
        study,
        results,
        rows=rows,
        winners=winners,
        controlled=controlled,
        primary=primary,
        units=conditions.units,
        comparisons=len(judged),
    )
    return put_in_words(comparison, results, settings)


# --- rows -----------------------------------------------------------------------------------------


def primary_endpoint(name: str, result: Result) -> Endpoint:
    """The endpoint of `compare.primary`: without a threshold for ranks, at the locked threshold for all else.

    Raises:
        ConfigError: When the metric is unknown, or does not exist for these classes.
    """
    metric = metrics.load_metric(name)
    primary = Endpoint("free" if metric.kind == "rank" else "locked", name)
    if primary not in result.evaluation.draws:
        raise ConfigError(
            f"compare.primary is {name}, which does not exist for {result.predictions.classes}."
        )
    return primary


def _sign(metric: metrics.Metric) -> int:
    return 1 if metric.better == "higher" else -1


def judge(results: Sequence[Result], primary: Endpoint, alpha: float) -> dict[str, Judged]:
    """Key of every rival -> its difference to the baseline of its backbone in the primary endpoint, and the verdict."""
    evaluations = {result.key: result.evaluation for result in results}
    rivals = [result for result in results if not result.is_baseline]
    baselines = {result.key: result.baseline_key for result in rivals}
    metric = metrics.load_metric(primary.metric)
    return paired(evaluations, baselines, primary, alpha, better=_sign(metric))


def build_rows(
    results: Sequence[Result],
    primary: Endpoint,
    judged: Mapping[str, Judged],
    behind: Mapping[str, RowEvidence],
    alpha: float,
) -> Rows:
    """One row for each result: its numbers, its verdict with the reason, and what stands behind it."""
    of_key = {result.key: result for result in results}
    rows: Rows = {}
    for result in results:
        row = _measured_row(result, behind[result.key])
        if result.key in judged:
            baseline = of_key[result.baseline_key]
            row = _judged_row(row, result, baseline, primary, judged, alpha)
        of_backbone = rows.setdefault(result.backbone, {})
        of_backbone[result.scenario] = row
    return rows


def _measured_row(result: Result, behind: RowEvidence) -> ScenarioRow:
    """A row with the verdict of a baseline."""
    table = result.evaluation.table()
    row = ScenarioRow(
        inner_score=result.summary.inner_score,
        result_digest=result.summary.result_digest,
        seed_has_effect=result.summary.seed_has_effect,
        free=table["free"],
        raw=table["raw"],
        locked=table["locked"],
        verdict=BASELINE,
        reason="",
        by_fold=behind.by_fold,
        patient=behind.patient,
        subgroups=behind.subgroups,
        per_class=behind.per_class,
    )
    # What does not apply to a row is not in the file.
    if result.summary.non_overlapping:
        row = row.model_copy(update={"non_overlapping": result.summary.non_overlapping})
    if behind.mcnemar:
        row = row.model_copy(update={"mcnemar": behind.mcnemar})
    if behind.per_1000:
        row = row.model_copy(update={"per_1000": behind.per_1000})
    return row


def _judged_row(
    row: ScenarioRow,
    result: Result,
    baseline: Result,
    primary: Endpoint,
    judged: Mapping[str, Judged],
    alpha: float,
) -> ScenarioRow:
    """The row of a rival: with its verdict, the reason, and its differences to the baseline."""
    delta, verdict = judged[result.key]
    deltas = {str(primary): delta}
    for endpoint in _SECONDARY:
        if endpoint != primary and endpoint in result.evaluation.draws:
            secondary = difference(result.evaluation, baseline.evaluation, endpoint, alpha)
            deltas[str(endpoint)] = secondary.document()
    reason = wording.reason(delta, verdict, len(judged), alpha)
    return row.model_copy(update={"verdict": verdict, "reason": reason, "delta": deltas})


# --- winners --------------------------------------------------------------------------------------


class Winners(NamedTuple):
    """backbone -> its winning scenario, and the backbone whose winner is put forward."""

    by_backbone: dict[str, str]
    challenger: str


def choose_winners(rows: Rows, sign: int) -> Winners:
    """Of each backbone the baseline, unless scenarios are better: then the best inner score among those.

    Args:
        rows: Of the comparison.
        sign: 1 where a higher inner score is better, -1 where a lower one is.
    """

    def score(row: ScenarioRow) -> float:
        if row.inner_score is None:  # nothing was searched; it loses to any score
            return -np.inf
        return sign * row.inner_score

    winners = {}
    for backbone, of_backbone in rows.items():
        scores = {}
        for name, row in of_backbone.items():
            if row.verdict == "better":
                scores[name] = score(row)
        winners[backbone] = max(scores, key=scores.__getitem__, default=BASELINE)
    winning_scores = {}
    for backbone, winner in winners.items():
        winning_scores[backbone] = score(rows[backbone][winner])
    challenger = max(winning_scores, key=winning_scores.__getitem__)
    return Winners(winners, challenger)


# --- the document ---------------------------------------------------------------------------------


def describe(
    study: Study,
    results: Sequence[Result],
    rows: Rows,
    winners: Winners,
    controlled: Controls,
    primary: Endpoint,
    units: str,
    comparisons: int,
) -> Comparison:
    """The document without its words: verdict, notes and digest are empty."""
    first = results[0]
    summary = first.summary
    settings = study.settings
    splits = SplitSummary.read(study.splits_path.with_suffix(".json"))
    test = first.predictions.part("test").table
    # The results' own answers: beside those of the split they know the plans.
    answers = summary.checks + _answers(controlled)
    return Comparison(
        study=study.name,
        classes=list(first.predictions.classes),
        positive_class=summary.positive_class,
        majority_class=summary.majority_class,
        minority_classes=summary.minority_classes,
        weights={result.backbone: result.summary.weights for result in results},
        mode=summary.mode,
        test=summary.test,
        test_images=int(test["image_id"].nunique()),
        test_patients=int(test["patient_id"].nunique()),
        test_digest=first.predictions.test_digest(),
        primary=str(primary),
        sensitivity_floor=settings.tune.sensitivity_floor,
        alpha=settings.compare.alpha,
        resamples=settings.compare.resamples,
        units=units,
        comparisons=comparisons,
        seeds=int(test["seed"].nunique()),
        folds=int(test["fold"].nunique()),
        controls=controlled,
        checks=answers,
        scheme=splits.scheme,
        group_by=splits.group_by,
        rows=rows,
        winners=winners.by_backbone,
        challenger=winners.challenger,
        registrable=not _has_finding(answers, "EQ-OFFICIAL"),
        verdict="",
        notes=[],
        digest="",
    )


def _answers(controlled: Controls) -> list[CheckAnswer]:
    """What the controls say, as answers of coded checks."""
    answers = []
    for check in controls.checks_of(controlled):
        answer = CheckAnswer(
            code=check.code, name=check.name, answer=check.answer, detail=check.detail
        )
        answers.append(answer)
    return answers


def _has_finding(answers: Sequence[CheckAnswer], code: str) -> bool:
    plain: list[Mapping[str, Any]] = [answer.as_dict() for answer in answers]
    return checks.finding(plain, code)


def put_in_words(
    comparison: Comparison, results: Sequence[Result], settings: Settings
) -> Comparison:
    """The document with its verdict and notes in words, and its digest."""
    choices = {f"{result.scenario} ({result.backbone})": result.choices for result in results}
    notes = wording.notes(comparison, choices, results[0].summary.settings["tune"])
    small_val = calibration.small_val_note(
        results[0].predictions,
        settings.calibrate.min_patients,
        settings.threshold,
        settings.tune.sensitivity_floor,
    )
    if small_val:
        notes.append(small_val)
    worded = comparison.model_copy(
        update={"verdict": " ".join(wording.verdict(comparison)), "notes": notes}
    )
    return worded.model_copy(update={"digest": _digest(worded)})


def _digest(comparison: Comparison) -> str:
    """Names everything in the document but the digest itself."""
    contents = comparison.as_dict()
    del contents["digest"]
    return digest_of(contents)


# --- the short form -------------------------------------------------------------------------------


def short_form(comparison: Comparison) -> Comparison:
    """What a reader and `dvc metrics diff` need: main metrics with intervals, the primary difference, the verdicts."""
    primary = Endpoint.parse(comparison.primary)
    short_checks = [
        CheckAnswer(code=check.code, answer=check.answer, detail=check.detail)
        for check in comparison.checks
    ]
    short_rows = {
        backbone: {scenario: _short_row(row, primary) for scenario, row in rows.items()}
        for backbone, rows in comparison.rows.items()
    }
    return comparison.model_copy(update={"checks": short_checks, "rows": short_rows})


def _short_row(row: ScenarioRow, primary: Endpoint) -> ScenarioRow:
    kept = {"free": _SHORT_RANKS, "raw": _SHORT_DECISIONS, "locked": _SHORT_DECISIONS}
    kept[primary.point] = (*kept[primary.point], primary.metric)
    numbers = {}
    for point, names in kept.items():
        by_metric = row.point(point)
        numbers[point] = {
            name: _short_metric(by_metric[name]) for name in names if name in by_metric
        }
    short = ScenarioRow(
        inner_score=row.inner_score,
        result_digest=row.result_digest,
        seed_has_effect=row.seed_has_effect,
        free=numbers["free"],
        raw=numbers["raw"],
        locked=numbers["locked"],
        verdict=row.verdict,
    )
    if not row.delta:
        return short
    primary_delta = _short_difference(row.delta[str(primary)])
    return short.model_copy(update={"delta": {str(primary): primary_delta}})


def _short_metric(number: MeasuredMetric) -> MeasuredMetric:
    return MeasuredMetric(
        value=_rounded(number.value), low=_rounded(number.low), high=_rounded(number.high)
    )


def _short_difference(number: Difference) -> Difference:
    return Difference(
        value=_rounded(number.value),
        low=_rounded(number.low),
        high=_rounded(number.high),
        p_value=_rounded(number.p_value),
        p_holm=_rounded(number.p_holm),
    )


def _rounded(value: float | None) -> float | None:
    """Five digits that count."""
    return None if value is None else float(f"{value:.5g}")
