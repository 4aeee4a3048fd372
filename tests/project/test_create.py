"""A project from one command: what lies in its folder, what is recognised, what is refused and how it is said."""

import importlib.metadata
import json
import re
import shlex
import shutil

import pytest
import yaml
from packaging.requirements import Requirement
from PIL import Image

from conftest import REPO, change_params, git
from equipoise import cli, pipeline
from equipoise.core import config, environment
from equipoise.core.environment import PACKAGE
from equipoise.project import links


@pytest.fixture
def images(tmp_path):
    """Folders benign and malignant with six images each."""
    folder = tmp_path / "images"
    for name in ("benign", "malignant"):
        (folder / name).mkdir(parents=True)
        for number in range(6):
            Image.new("RGB", (40, 40), (number * 40, 0, 0)).save(folder / name / f"{number}.png")
    return folder


def write_table(images, header="image,patient_id,age"):
    rows = [
        f"{path.relative_to(images)},p{number // 2},4{number}"
        for number, path in enumerate(images.rglob("*.png"))
    ]
    (images / "all.csv").write_text("\n".join([header, *rows]))


def init(images, *options, folder="mine"):
    words = ["init", str(images.parent / folder), "--images", str(images), *options]
    return cli.main(words)


def held(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_project_stands_in_its_folder_and_nothing_among_the_images(images, tmp_path, capsys):
    before = held(images)
    assert init(images, "--positive", "malignant") == 0
    assert held(images) == before
    root = tmp_path / "mine"
    said = capsys.readouterr().out
    assert "12 images in" in said
    assert "positive is malignant, against benign" in said
    assert "every image counts as a patient" in said
    assert "`git init` was run" in said
    assert (root / "data/raw/mine").resolve() == images
    assert git(root, "check-ignore", "data/raw/mine", "program").split() == [
        "data/raw/mine",
        "program",
    ]
    assert (root / "program").resolve() == PACKAGE
    assert len((root / "README.md").read_text().splitlines()) == 10
    assert set(git(root, "status", "--porcelain").split()) - {"??"} == {
        ".dvc/",
        ".dvcignore",
        ".gitignore",
        "MLproject",
        "README.md",
        "conda.yaml",
        "data/",
        "dvc.yaml",
        "features/",
        "params.yaml",
    }
    study = config.load_study("mine", root=root)
    pipeline.check_names(study)
    assert pipeline.lacks(study) == []
    assert study.settings.ingest.positive_class == "malignant"
    shipped = config.load_study("demo", root=REPO)
    assert study.settings.compare == shipped.settings.compare
    assert "__" not in "".join(
        (root / name).read_text() for name in ("MLproject", "conda.yaml", "README.md")
    )


def test_inside_a_checkout_no_second_one_is_made(images, tmp_path, capsys):
    git(tmp_path, "init", "-q")
    assert init(images, "--positive", "malignant") == 0
    assert "git init" not in capsys.readouterr().out
    assert not (tmp_path / "mine/.git").exists()


def test_without_patients_it_says_what_follows_and_how_to_name_them(images, capsys):
    assert init(images, "--positive", "malignant") == 0
    told = capsys.readouterr().out
    assert "intervals are then too narrow" in told
    assert "name patients by --table, or by ingest.patient_folder" in told


def test_the_table_says_who_the_patient_is(images, tmp_path, capsys):
    write_table(images)
    assert init(images, "--positive", "malignant", "--table", "all.csv") == 0
    assert "what counts as one patient: the column of patient ids" in capsys.readouterr().out
    ingest = config.load_study("mine", root=tmp_path / "mine").settings.ingest
    assert (ingest.table.file, ingest.table.patient) == ("all.csv", "patient_id")
    assert config.load_study("mine", root=tmp_path / "mine").settings.split.folds == 3


def test_columns_of_other_names(images, tmp_path):
    write_table(images, "File name,Case,age")
    options = [
        "--table",
        str(images / "all.csv"),
        "--image-column",
        "File name",
        "--patient-column",
        "case",
    ]
    assert init(images, "--positive", "malignant", *options) == 0
    table = config.load_study("mine", root=tmp_path / "mine").settings.ingest.table
    assert (table.image, table.patient, table.label) == ("File name", "case", [])


def test_published_images_are_recognised_by_their_names(tmp_path, capsys):
    images = tmp_path / "images"
    for number, name in enumerate(("B_A-14-1", "B_F-14-2", "M_DC-14-3", "M_LC-14-4")):
        path = images / f"any/SOB_{name}-100-001.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (number * 40, 0, 0)).save(path)
    assert init(images, "--positive", "Malignant") == 0
    said = capsys.readouterr().out
    assert "read as Breast Cancer Histopathological Database" in said
    assert "split.folds is 2, because the rarest class has 2 patients" in said
    study = config.load_study("mine", root=tmp_path / "mine")
    assert (study.dataset, study.settings.ingest.task) == ("breakhis", "binary")


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--positive", "malignent"], "There is no class 'malignent' in"),
        (["--positive", "malignent"], "Did you mean 'malignant'?"),
        (["--positive", "malignant", "--study", "a.b"], "'a.b' cannot be the name of a study"),
        (["--positive", "malignant", "--table", "none.csv"], "There is no file none.csv"),
        (
            ["--positive", "malignant", "--patient-column", "x"],
            "--patient-column speaks of a table",
        ),
        (
            ["--positive", "malignant", "--table", "all.csv", "--patient-column", "who"],
            "lacks the column(s) who",
        ),
        (
            ["--positive", "malignant", "--table", "all.csv", "--image-column", "name"],
            "Which column of all.csv names the image? It has image, patient_id, age, and none is --image-column name.",
        ),
    ],
)
def test_what_cannot_be_used_is_a_sentence_and_nothing_is_made(
    images, tmp_path, capsys, options, sentence
):
    write_table(images)
    assert init(images, *options) in (1, 2)
    told = capsys.readouterr().err
    assert sentence in told
    assert told.count("\n") == 1
    assert not (tmp_path / "mine").exists()


