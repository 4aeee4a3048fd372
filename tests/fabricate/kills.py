"""Kill -9 every verb at drawn moments, start it again, and compare with a run nobody disturbed.

A moment is drawn between the first file that a verb opens and its end: the process kills its own group
so many milliseconds after so many file operations, counted by an audit hook, so that a busy machine does
not move the moments.

Files are compared byte by byte, names included. MLflow's store is compared by what it says: experiments,
runs that are not deleted, their parameters, metrics, tags and artifacts, versions, aliases and
`audit verify`; run ids, times and what is made of them (log seals, MLmodel) cannot be equal. A finished
batch of trials is one that was kept when the process died; it is lost when it is not there, to the same
bytes, in the end.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
STUDY, BACKBONE = "demo", "vgg16"
_FINETUNE = ("--set", "train.mode=finetune")
#: Verb -> its command and how often it is killed; in the order of the data's way.
VERBS: dict[str, tuple[tuple[str, ...], int]] = {
    "ingest": (("ingest", "--study", STUDY), 10),
    "split": (("split", "--study", STUDY), 3),
    "embed": (("embed", "--study", STUDY, "--backbone", BACKBONE), 8),
    "scenario": (
        ("scenario", "--study", STUDY, "--backbone", BACKBONE, "--scenario", "baseline"),
        14,
    ),
    "finetune": (
        (
            "scenario",
            "--study",
            STUDY,
            "--backbone",
            BACKBONE,
            "--scenario",
            "baseline",
            *_FINETUNE,
        ),
        6,
    ),
    "compare": (("compare", "--study", STUDY), 2),
    "export": (("export", "--study", STUDY, "--layout", "folders", "--copy"), 3),
    "track": (("track",), 3),
    "register": (("register",), 6),
    "promote": (("promote", "--study", STUDY), 6),
}
#: What a study is remembered by; `data/cache` may be deleted at any time, and the store is read below.
_KEPT = ("data", "results", "reports", "exports")
_CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "sqlite3.connect")
#: Tags and files that hold a run id, a time or a folder of this run.
_OWN = re.compile(
    r"mlflow\.(user|parentRunId|artifacts)|equipoise\.(audit|decision|seal|outcome|folder)|MLmodel$"
)


@dataclass
class Tally:
    """What came of the kills of one verb."""

    kills: int = 0
    ended_before: int = 0
    batches: int = 0
    lost: int = 0
    differing: list[str] = field(default_factory=list)


def inside(
    folder: Path, log: Path, operation: int, after_seconds: float, arguments: list[str]
) -> int:
    """Run a verb in this process, note the time of each file operation, and die after one of them (-1: never)."""
    import threading

    kept, seen = os.path.realpath(folder) + os.sep, 0
    handle, started = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND), time.monotonic()

    def die() -> None:
        os.killpg(os.getpgid(0), signal.SIGKILL)

    def hook(event: str, values: tuple[Any, ...]) -> None:
        nonlocal seen
        if (
            event not in _CHANGES
            or not values
            or not isinstance(values[0], str | bytes | os.PathLike)
        ):
            return
        path = os.fsdecode(values[0]).removeprefix("sqlite:///")
        if not os.path.abspath(path).startswith(kept) or "/src/" in path or "/.git" in path:
            return
        os.write(handle, f"{time.monotonic() - started:.4f}\n".encode())
        if seen == operation:
            threading.Timer(after_seconds, die).start() if after_seconds > 0 else die()
        seen += 1

    sys.addaudithook(hook)
    sys.path.insert(0, "src")
    from equipoise.cli import main as verb

    code = verb(arguments)
    os.write(handle, f"{time.monotonic() - started:.4f}\n".encode())
    return code


def start(
    folder: Path, verb: str, log: Path, operation: int = -1, after_seconds: float = 0.0
) -> int:
    """Run a verb in a process group of its own and return the exit code (-9: killed)."""
    log.unlink(missing_ok=True)
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MLFLOW_", "EQUIPOISE_", "GIT_"))
    }
    kept |= {"PYTHONDONTWRITEBYTECODE": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "PYTHONHASHSEED": "0"}
    arguments = [
        "--inside",
        str(folder),
        str(log),
        str(operation),
        str(after_seconds),
        *VERBS[verb][0],
    ]
    command = [sys.executable, str(Path(__file__).resolve()), *arguments]
    with open(log.with_suffix(".out"), "w") as out:
        return subprocess.run(
            command, cwd=folder, env=kept, stdout=out, stderr=out, start_new_session=True
        ).returncode


def files(folder: Path) -> dict[str, str]:
    """Digest of every file that a study leaves, names of temporary files included."""
    found = {}
    for path in sorted(
        path for top in _KEPT for path in (folder / top).rglob("*") if path.is_file()
    ):
        name = path.relative_to(folder).as_posix()
        if name.startswith("data/cache/") or name == "data/searches.log":  # holds times
            continue
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def batches(folder: Path) -> dict[str, str]:
    """Finished batches of trials of every search: name of the file -> digest of its bytes."""
    kept = sorted((folder / "data/cache/searches").glob("*.npz"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


STORE = r"""
import hashlib, json, re, sys, zipfile
from pathlib import Path
sys.path.insert(0, "src")
from equipoise.service import audit, tracking
store = tracking.client(Path())
def content(path):
    if path.suffix != ".keras":
        return path.read_bytes()
    with zipfile.ZipFile(path) as file:  # Keras notes when it was saved, and addresses in memory as object ids
        config = re.sub(rb'"shared_object_id": \d+', b"", file.read("config.json"))
        return config + file.read("model.weights.h5")
