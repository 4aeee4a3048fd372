"""Figures as SVG text, the same bytes for the same numbers, for the page and for MLflow."""

from __future__ import annotations

import io
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from equipoise.compare import Result
from equipoise.metrics import roc_steps

#: Okabe and Ito's colours: told apart by readers with colour-vision deficiency.
_COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
_BINS = 10


def _panel(width: float, height: float, count: int = 1) -> tuple[Figure, list[Axes]]:
    matplotlib.rcParams["text.parse_math"] = False  # names are text, also with a $ in them
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(1, count, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def _label(name: str) -> str:
    """A legend leaves names out that begin with an underscore, unless something invisible stands before it."""
    return f"\u200b{name}" if name.startswith("_") else name


def _svg(figure: Figure, title: str) -> str:
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "equipoise", "svg.fonttype": "none", "font.family": "sans-serif"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Title": title})
    text = buffer.getvalue()
    return text[text.index("<svg") :].replace("<svg ", '<svg role="img" ', 1)


def forest(comparison: dict[str, Any], label: str) -> str:
    """Differences to the baseline with intervals, one line per backbone and scenario."""
    entries = [
        (f"{backbone}  {scenario}", row["delta"][comparison["primary"]], row["verdict"])
        for backbone, rows in comparison["rows"].items()
        for scenario, row in rows.items()
        if "delta" in row
    ]
    figure, (axis,) = _panel(8, 0.8 + 0.34 * max(len(entries), 1))
    colours = {"better": "#009e73", "worse": "#d55e00", "no clear difference": "#444444"}
    for line, (_, delta, verdict) in enumerate(entries):
        axis.plot([delta["low"], delta["high"]], [line, line], color=colours[verdict], linewidth=2)
        axis.plot(delta["value"], line, "o", color=colours[verdict], markersize=5)
    axis.axvline(0, color="#888888", linewidth=1, linestyle="--")
    axis.set_yticks(range(len(entries)), [name for name, _, _ in entries])
    axis.invert_yaxis()
    axis.set_xlabel(f"difference to the baseline in {label}")
    return _svg(figure, "Differences to the baseline with intervals")


def roc(results: list[Result]) -> str:
    """ROC of every scenario on the test rows, pooled over folds, first seed, with the two operating points."""
    figure, (axis,) = _panel(5.2, 4.6)
    for result, colour in zip(results, _COLOURS * 2):
        truth, raw, _ = first_seed(result)
        true, false = (np.append(0, steps[0]) for steps in roc_steps(truth, raw, np.ones((1, len(raw)))))
        axis.plot(false / false[-1], true / true[-1], color=colour, linewidth=1.4, label=_label(result.scenario))
        for point, marker in (("raw", "o"), ("locked", "D")):
            if point in result.evaluation.table():
                values = result.evaluation
                where = (values.draws[f"{point}.specificity"][0], values.draws[f"{point}.sensitivity"][0])
                axis.plot(1 - where[0], where[1], marker, color=colour, markersize=5, markerfacecolor="white")
    axis.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1, linestyle=":")
    axis.set(xlabel="1 - specificity", ylabel="sensitivity", title="ROC (circle: 0.5 raw, diamond: locked)")
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    return _svg(figure, "ROC curves")


def reliability(results: list[Result]) -> str:
    """Observed share against predicted probability in bins of equal numbers, raw and calibrated."""
    figure, axes = _panel(8.4, 4.2, 2)
    for kind, axis in enumerate(axes):
        for result, colour in zip(results, _COLOURS * 2):
            truth, *probabilities = first_seed(result)
            prob = probabilities[kind]
            bins = [rows for rows in np.array_split(np.argsort(prob, kind="stable"), _BINS) if len(rows)]
            mean, share = [prob[rows].mean() for rows in bins], [truth[rows].mean() for rows in bins]
            axis.plot(mean, share, "o-", color=colour, linewidth=1.2, markersize=3.5, label=_label(result.scenario))
        axis.plot([0, 1], [0, 1], color="#bbbbbb", linewidth=1, linestyle=":")
        axis.set(xlabel="predicted probability", ylabel="observed share", title=("raw", "calibrated on val")[kind])
    axes[0].legend(frameon=False, fontsize=8)
    return _svg(figure, "Reliability, raw and calibrated")


def distribution(rows: list[dict[str, Any]], classes: list[str]) -> str:
    """Images per class before the split, in each part and in each plan; rows are those of `compare.distribution`."""
    names = list(dict.fromkeys(row["stage"] for row in rows))
    figure, (axis,) = _panel(6.4, 0.9 + 0.2 * len(names) * (len(classes) + 0.6))
    height = 0.8 / len(classes)
    for index, name in enumerate(classes):
        counts = [row["images"] for row in rows if row["class_name"] == name]
        places = np.arange(len(names)) + (index - (len(classes) - 1) / 2) * height
        bars = axis.barh(places, counts, 0.94 * height, color=_COLOURS[1 + index % 7], label=_label(name))
        axis.bar_label(bars, fontsize=7, padding=2)
    axis.set_yticks(range(len(names)), names)
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.set_xlabel("images, or draws of a plan")
    figure.legend(frameon=False, fontsize=8, loc="outside upper right", ncols=min(len(classes), 4))
    return _svg(figure, "Class distribution before and after the split and in each plan")


def first_seed(result: Result) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Truth (bool), raw and calibrated probability of the positive class: test rows, first repeat and seed."""
    predictions = result.predictions.part("test")
    table = predictions.table
    rows = ((table["repeat"] == 0) & (table["seed"] == table["seed"].iloc[0])).to_numpy()
    positive = predictions.positive_label
    raw, calibrated = (predictions.probabilities(kind)[rows, positive] for kind in ("prob", "calibrated"))
    return (table["label"] == positive).to_numpy()[rows], raw, calibrated
