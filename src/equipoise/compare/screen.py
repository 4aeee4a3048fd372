"""A comparison for a terminal: headline and verdicts first, in the width that there is."""

from __future__ import annotations

import math
from collections.abc import Sequence

from equipoise.compare.wording import (
    BASELINE,
    digits_of,
    has_locked,
    interval_text,
    number,
    primary_label,
    rivals,
    verdict,
)
from equipoise.core.documents import Comparison, Interval, ScenarioRow
from equipoise.core.shown import Page, Sentences, Shown, Table
from equipoise.evaluation.metrics import Endpoint

#: Longer names of scenarios are cut in the table; the sentences have them whole.
_NAME_WIDTH = 24
_AUROC = Endpoint("free", "auroc")


def page(comparison: Comparison, beside: Sequence[str] = ()) -> Page:
    """Everything a reader should see: headline, tables, a sentence for each rival, controls, notes.

    Args:
        comparison: In its whole or its short form.
        beside: Sentences that stand beside the comparison, for example what a leak would have been worth.
    """
    first, *sentences = verdict(comparison)
    parts: list[Shown] = [Sentences([first])]
    for backbone in comparison.rows:
        parts.append(table(comparison, backbone))
    parts.append(Sentences([_legend(comparison)]))
    if comparison.comparisons:
        parts.append(Sentences(sentences, mark="- "))
    remarks = [*_controls(comparison), *beside, *comparison.notes]
    if remarks:
        parts.append(Sentences(remarks, mark="- "))
    return Page(parts)


def table(comparison: Comparison, backbone: str) -> Table:
    """One line for each scenario: verdict, difference to the baseline, and main numbers."""
    shown = _shown(comparison)
    title = f"{comparison.study}, {backbone}" if backbone else comparison.study
    heads = [
        title[:_NAME_WIDTH],
        "verdict",
        "difference [low, high]",
        *shown,
    ]
    compared = rivals(comparison, backbone)
    digits = max((digits_of(rival.delta) for rival in compared), default=3)
    rows = []
    for scenario, row in comparison.rows[backbone].items():
        winner = comparison.winners.get(backbone) == scenario
        rows.append(_cells(comparison, scenario, row, winner, digits))
    numbers = range(3, len(heads))
    return Table(rows, heads, right=numbers, wrapped=[2], judged=1)


def _shown(comparison: Comparison) -> dict[str, Endpoint]:
    """Head of a column -> the endpoint below it."""
    shown = {"AUROC": _AUROC}
    primary = Endpoint.parse(comparison.primary)
    if primary != _AUROC:
        shown["primary"] = primary
    point = "locked" if has_locked(comparison) else "raw"
    if len(comparison.classes) == 2:
        shown["sens"] = Endpoint(point, "sensitivity")
        shown["spec"] = Endpoint(point, "specificity")
    else:
        shown["acc"] = Endpoint(point, "accuracy")
        shown["bal acc"] = Endpoint(point, "balanced_accuracy")
    return shown


def _cells(
    comparison: Comparison, scenario: str, row: ScenarioRow, winner: bool, digits: int
) -> list[str]:
    name = scenario
    if len(name) > _NAME_WIDTH - 2:
        name = f"{name[: _NAME_WIDTH - 3]}…"
    difference = "-"
    if row.delta:
        difference = interval_text(row.delta[comparison.primary], f"+.{digits}f")
    word = row.verdict
    if row.switched_off:
        word += " (off)"
    numbers = []
    for point, metric in _shown(comparison).values():
        numbers.append(_cell(row.point(point)[metric]))
    return [f"{name} *" if winner else name, word, difference, *numbers]


def _cell(measured: Interval) -> str:
    value = number(measured.value)
    return "-" if math.isnan(value) else f"{value:.3f}"


def _legend(comparison: Comparison) -> str:
    """What the columns of the tables are."""
    says = [f"difference to {_baseline(comparison)} in {primary_label(comparison)}"]
    if comparison.winners:
        says.insert(0, "* the winner")
    if comparison.comparisons > 1:
        level = 100 * (1 - comparison.alpha)
        says.append(f"all {comparison.comparisons} intervals are simultaneous ({level:g} %)")
    if comparison.units == "images":
        says.append("intervals are per image: there are no patient ids")
    locked = has_locked(comparison)
    if len(comparison.classes) == 2:
        says.append(f"sens, spec: at {'the locked threshold' if locked else '0.5'}")
    else:
        kind = "calibrated" if locked else "by the largest probability"
        says.append(f"acc, bal acc: accuracy and balanced accuracy, {kind}")
    rows = [row for of_backbone in comparison.rows.values() for row in of_backbone.values()]
    if any(row.switched_off for row in rows):
        says.append("(off): switched off by the search")
    return f"{'; '.join(says)}."


def _baseline(comparison: Comparison) -> str:
    """The row that the others are compared with, as the legend calls it."""
    return "the baseline" if comparison.baseline == BASELINE else comparison.baseline


def _controls(comparison: Comparison) -> list[str]:
    """What the files' metadata alone tell, where the notes do not say it."""
    lines = []
    for check in comparison.checks:
        if check.code == "EQ007" and check.answer != "failed":
            lines.append(f"EQ007: {check.answer}: {check.detail}.")
    return lines
