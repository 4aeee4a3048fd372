"""The demo's images, drawn from a seed: radiograph-like frames, some with an opacity in a lung.

Several images per patient share that patient's anatomy and exposure, so a split by image would
leak. Nothing but the picture tells the class: files are stored uncompressed, so all have one size, and
an image is as bright as its patient's exposure says, with or without an opacity. A few faults are
planted for `ingest` to find: an exact duplicate, a truncated file and an empty one.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
from PIL import Image

from equipoise.core.config import Phantom
from equipoise.core.files import atomic_folder
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

#: Each kind of random numbers has a stream of its own: [seed, stream, patient, ...].
_PATIENT_STREAM = 1
_OPACITY_STREAM = 2

#: Mean grey level (0..1) of an image at the usual exposure.
_MEAN_GREY = 0.45

#: By how far the chest moves from image to image (standard deviation), and where a lung is from the
#: middle; fractions of the image width.
_MOVED = 0.02
_LUNG_X = 0.2


class Opacity(NamedTuple):
    """Where an opacity is; all three are fractions of the image width."""

    x: float
    y: float
    radius: float


class _Anatomy(NamedTuple):
    """What all images of a patient have in common; each is drawn from a normal distribution around 0."""

    exposure: float
    contrast: float
    width: float
    tilt: float


class _Grid(NamedTuple):
    """Coordinates of every pixel, float64 (size_px, size_px), as fractions of the image width."""

    x: np.ndarray
    y: np.ndarray


class _Frame(NamedTuple):
    """One image: its path below the raw folder, and uint8 (size_px, size_px)."""

    path: str
    pixels: np.ndarray


def parse(path: PurePosixPath) -> Parsed:
    """Read class and patient from `CLASS/patientNNNN_I.png`.

    >>> parse(PurePosixPath("opacity/patient0012_1.png")).patients
    {'patient': 'patient0012'}
    """
    match = _NAME.fullmatch(path.name)
    if not match or path.parent.name not in CARD.tasks["binary"].classes:
        raise Unrecognised("expected {clear,opacity}/patientNNNN_I.png")
    return Parsed(path.parent.name, {"patient": f"patient{match['patient']}"})


def draw(folder: Path, settings: Phantom) -> int:
    """Draw the whole demo into a folder, replacing what is there, and return the number of files.

    Args:
        folder: Where `clear/` and `opacity/` are made; appears only when complete.
        settings: The `phantom` section of params.yaml.
    """
    patients = range(settings.patients)
    with atomic_folder(folder, "drawing") as scratch:
        for patient in progress(patients, "drawing patients", len(patients), "patients"):
            for frame in _frames_of(patient, settings):
                path = scratch / frame.path
                path.parent.mkdir(exist_ok=True)
                # Compressed, a speckled opacity would take more bytes than a clear lung.
                Image.fromarray(frame.pixels).save(path, compress_level=0)
        _plant_faults(scratch)
    paths = Path(folder).rglob("*")
    return sum(path.is_file() for path in paths)


def opacity_centre(patient: int, image: int, settings: Phantom) -> Opacity:
    """Where the opacity of one image is."""
    rng = np.random.default_rng([settings.seed, _OPACITY_STREAM, patient, image])
    side = rng.choice([-1.0, 1.0])
    from_middle = rng.uniform(0.15, 0.25)
    y = rng.uniform(0.35, 0.65)
    radius = rng.uniform(settings.radius_low_fraction, settings.radius_high_fraction)
    return Opacity(0.5 + side * from_middle, y, radius)


def _frames_of(patient: int, settings: Phantom) -> Iterator[_Frame]:
    """Draw every image of a patient."""
    rng = np.random.default_rng([settings.seed, _PATIENT_STREAM, patient])
    anatomy = _Anatomy(*rng.normal(0, settings.patient_effect, 4))
    further_images = rng.poisson(settings.mean_images_per_patient - 1)
    sick_patients = round(settings.opacity_patient_fraction * settings.patients)
    is_sick = patient < sick_patients
    class_name = "opacity" if is_sick else "clear"
    grid = _grid(settings.size_px)
    size = grid.x.shape
    for image in range(1 + further_images):
        moved_x, moved_y = rng.normal(0, _MOVED, 2)
        picture = _chest(grid, anatomy, moved_x, moved_y)
        if is_sick:
            opacity = opacity_centre(patient, image, settings)
            blob = _blob(grid, opacity)
            speckle = 1 + settings.opacity_speckle * rng.standard_normal(size)
            picture = picture + settings.opacity_contrast * blob * speckle
        picture = picture + rng.normal(0, settings.noise, size)
        picture = _exposed(picture, anatomy.exposure)
        levels = np.clip(picture * 255, 0, 255)
        path = f"{class_name}/patient{patient:04d}_{image}.png"
        yield _Frame(path, levels.astype(np.uint8))


def _grid(size_px: int) -> _Grid:
    rows, columns = np.mgrid[0:size_px, 0:size_px]
    x = columns / size_px
    y = rows / size_px
    return _Grid(x, y)


def _chest(grid: _Grid, anatomy: _Anatomy, moved_x: float, moved_y: float) -> np.ndarray:
    """A chest in grey values around 0..1: a body with two dark lungs, ribs and a heart."""
    slant = 0.3 * anatomy.tilt * (grid.y - 0.5)
    x = grid.x - 0.5 - moved_x - slant
    y = grid.y - 0.5 - moved_y

    half_width = 0.48 + 0.5 * anatomy.width
    from_middle = x / half_width
    body = np.exp(-(from_middle**4))

    left_lung = _lung(x + _LUNG_X, y, anatomy)
    right_lung = _lung(x - _LUNG_X, y, anatomy)
    lungs = left_lung + right_lung
    darkness = 0.42 * (1 + anatomy.contrast)

    rib_phase = 7 * y + 2.5 * x * x
    ribs = np.sin(2 * np.pi * rib_phase)

    heart_across = (x - 0.07) / 0.13
    heart_down = (y - 0.15) / 0.17
    heart = np.exp(-(heart_across**2 + heart_down**2))

    picture = 0.75 * body - darkness * lungs
    picture = picture + 0.05 * ribs * lungs
    return picture + 0.22 * heart


def _exposed(picture: np.ndarray, exposure: float) -> np.ndarray:
    """The picture at the mean grey level of an exposure, whatever it shows.

    A detector does the same. Without it an image with an opacity would be brighter, and its mean alone
    would tell the class.
    """
    missing = _MEAN_GREY + exposure - picture.mean()
    return picture + missing


def _lung(x: np.ndarray, y: np.ndarray, anatomy: _Anatomy) -> np.ndarray:
    """1 inside one lung and 0 far from it; `x` and `y` are measured from its centre."""
    half_width = 0.13 + 0.3 * anatomy.width
    across = x / half_width
    down = y / 0.33
    return _inside(across**2 + down**2)


def _blob(grid: _Grid, opacity: Opacity) -> np.ndarray:
    """1 inside an opacity and 0 far from it."""
    across = grid.x - opacity.x
    down = grid.y - opacity.y
    squared_distance = across**2 + down**2
    return _inside(squared_distance / opacity.radius**2)


def _inside(squared_distance: np.ndarray) -> np.ndarray:
    """1 at distance 0, 0 far beyond distance 1, with a smooth edge between."""
    return np.exp(-(squared_distance**2))


def _plant_faults(folder: Path) -> None:
    """Add a copy of the first clear image, the first half of the second one, and an empty file."""
    paths = sorted(folder.glob("clear/*.png"))
    first, second = paths[:2]
    copy = first.with_name(f"{first.stem}_copy.png")
    shutil.copyfile(first, copy)
    content = second.read_bytes()
    truncated = content[: len(content) // 2]
    second.with_name("patient9998_0.png").write_bytes(truncated)
    second.with_name("patient9999_0.png").write_bytes(b"")
