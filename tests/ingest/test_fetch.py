"""Downloads against a server on this machine that misbehaves on purpose."""

import email.utils
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_archives import packed

from conftest import REPO, copy_checkout, git, run
from equipoise.core.errors import ConfigError, DataError
from equipoise.ingest import download, fetch
from equipoise.ingest.datasets.base import Archive

NOISE = random.Random(0).randbytes(1_500_000)
PART, IMAGES, SOURCE = (
    "data/cache/downloads/lungs.part",
    "data/raw/lungs",
    "data/raw/lungs.source.json",
)


GOOD = packed("zip", [("train/a.jpeg", NOISE), ("train/b.jpeg", b"second")])
OTHER = packed("zip", [("train/a.jpeg", NOISE[::-1]), ("train/c.jpeg", b"changed")])
SHA256 = hashlib.sha256(GOOD).hexdigest()


class Server(ThreadingHTTPServer):
    """Serves `body`; the switches say how it misbehaves. `sent` holds the bytes of each answer, `asked` its request."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.etag, self.modified = GOOD, '"one"', None
        self.ranges = self.length = self.honours_if_range = True
        self.from_zero = False  # a 206 that starts elsewhere than asked
        self.status: int | None = None
        self.drops: list[int] = []  # after how many bytes each answer ends, one entry per answer
        self.later: dict = {}  # what changes after the first answer
        self.holds_after: int | None = None  # bytes, after which nothing more comes until `goes_on`
        self.goes_on = threading.Event()
        self.sent: list[int] = []
        self.asked: list[dict[str, str]] = []
        self.address = f"http://127.0.0.1:{self.server_address[1]}/archive.zip"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *words) -> None: ...

    def do_GET(self) -> None:
        server, place = self.server, len(self.server.sent)
        server.asked.append(dict(self.headers))
        server.sent.append(0)
        versions = {"ETag": server.etag, "Last-Modified": server.modified}
        asked, condition = self.headers.get("Range"), self.headers.get("If-Range")
        met = condition is None or not server.honours_if_range or condition in versions.values()
        start = int(asked[6:-1]) if asked and server.ranges and met else None
        start = 0 if start and server.from_zero else start
        whole, beyond = len(server.body), (start or 0) >= len(server.body)
        self.send_response(server.status or (200 if start is None else 416 if beyond else 206))
        body = b"" if server.status else server.body[start or 0 :]
        if server.length:
            self.send_header("Content-Length", str(len(body)))
        if start is not None:
            self.send_header(
                "Content-Range",
                f"bytes */{whole}" if beyond else f"bytes {start}-{whole - 1}/{whole}",
            )
        for name, value in versions.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        body = body[: server.drops.pop(0)] if server.drops else body
        for piece in (body[at : at + 50_000] for at in range(0, len(body), 50_000)):
            if server.sent[place] == server.holds_after:
                server.goes_on.wait(600)
            server.sent[place] += len(piece)  # before the client has it, and may look
            try:
                self.wfile.write(piece)
            except OSError:
                server.sent[place] -= len(piece)
                break
        vars(server).update(server.later)


@pytest.fixture
def server():
    server = Server()
    threading.Thread(
        target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True
    ).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder outside any repository."""
    return tmp_path


@pytest.fixture
def pin(monkeypatch, server):
    """Make the card of every dataset name this archive; `published=False` leaves out size and digest."""

    def pin(published: bool = True, address: str = server.address, **changes) -> None:
        facts = {"bytes": len(GOOD), "sha256": SHA256} if published else {}
        archive = Archive(address, **(facts | changes))
        card = SimpleNamespace(title="t", licence="l", citation="c", source="s", archive=archive)
        monkeypatch.setattr(fetch, "load_dataset", lambda name: SimpleNamespace(CARD=card))

    pin()
    return pin


def tree(folder: Path) -> list[str]:
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def assert_fetched(place: Path) -> None:
    """The images and the record stand there, and nothing else: no part, no temporary folder."""
    assert tree(place) == [SOURCE, f"{IMAGES}/train/a.jpeg", f"{IMAGES}/train/b.jpeg"]
    assert (place / IMAGES / "train/a.jpeg").read_bytes() == NOISE
    assert sorted(path.name for path in (place / "data/raw").iterdir()) == [
        "lungs",
        "lungs.source.json",
    ]


