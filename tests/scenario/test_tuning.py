"""The search: what is tried first, what is kept, and what happens when trials fail."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import optuna
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    log_loss,
    recall_score,
    roc_auc_score,
)
from sklearn.preprocessing import StandardScaler

from conftest import REPO
from equipoise.core import environment, files
from equipoise.core.errors import ConfigError, DataError, TrialFailed
from equipoise.evaluation import metrics
from equipoise.evaluation.resamples import patient_resamples
from equipoise.evaluation.sample import Sample
from equipoise.scenario import searches, tuning
from equipoise.scenario import stage as scenario
from equipoise.scenario.heads import solver
from equipoise.scenario.searches import Outcome, Report, SearchStore
from equipoise.scenario.trials import Scorer, Trial
from equipoise.split import strata
from equipoise.strategies import base
from equipoise.strategies import base as strategies
from equipoise.strategies.base import Objective, Plan, parameter
from fabricate import made


def search(strategy="class_weight", matrix=None, fixed=None, seed=0, store=None, **changes):
    strategy = strategies.load_strategy(strategy) if isinstance(strategy, str) else strategy
    matrix = made.train_matrix() if matrix is None else matrix
    solve = changes.pop("solve", solver.search)
    section = made.tune_section(**changes)
    return tuning.tune(
        matrix, strategy, fixed or {}, section, seed, [1, 4, 0, 0], store, solve=solve
    )


def same(first, second):
    """To the last bit: frames, settings, summaries and out-of-fold scores."""
    return (
        first.trials.equals(second.trials)
        and (first.settings, first.summary) == (second.settings, second.summary)
        and np.array_equal(first.out_of_fold.rows, second.out_of_fold.rows)
        and np.array_equal(first.out_of_fold.logits, second.out_of_fold.logits)
    )


@pytest.fixture
def store(tmp_path):
    return SearchStore(
        batches=tmp_path / "cache/searches",
        journal=tmp_path / "searches.log",
        name="made/vgg16/class_weight/fold 0",
        data_digest="d",
    )


class Counting:
    """Solves as always, and counts the heads of each batch: candidates times inner folds."""

    def __init__(self):
        self.heads = []

    def __call__(self, rotated, labels, weights, objectives, l2, *others):
        self.heads.append(len(l2))
        return solver.search(rotated, labels, weights, objectives, l2, *others)


@pytest.fixture
def solve():
    return Counting()


def batches(store):
    return sorted(store.batches.glob("*.npz"))


def opened(journal):
    """A journal as Optuna itself opens it."""
    backend = optuna.storages.journal.JournalFileBackend(str(journal))
    return optuna.storages.JournalStorage(backend)


def studies(journal):
    """Every study of a journal by its name, read by Optuna alone."""
    storage = opened(journal)
    names = optuna.get_all_study_names(storage)
    return {name: optuna.load_study(study_name=name, storage=storage) for name in names}


@dataclass(frozen=True)
class Fragile(base.Strategy):
    """Fails where its knob is above a half; the published setting works."""

    knob: float = parameter(0.25, low=0.0, high=1.0, neutral=0.0)
    limit: ClassVar[float] = 0.5

    def plan(self, rows):
        if self.knob > self.limit:
            raise TrialFailed(f"knob {self.knob:.2f} is too high")
        return super().plan(rows)


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

    share: float = parameter(0.0, low=0.0, high=1.0, neutral=1.0)

    def plan(self, rows):
        if self.share > 0.5:
            return super().plan(rows)
        return Plan.of(
            [int(np.flatnonzero(rows.labels == label)[0]) for label in range(rows.num_classes)]
        )


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
    assert choice.summary.trials == trials
    assert choice.summary.failed_trials == 0


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


def one_trial(objective, **changes):
    """One trial over three inner folds, with the fold of each image."""
    matrix = made.train_matrix()
    section = made.tune_section(objective=objective, **changes)
    fold_of = np.unique(matrix.patients, return_inverse=True)[1] % 3
    looking = tuning.Search(matrix, strategies.load_strategy("baseline"), {}, section, 0, fold_of)
    (trial,) = looking.score([{"l2": 0.1}])
    return matrix.image_labels, fold_of, trial


@pytest.mark.parametrize(
    ("objective", "of_scikit_learn"),
    [("auroc", roc_auc_score), ("average_precision", average_precision_score)],
)
def test_ranks_are_compared_within_inner_folds_and_averaged(objective, of_scikit_learn):
    labels, fold_of, trial = one_trial(objective)
    assert trial.probabilities.shape == (len(labels), 2)
    assert trial.probabilities.sum(axis=1) == pytest.approx(np.ones(len(labels)))
    by_fold = [
        of_scikit_learn(labels[fold_of == fold], trial.probabilities[fold_of == fold, 1])
        for fold in range(3)
    ]
    assert trial.score == pytest.approx(np.mean(by_fold))
    pooled = of_scikit_learn(labels, trial.probabilities[:, 1])
    assert trial.score != pytest.approx(pooled, abs=1e-6)


@pytest.mark.parametrize(
    ("objective", "of_scikit_learn"),
    [
        ("sensitivity", lambda labels, prob: recall_score(labels, prob >= 0.5)),
        ("balanced_accuracy", lambda labels, prob: balanced_accuracy_score(labels, prob >= 0.5)),
        ("log_loss", log_loss),
    ],
)
def test_decisions_and_probabilities_are_pooled_over_inner_folds(objective, of_scikit_learn):
    labels, _, trial = one_trial(objective)
    assert trial.score == pytest.approx(of_scikit_learn(labels, trial.probabilities[:, 1]))


def test_a_constraint_on_a_rank_is_measured_within_inner_folds_too():
    bound = {"metric": "auroc", "at_least": 0.9}
    _, _, trial = one_trial("auroc", constraint=bound)
    assert trial.violation == pytest.approx(0.9 - trial.score)


def test_heads_of_other_folds_may_score_on_another_level_without_any_loss():
    """Scores that are perfect within each fold, and shifted so far apart that pooled they are not."""
    matrix = made.train_matrix()
    labels = matrix.image_labels
    fold_of = np.unique(matrix.patients, return_inverse=True)[1] % 3
    logits = (labels + 10.0 * fold_of)[:, None]
    within = scorer(matrix, objective="auroc", fold_of=fold_of)
    pooled = scorer(matrix, objective="auroc")
    assert within.judge(0, {}, Outcome(logits)).score == 1
    assert pooled.judge(0, {}, Outcome(logits)).score < 0.8


def test_the_choice_keeps_the_out_of_fold_scores_of_the_chosen_trial(store):
    choice = search(trials=6, store=store)
    rows, logits = choice.out_of_fold
    matrix = made.train_matrix()
    assert rows.tolist() == list(range(len(matrix.image_labels)))
    assert logits.dtype == np.float64
    assert logits.shape == (len(rows), 2)
    assert (logits[:, 0] == 0).all()
    images = pd.DataFrame({"patient": matrix.patients, "label": matrix.image_labels})
    fold_of = strata.assign_folds(images, choice.summary.inner_folds, [1, 4, 0, 0])
    looking = tuning.Search(
        matrix, strategies.load_strategy("class_weight"), {}, made.tune_section(), 0, fold_of
    )
    (alone,) = looking.score([choice.settings])
    assert logits[:, 1] == pytest.approx(alone.logits[:, 1], abs=1e-2)  # solved to 1e-4 in a batch
    by_fold = [
        roc_auc_score(matrix.image_labels[fold_of == fold], logits[fold_of == fold, 1])
        for fold in range(choice.summary.inner_folds)
    ]
    assert np.mean(by_fold) == pytest.approx(choice.summary.score)
    read_back = search(trials=6, store=store)
    assert np.array_equal(read_back.out_of_fold.logits, logits)
    assert search(matrix=made.train_matrix((20, 1))).out_of_fold is None


def test_a_trained_choice_keeps_the_scores_of_the_slice():
    choice, trainer = train_trials(trials=4)
    rows, logits = choice.out_of_fold
    assert np.array_equal(rows, trainer.held)
    *_, (_, expected) = trainer.evaluations(choice.settings)
    assert np.array_equal(logits, expected)


@pytest.mark.parametrize("fewest_sharing", [0, 512])
def test_out_of_fold_scores_are_those_of_models_that_never_saw_the_patient(
    fewest_sharing, monkeypatch
):
    monkeypatch.setattr(solver, "FEWEST_SHARING", fewest_sharing)
    # Features that name the patient and nothing else: whoever sees the patient in training knows the label.
    people = [f"p{index // 4}" for index in range(96)]
    labels = np.random.default_rng(8).permutation(np.repeat([0, 1], 12)).repeat(4)
    matrix = made.train_matrix()
    known = np.eye(24, dtype=np.float32)[np.arange(96) // 4]
    matrix = type(matrix)(
        known, np.arange(96), np.zeros(96, dtype=int), labels, np.array(people), 2, 0, 1
    )
    choice = search("baseline", matrix, trials=3, objective="auroc")
    score = choice.out_of_fold.logits @ [-1, 1]
    images = pd.DataFrame({"patient": people, "label": labels})
    fold_of = strata.assign_folds(images, 3, [1, 4, 0, 0])
    # Nothing tells one unseen patient from another, so a head gives all of its fold one score.
    apart = [np.ptp(score[fold_of == fold]) for fold in range(3)]
    features = StandardScaler().fit_transform(known)
    whole = LogisticRegression(C=1 / (96 * choice.settings["l2"])).fit(features, labels)
    seen = np.ptp(whole.decision_function(features))
    assert max(apart) < 1e-2 * seen


def test_no_patient_is_in_two_inner_folds_and_every_strategy_gets_the_same_folds():
    seen = []

    class Seeing(Fragile):
        def plan(self, rows):
            seen.append(sorted(set(rows.patients)))
            return super().plan(rows)

    matrix = made.train_matrix()
    search(Seeing, matrix, trials=1, inner_folds=4)
    first = [*seen]
    seen.clear()
    search(type("Other", (Seeing,), {}), matrix, trials=1, inner_folds=4, seed=9)
    assert seen == first
    held = [set(matrix.patients) - set(inside) for inside in first]
    assert len(held) == 4
    assert sorted(name for names in held for name in names) == sorted(set(matrix.patients))


@pytest.mark.parametrize(("rarest", "expected"), [(2, 2), (3, 3), (9, 4)])
def test_inner_folds_shrink_to_the_patients_of_the_rarest_class(rarest, expected):
    choice = search(matrix=made.train_matrix((20, rarest)), trials=2, inner_folds=4)
    assert choice.summary.inner_folds == expected


def test_one_patient_of_a_class_skips_the_search_and_says_so():
    choice = search(matrix=made.train_matrix((20, 1)), trials=5, l2_first=[0.7, 0.1])
    assert choice.settings == {"exponent": 1.0, "l2": 0.7}
    assert choice.summary.identified is False
    assert "fewer than 2 train patients" in choice.summary.reason
    assert choice.trials.empty


def test_a_trial_that_fails_is_noted_and_the_search_goes_on():
    choice = search(Fragile, trials=15)
    failed = choice.trials[choice.trials["knob"] > 0.5]
    assert 0 < len(failed) == choice.summary.failed_trials < 12
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


def test_no_head_of_a_fold_weighs_what_is_held_back_from_it_not_even_of_a_trial_that_fails():
    matrix = made.train_matrix()
    seen = []

    def solve(rotated, labels, weights, objectives, l2, folds, *others):
        seen.append([weights[:, folds == fold].any(axis=1) for fold in np.unique(folds)])
        return solver.search(rotated, labels, weights, objectives, l2, folds, *others)

    choice = search(Fragile, matrix, trials=8, batch_trials=8, solve=solve)
    assert choice.summary.failed_trials > 0
    (used,) = seen
    images = pd.DataFrame({"patient": matrix.patients, "label": matrix.image_labels})
    fold_of = strata.assign_folds(images, len(used), [1, 4, 0, 0])
    for fold, of_fold in enumerate(used):
        assert np.array_equal(of_fold, fold_of != fold)


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
    assert choice.summary.identified is False
    assert choice.settings == {"knob": 0.25, "l2": pytest.approx(0.1)}
    assert choice.summary.score == choice.summary.published_score


def test_a_parameter_with_a_clear_effect_is_identified():
    choice = search(BadDefault, made.train_matrix((40, 20), 12), trials=12, objective="auroc")
    assert choice.summary.identified is True
    assert choice.settings["share"] > 0.5
    assert choice.summary.gain == pytest.approx(
        choice.summary.score - choice.summary.published_score
    )
    assert choice.summary.gain > 2 * choice.summary.gain_se > 0
    assert choice.summary.score == choice.summary.best_score == choice.trials["score"].max()


def scorer(matrix=None, fold_of=None, **changes):
    matrix = made.train_matrix() if matrix is None else matrix
    section = made.tune_section(**changes)
    return Scorer(matrix.image_labels, matrix.patients, 2, 1, section, seed=0, fold_of=fold_of)


def trials_of(matrix, *strengths):
    """Complete trials whose logits follow the labels, the more so the higher the strength."""
    for number, strength in enumerate(strengths):
        noise = np.random.default_rng(number).normal(size=len(matrix.image_labels))
        logits = strength * (matrix.image_labels - 0.5) + noise
        yield number, {"strength": strength}, Outcome(logits[:, None])


def test_a_gain_below_two_standard_errors_keeps_the_published_settings():
    matrix = made.train_matrix()
    judge = scorer(matrix, objective="auroc", l2_first=[0.1], gain_resamples=40)
    trials = [judge.judge(*trial) for trial in trials_of(matrix, 1.0, 1.55, 3.0)]
    slight = tuning.decide(trials[:2], judge)
    assert 1 < slight.gain.value / slight.gain.standard_error < 2
    assert (slight.chosen, slight.best, slight.identified) == (trials[0], trials[1], False)
    clear = tuning.decide(trials, judge)
    assert clear.gain.value > 2 * clear.gain.standard_error
    assert (clear.chosen, clear.best, clear.identified) == (trials[2], trials[2], True)


def test_published_settings_that_are_best_or_that_all_failed_need_no_gain():
    matrix = made.train_matrix()
    judge = scorer(matrix, objective="auroc", l2_first=[0.1])
    trials = [judge.judge(*trial) for trial in trials_of(matrix, 3.0, 1.0)]
    decision = tuning.decide(trials, judge)
    assert (decision.chosen, decision.gain, decision.identified) == (trials[0], None, False)
    failed = Trial(0, {}, float("nan"), error="no")
    decision = tuning.decide([failed, trials[1]], judge)
    assert (decision.chosen, decision.published, decision.identified) == (trials[1], None, True)
    with pytest.raises(TrialFailed, match=r"All 1 trials failed\. The last one: no"):
        tuning.decide([failed], judge)


def test_the_gain_is_paired_over_patients():
    matrix = made.train_matrix()
    judge = scorer(matrix, objective="auroc", gain_resamples=40)
    rng = np.random.default_rng(0)
    first, second = (rng.dirichlet([1, 1], len(matrix.image_labels)) for _ in range(2))
    trials = [
        Trial(0, {}, score, probabilities=values) for score, values in ((0.6, first), (0.4, second))
    ]
    gain, error = judge.gain(*trials)
    assert gain == pytest.approx(0.2)
    names, drawn = patient_resamples(matrix.patients, matrix.image_labels, 40, 0)
    column = {name: index for index, name in enumerate(names)}
    weights = drawn[1:][:, [column[name] for name in matrix.patients]]
    values = [
        [
            metrics.auroc(
                Sample(matrix.image_labels, prob, matrix.image_labels, 1, weight[None], 0.9)
            )[0]
            for weight in weights
        ]
        for prob in (first, second)
    ]
    assert error == pytest.approx(np.std(np.subtract(*values), ddof=1))
    assert judge.gain(trials[0], trials[0]).standard_error == 0


def test_the_standard_error_of_a_gain_is_measured_within_inner_folds():
    """Against resamples drawn and averaged by hand; folds that lost their rare class are left out."""
    matrix = made.train_matrix((20, 4))
    fold_of = np.unique(matrix.patients, return_inverse=True)[1] % 2
    judge = scorer(matrix, fold_of, objective="auroc", gain_resamples=60)
    rng = np.random.default_rng(0)
    probs = [rng.dirichlet([1, 1], len(fold_of)) for _ in range(2)]
    trials = [Trial(0, {}, 0.5, probabilities=prob) for prob in probs]
    names, drawn = patient_resamples(matrix.patients, matrix.image_labels, 60, 0)
    weights = drawn[1:][:, np.searchsorted(names, matrix.patients)]
    differences, undefined = [], 0
    for weight in weights:
        of_folds = []
        for fold in range(2):
            own = (fold_of == fold) & (weight > 0)
            if len(set(matrix.image_labels[own])) < 2:
                undefined += 1
                continue
            scores = [
                roc_auc_score(matrix.image_labels[own], prob[own, 1], sample_weight=weight[own])
                for prob in probs
            ]
            of_folds.append(scores[0] - scores[1])
        if of_folds:
            differences.append(np.mean(of_folds))
    assert undefined > 0
    assert judge.gain(*trials).standard_error == pytest.approx(np.std(differences, ddof=1))


def test_an_objective_to_be_small_is_made_small():
    choice = search(BadDefault, made.train_matrix((40, 20), 12), trials=12, objective="brier")
    assert choice.summary.best_score == choice.trials["score"].min()
    assert choice.summary.identified is True
    assert choice.summary.gain > 0


def test_an_unknown_objective_is_a_setting_error():
    with pytest.raises(ConfigError, match="Did you mean 'auroc'"):
        search(objective="aurocc")


def test_a_constraint_prefers_feasible_trials_to_better_ones():
    free = search(trials=20, objective="specificity", l2_first=[0.1])
    bound = {"metric": "sensitivity", "at_least": 0.8}
    choice = search(trials=20, objective="specificity", l2_first=[0.1], constraint=bound)
    feasible = choice.trials[choice.trials["violation"] <= 0]
    assert 0 < len(feasible) < 20
    assert choice.summary.feasible is True
    assert choice.summary.best_score == feasible["score"].max()
    assert choice.summary.best_score < free.summary.best_score
    assert choice.trials["violation"].iloc[choice.summary.trial] <= 0


def test_without_a_feasible_trial_the_smallest_violation_is_taken_and_flagged():
    bound = {"metric": "sensitivity", "at_least": 1.5}
    choice = search(trials=10, objective="specificity", constraint=bound)
    assert choice.summary.feasible is False
    assert choice.trials["violation"].min() > 0
    assert choice.trials["violation"].iloc[choice.summary.trial] == choice.trials["violation"].min()


def test_three_classes_are_searched_too():
    choice = search("weighted_augment", made.train_matrix((20, 9, 6)), trials=5, objective="auroc")
    assert 0.5 < choice.summary.score <= 1
    assert choice.summary.failed_trials == 0


# --- a search that resumes -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "changes"),
    [
        ("weighted_augment", {}),
        (Fragile, {}),
        (NotANumber, {"objective": "auroc"}),
        ("class_weight", {"constraint": {"metric": "sensitivity", "at_least": 0.8}}),
        ("class_weight", {"fixed": {"exponent": 0.5}}),
    ],
)
def test_a_finished_search_is_read_back_to_the_last_bit_and_nothing_is_solved(
    store, solve, strategy, changes
):
    changes = {"trials": 9, "batch_trials": 4, **changes}
    plain = search(strategy, **changes)
    first = search(strategy, store=store, solve=solve, **changes)
    assert same(first, plain), "keeping a search changes nothing"
    assert [heads // first.summary.inner_folds for heads in solve.heads] == [4, 4, 1]
    solve.heads.clear()
    assert same(search(strategy, store=store, solve=solve, **changes), first)
    assert solve.heads == []


def test_three_classes_are_read_back_too(store, solve):
    options = {"store": store, "solve": solve, "trials": 5, "objective": "auroc"}
    matrix = made.train_matrix((20, 9, 6))
    assert same(*(search("class_weight", matrix, **options) for _ in range(2)))
    assert len(solve.heads) == 2


@pytest.mark.parametrize("before", [4, 6])
def test_more_trials_go_on_where_the_search_was_and_end_as_if_asked_for_at_once(
    store, solve, before
):
    options = {"store": store, "solve": solve, "batch_trials": 4}
    first = search(trials=before, **options)
    solve.heads.clear()
    more = search(trials=10, **options)
    folds = first.summary.inner_folds
    assert solve.heads == [4 * folds, 2 * folds], (
        "the batch that was not full is solved again as a full one"
    )
    assert same(more, search(trials=10, batch_trials=4))
    assert more.trials.head(4).equals(first.trials.head(4))
    solve.heads.clear()
    assert same(search(trials=before, **options), first)
    assert solve.heads == []


def test_no_batch_repeats_the_suggestions_of_another(store):
    trials = search(store=store, trials=24, batch_trials=4, l2_first=[0.1]).trials
    assert trials["l2"].nunique() == 24
    assert trials["exponent"].nunique() == 24


def test_without_a_store_nothing_is_kept(store):
    search(trials=2)
    assert not store.batches.exists()
    assert not store.journal.exists()


DAMAGES = {
    "cut short": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "a bit of the logits turned": lambda content: (
        content[: -len(content) // 4]
        + bytes([content[-len(content) // 4] ^ 1])
        + content[-len(content) // 4 + 1 :]
    ),
    "no archive": lambda content: b"{}" * 100,
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_batch_is_searched_again(store, solve, damage):
    first = search(store=store, trials=8, batch_trials=4)
    path = batches(store)[0]
    content = path.read_bytes()
    path.write_bytes(damage(content))
    assert path.read_bytes() != content
    again = search(store=store, trials=8, batch_trials=4, solve=solve)
    assert same(again, first)
    assert solve.heads == [4 * first.summary.inner_folds]
    assert path.read_bytes() == content


def test_a_batch_of_other_images_or_of_another_number_of_trials_is_not_taken(tmp_path):
    path = tmp_path / "batch.npz"
    outcomes = [
        Outcome(np.arange(6, dtype=np.float32).reshape(3, 2)),
        Outcome(
            None, "failed: \u03b3 was \n odd", (Report(0, 0.5), Report(2, float("nan"))), steps=2
        ),
        Outcome(np.ones((3, 1)), reports=(Report(0, 0.1),), steps=0, pruned=True),
    ]
    searches.write_batch(path, outcomes)
    kept = searches.read_batch(path, num_trials=3, num_images=3)
    for outcome, again in zip(outcomes, kept, strict=True):
        assert str(replace(outcome, logits=None)) == str(replace(again, logits=None))
        assert (outcome.logits is None) == (again.logits is None)
        if outcome.logits is not None:
            assert outcome.logits.dtype == again.logits.dtype
            assert np.array_equal(outcome.logits, again.logits)
    assert searches.read_batch(path, num_trials=2, num_images=3) is None
    assert searches.read_batch(path, num_trials=3, num_images=4) is None
    assert searches.read_batch(tmp_path / "none.npz", 3, 3) is None


KILLED = """
import os, signal, sys
from pathlib import Path
from equipoise.core import config
from equipoise.scenario import stage, tuning
from equipoise.scenario.heads import solver

