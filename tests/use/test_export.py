"""Exports: the tree holds exactly the split, or the plan; links, not copies; complete or not there."""

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import REPO, run, state_of
from equipoise import pipeline
from equipoise.core import config
from equipoise.core.errors import DataError
from equipoise.core.files import read_table, write_table
from equipoise.core.records import Manifest, Splits
from equipoise.ingest import stage as ingest
from equipoise.split import stage as splits
from equipoise.use import export


def _study(root, **overrides):
    params = config.read_params(REPO)
    params["studies"]["demo"]["phantom"] |= {
        "patients": 60,
        "size_px": 32,
        "opacity_patient_fraction": 0.3,
    }
    changes = {"split.scheme": "holdout", "split.repeats": 1, **overrides}
    return config.load_study("demo", params, changes, root=root)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A drawn, ingested and split study, to copy from."""
    folder = tmp_path_factory.mktemp("drawn")
    study = _study(folder)
    pipeline.draw_phantoms(study)
    ingest.run(study)
    splits.run(study)
    return folder


@pytest.fixture
def study(drawn, tmp_path):
    shutil.copytree(drawn, tmp_path, dirs_exist_ok=True)
    return _study(tmp_path)


def _plan(study, per_image):
    """A written plan that draws each train image of round 0 as often as `per_image` says of its row number."""
    split = Splits.read(study.splits_path)
    frames = []
    for repeat, fold in split.rounds():
        rows = split.round(repeat, fold)
        ids = rows.loc[rows["part"] == "train", "image_id"]
        counts = [per_image(index) for index in range(len(ids))]
        for seed in (0, 1):
            drawn = pd.DataFrame({"image_id": np.repeat(ids.to_numpy(), counts), "view": 0})
            frames.append(drawn.assign(repeat=repeat, fold=fold, seed=seed))
    path = study.result_path("vgg16", "oversample") / "plan.parquet"
    write_table(path, pd.concat(frames, ignore_index=True), {})


def _files(folder):
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def _expected(study):
    table = Manifest.read(study.manifest_path).table.set_index("image_id")
    rows = Splits.read(study.splits_path).round(0, 0)
    return sorted(
        f"{part}/{table.loc[name, 'class_name']}/{name.replace('/', '__')}"
        for name, part in zip(rows["image_id"], rows["part"])
    )


def test_folders_hold_every_image_once_as_a_link(study):
    folder, files = export.export_study(study, "folders")
    names = _files(folder)
    assert names == sorted([*_expected(study), "export.json"])
    assert files == len(names) - 1
    for name in _expected(study):
        raw = study.raw / name.split("/")[2].replace("__", "/")
        assert (folder / name).samefile(raw)


def test_exporting_twice_changes_nothing(study):
    folder, _ = export.export_study(study, "folders")
    before = {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}
    again, files = export.export_study(study, "folders")
    assert (again, files) == (folder, 0)
    assert {path: path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]} == before


def test_a_file_that_went_missing_and_a_new_split_are_exported_again(study):
    folder, files = export.export_study(study, "folders")
    (folder / _expected(study)[0]).unlink()
    assert export.export_study(study, "folders") == (folder, files)
    other = _study(study.root, **{"split.seed": 5})
    splits.run(other)
    assert export.export_study(other, "folders") == (folder, files)
    assert [name for name in _files(folder) if name != "export.json"] == _expected(other)


def test_a_plan_is_links_as_often_as_it_draws(study):
    _plan(study, lambda index: index % 3)
    folder, files = export.export_study(study, "folders", "oversample", "vgg16")
    rows = Splits.read(study.splits_path).round(0, 0)
    train = rows.loc[rows["part"] == "train", "image_id"].tolist()
    wanted = {
        name.replace("/", "__").removesuffix(".png"): index % 3 for index, name in enumerate(train)
    }
    counted = dict.fromkeys(wanted, 0)
    for path in (folder / "train").rglob("*.png"):
        counted[path.stem.split(".draw")[0]] += 1
    assert counted == wanted
    first = next(path for path in (folder / "train").rglob("*.draw1.png"))
    raw = study.raw / first.name.replace(".draw1", "").replace("__", "/")
    assert first.samefile(raw), "an oversampled tree takes no room"
    plain = [name for name in _expected(study) if not name.startswith("train/")]
    assert [name for name in _files(folder) if name.startswith(("val/", "test/"))] == plain
    assert files == sum(wanted.values()) + len(plain)


def test_a_csv_says_the_same_as_the_split(study):
    folder, _ = export.export_study(study, "csv")
    table = pd.read_csv(folder / "split.csv")
    split = Splits.read(study.splits_path).round(0, 0)
    merged = table.merge(split, on="image_id", suffixes=("", "_split"))
    assert len(merged) == len(table) == len(split)
    assert (merged["part"] == merged["part_split"]).all()
    assert (merged["patient_id"] == merged["patient_id_split"]).all()
    assert all((study.raw / path).is_file() for path in table["path"])


def test_rounds_have_folders_of_their_own(study):
    other = _study(study.root, **{"split.scheme": "kfold", "split.folds": 3})
    splits.run(other)
    folder, files = export.export_study(other, "folders")
    assert {name.split("/")[0] for name in _files(folder)} == {
        f"repeat0_fold{fold}" for fold in range(3)
    } | {"export.json"}
    assert files == 3 * len(_expected(study))


def test_copies_are_no_links(study):
    folder, _ = export.export_study(study, "folders", to=study.root / "elsewhere/tree", copy=True)
    name = _expected(study)[0]
    raw = study.raw / name.split("/")[2].replace("__", "/")
    assert not (folder / name).samefile(raw)
    assert (folder / name).read_bytes() == raw.read_bytes()


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EMLINK, errno.EPERM])
def test_a_disk_without_links_gets_copies(study, monkeypatch, code):
    def refuse(*_):
        raise OSError(code, os.strerror(code))

    before = state_of(study.raw)
    monkeypatch.setattr(os, "link", refuse)
    folder, _ = export.export_study(study, "folders")
    assert [name for name in _files(folder) if name != "export.json"] == _expected(study)
    name = _expected(study)[0]
    raw = study.raw / name.split("/")[2].replace("__", "/")
    assert (folder / name).read_bytes() == raw.read_bytes()
    assert state_of(study.raw) == before


def test_another_answer_of_the_disk_is_no_reason_to_copy(study, monkeypatch):
    def refuse(*_):
        raise FileExistsError(errno.EEXIST, "File exists")

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(FileExistsError):
        export.export_study(study, "folders")


def _own_pictures(root, names):
    """A study of the user's own files: drawn noise, a class per folder, one side for all of train."""
    rng = np.random.default_rng(0)
    for name in names:
        path = root / "data/raw/demo" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 40), dtype=np.uint8)).save(path)
    study = _study(
        root,
        **{
            "ingest.dataset": "folder",
            "ingest.positive_class": "b",
            "ingest.pseudonymise": False,
        },
    )
    ingest.run(study)
    splits.run(study)
    return study


