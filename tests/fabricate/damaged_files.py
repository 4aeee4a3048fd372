"""Damaged and hostile DICOM files, tables of images, vectors, predictions and JSON documents, and their doors."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.numpy

from fabricate.spoiling import JUNK, Refused, spoil

Door = Callable[[], int | None]


def junk(rng: np.random.Generator) -> Any:
    """Something that nobody expects."""
    return JUNK[int(rng.integers(len(JUNK)))]


# --- DICOM -----------------------------------------------------------------------------------------------------------

#: Elements that decide how pixels are read, and values that files really have, or that harm.
_ELEMENTS: dict[str, list[Any]] = {
    "Rows": [0, 1, 7, 65535],
    "Columns": [0, 1, 7, 65535],
    "BitsAllocated": [0, 1, 8, 12, 16, 32, 64],
    "BitsStored": [0, 1, 8, 17, 32],
    "HighBit": [0, 15, 31],
    "PixelRepresentation": [0, 1, 2],
    "SamplesPerPixel": [0, 1, 3, 4],
    "PlanarConfiguration": [0, 1, 2],
    "NumberOfFrames": [-1, 0, 2, 2**31 - 1],
    "PhotometricInterpretation": [
        "MONOCHROME1",
        "RGB",
        "YBR_FULL_422",
        "PALETTE COLOR",
        "",
        "x" * 70,
    ],
    "RescaleSlope": [0, -1, 1e300, "nan", "x"],
    "RescaleIntercept": [-1024, 1e300, "inf"],
    "WindowCenter": [0, 1e300, [1, 2], "x"],
    "WindowWidth": [0, -5, 1, 1e300, [1, 2], "nan"],
    "VOILUTFunction": ["SIGMOID", "LINEAR_EXACT", "x"],
    "PixelData": [b"", b"\0" * 7, b"\xff" * 100_001],
    "PatientID": ["", "x" * 5000, "../../x", "=cmd", "a\\b", "\ud800"],
    "SpecificCharacterSet": ["ISO 2022 IR 87", "no such set"],
    "Modality": ["", "x" * 300],
    "ViewPosition": ["PA", "\0"],
}
_SYNTAXES = (
    "1.2.840.10008.1.2",
    "1.2.840.10008.1.2.2",
    "1.2.840.10008.1.2.1.99",
    "1.2.840.10008.1.2.5",
    "1.2.840.10008.1.2.4.50",
    "1.2.840.10008.1.2.4.80",
    "1.2.840.10008.1.2.4.90",
    "1.2.840.10008.1.2.4.100",
    "1.2.3.4.5",
    "",
)


def good_dicom(rng: np.random.Generator) -> list[bytes]:
    """Files of every way in which the product says that it reads DICOM."""
    from fabricate import dicom

    frame = (rng.random((40, 48)) * dicom.WHITE).astype(np.uint16)
    signed = frame.astype(np.int16) - 1000
    window = {"WindowCenter": 2000, "WindowWidth": 3000}
    slope = {"RescaleSlope": 2, "RescaleIntercept": -1024}
    return [
        dicom.dicom_bytes(frame),
        dicom.dicom_bytes(frame, PhotometricInterpretation="MONOCHROME1", **window),
        dicom.dicom_bytes(signed, **slope),
        dicom.dicom_bytes([frame, frame[::-1]]),
        dicom.dicom_bytes(frame, dicom.JPEG_2000),
        dicom.dicom_bytes(frame, dicom.JPEG_LOSSLESS, **slope, **window),
        dicom.with_private_tag(dicom.dicom_bytes(frame, PatientID="p1")),
    ]


def spoilt_dicom(count: int, rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Half of them damaged in their bytes, half with elements that contradict each other."""
    good = good_dicom(rng)
    for _ in range(count):
        content = good[int(rng.integers(len(good)))]
        other = good[int(rng.integers(len(good)))]
        if rng.random() < 0.5:
            yield spoil(content, other, rng)
            continue
        yield _with_other_elements(content, rng)


