"""The registered model as one artifact: over HTTP, by `mlflow models predict`, in Python and as a plain Keras file."""

import ast
import base64
import importlib
import io
import json
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import mlflow.cli
import numpy as np
import pandas as pd
import pytest
import requests
from click.testing import CliRunner
from mlflow.exceptions import MlflowException
from mlflow.tracking import MlflowClient
from PIL import Image

from conftest import REPO, path_of, run
from equipoise.core import images
from equipoise.service import served
from equipoise.service.together import Together
from fabricate.servers import START_SECONDS, answers, free_port

CONCURRENT = 8


@pytest.fixture(scope="module")
def package(workspace) -> Path:
    """Folder of the registered MLflow model."""
    store = MlflowClient(tracking_uri=f"sqlite:///{workspace}/mlflow.db")
    version = store.get_model_version_by_alias("equipoise-demo", "challenger")
    return path_of(version.source)


@pytest.fixture(scope="module")
def model(package):
    return mlflow.pyfunc.load_model(str(package))


@pytest.fixture(scope="module")
def pictures(workspace) -> list[bytes]:
    return [
        path.read_bytes()
        for path in sorted((workspace / "data/raw/demo/opacity").glob("*.png"))[:20]
    ]


@pytest.fixture(scope="module")
def server(package, tmp_path_factory):
    """Address of `mlflow models serve` with the model."""
    port = free_port()
    log = tmp_path_factory.mktemp("serve") / "log"
    address = f"http://127.0.0.1:{port}"
    options = f"--env-manager local --host 127.0.0.1 --port {port}".split()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(package), *options]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    kept["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), kept.get("PATH", "")])
    with log.open("w") as out:
        process = subprocess.Popen(
            command, env=kept, stdout=out, stderr=out, cwd=log.parent, start_new_session=True
        )
        try:
            until = time.monotonic() + START_SECONDS
            while not answers(f"{address}/ping"):
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < until, log.read_text()
                time.sleep(0.1)
            yield address
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # mlflow starts the server as a child
            process.wait()


def post(address: str, body: object, kind: str = "application/json") -> requests.Response:
    data = body if isinstance(body, str) else json.dumps(body)
    return requests.post(
        f"{address}/invocations", data=data, headers={"Content-Type": kind}, timeout=600
    )


def request(*data: bytes) -> dict:
    return {
        "dataframe_split": {
            "columns": ["image"],
            "data": [[base64.b64encode(item).decode()] for item in data],
        }
    }


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "png")
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")
    )


def test_requests_at_once_are_all_answered_as_in_a_batch(server, model, pictures):
    batch = model.predict(pd.DataFrame({"image": pictures}))
    wanted = [number % len(pictures) for number in range(100)]
    with ThreadPoolExecutor(CONCURRENT) as pool:
        answers = list(pool.map(lambda number: post(server, request(pictures[number])), wanted))
    assert [answer.status_code for answer in answers] == [200] * 100
    rows = pd.DataFrame([answer.json()["predictions"][0] for answer in answers])
    together = batch.iloc[wanted].reset_index(drop=True)
    numbers = [name for name in together if name.startswith(("prob_", "raw_"))]
    np.testing.assert_allclose(rows[numbers], together[numbers], atol=1e-5)
    for column in ("decision", "label", "threshold"):
        assert rows[column].tolist() == together[column].tolist()
    assert together["prob_opacity"].std() > 0.01  # answers that could be mixed up would differ


def test_the_network_is_traced_before_the_first_request(model, pictures):
    embedder = model.unwrap_python_model().predictor.embedder
    graphs = (embedder.plain_graph, embedder.resize_graph)
    assert [graph.experimental_get_tracing_count() for graph in graphs] == [1, 1]
    for data in (pictures[:1], pictures[:7]):
        model.predict(pd.DataFrame({"image": data}))
    assert [graph.experimental_get_tracing_count() for graph in graphs] == [1, 1]


