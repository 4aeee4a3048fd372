"""Fine-tuning on drawn 40-px images: equal steps, its schedule, what is learned and what stays, resuming, caches."""

import copy
import dataclasses
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss, roc_auc_score
from sklearn.preprocessing import StandardScaler

from conftest import REPO
from equipoise.core import config, files, images
from equipoise.core.documents import Choices
from equipoise.core.errors import ConfigError, DataError, TrialFailed
from equipoise.embed import backbones, blocks, cut, embedder, passes
from equipoise.embed import stage as features
from equipoise.evaluation import metrics
from equipoise.ingest import stage as ingest
from equipoise.ingest.datasets import phantom
from equipoise.scenario import fitting
from equipoise.scenario import stage as scenario
from equipoise.scenario.finetuning import activations as kept_activations
from equipoise.scenario.finetuning import finetune
from equipoise.scenario.finetuning import network as networks
from equipoise.scenario.finetuning import steps as stepping
from equipoise.scenario.finetuning.activations import Activations
from equipoise.scenario.finetuning.checkpoint import (
    Checkpoint,
    Evaluation,
    KeptWeights,
    Losses,
    TrainingState,
)
from equipoise.scenario.finetuning.pixels import Pixels
from equipoise.scenario.matrix import Inputs
from equipoise.split import stage as splits

