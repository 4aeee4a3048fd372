"""Do the intervals cover, and how often is a verdict wrong? Simulated studies through the product's own functions.

python benchmarks/validation.py [--quick] [--only coverage errors power] [--workers 2] [--json FILE] [--fresh]

A study has as many patients in each class, every patient of one class, with 1 + Poisson(2) images ("even"), or with
1 + Poisson(2 G), G a gamma variable of shape 1/2 and mean 1 ("uneven": some with more than 15, so that 50 patients are
worth 24 of equal size). The logit of an image is normal around that of its class; `correlation` of its variance is the
patient's. True values are those of 1,000,000 images at evenly spaced quantiles of the same law. Cells are kept in the
JSON file as they are done, so a stopped run goes on.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import joblib
import numpy as np
from scipy import special
from threadpoolctl import threadpool_limits

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

from equipoise.compare import paired as paired_
from equipoise.evaluation import intervals, metrics

FLOOR, ALPHA, RESAMPLES = 0.95, 0.05, 2_000
PRIMARY = metrics.Endpoint("free", "specificity_at_sensitivity")
AUROC = metrics.Endpoint("free", "auroc")
ALONE = (
    AUROC,
    metrics.Endpoint("raw", "sensitivity"),
    metrics.Endpoint("raw", "specificity"),
    PRIMARY,
    metrics.Endpoint("raw", "brier"),
)
UNITS = ("patients", "images")
#: The product's intervals, the same without Hesterberg's expansion, and the naive bootstrap of images.
KINDS = ("patients", "plain", "images")
#: Correlation of the logits of two models on the same image, beyond its class.
SHARED = 0.8
BASE_SPECIFICITY = 0.67  # at the floor, where the AUROC is 0.93
PATIENTS, GAINS = (10, 20, 50, 100, 200), (0.05, 0.1)
LAWS = ((0.0, "even"), (0.3, "even"), (0.6, "even"), (0.6, "uneven"))
BACKBONES, RIVALS = 2, 5
CHUNK = 10


def distance(specificity: float) -> float:
    """Standard deviations between the classes that give this specificity at the sensitivity floor."""
    return float(special.ndtri(specificity) + special.ndtri(FLOOR))


def simulate(
    rng: np.random.Generator,
    patients: int,
    correlation: float,
    distances: list[float],
    sizes: str = "even",
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One study: patient (n,) and label (n,) of each image, and each model's probabilities (models, n).

    Args:
        rng: Where chance comes from.
        patients: In each of the two classes.
        correlation: Within a patient, 0..1.
        distances: Between the classes, one for each model.
        sizes: "even" or "uneven" numbers of images.
    """
    mean = (
        2 * rng.gamma(0.5, 2, size=2 * patients)
        if sizes == "uneven"
        else np.full(2 * patients, 2.0)
    )
    people = np.repeat(np.arange(2 * patients), 1 + rng.poisson(mean))
    labels, apart = (people >= patients).astype(int), np.array(distances)[:, None]

    def noise(size: int) -> np.ndarray:
        return np.sqrt(SHARED) * rng.normal(size=size) + np.sqrt(1 - SHARED) * rng.normal(
            size=(len(apart), size)
        )

    spread = np.sqrt(correlation) * noise(2 * patients)[:, people] + np.sqrt(
        1 - correlation
    ) * noise(len(people))
    return people, labels, special.expit(apart * ((labels - 0.5) * apart + spread))


def evaluation(
    labels: np.ndarray,
    prob: np.ndarray,
    weights: np.ndarray,
    names: tuple[metrics.Endpoint, ...],
    units: np.ndarray,
) -> intervals.Evaluation:
    """What `intervals.evaluate` gives for these names, without the other metrics: simulations need few of them.

    Where the units are images, the plain percentiles that a bootstrap of rows would give.
    """
    probabilities = np.stack([1 - prob, prob], axis=1)
    sample = metrics.Sample(
        labels, probabilities, metrics.decide(probabilities, 1), 1, weights, FLOOR
    )
    known = {name: metrics.REGISTRY[name.metric] for name in names}
    return intervals.Evaluation(
        draws={name: metric.function(sample) for name, metric in known.items()},
        among={
            name: len(set(units[metric.among(sample)]))
            for name, metric in known.items()
            if metric.among
        },
        by_seed={},
        alpha=ALPHA,
        **(
            {"effective_patients": effective_patients(units, labels)}
            if len(set(units)) < len(units)
            else {}
        ),
    )


