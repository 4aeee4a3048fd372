"""Mirror results into MLflow, for people to look at. Files hold the truth.

Runs are written through MlflowClient, never through the fluent API, which could take over somebody
else's run.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import tempfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeGuard

import mlflow
import requests
from filelock import FileLock
from mlflow.entities import Experiment, Run, RunStatus, RunTag
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from mlflow.utils.credentials import read_mlflow_creds
from mlflow.utils.mlflow_tags import (
    MLFLOW_GIT_COMMIT,
    MLFLOW_PROJECT_ENTRY_POINT,
    MLFLOW_SOURCE_NAME,
    MLFLOW_SOURCE_TYPE,
)
from sqlalchemy.exc import DBAPIError, OperationalError, SQLAlchemyError

from equipoise.core import parallel
from equipoise.core.config import Study
from equipoise.core.documents import Comparison, ScenarioSummary
from equipoise.core.environment import environment, git, masked
from equipoise.core.errors import ConfigError, StoreError
from equipoise.core.files import atomic_path, digest_of
from equipoise.core.text import first_line, shortened
from equipoise.registry import homes, runs, view

if TYPE_CHECKING:
    from equipoise.compare.results import Result

#: Whose error it is that an answer holds other fields than MLflow's.
_PARSER = "google.protobuf"
#: By which a user names a store.
_STORE_VARIABLE = "MLFLOW_TRACKING_URI"

# --- the store ------------------------------------------------------------------------------------


def tracking_uri(root: Path) -> str:
    """Address of the store: MLFLOW_TRACKING_URI, or mlflow.db beside params.yaml in `root`."""
    return environment(_STORE_VARIABLE) or _default_uri(root)


def _default_uri(root: Path) -> str:
    return f"sqlite:///{_default_path(root)}"


def _default_path(root: Path) -> Path:
    return root.absolute() / "mlflow.db"


def client(root: Path) -> MlflowClient:
    """A client of the store at `tracking_uri`.

    Models are there too, unless MLFLOW_REGISTRY_URI says otherwise.

    Raises:
        StoreError: When the store came with a copied or moved checkout and keeps its files elsewhere.
    """
    # That tables are made is no news, and what the store logs of a failure is said in a sentence.
    logging.getLogger("mlflow").setLevel(logging.WARNING)
    logging.getLogger("mlflow.store").setLevel(logging.CRITICAL)
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # A bucket is often within reach of the server alone: MLflow waits a minute for it, file by file.
    os.environ.setdefault("MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD", "false")
    # MLflow's own 7 attempts take 4 minutes to notice that a server is gone.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    if tracking_uri(root) == _default_uri(root):
        _make_store(_default_path(root))
        _require_own_files(root)
    _use_store(tracking_uri(root))
    return MlflowClient()


def _use_store(uri: str) -> None:
    """Let MLflow use a store from now on.

    MLflow writes its address into the environment too, where it would be taken for that of a user, and another project
    would be tracked in the store of this one.
    """
    given = os.environ.get(_STORE_VARIABLE)
    mlflow.set_tracking_uri(uri)
    if given is None:
        os.environ.pop(_STORE_VARIABLE, None)
    else:
        os.environ[_STORE_VARIABLE] = given


def _make_store(path: Path) -> None:
    """Make the tables of a store whole or not at all.

    MLflow refuses a store whose making was killed half-way.
    """
    from mlflow.store.db import utils

    with machine_lock(path):
        if path.exists():
            return
        with atomic_path(path) as temporary:
            engine = utils.create_sqlalchemy_engine(f"sqlite:///{temporary}")
            utils._initialize_tables(engine)
            engine.dispose()


def _require_own_files(root: Path) -> None:
    other = homes.other_home(_default_path(root))
    if other:
        raise StoreError(
            f"{_default_path(root)} keeps its files below {other}: this checkout was copied or moved. Nothing was read "
            f"or written there. `equipoise track --rehome` makes it keep them below {root.absolute()}; "
            f"MLFLOW_TRACKING_URI=sqlite:///{other}/mlflow.db goes on with the store of the other folder."
        )


def machine_lock(subject: Any, timeout_seconds: float = -1) -> FileLock:
    """A lock that all processes of this machine share, whoever runs them.

    The system frees it when the process that holds it dies.

    Args:
        subject: What is locked, as plain data; the same subject is the same lock.
        timeout_seconds: How long to wait for it; -1 waits for ever.
    """
    path = Path(tempfile.gettempdir()) / f"equipoise-{digest_of(subject)[:16]}.lock"
    return FileLock(path, timeout=timeout_seconds, mode=0o666)


def rehome(root: Path) -> int:
    """Make the default store of a copied or moved checkout keep its files beside it; returns the addresses changed.

    Raises:
        ConfigError: When the store is another one, or the files did not come along.
    """
    if tracking_uri(root) != _default_uri(root):
        raise ConfigError(
            f"The store is {address(root)}; only mlflow.db beside params.yaml moves with a checkout. "
            f"Unset MLFLOW_TRACKING_URI."
        )
    return homes.rehome(_default_path(root))


def address(root: Path) -> str:
    """`tracking_uri` as it may be printed: without a password."""
    return masked(tracking_uri(root))


def advice_to_look(study: Study) -> str:
    """Where the runs of a study can be looked at: a link to its server, or the verb that starts one."""
    if not tracking_uri(study.root).startswith(("http:", "https:")):
        return f"`equipoise ui --study {study.name}` shows them"
    experiment = experiment_id(client(study.root), f"equipoise-{study.name}", study.root)
    return view.address(address(study.root), experiment)


def experiment_id(store: MlflowClient, name: str, root: Path) -> str:
    """Id of an experiment, which is made when it is not there.

    Raises:
        StoreError: When it is deleted; its name is then neither free nor of use.
    """
    experiment = store.get_experiment_by_name(name)
    if experiment:
        require_active(experiment)
        return experiment.experiment_id
    try:
        return store.create_experiment(name, artifact_location=_artifact_location(name, root))
    except MlflowException:  # another process made it in between
        experiment = store.get_experiment_by_name(name)
        if experiment is None:
            raise
        return experiment.experiment_id


def require_active(experiment: Experiment) -> None:
    """Refuse a deleted experiment with the command that restores it."""
    if experiment.lifecycle_stage == "deleted":
        raise StoreError(
            f"The experiment {experiment.name} is deleted. `mlflow experiments restore --experiment-id "
            f"{experiment.experiment_id}` brings it back with its runs; `mlflow gc --experiment-ids "
            f"{experiment.experiment_id}` removes it for good, and the next call makes it anew."
        )


def _artifact_location(name: str, root: Path) -> str | None:
    """Where the artifacts of an experiment go; None leaves it to the server.

    Beside the default store the address is absolute, so that artifacts are found from any working
    folder.
    """
    if tracking_uri(root) != _default_uri(root):
        return None
    return (root.absolute() / homes.ARTIFACTS / name).as_uri()


# --- errors of the store --------------------------------------------------------------------------


class _Failure(NamedTuple):
    """What went wrong between us and the store.

    Attributes:
        lost: Whether the store did not answer.
        status: HTTP status of its answer; 0 where there was none.
    """

    lost: bool
    status: int


def any_error(error: BaseException) -> StoreError | None:
    """What any error of MLflow or its database says, in words; None for other errors."""
    known = store_error(error) or _schema_error(error)
    if known is not None:
        return known
    if isinstance(error, DBAPIError):
        return _database_error(error.orig or error)
    store = masked(mlflow.get_tracking_uri())
    if isinstance(error, MlflowException):
        return StoreError(
            f"MLflow refused ({store}): {_said_by(error)}. `equipoise doctor` looks at the store, and docs/faults.md "
            f"says what is kept."
        )
    if type(error).__module__.startswith(_PARSER):
        return StoreError(
            f"{store} does not answer as MLflow does: {_said_by(error)}. Nothing was read from it; correct "
            f"MLFLOW_TRACKING_URI, or ask who runs the server."
        )
    return None


def _said_by(error: BaseException) -> str:
    """The first line of an error, without passwords; a server may answer anything of any length."""
    return shortened(masked(first_line(error)))


def _database_error(error: BaseException) -> StoreError:
    """What to do about a database that does not answer as one."""
    return StoreError(
        f"The database {masked(mlflow.get_tracking_uri())} cannot be used: {_said_by(error)}. Results stay in files: "
        f"give it space and permissions or restore it from a backup, or set MLFLOW_TRACKING_URI; then run the same "
        f"command again."
    )


def _schema_error(error: BaseException) -> StoreError | None:
    """What to do about a database of another version of MLflow; None for other errors."""
    schema = re.search(r"schema \(found version (\w+)", str(error))
    unknown = re.search(r"Can't locate revision identified by '(\w+)'", str(error))
    named = schema or unknown
    if named is None:
        return None
    revision = named[1]
    store = masked(mlflow.get_tracking_uri())
    if _knows_schema(revision):
        return StoreError(
            f"The database {store} is of an older MLflow (schema {revision}). Copy it, then run `mlflow db upgrade "
            f"{store}` and the same command again."
        )
    return StoreError(
        f"The database {store} is of a newer MLflow (schema {revision}) than {mlflow.__version__}, which is installed. "
        f"Install the one that wrote it, or set MLFLOW_TRACKING_URI to another store."
    )


def _knows_schema(revision: str) -> bool:
    """Whether this MLflow has come past a schema, so that it can upgrade it: one file for each step."""
    steps = Path(mlflow.__file__).parent / "store/db_migrations/versions"
    return any(steps.glob(f"{revision}_*.py"))


def store_error(error: BaseException | None) -> StoreError | None:
    """What an error of MLflow's client says about its server, in words; None for other errors."""
    failure = _failure(error)
    if failure is None:
        return None
    server = f"MLflow server {masked(mlflow.get_tracking_uri())}"
    user = read_mlflow_creds().username
    if failure.lost and error is not None and _is_file(mlflow.get_tracking_uri()):
        return _database_error(error)
    if failure.lost:
        return StoreError(
            f"The {server} cannot be reached. Results stay in files: start the server or set MLFLOW_TRACKING_URI, "
            f"then run the same command again; it goes on from there."
        )
    if failure.status == 401:
        whom = f"the password of user {user}" if user else "a user without a name"
        return StoreError(
            f"The {server} does not accept {whom}. Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD "
            f"(docs/servers.md)."
        )
    if failure.status == 403:
        return StoreError(
            f"User {user} may not do this at the {server} (403 Forbidden). The right EDIT is "
            f"needed: on the experiment equipoise-STUDY to track, on the model equipoise-STUDY too to register, on "
            f"that model and the experiment equipoise-registry to promote and roll back. An administrator grants it "
            f"(docs/servers.md)."
        )
    return None


