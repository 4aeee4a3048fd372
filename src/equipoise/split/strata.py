"""Patients by the classes they show, and how they are dealt to parts and folds.

A stratum is all patients that show the same set of classes, for example only benign, or benign and
malignant. Drawing and dealing happen within each stratum, so every part gets its share of every
kind of patient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd


def assign_folds(rows: pd.DataFrame, folds: int, seed: list[int]) -> np.ndarray:
    """Deal whole patients to folds; within every stratum the folds differ by at most one patient.

    Args:
        rows: Columns `patient` and `label`, one row per image, in any order.
        folds: At least 2.
        seed: A seed sequence.

    Returns:
        The fold of each row, int (num_rows,).
    """
    patients = _shuffled(rows, seed)
    # Dealt like cards, one stratum after the other.
    order = np.concatenate(patients.strata)
    num_patients = len(order)
    fold_of_patient = np.empty(num_patients, dtype=np.int64)
    fold_of_patient[order] = np.arange(num_patients) % folds
    return fold_of_patient[patients.of_row]


def draw(rows: pd.DataFrame, fraction: float, seed: list[int]) -> np.ndarray:
    """Draw a fraction of the patients from every stratum.

    At least one is drawn where a stratum has two or more, and at least one is left.

    Args:
        rows: Columns `patient` and `label`, one row per image, in any order.
        fraction: Of the patients, 0..1.
        seed: A seed sequence.

    Returns:
        Whether the patient of each row is drawn, boolean (num_rows,).
    """
    patients = _shuffled(rows, seed)
    drawn = []
    for stratum in patients.strata:
        size = len(stratum)
        wanted = max(1, round(fraction * size))
        # Of three or more, two are left: one each for train and val when this draws test.
        left_over = 2 if size > 2 else 1
        count = min(wanted, size - left_over)
        drawn.append(stratum[:count])
    drawn_patients = np.concatenate(drawn)
    return np.isin(patients.of_row, drawn_patients)


#: The labels that a patient shows, ascending.
LabelSet = tuple[int, ...]


class _ShuffledPatients(NamedTuple):
    """Patients as numbers, in the order of their names.

    Attributes:
        of_row: Number of the patient of each row, int (num_rows,).
        strata: The numbers of one stratum after the other, each stratum in a random order of its
            own.
    """

    of_row: np.ndarray
    strata: list[np.ndarray]


def _shuffled(rows: pd.DataFrame, seed: list[int]) -> _ShuffledPatients:
    patient, _ = pd.factorize(rows["patient"], sort=True)
    label = rows["label"].to_numpy()
    shuffled = []
    for labels, patients in strata(patient, label).items():
        # The seed holds the stratum's labels, so that a new class changes no other stratum.
        of_stratum = [label + 1 for label in labels]
        rng = np.random.default_rng(seed + of_stratum)
        shuffled.append(rng.permutation(patients))
    return _ShuffledPatients(of_row=patient, strata=shuffled)


def patients_per_class(rows: pd.DataFrame) -> pd.Series:
    """Count the patients that show each label.

    Args:
        rows: Columns `patient` and `label`, one row per image.
    """
    return rows.groupby("label")["patient"].nunique()


def strata(patient: np.ndarray, label: np.ndarray) -> dict[LabelSet, np.ndarray]:
    """Group the patients by the set of labels they show.

    Args:
        patient: Number of the patient of each image, int (num_images,), at least 0.
        label: Label of each image, int (num_images,), at least 0.

    Returns:
        The numbers of the patients, ascending, by their labels, ascending.

    >>> groups = strata(np.array([0, 0, 1, 3]), np.array([0, 1, 1, 1]))
    >>> {labels: patients.tolist() for labels, patients in groups.items()}
    {(0, 1): [0], (1,): [1, 3]}
    """
    num_patients = patient.max(initial=-1) + 1
    num_labels = label.max(initial=-1) + 1
    shows = np.zeros((num_patients, num_labels), dtype=bool)
    shows[patient, label] = True
    label_sets, set_of_patient = np.unique(shows, axis=0, return_inverse=True)
    groups = {}
    for number, label_set in enumerate(label_sets):
        labels = np.flatnonzero(label_set).tolist()
        patients = np.flatnonzero(set_of_patient == number)
        # Numbers that no image bears show no label.
        if labels:
            groups[tuple(labels)] = patients
    return dict(sorted(groups.items()))


def named_strata(
    patient: np.ndarray, label: np.ndarray, classes: Sequence[str]
) -> dict[str, np.ndarray]:
    """Group the patients as `strata` does; the keys name the classes, such as benign+malignant."""
    named = {}
    for labels, patients in strata(patient, label).items():
        name = "+".join(classes[index] for index in labels)
        named[name] = patients
    return named


def patients_needed(scheme: str, folds: int) -> int:
    """Say how many patients of one kind it takes to have one in every part of every round.

    Args:
        scheme: The setting `split.scheme`: holdout, kfold or official.
        folds: The setting `split.folds`, which only kfold looks at.

    >>> patients_needed("holdout", 5), patients_needed("official", 5), patients_needed("kfold", 5)
    (3, 2, 5)
    """
    if scheme == "kfold":
        return folds
    if scheme == "official":
        return 2
    return 3
