"""One call for work that can run side by side, and one way of showing progress."""

from __future__ import annotations

import os
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from joblib import Parallel, delayed
from tqdm import tqdm

Item = TypeVar("Item")
_LINE_SECONDS = 5.0


def progress(items: Iterable[Item], description: str, total: int, unit: str = "it") -> Iterator[Item]:
    """Yield the items and show how far it is: a bar on a terminal, a line every few seconds elsewhere.

    Nothing is shown for what takes less than two seconds.
    """
    if sys.stderr.isatty():
        yield from tqdm(items, desc=description, total=total, unit=unit, delay=2.0, leave=False)
        return
    start = shown = time.monotonic()
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - shown >= _LINE_SECONDS and done < total:
            gone = now - start
            speed, left = f"{done / gone:.3g} {unit}/s", f"{gone / done * (total - done):.0f} s left"
            print(f"{description}: {done}/{total} {unit}, {speed}, {gone:.0f} s gone, {left}", file=sys.stderr)
            shown = now


def run_jobs(
    function: Callable[..., Item], jobs: Sequence[tuple[Any, ...]], description: str, workers: int
) -> list[Item]:
    """Call `function(*job)` for every job and return the results in the order of the jobs.

    Args:
        function: Importable function; it and its arguments travel to other processes.
        jobs: Arguments of each call.
        description: Shown with the progress.
        workers: Processes, -1 for one per core; 1 stays in this process.
    """
    if workers == 1 or len(jobs) <= 1:
        return [function(*job) for job in progress(jobs, description, len(jobs), "jobs")]
    results = Parallel(n_jobs=workers, return_as="generator")(delayed(function)(*job) for job in jobs)
    return list(progress(results, description, len(jobs), "jobs"))


def in_threads(
    function: Callable[[Item], Any], items: Sequence[Item], threads: int | None = None, ahead: int = 64
) -> Iterator[Any]:
    """Yield `function(item)` in order, computed by threads at most `ahead` items in front of the reader.

    For work that releases Python's lock: reading, decoding and hashing files.
    """
    with ThreadPoolExecutor(threads or os.cpu_count()) as pool:
        waiting: deque[Any] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for job in waiting:
                job.cancel()


class Timer:
    """Seconds since it was made, for lines such as `(3.2 s)`."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def __str__(self) -> str:
        return f"{time.monotonic() - self._start:.1f} s"
