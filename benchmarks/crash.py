"""Kill matrix: kill -9 every verb at random moments, start it again, and compare with a run that nobody disturbed.

    python benchmarks/crash.py [--verbs ingest embed ...] [--kills 2] [--seed 0] [--folder DIR] [--keep]

A moment is drawn between the first file that a verb opens and its end: the process kills its own group so many
milliseconds after so many file operations, counted by an audit hook, so that a busy machine does not move the moments.
Files are compared byte by byte, names included. MLflow's store is compared by what it says: experiments, runs that are
not deleted, their parameters, metrics, tags and artifacts, versions, aliases and `audit verify`; run ids, times and
what is made of them (log seals, MLmodel) cannot be equal. A finished trial is one that stood in the journal of its
search when the process died; it is lost when the journal does not hold it, with the same score, in the end.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
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
    r"mlflow\.(user|parentRunId|artifacts)|equipoise\.(audit|decision|seal|outcome)|MLmodel$"
)


@dataclass
class Tally:
    """What came of the kills of one verb."""

    kills: int = 0
    ended_before: int = 0
    trials: int = 0
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
        if name.startswith("data/cache/"):
            continue
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    openings = folder / "data/cache/openings.jsonl"
    if openings.is_file():  # every result once or more, never half a line in between
        found["openings"] = " ".join(sorted(set(openings.read_text().splitlines())))
    return found


def trials(folder: Path) -> dict[str, str]:
    """Finished trials of every search, by journal and place."""
    found = {}
    for journal in sorted((folder / "data/cache/optuna").rglob("*.log")):
        for line in journal.read_bytes().splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # the half line of a kill
                continue
            if place := entry.get("user_attrs", {}).get("place"):
                told = {
                    key: entry.get(key)
                    for key in ("state", "value", "values", "params", "user_attrs")
                }
                found[f"{journal.name} {place}"] = json.dumps(told, sort_keys=True)
    return found


STORE = r"""
import hashlib, json, re, sys, zipfile
from pathlib import Path
sys.path.insert(0, "src")
from equipoise.service import register as registry
from equipoise.service import tracking
store = tracking.client()
def content(path):
    if path.suffix != ".keras":
        return path.read_bytes()
    with zipfile.ZipFile(path) as file:  # Keras notes when it was saved, and addresses in memory as object ids
        config = re.sub(rb'"shared_object_id": \d+', b"", file.read("config.json"))
        return config + file.read("model.weights.h5")
def digests(run):
    place = Path(run.info.artifact_uri.removeprefix("file://"))
    return {path.relative_to(place).as_posix(): hashlib.sha256(content(path)).hexdigest()
            for path in sorted(place.rglob("*")) if path.is_file()}
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
name = registry.model_name(sys.argv[1])
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


def measure(
    verb: str, scratch: Path, kills: int, rng: np.random.Generator, say: Callable[[str], None]
) -> Tally:
    """Run a verb once undisturbed; kill it on copies of what was before it, and start it again.

    Every run is in `work`, because addresses in MLflow's store are absolute; `before` becomes the undisturbed result.
    """
    tally, log = Tally(), scratch / f"{verb}.log"
    before, work, after = (scratch / name for name in ("before", "work", "after"))
    shutil.copytree(before, work, symlinks=True)
    if code := start(work, verb, log):
        raise SystemExit(
            f"{verb} undisturbed ended with {code}:\n{log.with_suffix('.out').read_text()[-2000:]}"
        )
    *at, end = (float(line) for line in log.read_text().split())
    wanted = files(work) | store(work)
    work.rename(after)
    while tally.kills < kills and tally.ended_before <= kills:
        moment = rng.uniform(at[0], end)
        operation = max(index for index, second in enumerate(at) if second <= moment)
        shutil.copytree(before, work, symlinks=True)
        if start(work, verb, log, operation, moment - at[operation]) == -signal.SIGKILL:
            tally.kills += 1
            finished = trials(work)
            code = start(work, verb, log)
            kept, found = trials(work), files(work) | store(work)
            wrong = [f"exit code {code}"] if code else differences(wanted, found)
            tally.trials += len(finished)
            tally.lost += sum(kept.get(name) != value for name, value in finished.items())
            where = f"{verb}: killed {moment:.2f} s of {end:.2f} s, after operation {operation + 1} of {len(at)}"
            say(f"{where}: {'; '.join(wrong[:6]) or 'equal'}")
            if wrong:
                tally.differing.append(f"{where}: {'; '.join(wrong[:6])}")
                work.rename(scratch / f"{verb}-{tally.kills}")
        else:
            tally.ended_before += 1
        shutil.rmtree(work, ignore_errors=True)
    shutil.rmtree(before)
    after.rename(before)
    return tally


def build(folder: Path) -> None:
    """A committed checkout with a small phantom study, its images drawn."""
    sys.path.insert(0, str(ROOT / "tests"))
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


def main() -> int:
    """Kill every verb and print the table."""
    if sys.argv[1:2] == ["--inside"]:
        return inside(
            Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]), float(sys.argv[5]), sys.argv[6:]
        )
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--verbs", nargs="+", choices=VERBS, help="kill only these; the others run once"
    )
    parser.add_argument("--kills", type=int, help="kills of each verb (default: 61 in all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--folder",
        type=Path,
        help="where to work; where it holds a study, only --verbs are run on it",
    )
    options = parser.parse_args()
    scratch = options.folder or Path(tempfile.mkdtemp(prefix="crash-"))
    rng, tallies = np.random.default_rng(options.seed), {}
    resumed = (scratch / "before").is_dir()
    if not resumed:
        build(scratch / "before")
    for verb, (_, usual) in VERBS.items():
        if resumed and verb not in (options.verbs or ()):
            continue
        wanted = (options.kills or usual) if not options.verbs or verb in options.verbs else 0
        tallies[verb] = measure(
            verb, scratch, wanted, rng, lambda text: print(text, file=sys.stderr, flush=True)
        )
    print(
        "| verb | kills | ended before | finished trials at the kill | lost | differing |\n|---|---|---|---|---|---|"
    )
    for verb, tally in tallies.items():
        row = (
            verb,
            tally.kills,
            tally.ended_before,
            tally.trials,
            tally.lost,
            len(tally.differing),
        )
        print("| " + " | ".join(map(str, row)) + " |")
    killed, lost, differing = (
        sum(f(tally) for tally in tallies.values())
        for f in (lambda t: t.kills, lambda t: t.lost, lambda t: len(t.differing))
    )
    print(f"{killed} kills, {lost} lost finished trials, {differing} differing results")
    for tally in tallies.values():
        print("\n".join(tally.differing), end="\n" if tally.differing else "")
    if not options.folder:
        shutil.rmtree(scratch)
    return int(bool(lost or differing))


if __name__ == "__main__":
    raise SystemExit(main())
