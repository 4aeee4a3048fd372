"""The program inside the process of `packaged.py`: it loads a saved model and answers, one line of JSON for each.

It is started by its path and imports nothing of Equipoise before the model has put its own code on the path.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np


def main(folder: str) -> None:
    """Load the model in `folder`, then answer every line of standard input on standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who asks is interrupted too, and closes the pipe
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    try:
        model = _load(folder)
    except Exception as error:  # whatever a damaged artifact raises
        _say(answers, _as_error(error))
        return
    _say(answers, {})
    for line in sys.stdin:
        try:
            _say(answers, _answer(model, json.loads(line)))
        except Exception as error:  # the asking process raises it again
            _say(answers, _as_error(error))


def _load(folder: str) -> Any:
    """The model, served by the code in its folder and by no other.

    Raises:
        ImportError: When another copy of Equipoise would answer.
    """
    import mlflow

    logging.getLogger("mlflow").setLevel(logging.ERROR)
    model = mlflow.pyfunc.load_model(folder)
    import equipoise  # now on the path: MLflow put the model's own in front

    imported = Path(equipoise.__file__).resolve()
    if not imported.is_relative_to(Path(folder).resolve()):
        raise ImportError(
            f"the model would be served by the code in {imported.parent}, not by its own"
        )
    return model


def _answer(model: Any, request: dict[str, Any]) -> dict[str, Any]:
    import pandas as pd

    if "vectors" in request:
        answered = model.predict(pd.DataFrame({"vector": request["vectors"]}))
        return {"rows": answered.to_dict("records")}
    contents = [base64.b64decode(text) for text in request["images"]]
    if request["call"] == "predict":
        answered = model.predict(pd.DataFrame({"image": contents}))
        return {"rows": answered.to_dict("records")}
    predictor = model.unwrap_python_model().predictor
    explained = predictor.explain(contents[0], request["class_name"])
    return {
        "pixels": _as_text(explained.pixels),
        "heat": _as_text(explained.heat),
        "text": explained.text,
    }


def _as_text(array: np.ndarray) -> str:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return base64.b64encode(buffer.getvalue()).decode()


def _as_error(error: Exception) -> dict[str, Any]:
    return {"error": type(error).__name__, "said": str(error)}


def _say(answers: Any, answer: dict[str, Any]) -> None:
    answers.write(json.dumps(answer) + "\n")
    answers.flush()


if __name__ == "__main__":
    main(sys.argv[1])
