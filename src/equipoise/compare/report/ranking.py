"""ROC and precision-recall curves of all results over each other, with bands and operating points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes

from equipoise.compare.report import curves
from equipoise.compare.report.curves import Band, Tested
from equipoise.compare.report.drawing import (
    GREY,
    INK,
    PANEL_INCHES,
    Drawn,
    class_colour,
    curve_colour,
    draw_diagonal,
    legend_above,
    legend_name,
    level_text,
    of_backbone,
    one_panel,
    svg_of,
)
from equipoise.compare.wording import BASELINE, number
from equipoise.core.documents import Interval
from equipoise.evaluation.metrics import Endpoint


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
    figure, axis = one_panel(PANEL_INCHES, 2.95)
    for place, (result, bands) in enumerate(zip(results, bands_of)):
        _draw_thin(axis, result, bands, place, baseline)
    rows = []
    for place, (result, bands) in enumerate(zip(results, bands_of)):
        _draw_full(axis, result, bands, place)
        if kind is _ROC:
            _draw_operating_points(axis, result, place)
        rows += _read_off(result, bands, kind)
    if kind is _ROC:
        draw_diagonal(axis)
    _finish_curves(axis, results, kind, corner)
    head = ["scenario"]
    for height in kind.read_at:
        head.append(f"{kind.read} {height:.2f}")
    title = of_backbone(first.backbone, ": ", kind.title)
    caption = _curve_caption(results, kind, corner, baseline)
    shown = _highlighted(results, wanted, baseline)
    svg = svg_of(figure, title, caption, shown)
    return Drawn(title, [svg], caption, head, rows)


def _bands(result: Tested, kind: _CurveKind) -> dict[int, Band]:
    """The curve of each label that has one."""
    bands = {}
    for label in curves.shown(result):
        both = curves.bands(result, label)
        bands[label] = getattr(both, kind.name)
    return bands


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
        is_in_colour = not is_baseline and not curves.is_binary(result)
        axis.plot(
            band.x,
            band.estimate,
            color=class_colour(label) if is_in_colour else GREY,
            linewidth=2.4 if is_baseline else 0.8,
            alpha=1 if is_baseline else 0.6,
            gid=f"thin-{place}",
        )


def _draw_full(axis: Axes, result: Tested, bands: dict[int, Band], place: int) -> None:
    """A result as a reader sees it who chose it: in colour, with its band."""
    binary = curves.is_binary(result)
    gid = f"full-{place}"
    for label, band in bands.items():
        colour = curve_colour(label, binary)
        axis.fill_between(
            band.x, band.low, band.high, color=colour, alpha=0.25, linewidth=0, gid=gid
        )
        name = None if binary or place else legend_name(result.predictions.classes[label])
        axis.plot(band.x, band.estimate, color=colour, linewidth=1.8, label=name, gid=gid)


def _draw_operating_points(axis: Axes, result: Tested, place: int) -> None:
    """Where the two operating points lie, of two classes."""
    if not curves.is_binary(result):
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
            color=INK,
            markersize=6,
            markerfacecolor="none",
            markeredgewidth=1.4,
            clip_on=False,
            gid=f"full-{place}",
        )


def _has_point(result: Tested, point: str) -> bool:
    """Whether decisions at an operating point were measured."""
    return Endpoint(point, "specificity") in result.evaluation.draws


def _finish_curves(axis: Axes, results: Sequence[Tested], kind: _CurveKind, corner: bool) -> None:
    axis.set(xlabel=kind.across, ylabel=kind.up)
    right = 0.5 if corner and kind is _ROC else 1
    bottom = 0.5 if corner else 0
    axis.set_xlim(0, right)
    axis.set_ylim(bottom, 1.01)
    if len(results) == 1:
        area = results[0].evaluation.interval(kind.area)
        axis.set_title(f"{results[0].scenario}\n{_measured(area)}", fontsize=9)
    legend_above(axis)


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
        f"The one in colour has its band: pointwise {level_text(first.evaluation.alpha)} interval from "
        f"{curves.RESAMPLES} resamples of patients; mean over repeats, folds and seeds."
    )
    if any(result.scenario == baseline for result in results):
        caption += f" Grey: {baseline}."
    if len(results) > 2:
        caption += " Thin: the others."
    if corner:
        caption += " The axes are cut."
    if not curves.is_binary(first):
        return caption + " Each class against the rest."
    if kind is _ROC:
        caption += " Circle: 0.5 on raw probabilities"
        caption += ", diamond: locked threshold." if _has_point(first, "locked") else "."
    predictions = first.predictions
    return f"{caption} Positive class: {predictions.classes[predictions.positive_label]}."
