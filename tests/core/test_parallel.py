"""Side by side is only faster: the same results, in order, whoever dies meanwhile."""

import contextlib
import operator
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from threadpoolctl import threadpool_info

from conftest import REPO
from equipoise.core import config, environment, parallel
from equipoise.core.config import Engine
from equipoise.core.errors import ConfigError, EquipoiseError
from equipoise.embed import stage as features
from equipoise.ingest import stage as ingest
from equipoise.ingest.datasets import phantom
from equipoise.scenario import rounds
from equipoise.scenario import stage as scenario
from fabricate import made
from fabricate.servers import free_port

ALONE, TWO, DASK = Engine(), Engine(workers=2), Engine(backend="dask", workers=2)
JOBS = [(base, power) for base in range(5) for power in range(4)]


@pytest.mark.parametrize("threads", [1, 4, None])
@pytest.mark.parametrize("ahead", [1, 3, 64])
def test_in_threads_keeps_the_order(threads, ahead):
    assert list(parallel.in_threads(lambda item: item * item, range(50), threads, ahead)) == [
        i * i for i in range(50)
    ]


def test_in_threads_keeps_the_order_when_the_first_is_the_slowest():
    last_done = threading.Event()

    def work(item):
        if item == 0:
            assert last_done.wait(600)
        if item == 5:
            last_done.set()
        return item

    assert list(parallel.in_threads(work, range(6), threads=2)) == list(range(6))


def test_in_threads_runs_at_most_so_far_ahead():
    started = []
    results = parallel.in_threads(
        lambda item: started.append(item) or item, range(1000), threads=2, ahead=5
    )
    assert next(results) == 0
    results.close()
    assert len(started) <= 6


def test_in_threads_propagates_the_error_after_the_results_before_it():
    results = parallel.in_threads(lambda item: 1 // (3 - item), range(10), threads=2)
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_in_threads_of_nothing_is_nothing():
    assert list(parallel.in_threads(len, [])) == []


@pytest.mark.parametrize("engine", [ALONE, TWO, Engine(workers=-1), DASK], ids=str)
def test_run_jobs_gives_the_same_wherever_it_runs(engine):
    assert parallel.run_jobs(operator.pow, JOBS, "powers", engine) == [
        base**power for base, power in JOBS
    ]


@pytest.mark.parametrize("engine", [ALONE, TWO], ids=str)
def test_run_jobs_propagates_the_error(engine):
    with pytest.raises(ZeroDivisionError):
        parallel.run_jobs(operator.floordiv, [(1, 1), (1, 0), (2, 1)], "divisions", engine)


def test_run_jobs_of_nothing_is_nothing():
    assert parallel.run_jobs(operator.pow, [], "powers", DASK) == []


def test_progress_yields_every_item_and_stays_quiet_when_quick(capsys):
    assert list(parallel.progress(iter("abc"), "letters", 3)) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_timer_tells_seconds():
    assert str(parallel.Timer()).endswith(" s")


class Cluster:
    """A scheduler and two workers, each a process of its own, as if on three machines.

    The processes work in `folder`, which is no study's folder.
    """

    def __init__(self, folder: Path):
        self.address = f"tcp://127.0.0.1:{free_port()}"
        self.folder = folder
        self.processes = {}

    def start(self, name: str, *words: str) -> None:
        folders = [REPO / "src", REPO / "tests", Path(__file__).parent]
        variables = dict(os.environ)
        variables["PYTHONPATH"] = os.pathsep.join(map(str, folders))
        variables["DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT"] = "600s"
        command = [sys.executable, "-m", "dask", *words]
        with open(self.folder / f"{name}.log", "ab") as log:
            self.processes[name] = subprocess.Popen(
                command, cwd=self.folder, env=variables, stdout=log, stderr=log
            )

    def engine(self) -> Engine:
        """Start whatever is missing, and return the engine once both workers are there."""
        from distributed import Client

        for name in [
            name for name, process in self.processes.items() if process.poll() is not None
        ]:
            del self.processes[name]
        if "scheduler" not in self.processes:
            self.start("scheduler", "scheduler", "--host", self.address, "--no-dashboard")
        for name in {"first", "second"} - set(self.processes):
            options = ("--nthreads", "1", "--no-nanny", "--no-dashboard", "--name", name)
            self.start(name, "worker", self.address, *options)
        with Client(self.address, timeout=600, set_as_default=False) as client:
            client.wait_for_workers(2, timeout=600)
        return Engine(backend="dask", scheduler=self.address)

    def kill(self, *names: str) -> None:
        for name in names or list(self.processes):
            self.processes[name].kill()
            self.processes.pop(name).wait()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    made = Cluster(tmp_path_factory.mktemp("cluster"))
    made.engine()
    yield made
    made.kill()


def dies_once(folder: str, number: int) -> tuple[int, int]:
    """Ends its worker the first time that job 3 runs, without a word, as a node does."""
    time.sleep(0.2)
    if number == 3:
        with contextlib.suppress(FileExistsError):
            (Path(folder) / "died").touch(exist_ok=False)
            os.kill(os.getpid(), signal.SIGKILL)
    return number, os.getpid()


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def kill_when_busy(cluster: Cluster, name: str) -> threading.Thread:
    """Kill a worker as soon as it has a job in hand."""
    from distributed import Client

    def wait_and_kill():
        with Client(cluster.address, timeout=600, set_as_default=False) as client:
            busy = {}
            while not busy.get(name):
                workers = client.scheduler_info(n_workers=-1)["workers"]
                tasks = client.processing()
                busy = {row["name"]: tasks.get(address) for address, row in workers.items()}
                time.sleep(0.01)
        cluster.kill(name)

    thread = threading.Thread(target=wait_and_kill, daemon=True)
    thread.start()
    return thread


def test_a_killed_worker_and_a_restarted_scheduler_change_no_byte(tmp_path, monkeypatch, cluster):
    monkeypatch.chdir(tmp_path)
    study = made.study(tmp_path, split={"scheme": "kfold"})
    alone, joined = tmp_path / "alone", tmp_path / "joined"
    for name in ("baseline", "oversample"):
        scenario.run(study, made.BACKBONE, name, alone / name)
    shutil.rmtree(study.cache_path)  # the searches too are made again
    study_on_cluster = study.model_copy(update={"engine": cluster.engine()})
    thread = kill_when_busy(cluster, "second")
    scenario.run(study_on_cluster, made.BACKBONE, "baseline", joined / "baseline")
    thread.join(600)
    assert list(cluster.processes) == ["scheduler", "first"]
    assert files_of(joined / "baseline") == files_of(alone / "baseline")
    cluster.kill()
    cluster.engine()
    monkeypatch.setenv("EQUIPOISE_DASK_SCHEDULER", cluster.address)
    study_on_cluster = study.model_copy(update={"engine": Engine(backend="dask")})
    scenario.run(study_on_cluster, made.BACKBONE, "oversample", joined / "oversample")
    assert files_of(joined) == files_of(alone)
    assert len(files_of(joined)) >= 12


def test_every_job_is_done_when_a_worker_is_killed(tmp_path, cluster):
    done = parallel.run_jobs(
        dies_once, [(str(tmp_path), number) for number in range(12)], "jobs", cluster.engine()
    )
    assert [number for number, _ in done] == list(range(12))
    assert (tmp_path / "died").exists()
    assert os.getpid() not in {process for _, process in done}


def ends_its_worker() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_job_that_ends_every_worker_is_an_error_and_no_endless_wait():
    import dask

    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        pytest.raises(EquipoiseError, match="A job was lost on Dask"),
    ):
        parallel.run_jobs(ends_its_worker, [(), ()], "deaths", DASK)


