"""Results of scenarios, read back from their files and checked against each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.compare.wording import BASELINE
from equipoise.core import parallel
from equipoise.core.config import Study
from equipoise.core.errors import ConfigError, DataError
from equipoise.core.files import read_json
from equipoise.core.records import Predictions, imbalance_ratio
from equipoise.embed.backbones import load_row
from equipoise.evaluation import intervals
from equipoise.strategies import base as strategies


@dataclass(frozen=True, eq=False)
class Result:
    """One scenario on one backbone, as read back from its files."""

    backbone: str
    scenario: str
    summary: dict[str, Any]
    choices: list[dict[str, Any]]
    predictions: Predictions
    evaluation: intervals.Evaluation


def read_results(study: Study) -> list[Result]:
    """Results of the configured backbones and scenarios, whatever else lies in the folder."""
    if BASELINE not in study.scenarios:
        raise ConfigError(
            "run.scenarios lacks the baseline, and every difference is taken to it. Add `baseline`."
        )
    results = []
    pairs = [(backbone, scenario) for backbone in study.backbones for scenario in study.scenarios]
    for backbone, scenario in parallel.progress(
        pairs, "resampling patients", len(pairs), "results"
    ):
        load_row(backbone)
        strategies.load_strategy(scenario)
        folder = study.result_path(backbone, scenario)
        if not (folder / "predictions.parquet").is_file():
            raise DataError(
                f"{folder} holds no predictions. Run `equipoise scenario --study {study.name} "
                f"--backbone {backbone} --scenario {scenario}`, or take it off run.scenarios in params.yaml."
            )
        results.append(load_result(study, backbone, scenario, folder))
    _alike(results)
    return results


def load_result(study: Study, backbone: str, scenario: str, folder: Path) -> Result:
    """Read one result back and evaluate it with the study's resamples."""
    try:
        predictions = Predictions.read(folder / "predictions.parquet")
        evaluation = intervals.evaluate(
            predictions, study.settings.compare, study.settings.tune.sensitivity_floor
        )
    except DataError as error:
        raise DataError(f"{folder}: {error}") from error
    summary, choices = read_json(folder / "metrics.json"), read_json(folder / "best.json")
    return Result(backbone, scenario, summary, choices, predictions, evaluation)


def _alike(results: list[Result]) -> None:
    first = results[0]
    for other in results[1:]:
        pairs = {
            "study": [result.predictions.meta.get("study", "") for result in (first, other)],
            "classes": [result.predictions.classes for result in (first, other)],
            "positive class": [result.summary["positive_class"] for result in (first, other)],
            "test rows (digest)": [
                result.predictions.test_digest()[:12] for result in (first, other)
            ],
        }
        for what, (mine, its) in pairs.items():
            if mine != its:
                raise DataError(
                    f"{first.backbone}/{first.scenario} and {other.backbone}/{other.scenario} differ in their {what}: "
                    f"{mine} and {its}. Only results on the same test rows can be compared; run `dvc repro`."
                )


def distribution(results: list[Result]) -> list[dict[str, Any]]:
    """Images and patients per class before the split, in each part, and in each scenario's plan (first round)."""
    stages = {
        name: table for name, table in results[0].summary["distribution"].items() if name != "plan"
    }
    stages |= {
        f"plan: {result.scenario}": result.summary["distribution"]["plan"] for result in results
    }
    return [
        {
            "stage": stage,
            "class_name": name,
            **values,
            "imbalance_ratio": imbalance_ratio(
                np.array([row["images"] for row in classes.values()])
            ),
        }
        for stage, classes in stages.items()
        for name, values in classes.items()
    ]
