"""Work that can run side by side: jobs on processes or on Dask, threads, batches; and progress."""

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
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from joblib import Parallel, delayed
from tqdm import tqdm

from equipoise.core import extras
from equipoise.core.config import PARAMS, Engine
from equipoise.core.environment import difference, masked, silenced, silenced_level, versions
from equipoise.core.errors import ConfigError, EquipoiseError
from equipoise.core.files import file_digest
from equipoise.core.text import first_line

Item = TypeVar("Item")


#: A program that wants to show progress gives this logger the level INFO, as the command line does.
_LOG = logging.getLogger("equipoise.progress")


#: Between two lines of progress.
_LINE_SECONDS = 5.0


#: How long a scheduler may take to answer.
_ANSWER_SECONDS = 10.0


#: How long a scheduler may take to have a first worker: a queue may let workers wait.
_WORKER_SECONDS = 600.0


#: A worker may have several threads, but it does one job at a time: limits of BLAS threads hold for
#: a whole process.
_ONE_JOB = threading.Lock()


def progress(
    items: Iterable[Item], description: str, total: int, unit: str = "it"
) -> Iterator[Item]:
    """Yield the items and show how far the work is.

    A terminal shows a bar, a log gets a line every few seconds. Quick work shows nothing, and
    neither does a program that does not ask for it.

    Args:
        items: What to yield.
        description: Stands in front of the bar or line.
        total: Number of items.
        unit: What an item is called, in the plural.
    """
    if not _LOG.isEnabledFor(logging.INFO):
        yield from items
        return
    if sys.stderr.isatty():
        yield from tqdm(items, desc=description, total=total, unit=unit, delay=2.0, leave=False)
        return
    start = time.monotonic()
    last_line = start
    for done, item in enumerate(items, start=1):
        yield item
        now = time.monotonic()
        if now - last_line < _LINE_SECONDS or done >= total:
            continue
        last_line = now
        gone = now - start
        speed = f"{done / gone:.3g} {unit}/s"
        left = f"{gone / done * (total - done):.0f} s left"
        _LOG.info(f"{description}: {done}/{total} {unit}, {speed}, {gone:.0f} s gone, {left}")


def announce(text: str) -> None:
    """Say what will take long; shown wherever progress is."""
    _LOG.info(text)


def run_jobs(
    function: Callable[..., Item],
    jobs: Sequence[tuple[Any, ...]],
    description: str,
    engine: Engine,
    root: Path | None = None,
) -> list[Item]:
    """Call `function(*job)` for every job and return the results in the order of the jobs.

    Neither the backend nor the number of workers changes a result. A job whose worker dies is given
    to another one. Workers have working folders of their own, so paths in jobs must be absolute.

    Args:
        function: Importable function; it and its arguments travel to other processes.
        jobs: Arguments of each call.
        description: Shown with the progress.
        engine: Where they run; one worker of `loky`, or a single job, stays in this process.
        root: Folder that every worker must see, for example `Study.root`; not asked for when left
            out.

    Raises:
        ConfigError: When the scheduler cannot be joined, when a worker does not see `root`, or when
            it has another package or other code.
        EquipoiseError: When a job has ended every worker that tried it, or the scheduler went away.
    """
    results: Iterator[Item]
    if engine.stays_here or len(jobs) <= 1:
        results = (function(*job) for job in jobs)
    else:
        in_worker = partial(
            do_job,
            function,
            expected_versions=versions(),
            root=root,
            silenced_to=silenced_level(),
        )
        start = _on_dask if engine.backend == "dask" else _on_loky
        results = start(in_worker, jobs, engine)
    return list(progress(results, description, len(jobs), "jobs"))


def do_job(
    function: Callable[..., Item],
    job: tuple[Any, ...],
    expected_versions: Mapping[str, str],
    root: Path | None = None,
    silenced_to: int = 0,
) -> Item:
    """Call `function(*job)` in a worker, unless that worker would give other numbers.

    Args:
        function: What to call.
        job: Its arguments.
        expected_versions: What the process that gave the job runs on, see `environment.versions`.
        root: Folder that the worker must see.
        silenced_to: The level of `logging` up to which the process that gave the job says nothing.

    Raises:
        ConfigError: When the worker runs on something else, or does not see the folder.
    """
    with _ONE_JOB:
        differences = difference(versions(), expected_versions)
        if differences:
            raise ConfigError(
                f"A worker would give other numbers: {differences}. Install the same there and restart it."
            )
        if root is not None and not root.is_dir():
            raise ConfigError(f"A worker does not see {root}. docs/scale.md: what is shared.")
        with silenced(silenced_to):
            return function(*job)


