"""Memory of a process that is measured: its anonymous part, and a cgroup that it cannot grow beyond. Linux only.

What a process maps from files counts as resident, but the system drops it where memory is needed elsewhere; what it
has written for itself ("anonymous") stays. A memory cgroup tells the two apart for certain: it makes the system drop
the one, and ends the process where the other does not fit.
"""

from __future__ import annotations

import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

GB = 2**30
_PROC = Path("/proc")
_SECONDS_BETWEEN_SAMPLES = 0.05


class AnonymousPeak:
    """The most anonymous memory that a process had, sampled while it runs."""

    def __init__(self, process_id: int) -> None:
        self.peak_bytes = 0
        self._status = _PROC / str(process_id) / "status"
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while not self._over.wait(_SECONDS_BETWEEN_SAMPLES):
            self.peak_bytes = max(self.peak_bytes, anonymous_bytes(self._status))

    def end(self) -> int:
        """Stop watching; the most bytes seen, 0 where the system does not say."""
        self._over.set()
        self._thread.join()
        return self.peak_bytes


def anonymous_bytes(status: Path) -> int:
    """What a `/proc/PID/status` says of anonymous memory now; 0 where it says nothing."""
    try:
        told = re.search(r"RssAnon:\s+(\d+) kB", status.read_text())
    except OSError:  # the process has ended, or there is no /proc
        return 0
    return 1024 * int(told[1]) if told else 0


@dataclass(frozen=True)
class Group:
    """A memory cgroup of our own.

    Attributes:
        folder: Where the kernel shows it.
        limit: Name of the file that takes the most bytes.
        peak: Name of the file that tells the most bytes so far, pages of files included.
    """

    folder: Path
    limit: str
    peak: str

    def enter(self) -> None:
        """Put the process that calls into the group; children stay in it."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def peak_bytes(self) -> int:
        """Most memory of its processes so far, pages of files included; 0 where the kernel does not say."""
        path = self.folder / self.peak
        return int(path.read_text()) if path.is_file() else 0


@contextmanager
def limited(limit_gb: float | None) -> Iterator[Group | None]:
    """A new memory cgroup below that of this process; without a limit none is made.

    Raises:
        SystemExit: Where none may be made.
    """
    if limit_gb is None:
        yield None
        return
    try:
        group = _new_group(f"million-{os.getpid()}")
    except OSError as error:
        raise SystemExit(
            f"No memory cgroup can be made here ({error}). Run it as root, or under `systemd-run --user --scope "
            f"-p MemoryMax={limit_gb:g}G` without --limit-gb."
        ) from error
    try:
        (group.folder / group.limit).write_text(str(int(limit_gb * GB)))
        yield group
    finally:
        group.folder.rmdir()


def _new_group(name: str) -> Group:
    """Make an empty group with a memory controller, version 1 or 2.

    Raises:
        OSError: Where that is not possible.
    """
    first = _folder_of_controller("cgroup", ":memory:", "memory")
    if first is not None:
        return Group(_made(first / name), "memory.limit_in_bytes", "memory.max_usage_in_bytes")
    second = _folder_of_controller("cgroup2", "0::", "")
    if second is None:
        raise FileNotFoundError("the system has no memory cgroups")
    # Refused where processes are in the parent itself, unless it is the root.
    (second / "cgroup.subtree_control").write_text("+memory")
    return Group(_made(second / name), "memory.max", "memory.peak")


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _folder_of_controller(system: str, line_start: str, option: str) -> Path | None:
    """Where the group of this process lies, of a hierarchy that is mounted with an option; None where it is not."""
    for mount in _lines("mounts"):
        _, place, its_system, options = mount.split()[:4]
        if its_system != system or (option and option not in options.split(",")):
            continue
        for line in _lines("cgroup"):
            if line_start in line:
                group = Path(place + line.split(":", 2)[2])
                return group if group.is_dir() else Path(place)
    return None


def _lines(name: str) -> list[str]:
    path = _PROC / "self" / name
    return path.read_text().splitlines() if path.is_file() else []


def entering(group: Group | None) -> Callable[[], None] | None:
    """What a child does before its program starts."""
    return None if group is None else group.enter


def ended_by(status: int, group: Group | None) -> str:
    """In words how a process ended that did not end well; `status` is what `os.wait4` says."""
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGKILL and group is not None:
        return "was ended by the system: it did not fit into the limit"
    return f"ended with {code}"