CHANGES = {
    "phantom": {"patients": 40, "size_px": 40, "opacity_patient_fraction": 0.3},
    "split": {"scheme": "holdout", "repeats": 1, "test_fraction": 0.35, "val_fraction": 0.25},
    "train": {"seeds": [0, 1]},
    "embed": {"image_size_px": 32, "views": 1, "views_of": "all", "batch_size": 16},
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


def study_with(folder, **changes):
    params = copy.deepcopy(config.read_params(REPO))
    for section, values in CHANGES.items():
        params["studies"]["demo"][section] = {**params["studies"]["demo"][section], **values}
    overrides = {
        f"{section}.{key}": value for section, own in changes.items() for key, value in own.items()
    }
    return config.load_study("demo", params, overrides, root=folder)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A folder with the drawn images, their manifest, split and features."""
    folder, before = tmp_path_factory.mktemp("finetune"), Path.cwd()
    os.chdir(folder)
    try:
        study = study_with(folder)
        phantom.draw(study.raw, study.settings.phantom)
        ingest.run(study)
        splits.run(study)
        for backbone in BACKBONES:
            features.run(study, backbone)
    finally:
        os.chdir(before)
    return folder


@pytest.fixture(autouse=True)
def checkpoints(drawn, monkeypatch):
    """The folder of the checkpoints, which no test leaves to the next."""
    monkeypatch.chdir(drawn)
    folder = drawn / "data/cache/finetune"
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def rows_of(inputs, part):
    rows = inputs.splits.round(0, 0)
    chosen = (rows["part"] == part).to_numpy()
    positions = rows["image_id"].map(
        {name: at for at, name in enumerate(inputs.manifest.table["image_id"])}
    )
    return positions.to_numpy()[chosen], rows["patient_id"].to_numpy()[chosen]


def inputs_of(folder, scenario="baseline", backbone="vgg16", **changes):
    return Inputs.read(study_with(folder, **changes), backbone, scenario)


def task_of(inputs, seed=0, save_seconds=finetune.SAVE_SECONDS):
    train, patients = rows_of(inputs, "train")
    return finetune.Task.of(inputs, {"l2": 0.1}, train, patients, seed, save_seconds)


def training(folder, *names, seed=0, save_seconds=finetune.SAVE_SECONDS, **changes):
    inputs = inputs_of(folder, *names, **changes)
    return finetune.Training(inputs, task_of(inputs, seed, save_seconds))


def tuned(folder, *names, seed=0, save_seconds=finetune.SAVE_SECONDS, **changes):
    """Fine-tune and predict the test images."""
    inputs = inputs_of(folder, *names, **changes)
    images, _ = rows_of(inputs, "test")
    return finetune.fine_tune(inputs, task_of(inputs, seed, save_seconds), images)


def with_loss(loss_at):
    """`Training.evaluate` with another loss on the slice, by the step."""
    evaluate = finetune.Training.evaluate
    return lambda self, step: dataclasses.replace(evaluate(self, step), loss=loss_at(step))


def fall(step):
    return -step


def as_bytes(result):
    arrays = [result.logits, result.head.coefficients, result.head.intercepts, *result.weights]
    return [array.tobytes() for array in arrays]


def by_name(network, weights):
    return dict(zip((variable.path for variable in network.weights), weights))


# --- the schedule ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup_fraction", [0.0, 0.25])
def test_the_learning_rate_warms_up_and_falls_as_keras_cosine_decay(drawn, warmup_fraction):
    keras = backbones.load_keras()
    study = study_with(drawn, finetune={"steps": 40, "warmup_fraction": warmup_fraction})
    options = study.settings.finetune
    warm = int(40 * warmup_fraction)
    oracle = keras.optimizers.schedules.CosineDecay(
        0.0 if warm else 0.001, 40 - warm, warmup_target=0.001 if warm else None, warmup_steps=warm
    )
    rates = [stepping.learning_rate_at(step, options) for step in range(1, 41)]
    assert rates[:warm] == pytest.approx(
        [float(oracle(step)) for step in range(1, warm + 1)], rel=1e-5
    )
    assert rates[warm:] == pytest.approx(
        [float(oracle(step)) for step in range(warm, 40)], rel=1e-4
    )
    assert max(rates) == rates[warm] == 0.001
    assert min(rates) > 0


def test_every_scenario_takes_the_same_steps_at_the_same_rates(drawn):
    taken = {"oversample": [], "undersample": []}
    for name, steps in taken.items():
        made = training(drawn, name, finetune={"steps": 3})
        compiled = made.step
        made.step = lambda *batch, do=compiled, steps=steps: (
            steps.append((len(batch[1]), batch[-1])) or do(*batch)
        )
        list(made.evaluations())
        assert int(made.optimizer.iterations) == 3
        assert compiled.experimental_get_tracing_count() == 1
    assert taken["oversample"] == taken["undersample"]
    assert [size for size, _ in taken["oversample"]] == [8] * 3


def test_the_plan_is_drawn_anew_for_each_epoch_from_its_seed(drawn):
    first = training(drawn, "undersample")
    again = training(drawn, "undersample")
    other = training(drawn, "undersample", seed=1)
    length = len(first.plan(0).row)
    epochs = []
    for made in (first, again, other):
        draws = made.draws()
        epochs.append([[next(draws) for _ in range(length)] for _ in range(3)])
    assert epochs[0] == epochs[1]
    assert epochs[0] != epochs[2]
    chosen = [sorted(position for position, _, _ in epoch) for epoch in epochs[0]]
    assert chosen[0] != chosen[1] != chosen[2]
    for number, positions in enumerate(chosen):
        assert positions == sorted(first.kept[first.plan(number).row])
    labels = [np.bincount(first.labels[positions]) for positions in chosen]
    assert all(counts[0] == counts[1] for counts in labels)


def test_batches_go_on_where_a_run_stopped(drawn):
    made = training(drawn, "oversample")
    whole, rest = list(made.batches()), list(made.batches(3))
    assert len(whole) == 4
    assert len(rest) == 2
    for batch, same in zip(whole[2:], rest):
        for tensor, other in zip((*batch.inputs, *batch[1:]), (*same.inputs, *same[1:])):
            np.testing.assert_array_equal(tensor, other)


# --- what is learned -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scenario", ["baseline", "class_weight"])
def test_the_loss_is_scikit_learns_weighted_log_loss_and_the_penalty(drawn, scenario):
    made = training(drawn, scenario)
    batch = next(made.batches())
    logits = made.reader.graph(*batch.inputs).numpy()
    labels = batch.labels.numpy()
    counts = np.bincount(made.labels[made.kept])
    weights = np.ones(2) if scenario == "baseline" else counts.sum() / (2 * counts)
    expected = log_loss(
        labels, metrics.softmax(logits)[:, 1], sample_weight=weights[labels], labels=[0, 1]
    )
    penalty = 0.05 * ((made.start.coefficients[:, 1] - made.start.coefficients[:, 0]) ** 2).sum()
    assert float(made.step(*batch, np.float32(0))) == pytest.approx(expected + penalty, rel=1e-5)


PATCHES_PX = 48


def draw_patches(path, alike, generator):
    """Two halves of stripes that run alike or crosswise: the mean of features over the picture hardly tells which."""
    down, right = np.mgrid[:PATCHES_PX, :PATCHES_PX]
    first = generator.integers(2)
    halves = []
    for runs_down in (first, first if alike else 1 - first):
        along = down if runs_down else right
        halves.append(np.sin(along * 2 * np.pi / 4 + generator.uniform(0, 2 * np.pi)))
    stripes = np.where(right < PATCHES_PX // 2, *halves)
    grey = 128 + 40 * stripes + 20 * generator.normal(size=stripes.shape)
    Image.fromarray(np.clip(grey, 0, 255).astype(np.uint8)).save(path)


def test_the_block_learns_what_a_head_on_its_features_cannot_tell(tmp_path, monkeypatch):
    """At the learning rates that are shipped."""
    monkeypatch.chdir(tmp_path)
    shipped = config.read_params(REPO)["defaults"]["finetune"]
    rates = {key: shipped[key] for key in ("learning_rate", "head_learning_rate")}
    params = copy.deepcopy(config.read_params(REPO))
    demo = params["studies"]["demo"]
    demo["phantom"] |= {"patients": 400, "mean_images_per_patient": 1.0, "size_px": PATCHES_PX}
    demo["phantom"]["opacity_patient_fraction"] = 0.5
    demo["split"] = {"scheme": "holdout", "repeats": 1, "test_fraction": 0.3, "val_fraction": 0.1}
    demo["embed"] |= {"image_size_px": PATCHES_PX, "views": 0, "batch_size": 32}
    demo["finetune"] = {"steps": 80, "evaluate_every_steps": 20, "stop_fraction": 0.2, **rates}
    study = config.load_study("demo", params, {}, root=tmp_path)
    phantom.draw(study.raw, study.settings.phantom)
    generator = np.random.default_rng(0)
    for path in sorted(study.raw.rglob("*.png")):
        draw_patches(path, path.parent.name == "opacity", generator)
    ingest.run(study)
    splits.run(study)
    features.run(study, "vgg16")
    inputs = Inputs.read(study, "vgg16", "baseline")
    test, _ = rows_of(inputs, "test")
    labels = inputs.labels(test)
    task = task_of(inputs)
    on_all = finetune.Training(inputs, task.on_all(last_step=0))
    of_probe = on_all.start.logits(inputs.features(test))
    result = finetune.fine_tune(inputs, task, test)
    before, after = (
        roc_auc_score(labels, logits[:, 1] - logits[:, 0]) for logits in (of_probe, result.logits)
    )
    assert result.kept_step > 0
    assert before < 0.95
    assert after > before + 0.04, "a twentieth of all pairs changes its order, of 121 pictures"


@pytest.mark.parametrize("backbone", BACKBONES)
def test_a_start_that_is_not_the_best_is_left(drawn, monkeypatch, backbone):
    """With batch normalisation that stays as it is, and without any."""
    monkeypatch.setattr(
        finetune.head,
        "fit",
        lambda features, *given, standardiser, **more: networks.Head(
            standardiser,
            coefficients=np.zeros((len(standardiser.kept), 2)),
            intercepts=np.zeros(2),
            gradient_norm=0.0,
        ),
    )
    rates = {"learning_rate": 0.00001, "head_learning_rate": 0.0003, "average_decay": 0.5}
    options = {"steps": 30, "evaluate_every_steps": 10, **rates}
    inputs = inputs_of(drawn, "baseline", backbone, finetune=options)
    table = inputs.manifest.table
    table["label"] = halves_of(inputs.features(np.arange(len(table))))
    made = finetune.Training(inputs, task_of(inputs))
    made.finish()
    assert made.curve[0].slice_loss == pytest.approx(np.log(2))
    assert made.best.step > 0
    assert made.best.loss < 0.8 * np.log(2)


def halves_of(features):
    """Classes that features tell at once: below and above the median of their first principal component."""
    varying = features[:, features.std(0) > 0].astype(float)
    scores = PCA(1).fit_transform(StandardScaler().fit_transform(varying))[:, 0]
    return (scores > np.median(scores)).astype(int)


def test_draws_count_by_their_weight(drawn, monkeypatch):
    made = training(drawn)
    plain = made.plan(0)
    heavy = dataclasses.replace(plain, weight=np.where(np.arange(len(plain.row)) % 2, 3.0, 1.0))
    monkeypatch.setattr(made, "plan", lambda epoch: heavy)
    inputs, labels, weights = next(made.batches())
    labels, weights = labels.numpy(), weights.numpy()
    assert set(weights) == {1.0, 3.0}
    prob = metrics.softmax(made.reader.graph(*inputs).numpy())[:, 1]
    expected = log_loss(labels, prob, sample_weight=weights, labels=[0, 1])
    penalty = 0.05 * ((made.start.coefficients[:, 1] - made.start.coefficients[:, 0]) ** 2).sum()
    batch = next(made.batches())
    assert float(made.step(*batch, np.float32(0))) == pytest.approx(expected + penalty, rel=1e-5)


@pytest.mark.parametrize(("unfreeze", "freeze_batch_norm"), [("last_block", True), ("all", False)])
def test_only_what_is_unfrozen_changes(drawn, unfreeze, freeze_batch_norm):
    options = {"unfreeze": unfreeze, "freeze_batch_norm": freeze_batch_norm}
    made = training(drawn, "baseline", "mobilenetv2", finetune=options)
    before = by_name(made.network, made.network.get_weights())
    list(made.evaluations())
    after = by_name(made.network, made.network.get_weights())
    assert set(after) == set(before)
    changed = {name for name in before if not np.array_equal(before[name], after[name])}
    block = ("",)
    if unfreeze == "last_block":
        block = tuple(f"{name}/" for name in blocks.last_block(made.backbone))
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


def test_the_starting_weights_are_kept_when_nothing_better_comes(drawn, monkeypatch):
    made = training(drawn)
    losses = iter([0.5, 0.6, 0.7])
    evaluate = made.evaluate
    monkeypatch.setattr(
        made, "evaluate", lambda step: dataclasses.replace(evaluate(step), loss=next(losses))
    )
    start = made.network.get_weights()
    list(made.evaluations())
    assert made.best.step == 0
    assert all(np.array_equal(kept, first) for kept, first in zip(made.best.weights, start))
    assert not all(
        np.array_equal(last, first) for last, first in zip(made.network.get_weights(), start)
    )


def test_what_is_evaluated_is_the_average_of_the_weights(drawn):
    made = training(drawn, finetune={"average_decay": 0.6})
    looked_at = {}
    for variable in made.network.trainable_variables:
        if variable.path in ("block5_conv3/bias", "logits/kernel"):
            looked_at[variable.path] = [variable]
    compiled = made.step

    def step(*batch):
        loss = compiled(*batch)
        for variable, *_ in looked_at.values():
            looked_at[variable.path].append(variable.numpy())
        return loss

    made.step = step
    made.finish()
    kept = by_name(made.network, made.evaluate(4).weights)
    shares = [0.6**3, 0.4 * 0.6**2, 0.4 * 0.6, 0.4]
    assert len(looked_at) == 2
    for name, (variable, *values) in looked_at.items():
        expected = sum(share * value for share, value in zip(shares, values, strict=True))
        assert kept[name] == pytest.approx(expected, rel=1e-5, abs=1e-8)
        np.testing.assert_array_equal(variable, values[-1], "training goes on from the last step")


def test_an_error_while_weights_are_averaged_leaves_those_of_the_last_step(drawn, monkeypatch):
    made = training(drawn, finetune={"average_decay": 0.6})
    made.finish()
    last = made.network.get_weights()
    seen = []

    def fail(images):
        seen.extend(made.network.get_weights())
        raise OSError("the disk is gone")

    monkeypatch.setattr(made.reader, "logits", fail)
    with pytest.raises(OSError, match="the disk is gone"):
        made.evaluate(4)
    assert not all(map(np.array_equal, seen, last)), "it failed among the averages"
    assert all(map(np.array_equal, made.network.get_weights(), last))


def test_the_steps_that_the_slice_chose_are_taken_on_all_of_train(drawn, monkeypatch):
    made, plain = [], finetune.Training.finish
    monkeypatch.setattr(finetune.Training, "finish", lambda self: made.append(self) or plain(self))
    monkeypatch.setattr(finetune.Training, "evaluate", with_loss({0: 0.5, 2: 0.3, 4: 0.4}.get))
    result = tuned(drawn)
    choosing, training = made
    assert choosing.best.step == result.kept_step == training.best.step == 2
    assert set(choosing.kept) | set(choosing.held) == set(training.kept)
    assert len(training.kept) == len(training.task.train)
    whole = by_name(training.network, training.best.weights)
    for name, of_part in by_name(choosing.network, choosing.best.weights).items():
        moved = name.startswith(("block5", "logits"))
        assert np.array_equal(whole[name], of_part) != moved


def test_where_no_step_is_better_the_probe_of_all_train_patients_is_served(drawn, monkeypatch):
    monkeypatch.setattr(finetune.Training, "evaluate", with_loss(float))
    inputs = inputs_of(drawn)
    test, _ = rows_of(inputs, "test")
    task = task_of(inputs)
    result = finetune.fine_tune(inputs, task, test)
    assert result.kept_step == 0
    served = result.logits[:, 1] - result.logits[:, 0]

    def probe_of(images):
        scaler = StandardScaler().fit(inputs.features(images))
        labels = inputs.labels(images)
        oracle = LogisticRegression(C=1 / (0.1 * len(labels)), tol=1e-10, max_iter=10_000)
        oracle.fit(scaler.transform(inputs.features(images)), labels)
        return oracle.decision_function(scaler.transform(inputs.features(test)))

    # The network computes in float32, whose rounding differs from processor to processor.
    assert served == pytest.approx(probe_of(task.train), abs=5e-3)
    without_slice = np.delete(task.train, task.held)
    assert np.abs(served - probe_of(without_slice)).max() > 0.05


@pytest.mark.parametrize("every", [1, 4])
def test_a_diverging_run_is_a_failed_trial_and_leaves_nothing(drawn, monkeypatch, every):
    made = training(drawn, save_seconds=0, finetune={"evaluate_every_steps": every})
    losses = iter([0.5, 0.4, np.nan, np.nan])
    monkeypatch.setattr(made, "step", lambda *batch: next(losses))
    with pytest.raises(TrialFailed, match=r"diverged at step 3: .*finetune.learning_rate"):
        list(made.evaluations())
    assert not made.checkpoint.path.exists()


def test_a_run_that_diverges_on_all_of_train_leaves_nothing(drawn, checkpoints, monkeypatch):
    refuse, seen = finetune._refuse_divergence, []

    def refuse_later(losses, last_step):
        seen.append(len(list(checkpoints.glob("*/state.npz"))))
        refuse([np.nan] if len(seen) == 4 else losses, last_step)

    monkeypatch.setattr(finetune, "_refuse_divergence", refuse_later)
    monkeypatch.setattr(finetune.Training, "evaluate", with_loss(fall))
    with pytest.raises(TrialFailed, match="diverged at step 4"):
        tuned(drawn, save_seconds=0)
    assert seen == [0, 1, 1, 2], "one by which the step was chosen, and one on all of train"
    assert not list(checkpoints.glob("*"))


def test_mixed_precision_without_a_gpu_is_refused(drawn):
    backbones.load_keras()
    import tensorflow as tf

    if tf.config.list_physical_devices("GPU"):
        pytest.skip("this machine has a GPU")
    with pytest.raises(ConfigError, match="sees no GPU"):
        training(drawn, finetune={"mixed_precision": True})


# --- repeating, resuming, pruning ------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_bytes(drawn):
    assert as_bytes(tuned(drawn, "oversample")) == as_bytes(tuned(drawn, "oversample"))


KILLED = """
import os, pathlib, signal, sys
sys.path[:0] = [{tests!r}, {own!r}, {source!r}]
import test_finetune
from equipoise.scenario.finetuning.checkpoint import Checkpoint

save = Checkpoint.save
def save_and_die(self, state):
    save(self, state)
    on_all = not len(state.best.logits)
    if state.step == 4 and on_all == {on_all!r}:
        os.kill(os.getpid(), signal.SIGKILL)
Checkpoint.save = save_and_die
finetune = test_finetune.finetune
finetune.Training.evaluate = test_finetune.with_loss(test_finetune.fall)
test_finetune.tuned(pathlib.Path({folder!r}), "oversample", save_seconds=0, finetune={options!r})
"""


SIX_STEPS = {"steps": 6, "unfreeze": "all"}


@pytest.fixture(scope="module")
def uninterrupted(drawn):
    """What a run ends in that nobody kills; its loss falls with every step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(drawn)
        patch.setattr(finetune.Training, "evaluate", with_loss(fall))
        result = tuned(drawn, "oversample", finetune=SIX_STEPS)
    assert result.kept_step == 6
    return as_bytes(result)


@pytest.mark.parametrize("on_all", [False, True])
def test_a_killed_run_goes_on_to_the_same_bytes(
    drawn, uninterrupted, checkpoints, monkeypatch, on_all
):
    monkeypatch.setattr(finetune.Training, "evaluate", with_loss(fall))
    code = KILLED.format(
        on_all=on_all,
        options=SIX_STEPS,
        tests=str(REPO / "tests"),
        own=str(Path(__file__).parent),
        source=str(REPO / "src"),
        folder=str(drawn),
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list(checkpoints.glob("*/state.npz"))) == 1 + on_all
    at, steps = finetune.learning_rate_at, []
    monkeypatch.setattr(
        finetune, "learning_rate_at", lambda step, given: steps.append(step) or at(step, given)
    )
    assert as_bytes(tuned(drawn, "oversample", finetune=SIX_STEPS)) == uninterrupted
    assert steps == ([5, 6] if on_all else [5, 6, 1, 2, 3, 4, 5, 6])
    assert not list(checkpoints.glob("*"))


def test_a_damaged_checkpoint_is_none(tmp_path):
    logits = np.zeros((3, 2))
    state = TrainingState(
        evaluations=[Evaluation(0, logits)],
        curve=[Losses(0, np.nan, 0.5)],
        best=KeptWeights(0, 0.5, logits, [np.ones(2)]),
        weights=[np.ones(2)],
        optimizer=[np.zeros(2)],
    )
    checkpoint = Checkpoint(tmp_path / "one")
    assert checkpoint.load() is None
    checkpoint.save(state)
    assert checkpoint.load().step == 0
    whole = checkpoint.path.read_bytes()
    changed = whole.replace(b"'descr'", b"'de\"cr'", 1)
    assert changed != whole
    for damaged in (b"", whole[:500], changed):
        checkpoint.path.write_bytes(damaged)
        assert checkpoint.load() is None
    files.write_arrays(checkpoint.path, steps=np.zeros(1))
    assert checkpoint.load() is None, "of another version"


def test_another_setting_does_not_go_on_from_a_checkpoint(drawn):
    paths = {
        training(drawn, scenario, seed=seed, **changes).checkpoint.path
        for scenario, seed, changes in (
            ("baseline", 0, {}),
            ("oversample", 0, {}),
            ("baseline", 1, {}),
            ("baseline", 0, {"finetune": {"steps": 5}}),
            ("baseline", 0, {"augment": {"seed": 8}}),
        )
    }
    assert len(paths) == 5


SETTINGS = {"l2": 0.1}


def trials(folder, scenario="baseline", save_seconds=finetune.SAVE_SECONDS, **changes):
    inputs = inputs_of(folder, scenario, **changes)
    train, patients = rows_of(inputs, "train")
    return finetune.Trials(inputs, train, patients, 0, save_seconds)


def test_a_trial_ends_with_the_logits_of_the_weights_that_are_kept(drawn):
    trainer = trials(drawn, "oversample", finetune={"steps": 5})
    pairs = list(trainer.evaluations(SETTINGS))
    assert [step for step, _ in pairs] == [0, 2, 4, 5]
    made = training(drawn, "oversample", finetune={"steps": 5})
    patients = made.task.patients
    assert not set(patients[trainer.held]) & set(np.delete(patients, trainer.held))
    made.finish()
    made.network.set_weights(made.best.weights)
    logits = made.reader.logits(made.held)
    assert pairs[-1].logits == pytest.approx(logits, abs=1e-6)


def test_after_a_kill_every_evaluation_comes_again(drawn, monkeypatch):
    trainer = trials(drawn, "oversample", save_seconds=0)
    whole = list(trainer.evaluations(SETTINGS))
    killed = trainer.evaluations(SETTINGS)
    for _ in range(3):  # the last one saved before it was seen: a checkpoint of step 4 is left
        next(killed)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "remove", lambda self: None)
        killed.close()
        again = list(trainer.evaluations(SETTINGS))
    assert [step for step, _ in again] == [0, 2, 4]
    assert [logits.tobytes() for _, logits in again] == [logits.tobytes() for _, logits in whole]


