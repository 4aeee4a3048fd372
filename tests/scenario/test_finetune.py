"""Fine-tuning on drawn 40-px images: equal steps, its schedule, what stays frozen, resuming, and the decoded cache."""

import copy
import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import log_loss, roc_auc_score

from conftest import REPO
from equipoise.core import config, files, images
from equipoise.core.errors import ConfigError, DataError, TrialFailed
from equipoise.embed import backbones, embedder
from equipoise.embed import stage as features
from equipoise.evaluation import metrics
from equipoise.ingest import stage as ingest
from equipoise.ingest.datasets import phantom
from equipoise.scenario import finetune
from equipoise.scenario import pixels as pixels_
from equipoise.scenario import stage as scenario
from equipoise.scenario.matrix import Inputs
from equipoise.split import stage as splits

CHANGES = {
    "phantom": {"patients": 40, "size_px": 40, "opacity_patient_fraction": 0.3},
    "embed": {"image_size_px": 32, "views": 1, "batch_size": 16},
    "tune": {"objective": "auroc"},
    "finetune": {
        "steps": 4,
        "evaluate_every_steps": 2,
        "batch_size": 8,
        "learning_rate": 0.001,
        "stop_fraction": 0.3,
    },
}
BACKBONES = ("vgg16", "mobilenetv2")


def study_with(**changes):
    params = copy.deepcopy(config.read_params(REPO))
    for section, values in CHANGES.items():
        params["studies"]["demo"][section] = {**params["studies"]["demo"][section], **values}
    overrides = {
        f"{section}.{key}": value for section, own in changes.items() for key, value in own.items()
    }
    return config.load_study("demo", params, overrides)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder, before = tmp_path_factory.mktemp("finetune"), Path.cwd()
    os.chdir(folder)
    try:
        study = study_with()
        phantom.draw(study.raw, study.settings.phantom.model_dump())
        ingest.run(study)
        splits.run(study)
        for backbone in BACKBONES:
            features.run(study, backbone)
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(autouse=True)
def checkpoints(drawn, tmp_path, monkeypatch):
    monkeypatch.chdir(drawn)
    monkeypatch.setattr(finetune, "_CHECKPOINTS", tmp_path / "checkpoints")
    return tmp_path / "checkpoints"


def rows_of(inputs, part):
    rows = inputs.splits.round(0, 0)
    chosen = (rows["part"] == part).to_numpy()
    positions = rows["image_id"].map(
        {name: at for at, name in enumerate(inputs.manifest.table["image_id"])}
    )
    return positions.to_numpy()[chosen], rows["patient_id"].to_numpy()[chosen]


def arguments(scenario="baseline", backbone="vgg16", **changes):
    inputs = Inputs.read(study_with(**changes), backbone, scenario)
    return inputs, {"l2": 0.1}, *rows_of(inputs, "train")


def training(scenario="baseline", backbone="vgg16", seed=0, **changes):
    inputs, settings, train, patients = arguments(scenario, backbone, **changes)
    return finetune.Training(
        inputs, settings, train, finetune.held_out(inputs, train, patients), patients, seed
    )


def tuned(scenario="baseline", backbone="vgg16", seed=0, part="test", **changes):
    given = arguments(scenario, backbone, **changes)
    return finetune.run(*given, rows_of(given[0], part)[0], seed)


def as_bytes(result):
    logits, fitted, weights, _ = result
    return [value.tobytes() for value in (logits, fitted.coefficients, fitted.intercepts, *weights)]


def by_name(network, weights):
    return dict(zip((variable.path for variable in network.weights), weights))


