"""Words for the numbers of a comparison: labels, reasons, the verdict, notes and the printed table."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from equipoise.core.text import _and, aligned
from equipoise.evaluation import openings

BASELINE = "baseline"


UNCLEAR = "no clear difference"


#: Findings that a reader of the table must know, whatever else is said about them.
_WARNINGS = {
    "EQ005": "too few patients to stratify: ",
    "EQ006": "one picture under two classes: ",
    "EQ007": "the files' metadata tell the classes apart, and a network may use the same shortcut: ",
    "EQ008": "labels permuted between patients are learned, so test is not independent of train: ",
    "EQ-OFFICIAL": "nothing can be registered from this split, and results are also given without the shared rows: ",
}


def metric_label(name: str, floor: float, binary: bool = True) -> str:
    """Words for `point.metric`.

    >>> metric_label("free.specificity_at_sensitivity", 0.95)
    'specificity at 95 % sensitivity'
    """
    point, metric = name.split(".")
    fixed = {
        "specificity_at_sensitivity": "sensitivity",
        "sensitivity_at_specificity": "specificity",
    }
    if metric in fixed:
        return f"{metric.split('_')[0]} at {100 * floor:g} % {fixed[metric]}"
    words = {
        "auroc": "AUROC",
        "f1": "F1",
        "brier": "Brier score",
        "mcc": "MCC",
        "ece": "ECE",
        "g_mean": "G-mean",
    }
    at = {"free": "", "raw": " at 0.5", "locked": " at the locked threshold"}
    if not binary:
        at |= {
            "raw": " by the largest raw probability",
            "locked": " by the largest calibrated probability",
        }
    return words.get(metric, metric.replace("_", " ")) + at[point]


def reason(delta: Mapping[str, Any], verdict: str, comparisons: int, alpha: float) -> str:
    """Why a verdict is what it is."""
    ends = f"{delta['low']:+.3f} to {delta['high']:+.3f}"
    level = f"the {100 * (1 - alpha):g} % interval of the paired difference, {ends},"
    p_value = f"p = {delta['p_holm']:.3f}" if delta["p_holm"] >= 0.0005 else "p < 0.001"
    after = f"after Holm over {comparisons} comparison{'s' if comparisons > 1 else ''} {p_value}"
    if verdict != UNCLEAR:
        return f"{level} excludes 0, and {after}"
    if delta["low"] <= 0 <= delta["high"]:
        return f"{level} includes 0 ({after})"
    return f"{level} excludes 0 on its own, but {after}"


def verdict(comparison: Mapping[str, Any]) -> list[str]:
    """Sentences: over all backbones where there are several, then for each what is better or worse, and why."""
    winners = comparison["winners"]
    label = metric_label(comparison["primary"], comparison["sensitivity_floor"])
    several = len(winners) > 1 and comparison["comparisons"] > 0
    said = []
    if several:
        better = [
            f"{winner} on {backbone}" for backbone, winner in winners.items() if winner != BASELINE
        ]
        rest = [backbone for backbone, winner in winners.items() if winner == BASELINE]
        where = "either backbone" if len(winners) == 2 else f"any of {len(winners)} backbones"
        text = f"No remedy is clearly better than doing nothing on {where} in {label}"
        if better:
            text = f"Better than doing nothing in {label}: {_and(better)}"
            text += f"; no remedy is clearly better on {_and(rest)}" if rest else ""
        said.append(text + ".")
    beside = "" if several else f" than the baseline in {label}"
    return said + [_of_backbone(backbone, beside, comparison) for backbone in winners]


def _of_backbone(backbone: str, beside: str, comparison: Mapping[str, Any]) -> str:
    rows, winner = comparison["rows"][backbone], comparison["winners"][backbone]
    deltas = {
        name: row["delta"][comparison["primary"]] for name, row in rows.items() if "delta" in row
    }
    if not deltas:
        return f"{backbone}: the baseline stands alone, so nothing was compared."
    if winner != BASELINE:
        text = f"{winner} is better{beside} by {deltas[winner]['value']:+.3f}: {rows[winner]['reason']}"
    else:
        unclear = {
            name: delta for name, delta in deltas.items() if rows[name]["verdict"] == UNCLEAR
        }
        text = f"no remedy is clearly better{beside}{_why_not(unclear, len(deltas), comparison)}"
    for kind, verb in (("better", "also better"), ("worse", "worse")):
        names = [name for name in deltas if rows[name]["verdict"] == kind and name != winner]
        if names:
            text += f"; {verb}: " + ", ".join(
                f"{name} ({deltas[name]['value']:+.3f})" for name in names
            )
    return f"{backbone}: {text}."


def _why_not(unclear: Mapping[str, Any], compared: int, comparison: Mapping[str, Any]) -> str:
    """The reason why remedies are neither better nor worse, for a sentence."""
    around = {name: delta for name, delta in unclear.items() if delta["low"] <= 0 <= delta["high"]}
    beside, text = [name for name in unclear if name not in around], ""
    if around:
        low, high = (
            min(delta["low"] for delta in around.values()),
            max(delta["high"] for delta in around.values()),
        )
        of = (
            "every paired difference"
            if len(around) == compared > 1
            else f"the paired difference of {_and([*around])}"
        )
        inside = (
            f"all within {low:+.3f} to {high:+.3f}"
            if len(around) > 1
            else f"{low:+.3f} to {high:+.3f}"
        )
        text = f", because the {100 * (1 - comparison['alpha']):g} % interval of {of} includes 0 ({inside})"
    if beside:
        text += f"; that of {_and(beside)} excludes 0 only before Holm over {comparison['comparisons']} comparisons"
    return text


def notes(
    comparison: Mapping[str, Any],
    choices: Mapping[str, list[dict[str, Any]]],
    tune: Mapping[str, Any],
) -> list[str]:
    """What a reader must know before believing the table.

    Args:
        comparison: Its other keys.
        choices: Contents of best.json by "scenario (backbone)".
        tune: The settings of the search.
    """
    units, classes, weights = comparison["units"], comparison["classes"], comparison["weights"]
    roles = f"Positive class: {comparison['positive_class']}. " if len(classes) == 2 else ""
    found = [
        f"{roles}Majority: {comparison['majority_class']}. "
        f"Minority: {', '.join(comparison['minority_classes']) or 'none, the classes are equal'}.",
        f"Intervals resample the {comparison[f'test_{units}']} test {units} "
        f"{comparison['resamples']} times; test decided the choice of the winner, so its own number is optimistic.",
    ]
    if units == "images":
        found.append(
            "These data carry no patient ids: intervals are per image, too narrow where images share a patient."
        )
    if len(classes) == 2 and comparison["positive_class"] == comparison["majority_class"]:
        found.append(
            "The positive class is the majority: re-balancing favours the negatives and lowers sensitivity."
        )
    answers = {
        check["code"]: check["detail"]
        for check in comparison["checks"]
        if check["answer"] == "finding"
    }
    found += [
        f"{code}: {text}{answers[code]}." for code, text in _WARNINGS.items() if code in answers
    ]
    if drawn := ", ".join(name for name, kind in weights.items() if kind == "random"):
        found.append(
            f"The weights of {drawn} are random, not ImageNet's: the numbers show the procedure, not its best."
        )
    rows = [(name, row) for own in comparison["rows"].values() for name, row in own.items()]
    point, metric = comparison["primary"].split(".")
    if lost := max(row[point][metric]["degenerate"] for _, row in rows):
        found.append(
            f"In {lost} of {comparison['resamples']} resamples a class is absent from the test rows of a fold, so the "
            f"primary metric does not exist there: its interval and p come from the others and are too narrow."
        )
    if still := ", ".join(sorted({name for name, row in rows if row["seed_has_effect"] is False})):
        found.append(
            f"The seed has no effect on {still}: equal numbers over seeds are not zero spread."
        )
    kept = [
        name
        for name, rounds in choices.items()
        if {choice.get("kept_step") for choice in rounds} == {0}
    ]
    if kept:
        text = "Fine-tuning kept its starting weights, a probe of the images outside the slice, in every round of"
        found.append(f"{text} {', '.join(kept)}.")
    plain: dict[str, list[str]] = {}
    for name, rounds in choices.items():
        for why in sorted({choice["calibrator"]["reason"] for choice in rounds} - {""}):
            plain.setdefault(why, []).append(name)
    for why, names in plain.items():
        which = "every scenario" if len(names) == len(choices) else ", ".join(names)
        found.append(f"Calibration is the identity for {which}: {why}.")
    tuned = {
        name: rounds for name, rounds in choices.items() if not name.startswith(f"{BASELINE} (")
    }
    vague = sorted(
        name
        for name, rounds in tuned.items()
        if not any(choice.get("identified") for choice in rounds)
    )
    if vague:
        found.append(
            f"The parameter is not identified by these data, so published settings are kept: {', '.join(vague)}."
        )
    fewest = min(choice["inner_folds"] for rounds in choices.values() for choice in rounds)
    if tune["mode"] == "probe" and fewest < tune["inner_folds"]:
        wanted = tune["inner_folds"]
        found.append(
            f"A class has few train patients: inner folds fell from {wanted} to as few as {fewest}."
        )
    return found


def table(comparison: Mapping[str, Any]) -> str:
    """The comparison as lines of text, one row per scenario, and how often this machine has opened the test part."""
    primary, binary = comparison["primary"], len(comparison["classes"]) == 2
    label = metric_label(primary, comparison["sensitivity_floor"])
    heads = {"free.auroc": "AUROC", primary: label}
    for point, at in (
        ("raw", "@0.5" if binary else "raw"),
        ("locked", "locked" if binary else "calibrated"),
    ):
        for metric in (
            ("sensitivity", "specificity") if binary else ("accuracy", "balanced_accuracy")
        ):
            heads[f"{point}.{metric}"] = f"{metric.replace('_', ' ')} {at}"
    short = [
        head.replace("specificity", "spec").replace("sensitivity", "sens")
        for head in heads.values()
    ]
    per = (
        "; intervals are per image: there are no patient ids"
        if comparison["units"] == "images"
        else ""
    )
    lines = []
    for backbone, rows in comparison["rows"].items():
        body = [["scenario", *short, "difference to baseline", "verdict"]]
        for scenario, row in rows.items():
            delta = row.get("delta", {}).get(primary)
            change = f"{_cell(delta, '+')} p={delta['p_holm']:.3f}" if delta else "-"
            cells = [
                _cell(row[point][metric]) for point, metric in (name.split(".") for name in heads)
            ]
            mark = " *" if comparison["winners"][backbone] == scenario else ""
            body.append([scenario, *cells, change, row["verdict"] + mark])
        lines += [
            f"{comparison['study']}, {backbone} (* the winner; difference in {label}, p after Holm{per})"
        ]
        lines += [aligned(body), ""]
    return "\n".join([*lines, openings.sentence(comparison)])


def _cell(cell: Mapping[str, Any], sign: str = "") -> str:
    value, low, high = (
        "-" if (end := cell[name]) is None or end != end else f"{end:{sign}.3f}"
        for name in ("value", "low", "high")
    )
    return f"{value} [{low}, {high}]"
