"""What this machine has for what params.yaml asks: each line ok, warning or error, with the next step."""

from __future__ import annotations

import importlib.metadata
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from equipoise import backbones, config, datasets, strategies
from equipoise.errors import EquipoiseError

Line = tuple[Literal["ok", "warning", "error"], str, str]
_PACKAGES = ("tensorflow", "keras", "mlflow", "dvc", "optuna", "scikit-learn", "imbalanced-learn", "numpy", "pandas")


def examine() -> list[dict[str, str]]:
    """Every line as {"level", "what", "detail"}."""
    return [{"level": level, "what": what, "detail": detail} for level, what, detail in _lines()]


def _lines() -> Iterator[Line]:
    version = sys.version.split()[0]
    good = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield ("ok" if good else "error"), "python", version if good else f"{version}; 3.11 to 3.13 is needed"
    for name in _PACKAGES:
        try:
            yield "ok", name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield "error", name, "not installed; run `make env`, or `uv pip install -r requirements.lock`"
    for program, purpose in (("git", "versions"), ("uv", "mlflow run --env-manager uv"), ("conda", "mlflow run")):
        path = shutil.which(program) or shutil.which(program, path=str(Path(sys.executable).parent))
        yield ("ok", program, "found") if path else ("warning", program, f"not found; needed for {purpose}")
    yield ("ok", "dvc repository", ".dvc") if Path(".dvc").is_dir() else ("error", "dvc repository", "run `dvc init`")
    free = shutil.disk_usage(".").free / 2**30
    yield ("ok" if free > 5 else "warning"), "disk", f"{free:.0f} GiB free"
    yield _tracking()
    try:
        params = config.read_params()
        names = config.run_studies(params)
        yield "ok", "params.yaml", f"runs {', '.join(names)}"
    except EquipoiseError as error:
        yield "error", "params.yaml", str(error)
        return
    for name in names:
        yield from _study(name, params)


def _study(name: str, params: dict[str, Any]) -> Iterator[Line]:
    try:
        study = config.load_study(name, params)
        datasets.load_dataset(study.dataset)
        for scenario in study.scenarios:
            strategies.load_strategy(scenario)
        rows = {backbone: backbones.load_row(backbone) for backbone in study.backbones}
        weights = {backbone: study.settings.embed.weights_for(backbone) for backbone in study.backbones}
    except EquipoiseError as error:
        yield "error", f"study {name}", str(error)
        return
    yield "ok", f"study {name}", f"{study.dataset}, {study.settings.split.scheme}, {study.settings.train.mode}"
    if study.raw.is_dir():
        yield "ok", f"{name}: raw images", str(study.raw)
    elif study.dataset == "phantom":
        yield "ok", f"{name}: raw images", "will be drawn"
    else:
        yield "error", f"{name}: raw images", f"{study.raw} is not there; put the originals there or set ingest.raw"
    for backbone, kind in weights.items():
        cached = Path.home() / ".keras/models" / rows[backbone].file_name
        there = kind == "random" or any(
            path.is_file()
            for path in (
                [backbones.WEIGHTS_FOLDER / rows[backbone].file_name, cached] if kind == "imagenet" else [Path(kind)]
            )
        )
        where = kind if there else f"{kind}: not on this machine, will be downloaded from {rows[backbone].address}"
        level: Literal["ok", "warning", "error"] = "ok" if there else "warning" if kind == "imagenet" else "error"
        yield level, f"{name}: weights of {backbone}", where


def _tracking() -> Line:
    from equipoise import tracking

    uri = tracking.tracking_uri()
    try:
        count = len(tracking.client().search_experiments())
    except Exception as error:  # any store, any driver
        return "error", "tracking", f"{uri}: {str(error).splitlines()[0]}; set MLFLOW_TRACKING_URI"
    return "ok", "tracking", f"{uri} ({count} experiments)"
