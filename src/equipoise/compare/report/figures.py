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
from typing import Any, Literal

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from equipoise.compare.evidence import first_run
from equipoise.compare.lettering import LAST_RESORT
from equipoise.compare.report import curves
from equipoise.compare.report.curves import Band, Tested
from equipoise.compare.wording import BASELINE, Rival, number, primary_label, rivals
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

_Corner = Literal["upper left", "upper center", "center left", "lower left", "lower right"]


@dataclass(frozen=True)
class Drawn:
    """A figure and what it says to those who cannot see it.

    Attributes:
        title: What it shows.
        svg: The figure; ink takes the colour of the text around it. Names in it are escaped.
        caption: How to read it.
        head: Columns of its numbers.
        rows: Its numbers, as text.
    """

    title: str
    svg: str
    caption: str
    head: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)


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


def forest(comparison: Comparison) -> Drawn:
    """Differences to the baseline with simultaneous intervals, one line per backbone and scenario."""
    names = []
    compared = []
    for backbone in comparison.rows:
        for rival in rivals(comparison, backbone):
            names.append(_of_backbone(backbone, ", ", rival.scenario))
            compared.append(rival)
    lines = max(len(compared), 1)
    figure, axis = _one_panel(width=7.6, height=1.0 + 0.32 * lines)
    margin = comparison.margin
    axis.axvspan(-margin, margin, color=_GREY, alpha=0.18, linewidth=0)
    for height, rival in enumerate(compared):
        _draw_difference(axis, height, rival)
    axis.axvline(0, color=_GREY, linewidth=1, linestyle="--")
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(lines - 0.5, -0.5)
    label = primary_label(comparison)
    axis.set_xlabel(_directions(comparison, label))
    caption = _forest_caption(comparison, label)
    head = ["backbone, scenario", "verdict", "difference", "low end", "high end"]
    rows = [_difference_row(name, rival) for name, rival in zip(names, compared)]
    return _drawn(figure, "Differences to the baseline", caption, head, rows)


def _of_backbone(backbone: str, separator: str, what: str) -> str:
    """What something of a backbone is called; methods of anybody have none."""
    return f"{backbone}{separator}{what}" if backbone else what


def _draw_difference(axis: Axes, height: int, rival: Rival) -> None:
    value = number(rival.delta.value)
    low = number(rival.delta.low)
    high = number(rival.delta.high)
    look = VERDICTS[rival.verdict]
    fill = "none" if rival.verdict == "inconclusive" else look.colour
    axis.plot([low, high], [height, height], color=look.colour, linewidth=2)
    axis.plot(
        value,
        height,
        look.marker,
        color=look.colour,
        markersize=6,
        markerfacecolor=fill,
    )
    text = f"{rival.verdict}: {value:+.4f} ({low:+.4f} to {high:+.4f})"
    if np.isnan(low):
        text = f"{rival.verdict}: {value:+.4f}, no interval"
    beside = axis.get_yaxis_transform()
    axis.text(1.02, height, text, transform=beside, fontsize=8, va="center")


def _directions(comparison: Comparison, label: str) -> str:
    """What stands below the axis: which side is the better one."""
    primary = Endpoint.parse(comparison.primary)
    left, right = "worse", "better"
    if REGISTRY[primary.metric].better == "lower":
        left, right = right, left
    return f"\u2190 {left} \u00b7 difference to the baseline in {label} \u00b7 {right} \u2192"


def _forest_caption(comparison: Comparison, label: str) -> str:
    looks = [f"{verdict}: {look.words}" for verdict, look in VERDICTS.items()]
    return (
        f"Difference to the baseline in {label}: estimate and simultaneous {_level(comparison.alpha)} "
        f"interval, paired over {comparison.resamples} resamples of {comparison.units}; the "
        f"{comparison.comparisons} intervals hold together. Shaded: the margin of "
        f"{comparison.margin:g}, within which a difference does not matter. "
        f"{'; '.join(looks)}."
    )


