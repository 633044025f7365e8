"""Run lengths → masks: COCO's two kinds, the Severstal competition's, and those of Label Studio's brushes.

All but the brushes' run down the columns of the image. `runs` is (N, 2) int64: start (0-based) and length of each run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from steelgen.errors import InputError

MAX_RUN = 2**40
"""No image has a run this long; larger numbers are damage."""
_AS_DIGITS = bytes((48, 49, *range(2, 256)))
"""Turns the bits 0 and 1 into the digits 0 and 1."""


def parse_pairs(text: str) -> NDArray[np.int64]:
    """Reads Severstal's `start length start length …`, starts counted from 1.

    Raises:
        InputError: if a number is missing, not a whole number or below 1.
    """
    words = text.split()
    if len(words) % 2:
        raise InputError(f"run lengths: {len(words)} numbers do not make pairs of start and length")
    values = _whole_numbers(words)
    if values.size and values.min() < 1:
        raise InputError(f"run lengths: {values.min()} is not a start or a length (both count from 1)")
    return values.reshape(-1, 2) - (1, 0)


def parse_counts(counts: Sequence[int] | str | bytes) -> NDArray[np.int64]:
    """Reads COCO's `counts`: alternating lengths of background and foreground, as a list or as COCO's compressed text.

    Raises:
        InputError: if a count is negative or no whole number, or the text breaks off.
    """
    lengths = _decompress(counts) if isinstance(counts, str | bytes) else _whole_numbers(counts)
    if lengths.size and lengths.min() < 0:
        raise InputError(f"run lengths: {lengths.min()} is negative")
    starts = np.cumsum(lengths) - lengths
    return np.stack([starts[1::2], lengths[1::2]], axis=1)


def decode_runs(runs: NDArray[np.int64], height: int, width: int) -> NDArray[np.bool_]:
    """Draws runs as an (height, width) boolean mask.

    Raises:
        InputError: if a run ends behind the last pixel.
    """
    ends = runs.sum(axis=1)
    if ends.size and ends.max() > height * width:
        raise InputError(f"run lengths reach pixel {ends.max()} of an image of {width}x{height} = {height * width}")
    # A run adds one where it starts and takes it away behind its end; overlapping runs are one region.
    steps = np.bincount(runs[:, 0], minlength=height * width + 1)
    steps -= np.bincount(ends, minlength=height * width + 1)
    return np.ascontiguousarray((np.cumsum(steps)[:-1] > 0).reshape(width, height).T)


def decode_brush(data: bytes, size: int) -> NDArray[np.uint8]:
    """Decodes Label Studio's brush: bits, first those that say how to read the rest, then runs and single values.

    The format is that of @thi.ng/rle-pack, which label-studio-converter documents in its brush.py: 32 bits for the
    number of values, 5 for the bits of a value less 1, four times 4 for the bits of a run's length less 1; then, until
    all values are there, 1 bit (1: one value repeated, 0: different ones), 2 bits for which of the four lengths is
    used, the length less 1, and the value or values.

    Args:
        size: how many values there must be.

    Returns:
        (size,) values.

    Raises:
        InputError: if the data break off, or hold another number of values.
    """
    bits = np.unpackbits(np.frombuffer(data, np.uint8)).tobytes()
    position = 0

    def read(count: int) -> int:
        nonlocal position
        part = bits[position : position + count]
        if len(part) < count:
            raise InputError(f"the brush's run lengths break off after {len(data)} bytes")
        position += count
        return int(part.translate(_AS_DIGITS), 2)

    if (stated := read(32)) != size:
        raise InputError(f"the brush's run lengths are of {stated} values, not of {size} (4 a pixel)")
    word = read(5) + 1
    if word > 8:
        raise InputError(f"the brush's run lengths are of values of {word} bits, not of 8")
    lengths = [read(4) + 1 for _ in range(4)]
    values = np.zeros(size, np.uint8)
    start = 0
    while start < size:
        repeats = read(1)
        end = start + 1 + read(lengths[read(2)])
        if end > size:
            raise InputError(f"the brush's run lengths reach value {end} of {size}")
        if repeats:
            values[start:end] = read(word)
        else:
            part = bits[position : position + word * (end - start)]
            if len(part) < word * (end - start):
                raise InputError(f"the brush's run lengths break off after {len(data)} bytes")
            position += len(part)
            powers = 1 << np.arange(word - 1, -1, -1)
            values[start:end] = np.frombuffer(part, np.uint8).reshape(-1, word) @ powers
        start = end
    return values


def encode_runs(mask: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The runs of an (H, W) boolean mask; the inverse of `decode_runs`."""
    changes = np.flatnonzero(np.diff(mask.ravel(order="F").astype(np.int8), prepend=0, append=0))
    return np.stack([changes[::2], changes[1::2] - changes[::2]], axis=1)


def encode_counts(mask: NDArray[np.bool_]) -> list[int]:
    """COCO's uncompressed counts of an (H, W) mask: lengths of background and foreground in turn, down the columns."""
    return count_runs(encode_runs(mask), mask.size)


def count_runs(runs: NDArray[np.int64], size: int) -> list[int]:
    """COCO's uncompressed counts of runs in their order that do not overlap, of an image of `size` pixels."""
    touch = runs[1:, 0] == runs[:-1].sum(axis=1)
    starts = runs[np.concatenate([[True], ~touch])[: len(runs)], 0]
    ends = runs[np.concatenate([~touch, [True]])[: len(runs)]].sum(axis=1)
    counts = np.diff(np.stack([starts, ends], axis=1).ravel(), prepend=0).tolist()
    rest = size - int(ends[-1]) if len(ends) else size
    return [*counts, rest] if rest or not counts else counts


def _whole_numbers(values: Sequence[object]) -> NDArray[np.int64]:
    numbers = np.empty(len(values), np.int64)
    for index, value in enumerate(values):
        try:
            number = int(value) if isinstance(value, str) and value.isascii() else value
        except ValueError:
            number = None
        if not isinstance(number, int) or isinstance(number, bool) or abs(number) > MAX_RUN:
            raise InputError(f"run lengths: {value!r:.40} is not a whole number in range")
        numbers[index] = number
    return numbers


def _decompress(counts: str | bytes) -> NDArray[np.int64]:
    """COCO's text: five bits a character, least first, 32 for "more follows"; differences from the fourth count on."""
    data = counts.encode("ascii", "replace") if isinstance(counts, str) else counts
    lengths: list[int] = []
    value = shift = 0
    for code in data:
        bits = code - 48
        if not 0 <= bits < 64 or shift > 40:
            raise InputError(f"run lengths: {chr(code)!r} cannot stand at this place in COCO's compressed counts")
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            if bits & 16:
                value -= 1 << shift
            lengths.append(value + (lengths[-2] if len(lengths) > 2 else 0))
            value = shift = 0
    if shift:
        raise InputError("run lengths: COCO's compressed counts break off")
    return _whole_numbers(lengths)
