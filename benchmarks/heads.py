"""What heads cost after embedding, beside scikit-learn and imbalanced-learn, by turns, in processor time.

python benchmarks/heads.py [--films DIR --weights FILE | --ready DIR] [--rounds 2] [--only drawn heads study]

Films are ingested, split and embedded in a new folder (MobileNetV2, 224 px, 5 views); `--ready` names a checkout in
which that is done for `chest_xray`. Without either, the demo's images stand in. Everything has one BLAS thread. A peer
is fitted on the rows of its fold alone, in float32; its objective is measured in float64 on the same rows.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import machine
import numpy as np
import yaml
from imblearn.over_sampling import RandomOverSampler
from imblearn.pipeline import Pipeline
from imblearn.under_sampling import RandomUnderSampler
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

ROOT = Path(__file__).resolve().parents[1]

from equipoise.core import config
from equipoise.embed import stage as features
from equipoise.ingest import stage as ingest
from equipoise.pipeline import draw_phantoms
from equipoise.scenario import stage, tuning
from equipoise.scenario.heads import rows as rows_
from equipoise.scenario.heads import solver
from equipoise.scenario.matrix import Inputs, TrainMatrix
from equipoise.scenario.rounds import RoundKey, divide
from equipoise.split import stage as splits
from equipoise.split import strata
from equipoise.strategies import base
from equipoise.strategies.base import Objective

SCENARIOS = ("baseline", "oversample", "undersample", "class_weight", "augment", "weighted_augment")
BACKBONE = "mobilenetv2"

#: Tolerances of scikit-learn, the default first: the first one that reaches our objective is "equal".
TOLERANCES = (1e-4, 1e-5, 1e-6, 1e-7)

#: By how much its objective may lie above ours, relative.
EQUAL = 1e-6

#: Ratios that are aimed at, without views and with them.
PLAIN_TARGET, AUGMENT_TARGET = 1 / 8, 1 / 5

#: The same of a whole study: one round, and five folds five times.
ONE_ROUND_TARGET, ALL_ROUNDS_TARGET = 0.6, 0.35

#: Heads of a batch that the peer fits; the others are multiplied.
SAMPLED_HEADS = 5


@dataclass
class Line:
    """One line of the table: seconds of processor time, and the ratio that is aimed at."""

    name: str
    ours: float
    peer: float
    target: float | None = None
    note: str = ""

    def __str__(self) -> str:
        target = "" if self.target is None else _ratio(self.target)
        ratio = _ratio(self.ours / self.peer)
        return f"| {self.name} | {self.ours:.4g} s | {self.peer:.4g} s | {ratio} | {target} | {self.note} |"


def _ratio(value: float) -> str:
    return f"1/{1 / value:.1f}" if value < 0.3 else f"{value:.2f}"


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds of a call, and what it returns."""
    start = time.process_time()
    found = work()
    return time.process_time() - start, found


# --- what is measured -------------------------------------------------------------------------------------------------


