"""Words for the numbers of a comparison: labels, reasons, headline, verdict and notes."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from equipoise.core.documents import (
    BASELINE,
    ClassCount,
    Comparison,
    Difference,
    Interval,
    RoundChoice,
    ScenarioRow,
)
from equipoise.core.text import in_words
from equipoise.evaluation.metrics import BELOW_FLOOR, REGISTRY, Endpoint

#: The mode of a comparison of predictions, of which nobody knows what made them.
PREDICTIONS = "predictions"

# --- labels ---------------------------------------------------------------------------------------

#: Metrics that are read where another one reaches the floor: what is measured, and what is fixed.
_AT_A_FIXED_VALUE = {
    "specificity_at_sensitivity": ("specificity", "sensitivity"),
    "sensitivity_at_specificity": ("sensitivity", "specificity"),
}

#: What is read off the probabilities themselves: no threshold is behind it, or one of its own.
_PROBABILITIES = {
    "free": "",
    "raw": " of raw probabilities",
    "locked": " of calibrated probabilities",
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
    if endpoint.metric == "mean_specificity_near_floor":
        lowest = max(floor - BELOW_FLOOR, 0)
        return f"mean specificity at {100 * lowest:g} to 100 % sensitivity"
    metric = REGISTRY[endpoint.metric]
    if metric.kind == "probability":
        return metric.title + _PROBABILITIES[endpoint.point]
    decided = _AT_THRESHOLD if binary else _BY_LARGEST
    return metric.title + decided[endpoint.point]


def labelled(floor: float, binary: bool) -> Callable[[str], str]:
    """`metric_label` for templates: "point.metric" -> as a reader would name it."""

    def label(endpoint: str) -> str:
        return metric_label(Endpoint.parse(endpoint), floor, binary)

    return label


def primary_label(comparison: Comparison) -> str:
    """Name the metric behind every verdict of a comparison."""
    return metric_label(Endpoint.parse(comparison.primary), comparison.sensitivity_floor)


def has_locked(comparison: Comparison) -> bool:
    """Whether there are numbers at a locked threshold."""
    rows = [row for of_backbone in comparison.rows.values() for row in of_backbone.values()]
    return all(row.locked for row in rows)


# --- the verdict ----------------------------------------------------------------------------------


#: Where half of the remedies would have to differ by more than this to be told from the baseline, the
#: data are too few to compare them.
TOO_FEW = 0.05


class Rival(NamedTuple):
    """A scenario that was compared to the baseline of its backbone.

    Attributes:
        scenario: Its name.
        verdict: better, worse, equivalent or inconclusive.
        reason: The verdict in a sentence.
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


@dataclass(frozen=True)
class Terms:
    """What the sentences of all rivals of a comparison share.

    Attributes:
        measured: What was measured, for example "AUROC of classifiers trained on data of this size".
        margin: The difference that nobody would care about.
        tested: Who was tested, for example "60 opacity and 240 clear patients".
        rarer: What there are fewest of, for example "opacity patients".
        against: What the baseline is, for example "doing nothing".
    """

    measured: str
    margin: float
    tested: str
    rarer: str
    against: str = "doing nothing"


def trained(scheme: str, mode: str) -> str:
    """What a verdict is about.

    Args:
        scheme: Of the split.
        mode: probe, finetune, or predictions, of which nobody knows what made them.

    >>> trained("kfold", "probe"), trained("official", "finetune")
    ('classifiers trained on data of this size', 'networks of this one training set')
    """
    models = {"probe": "classifiers", "finetune": "networks"}.get(mode, "models")
    if scheme == "kfold":
        return f"{models} trained on data of this size"
    return f"{models} of this one training set"


def counted(counts: Mapping[str, ClassCount], units: str) -> dict[str, int]:
    """How many patients (or images) of each class were tested, the rarest class first."""
    numbers = {}
    for name, count in counts.items():
        numbers[name] = count.patients if units == "patients" else count.images
    return dict(sorted(numbers.items(), key=lambda item: item[1]))


