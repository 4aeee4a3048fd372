"""The search: what is tried first, what is kept, and what happens when trials fail."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import optuna
import pytest

from conftest import REPO
from equipoise import pipeline
from equipoise.core import config
from equipoise.core.errors import ConfigError, DataError, TrialFailed
from equipoise.evaluation import intervals, metrics
from equipoise.scenario import stage as scenario
from equipoise.scenario import tuning
from equipoise.strategies import base
from equipoise.strategies import base as strategies
from equipoise.strategies.base import Objective, Plan
from fabricate import made, servers


def search(strategy="class_weight", matrix=None, fixed=None, seed=0, data="", **changes):
    strategy = strategies.load_strategy(strategy) if isinstance(strategy, str) else strategy
    matrix = made.train_matrix() if matrix is None else matrix
    return tuning.tune(
        matrix, strategy, fixed or {}, made.tune_section(**changes), seed, [1, 4, 0, 0], data
    )


def same(first, second):
    """To the last bit: frames, settings and summaries."""
    return first.trials.equals(second.trials) and (first.settings, first.summary) == (
        second.settings,
        second.summary,
    )


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A folder of its own to keep searches in, and no database."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(tuning.STORAGE_VARIABLE, raising=False)
    return tmp_path / tuning.STORE


@pytest.fixture
def solved(monkeypatch):
    """Numbers of the trials that were solved, batch by batch."""
    numbers, plain = [], tuning._Search._solve

    def watched(self, candidates, start, asked):
        numbers.append(list(range(start, start + len(candidates))))
        return plain(self, candidates, start, asked)

    monkeypatch.setattr(tuning._Search, "_solve", watched)
    return numbers


def kept_trials(storage):
    """Every finished trial of every search in a store, read by Optuna alone."""
    return [
        trial
        for study in optuna.get_all_study_names(storage)
        for trial in optuna.load_study(study_name=study, storage=storage).trials
    ]


def journal(path):
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(path)))


@dataclass(frozen=True)
class Fragile(base.Strategy):
    """Fails where its knob is above a half; the published setting works."""

    knob: float = 0.25
    limit: ClassVar[float] = 0.5

    def plan(self, rows):
        if self.knob > self.limit:
            raise TrialFailed(f"knob {self.knob:.2f} is too high")
        return super().plan(rows)

    @staticmethod
    def search_space(trial):
        return {"knob": trial.suggest_float("knob", 0.0, 1.0)}


class Broken(Fragile):
    limit: ClassVar[float] = -1.0


class NotANumber(Fragile):
    limit: ClassVar[float] = 2.0

    def objective(self, plan_counts):
        weights = (
            np.ones(len(plan_counts)) if self.knob <= 0.5 else np.full(len(plan_counts), np.nan)
        )
        return Objective.neutral(len(plan_counts)).replace(weights=weights)


@dataclass(frozen=True)
class BadDefault(base.Strategy):
    """The published setting trains on one image of each class; anything above a half trains on all."""

    share: float = 0.0

    def plan(self, rows):
        if self.share > 0.5:
            return super().plan(rows)
        return Plan.of(
            [int(np.flatnonzero(rows.labels == label)[0]) for label in range(rows.num_classes)]
        )

    @staticmethod
    def search_space(trial):
        return {"share": trial.suggest_float("share", 0.0, 1.0)}


@pytest.mark.parametrize("name", strategies.names())
def test_the_published_settings_are_tried_first_with_every_first_penalty(name):
    choice = search(name, trials=6, l2_first=[0.02, 0.3])
    published = strategies.load_strategy(name).published(2, {})
    for row, l2 in zip(choice.trials.head(2).to_dict("records"), [0.02, 0.3]):
        assert {key: row[key] for key in published} == published
        assert row["l2"] == pytest.approx(l2)
    assert set(choice.settings) == {*published, "l2"}


@pytest.mark.parametrize(("trials", "batch"), [(1, 4), (2, 1), (7, 3), (9, 20)])
def test_the_number_of_trials_is_exact(trials, batch):
    choice = search(trials=trials, batch_trials=batch)
    assert choice.trials["trial"].tolist() == list(range(trials))
    assert choice.summary["trials"] == trials
    assert choice.summary["failed_trials"] == 0


def test_values_stay_within_their_ranges():
    trials = search(trials=25, l2_low=0.01, l2_high=2.0, l2_first=[0.1]).trials
    assert trials["l2"].between(0.01, 2.0).all()
    assert trials["exponent"].between(0, 1.5).all()
    assert trials["exponent"].nunique() > 5
    assert trials["score"].between(0, 1).all()


def test_the_same_seed_searches_the_same_and_another_seed_does_not():
    first, again, other = (
        search(trials=8, seed=5),
        search(trials=8, seed=5),
        search(trials=8, seed=6),
    )
    assert first.trials.equals(again.trials)
    assert first.settings == again.settings
    assert not first.trials.equals(other.trials)
    assert first.trials.head(3).equals(other.trials.head(3)), (
        "the published settings do not depend on the seed here"
    )


def test_fixed_settings_are_not_searched():
    choice = search("weighted_augment", fixed={"copies": 1}, trials=8)
    assert (choice.trials["copies"] == 1).all()
    assert choice.trials["exponent"].nunique() > 3
    assert choice.settings["copies"] == 1
    with pytest.raises(ConfigError, match="Did you mean 'exponent'"):
        search(fixed={"exponant": 1.0})


def test_the_score_is_the_metric_of_the_pooled_out_of_fold_rows(monkeypatch):
    seen = []
    monkeypatch.setattr(
        tuning._Search,
        "_measure",
        lambda self, metric, probabilities, weights, plain=tuning._Search._measure: (
            seen.append((metric, probabilities, weights.shape))
            or plain(self, metric, probabilities, weights)
        ),
    )
    matrix = made.train_matrix()
    choice = search("baseline", matrix, trials=1, objective="auroc")
    metric, probabilities, shape = seen[0]
    images = len(matrix.image_labels)
    assert metric is metrics.REGISTRY["auroc"]
    assert shape == (1, images)
    assert probabilities.shape == (images, 2)
    assert probabilities.sum(axis=1) == pytest.approx(np.ones(images))
    from sklearn.metrics import roc_auc_score

    assert choice.summary["score"] == pytest.approx(
        roc_auc_score(matrix.image_labels, probabilities[:, 1])
    )


def test_out_of_fold_scores_are_those_of_models_that_never_saw_the_patient():
    # Features that name the patient and nothing else: whoever sees the patient in training knows the label.
    people = [f"p{index // 4}" for index in range(96)]
    labels = np.random.default_rng(8).permutation(np.repeat([0, 1], 12)).repeat(4)
    matrix = made.train_matrix()
    known = np.eye(24, dtype=np.float32)[np.arange(96) // 4]
    matrix = type(matrix)(
        known, np.arange(96), np.zeros(96, dtype=int), labels, np.array(people), 2, 0, 1
    )
    score = search("baseline", matrix, trials=3, objective="auroc").summary["best_score"]
    assert score < 0.7


def test_no_patient_is_in_two_inner_folds_and_every_strategy_gets_the_same_folds(monkeypatch):
    found = []
    plain = tuning.strata.assign_folds

    def watched(rows, folds, seed):
        found.append((rows["patient"].to_numpy(), plain(rows, folds, seed)))
        return found[-1][1]

    monkeypatch.setattr(tuning.strata, "assign_folds", watched)
    search("baseline", trials=1, inner_folds=4)
    search("oversample", trials=1, inner_folds=4, seed=9)
    (patients, folds), (_, others) = found
    assert np.array_equal(folds, others)
    assert set(folds) == {0, 1, 2, 3}
    for patient in set(patients):
        assert len(set(folds[patients == patient])) == 1


@pytest.mark.parametrize(("rarest", "expected"), [(2, 2), (3, 3), (9, 4)])
def test_inner_folds_shrink_to_the_patients_of_the_rarest_class(rarest, expected):
    choice = search(matrix=made.train_matrix((20, rarest)), trials=2, inner_folds=4)
    assert choice.summary["inner_folds"] == expected


def test_one_patient_of_a_class_skips_the_search_and_says_so():
    choice = search(matrix=made.train_matrix((20, 1)), trials=5, l2_first=[0.7, 0.1])
    assert choice.settings == {"exponent": 1.0, "l2": 0.7}
    assert choice.summary["identified"] is False
    assert "fewer than 2 train patients" in choice.summary["reason"]
    assert choice.trials.empty


def test_a_trial_that_fails_is_noted_and_the_search_goes_on():
    choice = search(Fragile, trials=15)
    failed = choice.trials[choice.trials["knob"] > 0.5]
    assert 0 < len(failed) == choice.summary["failed_trials"] < 12
    assert (failed["state"] == "failed").all()
    assert failed["score"].isna().all()
    assert failed["error"].str.contains("is too high").all()
    fine = choice.trials[choice.trials["knob"] <= 0.5]
    assert (fine["state"] == "complete").all()
    assert (fine["error"] == "").all()
    assert choice.settings["knob"] <= 0.5


def test_a_loss_that_is_not_a_number_fails_its_own_trial_only():
    choice = search(NotANumber, trials=12, batch_trials=12)
    failed = choice.trials[choice.trials["knob"] > 0.5]
    assert len(failed) > 0
    assert (failed["error"] == "the loss became NaN or infinite").all()
    assert np.isfinite(choice.trials.loc[choice.trials["knob"] <= 0.5, "score"]).all()
    calm = search(NotANumber, trials=3, batch_trials=3)  # the published ones alone
    assert choice.trials["score"][:3].tolist() == pytest.approx(
        calm.trials["score"].tolist(), abs=0.02
    )


def test_when_every_trial_fails_the_last_cause_is_told():
    with pytest.raises(
        TrialFailed, match=r"All 5 trials failed. The last one: knob 0\.\d\d is too high"
    ):
        search(Broken, trials=5)


def test_views_that_are_not_there_fail_the_trial_with_advice():
    matrix = made.train_matrix()
    plain = matrix.view == 0
    bare = type(matrix)(
        **{
            **vars(matrix),
            "features": matrix.features[plain],
            "row": matrix.row[plain],
            "view": matrix.view[plain],
        }
    )
    choice = search("augment", bare, trials=12)
    assert choice.settings["copies"] == 0
    assert (
        choice.trials.loc[choice.trials["copies"] > 0, "error"].str.contains("embed.views_of").all()
    )


def test_a_parameter_without_effect_is_not_identified_and_the_published_one_is_kept():
    calm = type("Calm", (Fragile,), {"limit": 2.0})
    choice = search(calm, trials=12, l2_low=0.0999, l2_high=0.1001, l2_first=[0.1])
    assert choice.summary["identified"] is False
    assert choice.settings == {"knob": 0.25, "l2": pytest.approx(0.1)}
    assert choice.summary["score"] == choice.summary["published_score"]


def test_a_parameter_with_a_clear_effect_is_identified():
    choice = search(BadDefault, made.train_matrix((40, 20), 12), trials=12, objective="auroc")
    assert choice.summary["identified"] is True
    assert choice.settings["share"] > 0.5
    assert choice.summary["gain"] == pytest.approx(
        choice.summary["score"] - choice.summary["published_score"]
    )
    assert choice.summary["gain"] > choice.summary["gain_se"] > 0
    assert choice.summary["score"] == choice.summary["best_score"] == choice.trials["score"].max()


def test_a_gain_below_one_standard_error_keeps_the_published_settings(monkeypatch):
    monkeypatch.setattr(tuning._Search, "gain", lambda self, best, kept: (0.1, 0.11))
    choice = search(BadDefault, made.train_matrix((40, 20), 12), trials=12, objective="auroc")
    assert choice.settings["share"] == 0
    assert choice.summary["identified"] is False
    assert choice.summary["best_score"] > choice.summary["score"]
    assert choice.trials["score"].iloc[choice.summary["trial"]] == choice.summary["score"]


def test_the_gain_is_paired_over_patients():
    settings = made.tune_section(objective="auroc", gain_resamples=40)
    matrix = made.train_matrix()
    strategy = strategies.load_strategy("baseline")
    looking = tuning._Search(
        matrix, strategy, {}, {}, settings, 0, np.arange(len(matrix.image_labels)) % 2
    )
    rng = np.random.default_rng(0)
    first, second = (rng.dirichlet([1, 1], len(matrix.image_labels)) for _ in range(2))
    trials = [
        tuning._Trial(0, {}, score, 0.0, values, "")
        for score, values in ((0.6, first), (0.4, second))
    ]
    gain, error = looking.gain(*trials)
    assert gain == pytest.approx(0.2)
    names, drawn = intervals.patient_resamples(matrix.patients, matrix.image_labels, 40, 0)
    column = {name: index for index, name in enumerate(names)}
    weights = drawn[1:][:, [column[name] for name in matrix.patients]]
    values = [
        [
            metrics.auroc(
                metrics.Sample(matrix.image_labels, prob, matrix.image_labels, 1, weight[None], 0.9)
            )[0]
            for weight in weights
        ]
        for prob in (first, second)
    ]
    assert error == pytest.approx(np.std(np.subtract(*values), ddof=1))
    assert looking.gain(trials[0], trials[0])[1] == 0


def test_an_objective_to_be_small_is_made_small():
    choice = search(BadDefault, made.train_matrix((40, 20), 12), trials=12, objective="brier")
    assert choice.summary["best_score"] == choice.trials["score"].min()
    assert choice.summary["identified"] is True
    assert choice.summary["gain"] > 0


def test_an_unknown_objective_is_a_setting_error():
    with pytest.raises(ConfigError, match="Did you mean 'auroc'"):
        search(objective="aurocc")


def test_a_constraint_prefers_feasible_trials_to_better_ones():
    free = search(trials=20, objective="specificity", l2_first=[0.1])
    bound = {"metric": "sensitivity", "at_least": 0.8}
    choice = search(trials=20, objective="specificity", l2_first=[0.1], constraint=bound)
    feasible = choice.trials[choice.trials["violation"] <= 0]
    assert 0 < len(feasible) < 20
    assert choice.summary["feasible"] is True
    assert choice.summary["best_score"] == feasible["score"].max()
    assert choice.summary["best_score"] < free.summary["best_score"]
    assert choice.trials["violation"].iloc[choice.summary["trial"]] <= 0


def test_without_a_feasible_trial_the_smallest_violation_is_taken_and_flagged():
    bound = {"metric": "sensitivity", "at_least": 1.5}
    choice = search(trials=10, objective="specificity", constraint=bound)
    assert choice.summary["feasible"] is False
    assert choice.trials["violation"].min() > 0
    assert (
        choice.trials["violation"].iloc[choice.summary["trial"]] == choice.trials["violation"].min()
    )


def test_three_classes_are_searched_too():
    choice = search("weighted_augment", made.train_matrix((20, 9, 6)), trials=5, objective="auroc")
    assert 0.5 < choice.summary["score"] <= 1
    assert choice.summary["failed_trials"] == 0


# --- a search that resumes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "changes"),
    [
        ("weighted_augment", {}),
        (Fragile, {}),
        (NotANumber, {"objective": "auroc"}),
        ("class_weight", {"constraint": {"metric": "sensitivity", "at_least": 0.8}}),
    ],
)
def test_a_finished_search_is_read_back_to_the_last_bit_and_nothing_is_solved(
    store, solved, strategy, changes
):
    changes = {"trials": 9, "batch_trials": 4, **changes}
    plain = search(strategy, **changes)
    first = search(strategy, data="d", **changes)
    assert same(first, plain), "keeping a search changes nothing"
    solved.clear()
    assert same(search(strategy, data="d", **changes), first)
    assert solved == []
    (path,) = store.glob("*.log")
    trials = kept_trials(journal(path))
    assert [trial.value for trial in trials] == [
        None if np.isnan(score) else score for score in first.trials["score"]
    ]
    assert {trial.state.name for trial in trials} <= {"COMPLETE", "FAIL"}


def test_three_classes_are_read_back_too(store, solved):
    matrix = made.train_matrix((20, 9, 6))
    runs = [search("class_weight", matrix, data="d", trials=5, objective="auroc") for _ in range(2)]
    assert same(*runs)
    assert len(solved) == 2


@pytest.mark.parametrize("before", [4, 6])
def test_more_trials_go_on_where_the_search_was_and_end_as_if_asked_for_at_once(
    store, solved, before
):
    first = search(data="d", trials=before, batch_trials=4)
    solved.clear()
    more = search(data="d", trials=10, batch_trials=4)
    assert solved == [[4, 5, 6, 7], [8, 9]], (
        "the batch that was not full is solved again as a full one"
    )
    assert same(more, search(trials=10, batch_trials=4))
    assert more.trials.head(4).equals(first.trials.head(4))
    solved.clear()
    assert same(search(data="d", trials=before, batch_trials=4), first)
    assert solved == []


def test_no_batch_repeats_the_suggestions_of_another(store):
    trials = search(data="d", trials=24, batch_trials=4, l2_first=[0.1]).trials
    assert trials["l2"].nunique() == 24
    assert trials["exponent"].nunique() == 24


KILLED = """
import os, signal, sys
import optuna
from optuna.storages.journal import JournalFileBackend
from equipoise.core import config
from equipoise.scenario import stage as scenario

