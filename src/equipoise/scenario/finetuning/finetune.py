"""The same plan and objective for a network, from its solved head (LP-FT, Kumar et al. 2022, arXiv 2202.10054)."""

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
from equipoise.core.config import Finetune, Study
from equipoise.core.errors import ConfigError, TrialFailed
from equipoise.core.files import digest_of
from equipoise.embed import backbones, cut
from equipoise.embed.blocks import last_block
from equipoise.embed.embedder import Embedder
from equipoise.scenario.finetuning import network
from equipoise.scenario.finetuning.activations import Activations
from equipoise.scenario.finetuning.checkpoint import (
    Checkpoint,
    Evaluation,
    KeptWeights,
    Losses,
    TrainingState,
)
from equipoise.scenario.finetuning.pixels import Pixels
from equipoise.scenario.finetuning.steps import averaged, learning_rate_at, training_step
from equipoise.scenario.heads import head
from equipoise.scenario.heads.loss import mean_loss
from equipoise.scenario.matrix import Inputs
from equipoise.split import strata
from equipoise.strategies import base as strategies
from equipoise.strategies.base import VIEWS, Plan

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
        held: int (num_held,), places in `train` of the slice that is set aside and chooses; without
            one the last weights are kept.
        seed: Of the plans, the batches and TensorFlow.
        save_seconds: Time between two checkpoints.
        last_step: Where training ends, of a schedule that may be longer; None: with the schedule.
    """

    settings: Mapping[str, Any]
    train: np.ndarray
    patients: np.ndarray
    held: np.ndarray
    seed: int
    save_seconds: float = SAVE_SECONDS
    last_step: int | None = None

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

    def on_all(self, last_step: int) -> Task:
        """The same with nothing set aside, up to a step."""
        nothing = np.arange(0)
        return dataclasses.replace(self, held=nothing, last_step=last_step)


@dataclass(frozen=True)
class FinetuneResult:
    """A fine-tuned model and what it says.

    Attributes:
        logits: float64 (num_wanted, C).
        head: The tuned head.
        weights: The tuned weights of the backbone, in Keras' order.
        kept_step: The step they are of; 0 where no step had a lower objective on the slice than the
            probe, which is kept.
        curve: A row for each evaluation on the slice, with the columns of `Losses`.
    """

    logits: np.ndarray
    head: head.Head
    weights: list[np.ndarray]
    kept_step: int
    curve: pd.DataFrame


def fine_tune(inputs: Inputs, task: Task, wanted: np.ndarray) -> FinetuneResult:
    """Find the best step on the slice, train up to it on all of train, and predict.

    A model that is served learns from as many patients as a probe does (Goodfellow et al. 2016, Deep
    Learning, algorithm 7.2).

    Args:
        inputs: Images, features and settings of one backbone and scenario.
        task: What is trained.
        wanted: int (num_wanted,), images to predict as positions in the manifest.

    Raises:
        TrialFailed: When the loss becomes NaN.
        ConfigError: For mixed precision without a GPU.
    """
    choosing = Training(inputs, task)
    choosing.finish()
    kept_step = choosing.best.step
    curve = pd.DataFrame(choosing.curve)
    chosen_by = choosing.checkpoint
    # Two networks with their optimisers need not lie in memory side by side.
    del choosing
    training = Training(inputs, task.on_all(kept_step))
    try:
        training.finish()
    except TrialFailed:
        # Nothing will go on from it: other settings are another training.
        chosen_by.remove()
        raise
    kept = training.best
    backbone_weights, tuned_head = network.divided(kept.weights, training.standardiser)
    logits = _served_logits(training, backbone_weights, tuned_head, wanted)
    training.checkpoint.remove()
    chosen_by.remove()
    return FinetuneResult(
        logits=logits,
        head=tuned_head,
        weights=backbone_weights,
        kept_step=kept_step,
        curve=curve,
    )


def _served_logits(
    training: Training, weights: list[np.ndarray], tuned_head: head.Head, wanted: np.ndarray
) -> np.ndarray:
    """What the served network says, which is in the precision of the features, whatever it was trained in."""
    inputs = training.inputs
    pipeline = inputs.store.meta["pipeline"]
    backbone = build_backbone(inputs, pipeline)
    backbone.set_weights(weights)
    whole = network.with_head(backbone, tuned_head)
    if training.cut and training.serves_what_is_kept:
        part = network.above(backbone, whole, training.cut)
        return Reader(part, training.source, training.batch_size).logits(wanted)
    embedder = Embedder(whole, training.size_px, pipeline)
    return Reader(whole, Pixels(inputs, embedder), training.batch_size).logits(wanted)


def build_backbone(inputs: Inputs, pipeline: str) -> Any:
    """The backbone of a study in the precision that a pipeline names."""
    embed = inputs.study.settings.embed
    weights = embed.weights_for(inputs.backbone)
    root = inputs.study.root
    return backbones.build(inputs.backbone, weights, embed.image_size_px, pipeline, root)


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
    """Fine-tunes the trials of a search: a `tuning.Trainer`.

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


