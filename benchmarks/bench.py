"""What a study costs, each figure beside what people would otherwise do, measured in pairs in one process.

python benchmarks/bench.py [--quick] [--only NAME ...] [--json benchmarks/results.json]

Weights are random and images are drawn, so nothing is downloaded. A cost that is measured on a sample and multiplied
says so in its row. On a shared machine only the ratios mean something.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image
from threadpoolctl import threadpool_limits

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "benchmarks")]

import heads as heads_
import machine as machine_

from equipoise import pipeline
from equipoise.compare import stage as compare
from equipoise.core import config
from equipoise.embed import backbones
from equipoise.embed import embedder as embedder_
from equipoise.embed import stage as features
from equipoise.evaluation import intervals, metrics
from equipoise.evaluation.resamples import patient_resamples
from equipoise.ingest import stage as ingest
from equipoise.scenario import stage as scenario
from equipoise.scenario.heads import rows as rows_
from equipoise.split import stage as splits
from equipoise.strategies.base import TrainRows, load_strategy
from fabricate import made

SCENARIOS = ["baseline", "oversample", "undersample", "class_weight", "augment", "weighted_augment"]
TRIALS, FOLDS, IMAGES, WIDTH = 30, 5, 5_000, 1_920
SOURCES = argparse.Namespace(films=None, weights=None, ready=None)  # of real features
EPOCHS = 10  # of one `model.fit`, a common choice
QUICK = False


@dataclass
class Row:
    """One line of the table; `ratio` is ours over the peer's in cost, or ours over the limit's in throughput."""

    name: str
    ours: str
    peer: str
    ratio: float | None
    target: str
    reached: bool | None
    note: str = ""


@contextlib.contextmanager
def _inside_new_folder() -> Iterator[Path]:
    before = Path.cwd()
    with tempfile.TemporaryDirectory(prefix="bench") as name:
        os.chdir(name)
        try:
            yield Path(name).resolve()
        finally:
            os.chdir(before)


def _seconds(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def _interleaved(
    first: Callable[[], Any], second: Callable[[], Any], times: int
) -> tuple[float, float]:
    """Median seconds of two things done by turns, so that what else the machine does hits both."""
    pairs = [(_seconds(first), _seconds(second)) for _ in range(times)]
    return statistics.median(pair[0] for pair in pairs), statistics.median(
        pair[1] for pair in pairs
    )


# --- passes ----------------------------------------------------------------------------------------------------------


def _phantom_study(patients: int = 60, size_px: int = 32, **embed: Any) -> config.Study:
    """Drawn images, ingested and split, in the working folder."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    params["run"] = {"studies": ["demo"], "backbones": ["mobilenetv2"], "scenarios": SCENARIOS[:3]}
    demo = params["studies"]["demo"]
    demo["phantom"] |= {"patients": patients, "opacity_patient_fraction": 0.4, "size_px": size_px}
    demo |= {
        "split": {"scheme": "kfold", "folds": 3},
        "embed": {"weights": "random", "image_size_px": size_px, "views": 2, **embed},
        "tune": {"trials": 4, "inner_folds": 3, "gain_resamples": 30, "sensitivity_floor": 0.9},
        "train": {"seeds": [0, 1]},
    }
    Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    study = config.load_study("demo")
    pipeline.draw_phantoms(study)
    ingest.run(study)
    splits.run(study)
    return study


def passes() -> list[Row]:
    """Pictures that go through the backbone in a whole study, split twice, as the store counts them."""
    with _inside_new_folder():
        study = _phantom_study()
        manifest = features.Manifest.read(study.manifest_path)
        minority = int(manifest.counts().argmin())
        distinct = manifest.table.drop_duplicates("sha256")
        expected = len(distinct) + study.settings.embed.views * int(
            (distinct["label"] == minority).sum()
        )
        names, seen = study.scenarios[:2] if QUICK else study.scenarios, 0
        for seed in (1, 2):  # a new split and a second pass over the same pictures
            changed = config.load_study("demo", overrides={"split.seed": seed})
            splits.run(changed)
            seen += features.run(changed, "mobilenetv2").passes_now
            for name in names:
                scenario.run(changed, "mobilenetv2", name)
        counted = json.loads((study.features_path("mobilenetv2") / "meta.json").read_text())[
            "passes"
        ]
    trainings = 2 * len(names) * 3 * 2 * (4 * 3 + 1)
    return [
        Row(
            "backbone passes in a study",
            f"{seen} made, {counted} kept",
            f"{expected} images x views",
            seen / expected,
            "exactly 1",
            seen == counted == expected,
            f"2 splits x {len(names)} scenarios x 4 trials x 3 inner folds x 3 folds x 2 seeds, {trainings} fits",
        )
    ]


