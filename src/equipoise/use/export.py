"""A study as folders or as a CSV, for other tools: made on request, by hard link.

Nothing is written where something stands, and nothing in the raw folder changes. A link is the
original under a second name: a tool that edits files in place needs `copy`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from equipoise.core import images, parallel
from equipoise.core.config import Study
from equipoise.core.documents import Document
from equipoise.core.errors import DataError
from equipoise.core.files import atomic_folder, digest_of, read_table
from equipoise.core.records import Manifest, Splits
from equipoise.embed import augment, imported
from equipoise.ingest import originals
from equipoise.split import checks

Layout = Literal["folders", "csv"]

#: What an export says of itself, inside its folder.
NOTE = "export.json"
_MANIFEST_COLUMNS = ["image_id", "sha256", "label", "class_name"]
#: What a plan says of one draw.
_DRAW_COLUMNS = ["draw", "view", "partner_id", "mix", "weight"]
_ROUND_COLUMNS = ["repeat", "fold", "part"]
_IMAGE_COLUMNS = ["image_id", "path", "patient_id", "label", "class_name"]
#: What a disk answers that cannot link: another disk, too many links, not allowed, not known.
_CANNOT_LINK = {errno.EXDEV, errno.EMLINK, errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS}
#: Bytes of a file name that every disk takes (255), less room for what makes it unique.
_NAME_BYTES = 200


class ExportNote(Document):
    """`export.json`: what an export was made from, and how many files it wrote."""

    study: str
    layout: str
    scenario: str | None
    backbone: str | None
    copied: bool
    manifest: str
    splits: str
    plan: str | None
    files: int


class Exported(NamedTuple):
    """The folder of an export, and how many files were written now."""

    folder: Path
    files: int


@dataclass(frozen=True)
class _Contents:
    """What is exported.

    Attributes:
        study: For the raw folder and how views are drawn.
        manifest: All images.
        splits: Their parts.
        plan: The draws of one seed of a scenario; None for every train image once.
        copy: Whether files are copied instead of linked.
    """

    study: Study
    manifest: Manifest
    splits: Splits
    plan: pd.DataFrame | None
    copy: bool

    def rows(self, repeat: int, fold: int) -> pd.DataFrame:
        """A row per file of one round: every image once, but train rows as the plan draws them.

        `draw` counts the draws of a view (0: plain) of an image. A draw may be mixed: `mix` (0..1)
        of the way to the features of `partner_id`; and it may weigh more or less than 1.
        """
        rows = self.splits.round(repeat, fold)
        rows = rows.merge(self.manifest.table[_MANIFEST_COLUMNS], on="image_id")
        once = rows.assign(draw=0, view=0, partner_id=None, mix=0.0, weight=1.0)
        if self.plan is None:
            return once
        of_round = (self.plan["repeat"] == repeat) & (self.plan["fold"] == fold)
        drawn = self.plan[of_round]
        drawn = drawn.assign(draw=drawn.groupby(["image_id", "view"]).cumcount())
        drawn = drawn.reindex(columns=["image_id", *_DRAW_COLUMNS])
        not_drawn = once[once["part"] != "train"]
        return pd.concat([not_drawn, drawn.merge(rows, on="image_id", how="left")])


def export_study(
    study: Study,
    layout: Layout,
    scenario: str | None = None,
    backbone: str | None = None,
    to: Path | None = None,
    copy: bool = False,
) -> Exported:
    """Write train, val and test of a study, or what one scenario trains on.

    The folder appears only when it is complete. Exporting the same thing again changes nothing (0
    new files).

    Args:
        study: Name and settings.
        layout: `folders` (`part/class/name`, below `repeat0_fold1/` where there are several rounds)
            or `csv`.
        scenario: Train rows as this result's plan draws them, first seed; an image drawn five times
            is five links. Augmented views are drawn as pictures, at the size the backbone saw. A
            mixed draw is a row of the CSV (`partner_id`, `mix`) and has no picture; what a draw
            weighs stands in `weight`.
        backbone: Of the result; needed with a scenario.
        to: Folder to write; `exports/<study>/...` below the study's root when left out.
        copy: Copy instead of linking, for tools that change files in place.

    Raises:
        DataError: When a parent is missing, the folder holds something else, or the plan cannot be
            said in folders.
    """
    manifest = Manifest.read(study.manifest_path)
    splits = Splits.read(study.splits_path)
    checks.check_split(splits, manifest)
    plan = None if scenario is None else _read_plan(study, layout, scenario, backbone)
    name = layout if scenario is None else f"{layout}-{backbone}-{scenario}"
    target = to or study.root / "exports" / study.name / name
    note = ExportNote(
        study=study.name,
        layout=layout,
        scenario=scenario,
        backbone=backbone,
        copied=copy,
        manifest=manifest.digest,
        splits=splits.digest,
        plan=None if plan is None else digest_of(plan.astype(str).to_numpy().tolist()),
        files=0,
    )
    _refuse_other(target, study.raw)
    if _is_complete(target, note):
        return Exported(target, 0)
    contents = _Contents(study, manifest, splits, plan, copy)
    write: Callable[[_Contents, Path], int] = _write_csv if layout == "csv" else _write_folders
    with atomic_folder(target, "exporting") as folder:
        files = write(contents, folder)
        note.model_copy(update={"files": files}).write(folder / NOTE)
    return Exported(target, files)


def _read_plan(study: Study, layout: Layout, scenario: str, backbone: str | None) -> pd.DataFrame:
    """The draws of the first seed of a result."""
    if backbone is None:
        raise DataError(
            "A scenario's plan depends on what was tuned on a backbone: name one with --backbone."
        )
    path = study.result_path(backbone, scenario) / "plan.parquet"
    if not path.is_file():
        raise DataError(
            f"There is no {path}. Run `equipoise scenario` for {scenario} on {backbone} first."
        )
    plan, _ = read_table(path)
    mixed = int((plan["mix"] > 0).sum()) if "mix" in plan else 0
    if mixed and layout == "folders":
        raise DataError(
            f"{mixed} of the {len(plan)} draws of {path} are mixed from the features of two images, so there is no "
            f"picture of them. Use --layout csv, which names both images and the mix."
        )
    views = int((plan["view"] > 0).sum())
    if views and layout == "folders" and imported.is_imported(study.settings.embed, backbone):
        raise DataError(
            f"{views} of the {len(plan)} draws of {path} are views whose vectors were imported, so there is no picture "
            f"of them. Use --layout csv, which names image and view."
        )
    of_first_seed = plan["seed"] == plan["seed"].iloc[0]
    return plan[of_first_seed].drop(columns="seed").reset_index(drop=True)


def _refuse_other(target: Path, raw: Path) -> None:
    """Refuse a folder that holds, or lies among, what no export wrote."""
    place = target.resolve()
    originals_folder = raw.resolve()
    if place.is_relative_to(originals_folder) or originals_folder.is_relative_to(place):
        raise DataError(
            f"{target} overlaps with {raw}, where the originals lie. Name another folder with --to."
        )
    _refuse_no_folder(target.parent)
    if not os.path.lexists(target):
        return
    if not (target / NOTE).is_file():
        raise DataError(
            f"{target} is there and is no export. Name another folder with --to, or remove it."
        )
    written = _files_written(target)
    there = _count_files(target)
    if written is not None and there > written:
        raise DataError(
            f"{target} holds {there} files, and the export there wrote {written}: the others would be lost. "
            f"Move them away, or name another folder with --to."
        )


def _refuse_no_folder(parent: Path) -> None:
    """Refuse a place below a file, or below a link that leads nowhere."""
    for place in (parent, *parent.parents):
        if place.is_dir():
            return
        if os.path.lexists(place):
            raise DataError(f"{place} is no folder. Name another folder with --to.")


def _count_files(target: Path) -> int:
    """Files below an export, less its note."""
    return sum(len(names) for _, _, names in os.walk(target)) - 1


def _files_written(target: Path) -> int | None:
    """What the note of an export says; None when another version of Equipoise wrote it."""
    try:
        return ExportNote.read(target / NOTE).files
    except DataError:
        return None


def _is_complete(target: Path, note: ExportNote) -> bool:
    """Whether the folder holds exactly this export, no file gone."""
    if not target.exists():
        return False
    try:
        there = ExportNote.read(target / NOTE)
    except DataError:  # of another version of Equipoise
        return False
    same_contents = there.model_copy(update={"files": note.files}) == note
    return same_contents and there.files == _count_files(target)


def _write_folders(contents: _Contents, folder: Path) -> int:
    """Write `part/class/name` for every round, and return the number of files."""
    paths = originals.locate(contents.study, contents.manifest)
    rounds = contents.splits.rounds()
    names = _Names()
    for repeat, fold in rounds:
        top = f"repeat{repeat}_fold{fold}" if len(rounds) > 1 else ""
        rows = list(contents.rows(repeat, fold).itertuples(index=False))
        doing = f"exporting repeat {repeat}, fold {fold}"
        for row in parallel.progress(rows, doing, len(rows), "files"):
            path = paths[row.image_id]
            wanted = PurePosixPath(top, row.part, row.class_name, _file_name(row, path))
            target = folder / names.free(wanted)
            target.parent.mkdir(parents=True, exist_ok=True)
            _write_picture(contents, row, path, target)
    return names.given


def _write_csv(contents: _Contents, folder: Path) -> int:
    """Write one table of all rounds, and return the number of files."""
    rounds = [
        contents.rows(repeat, fold).assign(repeat=repeat, fold=fold)
        for repeat, fold in contents.splits.rounds()
    ]
    table = pd.concat(rounds)
    table["path"] = table["image_id"].map(originals.locate(contents.study, contents.manifest))
    columns = [*_ROUND_COLUMNS, *_IMAGE_COLUMNS, *_DRAW_COLUMNS]
    table[columns].to_csv(folder / "split.csv", index=False, lineterminator="\n")
    return 1


# --- pictures -------------------------------------------------------------------------------------


class _Names:
    """Gives every file of an export a name of its own, on disks that ignore case and accents' forms too.

    >>> names = _Names()
    >>> [str(names.free(PurePosixPath(name))) for name in ("a/x.png", "a/X.png", "a/x-2.png")]
    ['a/x.png', 'a/X-2.png', 'a/x-2-2.png']
    """

    def __init__(self) -> None:
        self._taken: set[str] = set()

    @property
    def given(self) -> int:
        """How many names were given."""
        return len(self._taken)

    def free(self, wanted: PurePosixPath) -> PurePosixPath:
        """The wanted path, with a number before the suffix when it is taken."""
        path = wanted
        number = 1
        while self._as_disks_see_it(path) in self._taken:
            number += 1
            path = wanted.with_name(f"{wanted.stem}-{number}{wanted.suffix}")
        self._taken.add(self._as_disks_see_it(path))
        return path

    @staticmethod
    def _as_disks_see_it(path: PurePosixPath) -> str:
        return unicodedata.normalize("NFC", str(path)).casefold()


def _file_name(row: Any, path: str) -> str:
    """The image id as one name; before the suffix the number of the view or of a further draw."""
    original = PurePosixPath(path)
    stem = _fitting(row.image_id.removesuffix(original.suffix).replace("/", "__"))
    if row.view:
        stem += f".view{row.view}"
    if row.draw:
        stem += f".draw{row.draw}"
    return stem + _suffix(row, path)


def _fitting(stem: str) -> str:
    """A stem that is too long for a file name keeps its end, behind a digest of the whole."""
    content = stem.encode()
    if len(content) <= _NAME_BYTES:
        return stem
    digest = hashlib.sha256(content).hexdigest()[:12]
    end = content[len(digest) - _NAME_BYTES :].decode(errors="ignore")
    return digest + end


def _suffix(row: Any, path: str) -> str:
    if row.view:
        return ".png"
    if _is_inside_npz(path):
        return ".bmp"
    return PurePosixPath(path).suffix


def _is_inside_npz(path: str) -> bool:
    return ".npz/" in path


def _write_picture(contents: _Contents, row: Any, path: str, target: Path) -> None:
    raw = contents.study.raw
    if row.view:
        _render(contents, path, row, target)
    elif _is_inside_npz(path):
        with open(target, "xb") as file:
            file.write(images.read(raw, path))
    else:
        _link(raw / path, target, contents.copy)


def _link(source: Path, target: Path, copy: bool) -> None:
    if copy:
        _copy(source, target)
        return
    try:
        os.link(source.resolve(), target)  # the file itself, also where the raw folder holds links
    except OSError as error:
        if error.errno not in _CANNOT_LINK:
            raise
        _copy(source, target)


def _copy(source: Path, target: Path) -> None:
    with open(source, "rb") as original, open(target, "xb") as copy:  # x: never over another file
        shutil.copyfileobj(original, copy)


def _render(contents: _Contents, path: str, row: Any, target: Path) -> None:
    """One augmented view as PNG, drawn by the functions that made the features."""
    import tensorflow as tf

    from equipoise.embed.embedder import draft_px, pipeline_of, resize

    study = contents.study
    size_px = study.settings.embed.image_size_px
    side_px = draft_px(pipeline_of(study.settings.embed), size_px)
    content = images.read(study.raw, path)
    pixels = images.decode(content, side_px, contents.manifest.grey_scale)
    parameters = augment.view_parameters(row.sha256, row.view, study.settings.augment, size_px)
    batch = resize(pixels, size_px)[None]
    seen = augment.apply_views(batch, tf.constant(parameters[None]))[0].numpy()
    picture = Image.fromarray(np.rint(seen).astype(np.uint8))
    with open(target, "xb") as file:
        picture.save(file, "png", compress_level=6)
