"""Unpacks an archive that came from outside, or refuses it.

The readers of Python's standard library check sums and give no more bytes than a header states. What they leave open is
done here: names, links, how much is unpacked, and whether anything is missing.
"""

from __future__ import annotations

import errno
import gzip
import io
import os
import re
import shutil
import stat
import struct
import tarfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, cast

from equipoise.core.errors import DataError
from equipoise.core.parallel import progress

#: Kermany v2 has 5,856 images and BreakHis 7,909; Finder's archives hold every file twice.
MEMBERS_MAX = 100_000
#: Images hardly shrink when packed (Kermany v2 and BreakHis by a few percent); tables and masks may by ten times.
UNPACKED_RATIO_MAX = 20
#: The ratio says nothing about small archives.
UNPACKED_BYTES_FREE = 64 * 2**20
#: Whatever the ratio allows: eight times BreakHis (4 GB), the largest of the datasets.
UNPACKED_BYTES_MAX = 32 * 2**30
#: The longest text or list that a tar header may carry; a path needs a few hundred bytes.
TAR_READ_BYTES_MAX = 4 * 2**20

_PIECE_BYTES = 2**20
_PORTABLE = re.compile(
    r'(?!(con|prn|aux|nul|com\d|lpt\d)(\.|$))[^/\\:*?"<>|]*[^/\\:*?"<>|. ]', re.I
)
#: What Finder adds: no image of the dataset.
_CLUTTER = re.compile(r"(^|/)(__MACOSX(/|$)|\._|\.DS_Store$)")
#: What the readers raise.
_DAMAGE = (
    *(EOFError, LookupError, OSError, OverflowError, RuntimeError, ValueError),
    *(struct.error, zlib.error, tarfile.TarError, zipfile.BadZipFile),
)


class _Member(NamedTuple):
    name: str
    is_plain: bool
    is_folder: bool
    bytes: int
    open: Callable[[], Any]


def unpack(archive: Path, folder: Path, record: Callable[[int, int], None]) -> None:
    """Unpack a .zip, .tar or .tar.gz; nothing stands in the folder before all of it does.

    Args:
        archive: The file; its name tells nothing.
        folder: Where to; missing or empty.
        record: Called with the number of files and their bytes when all are written, just before the folder appears.

    Raises:
        DataError: The archive is damaged or hostile or no archive; nothing of it stays.
    """
    # One fixed name, so that what a killed run left is found by the next one.
    temporary = folder.with_name(f".{folder.name}.unpacking")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        files, file_bytes = _write_members(archive, temporary)
    except _DAMAGE as problem:
        # Any other number is this machine's disk; EINVAL is a seek to before the start, as a spoilt header asks for.
        if getattr(problem, "errno", None) not in (None, errno.EINVAL):
            raise
        why = printable(f"{type(problem).__name__}: {problem}")
        raise _refused(
            f"it is damaged, cut short, encrypted or no .zip, .tar or .tar.gz ({why})"
        ) from problem
    else:
        # They differ when a header lied, or the file system takes two names for one, or another run is in the folder.
        if measure(temporary) != (files, file_bytes) or not files:
            raise _refused(
                f"its headers state {files:,} files of {file_bytes:,} bytes, which is not what came out"
            )
        record(files, file_bytes)
        if folder.is_dir():  # Windows moves nothing onto an empty one.
            folder.rmdir()
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def measure(folder: Path) -> tuple[int, int]:
    """Number and bytes of the files in a folder; what Finder adds while somebody looks at it does not count."""
    files = [
        Path(parent) / name
        for parent, _, names in os.walk(folder)
        for name in names
        if not _CLUTTER.search(name)
    ]
    return len(files), sum(path.stat().st_size for path in files)


def printable(text: str) -> str:
    r"""Text from outside, safe in any terminal and of bounded length.

    >>> print(printable("a\x1b[2Jb"))
    a\x1b[2Jb
    """
    return ascii(text[:200])[1:-1]