def _failure(error: BaseException | None) -> _Failure | None:
    if isinstance(error, MlflowException):
        no_answer = re.match(r"API request to \S+ failed with (timeout )?exception", str(error))
        lost = no_answer is not None or error.error_code == "TEMPORARILY_UNAVAILABLE"
        return _Failure(lost, error.get_http_status_code())
    if isinstance(error, requests.RequestException):
        if error.response is None:
            return _Failure(lost=True, status=0)
        return _Failure(lost=False, status=error.response.status_code)
    if isinstance(error, OperationalError):  # MLflow speaks to a database itself
        return _Failure(lost=True, status=0)
    return None


def _is_file(uri: str) -> bool:
    """Whether a store is a file of this machine, which no server answers for."""
    return uri.startswith("sqlite:")


# --- results --------------------------------------------------------------------------------------


class Mirrored(NamedTuple):
    """The run that holds a result, and whether it was written by this call."""

    run_id: str
    written: bool


@dataclass(frozen=True)
class Tracked:
    """Ids of the runs of a study.

    Attributes:
        written: Written now.
        present: There already.
        judged: Those of both whose verdict was added or corrected now.
    """

    written: list[str] = field(default_factory=list)
    present: list[str] = field(default_factory=list)
    judged: list[str] = field(default_factory=list)


