"""Downloads a dataset's published archive, checks its size and SHA-256, unpacks it and puts the folder under DVC."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from equipoise.core.documents import FetchRecord
from equipoise.core.errors import ConfigError, DataError
from equipoise.core.files import file_digest
from equipoise.ingest import archives
from equipoise.ingest.datasets.base import Archive, Card, load_dataset
from equipoise.ingest.download import download, forget, without_secrets


@dataclass(frozen=True)
class _Places:
    """Where everything of one dataset lies.

    Attributes:
        root: Folder that holds params.yaml.
        folder: Where the images go.
        usual: Where they go unless another folder is named.
        record: The record of what was unpacked, which is committed.
        part: The download while it lasts.
    """

    root: Path
    folder: Path
    usual: Path
    record: Path
    part: Path

    @classmethod
    def of(cls, dataset: str, folder: Path | None, root: Path) -> _Places:
        usual = root / "data/raw" / dataset
        return cls(
            root=root,
            folder=folder or usual,
            usual=usual,
            record=root / f"data/raw/{dataset}.source.json",
            part=root / f"data/cache/downloads/{dataset}.part",
        )

    def shown(self, path: Path) -> Path:
        """A path as it is printed: relative to the root where it lies below it."""
        absolute = Path(os.path.abspath(path))
        top = Path(os.path.abspath(self.root))
        return absolute.relative_to(top) if absolute.is_relative_to(top) else path


def run(
    dataset: str,
    to: Path | None = None,
    address: str | None = None,
    say: Callable[[str], None] = print,
    root: Path = Path(),
    wait: Callable[[float], None] = time.sleep,
) -> Path:
    """Download the archive of a dataset, check it, unpack it and put the folder under DVC.

    Args:
        dataset: Name of the dataset.
        to: Folder to unpack into; by default `data/raw/<dataset>`.
        address: Another http(s) address of the same archive, or a local file; by default the
            address on the card.
        say: Called with a line of text for each step; the last one says what to commit.
        root: Folder that holds params.yaml.
        wait: Called with the seconds to wait before an interrupted download is tried again.

    Returns:
        The folder.

    Raises:
        ConfigError: There is no such dataset, its card names no archive, or the address cannot be
            used.
        DataError: The folder holds other files, or the archive is not what the card or an earlier
            download says.
    """
    card: Card = load_dataset(dataset).CARD
    if card.archive is None:
        raise ConfigError(
            f"The card of '{dataset}' names no archive to download. Get the images from {card.source} and unpack them "
            f"into data/raw/{dataset}/, or set ingest.raw to where they are."
        )
    say(f"{card.title}; licence: {card.licence}; cite: {card.citation}")
    places = _Places.of(dataset, to, root)
    try:
        recorded = _read_record(places)
        pinned = _pinned(card.archive, recorded)
        if _is_taken(places.folder):
            _check_same(places, pinned, recorded)
            say(
                f"{places.shown(places.folder)} already holds the archive {pinned.sha256}: nothing to download"
            )
        else:
            _fill(places, pinned, address or card.archive.address, say, wait)
        forget(places.part)
        _put_under_dvc(places, say)
    except OSError as problem:
        raise DataError(
            f"Fetching {dataset} into {places.shown(places.folder)} failed: {problem}. Free space or "
            "permissions may be missing; run the same command again, and a download goes on where it "
            "stopped."
        ) from problem
    return places.folder


def _read_record(places: _Places) -> FetchRecord | None:
    """What was unpacked here, or in another checkout, before; None where nothing was."""
    if not places.record.is_file():
        return None
    try:
        return FetchRecord.read(places.record)
    except DataError as error:
        raise DataError(
            f"{places.shown(places.record)} must hold {', '.join(FetchRecord.model_fields)}. "
            f"Take it back from git, or delete it."
        ) from error


def _pinned(published: Archive, recorded: FetchRecord | None) -> Archive:
    """What the archive must be: as published, or else as it was when it came first."""
    if published.sha256 is not None or recorded is None:
        return published
    return Archive(published.address, recorded.bytes, recorded.sha256)


def _is_taken(folder: Path) -> bool:
    return folder.is_file() or (folder.is_dir() and any(folder.iterdir()))


def _check_same(places: _Places, pinned: Archive, recorded: FetchRecord | None) -> None:
    """Refuse a folder that holds anything but the archive as it was unpacked."""
    if recorded is not None and recorded.sha256 == pinned.sha256:
        unpacked = archives.Contents(recorded.files, recorded.file_bytes)
        if archives.measure(places.folder) == unpacked:
            return
    raise DataError(
        f"{places.shown(places.folder)} is there, and it is not the archive as unpacked here; nothing was overwritten. "
        "Move it away, or name another folder with --to."
    )


def _fill(
    places: _Places,
    pinned: Archive,
    address: str,
    say: Callable[[str], None],
    wait: Callable[[float], None],
) -> None:
    """Bring the archive here and unpack it into the folder."""
    if not re.match("https?://", address, re.I):
        _unpack(Path(address).expanduser(), address, places, pinned, say)
        return
    download(address, pinned, places.part, say, wait)
    try:
        _unpack(places.part, address, places, pinned, say)
    except DataError:
        forget(places.part)
        raise


def _unpack(
    archive: Path, address: str, places: _Places, pinned: Archive, say: Callable[[str], None]
) -> None:
    """Unpack an archive that is here, if it is the pinned one, and record what came out."""
    shown = without_secrets(address)
    if not archive.is_file():
        raise ConfigError(f"{shown} is neither an http(s) address nor a file that is there.")
    size_bytes = archive.stat().st_size
    sha256 = file_digest(archive)
    is_other_size = pinned.bytes not in (None, size_bytes)
    is_other_content = pinned.sha256 not in (None, sha256)
    if is_other_size or is_other_content:
        raise DataError(
            f"{shown} is not the archive that is pinned: it has {size_bytes} bytes and SHA-256 {sha256}, expected "
            f"{pinned.bytes} and {pinned.sha256}. A download is removed; get it from the address on the card."
        )
    say(f"{size_bytes:,} bytes, SHA-256 {sha256}; unpacking into {places.shown(places.folder)}")

    def record(contents: archives.Contents) -> None:
        FetchRecord(
            address=shown,
            bytes=size_bytes,
            sha256=sha256,
            files=contents.files,
            file_bytes=contents.file_bytes,
        ).write(places.record)

    archives.unpack(archive, places.folder.resolve(), record)


def _put_under_dvc(places: _Places, say: Callable[[str], None]) -> None:
    """Put the folder under DVC where it lies in a repository of it, and say what to commit."""
    shown = places.shown(places.folder)
    folder = places.folder.resolve()
    repository = _dvc_repository(places.root.resolve())
    to_commit = [places.shown(places.record)]
    if repository in folder.parents:
        say(f"putting {shown} under DVC")
        command = [sys.executable, "-m", "dvc", "add", "--quiet", str(folder)]
        code = subprocess.run(command, cwd=repository).returncode
        if code:
            raise DataError(
                f"The images are in {shown}, but `dvc add {shown}` ended with code {code}; its last lines say why. "
                "Mend that and run the same command again: nothing is downloaded twice."
            )
        to_commit.insert(0, Path(f"{shown}.dvc"))
    else:
        say(
            f"{shown} lies in no DVC repository that was found from here, so it was not put under DVC."
        )
    if folder != places.usual.resolve():
        say(f"Set ingest.raw to {shown} in params.yaml.")
    say(f"To commit: {' '.join(map(str, to_commit))}")


def _dvc_repository(start: Path) -> Path | None:
    """The nearest folder, this one or above it, that holds `.dvc`."""
    for folder in (start, *start.parents):
        if (folder / ".dvc").is_dir():
            return folder
    return None
