"""Kill -9 every verb at drawn moments, start it again, and compare with a run nobody disturbed.

    python tests/whole/slow/kills.py [--seed 0] [--ways verbs parents server] [--only promote] [--times 1.0]

A moment is drawn between the first file that a command opens and its end: its process group is killed so many
milliseconds after so many file operations (tests/fabricate/killed), so that a busy machine does not move the moments.

Three ways: the verbs one after another on a store beside the study; `dvc repro`, `mlflow run` and `main`, killed with
all that they started; and the verbs that touch a store on `mlflow server` with PostgreSQL and S3. On each way a
command starts from what the ones before it left.

Files are compared byte by byte, names included. MLflow's store is compared by what it says: experiments, runs that
are not deleted, their parameters, metrics, tags and artifacts, versions, aliases and `audit verify`; run ids, times
and what is made of them (log seals, MLmodel) cannot be equal. A finished batch of trials is one that was kept when
the process died; it is lost when it is not there, to the same bytes, in the end.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib
import io
import json
import os
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[3]
KILLED = ROOT / "tests/fabricate/killed"
STUDY, BACKBONE = "demo", "vgg16"
SECONDS_MAX = 600
#: What a study is remembered by; `data/cache` may be deleted at any time, and the store is read below.
_KEPT = ("data", "results", "reports", "exports", "dvc.lock")
#: Files that hold times.
_TIMES = ("data/searches.log", f"data/local/{STUDY}.files.json")
#: Tags and files that hold a run id, a time or a folder of this run.
_OWN = re.compile(
    r"mlflow\.(user|parentRunId|artifacts)|equipoise\.(audit|decision|seal|outcome|folder)|MLmodel$"
)
#: Tag of a run that `mlflow run` opened.
_ENTRY = "mlflow.project.entryPoint"
Words = tuple[str, ...]


# --- what is killed --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A command that is killed.

    Attributes:
        name: The verb, or the program that starts verbs.
        words: The command; a verb stands first, or `dvc`, `mlflow` or `python`.
        kills: How often.
        first: Commands that run undisturbed before it.
        prepare: Called with the folder before those.
    """

    name: str
    words: Words
    kills: int
    first: tuple[Words, ...] = ()
    prepare: Callable[[Path], None] | None = None


def verb(name: str, *more: str) -> Words:
    """A verb on the study."""
    return (name, "--study", STUDY, *more)


def on_backbone(name: str, *more: str) -> Words:
    """A verb on the study and its backbone."""
    return verb(name, "--backbone", BACKBONE, *more)


def _scenario(name: str, *more: str) -> Words:
    return on_backbone("scenario", "--scenario", name, *more)


def _mlflow_run(entry: str, *more: str) -> Words:
    return ("mlflow", "run", ".", "--env-manager", "local", "-e", entry, *more)


def _make_archive(folder: Path) -> None:
    """A published archive, as far as its names go."""
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(folder / "archive.zip", "w") as archive:
        for number in range(200):
            moment = zipfile.ZipInfo(f"BreaKHis_v1/SOB_B_A-14-{number:05d}-40-001.png")
            archive.writestr(moment, rng.bytes(20_000))


def _change_the_search(folder: Path) -> None:
    """Commit settings that give another result, so that there is a second version."""
    import conftest

    def change(params: dict[str, Any]) -> None:
        params["studies"][STUDY]["tune"]["l2_first"] = [0.02, 0.2, 2.0]

    conftest.change_params(folder, change)
    conftest.git(folder, "commit", "-q", "-a", "-m", "another search")