@contextmanager
def real_study(options: argparse.Namespace) -> Iterator[config.Study]:
    """A study whose features are there, in a new folder that may be written to."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="heads") as name:
        os.chdir(name)
        try:
            yield _prepared(options)
        finally:
            os.chdir(before)


def _prepared(options: argparse.Namespace) -> config.Study:
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    is_demo = not (options.films or options.ready)
    name = "demo" if is_demo else "chest_xray"
    params["run"] = {"studies": [name], "backbones": [BACKBONE], "scenarios": list(SCENARIOS)}
    if options.films:
        params["studies"][name]["ingest"]["raw"] = str(options.films.resolve())
    if options.weights:
        params["studies"][name]["embed"]["weights"] = str(options.weights.resolve())
    Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    study = config.load_study(name)
    if options.ready:
        Path("data/features").mkdir(parents=True)
        for folder in ("raw", "manifest", "splits", f"features/{name}"):
            Path("data", folder).symlink_to(options.ready.resolve() / "data" / folder)
        return study
    if is_demo:
        draw_phantoms(study)
    ingest.run(study)
    splits.run(study)
    features.run(study, BACKBONE)
    return study


class Batch(NamedTuple):
    """The heads of one batch of a search."""

    matrix: TrainMatrix
    rotated: solver.Rotated
    labels: np.ndarray
    weights: np.ndarray
    objectives: Sequence[Objective]
    l2: np.ndarray
    folds: np.ndarray

    def solved(self) -> solver.Solution:
        """As a search solves them."""
        return solver.search(
            self.rotated, self.labels, self.weights, self.objectives, self.l2, self.folds
        )


def first_batches(study: config.Study, scenario: str) -> list[Batch]:
    """The batches that the search of the first round solves."""
    inputs = Inputs.read(study, BACKBONE, scenario)
    train = divide(inputs, RoundKey(0, 0, study.settings.train.seeds[0])).train
    # Nothing is kept, so that each rotation has its basis.
    matrix = replace(inputs.train_matrix(train.images, train.patients), rotations=None)
    batches = []

    def solve(*arguments: Any) -> solver.Solution:
        *of_batch, _ = arguments
        batches.append(Batch(matrix, *of_batch))
        return batches[-1].solved()

    tuning.tune(
        matrix,
        base.load_strategy(scenario),
        fixed={},
        settings=study.settings.tune,
        seed=train.seed,
        fold_seed=train.fold_seed,
        solve=solve,
    )
    return batches


# --- heads ------------------------------------------------------------------------------------------------------------


class Compared(NamedTuple):
    """Seconds per head."""

    ours: float
    rotating: float
    default: float
    equal: float
    highest_excess: float


def compare_heads(batch: Batch, standardised: np.ndarray) -> Compared:
    """Ours and the peer by turns.

    Args:
        batch: Heads on rows of which `standardised` are the features.
        standardised: float32 (num_rows, num_features).
    """
    exact = standardised.astype(np.float64)
    num_heads = len(batch.l2)
    ours, rotating, default, equal, excess = [], [], [], [], -np.inf
    batch.solved()
    for head in range(0, num_heads, -(-num_heads // SAMPLED_HEADS)):
        rotating.append(seconds(lambda: solver.Rotated.of(standardised))[0] / num_heads)
        spent, solution = seconds(batch.solved)
        ours.append(spent / num_heads)
        coefficients = batch.rotated.basis.astype(np.float64) @ solution.parameters[:-1, 0, head]
        mine = _objective(exact, batch, head, coefficients, solution.parameters[-1, 0, head])
        for tolerance in TOLERANCES:
            spent, model = seconds(lambda t=tolerance, j=head: _fitted(standardised, batch, j, t))
            theirs = _objective(exact, batch, head, model.coef_[0], model.intercept_[0])
            if tolerance == TOLERANCES[0]:
                default.append(spent)
                excess = max(excess, mine / theirs - 1)
            if theirs <= mine * (1 + EQUAL):
                break
        equal.append(spent)
    return Compared(
        ours=statistics.median(ours),
        rotating=statistics.median(rotating),
        default=statistics.fmean(default),
        equal=statistics.fmean(equal),
        highest_excess=excess,
    )


def _fitted(
    standardised: np.ndarray, batch: Batch, head: int, tolerance: float
) -> LogisticRegression:
    weights = batch.weights[:, head]
    used = weights > 0
    model = LogisticRegression(
        C=1 / (batch.l2[head] * weights.sum()), tol=tolerance, max_iter=10_000
    )
    return model.fit(standardised[used], batch.labels[used], sample_weight=weights[used])


def _objective(
    exact: np.ndarray, batch: Batch, head: int, coefficients: np.ndarray, intercept: float
) -> float:
    coefficients = coefficients.astype(np.float64)
    sign = np.where(batch.labels == 1, 1, -1)
    margin = sign * (exact @ coefficients + float(intercept))
    share = batch.weights[:, head] / batch.weights[:, head].sum()
    loss = share @ np.logaddexp(0, -margin)
    return float(loss + batch.l2[head] * coefficients @ coefficients / 2)


def heads(study: config.Study) -> list[Line]:
    """Heads of the searches of the first round."""
    lines = []
    for scenario in SCENARIOS:
        found = []
        for batch in first_batches(study, scenario):
            # The rotated rows turned back are the rows that the batch uses, standardised.
            standardised = batch.rotated.matrix[:, :-1] @ batch.rotated.basis.T
            found.append(compare_heads(batch, standardised))
        mean = Compared(*np.mean(found, axis=0))
        what = f"a head of {scenario}, {len(standardised):,} x {standardised.shape[1]:,}"
        worst = max(item.highest_excess for item in found)
        aimed_at = AUGMENT_TARGET if "augment" in scenario else PLAIN_TARGET
        lines += _lines(what, mean._replace(highest_excess=worst), aimed_at)
    return lines


def _lines(what: str, found: Compared, cached: float, included: float | None = None) -> list[Line]:
    """With the rotation cached, and remade for this batch; beside the ratios that are aimed at."""
    note = (
        f"scikit-learn at its default tolerance {found.default:.4f} s; "
        f"our objective at most {found.highest_excess:.0e} above that one's"
    )
    rotated = found.ours + found.rotating
    return [
        Line(f"{what}, rotation cached", found.ours, found.equal, cached, note),
        Line(f"{what}, rotation included", rotated, found.equal, included),
    ]


def correlated(rows: int, width: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 (rows, width) and labels with a minority of a fifth.

    Their spectrum falls as k^-1.25 exp(-k / 300), as that of 3,854 chest films and views does in
    MobileNetV2 (ImageNet).
    """
    rng, place = np.random.default_rng(seed), np.arange(1, width + 1)
    hidden = rng.normal(size=(rows, width))
    score = hidden @ (rng.normal(size=width) / np.sqrt(place))
    score = 3 * score / score.std() + rng.logistic(size=rows)
    turned = (
        hidden
        * np.sqrt(place**-1.25 * np.exp(-place / 300))
        @ np.linalg.qr(rng.normal(size=(width, width)))[0]
    )
    return turned.astype(np.float32), (score > np.quantile(score, 0.8)).astype(int)


