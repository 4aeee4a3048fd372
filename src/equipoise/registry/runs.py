"""What MLflow shows of a result: some twenty numbers, what differs between runs, its images, and the time it took.

Everything else lies in its artifacts: every number with its interval in a table, and the settings in a file.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd
from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag
from mlflow.tracking import MlflowClient
from mlflow.utils.mlflow_tags import (
    MLFLOW_GIT_COMMIT,
    MLFLOW_RUN_NOTE,
    MLFLOW_SOURCE_NAME,
    MLFLOW_SOURCE_TYPE,
    MLFLOW_USER,
)

from equipoise.core import environment, parallel
from equipoise.core.config import Study
from equipoise.core.documents import Comparison, RoundChoice, ScenarioRow, ScenarioSummary, Timing
from equipoise.core.errors import DataError
from equipoise.core.files import digest_of, read_table

if TYPE_CHECKING:
    from equipoise.compare.results import Result

#: Tag of a run: the way in which it holds its result; results in an older way are written again.
LAYOUT_TAG = "equipoise.layout"
LAYOUT = "2"
#: Tag of a run and of a model version: the digest of the result that it holds.
DIGEST = "equipoise.result_digest"
#: Tag of a run: better, worse, equivalent, inconclusive, or baseline.
VERDICT = "verdict"
#: Tag of a run: whether it won on its backbone, yes or no.
WINNER = "winner"
#: Tag of a run: what it is for (claimed, writing, result, trial, launcher, replaced).
ROLE = "equipoise.role"
#: Tag of a run: names what a comparison said of it, so that nothing is written twice.
_SAID = "equipoise.said"
#: Columns of trials.parquet that are not parameters of the trial.
_NO_PARAMETERS = {"trial", "state", "score", "violation", "error", "repeat", "fold", "seed"}
#: State of a trial -> status of its run; every other state is FAILED.
_TRIAL_STATUS = {"complete": "FINISHED", "pruned": "KILLED"}
#: Columns of curve.parquet that name a step; the others are metrics.
_STEP_NAMES = ("repeat", "fold", "seed", "step")
#: MLflow refuses more metrics than this in one call.
_METRICS_PER_CALL = 1000
#: MLflow keeps 36 characters of a dataset's digest, and shows them all.
_DATASET_DIGEST_CHARACTERS = 16


class _Shown(NamedTuple):
    """A metric that a run shows: its group and name there, and where metrics.json has it."""

    group: str
    point: str
    metric: str

    @property
    def name(self) -> str:
        return f"{self.group}/{self.metric}"


_RANKS = ("auroc", "average_precision", "specificity_at_sensitivity", "sensitivity_at_specificity")
_DECISIONS = (
    "sensitivity",
    "specificity",
    "precision",
    "negative_predictive_value",
    "balanced_accuracy",
    "f1",
    "mcc",
    "net_benefit",
    "brier",
    "log_loss",
    "calibration_slope",
    "calibration_intercept",
)
#: `test` needs no threshold; `locked` is calibrated and at the locked threshold.
_SHOWN = (
    *(_Shown("test", "free", metric) for metric in _RANKS),
    *(_Shown("locked", "locked", metric) for metric in _DECISIONS),
)


class Span(NamedTuple):
    """When a scenario started and ended, in milliseconds since 1970."""

    start: int
    end: int


def span(study: Study, summary: ScenarioSummary, folder: Path) -> Span:
    """When a scenario ran; where it ran on another machine, when its files were written.

    Args:
        study: Keeps the times of what ran here.
        summary: Contents of metrics.json.
        folder: Of the result.
    """
    with contextlib.suppress(DataError):  # missing, or damaged: it lies in the cache
        timing = Timing.read(study.timing_path(summary.result_digest))
        return Span(timing.start_ms, timing.end_ms)
    written = [file.stat().st_mtime for file in folder.iterdir() if file.is_file()]
    return Span(int(1000 * min(written)), int(1000 * max(written)))


# --- what a run says ------------------------------------------------------------------------------


def origin_tags(root: Path, name: str) -> dict[str, str]:
    """Who wrote a run, and with which code."""
    tags = {MLFLOW_USER: user(), MLFLOW_SOURCE_NAME: name, MLFLOW_SOURCE_TYPE: "LOCAL"}
    return tags | code_tags(root)


def user() -> str:
    """Who signs in to the tracking server where that is given, else who runs this process."""
    return os.environ.get("MLFLOW_TRACKING_USERNAME") or environment.user()


def code_tags(root: Path) -> dict[str, str]:
    """The git commit of a folder as MLflow shows it, and whether the work tree differs from it."""
    commit = environment.git("rev-parse", "HEAD", folder=root)
    if commit is None:
        return {}
    changes = environment.git("status", "--porcelain", "--untracked-files=no", folder=root)
    return {MLFLOW_GIT_COMMIT: commit, "equipoise.git_dirty": str(bool(changes))}


def write_result(
    store: MlflowClient,
    run_id: str,
    result: Result,
    study: Study,
    folder: Path,
    overrides: Mapping[str, object],
) -> None:
    """Write numbers, settings, images, files and figures of a result into its run.

    Args:
        store: The tracking store.
        run_id: The run.
        result: As read back.
        study: Whose images they are.
        folder: Of the result.
        overrides: Settings that were given for this run only.
    """
    summary = result.summary
    end = span(study, summary, folder).end
    metrics = [Metric(name, value, end, 0) for name, value in numbers(summary)]
    params = [Param(name, value) for name, value in _params(result, overrides).items()]
    store.log_batch(run_id, metrics=metrics, params=params)
    _write_curve(store, run_id, folder, end)
    store.log_inputs(run_id, [_images(study, summary)])
    store.log_table(run_id, _intervals(summary), "intervals.json")
    for name in ("metrics.json", "best.json"):
        store.log_artifact(run_id, str(folder / name))
    store.log_dict(run_id, summary.settings, "settings.json")
    _write_figures(store, run_id, result)


def numbers(summary: ScenarioSummary) -> Iterator[tuple[str, float]]:
    """Name and value of the metrics of a run."""
    if summary.inner_score is not None:
        yield "search/inner_score", summary.inner_score
    for shown in _SHOWN:
        measured = summary.metrics.get(shown.point, {}).get(shown.metric)
        if measured is not None and measured.value is not None:
            yield shown.name, measured.value


def _params(result: Result, overrides: Mapping[str, object]) -> dict[str, str]:
    """What differs between runs."""
    params = {
        "study": result.summary.study,
        "backbone": result.backbone,
        "scenario": result.scenario,
        "mode": result.summary.mode,
    }
    for name in result.choices[0].settings:
        params[name] = _chosen(result.choices, name)
    for name, value in overrides.items():
        params[name] = str(value)
    return params


def _chosen(choices: list[RoundChoice], name: str) -> str:
    """The setting that the search chose; where rounds differ the middle one, so that runs can be sorted by it."""
    values = [choice.settings[name] for choice in choices]
    if all(value == values[0] for value in values):
        return str(values[0])
    if all(isinstance(value, int | float) for value in values):
        return f"{median(values):.6g}"
    return max(values, key=values.count)


def _intervals(summary: ScenarioSummary) -> pd.DataFrame:
    """Every number of a result with its interval, a row for each."""
    rows = []
    for point, table in summary.metrics.items():
        for metric, measured in table.items():
            row = {"point": point, "metric": metric, "value": measured.value}
            row |= {"low": measured.low, "high": measured.high, "interval": measured.interval}
            rows.append(row)
    return pd.DataFrame(rows)


def _images(study: Study, summary: ScenarioSummary) -> DatasetInput:
    """The images of a study as a dataset: its name, digest and counts; never an id or a place of this machine."""
    from equipoise.core.records import Manifest

    table = Manifest.read(study.manifest_path).table
    of_class = table.groupby("class_name", sort=True)
    profile = {
        "num_rows": len(table),
        "patients": table["patient_id"].nunique(),
        "images_by_class": of_class.size().to_dict(),
        "patients_by_class": of_class["patient_id"].nunique().to_dict(),
    }
    dataset = Dataset(
        name=study.name,
        digest=summary.digests["manifest"][:_DATASET_DIGEST_CHARACTERS],
        source_type="local",
        source=json.dumps({"uri": f"data/raw/{study.name}", "dataset": study.dataset}),
        profile=json.dumps(profile, default=int),
    )
    context = InputTag("mlflow.data.context", study.settings.split.scheme)
    return DatasetInput(dataset, [context])


def _write_figures(store: MlflowClient, run_id: str, result: Result) -> None:
    # What figures need takes seconds to import: that is paid for what is written only.
    from equipoise.compare import results
    from equipoise.compare.report import figures, ranking

    classes = result.summary.classes
    rows = results.distribution([result])
    store.log_dict(run_id, {"distribution": rows}, "distribution.json")
    drawing = figures.distribution(rows, classes, result.backbone)
    store.log_text(run_id, drawing.svg, "figures/distribution.svg")
    drawings = [ranking.roc, ranking.precision_recall, figures.reliability]
    if len(classes) == 2:  # net benefit is of a decision between two
        drawings.append(figures.decision)
    for draw in drawings:
        store.log_text(run_id, draw([result]).svg, f"figures/{draw.__name__}.svg")


# --- training and trials --------------------------------------------------------------------------


def _write_curve(store: MlflowClient, run_id: str, folder: Path, now: int) -> None:
    """Write what fine-tuning kept of its steps as metrics with steps; a probe has none."""
    path = folder / "curve.parquet"
    if not path.is_file():
        return
    table, _ = read_table(path)
    metrics = list(_steps(table, now))
    for some in parallel.batched(metrics, _METRICS_PER_CALL):
        store.log_batch(run_id, metrics=some)


def _steps(table: pd.DataFrame, now: int) -> Iterator[Metric]:
    """Metrics of every step; seeds are told where there are several."""
    has_seeds = table["seed"].nunique() > 1
    for row in table.to_dict("records"):
        ending = f" seed {row['seed']}" if has_seeds else ""
        for name, value in row.items():
            if name not in _STEP_NAMES and not pd.isna(value):
                yield Metric(f"finetune/{name}{ending}", float(value), now, int(row["step"]))


def write_trials(
    store: MlflowClient, experiment: str, parent: str, which: str, folder: Path
) -> None:
    """Write trials as runs below the result's; `which` is the setting `tracking.trials`."""
    trials, _ = read_table(folder / "trials.parquet")
    if which == "none" or trials.empty:
        return
    if which == "best":
        complete = trials[trials["state"] == "complete"]
        trials = complete.loc[complete.groupby(["repeat", "fold", "seed"])["score"].idxmax()]
    for trial in trials.to_dict("records"):
        _write_trial(store, experiment, parent, trial)