def track(study: Study) -> Tracked:
    """Mirror every result of a study that the store lacks, and the verdict on it.

    Doing it again writes nothing.
    """
    store = client(study.root)
    tracked = Tracked()
    comparison = _comparison(study)
    pairs = [(backbone, scenario) for backbone in study.backbones for scenario in study.scenarios]
    steps = parallel.progress(pairs, f"tracking {study.name}", len(pairs), "results")
    for backbone, scenario in steps:
        folder = study.result_path(backbone, scenario)
        if not (folder / "metrics.json").is_file():
            continue
        run = mirror(store, study, backbone, scenario, folder)
        if run.written:
            tracked.written.append(run.run_id)
        else:
            tracked.present.append(run.run_id)
        if not _speaks_of(comparison, backbone, scenario, folder):
            continue
        if runs.write_verdict(store, run.run_id, comparison, backbone, scenario):
            tracked.judged.append(run.run_id)
    return tracked


def mirror(
    store: MlflowClient,
    study: Study,
    backbone: str,
    scenario: str,
    folder: Path,
    adopt: str | None = None,
    overrides: Mapping[str, object] | None = None,
) -> Mirrored:
    """Write one result as one run, unless a run holds it already.

    Args:
        store: The tracking store.
        study: Its name is the experiment's, `equipoise-<study>`.
        backbone: Of the result.
        scenario: Of the result.
        folder: Where the result lies.
        adopt: A run that `mlflow run` opened: it becomes the result's run instead of a second one.
        overrides: Settings that were given for this result only.
    """
    summary = ScenarioSummary.read(folder / "metrics.json")
    digest = summary.result_digest
    # Two that mirror one result side by side (`mlflow run` twice) would make two runs of it.
    with machine_lock(["mirror", tracking_uri(study.root), digest]):
        present = find(store, digest)
        if present:
            run_id = present.info.run_id
            if adopt and adopt != run_id:
                mark_launcher(store, adopt, {"equipoise.result_run_id": run_id})
            if run_id != adopt:
                _end_if_killed(store, present)
            return Mirrored(run_id, written=False)
        # What the figures need takes seconds to import and to read: that is paid for what is written only.
        from equipoise.compare import results

        result = results.load_result(study, backbone, scenario, folder)
        run_id = _write(store, study, result, folder, adopt, overrides or {})
        _replace_older(store, digest, run_id)
    return Mirrored(run_id, written=True)


