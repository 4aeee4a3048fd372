"""Predictions that lie in memory or in files -> differences to a baseline, with verdicts."""

from __future__ import annotations

from abc import ABC
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd

from equipoise.api import pictures
from equipoise.api.heads import FittedHeads
from equipoise.api.pictures import Picture
from equipoise.compare import screen, wording
from equipoise.core import config
from equipoise.core.documents import Comparison, Difference, JudgedPredictions, ScenarioRow
from equipoise.core.errors import DataError
from equipoise.core.records import Predictions
from equipoise.judge import foreign, sheets
from equipoise.judge.sheets import Sheet
from equipoise.judge.verdicts import JudgedMethods, judge_methods

#: Predictions of one method.
One: TypeAlias = pd.DataFrame | Predictions | str | Path
#: Predictions of several methods.
Several: TypeAlias = (
    FittedHeads | Mapping[str, One] | pd.DataFrame | Sequence[str | Path] | str | Path
)

#: What messages call a table that holds several methods.
_ONE_TABLE = "the table"
_AUROC = "auroc"


def compare(
    predictions: Several,
    *,
    baseline: str | None = None,
    positive: str | None = None,
    primary: str | None = None,
    margin: float | None = None,
    alpha: float | None = None,
    resamples: int | None = None,
    sensitivity_floor: float | None = None,
    seed: int | None = None,
    root: str | Path | None = None,
) -> Verdicts:
    """Say of each method whether it ranks patients better than the baseline, by how much, and how sure that is.

    It is what the verb `judge` does: paired differences within folds, whole patients drawn again, one
    simultaneous interval for each rival.

    Args:
        predictions: Name -> predictions of it on test: a DataFrame, the path of a CSV or Parquet
            file, or what `fit_heads` and `load` give. Or one table with a column `method`, or paths.
            The columns are those of docs/judge.md: `label`, `prob` (or `prob_<class>`), and where
            they are known `image`, `patient`, `fold`, `repeat`.
        baseline: What the others are compared with; the one called baseline, or else the first.
        positive: The positive class of two; needed where nothing else tells.
        primary: The metric behind the verdict.
        margin: The largest difference in it that would not matter, in units of the metric.
        alpha: All intervals together cover 1 - alpha.
        resamples: How often patients are drawn again.
        sensitivity_floor: The sensitivity at which specificity is read, 0..1.
        seed: Of these draws.
        root: Folder of a project. What is left out above is taken from `compare` and `tune` of its
            defaults; without a project from those that come with the program.

    Raises:
        DataError: For predictions that cannot be used, or are of different test rows; it names the
            rows.
        ConfigError: For an unknown baseline, class or metric, and for a setting out of range.

    Examples:
        >>> import pandas as pd
        >>> truth = [0, 1] * 30
        >>> plain = pd.DataFrame({"label": truth, "prob": [0.4, 0.6, 0.7, 0.3, 0.2, 0.8] * 10})
        >>> sharper = plain.assign(prob=[0.1, 0.9] * 30)
        >>> verdicts = compare({"plain": plain, "sharper": sharper}, resamples=200)
        >>> verdicts.table.loc["sharper", "verdict"]
        'better'
    """
    given = {
        "compare.primary": primary,
        "compare.margin": margin,
        "compare.alpha": alpha,
        "compare.resamples": resamples,
        "compare.seed": seed,
        "tune.sensitivity_floor": sensitivity_floor,
    }
    overrides = {key: value for key, value in given.items() if value is not None}
    settings = config.judging_settings(None if root is None else Path(root), overrides)
    methods = foreign.methods_of(_sheets(predictions), positive)
    return Verdicts(judge_methods(methods, settings, baseline))


def _sheets(predictions: Several) -> list[Sheet]:
    if isinstance(predictions, FittedHeads):
        predictions = predictions.predictions
    if isinstance(predictions, pd.DataFrame):
        return [sheets.sheet_of(_ONE_TABLE, predictions)]
    if isinstance(predictions, str | Path):
        return [sheets.read_sheet(Path(predictions))]
    if isinstance(predictions, Mapping):
        _require_some(len(predictions))
        return [_sheet(str(name), one) for name, one in predictions.items()]
    if not isinstance(predictions, Sequence):
        raise DataError(
            f"Predictions are {type(predictions).__name__}; a mapping from names to tables, one table with a column "
            "method, or paths are expected."
        )
    _require_some(len(predictions))
    return [sheets.read_sheet(Path(path)) for path in predictions]


