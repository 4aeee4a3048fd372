"""Raw folder -> manifest: read every image, find whose it is and which are copies, write what can be used.

Files that are left out are listed beside the manifest, each with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from equipoise.core import greylevels, images
from equipoise.core.config import Study
from equipoise.core.documents import ClassCount, GreyLevels, IngestSummary
from equipoise.core.errors import ConfigError, DataError, unknown_name
from equipoise.core.files import atomic_path
from equipoise.core.greylevels import Range
from equipoise.core.records import Manifest, class_table, imbalance_ratio, minority_labels
from equipoise.ingest import copies, fingerprint, headers, leftovers, masks, originals, quarantine
from equipoise.ingest.datasets.base import Card, Dataset, Task, open_dataset
from equipoise.ingest.leftovers import Listing
from equipoise.ingest.pseudonyms import Pseudonyms
from equipoise.ingest.quarantine import Quarantined
from equipoise.ingest.reading import INTERNAL_COLUMNS, Reader, ReadFiles
from equipoise.ingest.spellings import class_key

#: Values of a column that an error names.
_VALUES_NAMED = 10


@dataclass(frozen=True)
class Ingested:
    """What `run` gives.

    Attributes:
        manifest: One row per usable image, as written.
        summary: The counts, as written.
        quarantined: The files that were left out.
        remarks: Sentences for the user to judge, in no file: they may name patients.
    """

    manifest: Manifest
    summary: IngestSummary
    quarantined: list[Quarantined]
    remarks: tuple[str, ...]


@dataclass(frozen=True)
class _Tally:
    """What was counted on the way to the manifest; `IngestSummary` has these numbers under the same names."""

    files_seen: int
    other_files_ignored: int
    left_out: dict[str, int]
    selection: str
    not_selected: int
    near_copies: int
    alike: int
    label_conflicts: int
    quarantined: int
    completeness: str
    raw: str


def run(study: Study) -> Ingested:
    """Read every image of a study once and write its manifest, quarantine list and summary.

    Raises:
        DataError: For a missing or empty folder, or when fewer than two classes are left.
        ConfigError: For a setting that does not fit the dataset.
    """
    settings = study.settings.ingest
    dataset, task = open_dataset(study.dataset, study.raw, settings)
    # Before they are read: what changes meanwhile is noticed.
    files = fingerprint.list_files(study.raw)
    listing = originals.list_files(study.raw, dataset, settings)
    dataset = headers.add_headers(dataset, study.raw, listing.paths, settings)
    card = dataset.card
    readings = list(card.readings)
    pseudonyms = originals.load_pseudonyms(study.name, settings, card, study.root)
    read = _read_files(study, dataset, task, listing.paths)
    _require_columns(read, settings.columns, study.dataset)
    selected = _select(read, settings.only, study.dataset)
    selection = _selection_name(settings.only)
    # Copies belong to what was published: these are counted before copies are left out.
    published = _images_of_classes(selected.rows, task)
    if pseudonyms is not None:
        hidden = _hide(selected, readings, pseudonyms)
        _write_places(study.places_path, selected, hidden, readings)
        selected = hidden

    rows, alike = _join_copies(_sort(selected), readings, settings.near_copies)
    near_copies = rows["pixels"].nunique() - rows["picture"].nunique()
    consistent = copies.leave_out_conflicts(rows, settings.trusted)
    single = copies.leave_out_copies(consistent.rows, settings.duplicates)
    quarantined = selected.quarantined + consistent.quarantined + single.quarantined
    table = _with_patient_id(single.rows, readings[0])
    counts = _count_classes(table, task)
    _check_every_class(study.raw, counts, quarantined)

    tally = _Tally(
        files_seen=len(listing.paths),
        other_files_ignored=listing.num_left_out,
        left_out=listing.left_out,
        selection=selection,
        not_selected=len(read.rows) - len(selected.rows),
        near_copies=near_copies,
        alike=alike,
        label_conflicts=len(consistent.quarantined),
        quarantined=len(quarantined),
        completeness=task.completeness(published, selection),
        raw=fingerprint.names_and_sizes(files, hashed=pseudonyms is not None),
    )
    meta = _meta(study, card, task, pseudonyms, tally.label_conflicts)
    meta.update(_grey_meta(read))
    manifest = Manifest(table.drop(columns=list(INTERNAL_COLUMNS)), meta)
    manifest = manifest.write(study.manifest_path)
    summary = _summary(manifest, card, counts, _count_flags(table), tally)
    summary = summary.model_copy(update=_grey_fields(read, table, settings.window))
    quarantine.write(quarantine.path_beside(study.manifest_path), quarantined)
    summary.write(study.manifest_path.with_suffix(".json"))
    fingerprint.note(study, manifest, files, read.digests)
    remarks = _remarks(study, dataset, listing, read, table)
    return Ingested(manifest, summary, quarantined, remarks)


# --- steps between the files and the manifest -----------------------------------------------------


def _read_files(study: Study, dataset: Dataset, task: Task, paths: Sequence[str]) -> ReadFiles:
    """Read the images of a study; the masks among them are in quarantine."""
    settings = study.settings.ingest
    window = Range(*settings.window) if settings.window else None
    reader = Reader(study.raw, study.dataset, dataset, task, window)
    return _leave_out_masks(reader.read(paths), settings.keep)


def _require_columns(files: ReadFiles, names: Sequence[str], dataset: str) -> None:
    """Refuse a column of `ingest.columns` that neither table, headers nor dataset gives."""
    for name in names:
        if name not in files.rows:
            why = headers.why_missing(name)
            raise ConfigError(
                f"ingest.columns names {name!r}, which dataset '{dataset}' does not have: it is {why}."
            )


def _leave_out_masks(files: ReadFiles, keep: Sequence[str]) -> ReadFiles:
    """Move the masks among the pictures into quarantine."""
    is_mask = masks.find(files.rows, keep)
    quarantined = [Quarantined(path, masks.REASON) for path in files.rows.loc[is_mask, "path"]]
    return replace(
        files,
        rows=files.rows[~is_mask].reset_index(drop=True),
        thumbnails=files.thumbnails[~is_mask],
        quarantined=[*files.quarantined, *quarantined],
    )


def _select(files: ReadFiles, only: Mapping[str, str], dataset: str) -> ReadFiles:
    """Keep the images that have the values of `ingest.only`, in any spelling of them (`M` and `m`)."""
    rows = files.rows
    is_kept = np.ones(len(rows), dtype=bool)
    for column, value in only.items():
        if column not in rows:
            known = set(rows.columns) - set(INTERNAL_COLUMNS)
            raise unknown_name("column", column, known, f" of dataset '{dataset}'")
        has_value = rows[column].astype(str).map(class_key) == class_key(value)
        if not has_value.any():
            values = sorted(map(str, rows[column].unique()))
            raise ConfigError(
                f"ingest.only keeps {column} {value!r}, which no image has. Found are: "
                f"{', '.join(values[:_VALUES_NAMED])}."
            )
        is_kept &= has_value.to_numpy()
    if not is_kept.any():
        raise ConfigError("No image has all the values of ingest.only together.")
    return replace(
        files,
        rows=rows[is_kept].reset_index(drop=True),
        thumbnails=files.thumbnails[is_kept],
    )


def _hide(files: ReadFiles, readings: Sequence[str], pseudonyms: Pseudonyms) -> ReadFiles:
    """Replace the ids of images and patients by keyed hashes, and leave the paths empty."""
    paths = files.rows["path"]
    image_ids = [pseudonyms.of("image", path) for path in paths]
    rows = files.rows.assign(image_id=image_ids, path="")
    for reading in readings:
        hash_of = {}
        for patient in rows[reading].unique():
            hash_of[patient] = pseudonyms.of(f"patient/{reading}", patient)
        rows[reading] = rows[reading].map(hash_of)
    quarantined = []
    for item in files.quarantined:
        image_id = pseudonyms.of("image", item.image_id)
        quarantined.append(Quarantined(image_id, item.reason))
    return replace(files, rows=rows, quarantined=quarantined)


def _write_places(path: Path, known: ReadFiles, hidden: ReadFiles, readings: Sequence[str]) -> None:
    """Write the only file that leads from hashed ids back to people; it stays on this machine.

    Args:
        path: Where it is written.
        known: The images with their names; files in quarantine are among them.
        hidden: The same in the same order, as of `_hide`.
        readings: Columns of patient ids.
    """
    places = known.rows[["path", *readings]].copy()
    places.insert(0, "image_id", hidden.rows["image_id"])
    unusable = pd.DataFrame(
        {
            "image_id": [item.image_id for item in hidden.quarantined],
            "path": [item.image_id for item in known.quarantined],
        }
    )
    places = pd.concat([places, unusable])
    with atomic_path(path) as temporary:
        places.sort_values("image_id").to_csv(temporary, index=False, lineterminator="\n")


def _sort(files: ReadFiles) -> ReadFiles:
    """Order the images by their ids."""
    order = np.argsort(files.rows["image_id"].to_numpy())
    rows = files.rows.iloc[order]
    return replace(
        files,
        rows=rows.reset_index(drop=True),
        thumbnails=files.thumbnails[order],
    )


def _join_copies(
    files: ReadFiles, readings: Sequence[str], near_copies: bool
) -> tuple[pd.DataFrame, int]:
    """Name the picture of every image, and make one patient of those who share a picture.

    Args:
        files: The images, sorted.
        readings: Columns that say who the patient is.
        near_copies: Whether near copies show the same picture, not only exact ones.

    Returns:
        The rows, and how many pictures look too much alike to be copies.
    """
    rows = files.rows.copy()
    pictures = copies.Pictures(rows["pixels"].to_numpy(), alike=0)
    if near_copies:
        pictures = copies.join_near_copies(rows["pixels"], files.thumbnails)
    rows.insert(rows.columns.get_loc("path"), "picture", pictures.of_row)
    for reading in readings:
        rows[reading] = copies.join_patients_who_share(pictures.of_row, rows[reading])
    return rows, pictures.alike


def _with_patient_id(rows: pd.DataFrame, reading: str) -> pd.DataFrame:
    """Name the patient of every image, by one of the readings, in a column before `label`."""
    table = rows.copy()
    place = table.columns.get_loc("label")
    table.insert(place, "patient_id", table[reading])
    return table


def _check_every_class(
    raw: Path, counts: Mapping[str, ClassCount], quarantined: Sequence[Quarantined]
) -> None:
    empty = [name for name, count in counts.items() if count.images == 0]
    if not empty:
        return
    usable = ", ".join(f"{name} {count.images}" for name, count in counts.items())
    first = f", the first: {quarantined[0].reason}" if quarantined else ""
    raise DataError(
        f"{raw} holds no image of class {', '.join(empty)} (found: {usable}); "
        f"{len(quarantined)} files were left out{first}. A comparison needs every class; check that "
        f"the folder is complete."
    )


# --- what is written ------------------------------------------------------------------------------


def _count_classes(table: pd.DataFrame, task: Task) -> dict[str, ClassCount]:
    """Images and patients by class."""
    labels = table["label"].to_numpy()
    return class_table(labels, table["patient_id"], task.classes)


def _count_flags(table: pd.DataFrame) -> dict[str, int]:
    """How many pictures are odd, by what is odd about them."""
    counts = dict.fromkeys(images.FLAGS, 0)
    for flags in table["odd"]:
        for flag in flags:
            counts[flag] = counts.get(flag, 0) + 1
    return counts


def _remarks(
    study: Study, dataset: Dataset, listing: Listing, read: ReadFiles, table: pd.DataFrame
) -> tuple[str, ...]:
    """What the user should judge of a study's files."""
    return (
        *dataset.remarks,
        *listing.remarks,
        *leftovers.remarks_on_pairs(read.rows["path"]),
        *masks.remarks(table),
        *_remarks_on_pages(table),
        *leftovers.remarks_on_links(study.raw, listing.paths),
        *filter(None, [originals.advice_to_link(study)]),
    )