def _names_of_pairs():
    for class_name in "ab":
        for patient in range(8):
            yield f"{class_name}/p{patient}/1.png"
            yield f"{class_name}/p{patient}__1.png"
            yield f"{class_name}/P{patient}__1.PNG"


@pytest.mark.skipif(sys.platform != "linux", reason="names that differ in case")
def test_names_that_fall_together_get_another_one(tmp_path):
    study = _own_pictures(tmp_path, _names_of_pairs())
    before = state_of(study.raw)
    folder, files = export.export_study(study, "folders")
    exported = [folder / name for name in _files(folder) if name != "export.json"]
    assert files == len(exported) == 48
    assert len({str(path).casefold() for path in exported}) == 48, "on every disk"
    contents = {path.read_bytes() for path in exported}
    assert contents == {path.read_bytes() for path in study.raw.rglob("*.[pP]*") if path.is_file()}
    assert state_of(study.raw) == before
    assert export.export_study(study, "folders") == (folder, 0)


def test_a_drawn_name_that_is_there_already_gets_another_one(tmp_path):
    names = [
        f"{class_name}/{number}{end}.png"
        for class_name in "ab"
        for number in range(12)
        for end in ("", ".draw1")
    ]
    study = _own_pictures(tmp_path, names)
    _plan(study, lambda index: 2)
    before = state_of(study.raw)
    folder, files = export.export_study(study, "folders", "oversample", "vgg16")
    rows = Splits.read(study.splits_path).round(0, 0)
    train = (rows["part"] == "train").sum()
    exported = [name for name in _files(folder) if name != "export.json"]
    assert files == len(exported) == len(rows) + train
    assert state_of(study.raw) == before


