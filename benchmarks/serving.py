"""Requests a second of `mlflow models serve`, each answer held against batch prediction.

Usage: python benchmarks/serving.py --model FOLDER --images FOLDER [--requests 1000] [--concurrency 8]
"""

import argparse
import base64
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import requests


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder or address of a registered model")
    parser.add_argument("--images", required=True, type=Path)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=8)
    options = parser.parse_args()
    paths = [
        path
        for path in sorted(options.images.rglob("*"))
        if path.suffix in (".png", ".jpg", ".jpeg")
    ]
    data = [path.read_bytes() for path in paths[: options.requests]]
    batch = mlflow.pyfunc.load_model(options.model).predict(pd.DataFrame({"image": data}))
    numbers = [name for name in batch if name.startswith("prob_")]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "models",
        "serve",
        "-m",
        options.model,
        "--env-manager",
        "local",
    ]
    start = time.perf_counter()
    server = subprocess.Popen(
        [*command, "--host", "127.0.0.1", "--port", str(port)], start_new_session=True
    )
    try:
        while not _up(port):
            time.sleep(0.2)
            if server.poll() is not None:
                raise SystemExit("the server did not start")
        print(f"start: {time.perf_counter() - start:.1f} s")

        def ask(number: int) -> tuple[float, float]:
            place, begun = number % len(data), time.perf_counter()
            rows = [[base64.b64encode(data[place]).decode()]]
            body = {"dataframe_split": {"columns": ["image"], "data": rows}}
            answer = requests.post(f"http://127.0.0.1:{port}/invocations", json=body, timeout=300)
            answer.raise_for_status()
            (row,) = answer.json()["predictions"]
            stored = batch.iloc[place]
            assert row["decision"] == stored["decision"], paths[place]
            difference = max(abs(row[name] - stored[name]) for name in numbers)
            return time.perf_counter() - begun, difference

        ask(0)
        begun = time.perf_counter()
        with ThreadPoolExecutor(options.concurrency) as pool:
            answers = list(pool.map(ask, range(options.requests)))
        wall = time.perf_counter() - begun
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait()
    seconds, differences = np.array(answers).T
    low, high = np.quantile(seconds, [0.5, 0.95])
    print(f"{len(answers)} of {options.requests} answered, {len(answers) / wall:.1f} a second")
    print(f"seconds a request: median {low:.3f}, 95 % below {high:.3f}")
    print(f"largest difference to batch prediction: {differences.max():.1e}")


def _up(port: int) -> bool:
    try:
        return requests.get(f"http://127.0.0.1:{port}/ping", timeout=5).ok
    except requests.ConnectionError:
        return False


if __name__ == "__main__":
    main()