@rounds.one_blas_thread
def blas_threads(_: int) -> list[int]:
    return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]


@pytest.mark.parametrize("backend", ["loky", "dask"])
def test_one_blas_thread_holds_inside_workers(cluster, backend):
    engine = TWO if backend == "loky" else cluster.engine()
    counts_by_job = parallel.run_jobs(blas_threads, [(0,), (1,)], "pools", engine)
    assert {count for counts in counts_by_job for count in counts} == {1}


def meanwhile(_: int) -> int:
    """How many jobs this process had in hand at once."""
    _AT_ONCE.append(1)
    time.sleep(0.05)
    most = len(_AT_ONCE)
    _AT_ONCE.pop()
    return most


_AT_ONCE: list[int] = []
_MEETING = threading.Barrier(2)


def meets_another(_: int) -> bool:
    """Whether another job runs in this process meanwhile."""
    with contextlib.suppress(threading.BrokenBarrierError):
        _MEETING.wait(600)
    return not _MEETING.broken


def test_a_worker_with_several_threads_does_one_job_at_a_time():
    from distributed import Client, LocalCluster

    wide = LocalCluster(
        n_workers=1, threads_per_worker=4, processes=False, dashboard_address="127.0.0.1:0"
    )
    with wide, Client(wide) as client:
        here = environment.versions()
        calls = [client.submit(parallel.do_job, meanwhile, (n,), here) for n in range(8)]
        assert client.gather(calls) == [1] * 8
        assert client.gather([client.submit(meets_another, n) for n in range(2)]) == [True, True]


@pytest.mark.parametrize(
    ("package", "version", "said"),
    [
        ("numpy", "1.0", r"numpy is .+ there and 1\.0 here"),
        ("equipoise", "other code", r"equipoise is .+ there and other code here"),
    ],
)
def test_a_worker_that_runs_on_something_else_is_refused(package, version, said):
    expected = environment.versions() | {package: version}
    with pytest.raises(ConfigError, match=said):
        parallel.do_job(operator.pow, (2, 3), expected)


