"""Patient balance: a patient with many images counts no more than one with a single image."""

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from equipoise.core.errors import DataError
from equipoise.strategies import base
from equipoise.strategies.base import Plan, TrainRows


@dataclass(frozen=True)
class Strategy(base.Strategy):
    r"""An image of a patient with $m$ images weighs $m^{-a}$, mean 1 over the images. $a=0$ is the baseline exactly.

    At $a=1$ the images of each patient together weigh the same, over all classes. Should lose where a patient's images
    differ as much as those of several patients: then it throws information away; it does nothing about rare classes.

    Attributes:
        exponent: $a$ in 0..1, no unit. Published: 1.

    Reference: Williamson, Datta, Satten 2003, https://doi.org/10.1111/1541-0420.00005
    """

    exponent: float = 1.0

    NEUTRAL: ClassVar[dict[str, Any]] = {"exponent": 0.0}

    def plan(self, rows: TrainRows) -> Plan:
        """Every image once, with its weight."""
        if rows.patients is None:
            raise DataError(
                "These train rows came without patients. Take them from TrainMatrix.train_rows."
            )
        _, patient, images = np.unique(rows.patients, return_inverse=True, return_counts=True)
        weights = images[patient] ** -self.exponent
        return Plan.of(np.arange(len(rows.labels)), weight=weights / weights.mean())

    @staticmethod
    def search_space(trial: Any) -> dict[str, Any]:
        """$a$ in 0..1."""
        return {"exponent": trial.suggest_float("exponent", 0.0, 1.0)}