def test_a_request_is_answered_with_its_own_rows_whoever_came_with_it():
    batches = []
    gate = threading.Event()

    def compute(pixels):
        batches.append(len(pixels))
        assert gate.wait(600)
        return pd.DataFrame({"value": [int(image) for image in pixels]})

    together = Together(compute, largest=6)
    sizes = [1, 3, 2, 1, 5, 1, 2, 1]
    asked = [[10 * number + image for image in range(size)] for number, size in enumerate(sizes)]
    with ThreadPoolExecutor(len(asked)) as pool:
        callers = [pool.submit(together.answers, pixels) for pixels in asked]
        come = 0
        while come < sum(sizes):  # all of them have come while the first is computed
            time.sleep(0.01)
            waiting = together._waiting.copy()
            come = sum(batches) + sum(len(request.pixels) for request in waiting)
        gate.set()
        values = [caller.result()["value"].tolist() for caller in callers]
    assert values == asked
    assert sum(batches) == sum(sizes)
    assert len(batches) < len(sizes)
    assert max(batches) < 6 + max(sizes)


def test_an_error_of_a_batch_reaches_its_callers_and_the_next_one_is_answered():
    def compute(pixels):
        if 0 in pixels:
            raise ValueError("no zeros")
        return pd.DataFrame({"value": pixels})

    together = Together(compute, largest=4)
    with pytest.raises(ValueError, match="no zeros"):
        together.answers([1, 0])
    assert together.answers([2])["value"].tolist() == [2]


GREY = png(np.full((40, 30), 90, dtype=np.uint8))
BAD = {
    "malformed JSON": ('{"dataframe_split": ', "no valid JSON (line 1, column 21)"),
    "a list": ([1, 2], "one of dataframe_split, dataframe_records, inputs and instances"),
    "no known key": ({"pictures": []}, "in each row exactly one of image, path, pixels"),
    "empty list": (request(), "The request holds no image"),
    "no records": ({"dataframe_records": []}, "The request holds no image"),
    "another column": (
        {"dataframe_records": [{"x": 1}]},
        "rows with exactly one of image, path, pixels",
    ),
    "two columns": (
        {"dataframe_records": [{"image": "AAAA", "path": "a"}]},
        "image and path is there",
    ),
    "image is a number": ({"dataframe_records": [{"image": 7}]}, "cannot be read as a table"),
    "no base64": (
        {"dataframe_records": [{"image": "%%%"}]},
        "Image 0 cannot be read: the file is empty",
    ),
    "cut base64": ({"dataframe_records": [{"image": "AAAAA"}]}, "cannot be read as a table"),
    "a text file": (
        request(b"Dear colleague,"),
        "Image 0 cannot be read: cannot identify image file",
    ),
    "a cut picture": (request(GREY[:60]), "Image 0 cannot be read"),
    "a bomb": (request(png_header(20_000, 20_000)), "Image 0 cannot be read: "),
    "one bad among good": (request(GREY, GREY, b"?", GREY), "Image 2 cannot be read"),
    "pixels of wrong shape": ({"dataframe_records": [{"pixels": [1, 2, 3]}]}, "have shape (3,)"),
    "ragged pixels": ({"dataframe_records": [{"pixels": [[1, 2], [3]]}]}, "differ in length"),
    "pixels out of range": ({"dataframe_records": [{"pixels": [[256]]}]}, "whole numbers 0..255"),
    "a file of the server": (
        {"dataframe_records": [{"path": "/etc/passwd"}]},
        "this model reads no files",
    ),
}


@pytest.mark.parametrize(("body", "sentence"), BAD.values(), ids=BAD.keys())
def test_bad_request_is_refused_with_a_sentence_and_the_server_goes_on(server, body, sentence):
    answer = post(server, body)
    assert 400 <= answer.status_code < 500
    assert sentence in answer.json()["message"]
    assert post(server, request(GREY)).status_code == 200


