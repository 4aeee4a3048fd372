"""What MLflow holds after `main`: one run per result, trials as children, nothing left running."""

import json
import os
import re
import shutil
import sqlite3

import pandas as pd
import pytest
from filelock import Timeout
from mlflow.entities import ViewType
from mlflow.exceptions import RestException
from mlflow.tracking import MlflowClient

from conftest import git, path_of
from equipoise import cli
from equipoise.core import config, files
from equipoise.core.documents import Difference, ScenarioSummary
from equipoise.registry import runs as records
from equipoise.registry import tracking, view
from fabricate import comparisons, made


@pytest.fixture
def fresh_store(empty_store, tmp_path, monkeypatch):
    """The store of this test, which nothing is in yet."""
    shutil.copy(empty_store, tmp_path / "store.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store.db")


@pytest.fixture(scope="module")
def store(workspace):
    return MlflowClient(tracking_uri=f"sqlite:///{workspace}/mlflow.db")


@pytest.fixture(scope="module")
def runs(store):
    experiment = store.get_experiment_by_name("equipoise-demo")
    return store.search_runs([experiment.experiment_id])


def test_one_finished_run_per_result(runs):
    results = [run for run in runs if run.data.tags["equipoise.role"] == "result"]
    assert sorted(run.data.params["scenario"] for run in results) == [
        "baseline",
        "weighted_augment",
    ]
    assert {run.info.status for run in runs} == {"FINISHED"}


@pytest.fixture(scope="module")
def baseline(runs):
    (run,) = [run for run in runs if run.data.params.get("scenario") == "baseline"]
    return run


@pytest.fixture(scope="module")
def summary(workspace):
    return ScenarioSummary.read(workspace / "results/demo/vgg16/baseline/metrics.json")


def test_a_run_holds_some_twenty_numbers_in_groups_and_what_differs_between_runs(baseline, summary):
    metrics = baseline.data.metrics
    assert len(metrics) <= 22
    assert {name.split("/")[0] for name in metrics} == {"search", "test", "locked"}
    assert metrics["test/auroc"] == summary.metrics["free"]["auroc"].value
    assert metrics["locked/sensitivity"] == summary.metrics["locked"]["sensitivity"].value
    assert metrics["search/inner_score"] == summary.inner_score
    assert set(baseline.data.params) == {"study", "backbone", "scenario", "mode", "l2"}


def test_a_run_says_who_made_it_when_and_of_what(baseline, summary, workspace):
    tags = baseline.data.tags
    assert tags["equipoise.result_digest"] == summary.result_digest
    assert tags["equipoise.digest.test"] == summary.digests["test"]
    assert tags["mlflow.source.git.commit"] == git(workspace, "rev-parse", "HEAD").strip()
    assert (tags["mlflow.user"], baseline.info.user_id) == (records.user(), records.user())
    assert (tags["verdict"], tags["winner"]) == ("baseline", "yes")
    assert "doing nothing" in tags["mlflow.note.content"]
    timing = json.loads(
        (workspace / f"data/cache/timings/{summary.result_digest}.json").read_text()
    )
    assert (baseline.info.start_time, baseline.info.end_time) == (
        timing["start_ms"],
        timing["end_ms"],
    )
    (used,) = baseline.inputs.dataset_inputs
    manifest = pd.read_parquet(workspace / "data/manifest/demo.parquet")
    profile = json.loads(used.dataset.profile)
    assert used.dataset.name == "demo"
    assert summary.digests["manifest"].startswith(used.dataset.digest)
    assert profile["images_by_class"] == manifest["class_name"].value_counts().to_dict()
    assert profile["patients"] == manifest["patient_id"].nunique()
    assert (used.tags[0].value, str(workspace) in str(used.to_dictionary())) == ("holdout", False)


def test_every_number_with_its_interval_and_every_setting_lie_in_files(store, baseline, summary):
    place = path_of(baseline.info.artifact_uri)
    rows = json.loads((place / "intervals.json").read_text())
    table = pd.DataFrame(rows["data"], columns=rows["columns"]).set_index(["point", "metric"])
    numbers = sum(len(metrics) for metrics in summary.metrics.values())
    auroc = summary.metrics["free"]["auroc"]
    assert len(table) == numbers > 30
    assert table.loc[("free", "auroc"), ["value", "low", "high"]].tolist() == pytest.approx(
        [auroc.value, auroc.low, auroc.high]
    )
    settings = json.loads((place / "settings.json").read_text())
    assert (settings["tune"]["trials"], settings["split"]["scheme"]) == (6, "holdout")
    names = {item.path for item in store.list_artifacts(baseline.info.run_id)}
    assert {"metrics.json", "best.json", "settings.json", "figures"} <= names
    assert {item.path for item in store.list_artifacts(baseline.info.run_id, "figures")} == {
        "figures/roc.svg",
        "figures/precision_recall.svg",
        "figures/decision.svg",
        "figures/distribution.svg",
        "figures/reliability.svg",
    }


