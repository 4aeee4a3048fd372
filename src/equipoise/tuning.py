"""The search: Optuna over a strategy's settings and the penalty, inside train only. The only Optuna importer."""

from __future__ import annotations

import base64
import importlib.metadata
import sqlite3
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd

from equipoise import head, metrics, parallel, splits
from equipoise.checks import plan_within_train
from equipoise.config import Tune, environment
from equipoise.errors import DataError, TrialFailed
from equipoise.inputs import TrainMatrix
from equipoise.records import Objective, Plan, digest_of, file_digest
from equipoise.strategies.base import Strategy

#: Where searches are kept unless a database is named; outside DVC's outputs, which are deleted before each run.
STORE = Path("data/cache/optuna")
#: A database instead, with its password; goes before `tune.storage`.
STORAGE_VARIABLE = "EQUIPOISE_OPTUNA_STORAGE"


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
    logits: np.ndarray | None = None  # out of fold, (num_images, K): all that the rest is made from


def tune(
    matrix: TrainMatrix,
    strategy: type[Strategy],
    fixed: Mapping[str, Any],
    settings: Tune,
    seed: int,
    fold_seed: list[int],
    data_digest: str = "",
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
        data_digest: Names the train rows, so that finished trials are kept and read back; empty keeps nothing.

    Raises:
        DataError: When the store that should keep the search cannot be read.
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
    trials = search.run(search.kept(data_digest) if data_digest else None)
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
        outside = {fold: np.flatnonzero(fold_of != fold) for fold in np.unique(fold_of)}
        self.inner = {fold: (inside, matrix.train_rows(seed, inside)) for fold, inside in outside.items()}

    @cached_property
    def rotated(self) -> head.Rotated:
        """Shared by all heads: mean and spread of a feature do not depend on labels, plans or folds of train."""
        return head.Rotated.of(self.matrix.standardiser.apply(self.matrix.features, np.float32))

    def kept(self, data_digest: str) -> optuna.Study:
        """What the store holds of this search; other data, settings, space, code or versions are another search."""
        new = self._new_study()
        self._suggest(asked := new.ask())
        kinds = (*self.strategy.__mro__[:-1], head.Rotated, metrics.Metric, Plan, TrainMatrix, _Search)
        files = {str(sys.modules[kind.__module__].__file__) for kind in kinds}
        parts = [
            *(data_digest, self.fold_of, self.seed, self.published, self.fixed, kinds[0].__qualname__),
            *(str(sorted(asked.distributions.items())), self.settings.model_dump(exclude={"trials"})),
            *sorted(file_digest(Path(name)) for name in files),
            *(importlib.metadata.version(name) for name in ("imbalanced-learn", "numpy", "optuna", "scipy")),
        ]
        name = f"{self.strategy.__module__.rsplit('.', 1)[-1]}-{digest_of(parts)[:32]}"
        return _open_store(name, environment(STORAGE_VARIABLE) or self.settings.storage, new.direction)

    def run(self, kept: optuna.Study | None) -> list[_Trial]:
        """All trials in order. Those of a batch that the store holds whole are read back, the others searched.

        A batch is asked for and solved as one, from a seed made of its place, so that a search which was killed and
        goes on gives the same numbers to the last bit.
        """
        study = self._new_study()
        found = {tuple(trial.user_attrs.get("place", ())): trial for trial in kept.get_trials()} if kept else {}
        done: list[_Trial] = []
        batches = range(0, self.settings.trials, self.settings.batch_trials)
        for start in parallel.progress(batches, "searching", len(batches), "batches of trials"):
            count = min(self.settings.batch_trials, self.settings.trials - start)
            numbers = range(start, start + count)
            if all((number, count) in found for number in numbers):
                study.add_trials(found[number, count] for number in numbers)
                done += [self._recalled(number, found[number, count].user_attrs) for number in numbers]
            else:
                done += self._batch(study, start, count, kept, found)
        return done

    def _new_study(self) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(direction="maximize" if self.sign > 0 else "minimize")
        study.set_user_attr("views", self.matrix.views)
        return study

    def _batch(
        self, study: optuna.Study, start: int, count: int, kept: optuna.Study | None, found: Mapping[Any, Any]
    ) -> list[_Trial]:
        """Ask, solve and tell a batch, and only then keep its trials: the store never holds one that still runs."""
        # A new seed for every batch: with the same one, a search that goes on would suggest its first trials again.
        seed = np.random.SeedSequence([self.seed, start]).generate_state(1)[0] if start else self.seed % 2**32
        study.sampler = optuna.samplers.TPESampler(seed=int(seed))
        tuned = {name: value for name, value in self.published.items() if name not in self.fixed}
        for l2 in self.settings.l2_first[start : start + count]:
            study.enqueue_trial({**tuned, "l2": l2})
        asked = [study.ask() for _ in range(count)]
        results = self._solve([self._suggest(trial) for trial in asked], start)
        for trial, result in zip(asked, results):
            if result.probabilities is None:
                told = study.tell(trial, state=optuna.trial.TrialState.FAIL)
            else:
                if self.settings.constraint:
                    trial.set_constraint(self.settings.constraint.metric, result.violation)
                told = study.tell(trial, result.score)
            if kept and (result.number, count) not in found:
                told.user_attrs = {"place": [result.number, count], "settings": result.settings, "error": result.error}
                if (logits := result.logits) is not None:
                    text = base64.b64encode(logits.tobytes()).decode()
                    told.set_user_attr("logits", [logits.dtype.str, logits.shape, text])
                kept.add_trial(told)
        return results

    def _recalled(self, number: int, kept: Mapping[str, Any]) -> _Trial:
        if "logits" not in kept:
            return self._judged(number, kept["settings"], None, kept["error"])
        kind, shape, text = kept["logits"]
        logits = np.frombuffer(base64.b64decode(text), kind).reshape(shape)
        return self._judged(number, kept["settings"], logits, "")

    def _suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        found = {**self.published, **self.strategy.search_space(trial), **self.fixed}
        return {**found, "l2": trial.suggest_float("l2", self.settings.l2_low, self.settings.l2_high, log=True)}

    def _solve(self, candidates: list[dict[str, Any]], start: int) -> list[_Trial]:
        """Solve every candidate on every inner fold as one batch, and score the pooled out-of-fold rows."""
        matrix, folds = self.matrix, np.unique(self.fold_of)
        columns, plans, objectives, failures = [], [], [], {}
        for index, candidate in enumerate(candidates):
            strategy = self.strategy.of(candidate)
            for inside, rows in self.inner.values():
                try:
                    plan = strategy.plan(rows)
                    plan_within_train(plan, len(inside))
                    objective = strategy.objective(plan.counts(rows.labels, matrix.num_classes))
                    plan = plan.within(inside)
                    columns.append(matrix.draws(plan))
                    plans.append(plan)
                    objectives.append(objective)
                except (TrialFailed, ValueError, FloatingPointError) as error:
                    failures[index] = str(error)
                    columns.append(np.ones(len(matrix.row)))
                    plans.append(Plan.of([]))
                    objectives.append(Objective.neutral(matrix.num_classes))
        l2 = np.repeat([candidate["l2"] for candidate in candidates], len(folds))
        table, labels, draws = matrix.with_mixed(self.rotated.matrix, np.stack(columns, axis=1), plans)
        weights = draws * np.stack([objective.weights for objective in objectives], axis=1)[labels]
        solution = head.solve(
            replace(self.rotated, matrix=table), labels, weights, objectives, l2, head.SEARCH_TOLERANCE
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
            return self._judged(number, candidate, None, failure)
        logits = np.empty((images, solution.parameters.shape[1]), self.rotated.matrix.dtype)
        for position, fold in enumerate(folds):
            held = np.flatnonzero(self.fold_of == fold)
            logits[held] = self.rotated.matrix[held] @ solution.parameters[..., own.start + position]
        return self._judged(number, candidate, logits, "")

    def _judged(self, number: int, candidate: dict[str, Any], logits: np.ndarray | None, failure: str) -> _Trial:
        if logits is None:
            return _Trial(number, candidate, float("nan"), 0.0, None, failure)
        images = len(logits)
        first_column = self.matrix.num_classes - logits.shape[1]  # for two classes logit 0 is zero
        probabilities = head.softmax(np.pad(logits.astype(np.float64), ((0, 0), (first_column, 0))))
        score = float(self._measure(self.metric, probabilities, np.ones((1, images)))[0])
        violation = 0.0
        if constraint := self.settings.constraint:
            measured = self._measure(metrics.load_metric(constraint.metric), probabilities, np.ones((1, images)))
            violation = constraint.at_least - float(measured[0])
        if not np.isfinite(score):
            failure = f"{self.settings.objective} is not a number"
            return _Trial(number, candidate, score, violation, None, failure, logits)
        return _Trial(number, candidate, score, violation, probabilities, "", logits)

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


class _Lock:
    """A lock that the system lifts when its holder dies; Optuna's own is a file that outlives a kill by 30 seconds."""

    def __init__(self, path: Path) -> None:
        self._file = sqlite3.connect(path, timeout=600, isolation_level=None)

    def acquire(self) -> bool:
        self._file.execute("BEGIN EXCLUSIVE")
        return True

    def release(self, *_: Any) -> None:
        self._file.execute("ROLLBACK")

    __enter__, __exit__ = acquire, release


def _open_store(name: str, address: str | None, direction: Any) -> optuna.Study:
    """The study of that name, new or as it was left, in a database or in a journal of its own."""
    STORE.mkdir(parents=True, exist_ok=True)
    path = STORE / f"{name}.log"
    lock = _Lock(STORE / f"{'database' if address else name}.lock")
    try:
        with lock:  # else two processes make the same tables at once, or one cuts off what the other is writing
            if address:
                storage = optuna.storages.RDBStorage(address)
            else:
                with open(path, "ab+") as journal:  # the next line would be glued to half a line that a kill left
                    journal.seek(0)
                    journal.truncate(journal.read().rfind(b"\n") + 1)
                backend = optuna.storages.journal.JournalFileBackend(str(path), lock)
                storage = optuna.storages.JournalStorage(backend)
        return optuna.create_study(storage=storage, study_name=name, direction=direction, load_if_exists=True)
    except Exception as error:  # SQLAlchemy, drivers and Optuna raise what they like, with the address in it
        cause = str(error).split("\n")[0].replace(str(address), "the address")
        advice = f"Correct tune.storage or {STORAGE_VARIABLE}." if address else f"Delete {path}: it is searched again."
        raise DataError(f"The search cannot be kept or read ({type(error).__name__}: {cause}). {advice}") from None