def test_a_pruned_trial_leaves_no_checkpoint(drawn, checkpoints):
    trainer = trials(drawn, save_seconds=0)
    seen = trainer.evaluations(SETTINGS)
    assert [next(seen)[0], next(seen)[0], next(seen)[0]] == [0, 2, 4]
    assert list(checkpoints.glob("*/state.npz"))
    seen.close()
    assert not list(checkpoints.glob("*"))


def test_a_search_that_trains_its_trials_resumes_and_its_choice_is_what_is_fitted(
    drawn, tmp_path, monkeypatch
):
    tune = {"mode": "finetune", "trials": 3, "l2_first": [0.1, 1.0]}
    study = study_with(drawn, tune=tune, train={"seeds": [0]}, finetune={"learning_rate": 0.01})
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
    (choice,) = Choices.read(folders[0] / "best.json").root
    table, _ = files.read_table(folders[0] / "trials.parquet")
    assert table["l2"].head(2).tolist() == pytest.approx([0.1, 1.0])
    assert (table["state"].head(2) == "complete").all()
    assert choice.steps == table["steps"].sum() == 3 * 4 - choice.steps_saved
    assert (table["steps"] < 4).sum() == choice.pruned_trials == (table["state"] == "pruned").sum()
    assert choice.settings["l2"] == table["l2"][choice.trial]
    assert choice.inner_folds == 1
    inputs = Inputs.read(study, "vgg16", "class_weight")
    train, patients = rows_of(inputs, "train")
    held = finetune.held_out(inputs, train, patients)
    assert (choice.slice_images, choice.slice_patients) == (
        len(held),
        len(set(patients[held])),
    )
    seed = fitting.search_seed(0, [0, 0])
    task = finetune.Task.of(inputs, choice.settings, train, patients, seed)
    again = finetune.Training(inputs, task)
    list(plain(again))
    logits = again.best.logits
    prob = logits[:, 1] - logits[:, 0]
    assert choice.score == pytest.approx(roc_auc_score(inputs.labels(train[held]), prob), abs=1e-6)


