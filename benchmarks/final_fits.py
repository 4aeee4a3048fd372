"""Final fits of three classes beside L-BFGS on a rotated copy, and what a large one holds and writes.

    python benchmarks/final_fits.py --ready DIR    # a checkout where `embed` of chest_xray is done
    python benchmarks/final_fits.py --rows 200000  # drawn rows; --way ours or lbfgs in a process of its own

By turns in one process, processor time, one BLAS thread. The films' classes are normal, bacteria and
virus. Memory is anonymous (`RssAnon` of Linux): what is mapped from files is the system's to drop.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from equipoise.evaluation.metrics import softmax
from equipoise.scenario.heads import head, solver
from equipoise.scenario.heads.head import FINAL_TOLERANCE
from equipoise.scenario.heads.rows import Rows, Standardiser
from equipoise.strategies.base import Objective

BACKBONE = "mobilenetv2"
SUBTYPES = ("normal", "bacteria", "virus")
PENALTIES = (0.001, 0.01, 0.1, 1.0, 10.0)
FOCUSINGS = (0.0, 2.0)
NUM_FEATURES = 1280

#: Rows that are drawn at once.
BLOCK = 10_000


def seconds(work: Callable[[], Any]) -> tuple[float, Any]:
    """Processor seconds of a call, and what it returns."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


# --- the two ways ---------------------------------------------------------------------------------


def ours(rows: Rows, labels: np.ndarray, objective: Objective, l2: float) -> np.ndarray:
    """Coefficients and intercepts (num_features + 1, C) as a scenario fits them."""
    once = np.ones(len(labels))
    raw = rows.matrix
    fitted = head.fit(raw, labels, once, objective, l2, rows.standardiser)
    return np.vstack([fitted.coefficients, fitted.intercepts])


def by_lbfgs(
    rows: Rows, labels: np.ndarray, objective: Objective, l2: float, scratch: Path | None = None
) -> np.ndarray:
    """The same by the solver of searches, in float64 to the same tolerance."""
    rotated = solver.Rotated.of(rows, scratch)
    weights = objective.weights[labels][:, None]
    solution = solver.solve(rotated, labels, weights, [objective], np.array([l2]), FINAL_TOLERANCE)
    parameters = solution.parameters[..., 0]
    return np.vstack([rotated.basis @ parameters[:-1], parameters[-1]])


def by_scikit_learn(rows: np.ndarray, labels: np.ndarray, l2: float) -> LogisticRegression:
    """Its own L-BFGS at a tolerance of 1e-10."""
    model = LogisticRegression(C=1 / (l2 * len(labels)), tol=1e-10, max_iter=20_000)
    return model.fit(rows, labels)


# --- real features --------------------------------------------------------------------------------


def films(ready: Path, with_views: bool) -> tuple[np.ndarray, np.ndarray]:
    """Features float32 (num_rows, num_features) and labels of three classes."""
    folder = ready / "data/features/chest_xray" / BACKBONE
    index = pd.read_parquet(folder / "index.parquet")
    manifest = pd.read_parquet(ready / "data/manifest/chest_xray.parquet")
    subtype_of = manifest.drop_duplicates("sha256").set_index("sha256")["subtype"]
    labels = subtype_of.map(SUBTYPES.index)[index["sha256"]].to_numpy()
    features = np.load(folder / "features.npy", mmap_mode="r", allow_pickle=False)
    used = np.flatnonzero((index["view"] == 0) | with_views)
    return features[used], labels[used]


