"""Everything that is measured on the test rows of one result: images, patients, subgroups and classes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

from equipoise.core.config import Compare, Settings, Threshold
from equipoise.core.documents import MetricTable, Subgroup
from equipoise.core.records import Manifest, Predictions
from equipoise.evaluation import intervals
from equipoise.evaluation.intervals import Evaluation
from equipoise.evaluation.patients import RULES, measured_by_patient
from equipoise.evaluation.subgroups import per_class, subgroups


class Conditions(NamedTuple):
    """How test rows are measured: resamples, the rule of the threshold, its sensitivity (0..1), and what counts once.

    `units` is "patients", or "images" where there are no patient ids.
    """

    compare: Compare
    threshold: Threshold
    sensitivity_floor: float
    units: str

    @classmethod
    def of(cls, settings: Settings, manifest: Manifest) -> Self:
        """The conditions of a study on these images."""
        has_patient_ids = manifest.meta.get("patient_ids", True)
        return cls(
            compare=settings.compare,
            threshold=settings.threshold,
            sensitivity_floor=settings.tune.sensitivity_floor,
            units="patients" if has_patient_ids else "images",
        )


@dataclass(frozen=True)
class KeptNumbers:
    """All numbers of one result, as read from a file.

    Attributes:
        images: Of all test rows.
        patients: Rule -> of patients instead of images; empty without patient ids, and a rule is absent where those who
            show several classes left a class without any patient.
        subgroups: By the dataset's own columns.
        per_class: Of more than two classes, each against the rest; empty for two.
    """

    images: Evaluation
    patients: dict[str, Evaluation]
    subgroups: list[Subgroup]
    per_class: dict[str, MetricTable]


@dataclass(frozen=True, eq=False)
class FreshNumbers:
    """The same numbers, each group of them measured when it is asked for first.

    All are resampled with the same patients. Asking raises a DataError where the predictions cannot be evaluated.
    """

    predictions: Predictions
    manifest: Manifest
    conditions: Conditions

    @cached_property
    def images(self) -> Evaluation:
        """Of all test rows."""
        return intervals.evaluate(
            self.predictions,
            self.conditions.compare,
            self.conditions.sensitivity_floor,
            cost_ratio=self.conditions.threshold.cost_ratio,
        )

    @cached_property
    def patients(self) -> dict[str, Evaluation]:
        """As of `KeptNumbers`."""
        if self.conditions.units != "patients":
            return {}
        evaluations = {}
        for rule in RULES:
            people = measured_by_patient(
                self.predictions,
                rule,
                self.conditions.threshold,
                self.conditions.compare,
                self.conditions.sensitivity_floor,
            )
            if people.evaluation is not None:
                evaluations[rule] = people.evaluation
        return evaluations

    @cached_property
    def subgroups(self) -> list[Subgroup]:
        """By the dataset's own columns."""
        settings = self.conditions.compare
        return subgroups(
            self.predictions, self.manifest, settings, self.conditions.sensitivity_floor
        )

    @cached_property
    def per_class(self) -> dict[str, MetricTable]:
        """Of more than two classes, each against the rest; empty for two."""
        settings = self.conditions.compare
        return per_class(self.predictions, settings, self.conditions.sensitivity_floor)


#: The numbers of a result, wherever they come from.
Numbers = KeptNumbers | FreshNumbers
