"""A small workspace in which the whole way was gone once: drawn images, two scenarios, a registered model."""

import hashlib
import importlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
import scipy.linalg  # noqa: F401  (its BLAS is one of its own, and has to be there to be limited)
import yaml
from filelock import FileLock
from hypothesis import HealthCheck, settings
from threadpoolctl import threadpool_limits

from equipoise.registry import homes

REPO = Path(__file__).resolve().parent.parent
#: What a user may have set for work of one's own: tests would write into other stores and repositories, ask a proxy for
#: servers of this machine, or read output of another width and colour. Which kernels multiply is no such thing.
_OF_THE_USER = re.compile(
    r"(?i)(MLFLOW|DVC|GIT|EQUIPOISE|AWS|DASK|OPTUNA|KERAS|TF|XLA|JOBLIB|LOKY)_(?!CPP_MIN_LOG_LEVEL|ENABLE_ONEDNN_OPTS).*"
    r"|(HTTPS?|ALL|FTP)_PROXY|COLUMNS|LINES|(NO|FORCE|CLI)_?COLOR(_FORCE)?|PYTHON(WARNINGS|OPTIMIZE|INSPECT|IOENCODING)"
)
for _name in list(filter(_OF_THE_USER.fullmatch, os.environ)):
    del os.environ[_name]
# Nobody's name, signing key or default branch, and no repository around temporary files; a GPU rounds in its own way.
os.environ |= {
    "GIT_CEILING_DIRECTORIES": os.path.realpath(tempfile.gettempdir()),
    "GIT_CONFIG_GLOBAL": os.devnull,
    "GIT_CONFIG_NOSYSTEM": "1",
    "DVC_NO_ANALYTICS": "1",
    "CUDA_VISIBLE_DEVICES": "-1",
}
# The same examples everywhere, however long a busy machine takes over one.
settings.register_profile(
    "everywhere",
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("everywhere")
#: What a checkout consists of; nothing that a run made.
_CHECKOUT = (
    "src",
    "MLproject",
    "conda.yaml",
    "dvc.yaml",
    "data/raw/dvc.yaml",
    "features/README.md",
    ".dvcignore",
    "params.yaml",
    ".gitignore",
    "pyproject.toml",
)
#: The files of tests that take longest: they begin first, so that in the end no worker waits for another.
#: The first one makes the workspace; by the time that others ask for it, it is there.
LONGEST = (
    "whole/test_pipeline.py",
    "scenario/test_finetune.py",
    "whole/test_readme.py",
    "registry/test_servers.py",
    "registry/test_registry.py",
    "service/test_served.py",
    "whole/test_remote.py",
    "core/test_parallel.py",
)
# Each core has a worker of pytest-xdist: further threads of BLAS spend its time with waiting for each other.
threadpool_limits(1, user_api="blas")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    place = {REPO / "tests" / name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path, len(LONGEST)))


