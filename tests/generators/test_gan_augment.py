"""Adaptive augmentation: what it does to images, that it can be undone in expectation, how it is steered."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from steelgen.generators.augment import (
    AUGMENTATION_NUMBERS,
    MAX_STRENGTH,
    AdaptiveStrength,
    augment,
    augment_mask,
    build_maps,
)

OFF = 0.999  # of a gate: above any strength


def draw_numbers(count, seed=0):
    return torch.rand(count, AUGMENTATION_NUMBERS, generator=torch.Generator().manual_seed(seed))


def only(count, **gates):
    """Numbers with which nothing happens but what is named by its places."""
    numbers = torch.full((count, AUGMENTATION_NUMBERS), 0.5)
    numbers[:, [0, 2, 4, 7, 9, 11, 13, 15]] = OFF
    for place, value in gates.items():
        numbers[:, int(place[1:])] = value
    return numbers


def test_without_strength_images_stay_as_they_are():
    images = torch.randn(8, 2, 16, 16)
    torch.testing.assert_close(augment(images, draw_numbers(8), torch.tensor(0.0)), images, atol=1e-4, rtol=0)


@pytest.mark.parametrize("turns", range(4))
def test_blits_move_whole_pixels(turns):
    """Mirrored, turned by quarters and shifted by whole pixels, each against numpy."""
    images = torch.randn(1, 1, 16, 16)
    strength = torch.tensor(0.5)
    turned = augment(images, only(1, _2=0.0, _3=turns / 4 + 0.1), strength)[0, 0].numpy()
    expected = [np.rot90(images[0, 0].numpy(), k) for k in (turns, -turns)]
    assert min(np.abs(turned - option).max() for option in expected) < 1e-4
    mirrored = augment(images, only(1, _0=0.0, _1=0.1), strength)
    torch.testing.assert_close(mirrored, images.flip(3), atol=1e-4, rtol=0)
    shifted = augment(images, only(1, _4=0.0, _5=0.99, _6=0.5), strength)
    torch.testing.assert_close(shifted[..., :-2], images[..., 2:], atol=1e-4, rtol=0)


def test_transforms_are_undone_in_expectation():
    """The mean over all mirrors and quarter turns, as likely as they are at p = 0.8, gives the image back: the mixing
    has the eigenvalues 1 and 1 − p. At p = 1 it would not: then all orientations are alike. Three kinds of turns share
    p, so quarter turns have 1 − (1 − p)^(1/3)."""
    torch.manual_seed(0)
    image, p = torch.randn(1, 1, 8, 8), 0.784
    quarter = 1 - (1 - p) ** (1 / 3)  # 0.4
    gates = (np.arange(10) + 0.5) / 10
    rows = [
        only(1, _0=float(a), _1=b, _2=float(c), _3=d)
        for a, b, c, d in itertools.product(gates, (0.25, 0.75), gates, (0.1, 0.3, 0.6, 0.8))
    ]
    numbers = torch.cat(rows)
    mixed = augment(image.expand(len(numbers), -1, -1, -1), numbers, torch.tensor(p)).mean(dim=0, keepdim=True)
    assert (mixed - image).abs().max() > 0.5

    def unmix(images, orbit, p):
        return (images - p * torch.stack(orbit(images)).mean(dim=0)) / (1 - p)

    # Mirrors come first in the map from places to places, and so last for images.
    undone = unmix(mixed, lambda images: [images, images.flip(3)], 0.8)
    undone = unmix(undone, lambda images: [images.rot90(k, (2, 3)) for k in range(4)], quarter)
    torch.testing.assert_close(undone, image, atol=2e-3, rtol=0)


BINS = 36
"""Of orientations, 5° each."""


def mix_orientations(strength, seed):
    """(BINS, BINS): how waves of each orientation are spread over all by the transforms of many images.

    A map x → Ax + b from places in the transformed image to the image's turns a wave vector k into Aᵀk.
    """
    maps = build_maps(draw_numbers(100_000, seed), torch.tensor(strength), 32)[:, :2, :2].double().numpy()
    angles = np.deg2rad((np.arange(BINS) + 0.5) * 180 / BINS)
    waves = np.einsum("nji,bj->bni", maps, np.stack([np.cos(angles), np.sin(angles)], axis=1))
    found = np.rad2deg(np.arctan2(waves[..., 1], waves[..., 0])) % 180
    return np.stack([np.histogram(row, BINS, (0, 180))[0] / len(row) for row in found])


@pytest.mark.parametrize(("strength", "at_least", "at_most"), [(0.6, 0.98, 1.0), (0.8, 0.95, 1.0), (1.0, 0.0, 0.25)])
def test_a_perfect_discriminator_still_tells_how_lamellae_lie(strength, at_least, at_most):
    """World W2, lamellae at 0 ± 7°: the generator whose transformed images are like the transformed real ones, found
    from even orientations by expectation maximization, draws 95 % within 20° at the largest strength there is. Were
    every image transformed, it could draw what it likes. It takes few rounds: were quarter turns as likely as the free
    ones together, it would take thousands, and a discriminator in training could not tell."""
    centers = (np.arange(BINS) + 0.5) * 180 / BINS
    offsets = np.minimum(centers, 180 - centers)
    real = np.exp(-0.5 * (offsets / 7) ** 2)
    real /= real.sum()
    # Of other real images than of drawn ones, or what is left by chance would give the orientation away.
    seen, mixing, drawn = real @ mix_orientations(strength, 1), mix_orientations(strength, 2), np.full(BINS, 1 / BINS)
    for _ in range(300):
        drawn = drawn * (mixing @ (seen / (drawn @ mixing)))
    assert at_least <= drawn[offsets < 20].sum() <= at_most


def test_waves_turn_as_the_maps_say():
    """The orientation of transformed lamellae, by the structure tensor, against Aᵀk."""
    numbers, strength = draw_numbers(128), torch.tensor(0.8)
    rows = torch.arange(64.0)[:, None].expand(64, 64)
    images = torch.sin(2 * torch.pi * rows / 8).expand(128, 1, 64, 64)
    moved = augment(images, numbers, strength)[:, 0].numpy()[:, 16:48, 16:48]
    down, across = np.gradient(moved, axis=(1, 2))
    terms = [(a * b).mean(axis=(1, 2)) for a, b in ((across, across), (down, down), (across, down))]
    found = np.rad2deg(0.5 * np.arctan2(2 * terms[2], terms[0] - terms[1]))
    maps = build_maps(numbers, strength, 64)[:, :2, :2].numpy()
    expected = np.rad2deg(np.arctan2(maps[:, 1, 1], maps[:, 1, 0]))  # Aᵀ(0, 1): x is across, y down
    apart = np.abs((found - expected + 90) % 180 - 90)
    assert np.median(apart) < 3
    assert (apart < 15).mean() > 0.8


def test_each_transform_is_as_likely_as_the_strength():
    p = torch.tensor(0.3)
    maps = build_maps(draw_numbers(20000), p, 32)
    untouched = (maps - torch.eye(3)).abs().amax(dim=(1, 2)) < 1e-6
    # Of mirrors half are none, of quarter turns a fourth; all turns together are as likely as the others.
    turns = 1 - 0.7 ** (1 / 3)
    expected = (1 - 0.15) * (1 - 0.75 * turns) * (1 - turns) ** 2 * 0.7**4
    shifted_by_none = (0.3 * ((1 / 8) ** 2)) / 0.7 + 1  # whole-pixel shifts that round to 0
    assert untouched.float().mean().item() == pytest.approx(expected * shifted_by_none, abs=0.012)


def test_a_mask_goes_where_its_image_goes():
    """The image of a mask's gray levels, transformed, is the transformed mask away from edges."""
    mask = torch.zeros(64, 32, 32, dtype=torch.int64)
    mask[:, 8:20, 4:24] = 1
    numbers, strength = draw_numbers(64), torch.tensor(0.8)
    image = augment(mask[:, None].float(), numbers, strength)[:, 0]
    moved = augment_mask(mask, numbers, strength)
    assert set(moved.unique().tolist()) == {0, 1}
    clear = (image < 0.1) | (image > 0.9)
    assert clear.float().mean() > 0.8
    assert torch.equal((image > 0.5)[clear], (moved == 1)[clear])


