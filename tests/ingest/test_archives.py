"""Archives made to do harm, or damaged: each is refused for its reason, and nothing of it stays."""

import gzip
import io
import random
import shutil
import stat
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

from equipoise.core.errors import DataError
from equipoise.ingest import archives
from equipoise.ingest.datasets import chest_xray

NOISE = random.Random(0).randbytes(300_000)
MODES = ("zip", "w", "w:gz")
FORMATS = pytest.mark.parametrize("mode", MODES)


def packed(mode: str, members, method: int = zipfile.ZIP_DEFLATED) -> bytes:
    """A zip or a tar of (name or header, content)."""
    buffer = io.BytesIO()
    if mode == "zip":
        with zipfile.ZipFile(buffer, "w", method) as file:
            for name, content in members:
                file.writestr(name, content)
    else:
        with tarfile.open(fileobj=buffer, mode=mode, format=tarfile.PAX_FORMAT) as file:
            for name, content in members:
                info = header(name, tarfile.REGTYPE) if isinstance(name, str) else name
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def header(name: str, kind: bytes, link: str = "", size: int = 0, **pax) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size, info.pax_headers = kind, link, size, pax
    return info


def unpack(place: Path, body: bytes, limits: archives.Limits = archives.LIMITS) -> list[str]:
    """Unpack into `to` and return what is there; what was recorded must agree."""
    (place / "given").write_bytes(body)
    recorded: list[archives.Contents] = []
    archives.unpack(place / "given", place / "to", recorded.append, limits)
    found = [path for path in (place / "to").rglob("*") if path.is_file()]
    assert recorded == [(len(found), sum(path.stat().st_size for path in found))]
    return sorted(path.relative_to(place / "to").as_posix() for path in found)


def refuse(
    place: Path, body: bytes, expected: str, limits: archives.Limits = archives.LIMITS
) -> None:
    before = sorted(place.parent.iterdir())
    with pytest.raises(DataError, match=expected) as refusal:
        unpack(place, body, limits)
    assert str(refusal.value).isprintable()
    assert list(place.iterdir()) == [place / "given"]
    assert sorted(place.parent.iterdir()) == before


@FORMATS
def test_finders_archive_unpacks_to_what_the_grammar_reads(tmp_path, mode):
    images = [
        "train/PNEUMONIA/person7_virus_12.jpeg",
        "test/NORMAL/IM-0001-0001.jpeg",
        "val/NORMAL/IM-2-1.jpeg",
    ]
    clutter = [
        "__MACOSX/chest_xray/train/._NORMAL",
        "__MACOSX/x/person1_virus_1.jpeg",
        "chest_xray/.DS_Store",
    ]
    clutter += ["chest_xray/chest_xray/train/PNEUMONIA/._person7_virus_12.jpeg"]
    names = [f"chest_xray/chest_xray/{name}" for name in images]
    folder = "chest_xray/" if mode == "zip" else header("./", tarfile.DIRTYPE)
    members = [(folder, b""), *((name, name.encode()) for name in names + clutter)]
    (tmp_path / ".to.unpacking/stale").mkdir(parents=True)  # What a killed run left.
    (tmp_path / "to").mkdir()
    found = unpack(tmp_path, packed(mode, members))
    assert found == sorted(names)
    assert all((tmp_path / "to" / name).read_bytes() == name.encode() for name in names)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given", "to"]
    parsed = [chest_xray.parse(PurePosixPath(path)) for path in found]
    assert [each.columns["official_split"] for each in parsed] == ["test", "train", "train"]


OUTSIDE = [
    "/etc/passwd",
    "../up.png",
    "a/../../up.png",
    "a/..",
    "C:/up.png",
    "a\\..\\up.png",
    "__MACOSX/../../up.png",
]
UNPORTABLE = [
    ".",
    "a/b:stream",
    "a/dot.",
    "a/con.png",
    "LPT1",
    "a/\x1b[2J.png",
    "a/\u202egnp.exe",
    "a/" * 501,
]
UNPORTABLE += ["a/" + "n" * 256, "a/" + "\u00e9" * 128]
TWICE = ["a/x.png", "A/X.PNG", "./a//x.png", "a/x.png/y.png"]
LINKS = [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"Z"]
SPARSE = {"GNU.sparse.map": "0,1", "GNU.sparse.size": "99999999", "GNU.sparse.major": "0"}


