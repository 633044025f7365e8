from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from steelgen.data.cache import open_cached_split
from steelgen.data.folder import list_pairs, load_dataset_info, load_pair
from steelgen.data.importing import import_dataset
from steelgen.errors import InputError
from tests.data.samples import BUNDLED


@pytest.mark.parametrize("in_channels", [1, 3])
def test_cache_equals_the_files(tmp_path: Path, in_channels: int) -> None:
    import_dataset("ma-islands", BUNDLED / "ma_islands", tmp_path / "set")
    cached = open_cached_split(tmp_path / "set", "train", in_channels, tmp_path / "cache")
    info = load_dataset_info(tmp_path / "set")
    for number, pair in enumerate(list_pairs(tmp_path / "set", "train")):
        image, mask = load_pair(pair, info)
        np.testing.assert_array_equal(cached.masks[number], mask)
        np.testing.assert_array_equal(
            cached.images[number] if in_channels == 1 else cached.images[number][..., 2], image
        )
        assert cached.stems[number] == pair.stem
    assert cached.instances is not None
    assert cached.instances[0].max() == 12
    assert isinstance(cached.images[0].base, np.memmap)
    assert not cached.images[0].flags.writeable


def test_decoded_once_and_again_after_changes(tmp_path: Path) -> None:
    shutil.copytree(BUNDLED / "uhcs", tmp_path / "set")
    first = open_cached_split(tmp_path / "set", "val", cache_root=tmp_path / "cache")
    built = {path: os.stat(path).st_mtime_ns for path in (tmp_path / "cache").glob("*/*")}
    open_cached_split(tmp_path / "set", "val", cache_root=tmp_path / "cache")
    assert built == {path: os.stat(path).st_mtime_ns for path in (tmp_path / "cache").glob("*/*")}
    shutil.copy(tmp_path / "set/val/images/uhcs0075.png", tmp_path / "set/val/images/uhcs0220.png")
    second = open_cached_split(tmp_path / "set", "val", cache_root=tmp_path / "cache")
    assert (first.images[1] != second.images[1]).any()
    np.testing.assert_array_equal(second.images[0], second.images[1])
    assert first.instances is None


def test_broken_image_leaves_no_cache(tmp_path: Path) -> None:
    shutil.copytree(BUNDLED / "uhcs", tmp_path / "set")
    path = tmp_path / "set" / "val" / "images" / "uhcs0220.png"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(InputError, match=r"uhcs0220\.png: not a readable image"):
        open_cached_split(tmp_path / "set", "val", cache_root=tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_instances_of_masks_in_numbered_folders(tmp_path: Path) -> None:
    """Large sets are in numbered subfolders of images/ and masks/; instances/ has none."""
    import_dataset("ma-islands", BUNDLED / "ma_islands", tmp_path / "set")
    flat = open_cached_split(tmp_path / "set", "train", cache_root=tmp_path / "cache")
    for kind in ("images", "masks"):
        folder = tmp_path / "set" / "train" / kind
        (folder / "000").mkdir()
        for path in folder.glob("*.png"):
            path.rename(folder / "000" / path.name)
    numbered = open_cached_split(tmp_path / "set", "train", cache_root=tmp_path / "cache")
    assert flat.instances is not None
    assert numbered.instances is not None
    for first, second in zip(flat.instances, numbered.instances, strict=True):
        np.testing.assert_array_equal(first, second)
