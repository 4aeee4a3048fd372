"""A study on imported vectors registers a model of vectors, which answers them as its result says."""

import os
import subprocess
import sys
from dataclasses import replace

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from conftest import path_of
from equipoise import cli
from equipoise.compare import stage as compare
from equipoise.core import config
from equipoise.core.errors import DataError
from equipoise.core.files import read_table
from equipoise.core.records import Manifest
from equipoise.embed import stage as features
from equipoise.embed.store import FeatureStore
from equipoise.registry import evidence, models, register
from equipoise.scenario import stage as scenarios
from equipoise.service import packaged, vectors
from fabricate import made

NAME = "uni"
FOLDS = {"scheme": "kfold", "folds": 3, "repeats": 1}


@pytest.fixture(scope="module")
def shop(tmp_path_factory):
    """A registered study on vectors of tiles, in k-fold: the study and the names and tiles of its file."""
    folder = tmp_path_factory.mktemp("vectors")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
        embed = {"features": {NAME: "features/tiles.npz"}, "pool": "mean"}
        run = {"backbones": [NAME], "scenarios": ["baseline", "class_weight"]}
        study = made.study(folder, run=run, embed=embed, split=FOLDS, train={"seeds": [0]})
        table = Manifest.read(study.manifest_path).table
        rng = np.random.default_rng(8)
        names = np.repeat(table["image_id"].to_numpy(dtype=str), 3)
        tiles = rng.normal(size=(len(names), 5)).astype(np.float32)
        tiles[:, 1] += np.repeat(table["label"].to_numpy(), 3)
        (folder / "features").mkdir()
        np.savez(folder / "features/tiles.npz", features=tiles, ids=names)
        features.run(study, NAME)
        for scenario in study.scenarios:
            scenarios.run(study, NAME, scenario)
        compare.run(study)
        register.register(study)
        yield study


def stored_and_vectors(study: config.Study) -> tuple[pd.DataFrame, list[list[float]]]:
    """What the served model must answer, and the vectors of the images in that order."""
    winner = winner_of(study).tags["equipoise.scenario"]
    folder = study.result_path(NAME, winner)
    stored, _ = read_table(folder / "model/refit_predictions.parquet")
    store = FeatureStore.open(study.features_path(NAME))
    digest_of = Manifest.read(study.manifest_path).table.set_index("image_id")["sha256"]
    rows = store.rows(digest_of.loc[stored["image_id"]].tolist(), np.zeros(len(stored), dtype=int))
    return stored, store.matrix[rows].tolist()


def winner_of(study):
    address = f"sqlite:///{study.root}/mlflow.db"
    store = MlflowClient(tracking_uri=address, registry_uri=address)
    return store.get_model_version_by_alias("equipoise-made", "challenger")


def test_the_model_answers_vectors_with_the_stored_predictions(shop):
    stored, given = stored_and_vectors(shop)
    folder = str(path_of(winner_of(shop).source))
    model = mlflow.pyfunc.load_model(folder)
    answers = model.predict(pd.DataFrame({"vector": given}))
    assert len(answers) > 100
    np.testing.assert_allclose(
        answers["prob_opacity"], stored["calibrated_opacity"], atol=1e-5, rtol=0
    )
    assert vectors.made_by(model) == NAME
    assert model.metadata.signature.inputs.input_names() == ["vector"]
    assert not any(model.input_example["vector"].iloc[0])
    for wrong, said in {
        "short": "Vector 1 has the shape (3,), and 5 numbers are expected",
        "infinite": "Vector 1 holds numbers that are not finite",
    }.items():
        bad = given[1][:3] if wrong == "short" else [float("inf"), *given[1][1:]]
        with pytest.raises(MlflowException) as error:
            model.predict(pd.DataFrame({"vector": [given[0], bad]}))
        assert said in str(error.value)
    with pytest.raises(DataError, match="no list of numbers"):
        vectors.VectorPredictor(shop.result_path(NAME, "baseline") / "model").predict(["text"])


def test_it_is_served_without_tensorflow(shop):
    folder = str(path_of(winner_of(shop).source))
    code = (
        "import sys, mlflow, pandas as pd\n"
        f"model = mlflow.pyfunc.load_model({folder!r})\n"
        "print(len(model.predict(model.input_example)))\n"
        "heavy = {'tensorflow', 'keras', 'sklearn', 'optuna', 'imblearn', 'h5py', 'PIL'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, env=kept
    )
    assert done.stdout.splitlines() == ["1", "[]"], done.stderr


def test_another_checkout_asks_it_in_a_process_of_its_own(shop):
    stored, given = stored_and_vectors(shop)
    model = packaged.Packaged(path_of(winner_of(shop).source))
    try:
        answers = model.predict(pd.DataFrame({"vector": given[:20]}))
    finally:
        model.close()
    np.testing.assert_allclose(
        answers["prob_opacity"], stored["calibrated_opacity"][:20], atol=1e-5, rtol=0
    )


def test_predict_reads_files_and_refuses_images(shop, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shop.root}/mlflow.db")
    uri = "models:/equipoise-made@challenger"
    content = np.load(shop.root / "features/tiles.npz")
    bags = {"odd": np.ones((2, 4), dtype=np.float32), "empty": np.ones((0, 5), dtype=np.float32)}
    for name in np.unique(content["ids"])[:30]:
        bags[str(name)] = content["features"][content["ids"] == name]
    np.savez("new.npz", **bags)
    words = ["--root", str(shop.root), "predict", "--model", uri]
    assert cli.main([*words, "--features", "new.npz", "--out", "out.csv"]) == 0
    assert "30 images predicted, 2 unreadable" in capsys.readouterr().out
    table = pd.read_csv("out.csv").set_index("image")
    assert table.loc["odd", "error"] == "has the shape (4,), and 5 numbers are expected"
    assert table.loc["empty", "error"] == "has 0 vectors, and one is expected"
    stored, _ = stored_and_vectors(shop)
    stored = stored.set_index("image_id")["calibrated_opacity"]
    answered = table[table["error"].isna()]
    np.testing.assert_allclose(
        answered["prob_opacity"], stored.loc[answered.index], atol=1e-5, rtol=0
    )
    assert cli.main([*words, "new.npz"]) == 2
    assert "takes vectors of uni, not images" in capsys.readouterr().err
    assert cli.main(words) == 2
    assert "Name images, or vectors with --features" in capsys.readouterr().err
    explain = ["--root", str(shop.root), "explain", "new.npz", "--model", uri]
    assert cli.main(explain) == 2
    assert "there is no picture to map" in capsys.readouterr().err


def test_gates_ask_it_about_the_vectors_of_the_study(shop, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{shop.root}/mlflow.db")
    version = winner_of(shop)
    address = f"sqlite:///{shop.root}/mlflow.db"
    store = MlflowClient(tracking_uri=address, registry_uri=address)
    carried = evidence.read(store, version)
    model = models.load("models:/equipoise-made@challenger", shop.root)
    difference = evidence.differences(shop, model, carried)
    assert difference.largest <= evidence.TOLERANCE
    assert difference.measured_on == "16 images"
    # Vectors that were read anew since are not those that the model was made from.
    others = carried.origin.model_copy(update={"digests": {"features": "0"}})
    changed = evidence.differences(shop, model, replace(carried, origin=others))
    assert changed.measured_on.startswith("the input example")
    answers = evidence.rescore(shop, model, carried.images[["image_id", "sha256"]].head(40))
    assert len(answers) == 40
