"""A server of MLflow on this machine alone, which shows the runs of the project's store in a browser."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import requests

from equipoise.core.config import Study
from equipoise.core.errors import ConfigError, StoreError
from equipoise.registry import tracking, view

_HOST = "127.0.0.1"
#: 5000 belongs to AirPlay on macOS.
_PORT = 5001
_START_SECONDS = 180.0
#: How long the server may take to end before it is killed.
_END_SECONDS = 10.0


def show(
    studies: Sequence[Study], root: Path, port: int | None, say: Callable[[str], None]
) -> None:
    """Serve the store of a project until Ctrl-C, and say where its studies can be looked at.

    Where MLFLOW_TRACKING_URI names a server, that one is there already: only the addresses are said.

    Args:
        studies: Whose runs are linked.
        root: Folder that holds params.yaml.
        port: To listen on; None for 5001, or any free one where that is taken.
        say: Called with lines of text.

    Raises:
        ConfigError: For a port that is taken.
        StoreError: When the server does not start.
    """
    if tracking.tracking_uri(root).startswith(("http:", "https:")):
        for line in links(studies, root, tracking.address(root)):
            say(line)
        return
    _let_every_end_be_ctrl_c()
    chosen = _free_port(port)
    address = f"http://{_HOST}:{chosen}"
    lines = links(studies, root, address)
    with (
        contextlib.suppress(KeyboardInterrupt),
        _server(tracking.tracking_uri(root), chosen) as process,
    ):
        for line in lines:
            say(line)
        say("Ctrl-C ends the server.")
        process.wait()
    say("The server has ended.")


def _let_every_end_be_ctrl_c() -> None:
    """End with the server also where this process is told to end, or its terminal is closed."""
    for name in ("SIGTERM", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.default_int_handler)


def links(studies: Sequence[Study], root: Path, server: str) -> list[str]:
    """A line for each study that has been tracked: its name and the address of its runs."""
    store = tracking.client(root)
    lines = []
    for study in studies:
        experiment = store.get_experiment_by_name(f"equipoise-{study.name}")
        if experiment is None:
            lines.append(f"{study.name}: nothing tracked yet; `equipoise track` does it")
            continue
        lines.append(f"{study.name}: {view.address(server, experiment.experiment_id)}")
    return lines


def _free_port(wanted: int | None) -> int:
    """The port that is wanted, or one that is free."""
    if wanted is not None:
        if not _is_free(wanted):
            raise ConfigError(f"Port {wanted} is taken. Name another one with --port, or none.")
        return wanted
    if _is_free(_PORT):
        return _PORT
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except (OSError, OverflowError):
            return False
    return True


@contextmanager
def _server(store: str, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """A running server, ended with the block however that ends."""
    command = [sys.executable, "-m", "mlflow", "server", "--host", _HOST, "--port", str(port)]
    # By the environment: everybody on this machine can read the words of a command.
    environment = {**os.environ, "MLFLOW_BACKEND_STORE_URI": store}
    environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # ten processes for language models
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            [*command, "--workers", "1"],
            env=environment,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is ours alone
        )
        try:
            _wait_until_up(process, port, log)
            yield process
        finally:
            _end(process)


def _wait_until_up(process: subprocess.Popen[bytes], port: int, log: IO[bytes]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            break
        with contextlib.suppress(requests.RequestException):
            if requests.get(f"http://{_HOST}:{port}/health", timeout=5).ok:
                return
        time.sleep(0.2)
    log.seek(0)
    told = log.read().decode(errors="replace").strip().splitlines()
    last = told[-1] if told else "it said nothing"
    raise StoreError(f"MLflow's server did not start on port {port}: {last}.")


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server and what it started."""
    for sign in ("SIGTERM", "SIGKILL"):
        _signal(process, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_SECONDS)
            return


def _signal(process: subprocess.Popen[bytes], sign: str) -> None:
    if not hasattr(os, "killpg"):  # Windows
        process.kill()
        return
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, getattr(signal, sign))