def test_images_depend_on_their_own_numbers_alone():
    images, numbers, strength = torch.randn(4, 1, 16, 16), draw_numbers(4), torch.tensor(0.7)
    together = augment(images, numbers, strength)
    torch.testing.assert_close(augment(images[2:3], numbers[2:3], strength)[0], together[2])


def test_penalties_pass_through():
    """Second derivatives, which R1 and R2 take, against differences."""
    numbers, strength = draw_numbers(2).double(), torch.tensor(0.8, dtype=torch.float64)
    images = torch.randn(2, 1, 6, 6, dtype=torch.float64, requires_grad=True)

    def judge(images):
        return augment(images, numbers, strength).tanh().sum(dim=(1, 2, 3))

    assert torch.autograd.gradgradcheck(judge, (images,))


def alone(tensor):
    return tensor


def run_controller(strength, steps, batch=64):
    """Steers a made-up discriminator whose lead falls as transforms get more likely: 0.9 − p."""
    rng, course = np.random.default_rng(0), []
    for _ in range(steps):
        lead = 0.9 - strength.on(torch.device("cpu")).item()
        strength.record(torch.from_numpy(np.where(rng.random(batch) < (1 + lead) / 2, 1.0, -1.0)))
        strength.update(alone)
        course.append(strength.on(torch.device("cpu")).item())
    return course


