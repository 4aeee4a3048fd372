"""Seconds and peak memory of a scenario over a million images whose features are drawn.

    python benchmarks/million.py [--images 1000000] [--features 1280] [--classes 2] [--scenario class_weight]
                                 [--limit-gb 8]

The manifest is that of `split_scale.py`, its classes 1 and 2 in one where there are two. The features
are normal numbers, and the first tenth of them leans towards the class. Verbs of the product do the rest,
each in a process of its own whose peak memory the kernel tells. The goal is 8 GB. With --limit-gb the verbs run in a
memory cgroup of that size, where one may be made.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import machine
import memory
import numpy as np
import yaml
from split_scale import CLASSES, made_up

from equipoise.core import config
from equipoise.core.config import Study
from equipoise.core.documents import FeatureSummary
from equipoise.core.files import file_digest
from equipoise.core.records import Manifest
from equipoise.embed.store import write_index

ROOT = Path(__file__).resolve().parents[1]
STUDY = "chest_xray"
BACKBONE = "vgg16"
#: Rows that are drawn at once.
BLOCK = 50_000
#: How far the features that lean towards a class do, in standard deviations.
LEAN = 0.1
LEANING_FRACTION = 0.1
SETTINGS = {
    "embed": {"views": 0, "weights": "random"},
    "split": {"scheme": "holdout"},
    "tune": {"trials": 3},
}


@dataclass(frozen=True)
class Cost:
    """What a process took.

    Attributes:
        seconds: Of wall time.
        processor_seconds: Of all its threads.
        peak_gb: The most memory that was resident, in 2^30 bytes, mapped pages of files included.
        anonymous_gb: The most of it that was its own; 0 where the system does not say.
        group_gb: The most that the kernel charged to its cgroup, files that it read or wrote included; 0 without one.
    """

    seconds: float
    processor_seconds: float
    peak_gb: float
    anonymous_gb: float
    group_gb: float

    def __str__(self) -> str:
        told = (
            f"{self.seconds:.0f} s, {self.processor_seconds:.0f} s of processor time, {self.peak_gb:.2f} GB at most, "
            f"{self.anonymous_gb:.2f} GB of it anonymous"
        )
        if self.group_gb:
            told += f"; {self.group_gb:.2f} GB in its cgroup, cached files included"
        return told


def run_verb(folder: Path, limit_gb: float | None, *arguments: str) -> Cost:
    """Run a verb in a process of its own, in a cgroup if there is a limit, and measure it."""
    command = [sys.executable, str(ROOT / "src"), *arguments, "--study", STUDY]
    with memory.limited(limit_gb) as group:
        start = time.perf_counter()
        process = subprocess.Popen(command, cwd=folder, preexec_fn=memory.entering(group))
        anonymous = memory.AnonymousPeak(process.pid)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        anonymous_bytes = anonymous.end()
        if status:
            raise SystemExit(f"{' '.join(arguments)} {memory.ended_by(status, group)}")
        group_bytes = 0 if group is None else group.peak_bytes()
    per_gb = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    return Cost(
        seconds=seconds,
        processor_seconds=usage.ru_utime + usage.ru_stime,
        peak_gb=usage.ru_maxrss / per_gb,
        anonymous_gb=anonymous_bytes / memory.GB,
        group_gb=group_bytes / memory.GB,
    )


def write_settings(folder: Path) -> None:
    """Write the params.yaml of the repository with the settings of this benchmark."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["studies"][STUDY].update(SETTINGS)
    (folder / "params.yaml").write_text(yaml.safe_dump(params))


def write_study(folder: Path, images: int, num_classes: int, num_features: int) -> None:
    """Write settings, manifest and features."""
    write_settings(folder)
    study = config.load_study(STUDY, root=folder)
    manifest = write_manifest(study, images, num_classes)
    write_features(study, manifest, num_features)


def write_manifest(study: Study, images: int, num_classes: int) -> Manifest:
    """Write a manifest of made-up images, ten of a patient on average."""
    manifest = made_up(images, patients=images // 10)
    classes = list(CLASSES[:num_classes])
    label = np.minimum(manifest.table["label"], num_classes - 1)
    table = manifest.table.assign(label=label, class_name=np.array(classes)[label])
    table["sha256"] = [f"{row:064x}" for row in range(images)]
    meta = dict(manifest.meta)
    meta.update(study=STUDY, dataset=STUDY, classes=classes, positive_class=classes[-1])
    meta["settings"] = study.settings.sections("ingest")
    return Manifest(table, meta, "no digest").write(study.manifest_path)


def write_features(study: Study, manifest: Manifest, num_features: int) -> None:
    """Draw the features of every image, a block at a time, and write them as `embed` does."""
    folder = study.features_path(BACKBONE)
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    label = manifest.table["label"].to_numpy()
    matrix = np.lib.format.open_memmap(
        folder / "features.npy", mode="w+", dtype=np.float32, shape=(len(label), num_features)
    )
    num_leaning = round(LEANING_FRACTION * num_features)
    for start in range(0, len(label), BLOCK):
        of_block = label[start : start + BLOCK]
        drawn = rng.standard_normal((len(of_block), num_features), dtype=np.float32)
        drawn[:, :num_leaning] += LEAN * of_block[:, None].astype(np.float32)
        matrix[start : start + BLOCK] = drawn
    matrix.flush()
    del matrix
    wanted = manifest.table[["sha256"]].assign(view=0)
    summary = FeatureSummary(
        backbone=BACKBONE,
        weights_digest="drawn",
        image_size_px=study.settings.embed.image_size_px,
        pipeline="drawn",
        study=STUDY,
        weights="random",
        manifest=manifest.digest,
        settings=study.settings.sections("embed", "augment"),
        num_features=num_features,
        views=0,
        digest=write_index(folder, wanted, file_digest(folder / "features.npy")),
    )
    summary.write(folder / "meta.json")


def main() -> None:
    """Draw a study, run one scenario of it, and print what it took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=1280)
    parser.add_argument("--classes", type=int, choices=[2, 3], default=2)
    parser.add_argument("--scenario", default="class_weight")
    parser.add_argument("--folder", type=Path, help="where the study is drawn; removed afterwards")
    parser.add_argument(
        "--limit-gb", type=float, help="run the verbs in a memory cgroup of that size"
    )
    options = parser.parse_args()
    with memory.limited(options.limit_gb):
        pass  # better known before an hour of drawing
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        # In a process of its own: the kernel counts the memory of a parent as its children's.
        drawing = multiprocessing.get_context("spawn").Process(
            target=write_study, args=(folder, options.images, options.classes, options.features)
        )
        drawing.start()
        drawing.join()
        print(f"{options.images} images, {options.features} features, {options.classes} classes")
        print(machine.described())
        print(f"split: {run_verb(folder, options.limit_gb, 'split')}", flush=True)
        scenario = ("scenario", "--backbone", BACKBONE, "--scenario", options.scenario)
        print(f"{options.scenario}: {run_verb(folder, options.limit_gb, *scenario)}", flush=True)


if __name__ == "__main__":
    main()
