"""The only MLflow-tracking writer. Files hold the truth; MLflow mirrors it for people to look at.

Runs are written through MlflowClient, never through the fluent API, so that no other run is taken by accident.
"""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd
import requests
from filelock import FileLock
from mlflow.entities import Metric, Param, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.credentials import read_mlflow_creds
from sqlalchemy.exc import OperationalError

from equipoise.compare import results
from equipoise.compare.report import figures
from equipoise.core import parallel
from equipoise.core.config import Study
from equipoise.core.environment import environment, git, masked
from equipoise.core.errors import StoreError
from equipoise.core.files import atomic_path, digest_of, read_table
from equipoise.evaluation import openings

DIGEST = "equipoise.result_digest"


_ROLE = "equipoise.role"


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, or `sqlite:///mlflow.db` in the working folder, which is the repo root; absolute."""
    return environment("MLFLOW_TRACKING_URI") or _default_uri()


def _default_uri() -> str:
    return f"sqlite:///{Path.cwd() / 'mlflow.db'}"


def client() -> MlflowClient:
    """A client of the store that `tracking_uri` names; models too, unless MLFLOW_REGISTRY_URI says otherwise."""
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.WARNING)  # that tables are made is no news
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault(
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3"
    )  # MLflow's 7 take 4 minutes to miss a server
    if tracking_uri() == _default_uri():
        _make_store(Path.cwd() / "mlflow.db")
    mlflow.set_tracking_uri(tracking_uri())
    return MlflowClient()


def _make_store(path: Path) -> None:
    """Make the tables of a store whole or not at all: MLflow refuses one whose making was killed half-way."""
    from mlflow.store.db import utils

    with FileLock(
        Path(tempfile.gettempdir()) / f"equipoise-{digest_of(path)[:16]}.lock", mode=0o666
    ):
        if not path.exists():
            with atomic_path(path) as temporary:
                engine = utils.create_sqlalchemy_engine(f"sqlite:///{temporary}")
                utils._initialize_tables(engine)
                engine.dispose()


def address() -> str:
    """`tracking_uri` as it may be printed: without a password."""
    return masked(tracking_uri())


def store_error(error: BaseException | None) -> StoreError | None:
    """What an error of MLflow's client says about its server or database, in words; None for every other error."""
    if isinstance(error, MlflowException):
        gone = re.match(r"API request to \S+ failed with (timeout )?exception", str(error))
        lost, status = (
            bool(gone) or error.error_code == "TEMPORARILY_UNAVAILABLE",
            error.get_http_status_code(),
        )
    elif isinstance(error, requests.RequestException):
        lost, status = (
            error.response is None,
            0 if error.response is None else error.response.status_code,
        )
    elif isinstance(error, OperationalError):  # MLflow speaks to a database itself
        lost, status = True, 0
    else:
        return None
    user = read_mlflow_creds().username
    if lost:
        return StoreError(
            f"The MLflow server {address()} cannot be reached. Results stay in files: start the server or set "
            f"MLFLOW_TRACKING_URI, then run the same command again; it goes on from there."
        )
    if status == 401:
        whom = f"the password of user {user}" if user else "a user without a name"
        return StoreError(
            f"The MLflow server {address()} does not accept {whom}. "
            f"Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD (docs/servers.md)."
        )
    if status == 403:
        return StoreError(
            f"User {user} may not do this at the MLflow server {address()} (403 Forbidden). The right EDIT is needed: "
            f"on the experiment equipoise-STUDY to track, on the model equipoise-STUDY too to register, on that model "
            f"and the experiment equipoise-registry to promote and roll back. An administrator grants it "
            f"(docs/servers.md)."
        )
    return None


def track(study: Study) -> dict[str, list[str]]:
    """Mirror every result of a study that the store lacks; idempotent.

    Returns:
        Run ids by what happened: "written" and "present".
    """
    store = client()
    done: dict[str, list[str]] = {"written": [], "present": []}
    folders = [(backbone, scenario) for backbone in study.backbones for scenario in study.scenarios]
    for backbone, scenario in parallel.progress(
        folders, f"tracking {study.name}", len(folders), "results"
    ):
        folder = study.result_path(backbone, scenario)
        if (folder / "metrics.json").is_file():
            run_id, fresh = mirror(store, study, backbone, scenario, folder)
            done["written" if fresh else "present"].append(run_id)
    return done


