"""The order of the stages: what is fresh, what is missing, what it will cost, and the whole of it.

DVC decides by digests of files and code whether a stage runs. Here only settings and parents are looked
at: for the verbs that build what they lack, and for `--dry-run` and `doctor`, which say what would run.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from equipoise.core import environment, extras, images
from equipoise.core.config import (
    SCENARIO_SECTIONS,
    Finetune,
    Study,
    load_study,
    read_params,
    run_studies,
)
from equipoise.core.documents import FeatureSummary, ScenarioSummary
from equipoise.core.errors import ConfigError, DataError, EquipoiseError
from equipoise.core.files import digest_of
from equipoise.core.records import Manifest, Splits
from equipoise.embed import applications, backbones, encoders, formats, imported, shards
from equipoise.embed import stage as embed_stage
from equipoise.embed.wanted import wanted_rows
from equipoise.ingest import fingerprint, leftovers, originals
from equipoise.ingest import stage as ingest_stage
from equipoise.ingest.datasets import base as datasets
from equipoise.ingest.datasets import phantom
from equipoise.project import links
from equipoise.split import stage as split_stage
from equipoise.strategies import base as strategies

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
#: A kind of document.
Kind = TypeVar("Kind")
#: Passes below which a measured rate is mostly start-up.
_LONG_PASS = 256


# --- what is fresh --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Freshness:
    """Which stages of a study have outputs that were made with today's settings from today's parents.

    A stage whose parent is not fresh is not fresh either.

    Attributes:
        study: Name and settings.
        manifest: None where there is none.
        splits: None where there are none.
        change: What has changed since the manifest was made, in words; empty where nothing has.
    """

    study: Study
    manifest: Manifest | None
    splits: Splits | None
    change: str

    @classmethod
    def of(cls, study: Study) -> Freshness:
        """Read what is there."""
        manifest = Manifest.read(study.manifest_path) if study.manifest_path.is_file() else None
        splits = Splits.read(study.splits_path) if study.splits_path.is_file() else None
        return cls(study, manifest, splits, _change(study, manifest))

    @property
    def ingest(self) -> bool:
        """Whether the manifest is of these settings, of this raw folder and of this code."""
        return self.manifest is not None and not self.change

    @property
    def split(self) -> bool:
        """Whether the split is of these settings and of this manifest."""
        if self.splits is None or self.manifest is None or not self.ingest:
            return False
        if self.splits.meta["manifest"] != self.manifest.digest:
            return False
        return self.splits.meta["settings"] == self.study.settings.sections("split")

    def embed(self, backbone: str) -> bool:
        """Whether the features are of these settings and of this manifest."""
        summary = self._features(backbone)
        if summary is None or self.manifest is None or not self.ingest:
            return False
        if summary.manifest != self.manifest.digest:
            return False
        if not self._reads_the_same_vectors(backbone, summary):
            return False
        if not self._has_the_same_network(backbone, summary):
            return False
        return summary.settings == self.study.settings.sections("embed", "augment")

    def _reads_the_same_vectors(self, backbone: str, summary: FeatureSummary) -> bool:
        """Whether imported vectors are still those that were read.

        The pass of a backbone reads none, and features may have come to this machine without them.
        """
        if not imported.is_imported(self.study.settings.embed, backbone):
            return True
        if not imported.place(self.study, backbone).exists():
            return True
        return summary.weights_digest == imported.content_digest(self.study, backbone)

    def _has_the_same_network(self, backbone: str, summary: FeatureSummary) -> bool:
        """Whether a network given as a file is still the one that made the features."""
        settings = self.study.settings.embed
        if imported.is_imported(settings, backbone):
            return True
        weights = settings.weights_for(backbone)
        root = self.study.root
        if not encoders.is_encoder(weights) or not backbones.weights_there(backbone, weights, root):
            return True
        return encoders.pipeline_part(weights, root) in summary.pipeline

    def scenario(self, backbone: str, scenario: str) -> bool:
        """Whether a result is of these settings, this split and these features."""
        features = self._features(backbone)
        folder = self.study.result_path(backbone, scenario)
        summary = _read_or_none(ScenarioSummary.read, folder / "metrics.json")
        if features is None or summary is None or self.splits is None:
            return False
        if not (self.split and self.embed(backbone)):
            return False
        if summary.digests.get("features") != features.digest:
            return False
        if summary.digests.get("splits") != self.splits.digest:
            return False
        return summary.settings == _as_written(scenario_settings(self.study, scenario))

    def _features(self, backbone: str) -> FeatureSummary | None:
        path = self.study.features_path(backbone) / "meta.json"
        return _read_or_none(FeatureSummary.read, path)


def _change(study: Study, manifest: Manifest | None) -> str:
    """What has changed since a manifest was made, in words; empty where nothing has."""
    if manifest is None:
        return "there is no manifest"
    if manifest.meta.get("settings") != study.settings.sections("ingest"):
        return "the settings of ingest have changed"
    return fingerprint.change(study, manifest)


def scenario_settings(study: Study, scenario: str) -> dict[str, Any]:
    """The settings that a result depends on, as `metrics.json` keeps them."""
    sections = study.settings.sections("split", "embed", "augment", *SCENARIO_SECTIONS)
    sections["scenario"] = study.scenario_settings.get(scenario, {})
    return sections


def _as_written(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as they come back from a JSON file: tuples are lists there."""
    return json.loads(json.dumps(settings))