def _write_members(archive: Path, folder: Path) -> tuple[int, int]:
    """Write the files into the folder and return their number and the bytes that their headers state."""
    limit_bytes = min(
        UNPACKED_BYTES_MAX, UNPACKED_BYTES_FREE + UNPACKED_RATIO_MAX * archive.stat().st_size
    )
    names: dict[PurePosixPath, bool] = {}
    files, file_bytes, left_bytes = 0, 0, limit_bytes
    with archive.open("rb") as file:
        for count, member in enumerate(_members(file, limit_bytes), start=1):
            parts = _place(member, names)
            if not member.is_plain:
                raise _refused(
                    f"{printable(member.name)} is a link, a device, or packed in a way images are not"
                )
            if count + len(names) > MEMBERS_MAX:
                raise _refused(f"it holds more than {MEMBERS_MAX:,} files and folders")
            if not 0 <= member.bytes <= left_bytes:
                raise _refused(
                    f"it unpacks to more than {limit_bytes:,} bytes, which images do not"
                )
            left_bytes -= member.bytes
            path = folder.joinpath(*parts)
            if member.is_folder:
                path.mkdir(parents=True, exist_ok=True)
            elif parts:
                path.parent.mkdir(parents=True, exist_ok=True)
                with member.open() as stream, path.open("xb") as target:
                    shutil.copyfileobj(stream, target, _PIECE_BYTES)
                files, file_bytes = files + 1, file_bytes + member.bytes
    return files, file_bytes


def _place(member: _Member, names: dict[PurePosixPath, bool]) -> tuple[str, ...]:
    """The parts of a member's path, () for what is not to be written; adds to names (-> whether it is a folder)."""
    path, shown = PurePosixPath(member.name), printable(member.name)
    portable = (
        len(member.name) <= 1000 and member.name.isprintable() and (path.parts or member.is_folder)
    )
    if not portable or not all(
        _PORTABLE.fullmatch(part) and len(part.encode()) <= 255 for part in path.parts
    ):
        raise _refused(
            f"{shown} leads out of the folder, or is no file name on some operating system"
        )
    if _CLUTTER.search(str(path)):
        return ()
    same = PurePosixPath(unicodedata.normalize("NFC", str(path)).casefold())
    for each in (same, *same.parents):
        is_folder = member.is_folder or each != same
        if each in names and not (is_folder and names[each]):
            raise _refused(f"{shown} stands there twice (capital letters aside)")
        names[each] = is_folder
    return path.parts


def _members(file: io.BufferedReader, limit_bytes: int) -> Iterator[_Member]:
    start = file.peek(2)[:2]
    if start == b"PK":
        return _zip_members(file)
    return _tar_members(
        _Bounded(gzip.GzipFile(fileobj=file) if start == b"\x1f\x8b" else file, limit_bytes)
    )


def _zip_members(file: IO[bytes]) -> Iterator[_Member]:
    with zipfile.ZipFile(file) as opened:
        for found in progress(opened.infolist(), "unpacking", len(opened.infolist()), "members"):
            kind = stat.S_IFMT(found.external_attr >> 16)
            # Methods other than deflate may need any amount of memory.
            is_plain = kind in (0, stat.S_IFREG, stat.S_IFDIR) and found.compress_type in (
                0,
                zipfile.ZIP_DEFLATED,
            )
            is_folder = found.is_dir() or kind == stat.S_IFDIR
            # zipfile cuts its own copy of the name at a NUL; the original is what was meant.
            yield _Member(
                found.orig_filename,
                is_plain,
                is_folder,
                found.file_size,
                partial(opened.open, found),
            )


def _tar_members(bounded: _Bounded) -> Iterator[_Member]:
    # Not extractall(filter="data"): it renames absolute paths instead of refusing them, and lets links pass.
    with tarfile.open(fileobj=cast("IO[bytes]", bounded), mode="r:") as opened:
        for found in progress(opened, "unpacking", 0, "members"):
            is_plain = (found.isreg() or found.isdir()) and not found.issparse()
            yield _Member(
                found.name, is_plain, found.isdir(), found.size, partial(opened.extractfile, found)
            )
    # tarfile also ends, without a word, where the file is cut or a header is spoilt; the end is a block of zeros.
    if bounded.last != bytes(tarfile.BLOCKSIZE):
        raise EOFError("no end mark")
    while bounded.read(_PIECE_BYTES):  # gzip compares its checksum only at the very end.
        pass


class _Bounded:
    """What tarfile reads from: no further than allowed, and no huge header into memory."""

    def __init__(self, stream: Any, limit_bytes: int) -> None:
        self.seek, self.tell, self._stream = stream.seek, stream.tell, stream
        self._limit_bytes, self.last = limit_bytes, b""

    def read(self, size_bytes: int) -> bytes:
        if not 0 <= size_bytes <= TAR_READ_BYTES_MAX or self.tell() > self._limit_bytes:
            raise _refused("its headers ask for far more bytes than images need")
        self.last = self._stream.read(size_bytes)
        return self.last


def _refused(why: str) -> DataError:
    return DataError(
        f"The archive was not unpacked: {why}. Get it again from the address on the dataset's card, or unpack by hand "
        "what you trust and set ingest.raw."
    )