def _write(
    store: MlflowClient,
    study: Study,
    result: Result,
    folder: Path,
    adopt: str | None,
    overrides: Mapping[str, object],
) -> str:
    """Write a result into a run of its own, or into the adopted one, and return its id.

    An interrupted call leaves no run behind that seems to go on.
    """
    experiment = experiment_id(store, f"equipoise-{study.name}", study.root)
    view.describe(store, experiment, study)
    digest = result.summary.result_digest
    _remove_unfinished(store, experiment, digest)
    span = runs.span(study, result.summary, folder)
    run_id = adopt or _open(store, study, experiment, result, span.start)
    if adopt:
        experiment = store.get_run(adopt).info.experiment_id
    try:
        runs.write_result(store, run_id, result, study, folder, overrides)
        runs.write_trials(store, experiment, run_id, study.settings.tracking.trials, folder)
        tags = {runs.ROLE: "result", runs.DIGEST: digest, runs.LAYOUT_TAG: runs.LAYOUT}
        if "test" in result.summary.digests:  # runs of the same test rows share it
            tags["equipoise.digest.test"] = result.summary.digests["test"]
        _tag(store, run_id, tags | runs.code_tags(study.root))
    except BaseException:
        _give_up(store, experiment, run_id, adopted=adopt is not None)
        raise
    if not adopt:
        store.set_terminated(run_id, RunStatus.to_string(RunStatus.FINISHED), span.end)
    return run_id


