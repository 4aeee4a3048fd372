"""What each further remedy claims: published numbers, identities, and the libraries it comes from."""

import ast
import importlib
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from imblearn.over_sampling import SMOTE
from sklearn.linear_model import LogisticRegression

from equipoise.core import files, records
from equipoise.core.errors import ConfigError, DataError, LeakageError, TrialFailed
from equipoise.scenario import matrix as inputs
from equipoise.scenario import stage as scenario
from equipoise.scenario import tuning
from equipoise.scenario.heads import head, solver
from equipoise.split import checks
from equipoise.strategies import base
from equipoise.strategies import base as strategies
from equipoise.strategies.base import Objective, Plan, TrainRows
from equipoise.use import export
from fabricate import made

NEW = [
    name
    for name in strategies.names()
    if name
    not in {"baseline", "oversample", "undersample", "class_weight", "augment", "weighted_augment"}
]
SAMPLERS = {
    name: strategies.load_strategy(name).SAMPLER for name in NEW if name.startswith("imblearn_")
}
KERMANY, BREAKHIS, TOY = [1349, 3883], [625, 1370], [100, 900]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def built(name, **settings):
    cls = strategies.load_strategy(name)
    return cls.of({**cls.published(2, {}), **settings})


def blobs(counts=(60, 25), width=5, seed=3, patients=None):
    """Overlapping clouds, one per class, as a strategy sees them."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    features = rng.normal(size=(len(labels), width)) + labels[:, None]
    return TrainRows(labels, len(counts), 2, seed, patients, lambda: features), features


def loss(objective, label, logit):
    """The loss of one row whose logit of class 1 stands `logit` above that of class 0."""
    rotated = solver.Rotated(np.ones((1, 1)), np.zeros((0, 0)), np.zeros(0))
    problem = solver.Problem(rotated, np.array([label]), np.ones((1, 1)), [objective], np.ones(1))
    point = np.full((1, 1, 1), logit) / problem.scale
    return problem.evaluate(point, np.array([0]))[0][0]


# --- objectives ------------------------------------------------------------------------------------------------------


def test_focal_is_the_listing_of_the_docs():
    repo = Path(strategies.__file__).parents[3]
    (code,) = re.findall(
        r"```python\n(.*?)```", (repo / "docs/new-strategy.md").read_text(), flags=re.S
    )
    own = (repo / "src/equipoise/strategies/focal.py").read_text()
    # As parsed: a docstring with a backslash reads the same with and without its r.
    assert ast.dump(ast.parse(code)) == ast.dump(ast.parse(own))


@pytest.mark.parametrize(
    ("prob", "label", "expected"),
    [(0.9, 1, 0.001054), (0.5, 1, 0.173287), (0.1, 1, 1.865094), (0.9, 0, 1.865094)],
)
def test_focal_values_of_the_paper(prob, label, expected):
    """Lin et al. 2017 without alpha, as Keras computes it."""
    logit = np.log(prob / (1 - prob))
    assert loss(built("focal").objective(np.array(TOY)), label, logit) == pytest.approx(
        expected, abs=1e-6
    )
    plain = loss(built("focal", gamma=0.0).objective(np.array(TOY)), label, logit)
    assert plain == pytest.approx(-np.log(prob if label else 1 - prob))


@pytest.mark.parametrize(
    ("counts", "log10_rest", "expected"),
    [
        (KERMANY, -2, [1.000001, 0.999999]),
        (KERMANY, -3, [1.138813, 0.861187]),
        (KERMANY, -4, [1.436604, 0.563396]),
        (BREAKHIS, -3, [1.232178, 0.767822]),
        (BREAKHIS, -4, [1.357565, 0.642435]),
        (TOY, -2, [1.223958, 0.776042]),
        (TOY, -4, [1.792745, 0.207255]),
    ],
)
def test_class_balanced_values_of_the_paper(counts, log10_rest, expected):
    """Cui et al. 2019 scale to a sum of C; here the mean over the draws is 1, so that the penalty keeps its size."""
    weights = (
        built("class_balanced", log10_one_minus_beta=log10_rest).objective(np.array(counts)).weights
    )
    assert 2 * weights / weights.sum() == pytest.approx(expected, abs=2e-6)
    assert np.average(weights, weights=counts) == pytest.approx(1)


def test_class_balanced_lies_between_no_weights_and_inverse_frequency():
    near = built("class_balanced", log10_one_minus_beta=-9.0).objective(np.array(TOY)).weights
    assert near == pytest.approx(base.inverse_frequency(np.array(TOY), 1.0), rel=1e-5)
    none = built("class_balanced", log10_one_minus_beta=0.0).objective(np.array(TOY)).weights
    assert none.tolist() == [1, 1]


@pytest.mark.parametrize(
    ("counts", "expected"), [(KERMANY, [-1.355430, -0.298186]), (BREAKHIS, [-1.160648, -0.375833])]
)
def test_logit_adjust_adds_the_logarithm_of_the_shares(counts, expected):
    objective = built("logit_adjust").objective(np.array(counts))
    assert objective.offsets == pytest.approx(expected, abs=1e-6)
    assert built("logit_adjust", strength=2.0).objective(np.array(counts)).offsets == pytest.approx(
        2 * objective.offsets
    )
    assert objective.weights.tolist() == [1, 1]


def test_logit_adjust_values_of_the_paper():
    objective = built("logit_adjust").objective(np.array(TOY))
    assert loss(objective, 0, 1.0) == pytest.approx(3.237287, abs=1e-6)
    assert loss(objective, 1, 1.0) == pytest.approx(0.040062, abs=1e-6)
    assert loss(Objective.neutral(2), 0, 1.0) == pytest.approx(1.313262, abs=1e-6)


@pytest.mark.parametrize("patients", [(30, 12), (25, 14, 9)])
def test_logit_adjust_is_the_baseline_with_another_intercept(patients):
    """So ranking cannot change on fixed features (Menon et al. 2021, section 4)."""
    matrix = made.train_matrix(patients)
    draws = matrix.draws(built("baseline").plan(matrix.train_rows(0)))
    counts = np.bincount(matrix.image_labels)
    adjusted, plain = (
        head.fit(matrix.features, matrix.labels, draws, objective, 0.1, matrix.standardiser)
        for objective in (built("logit_adjust").objective(counts), Objective.neutral(len(counts)))
    )
    assert adjusted.coefficients == pytest.approx(plain.coefficients, abs=1e-6)
    moved = plain.intercepts - adjusted.intercepts
    assert moved - moved[0] == pytest.approx(np.log(counts / counts[0]), abs=1e-6)


# --- patients --------------------------------------------------------------------------------------------------------


def test_at_one_every_patient_weighs_the_same_over_all_classes():
    patients = np.random.default_rng(2).choice(
        list("abcdefgh"), 85, p=[0.3, 0.3, 0.1, 0.1, 0.05, 0.05, 0.05, 0.05]
    )
    rows, _ = blobs(patients=patients)
    plan = built("patient_balanced").plan(rows)
    totals = pd.Series(plan.weight).groupby(patients).sum()
    assert totals.to_numpy() == pytest.approx(np.full(len(totals), 85 / len(totals)))
    half = built("patient_balanced", exponent=0.5).plan(rows)
    totals, images = (
        pd.Series(half.weight).groupby(patients).sum(),
        pd.Series(patients).value_counts(),
    )
    assert (totals / np.sqrt(images)).std() == pytest.approx(0, abs=1e-12)
    alone = built("patient_balanced").plan(replace(rows, patients=np.arange(85)))
    assert alone.weight.tolist() == [1] * 85


def test_weights_of_draws_are_the_sample_weights_of_scikit_learn():
    matrix = made.train_matrix()
    plan = built("patient_balanced").plan(matrix.train_rows(0))
    draws = matrix.draws(plan)
    assert draws[: len(plan.weight)] == pytest.approx(plan.weight)
    found = head.fit(
        matrix.features, matrix.labels, draws, Objective.neutral(2), 0.05, matrix.standardiser
    )
    images = len(matrix.image_labels)
    standardised = matrix.standardiser.apply(matrix.features[:images])
    other = LogisticRegression(C=1 / (0.05 * images), tol=1e-10, max_iter=1000)
    other.fit(standardised, matrix.image_labels, sample_weight=plan.weight)
    assert found.coefficients[:, 1] == pytest.approx(other.coef_[0], abs=1e-5)


@pytest.mark.parametrize("name", ["patient_balanced", "smote", "imblearn_tomeklinks"])
def test_rows_without_patients_or_features_are_refused_and_not_passed_over(name):
    with pytest.raises(DataError, match=r"came without (patients|features).*give the"):
        built(name).plan(TrainRows(np.array([0, 0, 0, 1, 1]), 2, 0, 0))


# --- SMOTE -----------------------------------------------------------------------------------------------------------


def mixed_features(plan, features):
    step = plan.mix[:, None] * (features[plan.partner] - features[plan.row])
    return (features[plan.row] + step)[plan.mix > 0]


@pytest.mark.parametrize("counts", [(60, 25), (20, 50), (40, 9, 22), (30, 4)])
@pytest.mark.parametrize("seed", [0, 7])
def test_smote_makes_the_rows_of_imbalanced_learn(counts, seed):
    rows, features = blobs(counts, seed=seed)
    plan = built("smote").plan(rows)
    oracle = SMOTE(random_state=seed, k_neighbors=min(5, min(counts) - 1))
    expected, labels = oracle.fit_resample(features, rows.labels)
    assert plan.row[: len(features)].tolist() == list(range(len(features)))
    assert (plan.mix[: len(features)] == 0).all()
    made_up, kind = mixed_features(plan, features), rows.labels[plan.row[plan.mix > 0]]
    for label in range(len(counts)):
        own = labels[len(features) :] == label
        assert made_up[kind == label] == pytest.approx(expected[len(features) :][own])
    assert plan.counts(rows.labels, len(counts)).tolist() == [max(counts)] * len(counts)


def test_each_mixed_row_lies_between_an_image_and_one_of_its_five_nearest_of_the_class():
    rows, features = blobs((40, 9, 22))
    plan = built("smote").plan(rows)
    for row, partner in zip(plan.row[plan.mix > 0], plan.partner[plan.mix > 0]):
        own = np.flatnonzero(rows.labels == rows.labels[row])
        distance = np.linalg.norm(features[own] - features[row], axis=1)
        assert partner in own[np.argsort(distance)[1:6]]


def test_smote_with_less_keeps_the_first_of_the_same_draws():
    rows, _ = blobs()
    full, half = built("smote").plan(rows), built("smote", target_fraction=0.4).plan(rows)
    assert half.counts(rows.labels, 2).tolist() == [60, 25 + 14]
    for name in ("row", "partner", "mix"):
        assert np.array_equal(getattr(half, name), getattr(full, name)[: 85 + 14])


def test_smote_of_a_single_image_fails_with_a_sentence():
    rows, _ = blobs((12, 1))
    with pytest.raises(
        TrialFailed, match=r"SMOTE needs 2 images of a class to mix; of \[12, 1\] one has a single"
    ):
        built("smote").plan(rows)


def test_mixing_commutes_with_standardising_and_rotating():
    matrix = made.train_matrix()
    plans = [built("smote", target_fraction=part).plan(matrix.train_rows(4)) for part in (0.5, 1.0)]
    draws = np.stack([matrix.draws(plan) for plan in plans], axis=1)
    mixed = [inputs.mixed(plan) for plan in plans]
    raw, labels, counted = matrix.with_mixed(matrix.features, draws, mixed)
    rotated = solver.Rotated.of(matrix.standardiser.apply(matrix.features, np.float32))
    table, again, _ = matrix.with_mixed(rotated.matrix, draws, mixed)
    assert table[:, :-1] == pytest.approx(
        matrix.standardiser.apply(raw, np.float32) @ rotated.basis, abs=1e-4
    )
    assert (table[:, -1] == 1).all(), "the column of the intercept"
    assert np.array_equal(labels, again)
    assert len(raw) - len(matrix.features) == (plans[1].mix > 0).sum(), (
        "what both plans draw is there once"
    )
    for plan, column in zip(plans, counted.T):
        expected = plan.counts(matrix.image_labels, 2)
        assert [column[labels == label].sum() for label in (0, 1)] == expected.tolist()


def test_without_mixed_rows_nothing_is_copied():
    matrix = made.train_matrix()
    plan = built("oversample").plan(matrix.train_rows(0))
    draws = matrix.draws(plan)[:, None]
    table, labels, counted = matrix.with_mixed(matrix.features, draws, [inputs.mixed(plan)])
    assert table is matrix.features
    assert counted is draws
    assert np.array_equal(labels, matrix.labels)


def test_a_smote_trial_is_logistic_regression_on_the_rows_of_imbalanced_learn_inside_each_fold():
    matrix, l2 = made.train_matrix((40, 16)), 0.05
    fold_of = np.random.default_rng(0).integers(0, 3, len(np.unique(matrix.patients)))
    fold_of = fold_of[np.unique(matrix.patients, return_inverse=True)[1]]
    cls, seed = strategies.load_strategy("smote"), 11
    search = tuning.Search(matrix, cls, {}, made.tune_section(), seed, fold_of)
    candidates = [{"target_fraction": part, "l2": l2} for part in (0.3, 1.0, 0.0)]
    found = search.score(candidates)
    images = len(matrix.image_labels)
    standardised = matrix.standardiser.apply(matrix.features[:images], np.float32)
    for trial, target in ((found[1], "auto"), (found[2], None)):
        for fold in range(3):
            inside, held = fold_of != fold, fold_of == fold
            table, labels = standardised[inside], matrix.image_labels[inside]
            if target:
                table, labels = SMOTE(random_state=seed).fit_resample(table, labels)
            expected = LogisticRegression(C=1 / (l2 * len(labels)), tol=1e-8, max_iter=1000).fit(
                table, labels
            )
            assert trial.probabilities[held] == pytest.approx(
                expected.predict_proba(standardised[held]), abs=2e-3
            )
    assert not np.allclose(found[0].probabilities, found[1].probabilities, atol=1e-3)


# --- samplers of imbalanced-learn ------------------------------------------------------------------------------------


def test_no_sampler_that_leaves_its_indices_is_missing():
    rows, features = blobs((70, 35), width=3)
    needs = {
        "SMOTENC": {"categorical_features": [0]},
        "KMeansSMOTE": {"cluster_balance_threshold": 0.01},
    }
    found = set()
    for package in ("over_sampling", "under_sampling", "combine"):
        module = importlib.import_module(f"imblearn.{package}")
        for name in module.__all__:
            sampler = getattr(module, name)(**needs.get(name, {}))
            sampler.fit_resample(np.round(features), rows.labels)
            found |= {name} if hasattr(sampler, "sample_indices_") else set()
    assert found - {"RandomOverSampler", "RandomUnderSampler"} == set(SAMPLERS.values())
    assert list(SAMPLERS) == [f"imblearn_{name.lower()}" for name in SAMPLERS.values()]
    assert len(SAMPLERS) >= 9


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("counts", [(60, 25), (18, 40), (40, 12, 22)])
def test_the_plan_is_what_the_sampler_keeps(name, counts):
    rows, features = blobs(counts)
    sampler = getattr(importlib.import_module("imblearn.under_sampling"), SAMPLERS[name])()
    if hasattr(sampler, "random_state"):
        sampler.set_params(random_state=rows.seed)
    sampler.fit_resample(features, rows.labels)
    plan = built(name).plan(rows)
    assert plan.row.tolist() == sorted(sampler.sample_indices_)
    half = built(name, removed_fraction=0.5).plan(rows)
    assert set(plan.row) <= set(half.row)
    removed = len(features) - len(set(plan.row))
    assert removed > 0, "a cloud that overlaps gives something to remove"
    assert len(features) - len(set(half.row)) == round(0.5 * removed)


def test_a_sampler_that_cannot_is_a_failed_trial():
    rows, _ = blobs((12, 2))
    with pytest.raises(TrialFailed, match=r"NearMiss cannot resample \[12, 2\] images per class: "):
        built("imblearn_nearmiss").plan(rows)


def test_a_sampler_that_empties_a_class_is_a_failed_trial():
    labels = np.repeat([0, 1, 2], [3, 12, 12])
    features = np.random.default_rng(0).normal(size=(27, 2))
    features[labels == 1] += 9
    features[24:] = features[:3] * 0.01  # the last three of class 2 surround class 0
    features[12:15] = 0.02
    emptied = np.where(labels == 2)[0]
    features[emptied] = features[3:15][np.arange(12)] + 1e-3
    rows = TrainRows(labels, 3, 0, 0, None, lambda: features)
    with pytest.raises(
        TrialFailed, match=r"leaves \[.*\] of \[3, 12, 12\] images per class: one is empty"
    ):
        built("imblearn_editednearestneighbours").plan(rows)


def test_a_sampler_runs_once_for_the_trials_that_share_its_rows():
    calls = []
    rows, features = blobs()
    rows = replace(rows, make_features=lambda: calls.append(1) or features)
    for part in (0.2, 0.7, 1.0):
        built("imblearn_tomeklinks", removed_fraction=part).plan(rows)
    assert len(calls) == 1
    built("imblearn_tomeklinks").plan(replace(rows, seed=8))
    assert len(calls) == 2, "another seed draws anew"


def test_inner_folds_are_given_their_own_rows_only():
    matrix = made.train_matrix()
    inside = np.arange(5, 40, 3)
    rows = matrix.train_rows(0, inside)
    whole = matrix.standardiser.apply(matrix.features, np.float32)
    assert np.array_equal(rows.make_features(), whole[inside])
    assert np.array_equal(rows.labels, matrix.image_labels[inside])
    assert np.array_equal(rows.patients, matrix.patients[inside])


# --- the whole way ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NEW)
def test_a_scenario_runs_from_end_to_end(folder, name):
    study = made.study(
        folder,
        train={"seeds": [0]},
        tune={"trials": 3, "inner_folds": 2},
        compare={"resamples": 100},
    )
    summary = scenario.run(study, made.BACKBONE, name)
    target = study.result_path(made.BACKBONE, name)
    plan, _ = files.read_table(target / "plan.parquet")
    assert list(plan.columns[-3:]) == ["partner_id", "mix", "weight"]
    train = records.Splits.read(study.splits_path).table.query("part == 'train'")["image_id"]
    assert set(plan["image_id"]) | set(plan["partner_id"]) <= set(train)
    assert summary.metrics["free"]["auroc"].value > 0.8
    assert {check.code: check.answer for check in summary.checks}["EQ004"] == "passed"
    mixed = plan[plan["mix"] > 0]
    assert (plan.drop(mixed.index)["partner_id"] == plan.drop(mixed.index)["image_id"]).all()
    assert (len(mixed) > 0) == (name == "smote"), (
        "the published 1:1 is kept or beaten by another part of the gap"
    )
    assert (plan["weight"] != 1).any() == (name == "patient_balanced")


def test_smote_cannot_be_fine_tuned(folder):
    study = made.study(folder, train={"mode": "finetune", "seeds": [0]})
    with pytest.raises(
        ConfigError, match=r"'smote' trains on mixed features, of which there is no picture.*probe"
    ):
        scenario.run(study, made.BACKBONE, "smote")


def test_a_mixed_plan_is_exported_as_rows_and_not_as_pictures(folder):
    study = made.study(folder, train={"seeds": [0]}, tune={"trials": 2})
    scenario.run(study, made.BACKBONE, "smote")
    with pytest.raises(
        DataError, match=r"draws of .*plan\.parquet are mixed from the features of two images.*csv"
    ):
        export.export_study(study, "folders", "smote", made.BACKBONE)
    written = pd.read_csv(
        export.export_study(study, "csv", "smote", made.BACKBONE)[0] / "split.csv"
    )
    plan, _ = files.read_table(study.result_path(made.BACKBONE, "smote") / "plan.parquet")
    drawn = written[written["part"] == "train"]
    for column in ("image_id", "partner_id"):
        assert drawn[column].tolist() == plan[column].tolist()
    assert drawn["mix"].to_numpy() == pytest.approx(plan["mix"].to_numpy())
    assert (written.loc[written["part"] != "train", "mix"] == 0).all()


def test_a_partner_outside_train_is_a_leak(folder):
    with pytest.raises(LeakageError, match="EQ004: the plan draws row 7, outside the 5 train rows"):
        base.plan_within_train(Plan.of([0, 1], partner=np.array([0, 7]), mix=0.5), 5)
    splits = records.Splits.read(made.study(folder).splits_path)
    parts = splits.round(0, 0).groupby("part")["image_id"].first()
    plan = pd.DataFrame(
        {"image_id": [parts["train"]] * 2, "view": 0, "repeat": 0, "fold": 0, "seed": 0}
    )
    checks.written_plan_within_train(plan, splits)
    plan = plan.assign(partner_id=[parts["train"], parts["test"]], mix=[0.0, 0.5], weight=1.0)
    with pytest.raises(LeakageError, match=f"EQ004: the plan draws image '{parts['test']}'"):
        checks.written_plan_within_train(plan, splits)
