"""Resamples in a file: what is read back is what was computed, and what is of another origin is not believed."""

import dataclasses
import shutil

import numpy as np
import pandas as pd
import pytest

from equipoise.compare import results
from equipoise.core import files
from equipoise.core.config import Compare
from equipoise.core.records import Predictions
from equipoise.evaluation import draws, intervals
from equipoise.scenario import stage as scenario
from fabricate import made

FLOOR = 0.9


@pytest.fixture
def compare() -> Compare:
    return made.settings().compare


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


def kept(folder, predictions, compare) -> intervals.Evaluation:
    evaluation = intervals.evaluate(predictions, compare, FLOOR)
    draws.write(folder, evaluation, predictions, compare, FLOOR)
    return evaluation


def mark(folder) -> None:
    """Change the numbers of a file, not its origin: who reads it gives itself away."""
    table, meta = files.read_table(folder / draws.FILE_NAME)
    files.write_table(folder / draws.FILE_NAME, table + 1, meta)


def is_read(folder, predictions, compare, floor=FLOOR) -> bool:
    """Whether the marked file was believed."""
    auroc = intervals.Endpoint("free", "auroc")
    return draws.evaluated(folder, predictions, compare, floor).draws[auroc][0] > 1


def test_what_is_read_is_what_was_computed_to_the_last_bit(tmp_path, predictions, compare):
    evaluation = kept(tmp_path, predictions, compare)
    again = draws.evaluated(tmp_path, predictions, compare, FLOOR)
    assert_same(evaluation, again)
    assert again.table() == evaluation.table()
    assert again.by_fold


def test_a_number_that_does_not_exist_comes_back_as_one(tmp_path, compare):
    """Nobody is decided positive at 0.5, so precision does not exist."""
    rows = made.predictions(np.array([-2.0, -3.0, -1.0, -4.0]), np.array([0, 0, 1, 1]))
    rows = rows.write(tmp_path / "predictions.parquet")
    evaluation = intervals.evaluate(rows, compare, FLOOR)
    missing = [name for name, values in evaluation.draws.items() if np.isnan(values).any()]
    assert missing
    draws.write(tmp_path, evaluation, rows, compare, FLOOR)
    again = draws.evaluated(tmp_path, rows, compare, FLOOR)
    for name in missing:
        np.testing.assert_array_equal(evaluation.draws[name], again.draws[name])
        np.testing.assert_array_equal(evaluation.by_seed[name], again.by_seed[name])


def test_a_file_of_another_origin_is_not_believed(tmp_path, predictions, compare):
    kept(tmp_path, predictions, compare)
    mark(tmp_path)
    assert is_read(tmp_path, predictions, compare)
    assert not is_read(tmp_path, predictions, compare, floor=0.8)
    assert not is_read(tmp_path, predictions, compare.model_copy(update={"seed": 12}))
    assert not is_read(tmp_path, predictions, compare.model_copy(update={"resamples": 100}))
    assert not is_read(tmp_path, dataclasses.replace(predictions, digest="0" * 64), compare)


def test_a_file_of_other_code_is_not_believed(tmp_path, predictions, compare, monkeypatch):
    kept(tmp_path, predictions, compare)
    mark(tmp_path)
    room = tmp_path / "evaluation"
    shutil.copytree(draws.Path(draws.__file__).parent, room)
    monkeypatch.setattr(draws, "__file__", str(room / "draws.py"))
    draws._code_digest.cache_clear()
    assert is_read(tmp_path, predictions, compare)
    (room / "metrics.py").write_text("# another metric\n")
    draws._code_digest.cache_clear()
    assert not is_read(tmp_path, predictions, compare)
    monkeypatch.undo()
    draws._code_digest.cache_clear()


@pytest.mark.parametrize("contents", [b"", b"no table", None])
def test_a_damaged_or_missing_file_is_computed_again(tmp_path, predictions, compare, contents):
    evaluation = kept(tmp_path, predictions, compare)
    path = tmp_path / draws.FILE_NAME
    path.unlink()
    if contents is not None:
        path.write_bytes(contents)
    assert_same(draws.evaluated(tmp_path, predictions, compare, FLOOR), evaluation)


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