def _open(
    store: MlflowClient, study: Study, experiment: str, result: Result, start_time: int
) -> str:
    """Open the run of a result, which started when the scenario did."""
    tags = {runs.ROLE: "writing", runs.DIGEST: result.summary.result_digest}
    tags |= runs.origin_tags(study.root, f"equipoise scenario --study {study.name}")
    run = store.create_run(experiment, start_time=start_time, tags=tags, run_name=result.key)
    return run.info.run_id


def _end_if_killed(store: MlflowClient, run: Run) -> None:
    """End the run of a result that is whole, where a kill came between its last tag and its end.

    One that another `mlflow run` is about to end is ended twice, which changes nothing.
    """
    if run.info.status == RunStatus.to_string(RunStatus.RUNNING):
        store.set_terminated(run.info.run_id, RunStatus.to_string(RunStatus.FINISHED))


def _comparison(study: Study) -> Comparison | None:
    """What was compared last, by the short form that git keeps, or by the whole."""
    for name in ("comparison.json", "evidence.json"):
        path = study.reports_path / name
        if path.is_file():
            return Comparison.read(path)
    return None


def _speaks_of(
    comparison: Comparison | None, backbone: str, scenario: str, folder: Path
) -> TypeGuard[Comparison]:
    """Whether a comparison is there and says anything of this result, not of an older run of its scenario."""
    if comparison is None:
        return False
    row = comparison.rows.get(backbone, {}).get(scenario)
    if row is None:
        return False
    summary = ScenarioSummary.read(folder / "metrics.json")
    return row.result_digest == summary.result_digest


def find(store: MlflowClient, digest: str) -> Run | None:
    """The run that holds a result, in whichever experiment, or None."""
    for run in _runs_of(store, digest):
        # An adopted run is RUNNING until `mlflow run` ends it; one that failed does not count.
        is_whole = run.info.status in ("FINISHED", "RUNNING")
        if is_whole and run.data.tags.get(runs.LAYOUT_TAG) == runs.LAYOUT:
            return run
    return None


def _runs_of(store: MlflowClient, digest: str) -> list[Run]:
    """Every run that holds a result, in whichever experiment and layout."""
    experiments = [experiment.experiment_id for experiment in store.search_experiments()]
    clause = f"tags.`{runs.DIGEST}` = '{digest}' and tags.`{runs.ROLE}` = 'result'"
    return list(store.search_runs(experiments, clause))


def _replace_older(store: MlflowClient, digest: str, run_id: str) -> None:
    """Mark runs that hold a result in an older layout; versions of models point to them, so they stay."""
    for run in _runs_of(store, digest):
        if run.data.tags.get(runs.LAYOUT_TAG) != runs.LAYOUT:
            tags = {runs.ROLE: "replaced", "equipoise.result_run_id": run_id}
            _tag(store, run.info.run_id, tags)


@dataclass(frozen=True)
class Launched:
    """The run that MLFLOW_RUN_ID named when this process started.

    Attributes:
        run_id: Its id.
        obstacle: Why it is left as it is, in words that follow "which"; empty where it is ours to write.
    """

    run_id: str
    obstacle: str

    @property
    def adopted(self) -> str | None:
        """The id of a run that is ours to write, or None."""
        return None if self.obstacle else self.run_id

    def __str__(self) -> str:
        return (
            f"MLFLOW_RUN_ID names run {self.run_id[:8]}, which {self.obstacle}: it is left as it is"
        )


