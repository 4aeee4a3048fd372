"""The search of a remedy's settings inside train, and the head that is then fitted with them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from equipoise.core.config import Settings
from equipoise.core.errors import ConfigError
from equipoise.core.files import digest_of
from equipoise.scenario import tuning
from equipoise.scenario.finetuning import finetune
from equipoise.scenario.heads import head
from equipoise.scenario.heads.kept import Kept
from equipoise.scenario.matrix import Inputs, TrainMatrix, mixed
from equipoise.scenario.searches import SearchStore
from equipoise.strategies import base as strategies
from equipoise.strategies.base import Plan, Strategy

#: Stands for the round of the refit on all rows after k-fold, in seeds.
REFIT = 2**31

#: Beginning of the seed of the inner folds; other draws of a study begin with other numbers.
_INNER_FOLDS = 4


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
    if round_seed == [REFIT]:
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
    if strategy.PROBE_ONLY and fine_tunes(settings):
        raise ConfigError(
            f"Scenario '{inputs.scenario}' {strategy.PROBE_ONLY}, so it cannot be fine-tuned; "
            f"set train.mode and tune.mode to probe."
        )


def fine_tunes(settings: Settings) -> bool:
    """Whether the final model or the trials of the search are trained end to end."""
    return "finetune" in (settings.train.mode, settings.tune.mode)


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