# --- the schedule ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup_fraction", [0.0, 0.25])
def test_the_learning_rate_warms_up_and_falls_as_keras_cosine_decay(warmup_fraction):
    keras = backbones.load_keras()
    options = study_with(
        finetune={"steps": 40, "warmup_fraction": warmup_fraction}
    ).settings.finetune
    warm = int(40 * warmup_fraction)
    oracle = keras.optimizers.schedules.CosineDecay(
        0.0 if warm else 0.001, 40 - warm, warmup_target=0.001 if warm else None, warmup_steps=warm
    )
    rates = [finetune.learning_rate_at(step, options) for step in range(1, 41)]
    assert rates[:warm] == pytest.approx(
        [float(oracle(step)) for step in range(1, warm + 1)], rel=1e-5
    )
    assert rates[warm:] == pytest.approx(
        [float(oracle(step)) for step in range(warm, 40)], rel=1e-4
    )
    assert max(rates) == rates[warm] == 0.001
    assert min(rates) > 0


def test_every_scenario_takes_the_same_steps_at_the_same_rates():
    taken = {"oversample": [], "undersample": []}
    for name, steps in taken.items():
        made = training(name, finetune={"steps": 3})
        compiled = made.step
        made.step = lambda *batch, do=compiled, steps=steps: (
            steps.append((len(batch[0]), batch[-1])) or do(*batch)
        )
        list(made.evaluations())
        assert int(made.optimizer.iterations) == 3
        assert compiled.experimental_get_tracing_count() == 1
    assert taken["oversample"] == taken["undersample"]
    assert [size for size, _ in taken["oversample"]] == [8] * 3


def test_the_plan_is_drawn_anew_for_each_epoch_from_its_seed():
    first, again, other = (
        training("undersample"),
        training("undersample"),
        training("undersample", seed=1),
    )
    length = len(first.plan(0).row)
    epochs = []
    for made in (first, again, other):
        draws = made._draws()
        epochs.append([[next(draws) for _ in range(length)] for _ in range(3)])
    assert epochs[0] == epochs[1]
    assert epochs[0] != epochs[2]
    chosen = [sorted(position for position, _, _ in epoch) for epoch in epochs[0]]
    assert chosen[0] != chosen[1] != chosen[2]
    for number, positions in enumerate(chosen):
        assert positions == sorted(first.kept[first.plan(number).row])
    labels = [np.bincount(first.labels[positions]) for positions in chosen]
    assert all(counts[0] == counts[1] for counts in labels)


def test_batches_go_on_where_a_run_stopped():
    made = training("oversample")
    whole, rest = list(made.batches()), list(made.batches(3))
    assert len(whole) == 4
    assert len(rest) == 2
    for batch, same in zip(whole[2:], rest):
        for tensor, other in zip(batch, same):
            np.testing.assert_array_equal(tensor, other)


# --- what is learned -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["baseline", "class_weight"])
def test_the_loss_is_scikit_learns_weighted_log_loss_and_the_penalty(scenario):
    made = training(scenario)
    batch = next(made.batches())
    logits = made.whole(batch[0], training=False).numpy()
    labels = batch[2].numpy()
    counts = np.bincount(made.labels[made.kept])
    weights = np.ones(2) if scenario == "baseline" else counts.sum() / (2 * counts)
    expected = log_loss(
        labels, metrics.softmax(logits)[:, 1], sample_weight=weights[labels], labels=[0, 1]
    )
    penalty = 0.05 * ((made.start.coefficients[:, 1] - made.start.coefficients[:, 0]) ** 2).sum()
    assert float(made.step(*batch, np.float32(0))) == pytest.approx(expected + penalty, rel=1e-5)


def test_draws_count_by_their_weight(monkeypatch):
    made = training()
    plain = made.plan(0)
    heavy = dataclasses.replace(plain, weight=np.where(np.arange(len(plain.row)) % 2, 3.0, 1.0))
    monkeypatch.setattr(made, "plan", lambda epoch: heavy)
    pixels, _, labels, weights = (tensor.numpy() for tensor in next(made.batches()))
    assert set(weights) == {1.0, 3.0}
    prob = metrics.softmax(made.whole(pixels, training=False).numpy())[:, 1]
    expected = log_loss(labels, prob, sample_weight=weights, labels=[0, 1])
    penalty = 0.05 * ((made.start.coefficients[:, 1] - made.start.coefficients[:, 0]) ** 2).sum()
    batch = next(made.batches())
    assert float(made.step(*batch, np.float32(0))) == pytest.approx(expected + penalty, rel=1e-5)


