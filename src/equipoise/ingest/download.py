"""Downloads one file over http(s), and goes on where an earlier try or an earlier run stopped.

What has come so far is the *part*. A note beside it says of which file it is: its address, the
version that the server names, and its size. With a note that fits, the missing bytes are asked for
with a `Range` request; otherwise the download starts over.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import requests
from urllib3.exceptions import HTTPError

from equipoise.core.documents import Document
from equipoise.core.errors import ConfigError, DataError
from equipoise.core.parallel import progress
from equipoise.ingest.archives import printable
from equipoise.ingest.datasets.base import Archive

#: To connect, and between two pieces of the answer.
TIMEOUT_SECONDS = (15.0, 60.0)
#: Tries in a row that bring nothing new before the download is given up; the waits between them
#: grow to 15 s in all.
TRIES_WITHOUT_PROGRESS = 5
WAIT_SECONDS = 1.5
#: A download whose size nobody states stops here: eight times BreakHis (4 GB), the largest of the
#: datasets.
DOWNLOAD_BYTES_MAX = 32 * 2**30

_MIB = 2**20
_OK = 200
_PARTIAL = 206
_RANGE_BEYOND_THE_END = 416
_TRY_LATER = frozenset({408, 425, 429, 500, 502, 503, 504})

_ADDRESS = re.compile(r"([a-z0-9+.-]+://)(?:[^/?#]*@)?([^?#]*)", re.I)
_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-\d*/(\d{1,18})?")


class PartNote(Document):
    """Of which file a part is.

    Attributes:
        address: Where it comes from, without secrets.
        version: What the server calls this version of it; "" where it names none.
        bytes: Size of the whole file; 0 where nobody states it.
    """

    address: str
    version: str
    bytes: int


class _Answer(NamedTuple):
    """What a server says of the bytes that it sends.

    Attributes:
        status: The HTTP status.
        start: Position of the first byte in the file; -1 where the server says what cannot be read.
        total_bytes: Size of the whole file; 0 where it is not said.
        version: A name that changes with every byte of the file; "" without one.
    """

    status: int
    start: int
    total_bytes: int
    version: str


class _Interrupted(Exception):
    """A transfer that stopped and may be tried again; the text says why."""


def download(
    address: str,
    pinned: Archive,
    part: Path,
    say: Callable[[str], None],
    wait: Callable[[float], None] = time.sleep,
) -> None:
    """Download a file into `part`.

    Args:
        address: An http(s) address; it may hold secrets.
        pinned: What is known of the file.
        part: Where what has come lies, also between runs.
        say: Called with a line of text when the download starts and after each interruption.
        wait: Called with the seconds to wait before the next try.

    Raises:
        ConfigError: For an address that is not one.
        DataError: When the server sends another file, or nothing for several tries.
    """
    shown = without_secrets(address)
    part.parent.mkdir(parents=True, exist_ok=True)
    most_bytes = _size(part)
    idle_tries = 0
    say(f"downloading {shown}")
    while True:
        try:
            _transfer(address, pinned, part)
            return
        except (_Interrupted, requests.RequestException, HTTPError) as problem:
            reason = _reason(problem)
            if isinstance(problem, ValueError):  # How both libraries mark what is not an address.
                raise ConfigError(f"{shown} is not an address: {reason}.") from problem
        have_bytes = _size(part)
        idle_tries = 0 if have_bytes > most_bytes else idle_tries + 1
        most_bytes = max(most_bytes, have_bytes)
        text = f"the download stopped after {have_bytes:,} bytes ({reason})"
        if idle_tries >= TRIES_WITHOUT_PROGRESS:
            raise DataError(
                f"{shown}: {text}, and {idle_tries} tries brought nothing more. What came is kept: run "
                "the same command later, or give another address or the file itself with --from."
            )
        say(f"{text}; trying again")
        wait(WAIT_SECONDS * idle_tries)


def forget(part: Path) -> None:
    """Remove a part and its note."""
    part.unlink(missing_ok=True)
    _note_path(part).unlink(missing_ok=True)


def without_secrets(address: str) -> str:
    """An address as it may be shown and committed.

    It has no password and no signed query; of a local file only the name is left.

    >>> without_secrets("https://me:secret@example.org/a.zip?signature=x")
    'https://example.org/a.zip'
    >>> without_secrets("/home/me/a.zip")
    'a.zip'
    """
    match = _ADDRESS.match(address)
    return f"{match[1]}{match[2]}" if match else Path(address).name


def _transfer(address: str, pinned: Archive, part: Path) -> None:
    """Ask once: for the bytes that are missing, or for the whole file."""
    shown = without_secrets(address)
    note = _resumable(part, shown, pinned)
    have_bytes = _size(part) if note else 0
    if note and have_bytes == note.bytes:
        return
    headers = _request_headers(note, have_bytes)
    with requests.get(address, headers=headers, stream=True, timeout=TIMEOUT_SECONDS) as response:
        answer = _answer_of(response)
        if answer.status in _TRY_LATER:
            raise _Interrupted(f"the server answered {answer.status}")
        if note and _is_of_another_file(answer, note, have_bytes):
            forget(part)
            raise _Interrupted("the file on the server changed; starting over")
        _check_expected(answer, shown, pinned, is_partial_asked=note is not None)
        total_bytes = answer.total_bytes or pinned.bytes or 0
        if answer.status == _OK:  # The whole file, whatever was asked for.
            forget(part)
            begun = PartNote(address=shown, version=answer.version, bytes=total_bytes)
            begun.write(_note_path(part))
        _append(response, part, total_bytes)
    _check_size(part, shown, total_bytes)


def _resumable(part: Path, shown: str, pinned: Archive) -> PartNote | None:
    """The note of a part that may be continued; None to start over."""
    note_path = _note_path(part)
    if not _size(part) or not note_path.is_file():
        return None
    try:
        note = PartNote.read(note_path)
    except DataError:
        return None
    # Without a version only the final digest can tell whether the two halves belong together.
    can_be_checked = note.version or pinned.sha256
    return note if note.address == shown and can_be_checked else None


def _request_headers(note: PartNote | None, have_bytes: int) -> dict[str, str]:
    # Compressed on the way, bytes could neither be counted nor resumed.
    headers = {"Accept-Encoding": "identity"}
    if note:
        headers["Range"] = f"bytes={have_bytes}-"
    if note and note.version:
        headers["If-Range"] = note.version  # Of another version the server sends the whole file.
    return headers


def _answer_of(response: requests.Response) -> _Answer:
    headers = response.headers
    whole_file = f"bytes 0-/{headers.get('Content-Length')}"
    match = _CONTENT_RANGE.match(headers.get("Content-Range", whole_file))
    start = int(match[1]) if match else -1
    total_bytes = int(match[2] or 0) if match else 0
    version = headers.get("ETag", "")
    if not version or version.startswith("W/"):
        # A weak tag promises the same picture, not the same bytes.
        version = headers.get("Last-Modified", "")
    return _Answer(response.status_code, start, total_bytes, version)


def _is_of_another_file(answer: _Answer, note: PartNote, have_bytes: int) -> bool:
    """Whether the bytes that were asked for do not continue the part: some servers ignore `If-Range`."""
    if answer.status == _RANGE_BEYOND_THE_END:
        return True
    if answer.status != _PARTIAL:
        return False
    is_other_size = answer.total_bytes and note.bytes and answer.total_bytes != note.bytes
    is_other_version = answer.version and note.version and answer.version != note.version
    return bool(answer.start != have_bytes or is_other_size or is_other_version)


def _check_expected(
    answer: _Answer, shown: str, pinned: Archive, *, is_partial_asked: bool
) -> None:
    """Refuse an answer that is not the file, or a file of another size than the pinned one."""
    is_sent = answer.status == _OK or (answer.status == _PARTIAL and is_partial_asked)
    is_other_size = answer.total_bytes and pinned.bytes not in (None, answer.total_bytes)
    if is_sent and not is_other_size:
        return
    raise DataError(
        f"{shown} answered {answer.status} with {answer.total_bytes} bytes, expected 200 with "
        f"{pinned.bytes or 'any'}. Look whether the address is still right, or give another one or a "
        "local file with --from."
    )


def _append(response: requests.Response, part: Path, total_bytes: int) -> None:
    """Write what is sent behind what is there, and stop where it is longer than stated or allowed."""
    allowed_bytes = total_bytes or DOWNLOAD_BYTES_MAX
    missing_bytes = max(0, total_bytes - _size(part))
    missing_mib = -(-missing_bytes // _MIB)
    # Raw: some servers call a .tar.gz "Content-Encoding: gzip", and it would arrive as another
    # file.
    pieces = response.raw.stream(_MIB, decode_content=False)
    with part.open("ab") as file:
        for piece in progress(pieces, "downloading", missing_mib, "MiB"):
            file.write(piece)
            if file.tell() > allowed_bytes:
                break


def _check_size(part: Path, shown: str, total_bytes: int) -> None:
    """Refuse a part that is too long, and try again where it is too short."""
    allowed_bytes = total_bytes or DOWNLOAD_BYTES_MAX
    if _size(part) > allowed_bytes:
        forget(part)
        raise DataError(
            f"{shown} sends more bytes than the {allowed_bytes:,} that were stated or are allowed; the "
            "download was removed. Give another address or a local file with --from."
        )
    if _size(part) < total_bytes:
        raise _Interrupted(f"the connection ended before byte {total_bytes:,}")


def _note_path(part: Path) -> Path:
    return part.with_suffix(".part.json")


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _reason(problem: BaseException) -> str:
    """The innermost cause of an error, which names no address, so that it can be printed."""
    while cause := problem.__cause__ or problem.__context__:
        problem = cause
    return printable(f"{type(problem).__name__.strip('_')}: {problem}")
