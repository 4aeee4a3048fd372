"""A real tracking server for tests: `mlflow server` with basic auth, on PostgreSQL, artifacts on S3 (moto)."""

import contextlib
import importlib.util
import logging
import os
import pwd
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests

_BUCKET = "equipoise-models"
_AUTH = """[mlflow]
default_permission = READ
database_uri = {database}/auth
admin_username = admin
admin_password = the-password-of-admin
grant_default_workspace_access = true
auth_cache_ttl_seconds = 60
"""


@dataclass(frozen=True)
class TrackingServer:
    """Addresses, and what a client sets to come in as somebody.

    Attributes:
        uri: Of the tracking server.
        s3: Of the S3 server; clients need no keys, the tracking server passes artifacts on.
        database: Of the tracking server, in PostgreSQL.
        users: Name -> password: `admin` may do everything, `reader` may read.
    """

    uri: str
    s3: str
    database: str
    bucket: str = _BUCKET
    users: dict[str, str] = field(
        default_factory=lambda: {
            "admin": "the-password-of-admin",
            "reader": "the-password-of-reader",
        }
    )

    def environment(self, user: str) -> dict[str, str]:
        """What a client of this user sets."""
        return {
            "MLFLOW_TRACKING_URI": self.uri,
            "MLFLOW_TRACKING_USERNAME": user,
            "MLFLOW_TRACKING_PASSWORD": self.users[user],
            "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
        }

    def objects(self) -> list[str]:
        """Keys in the bucket."""
        return [item.key for item in self.objects_below("")]

    def objects_below(self, prefix: str):
        """What lies in the bucket below a prefix."""
        return _s3(self.s3).Bucket(self.bucket).objects.filter(Prefix=prefix)


#: For a program to start: a guard against one that never does, and no measure of the machine.
START_SECONDS = 600


