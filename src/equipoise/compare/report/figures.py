"""Figures as SVG text with their numbers, the same bytes for the same numbers, for the page and for MLflow."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from html import escape
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from equipoise.compare.evidence import first_run
from equipoise.compare.report import curves
from equipoise.compare.results import Result
from equipoise.compare.wording import BASELINE, UNCLEAR, metric_label

#: Okabe and Ito's colours: told apart by readers with colour-vision deficiency. Black is the ink of the page.
_INK = "#000000"
_COLOURS = (_INK, "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
_VERDICTS = {"better": "#009e73", "worse": "#d55e00", UNCLEAR: "#808080"}
_GREY = "#8c8c8c"


@dataclass(frozen=True)
class Drawn:
    """A figure and what it says to those who cannot see it.

    Attributes:
        title: What it shows.
        svg: The figure; ink takes the colour of the text around it.
        caption: How to read it.
        head: Columns of its numbers.
        rows: Its numbers, as text.
    """

    title: str
    svg: str
    caption: str
    head: list[str] = field(default_factory=list)
    rows: list[list[str]] = field(default_factory=list)


def _panels(
    count: int, width: float, height: float, columns: int = 3, stacked: int = 1
) -> tuple[Figure, np.ndarray]:
    """Axes (count, stacked) in rows of `columns`; of stacked axes the lower one has a third of the height."""
    matplotlib.rcParams["text.parse_math"] = False  # names are text, also with a $ in them
    columns = 2 if count == 4 else min(columns, count)
    lines = -(-count // columns)
    figure = Figure(figsize=(width * columns, height * lines), layout="constrained")
    ratios = [2.2, 1][:stacked] * lines
    grid = figure.subplots(lines * stacked, columns, squeeze=False, height_ratios=ratios)
    axes = grid.reshape(lines, stacked, columns).transpose(0, 2, 1).reshape(-1, stacked)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=8)
    for axis in axes[count:].flat:
        axis.set_visible(False)
    return figure, axes[:count]


def _label(name: str) -> str:
    """A legend leaves names out that begin with an underscore, unless something invisible stands before it."""
    return f"\u200b{name}" if name.startswith("_") else name


def _legend(axis: Axes, where: Any) -> None:
    if axis.get_legend_handles_labels()[1]:
        axis.legend(frameon=False, fontsize=7.5, loc=where)


def _drawn(
    figure: Figure,
    title: str,
    caption: str,
    head: list[str] | None = None,
    rows: list[list[str]] | None = None,
) -> Drawn:
    buffer = io.StringIO()
    with matplotlib.rc_context(
        {"svg.hashsalt": title, "svg.fonttype": "none", "font.family": "sans-serif"}
    ):
        figure.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None}
        )
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text).replace(_INK, "currentColor")
    name = re.sub(r"\W+", "-", title)
    words = (
        f'<title id="t-{name}">{escape(title)}</title><desc id="d-{name}">{escape(caption)}</desc>'
    )
    opening = f'<svg role="img" aria-labelledby="t-{name}" aria-describedby="d-{name}" '
    start = text.index(">") + 1
    return Drawn(
        title,
        opening + text[len("<svg ") : start] + words + text[start:],
        caption,
        head or [],
        rows or [],
    )


def _level(results: list[Result]) -> str:
    return f"{100 * (1 - results[0].evaluation.alpha):g} %"


def forest(comparison: dict[str, Any]) -> Drawn:
    """Differences to the baseline with intervals, one line per backbone and scenario."""
    entries = [
        (f"{backbone}  {scenario}", row["delta"][comparison["primary"]], row["verdict"])
        for backbone, rows in comparison["rows"].items()
        for scenario, row in rows.items()
        if "delta" in row
    ]
    label = metric_label(comparison["primary"], comparison["sensitivity_floor"])
    figure, ((axis,),) = _panels(1, 7.6, 0.8 + 0.32 * max(len(entries), 1))
    for line, (_, delta, verdict) in enumerate(entries):
        axis.plot(
            [delta["low"], delta["high"]], [line, line], color=_VERDICTS[verdict], linewidth=2
        )
        axis.plot(delta["value"], line, "o", color=_VERDICTS[verdict], markersize=5)
        text = f"{delta['value']:+.3f} ({delta['low']:+.3f} to {delta['high']:+.3f})"
        axis.text(1.02, line, text, transform=axis.get_yaxis_transform(), fontsize=8, va="center")
    axis.axvline(0, color=_GREY, linewidth=1, linestyle="--")
    axis.set_yticks(range(len(entries)), [name for name, _, _ in entries])
    axis.set_ylim(max(len(entries), 1) - 0.5, -0.5)
    axis.set_xlabel(f"difference to the baseline in {label}")
    caption = (
        f"Difference to the baseline in {label}: point and {100 * (1 - comparison['alpha']):g} % interval, paired over "
        f"{comparison['resamples']} resamples of {comparison['units']}. Right of the line means a higher value than "
        f"the baseline. Colour follows the verdict after Holm: green better, orange worse, grey no clear difference. "
        f"The numbers stand in the table of scenarios."
    )
    return _drawn(figure, "Differences to the baseline", caption)


def roc(results: list[Result]) -> Drawn:
    """ROC of every scenario with its band and the two operating points, the baseline in grey behind."""
    read = {
        at: f"sensitivity where 1 - specificity is {at:.2f}" for at in (0.02, 0.05, 0.1, 0.2, 0.5)
    }
    return _curves(
        results, "roc", "ROC curves", "1 - specificity", "sensitivity", "free.auroc", read
    )


def precision_recall(results: list[Result]) -> Drawn:
    """Precision-recall curve of every scenario with its band, the baseline in grey behind."""
    title, read = (
        "Precision-recall curves",
        {at: f"precision where recall is {at:.2f}" for at in (0.5, 0.8, 0.9, 0.95, 0.99)},
    )
    across = "recall (sensitivity)"
    return _curves(
        results, "precision_recall", title, across, "precision", "free.average_precision", read
    )


def _curves(
    results: list[Result],
    kind: str,
    title: str,
    across: str,
    up: str,
    summary: str,
    read: dict[float, str],
) -> Drawn:
    drawn = {
        result.scenario: {
            label: curves.bands(result, label)[kind] for label in curves.shown(result)
        }
        for result in results
    }
    one = len(drawn[results[0].scenario]) == 1
    # Good models crowd into a corner: then the axes show that corner.
    every = [band for bands in drawn.values() for band in bands.values()]
    cut = min(low[3] if kind == "roc" else low.min() for _, _, low, _ in every) > 0.5
    figure, axes = _panels(len(results), 2.7, 2.75)
    rows = []
    for result, (axis,) in zip(results, axes):
        if one and BASELINE in drawn and result.scenario != BASELINE:
            axis.plot(
                *next(iter(drawn[BASELINE].values()))[:2],
                color=_GREY,
                linewidth=1.2,
                label=BASELINE,
            )
        for (label, name), (x, y, low, high) in zip(
            curves.shown(result).items(), drawn[result.scenario].values()
        ):
            colour, legend = (
                _COLOURS[1 if one else 1 + label % 7],
                name if one else result.predictions.classes[label],
            )
            axis.fill_between(x, low, high, color=colour, alpha=0.3, linewidth=0)
            axis.plot(x, y, color=colour, linewidth=1.4, label=_label(legend))
            places = [int(np.flatnonzero(np.isclose(x, at))[-1]) for at in read]
            rows.append(
                [name, *(f"{y[at]:.3f} ({low[at]:.3f} to {high[at]:.3f})" for at in places)]
            )
        if kind == "roc":
            for point, marker in (("raw", "o"), ("locked", "D")) if one else ():
                values = result.evaluation.draws
                where = (1 - values[f"{point}.specificity"][0], values[f"{point}.sensitivity"][0])
                axis.plot(
                    *where, marker, color=_INK, markersize=5, markerfacecolor="none", clip_on=False
                )
            axis.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle=":")
        axis.set(xlabel=across, ylabel=up)
        axis.set(xlim=(0, 0.5 if cut and kind == "roc" else 1), ylim=(0.5 if cut else 0, 1.01))
        number = result.evaluation.interval(summary)
        axis.set_title(
            "{}\n{value:.3f} ({low:.3f} to {high:.3f})".format(result.scenario, **number),
            fontsize=9,
        )
        _legend(axis, "lower right" if kind == "roc" else "lower left")
    what = "area under the curve" if kind == "roc" else "average precision"
    caption = (
        f"One panel per scenario, its {what} with interval above. Band: pointwise {_level(results)} interval from "
        f"{curves.RESAMPLES} resamples of patients; mean over repeats, folds and seeds."
    )
    caption += " The axes are cut." if cut else ""
    if one:
        caption += f" Positive class: {results[0].predictions.classes[results[0].predictions.positive_label]}."
        caption += " Grey: the baseline."
        caption += (
            " Circle: 0.5 on raw probabilities, diamond: locked threshold." if kind == "roc" else ""
        )
    else:
        caption += " Each class against the rest."
    return _drawn(
        figure, f"{results[0].backbone}: {title}", caption, ["scenario", *read.values()], rows
    )


def reliability(results: list[Result]) -> Drawn:
    """Observed share against predicted probability, raw and calibrated; below, the probabilities of each class."""
    labels, classes = [*curves.shown(results[0])], results[0].predictions.classes
    one, steps = len(labels) == 1, np.linspace(0, 1, 21)
    figure, axes = _panels(len(results), 2.7, 3.6, stacked=2)
    for result, (above, below) in zip(results, axes):
        for label in labels:
            if one:
                raw = curves.reliability(result, "prob", label)
                above.plot(
                    *raw[:2],
                    "o:",
                    color=_GREY,
                    linewidth=1,
                    markersize=3,
                    markerfacecolor="none",
                    label="raw",
                )
            x, y, low, high, _ = curves.reliability(result, "calibrated", label)
            colour = _COLOURS[1 if one else 1 + label % 7]
            above.plot(
                x,
                y,
                "o-",
                color=colour,
                linewidth=1.2,
                markersize=3.5,
                label="calibrated" if one else None,
            )
            above.vlines(x, low, high, color=colour, linewidth=1)
        above.plot([0, 1], [0, 1], color=_GREY, linewidth=1, linestyle=":")
        above.set(ylabel="observed share", xlim=(0, 1), ylim=(0, 1.01))
        above.set_title(result.scenario, fontsize=9)
        _legend(above, "upper left")
        test = first_run(result.predictions)
        for label, name in enumerate(classes):
            of = labels[0] if one else label
            prob = test.probabilities("calibrated")[(test.table["label"] == label).to_numpy(), of]
            shares = np.histogram(prob, steps)[0] / max(len(prob), 1)
            below.stairs(
                shares, steps, color=_COLOURS[1 + label % 7], linewidth=1.3, label=_label(name)
            )
        below.set_xlabel(f"probability of {classes[labels[0]] if one else 'own class'}", fontsize=8)
        below.set(ylabel="share of class", xlim=(0, 1), ylim=(0, None))
        _legend(below, "upper center")
    caption = (
        "Above: in ten bins of equal numbers, the share that was observed against the mean predicted probability; on "
        f"the dotted line both agree. Bars: {_level(results)} intervals over patients. Below: how the calibrated "
        "probabilities of each class are spread. First repeat and seed; calibration errors, slopes and intercepts "
        "stand among the metrics of each scenario."
    )
    return _drawn(
        figure, f"{results[0].backbone}: reliability and probabilities per class", caption
    )


def decision(results: list[Result]) -> Drawn:
    """Net benefit against the threshold, with treating all and none; two classes only."""
    figure, ((axis,),) = _panels(1, 6.4, 3.6)
    rows, at = [], (4, 9, 19, 29, 49, 69, 79, 89)
    for result, colour in zip(results, _COLOURS[1:] * 3):
        found = curves.counts(result.predictions, result.predictions.positive_label)
        thresholds, model, everyone = curves.net_benefit(found)
        axis.plot(thresholds, model, color=colour, linewidth=1.3, label=_label(result.scenario))
        rows.append([result.scenario, *(f"{model[index]:.3f}" for index in at)])
    axis.plot(thresholds, everyone, color=_INK, linewidth=1, linestyle="--", label="treat all")
    axis.axhline(0, color=_INK, linewidth=1, linestyle=":", label="treat none")
    rows.append(["treat all", *(f"{everyone[index]:.3f}" for index in at)])
    axis.set(xlim=(0, 1), ylim=(-0.1 * everyone[0], 1.1 * everyone[0]))
    axis.set(xlabel="threshold on the calibrated probability", ylabel="net benefit per image")
    _legend(axis, "center left")
    caption = (
        "Net benefit: true less false positives per image, a false one weighing t / (1 - t) at threshold t. A "
        "threshold says how many false alarms one accepts for a case found; a model is of use where its line lies "
        "above both treating all and treating none. Mean over repeats and seeds, folds pooled."
    )
    head = ["scenario", *(f"t = {thresholds[index]:.2f}" for index in at)]
    return _drawn(figure, f"{results[0].backbone}: decision curves", caption, head, rows)


def distribution(rows: list[dict[str, Any]], classes: list[str], backbone: str) -> Drawn:
    """Images per class before the split, in each part and in each plan; rows are those of `compare.distribution`."""
    names = list(dict.fromkeys(row["stage"] for row in rows))
    figure, ((axis,),) = _panels(1, 6.4, 0.9 + 0.2 * len(names) * (len(classes) + 0.6))
    height = 0.8 / len(classes)
    for index, name in enumerate(classes):
        found = [row["images"] for row in rows if row["class_name"] == name]
        places = np.arange(len(names)) + (index - (len(classes) - 1) / 2) * height
        bars = axis.barh(
            places, found, 0.94 * height, color=_COLOURS[1 + index % 7], label=_label(name)
        )
        axis.bar_label(bars, fontsize=7, padding=2)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.set_xlabel("images, or draws of a plan")
    figure.legend(frameon=False, fontsize=8, loc="outside upper right", ncols=min(len(classes), 4))
    head = ["where", "class", "images", "patients", "share of images", "largest to smallest class"]
    table = [
        [
            row["stage"],
            row["class_name"],
            str(row["images"]),
            str(row["patients"]),
            f"{100 * row['image_share']:.1f} %",
            f"{row['imbalance_ratio']:.2f} : 1" if row["imbalance_ratio"] else "–",
        ]
        for row in rows
    ]
    caption = "Parts and plans are those of the first round; a plan's images are its draws."
    title = f"{backbone}: images per class before and after the split and in each plan"
    return _drawn(figure, title, caption, head, table)


def history(
    searches: dict[str, pd.DataFrame], objective: str, maximise: bool, backbone: str
) -> Drawn:
    """Score of every trial in its order, and the best so far in the first round; one panel per scenario."""
    figure, axes = _panels(len(searches), 2.7, 2.2)
    failed = 0
    for (scenario, trials), (axis,) in zip(searches.items(), axes):
        done = trials[trials["state"] == "complete"]
        failed += int((trials["state"] == "failed").sum())
        axis.plot(
            done["trial"],
            done["score"],
            "o",
            color=_COLOURS[1],
            alpha=0.45,
            markersize=3,
            markeredgewidth=0,
        )
        _, first = next(iter(done.groupby(["repeat", "fold", "seed"], sort=True)))
        best = first["score"].cummax() if maximise else first["score"].cummin()
        axis.step(first["trial"], best, where="post", color=_COLOURS[2], linewidth=1.3)
        axis.set_title(scenario, fontsize=9)
        axis.set(xlabel="trial", ylabel="inner score")
    count = sum(map(len, searches.values()))
    caption = f"Inner score ({objective}) of every trial, all rounds; line: the best so far in the first round. "
    caption += f"{count} trials, {failed} failed."
    return _drawn(figure, f"{backbone}: search history", caption)