def digests(run):
    place = Path(run.info.artifact_uri.removeprefix("file://"))
    named = {}
    for path in sorted(path for path in place.rglob("*") if path.is_file()):
        # The folder of a version is named after the moment at which its model was made.
        name = re.sub(r"^versions/[^/]+/", "", path.relative_to(place).as_posix())
        named[name] = hashlib.sha256(content(path)).hexdigest()
    return named
runs, found = {}, {}
for experiment in store.search_experiments():
    for run in store.search_runs([experiment.experiment_id], max_results=1000):
        runs[run.info.run_id] = (experiment.name, run)
for run_id, (name, run) in runs.items():
    parent = runs.get(run.data.tags.get("mlflow.parentRunId"))
    label = "/".join([name, parent[1].info.run_name if parent else "", run.info.run_name
                      if "decision" not in str(sorted(run.data.tags)) else "decision"])
    found.setdefault("run " + label, []).append({"status": run.info.status, "params": run.data.params,
        "metrics": run.data.metrics, "tags": run.data.tags, "files": digests(run)})
name = audit.model_name(sys.argv[1])
for version in store.search_model_versions(f"name = '{name}'"):
    found[f"version {version.version}"] = [{"tags": version.tags, "aliases": sorted(version.aliases),
        "run": runs[version.run_id][1].info.run_name, "status": version.status}]
print(json.dumps(found))
"""


def store(folder: Path) -> dict[str, str]:
    """What MLflow's store says, less ids and times."""
    if not (folder / "mlflow.db").is_file():
        return {}
    command = [sys.executable, "-W", "ignore", "-c", STORE, STUDY]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode:
        return {"store": done.stderr[-300:]}
    found = {}
    for name, entries in json.loads(done.stdout.splitlines()[-1]).items():
        for entry in entries:
            for part in ("tags", "files"):
                kept = {
                    key: value for key, value in entry.get(part, {}).items() if not _OWN.search(key)
                }
                entry[part] = {
                    key: value for key, value in kept.items() if not key.startswith("model/code/")
                }
        found[name] = json.dumps(sorted(entries, key=str), sort_keys=True)
    for what in ("show", "verify"):
        told = subprocess.run(
            [sys.executable, "src", "audit", what], cwd=folder, capture_output=True, text=True
        )
        found[f"audit {what}"] = f"{told.returncode}, {len(told.stdout.splitlines())} lines"
    return found


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Names that one lacks or that differ."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


@dataclass
class Undisturbed:
    """A verb that nobody killed: seconds of each file operation, its end, and what it left."""

    operations: list[float]
    end: float
    left: dict[str, str]