def test_a_project_whose_making_was_killed_is_made_by_the_same_command(images, tmp_path):
    words = ["--positive", "malignant"]
    assert init(images, *words, folder="whole") == 0
    assert init(images, *words, folder="killed") == 0
    for name in ("params.yaml", "dvc.yaml"):
        (tmp_path / "killed" / name).unlink()
    assert init(images, *words, folder="killed") == 0
    for name in ("params.yaml", "dvc.yaml", "MLproject"):
        whole = (tmp_path / "whole" / name).read_text().replace("whole", "killed")
        assert (tmp_path / "killed" / name).read_text() == whole


def test_folders_that_cannot_be_used(images, tmp_path, capsys):
    words = ["--positive", "malignant"]
    assert init(tmp_path / "nowhere", *words) == 1
    assert "nowhere is not there: --images names the folder" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert init(tmp_path / "empty", *words) == 1
    assert "empty holds no image" in capsys.readouterr().err
    assert init(images, *words, folder="images/mine") == 1
    assert "would lie inside the images' folder" in capsys.readouterr().err
    (tmp_path / "full").mkdir()
    (tmp_path / "full/notes.txt").write_text("x")
    assert init(images, *words, folder="full") == 1
    assert "full is not empty (notes.txt)" in capsys.readouterr().err
    (tmp_path / "outside.csv").write_text("image\n")
    assert init(images, *words, "--table", str(tmp_path / "outside.csv")) == 1
    assert "lies outside" in capsys.readouterr().err
    assert init(images, *words, folder="2024 images") == 2
    assert "Name it with --study NAME." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("origin", "end"),
    [
        (None, "==0.1.0"),
        (
            {
                "url": "file:///disk/equipoise-0.1.0-py3-none-any.whl",
                "archive_info": {"hashes": {"sha256": "c0ffee"}},
            },
            " @ file:///disk/equipoise-0.1.0-py3-none-any.whl#sha256=c0ffee",
        ),
        (
            {
                "url": "https://ada:geheim@host/e.git",
                "vcs_info": {"vcs": "git", "commit_id": "c0ffee"},
            },
            " @ git+https://***@host/e.git@c0ffee",
        ),
    ],
)
def test_the_environment_has_the_program_from_where_it_was_installed(
    images, tmp_path, monkeypatch, origin, end
):
    class Installed:
        def read_text(self, name):
            return json.dumps(origin) if origin else None

    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: Installed())
    assert init(images, "--positive", "malignant") == 0
    written = yaml.safe_load((tmp_path / "mine/conda.yaml").read_text())
    shipped = yaml.safe_load((REPO / "conda.yaml").read_text())
    *pins, program = written["dependencies"][-1]["pip"]
    assert pins == shipped["dependencies"][-1]["pip"]
    assert program == f"equipoise[keras,mlops]{end}"
    assert Requirement(program).extras == {"keras", "mlops"}


