"""From the winner to service: one version per result, aliases, the served model, predict, rollback."""

import json
import shutil
import sys
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.entities import LoggedModelStatus
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient

from conftest import copy_workspace, path_of, run, state_of
from equipoise import cli
from equipoise.core import config, files
from equipoise.core.errors import ConfigError
from equipoise.registry import audit, evidence, models
from equipoise.registry import register as registry

NAME = "equipoise-demo"


@pytest.fixture(scope="module")
def shop(workspace, tmp_path_factory):
    """A copy of the workspace with a champion."""
    folder = tmp_path_factory.mktemp("shop") / "copy"
    copy_workspace(workspace, folder)
    assert cli.main(["--root", str(folder), "promote", "--study", "demo"]) == 0
    return folder


@pytest.fixture
def equipoise(monkeypatch, capsys):
    """Run a verb in this process, which has TensorFlow and MLflow loaded already: exit code, output, errors."""

    def call(folder, *arguments, store=None):
        monkeypatch.chdir(folder)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", store or f"sqlite:///{folder}/mlflow.db")
        capsys.readouterr()
        code = cli.main(arguments)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


#: What writing a run or a version needs, and finding that there is nothing to write does not.
_FOR_WRITING = {
    "equipoise.compare.results",
    "equipoise.evaluation.intervals",
    "equipoise.scenario.heads.head",
    "equipoise.registry.evidence",
    "equipoise.service.packaged",
    "keras",
    "matplotlib",
    "mlflow.pyfunc",
    "optuna",
    "scipy.optimize",
    "scipy.stats",
    "sklearn",
    "statsmodels",
    "tensorflow",
}


@pytest.mark.parametrize("verb", ["track", "register"])
def test_what_has_nothing_to_do_imports_nothing_to_do_it_with(workspace, verb):
    code = (
        "import sys; from equipoise import cli; "
        f"assert cli.main([{verb!r}, '--study', 'demo']) == 0; print(sorted({_FOR_WRITING} & set(sys.modules)))"
    )
    done = run(workspace, sys.executable, "-c", code, PYTHONPATH=str(workspace / "src"))
    assert "0 results written" in done.stdout or "was registered" in done.stdout
    assert done.stdout.splitlines()[-1] == "[]"


def uri(folder) -> str:
    return f"sqlite:///{folder}/mlflow.db"


def client(folder) -> MlflowClient:
    address = uri(folder)
    return MlflowClient(tracking_uri=address, registry_uri=address)


def version(folder, alias) -> str | None:
    try:
        return str(client(folder).get_model_version_by_alias(NAME, alias).version)
    except MlflowException:
        return None


def test_winner_is_a_version_with_evidence(shop):
    comparison = json.loads((shop / "reports/demo/comparison.json").read_text())
    made = client(shop).get_model_version_by_alias(NAME, "best-vgg16")
    assert str(made.version) == version(shop, "challenger") == version(shop, "champion") == "1"
    assert made.tags["equipoise.scenario"] == comparison["winners"]["vgg16"]
    row = comparison["rows"]["vgg16"][comparison["winners"]["vgg16"]]
    assert made.tags["equipoise.result_digest"] == row["result_digest"]
    assert len(made.tags) == 14
    assert "EQ001 passed, EQ002 passed" in made.tags["equipoise.checks"]
    assert len(made.tags["equipoise.git_commit"]) == 40
    assert made.tags["equipoise.uncommitted"] == ""
    kept = json.loads(artifact(shop, made, "registered.json").read_text())
    assert kept["served_difference"] < 1e-5
    assert kept["digests"]["dvc_lock"] == files.file_digest(shop / "dvc.lock")
    assert {"raw", "manifest", "splits", "features", "test"} <= set(kept["digests"])
    described = json.loads(
        (
            shop / f"results/demo/vgg16/{made.tags['equipoise.scenario']}/model/model.json"
        ).read_text()
    )
    assert float(made.tags["equipoise.threshold"]) == pytest.approx(
        described["threshold"], abs=1e-6
    )
    assert made.tags["equipoise.grey"] == "True"
    assert made.tags["equipoise.verdict"] == row["verdict"]
    first, *sentences = made.description.split("\n\n")
    assert first == comparison["headline"]
    assert any(sentence.startswith("The winner on vgg16 is ") for sentence in sentences)
    assert "## Model details" in made.description
    assert len(made.description) <= 5000
    said = client(shop).get_run(made.run_id).data
    assert said.tags["verdict"] == row["verdict"]


