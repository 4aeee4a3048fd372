"""Results of scenarios, read back from their files and checked against each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

import numpy as np

from equipoise.compare.wording import BASELINE
from equipoise.core import parallel
from equipoise.core.config import Study
from equipoise.core.documents import Choices, ClassCount, RoundChoice, ScenarioSummary
from equipoise.core.errors import ConfigError, DataError
from equipoise.core.records import Manifest, Predictions, imbalance_ratio
from equipoise.embed import imported
from equipoise.evaluation import draws
from equipoise.evaluation.intervals import Evaluation
from equipoise.evaluation.measured import Conditions, Numbers
from equipoise.strategies import base as strategies


@dataclass(frozen=True, eq=False)
class Result:
    """One scenario on one backbone, as read back from its files.

    Attributes:
        backbone: Name.
        scenario: Name.
        summary: Contents of metrics.json.
        choices: Contents of best.json, one per repeat, fold and seed.
        predictions: Of val and test.
        numbers: Of its test rows, with the study's resamples.
    """

    backbone: str
    scenario: str
    summary: ScenarioSummary
    choices: list[RoundChoice]
    predictions: Predictions
    numbers: Numbers

    @property
    def evaluation(self) -> Evaluation:
        """Of all test rows, with the study's resamples."""
        return self.numbers.images

    @property
    def key(self) -> str:
        """Backbone/scenario: one key for each result of a comparison."""
        return f"{self.backbone}/{self.scenario}"

    @property
    def baseline_key(self) -> str:
        """Key of the result that it is compared with."""
        return f"{self.backbone}/{BASELINE}"

    @property
    def is_baseline(self) -> bool:
        """Whether the others are compared with it."""
        return self.scenario == BASELINE


def read_results(study: Study) -> list[Result]:
    """Results of the configured backbones and scenarios, whatever else lies in the folder.

    Raises:
        ConfigError: Without the baseline, or for an unknown backbone or scenario.
        DataError: When a result is missing, or was tested on other rows than the rest.
    """
    if BASELINE not in study.scenarios:
        raise ConfigError(
            "run.scenarios lacks the baseline, and every difference is taken to it. Add `baseline`."
        )
    pairs = [(backbone, scenario) for backbone in study.backbones for scenario in study.scenarios]
    results = []
    for backbone, scenario in parallel.progress(pairs, "reading results", len(pairs), "results"):
        imported.require_known(study.settings.embed, backbone)
        strategies.load_strategy(scenario)
        folder = study.result_path(backbone, scenario)
        if not (folder / "predictions.parquet").is_file():
            raise DataError(
                f"{folder} holds no predictions. Run `equipoise scenario --study {study.name} "
                f"--backbone {backbone} --scenario {scenario}`, or take it off run.scenarios in params.yaml."
            )
        results.append(load_result(study, backbone, scenario, folder))
    _require_alike(results)
    return results


def load_result(study: Study, backbone: str, scenario: str, folder: Path) -> Result:
    """Read one result back, with the study's resamples; they are computed only where none are kept."""
    manifest = Manifest.read(study.manifest_path)
    conditions = Conditions.of(study.settings, manifest)
    try:
        predictions = Predictions.read(folder / "predictions.parquet")
        numbers = draws.measured(folder, predictions, manifest, conditions)
        # Predictions that cannot be evaluated are refused while their folder can still be named.
        _ = numbers.images
    except DataError as error:
        raise DataError(f"{folder}: {error}") from error
    return Result(
        backbone=backbone,
        scenario=scenario,
        summary=ScenarioSummary.read(folder / "metrics.json"),
        choices=Choices.read(folder / "best.json").root,
        predictions=predictions,
        numbers=numbers,
    )


def _identity(result: Result) -> dict[str, object]:
    """What results must share to be compared."""
    return {
        "study": result.predictions.meta.get("study", ""),
        "classes": result.predictions.classes,
        "positive class": result.summary.positive_class,
        "test rows (digest)": result.predictions.test_digest()[:12],
    }


def _require_alike(results: list[Result]) -> None:
    first = results[0]
    expected = _identity(first)
    for other in results[1:]:
        for what, actual in _identity(other).items():
            if actual == expected[what]:
                continue
            raise DataError(
                f"{first.key} and {other.key} differ in their {what}: {expected[what]} and {actual}. "
                f"Only results on the same test rows can be compared; run `dvc repro`."
            )


class ClassShare(TypedDict):
    """One class at one stage; a row of the distribution table."""

    stage: str
    class_name: str
    images: int
    patients: int
    image_share: float
    imbalance_ratio: float | None


def distribution(results: list[Result]) -> list[ClassShare]:
    """Images and patients per class before the split, in each part, and in each scenario's plan (first round)."""
    stages = dict(results[0].summary.distribution)
    stages.pop("plan")
    for result in results:
        stages[f"plan: {result.scenario}"] = result.summary.distribution["plan"]
    rows = []
    for stage, classes in stages.items():
        if any(count.images for count in classes.values()):  # in folds there is no val
            rows += _class_shares(stage, classes)
    return rows


def _class_shares(stage: str, classes: dict[str, ClassCount]) -> list[ClassShare]:
    ratio = imbalance_ratio(np.array([count.images for count in classes.values()]))
    return [
        ClassShare(
            stage=stage,
            class_name=name,
            images=count.images,
            patients=count.patients,
            image_share=count.image_share,
            imbalance_ratio=ratio,
        )
        for name, count in classes.items()
    ]