@pytest.mark.parametrize(("unfreeze", "freeze_batch_norm"), [("last_block", True), ("all", False)])
def test_only_what_is_unfrozen_changes(unfreeze, freeze_batch_norm):
    options = {"unfreeze": unfreeze, "freeze_batch_norm": freeze_batch_norm}
    made = training(backbone="mobilenetv2", finetune=options)
    before = by_name(made.whole, made.whole.get_weights())
    list(made.evaluations())
    after = by_name(made.whole, made.whole.get_weights())
    assert set(after) == set(before)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    block = backbones.load_row("mobilenetv2").last_block if unfreeze == "last_block" else ("",)
    normalisation = {
        name for name in before if name.rsplit("/", 1)[1] in ("gamma", "beta", "moving_mean")
    }
    normalisation |= {name for name in before if name.endswith("moving_variance")}
    assert len(normalisation) == 4 * 52
    allowed = {name for name in before if name.startswith((*block, "logits"))}
    if freeze_batch_norm:
        allowed -= normalisation
    assert changed <= allowed
    # A kernel before the normalisation of a constant channel has no gradient; the rest of the block moves.
    assert len(changed) > 0.9 * len(allowed)
    assert bool(changed & normalisation) != freeze_batch_norm


def test_the_starting_weights_are_kept_when_nothing_better_comes(monkeypatch):
    made = training()
    losses = iter([0.5, 0.6, 0.7])
    evaluate = made._evaluate
    monkeypatch.setattr(
        made, "_evaluate", lambda step: dataclasses.replace(evaluate(step), loss=next(losses))
    )
    start = made.whole.get_weights()
    list(made.evaluations())
    assert made.best.step == 0
    assert all(np.array_equal(kept, first) for kept, first in zip(made.best.weights, start))
    assert not all(
        np.array_equal(last, first) for last, first in zip(made.whole.get_weights(), start)
    )


@pytest.mark.parametrize("every", [1, 4])
def test_a_diverging_run_is_a_failed_trial_and_leaves_nothing(monkeypatch, every):
    monkeypatch.setattr(finetune, "_SAVE_SECONDS", 0)
    made = training(finetune={"evaluate_every_steps": every})
    losses = iter([0.5, 0.4, np.nan, np.nan])
    monkeypatch.setattr(made, "step", lambda *batch: next(losses))
    with pytest.raises(TrialFailed, match=r"diverged at step 3: .*finetune.learning_rate"):
        list(made.evaluations())
    assert not made.checkpoint.exists()


def test_mixed_precision_without_a_gpu_is_refused():
    backbones.load_keras()
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match="sees no GPU"):
        training(finetune={"mixed_precision": True})


# --- repeating, resuming, pruning ------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes():
    assert as_bytes(tuned("oversample")) == as_bytes(tuned("oversample"))


KILLED = """
import os, pathlib, signal, sys
sys.path[:0] = [{tests!r}, {own!r}, {source!r}]
import test_finetune
from equipoise.scenario import finetune

finetune._SAVE_SECONDS, finetune._CHECKPOINTS = 0, pathlib.Path({checkpoints!r})
save = finetune.Training._save
def save_and_die(self, step):
    save(self, step)
    if step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
finetune.Training._save = save_and_die
test_finetune.tuned("oversample", finetune={{"steps": 6, "unfreeze": "all"}})
"""


