"""The search: Optuna over a strategy's settings and the penalty, inside train only. The only Optuna importer."""

from __future__ import annotations

import base64
import contextlib
import importlib.metadata
import sqlite3
import sys
import threading
import time
import warnings
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import optuna
import pandas as pd

from equipoise.core import parallel
from equipoise.core.config import Tune
from equipoise.core.environment import environment
from equipoise.core.errors import DataError, TrialFailed
from equipoise.core.files import digest_of, file_digest
from equipoise.evaluation import intervals, metrics
from equipoise.scenario import rows as rows_
from equipoise.scenario import solver
from equipoise.scenario.matrix import TrainMatrix, mixed
from equipoise.split import strata
from equipoise.strategies.base import Objective, Plan, Strategy, plan_within_train

#: Where searches are kept unless a database is named; outside DVC's outputs, which are deleted before each run.
STORE = Path("data/cache/optuna")
#: A database instead, with its password; goes before `tune.storage`.
STORAGE_VARIABLE = "EQUIPOISE_OPTUNA_STORAGE"
#: In a database: how often a process says that it lives, after which silence another one takes its search over, and how
#: often those that wait look.
_HEARTBEAT_SECONDS, _GRACE_SECONDS, _POLL_SECONDS = 10, 60, 1.0
#: Resamples times images that are scored at a time.
_CELLS = 2**22


class Busy(Exception):
    """Another process works on this search."""


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


class Trainer(Protocol):
    """Trains trials end to end, for `tune.mode: finetune`.

    Attributes:
        held: int (num_held,), train images of the slice set aside, the same for every trial and scenario.
        steps: Optimiser steps of a trial that is not pruned.
    """

    held: np.ndarray
    steps: int

    def evaluations(self, settings: Mapping[str, Any]) -> Generator[tuple[int, np.ndarray]]:
        """Yield (step, logits of the slice if training ended there); closed early, the trial is pruned."""


@dataclass(frozen=True)
class _Trial:
    number: int
    settings: dict[str, Any]
    score: float
    violation: float
    probabilities: np.ndarray | None
    error: str
    logits: np.ndarray | None = (
        None  # (num_images, K) of the images that score: all that the rest is made from
    )
    steps: int | None = None  # taken by a trial that was trained end to end
    pruned: bool = False


def tune(
    matrix: TrainMatrix,
    strategy: type[Strategy],
    fixed: Mapping[str, Any],
    settings: Tune,
    seed: int,
    fold_seed: list[int],
    data_digest: str = "",
    trainer: Trainer | None = None,
    wait: bool = True,
) -> Choice:
    """Search a strategy's settings and the penalty on pooled out-of-fold predictions of patient-grouped inner folds.

    With a trainer, every trial is trained end to end instead and scored on the one slice of train that it sets aside.

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
        trainer: Trains the trials, one after the other; None solves heads on the features, in batches.
        wait: For another process that works on this search, in a database that they share.

    Raises:
        Busy: When there is one and `wait` is False.
        DataError: When the store that should keep the search cannot be read or written.
        TrialFailed: When every trial failed, with the last cause.
    """
    published = strategy.published(matrix.views, fixed)
    rows = pd.DataFrame({"patient": matrix.patients, "label": matrix.image_labels})
    folds = min(settings.inner_folds, int(strata.patients_per_class(rows).min()))
    summary: dict[str, Any] = {
        **{
            "score": None,
            "best_score": None,
            "published_score": None,
            "gain": 0.0,
            "gain_se": None,
        },
        **{"objective": settings.objective, "identified": False, "feasible": True, "reason": ""},
    }
    if folds < 2:
        reason = (
            "a class has fewer than 2 train patients, so nothing was searched: published settings"
        )
        summary |= {"trials": 0, "failed_trials": 0, "inner_folds": folds, "reason": reason}
        return Choice({**published, "l2": settings.l2_first[0]}, summary, pd.DataFrame())
    fold_of = strata.assign_folds(rows, folds, fold_seed)
    search = (_Search if trainer is None else _TrainedSearch)(
        matrix, strategy, published, dict(fixed), settings, seed, fold_of, trainer
    )
    try:
        trials = search.run(search.kept(data_digest) if data_digest else None, wait)
    except optuna.exceptions.StorageInternalError as error:
        advice = "The database was lost. Finished trials are kept: when it is back, the same command goes on."
        raise _unreachable(error.__cause__ or error, search.address, advice) from None
    complete = [trial for trial in trials if trial.probabilities is not None and not trial.pruned]
    if not complete:
        raise TrialFailed(f"All {len(trials)} trials failed. The last one: {trials[-1].error}")
    first = [trial for trial in complete if trial.number < len(settings.l2_first)]
    best = search.best(complete)
    kept = search.best(first) if first else best
    summary["published_score"] = kept.score if first else None
    if best is not kept:
        gain, spread = search.gain(best, kept)
        summary |= {"gain": gain, "gain_se": spread}
        if gain > spread or kept.violation > max(best.violation, 0):
            kept = best
    summary |= {
        "score": kept.score,
        "best_score": best.score,
        "identified": kept is best and kept.number >= len(settings.l2_first),
        "feasible": kept.violation <= 0,
        "trials": len(trials),
        "failed_trials": sum(trial.probabilities is None for trial in trials),
        "inner_folds": folds if trainer is None else 1,
        "trial": kept.number,
        **search.effort(trials),
    }
    return Choice(kept.settings, summary, _trial_table(trials))


