"""The order of the stages: building what a scenario lacks, the whole pipeline, and results outside DVC."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise.core import images
from equipoise.core.config import SCENARIO_SECTIONS, Study
from equipoise.core.errors import ConfigError, DataError, EquipoiseError
from equipoise.core.files import digest_of, read_json
from equipoise.core.records import Manifest, Splits
from equipoise.embed import backbones, shards
from equipoise.embed import stage as features
from equipoise.ingest import stage as ingest
from equipoise.ingest.datasets import phantom
from equipoise.split import stage as splits

#: Seconds of one solved head with everything around it, per train row and feature: 38 ms for 5,000 x 1,280.
_HEAD_SECONDS = 0.038 / (5000 * 1280)
#: Imports, building a backbone, tracing.
_START_SECONDS = 5
#: A scenario holds so many copies of so many rows of features, and bytes of each row; a split, bytes of each image.
_MEMORY_OF_FEATURES, _MEMORY_ROWS, _MEMORY_OF_A_ROW, _MEMORY_OF_AN_IMAGE = 6, 14_000, 1_500, 900
#: Seconds per image of reading, checking and hashing; of the rest up to the split.
_INGEST_SECONDS, _SPLIT_SECONDS = 1 / 160, 5e-6
#: Shards, the folder that a scenario reads, and its copy in DVC's cache.
_COPIES = 3


@dataclass(frozen=True)
class Step:
    """One stage of a study.

    Attributes:
        what: Verb and names.
        cached: Whether its outputs are of these settings and parents; code is not looked at, that is for `dvc status`.
        detail: What it is made of.
        passes: Of the backbone, still to be made; an upper bound where shards of a killed run are not looked for.
        seconds: Of this stage on this machine.
        disk_bytes: That it will add.
        memory_bytes: At most at once.
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


def steps(
    study: Study,
    chosen: list[str] | None = None,
    scenarios: list[str] | None = None,
    exact: bool = False,
) -> list[Step]:
    """Every stage of a study with what it will cost.

    Args:
        study: Name and settings.
        chosen: Backbones; those of params.yaml when left out.
        scenarios: Likewise.
        exact: Build the backbones and look which passes are kept in shards; needs TensorFlow and the weights.
    """
    count, manifest = _images(study)
    settings = study.settings
    ingested = manifest is not None and manifest.meta.get("settings") == settings.sections("ingest")
    made = [
        Step(
            "ingest",
            ingested,
            f"{count:,} images",
            seconds=count * _INGEST_SECONDS,
            disk_bytes=300 * count,
        )
    ]
    split = Splits.read(study.splits_path).meta if study.splits_path.is_file() else {}
    now = (manifest.digest if manifest and ingested else "", settings.sections("split"))
    done = (split.get("manifest"), split.get("settings")) == now
    memory = _MEMORY_OF_AN_IMAGE * count
    made.append(
        Step(
            "split", done, f"{count:,} images", seconds=count * _SPLIT_SECONDS, memory_bytes=memory
        )
    )
    for backbone in study.backbones if chosen is None else chosen:
        embed = _embed(study, backbone, count, manifest if ingested else None, exact)
        made.append(embed)
        for scenario in study.scenarios if scenarios is None else scenarios:
            made.append(_scenario(study, backbone, scenario, count, done and embed.cached))
    return made


def needs(found: list[Step]) -> tuple[int, float, int, int]:
    """Passes, seconds and bytes of disk of all steps that will run, and bytes of memory at once."""
    todo = [step for step in found if not step.cached]
    sums = (sum(step.passes for step in todo), sum(step.seconds for step in todo))
    return (
        *sums,
        sum(step.disk_bytes for step in todo),
        max((step.memory_bytes for step in todo), default=0),
    )


def total(found: list[Step]) -> str:
    """One line over all steps that will run."""
    passes, seconds, disk, memory = needs(found)
    todo = sum(not step.cached for step in found)
    return (
        f"{todo} of {len(found)} stages will run: at most {passes:,} passes, about {_minutes(seconds)}, "
        f"{_gigabytes(disk)} of disk, {_gigabytes(memory)} of memory"
    )


