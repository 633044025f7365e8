"""Feature distances against closed forms and torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.linalg
import torch

from steelgen.evaluation.fidelity import (
    compute_frechet_distance,
    compute_frechet_error,
    compute_kid,
    compute_kid_error,
    compute_precision_recall,
)
from tests.evaluation.conftest import check_oracle


def draw_gaussian(rng: np.random.Generator, count: int, dimensions: int) -> np.ndarray:
    mixing = rng.normal(size=(dimensions, dimensions)) / np.sqrt(dimensions)
    return (rng.normal(size=(count, dimensions)) @ mixing + rng.normal(size=dimensions)).astype(np.float32)


def closed_form(first: np.ndarray, second: np.ndarray) -> float:
    s1, s2 = np.cov(first.astype(float), rowvar=False), np.cov(second.astype(float), rowvar=False)
    root = scipy.linalg.sqrtm(s1 @ s2).real
    difference = first.mean(0, dtype=float) - second.mean(0, dtype=float)
    return float(difference @ difference + np.trace(s1 + s2 - 2 * root))


@pytest.mark.parametrize(("n", "m"), [(200, 300), (16, 16), (17, 400)])
def test_frechet_distance_is_the_closed_form_on_gaussians(n: int, m: int) -> None:
    rng = np.random.default_rng(n)
    first, second = draw_gaussian(rng, n, 16), draw_gaussian(rng, m, 16)
    distance = compute_frechet_distance(first, second)
    check_oracle("Fréchet distance by scipy's sqrtm", distance, closed_form(first, second), rtol=1e-4)


def test_frechet_distance_with_fewer_images_than_features() -> None:
    # If one covariance is regular, the eigenvalues of the product are real and give the trace of its root.
    rng = np.random.default_rng(1)
    first, second = draw_gaussian(rng, 10, 24), draw_gaussian(rng, 500, 24)
    s1, s2 = np.cov(first.astype(float), rowvar=False), np.cov(second.astype(float), rowvar=False)
    trace = np.sqrt(np.linalg.eigvals(s1 @ s2).real.clip(0)).sum()
    difference = first.mean(0, dtype=float) - second.mean(0, dtype=float)
    expected = difference @ difference + np.trace(s1) + np.trace(s2) - 2 * trace
    assert compute_frechet_distance(first, second) == pytest.approx(expected, rel=1e-4)


def test_frechet_distance_of_a_set_to_itself_and_to_its_shift() -> None:
    features = draw_gaussian(np.random.default_rng(2), 50, 8)
    assert compute_frechet_distance(features, features) == pytest.approx(0, abs=1e-9)
    assert compute_frechet_distance(features, features + 2) == pytest.approx(4 * 8, rel=1e-5)


class PassThrough(torch.nn.Module):
    """Identity, so that torchmetrics uses images as features."""

    num_features = 16

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1)


def test_frechet_distance_and_kid_agree_with_torchmetrics() -> None:
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    rng = np.random.default_rng(3)
    first, second = draw_gaussian(rng, 64, 16), draw_gaussian(rng, 80, 16)
    images = [torch.from_numpy(part).reshape(-1, 16, 1, 1) for part in (first, second)]
    fid = FrechetInceptionDistance(feature=PassThrough(), normalize=True, input_img_size=(16, 1, 1))
    fid.set_dtype(torch.float64)
    fid.update(images[0], real=True)
    fid.update(images[1], real=False)
    check_oracle("Fréchet distance by torchmetrics", compute_frechet_distance(first, second), fid.compute(), rtol=1e-4)

    kid = KernelInceptionDistance(feature=PassThrough(), subsets=1, subset_size=64, normalize=True)
    kid.update(images[0], real=True)
    kid.update(images[1][:64], real=False)
    mean, spread = compute_kid(first, second[:64], subset_size=64, num_subsets=3)
    check_oracle("KID by torchmetrics", mean, kid.compute()[0], rtol=1e-4)
    assert spread == pytest.approx(0, abs=1e-9)


def test_kid_is_unbiased_and_reproducible() -> None:
    rng = np.random.default_rng(4)
    values = [compute_kid(rng.normal(size=(40, 8)), rng.normal(size=(40, 8)), num_subsets=10)[0] for _ in range(60)]
    assert abs(np.mean(values)) < 3 * np.std(values) / np.sqrt(60)
    first, second = rng.normal(size=(40, 8)), rng.normal(size=(50, 8))
    assert compute_kid(first, second, seed=7) == compute_kid(first, second, seed=7)


def test_precision_recall_by_hand() -> None:
    real = np.array([[0.0], [1], [2], [3]])
    generated = np.array([[0.5], [1.5], [2.5], [50]])
    # Radii with k=1 are 1 for the real points; for the generated ones 1, 1, 1 and 47.5.
    precision, recall = compute_precision_recall(real, generated, k=1)
    assert precision == 0.75
    assert recall == 1.0


def test_precision_recall_of_collapse() -> None:
    rng = np.random.default_rng(5)
    real = rng.normal(size=(100, 4))
    collapsed = np.repeat(real[:1], 100, axis=0) + 1e-6 * rng.normal(size=(100, 4))
    precision, recall = compute_precision_recall(real, collapsed)
    assert precision == 1.0
    assert recall <= 0.02


@pytest.mark.parametrize(("count", "dimensions", "shift"), [(60, 8, 0.5), (60, 8, 0.0), (24, 40, 0.3), (40, 40, 0.0)])
def test_errors_are_the_scatter_over_fresh_draws(count: int, dimensions: int, shift: float) -> None:
    rng = np.random.default_rng(6)
    mixing = rng.normal(size=(dimensions, dimensions)) / np.sqrt(dimensions)

    def draw(number: int, shift: float = 0.0) -> np.ndarray:
        return (rng.normal(size=(number, dimensions)) @ mixing + shift).astype(np.float32)

    pairs = [(draw(count, shift), draw(count + 20)) for _ in range(80)]
    for compute, estimate in (
        (compute_frechet_distance, compute_frechet_error),
        (lambda *pair: compute_kid(*pair, subset_size=count, num_subsets=20)[0], compute_kid_error),
    ):
        scatter = np.std([compute(*pair) for pair in pairs])
        estimated = np.mean([estimate(*pair) for pair in pairs])
        # Between sets of one distribution the first variation vanishes, and the error is overestimated.
        assert 0.8 < estimated / scatter < (1.4 if shift else 2)
