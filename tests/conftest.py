"""Fixtures that several rooms' tests share."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the networks here are tiny: threads would only wait for each other

import tempfile

import numpy as np
import pytest

# What the tests decode and download stays out of the user's cache.
os.environ["STEELGEN_CACHE"] = tempfile.mkdtemp(prefix="steelgen-tests-")

from steelgen.data.folder import DatasetInfo, save_dataset_info, save_mask

SLOW_FIRST = (
    "cluster/test_slurm",
    "standin/test_standin",
    "generators/test_gan",
    "generators/test_style_gan",
    "cli/test_terminals",
    "test_benchmarks",
    "test_workflow",
    "test_documentation",
    "training/test_loop",
    "training/test_crashes",
    "studio/test_page",
    "studio/test_server",
    "planning/test_plan",
    "cli/test_quiet",
    "sampling/test_crashes",
)
"""The files of a minute and more. They start first, so that no process is left alone with one of them at the end."""


def pytest_collection_modifyitems(items):
    def rank(item):
        path = item.path.with_suffix("").as_posix()
        return next((index for index, name in enumerate(SLOW_FIRST) if path.endswith(name)), len(SLOW_FIRST))

    items.sort(key=rank)


@pytest.fixture
def tiny_dataset(tmp_path):
    """A dataset folder of small micrographs whose gray level follows the mask: 4 train, 2 val, 2 test, 3 classes."""
    return write_tiny_dataset(tmp_path / "tiny")


def write_tiny_dataset(root, size=(40, 48), num_classes=3, splits=(("train", 4), ("val", 2), ("test", 2))):
    from PIL import Image

    info = DatasetInfo(name=root.name, class_names=["matrix", "island", "film"][:num_classes])
    rng = np.random.default_rng(0)
    for split, count in splits:
        for index in range(count):
            mask = np.zeros(size, np.uint8)
            for label in range(1, num_classes):
                top, left = rng.integers(0, size[0] - 12), rng.integers(0, size[1] - 12)
                mask[top : top + 12, left : left + 12] = label
            image = (60 + 60 * mask + rng.normal(0, 8, size)).clip(0, 255).astype(np.uint8)
            (root / split / "images").mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(root / split / "images" / f"{split}{index}.png")
            save_mask(root / split / "masks" / f"{split}{index}.png", mask, info.palette)
    save_dataset_info(root, info)
    return root


def tiny_train_config(dataset, run_dir, **train):
    """A training config, as JSON values, that runs in a second."""
    return {
        "run_dir": str(run_dir),
        "seed": 0,
        "data": {"dataset": str(dataset), "image_size": 16, "crop_size": 24},
        "generator": {
            "unet": {
                "base_channels": 8,
                "channel_mult": [1, 2],
                "num_res_blocks": 1,
                "attention_resolutions": [8],
                "num_head_channels": 8,
                "spade_channels": 8,
                "norm_groups": 4,
                "dropout": 0.1,
            },
            "noise": {"num_train_timesteps": 100},
        },
        "train": {"max_steps": 4, "train_batch_size": 2, "warmup_steps": 2, "log_every": 1, **train},
        "preview": {"num_images": 2, "solver": {"num_inference_steps": 2}},
    }
