"""The MLflow model, as code: what `mlflow.pyfunc.load_model` runs. Nothing of it is pickled."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd


class ServedModel(mlflow.pyfunc.PythonModel):
    """Image files as bytes in, calibrated probabilities and decision out."""

    def load_context(self, context: Any) -> None:
        """Load the network once."""
        from equipoise.model import Predictor

        self.predictor = Predictor(Path(context.artifacts["model"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Predict for a table with one column `image` of encoded image files (PNG, JPEG, ...)."""
        return self.predictor.predict([bytes(item) for item in model_input["image"]])


mlflow.models.set_model(ServedModel())