_IMAGES = f"data/raw/{STUDY}"
_CHAMPION = f"models:/equipoise-{STUDY}@champion"
_RESULT = f"results/{STUDY}/{BACKBONE}"
_TO_RESULTS = (
    verb("phantom"),
    verb("ingest"),
    verb("split"),
    on_backbone("embed"),
    _scenario("baseline"),
    _scenario("class_weight"),
    verb("compare"),
)
_SECOND_VERSION = (
    _scenario("baseline"),
    _scenario("class_weight"),
    verb("compare"),
    ("register",),
    verb("promote", "--version", "2", "--force", "--reason", "a drill"),
)
VERBS = (
    Case("fetch", ("fetch", "breakhis", "--from", "archive.zip"), 3, prepare=_make_archive),
    Case("phantom", verb("phantom"), 3),
    Case("ingest", verb("ingest"), 8),
    Case("split", verb("split"), 3),
    Case("embed", on_backbone("embed"), 6),
    Case("scenario", _scenario("baseline"), 10),
    Case("fine-tuning", _scenario("baseline", "--set", "train.mode=finetune"), 5),
    Case("leakage", on_backbone("leakage"), 4),
    Case("compare", verb("compare"), 5, first=(_scenario("class_weight"),)),
    Case("report", verb("report"), 3),
    Case(
        "judge",
        (
            "judge",
            f"{_RESULT}/baseline/predictions.parquet",
            f"{_RESULT}/class_weight/predictions.parquet",
            "--page",
            "reports/judged.html",
            "--json",
            "reports/judged.json",
        ),
        3,
    ),
    Case("export", verb("export", "--layout", "folders", "--copy"), 3),
    Case("track", ("track",), 4),
    Case("register", ("register",), 6),
    Case("promote", verb("promote"), 6),
    Case("rollback", verb("rollback", "--reason", "drill over"), 5, _SECOND_VERSION, _change_the_search),
    Case("audit", ("audit", "verify"), 1),
    Case("doctor", ("doctor",), 1),
    Case("predict", ("predict", "--model", _CHAMPION, _IMAGES, "--out", "reports/out.csv"), 4),
    Case(
        "explain",
        ("explain", "--model", _CHAMPION, "IMAGE", "--out", "reports/out.png"),
        3,
    ),
    Case("init", ("init", "own", "--images", "data/raw/demo", "--positive", "opacity"), 3),
    Case("study", ("study", "more", "--images", "data/raw/demo", "--positive", "opacity"), 3),
)  # fmt: skip
PARENTS = (
    Case("dvc repro", ("dvc", "repro"), 7, (verb("phantom"),)),
    # MLflow itself makes the tables of a store that is not there, and not all at once.
    Case("mlflow run", _mlflow_run("baseline", "-P", f"backbone={BACKBONE}"), 6, (("audit",),)),
    Case("main", ("python", "src", "main"), 5),
)
SERVER = (
    Case("track", ("track",), 4, _TO_RESULTS),
    Case("mlflow run", _mlflow_run("class_weight", "-P", f"backbone={BACKBONE}", "-P", "trials=4"), 4),
    Case("register", ("register",), 5),
    Case("promote", verb("promote"), 6),
    Case("rollback", verb("rollback", "--reason", "drill over"), 5, _SECOND_VERSION, _change_the_search),
    Case("predict", ("predict", "--model", _CHAMPION, _IMAGES, "--out", "reports/out.csv"), 2),
)  # fmt: skip
WAYS = {"verbs": VERBS, "parents": PARENTS, "server": SERVER}
#: Verbs that are killed inside another command only.
INSIDE_OTHERS = {"main": "parents"}
#: It writes nothing, and is there to be ended.
NOT_KILLED = ("ui",)


# --- starting a command ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moment:
    """When a command dies: so many seconds after so many file operations, from 0; -1 for never."""

    operation: int = -1
    after_seconds: float = 0.0


@dataclass(frozen=True)
class Ended:
    """What came of a command: its exit code (-9: killed), the seconds of its operations, and what it said."""

    code: int
    operations: list[float]
    end: float
    said: str


def start(folder: Path, words: Words, log: Path, moment: Moment, **environment: str) -> Ended:
    """Run a command in a process group of its own.

    A verb runs in a fork of this process, in which everything is imported already; other programs, and what they start,
    as a user runs them.
    """
    log.unlink(missing_ok=True)
    said = log.with_suffix(".out")
    environment = _environment(folder, log, moment, environment)
    words = tuple(_an_image(folder) if word == "IMAGE" else word for word in words)
    started = time.monotonic()
    with said.open("w") as out:
        if words[0] in ("dvc", "mlflow", "python"):
            process = subprocess.Popen(
                words, cwd=folder, env=environment, stdout=out, stderr=out, start_new_session=True
            )
            code = _wait(process.pid)
            process.returncode = code
        else:
            code = _wait(_fork(lambda: _verb(folder, words, environment), out.fileno()))
    end = time.monotonic() - started
    text = said.read_text(errors="replace")
    times = (
        sorted(float(line) - started for line in log.read_text().split()) if log.exists() else []
    )
    return Ended(code, times, end, text)