def _with_other_elements(content: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    import pydicom

    names = [str(name) for name in rng.choice(list(_ELEMENTS), size=int(rng.integers(1, 4)))]
    buffer = io.BytesIO()
    try:
        header = pydicom.dcmread(io.BytesIO(content))
        for name in names:
            values = _ELEMENTS[name]
            if rng.random() < 0.2 and name in header:
                del header[name]
            else:
                setattr(header, name, values[int(rng.integers(len(values)))])
        if rng.random() < 0.3:
            header.file_meta.TransferSyntaxUID = str(rng.choice(_SYNTAXES))
        header.save_as(buffer)
    except Exception:  # what pydicom itself does not write
        return spoil(content, content, rng)
    return " ".join(names), buffer.getvalue()


def dicom_door(content: bytes) -> Door:
    """The decoder, and what `ingest` reads of a header."""
    from equipoise.core import dicom, images

    def door() -> int | None:
        path = Path("one.dcm")
        path.write_bytes(content)
        try:
            fields = dicom.read_fields(path, ["PatientID", "Modality", "ViewPosition"])
            assert all(isinstance(value, str) for value in fields.values()), fields
            pixels = images.decode(content)
        except ValueError as error:
            raise Refused(f"unreadable: {error}") from error
        assert (pixels.dtype, pixels.ndim, pixels.shape[2]) == (np.uint8, 3, 3), pixels.shape
        images.flags(pixels, grey=True)
        return None

    return door


# --- tables of images ------------------------------------------------------------------------------------------------


def spoilt_lists(count: int, rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """Tables that say everything of images: label, patient and side."""
    names = [f"{name}/{number}.png" for name in ("sick", "well") for number in range(4)]
    for _ in range(count):
        head = ["image", "label", "patient", "side"]
        rows = [
            [name, name.split("/")[0], f"p{number}", ("train", "test")[number % 2]]
            for number, name in enumerate(names)
        ]
        way = int(rng.integers(10))
        row, column = int(rng.integers(8)), int(rng.integers(4))
        if way == 0:
            head[column] = str(rng.choice(["", "Image", "label", "LABEL", "image", "side "]))
        elif way == 1:
            rows += [list(one) for one in rows[: int(rng.integers(1, 4))]]
            rows[-1][column] = str(junk(rng))
        elif way == 2:
            rows[row][column] = str(junk(rng))
        elif way == 3:
            rows[row][column] = "x" * int(rng.choice([1_000, 200_000]))
        elif way == 4:
            rows = rows[: int(rng.integers(4))]
        elif way == 5:
            hostile = ["/etc/passwd", "../../x.png", "sick\\0.png", "SICK/0.PNG", "0", "=cmd"]
            rows[row][0] = str(rng.choice(hostile))
        elif way == 6:
            rows[row][1] = str(
                rng.choice(["sick|well", "Sick", "SICK ", "none", "nan", "1", "well;"])
            )
        delimiter = str(rng.choice([",", ";", "\t", "|"]))
        text = "\n".join(delimiter.join(one) for one in [head, *rows]) + "\n"
        encoding = str(rng.choice(["utf-8", "utf-8-sig", "utf-16", "latin-1"]))
        content = text.encode(encoding, errors="replace")
        spoils = way >= 8 or rng.random() < 0.2
        yield f"way {way}", spoil(content, b'"a\0', rng)[1] if spoils else content


def list_door(content: bytes) -> Door:
    """`ingest` of a folder whose table says everything, and `split` where it gives sides."""
    from equipoise.core import config
    from equipoise.ingest import stage as ingest

    def door() -> int | None:
        Path("data/raw/own/list.csv").write_bytes(content)
        return ingest.run(config.load_study("listed")).summary.quarantined

    return door


# --- vectors ---------------------------------------------------------------------------------------------------------

FORMATS = ("npz", "npy", "parquet", "h5", "safetensors")


def write_vectors(path: Path, names: np.ndarray, matrix: np.ndarray) -> None:
    """Write a file as the documentation describes it."""
    if path.suffix == ".npz":
        np.savez_compressed(path, features=matrix, ids=names)
    elif path.suffix == ".npy":
        np.save(path, matrix)
        pd.DataFrame({"image": names}).to_csv(path.with_suffix(".csv"), index=False)
    elif path.suffix == ".parquet":
        columns = {f"f{number}": column for number, column in enumerate(np.atleast_2d(matrix).T)}
        pd.DataFrame({"image_id": names, **columns}).to_parquet(path)
    elif path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            file["features"] = matrix
            file["image_ids"] = [str(name).encode("utf-8", "replace") for name in names]
    else:
        metadata = {"ids": json.dumps([str(name) for name in names])}
        safetensors.numpy.save_file({"features": np.ascontiguousarray(matrix)}, path, metadata)


def spoil_vectors(
    names: np.ndarray, matrix: np.ndarray, rng: np.random.Generator
) -> tuple[str, np.ndarray, np.ndarray]:
    """Vectors that do not belong together, or are none."""
    way = int(rng.integers(12))
    names, matrix = names.copy(), matrix.copy()
    row, column = int(rng.integers(len(matrix))), int(rng.integers(matrix.shape[1]))
    if way == 0:
        matrix = matrix[:row]
    elif way == 1:
        names, matrix = names[:row], matrix[:row]
    elif way == 2:
        matrix[row, column] = rng.choice([np.nan, np.inf, 1e38])
    elif way == 3:
        names[row] = names[0]
    elif way == 4:
        names[row] = str(junk(rng))[:200]
    elif way == 5:
        matrix = matrix[None] if rng.random() < 0.5 else matrix[:, :, None]
    elif way == 6:
        matrix = matrix.astype(
            str(rng.choice(["complex64", "bool", "float64", "int8", "U8", "S8"]))
        )
    elif way == 7:
        matrix[:] = matrix[0]
    elif way == 8:
        matrix[row] = 1.0
    elif way == 9:
        matrix = matrix[:, :0]
    elif way == 10:
        names = np.array([f"../{name}" for name in names], dtype=object)
    else:
        matrix = matrix.astype(np.float64) * 1e300
    return f"way {way}", names, matrix


def hostile_vectors(path: Path, names: np.ndarray, matrix: np.ndarray, way: int) -> str:
    """Files that would run something, read something else, or fill the memory."""
    if path.suffix in (".npz", ".npy"):
        pickled = np.array([{"a": 1}, object], dtype=object)
        write = np.savez if path.suffix == ".npz" else np.save
        if way == 0:
            write(path, pickled, allow_pickle=True)
            return "pickled"
        header = np.lib.format.header_data_from_array_1_0(matrix)
        header["shape"] = (2**20, 2**15)
        buffer = io.BytesIO()
        np.lib.format.write_array_header_1_0(buffer, header)
        if path.suffix == ".npy":
            path.write_bytes(buffer.getvalue() + bytes(1000))
            return "claims 128 GB"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("ids.npy", b"x")
            archive.writestr("features.npy", buffer.getvalue() + bytes(10**7))
        return "claims 128 GB"
    if path.suffix == ".h5":
        with h5py.File(path, "w") as file:
            if way == 0:
                file["features"] = h5py.ExternalLink("/etc/passwd", "/x")
            elif way == 1:
                external = [("/etc/passwd", 0, 400)]
                file.create_dataset("features", (2, 50), "f4", external=external)
            elif way == 2:
                file.create_dataset("features", (2**20, 2**15), "f4", chunks=(64, 64))
            else:
                layout = h5py.VirtualLayout((2, 50), "f4")
                layout[0] = h5py.VirtualSource("/etc/passwd", "x", (50,))
                file.create_virtual_dataset("features", layout)
            file["image_ids"] = [b"a", b"b"]
        return "HDF5 that reaches out"
    if path.suffix == ".parquet":
        lists = pa.array([[1.0, 2.0], None, [[]] and [3.0]])
        pq.write_table(pa.table({"image_id": ["a", "b", "c"], "features": lists}), path)
        return "ragged lists"
    header = {"features": {"dtype": "F32", "shape": [2**20, 2**15], "data_offsets": [0, 2**37]}}
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + bytes(100))
    return "claims 128 GB"


def spoilt_vectors(count: int, rng: np.random.Generator) -> Iterator[tuple[str, Door]]:
    """Files of vectors through `embed`, in every format."""
    from equipoise.core import config
    from equipoise.core.records import Manifest
    from equipoise.embed import formats, imported

    formats._TEXTS_SECONDS = 5

    study = config.load_study("made")
    table = Manifest.read(study.manifest_path).table
    good_names = table["image_id"].to_numpy(dtype=object)
    good = rng.normal(size=(len(table), 6)).astype(np.float32)
    kept = study.features_path("vgg16")
    for number in range(count):
        name = FORMATS[number % len(FORMATS)]
        path = Path(f"features/given.{name}")
        embed = study.settings.embed.model_copy(update={"features": {"vgg16": str(path)}})
        settings = study.settings.model_copy(update={"embed": embed})
        given = study.model_copy(update={"settings": settings})
        way = _write_spoilt(path, good_names, good, rng)

        def door(given: config.Study = given) -> None:
            safe = Path("features/kept")
            shutil.copytree(kept, safe)
            try:
                imported.run(given, "vgg16")
            finally:
                shutil.rmtree(kept, ignore_errors=True)
                safe.rename(kept)

        yield f"{name} {way}", door


def _write_spoilt(
    path: Path, names: np.ndarray, matrix: np.ndarray, rng: np.random.Generator
) -> str:
    shutil.rmtree(path.parent, ignore_errors=True)
    path.parent.mkdir()
    chance = rng.random()
    if chance < 0.1:
        return hostile_vectors(path, names, matrix, int(rng.integers(4)))
    if chance < 0.5:
        way, other_names, other = spoil_vectors(names, matrix, rng)
        # What a format cannot hold is not written.
        with contextlib.suppress(Exception), warnings.catch_warnings(action="ignore"):
            write_vectors(path, other_names, other)
            return way
    write_vectors(path, names, matrix)
    target = path
    if path.suffix == ".npy" and rng.random() < 0.5:
        target = path.with_suffix(".csv")
    way, content = spoil(target.read_bytes(), b"PK\x03\x04", rng)
    target.write_bytes(content)
    return way


# --- predictions -----------------------------------------------------------------------------------------------------


def predictions_table(rng: np.random.Generator) -> pd.DataFrame:
    """What `judge` reads: two images of a patient."""
    labels = np.repeat([1, 0], [16, 24])
    rows = np.arange(len(labels))
    return pd.DataFrame(
        {
            "image": [f"i{row:03d}" for row in rows],
            "patient": [f"p{row // 2:03d}" for row in rows],
            "label": labels,
            "fold": rows // 2 % 2,
            "prob": np.round(1 / (1 + np.exp(-rng.normal(size=len(labels)) - labels)), 6),
        }
    )


def spoil_table(table: pd.DataFrame, rng: np.random.Generator) -> tuple[str, pd.DataFrame]:
    """A table with one thing wrong, or nothing."""
    column, way = str(rng.choice(table.columns)), int(rng.integers(10))
    row = int(rng.integers(len(table)))
    if way == 0:
        return f"without {column}", table.drop(columns=column)
    if way == 1:
        return "rows twice", pd.concat([table, table.head(int(rng.integers(1, 5)))])
    if way == 2:
        return "few rows", table.head(int(rng.integers(4)))
    if way == 3:
        changed = table.astype({column: object})
        changed.loc[row, column] = str(junk(rng))[:5000]
        return f"junk in {column}", changed
    if way == 4:
        return f"{column} empty", table.assign(**{column: None})
    if way == 5:
        name = str(
            rng.choice(["prob_a", "", "label", "method", "part", "prob_1", "threshold", "x" * 999])
        )
        return f"{column} is {name[:9]}", table.rename(columns={column: name})
    if way == 6:
        return "other order", table.sample(frac=1, random_state=int(rng.integers(99)))
    if way == 7:
        factor = float(rng.choice([2, -1, np.nan, 1e308]))
        return f"prob times {factor}", table.assign(prob=table["prob"] * factor)
    if way == 8:
        return f"{column} of one value", table.assign(**{column: table[column].iloc[0]})
    return "as it is", table


def spoilt_predictions(count: int, rng: np.random.Generator) -> Iterator[tuple[str, Door]]:
    """Files of predictions through `judge`: CSV and Parquet, alone and together."""
    from equipoise.core import config
    from equipoise.judge.verdicts import judge_files

    settings = config.judging_settings(None, {"compare.resamples": 100})
    good = predictions_table(rng)
    for number in range(count):
        suffix = ("csv", "parquet")[number % 2]
        paths = [Path(f"one.{suffix}"), Path(f"other.{suffix}")]
        tables = [good, good.assign(prob=(good["prob"] * 0.9).round(6))]
        way, tables[number // 2 % 2] = spoil_table(tables[number // 2 % 2], rng)
        for path, table in zip(paths, tables):
            _write_table(path, table)
        if rng.random() < 0.3:
            way, content = spoil(paths[0].read_bytes(), paths[1].read_bytes(), rng)
            paths[0].write_bytes(content)

        def door(paths: list[Path] = paths) -> None:
            found = judge_files(paths, settings, None, None)
            json.loads(found.document().text())

        yield f"{suffix} {way}", door


def _write_table(path: Path, table: pd.DataFrame) -> None:
    if path.suffix == ".csv":
        table.to_csv(path, index=False, encoding="utf-8", errors="replace")
        return
    table = table.loc[:, ~table.columns.duplicated()]
    try:
        table.to_parquet(path, index=False)
    except Exception:  # a column of which Parquet makes nothing
        texts = table.map(lambda value: str(value).encode("utf-8", "replace").decode())
        texts.to_parquet(path, index=False)


# --- JSON documents --------------------------------------------------------------------------------------------------


def spoilt_documents(count: int, rng: np.random.Generator) -> Iterator[tuple[str, Door]]:
    """The JSON files of a study, through the classes that read them."""
    from equipoise.core import config, documents

    study = config.load_study("made")
    result = study.result_path("vgg16", "baseline")
    readers: list[tuple[Path, Any]] = [
        (result / "metrics.json", documents.ScenarioSummary),
        (result / "best.json", documents.Choices),
        (study.manifest_path.with_suffix(".json"), documents.IngestSummary),
        (study.splits_path.with_suffix(".json"), documents.SplitSummary),
        (study.features_path("vgg16") / "meta.json", documents.FeatureSummary),
    ]
    good = [path.read_bytes() for path, _ in readers]
    for number in range(count):
        place = number % len(readers)
        path, document = readers[place]
        if rng.random() < 0.5:
            way, content = spoil(good[place], good[place - 1], rng)
        else:
            way, content = _with_other_value(json.loads(good[place]), rng)

        def door(
            path: Path = path,
            content: bytes = content,
            document: Any = document,
            place: int = place,
        ) -> None:
            path.write_bytes(content)
            try:
                document.read(path)
            finally:
                path.write_bytes(good[place])

        yield f"{path.name} {way}", door


def _with_other_value(document: Any, rng: np.random.Generator) -> tuple[str, bytes]:
    """The document with junk, or nothing, in one place."""
    inside, key = document, None
    parent: Any = None
    while isinstance(inside, dict | list) and inside and (key is None or rng.random() < 0.7):
        keys = list(inside) if isinstance(inside, dict) else list(range(len(inside)))
        parent, key = inside, keys[int(rng.integers(len(keys)))]
        inside = inside[key]
    if parent is None:
        return "empty", b"{}"
    if isinstance(parent, dict) and rng.random() < 0.3:
        del parent[key]
    else:
        parent[key] = junk(rng)
    with contextlib.suppress(ValueError, TypeError):
        return f"{key}", json.dumps(document, ensure_ascii=False).encode("utf-8", "replace")
    return f"{key} gone", b"[]"