#: Requests that hold a picture and cannot be used; MLflow alone quotes them all in its answers.
CONTENT = base64.b64encode(png(np.arange(3600, dtype=np.uint8).reshape(60, 60))).decode()
PIXELS = [[77 + column % 13 for column in range(40)] for _ in range(40)]
QUOTED = {
    "cut JSON": '{"inputs": {"image": ["' + CONTENT,
    "a cut picture": {"dataframe_split": {"columns": ["image"], "data": [[CONTENT[:200]]]}},
    "a cut picture as inputs": {"inputs": {"image": [CONTENT[:200]]}},
    "a cut picture as instances": {"instances": [{"image": CONTENT[:200]}]},
    "no column": {"inputs": [CONTENT]},
    "a key": {CONTENT: []},
    "a column": {"dataframe_records": [{CONTENT: 1}]},
    "pixels out of range": {"inputs": {"pixels": [[*PIXELS, [256] * 40]]}},
    "two columns": {"instances": [{"pixels": PIXELS, "image": CONTENT}]},
}


@pytest.mark.parametrize("body", QUOTED.values(), ids=QUOTED.keys())
def test_the_answer_to_a_bad_request_quotes_nothing_of_the_picture(server, body):
    answer = post(server, body)
    assert answer.status_code == 400
    assert len(answer.text) < 600
    pieces = {CONTENT[start : start + 12] for start in range(0, 200, 12)}
    pieces |= {"PNG", "77, 78, 79", "77 78 79"}
    assert not [piece for piece in pieces if piece in answer.text]


def test_inputs_and_instances_are_answered_as_dataframe_split(server, pictures):
    texts = [base64.b64encode(data).decode() for data in pictures[:2]]
    grey = np.asarray(Image.open(io.BytesIO(pictures[0])).convert("L")).tolist()
    expected = post(server, request(*pictures[:2])).json()
    assert post(server, {"inputs": {"image": texts}}).json() == expected
    assert post(server, {"instances": [{"image": text} for text in texts]}).json() == expected
    one = post(server, request(pictures[0])).json()
    for body in (
        {"inputs": {"image": texts[:1]}},
        {"inputs": [{"image": texts[0]}]},
        {"inputs": {"pixels": [grey]}},
        {"instances": [{"pixels": grey}]},
    ):
        assert post(server, body).json() == one


_FIRST_REQUEST = """
import sys
import mlflow, pandas as pd
model = mlflow.pyfunc.load_model(sys.argv[1])
image = open(sys.argv[2], "rb").read()
embedder = model.unwrap_python_model().predictor.embedder
graphs = embedder.plain_graph, embedder.resize_graph

def there():
    packages = {name.partition(".")[0] for name in sys.modules}
    return packages, [graph.experimental_get_tracing_count() for graph in graphs]

packages, traces = there()
model.predict(pd.DataFrame({"image": [image]}))
packages_now, traces_now = there()
print(sorted(packages_now - packages), traces, traces_now)
"""


def test_the_first_request_finds_all_imported_and_traced(package, workspace, tmp_path):
    """What made it slow, seconds instead of hundredths, in a process that has answered nothing before."""
    image = min((workspace / "data/raw/demo/opacity").glob("*.png"))
    done = run(tmp_path, sys.executable, "-c", _FIRST_REQUEST, str(package), str(image))
    assert done.stdout.splitlines()[-1] == "[] [1, 1] [1, 1]"


def test_another_content_type_is_refused(server):
    assert post(server, "image", "text/plain").status_code == 415
    assert post(server, request(GREY)).status_code == 200