@cache
def truth(apart: float) -> dict[metrics.Endpoint, float]:
    """The values in 1,000,000 images, by the same functions."""
    half = special.ndtri((np.arange(500_000) + 0.5) / 500_000)
    labels = np.repeat([0, 1], len(half))
    prob = special.expit(apart * np.concatenate([half - apart / 2, half + apart / 2]))
    draws = evaluation(labels, prob, np.ones((1, len(prob))), ALONE, labels).draws
    return {name: float(values[0]) for name, values in draws.items()}


def paired(
    evaluations: dict[str, intervals.Evaluation], baselines: dict[str, str], name: metrics.Endpoint
) -> dict[str, paired_.Judged]:
    """Differences and verdicts, as the comparison makes them."""
    return paired_.paired(evaluations, baselines, primary=name, alpha=ALPHA, better=1)


def resampled(
    people: np.ndarray, labels: np.ndarray, resamples: int, seed: int, unit: str
) -> tuple[np.ndarray, np.ndarray]:
    """What is drawn as a whole, a patient or naively an image, (n,), and the weights (B + 1, n)."""
    units = people if unit == "patients" else np.arange(len(people))
    return units, np.take(
        intervals.patient_resamples(units, labels, resamples, seed)[1], units, axis=1
    )


def effective_patients(people: np.ndarray, labels: np.ndarray) -> float:
    """Patients of equal size that the rarer class is worth (Kish), as `Evaluation.effective_patients`."""
    images = [np.unique(people[labels == label], return_counts=True)[1] for label in (0, 1)]
    return float(min(counts.sum() ** 2 / (counts**2).sum() for counts in images))


# --- one study each: name -> number, averaged over studies -----------------------------------------------------------


def covered(
    patients: int, correlation: float, sizes: str, resamples: int, study: int
) -> dict[str, float]:
    """Whether each interval holds the truth; a miss below means that all of the interval lies below it."""
    rng = np.random.default_rng([1, patients, int(100 * correlation), len(sizes), study])
    distances = [distance(BASE_SPECIFICITY), distance(BASE_SPECIFICITY + GAINS[0])]
    people, labels, (base, rival) = simulate(rng, patients, correlation, distances, sizes)
    values, better = truth(distances[0]), truth(distances[1])
    found = {}

    def note(kind: str, name: str, low: float, high: float, value: float) -> None:
        found[f"{kind}|{name}|coverage"] = float(low <= value <= high)
        found[f"{kind}|{name}|below"], found[f"{kind}|{name}|above"] = (
            float(high < value),
            float(low > value),
        )
        found[f"{kind}|{name}|width"] = high - low

    for kind in KINDS:
        units, weights = resampled(
            people, labels, resamples, study, "images" if kind == "images" else "patients"
        )
        own = evaluation(labels, base, weights, ALONE, units)
        other = evaluation(labels, rival, weights, (AUROC, PRIMARY), units)
        if kind == "plain":
            own, other = (
                replace(own, effective_patients=1e6),
                replace(other, effective_patients=1e6),
            )
        bounds = {name: (own.interval(name), values[name]) for name in ALONE}
        for name in (AUROC, PRIMARY):
            delta, _ = paired({"baseline": own, "rival": other}, {"rival": "baseline"}, name)[
                "rival"
            ]
            bounds[f"difference in {name}"] = (delta, better[name] - values[name])
        for name, (interval, value) in bounds.items():
            note(kind, str(name), interval.low, interval.high, value)
    return found


