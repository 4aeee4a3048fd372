"""Data versions with DVC: push to a folder or to S3, pull elsewhere and run nothing, compare versions."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from conftest import change_params, git, run

#: Every stage but `phantom`, which makes the raw images: what to push when the originals must stay at home.
WITHOUT_RAW = ("ingest", "split", "embed", "scenario", "compare")
VERSIONED = ("data/raw", "data/manifest", "data/splits", "data/features", "results/demo", "reports")
NOT_PUSHED = (
    "data/cache/features/piece.npy",
    "data/local/demo.csv",
    "results/adhoc/0000/metrics.json",
    "mlflow.db",
)


@dataclass
class Store:
    """A place to push to: its address, what DVC must know of it, and the MD5 of every file that lies there.

    Attributes:
        options: Settings that everybody shares, in .dvc/config.
        environment: Credentials as environment variables.
        secrets: The same credentials as settings for .dvc/config.local.
    """

    address: str
    digests: Callable[[], set[str]]
    options: dict[str, str] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)


def commit(folder: Path, message: str) -> None:
    git(folder, "add", "-A")
    git(folder, "commit", "-q", "-m", message)


def dvc(folder: Path, *words: str, **environment: str) -> str:
    done = run(folder, "dvc", *words, **environment)
    return done.stdout + done.stderr


def diff(folder: Path, *revisions: str) -> dict[str, set[str]]:
    """Paths by kind of change, as `dvc diff --json` names them."""
    changes = json.loads(run(folder, "dvc", "diff", "--json", *revisions).stdout)
    return {
        kind: {entry["path"] for entry in changes[kind]}
        for kind in ("added", "deleted", "modified")
    }


def files(folder: Path, *names: str) -> dict[str, bytes]:
    """Content of every file below some folders of a checkout."""
    paths = (path for name in names for path in (folder / name).rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def md5(contents: dict[str, bytes]) -> set[str]:
    return {hashlib.md5(content).hexdigest() for content in contents.values()}


def folder_store(root: Path) -> Store:
    return Store(
        str(root),
        lambda: {path.parent.name + path.name for path in root.rglob("*") if path.is_file()},
    )


@pytest.fixture
def project(workspace, tmp_path) -> Path:
    """A committed copy of the workspace, with files that must stay on this machine."""
    folder = tmp_path / "project"
    shutil.copytree(workspace, folder, ignore=shutil.ignore_patterns("mlflow.db*", "mlartifacts"))
    for name in NOT_PUSHED:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"only here: {name}")
    commit(folder, "after the run")
    return folder


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path, monkeypatch) -> Iterator[Store]:
    if request.param == "folder":
        yield folder_store(tmp_path / "store")
        return
    reason = "S3 needs moto, its server's flask-cors and dvc-s3, as in requirements.lock"
    pytest.importorskip("flask_cors", reason=reason)
    pytest.importorskip("dvc_s3", reason=reason)
    server_module = pytest.importorskip("moto.server", reason=reason)
    import boto3

    (tmp_path / "no-profiles").touch()
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "no-profiles"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    endpoint = "http://{}:{}".format(*server.get_host_and_port())
    keys = {"aws_access_key_id": "equipoise-test", "aws_secret_access_key": "no-secret"}
    bucket = boto3.resource(
        "s3", endpoint_url=endpoint, region_name="us-east-1", **keys
    ).create_bucket(Bucket="images")
    yield Store(
        "s3://images/equipoise",
        lambda: {"".join(item.key.split("/")[-2:]) for item in bucket.objects.all()},
        options={"endpointurl": endpoint, "region": "us-east-1"},
        environment={name.upper(): value for name, value in keys.items()},
        secrets={name.removeprefix("aws_"): value for name, value in keys.items()},
    )
    server.stop()


def use(project: Path, store: Store) -> None:
    dvc(project, "remote", "add", "-d", "store", store.address)
    for name, value in store.options.items():
        dvc(project, "remote", "modify", "store", name, value)
    commit(project, "remote")


def clone_of(project: Path, store: Store) -> Path:
    folder = project.parent / "elsewhere"
    git(project.parent, "clone", "-q", str(project), str(folder))
    for name, value in store.secrets.items():
        dvc(folder, "remote", "modify", "--local", "store", name, value)
    return folder


def test_clone_pulls_what_was_pushed_and_runs_nothing(project, store):
    use(project, store)
    dvc(project, "push", **store.environment)
    versioned = files(project, *VERSIONED)
    assert {"data/splits/demo.parquet", "results/demo/vgg16/baseline/predictions.parquet"} <= set(
        versioned
    )
    in_git = {"data/raw/dvc.lock", "data/raw/dvc.yaml", "reports/demo/metrics.json"}
    in_git |= {name for name in versioned if name.startswith("reports/demo/metrics/")}
    assert (
        md5({name: content for name, content in versioned.items() if name not in in_git})
        <= store.digests()
    )
    assert not md5({name: (project / name).read_bytes() for name in NOT_PUSHED}) & store.digests()

    clone = clone_of(project, store)
    assert files(clone, ".dvc/cache", *VERSIONED).keys() == in_git
    dvc(clone, "pull")
    assert files(clone, *VERSIONED) == versioned
    assert not [name for name in NOT_PUSHED if (clone / name).exists()]
    said = dvc(clone, "repro")
    assert "Running stage" not in said
    assert "Data and pipelines are up to date." in said
    assert (
        git(clone, "status", "--porcelain") == ""
    )  # nor do the credentials lie where git sees them


def test_originals_stay_at_home_when_only_stages_are_pushed(project, tmp_path):
    store = folder_store(tmp_path / "store")
    use(project, store)
    dvc(project, "push", *WITHOUT_RAW)
    assert md5(files(project, "data/splits", "results/demo")) <= store.digests()
    assert not md5(files(project, "data/raw")) & store.digests()

    clone = clone_of(project, store)
    dvc(clone, "pull", *WITHOUT_RAW)
    assert "Running stage" not in dvc(clone, "repro", "--allow-missing")
    assert not (clone / "data/raw/demo").exists()


def test_diff_of_a_new_split_names_the_split_and_no_image(project):
    cached = files(project, ".dvc/cache").keys()
    change_params(project, lambda params: params["studies"]["demo"]["split"].update(seed=99))
    said = dvc(project, "repro", "split@demo")
    assert [line for line in said.splitlines() if line.startswith("Running stage")] == [
        "Running stage 'split@demo':"
    ]
    commit(project, "another split")
    changes = diff(project, "HEAD~1")
    assert changes["modified"] == {"data/splits/demo.parquet", "data/splits/demo.json"}
    assert not changes["added"] | changes["deleted"]
    assert len(files(project, ".dvc/cache/files").keys() - cached) == 2, (
        "a new split costs two small files, no image"
    )


def test_diff_of_a_raw_folder_names_the_new_image_and_push_false_keeps_it_here(project, tmp_path):
    raw = project / "data/raw/own"
    shutil.copytree(project / "data/raw/demo/opacity", raw, copy_function=shutil.copyfile)
    first, *_ = sorted(raw.iterdir())
    first.write_bytes(first.read_bytes() + b"own")
    dvc(project, "add", "data/raw/own")
    commit(project, "own images")
    (raw / "new.png").write_bytes(first.read_bytes() + b"new")
    uncommitted = diff(project)
    assert uncommitted["added"] == {"data/raw/own/new.png"}
    assert uncommitted["modified"] == {"data/raw/own/"}
    assert not uncommitted["deleted"]
    dvc(project, "add", "data/raw/own")
    commit(project, "one more image")
    assert diff(project, "HEAD~1", "HEAD") == uncommitted

    store = folder_store(tmp_path / "store")
    use(project, store)
    pointer = project / "data/raw/own.dvc"
    shared = pointer.read_text()
    pointer.write_text(shared + "  push: false\n")
    dvc(project, "push")
    own = md5({"first": first.read_bytes(), "new": (raw / "new.png").read_bytes()})
    assert md5(files(project, "data/splits")) <= store.digests()
    assert not own & store.digests()
    pointer.write_text(shared)
    dvc(project, "push")
    assert own <= store.digests()
