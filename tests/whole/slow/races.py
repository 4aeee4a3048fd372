"""Two hosts promote different versions at the same moment, many times, on one `mlflow server`.

    python tests/whole/slow/races.py [--rounds 50] [--seed 0]

Each host is a network namespace of Linux with its own address, host name, HOME and folder for locks; where this
process may not make one (it takes root), it is a process with its own HOME, folder for locks and host name, and that
is said. The server keeps its data in PostgreSQL and S3 (moto).

In a round each host is told to make another version champion, within 200 ms. Either one of them does, or one does it
after the other had ended, or both saw each other and nothing moved. Two that move from the same champion would be a
fault, and so would an alias that is not where the log left it, a log that is not whole, or a host that ends without a
sentence.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[3]
NETWORK = "10.213.77"
_HOSTS = ("a", "b")
_BRIDGE = "equipoise-race"


# --- hosts -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def network() -> Iterator[bool]:
    """Two namespaces on one bridge, whose first address is this machine's; False where they may not be made."""
    made: list[tuple[str, ...]] = []
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that nothing of it stays
    try:
        made.append(("link", "del", _BRIDGE))
        _ip("link", "add", _BRIDGE, "type", "bridge")
        _ip("addr", "add", f"{NETWORK}.1/24", "dev", _BRIDGE)
        _ip("link", "set", _BRIDGE, "up")
        for number, name in enumerate(_HOSTS, start=2):
            space, outer, inner = f"equipoise-{name}", f"equipoise-o{name}", f"equipoise-i{name}"
            made.append(("netns", "del", space))
            _ip("netns", "add", space)
            _ip("link", "add", outer, "type", "veth", "peer", "name", inner, "netns", space)
            _ip("link", "set", outer, "master", _BRIDGE, "up")
            _ip("-n", space, "addr", "add", f"{NETWORK}.{number}/24", "dev", inner)
            _ip("-n", space, "link", "set", inner, "up")
            _ip("-n", space, "link", "set", "lo", "up")
        works = True
    except (OSError, subprocess.CalledProcessError):
        works = False
    try:
        yield works
    finally:
        for words in reversed(made):
            with contextlib.suppress(OSError, subprocess.CalledProcessError):
                _ip(*words)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Host:
    """A process that promotes when it is told to."""

    def __init__(self, name: str, folder: Path, uri: str, has_network: bool) -> None:
        """Start it in a copy of the study of its own."""
        home = folder / f"host-{name}"
        shutil.copytree(folder / "study", home / "study")
        (home / "locks").mkdir()
        words = [sys.executable, str(Path(__file__)), "--host", f"host-{name}"]
        if has_network:
            naming = f'hostname host-{name}; exec "$@"'
            words = ["unshare", "--uts", "sh", "-c", naming, "sh", *words]
            words = ["ip", "netns", "exec", f"equipoise-{name}", *words]
        environment = {
            **os.environ,
            "HOME": str(home),
            "TMPDIR": str(home / "locks"),
            "MLFLOW_TRACKING_URI": uri,
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
            "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT / "tests")]),
        }
        with (home / "errors.log").open("w") as errors:
            self.process = subprocess.Popen(
                words,
                cwd=home / "study",
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self.said = self.answer()["name"]

    def tell(self, at: float, version: str, reason: str) -> None:
        """Let it promote a version at a moment of the machine's clock."""
        self.process.stdin.write(
            json.dumps({"at": at, "version": version, "reason": reason}) + "\n"
        )
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """What it says next."""
        line = self.process.stdout.readline()
        if not line:
            raise AssertionError(
                f"a host ended with {self.process.wait()}; its errors.log says why"
            )
        return json.loads(line)

    def end(self) -> None:
        """Let it end by itself."""
        self.process.stdin.close()
        self.process.wait(30)


def be_host(name: str) -> None:
    """Promote when told, until nothing more comes."""
    from equipoise import cli
    from equipoise.registry import promotion  # noqa: F401  (imported before the first round)

    if socket.gethostname() != name:  # without a namespace
        socket.gethostname = lambda: name
    answers = sys.stdout
    print(json.dumps({"name": socket.gethostname()}), file=answers, flush=True)
    for line in sys.stdin:
        told = json.loads(line)
        time.sleep(max(0.0, told["at"] - time.monotonic()))
        said = io.StringIO()
        words = ["promote", "--study", "made", "--version", told["version"], "--force"]
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                code = cli.main([*words, "--reason", told["reason"]])
            except BaseException as error:
                code = f"{type(error).__name__}: {error}"
        answer = {
            "code": code,
            "said": said.getvalue()[-1500:],
            "seconds": time.monotonic() - told["at"],
        }
        print(json.dumps(answer), file=answers, flush=True)


# --- the race --------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What came of the rounds, in words and how often, and what must not be."""

    rounds: Counter[str] = field(default_factory=Counter)
    decisions: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


def run(options: argparse.Namespace, folder: Path) -> Tally:
    """Start the server and the hosts, and let them race."""
    from mlflow.tracking import MlflowClient

    from equipoise.registry import audit, verification
    from fabricate import registered, servers
    from fabricate.aliases import pointed_at

    (folder / "study").mkdir()
    os.chdir(folder / "study")
    registered.build(folder / "study")
    rng = np.random.default_rng(options.seed)
    tally = Tally()
    with contextlib.ExitStack() as stack:
        has_network = stack.enter_context(network())
        place = f"{NETWORK}.1" if has_network else "127.0.0.1"
        server = stack.enter_context(servers.started(accounts=False, host=place))
        os.environ["MLFLOW_TRACKING_URI"] = server.uri
        store = MlflowClient(server.uri, server.uri)
        store.create_registered_model(registered.NAME)
        scenarios = ("baseline", "oversample", "class_weight")
        versions = [
            registered.add_version(folder / "study", server.uri, scenario, 2.0 - 0.1 * number)
            for number, scenario in enumerate(scenarios)
        ]
        hosts = [Host(name, folder, server.uri, has_network) for name in _HOSTS]
        stack.callback(lambda: [host.end() for host in hosts])
        kind = (
            "network namespaces"
            if has_network
            else "processes with HOME and host names of their own"
        )
        print(f"hosts {', '.join(host.said for host in hosts)}: {kind}; {server.uri}", flush=True)
        hosts[0].tell(time.monotonic(), versions[0], "the first champion")
        first = hosts[0].answer()
        assert first["code"] == 0, first
        for number in range(1, options.rounds + 1):
            seen = len(audit.read(store, registered.NAME))
            champion = pointed_at(store, registered.NAME)
            others = [version for version in versions if version != champion]
            rng.shuffle(others)
            at = time.monotonic() + 0.3
            for host, version in zip(hosts, others):
                host.tell(at + rng.uniform(0, 0.2), version, f"round {number}")
            answers = [host.answer() for host in hosts]
            entries = audit.read(store, registered.NAME)
            _judge(number, champion, answers, entries[seen:], tally)
            problems = verification.verify(store, registered.NAME)
            tally.faults += [f"round {number}: {problem}" for problem in problems]
        tally.decisions.update(entry.state for entry in entries)
        moves = [entry.decision for entry in entries if entry.moved]
        for before, after in itertools.pairwise(moves):
            if after.from_version != before.to_version:
                tally.faults.append(f"{after} does not start where {before} ended")
        if pointed_at(store, registered.NAME) != moves[-1].to_version:
            tally.faults.append("the champion is not the version of the last decision")
    return tally


def _judge(
    number: int, champion: str, answers: list[dict[str, Any]], entries: list[Any], tally: Tally
) -> None:
    """What one round came to."""
    moves = [entry.decision for entry in entries if entry.moved]
    codes = sorted(answer["code"] for answer in answers)
    came = {0: "nothing moved", 1: "one winner", 2: "one after the other"}[len(moves)]
    if len(moves) == 2 and moves[1].from_version != moves[0].to_version:
        came = "two winners"
        tally.faults.append(f"round {number}: both moved {champion}")
    if codes != sorted([0] * len(moves) + [3] * (2 - len(moves))):
        tally.faults.append(f"round {number}: exit codes {codes}")
    for answer in answers:
        if "Traceback" in answer["said"] or not answer["said"].strip():
            tally.faults.append(f"round {number}: {answer['said'][-300:]}")
    tally.rounds[came] += 1
    seconds = ", ".join(f"{answer['seconds']:.1f} s" for answer in answers)
    print(f"round {number}: {came} ({seconds})", flush=True)


def main() -> int:
    """Race and print what came of it; 1 where something must not be."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0, help="of versions and moments")
    parser.add_argument("--host", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]
    if options.host:
        be_host(options.host)
        return 0
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="races-") as folder:
        tally = run(options, Path(folder).resolve())
        os.chdir(ROOT)
    print(f"rounds: {dict(tally.rounds)}; decisions: {dict(tally.decisions)}; log whole after each")
    print(f"{(time.monotonic() - began) / 60:.0f} minutes, seed {options.seed}")
    for fault in tally.faults:
        print(fault)
    return int(bool(tally.faults))


if __name__ == "__main__":
    raise SystemExit(main())
