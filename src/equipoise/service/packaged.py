"""A registered model, run by the code that it was saved with, as `mlflow models serve` runs it.

A package that is already imported wins over the model's own. So a model of another code than this checkout's is loaded
in a process of its own, in which only its own code can be imported.
"""

from __future__ import annotations

import base64
import io
import json
import subprocess
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.models import Model

from equipoise.core import environment, errors
from equipoise.core.errors import DataError, EquipoiseError
from equipoise.service.predictor import Explained
from equipoise.service.vectors import COLUMN

#: Where `register` has the code of a model put, inside its folder.
_CODE = "code/equipoise"
_HOST = Path(__file__).with_name("packaged_host.py")


def has_own_code(folder: Path) -> bool:
    """Whether a saved model brings a copy of Equipoise along; models of others do not."""
    return (folder / _CODE / "__init__.py").is_file()


def is_of_this_code(folder: Path) -> bool:
    """Whether the copy of Equipoise inside a saved model is what this process runs, file by file."""
    package = (folder / _CODE).resolve()
    return environment.code_digest(".", package=package) == environment.code_digest(".")


class Packaged:
    """A saved model in a process of its own; it ends with this object.

    Attributes:
        folder: Of the saved model, on this machine.
        metadata: What MLflow says of it.
    """

    def __init__(self, folder: Path) -> None:
        """Start the process and wait until the model is loaded.

        Raises:
            DataError: When it does not load.
        """
        self.folder = folder
        self.metadata = Model.load(str(folder))
        self._process = subprocess.Popen(
            # -P: the folder of the program, which is ours, stays off the path.
            [sys.executable, "-P", str(_HOST), str(folder.resolve())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            encoding="utf-8",
        )
        self._read()

    @cached_property
    def input_example(self) -> pd.DataFrame:
        """The request that was saved with the model."""
        return self.metadata.load_input_example(str(self.folder))

    def predict(self, table: pd.DataFrame) -> pd.DataFrame:
        """Answers for a table with the column `image`, bytes of a file each, or `vector`, numbers."""
        request: dict[str, Any] = {"call": "predict"}
        if COLUMN in table:
            request["vectors"] = [np.asarray(vector).tolist() for vector in table[COLUMN]]
        else:
            request["images"] = _as_text([bytes(content) for content in table["image"]])
        answer = self._ask(request)
        return pd.DataFrame(answer["rows"], index=table.index)

    def explain(self, content: bytes, class_name: str | None) -> Explained:
        """See `Predictor.explain`."""
        request = {"call": "explain", "images": _as_text([content]), "class_name": class_name}
        answer = self._ask(request)
        return Explained(_as_array(answer["pixels"]), _as_array(answer["heat"]), answer["text"])

    def close(self) -> None:
        """End the process."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait()

    def __del__(self) -> None:
        if hasattr(self, "_process"):
            self.close()

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        pipe = self._process.stdin
        if pipe is None:
            raise ValueError("the process was started without a pipe")
        try:
            pipe.write(json.dumps(request) + "\n")
            pipe.flush()
        except BrokenPipeError:  # it ended; the answer that is missing says so
            pass
        return self._read()

    def _read(self) -> dict[str, Any]:
        """The next answer of the process.

        Raises:
            EquipoiseError: What it raised.
        """
        pipe = self._process.stdout
        line = pipe.readline() if pipe is not None else ""
        if not line:
            code = self._process.wait()
            raise DataError(
                f"The process that serves {self.folder} ended with code {code}; its last lines say why."
            )
        answer = json.loads(line)
        if "error" in answer:
            raise _error(answer["error"], answer["said"])
        return answer


def _error(name: str, said: str) -> EquipoiseError:
    """An error of the process again: one of ours by its name, any other as a sentence."""
    error_class = getattr(errors, name, None)
    if isinstance(error_class, type) and issubclass(error_class, EquipoiseError):
        return error_class(said)
    return DataError(f"{name}: {said}")


def _as_text(contents: list[bytes]) -> list[str]:
    return [base64.b64encode(content).decode() for content in contents]


def _as_array(text: str) -> np.ndarray:
    return np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False)
