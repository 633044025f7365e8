"""Balanced masks: the choice against exhaustive search, and the source as the sampler uses it."""

import itertools
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from steelgen.config.mask_sources import BalancedMasks
from steelgen.data.folder import DatasetInfo, load_dataset_info, save_dataset_info, save_mask
from steelgen.data.placement import CropGeometry
from steelgen.errors import InputError
from steelgen.sampling.balance import (
    BalancedSource,
    BalanceReport,
    choose_balanced,
    compute_class_difference,
    count_classes,
    save_balance,
)

COUNTS = st.integers(1, 5).flatmap(
    lambda classes: st.lists(
        st.lists(st.integers(0, 9), min_size=classes, max_size=classes).filter(any), min_size=1, max_size=4
    )
)


@settings(max_examples=60, deadline=None)
@given(counts=COUNTS, number=st.integers(1, 5), dif=st.sampled_from([0.0, 0.1, 0.5]), seed=st.integers(0, 3))
def test_choice_is_within_the_limit_or_the_best_reached(counts, number, dif, seed):
    counts = np.array(counts)
    start = np.zeros(counts.shape[1], np.int64)
    chosen = choose_balanced(counts, number, dif, start, seed)
    assert chosen.shape == (number,)
    assert np.array_equal(chosen, choose_balanced(counts, number, dif, start, seed))
    reached = compute_class_difference(counts[chosen].sum(axis=0))
    exact = min(
        compute_class_difference(counts[list(pick)].sum(axis=0))
        for pick in itertools.combinations_with_replacement(range(len(counts)), number)
    )
    assert reached >= exact
    if reached > dif:  # then no exchange of one mask would have helped
        for position, other in itertools.product(range(number), range(len(counts))):
            swapped = chosen.copy()
            swapped[position] = other
            assert compute_class_difference(counts[swapped].sum(axis=0)) >= reached


def test_what_is_there_already_is_made_up_for():
    counts = np.array([[10, 0], [0, 10]])
    chosen = choose_balanced(counts, 6, 0.0, np.array([40, 0]), seed=0)
    assert counts[chosen].sum(axis=0).tolist() == [10, 50]


def test_equally_good_masks_are_used_alike():
    chosen = choose_balanced(np.ones((5, 3), np.int64), 20, 0.1, np.zeros(3, np.int64), seed=1)
    assert np.bincount(chosen).tolist() == [4] * 5


def test_objects_are_regions_connected_by_corners_too():
    mask = np.array([[1, 0, 0, 2], [0, 1, 0, 0], [0, 0, 0, 2]], np.uint8)
    assert count_classes(mask, 4, by_pixels=True).tolist() == [8, 2, 2, 0]
    assert count_classes(mask, 4, by_pixels=False).tolist() == [1, 1, 2, 0]


@pytest.fixture
def imbalanced(tmp_path):
    """12 masks of 16 px: class 1 in ten of them, class 2 in two, one of all background; class 3 in none."""
    root = tmp_path / "imbalanced"
    info = DatasetInfo(name="imbalanced", class_names=["matrix", "often", "rare", "never"])
    for index in range(13):
        mask = np.zeros((16, 16), np.uint8)
        if index < 12:
            mask[:8, :4] = 1 if index < 10 else 2
        if index == 0:
            mask[12:, 12:] = 1
        (root / "train" / "images").mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask * 60).save(root / "train" / "images" / f"m{index:02d}.png")
        save_mask(root / "train" / "masks" / f"m{index:02d}.png", mask, info.palette)
    save_dataset_info(root, info)
    return root


def build(root, **options):
    config = BalancedMasks(dataset=root, **{"block_size": 20, **options})
    return BalancedSource(config, load_dataset_info(root), CropGeometry(16, 16), seed=3)


def drawn_counts(source, number, by_pixels=True):
    return sum(count_classes(source.draw(index).mask, 4, by_pixels) for index in range(number))