def artifact(folder, made, name) -> Path:
    """A file of the folder that a version has in its run."""
    place = f"{made.tags['equipoise.folder']}/{name}"
    return Path(
        mlflow.artifacts.download_artifacts(
            run_id=made.run_id, artifact_path=place, tracking_uri=uri(folder)
        )
    )


def test_version_run_and_logged_model_are_linked(shop):
    store = client(shop)
    made = store.get_model_version_by_alias(NAME, "best-vgg16")
    run = store.get_run(made.run_id)
    (model,) = store.search_logged_models([run.info.experiment_id])
    assert (model.status, model.source_run_id) == (LoggedModelStatus.READY, made.run_id)
    assert made.source == model.artifact_location
    linked = json.loads(model.tags["mlflow.modelVersions"])
    assert [(link["name"], str(link["version"])) for link in linked] == [(NAME, "1")]
    assert [output.model_id for output in run.outputs.model_outputs] == [model.model_id]
    numbers = {metric.key: metric.value for metric in model.metrics}
    assert numbers["test/auroc"] == run.data.metrics["test/auroc"]


def test_a_registration_that_ends_half_way_leaves_no_model(shop, tmp_path, monkeypatch):
    folder = copy_workspace(shop, tmp_path / "copy")
    store = client(folder)
    for there in store.search_model_versions(f"name = '{NAME}'"):
        store.delete_model_version(NAME, there.version)
    before = len(store.search_logged_models(["1"]))

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(registry, "log_package", interrupted)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri(folder))
    with pytest.raises(KeyboardInterrupt):
        registry.register(config.load_study("demo", root=folder))
    assert len(store.search_logged_models(["1"])) == before
    assert {run.info.status for run in store.search_runs(["1"])} == {"FINISHED"}


def test_evidence_travels_with_the_version(shop):
    made = client(shop).get_model_version_by_alias(NAME, "champion")
    stored = pd.read_parquet(
        shop / f"results/demo/vgg16/{made.tags['equipoise.scenario']}/predictions.parquet"
    )
    stored = stored[(stored["seed"] == 0) & (stored["part"] == "test")].set_index("image_id")
    stored_with_it = evidence.read(client(shop), made)
    table = stored_with_it.predictions.table.set_index("image_id")
    assert set(table.index) == set(stored.index)
    columns = [
        "patient_id",
        "label",
        "repeat",
        "fold",
        "threshold",
        "prob_opacity",
        "calibrated_opacity",
    ]
    pd.testing.assert_frame_equal(table[columns], stored.loc[table.index, columns])
    digests = stored_with_it.origin.digests
    assert stored_with_it.predictions.test_digest() == digests["test"]
    card = mlflow.artifacts.download_artifacts(
        run_id=made.run_id,
        artifact_path=f"{made.tags['equipoise.folder']}/MODEL_CARD.md",
        tracking_uri=uri(shop),
    )
    assert Path(card).read_text() == (path_of(made.source) / "MODEL_CARD.md").read_text()


def test_registering_again_makes_no_second_version(shop, equipoise):
    code, out, _ = equipoise(shop, "register")
    assert code == 0
    assert "was registered as equipoise-demo version 1" in out
    assert len(client(shop).search_model_versions(f"name = '{NAME}'")) == 1


