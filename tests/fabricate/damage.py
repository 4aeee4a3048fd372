"""Damaged and hostile images, settings, CSV files and tables through the doors users come in by.

    python tests/fabricate/damage.py [--inputs 20000] [--seed 0] [--only images params]

Each input ends accepted, or refused with a sentence: a ValueError of the decoder (which `ingest` and `predict` turn
into a reason beside the file), a quarantined row, or an EquipoiseError. Everything else is a defect: another
exception, an empty or unbounded sentence, more than 10 s of processor time, more than 2 GB, or a file opened for
writing outside the workspace.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import re
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import yaml
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]

from fabricate import damaged_files, made  # noqa: E402
from fabricate.spoiling import JUNK, Refused, spoil  # noqa: E402

#: Seconds of processor time, and of the clock: the machine may be busy.
SECONDS_MAX, CLOCK_MAX = 10, 300
SENTENCE_MAX = 4000
BYTES_MAX = 2 * 2**30
#: Share of each kind among the inputs.
KINDS = {
    "images": 0.3,
    "dicom": 0.12,
    "folders": 0.02,
    "served": 0.04,
    "params": 0.1,
    "overrides": 0.04,
    "csv": 0.05,
    "lists": 0.08,
    "vectors": 0.08,
    "predictions": 0.05,
    "tables": 0.05,
    "documents": 0.07,
}
#: Where Linux takes the order to forget the largest memory.
_PEAK = "/proc/self/clear_refs"


def peak_bytes() -> int:
    """Largest resident memory of this process; ru_maxrss of a child starts at its parent's."""
    status = Path("/proc/self/status")
    if status.is_file():
        return 1024 * int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1])
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def forget_peak() -> None:
    """Count the largest memory from now on, where the system can."""
    with contextlib.suppress(OSError):
        Path(_PEAK).write_text("5")


class Hang(BaseException):
    """An input took longer than it may; no `except Exception` takes it for its own."""


class Guard:
    """Counts what came of inputs, and notices what they must not do."""

    def __init__(self, workspace: Path) -> None:
        self.workspace, self.counts, self.outside = (
            str(workspace) + os.sep,
            Counter[tuple[str, str]](),
            [],
        )
        self.defects: list[str] = []
        self.largest = 0
        sys.addaudithook(self._watch)

    def _watch(self, event: str, values: tuple[Any, ...]) -> None:
        changes = event in (
            "os.remove",
            "os.rename",
            "os.mkdir",
            "os.rmdir",
            "subprocess.Popen",
            "os.system",
        )
        if event == "open" and isinstance(values[2], int):
            changes = bool(values[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))
        if changes and isinstance(values[0], str | bytes | os.PathLike):
            path = os.path.abspath(os.fsdecode(values[0]))
            if (
                not (path + os.sep).startswith(self.workspace)
                and path not in (os.devnull, _PEAK, os.path.abspath(sys.executable))
                and "__pycache__" not in path
            ):
                self.outside.append(f"{event} {path}")

    def run(self, kind: str, what: str, door: Callable[[], int | None]) -> None:
        """Let one input through a door, which may return how many of its parts it refused with a reason."""
        from equipoise.core.errors import EquipoiseError

        def hang(*_: Any) -> None:
            raise Hang

        signal.signal(signal.SIGALRM, hang)
        signal.alarm(CLOCK_MAX)
        began = time.process_time()
        problem, refused = "", False
        try:
            refused = bool(door())
        except (EquipoiseError, Refused) as error:
            refused, text = True, str(error)
            if not 10 <= len(text) <= SENTENCE_MAX:
                problem = f"a sentence of {len(text)} characters: {text[:60]!r}"
        except Hang:
            problem = f"longer than {CLOCK_MAX} s"
        except BaseException as error:
            place = traceback.extract_tb(error.__traceback__)[-1]
            mine = [
                frame
                for frame in traceback.extract_tb(error.__traceback__)
                if "equipoise" in frame.filename
            ]
            place = mine[-1] if mine else place
            problem = f"{type(error).__name__}: {str(error)[:100]} ({Path(place.filename).name}:{place.lineno})"
        finally:
            signal.alarm(0)
        if (seconds := time.process_time() - began) > SECONDS_MAX:
            problem = f"{seconds:.0f} s of processor time"
        peak = peak_bytes()
        self.largest = max(self.largest, peak)
        if peak > BYTES_MAX:
            problem = f"{peak / 2**30:.1f} GB of memory"
            forget_peak()
        if self.outside:
            problem = f"touched {self.outside[0]}"
            self.outside.clear()
        if problem:
            self.defects.append(f"{kind}, {what}: {problem}")
            print(self.defects[-1], file=sys.stderr, flush=True)
        self.counts[kind, "defect" if problem else "refused" if refused else "accepted"] += 1


