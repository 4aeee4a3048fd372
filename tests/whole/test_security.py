"""Nothing read is executed, nothing goes through a shell, no password is printed or kept."""

import ast
import importlib.metadata
import re
import threading
import time
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from packaging.requirements import Requirement

from conftest import REPO
from equipoise import cli
from equipoise.core import environment
from equipoise.core.errors import ConfigError, StoreError
from equipoise.registry import tracking
from equipoise.scenario import stage as scenario
from fabricate import made

SOURCES = sorted((REPO / "src").rglob("*.py"))
FORBIDDEN_PACKAGES = {"pickle", "cPickle", "dill", "shelve", "marshal", "cloudpickle", "telnetlib"}
FORBIDDEN_CALLS = {
    "__import__",
    "compile",
    "eval",
    "exec",
    "joblib.load",
    "keras.models.load_model",
    "os.popen",
    "os.system",
    "pandas.read_pickle",
    "pd.read_pickle",
    "yaml.full_load",
    "yaml.load",
    "yaml.unsafe_load",
}
ARRAY_READERS = {"np.load", "numpy.load"}
ARRAY_WRITERS = {"np.save", "np.savez", "np.savez_compressed"}
PASSWORD = "geheim-7c1f"


def findings(text: str) -> list[str]:
    """What a file does that none may: unpickle, run text, go through a shell."""
    problems = []
    for node in ast.walk(ast.parse(text)):
        problems += [name for name in imported(node) if name.split(".")[0] in FORBIDDEN_PACKAGES]
        if isinstance(node, ast.Call):
            problems += call_findings(node)
    return problems


def imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        return [node.module or ""]
    return []


def call_findings(call: ast.Call) -> list[str]:
    name = ast.unparse(call.func)
    line = ast.unparse(call)
    options = {word.arg: ast.unparse(word.value) for word in call.keywords}
    allow_pickle = options.get("allow_pickle")
    problems = []
    if name in FORBIDDEN_CALLS:
        problems.append(line)
    if name == "torch.load" and options.get("weights_only") != "True":
        problems.append(f"{line}: without weights_only=True")
    if options.get("shell", "False") != "False":
        problems.append(f"{line}: through a shell")
    if name in ARRAY_READERS and allow_pickle != "False":
        problems.append(f"{line}: without allow_pickle=False")
    if name in ARRAY_WRITERS and allow_pickle == "True":
        problems.append(f"{line}: with pickles")
    if name.startswith("subprocess.") and call.args:
        command = call.args[0]
        if isinstance(command, ast.Constant | ast.JoinedStr):
            problems.append(f"{line}: one string instead of a list of words")
    return problems


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPO)))
def test_nothing_read_is_executed(path):
    assert findings(path.read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load\nimport dill",
        "np.load(path)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, yaml.Loader)",
        "eval(word)",
        "subprocess.run('ls ' + name, shell=True)",
        "subprocess.run(f'ls {name}')",
        "os.system(command)",
        "subprocess.run(words, shell=True)",
        "np.savez(handle, a, allow_pickle=True)",
    ],
)
def test_the_walk_finds_what_it_is_for(text):
    assert findings(text)


@pytest.mark.parametrize(
    "text",
    [
        f"postgresql://ada:{PASSWORD}@db/searches",
        f"postgresql+psycopg2://ada:{PASSWORD}@/x@db:5432/searches",
        f"could not reach https://ada:{PASSWORD}@mlflow.example.org/api (refused)",
        f"connect failed: ada:{PASSWORD}@127.0.0.1:5432",
        f"sqlite:///x?password={PASSWORD}&mode=rw",
        f"server said TOKEN={PASSWORD}, go away",
    ],
)
def test_masked_leaves_no_password(text):
    assert PASSWORD not in environment.masked(text)
    assert "***" in environment.masked(text)