def test_loaded_champion_equals_the_stored_predictions(shop, monkeypatch):
    address = f"sqlite:///{shop}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", address)
    mlflow.set_tracking_uri(address)
    champion = mlflow.pyfunc.load_model(f"models:/{NAME}@champion")
    scenario = client(shop).get_model_version_by_alias(NAME, "champion").tags["equipoise.scenario"]
    stored = pd.read_parquet(shop / f"results/demo/vgg16/{scenario}/predictions.parquet")
    stored = stored[stored["seed"] == 0]
    images = [(shop / "data/raw/demo" / name).read_bytes() for name in stored["image_id"]]
    served = champion.predict(pd.DataFrame({"image": images}))
    assert len(served) > 50
    np.testing.assert_allclose(served["prob_opacity"], stored["calibrated_opacity"], atol=1e-5)
    np.testing.assert_allclose(served["raw_clear"], stored["prob_clear"], atol=1e-5)
    decided = np.where(stored["calibrated_opacity"] >= stored["threshold"], "opacity", "clear")
    assert (served["decision"] == decided).all()
    assert champion.metadata.signature.inputs.input_names()[0] == "image"


def test_predict_writes_a_row_for_every_file(shop, equipoise, tmp_path):
    good = sorted((shop / "data/raw/demo/opacity").glob("*.png"))[:3]
    (tmp_path / "in").mkdir()
    for path in good:
        shutil.copy(path, tmp_path / "in")
    (tmp_path / "in/broken.png").write_bytes(good[0].read_bytes()[:200])
    words = ("--out", str(tmp_path / "out.csv"), "--model")
    code, out, _ = equipoise(
        shop, "predict", str(tmp_path / "in"), *words, f"models:/{NAME}@champion"
    )
    assert (code, "3 images predicted, 1 unreadable" in out) == (0, True)
    table = pd.read_csv(tmp_path / "out.csv").set_index("image")
    assert list(table.index) == [
        str(tmp_path / "in" / name) for name in ("broken.png", *(path.name for path in good))
    ]
    assert "truncated" in table["error"].iloc[0]
    assert table["prob_opacity"].isna().tolist() == [True, False, False, False]
    for address in (f"models:/{NAME}@nobody", f"models:/{NAME}/99", "models:/nothing@champion"):
        code, _, errors = equipoise(shop, "predict", str(good[0]), *words, address)
        assert (code, errors.count("\n")) == (2, 1)
        assert f"There is no {address} at sqlite:" in errors


def test_other_weights_under_the_same_evidence_are_found(shop, equipoise, tmp_path):
    """A model whose artifact was exchanged still loads; it does not reproduce its predictions."""
    store = client(shop)
    first = store.get_model_version(NAME, "1")
    changed = tmp_path / "model"
    shutil.copytree(path_of(first.source), changed)
    (described,) = changed.rglob("network/model.json")
    content = json.loads(described.read_text())
    content["calibrator"]["biases"][1] += 0.1
    described.write_text(json.dumps(content))
    other = str(
        store.create_model_version(NAME, changed.as_uri(), first.run_id, tags=first.tags).version
    )
    promoted = equipoise(shop, "promote", "--study", "demo", "--version", other, "--json")
    code, out, errors = promoted
    assert code == 3
    told = json.loads(out)
    assert (told["moved"], told["champion"]) == (False, None)
    assert told["refused"] in errors
    failed = [gate["code"] for gate in told["gates"] if gate["verdict"] == "failed"]
    assert failed == ["EQ-G7"]
    code_of_audit, log, _ = equipoise(shop, "audit", "--study", "demo", "--json")
    (model,) = json.loads(log)["models"]
    assert (code_of_audit, model["model"], model["verified"]) == (0, NAME, False)
    newest = model["decisions"][-1]
    assert (newest["state"], newest["decision"]["to"]) == ("refused", other)
    assert "EQ-G7 loads and reproduces its own predictions is" in errors
    assert errors.count("EQ-G") == 1