def test_a_name_longer_than_a_disk_takes_is_shortened(tmp_path):
    deep = "/".join(["a" * 90] * 3)
    names = [f"{class_name}/{deep}/{number}.png" for class_name in "ab" for number in range(12)]
    study = _own_pictures(tmp_path, names)
    folder, files = export.export_study(study, "folders")
    exported = [Path(name).name for name in _files(folder) if name != "export.json"]
    assert files == len(exported) == 24
    assert all(len(name) <= 255 for name in exported)
    assert any(name.endswith("__7.png") for name in exported)


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right there")
def test_a_linked_original_is_exported_as_the_file_itself(study):
    name = _expected(study)[0]
    raw = study.raw / name.split("/")[2].replace("__", "/")
    elsewhere = study.root / "store.png"
    raw.rename(elsewhere)
    raw.symlink_to(elsewhere)
    folder, _ = export.export_study(study, "folders")
    assert not (folder / name).is_symlink()
    assert (folder / name).samefile(elsewhere)


@pytest.mark.parametrize("place", ["data/raw/demo/clear/tree", "data/raw/demo", "data"])
def test_an_export_never_lies_among_the_originals(study, place):
    before = state_of(study.raw)
    with pytest.raises(DataError, match=r"overlaps with .* where the originals lie"):
        export.export_study(study, "folders", to=study.root / place)
    assert state_of(study.raw) == before


def test_a_file_that_was_added_to_an_export_is_not_lost(study):
    folder, _ = export.export_study(study, "folders")
    (folder / "notes.txt").write_text("years of work")
    with pytest.raises(DataError, match="the others would be lost"):
        export.export_study(study, "folders")
    assert (folder / "notes.txt").read_text() == "years of work"


def test_a_place_that_is_no_folder_is_refused(study):
    (study.root / "note").write_text("years of work")
    (study.root / "link").symlink_to("nowhere")
    for place in ("note", "link"):
        with pytest.raises(DataError, match="is there and is no export"):
            export.export_study(study, "folders", to=study.root / place)
        with pytest.raises(DataError, match=f"{place} is no folder. Name another folder with --to"):
            export.export_study(study, "folders", to=study.root / place / "tree")
    assert (study.root / "note").read_text() == "years of work"


def test_a_folder_that_is_no_export_is_left_alone(study):
    folder = study.root / "mine"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(DataError, match="is there and is no export"):
        export.export_study(study, "folders", to=folder)
    assert _files(folder) == ["thesis.txt"]


def test_what_a_scenario_needs_is_said(study):
    with pytest.raises(DataError, match="name one with --backbone"):
        export.export_study(study, "folders", "oversample")
    with pytest.raises(DataError, match=r"Run `equipoise scenario` for oversample on vgg16 first"):
        export.export_study(study, "folders", "oversample", "vgg16")


