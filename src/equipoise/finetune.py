"""The same plan and objective end to end in Keras, from the solved head (LP-FT, Kumar et al., arXiv 2202.10054)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from equipoise import augment, backbones, head, images, ingest, parallel, splits, strategies
from equipoise.errors import TrialFailed
from equipoise.features import Embedder
from equipoise.inputs import Inputs
from equipoise.network import head_of, with_head
from equipoise.records import Objective, TrainRows


def run(
    inputs: Inputs,
    settings: Mapping[str, Any],
    train: np.ndarray,
    patients: np.ndarray,
    wanted: np.ndarray,
    seed: int,
) -> tuple[np.ndarray, head.Head, list[np.ndarray]]:
    """Fine-tune one model and predict.

    A patient-grouped slice of train is set aside; the plan and the starting head use the rest. The weights with the
    lowest objective on the slice are restored, the starting ones included. Batch normalisation keeps its statistics.

    Args:
        inputs: Study, backbone and scenario.
        settings: What the search chose: the strategy's settings and `l2`.
        train: int, train images as positions in the manifest.
        patients: Patient of each train image.
        wanted: int, images to predict.
        seed: Of the plan, the batches and TensorFlow.

    Returns:
        Logits float64 (len(wanted), C), the tuned head, and the tuned weights of the backbone.

    Raises:
        TrialFailed: When the loss becomes NaN.
    """
    keras = backbones.load_keras()
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    study, options = inputs.study, inputs.study.settings.finetune
    labels = inputs.manifest.table["label"].to_numpy()
    rows = pd.DataFrame({"patient": patients, "label": labels[train]})
    stop = splits.draw(rows, options.stop_fraction, [study.settings.split.seed, 5])
    kept = train[~stop]
    matrix = inputs.train_matrix(kept, patients[~stop])
    strategy = strategies.load_strategy(inputs.scenario).of(settings)
    plan = strategy.plan(TrainRows(matrix.image_labels, matrix.num_classes, matrix.views, seed))
    objective = strategy.objective(plan.counts(matrix.image_labels, matrix.num_classes))
    standardiser = head.Standardiser.fit(matrix.features[: len(kept)])
    start = head.fit(matrix.features, matrix.labels, matrix.draws(plan), objective, settings["l2"], standardiser)

    size_px = study.settings.embed.image_size_px
    network = backbones.build(inputs.backbone, study.settings.embed.weights_for(inputs.backbone), size_px)
    whole = with_head(network, start)
    _unfreeze(network, backbones.load_row(inputs.backbone).last_block if options.unfreeze == "last_block" else ("",))
    embedder = Embedder(whole, size_px)
    load = _Loader(inputs, embedder)
    step = _training_step(whole, objective, settings["l2"], standardiser, options.learning_rate)

    slice_images = load(train[stop])
    slice_labels = labels[train[stop]]
    rng = np.random.default_rng(seed)
    best_loss, best_weights = _slice_loss(embedder, slice_images, slice_labels, objective), whole.get_weights()
    order: list[int] = []
    for number in parallel.progress(range(1, options.steps + 1), "fine-tuning", options.steps, "steps"):
        while len(order) < options.batch_size:
            order += rng.permutation(len(plan.row)).tolist()
        chosen, order = np.array(order[: options.batch_size]), order[options.batch_size :]
        drawn = kept[plan.row[chosen]]
        loss = float(step(load(drawn), load.parameters(drawn, plan.view[chosen]), labels[drawn]))
        if not np.isfinite(loss):
            raise TrialFailed(
                f"Fine-tuning diverged at step {number}: the loss is {loss}. Lower finetune.learning_rate."
            )
        if number % options.evaluate_every_steps == 0 or number == options.steps:
            loss = _slice_loss(embedder, slice_images, slice_labels, objective)
            if loss < best_loss:
                best_loss, best_weights = loss, whole.get_weights()
    whole.set_weights(best_weights)
    batches = [wanted[first : first + options.batch_size] for first in range(0, len(wanted), options.batch_size)]
    shown = parallel.progress(batches, "predicting", len(batches), "batches")
    logits = np.concatenate([embedder.features(load(batch)) for batch in shown])
    return logits, head_of(whole, standardiser), network.get_weights()


class _Loader:
    """Decoded and resized images by position in the manifest, and the numbers of their views."""

    def __init__(self, inputs: Inputs, embedder: Embedder) -> None:
        self.raw, self.policy = inputs.study.raw, inputs.study.settings.augment
        places = ingest.locate(inputs.study, inputs.manifest)
        self.paths = [places[name] for name in inputs.manifest.table["image_id"]]
        self.digests = inputs.manifest.table["sha256"].to_numpy()
        self.embedder = embedder

    def __call__(self, positions: np.ndarray) -> np.ndarray:
        paths = [self.paths[position] for position in positions]
        return np.stack(list(parallel.in_threads(self._load, paths)))

    def _load(self, path: str) -> np.ndarray:
        return self.embedder.resize(images.decode(images.read(self.raw, path)))

    def parameters(self, positions: np.ndarray, views: np.ndarray) -> np.ndarray:
        size = self.embedder.size_px
        return np.stack(
            [
                augment.view_parameters(self.digests[at], int(view), self.policy, size)
                for at, view in zip(positions, views)
            ]
        )


def _unfreeze(network: Any, prefixes: tuple[str, ...]) -> None:
    """Leave only layers whose name starts with a prefix trainable; batch normalisation is never updated."""
    for layer in network.layers:
        layer.trainable = layer.name.startswith(prefixes) and type(layer).__name__ != "BatchNormalization"


def _training_step(
    whole: Any, objective: Objective, l2: float, standardiser: head.Standardiser, learning_rate: float
) -> Any:
    import keras
    import tensorflow as tf

    weights = tf.constant(objective.weights, tf.float64)
    offsets = tf.constant(objective.offsets, tf.float64)
    dense, variables = whole.get_layer("logits"), whole.trainable_variables
    spread = np.zeros(dense.kernel.shape[0])
    spread[standardiser.kept] = standardiser.scale
    optimizer = keras.optimizers.Adam(learning_rate)
    optimizer.build(variables)

    @tf.function
    def step(batch: Any, parameters: Any, labels: Any) -> Any:
        with tf.GradientTape() as tape:
            logits = whole(augment.apply_views(batch, parameters), training=False) + offsets
            log_prob = tf.gather(tf.nn.log_softmax(logits), labels, batch_dims=1)
            own = tf.gather(weights, labels)
            losses = -((1.0 - tf.exp(log_prob)) ** objective.focusing) * log_prob if objective.focusing else -log_prob
            kernel = dense.kernel * spread[:, None]
            penalty = 0.5 * l2 * tf.reduce_sum((kernel - kernel[:, :1]) ** 2 if kernel.shape[1] == 2 else kernel**2)
            loss = tf.reduce_sum(own * losses) / tf.reduce_sum(own) + penalty
        optimizer.apply(tape.gradient(loss, variables), variables)
        return loss

    return step


def _slice_loss(embedder: Embedder, batch: np.ndarray, labels: np.ndarray, objective: Objective) -> float:
    """The scenario's own objective, without the penalty, on the slice set aside."""
    logits = np.concatenate([embedder.features(batch[first : first + 32]) for first in range(0, len(batch), 32)])
    prob = head.softmax(logits + objective.offsets)[np.arange(len(labels)), labels]
    losses = (1 - prob) ** objective.focusing * -np.log(np.maximum(prob, np.finfo(float).tiny))
    return float(np.average(losses, weights=objective.weights[labels]))
