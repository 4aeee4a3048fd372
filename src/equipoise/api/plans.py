"""A remedy applied to labels -> the rows that it trains on and what it minimises there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from equipoise.api import arrays, pictures
from equipoise.api.arrays import Labels
from equipoise.core.errors import ConfigError
from equipoise.scenario.heads.rows import Standardiser
from equipoise.strategies import base
from equipoise.strategies.base import Objective, Plan, TrainRows


def plan(
    strategy: str,
    labels: npt.ArrayLike,
    patients: npt.ArrayLike | None = None,
    *,
    features: npt.ArrayLike | None = None,
    positive: Any = None,
    views: int = 0,
    seed: int = 0,
    **settings: Any,
) -> TrainingPlan:
    """Say which rows a remedy would train on, how often, and with which weight of each class.

    Args:
        strategy: Name of a scenario, for example oversample.
        labels: (num_rows,), of train rows.
        patients: (num_rows,), for remedies that count images of a patient.
        features: (num_rows, num_features), for remedies that look at them, as smote does.
        positive: The positive class of two; it changes no plan.
        views: Augmented views that there are of each minority row.
        seed: Of what is drawn.
        settings: Of the strategy, for example target_fraction=0.5; the published ones when left
            out.

    Raises:
        ConfigError: For a strategy or a setting that does not exist, with the nearest name.
        DataError: For arrays that do not fit together, or that the remedy needs and did not get.

    Examples:
        >>> planned = plan("class_weight", [0, 0, 0, 1])
        >>> planned.classes, planned.class_weights.round(3).tolist()
        (('negative', 'positive'), [0.667, 2.0])
    """
    loaded = base.load_strategy(strategy)
    known = Labels.of(labels, positive, must_tell=False)
    owners = arrays.patients_of(patients, len(known))
    make_features = None
    if features is not None:
        table = arrays.features_of(features, len(known))
        standardiser = Standardiser.fit(table)

        def make_features() -> np.ndarray:
            return standardiser.apply(table, np.float32)

    rows = TrainRows(
        labels=known.codes,
        num_classes=len(known.classes),
        views=views,
        seed=seed,
        patients=owners,
        make_features=make_features,
    )
    chosen = loaded.published(views, settings)
    remedy = loaded.of(chosen)
    draws = remedy.plan(rows)
    base.plan_within_train(draws, len(known))
    objective = remedy.objective(draws.counts(known.codes, len(known.classes)))
    return TrainingPlan(strategy, chosen, known, draws, objective)


@dataclass(frozen=True, eq=False, repr=False)
class TrainingPlan:
    """What a remedy trains on.

    Attributes:
        strategy: Its name.
        settings: Its settings.
        labels: Of the rows it was given.
        draws: One entry for each row to train on.
        objective: What is minimised over them.
    """

    strategy: str
    settings: Mapping[str, Any]
    labels: Labels
    draws: Plan
    objective: Objective

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.labels.classes

    @property
    def class_weights(self) -> npt.NDArray[np.float64]:
        """What a draw of each class weighs, float (num_classes,), in the order of `classes`."""
        return self.objective.weights

    @property
    def table(self) -> pd.DataFrame:
        """One row per draw: row, view, partner, mix, weight (of the draw, without that of its class)."""
        return pd.DataFrame(
            {
                "row": self.draws.row,
                "view": self.draws.view,
                "partner": self.draws.partner,
                "mix": self.draws.mix,
                "weight": self.draws.weight,
            }
        )

    @property
    def counts(self) -> pd.DataFrame:
        """Rows of each class before and after, and what one draw of it weighs."""
        num_classes = len(self.classes)
        return pd.DataFrame(
            {
                "class": self.classes,
                "rows": np.bincount(self.labels.codes, minlength=num_classes),
                "draws": self.draws.counts(self.labels.codes, num_classes),
                "weight": self.objective.weights,
                "offset": self.objective.offsets,
            }
        )

    def sample_weights(self) -> npt.NDArray[np.float64]:
        """Draws of each row times their weights, float (num_rows,), as `fit(sample_weight=...)` takes them.

        Raises:
            ConfigError: Where the plan draws views or mixes rows: weights alone cannot say that.
        """
        if self.draws.view.any() or self.draws.mix.any():
            raise ConfigError(
                f"The plan of {self.strategy} draws augmented views or mixed rows, which weights of rows cannot say. "
                "Use its table."
            )
        num_rows = len(self.labels)
        drawn = np.bincount(self.draws.row, weights=self.draws.weight, minlength=num_rows)
        return drawn * self.objective.weights[self.labels.codes]

    def __repr__(self) -> str:
        return f"{self._title()}\n{self.counts.to_string(index=False)}"

    def _repr_html_(self) -> str:
        counts = self.counts.round(4)
        return pictures.html_table(list(counts), counts.to_numpy().tolist(), self._title())

    def _title(self) -> str:
        settings = ", ".join(f"{name} {value:g}" for name, value in self.settings.items())
        focusing = self.objective.focusing
        focused = f"; focusing {focusing:g}" if focusing else ""
        return f"{self.strategy}{f' ({settings})' if settings else ''}{focused}"
