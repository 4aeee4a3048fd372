"""Challenger against champion: the difference in AUROC on test rows that neither of them was fitted on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import numpy as np
import pandas as pd

from equipoise.compare.simultaneous import paired_differences
from equipoise.core.config import Settings
from equipoise.core.errors import DataError, EquipoiseError
from equipoise.core.records import CALIBRATED, RAW, Predictions, probability_columns
from equipoise.evaluation import intervals
from equipoise.evaluation.metrics import Endpoint
from equipoise.registry.evidence import Evidence
from equipoise.service.answers import ANSWERED_CALIBRATED, ANSWERED_RAW

_AUROC = Endpoint("free", "auroc")

#: Gives the champion's answers by `image_id`, for rows of image_id and sha256.
Rescore = Callable[[pd.DataFrame], pd.DataFrame]


@dataclass(frozen=True)
class Paired:
    """Challenger and champion on rows that neither was fitted on.

    Attributes:
        champion: Number of the champion's version.
        patients: Test patients on whose images both were compared.
        how: Which rows these are, in words.
        challenger_auroc: On these rows.
        champion_auroc: On these rows.
        difference: The challenger's AUROC less the champion's.
        low: Low end of its interval.
        high: High end of its interval.
    """

    champion: str
    patients: int
    how: str
    challenger_auroc: float
    champion_auroc: float
    difference: float
    low: float
    high: float


@dataclass(frozen=True)
class Unpaired:
    """Why challenger and champion are not compared, and whether that fails the version."""

    word: Literal["failed", "not applicable"]
    why: str


def pair(
    settings: Settings, challenger: Evidence, champion: Evidence, rescore: Rescore
) -> Paired | Unpaired:
    """The paired difference in AUROC on rows that neither model was fitted on.

    Its interval is that of every verdict, for a single comparison.

    Args:
        settings: For bounds and resamples.
        challenger: Whose test rows are taken.
        champion: Who is it now.
        rescore: Lets the champion answer for rows that it has not tested.
    """
    try:
        shared = shared_rows(settings.promote.min_patients, challenger, champion, rescore)
        floor = settings.tune.sensitivity_floor
        first = intervals.evaluate(shared.challenger, settings.compare, floor, [_AUROC])
        second = intervals.evaluate(shared.champion, settings.compare, floor, [_AUROC])
    except EquipoiseError as error:
        return Unpaired("failed", str(error))
    first_draws = first.draws[_AUROC]
    second_draws = second.draws[_AUROC]
    only_column = (first_draws - second_draws)[:, np.newaxis]
    folds = shared.challenger.table["fold"].nunique()
    (paired,) = paired_differences(only_column, first.effective_patients, folds, first.alpha)
    if not np.isfinite([paired.value, paired.low, paired.high]).all():
        return Unpaired("failed", "the difference in AUROC cannot be computed on these rows")
    return Paired(
        champion=champion.version,
        patients=shared.challenger.table["patient_id"].nunique(),
        how=shared.how,
        challenger_auroc=float(first_draws[0]),
        champion_auroc=float(second_draws[0]),
        difference=paired.value,
        low=paired.low,
        high=paired.high,
    )


class SharedRows(NamedTuple):
    """Predictions of both models for the same test rows, and which rows these are, in words."""

    challenger: Predictions
    champion: Predictions
    how: str


def shared_rows(
    min_patients: int, challenger: Evidence, champion: Evidence, rescore: Rescore
) -> SharedRows:
    """Test rows that neither model was fitted on, with the predictions of both.

    Raises:
        DataError: When the two cannot be compared, or too few patients per class are left.
    """
    _refuse_unlike(challenger, champion)
    if _same_rows(challenger, champion):
        how = "the same split" if challenger.origin.several else "the same test rows"
        return SharedRows(challenger.predictions, champion.predictions, how)
    unseen = _never_shown(challenger, champion)
    classes = challenger.predictions.classes
    patients = [
        unseen.loc[unseen["label"] == label, "patient_id"].nunique()
        for label in range(len(classes))
    ]
    if min(patients) < min_patients:
        counts = ", ".join(f"{name} {count}" for name, count in zip(classes, patients))
        raise DataError(
            f"other test rows, and too few of them were never shown to version {champion.version}: patients {counts}, "
            f"{min_patients} per class are needed"
        )
    images = unseen[["image_id", "sha256"]].drop_duplicates()
    answers = rescore(images).loc[unseen["image_id"]]
    return SharedRows(
        replace(challenger.predictions, table=unseen),
        replace(challenger.predictions, table=_as_stored(unseen, answers, classes)),
        f"test rows that version {champion.version} was never fitted on, scored again by it",
    )


def _refuse_unlike(challenger: Evidence, champion: Evidence) -> None:
    """Refuse models that answer another question, or whose patients cannot be told apart alike."""
    first = _question(challenger)
    second = _question(champion)
    for what, answer in first.items():
        if answer != second[what]:
            raise DataError(
                f"they differ in {what}: {answer}, and {second[what]} of version {champion.version}"
            )


def _question(evidence: Evidence) -> dict[str, Any]:
    return {
        "classes": evidence.predictions.meta["classes"],
        "positive_class": evidence.predictions.meta["positive_class"],
        "group_by": evidence.origin.group_by,
        "pseudonym_key": evidence.origin.pseudonym_key,
    }


def _same_rows(challenger: Evidence, champion: Evidence) -> bool:
    """Whether both were tested on the same rows; with several folds, by the same whole split."""
    first = challenger.origin
    second = champion.origin
    parent = "splits" if first.several else "test"
    return first.several == second.several and first.digests[parent] == second.digests[parent]


def _never_shown(challenger: Evidence, champion: Evidence) -> pd.DataFrame:
    """Test rows of the challenger with images, patients and pictures new to the champion."""
    keys = challenger.images[["image_id", "sha256", "picture"]]
    rows = challenger.predictions.table.merge(keys, on="image_id")
    fitted = champion.images[champion.images["fitted"]]
    shown = pd.Series(False, index=rows.index)
    for column in ("image_id", "patient_id", "picture"):
        shown |= rows[column].isin(fitted[column])
    return rows[~shown].reset_index(drop=True)


def _as_stored(rows: pd.DataFrame, answers: pd.DataFrame, classes: Sequence[str]) -> pd.DataFrame:
    """Rows with the answers of a served model under the names that stored predictions have."""
    stored = rows.copy()
    for stored_as, answered_as in ((RAW, ANSWERED_RAW), (CALIBRATED, ANSWERED_CALIBRATED)):
        values = answers[probability_columns(answered_as, classes)].to_numpy()
        stored[probability_columns(stored_as, classes)] = values
    return stored
