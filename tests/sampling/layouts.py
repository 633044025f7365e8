"""Datasets of masks whose island statistics are known."""

import numpy as np
from PIL import Image

from steelgen.data.folder import DatasetInfo, save_dataset_info, save_mask
from steelgen.sampling.footprints import place_anywhere
from steelgen.sampling.procedural import sample_footprint


def write_island_dataset(root, count=3, size=(160, 200)):
    """Blocks (aspect 1.3, around 60 px) and laths (aspect 5, around 90 px, all one way) in a matrix; gray by class."""
    info = DatasetInfo(name=root.name, class_names=["matrix", "block", "lath"])
    rng = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / "train" / folder).mkdir(parents=True)
    for index in range(count):
        mask = np.zeros(size, np.uint8)
        for _ in range(45):
            place_anywhere(mask, sample_footprint(int(rng.integers(80, 100)), 5.0, 1.0, 0.4, rng), 2, 0, rng)
            place_anywhere(
                mask, sample_footprint(int(rng.integers(40, 80)), 1.3, 1.0, rng.uniform(0, 3), rng), 1, 0, rng
            )
        save_mask(root / "train/masks" / f"m{index}.png", mask, info.palette)
        image = (60 + 60 * mask + rng.normal(0, 8, size)).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(root / "train/images" / f"m{index}.png")
    save_dataset_info(root, info)
    return root
