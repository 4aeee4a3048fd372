"""What all figures share: their records, colours, sizes and letters, and how they become SVG text.

The same numbers give the same bytes.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field
from html import escape

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from equipoise.compare.lettering import LAST_RESORT

#: Okabe and Ito's colours: told apart by readers with colour-vision deficiency. Black is the ink of
#: the page.
INK = "#000000"
COLOURS = (INK, "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f")
GREY = "#8c8c8c"

#: The second one measures what the first one lacks, so that matplotlib has nothing to warn of.
_FAMILIES = ["sans-serif", LAST_RESORT]

#: Widths in inches: as wide as the page, as a phone, and as one of three panels beside each other. Each is
#: shown at about the same scale, so that letters have one size.
WIDE_INCHES = 9.2
NARROW_INCHES = 3.3
PANEL_INCHES = 3.1
#: Longest names, in characters, where they stand beside a figure and in one for a phone.
WIDE_NAME = 34
NARROW_NAME = 26
#: Size of what heads a panel or a group of lines, in points; the rest has 8.
HEADING = 9.5


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


def of_backbone(backbone: str, separator: str, what: str) -> str:
    """What something of a backbone is called; methods of anybody have none."""
    return f"{backbone}{separator}{what}" if backbone else what


def cut(name: str, most: int) -> str:
    """A long name, cut; the table has it whole."""
    return name if len(name) <= most else f"{name[: most - 1]}…"


def draw_diagonal(axis: Axes) -> None:
    """Where prediction and observation agree, or where nothing is learnt."""
    axis.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")


def one_panel(width: float, height: float) -> tuple[Figure, Axes]:
    """Make a figure with one pair of axes; width and height in inches."""
    figure, axes = stacked_panels(width, height)
    return figure, axes[0]


def stacked_panels(width: float, height: float, stacked: int = 1) -> tuple[Figure, np.ndarray]:
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


def class_colour(label: int) -> str:
    """Colour of a class, by its label."""
    return COLOURS[1 + label % 7]


def curve_colour(label: int, binary: bool) -> str:
    """Colour of a class's curve; of two classes only one has a curve, always in the same colour."""
    return COLOURS[1] if binary else class_colour(label)


def level_text(alpha: float) -> str:
    """The coverage of intervals, as captions say it: "95 %"."""
    return f"{100 * (1 - alpha):g} %"


def legend_name(name: str) -> str:
    """Make sure that a name stands in the legend.

    Matplotlib leaves out names that begin with an underscore, unless something stands before it.
    """
    return f"\u200b{name}" if name.startswith("_") else name


def legend_above(axis: Axes) -> None:
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


def narrow_svg(figure: Figure, title: str) -> str:
    """The figure for a phone; the description stands at the other one."""
    return svg_of(figure, f"{title}, narrow", "The same figure for a narrow page.")


def svg_of(figure: Figure, title: str, caption: str, highlighted: int | None = None) -> str:
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
    text = text.replace(INK, "currentColor")
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
