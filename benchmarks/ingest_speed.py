"""Images per second of `ingest` beside a bare loop that decodes and hashes the same files, alternately in one run.

python benchmarks/ingest_speed.py --study chest_xray --raw FOLDER [--times 10] [--rounds 5]

The bare loop reads every file, hashes its bytes, decodes it and hashes the pixels, by as many threads; nothing else.
`ingest` does that and walks the folder, reads names, shrinks, looks for near copies and writes the manifest. With
--times, every file is there that often as a copy, in folders copy0, copy1, ...: a small sample of large films is
read long enough to be timed. Processor time is printed beside wall time: on a machine that others use it says more.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from equipoise.core import config, images
from equipoise.ingest import stage as ingest

ROOT = Path(__file__).resolve().parents[1]


def bare(paths: list[Path]) -> None:
    """Decode and hash, nothing else."""

    def one(path: Path) -> tuple[str, str]:
        content = path.read_bytes()
        pixels = images.decode(content)
        return hashlib.sha256(content).hexdigest(), hashlib.sha256(pixels).hexdigest()

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for _ in pool.map(one, paths):
            pass


@dataclass(frozen=True)
class Cost:
    """What one call took, in seconds."""

    wall: float
    processor: float


def cost(work: Callable[[], object]) -> Cost:
    """Time one call."""
    start = time.perf_counter()
    start_processor = time.process_time()
    work()
    return Cost(time.perf_counter() - start, time.process_time() - start_processor)


def report(
    kind: str, images_read: int, bare_seconds: list[float], ingest_seconds: list[float]
) -> None:
    """Print both speeds and their ratio, the median of the rounds."""
    print(f"{kind}:")
    for name, values in (("bare loop", bare_seconds), ("ingest", ingest_seconds)):
        speed = images_read / statistics.median(values)
        print(f"  {name}: {speed:.0f} images/s ({min(values):.2f} to {max(values):.2f} s)")
    ratios = [100 * bare / ours for bare, ours in zip(bare_seconds, ingest_seconds)]
    middle = statistics.median(ratios)
    print(f"  ingest reaches {middle:.0f} % ({min(ratios):.0f} to {max(ratios):.0f} %)")


def main() -> None:
    """Print both speeds and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--study", default="chest_xray")
    parser.add_argument("--raw", type=Path, required=True)
    parser.add_argument("--times", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        raw = options.raw.resolve()
        for number in range(options.times if options.times > 1 else 0):
            shutil.copytree(raw, Path(folder) / f"raw/copy{number}")
        raw = Path(folder) / "raw" if options.times > 1 else raw
        study = config.load_study(options.study, config.read_params(ROOT), {"ingest.raw": str(raw)})
        paths = [raw / name for name in images.walk(raw)[0]]
        os.chdir(folder)
        ingest.run(study)  # warms the file cache and the imports
        pairs = [
            (cost(lambda: bare(paths)), cost(lambda: ingest.run(study)))
            for _ in range(options.rounds)
        ]
        os.chdir(ROOT)
    for kind in ("wall", "processor"):
        bare_seconds = [getattr(bare_cost, kind) for bare_cost, _ in pairs]
        ingest_seconds = [getattr(ingest_cost, kind) for _, ingest_cost in pairs]
        report(f"{kind} time", len(paths), bare_seconds, ingest_seconds)


if __name__ == "__main__":
    main()