# --- heads -----------------------------------------------------------------------------------------------------------


def heads() -> list[Row]:
    """Heads of searches, drawn and real, and a study of one round beside scikit-learn's loop."""
    with threadpool_limits(1, user_api="blas"):
        lines = heads_.drawn()
        with heads_.real_study(SOURCES) as real:
            lines += heads_.heads(real)
            lines += heads_.whole_study(heads_.one_round(real), 1)
    return [_row_of(line, "scikit-learn") for line in lines]


def keras() -> list[Row]:
    """A study of one round of real features, its pass included, beside Keras' `fit` for each trial."""
    import keras_fit

    weights = str(SOURCES.weights.resolve()) if SOURCES.weights else "random"
    with threadpool_limits(1, user_api="blas"), heads_.real_study(SOURCES) as real:
        lines = keras_fit.lines(real, weights)
    return [_row_of(line, "Keras") for line in lines]


def _row_of(line: heads_.Line, peer_name: str) -> Row:
    ratio = line.ours / line.peer
    target, reached = "", None
    if line.target is not None:
        target, reached = f"<= {_ratio(line.target)}", ratio <= line.target
    ours, peer = (f"{seconds:.4g} s" for seconds in (line.ours, line.peer))
    note = f"processor time; {line.note}".rstrip("; ")
    return Row(line.name, ours, f"{peer} {peer_name}", ratio, target, reached, note)


# --- a study ---------------------------------------------------------------------------------------------------------


@cache
def _after_embedding() -> tuple[float, float, str]:
    """Seconds of split, scenarios and comparison for 5,000 images, seconds of one scikit-learn fit, and how."""
    from sklearn.linear_model import LogisticRegression

    names = SCENARIOS[:2] if QUICK else SCENARIOS
    with _inside_new_folder() as folder:
        study = made.study(
            folder,
            patients=(2_000, 500),
            num_features=WIDTH,
            run={"scenarios": names},
            tune={
                "trials": TRIALS,
                "inner_folds": FOLDS,
                "batch_trials": 10,
                "gain_resamples": 200,
            },
            train={"seeds": [0]},
            embed={"views": 5},
        )
        path = study.features_path(made.BACKBONE) / "features.npy"
        plain = np.load(path)
        hidden, _ = heads_.correlated(len(plain), WIDTH)
        # A weak signal under correlated features, as a backbone gives them.
        np.save(path, (0.02 * plain + hidden).astype(np.float32))
        start = time.perf_counter()
        splits.run(study)
        for name in names:
            scenario.run(study, made.BACKBONE, name)
        compare.run(study)
        ours = (time.perf_counter() - start) * len(SCENARIOS) / len(names)
        count = int(IMAGES * 0.64 * 0.8)
        labels = (hidden[:count, 0] + np.random.default_rng(0).normal(size=count) > 1).astype(int)
        with threadpool_limits(1, user_api="blas"):
            rows = rows_.Standardiser.fit(hidden[:count]).apply(hidden[:count], np.float32)
            fits = [
                _seconds(
                    lambda c=c: LogisticRegression(C=c / count, max_iter=10_000).fit(rows, labels)
                )
                for c in (10.0, 100.0)  # 1 / l2
            ]
    how = f"{len(SCENARIOS)} scenarios x {TRIALS} trials x {FOLDS} inner folds, {len(plain):,} images and views"
    if QUICK:
        how += f"; {len(names)} scenarios measured and multiplied"
    return ours, statistics.fmean(fits), how