def drawn() -> list[Line]:
    """32 heads on 5,000 drawn rows of 1,920 features."""
    matrix, labels = correlated(5_000, 1_920)
    standardised = rows_.Standardiser.fit(matrix).apply(matrix, np.float32)
    standardised = np.ascontiguousarray(standardised)
    rng = np.random.default_rng(32)
    fold = rng.integers(5, size=len(labels))
    weights = np.stack(
        [(fold != j % 5) * np.where(labels == 0, 1, rng.uniform(0.3, 5)) for j in range(32)], axis=1
    )
    rotated = solver.Rotated.of(standardised)
    objectives = [Objective.neutral(2)] * 32
    l2 = 10 ** rng.uniform(-3, 1, 32)
    folds = np.arange(32) % 5
    batch = Batch(None, rotated, labels, weights, objectives, l2, folds)  # type: ignore[arg-type]
    found = compare_heads(batch, standardised)
    return _lines("a head of 32, 5,000 x 1,920 drawn", found, 1 / 60, 1 / 20)


# --- a study ----------------------------------------------------------------------------------------------------------


#: Makes an estimator from a penalty per row, the classes' weights, and their sum over the rows.
MakeHead = Callable[[float, dict[int, float], float], Any]


def logistic_regression(l2: float, class_weight: dict[int, float], total: float) -> Any:
    """The head of scikit-learn's users."""
    return LogisticRegression(C=1 / (l2 * total), class_weight=class_weight, max_iter=10_000)


def peer_round(
    study: config.Study,
    scenario: str,
    key: RoundKey,
    trials: Any,
    make_head: MakeHead = logistic_regression,
) -> float:
    """What people write for one round: a loop over candidates and inner folds, then the best one on test.

    Args:
        study: Whose features are read.
        scenario: Which remedy.
        key: Which round.
        trials: The candidates, rows of trials.parquet.
        make_head: The estimator behind scaler and sampler.

    Returns:
        The highest mean AUROC over the inner folds.
    """
    inputs = Inputs.read(study, BACKBONE, scenario)
    rows = divide(inputs, key)
    matrix = inputs.train_matrix(rows.train.images, rows.train.patients)
    every_row, labels = np.asarray(matrix.features[:]), matrix.labels
    images = strata.assign_folds(
        _images_of(matrix), study.settings.tune.inner_folds, rows.train.fold_seed
    )
    fold_of = images[matrix.row]
    strategy = base.load_strategy(scenario)
    scores = []
    for candidate in trials.to_dict("records"):
        folds = []
        for fold in np.unique(images):
            inside = fold_of != fold
            model = _pipeline(
                strategy, candidate, matrix, every_row, labels, inside, key.seed, make_head
            )
            held = (fold_of == fold) & (matrix.view == 0)
            scores_held = model.decision_function(every_row[held])
            folds.append(roc_auc_score(labels[held], scores_held))
        scores.append(np.mean(folds))
    best = trials.to_dict("records")[int(np.argmax(scores))]
    everything = np.ones(len(labels), bool)
    model = _pipeline(strategy, best, matrix, every_row, labels, everything, key.seed, make_head)
    model.decision_function(inputs.features(rows.images))
    return float(np.max(scores))


def _images_of(matrix: TrainMatrix) -> Any:
    import pandas as pd

    return pd.DataFrame({"patient": matrix.patients, "label": matrix.image_labels})