def test_best_trials_are_children(runs):
    parents = {run.info.run_id for run in runs if run.data.tags["equipoise.role"] == "result"}
    children = [run for run in runs if run.data.tags["equipoise.role"] == "trial"]
    assert len(children) == len(parents) * 2  # two seeds
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == parents
    assert all("l2" in run.data.params and "score" in run.data.metrics for run in children)


#: What MLflow's client raises when a password expires, or is withdrawn, in the middle.
EXPIRED = RestException({"error_code": "UNAUTHENTICATED", "message": "You are not authenticated."})


class EndedAtTheFirstTrial(MlflowClient):
    """A store that is interrupted when a result is written and its first trial is not."""

    fault: BaseException

    def create_run(self, experiment_id, *arguments, tags, **options):
        if tags["equipoise.role"] == "trial":
            raise self.fault
        return super().create_run(experiment_id, *arguments, tags=tags, **options)


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), EXPIRED], ids=["Ctrl-C", "expired"])
def test_half_written_run_is_removed_and_written_again(fresh_store, workspace, fault):
    study = config.load_study("demo", root=workspace)
    folder = study.result_path("vgg16", "baseline")
    store = tracking.client(workspace)
    ended = EndedAtTheFirstTrial()
    ended.fault = fault
    with pytest.raises(type(fault)):
        tracking.mirror(ended, study, "vgg16", "baseline", folder)
    if fault is EXPIRED:
        assert "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD" in str(
            tracking.any_error(fault)
        )
    experiment = store.get_experiment_by_name("equipoise-demo").experiment_id
    left = store.search_runs([experiment], run_view_type=ViewType.ALL)
    assert {(run.info.status, run.info.lifecycle_stage) for run in left} == {("KILLED", "deleted")}
    run_id, written = tracking.mirror(store, study, "vgg16", "baseline", folder)
    assert written
    experiment = store.get_experiment_by_name("equipoise-demo").experiment_id
    runs = store.search_runs([experiment])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert [run.info.run_id for run in runs if run.data.tags["equipoise.role"] == "result"] == [
        run_id
    ]
    assert tracking.mirror(store, study, "vgg16", "baseline", folder) == (run_id, False)


def project_run(store, root, entry_point="oversample", **tags) -> str:
    """A run as `mlflow run` opens it for an entry point of the project in `root`."""
    source = {
        "mlflow.source.type": "PROJECT",
        "mlflow.source.name": str(root),
        "mlflow.project.entryPoint": entry_point,
    }
    return store.create_run("0", tags=source | tags).info.run_id


def claim(run_id, root, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    launched = tracking.claim_launched(root, ("oversample", "scenario"))
    assert "MLFLOW_RUN_ID" not in os.environ
    return launched


def test_only_the_run_that_was_opened_for_this_process_is_adopted_and_once(
    fresh_store, tmp_path, monkeypatch
):
    store = tracking.client(tmp_path)
    own = store.create_run("0").info.run_id
    measured = project_run(store, tmp_path)
    store.log_metric(measured, "their_metric", 1.0)
    finished = project_run(store, tmp_path)
    store.set_terminated(finished)
    left = {
        "0" * 32: "is not in this store",
        own: "`mlflow run` did not open",
        project_run(store, tmp_path, "main"): "opened for the entry point main",
        project_run(store, tmp_path / "elsewhere"): "another project or commit",
        measured: "holds something already",
        finished: "is FINISHED",
    }
    for run_id, why in left.items():
        launched = claim(run_id, tmp_path, monkeypatch)
        assert (launched.adopted, why in str(launched)) == (None, True), str(launched)
    assert "equipoise.role" not in store.get_run(own).data.tags

    right = project_run(store, tmp_path)
    assert claim(right, tmp_path, monkeypatch).adopted == right
    assert "holds something already" in str(claim(right, tmp_path, monkeypatch))
    assert claim("", tmp_path, monkeypatch) is None


def test_the_commit_tells_the_project_where_there_is_one(fresh_store, tmp_path, monkeypatch):
    store = tracking.client(tmp_path)
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "x")
    commit = git(tmp_path, "rev-parse", "HEAD").strip()
    for told, adopted in ((commit, True), ("0" * 40, False)):
        address = "https://example.org/their/fork.git"
        run_id = project_run(store, address, **{"mlflow.source.git.commit": told})
        assert (claim(run_id, tmp_path, monkeypatch).adopted == run_id) is adopted


