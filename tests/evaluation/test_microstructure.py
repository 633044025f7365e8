"""Descriptors against geometry, scikit-image and direct counts."""

from __future__ import annotations

import math

import numpy as np
import pytest

from steelgen.evaluation.microstructure import (
    compute_boundary_density,
    compute_grain_size_number,
    compute_intercepts,
    compute_islands,
    compute_lineal_path,
    compute_mean_intercept,
    compute_s2,
    count_runs,
)
from tests.evaluation.conftest import check_oracle


def draw_overlapping_discs(radius: float, density: float, size: int, count: int, seed: int = 0) -> np.ndarray:
    """Fully penetrable discs with Poisson centers, including a margin around the image: (count, size, size) bool."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:size, :size]
    phase = np.zeros((count, size, size), bool)
    edge = size + 2 * radius
    for image in phase:
        for y, x in rng.uniform(-radius, size + radius, (rng.poisson(density * edge**2), 2)):
            image |= (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
    return phase


def list_chords(phase: np.ndarray) -> np.ndarray:
    counts = count_runs(phase, complete=True).sum(axis=0)
    return np.repeat(np.arange(len(counts)), counts)


@pytest.fixture(scope="module")
def discs() -> np.ndarray:
    return draw_overlapping_discs(radius=10, density=0.0025, size=256, count=12)


def test_s2_of_overlapping_discs_is_torquatos(discs: np.ndarray) -> None:
    # Outside the discs: S2(r) = exp(-density · area of the union of two discs at distance r).
    radius, density = 10, 0.0025
    r = np.arange(0, 31)
    half = np.minimum(r / (2 * radius), 1)
    union = 2 * math.pi * radius**2 - 2 * radius**2 * (np.arccos(half) - half * np.sqrt(1 - half**2))
    measured = compute_s2(~discs, 30).mean(axis=0)
    check_oracle("S2 of overlapping discs", measured, np.exp(-density * union), atol=0.015)


def test_lineal_path_and_chords_of_overlapping_discs_are_exponential(discs: np.ndarray) -> None:
    # Outside the discs: L(z) = φ exp(-2 R density z); chords are exponential with mean 1 / (2 R density).
    radius, density = 10, 0.0025
    fraction = math.exp(-density * math.pi * radius**2)
    path = compute_lineal_path(~discs, 40).mean(axis=0)
    z = np.arange(1, 41) - 1
    expected = fraction * np.exp(-2 * radius * density * z)
    check_oracle("lineal path of overlapping discs", path, expected, atol=0.015)
    mean = 1 / (2 * radius * density)
    intercept = compute_mean_intercept(compute_intercepts(~discs))
    check_oracle("mean intercept of overlapping discs", intercept, mean, rtol=0.06)
    chords = list_chords(~discs)
    check_oracle("median chord of overlapping discs", np.median(chords), mean * math.log(2), rtol=0.12)


def test_boundary_density_of_overlapping_discs_is_analytic(discs: np.ndarray) -> None:
    # Perimeter per area = 2πR · density · φ of the uncovered part.
    expected = 2 * math.pi * 10 * 0.0025 * math.exp(-0.0025 * math.pi * 100)
    check_oracle("boundary density of overlapping discs", compute_boundary_density(discs).mean(), expected, rtol=0.04)


def test_s2_of_a_single_disc_follows_its_overlap_with_itself() -> None:
    rows, columns = np.mgrid[:101, :101]
    disc = ((rows - 50) ** 2 + (columns - 50) ** 2 <= 20**2)[None]
    r = np.arange(41)
    half = r / 40
    overlap = 2 * 400 * (np.arccos(half) - half * np.sqrt(1 - half**2))
    # All displacements of one length have nearly the same number of pairs.
    pairs = np.array(
        [
            np.mean([(101 - abs(r * np.cos(a))) * (101 - abs(r * np.sin(a))) for a in np.linspace(0, 6.28, 64)])
            for r in r
        ]
    )
    check_oracle("S2 of one disc", compute_s2(disc, 40)[0], overlap / pairs, atol=0.004)


def test_stripes() -> None:
    stripes = np.zeros((1, 64, 64), bool)
    stripes[..., (np.arange(64) // 4) % 2 == 0] = True  # 4 px in the phase, 4 px out
    along_rows = [max(0, 4 - (z - 1)) / 8 for z in range(1, 9)]
    path = compute_lineal_path(stripes, 8)[0]
    along_columns = 0.5
    check_oracle("lineal path of stripes", path, (np.array(along_rows) + along_columns) / 2, atol=0.02)
    chords = list_chords(stripes)
    assert set(chords) == {4}  # chords along the columns are cut by the border
    assert compute_boundary_density(stripes)[0] == pytest.approx(math.pi / 4 * 15 / 63)


def test_checkerboard() -> None:
    rows, columns = np.mgrid[:64, :64]
    board = (((rows // 8) + (columns // 8)) % 2 == 0)[None]
    s2 = compute_s2(board, 16)[0]
    assert s2[0] == pytest.approx(0.5)
    # Squares cut in half by the border: a cut intercept counts half.
    cut = (((rows + 4) // 8 + (columns + 4) // 8) % 2 == 0)[None]
    assert compute_mean_intercept(compute_intercepts(cut)) == pytest.approx(8)
    assert set(list_chords(board)) == {8}
    path = compute_lineal_path(board, 10)[0]
    expected = np.maximum(0, 8 - np.arange(10)) / 16
    check_oracle("lineal path of a checkerboard", path, expected, atol=0.03)


def test_s2_of_noise_is_the_square_of_its_fraction() -> None:
    noise = np.random.default_rng(0).random((4, 128, 128)) < 0.3
    s2 = compute_s2(noise, 40).mean(axis=0)
    assert s2[0] == pytest.approx(noise.mean())
    check_oracle("S2 of noise", s2[1:], 0.09, atol=0.004)


@pytest.mark.parametrize(("length", "width", "angle"), [(40, 40, 0), (60, 20, 30), (80, 10, 120), (50, 25, 90)])
def test_islands_are_ellipses_of_known_axes(length: float, width: float, angle: float) -> None:
    rows, columns = np.mgrid[:121, :121] - 60.0
    theta = math.radians(angle)
    along = columns * math.cos(theta) - rows * math.sin(theta)  # rows point down, angles up
    across = columns * math.sin(theta) + rows * math.cos(theta)
    ellipse = ((2 * along / length) ** 2 + (2 * across / width) ** 2 <= 1)[None]
    islands = compute_islands(ellipse)
    a, b = length / 2, width / 2
    check_oracle("area of ellipses", islands["area"], [math.pi * a * b], rtol=0.01)
    check_oracle("diameter of ellipses", islands["diameter"], [math.sqrt(length * width)], rtol=0.01)
    check_oracle("aspect ratio of ellipses", islands["aspect_ratio"], [length / width], rtol=0.03)
    perimeter = math.pi * (3 * (a + b) - math.sqrt((3 * a + b) * (a + 3 * b)))
    expected = [4 * math.pi * math.pi * a * b / perimeter**2]
    check_oracle("circularity of ellipses", islands["circularity"], expected, rtol=0.06)
    if length != width:
        check_oracle("orientation of ellipses", islands["orientation"], [angle], atol=1)


def test_islands_at_the_border_or_of_a_few_pixels_are_excluded() -> None:
    phase = np.zeros((2, 32, 32), bool)
    phase[0, :6, 4:10] = True
    phase[0, 20:22, 20:22] = True
    assert len(compute_islands(phase)["area"]) == 0
    phase[1, 10:14, 10:14] = True
    islands = compute_islands(phase)
    assert islands["area"].tolist() == [16]
    assert islands["image"].tolist() == [1]


def test_aspect_ratio_and_orientation_of_rectangles_are_exact() -> None:
    phase = np.zeros((1, 40, 40), bool)
    phase[0, 2:4, 2:32] = phase[0, 8:28, 4:9] = phase[0, 30, 3:14] = True
    islands = compute_islands(phase)
    check_oracle("aspect ratio of rectangles", islands["aspect_ratio"], [15, 4, 11], rtol=1e-9)
    check_oracle("orientation of rectangles", islands["orientation"], [0, 90, 0], atol=1e-9)


def test_an_absent_phase_gives_nan_or_zero() -> None:
    nothing = np.zeros((2, 16, 16), bool)
    assert math.isnan(compute_mean_intercept(compute_intercepts(nothing)))
    assert compute_s2(nothing, 8).tolist() == [[0] * 9] * 2
    assert compute_lineal_path(nothing, 8).tolist() == [[0] * 8] * 2
    assert count_runs(nothing).sum() == 0
    assert compute_boundary_density(nothing).tolist() == [0, 0]


def test_grain_size_number_is_that_of_astm_e112() -> None:
    # Table 4 of ASTM E112: G = 0 at l̄ = 320 µm, G = 8 at 20 µm.
    numbers = [compute_grain_size_number(320, 1), compute_grain_size_number(40, 0.5)]
    check_oracle("grain-size number of ASTM E112's table", numbers, [0, 8], atol=0.01)


def test_islands_and_their_perimeters_are_those_of_scikit_image() -> None:
    from scipy.ndimage import gaussian_filter
    from skimage.measure import label, regionprops

    field = gaussian_filter(np.random.default_rng(0).normal(size=(4, 96, 96)), (0, 2, 2))
    phase = field > 0.06
    islands = compute_islands(phase)
    expected = [
        region
        for image in phase
        for region in regionprops(label(image, connectivity=2))
        if region.area >= 9 and region.bbox[0] > 0 and region.bbox[1] > 0 and max(region.bbox[2:]) < 96
    ]
    assert len(expected) > 40
    np.testing.assert_allclose(islands["area"], [region.area for region in expected])
    # scikit-image's pixels are points, ours unit squares with a second moment of 1/12.
    moments = np.array([region.inertia_tensor_eigvals for region in expected]) + 1 / 12
    ratios = np.sqrt(moments[:, 0] / moments[:, 1])
    check_oracle("aspect ratio by scikit-image", islands["aspect_ratio"], ratios, rtol=1e-6)
    circularity = [min(4 * math.pi * region.area / region.perimeter_crofton**2, 1) for region in expected]
    check_oracle("circularity by scikit-image", islands["circularity"], circularity, rtol=1e-9)
    angles = np.array([np.degrees(region.orientation) + 90 for region in expected])
    turned = np.abs(islands["orientation"] - angles) % 180
    assert np.minimum(turned, 180 - turned)[ratios > 1.01].max() < 1e-6


def test_s2_is_the_count_of_pairs() -> None:
    phase = np.random.default_rng(1).random((1, 9, 9)) < 0.4
    rows, columns = np.mgrid[:9, :9].reshape(2, -1)
    distance = np.rint(np.hypot(rows[:, None] - rows, columns[:, None] - columns))
    both = np.outer(phase.ravel(), phase.ravel())
    expected = [both[distance == r].mean() for r in range(5)]
    check_oracle("S2 counted pair by pair", compute_s2(phase, 4)[0], expected, atol=1e-6)
