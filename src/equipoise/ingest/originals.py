"""Where the originals lie, also when their names are hashed, and that they are what `ingest` read."""

from __future__ import annotations

import hashlib
import os
import shlex
from pathlib import Path

import pandas as pd

from equipoise.core import dicom, images
from equipoise.core.config import Ingest, Study
from equipoise.core.errors import DataError
from equipoise.core.records import Manifest
from equipoise.ingest import leftovers, pseudonyms
from equipoise.ingest.datasets.base import Card, Dataset, open_dataset
from equipoise.ingest.leftovers import Listing
from equipoise.ingest.pseudonyms import Pseudonyms


def locate(study: Study, manifest: Manifest) -> dict[str, str]:
    """Path inside the raw folder of every image of a manifest.

    Where ids are hashed, the paths come from the file that `ingest` left on this machine. Without
    that file they are made again: every file of the raw folder is hashed with the key.

    Returns:
        Image id -> path.

    Raises:
        DataError: When files of the manifest cannot be found with this machine's key.
    """
    table = manifest.table
    fingerprint = manifest.meta.get("pseudonym_key")
    if not fingerprint:
        return dict(zip(table["image_id"], table["path"]))
    path_of = _paths_by_hash(study)
    missing = int((~table["image_id"].isin(path_of)).sum())
    if missing:
        raise DataError(
            f"{missing} of the {len(table)} images of study '{study.name}' are not found in "
            f"{study.raw}. Its ids were made with the key {fingerprint}; use that key "
            f"(EQUIPOISE_KEY), or run `equipoise ingest --study {study.name}` again."
        )
    return {image_id: path_of[image_id] for image_id in table["image_id"]}


def advice_to_link(study: Study) -> str:
    """What to do so that DVC finds originals that lie elsewhere; empty where it finds them.

    The stages of dvc.yaml depend on `data/raw/<study>`: a path in a dependency cannot come from a
    setting that may be null.
    """
    expected = study.root / "data/raw" / study.name
    if not study.raw.is_dir() or expected.resolve() == study.raw.resolve():
        return ""
    relative = expected.relative_to(study.root).as_posix()
    command = f"ln -s {shlex.quote(str(study.raw.resolve()))} {relative}"
    if os.name == "nt":
        command = f'mklink /D "{expected}" "{study.raw.resolve()}"'
    if expected.is_symlink() or expected.exists():
        command = f"mv {relative} {relative}.old && {command}"
        state = "which is something else"
    else:
        state = "which is not there"
    return f"`dvc repro` looks for the originals in {relative}, {state}. Link it: `{command}`"


def advice_without(study: Study) -> str:
    """What to do where a study has no originals on this machine."""
    link = f"ln -s FOLDER data/raw/{study.name}"
    return f"{study.raw} is not there; put the originals there, link their folder (`{link}`) or set ingest.raw"


def read_unchanged(raw: Path, path: str, sha256: str) -> bytes:
    """Bytes of one original, which must be those that `ingest` read.

    Args:
        raw: Folder of the originals.
        path: Path inside it, as of `locate`.
        sha256: Digest of the file in the manifest, hexadecimal.

    Raises:
        DataError: When the file is not there, cannot be read, or holds other bytes.
    """
    try:
        content = images.read(raw, path)
    except OSError as error:
        raise DataError(
            f"{raw / path} cannot be read: {error.strerror or error}. Restore it, or run `equipoise ingest` again."
        ) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(
            f"{raw / path} is not the file that ingest read. Run `equipoise ingest` again."
        )
    return content


def list_files(raw: Path, dataset: Dataset, settings: Ingest) -> Listing:
    """The image files of a dataset, and what else lies in its folder.

    Raises:
        DataError: When there is no image file, or a link leads back to a folder above it.
    """
    listing = dataset.listing
    if listing is None:
        listing = leftovers.list_images(raw, dataset.suffixes, settings.skip, settings.keep)
    if not listing.paths:
        kinds = f": {leftovers.in_words(listing.left_out)}" if listing.left_out else ""
        kinds += leftovers.advice_to_keep(listing.left_out)
        hint = "" if dicom.is_installed() else f" DICOM files need pydicom: {dicom.INSTALL}."
        raise DataError(
            f"{raw} holds no image file ({listing.num_left_out} other files{kinds}). Expected are "
            f"files ending in {', '.join(sorted(dataset.suffixes))}.{hint}"
        )
    return listing


def load_pseudonyms(study: str, settings: Ingest, card: Card, root: Path) -> Pseudonyms | None:
    """The hashes that a study's ids are replaced by; None where ids stay as they are.

    `ingest.pseudonymise` decides, and where it is null the dataset's card.
    """
    is_wanted = settings.pseudonymise
    if is_wanted is None:
        is_wanted = card.pseudonymise
    return pseudonyms.load(study, root) if is_wanted else None


def _paths_by_hash(study: Study) -> dict[str, str]:
    """Hashed image id -> path, for every image file of the raw folder that is known here."""
    if study.places_path.is_file():
        places = pd.read_csv(study.places_path, dtype=str)
        return dict(zip(places["image_id"], places["path"]))
    dataset, _ = open_dataset(study.dataset, study.raw, study.settings.ingest)
    listing = list_files(study.raw, dataset, study.settings.ingest)
    hashed = pseudonyms.load(study.name, study.root)
    return {hashed.of("image", path): path for path in listing.paths}