def _remarks_on_pages(table: pd.DataFrame) -> list[str]:
    """What to say of pages that nobody reads."""
    surplus = table["pages"] - 1
    if not surplus.any():
        return []
    return [
        f"files with several pages: {(surplus > 0).sum()}; the first page of each is read, "
        f"{surplus.sum()} further ones are not"
    ]


def _grey_meta(read: ReadFiles) -> dict[str, Any]:
    """The scale of files of more than 8 bits, as the manifest keeps it; nothing without such files."""
    if read.scale is None:
        return {}
    return {"grey_scale": read.scale.as_dict()}


def _grey_fields(
    read: ReadFiles, table: pd.DataFrame, window: Sequence[float] | None
) -> dict[str, Any]:
    """The fields of the summary about grey levels; none where there is nothing to say."""
    fields: dict[str, Any] = {}
    if read.scale is not None:
        lines = greylevels.scale_text(read.scale, read.depths)
        fields["grey_levels"] = GreyLevels(
            **read.scale.as_dict(), files=len(read.depths), lines=lines
        )
    elif window is not None:
        unused = "ingest.window changes nothing: no file has more than 8 bits"
        fields["grey_levels"] = GreyLevels(white=None, window=list(window), files=0, lines=[unused])
    fewest: dict[str, int] = {}
    for odd in table["odd"]:
        for flag, levels in odd.items():
            if levels:
                fewest[flag] = min(levels, fewest.get(flag, levels))
    if fewest:
        fields["fewest_levels"] = fewest
    return fields


