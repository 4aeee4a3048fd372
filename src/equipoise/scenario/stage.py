"""tune -> plan -> fit -> calibrate -> predict, for one study, backbone and scenario."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from threadpoolctl import threadpool_limits

from equipoise.core import parallel
from equipoise.core.config import SCENARIO_SECTIONS, Study
from equipoise.core.errors import ConfigError
from equipoise.core.files import atomic_path, digest_of, write_json, write_table
from equipoise.core.records import PARTS, Predictions, class_table, minority_labels
from equipoise.evaluation import calibration, intervals, metrics, openings
from equipoise.evaluation.calibration import Calibrator
from equipoise.scenario import head, tuning
from equipoise.scenario.matrix import Inputs, mixed
from equipoise.split import checks
from equipoise.strategies import base
from equipoise.strategies import base as strategies
from equipoise.strategies.base import Plan

#: Stands for the round of the refit on all rows after k-fold, in seeds.
_REFIT = 2**31


#: With one BLAS thread rounding does not depend on the number of cores or workers, and these sizes lose no time by it.
_ONE_THREAD = threadpool_limits.wrap(limits=1, user_api="blas")


@dataclass(frozen=True)
class Fitted:
    """A chosen and fitted model with everything that led to it."""

    choice: tuning.Choice
    plan: Plan
    plan_counts: np.ndarray
    images: np.ndarray
    head: head.Head


@_ONE_THREAD
def run(study: Study, backbone: str, scenario: str, folder: Path | None = None) -> dict[str, Any]:
    """Run one scenario and write its predictions, metrics, choices, trials, plan and servable model.

    Args:
        study: Name and settings.
        backbone: A backbone whose features are there.
        scenario: Name of a strategy.
        folder: Where to write; the study's result folder when left out.

    Returns:
        The contents of metrics.json.
    """
    for name in (scenario, *study.scenario_settings):
        strategies.load_strategy(name)
    inputs = Inputs.read(study, backbone, scenario)
    found = checks.run(inputs.splits, inputs.manifest)
    for name in (study.settings.tune.objective, study.settings.compare.primary):
        metrics.load_metric(name, len(inputs.manifest.classes))
    if study.settings.train.mode == "finetune" and inputs.splits.folds > 1:
        raise ConfigError(
            "train.mode: finetune with several folds has no single model to serve: the refit on all rows is a "
            "probe. Use holdout or one published split, or train.mode: probe."
        )
    folder = folder or study.result_path(backbone, scenario)
    jobs = [
        (study, backbone, scenario, repeat, fold, seed)
        for repeat, fold in inputs.splits.rounds()
        for seed in study.settings.train.seeds
    ]
    # Rounds that another machine searches are left for the end; most are read back by then.
    rounds: list[dict[str, Any]] = [{}] * len(jobs)
    for wait in (False, True):
        left = [index for index, made in enumerate(rounds) if not made]
        calls = [(*jobs[index], wait) for index in left]
        done = parallel.run_jobs(
            _round, calls, f"{scenario} on {study.name}, {backbone}", study.engine
        )
        for index, made in zip(left, done):
            rounds[index] = made
    meta: dict[str, Any] = {"study": study.name, "backbone": backbone, "scenario": scenario}
    meta |= {
        "classes": list(inputs.manifest.classes),
        "positive_class": inputs.manifest.positive_class,
    }
    predictions = Predictions(
        pd.concat([item["predictions"] for item in rounds], ignore_index=True), meta
    )
    predictions = predictions.write(folder / "predictions.parquet")
    write_table(
        folder / "trials.parquet",
        pd.concat([item["trials"] for item in rounds], ignore_index=True),
        meta,
    )
    plan = pd.concat([item["plan"] for item in rounds], ignore_index=True)
    write_table(folder / "plan.parquet", plan, meta)
    planned = checks.written_plan_within_train(plan, inputs.splits)
    found = [planned if check.code == planned.code else check for check in found]
    choices = [item["choice"] for item in rounds]
    write_json(folder / "best.json", choices)
    _write_served(inputs, rounds, folder / "model")
    summary = _summary(inputs, predictions, choices, plan, found, meta)
    openings.note(summary["digests"]["test"], summary["result_digest"])
    write_json(folder / "metrics.json", summary)
    return summary


@_ONE_THREAD
def _round(
    study: Study, backbone: str, scenario: str, repeat: int, fold: int, seed: int, wait: bool
) -> dict[str, Any]:
    """One repeat, fold and seed; importable, so that it can run in another process. Empty: another one searches it."""
    inputs = Inputs.read(study, backbone, scenario)
    rows = inputs.splits.round(repeat, fold)
    position = pd.Series(
        np.arange(len(inputs.manifest.table)), index=inputs.manifest.table["image_id"]
    )
    images, patients = position.loc[rows["image_id"]].to_numpy(), rows["patient_id"].to_numpy()
    part = rows["part"].to_numpy()
    train, val = part == "train", part == "val"
    try:
        fitted = _choose_and_fit(inputs, images[train], patients[train], seed, [repeat, fold], wait)
    except tuning.Busy:
        return {}
    shown = rows[~train].reset_index(drop=True)
    if study.settings.train.mode == "finetune":
        from equipoise.scenario import finetune

        logits, served, weights, kept_step = finetune.run(
            inputs, fitted.choice.settings, images[train], patients[train], images[~train], seed
        )
    else:
        logits, served, weights, kept_step = (
            fitted.head.logits(inputs.rows(images[~train])),
            fitted.head,
            None,
            None,
        )
    labels = inputs.labels(images[~train])
    on_val = val[~train]
    calibrator, threshold = _calibrate(
        inputs, logits[on_val], labels[on_val], shown["patient_id"].to_numpy()[on_val]
    )
    frame = pd.DataFrame(
        {
            **{name: shown[name] for name in ("image_id", "patient_id")},
            **{
                "repeat": repeat,
                "fold": fold,
                "seed": seed,
                "part": shown["part"],
                "label": labels,
            },
            "overlap": checks.overlapping(
                rows, inputs.manifest.table["picture"].to_numpy()[images]
            )[~train],
            "threshold": np.nan if threshold is None else threshold,
        }
    )
    for kind, values in (
        ("prob", metrics.softmax(logits)),
        ("calibrated", calibrator.apply(logits)),
    ):
        for index, name in enumerate(inputs.manifest.classes):
            frame[f"{kind}_{name}"] = values[:, index]
    round_key = {"repeat": repeat, "fold": fold, "seed": seed}
    drawn, names = fitted.plan, inputs.manifest.table["image_id"].to_numpy()[fitted.images]
    plan = pd.DataFrame({"image_id": names[drawn.row], "view": drawn.view, **round_key})
    plan = plan.assign(partner_id=names[drawn.partner], mix=drawn.mix, weight=drawn.weight)
    choice = {
        **round_key,
        "settings": fitted.choice.settings,
        **fitted.choice.summary,
        "train_counts": np.bincount(
            inputs.labels(images[train]), minlength=len(inputs.manifest.classes)
        ),
        "plan_counts": fitted.plan_counts,
        "gradient_norm": fitted.head.gradient_norm,
        **({} if kept_step is None else {"kept_step": kept_step}),
        "calibrator": calibrator.as_dict(),
        "threshold": threshold,
    }
    return {
        **{
            "predictions": frame,
            "logits": logits,
            "plan": plan,
            "trials": fitted.choice.trials.assign(**round_key),
        },
        **{
            "choice": choice,
            "head": served,
            "weights": weights,
            "calibrator": calibrator,
            "threshold": threshold,
        },
    }


def _choose_and_fit(
    inputs: Inputs,
    images: np.ndarray,
    patients: np.ndarray,
    seed: int,
    round_seed: list[int],
    wait: bool = True,
) -> Fitted:
    """Tune on train images, then plan and fit the head with what was chosen."""
    settings = inputs.study.settings
    matrix = inputs.train_matrix(images, patients)
    strategy = strategies.load_strategy(inputs.scenario)
    if strategy.PROBE_ONLY and "finetune" in (settings.train.mode, settings.tune.mode):
        raise ConfigError(
            f"Scenario '{inputs.scenario}' {strategy.PROBE_ONLY}, so it cannot be fine-tuned; "
            f"set train.mode and tune.mode to probe."
        )
    fixed = inputs.study.scenario_settings.get(inputs.scenario, {})
    fold_seed = [settings.split.seed, 4, *round_seed]
    data = digest_of([inputs.manifest.digest, inputs.splits.digest, inputs.store.digest, images])
    own, trainer = _seed(seed, round_seed), None
    if settings.tune.mode == "finetune":
        from equipoise.scenario import finetune

        trainer = finetune.Trials(inputs, images, patients, own)
        data = digest_of(
            [data, settings.sections("finetune", "augment", "embed"), settings.split.seed]
        )
    choice = tuning.tune(
        matrix, strategy, fixed, settings.tune, own, fold_seed, data, trainer, wait
    )
    built = strategy.of(choice.settings)
    plan = built.plan(matrix.train_rows(own))
    base.plan_within_train(plan, len(images))
    counts = plan.counts(matrix.image_labels, matrix.num_classes)
    features, labels, draws = matrix.with_mixed(
        matrix.features, matrix.draws(plan)[:, None], [mixed(plan)]
    )
    l2 = choice.settings["l2"]
    solved = head.fit(
        features, labels, draws[:, 0], built.objective(counts), l2, matrix.standardiser
    )
    return Fitted(choice, plan, counts, images, solved)


def _seed(seed: int, round_seed: list[int]) -> int:
    return int(np.random.SeedSequence([seed, *round_seed]).generate_state(1)[0])


def _calibrate(
    inputs: Inputs, logits: np.ndarray, labels: np.ndarray, patients: np.ndarray
) -> tuple[Calibrator, float | None]:
    settings = inputs.study.settings
    calibrator = Calibrator.fit(logits, labels, patients, settings.calibrate.min_patients)
    if logits.shape[1] > 2:
        return calibrator, None
    prob, truth = calibrator.apply(logits)[:, inputs.positive], labels == inputs.positive
    floor = settings.tune.sensitivity_floor
    return calibrator, calibration.lock_threshold(prob, truth, settings.threshold, floor)


def _write_served(inputs: Inputs, rounds: list[dict[str, Any]], folder: Path) -> None:
    """Write the model that would be registered: of the first seed, or after several folds a refit on all rows."""
    seed = inputs.study.settings.train.seeds[0]
    mine = [
        item for item in rounds if item["choice"]["seed"] == seed and item["choice"]["repeat"] == 0
    ]
    served, calibrator, threshold, weights = (
        mine[0][name] for name in ("head", "calibrator", "threshold", "weights")
    )
    evidence = "exactly the model that made predictions.parquet for the first seed"
    if inputs.splits.folds > 1:
        out = pd.concat([item["predictions"].assign(logits=list(item["logits"])) for item in mine])
        pooled = out[out["part"] == "test"]
        everything = np.arange(len(inputs.manifest.table))
        position = inputs.splits.round(0, 0).set_index("image_id")["patient_id"]
        group = position.loc[inputs.manifest.table["image_id"]].to_numpy()
        fitted = _choose_and_fit(inputs, everything, group, seed, [_REFIT])
        served, evidence = (
            fitted.head,
            "out-of-fold predictions of the folds; this model is a refit on all rows",
        )
        calibrator, threshold = _calibrate(
            inputs,
            np.stack(pooled["logits"]),
            pooled["label"].to_numpy(),
            pooled["patient_id"].to_numpy(),
        )
        # No stored prediction is of the refit: these are what service must reproduce.
        values = calibrator.apply(served.logits(inputs.rows(everything)))
        columns = {
            f"calibrated_{name}": values[:, index]
            for index, name in enumerate(inputs.manifest.classes)
        }
        refit = pd.DataFrame({"image_id": inputs.manifest.table["image_id"], **columns})
        write_table(folder / "refit_predictions.parquet", refit, {})
    served.save(folder / "head.npz")
    if weights is not None:
        with atomic_path(folder / "backbone.npz") as path, open(path, "wb") as handle:
            np.savez(handle, **{f"w{index:04d}": value for index, value in enumerate(weights)})
    meta = inputs.store.meta
    description = {
        **{
            name: meta[name]
            for name in ("backbone", "weights", "weights_digest", "image_size_px", "pipeline")
        },
        "classes": list(inputs.manifest.classes),
        "positive_class": inputs.manifest.positive_class,
        "calibrator": calibrator.as_dict(),
        "threshold": threshold,
        "evidence": evidence,
    }
    write_json(folder / "model.json", description)


def _summary(
    inputs: Inputs,
    predictions: Predictions,
    choices: list[dict[str, Any]],
    plan: pd.DataFrame,
    found: list[checks.Check],
    meta: dict[str, Any],
) -> dict[str, Any]:
    settings = inputs.study.settings
    floor = settings.tune.sensitivity_floor
    counts = inputs.manifest.counts()
    evaluation = intervals.evaluate(predictions, settings.compare, floor)
    test = predictions.part("test").table.drop_duplicates("image_id")
    scores = [choice["score"] for choice in choices]  # None where a round had no search
    summary: dict[str, Any] = {
        **meta,
        "mode": settings.train.mode,
        "weights": inputs.store.meta["weights"],
        "passes": inputs.store.meta.get("passes"),  # of the backbone, whatever came after them
        "majority_class": inputs.manifest.classes[int(counts.argmax())],
        "minority_classes": [inputs.manifest.classes[label] for label in minority_labels(counts)],
        "test": class_table(test["label"].to_numpy(), test["patient_id"], inputs.manifest.classes),
        "rows": {"test": len(test), "patients": int(test["patient_id"].nunique())},
        "inner_score": None if None in scores else float(np.mean(scores)),
        "metrics": evaluation.table(),
        "distribution": _distribution(inputs, plan),
        "non_overlapping": None,
        "seed_has_effect": _seed_matters(predictions),
        "checks": [check.as_dict() for check in found],
        "digests": {
            **{name: getattr(inputs, name).digest for name in ("manifest", "splits")},
            **{
                "features": inputs.store.digest,
                "predictions": predictions.digest,
                "test": predictions.test_digest(),
            },
        },
        "settings": {
            **settings.sections("split", "embed", "augment", *SCENARIO_SECTIONS),
            "scenario": inputs.study.scenario_settings.get(inputs.scenario, {}),
        },
    }
    if test["overlap"].any():
        kept = Predictions(
            predictions.table[~predictions.table["overlap"]].reset_index(drop=True), meta
        )
        rest = kept.part("test").table.drop_duplicates("image_id")
        whole = rest["label"].nunique() == len(predictions.classes)
        summary["non_overlapping"] = {
            "rows": {"test": len(rest), "patients": int(rest["patient_id"].nunique())},
            # Without the shared patients a class may be gone; then there is nothing to measure.
            "metrics": intervals.evaluate(kept, settings.compare, floor).table() if whole else None,
        }
    summary["result_digest"] = digest_of([summary["digests"], summary["settings"], choices, meta])
    return summary


def _distribution(inputs: Inputs, plan: pd.DataFrame) -> dict[str, Any]:
    """Images, patients and imbalance before the split, in each part of the first round, and in its plan."""
    rows = inputs.splits.round(0, 0).merge(
        inputs.manifest.table[["image_id", "label"]], on="image_id"
    )
    first = plan[
        (plan["repeat"] == 0) & (plan["fold"] == 0) & (plan["seed"] == plan["seed"].iloc[0])
    ]
    drawn = first[["image_id"]].merge(rows, on="image_id")
    stages = {"all": rows, **{part: rows[rows["part"] == part] for part in PARTS}, "plan": drawn}
    return {
        stage: class_table(table["label"].to_numpy(), table["patient_id"], inputs.manifest.classes)
        for stage, table in stages.items()
    }


def _seed_matters(predictions: Predictions) -> bool | None:
    """Whether any probability differs between seeds; None when there is one seed."""
    columns = [f"prob_{name}" for name in predictions.classes]
    groups = [rows[columns].to_numpy() for _, rows in predictions.table.groupby("seed", sort=True)]
    return (
        None
        if len(groups) < 2
        else any(not np.array_equal(groups[0], other) for other in groups[1:])
    )