def _on_loky(
    in_worker: Callable[..., Item], jobs: Sequence[tuple[Any, ...]], engine: Engine
) -> Iterator[Item]:
    """Yield `in_worker(job)` for every job, computed by processes of this machine."""
    processes = Parallel(n_jobs=engine.workers, return_as="generator")
    return processes(delayed(in_worker)(job) for job in jobs)


def _on_dask(
    in_worker: Callable[..., Item], jobs: Sequence[tuple[Any, ...]], engine: Engine
) -> Iterator[Item]:
    """Yield `in_worker(job)` for every job, computed by workers of Dask."""
    # Not through joblib's bridge: it never returns when a job ends its workers or the scheduler
    # goes away, and what it scatters is lost with the worker that holds it (joblib 1.6, distributed
    # 2026.8).
    with joined(engine) as client:
        from distributed import KilledWorker

        waiting = deque(client.submit(in_worker, job, pure=False) for job in jobs)
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
def joined(
    engine: Engine,
    wait_seconds: float = _WORKER_SECONDS,
    answer_seconds: float = _ANSWER_SECONDS,
) -> Iterator[Any]:
    """Yield a client of the Dask scheduler that `engine` names.

    When it names none, a scheduler and workers of one thread each are started on this machine.

    Args:
        engine: Its backend is dask.
        wait_seconds: How long a scheduler may take to have a first worker.
        answer_seconds: How long a scheduler may take to answer.

    Raises:
        ConfigError: Without the package `distributed`, or when no scheduler or no worker answers.
    """
    try:
        import distributed  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"engine.backend: dask needs distributed, which is not installed: {extras.install('cluster')}, or set "
            f"engine.backend to loky."
        ) from error
    address = engine.address
    if address is None:
        with _started_here(engine.workers) as client:
            yield client
        return
    with _connected(address, answer_seconds) as client:
        _wait_for_a_worker(client, address, wait_seconds)
        yield client


@contextmanager
def _started_here(workers: int) -> Iterator[Any]:
    """Yield a client of workers that live as long as the block; -1 is one for every core."""
    from distributed import Client, LocalCluster

    cluster = LocalCluster(
        n_workers=os.cpu_count() if workers < 0 else workers,
        threads_per_worker=1,
        memory_limit=0,
        dashboard_address="127.0.0.1:0",
        silence_logs=logging.CRITICAL,
    )
    with cluster, Client(cluster) as client:
        yield client


def _connected(address: str, answer_seconds: float) -> Any:
    """A client of a scheduler that runs elsewhere; to be closed by the caller."""
    from distributed import Client

    options: dict[str, Any] = {"timeout": answer_seconds, "set_as_default": False}
    try:
        if address.endswith(".json"):
            return Client(scheduler_file=address, **options)
        return Client(address, **options)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"No Dask scheduler answers at {masked(address)} ({masked(first_line(error))}). Start `dask "
            f"scheduler`, correct engine.scheduler or EQUIPOISE_DASK_SCHEDULER, or set engine.backend to loky."
        ) from error


def _wait_for_a_worker(client: Any, address: str, wait_seconds: float) -> None:
    try:
        client.wait_for_workers(1, timeout=wait_seconds)
    except TimeoutError as error:
        raise ConfigError(
            f"The Dask scheduler at {masked(address)} has had no worker for {wait_seconds:.0f} s. "
            f"Start some with `dask worker {masked(address)} --nthreads 1`."
        ) from error


def seen_from(folder: str) -> dict[str, str]:
    """Return what a worker runs on and sees, for `doctor` to compare.

    These are the versions, and the beginning of the digest of params.yaml in a folder.
    """
    params = Path(folder) / PARAMS
    seen = dict(versions())
    seen[PARAMS] = file_digest(params)[:12] if params.is_file() else f"not in {folder}"
    return seen


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
    """Yield `function(item)` in the order of the items, computed by threads.

    For work that releases Python's lock: reading, decoding and hashing files.

    Args:
        function: What to call.
        items: Its arguments.
        threads: How many threads; one for every core when left out.
        ahead: At most so many results wait for the reader.
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
    """Shows the seconds since it was made, for lines such as `(3.2 s)`."""

    def __init__(self) -> None:
        self._start = time.monotonic()

    def __str__(self) -> str:
        return f"{time.monotonic() - self._start:.1f} s"