def _write_trial(store: MlflowClient, experiment: str, parent: str, trial: dict[Any, Any]) -> None:
    repeat_fold_seed = f"repeat {trial['repeat']}, fold {trial['fold']}, seed {trial['seed']}"
    name = f"trial {trial['trial']} ({repeat_fold_seed})"
    tags = {"mlflow.parentRunId": parent, ROLE: "trial", "equipoise.state": trial["state"]}
    tags[MLFLOW_USER] = user()
    run = store.create_run(experiment, run_name=name, tags=tags)
    run_id = run.info.run_id
    params = [
        Param(column, str(value))
        for column, value in trial.items()
        if column not in _NO_PARAMETERS and not pd.isna(value)
    ]
    scores = []
    if not pd.isna(trial["score"]):
        scores.append(Metric("score", float(trial["score"]), run.info.start_time, 0))
    store.log_batch(run_id, metrics=scores, params=params)
    store.set_terminated(run_id, _TRIAL_STATUS.get(trial["state"], "FAILED"))


# --- what a comparison says of it -----------------------------------------------------------------


def write_verdict(
    store: MlflowClient, run_id: str, comparison: Comparison, backbone: str, scenario: str
) -> bool:
    """Add or correct what a comparison says of a result: known only after `compare`.

    Args:
        store: The tracking store.
        run_id: The run of the result.
        comparison: That holds the result.
        backbone: Of the result.
        scenario: Of the result.

    Returns:
        Whether the run said anything else before.
    """
    row = comparison.rows[backbone][scenario]
    numbers = dict(_primary_numbers(row, comparison.primary))
    winner = "yes" if comparison.winners.get(backbone) == scenario else "no"
    note = "\n\n".join(filter(None, (row.reason, comparison.headline)))
    said = digest_of([numbers, row.verdict, winner, note])[:16]
    run = store.get_run(run_id)
    if run.data.tags.get(_SAID) == said:
        return False
    tags = {VERDICT: row.verdict, WINNER: winner, MLFLOW_RUN_NOTE: note, _SAID: said}
    now = int(1000 * time.time())  # of two with the same time MLflow shows the larger one
    metrics = [Metric(name, value, now, 0) for name, value in numbers.items()]
    store.log_batch(run_id, metrics=metrics, tags=[RunTag(*tag) for tag in tags.items()])
    return True


def _primary_numbers(row: ScenarioRow, primary: str) -> Iterator[tuple[str, float]]:
    """Name and value of the difference to the baseline and its ends; nothing for a baseline."""
    delta = row.delta.get(primary)
    if delta is None:
        return
    ends = {"difference": delta.value, "low": delta.low, "high": delta.high}
    for name, value in ends.items():
        if value is not None:
            yield f"primary/{name}", value
