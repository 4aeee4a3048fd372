"""Which image each vector of a file belongs to, and what makes vectors unusable: how many, and which."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
import pandas as pd

from equipoise.core.config import Study
from equipoise.core.records import Manifest
from equipoise.core.text import first_of
from equipoise.embed import formats
from equipoise.embed.shards import FeatureKey
from equipoise.ingest import matching, originals

#: Endings of whole slides: a vector of `a.svs` is that of the picture `a.png`.
_SLIDE_SUFFIXES = frozenset({".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".bif", ".czi", ".dcm"})
_SEVERAL = "; embed.pool: mean or max makes one of them, a column `view` keeps them"


@dataclass(frozen=True)
class Vectors:
    """The vectors of a study's images, by whatever names a file had for them.

    Attributes:
        of: (sha256, view) -> float32 (num_features,).
        views: The highest view, 0 where none is given.
        problems: What is wrong, with counts and names.
        left_out: What the study does not need, with counts and names.
    """

    of: dict[FeatureKey, np.ndarray]
    views: int
    problems: list[str]
    left_out: list[str]


def read(study: Study, manifest: Manifest, path: Path) -> Vectors:
    """Read one vector for each image and view that the files name."""
    rows = _Rows.read(path, study.settings.embed.pool)
    names = list(dict.fromkeys(key.name for key in rows.vector_of))
    images = _Images.of(study, manifest, names)
    table = manifest.table
    sha256_of = dict(zip(table["image_id"], table["sha256"]))
    of: dict[FeatureKey, np.ndarray] = {}
    # Of two files with the same bytes the image with the first id lends its vector, in every format.
    for key in sorted(rows.vector_of, key=lambda key: images.of_name.get(key.name, "")):
        image = images.of_name.get(key.name)
        if image is not None:
            of.setdefault(FeatureKey(sha256_of[image], key.view), rows.vector_of[key])
    return Vectors(
        of=of,
        views=max((key.view for key in of), default=0),
        problems=[*images.problems(), *rows.problems],
        left_out=told(images.match.absent, "name is", "names are", " of no image of the study"),
    )


def one_vector(rows: np.ndarray, pool: str | None) -> np.ndarray:
    """The vector that stands for the rows of an image, float32 (num_features,).

    Args:
        rows: (num_rows, num_features), at least one.
        pool: mean, max, or None for the first row.
    """
    vector = rows[0]
    if len(rows) > 1 and pool == "mean":
        vector = rows.mean(axis=0, dtype=np.float64)
    elif len(rows) > 1 and pool == "max":
        vector = rows.max(axis=0)
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and that is told
        return np.asarray(vector, dtype=np.float32)


def told(names: Collection[str], one: str, several: str, after: str = "") -> list[str]:
    """How many there are, and the first of them; nothing where there is none.

    >>> told(["a.png", "b.png"], "image is", "images are", " dark")
    ['2 images are dark (a.png, b.png)']
    """
    if not names:
        return []
    noun = one if len(names) == 1 else several
    return [f"{len(names)} {noun}{after} ({first_of(list(names), 5, ', ')})"]


# --- rows and names -------------------------------------------------------------------------------


@dataclass(frozen=True)
class _NameAndView:
    """What a file calls an image, and the number of a view of it."""

    name: str
    view: int


@dataclass(frozen=True)
class _Rows:
    """What the files give, pooled.

    Attributes:
        vector_of: Name and view -> float32 (num_features,).
        problems: Names with several vectors, and with none.
    """

    vector_of: dict[_NameAndView, np.ndarray]
    problems: list[str]

    @classmethod
    def read(cls, path: Path, pool: str | None) -> _Rows:
        """Read and pool one image after another, so that memory never holds the tiles of two."""
        vector_of: dict[_NameAndView, np.ndarray] = {}
        doubled = []
        empty = []
        for given in formats.read(path):
            key = _NameAndView(given.name, given.view)
            if not len(given.rows):
                empty.append(given.name)
                continue
            if key in vector_of or (len(given.rows) > 1 and pool is None):
                doubled.append(given.name)
            vector_of.setdefault(key, one_vector(given.rows, pool))
        advice = "" if pool else _SEVERAL
        problems = told(empty, "image has no row", "images have no row")
        problems += told(
            doubled, "image has several vectors", "images have several vectors", advice
        )
        return cls(vector_of, problems)


@dataclass(frozen=True)
class _Images:
    """The image that each name of a file means.

    Attributes:
        of_name: Name -> image id.
        match: Of the names that are no image id.
    """

    of_name: dict[str, str]
    match: matching.Match

    @classmethod
    def of(cls, study: Study, manifest: Manifest, names: Iterable[str]) -> _Images:
        """Find them: a name is an image id, a path, or a path without its ending or its folders."""
        ids = set(manifest.table["image_id"])
        of_name = {name: name for name in names if name in ids}
        others = {name: _plain(name) for name in names if name not in ids}
        if not others:
            return cls(of_name, matching.Match({}, [], [], [], {}))
        image_of_path = {}
        for image, path in originals.locate(study, manifest).items():
            if image not in of_name:
                image_of_path[path] = image
        plain_names = list(dict.fromkeys(others.values()))
        match = matching.match(plain_names, list(image_of_path))
        for name, plain in others.items():
            if plain in match.path_of:
                of_name[name] = image_of_path[match.path_of[plain]]
        return cls(of_name, match)

    def problems(self) -> list[str]:
        """Names that do not tell one image."""
        counts = Counter(self.of_name.values())
        shared = [name for name, image in self.of_name.items() if counts[image] > 1]
        unclear = []
        for name, fits in self.match.ambiguous.items():
            unclear.append(f"{name}: {first_of(fits, 2)}")
        problems = told(shared, "name means", "names mean", " an image that another means too")
        problems += told(unclear, "name fits several images", "names fit several images")
        return problems


def _plain(name: str) -> str:
    """A name as it is compared with paths; the ending of a whole slide is none of a picture."""
    plain = matching.plain_path(name)
    path = PurePosixPath(plain)
    if path.suffix.casefold() in _SLIDE_SUFFIXES:
        return str(path.with_suffix(""))
    return plain


# --- checks ---------------------------------------------------------------------------------------


def lacking(wanted: pd.DataFrame, of: Collection[FeatureKey]) -> list[str]:
    """Images and views without a vector.

    Args:
        wanted: A row for each feature, see `wanted_rows`.
        of: Those that are there.
    """
    images = []
    views = []
    for row in wanted.itertuples():
        if FeatureKey(row.sha256, row.view) in of:
            continue
        if row.view:
            views.append(f"{row.image_id}, view {row.view}")
        else:
            images.append(row.image_id)
    total = int((wanted["view"] == 0).sum())
    problems = told(images, f"of {total} images has no vector", f"of {total} images have no vector")
    return problems + told(views, "view is missing", "views are missing")


def unusable(vectors: Mapping[str, np.ndarray]) -> list[str]:
    """Vectors that are not like the others, not finite, or the same number throughout.

    Args:
        vectors: Name -> (num_features,).
    """
    lengths = Counter(len(vector) for vector in vectors.values())
    usual = lengths.most_common(1)[0][0] if lengths else 0
    odd = []
    infinite = []
    constant = []
    for name, vector in vectors.items():
        if len(vector) != usual:
            odd.append(f"{name}: {len(vector)}")
        if not np.isfinite(vector).all():
            infinite.append(name)
        elif len(vector) > 1 and np.ptp(vector) == 0:
            constant.append(name)
    problems = told(odd, "vector has", "vectors have", f" another length than {usual}")
    problems += told(infinite, "vector holds", "vectors hold", " numbers that are not finite")
    problems += told(constant, "vector is", "vectors are", " one number throughout")
    if len(vectors) > 1 and len({vector.tobytes() for vector in vectors.values()}) == 1:
        problems.append(f"all {len(vectors)} vectors are the same")
    return problems


def alike(vectors: Mapping[str, np.ndarray]) -> list[str]:
    """Images with the vector of another: copies of a picture, or a mistake of who made them."""
    seen = set()
    images = []
    for image, vector in vectors.items():
        content = vector.tobytes()
        if content in seen:
            images.append(image)
        seen.add(content)
    return told(images, "image has", "images have", " the vector of another image")
