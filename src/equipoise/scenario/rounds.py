"""One round: a repeat and a fold of the split and a seed of the training, from its rows to its predictions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from equipoise.core.config import Study
from equipoise.core.documents import RoundChoice
from equipoise.core.records import CALIBRATED, RAW, probability_table
from equipoise.evaluation import metrics
from equipoise.scenario import fitting, locking, tuning
from equipoise.scenario.artifact import ServedParts
from equipoise.scenario.finetuning import finetune
from equipoise.scenario.fitting import Fitted, TrainSide
from equipoise.scenario.heads import head
from equipoise.scenario.locking import UnseenScores
from equipoise.scenario.matrix import Inputs
from equipoise.split import checks
from equipoise.strategies import base as strategies

#: With one BLAS thread rounding does not depend on the number of cores or workers, and these sizes
#: lose no time by it.
one_blas_thread = threadpool_limits.wrap(limits=1, user_api="blas")


@dataclass(frozen=True)
class RoundKey:
    """Names one fit: a repeat and a fold of the split, and a seed of the training."""

    repeat: int
    fold: int
    seed: int


@dataclass(frozen=True)
class RoundResult:
    """What one repeat, fold and seed gives; travels between processes.

    Attributes:
        key: Which round it is.
        predictions: Rows of val, where there is one, and test, in the columns of predictions.parquet.
        logits: float64 (num_rows, C), in the order of `predictions`.
        plan: The rows trained on, in the columns of plan.parquet.
        trials: Every trial of the search, in the columns of trials.parquet.
        choice: What was chosen: an entry of best.json.
        served: The model of this round.
        curve: Losses of its fine-tuning, in the columns of curve.parquet; None for a probe.
    """

    key: RoundKey
    predictions: pd.DataFrame
    logits: np.ndarray
    plan: pd.DataFrame
    trials: pd.DataFrame
    choice: RoundChoice
    served: ServedParts
    curve: pd.DataFrame | None


def run_round(study: Study, backbone: str, scenario: str, key: RoundKey) -> RoundResult:
    """Do `one_round` with inputs that it reads itself, so that files travel to no other process."""
    return one_round(Inputs.read(study, backbone, scenario), key)


@one_blas_thread
def one_round(inputs: Inputs, key: RoundKey) -> RoundResult:
    """Choose, fit and calibrate on the train and val rows of one round, and predict val and test.

    Without a val part (k-fold) the calibrator and the threshold come from inner out-of-fold scores
    of train, and test alone is predicted.
    """
    rows = divide(inputs, key)
    fitted = fitting.choose_and_fit(inputs, rows.train)
    model = _final_model(inputs, fitted, rows, key.seed)
    unseen = _unseen_scores(inputs, fitted, model, rows)
    calibrator, threshold = locking.lock(inputs, unseen)
    served = ServedParts(model.head, model.backbone_weights, calibrator, threshold)
    classes = inputs.manifest.classes
    trials = fitted.choice.trials
    return RoundResult(
        key=key,
        predictions=_prediction_table(key, rows.predicted, classes, model.logits, served),
        logits=model.logits,
        plan=_plan_table(inputs, fitted, key),
        trials=_of_round(trials, key),
        choice=_round_choice(inputs, fitted, key, served, model.kept_step),
        served=served,
        curve=None if model.curve is None else _of_round(model.curve, key),
    )


def _of_round(table: pd.DataFrame, key: RoundKey) -> pd.DataFrame:
    """A table with the columns that name its round."""
    return table.assign(repeat=key.repeat, fold=key.fold, seed=key.seed)


@dataclass(frozen=True)
class RoundRows:
    """The images of one round, divided.

    Attributes:
        train: What may be learned from.
        images: int (num_predicted,), images outside train as positions in the manifest.
        predicted: Their rows: image_id, patient_id, part, label and overlap.
    """

    train: TrainSide
    images: np.ndarray
    predicted: pd.DataFrame


def divide(inputs: Inputs, key: RoundKey) -> RoundRows:
    """The rows of a round: what may be learned from, and what is predicted."""
    rows = inputs.splits.round(key.repeat, key.fold)
    images = positions(inputs, rows["image_id"])
    pictures = inputs.manifest.table["picture"].to_numpy()
    overlap = checks.overlapping(rows, pictures[images])
    rows = rows.assign(label=inputs.labels(images), overlap=overlap)
    is_train = (rows["part"] == "train").to_numpy()
    patients = rows["patient_id"].to_numpy()
    train = TrainSide.of(
        inputs,
        images=images[is_train],
        patients=patients[is_train],
        seed=key.seed,
        round_seed=[key.repeat, key.fold],
    )
    predicted = rows[~is_train].reset_index(drop=True)
    return RoundRows(train, images[~is_train], predicted)


def positions(inputs: Inputs, image_ids: pd.Series) -> np.ndarray:
    """Rows of the manifest that hold the images, int (num_images,)."""
    known_ids = inputs.manifest.table["image_id"]
    numbers = np.arange(len(known_ids))
    position_of = pd.Series(numbers, index=known_ids)
    return position_of.loc[image_ids].to_numpy()


@dataclass(frozen=True)
class _Model:
    """The final model of a round, before its calibrator.

    Attributes:
        logits: float64 (num_predicted, C), what it says about the images outside train.
        head: Its head.
        backbone_weights: Tuned weights of the backbone; None for a probe.
        kept_step: Step of the fine-tuning that the weights are of; None for a probe.
        curve: Its losses by step; None for a probe.
    """

    logits: np.ndarray
    head: head.Head
    backbone_weights: list[np.ndarray] | None = None
    kept_step: int | None = None
    curve: pd.DataFrame | None = None


def _final_model(inputs: Inputs, fitted: Fitted, rows: RoundRows, seed: int) -> _Model:
    """The fitted head as it is, or fine-tuned together with the backbone."""
    if inputs.study.settings.train.mode != "finetune":
        features = inputs.rows(rows.images)
        return _Model(fitted.head.logits(features), fitted.head)
    train = rows.train
    chosen = fitted.choice.settings
    task = finetune.Task.of(inputs, chosen, train.images, train.patients, seed)
    tuned = finetune.fine_tune(inputs, task, rows.images)
    return _Model(tuned.logits, tuned.head, tuned.weights, tuned.kept_step, tuned.curve)


def _unseen_scores(inputs: Inputs, fitted: Fitted, model: _Model, rows: RoundRows) -> UnseenScores:
    """What calibrator and threshold of a round are made of: val, or in k-fold train out of fold."""
    if "val" in inputs.splits.parts:
        on_val = (rows.predicted["part"] == "val").to_numpy()
        val = rows.predicted[on_val]
        return UnseenScores(
            logits=model.logits[on_val],
            labels=val["label"].to_numpy(),
            patients=val["patient_id"].to_numpy(),
            where="val",
        )
    return _out_of_fold_scores(inputs, fitted, rows.train)


def _out_of_fold_scores(inputs: Inputs, fitted: Fitted, train: TrainSide) -> UnseenScores:
    """What the search kept of the chosen settings; no row where nothing was searched."""
    scored = fitted.choice.out_of_fold
    if scored is None:
        num_classes = len(inputs.manifest.classes)
        nothing = np.empty((0, num_classes))
        scored = tuning.OutOfFold(np.arange(0), nothing)
    is_slice = inputs.study.settings.tune.mode == "finetune"
    return UnseenScores(
        logits=scored.logits,
        labels=inputs.labels(train.images[scored.rows]),
        patients=train.patients[scored.rows],
        where="the slice of train" if is_slice else "train (out of fold)",
    )


def _prediction_table(
    key: RoundKey,
    predicted: pd.DataFrame,
    classes: Sequence[str],
    logits: np.ndarray,
    served: ServedParts,
) -> pd.DataFrame:
    """Rows of predictions.parquet."""
    threshold = np.nan if served.threshold is None else served.threshold
    rows = pd.DataFrame(
        {
            "image_id": predicted["image_id"],
            "patient_id": predicted["patient_id"],
            "repeat": key.repeat,
            "fold": key.fold,
            "seed": key.seed,
            "part": predicted["part"],
            "label": predicted["label"],
            "overlap": predicted["overlap"],
            "threshold": threshold,
        }
    )
    raw = metrics.softmax(logits)
    calibrated = served.calibrator.apply(logits)
    raw_columns = probability_table(RAW, raw, classes)
    calibrated_columns = probability_table(CALIBRATED, calibrated, classes)
    return pd.concat([rows, raw_columns, calibrated_columns], axis=1)


def _plan_table(inputs: Inputs, fitted: Fitted, key: RoundKey) -> pd.DataFrame:
    """Rows of plan.parquet."""
    plan = fitted.plan
    image_ids = inputs.manifest.table["image_id"].to_numpy()
    image_ids = image_ids[fitted.images]
    return pd.DataFrame(
        {
            "image_id": image_ids[plan.row],
            "view": plan.view,
            "repeat": key.repeat,
            "fold": key.fold,
            "seed": key.seed,
            "partner_id": image_ids[plan.partner],
            "mix": plan.mix,
            "weight": plan.weight,
        }
    )


def _round_choice(
    inputs: Inputs, fitted: Fitted, key: RoundKey, served: ServedParts, kept_step: int | None
) -> RoundChoice:
    """An entry of best.json."""
    labels = inputs.labels(fitted.images)
    num_classes = len(inputs.manifest.classes)
    train_counts = np.bincount(labels, minlength=num_classes)
    settings = fitted.choice.settings
    fixed = inputs.study.scenario_settings.get(inputs.scenario, {})
    strategy = strategies.load_strategy(inputs.scenario)
    choice = RoundChoice(
        repeat=key.repeat,
        fold=key.fold,
        seed=key.seed,
        settings=settings,
        switched_off=strategy.switched_off(settings, fixed),
        **fitted.choice.summary.as_dict(),
        train_counts=train_counts.tolist(),
        plan_counts=fitted.plan_counts.tolist(),
        gradient_norm=fitted.head.gradient_norm,
        calibrator=locking.written(served.calibrator),
        threshold=served.threshold,
    )
    update: dict[str, Any] = {}
    if kept_step is not None:
        update["kept_step"] = kept_step
    # With one test part the inner score chooses the winner, and is held against the baseline's for that.
    scheme = inputs.splits.meta["settings"]["split"]["scheme"]
    if scheme != "kfold" and fitted.choice.inner_draws is not None:
        update["inner_draws"] = fitted.choice.inner_draws().tolist()
    return choice.model_copy(update=update)
