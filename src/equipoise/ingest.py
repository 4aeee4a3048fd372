"""Raw folder -> manifest: walk, verify by full decode, hash, read the patient, quarantine with reasons."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from equipoise import images, parallel
from equipoise.config import Study
from equipoise.datasets import Unrecognised, load_dataset
from equipoise.errors import DataError
from equipoise.records import Manifest, atomic_path, class_table, minority_labels, write_json


def run(study: Study) -> tuple[Manifest, dict[str, Any]]:
    """Read every image of a study once and write its manifest, quarantine list and summary.

    Raises:
        DataError: For a missing or empty folder, or when fewer than two classes are left.
    """
    dataset = load_dataset(study.dataset)
    files, ignored = _walk(study.raw)
    rows: list[dict[str, Any]] = []
    quarantined: list[dict[str, str]] = []
    examined = parallel.in_threads(lambda path: _examine(study.raw, path, dataset), files)
    for result in parallel.progress(examined, f"reading {study.raw}", len(files), "images"):
        (quarantined if "reason" in result else rows).append(result)
    table = pd.DataFrame(rows)
    if not rows:
        first = f" First reason: {quarantined[0]['reason']}" if quarantined else ""
        raise DataError(
            f"None of the {len(files)} image files in {study.raw} can be used for '{study.dataset}'.{first}"
        )
    table, copies = _duplicates(table, list(dataset.CARD.readings), drop=study.settings.ingest.duplicates == "drop")
    quarantined += copies
    table.insert(5, "patient_id", table[next(iter(dataset.CARD.readings))])
    counts = class_table(table["label"].to_numpy(), table["patient_id"], dataset.CARD.classes)
    empty = [name for name, row in counts.items() if row["images"] == 0]
    if empty:
        found = ", ".join(f"{name} {row['images']}" for name, row in counts.items())
        raise DataError(
            f"{study.raw} holds no image of class {', '.join(empty)} (found: {found}); {len(quarantined)} files were "
            f"left out{', the first: ' + quarantined[0]['reason'] if quarantined else ''}. A comparison needs every "
            f"class; check that the folder is complete."
        )
    card = dataset.CARD
    meta = {
        "study": study.name,
        "dataset": study.dataset,
        "classes": list(card.classes),
        "positive_class": card.positive_class,
        "readings": list(card.readings),
        "settings": study.settings.sections("ingest"),
    }
    manifest = Manifest(table, meta).write(study.manifest_path)
    minority = minority_labels(manifest.counts())
    summary = {
        **{key: meta[key] for key in ("study", "dataset", "classes", "positive_class")},
        "source": card.source,
        "licence": card.licence,
        "citation": card.citation,
        "manifest": manifest.digest,
        "images": len(table),
        "patients": int(table["patient_id"].nunique()),
        "files_seen": len(files),
        "other_files_ignored": ignored,
        "quarantined": len(quarantined),
        "by_class": counts,
        "minority_classes": [card.classes[label] for label in minority],
        "imbalance_ratio": round(float(manifest.counts().max() / manifest.counts().min()), 4),
        "completeness": card.completeness({name: row["images"] for name, row in counts.items()}),
    }
    with atomic_path(study.manifest_path.with_suffix(".quarantine.csv")) as path:
        frame = pd.DataFrame(quarantined, columns=["image_id", "reason"])
        frame.sort_values("image_id").to_csv(path, index=False, lineterminator="\n")
    write_json(study.manifest_path.with_suffix(".json"), summary)
    return manifest, {**summary, "quarantine": quarantined}


def _walk(folder: Path) -> tuple[list[Path], int]:
    if not folder.is_dir():
        raise DataError(
            f"There is no folder {folder}. Put the originals there (untouched), or name their folder with ingest.raw."
        )
    files, ignored = [], 0
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        parts = path.relative_to(folder).parts
        hidden = "__MACOSX" in parts or any(part.startswith(".") for part in parts)
        if hidden or path.suffix.lower() not in images.SUFFIXES:
            ignored += 1
        else:
            files.append(path)
    if not files:
        raise DataError(
            f"{folder} holds no image file ({ignored} other files). Expected are files ending in "
            f"{', '.join(sorted(images.SUFFIXES))}."
        )
    return files, ignored


def _examine(raw: Path, path: Path, dataset: Any) -> dict[str, Any]:
    image_id = path.relative_to(raw).as_posix()
    try:
        image_id.encode()
    except UnicodeEncodeError:
        readable = os.fsencode(image_id).decode("utf-8", "backslashreplace")
        return {"image_id": readable, "reason": "the file name is not valid UTF-8"}
    try:
        parsed = dataset.parse(PurePosixPath(image_id))
        data = path.read_bytes()
        pixels = images.decode(data)
    except Unrecognised as error:
        return {"image_id": image_id, "reason": f"name not recognised: {error}"}
    except (OSError, ValueError) as error:
        return {"image_id": image_id, "reason": f"unreadable: {error}"}
    return {
        "image_id": image_id,
        "sha256": hashlib.sha256(data).hexdigest(),
        "path": image_id,
        "label": dataset.CARD.classes.index(parsed.class_name),
        "class_name": parsed.class_name,
        **parsed.patients,
        "width_px": pixels.shape[1],
        "height_px": pixels.shape[0],
        "bytes": len(data),
        **parsed.columns,
    }


def _duplicates(table: pd.DataFrame, readings: list[str], drop: bool) -> tuple[pd.DataFrame, list[dict[str, str]]]:
    """Join patients that share a picture; drop surplus copies; quarantine pictures filed under two classes."""
    for reading in readings:
        table[reading] = _joined(table[reading], table["sha256"])
    same = table.groupby("sha256")
    conflict = same["label"].transform("nunique") > 1
    quarantined = [
        {"image_id": name, "reason": f"label conflict: the same bytes are filed under {' and '.join(names)}"}
        for digest in table.loc[conflict, "sha256"].unique()
        for names in [sorted(table.loc[table["sha256"] == digest, "class_name"].unique())]
        for name in table.loc[table["sha256"] == digest, "image_id"]
    ]
    table = table[~conflict].reset_index(drop=True)
    if drop:
        first = table.groupby("sha256")["image_id"].transform("first")
        surplus = table["image_id"] != first
        for name, original in zip(table.loc[surplus, "image_id"], first[surplus]):
            quarantined.append({"image_id": name, "reason": f"exact duplicate of {original}"})
        table = table[~surplus].reset_index(drop=True)
    return table, quarantined


def _joined(patients: pd.Series, digests: pd.Series) -> pd.Series:
    """Give patients that share a picture one id: the smallest of theirs."""
    codes, names = pd.factorize(patients, sort=True)
    pictures, _ = pd.factorize(digests)
    size = len(names)
    graph = coo_array((np.ones(len(codes)), (codes, pictures + size)), shape=(size + pictures.max() + 1,) * 2)
    _, component = connected_components(graph, directed=False)
    smallest = pd.Series(np.arange(size)).groupby(component[:size]).transform("min").to_numpy()
    return pd.Series(np.asarray(names)[smallest][codes], index=patients.index)
