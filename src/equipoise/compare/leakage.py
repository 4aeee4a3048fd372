"""What a leak would have been worth: one baseline, three ways of splitting, on the same images.

Its folder holds numbers and a figure, never a model or predictions: nothing from here can be compared or registered.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from equipoise.compare import controls
from equipoise.compare.paired import difference
from equipoise.compare.wording import metric_label
from equipoise.core import parallel
from equipoise.core.config import Study
from equipoise.core.files import write_json
from equipoise.core.text import aligned
from equipoise.evaluation import intervals, metrics
from equipoise.scenario import head
from equipoise.scenario import rows as rows_
from equipoise.scenario.matrix import Inputs
from equipoise.split import strata
from equipoise.strategies.base import Objective

WHOLE, BY_IMAGE, BEFORE = "patients kept whole", "split by image", "oversampled before the split"
SHOWN = (
    "free.auroc",
    "free.specificity_at_sensitivity",
    "raw.accuracy",
    "raw.balanced_accuracy",
    "raw.f1",
)


@threadpool_limits.wrap(limits=1, user_api="blas")
def run(study: Study, backbone: str) -> dict[str, Any]:
    """Cross-validate the baseline under three kinds of folds and write leakage.json.

    Every image is tested once under each kind, so differences are paired over patients. The heads, their penalty (the
    middle of `tune.l2_first`) and the number of folds (`split.folds`) are the same; only who may be on both sides
    differs. Labels permuted between patients show what resemblance within a patient alone is worth.

    Returns:
        Per kind of split: metrics with intervals, inflation over `patients kept whole`, the permuted-label control.
    """
    inputs = Inputs.read(study, backbone, "baseline")
    settings = study.settings
    l2 = float(np.median(settings.tune.l2_first))
    kinds = _sides(inputs)
    evaluations: dict[str, intervals.Evaluation] = {}
    alpha = settings.compare.alpha
    rows: dict[str, dict[str, Any]] = {}
    for kind, rounds in parallel.progress(
        kinds.items(), "cross-validating", len(kinds), "kinds of split"
    ):
        evaluations[kind] = _evaluate(inputs, rounds, l2)
        shown = [name for name in SHOWN if name in evaluations[kind].draws]
        permuted = controls.permuted_labels(
            inputs, rounds, l2, settings.compare.permutations, settings.compare.seed
        )
        rows[kind] = {
            "metrics": {name: evaluations[kind].interval(name) for name in shown},
            "inflation": {
                name: difference(evaluations[kind], evaluations[WHOLE], name, alpha)
                for name in shown
            },
            "permuted_labels": permuted,
        }
    result = {
        **{"study": study.name, "backbone": backbone, "weights": inputs.store.meta["weights"]},
        **{"images": len(inputs.manifest.table), "folds": settings.split.folds, "l2": l2},
        "group_by": inputs.splits.meta["group_by"],
        "patients": int(inputs.splits.round(0, 0)["patient_id"].nunique()),
        "sensitivity_floor": settings.tune.sensitivity_floor,
        "digests": {"manifest": inputs.manifest.digest, "features": inputs.store.digest},
        "rows": rows,
    }
    write_json(folder(study, backbone) / "leakage.json", result)
    return result


def folder(study: Study, backbone: str) -> Path:
    """Where the numbers lie: beside no result."""
    return Path("results/leakage") / study.name / backbone


def table_text(result: dict[str, Any]) -> str:
    """The result as lines of text: one per kind of split."""
    names = list(result["rows"][WHOLE]["metrics"])
    heads = [f"{metric_label(name, result['sensitivity_floor'])} (inflation)" for name in names]
    heads, body = ["", *heads, "labels permuted"], []
    for kind, row in result["rows"].items():
        cells = [kind]
        for name in names:
            value, more = row["metrics"][name], row["inflation"][name]
            change = (
                ""
                if kind == WHOLE
                else f" ({more['value']:+.3f} [{more['low']:+.3f}, {more['high']:+.3f}])"
            )
            cells.append(f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]{change}")
        control = row["permuted_labels"]
        body.append(
            [
                *cells,
                f"AUROC {control['auroc']:.3f}, chance {control['low']:.3f} to {control['high']:.3f}",
            ]
        )
    return (
        f"{result['study']}, {result['backbone']}: {result['images']} images of {result['patients']} patients by "
        f"{result['group_by']}, {result['folds']} folds, the same baseline\n{aligned([heads, *body])}"
    )


def _sides(inputs: Inputs) -> dict[str, list[controls.Sides]]:
    """Train and test images of every fold under each kind of split; a position may repeat on a train side."""
    settings = inputs.study.settings.split
    labels = inputs.labels(np.arange(len(inputs.manifest.table)))
    groups = inputs.splits.round(0, 0).set_index("image_id")["patient_id"]
    patients = groups.loc[inputs.manifest.table["image_id"]].to_numpy()
    images = np.arange(len(labels))
    rng = np.random.default_rng([settings.seed, 7])
    counts = np.bincount(labels)
    copies = [
        rng.choice(images[labels == label], counts.max() - count, replace=True)
        for label, count in enumerate(counts)
    ]
    grown = np.concatenate([images, *copies])

    def folds(source: np.ndarray, units: np.ndarray) -> list[controls.Sides]:
        rows = pd.DataFrame({"patient": units, "label": labels[source]})
        fold = strata.assign_folds(rows, settings.folds, [settings.seed, 7])
        # Test rows are the originals in every kind; a copy can only be on the train side of another fold.
        original = np.arange(len(source)) < len(images)
        return [(source[fold != k], source[(fold == k) & original]) for k in range(settings.folds)]

    def names(count: int) -> np.ndarray:
        return np.array([f"{number:09d}" for number in range(count)])

    return {
        WHOLE: folds(images, patients),
        BY_IMAGE: folds(images, names(len(images))),
        BEFORE: folds(grown, names(len(grown))),
    }


def _evaluate(inputs: Inputs, rounds: list[controls.Sides], l2: float) -> intervals.Evaluation:
    labels = inputs.labels(np.arange(len(inputs.manifest.table)))
    neutral = Objective.neutral(len(inputs.manifest.classes))
    groups = inputs.splits.round(0, 0)
    frames = []
    for fold, (train, test) in enumerate(rounds):
        features = inputs.features(train)
        standardiser = rows_.Standardiser.fit(features)
        solved = head.fit(
            features, labels[train], np.ones(len(train), dtype=int), neutral, l2, standardiser
        )
        prob = metrics.softmax(solved.logits(inputs.features(test)))
        frames.append(controls.prediction_rows(inputs.manifest, groups, test, prob, 0, fold))
    settings = inputs.study.settings
    return controls.evaluated(
        inputs.manifest, frames, settings.compare, settings.tune.sensitivity_floor
    )