class Draw(NamedTuple):
    """One draw of a plan: an image by its position in the manifest, its view, and its weight."""

    position: int
    view: int
    weight: float


class Batch(NamedTuple):
    """What one step learns from, as tensors.

    Attributes:
        inputs: What the source reads: activations, or pixels and the numbers that make their views.
        labels: int (batch,).
        weights: float64 (batch,), weight of the draw times weight of the class.
    """

    inputs: tuple[Any, ...]
    labels: Any
    weights: Any


class Reader:
    """Reads plain images from a source, and says what a model makes of them.

    Attributes:
        graph: Traced: what the source reads -> logits.
    """

    def __init__(self, model: Any, source: Pixels | Activations, batch_size: int) -> None:
        import tensorflow as tf

        def infer(*tensors: Any) -> Any:
            return model(source.opened(*tensors), training=False)

        self.source = source
        self.batch_size = batch_size
        self.graph = tf.function(infer, input_signature=source.signature())

    def logits(self, positions: np.ndarray) -> np.ndarray:
        """float64 (num_images, C) of plain images; the next batches are read while one is computed."""
        self.source.fill(positions, np.zeros(len(positions), dtype=int))
        numbers = positions.tolist()
        batches = [np.array(batch) for batch in parallel.batched(numbers, self.batch_size)]
        read = parallel.in_threads(self.source.plain, batches, threads=2, ahead=4)
        logits = [self.graph(*batch).numpy() for batch in read]
        return np.concatenate(logits)


