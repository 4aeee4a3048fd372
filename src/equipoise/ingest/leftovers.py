"""What lies in a raw folder and is no image of the study: left out, and counted by kind.

Names decide here, before any file is opened: other endings, hidden files, what systems leave in
folders, masks and thumbnails. `masks.py` looks at the pictures. `ingest.skip` and `ingest.keep`
have the last word.
"""

from __future__ import annotations

import functools
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from posixpath import basename, splitext

from equipoise.core import dicom, images
from equipoise.core.text import counted, first_of
from equipoise.core.yaml_text import written

HIDDEN = "hidden"
HIDDEN_FOLDERS = "in hidden folders"
SYSTEM = "in system folders"
SKIPPED = "by ingest.skip"
MASK_FOLDERS = "in folders of masks"
MASK_NAMES = "masks by their names"
THUMBNAILS = "thumbnails"
BROKEN_LINKS = "links that lead nowhere"
UNREADABLE = "files or folders that may not be read"
WITHOUT_ENDING = "without an ending"
NO_FILES = "pipes, sockets or devices"
#: What follows the ending of files that nothing here reads.
WITHOUT_PYDICOM = "without pydicom"
DICOM_INSIDE = "that are DICOM inside: rename them to .dcm"

#: Kinds that may hold pictures somebody wants: the summary says how to get them back.
DOUBTFUL = (MASK_FOLDERS, MASK_NAMES, THUMBNAILS, HIDDEN_FOLDERS)

#: Folders that network disks, systems and bins make; in lower case.
_SYSTEM_FOLDERS = frozenset(
    {
        "@eadir",
        "@recycle",
        "#recycle",
        "#snapshot",
        "$recycle.bin",
        "recycle.bin",
        "recycler",
        "system volume information",
        "lost+found",
        "__macosx",
        "@tmp",
        "@recently-snapshot",
        "~snapshot",
        "network trash folder",
        "temporary items",
        "recycled",
        "found.000",
    }
)
#: Folders of masks and of drawings on images; in lower case, with blanks between their words.
_MASK_FOLDERS = frozenset(
    {
        "mask",
        "masks",
        "binary mask",
        "binary masks",
        "lung mask",
        "lung masks",
        "left mask",
        "right mask",
        "segmentation",
        "segmentations",
        "segmentation mask",
        "segmentation masks",
        "ground truth",
        "groundtruth",
        "gt",
        "maske",
        "masken",
        "masque",
        "masques",
        "mascara",
        "mascaras",
        "máscara",
        "máscaras",
        "annotation",
        "annotations",
        "superpixels",
    }
)
#: A folder with one of these words in its name holds masks where one of the pictures' lies beside it, and each file
#: is called like a picture there: `images/7.png` and `infection masks/7.png`, `imagesTr` and `labelsTr`.
_WORDS_FOR_MASKS = (
    "mask masks maske masken masque masques mascara mascaras máscara máscaras seg segmentation segmentations gt truth "
    "truths groundtruth groundtruths annotation annotations label labels labelmap labelmaps heatmap heatmaps contour "
    "contours overlay overlays"
)
_WORDS_FOR_PICTURES = (
    "image images img imgs original originals picture pictures photo photos scan scans frame frames raw full bild "
    "bilder imagen imagenes imágenes"
)
_MASK_FOLDER_WORDS = frozenset(_WORDS_FOR_MASKS.split())
_PICTURE_FOLDER_WORDS = frozenset(_WORDS_FOR_PICTURES.split())
_THUMBNAIL_FOLDERS = frozenset({"thumb", "thumbs", "thumbnail", "thumbnails"})
#: Hidden folders in which programs keep copies of their own.
_PROGRAM_FOLDERS = (".ipynb_checkpoints", ".thumbnails", ".trash", ".git", ".dvc", "__macosx")

