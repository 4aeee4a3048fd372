"""Doctor says what is wrong with the next step, changes nothing, and counts as the stages will."""

import http.server
import json
import os
import platform
import re
import shlex
import subprocess
import sys
import threading

import pytest
import yaml

from conftest import REPO, change_params, git
from equipoise import cli, costs, doctor, pipeline
from equipoise.core import config
from equipoise.core.config import Engine
from equipoise.core.errors import ConfigError
from equipoise.embed import applications, embedder, journal
from equipoise.embed import stage as features
from equipoise.ingest import stage as ingest
from equipoise.ingest.datasets import phantom
from equipoise.scenario import stage as scenario
from fabricate import made


@pytest.fixture
def study(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "EQUIPOISE_DASK_SCHEDULER"):
        monkeypatch.delenv(name, raising=False)
    return made.study(tmp_path)


def examined(root) -> dict[str, doctor.Finding]:
    return {finding.what: finding for finding in doctor.examine(root)}


def said(root, what: str) -> tuple[str, str]:
    finding = examined(root)[what]
    return finding.level, finding.detail


def test_nothing_is_made_or_changed_by_looking(study, tmp_path):
    def held():
        return {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}

    before = held()
    findings = examined(tmp_path)
    assert held() == before
    assert findings["tracking"].level == "ok"
    assert "mlflow.db will be made" in findings["tracking"].detail
    assert findings["dvc repository"].detail == "run `dvc init`"
    assert findings["made: raw images"].level == "error"


@pytest.fixture
def on_another_disk(study, tmp_path):
    """A folder with an image outside the repository, which `ingest.raw` names."""
    folder = tmp_path.parent / f"{tmp_path.name} disk"
    (folder / "well").mkdir(parents=True)
    change_params(
        tmp_path, lambda params: params["studies"]["made"]["ingest"].update(raw=str(folder))
    )
    return folder


def test_originals_on_another_disk_need_a_link_for_dvc(on_another_disk, tmp_path):
    level, detail = said(tmp_path, "made: raw images")
    assert level == "error"
    command = f"ln -s '{on_another_disk}' data/raw/made"
    assert (
        f"looks for the originals in data/raw/made, which is not there. Link it: `{command}`"
        in (detail)
    )
    git(tmp_path, "init", "-q")
    with pytest.raises(ConfigError, match="has its originals elsewhere") as error:
        pipeline.reproduce(tmp_path)
    assert command in str(error.value)
    (tmp_path / "data/raw").mkdir(parents=True, exist_ok=True)
    subprocess.run(shlex.split(command), cwd=tmp_path, check=True)
    assert said(tmp_path, "made: raw images") == ("ok", str(on_another_disk))


def test_another_folder_where_dvc_looks_is_moved_away_first(on_another_disk, tmp_path):
    (tmp_path / "data/raw/made").mkdir(parents=True)
    _, detail = said(tmp_path, "made: raw images")
    assert "which is something else" in detail
    assert "`mv data/raw/made data/raw/made.old && ln -s " in detail


def test_packages_that_are_compiled_anew_in_every_stage_are_a_warning(tmp_path):
    source = tmp_path / "a disk/package/__init__.py"
    source.parent.mkdir(parents=True)
    source.write_text("answer = 42\n")
    unkept = doctor.bytecode([source], writes=False)
    assert unkept.level == "warning"
    assert "PYTHONDONTWRITEBYTECODE is set" in unkept.detail
    assert doctor.bytecode([source], writes=True).level == "ok"
    advice = re.search(r"run `python (.*)` once", unkept.detail).group(1)
    subprocess.run([sys.executable, *shlex.split(advice)], check=True)
    assert doctor.bytecode([source], writes=False).level == "ok"


