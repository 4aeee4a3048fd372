"""The same plan and objective end to end in Keras, from the solved head (LP-FT, Kumar et al., arXiv 2202.10054)."""

from __future__ import annotations

import dataclasses
import itertools
import math
import shutil
import time
import zipfile
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from equipoise.core import parallel
from equipoise.core.config import Finetune
from equipoise.core.errors import ConfigError, TrialFailed
from equipoise.core.files import atomic_path, digest_of
from equipoise.embed import augment, backbones
from equipoise.embed.embedder import Embedder
from equipoise.evaluation import metrics
from equipoise.scenario import head
from equipoise.scenario import rows as rows_
from equipoise.scenario.matrix import Inputs
from equipoise.scenario.network import head_of, unfreeze, with_head
from equipoise.scenario.pixels import Pixels
from equipoise.split import strata
from equipoise.strategies import base as strategies
from equipoise.strategies.base import Objective, Plan

_CHECKPOINTS = Path("data/cache/finetune")


#: Shorter runs leave no checkpoint: repeating them costs less than writing a hundred megabytes at every evaluation.
_SAVE_SECONDS = 20.0


def run(
    inputs: Inputs,
    settings: Mapping[str, Any],
    train: np.ndarray,
    patients: np.ndarray,
    wanted: np.ndarray,
    seed: int,
) -> tuple[np.ndarray, head.Head, list[np.ndarray], int]:
    """Fine-tune one model and predict.

    Args:
        inputs: Study, backbone and scenario.
        settings: What the search chose: the strategy's settings and `l2`.
        train: int, train images as positions in the manifest.
        patients: Patient of each train image.
        wanted: int, images to predict.
        seed: Of the plans, the batches and TensorFlow.

    Returns:
        Logits float64 (len(wanted), C), the tuned head, the tuned weights of the backbone, and the step they are of: 0
        where no step lowered the objective on the slice, so that the starting weights are kept.

    Raises:
        TrialFailed: When the loss becomes NaN.
        ConfigError: For mixed precision without a GPU.
    """
    training = Training(inputs, settings, train, held_out(inputs, train, patients), patients, seed)
    for _ in training.evaluations():
        pass
    # Built anew: it is served in the precision of the features, whatever it was trained in.
    network, whole = training.build(inputs.store.meta["pipeline"])
    whole.set_weights(training.best.weights)
    logits = training.logits(Embedder(whole, training.pixels.size_px), wanted)
    training.forget()
    return logits, head_of(whole, training.standardiser), network.get_weights(), training.best.step