class Training:
    """One fine-tuning: a slice of train is set aside, plan and starting head come from the rest.

    The weights with the lowest objective on the slice are kept, the starting ones included; where
    nothing is set aside, the last ones. After step 0 they are averages over the last steps. An epoch
    is one pass over the draws of a plan, and each epoch draws its own; the objective is that of the
    first. A killed run goes on from its checkpoint to the same bytes.

    Attributes:
        kept: int, the images that are trained on, as positions in the manifest.
        held: int, the images of the slice, as positions in the manifest.
        start: The solved head that training starts from: the probe.
        backbone: keras.Model, pixels -> features, as it is now.
        network: The same with its head, to logits.
        cut: Below it nothing is trained, see `embed.cut`; empty where everything is.
        source: What a step reads: activations at the cut, or pixels.
        serves_what_is_kept: Whether the served network sees what the source keeps, unrounded.
        step: One optimiser step: (*batch, learning rate) -> loss.
        last_step: The step after which it ends.
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
        self.last_step = self.options.steps if task.last_step is None else task.last_step
        self.size_px = settings.embed.image_size_px
        self.batch_size = settings.embed.batch_size
        _prepare_tensorflow(task.seed, self.options)
        self.labels = inputs.manifest.table["label"].to_numpy()
        self.kept = np.delete(task.train, task.held)
        self.held = task.train[task.held]
        strategy = strategies.load_strategy(inputs.scenario)
        self.strategy = strategy.of(task.settings)
        self._solve_start()
        self.backbone = self._build_trainable()
        trained = self._open_source()
        self.reader = Reader(trained, self.source, self.batch_size)
        self.optimizer, self.step = training_step(
            self.network,
            trained,
            self.source.opened,
            self.options,
            self.objective,
            l2=task.settings["l2"],
        )
        folder = inputs.study.cache_path / "finetune"
        key = self._checkpoint_key()
        self.checkpoint = Checkpoint(folder / key)

    def _solve_start(self) -> None:
        """Solve the head that training starts from, on the images that are trained on."""
        task = self.task
        patients = np.delete(task.patients, task.held)
        matrix = self.inputs.train_matrix(self.kept, patients)
        self.rows = matrix.train_rows(task.seed)
        self.num_views = (matrix.row_of[:, 1:] >= 0).sum(axis=1)
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
        )

    def _build_trainable(self) -> Any:
        """Build the network that is trained, with its last block or all of it unfrozen; returns its backbone."""
        backbone = build_backbone(self.inputs, self._training_pipeline)
        self.network = network.with_head_on_standardised(backbone, self.start)
        names = _trained_layers(backbone, self.options)
        network.unfreeze(backbone, names, self.options.freeze_batch_norm)
        self.cut = cut.boundary(backbone, names)
        return backbone

    @property
    def _training_pipeline(self) -> str:
        # Gradients do not survive the rounding of stored features.
        pipeline = self.inputs.store.meta["pipeline"]
        pipeline = pipeline.replace("/stored-float16", "")
        if self.options.mixed_precision:
            pipeline += "/mixed-float16"
        return pipeline

    def _open_source(self) -> Any:
        """Open what a step reads; returns the part of the network that is computed in it."""
        self.source: Pixels | Activations
        self.serves_what_is_kept = not self.options.mixed_precision
        if not self.cut:
            embedder = Embedder(self.network, self.size_px, self._training_pipeline)
            self.source = Pixels(self.inputs, embedder)
            return self.network
        backbone = self.backbone
        self.source = Activations(self.inputs, backbone, self.cut, self._training_pipeline)
        self.serves_what_is_kept &= self.options.activations == "float32"
        return network.above(backbone, self.network, self.cut)

    def _checkpoint_key(self) -> str:
        """Names this training: another setting, image, weight or package is another one."""
        import tensorflow as tf

        settings = self.inputs.study.settings
        key = settings.sections("finetune", "augment", "embed")
        key["scenario"] = self.inputs.scenario
        key["settings"] = dict(self.task.settings)
        key["seed"] = self.task.seed
        key["head"] = "on standardised features"
        key["train"] = self.task.train
        key["held"] = self.task.held
        key["last_step"] = self.last_step
        key["patients"] = self.task.patients
        key["manifest"] = self.inputs.manifest.digest
        key["features"] = self.inputs.store.digest
        key["weights"] = backbones.weights_digest(self.backbone)
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
            views = plan.view
            if self.options.draw_views:
                by_chance = generator.integers(0, self.num_views[plan.row] + 1)
                views = np.where(plan.view > 0, plan.view, by_chance)
            for number in order:
                weight = plan.weight[number]
                yield Draw(positions[number], views[number], weight)

    def batches(self, first_step: int = 1) -> Iterator[Batch]:
        """The batch of each step, from `first_step` on, made in threads ahead of the reader."""
        self._fill(first_step)
        drawn = self.drawn_batches(first_step)
        # `in_threads` asks for a sequence, and only walks through it once.
        return parallel.in_threads(self._batch, drawn, threads=2, ahead=4)  # type: ignore[arg-type]

    def _fill(self, first_step: int) -> None:
        """Let the source make what batches and evaluations read, and nothing else."""
        needed = {(int(position), 0) for position in self.held}
        for batch in self.drawn_batches(first_step):
            needed.update((int(draw.position), int(draw.view)) for draw in batch)
        positions, views = np.array(sorted(needed), dtype=int).reshape(-1, 2).T
        self.source.fill(positions, views)

    def drawn_batches(self, first_step: int = 1) -> Iterator[list[Draw]]:
        """The draws of each step, from `first_step` on."""
        size = self.options.batch_size
        passed = (first_step - 1) * size
        draws = itertools.islice(self.draws(), passed, None)
        for _ in range(first_step, self.last_step + 1):
            yield list(itertools.islice(draws, size))

    def _batch(self, draws: list[Draw]) -> Batch:
        import tensorflow as tf

        positions = np.array([draw.position for draw in draws])
        views = np.array([draw.view for draw in draws])
        draw_weights = np.array([draw.weight for draw in draws])
        labels = self.labels[positions]
        class_weights = self.objective.weights[labels]
        inputs = self.source.drawn(positions, views)
        return Batch(
            inputs=tuple(tf.constant(part) for part in inputs),
            labels=tf.constant(labels),
            weights=tf.constant(draw_weights * class_weights),
        )

    def finish(self) -> None:
        """Train up to the end."""
        for _ in self.evaluations():
            pass

    def evaluations(self) -> Iterator[Evaluation]:
        """Train, and yield (step, logits) as `Trials.evaluations` does; after a kill all of them come again."""
        try:
            yield from self._evaluations()
        except (GeneratorExit, TrialFailed):
            self.checkpoint.remove()
            raise

    def _evaluations(self) -> Iterator[Evaluation]:
        self._fill(first_step=1)
        done = self._restore()
        yield from list(self.seen)
        if self._is_over(done):
            return
        total = self.last_step
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
            if not len(self.held) or evaluated.loss < self.best.loss:
                self.best = evaluated
            self.seen.append(Evaluation(number, self.best.logits))
            self.curve.append(Losses(number, train_loss, evaluated.loss))
            unsaved_seconds = time.monotonic() - saved_at
            if unsaved_seconds >= self.task.save_seconds:
                state = self._state()
                self.checkpoint.save(state)
                saved_at = time.monotonic()
            yield self.seen[-1]
            if self._is_over(number):
                return

    def _is_over(self, step: int) -> bool:
        """Whether nothing better came for so long that the training ends before its last step."""
        if self.options.patience is None:
            return False
        evaluations = [seen.step for seen in self.seen if seen.step > self.best.step]
        return step < self.last_step and len(evaluations) >= self.options.patience

    def evaluate(self, step: int) -> KeptWeights:
        """The scenario's own objective on the slice set aside, without the penalty, of the averaged weights."""
        with averaged(self.network, self.optimizer):
            weights = self.network.get_weights()
            logits = self._held_logits()
        labels = self.labels[self.held]
        loss = mean_loss(logits, labels, self.objective) if len(labels) else math.nan
        return KeptWeights(step, loss, logits, weights)

    def _held_logits(self) -> np.ndarray:
        if len(self.held):
            return self.reader.logits(self.held)
        return np.empty((0, len(self.start.intercepts)))

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


