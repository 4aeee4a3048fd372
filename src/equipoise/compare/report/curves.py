"""Test rows -> the numbers behind the figures and the slider: curves with bands, counts at every threshold."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from equipoise.compare.evidence import first_run
from equipoise.compare.results import Result
from equipoise.core.records import Predictions
from equipoise.evaluation.intervals import patient_resamples
from equipoise.evaluation.metrics import decide, roc_steps

#: Where curves are read: false alarms or recall, 0..1.
GRID = np.linspace(0, 1, 101)
#: Thresholds that the slider can be moved to; the same float64 in the page's script, so decisions are the same.
EDGES = np.arange(1001) / 1000
#: Resamples of patients behind the bands; they serve the eye, the intervals in tables have `compare.resamples`.
RESAMPLES = 200


def shown(result: Result) -> dict[int, str]:
    """Labels that have a curve, with its name: the positive one, or of more than two classes each against the rest."""
    predictions = result.predictions
    if len(predictions.classes) == 2:
        return {predictions.positive_label: result.scenario}
    return {label: f"{result.scenario}, {name}" for label, name in enumerate(predictions.classes)}


def tables(results: list[Result]) -> dict[str, pd.DataFrame]:
    """ROC, precision-recall and calibration curves with backbone, scenario, x and y, for `dvc plots`."""
    frames: dict[str, list[pd.DataFrame]] = {"roc": [], "precision_recall": [], "calibration": []}
    for result in results:
        for label, name in shown(result).items():
            drawn = {
                **bands(result, label),
                "calibration": reliability(result, "calibrated", label),
            }
            for kind, (x, y, *_) in drawn.items():
                frames[kind].append(
                    pd.DataFrame({"backbone": result.backbone, "scenario": name, "x": x, "y": y})
                )
    return {kind: pd.concat(own, ignore_index=True) for kind, own in frames.items()}


@lru_cache(maxsize=32)
def bands(result: Result, label: int) -> dict[str, np.ndarray]:
    """ROC and precision-recall of one class against the rest, with a pointwise band over patients.

    Curves are averaged vertically over repeats, folds and seeds, as the AUROC of the tables is.

    Returns:
        "roc" (4, 102), which begins in the corner, and "precision_recall" (4, 101), float64: x, that is `GRID`, the
        estimate, the ends of its band.
    """
    test = result.predictions.part("test")
    table, scores = test.table, test.probabilities("prob")[:, label]
    truth = (table["label"] == label).to_numpy()
    weights = _weights(test)
    found: dict[str, list[np.ndarray]] = {"roc": [], "precision_recall": []}
    for rows in table.groupby(["repeat", "fold", "seed"], sort=True).indices.values():
        true, false = roc_steps(truth[rows], scores[rows], weights[:, rows])
        with np.errstate(divide="ignore", invalid="ignore"):
            sensitivity, alarms = true / true[:, -1:], false / false[:, -1:]
            precision = true / (true + false)
        start = [(np.append(0, x), np.append(0, y)) for x, y in zip(alarms, sensitivity)]
        found["roc"].append(np.stack([np.append(0, np.interp(GRID, x, y)) for x, y in start]))
        reached = [np.searchsorted(y, np.maximum(GRID, 1e-9) - 1e-12) for y in sensitivity]
        last = precision.shape[1] - 1
        found["precision_recall"].append(
            np.stack([y[np.minimum(at, last)] for y, at in zip(precision, reached)])
        )
    across, averaged = {"roc": np.append(0, GRID), "precision_recall": GRID}, {}
    for name, values in found.items():
        mean = np.mean(values, axis=0)
        averaged[name] = np.vstack(
            [across[name], mean[:1], np.nanquantile(mean[1:], _ends(result), axis=0)]
        )
    return averaged


def _weights(test: Predictions) -> np.ndarray:
    """How often each test row counts, float (RESAMPLES + 1, n); the first row is all ones."""
    patients = test.table["patient_id"].to_numpy()
    people, drawn = patient_resamples(patients, test.table["label"].to_numpy(), RESAMPLES, 0)
    return drawn[:, np.searchsorted(people, patients)]


def _ends(result: Result) -> list[float]:
    return [result.evaluation.alpha / 2, 1 - result.evaluation.alpha / 2]


def reliability(result: Result, kind: str, label: int, bins: int = 10) -> np.ndarray:
    """Mean probability and observed share in bins of equal numbers, first repeat and seed.

    Args:
        result: Of one scenario.
        kind: "prob" (raw) or "calibrated".
        label: The class.
        bins: At most; fewer where there are fewer rows.

    Returns:
        float64 (5, bins): mean probability, observed share, the ends of its interval over patients, images.
    """
    test = first_run(result.predictions)
    prob, truth = test.probabilities(kind)[:, label], (test.table["label"] == label).to_numpy()
    weights, columns = _weights(test)[1:], []
    for rows in np.array_split(np.argsort(prob, kind="stable"), min(bins, len(prob))):
        with np.errstate(divide="ignore", invalid="ignore"):
            share = (weights[:, rows] @ truth[rows]) / weights[:, rows].sum(axis=1)
        ends = np.nanquantile(share, _ends(result))
        columns.append([prob[rows].mean(), truth[rows].mean(), *ends, len(rows)])
    return np.array(columns).T


def counts(predictions: Predictions, label: int) -> list[dict[str, Any]]:
    """How many test rows of a class, and of the rest, lie at each step of the slider; one entry per repeat and seed.

    Returns:
        Dicts of positives and negatives (pairs of step and number, for steps that hold any), totals of both, the true
        and false alarms at the "locked" and "raw" operating points, and the locked thresholds of the folds.
    """
    test, found = predictions.part("test"), []
    prob, calibrated = test.probabilities("prob"), test.probabilities("calibrated")
    threshold = test.table["threshold"].to_numpy(dtype=np.float64)
    positive = predictions.positive_label
    points = {
        "locked": decide(calibrated, positive, threshold) == label,
        "raw": decide(prob, positive) == label,
    }
    truth = (test.table["label"] == label).to_numpy()
    step = np.searchsorted(EDGES, calibrated[:, label], side="right") - 1
    for rows in test.table.groupby(["repeat", "seed"], sort=True).indices.values():
        mine = {"positives": step[rows][truth[rows]], "negatives": step[rows][~truth[rows]]}
        places = {side: np.unique(values, return_counts=True) for side, values in mine.items()}
        alarms = {
            point: [decided[rows] & truth[rows], decided[rows] & ~truth[rows]]
            for point, decided in points.items()
        }
        found.append(
            {
                **{side: np.transpose(pair).tolist() for side, pair in places.items()},
                "totals": [len(values) for values in mine.values()],
                **{point: [int(side.sum()) for side in pair] for point, pair in alarms.items()},
                "thresholds": []
                if len(test.classes) > 2
                else sorted(set(threshold[rows].tolist())),
            }
        )
    return found


def net_benefit(found: list[dict[str, Any]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decision curve of `counts`: true less false alarms per row, a false one weighing t / (1 - t) (Vickers 2006).

    Returns:
        Thresholds 0.01 to 0.99, net benefit of the model there, and of treating all.
    """
    at, curves = np.arange(10, 1000, 10), []
    for group in found:
        reached = [
            np.bincount(
                [step for step, _ in group[side]],
                [number for _, number in group[side]],
                minlength=1001,
            )
            for side in ("positives", "negatives")
        ]
        true, false = (np.cumsum(values[::-1])[::-1][at] for values in reached)
        odds = EDGES[at] / (1 - EDGES[at])
        curves.append(
            np.array([true - false * odds, group["totals"][0] - group["totals"][1] * odds])
            / sum(group["totals"])
        )
    model, everyone = np.mean(curves, axis=0)
    return EDGES[at], model, everyone