def _environment(folder: Path, log: Path, moment: Moment, more: dict[str, str]) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MLFLOW_", "EQUIPOISE_", "GIT_", "KILLED_"))
    }
    programs = str(Path(sys.executable).parent)
    return {
        **kept,
        "PATH": os.pathsep.join([programs, kept.get("PATH", "")]),
        "PYTHONPATH": str(KILLED),
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "DVC_NO_ANALYTICS": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "KILLED_WITHIN": str(folder),
        "KILLED_LOG": str(log),
        "KILLED_OPERATION": str(moment.operation),
        "KILLED_AFTER": str(moment.after_seconds),
        **more,
    }


def _an_image(folder: Path) -> str:
    image = min((folder / _IMAGES).rglob("*.png"))
    return str(image.relative_to(folder))


def _verb(folder: Path, words: Words, environment: dict[str, str]) -> int:
    """In a fork: run a verb as the program does."""
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    death = _death()
    moment = int(environment["KILLED_OPERATION"]), float(environment["KILLED_AFTER"])
    death.watch(environment["KILLED_WITHIN"], environment["KILLED_LOG"], *moment)
    from equipoise.cli import main as program

    try:
        return program(words)
    except SystemExit as error:
        return int(error.code or 0)


def _death() -> Any:
    sys.path.insert(0, str(KILLED))
    sys.modules.pop("sitecustomize", None)
    try:
        return importlib.import_module("sitecustomize")
    finally:
        sys.path.remove(str(KILLED))


def _fork(work: Callable[[], int], out: int) -> int:
    """Do some work in a copy of this process, in a session of its own."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    os.setsid()
    os.dup2(out, 1)
    os.dup2(out, 2)
    code = 1
    try:
        code = work()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _wait(child: int) -> int:
    """Exit code of a child, or the negative of the signal that ended it; what hangs is killed."""
    deadline = time.monotonic() + SECONDS_MAX
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return 124


def import_all() -> None:
    """Import what any verb needs, so that a fork of this process starts at once."""
    import equipoise

    os.environ.setdefault("TF_CPU_ALLOCATOR_USE_BFC", "true")  # as where the product loads Keras
    importlib.import_module("keras")
    importlib.import_module("mlflow.pyfunc")
    for module in pkgutil.walk_packages(equipoise.__path__, "equipoise."):
        if not module.name.endswith(("__main__", "packaged_host")):
            importlib.import_module(module.name)


# --- what it left ----------------------------------------------------------------------------------------------------


def files(folder: Path) -> dict[str, str]:
    """Digest of every file that a study leaves, names of temporary files included."""
    found = {}
    for path in sorted(path for top in _KEPT for path in _below(folder / top)):
        name = path.relative_to(folder).as_posix()
        if name.startswith("data/cache/") or name in _TIMES:
            continue
        found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def _below(top: Path) -> list[Path]:
    return [top] if top.is_file() else [path for path in top.rglob("*") if path.is_file()]


def batches(folder: Path) -> dict[str, str]:
    """Finished batches of trials of every search: name of the file -> digest of its bytes."""
    kept = sorted((folder / "data/cache/searches").glob("*.npz"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in kept}


def stored(folder: Path, server: Any, scratch: Path) -> dict[str, str]:
    """What MLflow's store says, less ids and times; asked in a fork."""
    if server is None and not (folder / "mlflow.db").is_file():
        return {}
    answer = scratch / "store.json"
    answer.unlink(missing_ok=True)

    def ask() -> int:
        if server is not None:
            os.environ["MLFLOW_TRACKING_URI"] = server.uri
        os.chdir(folder)
        answer.write_text(json.dumps(_asked(folder, server)))
        return 0

    with (scratch / "store.out").open("w") as out:
        code = _wait(_fork(ask, out.fileno()))
    if code:
        return {"store": (scratch / "store.out").read_text()[-500:]}
    return json.loads(answer.read_text())


