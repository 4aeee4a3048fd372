"""The same plan and objective end to end in Keras, from the solved head (LP-FT, Kumar et al., arXiv 2202.10054)."""

from __future__ import annotations

import dataclasses
import itertools
import math
import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from equipoise.core import parallel
from equipoise.core.config import Finetune
from equipoise.core.errors import ConfigError, TrialFailed
from equipoise.core.files import digest_of
from equipoise.embed import augment, backbones, blocks
from equipoise.embed.embedder import Embedder
from equipoise.scenario import head
from equipoise.scenario.checkpoint import Checkpoint, Evaluation, KeptWeights, Losses, TrainingState
from equipoise.scenario.loss import mean_loss, tensor_row_losses
from equipoise.scenario.matrix import Inputs
from equipoise.scenario.network import head_layer, head_of, unfreeze, with_head
from equipoise.scenario.pixels import Pixels
from equipoise.scenario.rows import Standardiser
from equipoise.split import strata
from equipoise.strategies import base as strategies
from equipoise.strategies.base import Objective, Plan

#: Shorter runs leave no checkpoint: repeating them costs less than writing a hundred megabytes at
#: every evaluation.
SAVE_SECONDS = 20.0

#: Beginning of the seed of the slice; other draws of a study begin with other numbers.
_SLICE = 5


@dataclass(frozen=True)
class Task:
    """What is trained, and on which images.

    Attributes:
        settings: What the search chose: the strategy's settings and `l2`.
        train: int (num_images,), train images as positions in the manifest.
        patients: (num_images,), patient of each train image.
        held: int (num_held,), places in `train` of the slice that is set aside and chooses.
        seed: Of the plans, the batches and TensorFlow.
        save_seconds: Time between two checkpoints.
    """

    settings: Mapping[str, Any]
    train: np.ndarray
    patients: np.ndarray
    held: np.ndarray
    seed: int
    save_seconds: float = SAVE_SECONDS

    @classmethod
    def of(
        cls,
        inputs: Inputs,
        settings: Mapping[str, Any],
        train: np.ndarray,
        patients: np.ndarray,
        seed: int,
        save_seconds: float = SAVE_SECONDS,
    ) -> Task:
        """A task with the slice that `held_out` sets aside."""
        held = held_out(inputs, train, patients)
        return cls(settings, train, patients, held, seed, save_seconds)


@dataclass(frozen=True)
class FinetuneResult:
    """A fine-tuned model and what it says.

    Attributes:
        logits: float64 (num_wanted, C).
        head: The tuned head.
        weights: The tuned weights of the backbone, in Keras' order.
        kept_step: The step they are of; 0 where no step lowered the objective on the slice, so that
            the starting weights are kept.
        curve: A row for each evaluation, with the columns of `Losses`.
    """

    logits: np.ndarray
    head: head.Head
    weights: list[np.ndarray]
    kept_step: int
    curve: pd.DataFrame


def fine_tune(inputs: Inputs, task: Task, wanted: np.ndarray) -> FinetuneResult:
    """Fine-tune one model and predict.

    Args:
        inputs: Images, features and settings of one backbone and scenario.
        task: What is trained.
        wanted: int (num_wanted,), images to predict as positions in the manifest.

    Raises:
        TrialFailed: When the loss becomes NaN.
        ConfigError: For mixed precision without a GPU.
    """
    training = Training(inputs, task)
    for _ in training.evaluations():
        pass
    # Built anew: it is served in the precision of the features, whatever it was trained in.
    best = training.best
    backbone, network = training.build(inputs.store.meta["pipeline"])
    network.set_weights(best.weights)
    embedder = Embedder(network, training.pixels.size_px)
    logits = training.logits(embedder, wanted)
    training.checkpoint.remove()
    return FinetuneResult(
        logits=logits,
        head=head_of(network, training.standardiser),
        weights=backbone.get_weights(),
        kept_step=best.step,
        curve=pd.DataFrame(training.curve),
    )


