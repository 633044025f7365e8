"""Previews: mask | generated | real, the same masks and seeds at every step."""

import numpy as np
import pytest
import torch
from PIL import Image

from steelgen.config.base import parse_config
from steelgen.config.train import TrainConfig
from steelgen.data.folder import load_dataset_info
from steelgen.generators.semantic_diffusion.generator import SemanticDiffusion
from steelgen.training.loop import train
from tests.conftest import tiny_train_config
from tests.training.test_loop import Recorder


@pytest.fixture
def run(tiny_dataset, tmp_path, monkeypatch):
    """(run folder, what `draw` was asked for and gave at each preview) of 4 steps with previews at 0, 2 and 4."""
    calls, draw = [], SemanticDiffusion.draw

    def record(self, request):
        drawn = draw(self, request)
        calls.append((request.masks.clone(), list(request.seeds), drawn.images))
        return drawn

    monkeypatch.setattr(SemanticDiffusion, "draw", record)
    values = tiny_train_config(tiny_dataset, tmp_path / "run", max_steps=4, learning_rate=0.05, ema_decay=0.0)
    values["preview"] |= {"num_images": 3, "every": 2}
    values["measurement"] = {"every": None}
    train(parse_config(values, TrainConfig), Recorder())
    return tmp_path / "run", calls


def read_tiles(path, count, size=16, factor=8, gap=4):
    """The mask, the generated and the real image of each triple of a sheet, (size, size, 3) each."""
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("RGB"))
    small = pixels[::factor, ::factor]
    assert np.array_equal(pixels, small.repeat(factor, 0).repeat(factor, 1))
    assert small.shape == (size, count * 3 * size + (count - 1) * gap, 3)
    starts = [triple * (3 * size + gap) for triple in range(count)]
    return [[small[:, start + part * size :][:, :size] for part in range(3)] for start in starts]


def test_step_0_shows_masks_in_palette_colors_beside_generated_and_real(tiny_dataset, run):
    folder, calls = run
    masks, _, drawn = calls[0]
    palette = np.array(load_dataset_info(tiny_dataset).palette, np.uint8)
    for number, (mask, generated, real) in enumerate(read_tiles(folder / "previews/step-000000.png", 3)):
        assert np.array_equal(mask, palette[masks[number].numpy()])
        gray = ((drawn[number, 0] + 1) * 127.5).round().clamp(0, 255).numpy().astype(np.uint8)
        assert np.array_equal(generated, np.repeat(gray[..., None], 3, axis=2))
        # In the tiny set's micrographs class c has gray level 60 + 60 c.
        expected = 60 + 60 * masks[number].numpy()
        assert np.median(np.abs(real[..., 0] - expected)) < 12
        assert len({tuple(color) for color in mask.reshape(-1, 3)}) > 1


def test_masks_and_seeds_are_the_same_at_every_step(run):
    folder, calls = run
    assert sorted(path.name for path in (folder / "previews").iterdir()) == [
        f"step-{step:06d}.png" for step in (0, 2, 4)
    ]
    assert len(calls) == 3
    for masks, seeds, _ in calls:
        assert torch.equal(masks, calls[0][0])
        assert seeds == [0, 1, 2]
    sheets = [read_tiles(folder / f"previews/step-{step:06d}.png", 3) for step in (0, 2, 4)]
    for first, later in zip(sheets[0] * 2, sheets[1] + sheets[2], strict=True):
        assert np.array_equal(first[0], later[0])
        assert np.array_equal(first[2], later[2])
        assert not np.array_equal(first[1], later[1])  # the network has learned since