def _read_or_none(read: Callable[[Path], Kind], path: Path) -> Kind | None:
    """A document, or None where it is missing or damaged: then its stage is simply not fresh."""
    try:
        return read(path)
    except (DataError, OSError):
        return None


# --- building what a verb lacks -------------------------------------------------------------------


def draw_phantoms(study: Study) -> int:
    """Draw the raw images of a study whose dataset is the phantom; returns the number of files."""
    if study.dataset != "phantom":
        raise ConfigError(
            f"The images of study '{study.name}' are real ({study.dataset}); "
            "there is nothing to draw."
        )
    if study.settings.phantom is None:
        raise ConfigError(
            f"The phantom section of study '{study.name}' is empty; there is nothing to draw."
        )
    return phantom.draw(study.raw, study.settings.phantom)


def ensure(study: Study, backbone: str, say: Callable[[str], None]) -> None:
    """Build the stages before a scenario that are missing or not fresh.

    Args:
        study: Name and settings.
        backbone: Whose features are needed.
        say: Called with a line of text for each stage that is built.
    """
    if study.dataset == "phantom" and not study.raw.is_dir():
        say(f"drawing {study.raw}")
        draw_phantoms(study)
    before = Freshness.of(study)
    if before.ingest and before.manifest is not None:
        if not study.raw.is_dir():
            say(
                f"{study.raw} is not on this machine; going on from the manifest that came without it"
            )
        fingerprint.remember(study, before.manifest)
    else:
        say(f"ingesting {study.raw}: {before.change}")
        ingest_stage.run(study)
    if not Freshness.of(study).split:
        say(f"splitting {study.name}")
        split_stage.run(study)
    if not Freshness.of(study).embed(backbone):
        say(f"embedding {study.name} with {backbone}")
        embed_stage.run(study, backbone)


def require_current(study: Study) -> None:
    """Refuse to go on from a manifest that is not of the raw images as they are now.

    Where there is none the stage itself says what it lacks.

    Raises:
        DataError: With what has changed, and the command that makes it anew.
    """
    if study.manifest_path.is_file():
        fingerprint.require_current(study, Manifest.read(study.manifest_path))


def adhoc_folder(study: Study, backbone: str, scenario: str, overrides: Mapping[str, Any]) -> Path:
    """Where a run with overrides is written: never over DVC's outputs, never read by `compare`.

    Raises:
        ConfigError: For an override of something that all scenarios share.
    """
    for key in overrides:
        section, _, _ = key.partition(".")
        if section not in SCENARIO_SECTIONS:
            raise ConfigError(
                f"'{key}' cannot be overridden for one scenario: it would change the data that all "
                f"scenarios share. Overrides reach {', '.join(SCENARIO_SECTIONS)}; "
                "change params.yaml for the rest."
            )
    own_settings = study.scenario_settings.get(scenario, {})
    digest = digest_of([study.name, backbone, scenario, study.settings.model_dump(), own_settings])
    return study.root / "results/adhoc" / digest[:16]


