"""A study as folders or as a CSV, for other tools: made on request, by hard link, never by default."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import pandas as pd
from PIL import Image

from equipoise.core import images, parallel
from equipoise.core.config import Study
from equipoise.core.errors import DataError
from equipoise.core.files import digest_of, read_json, read_table, write_json
from equipoise.core.records import Manifest, Splits
from equipoise.embed import augment
from equipoise.ingest import originals
from equipoise.split import checks

_NOTE = "export.json"
_COLUMNS = ["image_id", "sha256", "label", "class_name"]
_DRAW = ["draw", "view", "partner_id", "mix", "weight"]


def run(
    study: Study,
    layout: Literal["folders", "csv"],
    scenario: str | None = None,
    backbone: str | None = None,
    to: Path | None = None,
    copy: bool = False,
) -> tuple[Path, int]:
    """Write train, val and test of a study, or what one scenario trains on, and return the folder and the new files.

    The folder appears only when it is complete. Exporting the same thing again changes nothing (0 new files).

    Args:
        study: Name and settings.
        layout: `folders` (`part/class/name`, below `repeat0_fold1/` where there are several rounds) or `csv`.
        scenario: Train rows as this result's plan draws them, first seed; an image drawn five times is five links.
            Augmented views are drawn as pictures, at the size the backbone saw. A mixed draw is a row of the CSV
            (`partner_id`, `mix`) and has no picture; what a draw weighs stands in `weight`.
        backbone: Of the result; needed with a scenario.
        to: Folder to write; `exports/<study>/...` when left out.
        copy: Copy instead of linking, for tools that change files in place.

    Raises:
        DataError: When a parent is missing, the folder holds something else, or the plan cannot be said in folders.
    """
    manifest, splits = Manifest.read(study.manifest_path), Splits.read(study.splits_path)
    checks.run(splits, manifest)
    plan = _plan(study, layout, scenario, backbone)
    name = layout if scenario is None else f"{layout}-{backbone}-{scenario}"
    target = to or Path("exports") / study.name / name
    plan_digest = None if plan is None else digest_of(plan.astype(str).to_numpy().tolist())
    note = {
        **{
            "study": study.name,
            "layout": layout,
            "scenario": scenario,
            "backbone": backbone,
            "copied": copy,
        },
        **{"manifest": manifest.digest, "splits": splits.digest, "plan": plan_digest},
    }
    _refuse_other(target)
    for stale in target.parent.glob(f".{target.name}.*"):
        shutil.rmtree(stale)
    if _complete(target, note):
        return target, 0
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        work = scratch / "new"
        work.mkdir()
        files = (_write_csv if layout == "csv" else _write_folders)(
            study, manifest, splits, plan, work, copy
        )
        write_json(work / _NOTE, {**note, "files": files})
        if target.exists():
            target.rename(scratch / "old")
        work.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target, files


def _plan(
    study: Study, layout: str, scenario: str | None, backbone: str | None
) -> pd.DataFrame | None:
    if scenario is None:
        return None
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
    mixed = int((plan.get("mix", pd.Series(dtype=float)) > 0).sum())
    if mixed and layout == "folders":
        raise DataError(
            f"{mixed} of the {len(plan)} draws of {path} are mixed from the features of two images, so there is no "
            f"picture of them. Use --layout csv, which names both images and the mix."
        )
    return plan[plan["seed"] == plan["seed"].iloc[0]].drop(columns="seed").reset_index(drop=True)


def _items(
    manifest: Manifest, splits: Splits, plan: pd.DataFrame | None, repeat: int, fold: int
) -> pd.DataFrame:
    """What belongs into one round, a row for each file: every image once, but train rows as the plan draws them.

    `draw` counts the draws of a view (0: plain) of an image. A draw may be mixed: `mix` (0..1) of the way to the
    features of `partner_id`; and it may weigh more or less than 1.
    """
    rows = splits.round(repeat, fold).merge(manifest.table[_COLUMNS], on="image_id")
    whole = rows.assign(draw=0, view=0, partner_id=None, mix=0.0, weight=1.0)
    if plan is None:
        return whole
    drawn = plan[(plan["repeat"] == repeat) & (plan["fold"] == fold)]
    drawn = drawn.assign(draw=drawn.groupby(["image_id", "view"]).cumcount()).reindex(
        columns=["image_id", *_DRAW]
    )
    return pd.concat(
        [whole[whole["part"] != "train"], drawn.merge(rows, on="image_id", how="left")]
    )


def _write_folders(
    study: Study,
    manifest: Manifest,
    splits: Splits,
    plan: pd.DataFrame | None,
    work: Path,
    copy: bool,
) -> int:
    places, rounds, files = originals.locate(study, manifest), splits.rounds(), 0
    for repeat, fold in rounds:
        top = work / f"repeat{repeat}_fold{fold}" if len(rounds) > 1 else work
        items = list(_items(manifest, splits, plan, repeat, fold).itertuples(index=False))
        for item in parallel.progress(
            items, f"exporting repeat {repeat}, fold {fold}", len(items), "files"
        ):
            place = places[item.image_id]
            target = top / item.part / item.class_name / _file_name(item, place)
            target.parent.mkdir(parents=True, exist_ok=True)
            if item.view:
                _render(study, place, item.sha256, item.view, target)
            elif ".npz/" in place:
                target.write_bytes(images.read(study.raw, place))
            else:
                _link(study.raw / place, target, copy)
        files += len(items)
    return files


def _write_csv(
    study: Study,
    manifest: Manifest,
    splits: Splits,
    plan: pd.DataFrame | None,
    work: Path,
    copy: bool,
) -> int:
    rounds = [
        _items(manifest, splits, plan, *key).assign(repeat=key[0], fold=key[1])
        for key in splits.rounds()
    ]
    table = pd.concat(rounds)
    table["path"] = table["image_id"].map(originals.locate(study, manifest))
    names = [
        "repeat",
        "fold",
        "part",
        "image_id",
        "path",
        "patient_id",
        "label",
        "class_name",
        *_DRAW,
    ]
    table[names].to_csv(work / "split.csv", index=False, lineterminator="\n")
    return 1


def _file_name(item: Any, place: str) -> str:
    """The image id as one name, with the number of a further draw or of the view before the suffix."""
    path = PurePosixPath(place)
    suffix = ".bmp" if ".npz/" in place else path.suffix
    stem = item.image_id.removesuffix(path.suffix).replace("/", "__")
    view = f".view{item.view}" if item.view else ""
    draw = f".draw{item.draw}" if item.draw else ""
    return f"{stem}{view}{draw}{'.png' if item.view else suffix}"


def _link(source: Path, target: Path, copy: bool) -> None:
    if not copy:
        try:
            os.link(source, target)
            return
        except OSError:  # another disk, or too many links
            pass
    shutil.copyfile(source, target)


def _render(study: Study, place: str, sha256: str, view: int, target: Path) -> None:
    """One augmented view as PNG, drawn by the functions that made the features."""
    import tensorflow as tf

    from equipoise.embed.embedder import draft_px, pipeline_of, resize

    size_px = study.settings.embed.image_size_px
    side_px = draft_px(pipeline_of(study.settings.embed), size_px)
    pixels = images.decode(images.read(study.raw, place), side_px)
    numbers = augment.view_parameters(sha256, view, study.settings.augment, size_px)
    seen = augment.apply_views(resize(pixels, size_px)[None], tf.constant(numbers[None]))[0].numpy()
    Image.fromarray(np.rint(seen).astype(np.uint8)).save(target, compress_level=6)


def _refuse_other(target: Path) -> None:
    if target.exists() and not (target / _NOTE).is_file():
        raise DataError(
            f"{target} is there and is no export. Name another folder with --to, or remove it."
        )


def _complete(target: Path, note: dict[str, Any]) -> bool:
    """Whether the folder holds exactly this export, no file gone."""
    if not target.exists():
        return False
    there = read_json(target / _NOTE)
    files = there.pop("files", None)
    found = sum(len(names) for _, _, names in os.walk(target)) - 1
    return there == note and found == files
