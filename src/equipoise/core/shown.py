"""What a terminal shows: tables and sentences that fit its width, with verdicts in colour; plain lines in a log.

`str()` gives the lines of a log, in which a row of a table is a line, however long. On a terminal rich
asks the same object for lines of its width.
"""

from __future__ import annotations

import io
import textwrap
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.table import Table as RichTable

#: Characters of a line of sentences, in a log and on every terminal that has as many.
WIDTH = 100
#: No row of a table is as long.
_LOG_WIDTH = 100_000
#: The words themselves say what colours say: nothing is lost without them.
_STYLES = {
    "better": "bold green",
    "worse": "red",
    "equivalent": "cyan",
    "inconclusive": "yellow",
    "ok": "green",
    "passed": "green",
    "warning": "yellow",
    "error": "bold red",
    "failed": "bold red",
}


def plain(shown: RenderableType, width: int = _LOG_WIDTH) -> str:
    """The lines of a log: no colours, no spaces at their ends."""
    from rich.console import Console

    file = io.StringIO()
    console = Console(
        file=file, width=width, color_system=None, force_terminal=False, force_jupyter=False
    )
    console.print(shown, crop=False)
    return "\n".join(line.rstrip() for line in file.getvalue().splitlines())


class Shown:
    """Something that a terminal shows in its width and a log in plain lines."""

    def __str__(self) -> str:
        return plain(self)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Table(Shown):
    """Cells below each other.

    Attributes:
        rows: Cells of each row; every row has the same number of cells.
        heads: Names of the columns; none is shown when empty.
        right: Positions of the columns that are aligned at their right end, as numbers are.
        wrapped: Positions of the columns that become narrower, and higher, where the width does not do.
        judged: Position of the column whose words have colours.

    >>> rows = [["vgg16", "9"], ["densenet201", "10"]]
    >>> print(Table(rows, heads=["backbone", "trials"], right=[1]))
    backbone     trials
    vgg16             9
    densenet201      10
    """

    rows: Sequence[Sequence[str]]
    heads: Sequence[str] = ()
    right: Collection[int] = ()
    wrapped: Collection[int] = ()
    judged: int | None = None

    def __rich__(self) -> RichTable:
        from rich.table import Table as RichTable
        from rich.text import Text

        table = RichTable(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        table.show_header = bool(self.heads)
        columns = len(self.heads or next(iter(self.rows), ()))
        for position in range(columns):
            head = self.heads[position] if self.heads else ""
            table.add_column(
                Text(head),
                justify="right" if position in self.right else "left",
                no_wrap=position not in self.wrapped,
            )
        for cells in self.rows:
            texts = [Text(cell) for cell in cells]
            if self.judged is not None:
                texts[self.judged].stylize(_style(cells[self.judged]))
            table.add_row(*texts)
        return table


def _style(words: str) -> str:
    first, _, _ = words.partition(" ")
    return _STYLES.get(first, "none")


@dataclass(frozen=True)
class Sentences(Shown):
    """One sentence below the other, broken between words.

    Attributes:
        sentences: Each begins a line.
        mark: Stands in front of each, for example "- "; what follows is as far in.

    >>> print(Sentences(["It is so."], mark="- "))
    - It is so.
    """

    sentences: Sequence[str]
    mark: str = ""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[object]:
        from rich.text import Text

        for sentence in self.sentences:
            lines = textwrap.fill(
                sentence,
                min(options.max_width, WIDTH),
                initial_indent=self.mark,
                subsequent_indent=" " * len(self.mark),
                break_long_words=False,
                break_on_hyphens=False,
            )
            yield Text(lines, no_wrap=True, overflow="ignore")


@dataclass(frozen=True)
class Page(Shown):
    """Parts below each other, with an empty line between them."""

    parts: Sequence[Shown]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[object]:
        for number, part in enumerate(self.parts):
            if number:
                yield ""
            yield part
