"""Every network of keras.applications as Keras describes it: names, scaling, sizes, and the weights it asks for."""

import hashlib
import json
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import h5py
import keras
import numpy as np
import pytest
from keras.src.applications import efficientnet
from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group
from keras.src.utils import file_utils

from conftest import REPO
from equipoise.core.errors import ConfigError, DataError
from equipoise.embed import applications, backbones, embedder

sys.path.append(str(REPO / "benchmarks"))
import networks

#: Of each way in which a network scales its pixels, one, at a small size that it accepts.
SCALINGS = {
    "resnet50": 32,
    "xception": 71,
    "mobilenetv3small": 32,
    "efficientnetb0": 32,
    "convnexttiny": 32,
}


def test_names_are_those_of_keras_and_are_read_without_importing_it():
    listed = dir(keras.applications)  # modules too
    constructors = {
        name.lower(): name for name in listed if callable(getattr(keras.applications, name))
    }
    known = applications.names()
    assert {name: where.constructor for name, where in known.items()} == constructors
    for where in known.values():
        assert callable(getattr(keras.applications, where.module).preprocess_input)
    code = (
        "import sys; from equipoise.embed import applications; applications.names(); "
        "print(sorted({'keras', 'tensorflow'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(REPO / "src")}, capture_output=True
    )
    assert done.stdout.decode() == "[]\n", done.stderr


def test_without_keras_the_names_are_those_that_are_listed(monkeypatch):
    with_keras = applications.names()
    monkeypatch.setattr(applications.importlib.util, "find_spec", lambda name: None)
    assert set(applications.names()) == set(with_keras)
    with pytest.raises(ConfigError, match="Did you mean 'vgg16'"):
        applications.application("vgg166")
    monkeypatch.undo()
    assert applications.names() == with_keras


def drawn_weights(model, seed=0):
    """Weights that a mistake in scaling would show in: also those of normalisation are not 0 and 1."""
    rng = np.random.default_rng(seed)
    return [
        (value + rng.uniform(0.1, 0.5, value.shape)).astype(value.dtype)
        if value.ndim < 2
        else value
        for value in model.get_weights()
    ]


@pytest.mark.parametrize("name", SCALINGS)
def test_features_are_those_of_keras_on_pixels_from_0_to_255(name, monkeypatch, tmp_path):
    size_px = SCALINGS[name]
    where = applications.application(name)
    module = getattr(keras.applications, where.module)
    built = backbones.build(name, "random", size_px)
    built.set_weights(drawn_weights(built))
    # Keras' own way to ImageNet weights, with our file for the one it would download.
    monkeypatch.setattr(file_utils, "get_file", lambda *_, **__: str(tmp_path / "drawn.weights.h5"))
    built.save_weights(tmp_path / "drawn.weights.h5")
    oracle = getattr(keras.applications, where.constructor)(
        include_top=False, weights="imagenet", input_shape=(size_px, size_px, 3), pooling="avg"
    )
    images = np.random.default_rng(1).uniform(0, 255, (3, size_px, size_px, 3)).astype("float32")
    expected = oracle(module.preprocess_input(images.copy()), training=False).numpy()
    values = embedder.Embedder(built, size_px).features(images)
    assert values.shape == (3, applications.seen(name).num_features)
    np.testing.assert_allclose(values, expected, rtol=1e-3, atol=1e-3 * np.abs(expected).max())


def test_a_size_that_keras_does_not_take_is_refused_with_the_one_it_takes():
    with pytest.raises(ConfigError, match="image_size_px is 64, and xception takes 71 or more"):
        backbones.build("xception", "random", 64)


# --- ImageNet weights ------------------------------------------------------------------------------


class Interrupting(BaseHTTPRequestHandler):
    """Serves one file; the first answer ends in the middle."""

    def do_GET(self):
        server = self.server
        start = int((self.headers.get("Range") or "bytes=0-")[6:-1])
        server.starts.append(start)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(server.content) - start))
        self.send_header("ETag", '"one"')
        if start:
            whole = len(server.content)
            self.send_header("Content-Range", f"bytes {start}-{whole - 1}/{whole}")
        self.end_headers()
        cut = len(server.content) // 2 if len(server.starts) == 1 else None
        self.wfile.write(server.content[start:cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def published(monkeypatch, tmp_path):
    """A server with drawn weights of EfficientNetB0, and a Keras that names it and their digest."""
    built = backbones.build("efficientnetb0", "random", 32)
    built.set_weights(drawn_weights(built))
    with h5py.File(tmp_path / "drawn.h5", "w") as file:  # as Keras' own files are
        save_weights_to_hdf5_group(file, built)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Interrupting)
    server.content = (tmp_path / "drawn.h5").read_bytes()
    server.starts = []
    server.digest = backbones.weights_digest(built)
    md5 = hashlib.md5(server.content).hexdigest()
    monkeypatch.setitem(efficientnet.WEIGHTS_HASHES, "b0", ("", md5))
    address = f"http://127.0.0.1:{server.server_address[1]}/"
    monkeypatch.setattr(efficientnet, "BASE_WEIGHTS_PATH", address)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "keras"))
    Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


def test_weights_come_from_where_keras_says_and_a_download_goes_on(published, tmp_path, caplog):
    caplog.set_level("INFO", "equipoise.progress")
    assert not backbones.weights_there("efficientnetb0", "imagenet", tmp_path)
    built = backbones.build("efficientnetb0", "imagenet", 32, root=tmp_path)
    assert backbones.weights_digest(built) == published.digest
    # The file was not sent anew after the interruption.
    assert len(published.starts) == 2
    assert 0 < published.starts[1] <= len(published.content) // 2
    assert "downloading http://127.0.0.1" in caplog.text
    assert backbones.weights_there("efficientnetb0", "imagenet", tmp_path)
    kept = list((tmp_path / "keras/models").iterdir())
    assert [path.name for path in kept] == ["efficientnetb0_notop.h5"]
    backbones.build("efficientnetb0", "imagenet", 32, root=tmp_path)
    assert len(published.starts) == 2
    # A kept file that is another one than Keras names is fetched again.
    kept[0].write_bytes(b"not the weights")
    backbones.build("efficientnetb0", "imagenet", 32, root=tmp_path)
    assert len(published.starts) == 3


def test_another_file_than_keras_names_is_refused_and_removed(published, tmp_path, monkeypatch):
    monkeypatch.setitem(efficientnet.WEIGHTS_HASHES, "b0", ("", "0" * 32))
    with pytest.raises(DataError, match=r"another digest\)\. Download http.*digest 0000.*weights/"):
        backbones.build("efficientnetb0", "imagenet", 32, root=tmp_path)
    assert not list((tmp_path / "keras/models").iterdir())


# --- what is said of all ---------------------------------------------------------------------------


def test_the_listing_and_the_table_name_every_network():
    listing = json.loads(networks.LISTING.read_text("utf-8"))
    assert set(listing) == set(applications.names())
    page = networks.PAGE.read_text("utf-8")
    known = {name: applications.seen(name) for name in listing}
    assert networks.with_table(page, known) == page


def test_a_network_that_is_not_listed_has_usual_numbers():
    assert applications.seen("of-a-later-keras") == applications.Seen()
    assert not applications.imagenet_is_there("of-a-later-keras", REPO)