@pytest.mark.parametrize(
    ("kernels", "flags", "chosen", "advice"),
    [
        ({"Haswell"}, {"avx2", "avx512f"}, "", "OPENBLAS_CORETYPE=SkylakeX set"),
        ({"Zen"}, {"avx2", "avx512f"}, "", "OPENBLAS_CORETYPE=SkylakeX set"),
        ({"Haswell", "SkylakeX"}, {"avx512f"}, "", "OPENBLAS_CORETYPE=SkylakeX set"),
        ({"Haswell"}, {"avx2", "avx512f"}, "Haswell", "OPENBLAS_CORETYPE=Haswell unset"),
        ({"Haswell"}, {"avx2"}, "", None),  # the processor can do no more
        ({"Haswell"}, {"avx2"}, "Haswell", None),
        ({"SkylakeX"}, {"avx2", "avx512f"}, "", None),
        ({"Haswell"}, set(), "", None),  # the system does not say
        (set(), {"avx512f"}, "", None),  # another library
    ],
)
def test_kernels_that_leave_the_processor_idle_are_named(kernels, flags, chosen, advice):
    finding = doctor.products(kernels, flags, chosen)
    assert finding.level == "ok"
    assert all(kernel in finding.detail for kernel in kernels)
    assert ("OPENBLAS_CORETYPE" in finding.detail) == (advice is not None)
    assert advice is None or advice in finding.detail


@pytest.mark.skipif(platform.machine() != "x86_64", reason="OpenBLAS has other kernels here")
@pytest.mark.parametrize("kernels", ["Nehalem", "Sandybridge"])
def test_the_kernels_are_those_of_this_process(kernels):
    code = "import numpy; from equipoise import doctor; print(*doctor.kernels_here())"
    path = str(REPO / "src")
    environment = {**os.environ, "OPENBLAS_CORETYPE": kernels, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() in ([kernels], [])  # none where NumPy stands on another library


def test_every_line_that_is_not_ok_names_a_step(study, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://ada:geheim@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    findings = examined(tmp_path).values()
    wrong = {finding.what: finding.detail for finding in findings if finding.level != "ok"}
    assert {"tracking", "registry", "made: raw images", "dvc repository"} <= set(wrong)
    for what, detail in wrong.items():
        assert any(
            word in detail for word in ("set ", "correct ", "run ", "put ", "install ", "`dvc")
        ), (what, detail)
        assert "geheim" not in detail


class ReadOnly(http.server.BaseHTTPRequestHandler):
    """A tracking server that lets this user read and refuses to let them write."""

    def _answer(self, code, body):
        data = json.dumps(body).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        row = {"experiment_id": "7", "name": "equipoise-made", "lifecycle_stage": "active"}
        self._answer(200, {"experiment": row, "registered_models": [{"name": "equipoise-made"}]})

    def do_POST(self):
        if "search" in self.path:
            self._answer(200, {"experiments": []})
        else:
            self._answer(403, {"error_code": "PERMISSION_DENIED", "message": "Permission denied"})

    do_DELETE = do_PATCH = do_POST

    def log_message(self, *arguments):
        pass


def test_a_server_where_one_may_only_read_is_an_error(study, tmp_path, monkeypatch):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), ReadOnly)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_port}")
    try:
        for what in ("tracking", "registry"):
            level, detail = said(tmp_path, what)
            assert level == "error"
            assert "ermission" in detail
            assert "credentials" in detail
    finally:
        server.shutdown()