# --- images ----------------------------------------------------------------------------------------------------------


def good_images(rng: np.random.Generator) -> list[tuple[str, bytes]]:
    """Small images of every format and mode that a hospital may send."""
    grey = (rng.random((40, 48)) * 255).astype(np.uint8)
    colour = np.dstack([grey, grey.T[:40, :40].repeat(2, 1)[:, :48], 255 - grey])
    modes: dict[str, Image.Image] = {
        "L": Image.fromarray(grey),
        "RGB": Image.fromarray(colour),
        "RGBA": Image.fromarray(np.dstack([colour, grey])),
        "LA": Image.fromarray(np.dstack([grey, grey]), "LA"),
        "P": Image.fromarray(colour).convert("P"),
        "1": Image.fromarray(grey).convert("1"),
        "CMYK": Image.fromarray(colour).convert("CMYK"),
        "YCbCr": Image.fromarray(colour).convert("YCbCr"),
        "LAB": Image.fromarray(colour).convert("LAB"),
        "I;16": Image.fromarray(grey.astype(np.uint16) * 257),
        "I": Image.fromarray(grey.astype(np.int32) * 300),
        "F": Image.fromarray(grey.astype(np.float32) / 255),
        "nan": Image.fromarray(np.where(grey > 9, np.float32("nan"), grey).astype(np.float32)),
    }
    found = []
    for kind in ("PNG", "JPEG", "BMP", "TIFF", "GIF", "WEBP", "PPM", "ICO", "TGA", "JPEG2000"):
        for mode, image in modes.items():
            buffer = io.BytesIO()
            with contextlib.suppress(OSError, ValueError, KeyError, SystemError):
                image.save(buffer, kind)
                found.append((f"{kind} {mode}", buffer.getvalue()))
    for kind in ("GIF", "TIFF", "PNG", "WEBP"):
        buffer = io.BytesIO()
        modes["P"].save(
            buffer, kind, save_all=True, append_images=[modes["P"].rotate(90), modes["P"]]
        )
        found.append((f"{kind} animated", buffer.getvalue()))
    for compression in ("tiff_lzw", "tiff_deflate", "jpeg", "packbits", "group4"):
        buffer = io.BytesIO()
        modes["1" if compression == "group4" else "RGB"].save(
            buffer, "TIFF", compression=compression
        )
        found.append((f"TIFF {compression}", buffer.getvalue()))
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    modes["RGB"].save(buffer, "JPEG", exif=exif)
    return [*found, ("JPEG exif", buffer.getvalue())]


