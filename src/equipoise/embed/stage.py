"""The one pass: pictures -> the network that also serves -> feature store."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from equipoise.core.config import Engine, Study
from equipoise.core.documents import FeatureSummary
from equipoise.core.errors import DataError
from equipoise.core.records import Manifest
from equipoise.embed import backbones, encoders, imported, journal
from equipoise.embed.embedder import Embedder, pipeline_of
from equipoise.embed.journal import PassRecord
from equipoise.embed.passes import SHARD_ROWS, Row, ShardMaker, make_shards
from equipoise.embed.shards import NetworkKey, ShardPart, assemble, find_finished
from equipoise.embed.store import write_index
from equipoise.embed.wanted import wanted_rows
from equipoise.ingest import originals

#: Makes an embedder of a Keras model, its input size in pixels and its pipeline.
MakeEmbedder = Callable[[object, int, str], Embedder]


class EmbedResult(NamedTuple):
    """Features as they were written.

    Attributes:
        summary: meta.json.
        folder: Where they lie.
        passes_now: The passes that this run made.
        said: What there is to say of imported vectors; empty where a backbone made them.
    """

    summary: FeatureSummary
    folder: Path
    passes_now: int
    said: str = ""


class Work(NamedTuple):
    """Who makes the features of plain images, or of views, and the rows of the matrix they fill."""

    maker: ShardMaker
    rows: pd.DataFrame


@dataclass(frozen=True)
class PlannedPass:
    """What `run` will do.

    Attributes:
        manifest: The usable images.
        wanted: One row per feature: sha256, view, image_id, path; the rows of the matrix.
        key: What names the network.
        embedder: The network.
        works: Plain images first, then views where there are some.
    """

    manifest: Manifest
    wanted: pd.DataFrame
    key: NetworkKey
    embedder: Embedder
    works: list[Work]


def run(
    study: Study,
    backbone: str,
    make_embedder: MakeEmbedder = Embedder,
    shard_rows: int = SHARD_ROWS,
) -> EmbedResult:
    """Embed every distinct picture and view that the shards lack, and assemble the features.

    Shards lie outside DVC's outputs and are keyed by content, so a killed run goes on where it was,
    a new split needs no pass, and new images cost only themselves. `meta.json` counts the passes
    behind the features; how many this run made stands in the last line of `passes.jsonl` beside the
    shards, so that a resumed run leaves the same outputs.

    Where `embed.features` names the backbone, its vectors are read from files instead.

    Args:
        study: Its manifest must be there.
        backbone: A name of `run.backbones`.
        make_embedder: Makes the embedder of this process.
        shard_rows: Features in a shard, about.

    Raises:
        ConfigError: When float16 cannot tell the images apart.
        DataError: When an image has changed since ingest, or a feature is not a finite number.
    """
    folder = study.features_path(backbone)
    if imported.is_imported(study.settings.embed, backbone):
        done = imported.run(study, backbone)
        said = imported.result_text(done, imported.place(study, backbone), folder)
        return EmbedResult(done.summary, folder, passes_now=0, said=said)
    plan = plan_passes(study, backbone, make_embedder)
    start = time.monotonic()
    parts: list[ShardPart] = []
    passes_now = 0
    for work in plan.works:
        made = _make_missing(work, plan.embedder, study.engine, shard_rows)
        parts += made.parts
        passes_now += made.passes
    seconds = round(time.monotonic() - start, 3)
    summary = _write_features(study, plan, parts, folder)
    record = PassRecord(
        study=study.name,
        backbone=backbone,
        image_size_px=summary.image_size_px,
        passes=summary.passes,
        passes_now=passes_now,
        seconds=seconds,
    )
    journal.note(study.cache_path, record)
    return EmbedResult(summary, folder, passes_now)


def result_text(result: EmbedResult) -> str:
    """Say what was embedded, where it lies, and how many passes it took now."""
    if result.said:
        return result.said
    summary = result.summary
    warning = ""
    if summary.weights == "random":
        warning = " (random weights: to try the program, not for results)"
    return (
        f"{summary.passes} features of {summary.num_features} numbers in {result.folder}{warning}; "
        f"{result.passes_now} backbone passes now"
    )


def passes_left(study: Study, backbone: str) -> int:
    """Count the passes that `run` would make now.

    This builds the backbone, because features are kept under the digest of its weights.
    """
    plan = plan_passes(study, backbone)
    return sum(len(find_finished(work.maker.folder, work.rows).missing) for work in plan.works)


def plan_passes(study: Study, backbone: str, make_embedder: MakeEmbedder = Embedder) -> PlannedPass:
    """Build the backbone and list the features that the study needs from it."""
    settings = study.settings.embed
    manifest = Manifest.read(study.manifest_path)
    wanted = wanted_rows(manifest, settings.views, settings.views_of)
    path_of = originals.locate(study, manifest)
    wanted["path"] = wanted["image_id"].map(path_of)
    size_px = settings.image_size_px
    weights = settings.weights_for(backbone)
    pipeline = pipeline_of(settings, manifest.grey_scale)
    pipeline += encoders.pipeline_part(weights, study.root)
    network = backbones.build(backbone, weights, size_px, pipeline, study.root)
    key = NetworkKey(
        backbone=backbone,
        weights_digest=backbones.weights_digest(network),
        image_size_px=size_px,
        pipeline=pipeline,
    )
    plain = wanted["view"] == 0
    works = []
    for rows, policy in ((wanted[plain], None), (wanted[~plain], study.settings.augment)):
        if rows.empty:
            continue
        maker = ShardMaker(
            key=key,
            raw=study.raw,
            policy=policy,
            batch_size=settings.batch_size,
            cache=study.cache_path,
        )
        works.append(Work(maker, rows))
    embedder = make_embedder(network, size_px, pipeline)
    return PlannedPass(manifest, wanted, key, embedder, works)


class _Made(NamedTuple):
    """Where the features of some rows lie, and how many of them had to be made."""

    parts: list[ShardPart]
    passes: int


def _make_missing(work: Work, embedder: Embedder, engine: Engine, shard_rows: int) -> _Made:
    folder = work.maker.folder
    before = find_finished(folder, work.rows)
    if before.missing.empty:
        return _Made(before.parts, passes=0)
    columns = before.missing[["sha256", "view", "path"]]
    rows = [Row(*values) for values in columns.itertuples(index=False)]
    make_shards(work.maker, rows, embedder, engine, shard_rows)
    now = find_finished(folder, before.missing)
    if len(now.missing):
        raise DataError(
            f"{len(now.missing)} features vanished from {folder} while they were made. Run embed again."
        )
    return _Made(before.parts + now.parts, passes=len(rows))


def _write_features(
    study: Study, plan: PlannedPass, parts: list[ShardPart], folder: Path
) -> FeatureSummary:
    """Write features.npy, index.parquet and meta.json."""
    shape = (len(plan.wanted), plan.embedder.num_features)
    matrix_digest = assemble(folder / "features.npy", parts, shape, plan.key.backbone)
    digest = write_index(folder, plan.wanted, matrix_digest)
    passes_of = {"images": 0, "views": 0}
    for work in plan.works:
        passes_of[work.maker.noun] = len(work.rows)
    summary = FeatureSummary(
        **asdict(plan.key),
        study=study.name,
        weights=_origin(study, plan.key.backbone),
        manifest=plan.manifest.digest,
        settings=study.settings.sections("embed", "augment"),
        passes=len(plan.wanted),
        passes_of=passes_of,
        num_features=plan.embedder.num_features,
        digest=digest,
    )
    summary.write(folder / "meta.json")
    return summary


def _origin(study: Study, backbone: str) -> str:
    """What the weights are, in a word or as KerasHub calls them; a path is of one machine only."""
    weights = study.settings.embed.weights_for(backbone)
    is_published = encoders.is_preset(weights) and encoders.place(weights, study.root) is None
    if weights in ("imagenet", "random") or is_published:
        return weights
    return "file"
