"""What every strategy is: parameters with published defaults, a plan, an objective and a search space."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from equipoise.core.errors import ConfigError, DataError, LeakageError, unknown_name
from equipoise.core.records import minority_labels


def names() -> list[str]:
    """Names of the strategies there are."""
    modules = pkgutil.iter_modules([str(Path(__file__).parent)])
    return sorted(
        module.name
        for module in modules
        if module.name != "base" and not module.name.startswith("_")
    )


def load_strategy(name: str) -> type[Strategy]:
    """The class of one strategy.

    Raises:
        ConfigError: When there is none, with the nearest name.
    """
    if name not in names():
        raise unknown_name("scenario", name, names())
    return importlib.import_module(f"equipoise.strategies.{name}").Strategy


@dataclass(frozen=True)
class TrainRows:
    """What a strategy sees: the train images of one round and nothing else.

    Attributes:
        labels: int (num_images,), index into the classes.
        num_classes: C; `labels` may lack a class.
        views: Augmented views available for each minority image.
        seed: Seed of every draw.
        patients: (num_images,), patient of each image.
        make_features: Gives the standardised features of these images alone, float32 (num_images, num_features).
    """

    labels: np.ndarray
    num_classes: int
    views: int
    seed: int
    patients: np.ndarray | None = None
    make_features: Callable[[], np.ndarray] | None = None
    _made: dict[str, Any] = field(default_factory=dict, init=False, repr=False)

    @property
    def counts(self) -> np.ndarray:
        """Images per class, int (num_classes,)."""
        return np.bincount(self.labels, minlength=self.num_classes)

    def once(self, name: str, make: Callable[[np.ndarray], Any]) -> Any:
        """What `make` makes of the features, made once: neighbours cost more than the trials that share them."""
        if self.make_features is None:
            raise DataError(
                "These train rows came without features. Take them from TrainMatrix.train_rows."
            )
        if name not in self._made:
            self._made[name] = make(self.make_features())
        return self._made[name]


@dataclass(frozen=True)
class Plan:
    r"""The rows to train on, one per draw.

    Attributes:
        row: int (num_draws,), index into the train rows.
        view: int (num_draws,), 0 for the plain image, 1..K for an augmented view of it.
        partner: int (num_draws,), the train row a draw is mixed with; itself where nothing is mixed.
        mix: float (num_draws,), $\lambda$ in 0..1: the features are $x + \lambda (x_{partner} - x)$; 0 is the image.
        weight: float (num_draws,), > 0, what the draw counts beside the weight of its class.
    """

    row: np.ndarray
    view: np.ndarray
    partner: np.ndarray
    mix: np.ndarray
    weight: np.ndarray

    @classmethod
    def of(
        cls,
        row: npt.ArrayLike,
        view: np.ndarray | int = 0,
        partner: np.ndarray | None = None,
        mix: np.ndarray | float = 0.0,
        weight: np.ndarray | float = 1.0,
    ) -> Plan:
        """A plan of plain images, unmixed and of weight 1, unless it is said otherwise."""
        row = np.asarray(row, dtype=np.int64)
        rest = (
            (view, np.int64),
            (row if partner is None else partner, np.int64),
            (mix, float),
            (weight, float),
        )
        return cls(
            row,
            *(
                np.broadcast_to(np.asarray(value, dtype=kind), row.shape).copy()
                for value, kind in rest
            ),
        )

    def within(self, inside: np.ndarray) -> Plan:
        """The same draws, counted in the rows that `inside` was taken from: int (num_rows of this plan,)."""
        return dataclasses.replace(self, row=inside[self.row], partner=inside[self.partner])

    def counts(self, labels: np.ndarray, num_classes: int) -> np.ndarray:
        """Draws per class after the plan, int (num_classes,)."""
        return np.bincount(labels[self.row], minlength=num_classes)


@dataclass(frozen=True)
class Objective:
    r"""What the head minimises, a few numbers per class.

    $L = \sum_i w_{y_i} (1-p_{y_i})^\gamma (-\log p_{y_i}) / \sum_i w_{y_i} + l_2 \lVert W \rVert^2 / 2$ with
    $p = \mathrm{softmax}(z + \mathrm{offset})$; scores are made from plain $z$.

    Attributes:
        weights: float (num_classes,), > 0, any scale (the mean is weighted).
        focusing: $\gamma \ge 0$.
        offsets: float (num_classes,), added to the logits while training.
    """

    weights: np.ndarray
    focusing: float
    offsets: np.ndarray

    @classmethod
    def neutral(cls, num_classes: int) -> Objective:
        """Plain cross-entropy: the ordinary member, so that nobody writes an `if`."""
        return cls(np.ones(num_classes), 0.0, np.zeros(num_classes))

    def replace(self, **changes: Any) -> Objective:
        """A copy with some numbers changed."""
        return dataclasses.replace(self, **changes)


def plan_within_train(plan: Plan, num_train_rows: int) -> None:
    """EQ004: a plan may draw train rows only.

    Raises:
        LeakageError: When a draw points outside the train rows.
    """
    drawn = np.concatenate([plan.row, plan.partner])
    outside = drawn[(drawn < 0) | (drawn >= num_train_rows)]
    if len(outside):
        raise LeakageError(
            f"EQ004: the plan draws row {int(outside[0])}, outside the {num_train_rows} train rows. "
            f"A strategy may only repeat, drop, augment or mix the rows it was given."
        )


@dataclass(frozen=True)
class Strategy:
    """Does nothing: every train image once, plain cross-entropy. Strategies override what they change.

    The defaults of the fields are the published settings, tried first. `NEUTRAL` are the settings at which the strategy
    is the baseline exactly; they may be fixed even where no search would look. `PROBE_ONLY` says why there is no
    fine-tuning.
    """

    NEUTRAL: ClassVar[Mapping[str, Any]] = {}
    NEEDS_VIEWS: ClassVar[bool] = False
    PROBE_ONLY: ClassVar[str] = ""

    def plan(self, rows: TrainRows) -> Plan:
        """The rows to train on, one per draw."""
        return Plan.of(np.arange(len(rows.labels)))

    def objective(self, plan_counts: np.ndarray) -> Objective:
        """A few numbers per class, from int (num_classes,) draws per class after the plan."""
        return Objective.neutral(len(plan_counts))

    @staticmethod
    def search_space(trial: Any) -> dict[str, Any]:
        """Values of the tuned fields from an Optuna trial; the number of views is `trial.study.user_attrs["views"]`."""
        return {}

    @classmethod
    def published(cls, views: int, fixed: Mapping[str, Any]) -> dict[str, Any]:
        """The published settings: the defaults, as far as the views reach, with the fixed ones laid over.

        Raises:
            ConfigError: For a fixed setting that does not exist or is out of range, or without the views it needs.
        """
        defaults: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(cls)}
        own = cls.__module__.rsplit(".", 1)[-1]
        if cls.NEEDS_VIEWS:
            if views < 1:
                raise ConfigError(
                    f"Scenario '{own}' needs augmented views; set embed.views to 1 or more."
                )
            defaults["copies"] = min(defaults["copies"], views)
        ranges = _Ranges(views)
        cls.search_space(ranges)
        for name, value in fixed.items():
            if name not in defaults:
                raise unknown_name("setting", name, defaults, f" of scenario '{own}'")
            kind, low, high = ranges.found[name]
            number = isinstance(value, kind) and not isinstance(value, bool)
            if not number or not (low <= value <= high or value == cls.NEUTRAL[name]):
                raise ConfigError(
                    f"scenarios.{own}.{name} is {value!r}; a number from {low} to {high} is expected."
                )
        return {**defaults, **fixed}

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Build from settings, ignoring what is not a field (the shared `l2`)."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in settings.items() if name in known})


class _Ranges:
    """Stands for an Optuna trial and notes what a search space asks for: name -> (type, low, high)."""

    def __init__(self, views: int) -> None:
        self.user_attrs = {"views": views}
        self.study = self
        self.found: dict[str, tuple[Any, float, float]] = {}

    def suggest_float(self, name: str, low: float, high: float, **_: Any) -> float:
        self.found[name] = ((int, float), low, high)
        return low

    def suggest_int(self, name: str, low: int, high: int, **_: Any) -> int:
        self.found[name] = (int, low, high)
        return low


def with_copies(rows: TrainRows, copies: int) -> Plan:
    """Every image once, and each minority image `copies` times more as augmented views 1..copies."""
    minority = np.flatnonzero(np.isin(rows.labels, minority_labels(rows.counts)))
    row = np.concatenate([np.arange(len(rows.labels)), np.tile(minority, copies)])
    view = np.concatenate(
        [np.zeros(len(rows.labels), dtype=int), np.repeat(np.arange(1, copies + 1), len(minority))]
    )
    return Plan.of(row, view)


def inverse_frequency(counts: np.ndarray, exponent: float) -> np.ndarray:
    r"""Weights $w_c \propto n_c^{-a}$ with mean 1 over the draws, float (num_classes,); a class without draws gets 1.

    >>> inverse_frequency(np.array([1349, 3883]), 1.0).round(6).tolist()
    [1.939214, 0.673706]
    """
    present = np.maximum(np.asarray(counts, dtype=float), 1)
    return mean_one(np.where(counts > 0, present**-exponent, 1.0), counts)


def mean_one(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Scale weights float (num_classes,) so that their mean over int (num_classes,) draws per class is 1."""
    return weights / (np.sum(counts * weights) / np.sum(counts))
