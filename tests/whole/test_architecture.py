"""The rooms of docs/architecture.md are the rooms of the code, and each imports only rooms above it."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]
SOURCE = REPO / "src/equipoise"


def listed_rooms() -> list[str]:
    text = (REPO / "docs/architecture.md").read_text()
    block = re.search(r"```rooms\n(.*?)```", text, flags=re.S).group(1)
    return [
        line.split()[0].removesuffix(".py").rstrip("/")
        for line in block.splitlines()
        if line.strip()
    ]


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and node.module.split(".")[0] == "equipoise"
        ):
            parts = node.module.split(".")
            rooms |= {parts[1]} if len(parts) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            rooms |= {a.name.split(".")[1] for a in node.names if a.name.startswith("equipoise.")}
    return rooms - {"__version__"}


FILES = sorted(
    path
    for path in SOURCE.rglob("*.py")
    if path.name not in ("__init__.py", "__main__.py") or path.parent != SOURCE
)


def test_every_room_is_listed_once():
    rooms = listed_rooms()
    assert sorted(set(rooms)) == sorted(rooms)
    assert {room_of(path) for path in FILES} == set(rooms)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_imports_point_upwards(path):
    order = {room: place for place, room in enumerate(listed_rooms())}
    own = room_of(path)
    below = {room for room in imported_rooms(path) - {own} if order[room] >= order[own]}
    assert not below, f"{own} imports {below}, which stand below it"


def test_optuna_and_yaml_have_one_importer():
    for package, only in (("optuna", "tuning.py"), ("yaml", "config.py")):
        users = {
            path.name
            for path in FILES
            if re.search(rf"^\s*(import|from) {package}\b", path.read_text(), flags=re.M)
        }
        assert users == {only}


def test_help_is_quick_and_loads_nothing_heavy():
    code = (
        "import sys; sys.path.insert(0, 'src')\n"
        "from equipoise.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'tensorflow', 'mlflow', 'pandas', 'optuna', 'sklearn'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "scenario" in done.stdout


def test_stages_are_verbs_without_shell_tricks():
    import yaml

    stages = yaml.safe_load((REPO / "dvc.yaml").read_text())["stages"]
    assert set(stages) == {"phantom", "ingest", "split", "embed", "scenario", "compare"}
    for stage in stages.values():
        assert stage["cmd"].startswith("python src ")
        assert not set(stage["cmd"]) & set("|&;<>\\")
        for dependency in stage["deps"]:
            if dependency.startswith("src/") and "${" not in dependency:
                assert (REPO / dependency).exists(), dependency


def test_ml_project_has_every_verb_and_scenario():
    import yaml

    from equipoise import cli
    from equipoise.strategies import base as strategies

    project = yaml.safe_load((REPO / "MLproject").read_text())
    entries = project["entry_points"]
    assert set(cli.VERBS) | set(strategies.names()) == set(entries)
    for name, entry in entries.items():
        assert entry["command"].startswith("python src "), name
        assert not set(entry["command"]) & set("|&;<>\\"), name
        verb = entry["command"].split()[2]
        assert verb in cli.VERBS, name
