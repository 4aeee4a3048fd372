"""The model that would be registered: that of the first seed, or after several folds a refit on all rows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from equipoise.core.documents import ServedModel
from equipoise.scenario import artifact, fitting, locking
from equipoise.scenario.artifact import ServedParts
from equipoise.scenario.fitting import TrainSide
from equipoise.scenario.locking import UnseenScores
from equipoise.scenario.matrix import Inputs
from equipoise.scenario.rounds import RoundResult

_EVIDENCE_OF_ONE_MODEL = "exactly the model that made predictions.parquet for the first seed"
_EVIDENCE_OF_REFIT = "out-of-fold predictions of the folds; this model is a refit on all rows"


def write(inputs: Inputs, rounds: Sequence[RoundResult], folder: Path) -> None:
    """Write the model folder: the model of the first seed, or after several folds a refit on all rows."""
    first_seed = inputs.study.settings.train.seeds[0]
    of_first_seed = [item for item in rounds if item.key.seed == first_seed]
    first_rounds = [item for item in of_first_seed if item.key.repeat == 0]
    if inputs.splits.folds == 1:
        served = first_rounds[0].served
        evidence = _EVIDENCE_OF_ONE_MODEL
    else:
        served = _refit(inputs, first_rounds, first_seed)
        evidence = _EVIDENCE_OF_REFIT
        _write_refit_predictions(inputs, served, folder)
    description = _description(inputs, served, evidence)
    artifact.write(folder, served, description)


def _refit(inputs: Inputs, rounds: Sequence[RoundResult], seed: int) -> ServedParts:
    """Search and fit on every image; calibrator and threshold come from the pooled test scores."""
    image_ids = inputs.manifest.table["image_id"]
    images = np.arange(len(image_ids))
    groups = inputs.splits.round(0, 0).set_index("image_id")
    patients = groups.loc[image_ids, "patient_id"].to_numpy()
    train = TrainSide.of(inputs, images, patients, seed, round_seed=[fitting.REFIT])
    fitted = fitting.choose_and_fit(inputs, train)
    pooled = _pooled_test_scores(rounds)
    calibrator, threshold = locking.lock(inputs, pooled)
    return ServedParts(fitted.head, None, calibrator, threshold)


def _pooled_test_scores(rounds: Sequence[RoundResult]) -> UnseenScores:
    """The test scores of the folds of one repeat and seed: every patient once, by a head that never saw them."""
    tables = [item.predictions for item in rounds]
    predictions = pd.concat(tables, ignore_index=True)
    logits = np.concatenate([item.logits for item in rounds])
    on_test = (predictions["part"] == "test").to_numpy()
    test = predictions[on_test]
    return UnseenScores(
        logits=logits[on_test],
        labels=test["label"].to_numpy(),
        patients=test["patient_id"].to_numpy(),
        where="test (out of fold)",
    )


def _write_refit_predictions(inputs: Inputs, served: ServedParts, folder: Path) -> None:
    """Write what service must reproduce: no other stored prediction is of the refit."""
    manifest = inputs.manifest
    image_ids = manifest.table["image_id"]
    features = inputs.rows(np.arange(len(image_ids)))
    logits = served.head.logits(features)
    calibrated = served.calibrator.apply(logits)
    artifact.write_refit_predictions(folder, image_ids, calibrated, manifest.classes)


def _description(inputs: Inputs, served: ServedParts, evidence: str) -> ServedModel:
    """What stands in model.json."""
    features = inputs.store.meta
    return ServedModel(
        backbone=features["backbone"],
        weights=features["weights"],
        weights_digest=features["weights_digest"],
        image_size_px=features["image_size_px"],
        pipeline=features["pipeline"],
        num_features=inputs.store.matrix.shape[1],
        classes=list(inputs.manifest.classes),
        positive_class=inputs.manifest.positive_class,
        calibrator=locking.written(served.calibrator),
        threshold=served.threshold,
        evidence=evidence,
    )