def test_generated_data_alone_is_balanced(imbalanced):
    source = build(imbalanced, based_on_generated_data_only=True)
    counts = drawn_counts(source, 20)
    assert counts[1] == counts[2] > 0
    report = source.report(20)
    assert report.met
    assert report.classes == ["often", "rare"]
    assert report.absent == ["never"]
    assert report.before == pytest.approx([336 / 400, 64 / 400])
    assert report.after == pytest.approx([0.5, 0.5])
    assert all(source.draw(index).mask.any() for index in range(20))


def test_together_with_the_real_masks(imbalanced):
    counts = drawn_counts(build(imbalanced), 20)
    assert counts[1] + 336 == pytest.approx(counts[2] + 64, rel=0.1)


def test_by_objects(imbalanced):
    source = build(imbalanced, based_on_generated_data_only=True, based_on_pixel_count=False)
    counts = drawn_counts(source, 20, by_pixels=False)
    assert counts[1] == counts[2]


def test_ejected_classes_do_not_count(imbalanced):
    source = build(imbalanced, ejection_classes=[2, 3], based_on_generated_data_only=True)
    assert source.report(20).classes == ["matrix", "often"]
    with pytest.raises(InputError, match="ejection_classes: class index 7 is not below num_classes 4"):
        build(imbalanced, ejection_classes=[7])
    with pytest.raises(InputError, match="no mask of the train split contains a class outside ejection_classes"):
        build(imbalanced, ejection_classes=[0, 1, 2])


def test_mask_augmentation_turns_repeated_masks(imbalanced):
    plain = build(imbalanced, based_on_generated_data_only=True)
    turned = build(imbalanced, based_on_generated_data_only=True, use_mask_augmentation=True)
    pairs = [(plain.draw(index), turned.draw(index)) for index in range(20)]
    assert [a.source for a, _ in pairs] == [b.source for _, b in pairs]
    assert len({b.mask.tobytes() for _, b in pairs}) > len({a.mask.tobytes() for a, _ in pairs})
    assert np.array_equal(drawn_counts(plain, 20), drawn_counts(turned, 20))


def test_a_mask_depends_on_seed_and_number_alone(imbalanced):
    one, other = build(imbalanced, block_size=5), build(imbalanced, block_size=5)
    later = other.draw(17)
    assert [one.draw(index).source for index in range(18)][-1] == later.source
    assert one.draw(10**9 + 3).source == one.draw(3).source


def test_any_order_of_asking_gives_the_same(imbalanced, monkeypatch):
    options = {"block_size": 3, "based_on_generated_data_only": True}
    plain = build(imbalanced, **options)
    wanted = [(plain.draw(index).source, plain.trace(index)) for index in range(60)]
    held = [count_classes(plain.draw(index).mask, 4, True)[1:3] for index in range(60)]
    monkeypatch.setattr("steelgen.sampling.balance._KEPT_MASKS", 7)
    source = build(imbalanced, **options)
    for index in (59, 0, 40, 41, 38, 2):
        assert (source.draw(index).source, source.trace(index)) == wanted[index]
        assert len(source._kept) <= 2
    for number in (60, 1, 31):
        shares = np.sum(held[:number], axis=0)
        assert source.report(number).after == pytest.approx((shares / shares.sum()).tolist())


def test_the_report_says_what_was_not_met(tmp_path):
    report = BalanceReport(["a", "b"], [0.9, 0.1], [0.7, 0.3], None, 0.1, False, [])
    save_balance(tmp_path, report)
    written = json.loads((tmp_path / "balance.json").read_text())
    assert written["met"] is False
    assert written["class_difference"] is None
    picture = np.asarray(Image.open(tmp_path / "balance.png").convert("RGB"))
    areas = []
    for half, color in itertools.product(np.array_split(picture, 2, axis=1), ("#999999", "#0072b2")):
        bar = half[picture.shape[0] // 8 :]  # below the legend
        areas.append((bar == list(bytes.fromhex(color[1:]))).all(axis=2).sum())
    assert np.array(areas) / areas[0] == pytest.approx(np.array([0.9, 0.7, 0.1, 0.3]) / 0.9, abs=0.06)