def test_a_study_is_added_and_no_name_is_taken_twice(images, tmp_path, capsys):
    init(images, "--positive", "malignant")
    root = tmp_path / "mine"
    words = ["--root", str(root), "study", "other", "--images", str(images), "--positive", "benign"]
    assert cli.main(words) == 0
    params = config.read_params(root)
    assert config.run_studies(params) == ["mine", "other"]
    assert config.load_study("other", root=root).settings.ingest.positive_class == "benign"
    assert (root / "data/raw/other").resolve() == images
    assert (root / "data/raw/.gitignore").read_text() == "/mine\n/other\n"
    assert cli.main(words) == 2
    assert "There is a study 'other' in params.yaml" in capsys.readouterr().err


def test_a_dry_run_says_of_every_study_what_it_lacks(images, tmp_path, capsys):
    init(images, "--positive", "malignant")
    root = tmp_path / "mine"
    for name in ("other", "third"):
        cli.main(
            ["--root", str(root), "study", name, "--images", str(images), "--positive", "benign"]
        )
    change_params(root, lambda params: params["studies"]["other"].pop("tune"))
    (root / "data/raw/third").unlink()
    (root / "program").unlink()
    (root / "program").symlink_to(tmp_path)
    capsys.readouterr()
    assert cli.main(["--root", str(root), "main", "--dry-run"]) == 2
    told = capsys.readouterr()
    assert re.search(r"mine: \d of \d stages will run", told.out)
    assert "other: Study 'other' in params.yaml leaves out tune. Write `tune: {}`" in told.out
    assert "third is not there; put the originals there, link their folder" in told.out
    command = shlex.join(["ln", "-sfn", str(PACKAGE), str(root / "program")])
    assert f"program leads to other code, {tmp_path}. Link it: `{command}`" in told.out
    assert "other: no stage can run" in told.err
    assert cli.main(["--root", str(root), "doctor"]) == 1
    assert "Write `tune: {}`" in capsys.readouterr().out


def test_another_installation_of_the_same_code_is_no_other_program(images, tmp_path):
    init(images, "--positive", "malignant")
    root = tmp_path / "mine"
    shutil.copytree(PACKAGE, tmp_path / "elsewhere")
    (root / "program").unlink()
    (root / "program").symlink_to(tmp_path / "elsewhere")
    assert links.advice_to_link_program(root) == ""
    links.link_program(root)
    assert (root / "program").resolve() == tmp_path / "elsewhere"
    changed = tmp_path / "elsewhere/split/groups.py"
    changed.write_text(changed.read_text() + "# another version\n")
    environment.code_digest.cache_clear()
    assert "leads to other code" in links.advice_to_link_program(root)
    links.link_program(root)
    assert (root / "program").resolve() == PACKAGE


def test_without_git_nothing_is_made(images, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(shutil, "which", lambda *words, **options: None)
    assert init(images, "--positive", "malignant") == 2
    assert "git is not installed" in capsys.readouterr().err
    assert not (tmp_path / "mine").exists()


def test_entry_points_are_those_of_the_checkout(images, tmp_path):
    init(images, "--positive", "malignant")
    own = yaml.safe_load((tmp_path / "mine/MLproject").read_text())["entry_points"]
    shipped = yaml.safe_load((REPO / "MLproject").read_text())["entry_points"]
    assert set(shipped) - set(own) == {"phantom"}
    for name, entry in own.items():
        assert entry["command"] == shipped[name]["command"].replace("python src", "equipoise")
    run = config.read_params(tmp_path / "mine")["run"]
    backbone = own["class_weight"]["parameters"]["backbone"]["default"]
    assert (own["class_weight"]["parameters"]["study"]["default"], [backbone]) == (
        "mine",
        run["backbones"],
    )
