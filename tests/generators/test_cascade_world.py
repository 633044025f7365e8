"""A world of thin lines: the coarse stage cannot hold them, the mask tells them, the cascade draws them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.draw import line
from torch.utils.data import default_collate

from steelgen.config.base import parse_config
from steelgen.config.solver import SolverSection
from steelgen.config.train import TrainConfig
from steelgen.data.cache import Micrographs
from steelgen.data.crops import CropDataset, image_to_tensor
from steelgen.data.folder import DatasetInfo
from steelgen.diffusion.refinement import enlarge, shrink
from steelgen.generators.cascade import build_cascade
from steelgen.generators.drawing import draw_for_masks
from steelgen.generators.families import build_generator, build_trainable
from steelgen.training.micrographs import crop_geometry
from tests.conftest import tiny_train_config

FACTOR, SIZE, DARK, BRIGHT = 4, 64, 70, 180
SOLVER = SolverSection(num_inference_steps=4, guidance_scale=1.0, window_overlap=0.25)


def draw_lines(count, seed):
    """Micrographs of bright lines, 1 to 2 px wide, with noise of 10 gray levels."""
    rng = np.random.default_rng(seed)
    images, masks = [], []
    for _ in range(count):
        mask = np.zeros((SIZE, SIZE), np.uint8)
        for _ in range(SIZE // 5):
            ends = rng.integers(0, SIZE, 4)
            mask[line(*ends)] = 1
            if rng.random() < 0.5:
                mask[line(*np.minimum(ends + np.array([0, 1, 0, 1]), SIZE - 1))] = 1
        images.append((DARK + (BRIGHT - DARK) * mask + rng.normal(0, 10, mask.shape)).clip(0, 255).astype(np.uint8))
        masks.append(mask)
    return Micrographs(
        DatasetInfo(name="lines", class_names=["matrix", "line"]), list("ab" * count)[:count], images, masks
    )


def train_briefly(micrographs, image_size, crop_size, low_resolution, steps=60, rate=5e-3, **unet):
    values = tiny_train_config("lines", "run")
    values["data"] |= {"image_size": image_size, "crop_size": crop_size}
    values["generator"]["unet"] |= {"attention_resolutions": [], "middle_attention": False, "dropout": 0.0, **unet}
    values["generator"]["low_resolution"] = low_resolution
    config = parse_config(values, TrainConfig)
    torch.manual_seed(0)
    generator = build_generator(config.generator, micrographs, crop_geometry(config))
    trainable = build_trainable(generator, config)
    crops = CropDataset(micrographs, generator.geometry, 0, True, randomness=trainable.randomness(0))
    optimizer = torch.optim.AdamW(generator.network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    for step in range(steps):
        batch = default_collate([crops[8 * step + number] for number in range(8)])
        trainable.compute_loss(trainable.phases[0], trainable.networks, batch).losses.mean().backward()
        torch.nn.utils.clip_grad_norm_(generator.network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return generator


def find_lines(images, masks):
    """IoU of the pixels brighter than the middle of both gray levels with the lines of the masks."""
    found, told = images[:, 0] > (DARK + BRIGHT) / 255 - 1, masks == 1
    return float((found & told).sum() / (found | told).sum())


@pytest.fixture(scope="module")
def first():
    return train_briefly(draw_lines(16, 0), 16, SIZE, None)


@pytest.mark.parametrize(("patch_size", "steps"), [(1, 60), (2, 120)])
def test_lines_that_the_coarse_stage_cannot_hold_are_drawn_where_the_mask_tells_them(first, patch_size, steps):
    """A network of patches learns the pixels within them more slowly."""
    training, held_out = draw_lines(16, 0), draw_lines(2, 1)
    refining = train_briefly(training, 16, 16, {"factor": FACTOR}, steps=steps, patch_size=patch_size)
    masks = torch.from_numpy(np.stack(held_out.masks).astype(np.int64))
    real = torch.stack([image_to_tensor(image) for image in held_out.images])
    bicubic = enlarge(shrink(real, FACTOR), FACTOR, (SIZE, SIZE))
    assert find_lines(real, masks) > 0.98
    assert find_lines(bicubic, masks) < 0.4
    refined = draw_for_masks(refining, masks, [0, 1], SOLVER, images=real)
    assert find_lines(refined, masks) >= 0.95
    refining_solver = SOLVER.model_copy(update={"consistency": False})
    cascade = build_cascade([first, refining], [SOLVER, refining_solver], [Path("first"), Path("refining")])
    assert find_lines(draw_for_masks(cascade, masks, [0, 1]), masks) >= 0.95
