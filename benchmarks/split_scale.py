"""Seconds and peak memory of splitting, checking and planning a million made-up images.

    python benchmarks/split_scale.py --images 1000000 --patients 100000 --scheme holdout

Three classes of 70, 25 and 5 in a hundred patients; one patient in twenty also shows the next class; one image in ten
is a copy of another of the same patient. No picture is made. The goal for a holdout is 60 seconds and 4 GB in one
process.
"""

import argparse
import resource
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd

from equipoise.core.config import Split
from equipoise.core.records import Manifest
from equipoise.split import checks
from equipoise.split import stage as splits
from equipoise.strategies import base as strategies
from equipoise.strategies.base import TrainRows

CLASSES = ("common", "uncommon", "rare")


def made_up(images: int, patients: int, seed: int = 0) -> Manifest:
    """A manifest of that many images of that many patients, at least one image each."""
    rng = np.random.default_rng(seed)
    patient = np.concatenate([np.arange(patients), rng.integers(0, patients, images - patients)])
    rng.shuffle(patient)
    own = rng.choice(len(CLASSES), size=patients, p=[0.7, 0.25, 0.05])
    second = np.where(rng.random(patients) < 0.05, (own + 1) % len(CLASSES), own)
    label = np.where(rng.random(images) < 0.5, own[patient], second[patient])
    copied = np.full(patients, -1)
    copied[patient] = np.arange(images)
    picture = np.where(rng.random(images) < 0.1, copied[patient], np.arange(images))
    label = label[picture]
    image_id = pd.Series(np.arange(images)).map("folder/image{:07d}.png".format)
    patient_id = (
        pd.Series(np.arange(patients)).map("patient{:06d}".format)[patient].reset_index(drop=True)
    )
    table = pd.DataFrame(
        {
            **{"image_id": image_id, "sha256": image_id, "path": image_id},
            **{
                "picture": pd.Series(np.arange(images))
                .map("{:064x}".format)[picture]
                .reset_index(drop=True)
            },
            **{
                "label": label,
                "class_name": np.array(CLASSES)[label],
                "patient_id": patient_id,
                "patient": patient_id,
            },
            **{"width_px": 224, "height_px": 224, "bytes": 10_000, "grey_mean": 128.0},
        }
    )
    meta = {
        "study": "scale",
        "dataset": "scale",
        "classes": list(CLASSES),
        "positive_class": "rare",
    }
    return Manifest(table, {**meta, "readings": ["patient"]}, "no digest")


@contextmanager
def measured(step: str) -> Iterator[None]:
    """Print how long a step took and the most memory the process has held until then."""
    start, computing = time.perf_counter(), time.process_time()
    yield
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
    seconds, computing = time.perf_counter() - start, time.process_time() - computing
    print(
        f"{step:<24} {seconds:8.2f} s   computing {computing:8.2f} s   peak so far {peak:5.2f} GB",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--patients", type=int, default=100_000)
    parser.add_argument("--scheme", choices=["holdout", "kfold"], default="holdout")
    parser.add_argument("--folds", type=int, default=5)
    options = parser.parse_args()
    with measured("make the manifest"):
        manifest = made_up(options.images, options.patients)
    settings = Split(
        **{"scheme": options.scheme, "group_by": None, "val_fraction": 0.15, "test_fraction": 0.2},
        **{"folds": options.folds, "repeats": 1, "seed": 1},
    )
    with measured("all but the manifest"):
        with measured("split"):
            made = splits.make(manifest, settings)
        with measured("check"):
            found = checks.check_split(made, manifest)
        with measured("count"):
            splits.counts_reached(made, manifest)
        train = (made.round(0, 0)["part"] == "train").to_numpy()
        rows = TrainRows(manifest.table["label"].to_numpy()[train], len(CLASSES), 0, seed=0)
        for name in ("oversample", "undersample"):
            with measured(f"plan {name}"):
                plan = strategies.load_strategy(name)().plan(rows)
            image_id = manifest.table["image_id"][train].iloc[plan.row]
            written = pd.DataFrame(
                {"image_id": image_id, "view": plan.view, "repeat": 0, "fold": 0, "seed": 0}
            )
            with measured(f"check plan {name}"):
                found.append(checks.written_plan_within_train(written, made))
    for check in found:
        print(f"{check.code}: {check.answer} {check.detail}".rstrip())


if __name__ == "__main__":
    main()
