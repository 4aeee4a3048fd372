"""What a leak would have been worth: one baseline, three ways of splitting, on the same images.

Its folder holds numbers and a figure, never a model or predictions: nothing from here can be compared or registered.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from equipoise.compare import controls
from equipoise.compare.controls import Sides
from equipoise.compare.judging import difference
from equipoise.compare.wording import interval_text, metric_label
from equipoise.core import parallel
from equipoise.core.config import Split, Study
from equipoise.core.documents import (
    Difference,
    LeakageReport,
    LeakageRow,
    MeasuredMetric,
    PermutedLabels,
)
from equipoise.core.records import Manifest
from equipoise.core.shown import Page, Sentences, Table
from equipoise.core.text import in_words
from equipoise.evaluation.intervals import Evaluation
from equipoise.evaluation.metrics import Endpoint, softmax
from equipoise.scenario.heads import head
from equipoise.scenario.heads.rows import Standardiser
from equipoise.scenario.matrix import Inputs
from equipoise.split import strata
from equipoise.strategies.base import Objective

#: The kinds of split. The first one is honest, and the others are measured against it.
WHOLE = "patients kept whole"
BY_IMAGE = "split by image"
BEFORE = "oversampled before the split"

SHOWN = (
    Endpoint("free", "auroc"),
    Endpoint("free", "specificity_at_sensitivity"),
    Endpoint("raw", "accuracy"),
    Endpoint("raw", "balanced_accuracy"),
    Endpoint("raw", "f1"),
)

#: Beside `split.seed`, so that these folds are no folds of the study.
_SEED = 7


def folder(study: Study, backbone: str) -> Path:
    """Where the numbers lie: beside no result."""
    return study.root / "results/leakage" / study.name / backbone


@threadpool_limits.wrap(limits=1, user_api="blas")
def measure(study: Study, backbone: str) -> LeakageReport:
    """Cross-validate the baseline under three kinds of folds and write leakage.json.

    Every image is tested once under each kind, so differences are paired over patients. The heads, their penalty (the
    middle of `tune.l2_first`) and the number of folds (`split.folds`) are the same; only who may be on both sides
    differs. Labels permuted between patients show what resemblance within a patient alone is worth.
    """
    inputs = Inputs.read(study, backbone, "baseline")
    settings = study.settings
    l2 = float(np.median(settings.tune.l2_first))
    rounds_of_kind = kinds_of_split(inputs, settings.split)
    honest = _cross_validated(study, inputs, rounds_of_kind[WHOLE], l2)
    rows = {}
    for kind, rounds in parallel.progress(
        rounds_of_kind.items(), "cross-validating", len(rounds_of_kind), "kinds of split"
    ):
        evaluation = honest
        if kind != WHOLE:
            evaluation = _cross_validated(study, inputs, rounds, l2)
        control = controls.permuted_labels(
            inputs,
            rounds,
            l2,
            settings.compare.permutations,
            settings.compare.seed,
        )
        rows[kind] = _row(evaluation, honest, control)
    report = LeakageReport(
        study=study.name,
        backbone=backbone,
        weights=inputs.store.meta["weights"],
        images=len(inputs.manifest.table),
        folds=settings.split.folds,
        l2=l2,
        group_by=inputs.splits.meta["group_by"],
        patients=int(inputs.splits.round(0, 0)["patient_id"].nunique()),
        sensitivity_floor=settings.tune.sensitivity_floor,
        digests={"manifest": inputs.manifest.digest, "features": inputs.store.digest},
        rows=rows,
    )
    report.write(folder(study, backbone) / "leakage.json")
    return report


def _row(evaluation: Evaluation, honest: Evaluation, control: PermutedLabels) -> LeakageRow:
    """Numbers of one kind of split, and how far they lie above those of the honest one."""
    metrics: dict[str, MeasuredMetric] = {}
    inflation: dict[str, Difference] = {}
    for endpoint in SHOWN:
        if endpoint not in honest.draws:
            continue
        name = str(endpoint)
        metrics[name] = evaluation.interval(endpoint)
        inflation[name] = difference(evaluation, honest, endpoint)
    return LeakageRow(metrics=metrics, inflation=inflation, permuted_labels=control)


# --- three kinds of split -------------------------------------------------------------------------


def kinds_of_split(inputs: Inputs, settings: Split) -> dict[str, list[Sides]]:
    """Train and test images of every fold under each kind of split; a position may repeat on a train side."""
    images = np.arange(len(inputs.manifest.table))
    labels = inputs.labels(images)
    rows_of_split = inputs.splits.round(0, 0).set_index("image_id")
    in_order = rows_of_split.loc[inputs.manifest.table["image_id"]]
    patients = in_order["patient_id"].to_numpy()
    with_copies = _oversampled(labels, settings.seed)

    def folds(rows: np.ndarray, kept_together: np.ndarray) -> list[Sides]:
        table = pd.DataFrame({"patient": kept_together, "label": labels[rows]})
        fold_of_row = strata.assign_folds(table, settings.folds, [settings.seed, _SEED])
        # Test rows are the originals in every kind; a copy can only be on the train side of another fold.
        is_original = np.arange(len(rows)) < len(images)
        rounds = []
        for fold in range(settings.folds):
            is_inside = fold_of_row == fold
            rounds.append(Sides(rows[~is_inside], rows[is_inside & is_original]))
        return rounds

    return {
        WHOLE: folds(images, patients),
        BY_IMAGE: folds(images, _each_its_own(images)),
        BEFORE: folds(with_copies, _each_its_own(with_copies)),
    }


def _oversampled(labels: np.ndarray, seed: int) -> np.ndarray:
    """All images, then copies of those of the smaller classes until the classes are equal, int (num_rows,)."""
    images = np.arange(len(labels))
    counts = np.bincount(labels)
    rng = np.random.default_rng([seed, _SEED])
    parts = [images]
    for label, count in enumerate(counts):
        of_class = images[labels == label]
        lacking = counts.max() - count
        parts.append(rng.choice(of_class, lacking, replace=True))
    return np.concatenate(parts)


def _each_its_own(rows: np.ndarray) -> np.ndarray:
    """A name of its own for every row, in their order."""
    return np.array([f"{number:09d}" for number in range(len(rows))])


def _cross_validated(study: Study, inputs: Inputs, rounds: list[Sides], l2: float) -> Evaluation:
    """Numbers of the baseline's heads on the test images of all rounds."""
    manifest = inputs.manifest
    labels = inputs.labels(np.arange(len(manifest.table)))
    neutral = Objective.neutral(len(manifest.classes))
    rows = inputs.splits.round(0, 0)
    frames = []
    for fold, (train, test) in enumerate(rounds):
        features = inputs.features(train)
        once_each = np.ones(len(train), dtype=int)
        standardiser = Standardiser.fit(features)
        solved = head.fit(features, labels[train], once_each, neutral, l2, standardiser)
        logits = solved.logits(inputs.features(test))
        prob = softmax(logits)
        frames.append(controls.prediction_rows(manifest, rows, test, prob, 0, fold))
    settings = study.settings
    return controls.evaluated(
        manifest,
        frames,
        settings.compare,
        settings.tune.sensitivity_floor,
        SHOWN,
    )


