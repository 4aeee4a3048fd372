"""What git keeps of a comparison, as DVC shows it: a row for each scenario, no wider than a terminal."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import REPO, git, run
from equipoise.compare import tracked
from equipoise.core.documents import Difference, StudyMetrics
from fabricate import comparisons, made

DVC = str(Path(sys.executable).with_name("dvc"))
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
DELTA = Difference(value=-0.00041, low=-0.0314159, high=0.0271828)
CURVES = """backbone,scenario,x,y
vgg16,baseline,0,0
vgg16,baseline,1,1
vgg16,augment,0,0.5
vgg16,augment,1,1
densenet201,baseline,0,0
densenet201,baseline,1,1
"""


def comparison(delta=DELTA, rivals=("augment", "weighted_augment")):
    rows = {"baseline": comparisons.row()}
    rows |= {name: comparisons.rival("inconclusive", delta) for name in rivals}
    backbones = {made.BACKBONE: rows, "densenet201": rows}
    winners = dict.fromkeys(backbones, "baseline")
    return comparisons.comparison(backbones, winners=winners, challenger=made.BACKBONE)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A study in git and DVC, with the metrics and plots that dvc.yaml gives to `compare`."""
    folder = tmp_path_factory.mktemp("project")
    reports = folder / "reports/demo"
    tracked.write(reports, comparison())
    (reports / "roc.csv").write_text(CURVES)
    relative = reports.relative_to(folder)
    (folder / "dvc.yaml").write_text(
        json.dumps(
            {
                "metrics": [f"{relative}/metrics.json", f"{relative}/metrics"],
                "plots": [
                    {
                        f"{relative}/roc.csv": {
                            "template": "curves",
                            "x": "x",
                            "y": "y",
                            "title": "ROC",
                        }
                    }
                ],
            }
        )
    )
    git(folder, "init", "-q")
    run(folder, DVC, "init", "-q")
    shutil.copytree(REPO / ".dvc/plots", folder / ".dvc/plots")
    shutil.copy(REPO / ".dvc/config", folder / ".dvc/config")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "first")
    return folder


def test_dvc_shows_a_row_for_each_scenario_within_120_columns(project):
    lines = run(project, DVC, "metrics", "show").stdout.splitlines()
    assert lines[0].split() == ["Path", "auroc", "best", "diff", "high", "low", "verdict"]
    assert max(map(len, lines)) <= 120
    cells = {line.split()[0]: line.split()[1:] for line in lines[1:]}
    assert len(cells) == 7
    rival = cells[f"reports/demo/metrics/{made.BACKBONE}/augment.json"]
    assert rival == ["0.8", "-", "0.0", "0.027", "-0.031", "inconclusive"]


def test_dvc_tells_what_moved(project):
    tracked.write(project / "reports/demo", comparison(Difference(value=0.02, low=0.01, high=0.03)))
    lines = run(project, DVC, "metrics", "diff").stdout.splitlines()
    tracked.write(project / "reports/demo", comparison())
    assert max(map(len, lines)) <= 120
    row = next(line.split() for line in lines if "vgg16/augment.json" in line and " low " in line)
    assert row[1:] == ["low", "-0.031", "0.01", "0.041"]


def test_the_best_scenario_is_a_column_of_the_experiments(project):
    narrow = run(
        project, DVC, "exp", "show", "--no-pager", "--drop", "reports/", COLUMNS="120"
    ).stdout
    assert max(map(len, narrow.splitlines())) <= 120
    heads, baseline = [line.split() for line in narrow.splitlines()[1:4:2]]
    assert heads[:3] == ["Experiment", "Created", "best"]
    assert "baseline" in baseline


def test_bytes_do_not_depend_on_the_last_digits(tmp_path):
    def written(delta):
        tracked.write(tmp_path, comparison(delta))
        files = [path for path in sorted(tmp_path.rglob("*")) if path.is_file()]
        return {str(path.relative_to(tmp_path)): path.read_bytes() for path in files}

    other_kernels = Difference(value=0.00039, low=-0.0314271, high=0.0271714)
    assert written(DELTA) == written(other_kernels)
    assert b"-0.0\n" not in b"".join(written(DELTA).values())


def test_a_scenario_that_is_no_longer_compared_leaves_and_what_does_not_exist_is_null(tmp_path):
    tracked.write(tmp_path, comparison())
    tracked.write(
        tmp_path, comparison(Difference(value=0.2, low=None, high=None), rivals=["augment"])
    )
    folder = tmp_path / "metrics" / made.BACKBONE
    assert {path.name for path in folder.iterdir()} == {"baseline.json", "augment.json"}
    assert json.loads((folder / "augment.json").read_text())["low"] is None
    assert set(json.loads((folder / "baseline.json").read_text())) == {"auroc", "verdict"}
    assert StudyMetrics.read(tmp_path / "metrics.json").best == "baseline"


@pytest.mark.skipif(CHROMIUM is None, reason="a Chromium is needed")
def test_the_plots_are_drawn_without_the_internet(project, tmp_path):
    run(project, DVC, "plots", "show", "-o", str(tmp_path / "plots"))
    page = tmp_path / "plots/index.html"
    assert not re.search(r"(src|href)\s*=\s*.?https?:", page.read_text())
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom"]
    done = subprocess.run(
        [CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'profile'}", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    assert done.stdout.count("<polyline ") == 3
    assert done.stdout.count("<figcaption>") == 2
    assert re.findall(r"<polyline points=\"([^\"]*)\"", done.stdout)[0].split() == [
        "44,328",
        "364,8",
    ]
