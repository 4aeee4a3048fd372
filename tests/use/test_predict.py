"""A row for every file, in order, whatever the file is; the same bytes every time."""

import io
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from mlflow.models import ModelSignature
from mlflow.types import ColSpec, DataType, Schema
from PIL import Image

from equipoise.core import images
from equipoise.core.errors import ConfigError, DataError
from equipoise.registry import models
from equipoise.use import predict


class Model:
    """Answers with the mean grey level, and counts what it was given at once."""

    def __init__(self):
        outputs = [
            ColSpec(DataType.double, name) for name in ("prob_a", "prob_b", "raw_a", "raw_b")
        ]
        outputs += [ColSpec(DataType.string, "decision"), ColSpec(DataType.long, "label")]
        outputs += [ColSpec(DataType.double, "threshold", required=False)]
        self.metadata = SimpleNamespace(
            signature=ModelSignature(Schema([ColSpec(DataType.binary, "image")]), Schema(outputs))
        )
        self.batches = []

    def predict(self, table):
        self.batches.append(len(table))
        share = np.array([images.decode(data).mean() / 255 for data in table["image"]])
        columns = {"prob_a": 1 - share, "prob_b": share, "raw_a": 1 - share, "raw_b": share}
        return pd.DataFrame(
            {**columns, "decision": np.where(share >= 0.5, "b", "a"), "label": 1, "threshold": 0.5}
        )


@pytest.fixture
def model():
    return Model()


def predicted(model: Model, sources: list, out: Path) -> predict.Tally:
    named = predict.NamedModel("models:/equipoise-made/3", "equipoise-made", "3", grey=True)
    paths = predict.find([str(source) for source in sources])
    return predict.write_predictions(model, named, paths, out)


def picture(path, level=None, size=(40, 40), colour=False):
    rng = np.random.default_rng(sum(map(ord, path.name)))
    pixels = rng.integers(0, 256, size=(*size[::-1], 3 if colour else 1), dtype=np.uint8)
    pixels = np.repeat(pixels, 1 if colour else 3, axis=2)
    if level is not None:
        pixels[:] = level
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "in"
    picture(folder / "a.png")
    (folder / "b.png").write_bytes((folder / "a.png").read_bytes()[:60])
    picture(folder / "c.png", colour=True)
    picture(folder / "d.png", level=7)
    picture(folder / "e.png", size=(40, 10))
    (folder / "f.jpg").write_text("text")
    picture(folder / "sub/g.png")
    (folder / ".hidden.png").write_bytes(b"")
    return folder


def test_every_file_has_a_row_in_order(model, folder, tmp_path):
    out = tmp_path / "p.csv"
    tally = predicted(model, [folder, folder / "gone.png"], out)
    table = pd.read_csv(out, dtype={"version": str}, keep_default_na=False)
    names = ["a.png", "b.png", "c.png", "d.png", "e.png", "f.jpg", "sub/g.png", "gone.png"]
    assert list(table["image"]) == [str(folder / name) for name in names]
    assert list(table["flags"]) == ["", "", "colour", "blank", "tiny", "", "", ""]
    assert [bool(error) for error in table["error"]] == [
        name in ("b.png", "f.jpg", "gone.png") for name in names
    ]
    assert "truncated" in table["error"][1]
    assert table["error"][7] == "No such file or directory"
    assert tally == predict.Tally(predicted=5, flagged=3, unreadable=3)
    assert set(table["model"] + "/" + table["version"]) == {"equipoise-made/3"}
    share = images.decode(folder / "a.png").mean() / 255
    assert float(table["prob_b"][0]) == pytest.approx(share)
    assert table["prob_b"][1] == ""


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_again_gives_the_same_bytes(model, folder, tmp_path, suffix):
    outs = [tmp_path / f"{name}.{suffix}" for name in "xy"]
    for out in outs:
        predicted(model, [folder], out)
    assert outs[0].read_bytes() == outs[1].read_bytes()


