"""The MLflow model of a study on imported vectors, as code: nothing of it is pickled, and no TensorFlow is needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd

from equipoise.core.errors import DataError
from equipoise.service import refusals
from equipoise.service.vectors import COLUMN, VectorPredictor


class ServedVectors(mlflow.pyfunc.PythonModel):
    """Vectors in, calibrated probabilities and decision out.

    A request with one vector that cannot be used is refused.
    """

    def load_context(self, context: Any) -> None:
        """Load the head, and let it answer once: the first request is not the slow one."""
        self.predictor = VectorPredictor(Path(context.artifacts["model"]))
        refusals.never_quote(f"a list of {self.predictor.num_features} numbers as `{COLUMN}`")
        nothing = [0.0] * self.predictor.num_features
        self.predict(None, pd.DataFrame({COLUMN: [nothing]}))

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
            Refused: Which the scoring server answers with 400; names the row.
        """
        try:
            if model_input.empty:
                raise DataError(f"The request holds no row; a list in `{COLUMN}` is expected.")
            table = self.predictor.predict(model_input[COLUMN].tolist())
        except DataError as error:
            raise refusals.Refused(f"{error} Nothing of the request was predicted.") from None
        if table["threshold"].isna().any():
            table["threshold"] = None  # JSON knows no NaN
        return table


mlflow.models.set_model(ServedVectors())
