"""The rows that plans draw from a train matrix, and what each weighs."""

import numpy as np
import pytest

from equipoise.core.errors import TrialFailed
from equipoise.strategies.base import Objective, Plan, load_strategy
from fabricate import made


def test_a_row_weighs_its_draws_times_the_weight_of_its_class():
    matrix = made.train_matrix()
    plain = load_strategy("class_weight")()
    drawn = load_strategy("oversample")()
    plans = [strategy.plan(matrix.train_rows(3)) for strategy in (plain, drawn)]
    objectives = [Objective.neutral(2).replace(weights=np.array([0.5, 3.0])), Objective.neutral(2)]
    features, labels, weights = matrix.weighted(plans, objectives, matrix.features)
    assert features is matrix.features
    assert np.array_equal(labels, matrix.labels)
    images = len(matrix.image_labels)
    assert weights[:images, 0].tolist() == [[0.5, 3.0][label] for label in matrix.image_labels]
    assert weights[:, 1].tolist() == np.bincount(plans[1].row, minlength=len(labels)).tolist()
    assert not weights[images:].any(), "no plan draws a view"


def test_rows_that_weigh_nothing_for_any_head_are_left_out():
    matrix = made.train_matrix()
    images = len(matrix.image_labels)
    half = Plan.of(np.arange(0, images, 2))
    third = Plan.of(np.arange(0, images, 3))
    rows = matrix.weighted([half, third], [Objective.neutral(2)] * 2, matrix.features)
    used = rows.in_use()
    numbers = np.arange(len(matrix.row))
    drawn = (numbers < images) & ((numbers % 2 == 0) | (numbers % 3 == 0))
    assert np.array_equal(used.features, matrix.features[drawn])
    assert np.array_equal(used.labels, rows.labels[drawn])
    assert np.array_equal(used.weights, rows.weights[drawn])
    every_image = Plan.of(np.arange(images))
    every = matrix.weighted([every_image], [Objective.neutral(2)], matrix.features)
    plain = every._replace(
        features=every.features[:images],
        labels=every.labels[:images],
        weights=every.weights[:images],
    )
    assert plain.in_use() is plain, "nothing to leave out is nothing to copy"


def test_mixed_rows_weigh_as_their_class_too():
    matrix = made.train_matrix()
    plan = load_strategy("smote")().plan(matrix.train_rows(3))
    objective = Objective.neutral(2).replace(weights=np.array([0.5, 3.0]))
    rows = matrix.weighted([plan], [objective], matrix.features)
    counts = plan.counts(matrix.image_labels, 2)
    totals = [rows.weights[rows.labels == label].sum() for label in (0, 1)]
    assert totals == pytest.approx(counts * objective.weights)
    assert len(rows.features) == len(matrix.features) + (plan.mix > 0).sum()


def test_every_row_is_drawn_once():
    matrix = made.train_matrix()
    every_image = Plan.of(np.arange(len(matrix.image_labels)))
    assert (matrix.draws(every_image) == (matrix.view == 0)).all()


def test_a_view_that_is_not_there_is_refused():
    matrix = made.train_matrix()
    majority = int(np.flatnonzero(matrix.image_labels == 0)[0])
    matrix.require_views(Plan.of([majority]))
    with pytest.raises(TrialFailed, match=r"augmented views .* embed\.views_of"):
        matrix.require_views(Plan.of([majority], view=1))
    with pytest.raises(TrialFailed, match=r"augmented views .* embed\.views_of"):
        matrix.weighted([Plan.of([majority], view=1)], [Objective.neutral(2)], matrix.features)
