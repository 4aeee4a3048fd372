"""A finished study -> its results, as a notebook looks at them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from equipoise.api import verdicts
from equipoise.api.verdicts import Compared
from equipoise.core import config
from equipoise.core.config import Study
from equipoise.core.documents import Choices, Comparison, ScenarioSummary
from equipoise.core.errors import DataError, unknown_name
from equipoise.core.records import Predictions


def load(study: str, root: str | Path = ".") -> StudyResults:
    """Read what a finished study found; nothing is computed, and nothing is changed.

    Args:
        study: Its name in params.yaml.
        root: Folder of the project, or one inside it.

    Raises:
        ConfigError: When there is no project or no such study, with the nearest name.
        DataError: When it was not compared yet.
    """
    known = config.load_study(study, root=config.find_root(Path(root)))
    full = known.reports_path / "evidence.json"
    short = known.reports_path / "comparison.json"
    if not full.is_file() and not short.is_file():
        raise DataError(
            f"Study '{study}' was not compared yet: there is no {short}. Run `dvc repro`, or `equipoise compare "
            f"--study {study}`."
        )
    return StudyResults(known, Comparison.read(full if full.is_file() else short))


@dataclass(frozen=True, eq=False, repr=False)
class StudyResults(Compared):
    """What a study found.

    Attributes:
        study: Its name, settings and folders.
        comparison: Every number of the comparison.
    """

    study: Study
    comparison: Comparison

    @property
    def backbones(self) -> tuple[str, ...]:
        """The backbones that were compared."""
        return tuple(self.comparison.rows)

    @property
    def scenarios(self) -> tuple[str, ...]:
        """The scenarios that were compared, the baseline among them."""
        return tuple(next(iter(self.comparison.rows.values())))

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row for each backbone and scenario: verdict, difference to the baseline, AUROC, winner."""
        table = verdicts.comparison_table(self.comparison)
        winners = [
            self.comparison.winners.get(backbone) == scenario for backbone, scenario in table.index
        ]
        return table.assign(winner=winners)

    def predictions(self, backbone: str, scenario: str) -> Predictions:
        """What one scenario predicted; `compare` takes it, and its `table` is a DataFrame.

        Raises:
            ConfigError: For a backbone or scenario that was not compared, with the nearest name.
            DataError: When its files are not there.
        """
        return Predictions.read(self._folder(backbone, scenario) / "predictions.parquet")

    def metrics(self, backbone: str, scenario: str) -> ScenarioSummary:
        """Every number of one scenario, and what it was made from; the errors are those of `predictions`."""
        return ScenarioSummary.read(self._folder(backbone, scenario) / "metrics.json")

    def choices(self, backbone: str, scenario: str) -> Choices:
        """What the searches of one scenario chose; the errors are those of `predictions`."""
        return Choices.read(self._folder(backbone, scenario) / "best.json")

    def _folder(self, backbone: str, scenario: str) -> Path:
        if backbone not in self.backbones:
            raise unknown_name("backbone", backbone, self.backbones, " in the comparison")
        if scenario not in self.scenarios:
            raise unknown_name("scenario", scenario, self.scenarios, " in the comparison")
        return self.study.result_path(backbone, scenario)
