"""The demo's images, drawn from a seed: radiograph-like frames, some with an opacity in a lung.

Several images per patient share that patient's anatomy and exposure, so a split by image would leak. A few faults are
planted for `ingest` to find: an exact duplicate, a truncated file and an empty one.
"""

from __future__ import annotations

import io
import re
import shutil
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from equipoise.core.parallel import progress
from equipoise.ingest.datasets.base import Card, Parsed, Task, Unrecognised

CARD = Card(
    title="Drawn radiograph-like phantoms with a speckled opacity",
    source="drawn by `equipoise phantom` from a seed",
    licence="Apache-2.0, like the program",
    citation="none",
    tasks={"binary": Task(classes=("clear", "opacity"), positive_class="opacity")},
    readings={"patient": "the number in the name"},
)

_NAME = re.compile(r"patient(?P<patient>\d+)_\d+(_copy)?\.png")


def parse(path: PurePosixPath) -> Parsed:
    """Read class and patient from `CLASS/patientNNNN_I.png`.

    >>> parse(PurePosixPath("opacity/patient0012_1.png")).patients
    {'patient': 'patient0012'}
    """
    match = _NAME.fullmatch(path.name)
    if not match or path.parent.name not in CARD.tasks["binary"].classes:
        raise Unrecognised("expected {clear,opacity}/patientNNNN_I.png")
    return Parsed(path.parent.name, {"patient": f"patient{match['patient']}"})


def draw(folder: Path, settings: Mapping[str, Any]) -> int:
    """Draw the whole demo into a folder, replacing what is there, and return the number of files.

    Args:
        folder: Where `clear/` and `opacity/` are made; appears only when complete.
        settings: The `phantom` section of params.yaml.
    """
    folder = Path(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = folder.with_name(
        f".{folder.name}.drawing"
    )  # one name, so that what a killed run left is found
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        for patient in progress(
            range(settings["patients"]), "drawing patients", settings["patients"], "patients"
        ):
            for name, pixels in _patient(patient, settings):
                path = scratch / name
                path.parent.mkdir(exist_ok=True)
                Image.fromarray(pixels).save(path, compress_level=6)
        _plant_faults(scratch)
        shutil.rmtree(folder, ignore_errors=True)
        scratch.rename(folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return sum(1 for path in folder.rglob("*") if path.is_file())


def opacity_centre(
    patient: int, image: int, settings: Mapping[str, Any]
) -> tuple[float, float, float]:
    """Where an opacity is: (x, y, radius) as fractions of the width."""
    rng = np.random.default_rng([settings["seed"], 2, patient, image])
    side = rng.choice([-1.0, 1.0])
    low, high = settings["radius_low_fraction"], settings["radius_high_fraction"]
    return 0.5 + side * rng.uniform(0.15, 0.25), rng.uniform(0.35, 0.65), rng.uniform(low, high)


def _patient(patient: int, settings: Mapping[str, Any]) -> list[tuple[str, np.ndarray]]:
    rng = np.random.default_rng([settings["seed"], 1, patient])
    size, effect = settings["size_px"], settings["patient_effect"]
    sick = patient < round(settings["opacity_patient_fraction"] * settings["patients"])
    exposure, contrast, width, tilt = rng.normal(0, effect, 4)
    frames = []
    y, x = np.mgrid[0:size, 0:size] / size
    for image in range(1 + rng.poisson(settings["mean_images_per_patient"] - 1)):
        dx, dy = rng.normal(0, 0.02, 2)
        u, v = x - 0.5 - dx - 0.3 * tilt * (y - 0.5), y - 0.5 - dy
        body = 0.75 * np.exp(-((u / (0.48 + 0.5 * width)) ** 4))
        lungs = sum(
            np.exp(-((((u - s * 0.2) / (0.13 + 0.3 * width)) ** 2 + (v / 0.33) ** 2) ** 2))
            for s in (-1, 1)
        )
        ribs = 0.05 * np.sin(2 * np.pi * (7 * v + 2.5 * u * u)) * lungs
        heart = 0.22 * np.exp(-(((u - 0.07) / 0.13) ** 2 + ((v - 0.15) / 0.17) ** 2))
        picture = body - 0.42 * (1 + contrast) * lungs + ribs + heart + exposure
        if sick:
            cx, cy, radius = opacity_centre(patient, image, settings)
            blob = np.exp(-((((x - cx) ** 2 + (y - cy) ** 2) / radius**2) ** 2))
            speckle = 1 + settings["opacity_speckle"] * rng.standard_normal((size, size))
            picture = picture + settings["opacity_contrast"] * blob * speckle
        picture = picture + rng.normal(0, settings["noise"], (size, size))
        name = f"{'opacity' if sick else 'clear'}/patient{patient:04d}_{image}.png"
        frames.append((name, np.clip(picture * 255, 0, 255).astype(np.uint8)))
    return frames


def _plant_faults(folder: Path) -> None:
    clear = sorted((folder / "clear").glob("*.png"))
    shutil.copyfile(clear[0], clear[0].with_name(f"{clear[0].stem}_copy.png"))
    buffer = io.BytesIO(clear[1].read_bytes())
    clear[1].with_name("patient9998_0.png").write_bytes(
        buffer.getvalue()[: buffer.getbuffer().nbytes // 2]
    )
    clear[1].with_name("patient9999_0.png").write_bytes(b"")
