from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from steelgen.data.runlength import decode_runs, encode_runs, parse_counts, parse_pairs
from steelgen.errors import InputError


def test_severstal_runs_go_down_the_columns_from_1() -> None:
    mask = decode_runs(parse_pairs("1 2 5 1"), 3, 2)
    np.testing.assert_array_equal(mask, [[1, 0], [1, 1], [0, 0]])


def test_uncompressed_counts_start_with_background() -> None:
    mask = decode_runs(parse_counts([0, 2, 3, 1]), 3, 2)
    np.testing.assert_array_equal(mask, [[1, 0], [1, 0], [0, 1]])


def test_compressed_counts_of_the_coco_tools() -> None:
    # 10x10 with rows 2-4 of columns 3-6 set: 32,3,7,3,7,3,7,3,35 as pycocotools writes it.
    mask = np.zeros((10, 10), bool)
    mask[2:5, 3:7] = True
    np.testing.assert_array_equal(decode_runs(parse_counts("P13700000l0"), 10, 10), mask)


@given(arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=20)))
@settings(max_examples=100, deadline=None)
def test_all_forms_round_trip(mask: np.ndarray) -> None:
    runs = encode_runs(mask)
    np.testing.assert_array_equal(decode_runs(runs, *mask.shape), mask)
    pairs = " ".join(f"{start + 1} {length}" for start, length in runs)
    np.testing.assert_array_equal(decode_runs(parse_pairs(pairs), *mask.shape), mask)
    counts = _counts(mask)
    np.testing.assert_array_equal(decode_runs(parse_counts(counts), *mask.shape), mask)
    np.testing.assert_array_equal(decode_runs(parse_counts(_compress(counts)), *mask.shape), mask)


@given(st.text(max_size=40))
@settings(max_examples=200, deadline=None)
def test_any_text_is_runs_or_an_error(text: str) -> None:
    for parse in (parse_pairs, parse_counts):
        try:
            decode_runs(parse(text), 4, 5)
        except InputError:
            continue


@pytest.mark.parametrize("text", ["1", "0 3", "1 -2", "1 2.5", "1 0", "1 99999999999999999999", "٣ ٤", "a b"])
def test_bad_pairs(text: str) -> None:
    with pytest.raises(InputError, match="run lengths"):
        parse_pairs(text)


@pytest.mark.parametrize("counts", [[1, -2], [1.5], [True], [None], "P", "\x00", "oooooooooooooooo", [2**60]])
def test_bad_counts(counts: object) -> None:
    with pytest.raises(InputError, match="run lengths"):
        parse_counts(counts)  # type: ignore[arg-type]


def test_run_after_the_last_pixel() -> None:
    with pytest.raises(InputError, match="reach pixel 7, but the image has 2x3 = 6"):
        decode_runs(np.array([[5, 2]]), 3, 2)


def _counts(mask: np.ndarray) -> list[int]:
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat.astype(int), prepend=0))
    return np.diff([0, *edges, flat.size]).tolist()


def _compress(counts: list[int]) -> str:
    """Encodes COCO's text by its description: differences from the fourth count on, five bits per character."""
    text = ""
    for index, count in enumerate(counts):
        value = count - counts[index - 2] if index > 2 else count
        while True:
            bits, value = value & 31, value >> 5
            done = (value == 0 and not bits & 16) or (value == -1 and bits & 16)
            text += chr(48 + bits + (0 if done else 32))
            if done:
                break
    return text
