"""Whether a manifest is still of its raw folder, and of the code that reads it: asked before one is believed.

Names and sizes of the files and a digest of the code stand beside the manifest and are the same on every machine. Times
are of one machine: they lie in `data/local`, outside git and DVC, and tell which files are worth reading again.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from equipoise.core import dicom
from equipoise.core.config import Study
from equipoise.core.documents import IngestSummary
from equipoise.core.environment import code_digest
from equipoise.core.errors import DataError
from equipoise.core.files import digest_of, file_digest, read_json, write_json
from equipoise.core.images import files_below, hidden
from equipoise.core.records import Manifest
from equipoise.core.text import counted
from equipoise.ingest import leftovers, originals, quarantine

#: What makes a manifest: the dependencies of the stage in dvc.yaml.
CODE = (
    "ingest",
    "core/images.py",
    "core/greylevels.py",
    "core/rasters.py",
    "core/dicom.py",
)
#: Files that a sentence names.
_NAMED = 3


class RawFile(NamedTuple):
    """What the system says of a file without reading it.

    Attributes:
        path: Inside the raw folder.
        size_bytes: Its size.
        written_ns: When it was written, in nanoseconds of this machine's clock.
    """

    path: str
    size_bytes: int
    written_ns: int


def code() -> str:
    """Digest of the code that makes a manifest."""
    return code_digest(*CODE)


def list_files(raw: Path) -> list[RawFile]:
    """Every file of a raw folder that is not hidden, sorted by path; none where there is no folder.

    Linked folders are followed.
    """
    if not raw.is_dir():
        return []
    files = []
    for relative in files_below(raw):
        path = os.path.join(raw, relative)
        if any(map(hidden, relative.split("/"))) or not os.path.isfile(path):
            continue
        told = os.stat(path)
        files.append(RawFile(relative, told.st_size, told.st_mtime_ns))
    return sorted(files)


def names_and_sizes(files: Sequence[RawFile], hashed: bool) -> str:
    """Digest of what a raw folder holds, as far as it is known without reading.

    Args:
        files: As `list_files` gives them.
        hashed: Whether ids are hashed: a name may be a person's, so nothing of it goes into the digest.
    """
    if hashed:
        return digest_of(sorted(file.size_bytes for file in files))
    return digest_of([[file.path, file.size_bytes] for file in files])


def note(
    study: Study, manifest: Manifest, files: Sequence[RawFile], digests: Mapping[str, str]
) -> None:
    """Keep on this machine what each file of the raw folder holds, and when it was written.

    Args:
        study: For its folders.
        manifest: The notes are on this one.
        files: As `list_files` gave them before the manifest was made.
        digests: SHA-256 of files that were read, by path; only the others are read once more.
    """
    noted = {}
    for file in files:
        digest = digests.get(file.path) or _digest(study.raw / file.path)
        # Whoever gives the right to read a file leaves its time as it is: such a file is always looked at again.
        noted[file.path] = [file.written_ns if digest else None, digest]
    write_json(_notes_path(study), {"manifest": manifest.digest, "files": noted})


def change(study: Study, manifest: Manifest) -> str:
    """What has changed since a manifest was made, in words; empty where nothing has.

    Nothing is written. Where this machine has no notes on the manifest (a fresh clone), names and sizes decide; a raw
    folder that was never on this machine stays at home, and its manifest is believed.
    """
    if not study.raw.is_dir():
        was_here = _notes_path(study).is_file()
        return f"{study.raw} is not there any more" if was_here else ""
    try:
        summary = IngestSummary.read(study.manifest_path.with_suffix(".json"))
    except DataError as error:
        return str(error)
    if summary.code != code():
        return "the code that reads the raw folder has changed"
    readable = _readable_by_now(study, summary)
    if readable:
        return (
            f"{counted(readable, 'DICOM file')} could not be read then and can be now, because "
            f"{dicom.EXTRA} has been installed"
        )
    files = list_files(study.raw)
    if summary.raw != names_and_sizes(files, summary.pseudonymised):
        return f"{study.raw} holds other files than then, or files of other sizes"
    edited = _edited(study, manifest, files)
    if edited:
        named = ", ".join(edited[:_NAMED])
        return f"{len(edited)} files of {study.raw} hold other bytes ({named})"
    return ""


def require_current(study: Study, manifest: Manifest) -> None:
    """Refuse a manifest that is not of the raw folder and the code as they are now.

    Raises:
        DataError: With what has changed, and the command that makes it anew.
    """
    changed = change(study, manifest)
    if changed:
        raise DataError(
            f"{study.manifest_path} is not of what is there now: {changed}. "
            f"Run `equipoise ingest --study {study.name}` or `dvc repro`; where originals were removed by mistake, "
            f"`dvc checkout` or `dvc pull` brings them back."
        )
    remember(study, manifest)


def remember(study: Study, manifest: Manifest) -> None:
    """Note the times of a raw folder that was found unchanged, so that the next look reads no file."""
    if not study.raw.is_dir():
        return  # it stays at home
    if manifest.meta.get("pseudonym_key") and not study.places_path.is_file():
        return  # without the way back from hashed ids nothing can be noted, and nothing depends on it
    files = list_files(study.raw)
    noted = _noted(study, manifest)
    if not noted or _touched(files, noted):
        note(study, manifest, files, _digests_by_path(study, manifest))


def _readable_by_now(study: Study, summary: IngestSummary) -> int:
    """How many files were left out because a package was missing that is here now."""
    readable = 0
    if dicom.is_installed():
        for kind, count in summary.left_out.items():
            readable += count * kind.endswith(leftovers.WITHOUT_PYDICOM)
    if dicom.unpacks_all():
        reasons = quarantine.reasons(quarantine.path_beside(study.manifest_path))
        readable += sum(reason.endswith(dicom.INSTALL) for reason in reasons)
    return readable


def _edited(study: Study, manifest: Manifest, files: Sequence[RawFile]) -> list[str]:
    """Paths of the files that hold other bytes than the notes say; only those written since are read."""
    noted = _noted(study, manifest)
    edited = []
    for file in _touched(files, noted):
        _, digest = noted[file.path]
        if _digest(study.raw / file.path) != digest:
            edited.append(file.path)
    return edited


def _digest(path: Path) -> str:
    """Digest of a file; empty where this user may not read it."""
    try:
        return file_digest(path)
    except PermissionError:
        return ""


def _touched(files: Sequence[RawFile], noted: dict[str, Any]) -> list[RawFile]:
    """Files that were written since they were noted."""
    return [file for file in files if file.path in noted and noted[file.path][0] != file.written_ns]


def _noted(study: Study, manifest: Manifest) -> dict[str, Any]:
    """When each file was written and its digest, by path; empty without notes on this manifest."""
    try:
        notes = read_json(_notes_path(study))
    except DataError:
        return {}
    return notes["files"] if notes["manifest"] == manifest.digest else {}


def _digests_by_path(study: Study, manifest: Manifest) -> dict[str, str]:
    """Digest by path of the images that a manifest names; a picture inside an archive is no file."""
    path_of = originals.locate(study, manifest)
    images = manifest.table[["image_id", "sha256"]].itertuples(index=False)
    return {path_of[image_id]: sha256 for image_id, sha256 in images}


def _notes_path(study: Study) -> Path:
    return study.root / f"data/local/{study.name}.files.json"
