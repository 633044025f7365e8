"""Each rule on values whose answers are known."""

import numpy as np
import pytest

from steelgen.planning import rules, scale
from steelgen.planning.fingerprint import ClassFingerprint

SHARP = {1.5: 1.0, 2.0: 1.0, 3.0: 1.0, 4.0: 1.0, 6.0: 1.0, 8.0: 0.9}
"""Detail of a set without fine texture."""


def make_class(name="islands", share=0.2, diameter=200.0, width=60.0):
    return ClassFingerprint(name, share, 10, [1, 2, 3], diameter, width, 9.0)


@pytest.mark.parametrize(
    ("edge", "device", "memory", "minutes", "size"),
    [
        (500, "cpu", 200, 5000, 64),
        (500, "cuda", 80, 30, 64),
        (500, "cuda", 16, 60, 128),
        (500, "cuda", 39, 5000, 128),
        (500, "cuda", 40, 720, 256),
        (200, "cuda", 40, 720, 192),
        (40, "cpu", 8, 30, 32),
    ],
)
def test_image_size(edge, device, memory, minutes, size):
    assert scale.choose_image_size(edge, device, memory, minutes).value == size


@pytest.mark.parametrize(
    ("classes", "detail", "edge", "crop", "because"),
    [
        ([make_class()], SHARP, 300, 224, "crops of more than 0.75 of the smallest micrograph, 300 px"),
        ([make_class(diameter=24.0)], SHARP, 1000, 192, "the typical island of 24 px must span 8 px"),
        ([make_class(), make_class("film", 0.01, width=5.0)], SHARP, 1000, 160, "film, 5 px wide, must keep 2 px"),
        # A class that is thinner than 2 px in the micrographs does not decide about others, but alone it does.
        ([make_class(width=8.0), make_class("film", 0.01, width=1.0)], SHARP, 1000, 256, "islands, 8 px wide"),
        ([make_class(width=1.0)], SHARP, 1000, 64, "crops are never enlarged"),
        ([], {1.5: 0.9, 2.0: 0.7, 3.0: 0.6}, 1000, 112, "leaves 0.80 of the contrast"),
        ([], SHARP, 1000, 512, "shrinking 8 times leaves 0.90"),
        ([], SHARP, 70, 64, "crops are never enlarged"),
    ],
)
def test_crop_size(classes, detail, edge, crop, because):
    choice = scale.choose_crop_size(64, edge, classes, detail)
    assert choice.value == crop
    assert because in choice.because


def test_typical_diameter_is_that_of_the_class_with_most_area():
    small, large = make_class(share=0.1, diameter=5.0), make_class(share=0.3, diameter=50.0)
    assert scale.find_typical_diameter([large, small]) == 50
    assert scale.find_typical_diameter([small]) == 5
    assert scale.find_typical_diameter([]) is None


def test_eight_pixels_are_where_areas_become_right():
    """The source of MIN_ISLAND_PX: errors of the area of digital disks with random centers."""
    rng = np.random.default_rng(0)
    rows, columns = np.mgrid[-8:9, -8:9]

    def measure(diameter):
        areas = [((rows - y) ** 2 + (columns - x) ** 2 <= diameter**2 / 4).sum() for y, x in rng.random((2000, 2))]
        return np.sqrt(np.mean((np.array(areas) / (np.pi * diameter**2 / 4) - 1) ** 2))

    assert measure(scale.MIN_ISLAND_PX) == pytest.approx(0.026, abs=0.004)
    assert measure(6) == pytest.approx(0.04, abs=0.006)
    assert measure(4) == pytest.approx(0.08, abs=0.01)


def test_lost_classes_are_named():
    classes = [make_class("film", width=3.0), make_class("fine", width=4.0)]
    assert scale.find_lost_classes(classes, 2.0) == [
        "film is 1.5 px wide at the network's scale (3 px in the micrographs); below 2 px a class is easily lost"
    ]
    assert scale.find_lost_classes(classes, 1.5) == []


@pytest.mark.parametrize(
    ("strength", "direction", "agreement", "count", "value"),
    [
        (0.06, 0, 0.9, 16, True),  # weak
        (0.15, 178.9, 0.8, 48, "mirror"),
        (0.13, 10, 0.25, 43, True),  # 43 · 0.25² = 2.7: chance
        (0.9, 45, 1.0, 16, False),
        (0.9, 92, 1.0, 3, "mirror"),
        (0.9, 0, 0.85, 2, True),  # two that agree by 0.85 only
        (0.15, 0, 1.0, 3, True),  # strong for 48 micrographs, not for 3
    ],
)
def test_augment(strength, direction, agreement, count, value):
    assert rules.choose_augment(strength, direction, agreement, count).value == value


def test_channels():
    assert rules.choose_channels(True).value == 3
    assert rules.choose_channels(False).value == 1


def test_network():
    assert rules.choose_network(64, "cpu").value == rules.SMALL_NETWORK
    assert rules.choose_network(64, "cuda").value == rules.SMALL_NETWORK
    assert rules.choose_network(128, "cuda").value == rules.LARGE_NETWORK