def fetch_into(root: Path, **named) -> list[str]:
    """Fetch without waiting between tries, and return the lines that were said."""
    lines: list[str] = []
    fetch.run("lungs", **named, say=lines.append, root=root, wait=lambda seconds: None)
    return lines


def size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def fetched(place: Path, **named) -> list[str]:
    """Fetch, look that all is there, and return the lines that were said."""
    lines = fetch_into(place, **named)
    assert_fetched(place)
    return lines


def refused(place: Path, expected: str, error: type[Exception] = DataError, **named) -> str:
    with pytest.raises(error, match=expected) as refusal:
        fetch_into(place, **named)
    return str(refusal.value)


def test_a_plain_download_is_checked_unpacked_and_recorded_without_secrets(place, server, pin):
    lines = fetched(
        place, address=server.address.replace("http://", "http://me:secret@") + "?signature=secret"
    )
    record = {
        "address": server.address,
        "bytes": len(GOOD),
        "sha256": SHA256,
        "files": 2,
        "file_bytes": 1_500_006,
    }
    assert json.loads((place / SOURCE).read_text()) == record
    assert "no DVC repository" in lines[-2]
    assert lines[-1] == f"To commit: {Path(SOURCE)}"
    assert "secret" not in "".join(lines)
    assert server.asked[0]["Accept-Encoding"] == "identity"


WEAK, DATE = 'W/"one"', email.utils.formatdate(0)


@pytest.mark.parametrize(
    ("etag", "modified", "condition"),
    [
        ('"one"', DATE, '"one"'),
        (None, DATE, DATE),
        (WEAK, DATE, DATE),
        (WEAK, None, None),
        (None, None, None),
    ],
)
def test_dropped_connections_are_resumed_where_they_ended(
    place, server, pin, etag, modified, condition
):
    vars(server).update(etag=etag, modified=modified, drops=[100_000, 250_000, 0, 1, 200_000])
    fetched(place)
    assert sum(server.sent) == len(GOOD)
    assert [asked.get("Range") for asked in server.asked][:3] == [
        None,
        "bytes=100000-",
        "bytes=350000-",
    ]
    assert server.asked[1].get("If-Range") == condition


@pytest.mark.parametrize("unsafe", [{"ranges": False}, {"etag": None}, {"etag": WEAK}])
def test_halves_that_may_not_belong_together_are_started_over(place, server, pin, unsafe):
    pin(published="ranges" in unsafe)
    vars(server).update(unsafe, drops=[300_000])
    fetched(place)
    assert server.sent == [300_000, len(GOOD)]
    assert ("Range" in server.asked[1]) == ("ranges" in unsafe)


@pytest.mark.parametrize("ranges", [True, False])
def test_tries_without_progress_are_bounded_and_what_came_is_kept_for_its_address(
    place, server, pin, ranges
):
    server.ranges, server.drops = (
        ranges,
        [300_000] + ([0, 0] if ranges else [100_000, 200_000]) * 2 + [0],
    )
    refused(place, "5 tries brought nothing more")
    assert len(server.sent) == 1 + download.TRIES_WITHOUT_PROGRESS
    assert size(place / PART) == (300_000 if ranges else 0)
    assert not (place / "data/raw").exists()
    fetched(place, address=server.address.replace("archive", "mirror"))
    assert "Range" not in server.asked[-1]


BEGUN = OTHER[: len(GOOD)].ljust(
    len(GOOD), b"\0"
)  # Of the pinned size, or the download would not begin.


@pytest.mark.parametrize(
    ("published", "first", "later"),
    [
        (True, {"body": BEGUN, "etag": '"zero"'}, {"body": GOOD, "etag": '"one"'}),
        (
            True,
            {"body": BEGUN, "etag": '"zero"', "honours_if_range": False},
            {"body": GOOD, "etag": '"one"'},
        ),
        (False, {"body": OTHER, "etag": '"zero"'}, {"body": GOOD, "etag": '"one"'}),
        (
            False,
            {"body": OTHER, "etag": '"zero"', "honours_if_range": False},
            {"body": GOOD, "etag": '"one"'},
        ),
        (False, {"body": OTHER + b"longer", "honours_if_range": False}, {"body": GOOD}),
        (
            False,
            {"body": NOISE + GOOD, "drops": [len(GOOD) + 10], "honours_if_range": False},
            {"body": GOOD},
        ),  # 416
        (True, {"from_zero": True}, {}),
    ],
)
def test_a_file_that_changes_between_tries_is_started_over(
    place, server, pin, published, first, later
):
    pin(published)
    vars(server).update({"drops": [300_000]} | first, later=later)
    fetched(place)
    assert server.sent[-1] == len(GOOD)