def mirror(
    store: MlflowClient,
    study: Study,
    backbone: str,
    scenario: str,
    folder: Path,
    adopt: str | None = None,
) -> tuple[str, bool]:
    """Write one result as one run, unless a run holds it already.

    Args:
        store: The tracking store.
        study: Its name is the experiment's, `equipoise-<study>`.
        backbone: Of the result.
        scenario: Of the result.
        folder: Where the result lies.
        adopt: A run that `mlflow run` opened: it becomes the result's run instead of a second one.

    Returns:
        The run id and whether it was written now.
    """
    result = results.load_result(study, backbone, scenario, folder)
    digest = result.summary["result_digest"]
    present = find(store, digest)
    if present:
        if adopt and adopt != present:
            mark_launcher(store, adopt, {"equipoise.result_run_id": present})
        return present, False
    experiment = experiment_id(store, f"equipoise-{study.name}")
    _remove_unfinished(store, experiment, digest)
    names = {
        "equipoise.study": study.name,
        "equipoise.backbone": backbone,
        "equipoise.scenario": scenario,
    }
    if adopt:
        run_id, experiment = adopt, store.get_run(adopt).info.experiment_id
    else:
        label = f"{backbone}/{scenario}"
        run = store.create_run(
            experiment,
            run_name=label,
            tags={**names, _ROLE: "writing", "equipoise.writing": digest},
        )
        run_id = run.info.run_id
    _write_result(store, run_id, result, folder)
    _write_trials(store, experiment, run_id, study.settings.tracking.trials, folder)
    tags = {
        **names,
        _ROLE: "result",
        DIGEST: digest,
        **version_tags(),
        **_digest_tags(result.summary),
    }
    store.log_batch(run_id, tags=[RunTag(key, str(value)) for key, value in tags.items()])
    if not adopt:
        store.set_terminated(run_id, RunStatus.to_string(RunStatus.FINISHED))
    return run_id, True


def find(store: MlflowClient, digest: str) -> str | None:
    """The run that holds a result, in whichever experiment, or None."""
    experiments = [experiment.experiment_id for experiment in store.search_experiments()]
    runs = store.search_runs(
        experiments, f"tags.`{DIGEST}` = '{digest}' and tags.`{_ROLE}` = 'result'"
    )
    # An adopted run is RUNNING until `mlflow run` ends it; one that failed after all does not count.
    alive = [run.info.run_id for run in runs if run.info.status in ("FINISHED", "RUNNING")]
    return alive[0] if alive else None


def experiment_id(store: MlflowClient, name: str) -> str:
    """Id of an experiment, made when it is not there."""
    experiment = store.get_experiment_by_name(name)
    if experiment:
        return experiment.experiment_id
    # Beside the default store artifacts get an absolute address, so that they are found from any working folder.
    location = (
        (Path.cwd() / "mlartifacts" / name).as_uri() if tracking_uri() == _default_uri() else None
    )
    try:
        return store.create_experiment(name, artifact_location=location)
    except MlflowException:  # another process made it in between
        experiment = store.get_experiment_by_name(name)
        if experiment is None:
            raise
        return experiment.experiment_id


def adopted_run() -> str | None:
    """The run that `mlflow run` opened for this process, taken out of the environment; None when it is not here.

    It may not be: a relative sqlite address means another file in the folder of a project cloned from git.
    """
    run_id = os.environ.pop("MLFLOW_RUN_ID", None)
    if not run_id:
        return None
    try:
        client().get_run(run_id)
    except MlflowException:
        return None
    return run_id


