"""The search: Optuna over a strategy's parameters and the penalty, inside train only."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import optuna
import pandas as pd
from optuna.trial import TrialState

from equipoise.core import environment, parallel
from equipoise.core.config import Tune
from equipoise.core.documents import SearchSummary
from equipoise.core.errors import TrialFailed
from equipoise.core.files import digest_of
from equipoise.scenario.heads import rows as rows_
from equipoise.scenario.heads import solver
from equipoise.scenario.heads.kept import Arrays, Kept, key_of
from equipoise.scenario.matrix import TrainMatrix
from equipoise.scenario.searches import Outcome, Report, SearchStore, read_batch, write_batch
from equipoise.scenario.trials import Gain, Scorer, Trial, trial_table
from equipoise.split import strata
from equipoise.strategies import base
from equipoise.strategies.base import Objective, Parameter, Plan, Strategy, TrainRows

#: What ends a trial and not the search.
_TRIAL_ERRORS = (TrialFailed, ValueError, FloatingPointError)

#: Packages that the numbers of a search come from.
_PACKAGES = ("imbalanced-learn", "numpy", "optuna", "scikit-learn", "scipy")

#: Those that training end to end adds.
_TRAINING_PACKAGES = ("keras", "tensorflow")

#: Standard errors by which the best trial has to beat the published settings. With one, noise was
#: taken for an effect in 0.19 to 0.23 of searches without any.
_STANDARD_ERRORS = 2.0

#: Rotated rows are kept up to so many for each feature: those of 26 rounds and 1,920 features are 1 GB.
_MOST_ROWS_FRACTION = 2.5

#: Solves a batch of heads: `solver.search`, or what stands for it.
Solve = Callable[..., solver.Solution]


class OutOfFold(NamedTuple):
    """What models with the chosen settings say about train images that they were not fitted to.

    Attributes:
        rows: int (num_scored,), places of the images among the train images: all of them, or the
            slice that trained trials are scored on.
        logits: float64 (num_scored, C).
    """

    rows: np.ndarray
    logits: np.ndarray


@dataclass(frozen=True)
class Choice:
    """What the search chose.

    Attributes:
        settings: The strategy's settings and `l2`.
        summary: Scores behind it.
        trials: One row per trial.
        out_of_fold: Scores of the chosen trial; None where nothing was searched.
        inner_draws: Gives its inner score under resamples of the patients that scored it, float (num_resamples,).
    """

    settings: dict[str, Any]
    summary: SearchSummary
    trials: pd.DataFrame
    out_of_fold: OutOfFold | None = None
    inner_draws: Callable[[], np.ndarray] | None = None


@dataclass(frozen=True)
class Decision:
    """Which trial is kept, and what it was measured against.

    Attributes:
        chosen: The trial that is kept.
        best: The best trial of the search.
        published: The best trial with published settings; None where all of these failed.
        gain: By how much the best beats the published one; None where that was not measured.
    """

    chosen: Trial
    best: Trial
    published: Trial | None
    gain: Gain | None = None

    @property
    def identified(self) -> bool:
        """Whether the data tell the chosen settings from the published ones."""
        return self.chosen is not self.published


class Trainer(Protocol):
    """Trains trials end to end, for `tune.mode: finetune`.

    Attributes:
        held: int (num_held,), train images of the slice set aside, the same for every trial and
            scenario.
        steps: Optimiser steps of a trial that is not pruned.
    """

    held: np.ndarray
    steps: int

    def evaluations(self, settings: Mapping[str, Any]) -> Generator[tuple[int, np.ndarray]]:
        """Yield (step, logits of the slice if training ended there); closed early, it is pruned."""


def tune(
    matrix: TrainMatrix,
    strategy: type[Strategy],
    fixed: Mapping[str, Any],
    settings: Tune,
    seed: int,
    fold_seed: list[int],
    store: SearchStore | None = None,
    trainer: Trainer | None = None,
    solve: Solve = solver.search,
) -> Choice:
    """Search a strategy's settings and the penalty by patient-grouped cross-validation in train.

    With a trainer, every trial is trained end to end instead and scored on the one slice of train
    that it sets aside.

    Args:
        matrix: Train rows, nothing else.
        strategy: Class of the strategy.
        fixed: Settings that are not searched.
        settings: The `tune` section.
        seed: Re-draws plans and the search.
        fold_seed: Seed of the inner folds, the same for every scenario.
        store: Where batches are kept and read back; None keeps nothing.
        trainer: Trains the trials, one after the other; None solves heads on the features, in
            batches.
        solve: Solves a batch of heads.

    Raises:
        DataError: When the store cannot be written.
        TrialFailed: When every trial failed, with the last cause.
    """
    images = pd.DataFrame({"patient": matrix.patients, "label": matrix.image_labels})
    rarest = int(strata.patients_per_class(images).min())
    num_folds = min(settings.inner_folds, rarest)
    if num_folds < 2:
        return _without_search(strategy.published(matrix.views, fixed), settings, num_folds)
    fold_of = strata.assign_folds(images, num_folds, fold_seed)
    search: Search
    if trainer is None:
        search = Search(matrix, strategy, fixed, settings, seed, fold_of, solve)
    else:
        search = TrainedSearch(matrix, strategy, fixed, settings, seed, fold_of, trainer=trainer)
    trials = search.run(store)
    decision = decide(trials, search.scorer)
    return Choice(
        settings=decision.chosen.settings,
        summary=search.summary(trials, decision),
        trials=trial_table(trials),
        out_of_fold=search.out_of_fold(decision.chosen),
        inner_draws=partial(search.scorer.resampled, decision.chosen),
    )


def decide(trials: Sequence[Trial], scorer: Scorer) -> Decision:
    """Keep the published settings unless the best trial beats them by two standard errors.

    The standard error is paired and over patients (bootstrap). Below it these data do not identify
    the parameter, and noise would choose it.

    Raises:
        TrialFailed: When no trial is complete.
    """
    complete = [trial for trial in trials if trial.state == "complete"]
    if not complete:
        raise TrialFailed(f"All {len(trials)} trials failed. The last one: {trials[-1].error}")
    best = scorer.best(complete)
    num_published = len(scorer.settings.l2_first)
    first = [trial for trial in complete if trial.number < num_published]
    if not first:
        return Decision(chosen=best, best=best, published=None)
    published = scorer.best(first)
    if best is published:
        return Decision(chosen=published, best=best, published=published)
    gain = scorer.gain(best, published)
    is_clear = gain.value > _STANDARD_ERRORS * gain.standard_error
    is_more_feasible = published.violation > max(best.violation, 0)
    chosen = best if is_clear or is_more_feasible else published
    return Decision(chosen, best, published, gain)


def _without_search(published: dict[str, Any], settings: Tune, num_folds: int) -> Choice:
    """The published settings, for want of patients to search with."""
    summary = SearchSummary(
        score=None,
        best_score=None,
        published_score=None,
        gain=0.0,
        gain_se=None,
        objective=settings.objective,
        identified=False,
        feasible=True,
        reason="a class has fewer than 2 train patients, so nothing was searched: "
        "published settings",
        trials=0,
        failed_trials=0,
        inner_folds=num_folds,
    )
    return Choice({**published, "l2": settings.l2_first[0]}, summary, pd.DataFrame())


class Fold(NamedTuple):
    """An inner fold.

    Attributes:
        inside: int (num_inside,), train images outside the fold, which train.
        held: int (num_held,), those in it, which score.
        rows: What a strategy sees: the images `inside` and nothing of the others.
    """

    inside: np.ndarray
    held: np.ndarray
    rows: TrainRows


class Shared(NamedTuple):
    """Rows that all heads of a batch share.

    Attributes:
        matrix: The rows.
        rotated: Their standardised features, rotated once. No search needs their basis, which is
            empty where the rotated rows themselves were kept.
    """

    matrix: TrainMatrix
    rotated: solver.Rotated

    @classmethod
    def of(cls, matrix: TrainMatrix, standardiser: rows_.Standardiser) -> Shared:
        """Rotate the rows; mean and spread of a feature depend on no label, plan or fold."""
        every_row = np.arange(len(matrix.row))
        standardised = rows_.Rows(matrix.features, every_row, np.float32, standardiser)
        if matrix.rotations is not None and _is_kept_rotated(standardised):
            rotated = _kept_rotated(standardised, matrix.rotations)
        else:
            rotated = solver.Rotated.of(standardised, matrix.scratch_folder, matrix.rotations)
        return cls(matrix, rotated)


def _is_kept_rotated(standardised: rows_.Rows) -> bool:
    """Whether rotated rows are kept, and not their basis alone: they are read in a tenth of the time of the product."""
    num_rows, num_features = standardised.shape
    is_one_block = num_rows <= rows_.BLOCK_ROWS
    return is_one_block and num_rows <= _MOST_ROWS_FRACTION * num_features


def _kept_rotated(standardised: rows_.Rows, kept: Kept) -> solver.Rotated:
    def make() -> Arrays:
        rotated = solver.Rotated.of(standardised)
        return {"matrix": rotated.matrix, "spectrum": rotated.spectrum}

    arrays = kept.arrays(key_of("rotated rows", standardised), make)
    no_basis = np.empty((0, 0), np.float32)
    return solver.Rotated(arrays["matrix"], no_basis, arrays["spectrum"])


@dataclass
class Search:
    """The trials of one strategy on one set of train rows.

    Each candidate is solved once for every inner fold and scored on the out-of-fold rows of all.

    Attributes:
        matrix: Train rows.
        strategy: Class of the strategy.
        fixed: Settings that are not searched.
        settings: The `tune` section.
        seed: Of the plans and of the suggestions.
        fold_of: int (num_images,), inner fold of each train image.
        solve: Solves a batch of heads.
    """

    matrix: TrainMatrix
    strategy: type[Strategy]
    fixed: Mapping[str, Any]
    settings: Tune
    seed: int
    fold_of: np.ndarray
    solve: Solve = solver.search

    def __post_init__(self) -> None:
        self.published = self.strategy.published(self.matrix.views, self.fixed)
        self.parameters = self.strategy.parameters() | {"l2": _penalty(self.settings)}

    @property
    def scored(self) -> np.ndarray:
        """The train images that score the trials, int (num_scored,): here all of them."""
        return np.arange(len(self.matrix.image_labels))

    @property
    def scored_folds(self) -> np.ndarray | None:
        """Inner fold of each of them; None where one model scores them all."""
        return self.fold_of

    @cached_property
    def scorer(self) -> Scorer:
        """Scores the trials."""
        return Scorer(
            labels=self.matrix.image_labels[self.scored],
            patients=self.matrix.patients[self.scored],
            num_classes=self.matrix.num_classes,
            positive=self.matrix.positive,
            settings=self.settings,
            seed=self.seed,
            fold_of=self.scored_folds,
        )

    def out_of_fold(self, chosen: Trial) -> OutOfFold:
        """Scores of a complete trial, by models that did not see the image."""
        if chosen.logits is None:
            raise ValueError("a failed trial has no scores")
        return OutOfFold(self.scored, chosen.logits)

    @property
    def batch_size(self) -> int:
        """Trials that are asked for, solved and told together."""
        return self.settings.batch_trials

    def run(self, store: SearchStore | None = None) -> list[Trial]:
        """Make all trials, in order. Batches that the store holds are read back, not solved.

        A batch follows from its place and from the trials before it. So a search that was killed
        and goes on gives the same numbers to the last bit, and so do two processes at once.
        """
        study = self._new_study()
        key = "" if store is None else self.key(store.data_digest)
        trials: list[Trial] = []
        starts = range(0, self.settings.trials, self.batch_size)
        for start in parallel.progress(starts, "searching", len(starts), "batches of trials"):
            asked = self._ask(study, start)
            candidates = [self._suggest(trial) for trial in asked]
            if store is None:
                outcomes = self._evaluate(candidates, asked)
            else:
                path = store.batch_path(key, start, candidates)
                outcomes = self._recalled(path, candidates, asked)
            batch = self._judged(candidates, outcomes, start)
            for asked_trial, trial in zip(asked, batch):
                self._tell(study, asked_trial, trial)
            trials += batch
        if store is not None:
            content = digest_of([key, self.settings.trials])
            store.publish(study, self.settings.objective, content, hidden=self.fixed)
        return trials

    def score(self, candidates: Sequence[dict[str, Any]]) -> list[Trial]:
        """Solve candidates as one batch and score them; each holds the settings and `l2`."""
        return self._judged(candidates, self._solved(candidates))

    def key(self, data_digest: str) -> str:
        """Names this search. Other data, settings, code or packages are another search."""
        return digest_of(
            {
                "data": data_digest,
                "folds": self.fold_of,
                "seed": self.seed,
                "strategy": [self.strategy.name(), self.strategy.__qualname__],
                "parameters": {name: asdict(item) for name, item in self.parameters.items()},
                "published": self.published,
                "fixed": self.fixed,
                "tune": self.settings.model_dump(exclude={"trials"}),
                "code": environment.code_digest(*self.code()),
                "packages": environment.versions_of(*self.packages()),
            }
        )

    def code(self) -> tuple[str, ...]:
        """Folders and files of the package that the numbers come from.

        Of the strategies only the files that this one is made of: editing one remedy must not
        forget the searches of another.
        """
        return "scenario", "evaluation", "split", *strategy_files(self.strategy)

    def packages(self) -> tuple[str, ...]:
        """Packages that the numbers come from."""
        return _PACKAGES

    def summary(self, trials: Sequence[Trial], decision: Decision) -> SearchSummary:
        """The scores behind a decision."""
        published = decision.published
        gain = decision.gain
        return SearchSummary(
            score=decision.chosen.score,
            best_score=decision.best.score,
            published_score=None if published is None else published.score,
            gain=0.0 if gain is None else gain.value,
            gain_se=None if gain is None else gain.standard_error,
            objective=self.settings.objective,
            identified=decision.identified,
            feasible=decision.chosen.violation <= 0,
            reason="",
            trials=len(trials),
            failed_trials=sum(trial.failed for trial in trials),
            inner_folds=len(np.unique(self.fold_of)),
            trial=decision.chosen.number,
        )

    # --- asking, remembering, telling -------------------------------------------------------------

    def _new_study(self) -> optuna.Study:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        # Twenty trials of five evaluations are too few for Hyperband: each of its brackets wants
        # more than ten trials. The published settings are never pruned: what is kept is measured
        # against them. Nor is a trial before its first step: its weights are those of the probe.
        pruner = optuna.pruners.MedianPruner(
            n_startup_trials=len(self.settings.l2_first), n_warmup_steps=1
        )
        direction = "maximize" if self.scorer.maximises else "minimize"
        return optuna.create_study(direction=direction, pruner=pruner)

    def _ask(self, study: optuna.Study, start: int) -> list[optuna.Trial]:
        """The next batch of trials; before all others the published settings, once per penalty."""
        study.sampler = optuna.samplers.TPESampler(seed=self._batch_seed(start))
        end = min(start + self.batch_size, self.settings.trials)
        for l2 in self.settings.l2_first[start:end]:
            first = {**self.published, "l2": l2}
            for name in self.fixed:
                del first[name]
            study.enqueue_trial(first)
        return [study.ask() for _ in range(start, end)]

    def _batch_seed(self, start: int) -> int:
        """A seed for every batch: with the same one each would suggest the values of the first."""
        if start == 0:
            return self.seed % 2**32
        return int(np.random.SeedSequence([self.seed, start]).generate_state(1)[0])

    def _suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """The settings that a trial tries, in the order of the strategy's file, `l2` last."""
        settings = {}
        for name, parameter in self.parameters.items():
            # A fixed one is suggested too, and the value left unused: the others are drawn after
            # it as they would be if nothing were fixed.
            settings[name] = suggest(trial, name, parameter, self.matrix.views)
        settings.update(self.fixed)
        return settings

    def _recalled(
        self, path: Path, candidates: Sequence[dict[str, Any]], asked: Sequence[optuna.Trial]
    ) -> Sequence[Outcome]:
        """The outcomes of a batch as they were kept, or made and kept now."""
        kept = read_batch(path, len(candidates), len(self.scorer.labels))
        if kept is None:
            outcomes = self._evaluate(candidates, asked)
            write_batch(path, outcomes)
            return outcomes
        for trial, outcome in zip(asked, kept):
            for report in outcome.reports:
                trial.report(report.score, report.step)
        return kept

    def _evaluate(
        self, candidates: Sequence[dict[str, Any]], asked: Sequence[optuna.Trial]
    ) -> Sequence[Outcome]:
        """What a batch comes to; `asked` hears of scores that trials have on their way."""
        return self._solved(candidates)

    def _judged(
        self, candidates: Sequence[dict[str, Any]], outcomes: Sequence[Outcome], start: int = 0
    ) -> list[Trial]:
        trials = []
        for number, (candidate, outcome) in enumerate(zip(candidates, outcomes), start=start):
            trials.append(self.scorer.judge(number, candidate, outcome))
        return trials

    def _tell(self, study: optuna.Study, asked: optuna.Trial, trial: Trial) -> None:
        if trial.error:
            asked.set_user_attr("error", trial.error)
        if trial.pruned:
            study.tell(asked, state=TrialState.PRUNED)
            return
        if trial.failed:
            study.tell(asked, state=TrialState.FAIL)
            return
        if self.settings.constraint:
            asked.set_constraint(self.settings.constraint.metric, trial.violation)
        study.tell(asked, trial.score)

    # --- one batch of heads -----------------------------------------------------------------------

    @cached_property
    def folds(self) -> list[Fold]:
        """The inner folds."""
        folds = []
        for fold in np.unique(self.fold_of):
            inside = np.flatnonzero(self.fold_of != fold)
            held = np.flatnonzero(self.fold_of == fold)
            folds.append(Fold(inside, held, self.matrix.train_rows(self.seed, inside)))
        return folds

    @cached_property
    def with_views(self) -> Shared:
        """All rows, for batches that draw views."""
        return Shared.of(self.matrix, self.matrix.standardiser)

    @cached_property
    def without_views(self) -> Shared:
        """Plain images, for batches that draw nothing else: of an imbalanced study half the rows and less."""
        return Shared.of(self.matrix.without_views(), self.matrix.standardiser)

    def _solved(self, candidates: Sequence[dict[str, Any]]) -> list[Outcome]:
        """Solve every candidate on every inner fold, all heads as one batch."""
        plans: list[Plan] = []
        objectives: list[Objective] = []
        errors = [""] * len(candidates)
        for index, candidate in enumerate(candidates):
            strategy = self.strategy.of(candidate)
            for fold in self.folds:
                try:
                    plan, objective = self._planned(strategy, fold)
                except _TRIAL_ERRORS as error:
                    errors[index] = str(error)
                    # A head that nobody reads keeps the place, so that the others stay in theirs.
                    # It learns from those of its fold, so it must see no row that is held back.
                    plan = Plan.of(fold.inside)
                    objective = Objective.neutral(self.matrix.num_classes)
                plans.append(plan)
                objectives.append(objective)
        draws_views = any(plan.view.any() for plan in plans)
        shared = self.with_views if draws_views else self.without_views
        weighted = shared.matrix.weighted(plans, objectives, shared.rotated.matrix)
        weighted = weighted.in_use(self.matrix.scratch_folder)
        solution = self.solve(
            replace(shared.rotated, matrix=weighted.features),
            weighted.labels,
            weighted.weights,
            objectives,
            np.repeat([candidate["l2"] for candidate in candidates], len(self.folds)),
            np.tile(np.arange(len(self.folds)), len(candidates)),
            self.matrix.scratch_folder,
        )
        return self._outcomes(solution, shared.rotated.matrix, errors)

    def _planned(self, strategy: Strategy, fold: Fold) -> tuple[Plan, Objective]:
        """What a strategy trains on outside one inner fold, and by which objective.

        Raises:
            TrialFailed: When it cannot, or draws augmented views which are not there.
        """
        plan = strategy.plan(fold.rows)
        base.plan_within_train(plan, len(fold.inside))
        counts = plan.counts(fold.rows.labels, self.matrix.num_classes)
        objective = strategy.objective(counts)
        plan = plan.within(fold.inside)
        self.matrix.require_views(plan)
        return plan, objective

    def _outcomes(
        self, solution: solver.Solution, table: np.ndarray, errors: Sequence[str]
    ) -> list[Outcome]:
        """What every candidate comes to, heads by candidate and fold; the table begins with the images."""
        shape = (len(errors), len(self.folds))
        is_solved = np.isfinite(solution.objective).reshape(shape).all(axis=1)
        logits = self._held_logits(solution, table, len(errors))
        outcomes = []
        for index, error in enumerate(errors):
            if error:
                outcomes.append(Outcome(None, error))
            elif not is_solved[index]:
                outcomes.append(Outcome(None, "the loss became NaN or infinite"))
            else:
                outcomes.append(Outcome(logits[index]))
        return outcomes

    def _held_logits(
        self, solution: solver.Solution, table: np.ndarray, num_candidates: int
    ) -> np.ndarray:
        """Out-of-fold logits of every candidate, (num_candidates, num_images, K); rows are gathered once for all."""
        _, columns, _ = solution.parameters.shape
        logits = np.empty((num_candidates, len(self.fold_of), columns), table.dtype)
        for place, fold in enumerate(self.folds):
            for block in rows_.blocks(len(fold.held)):
                images = fold.held[block]
                held = table[images]
                for index in range(num_candidates):
                    head = index * len(self.folds) + place
                    logits[index, images] = held @ solution.parameters[..., head]
        return logits