def _selection_name(only: Mapping[str, str]) -> str:
    """A selection as "column=value", "" for everything; a dataset's card names it like this."""
    return ", ".join(f"{column}={value}" for column, value in sorted(only.items()))


def _images_of_classes(rows: pd.DataFrame, task: Task) -> dict[str, int]:
    counts = np.bincount(rows["label"], minlength=len(task.classes))
    return dict(zip(task.classes, counts.tolist()))


def _meta(
    study: Study, card: Card, task: Task, pseudonyms: Pseudonyms | None, label_conflicts: int
) -> dict[str, Any]:
    """The metadata inside the manifest."""
    return {
        "study": study.name,
        "dataset": study.dataset,
        "classes": list(task.classes),
        "positive_class": task.positive_class,
        "readings": list(card.readings),
        "official_reading": card.official_reading,
        "patient_ids": card.patient_ids,
        "label_conflicts": label_conflicts,
        "trusted": list(study.settings.ingest.trusted),
        "pseudonym_key": pseudonyms.fingerprint if pseudonyms else None,
        "settings": study.settings.sections("ingest"),
    }


def _summary(
    manifest: Manifest,
    card: Card,
    counts: dict[str, ClassCount],
    flagged: dict[str, int],
    tally: _Tally,
) -> IngestSummary:
    """The counts of a manifest and of what was left out of it."""
    images_of_class = manifest.counts()
    minority = [manifest.classes[label] for label in minority_labels(images_of_class)]
    return IngestSummary(
        study=manifest.meta["study"],
        dataset=manifest.meta["dataset"],
        classes=list(manifest.classes),
        positive_class=manifest.positive_class,
        patient_ids=card.patient_ids,
        source=card.source,
        licence=card.licence,
        citation=card.citation,
        manifest=manifest.digest,
        raw=tally.raw,
        code=fingerprint.code(),
        images=len(manifest.table),
        patients=manifest.table["patient_id"].nunique(),
        pseudonymised=manifest.meta["pseudonym_key"] is not None,
        files_seen=tally.files_seen,
        other_files_ignored=tally.other_files_ignored,
        left_out=tally.left_out,
        selection=tally.selection,
        not_selected=tally.not_selected,
        quarantined=tally.quarantined,
        near_copies=tally.near_copies,
        alike=tally.alike,
        label_conflicts=tally.label_conflicts,
        flagged=flagged,
        by_class=counts,
        minority_classes=minority,
        imbalance_ratio=imbalance_ratio(images_of_class),
        completeness=tally.completeness,
    )