def _asked(folder: Path, server: Any) -> dict[str, str]:
    from equipoise.registry import audit, tracking, verification

    store = tracking.client(folder)
    runs = {}
    for experiment in store.search_experiments():
        for run in store.search_runs([experiment.experiment_id], max_results=1000):
            runs[run.info.run_id] = (experiment.name, run)
    found: dict[str, list[Any]] = {}
    for name, run in runs.values():
        if name != audit.EXPERIMENT and not _left_by_mlflow(run):
            label, said = _of_run(name, run, runs, server)
            found.setdefault(label, []).append(said)
    model = audit.model_name(STUDY)
    for version in store.search_model_versions(f"name = '{model}'"):
        found[f"version {version.version}"] = [
            {
                "tags": _without_own(version.tags),
                "aliases": sorted(version.aliases),
                "run": runs[version.run_id][1].info.run_name,
                "status": version.status,
            }
        ]
    decisions = [entry for entry in audit.read(store, model) if entry.state != "undone"]
    found["log"] = [
        (entry.decision.kind, entry.decision.from_version, entry.decision.to_version, entry.state)
        for entry in decisions
    ]
    found["verify"] = verification.verify(store, model)
    return {name: json.dumps(sorted(said, key=str), sort_keys=True) for name, said in found.items()}


def _left_by_mlflow(run: Any) -> bool:
    """A run that `mlflow run` opened and that holds nothing.

    Nobody but MLflow could end that of a killed call; that of the call after it names the result that was there.
    """
    if _ENTRY not in run.data.tags or run.data.metrics:
        return False
    role = run.data.tags.get("equipoise.role")
    if run.info.status == "RUNNING":
        return "equipoise.result_digest" not in run.data.tags
    return run.info.status == "FINISHED" and role == "launcher"


def _of_run(name: str, run: Any, runs: dict[str, Any], server: Any) -> tuple[str, Any]:
    _, parent = runs.get(run.data.tags.get("mlflow.parentRunId"), (None, None))
    digests = _digests(run, server)
    tags = _without_own(run.data.tags)
    if _ENTRY in tags:
        tags.pop("mlflow.runName")  # drawn by MLflow
    said = {
        "status": run.info.status,
        "params": run.data.params,
        "metrics": run.data.metrics,
        "tags": tags,
        "files": {key: digests[key] for key in digests if not key.startswith("model/code/")},
    }
    return f"run {name}/{_name_of(parent)}/{_name_of(run)}", said


def _name_of(run: Any) -> str:
    """Of a run; those that `mlflow run` opens bear drawn names."""
    if run is None:
        return ""
    return run.data.tags.get(_ENTRY, run.info.run_name)


def _without_own(values: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in values.items() if not _OWN.search(key)}


def _digests(run: Any, server: Any) -> dict[str, str]:
    """Digests of the artifacts of a run, by name."""
    named = {}
    for name, read in _artifacts(run.info.artifact_uri, server):
        if _OWN.search(name):
            continue
        # The folder of a version is named after the moment at which its model was made.
        short = re.sub(r"^versions/[^/]+/", "", name)
        named[short] = hashlib.sha256(_content(name, read())).hexdigest()
    return named


def _artifacts(uri: str, server: Any) -> Iterator[tuple[str, Callable[[], bytes]]]:
    import conftest

    if server is None:
        place = conftest.path_of(uri)
        for path in _below(place):
            yield path.relative_to(place).as_posix(), path.read_bytes
        return
    prefix = f"artifacts/{uri.removeprefix('mlflow-artifacts:/').lstrip('/')}/"
    for item in server.bucket_objects(prefix):
        # Models are large: what S3 keeps of the bytes is a digest of them.
        is_large = not item.key.endswith(".keras")
        read = (
            (lambda item=item: item.e_tag.encode())
            if is_large
            else (lambda item=item: item.get()["Body"].read())
        )
        yield item.key.removeprefix(prefix), read


def _content(name: str, content: bytes) -> bytes:
    if not name.endswith(".keras"):
        return content
    # Keras notes when it was saved, and addresses in memory as object ids.
    with zipfile.ZipFile(io.BytesIO(content)) as file:
        config = re.sub(rb'"shared_object_id": \d+', b"", file.read("config.json"))
        return config + file.read("model.weights.h5")


def differences(one: dict[str, str], other: dict[str, str]) -> list[str]:
    """Names that one lacks or that differ."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


# --- a way -----------------------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What came of the kills of one command."""

    way: str
    name: str
    wanted: int
    kills: int = 0
    ended_before: int = 0
    batches: int = 0
    lost: int = 0
    tracebacks: int = 0
    differing: list[str] = field(default_factory=list)


