"""The one pass: each distinct picture and view once, resumable, believed only by digest; weights with clear errors."""

import io
import json
import os
import pickle
import subprocess
import sys
import tracemalloc

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from conftest import REPO
from equipoise.core import config, files, images
from equipoise.core.documents import FeatureSummary
from equipoise.core.errors import ConfigError, DataError
from equipoise.core.records import Manifest
from equipoise.embed import applications, backbones, embedder, journal, shards
from equipoise.embed import stage as features
from equipoise.embed import store as store_
from equipoise.ingest import download
from equipoise.ingest import stage as ingest
from equipoise.ingest.datasets import phantom
from equipoise.scenario.finetuning import network
from equipoise.scenario.heads import head, rows


@pytest.fixture
def study(tmp_path):
    params = config.read_params(REPO)
    demo = params["studies"]["demo"]
    demo["phantom"] |= {"patients": 20, "size_px": 40, "opacity_patient_fraction": 0.3}
    demo["phantom"] |= {"mean_images_per_patient": 2.0}
    demo["embed"] |= {"image_size_px": 32, "views": 2, "batch_size": 8}
    study = config.load_study("demo", params, root=tmp_path)
    phantom.draw(study.raw, study.settings.phantom)
    ingest.run(study)
    return study


def passes(study, **how) -> int:
    return features.run(study, "vgg16", **how).passes_now


def matrix_bytes(study) -> bytes:
    return (study.features_path("vgg16") / "features.npy").read_bytes()


def matrix_of(study):
    return store_.FeatureStore.open(study.features_path("vgg16")).matrix


def manifest_of(study):
    return Manifest.read(study.manifest_path)


def test_each_picture_and_view_once_then_nothing(study):
    manifest = manifest_of(study)
    minority = int((manifest.table["label"] == 1).sum())
    expected = len(manifest.table) + 2 * minority
    first = features.run(study, "vgg16")
    assert first.summary.passes == first.passes_now == expected
    assert first.summary.passes_of == {"images": len(manifest.table), "views": 2 * minority}
    meta = (study.features_path("vgg16") / "meta.json").read_bytes()
    assert passes(study) == 0
    # DVC keeps this file: a run that found everything done must leave the same bytes.
    assert (study.features_path("vgg16") / "meta.json").read_bytes() == meta
    assert [record.passes_now for record in journal.read(study.cache_path)] == [expected, 0]
    store = store_.FeatureStore.open(study.features_path("vgg16"))
    assert store.matrix.shape == (expected, 512)
    assert not store.matrix.flags.writeable
    assert store.summary == first.summary


def test_a_picture_of_the_right_size_is_what_resizing_would_make_of_it():
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    network = embedder.Embedder(backbones.build("mobilenetv2", "random", 32), 32)
    loaded = network.load(pixels)
    resized = network.resize_graph(pixels).numpy()
    assert loaded.dtype == resized.dtype
    assert np.array_equal(loaded, resized)


_ASKED_FOR = """
import resource
import numpy as np
from equipoise.embed import backbones, embedder

def pages():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

network = embedder.Embedder(backbones.build("mobilenetv2", "random", 192), 192)
batch = np.full((32, 192, 192, 3), 90, np.float32)
network.features(batch)
asked_for = []
for _ in range(4):
    before = pages()
    network.features(batch)
    asked_for.append(pages() - before)
print(min(asked_for) * resource.getpagesize())
"""