solved, kill_at = 0, int(sys.argv[1])
plain_tune, plain_solve = tuning.tune, solver.search

def solve(*arguments):
    global solved
    solved += 1
    if solved > kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    return plain_solve(*arguments)

def tune(*arguments, **named):
    return plain_tune(*arguments, **named, solve=solve)

tuning.tune = tune
stage.run(config.load_study("made", root=Path.cwd()), "vgg16", "class_weight")
"""


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return made.study(tmp_path, tune={"trials": 10, "batch_trials": 4})


def written(study):
    """Bytes of the tables and numbers of a result."""
    folder = study.result_path(made.BACKBONE, "class_weight")
    return {path.name: path.read_bytes() for path in folder.glob("*.*")}


def run_python(code, *arguments):
    paths = os.pathsep.join([str(REPO / "src"), str(REPO / "tests")])
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths})


@pytest.mark.parametrize("batches_done", [0, 2, 4])
def test_a_killed_scenario_goes_on_and_ends_in_the_very_same_bytes(study, batches_done):
    """Two seeds with three batches each; the kill comes while the next batch is solved."""
    assert run_python(KILLED, batches_done).wait(timeout=600) == -signal.SIGKILL
    assert not study.result_path(made.BACKBONE, "class_weight").exists()
    kept = {path: path.stat().st_mtime_ns for path in (study.cache_path / "searches").glob("*.npz")}
    assert len(kept) == batches_done
    scenario.run(study, made.BACKBONE, "class_weight")
    resumed = written(study)
    assert {path: path.stat().st_mtime_ns for path in kept} == kept, "read back, not made again"
    names = {path.name for path in (study.cache_path / "searches").glob("*.npz")}
    for path in (study.cache_path / "searches").glob("*"):
        path.unlink()
    scenario.run(study, made.BACKBONE, "class_weight")
    assert written(study) == resumed
    assert {path.name for path in (study.cache_path / "searches").glob("*.npz")} == names


ONE_OF_TWO = """
import sys
from pathlib import Path
from equipoise.scenario import tuning
from equipoise.scenario.searches import SearchStore
from equipoise.strategies import base
from fabricate import made