@cache
def _images_per_second() -> dict[str, float]:
    """Images per second: a DenseNet201 pass at 224 px, and a training step of `model.fit` on top of it, frozen."""
    keras = backbones.load_keras()
    number = 32 if QUICK else 128
    pixels = np.random.default_rng(0).integers(0, 256, (number, 224, 224, 3)).astype(np.float32)
    labels = (np.arange(number) % 5 == 0).astype(int)
    network = backbones.build("densenet201", "random", 224)
    embedder = embedder_.Embedder(network, 224)
    network.trainable = False
    usual = keras.Sequential([network, keras.layers.Dense(1, activation="sigmoid")])
    usual.compile("adam", "binary_crossentropy")

    def embed() -> None:
        for start in range(0, number, 32):
            embedder.features(pixels[start : start + 32])

    def fit() -> None:
        usual.fit(pixels, labels, batch_size=32, verbose=0)

    with _inside_new_folder() as folder:
        for index, picture in enumerate(pixels.astype(np.uint8)):
            path = folder / "images" / str(labels[index]) / f"{index}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(path)
        dataset = keras.utils.image_dataset_from_directory(
            str(folder / "images"),
            label_mode="binary",
            image_size=(224, 224),
            batch_size=32,
            verbose=False,
        )

        def fit_files() -> None:
            usual.fit(dataset, verbose=0)

        for warm in (embed, fit, fit_files):
            warm()
        turns = [
            (_seconds(embed), _seconds(fit), _seconds(fit_files)) for _ in range(1 if QUICK else 2)
        ]
    rates = number / np.median(np.array(turns), axis=0)
    return dict(zip(("pass", "fit", "fit_files"), rates.tolist())) | {"sample": number}


def study() -> list[Row]:
    """A whole study beside one pass, and beside the usual ways."""
    from imblearn.over_sampling import RandomOverSampler

    after, one_fit, how = _after_embedding()
    rates = _images_per_second()
    one_pass = IMAGES / rates["pass"]
    views = 5 * IMAGES // 5  # of the minority, a fifth of the images
    whole = after + (IMAGES + views) / rates["pass"]
    fits = len(SCENARIOS) * TRIALS * FOLDS
    inside = IMAGES * 0.64 * (FOLDS - 1) / FOLDS  # train images of one inner fold
    flat = np.zeros((256, 224 * 224 * 3), np.float32)
    few = (np.arange(256) % 5 == 0).astype(int)
    copying = _seconds(lambda: RandomOverSampler(random_state=0).fit_resample(flat, few)) / 256
    balanced = 1.6 * inside  # 80 : 20 made 80 : 80
    blog = fits * (inside * copying + EPOCHS * balanced / rates["fit"])
    keras_way = fits * EPOCHS * inside / rates["fit_files"]
    sample = f"rate measured on {rates['sample']} images and multiplied"
    return [
        Row(
            "everything after embedding / one DenseNet201 pass",
            f"{after:.0f} s",
            f"{one_pass:.0f} s",
            after / one_pass,
            "<= 0.3",
            after / one_pass <= 0.3,
            f"{how}; the pass over 5,000 plain images at 224 px: {sample}",
        ),
        Row(
            "whole study / array, RandomOverSampler, model.fit",
            f"{whole:.0f} s",
            f"{blog / 3600:.0f} h",
            whole / blog,
            "<= 1/500",
            whole / blog <= 1 / 500,
            f"ours: after embedding and the pass with views; theirs: {fits} fits of {EPOCHS} epochs, {sample}",
        ),
        Row(
            "whole study / image_dataset_from_directory, fit",
            f"{whole:.0f} s",
            f"{keras_way / 3600:.0f} h",
            whole / keras_way,
            "",
            None,
            f"{fits} fits of {EPOCHS} epochs on frozen DenseNet201, nothing oversampled, {sample}",
        ),
        Row(
            "everything after embedding / scikit-learn in a loop",
            f"{after:.0f} s",
            f"{fits * one_fit:.0f} s",
            after / (fits * one_fit),
            "",
            None,
            f"{fits} LogisticRegression fits on the features and nothing else; 2 fits measured and multiplied",
        ),
    ]


# --- plan ------------------------------------------------------------------------------------------------------------