def test_a_pass_keeps_its_memory_for_the_next_one():
    # Without oneDNN TensorFlow's own allocator gives memory back after every operation: each pass
    # then asks for 450 MiB anew, 116,000 pages, and the system takes half of its time. Kept, the
    # least of four passes asks for 0 to 65 pages, however busy the machine is.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TF_")}
    environment = kept | {"PYTHONPATH": str(REPO / "src"), "TF_ENABLE_ONEDNN_OPTS": "0"}
    done = subprocess.run(
        [sys.executable, "-c", _ASKED_FOR], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 32 * 2**20


def test_the_allocator_that_the_user_names_is_kept(monkeypatch):
    monkeypatch.setenv("TF_CPU_ALLOCATOR_USE_BFC", "false")
    backbones.load_keras()
    assert os.environ["TF_CPU_ALLOCATOR_USE_BFC"] == "false"


def test_text_says_what_came_of_it_and_warns_of_random_weights(study):
    result = features.run(study, "vgg16")
    count = result.passes_now
    assert features.result_text(result) == (
        f"{count} features of 512 numbers in {study.features_path('vgg16')} (random weights: to try "
        f"the program, not for results); {count} backbone passes now"
    )
    trained = result.summary.model_copy(update={"weights": "imagenet"})
    again = features.EmbedResult(trained, result.folder, passes_now=0)
    assert features.result_text(again).endswith("/vgg16; 0 backbone passes now")


def test_features_equal_keras_on_the_same_pixels(study):
    import keras
    import tensorflow as tf

    features.run(study, "vgg16")
    store = store_.FeatureStore.open(study.features_path("vgg16"))
    row = manifest_of(study).table.iloc[3]
    pixels = tf.image.resize(images.decode(study.raw / row["path"]), (32, 32), antialias=True)[None]
    keras.utils.set_random_seed(0)
    oracle = keras.applications.VGG16(
        include_top=False, weights=None, input_shape=(32, 32, 3), pooling="avg"
    )
    value = oracle(
        keras.applications.vgg16.preprocess_input(tf.identity(pixels)), training=False
    ).numpy()[0]
    np.testing.assert_allclose(
        store.matrix[store.rows([row["sha256"]], [0])[0]], value, rtol=1e-4, atol=1e-6
    )


def test_new_image_costs_only_itself(study):
    before = passes(study)
    assert before > 0
    row = manifest_of(study).table.iloc[0]
    pixels = 255 - images.decode(study.raw / row["path"])
    Image.fromarray(pixels).save(study.raw / "clear/patient9000_0.png")
    ingest.run(study)
    assert passes(study) == 1


def test_killed_pass_goes_on_where_it_was(study):
    calls = []

    class Dies(embedder.Embedder):
        def features(self, *arguments):
            calls.append(1)
            if len(calls) == 4:
                raise KeyboardInterrupt
            return super().features(*arguments)

    with pytest.raises(KeyboardInterrupt):
        passes(study, make_embedder=Dies, shard_rows=8)
    again = features.run(study, "vgg16", shard_rows=8)
    assert again.passes_now == again.summary.passes - 3 * 8
    resumed = matrix_bytes(study)
    _forget(study)
    passes(study, shard_rows=8)
    assert matrix_bytes(study) == resumed


@pytest.mark.parametrize("kind", ["npy", "json"])
def test_flipped_bit_redoes_only_its_piece(study, kind):
    passes(study, shard_rows=8)
    undisturbed = matrix_bytes(study)
    index = min(shards.shards_path(study.cache_path).glob("*/*.json"))
    held = json.loads(index.read_text())
    piece = index if kind == "json" else index.with_name(f"{held['sha256'][:24]}.npy")
    content = bytearray(piece.read_bytes())
    content[-30] ^= 1
    piece.write_bytes(bytes(content))
    assert passes(study, shard_rows=8) == len(held["rows"])
    assert passes(study, shard_rows=8) == 0
    assert matrix_bytes(study) == undisturbed


_EMBED = """
import pickle, sys
from equipoise.embed import stage as features
study = pickle.load(open(sys.argv[1], "rb"))
print(features.run(study, "vgg16", shard_rows=8).passes_now)
"""


def test_two_at_once_leave_what_one_leaves(study, tmp_path):
    pickled = tmp_path / "study.pickle"
    pickled.write_bytes(pickle.dumps(study))
    command = [sys.executable, "-c", _EMBED, str(pickled)]
    environment = {**os.environ, "PYTHONPATH": str(REPO / "src")}
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    printed = [process.communicate(timeout=600)[0] for process in running]
    assert all(process.returncode == 0 for process in running)
    assert max(int(text.split()[-1]) for text in printed) > 0
    together = matrix_bytes(study)
    assert passes(study, shard_rows=8) == 0
    assert matrix_bytes(study) == together
    _forget(study)
    assert passes(study, shard_rows=8) > 0
    assert matrix_bytes(study) == together


def _forget(study):
    for path in shards.shards_path(study.cache_path).rglob("*"):
        if path.is_file():
            path.unlink()


def test_two_devices_give_the_bytes_of_one(study, monkeypatch):
    alone = passes(study, shard_rows=8)
    undisturbed = matrix_bytes(study)
    _forget(study)

    class ComputesNothing(embedder.Embedder):
        """Of this process: the pass is made by two others."""

        def features(self, *arguments):
            raise AssertionError("computed here")

    monkeypatch.setattr(backbones, "devices", lambda: ["", ""])  # no GPU in either process
    assert passes(study, make_embedder=ComputesNothing, shard_rows=8) == alone
    assert matrix_bytes(study) == undisturbed


def test_devices_are_those_of_the_environment_where_there_is_a_gpu(monkeypatch):
    import tensorflow as tf

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-a,MIG-b")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    assert backbones.devices() == []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["one"])
    assert backbones.devices() == ["MIG-a", "MIG-b"]
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert backbones.devices() == ["0"]


def test_memory_while_assembling_is_that_of_a_shard(tmp_path):
    rng = np.random.default_rng(0)
    num_rows, num_features = 4000, 500
    place = rng.permutation(num_rows)
    parts = []
    for number in range(40):
        shard = tmp_path / f"{number}.npy"
        values = rng.normal(size=(100, num_features)).astype(np.float32)
        np.save(shard, values)
        target = place[100 * number : 100 * number + 100]
        parts.append(shards.ShardPart(shard, source=np.arange(100), target=target))
    tracemalloc.start()
    digest = shards.assemble(tmp_path / "whole.npy", parts, (num_rows, num_features), "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    whole_bytes = 4 * num_rows * num_features
    assert peak < 4 * values.nbytes < 0.2 * whole_bytes
    whole = np.load(tmp_path / "whole.npy", mmap_mode="r", allow_pickle=False)
    np.testing.assert_array_equal(whole[parts[-1].target], values)
    assert digest == files.file_digest(tmp_path / "whole.npy")


def test_features_that_are_no_numbers_are_refused(tmp_path):
    values = np.ones((3, 2), dtype=np.float32)
    values[1, 0] = np.nan
    np.save(tmp_path / "shard.npy", values)
    part = shards.ShardPart(tmp_path / "shard.npy", source=np.arange(3), target=np.arange(3))
    with pytest.raises(DataError, match="1 of 3 features of vgg16 are not finite numbers"):
        shards.assemble(tmp_path / "whole.npy", [part], (3, 2), "vgg16")
    assert not (tmp_path / "whole.npy").exists()


def test_one_trace_whatever_the_batches(study, monkeypatch):
    made, shapes = [], set()

    class Watched(embedder.Embedder):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            made.append(self)

        def features(self, batch, *parameters):
            shapes.add(batch.shape)
            return super().features(batch, *parameters)

    monkeypatch.setattr(backbones, "devices", lambda: ["0"])  # on a GPU the last batch is filled up
    result = features.run(study, "vgg16", make_embedder=Watched)
    assert all(number % 8 for number in result.summary.passes_of.values())
    assert shapes == {(8, 32, 32, 3)}
    (only,) = made
    for graph in (only.plain_graph, only.viewed_graph, only.resize_graph):
        assert graph.experimental_get_tracing_count() == 1


def test_views_of_all_are_made_of_all(study):
    manifest = manifest_of(study)
    chosen = features.wanted_rows(manifest, 2, "all")
    assert len(chosen) == 3 * len(manifest.table)
    assert set(zip(chosen["sha256"], chosen["view"])) == {
        (digest, view) for digest in manifest.table["sha256"] for view in range(3)
    }


def _changed(study, **changes):
    embed = study.settings.embed.model_copy(update=changes)
    return study.model_copy(update={"settings": study.settings.model_copy(update={"embed": embed})})


def test_float16_is_refused_where_it_cannot_tell_images_apart(study):
    with pytest.raises(
        ConfigError,
        match=r"float16 cannot hold the features of mobilenetv2.*embed\.dtype to float32",
    ):
        features.run(_changed(study, dtype="float16", batch_size=32), "mobilenetv2")


def test_float16_is_half_the_file_and_the_rounded_values(study):
    exact = features.run(study, "vgg16")
    values = matrix_of(study).copy()
    # Shards of eight rows are too short to judge the rounding, which random weights do not survive.
    rounded = features.run(_changed(study, dtype="float16"), "vgg16", shard_rows=8)
    assert rounded.passes_now == exact.passes_now  # another pipeline, another key
    matrix = matrix_of(study)
    assert matrix.dtype == np.float16
    np.testing.assert_array_equal(matrix, values.astype(np.float16))


def test_mixed_precision_is_close_and_another_key(study):
    exact = features.run(study, "vgg16")
    values = matrix_of(study).copy()
    mixed = features.run(_changed(study, mixed_precision="bfloat16"), "vgg16")
    assert mixed.passes_now == exact.passes_now
    matrix = matrix_of(study)
    assert matrix.dtype == np.float32
    assert 0 < np.abs(matrix - values).max() < 0.1 * np.abs(values).max()
    assert mixed.summary.weights_digest == exact.summary.weights_digest
    assert backbones.load_keras().config.dtype_policy().name == "float32"


def test_jpeg_draft_is_the_reduced_scale_in_embedding_and_another_key(study):
    buffer = io.BytesIO()
    smooth = np.add.outer(np.linspace(0, 120, 300), np.linspace(0, 120, 260)).astype(np.uint8)
    Image.fromarray(smooth).save(buffer, "JPEG", quality=95)
    network = backbones.build("vgg16", "random", 32)
    plain = embedder.Embedder(network, 32)
    drafted = embedder.Embedder(
        network, 32, embedder.pipeline_of(_changed(study, jpeg_draft=True).settings.embed)
    )
    assert images.decode(buffer.getvalue(), drafted.draft_px).shape == (75, 65, 3)
    one, two = plain.load(buffer.getvalue()), drafted.load(buffer.getvalue())
    np.testing.assert_array_equal(one, plain.resize(images.decode(buffer.getvalue())))
    assert 0 < np.abs(one - two).max() < 4


def test_changed_file_is_noticed(study):
    row = manifest_of(study).table.iloc[0]
    path = study.raw / row["path"]
    path.write_bytes(path.read_bytes() + b"more")
    with pytest.raises(DataError, match="is not the file that ingest read"):
        passes(study)


@pytest.mark.parametrize("content", [None, b"", b"\x93NUMPY", "half"])
def test_features_that_are_gone_or_cut_are_a_sentence(tmp_path, content):
    matrix = np.zeros((3, 2), dtype=np.float32)
    path = tmp_path / "features.npy"
    np.save(path, matrix)
    wanted = pd.DataFrame({"sha256": ["a", "b", "c"], "view": 0})
    summary = FeatureSummary(
        backbone="vgg16",
        weights_digest="",
        image_size_px=32,
        pipeline="",
        weights="random",
        manifest="",
        settings={},
        digest=store_.write_index(tmp_path, wanted, files.file_digest(path)),
    )
    summary.write(tmp_path / "meta.json")
    assert len(store_.FeatureStore.open(tmp_path).matrix) == 3
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-4] if content == "half" else content)
    with pytest.raises(DataError, match=r"is damaged: .+ Run `equipoise embed`"):
        store_.FeatureStore.open(tmp_path)


