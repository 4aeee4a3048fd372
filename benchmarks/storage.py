"""What resampling by copying files would have cost, beside plans and views.

    python benchmarks/storage.py --root FOLDER --study chest_xray --backbone vgg16 [--target 4000] [--copies 5]

FOLDER holds a study that was embedded, with its originals. Files are really copied and augmented images
really written, into a temporary folder, and counted there; plans and features are what the product keeps in
their place.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from equipoise.core import config, images
from equipoise.core.config import Study
from equipoise.core.records import minority_labels
from equipoise.embed import augment
from equipoise.ingest import originals
from equipoise.scenario.matrix import Inputs
from equipoise.strategies.base import Plan, load_strategy

#: Quality of the JPEGs that an augmentation tool writes; Pillow's own default is 75.
QUALITY = 95
MEGABYTE = 1e6


@dataclass(frozen=True)
class Cost:
    """Files of one way, with the seconds that writing them took."""

    what: str
    files: int
    num_bytes: int
    seconds: float

    def __str__(self) -> str:
        return f"| {self.what} | {self.files:,} | {self.num_bytes / MEGABYTE:,.2f} MB | {self.seconds:.2f} s |"


def written(what: str, contents: Iterable[bytes]) -> Cost:
    """Write contents as files, count and remove them."""
    start = time.perf_counter()
    files = num_bytes = 0
    with tempfile.TemporaryDirectory() as folder:
        for number, content in enumerate(contents):
            Path(folder, f"{number:07d}").write_bytes(content)
            files += 1
            num_bytes += len(content)
        seconds = time.perf_counter() - start
    return Cost(what, files, num_bytes, seconds)


def planned(what: str, inputs: Inputs, plan: Plan, seconds: float) -> Cost:
    """The same plan as the product writes it: names of images, views and weights in Parquet."""
    table = inputs.manifest.table[["image_id"]].iloc[plan.row].assign(view=plan.view)
    buffer = io.BytesIO()
    table.to_parquet(buffer, index=False)
    return Cost(what, 1, buffer.tell(), seconds)


def timed_plan(inputs: Inputs, technique: str, target: int | None) -> tuple[Plan, float]:
    """The plan of a technique over all images, and the seconds it took."""
    everything = np.arange(len(inputs.manifest.table))
    patients = inputs.manifest.table["patient_id"].to_numpy()
    matrix = inputs.train_matrix(everything, patients)
    cls = load_strategy(technique)
    settings = cls.published(matrix.views, {"target_count": target} if target else {})
    start = time.perf_counter()
    plan = cls.of(settings).plan(matrix.train_rows(seed=0))
    return plan, time.perf_counter() - start


def augmented(study: Study, inputs: Inputs, copies: int) -> Iterable[bytes]:
    """JPEGs of the augmented copies of every minority image."""
    import tensorflow as tf

    size_px = study.settings.embed.image_size_px
    table = inputs.manifest.table
    counts = np.bincount(table["label"])
    minority = table[table["label"].isin(minority_labels(counts))]
    path_of = originals.locate(study, inputs.manifest)
    for row in minority.itertuples():
        content = images.read(study.raw, path_of[row.image_id])
        pixels = np.asarray(Image.fromarray(images.decode(content)).resize((size_px, size_px)))
        parameters = [
            augment.view_parameters(row.sha256, view, study.settings.augment, size_px)
            for view in range(1, copies + 1)
        ]
        batch = tf.constant(np.repeat(pixels[None], copies, axis=0).astype(np.float32))
        for view in augment.apply_views(batch, tf.constant(np.stack(parameters))).numpy():
            buffer = io.BytesIO()
            Image.fromarray(view.round().astype(np.uint8)).save(buffer, "jpeg", quality=QUALITY)
            yield buffer.getvalue()


def main() -> None:
    """Print a table of both ways."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--study", default="chest_xray")
    parser.add_argument("--backbone", required=True)
    parser.add_argument("--target", type=int, default=4000, help="images per class")
    parser.add_argument("--copies", type=int, default=5, help="of every minority image")
    options = parser.parse_args()
    study = config.load_study(options.study, root=options.root)
    inputs = Inputs.read(study, options.backbone, "baseline")
    plan, plan_seconds = timed_plan(inputs, "oversample", options.target)
    path_of = originals.locate(study, inputs.manifest)
    image_ids = inputs.manifest.table["image_id"].to_numpy()
    copied = (images.read(study.raw, path_of[image_ids[row]]) for row in plan.row)
    target = f"{options.target:,} images per class"
    print("| what | files | bytes | seconds |\n|---|---|---|---|")
    print(written(f"{target}, by copying files", copied))
    print(planned(f"{target}, as a plan", inputs, plan, plan_seconds))
    made = augmented(study, inputs, options.copies)
    print(written(f"{options.copies} augmented copies of the minority, as JPEGs", made))
    plan, plan_seconds = timed_plan(inputs, "augment", None)
    print(planned("the same, as a plan", inputs, plan, plan_seconds))
    num_views = len(inputs.store.row_of) - len(inputs.manifest.table)
    width = inputs.store.matrix.shape[1] * inputs.store.matrix.itemsize
    features = Cost("the same, as features of views, embedded once", 1, num_views * width, 0.0)
    print(f"{features} (a pass of {num_views:,} views: see embed)")


if __name__ == "__main__":
    main()
