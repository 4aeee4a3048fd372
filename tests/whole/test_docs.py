"""The docs site builds without a warning, asks nobody for anything, and its reference is that of the code."""

import re
import sys

import pytest

from conftest import REPO, run
from equipoise import cli
from equipoise.core import config


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", folder]
    done = run(REPO, *map(str, command), NO_MKDOCS_2_WARNING="1")
    assert "WARNING" not in done.stderr
    return folder


def test_no_page_loads_anything_from_elsewhere(site):
    loading = re.compile(r"""<(?:script|img|link|iframe)[^>]*(?:src|href)=["']?(https?:)?//""")
    for page in site.rglob("*.html"):
        assert not loading.search(page.read_text()), page.name


def test_every_verb_and_every_setting_is_in_the_reference(site):
    commands = (site / "reference/commands.html").read_text()
    for name in cli.VERBS:
        assert f'<h3 id="{name}">' in commands
    settings = (site / "reference/settings.html").read_text()
    for section, values in config.read_params(REPO)["defaults"].items():
        assert f'<h2 id="{section}">' in settings
        for name in values:
            assert f"<code>{name}</code>" in settings