@dataclass
class TrainedSearch(Search):
    """Every trial is trained end to end, and pruned where it is worse than the median of its step.

    Trials are scored on one slice of train instead of inner folds, so the paired standard error of
    a gain is that of the patients of the slice alone.

    Attributes:
        trainer: Trains the trials.
    """

    trainer: Trainer = field(kw_only=True)

    @property
    def scored(self) -> np.ndarray:
        """The slice that the trainer sets aside."""
        return self.trainer.held

    @property
    def scored_folds(self) -> np.ndarray | None:
        """None: one model scores the slice."""
        return None

    @property
    def batch_size(self) -> int:
        """One: whether a trial is pruned depends on all that were before."""
        return 1

    def code(self) -> tuple[str, ...]:
        """Also the code of the pictures and the network."""
        return *super().code(), "embed"

    def packages(self) -> tuple[str, ...]:
        """Also those that train."""
        return _PACKAGES + _TRAINING_PACKAGES

    def summary(self, trials: Sequence[Trial], decision: Decision) -> SearchSummary:
        """The scores behind a decision, and the optimiser steps that they cost."""
        pruned = [trial for trial in trials if trial.pruned]
        update = {
            "inner_folds": 1,
            "pruned_trials": len(pruned),
            "steps": sum(trial.steps or 0 for trial in trials),
            "steps_saved": sum(self.trainer.steps - (trial.steps or 0) for trial in pruned),
            "slice_images": len(self.scorer.labels),
            "slice_patients": len(np.unique(self.scorer.patients)),
        }
        return super().summary(trials, decision).model_copy(update=update)

    def _evaluate(
        self, candidates: Sequence[dict[str, Any]], asked: Sequence[optuna.Trial]
    ) -> Sequence[Outcome]:
        return [self._trained(candidate, trial) for candidate, trial in zip(candidates, asked)]

    def _trained(self, candidate: dict[str, Any], asked: optuna.Trial) -> Outcome:
        """Train one trial, report its score at every evaluation, and stop it where that is poor."""
        outcome = Outcome(None, steps=0)
        try:
            with contextlib.closing(self.trainer.evaluations(candidate)) as evaluations:
                for step, logits in evaluations:
                    score = self.scorer.judge(asked.number, candidate, Outcome(logits)).score
                    asked.report(score, step)
                    reports = (*outcome.reports, Report(step, score))
                    outcome = Outcome(logits, reports=reports, steps=step)
                    # A trial that is through is never pruned: it costs nothing any more.
                    if step < self.trainer.steps and asked.should_prune():
                        return replace(outcome, pruned=True)
        except _TRIAL_ERRORS as error:
            return replace(outcome, logits=None, error=str(error))
        return outcome


def suggest(trial: optuna.Trial, name: str, parameter: Parameter, views: int) -> float:
    """A value of a parameter from an Optuna trial.

    Args:
        trial: What asks.
        name: Name of the parameter.
        parameter: Its range.
        views: Augmented views there are, the upper end of some parameters.
    """
    high = parameter.highest(views)
    if parameter.is_integer:
        return trial.suggest_int(name, parameter.low, high)
    return trial.suggest_float(name, parameter.low, high, log=parameter.log)


def strategy_files(strategy: type[Strategy]) -> list[str]:
    """Files of the package that a strategy is made of, and those that all strategies share."""
    files = {"strategies/base.py", "strategies/_samplers.py"}
    for kind in strategy.__mro__:
        package, _, module = kind.__module__.rpartition(".")
        if package == base.__package__:
            files.add(f"strategies/{module}.py")
    return sorted(files)


def _penalty(settings: Tune) -> Parameter:
    """The strength of the penalty, which every scenario searches alike."""
    return Parameter(
        published=settings.l2_first[0],
        low=settings.l2_low,
        high=settings.l2_high,
        log=True,
    )
