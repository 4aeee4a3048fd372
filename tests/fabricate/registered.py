"""A study whose made-up results are versions of a registered model, with a tiny model that loads at once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mlflow
import pandas as pd
from mlflow.tracking import MlflowClient

from conftest import git
from equipoise.core import files
from equipoise.registry import evidence, register, tracking
from fabricate import made

NAME = "equipoise-made"
_MODEL = """
import mlflow, pandas
class Model(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return pandas.DataFrame({"prob_clear": 0.25, "prob_opacity": 0.75}, index=range(len(model_input)))
mlflow.models.set_model(Model())
"""


def build(folder: Path) -> None:
    """A commit with a small study, and a tiny model beside it; the working folder must be `folder`."""
    bounds = {"min_patients": 5, "sensitivity_low_at_least": 0.3, "calibration_slope": [0.5, 2]}
    made.study(folder, promote=bounds)
    (folder / "model.py").write_text(_MODEL)
    mlflow.pyfunc.save_model(
        folder / "model",
        python_model=str(folder / "model.py"),
        input_example=pd.DataFrame({"image": ["x"]}),
        pip_requirements=["mlflow"],
    )
    git(folder, "init", "-q")
    git(folder, "add", "params.yaml")
    git(folder, "commit", "-qm", "a study")


def add_version(folder: Path, uri: str, scenario: str, strength: float) -> str:
    """What `register` does with a winner, for a made-up result and the tiny model; its number."""
    store = MlflowClient(uri, uri)
    study = made.config.load_study("made", root=folder)
    result = made.result(study, scenario, strength)
    digests = files.read_json(result / "metrics.json")["digests"]
    collected = evidence.collect(study, result, digests, register.expected_predictions(result))
    digests["test"] = collected.predictions.test_digest()
    example = {"prob_clear": 0.25, "prob_opacity": 0.75}
    origin = collected.origin.model_copy(update={"digests": digests, "example": example})
    written = evidence.write(replace(collected, origin=origin), result / "kept")
    run = store.create_run(tracking.experiment_id(store, NAME, folder))
    store.log_artifacts(run.info.run_id, str(written), "evidence")
    store.log_artifacts(run.info.run_id, str(folder / "model"), "model")
    tags = {
        "equipoise.uncommitted": "",
        "equipoise.git_commit": git(folder, "rev-parse", "HEAD").strip(),
    }
    for code in ("EQ001", "EQ002", "EQ004", "EQ008", "EQ-OFFICIAL"):
        tags[f"equipoise.check.{code}"] = "none"
    source = f"{run.info.artifact_uri}/model"
    return store.create_model_version(NAME, source, run.info.run_id, tags=tags).version
