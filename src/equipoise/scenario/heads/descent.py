"""What every way downhill of a head shares: how far a step may go, and what stands for a flat loss."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

#: Armijo's constant: the share of the promised decrease that a step must reach.
_SUFFICIENT_DECREASE = 1e-4

_MAX_HALVINGS = 30

#: A curvature is not taken for less: where the loss is flat and nothing is penalised, steps and
#: coordinates would become infinite.
LEAST_CURVATURE = 1e-10


def lengths(longest: Any = 1.0) -> Iterator[Any]:
    """Lengths of a step that are tried in turn, each half of the one before."""
    length = longest
    for _ in range(_MAX_HALVINGS):
        yield length
        length = 0.5 * length


def highest(value: Any, change: Any, dtype: Any = np.float64) -> Any:
    """The highest objective at which a step may end, Armijo's condition (Nocedal & Wright, equation 3.4).

    Args:
        value: The objective where the step begins, a number or one per head.
        change: By how much the objective would change if it went on as it begins; below 0.
        dtype: Precision in which the objective is computed.
    """
    return value + _SUFFICIENT_DECREASE * change + rounding(value, dtype)


def rounding(value: Any, dtype: Any = np.float64) -> Any:
    """Of an objective: close to the solution it falls by less than it is rounded by."""
    return 10 * np.finfo(dtype).eps * abs(value)