class Way:
    """Commands in their order, each on what the ones before it left.

    Every run is in `work`, because addresses in MLflow's store are absolute. `before` holds what was there before the
    next command, and on a server a database of this name does.
    """

    def __init__(self, name: str, folder: Path, server: Any = None) -> None:
        """Build the study; the first command is still to come."""
        self.name, self.folder, self.server = name, folder, server
        self.before, self.work, self.after = (folder / part for part in ("before", "work", "after"))
        self.environment = {"MLFLOW_TRACKING_URI": server.uri} if server else {}
        build(self.before)
        if server:
            server.keep("before")

    def go(self, case: Case, tally: Tally, rng: np.random.Generator) -> None:
        """Kill a command at drawn moments on copies of what was before it, and start it again."""
        self.before.rename(self.work)
        if case.prepare:
            case.prepare(self.work)
        for words in case.first:
            self.run(words)
        self.work.rename(self.before)
        if self.server:
            self.server.keep("before")
        undisturbed, left = self.undisturbed(case)
        while tally.kills < case.kills and tally.ended_before <= case.kills + 20:
            self.restore()
            self.kill(case, undisturbed, left, tally, rng)
            shutil.rmtree(self.work, ignore_errors=True)
        shutil.rmtree(self.before)
        self.after.rename(self.before)
        if self.server:
            self.server.restore("after")
            self.server.keep("before")

    def restore(self) -> None:
        """Bring back what was before the command."""
        shutil.copytree(self.before, self.work, symlinks=True)
        if self.server:
            self.server.restore("before")

    def undisturbed(self, case: Case) -> tuple[Ended, dict[str, str]]:
        """Run a command once; what it leaves waits in `after`."""
        self.restore()
        ended = self.run(case.words)
        left = self.left()
        self.work.rename(self.after)
        if self.server:
            self.server.keep("after")
        return ended, left

    def run(self, words: Words, moment: Moment = Moment()) -> Ended:
        """Run a command; without a moment it must end well."""
        log = self.folder / "operations.log"
        ended = start(self.work, words, log, moment, **self.environment)
        if moment == Moment() and ended.code:
            raise AssertionError(
                f"{' '.join(words)} ended with {ended.code}:\n{ended.said[-3000:]}"
            )
        return ended

    def run_again(self, words: Words) -> Ended:
        """Run a killed command once more, without the lock file that DVC itself left half-written.

        DVC writes it in place and then says that it has to be removed; `main` does that by itself.
        """
        try:
            return self.run(words)
        except AssertionError as error:
            if words[0] != "dvc" or "RWLock" not in str(error):
                raise
        print("DVC's own lock file was cut; it is removed, as DVC says", flush=True)
        (self.work / ".dvc/tmp/rwlock").unlink()
        return self.run(words)

    def left(self) -> dict[str, str]:
        """What is in the folder and in the store."""
        return files(self.work) | stored(self.work, self.server, self.folder)

    def kill(
        self,
        case: Case,
        undisturbed: Ended,
        left: dict[str, str],
        tally: Tally,
        rng: np.random.Generator,
    ) -> None:
        """One kill and the start after it."""
        operations = undisturbed.operations
        second = rng.uniform(operations[0], undisturbed.end)
        operation = max(index for index, at in enumerate(operations) if at <= second)
        moment = Moment(operation, second - operations[operation])
        if self.run(case.words, moment).code != -signal.SIGKILL:
            tally.ended_before += 1
            return
        tally.kills += 1
        finished = batches(self.work)
        wrong = []
        try:
            said = self.run_again(case.words).said
        except AssertionError as error:
            said = str(error)
            wrong = [said]
        tally.tracebacks += "Traceback (most" in said
        kept = batches(self.work)
        wrong = wrong or differences(left, self.left())
        tally.batches += len(finished)
        tally.lost += sum(kept.get(name) != digest for name, digest in finished.items())
        where = (
            f"{self.name}, {case.name}: killed {second:.2f} s of {undisturbed.end:.2f} s, "
            f"after operation {operation + 1} of {len(operations)}"
        )
        print(f"{where}: {'; '.join(wrong[:6]) or 'equal'}", flush=True)
        if wrong:
            tally.differing.append(f"{where}: {'; '.join(wrong[:6])}")
            self.work.rename(self.folder / f"{case.name.replace(' ', '-')}-{tally.kills}")


