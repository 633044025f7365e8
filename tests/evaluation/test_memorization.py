"""Planted copies are found, other images are not flagged."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.ndimage import gaussian_filter

from steelgen.data.crops import Micrographs, cut_crops
from steelgen.data.placement import CropGeometry
from steelgen.evaluation.copy_search import CopySearch
from steelgen.evaluation.memorization import (
    COPY_RATIO,
    bootstrap_ct,
    compute_authenticity,
    compute_ct,
    find_nearest,
)
from steelgen.evaluation.shrunk import shrink_windows
from tests.evaluation.conftest import INFO

GEOMETRY = CropGeometry(image_size=32, crop_size=64)


def draw_texture(count: int, seed: int) -> Micrographs:
    """Random fields with a correlation length of 3 px, as micrographs of 200x180 px."""
    rng = np.random.default_rng(seed)
    fields = [gaussian_filter(rng.normal(size=(200, 180)), 3) for _ in range(count)]
    images = [(128 + 35 * field / field.std()).clip(0, 255).astype(np.uint8) for field in fields]
    return Micrographs(INFO, [f"m{i}" for i in range(count)], images, [(i > 128).astype(np.uint8) for i in images])


@pytest.fixture(scope="module")
def train() -> Micrographs:
    return draw_texture(3, seed=0)


@pytest.fixture(scope="module")
def search(train: Micrographs) -> CopySearch:
    return CopySearch(train, GEOMETRY, search_size=16)


def test_a_planted_tenth_of_flipped_and_noised_copies_is_found(train: Micrographs, search: CopySearch) -> None:
    rng = np.random.default_rng(1)
    images, _ = cut_crops(draw_texture(3, seed=5), GEOMETRY, 200, seed=2)
    planted = np.zeros(200, bool)
    planted[rng.choice(200, 20, replace=False)] = True
    copies, _ = cut_crops(train, GEOMETRY, 20, seed=3, augment=True)
    images[planted] = (copies + rng.normal(0, 4, copies.shape)).clip(0, 255).astype(np.uint8)
    flagged = np.array([match.ratio < COPY_RATIO for match in search.find(images)])
    recall = (flagged & planted).sum() / planted.sum()
    precision = (flagged & planted).sum() / max(flagged.sum(), 1)
    print(f"\noracle a planted tenth of copies: recall {recall:.3f}, precision {precision:.3f}")
    assert recall >= 0.95
    assert precision >= 0.95


def test_the_copied_location_is_found(train: Micrographs, search: CopySearch) -> None:
    copies, _ = cut_crops(train, GEOMETRY, 8, seed=4, augment=True)
    for copy, match in zip(copies, search.find(copies), strict=True):
        assert np.abs(search.cut(match, 32).astype(float) - copy).mean() < 1


def test_a_training_location_does_not_find_itself(search: CopySearch, train: Micrographs) -> None:
    copies, _ = cut_crops(train, GEOMETRY, 4, seed=6)
    matches = search.find(copies)
    places = np.stack([search.cut(match, 32) for match in matches])
    for match, other in zip(matches, search.find(places, own=matches), strict=True):
        assert other.distance > 5 * match.distance
        same = other.micrograph == match.micrograph
        assert not same or abs(other.top - match.top) > 32 or abs(other.left - match.left) > 32


def test_constant_images_are_not_copies(search: CopySearch) -> None:
    match = search.find(np.full((1, 32, 32), 77, np.uint8))[0]
    assert match.ratio > 0.9


@pytest.fixture(scope="module")
def many() -> Micrographs:
    """48 micrographs of two shapes."""
    parts = draw_texture(48, seed=7)
    images = [image if number % 3 else image[:, :170] for number, image in enumerate(parts.images)]
    masks = [mask if number % 3 else mask[:, :170] for number, mask in enumerate(parts.masks)]
    return Micrographs(INFO, parts.stems, images, masks)


def test_candidates_of_many_micrographs_give_the_answers_of_the_exhaustive_search(many: Micrographs) -> None:
    fast, exhaustive = (CopySearch(many, GEOMETRY, 16, candidates=count) for count in (4, None))
    rng = np.random.default_rng(1)
    images, _ = cut_crops(draw_texture(4, seed=5), GEOMETRY, 60, seed=2)
    planted = np.zeros(60, bool)
    planted[rng.choice(60, 30, replace=False)] = True
    # Random places, flips and turns, gray levels shifted by up to 20, contrast lowered by up to a tenth, and noise.
    copies = cut_crops(many, GEOMETRY, 30, seed=3, augment=True)[0].astype(float)
    copies = (copies - 128) * rng.uniform(0.9, 1, (30, 1, 1)) + 128 + rng.uniform(-20, 20, (30, 1, 1))
    images[planted] = (copies + rng.normal(0, 4, copies.shape)).clip(0, 255).astype(np.uint8)
    found, expected = fast.find(images), exhaustive.find(images)
    flagged, truth = (np.array([match.ratio < COPY_RATIO for match in part]) for part in (found, expected))
    recall, precision = (flagged & truth).sum() / truth.sum(), (flagged & truth).sum() / flagged.sum()
    places = [
        [(match.micrograph, match.top, match.left, match.symmetry) for match in part] for part in (found, expected)
    ]
    same = [a == b for a, b in zip(*places, strict=True)]
    nearness = np.array([a.distance / b.distance for a, b in zip(found, expected, strict=True)])
    print(
        f"\noracle exhaustive search: 4 of 48 micrographs, recall {recall:.3f}, precision {precision:.3f}, "
        f"planted copies at the same place {np.mean(np.array(same)[planted]):.3f}, "
        f"other images {nearness[~planted].mean():.3f} times as far"
    )
    assert truth[planted].mean() >= 0.95
    assert min(recall, precision) >= 0.95
    assert np.mean(np.array(same)[planted]) >= 0.95
    assert nearness[~planted].max() < 1.2


def test_fine_textures_without_coarse_structure_are_told_apart() -> None:
    def draw_bands(count: int, seed: int) -> Micrographs:
        rng = np.random.default_rng(seed)
        fields = [rng.normal(size=(200, 180)) for _ in range(count)]
        bands = [gaussian_filter(field, 1.5) - gaussian_filter(field, 3) for field in fields]
        images = [(128 + 35 * band / band.std()).clip(0, 255).astype(np.uint8) for band in bands]
        return Micrographs(INFO, [f"m{i}" for i in range(count)], images, [np.zeros((200, 180), np.uint8)] * count)

    # Wavelengths of about 12 px, where a cell of the coarse level has 8.
    many = draw_bands(48, seed=0)
    fast, rng = CopySearch(many, GEOMETRY, 16, candidates=4), np.random.default_rng(1)
    copies, _ = cut_crops(many, GEOMETRY, 12, seed=3, augment=True)
    noised = (copies + rng.normal(0, 4, copies.shape)).clip(0, 255).astype(np.uint8)
    others, _ = cut_crops(draw_bands(4, seed=5), GEOMETRY, 8, seed=2)
    assert all(match.ratio < COPY_RATIO for match in fast.find(noised))
    assert not any(match.ratio < COPY_RATIO for match in fast.find(others))


def test_resized_copies_are_found_among_many_micrographs(many: Micrographs) -> None:
    geometry = CropGeometry(32, 64, scale_range=(0.9, 1.15))
    fast, exhaustive = (
        CopySearch(many, geometry, 16, scale_range=geometry.scale_range, blur=1.0, candidates=count)
        for count in (4, None)
    )
    copies, _ = cut_crops(many, geometry, 6, seed=3, augment=True)
    others, _ = cut_crops(draw_texture(4, seed=5), geometry, 3, seed=2)
    found, expected = ([part.correlate(image).correlation for image in copies] for part in (fast, exhaustive))
    agree = np.mean(np.isclose(found, expected, atol=0.02))
    print(f"\noracle exhaustive search: {agree:.3f} of resized copies with the same correlation")
    assert min(expected) > 0.95
    assert agree >= 0.95
    assert max(fast.correlate(image, 0.9).correlation for image in others) < 0.9
    # An image smaller than the generator's is compared with every micrograph.
    assert fast.correlate(copies[0][:20, :20]) == exhaustive.correlate(copies[0][:20, :20])


@pytest.mark.parametrize("edge", [64, 37])
def test_windows_are_shrunk_by_area(edge: int) -> None:
    field = torch.rand(90, 80, generator=torch.Generator().manual_seed(0)) * 255
    corners = [(3, 9), (3, 11), (20, 9), (20, 11)]
    expected = [
        F.interpolate(field[None, None, row : row + edge, column : column + edge], (16, 16), mode="area")[0, 0]
        for row, column in corners
    ]
    torch.testing.assert_close(shrink_windows(field, corners, edge, 16), torch.stack(expected))


def test_authenticity_and_ct_by_hand() -> None:
    assert compute_authenticity(np.array([1.0, 3, 5, 0]), np.array([2.0, 2, 2, 2])) == 0.5
    # All generated distances below all held-out ones: U = 0, z = -(mn/2) / √(mn(m+n+1)/12).
    m, n = 6, 4
    expected = -(m * n / 2) / np.sqrt(m * n * (m + n + 1) / 12)
    assert compute_ct(np.arange(m), 100 + np.arange(n)) == pytest.approx(expected)
    from scipy.stats import mannwhitneyu

    rng = np.random.default_rng(0)
    first, second = rng.integers(0, 9, 30), rng.integers(1, 9, 20)
    u = mannwhitneyu(first, second).statistic
    assert compute_ct(first, second) == pytest.approx((u - 300) / np.sqrt(30 * 20 * 51 / 12))
    low, high = bootstrap_ct(first, second)
    assert low < compute_ct(first, second) < high
    # For two sets of one distribution the standard deviation of the z-score is 1.
    assert high - low == pytest.approx(4, abs=0.8)
    scores = [compute_ct(rng.normal(size=50), rng.normal(size=40)) for _ in range(200)]
    assert abs(np.mean(scores)) < 0.25
    assert np.std(scores) == pytest.approx(1, abs=0.15)


def test_nearest_features_use_the_best_variant_and_skip_self() -> None:
    library = np.array([[0.0, 0], [3, 0], [10, 0]])
    distances, indices = find_nearest(np.array([[[50.0, 0], [9, 0]]]), library)
    assert (distances[0], indices[0]) == (1.0, 2)
    distances, indices = find_nearest(library, library, skip_self=True)
    assert distances.tolist() == [3, 3, 7]
    assert indices.tolist() == [1, 0, 1]


def test_memory_grows_by_the_shrunk_micrographs_alone() -> None:
    # In a process of its own, whose memory other tests have not split.
    program = """
import subprocess
import sys

import numpy as np
from pathlib import Path
from steelgen.data.crops import Micrographs
from steelgen.data.placement import CropGeometry
from steelgen.evaluation.copy_search import CopySearch
from tests.evaluation.conftest import INFO

def measure():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 2**20

image = np.random.default_rng(0).integers(0, 255, (768, 1024), dtype=np.uint8)
micrographs = Micrographs(INFO, [str(n) for n in range(400)], [image] * 400, [np.zeros_like(image)] * 400)
before = measure()
search = CopySearch(micrographs, CropGeometry(256, 256))
search.find(image[None, :256, :256])
print(measure() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    # 128 x 96 and 122 x 90 float32 of each are 36 MiB; it was 340 MiB when each passed through an array of its own.
    assert float(done.stdout) < 200
