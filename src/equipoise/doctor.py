"""What this machine has for what params.yaml asks: each line ok, warning or error, with a next step."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from threadpoolctl import threadpool_info

from equipoise import costs, pipeline
from equipoise.core import config, environment, extras, parallel, text
from equipoise.core.errors import EquipoiseError
from equipoise.embed import applications, backbones, encoders, formats, imported
from equipoise.ingest import originals
from equipoise.project import links

Level = Literal["ok", "warning", "error"]
#: How long a server or a disk may take to answer.
ANSWER_SECONDS = 20.0
#: Free bytes that should be left when a study is through.
_SPARE_BYTES = 5e9
_PROGRAMS = {
    "git": "versions",
    "uv": "mlflow run --env-manager uv",
    "conda": "mlflow run without --env-manager",
}
#: Large packages that the stages import; whether they lie there compiled tells of the others.
_COMPILED = ("numpy", "pandas", "tensorflow")
#: Kernels of OpenBLAS that leave AVX-512 unused.
_NARROW_KERNELS = {"Haswell", "Zen"}
#: The variable by which OpenBLAS is told which kernels to take.
_KERNEL_CHOICE = "OPENBLAS_CORETYPE"
_NAME_DEVICES = (
    "import tensorflow as tf; "
    "print(', '.join(d.name[17:] for d in tf.config.list_physical_devices()))"
)


@dataclass(frozen=True)
class Finding:
    """One line of the doctor."""

    level: Level
    what: str
    detail: str

    def as_dict(self) -> dict[str, str]:
        """Plain data, for `--json`."""
        return asdict(self)


@dataclass(frozen=True)
class Answer:
    """What was found out about one thing: how well it is, and in words."""

    level: Level
    detail: str


def examine(root: Path, devices: bool = False) -> list[Finding]:
    """Look at everything that a study needs; nothing is changed anywhere.

    Args:
        root: Folder of params.yaml.
        devices: Also load TensorFlow, in a process of its own, and name its devices.

    Returns:
        Findings without passwords.
    """
    findings = [*_machine(devices), *_repository(root), *_studies(root)]
    return [replace(finding, detail=environment.masked(finding.detail)) for finding in findings]


# --- the machine ----------------------------------------------------------------------------------


def _machine(devices: bool) -> Iterator[Finding]:
    yield _python()
    for package in environment.PACKAGES:
        if package not in extras.EXTRA_OF:
            yield _package(package)
    for extra, purpose in extras.PURPOSES.items():
        yield extra_finding(extra, purpose)
    yield bytecode(_sources(_COMPILED))
    yield products(kernels_here(), _processor_flags(), os.environ.get(_KERNEL_CHOICE, ""))
    if devices:
        answer = name_devices()
        yield Finding(answer.level, "devices", answer.detail)
    for program, purpose in _PROGRAMS.items():
        yield _program(program, purpose)


def _python() -> Finding:
    version = sys.version.split()[0]
    if (3, 11) <= sys.version_info[:2] <= (3, 13):
        return Finding("ok", "python", version)
    return Finding("error", "python", f"{version}; 3.11 to 3.13 is needed: install one")


def _package(name: str) -> Finding:
    try:
        return Finding("ok", name, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding("error", name, "not installed; run `pip install equipoise`")


def extra_finding(extra: str, purpose: str) -> Finding:
    """Whether an extra of the installation is there; a light one does without."""
    what = f"extra {extra}"
    if extras.lacking(extra):
        advice = f"run `{extras.install(extra)}` for it"
        return Finding("warning", what, f"not installed ({purpose}); {advice}")
    packages = [module.replace("_", "-") for module in extras.modules_of(extra)]
    installed = environment.versions_of(*packages)
    told = [f"{name} {version}" for name, version in installed.items()]
    return Finding("ok", what, ", ".join(told))


def _sources(packages: Sequence[str]) -> list[Path]:
    """The first file of each package that is installed; none of them is imported."""
    specs = [importlib.util.find_spec(name) for name in packages]
    return [Path(spec.origin) for spec in specs if spec is not None and spec.origin]


def bytecode(sources: Sequence[Path], writes: bool = not sys.dont_write_bytecode) -> Finding:
    """Whether Python has to compile the packages anew in every stage.

    Args:
        sources: A file of each package.
        writes: Whether Python keeps what it compiles.
    """
    lacking = []
    for source in sources:
        if not Path(importlib.util.cache_from_source(str(source))).is_file():
            lacking.append(source)
    if not lacking:
        return Finding("ok", "bytecode", "packages are compiled")
    folder = lacking[0].parent.parent
    if not writes:
        why = "PYTHONDONTWRITEBYTECODE is set"
        advice = "unset it"
    elif not os.access(lacking[0].parent, os.W_OK):
        why = "it cannot be written there"
        advice = "let their owner do it"
    else:
        return Finding("ok", "bytecode", "packages will be compiled when they are first imported")
    return Finding(
        "warning",
        "bytecode",
        f"{folder} is not compiled and {why}: each stage takes seconds longer to start; "
        f'{advice}, or run `python -m compileall -q "{folder}"` once',
    )


def products(kernels: Collection[str], flags: Collection[str], chosen: str) -> Finding:
    """By which kernels matrices are multiplied, and whether this processor could do it faster.

    Args:
        kernels: Of OpenBLAS; empty where NumPy stands on another library.
        flags: What the processor can do, in Linux' words; empty on other systems.
        chosen: Value of OPENBLAS_CORETYPE; empty where OpenBLAS chooses.
    """
    if not kernels:
        return Finding("ok", "matrix products", "not by OpenBLAS")
    named = f"OpenBLAS, {' and '.join(sorted(kernels))} kernels"
    if "avx512f" not in flags or not _NARROW_KERNELS.intersection(kernels):
        return Finding("ok", "matrix products", named)
    setting = f"{_KERNEL_CHOICE}=SkylakeX set"
    if chosen:
        setting = f"{_KERNEL_CHOICE}={chosen} unset"
    advice = (
        f"this processor has AVX-512: with {setting} for all of a study a product takes about two thirds of the "
        f"time (last digits differ between kernels)"
    )
    return Finding("ok", "matrix products", f"{named}; {advice}")


def kernels_here() -> set[str]:
    """Kernels of the copies of OpenBLAS that this process has loaded."""
    libraries = threadpool_info()
    return {item["architecture"] for item in libraries if item["internal_api"] == "openblas"}


def _processor_flags() -> set[str]:
    """What the processor can do, as Linux says it."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    for line in lines:
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return set(value.split())
    return set()