class Server:
    """`mlflow server` whose database can be kept and brought back."""

    def __init__(self, running: Any) -> None:
        """Take a server of tests/fabricate/servers.py that has no accounts."""
        self.running, self.uri = running, running.uri

    def bucket_objects(self, prefix: str) -> Any:
        """Objects below a prefix."""
        return self.running.objects_below(prefix)

    def keep(self, name: str) -> None:
        """Copy the database under a name."""
        self._copy("mlflow", name)

    def restore(self, name: str) -> None:
        """Put a kept copy in place of the database."""
        self._copy(name, "mlflow")

    def _copy(self, one: str, other: str) -> None:
        import psycopg

        address = self.running.database.rpartition("/")[0]
        with psycopg.connect(f"{address}/postgres", autocommit=True) as connection:
            connection.execute(
                "select pg_terminate_backend(pid) from pg_stat_activity where datname = any(%s)",
                [[one, other]],
            )
            connection.execute(f'drop database if exists "{other}" with (force)')
            connection.execute(f'create database "{other}" template "{one}"')


def build(folder: Path) -> None:
    """A committed checkout with a small phantom study."""
    import conftest

    folder.mkdir(parents=True)
    conftest.copy_checkout(folder)
    conftest.change_params(folder, conftest.make_small)
    conftest.change_params(folder, _make_smaller)
    for words in (("init", "-q"), ("add", "-A"), ("commit", "-q", "-m", "small study")):
        conftest.git(folder, *words)


def _make_smaller(params: dict[str, Any]) -> None:
    params["run"]["scenarios"] = ["baseline", "class_weight"]
    params["studies"][STUDY]["embed"]["views"] = 1
    params["studies"][STUDY]["compare"] = {"resamples": 100, "permutations": 20}


# --- the run ---------------------------------------------------------------------------------------------------------


def kill_all(options: argparse.Namespace, folder: Path) -> list[Tally]:
    """Go every way that was asked for."""
    tallies = []
    with contextlib.ExitStack() as stack:
        for name in options.ways:
            server = None
            if name == "server":
                from fabricate import servers

                server = Server(stack.enter_context(servers.started(accounts=False)))
            way = Way(name, folder / name, server)
            for case in WAYS[name]:
                wanted = case.name in options.only or not options.only
                kills = round(case.kills * options.times) if wanted else 0
                rng = np.random.default_rng([options.seed, *f"{name} {case.name}".encode()])
                tally = Tally(name, case.name, kills)
                tallies.append(tally)
                try:
                    way.go(replace(case, kills=kills), tally, rng)
                except AssertionError as error:  # what comes later on this way stands on it
                    tally.differing.append(str(error))
                    print(f"{name}, {case.name}: {error}", flush=True)
                    break
    return tallies


def table(tallies: list[Tally]) -> str:
    """The figures, as docs/faults.md shows them."""
    lines = [
        "| killed | where | kills | finished batches | lost | different | tracebacks |",
        "|---|---|---|---|---|---|---|",
    ]
    for tally in tallies:
        numbers = [tally.kills, tally.batches, tally.lost, len(tally.differing), tally.tracebacks]
        lines.append(f"| {tally.name} | {tally.way} | {' | '.join(map(str, numbers))} |")
    totals = [
        sum(tally.kills for tally in tallies),
        sum(tally.batches for tally in tallies),
        sum(tally.lost for tally in tallies),
        sum(len(tally.differing) for tally in tallies),
        sum(tally.tracebacks for tally in tallies),
    ]
    lines.append(f"| all | | {' | '.join(map(str, totals))} |")
    return "\n".join(lines)


def main() -> int:
    """Kill, print each kill and the table; 1 where anything was lost or differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--only", nargs="+", default=[], help="kill these; the others only run")
    parser.add_argument("--times", type=float, default=1.0, help="factor on the kills of each")
    parser.add_argument("--keep", action="store_true", help="keep the folders")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="kills-")).resolve()
    # The code as it is now, whatever is edited meanwhile.
    shutil.copytree(ROOT / "src", folder / "src", ignore=shutil.ignore_patterns("__pycache__"))
    sys.path[:0] = [str(folder / "src"), str(ROOT / "tests")]
    began = time.monotonic()
    import_all()
    tallies = kill_all(options, folder)
    print(table(tallies))
    print(f"{(time.monotonic() - began) / 60:.0f} minutes, seed {options.seed}, folder {folder}")
    bad = any(tally.lost or tally.differing or tally.tracebacks for tally in tallies)
    short = any(tally.kills < tally.wanted for tally in tallies)
    if not (options.keep or bad):
        shutil.rmtree(folder)
    return int(bad or short)


if __name__ == "__main__":
    raise SystemExit(main())