def set_aside_unlisted(study: Study) -> list[Path]:
    """Move results that `run` does not name out of the folder that `compare` depends on; returns where they are now.

    DVC knows the results of a study as one folder. A result that was taken off the list, or was made by hand, would
    make that folder another one in this clone only: `compare` would run, and dvc.lock would change.
    """
    results = study.root / "results" / study.name
    listed = {study.result_path(*pair) for pair in product(study.backbones, study.scenarios)}
    moved = []
    for folder in sorted(results.glob("*/*")):
        if folder in listed:
            continue
        aside = study.root / "results/unlisted" / folder.relative_to(results.parent)
        aside.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(aside, ignore_errors=True)
        folder.replace(aside)
        moved.append(aside)
    for folder in {results / aside.parent.name for aside in moved}:
        if not any(folder.iterdir()):
            folder.rmdir()
    return moved


def check_names(study: Study) -> None:
    """Raise the error of the first dataset, scenario or backbone that does not exist; it names the nearest."""
    datasets.load_dataset(study.dataset)
    for scenario in study.scenarios:
        strategies.load_strategy(scenario)
        if scenario not in study.scenario_settings:
            raise ConfigError(
                f"Scenario '{scenario}' of run.scenarios has no line under `scenarios` in params.yaml. "
                f"Write `{scenario}: {{}}` there: DVC wants it, and it takes the defaults."
            )
    for backbone in study.backbones:
        imported.require_known(study.settings.embed, backbone)
        imported.refuse_finetuning(study.settings, backbone)


def lacks(study: Study) -> list[str]:
    """What a study with good settings still lacks before it can run here, each with the next step."""
    lacking = []
    if not study.raw.is_dir() and study.dataset != "phantom":
        lacking.append(originals.advice_without(study))
    lacking += filter(
        None, [originals.advice_to_link(study), links.advice_to_link_program(study.root)]
    )
    for backbone in study.backbones:
        if not imported.is_imported(study.settings.embed, backbone) and extras.lacking("keras"):
            lacking.append(f"{backbone} needs TensorFlow: {extras.install('keras')}")
    return lacking


def require_checkout(root: Path) -> None:
    """Refuse a folder that is no git checkout, as one that came in a zip.

    Raises:
        ConfigError: With the commands that make it one, or when git or a home folder is missing.
    """
    environment.require_git()
    environment.require_home()
    if environment.git("rev-parse", "--git-dir", folder=root) is None:
        raise ConfigError(
            f"{root} is no git checkout (did it come as a zip?), and DVC works inside one: run `git init`, "
            f"`git add -A` and `git commit -m start` there, then the same command again."
        )


def reproduce(root: Path, variables: Mapping[str, str] | None = None) -> None:
    """Run `dvc repro` in a project, with this interpreter first on the path.

    Args:
        root: Folder of the project.
        variables: What the stages find in their environment beside that of this process.

    Raises:
        ConfigError: Before DVC speaks: for a folder without git, a name that does not exist, a section that is missing,
            and originals of a study that lie where DVC does not look.
        EquipoiseError: When it fails.
    """
    require_checkout(root)
    params = read_params(root)
    for name in run_studies(params):
        study = load_study(name, params, root=root)
        check_names(study)
        advice = originals.advice_to_link(study)
        if advice:
            raise ConfigError(f"Study '{name}' has its originals elsewhere (ingest.raw). {advice}.")
        _require_watched_files(study)
        set_aside_unlisted(study)
    import dvc  # noqa: F401 - where it is missing it is told here, by the one sentence for extras

    links.link_program(root)
    programs = str(Path(sys.executable).parent)
    path = os.pathsep.join([programs, os.environ.get("PATH", "")])
    _drop_cut_lock(root / ".dvc/tmp/rwlock")
    command = [sys.executable, "-m", "dvc", "repro"]
    # DVC asks for the name of the user, and ends where there is none.
    of_stages = {"USER": environment.user(), **os.environ, "PATH": path, **(variables or {})}
    code = subprocess.run(command, cwd=root, env=of_stages).returncode
    if code:
        raise EquipoiseError(f"`dvc repro` ended with code {code}; its last lines say why.")