def held_out(inputs: Inputs, train: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """The slice of train that chooses, whole patients and the same for every scenario: int, places in `train`."""
    rows = pd.DataFrame({"patient": patients, "label": inputs.labels(train)})
    settings = inputs.study.settings
    return np.flatnonzero(
        strata.draw(rows, settings.finetune.stop_fraction, [settings.split.seed, 5])
    )


class Trials:
    """A `tuning.Trainer`: trains trials as `run` does, each from the same seed and on the same slice."""

    def __init__(self, inputs: Inputs, train: np.ndarray, patients: np.ndarray, seed: int) -> None:
        self.held, self.steps = (
            held_out(inputs, train, patients),
            inputs.study.settings.finetune.steps,
        )
        self._inputs, self._rows = inputs, (train, self.held, patients, seed)

    def evaluations(self, settings: Mapping[str, Any]) -> Generator[tuple[int, np.ndarray]]:
        """Yield (step, logits) at every evaluation: of the slice, by the weights kept if training ended there.

        The starting weights come first. Closing the generator earlier prunes the trial and removes its checkpoint.
        """
        training = Training(self._inputs, settings, *self._rows)
        yield from training.evaluations()
        training.forget()


def learning_rate_at(step: int, options: Finetune) -> float:
    r"""Warm-up, then cosine: $\eta\,t/w$ up to step $w$, after it $\eta\,(1+\cos(\pi (t-w-1)/(T-w)))/2$.

    Args:
        step: $t$, 1 to $T$ = `steps`; $w$ is `warmup_fraction` of them.
        options: The `finetune` section.
    """
    warm = round(options.warmup_fraction * options.steps)
    if step <= warm:
        return options.learning_rate * step / warm
    return (
        options.learning_rate
        * (1 + math.cos(math.pi * (step - warm - 1) / (options.steps - warm)))
        / 2
    )


@dataclass(frozen=True)
class _Kept:
    """Weights with the lowest objective on the slice so far, and their logits there."""

    step: int
    loss: float
    logits: np.ndarray
    weights: list[np.ndarray]


class Training:
    """One fine-tuning: a patient-grouped slice of train set aside, plan and starting head from the rest.

    The weights with the lowest objective on the slice are kept, the starting ones included. An epoch is one pass over
    the draws of a plan, and each epoch draws its own; the objective is that of the first. A killed run goes on from
    its checkpoint to the same bytes.
    """

    def __init__(
        self,
        inputs: Inputs,
        settings: Mapping[str, Any],
        train: np.ndarray,
        held: np.ndarray,
        patients: np.ndarray,
        seed: int,
    ) -> None:
        keras = backbones.load_keras()
        import tensorflow as tf

        keras.utils.set_random_seed(seed)
        tf.config.experimental.enable_op_determinism()
        self.inputs, self.seed, self.options = inputs, seed, inputs.study.settings.finetune
        if self.options.mixed_precision and not tf.config.list_physical_devices("GPU"):
            raise ConfigError(
                "finetune.mixed_precision is true and TensorFlow sees no GPU; on a processor float16 is slower and "
                "less exact. Set finetune.mixed_precision: false."
            )
        self.labels = inputs.manifest.table["label"].to_numpy()
        self.kept, self.held = np.delete(train, held), train[held]
        matrix = inputs.train_matrix(self.kept, np.delete(patients, held))
        self.strategy = strategies.load_strategy(inputs.scenario).of(settings)
        self.rows, self.standardiser, l2 = (
            matrix.train_rows(seed),
            matrix.standardiser,
            settings["l2"],
        )
        plan = self.plan(0)
        self.objective = self.strategy.objective(
            plan.counts(matrix.image_labels, matrix.num_classes)
        )
        draws = matrix.draws(plan)
        self.start = head.fit(
            matrix.features, matrix.labels, draws, self.objective, l2, self.standardiser
        )
        pipeline = inputs.store.meta["pipeline"]
        # Gradients do not survive the rounding of stored features.
        trained = (
            pipeline.replace("/stored-float16", "")
            + "/mixed-float16" * self.options.mixed_precision
        )
        network, self.whole = self.build(trained)
        block = (
            backbones.load_row(inputs.backbone).last_block
            if self.options.unfreeze == "last_block"
            else ("",)
        )
        unfreeze(network, block, self.options.freeze_batch_norm)
        self.embedder = Embedder(self.whole, inputs.study.settings.embed.image_size_px, pipeline)
        self.pixels = Pixels(inputs, self.embedder)
        self.optimizer, self.step = _training_step(
            self.whole, self.objective, l2, self.standardiser, self.options
        )
        everything = {
            **inputs.study.settings.sections("finetune", "augment", "embed"),
            **{
                "scenario": inputs.scenario,
                "settings": dict(settings),
                "seed": seed,
                "train": train,
            },
            **{
                "patients": patients,
                "manifest": inputs.manifest.digest,
                "features": inputs.store.digest,
            },
            **{
                "weights": backbones.weights_digest(network),
                "pipeline": pipeline,
                "tensorflow": tf.__version__,
            },
        }
        self.checkpoint = _CHECKPOINTS / digest_of(everything)[:24] / "state.npz"

    def plan(self, epoch: int) -> Plan:
        """The plan of one epoch."""
        seed = int(np.random.SeedSequence([self.seed, epoch]).generate_state(1)[0])
        return self.strategy.plan(dataclasses.replace(self.rows, seed=seed))

    def batches(self, first_step: int = 1) -> Iterator[tuple[Any, ...]]:
        """Pixels, views, labels and weights for `step`, from that step on, made in threads ahead of the reader."""
        self.pixels.fill(np.concatenate([self.kept, self.held]))
        size = self.options.batch_size
        draws = itertools.islice(self._draws(), (first_step - 1) * size, self.options.steps * size)
        chunks = iter(lambda: list(itertools.islice(draws, size)), [])
        return parallel.in_threads(self._prepare, chunks, threads=2, ahead=4)  # type: ignore[arg-type]

    def _draws(self) -> Iterator[tuple[int, int, float]]:
        for epoch in itertools.count():
            plan = self.plan(epoch)
            order = np.random.default_rng([self.seed, epoch]).permutation(len(plan.row))
            yield from zip(self.kept[plan.row[order]], plan.view[order], plan.weight[order])

    def _prepare(self, drawn: list[tuple[int, int, float]]) -> tuple[Any, ...]:
        import tensorflow as tf

        positions, views, weights = map(np.array, zip(*drawn))
        weights = weights * self.objective.weights[self.labels[positions]]
        parameters = self.pixels.parameters(positions, views)
        return tuple(
            map(tf.constant, (self.pixels(positions), parameters, self.labels[positions], weights))
        )

    def evaluations(self) -> Iterator[tuple[int, np.ndarray]]:
        """Train, and yield (step, logits) as `Trials.evaluations` does, after a kill all of them again."""
        try:
            yield from self._evaluations()
        except (GeneratorExit, TrialFailed):
            self.forget()
            raise

    def _evaluations(self) -> Iterator[tuple[int, np.ndarray]]:
        total, done = self.options.steps, self._restore()
        if not done:
            self.best = self._evaluate(0)
            self.seen = [(0, self.best.logits)]
        yield from list(self.seen)
        saved, losses = time.monotonic(), []
        numbers = parallel.progress(
            range(done + 1, total + 1), "fine-tuning", total - done, "steps"
        )
        for number, batch in zip(numbers, self.batches(done + 1)):
            # Not read at once: the device would wait for Python after every step.
            losses.append(self.step(*batch, np.float32(learning_rate_at(number, self.options))))
            if number % self.options.evaluate_every_steps and number < total:
                continue
            diverged = [
                index
                for index, loss in enumerate(losses, number - len(losses) + 1)
                if not np.isfinite(loss)
            ]
            if diverged:
                raise TrialFailed(
                    f"Fine-tuning diverged at step {diverged[0]}: the loss is no longer a finite number. Lower "
                    f"finetune.learning_rate."
                )
            losses = []
            found = self._evaluate(number)
            self.best = found if found.loss < self.best.loss else self.best
            self.seen.append((number, self.best.logits))
            if time.monotonic() - saved >= _SAVE_SECONDS:
                self._save(number)
                saved = time.monotonic()
            yield self.seen[-1]

    def _evaluate(self, step: int) -> _Kept:
        """The scenario's own objective on the slice set aside, without the penalty."""
        logits, labels = self.logits(self.embedder, self.held), self.labels[self.held]
        shifted = metrics.softmax(logits + self.objective.offsets)[np.arange(len(labels)), labels]
        losses = (1 - shifted) ** self.objective.focusing * -np.log(
            np.maximum(shifted, np.finfo(float).tiny)
        )
        loss = float(np.average(losses, weights=self.objective.weights[labels]))
        return _Kept(step, loss, logits, self.whole.get_weights())

    def logits(self, embedder: Embedder, positions: np.ndarray) -> np.ndarray:
        """float64 (num_images, C) of plain images; the next batches are read while one is computed."""
        self.pixels.fill(positions)
        size = self.inputs.study.settings.embed.batch_size
        batches = [positions[first : first + size] for first in range(0, len(positions), size)]
        read = parallel.in_threads(self.pixels, batches, threads=2, ahead=4)
        return np.concatenate([embedder.features(batch) for batch in read])

    def build(self, pipeline: str) -> tuple[Any, Any]:
        """Backbone, and the whole network with the starting head, in the precision that a pipeline names."""
        embed, backbone = self.inputs.study.settings.embed, self.inputs.backbone
        network = backbones.build(
            backbone, embed.weights_for(backbone), embed.image_size_px, pipeline
        )
        return network, with_head(network, self.start)

    def _save(self, step: int) -> None:
        optimizer = [variable.numpy() for variable in self.optimizer.variables]
        groups = {
            "now": self.whole.get_weights(),
            "best": self.best.weights,
            "optimizer": optimizer,
        }
        arrays = {
            f"{name}{index:04d}": value
            for name, values in groups.items()
            for index, value in enumerate(values)
        }
        with atomic_path(self.checkpoint) as path, open(path, "wb") as handle:
            steps, logits = map(np.stack, zip(*self.seen))
            np.savez(
                handle,
                steps=steps,
                logits=logits,
                loss=self.best.loss,
                kept=self.best.step,
                **arrays,
            )

    def _restore(self) -> int:
        """Go back to the checkpoint and return its step; 0 without one."""
        try:
            with np.load(self.checkpoint, allow_pickle=False) as saved:
                arrays = {name: saved[name] for name in sorted(saved.files)}
        except (OSError, ValueError, zipfile.BadZipFile):
            return 0
        now, best, optimizer = (
            [value for name, value in arrays.items() if name.startswith(kind)]
            for kind in ("now", "best", "optimizer")
        )
        self.whole.set_weights(now)
        for variable, value in zip(self.optimizer.variables, optimizer):
            variable.assign(value)
        self.seen = list(zip(map(int, arrays["steps"]), arrays["logits"]))
        self.best = _Kept(int(arrays["kept"]), float(arrays["loss"]), self.seen[-1][1], best)
        return self.seen[-1][0]

    def forget(self) -> None:
        """Remove the checkpoint."""
        shutil.rmtree(self.checkpoint.parent, ignore_errors=True)


def _training_step(
    whole: Any, objective: Objective, l2: float, standardiser: rows_.Standardiser, options: Finetune
) -> tuple[Any, Any]:
    """The optimizer, and one compiled step: (pixels, views, labels, weights, learning rate) -> loss."""
    import keras
    import tensorflow as tf

    offsets = tf.constant(objective.offsets, tf.float64)
    dense, variables = whole.get_layer("logits"), whole.trainable_variables
    spread = np.zeros(dense.kernel.shape[0])
    spread[standardiser.kept] = standardiser.scale
    adam = keras.optimizers.Adam(options.learning_rate)
    # Gradients of float16 underflow without a scale; steps that overflow it are passed over.
    optimizer = keras.optimizers.LossScaleOptimizer(adam) if options.mixed_precision else adam
    optimizer.build(variables)

    @tf.function
    def step(batch: Any, parameters: Any, labels: Any, weights: Any, learning_rate: Any) -> Any:
        adam.learning_rate.assign(learning_rate)
        with tf.GradientTape() as tape:
            seen = augment.apply_views(batch, parameters)
            logits = whole(seen, training=not options.freeze_batch_norm) + offsets
            log_prob = tf.gather(tf.nn.log_softmax(logits), labels, batch_dims=1)
            wrong = tf.maximum(
                -tf.math.expm1(log_prob), 1e-30
            )  # the slope of its power is infinite at 0
            losses = -(wrong**objective.focusing) * log_prob if objective.focusing else -log_prob
            kernel = dense.kernel * spread[:, None]
            penalty = (
                0.5
                * l2
                * tf.reduce_sum(
                    (kernel - kernel[:, :1]) ** 2 if kernel.shape[1] == 2 else kernel**2
                )
            )
            loss = tf.reduce_sum(weights * losses) / tf.reduce_sum(weights) + penalty
            scaled = optimizer.scale_loss(loss)
        optimizer.apply(tape.gradient(scaled, variables), variables)
        return loss

    return optimizer, step