def png(width: int, height: int, depth: int, colour: int, pixels: bytes) -> bytes:
    """A PNG that says what it is told to say."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return (
            struct.pack(">I", len(content))
            + name
            + content
            + struct.pack(">I", zlib.crc32(name + content))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND", b"")
    )


def large_images() -> list[tuple[str, bytes]]:
    """Few bytes that claim, or are, as many pixels as are let in."""
    found = []
    for depth, colour, size in ((8, 2, 3), (16, 0, 2), (16, 6, 8), (8, 0, 1), (1, 0, 1)):
        for side in (9_300, 100_000, 2**31 - 1):
            claim = png(side, side, depth, colour, b"\0")
            found.append((f"PNG of {side} px with one byte", claim))
        rows = 9_300 * (1 + (9_300 * size if depth >= 8 else 9_300 // 8 + 1))
        found.append(
            (
                f"PNG of 9300 px, depth {depth}, colour {colour}",
                png(9_300, 9_300, depth, colour, bytes(rows)),
            )
        )
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((9_300, 9_300), np.float32)).save(
        buffer, "TIFF", compression="tiff_deflate"
    )
    return [*found, ("float TIFF of 9300 px", buffer.getvalue())]


def spoilt_images(count: int, rng: np.random.Generator, large: int) -> Iterator[tuple[str, bytes]]:
    """Inputs of the decoder: the large ones once, unless `large` is 0, and damaged ones."""
    good, some = good_images(rng), large_images()[:large] if large else []
    yield from some
    for _ in range(count - len(some)):
        (name, content), (_, other) = (good[int(rng.integers(len(good)))] for _ in range(2))
        way, data = spoil(content, other, rng)
        yield f"{name} {way}", data


def images_door(content: bytes) -> Callable[[], None]:
    """The decoder, as `embed` and as fine-tuning call it."""
    from equipoise.core import images

    def door() -> None:
        try:
            pixels = images.decode(content, draft_px=32 if len(content) % 2 else 0)
        except ValueError as error:
            raise Refused(f"unreadable: {error}") from error
        assert (pixels.dtype, pixels.ndim, pixels.shape[2]) == (np.uint8, 3, 3), pixels.shape
        images.flags(pixels, grey=True)

    return door


# --- settings --------------------------------------------------------------------------------------------------------


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    for key, item in (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    ):
        yield from _places(item, (*path, key))


def spoilt_params(count: int, rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Texts of params.yaml: values, keys and characters changed; anchors that grow."""
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n"
        for old, new in zip("abcdefgh", "bcdefghi")
    )
    fixed = [
        bomb + text,
        bomb + text.replace("scenarios: [", "scenarios: [*i, "),
        "studies: &s {demo: *s}\n" + text,
    ]
    fixed += [
        text.replace("trials:", "trials: *i #", 1) + bomb,
        "[" * 5000,
        "{a: " * 3000,
        "!!python/object:os.x {}",
    ]
    fixed += [
        "a: " + "9" * 6000,
        "a: 2001-99-99",
        "? [1]\n: 2",
        "",
        "\0",
        "- 1",
        "=",
        "%YAML 9",
        "&a [*a]",
        "a: !!int x",
    ]
    fixed += [
        bomb + text.replace("  baseline:", "  baseline: *i\n  focal:"),
        text.replace("demo:", "../../../demo:", 1),
    ]
    yield from ((f"text {number}", made.encode()) for number, made in enumerate(fixed[:count]))
    for _ in range(count - len(fixed)):
        if rng.random() < 0.3:
            way, content = spoil(text.encode(), text.encode(), rng)
            yield way, content
            continue
        params = yaml.safe_load(text)
        for _ in range(int(rng.integers(1, 3))):
            places = list(_places(params))
            *way_in, last = places[int(rng.integers(len(places)))]
            parent = params
            for key in way_in:
                parent = parent[key]
            junk = JUNK[int(rng.integers(len(JUNK)))]
            if isinstance(parent, dict) and rng.random() < 0.3:
                parent[junk if isinstance(junk, str | int | None) else "trails"] = parent.pop(last)
            else:
                parent[last] = junk
        with contextlib.suppress(yaml.YAMLError, UnicodeEncodeError):
            yield f"{'.'.join(map(str, [*way_in, last]))}", yaml.safe_dump(params).encode()
            continue
        yield "surrogate", b"\xed\xa0\x80: 1"


def params_door(content: bytes) -> Callable[[], None]:
    """What every verb does first; what was accepted must be finite and be written again."""
    from equipoise import pipeline
    from equipoise.core import config

    def door() -> None:
        Path("params.yaml").write_bytes(content)
        params = config.read_params()
        for name in {*config.run_studies(params), "demo"}:
            study = config.load_study(name, params)
            json.dumps(study.model_dump(mode="json"), allow_nan=False)
            pipeline.adhoc_folder(study, "vgg16", "baseline", {})
            assert Path(study.manifest_path).resolve().is_relative_to(Path.cwd())

    return door


