"""Resamples in a file: what is read back is what was computed, and what is of another origin is not believed."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest

from equipoise.compare import results
from equipoise.core import files
from equipoise.core.records import Manifest, Predictions
from equipoise.evaluation import draws, intervals
from equipoise.evaluation.measured import Conditions, FreshNumbers, KeptNumbers
from equipoise.scenario import stage as scenario
from fabricate import made


@pytest.fixture
def conditions() -> Conditions:
    settings = made.settings()
    return Conditions(settings.compare, settings.threshold, 0.9, "patients")


def manifest_of(count: int, classes: list[str]) -> Manifest:
    names = [f"image{number}" for number in range(count)]
    table = pd.DataFrame(
        {
            "image_id": names,
            "sha256": names,
            "picture": names,
            "path": names,
            "label": 0,
            "class_name": classes[0],
            "patient_id": names,
            "width_px": 1,
            "height_px": 1,
            "bytes": 1,
            "grey_mean": 1.0,
            "device": np.resize(["old", "old", "new"], count),
        }
    )
    return Manifest(table, {"classes": classes, "readings": []}, digest="1" * 64)


@pytest.fixture
def manifest() -> Manifest:
    """Of the images of `predictions`; the column `device` divides them."""
    return manifest_of(60, ["clear", "opacity"])


@pytest.fixture
def predictions(tmp_path) -> Predictions:
    """Two folds and two repeats; the folds' numbers differ."""
    rng = np.random.default_rng(0)
    tables = []
    for repeat in range(2):
        labels = np.tile([0, 0, 1], 20)
        logits = rng.normal(size=60) + labels
        rows = made.predictions(logits, labels, fold=np.repeat([0, 1], 30), repeat=repeat)
        tables.append(rows.table)
    meta = {"classes": ["clear", "opacity"], "positive_class": "opacity"}
    return Predictions(pd.concat(tables, ignore_index=True), meta).write(
        tmp_path / "predictions.parquet"
    )


def assert_same(first: intervals.Evaluation, second: intervals.Evaluation) -> None:
    assert list(first.draws) == list(second.draws)
    for endpoint, values in first.draws.items():
        np.testing.assert_array_equal(values, second.draws[endpoint])
    for attribute in dataclasses.fields(first):
        if attribute.name != "draws":
            assert getattr(first, attribute.name) == getattr(second, attribute.name), attribute.name


def kept(folder, predictions, manifest, conditions) -> FreshNumbers:
    numbers = FreshNumbers(predictions, manifest, conditions)
    draws.write(folder, numbers)
    return numbers


def mark(folder) -> None:
    """Change the numbers of a file, not its origin: who reads it gives itself away."""
    table, meta = files.read_table(folder / draws.FILE_NAME)
    files.write_table(folder / draws.FILE_NAME, table + 1, meta)


AUROC = intervals.Endpoint("free", "auroc")


def is_read(folder, predictions, manifest, conditions) -> bool:
    """Whether the marked file was believed."""
    return draws.measured(folder, predictions, manifest, conditions).images.draws[AUROC][0] > 1


def test_what_is_read_is_what_was_computed_to_the_last_bit(
    tmp_path, predictions, manifest, conditions
):
    numbers = kept(tmp_path, predictions, manifest, conditions)
    again = draws.measured(tmp_path, predictions, manifest, conditions)
    assert isinstance(again, KeptNumbers)
    assert_same(numbers.images, again.images)
    assert again.images.table() == numbers.images.table()
    assert again.images.by_fold
    assert list(again.patients) == list(numbers.patients) == ["mean", "max", "vote"]
    for rule, evaluation in numbers.patients.items():
        assert_same(evaluation, again.patients[rule])
    assert again.subgroups == numbers.subgroups
    assert [group.value for group in again.subgroups] == ["new", "old"]
    assert again.per_class == {}