def test_strength_settles_where_the_lead_is_the_target():
    course = run_controller(AdaptiveStrength(0.5, 20_000), 1500)
    assert np.mean(course[-500:]) == pytest.approx(0.4, abs=0.05)
    assert max(course) <= MAX_STRENGTH


def test_strength_moves_by_the_share_of_crops_and_stays_in_bounds():
    strength = AdaptiveStrength(0.5, 1000)
    for _ in range(12):
        strength.record(torch.ones(100))
        strength.update(alone)
    # The first 100 of 256 crops that it averages over bring the lead to 0.39 alone; then p rises by a tenth each.
    assert strength.state()["strength"] == pytest.approx(MAX_STRENGTH)
    for _ in range(20):
        strength.record(-torch.ones(100))
        strength.update(alone)
    assert strength.state()["strength"] == 0


def test_strength_goes_on_where_it_was_and_is_the_same_in_all_processes():
    whole, halves = AdaptiveStrength(0.5, 5000), AdaptiveStrength(0.5, 5000)
    rng = np.random.default_rng(1)
    for step in range(60):
        signs = torch.from_numpy(np.sign(rng.normal(1, 1, 32))).float()
        whole.record(signs)
        whole.update(alone)
        if step == 30:
            fresh = AdaptiveStrength(0.5, 5000)
            fresh.restore(halves.state())
            halves = fresh
        halves.record(signs[:16])
        halves.update(lambda own, signs=signs: torch.cat([own, signs[16:]]))
    assert halves.state() == whole.state()
    assert whole.state()["strength"] > 0.1


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
def test_images_are_resampled_as_by_torch_and_twice_differentiable(mode):
    images = torch.randn(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    numbers, strength = torch.rand(2, AUGMENTATION_NUMBERS, dtype=torch.float64), torch.tensor(0.8, dtype=torch.float64)
    grid = F.affine_grid(build_maps(numbers, strength, 8)[:, :2], [2, 1, 8, 8], align_corners=False)
    wanted = F.grid_sample(images, grid, mode=mode, padding_mode="reflection", align_corners=False)
    assert torch.equal(augment(images, numbers, strength, mode), wanted)
    assert torch.autograd.gradcheck(lambda x: augment(x, numbers, strength, mode), (images,))
    assert torch.autograd.gradgradcheck(lambda x: augment(x, numbers, strength, mode), (images,))