def test_missing_view_says_which_setting(study):
    features.run(study, "vgg16")
    store = store_.FeatureStore.open(study.features_path("vgg16"))
    with pytest.raises(DataError, match=r"embed\.views"):
        store.rows([manifest_of(study).table["sha256"].iloc[0]], [7])


@pytest.mark.parametrize("name", ["densenet201", "mobilenetv2", "vgg16"])
def test_every_backbone_is_flat_repeatable_and_holds_a_head(name):
    first = backbones.build(name, "random", 32)
    assert backbones.weights_digest(first) == backbones.weights_digest(
        backbones.build(name, "random", 32)
    )
    assert not [layer for layer in first.layers if hasattr(layer, "layers")]
    width = first.output_shape[-1]
    rng = np.random.default_rng(0)
    batch = rng.uniform(0, 255, (6, 32, 32, 3)).astype("float32")
    values = embedder.Embedder(first, 32).features(batch)
    standardiser = rows.Standardiser.fit(values)
    coefficients = np.stack(
        [np.zeros(len(standardiser.kept)), rng.normal(size=len(standardiser.kept))], axis=1
    )
    solved = head.Head(standardiser, coefficients, np.array([0.0, 0.3]), 0.0)
    whole = network.with_head(first, solved)
    # Traced like `embed` traces: run op by op, rounding differs, and untrained features blow it up.
    np.testing.assert_allclose(
        embedder.Embedder(whole, 32).features(batch), solved.logits(values), atol=1e-6
    )
    trainable = network.with_head_on_standardised(first, solved)
    np.testing.assert_allclose(
        embedder.Embedder(trainable, 32).features(batch), solved.logits(values), atol=1e-6
    )
    of_backbone, back = network.divided(trainable.get_weights(), standardiser)
    np.testing.assert_array_equal(back.coefficients, coefficients)
    np.testing.assert_array_equal(back.intercepts, solved.intercepts)
    assert len(of_backbone) == len(first.get_weights())
    assert whole.get_layer("logits").kernel.shape[0] == width