# --- before anything is trained -------------------------------------------------------------------


def refuse_unusable_settings(study: Study) -> None:
    """Raise ConfigError where views are to be drawn that not every image has."""
    embed = study.settings.embed
    if not study.settings.finetune.draw_views or (embed.views and embed.views_of == "all"):
        return
    raise ConfigError(
        f"finetune.draw_views needs views of every image, and there are {embed.views} of {embed.views_of}: "
        f"a network would learn the class from how a picture was changed. Set embed.views to 1 or more and "
        f"embed.views_of: all, or finetune.draw_views: false."
    )


def compute_activations(inputs: Inputs, images: np.ndarray) -> None:
    """Compute once, before jobs side by side read them, the activations that they may read.

    Args:
        inputs: Images, features and settings of one backbone and scenario.
        images: int (num_images,), positions in the manifest.
    """
    study = inputs.study
    options = study.settings.finetune
    if options.unfreeze == "all" or options.mixed_precision:
        return
    pipeline = inputs.store.meta["pipeline"].replace("/stored-float16", "")
    backbone = build_backbone(inputs, pipeline)
    below = cut.boundary(backbone, _trained_layers(backbone, options))
    source = Activations(inputs, backbone, below, pipeline)
    source.fill(images, np.zeros(len(images), dtype=int), study.engine)
    parameters = strategies.load_strategy(inputs.scenario).parameters().values()
    if not options.draw_views and all(parameter.high != VIEWS for parameter in parameters):
        return
    nobody = np.zeros(len(images), dtype=int)
    matrix = inputs.train_matrix(images, nobody)
    source.fill(images[matrix.row], matrix.view, study.engine)


def _trained_layers(backbone: Any, options: Finetune) -> set[str]:
    """Names of the layers that are trained; batch normalisation among them may stay frozen."""
    if options.unfreeze == "all":
        return {layer.name for layer in backbone.layers}
    return set(last_block(backbone))