def test_a_failing_export_leaves_the_old_one_and_nothing_else(study, monkeypatch):
    folder, _ = export.export_study(study, "folders")
    splits.run(_study(study.root, **{"split.seed": 5}))
    kept = _files(folder)
    link = os.link
    calls = iter(range(1000))
    monkeypatch.setattr(os, "link", lambda *paths: 1 / 0 if next(calls) == 20 else link(*paths))
    with pytest.raises(ZeroDivisionError):
        export.export_study(study, "folders")
    assert _files(folder) == kept
    assert [path.name for path in folder.parent.iterdir()] == ["folders"]


def test_hidden_ids_name_the_files(drawn, tmp_path, monkeypatch):
    monkeypatch.setenv("EQUIPOISE_KEY", str(tmp_path / "key"))
    (tmp_path / "repo").mkdir()
    shutil.copytree(drawn / "data/raw", tmp_path / "repo/data/raw")
    study = _study(tmp_path / "repo", **{"ingest.pseudonymise": True})
    ingest.run(study)
    splits.run(study)
    folder, files = export.export_study(study, "folders")
    names = [name for name in _files(folder) if name != "export.json"]
    assert len(names) == files
    assert not any("patient" in name for name in names)
    assert all(name.endswith(".png") for name in names)


@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL is not there")
@pytest.mark.parametrize("verb", ["export", "ingest"])
def test_killed_at_any_moment_the_next_run_finishes_with_the_same_bytes(drawn, tmp_path, verb):
    """Killed after different times: during start, reading, writing, moving."""
    for name in ("src", "params.yaml"):
        (shutil.copytree if (REPO / name).is_dir() else shutil.copy)(REPO / name, tmp_path / name)
    shutil.copytree(drawn / "data", tmp_path / "data")
    results = {"export": "exports/demo/folders", "ingest": "data/manifest"}[verb]
    command = [
        sys.executable,
        "src",
        verb,
        "--study",
        "demo",
        *(["--layout", "folders"] if verb == "export" else []),
    ]
    shutil.rmtree(tmp_path / "exports", ignore_errors=True)
    for seconds in (0.9, 1.1, 1.3):
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
    run(tmp_path, *command)
    first = {name: (tmp_path / results / name).read_bytes() for name in _files(tmp_path / results)}
    shutil.rmtree(tmp_path / results)
    run(tmp_path, *command)
    again = {name: (tmp_path / results / name).read_bytes() for name in _files(tmp_path / results)}
    left = [name for name in again if not Path(name).name.startswith(".")]
    assert {name: first[name] for name in left} == {name: again[name] for name in left}
    assert not [
        path for path in (tmp_path / results).parent.iterdir() if path.name.startswith(".folders")
    ]


def test_views_are_drawn_as_the_backbone_saw_them(workspace):
    done = run(
        workspace,
        *(sys.executable, "src", "export", "--study", "demo", "--layout", "folders"),
        *("--scenario", "weighted_augment", "--backbone", "vgg16", "--to", "exports/views"),
    )
    assert "files written to exports/views" in done.stdout
    plan, _ = read_table(workspace / "results/demo/vgg16/weighted_augment/plan.parquet")
    plan = plan[plan["seed"] == plan["seed"].iloc[0]]
    drawn = list((workspace / "exports/views/train").rglob("*.view*.png"))
    assert len(drawn) == (plan["view"] > 0).sum() > 0
    likenesses, differences = [], []
    for path in drawn:
        picture = np.asarray(Image.open(path))
        assert picture.shape == (48, 48, 3)
        name = path.name.split(".view")[0].replace("__", "/")
        raw = Image.open(workspace / "data/raw/demo" / f"{name}.png").convert("RGB")
        plain = np.asarray(raw.resize((48, 48), Image.Resampling.BILINEAR))
        correlation = [
            np.corrcoef(view.ravel(), plain.ravel())[0, 1]
            for view in (picture.astype(float), picture[:, ::-1].astype(float))
        ]
        likenesses.append(max(correlation))
        differences.append(np.abs(picture.astype(float) - plain).mean())
    assert min(likenesses) > 0.5, "the same picture"
    assert np.median(differences) > 1, "in another light, or turned over"
