"""The MLflow model of a study on imported vectors, as code: nothing of it is pickled, and no TensorFlow is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException

from equipoise.core.errors import DataError
from equipoise.service.vectors import COLUMN, VectorPredictor


class ServedVectors(mlflow.pyfunc.PythonModel):
    """Vectors in, calibrated probabilities and decision out.

    A request with one vector that cannot be used is refused.
    """

    def load_context(self, context: Any) -> None:
        """Load the head."""
        self.predictor = VectorPredictor(Path(context.artifacts["model"]))

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Predict for a table with a vector in each row, as a list in the column `vector`.

        Args:
            context: Of MLflow; not used.
            model_input: The request.
            params: Not used.

        Returns:
            A row per vector, as `Answers.table` says; `threshold` is None where the most probable
            class decides.

        Raises:
            MlflowException: INVALID_PARAMETER_VALUE, which the scoring server answers with 400;
                names the row.
        """
        try:
            if model_input.empty:
                raise DataError(f"The request holds no row; a list in `{COLUMN}` is expected.")
            table = self.predictor.predict(model_input[COLUMN].tolist())
        except DataError as error:
            raise MlflowException.invalid_parameter_value(
                f"{error} Nothing of the request was predicted."
            ) from error
        if table["threshold"].isna().any():
            table["threshold"] = None  # JSON knows no NaN
        return table


mlflow.models.set_model(ServedVectors())