def test_a_read_only_folder_is_an_error(study, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    level, detail = said(tmp_path, "tracking")
    assert level == "error"
    assert "cannot be written" in detail


def test_the_dvc_remote_is_asked(study, tmp_path):
    (tmp_path / ".dvc").mkdir()
    assert said(tmp_path, "dvc remote")[0] == "warning"
    (tmp_path / "store").mkdir()
    (tmp_path / ".dvc/config").write_text(
        f"[core]\n    remote = store\n['remote \"store\"']\n    url = {tmp_path}/store\n"
    )
    assert said(tmp_path, "dvc remote") == ("ok", f"store ({tmp_path}/store), reached")
    (tmp_path / ".dvc/config").write_text("[core]\n    remote = lost\n")
    level, detail = said(tmp_path, "dvc remote")
    assert level == "error"
    assert "dvc remote list" in detail


def test_disk_and_memory_are_held_against_the_estimate(study, tmp_path):
    assert said(tmp_path, "made: disk")[0] in ("ok", "warning")
    assert doctor.disk_finding("made", needed_bytes=1e9, free_bytes=1e12).level == "ok"
    assert doctor.disk_finding("made", needed_bytes=1e9, free_bytes=2e9).level == "warning"
    full = doctor.disk_finding("made", needed_bytes=2e9, free_bytes=1e9)
    assert full.level == "error"
    assert "float16" in full.detail
    assert doctor.memory_finding("made", needed_bytes=1e9, held_bytes=2e9).level == "ok"
    assert doctor.memory_finding("made", needed_bytes=1e9, held_bytes=0).level == "ok"
    small = doctor.memory_finding("made", needed_bytes=2e9, held_bytes=1e9)
    assert small.level == "warning"
    assert "engine.workers" in small.detail


def test_the_estimate_of_disk_grows_with_the_views(study, tmp_path):
    def written(views: int) -> int:
        more = config.load_study("made", made.params(embed={"views": views}), root=tmp_path)
        return costs.Needs.of(costs.steps(more)).disk_bytes

    assert written(views=4) > written(views=3) > 0


def test_workers_that_see_another_params_are_an_error(study, tmp_path):
    from distributed import Client, LocalCluster

    wide = LocalCluster(
        n_workers=1, threads_per_worker=2, processes=False, dashboard_address="127.0.0.1:0"
    )
    with wide as cluster, Client(cluster):
        engine = Engine(backend="dask", scheduler=cluster.scheduler_address)
        answer = doctor.workers(engine, tmp_path)
        assert answer.level == "warning"
        assert "--nthreads 1" in answer.detail
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(
                doctor.environment, "difference", lambda there, here: "numpy is 1 there and 2 here"
            )
            assert doctor.workers(engine, tmp_path).level == "error"
    (tmp_path / "params.yaml").write_text(
        yaml.safe_dump(made.params() | {"engine": {"backend": "dask"}})
    )
    assert said(tmp_path, "made: dask") == ("ok", "1 workers will be started here")


def steps(study: config.Study, **options) -> dict[str, costs.Step]:
    return {step.what: step for step in costs.steps(study, **options)}


def test_what_is_cached_and_what_will_run(study):
    before = steps(study)
    assert [step.cached for step in before.values()] == [True, True, True, False, False]
    scenario.run(study, made.BACKBONE, "oversample")
    assert steps(study)[f"scenario oversample, {made.BACKBONE}"].cached
    assert not steps(study)[f"scenario baseline, {made.BACKBONE}"].cached
    fewer = config.load_study("made", made.params(tune={"trials": 3}), root=study.root)
    assert not steps(fewer)[f"scenario oversample, {made.BACKBONE}"].cached
    moved = config.load_study("made", made.params(split={"seed": 5}), root=study.root)
    assert not steps(moved)["split"].cached
    assert not steps(moved)[f"scenario oversample, {made.BACKBONE}"].cached
    viewed = config.load_study("made", made.params(embed={"views": 3}), root=study.root)
    assert not steps(viewed)[f"embed {made.BACKBONE}"].cached
    assert not steps(viewed)[f"scenario oversample, {made.BACKBONE}"].cached
    assert "0 of 5" not in costs.total(list(before.values()))


def test_passes_are_those_that_embed_makes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = config.read_params(REPO)
    params["run"] = {"studies": ["demo"], "backbones": ["vgg16"], "scenarios": ["baseline"]}
    params["studies"]["demo"]["phantom"] |= {
        "patients": 20,
        "size_px": 40,
        "opacity_patient_fraction": 0.3,
    }
    params["studies"]["demo"]["embed"] |= {"image_size_px": 32, "views": 1, "batch_size": 8}
    study = config.load_study("demo", params, root=tmp_path)
    assert "at most" in costs.total(list(steps(study).values()))
    phantom.draw(study.raw, study.settings.phantom)
    drawn = steps(study)["ingest"]
    ingest.run(study)
    assert (drawn.cached, steps(study)["ingest"].cached) == (False, True)
    assert drawn.detail == f"{sum(path.suffix == '.png' for path in study.raw.rglob('*'))} images"
    wanted = steps(study, exact=True)["embed vgg16"]
    calls = []

    class Dies(embedder.Embedder):
        def features(self, *arguments):
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            return super().features(*arguments)

    with pytest.raises(KeyboardInterrupt):
        features.run(study, "vgg16", make_embedder=Dies, shard_rows=8)
    rest = steps(study, exact=True)["embed vgg16"]
    assert rest.passes == wanted.passes - 2 * 8
    assert features.run(study, "vgg16").passes_now == rest.passes
    assert steps(study)["embed vgg16"].cached


def test_a_rate_measured_here_goes_before_the_published_one(tmp_path):
    published = applications.seen("vgg16").images_per_second
    rate = costs.passes_per_second(tmp_path, "vgg16", 224)
    assert rate == costs.Rate(published, "published for 2 cores")
    smaller = costs.passes_per_second(tmp_path, "vgg16", 112)
    assert smaller.images_per_second == 4 * published
    path = journal.path_of(tmp_path)
    path.parent.mkdir(parents=True)
    long = journal.PassRecord(
        study="made",
        backbone="vgg16",
        image_size_px=224,
        passes=1000,
        passes_now=1000,
        seconds=50.0,
    )
    journal.note(tmp_path, long)
    journal.note(tmp_path, long.model_copy(update={"passes_now": 10, "seconds": 9.0}))
    with open(path, "a") as file:  # of before, and as a kill leaves it
        file.write('{"backbone": "vgg16", "passes_now": 1000}\n{"study": "made", "backb')
    rate = costs.passes_per_second(tmp_path, "vgg16", 224)
    assert rate == costs.Rate(20.0, "measured here")
    journal.note(tmp_path, long.model_copy(update={"seconds": 25.0}))
    rate = costs.passes_per_second(tmp_path, "vgg16", 224)
    assert rate.images_per_second == 40.0, "the line after a cut one is a line of its own"


def test_the_estimate_counts_the_images_that_ingest_will_take(tmp_path):
    settings = made.params(ingest={"skip": ["drafts/"]})
    unread = config.load_study("made", settings, root=tmp_path)
    for name in ("a/1.png", "a/2.png", "a/2_mask.png", "drafts/3.png", "a/notes.txt"):
        path = unread.raw / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"not decoded")
    assert steps(unread)["ingest"].detail == "2 images"