def _program(name: str, purpose: str) -> Finding:
    beside_python = str(Path(sys.executable).parent)
    if shutil.which(name) or shutil.which(name, path=beside_python):
        return Finding("ok", name, "found")
    return Finding("warning", name, f"not found; install it for {purpose}")


def name_devices(code: str = _NAME_DEVICES) -> Answer:
    """TensorFlow's devices, from a process of its own: a driver may end it."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"ended with code {done.returncode}"]
        advice = "run `make env` on this machine"
        return Answer("error", f"TensorFlow does not load ({lines[-1]}); {advice}")
    names = done.stdout.strip()
    if "GPU" in names:
        return Answer("ok", names)
    return Answer("ok", f"{names}: no GPU, passes run on the CPU")


def memory_bytes() -> int:
    """Memory of this machine, or of the container that it is; 0 where the system does not say."""
    if not hasattr(os, "sysconf") or "SC_PHYS_PAGES" not in os.sysconf_names:
        return 0
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else ""
    return min(memory, int(text)) if text.isdigit() else memory


# --- the repository and its servers ---------------------------------------------------------------


def _repository(root: Path) -> Iterator[Finding]:
    try:
        pipeline.require_checkout(root)
        yield Finding("ok", "git checkout", str(root))
    except EquipoiseError as error:
        yield Finding("error", "git checkout", str(error))
    unlinked = links.advice_to_link_program(root)
    if unlinked:
        yield Finding("error", "program", f"{unlinked}, or run `equipoise main`")
    if (root / ".dvc").is_dir():
        yield Finding("ok", "dvc repository", ".dvc")
    else:
        yield Finding("error", "dvc repository", "run `dvc init`")
    if not extras.is_installed("dvc"):
        return
    advice = "correct `dvc remote list` or its credentials"
    yield ask("dvc remote", advice, partial(_dvc_remote, root))


def ask(
    what: str, advice: str, question: Callable[[], Answer], seconds: float = ANSWER_SECONDS
) -> Finding:
    """What a server or a disk answers within some seconds.

    The thread of one that does not answer ends with the program.
    """
    answers: list[Answer] = []

    def work() -> None:
        try:
            answers.append(question())
        except EquipoiseError as error:  # it names its own next step
            answers.append(Answer("error", str(error)))
        except Exception as error:  # any store, any driver
            lines = str(error).strip().splitlines() or [""]
            answers.append(Answer("error", f"{type(error).__name__}: {lines[0]}; {advice}"))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not answers:
        return Finding("error", what, f"no answer within {seconds:.0f} s; {advice}")
    return Finding(answers[0].level, what, answers[0].detail)


def _dvc_remote(root: Path) -> Answer:
    from dvc.repo import Repo
    from dvc.scm import NoSCM

    if not (root / ".dvc").is_dir():
        return Answer("warning", "none; run `dvc init` first")
    with Repo(str(root), scm=NoSCM()) as repo:  # a remote needs no git
        name = repo.config["core"].get("remote")
        if not name:
            advice = "`dvc remote add -d NAME ADDRESS` keeps raw images and features elsewhere"
            return Answer("warning", f"none; {advice}")
        store = repo.cloud.get_remote(name)
        filled = store.fs.exists(store.path)
    state = "reached" if filled else "reached, nothing pushed yet"
    return Answer("ok", f"{name} ({store.path}), {state}")


def _servers(root: Path, studies: list[str]) -> Iterator[Finding]:
    if not extras.is_installed("mlflow"):
        return
    # Importing MLflow takes seconds that no server should pay for.
    from equipoise.registry import tracking  # noqa: F401

    yield ask(
        "tracking",
        "set MLFLOW_TRACKING_URI or correct its credentials",
        partial(_tracking, root, studies),
    )
    yield ask(
        "registry",
        "set MLFLOW_REGISTRY_URI or correct its credentials",
        partial(_registry, root, studies),
    )


def _tracking(root: Path, studies: list[str]) -> Answer:
    from equipoise.registry import tracking

    uri = tracking.tracking_uri(root)
    if not _database_is_there(uri):
        return Answer("ok", f"{uri} will be made")
    store = tracking.client(root)
    count = len(store.search_experiments())
    for name in studies:
        experiment = store.get_experiment_by_name(f"equipoise-{name}")
        if experiment is None:
            continue
        tracking.require_active(experiment)
        # Removing a tag that is not there changes nothing, and is refused to who may not write.
        _try_to_write(
            partial(store.delete_experiment_tag, experiment.experiment_id, "equipoise.doctor")
        )
    return Answer("ok", f"{uri} ({count} experiments)")


def _registry(root: Path, studies: list[str]) -> Answer:
    import mlflow

    from equipoise.registry import audit, tracking

    uri = environment.environment("MLFLOW_REGISTRY_URI") or tracking.tracking_uri(root)
    if not _database_is_there(uri):
        return Answer("ok", "will be made with the tracking store")
    store = tracking.client(root)
    models = {model.name for model in store.search_registered_models()}
    for name in models & {audit.model_name(study) for study in studies}:
        _try_to_write(partial(store.delete_registered_model_tag, name, "equipoise.doctor"))
    return Answer("ok", f"{mlflow.get_registry_uri()} ({len(models)} models)")


def _database_is_there(uri: str) -> bool:
    """False when an address is of a database file that is not there yet.

    Raises:
        PermissionError: When no file may be written there.
    """
    if not uri.startswith("sqlite:///"):
        return True
    path = Path(uri.removeprefix("sqlite:///").split("?")[0])
    written = path if path.exists() else path.parent
    if not os.access(written, os.W_OK):
        raise PermissionError(f"{path} cannot be written")
    return path.exists()


def _try_to_write(write: Callable[[], Any]) -> None:
    from mlflow.exceptions import MlflowException

    try:
        write()
    except MlflowException as error:
        missing = error.error_code == "RESOURCE_DOES_NOT_EXIST" or "does not exist" in str(error)
        if not missing:
            raise


# --- the studies ----------------------------------------------------------------------------------


def _studies(root: Path) -> Iterator[Finding]:
    names: list[str] = []
    params: dict[str, Any] = {}
    try:
        params = config.read_params(root)
        names = config.run_studies(params)
        yield Finding("ok", "params.yaml", f"runs {', '.join(names)}")
    except EquipoiseError as error:
        yield Finding("error", "params.yaml", str(error))
    yield from _servers(root, names)
    for name in names:
        yield from _study(name, params, root)


def _study(name: str, params: dict[str, Any], root: Path) -> Iterator[Finding]:
    try:
        study = config.load_study(name, params, root=root)
        pipeline.check_names(study)
    except EquipoiseError as error:
        yield Finding("error", f"study {name}", str(error))
        return
    settings = study.settings
    described = f"{study.dataset}, {settings.split.scheme}, {settings.train.mode}"
    yield Finding("ok", f"study {name}", described)
    yield _raw_images(study)
    for backbone in study.backbones:
        yield _weights(study, backbone)
    yield from _costs(study)
    if study.engine.backend == "dask":
        yield ask(f"{name}: dask", "see docs/scale.md", partial(workers, study.engine, root))


def _raw_images(study: config.Study) -> Finding:
    what = f"{study.name}: raw images"
    if study.raw.is_dir():
        advice = originals.advice_to_link(study)
        if advice:
            return Finding("error", what, f"{study.raw}; {advice}")
        return Finding("ok", what, str(study.raw))
    if study.dataset == "phantom":
        return Finding("ok", what, "will be drawn")
    return Finding("error", what, originals.advice_without(study))


def _weights(study: config.Study, backbone: str) -> Finding:
    if imported.is_imported(study.settings.embed, backbone):
        return _vectors(study, backbone)
    what = f"{study.name}: weights of {backbone}"
    if extras.lacking("keras"):
        return Finding(
            "error", what, f"no backbone runs without TensorFlow; run `{extras.install('keras')}`"
        )
    weights = study.settings.embed.weights_for(backbone)
    if encoders.is_preset(weights) and extras.lacking("hub"):
        advice = f"run `{extras.install('hub')}`"
        return Finding("error", what, f"{weights}: KerasHub is not installed; {advice}")
    if backbones.weights_there(backbone, weights, study.root):
        advice = imported.advice_to_move(study, backbone)
        return Finding("error", what, advice) if advice else Finding("ok", what, weights)
    if weights == "imagenet":
        file = applications.seen(backbone).file
        advice = (
            f"will be downloaded, or put {file} into {applications.weights_folder(study.root)}/"
        )
        return Finding("warning", what, f"imagenet: not on this machine, {advice}")
    if encoders.is_preset(weights):
        detail = f"{weights}: no folder of this machine, KerasHub will look for it"
        return Finding("warning", what, detail)
    advice = "put the file there or correct embed.weights"
    return Finding("error", what, f"{weights} is not there; {advice}")


def _vectors(study: config.Study, backbone: str) -> Finding:
    """Whether the files of imported vectors are there, and where DVC notices a change."""
    what = f"{study.name}: vectors of {backbone}"
    try:
        count = len(formats.files_of(imported.place(study, backbone)))
    except EquipoiseError as error:
        return Finding("error", what, str(error))
    advice = imported.advice_to_move(study, backbone)
    if advice:
        return Finding("error", what, advice)
    where = study.settings.embed.features[backbone]
    return Finding("ok", what, f"{where}, {text.counted(count, 'file')}")


def _costs(study: config.Study) -> Iterator[Finding]:
    """Memory and disk against the estimate: an error where the study cannot end."""
    try:
        steps = costs.steps(study)
    except EquipoiseError as error:
        yield Finding("error", f"{study.name}: estimate", str(error))
        return
    yield Finding("ok", f"{study.name}: estimate", costs.total(steps))
    needs = costs.Needs.of(steps)
    yield disk_finding(study.name, needs.disk_bytes, shutil.disk_usage(study.root).free)
    yield memory_finding(study.name, needs.memory_bytes, memory_bytes())


def disk_finding(study: str, needed_bytes: float, free_bytes: float) -> Finding:
    """Whether what will be written has room."""
    detail = f"{free_bytes / 1e9:,.0f} GB free, {needed_bytes / 1e9:,.2g} GB to be written"
    advice = "free some, move the folder, or set embed.dtype: float16 or fewer embed.views"
    if needed_bytes > free_bytes:
        return Finding("error", f"{study}: disk", f"{detail}; {advice}")
    if free_bytes - needed_bytes < _SPARE_BYTES:
        return Finding("warning", f"{study}: disk", f"{detail}; {advice}")
    return Finding("ok", f"{study}: disk", detail)


def memory_finding(study: str, needed_bytes: float, held_bytes: float) -> Finding:
    """Whether what is held at once has room; `held_bytes` is 0 where the system does not say."""
    detail = f"{held_bytes / 1e9:,.0f} GB here, {needed_bytes / 1e9:,.2g} GB at once"
    if not held_bytes or needed_bytes <= held_bytes:
        return Finding("ok", f"{study}: memory", detail)
    advice = "lower engine.workers, set fewer embed.views, or use a larger machine (docs/scale.md)"
    return Finding("warning", f"{study}: memory", f"{detail}; {advice}")


def workers(engine: config.Engine, root: Path) -> Answer:
    """Whether the workers of a Dask scheduler would give the numbers that this process gives."""
    if engine.address is None:
        return Answer("ok", f"{engine.workers} workers will be started here")
    here = parallel.seen_from(str(root))
    with parallel.joined(engine, ANSWER_SECONDS / 2) as client:
        seen_by_worker = client.run(parallel.seen_from, str(root))
        threads_by_worker = client.nthreads()
    for address, there in seen_by_worker.items():
        difference = environment.difference(there, here)
        if difference:
            advice = "give it the same folder and packages, and restart it"
            return Answer("error", f"worker {address}: {difference}; {advice}")
    with_threads = sum(threads > 1 for threads in threads_by_worker.values())
    if with_threads:
        advice = "start them with `--nthreads 1`"
        return Answer(
            "warning", f"{with_threads} workers have several threads and use one; {advice}"
        )
    count = len(seen_by_worker)
    return Answer(
        "ok", f"{engine.address}, {count} workers with the same code, packages and params.yaml"
    )
