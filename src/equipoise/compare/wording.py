"""Words for the numbers of a comparison: labels, reasons, verdict, notes and the printed table."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from equipoise.core.documents import Comparison, Difference, Interval, RoundChoice, ScenarioRow
from equipoise.core.text import aligned, in_words
from equipoise.evaluation.metrics import Endpoint

BASELINE = "baseline"

#: The verdict on a remedy that is neither better nor worse than the baseline.
UNCLEAR = "no clear difference"

# --- labels ---------------------------------------------------------------------------------------

_METRIC_NAMES = {
    "auroc": "AUROC",
    "f1": "F1",
    "brier": "Brier score",
    "mcc": "MCC",
    "ece": "ECE",
    "g_mean": "G-mean",
}

#: Metrics that are read where another one reaches the floor: what is measured, and what is fixed.
_AT_A_FIXED_VALUE = {
    "specificity_at_sensitivity": ("specificity", "sensitivity"),
    "sensitivity_at_specificity": ("sensitivity", "specificity"),
}

_AT_THRESHOLD = {"free": "", "raw": " at 0.5", "locked": " at the locked threshold"}

_BY_LARGEST = {
    "free": "",
    "raw": " by the largest raw probability",
    "locked": " by the largest calibrated probability",
}


def metric_label(endpoint: Endpoint, floor: float, binary: bool = True) -> str:
    """Name a metric at an operating point, as a reader would.

    Args:
        endpoint: Operating point and metric.
        floor: The sensitivity (or specificity) at which the other one is read, 0..1.
        binary: Whether there are two classes, so that decisions depend on a threshold.

    >>> metric_label(Endpoint("free", "specificity_at_sensitivity"), 0.95)
    'specificity at 95 % sensitivity'
    """
    if endpoint.metric in _AT_A_FIXED_VALUE:
        measured, fixed = _AT_A_FIXED_VALUE[endpoint.metric]
        return f"{measured} at {100 * floor:g} % {fixed}"
    name = _METRIC_NAMES.get(endpoint.metric, endpoint.metric.replace("_", " "))
    decided = _AT_THRESHOLD if binary else _BY_LARGEST
    return name + decided[endpoint.point]


def primary_label(comparison: Comparison) -> str:
    """Name the metric behind every verdict of a comparison."""
    return metric_label(Endpoint.parse(comparison.primary), comparison.sensitivity_floor)


# --- the verdict ----------------------------------------------------------------------------------


class Rival(NamedTuple):
    """A scenario that was compared to the baseline of its backbone.

    Attributes:
        scenario: Its name.
        verdict: better, worse or `UNCLEAR`.
        reason: Why, in words; empty in the short form of a comparison.
        delta: The paired difference to the baseline in the primary metric.
    """

    scenario: str
    verdict: str
    reason: str
    delta: Difference


def rivals(comparison: Comparison, backbone: str) -> list[Rival]:
    """List the scenarios that were compared to the baseline on one backbone, in their order."""
    compared = []
    for scenario, row in comparison.rows[backbone].items():
        if row.delta:
            delta = row.delta[comparison.primary]
            compared.append(Rival(scenario, row.verdict, row.reason, delta))
    return compared


def number(value: float | None) -> float:
    """Take a number of a document as a float; NaN where it does not exist."""
    return math.nan if value is None else value


def reason(delta: Difference, verdict: str, comparisons: int, alpha: float) -> str:
    """Say why a verdict is what it is.

    Args:
        delta: The paired difference to the baseline, with p after Holm's correction.
        verdict: better, worse or `UNCLEAR`.
        comparisons: Differences that p is corrected for.
        alpha: The interval covers 1 - alpha.
    """
    interval = f"the {_level(alpha)} interval of the paired difference, {_ends(delta)},"
    p_holm = number(delta.p_holm)
    p_value = f"p = {p_holm:.3f}" if p_holm >= 0.0005 else "p < 0.001"
    plural = "s" if comparisons > 1 else ""
    after = f"after Holm over {comparisons} comparison{plural} {p_value}"
    if verdict != UNCLEAR:
        return f"{interval} excludes 0, and {after}"
    if _includes_zero(delta):
        return f"{interval} includes 0 ({after})"
    return f"{interval} excludes 0 on its own, but {after}"


def verdict(comparison: Comparison) -> list[str]:
    """Say what was found, a sentence for each backbone, and why.

    With several backbones a sentence about all of them comes first.
    """
    label = primary_label(comparison)
    sentences = []
    than = f" than the baseline in {label}"
    if len(comparison.winners) > 1 and comparison.comparisons > 0:
        sentences.append(_over_backbones(comparison.winners, label))
        than = ""  # the first sentence has said it
    for backbone in comparison.winners:
        sentences.append(_on_backbone(comparison, backbone, than))
    return sentences


def _over_backbones(winners: Mapping[str, str], label: str) -> str:
    better = []
    unclear = []
    for backbone, winner in winners.items():
        if winner == BASELINE:
            unclear.append(backbone)
        else:
            better.append(f"{winner} on {backbone}")
    if not better:
        anywhere = "either backbone" if len(winners) == 2 else f"any of {len(winners)} backbones"
        return f"No remedy is clearly better than doing nothing on {anywhere} in {label}."
    sentence = f"Better than doing nothing in {label}: {in_words(better)}"
    if unclear:
        sentence += f"; no remedy is clearly better on {in_words(unclear)}"
    return sentence + "."


def _on_backbone(comparison: Comparison, backbone: str, than: str) -> str:
    compared = rivals(comparison, backbone)
    if not compared:
        return f"{backbone}: the baseline stands alone, so nothing was compared."
    winner = comparison.winners[backbone]
    if winner == BASELINE:
        sentence = f"{backbone}: no remedy is clearly better{than}{_why_not(comparison, compared)}"
    else:
        best = next(rival for rival in compared if rival.scenario == winner)
        gain = f"{best.delta.value:+.3f}"
        sentence = f"{backbone}: {winner} is better{than} by {gain}: {best.reason}"
    others = [rival for rival in compared if rival.scenario != winner]
    sentence += _those_that_are("better", others, "also better")
    sentence += _those_that_are("worse", others, "worse")
    return sentence + "."


def _those_that_are(verdict: str, compared: Sequence[Rival], words: str) -> str:
    named = []
    for rival in compared:
        if rival.verdict == verdict:
            named.append(f"{rival.scenario} ({rival.delta.value:+.3f})")
    return f"; {words}: {', '.join(named)}" if named else ""


def _why_not(comparison: Comparison, compared: Sequence[Rival]) -> str:
    """The reason why remedies are neither better nor worse, for a sentence."""
    unclear = [rival for rival in compared if rival.verdict == UNCLEAR]
    around_zero = [rival for rival in unclear if _includes_zero(rival.delta)]
    beside_zero = [rival.scenario for rival in unclear if not _includes_zero(rival.delta)]
    why = ""
    if around_zero:
        which = f"the paired difference of {in_words([rival.scenario for rival in around_zero])}"
        if len(around_zero) == len(compared) > 1:
            which = "every paired difference"
        span = _span(around_zero)
        why += f", because the {_level(comparison.alpha)} interval of {which} includes 0 ({span})"
    if beside_zero:
        tests = f"Holm over {comparison.comparisons} comparisons"
        why += f"; that of {in_words(beside_zero)} excludes 0 only before {tests}"
    return why


def _span(compared: Sequence[Rival]) -> str:
    """The lowest and the highest end of the intervals."""
    low = min(number(rival.delta.low) for rival in compared)
    high = max(number(rival.delta.high) for rival in compared)
    within = "all within " if len(compared) > 1 else ""
    return f"{within}{low:+.3f} to {high:+.3f}"


def _includes_zero(delta: Difference) -> bool:
    return number(delta.low) <= 0 <= number(delta.high)


def _ends(interval: Interval) -> str:
    return f"{interval.low:+.3f} to {interval.high:+.3f}"


def _level(alpha: float) -> str:
    return f"{100 * (1 - alpha):g} %"


# --- notes ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """What the notes look at.

    Attributes:
        comparison: The comparison, its notes aside.
        choices: Contents of best.json by "scenario (backbone)".
        tune: The section of settings by which the results were tuned, as plain data.
    """

    comparison: Comparison
    choices: Mapping[str, Sequence[RoundChoice]]
    tune: Mapping[str, Any]

    def rows(self) -> list[tuple[str, ScenarioRow]]:
        """Scenario and row, over all backbones."""
        pairs: list[tuple[str, ScenarioRow]] = []
        for rows in self.comparison.rows.values():
            pairs.extend(rows.items())
        return pairs


def notes(
    comparison: Comparison,
    choices: Mapping[str, Sequence[RoundChoice]],
    tune: Mapping[str, Any],
) -> list[str]:
    """Say what a reader must know before believing the table.

    Args:
        comparison: The comparison, its notes aside.
        choices: Contents of best.json by "scenario (backbone)".
        tune: The section of settings by which the results were tuned, as plain data.
    """
    facts = Facts(comparison, choices, tune)
    sentences: list[str] = []
    for note in NOTES:
        sentences.extend(note(facts))
    return sentences


def roles(facts: Facts) -> Iterable[str]:
    """Which class is positive, which is the majority, which are the minority."""
    comparison = facts.comparison
    positive = ""
    if len(comparison.classes) == 2:
        positive = f"Positive class: {comparison.positive_class}. "
    minority = ", ".join(comparison.minority_classes) or "none, the classes are equal"
    yield f"{positive}Majority: {comparison.majority_class}. Minority: {minority}."


def intervals(facts: Facts) -> Iterable[str]:
    """What the intervals are made from."""
    comparison = facts.comparison
    units = comparison.units
    tested = comparison.test_patients if units == "patients" else comparison.test_images
    yield (
        f"Intervals resample the {tested} test {units} {comparison.resamples} times; test decided "
        "the choice of the winner, so its own number is optimistic."
    )


def no_patient_ids(facts: Facts) -> Iterable[str]:
    """Without patient ids the intervals are too narrow."""
    if facts.comparison.units == "images":
        yield (
            "These data carry no patient ids: intervals are per image, too narrow where images "
            "share a patient."
        )


def positive_majority(facts: Facts) -> Iterable[str]:
    """Where the positive class is the majority, re-balancing lowers sensitivity."""
    comparison = facts.comparison
    binary = len(comparison.classes) == 2
    if binary and comparison.positive_class == comparison.majority_class:
        yield (
            "The positive class is the majority: re-balancing favours the negatives and lowers "
            "sensitivity."
        )


#: Findings of checks that a reader of the table must know, in the order in which they are said.
_WARNINGS = {
    "EQ005": "too few patients to stratify",
    "EQ006": "one picture under two classes",
    "EQ007": "the files' metadata tell the classes apart, and a network may use the same shortcut",
    "EQ008": "labels permuted between patients are learned, so test is not independent of train",
    "EQ-OFFICIAL": (
        "nothing can be registered from this split, and results are also given without the "
        "shared rows"
    ),
}


def findings(facts: Facts) -> Iterable[str]:
    """What the checks found."""
    details = {}
    for check in facts.comparison.checks:
        if check.answer == "finding":
            details[check.code] = check.detail
    for code, warning in _WARNINGS.items():
        if code in details:
            yield f"{code}: {warning}: {details[code]}."


def random_weights(facts: Facts) -> Iterable[str]:
    """Random weights show the procedure only."""
    weights = facts.comparison.weights
    backbones = [backbone for backbone, origin in weights.items() if origin == "random"]
    if backbones:
        yield (
            f"The weights of {', '.join(backbones)} are random, not ImageNet's: the numbers show "
            "the procedure, not its best."
        )


def lost_resamples(facts: Facts) -> Iterable[str]:
    """Resamples in which the primary metric does not exist."""
    primary = Endpoint.parse(facts.comparison.primary)
    lost = max(row.point(primary.point)[primary.metric].degenerate for _, row in facts.rows())
    if lost:
        yield (
            f"In {lost} of {facts.comparison.resamples} resamples a class is absent from the test "
            "rows of a fold, so the primary metric does not exist there: its interval and p come "
            "from the others and are too narrow."
        )


def seed_without_effect(facts: Facts) -> Iterable[str]:
    """Scenarios that come out the same with every seed."""
    scenarios = {scenario for scenario, row in facts.rows() if row.seed_has_effect is False}
    if scenarios:
        yield (
            f"The seed has no effect on {', '.join(sorted(scenarios))}: equal numbers over seeds "
            "are not zero spread."
        )


def kept_starting_weights(facts: Facts) -> Iterable[str]:
    """Results whose fine-tuning never got better than where it started."""
    names = []
    for name, rounds in facts.choices.items():
        if {choice.kept_step for choice in rounds} == {0}:
            names.append(name)
    if names:
        yield (
            "Fine-tuning kept its starting weights, a probe of the images outside the slice, in "
            f"every round of {', '.join(names)}."
        )


def identity_calibration(facts: Facts) -> Iterable[str]:
    """Results whose probabilities stay as they are, a sentence for each reason."""
    names_by_reason: dict[str, list[str]] = {}
    for name, rounds in facts.choices.items():
        reasons = {choice.calibrator.reason for choice in rounds}
        for why in sorted(reasons - {""}):
            names_by_reason.setdefault(why, []).append(name)
    for why, names in names_by_reason.items():
        which = ", ".join(names)
        if len(names) == len(facts.choices):
            which = "every scenario"
        yield f"Calibration is the identity for {which}: {why}."


def not_identified(facts: Facts) -> Iterable[str]:
    """Remedies whose parameter the data do not tell from the published one in any round."""
    names = []
    for name, rounds in facts.choices.items():
        if name.startswith(f"{BASELINE} ("):
            continue
        if not any(choice.identified for choice in rounds):
            names.append(name)
    if names:
        yield (
            "The parameter is not identified by these data, so published settings are kept: "
            f"{', '.join(sorted(names))}."
        )


def fewer_inner_folds(facts: Facts) -> Iterable[str]:
    """A search that had to do with fewer inner folds than were asked for."""
    if facts.tune["mode"] != "probe":
        return
    wanted = facts.tune["inner_folds"]
    fewest = min(choice.inner_folds for rounds in facts.choices.values() for choice in rounds)
    if fewest < wanted:
        yield (
            f"A class has few train patients: inner folds fell from {wanted} to as few as {fewest}."
        )


#: Every note, in the order in which they are said. A note that does not apply says nothing.
NOTES: tuple[Callable[[Facts], Iterable[str]], ...] = (
    roles,
    intervals,
    no_patient_ids,
    positive_majority,
    findings,
    random_weights,
    lost_resamples,
    seed_without_effect,
    kept_starting_weights,
    identity_calibration,
    not_identified,
    fewer_inner_folds,
)


# --- the printed table ----------------------------------------------------------------------------


def table(comparison: Comparison) -> str:
    """Write the comparison as text: a table for each backbone, a line for each scenario."""
    label = primary_label(comparison)
    per_image = ""
    if comparison.units == "images":
        per_image = "; intervals are per image: there are no patient ids"
    heads = _heads(comparison)
    lines = []
    for backbone in comparison.rows:
        lines.append(
            f"{comparison.study}, {backbone} (* the winner; difference in {label}, p after Holm"
            f"{per_image})"
        )
        lines.append(aligned(_cells_of_backbone(comparison, backbone, heads)))
        lines.append("")
    return "\n".join(lines)


def _heads(comparison: Comparison) -> dict[Endpoint, str]:
    """Endpoints of the columns with what stands above them; an endpoint stands once."""
    primary = Endpoint.parse(comparison.primary)
    heads = {Endpoint("free", "auroc"): "AUROC", primary: primary_label(comparison)}
    points = {"raw": "raw", "locked": "calibrated"}
    decisions = ["accuracy", "balanced_accuracy"]
    if len(comparison.classes) == 2:
        points = {"raw": "@0.5", "locked": "locked"}
        decisions = ["sensitivity", "specificity"]
    for point, at in points.items():
        for metric in decisions:
            heads[Endpoint(point, metric)] = f"{metric.replace('_', ' ')} {at}"
    short = {}
    for endpoint, head in heads.items():
        short[endpoint] = head.replace("specificity", "spec").replace("sensitivity", "sens")
    return short


def _cells_of_backbone(
    comparison: Comparison, backbone: str, heads: Mapping[Endpoint, str]
) -> list[list[str]]:
    lines = [["scenario", *heads.values(), "difference to baseline", "verdict"]]
    for scenario, row in comparison.rows[backbone].items():
        cells = [_cell(row.point(point)[metric]) for point, metric in heads]
        difference = "-"
        if row.delta:
            delta = row.delta[comparison.primary]
            difference = f"{_cell(delta, sign='+')} p={delta.p_holm:.3f}"
        mark = " *" if comparison.winners[backbone] == scenario else ""
        lines.append([scenario, *cells, difference, row.verdict + mark])
    return lines


def _cell(interval: Interval, sign: str = "") -> str:
    """0.910 [0.874, 0.940], with a dash for a number that does not exist."""
    shown = []
    for end in (interval.value, interval.low, interval.high):
        exists = end is not None and not math.isnan(end)
        shown.append(f"{end:{sign}.3f}" if exists else "-")
    value, low, high = shown
    return f"{value} [{low}, {high}]"
