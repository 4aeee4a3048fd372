"""What a notebook shows of a record: tables with verdicts in their colours, and figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

import pandas as pd

from equipoise.core.documents import Comparison
from equipoise.core.files import atomic_path

#: White below a figure and ink that is black: a notebook may be dark, and pictures know nothing of it.
_PAPER = '<svg style="background:#ffffff;color:#000000" '
_CELL = "padding:2px 8px"


@dataclass(frozen=True)
class Picture:
    """A figure.

    Attributes:
        title: What it shows.
        caption: How to read it.
        svg: The drawing.
        numbers: What is drawn, as a table.
    """

    title: str
    caption: str
    svg: str
    numbers: pd.DataFrame

    def __repr__(self) -> str:
        return f"{self.title}. {self.caption}"

    def _repr_svg_(self) -> str:
        return self.svg

    def write(self, path: str | Path) -> None:
        """Write the drawing as a file ending in .svg."""
        with atomic_path(Path(path)) as temporary:
            temporary.write_text(self.svg, encoding="utf-8")


def forest(comparison: Comparison) -> Picture:
    """Differences to the baseline with simultaneous intervals, as on the page."""
    from equipoise.compare.report import figures

    drawn = figures.forest(comparison)
    return Picture(
        title=drawn.title,
        caption=drawn.caption,
        svg=drawn.svg.replace("<svg ", _PAPER, 1),
        numbers=pd.DataFrame(drawn.rows, columns=drawn.head),
    )


def html_table(head: Sequence[str], rows: Sequence[Sequence[Any]], title: str = "") -> str:
    """A table; a cell that holds a verdict has the colour that it has in figures.

    Args:
        head: Names of the columns.
        rows: Their cells.
        title: A sentence above it.
    """
    from equipoise.compare.report.figures import VERDICTS

    colours = {verdict: look.colour for verdict, look in VERDICTS.items()}
    lines = [f"<p>{escape(title)}</p>"] if title else []
    lines.append("<table>")
    lines.append(f"<tr>{''.join(_html_cell('th', name, '') for name in head)}</tr>")
    for row in rows:
        cells = [_html_cell("td", value, colours.get(str(value), "")) for value in row]
        lines.append(f"<tr>{''.join(cells)}</tr>")
    lines.append("</table>")
    return "\n".join(lines)


def html_list(sentences: Sequence[str]) -> str:
    """Sentences below a table; nothing where there are none."""
    if not sentences:
        return ""
    return f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in sentences)}</ul>"


def _html_cell(tag: str, value: Any, colour: str) -> str:
    style = _CELL
    if colour:
        style += f";color:{colour};font-weight:bold"
    return f'<{tag} style="{style}">{escape(str(value))}</{tag}>'
