"""`equipoise ui`: a real server of MLflow on loopback, ended with Ctrl-C."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys

import pytest
import requests

from conftest import REPO
from equipoise.core.errors import ConfigError
from equipoise.registry import tracking, ui, view
from fabricate import made
from fabricate.servers import free_port


@pytest.fixture
def study(empty_store, tmp_path, monkeypatch):
    """A study whose experiment is in the store beside params.yaml."""
    shutil.copy(empty_store, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    study = made.study(tmp_path)
    store = tracking.client(tmp_path)
    experiment = tracking.experiment_id(store, "equipoise-made", tmp_path)
    view.describe(store, experiment, study)
    return study


def test_the_page_is_served_to_this_machine_and_ctrl_c_ends_it(study):
    port = free_port()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    process = subprocess.Popen(
        [sys.executable, str(REPO / "src"), "ui", "--port", str(port)],
        cwd=study.root,
        env=kept,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # A test runner in the background hands down that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        line = process.stdout.readline()
        link = re.fullmatch(
            rf"made: (http://127\.0\.0\.1:{port})/#/experiments/(\d+)/runs\?(.*)\n", line
        )
        assert link, line
        assert link[3] == "workflowType=machine_learning&viewStateShareKey=equipoise"
        answer = requests.get(
            f"{link[1]}/api/2.0/mlflow/experiments/get",
            params={"experiment_id": link[2]},
            timeout=600,
        )
        assert answer.json()["experiment"]["name"] == "equipoise-made"
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=600)
    finally:
        process.kill()
    assert (process.returncode, said.splitlines()[-1]) == (0, "The server has ended.")
    with pytest.raises(requests.ConnectionError):
        requests.get(link[1], timeout=5)


def test_a_port_that_is_taken_is_said(study):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=f"Port {port} is taken. Name another one"):
            ui.show([study], study.root, port, print)


def test_where_a_server_is_there_its_link_is_said(study, monkeypatch):
    said = []
    links = ["made: a link"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://ada:a-secret@example.org")
    monkeypatch.setattr(ui, "links", lambda studies, root, server: [*links, server])
    ui.show([study], study.root, None, said.append)
    assert said == [*links, "https://***@example.org"]
