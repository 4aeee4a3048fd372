"""tune -> plan -> fit -> calibrate -> predict, for one study, backbone and scenario."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from equipoise.core import parallel
from equipoise.core.config import Settings, Study
from equipoise.core.documents import (
    Calibration,
    Choices,
    RoundChoice,
    ScenarioSummary,
    ServedModel,
    Timing,
)
from equipoise.core.errors import ConfigError
from equipoise.core.files import digest_of, write_table
from equipoise.core.records import (
    CALIBRATED,
    RAW,
    Predictions,
    probability_table,
)
from equipoise.embed import imported
from equipoise.evaluation import calibration, metrics
from equipoise.evaluation.calibration import Calibrator
from equipoise.scenario import artifact, finetune, head, tuning
from equipoise.scenario.artifact import ServedParts
from equipoise.scenario.kept import Kept
from equipoise.scenario.matrix import Inputs, TrainMatrix, mixed
from equipoise.scenario.searches import SearchStore
from equipoise.scenario.summary import evaluate, summarise
from equipoise.split import checks
from equipoise.strategies import base as strategies
from equipoise.strategies.base import Plan, Strategy

#: Stands for the round of the refit on all rows after k-fold, in seeds.
_REFIT = 2**31

#: Beginning of the seed of the inner folds; other draws of a study begin with other numbers.
_INNER_FOLDS = 4

_NOTHING_TO_CALIBRATE_ON = (
    "a class has fewer than 2 train patients, so no inner fold scored any; the threshold is 0.5 or "
    "that of the costs"
)

_EVIDENCE_OF_ONE_MODEL = "exactly the model that made predictions.parquet for the first seed"
_EVIDENCE_OF_REFIT = "out-of-fold predictions of the folds; this model is a refit on all rows"

#: With one BLAS thread rounding does not depend on the number of cores or workers, and these sizes
#: lose no time by it.
_ONE_THREAD = threadpool_limits.wrap(limits=1, user_api="blas")


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


@_ONE_THREAD
def run(study: Study, backbone: str, scenario: str, folder: Path | None = None) -> ScenarioSummary:
    """Run one scenario and write its predictions, metrics, choices, trials, plan and servable model.

    Args:
        study: Name and settings.
        backbone: A backbone whose features are there.
        scenario: Name of a strategy.
        folder: Where to write; the study's result folder when left out.

    Returns:
        What stands in metrics.json.

    Raises:
        ConfigError: For an unknown strategy or metric, and for fine-tuning with several folds.
        DataError: When the parents were not made from the same manifest.
        LeakageError: When the split, or a plan, puts a patient on two sides.
    """
    start = time.time()
    _refuse_unknown_strategies([scenario, *study.scenario_settings])
    inputs = Inputs.read(study, backbone, scenario)
    answers = checks.check_split(inputs.splits, inputs.manifest)
    _refuse_unusable_settings(inputs)
    folder = folder or study.result_path(backbone, scenario)
    rounds = _run_rounds(inputs)
    meta = _meta(inputs)
    predictions = _predictions(inputs, rounds).write(folder / "predictions.parquet")
    trials = _stacked([item.trials for item in rounds])
    write_table(folder / "trials.parquet", trials, meta)
    _write_curves(rounds, folder / "curve.parquet", meta)
    plan = _stacked([item.plan for item in rounds])
    write_table(folder / "plan.parquet", plan, meta)
    plan_answer = checks.written_plan_within_train(plan, inputs.splits)
    answers = _with_answer(answers, plan_answer)
    choices = Choices([item.choice for item in rounds])
    choices.write(folder / "best.json")
    _write_model(inputs, rounds, folder / "model")
    evaluation = evaluate(inputs, predictions, folder)
    summary = summarise(inputs, predictions, evaluation, choices, plan, answers)
    summary.write(folder / "metrics.json")
    # Beside the result, which has the same bytes whenever it is made.
    timing = Timing(start_ms=round(1000 * start), end_ms=round(1000 * time.time()))
    timing.write(study.timing_path(summary.result_digest))
    return summary


@_ONE_THREAD
def predict_in_memory(inputs: Inputs) -> tuple[Predictions, Choices]:
    """Do what `run` does up to the predictions, from inputs that lie in no file.

    The errors are those of `run`. Nothing of a result is written; caches lie below the study's root.

    Args:
        inputs: Images, split and features; they travel to the workers as they are.

    Returns:
        The predictions, and what was chosen in every round.
    """
    _refuse_unknown_strategies([inputs.scenario, *inputs.study.scenario_settings])
    checks.check_split(inputs.splits, inputs.manifest)
    _refuse_unusable_settings(inputs)
    study = inputs.study
    jobs = [(inputs, key) for key in _round_keys(inputs)]
    rounds = parallel.run_jobs(one_round, jobs, _doing(inputs), study.engine, root=study.root)
    checks.written_plan_within_train(_stacked([item.plan for item in rounds]), inputs.splits)
    return _predictions(inputs, rounds), Choices([item.choice for item in rounds])


def _write_curves(rounds: Sequence[RoundResult], path: Path, meta: dict[str, Any]) -> None:
    """Write the losses of fine-tuning; a probe has none, also where a fine-tuning was before."""
    curves = [item.curve for item in rounds if item.curve is not None]
    if curves:
        write_table(path, _stacked(curves), meta)
    else:
        path.unlink(missing_ok=True)


def _refuse_unknown_strategies(names: Iterable[str]) -> None:
    for name in names:
        strategies.load_strategy(name)


def _refuse_unusable_settings(inputs: Inputs) -> None:
    """Raise ConfigError for a metric that these data do not have, or a mode without a model to serve."""
    settings = inputs.study.settings
    num_classes = len(inputs.manifest.classes)
    metrics.load_metric(settings.tune.objective, num_classes)
    metrics.load_metric(settings.compare.primary, num_classes)
    imported.refuse_finetuning(settings, inputs.backbone)
    several_folds = inputs.splits.folds > 1
    if several_folds and settings.train.mode == "finetune":
        raise ConfigError(
            "train.mode: finetune with several folds has no single model to serve: the refit on all "
            "rows is a probe. Use split.scheme: holdout or one published split, or train.mode: probe."
        )
    if _fine_tunes(settings):
        finetune.refuse_unusable_settings(inputs.study)


def _fine_tunes(settings: Settings) -> bool:
    return "finetune" in (settings.train.mode, settings.tune.mode)


def _run_rounds(inputs: Inputs) -> list[RoundResult]:
    """Every repeat, fold and seed, side by side where the engine has several workers."""
    study = inputs.study
    keys = _round_keys(inputs)
    if study.engine.stays_here or len(keys) <= 1:
        return [
            one_round(inputs, key)
            for key in parallel.progress(keys, _doing(inputs), len(keys), "jobs")
        ]
    if _fine_tunes(study.settings):
        image_ids = inputs.splits.table["image_id"].drop_duplicates()
        finetune.compute_activations(inputs, _positions(inputs, image_ids))
    jobs = [(study, inputs.backbone, inputs.scenario, key) for key in keys]
    return parallel.run_jobs(run_round, jobs, _doing(inputs), study.engine, root=study.root)


def _round_keys(inputs: Inputs) -> list[RoundKey]:
    keys = []
    for repeat, fold in inputs.splits.rounds():
        for seed in inputs.study.settings.train.seeds:
            keys.append(RoundKey(repeat, fold, seed))
    return keys


def _doing(inputs: Inputs) -> str:
    """What stands in front of the progress."""
    return f"{inputs.scenario} on {inputs.study.name}, {inputs.backbone}"


def _predictions(inputs: Inputs, rounds: Sequence[RoundResult]) -> Predictions:
    return Predictions(_stacked([item.predictions for item in rounds]), _meta(inputs))


def _stacked(tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    return pd.concat(tables, ignore_index=True)


def _meta(inputs: Inputs) -> dict[str, Any]:
    """What stands in the metadata of every table of a result."""
    return {
        "study": inputs.study.name,
        "backbone": inputs.backbone,
        "scenario": inputs.scenario,
        "classes": list(inputs.manifest.classes),
        "positive_class": inputs.manifest.positive_class,
    }


def _with_answer(answers: Sequence[checks.Check], new: checks.Check) -> list[checks.Check]:
    """The answers with a new one in place of the one that has its code."""
    replaced = []
    for answer in answers:
        same = answer.code == new.code
        replaced.append(new if same else answer)
    return replaced


# --- one round ------------------------------------------------------------------------------------


def run_round(study: Study, backbone: str, scenario: str, key: RoundKey) -> RoundResult:
    """Do `one_round` with inputs that it reads itself, so that files travel to no other process."""
    return one_round(Inputs.read(study, backbone, scenario), key)


@_ONE_THREAD
def one_round(inputs: Inputs, key: RoundKey) -> RoundResult:
    """Choose, fit and calibrate on the train and val rows of one round, and predict val and test.

    Without a val part (k-fold) the calibrator and the threshold come from inner out-of-fold scores
    of train, and test alone is predicted.
    """
    rows = _divide(inputs, key)
    fitted = choose_and_fit(inputs, rows.train)
    model = _final_model(inputs, fitted, rows, key.seed)
    served = _calibrated(inputs, model, _unseen_scores(inputs, fitted, model, rows))
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
class TrainSide:
    """The images that a search and a fit may see, and the seeds of what is drawn from them.

    Attributes:
        images: int (num_images,), positions in the manifest.
        patients: (num_images,), patient of each image.
        seed: Of plans and of the search.
        fold_seed: Of the inner folds; the same for every scenario and every training seed.
        round_name: What the round is called among the searches, for example `fold 0`.
    """

    images: np.ndarray
    patients: np.ndarray
    seed: int
    fold_seed: list[int]
    round_name: str

    @classmethod
    def of(
        cls,
        inputs: Inputs,
        images: np.ndarray,
        patients: np.ndarray,
        seed: int,
        round_seed: list[int],
    ) -> TrainSide:
        """The train side of one round, with seeds made of the training seed and the round."""
        split_seed = inputs.study.settings.split.seed
        return cls(
            images=images,
            patients=patients,
            seed=search_seed(seed, round_seed),
            fold_seed=[split_seed, _INNER_FOLDS, *round_seed],
            round_name=_round_name(inputs, seed, round_seed),
        )


def _round_name(inputs: Inputs, seed: int, round_seed: list[int]) -> str:
    """Name of a round in the journal of searches; repeats and seeds are told where there are several."""
    if round_seed == [_REFIT]:
        name = "refit"
    else:
        repeat, fold = round_seed
        has_repeats = inputs.splits.table["repeat"].nunique() > 1
        name = f"repeat {repeat}, fold {fold}" if has_repeats else f"fold {fold}"
    if len(inputs.study.settings.train.seeds) > 1:
        name += f", seed {seed}"
    return name


def search_seed(seed: int, round_seed: list[int]) -> int:
    """Seed of plans and search of one round, from the training seed and the numbers of the round."""
    sequence = np.random.SeedSequence([seed, *round_seed])
    state = sequence.generate_state(1)
    return int(state[0])


@dataclass(frozen=True)
class _RoundRows:
    """The images of one round, divided.

    Attributes:
        train: What may be learned from.
        images: int (num_predicted,), images outside train as positions in the manifest.
        predicted: Their rows: image_id, patient_id, part, label and overlap.
    """

    train: TrainSide
    images: np.ndarray
    predicted: pd.DataFrame


def _divide(inputs: Inputs, key: RoundKey) -> _RoundRows:
    rows = inputs.splits.round(key.repeat, key.fold)
    images = _positions(inputs, rows["image_id"])
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
    return _RoundRows(train, images[~is_train], predicted)


def _positions(inputs: Inputs, image_ids: pd.Series) -> np.ndarray:
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


def _final_model(inputs: Inputs, fitted: Fitted, rows: _RoundRows, seed: int) -> _Model:
    """The fitted head as it is, or fine-tuned together with the backbone."""
    if inputs.study.settings.train.mode != "finetune":
        features = inputs.rows(rows.images)
        return _Model(fitted.head.logits(features), fitted.head)
    train = rows.train
    chosen = fitted.choice.settings
    task = finetune.Task.of(inputs, chosen, train.images, train.patients, seed)
    tuned = finetune.fine_tune(inputs, task, rows.images)
    return _Model(tuned.logits, tuned.head, tuned.weights, tuned.kept_step, tuned.curve)


@dataclass(frozen=True)
class _UnseenScores:
    """Scores of patients that the scoring model never saw, none of them in test of the round.

    Attributes:
        logits: float64 (num_rows, C).
        labels: int (num_rows,).
        patients: (num_rows,), patient of each row.
        where: What the rows are, in words.
    """

    logits: np.ndarray
    labels: np.ndarray
    patients: np.ndarray
    where: str


def _unseen_scores(
    inputs: Inputs, fitted: Fitted, model: _Model, rows: _RoundRows
) -> _UnseenScores:
    """What calibrator and threshold of a round are made of: val, or in k-fold train out of fold."""
    if "val" in inputs.splits.parts:
        on_val = (rows.predicted["part"] == "val").to_numpy()
        val = rows.predicted[on_val]
        return _UnseenScores(
            logits=model.logits[on_val],
            labels=val["label"].to_numpy(),
            patients=val["patient_id"].to_numpy(),
            where="val",
        )
    return _out_of_fold_scores(inputs, fitted, rows.train)


def _out_of_fold_scores(inputs: Inputs, fitted: Fitted, train: TrainSide) -> _UnseenScores:
    """What the search kept of the chosen settings; no row where nothing was searched."""
    scored = fitted.choice.out_of_fold
    if scored is None:
        num_classes = len(inputs.manifest.classes)
        nothing = np.empty((0, num_classes))
        scored = tuning.OutOfFold(np.arange(0), nothing)
    is_slice = inputs.study.settings.tune.mode == "finetune"
    return _UnseenScores(
        logits=scored.logits,
        labels=inputs.labels(train.images[scored.rows]),
        patients=train.patients[scored.rows],
        where="the slice of train" if is_slice else "train (out of fold)",
    )


def _calibrated(inputs: Inputs, model: _Model, unseen: _UnseenScores) -> ServedParts:
    """The model with calibrator and threshold."""
    calibrator = _fit_calibrator(inputs, unseen)
    threshold = _lock_threshold(inputs, calibrator, unseen)
    return ServedParts(model.head, model.backbone_weights, calibrator, threshold)


def _fit_calibrator(inputs: Inputs, unseen: _UnseenScores) -> Calibrator:
    if not len(unseen.logits):
        num_classes = len(inputs.manifest.classes)
        return Calibrator.identity(num_classes, _NOTHING_TO_CALIBRATE_ON)
    min_patients = inputs.study.settings.calibrate.min_patients
    return Calibrator.fit(unseen.logits, unseen.labels, unseen.patients, min_patients, unseen.where)


def _lock_threshold(inputs: Inputs, calibrator: Calibrator, unseen: _UnseenScores) -> float | None:
    """The operating point on calibrated probabilities; None for more than two classes."""
    if len(inputs.manifest.classes) > 2:
        return None
    settings = inputs.study.settings
    positive = inputs.positive
    prob = calibrator.apply(unseen.logits)[:, positive]
    is_positive = unseen.labels == positive
    floor = settings.tune.sensitivity_floor
    return calibration.lock_threshold(prob, is_positive, settings.threshold, floor)


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
        calibrator=_calibration(served.calibrator),
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


def _calibration(calibrator: Calibrator) -> Calibration:
    biases = calibrator.biases.tolist()
    return Calibration(slope=calibrator.slope, biases=biases, reason=calibrator.reason)


# --- search and fit -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Fitted:
    """A chosen and fitted head with everything that led to it.

    Attributes:
        choice: What the search chose.
        plan: The draws trained on; its rows are places in `images`.
        plan_counts: int (C,), draws per class.
        images: int (num_images,), train images as positions in the manifest.
        head: Fitted on the plan.
    """

    choice: tuning.Choice
    plan: Plan
    plan_counts: np.ndarray
    images: np.ndarray
    head: head.Head


def choose_and_fit(inputs: Inputs, train: TrainSide) -> Fitted:
    """Search on train images, then plan and fit the head with what was chosen."""
    strategy = strategies.load_strategy(inputs.scenario)
    _refuse_fine_tuning_of_a_probe(inputs, strategy)
    matrix = inputs.train_matrix(train.images, train.patients)
    choice = search_train_rows(inputs, strategy, matrix, train)
    chosen = strategy.of(choice.settings)
    rows = matrix.train_rows(train.seed)
    plan = chosen.plan(rows)
    strategies.plan_within_train(plan, len(train.images))
    plan_counts = plan.counts(matrix.image_labels, matrix.num_classes)
    draws = matrix.draws(plan)[:, None]
    features, labels, draws = matrix.with_mixed(matrix.features, draws, [mixed(plan)])
    solved = head.fit(
        features,
        labels,
        draws[:, 0],
        objective=chosen.objective(plan_counts),
        l2=choice.settings["l2"],
        standardiser=matrix.standardiser,
        kept=Kept(inputs.study.cache_path / "fits"),
    )
    return Fitted(choice, plan, plan_counts, train.images, solved)


def _refuse_fine_tuning_of_a_probe(inputs: Inputs, strategy: type[Strategy]) -> None:
    settings = inputs.study.settings
    if strategy.PROBE_ONLY and _fine_tunes(settings):
        raise ConfigError(
            f"Scenario '{inputs.scenario}' {strategy.PROBE_ONLY}, so it cannot be fine-tuned; "
            f"set train.mode and tune.mode to probe."
        )


def search_train_rows(
    inputs: Inputs, strategy: type[Strategy], matrix: TrainMatrix, train: TrainSide
) -> tuning.Choice:
    """Search the strategy's settings and the penalty inside train; finished batches are read back."""
    study = inputs.study
    store = SearchStore(
        batches=study.cache_path / "searches",
        journal=study.root / "data/searches.log",
        name=f"{study.name}/{inputs.backbone}/{inputs.scenario}/{train.round_name}",
        data_digest=_train_digest(inputs, train.images),
    )
    return tuning.tune(
        matrix,
        strategy,
        fixed=study.scenario_settings.get(inputs.scenario, {}),
        settings=study.settings.tune,
        seed=train.seed,
        fold_seed=train.fold_seed,
        store=store,
        trainer=_trainer(inputs, train),
    )


