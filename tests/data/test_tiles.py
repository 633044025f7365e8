from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from steelgen.data.check import check_dataset
from steelgen.data.folder import (
    DatasetInfo,
    list_pairs,
    load_dataset_info,
    load_metadata,
    load_pair,
    save_dataset_info,
    save_mask,
)
from steelgen.data.instances import compute_instance_edges, load_instance_ids, save_instances
from steelgen.data.resplit import resplit_dataset
from steelgen.data.tiles import TileOptions, find_tiles, tile_dataset
from steelgen.errors import InputError
from tests.data.samples import save_indices, save_noise

_INFO = DatasetInfo(name="small", class_names=["matrix", "island"], pixel_size_um=0.02)


def _dataset(root: Path, mask: np.ndarray, stems: tuple[str, ...] = ("a", "b", "c", "d"), split: str = "train") -> Path:
    for seed, stem in enumerate(stems):
        save_noise(root / split / "images" / f"{stem}.png", *mask.shape, seed=seed)
        (root / split / "masks").mkdir(exist_ok=True)
        save_mask(root / split / "masks" / f"{stem}.png", mask, _INFO.palette)
        save_instances(root / split / "instances" / f"{stem}.png", mask.astype(np.uint16) * 300)
    save_dataset_info(root, _INFO)
    return root


def _mask() -> np.ndarray:
    mask = np.zeros((40, 50), np.uint8)
    mask[2:6, 2:6] = 1
    mask[18:22, 30:34] = 1
    return mask


def test_grid_covers_the_micrograph(tmp_path: Path) -> None:
    root = _dataset(tmp_path / "set", _mask())
    assert tile_dataset(root, tmp_path / "out", TileOptions(size=20)) == {"train": 4 * 6}
    image, mask = load_pair(list_pairs(root, "train")[0], _INFO)
    seen = np.zeros(mask.shape, bool)
    for pair in list_pairs(tmp_path / "out", "train"):
        tile, tile_mask = load_pair(pair, _INFO)
        name, left, top, right, bottom = pair.stem.rsplit("_", 4)
        if name == "a":
            window = (slice(int(top), int(bottom)), slice(int(left), int(right)))
            np.testing.assert_array_equal(tile, image[window])
            np.testing.assert_array_equal(tile_mask, mask[window])
            ids = load_instance_ids(pair.mask.parent.parent / "instances" / pair.mask.name)
            np.testing.assert_array_equal(ids, tile_mask * np.uint16(300))
            seen[window] = True
    assert seen.all()
    assert {row["parent"] for row in load_metadata(tmp_path / "out").values()} == {"a", "b", "c", "d"}
    assert check_dataset(tmp_path / "out").problems == []


def test_conditions() -> None:
    mask = _mask()
    assert find_tiles(mask, _INFO, TileOptions(size=20, min_foreground=0.04)) == [(0, 0)]
    # The second island crosses the grid's rows.
    assert find_tiles(mask, _INFO, TileOptions(size=20, whole=True)) == [(0, 0)]
    assert find_tiles(mask, _INFO, TileOptions(size=20, placement="centered")) == [(0, 0), (10, 22)]
    assert find_tiles(np.zeros_like(mask), _INFO, TileOptions(size=20, placement="centered")) == []


def test_pixel_size_is_kept_through_scaling(tmp_path: Path) -> None:
    root = _dataset(tmp_path / "set", _mask())
    tile_dataset(root, tmp_path / "out", TileOptions(size=10, scale=0.5))
    assert load_dataset_info(tmp_path / "out").pixel_size_um == pytest.approx(0.04)
    assert {row["pixel_size_um"] for row in load_metadata(tmp_path / "out").values()} == {0.04}
    masks = [load_pair(pair, _INFO)[1] for pair in list_pairs(tmp_path / "out", "train")]
    # 20x25 px in tiles of 10: the last two columns overlap, and the second island is in both.
    assert sum(int(mask.sum()) for mask in masks) == 4 * (4 + 2 * 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (TileOptions(size=64), "smaller than a tile of 64"),
        (TileOptions(size=20, min_foreground=0.9), "'train' would be empty"),
        (TileOptions(size=20, stride=4, placement="centered"), "does not apply"),
        (TileOptions(size=20, scale=0), "scale above 0"),
    ],
)
def test_bad_tiles(tmp_path: Path, options: TileOptions, message: str) -> None:
    with pytest.raises(InputError, match=message):
        tile_dataset(_dataset(tmp_path / "set", _mask()), tmp_path / "out", options)
    assert not (tmp_path / "out").exists()


def test_split_keeps_tiles_of_one_parent_together(tmp_path: Path) -> None:
    root = _dataset(tmp_path / "set", _mask(), tuple(f"m{number}" for number in range(8)))
    tile_dataset(root, tmp_path / "tiles", TileOptions(size=20))
    fractions = {"train": 0.5, "val": 0.25, "test": 0.25}
    counts, leaks = resplit_dataset(tmp_path / "tiles", tmp_path / "out", fractions, stratify=True, seed=1)
    assert counts == {"train": 24, "val": 12, "test": 12}
    assert leaks == []
    assert check_dataset(tmp_path / "out").problems == []


def test_split_reports_a_rotated_copy(tmp_path: Path) -> None:
    root = _dataset(tmp_path / "set", _mask(), ("a", "b", "c"))
    images = root / "train" / "images"
    Image.open(images / "a.png").rotate(180).save(images / "b.png")
    Image.open(images / "a.png").transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(images / "c.png")
    _, leaks = resplit_dataset(root, tmp_path / "out", {"train": 0.4, "val": 0.3, "test": 0.3})
    assert len(leaks) == 3


def test_split_of_isdm_masks_keeps_their_meaning(tmp_path: Path) -> None:
    for stem in "ab":
        save_noise(tmp_path / "isdm" / "train" / "images" / f"{stem}.png", seed=ord(stem))
        save_indices(tmp_path / "isdm" / "train" / "masks" / f"{stem}.png", _mask() * np.uint8(255))
    resplit_dataset(tmp_path / "isdm", tmp_path / "out", {"train": 0.5, "val": 0.5})
    info = load_dataset_info(tmp_path / "out")
    np.testing.assert_array_equal(load_pair(list_pairs(tmp_path / "out", "val")[0], info)[1], _mask())


def test_instance_edges_separate_touching_islands() -> None:
    ids = np.array([[1, 1, 2, 2], [1, 1, 2, 2], [0, 0, 0, 0], [0, 0, 0, 0]])
    expected = [[0, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]]
    np.testing.assert_array_equal(compute_instance_edges(ids), np.array(expected, bool))
