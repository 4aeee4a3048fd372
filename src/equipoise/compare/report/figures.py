"""Figures as SVG text with their numbers, for the page and for MLflow.

The same numbers give the same bytes.
"""

from __future__ import annotations

import io
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from equipoise.compare.evidence import first_run
from equipoise.compare.lettering import LAST_RESORT
from equipoise.compare.report import curves
from equipoise.compare.report.curves import Band, Tested
from equipoise.compare.wording import BASELINE, Rival, number, primary_label, rivals, signed
from equipoise.core.documents import Comparison, Interval
from equipoise.core.records import CALIBRATED, RAW
from equipoise.evaluation.metrics import REGISTRY, Endpoint

#: Okabe and Ito's colours: told apart by readers with colour-vision deficiency. Black is the ink of
#: the page.
_INK = "#000000"
_COLOURS = (_INK, "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
_GREY = "#8c8c8c"

#: The second one measures what the first one lacks, so that matplotlib has nothing to warn of.
_FAMILIES = ["sans-serif", LAST_RESORT]

#: Widths in inches: as wide as the page, as a phone, and as one of three panels beside each other. Each is
#: shown at about the same scale, so that letters have one size.
_WIDE_INCHES = 9.2
_NARROW_INCHES = 3.3
_PANEL_INCHES = 3.1
#: Longest names, in characters, where they stand beside a figure and in one for a phone.
_WIDE_NAME = 34
_NARROW_NAME = 26
#: Size of what heads a panel or a group of lines, in points; the rest has 8.
_HEADING = 9.5


@dataclass(frozen=True)
class Drawn:
    """A figure and what it says to those who cannot see it.

    Attributes:
        title: What it shows.
        panels: Its drawings, which stand beside each other where there is room; ink takes the colour of
            the text around it. Names in them are escaped.
        caption: How to read it.
        head: Columns of its numbers.
        rows: Its numbers, as text.
        narrow: The same for a phone; empty where the panels are narrow themselves.
    """

    title: str
    panels: list[str]
    caption: str
    head: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)
    narrow: str = ""

    @property
    def svg(self) -> str:
        """The drawing of a figure that has one."""
        return self.panels[0]


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
            name = _of_backbone(backbone, ", ", rival.scenario)
            rows.append(_difference_row(name, rival))
    return Drawn(
        title=title,
        panels=[_svg(_forest_wide(comparison, lines), title, _forest_caption(comparison, label))],
        caption=_forest_caption(comparison, label),
        head=["backbone, scenario", "verdict", "difference", "low end", "high end"],
        rows=rows,
        narrow=_narrow_svg(_forest_narrow(comparison, lines), title),
    )


def _forest_lines(comparison: Comparison) -> list[_ForestLine]:
    lines = []
    for backbone in comparison.rows:
        if len(comparison.rows) > 1:
            lines.append(_ForestLine(backbone, None))
        for rival in rivals(comparison, backbone):
            lines.append(_ForestLine(rival.scenario, rival))
    return lines


def _of_backbone(backbone: str, separator: str, what: str) -> str:
    """What something of a backbone is called; methods of anybody have none."""
    return f"{backbone}{separator}{what}" if backbone else what


def _forest_wide(comparison: Comparison, lines: Sequence[_ForestLine]) -> Figure:
    """Names on the left, words and numbers on the right."""
    figure, axis = _one_panel(_WIDE_INCHES, 0.6 + 0.185 * len(lines))
    _draw_margin(axis, comparison)
    for height, line in enumerate(lines):
        if line.rival:
            _draw_difference(axis, height, line.rival)
            _write_beside(axis, height, line.rival)
    names = [_cut(line.name, _WIDE_NAME) for line in lines]
    axis.set_yticks(range(len(names)), names)
    for line, tick in zip(lines, axis.get_yticklabels()):
        tick.set_fontsize(8 if line.rival else _HEADING)
    axis.tick_params(axis="y", length=0)
    axis.set_ylim(len(lines) - 0.4, -0.6)
    return figure


