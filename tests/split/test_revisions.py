"""Which patients moved between two versions of a split, through a real git and DVC repository."""

import shutil
import sys

import pytest

from conftest import git, run
from equipoise.core import config
from equipoise.core.errors import DataError
from equipoise.core.records import Splits
from equipoise.split import revisions as versions
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


def test_nothing_moves_in_the_same_split(study):
    found = versions.moved_patients(study, "HEAD")
    assert (found["moved_patients"], found["moved"]) == (0, [])
    assert found["patients"] == 65


def test_another_seed_moves_exactly_the_patients_whose_part_differs(study):
    before = (
        Splits.read(study.splits_path)
        .table.drop_duplicates("patient_id")
        .set_index("patient_id")["part"]
    )
    study.splits_path.unlink()
    other = config.load_study("made", overrides={"split.seed": 5})
    splits.run(other)
    after = (
        Splits.read(study.splits_path)
        .table.drop_duplicates("patient_id")
        .set_index("patient_id")["part"]
    )
    found = versions.moved_patients(other, "HEAD")
    expected = {
        name: (before[name], after[name]) for name in after.index if before[name] != after[name]
    }
    assert {row["patient_id"]: (row["before"], row["after"]) for row in found["moved"]} == expected
    assert 0 < found["moved_patients"] == len(expected) < 65
    counts = Splits.read(study.splits_path).table["patient_id"].value_counts()
    assert all(row["images"] == counts[row["patient_id"]] for row in found["moved"])


def test_what_cannot_be_had_is_said(study):
    with pytest.raises(DataError, match="of 'nowhere' cannot be had"):
        versions.moved_patients(study, "nowhere")
    shutil.rmtree(".dvc/cache")
    with pytest.raises(DataError, match="of 'HEAD' cannot be had"):
        versions.moved_patients(study, "HEAD")
