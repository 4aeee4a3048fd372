"""Vectors that other programs made -> the same feature store that a pass of a backbone fills."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from equipoise.core.config import Embed, Settings, Study
from equipoise.core.documents import FeatureSummary
from equipoise.core.errors import ConfigError, DataError
from equipoise.core.files import atomic_path, digest_of, file_digest, read_json, write_json
from equipoise.core.records import Manifest
from equipoise.core.text import counted
from equipoise.embed import backbones, encoders, formats, given
from equipoise.embed.shards import FeatureKey
from equipoise.embed.store import write_index
from equipoise.embed.wanted import wanted_rows

#: The word that stands for the weights of vectors whose network is not known.
WEIGHTS = "imported"
#: Folder that the embed stage of dvc.yaml depends on; vectors elsewhere would be no dependency.
FOLDER = "features"
#: Follows the word for imported vectors where rows were pooled, and is followed by how.
_POOLED = "/pooled-"


@dataclass(frozen=True)
class Imported:
    """What an import wrote.

    Attributes:
        summary: meta.json.
        remarks: Sentences about what was given beyond what the study needs.
    """

    summary: FeatureSummary
    remarks: tuple[str, ...]


def is_imported(settings: Embed, backbone: str) -> bool:
    """Whether the vectors of a name come from files."""
    return backbone in settings.features


def require_known(settings: Embed, backbone: str) -> None:
    """Refuse a name that is neither a backbone nor one whose vectors are given.

    Raises:
        ConfigError: It names the nearest one.
    """
    if not is_imported(settings, backbone):
        backbones.require_known(backbone, settings.weights_for(backbone))


def refuse_finetuning(settings: Settings, backbone: str) -> None:
    """Refuse to train a network end to end where there is none.

    Raises:
        ConfigError: It names the settings.
    """
    modes = (settings.train.mode, settings.tune.mode)
    if is_imported(settings.embed, backbone) and "finetune" in modes:
        raise ConfigError(
            f"The vectors of {backbone} were imported (embed.features), so there is no network to "
            f"fine-tune. Set train.mode and tune.mode to probe, or take {backbone} off run.backbones."
        )


def pool_of(pipeline: str) -> str:
    """How rows were pooled, of what meta.json says of the way of vectors; empty where they were not."""
    return pipeline.removeprefix(WEIGHTS).removeprefix(_POOLED)


def place(study: Study, backbone: str) -> Path:
    """Where the vectors of a name lie: a file or a folder."""
    return study.root / Path(study.settings.embed.features[backbone]).expanduser()


def advice_to_move(study: Study, backbone: str) -> str:
    """What to do so that DVC notices when vectors, or the file of a network, change; empty where it does."""
    settings = study.settings.embed
    if is_imported(settings, backbone):
        path = place(study, backbone)
        return _advice(study, path, formats.files_of(path), "the vectors, or links to the files,")
    weights = settings.weights_for(backbone)
    network = encoders.place(weights, study.root) if encoders.is_encoder(weights) else None
    if network is None or not network.exists():
        return ""
    files = list(network.iterdir()) if network.is_dir() else [network]
    return _advice(study, network, files, "it")


def _advice(study: Study, path: Path, files: Sequence[Path], what: str) -> str:
    """What to do so that DVC notices when a file or the files of a folder change; empty where it does."""
    path = Path(os.path.abspath(path))
    folders = [study.root / FOLDER, study.root / "data/raw" / study.name]
    for folder in folders:
        watched = Path(os.path.abspath(folder))
        if path.is_relative_to(watched):
            return _advice_about_links(watched, files)
    return (
        f"`dvc repro` would not notice when {path} changes: put {what} into {FOLDER}/, and name that "
        f"in params.yaml"
    )


def _advice_about_links(watched: Path, files: Sequence[Path]) -> str:
    """DVC follows links to files, and none to folders inside the folder that it watches."""
    for parent in {Path(os.path.abspath(file)).parent for file in files}:
        inside = parent
        while inside != watched:
            if inside.is_symlink():
                return (
                    f"`dvc repro` does not follow the link {inside} to a folder: put links to its files "
                    f"there instead (`cp -rs FOLDER {inside.relative_to(watched.parent)}`), or the files"
                )
            inside = inside.parent
    return ""


def run(study: Study, backbone: str) -> Imported:
    """Read the vectors of every image, check them, and write the feature store.

    Raises:
        DataError: For images without a vector, and for vectors that are doubled, not finite,
            constant or of unlike length; it says how many, and names some.
    """
    settings = study.settings.embed
    manifest = Manifest.read(study.manifest_path)
    path = place(study, backbone)
    vectors = given.read(study, manifest, path)
    views = min(vectors.views, settings.views)
    wanted = wanted_rows(manifest, views, settings.views_of)
    plain: dict[str, np.ndarray] = {}
    augmented: dict[str, np.ndarray] = {}
    for row in wanted.itertuples():
        vector = vectors.of.get(FeatureKey(row.sha256, row.view))
        if vector is not None and row.view:
            augmented[f"{row.image_id}, view {row.view}"] = vector
        elif vector is not None:
            plain[row.image_id] = vector
    problems = vectors.problems + given.lacking(wanted, vectors.of)
    problems += given.unusable({**plain, **augmented})
    if problems:
        told = "; ".join(problems + vectors.left_out)
        raise DataError(
            f"The vectors of {backbone} in {path} cannot be used: {told}. Correct them, "
            f"or leave these images out (ingest.skip)."
        )
    # Plain ones come first in `wanted` too, and views after them.
    matrix = np.stack([*plain.values(), *augmented.values()])
    summary = _write(study, backbone, manifest, views, wanted, matrix)
    return Imported(summary, (*vectors.left_out, *given.alike(plain)))


def content_digest(study: Study, backbone: str) -> str:
    """Digest of the files behind a name, of their names inside it, and of how rows are pooled.

    A file that has kept its size and its time of change is not read again on this machine.

    Raises:
        DataError: When there is no such file.
    """
    path = place(study, backbone)
    memory = study.cache_path / "imported.json"
    known = _known_digests(memory)
    inside = path if path.is_dir() else path.parent
    digest_of_name = {}
    changed = False
    for file in formats.files_of(path):
        state = file.stat()
        key = f"{file.absolute()} {state.st_size} {state.st_mtime_ns}"
        if key not in known:
            known[key] = file_digest(file)
            changed = True
        digest_of_name[file.relative_to(inside).as_posix()] = known[key]
    if changed:
        write_json(memory, known)
    return digest_of([digest_of_name, study.settings.embed.pool])


def _known_digests(memory: Path) -> dict[str, str]:
    """File, size and time of change -> digest; empty where nothing is known or the file is damaged."""
    try:
        known = read_json(memory)
    except DataError:
        return {}
    return known if isinstance(known, dict) else {}


# --- writing --------------------------------------------------------------------------------------


def _write(
    study: Study,
    backbone: str,
    manifest: Manifest,
    views: int,
    wanted: pd.DataFrame,
    matrix: np.ndarray,
) -> FeatureSummary:
    """Write features.npy, index.parquet and meta.json."""
    folder = study.features_path(backbone)
    with atomic_path(folder / "features.npy") as temporary, open(temporary, "wb") as handle:
        np.save(handle, matrix, allow_pickle=False)
    digest = write_index(folder, wanted, file_digest(folder / "features.npy"))
    pool = study.settings.embed.pool
    summary = FeatureSummary(
        backbone=backbone,
        weights_digest=content_digest(study, backbone),
        image_size_px=0,
        pipeline=WEIGHTS if pool is None else f"{WEIGHTS}{_POOLED}{pool}",
        study=study.name,
        weights=WEIGHTS,
        manifest=manifest.digest,
        settings=study.settings.sections("embed", "augment"),
        num_features=matrix.shape[1],
        views=views,
        digest=digest,
    )
    summary.write(folder / "meta.json")
    return summary


def result_text(done: Imported, path: Path, folder: Path) -> str:
    """Say what was imported, from where, and what was left out."""
    summary = done.summary
    number = counted(summary.views or 0, "view")
    said = (
        f"vectors of {summary.num_features} numbers from {path} in {folder}, {number} of each image"
    )
    return "; ".join([said, *done.remarks])
