"""The search: Optuna over a strategy's settings and the penalty, inside train only. The only Optuna importer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import optuna
import pandas as pd

from equipoise import head, metrics, parallel, splits
from equipoise.checks import plan_within_train
from equipoise.config import Tune
from equipoise.errors import TrialFailed
from equipoise.inputs import TrainMatrix
from equipoise.records import Objective, Plan, TrainRows
from equipoise.strategies.base import Strategy


@dataclass(frozen=True)
class Choice:
    """What the search chose.

    Attributes:
        settings: The strategy's settings and `l2`.
        summary: Scores behind it, as kept in best.json.
        trials: One row per trial.
    """

    settings: dict[str, Any]
    summary: dict[str, Any]
    trials: pd.DataFrame


@dataclass(frozen=True)
class _Trial:
    number: int
    settings: dict[str, Any]
    score: float
    violation: float
    probabilities: np.ndarray | None
    error: str


def tune(
    matrix: TrainMatrix,
    strategy: type[Strategy],
    fixed: Mapping[str, Any],
    settings: Tune,
    seed: int,
    fold_seed: list[int],
) -> Choice:
    """Search a strategy's settings and the penalty on pooled out-of-fold predictions of patient-grouped inner folds.

    The published settings are tried first and kept unless the best trial beats the best of them by one paired standard
    error (patient bootstrap): otherwise these data do not identify the parameter, and noise would choose it.

    Args:
        matrix: Train rows, nothing else.
        strategy: Class of the strategy.
        fixed: Settings that are not searched.
        settings: The `tune` section.
        seed: Re-draws plans and the search.
        fold_seed: Seed of the inner folds, the same for every scenario.

    Raises:
        TrialFailed: When every trial failed, with the last cause.
    """
    published = strategy.published(matrix.views, fixed)
    rows = pd.DataFrame({"patient": matrix.patients, "label": matrix.image_labels})
    folds = min(settings.inner_folds, int(splits.patients_per_class(rows).min()))
    summary: dict[str, Any] = {
        **{"score": None, "best_score": None, "published_score": None, "gain": 0.0, "gain_se": None},
        **{"objective": settings.objective, "identified": False, "feasible": True, "reason": ""},
    }
    if folds < 2:
        reason = "a class has fewer than 2 train patients, so nothing was searched: published settings"
        summary |= {"trials": 0, "failed_trials": 0, "inner_folds": folds, "reason": reason}
        return Choice({**published, "l2": settings.l2_first[0]}, summary, pd.DataFrame())
    search = _Search(
        matrix, strategy, published, dict(fixed), settings, seed, splits.assign_folds(rows, folds, fold_seed)
    )
    trials = search.run()
    complete = [trial for trial in trials if trial.probabilities is not None]
    if not complete:
        raise TrialFailed(f"All {len(trials)} trials failed. The last one: {trials[-1].error}")
    first = [trial for trial in complete if trial.number < len(settings.l2_first)]
    best = search.best(complete)
    kept = search.best(first) if first else best
    summary["published_score"] = kept.score if first else None
    if best is not kept:
        gain, error = search.gain(best, kept)
        summary |= {"gain": gain, "gain_se": error}
        if gain > error or kept.violation > max(best.violation, 0):
            kept = best
    summary |= {
        "score": kept.score,
        "best_score": best.score,
        "identified": kept is best and kept.number >= len(settings.l2_first),
        "feasible": kept.violation <= 0,
        "trials": len(trials),
        "failed_trials": len(trials) - len(complete),
        "inner_folds": folds,
        "trial": kept.number,
    }
    return Choice(kept.settings, summary, _trial_table(trials))


class _Search:
    def __init__(
        self,
        matrix: TrainMatrix,
        strategy: type[Strategy],
        published: dict[str, Any],
        fixed: dict[str, Any],
        settings: Tune,
        seed: int,
        fold_of: np.ndarray,
    ) -> None:
        self.matrix, self.strategy, self.published, self.fixed = matrix, strategy, published, fixed
        self.settings, self.seed, self.fold_of = settings, seed, fold_of
        self.metric = metrics.load_metric(settings.objective)
        self.sign = 1 if self.metric.better == "higher" else -1
        plain = matrix.features[: len(matrix.image_labels)]
        # Shared by all heads: mean and spread of a feature do not depend on labels, plans or folds of train.
        standardised = head.Standardiser.fit(plain).apply(matrix.features, np.float32)
        self.rotated = head.Rotated.of(standardised)

    def run(self) -> list[_Trial]:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        sampler = optuna.samplers.TPESampler(seed=self.seed % 2**32)
        study = optuna.create_study(direction="maximize" if self.sign > 0 else "minimize", sampler=sampler)
        study.set_user_attr("views", self.matrix.views)
        tuned = {name: value for name, value in self.published.items() if name not in self.fixed}
        for l2 in self.settings.l2_first[: self.settings.trials]:
            study.enqueue_trial({**tuned, "l2": l2})
        done: list[_Trial] = []
        batches = range(0, self.settings.trials, self.settings.batch_trials)
        for start in parallel.progress(batches, "searching", len(batches), "batches of trials"):
            count = min(self.settings.batch_trials, self.settings.trials - start)
            asked = [study.ask() for _ in range(count)]
            for trial, result in zip(asked, self._solve([self._suggest(trial) for trial in asked], len(done))):
                done.append(result)
                if result.probabilities is None:
                    study.tell(trial, state=optuna.trial.TrialState.FAIL)
                    continue
                if self.settings.constraint:
                    trial.set_constraint(self.settings.constraint.metric, result.violation)
                study.tell(trial, result.score)
        return done

    def _suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        found = {**self.published, **self.strategy.search_space(trial), **self.fixed}
        return {**found, "l2": trial.suggest_float("l2", self.settings.l2_low, self.settings.l2_high, log=True)}

    def _solve(self, candidates: list[dict[str, Any]], start: int) -> list[_Trial]:
        """Solve every candidate on every inner fold as one batch, and score the pooled out-of-fold rows."""
        matrix, folds = self.matrix, np.unique(self.fold_of)
        columns, objectives, failures = [], [], {}
        for index, candidate in enumerate(candidates):
            strategy = self.strategy.of(candidate)
            for fold in folds:
                try:
                    inside = np.flatnonzero(self.fold_of != fold)
                    rows = TrainRows(matrix.image_labels[inside], matrix.num_classes, matrix.views, self.seed)
                    plan = strategy.plan(rows)
                    plan_within_train(plan, len(inside))
                    objective = strategy.objective(plan.counts(rows.labels, matrix.num_classes))
                    draws = matrix.draws(Plan(inside[plan.row], plan.view))
                    columns.append(draws * objective.weights[matrix.labels])
                    objectives.append(objective)
                except (TrialFailed, ValueError, FloatingPointError) as error:
                    failures[index] = str(error)
                    columns.append(np.ones(len(matrix.row)))
                    objectives.append(Objective.neutral(matrix.num_classes))
        l2 = np.repeat([candidate["l2"] for candidate in candidates], len(folds))
        solution = head.solve(
            self.rotated, matrix.labels, np.stack(columns, axis=1), objectives, l2, head.SEARCH_TOLERANCE
        )
        return [
            self._score(start + index, candidate, solution, index, folds, failures.get(index, ""))
            for index, candidate in enumerate(candidates)
        ]

    def _score(
        self,
        number: int,
        candidate: dict[str, Any],
        solution: head.Solution,
        index: int,
        folds: np.ndarray,
        failure: str,
    ) -> _Trial:
        images = len(self.matrix.image_labels)
        own = slice(index * len(folds), (index + 1) * len(folds))
        if not failure and not np.isfinite(solution.objective[own]).all():
            failure = "the loss became NaN or infinite"
        if failure:
            return _Trial(number, candidate, float("nan"), 0.0, None, failure)
        logits = np.zeros((images, self.matrix.num_classes))
        first_column = self.matrix.num_classes - solution.parameters.shape[1]  # for two classes logit 0 is zero
        for position, fold in enumerate(folds):
            held = np.flatnonzero(self.fold_of == fold)
            parameters = solution.parameters[..., own.start + position]
            logits[held, first_column:] = self.rotated.matrix[held] @ parameters
        probabilities = head.softmax(logits)
        score = float(self._measure(self.metric, probabilities, np.ones((1, images)))[0])
        violation = 0.0
        if constraint := self.settings.constraint:
            measured = self._measure(metrics.load_metric(constraint.metric), probabilities, np.ones((1, images)))
            violation = constraint.at_least - float(measured[0])
        if not np.isfinite(score):
            return _Trial(number, candidate, score, violation, None, f"{self.settings.objective} is not a number")
        return _Trial(number, candidate, score, violation, probabilities, "")

    def _measure(self, metric: metrics.Metric, probabilities: np.ndarray, weights: np.ndarray) -> np.ndarray:
        matrix = self.matrix
        decisions = metrics.decide(probabilities, matrix.positive)
        floor = self.settings.sensitivity_floor
        sample = metrics.Sample(matrix.image_labels, probabilities, decisions, matrix.positive, weights, floor)
        return metric.function(sample)

    def gain(self, best: _Trial, kept: _Trial) -> tuple[float, float]:
        """By how much `best` beats `kept`, and the paired standard error of that over patients."""
        matrix = self.matrix
        patients, drawn = metrics.patient_resamples(
            matrix.patients, matrix.image_labels, self.settings.gain_resamples, self.seed
        )
        weights = drawn[1:, np.searchsorted(patients, matrix.patients)]
        values = [self._measure(self.metric, trial.probabilities, weights) for trial in (best, kept)]  # type: ignore[arg-type]
        error = float(np.nanstd(values[0] - values[1], ddof=1))
        return self.sign * (best.score - kept.score), error

    def best(self, trials: list[_Trial]) -> _Trial:
        """The best feasible trial; without one, the smallest violation. Ties go to the earlier trial."""
        return min(trials, key=lambda trial: (max(trial.violation, 0.0), -self.sign * trial.score, trial.number))


def _trial_table(trials: list[_Trial]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "trial": trial.number,
            "state": "failed" if trial.probabilities is None else "complete",
            "score": trial.score,
            "violation": trial.violation,
            "error": trial.error,
            **trial.settings,
        }
        for trial in trials
    )
