"""The light install: what the source imports is in the core or in an extra, and each extra has its words."""

import ast
import importlib.metadata
import re
import sys
import tomllib

import pytest
from packaging.requirements import Requirement

from conftest import REPO
from equipoise.core import extras

PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
#: Read where somebody has it (docs/features.md), and brought by no extra.
ANYBODYS = {"torch"}


def names(lines) -> set[str]:
    return {Requirement(line).name.lower() for line in lines}


def imported_packages() -> set[str]:
    """Top-level names of other packages that any file imports, inside functions too."""
    tops = set()
    for path in (REPO / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                tops |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                tops.add(node.module.partition(".")[0])
    return tops - set(sys.stdlib_module_names) - {"equipoise"}


def test_every_import_is_of_the_core_or_of_an_extra():
    packages = importlib.metadata.packages_distributions()
    core = names(PROJECT["dependencies"])
    for top in imported_packages() - ANYBODYS - set(extras.EXTRA_OF):
        distributions = {name.lower() for name in packages[top]}
        assert distributions & core, f"{top} is in no dependency; name its extra in core/extras.py"


@pytest.mark.parametrize(("module", "extra"), extras.EXTRA_OF.items())
def test_the_extra_brings_the_module(module, extra):
    wanted = names(PROJECT["optional-dependencies"][extra])
    distributions = set(importlib.metadata.packages_distributions()[module])
    brought = {name.lower() for name in wanted}
    for name in wanted:  # what the packages themselves ask for
        lines = importlib.metadata.requires(name) or []
        brought |= {Requirement(line).name.lower() for line in lines}
    assert {name.lower() for name in distributions} & brought
    assert not distributions & names(PROJECT["dependencies"])


def test_every_extra_has_a_purpose_and_all_holds_them():
    others = {"all", "dev", "servers"}
    assert set(extras.PURPOSES) == set(PROJECT["optional-dependencies"]) - others
    (everything,) = map(Requirement, PROJECT["optional-dependencies"]["all"])
    assert everything.extras == set(extras.PURPOSES) | {"servers"}
    assert set(extras.EXTRA_OF.values()) == set(extras.PURPOSES)


def test_the_reasons_are_grouped_as_the_extras_are():
    text = (REPO / "docs/dependencies.md").read_text()
    sections = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", text, flags=re.M | re.S))
    groups = {"core": PROJECT["dependencies"]}
    groups |= {f"[{extra}]": lines for extra, lines in PROJECT["optional-dependencies"].items()}
    del groups["[all]"]
    assert {heading.split(":")[0] for heading in sections} == set(groups)
    for heading, body in sections.items():
        listed = re.findall(r"^\| `([a-z0-9-]+)` \| \S", body, flags=re.M)
        assert set(listed) == names(groups[heading.split(":")[0]]) - {"equipoise"}, heading


def test_what_no_extra_brings_is_no_missing_extra():
    assert extras.missing("numpy", "it") is None
    assert extras.missing(None, "it") is None
    assert not extras.is_installed("no_such_module")
