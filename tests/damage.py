"""Files damaged at random, for the fuzz of all that reads them.

STEELGEN_FUZZ_CASES sets the number of cases; 2,000 without it.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np

CASES = int(os.environ.get("STEELGEN_FUZZ_CASES", "2000"))

Rng = np.random.Generator
_TOKENS = (
    b"nan", b"-1", b"1e400", b"inf", b"0", b"99999999999999999999", b"null", b"[]", b"{}", b'""', b"\x00", b"\xff\xfe",
    b"\xef\xbb\xbf", b"\r\n", b";", b",", b"(", b")", b"[", b"]", b'"', b"../../x.png", b"__import__('os').abort()",
    "größe".encode(), b"true", b"1_000", b"0x10", b"1+1j",
)  # fmt: skip


def mutate(data: bytes, rng: Rng) -> bytes:
    """A few random changes: bits, tokens, cuts, copies and exchanges."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        place = int(rng.integers(len(changed) + 1))
        end = min(place + int(rng.integers(1, 40)), len(changed))
        kind = int(rng.integers(6))
        if kind == 0 and place < len(changed):
            changed[place] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            changed[place:place] = _TOKENS[int(rng.integers(len(_TOKENS)))]
        elif kind == 2:
            changed[place:end] = _TOKENS[int(rng.integers(len(_TOKENS)))]
        elif kind == 3:
            del changed[place:end]
        elif kind == 4:
            changed[place:place] = changed[place:end]
        else:
            del changed[max(place, 1) :]
    return bytes(changed)


def mutate_json(value: Any, rng: Rng) -> Any:
    """Puts a value where another one belongs, somewhere in a JSON document."""
    strange = (
        None,
        -1,
        0,
        1.5,
        float("nan"),
        1e300,
        10**30,
        "",
        "ü;\n",
        [],
        {},
        [[]],
        True,
        "9" * 30,
        [1, 2, 3],
        2**31,
        -(2**63),
        10**4000,
        "\ud800",
        "a\0b",
        [[0, 0, 0]] * 300,
        "<script>",
        float("inf"),
    )
    if isinstance(value, dict | list) and value and rng.random() < 0.9:
        copy = value.copy()
        keys = list(copy) if isinstance(copy, dict) else range(len(copy))
        key = keys[int(rng.integers(len(keys)))]
        if rng.random() < 0.1:
            del copy[key]
        else:
            copy[key] = mutate_json(copy[key], rng)
        return copy
    return strange[int(rng.integers(len(strange)))]


def damage_json(text: str, rng: Rng) -> bytes:
    """A JSON document with another value somewhere, or with other bytes."""
    if rng.random() < 0.7:
        return json.dumps(mutate_json(json.loads(text), rng)).encode()
    return mutate(text.encode(), rng)


def assert_readable(message: str) -> None:
    """An error is a line that fits on a screen."""
    assert message
    assert "\n" not in message[:200]


def assert_short(message: str) -> None:
    """An error does not repeat a file; the command line makes one line of it."""
    assert 0 < len(message) < 1000
