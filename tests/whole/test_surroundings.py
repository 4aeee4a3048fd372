"""Who runs the program may have no name, no home folder, and settings of Keras for something else."""

import json
import os
import sys

import numpy as np
import pytest

from conftest import REPO, copy_checkout, git, run
from equipoise.core.errors import ConfigError
from equipoise.embed import backbones, embedder

#: A container may run under a number that the list of users lacks.
NOBODY = """
import pwd

def getpwuid(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")

pwd.getpwuid = getpwuid
"""


@pytest.fixture
def nobody(tmp_path, monkeypatch):
    """Run a verb in a checkout of one stage, in processes that find no user."""
    for name in (
        "LOGNAME",
        "USER",
        "LNAME",
        "USERNAME",
        "HOME",
        "XDG_CONFIG_HOME",
        "XDG_CACHE_HOME",
    ):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "nobody").mkdir()
    (tmp_path / "nobody/sitecustomize.py").write_text(NOBODY)
    folder = tmp_path / "checkout"
    folder.mkdir()
    copy_checkout(folder)
    (folder / "data/raw/dvc.yaml").unlink()
    (folder / "dvc.yaml").write_text("stages: {one: {cmd: python --version}}")
    git(folder, "init", "-q")
    path = os.pathsep.join([str(tmp_path / "nobody"), str(REPO / "src")])

    def call(*words, **variables):
        command = [sys.executable, "-m", "equipoise", *words]
        return run(folder, *command, check=False, PYTHONPATH=path, **variables)

    return call


@pytest.mark.parametrize(
    "words", [["main"], ["audit", "--study", "demo"]], ids=lambda words: words[0]
)
def test_without_a_home_folder_it_is_said_what_to_set(nobody, words):
    done = nobody(*words)
    sentence = "ConfigError: This user has no home folder, and DVC and MLflow do not start without one. Set HOME "
    assert done.returncode == 2
    assert done.stderr.startswith(sentence)
    assert done.stderr.count("\n") == 1


def test_a_user_without_a_name_runs_the_stages(nobody, tmp_path):
    done = nobody("main", HOME=str(tmp_path))
    assert "Running stage 'one'" in done.stdout, done.stderr
    assert "uid not found" not in done.stderr


_ELSEWHERE = """
import numpy as np
from equipoise.embed import backbones, embedder
network = embedder.Embedder(backbones.build("mobilenetv2", "random", 32), 32)
print(network.features(np.full((1, 32, 32, 3), 90, np.float32))[0, :9].tolist())
"""


def test_settings_of_keras_for_other_programs_change_no_feature(tmp_path):
    other = {"backend": "jax", "floatx": "float64", "image_data_format": "channels_first"}
    (tmp_path / "keras.json").write_text(json.dumps(other))
    variables = {"KERAS_HOME": str(tmp_path), "KERAS_BACKEND": "torch"}
    command = [sys.executable, "-c", _ELSEWHERE]
    done = run(tmp_path, *command, PYTHONPATH=str(REPO / "src"), **variables)
    network = embedder.Embedder(backbones.build("mobilenetv2", "random", 32), 32)
    features = network.features(np.full((1, 32, 32, 3), 90, np.float32))
    assert json.loads(done.stdout) == pytest.approx(features[0, :9].tolist(), rel=1e-4)


def test_another_backend_that_is_loaded_already_is_said(monkeypatch):
    keras = backbones.load_keras()
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(ConfigError, match="Keras runs on jax in this process"):
        backbones.load_keras()