def test_each_of_three_classes_and_a_number_that_is_hidden_come_back(tmp_path, conditions):
    rng = np.random.default_rng(3)
    labels = np.arange(60) % 3
    logits = rng.normal(size=(60, 3)) + np.eye(3)[labels]
    rows = made.predictions(logits, labels, classes=("a", "b", "c"))
    rows = rows.write(tmp_path / "predictions.parquet")
    manifest = manifest_of(60, ["a", "b", "c"])
    numbers = kept(tmp_path, rows, manifest, conditions)
    again = draws.measured(tmp_path, rows, manifest, conditions)
    assert list(again.per_class) == ["a", "b", "c"]
    assert again.per_class == numbers.per_class
    # Twenty images of each class: of one class against the rest no step is read, in all of them it is.
    of_two = made.predictions(rng.normal(size=30), np.arange(30) % 3 // 2)
    hidden = intervals.evaluate(of_two, conditions.compare, 0.9)
    asked = intervals.Endpoint("free", "specificity_at_sensitivity")
    assert asked in hidden.hidden
    assert asked not in hidden.draws


def test_without_patient_ids_nothing_is_measured_of_patients(predictions, manifest, conditions):
    numbers = FreshNumbers(predictions, manifest, conditions._replace(units="images"))
    assert numbers.patients == {}


def test_a_number_that_does_not_exist_comes_back_as_one(tmp_path, manifest, conditions):
    """Nobody is decided positive at 0.5, so precision does not exist."""
    rows = made.predictions(np.array([-2.0, -3.0, -1.0, -4.0]), np.array([0, 0, 1, 1]))
    rows = rows.write(tmp_path / "predictions.parquet")
    evaluation = kept(tmp_path, rows, manifest, conditions).images
    missing = [name for name, values in evaluation.draws.items() if np.isnan(values).any()]
    assert missing
    again = draws.measured(tmp_path, rows, manifest, conditions).images
    for name in missing:
        np.testing.assert_array_equal(evaluation.draws[name], again.draws[name])
        np.testing.assert_array_equal(evaluation.by_seed[name], again.by_seed[name])


def test_a_file_of_another_origin_is_not_believed(tmp_path, predictions, manifest, conditions):
    kept(tmp_path, predictions, manifest, conditions)
    mark(tmp_path)
    assert is_read(tmp_path, predictions, manifest, conditions)
    compare = conditions.compare
    by_youden = conditions.threshold.model_copy(update={"rule": "youden"})
    for other in (
        conditions._replace(sensitivity_floor=0.8),
        conditions._replace(threshold=by_youden),
        conditions._replace(units="images"),
        conditions._replace(compare=compare.model_copy(update={"seed": 12})),
        conditions._replace(compare=compare.model_copy(update={"resamples": 100})),
    ):
        assert not is_read(tmp_path, predictions, manifest, other)
    other_rows = dataclasses.replace(predictions, digest="0" * 64)
    assert not is_read(tmp_path, other_rows, manifest, conditions)
    other_images = dataclasses.replace(manifest, digest="0" * 64)
    assert not is_read(tmp_path, predictions, other_images, conditions)


def test_a_file_of_other_code_is_not_believed(
    tmp_path, predictions, manifest, conditions, monkeypatch
):
    kept(tmp_path, predictions, manifest, conditions)
    mark(tmp_path)
    room = tmp_path / "evaluation"
    shutil.copytree(draws.Path(draws.__file__).parent, room)
    monkeypatch.setattr(draws, "__file__", str(room / "draws.py"))
    draws._code_digest.cache_clear()
    assert is_read(tmp_path, predictions, manifest, conditions)
    (room / "metrics.py").write_text("# another metric\n")
    draws._code_digest.cache_clear()
    assert not is_read(tmp_path, predictions, manifest, conditions)
    monkeypatch.undo()
    draws._code_digest.cache_clear()


@pytest.mark.parametrize("contents", [b"", b"no table", None])
def test_a_damaged_or_missing_file_is_computed_again(
    tmp_path, predictions, manifest, conditions, contents
):
    numbers = kept(tmp_path, predictions, manifest, conditions)
    path = tmp_path / draws.FILE_NAME
    path.unlink()
    if contents is not None:
        path.write_bytes(contents)
    again = draws.measured(tmp_path, predictions, manifest, conditions)
    assert isinstance(again, FreshNumbers)
    assert_same(again.images, numbers.images)


def test_a_scenario_keeps_what_compare_reads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = made.study(tmp_path, train={"seeds": [0]})
    summary = scenario.run(study, made.BACKBONE, "baseline")
    folder = study.result_path(made.BACKBONE, "baseline")
    result = results.load_result(study, made.BACKBONE, "baseline", folder)
    table = {
        point: {name: cell.as_dict() for name, cell in of_point.items()}
        for point, of_point in result.evaluation.table().items()
    }
    written = files.read_json(folder / "metrics.json")["metrics"]
    assert files._jsonable(table) == written
    assert summary.result_digest == result.summary.result_digest
    mark(folder)
    marked = results.load_result(study, made.BACKBONE, "baseline", folder)
    auroc = intervals.Endpoint("free", "auroc")
    assert marked.evaluation.draws[auroc][0] == result.evaluation.draws[auroc][0] + 1
    assert list(result.numbers.patients) == ["mean", "max", "vote"]
    assert isinstance(result.numbers, KeptNumbers)