def held_out(inputs: Inputs, train: np.ndarray, patients: np.ndarray) -> np.ndarray:
    """Choose the slice of train that is set aside: whole patients, the same for every scenario.

    Returns:
        int (num_held,), places in `train`.
    """
    settings = inputs.study.settings
    labels = inputs.labels(train)
    rows = pd.DataFrame({"patient": patients, "label": labels})
    seed = [settings.split.seed, _SLICE]
    is_held = strata.draw(rows, settings.finetune.stop_fraction, seed)
    return np.flatnonzero(is_held)


class Trials:
    """Trains the trials of a search end to end: a `tuning.Trainer`.

    Each trial is trained as `fine_tune` does, from the same seed and on the same slice.
    """

    def __init__(
        self,
        inputs: Inputs,
        train: np.ndarray,
        patients: np.ndarray,
        seed: int,
        save_seconds: float = SAVE_SECONDS,
    ) -> None:
        self.inputs = inputs
        self.task = Task.of(inputs, {}, train, patients, seed, save_seconds)
        self.held = self.task.held
        self.steps = inputs.study.settings.finetune.steps

    def evaluations(self, settings: Mapping[str, Any]) -> Generator[Evaluation]:
        """Yield (step, logits) at every evaluation: of the slice, by the weights kept if training ended there.

        The starting weights come first. Closing the generator earlier prunes the trial and removes
        its checkpoint.
        """
        task = dataclasses.replace(self.task, settings=settings)
        training = Training(self.inputs, task)
        yield from training.evaluations()
        training.checkpoint.remove()


def learning_rate_at(step: int, options: Finetune) -> float:
    r"""Warm-up, then cosine.

    $\eta\,t/w$ up to step $w$, after it $\eta\,(1+\cos(\pi (t-w-1)/(T-w)))/2$.

    Args:
        step: $t$, 1 to $T$ = `steps`; $w$ is `warmup_fraction` of them.
        options: The `finetune` section.
    """
    warm_steps = round(options.warmup_fraction * options.steps)
    if step <= warm_steps:
        return options.learning_rate * step / warm_steps
    falling_steps = options.steps - warm_steps
    progress = (step - warm_steps - 1) / falling_steps
    cosine = math.cos(math.pi * progress)
    return options.learning_rate * (1 + cosine) / 2


class Draw(NamedTuple):
    """One draw of a plan: an image by its position in the manifest, its view, and its weight."""

    position: int
    view: int
    weight: float


class Batch(NamedTuple):
    """What one step learns from, as tensors.

    Attributes:
        pixels: float32 (batch, size_px, size_px, 3), 0..255, plain images.
        parameters: float32 (batch, NUM_PARAMETERS), numbers that make their views.
        labels: int (batch,).
        weights: float64 (batch,), weight of the draw times weight of the class.
    """

    pixels: Any
    parameters: Any
    labels: Any
    weights: Any


