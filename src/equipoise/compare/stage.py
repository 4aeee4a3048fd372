"""The comparison of a study: results in, verdicts, winners and what stands behind them out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from equipoise.compare import controls, tracked, wording
from equipoise.compare.evidence import RowEvidence, evidence_of
from equipoise.compare.judging import (
    Family,
    Judged,
    differences,
    judge,
    primary_endpoint,
    sign_of,
)
from equipoise.compare.results import Result, read_results
from equipoise.compare.winners import InnerGain, Rule, Winners, choose_winners, inner_gain
from equipoise.compare.wording import BASELINE
from equipoise.core import parallel
from equipoise.core.config import Settings, Study
from equipoise.core.documents import (
    CheckAnswer,
    Comparison,
    Controls,
    Difference,
    MeasuredMetric,
    ScenarioRow,
    SplitSummary,
)
from equipoise.core.files import digest_of
from equipoise.core.records import Manifest, Splits
from equipoise.evaluation import calibration
from equipoise.evaluation.measured import Conditions
from equipoise.evaluation.metrics import Endpoint
from equipoise.scenario.matrix import Inputs
from equipoise.split import checks

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

EvidenceOf = Callable[[Sequence[Result], Conditions], Mapping[str, RowEvidence]]


class Compared(NamedTuple):
    """The comparison as evidence.json holds it, and the results that it was made from."""

    comparison: Comparison
    results: list[Result]


def run(study: Study, evidence: EvidenceOf = evidence_of) -> Compared:
    """Compare the configured scenarios of a study; write evidence.json, its short form and the numbers of DVC.

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
    tracked.write(study.reports_path, comparison)
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
    """Build the comparison from results and controls: simultaneous intervals, verdicts and winners."""
    settings = study.settings
    splits = SplitSummary.read(study.splits_path.with_suffix(".json"))
    conditions = Conditions.of(settings, Manifest.read(study.manifest_path))
    primary = primary_endpoint(
        settings.compare.primary, results[0].evaluation, results[0].predictions.classes
    )
    family = family_of(results, primary, splits.scheme, conditions.units)
    behind = evidence(results, conditions)
    verdicts = Verdicts(
        primary=primary,
        judged=judge(family, settings.compare),
        terms=_terms(results[0], primary, splits.scheme, conditions),
    )
    rows = build_rows(results, verdicts, behind)
    rule = _rule(splits, family, settings)
    comparison = describe(
        study,
        results,
        splits=splits,
        rows=rows,
        winners=choose_winners(rows, rule, _inner_gains(results, rule.inner_sign)),
        controlled=controlled,
        family=family,
        units=conditions.units,
    )
    return put_in_words(comparison, results, settings)


def _rule(splits: SplitSummary, family: Family, settings: Settings) -> Rule:
    """How the winners are chosen."""
    return Rule(
        in_folds=splits.scheme == "kfold",
        primary=str(family.primary),
        primary_sign=family.sign,
        inner_sign=sign_of(settings.tune.objective),
    )


def _inner_gains(results: Sequence[Result], sign: int) -> dict[str, dict[str, InnerGain | None]]:
    """Backbone -> rival -> its gain in the inner score over the baseline."""
    of_key = {result.key: result for result in results}
    gains: dict[str, dict[str, InnerGain | None]] = {}
    for result in results:
        of_backbone = gains.setdefault(result.backbone, {})
        if not result.is_baseline:
            baseline = of_key[result.baseline_key]
            gain = inner_gain(result.choices, baseline.choices, sign)
            of_backbone[result.scenario] = gain
    return gains


# --- rows -----------------------------------------------------------------------------------------


def family_of(results: Sequence[Result], primary: Endpoint, scheme: str, units: str) -> Family:
    """All rivals, each beside the baseline of its backbone.

    Args:
        results: Rivals and baselines.
        primary: The endpoint that is judged.
        scheme: Of the split: only the folds of k-fold share training sets.
        units: patients or images, whichever are counted.
    """
    first = results[0]
    rivals = [result for result in results if not result.is_baseline]
    test = first.predictions.part("test").table
    counts = wording.counted(first.summary.test, units)
    return Family(
        evaluations={result.key: result.evaluation for result in results},
        baselines={result.key: result.baseline_key for result in rivals},
        primary=primary,
        sign=sign_of(primary.metric),
        folds=int(test["fold"].nunique()) if scheme == "kfold" else 1,
        patients=min(counts.values()),
    )


def _terms(result: Result, primary: Endpoint, scheme: str, conditions: Conditions) -> wording.Terms:
    """What the sentences of all rivals share."""
    return wording.terms(
        wording.metric_label(primary, conditions.sensitivity_floor),
        conditions.compare.margin,
        wording.trained(scheme, result.summary.mode),
        wording.counted(result.summary.test, conditions.units),
        conditions.units,
    )


