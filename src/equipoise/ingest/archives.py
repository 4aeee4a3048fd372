"""Unpacks an archive that came from outside, or refuses it.

The readers of Python's standard library check sums and give no more bytes than a header states.
What they leave open is done here: names, links, how much is unpacked, and whether anything is
missing.
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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import IO, Any, NamedTuple, cast

from equipoise.core.errors import DataError
from equipoise.core.files import atomic_folder
from equipoise.core.parallel import progress

#: The longest text or list that a tar header may carry; a path needs a few hundred bytes.
TAR_READ_BYTES_MAX = 4 * 2**20

_NAME_LETTERS_MAX = 1000
_NAME_PART_BYTES_MAX = 255
_PIECE_BYTES = 2**20
_PORTABLE = re.compile(
    r'(?!(con|prn|aux|nul|com\d|lpt\d)(\.|$))[^/\\:*?"<>|]*[^/\\:*?"<>|. ]', re.I
)
#: What Finder adds: no image of the dataset.
_CLUTTER = re.compile(r"(^|/)(__MACOSX(/|$)|\._|\.DS_Store$)")
#: What the readers raise when an archive is damaged.
_DAMAGE = (
    EOFError,
    LookupError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct.error,
    zlib.error,
    tarfile.TarError,
    zipfile.BadZipFile,
)
_GZIP_START = b"\x1f\x8b"
_ZIP_START = b"PK"


@dataclass(frozen=True)
class Limits:
    """How much an archive may unpack to.

    Attributes:
        members: Files and folders. Kermany v2 has 5,856 images and BreakHis 7,909; Finder's
            archives hold every file twice.
        ratio: Unpacked bytes for each byte of the archive. Images hardly shrink when packed
            (Kermany v2 and BreakHis by a few percent); tables and masks may by ten times.
        free_bytes: Allowed whatever the ratio: it says nothing about small archives.
        most_bytes: Never more, whatever the ratio: eight times BreakHis (4 GB), the largest of the
            datasets.
    """

    members: int = 100_000
    ratio: int = 20
    free_bytes: int = 64 * 2**20
    most_bytes: int = 32 * 2**30

    def bytes_of(self, archive: Path) -> int:
        """Bytes that one archive may unpack to."""
        by_ratio = self.free_bytes + self.ratio * archive.stat().st_size
        return min(self.most_bytes, by_ratio)


class Contents(NamedTuple):
    """How many files there are, and their bytes together."""

    files: int
    file_bytes: int


class _Member(NamedTuple):
    """A file or folder inside an archive.

    Attributes:
        name: As it stands in the archive.
        is_plain: Whether it is a file or folder, packed in a way that images are.
        is_folder: Whether it is a folder.
        bytes: How large its header says it is.
        open: Gives a readable stream of its content.
    """

    name: str
    is_plain: bool
    is_folder: bool
    bytes: int
    open: Callable[[], Any]

    @property
    def path(self) -> PurePosixPath:
        """Where it belongs, relative to the folder; checked before it is used."""
        return PurePosixPath(self.name)


LIMITS = Limits()


def unpack(
    archive: Path,
    folder: Path,
    record: Callable[[Contents], None],
    limits: Limits = LIMITS,
) -> None:
    """Unpack a .zip, .tar or .tar.gz; nothing stands in the folder before all of it does.

    Args:
        archive: The file; its name tells nothing.
        folder: Where to; missing or empty.
        record: Called when all files are written, just before the folder appears.
        limits: How much it may unpack to.

    Raises:
        DataError: The archive is damaged or hostile or no archive; nothing of it stays.
    """
    with atomic_folder(folder, "unpacking") as scratch:
        stated = _write_members(archive, scratch, limits)
        # They differ when a header lied, or the file system takes two names for one, or another run
        # is in the folder.
        if measure(scratch) != stated or not stated.files:
            raise _refused(
                f"its headers state {stated.files:,} files of {stated.file_bytes:,} bytes, "
                f"which is not what came out"
            )
        record(stated)
        if folder.is_dir():
            # Fails, and so keeps the folder, where somebody has put files into it meanwhile.
            folder.rmdir()


def measure(folder: Path) -> Contents:
    """Number and bytes of the files in a folder; what Finder adds while somebody looks at it does not count."""
    files = 0
    file_bytes = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            if not _CLUTTER.search(name):
                files += 1
                file_bytes += Path(parent, name).stat().st_size
    return Contents(files, file_bytes)


def printable(text: str) -> str:
    r"""Text from outside, safe in any terminal and of bounded length.

    >>> print(printable("a\x1b[2Jb"))
    a\x1b[2Jb
    """
    return ascii(text[:200])[1:-1]


def _write_members(archive: Path, folder: Path, limits: Limits) -> Contents:
    """Write the files into the folder and return what their headers state."""
    limit_bytes = limits.bytes_of(archive)
    try:
        with archive.open("rb") as file:
            members = _members(file, limit_bytes)
            return _write_checked(members, folder, limits.members, limit_bytes)
    except _DAMAGE as problem:
        number = getattr(problem, "errno", None)
        # EINVAL is a seek to before the start, as a spoilt header asks for. Any other number tells
        # of this machine's disk.
        if number not in (None, errno.EINVAL):
            raise
        reason = printable(f"{type(problem).__name__}: {problem}")
        raise _refused(
            f"it is damaged, cut short, encrypted or no .zip, .tar or .tar.gz ({reason})"
        ) from problem


def _write_checked(
    members: Iterable[_Member], folder: Path, members_max: int, limit_bytes: int
) -> Contents:
    """Check each member before anything of it is written."""
    names = _Names()
    files = 0
    file_bytes = 0
    remaining_bytes = limit_bytes
    for count, member in enumerate(members, start=1):
        _check_portable(member)
        is_clutter = bool(_CLUTTER.search(str(member.path)))
        if not is_clutter:
            names.add(member)
        if not member.is_plain:
            raise _refused(
                f"{printable(member.name)} is a link, a device, or packed in a way images are not"
            )
        if count + len(names) > members_max:
            raise _refused(f"it holds more than {members_max:,} files and folders")
        if not 0 <= member.bytes <= remaining_bytes:
            raise _refused(f"it unpacks to more than {limit_bytes:,} bytes, which images do not")
        remaining_bytes -= member.bytes
        if is_clutter:
            continue
        _write(member, folder / member.path)
        if not member.is_folder:
            files += 1
            file_bytes += member.bytes
    return Contents(files, file_bytes)


def _write(member: _Member, path: Path) -> None:
    if member.is_folder:
        path.mkdir(parents=True, exist_ok=True)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with member.open() as stream, path.open("xb") as target:
        shutil.copyfileobj(stream, target, _PIECE_BYTES)


def _check_portable(member: _Member) -> None:
    """Refuse a name that leads out of the folder, or that some operating system does not allow."""
    parts = member.path.parts
    is_named = bool(parts) or member.is_folder  # A folder may be "./", the top of the archive.
    is_short = len(member.name) <= _NAME_LETTERS_MAX
    is_portable = is_named and is_short and member.name.isprintable()
    if not is_portable or not all(map(_is_portable_part, parts)):
        raise _refused(
            f"{printable(member.name)} leads out of the folder, or is no file name on some operating system"
        )


def _is_portable_part(part: str) -> bool:
    return bool(_PORTABLE.fullmatch(part)) and len(part.encode()) <= _NAME_PART_BYTES_MAX


class _Names:
    """The files and folders so far, spelled so that names which some file system takes for one are one."""

    def __init__(self) -> None:
        self._is_folder: dict[PurePosixPath, bool] = {}

    def __len__(self) -> int:
        return len(self._is_folder)

    def add(self, member: _Member) -> None:
        """Add a member and the folders above it; refuse it where a file of that name is there already."""
        spelled = unicodedata.normalize("NFC", str(member.path))
        own_path = PurePosixPath(spelled.casefold())
        for path in (own_path, *own_path.parents):
            is_folder = member.is_folder or path != own_path
            both_folders = is_folder and self._is_folder.get(path, True)
            if path in self._is_folder and not both_folders:
                raise _refused(
                    f"{printable(member.name)} stands there twice (capital letters aside)"
                )
            self._is_folder[path] = is_folder


def _members(file: io.BufferedReader, limit_bytes: int) -> Iterator[_Member]:
    start = file.peek(2)[:2]
    if start == _ZIP_START:
        return _zip_members(file)
    stream = gzip.GzipFile(fileobj=file) if start == _GZIP_START else file
    return _tar_members(_Bounded(stream, limit_bytes))


def _zip_members(file: IO[bytes]) -> Iterator[_Member]:
    with zipfile.ZipFile(file) as opened:
        infos = opened.infolist()
        for info in progress(infos, "unpacking", len(infos), "members"):
            kind = stat.S_IFMT(info.external_attr >> 16)
            is_file_or_folder = kind in (0, stat.S_IFREG, stat.S_IFDIR)
            # Methods other than deflate may need any amount of memory.
            is_simply_packed = info.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
            yield _Member(
                name=info.orig_filename,  # zipfile cuts its own copy at a NUL; this is what was meant.
                is_plain=is_file_or_folder and is_simply_packed,
                is_folder=info.is_dir() or kind == stat.S_IFDIR,
                bytes=info.file_size,
                open=partial(opened.open, info),
            )


def _tar_members(bounded: _Bounded) -> Iterator[_Member]:
    # tarfile's own filter="data" would replace none of our checks: it renames absolute paths
    # instead of refusing them, lets links pass that stay inside, and knows nothing of names and
    # sizes.
    with tarfile.open(fileobj=cast("IO[bytes]", bounded), mode="r:") as opened:
        for info in progress(opened, "unpacking", 0, "members"):
            is_file_or_folder = info.isreg() or info.isdir()
            yield _Member(
                name=info.name,
                is_plain=is_file_or_folder and not info.issparse(),
                is_folder=info.isdir(),
                bytes=info.size,
                open=partial(opened.extractfile, info),
            )
    # tarfile also ends, without a word, where the file is cut or a header is spoilt; the end of a
    # tar is a block of zeros.
    if bounded.last_read != bytes(tarfile.BLOCKSIZE):
        raise EOFError("no end mark")
    while bounded.read(_PIECE_BYTES):  # gzip compares its checksum only at the very end.
        pass


class _Bounded:
    """What tarfile reads from: no further than allowed, and no huge header into memory.

    Attributes:
        last_read: The bytes that were read last.
    """

    def __init__(self, stream: Any, limit_bytes: int) -> None:
        self.seek = stream.seek
        self.tell = stream.tell
        self.last_read = b""
        self._stream = stream
        self._limit_bytes = limit_bytes

    def read(self, size_bytes: int) -> bytes:
        """Read at most so many bytes."""
        is_small = 0 <= size_bytes <= TAR_READ_BYTES_MAX
        if not is_small or self.tell() > self._limit_bytes:
            raise _refused("its headers ask for far more bytes than images need")
        self.last_read = self._stream.read(size_bytes)
        return self.last_read


def _refused(why: str) -> DataError:
    return DataError(
        f"The archive was not unpacked: {why}. Get it again from the address on the dataset's card, or unpack by hand "
        "what you trust and set ingest.raw."
    )
