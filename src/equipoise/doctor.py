"""What this machine has for what params.yaml asks: each line ok, warning or error, with the next step."""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

from equipoise import pipeline
from equipoise.core import config, environment, parallel
from equipoise.core.errors import EquipoiseError
from equipoise.embed import backbones
from equipoise.ingest.datasets import base as datasets
from equipoise.strategies import base as strategies

Level = Literal["ok", "warning", "error"]
Line = tuple[Level, str, str]
#: How long a server or a disk may take to answer.
_SECONDS = 20.0
_DEVICES = "import tensorflow as tf; print(', '.join(d.name[17:] for d in tf.config.list_physical_devices()))"


def examine(devices: bool = False) -> list[dict[str, str]]:
    """Every line as {"level", "what", "detail"}, without passwords; nothing is changed anywhere.

    Args:
        devices: Also load TensorFlow, in a process of its own, and name its devices.
    """
    lines = _lines(devices)
    return [
        {"level": level, "what": what, "detail": environment.masked(detail)}
        for level, what, detail in lines
    ]


def _lines(devices: bool) -> Iterator[Line]:
    version = sys.version.split()[0]
    good = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield (
        ("ok" if good else "error"),
        "python",
        version if good else f"{version}; 3.11 to 3.13 is needed: install one",
    )
    for name in (*environment.PACKAGES, "mlflow", "dvc"):
        try:
            yield "ok", name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield (
                "error",
                name,
                "not installed; run `make env`, or `uv pip install -r requirements.lock`",
            )
    if devices:
        yield _devices()
    for program, purpose in (
        ("git", "versions"),
        ("uv", "mlflow run --env-manager uv"),
        ("conda", "mlflow run"),
    ):
        path = shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))
        yield (
            ("ok", program, "found")
            if path
            else ("warning", program, f"not found; install it for {purpose}")
        )
    yield (
        ("ok", "dvc repository", ".dvc")
        if Path(".dvc").is_dir()
        else ("error", "dvc repository", "run `dvc init`")
    )
    yield _answer("dvc remote", "correct `dvc remote list` or its credentials", _remote)
    try:
        params = config.read_params()
        names = config.run_studies(params)
        yield "ok", "params.yaml", f"runs {', '.join(names)}"
    except EquipoiseError as error:
        yield "error", "params.yaml", str(error)
        names = []
    from equipoise.service import tracking  # noqa: F401  importing MLflow takes seconds that no server should pay for

    yield _answer(
        "tracking", "set MLFLOW_TRACKING_URI or correct its credentials", lambda: _tracking(names)
    )
    yield _answer(
        "registry", "set MLFLOW_REGISTRY_URI or correct its credentials", lambda: _registry(names)
    )
    for name in names:
        yield from _study(name, params)


def _answer(what: str, advice: str, ask: Callable[[], tuple[Level, str]]) -> Line:
    """What `ask` finds out within some seconds; the thread of a server that does not answer ends with the program."""
    found: list[tuple[Level, str]] = []

    def work() -> None:
        try:
            found.append(ask())
        except Exception as error:  # any store, any driver
            cause = str(error).strip().splitlines() or [""]
            found.append(("error", f"{type(error).__name__}: {cause[0]}; {advice}"))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(_SECONDS)
    level, detail = (*found, ("error", f"no answer within {_SECONDS:.0f} s; {advice}"))[0]
    return level, what, detail