point, after = sys.argv[1], int(sys.argv[2])
plain, seen = optuna.Study.add_trial, []

def watched(study, trial):
    # The searches themselves live in memory, so that only what reaches a journal counts.
    if isinstance(study._storage, optuna.storages.JournalStorage):
        seen.append(trial)
        if len(seen) > after:
            if point == "within a line":
                JournalFileBackend.append_logs = torn
            else:
                os.kill(os.getpid(), signal.SIGKILL)
    plain(study, trial)

def torn(backend, logs):
    backend._lock.acquire()
    with open(backend._file_path, "ab") as handle:
        handle.write(b'{"op_code": 4, "user_attrs": {"logits')
    os.kill(os.getpid(), signal.SIGKILL)

optuna.Study.add_trial = watched
scenario.run(config.load_study("made"), "vgg16", "class_weight")
"""


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv(tuning.STORAGE_VARIABLE, raising=False)
        study = made.study(folder, tune={"trials": 10, "batch_trials": 4})
        scenario.run(study, made.BACKBONE, "class_weight")
        return {
            path.name: path.read_bytes()
            for path in study.result_path(made.BACKBONE, "class_weight").glob("*.*")
        }


@pytest.mark.parametrize(
    ("point", "after", "left"),
    [
        ("before a trial", 0, [10, 10]),  # the trials that are solved after the kill, for each seed
        ("before a trial", 6, [6, 10]),  # in the second batch of the first seed
        ("within a line", 9, [2, 10]),  # in the last batch of the first seed
        (
            "before a trial",
            13,
            [10],
        ),  # in the first batch of the second seed; the first search is whole
    ],
)
def test_a_killed_scenario_goes_on_and_ends_in_the_very_same_bytes(
    store, solved, uninterrupted, point, after, left
):
    study = made.study(store.parents[2], tune={"trials": 10, "batch_trials": 4})
    paths = os.pathsep.join([str(REPO / "src"), os.environ.get("PYTHONPATH", "")])
    child = [sys.executable, "-c", KILLED, point, str(after)]
    assert subprocess.run(child, env={**os.environ, "PYTHONPATH": paths}).returncode == -9
    assert not Path("results").exists()
    scenario.run(study, made.BACKBONE, "class_weight")
    found = study.result_path(made.BACKBONE, "class_weight").glob("*.*")
    assert {path.name: path.read_bytes() for path in found} == uninterrupted
    assert sum(map(len, solved)) == sum(left)
    trials = [
        trial.user_attrs["place"]
        for path in store.glob("*.log")
        for trial in kept_trials(journal(path))
    ]
    assert len(trials) == 20, "each trial is kept once"


TWICE = """
import json, multiprocessing, sys
sys.path[:0] = json.loads(sys.argv[1])
from fabricate import made
from equipoise.strategies import base as strategies
from equipoise.scenario import tuning