def _forest_narrow(comparison: Comparison, lines: Sequence[_ForestLine]) -> Figure:
    """Name, word and number above each interval, for a phone."""
    figure, axis = _one_panel(_NARROW_INCHES, 0.7 + 0.34 * len(lines))
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
    name = _cut(line.name, _NARROW_NAME)
    if line.rival is None:
        axis.text(0, height, name, transform=across, fontsize=_HEADING, va="center")
        return
    said = f"{line.rival.verdict} {number(line.rival.delta.value):+.4f}"
    colour = VERDICTS[line.rival.verdict].colour
    axis.text(0, height, name, transform=across, fontsize=8, va="center")
    axis.text(1, height, said, transform=across, fontsize=8, va="center", ha="right", color=colour)


def _draw_margin(axis: Axes, comparison: Comparison) -> None:
    """The margin, the line of no difference, and what stands below the axis."""
    margin = comparison.margin
    axis.axvspan(-margin, margin, color=_GREY, alpha=0.18, linewidth=0)
    axis.axvline(0, color=_GREY, linewidth=1, linestyle="--")
    axis.set_xlabel(_directions(comparison, primary_label(comparison)))


def _cut(name: str, most: int) -> str:
    """A long name, cut; the table has it whole."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


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
    _write_right(axis, height, said, _INK, offset=76)


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
        f"Difference to the baseline in {label}: estimate and simultaneous {_level(comparison.alpha)} "
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


# --- ROC and precision-recall ---------------------------------------------------------------------


@dataclass(frozen=True)
class _CurveKind:
    """How one of the two curves is drawn and read.

    Attributes:
        name: Its field in `curves.Bands`.
        title: Of the figure.
        across: What stands below the axes.
        up: What stands beside them.
        area: The endpoint that sums the curve up.
        area_words: That endpoint, for the caption.
        read: What the table gives, before the place where it is read.
        read_at: Places at which the table reads the curve, 0..1.
    """

    name: str
    title: str
    across: str
    up: str
    area: Endpoint
    area_words: str
    read: str
    read_at: tuple[float, ...]


_ROC = _CurveKind(
    name="roc",
    title="ROC curves",
    across="1 - specificity",
    up="sensitivity",
    area=Endpoint("free", "auroc"),
    area_words="area under the curve",
    read="sensitivity where 1 - specificity is",
    read_at=(0.02, 0.05, 0.1, 0.2, 0.5),
)

_PRECISION_RECALL = _CurveKind(
    name="precision_recall",
    title="Precision-recall curves",
    across="recall (sensitivity)",
    up="precision",
    area=Endpoint("free", "average_precision"),
    area_words="average precision",
    read="precision where recall is",
    read_at=(0.5, 0.8, 0.9, 0.95, 0.99),
)

#: Share of false alarms at which a ROC curve must be high, so that the corner shows it whole.
_CORNER = 0.02


class LegendEntry(NamedTuple):
    """A result in the legend of the curves, which stands beside them.

    Attributes:
        place: Of the result, by which the page finds its curves.
        name: Of the scenario.
        auroc: With its interval.
        average_precision: With its interval.
    """

    place: int
    name: str
    auroc: str
    average_precision: str


@dataclass(frozen=True)
class Overlay:
    """ROC and precision-recall curves of all results over each other, one of them in colour.

    Attributes:
        roc: The ROC curves.
        precision_recall: The precision-recall curves.
        legend: An entry for each result.
        highlighted: Place of the result in colour, until a reader chooses another.
        baseline: Name of the grey one.
    """

    roc: Drawn
    precision_recall: Drawn
    legend: list[LegendEntry]
    highlighted: int
    baseline: str


def overlay(results: Sequence[Tested], wanted: str = "", baseline: str = BASELINE) -> Overlay:
    """Draw both kinds of curves.

    Args:
        results: Of one backbone.
        wanted: Scenario in colour; where it is the baseline or none, the first rival.
        baseline: The scenario in grey.
    """
    legend = []
    for place, result in enumerate(results):
        auroc = result.evaluation.interval(_ROC.area)
        precision = result.evaluation.interval(_PRECISION_RECALL.area)
        legend.append(LegendEntry(place, result.scenario, _measured(auroc), _measured(precision)))
    return Overlay(
        roc=roc(results, wanted, baseline),
        precision_recall=precision_recall(results, wanted, baseline),
        legend=legend,
        highlighted=_highlighted(results, wanted, baseline),
        baseline=baseline,
    )


def roc(results: Sequence[Tested], wanted: str = "", baseline: str = BASELINE) -> Drawn:
    """ROC of every scenario, the baseline in grey, one with its band and operating points."""
    return _curves(results, _ROC, wanted, baseline)


def precision_recall(
    results: Sequence[Tested], wanted: str = "", baseline: str = BASELINE
) -> Drawn:
    """Precision-recall curve of every scenario, the baseline in grey, one with its band."""
    return _curves(results, _PRECISION_RECALL, wanted, baseline)


def _highlighted(results: Sequence[Tested], wanted: str, baseline: str) -> int:
    """Place of the result in colour: the wanted one, else the first rival, else the baseline."""
    names = [result.scenario for result in results]
    if wanted in names and wanted != baseline:
        return names.index(wanted)
    for place, name in enumerate(names):
        if name != baseline:
            return place
    return 0


def _curves(results: Sequence[Tested], kind: _CurveKind, wanted: str, baseline: str) -> Drawn:
    first = results[0]
    bands_of = [_bands(result, kind) for result in results]
    every_band = [band for bands in bands_of for band in bands.values()]
    corner = _fits_corner(every_band, kind)
    figure, axis = _one_panel(_PANEL_INCHES, 2.95)
    for place, (result, bands) in enumerate(zip(results, bands_of)):
        _draw_thin(axis, result, bands, place, baseline)
    rows = []
    for place, (result, bands) in enumerate(zip(results, bands_of)):
        _draw_full(axis, result, bands, place)
        if kind is _ROC:
            _draw_operating_points(axis, result, place)
        rows += _read_off(result, bands, kind)
    if kind is _ROC:
        _draw_diagonal(axis)
    _finish_curves(axis, results, kind, corner)
    head = ["scenario"]
    for height in kind.read_at:
        head.append(f"{kind.read} {height:.2f}")
    title = _of_backbone(first.backbone, ": ", kind.title)
    caption = _curve_caption(results, kind, corner, baseline)
    shown = _highlighted(results, wanted, baseline)
    svg = _svg(figure, title, caption, shown)
    return Drawn(title, [svg], caption, head, rows)


def _bands(result: Tested, kind: _CurveKind) -> dict[int, Band]:
    """The curve of each label that has one."""
    bands = {}
    for label in curves.shown(result):
        both = curves.bands(result, label)
        bands[label] = getattr(both, kind.name)
    return bands


def _is_binary(result: Tested) -> bool:
    return len(result.predictions.classes) == 2


def _fits_corner(bands: list[Band], kind: _CurveKind) -> bool:
    """Good models crowd into a corner: then the axes show that corner."""
    if kind is _ROC:
        lowest = min(sensitivity_at(band, _CORNER) for band in bands)
    else:
        lowest = min(band.low.min() for band in bands)
    return bool(lowest > 0.5)


def sensitivity_at(roc: Band, alarms: float) -> float:
    """Lower end of a ROC band's sensitivity at a share of false alarms (1 - specificity), 0..1."""
    return float(roc.low[_index_at(roc, alarms)])