def hostile() -> Iterator[tuple[str, bytes, str]]:
    """What the archive is, its bytes, why it must be refused."""
    first, second = ("a/first.png", b"x"), ("a/second.png", NOISE)
    for mode in MODES:
        for name in OUTSIDE + UNPORTABLE:
            yield (
                f"{mode} {name}",
                packed(mode, [first, (name, b"x")]),
                "leads out of the folder, or is no file name",
            )
        for name in TWICE:
            pair = [("a/x.png", b"one"), (name, b"two")]
            yield f"{mode} {name} twice", packed(mode, pair), "stands there twice"
            yield f"{mode} {name} twice, reversed", packed(mode, pair[::-1]), "stands there twice"
        accents = [("a/\u00e9.png", b"one"), ("a/e\u0301.png", b"two")]
        yield f"{mode} two spellings of a letter", packed(mode, accents), "stands there twice"
        whole = packed(mode, [first, second]).rstrip(b"\0")
        for cut in (0.02, 0.5, 0.999):
            yield f"{mode} cut at {cut}", whole[: int(len(whole) * cut)], "damaged, cut short"
        for members in (
            [],
            [("__MACOSX/x", b"x")],
            [("folder/", b"") if mode == "zip" else ("._file", b"")],
        ):
            yield f"{mode} without files {members}", packed(mode, members), "0 files"
    for body in (b"", b"<!DOCTYPE html>\x1b[2J sign in", NOISE[:5000], b"PK", b"\x1f\x8b", b"P"):
        yield f"no archive {body[:5]!r}", body, "no .zip, .tar or .tar.gz"

    for kind in (stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK):
        info = zipfile.ZipInfo("a/it")
        info.external_attr = (kind | 0o777) << 16
        yield (
            f"zip kind {kind}",
            packed("zip", [first, (info, b"/etc")]),
            "is a link, a device, or packed",
        )
    for method in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
        yield (
            f"zip method {method}",
            packed("zip", [first], method),
            "is a link, a device, or packed",
        )
    good = packed("zip", [second])
    for size in (100, 900_000):
        lying = good.replace(struct.pack("<L", len(NOISE)), struct.pack("<L", size))
        yield (
            f"zip stating {size} bytes",
            lying,
            "BadZipFile" if size == 100 else "not what came out",
        )
    yield "zip with a NUL", good.replace(b"second", b"sec\0nd"), "sec.x00nd.png leads out"
    yield "zip without a name", good.replace(b"a/second", b"\0/second"), "damaged|leads out"
    yield "zip lacking its middle", good[:100] + good[200:], "damaged"
    locked = bytearray(good)
    locked[good.index(b"PK\1\2") + 8] |= 1
    locked[good.index(b"PK\3\4") + 6] |= 1
    yield "zip with a password", bytes(locked), "second.png'.*is encrypted"

    for kind in LINKS:
        for link in ("/etc", "a/first.png", "../up"):
            yield (
                f"tar {kind} to {link}",
                packed("w:gz", [first, (header("a/it", kind, link), b"")]),
                "is a link",
            )
    yield (
        "tar sparse",
        packed("w", [(header("a/it", tarfile.REGTYPE, **SPARSE), b"x")]),
        "is a link, a device, or packed",
    )
    yield "tar name not UTF-8", packed("w", [("a/\udcff.png", b"x")]), "leads out of the folder"
    whole = packed("w", [("1.png", b"x" * 512), ("2.png", b"y" * 512)])
    for end in (1024, 2048):
        yield f"tar cut between members at {end}", whole[:end], "no end mark"
    checksum = bytearray(packed("w:gz", [first]))
    checksum[-8] ^= 1
    yield "gzip checksum", bytes(checksum), "CRC check failed"
    for kind in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME):
        for size in (2**33 - 1, archives.TAR_READ_BYTES_MAX + 1, -1024):
            body = header("a", kind, size=size).tobuf(tarfile.GNU_FORMAT) + bytes(10_240)
            yield f"tar header {kind} of {size}", body, "far more bytes"
    body = header("a", tarfile.REGTYPE, size=-512).tobuf(tarfile.GNU_FORMAT) + bytes(10_240)
    yield "tar file of negative size", body, "unpacks to more"
    yield (
        "tar chained headers",
        header("a", tarfile.XHDTYPE).tobuf() * 5000 + bytes(1024),
        "damaged",
    )


