"""What README and the docs show is true: blocks can be pasted, a strategy works as a file, links lead somewhere."""

import json
import os
import re
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest
from mlflow.tracking import MlflowClient

from conftest import REPO, change_params, copy_workspace, git, run
from equipoise import cli
from equipoise.core.files import read_table
from equipoise.registry import gates
from equipoise.strategies import base as strategies

README = (REPO / "README.md").read_text()
RESULTS = (REPO / "docs/results.md").read_text()
FOLDS = {"scheme": "kfold", "folds": 3, "repeats": 2}
#: Pages that are read before the program is known.
PAGES = [REPO / "README.md", *sorted((REPO / "docs").rglob("*.md"))]

#: What a shell needs so that the blocks of README run here: a small demo, no environment to make, no
#: tests inside tests.
PRELUDE = """\
set -euo pipefail
make() {{ case "$1" in demo) equipoise main;; *) command make -n "$@";; esac; }}
equipoise() {{
  command equipoise "$@"
  if [ "$1" = init ]; then {python} {smaller} "$2/params.yaml"; fi
}}
"""

#: Makes the project of one's own as small as the demo here.
SMALLER = """\
import sys, yaml
path = sys.argv[1]
params = yaml.safe_load(open(path))
params["run"] |= {"backbones": ["vgg16"], "scenarios": ["baseline", "oversample"]}
name = params["run"]["studies"][0]
params["studies"][name] |= {
    "split": {"repeats": 1, "folds": 3},
    "embed": {"weights": "random", "image_size_px": 48, "views": 0},
    "tune": {"trials": 3, "gain_resamples": 50},
    "compare": {"resamples": 200, "permutations": 20},
}
yaml.safe_dump(params, open(path, "w"), sort_keys=False)
"""


def blocks(text: str) -> list[str]:
    return re.findall(r"```sh\n(.*?)```", text, flags=re.S)


def test_readme_is_short():
    assert len(README.split()) <= 950


@dataclass(frozen=True)
class Pasted:
    """Where the blocks of README ran, one after the other, and what they said."""

    folder: Path
    said: str

    @property
    def comparison(self) -> dict:
        return json.loads((self.folder / "reports/demo/comparison.json").read_text())


@pytest.fixture(scope="module")
def pasted(workspace, tmp_path_factory) -> Pasted:
    """All blocks in a copy of the workspace whose study is split into repeated folds, as that of the shipped demo."""
    folder = tmp_path_factory.mktemp("readme") / "equipoise"
    copy_workspace(workspace, folder)
    for name in ("Makefile", "requirements.lock"):
        (folder / name).write_bytes((REPO / name).read_bytes())
    activate = folder / ".venv/bin/activate"
    activate.parent.mkdir(parents=True)
    activate.touch()
    (folder / ".venv/.made").touch()
    change_params(folder, lambda params: params["studies"]["demo"].update(split=FOLDS))
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "folds")
    smaller = folder.parent / "smaller.py"
    smaller.write_text(SMALLER)
    prelude = PRELUDE.format(python=shlex.quote(sys.executable), smaller=shlex.quote(str(smaller)))
    script = prelude + "\n".join(blocks(README))
    author = {"GIT_AUTHOR_NAME": "t", "GIT_AUTHOR_EMAIL": "t@example.org"}
    committer = {"GIT_COMMITTER_NAME": "t", "GIT_COMMITTER_EMAIL": "t@example.org"}
    path = os.pathsep.join([str(folder / "src"), os.environ.get("PYTHONPATH", "")])
    done = run(folder, "bash", "-c", script, PYTHONPATH=path, **author, **committer)
    return Pasted(folder, done.stdout)


def test_every_block_of_readme_can_be_pasted_from_top_to_bottom(pasted):
    assert "report: " in pasted.said
    assert "next: open it in a browser; `equipoise ui` shows the runs" in pasted.said
    assert "next: `equipoise predict --model models:/equipoise-demo@champion" in pasted.said
    assert (pasted.folder.parent / "lungs/reports/lungs/report.html").is_file()
    assert (pasted.folder / "predictions.csv").is_file()


def test_folds_end_in_one_interval_for_each_rival(pasted):
    said = pasted.comparison
    assert (said["scheme"], said["folds"]) == ("kfold", 3)
    row = said["rows"]["vgg16"]["weighted_augment"]
    assert row["verdict"] in ("better", "worse", "equivalent", "inconclusive")
    assert said["headline"].split(";")[0][:60] in pasted.said.replace("\n", " ")
    predictions, _ = read_table(pasted.folder / "results/demo/vgg16/baseline/predictions.parquet")
    assert set(predictions["part"]) == {"test"}
    assert set(predictions.groupby("image_id").size()) == {2 * 2}  # repeats x seeds