def _index_at(band: Band, place: float) -> int:
    """Position of a place on the curve's axis; the upper one where the curve rises on the spot."""
    places = np.flatnonzero(np.isclose(band.x, place))
    return int(places[-1])


def _draw_thin(
    axis: Axes, result: Tested, bands: dict[int, Band], place: int, baseline: str
) -> None:
    """A result among the others: the baseline in grey, a rival as a thin line."""
    is_baseline = result.scenario == baseline
    for label, band in bands.items():
        is_in_colour = not is_baseline and not _is_binary(result)
        axis.plot(
            band.x,
            band.estimate,
            color=_class_colour(label) if is_in_colour else _GREY,
            linewidth=2.4 if is_baseline else 0.8,
            alpha=1 if is_baseline else 0.6,
            gid=f"thin-{place}",
        )


def _draw_full(axis: Axes, result: Tested, bands: dict[int, Band], place: int) -> None:
    """A result as a reader sees it who chose it: in colour, with its band."""
    binary = _is_binary(result)
    gid = f"full-{place}"
    for label, band in bands.items():
        colour = _curve_colour(label, binary)
        axis.fill_between(
            band.x, band.low, band.high, color=colour, alpha=0.25, linewidth=0, gid=gid
        )
        name = None if binary or place else _label(result.predictions.classes[label])
        axis.plot(band.x, band.estimate, color=colour, linewidth=1.8, label=name, gid=gid)


