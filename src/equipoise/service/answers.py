"""Logits -> what a served model answers: calibrated probabilities and a decision."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from equipoise.core.documents import ServedModel
from equipoise.core.records import probability_table
from equipoise.evaluation.calibration import Calibrator
from equipoise.evaluation.metrics import softmax
from equipoise.evaluation.sample import decide

#: Beginnings of the columns of an answer.
#: Beware: `prob_<class>` is calibrated in an answer, and raw in stored predictions.
ANSWERED_CALIBRATED = "prob"
ANSWERED_RAW = "raw"


@dataclass(frozen=True)
class Answers:
    """The end of every served model, whatever its input is.

    Attributes:
        classes: Class names; a label is an index into them.
        positive: Label of the positive class.
        calibrator: Probabilities from logits.
        threshold: Locked operating point; None where the most probable class decides.
    """

    classes: list[str]
    positive: int
    calibrator: Calibrator
    threshold: float | None

    @classmethod
    def of(cls, description: ServedModel) -> Answers:
        """Of what model.json holds."""
        return cls(
            classes=description.classes,
            positive=description.classes.index(description.positive_class),
            calibrator=Calibrator.from_dict(description.calibrator.as_dict()),
            threshold=description.threshold,
        )

    def table(self, logits: np.ndarray) -> pd.DataFrame:
        """Answer for logits, float64 (num_rows, num_classes).

        Returns:
            A row for each: `prob_<class>` (calibrated) and `raw_<class>`; `decision`, the class
            decided for, and `label`, its number; the `threshold` used, NaN where the most probable
            class decides.
        """
        calibrated = self.calibrator.apply(logits)
        raw = softmax(logits)
        cut = 0.5 if self.threshold is None else self.threshold
        labels = np.asarray(decide(calibrated, self.positive, cut), dtype=np.int64)
        table = pd.concat(
            [
                probability_table(ANSWERED_CALIBRATED, calibrated, self.classes),
                probability_table(ANSWERED_RAW, raw, self.classes),
            ],
            axis=1,
        )
        table["decision"] = [self.classes[label] for label in labels]
        table["label"] = labels
        table["threshold"] = np.nan if self.threshold is None else self.threshold
        return table