def test_a_killed_run_goes_on_to_the_same_bytes(checkpoints, monkeypatch):
    options = {"steps": 6, "unfreeze": "all"}
    places = {
        "tests": REPO / "tests",
        "own": Path(__file__).parent,
        "source": REPO / "src",
        "checkpoints": checkpoints,
    }
    code = KILLED.format(**{name: str(place) for name, place in places.items()})
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (checkpoint,) = checkpoints.glob("*/state.npz")
    kept, steps = checkpoint.read_bytes(), []
    checkpoint.unlink()
    uninterrupted = as_bytes(tuned("oversample", finetune=options))
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    checkpoint.write_bytes(kept)
    at = finetune.learning_rate_at
    monkeypatch.setattr(
        finetune, "learning_rate_at", lambda step, given: steps.append(step) or at(step, given)
    )
    assert as_bytes(tuned("oversample", finetune=options)) == uninterrupted
    assert steps == [5, 6]
    assert not list(checkpoints.glob("*"))


def test_another_setting_does_not_go_on_from_a_checkpoint():
    places = {
        training(scenario, seed=seed, **changes).checkpoint
        for scenario, seed, changes in (
            ("baseline", 0, {}),
            ("oversample", 0, {}),
            ("baseline", 1, {}),
            ("baseline", 0, {"finetune": {"steps": 5}}),
            ("baseline", 0, {"augment": {"seed": 8}}),
        )
    }
    assert len(places) == 5


def trials(scenario="baseline", **changes):
    inputs, settings, train, patients = arguments(scenario, **changes)
    return finetune.Trials(inputs, train, patients, 0), settings


def test_a_trial_ends_with_the_logits_of_what_run_keeps():
    given = arguments("oversample", finetune={"steps": 5})
    trainer, settings = trials("oversample", finetune={"steps": 5})
    pairs = list(trainer.evaluations(settings))
    assert [step for step, _ in pairs] == [0, 2, 4, 5]
    train, patients = given[2:]
    assert not set(patients[trainer.held]) & set(np.delete(patients, trainer.held))
    logits, *_ = finetune.run(*given, train[trainer.held], 0)
    assert pairs[-1][1] == pytest.approx(logits, abs=1e-6)


def test_after_a_kill_every_evaluation_comes_again(monkeypatch):
    monkeypatch.setattr(finetune, "_SAVE_SECONDS", 0)
    trainer, settings = trials("oversample")
    whole = list(trainer.evaluations(settings))
    killed = trainer.evaluations(settings)
    for _ in range(3):  # the last one saved before it was seen: a checkpoint of step 4 is left
        next(killed)
    with monkeypatch.context() as patch:
        patch.setattr(finetune.Training, "forget", lambda self: None)
        killed.close()
        again = list(trainer.evaluations(settings))
    assert [step for step, _ in again] == [0, 2, 4]
    assert [logits.tobytes() for _, logits in again] == [logits.tobytes() for _, logits in whole]


def test_a_pruned_trial_leaves_no_checkpoint(checkpoints, monkeypatch):
    monkeypatch.setattr(finetune, "_SAVE_SECONDS", 0)
    trainer, settings = trials()
    seen = trainer.evaluations(settings)
    assert [next(seen)[0], next(seen)[0], next(seen)[0]] == [0, 2, 4]
    assert list(checkpoints.glob("*/state.npz"))
    seen.close()
    assert not list(checkpoints.glob("*"))