with warnings.catch_warnings(action="ignore"):  # zipfile warns of names that come twice.
    HOSTILE = list(hostile())


@pytest.mark.parametrize(
    ("body", "expected"), [case[1:] for case in HOSTILE], ids=[ascii(case[0]) for case in HOSTILE]
)
def test_hostile_and_damaged_archives(tmp_path, body, expected):
    (tmp_path / "in").mkdir()
    refuse(tmp_path / "in", body, expected)


@pytest.mark.parametrize("name", ["a/{}.png", "__MACOSX/{}.png"])
@FORMATS
def test_bombs(tmp_path, mode, name):
    most_bytes = 600_000 if mode == "w" else 10**9
    limits = archives.Limits(free_bytes=100_000, most_bytes=most_bytes)
    members = [(name.format(number), bytes(500_000)) for number in range(3)]
    refuse(tmp_path, packed(mode, members), "unpacks to more than", limits)
    assert unpack(tmp_path, packed(mode, [("a.png", bytes(50_000))]), limits) == ["a.png"]


def test_bytes_that_belong_to_no_member_are_bounded_too(tmp_path):
    limits = archives.Limits(free_bytes=100_000)
    comments = [
        (header(f"{number}.png", tarfile.REGTYPE, comment="x" * 200_000), b"")
        for number in range(5)
    ]
    refuse(tmp_path, packed("w:gz", comments), "far more bytes", limits)
    trailing = gzip.compress(packed("w", [("a.png", b"x")]) + bytes(9_000_000))
    refuse(tmp_path, trailing, "far more bytes", limits)


@pytest.mark.parametrize("name", ["{}.png", "folder{}/", "__MACOSX/{}", "{}/{}/{}/{}.png"])
@FORMATS
def test_count_bombs(tmp_path, mode, name):
    count = 101 if name.count("{}") == 1 else 30
    members = [(name.replace("{}", str(number)), b"") for number in range(count)]
    limits = archives.Limits(members=100)
    refuse(tmp_path, packed(mode, members), "more than 100 files and folders", limits)


def test_files_that_vanish_while_unpacking(tmp_path, monkeypatch):
    """Two names that the file system takes for one, or a second run, must not end in a folder that lacks images."""
    copy = shutil.copyfileobj

    def lossy(source, target, *words):
        copy(source, target, *words)
        Path(target.name).with_name("a.png").unlink(missing_ok=True)

    monkeypatch.setattr(shutil, "copyfileobj", lossy)
    refuse(tmp_path, packed("zip", [("a.png", b""), ("b.png", b"x")]), "2 files of 1 bytes")


def test_a_folder_that_was_filled_meanwhile_is_kept(tmp_path):
    (tmp_path / "given").write_bytes(packed("zip", [("a.png", b"x")]))
    filled = tmp_path / "to" / "mine.png"

    def fill(contents: archives.Contents) -> None:
        filled.parent.mkdir()
        filled.write_bytes(b"mine")

    with pytest.raises(OSError, match="not empty"):
        archives.unpack(tmp_path / "given", tmp_path / "to", fill)
    assert filled.read_bytes() == b"mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["given", "to"]


@FORMATS
def test_damage_anywhere_is_refused_or_harmless(tmp_path, mode):
    """Some bytes changed at random: refused, or unpacked in its place; never another error, never files elsewhere."""
    body = packed(
        mode, [("a/1.png", NOISE[:300]), ("b/2.png", NOISE[300:700]), ("b/long" + "n" * 120, b"x")]
    )
    draw, refused = random.Random(1), 0
    for number in range(100):
        spoilt = bytearray(body)
        for _ in range(draw.randint(1, 4)):
            spoilt[draw.randrange(len(body.rstrip(b"\0")))] = draw.choice(
                [0, 255, draw.randrange(256)]
            )
        place = tmp_path / str(number)
        place.mkdir()
        try:
            unpack(place, bytes(spoilt))
        except DataError:
            refused += 1
        left = {"given"} if not (place / "to").exists() else {"given", "to"}
        assert {path.name for path in place.iterdir()} == left
    assert 30 < refused <= 100
    assert len(list(tmp_path.iterdir())) == 100