def search(address):
    section = made.tune_section(trials=8, batch_trials=2, storage=address)
    strategy = strategies.load_strategy("class_weight")
    return vars(tuning.tune(made.train_matrix(), strategy, {}, section, 0, [1, 4, 0, 0], "d"))

with multiprocessing.get_context("fork").Pool(2) as pool:
    for address in (None, "sqlite:///searches.db"):
        pair = pool.map(search, [address, address], chunksize=1)
        print(json.dumps([[choice["settings"], choice["summary"]] for choice in pair]))
"""


def test_two_processes_at_once_agree_and_leave_a_store_that_can_be_read(store, solved):
    folders = json.dumps([str(REPO / "tests"), str(REPO / "src")])
    done = subprocess.run(
        [sys.executable, "-c", TWICE, folders], stdout=subprocess.PIPE, text=True, check=True
    )
    for address, line in zip(
        (None, "sqlite:///searches.db"), done.stdout.splitlines(), strict=True
    ):
        first, second = json.loads(line)
        again = search(data="d", trials=8, batch_trials=2, storage=address)
        assert first == second == json.loads(json.dumps([again.settings, again.summary]))
    assert solved == []


# --- a search that several machines share ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def postgresql():
    """Address of an empty database on a server of its own."""
    programs = servers.postgres_folder()
    if programs is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    pytest.importorskip("psycopg", reason="searches in PostgreSQL need psycopg")
    folder = Path(
        tempfile.mkdtemp(prefix="equipoise-searches-")
    )  # short, and its user must come in
    folder.chmod(0o755)
    try:
        with servers._postgres(programs, folder) as address:
            yield f"{address}/mlflow"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def searches(postgresql, store, monkeypatch):
    """The same address, the database emptied and in use, with a short grace period."""
    import psycopg

    with psycopg.connect(postgresql, autocommit=True) as connection:
        connection.execute("drop schema public cascade")
        connection.execute("create schema public")
    monkeypatch.setenv(tuning.STORAGE_VARIABLE, postgresql)
    for name, value in (("HEARTBEAT", 1), ("GRACE", 2), ("POLL", 0.05)):
        monkeypatch.setattr(tuning, f"_{name}_SECONDS", value)
    return postgresql


SHARED = """
import sys, time
from pathlib import Path
from equipoise.core import config
from equipoise.scenario import stage as scenario
from equipoise.scenario import tuning

