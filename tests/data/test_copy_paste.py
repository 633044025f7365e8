"""Copy-paste: islands arrive whole, with their class and gray levels, and nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import label

from steelgen.config.utility import PasteSection
from steelgen.data.balanced_crops import BalancedCrops
from steelgen.data.copy_paste import PastedCrops, choose_islands, paste_islands
from steelgen.data.crops import Micrographs
from steelgen.data.folder import DatasetInfo
from steelgen.data.placement import CropGeometry

INFO = DatasetInfo(name="squares", class_names=["matrix", "light", "dark"])


def build_micrographs() -> Micrographs:
    """Two micrographs of 64² with different matrices; rectangles of 6 x 6 and 4 x 6 px, 60 lighter or darker."""
    rng, images, masks = np.random.default_rng(0), [], []
    for level in (100, 140):
        mask = np.zeros((64, 64), np.uint8)
        for top in range(4, 60, 12):
            for left in range(4, 60, 12):
                label = int(rng.integers(1, 3))
                mask[top : top + (6, 4)[label - 1], left : left + 6] = label
        masks.append(mask)
        images.append((level + np.array([0, 60, -60])[mask]).astype(np.uint8))
    return Micrographs(INFO, ["a", "b"], images, masks)


def test_pasted_islands_keep_their_class_and_contrast() -> None:
    (first, second), (mask, donor) = build_micrographs().images, build_micrographs().masks
    chosen = np.zeros((64, 64), bool)
    chosen[4:10, 16:22] = donor[4:10, 16:22] > 0
    chosen[0, 0] = False
    image, merged = paste_islands(first, mask, second, donor, chosen, matrix=0, blend=0)
    assert (merged[chosen] == donor[chosen]).all()
    assert (merged[~chosen] == mask[~chosen]).all()
    assert (image[~chosen] == first[~chosen]).all()
    # The donor's matrix has gray level 140, the image's 100.
    assert set(image[chosen].tolist()) == {100 + (60, -60)[donor[5, 17] - 1]}
    color = np.stack([first, first, first], axis=-1)
    blended, _ = paste_islands(color, mask, np.stack([second] * 3, axis=-1), donor, chosen, matrix=0, blend=1.0)
    assert blended.shape == (64, 64, 3)
    middle, outside = blended[6, 18, 0], blended[40:, 40:, 0]
    assert abs(int(middle) - 100) > 40
    assert (outside == first[40:, 40:]).all()


def test_each_island_is_chosen_with_its_probability() -> None:
    mask = build_micrographs().masks[0]
    islands, count = label(mask > 0)
    rng = np.random.default_rng(0)
    found = [np.unique(islands[choose_islands(mask, 0, 3, 0.3, rng)]) for _ in range(200)]
    # Squares do not touch, so all classes together have as many islands as scipy's labels.
    assert np.mean([len(numbers) for numbers in found]) == pytest.approx(0.3 * count, rel=0.1)
    ignored = np.where(mask == 2, 255, mask)
    assert (ignored[choose_islands(ignored, 0, 3, 1.0, rng)] == 1).all()


def test_crops_differ_only_where_islands_were_pasted() -> None:
    micrographs, geometry = build_micrographs(), CropGeometry(32, 32)
    paste = PasteSection(share=0.5, islands=0.5, blend=0)
    plain, pasted = BalancedCrops(micrographs, geometry, 3, 0.0), PastedCrops(paste, micrographs, geometry, 3, 0.0)
    changed, gained = [], []
    for number in range(60):
        (image, mask), (new_image, new_mask) = plain.cut(number), pasted.cut(number)
        again = pasted.cut(number)
        assert (new_image == again[0]).all()
        assert (new_mask == again[1]).all()
        different = new_mask != mask
        assert not different[new_mask == 0].any()
        assert (new_mask[new_image != image] > 0).all()
        changed.append(bool(different.any()))
        gained.append(int((new_mask > 0).sum() - (mask > 0).sum()))
        # Each pasted pixel looks like its class on this crop's matrix.
        matrix = int(np.median(image[mask == 0]))
        assert set((new_image[different].astype(int) - matrix).tolist()) <= {60, -60}
    assert 0.3 < np.mean(changed) < 0.6
    assert np.mean(gained) > 0