def terms(
    label: str,
    margin: float,
    about: str,
    counts: Mapping[str, int],
    units: str,
    baseline: str = BASELINE,
) -> Terms:
    """What all sentences share.

    Args:
        label: Name of the primary metric.
        margin: The difference that nobody would care about.
        about: What was trained, of `trained`.
        counts: Tested of each class, of `counted`.
        units: patients or images.
        baseline: What the rivals are compared with.
    """
    words = [f"{count} {name}" for name, count in counts.items()]
    rarest = next(iter(counts), "")
    return Terms(
        measured=f"{label} of {about}",
        margin=margin,
        tested=f"{in_words(words)} {units}",
        rarer=f"{rarest} {units}",
        against=against(baseline),
    )


def against(baseline: str) -> str:
    """What it is to be compared with a baseline: only our own one does nothing.

    >>> against("baseline"), against("resnet50")
    ('doing nothing', 'resnet50')
    """
    return "doing nothing" if baseline == BASELINE else baseline


_VERDICTS = ("better", "worse", "equivalent", "inconclusive")


def _verdict_words(verdict: str, against: str) -> str:
    """A verdict as it stands in a sentence."""
    if verdict in ("better", "worse"):
        return f"{verdict} than {against}"
    if verdict == "equivalent":
        return f"equivalent to {against}"
    return verdict


def reason(
    scenario: str,
    verdict: str,
    delta: Difference,
    shared: Terms,
    obstacle: str = "",
    switched_off: str = "",
) -> str:
    """Say a verdict with all that stands behind it.

    Args:
        scenario: The rival.
        verdict: better, worse, equivalent or inconclusive.
        delta: The paired difference to the baseline in the primary metric.
        shared: What all sentences of the comparison share.
        obstacle: Why there is no interval; empty where there is one.
        switched_off: In how many rounds the search switched the remedy off, in words; empty where in none.
    """
    off = f" ({switched_off})" if switched_off else ""
    if obstacle:
        return f"{scenario}{off} cannot be judged: {obstacle}."
    words = _verdict_words(verdict, shared.against)
    if verdict in ("better", "worse") and _is_inside(delta, shared.margin):
        words += ", but by less than the margin"
    sentence = f"{scenario}{off} is {words}: {shared.measured} {_differs(delta, verdict, shared)}."
    if not delta.standard_error:
        return sentence
    return f"{sentence} {_power(delta, verdict, shared)}"


def switched_off(rounds_off: int, rounds: int) -> str:
    """In how many rounds the search switched a remedy off; empty where in none.

    >>> switched_off(0, 10), switched_off(3, 10), switched_off(10, 10)
    ('', 'switched off by the search in 3 of 10 rounds', 'switched off by the search')
    """
    if not rounds_off:
        return ""
    if rounds_off == rounds:
        return "switched off by the search"
    return f"switched off by the search in {rounds_off} of {rounds} rounds"


def _differs(delta: Difference, verdict: str, shared: Terms) -> str:
    margin = f"(margin {shared.margin:g})"
    if not delta.standard_error and not delta.value:
        return f"does not differ at all {margin}"
    digits = digits_of(delta)
    at_most = "at most " if verdict == "equivalent" else ""
    return (
        f"differs by {signed(delta.value, digits)}, {at_most}from {signed(delta.low, digits)} "
        f"to {signed(delta.high, digits)} {margin}"
    )


def _power(delta: Difference, verdict: str, shared: Terms) -> str:
    """What these patients could have shown, and how many would settle a difference of the margin."""
    detectable = number(delta.detectable)
    shown = f"With these {shared.tested} a difference of {rounded_up(detectable):g} or more would be seen (80 % power)"
    wanted = f"about {rounded_up(number(delta.patients_to_settle)):,.0f} {shared.rarer}"
    if detectable <= shared.margin:
        if verdict == "inconclusive":
            return f"{shown}; this one may be none or beyond the margin."
        return f"{shown}: enough for the margin."
    if verdict in ("better", "worse"):
        return f"{shown}; to see the margin would take {wanted}."
    return f"{shown}; {wanted} would settle the question."


def _is_inside(delta: Difference, margin: float) -> bool:
    return -margin < number(delta.low) and number(delta.high) < margin


def digits_of(delta: Interval) -> int:
    """Digits behind the point that tell the ends of an interval apart."""
    width = number(delta.high) - number(delta.low)
    return 4 if 0 < width < 0.01 else 3