def test_without_the_raw_images_the_input_example_is_reproduced(shop, equipoise):
    store = client(shop)
    first = store.get_model_version(NAME, "1")
    twin = str(
        store.create_model_version(NAME, first.source, first.run_id, tags=first.tags).version
    )
    raw = shop / "data/raw/demo"
    raw.rename(raw.with_name("away"))
    try:
        code, out, _ = equipoise(shop, "promote", "--study", "demo", "--version", twin)
    finally:
        raw.with_name("away").rename(raw)
    assert code == 0
    assert "on the input example; the raw images are not here" in " ".join(out.split())
    assert equipoise(shop, "rollback", "--study", "demo", "--reason", "tidy")[0] == 0


def test_model_that_does_not_load_cannot_be_forced(shop, equipoise, tmp_path):
    store = client(shop)
    first = store.get_model_version(NAME, "1")
    broken = str(
        store.create_model_version(NAME, str(tmp_path), first.run_id, tags=first.tags).version
    )
    before = version(shop, "champion")
    code, _, errors = equipoise(
        shop, "promote", "--study", "demo", "--version", broken, "--force", "--reason", "a drill"
    )
    assert code == 3
    assert (
        "does not become champion: EQ-G7 loads and reproduces its own predictions (it does not load:"
        in errors
    )
    assert version(shop, "champion") == before
    last = audit.read(store, NAME)[-1]
    assert (last.state, last.decision.kind, last.decision.to_version) == (
        "refused",
        "refuse",
        broken,
    )


def test_version_from_elsewhere_has_no_evidence(shop, equipoise):
    store = client(shop)
    run_id = store.create_run("0").info.run_id
    strange = str(
        store.create_model_version(NAME, store.get_model_version(NAME, "1").source, run_id).version
    )
    code, _, errors = equipoise(shop, "promote", "--study", "demo", "--version", strange)
    assert code == 3
    assert f"the evidence of version {strange} cannot be read from run {run_id}" in errors


@pytest.mark.parametrize("verb", ["promote", "rollback"])
def test_nothing_to_move_is_refused(shop, equipoise, empty_store, tmp_path, verb):
    shutil.copy(empty_store, tmp_path / "empty.db")
    reason = ["--reason", "a drill"] if verb == "rollback" else []
    code, _, errors = equipoise(
        shop, verb, "--study", "demo", *reason, store=f"sqlite:///{tmp_path}/empty.db"
    )
    assert code == 3
    assert (
        "equipoise register --study demo" if verb == "promote" else "no previous champion"
    ) in errors


@pytest.mark.parametrize(
    ("change", "code", "sentence"),
    [
        (lambda comparison: comparison.update(registrable=False), 3, "EQ-OFFICIAL"),
        (
            lambda comparison: comparison["rows"]["vgg16"]["baseline"].update(
                result_digest="0" * 64
            ),
            1,
            "is newer than",
        ),
    ],
)
def test_comparison_that_is_stale_or_leaks_registers_nothing(
    shop, equipoise, change, code, sentence
):
    path = shop / "reports/demo/comparison.json"
    kept = path.read_text()
    comparison = json.loads(kept)
    comparison["winners"] = {"vgg16": "baseline"}
    change(comparison)
    versions = len(client(shop).search_model_versions(f"name = '{NAME}'"))
    path.unlink()  # a link into DVC's cache is never written through
    path.write_text(json.dumps(comparison))
    try:
        exit_code, _, errors = equipoise(shop, "register")
    finally:
        path.write_text(kept)
    assert (exit_code, sentence in errors) == (code, True)
    assert len(client(shop).search_model_versions(f"name = '{NAME}'")) == versions


def test_input_example_works_and_is_no_patient(shop):
    made = client(shop).get_model_version(NAME, "1")
    folder = path_of(made.source)
    package = mlflow.models.Model.load(folder)
    assert package.run_id == made.run_id
    example = package.load_input_example(str(folder))
    raw = {path.read_bytes() for path in (shop / "data/raw/demo").rglob("*.png")}
    assert bytes(example["image"].iloc[0]) not in raw
    answer = mlflow.pyfunc.load_model(str(folder)).predict(example)
    assert answer["prob_opacity"].between(0, 1).all()


