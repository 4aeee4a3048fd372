"""Images per second of `embed` beside its two halves, decoding and computing, alternately in one run.

python benchmarks/embed_speed.py --films DIR [--weights FILE] [--times 1] [--rounds 5] [--draft]

a: the same backbone, fed batches of the same size from memory. b: decoding and resizing alone, by as many threads.
Both use every core, so no program that does one and the other is expected above 1 / (1/a + 1/b). `embed` is the whole
stage from the manifest to the feature folder, without building and tracing the network. With --times, every file is
there that often as a copy. With --draft, large JPEGs are decoded at reduced scale (`embed.jpeg_draft`), in b too.
a, b and embed run in one process, under one allocator. TF_CPU_ALLOCATOR_USE_BFC=false shows what TensorFlow's own
costs, TF_ENABLE_ONEDNN_OPTS=0 what a processor pays on which TensorFlow does not use oneDNN.
"""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import numpy as np

from equipoise.core import config, images, parallel
from equipoise.embed import backbones
from equipoise.embed import embedder as embedder_
from equipoise.embed import stage as features
from equipoise.ingest import originals
from equipoise.ingest import stage as ingest

ROOT = Path(__file__).resolve().parents[1]


def seconds(work: Callable[[], object]) -> np.ndarray:
    """Wall time, processor time and the system's part of it, of one call."""
    start = _clocks()
    work()
    return _clocks() - start


def _clocks() -> np.ndarray:
    used = os.times()
    return np.array([time.perf_counter(), used.user + used.system, used.system])


def rounds(study: config.Study, number: int) -> np.ndarray:
    """Seconds per image, (rounds, 3, 3): a, b and embed one after the other; see `seconds`."""
    settings = study.settings.embed
    pipeline = embedder_.pipeline_of(settings)
    weights, size_px = settings.weights_for("mobilenetv2"), settings.image_size_px
    model = backbones.build("mobilenetv2", weights, size_px, pipeline)
    embedder = embedder_.Embedder(model, size_px, pipeline)
    paths = [
        study.raw / path
        for path in originals.locate(study, features.Manifest.read(study.manifest_path)).values()
    ]
    held = np.stack([embedder.load(path) for path in paths[: settings.batch_size]])
    batches = max(1, len(paths) // len(held))

    def compute() -> None:
        for _ in range(batches):
            embedder.features(held)

    def decode() -> None:
        for _ in parallel.in_threads(embedder.load, paths):
            pass

    def embed() -> None:
        shutil.rmtree("data/cache/features", ignore_errors=True)
        features.run(study, "mobilenetv2", make_embedder=lambda *_: embedder)

    compute()
    measured = []
    with mock.patch.object(backbones, "build", return_value=model):
        for _ in range(number):
            a = seconds(compute) / (batches * len(held))
            measured.append([a, seconds(decode) / len(paths), seconds(embed) / len(paths)])
    return np.array(measured)


def main() -> None:
    """Print the three speeds and how much of the expected one is reached."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--films", type=Path, required=True)
    parser.add_argument("--weights", default="random")
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--draft", action="store_true")
    options = parser.parse_args()
    weights = (
        options.weights if options.weights == "random" else str(Path(options.weights).resolve())
    )
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        for number in range(options.times):
            shutil.copytree(options.films, raw / f"copy{number}")
        for number, path in enumerate(images.walk(raw)[0]):  # embed does each distinct file once
            with open(raw / path, "ab") as handle:
                handle.write(f"{number}".encode())
        changes = {
            "ingest.raw": str(raw),
            "ingest.duplicates": "keep",
            "embed.views": 0,
            "embed.weights": weights,
        }
        changes |= {"embed.jpeg_draft": options.draft}
        study = config.load_study("chest_xray", config.read_params(ROOT), changes)
        os.chdir(folder)
        ingest.run(study)
        measured = rounds(study, options.rounds)
        os.chdir(ROOT)
    for name, values in zip(
        ("a backbone from memory", "b decode and resize", "embed"), 1 / measured[..., 0].T
    ):
        print(f"{name}: {np.median(values):.1f} images/s ({min(values):.1f} to {max(values):.1f})")
    # Processor time does not count what other programs on the machine take.
    for name, (a, b, whole) in zip(("wall time", "processor time"), measured.T):
        reached = (a + b) / whole
        low, middle, high = min(reached), np.median(reached), max(reached)
        print(f"embed reaches {middle:.2f} of 1/(1/a + 1/b) by {name} ({low:.2f} to {high:.2f})")
    for name, used in zip(("a", "b", "embed"), measured.transpose(1, 2, 0)):
        _, processor, system = np.median(used, axis=1)
        print(
            f"{name}: {1000 * processor:.1f} ms of processor an image, {system / processor:.2f} of it the system's"
        )


if __name__ == "__main__":
    main()
