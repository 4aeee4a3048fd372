"""What every strategy is: parameters with published values and ranges, a plan, an objective."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, Literal, Self

import numpy as np
import numpy.typing as npt

from equipoise.core.errors import ConfigError, DataError, LeakageError, unknown_name
from equipoise.core.records import minority_labels

#: The upper end of a parameter that may grow to K, the augmented views of `embed.views`.
VIEWS: Final = "views"

#: A searched value this close to the neutral one, as a share of the range, does nothing either:
#: a search draws from a continuous range and never meets one value exactly.
_NEUTRAL_SHARE = 0.01

#: Modules of this folder that are no strategy; names with an underscore are none either.
_SHARED = ("base",)


def names() -> list[str]:
    """Names of the strategies there are."""
    modules = [module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])]
    return sorted(name for name in modules if name not in _SHARED and not name.startswith("_"))


def load_strategy(name: str) -> type[Strategy]:
    """The class of one strategy.

    Raises:
        ConfigError: When there is none, with the nearest name.
    """
    if name not in names():
        raise unknown_name("scenario", name, names())
    return importlib.import_module(f"equipoise.strategies.{name}").Strategy


@dataclass(frozen=True)
class Parameter:
    """One number of a strategy: its published value, its range, and where it does nothing.

    Attributes:
        published: Value of the paper or library; tried first. An int makes an integer parameter.
        low: Lowest value a search may try.
        high: Highest value; `VIEWS` for as many as there are augmented views.
        neutral: Value at which the strategy does nothing. It may lie outside the range.
        log: Whether a search spreads its values evenly on a logarithmic scale.
    """

    published: float
    low: float
    high: float | Literal["views"]
    neutral: float | None = None
    log: bool = False

    @property
    def is_integer(self) -> bool:
        """Whether only whole numbers are tried."""
        return isinstance(self.published, int)

    def highest(self, views: int) -> float:
        """The upper end where there are that many augmented views."""
        return views if self.high == VIEWS else self.high

    def does_nothing(self, value: float) -> bool:
        """Whether a value is the neutral one, or within 1 % of the range of it where it is continuous.

        >>> exponent = Parameter(1.0, low=0.0, high=1.5, neutral=0.0)
        >>> exponent.does_nothing(0.0), exponent.does_nothing(0.01), exponent.does_nothing(0.1)
        (True, True, False)
        """
        if self.neutral is None:
            return False
        if self.is_integer or self.high == VIEWS:
            return value == self.neutral
        return abs(value - self.neutral) <= _NEUTRAL_SHARE * (self.high - self.low)

    def allows(self, value: Any, views: int) -> bool:
        """Whether a user may fix the parameter at this value: in the range, or the neutral one."""
        kinds = int if self.is_integer else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds):
            return False
        return self.low <= value <= self.highest(views) or value == self.neutral


def parameter(
    published: float,
    *,
    low: float,
    high: float | Literal["views"],
    neutral: float,
    log: bool = False,
) -> Any:
    """A field of a strategy that is searched, by default the published value. See `Parameter`."""
    described = Parameter(published, low, high, neutral, log)
    return field(default=published, metadata={"parameter": described})


@dataclass(frozen=True)
class Option:
    """A whole number of a strategy that no search varies; without a value the strategy does without it.

    Attributes:
        low: The lowest value that it may have.
    """

    low: int

    def allows(self, value: Any) -> bool:
        """Whether a user may give it this value."""
        return type(value) is int and value >= self.low


def option(*, low: int) -> Any:
    """A field of a strategy that is None unless the user gives it a value. See `Option`."""
    return field(default=None, metadata={"option": Option(low)})


@dataclass(frozen=True)
class TrainRows:
    """What a strategy sees: the train images of one round and nothing else.

    Attributes:
        labels: int (num_images,), index into the classes.
        num_classes: C; `labels` may lack a class.
        views: Augmented views available for each minority image.
        seed: Seed of every draw.
        patients: (num_images,), patient of each image.
        make_features: Gives the standardised features of these images alone, float32
            (num_images, num_features).
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
        """What `make` makes of the features, made once for all trials that share these rows.

        Raises:
            DataError: When the rows came without features.
        """
        if self.make_features is None:
            raise DataError(
                "These train rows came without features, and this remedy looks at them: give the features of each row."
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
        partner: int (num_draws,), the row a draw is mixed with; itself where nothing is mixed.
        mix: float (num_draws,), $\lambda$ in 0..1: the features are
            $x + \lambda (x_{partner} - x)$, so 0 is the image.
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
        view: npt.ArrayLike = 0,
        partner: npt.ArrayLike | None = None,
        mix: npt.ArrayLike = 0.0,
        weight: npt.ArrayLike = 1.0,
    ) -> Plan:
        """A plan of plain images, unmixed and of weight 1, unless it is said otherwise.

        A single number stands for every draw.
        """
        rows = np.asarray(row, dtype=np.int64)
        partners = rows if partner is None else partner
        return cls(
            row=rows,
            view=_for_each(rows, view, np.int64),
            partner=_for_each(rows, partners, np.int64),
            mix=_for_each(rows, mix, np.float64),
            weight=_for_each(rows, weight, np.float64),
        )

    def within(self, inside: np.ndarray) -> Plan:
        """The same draws, counted in the rows that `inside`, int (num_inside,), was taken from."""
        return dataclasses.replace(self, row=inside[self.row], partner=inside[self.partner])

    def counts(self, labels: np.ndarray, num_classes: int) -> np.ndarray:
        """Draws per class after the plan, int (num_classes,)."""
        return np.bincount(labels[self.row], minlength=num_classes)