def rounded_up(value: float) -> float:
    """Two digits that count, never fewer than there are: 0.0173 becomes 0.018."""
    if not value > 0 or not math.isfinite(value):
        return value
    unit = 10 ** (math.floor(math.log10(value)) - 1)
    # A number of two digits stays what it is, however it is stored.
    return float(f"{math.ceil(value / unit - 1e-9) * unit:.2g}")


def verdict(comparison: Comparison) -> list[str]:
    """Say what was found: what a reader must know first, then each rival in a sentence, by backbone."""
    sentences = [comparison.headline]
    several = len(comparison.rows) > 1
    for backbone in comparison.rows:
        compared = rivals(comparison, backbone)
        if not compared:
            sentences.append(f"{backbone}: the baseline stands alone, so nothing was compared.")
        for rival in compared:
            where = f"{backbone}: " if several else ""
            sentences.append(where + rival.reason)
    return sentences


def headline(comparison: Comparison, broken: Sequence[Broken]) -> str:
    """Say what a reader must know first: whether the data suffice, what was found, which promise was broken.

    Args:
        comparison: The comparison, its words aside.
        broken: Promises of all rows that were not kept; those of winners are said here.
    """
    sentences = []
    if comparison.comparisons:
        sentences = [*_too_few(comparison), _found(comparison)]
    else:
        sentences.append("The baseline stands alone, so nothing was compared.")
    of_winners = []
    for promise in broken:
        if comparison.winners[promise.backbone] == promise.scenario:
            of_winners.append(promise)
    if of_winners:
        sentences.append(broken_words(of_winners, comparison.sensitivity_floor))
    return " ".join(sentences)


def _all_rivals(comparison: Comparison) -> list[tuple[str, Rival]]:
    pairs = []
    for backbone in comparison.rows:
        for rival in rivals(comparison, backbone):
            pairs.append((backbone, rival))
    return pairs


def _too_few(comparison: Comparison) -> Iterable[str]:
    """Where half of the remedies would have to differ by more than `TOO_FEW`, and some are inconclusive."""
    compared = [rival for _, rival in _all_rivals(comparison)]
    if all(rival.verdict != "inconclusive" for rival in compared):
        return
    detectable = [number(rival.delta.detectable) for rival in compared]
    measured = [value for value in detectable if value > 0]
    shared = terms_of(comparison)
    if not measured:
        yield f"These data are too few to compare {_kinds(comparison)}: {shared.tested} give no interval."
        return
    typical = statistics.median(measured)
    if typical > TOO_FEW:
        yield (
            f"These data are too few to compare {_kinds(comparison)}: with {shared.tested} "
            f"only a difference of {rounded_up(typical):g} or more would be seen (80 % power)."
        )


def _found(comparison: Comparison) -> str:
    """Which remedies are better, and how many got each verdict."""
    label = primary_label(comparison)
    compared = _all_rivals(comparison)
    better = []
    for backbone, rival in compared:
        if rival.verdict == "better":
            where = f" on {backbone}" if backbone else ""
            better.append(f"{rival.scenario}{where}")
    counts = _counts([rival for _, rival in compared], comparison.margin)
    baseline = against(comparison.baseline)
    sentence = f"No {_kind(comparison)} is better than {baseline} in {label}"
    if better:
        sentence = f"Better than {baseline} in {label}: {in_words(better)}"
    plural = "s" if len(compared) > 1 else ""
    return f"{sentence}; of {len(compared)} comparison{plural}: {in_words(counts)}."


def _counts(compared: Sequence[Rival], margin: float) -> list[str]:
    """How many got each verdict, and how many of those that differ do so by less than the margin."""
    counts = []
    for word in _VERDICTS:
        deltas = [rival.delta for rival in compared if rival.verdict == word]
        if not deltas:
            continue
        count = f"{len(deltas)} {word}"
        small = sum(_is_inside(delta, margin) for delta in deltas)
        if small and word in ("better", "worse"):
            of_them = "" if small == len(deltas) else f"{small} of them "
            count += f" ({of_them}by less than the margin of {margin:g})"
        counts.append(count)
    return counts


def _kind(comparison: Comparison) -> str:
    """What a rival is."""
    return "method" if comparison.mode == PREDICTIONS else "remedy"