def claim_launched(root: Path, entry_points: Collection[str]) -> Launched | None:
    """Take over the run that `mlflow run` opened for this very process, once.

    The variable is taken out of the environment: what this process starts must not find it again.

    Args:
        root: Folder that holds params.yaml.
        entry_points: Of MLproject, those that start what this process does.

    Returns:
        None where no run is named.
    """
    run_id = os.environ.pop("MLFLOW_RUN_ID", None)
    if not run_id:
        return None
    store = client(root)
    with machine_lock(["claim", run_id]):
        obstacle = _obstacle(store, run_id, root, entry_points)
        if not obstacle:
            _tag(store, run_id, {runs.ROLE: "claimed"})
    return Launched(run_id, obstacle)


def _obstacle(store: MlflowClient, run_id: str, root: Path, entry_points: Collection[str]) -> str:
    """Why a run must not be written into, in words; empty when it may be."""
    try:
        run = store.get_run(run_id)
    except MlflowException as error:
        if store_error(error):
            raise
        # A relative sqlite address means another file in the folder of a project that was cloned from git.
        return "is not in this store; an absolute MLFLOW_TRACKING_URI would reach it"
    tags = run.data.tags
    entry_point = tags.get(MLFLOW_PROJECT_ENTRY_POINT)
    if run.info.status != "RUNNING" or run.info.lifecycle_stage != "active":
        return f"is {run.info.status} ({run.info.lifecycle_stage})"
    if tags.get(MLFLOW_SOURCE_TYPE) != "PROJECT" or entry_point is None:
        return "`mlflow run` did not open"
    if entry_point not in entry_points:
        return f"`mlflow run` opened for the entry point {entry_point}"
    if not _is_source(tags, root):
        return f"`mlflow run` opened for {tags.get(MLFLOW_SOURCE_NAME)}, another project or commit"
    if runs.ROLE in tags or run.data.metrics:
        return "holds something already"
    return ""


def _is_source(tags: Mapping[str, str], root: Path) -> bool:
    """Whether a run of a project is of the checkout in `root`, by its commit or else by its folder."""
    commit = tags.get(MLFLOW_GIT_COMMIT)
    if commit:
        return commit == git("rev-parse", "HEAD", folder=root)
    return Path(tags.get(MLFLOW_SOURCE_NAME, "")).resolve() == root.resolve()


def mark_launcher(store: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    """Tag a run of `mlflow run` that only started something."""
    _tag(store, run_id, {runs.ROLE: "launcher", **tags})


def _tag(store: MlflowClient, run_id: str, tags: Mapping[str, str]) -> None:
    store.log_batch(run_id, tags=[RunTag(name, str(value)) for name, value in tags.items()])


def _remove_unfinished(store: MlflowClient, experiment: str, digest: str) -> None:
    """Delete runs of this result that a killed `track` left half written, with their trials."""
    clause = f"tags.`{runs.DIGEST}` = '{digest}' and tags.`{runs.ROLE}` = 'writing'"
    for run in store.search_runs([experiment], clause):
        _give_up(store, experiment, run.info.run_id, adopted=False)


def _give_up(store: MlflowClient, experiment: str, run_id: str, adopted: bool) -> None:
    """Delete a half-written run with its trials; an adopted one is ended by `mlflow run`, which opened it.

    Where the store does not answer any more the next call does it.
    """
    with contextlib.suppress(MlflowException, SQLAlchemyError):
        of_this_run = f"tags.`mlflow.parentRunId` = '{run_id}'"
        for child in store.search_runs([experiment], of_this_run):
            store.set_terminated(child.info.run_id, "KILLED")
            store.delete_run(child.info.run_id)
        if not adopted:
            store.set_terminated(run_id, "KILLED")
            store.delete_run(run_id)
