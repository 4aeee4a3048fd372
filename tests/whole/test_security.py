"""Nothing read from a file is executed, nothing goes through a shell, and no password is printed or kept."""

import ast
import importlib.metadata
import re
import tomllib

import pytest
from packaging.requirements import Requirement

from conftest import REPO
from equipoise import cli
from equipoise.core import environment
from equipoise.core.errors import ConfigError
from equipoise.scenario import stage as scenario
from equipoise.service import tracking
from fabricate import made

SOURCES = sorted((REPO / "src").rglob("*.py"))
FORBIDDEN = {"pickle", "cPickle", "dill", "shelve", "marshal", "cloudpickle", "telnetlib"}
CALLS = {
    "eval",
    "exec",
    "compile",
    "joblib.load",
    "torch.load",
    "yaml.load",
    "yaml.unsafe_load",
    "yaml.full_load",
}
CALLS |= {
    "os.system",
    "os.popen",
    "pd.read_pickle",
    "pandas.read_pickle",
    "keras.models.load_model",
    "__import__",
}
PASSWORD = "geheim-7c1f"


def findings(text: str) -> list[str]:
    """What a file does that none may: unpickle, run text, go through a shell."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.split(".")[0] in FORBIDDEN]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in FORBIDDEN:
            found.append(node.module)
        elif isinstance(node, ast.Call):
            name, words = (
                ast.unparse(node.func),
                {word.arg: ast.unparse(word.value) for word in node.keywords},
            )
            if name in CALLS or words.get("shell", "False") != "False":
                found.append(ast.unparse(node))
            if name in ("np.load", "numpy.load") and words.get("allow_pickle") != "False":
                found.append(f"{ast.unparse(node)} without allow_pickle=False")
            if (
                name in ("np.save", "np.savez", "np.savez_compressed")
                and words.get("allow_pickle") == "True"
            ):
                found.append(ast.unparse(node))
            text = node.args and isinstance(node.args[0], ast.Constant | ast.JoinedStr)
            if name.startswith("subprocess.") and text:
                found.append(f"{ast.unparse(node)}: one string instead of a list of words")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(REPO)))
def test_nothing_read_is_executed(path):
    assert findings(path.read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        "import pickle",
        "from joblib import load\nimport dill",
        "np.load(path)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text, yaml.Loader)",
        "eval(word)",
        "subprocess.run('ls ' + name, shell=True)",
        "subprocess.run(f'ls {name}')",
        "os.system(command)",
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


def test_passwords_reach_neither_results_nor_mlflow_nor_output(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    study = made.study(tmp_path)
    monkeypatch.setenv(
        "EQUIPOISE_OPTUNA_STORAGE", f"sqlite:///file:searches.db?uri=true&password={PASSWORD}"
    )
    monkeypatch.setenv(
        "MLFLOW_TRACKING_URI", f"sqlite:///file:mlflow.db?uri=true&password={PASSWORD}"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    folder = study.result_path(made.BACKBONE, "oversample")
    scenario.run(study, made.BACKBONE, "oversample")
    run_id, _ = tracking.mirror(tracking.client(), study, made.BACKBONE, "oversample", folder)
    assert tracking.client().get_run(run_id).data.params
    assert cli.main(["doctor", "--json"]) in (0, 1)
    assert cli.main(["track"]) == 0
    monkeypatch.setenv("EQUIPOISE_OPTUNA_STORAGE", f"nodriver://ada:{PASSWORD}@127.0.0.1/searches")
    assert (
        cli.main(
            ["scenario", "--study", "made", "--backbone", made.BACKBONE, "--scenario", "baseline"]
        )
        == 1
    )
    said = capfd.readouterr()
    assert "The search cannot be kept" in said.err
    assert PASSWORD not in said.out + said.err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"mlflow.db", "searches.db", "metrics.json"} <= {path.name for path in files}
    for path in files:
        assert PASSWORD.encode() not in path.read_bytes(), path


def test_a_password_in_params_is_refused():
    with pytest.raises(ConfigError, match="holds a password") as caught:
        made.settings(tune={"storage": f"postgresql://ada:{PASSWORD}@db/searches"})
    assert PASSWORD not in str(caught.value)


def test_locked_packages_satisfy_each_other():
    """What `pip check` looks at, of the versions in the lock, for everything that Equipoise needs however far down."""
    locked = dict(
        re.findall(
            r"^([a-z0-9._-]+)==([^ ;\\\\]+)", (REPO / "requirements.lock").read_text(), flags=re.M
        )
    )
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    waiting, seen, wrong = (
        [(Requirement(line), line) for line in project["dependencies"]],
        set(),
        [],
    )
    while waiting:
        wanted, by = waiting.pop()
        name = re.sub(r"[-_.]+", "-", wanted.name).lower()
        if wanted.marker and not any(
            wanted.marker.evaluate({"extra": extra}) for extra in {"", *wanted.extras}
        ):
            continue
        if name not in locked or not wanted.specifier.contains(locked[name], prereleases=True):
            wrong.append(f"{by} asks for {wanted}, locked is {locked.get(name)}")
        elif (name, *sorted(wanted.extras)) not in seen:
            seen.add((name, *sorted(wanted.extras)))
            for line in importlib.metadata.requires(wanted.name) or []:
                needed = Requirement(line)
                if not needed.marker or any(
                    needed.marker.evaluate({"extra": extra}) for extra in {"", *wanted.extras}
                ):
                    needed.marker = None
                    waiting.append((needed, wanted.name))
    assert wrong == []
    assert len(seen) > 100