def _draw_operating_points(axis: Axes, result: Tested, place: int) -> None:
    """Where the two operating points lie, of two classes."""
    if not _is_binary(result):
        return
    for point, marker in (("raw", "o"), ("locked", "D")):
        if not _has_point(result, point):
            continue
        alarms = 1 - _estimate(result, Endpoint(point, "specificity"))
        sensitivity = _estimate(result, Endpoint(point, "sensitivity"))
        axis.plot(
            alarms,
            sensitivity,
            marker,
            color=_INK,
            markersize=6,
            markerfacecolor="none",
            markeredgewidth=1.4,
            clip_on=False,
            gid=f"full-{place}",
        )


def _has_point(result: Tested, point: str) -> bool:
    """Whether decisions at an operating point were measured."""
    return Endpoint(point, "specificity") in result.evaluation.draws


def _draw_diagonal(axis: Axes) -> None:
    axis.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle=":")


def _finish_curves(axis: Axes, results: Sequence[Tested], kind: _CurveKind, corner: bool) -> None:
    axis.set(xlabel=kind.across, ylabel=kind.up)
    right = 0.5 if corner and kind is _ROC else 1
    bottom = 0.5 if corner else 0
    axis.set_xlim(0, right)
    axis.set_ylim(bottom, 1.01)
    if len(results) == 1:
        area = results[0].evaluation.interval(kind.area)
        axis.set_title(f"{results[0].scenario}\n{_measured(area)}", fontsize=9)
    _legend_above(axis)


def _measured(area: Interval) -> str:
    value, low, high = number(area.value), number(area.low), number(area.high)
    if np.isnan(low):
        return f"{value:.3f} (no interval)"
    return f"{value:.3f} ({low:.3f} to {high:.3f})"


def _estimate(result: Tested, endpoint: Endpoint) -> float:
    return result.evaluation.draws[endpoint][0]


def _read_off(result: Tested, bands: dict[int, Band], kind: _CurveKind) -> list[list[str]]:
    """Write a line for each curve: its name, then its height with the band at each place."""
    rows = []
    names = curves.shown(result)
    for label, band in bands.items():
        cells = [names[label]]
        for place in kind.read_at:
            index = _index_at(band, place)
            interval = f"{band.low[index]:.3f} to {band.high[index]:.3f}"
            cells.append(f"{band.estimate[index]:.3f} ({interval})")
        rows.append(cells)
    return rows


