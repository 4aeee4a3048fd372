"""Patient balance: a patient with many images counts no more than one with a single image."""

from dataclasses import dataclass

import numpy as np

from equipoise.core.errors import DataError
from equipoise.strategies import base
from equipoise.strategies.base import Plan, TrainRows, parameter


@dataclass(frozen=True)
class Strategy(base.Strategy):
    r"""An image of a patient with $m$ images weighs $m^{-a}$, with mean 1 over the images.

    At $a=1$ the images of each patient together weigh the same, over all classes.

    Should lose where a patient's images differ as much as those of several patients: then it throws
    information away. It does nothing about rare classes.

    Attributes:
        exponent: $a$, no unit. Published: 1.

    Reference: Williamson, Datta, Satten 2003, https://doi.org/10.1111/1541-0420.00005
    """

    exponent: float = parameter(1.0, low=0.0, high=1.0, neutral=0.0)

    def plan(self, rows: TrainRows) -> Plan:
        """Every image once, with its weight."""
        if rows.patients is None:
            raise DataError(
                "These train rows came without patients, and this remedy counts their images: give the "
                "patient of each row."
            )
        _, patient, images_of = np.unique(rows.patients, return_inverse=True, return_counts=True)
        weights = images_of[patient] ** -self.exponent
        everything = np.arange(len(rows.labels))
        return Plan.of(everything, weight=weights / weights.mean())