def _kinds(comparison: Comparison) -> str:
    """What the rivals are."""
    return "methods" if comparison.mode == PREDICTIONS else "remedies"


def terms_of(comparison: Comparison) -> Terms:
    """What all sentences of a comparison share."""
    return terms(
        primary_label(comparison),
        comparison.margin,
        trained(comparison.scheme, comparison.mode),
        counted(comparison.test, comparison.units),
        comparison.units,
        comparison.baseline,
    )


# --- promises -------------------------------------------------------------------------------------


class Broken(NamedTuple):
    """A locked threshold that does not keep the sensitivity it was chosen for.

    Attributes:
        backbone: Of the row.
        scenario: Of the row.
        units: images or patients, whichever it was measured on.
        reached: The sensitivity on test with its interval.
    """

    backbone: str
    scenario: str
    units: str
    reached: Interval


def broken_promises(comparison: Comparison, rule: str) -> list[Broken]:
    """Rows whose sensitivity on test, by image or by patient, is below `sensitivity_floor`.

    Args:
        comparison: With rows.
        rule: Of the locked threshold; only `sensitivity_floor` promises anything.
    """
    if rule != "sensitivity_floor" or len(comparison.classes) != 2:
        return []
    broken = []
    for backbone, of_backbone in comparison.rows.items():
        for scenario, row in of_backbone.items():
            for units, reached in _sensitivities(row):
                # As it is printed: a shortfall that no reader sees is none.
                if round(number(reached.value), 3) < comparison.sensitivity_floor:
                    broken.append(Broken(backbone, scenario, units, reached))
    return broken


def _sensitivities(row: ScenarioRow) -> Iterable[tuple[str, Interval]]:
    """At the locked threshold: what it is measured on, and the number."""
    yield "images", row.locked["sensitivity"]
    by_patient = row.patient.get("mean")
    if by_patient and "sensitivity" in by_patient.locked:
        yield "patients", by_patient.locked["sensitivity"]


def broken_words(broken: Sequence[Broken], floor: float) -> str:
    """Say which promises were broken, with the numbers."""
    reached: dict[tuple[str, str], list[str]] = {}
    for promise in broken:
        of_row = reached.setdefault((promise.scenario, promise.backbone), [])
        of_row.append(f"{interval_text(promise.reached)} of {promise.units}")
    rows = []
    for (scenario, backbone), numbers in reached.items():
        rows.append(f"{scenario} on {backbone} finds {in_words(numbers)}")
    return (
        f"The locked threshold misses the {100 * floor:g} % sensitivity it was chosen for on test: "
        f"{'; '.join(rows)}{_by_chance(broken, floor)}."
    )


def _by_chance(broken: Sequence[Broken], floor: float) -> str:
    """How many of the misses chance may explain: those whose interval reaches what was promised."""
    reaching = sum(number(promise.reached.high) >= floor for promise in broken)
    if not reaching:
        return ""
    which = "it" if len(broken) == 1 else "all of these"
    if reaching < len(broken):
        which = f"{reaching} of these {len(broken)}"
    return f"; chance may explain {which}"


# --- numbers --------------------------------------------------------------------------------------


def fixed(value: float | None, digits: int = 3) -> str | None:
    """A number with some digits behind the point; None where it does not exist.

    >>> fixed(0.91), fixed(None)
    ('0.910', None)
    """
    return None if math.isnan(number(value)) else f"{value:.{digits}f}"


def signed(value: float | None, digits: int = 3) -> str | None:
    """A difference with its sign, where it shows one; None where it does not exist.

    >>> signed(0.0051), signed(-0.00512, digits=4), signed(-0.00001)
    ('+0.005', '-0.0051', '0.000')
    """
    if math.isnan(number(value)):
        return None
    return _without_sign_of_zero(f"{value:+.{digits}f}")


def _without_sign_of_zero(text: str) -> str:
    """A number as it is printed; what is printed as zero has no direction."""
    return text if float(text) else text.lstrip("+-")


def setting_text(value: Any) -> str:
    """A setting as a reader wants it: numbers with four digits that count, the members of a list too.

    >>> setting_text(0.123456789), setting_text([1, 0.30000000004]), setting_text("auto")
    ('0.1235', '1, 0.3', 'auto')
    """
    if isinstance(value, list | tuple):
        return ", ".join(setting_text(member) for member in value)
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value)


