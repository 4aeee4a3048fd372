"""What README shows is true: its strategy works as a file, its verbs exist, its links lead somewhere."""

import re
import sys

from conftest import REPO, change_params, copy_checkout, make_small, run
from equipoise import cli
from equipoise.strategies import base as strategies

TEXT = (REPO / "README.md").read_text()


def test_the_strategy_shown_is_a_whole_file(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, flags=re.S)
    copy_checkout(tmp_path)
    (tmp_path / "src/equipoise/strategies/focal.py").write_text(code)
    change_params(tmp_path, make_small)
    change_params(tmp_path, lambda params: params["studies"]["demo"]["phantom"].update(patients=40))
    command = [
        sys.executable,
        "src",
        "scenario",
        "--study",
        "demo",
        "--backbone",
        "vgg16",
        "--scenario",
        "focal",
    ]
    assert "focal on demo, vgg16: test auroc" in run(tmp_path, *command).stdout


def test_verbs_and_scenarios_named_exist():
    verbs = set(re.findall(r"^equipoise ([a-z]+)", TEXT, flags=re.M))
    assert (
        {"track", "register", "promote", "rollback", "predict", "doctor"} <= verbs <= set(cli.VERBS)
    )
    rows = set(re.findall(r"^\| `([a-z_]+)` \|", TEXT, flags=re.M))
    assert len(rows) >= 6
    assert rows <= set(strategies.names())


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert target.startswith("https://") or (REPO / target).is_file(), target
