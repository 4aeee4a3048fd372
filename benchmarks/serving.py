"""Images a second of `mlflow models serve`, beside the bare forward pass and a model that does nothing.

Usage: python benchmarks/serving.py --model FOLDER --images FOLDER [--requests 400] [--concurrency 8] [--rounds 3]

In each round by turns: the forward pass of the same network over batches of 32 in memory, requests of one image,
requests of eight, and requests to a model that answers at once (what MLflow's server and this client cost). Each answer
is held against batch prediction. Processor time of the server does not count what the client and other programs take.
"""

from __future__ import annotations

import argparse
import base64
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import requests

_BATCH_IMAGES = 32
_NOTHING = """
import mlflow, pandas as pd
class Nothing(mlflow.pyfunc.PythonModel):
    def predict(self, context, model_input, params=None):
        return pd.DataFrame({"decision": ["none"] * len(model_input)})
mlflow.models.set_model(Nothing())
"""


@dataclass(frozen=True)
class Server:
    """A running `mlflow models serve`; the number of its process is that of its group."""

    port: int
    process: subprocess.Popen[bytes]

    def ask(self, images: list[bytes]) -> list[dict[str, Any]]:
        """The answer for each image of one request."""
        rows = [[base64.b64encode(image).decode()] for image in images]
        body = {"dataframe_split": {"columns": ["image"], "data": rows}}
        answer = requests.post(f"http://127.0.0.1:{self.port}/invocations", json=body, timeout=300)
        answer.raise_for_status()
        return answer.json()["predictions"]

    def processor_seconds(self) -> float:
        """Processor time of all processes of the server, as Linux counts it."""
        ticks = 0
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:  # it has ended
                continue
            if int(fields[2]) == self.process.pid:
                ticks += int(fields[11]) + int(fields[12])
        return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def serving(model: str) -> Iterator[Server]:
    """A server of a model on a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", model]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL)
    try:
        while not _up(port):
            time.sleep(0.2)
            if process.poll() is not None:
                raise SystemExit("the server did not start")
        yield Server(port, process)
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def _up(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/ping", timeout=5).ok
    except requests.ConnectionError:
        return False


@dataclass(frozen=True)
class Load:
    """What is asked of a server.

    Attributes:
        images: Contents of files.
        images_per_request: How many of them go in one request.
        requests: How many requests.
        concurrency: How many at a time.
    """

    images: list[bytes]
    images_per_request: int
    requests: int
    concurrency: int

    def places(self, number: int) -> list[int]:
        """Which images a request holds."""
        first = number * self.images_per_request
        return [(first + step) % len(self.images) for step in range(self.images_per_request)]


@dataclass(frozen=True)
class Measured:
    """Of one turn: milliseconds an image, wall and processor; seconds a request; difference to the batch."""

    wall_ms: float
    processor_ms: float
    request_seconds: np.ndarray
    difference: float


@dataclass
class Turns:
    """What was measured in every round, and the seconds of the very first request."""

    bare: list[Measured] = field(default_factory=list)
    one: list[Measured] = field(default_factory=list)
    eight: list[Measured] = field(default_factory=list)
    nothing: list[Measured] = field(default_factory=list)
    first_seconds: float = 0.0


def measure(server: Server, load: Load, batch: pd.DataFrame | None) -> Measured:
    """Ask a server; where `batch` is given, every answer must be its row."""

    def ask(number: int) -> tuple[float, float]:
        places = load.places(number)
        begun = time.perf_counter()
        answers = server.ask([load.images[place] for place in places])
        seconds = time.perf_counter() - begun
        if batch is None:
            return seconds, 0.0
        return seconds, _difference(answers, batch.iloc[places])

    wall, processor = time.perf_counter(), server.processor_seconds()
    with ThreadPoolExecutor(load.concurrency) as pool:
        asked = np.array(list(pool.map(ask, range(load.requests))))
    images = load.requests * load.images_per_request
    return Measured(
        wall_ms=1000 * (time.perf_counter() - wall) / images,
        processor_ms=1000 * (server.processor_seconds() - processor) / images,
        request_seconds=asked[:, 0],
        difference=float(asked[:, 1].max()),
    )


def _difference(answers: list[dict[str, Any]], stored: pd.DataFrame) -> float:
    """Largest difference between the probabilities of answers and of stored rows."""
    answered = pd.DataFrame(answers)
    assert answered["decision"].tolist() == stored["decision"].tolist()
    numbers = [name for name in stored if name.startswith("prob_")]
    return float(np.abs(answered[numbers].to_numpy() - stored[numbers].to_numpy()).max())


def forward(features: Callable[[np.ndarray], np.ndarray], pixels: np.ndarray) -> Measured:
    """The bare pass over batches in memory."""
    wall, processor = time.perf_counter(), time.process_time()
    for start in range(0, len(pixels), _BATCH_IMAGES):
        features(pixels[start : start + _BATCH_IMAGES])
    per_image = 1000 / len(pixels)
    return Measured(
        wall_ms=per_image * (time.perf_counter() - wall),
        processor_ms=per_image * (time.process_time() - processor),
        request_seconds=np.zeros(0),
        difference=0.0,
    )


def show(name: str, turns: list[Measured], limit: list[Measured]) -> None:
    """A line: milliseconds an image, and the part of the forward pass's speed that is reached."""
    wall = np.median([turn.wall_ms for turn in turns])
    processor = np.median([turn.processor_ms for turn in turns])
    pairs = list(zip(limit, turns))
    of_wall = np.median([bare.wall_ms / turn.wall_ms for bare, turn in pairs])
    of_processor = np.median([bare.processor_ms / turn.processor_ms for bare, turn in pairs])
    print(
        f"{name}: {wall:.1f} ms an image ({of_wall:.2f} of the forward pass), "
        f"{processor:.1f} ms of processor ({of_processor:.2f})"
    )