def test_masked_hides_what_secret_variables_hold(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    assert environment.masked(f"401 for {PASSWORD}") == "401 for ***"


@pytest.mark.parametrize(
    "text",
    [
        "models:/equipoise-demo@champion",
        "12:30:15 patient a@b",
        "sqlite:///mlflow.db",
        "tcp://10.0.0.5:8786",
    ],
)
def test_masked_leaves_the_rest(text):
    assert environment.masked(text) == text


@pytest.mark.parametrize("piece", ["[", "a:", "://", "password="])
def test_the_time_to_mask_grows_as_the_answer_does(piece):
    """Eight times as long: 8 times the processor time, and 64 times where each place begins a search of the rest."""

    def seconds(count):
        began = time.process_time()
        environment.masked(piece * count)
        return time.process_time() - began

    short, long = (min(seconds(count) for _ in range(3)) for count in (10_000, 80_000))
    assert long < 24 * short


@pytest.fixture
def server_of_others():
    """Answers whatever it is asked with the same bytes."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *words):
            pass

        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.send_response(200)
            self.send_header("Content-Length", str(len(self.server.answer)))
            self.end_headers()
            self.wfile.write(self.server.answer)

        do_POST = do_GET

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("answer", "sentence"),
    [
        (b"<html><script>alert(1)</script></html>", "not in a valid JSON format"),
        (b"[" * 100_000, "... (100,"),
        (b"{}", "StoreError: MLflow refused"),
        (
            b'{"experiment": {"experiment_id": 7}, "model_version": {"name": 3}}',
            "does not answer as MLflow does: Failed to parse",
        ),
    ],
)
def test_a_server_that_is_no_mlflow_is_a_sentence(
    server_of_others, tmp_path, monkeypatch, capfd, answer, sentence
):
    monkeypatch.chdir(tmp_path)
    made.result(made.study(tmp_path), "baseline")
    server_of_others.answer = answer
    uri = f"http://127.0.0.1:{server_of_others.server_port}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert cli.main(["track", "--study", "made"]) == StoreError.exit_code
    said = capfd.readouterr().err
    assert sentence in said
    assert len(said.splitlines()[-1]) < 1_000
    assert "Traceback" not in said
    assert cli.main(["doctor"]) in (0, 1)


def test_a_model_that_raises_anything_while_it_loads_is_a_sentence(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    made.study(tmp_path)
    model = tmp_path / "model"
    (model / "code").mkdir(parents=True)
    (model / "MLmodel").write_text(
        "flavors:\n  python_function:\n    loader_module: loads_nothing\n    code: code\n"
    )
    (model / "code/loads_nothing.py").write_text("def _load_pyfunc(path):\n    return {}[path]\n")
    assert cli.main(["predict", "--model", "model", "x.png"]) == ConfigError.exit_code
    said = capfd.readouterr().err
    assert "ConfigError: model cannot be loaded: " in said
    assert "Traceback" not in said


def test_passwords_reach_neither_results_nor_mlflow_nor_output(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    study = made.study(tmp_path)
    monkeypatch.setenv(
        "MLFLOW_TRACKING_URI", f"sqlite:///file:mlflow.db?uri=true&password={PASSWORD}"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    folder = study.result_path(made.BACKBONE, "oversample")
    scenario.run(study, made.BACKBONE, "oversample")
    run_id, _ = tracking.mirror(
        tracking.client(tmp_path), study, made.BACKBONE, "oversample", folder
    )
    assert tracking.client(tmp_path).get_run(run_id).data.params
    assert cli.main(["doctor", "--json"]) in (0, 1)
    assert cli.main(["track"]) == 0
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://ada:{PASSWORD}@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert cli.main(["track"]) == StoreError.exit_code
    said = capfd.readouterr()
    assert "StoreError" in said.err
    assert "http://***@127.0.0.1:9" in said.err
    assert PASSWORD not in said.out + said.err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"mlflow.db", "metrics.json"} <= {path.name for path in files}
    for path in files:
        assert PASSWORD.encode() not in path.read_bytes(), path


def locked_versions() -> dict[str, str]:
    text = (REPO / "requirements.lock").read_text()
    return dict(re.findall(r"^([a-z0-9._-]+)==([^ ;\\\\]+)", text, flags=re.M))


def applies(requirement: Requirement, extras: set[str]) -> bool:
    """Whether a requirement counts here for a package that is wanted with some extras."""
    if not requirement.marker:
        return True
    return any(requirement.marker.evaluate({"extra": extra}) for extra in {"", *extras})


def requirements_of(package: Requirement) -> list[Requirement]:
    """What an installed package asks for; the conditions are met, and therefore dropped."""
    lines = importlib.metadata.requires(package.name) or []
    met = [line for line in map(Requirement, lines) if applies(line, package.extras)]
    for requirement in met:
        requirement.marker = None
    return met


def test_locked_packages_satisfy_each_other():
    """What `pip check` does, for the locked versions of all that Equipoise needs."""
    locked = locked_versions()
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    direct = map(Requirement, [*project["dependencies"], *extras["keras"], *extras["mlops"]])
    waiting = [(wanted, "equipoise") for wanted in direct if applies(wanted, wanted.extras)]
    seen = set()
    problems = []
    while waiting:
        wanted, by = waiting.pop()
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        version = locked.get(name)
        if version is None or not wanted.specifier.contains(version, prereleases=True):
            problems.append(f"{by} asks for {wanted}, locked is {version}")
            continue
        key = (name, *sorted(wanted.extras))
        if key not in seen:
            seen.add(key)
            waiting += [(needed, wanted.name) for needed in requirements_of(wanted)]
    assert problems == []
    assert len(seen) > 100
