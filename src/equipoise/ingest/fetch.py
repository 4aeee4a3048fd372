"""Downloads a dataset's published archive, checks its size and SHA-256, unpacks it and puts the folder under DVC."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import requests
from urllib3.exceptions import HTTPError

from equipoise.core.errors import ConfigError, DataError
from equipoise.core.files import file_digest, read_json, write_json
from equipoise.core.parallel import progress
from equipoise.ingest import archives
from equipoise.ingest.datasets.base import Archive, Card, load_dataset

DOWNLOADS = Path("data/cache/downloads")
#: To connect, and between two pieces of the answer.
TIMEOUT_SECONDS = (15.0, 60.0)
#: Tries in a row that bring nothing new before the download is given up; the waits between them grow to 15 s in all.
TRIES_WITHOUT_PROGRESS = 5
WAIT_SECONDS = 1.5
#: A download whose size nobody states stops here: eight times BreakHis (4 GB), the largest of the datasets.
DOWNLOAD_BYTES_MAX = 32 * 2**30

_MIB = 2**20
_TRY_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})
_RECORDED = ("address", "bytes", "sha256", "files", "file_bytes")


class _Interrupted(Exception):
    """A transfer that stopped and may be tried again; the text says why."""


def run(
    dataset: str,
    to: Path | None = None,
    address: str | None = None,
    say: Callable[[str], None] = print,
) -> Path:
    """Download the archive of a dataset, check it, unpack it and put the folder under DVC.

    Args:
        dataset: Name of the dataset.
        to: Folder to unpack into; by default `data/raw/<dataset>`.
        address: Another http(s) address of the same archive, or a local file; by default the address on the card.
        say: Called with a line of text for each step; the last one says what to commit.

    Returns:
        The folder.

    Raises:
        ConfigError: There is no such dataset, its card names no archive, or the address cannot be used.
        DataError: The folder holds other files, or the archive is not what the card or an earlier download says.
    """
    card: Card = load_dataset(dataset).CARD
    if card.archive is None:
        raise ConfigError(
            f"The card of '{dataset}' names no archive to download. Get the images from {card.source} and unpack them "
            f"into data/raw/{dataset}/, or set ingest.raw to where they are."
        )
    say(f"{card.title}; licence: {card.licence}; cite: {card.citation}")
    usual, source = Path("data/raw") / dataset, Path("data/raw") / f"{dataset}.source.json"
    shown, part = to or usual, DOWNLOADS / f"{dataset}.part"
    try:
        _fill(shown, source, part, card.archive, address or card.archive.address, say)
        _forget(part)
        _put_under_dvc(shown, usual, source, say)
    except OSError as problem:
        raise DataError(
            f"Fetching {dataset} into {shown} failed: {problem}. Free space or permissions may be missing; run the "
            "same command again, and a download goes on where it stopped."
        ) from problem
    return shown


def _fill(
    shown: Path, source: Path, part: Path, pinned: Archive, address: str, say: Callable[[str], None]
) -> None:
    """Bring the images into the folder, unless they are there."""
    folder, recorded = (
        shown.resolve(),
        read_json(source) if source.is_file() else dict.fromkeys(_RECORDED),
    )
    if not isinstance(recorded, dict) or set(recorded) != set(_RECORDED):
        raise DataError(
            f"{source} must hold {', '.join(_RECORDED)}. Take it back from git, or delete it."
        )
    if pinned.sha256 is None:
        pinned = Archive(pinned.address, recorded["bytes"] or pinned.bytes, recorded["sha256"])
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir())):
        if (pinned.sha256, *archives.measure(folder)) != tuple(
            recorded[key] for key in _RECORDED[2:]
        ):
            raise DataError(
                f"{shown} is there, and it is not the archive as unpacked here; nothing was overwritten. Move it away, "
                "or name another folder with --to."
            )
        say(f"{shown} already holds the archive {pinned.sha256}: nothing to download")
        return
    is_remote, where = re.match("https?://", address, re.I), _without_secrets(address)
    archive = (
        _download(address, where, pinned, part, say) if is_remote else Path(address).expanduser()
    )
    if not archive.is_file():
        raise ConfigError(f"{where} is neither an http(s) address nor a file that is there.")
    try:
        found = (where, archive.stat().st_size, file_digest(archive))
        if found[1:] != (pinned.bytes or found[1], pinned.sha256 or found[2]):
            raise DataError(
                f"{where} is not the archive that is pinned: it has {found[1]} bytes and SHA-256 {found[2]}, expected "
                f"{pinned.bytes} and {pinned.sha256}. A download is removed; get it from the address on the card."
            )
        say(f"{found[1]:,} bytes, SHA-256 {found[2]}; unpacking into {shown}")
        archives.unpack(
            archive,
            folder,
            lambda *counts: write_json(source, dict(zip(_RECORDED, found + counts))),
        )
    except DataError:
        if is_remote:  # Never the user's own file.
            _forget(part)
        raise


def _without_secrets(address: str) -> str:
    """An address as it may be shown and committed: no password, no signed query; of a local file only its name.

    >>> _without_secrets("https://me:secret@example.org/a.zip?signature=x")
    'https://example.org/a.zip'
    >>> _without_secrets("/home/me/a.zip")
    'a.zip'
    """
    pieces = re.match(r"([a-z0-9+.-]+://)(?:[^/?#]*@)?([^?#]*)", address, re.I)
    return f"{pieces[1]}{pieces[2]}" if pieces else Path(address).name


def _download(
    address: str, where: str, pinned: Archive, part: Path, say: Callable[[str], None]
) -> Path:
    """Download into `part`, going on where an earlier try or an earlier run stopped."""
    part.parent.mkdir(parents=True, exist_ok=True)
    best, idle = _size(part), 0
    say(f"downloading {where}")
    while True:
        try:
            _transfer(address, where, pinned, part)
            return part
        except (_Interrupted, requests.RequestException, HTTPError) as problem:
            if isinstance(problem, ValueError):  # How both libraries mark an address that is none.
                raise ConfigError(f"{where} is not an address: {_reason(problem)}.") from problem
            text = f"the download stopped after {_size(part):,} bytes ({_reason(problem)})"
        best, idle = max(best, _size(part)), 0 if _size(part) > best else idle + 1
        if idle >= TRIES_WITHOUT_PROGRESS:
            raise DataError(
                f"{where}: {text}, and {idle} tries brought nothing more. What came is kept: run the same command "
                "later, or give another address or the file itself with --from."
            )
        say(f"{text}; trying again")
        time.sleep(WAIT_SECONDS * idle)


def _transfer(address: str, where: str, pinned: Archive, part: Path) -> None:
    """One request: the whole file, or the bytes that are missing."""
    note_path = part.with_suffix(".part.json")
    note = read_json(note_path) if note_path.is_file() else {}
    # Without a version only the final digest can tell whether the two halves belong together.
    done = _size(part) if note.get("address") == where and (note["version"] or pinned.sha256) else 0
    if done and done == note["bytes"]:
        return
    headers = {
        "Accept-Encoding": "identity"
    }  # Compressed on the way, bytes could neither be counted nor resumed.
    if done:
        headers |= {"Range": f"bytes={done}-"} | (
            {"If-Range": note["version"]} if note["version"] else {}
        )
    with requests.get(address, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
        code, (start, stated_bytes, version) = response.status_code, _described(response)
        if code in _TRY_LATER:
            raise _Interrupted(f"the server answered {code}")
        pairs = ((stated_bytes, note.get("bytes")), (version, note.get("version")))
        changed = start != done or any(new and old and new != old for new, old in pairs)
        if done and (code == 416 or (code == 206 and changed)):
            _forget(part)
            raise _Interrupted("the file on the server changed; starting over")
        if code not in (200, 206 if done else 200) or (
            stated_bytes and pinned.bytes not in (None, stated_bytes)
        ):
            raise DataError(
                f"{where} answered {code} with {stated_bytes} bytes, expected 200 with {pinned.bytes or 'any'}. Look "
                "whether the address is still right, or give another one or a local file with --from."
            )
        total_bytes = stated_bytes or pinned.bytes or 0
        if code == 200:
            done = 0
            _forget(part)
            write_json(note_path, {"address": where, "version": version, "bytes": total_bytes})
        _append(response, part, done, total_bytes)
    if _size(part) > (total_bytes or DOWNLOAD_BYTES_MAX):
        _forget(part)
        raise DataError(
            f"{where} sends more bytes than the {total_bytes or DOWNLOAD_BYTES_MAX:,} that were stated or are allowed; "
            "the download was removed. Give another address or a local file with --from."
        )
    if _size(part) < total_bytes:
        raise _Interrupted(f"the connection ended before byte {total_bytes:,}")


def _append(response: requests.Response, part: Path, done: int, total_bytes: int) -> None:
    """Write the answer behind the bytes that are there, and stop where it is longer than stated or allowed."""
    # Raw: some servers call a .tar.gz "Content-Encoding: gzip", and it would arrive as another file.
    pieces = response.raw.stream(_MIB, decode_content=False)
    with part.open("ab") as file:
        for piece in progress(
            pieces, "downloading", max(0, -(-(total_bytes - done) // _MIB)), "MiB"
        ):
            file.write(piece)
            if file.tell() > (total_bytes or DOWNLOAD_BYTES_MAX):
                break


def _described(response: requests.Response) -> tuple[int, int, str]:
    """What an answer says of the file: where it starts, the bytes of the whole (0: not said), its version ("")."""
    headers = response.headers
    whole = f"bytes 0-/{headers.get('Content-Length')}"
    ranged = re.match(r"bytes (\d{1,18})-\d*/(\d{1,18})?", headers.get("Content-Range", whole))
    start, stated_bytes = (int(text or 0) for text in ranged.groups()) if ranged else (-1, 0)
    tag = headers.get("ETag", "W/")
    # A weak tag promises the same picture, not the same bytes.
    return start, stated_bytes, headers.get("Last-Modified", "") if tag.startswith("W/") else tag


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _forget(part: Path) -> None:
    part.unlink(missing_ok=True)
    part.with_suffix(".part.json").unlink(missing_ok=True)


def _reason(problem: BaseException) -> str:
    """The innermost cause of an error, which names no address, so that it can be printed."""
    while cause := problem.__cause__ or problem.__context__:
        problem = cause
    return archives.printable(f"{type(problem).__name__.strip('_')}: {problem}")


def _put_under_dvc(shown: Path, usual: Path, source: Path, say: Callable[[str], None]) -> None:
    here, folder, pins = Path.cwd().resolve(), shown.resolve(), str(source)
    root = next((parent for parent in (here, *here.parents) if (parent / ".dvc").is_dir()), None)
    if root in folder.parents:
        say(f"putting {shown} under DVC")
        if code := subprocess.run(
            [sys.executable, "-m", "dvc", "add", "--quiet", str(folder)]
        ).returncode:
            raise DataError(
                f"The images are in {shown}, but `dvc add {shown}` ended with code {code}; its last lines say why. "
                "Mend that and run the same command again: nothing is downloaded twice."
            )
        pins = f"{shown}.dvc {source}"
    else:
        say(
            f"{shown} lies in no DVC repository that was found from here, so it was not put under DVC."
        )
    if folder != usual.resolve():
        say(f"Set ingest.raw to {shown} in params.yaml.")
    say(f"To commit: {pins}")