def test_parquet_holds_what_the_csv_holds(model, folder, tmp_path):
    for suffix in ("csv", "parquet"):
        predicted(model, [folder], tmp_path / f"p.{suffix}")
    parquet = pd.read_parquet(tmp_path / "p.parquet")
    table = pd.read_csv(
        tmp_path / "p.csv", dtype={"version": str}, keep_default_na=False, na_values={"prob_a": ""}
    )
    assert list(parquet.columns) == list(table.columns)
    assert list(parquet["flags"]) == list(table["flags"])
    np.testing.assert_allclose(parquet["prob_a"], table["prob_a"].astype(float), rtol=0, atol=1e-15)
    assert parquet["threshold"].dtype == float
    assert list(table["label"]) == ["1", "", "1", "1", "1", "", "1"]
    assert parquet["label"].isna().sum() == 2


def test_batches_are_bounded_and_columns_stand_before_the_first_good_file(model, tmp_path):
    for index in range(70):
        path = tmp_path / f"in/{index:03d}.png"
        picture(path)
        if index < 32:
            path.write_bytes(b"broken")
    predicted(model, [tmp_path / "in"], tmp_path / "p.csv")
    assert model.batches == [32, 6]
    assert len(pd.read_csv(tmp_path / "p.csv")["prob_a"].dropna()) == 38


def test_nothing_is_left_of_a_run_that_fails(model, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(model, "predict", lambda table: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        predicted(model, [folder], tmp_path / "out/p.csv")
    assert list((tmp_path / "out").iterdir()) == []


def test_patterns_and_lists_name_images(folder, tmp_path):
    assert predict.find([str(folder / "**/*.png")]) == [
        str(folder / name) for name in ("a.png", "b.png", "c.png", "d.png", "e.png", "sub/g.png")
    ]
    (tmp_path / "list.csv").write_text(
        "patient,path\n1,in/a.png\n2,in/a.png\n3,/else/b.png\n", encoding="utf-8-sig"
    )
    listed = predict.find([str(tmp_path / "list.csv")])
    assert listed == [str(folder / "a.png"), str(folder / "a.png"), "/else/b.png"]
    picture(tmp_path / "odd[1].png")
    assert predict.find([str(tmp_path / "odd[1].png")]) == [str(tmp_path / "odd[1].png")]
    with pytest.raises(ConfigError, match="There is no image in"):
        predict.find([str(folder / "*.bmp")])
    (tmp_path / "other.csv").write_text("file\na.png\n")
    with pytest.raises(DataError, match="no column `path` or `image`"):
        predict.find([str(tmp_path / "other.csv")])
    with pytest.raises(DataError, match=r"There is no .*missing\.csv"):
        predict.find([str(tmp_path / "missing.csv")])


def test_another_suffix_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"ending in \.csv or \.parquet"):
        predict.predict_images(
            "models:/x@champion", ["a.png"], tmp_path / "p.xlsx", tmp_path, print
        )


def test_a_model_outside_the_registry_is_loaded_and_named_by_its_address(
    model, folder, tmp_path, monkeypatch
):
    loaded = []
    monkeypatch.setattr(models, "load", lambda uri, root: loaded.append((uri, root)) or model)
    lines = []
    out = tmp_path / "p.csv"
    predict.predict_images("some/folder", [str(folder / "a.png")], out, tmp_path, lines.append)
    assert loaded == [("some/folder", tmp_path)]
    assert lines == ["loading some/folder"]
    table = pd.read_csv(out, keep_default_na=False)
    assert list(table["model"] + "|" + table["version"]) == ["some/folder|"]


def test_a_file_is_looked_for_where_the_user_stands(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(folder)
    assert predict.find(["a.png", "sub"]) == ["a.png", "sub/g.png"]


def test_jpeg_of_a_grey_picture_is_grey():
    pixels = np.random.default_rng(0).integers(0, 256, size=(64, 64), dtype=np.uint8)
    for mode, odd in (("L", []), ("RGB", [])):
        file = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(file, "jpeg", quality=60)
        assert images.flags(images.decode(file.getvalue()), grey=True) == odd
    coloured = np.stack([pixels, pixels // 2, pixels], axis=2)
    assert images.flags(coloured, grey=True) == ["colour"]
    assert images.flags(coloured, grey=False) == []