def test_a_search_that_trains_its_trials_resumes_and_its_choice_is_what_is_fitted(
    drawn, tmp_path, monkeypatch
):
    tune = {"mode": "finetune", "trials": 3, "l2_first": [0.1, 1.0]}
    study = study_with(tune=tune, train={"seeds": [0]}, finetune={"learning_rate": 0.01})
    folders = [tmp_path / "first", tmp_path / "again"]
    trained, plain = [], finetune.Training.evaluations
    monkeypatch.setattr(
        finetune.Training, "evaluations", lambda self: trained.append(1) or plain(self)
    )
    for folder in folders:
        scenario.run(study, "vgg16", "class_weight", folder)
    assert len(trained) == 3, "the second run read every trial back"
    first, again = (
        {path.name: path.read_bytes() for path in folder.glob("*.*")} for folder in folders
    )
    assert first == again
    (choice,) = files.read_json(folders[0] / "best.json")
    table, _ = files.read_table(folders[0] / "trials.parquet")
    assert table["l2"].head(2).tolist() == pytest.approx([0.1, 1.0])
    assert (table["state"].head(2) == "complete").all()
    assert choice["steps"] == table["steps"].sum() == 3 * 4 - choice["steps_saved"]
    assert (
        (table["steps"] < 4).sum() == choice["pruned_trials"] == (table["state"] == "pruned").sum()
    )
    assert choice["settings"]["l2"] == table["l2"][choice["trial"]]
    assert choice["inner_folds"] == 1
    inputs = Inputs.read(study, "vgg16", "class_weight")
    train, patients = rows_of(inputs, "train")
    held = finetune.held_out(inputs, train, patients)
    assert (choice["slice_images"], choice["slice_patients"]) == (
        len(held),
        len(set(patients[held])),
    )
    seed = scenario._seed(0, [0, 0])
    logits, *_ = finetune.run(inputs, choice["settings"], train, patients, train[held], seed)
    prob = logits[:, 1] - logits[:, 0]
    assert choice["score"] == pytest.approx(
        roc_auc_score(inputs.labels(train[held]), prob), abs=1e-6
    )


# --- the decoded cache -----------------------------------------------------------------------------------------------


@pytest.fixture
def decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(pixels_, "_DECODED", tmp_path / "decoded")
    return tmp_path / "decoded"


def test_each_image_is_decoded_once_for_all_scenarios_and_seeds(decoded, monkeypatch):
    calls, decode = [], images.decode
    monkeypatch.setattr(images, "decode", lambda *given: calls.append(1) or decode(*given))
    for name, seed in (("baseline", 0), ("oversample", 1)):
        tuned(name, seed=seed)
    inputs = Inputs.read(study_with(), "vgg16", "baseline")
    expected = len(rows_of(inputs, "train")[0]) + len(rows_of(inputs, "test")[0])
    assert len(calls) == expected == len(list(decoded.rglob("*.npy")))


def pixels_at(size_px):
    inputs = Inputs.read(study_with(), "vgg16", "baseline")
    keras = backbones.load_keras()
    shape = keras.Input((size_px, size_px, 3))
    return inputs, pixels_.Pixels(
        inputs, embedder.Embedder(keras.Model(shape, keras.layers.Flatten()(shape)), size_px)
    )


@pytest.mark.parametrize(("size_px", "kept_as"), [(32, np.float32), (40, np.uint8)])
def test_cached_pixels_are_those_of_the_embedding(decoded, size_px, kept_as):
    import tensorflow as tf

    inputs, pixels = pixels_at(size_px)
    fresh, kept = pixels(np.array([3, 0])), pixels(np.array([3, 0]))
    path = inputs.study.raw / inputs.manifest.table["path"].iloc[3]
    oracle = tf.image.resize(
        tf.io.decode_png(path.read_bytes(), 3), (size_px, size_px), antialias=True
    ).numpy()
    np.testing.assert_array_equal(fresh[0], oracle)
    np.testing.assert_array_equal(fresh, kept)
    assert {np.load(file).dtype.type for file in decoded.rglob("*.npy")} == {kept_as}


def test_a_damaged_piece_is_made_again_and_a_changed_image_refused(decoded, monkeypatch):
    _, pixels = pixels_at(32)
    before = pixels(np.array([2]))
    (file,) = decoded.rglob("*.npy")
    file.write_bytes(file.read_bytes()[:500])
    np.testing.assert_array_equal(pixels(np.array([2])), before)
    assert len(file.read_bytes()) > 500
    file.unlink()
    monkeypatch.setattr(images, "read", lambda folder, path: b"another file")
    with pytest.raises(DataError, match="not the file that ingest read"):
        pixels(np.array([2]))