def overrides(count: int, rng: np.random.Generator) -> Iterator[tuple[str, str]]:
    """Texts behind `--set`."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))["defaults"]
    keys = [f"{section}.{key}" for section, values in params.items() for key in values or ()]
    for _ in range(count):
        value = JUNK[int(rng.integers(len(JUNK)))]
        key = (
            keys[int(rng.integers(len(keys)))]
            if rng.random() < 0.8
            else str(JUNK[int(rng.integers(len(JUNK)))])
        )
        text = f"{key}={value}"
        yield (
            key[:40],
            text
            if rng.random() < 0.7
            else spoil(text.encode(errors="replace"), b"x=1", rng)[1].decode(errors="replace"),
        )


def overrides_door(text: str) -> Callable[[], None]:
    """What `equipoise scenario --set` does."""
    from equipoise import pipeline
    from equipoise.core import config

    def door() -> None:
        changes = dict([config.parse_override(text)])
        study = config.load_study("demo", overrides=changes)
        pipeline.adhoc_folder(study, "vgg16", "baseline", changes)

    return door


# --- CSV files, folders and tables -----------------------------------------------------------------------------------


def spoilt_csv(count: int, rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Tables of whose image is whose."""
    for _ in range(count):
        names = [f"{name}/{number}.png" for name in ("sick", "well") for number in range(4)]
        rows = [[name, f"p{number // 2}", "x"] for number, name in enumerate(names)]
        head, way = ["image", "patient_id", "scanner"], int(rng.integers(9))
        if way == 0:
            head[int(rng.integers(3))] = str(
                rng.choice(["", "Image", "patient", "image", "patient_id", "\ufeffimage"])
            )
        elif way == 1:
            rows += rows[: int(rng.integers(1, 4))]
        elif way == 2:
            junk = JUNK[int(rng.integers(len(JUNK)))]
            rows[int(rng.integers(8))][int(rng.integers(3))] = str(junk)
        elif way == 3:
            rows[int(rng.integers(8))][1] = "x" * int(rng.choice([1_000, 200_000, 3_000_000]))
        elif way == 4:
            rows[int(rng.integers(8))] += ["more"] * int(rng.integers(1, 4))
        elif way == 5:
            rows = rows[: int(rng.integers(3))]
        elif way == 6:
            rows[2][0] = str(
                rng.choice(
                    ["/etc/passwd", "../../x.png", "sick\\0.png", "./sick/0.png", "SICK/0.PNG"]
                )
            )
        text = "\n".join(",".join(row) for row in [head, *rows]) + "\n"
        content = text.encode(
            str(rng.choice(["utf-8", "utf-8-sig", "utf-16", "latin-1"])), errors="replace"
        )
        yield (
            f"way {way}",
            spoil(content, b'"a\0', rng)[1] if way >= 7 or rng.random() < 0.2 else content,
        )


def csv_door(content: bytes) -> Callable[[], int | None]:
    """`ingest` of an own folder with its table, and the list of images that `predict` reads."""
    from equipoise.core import config
    from equipoise.core.errors import EquipoiseError
    from equipoise.ingest import stage as ingest
    from equipoise.use import predict

    def door() -> int | None:
        Path("data/raw/own/ids.csv").write_bytes(content)
        refused = 0
        try:
            predict.find(["data/raw/own/ids.csv"])
        except EquipoiseError:
            refused = 1
        return ingest.run(config.load_study("own")).summary.quarantined or refused

    return door


def folders_door(contents: list[bytes], rng: np.random.Generator) -> Callable[[], int]:
    """`ingest` of a folder of damaged images, with names that no convention foresaw."""
    from equipoise.core import config
    from equipoise.ingest import stage as ingest

    names = [
        "a.png",
        "b.JPG",
        "c\nd.tif",
        "é.bmp",
        "x" * 200 + ".png",
        "=cmd.gif",
        "..png",
        "q'\".webp",
        "a b.jpeg",
    ]

    def door() -> int:
        folder = Path("data/raw/many")
        shutil.rmtree(folder, ignore_errors=True)
        for label in ("sick", "well"):
            (folder / label).mkdir(parents=True)
            for number in range(3):
                shutil.copy(
                    f"data/raw/own/{label}/{number}.png", folder / label / f"good{number}.png"
                )
        for number, content in enumerate(contents):
            name = names[number] if number < len(names) else f"{number}.png"
            (folder / ("sick", "well")[number % 2] / name).write_bytes(content)
        os.symlink("/etc", folder / "sick" / "out.png")
        return ingest.run(config.load_study("many")).summary.quarantined

    return door