def _curve_caption(results: Sequence[Tested], kind: _CurveKind, corner: bool, baseline: str) -> str:
    first = results[0]
    caption = (
        f"The one in colour has its band: pointwise {_level(first.evaluation.alpha)} interval from "
        f"{curves.RESAMPLES} resamples of patients; mean over repeats, folds and seeds."
    )
    if any(result.scenario == baseline for result in results):
        caption += f" Grey: {baseline}."
    if len(results) > 2:
        caption += " Thin: the others."
    if corner:
        caption += " The axes are cut."
    if not _is_binary(first):
        return caption + " Each class against the rest."
    if kind is _ROC:
        caption += " Circle: 0.5 on raw probabilities"
        caption += ", diamond: locked threshold." if _has_point(first, "locked") else "."
    predictions = first.predictions
    return f"{caption} Positive class: {predictions.classes[predictions.positive_label]}."


# --- calibration ----------------------------------------------------------------------------------


def reliability(results: Sequence[Tested]) -> Drawn:
    """Observed share against predicted probability, raw and calibrated, a panel for each result.

    Below stand the histograms of each class's probabilities.
    """
    level = _level(results[0].evaluation.alpha)
    caption = (
        "Above: in ten bins of equal numbers, the share that was observed against the mean "
        f"predicted probability; on the dotted line both agree. Bars: {level} intervals over "
        "patients. Below: how the calibrated probabilities of each class are spread. First repeat "
        "and seed; calibration errors, slopes and intercepts stand among the metrics of each "
        "scenario."
    )
    title = _of_backbone(results[0].backbone, ": ", "reliability and probabilities per class")
    panels = []
    for result in results:
        figure, axes = _panel(_PANEL_INCHES, 4.0, stacked=2)
        _draw_reliability(axes[0], result)
        _draw_probabilities(axes[1], result)
        for axis in axes:
            _legend_above(axis)
        panels.append(_svg(figure, f"{title}, {result.scenario}", caption))
    return Drawn(title, panels, caption)


def _draw_reliability(axis: Axes, result: Tested) -> None:
    binary = _is_binary(result)
    for label in curves.shown(result):
        if binary:
            _draw_raw_reliability(axis, result, label)
        bins = curves.reliability(result, CALIBRATED, label)
        colour = _curve_colour(label, binary)
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
    _draw_diagonal(axis)
    axis.set_ylabel("observed share")
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1.01)
    axis.set_title(result.scenario, fontsize=_HEADING, loc="left", pad=16)


