"""Mean gray levels of a made set: those of the phases, of micrographs and of places are known."""

from __future__ import annotations

import numpy as np
import pytest

from steelgen.data.brightness import Brightness, measure_brightness, sample_levels
from steelgen.data.cache import Micrographs
from steelgen.data.folder import DatasetInfo
from steelgen.data.mixture import Share
from steelgen.data.placement import CropGeometry

EDGE = 16
GEOMETRY = CropGeometry(8, EDGE)
LEVELS = np.array([80.0, 140.0, 200.0])
BETWEEN, WITHIN = 12.0, 5.0


def to_gray(level):
    return (np.asarray(level) + 1) * 127.5


def make_micrographs(count, levels=LEVELS, between=BETWEEN, first_class=0, seed=0):
    """Micrographs of 4 × 4 tiles; a tile has two phases in random shares, its own brightness and its micrograph's."""
    rng = np.random.default_rng(seed)
    images, masks = [], []
    for _ in range(count):
        image, mask = np.zeros((4 * EDGE, 4 * EDGE)), np.zeros((4 * EDGE, 4 * EDGE), np.uint8)
        shift = rng.normal(0, between)
        for top in range(0, 4 * EDGE, EDGE):
            for left in range(0, 4 * EDGE, EDGE):
                phases = rng.choice(len(levels), 2, replace=False)
                shown = np.where(np.arange(EDGE)[:, None] < rng.integers(0, EDGE + 1), *phases) + np.zeros(EDGE, int)
                mask[top : top + EDGE, left : left + EDGE] = shown + first_class
                image[top : top + EDGE, left : left + EDGE] = levels[shown] + shift + rng.normal(0, WITHIN)
        images.append(image.round().clip(0, 255).astype(np.uint8))
        masks.append(mask)
    return images, masks


def build(images, masks, classes, **options):
    info = DatasetInfo(name="made", class_names=[f"c{index}" for index in range(classes)])
    return Micrographs(info, [str(index) for index in range(len(images))], images, masks, **options)


def test_levels_and_both_spreads_are_found():
    (found,) = measure_brightness(build(*make_micrographs(200), 3), GEOMETRY)
    assert found.classes == [0, 1, 2]
    np.testing.assert_allclose(to_gray(found.levels), LEVELS, atol=3 * BETWEEN / np.sqrt(200))
    # Means of 16 places of a micrograph.
    expected = np.hypot(BETWEEN, WITHIN / 4)
    assert np.std(found.between) * 127.5 == pytest.approx(expected, rel=0.15)
    assert found.within * 127.5 == pytest.approx(WITHIN, rel=0.05)


def test_samples_are_distributed_as_measured():
    brightness = Brightness(classes=[0, 1], levels=[-0.5, 0.5], between=[-0.2, 0.0, 0.2], within=0.1)
    rng = np.random.default_rng(0)
    fractions = np.tile([0.75, 0.25], (20_000, 1))
    levels = brightness.sample(fractions, rng.normal(size=(20_000, 2)))
    assert levels.mean() == pytest.approx(-0.25, abs=0.005)
    between = np.interp(rng.random(20_000), [1 / 6, 1 / 2, 5 / 6], brightness.between)
    assert levels.std() == pytest.approx(np.hypot(between.std(), 0.1), rel=0.03)
    # In large images, places average out and micrographs do not.
    large = brightness.sample(fractions, rng.normal(size=(20_000, 2)), crops=10_000)
    assert large.std() == pytest.approx(between.std(), rel=0.03)
    assert abs(large + 0.25).max() <= 0.2 + 0.01


def test_levels_stay_between_black_and_white():
    brightness = Brightness(classes=[], levels=[0.9], between=[0.0], within=5.0)
    levels = brightness.sample(np.ones((100, 1)), np.random.default_rng(0).normal(size=(100, 2)))
    assert levels.min() == -1
    assert levels.max() == 1


