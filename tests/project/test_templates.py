"""The files that `equipoise init` writes say what those of the checkout say: nothing is written twice by hand."""

import pytest
import yaml

from conftest import REPO, of_ci

PACKAGE = REPO / "src/equipoise"


@pytest.fixture(scope="module")
def maker():
    return of_ci("templates")


def test_they_are_made_from_the_checkout(maker):
    made = "Run `python .ci/templates.py`."
    for path, text in maker.templates().items():
        assert path.read_text(encoding="utf-8") == text, f"{path}: {made}"


def test_every_template_is_made_or_is_the_readme(maker):
    there = set((PACKAGE / "project/templates").iterdir())
    assert there - set(maker.templates()) == {PACKAGE / "project/templates/README.md"}


def test_stages_differ_in_nothing_but_command_and_code():
    shipped = yaml.safe_load((REPO / "dvc.yaml").read_text())["stages"]
    own = yaml.safe_load((PACKAGE / "project/templates/stages.yaml").read_text())["stages"]
    assert set(own) == set(shipped)
    for name, stage in own.items():
        there = dict(shipped[name])
        assert stage.pop("cmd") == there.pop("cmd").replace("python src", "equipoise")
        code = [path.replace("src/equipoise/", "program/") for path in there.pop("deps")]
        assert stage.pop("deps") == code
        assert stage == there


def test_code_that_stages_depend_on_is_in_the_package():
    own = yaml.safe_load((PACKAGE / "project/templates/stages.yaml").read_text())["stages"]
    for stage in own.values():
        for path in stage["deps"]:
            assert "src" not in path.split("/")
            if path.startswith("program/") and "${" not in path:
                assert (PACKAGE / path.removeprefix("program/")).exists(), path


def test_settings_are_the_shipped_ones_without_a_study():
    shipped = yaml.safe_load((REPO / "params.yaml").read_text())
    own = yaml.safe_load((PACKAGE / "core/params.yaml").read_text())
    assert (own["studies"], own["run"]["studies"]) == (None, [])
    for section in ("scenarios", "engine", "defaults"):
        assert own[section] == shipped[section]
    assert own["run"]["scenarios"] == shipped["run"]["scenarios"]