class Training:
    """One fine-tuning: a slice of train is set aside, plan and starting head come from the rest.

    The weights with the lowest objective on the slice are kept, the starting ones included. An epoch
    is one pass over the draws of a plan, and each epoch draws its own; the objective is that of the
    first. A killed run goes on from its checkpoint to the same bytes.

    Attributes:
        kept: int, the images that are trained on, as positions in the manifest.
        held: int, the images of the slice, as positions in the manifest.
        start: The solved head that training starts from.
        network: keras.Model, pixels -> logits, as it is now.
        step: One optimiser step: (*batch, learning rate) -> loss.
        best: The weights kept so far.
        seen: What they said about the slice at every evaluation, from step 0 on.
        curve: The losses at every evaluation.
    """

    best: KeptWeights
    seen: list[Evaluation]
    curve: list[Losses]

    def __init__(self, inputs: Inputs, task: Task) -> None:
        settings = inputs.study.settings
        self.inputs = inputs
        self.task = task
        self.options = settings.finetune
        _prepare_tensorflow(task.seed, self.options)
        self.labels = inputs.manifest.table["label"].to_numpy()
        self.kept = np.delete(task.train, task.held)
        self.held = task.train[task.held]
        strategy = strategies.load_strategy(inputs.scenario)
        self.strategy = strategy.of(task.settings)
        self._solve_start()
        backbone = self._build_trainable()
        pipeline = inputs.store.meta["pipeline"]
        size_px = settings.embed.image_size_px
        self.embedder = Embedder(self.network, size_px, pipeline)
        self.pixels = Pixels(inputs, self.embedder)
        self.optimizer, self.step = _training_step(
            self.network,
            self.options,
            self.objective,
            l2=task.settings["l2"],
            standardiser=self.standardiser,
        )
        folder = inputs.study.cache_path / "finetune"
        key = self._checkpoint_key(backbone)
        self.checkpoint = Checkpoint(folder / key)

    def _solve_start(self) -> None:
        """Solve the head that training starts from, on the images that are trained on."""
        task = self.task
        patients = np.delete(task.patients, task.held)
        matrix = self.inputs.train_matrix(self.kept, patients)
        self.rows = matrix.train_rows(task.seed)
        self.standardiser = matrix.standardiser
        plan = self.plan(0)
        counts = plan.counts(matrix.image_labels, matrix.num_classes)
        self.objective = self.strategy.objective(counts)
        self.start = head.fit(
            matrix.features,
            matrix.labels,
            draws=matrix.draws(plan),
            objective=self.objective,
            l2=task.settings["l2"],
            standardiser=self.standardiser,
            scratch_folder=self.inputs.study.cache_path,
        )

    def _build_trainable(self) -> Any:
        """Build the network that is trained, with its last block or all of it unfrozen; returns its backbone."""
        # Gradients do not survive the rounding of stored features.
        pipeline = self.inputs.store.meta["pipeline"]
        pipeline = pipeline.replace("/stored-float16", "")
        if self.options.mixed_precision:
            pipeline += "/mixed-float16"
        backbone, self.network = self.build(pipeline)
        trained_layers = [layer.name for layer in backbone.layers]
        if self.options.unfreeze == "last_block":
            trained_layers = list(blocks.last_block(backbone).trained)
        unfreeze(backbone, trained_layers, self.options.freeze_batch_norm)
        return backbone

    def build(self, pipeline: str) -> tuple[Any, Any]:
        """Backbone, and the whole network with the starting head, in the precision that a pipeline names."""
        name = self.inputs.backbone
        embed = self.inputs.study.settings.embed
        weights = embed.weights_for(name)
        root = self.inputs.study.root
        backbone = backbones.build(name, weights, embed.image_size_px, pipeline, root)
        network = with_head(backbone, self.start)
        return backbone, network

    def _checkpoint_key(self, backbone: Any) -> str:
        """Names this training: another setting, image, weight or package is another one."""
        import tensorflow as tf

        settings = self.inputs.study.settings
        key = settings.sections("finetune", "augment", "embed")
        key["scenario"] = self.inputs.scenario
        key["settings"] = dict(self.task.settings)
        key["seed"] = self.task.seed
        key["train"] = self.task.train
        key["patients"] = self.task.patients
        key["manifest"] = self.inputs.manifest.digest
        key["features"] = self.inputs.store.digest
        key["weights"] = backbones.weights_digest(backbone)
        key["pipeline"] = self.inputs.store.meta["pipeline"]
        key["tensorflow"] = tf.__version__
        return digest_of(key)[:24]

    def plan(self, epoch: int) -> Plan:
        """The plan of one epoch."""
        sequence = np.random.SeedSequence([self.task.seed, epoch])
        state = sequence.generate_state(1)
        rows = dataclasses.replace(self.rows, seed=int(state[0]))
        return self.strategy.plan(rows)

    def draws(self) -> Iterator[Draw]:
        """The draws of one epoch after the other, each in an order of its own, without end."""
        for epoch in itertools.count():
            plan = self.plan(epoch)
            generator = np.random.default_rng([self.task.seed, epoch])
            order = generator.permutation(len(plan.row))
            positions = self.kept[plan.row]
            for number in order:
                view = plan.view[number]
                weight = plan.weight[number]
                yield Draw(positions[number], view, weight)

    def batches(self, first_step: int = 1) -> Iterator[Batch]:
        """The batch of each step, from `first_step` on, made in threads ahead of the reader."""
        needed = np.concatenate([self.kept, self.held])
        self.pixels.fill(needed)
        drawn = self._drawn_batches(first_step)
        # `in_threads` asks for a sequence, and only walks through it once.
        return parallel.in_threads(self._batch, drawn, threads=2, ahead=4)  # type: ignore[arg-type]

    def _drawn_batches(self, first_step: int) -> Iterator[list[Draw]]:
        size = self.options.batch_size
        passed = (first_step - 1) * size
        draws = itertools.islice(self.draws(), passed, None)
        for _ in range(first_step, self.options.steps + 1):
            yield list(itertools.islice(draws, size))

    def _batch(self, draws: list[Draw]) -> Batch:
        import tensorflow as tf

        positions = np.array([draw.position for draw in draws])
        views = np.array([draw.view for draw in draws])
        draw_weights = np.array([draw.weight for draw in draws])
        labels = self.labels[positions]
        class_weights = self.objective.weights[labels]
        pixels = self.pixels(positions)
        parameters = self.pixels.parameters(positions, views)
        return Batch(
            pixels=tf.constant(pixels),
            parameters=tf.constant(parameters),
            labels=tf.constant(labels),
            weights=tf.constant(draw_weights * class_weights),
        )

    def evaluations(self) -> Iterator[Evaluation]:
        """Train, and yield (step, logits) as `Trials.evaluations` does; after a kill all of them come again."""
        try:
            yield from self._evaluations()
        except (GeneratorExit, TrialFailed):
            self.checkpoint.remove()
            raise

    def _evaluations(self) -> Iterator[Evaluation]:
        done = self._restore()
        yield from list(self.seen)
        total = self.options.steps
        saved_at = time.monotonic()
        losses: list[Any] = []
        batches = self.batches(done + 1)
        numbers = range(done + 1, total + 1)
        shown = parallel.progress(numbers, "fine-tuning", len(numbers), "steps")
        for number, batch in zip(shown, batches):
            rate = learning_rate_at(number, self.options)
            loss = self.step(*batch, np.float32(rate))
            # Not read at once: the device would wait for Python after every step.
            losses.append(loss)
            if number % self.options.evaluate_every_steps and number < total:
                continue
            _refuse_divergence(losses, last_step=number)
            train_loss = float(np.mean(losses))
            losses.clear()
            evaluated = self.evaluate(number)
            if evaluated.loss < self.best.loss:
                self.best = evaluated
            self.seen.append(Evaluation(number, self.best.logits))
            self.curve.append(Losses(number, train_loss, evaluated.loss))
            unsaved_seconds = time.monotonic() - saved_at
            if unsaved_seconds >= self.task.save_seconds:
                state = self._state()
                self.checkpoint.save(state)
                saved_at = time.monotonic()
            yield self.seen[-1]

    def evaluate(self, step: int) -> KeptWeights:
        """The scenario's own objective on the slice set aside, without the penalty, of the weights now."""
        logits = self.logits(self.embedder, self.held)
        labels = self.labels[self.held]
        loss = mean_loss(logits, labels, self.objective)
        weights = self.network.get_weights()
        return KeptWeights(step, loss, logits, weights)

    def logits(self, embedder: Embedder, positions: np.ndarray) -> np.ndarray:
        """float64 (num_images, C) of plain images; the next batches are read while one is computed."""
        self.pixels.fill(positions)
        size = self.inputs.study.settings.embed.batch_size
        numbers = positions.tolist()
        batches = list(parallel.batched(numbers, size))
        read = parallel.in_threads(self.pixels, batches, threads=2, ahead=4)
        logits = [embedder.features(batch) for batch in read]
        return np.concatenate(logits)

    def _state(self) -> TrainingState:
        variables = self.optimizer.variables
        return TrainingState(
            evaluations=self.seen,
            curve=self.curve,
            best=self.best,
            weights=self.network.get_weights(),
            optimizer=[variable.numpy() for variable in variables],
        )

    def _restore(self) -> int:
        """Go back to the checkpoint and return its step; without one evaluate the start and return 0."""
        state = self.checkpoint.load()
        if state is None:
            self.best = self.evaluate(0)
            self.seen = [Evaluation(0, self.best.logits)]
            self.curve = [Losses(0, math.nan, self.best.loss)]
            return 0
        self.network.set_weights(state.weights)
        variables = self.optimizer.variables
        for variable, value in zip(variables, state.optimizer):
            variable.assign(value)
        self.best = state.best
        self.seen = state.evaluations
        self.curve = state.curve
        return state.step


