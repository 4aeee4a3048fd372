"""One call for work that can run side by side, and one way of showing progress."""

from __future__ import annotations

import logging
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from joblib import Parallel, delayed
from tqdm import tqdm

from equipoise.core.config import PARAMS, Engine
from equipoise.core.environment import difference, environment, masked, versions
from equipoise.core.errors import ConfigError, EquipoiseError
from equipoise.core.files import file_digest

Item = TypeVar("Item")


_LINE_SECONDS = 5.0


#: How long a scheduler may take to answer, and to have a first worker: a queue may let it wait.
_ANSWER_SECONDS, _WORKER_SECONDS = 10, 600


#: A worker may have several threads; limits of BLAS threads hold for a whole process, so it does one job at a time.
_ONE_JOB = threading.Lock()


def progress(
    items: Iterable[Item], description: str, total: int, unit: str = "it"
) -> Iterator[Item]:
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
            speed, left = (
                f"{done / gone:.3g} {unit}/s",
                f"{gone / done * (total - done):.0f} s left",
            )
            print(
                f"{description}: {done}/{total} {unit}, {speed}, {gone:.0f} s gone, {left}",
                file=sys.stderr,
            )
            shown = now


def run_jobs(
    function: Callable[..., Item], jobs: Sequence[tuple[Any, ...]], description: str, engine: Engine
) -> list[Item]:
    """Call `function(*job)` for every job and return the results in the order of the jobs.

    Neither the backend nor the number of workers changes a result. A job whose worker dies is given to another one.

    Args:
        function: Importable function; it and its arguments travel to other processes.
        jobs: Arguments of each call.
        description: Shown with the progress.
        engine: Where they run; one worker of `loky`, or a single job, stays in this process.

    Raises:
        ConfigError: When the scheduler cannot be joined, or a worker has another folder, package or code.
        EquipoiseError: When a job has ended four workers, or the scheduler went away.
    """
    if len(jobs) <= 1 or (engine.backend == "loky" and engine.workers == 1):
        return [function(*job) for job in progress(jobs, description, len(jobs), "jobs")]
    calls = [(str(Path.cwd()), versions(), function, job) for job in jobs]
    if engine.backend == "dask":
        results = _on_dask(calls, engine)
    else:
        results = Parallel(n_jobs=engine.workers, return_as="generator")(
            delayed(_call)(*call) for call in calls
        )
    return list(progress(results, description, len(jobs), "jobs"))


def _on_dask(calls: list[tuple[Any, ...]], engine: Engine) -> Iterator[Any]:
    # Not through joblib's bridge: it never returns when a job ends its workers or the scheduler goes away, and what
    # it scatters is lost with the worker that holds it (joblib 1.6, distributed 2026.8).
    with joined(engine) as client:
        from distributed import KilledWorker

        waiting = deque(client.submit(_call, *call, pure=False) for call in calls)
        try:
            while waiting:
                yield waiting[0].result()
                waiting.popleft()
        except (KilledWorker, CancelledError) as error:
            raise EquipoiseError(
                f"A job was lost on Dask ({type(error).__name__}): it ended every worker that tried it, for example "
                f"for want of memory, or the scheduler went away. Finished work is kept; the same command goes on."
            ) from error


@contextmanager
def joined(engine: Engine, wait_seconds: float = _WORKER_SECONDS) -> Iterator[Any]:
    """A client of the Dask scheduler that `engine` names, or of one started here with workers of one thread each.

    Raises:
        ConfigError: Without the package `distributed`, or when no scheduler or no worker answers.
    """
    try:
        from distributed import Client, LocalCluster
    except ImportError as error:
        raise ConfigError(
            'engine.backend is dask, and the package distributed is missing. Run `pip install "distributed>=2026.8"` '
            "(or `pip install -e .[cluster]` in a checkout), or set engine.backend to loky."
        ) from error
    address = engine.address
    if address is None:
        count = os.cpu_count() if engine.workers < 0 else engine.workers
        quiet: dict[str, Any] = {
            "dashboard_address": "127.0.0.1:0",
            "silence_logs": logging.CRITICAL,
            "memory_limit": 0,
        }
        with (
            LocalCluster(n_workers=count, threads_per_worker=1, **quiet) as cluster,
            Client(cluster) as client,
        ):
            yield client
        return
    place = "scheduler_file" if address.endswith(".json") else "address"
    try:
        client = Client(**{place: address}, timeout=_ANSWER_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"No Dask scheduler answers at {masked(address)} ({masked(error).splitlines()[0]}). Start `dask "
            f"scheduler`, correct engine.scheduler or EQUIPOISE_DASK_SCHEDULER, or set engine.backend to loky."
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=wait_seconds)
        except TimeoutError as error:
            raise ConfigError(
                f"The Dask scheduler at {masked(address)} has had no worker for {wait_seconds:.0f} s. "
                f"Start some with `dask worker {masked(address)} --nthreads 1`."
            ) from error
        yield client


def seen_from(folder: str) -> dict[str, str]:
    """What a worker sees: versions, params.yaml in the working folder, whether searches go to a database."""
    params = Path(folder) / PARAMS
    database = "set" if environment("EQUIPOISE_OPTUNA_STORAGE") else "not set"
    seen = {PARAMS: file_digest(params)[:12] if params.is_file() else f"not in {folder}"}
    return {**versions(), **seen, "EQUIPOISE_OPTUNA_STORAGE": database}


def _call(
    folder: str, wanted: Mapping[str, str], function: Callable[..., Item], job: tuple[Any, ...]
) -> Item:
    """In a worker: the same call as in the process that asked for it, or a refusal."""
    with _ONE_JOB:
        if found := difference(versions(), wanted):
            raise ConfigError(
                f"A worker would give other numbers: {found}. Install the same there and restart it."
            )
        try:
            os.chdir(folder)
        except OSError as error:
            raise ConfigError(
                f"A worker does not see {folder}: {error.strerror}. docs/scale.md: what is shared."
            ) from None
        return function(*job)


def batched(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    """Yield the items in order, at most `size` at a time.

    >>> list(batched([1, 2, 3, 4, 5], 2))
    [[1, 2], [3, 4], [5]]
    """
    for start in range(0, len(items), size):
        yield items[start : start + size]


def in_threads(
    function: Callable[[Item], Any],
    items: Sequence[Item],
    threads: int | None = None,
    ahead: int = 64,
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
