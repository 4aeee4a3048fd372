"""From the winner to service: one version per result, aliases, the served model, predict, rollback."""

import json
import shutil
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from conftest import run
from equipoise import cli

NAME = "equipoise-demo"


@pytest.fixture(scope="module")
def shop(workspace, tmp_path_factory):
    """A copy of the workspace with a champion."""
    folder = tmp_path_factory.mktemp("shop") / "copy"
    shutil.copytree(workspace, folder, symlinks=True)
    run(folder, sys.executable, "src", "promote", "--study", "demo")
    return folder


@pytest.fixture
def equipoise(monkeypatch, capsys):
    """Run a verb in this process, which has TensorFlow and MLflow loaded already: exit code, output, errors."""

    def call(folder, *arguments, store=None):
        monkeypatch.chdir(folder)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", store or f"sqlite:///{folder}/mlflow.db")
        capsys.readouterr()
        code = cli.main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def client(folder) -> MlflowClient:
    address = f"sqlite:///{folder}/mlflow.db"
    return MlflowClient(tracking_uri=address, registry_uri=address)


def version(folder, alias) -> str | None:
    try:
        return str(client(folder).get_model_version_by_alias(NAME, alias).version)
    except MlflowException:
        return None


def test_winner_is_a_version_with_evidence(shop):
    comparison = json.loads((shop / "reports/demo/comparison.json").read_text())
    made = client(shop).get_model_version_by_alias(NAME, "best-vgg16")
    assert str(made.version) == version(shop, "challenger") == version(shop, "champion") == "1"
    assert made.tags["equipoise.scenario"] == comparison["winners"]["vgg16"]
    row = comparison["rows"]["vgg16"][comparison["winners"]["vgg16"]]
    assert made.tags["equipoise.result_digest"] == row["result_digest"]
    assert float(made.tags["equipoise.free.auroc"].split()[0]) == pytest.approx(row["free"]["auroc"]["value"], abs=1e-4)
    assert made.tags["equipoise.check.EQ001"] == "none"
    assert float(made.tags["equipoise.served_difference"]) < 1e-5
    assert len(made.tags["equipoise.git_commit"]) == 40


def test_registering_again_makes_no_second_version(shop, equipoise):
    code, out, _ = equipoise(shop, "register")
    assert code == 0
    assert "was registered as equipoise-demo version 1" in out
    assert len(client(shop).search_model_versions(f"name = '{NAME}'")) == 1


def test_loaded_champion_equals_the_stored_predictions(shop, monkeypatch):
    monkeypatch.chdir(shop)
    address = f"sqlite:///{shop}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    mlflow.set_tracking_uri(address)
    champion = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    scenario = client(shop).get_model_version_by_alias(NAME, "champion").tags["equipoise.scenario"]
    stored = pd.read_parquet(shop / f"results/demo/vgg16/{scenario}/predictions.parquet")
    stored = stored[stored["seed"] == 0]
    images = [(shop / "data/raw/demo" / name).read_bytes() for name in stored["image_id"]]
    served = champion.predict(pd.DataFrame({"image": images}))
    assert len(served) > 50
    np.testing.assert_allclose(served["prob_opacity"], stored["calibrated_opacity"], atol=1e-5)
    np.testing.assert_allclose(served["raw_clear"], stored["prob_clear"], atol=1e-5)
    decided = np.where(stored["calibrated_opacity"] >= stored["threshold"], "opacity", "clear")
    assert (served["decision"] == decided).all()
    assert champion.metadata.signature.inputs.input_names() == ["image"]


def test_predict_writes_a_row_for_every_file(shop, tmp_path):
    raw = shop / "data/raw/demo"
    folder = tmp_path / "incoming"
    folder.mkdir()
    good = sorted((raw / "opacity").glob("*.png"))[:3]
    for path in good:
        shutil.copy(path, folder / path.name)
    (folder / "broken.png").write_bytes(good[0].read_bytes()[:200])
    (folder / "notes.txt").write_text("not an image")
    out = tmp_path / "predictions.csv"
    command = [sys.executable, "src", "predict", "--model", f"models:/{NAME}@champion", str(folder), "--out", str(out)]
    assert "3 images predicted, 1 unreadable" in run(shop, *command).stdout
    table = pd.read_csv(out)
    assert list(table["image"]) == sorted(str(folder / name) for name in ["broken.png", *(path.name for path in good)])
    broken = table[table["image"].str.endswith("broken.png")].iloc[0]
    assert "truncated" in broken["error"]
    assert pd.isna(broken["prob_opacity"])
    assert table["prob_opacity"].dropna().between(0, 1).all()


