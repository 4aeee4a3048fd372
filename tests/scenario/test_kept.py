"""What is kept on disk gives the very bytes that were made, and nothing depends on its being there."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest

from equipoise.scenario import stage as scenario
from equipoise.scenario.heads import head
from equipoise.scenario.heads.kept import Kept, key_of
from equipoise.scenario.heads.rows import Rows, Standardiser
from equipoise.scenario.heads.solver import Rotated
from equipoise.scenario.tuning import Shared
from equipoise.strategies.base import Objective
from fabricate import made


class Maker:
    """Makes arrays of a number, and counts how often."""

    def __init__(self, number=1.0, size=1000):
        self.made = 0
        self.number = number
        self.size = size

    def __call__(self):
        self.made += 1
        return {"wide": np.full((2, self.size), self.number, np.float32), "few": np.arange(3)}


def features(count=60, width=90):
    return np.random.default_rng(0).normal(size=(count, width)).astype(np.float32)


def standardised(raw):
    return Rows(raw, np.arange(len(raw)), np.float32, Standardiser.fit(raw))


def test_what_is_kept_is_read_and_not_made_again(tmp_path):
    kept, maker = Kept(tmp_path), Maker()
    first, second = kept.arrays("a", maker), kept.arrays("a", maker)
    assert maker.made == 1
    assert sorted(first) == sorted(second) == ["few", "wide"]
    for name in first:
        assert first[name].dtype == second[name].dtype
        assert first[name].tobytes() == second[name].tobytes()
    kept.arrays("b", maker)
    assert maker.made == 2


@pytest.mark.parametrize("damage", ["cut", "changed", "emptied", "of another key"])
def test_a_damaged_file_is_made_again(tmp_path, damage):
    kept, maker = Kept(tmp_path), Maker()
    kept.arrays("a", maker)
    path = tmp_path / "a.npz"
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    elif damage == "emptied":
        path.write_bytes(b"")
    elif damage == "changed":
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
    else:
        np.savez(path, wide=np.zeros((2, 1000), np.float32), few=np.arange(3), content="0")
    assert (kept.arrays("a", maker)["wide"] == 1).all()
    assert maker.made == 2
    kept.arrays("a", maker)
    assert maker.made == 2, "the damaged file was replaced"


def test_beyond_its_bound_the_longest_unused_goes(tmp_path):
    Kept(tmp_path).arrays("old", Maker())
    size = (tmp_path / "old.npz").stat().st_size
    kept = Kept(tmp_path, most_bytes=3 * size)
    for age, key in enumerate(["old", "older", "read"]):
        kept.arrays(key, Maker())
        os.utime(tmp_path / f"{key}.npz", (1000 - age, 1000 - age))
    kept.arrays("read", Maker())
    kept.arrays("new", Maker())
    assert sorted(path.stem for path in tmp_path.glob("*.npz")) == ["new", "old", "read"]
    assert sum(path.stat().st_size for path in tmp_path.glob("*.npz")) <= kept.most_bytes


def test_without_room_for_it_the_arrays_are_made_all_the_same(tmp_path):
    (tmp_path / "file").write_text("no folder")
    found = Kept(tmp_path / "file" / "folder").arrays("a", Maker(3.0))
    assert (found["wide"] == 3).all()


def test_a_key_names_the_rows_their_standardiser_and_every_setting():
    raw = features()
    other = raw.copy()
    other[3, 4] += 1e-3
    rows = standardised(raw)
    half = Rows(raw, np.arange(30), np.float32, rows.standardiser)
    double = Rows(raw, np.arange(60), np.float64, rows.standardiser)
    moved = Rows(other, np.arange(60), np.float32, rows.standardiser)
    keys = [
        key_of("fit", rows, l2=0.1),
        key_of("fit", rows, l2=0.2),
        key_of("rotation", rows, l2=0.1),
        key_of("fit", half, l2=0.1),
        key_of("fit", double, l2=0.1),
        key_of("fit", moved, l2=0.1),
        key_of("fit", standardised(other), l2=0.1),
    ]
    assert len(set(keys)) == len(keys)
    twice = np.vstack([other, raw])
    elsewhere = Rows(twice, np.arange(60, 120), np.float32, rows.standardiser)
    assert key_of("fit", elsewhere, l2=0.1) == keys[0], "where rows lie does not matter"


@pytest.mark.parametrize("shape", [(160, 40), (40, 90)], ids=["more rows", "more features"])
def test_a_rotation_that_was_kept_is_that_one_to_the_last_bit(tmp_path, shape):
    rows = standardised(features(*shape))
    kept = Kept(tmp_path)
    plain, cold, warm = (Rotated.of(rows, kept=where) for where in (None, kept, kept))
    assert len(list(tmp_path.glob("*.npz"))) == 1
    for other in (cold, warm):
        assert other.matrix.tobytes() == plain.matrix.tobytes()
        assert other.basis.tobytes() == plain.basis.tobytes()
        assert other.spectrum.tobytes() == plain.spectrum.tobytes()


@pytest.mark.parametrize(
    ("num_features", "arrays"),
    [(90, ["matrix", "spectrum"]), (6, ["basis", "spectrum"])],
    ids=["few rows are kept rotated", "of many the basis is kept"],
)
def test_a_search_has_the_same_rotated_rows_whatever_was_kept(tmp_path, num_features, arrays):
    matrix = made.train_matrix(num_features=num_features)
    keeping = replace(matrix, rotations=Kept(tmp_path))
    plain, cold, warm = (
        Shared.of(rows, matrix.standardiser).rotated for rows in (matrix, keeping, keeping)
    )
    for other in (cold, warm):
        assert other.matrix.tobytes() == plain.matrix.tobytes()
        assert other.spectrum.tobytes() == plain.spectrum.tobytes()
    (file,) = tmp_path.glob("*.npz")
    with np.load(file) as kept:
        assert sorted(kept) == sorted([*arrays, "content"])


@pytest.mark.parametrize("classes", [2, 3])
def test_a_fit_is_made_once_for_all_that_draw_the_same_rows(tmp_path, classes):
    raw = features(80, 6)
    labels = np.arange(80) % classes
    neutral = Objective.neutral(classes)

    folder = Kept(tmp_path)
    once_each = np.ones(80)

    def fit(l2=0.1, objective=neutral, draws=once_each, kept=folder):
        return head.fit(raw, labels, draws, objective, l2, Standardiser.fit(raw), kept=kept)

    def files():
        return len(list(tmp_path.glob("*.npz")))

    plain, cold, warm = fit(kept=None), fit(), fit()
    assert files() == 1
    for other in (cold, warm):
        assert other.coefficients.tobytes() == plain.coefficients.tobytes()
        assert other.intercepts.tobytes() == plain.intercepts.tobytes()
        assert other.gradient_norm == plain.gradient_norm
    fit(l2=0.2)
    fit(objective=neutral.replace(focusing=1.0))
    fit(objective=neutral.replace(offsets=np.arange(classes) / 2))
    fit(draws=1.0 + (np.arange(80) < 7))
    assert files() == 5


@pytest.mark.parametrize("name", ["augment", "smote"])
def test_a_scenario_writes_the_same_bytes_with_and_without_what_was_kept(
    tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    study = made.study(tmp_path, tune={"trials": 5, "batch_trials": 4})

    def written():
        scenario.run(study, made.BACKBONE, name)
        folder = study.result_path(made.BACKBONE, name)
        files = [path for path in folder.rglob("*") if path.is_file()]
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}

    cold = written()
    assert list((study.cache_path / "rotations").glob("*.npz"))
    assert list((study.cache_path / "fits").glob("*.npz"))
    shutil.rmtree(study.cache_path / "searches")
    warm = written()
    shutil.rmtree(study.cache_path)
    again = written()
    assert warm == cold
    assert again == cold
