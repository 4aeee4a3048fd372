"""Raw folder -> manifest: walk, verify by full decode, hash, read the patient, find copies, quarantine with reasons."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from equipoise.core import images, parallel
from equipoise.core.config import Study
from equipoise.core.errors import ConfigError, DataError, unknown_name
from equipoise.core.files import atomic_path, write_json
from equipoise.core.records import Manifest, class_table, imbalance_ratio, minority_labels
from equipoise.ingest import duplicates
from equipoise.ingest.datasets.base import Dataset, Task, Unrecognised, open_dataset
from equipoise.ingest.originals import _files, _pseudonyms
from equipoise.ingest.pseudonyms import Pseudonyms

_PIECE = 16


_INTERNAL = ["pixels", "odd"]  # columns that end here


def run(study: Study) -> tuple[Manifest, dict[str, Any]]:
    """Read every image of a study once and write its manifest, quarantine list and summary.

    Raises:
        DataError: For a missing or empty folder, or when fewer than two classes are left.
        ConfigError: For a setting that does not fit the dataset.
    """
    settings = study.settings.ingest
    dataset, task = open_dataset(study)
    paths, ignored = _files(study, dataset)
    hashed = _pseudonyms(study, dataset)
    rows, thumbnails, quarantined = _read(study, dataset, task, paths)
    card, readings = dataset.card, list(dataset.card.readings)
    selected = _selected(rows, settings.only, study)
    left_out = int((~selected).sum())
    rows, thumbnails = rows[selected].reset_index(drop=True), thumbnails[selected]
    found = class_table(rows["label"].to_numpy(), rows[readings[0]], task.classes)
    if hashed:
        places = rows[["path", *readings]]
        rows = _hide(rows, readings, hashed)
        quarantined = [
            {**item, "image_id": hashed.of("image", item["image_id"])} for item in quarantined
        ]
        _write_places(study, rows["image_id"], places)
    order = np.argsort(rows["image_id"].to_numpy())
    rows, thumbnails = rows.iloc[order].reset_index(drop=True), thumbnails[order]
    near = _group(rows, thumbnails, readings)
    table, conflicts = _conflicts(rows, settings.trusted)
    table, copies = _drop_copies(table, settings.duplicates)
    quarantined += conflicts + copies
    table.insert(6, "patient_id", table[readings[0]])
    counts = class_table(table["label"].to_numpy(), table["patient_id"], task.classes)
    _every_class_present(study, counts, quarantined)
    meta = {
        "study": study.name,
        "dataset": study.dataset,
        "classes": list(task.classes),
        "positive_class": task.positive_class,
        "readings": readings,
        "official_reading": card.official_reading,
        "patient_ids": card.patient_ids,
        "label_conflicts": len(conflicts),
        "trusted": list(settings.trusted),
        "pseudonym_key": hashed.fingerprint if hashed else None,
        "settings": study.settings.sections("ingest"),
    }
    manifest = Manifest(table.drop(columns=_INTERNAL), meta).write(study.manifest_path)
    selection = ", ".join(f"{column}={value}" for column, value in sorted(settings.only.items()))
    summary = {
        **{
            key: meta[key]
            for key in ("study", "dataset", "classes", "positive_class", "patient_ids")
        },
        "source": card.source,
        "licence": card.licence,
        "citation": card.citation,
        "manifest": manifest.digest,
        "images": len(table),
        "patients": int(table["patient_id"].nunique()),
        "pseudonymised": hashed is not None,
        "files_seen": len(paths),
        "other_files_ignored": ignored,
        "selection": selection,
        "not_selected": left_out,
        "quarantined": len(quarantined),
        "near_copies": near,
        "label_conflicts": len(conflicts),
        "flagged": {
            flag: int(table["odd"].map(lambda odd, flag=flag: flag in odd).sum())
            for flag in images.FLAGS
        },
        "by_class": counts,
        "minority_classes": [task.classes[label] for label in minority_labels(manifest.counts())],
        "imbalance_ratio": imbalance_ratio(manifest.counts()),
        # Copies belong to what was published: the count is taken before they are dropped.
        "completeness": task.completeness(
            {name: row["images"] for name, row in found.items()}, selection
        ),
    }
    with atomic_path(study.manifest_path.with_suffix(".quarantine.csv")) as path:
        frame = pd.DataFrame(quarantined, columns=["image_id", "reason"])
        frame.sort_values("image_id").to_csv(path, index=False, lineterminator="\n")
    write_json(study.manifest_path.with_suffix(".json"), summary)
    return manifest, {**summary, "quarantine": quarantined}


def _read(
    study: Study, dataset: Dataset, task: Task, paths: Sequence[str]
) -> tuple[pd.DataFrame, np.ndarray, list[dict[str, str]]]:
    """One row and one thumbnail per usable file; the rest with the reason why not."""
    rows: list[dict[str, Any]] = []
    thumbnails: list[np.ndarray] = []
    quarantined: list[dict[str, str]] = []
    # Small images are read faster than threads can be handed over: a few at a time.
    pieces = [paths[start : start + _PIECE] for start in range(0, len(paths), _PIECE)]
    read = parallel.in_threads(
        lambda piece: [_examine(study.raw, path, dataset, task) for path in piece], pieces
    )
    examined = (result for piece in read for result in piece)
    for row, thumbnail in parallel.progress(examined, f"reading {study.raw}", len(paths), "images"):
        if thumbnail is None:
            quarantined.append(row)
        else:
            rows.append(row)
            thumbnails.append(thumbnail)
    if not rows:
        raise DataError(
            f"None of the {len(paths)} image files in {study.raw} can be used for '{study.dataset}'. "
            f"First reason: {quarantined[0]['reason']}"
        )
    return pd.DataFrame(rows), np.stack(thumbnails), quarantined


def _examine(
    raw: Path, path: str, dataset: Dataset, task: Task
) -> tuple[dict[str, Any], np.ndarray | None]:
    """The row of one file and its thumbnail, or the reason why it cannot be used and nothing."""
    try:
        path.encode()
    except UnicodeEncodeError:
        readable = os.fsencode(path).decode("utf-8", "backslashreplace")
        return {"image_id": readable, "reason": "the file name is not valid UTF-8"}, None
    try:
        parsed = dataset.parse(PurePosixPath(path))
        content = images.read(raw, path)
        pixels = images.decode(content)
    except Unrecognised as error:
        return {"image_id": path, "reason": f"not recognised: {error}"}, None
    except OSError as error:  # its full text holds the path
        return {"image_id": path, "reason": f"unreadable: {error.strerror}"}, None
    except ValueError as error:
        return {"image_id": path, "reason": f"unreadable: {error}"}, None
    thumbnail = duplicates.thumbnail(pixels)
    pixels_digest = hashlib.sha256(repr(pixels.shape).encode())
    pixels_digest.update(pixels.data)
    name = task.class_of(parsed.class_name)
    return {
        "image_id": path,
        "sha256": hashlib.sha256(content).hexdigest(),
        "pixels": pixels_digest.hexdigest(),
        "odd": images.flags(pixels, grey=True),
        "path": path,
        "label": task.classes.index(name),
        "class_name": name,
        **parsed.patients,
        "width_px": pixels.shape[1],
        "height_px": pixels.shape[0],
        "bytes": len(content),
        "grey_mean": round(float(thumbnail.mean()), 4),
        **parsed.columns,
    }, thumbnail


def _selected(rows: pd.DataFrame, only: Mapping[str, str], study: Study) -> np.ndarray:
    """Boolean (num_rows,): the images that `ingest.only` keeps."""
    kept = np.ones(len(rows), dtype=bool)
    for column, value in only.items():
        if column not in rows:
            raise unknown_name(
                "column",
                column,
                set(rows.columns) - set(_INTERNAL),
                f" of dataset '{study.dataset}'",
            )
        if not (rows[column] == value).any():
            raise ConfigError(
                f"ingest.only keeps {column} {value!r}, which no image has. Found are: "
                f"{', '.join(sorted(map(str, rows[column].unique()))[:10])}."
            )
        kept &= (rows[column] == value).to_numpy()
    if not kept.any():
        raise ConfigError("No image has all the values of ingest.only together.")
    return kept


def _hide(rows: pd.DataFrame, readings: list[str], hashed: Pseudonyms) -> pd.DataFrame:
    rows = rows.assign(image_id=[hashed.of("image", path) for path in rows["path"]], path="")
    for reading in readings:
        known = {value: hashed.of(f"patient/{reading}", value) for value in rows[reading].unique()}
        rows[reading] = rows[reading].map(known)
    return rows


def _write_places(study: Study, image_ids: pd.Series, places: pd.DataFrame) -> None:
    """The only file that leads from hashed ids back to people; it stays on this machine."""
    with atomic_path(study.places_path) as path:
        table = places.assign(image_id=image_ids)[["image_id", *places.columns]]
        table.sort_values("image_id").to_csv(path, index=False, lineterminator="\n")


def _group(rows: pd.DataFrame, thumbnails: np.ndarray, readings: list[str]) -> int:
    """Name the picture of every row, join the patients who share one, and return the number of near copies.

    Exact copies have the same pixels whatever the file; near copies are found by `duplicates`.
    """
    digests, first, code = np.unique(
        rows["pixels"].to_numpy(), return_index=True, return_inverse=True
    )
    pairs = duplicates.near_pairs(thumbnails[first])
    group = _components(pairs[:, 0], pairs[:, 1], len(digests))
    rows.insert(
        2,
        "picture",
        digests[pd.Series(np.arange(len(digests))).groupby(group).transform("min")][code],
    )
    for reading in readings:
        people, names = pd.factorize(rows[reading], sort=True)
        whole = _components(people, len(names) + group[code], len(names) + len(digests))[
            : len(names)
        ]
        smallest = pd.Series(np.arange(len(names))).groupby(whole).transform("min").to_numpy()
        rows[reading] = np.asarray(names)[smallest][people]
    return len(digests) - len(np.unique(group))


def _components(start: np.ndarray, end: np.ndarray, size: int) -> np.ndarray:
    """The connected component of each node of a graph, int (size,)."""
    graph = coo_array((np.ones(len(start), dtype=np.int8), (start, end)), shape=(size, size))
    return connected_components(graph, directed=False)[1]


def _conflicts(
    rows: pd.DataFrame, trusted: Sequence[str]
) -> tuple[pd.DataFrame, list[dict[str, str]]]:
    """Quarantine pictures filed under two classes, but for the images whose label the user vouches for."""
    if unknown := sorted(set(trusted) - set(rows["image_id"])):
        raise ConfigError(
            f"ingest.trusted names {unknown[0]!r}, which is no usable image of this study."
        )
    vouched = rows["image_id"].isin(trusted)
    for _, labels in rows[vouched].groupby("pixels")["class_name"]:
        if labels.nunique() > 1:
            names = ", ".join(rows.loc[labels.index, "image_id"])
            raise DataError(
                f"ingest.trusted vouches for {names}, the same pixels under two classes. Trust one."
            )
    conflict = (rows.groupby("picture")["label"].transform("nunique") > 1) & ~vouched
    quarantined = []
    for digest in rows.loc[conflict, "picture"].unique():
        group = rows[rows["picture"] == digest]
        classes = " and ".join(sorted(group["class_name"].unique()))
        for name, pixels in group.loc[conflict, ["image_id", "pixels"]].itertuples(index=False):
            others = group[(group["image_id"] != name)]
            kind = "same" if (others["pixels"] == pixels).any() else "nearly the same"
            text = f"label conflict: {kind} picture as {others['image_id'].iloc[0]}, filed under {classes}; decide with"
            quarantined.append({"image_id": name, "reason": f"{text} ingest.trusted"})
    return rows[~conflict].reset_index(drop=True), quarantined


def _drop_copies(rows: pd.DataFrame, rule: str) -> tuple[pd.DataFrame, list[dict[str, str]]]:
    """Drop all but the first of each picture; near copies only under `drop_near`.

    A copy on the other published side stays, so that official results are those of the published sides.
    """
    if rule == "keep":
        return rows, []
    sides = [column for column in rows if str(column).startswith("official_split")]
    same = rows.groupby(["picture" if rule == "drop_near" else "pixels", *sides])
    first = same["image_id"].transform("first")
    surplus = rows["image_id"] != first
    exact = rows["pixels"] == same["pixels"].transform("first")
    quarantined = [
        {"image_id": name, "reason": f"{'exact' if is_exact else 'near'} duplicate of {original}"}
        for name, original, is_exact in zip(
            rows.loc[surplus, "image_id"], first[surplus], exact[surplus]
        )
    ]
    return rows[~surplus].reset_index(drop=True), quarantined


def _every_class_present(
    study: Study, counts: Mapping[str, Any], quarantined: list[dict[str, str]]
) -> None:
    empty = [name for name, row in counts.items() if row["images"] == 0]
    if empty:
        found = ", ".join(f"{name} {row['images']}" for name, row in counts.items())
        raise DataError(
            f"{study.raw} holds no image of class {', '.join(empty)} (found: {found}); {len(quarantined)} files were "
            f"left out{', the first: ' + quarantined[0]['reason'] if quarantined else ''}. A comparison needs every "
            f"class; check that the folder is complete."
        )