@pytest.mark.parametrize("state", ["RUNNING", "FINISHED"])
def test_a_run_of_the_user_in_the_environment_stays_as_it_is(
    fresh_store, workspace, monkeypatch, capsys, state
):
    """As `dvc repro` in a shell or a notebook that has a run of its own open, or has had one."""
    store = tracking.client(workspace)
    theirs = store.create_run("0", tags={"mine": "yes"}).info.run_id
    store.log_metric(theirs, "free.auroc", 0.123)
    store.set_terminated(theirs, state)
    before = store.get_run(theirs).to_dictionary()
    monkeypatch.setenv("MLFLOW_RUN_ID", theirs)
    names = ("--study", "demo", "--backbone", "vgg16", "--scenario", "baseline", "--trials", "4")
    assert cli.main(["--root", str(workspace), "scenario", *names]) == 0
    said = capsys.readouterr().out
    assert "it is left as it is, and the result gets a run of its own" in said
    assert store.get_run(theirs).to_dictionary() == before
    experiment = store.get_experiment_by_name("equipoise-demo").experiment_id
    (made,) = store.search_runs([experiment], "tags.`equipoise.role` = 'result'")
    assert (made.info.status, "test/auroc" in made.data.metrics) == ("FINISHED", True)
    assert made.data.params["tune.trials"] == "4"


def test_a_result_that_is_there_is_not_evaluated_again(fresh_store, workspace, tmp_path):
    study = config.load_study("demo", root=workspace)
    folder = study.result_path("vgg16", "baseline")
    store = tracking.client(workspace)
    first = tracking.mirror(store, study, "vgg16", "baseline", folder)
    summary_only = tmp_path / "baseline"
    summary_only.mkdir()
    (summary_only / "metrics.json").write_bytes((folder / "metrics.json").read_bytes())
    again = tracking.mirror(store, study, "vgg16", "baseline", summary_only)
    assert again == (first.run_id, False)


def test_a_run_in_an_older_layout_stays_and_its_result_is_written_again(fresh_store, workspace):
    study = config.load_study("demo", root=workspace)
    folder = study.result_path("vgg16", "baseline")
    store = tracking.client(workspace)
    older = tracking.mirror(store, study, "vgg16", "baseline", folder).run_id
    store.delete_tag(older, "equipoise.layout")
    before = store.get_run(older).data.metrics
    newer = tracking.mirror(store, study, "vgg16", "baseline", folder)
    assert (newer.written, newer.run_id == older) == (True, False)
    kept = store.get_run(older)
    assert (kept.info.lifecycle_stage, kept.data.metrics) == ("active", before)
    assert kept.data.tags["equipoise.result_run_id"] == newer.run_id
    assert tracking.mirror(store, study, "vgg16", "baseline", folder) == (newer.run_id, False)


def test_steps_of_fine_tuning_are_metrics_with_steps(compared):
    folder = compared.result_path(made.BACKBONE, "oversample")
    curve = pd.DataFrame(
        {"repeat": 0, "fold": 0, "seed": [0, 0, 1], "step": [0, 2, 2], "loss": [0.7, 0.5, 0.6]}
    )
    files.write_table(folder / "curve.parquet", curve, {})
    tracking.track(compared)
    store = tracking.client(compared.root)
    experiment = store.get_experiment_by_name("equipoise-made").experiment_id
    (run,) = store.search_runs([experiment], "params.scenario = 'oversample'")
    history = store.get_metric_history(run.info.run_id, "finetune/loss seed 0")
    assert [(metric.step, metric.value) for metric in history] == [(0, 0.7), (2, 0.5)]
    assert run.data.metrics["finetune/loss seed 1"] == 0.6


