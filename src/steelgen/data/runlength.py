"""Run-length codes of COCO (two kinds), the Severstal competition and Label Studio's brushes.

Runs go down the columns of the image, except in brushes. `runs` is (N, 2) int64: 0-based start and length of each run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from steelgen.errors import InputError

MAX_RUN = 2**40
"""Longer than a run in any image; larger numbers mean a damaged file."""
_AS_DIGITS = bytes((48, 49, *range(2, 256)))
"""Translation table from the bits 0 and 1 to the digits 0 and 1."""


def parse_pairs(text: str) -> NDArray[np.int64]:
    """Reads Severstal's `start length start length …`, with 1-based starts.

    Raises:
        InputError: if a number is missing, not an integer or below 1.
    """
    words = text.split()
    if len(words) % 2:
        raise InputError(f"run lengths: must be pairs of start and length, got {len(words)} numbers")
    values = to_integers(words)
    if values.size and values.min() < 1:
        raise InputError(f"run lengths: {values.min()} is not a start or length of at least 1")
    return values.reshape(-1, 2) - (1, 0)


def parse_counts(counts: Sequence[int] | str | bytes) -> NDArray[np.int64]:
    """Reads COCO's `counts`: alternating lengths of background and foreground, as a list or as compressed text.

    Raises:
        InputError: if a count is negative or not an integer, or the text is truncated.
    """
    lengths = _decompress(counts) if isinstance(counts, str | bytes) else to_integers(counts)
    if lengths.size and lengths.min() < 0:
        raise InputError(f"run lengths: {lengths.min()} is negative")
    starts = np.cumsum(lengths) - lengths
    return np.stack([starts[1::2], lengths[1::2]], axis=1)


def to_integers(values: Sequence[object]) -> NDArray[np.int64]:
    """Converts integers, or text of integers, to an array; raises an `InputError` for any other value."""
    numbers = np.empty(len(values), np.int64)
    for index, value in enumerate(values):
        try:
            number = int(value) if isinstance(value, str) and value.isascii() else value
        except ValueError:
            number = None
        if not isinstance(number, int) or isinstance(number, bool) or abs(number) > MAX_RUN:
            raise InputError(f"run lengths: {value!r:.40} is not an integer within ±{MAX_RUN}")
        numbers[index] = number
    return numbers


def decode_runs(runs: NDArray[np.int64], height: int, width: int) -> NDArray[np.bool_]:
    """Decodes runs to a (height, width) boolean mask.

    Raises:
        InputError: if a run ends after the last pixel.
    """
    ends = runs.sum(axis=1)
    if ends.size and ends.max() > height * width:
        raise InputError(f"run lengths reach pixel {ends.max()}, but the image has {width}x{height} = {height * width}")
    # Each run adds 1 at its start and subtracts 1 after its end; overlapping runs form one region.
    steps = np.bincount(runs[:, 0], minlength=height * width + 1)
    steps -= np.bincount(ends, minlength=height * width + 1)
    return np.ascontiguousarray((np.cumsum(steps)[:-1] > 0).reshape(width, height).T)


def decode_brush(data: bytes, size: int) -> NDArray[np.uint8]:
    """Decodes a Label Studio brush to (size,) uint8 values.

    The format is that of @thi.ng/rle-pack, documented in brush.py of label-studio-converter. Header: 32 bits for the
    number of values, 5 for (bits per value − 1), 4 × 4 for (bits of a run's length − 1). Then, until all values are
    read: 1 bit (1: a repeated value, 0: different values), 2 bits to select one of the four lengths, (length − 1), and
    the value or values.

    Raises:
        InputError: if the data are truncated, or do not have `size` values.
    """
    bits = np.unpackbits(np.frombuffer(data, np.uint8)).tobytes()
    position = 0

    def take(count: int) -> bytes:
        nonlocal position
        part = bits[position : position + count]
        if len(part) < count:
            raise InputError(f"brush: run lengths are truncated after {len(data)} bytes")
        position += count
        return part

    def read(count: int) -> int:
        return int(take(count).translate(_AS_DIGITS), 2)

    if (stated := read(32)) != size:
        raise InputError(f"brush: run lengths have {stated} values, expected {size} (4 per pixel)")
    word = read(5) + 1
    if word > 8:
        raise InputError(f"brush: run lengths have {word} bits per value, the limit is 8")
    lengths = [read(4) + 1 for _ in range(4)]
    values = np.zeros(size, np.uint8)
    start = 0
    while start < size:
        repeats = read(1)
        end = start + 1 + read(lengths[read(2)])
        if end > size:
            raise InputError(f"brush: run lengths reach value {end} of {size}")
        if repeats:
            values[start:end] = read(word)
        else:
            powers = 1 << np.arange(word - 1, -1, -1)
            values[start:end] = np.frombuffer(take(word * (end - start)), np.uint8).reshape(-1, word) @ powers
        start = end
    return values


def encode_runs(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Encodes an (H, W) boolean mask as runs; the inverse of `decode_runs`."""
    changes = np.flatnonzero(np.diff(mask.ravel(order="F").astype(np.int8), prepend=0, append=0))
    return np.stack([changes[::2], changes[1::2] - changes[::2]], axis=1)


def count_runs(runs: NDArray[np.int64], size: int) -> list[int]:
    """Converts sorted runs that do not overlap to COCO's uncompressed counts, for an image of `size` pixels."""
    touch = runs[1:, 0] == runs[:-1].sum(axis=1)
    starts = runs[np.concatenate([[True], ~touch])[: len(runs)], 0]
    ends = runs[np.concatenate([~touch, [True]])[: len(runs)]].sum(axis=1)
    counts = np.diff(np.stack([starts, ends], axis=1).ravel(), prepend=0).tolist()
    rest = size - int(ends[-1]) if len(ends) else size
    return [*counts, rest] if rest or not counts else counts


def compress_counts(counts: Sequence[int]) -> str:
    """Converts COCO's uncompressed counts to its text; see `_decompress`."""
    text = []
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        while True:
            bits, value = value & 31, value >> 5
            # The highest bit that is written is the sign of all above it.
            more = value != (-1 if bits & 16 else 0)
            text.append(chr(bits + (32 if more else 0) + 48))
            if not more:
                break
    return "".join(text)


def _decompress(counts: str | bytes) -> NDArray[np.int64]:
    """Decodes COCO's text: 5 bits per character, lowest first, 32 if more follow; differences from the 4th count on."""
    data = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
    lengths: list[int] = []
    value = shift = 0
    for code in data:
        bits = code - 48
        if not 0 <= bits < 64 or shift > 40:
            raise InputError(f"run lengths: unexpected character {chr(code)!r} in COCO's compressed counts")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    if shift:
        raise InputError("run lengths: COCO's compressed counts are truncated")
    return to_integers(lengths)
