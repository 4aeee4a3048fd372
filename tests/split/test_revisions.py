"""Which patients moved between two versions of a split, through a real git and DVC repository."""

import shutil
import sys

import pytest

from conftest import git, run
from equipoise.core import config
from equipoise.core.errors import DataError
from equipoise.core.records import Splits
from equipoise.split import revisions
from equipoise.split import stage as splits
from fabricate import made


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = made.study(tmp_path)
    git(tmp_path, "init", "-q")
    run(tmp_path, sys.executable, "-m", "dvc", "init", "-q")
    run(tmp_path, sys.executable, "-m", "dvc", "add", "-q", "data/splits/made.parquet")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-q", "-m", "first")
    return first


def part_by_patient(study):
    table = Splits.read(study.splits_path).table
    return table.drop_duplicates("patient_id").set_index("patient_id")["part"]


def test_nothing_moves_in_the_same_split(study):
    moved = revisions.moved_patients(study, "HEAD")
    assert (moved.moved_patients, moved.moved) == (0, [])
    assert moved.patients == 65
    assert (moved.images.new, moved.images.gone) == (0, 0)


def test_another_seed_moves_exactly_the_patients_whose_part_differs(study):
    before = part_by_patient(study)
    study.splits_path.unlink()
    params = config.read_params(study.root)
    other = config.load_study("made", params, {"split.seed": 5}, root=study.root)
    splits.run(other)
    after = part_by_patient(other)
    moved = revisions.moved_patients(other, "HEAD")
    expected = {
        name: (before[name], after[name]) for name in after.index if before[name] != after[name]
    }
    assert {move.patient_id: (move.before, move.after) for move in moved.moved} == expected
    assert 0 < moved.moved_patients == len(expected) < 65
    images = Splits.read(study.splits_path).table["patient_id"].value_counts()
    for move in moved.moved:
        assert move.images == images[move.patient_id]


def test_what_cannot_be_had_is_said(study):
    with pytest.raises(DataError, match="of 'nowhere' cannot be had"):
        revisions.moved_patients(study, "nowhere")
    shutil.rmtree(study.root / ".dvc/cache")
    with pytest.raises(DataError, match="of 'HEAD' cannot be had"):
        revisions.moved_patients(study, "HEAD")


def test_text_counts_the_moves_and_lists_the_first():
    moves = [
        revisions.Move(
            repeat=0, fold=1, patient_id=f"p{n:02d}", before="train", after="val", images=2
        )
        for n in range(23)
    ]
    moved = revisions.MovedPatients(
        revision="HEAD~1",
        group_by=revisions.GroupBy(before="slide", after="patient"),
        images=revisions.ImageCounts(both=90, new=3, gone=4),
        patients=40,
        moved_patients=23,
        moved=moves,
    )
    lines = revisions.moved_text(moved).splitlines()
    assert lines[0] == "23 of 40 patients moved since HEAD~1; 90 images in both, 3 new, 4 gone"
    assert lines[1] == "  p00: train -> val (2 images, repeat 0, fold 1)"
    assert lines[-1] == "  and 3 more on the page"
    assert len(lines) == 1 + 20 + 1
