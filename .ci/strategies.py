"""Makes docs/strategies.md from the files of the strategies: `python .ci/strategies.py`.

A test says when this was forgotten.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Sequence
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

_SAMPLERS = """\
## Samplers of imbalanced-learn

Each leaves out images of the frequent classes by its own rule. All have one parameter, `removed_fraction`: the share
of what the rule would leave out. Published 1, searched 0 to 1, neutral 0.
"""
_OF_SAMPLERS = "imblearn_"
_REMOVED = "`removed_fraction`: 1, 0 to 1, 0"

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
    own, samplers = [Row(*_COLUMNS)], [Row(*_COLUMNS)]
    for name in base.names():
        rows = samplers if name.startswith(_OF_SAMPLERS) else own
        rows.append(row(name))
    alike = {sampler.parameters for sampler in samplers[1:]}
    if alike != {_REMOVED}:
        raise ValueError(
            f"the page says once for all samplers what their parameter is, not {alike}"
        )
    without = [(row.name, row.does, row.limits, row.source) for row in samplers]
    return f"{_HEAD}\n{table(own)}\n{_SAMPLERS}\n{table(without)}"


def table(rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown, its head first."""
    lines = [rows[0], ("---",) * len(rows[0]), *rows[1:]]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in lines)


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
        limits=spelled(paragraph(strategy, "Should ")),
        source=linked(spelled(paragraph(strategy, "Reference: ").removeprefix("Reference: "))),
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


def spelled(text: str) -> str:
    r"""Formulas in letters, which every reader of Markdown shows.

    >>> spelled(r"a $\beta$ up to 0.99")
    'a β up to 0.99'
    """
    return re.sub(r"\$([^$]+)\$", lambda formula: formula[1].replace("\\beta", "β"), text)


def linked(source: str) -> str:
    """The first address behind the names before it.

    >>> linked("Lin et al. 2017, https://arxiv.org/abs/1708.02002")
    '[Lin et al. 2017](https://arxiv.org/abs/1708.02002)'
    """
    return re.sub(r"^(.+?), (https://[^\s;]+)", r"[\1](\2)", source)


def _described(name: str, parameter: base.Parameter) -> str:
    high = "K" if parameter.high == base.VIEWS else f"{parameter.high:g}"
    searched = f"{parameter.low:g} to {high}"
    return f"`{name}`: {parameter.published:g}, {searched}, {parameter.neutral:g}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