def _devices() -> Line:
    words = [sys.executable, "-c", _DEVICES]
    done = subprocess.run(
        words, capture_output=True, text=True, env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"}
    )
    if done.returncode:
        cause = (done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"])[-1]
        return (
            "error",
            "devices",
            f"TensorFlow does not load ({cause}); run `make env` on this machine",
        )
    found = done.stdout.strip()
    return (
        ("ok", "devices", found)
        if "GPU" in found
        else ("ok", "devices", f"{found}: no GPU, passes run on the CPU")
    )


def _remote() -> tuple[Level, str]:
    from dvc.repo import Repo
    from dvc.scm import NoSCM

    if not Path(".dvc").is_dir():
        return "warning", "none; run `dvc init` first"
    with Repo(".", scm=NoSCM()) as repo:  # a remote needs no git
        name = repo.config["core"].get("remote")
        if not name:
            return (
                "warning",
                "none; `dvc remote add -d NAME ADDRESS` keeps raw images and features outside this disk",
            )
        store = repo.cloud.get_remote(name)
        there = store.fs.exists(store.path)
    return "ok", f"{name} ({store.path}), " + (
        "reached" if there else "reached, nothing pushed yet"
    )


def _tracking(studies: list[str]) -> tuple[Level, str]:
    from equipoise.service import tracking

    uri = tracking.tracking_uri()
    if not _writable(uri):
        return "ok", f"{uri} will be made"
    store = tracking.client()
    count = len(store.search_experiments())
    for name in studies:
        # Removing a tag that is not there changes nothing, and is refused to who may not write.
        if experiment := store.get_experiment_by_name(f"equipoise-{name}"):
            _permitted(
                partial(store.delete_experiment_tag, experiment.experiment_id, "equipoise.doctor")
            )
    return "ok", f"{uri} ({count} experiments)"


def _registry(studies: list[str]) -> tuple[Level, str]:
    import mlflow

    from equipoise.service import audit, tracking

    if not _writable(
        mlflow.get_registry_uri()
        if environment.environment("MLFLOW_REGISTRY_URI")
        else tracking.tracking_uri()
    ):
        return "ok", "will be made with the tracking store"
    store = tracking.client()
    held = {model.name for model in store.search_registered_models()}
    for name in held & {audit.model_name(study) for study in studies}:
        _permitted(partial(store.delete_registered_model_tag, name, "equipoise.doctor"))
    return "ok", f"{mlflow.get_registry_uri()} ({len(held)} models)"


def _writable(uri: str) -> bool:
    """False when the address is of a database file that is not there yet; an error when none may be written there."""
    if not uri.startswith("sqlite:///"):
        return True
    path = Path(uri.removeprefix("sqlite:///").split("?")[0])
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(f"{path} cannot be written")
    return path.exists()


def _permitted(write: Callable[[], Any]) -> None:
    from mlflow.exceptions import MlflowException

    try:
        write()
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST" and "does not exist" not in str(error):
            raise


def _study(name: str, params: dict[str, Any]) -> Iterator[Line]:
    try:
        study = config.load_study(name, params)
        datasets.load_dataset(study.dataset)
        for scenario in study.scenarios:
            strategies.load_strategy(scenario)
        rows = {backbone: backbones.load_row(backbone) for backbone in study.backbones}
        weights = {
            backbone: study.settings.embed.weights_for(backbone) for backbone in study.backbones
        }
    except EquipoiseError as error:
        yield "error", f"study {name}", str(error)
        return
    yield (
        "ok",
        f"study {name}",
        f"{study.dataset}, {study.settings.split.scheme}, {study.settings.train.mode}",
    )
    if study.raw.is_dir():
        yield "ok", f"{name}: raw images", str(study.raw)
    elif study.dataset == "phantom":
        yield "ok", f"{name}: raw images", "will be drawn"
    else:
        yield (
            "error",
            f"{name}: raw images",
            f"{study.raw} is not there; put the originals there or set ingest.raw",
        )
    for backbone, kind in weights.items():
        there = backbones.weights_there(backbone, kind)
        where = (
            kind
            if there
            else f"{kind}: not on this machine, will be downloaded from {rows[backbone].address}"
        )
        level: Level = "ok" if there else "warning" if kind == "imagenet" else "error"
        if level == "error":
            where = f"{kind} is not there; put the file there or correct embed.weights"
        yield level, f"{name}: weights of {backbone}", where
    yield from _cost(study)
    address = environment.environment("EQUIPOISE_OPTUNA_STORAGE") or study.settings.tune.storage
    if address:
        yield _answer(
            f"{name}: searches",
            "correct EQUIPOISE_OPTUNA_STORAGE or tune.storage",
            lambda: _searches(address),
        )
    if study.engine.backend == "dask":
        yield _answer(f"{name}: dask", "see docs/scale.md", lambda: _workers(study.engine))


def _cost(study: config.Study) -> Iterator[Line]:
    """Memory and disk against the estimate: an error where the study cannot end."""
    try:
        found = pipeline.steps(study)
    except EquipoiseError as error:
        yield "error", f"{study.name}: estimate", str(error)
        return
    yield "ok", f"{study.name}: estimate", pipeline.total(found)
    _, _, disk, memory = pipeline.needs(found)
    free, held = shutil.disk_usage(".").free, _memory_bytes()
    level: Level = "error" if disk > free else "warning" if free - disk < 5e9 else "ok"
    text = f"{free / 1e9:,.0f} GB free, {disk / 1e9:,.2g} GB to be written"
    advice = "; free some, move the folder, or set embed.dtype: float16 or fewer embed.views"
    yield level, f"{study.name}: disk", text + advice * (level != "ok")
    level = "warning" if held and memory > held else "ok"
    text = f"{held / 1e9:,.0f} GB here, {memory / 1e9:,.2g} GB at once"
    advice = (
        "; lower engine.workers, set fewer embed.views, or use a larger machine (docs/scale.md)"
    )
    yield level, f"{study.name}: memory", text + advice * (level != "ok")


def _memory_bytes() -> int:
    """Of this machine, or of the container that it is; 0 where the system does not say."""
    known = hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names
    whole = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if known else 0
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else ""
    return min(whole, int(text)) if text.isdigit() else whole


def _searches(address: str) -> tuple[Level, str]:
    import sqlalchemy

    _writable(address)
    engine = sqlalchemy.create_engine(address)
    if engine.dialect.name == "sqlite":
        return "warning", f"{address}; a file: several machines need PostgreSQL or MySQL"
    with engine.connect():
        return "ok", f"{address} reached"


def _workers(engine: config.Engine) -> tuple[Level, str]:
    here = parallel.seen_from(str(Path.cwd()))
    if engine.address is None:
        return "ok", f"{engine.workers} workers will be started here"
    with parallel.joined(engine, _SECONDS / 2) as client:
        seen = client.run(parallel.seen_from, str(Path.cwd()))
        wide = [address for address, threads in client.nthreads().items() if threads > 1]
    for address, there in seen.items():
        if found := environment.difference(there, here):
            return (
                "error",
                f"worker {address}: {found}; give it the same folder and packages, and restart it",
            )
    if wide:
        return (
            "warning",
            f"{len(wide)} workers have several threads and use one; start them with `--nthreads 1`",
        )
    return (
        "ok",
        f"{engine.address}, {len(seen)} workers with the same code, packages and params.yaml",
    )
