"""Parts of the test rows, measured like the whole: by a column of the dataset, and each of several classes."""

from __future__ import annotations

import numpy as np

from equipoise.core.config import Compare
from equipoise.core.documents import MeasuredMetric, MetricTable, Subgroup
from equipoise.core.records import Manifest, Predictions
from equipoise.evaluation import intervals
from equipoise.evaluation.metrics import Endpoint

#: Below so many patients the numbers of a subgroup are marked.
FEW_PATIENTS = 10

#: A column of the manifest divides test images into subgroups when it has this many values.
_FEWEST_VALUES = 2
_MOST_VALUES = 12


def subgroups(
    predictions: Predictions, manifest: Manifest, settings: Compare, sensitivity_floor: float
) -> list[Subgroup]:
    """Numbers for each value of the dataset's own columns (magnification, tumour type, bacteria or virus).

    A column counts when it has 2 to 12 values among the test images and is neither an id nor the published split. A
    subgroup that lacks a class (bacteria have no healthy films) is compared with all test images of that class, for
    the AUROC; of sensitivity and specificity only the one about its own images is given.
    """
    test = predictions.part("test")
    by_image = manifest.table.set_index("image_id")
    described = by_image.loc[test.table["image_id"]].reset_index()
    groups = []
    for column in _describing_columns(manifest):
        values = described[column].dropna().unique().tolist()
        if not _FEWEST_VALUES <= len(values) <= _MOST_VALUES:
            continue
        for value in sorted(values):
            is_inside = described[column] == value
            group = _subgroup(
                test,
                is_inside.to_numpy(),
                column,
                str(value),
                settings,
                sensitivity_floor,
            )
            groups.append(group)
    return groups


def _describing_columns(manifest: Manifest) -> list[str]:
    """Columns that only this dataset has, without the ways to read its patients and the published split."""
    readings = manifest.meta.get("readings", ())
    known = {*Manifest.COLUMNS, *readings, "official_split"}
    return [name for name in manifest.table.columns if name not in known]


def _subgroup(
    test: Predictions,
    inside: np.ndarray,
    column: str,
    value: str,
    settings: Compare,
    sensitivity_floor: float,
) -> Subgroup:
    rows = test.table[inside]
    images = rows.drop_duplicates("image_id")
    patients = int(images["patient_id"].nunique())
    labels = test.table["label"]
    lacking = sorted(set(labels) - set(rows["label"]))
    by_label = images.groupby("label")["patient_id"].nunique()
    patients_per_class = {}
    for label, name in enumerate(test.classes):
        patients_per_class[name] = int(by_label.get(label, 0))
    group = Subgroup(
        column=column,
        value=value,
        images=len(images),
        patients=patients,
        patients_per_class=patients_per_class,
        few=patients < FEW_PATIENTS,
        against=" and ".join(f"all of {test.classes[label]}" for label in lacking),
    )
    compared = inside | labels.isin(lacking).to_numpy()
    numbers = _subgroup_numbers(test, compared, lacking, settings, sensitivity_floor)
    return group.model_copy(update=numbers)


def _subgroup_numbers(
    test: Predictions,
    compared: np.ndarray,
    lacking: list[int],
    settings: Compare,
    sensitivity_floor: float,
) -> dict[str, MeasuredMetric | None]:
    """Metric -> its number on the compared rows, None where it would not be about the subgroup's own images."""
    binary = len(test.classes) == 2
    endpoints = [Endpoint("free", "auroc"), Endpoint("raw", "patient_recognition_rate")]
    for metric in ("sensitivity", "specificity") if binary else ("accuracy",):
        endpoints.append(Endpoint("locked", metric))
    numbers: dict[str, MeasuredMetric | None] = dict.fromkeys(
        endpoint.metric for endpoint in endpoints
    )
    if lacking and not binary:
        return numbers
    table = test.table[compared].reset_index(drop=True)
    rows = Predictions(table, test.meta)
    evaluation = intervals.evaluate(rows, settings, sensitivity_floor, endpoints)
    for by_metric in evaluation.table().values():
        numbers.update(by_metric)
    if lacking:
        # These would speak of the images that were added.
        of_added = "sensitivity" if test.positive_label in lacking else "specificity"
        numbers[of_added] = None
        numbers["patient_recognition_rate"] = None
    return numbers


def per_class(
    predictions: Predictions, settings: Compare, sensitivity_floor: float
) -> dict[str, MetricTable]:
    """Class -> numbers of it against the rest; empty for two classes."""
    if len(predictions.classes) == 2:
        return {}
    endpoints = [Endpoint("free", "auroc"), Endpoint("free", "average_precision")]
    for point in ("raw", "locked"):
        for metric in (
            "sensitivity",
            "specificity",
            "precision",
            "negative_predictive_value",
            "f1",
        ):
            endpoints.append(Endpoint(point, metric))
    tables = {}
    for label, name in enumerate(predictions.classes):
        evaluation = intervals.evaluate(
            predictions, settings, sensitivity_floor, endpoints, one_class=label
        )
        tables[name] = evaluation.table()
    return tables