def test_pixels_of_any_size_are_predicted_as_their_png(server, model):
    rng = np.random.default_rng(0)
    shapes = [(40, 30), (7, 90, 3), (48, 48, 3)]
    arrays = [rng.integers(0, 256, shape).astype(np.uint8) for shape in shapes]
    encoded = model.predict(pd.DataFrame({"image": [png(array) for array in arrays]}))
    given = model.predict(pd.DataFrame({"pixels": pd.Series(arrays, dtype=object)}))
    pd.testing.assert_frame_equal(given, encoded)
    answer = post(server, {"dataframe_records": [{"pixels": array.tolist()} for array in arrays]})
    np.testing.assert_allclose(
        pd.DataFrame(answer.json()["predictions"])["prob_opacity"],
        encoded["prob_opacity"],
        atol=1e-6,
    )
    mixed = model.predict(
        pd.DataFrame({"image": [png(arrays[0]), None], "pixels": [None, arrays[1]]})
    )
    np.testing.assert_allclose(mixed["prob_opacity"], encoded["prob_opacity"][:2], atol=1e-6)


def test_files_are_read_only_below_the_folder_that_the_owner_allows(
    package, model, workspace, tmp_path
):
    folder = tmp_path / "allowed"
    folder.mkdir()
    (folder / "inside.png").write_bytes(GREY)
    (tmp_path / "outside.png").write_bytes(GREY)
    (folder / "link.png").symlink_to(tmp_path / "outside.png")
    allowed = mlflow.pyfunc.load_model(str(package), model_config={"image_folder": str(folder)})
    expected = model.predict(pd.DataFrame({"image": [GREY]}))
    for path in ("inside.png", str(folder / "inside.png")):
        pd.testing.assert_frame_equal(allowed.predict(pd.DataFrame({"path": [path]})), expected)
    for path in ("../outside.png", "link.png", str(tmp_path / "outside.png"), "absent.png", "."):
        with pytest.raises(MlflowException, match="there is no file") as refusal:
            allowed.predict(pd.DataFrame({"path": [path]}))
        assert refusal.value.get_http_status_code() == 400
    with pytest.raises(MlflowException, match="reads no files"):
        model.predict(pd.DataFrame({"path": [str(folder / "inside.png")]}))


def test_signature_names_what_goes_in_and_comes_out(model):
    signature = model.metadata.signature
    assert signature.inputs.input_names() == ["image", "path", "pixels"]
    answer = model.predict(model.input_example)
    assert signature.outputs.input_names() == list(answer.columns)
    probabilities = ["prob_clear", "prob_opacity", "raw_clear", "raw_opacity"]
    assert list(answer.columns) == [*probabilities, "decision", "label", "threshold"]
    decided = np.where(answer["prob_opacity"] >= answer["threshold"], "opacity", "clear")
    assert (answer["decision"] == decided).all()
    assert answer["label"].tolist() == [["clear", "opacity"].index(name) for name in decided]


def test_mlflow_models_predict_answers_the_input_example(package, model, tmp_path):
    out, example = tmp_path / "out.json", package / "serving_input_example.json"
    words = ["models", "predict", "-m", str(package), "--env-manager", "local"]
    words += ["-i", str(example), "-o", str(out)]
    done = CliRunner().invoke(mlflow.cli.cli, words)
    assert done.exit_code == 0, done.output
    (answer,) = json.loads(out.read_text())["predictions"]
    assert answer == pytest.approx(model.predict(model.input_example).iloc[0].to_dict(), abs=1e-6)


def test_network_is_a_plain_keras_model(package, model):
    keras = pytest.importorskip("keras")
    (path,) = package.rglob("model.keras")
    with zipfile.ZipFile(path) as archive:
        config = archive.read("config.json").decode()
    assert '"Lambda"' not in config
    assert {name.split(".")[0] for name in re.findall(r'"module": "([^"]+)"', config)} == {"keras"}
    network = keras.saving.load_model(path, safe_mode=True)
    assert (network.input_shape, network.output_shape) == ((None, 48, 48, 3), (None, 2))
    probs = keras.ops.softmax(network(np.full((2, 48, 48, 3), 128, dtype=np.float32))).numpy()
    raw = model.predict(pd.DataFrame({"pixels": [np.full((48, 48), 128, dtype=np.uint8)]}))
    np.testing.assert_allclose(
        probs, np.repeat(raw[["raw_clear", "raw_opacity"]].to_numpy(), 2, axis=0), atol=1e-6
    )


