"""tune -> plan -> fit -> calibrate -> predict, for one study, backbone and scenario."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from equipoise.core import parallel
from equipoise.core.config import Study
from equipoise.core.documents import Choices, ScenarioSummary, Timing
from equipoise.core.errors import ConfigError
from equipoise.core.files import write_table
from equipoise.core.records import Predictions
from equipoise.embed import imported
from equipoise.evaluation import metrics
from equipoise.scenario import fitting, rounds, served_model
from equipoise.scenario.finetuning import finetune
from equipoise.scenario.matrix import Inputs
from equipoise.scenario.rounds import RoundKey, RoundResult, one_blas_thread
from equipoise.scenario.summary import evaluate, summarise
from equipoise.split import checks
from equipoise.strategies import base as strategies


@one_blas_thread
def run(study: Study, backbone: str, scenario: str, folder: Path | None = None) -> ScenarioSummary:
    """Run one scenario and write its predictions, metrics, choices, trials, plan and servable model.

    Args:
        study: Name and settings.
        backbone: A backbone whose features are there.
        scenario: Name of a strategy.
        folder: Where to write; the study's result folder when left out.

    Returns:
        What stands in metrics.json.

    Raises:
        ConfigError: For an unknown strategy or metric, and for fine-tuning with several folds.
        DataError: When the parents were not made from the same manifest.
        LeakageError: When the split, or a plan, puts a patient on two sides.
    """
    start = time.time()
    _refuse_unknown_strategies([scenario, *study.scenario_settings])
    inputs = Inputs.read(study, backbone, scenario)
    answers = checks.check_split(inputs.splits, inputs.manifest)
    _refuse_unusable_settings(inputs)
    folder = folder or study.result_path(backbone, scenario)
    results = _run_rounds(inputs)
    meta = _meta(inputs)
    predictions = _predictions(inputs, results).write(folder / "predictions.parquet")
    trials = _stacked([item.trials for item in results])
    write_table(folder / "trials.parquet", trials, meta)
    _write_curves(results, folder / "curve.parquet", meta)
    plan = _stacked([item.plan for item in results])
    write_table(folder / "plan.parquet", plan, meta)
    plan_answer = checks.written_plan_within_train(plan, inputs.splits)
    answers = _with_answer(answers, plan_answer)
    choices = Choices([item.choice for item in results])
    choices.write(folder / "best.json")
    served_model.write(inputs, results, folder / "model")
    evaluation = evaluate(inputs, predictions, folder)
    summary = summarise(inputs, predictions, evaluation, choices, plan, answers)
    summary.write(folder / "metrics.json")
    # Beside the result, which has the same bytes whenever it is made.
    timing = Timing(start_ms=round(1000 * start), end_ms=round(1000 * time.time()))
    timing.write(study.timing_path(summary.result_digest))
    return summary


@one_blas_thread
def predict_in_memory(inputs: Inputs) -> tuple[Predictions, Choices]:
    """Do what `run` does up to the predictions, from inputs that lie in no file.

    The errors are those of `run`. Nothing of a result is written; caches lie below the study's root.

    Args:
        inputs: Images, split and features; they travel to the workers as they are.

    Returns:
        The predictions, and what was chosen in every round.
    """
    _refuse_unknown_strategies([inputs.scenario, *inputs.study.scenario_settings])
    checks.check_split(inputs.splits, inputs.manifest)
    _refuse_unusable_settings(inputs)
    study = inputs.study
    jobs = [(inputs, key) for key in _round_keys(inputs)]
    results = parallel.run_jobs(
        rounds.one_round, jobs, _doing(inputs), study.engine, root=study.root
    )
    checks.written_plan_within_train(_stacked([item.plan for item in results]), inputs.splits)
    return _predictions(inputs, results), Choices([item.choice for item in results])


def _write_curves(results: Sequence[RoundResult], path: Path, meta: dict[str, Any]) -> None:
    """Write the losses of fine-tuning; a probe has none, also where a fine-tuning was before."""
    curves = [item.curve for item in results if item.curve is not None]
    if curves:
        write_table(path, _stacked(curves), meta)
    else:
        path.unlink(missing_ok=True)


def _refuse_unknown_strategies(names: Iterable[str]) -> None:
    for name in names:
        strategies.load_strategy(name)


def _refuse_unusable_settings(inputs: Inputs) -> None:
    """Raise ConfigError for a metric that these data do not have, or a mode without a model to serve."""
    settings = inputs.study.settings
    num_classes = len(inputs.manifest.classes)
    metrics.load_metric(settings.tune.objective, num_classes)
    metrics.load_metric(settings.compare.primary, num_classes)
    imported.refuse_finetuning(settings, inputs.backbone)
    several_folds = inputs.splits.folds > 1
    if several_folds and settings.train.mode == "finetune":
        raise ConfigError(
            "train.mode: finetune with several folds has no single model to serve: the refit on all "
            "rows is a probe. Use split.scheme: holdout or one published split, or train.mode: probe."
        )
    if fitting.fine_tunes(settings):
        finetune.refuse_unusable_settings(inputs.study)


def _run_rounds(inputs: Inputs) -> list[RoundResult]:
    """Every repeat, fold and seed, side by side where the engine has several workers."""
    study = inputs.study
    keys = _round_keys(inputs)
    if study.engine.stays_here or len(keys) <= 1:
        return [
            rounds.one_round(inputs, key)
            for key in parallel.progress(keys, _doing(inputs), len(keys), "jobs")
        ]
    if fitting.fine_tunes(study.settings):
        image_ids = inputs.splits.table["image_id"].drop_duplicates()
        finetune.compute_activations(inputs, rounds.positions(inputs, image_ids))
    jobs = [(study, inputs.backbone, inputs.scenario, key) for key in keys]
    return parallel.run_jobs(rounds.run_round, jobs, _doing(inputs), study.engine, root=study.root)


def _round_keys(inputs: Inputs) -> list[RoundKey]:
    keys = []
    for repeat, fold in inputs.splits.rounds():
        for seed in inputs.study.settings.train.seeds:
            keys.append(RoundKey(repeat, fold, seed))
    return keys


def _doing(inputs: Inputs) -> str:
    """What stands in front of the progress."""
    return f"{inputs.scenario} on {inputs.study.name}, {inputs.backbone}"


def _predictions(inputs: Inputs, results: Sequence[RoundResult]) -> Predictions:
    return Predictions(_stacked([item.predictions for item in results]), _meta(inputs))


def _stacked(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(tables, ignore_index=True)


def _meta(inputs: Inputs) -> dict[str, Any]:
    """What stands in the metadata of every table of a result."""
    return {
        "study": inputs.study.name,
        "backbone": inputs.backbone,
        "scenario": inputs.scenario,
        "classes": list(inputs.manifest.classes),
        "positive_class": inputs.manifest.positive_class,
    }


def _with_answer(answers: Sequence[checks.Check], new: checks.Check) -> list[checks.Check]:
    """The answers with a new one in place of the one that has its code."""
    replaced = []
    for answer in answers:
        same = answer.code == new.code
        replaced.append(new if same else answer)
    return replaced
