"""Interpolation between two seeds."""

import numpy as np
import pytest
import torch
from PIL import Image

from steelgen.config.base import parse_config
from steelgen.config.sample import SampleConfig
from steelgen.errors import InputError
from steelgen.sampling.interpolate import Walk, interpolate, slerp
from tests.sampling.test_sample import draw


def build_config(trained, tmp_path):
    dataset, run = trained
    return parse_config(
        {
            "generator": str(run),
            "output_dir": str(tmp_path / "unused"),
            "mask_source": {"kind": "split", "dataset": str(dataset), "split": "test"},
            "solver": {"num_inference_steps": 3},
        },
        SampleConfig,
    )


def test_slerp_keeps_the_norm_and_meets_its_ends():
    first, last = torch.randn(2, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(slerp(first, last, 0.0), first)
    torch.testing.assert_close(slerp(first, last, 1.0), last)
    halfway = slerp(first, last, 0.5)
    assert halfway.std().item() == pytest.approx(1.0, abs=0.05)
    to_first, to_last = (torch.dot(halfway.flatten(), end.flatten()).item() for end in (first, last))
    assert to_first == pytest.approx(to_last, rel=0.05)  # the angle to either end is half of the whole


def test_ends_of_the_strip_are_the_seeds_own_images(trained, tmp_path):
    interpolate(build_config(trained, tmp_path), Walk((0, 1), 4), 0, tmp_path / "strip.png")
    strip = np.asarray(Image.open(tmp_path / "strip.png"))
    assert strip.shape == (16, 4 * 16 + 3 * 2)
    samples = draw(trained, tmp_path / "out", num_samples=1) / "samples"
    assert np.array_equal(strip[:, :16], np.asarray(Image.open(samples / "000000.png")))
    assert (strip[:, 16:18] == 255).all()
    interpolate(build_config(trained, tmp_path), Walk((0, 1), 4), 0, tmp_path / "turn.gif")
    assert Image.open(tmp_path / "turn.gif").n_frames == 6


def test_bad_requests(trained, tmp_path):
    config = build_config(trained, tmp_path)
    with pytest.raises(InputError, match=r"strip\.txt: must end in \.png"):
        interpolate(config, Walk((0, 1), 4), 0, tmp_path / "strip.txt")
    with pytest.raises(InputError, match="frames 1"):
        interpolate(config, Walk((0, 1), 1), 0, tmp_path / "strip.png")
