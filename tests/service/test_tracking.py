"""What MLflow holds after `main`: one run per result, trials as children, nothing left running."""

import json

import pytest
from filelock import Timeout
from mlflow.tracking import MlflowClient

from equipoise.core import config
from equipoise.service import tracking


@pytest.fixture(scope="module")
def store(workspace):
    return MlflowClient(tracking_uri=f"sqlite:///{workspace}/mlflow.db")


@pytest.fixture(scope="module")
def runs(store):
    experiment = store.get_experiment_by_name("equipoise-demo")
    return store.search_runs([experiment.experiment_id])


def test_one_finished_run_per_result(runs):
    results = [run for run in runs if run.data.tags["equipoise.role"] == "result"]
    assert sorted(run.data.tags["equipoise.scenario"] for run in results) == [
        "baseline",
        "weighted_augment",
    ]
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_run_holds_metrics_settings_and_digests(store, runs, workspace):
    (run,) = [run for run in runs if run.data.tags.get("equipoise.scenario") == "baseline"]
    summary = json.loads((workspace / "results/demo/vgg16/baseline/metrics.json").read_text())
    auroc = summary["metrics"]["free"]["auroc"]
    for suffix, key in (("", "value"), ("_low", "low"), ("_high", "high")):
        assert run.data.metrics[f"free.auroc{suffix}"] == pytest.approx(auroc[key])
    assert run.data.metrics["locked.sensitivity"] == pytest.approx(
        summary["metrics"]["locked"]["sensitivity"]["value"]
    )
    assert run.data.params["tune.trials"] == "6"
    assert run.data.params["split.scheme"] == "holdout"
    assert run.data.tags["equipoise.result_digest"] == summary["result_digest"]
    assert run.data.tags["equipoise.digest.splits"] == summary["digests"]["splits"]
    assert len(run.data.tags["equipoise.git_commit"]) == 40
    names = {item.path for item in store.list_artifacts(run.info.run_id)}
    assert {"metrics.json", "best.json", "settings.json", "figures"} <= names
    assert {item.path for item in store.list_artifacts(run.info.run_id, "figures")} == {
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


class KilledAtTheFirstTrial(MlflowClient):
    """A store that is interrupted when a result is written and its first trial is not."""

    def create_run(self, experiment_id, *arguments, tags, **options):
        if tags["equipoise.role"] == "trial":
            raise KeyboardInterrupt
        return super().create_run(experiment_id, *arguments, tags=tags, **options)


def test_half_written_run_is_removed_and_written_again(workspace, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store.db")
    study = config.load_study("demo", root=workspace)
    folder = study.result_path("vgg16", "baseline")
    store = tracking.client(workspace)
    with pytest.raises(KeyboardInterrupt):
        tracking.mirror(KilledAtTheFirstTrial(), study, "vgg16", "baseline", folder)
    run_id, written = tracking.mirror(store, study, "vgg16", "baseline", folder)
    assert written
    experiment = store.get_experiment_by_name("equipoise-demo").experiment_id
    runs = store.search_runs([experiment])
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert [run.info.run_id for run in runs if run.data.tags["equipoise.role"] == "result"] == [
        run_id
    ]
    assert tracking.mirror(store, study, "vgg16", "baseline", folder) == (run_id, False)


def test_unknown_launching_run_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store.db")
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    assert tracking.adopted_run(tmp_path) is None


def test_a_result_that_is_there_is_not_evaluated_again(workspace, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/store.db")
    study = config.load_study("demo", root=workspace)
    folder = study.result_path("vgg16", "baseline")
    store = tracking.client(workspace)
    first = tracking.mirror(store, study, "vgg16", "baseline", folder)
    summary_only = tmp_path / "baseline"
    summary_only.mkdir()
    (summary_only / "metrics.json").write_bytes((folder / "metrics.json").read_bytes())
    again = tracking.mirror(store, study, "vgg16", "baseline", summary_only)
    assert again == (first.run_id, False)


def test_the_default_store_lies_in_the_root_wherever_the_user_stands(tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / "checkout"
    store = tracking.client(root)
    assert (root / "mlflow.db").is_file()
    experiment = store.get_experiment(tracking.experiment_id(store, "equipoise-made", root))
    assert experiment.artifact_location == (root / "mlartifacts/equipoise-made").as_uri()


def test_a_lock_is_of_one_subject():
    held = tracking.machine_lock(["a test", "one"], timeout_seconds=0)
    other = tracking.machine_lock(["a test", "another"], timeout_seconds=0)
    with held, other, pytest.raises(Timeout):
        tracking.machine_lock(["a test", "one"], timeout_seconds=0).acquire()