_MASK_WORDS = (
    r"(masks?|maske|masque|m[aá]scara|seg|segs|segmentations?|superpixels?|ground[ _-]?truth|gt|annotations?|"
    r"annotated|labels?|labelmap|roi|contours?|overlays?|heatmaps?)"
)
#: `NAME_mask.png`, `NAME_mask_1.png`, `NAME-seg2.png`: NAME is the picture it belongs to.
_MASK_OF = re.compile(rf"(?P<picture>.+?)[ _.-]+{_MASK_WORDS}(?![a-z]).*", re.I)
#: `NAME_masks`: NAME is the folder of the pictures.
_MASK_FOLDER_OF = re.compile(r"(?P<pictures>.+?)[ _.-]+(masks?|segmentations?)", re.I)
#: `mask_NAME.png`
_MASK_BEFORE = re.compile(rf"{_MASK_WORDS}[ _.-]+(?P<picture>.+)", re.I)
#: `NAME_tumor_seg.png`, `NAMEmask.png`, `NAME_lungMask_2.png`: what ends with a word for masks, whatever stands before.
_MASK_AT_END = re.compile(rf"((?<![^\W\d_]){_MASK_WORDS}|masks?)[ _.-]*\d*$", re.I)
#: What stands between NAME and that word: separators, or one more word.
_LAST_WORD = re.compile(r"[ _.-]*[^\W\d_]*[ _.-]*$")
_SEPARATORS = re.compile(r"[ _.-]+")
_THUMBNAIL_OF = re.compile(r"(?P<picture>.+?)[ _.-]+(thumb|thumbnail)s?", re.I)
_IMAGE_WORDS = ("", "image_", "img_")


@dataclass(frozen=True)
class Listing:
    """The files of a raw folder.

    Attributes:
        paths: Relative paths of the images, sorted.
        left_out: How many other files there are, by kind: an ending (`.txt`), or one of the kinds
            above.
        idle_patterns: Patterns of `ingest.skip` and `ingest.keep` that fit no file.
        unreadable: Relative paths of what this user may not read, sorted.
    """

    paths: list[str]
    left_out: dict[str, int]
    idle_patterns: list[str]
    unreadable: list[str] = field(default_factory=list)

    @property
    def remarks(self) -> list[str]:
        """What the user should know of the patterns, and of what may not be read."""
        remarks = [f"no file fits the pattern {pattern!r}" for pattern in self.idle_patterns]
        if self.unreadable:
            shown = first_of(self.unreadable, separator=", ")
            remarks.append(f"this user may not read {shown}: nothing of it is in the study")
        return remarks

    @property
    def num_left_out(self) -> int:
        """How many files are no images of the study."""
        return sum(self.left_out.values())

    @property
    def text(self) -> str:
        """The other files in words, by kind, and how to get pictures among them back; empty without any."""
        if not self.left_out:
            return ""
        text = f"{counted(self.num_left_out, 'other file')}: {in_words(self.left_out)}"
        return text + advice_to_keep(self.left_out)


def list_images(
    raw: Path, suffixes: frozenset[str], skip: Sequence[str], keep: Sequence[str]
) -> Listing:
    """Find the images of a raw folder, and say what else lies there.

    Args:
        raw: The folder; linked folders are followed.
        suffixes: Endings of the files that hold images, in lower case.
        skip: Patterns of files that are left out, see `fits`.
        keep: Patterns of files that stay whatever they are called; they go before `skip`.

    Raises:
        DataError: For a link that leads back to a folder above it.
    """
    files = sorted(images.files_below(raw))
    readable = frozenset(path for path in files if images.holds_images(raw, path, suffixes))
    mask_folders = _folders_of_masks(_folders_with_images(readable))
    mask_folders |= _folders_beside_pictures(readable)
    rules = _Rules(skip, keep, frozenset(map(_stem, readable)), mask_folders)
    paths: list[str] = []
    unreadable: list[str] = []
    kinds: Counter[str] = Counter()
    for path in files:
        kind = rules.kind_of_image(path) if path in readable else _kind_of_other(raw, path)
        if kind == UNREADABLE:
            unreadable.append(path)
        if kind:
            kinds[kind] += 1
        else:
            paths += images.pictures_in(raw, path)
    idle = [pattern for pattern in (*skip, *keep) if not any(fits(path, pattern) for path in files)]
    return Listing(sorted(paths), dict(kinds.most_common()), idle, unreadable)