folder, name = Path(sys.argv[1]), sys.argv[2]
store = SearchStore(folder / "cache/searches", folder / "searches.log", "made/shared", "d")
section = made.tune_section(trials=8, batch_trials=2)
strategy = base.load_strategy("class_weight")
for number in range(3):
    tuning.tune(made.train_matrix(), strategy, {}, section, number, [1, 4, 0, 0], store)
choice = tuning.tune(made.train_matrix(), strategy, {}, section, 0, [1, 4, 0, 0], store)
(folder / name).write_text(repr([choice.settings, choice.summary, choice.trials.to_json()]))
"""


def test_two_processes_at_once_agree_and_leave_a_store_that_can_be_read(store, solve, tmp_path):
    pair = [run_python(ONE_OF_TWO, tmp_path, name) for name in ("first", "second")]
    assert [process.wait(timeout=600) for process in pair] == [0, 0]
    first, second = ((tmp_path / name).read_text() for name in ("first", "second"))
    again = search(store=replace(store, name="made/shared"), solve=solve, trials=8, batch_trials=2)
    assert first == second == repr([again.settings, again.summary, again.trials.to_json()])
    assert solve.heads == []
    assert len(batches(store)) == 12
    (shown,) = studies(store.journal).values()
    assert len(shown.trials) == 8


def test_other_data_settings_parameters_code_or_packages_are_another_search(monkeypatch):
    def key(strategy="class_weight", matrix=None, fixed=None, seed=0, data="d", folds=2, **changes):
        strategy = strategies.load_strategy(strategy) if isinstance(strategy, str) else strategy
        matrix = matrix or made.train_matrix()
        fold_of = np.arange(len(matrix.image_labels)) % folds
        section = made.tune_section(**changes)
        return tuning.Search(matrix, strategy, fixed or {}, section, seed, fold_of).key(data)

    @dataclass(frozen=True)
    class Wider(Fragile):
        knob: float = parameter(0.25, low=0.0, high=2.0, neutral=0.0)

    others = [
        key(),
        key(data="e"),
        key(seed=1),
        key(folds=3),
        key(fixed={"exponent": 0.5}),
        key("oversample"),
        key(l2_low=0.002),
        key(objective="brier"),
        key(batch_trials=3),
        key(Fragile),
        key(type("Wider", (Wider,), {"__qualname__": Fragile.__qualname__})),
    ]
    assert len(set(others)) == len(others)
    assert key() == key(trials=99) == others[0]
    with monkeypatch.context() as patch:
        patch.setattr(environment, "versions_of", lambda *names: dict.fromkeys(names, "0.1"))
        assert key() not in others
    with monkeypatch.context() as patch:
        patch.setattr(environment, "code_digest", lambda *places: "edited")
        assert key() not in others
    assert key() == others[0]


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A copy of Equipoise's code, to be edited."""
    copy = tmp_path_factory.mktemp("package")
    for path in environment.PACKAGE.rglob("*.py"):
        target = copy / path.relative_to(environment.PACKAGE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    return copy


@pytest.mark.parametrize(
    ("edited", "is_forgotten"),
    [
        ("scenario/heads/solver.py", True),
        ("scenario/heads/subspace.py", True),
        ("scenario/searches.py", True),
        ("evaluation/intervals.py", True),
        ("split/strata.py", True),
        ("strategies/base.py", True),
        ("strategies/_samplers.py", True),
        ("strategies/class_weight.py", True),
        ("strategies/focal.py", False),
        ("compare/wording.py", False),
        ("registry/gates.py", False),
    ],
)
def test_an_edit_forgets_the_searches_that_it_may_change_and_no_others(
    package, edited, is_forgotten
):
    matrix = made.train_matrix()
    strategy = strategies.load_strategy("class_weight")
    fold_of = np.arange(len(matrix.image_labels)) % 2
    places = tuning.Search(matrix, strategy, {}, made.tune_section(), 0, fold_of).code()
    environment.code_digest.cache_clear()
    before = environment.code_digest(*places, package=package)
    assert before == environment.code_digest(*places)
    path = package / edited
    content = path.read_bytes()
    path.write_bytes(content + b"# edited\n")
    environment.code_digest.cache_clear()
    after = environment.code_digest(*places, package=package)
    path.write_bytes(content)
    environment.code_digest.cache_clear()
    assert (after != before) == is_forgotten


def test_trained_searches_depend_on_the_pictures_and_on_keras_too():
    matrix = made.train_matrix()
    fold_of = np.arange(len(matrix.image_labels)) % 2
    section = made.tune_section()
    trained = tuning.TrainedSearch(matrix, Free, {}, section, 0, fold_of, trainer=Pretend(matrix))
    solved = tuning.Search(matrix, Free, {}, section, 0, fold_of)
    assert set(trained.code()) - set(solved.code()) == {"embed"}
    assert set(trained.packages()) - set(solved.packages()) == {"keras", "tensorflow"}
    assert trained.key("d") != solved.key("d")


def test_a_strategy_is_made_of_its_file_those_it_inherits_from_and_the_shared_ones():
    shared = ["strategies/_samplers.py", "strategies/base.py"]
    focal = tuning.strategy_files(strategies.load_strategy("focal"))
    assert focal == [*shared, "strategies/focal.py"]
    stronger = type("Stronger", (strategies.load_strategy("focal"),), {})
    assert tuning.strategy_files(stronger) == focal


# --- the journal of finished searches --------------------------------------------------------------------------------


def test_a_finished_search_is_an_optuna_study_with_a_readable_name(store):
    choice = search(Fragile, store=store, trials=12, batch_trials=4)
    ((name, study),) = studies(store.journal).items()
    assert name == "made/vgg16/class_weight/fold 0"
    assert study.direction.name == "MAXIMIZE"
    assert study.metric_names == ["auroc"]
    assert study.best_value == choice.summary.best_score
    assert len(study.trials) == choice.summary.trials
    for trial, row in zip(study.trials, choice.trials.to_dict("records"), strict=True):
        assert trial.params == {"knob": row["knob"], "l2": row["l2"]}
        assert trial.state.name == {"complete": "COMPLETE", "failed": "FAIL"}[row["state"]]
        assert trial.value == (None if np.isnan(row["score"]) else row["score"])
        assert trial.user_attrs.get("error", "") == row["error"]
        assert trial.distributions["knob"] == optuna.distributions.FloatDistribution(0.0, 1.0)
        assert trial.distributions["l2"].log


def test_fixed_settings_are_no_parameters_of_the_study(store):
    search("weighted_augment", fixed={"copies": 1}, store=store, trials=6)
    (study,) = studies(store.journal).values()
    assert {tuple(trial.params) for trial in study.trials} == {("exponent", "l2")}


def test_a_constraint_is_shown_with_the_trials(store):
    bound = {"metric": "sensitivity", "at_least": 0.8}
    options = {"objective": "specificity", "l2_first": [0.1], "constraint": bound}
    choice = search(store=store, trials=20, **options)
    (study,) = studies(store.journal).values()
    violations = [trial.constraints["sensitivity"] for trial in study.trials]
    assert violations == choice.trials["violation"].tolist()
    assert study.best_value == choice.summary.best_score


def test_the_same_search_again_changes_nothing_and_another_replaces_it(store):
    search(store=store, trials=6)
    content = store.journal.read_bytes()
    search(store=store, trials=6)
    assert store.journal.read_bytes() == content
    search(store=replace(store, name="made/vgg16/class_weight/fold 1"), trials=6)
    assert store.journal.read_bytes().startswith(content)
    choice = search(store=store, trials=7, seed=5)
    shown = studies(store.journal)
    assert sorted(shown) == ["made/vgg16/class_weight/fold 0", "made/vgg16/class_weight/fold 1"]
    assert len(shown[store.name].trials) == 7
    assert shown[store.name].best_value == choice.summary.best_score


def test_a_search_in_which_every_trial_failed_is_shown_too(store):
    with pytest.raises(TrialFailed):
        search(Broken, store=store, trials=5)
    (study,) = studies(store.journal).values()
    assert {trial.state.name for trial in study.trials} == {"FAIL"}
    assert len(study.trials) == 5


def test_nothing_searched_is_no_study(store):
    search(matrix=made.train_matrix((20, 1)), store=store)
    assert not store.journal.exists()


@pytest.mark.parametrize("lines_kept", [1, 3, 5])
def test_a_study_that_a_kill_cut_short_is_written_again(store, lines_kept):
    choice = search(store=store, trials=6)
    lines = store.journal.read_bytes().splitlines(keepends=True)
    half = lines[lines_kept][: len(lines[lines_kept]) // 2]
    store.journal.write_bytes(b"".join(lines[:lines_kept]) + half)
    search(store=store, trials=6)
    (study,) = studies(store.journal).values()
    assert len(study.trials) == 6
    assert study.best_value == choice.summary.best_score


def test_a_journal_that_cannot_be_read_is_put_aside_and_stops_no_search(store, caplog):
    first = search(store=store, trials=4)
    store.journal.write_bytes(b"{broken\n" + store.journal.read_bytes())
    damaged = store.journal.read_bytes()
    assert same(search(store=store, trials=4), first)
    assert store.journal.with_name("searches.damaged.log").read_bytes() == damaged
    assert "cannot be read" in caplog.text
    assert list(studies(store.journal)) == [store.name]


def test_a_journal_that_cannot_be_written_is_an_error_that_names_it(store):
    store.journal.mkdir()
    with pytest.raises(DataError, match=r"searches\.log cannot be written: .* trials are kept"):
        search(store=store, trials=2)
    assert len(batches(store)) == 1


def test_a_finished_search_waits_for_the_disk_once(store, monkeypatch):
    waited = []
    wait = os.fsync
    search(store=store, trials=4)  # the journal is there
    monkeypatch.setattr(os, "fsync", lambda file: waited.append(file) or wait(file))
    search(store=replace(store, name="made/vgg16/class_weight/fold 1"), trials=4)
    assert len(waited) == 1
    assert [len(study.trials) for study in studies(store.journal).values()] == [4, 4]


def test_a_search_that_found_no_room_in_the_journal_is_written_by_the_next_call(store, monkeypatch):
    def full(logs):
        raise OSError("no space left on device")

    search(store=replace(store, name="first"), trials=3)
    content = store.journal.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(searches._GatheredLogs, "write", full)
        with pytest.raises(DataError, match="no space left"):
            search(store=store, trials=3)
    assert store.journal.read_bytes() == content
    search(store=store, trials=3)
    assert {name: len(study.trials) for name, study in studies(store.journal).items()} == {
        "first": 3,
        store.name: 3,
    }


def test_a_scenario_names_its_searches_and_the_journal_agrees_with_best_json(study):
    scenario.run(study, made.BACKBONE, "class_weight")
    shown = studies(study.root / "data/searches.log")
    best = files.read_json(study.result_path(made.BACKBONE, "class_weight") / "best.json")
    assert list(shown) == [f"made/vgg16/class_weight/fold 0, seed {seed}" for seed in (0, 1)]
    for choice, search_of_seed in zip(best, shown.values(), strict=True):
        assert search_of_seed.best_value == choice["best_score"]
        assert len(search_of_seed.trials) == choice["trials"] == 10


def test_a_summary_has_the_keys_of_best_json_that_apply():
    searched = search(trials=3).summary.as_dict()
    skipped = search(matrix=made.train_matrix((20, 1))).summary.as_dict()
    trained, _ = train_trials(trials=4)
    keys = [
        "score",
        "best_score",
        "published_score",
        "gain",
        "gain_se",
        "objective",
        "identified",
        "feasible",
        "reason",
        "trials",
        "failed_trials",
        "inner_folds",
    ]
    assert list(skipped) == keys
    assert list(searched) == [*keys, "trial"]
    effort = ["pruned_trials", "steps", "steps_saved", "slice_images", "slice_patients"]
    assert list(trained.summary.as_dict()) == [*keys, "trial", *effort]
    assert json.dumps(searched)


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
                signal = 0.5 * settings["knob"] * (1 + step) * (self.labels - 0.5)
                yield step, np.stack([np.zeros(len(noise)), signal + noise], axis=1)
        finally:
            self.closed += 1


class Free(Fragile):
    limit: ClassVar[float] = 2.0


def train_trials(store=None, trainer=None, trials=16, **changes):
    matrix = made.train_matrix((40, 30))
    trainer = trainer or Pretend(matrix)
    section = made.tune_section(
        mode="finetune", trials=trials, objective="auroc", l2_first=[0.1, 1.0], **changes
    )
    return tuning.tune(matrix, Free, {}, section, 3, [1, 4, 0, 0], store, trainer), trainer


def test_trained_trials_are_pruned_below_the_median_of_their_step_and_never_the_published_ones(
    store,
):
    choice, trainer = train_trials(store)
    table = choice.trials
    assert (table["state"].head(2) == "complete").all()
    pruned = table[table["state"] == "pruned"]
    assert 0 < len(pruned) == choice.summary.pruned_trials
    assert choice.summary.steps == table["steps"].sum()
    assert choice.summary.steps_saved == (6 - pruned["steps"]).sum() > 0
    assert pruned["steps"].min() > 0
    assert trainer.closed == 16
    (study,) = studies(store.journal).values()
    kept = study.trials
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
    assert choice.trials.loc[choice.summary.trial, "state"] == "complete"


def test_a_trained_search_measures_its_gain_on_the_patients_of_the_slice():
    choice, trainer = train_trials(trials=12)
    matrix = made.train_matrix((40, 30))
    assert choice.summary.identified is True
    assert choice.settings["knob"] > 0.25
    assert choice.summary.slice_images == len(trainer.held)
    prob = []
    for settings in (choice.settings, {"knob": 0.25}):
        *_, (_, logits) = trainer.evaluations(settings)
        prob.append(logits[:, 1])
    people = matrix.patients[trainer.held]
    names, drawn = patient_resamples(people, trainer.labels, 30, 3)
    values = [
        [
            roc_auc_score(trainer.labels, one, sample_weight=row[np.searchsorted(names, people)])
            for row in drawn
        ]
        for one in prob
    ]
    difference = np.subtract(*values)
    assert choice.summary.gain == pytest.approx(difference[0])
    assert choice.summary.gain_se == pytest.approx(np.std(difference[1:], ddof=1))


@pytest.mark.parametrize("before", [1, 5, 9])
def test_a_trained_search_that_was_killed_goes_on_to_the_same_bytes(store, before):
    whole, _ = train_trials()

    class Dies(Pretend):
        def evaluations(self, settings):
            if self.closed == before:
                raise KeyboardInterrupt
            yield from super().evaluations(settings)

    with pytest.raises(KeyboardInterrupt):
        train_trials(store, Dies(made.train_matrix((40, 30))))
    assert len(batches(store)) == before
    assert not store.journal.exists(), "only finished searches are shown"
    resumed, trainer = train_trials(store)
    assert same(resumed, whole)
    assert trainer.closed == 16 - before
    content = store.journal.read_bytes()
    resumed, trainer = train_trials(store)
    assert same(resumed, whole)
    assert trainer.taken == []
    assert store.journal.read_bytes() == content


def test_a_trained_trial_that_diverges_is_noted_and_the_search_goes_on():
    choice, _ = train_trials(trials=25)
    failed = choice.trials[choice.trials["knob"] > 0.95]
    assert 0 < len(failed) == choice.summary.failed_trials
    assert (failed["error"] == "diverged").all()


def test_a_journal_that_others_write_to_or_delete_in_between_is_read_anew(store):
    """One process publishes many searches; it reads the journal again only when it is another one."""

    def publish(name):
        shown = optuna.create_study()
        shown.optimize(lambda trial: trial.suggest_float("l2", 0, 1), n_trials=2)
        replace(store, name=name).publish(shown, "auroc", f"content of {name}")

    publish("first")
    publish("second")
    optuna.create_study(study_name="of another process", storage=opened(store.journal))
    publish("third")
    publish("first")
    assert sorted(studies(store.journal)) == ["first", "of another process", "second", "third"]
    assert len(studies(store.journal)["first"].trials) == 2, "the same content is written once"
    store.journal.unlink()
    publish("fourth")
    assert list(studies(store.journal)) == ["fourth"]