def test_the_view_that_links_open_names_columns_that_runs_have(store, workspace):
    experiment = store.get_experiment_by_name("equipoise-demo")
    state = json.loads(experiment.tags["mlflow.sharedViewState.equipoise"])
    found = store.search_runs([experiment.experiment_id], state["searchFilter"])
    (run,) = [run for run in found if run.data.params["scenario"] == "weighted_augment"]
    held = {f"metrics.`{name}`" for name in run.data.metrics}
    held |= {f"tags.`{name}`" for name in run.data.tags}
    assert set(state["selectedColumns"]) | {state["orderByKey"]} <= held
    assert "viewStateShareKey=equipoise" in view.address("http://x/", experiment.experiment_id)


def test_a_result_whose_run_was_killed_before_its_end_is_ended(compared):
    tracked = tracking.track(compared)
    store = tracking.client(compared.root)
    store.update_run(tracked.written[0], status="RUNNING")
    assert tracked.written[0] in tracking.track(compared).present
    assert store.get_run(tracked.written[0]).info.status == "FINISHED"


def test_artifacts_come_through_the_server_unless_the_user_says_otherwise(
    fresh_store, tmp_path, monkeypatch
):
    name = "MLFLOW_ENABLE_PROXY_MULTIPART_DOWNLOAD"
    for said, expected in (("true", "true"), (None, "false")):
        monkeypatch.delenv(name, raising=False) if said is None else monkeypatch.setenv(name, said)
        tracking.client(tmp_path)
        assert os.environ[name] == expected


@pytest.fixture
def compared(fresh_store, tmp_path, monkeypatch):
    """Two results that lie in files, and what a comparison says of them."""
    monkeypatch.chdir(tmp_path)
    study = made.study(tmp_path)
    for name, strength in (("baseline", 1.0), ("oversample", 1.5)):
        folder = made.result(study, name, strength)
        files.write_table(folder / "trials.parquet", pd.DataFrame(), {})
    say(study, "inconclusive", Difference(value=0.0125, low=-0.004, high=0.029))
    return study


def say(study, verdict, delta, result_digest=None) -> None:
    """Write a comparison of the two results."""
    digests = {}
    for name in ("baseline", "oversample"):
        path = study.result_path(made.BACKBONE, name) / "metrics.json"
        digests[name] = ScenarioSummary.read(path).result_digest
    rows = {
        "baseline": comparisons.row(result_digest=digests["baseline"]),
        "oversample": comparisons.rival(
            verdict, delta, result_digest=result_digest or digests["oversample"]
        ),
    }
    comparison = comparisons.comparison({made.BACKBONE: rows}, comparisons=1)
    comparison.write(study.reports_path / "comparison.json")


def said(study) -> dict:
    """Scenario -> what its run says of the primary difference, and its tag."""
    store = tracking.client(study.root)
    experiment = store.get_experiment_by_name("equipoise-made").experiment_id
    runs = {}
    for run in store.search_runs([experiment]):
        numbers = {
            name: value for name, value in run.data.metrics.items() if name.startswith("primary/")
        }
        runs[run.data.params["scenario"]] = (run.data.tags.get("verdict"), numbers)
    return runs


def test_a_run_bears_its_verdict_and_the_simultaneous_interval(compared):
    tracked = tracking.track(compared)
    assert len(tracked.written) == len(tracked.judged) == 2
    assert said(compared) == {
        "baseline": ("baseline", {}),
        "oversample": (
            "inconclusive",
            {"primary/difference": 0.0125, "primary/low": -0.004, "primary/high": 0.029},
        ),
    }


def test_tracking_again_reads_no_predictions_and_writes_nothing(compared, monkeypatch):
    first = tracking.track(compared)
    for name in ("baseline", "oversample"):
        (compared.result_path(made.BACKBONE, name) / "predictions.parquet").unlink()
    again = tracking.track(compared)
    assert (again.written, again.judged) == ([], [])
    assert again.present == first.written


def test_what_a_later_comparison_says_corrects_the_runs_that_are_there(compared):
    report = compared.reports_path / "comparison.json"
    saved = report.read_bytes()
    report.unlink()
    first = tracking.track(compared)
    assert first.judged == []
    assert said(compared)["oversample"] == (None, {})
    report.write_bytes(saved)
    assert len(tracking.track(compared).judged) == 2
    say(compared, "better", Difference(value=0.0125, low=0.001, high=0.024))
    again = tracking.track(compared)
    assert len(again.judged) == 1
    verdict, numbers = said(compared)["oversample"]
    assert verdict == "better"
    assert numbers == {"primary/difference": 0.0125, "primary/low": 0.001, "primary/high": 0.024}