def _drop_cut_lock(path: Path, seconds: float = 0.5) -> None:
    """Remove the list of DVC's locks where a kill cut it.

    DVC writes it in place, refuses what it cannot read afterwards, and says that it has to be removed. A list that is
    being written is whole `seconds` later.
    """
    if _is_json(path):
        return
    time.sleep(seconds)
    if not _is_json(path):
        path.unlink(missing_ok=True)


def _is_json(path: Path) -> bool:
    """Whether a file holds JSON; also where there is none."""
    try:
        json.loads(path.read_bytes())
    except FileNotFoundError:
        return True
    except ValueError:
        return False
    return True


def _require_watched_files(study: Study) -> None:
    """Refuse imported vectors and whole networks that lie where DVC does not look."""
    for backbone in study.backbones:
        advice = imported.advice_to_move(study, backbone)
        if advice:
            raise ConfigError(f"Study '{study.name}', {backbone}: {advice}.")


# --- what it will cost ----------------------------------------------------------------------------


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
        planned.append(_embed_step(study, backbone, num_images, freshness, exact))
        for scenario in scenario_names:
            planned.append(_scenario_step(study, backbone, scenario, num_images, freshness))
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


def _embed_step(
    study: Study, backbone: str, num_images: int, freshness: Freshness, exact: bool
) -> Step:
    settings = study.settings.embed
    if imported.is_imported(settings, backbone):
        return _import_step(study, backbone, num_images, freshness)
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
    bytes_of_a_row = _num_features(study, backbone) * (2 if settings.dtype == "float16" else 4)
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


def _import_step(study: Study, backbone: str, num_images: int, freshness: Freshness) -> Step:
    """Vectors that are read: no pass is made."""
    cached = freshness.embed(backbone)
    files = [] if cached else formats.files_of(imported.place(study, backbone))
    size = sum(file.stat().st_size for file in files)
    bytes_of_rows = 4 * _num_features(study, backbone) * num_images
    return Step(
        what=f"embed {backbone}",
        cached=cached,
        detail=f"vectors of {num_images:,} images from files of {_gigabytes(size)}",
        seconds=size / IMPORT_BYTES_PER_SECOND,
        disk_bytes=2 * bytes_of_rows,
        memory_bytes=3 * bytes_of_rows,
    )


def _num_features(study: Study, backbone: str) -> int:
    """Width of the features; where they were neither made nor read yet that of the network, or a usual one."""
    path = study.features_path(backbone) / "meta.json"
    summary = _read_or_none(FeatureSummary.read, path)
    if summary and summary.num_features:
        return summary.num_features
    if imported.is_imported(study.settings.embed, backbone):
        return IMPORT_NUM_FEATURES
    return applications.seen(backbone).num_features


@dataclass(frozen=True)
class Rate:
    """Backbone passes in a second, and how that is known."""

    images_per_second: float
    source: str


def passes_per_second(cache: Path, backbone: str, size_px: int) -> Rate:
    """The rate of this machine's last long pass, else the published one scaled by the pixels."""
    journal = shards.passes_journal(cache)
    lines = journal.read_text("utf-8").splitlines() if journal.is_file() else []
    for line in reversed(lines):
        entry = json.loads(line)
        if entry.get("backbone") != backbone or entry.get("image_size_px") != size_px:
            continue
        if entry["passes_now"] >= _LONG_PASS and entry.get("seconds"):
            return Rate(entry["passes_now"] / entry["seconds"], "measured here")
    published = applications.seen(backbone).images_per_second
    return Rate(published * (224 / size_px) ** 2, "published for 2 cores")


def _scenario_step(
    study: Study, backbone: str, scenario: str, num_images: int, freshness: Freshness
) -> Step:
    settings = study.settings
    num_features = _num_features(study, backbone)
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