def test_a_class_that_is_nowhere_has_the_mean_over_classes_and_one_micrograph_no_spread():
    images, masks = make_micrographs(1)
    (found,) = measure_brightness(build(images, masks, 5), GEOMETRY)
    assert found.levels[3:] == pytest.approx([np.mean(found.levels)] * 2)
    assert found.between == pytest.approx([0.0], abs=1e-9)
    assert found.within * 127.5 == pytest.approx(WITHIN, rel=0.5)


def test_ignored_pixels_do_not_count():
    images, masks = make_micrographs(20)
    for mask in masks:
        mask[: 2 * EDGE] = 255
    (found,) = measure_brightness(build(images, masks, 3), GEOMETRY)
    (lower,) = measure_brightness(
        build([image[2 * EDGE :] for image in images], [mask[2 * EDGE :] for mask in masks], 3), GEOMETRY
    )
    assert found == lower
    blank = [np.full_like(mask, 255) for mask in masks]
    assert measure_brightness(build(images, blank, 3), GEOMETRY) == ()


def test_without_classes_there_is_one_level():
    images, masks = make_micrographs(50)
    (found,) = measure_brightness(build(images, masks, 0), GEOMETRY)
    assert found.classes == []
    assert to_gray(found.levels[0]) == pytest.approx(np.mean(images), abs=0.01)
    levels = sample_levels([found], np.zeros((3, 1)), np.zeros((3, 2)))
    assert to_gray(levels) == pytest.approx(np.mean(images), abs=3)


def test_small_and_odd_micrographs():
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 255, (5, 40), dtype=np.uint8), rng.integers(0, 255, (41, 39), dtype=np.uint8)]
    masks = [np.zeros((5, 40), np.uint8), np.zeros((41, 39), np.uint8)]
    (found,) = measure_brightness(build(images, masks, 1), GEOMETRY)
    assert len(found.between) == 2
    tiles = [images[0][:, :16].mean(), images[0][:, 16:32].mean()]
    tiles += [images[1][top : top + 16, left : left + 16].mean() for top in (0, 16) for left in (0, 16)]
    # Both micrographs count alike.
    assert to_gray(found.levels[0]) == pytest.approx((np.mean(tiles[:2]) + np.mean(tiles[2:])) / 2, abs=1e-6)


def test_datasets_without_a_class_in_common_are_apart():
    """Two bright sets that share a class, a dark one without, and one without masks."""
    parts = [
        make_micrographs(12, LEVELS[:2], 1.0),
        make_micrographs(12, LEVELS[1:], 1.0, first_class=1),
        make_micrographs(12, LEVELS[:2] - 60, 20.0, first_class=3),
        make_micrographs(12),
    ]
    for mask in parts[3][1]:
        mask[:] = 255
    images, masks = ([each for part in parts for each in part[index]] for index in (0, 1))
    shares = tuple(Share(str(number), 1.0, EDGE, (1.0, 1.0), "") for number in range(4))
    members = tuple(number for number in range(4) for _ in range(12))
    bright, dark = measure_brightness(build(images, masks, 5, shares=shares, members=members), GEOMETRY)
    assert (bright.classes, dark.classes) == ([0, 1, 2], [3, 4])
    np.testing.assert_allclose(to_gray(bright.levels), LEVELS, atol=3)
    np.testing.assert_allclose(to_gray(dark.levels), LEVELS[:2] - 60, atol=15)
    assert np.std(dark.between) > 5 * np.std(bright.between)
    areas = np.array([[1, 3, 0, 0, 0], [0, 0, 0, 2, 0], [0, 0, 0, 0, 0], [1, 0, 0, 5, 0]], float)
    levels = sample_levels([bright, dark], areas, np.zeros((4, 2)))
    assert levels[0] == pytest.approx(bright.sample(np.array([[0.25, 0.75, 0]]), np.zeros((1, 2)))[0])
    assert levels[1] == levels[3] == pytest.approx(dark.sample(np.array([[1.0, 0]]), np.zeros((1, 2)))[0])
    assert np.isnan(levels[2])