def free_port() -> int:
    """A port of the loopback interface for a server to come; the system gives it to nobody else for a minute.

    A connection was closed on it: only who binds it by its number, as servers do, gets it now.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", 0))
        probe.listen(1)
        address = probe.getsockname()
        with socket.create_connection(address), contextlib.closing(probe.accept()[0]):
            pass  # the accepted end is closed first: that is the one which waits
        return address[1]


def answers(address: str) -> bool:
    """Whether a server says that it is up; one that is being started may refuse, or let the question wait."""
    try:
        return requests.get(address, timeout=5).ok
    except requests.RequestException:
        return False


def postgres_folder() -> Path | None:
    """Where `initdb` and `postgres` are; Debian keeps them off the path."""
    on_path = shutil.which("initdb")
    folders = [Path(on_path).resolve().parent] if on_path else []
    folders += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    return None


@pytest.fixture(scope="session")
def tracking_server() -> Iterator[TrackingServer]:
    """A server with basic auth, started once; skip with a reason where something is missing."""
    missing = what_is_missing()
    if missing:
        pytest.skip(missing)
    with started() as server:
        requests.post(
            f"{server.uri}/api/2.0/mlflow/users/create",
            json={"username": "reader", "password": server.users["reader"]},
            auth=("admin", server.users["admin"]),
            timeout=30,
        ).raise_for_status()
        yield server


def what_is_missing() -> str:
    """What has to be installed before a server starts here; empty where nothing is missing."""
    if postgres_folder() is None:
        return "PostgreSQL is not installed (Debian: apt-get install postgresql)"
    for module in ("psycopg", "flask_wtf", "flask_cors", "boto3", "moto"):
        if importlib.util.find_spec(module) is None:
            return f"{module} is missing: it is in the extra `dev`, as in requirements.lock"
    return ""


@contextlib.contextmanager
def started(accounts: bool = True, host: str = "127.0.0.1") -> Iterator[TrackingServer]:
    """Start PostgreSQL, an S3 server and `mlflow server`, with basic auth where accounts are asked for."""
    import moto.server

    logging.getLogger("werkzeug").setLevel(logging.ERROR)  # a line for each request
    # Not below pytest's folder: PostgreSQL refuses to run as root, and its user must come in.
    folder = Path(tempfile.mkdtemp(prefix="equipoise-servers-", dir=_open_to_all()))
    folder.chmod(0o755)
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        database = stack.enter_context(_postgres(postgres_folder(), folder))
        s3 = moto.server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        s3.start()
        stack.callback(s3.stop)
        endpoint = "http://{}:{}".format(*s3.get_host_and_port())
        _s3(endpoint).create_bucket(Bucket=_BUCKET)
        uri = stack.enter_context(_mlflow(database, endpoint, folder, accounts, host))
        yield TrackingServer(uri, endpoint, f"{database}/mlflow")


def _open_to_all() -> Path:
    """A folder for temporary files that every user of this machine may come into."""
    for folder in map(Path, (tempfile.gettempdir(), "/tmp", "/var/tmp")):  # noqa: S108
        if all(
            place.stat().st_mode & stat.S_IXOTH for place in (folder, *folder.absolute().parents)
        ):
            return folder
    return Path(tempfile.gettempdir())


def _s3(endpoint: str):
    import boto3

    keys = {"aws_access_key_id": "test", "aws_secret_access_key": "no-secret"}
    return boto3.resource("s3", endpoint_url=endpoint, region_name="us-east-1", **keys)


@contextlib.contextmanager
def _postgres(programs: Path, folder: Path) -> Iterator[str]:
    import psycopg

    data = folder / "postgres"
    data.mkdir(mode=0o700)
    identity = {}
    if os.geteuid() == 0:
        nobody = pwd.getpwnam("nobody")
        os.chown(data, nobody.pw_uid, nobody.pw_gid)
        identity = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    initdb = ["-U", "equipoise", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C"]
    command = [str(programs / "initdb"), "-D", str(data), *initdb]
    subprocess.run(command, cwd=folder, check=True, capture_output=True, **identity)
    port = free_port()
    options = f"-h 127.0.0.1 -p {port} -c fsync=off -c synchronous_commit=off".split()
    command = [
        str(programs / "postgres"),
        "-D",
        str(data),
        *options,
        "-k",
        "",
    ]  # no socket in a folder
    with _program(command, folder / "postgres.log", **identity) as alive:
        address = f"postgresql://equipoise@127.0.0.1:{port}"
        while alive():
            with (
                contextlib.suppress(psycopg.OperationalError),
                psycopg.connect(f"{address}/postgres") as connection,
            ):
                connection.autocommit = True
                for name in ("mlflow", "auth"):
                    connection.execute(f"create database {name}")
                break
        yield address


@contextlib.contextmanager
def _mlflow(database: str, endpoint: str, folder: Path, accounts: bool, host: str) -> Iterator[str]:
    (folder / "auth.ini").write_text(_AUTH.format(database=database))
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MLFLOW_", "AWS_"))
    }
    kept |= {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "only-for-tests",
        "MLFLOW_S3_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "no-secret",
        "AWS_DEFAULT_REGION": "us-east-1",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "MLFLOW_DISABLE_TELEMETRY": "true",
    }
    port = free_port()
    options = f"--workers 1 --host {host} --port {port}".split()
    options += ["--app-name", "basic-auth"] if accounts else []
    options += ["--backend-store-uri", f"{database}/mlflow"]
    options += ["--artifacts-destination", f"s3://{_BUCKET}/artifacts"]
    command = [sys.executable, "-m", "mlflow", "server", *options]
    uri = f"http://{host}:{port}"
    with _program(command, folder / "mlflow.log", env=kept, cwd=folder) as alive:
        while alive() and not answers(f"{uri}/health"):
            pass
        yield uri


@contextlib.contextmanager
def _program(command: list[str], log: Path, **options) -> Iterator:
    """Run a program in the background; what is yielded says whether to go on waiting for it."""
    with log.open("w") as out:
        options.setdefault("cwd", log.parent)
        process = subprocess.Popen(
            command, stdout=out, stderr=out, start_new_session=True, **options
        )
    deadline = time.monotonic() + START_SECONDS

    def alive() -> bool:
        time.sleep(0.1)
        if process.poll() is None and time.monotonic() < deadline:
            return True
        raise AssertionError(f"{command[0]} did not start\n{log.read_text()[-3000:]}")

    try:
        yield alive
    finally:
        process.send_signal(signal.SIGINT)  # PostgreSQL ends at once, also with clients
        try:
            process.wait(3)
        except subprocess.TimeoutExpired:
            # mlflow waits for connections that clients keep; its workers are children.
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