def compare(features: np.ndarray, labels: np.ndarray) -> None:
    """Print a line for each penalty and focusing."""
    standardiser = Standardiser.fit(features)
    every = np.arange(len(labels))
    rows = Rows(features, every, np.float64, standardiser)
    standardised = rows[:]

    def probabilities(parameters: np.ndarray) -> np.ndarray:
        return softmax(standardised @ parameters[:-1] + parameters[-1])

    for focusing in FOCUSINGS:
        objective = Objective.neutral(len(SUBTYPES)).replace(focusing=focusing)
        for l2 in PENALTIES:
            spent, mine = seconds(lambda o=objective, p=l2: ours(rows, labels, o, p))
            before, other = seconds(lambda o=objective, p=l2: by_lbfgs(rows, labels, o, p))
            expected = probabilities(other)
            apart = np.abs(probabilities(mine) - expected).max()
            line = f"| {len(labels):,} x {rows.shape[1]:,} | {focusing:g} | {l2:g} | {spent:.2f} s "
            line += f"| {before:.2f} s | {spent / before:.2f} | {apart:.0e} |"
            if not focusing:
                peer, model = seconds(lambda p=l2: by_scikit_learn(standardised, labels, p))
                apart = np.abs(probabilities(mine) - model.predict_proba(standardised)).max()
                line += f" {peer:.2f} s | {apart:.0e} |"
            print(line, flush=True)


# --- many rows ------------------------------------------------------------------------------------


def draw(folder: Path, num_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows whose spectrum falls as that of films does, in a file, and their labels."""
    rng, place = np.random.default_rng(0), np.arange(1, NUM_FEATURES + 1)
    spread = np.sqrt(place**-1.25 * np.exp(-place / 300))
    turn, _ = np.linalg.qr(rng.normal(size=(NUM_FEATURES, NUM_FEATURES)))
    towards = rng.normal(size=(NUM_FEATURES, 3)) / np.sqrt(place)[:, None]
    matrix = np.lib.format.open_memmap(
        folder / "drawn.npy", mode="w+", dtype=np.float32, shape=(num_rows, NUM_FEATURES)
    )
    labels = np.empty(num_rows, dtype=int)
    for start in range(0, num_rows, BLOCK):
        block = slice(start, min(start + BLOCK, num_rows))
        hidden = rng.normal(size=(block.stop - start, NUM_FEATURES))
        scores = 1.5 * hidden @ towards + rng.gumbel(size=(len(hidden), 3)) + [1.0, 0.0, -0.5]
        labels[block] = scores.argmax(axis=1)
        matrix[block] = (hidden * spread) @ turn
    matrix.flush()
    return np.load(folder / "drawn.npy", mmap_mode="r", allow_pickle=False), labels


def _of_process(file: str, name: str) -> int:
    """A number of /proc/self."""
    for line in Path("/proc/self", file).read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1])
    raise SystemExit(f"this machine's /proc/self/{file} has no {name}")


def measure(num_rows: int, way: str, l2: float = 0.1) -> None:
    """Print seconds, memory and bytes written of one fit."""
    with tempfile.TemporaryDirectory(prefix="fits") as name:
        folder = Path(name)
        matrix, labels = draw(folder, num_rows)
        every = np.arange(num_rows)
        standardiser = Standardiser.fit(Rows(matrix, every, matrix.dtype))
        rows = Rows(matrix, every, np.float64, standardiser)
        objective = Objective.neutral(3).replace(weights=np.array([1.0, 2.0, 3.0]))
        at_start = _of_process("status", "RssAnon")
        written = _of_process("io", "write_bytes")
        most = [at_start]
        ended = threading.Event()

        def watch() -> None:
            while not ended.wait(0.05):
                most[0] = max(most[0], _of_process("status", "RssAnon"))

        watching = threading.Thread(target=watch)
        watching.start()
        if way == "ours":
            spent, _ = seconds(lambda: ours(rows, labels, objective, l2))
        else:
            spent, _ = seconds(lambda: by_lbfgs(rows, labels, objective, l2, folder))
        ended.set()
        watching.join()
        written = _of_process("io", "write_bytes") - written
        print(
            f"{way}, {num_rows:,} x {NUM_FEATURES:,}: {spent:.0f} s, RssAnon {most[0] / 1024:,.0f} MB at most "
            f"({at_start / 1024:,.0f} at start), {written / 1e6:,.0f} MB written"
        )


def main() -> None:
    """Compare on films, or measure on drawn rows."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--ready", type=Path)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--way", choices=("ours", "lbfgs"), default="ours")
    options = parser.parse_args()
    with threadpool_limits(1):
        if options.rows:
            measure(options.rows, options.way)
        if options.ready:
            for with_views in (False, True):
                compare(*films(options.ready, with_views))


if __name__ == "__main__":
    main()