# --- the printed table ----------------------------------------------------------------------------


def page(report: LeakageReport) -> Page:
    """The report for a terminal: of each metric its value under every kind of split, and what a leak adds.

    The answers of the control with permuted labels stand below the table.
    """
    lines = []
    for name in report.rows[WHOLE].metrics:
        lines.append([metric_label(Endpoint.parse(name), report.sensitivity_floor), "", ""])
        for kind, row in report.rows.items():
            adds = "" if kind == WHOLE else _interval_text(row.inflation[name], sign="+")
            lines.append([f"  {kind}", _interval_text(row.metrics[name]), adds])
    permuted = []
    for kind, row in report.rows.items():
        permuted.append(f"  {kind}: {controls.control_text(row.permuted_labels)}")
    first = (
        f"{report.study}, {report.backbone}: {report.images} images of {report.patients} "
        f"patients by {report.group_by}, {report.folds} folds, the same baseline"
    )
    control = "Labels permuted between patients, where nothing is left to learn but a leak:"
    return Page(
        [
            Sentences([first]),
            Table(lines, heads=["", "value", "the leak adds"], wrapped=[1, 2]),
            Sentences([control, *permuted]),
        ]
    )


def _interval_text(number: MeasuredMetric | Difference, sign: str = "") -> str:
    return interval_text(number, f"{sign}.3f")


# --- beside a comparison --------------------------------------------------------------------------


def kept(study: Study) -> list[LeakageReport]:
    """What `measure` wrote about the study's backbones and its images as they are now."""
    manifest = Manifest.read(study.manifest_path)
    reports = []
    for backbone in study.backbones:
        path = folder(study, backbone) / "leakage.json"
        if not path.is_file():
            continue
        report = LeakageReport.read(path)
        if report.digests["manifest"] == manifest.digest:
            reports.append(report)
    return reports


def sentence(report: LeakageReport) -> str:
    """What the leaks would have been worth, in a sentence."""
    worth = []
    for kind in (BY_IMAGE, BEFORE):
        added = report.rows[kind].inflation[str(SHOWN[0])]
        worth.append(f"{_interval_text(added, sign='+')} {kind}")
    return (
        f"A leak would have been worth (AUROC, baseline on {report.backbone}): {in_words(worth)}."
    )
