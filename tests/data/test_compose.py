from __future__ import annotations

import numpy as np
import pytest

from steelgen.data.annotations import Annotation
from steelgen.data.compose import compose_mask, merge_masks
from steelgen.data.runlength import encode_runs


def _square(class_index: int, left: float, top: float, edge: float, **changes: bool) -> Annotation:
    corners = [(left, top), (left + edge, top), (left + edge, top + edge), (left, top + edge)]
    return Annotation(class_index, (np.array(corners, float),), **changes)


@pytest.mark.parametrize(("overlap", "expected"), [("later", 2), ("smaller", 1), ("ignore", 255)])
def test_overlap_rules(overlap: str, expected: int) -> None:
    mask, _ = compose_mask([_square(1, 2, 2, 4), _square(2, 4, 4, 10)], 20, 20, overlap)  # type: ignore[arg-type]
    assert (mask[4:6, 4:6] == expected).all()
    assert mask[3, 3] == 1
    assert mask[10, 10] == 2


def test_overlap_of_one_class_is_not_ignored() -> None:
    mask, instances = compose_mask([_square(1, 2, 2, 4), _square(1, 4, 4, 10)], 20, 20, "ignore")
    assert set(np.unique(mask)) == {0, 1}
    assert instances[5, 5] == 2


def test_touching_islands_keep_their_ids() -> None:
    mask, instances = compose_mask([_square(1, 0, 0, 5), _square(1, 5, 0, 5)], 5, 10)
    assert (mask == 1).all()
    np.testing.assert_array_equal(np.unique(instances[:, :5]), [1])
    np.testing.assert_array_equal(np.unique(instances[:, 5:]), [2])


def test_regions_that_share_a_slanted_edge_leave_no_seam() -> None:
    rng = np.random.default_rng(0)
    for _ in range(30):
        x0, x1 = rng.uniform(5, 45, 2)
        left = Annotation(1, (np.array([(0, 0), (x0, 0), (x1, 50), (0, 50)]),))
        right = Annotation(2, (np.array([(x0, 0), (50, 0), (50, 50), (x1, 50)]),))
        for overlap in ("later", "ignore"):
            mask, _ = compose_mask([left, right], 50, 50, overlap)  # type: ignore[arg-type]
            assert set(np.unique(mask)) == {1, 2}


def test_a_crowd_has_a_class_but_no_instance() -> None:
    mask, instances = compose_mask([_square(1, 2, 2, 4, is_instance=False)], 10, 10)
    assert mask.sum() == 16
    assert not instances.any()


def test_union_of_runs_and_polygons() -> None:
    region = np.zeros((10, 10), bool)
    region[0, :] = True
    both = Annotation(3, _square(3, 4, 4, 2).polygons, runs=encode_runs(region))
    mask, _ = compose_mask([both], 10, 10)
    assert (mask == 3).sum() == 14


def test_agreement_of_three_annotators() -> None:
    masks = [np.array([row], np.uint8) for row in ([0, 1, 1, 1, 2], [0, 0, 1, 1, 1], [0, 0, 0, 1, 0])]
    np.testing.assert_array_equal(merge_masks(masks, "union"), [[0, 1, 1, 1, 255]])
    np.testing.assert_array_equal(merge_masks(masks, "intersection"), [[0, 0, 0, 1, 0]])
    np.testing.assert_array_equal(merge_masks(masks, "majority"), [[0, 0, 1, 1, 255]])


def test_ignored_pixels_have_no_vote() -> None:
    masks = [np.array([[255, 255]], np.uint8), np.array([[1, 255]], np.uint8)]
    for agreement in ("union", "intersection", "majority"):
        np.testing.assert_array_equal(merge_masks(masks, agreement), [[1, 255]])  # type: ignore[arg-type]