tuning._HEARTBEAT_SECONDS, tuning._GRACE_SECONDS, tuning._POLL_SECONDS = 1, 2, 0.05
plain = tuning._Search._solve

def watched(self, candidates, start, asked):
    print(len(candidates), flush=True)
    Path(sys.argv[1]).with_suffix(".begun").touch()
    while len(list(Path().glob("*.begun"))) < 2:  # each begins with a search of its own
        time.sleep(0.01)
    time.sleep(0.2)
    return plain(self, candidates, start, asked)

tuning._Search._solve = watched
scenario.run(config.load_study("made"), "vgg16", "class_weight", Path(sys.argv[1]))
"""


@pytest.mark.parametrize("killed_after", [None, 2])
def test_two_processes_share_one_database_to_the_budget_and_to_the_very_same_bytes(
    searches, store, uninterrupted, killed_after
):
    made.study(store.parents[2], tune={"trials": 10, "batch_trials": 4})
    paths = os.pathsep.join([str(REPO / "src"), os.environ.get("PYTHONPATH", "")])
    started = {"text": True, "stdout": subprocess.PIPE, "env": {**os.environ, "PYTHONPATH": paths}}
    pair = [
        subprocess.Popen([sys.executable, "-c", SHARED, name], **started)
        for name in ("first", "second")
    ]
    solved = [[], []]
    if killed_after:
        solved[0] = [int(pair[0].stdout.readline()) for _ in range(killed_after)]
        pair[0].send_signal(signal.SIGKILL)
    for own, process in zip(solved, pair):
        own += map(int, process.communicate(timeout=120)[0].split())
    assert [process.returncode for process in pair] == [-9 if killed_after else 0, 0]
    for name in ("second",) if killed_after else ("first", "second"):
        assert {path.name: path.read_bytes() for path in Path(name).glob("*.*")} == uninterrupted
    names = optuna.get_all_study_names(searches)
    assert len(names) == 2
    for trials in (optuna.load_study(study_name=name, storage=searches).trials for name in names):
        assert {trial.state.name for trial in trials} == {"COMPLETE"}
        assert [trial.user_attrs["place"] for trial in trials] == [[i, 4] for i in range(8)] + [
            [8, 2],
            [9, 2],
        ]
    lost = (
        solved[0][-1] if killed_after else 0
    )  # the batch that died with its process is solved once more
    assert sum(map(sum, solved)) == 20 + lost


def test_a_lost_database_is_said_and_finished_trials_are_kept(searches, solved, monkeypatch):
    import psycopg

    plain, server = tuning._Search._solve, searches.replace("/mlflow", "/postgres")

    def allow(connections):
        with psycopg.connect(server, autocommit=True) as connection:
            connection.execute(f"alter database mlflow allow_connections {connections}")
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = 'mlflow'"
            )

    def cut(self, candidates, start, asked):
        if start == 4:
            allow("false")
        return plain(self, candidates, start, asked)

    with monkeypatch.context() as patch:
        patch.setattr(tuning._Search, "_solve", cut)
        with pytest.raises(
            DataError,
            match=r"The database was lost\. Finished trials are kept: .* the same command",
        ):
            search(data="d", trials=10, batch_trials=4)
    with pytest.raises(DataError, match="cannot be kept or read"):
        search(data="d", trials=10, batch_trials=4)
    allow("true")
    solved.clear()
    resumed = search(data="d", trials=10, batch_trials=4)
    assert solved == [[4, 5, 6, 7], [8, 9]]
    assert same(resumed, search(trials=10, batch_trials=4))


def test_a_search_of_another_process_is_left_to_it_unless_one_waits(searches):
    study = optuna.create_study(storage=searches, study_name="s")
    with tuning._turn(study, True), pytest.raises(tuning.Busy), tuning._turn(study, False):
        pass
    with tuning._turn(study, False):
        pass


def test_other_data_settings_space_or_code_are_another_search(store, monkeypatch):
    def name(
        strategy="class_weight", matrix=None, fixed=None, seed=0, data="d", folds=2, **changes
    ):
        strategy = strategies.load_strategy(strategy) if isinstance(strategy, str) else strategy
        matrix = matrix or made.train_matrix()
        published, fixed = strategy.published(2, fixed or {}), fixed or {}
        fold_of = np.arange(len(matrix.image_labels)) % folds
        looking = tuning._Search(
            matrix, strategy, published, fixed, made.tune_section(**changes), seed, fold_of
        )
        return looking.kept(data).study_name

    wider = {
        "search_space": staticmethod(lambda trial: {"knob": trial.suggest_float("knob", 0.0, 2.0)})
    }
    spaces = [type("Space", (Fragile,), more) for more in ({}, wider)]
    others = [
        *(
            name(),
            name(data="e"),
            name(seed=1),
            name(folds=3),
            name(fixed={"exponent": 0.5}),
            name("oversample"),
        ),
        *(name(l2_low=0.002), name(objective="auroc"), name(batch_trials=3), *map(name, spaces)),
    ]
    assert len(set(others)) == len(others)
    assert name(trials=99) == name(storage="sqlite:///elsewhere.db") == others[0]
    plain = tuning.file_digest
    monkeypatch.setattr(
        tuning, "file_digest", lambda path: "edited" if path.name == "solver.py" else plain(path)
    )
    assert name() not in others


def test_a_database_keeps_searches_too_and_the_environment_goes_before_the_setting(
    store, solved, monkeypatch
):
    first = search(data="d", trials=6, storage="sqlite:///setting.db")
    assert same(search(data="d", trials=6, storage="sqlite:///setting.db"), first)
    assert len(solved) == 2
    assert len(kept_trials("sqlite:///setting.db")) == 6
    monkeypatch.setenv(tuning.STORAGE_VARIABLE, "sqlite:///environment.db")
    assert same(search(data="d", trials=6, storage="sqlite:///setting.db"), first)
    assert len(solved) == 4
    assert len(kept_trials("sqlite:///environment.db")) == 6
    assert not list(store.glob("*.log"))


def test_without_the_name_of_its_data_a_search_is_not_kept(store):
    search(trials=2)
    assert not store.exists()


def test_where_a_search_is_kept_enters_no_digest_and_no_settings_file(store):
    plain, moved = (
        config.load_study("made", made.params(tune={"storage": at}))
        for at in (None, "sqlite:///x.db")
    )
    assert moved.settings.tune.storage == "sqlite:///x.db"
    assert "storage" not in moved.settings.sections("tune")["tune"]
    folders = [pipeline.adhoc_folder(study, "vgg16", "baseline", {}) for study in (plain, moved)]
    assert folders[0] == folders[1]


@pytest.mark.parametrize(
    "address", ["postgresql://me:hush@host/db", "postgresql://host/db?user=me&password=hush"]
)
def test_a_password_is_refused_in_settings_and_never_shown(store, monkeypatch, address):
    with pytest.raises(ConfigError, match="EQUIPOISE_OPTUNA_STORAGE") as refused:
        made.tune_section(storage=address)
    monkeypatch.setenv(tuning.STORAGE_VARIABLE, address.replace("postgresql", "no-such-database"))
    with pytest.raises(
        DataError, match=r"cannot be kept or read.*EQUIPOISE_OPTUNA_STORAGE"
    ) as failed:
        search(data="d", trials=2)
    assert "hush" not in f"{refused.value} {failed.value}"
    assert made.tune_section(storage="postgresql://me@host:5432/db").storage


def test_a_journal_that_cannot_be_read_is_named(store):
    search(data="d", trials=2)
    (path,) = store.glob("*.log")
    path.write_bytes(b"{broken\n" + path.read_bytes())
    with pytest.raises(
        DataError, match=rf"Delete {tuning.STORE.as_posix()}/{path.name}: it is searched again"
    ):
        search(data="d", trials=2)


# --- trials that are trained end to end ------------------------------------------------------------------------------


class Pretend:
    """Trains nothing: the higher the knob, the better its logits follow the labels, more so with every evaluation."""

    steps = 6

    def __init__(self, matrix):
        self.held = np.flatnonzero([name[-1] in "147" for name in matrix.patients])
        self.labels, self.taken, self.closed = matrix.image_labels[self.held], [], 0

    def evaluations(self, settings):
        noise = np.random.default_rng(0).normal(size=len(self.held))
        try:
            for step in (0, 2, 4, 6):
                self.taken.append((settings["knob"], step))
                if settings["knob"] > 0.95:
                    raise TrialFailed("diverged")
                signal = settings["knob"] * (1 + step) * (self.labels - 0.5)
                yield step, np.stack([np.zeros(len(noise)), signal + noise], axis=1)
        finally:
            self.closed += 1


class Free(Fragile):
    limit: ClassVar[float] = 2.0


def train_trials(data="", trainer=None, trials=16, **changes):
    matrix = made.train_matrix((40, 30))
    trainer = trainer or Pretend(matrix)
    section = made.tune_section(
        mode="finetune", trials=trials, objective="auroc", l2_first=[0.1, 1.0], **changes
    )
    return tuning.tune(matrix, Free, {}, section, 3, [1, 4, 0, 0], data, trainer), trainer


def test_trained_trials_are_pruned_below_the_median_of_their_step_and_never_the_published_ones(
    store,
):
    choice, trainer = train_trials("d")
    table = choice.trials
    assert (table["state"].head(2) == "complete").all()
    pruned = table[table["state"] == "pruned"]
    assert 0 < len(pruned) == choice.summary["pruned_trials"]
    assert choice.summary["steps"] == table["steps"].sum()
    assert choice.summary["steps_saved"] == (6 - pruned["steps"]).sum() > 0
    assert pruned["steps"].min() > 0
    assert trainer.closed == 16
    (path,) = store.glob("*.log")
    kept = kept_trials(journal(path))
    for row in table.to_dict("records"):
        mine = kept[row["trial"]].intermediate_values
        assert (
            sorted(mine)
            == [step for knob, step in trainer.taken if knob == row["knob"]][: len(mine)]
        )
        earlier = [trial for trial in kept[: row["trial"]] if trial.state.name == "COMPLETE"]
        for step in (
            (set(mine) - {0, 6}) if len(earlier) >= 2 else ()
        ):  # never on the starting weights alone
            median = np.median([trial.intermediate_values[step] for trial in earlier])
            below = max(value for at, value in mine.items() if at <= step) < median
            assert below == (row["state"] == "pruned" and step == row["steps"])
    assert choice.trials.loc[choice.summary["trial"], "state"] == "complete"


def test_a_trained_search_measures_its_gain_on_the_patients_of_the_slice():
    choice, trainer = train_trials(trials=12)
    matrix = made.train_matrix((40, 30))
    assert choice.summary["identified"] is True
    assert choice.settings["knob"] > 0.25
    assert choice.summary["slice_images"] == len(trainer.held)
    prob = []
    for settings in (choice.settings, {"knob": 0.25}):
        *_, (_, logits) = trainer.evaluations(settings)
        prob.append(logits[:, 1])
    people = matrix.patients[trainer.held]
    names, drawn = intervals.patient_resamples(people, trainer.labels, 30, 3)
    from sklearn.metrics import roc_auc_score

    values = [
        [
            roc_auc_score(trainer.labels, one, sample_weight=row[np.searchsorted(names, people)])
            for row in drawn
        ]
        for one in prob
    ]
    difference = np.subtract(*values)
    assert choice.summary["gain"] == pytest.approx(difference[0])
    assert choice.summary["gain_se"] == pytest.approx(np.std(difference[1:], ddof=1))


@pytest.mark.parametrize("before", [1, 5, 9])
def test_a_trained_search_that_was_killed_goes_on_to_the_same_bytes(store, before):
    whole, _ = train_trials()

    class Dies(Pretend):
        def evaluations(self, settings):
            if len({knob for knob, _ in self.taken} | {settings["knob"]}) > before:
                raise KeyboardInterrupt
            yield from super().evaluations(settings)

    with pytest.raises(KeyboardInterrupt):
        train_trials("d", Dies(made.train_matrix((40, 30))))
    assert 0 < len(kept_trials(journal(next(iter(store.glob("*.log")))))) < 16
    resumed, trainer = train_trials("d")
    assert same(resumed, whole)
    resumed, trainer = train_trials("d")
    assert same(resumed, whole)
    assert trainer.taken == []


def test_a_trained_trial_that_diverges_is_noted_and_the_search_goes_on():
    choice, _ = train_trials(trials=25)
    failed = choice.trials[choice.trials["knob"] > 0.95]
    assert 0 < len(failed) == choice.summary["failed_trials"]
    assert (failed["error"] == "diverged").all()