@dataclass
class _Search:
    matrix: TrainMatrix
    strategy: type[Strategy]
    published: dict[str, Any]
    fixed: dict[str, Any]
    settings: Tune
    seed: int
    fold_of: np.ndarray
    trainer: Trainer | None = None

    def __post_init__(self) -> None:
        self.address = environment(STORAGE_VARIABLE) or self.settings.storage
        self.labels, self.patients = (
            self.matrix.image_labels,
            self.matrix.patients,
        )  # of the images that score
        self.metric = metrics.load_metric(self.settings.objective)
        self.sign = 1 if self.metric.better == "higher" else -1
        insides = [np.flatnonzero(self.fold_of != fold) for fold in np.unique(self.fold_of)]
        self.inner = [(inside, self.matrix.train_rows(self.seed, inside)) for inside in insides]

    @cached_property
    def rotated(self) -> solver.Rotated:
        """Shared by all heads: mean and spread of a feature do not depend on labels, plans or folds of train."""
        rows = np.arange(len(self.matrix.row))
        return solver.Rotated.of(
            rows_.Rows(self.matrix.features, rows, np.float32, self.matrix.standardiser)
        )

    def kept(self, data_digest: str) -> optuna.Study:
        """What the store holds of this search; other data, settings, space, code or versions are another search."""
        new = self._new_study()
        self._suggest(asked := new.ask())
        kinds = (
            *self.strategy.__mro__[:-1],
            solver.Rotated,
            metrics.Metric,
            Plan,
            TrainMatrix,
            _Search,
        )
        kinds += (type(self.trainer),) if self.trainer else ()
        files = {str(sys.modules[kind.__module__].__file__) for kind in kinds}
        parts = [
            *(
                data_digest,
                self.fold_of,
                self.seed,
                self.published,
                self.fixed,
                kinds[0].__qualname__,
            ),
            *(
                str(sorted(asked.distributions.items())),
                self.settings.model_dump(exclude={"trials"}),
            ),
            *sorted(file_digest(Path(name)) for name in files),
            *(
                importlib.metadata.version(name)
                for name in ("imbalanced-learn", "numpy", "optuna", "scipy")
            ),
            importlib.metadata.version("keras") if self.trainer else "",
        ]
        name = f"{self.strategy.__module__.rsplit('.', 1)[-1]}-{digest_of(parts)[:32]}"
        return _open_store(name, self.address, new.direction)

    def run(self, kept: optuna.Study | None, wait: bool = True) -> list[_Trial]:
        """All trials in order. Those of a batch that the store holds whole are read back, the others searched.

        A batch is asked for and solved as one, from a seed made of its place, so that a search which was killed and
        goes on, or which several processes work on in turn, gives the same numbers to the last bit.
        """
        study = self._new_study()
        found = _by_place(kept)
        done: list[_Trial] = []
        size = 1 if self.trainer else self.settings.batch_trials
        batches = range(0, self.settings.trials, size)
        with contextlib.ExitStack() as turn:
            mine = kept is None
            for start in parallel.progress(batches, "searching", len(batches), "batches of trials"):
                count = min(size, self.settings.trials - start)
                places = [(number, count) for number in range(start, start + count)]
                if not mine and not found.keys() >= {*places}:
                    turn.enter_context(_turn(kept, wait))
                    mine, found = True, _by_place(kept)
                if found.keys() >= {*places}:
                    study.add_trials(found[place] for place in places)
                    done += [self._recalled(place[0], found[place].user_attrs) for place in places]
                else:
                    done += self._batch(study, start, count, kept, found)
        return done

    def _new_study(self) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        warnings.filterwarnings(
            "ignore", category=optuna.exceptions.ExperimentalWarning
        )  # of its heartbeat
        # Twenty trials of five evaluations are too few for Hyperband: each of its brackets wants more than ten trials.
        # The published settings are never pruned: what is kept is measured against them. Nor is a trial before its
        # first step: its weights are still those of the probe.
        pruner = optuna.pruners.MedianPruner(
            n_startup_trials=len(self.settings.l2_first), n_warmup_steps=1
        )
        study = optuna.create_study(
            direction="maximize" if self.sign > 0 else "minimize", pruner=pruner
        )
        study.set_user_attr("views", self.matrix.views)
        return study

    def _batch(
        self,
        study: optuna.Study,
        start: int,
        count: int,
        kept: optuna.Study | None,
        found: Mapping[Any, Any],
    ) -> list[_Trial]:
        """Ask, solve and tell a batch, and only then keep its trials: the store never holds one that still runs."""
        # A new seed for every batch: with the same one, a search that goes on would suggest its first trials again.
        seed = (
            np.random.SeedSequence([self.seed, start]).generate_state(1)[0]
            if start
            else self.seed % 2**32
        )
        study.sampler = optuna.samplers.TPESampler(seed=int(seed))
        tuned = {name: value for name, value in self.published.items() if name not in self.fixed}
        for l2 in self.settings.l2_first[start : start + count]:
            study.enqueue_trial({**tuned, "l2": l2})
        asked = [study.ask() for _ in range(count)]
        results = self._solve([self._suggest(trial) for trial in asked], start, asked)
        for trial, result in zip(asked, results):
            if result.pruned or result.probabilities is None:
                ended = (
                    optuna.trial.TrialState.PRUNED
                    if result.pruned
                    else optuna.trial.TrialState.FAIL
                )
                told = study.tell(trial, state=ended)
            else:
                if self.settings.constraint:
                    trial.set_constraint(self.settings.constraint.metric, result.violation)
                told = study.tell(trial, result.score)
            if kept and (result.number, count) not in found:
                told.user_attrs = {
                    "place": [result.number, count],
                    "settings": result.settings,
                    "error": result.error,
                }
                told.user_attrs |= (
                    {} if result.steps is None else {"steps": result.steps, "pruned": result.pruned}
                )
                if (logits := result.logits) is not None:
                    text = base64.b64encode(logits.tobytes()).decode()
                    told.set_user_attr("logits", [logits.dtype.str, logits.shape, text])
                kept.add_trial(told)
        return results

    def _recalled(self, number: int, kept: Mapping[str, Any]) -> _Trial:
        if "logits" not in kept:
            found = self._judged(number, kept["settings"], None, kept["error"])
        else:
            kind, shape, text = kept["logits"]
            logits = np.frombuffer(base64.b64decode(text), kind).reshape(shape)
            found = self._judged(number, kept["settings"], logits, "")
        return replace(found, steps=kept.get("steps"), pruned=kept.get("pruned", False))

    def effort(self, trials: list[_Trial]) -> dict[str, Any]:
        """What is told of the search beside its scores."""
        return {}

    def _suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        found = {**self.published, **self.strategy.search_space(trial), **self.fixed}
        return {
            **found,
            "l2": trial.suggest_float("l2", self.settings.l2_low, self.settings.l2_high, log=True),
        }

    def _solve(self, candidates: list[dict[str, Any]], start: int, _: Any = ()) -> list[_Trial]:
        """Solve every candidate on every inner fold as one batch, and score the pooled out-of-fold rows."""
        matrix, folds = self.matrix, np.unique(self.fold_of)
        draws = np.ones((len(matrix.row), len(candidates) * len(folds)))
        mixes: list[np.ndarray] = []
        objectives: list[Objective] = []
        failures = {}
        for index, candidate in enumerate(candidates):
            strategy = self.strategy.of(candidate)
            for inside, rows in self.inner:
                try:
                    plan = strategy.plan(rows)
                    plan_within_train(plan, len(inside))
                    objective = strategy.objective(plan.counts(rows.labels, matrix.num_classes))
                    plan = plan.within(inside)
                    draws[:, len(objectives)] = matrix.draws(plan)
                    mixes.append(mixed(plan))
                    objectives.append(objective)
                except (TrialFailed, ValueError, FloatingPointError) as error:
                    failures[index] = str(error)
                    mixes.append(mixed(Plan.of([])))
                    objectives.append(Objective.neutral(matrix.num_classes))
        l2 = np.repeat([candidate["l2"] for candidate in candidates], len(folds))
        table, labels, weights = matrix.with_mixed(self.rotated.matrix, draws, mixes)
        per_class = np.stack([objective.weights for objective in objectives], axis=1)
        for block in rows_.blocks(len(labels)):
            weights[block] *= per_class[labels[block]]
        solution = solver.solve(
            replace(self.rotated, matrix=table),
            labels,
            weights,
            objectives,
            l2,
            solver.SEARCH_TOLERANCE,
        )
        results = []
        for index, candidate in enumerate(candidates):
            own = slice(index * len(folds), (index + 1) * len(folds))
            logits: np.ndarray | None = None
            if index not in failures and not np.isfinite(solution.objective[own]).all():
                failures[index] = "the loss became NaN or infinite"
            if index not in failures:
                logits = np.empty(
                    (len(self.labels), solution.parameters.shape[1]), self.rotated.matrix.dtype
                )
                for fold, parameters in zip(
                    folds, np.moveaxis(solution.parameters[..., own], -1, 0)
                ):
                    held = np.flatnonzero(self.fold_of == fold)
                    for block in rows_.blocks(len(held)):
                        logits[held[block]] = self.rotated.matrix[held[block]] @ parameters
            results.append(self._judged(start + index, candidate, logits, failures.get(index, "")))
        return results

    def _judged(
        self, number: int, candidate: dict[str, Any], logits: np.ndarray | None, failure: str
    ) -> _Trial:
        if logits is None:
            return _Trial(number, candidate, float("nan"), 0.0, None, failure)
        images = len(logits)
        first_column = self.matrix.num_classes - logits.shape[1]  # for two classes logit 0 is zero
        probabilities = metrics.softmax(
            np.pad(logits.astype(np.float64), ((0, 0), (first_column, 0)))
        )
        score = float(self._measure(self.metric, probabilities, np.ones((1, images)))[0])
        violation = 0.0
        if constraint := self.settings.constraint:
            measured = self._measure(
                metrics.load_metric(constraint.metric), probabilities, np.ones((1, images))
            )
            violation = constraint.at_least - float(measured[0])
        if not np.isfinite(score):
            failure = f"{self.settings.objective} is not a number"
            return _Trial(number, candidate, score, violation, None, failure, logits)
        return _Trial(number, candidate, score, violation, probabilities, "", logits)

    def _measure(
        self, metric: metrics.Metric, probabilities: np.ndarray, weights: np.ndarray
    ) -> np.ndarray:
        positive, floor = self.matrix.positive, self.settings.sensitivity_floor
        decisions = metrics.decide(probabilities, positive)
        return metric.function(
            metrics.Sample(self.labels, probabilities, decisions, positive, weights, floor)
        )

    def gain(self, best: _Trial, kept: _Trial) -> tuple[float, float]:
        """By how much `best` beats `kept`, and the paired standard error of that over patients."""
        patients, drawn = intervals.patient_resamples(
            self.patients, self.labels, self.settings.gain_resamples, self.seed
        )
        place = np.searchsorted(patients, self.patients)
        parts = np.array_split(drawn[1:], -(-len(drawn) * len(place) // _CELLS))
        values = [
            np.concatenate(
                [
                    self._measure(self.metric, trial.probabilities, part[:, place])  # type: ignore[arg-type]
                    for part in parts
                ]
            )
            for trial in (best, kept)
        ]
        error = float(np.nanstd(values[0] - values[1], ddof=1))
        return self.sign * (best.score - kept.score), error

    def best(self, trials: list[_Trial]) -> _Trial:
        """The best feasible trial; without one, the smallest violation. Ties go to the earlier trial."""
        return min(
            trials,
            key=lambda trial: (max(trial.violation, 0.0), -self.sign * trial.score, trial.number),
        )


class _TrainedSearch(_Search):
    """Every trial is trained end to end and scored on the slice; what is worse than the median of its step is pruned.

    There is one slice instead of inner folds, so the paired standard error of a gain is that of its patients alone.
    """

    trainer: Trainer

    def __post_init__(self) -> None:
        super().__post_init__()
        self.labels, self.patients = (
            self.labels[self.trainer.held],
            self.patients[self.trainer.held],
        )

    def _solve(self, candidates: list[dict[str, Any]], start: int, asked: Any = ()) -> list[_Trial]:
        (trial,), (candidate,) = asked, candidates
        step, result = 0, self._judged(start, candidate, None, "")
        try:
            with contextlib.closing(self.trainer.evaluations(candidate)) as evaluations:
                for step, logits in evaluations:
                    result = self._judged(start, candidate, logits, "")
                    trial.report(result.score, step)
                    # A trial that is through is never pruned: it costs nothing any more.
                    if step < self.trainer.steps and trial.should_prune():
                        return [replace(result, steps=step, pruned=True)]
        except (TrialFailed, ValueError, FloatingPointError) as error:
            result = self._judged(start, candidate, None, str(error))
        return [replace(result, steps=step)]

    def effort(self, trials: list[_Trial]) -> dict[str, Any]:
        """Pruned trials, and the optimiser steps taken and saved."""
        steps = sum(trial.steps or 0 for trial in trials)
        saved = sum(self.trainer.steps - (trial.steps or 0) for trial in trials if trial.pruned)
        held = {"slice_images": len(self.labels), "slice_patients": len(np.unique(self.patients))}
        return {
            "pruned_trials": sum(trial.pruned for trial in trials),
            "steps": steps,
            "steps_saved": saved,
            **held,
        }


def _trial_table(trials: list[_Trial]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "trial": trial.number,
            "state": "failed"
            if trial.probabilities is None
            else "pruned"
            if trial.pruned
            else "complete",
            "score": trial.score,
            "violation": trial.violation,
            "error": trial.error,
            **({} if trial.steps is None else {"steps": trial.steps}),
            **trial.settings,
        }
        for trial in trials
    )


def importances(trials: pd.DataFrame, maximise: bool) -> dict[str, float]:
    """Share of each searched setting in what sets good trials apart (PED-ANOVA), mean over rounds, largest first.

    Args:
        trials: Of trials.parquet: `state`, `score`, the settings, `repeat`, `fold`, `seed`.
        maximise: Whether a higher score is better.

    Returns:
        Name -> 0..1; empty with fewer than ten complete trials in every round.

    Reference: Watanabe et al. 2023, https://arxiv.org/abs/2304.10255
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    fixed = {"trial", "state", "score", "violation", "error", "repeat", "fold", "seed"}
    complete, found = trials[trials["state"] == "complete"], []
    for _, rows in complete.groupby(["repeat", "fold", "seed"], sort=True):
        values = rows.drop(columns=[*fixed & {*rows}]).select_dtypes("number")
        values = values.loc[:, values.nunique() > 1]
        if len(rows) < 10 or values.empty or rows["score"].nunique() < 2:
            continue
        study = optuna.create_study(direction="maximize" if maximise else "minimize")
        kinds = {
            name: optuna.distributions.FloatDistribution(
                float(own.min()), float(own.max()), log=name == "l2"
            )
            for name, own in values.items()
        }
        for score, row in zip(rows["score"], values.to_dict("records")):
            study.add_trial(
                optuna.create_trial(params=row, distributions=kinds, value=float(score))
            )
        evaluator = optuna.importance.PedAnovaImportanceEvaluator()
        found.append(optuna.importance.get_param_importances(study, evaluator=evaluator))
    return (
        pd.DataFrame(found).mean().sort_values(ascending=False, kind="stable").to_dict()
        if found
        else {}
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
                seconds = {"heartbeat_interval": _HEARTBEAT_SECONDS, "grace_period": _GRACE_SECONDS}
                ping = {
                    "pool_pre_ping": "sqlite" not in address
                }  # a server may have closed what lay idle
                storage = optuna.storages.RDBStorage(address, engine_kwargs=ping, **seconds)
            else:
                with open(
                    path, "ab+"
                ) as journal:  # the next line would be glued to half a line that a kill left
                    journal.seek(0)
                    journal.truncate(journal.read().rfind(b"\n") + 1)
                backend = optuna.storages.journal.JournalFileBackend(str(path), lock)
                storage = optuna.storages.JournalStorage(backend)
        return optuna.create_study(
            storage=storage, study_name=name, direction=direction, load_if_exists=True
        )
    except (
        Exception
    ) as error:  # SQLAlchemy, drivers and Optuna raise what they like, with the address in it
        advice = (
            f"Correct tune.storage or {STORAGE_VARIABLE}."
            if address
            else f"Delete {path}: it is searched again."
        )
        raise _unreachable(error, address, advice) from None


def _unreachable(error: BaseException, address: str | None, advice: str) -> DataError:
    cause = str(error).split("\n")[0].replace(str(address), "the address")
    return DataError(
        f"The search cannot be kept or read ({type(error).__name__}: {cause}). {advice}"
    )


def _by_place(kept: optuna.Study | None) -> dict[tuple[int, int], optuna.trial.FrozenTrial]:
    """What a store holds: (number of the trial, size of its batch) -> trial."""
    trials = kept.get_trials() if kept else []
    return {
        tuple(trial.user_attrs["place"]): trial for trial in trials if "place" in trial.user_attrs
    }


@contextlib.contextmanager
def _turn(kept: optuna.Study, wait: bool) -> Iterator[None]:
    """Hold a search that several machines share in a database, as long as its trials are made.

    Each batch follows from those before it, so one process works on a search and the others on other searches, or
    wait. Who does is a running trial of a study beside it, kept alive by Optuna's heartbeat; of two the earlier one.
    """
    if isinstance(kept._storage, optuna.storages.JournalStorage):  # of one machine
        yield
        return
    storage: Any = kept._storage._backend  # without the cache, which knows no deletion
    name, mine, seen = f"{kept.study_name}-turn", None, set()
    while mine is None:
        with contextlib.suppress(
            KeyError, IndexError
        ):  # another one ended its turn between two of these lines
            turns = optuna.create_study(storage=storage, study_name=name, load_if_exists=True)
            optuna.storages.fail_stale_trials(turns)
            new = None if _running(turns) else storage.create_new_trial(turns._study_id)
            first = _running(turns)[0]
            if first not in seen:
                storage.record_heartbeat(
                    first
                )  # another one may have been killed before its own first
                if wait and new is None:
                    print(
                        f"Another process searches {kept.study_name}; waiting for its trials.",
                        file=sys.stderr,
                    )
            seen.add(first)
            if new == first:
                mine = new
                break
            if new is not None:
                storage.set_trial_state_values(new, optuna.trial.TrialState.FAIL)
            if not wait:
                raise Busy(kept.study_name)
        time.sleep(_POLL_SECONDS)
    ended = threading.Event()

    def live() -> None:
        while not ended.wait(_HEARTBEAT_SECONDS):
            with contextlib.suppress(
                Exception
            ):  # the search itself will find that the database is gone
                storage.record_heartbeat(mine)

    threading.Thread(target=live, daemon=True).start()
    try:
        yield
    finally:
        ended.set()
        with contextlib.suppress(Exception):
            optuna.delete_study(study_name=name, storage=storage)


def _running(turns: optuna.Study) -> list[int]:
    return [
        trial._trial_id for trial in turns.get_trials(False, (optuna.trial.TrialState.RUNNING,))
    ]