def idle_folders(raw: Path, listing: Listing) -> list[str]:
    """Relative paths of the folders without an image, but for those that are left out by their names.

    Folders inside such a folder are not named; nor are folders that may not be read: nobody knows what they hold.

    Args:
        raw: The raw folder.
        listing: Its files.
    """
    holding = _folders_with_images([*listing.paths, *listing.unreadable])
    known = holding.union(listing.unreadable)
    idle = []
    for folder in sorted(holding):
        for entry in os.scandir(raw / folder):
            relative = f"{folder}/{entry.name}".removeprefix("/")
            is_idle = images.is_folder(entry) and relative not in known
            if is_idle and not _kind_of_folder(entry.name):
                idle.append(relative)
    return sorted(idle)


def remarks_on_links(raw: Path, paths: Iterable[str]) -> list[str]:
    """What to say of linked folders inside a raw folder."""
    linked = [
        folder for folder in _folders_with_images(paths) if folder and (raw / folder).is_symlink()
    ]
    if not linked:
        return []
    return [
        f"linked folders followed: {len(linked)}. DVC does not look behind them: it keeps no copy of "
        f"their files, and after a change there `dvc repro --force ingest@STUDY` is needed"
    ]


def in_words(left_out: Mapping[str, int]) -> str:
    """Kinds with their counts.

    >>> in_words({".txt": 12, "hidden": 1})
    '12 .txt, 1 hidden'
    """
    return ", ".join(f"{count} {kind}" for kind, count in left_out.items())


def advice_to_keep(left_out: Iterable[str]) -> str:
    """How to take files that were left out by their names; empty where none of the kinds may hold pictures."""
    if not set(DOUBTFUL).intersection(left_out):
        return ""
    return " (ingest.keep takes what is an image after all)"


def fits(path: str, pattern: str) -> bool:
    """Whether a relative path fits a pattern of `ingest.skip` or `ingest.keep`.

    A pattern without a slash is of the name of a file or folder at any depth. One that ends in a
    slash is of a folder. One with a slash inside begins at the raw folder.

    >>> fits("benign/1_mask.png", "*_mask*"), fits("benign/masks/1.png", "masks/")
    (True, True)
    >>> fits("benign/masks/1.png", "benign/masks"), fits("benign/1.png", "malignant/*")
    (True, False)
    """
    parts = unicodedata.normalize("NFC", path).split("/")
    plain = unicodedata.normalize("NFC", pattern).replace("\\", "/")
    wanted = plain.removeprefix("./").rstrip("/")
    of_folders = plain.endswith("/")
    if "/" not in wanted:
        names = parts[:-1] if of_folders else parts
        return wanted in names or any(fnmatchcase(name, wanted) for name in names)
    longest = len(parts) - of_folders
    heads = ("/".join(parts[:length]) for length in range(1, longest + 1))
    return any(fnmatchcase(head, wanted.removeprefix("/")) for head in heads)


def fits_one(path: str, patterns: Iterable[str]) -> bool:
    """Whether a relative path fits at least one pattern."""
    return any(fits(path, pattern) for pattern in patterns)


def named_like_a_mask(path: str) -> bool:
    """Whether a file is called as masks are, for example `NAME_mask.png`.

    >>> named_like_a_mask("a/7_mask_1.png"), named_like_a_mask("a/masked.png")
    (True, False)
    """
    stem = _stem(path)
    return bool(_MASK_OF.fullmatch(stem) or _MASK_BEFORE.fullmatch(stem))


