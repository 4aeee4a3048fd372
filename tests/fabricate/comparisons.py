"""Builders of comparisons and choices as documents, for what is said and drawn about them."""

from __future__ import annotations

from typing import Any

from equipoise.core.documents import (
    Calibration,
    Comparison,
    Controls,
    Difference,
    MeasuredMetric,
    RoundChoice,
    ScenarioRow,
)
from fabricate import made

PRIMARY = "free.auroc"


def measured(value: float = 0.8, **fields: Any) -> MeasuredMetric:
    """A metric with an interval of 0.1 to both sides."""
    fields.setdefault("low", value - 0.1)
    fields.setdefault("high", value + 0.1)
    return MeasuredMetric(value=value, **fields)


def row(**fields: Any) -> ScenarioRow:
    """The baseline's row, with fields laid over it."""
    decisions = {"sensitivity": measured(), "specificity": measured()}
    own = {
        "inner_score": 0.5,
        "result_digest": "r" * 64,
        "seed_has_effect": None,
        "free": {"auroc": measured()},
        "raw": decisions,
        "locked": decisions,
        "verdict": "baseline",
    }
    own.update(fields)
    return ScenarioRow(**own)


def rival(verdict: str, delta: Difference, **fields: Any) -> ScenarioRow:
    """The row of a scenario that was compared to the baseline."""
    return row(verdict=verdict, delta={PRIMARY: delta}, **fields)


def comparison(rows: dict[str, dict[str, ScenarioRow]] | None = None, **fields: Any) -> Comparison:
    """A comparison of two classes and patients; without rows the baseline stands alone."""
    own = {
        "study": "made",
        "classes": ["clear", "opacity"],
        "positive_class": "opacity",
        "majority_class": "clear",
        "minority_classes": ["opacity"],
        "weights": {made.BACKBONE: "imagenet"},
        "mode": "probe",
        "test": {},
        "test_images": 40,
        "test_patients": 30,
        "test_digest": "t" * 64,
        "primary": PRIMARY,
        "sensitivity_floor": 0.9,
        "alpha": 0.05,
        "resamples": 200,
        "units": "patients",
        "comparisons": 0,
        "seeds": 2,
        "folds": 1,
        "controls": Controls(metadata_only=measured(), permuted_labels={}),
        "checks": [],
        "scheme": "holdout",
        "group_by": "patient",
        "rows": rows or {made.BACKBONE: {"baseline": row()}},
        "winners": {made.BACKBONE: "baseline"},
        "challenger": made.BACKBONE,
        "registrable": True,
        "margin": 0.01,
        "effective_patients": 30.0,
        "headline": "",
        "verdict": "",
        "notes": [],
        "digest": "d" * 64,
    }
    own.update(fields)
    return Comparison(**own)


def choice(reason: str = "", **fields: Any) -> RoundChoice:
    """An entry of best.json; `reason` says why its calibrator is the identity."""
    own = {
        "repeat": 0,
        "fold": 0,
        "seed": 0,
        "settings": {"l2": 0.1},
        "score": 0.8,
        "best_score": 0.8,
        "published_score": 0.8,
        "gain": 0.0,
        "gain_se": None,
        "objective": "auroc",
        "identified": True,
        "feasible": True,
        "reason": "",
        "trials": 4,
        "failed_trials": 0,
        "inner_folds": 3,
        "train_counts": [30, 10],
        "plan_counts": [30, 30],
        "gradient_norm": 0.0,
        "calibrator": Calibration(slope=1.0, biases=[0.0, 0.0], reason=reason),
        "threshold": 0.5,
    }
    own.update(fields)
    return RoundChoice(**own)
