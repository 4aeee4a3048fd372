"""What a study of real features costs beside Keras' `fit` for each trial, in processor time.

python benchmarks/keras_fit.py [--films DIR --weights FILE | --ready DIR --weights FILE] [--candidates 1] [--all-rounds]

Two peers. One trains a Dense layer on cached features with `fit`, for each candidate and inner fold of our own search:
whole, on some candidates, multiplied. The other is what tutorials show: a frozen network over
`image_dataset_from_directory`, and `fit` for each candidate and inner fold: its rate is measured on some films, and
multiplied by the images that those fits would read. Ours is measured whole: the pass of the backbone anew, all
scenarios and the comparison. A round is one split with one seed; --all-rounds takes the study's own folds and repeats.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
from pathlib import Path
from typing import NamedTuple

import heads
import machine
import numpy as np
import pandas as pd
from sklearn.base import BaseEstimator
from threadpoolctl import threadpool_limits

from equipoise.compare import stage as compare
from equipoise.core import config
from equipoise.core.records import Manifest
from equipoise.core.text import counted
from equipoise.embed import backbones
from equipoise.embed import stage as features
from equipoise.ingest import originals
from equipoise.scenario import stage
from equipoise.scenario.rounds import RoundKey

#: Of one `fit`, a common choice.
EPOCHS = 10
_BATCH_IMAGES = 32
#: Films that the rate of the frozen network is measured on.
_SAMPLED_FILMS = 128
#: What is aimed at: ours over the tutorials' way.
_TARGET = 1 / 500


class DenseHead(BaseEstimator):
    """A Dense layer on features that is trained by `fit`, as an estimator of a pipeline."""

    def __init__(self, l2: float, class_weight: dict[int, float]) -> None:
        self.l2 = l2
        self.class_weight = class_weight

    def fit(self, rows: np.ndarray, labels: np.ndarray) -> DenseHead:
        """Ten epochs of Adam."""
        keras = backbones.load_keras()
        keras.utils.set_random_seed(0)
        penalty = keras.regularizers.L2(self.l2 / 2)
        inputs = keras.Input((rows.shape[1],))
        logit = keras.layers.Dense(1, kernel_regularizer=penalty)(inputs)
        self.network_ = keras.Model(inputs, logit)
        self.network_.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
        self.network_.fit(
            rows,
            labels,
            batch_size=_BATCH_IMAGES,
            epochs=EPOCHS,
            class_weight=self.class_weight,
            verbose=0,
        )
        return self

    def decision_function(self, rows: np.ndarray) -> np.ndarray:
        """Logits (num_rows,); `predict` would trace its graph anew for each fit, which is spared here."""
        return np.asarray(self.network_(rows, training=False))[:, 0]


def dense_head(l2: float, class_weight: dict[int, float], total: float) -> DenseHead:
    """The head of Keras' users, whose loss is a mean over a batch whatever the weights' sum is."""
    del total
    return DenseHead(l2, class_weight)


# --- ours -------------------------------------------------------------------------------------------------------------


def embed_seconds(study: config.Study) -> float:
    """Processor seconds of the whole embed stage, anew in a folder of its own."""
    with tempfile.TemporaryDirectory(prefix="embed") as name:
        root = Path(name)
        shutil.copy(study.root / "params.yaml", root)
        (root / "data").mkdir()
        for folder in ("manifest", "splits"):
            (root / "data" / folder).symlink_to((study.root / "data" / folder).resolve())
        raw = str(study.raw.resolve())
        anew = config.load_study(study.name, root=root, overrides={"ingest.raw": raw})
        return heads.seconds(lambda: features.run(anew, heads.BACKBONE))[0]


def scenario_seconds(study: config.Study) -> dict[str, float]:
    """Processor seconds of each scenario stage."""
    spent = {}
    for name in heads.SCENARIOS:
        spent[name] = heads.seconds(lambda n=name: stage.run(study, heads.BACKBONE, n))[0]
    return spent


# --- a Dense layer on cached features ---------------------------------------------------------------------------------


class Search(NamedTuple):
    """The trials of a scenario.

    Attributes:
        trials: Rows of trials.parquet.
        rounds: Repeat, fold and seed of each round.
        per_round: Candidates of a round.
        fits: Of all rounds: each candidate in each inner fold, and the chosen one once more.
    """

    trials: pd.DataFrame
    rounds: list[tuple[int, int, int]]
    per_round: int
    fits: int

    @classmethod
    def of(cls, study: config.Study, scenario: str) -> Search:
        """Of a scenario that has run."""
        trials = pd.read_parquet(study.result_path(heads.BACKBONE, scenario) / "trials.parquet")
        keys = ["repeat", "fold", "seed"]
        rounds = list(trials[keys].drop_duplicates().itertuples(index=False, name=None))
        per_round = len(trials) // len(rounds)
        fits = len(rounds) * (per_round * study.settings.tune.inner_folds + 1)
        return cls(trials, rounds, per_round, fits)


def on_features(study: config.Study, scenario: str, ours: float, candidates: int) -> heads.Line:
    """Our stage beside `fit` on the features for some candidates of its first round."""
    search = Search.of(study, scenario)
    repeat, fold, seed = search.rounds[0]
    of_round = search.trials.query("repeat == @repeat and fold == @fold and seed == @seed")
    some = of_round.dropna(axis=1).head(candidates)
    key = RoundKey(repeat, fold, seed)
    spent, auroc = heads.seconds(
        lambda: heads.peer_round(study, scenario, key, some, make_head=dense_head)
    )
    fits = candidates * study.settings.tune.inner_folds + 1
    note = (
        f"{search.fits} fits of {EPOCHS} epochs; {fits} measured, {1e3 * spent / fits:.0f} ms each, and multiplied; "
        f"inner AUROC {auroc:.4f}, ours with the same settings {some['score'].max():.4f}"
    )
    return heads.Line(
        f"{scenario}, {counted(len(search.rounds), 'round')} / Dense layer, fit on features",
        ours,
        spent / fits * search.fits,
        note=note,
    )


# --- a frozen network over files --------------------------------------------------------------------------------------


class Frozen(NamedTuple):
    """Processor seconds an image, of a `fit` over files and of the images themselves."""

    fit: float
    images: int


def frozen_fit(study: config.Study, weights: str, turns: int = 3) -> Frozen:
    """An epoch of `fit` of a Dense layer on a frozen network over `image_dataset_from_directory`."""
    keras = backbones.load_keras()
    size_px = study.settings.embed.image_size_px
    manifest = Manifest.read(study.manifest_path)
    table = manifest.table.sample(min(_SAMPLED_FILMS, len(manifest.table)), random_state=0)
    places = originals.locate(study, manifest)
    network = backbones.build(heads.BACKBONE, weights, size_px)
    network.trainable = False
    usual = keras.Sequential([network, keras.layers.Dense(1)])
    usual.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True))
    with tempfile.TemporaryDirectory(prefix="films") as name:
        for row in table.itertuples():
            source = study.raw / places[row.image_id]
            target = Path(name, str(row.label), f"{row.Index}{source.suffix}")
            target.parent.mkdir(exist_ok=True)
            shutil.copy(source, target)
        dataset = keras.utils.image_dataset_from_directory(
            name,
            label_mode="binary",
            image_size=(size_px, size_px),
            batch_size=_BATCH_IMAGES,
            verbose=False,
        )
        usual.fit(dataset, verbose=0)
        spent = [heads.seconds(lambda: usual.fit(dataset, verbose=0))[0] for _ in range(turns)]
    return Frozen(statistics.median(spent) / len(table), len(table))


def over_files(study: config.Study, frozen: Frozen, ours: float) -> heads.Line:
    """The whole study beside `fit` over files for each candidate and inner fold."""
    searches = [Search.of(study, name) for name in heads.SCENARIOS]
    fits = sum(search.fits for search in searches)
    splits = pd.read_parquet(study.splits_path)
    train = int((splits["part"] == "train").sum()) / len(searches[0].rounds)
    folds = study.settings.tune.inner_folds
    inside = train * (folds - 1) / folds
    images = fits * EPOCHS * inside
    seconds = images * frozen.fit
    note = (
        f"{fits} fits x {EPOCHS} epochs x {inside:.0f} films, nothing oversampled, at {1e3 * frozen.fit:.1f} ms, "
        f"measured on {frozen.images} films and multiplied: {seconds / 3600:.0f} h"
    )
    what = f"whole study, {counted(len(searches[0].rounds), 'round')} / image_dataset_from_directory, fit"
    return heads.Line(what, ours, seconds, _TARGET, note)


# --- all of it --------------------------------------------------------------------------------------------------------


def lines(
    study: config.Study, weights: str, candidates: int = 1, all_rounds: bool = False
) -> list[heads.Line]:
    """Ours beside both peers.

    Args:
        study: With features, in a folder that may be written to.
        weights: A file of the backbone, or `random`.
        candidates: Of each scenario's first round that the Dense layer is fitted for.
        all_rounds: Whether the study's own rounds are taken; else one.
    """
    passes = embed_seconds(study)
    measured = study if all_rounds else heads.one_round(study)
    ours = scenario_seconds(measured)
    comparing = heads.seconds(lambda: compare.run(measured))[0]
    measured_lines = [on_features(measured, name, ours[name], candidates) for name in ours]
    whole = passes + sum(ours.values()) + comparing
    print(
        f"ours: embed {passes:.0f} s, scenarios {sum(ours.values()):.1f} s, compare {comparing:.0f} s"
    )
    peers = sum(line.peer for line in measured_lines)
    measured_lines.append(
        heads.Line("six scenarios / Dense layer, fit on features", sum(ours.values()), peers)
    )
    measured_lines.append(over_files(measured, frozen_fit(measured, weights), whole))
    return measured_lines


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    heads.add_sources(parser)
    parser.add_argument("--candidates", type=int, default=1, help="of each scenario, to fit")
    parser.add_argument("--all-rounds", action="store_true", help="the study's folds and repeats")
    options = parser.parse_args()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    with threadpool_limits(1, user_api="blas"), heads.real_study(options) as study:
        print(machine.described())
        weights = str(options.weights.resolve()) if options.weights else "random"
        table = lines(study, weights, options.candidates, options.all_rounds)
    print("\n| what | ours | Keras | ratio | aimed at | |\n|---|---|---|---|---|---|")
    for line in table:
        print(line)


if __name__ == "__main__":
    main()