@dataclass(frozen=True)
class _Rules:
    """Tells which files with the ending of an image are none of the study.

    Attributes:
        skip: Patterns of `ingest.skip`.
        keep: Patterns of `ingest.keep`.
        stems: Names of all files that may hold images, without ending.
        mask_folders: Relative paths of folders that are called as the masks of a folder beside them, and of all
            inside of them.
    """

    skip: Sequence[str]
    keep: Sequence[str]
    stems: frozenset[str]
    mask_folders: Collection[str]

    def kind_of_image(self, path: str) -> str:
        """Why a file is left out; nothing when it stays."""
        if fits_one(path, self.keep):
            return ""
        if fits_one(path, self.skip):
            return SKIPPED
        folder, _, name = path.rpartition("/")
        kind = _kind_of_folder(folder)
        if kind:
            return kind
        if images.hidden(name):
            return HIDDEN
        if folder in self.mask_folders:
            return MASK_FOLDERS
        if self._belongs_to_another(path, _THUMBNAIL_OF):
            return THUMBNAILS
        if any(self._belongs_to_another(path, naming) for naming in (_MASK_OF, _MASK_BEFORE)):
            return MASK_NAMES
        return MASK_NAMES if self._ends_like_a_mask_of_another(path) else ""

    def _belongs_to_another(self, path: str, naming: re.Pattern[str]) -> bool:
        """Whether a name is made of the name of another picture, as NAME_mask is of NAME."""
        match = naming.fullmatch(_stem(path))
        if not match:
            return False
        return any(word + match["picture"] in self.stems for word in _IMAGE_WORDS)

    def _ends_like_a_mask_of_another(self, path: str) -> bool:
        """Whether a name is that of another picture, perhaps a word, and a word for masks."""
        stem = _stem(path)
        end = _MASK_AT_END.search(stem)
        if not end:
            return False
        before = stem[: end.start()]
        beginnings = {before.rstrip(" _.-"), _LAST_WORD.sub("", before)}
        return not self.stems.isdisjoint(beginnings - {""})


def _folders_with_images(paths: Iterable[str]) -> set[str]:
    """Relative paths of all folders in which images lie at some depth, the raw folder's among them."""
    holding = {""}
    for folder in {path.rpartition("/")[0] for path in paths}:
        parts = folder.split("/")
        holding.update("/".join(parts[:length]) for length in range(1, len(parts) + 1))
    return holding


def _folders_of_masks(folders: Collection[str]) -> set[str]:
    """Of folders those that are called as the masks of a folder beside them, and all inside of them."""
    of_masks: set[str] = set()
    for folder in sorted(folders):  # a folder comes before those inside of it
        above, _, name = folder.rpartition("/")
        match = _MASK_FOLDER_OF.fullmatch(name)
        beside = f"{above}/{match['pictures']}".removeprefix("/") if match else ""
        if above in of_masks or (beside and beside in folders):
            of_masks.add(folder)
    return of_masks


def _folders_beside_pictures(readable: Iterable[str]) -> set[str]:
    """Of folders with a word for masks in their names those that hold the masks of pictures beside them."""
    files_in: dict[str, set[str]] = {}
    for path in readable:
        files_in.setdefault(path.rpartition("/")[0], set()).add(_stem(path))
    folders = _folders_with_images(f"{folder}/x" for folder in files_in)
    suspects = {folder for folder in folders if _words(folder) & _MASK_FOLDER_WORDS}
    of_masks: set[str] = set()
    if not suspects:
        return of_masks
    inside: dict[str, list[str]] = {}
    for folder in folders - {""}:
        inside.setdefault(folder.rpartition("/")[0], []).append(folder)
    for folder in suspects:
        above = folder.rpartition("/")[0]
        pictures = set(files_in.get(above, ()))
        for beside in inside[above]:
            if _words(beside) & _PICTURE_FOLDER_WORDS and beside not in suspects:
                for deeper in _folders_below(beside, inside):
                    pictures |= files_in.get(deeper, set())
        below = _folders_below(folder, inside)
        stems = [stem for deeper in below for stem in files_in.get(deeper, ())]
        if pictures and all(belongs_to(stem, pictures) for stem in stems):
            of_masks.update(below)
    return of_masks


def _folders_below(folder: str, inside: Mapping[str, Sequence[str]]) -> list[str]:
    """A folder, and all those inside of it."""
    below = [folder]
    for deeper in inside.get(folder, ()):
        below += _folders_below(deeper, inside)
    return below


