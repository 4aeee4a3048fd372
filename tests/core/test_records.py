"""Files are whole or not there, the same value is the same bytes, and errors say what to do."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from equipoise.core import files, records
from equipoise.core.errors import DataError
from equipoise.core.records import Manifest, Predictions, Splits
from equipoise.strategies.base import Objective, Plan, TrainRows


class _WriterFails(Exception):
    pass


def _write_half(path):
    with files.atomic_path(path) as temporary:
        temporary.write_text("half")
        raise _WriterFails


def _manifest_table(rows=2):
    return pd.DataFrame(
        {
            "image_id": [f"{row}.png" for row in range(rows)],
            "sha256": [f"{row:064x}" for row in range(rows)],
            "picture": [f"{row:064x}" for row in range(rows)],
            "path": [f"{row}.png" for row in range(rows)],
            "label": [row % 2 for row in range(rows)],
            "class_name": ["ab"[row % 2] for row in range(rows)],
            "patient_id": [f"p{row}" for row in range(rows)],
            "width_px": 8,
            "height_px": 8,
            "bytes": 10,
            "grey_mean": 128.0,
        }
    )


def _predictions(prob=0.25, calibrated=0.5, **changes):
    table = pd.DataFrame(
        {
            "image_id": ["1.png", "2.png", "3.png"],
            "patient_id": ["p1", "p2", "p3"],
            "repeat": 0,
            "fold": 0,
            "seed": 0,
            "part": ["val", "test", "test"],
            "label": [0, 0, 1],
            "overlap": False,
            "threshold": 0.5,
            "prob_a": 0.5,
            "prob_b": [prob, 0.5, 0.5],
            "calibrated_a": 0.5,
            "calibrated_b": [calibrated, 0.5, 0.5],
        }
    )
    return Predictions(table.assign(**changes), {"classes": ["a", "b"], "positive_class": "b"})


# --- files ----------------------------------------------------------------------------------------


def test_writer_that_raises_leaves_no_file(tmp_path):
    with pytest.raises(_WriterFails):
        _write_half(tmp_path / "new" / "a.json")
    assert list((tmp_path / "new").iterdir()) == []


def test_writer_that_raises_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with pytest.raises(_WriterFails):
        _write_half(path)
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]
    assert path.read_text() == "old"


def test_value_that_json_cannot_hold_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    assert files.read_json(path) == {"a": 1}
    assert len(list(tmp_path.iterdir())) == 1


def test_written_file_can_be_read_by_others(tmp_path):
    files.write_json(tmp_path / "a.json", 1)
    assert (tmp_path / "a.json").stat().st_mode & 0o444 == 0o444


def test_json_is_the_same_bytes_for_the_same_value(tmp_path):
    value = {
        "b": np.float64(0.1),
        "a": [np.int64(3), Path("x") / "y", (1, 2), np.arange(2)],
        "nan": float("nan"),
    }
    files.write_json(tmp_path / "1.json", value)
    files.write_json(tmp_path / "2.json", value)
    assert (tmp_path / "1.json").read_bytes() == (tmp_path / "2.json").read_bytes()
    assert files.read_json(tmp_path / "1.json") == {
        "b": 0.1,
        "a": [3, "x/y", [1, 2], [0, 1]],
        "nan": None,
    }


@pytest.mark.parametrize(
    "number", [float("nan"), float("inf"), np.float32("nan"), np.array([np.inf])]
)
def test_json_holds_null_for_what_is_no_number(tmp_path, number):
    files.write_json(tmp_path / "a.json", {"number": number})
    assert json.loads((tmp_path / "a.json").read_text())["number"] in (None, [None])


def test_table_is_the_same_bytes_for_the_same_value(tmp_path):
    table, meta = _manifest_table(), {"b": 1, "a": [2]}
    files.write_table(tmp_path / "1.parquet", table, meta)
    files.write_table(tmp_path / "2.parquet", table.copy(), dict(reversed(meta.items())))
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()


def test_table_and_metadata_come_back(tmp_path):
    files.write_table(tmp_path / "a.parquet", _manifest_table(), {"classes": ["a", "b"]})
    table, meta = files.read_table(tmp_path / "a.parquet")
    pd.testing.assert_frame_equal(table, _manifest_table(), check_dtype=False)
    assert meta == {"classes": ["a", "b"]}


@pytest.mark.parametrize("read", [files.read_json, files.read_table, Manifest.read])
def test_missing_file_says_what_to_run(tmp_path, read):
    with pytest.raises(
        DataError, match=r"There is no .*absent\. Run `dvc repro`, or the stage that writes it"
    ):
        read(tmp_path / "absent")


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_damaged_json_says_what_to_do(tmp_path, content):
    path = tmp_path / "a.json"
    path.write_bytes(content)
    with pytest.raises(
        DataError, match=r"a\.json is not readable as JSON .* Run the stage that writes it again"
    ):
        files.read_json(path)


def test_damaged_table_says_what_to_do(tmp_path):
    path = tmp_path / "a.parquet"
    files.write_table(path, _manifest_table(), {})
    for content in (b"", b"no table", path.read_bytes()[:-20]):
        path.write_bytes(content)
        with pytest.raises(
            DataError, match=r"a\.parquet is not readable as Parquet .* Run the stage"
        ):
            files.read_table(path)


# --- digests --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"image_id": "0.png"}, "names image '0.png' more than once"),
        ({"picture": None}, "without patient_id or picture"),
        ({"patient_id": None}, "without patient_id or picture"),
        ({"label": 2}, "labels outside its 2 classes"),
        ({"label": -1}, "labels outside its 2 classes"),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(change, text):
    with pytest.raises(DataError, match=text):
        records.Manifest(_manifest_table().assign(**change), {"classes": ["a", "b"]})


def test_file_digest_is_sha256_of_the_bytes(tmp_path):
    (tmp_path / "a").write_bytes(b"equipoise")
    assert files.file_digest(tmp_path / "a") == hashlib.sha256(b"equipoise").hexdigest()


def test_digest_of_sees_values_and_not_their_kind_or_key_order():
    assert files.digest_of({"a": np.int64(1), "b": (2,)}) == files.digest_of({"b": [2], "a": 1})
    assert files.digest_of({"a": 1}) != files.digest_of({"a": 2})
    assert files.digest_of([1, 2]) != files.digest_of([2, 1])


def test_record_carries_the_digest_of_its_file(tmp_path):
    path = tmp_path / "m.parquet"
    written = Manifest(_manifest_table(), MANIFEST_META).write(path)
    assert written.digest == files.file_digest(path) == Manifest.read(path).digest
    other = Manifest(_manifest_table(3), written.meta).write(path)
    assert other.digest != written.digest


# --- the checks of a file -------------------------------------------------------------------------

MANIFEST_META = {
    "study": "s",
    "dataset": "d",
    "classes": ["a", "b"],
    "positive_class": "b",
    "readings": [],
}


def _splits_table():
    return pd.DataFrame(
        {"image_id": ["1.png"], "patient_id": "p", "part": "train", "repeat": 0, "fold": 0}
    )


SPLITS_META = {"study": "s", "manifest": "m", "group_by": "patient", "settings": {}}


def _check_manifest(path, columns, meta):
    files.write_table(path, _manifest_table().assign(**columns), MANIFEST_META | meta)
    return Manifest.read(path)


@pytest.mark.parametrize(
    ("meta", "said"),
    [
        ({"study": 5}, "says 5 of study in its metadata, str is expected"),
        ({"classes": "ab"}, "says 'ab' of classes in its metadata, list is expected"),
        ({"readings": None}, "says None of readings in its metadata, list is expected"),
        ({"classes": []}, r"names the classes \[\], different names are expected"),
        ({"classes": ["a", "a"]}, "different names are expected"),
        ({"classes": ["a", ["b"]]}, "different names are expected"),
        ({"positive_class": "c"}, "names the positive class 'c', which is none of its classes"),
        ({"readings": ["slide"]}, "lacks the column slide, which its metadata name"),
        ({"readings": ["label"]}, "holds int64 in column label, text is expected"),
    ],
)
def test_metadata_that_cannot_be_are_refused(tmp_path, meta, said):
    with pytest.raises(
        DataError, match=rf"m\.parquet .*{said}.*Run the stage that writes it again"
    ):
        _check_manifest(tmp_path / "m.parquet", {}, meta)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        ({"label": 2}, "holds labels outside its 2 classes"),
        ({"width_px": 8.5}, "holds double in column width_px, whole numbers is expected"),
        ({"sha256": 1}, "holds int64 in column sha256, text is expected"),
        ({"grey_mean": "light"}, r"holds \w*string in column grey_mean, number is expected"),
        ({"prob_a": "high"}, r"holds \w*string in column prob_a, number is expected"),
        ({"path": ["1.png", None]}, "has rows without path"),
    ],
)
def test_columns_that_cannot_be_are_refused(tmp_path, columns, said):
    with pytest.raises(
        DataError, match=rf"m\.parquet .*{said}.*Run the stage that writes it again"
    ):
        _check_manifest(tmp_path / "m.parquet", columns, {})


def test_a_number_may_be_missing_or_short(tmp_path):
    columns = {
        "grey_mean": np.array([1.5, np.nan], dtype=np.float32),
        "bytes": np.array([1, 2], dtype=np.int32),
    }
    read = _check_manifest(tmp_path / "m.parquet", columns, {})
    assert read.table["grey_mean"].isna().tolist() == [False, True]


def test_a_split_with_another_part_is_refused(tmp_path):
    path = tmp_path / "s.parquet"
    files.write_table(path, _splits_table(), SPLITS_META)
    assert Splits.read(path).rounds() == [(0, 0)]
    files.write_table(path, _splits_table().assign(part="holdout"), SPLITS_META)
    with pytest.raises(DataError, match=r"s\.parquet holds parts other than train, val, test"):
        Splits.read(path)


def test_every_check_of_a_file_lets_a_good_one_pass(tmp_path):
    path = tmp_path / "p.parquet"
    written = _predictions().write(path)
    content = files.read_parquet(path)
    assert [check(Predictions, content) for check in records.CHECKS] == [None] * 8
    assert Predictions.read(path).digest == written.digest


# --- records --------------------------------------------------------------------------------------


@pytest.mark.parametrize("record", [Manifest, Splits, Predictions])
def test_lacking_columns_are_named(record):
    with pytest.raises(
        DataError,
        match=rf"{record.__name__} lacks the column\(s\) .*patient_id.*; it has image_id\.",
    ):
        record(pd.DataFrame({"image_id": ["a"]}), {"classes": ["a", "b"]})


def test_manifest_counts_a_class_without_images():
    manifest = Manifest(_manifest_table(3), {"classes": ["a", "b", "c"], "positive_class": "b"})
    assert manifest.counts().tolist() == [2, 1, 0]
    assert (manifest.classes, manifest.positive_class) == (("a", "b", "c"), "b")


def test_minority_is_every_class_below_the_largest():
    assert records.minority_labels(np.array([5, 9, 2])) == [0, 2]
    assert records.minority_labels(np.array([4, 4])) == []


def test_splits_give_their_rounds_in_order():
    table = pd.DataFrame({"image_id": ["a", "b"] * 3, "patient_id": "p", "part": "train"})
    splits = Splits(table.assign(repeat=[1, 1, 0, 0, 0, 0], fold=[0, 0, 1, 1, 0, 0]))
    assert splits.rounds() == [(0, 0), (0, 1), (1, 0)]
    assert [(one.repeat, one.fold) for one in splits.rounds()] == splits.rounds()
    assert splits.round(0, 1)["image_id"].tolist() == ["a", "b"]
    assert splits.round(2, 0).empty


def test_plan_counts_draws_per_class():
    labels = np.array([0, 0, 1])
    assert Plan.of([0, 1, 2, 2, 2]).counts(labels, 3).tolist() == [2, 3, 0]
    assert TrainRows(labels, 3, views=0, seed=0).counts.tolist() == [2, 1, 0]


def test_plan_is_of_plain_images_unless_views_are_given():
    assert Plan.of([0, 1]).view.tolist() == [0, 0]
    assert Plan.of([0, 1], 2).view.tolist() == [2, 2]
    assert Plan.of([0, 1], [0, 3]).view.tolist() == [0, 3]
    with pytest.raises(ValueError, match="broadcast"):
        Plan.of([0, 1], [1, 2, 3])


def test_plan_does_not_share_memory_with_its_views():
    views = np.array([0, 1])
    plan = Plan.of([0, 1], views)
    views[0] = 5
    assert plan.view.tolist() == [0, 1]


def test_neutral_objective_is_plain_cross_entropy():
    neutral = Objective.neutral(3)
    assert neutral.weights.tolist() == [1, 1, 1]
    assert neutral.offsets.tolist() == [0, 0, 0]
    assert neutral.focusing == 0
    changed = neutral.replace(focusing=2.0)
    assert (changed.focusing, neutral.focusing) == (2.0, 0.0)


@pytest.mark.parametrize("kind", ["prob", "calibrated"])
@pytest.mark.parametrize("value", [-0.01, 1.01, float("nan"), float("inf")])
def test_probabilities_outside_0_to_1_are_refused(kind, value):
    with pytest.raises(
        DataError, match=rf"Predictions hold {kind}_\.\.\. that are not numbers within 0\.\.1"
    ):
        _predictions(**{kind: value})


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_probabilities_may_be_certain(value):
    assert _predictions(prob=value).probabilities("prob")[0, 1] == value


def test_lacking_probability_columns_are_a_data_error():
    table = _predictions().table.drop(columns="prob_b")
    with pytest.raises(DataError, match="prob_b"):
        Predictions(table, {"classes": ["a", "b"], "positive_class": "b"})


def test_predictions_know_their_parts_and_positive_label():
    predictions = _predictions()
    assert predictions.positive_label == 1
    assert predictions.part("test").table["image_id"].tolist() == ["2.png", "3.png"]
    assert predictions.part("train").probabilities("prob").shape == (0, 2)


def test_test_digest_sees_what_was_tested_and_not_what_the_model_said():
    digest = _predictions().test_digest()
    assert _predictions(prob=0.9, calibrated=0.1, threshold=0.7).test_digest() == digest
    assert _predictions(label=[0, 1, 1]).test_digest() != digest
    assert _predictions(patient_id=["p1", "p2", "p2"]).test_digest() != digest
    assert _predictions(part=["test", "test", "test"]).test_digest() != digest


def test_class_table_counts_images_patients_and_share():
    rows = records.class_table(np.array([0, 0, 1, 0]), ["p", "p", "q", "r"], ["a", "b", "c"])
    assert rows["a"].as_dict() == {"images": 3, "patients": 2, "image_share": 0.75}
    assert rows["b"].as_dict() == {"images": 1, "patients": 1, "image_share": 0.25}
    assert rows["c"].as_dict() == {"images": 0, "patients": 0, "image_share": 0.0}


def test_imbalance_ratio_does_not_exist_without_images_of_a_class():
    assert records.imbalance_ratio(np.array([3, 10])) == 3.3333
    assert records.imbalance_ratio(np.array([0, 10])) is None