def by_turns(options: argparse.Namespace, images: list[bytes]) -> Turns:
    """Ask both servers and the network itself, round by round."""
    model = mlflow.pyfunc.load_model(options.model)
    batch = model.predict(pd.DataFrame({"image": images}))
    predictor = model.unwrap_python_model().predictor
    pixels = np.stack(predictor.pixels(images))
    single = Load(images, 1, options.requests, options.concurrency)
    eights = Load(images, 8, max(1, options.requests // 8), options.concurrency)
    turns = Turns()
    with (
        tempfile.TemporaryDirectory() as folder,
        serving(options.model) as server,
        serving(_model_that_does_nothing(Path(folder))) as idle,
    ):
        begun = time.perf_counter()
        server.ask(images[:1])
        turns.first_seconds = time.perf_counter() - begun
        idle.ask(images[:1])
        for _ in range(options.rounds):
            turns.bare.append(forward(predictor.embedder.features, pixels))
            turns.one.append(measure(server, single, batch))
            turns.eight.append(measure(server, eights, batch))
            turns.nothing.append(measure(idle, single, None))
    return turns


def _model_that_does_nothing(folder: Path) -> str:
    code = folder / "nothing.py"
    code.write_text(_NOTHING)
    mlflow.pyfunc.save_model(folder / "model", python_model=str(code), pip_requirements=[])
    return str(folder / "model")


def main() -> None:
    """Measure by turns and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder or address of a registered model")
    parser.add_argument("--images", required=True, type=Path)
    parser.add_argument("--requests", type=int, default=400)
    parser.add_argument("--concurrency", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    suffixes = (".png", ".jpg", ".jpeg")
    paths = [path for path in sorted(options.images.rglob("*")) if path.suffix in suffixes]
    turns = by_turns(options, [path.read_bytes() for path in paths[: options.requests]])
    show("forward pass, batches of 32", turns.bare, turns.bare)
    show(f"one image a request, {options.concurrency} at a time", turns.one, turns.bare)
    show(f"eight images a request, {options.concurrency} at a time", turns.eight, turns.bare)
    show("a model that does nothing, one image a request", turns.nothing, turns.bare)
    seconds = np.concatenate([turn.request_seconds for turn in turns.one])
    low, high = np.quantile(seconds, [0.5, 0.95])
    print(
        f"seconds a request of one image: first {turns.first_seconds:.3f}, "
        f"median {low:.3f}, 95 % below {high:.3f}"
    )
    largest = max(turn.difference for turn in turns.one + turns.eight)
    print(f"largest difference to batch prediction: {largest:.1e}")


if __name__ == "__main__":
    main()
