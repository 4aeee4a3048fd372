"""The numbers that git keeps and `dvc metrics` shows: few, short, and the same on every machine.

DVC makes a line of each file and a column of each key. So every scenario has a file of its own with the
same keys, and a table of a study is as wide as a terminal.
"""

from __future__ import annotations

from pathlib import Path

from equipoise.core.documents import Comparison, ScenarioMetrics, ScenarioRow, StudyMetrics
from equipoise.core.files import atomic_folder

#: More than anyone compares. Features of DenseNet201 by other kernels (4e-7 apart) gave the demo's
#: six scenarios the same AUROC, while digests differed.
_DECIMALS = 3


def write(folder: Path, comparison: Comparison) -> None:
    """Write metrics.json, and metrics/<backbone>/<scenario>.json for the scenarios that were compared, no others.

    Args:
        folder: Of the reports of a study.
        comparison: With winners.
    """
    best = comparison.winners[comparison.challenger]
    StudyMetrics(best=best).write(folder / "metrics.json")
    with atomic_folder(folder / "metrics") as made:
        for backbone, rows in comparison.rows.items():
            for scenario, row in rows.items():
                metrics_of(row, comparison.primary).write(made / backbone / f"{scenario}.json")


def metrics_of(row: ScenarioRow, primary: str) -> ScenarioMetrics:
    """The four numbers of a scenario and its verdict.

    Args:
        row: Of a comparison.
        primary: The endpoint whose difference is meant.
    """
    auroc = _rounded(row.free["auroc"].value)
    if primary not in row.delta:
        return ScenarioMetrics(auroc=auroc, verdict=row.verdict)
    delta = row.delta[primary]
    return ScenarioMetrics(
        diff=_rounded(delta.value),
        low=_rounded(delta.low),
        high=_rounded(delta.high),
        auroc=auroc,
        verdict=row.verdict,
    )


def _rounded(value: float | None) -> float | None:
    # + 0.0: a zero without a sign, whichever side it was rounded from.
    return None if value is None else round(value, _DECIMALS) + 0.0