def run(
    folder: Path, *command: str, check: bool = True, **environment: str
) -> subprocess.CompletedProcess:
    """Run a program as a user would, with this environment's programs first on the path and no tracking address."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    kept["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    kept |= {"TF_CPP_MIN_LOG_LEVEL": "3", **environment}
    done = subprocess.run(command, cwd=folder, env=kept, capture_output=True, text=True)
    if check and done.returncode:
        raise AssertionError(
            f"{' '.join(command)} ended with {done.returncode}\n{done.stdout}\n{done.stderr}"
        )
    return done


def git(folder: Path, *words: str) -> str:
    return run(folder, "git", "-c", "user.name=t", "-c", "user.email=t@example.org", *words).stdout


def path_of(uri: str) -> Path:
    """The path that an address `file://` means, whatever letters it has."""
    return Path(url2pathname(urlsplit(uri).path))


def of_ci(name: str) -> ModuleType:
    """A module of `.ci`, which is no package."""
    sys.path.insert(0, str(REPO / ".ci"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(REPO / ".ci"))


def copy_checkout(folder: Path) -> None:
    for name in _CHECKOUT:
        source = REPO / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / name)
    (folder / ".dvc").mkdir()
    for name in ("config", ".gitignore"):
        shutil.copy(REPO / ".dvc" / name, folder / ".dvc" / name)


def change_params(folder: Path, change) -> None:
    path = folder / "params.yaml"
    params = yaml.safe_load(path.read_text())
    change(params)
    path.write_text(yaml.safe_dump(params, sort_keys=False))


def make_small(params: dict) -> None:
    params["run"] = {
        "studies": ["demo"],
        "backbones": ["vgg16"],
        "scenarios": ["baseline", "weighted_augment"],
    }
    demo = params["studies"]["demo"]
    demo["phantom"] |= {
        "patients": 100,
        "opacity_contrast": 0.5,
        "size_px": 48,
        "opacity_patient_fraction": 0.3,
    }
    # A holdout, so that fine-tuning has a single model and the served model is the one that was tested.
    demo["split"] = {
        "scheme": "holdout",
        "repeats": 1,
        "test_fraction": 0.35,
        "val_fraction": 0.25,
    }
    demo["train"] = {"seeds": [0, 1]}
    demo["embed"] |= {"image_size_px": 48, "views": 2}
    demo["tune"] |= {"trials": 6, "batch_trials": 3, "gain_resamples": 50}
    demo["compare"] = {"resamples": 200, "permutations": 20}
    demo["promote"] = {
        "min_patients": 3,
        "sensitivity_low_at_least": 0.1,
        "calibration_slope": [0.05, 20.0],
    }
    demo["finetune"] = {"steps": 4, "evaluate_every_steps": 2, "batch_size": 4}


def state_of(folder: Path) -> dict[str, tuple[int, int, int, str]]:
    """Mode, size, time of change and digest of every file below a folder, by name; of folders mode and time."""
    state = {}
    for path in sorted(folder.rglob("*")):
        status = path.stat()
        digest = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "a folder"
        size = status.st_size if path.is_file() else 0
        name = path.relative_to(folder).as_posix()
        state[name] = (status.st_mode, size, status.st_mtime_ns, digest)
    return state


def copy_workspace(workspace: Path, folder: Path) -> Path:
    """A copy that tests may change, with a store that keeps its files there."""
    shutil.copytree(workspace, folder, symlinks=True)
    homes.rehome(folder / "mlflow.db")
    return folder


@pytest.fixture(autouse=True, scope="module")
def own_store():
    """MLflow remembers a store in its process and in the environment: no file of tests finds that of another one."""
    before = {name: value for name, value in os.environ.items() if name.startswith("MLFLOW_")}
    yield
    mlflow = sys.modules.get("mlflow")
    if mlflow is not None:
        mlflow.set_tracking_uri(None)
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        del os.environ[name]
    os.environ.update(before)


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory) -> Path:
    """A database of MLflow in which nothing is: to make one takes a second, to copy it no time."""
    from mlflow.tracking import MlflowClient

    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{database}").search_experiments()
    return database


def make_workspace(folder: Path) -> None:
    """A checkout in which `equipoise main` has run; its last file is `main.log`."""
    copy_checkout(folder)
    change_params(folder, make_small)
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", "small study")
    done = run(folder, sys.executable, "src", "main")
    (folder / "main.log").write_text(done.stdout + done.stderr)


@pytest.fixture(scope="session")
def workspace(tmp_path_factory) -> Path:
    """A checkout in which `equipoise main` has run. Tests may add to it, never spoil it.

    It is made once, by the process that needs it first; each worker of pytest-xdist has a copy of its own.
    """
    folder = tmp_path_factory.mktemp("workspace") / "checkout"
    if "PYTEST_XDIST_WORKER" not in os.environ:
        make_workspace(folder)
        return folder
    original = tmp_path_factory.getbasetemp().parent / "workspace"
    with FileLock(f"{original}.lock"):
        if not (original / "main.log").exists():
            shutil.rmtree(original, ignore_errors=True)
            make_workspace(original)
    copy_workspace(original, folder)
    log = folder / "main.log"
    log.write_text(log.read_text().replace(str(original), str(folder)))
    return folder
