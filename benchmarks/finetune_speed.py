"""Images per second of fine-tuning, beside the same compiled step on one batch that stays in memory.

    python benchmarks/finetune_speed.py --study demo --backbone vgg16 [--scenario oversample] [--steps 20] [--rounds 5]

Run it where `equipoise embed` has run for that study and backbone. The images are decoded into the cache first; then
both take turns, and the median of the ratios is printed. The goal is 0.90. The ratio of processor time is for machines
that others use too: there the clock says little, and on a processor both cost the same cores.
"""

import argparse
import time

import numpy as np
from finetune import training_of

from equipoise.core import config
from equipoise.scenario.finetuning import finetune


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
    training = training_of(study, options.backbone, options.scenario)
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
