"""What a comparison must survive: whether files' metadata tell the class, and whether shuffled labels are learned."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from scipy.linalg import cho_factor, cho_solve
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import PolynomialFeatures, StandardScaler

from equipoise.core.config import Compare
from equipoise.core.records import Manifest, Predictions, Splits
from equipoise.evaluation import intervals
from equipoise.scenario import rows as rows_
from equipoise.scenario.matrix import Inputs
from equipoise.split.checks import Check

#: The control is a warning outside this central share of what chance gives.
_CENTRAL = 0.99

#: Positions of train and of test images in the manifest, int arrays.
Sides = tuple[np.ndarray, np.ndarray]


def metadata_only(
    manifest: Manifest, splits: Splits, settings: Compare, sensitivity_floor: float
) -> dict[str, Any]:
    """AUROC on test of a model that sees width, height, bytes and mean grey level of the files, and no picture.

    A quadratic logistic regression on the logarithms of the sizes and the grey level, fitted on train. Where classes
    came from different devices or were stored differently it does well, and so may a network, for that reason alone.

    Returns:
        The interval of `intervals.Evaluation.interval`: value, low, high, over patients.
    """
    table = manifest.table
    sizes = np.log(table[["width_px", "height_px", "bytes"]].to_numpy(dtype=np.float64))
    values = np.column_stack([sizes, table["grey_mean"].to_numpy(dtype=np.float64)])
    labels = table["label"].to_numpy()
    frames = []
    for repeat, fold in splits.rounds():
        rows = splits.round(repeat, fold)
        train, test = sides(manifest, rows)
        model = make_pipeline(
            StandardScaler(), PolynomialFeatures(2), LogisticRegression(max_iter=1000)
        )
        prob = model.fit(values[train], labels[train]).predict_proba(values[test])
        frames.append(prediction_rows(manifest, rows, test, prob, repeat, fold))
    return evaluated(manifest, frames, settings, sensitivity_floor).interval("free.auroc")


def permuted_labels(
    inputs: Inputs, rounds: Sequence[Sides], l2: float, permutations: int, seed: int
) -> dict[str, float]:
    """AUROC on test of heads trained on labels permuted between patients, against the permuted labels.

    Under an honest split it is 0.5 up to chance. It is above when test is not independent of train, for then the
    pictures' resemblance is enough. Patients are those of the dataset's first reading, the conservative one, so a
    grouping that is too fine shows here. The heads are ridge regressions on class indicators: their closed form
    makes 200 of them one product. What chance gives comes from permuting the labels of the test patients once more.

    Args:
        inputs: Manifest and features.
        rounds: Train and test images of each round.
        l2: Penalty on features of unit spread, as in `head`.
        permutations: How often labels are permuted.
        seed: Of the permutations.

    Returns:
        auroc: mean over rounds and permutations; low, high: the central 99 % of what chance gives.
    """
    people, patients = pd.factorize(inputs.manifest.table["patient_id"], sort=True)
    classes = len(inputs.manifest.classes)
    shown = np.zeros((len(patients), classes), dtype=int)
    np.add.at(shown, (people, inputs.labels(np.arange(len(people)))), 1)
    own = shown.argmax(axis=1)  # the class most images of a patient show
    rng = np.random.default_rng([seed, 8])
    shuffled = np.stack([rng.permutation(own) for _ in range(permutations)])
    observed, chance = [], []
    for train, test in rounds:
        ranks = rankdata(
            _ridge_scores(inputs, train, test, shuffled[:, people[train]], classes, l2), axis=2
        )
        observed.append(np.nanmean(_aurocs(ranks, shuffled[:, people[test]])))
        inside, seat = np.unique(people[test], return_inverse=True)
        again = (rng.permuted(shuffled[:, inside], axis=1)[:, seat] for _ in range(permutations))
        chance.append([np.nanmean(_aurocs(ranks, labels)) for labels in again])
    low, high = np.quantile(np.mean(chance, axis=0), [(1 - _CENTRAL) / 2, (1 + _CENTRAL) / 2])
    return {"auroc": float(np.mean(observed)), "low": float(low), "high": float(high)}


def checks_of(metadata: dict[str, Any], permuted: dict[str, dict[str, float]]) -> list[Check]:
    """EQ007 and EQ008 in words."""
    text = f"width, height, bytes and grey level alone reach AUROC {metadata['value']:.3f} [{metadata['low']:.3f}, "
    text += f"{metadata['high']:.3f}]"
    found = [
        Check(
            "EQ007",
            "classes told apart by metadata alone",
            "finding" if metadata["low"] > 0.5 else "none",
            text,
        )
    ]
    outside = [
        name for name, row in permuted.items() if not row["low"] <= row["auroc"] <= row["high"]
    ]
    values = "; ".join(
        f"{name}: AUROC {row['auroc']:.3f}, chance gives {row['low']:.3f} to {row['high']:.3f}"
        for name, row in permuted.items()
    )
    found.append(
        Check("EQ008", "permuted labels are learned", "finding" if outside else "none", values)
    )
    return found


def sides(manifest: Manifest, rows: pd.DataFrame) -> Sides:
    """Positions in the manifest of the train and the test images of one round."""
    position = pd.Series(np.arange(len(manifest.table)), index=manifest.table["image_id"])
    train, test = (
        position.loc[rows.loc[rows["part"] == part, "image_id"]].to_numpy()
        for part in ("train", "test")
    )
    return train, test


def prediction_rows(
    manifest: Manifest,
    rows: pd.DataFrame,
    test: np.ndarray,
    prob: np.ndarray,
    repeat: int,
    fold: int,
) -> pd.DataFrame:
    """Rows of a Predictions table for test images; nothing is calibrated and the threshold is 0.5."""
    chosen = manifest.table.iloc[test]
    groups = rows.set_index("image_id")["patient_id"]
    frame = pd.DataFrame(
        {
            "image_id": chosen["image_id"].to_numpy(),
            "patient_id": groups.loc[chosen["image_id"]].to_numpy(),
            **{
                "repeat": repeat,
                "fold": fold,
                "seed": 0,
                "part": "test",
                "label": chosen["label"].to_numpy(),
            },
            **{"overlap": False, "threshold": 0.5},
        }
    )
    for kind in ("prob", "calibrated"):
        for index, name in enumerate(manifest.classes):
            frame[f"{kind}_{name}"] = prob[:, index]
    return frame


def evaluated(
    manifest: Manifest, frames: Sequence[pd.DataFrame], settings: Compare, sensitivity_floor: float
) -> intervals.Evaluation:
    """Metrics with intervals of the rows that `prediction_rows` made, one frame per round."""
    meta = {"classes": list(manifest.classes), "positive_class": manifest.positive_class}
    return intervals.evaluate(
        Predictions(pd.concat(frames, ignore_index=True), meta), settings, sensitivity_floor
    )


def _ridge_scores(
    inputs: Inputs, train: np.ndarray, test: np.ndarray, labels: np.ndarray, classes: int, l2: float
) -> np.ndarray:
    """Scores of ridge regressions, one per permutation and class, float (permutations, classes, num_test)."""
    raw = inputs.features(train)
    standardiser = rows_.Standardiser.fit(raw)
    known, wanted = (
        standardiser.apply(raw, np.float32),
        standardiser.apply(inputs.features(test), np.float32),
    )
    targets = (labels[:, None, :] == np.arange(classes)[None, :, None]).astype(np.float32)
    targets -= targets.mean(axis=2, keepdims=True)
    flat = targets.reshape(-1, len(train)).T
    penalty = l2 * len(train)
    if len(train) <= known.shape[1]:
        gram = cho_factor(known @ known.T + penalty * np.eye(len(train), dtype=np.float32))
        scores = (wanted @ known.T) @ cho_solve(gram, flat)
    else:
        gram = cho_factor(known.T @ known + penalty * np.eye(known.shape[1], dtype=np.float32))
        scores = wanted @ cho_solve(gram, known.T @ flat)
    return scores.T.reshape(len(labels), classes, len(test))


def _aurocs(ranks: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """AUROC (permutations,) by ranks (permutations, classes, n), one-vs-rest; NaN where a class is absent."""
    shown = [1] if ranks.shape[1] == 2 else range(ranks.shape[1])
    values = np.zeros(len(ranks))
    for label in shown:
        truth = labels == label
        positive = truth.sum(axis=1)
        pairs = positive * (truth.shape[1] - positive)
        above = (ranks[:, label] * truth).sum(axis=1) - positive * (positive + 1) / 2
        values += np.divide(above, pairs, out=np.full(len(ranks), np.nan), where=pairs > 0) / len(
            shown
        )
    return values