def _draw_raw_reliability(axis: Axes, result: Tested, label: int) -> None:
    bins = curves.reliability(result, RAW, label)
    axis.plot(
        bins.predicted,
        bins.observed,
        "o:",
        color=_GREY,
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
    binary = _is_binary(result)
    positive = result.predictions.positive_label
    test = first_run(result.predictions)
    probabilities = test.probabilities(CALIBRATED)
    for label, name in enumerate(classes):
        is_class = (test.table["label"] == label).to_numpy()
        prob = probabilities[is_class, positive if binary else label]
        numbers, _ = np.histogram(prob, edges)
        shares = numbers / max(len(prob), 1)
        colour = _class_colour(label)
        axis.stairs(shares, edges, color=colour, linewidth=1.3, label=_label(name))
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
    title = _of_backbone(results[0].backbone, ": ", "decision curves")
    first = net_benefits[results[0].scenario]
    rows = [_net_benefit_row(name, curve.model) for name, curve in net_benefits.items()]
    rows.append(_net_benefit_row("treat all", first.treat_all))
    head = ["scenario"]
    for threshold in first.thresholds[_DECISIONS_READ_AT]:
        head.append(f"t = {threshold:.2f}")
    return Drawn(
        title=title,
        panels=[_svg(_decision_figure(net_benefits, is_narrow=False), title, caption)],
        caption=caption,
        head=head,
        rows=rows,
        narrow=_narrow_svg(_decision_figure(net_benefits, is_narrow=True), title),
    )


def _decision_figure(net_benefits: Mapping[str, curves.DecisionCurve], is_narrow: bool) -> Figure:
    width, height = (_NARROW_INCHES, 4.4) if is_narrow else (_WIDE_INCHES, 3.4)
    figure, axis = _one_panel(width, height)
    for (name, curve), colour in zip(net_benefits.items(), itertools.cycle(_COLOURS[1:])):
        is_baseline = name == BASELINE
        axis.plot(
            curve.thresholds,
            curve.model,
            color=_GREY if is_baseline else colour,
            linewidth=2.2 if is_baseline else 1.3,
            label=_label(name),
        )
    # Treating everyone is the same for every scenario.
    everyone = curve.treat_all
    axis.plot(
        curve.thresholds, everyone, color=_INK, linewidth=1, linestyle="--", label="treat all"
    )
    axis.axhline(0, color=_INK, linewidth=1, linestyle=":", label="treat none")
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
    title = _of_backbone(
        backbone, ": ", "images per class before and after the split and in each plan"
    )
    caption = "Parts and plans are those of the first round; a plan's images are its draws."
    return Drawn(
        title=title,
        panels=[_svg(_distribution_figure(rows, classes, is_narrow=False), title, caption)],
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
        narrow=_narrow_svg(_distribution_figure(rows, classes, is_narrow=True), title),
    )


def _distribution_figure(
    rows: Sequence[Mapping[str, Any]], classes: Sequence[str], is_narrow: bool
) -> Figure:
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    num_classes = len(classes)
    bars_and_gap = num_classes + 0.6
    width = _NARROW_INCHES if is_narrow else _WIDE_INCHES
    figure, axis = _one_panel(width, 0.9 + 0.15 * len(stages) * bars_and_gap)
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
            color=_class_colour(label),
            label=_label(name),
        )
        axis.bar_label(bars, fontsize=7.5, padding=2)
    axis.set_yticks(range(len(stages)), [_cut(stage, _NARROW_NAME) for stage in stages])
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
    title = _of_backbone(backbone, ": ", "search history")
    states = pd.concat([trials["state"] for trials in searches.values()])
    failed = int((states == "failed").sum())
    caption = (
        f"Inner score ({objective}) of every trial, all rounds; line: the best so far in the first "
        f"round. {len(states)} trials, {failed} failed."
    )
    panels = []
    for scenario, trials in searches.items():
        figure, axis = _one_panel(_PANEL_INCHES, 2.1)
        _draw_trials(axis, trials[trials["state"] == "complete"], maximise)
        axis.set_title(scenario, fontsize=_HEADING, loc="left")
        axis.set(xlabel="trial", ylabel="inner score")
        axis.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        panels.append(_svg(figure, f"{title}, {scenario}", caption))
    return Drawn(title, panels, caption)


def _draw_trials(axis: Axes, trials: pd.DataFrame, maximise: bool) -> None:
    axis.plot(
        trials["trial"],
        trials["score"],
        "o",
        color=_COLOURS[1],
        alpha=0.45,
        markersize=3,
        markeredgewidth=0,
    )
    rounds = trials.groupby(["repeat", "fold", "seed"], sort=True)
    _, first = next(iter(rounds))
    scores = first["score"]
    best = scores.cummax() if maximise else scores.cummin()
    axis.step(first["trial"], best, where="post", color=_COLOURS[2], linewidth=1.3)


# --- what every figure uses -----------------------------------------------------------------------


def _one_panel(width: float, height: float) -> tuple[Figure, Axes]:
    figure, axes = _panel(width, height)
    return figure, axes[0]