def _require_some(number: int) -> None:
    if not number:
        raise DataError("There are no predictions. Give those of two methods at least.")


def _sheet(name: str, one: One) -> Sheet:
    """Predictions of one method, which is called as the mapping says whatever its file is called."""
    if isinstance(one, pd.DataFrame):
        return sheets.sheet_of(name, one).called(name)
    if isinstance(one, Predictions):
        return sheets.sheet_of(name, one.table, one.meta)
    if isinstance(one, str | Path):
        return sheets.read_sheet(Path(one)).called(name)
    raise DataError(
        f"The predictions of {name} are {type(one).__name__}; a table, or the path of a CSV or Parquet file is "
        "expected."
    )


class Compared(ABC):
    """What a record with a comparison says and shows of it."""

    comparison: Comparison

    @property
    def headline(self) -> str:
        """What a reader must know first."""
        return self.comparison.headline

    @property
    def sentences(self) -> list[str]:
        """The verdict of each rival in words, with its numbers."""
        return wording.verdict(self.comparison)[1:]

    def forest(self) -> Picture:
        """Differences to the baseline with simultaneous intervals, as a figure."""
        return pictures.forest(self.comparison)

    def __repr__(self) -> str:
        return str(screen.page(self.comparison))

    def _repr_html_(self) -> str:
        return comparison_html(self.comparison)


@dataclass(frozen=True, eq=False, repr=False)
class Verdicts(Compared):
    """What a comparison found.

    Attributes:
        judged: The comparison, the methods and the settings, as the rooms behind know them.
    """

    judged: JudgedMethods

    @property
    def comparison(self) -> Comparison:  # type: ignore[override]
        """Every number of it."""
        return self.judged.comparison

    @property
    def document(self) -> JudgedPredictions:
        """The same for other programs: `document.text()` is the JSON of `judge --json`."""
        return self.judged.document()

    @property
    def notes(self) -> list[str]:
        """What a reader must know before believing the table."""
        return list(self.comparison.notes)

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row for each method: verdict, difference to the baseline with its interval, AUROC with its own."""
        return comparison_table(self.comparison).droplevel("backbone")

    def write_page(self, path: str | Path) -> None:
        """Write the page of `judge --page`, one file that asks for nothing else."""
        from equipoise.judge import page

        page.write(Path(path), self.judged)


# --- a comparison as a table ----------------------------------------------------------------------


def comparison_table(comparison: Comparison) -> pd.DataFrame:
    """One row for each backbone and scenario, which are its index."""
    rows = []
    index = []
    for backbone, scenarios in comparison.rows.items():
        for scenario, row in scenarios.items():
            index.append((backbone, scenario))
            rows.append(_numbers(row, comparison.primary))
    names = pd.MultiIndex.from_tuples(index, names=["backbone", "method"])
    return pd.DataFrame(rows, index=names)


def _numbers(row: ScenarioRow, primary: str) -> dict[str, Any]:
    nothing = Difference(value=None, low=None, high=None)
    delta = row.delta.get(primary, nothing)
    auroc = row.free[_AUROC]
    return {
        "verdict": row.verdict,
        "difference": wording.number(delta.value),
        "low": wording.number(delta.low),
        "high": wording.number(delta.high),
        "p_adjusted": wording.number(delta.p_adjusted),
        "detectable": wording.number(delta.detectable),
        "auroc": wording.number(auroc.value),
        "auroc_low": wording.number(auroc.low),
        "auroc_high": wording.number(auroc.high),
    }


def comparison_html(comparison: Comparison) -> str:
    """A comparison as a notebook shows it: headline, table, notes."""
    rows = []
    for backbone, scenarios in comparison.rows.items():
        for scenario, row in scenarios.items():
            name = f"{backbone}, {scenario}" if backbone else scenario
            difference = "-"
            if row.delta:
                difference = wording.interval_text(row.delta[comparison.primary], "+.4f")
            auroc = wording.interval_text(row.free[_AUROC], ".3f")
            rows.append([name, row.verdict, difference, auroc, row.reason])
    label = wording.primary_label(comparison)
    head = ["method", "verdict", f"difference in {label} [low, high]", "AUROC [low, high]", ""]
    table = pictures.html_table(head, rows, comparison.headline)
    return "\n".join([table, pictures.html_list(comparison.notes)])