def _pipeline(
    strategy: Any,
    candidate: dict[str, Any],
    matrix: TrainMatrix,
    every_row: np.ndarray,
    labels: np.ndarray,
    inside: np.ndarray,
    seed: int,
    make_head: MakeHead,
) -> Pipeline:
    """Standardise, resample and fit the rows inside, with the views that the candidate adds."""
    used = inside & (matrix.view <= candidate.get("copies", 0))
    counts = np.bincount(labels[used])
    fraction = candidate.get("target_fraction", 0.0)
    sampler: Any = "passthrough"
    after = counts
    if strategy.name() == "oversample":
        after = np.round(counts + fraction * (counts.max() - counts)).astype(int)
        sampler = RandomOverSampler(sampling_strategy=dict(enumerate(after)), random_state=seed)
    if strategy.name() == "undersample":
        after = np.round(counts - fraction * (counts - counts.min())).astype(int)
        sampler = RandomUnderSampler(sampling_strategy=dict(enumerate(after)), random_state=seed)
    weights = np.ones(len(counts))
    if "exponent" in candidate:
        weights = base.inverse_frequency(after, candidate["exponent"])
    head = make_head(candidate["l2"], dict(enumerate(weights)), float((weights * after).sum()))
    model = Pipeline([("scale", StandardScaler()), ("resample", sampler), ("head", head)])
    return model.fit(every_row[used], labels[used])


def whole_study(study: config.Study, rounds: int) -> list[Line]:
    """All scenarios, as stages in one process, beside the loop on some of the rounds, by turns."""
    import pandas as pd

    total_ours, total_peer = 0.0, 0.0
    lines = []
    for scenario in SCENARIOS:
        spent, _ = seconds(lambda s=scenario: stage.run(study, BACKBONE, s))
        trials = pd.read_parquet(study.result_path(BACKBONE, scenario) / "trials.parquet")
        keys = trials[["repeat", "fold", "seed"]].drop_duplicates()
        peers = []
        for repeat, fold, seed in keys.to_numpy()[:: max(1, len(keys) // rounds)][:rounds].tolist():
            key = RoundKey(repeat, fold, seed)
            of_round = trials[(trials["repeat"] == repeat) & (trials["fold"] == fold)]
            of_round = of_round[of_round["seed"] == seed].dropna(axis=1)
            peers.append(
                seconds(lambda s=scenario, k=key, t=of_round: peer_round(study, s, k, t))[0]
            )
        peer = statistics.fmean(peers) * len(keys)
        note = f"the loop on {len(peers)} rounds, multiplied"
        lines.append(Line(f"{scenario}, {len(keys)} rounds", spent, peer, note=note))
        print(lines[-1], flush=True)
        total_ours += spent
        total_peer += peer
    what = f"six scenarios, {len(keys)} rounds, without imports, split and comparison"
    target = ONE_ROUND_TARGET if len(keys) == 1 else ALL_ROUNDS_TARGET
    return [*lines, Line(what, total_ours, total_peer, target)]


def one_round(study: config.Study) -> config.Study:
    """The same features with a holdout split: one round, one seed."""
    links = [path for path in (Path("data/splits"),) if path.is_symlink()]
    for link in links:
        link.unlink()
    single = config.load_study(
        study.name, overrides={"split.scheme": "holdout", "split.repeats": 1}
    )
    splits.run(single)
    return single


def main() -> None:
    """Measure and print a Markdown table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_sources(parser)
    parser.add_argument("--rounds", type=int, default=2, help="rounds that the loop is measured on")
    parser.add_argument(
        "--only",
        nargs="+",
        default=["drawn", "heads", "study"],
        metavar="PART",
        help="drawn, heads, one, study",
    )
    options = parser.parse_args()
    lines: list[Line] = []
    with threadpool_limits(1, user_api="blas"):
        print(machine.described())
        if "drawn" in options.only:
            lines += drawn()
        with real_study(options) as study:
            if "heads" in options.only:
                lines += heads(study)
            if "study" in options.only:
                lines += whole_study(study, options.rounds)
            if "one" in options.only:
                lines += whole_study(one_round(study), 1)
    print("\n| what | ours | scikit-learn | ratio | aimed at | |\n|---|---|---|---|---|---|")
    for line in lines:
        print(line)


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Options that say where real features come from."""
    parser.add_argument("--films", type=Path, help="raw folder of chest_xray")
    parser.add_argument("--weights", type=Path, help="weights file of MobileNetV2")
    parser.add_argument("--ready", type=Path, help="checkout with features of chest_xray")


if __name__ == "__main__":
    main()