@dataclass(frozen=True)
class Verdicts:
    """What was judged, and the words that all sentences share.

    Attributes:
        primary: The endpoint that was judged.
        judged: Key of a rival -> its verdict.
        terms: What the sentences share.
    """

    primary: Endpoint
    judged: Mapping[str, Judged]
    terms: wording.Terms


def build_rows(
    results: Sequence[Result], verdicts: Verdicts, behind: Mapping[str, RowEvidence]
) -> Rows:
    """One row for each result: its numbers, its verdict in a sentence, and what stands behind it."""
    of_key = {result.key: result for result in results}
    rows: Rows = {}
    for result in results:
        row = _measured_row(result, behind[result.key])
        if result.key in verdicts.judged:
            baseline = of_key[result.baseline_key]
            row = _judged_row(row, result, baseline, verdicts)
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
    row: ScenarioRow, result: Result, baseline: Result, verdicts: Verdicts
) -> ScenarioRow:
    """The row of a rival: with its verdict, the sentence, and its differences to the baseline."""
    judged = verdicts.judged[result.key]
    deltas = differences(result.evaluation, baseline.evaluation, verdicts.primary, judged.delta)
    off = [choice.switched_off for choice in result.choices]
    reason = wording.reason(
        result.scenario,
        judged.verdict,
        judged.delta,
        verdicts.terms,
        obstacle=judged.obstacle,
        switched_off=wording.switched_off(sum(off), len(off)),
    )
    update: dict[str, Any] = {"verdict": judged.verdict, "reason": reason, "delta": deltas}
    if all(off):
        update["switched_off"] = True
    return row.model_copy(update=update)


# --- the document ---------------------------------------------------------------------------------


def describe(
    study: Study,
    results: Sequence[Result],
    splits: SplitSummary,
    rows: Rows,
    winners: Winners,
    controlled: Controls,
    family: Family,
    units: str,
) -> Comparison:
    """The document without its words: headline, verdict, notes and digest are empty."""
    first = results[0]
    summary = first.summary
    settings = study.settings
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
        primary=str(family.primary),
        sensitivity_floor=settings.tune.sensitivity_floor,
        alpha=settings.compare.alpha,
        resamples=settings.compare.resamples,
        units=units,
        comparisons=len(family.baselines),
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
        margin=settings.compare.margin,
        effective_patients=family.effective_patients,
        headline="",
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
    """The document with its headline, verdict and notes in words, and its digest."""
    choices = {f"{result.scenario} ({result.backbone})": result.choices for result in results}
    tune = results[0].summary.settings["tune"]
    broken = wording.broken_promises(comparison, settings.threshold.rule)
    notes = wording.notes(comparison, choices, tune, broken)
    small_val = calibration.small_val_note(
        results[0].predictions,
        settings.calibrate.min_patients,
        settings.threshold,
        settings.tune.sensitivity_floor,
    )
    if small_val:
        notes.append(small_val)
    headed = comparison.model_copy(update={"headline": wording.headline(comparison, broken)})
    worded = headed.model_copy(
        update={"verdict": " ".join(wording.verdict(headed)), "notes": notes}
    )
    return worded.model_copy(update={"digest": _digest(worded)})


def _digest(comparison: Comparison) -> str:
    """Names everything in the document but the digest itself."""
    contents = comparison.as_dict()
    del contents["digest"]
    return digest_of(contents)


# --- the short form -------------------------------------------------------------------------------


def short_form(comparison: Comparison) -> Comparison:
    """What a reader needs: main metrics with intervals, the primary difference, the verdicts."""
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
        reason=row.reason,
    )
    if not row.delta:
        return short
    primary_delta = _short_difference(row.delta[str(primary)])
    update: dict[str, Any] = {"delta": {str(primary): primary_delta}}
    if row.switched_off:
        update["switched_off"] = True
    return short.model_copy(update=update)


def _short_metric(number: MeasuredMetric) -> MeasuredMetric:
    return MeasuredMetric(
        value=_rounded(number.value), low=_rounded(number.low), high=_rounded(number.high)
    )


def _short_difference(number: Difference) -> Difference:
    return Difference(
        value=_rounded(number.value),
        low=_rounded(number.low),
        high=_rounded(number.high),
        p_adjusted=_rounded(number.p_adjusted),
        standard_error=_rounded(number.standard_error),
        detectable=_rounded(number.detectable),
        patients_to_settle=_rounded(number.patients_to_settle),
    )


def _rounded(value: float | None) -> float | None:
    """Seven digits that count: more than are ever printed, so that both forms print alike."""
    return None if value is None else float(f"{value:.7g}")
