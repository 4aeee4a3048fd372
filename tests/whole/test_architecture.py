"""docs/architecture.md lists the rooms and their files; imports only go up, and never in a circle."""

import ast
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import LONGEST, REPO

SOURCE = REPO / "src/equipoise"
#: From the room that all stand on to the one that stands on all.
ORDER = [
    "core",
    "ingest",
    "embed",
    "evaluation",
    "split",
    "strategies",
    "scenario",
    "compare",
    "judge",
    "project",
    "pipeline",
    "costs",
    "service",
    "registry",
    "use",
    "doctor",
    "api",
    "cli",
]


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(SOURCE).with_suffix("").parts)


MODULES = {
    module_name(path): path
    for path in sorted(SOURCE.rglob("*.py"))
    if path.name not in ("__init__.py", "__main__.py")
}


def imported_modules(path: Path) -> set[str]:
    """Modules of Equipoise that a file imports, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    inside = {name.removeprefix("equipoise.") for name in names if name.startswith("equipoise.")}
    with_parents = inside | {name.rpartition(".")[0] for name in inside}
    return with_parents & set(MODULES)


IMPORTS = {name: imported_modules(path) for name, path in MODULES.items()}


def room_of(module: str) -> str:
    return module.partition(".")[0]


def listed_files() -> dict[str, list[str]]:
    """Room -> its files, as docs/architecture.md lists them."""
    text = (REPO / "docs/architecture.md").read_text()
    block = re.search(r"```rooms\n(.*?)```", text, flags=re.S).group(1)
    rooms = [line.split() for line in block.splitlines() if line and not line.startswith(" ")]
    return {room.removesuffix(".py").rstrip("/"): files for room, *files in rooms}


def test_the_listing_of_the_docs_is_the_listing_of_the_folder():
    listed = listed_files()
    assert list(listed) == ORDER
    for room, files in listed.items():
        folder = SOURCE / room
        if not folder.is_dir():
            assert files == []
            continue
        there = {path.stem for path in folder.glob("*.py") if path.name != "__init__.py"}
        there |= {f"{path.parent.name}/" for path in folder.glob("*/__init__.py")}
        told = set(files)
        if room == "strategies":  # a file per remedy, which docs/strategies.md lists
            there = {name for name in there if name in told}
        assert told == there, room


@pytest.mark.parametrize("module", MODULES)
def test_imports_only_go_up(module):
    own = ORDER.index(room_of(module))
    rooms = {room_of(imported) for imported in IMPORTS[module]} - {room_of(module)}
    below = {room for room in rooms if ORDER.index(room) >= own}
    assert not below, f"{module} imports {below}, which stand below it"


def test_no_file_imports_itself_in_a_circle():
    open_modules, done = [], set()

    def visit(module):
        assert module not in open_modules, " -> ".join([*open_modules, module])
        if module in done:
            return
        open_modules.append(module)
        for imported in sorted(IMPORTS[module] - {module}):
            visit(imported)
        open_modules.pop()
        done.add(module)

    for module in MODULES:
        visit(module)
    assert done == set(MODULES)


def test_the_folder_fits_on_a_screen_and_packages_are_empty():
    entries = [path for path in SOURCE.iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 21
    for path in SOURCE.rglob("__init__.py"):
        assert path.parent in (SOURCE, SOURCE / "cli") or not path.read_text(), path


def test_the_working_folder_is_no_global_variable():
    users = {
        module
        for module, path in MODULES.items()
        if re.search(r"os\.chdir|os\.getcwd|Path\.cwd", path.read_text())
    }
    assert users == set()


@pytest.mark.parametrize(
    ("package", "importers"),
    [("optuna", {"scenario.tuning", "scenario.searches"}), ("yaml", {"core.yaml_text"})],
)
def test_some_packages_have_one_place(package, importers):
    pattern = re.compile(rf"^\s*(import|from) {package}\b", flags=re.M)
    users = {module for module, path in MODULES.items() if pattern.search(path.read_text())}
    assert users == importers


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


HEAVY = {"tensorflow", "keras", "mlflow", "optuna", "sklearn", "imblearn", "scipy.stats"}
HEAVY |= {"matplotlib", "jinja2", "dvc", "distributed", "statsmodels"}


@pytest.mark.parametrize(
    ("stage", "needed"),
    [
        ("ingest.stage", set()),
        ("split.stage", set()),
        ("embed.stage", set()),  # TensorFlow comes with the first backbone
        ("scenario.stage", {"optuna"}),
        ("compare.stage", {"scipy.stats"}),
    ],
)
def test_a_stage_imports_no_heavy_package_that_it_does_not_need(stage, needed):
    code = f"import sys, equipoise.{stage}; print(*({HEAVY} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(REPO / "src")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert set(done.stdout.split()) <= needed


def test_stages_are_verbs_without_shell_tricks():
    import yaml

    stages = {}
    for path in ("data/raw/dvc.yaml", "dvc.yaml"):
        stages |= yaml.safe_load((REPO / path).read_text())["stages"]
    assert set(stages) == {"phantom", "ingest", "split", "embed", "scenario", "compare"}
    for stage in stages.values():
        assert stage["cmd"].startswith("python src ")
        assert not set(stage["cmd"]) & set("|&;<>\\")
        for dependency in stage["deps"]:
            if dependency.startswith("src/") and "${" not in dependency:
                assert (REPO / dependency).exists(), dependency


@pytest.mark.parametrize(
    ("stage", "module"), [("ingest", "ingest.fingerprint"), ("compare", "compare.report.page")]
)
def test_code_whose_digest_a_stage_writes_is_the_code_it_depends_on(stage, module):
    """Other code would change what is written while DVC sees no reason to run, in a clone for instance."""
    import yaml

    dependencies = yaml.safe_load((REPO / "dvc.yaml").read_text())["stages"][stage]["deps"]
    code = {path.removeprefix("src/equipoise/") for path in dependencies if path.startswith("src/")}
    assert set(importlib.import_module(f"equipoise.{module}").CODE) == code


def test_ml_project_has_every_verb_and_scenario():
    import yaml

    from equipoise import cli
    from equipoise.strategies import base as strategies

    project = yaml.safe_load((REPO / "MLproject").read_text())
    entries = project["entry_points"]
    # `init` makes the folder that an MLproject lies in.
    assert set(cli.VERBS) - {"init"} | set(strategies.names()) == set(entries)
    for name, entry in entries.items():
        assert entry["command"].startswith("python src "), name
        assert not set(entry["command"]) & set("|&;<>\\"), name
        verb = entry["command"].split()[2]
        assert verb in cli.VERBS, name


def test_files_of_tests_that_begin_first_are_there():
    assert [name for name in LONGEST if not (REPO / "tests" / name).is_file()] == []
