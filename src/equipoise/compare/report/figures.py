"""The figures of a comparison with their numbers, for the page and for MLflow."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from equipoise.compare.evidence import first_run
from equipoise.compare.report import curves
from equipoise.compare.report.curves import Tested
from equipoise.compare.report.drawing import (
    COLOURS,
    GREY,
    HEADING,
    INK,
    NARROW_INCHES,
    NARROW_NAME,
    PANEL_INCHES,
    WIDE_INCHES,
    WIDE_NAME,
    Drawn,
    class_colour,
    curve_colour,
    cut,
    draw_diagonal,
    legend_above,
    legend_name,
    level_text,
    narrow_svg,
    of_backbone,
    one_panel,
    stacked_panels,
    svg_of,
)
from equipoise.compare.wording import BASELINE, Rival, number, primary_label, rivals, signed
from equipoise.core.documents import Comparison
from equipoise.core.records import CALIBRATED, RAW
from equipoise.evaluation.metrics import REGISTRY, Endpoint

# --- differences to the baseline ------------------------------------------------------------------


@dataclass(frozen=True)
class Look:
    """How a verdict is drawn: colour and marker say the same."""

    colour: str
    marker: str
    words: str


#: Okabe and Ito's colours again; hollow where nothing is settled.
VERDICTS = {
    "better": Look("#009e73", ">", "green triangle to the right"),
    "worse": Look("#d55e00", "<", "orange triangle to the left"),
    "equivalent": Look("#0072b2", "s", "blue square"),
    "inconclusive": Look("#808080", "o", "hollow grey circle"),
}


class _ForestLine(NamedTuple):
    """A line of the forest plot: a rival, or the name of a backbone above its rivals."""

    name: str
    rival: Rival | None


def forest(comparison: Comparison) -> Drawn:
    """Differences to the baseline with simultaneous intervals, one line per backbone and scenario."""
    lines = _forest_lines(comparison)
    title = "Differences to the baseline"
    label = primary_label(comparison)
    rows = []
    for backbone in comparison.rows:
        for rival in rivals(comparison, backbone):
            name = of_backbone(backbone, ", ", rival.scenario)
            rows.append(_difference_row(name, rival))
    return Drawn(
        title=title,
        panels=[svg_of(_forest_wide(comparison, lines), title, _forest_caption(comparison, label))],
        caption=_forest_caption(comparison, label),
        head=["backbone, scenario", "verdict", "difference", "low end", "high end"],
        rows=rows,
        narrow=narrow_svg(_forest_narrow(comparison, lines), title),
    )


def _forest_lines(comparison: Comparison) -> list[_ForestLine]:
    lines = []
    for backbone in comparison.rows:
        if len(comparison.rows) > 1:
            lines.append(_ForestLine(backbone, None))
        for rival in rivals(comparison, backbone):
            lines.append(_ForestLine(rival.scenario, rival))
    return lines


def _forest_wide(comparison: Comparison, lines: Sequence[_ForestLine]) -> Figure:
    """Names on the left, words and numbers on the right."""
    figure, axis = one_panel(WIDE_INCHES, 0.6 + 0.185 * len(lines))
    _draw_margin(axis, comparison)
    for height, line in enumerate(lines):
        if line.rival:
            _draw_difference(axis, height, line.rival)
            _write_beside(axis, height, line.rival)
    names = [cut(line.name, WIDE_NAME) for line in lines]
    axis.set_yticks(range(len(names)), names)
    for line, tick in zip(lines, axis.get_yticklabels()):
        tick.set_fontsize(8 if line.rival else HEADING)
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(lines) - 0.4, -0.6)
    return figure


def _forest_narrow(comparison: Comparison, lines: Sequence[_ForestLine]) -> Figure:
    """Name, word and number above each interval, for a phone."""
    figure, axis = one_panel(NARROW_INCHES, 0.7 + 0.34 * len(lines))
    _draw_margin(axis, comparison)
    for height, line in enumerate(lines):
        _write_above(axis, height - 0.2 if line.rival else height + 0.1, line)
        if line.rival:
            _draw_difference(axis, height + 0.14, line.rival)
    axis.set_yticks([])
    axis.spines["left"].set_visible(False)
    axis.locator_params(axis="x", nbins=5)
    axis.set_ylim(len(lines) - 0.4, -0.7)
    return figure


def _write_above(axis: Axes, height: float, line: _ForestLine) -> None:
    """The name at the left end, verdict and number at the right one."""
    across = axis.get_yaxis_transform()
    name = cut(line.name, NARROW_NAME)
    if line.rival is None:
        axis.text(0, height, name, transform=across, fontsize=HEADING, va="center")
        return
    said = f"{line.rival.verdict} {number(line.rival.delta.value):+.4f}"
    colour = VERDICTS[line.rival.verdict].colour
    axis.text(0, height, name, transform=across, fontsize=8, va="center")
    axis.text(1, height, said, transform=across, fontsize=8, va="center", ha="right", color=colour)


def _draw_margin(axis: Axes, comparison: Comparison) -> None:
    """The margin, the line of no difference, and what stands below the axis."""
    margin = comparison.margin
    axis.axvspan(-margin, margin, color=GREY, alpha=0.18, linewidth=0)
    axis.axvline(0, color=GREY, linewidth=1, linestyle="--")
    axis.set_xlabel(_directions(comparison, primary_label(comparison)))


def _draw_difference(axis: Axes, height: float, rival: Rival) -> None:
    look = VERDICTS[rival.verdict]
    fill = "none" if rival.verdict == "inconclusive" else look.colour
    ends = [number(rival.delta.low), number(rival.delta.high)]
    axis.plot(ends, [height, height], color=look.colour, linewidth=2)
    axis.plot(
        number(rival.delta.value),
        height,
        look.marker,
        color=look.colour,
        markersize=6,
        markerfacecolor=fill,
    )


def _write_beside(axis: Axes, height: int, rival: Rival) -> None:
    """The verdict and the numbers, at the right end of a line."""
    said = f"{number(rival.delta.value):+.4f}"
    if rival.delta.low is None:
        said += ", no interval"
    else:
        said += f" ({number(rival.delta.low):+.4f} to {number(rival.delta.high):+.4f})"
    colour = VERDICTS[rival.verdict].colour
    _write_right(axis, height, rival.verdict, colour, offset=10)
    _write_right(axis, height, said, INK, offset=76)


def _write_right(axis: Axes, height: int, text: str, colour: str, offset: float) -> None:
    """Write some points right of the axes."""
    axis.annotate(
        text,
        (1, height),
        xycoords=axis.get_yaxis_transform(),
        xytext=(offset, 0),
        textcoords="offset points",
        color=colour,
        fontsize=8,
        va="center",
    )


def _directions(comparison: Comparison, label: str) -> str:
    """What stands below the axis: which side is the better one."""
    primary = Endpoint.parse(comparison.primary)
    left, right = "worse", "better"
    if REGISTRY[primary.metric].better == "lower":
        left, right = right, left
    return f"\u2190 {left} \u00b7 difference in {label} \u00b7 {right} \u2192"


def _forest_caption(comparison: Comparison, label: str) -> str:
    looks = [f"{verdict}: {look.words}" for verdict, look in VERDICTS.items()]
    together = ""
    if comparison.comparisons > 1:
        together = f"; all {comparison.comparisons} intervals cover the truth together"
    return (
        f"Difference to the baseline in {label}: estimate and simultaneous {level_text(comparison.alpha)} "
        f"interval, paired over {comparison.resamples:,} resamples of {comparison.units}{together}. "
        f"Shaded: the margin of {comparison.margin:g}, within which a difference is taken not to matter "
        f"(compare.margin). "
        f"{'; '.join(looks)}."
    )


def _difference_row(name: str, rival: Rival) -> list[str]:
    cells = [name, rival.verdict]
    for end in (rival.delta.value, rival.delta.low, rival.delta.high):
        cells.append(signed(end, digits=4) or "\u2013")
    return cells


# --- calibration ----------------------------------------------------------------------------------


def reliability(results: Sequence[Tested]) -> Drawn:
    """Observed share against predicted probability, raw and calibrated, a panel for each result.

    Below stand the histograms of each class's probabilities.
    """
    level = level_text(results[0].evaluation.alpha)
    caption = (
        "Above: in ten bins of equal numbers, the share that was observed against the mean "
        f"predicted probability; on the dotted line both agree. Bars: {level} intervals over "
        "patients. Below: how the calibrated probabilities of each class are spread. First repeat "
        "and seed; calibration errors, slopes and intercepts stand among the metrics of each "
        "scenario."
    )
    title = of_backbone(results[0].backbone, ": ", "reliability and probabilities per class")
    panels = []
    for result in results:
        figure, axes = stacked_panels(PANEL_INCHES, 4.0, stacked=2)
        _draw_reliability(axes[0], result)
        _draw_probabilities(axes[1], result)
        for axis in axes:
            legend_above(axis)
        panels.append(svg_of(figure, f"{title}, {result.scenario}", caption))
    return Drawn(title, panels, caption)


def _draw_reliability(axis: Axes, result: Tested) -> None:
    binary = curves.is_binary(result)
    for label in curves.shown(result):
        if binary:
            _draw_raw_reliability(axis, result, label)
        bins = curves.reliability(result, CALIBRATED, label)
        colour = curve_colour(label, binary)
        axis.plot(
            bins.predicted,
            bins.observed,
            "o-",
            color=colour,
            linewidth=1.2,
            markersize=3.5,
            label="calibrated" if binary else None,
        )
        axis.vlines(bins.predicted, bins.low, bins.high, color=colour, linewidth=1)
    draw_diagonal(axis)
    axis.set_ylabel("observed share")
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1.01)
    axis.set_title(result.scenario, fontsize=HEADING, loc="left", pad=16)


def _draw_raw_reliability(axis: Axes, result: Tested, label: int) -> None:
    bins = curves.reliability(result, RAW, label)
    axis.plot(
        bins.predicted,
        bins.observed,
        "o:",
        color=GREY,
        linewidth=1,
        markersize=3,
        markerfacecolor="none",
        label="raw",
    )


def _draw_probabilities(axis: Axes, result: Tested) -> None:
    """Histograms of the calibrated probabilities, one for each true class.

    Of two classes it is the probability of the positive one, of more each class's own.
    """
    edges = np.linspace(0, 1, 21)
    classes = result.predictions.classes
    binary = curves.is_binary(result)
    positive = result.predictions.positive_label
    test = first_run(result.predictions)
    probabilities = test.probabilities(CALIBRATED)
    for label, name in enumerate(classes):
        is_class = (test.table["label"] == label).to_numpy()
        prob = probabilities[is_class, positive if binary else label]
        numbers, _ = np.histogram(prob, edges)
        shares = numbers / max(len(prob), 1)
        colour = class_colour(label)
        axis.stairs(shares, edges, color=colour, linewidth=1.3, label=legend_name(name))
    of_class = classes[positive] if binary else "own class"
    axis.set_xlabel(f"probability of {of_class}")
    axis.set_ylabel("share of class")
    axis.set_xlim(0, 1)
    axis.set_ylim(0, None)


# --- decision curves ------------------------------------------------------------------------------

#: Thresholds in the table of the decision curves, as positions in `curves.DecisionCurve`:
#: 0.05, 0.10, 0.20, ...
_DECISIONS_READ_AT = [4, 9, 19, 29, 49, 69, 79, 89]


def decision(results: Sequence[Tested]) -> Drawn:
    """Net benefit against the threshold, with treating all and none; two classes only."""
    net_benefits = {}
    for result in results:
        entries = curves.counts(result.predictions, result.predictions.positive_label)
        net_benefits[result.scenario] = curves.net_benefit(entries)
    caption = (
        "Net benefit: true less false positives per image, a false one weighing t / (1 - t) at "
        "threshold t. A threshold says how many false alarms one accepts for a case found; a model "
        "is of use where its line lies above both treating all and treating none. Mean over "
        "repeats and seeds, folds pooled."
    )
    title = of_backbone(results[0].backbone, ": ", "decision curves")
    first = net_benefits[results[0].scenario]
    rows = [_net_benefit_row(name, curve.model) for name, curve in net_benefits.items()]
    rows.append(_net_benefit_row("treat all", first.treat_all))
    head = ["scenario"]
    for threshold in first.thresholds[_DECISIONS_READ_AT]:
        head.append(f"t = {threshold:.2f}")
    return Drawn(
        title=title,
        panels=[svg_of(_decision_figure(net_benefits, is_narrow=False), title, caption)],
        caption=caption,
        head=head,
        rows=rows,
        narrow=narrow_svg(_decision_figure(net_benefits, is_narrow=True), title),
    )


def _decision_figure(net_benefits: Mapping[str, curves.DecisionCurve], is_narrow: bool) -> Figure:
    width, height = (NARROW_INCHES, 4.4) if is_narrow else (WIDE_INCHES, 3.4)
    figure, axis = one_panel(width, height)
    for (name, curve), colour in zip(net_benefits.items(), itertools.cycle(COLOURS[1:])):
        is_baseline = name == BASELINE
        axis.plot(
            curve.thresholds,
            curve.model,
            color=GREY if is_baseline else colour,
            linewidth=2.2 if is_baseline else 1.3,
            label=legend_name(name),
        )
    # Treating everyone is the same for every scenario.
    everyone = curve.treat_all
    axis.plot(curve.thresholds, everyone, color=INK, linewidth=1, linestyle="--", label="treat all")
    axis.axhline(0, color=INK, linewidth=1, linestyle=":", label="treat none")
    highest = everyone[0]
    axis.set_xlim(0, 1)
    axis.set_ylim(-0.1 * highest, 1.1 * highest)
    axis.set_xlabel("threshold on the calibrated probability")
    axis.set_ylabel("net benefit per image")
    if is_narrow:
        figure.legend(frameon=False, fontsize=8, loc="outside lower center", ncols=2)
    else:
        figure.legend(frameon=False, fontsize=8, loc="outside right upper")
    return figure


def _net_benefit_row(name: str, net_benefit: np.ndarray) -> list[str]:
    cells = [name]
    for value in net_benefit[_DECISIONS_READ_AT]:
        cells.append(f"{value:.3f}")
    return cells


# --- classes before and after the split -----------------------------------------------------------


def distribution(rows: Sequence[Mapping[str, Any]], classes: Sequence[str], backbone: str) -> Drawn:
    """Images per class before the split, in each part and in each plan.

    Args:
        rows: As of `results.distribution`.
        classes: Names of the classes.
        backbone: For the title.
    """
    title = of_backbone(
        backbone, ": ", "images per class before and after the split and in each plan"
    )
    caption = "Parts and plans are those of the first round; a plan's images are its draws."
    return Drawn(
        title=title,
        panels=[svg_of(_distribution_figure(rows, classes, is_narrow=False), title, caption)],
        caption=caption,
        head=[
            "where",
            "class",
            "images",
            "patients",
            "share of images",
            "largest to smallest class",
        ],
        rows=[_distribution_row(row) for row in rows],
        narrow=narrow_svg(_distribution_figure(rows, classes, is_narrow=True), title),
    )


def _distribution_figure(
    rows: Sequence[Mapping[str, Any]], classes: Sequence[str], is_narrow: bool
) -> Figure:
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    num_classes = len(classes)
    bars_and_gap = num_classes + 0.6
    width = NARROW_INCHES if is_narrow else WIDE_INCHES
    figure, axis = one_panel(width, 0.9 + 0.15 * len(stages) * bars_and_gap)
    height = 0.8 / num_classes
    centre = (num_classes - 1) / 2
    for label, name in enumerate(classes):
        images = [row["images"] for row in rows if row["class_name"] == name]
        above_centre = (label - centre) * height
        places = np.arange(len(stages)) + above_centre
        bars = axis.barh(
            places,
            images,
            0.94 * height,
            color=class_colour(label),
            label=legend_name(name),
        )
        axis.bar_label(bars, fontsize=7.5, padding=2)
    axis.set_yticks(range(len(stages)), [cut(stage, NARROW_NAME) for stage in stages])
    axis.tick_params(axis="y", length=0)
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.set_xlabel("images, or draws of a plan")
    columns = min(num_classes, 2 if is_narrow else 4)
    figure.legend(frameon=False, fontsize=8, loc="outside upper left", ncols=columns)
    return figure


def _distribution_row(row: Mapping[str, Any]) -> list[str]:
    ratio = row["imbalance_ratio"]
    return [
        row["stage"],
        row["class_name"],
        str(row["images"]),
        str(row["patients"]),
        f"{100 * row['image_share']:.1f} %",
        f"{ratio:.2f} : 1" if ratio else "–",
    ]


# --- the search -----------------------------------------------------------------------------------


def history(
    searches: Mapping[str, pd.DataFrame], objective: str, maximise: bool, backbone: str
) -> Drawn:
    """Score of every trial in its order, and the best so far in the first round.

    Args:
        searches: Contents of trials.parquet by scenario.
        objective: Name of the inner score, in words.
        maximise: Whether a higher score is better.
        backbone: For the title.
    """
    title = of_backbone(backbone, ": ", "search history")
    states = pd.concat([trials["state"] for trials in searches.values()])
    failed = int((states == "failed").sum())
    caption = (
        f"Inner score ({objective}) of every trial, all rounds; line: the best so far in the first "
        f"round. {len(states)} trials, {failed} failed."
    )
    panels = []
    for scenario, trials in searches.items():
        figure, axis = one_panel(PANEL_INCHES, 2.1)
        _draw_trials(axis, trials[trials["state"] == "complete"], maximise)
        axis.set_title(scenario, fontsize=HEADING, loc="left")
        axis.set(xlabel="trial", ylabel="inner score")
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        panels.append(svg_of(figure, f"{title}, {scenario}", caption))
    return Drawn(title, panels, caption)


def _draw_trials(axis: Axes, trials: pd.DataFrame, maximise: bool) -> None:
    axis.plot(
        trials["trial"],
        trials["score"],
        "o",
        color=COLOURS[1],
        alpha=0.45,
        markersize=3,
        markeredgewidth=0,
    )
    rounds = trials.groupby(["repeat", "fold", "seed"], sort=True)
    _, first = next(iter(rounds))
    scores = first["score"]
    best = scores.cummax() if maximise else scores.cummin()
    axis.step(first["trial"], best, where="post", color=COLOURS[2], linewidth=1.3)
