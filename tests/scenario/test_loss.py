"""The one loss in its forms: the solver's, numpy's for a slice, and TensorFlow's for a step."""

import numpy as np
import pytest

from equipoise.scenario.heads import loss
from equipoise.scenario.heads.solver import Problem, Rotated
from equipoise.strategies.base import Objective

CASES = pytest.mark.parametrize(
    ("classes", "focusing", "shift"), [(2, 0.0, 0.0), (2, 2.0, 1.5), (3, 0.0, 1.5), (3, 0.5, 0.0)]
)


def rows(classes, focusing, shift, spread=3.0):
    """Logits, labels and an objective with other weights and offsets for each class."""
    rng = np.random.default_rng(0)
    logits = rng.normal(scale=spread, size=(40, classes))
    labels = rng.integers(0, classes, size=40)
    objective = Objective(
        weights=np.arange(1.0, classes + 1),
        focusing=focusing,
        offsets=shift * np.arange(classes),
    )
    return logits, labels, objective


@CASES
def test_numpy_and_tensorflow_agree(classes, focusing, shift):
    import tensorflow as tf

    logits, labels, objective = rows(classes, focusing, shift)
    tensors = loss.tensor_row_losses(tf.constant(logits), tf.constant(labels), objective)
    expected = loss.row_losses(logits, labels, objective)
    assert tensors.dtype == tf.float64
    assert tensors.numpy() == pytest.approx(expected, rel=1e-9, abs=1e-15)


@CASES
def test_the_mean_over_rows_is_the_objective_of_the_solver(classes, focusing, shift):
    logits, labels, objective = rows(classes, focusing, shift)
    # Each row has a feature of its own, so that coefficients are the logits; next to no penalty.
    rotated = Rotated(
        matrix=np.hstack([np.eye(40), np.ones((40, 1))]), basis=np.eye(40), spectrum=np.ones(40)
    )
    row_weights = objective.weights[labels][:, None]
    problem = Problem(rotated, labels, row_weights, [objective], np.array([1e-300]))
    coefficients = logits[:, 1:] - logits[:, :1] if classes == 2 else logits
    parameters = np.vstack([coefficients, np.zeros((1, problem.columns))]).T[None]
    evaluated = problem.evaluate(parameters / problem.scale, np.array([0]))
    expected = loss.mean_loss(logits, labels, objective)
    assert evaluated.value[0] == pytest.approx(expected, rel=1e-12)


def test_without_focusing_it_is_cross_entropy():
    logits, labels, objective = rows(3, 0.0, 0.0)
    exponentials = np.exp(logits)
    probabilities = exponentials / exponentials.sum(axis=1, keepdims=True)
    expected = -np.log(probabilities[np.arange(40), labels])
    assert loss.row_losses(logits, labels, objective) == pytest.approx(expected)


@pytest.mark.parametrize("focusing", [0.0, 0.5, 2.0])
def test_the_slope_is_that_of_finite_differences(focusing):
    log_prob = np.log(np.linspace(0.05, 0.95, 10))

    def value_at(log_prob):
        prob = np.exp(log_prob)
        return loss.focal(log_prob, prob, 1 - prob, focusing)[0]

    prob = np.exp(log_prob)
    _, slope = loss.focal(log_prob, prob, 1 - prob, focusing)
    step = 1e-6
    expected = (value_at(log_prob + step) - value_at(log_prob - step)) / (2 * step)
    assert slope == pytest.approx(expected, rel=1e-6)


def test_a_certain_row_costs_nothing_in_every_form():
    import tensorflow as tf

    objective = Objective.neutral(2).replace(focusing=0.5)
    logits, labels = np.array([[0.0, 800.0]]), np.array([1])
    assert loss.row_losses(logits, labels, objective) == pytest.approx(0)
    with tf.GradientTape() as tape:
        tensor = tf.constant(logits)
        tape.watch(tensor)
        losses = loss.tensor_row_losses(tensor, tf.constant(labels), objective)
    assert losses.numpy() == pytest.approx(0)
    assert np.isfinite(tape.gradient(losses, tensor).numpy()).all()
