"""Images per second of fine-tuning, beside the same compiled step on one batch that stays in memory.

    python benchmarks/finetune_speed.py --study demo --backbone vgg16 [--scenario oversample] [--steps 20] [--rounds 5]

Run it where `equipoise embed` has run for that study and backbone. The images are decoded into the cache first; then
both take turns, and the median of the ratios is printed. The goal is 0.90. The ratio of processor time is for machines
that others use too: there the clock says little, and on a processor both cost the same cores.
"""

import argparse
import time

import numpy as np

from equipoise.core import config
from equipoise.scenario import finetune
from equipoise.scenario.matrix import Inputs
from equipoise.strategies import base as strategies


def seconds(training: finetune.Training, batches: list, rate: np.float32) -> tuple[float, float]:
    """Seconds per batch, by the clock and of the processor; the last loss is read, so the device has finished."""
    start, computing, steps, loss = time.perf_counter(), time.process_time(), 0, None
    for batch in batches:
        loss, steps = training.step(*batch, rate), steps + 1
    float(loss)
    return (time.perf_counter() - start) / steps, (time.process_time() - computing) / steps


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--study", default="demo")
    parser.add_argument("--backbone", default="vgg16")
    parser.add_argument("--scenario", default="oversample")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--set", action="append", default=[], help="a setting, for example finetune.unfreeze=all"
    )
    options = parser.parse_args()
    overrides = {"finetune.steps": options.steps, **dict(map(config.parse_override, options.set))}
    study = config.load_study(options.study, None, overrides)
    inputs = Inputs.read(study, options.backbone, options.scenario)
    views = study.settings.embed.views
    settings = {**strategies.load_strategy(options.scenario).published(views, {}), "l2": 0.1}
    rows = inputs.splits.round(0, 0)
    position = {name: at for at, name in enumerate(inputs.manifest.table["image_id"])}
    train = rows[rows["part"] == "train"]
    positions, patients = train["image_id"].map(position).to_numpy(), train["patient_id"].to_numpy()
    task = finetune.Task.of(inputs, settings, positions, patients, seed=0)
    training = finetune.Training(inputs, task)
    rate, size = np.float32(1e-5), study.settings.finetune.batch_size
    held = next(iter(training.batches()))
    seconds(training, [held] * 3, rate)
    ratios = []
    print("round   from memory   fine-tuning   (images/s)   ratio   ratio of processor time")
    for number in range(1, options.rounds + 1):
        constant, constant_computing = seconds(training, [held] * options.steps, rate)
        real, real_computing = seconds(training, training.batches(), rate)
        ratios.append((constant / real, constant_computing / real_computing))
        line = f"{number:5}   {size / constant:11.1f}   {size / real:11.1f}                {ratios[-1][0]:.3f}"
        print(f"{line}   {ratios[-1][1]:.3f}", flush=True)
    clock, processor = np.median(ratios, axis=0)
    print(
        f"{study.name}, {options.backbone}, {options.scenario}: median {clock:.3f}, processor {processor:.3f}"
    )


if __name__ == "__main__":
    main()