def test_artifact_holds_no_pickle(package):
    files = [path for path in package.rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".pkl", ".pickle", ".joblib", ".npy")]
    described = (package / "MLmodel").read_text()
    assert "served.py" in described
    assert "python_model.pkl" not in described


def imported(module: str, seen: set[str]) -> set[str]:
    """Packages that a module of ours imports when it is loaded, through all others of ours."""
    path = REPO / "src" / (module.replace(".", "/") + ".py")
    if module in seen or not path.is_file():
        return set()
    seen.add(module)
    packages: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.startswith("equipoise"):
                packages |= imported(name, seen)
            else:
                packages.add(name.split(".")[0])
    return packages


def test_requirements_pin_all_that_service_imports(package):
    lines = (package / "requirements.txt").read_text().split()
    pinned = {line.split("==")[0].lower() for line in lines if "==" in line}
    assert len(pinned) == len(lines)
    seen: set[str] = set()
    wanted = imported("equipoise.service.served", seen)
    wanted |= {"tensorflow", "keras"}  # these two inside functions
    assert {"equipoise.service.predictor", "equipoise.embed.embedder"} <= seen
    names = {
        "PIL": "pillow",
        "yaml": "pyyaml",
        "sklearn": "scikit-learn",
        "imblearn": "imbalanced-learn",
    }
    assert {names.get(name, name) for name in wanted - set(sys.stdlib_module_names)} <= pinned


#: Module -> what the programs of registered models have used of it, up to now. Never shorten it: where this checkout is
#: imported already, MLflow runs the program of an earlier version with it.
PROMISED = {
    "core.errors": ["DataError"],
    "core.images": ["as_rgb"],
    "service.predictor": ["BATCH_IMAGES", "Predictor", "Source"],
    "service.refusals": ["Refused", "never_quote"],
    "service.together": ["Together"],
    "service.vectors": ["COLUMN", "VectorPredictor"],
}


def test_what_programs_of_registered_models_use_stays_where_it_is():
    for module, names in PROMISED.items():
        for name in names:
            assert hasattr(importlib.import_module(f"equipoise.{module}"), name), (module, name)


@pytest.mark.parametrize("program", ["served", "served_vectors"])
def test_what_programs_import_now_is_promised_from_now_on(program):
    tree = ast.parse((REPO / f"src/equipoise/service/{program}.py").read_text())
    used = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("equipoise."):
            module = node.module.removeprefix("equipoise.")
            used |= {f"{module}.{alias.name}" for alias in node.names}
    promised = {f"{module}.{name}" for module, names in PROMISED.items() for name in names}
    assert used
    assert used <= promised | set(PROMISED)


def test_missing_threshold_is_null_in_json(monkeypatch):
    class Stub:
        def pixels(self, sources):
            return sources

        def answers(self, pixels):
            return pd.DataFrame({"prob_a": [0.4], "threshold": [np.nan]})

    wrapped = served.ServedModel()
    wrapped.predictor = Stub()
    wrapped.together = Together(wrapped.predictor.answers, 1)
    (row,) = wrapped.predict(None, pd.DataFrame({"image": [GREY]})).to_dict("records")
    assert json.dumps(row, allow_nan=False) == '{"prob_a": 0.4, "threshold": null}'


@pytest.mark.parametrize(
    "values", [np.zeros((0, 4)), np.zeros((4, 4, 4), np.uint8), np.ones((4, 4)), [[-1]], "text"]
)
def test_pixels_that_are_no_picture_are_refused(values):
    with pytest.raises(ValueError, match="are expected"):
        images.as_rgb(values)
