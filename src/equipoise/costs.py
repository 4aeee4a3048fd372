"""What the stages that would run cost: passes, time, disk and memory, estimated before any of them begins."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from equipoise.core import images
from equipoise.core.config import Finetune, Study
from equipoise.core.records import Manifest
from equipoise.embed import applications, backbones, formats, imported, journal
from equipoise.embed import stage as embed_stage
from equipoise.embed.wanted import wanted_rows
from equipoise.ingest import leftovers
from equipoise.pipeline import Freshness

#: Seconds of one solved head with everything around it, per train row and feature:
#: 38 ms for 5,000 x 1,280.
HEAD_SECONDS = 0.038 / (5000 * 1280)
#: Seconds of imports, of building a backbone and of tracing it.
START_SECONDS = 5
#: A scenario holds so many copies of the features of so many rows,
MEMORY_OF_FEATURES = 6
MEMORY_ROWS = 14_000
#: and so many bytes of every row; a split holds so many bytes of every image.
MEMORY_OF_A_ROW = 1_500
MEMORY_OF_AN_IMAGE = 900
#: Seconds per image of reading, checking and hashing it, and of splitting.
INGEST_SECONDS = 1 / 160
SPLIT_SECONDS = 5e-6
#: Features lie in shards, in the folder that a scenario reads, and in DVC's cache.
COPIES = 3
#: A step forwards and backwards costs about three passes.
PASSES_OF_A_STEP = 3
#: What the last block costs of a pass, about: 9 % in VGG16, 4 % in DenseNet121.
BLOCK_FRACTION = 0.1
#: What flows into VGG16's last block at 224 px, in float32; into that of others less.
ACTIVATION_BYTES = 4 * 14 * 14 * 512
#: Imported vectors: bytes read, hashed and pooled in a second, and how long a vector usually is.
IMPORT_BYTES_PER_SECOND = 1e8
IMPORT_NUM_FEATURES = 1024
#: Passes below which a measured rate is mostly start-up.
_LONG_PASS = 256


@dataclass(frozen=True)
class Step:
    """One stage of a study, and what it will cost.

    Attributes:
        what: Verb and names.
        cached: Whether its outputs are fresh; code is not looked at, that is for `dvc status`.
        detail: What it is made of.
        passes: Backbone passes still to be made; an upper bound where nobody looked for the shards
            of a killed run.
        seconds: Seconds on this machine.
        disk_bytes: Bytes that it will add.
        memory_bytes: Bytes held at most at once.
    """

    what: str
    cached: bool
    detail: str
    passes: int = 0
    seconds: float = 0.0
    disk_bytes: int = 0
    memory_bytes: int = 0

    def __str__(self) -> str:
        if self.cached:
            return f"{self.what}: cached"
        cost = f"about {_minutes(self.seconds)}, {_gigabytes(self.disk_bytes)} of disk"
        return f"{self.what}: will run, {self.detail}, {cost}"


@dataclass(frozen=True)
class Needs:
    """What all steps that will run need together; memory is what is held at once."""

    passes: int
    seconds: float
    disk_bytes: int
    memory_bytes: int

    @classmethod
    def of(cls, steps: list[Step]) -> Needs:
        """Sums over the steps that are not cached."""
        to_run = [step for step in steps if not step.cached]
        return cls(
            passes=sum(step.passes for step in to_run),
            seconds=sum(step.seconds for step in to_run),
            disk_bytes=sum(step.disk_bytes for step in to_run),
            memory_bytes=max((step.memory_bytes for step in to_run), default=0),
        )


def total(steps: list[Step]) -> str:
    """One line over all steps that will run."""
    needs = Needs.of(steps)
    to_run = sum(not step.cached for step in steps)
    return (
        f"{to_run} of {len(steps)} stages will run: at most {needs.passes:,} passes, "
        f"about {_minutes(needs.seconds)}, {_gigabytes(needs.disk_bytes)} of disk, "
        f"{_gigabytes(needs.memory_bytes)} of memory"
    )


def steps(
    study: Study,
    backbone_names: list[str] | None = None,
    scenario_names: list[str] | None = None,
    exact: bool = False,
) -> list[Step]:
    """Every stage of a study with what it will cost.

    Args:
        study: Name and settings.
        backbone_names: Those of params.yaml when left out.
        scenario_names: Likewise.
        exact: Build the backbones and look which passes are kept in shards; needs TensorFlow and
            the weights.
    """
    if backbone_names is None:
        backbone_names = list(study.backbones)
    if scenario_names is None:
        scenario_names = list(study.scenarios)
    freshness = Freshness.of(study)
    num_images = _count_images(study, freshness.manifest)
    planned = [
        Step(
            what="ingest",
            cached=freshness.ingest,
            detail=f"{num_images:,} images",
            seconds=num_images * INGEST_SECONDS,
            disk_bytes=300 * num_images,
        ),
        Step(
            what="split",
            cached=freshness.split,
            detail=f"{num_images:,} images",
            seconds=num_images * SPLIT_SECONDS,
            memory_bytes=MEMORY_OF_AN_IMAGE * num_images,
        ),
    ]
    for backbone in backbone_names:
        planned.append(_embed_step(freshness, backbone, num_images, exact))
        for scenario in scenario_names:
            planned.append(_scenario_step(freshness, backbone, scenario, num_images))
    return planned


def _count_images(study: Study, manifest: Manifest | None) -> int:
    """Images of the manifest, else of the raw folder, else those that would be drawn."""
    if manifest is not None:
        return len(manifest.table)
    if study.raw.is_dir():
        settings = study.settings.ingest
        listing = leftovers.list_images(study.raw, images.SUFFIXES, settings.skip, settings.keep)
        return len(listing.paths)
    drawn = study.settings.phantom
    return round(drawn.patients * drawn.mean_images_per_patient) if drawn else 0


def _embed_step(freshness: Freshness, backbone: str, num_images: int, exact: bool) -> Step:
    study = freshness.study
    settings = study.settings.embed
    if imported.is_imported(settings, backbone):
        return _import_step(freshness, backbone, num_images)
    cached = freshness.embed(backbone)
    wanted = num_images * (1 + settings.views)
    if freshness.manifest is not None and freshness.ingest:
        rows = wanted_rows(freshness.manifest, settings.views, settings.views_of)
        wanted = len(rows)
    left = 0 if cached else wanted
    if exact and left and freshness.ingest:
        weights = settings.weights_for(backbone)
        if backbones.weights_there(backbone, weights, study.root):
            left = embed_stage.passes_left(study, backbone)
    rate = passes_per_second(study.cache_path, backbone, settings.image_size_px)
    bytes_of_a_row = _num_features(freshness, backbone) * (2 if settings.dtype == "float16" else 4)
    pixels_of_a_batch = settings.batch_size * 3 * settings.image_size_px**2
    return Step(
        what=f"embed {backbone}",
        cached=cached,
        detail=(
            f"{left:,} passes ({wanted - left:,} of {wanted:,} kept) "
            f"at {rate.images_per_second:.3g} a second ({rate.source})"
        ),
        passes=left,
        seconds=START_SECONDS + left / rate.images_per_second,
        disk_bytes=(left + (COPIES - 1) * wanted) * bytes_of_a_row,
        memory_bytes=2**31 + 16 * pixels_of_a_batch,
    )


def _import_step(freshness: Freshness, backbone: str, num_images: int) -> Step:
    """Vectors that are read: no pass is made."""
    study = freshness.study
    cached = freshness.embed(backbone)
    files = [] if cached else formats.files_of(imported.place(study, backbone))
    size = sum(file.stat().st_size for file in files)
    bytes_of_rows = 4 * _num_features(freshness, backbone) * num_images
    return Step(
        what=f"embed {backbone}",
        cached=cached,
        detail=f"vectors of {num_images:,} images from files of {_gigabytes(size)}",
        seconds=size / IMPORT_BYTES_PER_SECOND,
        disk_bytes=2 * bytes_of_rows,
        memory_bytes=3 * bytes_of_rows,
    )


def _num_features(freshness: Freshness, backbone: str) -> int:
    """Width of the features; where they were neither made nor read yet that of the network, or a usual one."""
    summary = freshness.features(backbone)
    if summary and summary.num_features:
        return summary.num_features
    if imported.is_imported(freshness.study.settings.embed, backbone):
        return IMPORT_NUM_FEATURES
    return applications.seen(backbone).num_features


@dataclass(frozen=True)
class Rate:
    """Backbone passes in a second, and how that is known."""

    images_per_second: float
    source: str


def passes_per_second(cache: Path, backbone: str, size_px: int) -> Rate:
    """The rate of this machine's last long pass, else the published one scaled by the pixels."""
    for record in reversed(journal.read(cache)):
        if (record.backbone, record.image_size_px) != (backbone, size_px):
            continue
        if record.passes_now >= _LONG_PASS and record.seconds:
            return Rate(record.passes_now / record.seconds, "measured here")
    published = applications.seen(backbone).images_per_second
    return Rate(published * (224 / size_px) ** 2, "published for 2 cores")


