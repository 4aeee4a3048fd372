"""Vectors that other programs made -> the same feature store that a pass of a backbone fills."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from equipoise.core.config import Embed, Study
from equipoise.core.documents import FeatureSummary
from equipoise.core.errors import DataError
from equipoise.core.files import atomic_path, digest_of, file_digest, read_json, write_json
from equipoise.core.records import Manifest
from equipoise.core.text import counted, first_of
from equipoise.embed import backbones, formats
from equipoise.embed.store import write_index
from equipoise.embed.wanted import wanted_rows
from equipoise.ingest import matching, originals

#: The word that stands for the weights of vectors whose network is not known.
WEIGHTS = "imported"
#: Folder that the embed stage of dvc.yaml depends on; vectors elsewhere would be no dependency.
FOLDER = "features"
#: Endings of whole slides: a vector of `a.svs` is that of the picture `a.png`.
_SLIDE_SUFFIXES = frozenset({".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".bif", ".czi", ".dcm"})
#: Follows the word for imported vectors where rows were pooled, and is followed by how.
_POOLED = "/pooled-"
#: Which number stands for several rows of one image.
_POOLS: dict[str, Callable[..., np.ndarray]] = {"mean": np.mean, "max": np.max}


@dataclass(frozen=True)
class Imported:
    """What an import wrote.

    Attributes:
        summary: meta.json.
        remarks: Sentences about what was given beyond what the study needs.
    """

    summary: FeatureSummary
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class _Vectors:
    """The vectors of a study's images, of whatever names a file had for them.

    Attributes:
        of: (sha256, view) -> (num_features,).
        views: Augmented views beside each plain vector, 0 for none.
        problems: What is wrong, with counts and names.
        remarks: What is left out, with counts and names.
    """

    of: dict[tuple[str, int], np.ndarray]
    views: int
    problems: list[str]
    remarks: list[str]


def is_imported(settings: Embed, backbone: str) -> bool:
    """Whether the vectors of a name come from files."""
    return backbone in settings.features


def require_known(settings: Embed, backbone: str) -> None:
    """Refuse a name that is neither a backbone nor one whose vectors are given.

    Raises:
        ConfigError: It names the nearest one.
    """
    if not is_imported(settings, backbone):
        backbones.load_row(backbone)


def pool_of(pipeline: str) -> str:
    """How rows were pooled, of what meta.json says of the way of vectors; empty where they were not."""
    return pipeline.removeprefix(WEIGHTS).removeprefix(_POOLED)


def place(study: Study, backbone: str) -> Path:
    """Where the vectors of a name lie: a file or a folder."""
    return study.root / Path(study.settings.embed.features[backbone]).expanduser()


def advice_to_move(study: Study, backbone: str) -> str:
    """What to do so that DVC notices when the vectors change; empty where it does."""
    path = Path(os.path.abspath(place(study, backbone)))
    folders = [study.root / FOLDER, study.root / "data/raw" / study.name]
    for folder in folders:
        watched = Path(os.path.abspath(folder))
        if path.is_relative_to(watched):
            return _advice_about_links(watched, path)
    return (
        f"`dvc repro` would not notice when {path} changes: put the vectors, or links to the files, "
        f"into {FOLDER}/, and name that in embed.features"
    )


def _advice_about_links(watched: Path, path: Path) -> str:
    """DVC follows links to files, and none to folders inside the folder that it watches."""
    for parent in {file.parent for file in formats.files_of(path)}:
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
    vectors = _read(study, manifest, path)
    wanted = wanted_rows(manifest, vectors.views, settings.views_of)
    keys = list(zip(wanted["sha256"], wanted["view"]))
    problems = [*vectors.problems, *_lacking(wanted, vectors.of)]
    given = [(key, image) for key, image in zip(keys, wanted["image_id"]) if key in vectors.of]
    named = {key: image if key[1] == 0 else f"{image} (view {key[1]})" for key, image in given}
    problems += _unusable({named[key]: vectors.of[key] for key in named})
    if problems:
        told = "; ".join([*problems, *vectors.remarks])
        raise DataError(
            f"The vectors of {backbone} in {path} cannot be used: {told}. Correct them, "
            f"or leave these images out (ingest.skip)."
        )
    matrix = np.stack([vectors.of[key] for key in keys]).astype(np.float32)
    summary = _write(study, backbone, manifest, vectors.views, wanted, matrix)
    return Imported(summary, (*vectors.remarks, *_shared(matrix, wanted)))


def content_digest(study: Study, backbone: str) -> str:
    """Digest of the files behind a name, of their names inside it, and of how rows are pooled.

    A file that has kept its size and its time of change is not read again on this machine.

    Raises:
        DataError: When there is no such file.
    """
    path = place(study, backbone)
    memory = study.cache_path / "imported.json"
    known = _known_digests(memory)
    now: dict[str, list[str | int]] = {}
    for file in formats.files_of(path):
        state = file.stat()
        before = known.get(str(file.absolute()), [])
        same = before[:2] == [state.st_size, state.st_mtime_ns]
        digest = str(before[2]) if same else file_digest(file)
        now[str(file.absolute())] = [state.st_size, state.st_mtime_ns, digest]
    if any(known.get(name) != entry for name, entry in now.items()):
        known.update(now)
        write_json(memory, known)
    inside = path if path.is_dir() else path.parent
    names = [Path(file).relative_to(inside.absolute()).as_posix() for file in now]
    digests = [entry[2] for entry in now.values()]
    return digest_of([names, digests, study.settings.embed.pool])


def _known_digests(memory: Path) -> dict[str, list[str | int]]:
    try:
        return read_json(memory)
    except DataError:  # none yet, or damaged: it only saves time
        return {}


# --- reading --------------------------------------------------------------------------------------


def _read(study: Study, manifest: Manifest, path: Path) -> _Vectors:
    """One vector for each image and view that the files name."""
    pool = study.settings.embed.pool
    pooled: dict[tuple[str, int], np.ndarray] = {}
    doubled: list[str] = []
    empty: list[str] = []
    for given in formats.read(path):
        key = (given.name, given.view)
        if not len(given.rows):
            empty.append(given.name)
        elif key in pooled or (len(given.rows) > 1 and pool is None):
            doubled.append(given.name)
            pooled.setdefault(key, one_vector(given.rows, pool))
        else:
            pooled[key] = one_vector(given.rows, pool)
    found = _Names.of(study, manifest, dict.fromkeys(name for name, _ in pooled))
    problems = found.problems()
    problems += _told(empty, "image has no row", "images have no row")
    advice = (
        "" if pool else "; embed.pool: mean or max makes one of them, a column `view` keeps them"
    )
    problems += _told(doubled, "image has several vectors", "images have several vectors", advice)
    of = {
        (found.sha256_of[name], view): vector
        for (name, view), vector in pooled.items()
        if name in found.sha256_of
    }
    remarks = _told(found.match.absent, "name is", "names are", " of no image of the study")
    views = max((view for _, view in of), default=0)
    return _Vectors(of, min(views, study.settings.embed.views), problems, remarks)


def one_vector(rows: np.ndarray, pool: str | None) -> np.ndarray:
    """The vector that stands for the rows of an image, float32 (num_features,).

    Args:
        rows: (num_rows, num_features), at least one.
        pool: mean, max, or None for the first row.
    """
    if len(rows) == 1 or pool is None:
        return np.asarray(rows[0], dtype=np.float32)
    return _POOLS[pool](rows.astype(np.float64), axis=0).astype(np.float32)


@dataclass(frozen=True)
class _Names:
    """Which image each name of a file means.

    Attributes:
        sha256_of: Name -> digest of the image's file.
        several: Names that mean an image which another name means too.
        match: Of the names that are no image id.
    """

    sha256_of: dict[str, str]
    several: list[str]
    match: matching.Match

    @classmethod
    def of(cls, study: Study, manifest: Manifest, names: Iterable[str]) -> _Names:
        """Find them: a name is an image id, a path, or a path without its ending or its folders."""
        table = manifest.table
        sha256_of_image = dict(zip(table["image_id"], table["sha256"]))
        image_of = {name: name for name in names if name in sha256_of_image}
        plain_of = {name: _plain(name) for name in names if name not in image_of}
        match = matching.Match({}, [], [], [], {})
        if plain_of:
            path_of = originals.locate(study, manifest)
            left = {path: image for image, path in path_of.items() if image not in image_of}
            match = matching.match(list(dict.fromkeys(plain_of.values())), list(left))
            for name, plain in plain_of.items():
                if plain in match.path_of:
                    image_of[name] = left[match.path_of[plain]]
        counts = Counter(image_of.values())
        several = [name for name, image in image_of.items() if counts[image] > 1]
        sha256_of = {name: sha256_of_image[image] for name, image in image_of.items()}
        return cls(sha256_of, several, match)

    def problems(self) -> list[str]:
        """Names that do not tell one image."""
        ambiguous = [f"{name}: {first_of(fits, 2)}" for name, fits in self.match.ambiguous.items()]
        return [
            *_told(self.several, "name means", "names mean", " an image that another means too"),
            *_told(ambiguous, "name fits several images", "names fit several images"),
        ]


def _plain(name: str) -> str:
    """A name as it is compared with paths; the ending of a whole slide is none of a picture."""
    plain = matching.plain_path(name)
    path = PurePosixPath(plain)
    return str(path.with_suffix("")) if path.suffix.casefold() in _SLIDE_SUFFIXES else plain


# --- checks ---------------------------------------------------------------------------------------


def _lacking(wanted: pd.DataFrame, of: Collection[tuple[str, int]]) -> list[str]:
    """Images and views without a vector."""
    keys = zip(wanted["sha256"], wanted["view"])
    is_there = np.array([key in of for key in keys])
    missing = wanted[~is_there]
    images = missing.loc[missing["view"] == 0, "image_id"].tolist()
    views = missing.loc[missing["view"] > 0]
    texts = [f"{row.image_id}, view {row.view}" for row in views.itertuples()]
    total = int((wanted["view"] == 0).sum())
    return [
        *_told(images, f"of {total} images has no vector", f"of {total} images have no vector"),
        *_told(texts, "view is missing", "views are missing"),
    ]


def _unusable(vectors: Mapping[str, np.ndarray]) -> list[str]:
    """Vectors that are not like the others, not finite, or the same number throughout."""
    lengths = Counter(len(vector) for vector in vectors.values())
    if not lengths:
        return []
    usual = lengths.most_common(1)[0][0]
    odd = [f"{name}: {len(vector)}" for name, vector in vectors.items() if len(vector) != usual]
    infinite = [name for name, vector in vectors.items() if not np.isfinite(vector).all()]
    constant = [
        name
        for name, vector in vectors.items()
        if len(vector) > 1 and np.isfinite(vector).all() and np.ptp(vector) == 0
    ]
    return [
        *_told(odd, "vector has", "vectors have", f" another length than {usual}"),
        *_told(infinite, "vector holds", "vectors hold", " numbers that are not finite"),
        *_told(constant, "vector is", "vectors are", " one number throughout"),
        *_all_the_same(list(vectors.values()), usual),
    ]


def _all_the_same(vectors: list[np.ndarray], length: int) -> list[str]:
    alike = [vector for vector in vectors if np.array_equal(vector, vectors[0])]
    if len(vectors) > 1 and len(alike) == len(vectors) and np.ptp(vectors[0]) > 0:
        return [f"all {len(vectors)} vectors of {length} numbers are the same"]
    return []


def _shared(matrix: np.ndarray, wanted: pd.DataFrame) -> list[str]:
    """Different files with the same plain vector: copies of a picture, or a mistake of who made them."""
    plain = (wanted["view"] == 0).to_numpy()
    digests = pd.Series([vector.tobytes() for vector in matrix[plain]])
    images = wanted.loc[plain, "image_id"].to_numpy()[digests.duplicated().to_numpy()]
    return _told(list(images), "image has", "images have", " the vector of another image")


def _told(names: list[str], one: str, several: str, after: str = "") -> list[str]:
    """How many there are, and the first of them; nothing where there is none."""
    if not names:
        return []
    noun = one if len(names) == 1 else several
    return [f"{len(names)} {noun}{after} ({first_of(names, 5, ', ')})"]


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
