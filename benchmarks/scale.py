"""Rates of this machine, and what a million and ten million images come to at them.

    python benchmarks/scale.py [--backbones mobilenetv2 densenet201 vgg16] [--minority 0.1] [--views 5]

Passes are timed by the seconds that the processors worked, so that a busy machine gives the rate of a quiet one;
weights are random, which costs the same. Splits and plans are of `split_scale.py --images 10000000 --patients 1000000`.
"""

import argparse
import hashlib
import os
import time
import tracemalloc

import numpy as np

from equipoise.embed import applications, backbones

BATCH, BATCHES, INDEX_ROWS = 32, 3, 200_000


def pass_seconds(name: str, size_px: int = 224) -> float:
    """Processor seconds of one pass."""
    import tensorflow as tf

    model = backbones.build(name, "random", size_px)
    traced = tf.function(lambda pixels: model(pixels, training=False))
    pixels = tf.constant(
        np.random.default_rng(0).uniform(0, 255, (BATCH, size_px, size_px, 3)).astype(np.float32)
    )
    traced(pixels)
    start = time.process_time()
    for _ in range(BATCHES):
        traced(pixels).numpy()
    return (time.process_time() - start) / (BATCH * BATCHES)


def index_bytes() -> float:
    """Memory of one row of a feature folder's index as a scenario holds it, (sha256, view) -> row."""
    tracemalloc.start()
    digests = [hashlib.sha256(str(row).encode()).hexdigest() for row in range(INDEX_ROWS)]
    held = dict(zip(zip(digests, [0] * INDEX_ROWS), range(INDEX_ROWS)))
    size = tracemalloc.get_traced_memory()[0] / len(held)
    tracemalloc.stop()
    return size


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--backbones", nargs="+", default=["densenet201", "vgg16", "mobilenetv2"])
    parser.add_argument(
        "--minority", type=float, default=0.1, help="fraction of the images that get views"
    )
    parser.add_argument("--views", type=int, default=5)
    options = parser.parse_args()
    per_image = 1 + options.views * options.minority
    print(
        f"{os.cpu_count()} cores, {per_image:g} passes for each image, {index_bytes():.0f} bytes for an index row"
    )
    for name in options.backbones:
        width, seconds = applications.seen(name).num_features, pass_seconds(name)
        print(f"{name}: {1 / seconds:.1f} passes/s on one core")
        for images in (10**6, 10**7):
            passes = images * per_image
            print(
                f"  {images:>10,} images: {passes:,.0f} passes, {passes * seconds / 3600:,.0f} core-hours, "
                f"{passes * width * 4 / 1e9:,.0f} GB of features, {0.6 + images * 1.5e-6:,.0f} GB of memory "
                f"in a scenario without views",
                flush=True,
            )


if __name__ == "__main__":
    main()
