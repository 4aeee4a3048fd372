"""Which file a row of a table means: by its path, or by what tables have in place of one."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from posixpath import splitext
from urllib.parse import unquote

from equipoise.core import images


@dataclass(frozen=True)
class Match:
    """The names of a table beside the files there are.

    Attributes:
        path_of: Name -> the file it means.
        loose: Names that are no path inside the folder, but fit one file by name.
        absent: Names without a file.
        unnamed: Files without a name.
        ambiguous: Names that fit several files equally well, with these.
    """

    path_of: dict[str, str]
    loose: list[str]
    absent: list[str]
    unnamed: list[str]
    ambiguous: dict[str, list[str]]


def plain_path(name: str) -> str:
    """A path as it is compared, with slashes.

    >>> plain_path(r".\\scans\\a.png")
    'scans/a.png'
    """
    path = unicodedata.normalize("NFC", name.strip())
    path = re.sub(r"[\\/]+", "/", path)
    return path.removeprefix("./").removeprefix("/")


def match(names: Sequence[str], paths: Sequence[str]) -> Match:
    """Find the file that each name means.

    A name that is the path of a file means this file. Else it means a file that no path names and
    that bears its name: the ending may lack or be another, letter case does not count, and of their
    folders one may begin higher up than the other (`images/a.png` is `set1/images/a.png`; `b/1.png`
    is never `c/1.png`), and it may be written as in an address (`a%20b.png`). Of several, the one
    with the same ending and the most folders in common.

    Args:
        names: Distinct, as of `plain_path`.
        paths: Relative paths of the files.
    """
    path_of_plain = {plain_path(path): path for path in paths}
    path_of = {name: path_of_plain[name] for name in names if name in path_of_plain}
    free = [plain for plain in path_of_plain if plain not in path_of]
    files = _Files(free)
    loose = []
    absent = []
    ambiguous = {}
    for name in names:
        if name in path_of:
            continue
        best = _best(name, files.candidates(name))
        if not best and "%" in name:
            plain = plain_path(unquote(name))  # as in an address: %20 is a blank
            best = _best(plain, files.candidates(plain))
        if not best:
            absent.append(name)
        elif len(best) > 1:
            ambiguous[name] = [path_of_plain[plain] for plain in best]
        else:
            path_of[name] = path_of_plain[best[0]]
            loose.append(name)
    named = set(path_of.values())
    unnamed = [path for path in paths if path not in named]
    return Match(path_of, loose, absent, unnamed, ambiguous)


class _Files:
    """Finds files by their path without the ending, in lower case, and by the ends of it."""

    def __init__(self, plain_paths: Sequence[str]) -> None:
        self._of_path: dict[str, list[str]] = {}
        self._of_end: dict[str, list[str]] = {}
        for plain in plain_paths:
            bare = _bare(plain)
            self._of_path.setdefault(bare, []).append(plain)
            for end in _ends(bare):
                self._of_end.setdefault(end, []).append(plain)

    def candidates(self, name: str) -> list[str]:
        """The files whose path ends with a name, and those whose path is an end of it."""
        bare = _bare(name)
        candidates = list(self._of_end.get(bare, []))
        for end in _ends(bare)[1:]:
            candidates += self._of_path.get(end, [])
        return candidates


def _bare(plain: str) -> str:
    """A path in lower case, without the ending of an image file."""
    path = plain.casefold()
    without_ending, ending = splitext(path)
    return without_ending if ending in images.SUFFIXES else path


def _ends(bare: str) -> list[str]:
    """A path, and what is left of it without its first folders.

    >>> _ends("a/b/c")
    ['a/b/c', 'b/c', 'c']
    """
    parts = bare.split("/")
    return ["/".join(parts[first:]) for first in range(len(parts))]


def _best(name: str, candidates: Sequence[str]) -> list[str]:
    """The candidates that are most like a name."""
    if len(candidates) < 2:
        return list(candidates)
    best: list[str] = []
    likeness_of_best = (False, 0, False)
    for plain in candidates:
        likeness = _likeness(PurePosixPath(name), PurePosixPath(plain))
        if likeness > likeness_of_best:
            best = []
            likeness_of_best = likeness
        if likeness == likeness_of_best:
            best.append(plain)
    return best


def _likeness(name: PurePosixPath, file: PurePosixPath) -> tuple[bool, int, bool]:
    """Whether the endings are the same, how many folders agree, and whether the letter case does."""
    same_ending = name.suffix.casefold() == file.suffix.casefold()
    common = min(len(name.parts), len(file.parts))
    same_case = name.parts[-common:] == file.parts[-common:]
    return same_ending, common, same_case