def _images(study: Study) -> tuple[int, Manifest | None]:
    if study.manifest_path.is_file():
        manifest = Manifest.read(study.manifest_path)
        return len(manifest.table), manifest
    if study.raw.is_dir():
        return sum(path.suffix.lower() in images.SUFFIXES for path in study.raw.rglob("*")), None
    drawn = study.settings.phantom
    return (round(drawn.patients * drawn.mean_images_per_patient) if drawn else 0), None


def _embed(study: Study, backbone: str, count: int, manifest: Manifest | None, exact: bool) -> Step:
    settings, row = study.settings.embed, backbones.load_row(backbone)
    wanted = count * (1 + settings.views)
    meta = _meta(study.features_path(backbone) / "meta.json")
    cached = False
    if manifest is not None:
        wanted = len(features.wanted_rows(manifest, settings.views, settings.views_of))
        now = (manifest.digest, study.settings.sections("embed", "augment"))
        cached = (meta.get("manifest"), meta.get("settings")) == now
    left = 0 if cached else wanted
    if (
        exact
        and left
        and manifest is not None
        and backbones.weights_there(backbone, settings.weights_for(backbone))
    ):
        left = features.passes_left(study, backbone)
    rate, source = _rate(backbone, settings.image_size_px)
    size = row.num_features * (2 if settings.dtype == "float16" else 4)
    detail = (
        f"{left:,} passes ({wanted - left:,} of {wanted:,} kept) at {rate:.3g} a second ({source})"
    )
    disk = (left + (_COPIES - 1) * wanted) * size
    memory = 2**31 + 4 * settings.batch_size * 12 * settings.image_size_px**2
    return Step(
        f"embed {backbone}", cached, detail, left, _START_SECONDS + left / rate, disk, memory
    )


def _rate(backbone: str, size_px: int) -> tuple[float, str]:
    """Passes in a second: measured by the last long pass of this machine, or published and scaled by the pixels."""
    journal = shards.SHARDS / "passes.jsonl"
    lines = (
        [json.loads(line) for line in journal.read_text("utf-8").splitlines()]
        if journal.is_file()
        else []
    )
    for line in reversed(lines):
        mine = (line.get("backbone"), line.get("image_size_px")) == (backbone, size_px)
        if mine and line["passes_now"] >= 256 and line.get("seconds"):
            return line["passes_now"] / line["seconds"], "measured here"
    return backbones.load_row(backbone).images_per_second * (
        224 / size_px
    ) ** 2, "published for 2 cores"


def _scenario(study: Study, backbone: str, scenario: str, count: int, parents: bool) -> Step:
    settings, row = study.settings, backbones.load_row(backbone)
    split = settings.split
    rounds = split.folds * split.repeats if split.scheme == "kfold" else 1
    jobs = rounds * len(settings.train.seeds)
    heads = jobs * settings.tune.trials * settings.tune.inner_folds
    rows = count * (1 + (settings.embed.views if settings.embed.views_of == "all" else 0))
    cores = os.cpu_count() or 1
    side = min(cores, jobs) if study.engine.workers < 0 else min(study.engine.workers, jobs)
    seconds = _START_SECONDS + heads * rows * row.num_features * _HEAD_SECONDS
    fits = jobs * (settings.train.mode == "finetune") + heads * (settings.tune.mode == "finetune")
    # Forwards and backwards cost about three passes.
    finetuned = 3 * fits * settings.finetune.steps * settings.finetune.batch_size
    seconds += finetuned / _rate(backbone, settings.embed.image_size_px)[0]
    summary = _meta(study.result_path(backbone, scenario) / "metrics.json")
    held = summary.get("digests", {})
    now = settings.sections("split", "embed", "augment", *SCENARIO_SECTIONS)
    now["scenario"] = study.scenario_settings.get(scenario, {})
    cached = parents and all(
        json.loads(json.dumps(now[key])) == summary.get("settings", {}).get(key) for key in now
    )
    cached = cached and held.get("features") == _meta(
        study.features_path(backbone) / "meta.json"
    ).get("digest")
    cached = cached and held.get("splits") == Splits.read(study.splits_path).digest
    features_bytes = 4 * row.num_features * min(rows, _MEMORY_ROWS)
    memory = side * (_MEMORY_OF_FEATURES * features_bytes + _MEMORY_OF_A_ROW * rows)
    disk = jobs * count * 60 + (
        side * 8 * row.num_features * rows if rows > _MEMORY_ROWS else 0
    )  # rotated, float64
    detail = f"{jobs} jobs (rounds x seeds), {heads:,} heads in searches; a search that is kept is not made again"
    return Step(
        f"scenario {scenario}, {backbone}", cached, detail, 0, seconds / max(1, side), disk, memory
    )