class Way:
    """The verbs in their order, each on what the ones before it left.

    Every run is in `work`, because addresses in MLflow's store are absolute. `before` holds what was
    there before the next verb.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.before, self.work, self.after = (folder / name for name in ("before", "work", "after"))
        self.to_come = list(VERBS)
        build(self.before)

    def go_to(self, verb: str) -> None:
        """Run the verbs before this one, undisturbed."""
        while self.to_come[0] != verb:
            self.run_undisturbed(self.to_come[0])
            self.go_on()

    def run_undisturbed(self, verb: str) -> Undisturbed:
        """Run a verb once; what it leaves waits in `after`."""
        shutil.copytree(self.before, self.work, symlinks=True)
        log = self.log(verb)
        code = start(self.work, verb, log)
        if code:
            told = log.with_suffix(".out").read_text()[-2000:]
            raise AssertionError(f"{verb} undisturbed ended with {code}:\n{told}")
        *operations, end = (float(line) for line in log.read_text().split())
        left = files(self.work) | store(self.work)
        self.work.rename(self.after)
        return Undisturbed(operations, end, left)

    def go_on(self) -> None:
        """The next verb starts from what this one left."""
        shutil.rmtree(self.before)
        self.after.rename(self.before)
        self.to_come.pop(0)

    def log(self, verb: str) -> Path:
        """Where the file operations of a verb are noted."""
        return self.folder / f"{verb}.log"

    def kill(self, verb: str, kills: int, rng: np.random.Generator) -> Tally:
        """Kill a verb at drawn moments on copies of what was before it, and start it again."""
        self.go_to(verb)
        undisturbed = self.run_undisturbed(verb)
        tally = Tally()
        while tally.kills < kills and tally.ended_before <= kills:
            self._kill_once(verb, undisturbed, tally, rng)
            shutil.rmtree(self.work, ignore_errors=True)
        self.go_on()
        return tally

    def _kill_once(
        self, verb: str, undisturbed: Undisturbed, tally: Tally, rng: np.random.Generator
    ) -> None:
        operations = undisturbed.operations
        moment = rng.uniform(operations[0], undisturbed.end)
        operation = max(index for index, second in enumerate(operations) if second <= moment)
        shutil.copytree(self.before, self.work, symlinks=True)
        log, later = self.log(verb), moment - operations[operation]
        if start(self.work, verb, log, operation, later) != -signal.SIGKILL:
            tally.ended_before += 1
            return
        tally.kills += 1
        finished = batches(self.work)
        code = start(self.work, verb, log)
        kept = batches(self.work)
        left = files(self.work) | store(self.work)
        wrong = [f"exit code {code}"] if code else differences(undisturbed.left, left)
        tally.batches += len(finished)
        tally.lost += sum(kept.get(name) != digest for name, digest in finished.items())
        where = (
            f"{verb}: killed {moment:.2f} s of {undisturbed.end:.2f} s, "
            f"after operation {operation + 1} of {len(operations)}"
        )
        print(f"{where}: {'; '.join(wrong[:6]) or 'equal'}", flush=True)
        if wrong:
            tally.differing.append(f"{where}: {'; '.join(wrong[:6])}")
            self.work.rename(self.folder / f"{verb}-{tally.kills}")


def build(folder: Path) -> None:
    """A committed checkout with a small phantom study, its images drawn."""
    import conftest

    folder.mkdir(parents=True)
    conftest.copy_checkout(folder)
    conftest.change_params(folder, conftest.make_small)
    conftest.change_params(folder, lambda params: params["run"].update(scenarios=["baseline"]))
    for words in (("init", "-q"), ("add", "-A"), ("commit", "-q", "-m", "small study")):
        conftest.git(folder, *words)
    conftest.run(
        folder, sys.executable, "src", "phantom", "--study", STUDY, PYTHONDONTWRITEBYTECODE="1"
    )


if __name__ == "__main__":
    _, _, folder_name, log_name, operation_text, seconds_text, *words = sys.argv
    place = int(operation_text), float(seconds_text)
    raise SystemExit(inside(Path(folder_name), Path(log_name), *place, words))
