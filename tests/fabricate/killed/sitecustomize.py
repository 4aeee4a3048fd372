"""Dies by SIGKILL after a file operation: every Python that finds this folder on PYTHONPATH, and who imports it.

Python runs a module of this name when it starts. Moments are counted in file operations of a workspace, so that a busy
machine does not move them: operations of a program and of all that it starts are counted together in one log.

    KILLED_WITHIN      the workspace
    KILLED_LOG         where the second of each operation is noted, a line of 16 bytes each
    KILLED_OPERATION   after which operation all of them die, from 0; -1 for never
    KILLED_AFTER       and how many seconds after it
"""

import os
import signal
import sys
import threading
import time

#: Bytes of a line of the log: its size is the number of operations.
LINE = 16
_CHANGES = {
    "open",
    "os.rename",
    "os.remove",
    "os.mkdir",
    "os.rmdir",
    "os.link",
    "sqlite3.connect",
}


def watch(within, log, operation, after_seconds):
    """Note the operations of this process, and let it die after one of them."""
    within = os.path.realpath(within) + os.sep
    handle = os.open(log, os.O_RDWR | os.O_CREAT | os.O_APPEND)
    own = os.getpgid(0)
    first = int(os.environ.setdefault("KILLED_GROUP", str(own)))

    def die():
        for group in dict.fromkeys((first, own)):
            try:
                os.killpg(group, signal.SIGKILL)
            except ProcessLookupError:
                continue

    def hook(event, values):
        if event not in _CHANGES or not values or not _is_within(values[0], within):
            return
        os.write(handle, f"{time.monotonic():0{LINE - 1}.4f}\n".encode())
        if os.lseek(handle, 0, os.SEEK_END) // LINE - 1 != operation:
            return
        if after_seconds > 0:
            threading.Timer(after_seconds, die).start()
        else:
            die()

    sys.addaudithook(hook)


def _is_within(name, within):
    if not isinstance(name, (str, bytes, os.PathLike)):
        return False
    path = os.path.abspath(os.fsdecode(name).removeprefix("sqlite:///"))
    return path.startswith(within) and "/src/" not in path and "/.git" not in path


if "KILLED_LOG" in os.environ:
    watch(
        os.environ["KILLED_WITHIN"],
        os.environ["KILLED_LOG"],
        int(os.environ["KILLED_OPERATION"]),
        float(os.environ["KILLED_AFTER"]),
    )