# --- the activations below the block ---------------------------------------------------------------------------------


@pytest.fixture
def activations(drawn):
    """The folder of the activations, empty at first."""
    folder = drawn / "data/cache/activations"
    shutil.rmtree(folder, ignore_errors=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def plain_fit(made, rate):
    """Keras' own `fit` of VGG16's block5 and the head, from pixels, with the batches of a training; its losses."""
    keras = backbones.load_keras()
    backbone = finetune.build_backbone(made.inputs, made.inputs.store.meta["pipeline"])
    model = networks.with_head_on_standardised(backbone, made.start)
    for layer in backbone.layers:
        layer.trainable = layer.name.startswith("block5")
    head, l2 = model.get_layer("logits"), made.task.settings["l2"]
    cross_entropy = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    def penalised(labels, logits):
        difference = keras.ops.cast(head.kernel[:, 1] - head.kernel[:, 0], "float32")
        return cross_entropy(labels, logits) + 0.5 * l2 * keras.ops.sum(difference**2)

    schedule = keras.optimizers.schedules.CosineDecay(rate, made.options.steps)
    model.compile(optimizer=keras.optimizers.Adam(schedule), loss=penalised)
    positions = np.array([draw.position for batch in made.drawn_batches() for draw in batch])
    pixels = Pixels(made.inputs, embedder.Embedder(model, made.size_px))(positions)
    sums = []
    watch = keras.callbacks.LambdaCallback(
        on_train_batch_end=lambda batch, logs: sums.append(logs["loss"] * (batch + 1))
    )
    size = made.options.batch_size
    labels = made.labels[positions]
    model.fit(pixels, labels, size, verbose=0, callbacks=[watch], shuffle=False)
    return np.diff([0, *sums])


def test_its_losses_are_those_of_keras_fit_of_the_same_block_from_pixels(drawn):
    rate = 0.001
    options = {"steps": 6, "warmup_fraction": 0.0, "learning_rate": rate}
    made = training(drawn, finetune={**options, "head_learning_rate": rate})
    losses, compiled = [], made.step
    made.step = lambda *batch: losses.append(float(compiled(*batch))) or losses[-1]
    list(made.evaluations())
    expected = plain_fit(made, rate)
    assert losses == pytest.approx(expected, rel=1e-3)
    assert len({round(loss, 3) for loss in losses}) == 6, (
        "nothing moved: the comparison says nothing"
    )


@pytest.mark.parametrize("backbone", BACKBONES)
def test_activations_are_what_flows_through_the_cut(drawn, activations, backbone):
    made = training(drawn, "baseline", backbone)
    positions, views = np.array([3, 0, 5]), np.array([0, 1, 1])
    made.source.fill(positions, views)
    kept = made.source.drawn(positions, views)
    pixels = Pixels(made.inputs, embedder.Embedder(made.network, made.size_px))
    shown = pixels.opened(*pixels.drawn(positions, views))
    keras = backbones.load_keras()
    whole = keras.Model(made.backbone.input, cut.tensors(made.backbone, made.cut))
    for part, expected in zip(kept, keras.tree.flatten(whole(shown))):
        scale = np.abs(expected).max()
        assert part / scale == pytest.approx(expected.numpy() / scale, abs=1e-5)
    assert made.reader.graph(*kept).numpy() == pytest.approx(
        made.network(shown, training=False).numpy(), abs=1e-3
    )


def test_activations_are_computed_once_for_all_scenarios_and_seeds(
    drawn, activations, monkeypatch, caplog
):
    caplog.set_level("INFO", "equipoise.progress")
    made, make = [], kept_activations.make_shards
    monkeypatch.setattr(
        kept_activations,
        "make_shards",
        lambda maker, rows, *more: made.extend(rows) or make(maker, rows, *more),
    )
    first = tuned(drawn)
    said = caplog.text
    count = len(made)
    assert "below the last block of vgg16" in said
    assert "(2x2x512 numbers each, float32)" in said
    tuned(drawn, "class_weight", seed=1)
    read = [(row.sha256, row.view) for row in made]
    assert len(read) == len(set(read))
    before = len(made)
    assert before >= count
    assert as_bytes(tuned(drawn)) == as_bytes(first)
    assert len(made) == before


def test_other_weights_another_size_and_another_cut_are_other_activations(drawn, activations):
    keras = backbones.load_keras()
    made = training(drawn)
    positions, views = np.array([0]), np.array([0])

    def folder_of(inputs, backbone, numbers):
        before = set(activations.glob("features/*"))
        source = Activations(inputs, backbone, numbers, inputs.store.meta["pipeline"])
        source.fill(positions, views)
        (new,) = set(activations.glob("features/*")) - before
        return new, source

    _, source = folder_of(made.inputs, made.backbone, made.cut)
    again = Activations(made.inputs, made.backbone, made.cut, made.inputs.store.meta["pipeline"])
    again.fill(positions, views)
    np.testing.assert_array_equal(again.plain(positions)[0], source.plain(positions)[0])
    below = (made.cut[0] - 1,)
    folder_of(made.inputs, made.backbone, below)
    other = keras.models.clone_model(made.backbone)
    weights = made.backbone.get_weights()
    other.set_weights([weights[0] * 1.01, *weights[1:]])
    _, changed = folder_of(made.inputs, other, made.cut)
    assert not np.array_equal(changed.plain(positions)[0], source.plain(positions)[0])
    larger = inputs_of(drawn, embed={"image_size_px": 48})
    built = finetune.build_backbone(larger, larger.store.meta["pipeline"])
    _, wide = folder_of(larger, built, made.cut)
    assert wide.shapes == [(3, 3, 512)]


def test_workers_of_a_pass_compute_the_same_activations(drawn, activations, monkeypatch):
    made = training(drawn)
    positions = np.arange(20)
    views = np.zeros(20, dtype=int)
    made.source.fill(positions, views)
    here = made.source.plain(positions)[0]
    shutil.rmtree(activations)
    jobs = []

    def run_in_turn(function, given, *more, **names):
        jobs.extend(given)
        return [function(*job) for job in given]

    monkeypatch.setattr(kept_activations, "_SHARD_ROWS", 8)
    monkeypatch.setattr(passes.parallel, "run_jobs", run_in_turn)
    pipeline = made.inputs.store.meta["pipeline"]
    again = Activations(made.inputs, made.backbone, made.cut, pipeline)
    again.fill(positions, views, config.Engine(workers=2))
    assert len(jobs) == 3
    there = again.plain(positions)[0]
    assert there / here.max() == pytest.approx(here / here.max(), abs=1e-5)


def test_what_does_not_fit_on_the_disk_is_refused_before_it_is_computed(
    drawn, activations, monkeypatch
):
    free = type("Usage", (), {"free": 10_000})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    with pytest.raises(ConfigError, match=r"0.0 MB free. Make room, or set finetune.activations"):
        list(training(drawn).evaluations())
    assert not list(activations.rglob("*.npy"))


@pytest.mark.parametrize("kept_as", ["float32", "float16"])
def test_what_is_predicted_is_what_the_whole_network_says(drawn, activations, kept_as):
    inputs = inputs_of(drawn, finetune={"activations": kept_as})
    images, _ = rows_of(inputs, "test")
    result = finetune.fine_tune(inputs, task_of(inputs), images)
    assert {np.load(file).dtype.name for file in activations.rglob("*.npy")} == {kept_as}
    backbone = finetune.build_backbone(inputs, inputs.store.meta["pipeline"])
    backbone.set_weights(result.weights)
    served = embedder.Embedder(networks.with_head(backbone, result.head), 32)
    table = inputs.manifest.table
    pixels = [served.load(inputs.study.raw / path) for path in table["path"].iloc[images]]
    assert result.logits == pytest.approx(served.features(np.stack(pixels)), abs=1e-4)


# --- stopping, views, rates ------------------------------------------------------------------------------------------


def test_no_patient_of_the_slice_is_drawn(drawn):
    made = training(drawn, "oversample", finetune={"steps": 40})
    patients = made.inputs.manifest.table["patient_id"].to_numpy()
    drawn_patients = {patients[draw.position] for batch in made.drawn_batches() for draw in batch}
    held = set(patients[made.held])
    assert held
    assert not held & drawn_patients
    assert held | drawn_patients == set(made.task.patients)


def test_it_ends_when_nothing_better_came_for_so_many_evaluations(drawn, monkeypatch):
    options = {"steps": 12, "patience": 2}
    made = training(drawn, save_seconds=0, finetune=options)
    losses = iter([0.5, 0.4, 0.41, 0.42, 0.3, 0.2, 0.1])
    evaluate = made.evaluate
    monkeypatch.setattr(
        made, "evaluate", lambda step: dataclasses.replace(evaluate(step), loss=next(losses))
    )
    assert [step for step, _ in made.evaluations()] == [0, 2, 4, 6]
    assert made.best.step == 2
    again = training(drawn, finetune=options)
    assert [step for step, _ in again.evaluations()] == [0, 2, 4, 6], "a resumed run goes on"


def test_views_by_chance_are_drawn_anew_for_each_epoch_where_every_image_has_them(drawn):
    made = training(drawn, finetune={"draw_views": True})
    draws = made.draws()
    count = len(made.plan(0).row)
    epochs = [
        {draw.position: draw.view for draw in (next(draws) for _ in range(count))} for _ in "ab"
    ]
    assert set(epochs[0].values()) == {0, 1}
    assert epochs[0].keys() == epochs[1].keys()
    assert epochs[0] != epochs[1]
    few = study_with(drawn, finetune={"draw_views": True}, embed={"views_of": "minority"})
    with pytest.raises(ConfigError, match=r"views of every image, and there are 1 of minority"):
        finetune.refuse_unusable_settings(few)
    finetune.refuse_unusable_settings(made.inputs.study)


def test_each_layer_learns_at_its_own_rate(drawn):
    options = {"learning_rate": 0.001, "head_learning_rate": 0.004, "layer_decay": 0.5}
    made = training(drawn, finetune={**options, "steps": 1, "warmup_fraction": 0.0})
    before = by_name(made.network, made.network.get_weights())
    list(made.batches())
    made.step(*next(made.batches()), np.float32(0.001))
    after = by_name(made.network, made.network.get_weights())
    moved = {name: np.abs(after[name] - before[name]).max() for name in before}
    # The first step of Adam is the learning rate, whatever the gradient.
    assert moved["block5_conv3/kernel"] == pytest.approx(0.001, rel=0.01)
    assert moved["block5_conv2/kernel"] == pytest.approx(0.0005, rel=0.01)
    assert moved["block5_conv1/kernel"] == pytest.approx(0.00025, rel=0.01)
    assert moved["logits/kernel"] == pytest.approx(0.004, rel=0.01)
    assert moved["block4_conv3/kernel"] == 0


# --- the decoded cache -----------------------------------------------------------------------------------------------


@pytest.fixture
def decoded(drawn):
    """The folder of the decoded images, empty at first."""
    folder = drawn / "data/cache/decoded"
    shutil.rmtree(folder, ignore_errors=True)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_each_image_is_decoded_once_for_all_scenarios_and_seeds(drawn, decoded, monkeypatch):
    calls, decode = [], images.decode
    monkeypatch.setattr(images, "decode", lambda *given: calls.append(1) or decode(*given))
    read = set()
    for name, seed in (("baseline", 0), ("oversample", 1)):
        made = training(drawn, name, seed=seed, finetune={"unfreeze": "all"})
        list(made.evaluations())
        read.update(made.held)
        read.update(draw.position for batch in made.drawn_batches() for draw in batch)
    assert len(calls) == len(read) == len(list(decoded.rglob("*.npy")))


def pixels_at(folder, size_px):
    inputs = inputs_of(folder)
    keras = backbones.load_keras()
    shape = keras.Input((size_px, size_px, 3))
    network = keras.Model(shape, keras.layers.Flatten()(shape))
    return inputs, Pixels(inputs, embedder.Embedder(network, size_px))


@pytest.mark.parametrize(("size_px", "kept_as"), [(32, np.float32), (40, np.uint8)])
def test_cached_pixels_are_those_of_the_embedding(drawn, decoded, size_px, kept_as):
    import tensorflow as tf

    inputs, pixels = pixels_at(drawn, size_px)
    fresh, kept = pixels(np.array([3, 0])), pixels(np.array([3, 0]))
    path = inputs.study.raw / inputs.manifest.table["path"].iloc[3]
    oracle = tf.image.resize(
        tf.io.decode_png(path.read_bytes(), 3), (size_px, size_px), antialias=True
    ).numpy()
    np.testing.assert_array_equal(fresh[0], oracle)
    np.testing.assert_array_equal(fresh, kept)
    assert {np.load(file).dtype.type for file in decoded.rglob("*.npy")} == {kept_as}


def test_a_damaged_piece_is_made_again_and_a_changed_image_refused(drawn, decoded, monkeypatch):
    _, pixels = pixels_at(drawn, 32)
    before = pixels(np.array([2]))
    (file,) = decoded.rglob("*.npy")
    file.write_bytes(file.read_bytes()[:500])
    np.testing.assert_array_equal(pixels(np.array([2])), before)
    assert len(file.read_bytes()) > 500
    file.unlink()
    monkeypatch.setattr(images, "read", lambda folder, path: b"another file")
    with pytest.raises(DataError, match="not the file that ingest read"):
        pixels(np.array([2]))