def served_door(content: bytes, rng: np.random.Generator) -> Callable[[], int | None]:
    """A request to the served model and a row of `predict`, with a model that only decodes."""
    from mlflow.exceptions import MlflowException

    from equipoise.core import images
    from equipoise.core.errors import DataError
    from equipoise.service import served
    from equipoise.use import predict

    def decoded(sources: list[Any]) -> list[np.ndarray]:
        pixels = []
        for source in sources:
            try:
                is_decoded = isinstance(source, np.ndarray)
                pixels.append(source if is_decoded else images.decode(source))
            except (ValueError, OSError) as error:
                raise DataError(f"Image cannot be read: {error}.") from error
        return pixels

    def answers(pixels: list[np.ndarray]) -> pd.DataFrame:
        return pd.DataFrame({"prob_sick": [0.5] * len(pixels), "threshold": 0.5})

    model = served.ServedModel()
    model.image_folder = Path("data/raw/own").resolve()
    model.predictor = SimpleNamespace(pixels=decoded)
    model.together = SimpleNamespace(answers=answers)
    text = [
        value for value in JUNK if value != "\ud800"
    ]  # no request in JSON holds half a character
    junk = [text[int(rng.integers(len(text)))] for _ in range(3)]
    row = [
        {"image": content},
        {"path": str(junk[0]).encode(errors="replace").decode()},
        {"pixels": junk[1]},
        {"image": content, "path": "sick/0.png"},
        {"pixels": [[0, 255], [1]]},
        {"pixels": [[0.5, 1e9]]},
        {"image": junk[2]},
        {"path": junk[2]},
    ][int(rng.integers(8))]

    def door() -> int | None:
        Path("one.png").write_bytes(content)
        told = predict.predict_rows(
            SimpleNamespace(predict=lambda table: answers(decoded(list(table["image"])))),
            ["one.png"],
            True,
        )
        try:
            model.predict(None, pd.DataFrame([row]))
        except MlflowException as error:
            if error.error_code != "INVALID_PARAMETER_VALUE":
                raise
            return 1
        return int(bool(told[0]["error"]))

    return door


def spoilt_tables(
    count: int, rng: np.random.Generator, workspace: Path
) -> Iterator[tuple[str, Callable[[], None]]]:
    """Manifests, splits, predictions and JSON files: columns dropped, types changed, rows twice, metadata lost."""
    from equipoise.core import config, files, records
    from equipoise.split import checks
    from equipoise.split import stage as splits

    study = config.load_study("made")
    result = study.result_path("vgg16", "baseline")
    kinds: dict[str, tuple[Path, Callable[[], Any]]] = {
        "manifest": (study.manifest_path, lambda: splits.run(study)),
        "splits": (
            study.splits_path,
            lambda: checks.check_split(
                records.Splits.read(study.splits_path), records.Manifest.read(study.manifest_path)
            ),
        ),
        "predictions": (
            result / "predictions.parquet",
            lambda: (
                records.Predictions.read(result / "predictions.parquet").part("test").test_digest()
            ),
        ),
        "json": (result / "metrics.json", lambda: files.read_json(result / "metrics.json")),
    }
    good = {name: path.read_bytes() for name, (path, _) in kinds.items()}
    splits_bytes = {
        path: path.read_bytes()
        for path in (study.splits_path, study.splits_path.with_suffix(".json"))
    }
    for _ in range(count):
        name = str(rng.choice(list(kinds)))
        path, door = kinds[name]
        if name == "json" or rng.random() < 0.2:
            way, content = spoil(good[name], good["splits"], rng)
        else:
            way, content = _spoilt_table(good[name], rng)

        def whole(
            path: Path = path, content: bytes = content, name: str = name, door: Callable = door
        ) -> None:
            path.write_bytes(content)
            try:
                door()
            finally:
                path.write_bytes(good[name])
                for kept, data in splits_bytes.items():
                    kept.write_bytes(data)

        yield f"{name} {way}", whole