def _for_each(rows: np.ndarray, value: npt.ArrayLike, dtype: type) -> np.ndarray:
    """One value for each row, as an array of its own."""
    values: np.ndarray = np.asarray(value, dtype=dtype)
    return np.broadcast_to(values, rows.shape).copy()


@dataclass(frozen=True)
class Objective:
    r"""What the head minimises, a few numbers per class.

    $L = \sum_i w_{y_i} (1-p_{y_i})^\gamma (-\log p_{y_i}) / \sum_i w_{y_i}
    + l_2 \lVert W \rVert^2 / 2$ with $p = \mathrm{softmax}(z + \mathrm{offset})$; scores are made
    from plain $z$.

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
        return cls(weights=np.ones(num_classes), focusing=0.0, offsets=np.zeros(num_classes))

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
            f"EQ004: the plan draws row {int(outside[0])}, outside the {num_train_rows} train "
            f"rows. A strategy may only repeat, drop, augment or mix the rows it was given."
        )


@dataclass(frozen=True)
class Strategy:
    """Does nothing: every train image once, plain cross-entropy. Strategies override what they do.

    Its fields are made by `parameter`, and a search varies them and the penalty `l2`; or by `option`,
    and only the user sets them.

    docs/strategies.md is made from the first line of the file, which a clinician should understand,
    and from the paragraphs of the class that begin with "Should lose" (or tie) and "Reference:".

    Attributes:
        PROBE_ONLY: Why the strategy cannot be fine-tuned; empty where it can.
    """

    PROBE_ONLY: ClassVar[str] = ""

    def plan(self, rows: TrainRows) -> Plan:
        """The rows to train on, one per draw."""
        return Plan.of(np.arange(len(rows.labels)))

    def objective(self, plan_counts: np.ndarray) -> Objective:
        """A few numbers per class, from int (num_classes,) draws per class after the plan."""
        return Objective.neutral(len(plan_counts))

    @classmethod
    def name(cls) -> str:
        """Name of the scenario, which is that of the file."""
        return cls.__module__.rpartition(".")[2]

    @classmethod
    def parameters(cls) -> dict[str, Parameter]:
        """What is searched: name -> parameter, in the order of the file."""
        return cls._described("parameter")

    @classmethod
    def options(cls) -> dict[str, Option]:
        """What a user may set and no search varies: name -> option."""
        return cls._described("option")

    @classmethod
    def _described(cls, role: str) -> dict[str, Any]:
        fields = dataclasses.fields(cls)
        return {item.name: item.metadata[role] for item in fields if role in item.metadata}

    @classmethod
    def neutral(cls) -> dict[str, float | None]:
        """The settings at which the strategy is the baseline exactly."""
        return {name: item.neutral for name, item in cls.parameters().items()}

    @classmethod
    def switched_off(cls, settings: Mapping[str, Any], fixed: Mapping[str, Any]) -> bool:
        """Whether a search chose settings at which the strategy does nothing.

        What the user fixed was not chosen by a search, and a strategy without parameters cannot be
        switched off.

        Args:
            settings: Chosen values by name; others, as `l2`, are left aside.
            fixed: Settings that the user chose.
        """
        parameters = cls.parameters()
        searched = parameters.keys() - fixed.keys()
        does_nothing = [item.does_nothing(settings[name]) for name, item in parameters.items()]
        return bool(searched) and all(does_nothing)

    @classmethod
    def published(cls, views: int, fixed: Mapping[str, Any]) -> dict[str, Any]:
        """The published settings, as far as the views reach, with the fixed ones laid over.

        Args:
            views: Augmented views of each minority image.
            fixed: Settings that the user chose.

        Raises:
            ConfigError: For a fixed setting that does not exist or is out of range, or without the
                views that the strategy needs.
        """
        settings: dict[str, Any] = {}
        for name, item in cls.parameters().items():
            settings[name] = item.published
            if item.high == VIEWS:
                settings[name] = min(item.published, cls._some_views(views))
        for name, value in fixed.items():
            settings[name] = cls._checked(name, value, views)
        return settings

    @classmethod
    def _some_views(cls, views: int) -> int:
        if views < 1:
            raise ConfigError(
                f"Scenario '{cls.name()}' needs augmented views; set embed.views to 1 or more. "
                "Vectors from a file bring theirs along, in rows with the column `view`."
            )
        return views

    @classmethod
    def _checked(cls, name: str, value: Any, views: int) -> Any:
        parameters = cls.parameters()
        options = cls.options()
        if name in options:
            return cls._checked_option(name, options[name], value)
        if name not in parameters:
            known = [*parameters, *options]
            raise unknown_name("setting", name, known, f" of scenario '{cls.name()}'")
        item = parameters[name]
        if not item.allows(value, views):
            raise ConfigError(
                f"scenarios.{cls.name()}.{name} is {value!r}; "
                f"a number from {item.low} to {item.highest(views)} is expected."
            )
        return value

    @classmethod
    def _checked_option(cls, name: str, item: Option, value: Any) -> Any:
        if not item.allows(value):
            raise ConfigError(
                f"scenarios.{cls.name()}.{name} is {value!r}; "
                f"a whole number from {item.low} on is expected."
            )
        return value

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """Build from settings, ignoring what is not a field (the shared `l2`)."""
        known = cls.parameters() | cls.options()
        return cls(**{name: value for name, value in settings.items() if name in known})


def with_copies(rows: TrainRows, copies: int) -> Plan:
    """Every image once, and each minority image once more for each of the views 1..copies."""
    images = np.arange(len(rows.labels))
    is_minority = np.isin(rows.labels, minority_labels(rows.counts))
    minority = np.flatnonzero(is_minority)
    views = np.arange(1, copies + 1)
    row = np.concatenate([images, np.tile(minority, copies)])
    view = np.concatenate([np.zeros_like(images), np.repeat(views, len(minority))])
    return Plan.of(row, view)


def inverse_frequency(counts: np.ndarray, exponent: float) -> np.ndarray:
    r"""Weights $w_c \propto n_c^{-a}$ with mean 1 over the draws, float (num_classes,).

    A class without draws gets the weight 1 before the scaling.

    >>> inverse_frequency(np.array([1349, 3883]), 1.0).round(6).tolist()
    [1.939214, 0.673706]
    """
    present = np.maximum(np.asarray(counts, dtype=float), 1)
    weights = np.where(counts > 0, present**-exponent, 1.0)
    return mean_one(weights, counts)


def mean_one(weights: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Scale weights so that their mean over the draws per class is 1; both are (num_classes,)."""
    mean = np.sum(counts * weights) / np.sum(counts)
    return weights / mean
