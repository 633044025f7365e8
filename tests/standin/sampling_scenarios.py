"""Sampling on the pretended device: the CPU's images by every solver, with at most one wait a solver step."""

import numpy as np
import pytest
import torch

from steelgen.config.base import parse_config
from steelgen.config.sample import SampleConfig
from steelgen.config.train import TrainConfig
from steelgen.data.images import load_image
from steelgen.sampling.generate import SamplingBatch, generate_images, prepare_generator
from steelgen.sampling.sample import sample
from steelgen.training.setup import prepare_training
from tests.conftest import tiny_train_config, write_tiny_dataset
from tests.standin.device import steelgen_on_device
from tests.standin.training_scenarios import ISDM_LIKE, merge

SOLVERS = [
    ("default", {"name": "dpmsolver++", "guidance_interval": [0.2, 2.0]}),
    ("default", {"name": "unipc"}),
    ("default", {"name": "ddpm"}),
    ("default", {"name": "heun"}),
    ("default", {"name": "euler", "karras_sigmas": True}),
    ("isdm_like", {"name": "ddpm"}),
    ("isdm_like", {"name": "sde-dpmsolver++"}),
    ("isdm_like", {"name": "respaced_ddpm"}),
    ("isdm_like", {"name": "respaced_ddim"}),
]
FEW, MANY = 3, 6


@pytest.fixture(scope="module")
def generators(tmp_path_factory):
    """A folder with the dataset tiny/ and two generators, default/ and isdm_like/, of random weights."""
    root = tmp_path_factory.mktemp("generators")
    dataset = write_tiny_dataset(root / "tiny")
    for name, recipe in (
        ("default", {}),
        ("isdm_like", merge(ISDM_LIKE, {"generator": {"unet": {"instance_edges": False}}})),
    ):
        config = parse_config(merge(tiny_train_config(dataset, root / name), recipe), TrainConfig)
        generator, _ = prepare_training(config)
        for parameter in generator.network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)  # an untrained network's last convolution is zero
        generator.save(root / name)
    return root


def build_config(generators, name, output_dir, solver, **values):
    source = {"kind": "split", "dataset": str(generators / "tiny"), "split": "test"}
    values = merge({"mask_source": source, "num_samples": 2}, values)
    paths = {"generator": str(generators / name), "output_dir": str(output_dir)}
    return parse_config({**paths, "solver": solver, **values}, SampleConfig)


def draw(generators, name, solver, steps, size):
    """Two images (2, H, W), of masks of the matrix and of islands."""
    respaced = {"num_train_timesteps": 100, "respacing": str(steps)}
    steps = respaced if solver["name"].startswith("respaced") else {"num_inference_steps": steps}
    section = build_config(generators, name, "unused", {**solver, **steps}).solver
    masks = [np.full(size, label, np.uint8) for label in (0, 1)]
    return np.stack(
        generate_images(prepare_generator(generators / name), SamplingBatch(masks, [0, 1], section))
    ).astype(int)


def watch(generators, name, solver, steps, size):
    """Images, and the waits that are a matter of the batch."""
    with steelgen_on_device() as waits:
        images = draw(generators, name, solver, steps, size)
    return images, waits.without("prepare_generator")


def check(generators, name, solver, size):
    images, few = watch(generators, name, solver, FEW, size)
    _, many = watch(generators, name, solver, MANY, size)
    assert images.std() > 5
    assert abs(images - draw(generators, name, solver, FEW, size)).max() <= 1, "the CPU draws other images"
    extra = many.count() - few.count()
    assert extra <= MANY - FEW, (
        f"{extra} waits more for {MANY - FEW} solver steps more; all of {MANY}:\n{many.report()}"
    )
    assert few.count() - FEW <= 12, f"waits of a batch of {FEW} solver steps:\n{few.report()}"


@pytest.mark.parametrize(("name", "solver"), SOLVERS)
def test_a_solver_step_waits_once(name, solver, generators):
    """Also for networks with a learned variance, and where steps draw noise of their own."""
    check(generators, name, solver, (16, 16))


@pytest.mark.parametrize("periodic", [False, True])
def test_a_solver_step_of_windows_waits_once(periodic, generators):
    check(generators, "default", {"name": "dpmsolver++", "periodic": periodic}, (16, 28))


@pytest.mark.parametrize("start", ["noise", "start_images"])
def test_whole_micrographs_are_written(start, generators, tmp_path):
    """In bf16, from noise with a filter and from micrographs."""
    segmenter = {"steps": 2, "batch_size": 2, "base_channels": 8, "num_levels": 1, "train_size": 16}
    limits = {"dataset": str(generators / "tiny"), "min_iou": 1e-9, "min_share": 0.99}
    values = {"filter": {**limits, "segmenter": segmenter}} if start == "noise" else {start: {"strength": 0.6}}
    whole = {"mask_source": {"whole": True}, "mixed_precision": "bf16"}
    with steelgen_on_device():
        sample(build_config(generators, "default", tmp_path / "out", {"num_inference_steps": 2}, **whole, **values))
    images = [load_image(path) for path in (tmp_path / "out" / "samples").glob("*.png")]
    assert [image.shape for image in images] == [(27, 32)] * 2