def test_unknown_backbone_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'densenet121'"):
        backbones.build("densenet1211", "random", 32)


def test_weights_that_cannot_be_downloaded_say_what_to_do(monkeypatch, tmp_path):
    def offline(address, *_, **__):
        raise DataError(f"{address}: the download stopped (no route). What came is kept")

    monkeypatch.setattr(download, "download", offline)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    with pytest.raises(DataError) as caught:
        backbones.build("densenet201", "imagenet", 32, root=tmp_path)
    text = str(caught.value)
    for part in (
        "no route)). Download https://storage",
        "c13680b51ded0fb44dff2d8f86ac8bb1",
        "https://storage",
        "embed.weights",
        "weights/",
    ):
        assert part in text


def test_weights_by_path(tmp_path):
    wrong = tmp_path / "wrong.h5"
    backbones.build("mobilenetv2", "random", 32).save_weights(tmp_path / "right.weights.h5")
    built = backbones.build("mobilenetv2", str(tmp_path / "right.weights.h5"), 32)
    drawn = backbones.build("mobilenetv2", "random", 32)
    assert backbones.weights_digest(built) == backbones.weights_digest(drawn)
    with pytest.raises(DataError, match="no such file"):
        backbones.build("vgg16", str(wrong), 32)
    wrong.write_bytes(b"not weights")
    with pytest.raises(DataError, match="does not fit VGG16"):
        backbones.build("vgg16", str(wrong), 32)


def test_weights_are_looked_for_under_the_root(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    published = tmp_path / "weights" / applications.seen("vgg16").file
    for weights, file in (("imagenet", published), ("own/vgg.h5", tmp_path / "own/vgg.h5")):
        assert not backbones.weights_there("vgg16", weights, tmp_path)
        file.parent.mkdir()
        file.write_bytes(b"not weights")
        assert backbones.weights_there("vgg16", weights, tmp_path)
        with pytest.raises(DataError, match=f"weights file {file} does not fit"):
            backbones.build("vgg16", weights, 32, root=tmp_path)
    assert backbones.weights_there("vgg16", "random", tmp_path)


def test_real_weights_beat_random_ones():
    path = REPO / "../shared/data/weights/mobilenetv2_1.00_224_notop.h5"
    if not path.is_file():
        pytest.skip("the MobileNetV2 weights are not on this machine")
    model = backbones.build("mobilenetv2", str(path), 96)
    drawn = backbones.build("mobilenetv2", "random", 96)
    assert backbones.weights_digest(model) != backbones.weights_digest(drawn)