def test_a_size_that_nobody_states(place, server, pin):
    server.length, server.drops = False, [123_456]
    fetched(place)
    assert server.sent == [
        123_456,
        len(GOOD) - 123_456,
    ]  # The pinned size tells that it was cut short.


@pytest.mark.parametrize("published", [True, False])
def test_more_bytes_than_stated_or_allowed_are_refused(place, server, pin, monkeypatch, published):
    pin(published)
    monkeypatch.setattr(download, "DOWNLOAD_BYTES_MAX", len(GOOD))
    server.length, server.body = False, GOOD + NOISE * 20
    refused(place, f"more bytes than the {len(GOOD):,}")
    assert tree(place) == []
    assert server.sent[0] < len(server.body)


@pytest.mark.parametrize(("status", "tries"), [(404, 1), (403, 1), (206, 1), (503, 5)])
def test_an_answer_that_is_not_the_file(place, server, pin, status, tries):
    server.status = status
    refused(place, f"answered {status}")
    assert len(server.sent) == tries
    assert tree(place) == []


def test_what_is_not_the_pinned_archive_is_removed(place, server, pin):
    pin(sha256="0" * 64)
    message = refused(place, "not the archive that is pinned")
    assert SHA256 in message
    assert "0" * 64 in message
    pin(bytes=len(GOOD) + 1)
    refused(place, f"answered 200 with {len(GOOD)} bytes, expected 200 with {len(GOOD) + 1}")
    pin(published=False)
    server.body = packed("w:gz", [("a.png", b""), ("../up.png", b"")])
    refused(place, "leads out of the folder")
    assert tree(place) == []
    assert not (place / IMAGES).exists()


NOWHERE = "http://user:secret@127.0.0.1:1/archive.zip?token=secret"
UNUSABLE = [
    "ftp://me:secret@example.org/a.zip",
    "file:///a.zip",
    "missing.zip",
    "http://[",
    "http://",
]


@pytest.mark.parametrize("address", [NOWHERE, *UNUSABLE])
def test_an_address_that_cannot_be_used(place, pin, address):
    error, expected = (DataError, "5 tries") if address == NOWHERE else (ConfigError, "address")
    assert "secret" not in refused(place, expected, address=address, error=error)
    assert tree(place) == []


def test_a_dataset_without_an_archive(place):
    with pytest.raises(ConfigError, match="names no archive"):
        fetch.run("phantom")