def test_no_verb_changes_the_raw_folder(shop, equipoise):
    raw = shop / "data/raw/demo"
    before = state_of(raw)
    assert len(before) > 100
    picture = sorted((raw / "opacity").glob("*.png"))[0]
    of_scenario = ("--scenario", "baseline", "--backbone", "vgg16")
    for verb in (
        ("ingest", "--study", "demo"),
        ("split", "--study", "demo"),
        ("embed", "--study", "demo", "--backbone", "vgg16"),
        ("scenario", "--study", "demo", "--backbone", "vgg16", "--scenario", "baseline"),
        ("compare", "--study", "demo"),
        ("report", "--study", "demo"),
        ("leakage", "--study", "demo", "--backbone", "vgg16"),
        ("export", "--study", "demo", "--layout", "folders"),
        ("export", "--study", "demo", "--layout", "folders", *of_scenario, "--copy"),
        ("export", "--study", "demo", "--layout", "csv"),
        ("track",),
        ("register", "--study", "demo"),
        ("predict", "--model", f"models:/{NAME}@champion", str(raw / "clear")),
        ("explain", "--model", f"models:/{NAME}@champion", str(picture)),
        ("doctor",),
    ):
        code, out, errors = equipoise(shop, *verb)
        assert code == 0 or verb == ("doctor",), (verb, out, errors)
        assert state_of(raw) == before, verb


#: Code of a later or earlier commit: it answers 0.25 whatever it is asked.
OTHER_CODE = """

_before = Calibrator.apply
Calibrator.apply = lambda self, logits: _before(self, logits) * 0 + 0.25
"""


@pytest.fixture
def of_other_code(shop, tmp_path) -> str:
    """Number of a version that was saved with other code than this checkout's, over the same evidence."""
    store = client(shop)
    first = store.get_model_version(NAME, "1")
    changed = tmp_path / "model"
    shutil.copytree(path_of(first.source), changed)
    module = changed / "code/equipoise/evaluation/calibration.py"
    module.write_text(module.read_text() + OTHER_CODE)
    made = store.create_model_version(NAME, changed.as_uri(), first.run_id, tags=first.tags)
    return str(made.version)


def test_a_version_is_run_by_the_code_that_it_was_saved_with(
    shop, equipoise, of_other_code, tmp_path, monkeypatch
):
    """`mlflow models serve` runs that code; every verb must give its answers."""
    image = next((shop / "data/raw/demo/opacity").glob("*.png"))
    out = tmp_path / "out.csv"
    model = f"models:/{NAME}/{of_other_code}"
    assert equipoise(shop, "predict", str(image), "--model", model, "--out", str(out))[0] == 0
    assert pd.read_csv(out)["prob_opacity"].tolist() == [0.25]

    loaded = models.load(model, shop)
    explained = loaded.explain(image.read_bytes(), "opacity")
    assert "calibrated probability of opacity: 0.250" in explained.text
    assert explained.heat.shape == explained.pixels.shape[:2] == (48, 48)
    with pytest.raises(ConfigError, match="Did you mean 'opacity'"):
        loaded.explain(image.read_bytes(), "opacit")

    monkeypatch.setattr(models, "load", lambda uri, root: loaded)
    code, _, errors = equipoise(shop, "promote", "--study", "demo", "--version", of_other_code)
    assert code == 3
    assert "EQ-G7 loads and reproduces its own predictions is" in errors


def test_a_process_that_serves_is_gone_when_it_fails(shop, tmp_path):
    first = client(shop).get_model_version(NAME, "1")
    broken = tmp_path / "model"
    shutil.copytree(path_of(first.source), broken)
    (broken / "code/equipoise/service/predictor.py").write_text("import no_such_module")
    with pytest.raises(ConfigError, match=r"cannot be loaded: .*no_such_module"):
        models.load(str(broken), shop)