def _prepare_tensorflow(seed: int, options: Finetune) -> None:
    """Seed it, make it deterministic, and refuse mixed precision where there is no GPU."""
    keras = backbones.load_keras()
    import tensorflow as tf

    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
    gpus = tf.config.list_physical_devices("GPU")
    if options.mixed_precision and not gpus:
        raise ConfigError(
            "finetune.mixed_precision is true and TensorFlow sees no GPU; on a processor float16 is "
            "slower and less exact. Set finetune.mixed_precision: false."
        )


def _refuse_divergence(losses: list[Any], last_step: int) -> None:
    """Raise TrialFailed for the first loss that is not finite; the losses end with that of `last_step`."""
    first_step = last_step - len(losses) + 1
    for step, loss in enumerate(losses, start=first_step):
        if not np.isfinite(loss):
            raise TrialFailed(
                f"Fine-tuning diverged at step {step}: the loss is no longer a finite number. Lower "
                f"finetune.learning_rate."
            )


def _training_step(
    network: Any,
    options: Finetune,
    objective: Objective,
    l2: float,
    standardiser: Standardiser,
) -> tuple[Any, Any]:
    """The optimizer, and one compiled step: (pixels, views, labels, weights, learning rate) -> loss."""
    import keras
    import tensorflow as tf

    variables = network.trainable_variables
    dense = head_layer(network)
    spread = np.zeros(dense.kernel.shape[0])
    spread[standardiser.kept] = standardiser.scale
    adam = keras.optimizers.Adam(options.learning_rate)
    optimizer = adam
    if options.mixed_precision:
        # Gradients of float16 underflow without a scale; steps that overflow it are passed over.
        optimizer = keras.optimizers.LossScaleOptimizer(adam)
    optimizer.build(variables)

    @tf.function
    def step(pixels: Any, parameters: Any, labels: Any, weights: Any, learning_rate: Any) -> Any:
        adam.learning_rate.assign(learning_rate)
        with tf.GradientTape() as tape:
            views = augment.apply_views(pixels, parameters)
            logits = network(views, training=not options.freeze_batch_norm)
            losses = tensor_row_losses(logits, labels, objective)
            total = tf.reduce_sum(weights * losses)
            mean = total / tf.reduce_sum(weights)
            coefficients = dense.kernel * spread[:, None]
            loss = mean + _penalty(coefficients, l2)
            scaled = optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, variables)
        optimizer.apply(gradients, variables)
        return loss

    return optimizer, step


def _penalty(coefficients: Any, l2: float) -> Any:
    r"""$l_2 \lVert W \rVert^2 / 2$ of a tensor (num_features, C).

    As in the solver, $W$ is one column for two classes: the second minus the first.
    """
    import tensorflow as tf

    if coefficients.shape[1] == 2:
        coefficients = coefficients - coefficients[:, :1]
    return 0.5 * l2 * tf.reduce_sum(coefficients**2)