KILLED = """
import sys
sys.path[:0] = [{source!r}]
from pathlib import Path
from types import SimpleNamespace
from equipoise.ingest import fetch
from equipoise.ingest.datasets.base import Archive
card = SimpleNamespace(title="t", licence="l", citation="c", source="s", archive=Archive({address!r}))
fetch.load_dataset = lambda name: SimpleNamespace(CARD=card)
fetch.run("lungs", root=Path({root!r}))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL on this system")
def test_a_killed_download_goes_on_with_the_missing_bytes_only(place, server, pin):
    pin(published=False)
    server.holds_after = 1_200_000
    code = KILLED.format(source=str(REPO / "src"), address=server.address, root=str(place))
    killed = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 600
        while size(place / PART) < 1_000_000:
            assert time.monotonic() < until
            assert killed.poll() is None
            time.sleep(0.01)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        server.goes_on.set()
    have = size(place / PART)
    assert 1_000_000 <= have <= 1_200_000
    before, server.holds_after = len(server.sent), None
    fetched(place)
    assert server.sent[before:] == [len(GOOD) - have]


def test_a_full_disk_is_a_sentence_and_a_complete_download_is_not_asked_for_again(
    place, server, pin, monkeypatch
):
    def full(*words):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "copyfileobj", full)
        refused(place, "No space left")
    assert tree(place) == [PART, f"{PART}.json"]
    fetched(place)
    assert server.sent == [len(GOOD)]


def test_the_first_download_pins_the_later_ones(place, server, pin):
    pin(published=False)
    fetched(place)
    lines = fetch_into(place, to=place / "second")
    assert "Set ingest.raw to second in params.yaml." in lines
    server.body, server.etag = OTHER, '"two"'
    refused(place, "expected 200 with", to=place / "third")
    server.length = False
    refused(place, "pinned|more bytes", to=place / "third")
    shutil.rmtree(place / "second")
    assert_fetched(place)


@pytest.mark.parametrize("note", [None, "{", "[]"])
def test_a_part_without_a_readable_note_is_started_over(place, server, pin, note):
    part = place / PART
    part.parent.mkdir(parents=True)
    part.write_bytes(GOOD[:300_000])
    if note is not None:
        part.with_suffix(".part.json").write_text(note)
    fetched(place)
    assert "Range" not in server.asked[0]
    assert server.sent == [len(GOOD)]


@pytest.mark.parametrize("content", ["{", "[]", '{"sha256": "x"}'])
def test_a_spoilt_record_is_refused(place, server, pin, content):
    (place / "data/raw").mkdir(parents=True)
    (place / SOURCE).write_text(content)
    refused(place, r"lungs\.source\.json")
    assert server.sent == []


@pytest.mark.parametrize("published", [True, False])
def test_what_is_there_is_not_fetched_twice_and_not_overwritten(place, server, pin, published):
    pin(published)
    own = place / IMAGES / "own.png"
    own.parent.mkdir(parents=True)
    own.write_bytes(b"mine")
    refused(place, "nothing was overwritten")
    assert tree(place) == [f"{IMAGES}/own.png"]
    own.unlink()
    fetched(place)
    (place / IMAGES / ".DS_Store").write_bytes(b"Finder was here")
    lines = fetch_into(place)
    assert any("already holds" in line for line in lines)
    (place / IMAGES / "train/b.jpeg").unlink()
    refused(place, "nothing was overwritten")
    shutil.rmtree(place / IMAGES)
    (place / IMAGES).write_bytes(b"")
    refused(place, "nothing was overwritten")
    assert server.sent == [len(GOOD)]


def test_a_local_file_is_checked_and_left_alone(place, pin):
    given = place / "mine.zip"
    given.write_bytes(OTHER)
    (place / PART).parent.mkdir(parents=True)
    (place / PART).write_bytes(b"half a download")
    refused(place, "not the archive that is pinned", address=str(given))
    given.write_bytes(GOOD)
    pin(bytes=len(GOOD) + 1)
    refused(place, "not the archive that is pinned", address=str(given))
    assert tree(place) == [PART, "mine.zip"]
    pin()
    fetch_into(place, address=str(given))
    assert json.loads((place / SOURCE).read_text())["address"] == "mine.zip"
    given.unlink()  # It is there to be removed.
    assert_fetched(place)


def test_the_folder_is_put_under_dvc_and_only_pins_are_committed(place, server, pin, monkeypatch):
    repository = place / "repository"
    repository.mkdir()
    copy_checkout(repository)
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "a checkout"]):
        git(repository, *words)
    monkeypatch.setenv("DVC_NO_ANALYTICS", "1")
    lines = fetch_into(repository)
    pins = [f"{IMAGES}.dvc", SOURCE]
    assert lines[-1].split()[2:] == [str(Path(pin)) for pin in pins]
    changed = git(repository, "status", "--porcelain", "--untracked-files=all").split("\n")
    assert sorted(line.split()[-1] for line in changed if line) == pins
    assert (
        json.loads(run(repository, sys.executable, "-m", "dvc", "status", "--json").stdout).get(
            pins[0]
        )
        is None
    )

    # A clone that has the pins but not the images gets them back, and they are the same.
    git(repository, "add", "-A")
    git(repository, "commit", "-q", "-m", "pins")
    shutil.rmtree(repository / IMAGES)
    fetch_into(repository)
    fetch_into(repository)
    assert len(server.sent) == 2
    assert git(repository, "status", "--porcelain") == ""


def test_a_failing_dvc_is_a_sentence(place, pin):
    (place / ".dvc").mkdir()
    (place / ".dvc/config").write_text("[core")
    refused(place, r"`dvc add .*` ended with code")
    assert (place / IMAGES / "train/a.jpeg").is_file()