def erred(
    patients: int, correlation: float, name: metrics.Endpoint, resamples: int, study: int
) -> dict[str, float]:
    """Whether any of the rivals gets a verdict, though none differs from its baseline in truth."""
    rng = np.random.default_rng([2, patients, int(100 * correlation), study])
    models = BACKBONES * (RIVALS + 1)
    people, labels, probs = simulate(
        rng, patients, correlation, [distance(BASE_SPECIFICITY)] * models
    )
    baselines = {str(model): str(model % BACKBONES) for model in range(BACKBONES, models)}
    found = {}
    for unit in UNITS:
        units, weights = resampled(people, labels, resamples, study, unit)
        own = {
            str(model): evaluation(labels, prob, weights, (name,), units)
            for model, prob in enumerate(probs)
        }
        judged = paired(own, baselines, name).values()
        verdicts = {rival.verdict for rival in judged}
        found[f"{unit}|any verdict"] = float(bool(verdicts & {"better", "worse"}))
        found[f"{unit}|any better"] = float("better" in verdicts)
        found[f"{unit}|any without Holm"] = float(
            any(rival.delta.p_value < ALPHA for rival in judged)
        )
        found[f"{unit}|each"] = float(np.mean([rival.delta.p_value < ALPHA for rival in judged]))
    return found


def decided(
    patients: int, correlation: float, gain: float, resamples: int, study: int
) -> dict[str, float]:
    """Whether a rival that is better by `gain` in the primary endpoint is found, alone and as the first of ten."""
    rng = np.random.default_rng([3, patients, int(100 * correlation), int(100 * gain), study])
    distances = [distance(BASE_SPECIFICITY), distance(BASE_SPECIFICITY + gain)]
    people, labels, probs = simulate(rng, patients, correlation, distances)
    units, weights = resampled(people, labels, resamples, study, "patients")
    own = {
        name: evaluation(labels, prob, weights, (PRIMARY,), units)
        for name, prob in zip(("baseline", "rival"), probs)
    }
    delta, verdict = paired(own, {"rival": "baseline"}, PRIMARY)["rival"]
    up = delta.value > 0
    return {
        "alone": float(verdict == "better"),
        "first of ten": float(up and delta.p_value < ALPHA / (BACKBONES * RIVALS)),
        "wrongly worse": float(verdict == "worse"),
    }


# --- cells -----------------------------------------------------------------------------------------------------------

Study = Callable[..., dict[str, float]]
Cell = tuple[str, Study, tuple[Any, ...]]


def cells(quick: bool) -> Iterator[Cell]:
    """Name, function and arguments of each cell of the tables."""
    for patients, (correlation, sizes) in product(
        (10, 50) if quick else PATIENTS, LAWS[-2:-1] if quick else LAWS
    ):
        yield f"coverage|{patients}|{correlation}|{sizes}", covered, (patients, correlation, sizes)
    families = ((0.0, PRIMARY), (0.6, PRIMARY), (0.6, AUROC))
    for patients, (correlation, name) in product(
        (50,) if quick else (50, 100), families[-1:] if quick else families
    ):
        yield f"errors|{patients}|{correlation}|{name}", erred, (patients, correlation, name)
    for patients, gain in product((100,) if quick else (100, 200), GAINS):
        yield f"power|{patients}|{gain}", decided, (patients, 0.3, gain)


def _chunk(
    function: Study, arguments: tuple[Any, ...], resamples: int, studies: range
) -> dict[str, float]:
    gc.freeze()  # multipletests collects garbage at every call: 0.1 s through all that is imported
    with threadpool_limits(1, user_api="blas"):
        done = [function(*arguments, resamples, study) for study in studies]
    return {name: math.fsum(one[name] for one in done) for name in done[0]}


def measure(
    function: Study, arguments: tuple[Any, ...], studies: int, resamples: int, workers: int
) -> dict:
    """Means over studies."""
    start = time.perf_counter()
    ranges = [range(first, min(first + CHUNK, studies)) for first in range(0, studies, CHUNK)]
    sums = joblib.Parallel(workers)(
        joblib.delayed(_chunk)(function, arguments, resamples, own) for own in ranges
    )
    means = {name: sum(one[name] for one in sums) / studies for name in sums[0]}
    seconds = round(time.perf_counter() - start, 1)
    return {"studies": studies, "resamples": resamples, "seconds": seconds, "means": means}


# --- tables ----------------------------------------------------------------------------------------------------------

WORDS = {
    str(AUROC): "AUROC",
    "raw.sensitivity": "sensitivity at 0.5",
    "raw.specificity": "specificity at 0.5",
    str(PRIMARY): "specificity at 95 % sensitivity",
    "raw.brier": "Brier score",
    f"difference in {AUROC}": "difference in AUROC",
    f"difference in {PRIMARY}": "difference in the primary",
}


