"""Analog bits: every number of classes, unused codes, ignored pixels, phase fractions."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.special import expit, logit

from steelgen.diffusion.analog_bits import (
    compute_expected_bits,
    compute_probabilities,
    count_bits,
    decode_mask,
    encode_mask,
    tilt_fractions,
)


def test_every_class_of_every_number_of_classes_returns():
    for num_classes in range(1, 256):
        mask = torch.arange(num_classes).view(1, 1, -1)
        bits = encode_mask(mask, num_classes)
        assert bits.shape[1] == max(1, int(np.ceil(np.log2(num_classes)))) == count_bits(num_classes)
        assert set(bits.unique().tolist()) <= {-1.0, 1.0}
        assert torch.equal(decode_mask(bits, num_classes), mask)
        assert torch.equal(decode_mask(0.1 * bits, num_classes), mask)


@pytest.mark.parametrize("num_classes", [3, 5, 11, 200])
def test_any_point_decodes_to_the_nearest_code(num_classes):
    """Corners of the cube that stand for no class are among the points."""
    width = count_bits(num_classes)
    free = np.random.default_rng(0).normal(size=(200, width))
    corners = np.array(list(itertools.product([-1.0, 1.0], repeat=width))[:64])
    points = np.concatenate([corners * [1 + 0.01 * place for place in range(width)], free])
    codes = np.array(
        [[1.0 if number >> place & 1 else -1.0 for place in range(width)] for number in range(num_classes)]
    )
    nearest = ((points[:, None] - codes[None]) ** 2).sum(axis=2).argmin(axis=1)
    found = decode_mask(torch.from_numpy(points.T[None, :, :, None]).float(), num_classes)
    assert np.array_equal(found[0, :, 0].numpy(), nearest)


def test_ignored_pixels_have_no_bits():
    mask = torch.tensor([[[0, 1, 2, 255]]])
    assert (encode_mask(mask, 3)[..., 3] == 0).all()
    assert (encode_mask(mask, 3)[..., :3] != 0).all()


def test_probabilities_are_products_of_those_of_the_bits():
    bits = torch.tensor([0.4, -0.2]).view(1, 2, 1, 1)
    first, second = 0.7, 0.4
    shares = np.array([(1 - first) * (1 - second), first * (1 - second), (1 - first) * second])
    found = compute_probabilities(bits, 3)[0, :, 0, 0]
    np.testing.assert_allclose(found, shares / shares.sum(), rtol=1e-5)


def test_the_fraction_of_two_classes_is_met_by_one_shift_of_the_log_odds():
    bits = torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9
    odds = logit((1 + bits.double().numpy()) / 2)
    shift = brentq(lambda shift: expit(odds + shift).mean() - 0.3, -10, 10)
    found = tilt_fractions(compute_probabilities(bits, 2), torch.tensor([[float("nan"), 0.3]]))
    np.testing.assert_allclose(found[:, 1:], expit(odds + shift), atol=1e-4)


def test_fractions_of_several_classes_change_no_odds_but_theirs():
    """The closest distribution is the old one times one factor per class, and free classes share a factor."""
    bits = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 1.6 - 0.8
    nan = float("nan")
    wanted = torch.tensor([[nan, 0.2, 0.35, nan, nan], [nan, nan, 0.05, nan, nan]])
    before = compute_probabilities(bits, 5)
    found = tilt_fractions(before, wanted)
    for row, targets in enumerate(wanted):
        factors = torch.ones(5)
        for _ in range(200):  # iterative scaling, one class after the other
            for index in targets.isfinite().nonzero().flatten().tolist():
                share = (before[row] * factors[:, None, None] / (before[row] * factors[:, None, None]).sum(0))[index]
                factors[index] *= targets[index] / (1 - targets[index]) * (1 - share.mean()) / share.mean()
        expected = before[row] * factors[:, None, None]
        expected = expected / expected.sum(dim=0)
        assert expected[targets.isfinite()].mean(dim=(1, 2)) == pytest.approx(targets[targets.isfinite()], abs=1e-4)
        torch.testing.assert_close(found[row], expected, atol=1e-3, rtol=0)


def test_fractions_of_a_region_are_of_its_pixels():
    bits = torch.rand(1, 1, 24, 24, generator=torch.Generator().manual_seed(0)) * 1.8 - 0.9
    region = torch.zeros(1, 24, 24, dtype=torch.bool)
    region[:, 5:15, :9] = True
    wanted, probabilities = torch.tensor([[float("nan"), 0.2]]), compute_probabilities(bits, 2)
    alone = tilt_fractions(probabilities[:, :, 5:15, :9], wanted)
    found = tilt_fractions(probabilities, wanted, region)[:, :, 5:15, :9]
    torch.testing.assert_close(found, alone, atol=1e-5, rtol=0)


def test_decided_pixels_keep_their_class():
    mask = (torch.rand(1, 20, 20, generator=torch.Generator().manual_seed(2)) < 0.25).long()
    tilted = tilt_fractions(compute_probabilities(encode_mask(mask, 2), 2), torch.tensor([[float("nan"), 0.9]]))
    assert torch.equal(tilted.argmax(dim=1), mask)


@pytest.mark.parametrize("num_classes", [2, 3, 5])
def test_expected_bits_are_the_mean_of_the_codes(num_classes):
    draws = torch.randint(0, num_classes, (5000,), generator=torch.Generator().manual_seed(3))
    shares = torch.bincount(draws, minlength=num_classes) / len(draws)
    mean = encode_mask(draws.view(1, 1, -1), num_classes).mean(dim=3)
    found = compute_expected_bits(shares.view(1, -1, 1, 1))[:, :, 0]
    torch.testing.assert_close(found, mean, atol=1e-5, rtol=0)