def _panel(width: float, height: float, stacked: int = 1) -> tuple[Figure, np.ndarray]:
    """Make a figure.

    Args:
        width: In inches.
        height: In inches.
        stacked: Axes above each other, 1 or 2; the lower one has a third of the height.

    Returns:
        The figure and its axes (stacked,).
    """
    matplotlib.rcParams["text.parse_math"] = False  # names are text, also with a $ in them
    matplotlib.rcParams["font.family"] = _FAMILIES
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(stacked, 1, squeeze=False, height_ratios=[2.2, 1][:stacked])
    axes = grid[:, 0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
        axis.xaxis.label.set_size(8.5)
        axis.yaxis.label.set_size(8.5)
    return figure, axes


def _class_colour(label: int) -> str:
    return _COLOURS[1 + label % 7]


def _curve_colour(label: int, binary: bool) -> str:
    """Colour of a class's curve; of two classes only one has a curve, always in the same colour."""
    return _COLOURS[1] if binary else _class_colour(label)


def _level(alpha: float) -> str:
    return f"{100 * (1 - alpha):g} %"


def _label(name: str) -> str:
    """Make sure that a name stands in the legend.

    Matplotlib leaves out names that begin with an underscore, unless something stands before it.
    """
    return f"\u200b{name}" if name.startswith("_") else name


def _legend_above(axis: Axes) -> None:
    """Put the legend above the axes, where no curve passes."""
    _, labels = axis.get_legend_handles_labels()
    if labels:
        axis.legend(
            frameon=False,
            fontsize=8,
            loc="lower right",
            bbox_to_anchor=(1, 1),
            borderaxespad=0.1,
            ncols=2,
            columnspacing=1,
            handlelength=1.4,
        )


#: An artist that the page shows or hides: one of a result's curves.
_OF_A_RESULT = re.compile(r'<g id="(thin|full)-(\d+)"')
_PATHS = re.compile(r' d="[^"]+"')


def _narrow_svg(figure: Figure, title: str) -> str:
    """The figure for a phone; the description stands at the other one."""
    return _svg(figure, f"{title}, narrow", "The same figure for a narrow page.")


def _svg(figure: Figure, title: str, caption: str, highlighted: int | None = None) -> str:
    """Write a figure as SVG with a title, a description and the colour of the text around it.

    Args:
        figure: What is drawn.
        title: Of the figure; another one for each on a page.
        caption: The description.
        highlighted: Of curves over each other: the result that is in colour until a reader chooses.
    """

    def shown_or_hidden(match: re.Match[str]) -> str:
        look, place = match.groups()
        hidden = "" if look == "thin" or int(place) == highlighted else ' visibility="hidden"'
        return f'<g class="{look}" data-curve="{place}"{hidden}'

    text = _saved(figure, salt=title)
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = _OF_A_RESULT.sub(shown_or_hidden, text)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = _PATHS.sub(_with_short_numbers, text)
    text = text.replace(_INK, "currentColor")
    name = re.sub(r"\W+", "-", title)
    opening = f'<svg role="img" aria-labelledby="t-{name}" aria-describedby="d-{name}" '
    described = f'<title id="t-{name}">{escape(title)}</title>'
    described += f'<desc id="d-{name}">{escape(caption)}</desc>'
    end_of_tag = text.index(">") + 1
    attributes = text[len("<svg ") : end_of_tag]
    drawing = text[end_of_tag:]
    return opening + attributes + described + drawing


def _with_short_numbers(match: re.Match[str]) -> str:
    """A path with two digits behind the point, a hundredth of a point: half of the file."""
    return re.sub(r"\d+\.\d{3,}", lambda number: f"{float(number[0]):.2f}", match[0])


def _saved(figure: Figure, salt: str) -> str:
    """Let matplotlib write: letters stay text, and nothing depends on the day or on chance."""
    nothing = {"Date": None, "Creator": None}
    buffer = io.StringIO()
    with matplotlib.rc_context(
        {"svg.hashsalt": salt, "svg.fonttype": "none", "font.family": _FAMILIES}
    ):
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    # The letters of any script are drawn by the fonts of the reader.
    return buffer.getvalue().replace(f", '{LAST_RESORT}'", "")