def plan() -> list[Row]:
    """Oversampling as a list of rows beside oversampling as copies of files."""
    strategy = load_strategy("oversample").of({"target_fraction": 1.0})
    labels = (np.arange(IMAGES) % 5 == 0).astype(int)
    picture = np.random.default_rng(0).integers(0, 256, (224, 224, 3)).astype(np.uint8)

    def drawn(labels: np.ndarray) -> Any:
        return strategy.plan(TrainRows(labels, 2, 0, 0))

    with _inside_new_folder() as folder:
        source = folder / "source"
        source.mkdir()
        Image.fromarray(picture).save(folder / "one.jpg")
        for index in np.flatnonzero(labels):
            shutil.copy(folder / "one.jpg", source / f"{index}.jpg")
        added = np.repeat(
            np.arange(IMAGES), np.maximum(np.bincount(drawn(labels).row, minlength=IMAGES) - 1, 0)
        )

        def copy() -> None:
            shutil.rmtree("copies", ignore_errors=True)
            Path("copies").mkdir()
            for number, index in enumerate(added):
                shutil.copy(source / f"{index}.jpg", f"copies/{number}_{index}.jpg")

        before = set(folder.rglob("*"))
        ours, peer = _interleaved(lambda: drawn(labels), copy, 3)
        left = [
            path
            for path in set(folder.rglob("*")) - before
            if path.parent.name != "copies" and path.is_file()
        ]
        copied = sum(path.stat().st_size for path in Path("copies").iterdir())
    million = statistics.median(
        _seconds(lambda: drawn((np.arange(1_000_000) % 5 == 0).astype(int))) for _ in range(3)
    )
    return [
        Row(
            "oversampling plan of 5,000 images / shutil copies",
            f"{ours * 1e3:.1f} ms, {sum(path.stat().st_size for path in left)} bytes",
            f"{peer * 1e3:.0f} ms, {copied / 1e6:.0f} MB",
            ours / peer,
            "0 image bytes",
            not left,
            f"{len(added)} draws added, JPEG of 224 px",
        ),
        Row("plan of 1,000,000 rows", f"{million:.2f} s", "", None, "<= 1 s", million <= 1),
    ]


# --- start -----------------------------------------------------------------------------------------------------------

_FIRST_TRIAL = """
import os, sys, time
from equipoise import cli
from equipoise.scenario.heads import solver
solve = solver.search
def first(*arguments):
    solve(*arguments)
    print(time.time() - float(sys.argv[1]), "tensorflow" in sys.modules, flush=True)
    os._exit(0)
solver.search = first
cli.main(["scenario", "--study", "demo", "--backbone", "mobilenetv2", "--scenario", "oversample"])
"""


#: What is aimed at: processor seconds of the imports of a stage, and of `track` with nothing to do.
_IMPORTS_TARGET, _NOTHING_TO_DO_TARGET = 1.5, 3.0
_STAGES = ("ingest", "split", "embed", "scenario", "compare")


def _imports(environment: dict[str, str]) -> Row:
    """Processor time of the imports of the stage that imports most, the interpreter's start included."""
    spent = {}
    for stage in _STAGES:
        code = f"import time, equipoise.cli, equipoise.{stage}.stage; print(time.process_time())"
        command = [sys.executable, "-c", code]
        told = [subprocess.check_output(command, env=environment) for _ in range(3)]
        spent[stage] = min(float(seconds) for seconds in told)
    most = max(spent, key=lambda stage: spent[stage])
    return Row(
        "imports of a stage",
        f"{spent[most]:.2f} s ({most})",
        "",
        None,
        f"<= {_IMPORTS_TARGET} s",
        spent[most] <= _IMPORTS_TARGET,
        "processor time, the least of three; "
        + ", ".join(f"{stage} {seconds:.2f} s" for stage, seconds in spent.items()),
    )


def _nothing_to_do(environment: dict[str, str]) -> Row:
    """Processor time of `track` where every result is in the store; the working folder holds a tracked study."""
    command = [sys.executable, "-m", "equipoise", "track", "--study", "demo"]
    seconds = []
    for _ in range(4):
        process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise RuntimeError(f"track ended with {os.waitstatus_to_exitcode(status)}")
        seconds.append(usage.ru_utime + usage.ru_stime)
    spent = min(seconds[1:])  # the first one had something to do
    return Row(
        "track with nothing to do",
        f"{spent:.2f} s",
        "",
        None,
        f"<= {_NOTHING_TO_DO_TARGET} s",
        spent <= _NOTHING_TO_DO_TARGET,
        "processor time, the least of three",
    )