def _train_digest(inputs: Inputs, images: np.ndarray) -> str:
    """Names everything that a search reads beside its own settings."""
    parents = [inputs.manifest.digest, inputs.splits.digest, inputs.store.digest]
    rows = digest_of([*parents, images])
    settings = inputs.study.settings
    if settings.tune.mode != "finetune":
        return rows
    training = settings.sections("finetune", "augment", "embed")
    return digest_of([rows, training, settings.split.seed])


def _trainer(inputs: Inputs, train: TrainSide) -> finetune.Trials | None:
    """Trains the trials end to end where `tune.mode` says so; None solves heads on the features."""
    if inputs.study.settings.tune.mode != "finetune":
        return None
    return finetune.Trials(inputs, train.images, train.patients, train.seed)


# --- the model that would be registered -----------------------------------------------------------


def _write_model(inputs: Inputs, rounds: Sequence[RoundResult], folder: Path) -> None:
    """Write the model folder: the model of the first seed, or after several folds a refit on all rows."""
    first_seed = inputs.study.settings.train.seeds[0]
    of_first_seed = [item for item in rounds if item.key.seed == first_seed]
    first_rounds = [item for item in of_first_seed if item.key.repeat == 0]
    if inputs.splits.folds == 1:
        served = first_rounds[0].served
        evidence = _EVIDENCE_OF_ONE_MODEL
    else:
        served = _refit_on_all_rows(inputs, first_rounds, first_seed)
        evidence = _EVIDENCE_OF_REFIT
        _write_refit_predictions(inputs, served, folder)
    description = _description(inputs, served, evidence)
    artifact.write(folder, served, description)


