"""Gray levels and spectra against closed forms."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from steelgen.evaluation.fidelity import (
    compute_gray_kl,
    compute_gray_wasserstein,
    compute_histograms,
    compute_power_spectra,
    compute_spectrum_distance,
    compute_spread_ratios,
    compute_variation,
)
from tests.evaluation.conftest import check_oracle

RNG = np.random.default_rng(0)


def draw_normal(mean: float, sigma: float) -> np.ndarray:
    return RNG.normal(mean, sigma, (20, 128, 128)).round().clip(0, 255).astype(np.uint8)


def count_levels(images: np.ndarray) -> np.ndarray:
    return compute_histograms(images).sum(axis=0)


def compute_spectrum(images: np.ndarray) -> np.ndarray:
    return compute_power_spectra(images).mean(axis=0)


def test_histogram_distances_of_two_gaussians() -> None:
    first, second = count_levels(draw_normal(100, 10)), count_levels(draw_normal(106, 10))
    check_oracle("gray-level KL of Gaussians", compute_gray_kl(first, second), 6**2 / (2 * 10**2), rtol=0.03)
    check_oracle("gray-level W1 of Gaussians", compute_gray_wasserstein(first, second), 6, rtol=0.02)
    levels = np.arange(256)
    expected = scipy.stats.wasserstein_distance(levels, levels, first, second)
    assert compute_gray_wasserstein(first, second) == pytest.approx(expected, rel=1e-9)
    assert compute_gray_kl(first, first) == 0
    assert compute_gray_wasserstein(first, first) == 0


def test_histograms_without_a_common_level_are_far_apart_and_finite() -> None:
    black, white = (np.full((4, 16, 16), level, np.uint8) for level in (0, 255))
    assert 1 < compute_gray_kl(count_levels(black), count_levels(white)) < 20
    assert compute_gray_wasserstein(count_levels(black), count_levels(white)) == 255


def test_rgb_counts_as_its_luma() -> None:
    gray = draw_normal(120, 20)[:2]
    np.testing.assert_array_equal(count_levels(np.repeat(gray[..., None], 3, 3)), count_levels(gray))


def test_spectrum_of_noise_is_flat_at_its_variance() -> None:
    spectrum = compute_spectrum(draw_normal(128, 12))
    assert spectrum.shape == (64,)
    check_oracle("power spectrum of noise", spectrum[4:], np.full(60, 144.0), rtol=0.15)


def test_spectrum_of_a_wave_peaks_at_its_frequency() -> None:
    wave = 128 + 60 * np.sin(2 * np.pi * 9 * np.arange(64) / 64)
    image = np.tile(wave, (64, 1)).astype(np.uint8)[None]
    assert compute_spectrum(image).argmax() + 1 == 9


def test_spectrum_distance_in_decades() -> None:
    noise = draw_normal(128, 5)
    louder = (128 + 4.0 * (noise.astype(float) - 128)).astype(np.uint8)
    measured = compute_spectrum_distance(compute_spectrum(noise), compute_spectrum(louder))
    assert measured == pytest.approx(np.log10(16), abs=0.02)
    constant = compute_spectrum(np.full((2, 32, 32), 9, np.uint8))
    assert np.isfinite(compute_spectrum_distance(constant, compute_spectrum(noise[:2, :32, :32])))


def test_variation_of_a_ramp_and_of_noise() -> None:
    ramp = np.broadcast_to(np.arange(64, dtype=np.uint8) * 3, (1, 64, 64))
    mean, contrast, gradient = compute_variation(ramp)[0, :, 1]
    assert (mean, gradient) == (94.5, 3)
    check_oracle("contrast of a ramp", contrast, 3 * np.sqrt((64**2 - 1) / 12), rtol=1e-9)
    # Rayleigh distribution of scale 12·√2, but for the correlation of the two parts of the gradient.
    noise = compute_variation(draw_normal(128, 12))[:, :, 1].mean(axis=0)
    check_oracle("contrast and gradient of noise", noise[1:], [12, 12 * np.sqrt(np.pi)], rtol=0.05)


def test_spread_of_brightness_over_images() -> None:
    def draw(spread: float) -> np.ndarray:
        means = np.quantile(RNG.normal(120, spread, 100_000), np.linspace(0.001, 0.999, 300))
        return np.stack([np.full((8, 8), round(mean), np.uint8) for mean in means])

    real, generated = draw(12), draw(6)
    powers = [compute_variation(images).sum(axis=0)[0] for images in (real, generated)]
    check_oracle("spread of brightness", compute_spread_ratios(*powers), 0.5, rtol=0.03)
    assert compute_spread_ratios(*powers) == pytest.approx(generated[:, 0, 0].std() / real[:, 0, 0].std())
    assert np.isnan(compute_spread_ratios(compute_variation(real[:1])[0, 0], powers[1]))


def test_spread_of_resampled_images() -> None:
    """Weights count images as often as they are drawn."""
    images = draw_normal(120, 20)[:, :8, :8]
    chosen = np.array([0, 0, 3, 7, 7, 7])
    weights = np.bincount(chosen, minlength=len(images))
    weighted = np.einsum("i,ijk->jk", weights, compute_variation(images))
    expected = compute_variation(images[chosen]).sum(axis=0)
    reference = compute_variation(images).sum(axis=0)
    np.testing.assert_allclose(
        compute_spread_ratios(reference, weighted), compute_spread_ratios(reference, expected), rtol=1e-12
    )