def start() -> list[Row]:
    """What starting costs: `--help`, a scenario until its first trials are solved, imports, `track` again."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "equipoise", "--help"]

    def helped() -> None:
        subprocess.run(command, env=environment, capture_output=True, check=True)

    def bare() -> None:
        subprocess.run([sys.executable, "-c", "pass"], env=environment, check=True)

    helped()
    helping, nothing = _interleaved(helped, bare, 5)
    with _inside_new_folder():
        features.run(_phantom_study(), "mobilenetv2")
        trials = []
        for _ in range(3):
            done = subprocess.run(
                [sys.executable, "-c", _FIRST_TRIAL, str(time.time())],
                **{"env": environment, "capture_output": True, "text": True},
            )
            if done.returncode or not done.stdout.strip():
                raise RuntimeError(done.stderr)
            trials.append(done.stdout.split()[-2:])
            shutil.rmtree("data/cache/searches", ignore_errors=True)
        scenario.run(config.load_study("demo"), "mobilenetv2", "oversample")
        nothing_to_do = _nothing_to_do(environment)
    first = statistics.median(float(seconds) for seconds, _ in trials)
    loaded = any(flag == "True" for _, flag in trials)
    return [
        Row(
            "equipoise --help",
            f"{helping:.2f} s",
            f"{nothing:.2f} s bare Python",
            helping / nothing,
            "<= 0.5 s",
            helping <= 0.5,
        ),
        Row(
            "probe scenario: start to first trials solved",
            f"{first:.1f} s, TensorFlow {'imported' if loaded else 'not imported'}",
            "",
            None,
            "<= 6 s, no TensorFlow",
            first <= 6 and not loaded,
        ),
        _imports(environment),
        nothing_to_do,
    ]


# --- memory ----------------------------------------------------------------------------------------------------------

_SCENARIO = """
import re, sys, threading
import optuna, pandas, scipy.linalg, sklearn.linear_model
from equipoise.core import config
from equipoise.scenario import stage as scenario