def belongs_to(stem: str, names: Collection[str]) -> bool:
    """Whether a file has one of the names, or one with further words behind it.

    >>> belongs_to("7_lesion_1", {"7"}), belongs_to("71", {"7"})
    (True, False)
    """
    if stem in names:
        return True
    return any(stem[: match.start()] in names for match in _SEPARATORS.finditer(stem))


def remarks_on_pairs(paths: Iterable[str]) -> list[str]:
    """What to say of images that differ in their endings only: one may be a copy, a mask or a drawing of the other."""
    endings_of: dict[str, list[str]] = {}
    for path in paths:
        endings_of.setdefault(splitext(path)[0], []).append(path)
    pairs = sorted(sorted(same) for same in endings_of.values() if len(same) > 1)
    if not pairs:
        return []
    pattern = written(f"*{splitext(pairs[0][-1])[1]}")
    return [
        f"{counted(len(pairs), 'name')} with several endings, as {' and '.join(pairs[0])}: each file counts as an "
        f"image. Leave out what is none, for example with ingest.skip: [{pattern}]"
    ]


@functools.lru_cache(maxsize=1024)
def _kind_of_folder(folder: str) -> str:
    """Why nothing in a folder is an image of a study; empty where its path does not say so."""
    names = folder.split("/")
    if any(name.lower() in _SYSTEM_FOLDERS for name in names):
        return SYSTEM
    hidden_names = [name.lower() for name in names if images.hidden(name)]
    if hidden_names:
        is_known = any(name.startswith(_PROGRAM_FOLDERS) for name in hidden_names)
        return HIDDEN if is_known else HIDDEN_FOLDERS
    plain_names = set(map(_plain, names))
    if plain_names & _MASK_FOLDERS:
        return MASK_FOLDERS
    return THUMBNAILS if plain_names & _THUMBNAIL_FOLDERS else ""


def _kind_of_other(raw: Path, path: str) -> str:
    """The kind of a file that is no image by its ending."""
    if any(map(images.hidden, path.split("/"))):
        return HIDDEN
    try:
        mode = os.stat(raw / path).st_mode
    except PermissionError:
        return UNREADABLE
    except OSError:
        return BROKEN_LINKS
    if stat.S_ISDIR(mode):
        return UNREADABLE
    if not stat.S_ISREG(mode):
        return NO_FILES  # whoever opens a pipe waits for ever
    if dicom.is_dicom_file(raw / path) and not dicom.is_installed():
        return f"{PurePosixPath(path).suffix.lower() or 'DICOM'} {WITHOUT_PYDICOM}"
    ending = _ending(path)
    if ending and dicom.is_marked_dicom(raw / path):
        return f"{ending} {DICOM_INSIDE}"
    return ending or WITHOUT_ENDING


def _ending(path: str) -> str:
    """The ending of a file in lower case, both of a packed one.

    >>> _ending("a/CT.1.nii.gz"), _ending("a/NOTES.TXT")
    ('.nii.gz', '.txt')
    """
    endings = PurePosixPath(path).suffixes
    is_packed = endings[-1:] in ([".gz"], [".bz2"], [".xz"])
    return "".join(endings[-2 if is_packed else -1 :]).lower()


def _stem(path: str) -> str:
    return splitext(basename(path))[0]


@functools.lru_cache(maxsize=4096)
def _words(folder: str) -> frozenset[str]:
    """The words in the name of a folder, in lower case.

    >>> sorted(_words("set/2. Lung-Masks")), sorted(_words("labelsTr"))
    (['lung', 'masks'], ['labels', 'tr'])
    """
    return frozenset(re.findall(r"[^\W\d_]+", _plain(basename(folder))))


def _plain(name: str) -> str:
    """The name of a folder in lower case, with blanks between its words.

    >>> _plain("Ground_Truth"), _plain("leftMask")
    ('ground truth', 'left mask')
    """
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", name)
    words = re.sub(r"[ _-]+", " ", words)
    return words.strip().lower()
