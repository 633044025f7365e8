"""A small synthetic dataset and folders of generated images."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from steelgen.data.folder import DatasetInfo, save_dataset_info, save_mask

INFO = DatasetInfo(name="discs", class_names=["matrix", "island"])


def check_oracle(quantity: str, measured: object, expected: object, atol: float = 0.0, rtol: float = 0.0) -> None:
    """Compares with an oracle and prints the largest deviation, for the table in docs/evaluation.md (`pytest -s`)."""
    measured, expected = np.asarray(measured, float), np.asarray(expected, float)
    deviation = np.abs(measured - expected)
    relative = np.max(deviation / np.abs(expected), where=expected != 0, initial=0)
    print(f"\noracle {quantity}: largest deviation {deviation.max():.2g} ({100 * relative:.2g} %)")
    np.testing.assert_allclose(measured, expected, atol=atol, rtol=rtol)


def draw_micrograph(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Bright discs on a dark, noisy background, with their mask."""
    rows, columns = np.mgrid[:size, :size]
    mask = np.zeros((size, size), np.uint8)
    for _ in range(size * size // 400):
        y, x, r = rng.uniform(0, size), rng.uniform(0, size), rng.uniform(3, 8)
        mask[(rows - y) ** 2 + (columns - x) ** 2 < r * r] = 1
    image = 80 + 90.0 * mask + rng.normal(0, 10, mask.shape)
    return image.clip(0, 255).astype(np.uint8), mask


def save_pairs(images: Path, masks: Path, count: int, size: int, seed: int) -> None:
    images.mkdir(parents=True)
    masks.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for number in range(count):
        image, mask = draw_micrograph(rng, size)
        Image.fromarray(image).save(images / f"{number:03d}.png")
        save_mask(masks / f"{number:03d}.png", mask, INFO.palette)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("discs")
    save_dataset_info(root, INFO)
    for seed, (split, count) in enumerate({"train": 4, "test": 2}.items()):
        save_pairs(root / split / "images", root / split / "masks", count, 96, seed)
    return root


@pytest.fixture
def generated(tmp_path: Path) -> Path:
    root = tmp_path / "generated"
    save_pairs(root / "samples", root / "labels", 8, 32, 9)
    sampling = {"image_size": 32, "crop_size": 32, "scale_range": [1, 1], "in_channels": 1, "source_split": None}
    (root / "sampling.json").write_text(json.dumps(sampling))
    return root


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("STEELGEN_CACHE", str(folder))
    return folder