def interval_text(interval: Interval, form: str = ".3f") -> str:
    """0.910 [0.874, 0.940], with a dash for a number that does not exist."""
    shown = []
    for end in (interval.value, interval.low, interval.high):
        shown.append("-" if math.isnan(number(end)) else _without_sign_of_zero(f"{end:{form}}"))
    value, low, high = shown
    return f"{value} [{low}, {high}]"


# --- notes ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Facts:
    """What the notes look at.

    Attributes:
        comparison: The comparison, its notes aside.
        choices: Contents of best.json by "scenario (backbone)".
        tune: The section of settings by which the results were tuned, as plain data.
        broken: Locked thresholds that do not keep their promise.
    """

    comparison: Comparison
    choices: Mapping[str, Sequence[RoundChoice]]
    tune: Mapping[str, Any]
    broken: Sequence[Broken] = ()

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
    broken: Sequence[Broken] = (),
) -> list[str]:
    """Say what a reader must know before believing the table.

    Args:
        comparison: The comparison, its notes aside.
        choices: Contents of best.json by "scenario (backbone)".
        tune: The section of settings by which the results were tuned, as plain data.
        broken: Locked thresholds that do not keep their promise.
    """
    facts = Facts(comparison, choices, tune, broken)
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
    together = ""
    if comparison.comparisons > 1:
        together = f"; those of the {comparison.comparisons} differences are simultaneous (max-T)"
    yield f"Intervals resample the {tested:,} test {units} {comparison.resamples:,} times{together}."


def winners_claim(facts: Facts) -> Iterable[str]:
    """What a winner may claim, and how it was chosen."""
    comparison = facts.comparison
    if set(comparison.winners.values()) <= {BASELINE}:
        return
    if comparison.scheme == "kfold":
        yield "Of the better remedies the one that is better by most at least wins; that it may claim."
        return
    yield (
        "There is one test part: the inner score chose the winner, for it is better than that of doing "
        "nothing by more than one paired standard error. Test chose nothing and only reports."
    )


def broken_thresholds(facts: Facts) -> Iterable[str]:
    """Locked thresholds that do not keep their promise on test."""
    if facts.broken:
        yield broken_words(facts.broken, facts.comparison.sensitivity_floor)


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
    "EQ007": "the files' metadata tell the classes apart, so part of what a network learns may be how files were made",
    "EQ008": "labels permuted between patients are learned, so test is not independent of train",
    "EQ009": "results hang on few patients",
    "EQ-OFFICIAL": (
        "nothing can be registered from this split, and results are also given without the "
        "shared rows"
    ),
}


def findings(facts: Facts) -> Iterable[str]:
    """What the checks found."""
    details = {}
    for check in facts.comparison.checks:
        if check.answer == "failed":
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
            "rows of a fold, so the primary metric does not exist there: its intervals come from "
            "the others and are too narrow."
        )


def seed_without_effect(facts: Facts) -> Iterable[str]:
    """Scenarios that come out the same with every seed."""
    scenarios = {scenario for scenario, row in facts.rows() if row.seed_has_effect is False}
    if scenarios:
        yield (
            f"The seed has no effect on {', '.join(sorted(scenarios))}: equal numbers over seeds "
            "are not zero spread."
        )


def kept_probes(facts: Facts) -> Iterable[str]:
    """Results whose fine-tuning never got better than the probe."""
    names = []
    for name, rounds in facts.choices.items():
        if {choice.kept_step for choice in rounds} == {0}:
            names.append(name)
    if names:
        yield f"No step of fine-tuning was better than the probe, which is kept, in every round of {', '.join(names)}."


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
    if names and facts.tune["trials"] <= len(facts.tune["l2_first"]):
        yield "Only published settings were tried (tune.trials), so no parameter was searched."
    elif names:
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
    winners_claim,
    broken_thresholds,
    no_patient_ids,
    positive_majority,
    findings,
    random_weights,
    lost_resamples,
    seed_without_effect,
    kept_probes,
    identity_calibration,
    not_identified,
    fewer_inner_folds,
)
