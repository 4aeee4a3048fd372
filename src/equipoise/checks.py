"""Coded checks with three answers: finding, none, not applicable (and why). A leak is always an error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from equipoise.errors import DataError, LeakageError
from equipoise.records import PARTS, Manifest, Plan, Splits


@dataclass(frozen=True)
class Check:
    """One answer.

    Attributes:
        code: Stable code, for example EQ001.
        name: What was looked for.
        answer: finding, none, or not applicable.
        detail: What was found, or why it does not apply.
    """

    code: str
    name: str
    answer: Literal["finding", "none", "not applicable"]
    detail: str = ""

    def as_dict(self) -> dict[str, str]:
        """Plain data."""
        return asdict(self)


def run(splits: Splits, manifest: Manifest) -> list[Check]:
    """Check a split against its manifest; run before every split is written and before every fit.

    Raises:
        LeakageError: When a patient or a picture is on two sides. With official sides this is the finding EQ-OFFICIAL
            between the published train and test, and an error anywhere else.
    """
    if set(splits.table["image_id"]) != set(manifest.table["image_id"]):
        raise LeakageError(
            f"The split of study '{splits.meta.get('study')}' holds other images than its manifest. "
            f"Run `equipoise split` again."
        )
    official = splits.meta["settings"]["split"]["scheme"] == "official"
    where = f"data/splits/{splits.meta.get('study')}.parquet"
    table = splits.table.merge(manifest.table[["image_id", "sha256", "label"]], on="image_id")
    overlap = 0
    for (repeat, fold), rows in table.groupby(["repeat", "fold"]):
        if len(rows) != len(manifest.table) or not rows["image_id"].is_unique or not rows["part"].isin(PARTS).all():
            raise DataError(
                f"{where}, repeat {int(repeat)}, fold {int(fold)} does not put every image of the manifest into "
                f'exactly one of {", ".join(PARTS)}. Run "equipoise split"; if the file was edited by hand, restore it '
                f'with "dvc checkout".'
            )
        for column, noun in (("patient_id", "patient"), ("sha256", "picture")):
            parts = rows.groupby(column)["part"].agg(lambda values: frozenset(values))
            shared = parts[parts.map(len) > 1]
            allowed = shared.map(lambda values: official and "test" in values and not {"train", "val"} <= values)
            if not allowed.all():
                raise LeakageError(
                    _leak_text(rows, column, noun, shared[~allowed].index[0], where, int(fold), int(repeat))
                )
            overlap += len(shared) if column == "patient_id" else 0
    found = [
        Check("EQ001", "patient on two sides", "none"),
        Check("EQ002", "picture on two sides", "none"),
    ]
    if not official:
        found.append(Check("EQ-OFFICIAL", "official sides share patients", "not applicable", "the split is our own"))
    elif overlap:
        detail = f"{overlap} patients are on both published sides; results are also given without them"
        found.append(Check("EQ-OFFICIAL", "official sides share patients", "finding", detail))
    else:
        found.append(Check("EQ-OFFICIAL", "official sides share patients", "none"))
    found.append(_absent_class(table, manifest))
    return found


def overlapping(rows: pd.DataFrame) -> np.ndarray:
    """Boolean (num_rows,): test rows of one round whose patient is also in its train or val part."""
    seen = set(rows.loc[rows["part"] != "test", "patient_id"])
    return ((rows["part"] == "test") & rows["patient_id"].isin(seen)).to_numpy()


def plan_within_train(plan: Plan, num_train_rows: int) -> None:
    """EQ004: a plan may draw train rows only.

    Raises:
        LeakageError: When a draw points outside the train rows.
    """
    outside = plan.row[(plan.row < 0) | (plan.row >= num_train_rows)]
    if len(outside):
        raise LeakageError(
            f"EQ004: the plan draws row {int(outside[0])}, outside the {num_train_rows} train rows. "
            f"A strategy may only repeat, drop or augment the rows it was given."
        )


def finding(found: list[Mapping[str, Any]], code: str) -> bool:
    """Whether a list of answers (as plain data) holds a finding with this code."""
    return any(check["code"] == code and check["answer"] == "finding" for check in found)


def _absent_class(table: pd.DataFrame, manifest: Manifest) -> Check:
    counts = table.groupby(["repeat", "fold", "part"])["label"].nunique()
    lacking = counts[counts < len(manifest.classes)]
    present = table.groupby(["repeat", "fold"])["part"].nunique()
    if lacking.empty and (present == len(PARTS)).all():
        return Check("EQ003", "class absent from a part", "none")
    places = "; ".join(f"repeat {repeat} fold {fold} {part}" for repeat, fold, part in lacking.index[:5])
    return Check("EQ003", "class absent from a part", "finding", places or "a part is empty")


def _leak_text(rows: pd.DataFrame, column: str, noun: str, value: str, where: str, fold: int, repeat: int) -> str:
    counts = rows.loc[rows[column] == value, "part"].value_counts()
    spread = " and ".join(f"{part} ({counts[part]} images)" for part in PARTS if part in counts)
    shown = value if noun == "patient" else f"{value[:12]}..."
    return (
        f"{noun} '{shown}' is in {spread} of {where}, repeat {repeat}, fold {fold}. A {noun} must be in exactly one "
        f'part. Run "equipoise split"; if the file was edited by hand, restore it with "dvc checkout".'
    )