def test_a_worker_that_does_not_see_the_folder_is_refused(tmp_path):
    here = environment.versions()
    assert parallel.do_job(operator.pow, (2, 3), here, tmp_path) == 8
    with pytest.raises(ConfigError, match=r"A worker does not see .*nowhere\. docs/scale\.md"):
        parallel.do_job(operator.pow, (2, 3), here, tmp_path / "nowhere")


@pytest.mark.parametrize("engine", [TWO, DASK], ids=str)
def test_every_worker_must_see_the_root(tmp_path, engine):
    with pytest.raises(ConfigError, match="A worker does not see"):
        parallel.run_jobs(operator.pow, JOBS, "powers", engine, root=tmp_path / "nowhere")


def where(_: int) -> str:
    return os.getcwd()


def test_a_job_leaves_the_working_folder_of_its_worker_alone(tmp_path, cluster):
    folders = parallel.run_jobs(where, [(0,), (1,)], "folders", cluster.engine(), root=tmp_path)
    assert set(folders) == {str(cluster.folder)}


def test_what_a_worker_sees(tmp_path):
    before = parallel.seen_from(str(tmp_path))
    assert before["params.yaml"] == f"not in {tmp_path}"
    assert before.items() >= environment.versions().items()
    (tmp_path / "params.yaml").write_text("run: {}\n")
    after = parallel.seen_from(str(tmp_path))
    assert environment.difference(before, after).startswith(f"params.yaml is not in {tmp_path}")
    assert environment.difference(after, after) == ""


def test_without_distributed_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(ConfigError, match=r"pip install 'equipoise\[cluster\]'"):
        parallel.run_jobs(operator.pow, JOBS, "powers", DASK)


def test_a_scheduler_that_does_not_answer_is_named_without_its_password(monkeypatch):
    monkeypatch.setenv("EQUIPOISE_DASK_SCHEDULER", "tcp://ada:geheim@127.0.0.1:9")
    with (
        pytest.raises(ConfigError, match="No Dask scheduler answers") as caught,
        parallel.joined(DASK, answer_seconds=0.5),
    ):
        pass
    assert "geheim" not in str(caught.value)


def test_a_scheduler_without_workers_says_how_to_start_some():
    from distributed import LocalCluster

    with LocalCluster(n_workers=0, dashboard_address="127.0.0.1:0", processes=False) as empty:
        engine = Engine(backend="dask", scheduler=empty.scheduler_address)
        with (
            pytest.raises(ConfigError, match=r"no worker for 0 s.*Start some with `dask worker"),
            parallel.joined(engine, wait_seconds=0.2),
        ):
            pass


@pytest.mark.parametrize(
    ("engine", "said"),
    [
        ({"workers": 0}, "-1 .every core. or at least 1"),
        ({"workers": -2}, "workers is -2"),
        ({"backend": "ray"}, "engine.backend is 'ray'"),
        ({"scheduler": "tcp://127.0.0.1:8786"}, "only backend: dask"),
        ({"adress": "x"}, "engine.adress"),
    ],
)
def test_an_engine_that_cannot_run_is_refused(engine, said):
    with pytest.raises(ConfigError, match=said):
        config.load_study("made", {**made.params(), "engine": engine})


def test_embedding_on_dask_gives_the_bytes_of_one_process(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    params = config.read_params(REPO)
    demo = params["studies"]["demo"]
    demo["phantom"] |= {"patients": 20, "size_px": 40, "opacity_patient_fraction": 0.3}
    demo["embed"] |= {"image_size_px": 32, "views": 1, "batch_size": 8}
    study = config.load_study("demo", params, root=tmp_path)
    phantom.draw(study.raw, study.settings.phantom)
    ingest.run(study)
    embedded = study.features_path("mobilenetv2")
    features.run(study, "mobilenetv2", shard_rows=16)
    alone = files_of(embedded)
    shards = files_of(study.cache_path / "features")
    shutil.rmtree(tmp_path / "data")
    phantom.draw(study.raw, study.settings.phantom)
    ingest.run(study)
    on_dask = study.model_copy(update={"engine": Engine(backend="dask")})
    features.run(on_dask, "mobilenetv2", shard_rows=16)
    assert files_of(embedded) == alone
    made_there = files_of(study.cache_path / "features")
    kept = {name for name in shards if not name.endswith(".jsonl")}
    assert {name: made_there[name] for name in kept} == {name: shards[name] for name in kept}
    assert len(kept) >= 4
    (weights,) = set(made_there) - set(shards)
    assert weights.endswith(".keras")
