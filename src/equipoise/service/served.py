"""The MLflow model, as code: what `mlflow.pyfunc.load_model` runs. Nothing of it is pickled."""

from __future__ import annotations

import base64
import binascii
import contextlib
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd

from equipoise.core import images
from equipoise.core.errors import DataError
from equipoise.service import refusals
from equipoise.service.predictor import BATCH_IMAGES, Predictor, Source
from equipoise.service.together import Together

#: What a row of a request may hold, exactly one of them.
COLUMNS = ("image", "path", "pixels")
#: The same in words.
_ROWS = f"exactly one of {', '.join(COLUMNS)}"
#: Longer paths are cut before the system is asked about them.
_PATH_CHARACTERS = 4000
#: Beginnings of picture files that hold nothing but text.
_TEXT_PICTURES = (b"P1", b"P2", b"P3")


class ServedModel(mlflow.pyfunc.PythonModel):
    """Images in, calibrated probabilities and decision out.

    A request with one image that cannot be read is refused.
    """

    def load_context(self, context: Any) -> None:
        """Load the network once, and let it answer once: the first request is not the slow one.

        `model_config={"image_folder": FOLDER}` lets callers name files below a folder.
        """
        folder = (context.model_config or {}).get("image_folder")
        self.image_folder = Path(folder).resolve() if folder else None
        self.predictor = Predictor(Path(context.artifacts["model"]))
        self.predictor.warm()
        self.together = Together(self.predictor.answers, BATCH_IMAGES)
        refusals.never_quote(_ROWS)

    def predict(
        self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Predict for a table with a row per image.

        Args:
            context: Of MLflow; not used.
            model_input: In each row one of `image` (bytes of a PNG, JPEG, ... file; base64 in
                JSON), `path` (of a file below `image_folder`) and `pixels` (0..255, height x width
                or height x width x 3).
            params: Not used.

        Returns:
            A row per image, as `Predictor.predict` says; `threshold` is None where the most
            probable class decides.

        Raises:
            Refused: Which the scoring server answers with 400; names the row.
        """
        try:
            # Decoded by the threads of the requests, computed together.
            pixels = self.predictor.pixels(self._sources(model_input))
        except DataError as error:
            raise refusals.Refused(f"{error} Nothing of the request was predicted.") from None
        table = self.together.answers(pixels)
        if table["threshold"].isna().any():
            table["threshold"] = None  # JSON knows no NaN
        return table

    def _sources(self, table: pd.DataFrame) -> list[Source]:
        if table.empty:
            raise DataError(f"The request holds no image; rows with {_ROWS} each are expected.")
        return [self._source(number, row) for number, row in enumerate(table.to_dict("records"))]

    def _source(self, number: int, row: dict[Any, Any]) -> Source:
        """The image of one row of a request."""
        given = [name for name in COLUMNS if name in row and not _is_missing(row[name])]
        if len(given) != 1:
            there = " and ".join(given) or "none of them"
            raise DataError(f"Image {number}: {_ROWS} is expected, and {there} is there.")
        name = given[0]
        value = row[name]
        if name == "path":
            return self._file(number, str(value))
        if name == "image":
            return _content(number, value)
        try:
            return images.as_rgb(value)
        except ValueError as error:
            raise DataError(f"Image {number} cannot be read: {error}.") from error

    def _file(self, number: int, text: str) -> Path:
        """A file below the image folder.

        All others give the same error, so that nobody learns which files there are.
        """
        if self.image_folder is None:
            raise DataError(
                f"Image {number}: this model reads no files. Send the bytes as `image`; its owner can allow a folder "
                f"with model_config={{'image_folder': FOLDER}}."
            )
        named = self.image_folder / text.replace("\0", "")[:_PATH_CHARACTERS]
        with contextlib.suppress(OSError):  # a name that is too long
            path = named.resolve()
            if path.is_relative_to(self.image_folder) and path.is_file():
                return path
        raise DataError(
            f"Image {number}: there is no file '{text:.100}' in the image folder of this model."
        )


def _is_missing(value: Any) -> bool:
    """Whether a cell is empty; lists and arrays never are."""
    return bool(pd.api.types.is_scalar(value) and pd.isna(value))


def _content(number: int, value: Any) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise DataError(
            f"Image {number}: `image` holds {type(value).__name__}, bytes are expected."
        )
    content = bytes(value)
    # MLflow decodes base64 in `dataframe_split` and `dataframe_records`, not in `inputs` and `instances`.
    decoded = None if content.startswith(_TEXT_PICTURES) else _decoded(content)
    return content if decoded is None else decoded


def _decoded(content: bytes) -> bytes | None:
    """What base64 stands for; None for anything else, as every file of a picture is."""
    try:
        return base64.b64decode(content.replace(b"\n", b""), validate=True)
    except binascii.Error:
        return None


mlflow.models.set_model(ServedModel())