def mark_launcher(store: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Tag a run of `mlflow run` that only started something."""
    store.log_batch(
        run_id, tags=[RunTag(key, value) for key, value in {_ROLE: "launcher", **tags}.items()]
    )


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names and text.

    >>> flat({"tune": {"trials": 5, "constraint": None}})
    {'tune.trials': '5', 'tune.constraint': 'null'}
    """
    found: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value if isinstance(value, str) else json.dumps(value)
    return found


def _write_result(store: MlflowClient, run_id: str, result: results.Result, folder: Path) -> None:
    now = int(time.time() * 1000)
    values: dict[str, float | None] = {
        name: result.summary.get(name) for name in ("inner_score", "passes")
    }
    digest = result.summary["result_digest"]
    values["test_openings"] = openings.count(result.predictions.test_digest(), {digest})
    for point, table in result.summary["metrics"].items():
        for name, cell in table.items():
            values |= {f"{point}.{name}": cell["value"]}
            values |= {f"{point}.{name}_{end}": cell[end] for end in ("low", "high")}
    numbers = [
        Metric(name, float(value), now, 0) for name, value in values.items() if value is not None
    ]
    params = [Param(name, value[:6000]) for name, value in flat(result.summary["settings"]).items()]
    store.log_batch(run_id, metrics=numbers, params=params[:100])
    for start in range(100, len(params), 100):
        store.log_batch(run_id, params=params[start : start + 100])
    for name in ("metrics.json", "best.json"):
        store.log_artifact(run_id, str(folder / name))
    store.log_dict(run_id, result.summary["settings"], "settings.json")
    rows = results.distribution([result])
    store.log_dict(run_id, {"distribution": rows}, "distribution.json")
    classes = list(result.predictions.classes)
    drawn = {"distribution": figures.distribution(rows, classes, result.backbone)}
    drawings = (figures.roc, figures.precision_recall, figures.reliability, figures.decision)
    drawn |= {
        draw.__name__: draw([result]) for draw in (drawings if len(classes) == 2 else drawings[:3])
    }
    for name, figure in drawn.items():
        store.log_text(run_id, figure.svg, f"figures/{name}.svg")


def _write_trials(
    store: MlflowClient, experiment: str, parent: str, which: str, folder: Path
) -> None:
    trials, _ = read_table(folder / "trials.parquet")
    if which == "none" or trials.empty:
        return
    if which == "best":
        complete = trials[trials["state"] == "complete"]
        trials = complete.loc[complete.groupby(["repeat", "fold", "seed"])["score"].idxmax()]
    fixed = {"trial", "state", "score", "violation", "error", "repeat", "fold", "seed"}
    now = int(time.time() * 1000)
    for row in trials.to_dict("records"):
        name = (
            f"trial {row['trial']} (repeat {row['repeat']}, fold {row['fold']}, seed {row['seed']})"
        )
        tags = {"mlflow.parentRunId": parent, _ROLE: "trial", "equipoise.state": row["state"]}
        child = store.create_run(experiment, run_name=name, tags=tags).info.run_id
        params = [
            Param(key, str(value))
            for key, value in row.items()
            if key not in fixed and not pd.isna(value)
        ]
        score = [Metric("score", float(row["score"]), now, 0)] if not pd.isna(row["score"]) else []
        store.log_batch(child, metrics=score, params=params)
        ended = {"complete": "FINISHED", "pruned": "KILLED"}.get(row["state"], "FAILED")
        store.set_terminated(child, ended)


def _remove_unfinished(store: MlflowClient, experiment: str, digest: str) -> None:
    """Delete runs of this result that a killed `track` left half written, with their trials."""
    clause = f"tags.`equipoise.writing` = '{digest}' and tags.`{_ROLE}` = 'writing'"
    for run in store.search_runs([experiment], clause):
        for child in store.search_runs(
            [experiment], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
        ):
            store.delete_run(child.info.run_id)
        store.set_terminated(run.info.run_id, "KILLED")
        store.delete_run(run.info.run_id)


def _digest_tags(summary: Mapping[str, Any]) -> dict[str, str]:
    return {f"equipoise.digest.{name}": value for name, value in summary["digests"].items()}


def version_tags() -> dict[str, str]:
    """Tags with the git commit and whether the work tree differed from it."""
    commit, changes = git("rev-parse", "HEAD"), git("status", "--porcelain", "--untracked-files=no")
    if commit is None:
        return {"equipoise.git_commit": "none"}
    return {
        "equipoise.git_commit": commit,
        "mlflow.source.git.commit": commit,
        "equipoise.git_dirty": str(bool(changes)),
    }
