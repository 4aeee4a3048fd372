"""A study more in params.yaml: what stood there stays letter by letter, and YAML readers of others agree."""

import io

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from conftest import REPO
from equipoise.core import config, yaml_text
from equipoise.core.errors import ConfigError
from equipoise.project import edits

SHIPPED = (REPO / "params.yaml").read_text()
LINES = edits.study_lines("lung", {"ingest": "{dataset: folder, positive_class: ill}"}, "Lungs.")


def as_dvc_reads(text: str):
    return YAML(typ="safe").load(io.StringIO(text))


def test_every_letter_of_the_shipped_file_stays():
    after = edits.with_study(SHIPPED, "lung", LINES)
    added = "".join(f"  {line}\n" for line in LINES)
    assert after == SHIPPED.replace("studies: [demo]", "studies: [demo, lung]") + "\n" + added
    said = as_dvc_reads(after)
    assert said["studies"]["lung"]["ingest"] == {"dataset": "folder", "positive_class": "ill"}
    assert list(said["studies"]["lung"]) == list(config.Settings.model_fields)
    before = as_dvc_reads(SHIPPED)
    assert {name: said["studies"][name] for name in before["studies"]} == before["studies"]


@pytest.mark.parametrize(
    "text",
    [
        "run:\n  studies: []\nstudies:\n",
        "run:\n  studies: [] # none\nstudies: {}\n",
        "run: {studies: []}\nstudies: null # none yet\n",
        "run:\n  studies:\n  - a # first\nstudies:\n    a:\n        split: {}\n",
        "studies:\n  a: {split: {}} # here\n\n# what runs\nrun:\n  studies:\n    - a\n",
        "run:\r\n  studies: [a]\r\nstudies:\r\n  a:\r\n    split: {}",
        "run:\n  studies: [a,\n    b]\nstudies:\n  a:\n  b: {x: [1,\n    2]}\n  # the end\n",
        "run:\n  studies: [a]\nstudies:\n  a:\n    note: |\n      two\n      lines\n",
    ],
)
def test_however_it_is_written(text):
    after = edits.with_study(text, "lung", LINES)
    before, said = as_dvc_reads(text), as_dvc_reads(after)
    assert said["run"]["studies"] == [*before["run"]["studies"], "lung"]
    assert set(said["studies"]) == {*(before["studies"] or {}), "lung"}
    for name, value in (before["studies"] or {}).items():
        assert said["studies"][name] == value
    assert after.count("#") == text.count("#") + 1
    assert ("\r\n" in text) == ("\r\n" in after)
    assert text.count("\r\n") == text.count("\n") or "\r\n" not in after


@pytest.mark.parametrize(
    "text",
    [
        "run: {studies: [a]}\nstudies: {a: {split: {}}}\n",
        "run: {studies: a}\nstudies:\n  a: {}\n",
        "run: {}\nstudies:\n  a: {}\n",
        "studies:\n  a: {}\n",
        "run: {studies: [a]}\n",
    ],
)
def test_where_nothing_can_be_added_the_lines_are_shown(text):
    with pytest.raises(ConfigError, match="written in a way") as error:
        edits.with_study(text, "lung", LINES)
    assert "ingest: {dataset: folder, positive_class: ill}" in str(error.value)


def test_a_name_that_is_taken_is_refused():
    with pytest.raises(ConfigError, match="There is a study 'demo'"):
        edits.with_study(SHIPPED, "demo", LINES)


@pytest.mark.parametrize("name", ["", "4", "a.b", "a b", "no", "True", "-a", "a/b", "ä", "x" * 101])
def test_names_that_no_study_can_bear(name):
    with pytest.raises(ConfigError, match="cannot be the name of a study"):
        edits.require_name(name)


@pytest.mark.parametrize("name", ["lung", "Lung-2_b", "x" * 100, "nothing"])
def test_names_of_studies_stay_text_in_every_version_of_yaml(name):
    edits.require_name(name)
    assert yaml.safe_load(name) == as_dvc_reads(name) == name


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
def test_what_is_written_is_read_again(text):
    line = f"{{a: {yaml_text.written(text)}}}"
    assert yaml_text.parse(line, "it") == {"a": text}
    if text.isprintable():
        assert yaml.safe_load(line) == as_dvc_reads(line) == {"a": text}


def test_a_key_that_stands_twice_is_refused_with_its_line():
    twice = SHIPPED.replace("  breakhis:\n", "  demo:\n")
    line = twice[: twice.rindex("  demo:\n")].count("\n") + 1
    with pytest.raises(ConfigError, match=rf"the key 'demo' stands there twice \(line {line}, "):
        yaml_text.parse(twice, "params.yaml")