@pytest.fixture(scope="module")
def copied(workspace, tmp_path_factory):
    """A checkout as `cp -r` leaves it: its store speaks of the files of the original."""
    folder = tmp_path_factory.mktemp("copied") / "copy"
    shutil.copytree(workspace, folder, symlinks=True)
    return folder


def contents(folder: Path) -> dict[Path, tuple[int, bytes]]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def test_a_copy_writes_nothing_into_its_original(copied, workspace, equipoise):
    kept = contents(workspace / "mlartifacts")
    image = str(next((copied / "data/raw/demo/opacity").glob("*.png")))
    reason = ("--study", "demo", "--reason", "a drill")
    model = ("--model", f"models:/{NAME}@challenger")
    verbs = (("track",), ("register",), ("promote", *reason), ("rollback", *reason), ("audit",))
    for verb in (*verbs, ("predict", image, *model), ("explain", image, *model)):
        code, _, errors = equipoise(copied, *verb)
        assert (code, errors.count("\n")) == (5, 1), errors
        assert f"keeps its files below {workspace}: this checkout was copied or moved" in errors
        assert "equipoise track --rehome" in errors
    assert contents(workspace / "mlartifacts") == kept
    code, out, _ = equipoise(copied, "doctor")
    assert (code, "this checkout was copied or moved" in out) == (1, True)


def test_a_copy_that_was_told_where_it_is_keeps_its_own_files(
    copied, workspace, equipoise, tmp_path
):
    code, out, _ = equipoise(copied, "track", "--rehome")
    assert (code, "addresses of files changed" in out) == (0, True)
    store = client(copied)
    addresses = []
    for experiment in store.search_experiments():
        addresses.append(experiment.artifact_location)
        addresses += [
            run.info.artifact_uri for run in store.search_runs([experiment.experiment_id])
        ]
    assert len(addresses) > 4
    assert not [address for address in addresses if f"{workspace}/" in address]
    source = client(copied).get_model_version_by_alias(NAME, "challenger").source
    assert path_of(source).is_relative_to(copied)
    assert (path_of(source) / "MLmodel").is_file()
    assert "0 addresses" in equipoise(copied, "track", "--rehome")[1]


def test_a_version_of_code_that_was_not_committed_learns_its_commit(shop, equipoise):
    """Edit, main, commit, promote: the order in which people work, and that of the README."""
    store = client(shop)
    first = store.get_model_version(NAME, "1")
    served = contents(path_of(first.source))
    store.create_model_version(NAME, first.source, first.run_id, tags=first.tags)
    dirty = {"equipoise.uncommitted": "params.yaml", "equipoise.git_commit": "0" * 40}
    for key, value in dirty.items():
        for version_there in store.search_model_versions(f"name = '{NAME}'"):
            store.set_model_version_tag(NAME, version_there.version, key, value)
    newest = max(int(found.version) for found in store.search_model_versions(f"name = '{NAME}'"))
    said = equipoise(shop, "promote", "--study", "demo", "--version", str(newest))[2]
    assert "EQ-G8" in said
    assert "`equipoise register --study demo` renews this" in said

    code, out, _ = equipoise(shop, "register")
    assert (code, f"version {newest}; its code is committed now" in out) == (0, True)
    renewed = store.get_model_version(NAME, str(newest)).tags
    assert (renewed["equipoise.uncommitted"], renewed["equipoise.git_commit"]) == (
        "",
        first.tags["equipoise.git_commit"],
    )

    store.set_model_version_tag(NAME, str(newest), "equipoise.uncommitted", "params.yaml")
    store.set_model_version_tag(NAME, str(newest), "equipoise.digest.code", "of other code")
    code, out, _ = equipoise(shop, "register")
    assert (code, f"registered as {NAME} version {newest + 1}" in out) == (0, True)
    made = store.get_model_version(NAME, str(newest + 1))
    assert made.tags["equipoise.uncommitted"] == ""
    assert (made.run_id, made.source == first.source) == (first.run_id, False)
    assert contents(path_of(first.source)) == served
