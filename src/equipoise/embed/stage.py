"""The one pass: decode -> one traced resize + scaling + backbone (the same that serves) -> feature store."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from equipoise.core.config import Study
from equipoise.core.errors import DataError
from equipoise.core.files import digest_of, file_digest, write_json, write_table
from equipoise.core.records import Manifest, minority_labels
from equipoise.embed import backbones
from equipoise.embed.embedder import Embedder, pipeline_of
from equipoise.embed.shards import SHARDS, _assemble, _embed, _find, _Pass
from equipoise.ingest import originals


def wanted_rows(manifest: Manifest, views: int, views_of: str) -> pd.DataFrame:
    """The distinct (sha256, view) to embed, with one image of each: plain ones first, then view by view."""
    plain = manifest.table.drop_duplicates("sha256")[["sha256", "image_id", "label"]]
    chosen = (
        plain
        if views_of == "all"
        else plain[plain["label"].isin(minority_labels(manifest.counts()))]
    )
    frames = [plain.assign(view=0), *(chosen.assign(view=view) for view in range(1, views + 1))]
    return pd.concat(frames, ignore_index=True)[["sha256", "view", "image_id"]]


def run(study: Study, backbone: str) -> dict[str, Any]:
    """Embed every distinct picture and view of a study that the shards lack, and assemble the feature folder.

    Shards lie outside DVC's outputs and are keyed by content, so a killed run goes on where it was, a new split needs
    no pass, and new images cost only themselves. `meta.json` counts the passes behind the features; how many this run
    made stands in the last line of `passes.jsonl` beside the shards, so that a resumed run leaves the same outputs.

    Returns:
        The contents of meta.json, with `passes_now` and `folder`.

    Raises:
        ConfigError: When float16 cannot tell the images apart.
        DataError: When an image has changed since ingest, or a feature is not a finite number.
    """
    manifest, wanted, key, embedder, works = _prepare(study, backbone)
    weights = study.settings.embed.weights_for(backbone)
    parts: list[tuple[Path, np.ndarray, np.ndarray]] = []
    passes = {"images": 0, "views": 0}
    computed, start = 0, time.monotonic()
    for work, rows in works:
        folder = work.folder
        missing = _find(folder, rows, parts)
        todo = [tuple(row) for row in missing[["sha256", "view", "path"]].itertuples(index=False)]
        _embed(work, todo, embedder, study.engine)
        left = _find(folder, missing, parts) if len(missing) else missing
        if len(left):
            raise DataError(
                f"{len(left)} features vanished from {folder} while they were made. Run embed again."
            )
        computed += len(missing)
        passes["views" if work.policy else "images"] = len(rows)
    seconds = round(time.monotonic() - start, 3)
    folder = study.features_path(backbone)
    digest = _assemble(
        folder / "features.npy", parts, (len(wanted), embedder.num_features), backbone
    )
    write_table(folder / "index.parquet", wanted[["sha256", "view"]], {})
    meta = {
        **key,
        "study": study.name,
        "weights": weights if weights in ("imagenet", "random") else "file",
        "manifest": manifest.digest,
        "settings": study.settings.sections("embed", "augment"),
        "passes": len(wanted),
        "passes_of": passes,
        "num_features": embedder.num_features,
        "digest": digest_of([digest, file_digest(folder / "index.parquet")]),
    }
    write_json(folder / "meta.json", meta)
    with open(SHARDS / "passes.jsonl", "a", encoding="utf-8") as journal:
        line = {
            "study": study.name,
            "backbone": backbone,
            "image_size_px": embedder.size_px,
            "passes": len(wanted),
        }
        journal.write(json.dumps({**line, "passes_now": computed, "seconds": seconds}) + "\n")
    return {**meta, "passes_now": computed, "folder": str(folder)}


def passes_left(study: Study, backbone: str) -> int:
    """Passes that `run` would make now. Builds the backbone: features are kept under the digest of its weights."""
    return sum(len(_find(work.folder, rows, [])) for work, rows in _prepare(study, backbone)[-1])


def _prepare(
    study: Study, backbone: str
) -> tuple[Manifest, pd.DataFrame, dict[str, Any], Embedder, list[tuple[_Pass, pd.DataFrame]]]:
    settings = study.settings.embed
    manifest = Manifest.read(study.manifest_path)
    wanted = wanted_rows(manifest, settings.views, settings.views_of)
    wanted["path"] = wanted["image_id"].map(originals.locate(study, manifest))
    weights, pipeline = settings.weights_for(backbone), pipeline_of(settings)
    model = backbones.build(backbone, weights, settings.image_size_px, pipeline)
    key: dict[str, Any] = {
        "backbone": backbone,
        "weights_digest": backbones.weights_digest(model),
        "image_size_px": settings.image_size_px,
        "pipeline": pipeline,
    }
    works = []
    for augmented, rows in wanted.groupby(wanted["view"] > 0, sort=True):
        policy = study.settings.augment if augmented else None
        folder = (
            SHARDS / digest_of({**key, "augment": policy.model_dump() if policy else None})[:24]
        )
        model_of = (backbone, key["weights_digest"], settings.image_size_px, pipeline)
        works.append((_Pass(*model_of, study.raw, policy, settings.batch_size, folder), rows))
    return manifest, wanted, key, Embedder(model, settings.image_size_px, pipeline), works
