"""What a search leaves on disk: its batches of trials, to go on from, and a journal to look at.

A batch of trials is a pure function of its search (data, settings, code, packages) and of the
values tried. So its outcomes are kept under a digest of these, and a search that was killed asks
for the same batches again and finds them. The files are a cache: a damaged one is made again, and
the folder may be deleted at any time.

The journal holds every finished search as an ordinary Optuna study with a readable name, all
studies of a checkout together: `optuna-dashboard data/searches.log`. Nothing is decided from it.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
from filelock import FileLock
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from equipoise.core.errors import DataError
from equipoise.core.files import digest_of, write_arrays

_LOG = logging.getLogger(__name__)
#: A study of the journal keeps here which search it shows, once all its trials are written.
_CONTENT = "search"


class Report(NamedTuple):
    """A score that a trial reported while it was trained; pruning is decided from these."""

    step: int
    score: float


@dataclass(frozen=True)
class Outcome:
    """What one trial came to: all that its score and its state are made from.

    Attributes:
        logits: float (num_images, K) of the images that score, K = 1 for two classes; None where
            the trial failed before it had any.
        error: Why it failed; empty where it did not.
        reports: Scores reported while it was trained; none for a trial that was solved.
        steps: Optimiser steps taken; None for a trial that was solved.
        pruned: Whether it was stopped for being worse than the others at that step.
    """

    logits: np.ndarray | None
    error: str = ""
    reports: tuple[Report, ...] = ()
    steps: int | None = None
    pruned: bool = False


@dataclass(frozen=True)
class SearchStore:
    """Where one search is kept.

    Attributes:
        batches: Folder of the batches of all searches.
        journal: Optuna's journal of all finished searches.
        name: Name of this search in the journal, for example `demo/vgg16/oversample/fold 0`.
        data_digest: Names the data that the search is made on.
    """

    batches: Path
    journal: Path
    name: str
    data_digest: str

    def batch_path(self, search: str, start: int, candidates: Sequence[Mapping[str, Any]]) -> Path:
        """File of one batch.

        Args:
            search: Key of the search.
            start: Number of the first trial.
            candidates: The settings that are tried.
        """
        batch = {"search": search, "start": start, "candidates": list(candidates)}
        return self.batches / f"{digest_of(batch)[:32]}.npz"

    def publish(
        self, study: optuna.Study, metric: str, content: str, hidden: Collection[str] = ()
    ) -> None:
        """Write a finished search into the journal, in place of what stood there under its name.

        A search that stands there already is left as it is. Several processes may do this at once.

        Args:
            study: The search as it was made in memory.
            metric: Name of what its values are.
            content: Digest of what the search is made of; the same content is written once.
            hidden: Parameters that were suggested but not used.

        Raises:
            DataError: When the journal cannot be written.
        """
        try:
            with _journal(self.journal, self.batches / "journal.lock") as storage:
                if _content_of(storage, self.name) != content:
                    shown = _emptied(storage, self.name, study.direction)
                    shown.set_metric_names([metric])
                    for trial in study.get_trials(deepcopy=False):
                        shown.add_trial(_without(trial, hidden))
                    # Last of all: a study that lacks it was cut short and is written again.
                    shown.set_user_attr(_CONTENT, content)
        except OSError as error:
            raise DataError(
                f"{self.journal} cannot be written: {error.strerror or error}. Free space or "
                f"permissions, then run the same command again: finished trials are kept."
            ) from error


def write_batch(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Keep the outcomes of a batch of trials."""
    arrays = {
        "error": np.array([outcome.error for outcome in outcomes], dtype=np.str_),
        "steps": np.array([_or_minus_one(outcome.steps) for outcome in outcomes]),
        "pruned": np.array([outcome.pruned for outcome in outcomes]),
    }
    # These differ in length from trial to trial, so each trial has arrays of its own; a solved one has none.
    for index, outcome in enumerate(outcomes):
        if outcome.reports:
            steps, scores = zip(*outcome.reports)
            arrays[f"report_steps_{index}"] = np.array(steps, dtype=np.int64)
            arrays[f"report_scores_{index}"] = np.array(scores, dtype=np.float64)
        if outcome.logits is not None:
            arrays[f"logits_{index}"] = outcome.logits
    write_arrays(path, **arrays)


def read_batch(path: Path, num_trials: int, num_images: int) -> list[Outcome] | None:
    """The outcomes of a batch; None when it is not there, is damaged or does not fit.

    Args:
        path: Where `write_batch` wrote it.
        num_trials: Trials of the batch.
        num_images: Images that score.
    """
    try:
        with np.load(path, allow_pickle=False) as arrays:
            outcomes = [_outcome(arrays, index) for index in range(len(arrays["error"]))]
    except Exception:  # a damaged file may raise anything, and all of it means: make it again
        return None
    sizes = {len(outcome.logits) for outcome in outcomes if outcome.logits is not None}
    fits = len(outcomes) == num_trials and sizes <= {num_images}
    return outcomes if fits else None


def _outcome(arrays: Mapping[str, np.ndarray], index: int) -> Outcome:
    steps = int(arrays["steps"][index])
    no_report = np.empty(0)
    report_steps = arrays.get(f"report_steps_{index}", no_report).tolist()
    report_scores = arrays.get(f"report_scores_{index}", no_report).tolist()
    return Outcome(
        logits=arrays.get(f"logits_{index}"),
        error=str(arrays["error"][index]),
        reports=tuple(map(Report, report_steps, report_scores)),
        steps=None if steps < 0 else steps,
        pruned=bool(arrays["pruned"][index]),
    )