def test_the_verdict_on_another_run_of_the_scenario_is_not_believed(compared):
    delta = Difference(value=0.0125, low=0.001, high=0.024)
    say(compared, "better", delta, result_digest="e" * 64)
    tracking.track(compared)
    assert said(compared)["oversample"] == (None, {})


def test_the_default_store_lies_in_the_root_wherever_the_user_stands(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / "checkout"
    store = tracking.client(root)
    assert (root / "mlflow.db").is_file()
    experiment = store.get_experiment(tracking.experiment_id(store, "equipoise-made", root))
    assert experiment.artifact_location == (root / "mlartifacts/equipoise-made").as_uri()


@pytest.mark.parametrize("given", [None, "", "sqlite:///{}/given.db"])
def test_the_store_of_one_project_is_not_that_of_the_next(
    empty_store, tmp_path, monkeypatch, given
):
    if given is None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    else:
        given = given.format(tmp_path)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", given)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        shutil.copy(empty_store, tmp_path / name)
    shutil.copy(empty_store, tmp_path / "given.db")
    for name in ("one", "two", "one"):
        root = tmp_path / name
        store = tracking.client(root)
        assert store.tracking_uri == (given or f"sqlite:///{root}/mlflow.db")
        assert os.environ.get("MLFLOW_TRACKING_URI") == given


def test_a_lock_is_of_one_subject(tmp_path):
    held = tracking.machine_lock([str(tmp_path), "one"], timeout_seconds=0)
    other = tracking.machine_lock([str(tmp_path), "another"], timeout_seconds=0)
    with held, other, pytest.raises(Timeout):
        tracking.machine_lock([str(tmp_path), "one"], timeout_seconds=0).acquire()


# --- stores that are not as they should be --------------------------------------------------------


def execute(database, statement, *values) -> None:
    with sqlite3.connect(database) as connection:
        connection.execute(statement, values)


def of_newer_schema(database) -> None:
    execute(database, "update alembic_version set version_num = 'ffffffffffff'")


def of_older_schema(database) -> None:
    execute(database, "update alembic_version set version_num = '0584bdc529eb'")


def no_database(database) -> None:
    database.write_text("once a database")


def cut_short(database) -> None:
    database.write_bytes(database.read_bytes()[:5000])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (of_newer_schema, "is of a newer MLflow .schema ffffffffffff."),
        (of_older_schema, "is of an older MLflow .* `mlflow db upgrade sqlite:///"),
        (no_database, "cannot be used: .*file is not a database.*restore it from a backup"),
        (cut_short, "cannot be used: .*malformed.*restore it from a backup"),
    ],
)
def test_a_store_that_cannot_be_used_is_said_in_one_sentence_by_every_verb(
    workspace, tmp_path, monkeypatch, capsys, spoil, said
):
    database = tmp_path / "store.db"
    shutil.copy(workspace / "mlflow.db", database)
    spoil(database)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    study = ("--study", "demo")
    image = str(next((workspace / "data/raw/demo/opacity").glob("*.png")))
    model = ("--model", "models:/equipoise-demo@challenger")
    verbs = (("track",), ("register",), ("promote", *study), ("audit", "verify"))
    reason = ("--reason", "a drill")
    for verb in (*verbs, ("rollback", *study, *reason), ("predict", image, *model)):
        assert cli.main(["--root", str(workspace), *verb]) == 5, verb
        errors = capsys.readouterr().err.strip()
        assert re.match(f"StoreError: .*{said}", errors), errors
        assert "\n" not in errors


def test_a_deleted_experiment_says_how_it_comes_back(workspace, tmp_path, monkeypatch, capsys):
    database = tmp_path / "store.db"
    shutil.copy(workspace / "mlflow.db", database)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{database}")
    store = tracking.client(workspace)
    experiment = store.get_experiment_by_name("equipoise-demo").experiment_id
    store.delete_experiment(experiment)
    for verb in ("track", "register", "doctor"):
        if verb == "register":  # its version is there: nothing has to be written
            store.delete_registered_model("equipoise-demo")
        assert cli.main(["--root", str(workspace), verb]) in (1, 5)
        told = "".join(capsys.readouterr())
        assert f"`mlflow experiments restore --experiment-id {experiment}`" in told