def _spoilt_table(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    arrow = pq.read_table(io.BytesIO(content))
    table, meta = arrow.to_pandas(), json.loads(arrow.schema.metadata[b"equipoise"])
    column, way = str(rng.choice(table.columns)), int(rng.integers(8))
    if way == 0:
        table = table.drop(columns=column)
    elif way == 1:
        kind = str(
            rng.choice(["str", "float64", "category", "bool", "bytes", "datetime64[ns]", "complex"])
        )
        with contextlib.suppress(ValueError, TypeError):
            table[column] = (
                table[column].astype(str).str.encode("utf-8")
                if kind == "bytes"
                else table[column].astype(kind)
            )
    elif way == 2:
        table[column] = table[column].astype(object).where(rng.random(len(table)) > 0.2, None)
    elif way == 3:
        table = pd.concat([table, table.head(int(rng.integers(1, 5)))])
    elif way == 4:
        table = table.head(int(rng.integers(0, 3)))
    elif way == 5:
        value = JUNK[int(rng.integers(len(JUNK)))]
        if (
            isinstance(value, str | int | float)
            and value != "\ud800"
            and abs(value if isinstance(value, float) else 0) >= 0
        ):
            with contextlib.suppress(OverflowError):
                table[column] = pd.Series([value] * len(table))
    elif way == 6:
        key = str(rng.choice(list(meta)))
        meta[key] = JUNK[int(rng.integers(len(JUNK)))]
        if rng.random() < 0.3:
            del meta[key]
        if isinstance(meta.get("classes"), list) and rng.random() < 0.3:
            meta["classes"] = meta["classes"] * 2
    else:
        table = table.sample(frac=1, random_state=int(rng.integers(99)))
    try:
        arrow = pa.Table.from_pandas(table, preserve_index=False)
        text = json.dumps(meta, default=str).encode()
        buffer = io.BytesIO()
        pq.write_table(arrow.replace_schema_metadata({b"equipoise": text}), buffer)
    except (
        pa.ArrowException,
        UnicodeEncodeError,
        OverflowError,
        ValueError,
        TypeError,
        NotImplementedError,
    ):
        return "cut", content[: len(content) // 2]
    return f"way {way}, {column}", buffer.getvalue()


# --- the run ---------------------------------------------------------------------------------------------------------


def workspace(folder: Path) -> None:
    """A made study, and a folder of own images with a table."""
    folder.mkdir()
    os.chdir(folder)
    study = made.study(folder)
    made.result(study, "baseline")
    rng = np.random.default_rng(1)
    for label in ("sick", "well"):
        Path("data/raw/own", label).mkdir(parents=True)
        for number in range(4):
            picture = (rng.random((40, 40)) * 255).astype(np.uint8)
            Image.fromarray(picture).save(f"data/raw/own/{label}/{number}.png")
    params = yaml.safe_load(Path("params.yaml").read_text(encoding="utf-8"))
    shipped = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    own = {"dataset": "folder", "positive_class": "sick", "pseudonymise": False}
    listed = {"file": "list.csv", "image": "image", "label": "label", "patient": "patient"}
    ingests = {
        "own": {**own, "table": "ids.csv", "columns": ["scanner"]},
        "many": own,
        "listed": {**own, "table": {**listed, "split": "side"}, "raw": "data/raw/own"},
    }
    for name, ingest in ingests.items():
        sections = {section: {} for section in shipped["studies"]["demo"]}
        params["studies"][name] = {**sections, "ingest": ingest}
    params["studies"]["demo"] = shipped["studies"]["demo"]
    Path("params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")


def inputs_of(
    kind: str, count: int, rng: np.random.Generator, folder: Path, large: int
) -> Iterator[tuple[str, Callable[[], int | None]]]:
    """Inputs of a kind: what was done to each, and the door it comes in by."""
    if kind == "images":
        for what, content in spoilt_images(count, rng, large):
            yield what, images_door(content)
    elif kind == "dicom":
        for what, content in damaged_files.spoilt_dicom(count, rng):
            yield what, damaged_files.dicom_door(content)
    elif kind == "served":
        for what, content in spoilt_images(count, rng, large):
            yield what, served_door(content, rng)
    elif kind == "folders":
        yield from spoilt_folders(count, rng, large)
    elif kind == "params":
        for what, content in spoilt_params(count, rng):
            yield what, params_door(content)
    elif kind == "overrides":
        for what, text in overrides(count, rng):
            yield what, overrides_door(text)
    elif kind == "csv":
        for what, content in spoilt_csv(count, rng):
            yield what, csv_door(content)
    elif kind == "lists":
        for what, content in damaged_files.spoilt_lists(count, rng):
            yield what, damaged_files.list_door(content)
    elif kind == "vectors":
        yield from damaged_files.spoilt_vectors(count, rng)
    elif kind == "predictions":
        yield from damaged_files.spoilt_predictions(count, rng)
    elif kind == "tables":
        yield from spoilt_tables(count, rng, folder)
    else:
        yield from damaged_files.spoilt_documents(count, rng)


def spoilt_folders(
    count: int, rng: np.random.Generator, large: int
) -> Iterator[tuple[str, Callable[[], int]]]:
    """Raw folders of twelve damaged images and six whole ones."""
    pool = [content for _, content in spoilt_images(count * 12, rng, large=0)]
    for _, content in damaged_files.spoilt_dicom(count, rng):
        pool[int(rng.integers(len(pool)))] = content
    if large:  # one in a folder: more of them are slow, not stuck
        pool[::600] = [large_images()[-1][1]] * len(pool[::600])
    whole = [
        png(40, 40, 8, 0, b"".join(b"\0" + rng.bytes(40) for _ in range(40))) for _ in range(12)
    ]
    for start in range(0, len(pool), 12):
        if rng.random() < 0.3:
            yield "whole images", folders_door(whole, rng)
            continue
        yield f"folder {start // 12}", folders_door(pool[start : start + 12], rng)


def run(folder: Path, inputs: int, seed: int, only: list[str], large: int) -> Guard:
    """Fuzz in a new workspace below `folder`; the working folder is changed to it."""
    # Matplotlib and Pillow: their own folder, and warnings that say what the answer says.
    os.environ |= {
        "EQUIPOISE_KEY": str(folder / "key"),
        "MPLCONFIGDIR": str(folder / "study" / "matplotlib"),
    }
    warnings.simplefilter("ignore")
    workspace(folder / "study")
    params = Path("params.yaml").read_bytes()
    guard = Guard(folder / "study")
    for kind in only:
        rng = np.random.default_rng([seed, *kind.encode()])
        count = max(1, round(KINDS[kind] * inputs))
        Path("params.yaml").write_bytes(params)
        forget_peak()
        began = time.monotonic()
        for what, door in inputs_of(kind, count, rng, folder, large):
            guard.run(kind, what, door)
        counts = {name: guard.counts[kind, name] for name in ("accepted", "refused", "defect")}
        seconds = time.monotonic() - began
        print(f"{kind}: {counts}, {seconds:.0f} s", file=sys.stderr, flush=True)
    beside = sorted(path.name for path in folder.iterdir() if path.name != "study")
    if beside:
        guard.defects.append(f"files beside the workspace: {', '.join(beside)}")
    return guard


def main() -> int:
    """Fuzz and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--inputs", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--small", action="store_true", help="without the images of 9300 px")
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        guard = run(
            Path(folder).resolve(),
            options.inputs,
            options.seed,
            options.only,
            0 if options.small else 21,
        )
        os.chdir(ROOT)
    print("| kind | inputs | accepted | refused with a sentence | defects |\n|---|---|---|---|---|")
    total = np.zeros(4, int)
    for kind in options.only:
        row = [guard.counts[kind, name] for name in ("accepted", "refused", "defect")]
        if sum(row) >= 20 and 0 in row[:2]:
            guard.defects.append(f"{kind}, all: every answer is the same: the door is shut")
        total += [sum(row), *row]
        print(f"| {kind} | {sum(row):,} | {row[0]:,} | {row[1]:,} | {row[2]:,} |")
    print(f"| all | {total[0]:,} | {total[1]:,} | {total[2]:,} | {total[3]:,} |")
    print(f"largest memory {guard.largest / 2**30:.2f} GB, seed {options.seed}")
    for text, times in Counter(defect.split(": ", 1)[1] for defect in guard.defects).most_common(
        40
    ):
        print(
            f"{times} x {text}; first: {next(d for d in guard.defects if d.endswith(text)).split(': ', 1)[0]}"
        )
    return int(bool(guard.defects))


if __name__ == "__main__":
    raise SystemExit(main())