def anonymous_bytes():
    return 1024 * int(re.search(r"RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1])

before, seen, over = anonymous_bytes(), [0], threading.Event()

def watch():
    while not over.wait(0.02):
        seen[0] = max(seen[0], anonymous_bytes())

threading.Thread(target=watch, daemon=True).start()
scenario.run(config.load_study("made"), sys.argv[1], "class_weight")
print(before, seen[0])
"""


def memory() -> list[Row]:
    """Peak anonymous memory of one scenario process (Linux) beside the size of its feature file."""
    people = 3_000 if QUICK else 60_000
    with _inside_new_folder() as folder:
        study = made.study(
            folder,
            patients=(people, people // 4),
            run={"scenarios": ["class_weight"]},
            tune={"trials": 2, "inner_folds": 2, "batch_trials": 2},
            train={"seeds": [0]},
            embed={"views": 0},
        )
        path = study.features_path(made.BACKBONE) / "features.npy"
        narrow, rng = np.load(path), np.random.default_rng(0)
        wide = np.lib.format.open_memmap(path, "w+", np.float32, (len(narrow), WIDTH))
        for block in rows_.blocks(len(narrow)):
            wide[block] = rng.standard_normal((block.stop - block.start, WIDTH), dtype=np.float32)
            wide[block, : narrow.shape[1]] = narrow[block]
        size = path.stat().st_size
        del wide
        start = time.perf_counter()
        done = subprocess.run(
            [sys.executable, "-c", _SCENARIO, made.BACKBONE],
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            capture_output=True,
            text=True,
        )
        seconds = time.perf_counter() - start
        if done.returncode:
            raise RuntimeError(done.stderr)
    before, peak = map(int, done.stdout.split()[-2:])
    return [
        Row(
            "memory of a scenario / its feature file",
            f"{(peak - before) / 1e6:.0f} MB above {before / 1e6:.0f} MB at start",
            f"{size / 1e6:.0f} MB file",
            (peak - before) / size,
            "bounded by the batch",
            peak - before < size,
            f"peak anonymous memory (RssAnon), {seconds:.0f} s; pages of files count as the system's own",
        )
    ]


# --- bootstrap -------------------------------------------------------------------------------------------------------


def bootstrap() -> list[Row]:
    """Patient bootstrap of the rank metrics beside a loop over resamples with scikit-learn, one thread each."""
    from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

    images, resamples, floor = 5_840, 2_000, 0.95
    kinds = (
        "auroc",
        "average_precision",
        "specificity_at_sensitivity",
        "sensitivity_at_specificity",
    )
    names = [metrics.Endpoint("free", name) for name in kinds]
    settings = made.settings(compare={"resamples": resamples}).compare
    rng = np.random.default_rng(0)
    people = rng.integers(2_800, size=images)
    labels = (people % 4 != 0).astype(int)
    results = [
        made.predictions(
            rng.normal(size=images) + 2 * labels, labels, np.char.add("p", people.astype(str))
        )
        for _ in SCENARIOS
    ]
    ids = results[0].table["patient_id"].to_numpy()
    patients, drawn = patient_resamples(ids, labels, resamples, settings.seed)
    at_large = patient_resamples(ids, labels, resamples, settings.seed, at_large=True)
    column = np.searchsorted(patients, ids)

    def one(scores: np.ndarray, resample: int) -> tuple[float, ...]:
        weights = drawn[resample, column].astype(float)
        area = roc_auc_score(labels, scores, sample_weight=weights)
        of_mix = at_large.drawn[resample, column].astype(float)
        precision = average_precision_score(labels, scores, sample_weight=of_mix)
        alarms, found, _ = roc_curve(labels, scores, sample_weight=weights, drop_intermediate=False)
        # Between the middles of two steps: NumPy's quantile over the images of each class.
        positives, negatives = weights @ labels, weights @ (1 - labels)
        newly_found = np.rint(np.diff(found) * positives).astype(int)
        new_alarms = np.rint(np.diff(alarms) * negatives).astype(int)
        of_positives = np.repeat(alarms[1:], newly_found)
        of_negatives = np.repeat(found[1:], new_alarms)
        ends = (
            1 - np.quantile(of_positives, floor, method="hazen"),
            np.quantile(of_negatives, 1 - floor, method="hazen"),
        )
        return float(area), float(precision), *map(float, ends)

    sample = range(1, 5 if QUICK else 21)
    with threadpool_limits(1, user_api="blas"):
        ours, peer, apart = 0.0, 0.0, 0.0
        for result in results:
            start = time.perf_counter()
            evaluation = intervals.evaluate(result, settings, floor, names)
            middle = time.perf_counter()
            scores = result.probabilities("prob")[:, 1]
            theirs = np.array([one(scores, resample) for resample in sample])
            peer += (time.perf_counter() - middle) * resamples / len(sample)
            ours += middle - start
            mine = np.stack([evaluation.draws[name][sample] for name in names], axis=1)
            apart = max(apart, float(np.abs(mine - theirs).max()))
    return [
        Row(
            f"bootstrap of {len(kinds)} rank metrics, {images:,} x {resamples:,} x {len(SCENARIOS)}",
            f"{ours:.1f} s",
            f"{peer:.0f} s scikit-learn",
            ours / peer,
            "<= 1/20",
            ours / peer <= 1 / 20 and apart < 1e-9,
            f"resamples included; scikit-learn on {len(sample)} resamples of each result, multiplied; "
            f"values at most {apart:.0e} apart",
        )
    ]


# --- measured by their own files -------------------------------------------------------------------------------------


def embed() -> list[Row]:
    """What an image costs `embed`, beside the backbone fed from memory and decoding alone, taken together."""
    import embed_speed

    with _inside_new_folder():
        study = _phantom_study(40 if QUICK else 150, 224, views=0)
        measured = embed_speed.rounds(study, 3 if QUICK else 5)
    _, processor, _ = np.moveaxis(measured, 2, 0)
    from_memory, decoding, whole = 1000 * np.median(processor, axis=0)
    ratio = float(np.median((processor[:, 0] + processor[:, 1]) / processor[:, 2]))
    return [
        Row(
            "from memory plus decoding / embed",
            f"{whole:.1f} ms an image",
            f"{from_memory + decoding:.1f} ms",
            ratio,
            ">= 0.95",
            ratio >= 0.95,
            f"processor time; MobileNetV2, drawn PNG of 224 px: {from_memory:.1f} ms from memory, "
            f"{decoding:.1f} ms decoding alone; median of ratios",
        )
    ]


def _finetune_script(name: str, size_px: int, steps: int) -> np.ndarray:
    """Of each round that a script prints: two speeds, and their ratio by the clock and by processor time."""
    with _inside_new_folder():
        features.run(_phantom_study(60, size_px), "vgg16")
        command = [
            sys.executable,
            str(ROOT / "benchmarks" / name),
            "--rounds",
            "2" if QUICK else "5",
        ]
        done = subprocess.run(
            [*command, "--steps", str(steps)],
            env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
            capture_output=True,
            text=True,
        )
    columns = r" +([\d.]+)" * 4
    measured = np.array(re.findall(rf"^ +\d+{columns}", done.stdout, re.MULTILINE), dtype=float)
    if done.returncode or not len(measured):
        raise RuntimeError(done.stderr or done.stdout)
    return measured


def finetune() -> list[Row]:
    """Fine-tune step throughput beside the same step on a constant batch, and beside Keras' fit from pixels."""
    in_memory = _finetune_script("finetune_speed.py", 64, 10 if QUICK else 20)
    constant, ours, ratio, of_processor = np.median(in_memory, axis=0).tolist()
    beside_fit = _finetune_script("finetune.py", 224, 2 if QUICK else 5)
    cached, fitted, by_clock, by_processor = np.median(beside_fit, axis=0).tolist()
    return [
        Row(
            "fine-tune steps / on a constant batch in memory",
            f"{ours:.0f} images/s",
            f"{constant:.0f} images/s",
            ratio,
            ">= 0.90",
            ratio >= 0.9,
            f"VGG16 at 64 px; median of ratios; by processor time {of_processor:.2f}",
        ),
        Row(
            "fine-tune steps from activations / Keras fit of the same block from pixels",
            f"{cached:.1f} steps/s",
            f"{fitted:.1f} steps/s",
            by_clock,
            ">= 3.5",
            by_clock >= 3.5,
            f"VGG16 at 224 px; median of ratios; by processor time {by_processor:.2f}",
        ),
    ]


ROWS = {
    function.__name__: function
    for function in (passes, embed, heads, keras, study, plan, bootstrap, finetune, start, memory)
}


def machine() -> dict[str, Any]:
    """Where and with what it was measured."""
    packages = (
        "equipoise",
        "numpy",
        "scipy",
        "scikit-learn",
        "imbalanced-learn",
        "tensorflow",
        "keras",
        "optuna",
    )
    versions = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    return {
        "date": datetime.date.today().isoformat(),
        "processor": machine_.processor(),
        "products": machine_.products(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "load_before": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "system": platform.system(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _ratio(value: float | None) -> str:
    return "" if value is None else f"1/{1 / value:.1f}" if 0 < value < 0.2 else f"{value:.2f}"


def show(rows: list[Row]) -> None:
    """Print a Markdown table and the notes below it."""
    print("\n| what | ours | peer | ratio | target | reached |\n|---|---|---|---|---|---|")
    for row in rows:
        reached = {True: "yes", False: "no", None: "-"}[row.reached]
        print(
            f"| {row.name} | {row.ours} | {row.peer} | {_ratio(row.ratio)} | {row.target} | {reached} |"
        )
    print()
    for row in rows:
        if row.note:
            print(f"* {row.name}: {row.note}.")


def main() -> int:
    """Measure the chosen rows, print them and write JSON."""
    global QUICK, SOURCES
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="smaller samples, about 2 minutes")
    parser.add_argument(
        "--only", nargs="+", choices=ROWS, default=list(ROWS), metavar="NAME", help=", ".join(ROWS)
    )
    parser.add_argument(
        "--json", type=Path, default=ROOT / "benchmarks" / "results.json", help="file to write"
    )
    heads_.add_sources(parser)
    options = parser.parse_args()
    QUICK = options.quick
    SOURCES = options
    print(machine_.described())
    about = {**machine(), "quick": QUICK}
    target, rows, failed, begin = options.json.resolve(), [], 0, time.perf_counter()
    for name in options.only:
        started = time.perf_counter()
        try:
            rows += ROWS[name]()
        except Exception as error:  # one broken row must not cost the others
            traceback.print_exc()
            failed += 1
            rows.append(Row(name, "", "", None, "", False, f"failed: {error}"))
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    about["seconds"] = round(time.perf_counter() - begin)
    show(rows)
    print(json.dumps(about))
    target.write_text(
        json.dumps({**about, "rows": [asdict(row) for row in rows]}, indent=2) + "\n",
        encoding="utf-8",
    )
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