@pytest.mark.parametrize("verb", ["scenario", "main"])
def test_dry_run_says_and_makes_nothing(study, tmp_path, capsys, verb):
    before = sorted(tmp_path.rglob("*"))
    words = (
        ["--study", "made", "--backbone", made.BACKBONE, "--scenario", "oversample"]
        if verb == "scenario"
        else []
    )
    assert cli.main([verb, "--dry-run", *words]) == 0
    out = capsys.readouterr().out
    assert f"embed {made.BACKBONE}: cached" in out
    assert f"scenario oversample, {made.BACKBONE}: will run" in out
    assert ("scenario baseline" in out) == (verb == "main")
    assert sorted(tmp_path.rglob("*")) == before


def test_devices_are_named_by_a_process_of_their_own():
    assert doctor.name_devices("print('CPU:0, GPU:0')") == doctor.Answer("ok", "CPU:0, GPU:0")
    answer = doctor.name_devices("import os; os.abort()")
    assert answer.level == "error"
    assert "make env" in answer.detail


def test_a_server_that_does_not_answer_is_left_after_some_seconds():
    finding = doctor.ask("tracking", "start it", lambda: threading.Event().wait(5), seconds=0.1)
    assert finding == doctor.Finding("error", "tracking", "no answer within 0 s; start it")