def test_predict_with_a_missing_model_is_one_sentence(shop, equipoise):
    image = next((shop / "data/raw/demo/clear").glob("*.png"))
    code, _, errors = equipoise(shop, "predict", "--model", f"models:/{NAME}@nobody", str(image))
    assert code == 2
    assert "nobody" in errors
    assert errors.count("\n") == 1


def test_promote_keeps_the_champion_for_rollback(shop, equipoise):
    store = client(shop)
    first = store.get_model_version(NAME, "1")
    second = str(store.create_model_version(NAME, first.source, first.run_id, tags=first.tags).version)
    _, out, _ = equipoise(shop, "promote", "--study", "demo", "--version", second)
    assert f"now version {second}; version 1 is kept for rollback" in out
    assert (version(shop, "champion"), version(shop, "previous-champion")) == (second, "1")
    code, out, _ = equipoise(shop, "promote", "--study", "demo", "--version", second)
    assert (code, version(shop, "champion")) == (0, second)
    assert "nothing moved" in out
    equipoise(shop, "rollback", "--study", "demo")
    assert (version(shop, "champion"), version(shop, "previous-champion")) == ("1", second)


def test_model_that_does_not_load_is_refused(shop, equipoise, tmp_path):
    store = client(shop)
    first = store.get_model_version(NAME, "1")
    broken = str(store.create_model_version(NAME, str(tmp_path), first.run_id).version)
    before = version(shop, "champion")
    code, _, errors = equipoise(shop, "promote", "--study", "demo", "--version", broken)
    assert code == 3
    assert errors.startswith(f"PromotionRefused: Version {broken} of {NAME} does not load")
    assert version(shop, "champion") == before


@pytest.mark.parametrize("verb", ["promote", "rollback"])
def test_nothing_to_move_is_refused(shop, equipoise, tmp_path, verb):
    code, _, errors = equipoise(shop, verb, "--study", "demo", store=f"sqlite:///{tmp_path}/empty.db")
    assert code == 3
    assert ("equipoise register --study demo" if verb == "promote" else "no previous champion") in errors


@pytest.mark.parametrize(
    ("change", "code", "sentence"),
    [
        (lambda comparison: comparison.update(registrable=False), 3, "EQ-OFFICIAL"),
        (lambda comparison: comparison["rows"]["vgg16"]["baseline"].update(result_digest="0" * 64), 1, "is newer than"),
    ],
)
def test_comparison_that_is_stale_or_leaks_registers_nothing(shop, equipoise, change, code, sentence):
    path = shop / "reports/demo/comparison.json"
    kept = path.read_text()
    comparison = json.loads(kept)
    comparison["winners"] = {"vgg16": "baseline"}
    change(comparison)
    path.unlink()  # a link into DVC's cache is never written through
    path.write_text(json.dumps(comparison))
    try:
        found, _, errors = equipoise(shop, "register")
    finally:
        path.write_text(kept)
    assert (found, sentence in errors) == (code, True)
    assert len(client(shop).search_model_versions(f"name = '{NAME}'")) <= 3


def test_input_example_works_and_is_no_patient(shop):
    made = client(shop).get_model_version(NAME, "1")
    folder = Path(made.source.removeprefix("file://"))
    package = mlflow.models.Model.load(folder)
    assert package.run_id == made.run_id
    example = package.load_input_example(str(folder))
    raw = {path.read_bytes() for path in (shop / "data/raw/demo").rglob("*.png")}
    assert bytes(example["image"].iloc[0]) not in raw
    answer = mlflow.pyfunc.load_model(str(folder)).predict(example)
    assert answer["prob_opacity"].between(0, 1).all()
