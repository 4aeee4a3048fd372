"""From a wheel, outside the checkout: a project is made and run, upgrades rerun what they must, light installs tell."""

import os
import sys
import zipfile

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import REPO, run

BUILD = "from setuptools import build_meta; build_meta.build_wheel({!r})"
#: A program in which no extra is installed.
LIGHT = """
import sys
from equipoise.core import extras
sys.modules.update(dict.fromkeys(extras.EXTRA_OF))
from equipoise.cli import main
raise SystemExit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """The unpacked wheel, as it would lie among the installed packages."""
    from shutil import copy, copytree, ignore_patterns

    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    copytree(REPO / "src", source / "src", ignore=ignore_patterns("__pycache__", "*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        copy(REPO / name, source)
    run(source, sys.executable, "-c", BUILD.format(str(folder)))
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "installed")
    return folder / "installed"


def files_of(folder) -> set[str]:
    return {
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def test_the_wheel_holds_every_file_of_the_package(program):
    assert files_of(program / "equipoise") == files_of(REPO / "src/equipoise")


@pytest.fixture(scope="module")
def project(program, tmp_path_factory):
    """A project made by the wheel, whose images were ingested and split by `dvc repro`."""
    folder = tmp_path_factory.mktemp("own")
    images = folder / "images"
    rng = np.random.default_rng(0)
    for name in ("well", "ill"):
        for number in range(8):
            path = images / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (40, 40, 3), dtype="uint8")).save(path)
    words = ["init", "mine", "--images", str(images), "--positive", "ill"]
    said = equipoise(program, folder, *words).stdout
    assert "positive is ill, against well" in said
    return folder / "mine"


def environment(program) -> dict[str, str]:
    key = program.parent / "pseudonym.key"
    return {"PYTHONPATH": str(program), "EQUIPOISE_KEY": str(key)}


def equipoise(program, folder, *words, **options):
    return run(folder, sys.executable, "-m", "equipoise", *words, **environment(program), **options)


def ran(program, project) -> set[str]:
    text = run(project, "dvc", "repro", "split@mine", **environment(program)).stdout
    return {line.split("'")[1] for line in text.splitlines() if line.startswith("Running stage")}


def test_stages_run_once_and_after_an_upgrade_only_those_whose_code_changed(program, project):
    assert ran(program, project) == {"ingest@mine", "split@mine"}
    assert ran(program, project) == set()
    upgraded = program / "equipoise/split/groups.py"
    upgraded.write_text(upgraded.read_text() + "# another version\n")
    assert ran(program, project) == {"split@mine"}
    assert os.path.samefile(project / "program", program / "equipoise")


@pytest.mark.parametrize(
    ("words", "needs"),
    [
        ("embed --study mine --backbone mobilenetv2", "`equipoise embed` needs keras"),
        ("register", "`equipoise register` needs mlflow"),
        ("main", "`equipoise main` needs dvc"),
    ],
)
def test_a_light_install_tells_what_it_lacks_in_one_line(program, project, words, needs):
    command = [sys.executable, "-c", LIGHT, *words.split()]
    done = run(project, *command, check=False, **environment(program))
    assert done.returncode == 2
    extra = {"keras": "keras"}.get(needs.split()[-1], "mlops")
    said = f"MissingExtra: {needs}, which is not installed: pip install 'equipoise[{extra}]'\n"
    assert done.stderr == said


def test_a_light_install_judges_and_its_doctor_names_the_extras(program, project):
    rng = np.random.default_rng(1)
    label = np.arange(60) % 2
    for name, strength in (("a", 0.5), ("b", 1.5)):
        prob = 1 / (1 + np.exp(-strength * label - rng.normal(size=60)))
        pd.DataFrame({"label": label, "prob": prob}).to_csv(project / f"{name}.csv")
    light = [sys.executable, "-c", LIGHT]
    judged = run(
        project, *light, "judge", "a.csv", "b.csv", "--resamples", "200", **environment(program)
    )
    assert "difference [low, high]" in judged.stdout
    told = run(project, *light, "doctor", check=False, **environment(program)).stdout
    assert "run `pip install 'equipoise[mlops]'`" in told
    assert "no backbone runs without TensorFlow; run `pip install 'equipoise[keras]'`" in told
    assert "Traceback" not in told