@pytest.mark.parametrize(
    ("device", "crops", "batch"), [("cpu", 500, 16), ("cuda", 500, 32), ("cpu", 15, 8), ("cpu", 2, 2), ("cpu", 1, 1)]
)
def test_batch(device, crops, batch):
    assert rules.choose_batch(device, crops).value == batch


@pytest.mark.parametrize(
    ("count", "minutes", "bundled", "value"),
    [
        (16, 30, ["uhcs"], "bundled:uhcs"),
        (16, 30, ["base", "uhcs"], "bundled:base"),
        (16, 5000, ["uhcs"], "bundled:uhcs"),
        (500, 30, ["uhcs"], "bundled:uhcs"),
        (500, 75, ["uhcs"], None),
        (16, 30, [], None),
    ],
)
def test_start(count, minutes, bundled, value):
    assert rules.choose_start(count, minutes, bundled).value == value


def test_a_model_with_the_classes_of_the_set_goes_first():
    assert rules.choose_start(16, 30, ["base", "uhcs"], "uhcs").value == "bundled:uhcs"


def test_learning_rate():
    rates = [
        rules.choose_learning_rate(*each).value
        for each in (("bundled:uhcs", 32), ("bundled:base", 32), (None, 64), (None, 32))
    ]
    assert rates == [3e-4, 1e-3, 2e-4, 1e-3]


def test_steps_and_average():
    assert rules.choose_steps(10, 2.0).value == 270
    assert rules.choose_steps(0.01, 60.0).value == 1
    assert rules.choose_ema_decay(270).value == 0.963
    assert rules.choose_ema_decay(100_000).value == 0.9995
    assert rules.choose_ema_decay(5).value == 0


def test_mask_dropout():
    assert rules.choose_mask_dropout(True).value == 0.1
    assert rules.choose_mask_dropout(False).value == 0


def test_intervals():
    short = {"preview": 200, "validation": 100, "measurement": None, "checkpoint": 250}
    assert rules.choose_intervals(1000, 30, "val").value == short
    assert rules.choose_intervals(1000, 60, None).value == short
    assert rules.choose_intervals(1000, 60, "val").value == {**short, "measurement": 250}
    assert set(rules.choose_intervals(1, 1, None).value.values()) == {1, None}


@pytest.mark.parametrize(("masks", "kind"), [(0, "none"), (7, "augmented"), (8, "split")])
def test_mask_source(masks, kind):
    assert rules.choose_mask_source(masks).value == kind


def test_unlabeled_micrographs():
    found = rules.choose_labeling(1, 15, 30)
    assert found.value == 600
    assert "1 micrograph with masks labels 15 others" in found.because
    assert [rules.choose_labeling(2, 3, minutes).value for minutes in (1, 20, 60)] == [200, 400, 600]
    assert "16 masks, 15 of them predicted" in rules.choose_mask_source(16, 15).because
    assert rules.choose_mask_source(3, 2).value == "augmented"
    assert rules.choose_real_share().value == 0.5


def test_samples():
    # 6 network passes forward and backward per image: 0.6 s; a quarter of 4 minutes holds 100.
    assert rules.choose_num_samples(4, 0.1).value == 100
    assert rules.choose_num_samples(7.6, 0.1, refined=True).value == 100
    assert rules.choose_num_samples(0.1, 1).value == 16
    assert rules.choose_num_samples(1000, 0.1).value == 256


def test_filter():
    assert rules.choose_filter(True, 30).value
    assert not rules.choose_filter(True, 29).value
    assert not rules.choose_filter(False, 300).value


def test_segmenter_steps():
    assert [rules.choose_judge_steps(minutes).value for minutes in (0.1, 10, 20, 500)] == [10, 150, 300, 300]


def test_codes():
    few = ["RALLF000", "RALLFALL"]
    assert rules.choose_codes(7, True, True).value == few
    assert rules.choose_codes(8, True, True).value == ["R25%F000", "R25%FALL", *few]
    assert rules.choose_codes(1, True, True, predicted=3).value == ["RALLF000", "RALLF000L", "RALLFALL"]
    assert rules.choose_codes(8, False, True).value == rules.choose_codes(8, True, False).value == []


@pytest.mark.parametrize(
    ("edge", "has_masks", "factor", "because"),
    [
        (171, True, 2, "own resolution"),
        (170, True, None, "crops of 128 px are too large for micrographs of 170 px"),
        (484, False, None, "without masks"),
    ],
)
def test_labeled_micrographs_that_are_large_enough_get_a_cascade(edge, has_masks, factor, because):
    choice = scale.choose_cascade(64, edge, has_masks)
    assert choice.value == factor
    assert because in choice.because
    if factor:
        thin = [make_class(), make_class("film", 0.01, width=1.0)]
        assert scale.choose_crop_size(64, edge, thin, SHARP, factor).value == 128