def test_after_folds_the_version_is_the_refit_on_all_rows(pasted):
    """The version that README promotes, and the answers that it gets from it."""
    address = f"sqlite:///{pasted.folder}/mlflow.db"
    store = MlflowClient(tracking_uri=address, registry_uri=address)
    challenger, champion = (
        store.get_model_version_by_alias("equipoise-demo", alias)
        for alias in ("challenger", "champion")
    )
    winner = pasted.comparison["winners"]["vgg16"]
    assert champion.version == challenger.version
    assert champion.tags["equipoise.scenario"] == winner
    refit, _ = read_table(
        pasted.folder / "results/demo/vgg16" / winner / "model/refit_predictions.parquet"
    )
    of_image = refit.set_index("image_id")["calibrated_opacity"]
    served = pd.read_csv(pasted.folder / "predictions.csv")
    names = [f"opacity/{Path(image).name}" for image in served["image"]]
    assert set(names) == {name for name in of_image.index if name.startswith("opacity/")}
    assert served["prob_opacity"].to_numpy() == pytest.approx(of_image[names].to_numpy(), abs=1e-5)


def test_the_strategy_shown_is_a_whole_file(workspace, tmp_path):
    page = (REPO / "docs/new-strategy.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, flags=re.S)
    folder = copy_workspace(workspace, tmp_path / "copy")
    (folder / "src/equipoise/strategies/focal.py").write_text(code)
    options = ["--study", "demo", "--backbone", "vgg16", "--scenario", "focal"]
    done = run(folder, sys.executable, "src", "scenario", *options)
    assert "focal on demo, vgg16: test AUROC" in done.stdout


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPO).as_posix())
def test_verbs_and_scenarios_named_exist(page):
    text = page.read_text()
    for block in blocks(text):
        verbs = set(re.findall(r"^equipoise ([a-z]+)", block, flags=re.M))
        assert verbs <= set(cli.VERBS), page
    rows = set(
        re.findall(r"^\| `([a-z_]+)` \| (?:better|worse|equivalent|inconclusive)", text, flags=re.M)
    )
    assert rows <= set(strategies.names())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPO).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", page.read_text()):
        is_there = (Path(page).parent / target).is_file()
        assert is_there or target.startswith("https://"), target


# --- numbers that are typed by hand -----------------------------------------------------------------


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("| \n").split("|")]


def rows_of_films(text: str) -> dict[str, list[str]]:
    """Technique -> verdict, difference and AUROC, of the first table of the films."""
    rows: dict[str, list[str]] = {}
    for line in text[text.index("On real chest X-rays") :].splitlines():
        if re.match(r"\| `\w+` \|", line):
            name, *rest = cells(line)
            rows.setdefault(name.strip("`"), rest[:3])
    return rows


def test_the_table_of_the_films_is_that_of_the_results():
    shown = rows_of_films(README)
    assert shown.pop("baseline")[2] == rows_of_films(RESULTS).pop("baseline")[2]
    expected = rows_of_films(RESULTS)
    assert list(shown) == [
        "oversample",
        "undersample",
        "class_weight",
        "augment",
        "weighted_augment",
    ]
    for name, row in shown.items():
        assert row == expected[name]


def test_the_films_differ_as_the_page_of_the_example_says():
    """The page compares 18 and the table 5, so intervals differ, and what was measured does not."""
    page = (REPO / "docs/examples/chest_xray.html").read_text()
    panel = page[page.index('id="scenarios-3" data-tab="mobilenetv2"') :]
    for name, (verdict, difference, auroc) in rows_of_films(README).items():
        row = panel[panel.index(f">{name}") :][:1500]
        assert difference.split(" ")[0].strip("–") in row.replace(">-0.0000", ">0.0000")
        assert auroc.split(" ")[0] in row
        assert verdict in row


def test_what_a_leak_invents_is_that_of_the_results():
    (row,) = [line for line in RESULTS.splitlines() if line.startswith("| oversampled before")]
    value, low, high = re.findall(r"\+(\d\.\d+)", cells(row)[2])
    assert f"invented {value} [{low}, {high}] of specificity" in README


def test_the_last_screen_of_the_demo_says_what_is_promised():
    verdicts = {}
    for path in (REPO / "reports/demo/metrics").glob("*/*.json"):
        verdicts[path.parent.name, path.stem] = json.loads(path.read_text())["verdict"]
    on_both = [verdicts[network, "undersample"] for network in ("densenet201", "vgg16")]
    assert on_both == ["worse", "worse"]
    assert verdicts["densenet201", "class_weight"] == "equivalent"
    assert verdicts["densenet201", "oversample"] == "equivalent"
    assert "inconclusive" in verdicts.values()
    assert len(verdicts) == 12  # five techniques and doing nothing, on two networks


def test_what_is_counted_is_there():
    assert f"{len(strategies.names())} techniques" in README
    assert len(gates.GATES) == 10
    assert "ten gates" in README
