"""Steps per second of fine-tuning from activations, beside Keras' plain `fit` of the same block from pixels.

    python benchmarks/finetune.py --study chest_xray --backbone vgg16 [--scenario baseline] [--steps 10] [--rounds 5]

Run it where `equipoise embed` has run for that study and backbone. Both train the same layers with the same batches and
the same optimiser, by turns in one process; `fit` has its pixels in memory. Printed are steps per second of both, the
ratio of each round and its median, by the clock and by processor time (a shared machine's clock says little), and how
far the losses of one run of both lie apart, which start from the same weights and draw no view.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from equipoise.core import config
from equipoise.scenario.finetuning import finetune, network
from equipoise.scenario.finetuning.pixels import Pixels
from equipoise.scenario.finetuning.steps import adam, learning_rate_at, relative_rates
from equipoise.scenario.matrix import Inputs
from equipoise.strategies import base as strategies


def training_of(study: config.Study, backbone: str, scenario: str) -> finetune.Training:
    """A fine-tuning as the scenario stage makes it, of the first round."""
    inputs = Inputs.read(study, backbone, scenario)
    views = study.settings.embed.views
    settings = {**strategies.load_strategy(scenario).published(views, {}), "l2": 0.1}
    rows = inputs.splits.round(0, 0)
    position = {name: at for at, name in enumerate(inputs.manifest.table["image_id"])}
    train = rows[rows["part"] == "train"]
    positions, patients = train["image_id"].map(position).to_numpy(), train["patient_id"].to_numpy()
    task = finetune.Task.of(inputs, settings, positions, patients, seed=0)
    return finetune.Training(inputs, task)


class PlainFit:
    """`keras.Model.fit` of the same layers on pixels, with the batches of a training."""

    def __init__(self, training: finetune.Training) -> None:
        import keras

        self.options, l2 = training.options, training.task.settings["l2"]
        inputs = training.inputs
        backbone = finetune.build_backbone(inputs, inputs.store.meta["pipeline"])
        whole = network.with_head_on_standardised(backbone, training.start)
        names = [layer.name for layer in training.backbone.layers if layer.trainable]
        network.unfreeze(backbone, names, self.options.freeze_batch_norm)
        self.network = whole
        head = network.head_layer(whole)
        optimizer = adam(relative_rates(whole, self.options), self.options.average_decay)
        cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

        def penalised(labels, logits):
            difference = keras.ops.cast(head.kernel[:, 1] - head.kernel[:, 0], "float32")
            return cross_entropy(labels, logits) + 0.5 * l2 * keras.ops.sum(difference**2)

        whole.compile(optimizer=optimizer, loss=penalised, jit_compile=False)
        pixels = Pixels(inputs, finetune.Embedder(whole, training.size_px))
        batches = list(training.drawn_batches())
        positions = [np.array([draw.position for draw in batch]) for batch in batches]
        pixels.fill(np.concatenate(positions))
        self.batches = [(pixels(chosen), training.labels[chosen]) for chosen in positions]

    def run(self, steps: int) -> list[float]:
        """Losses of the first steps of a training."""
        import keras

        losses, batches, options = [], self.batches, self.options

        class Watch(keras.callbacks.Callback):
            def on_train_batch_begin(self, batch, logs=None):
                self.model.optimizer.learning_rate = learning_rate_at(batch + 1, options)

            def on_train_batch_end(self, batch, logs=None):
                # Keras tells the mean since the epoch began.
                losses.append(logs["loss"] * (batch + 1) - sum(losses))

        class Sequence(keras.utils.PyDataset):
            def __len__(self):
                return steps

            def __getitem__(self, number):
                return batches[number]

        self.network.fit(Sequence(), epochs=1, shuffle=False, verbose=0, callbacks=[Watch()])
        return losses


def run_from_activations(training: finetune.Training, steps: int) -> list[float]:
    """Losses of the first steps of a training."""
    losses = []
    for number, batch in zip(range(1, steps + 1), training.batches()):
        rate = learning_rate_at(number, training.options)
        losses.append(training.step(*batch, np.float32(rate)))
    return [float(loss) for loss in losses]


def seconds(run, steps: int) -> tuple[float, float]:
    """Of a step, by the clock and of the processor."""
    start, computing = time.perf_counter(), time.process_time()
    run(steps)
    return (time.perf_counter() - start) / steps, (time.process_time() - computing) / steps


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", default="demo")
    parser.add_argument("--backbone", default="vgg16")
    parser.add_argument("--scenario", default="baseline")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--root", type=Path, default=Path.cwd(), help="folder that holds params.yaml"
    )
    parser.add_argument("--set", action="append", default=[], help="a setting, section.key=value")
    options = parser.parse_args()
    overrides = {"finetune.steps": options.steps, **dict(map(config.parse_override, options.set))}
    study = config.load_study(options.study, None, overrides, root=options.root)
    training = training_of(study, options.backbone, options.scenario)
    plain = PlainFit(training)
    steps = options.steps
    losses, plain_losses = run_from_activations(training, steps), plain.run(steps)
    apart = np.abs(np.array(losses) / np.array(plain_losses) - 1).max()
    print(f"losses of {steps} steps: {losses[0]:.6f} to {losses[-1]:.6f}, plain fit")
    print(f"{plain_losses[0]:.6f} to {plain_losses[-1]:.6f}; at most {apart:.2g} apart", flush=True)
    print("round   activations   plain fit   (steps/s)   ratio   ratio of processor time")
    ratios = []
    for number in range(1, options.rounds + 1):
        ours, ours_computing = seconds(lambda count: run_from_activations(training, count), steps)
        theirs, theirs_computing = seconds(plain.run, steps)
        ratios.append((theirs / ours, theirs_computing / ours_computing))
        line = (
            f"{number:5}   {1 / ours:11.2f}   {1 / theirs:9.2f}               {ratios[-1][0]:5.2f}"
        )
        print(f"{line}   {ratios[-1][1]:.2f}", flush=True)
    clock, processor = np.median(ratios, axis=0)
    print(
        f"{study.name}, {options.backbone}, {options.scenario}: median {clock:.2f}, processor {processor:.2f}"
    )


if __name__ == "__main__":
    main()
