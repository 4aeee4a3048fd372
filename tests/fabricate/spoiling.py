"""Ways in which values and bytes are damaged, or made to harm."""

from __future__ import annotations

from typing import Any

import numpy as np

JUNK: list[Any] = [
    *(
        None,
        True,
        False,
        0,
        -1,
        1,
        2,
        10**30,
        -(10**9),
        0.5,
        1e308,
        float("inf"),
        float("nan"),
        1e-320,
        "",
        "x",
    ),
    *(
        [],
        {},
        [[]],
        [None],
        {"a": {"b": 1}},
        ["x"] * 50,
        "../../x",
        "/etc/passwd",
        "~",
        "a\0b",
        "\ud800",
        "\u202eabc",
    ),
    *(
        "ż\u0301" * 40,
        "x" * 100_000,
        "🫁",
        {1: 2},
        {None: None},
        [1, "a", None],
        "NaN",
        "1e-3",
        "null",
        "on",
        "12:30:45",
    ),
]


class Refused(ValueError):
    """The decoder's answer, as its callers tell it on."""


def spoil(content: bytes, other: bytes, rng: np.random.Generator) -> tuple[str, bytes]:
    """Damage bytes in one of the ways in which files are damaged, or made to harm."""
    data, way = bytearray(content), int(rng.integers(8))
    at = int(rng.integers(len(data))) if data else 0
    if way == 0:
        return "cut", bytes(data[:at])
    if way == 1:
        for place in rng.integers(len(data), size=int(rng.integers(1, 20))):
            data[place] ^= 1 << int(rng.integers(8))
        return "bits flipped", bytes(data)
    if way == 2:
        start = min(len(data), int(rng.integers(64)))
        data[start : start + 4] = rng.choice(
            [b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff\xff\xff", b"\0\0\xff\xff"]
        )
        return "header numbers", bytes(data)
    if way == 3:
        return "spliced", bytes(data[:at]) + other[int(rng.integers(len(other))) :]
    if way == 4:
        data[at:at] = rng.bytes(int(rng.integers(1, 200)))
        return "inserted", bytes(data)
    if way == 5:
        heads = (
            b"",
            b"\0" * 100,
            b"%PDF-1.7",
            b"PK\x03\x04",
            b"PAR1",
            b"DICM",
            b"<svg>",
            b"\x93NUMPY",
            b"GIF89a",
        )
        return "wrong type", heads[int(rng.integers(len(heads)))] + rng.bytes(
            int(rng.integers(0, 300))
        )
    if way == 6:
        del data[at : at + int(rng.integers(1, 60))]
        return "bytes lost", bytes(data)
    return "as it is", bytes(data)
