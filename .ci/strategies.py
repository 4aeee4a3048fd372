"""Makes docs/strategies.md from the files of the strategies: `python .ci/strategies.py`.

A test says when this was forgotten.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import NamedTuple

REPO = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPO / "src"))

from equipoise.strategies import base  # noqa: E402 - src must be on the path

PAGE = REPO / "docs/strategies.md"

_HEAD = """\
# Strategies

Each is one file in `src/equipoise/strategies/` with its formula, its parameters and its source. Add its name to
`run.scenarios`, or run it alone: `mlflow run . -e focal -P study=demo`. This page is made from these files by
`python .ci/strategies.py`.

Every strategy is searched with the same number of trials, beside the penalty `l2`. The published values are tried
first, and kept unless the best trial beats them by two standard errors. At the neutral values a strategy is the
baseline exactly, to the last bit; where a search ends there (within 1 % of the range) it has switched the remedy off,
and `best.json` says so. A value can be fixed instead of searched: `scenarios: {focal: {gamma: 2.0}}` in `params.yaml`.
K is `embed.views`.

`optuna-dashboard data/searches.log` shows every finished search (`pip install optuna-dashboard`; it is no dependency).
"""

_COLUMNS = (
    "scenario",
    "what it does",
    "parameter: published, searched, neutral",
    "when it should lose or tie",
    "source",
)


class Row(NamedTuple):
    """What the page says about one strategy."""

    name: str
    does: str
    parameters: str
    limits: str
    source: str


def page() -> str:
    """The text of docs/strategies.md."""
    rows = [_COLUMNS, ("---",) * len(_COLUMNS)]
    rows += [row(name) for name in base.names()]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in rows)
    return f"{_HEAD}\n{table}\n"


def row(name: str) -> Row:
    """What the page says about one strategy."""
    strategy = base.load_strategy(name)
    summary = inspect.getdoc(inspect.getmodule(strategy)) or ""
    does = summary.splitlines()[0]
    if strategy.PROBE_ONLY:
        does += f" Probe only: it {strategy.PROBE_ONLY}."
    parameters = [_described(*item) for item in strategy.parameters().items()]
    parameters += [f"`{name}`: none unless set" for name in strategy.options()]
    return Row(
        name=f"`{name}`",
        does=does,
        parameters="; ".join(parameters) or "none",
        limits=paragraph(strategy, "Should "),
        source=paragraph(strategy, "Reference: ").removeprefix("Reference: "),
    )


def paragraph(strategy: type[base.Strategy], start: str) -> str:
    """The paragraph of a strategy's docstring that begins like this, on one line.

    Raises:
        ValueError: When there is none.
    """
    for text in (inspect.getdoc(strategy) or "").split("\n\n"):
        if text.startswith(start):
            return " ".join(text.split())
    raise ValueError(f"{strategy.name()}: no paragraph of its docstring begins with '{start}'")


def _described(name: str, parameter: base.Parameter) -> str:
    high = "K" if parameter.high == base.VIEWS else f"{parameter.high:g}"
    searched = f"{parameter.low:g} to {high}"
    return f"`{name}`: {parameter.published:g}, {searched}, {parameter.neutral:g}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