def _difference_row(name: str, rival: Rival) -> list[str]:
    cells = [name, rival.verdict]
    for end in (rival.delta.value, rival.delta.low, rival.delta.high):
        cells.append("\u2013" if end is None else f"{end:+.4f}")
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
        legend: Corner that no curve passes.
    """

    name: str
    title: str
    across: str
    up: str
    area: Endpoint
    area_words: str
    read: str
    read_at: tuple[float, ...]
    legend: _Corner


_ROC = _CurveKind(
    name="roc",
    title="ROC curves",
    across="1 - specificity",
    up="sensitivity",
    area=Endpoint("free", "auroc"),
    area_words="area under the curve",
    read="sensitivity where 1 - specificity is",
    read_at=(0.02, 0.05, 0.1, 0.2, 0.5),
    legend="lower right",
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
    legend="lower left",
)

#: Share of false alarms at which a ROC curve must be high, so that the corner shows it whole.
_CORNER = 0.02


def roc(results: Sequence[Tested], baseline: str = BASELINE) -> Drawn:
    """ROC of every scenario with band and operating points, the baseline in grey behind."""
    return _curves(results, _ROC, baseline)


def precision_recall(results: Sequence[Tested], baseline: str = BASELINE) -> Drawn:
    """Precision-recall curve of every scenario with its band, the baseline in grey behind."""
    return _curves(results, _PRECISION_RECALL, baseline)


def _curves(results: Sequence[Tested], kind: _CurveKind, baseline: str) -> Drawn:
    first = results[0]
    binary = _is_binary(first)
    bands_of = {}
    every_band: list[Band] = []
    for result in results:
        bands = _bands(result, kind)
        bands_of[result.scenario] = bands
        every_band.extend(bands.values())
    corner = _fits_corner(every_band, kind)
    figure, axes = _panels(len(results), width=2.7, height=2.75)
    rows = []
    for result, (axis,) in zip(results, axes):
        if binary and baseline in bands_of and result.scenario != baseline:
            _draw_baseline(axis, bands_of[baseline], baseline)
        bands = bands_of[result.scenario]
        _draw_bands(axis, result, bands)
        if kind is _ROC:
            _draw_operating_points(axis, result)
        _finish_panel(axis, result, kind, corner)
        rows += _read_off(result, bands, kind)
    head = ["scenario"]
    for place in kind.read_at:
        head.append(f"{kind.read} {place:.2f}")
    title = _of_backbone(first.backbone, ": ", kind.title)
    caption = _curve_caption(first, kind, corner)
    return _drawn(figure, title, caption, head, rows)


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


def _draw_baseline(axis: Axes, bands: dict[int, Band], name: str) -> None:
    (band,) = bands.values()
    axis.plot(band.x, band.estimate, color=_GREY, linewidth=1.2, label=_label(name))


def _draw_bands(axis: Axes, result: Tested, bands: dict[int, Band]) -> None:
    binary = _is_binary(result)
    for label, band in bands.items():
        colour = _curve_colour(label, binary)
        name = result.scenario if binary else result.predictions.classes[label]
        axis.fill_between(band.x, band.low, band.high, color=colour, alpha=0.3, linewidth=0)
        axis.plot(band.x, band.estimate, color=colour, linewidth=1.4, label=_label(name))


def _draw_operating_points(axis: Axes, result: Tested) -> None:
    """Where the two operating points lie, of two classes, and the diagonal of chance."""
    if _is_binary(result):
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
                markersize=5,
                markerfacecolor="none",
                clip_on=False,
            )
    _draw_diagonal(axis)


def _has_point(result: Tested, point: str) -> bool:
    """Whether decisions at an operating point were measured."""
    return Endpoint(point, "specificity") in result.evaluation.draws


def _draw_diagonal(axis: Axes) -> None:
    axis.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle=":")


def _finish_panel(axis: Axes, result: Tested, kind: _CurveKind, corner: bool) -> None:
    axis.set(xlabel=kind.across, ylabel=kind.up)
    right = 0.5 if corner and kind is _ROC else 1
    bottom = 0.5 if corner else 0
    axis.set_xlim(0, right)
    axis.set_ylim(bottom, 1.01)
    area = result.evaluation.interval(kind.area)
    axis.set_title(f"{result.scenario}\n{_measured(area)}", fontsize=9)
    _legend(axis, kind.legend)


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


def _curve_caption(first: Tested, kind: _CurveKind, corner: bool) -> str:
    caption = (
        f"One panel per scenario, its {kind.area_words} with interval above. Band: pointwise "
        f"{_level(first.evaluation.alpha)} interval from {curves.RESAMPLES} resamples of patients; "
        "mean over repeats, folds and seeds."
    )
    if corner:
        caption += " The axes are cut."
    if not _is_binary(first):
        return caption + " Each class against the rest."
    predictions = first.predictions
    caption += f" Positive class: {predictions.classes[predictions.positive_label]}."
    caption += " Grey: the baseline."
    if kind is _ROC:
        caption += " Circle: 0.5 on raw probabilities"
        caption += ", diamond: locked threshold." if _has_point(first, "locked") else "."
    return caption


# --- calibration ----------------------------------------------------------------------------------


def reliability(results: Sequence[Tested]) -> Drawn:
    """Observed share against predicted probability, raw and calibrated.

    Below stand the histograms of each class's probabilities.
    """
    figure, axes = _panels(len(results), width=2.7, height=3.6, stacked=2)
    for result, (above, below) in zip(results, axes):
        _draw_reliability(above, result)
        _draw_probabilities(below, result)
    level = _level(results[0].evaluation.alpha)
    caption = (
        "Above: in ten bins of equal numbers, the share that was observed against the mean "
        f"predicted probability; on the dotted line both agree. Bars: {level} intervals over "
        "patients. Below: how the calibrated probabilities of each class are spread. First repeat "
        "and seed; calibration errors, slopes and intercepts stand among the metrics of each "
        "scenario."
    )
    title = f"{results[0].backbone}: reliability and probabilities per class"
    return _drawn(figure, title, caption)


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
    axis.set_title(result.scenario, fontsize=9)
    _legend(axis, "upper left")


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
    axis.set_xlabel(f"probability of {of_class}", fontsize=8)
    axis.set_ylabel("share of class")
    axis.set_xlim(0, 1)
    axis.set_ylim(0, None)
    _legend(axis, "upper center")


# --- decision curves ------------------------------------------------------------------------------

#: Thresholds in the table of the decision curves, as positions in `curves.DecisionCurve`:
#: 0.05, 0.10, 0.20, ...
_DECISIONS_READ_AT = [4, 9, 19, 29, 49, 69, 79, 89]


def decision(results: Sequence[Tested]) -> Drawn:
    """Net benefit against the threshold, with treating all and none; two classes only."""
    figure, axis = _one_panel(width=6.4, height=3.6)
    rows = []
    for result, colour in zip(results, itertools.cycle(_COLOURS[1:])):
        name = result.scenario
        entries = curves.counts(result.predictions, result.predictions.positive_label)
        curve = curves.net_benefit(entries)
        axis.plot(curve.thresholds, curve.model, color=colour, linewidth=1.3, label=_label(name))
        rows.append(_net_benefit_row(name, curve.model))
    thresholds, _, everyone = curve  # everyone is the same for every scenario
    axis.plot(thresholds, everyone, color=_INK, linewidth=1, linestyle="--", label="treat all")
    axis.axhline(0, color=_INK, linewidth=1, linestyle=":", label="treat none")
    rows.append(_net_benefit_row("treat all", everyone))
    highest = everyone[0]
    axis.set_xlim(0, 1)
    axis.set_ylim(-0.1 * highest, 1.1 * highest)
    axis.set_xlabel("threshold on the calibrated probability")
    axis.set_ylabel("net benefit per image")
    _legend(axis, "center left")
    caption = (
        "Net benefit: true less false positives per image, a false one weighing t / (1 - t) at "
        "threshold t. A threshold says how many false alarms one accepts for a case found; a model "
        "is of use where its line lies above both treating all and treating none. Mean over "
        "repeats and seeds, folds pooled."
    )
    head = ["scenario"]
    for threshold in thresholds[_DECISIONS_READ_AT]:
        head.append(f"t = {threshold:.2f}")
    title = f"{results[0].backbone}: decision curves"
    return _drawn(figure, title, caption, head, rows)


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
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    num_classes = len(classes)
    bars_and_gap = num_classes + 0.6
    figure, axis = _one_panel(width=6.4, height=0.9 + 0.2 * len(stages) * bars_and_gap)
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
        axis.bar_label(bars, fontsize=7, padding=2)
    axis.set_yticks(range(len(stages)), stages)
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.set_xlabel("images, or draws of a plan")
    columns = min(num_classes, 4)
    figure.legend(frameon=False, fontsize=8, loc="outside upper right", ncols=columns)
    head = ["where", "class", "images", "patients", "share of images", "largest to smallest class"]
    caption = "Parts and plans are those of the first round; a plan's images are its draws."
    title = f"{backbone}: images per class before and after the split and in each plan"
    cells = [_distribution_row(row) for row in rows]
    return _drawn(figure, title, caption, head, cells)


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
    figure, axes = _panels(len(searches), width=2.7, height=2.2)
    count = 0
    failed = 0
    for (scenario, trials), (axis,) in zip(searches.items(), axes):
        states = trials["state"]
        count += len(states)
        failed += int((states == "failed").sum())
        _draw_trials(axis, trials[states == "complete"], maximise)
        axis.set_title(scenario, fontsize=9)
        axis.set(xlabel="trial", ylabel="inner score")
    caption = (
        f"Inner score ({objective}) of every trial, all rounds; line: the best so far in the first "
        f"round. {count} trials, {failed} failed."
    )
    return _drawn(figure, f"{backbone}: search history", caption)


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
    figure, axes = _panels(1, width, height)
    return figure, axes[0, 0]


def _panels(
    count: int, width: float, height: float, columns: int = 3, stacked: int = 1
) -> tuple[Figure, np.ndarray]:
    """Make a figure with panels.

    Args:
        count: Number of panels.
        width: Of one panel, in inches.
        height: Of one panel, in inches.
        columns: Panels beside each other at most.
        stacked: Axes above each other in a panel, 1 or 2; the lower one has a third of the height.

    Returns:
        The figure and its axes (count, stacked).
    """
    matplotlib.rcParams["text.parse_math"] = False  # names are text, also with a $ in them
    matplotlib.rcParams["font.family"] = _FAMILIES
    columns = 2 if count == 4 else min(columns, count)
    lines = -(-count // columns)
    size = (width * columns, height * lines)
    figure = Figure(figsize=size, layout="constrained")
    ratios = [2.2, 1][:stacked] * lines
    grid = figure.subplots(lines * stacked, columns, squeeze=False, height_ratios=ratios)
    by_line = grid.reshape(lines, stacked, columns)
    by_panel = by_line.transpose(0, 2, 1)
    axes = by_panel.reshape(-1, stacked)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    for axis in axes[count:].flat:
        axis.set_visible(False)
    return figure, axes[:count]


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


def _legend(axis: Axes, corner: _Corner) -> None:
    _, labels = axis.get_legend_handles_labels()
    if labels:
        axis.legend(frameon=False, fontsize=7.5, loc=corner)


def _drawn(
    figure: Figure,
    title: str,
    caption: str,
    head: list[str] | None = None,
    rows: list[list[str]] | None = None,
) -> Drawn:
    svg = _svg(figure, title, caption)
    return Drawn(title, svg, caption, head or [], rows or [])


def _svg(figure: Figure, title: str, caption: str) -> str:
    """Write a figure as SVG with a title, a description and the colour of the text around it."""
    text = _saved(figure, salt=title)
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = text.replace(_INK, "currentColor")
    name = re.sub(r"\W+", "-", title)
    opening = f'<svg role="img" aria-labelledby="t-{name}" aria-describedby="d-{name}" '
    described = f'<title id="t-{name}">{escape(title)}</title>'
    described += f'<desc id="d-{name}">{escape(caption)}</desc>'
    end_of_tag = text.index(">") + 1
    attributes = text[len("<svg ") : end_of_tag]
    drawing = text[end_of_tag:]
    return opening + attributes + described + drawing


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
