"""The search: what is tried first, what is kept, and what happens when trials fail."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest

import made
from equipoise import metrics, strategies, tuning
from equipoise.errors import ConfigError, TrialFailed
from equipoise.records import Objective, Plan
from equipoise.strategies import base


def search(strategy="class_weight", matrix=None, fixed=None, seed=0, **changes):
    strategy = strategies.load_strategy(strategy) if isinstance(strategy, str) else strategy
    matrix = made.train_matrix() if matrix is None else matrix
    return tuning.tune(matrix, strategy, fixed or {}, made.tune_section(**changes), seed, [1, 4, 0, 0])


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
        weights = np.ones(len(plan_counts)) if self.knob <= 0.5 else np.full(len(plan_counts), np.nan)
        return Objective.neutral(len(plan_counts)).replace(weights=weights)


@dataclass(frozen=True)
class BadDefault(base.Strategy):
    """The published setting trains on one image of each class; anything above a half trains on all."""

    share: float = 0.0

    def plan(self, rows):
        if self.share > 0.5:
            return super().plan(rows)
        return Plan.of([int(np.flatnonzero(rows.labels == label)[0]) for label in range(rows.num_classes)])

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
    first, again, other = search(trials=8, seed=5), search(trials=8, seed=5), search(trials=8, seed=6)
    assert first.trials.equals(again.trials)
    assert first.settings == again.settings
    assert not first.trials.equals(other.trials)
    assert first.trials.head(3).equals(other.trials.head(3)), "the published settings do not depend on the seed here"


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
            seen.append((metric, probabilities, weights.shape)) or plain(self, metric, probabilities, weights)
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

    assert choice.summary["score"] == pytest.approx(roc_auc_score(matrix.image_labels, probabilities[:, 1]))


def test_out_of_fold_scores_are_those_of_models_that_never_saw_the_patient():
    # Features that name the patient and nothing else: whoever sees the patient in training knows the label.
    people = [f"p{index // 4}" for index in range(96)]
    labels = np.random.default_rng(8).permutation(np.repeat([0, 1], 12)).repeat(4)
    matrix = made.train_matrix()
    known = np.eye(24, dtype=np.float32)[np.arange(96) // 4]
    matrix = type(matrix)(known, np.arange(96), np.zeros(96, dtype=int), labels, np.array(people), 2, 0, 1)
    score = search("baseline", matrix, trials=3, objective="auroc").summary["best_score"]
    assert score < 0.7


def test_no_patient_is_in_two_inner_folds_and_every_strategy_gets_the_same_folds(monkeypatch):
    found = []
    plain = tuning.splits.assign_folds

    def watched(rows, folds, seed):
        found.append((rows["patient"].to_numpy(), plain(rows, folds, seed)))
        return found[-1][1]

    monkeypatch.setattr(tuning.splits, "assign_folds", watched)
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
    assert choice.trials["score"][:3].tolist() == pytest.approx(calm.trials["score"].tolist(), abs=0.02)


def test_when_every_trial_fails_the_last_cause_is_told():
    with pytest.raises(TrialFailed, match=r"All 5 trials failed. The last one: knob 0\.\d\d is too high"):
        search(Broken, trials=5)


def test_views_that_are_not_there_fail_the_trial_with_advice():
    matrix = made.train_matrix()
    plain = matrix.view == 0
    bare = type(matrix)(
        **{**vars(matrix), "features": matrix.features[plain], "row": matrix.row[plain], "view": matrix.view[plain]}
    )
    choice = search("augment", bare, trials=12)
    assert choice.settings["copies"] == 0
    assert choice.trials.loc[choice.trials["copies"] > 0, "error"].str.contains("embed.views_of").all()


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
    assert choice.summary["gain"] == pytest.approx(choice.summary["score"] - choice.summary["published_score"])
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
    looking = tuning._Search(matrix, strategy, {}, {}, settings, 0, np.arange(len(matrix.image_labels)) % 2)
    rng = np.random.default_rng(0)
    first, second = (rng.dirichlet([1, 1], len(matrix.image_labels)) for _ in range(2))
    trials = [tuning._Trial(0, {}, score, 0.0, values, "") for score, values in ((0.6, first), (0.4, second))]
    gain, error = looking.gain(*trials)
    assert gain == pytest.approx(0.2)
    names, drawn = metrics.patient_resamples(matrix.patients, matrix.image_labels, 40, 0)
    column = {name: index for index, name in enumerate(names)}
    weights = drawn[1:][:, [column[name] for name in matrix.patients]]
    values = [
        [
            metrics.auroc(metrics.Sample(matrix.image_labels, prob, matrix.image_labels, 1, weight[None], 0.9))[0]
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
    assert choice.trials["violation"].iloc[choice.summary["trial"]] == choice.trials["violation"].min()


def test_three_classes_are_searched_too():
    choice = search("weighted_augment", made.train_matrix((20, 9, 6)), trials=5, objective="auroc")
    assert 0.5 < choice.summary["score"] <= 1
    assert choice.summary["failed_trials"] == 0
