"""Where the originals of a manifest lie, also when their names are hashed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pandas as pd

from equipoise.core import images
from equipoise.core.config import Study
from equipoise.core.errors import DataError
from equipoise.core.records import Manifest
from equipoise.ingest import pseudonyms
from equipoise.ingest.datasets.base import Dataset, open_dataset
from equipoise.ingest.pseudonyms import Pseudonyms


def locate(study: Study, manifest: Manifest) -> dict[str, str]:
    """Path inside the raw folder by image id; where ids are hashed, from the local file or made again with the key.

    Raises:
        DataError: When files of the manifest cannot be found with this machine's key.
    """
    table = manifest.table
    if not manifest.meta.get("pseudonym_key"):
        return dict(zip(table["image_id"], table["path"]))
    if study.places_path.is_file():
        places = pd.read_csv(study.places_path, dtype=str)
        known = dict(zip(places["image_id"], places["path"]))
    else:
        paths, _ = _files(study, open_dataset(study)[0])
        hashed = pseudonyms.load(study.name)
        known = {hashed.of("image", path): path for path in paths}
    lacking = int((~table["image_id"].isin(known)).sum())
    if lacking:
        raise DataError(
            f"{lacking} of the {len(table)} images of study '{study.name}' are not found in {study.raw}. Its ids were "
            f"made with the key {manifest.meta['pseudonym_key']}; use that key (EQUIPOISE_KEY), or run "
            f"`equipoise ingest --study {study.name}` again."
        )
    return {name: known[name] for name in table["image_id"]}


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


def _files(study: Study, dataset: Dataset) -> tuple[list[str], int]:
    files, ignored = images.walk(study.raw, dataset.suffixes)
    if not files:
        raise DataError(
            f"{study.raw} holds no image file ({ignored} other files). Expected are files ending in "
            f"{', '.join(sorted(dataset.suffixes))}."
        )
    return files, ignored


def _pseudonyms(study: Study, dataset: Dataset) -> Pseudonyms | None:
    wanted = study.settings.ingest.pseudonymise
    return (
        pseudonyms.load(study.name)
        if (dataset.card.pseudonymise if wanted is None else wanted)
        else None
    )
