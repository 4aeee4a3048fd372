"""What a served model answers to a request that it cannot use: one sentence, and nothing of what was sent.

MLflow's scoring server puts the request, which is a patient's picture, in front of what a model says, and prints it
when it is no JSON. Answers are kept in the logs of proxies and clients, where no picture belongs.
"""

from __future__ import annotations

import functools
import logging
import sys
from json import JSONDecodeError
from typing import Any

from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE

_log = logging.getLogger(__name__)
_SERVER = "mlflow.pyfunc.scoring_server"
_FORMATS = "dataframe_split, dataframe_records, inputs and instances"


class Refused(MlflowException):
    """An answer with status 400 whose sentence stays as it is, whatever MLflow puts in front of it."""

    def __init__(self, sentence: str) -> None:
        self._sentence = sentence
        super().__init__(sentence, error_code=INVALID_PARAMETER_VALUE)

    @property
    def message(self) -> str:
        """The sentence."""
        return self._sentence

    @message.setter
    def message(self, text: str) -> None:
        """Left without effect: what MLflow writes here quotes the request."""


def never_quote(rows: str) -> None:
    """Make the scoring server of this process answer every bad request with a sentence of ours.

    Where a model is loaded without that server nothing is changed.

    Args:
        rows: What each row of a request should hold, in words.
    """
    server = sys.modules.get(_SERVER)
    if server is None or hasattr(server.invocations, "quotes_nothing"):
        return
    server.invocations = _without_quotes(server.invocations, rows)  # type: ignore[attr-defined]


def _without_quotes(invocations: Any, rows: str) -> Any:
    """The function of the scoring server that answers a request, with its errors in our words."""

    @functools.wraps(invocations)
    def answer(*request: Any, **options: Any) -> Any:
        try:
            return invocations(*request, **options)
        except Refused:
            raise
        except Exception as error:
            if not isinstance(error, MlflowException) or "stack_trace" in error.json_kwargs:
                _log.exception("A request could not be answered")
            raise Refused(_sentence(error, rows)) from None

    answer.quotes_nothing = True  # type: ignore[attr-defined]
    return answer


def _sentence(error: Exception, rows: str) -> str:
    """What is wrong with a request that MLflow could not read."""
    cause = error.__cause__
    if isinstance(cause, JSONDecodeError):
        why = f"The request is no valid JSON (line {cause.lineno}, column {cause.colno})"
    elif isinstance(cause, UnicodeDecodeError):
        why = "The request is no valid JSON: it is not UTF-8"
    else:
        why = "The request cannot be read as a table"
    return (
        f"{why}. Expected is a JSON object with one of {_FORMATS}, and in each row {rows}. "
        "Nothing of the request was predicted."
    )