def _or_minus_one(steps: int | None) -> int:
    return -1 if steps is None else steps


class _GatheredLogs(JournalFileBackend):
    """Writes what is appended all at once, when it is told to: Optuna waits for the disk after every line.

    Attributes:
        gathered: What is not written yet.
        num_written: Lines of the file, as they were before anything was gathered.
    """

    def __init__(self, path: Path, lock: FileLock) -> None:
        super().__init__(str(path), lock_obj=lock)
        self.num_written = 0
        self.gathered: list[dict[str, Any]] = []

    def read_logs(self, log_number_from: int) -> Generator[dict[str, Any]]:
        """Lines of the file and what is gathered; after all of the file was read that is all that is new."""
        if not self.gathered:
            self.num_written = log_number_from
            for log in super().read_logs(log_number_from):
                self.num_written += 1
                yield log
        yield from self.gathered[max(log_number_from - self.num_written, 0) :]

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Gather them, as a file would give them back."""
        self.gathered += json.loads(json.dumps(logs))

    def write(self) -> None:
        """Append what was gathered to the file, and wait for the disk once."""
        if self.gathered:
            super().append_logs(self.gathered)
        self.gathered = []


class _Journal(NamedTuple):
    """A journal as it was read, and its file."""

    storage: JournalStorage
    logs: _GatheredLogs

    @classmethod
    def read(cls, path: Path, lock: FileLock) -> _Journal:
        """Read a file, made if needed."""
        logs = _GatheredLogs(path, lock)
        return cls(JournalStorage(logs), logs)


@dataclass
class _Opened:
    """A journal that this process has read.

    Attributes:
        lock: Lifted by the system when its holder dies; Optuna's own lock outlives a kill by 30 s.
        journal: What was read; it appends with the same lock. None where it has to be read.
        state: The file after the last use, see `_state`.
    """

    lock: FileLock
    journal: _Journal | None = None
    state: tuple[int, ...] = ()


#: Journals that this process has read, by path. To read all of a journal for every search takes
#: longer than the search when there are many.
_OPENED: dict[Path, _Opened] = {}


@contextmanager
def _journal(path: Path, lock_path: Path) -> Iterator[JournalStorage]:
    """The journal, held by this process alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lock_path.parent.mkdir(parents=True, exist_ok=True)
    opened = _OPENED.setdefault(path.absolute(), _Opened(FileLock(lock_path)))
    with opened.lock:
        _cut_half_a_line(path)
        # What another process wrote, or put in its place, is read from the beginning.
        journal = opened.journal
        if journal is None or opened.state != _state(path):
            journal = _read_journal(path, opened.lock)
        # Where something fails before it is written, what is in memory is not what the file holds.
        opened.journal = None
        with warnings.catch_warnings():
            # Metric names are "experimental", and Optuna says so each time.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            yield journal.storage
        journal.logs.write()
        opened.journal = journal
        opened.state = _state(path)


def _state(path: Path) -> tuple[int, ...]:
    """Tells one file, and one content of it, from another; empty where there is none."""
    if not path.exists():
        return ()
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _read_journal(path: Path, lock: FileLock) -> _Journal:
    try:
        return _Journal.read(path, lock)
    except OSError:
        raise
    except Exception as error:  # a damaged line may raise anything
        return _begun_anew(path, lock, error)


def _cut_half_a_line(path: Path) -> None:
    """Drop what a killed process left unfinished: the next line would be glued to it."""
    if not path.exists():
        return
    with open(path, "rb+") as journal:
        content = journal.read()
        whole = content.rfind(b"\n") + 1
        if whole < len(content):
            journal.truncate(whole)


def _begun_anew(path: Path, lock: FileLock, error: Exception) -> _Journal:
    """An empty journal; the damaged one is put aside, because a page to look at stops no search."""
    aside = path.with_name(f"{path.stem}.damaged{path.suffix}")
    path.replace(aside)
    _LOG.warning(f"{path} cannot be read ({error}); it was moved to {aside} and is begun anew.")
    return _Journal.read(path, lock)


def _content_of(storage: JournalStorage, name: str) -> str | None:
    """Content of a study in the journal; None when there is none, or when it is not whole."""
    # By its name: a list of all studies copies every one of them.
    try:
        study_id = storage.get_study_id_from_name(name)
    except KeyError:
        return None
    return storage.get_study_user_attrs(study_id).get(_CONTENT)


def _emptied(
    storage: JournalStorage, name: str, direction: optuna.study.StudyDirection
) -> optuna.Study:
    """A study of that name without trials, in place of one that was there."""
    with suppress(KeyError):
        optuna.delete_study(study_name=name, storage=storage)
    return optuna.create_study(study_name=name, storage=storage, direction=direction)


def _without(trial: optuna.trial.FrozenTrial, hidden: Collection[str]) -> optuna.trial.FrozenTrial:
    """A copy of a trial that leaves some parameters out."""
    params = {name: value for name, value in trial.params.items() if name not in hidden}
    distributions = {name: trial.distributions[name] for name in params}
    return optuna.create_trial(
        state=trial.state,
        value=trial.value,
        params=params,
        distributions=distributions,
        user_attrs=trial.user_attrs,
        system_attrs=trial.system_attrs,
        intermediate_values=trial.intermediate_values,
    )
