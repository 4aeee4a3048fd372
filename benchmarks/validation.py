"""Do the intervals cover, and how often is a verdict right? Simulated studies through the product's own functions.

python benchmarks/validation.py [--quick] [--only coverage remedies thresholds] [--workers 2] [--json FILE] [--fresh]

`coverage`: a study has as many patients in each class, every patient of one class, with 1 + Poisson(2) images ("even"),
or with 1 + Poisson(2 G), G a gamma variable of shape 1/2 and mean 1 ("uneven": some with more than 15, so that 50
patients are worth 24 of equal size). The logit of an image is normal around that of its class; `correlation` of its
variance is the patient's. True values are those of 1,000,000 images at evenly spaced quantiles of the same law.

`remedies`: heads are trained on drawn features in 5 folds of whole patients, repeated; how many patients are positive
is drawn, and three in ten of them are hard. Ten rivals: eight that equal the baseline (other features that say
nothing), undersampling, and one more feature that helps. They are judged as the product judges.

`thresholds`: the baseline runs on drawn features in 5 folds of whole patients, as the scenario stage runs it, and its
models decide 20,000 images of each class that no study holds: is the sensitivity that was locked the one they have?

Cells are kept in the JSON file as they are done, so a stopped run goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from threadpoolctl import threadpool_limits

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

import simulated
from simulated import ALONE, AUROC, BASE_SPECIFICITY, EQUAL, FLOOR, RIVALS, SPECIFICITY, Cell

from equipoise.compare.judging import Family, difference, judge
from equipoise.core.documents import Difference, Interval
from equipoise.evaluation.intervals import Evaluation
from equipoise.scenario import rounds
from equipoise.scenario.artifact import ServedParts
from equipoise.scenario.rounds import RoundKey
from fabricate import made

RESAMPLES = 2_000
UNITS = ("patients", "images")
PATIENTS = (10, 20, 50, 100, 200)
LAWS = ((0.0, "even"), (0.3, "even"), (0.6, "even"), (0.6, "uneven"))
GAIN = 0.05
#: Positive and negative patients, repeats of the folds, and how much the one more feature tells.
REMEDIES = (
    Cell(20, 100, 5, 1.1),
    Cell(30, 300, 5, 1.1),
    Cell(60, 240, 5, 0.9),
    Cell(150, 600, 5, 0.9),
)
QUICK = (Cell(60, 240, 2, 0.9),)
#: Patients with the finding and without it.
LOCKED = ((50, 200), (100, 400))
CHUNK = 5

Numbers = dict[str, float]


# --- does an interval cover: a study at a time, name -> number, averaged over studies -------------


def covered(patients: int, correlation: float, sizes: str, resamples: int, study: int) -> Numbers:
    """Whether each interval holds the truth; below means that all of the interval lies below it."""
    rng = np.random.default_rng([1, patients, int(100 * correlation), len(sizes), study])
    apart = simulated.distance(BASE_SPECIFICITY)
    further = simulated.distance(BASE_SPECIFICITY + GAIN)
    scores = simulated.simulate(rng, patients, correlation, [apart, further], sizes)
    values = simulated.truth(apart)
    better = simulated.truth(further)
    found: Numbers = {}
    for units in UNITS:
        base = simulated.evaluated(scores.rows(0, units), resamples, study, ALONE)
        rival = simulated.evaluated(scores.rows(1, units), resamples, study, (AUROC, SPECIFICITY))
        for name in ALONE:
            _note(found, f"{units}|{name}", base.interval(name), values[name])
        deltas = {
            AUROC: judged_alone(base, rival),
            SPECIFICITY: difference(rival, base, SPECIFICITY),
        }
        for name, delta in deltas.items():
            gain = better[name] - values[name]
            _note(found, f"{units}|difference in {name}", delta, gain)
    return found


def judged_alone(baseline: Evaluation, rival: Evaluation) -> Difference:
    """The difference in AUROC of a single rival on one test part, as the comparison gives it."""
    return judged({"rival": rival}, baseline, folds=1)["rival"].delta


def judged(rivals: Mapping[str, Evaluation], baseline: Evaluation, folds: int) -> dict:
    """Verdicts on rivals beside one baseline, as the comparison gives them."""
    family = Family(
        evaluations={simulated.BASELINE: baseline, **rivals},
        baselines=dict.fromkeys(rivals, simulated.BASELINE),
        primary=AUROC,
        sign=1,
        folds=folds,
        patients=round(baseline.effective_patients),
    )
    return judge(family, simulated.settings(RESAMPLES, seed=0))


def _note(found: Numbers, name: str, interval: Interval, value: float) -> None:
    low, high = interval.low, interval.high
    if low is None or high is None:  # a study too small for this number does not show it
        return
    found[f"{name}|coverage"] = float(low <= value <= high)
    found[f"{name}|below"] = float(high < value)
    found[f"{name}|above"] = float(low > value)
    found[f"{name}|width"] = high - low


# --- is a verdict right ---------------------------------------------------------------------------


def remedied(cell: Cell, resamples: int, study: int) -> Numbers:
    """What the verdicts on ten rivals say, beside the truth."""
    rng = np.random.default_rng([4, cell.positives, cell.negatives, cell.repeats, study])
    trained = simulated.train(rng, cell)
    evaluations = {}
    for arm in (simulated.BASELINE, *RIVALS):
        evaluations[arm] = simulated.evaluated(trained.rows(arm), resamples, study, (AUROC,))
    baseline = evaluations.pop(simulated.BASELINE)
    rows = judged(evaluations, baseline, simulated.FOLDS)
    found = _errors(rows, simulated.expected_gains(cell))
    for rival, word in ((simulated.UNDERSAMPLE, "worse"), (simulated.EXTRA, "better")):
        alone = judged({rival: evaluations[rival]}, baseline, simulated.FOLDS)
        found[f"{rival} {word}"] = float(rows[rival].verdict == word)
        found[f"{rival} {word}, alone"] = float(alone[rival].verdict == word)
    return found


def _errors(rows: Mapping[str, Any], expected: Mapping[str, float]) -> Numbers:
    equal = [rows[rival].verdict for rival in EQUAL]
    inside = []
    wrong = []
    for rival, row in rows.items():
        inside.append(row.delta.low <= expected[rival] <= row.delta.high)
        wrong.append({"better": -1, "worse": 1}.get(row.verdict, 0) * expected[rival] > 5e-4)
    found = {
        "any equal rival better or worse": float(
            any(word in ("better", "worse") for word in equal)
        ),
        "all intervals cover": float(all(inside)),
        "any wrong sign": float(any(wrong)),
        "equal rivals equivalent": float(np.mean([word == "equivalent" for word in equal])),
        "detectable": float(np.median([rows[rival].delta.detectable for rival in EQUAL])),
    }
    # The winner, as the product chooses it in folds.
    better = [rival for rival, row in rows.items() if row.verdict == "better"]
    found["a winner"] = float(bool(better))
    if better:
        winner = max(better, key=lambda rival: rows[rival].delta.low)
        _note_winner(found, "winner", rows[winner].delta, expected[winner])
    highest = max(rows, key=lambda rival: rows[rival].delta.value)
    _note_winner(found, "highest", rows[highest].delta, expected[highest])
    return found


def _note_winner(found: Numbers, name: str, delta: Difference, value: float) -> None:
    found[f"{name}: estimate above truth"] = delta.value - value
    found[f"{name}: claim holds"] = float(delta.low <= value)
    found[f"{name}: interval covers"] = float(delta.low <= value <= delta.high)


# --- is a locked sensitivity kept ----------------------------------------------------------------


def locked(positives: int, negatives: int, _resamples: int, study: int) -> Numbers:
    """Sensitivity and specificity of a study's models at their locked thresholds, in new patients.

    The numbers of the five models of the folds are averaged, as they are in a comparison. Nothing is resampled.
    """
    rng = np.random.default_rng([6, positives, negatives, study])
    found = []
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        written = made.study(
            Path(folder),
            patients=(negatives, positives),
            num_features=simulated.WIDTH,
            split={"scheme": "kfold", "folds": simulated.FOLDS, "seed": study},
            embed={"views": 0},
            tune={"trials": 10, "inner_folds": 4, "batch_trials": 10, "sensitivity_floor": FLOOR},
            calibrate={"min_patients": 10},
        )
        simulated.draw_features(written, rng)
        for fold in range(simulated.FOLDS):
            key = RoundKey(repeat=0, fold=fold, seed=0)
            result = rounds.run_round(written, made.BACKBONE, simulated.BASELINE, key)
            found.append(_decided(result.served, np.random.default_rng([7, study])))
    sensitivity, specificity = np.mean(found, axis=0)
    return {"sensitivity": float(sensitivity), "specificity": float(specificity)}


def _decided(model: ServedParts, rng: np.random.Generator) -> tuple[float, float]:
    """Share of new positive images that a model calls positive, and of new negative ones that it does not."""
    shares = []
    for label in (1, 0):
        features = simulated.new_images(rng, label)
        prob = model.calibrator.apply(model.head.logits(features))[:, 1]
        is_called_positive = prob >= model.threshold
        shares.append(float(np.mean(is_called_positive == label)))
    sensitivity, specificity = shares
    return sensitivity, specificity


# --- cells ----------------------------------------------------------------------------------------

#: Numbers whose standard deviation over studies is told.
SPREAD = ("sensitivity", "specificity")

Study = Callable[..., Numbers]
Task = tuple[str, Study, tuple[Any, ...]]


def cells(quick: bool) -> Iterator[Task]:
    """Name, function and arguments of each cell of the tables."""
    for patients, (correlation, sizes) in product(
        (10, 50) if quick else PATIENTS, LAWS[-2:-1] if quick else LAWS
    ):
        yield f"coverage|{patients}|{correlation}|{sizes}", covered, (patients, correlation, sizes)
    for cell in QUICK if quick else REMEDIES:
        name = f"remedies|{cell.positives}|{cell.negatives}|{cell.repeats}|{cell.extra}"
        yield name, remedied, (cell,)
    for positives, negatives in LOCKED[:1] if quick else LOCKED:
        yield f"thresholds|{positives}|{negatives}", locked, (positives, negatives)


def _chunk(
    function: Study, arguments: tuple[Any, ...], resamples: int, studies: range
) -> list[Numbers]:
    with threadpool_limits(1, user_api="blas"):
        return [function(*arguments, resamples, study) for study in studies]


def measure(
    function: Study, arguments: tuple[Any, ...], studies: int, resamples: int, workers: int
) -> dict[str, Any]:
    """Means over studies; of what only some studies have, over those. Of few numbers the spread too."""
    start = time.perf_counter()
    ranges = [range(first, min(first + CHUNK, studies)) for first in range(0, studies, CHUNK)]
    chunks = joblib.Parallel(workers)(
        joblib.delayed(_chunk)(function, arguments, resamples, some) for some in ranges
    )
    of_name: dict[str, list[float]] = {}
    for chunk in chunks:
        for numbers in chunk:
            for name, value in numbers.items():
                of_name.setdefault(name, []).append(value)
    means = {name: math.fsum(values) / len(values) for name, values in of_name.items()}
    return {
        "studies": studies,
        "resamples": resamples,
        "seconds": round(time.perf_counter() - start, 1),
        "means": means,
        "spreads": {name: float(np.std(of_name[name])) for name in SPREAD if name in of_name},
    }


# --- tables ---------------------------------------------------------------------------------------

WORDS = {
    str(AUROC): "AUROC",
    "raw.sensitivity": "sensitivity at 0.5",
    "raw.specificity": "specificity at 0.5",
    str(SPECIFICITY): "specificity at 95 % sensitivity",
    "raw.brier": "Brier score",
    f"difference in {AUROC}": "difference in AUROC",
    f"difference in {SPECIFICITY}": "difference in that specificity",
}

#: What the second table says: head -> the name of its number.
VERDICTS = {
    "an equal rival gets a verdict": "any equal rival better or worse",
    "all ten intervals cover": "all intervals cover",
    "wrong sign": "any wrong sign",
    "equal rivals equivalent": "equal rivals equivalent",
    "undersampling worse, in ten": "undersample worse",
    "alone": "undersample worse, alone",
    "one more feature better, in ten": "one more feature better",
    "alone ": "one more feature better, alone",
    "highest: claim holds": "highest: claim holds",
    "a winner": "a winner",
    "winner: claim holds": "winner: claim holds",
}


def _share(means: Numbers, name: str) -> str:
    return f"{means[name]:.3f}" if name in means else "-"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def coverage_table(found: Mapping[str, dict[str, Any]]) -> str:
    """Markdown of the cells of `covered`."""
    rows = []
    for name, cell in found.items():
        _, patients, correlation, sizes = name.split("|")
        shares = []
        for word in WORDS:
            both = [_share(cell["means"], f"{units}|{word}|coverage") for units in UNITS]
            shares.append(" / ".join(both))
        rows.append([f"{sizes}, {correlation}", patients, *shares])
    heads = ["images, correlation", "patients per class", *WORDS.values()]
    return f"Coverage of 95 % intervals, patients resampled / images:\n\n{_table(heads, rows)}"


def remedies_table(found: Mapping[str, dict[str, Any]]) -> str:
    """Markdown of the cells of `remedied`."""
    rows = []
    for name, cell in found.items():
        _, positives, negatives, repeats, _ = name.split("|")
        shares = [_share(cell["means"], word) for word in VERDICTS.values()]
        optimism = []
        for who in ("highest", "winner"):
            optimism.append(_share(cell["means"], f"{who}: estimate above truth"))
        detectable = _share(cell["means"], "detectable")
        rows.append([f"{positives} + {negatives}, 5 x {repeats}", *shares, *optimism, detectable])
    heads = ["patients, folds x repeats", *VERDICTS, "highest: estimate above truth"]
    heads += ["winner: estimate above truth", "detectable"]
    return f"Ten rivals, margin {simulated.MARGIN:g}; share of studies:\n\n{_table(heads, rows)}"


def thresholds_table(found: Mapping[str, dict[str, Any]]) -> str:
    """Markdown of the cells of `locked`."""
    rows = []
    for name, cell in found.items():
        _, positives, negatives = name.split("|")
        shares = []
        for number in SPREAD:
            shares.append(f"{cell['means'][number]:.3f} ± {cell['spreads'][number]:.3f}")
        rows.append([f"{positives} + {negatives}", str(cell["studies"]), *shares])
    heads = ["patients", "studies", *SPREAD]
    return (
        f"Locked at a sensitivity of {FLOOR:g}; in new patients, mean and standard deviation over "
        f"studies:\n\n{_table(heads, rows)}"
    )


TABLES = {
    "coverage": coverage_table,
    "remedies": remedies_table,
    "thresholds": thresholds_table,
}


def tables(found: Mapping[str, dict[str, Any]]) -> str:
    """Markdown of all cells."""
    texts = []
    for kind, text_of in TABLES.items():
        of_kind = {name: cell for name, cell in found.items() if name.startswith(f"{kind}|")}
        if of_kind:
            texts.append(text_of(of_kind))
    return "\n\n".join(texts)


# --- the program ----------------------------------------------------------------------------------


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="few and small cells, two minutes; writes no file"
    )
    parser.add_argument("--only", nargs="+", choices=TABLES, help="these tables")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--studies", type=int, help="simulated studies per cell")
    parser.add_argument("--json", type=Path, help="file to write and to go on from")
    parser.add_argument(
        "--fresh", action="store_true", help="measure again what the file already holds"
    )
    return parser.parse_args()


def _studies(kind: str, options: argparse.Namespace) -> int:
    """How many studies a cell has unless it is said: those with heads take longer."""
    if options.studies:
        return options.studies
    if options.quick:
        return {"coverage": 100, "remedies": 40, "thresholds": 10}[kind]
    return {"coverage": 500, "remedies": 200, "thresholds": 200}[kind]


def main() -> int:
    """Run what is not yet in the file, print the tables."""
    from bench import machine
    from machine import described

    options = _options()
    print(described(), file=sys.stderr)
    resamples = 500 if options.quick else RESAMPLES
    target = options.json
    if target is None and not options.quick:
        target = ROOT / "benchmarks" / "validation.json"
    kept: dict[str, Any] = {}
    if target and target.is_file():
        kept = json.loads(target.read_text(encoding="utf-8"))["cells"]
    found = {}
    for name, function, arguments in cells(options.quick):
        kind, _, _ = name.partition("|")
        if options.only and kind not in options.only:
            continue
        studies = _studies(kind, options)
        cell = kept.get(name)
        if (
            options.fresh
            or not cell
            or (cell["studies"], cell["resamples"]) != (studies, resamples)
        ):
            cell = measure(function, arguments, studies, resamples, options.workers)
            print(f"{name}: {cell['seconds']:.0f} s", file=sys.stderr, flush=True)
        found[name] = cell
        kept[name] = cell
        if target:
            about = {**machine(), "processor": "2 cores of a shared cloud machine"}
            text = json.dumps({"about": about, "cells": kept}, indent=1)
            target.write_text(text + "\n", encoding="utf-8")
    print(tables(found))
    return 0


if __name__ == "__main__":
    # By its name: other processes import these functions, which they cannot do from a script.
    import validation

    raise SystemExit(validation.main())
