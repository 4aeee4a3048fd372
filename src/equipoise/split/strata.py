"""Patients by the classes they show, and how they are dealt to parts and folds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd


def assign_folds(rows: pd.DataFrame, folds: int, seed: list[int]) -> np.ndarray:
    """Fold of each row, int (num_rows,): whole patients, their counts at most one apart in every stratum.

    `rows` holds `patient` and `label`, one row per image, in any order; `folds` >= 2; `seed` is a seed sequence.
    """
    patient, strata = _shuffled_strata(rows, seed)
    order = np.concatenate(strata)  # dealt like cards, one stratum after the other
    fold_of = np.empty(len(order), dtype=np.int64)
    fold_of[order] = np.arange(len(order)) % folds
    return fold_of[patient]


def draw(rows: pd.DataFrame, fraction: float, seed: list[int]) -> np.ndarray:
    """Boolean (num_rows,): rows of a stratified draw of that fraction of the patients, at least one per stratum."""
    patient, strata = _shuffled_strata(rows, seed)
    drawn = []
    for patients in strata:
        # Of three or more, two are left: one each for train and val when this draws test. A single one is not drawn.
        count = min(
            max(1, round(fraction * len(patients))), len(patients) - (2 if len(patients) > 2 else 1)
        )
        drawn.append(patients[:count])
    return np.isin(patient, np.concatenate(drawn))


def _shuffled_strata(rows: pd.DataFrame, seed: list[int]) -> tuple[np.ndarray, list[np.ndarray]]:
    """Number of the patient of each row, and these numbers by stratum, each in a random order of its own."""
    patient, _ = pd.factorize(rows["patient"], sort=True)
    by_labels = strata(patient, rows["label"].to_numpy())
    seeds = {labels: [*seed, *(label + 1 for label in labels)] for labels in by_labels}
    return patient, [
        np.random.default_rng(seeds[labels]).permutation(by_labels[labels]) for labels in by_labels
    ]


def patients_per_class(rows: pd.DataFrame) -> pd.Series:
    """Number of patients that show each label."""
    return rows.groupby("label")["patient"].nunique()


def strata(patient: np.ndarray, label: np.ndarray) -> dict[tuple[int, ...], np.ndarray]:
    """Patients, ascending, by the set of labels they show; `patient` and `label` are int (num_images,), >= 0.

    >>> {key: list(map(int, value)) for key, value in strata(np.array([0, 0, 1, 3]), np.array([0, 1, 1, 1])).items()}
    {(0, 1): [0], (1,): [1, 3]}
    """
    shows = np.zeros((patient.max(initial=-1) + 1, label.max(initial=-1) + 1), dtype=bool)
    shows[patient, label] = True
    kinds, kind = np.unique(shows, axis=0, return_inverse=True)
    found = {
        tuple(np.flatnonzero(labels).tolist()): np.flatnonzero(kind == row)
        for row, labels in enumerate(kinds)
    }
    found.pop((), None)  # numbers that no image bears
    return dict(sorted(found.items()))


def named_strata(
    patient: np.ndarray, label: np.ndarray, classes: Sequence[str]
) -> dict[str, np.ndarray]:
    """As `strata`, by the names of the classes, for example benign+malignant."""
    return {
        "+".join(classes[index] for index in labels): found
        for labels, found in strata(patient, label).items()
    }


def patients_needed(scheme: str, folds: int) -> int:
    """Fewest patients of one kind that can be in every part of every round.

    >>> patients_needed("holdout", 5), patients_needed("official", 5), patients_needed("kfold", 5)
    (3, 2, 5)
    """
    return {"holdout": 3, "kfold": max(folds, 3 if folds > 2 else 4), "official": 2}[scheme]