def _refit_on_all_rows(inputs: Inputs, rounds: Sequence[RoundResult], seed: int) -> ServedParts:
    """Search and fit on every image; calibrator and threshold come from the pooled test scores."""
    image_ids = inputs.manifest.table["image_id"]
    images = np.arange(len(image_ids))
    groups = inputs.splits.round(0, 0).set_index("image_id")
    patients = groups.loc[image_ids, "patient_id"].to_numpy()
    train = TrainSide.of(inputs, images, patients, seed, round_seed=[_REFIT])
    fitted = choose_and_fit(inputs, train)
    pooled = _pooled_test_scores(rounds)
    calibrator = _fit_calibrator(inputs, pooled)
    threshold = _lock_threshold(inputs, calibrator, pooled)
    return ServedParts(fitted.head, None, calibrator, threshold)


def _pooled_test_scores(rounds: Sequence[RoundResult]) -> _UnseenScores:
    """The test scores of the folds of one repeat and seed: every patient once, by a head that never saw them."""
    predictions = _stacked([item.predictions for item in rounds])
    logits = np.concatenate([item.logits for item in rounds])
    on_test = (predictions["part"] == "test").to_numpy()
    test = predictions[on_test]
    return _UnseenScores(
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
        calibrator=_calibration(served.calibrator),
        threshold=served.threshold,
        evidence=evidence,
    )
