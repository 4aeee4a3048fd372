"""pyproject.toml is the one source of versions: the lock and conda.yaml must agree with it."""

import importlib.util
import re
import tomllib
from itertools import chain
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from equipoise import __version__

REPO = Path(__file__).resolve().parents[2]
_spec = importlib.util.spec_from_file_location("lock", REPO / ".ci/lock.py")
lock = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(lock)

PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
#: Every package but the program itself, which stands there with its extras.
WANTED = [
    line
    for line in (*PROJECT["dependencies"], *chain(*EXTRAS.values()))
    if Requirement(line).name != "equipoise"
]
TEXT = (REPO / "requirements.lock").read_text()


@pytest.mark.parametrize("line", WANTED)
def test_lock_satisfies_every_dependency(line):
    wanted = Requirement(line)
    pinned = [Requirement(entry) for entry in lock.locked_lines(TEXT).get(wanted.name.lower(), [])]
    assert pinned, f"{wanted.name} is not in requirements.lock; run `make lock`"
    for pin in pinned:
        (version,) = [part.version for part in pin.specifier]
        assert wanted.specifier.contains(version), f"{pin} does not satisfy {line}; run `make lock`"


def test_the_version_of_the_program_is_one_wherever_it_stands():
    citation = yaml.safe_load((REPO / "CITATION.cff").read_text())
    assert __version__ == PROJECT["version"] == citation["version"]


def test_lock_has_hashes_and_no_index_address():
    assert "://" not in TEXT
    assert "index-url" not in TEXT
    assert "find-links" not in TEXT
    blocks = re.split(r"\n(?=[a-z0-9])", TEXT)[1:]
    assert len(blocks) > 100
    assert all("--hash=sha256:" in block for block in blocks)


def test_conda_yaml_is_derived_from_the_lock():
    assert (REPO / "conda.yaml").read_text() == lock.conda_text(TEXT)


def test_conda_yaml_has_every_package_that_an_entry_point_imports():
    text = (REPO / "conda.yaml").read_text()
    for line in (*PROJECT["dependencies"], *EXTRAS["keras"], *EXTRAS["mlops"]):
        assert f'- "{Requirement(line).name.lower()}==' in text


def test_development_has_every_extra():
    assert "equipoise[all]" in EXTRAS["dev"]