def _meta(path: Path) -> dict[str, Any]:
    try:
        return read_json(path)
    except (DataError, OSError):
        return {}


def _minutes(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def _gigabytes(size: float) -> str:
    """Bytes as people read them.

    >>> _gigabytes(2_500_000), _gigabytes(4.2e12)
    ('0.0025 GB', '4,200 GB')
    """
    return f"{size / 1e9:,.2g} GB" if size < 1e11 else f"{size / 1e9:,.0f} GB"


def draw_phantoms(study: Study) -> int:
    """Draw the raw images of a study whose dataset is the phantom."""
    if study.dataset != "phantom":
        raise ConfigError(
            f"The images of study '{study.name}' are real ({study.dataset}); there is nothing to draw."
        )
    if study.settings.phantom is None:
        raise ConfigError(
            f"The phantom section of study '{study.name}' is empty; there is nothing to draw."
        )
    return phantom.draw(study.raw, study.settings.phantom.model_dump())


def ensure(study: Study, backbone: str, say: Any) -> None:
    """Build the stages before a scenario that are missing or were made with other settings or parents.

    Args:
        study: Name and settings.
        backbone: Whose features are needed.
        say: Called with a line of text for each stage that is built.
    """
    if study.dataset == "phantom" and not study.raw.is_dir():
        say(f"drawing {study.raw}")
        draw_phantoms(study)
    manifest = _read(Manifest, study.manifest_path)
    if manifest is None or manifest.meta.get("settings") != study.settings.sections("ingest"):
        say(f"ingesting {study.raw}")
        manifest, _ = ingest.run(study)
    split = _read(Splits, study.splits_path)
    wanted: dict[str, Any] = study.settings.sections("split")
    if (
        split is None
        or split.meta["settings"] != wanted
        or split.meta["manifest"] != manifest.digest
    ):
        say(f"splitting {study.name}")
        splits.run(study)
    meta_path = study.features_path(backbone) / "meta.json"
    meta = read_json(meta_path) if meta_path.is_file() else {}
    wanted = study.settings.sections("embed", "augment")
    if meta.get("settings") != wanted or meta.get("manifest") != manifest.digest:
        say(f"embedding {study.name} with {backbone}")
        features.run(study, backbone)


def adhoc_folder(study: Study, backbone: str, scenario: str, overrides: Mapping[str, Any]) -> Path:
    """Where a run with overrides is written: never over DVC's outputs, never read by `compare`."""
    for key in overrides:
        if key.split(".")[0] not in SCENARIO_SECTIONS:
            raise ConfigError(
                f"'{key}' cannot be overridden for one scenario: it would change the data that all scenarios share. "
                f"Overrides reach {', '.join(SCENARIO_SECTIONS)}; change params.yaml for the rest."
            )
    parts = [
        study.name,
        backbone,
        scenario,
        study.settings.model_dump(),
        study.scenario_settings.get(scenario, {}),
    ]
    return Path("results/adhoc") / digest_of(parts)[:16]


def reproduce() -> None:
    """Run `dvc repro` with this interpreter first on the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    code = subprocess.run(
        [sys.executable, "-m", "dvc", "repro"], env={**os.environ, "PATH": path}
    ).returncode
    if code:
        raise EquipoiseError(f"`dvc repro` ended with code {code}; its last lines say why.")


def _read(record: type[Manifest] | type[Splits], path: Path) -> Any:
    return record.read(path) if path.is_file() else None