def _scenario_step(freshness: Freshness, backbone: str, scenario: str, num_images: int) -> Step:
    study = freshness.study
    settings = study.settings
    num_features = _num_features(freshness, backbone)
    split = settings.split
    folds = split.folds if split.scheme == "kfold" else 1
    rounds = folds * split.repeats
    jobs = rounds * len(settings.train.seeds)
    heads = jobs * settings.tune.trials * settings.tune.inner_folds
    views = settings.embed.views if settings.embed.views_of == "all" else 0
    rows = num_images * (1 + views)
    workers = _workers(study, jobs)

    disk_bytes = jobs * num_images * 60
    seconds = START_SECONDS + heads * rows * num_features * HEAD_SECONDS
    tuned_networks = jobs if settings.train.mode == "finetune" else 0
    tuned_networks += heads if settings.tune.mode == "finetune" else 0
    if tuned_networks and not imported.is_imported(settings.embed, backbone):
        rate = passes_per_second(study.cache_path, backbone, settings.embed.image_size_px)
        passes = tuned_networks * _passes_of_tuning(settings.finetune)
        if settings.finetune.unfreeze == "last_block" and scenario == study.scenarios[0]:
            # The first scenario computes what lies below the block, and the others read it.
            passes += num_images
            size = (settings.embed.image_size_px / 224) ** 2
            disk_bytes += num_images * int(size * ACTIVATION_BYTES)
        seconds += passes / rate.images_per_second

    bytes_of_features = 4 * num_features * min(rows, MEMORY_ROWS)
    memory = workers * (MEMORY_OF_FEATURES * bytes_of_features + MEMORY_OF_A_ROW * rows)
    rotated = workers * 8 * num_features * rows if rows > MEMORY_ROWS else 0
    return Step(
        what=f"scenario {scenario}, {backbone}",
        cached=freshness.scenario(backbone, scenario),
        detail=(
            f"{jobs} jobs (rounds x seeds), {heads:,} heads in searches; "
            "a search that is kept is not made again"
        ),
        seconds=seconds / workers,
        disk_bytes=disk_bytes + rotated,
        memory_bytes=memory,
    )


def _workers(study: Study, jobs: int) -> int:
    """How many jobs run side by side."""
    workers = study.engine.workers
    if workers < 0:
        workers = os.cpu_count() or 1
    return max(1, min(workers, jobs))


def _passes_of_tuning(settings: Finetune) -> float:
    """What the optimiser steps of one network cost, in backbone passes."""
    passes = PASSES_OF_A_STEP * settings.steps * settings.batch_size
    return passes if settings.unfreeze == "all" else BLOCK_FRACTION * passes


def _minutes(seconds: float) -> str:
    """Seconds as people read them.

    >>> _minutes(42.4), _minutes(600), _minutes(7200)
    ('42 s', '10 min', '2.0 h')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    if seconds < 6000:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _gigabytes(size: float) -> str:
    """Bytes as people read them.

    >>> _gigabytes(2_500_000), _gigabytes(4.2e12)
    ('0.0025 GB', '4,200 GB')
    """
    if size < 1e11:
        return f"{size / 1e9:,.2g} GB"
    return f"{size / 1e9:,.0f} GB"