def _error(share: float, studies: int) -> str:
    return f"{share:.3f} ± {math.sqrt(share * (1 - share) / studies):.3f}"


def _table(heads: list[str], rows: list[list[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables(found: dict[str, dict[str, Any]]) -> str:
    """Markdown of all cells."""
    parts: dict[str, dict[tuple[str, str], dict]] = {}
    for name, cell in found.items():
        kind, *at = name.split("|")
        parts.setdefault(kind, {})[tuple(at)] = cell
    text = []
    if coverage := parts.get("coverage"):
        at = sorted(coverage, key=lambda key: (key[2], float(key[1]), int(key[0])))
        heads = ["images, correlation", "patients per class", *WORDS.values()]
        for kinds, title in (
            (UNITS, "Coverage of 95 % intervals, patients resampled / images resampled:"),
            (("plain",), "Coverage of plain percentiles, patients resampled:"),
        ):
            rows = [
                [f"{key[2]}, {key[1]}", key[0]]
                + [
                    " / ".join(
                        f"{coverage[key]['means'][f'{kind}|{name}|coverage']:.3f}" for kind in kinds
                    )
                    for name in WORDS
                ]
                for key in at
            ]
            text += [title, _table(heads, rows)]
    if errors := parts.get("errors"):
        kinds = ("any verdict", "any better", "any without Holm")
        rows = [
            [WORDS[name], correlation, patients, unit]
            + [_error(cell["means"][f"{unit}|{kind}"], cell["studies"]) for kind in kinds]
            + [f"{cell['means'][f'{unit}|each']:.3f}"]
            for (patients, correlation, name), cell in errors.items()
            for unit in UNITS
        ]
        heads = [
            "endpoint",
            "correlation",
            "patients per class",
            "resampled",
            "any better or worse",
            "any better",
        ]
        heads += ["any p < 0.05 without Holm", "each p < 0.05"]
        text += [
            f"{BACKBONES * RIVALS} rivals equal to their baselines in truth, Holm, alpha 0.05:",
            _table(heads, rows),
        ]
    if power := parts.get("power"):
        kinds = ("alone", "first of ten", "wrongly worse")
        rows = [
            [patients, gain, *(_error(cell["means"][kind], cell["studies"]) for kind in kinds)]
            for (patients, gain), cell in power.items()
        ]
        heads = [
            "patients per class",
            "true gain",
            'one rival "better"',
            "p < 0.05 / 10",
            'wrongly "worse"',
        ]
        text += [
            "Share of studies that find the gain in the primary (correlation 0.3):",
            _table(heads, rows),
        ]
    return "\n\n".join(text)


def main() -> int:
    """Run what is not yet in the file, print the tables."""
    from bench import machine

    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="few and small cells, under a minute; writes no file"
    )
    parser.add_argument(
        "--only", nargs="+", choices=("coverage", "errors", "power"), help="some of the tables"
    )
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--studies", type=int, help="simulated studies per cell")
    parser.add_argument("--json", type=Path, help="file to write and to go on from")
    parser.add_argument(
        "--fresh", action="store_true", help="measure again what the file already holds"
    )
    options = parser.parse_args()
    studies, resamples = (
        options.studies or (200 if options.quick else 500),
        500 if options.quick else RESAMPLES,
    )
    target = options.json or (None if options.quick else ROOT / "benchmarks" / "validation.json")
    found: dict[str, Any] = {}
    if target and target.is_file() and not options.fresh:
        found = json.loads(target.read_text(encoding="utf-8"))["cells"]
    for name, function, arguments in cells(options.quick):
        same = name in found and (found[name]["studies"], found[name]["resamples"]) == (
            studies,
            resamples,
        )
        if same or (options.only and name.split("|")[0] not in options.only):
            continue
        found[name] = measure(function, arguments, studies, resamples, options.workers)
        print(f"{name}: {found[name]['seconds']:.0f} s", file=sys.stderr, flush=True)
        if target:
            kept = {
                "about": {**machine(), "processor": "2 cores of a shared cloud machine"},
                "cells": found,
            }
            target.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    print(tables(found))
    return 0


if __name__ == "__main__":
    # By its name: other processes import these functions, which they cannot do from a script.
    import validation

    raise SystemExit(validation.main())
