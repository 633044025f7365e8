"""Autoencoder and latent diffusion on the pretended device: no wait in a plain step, the CPU's pairs and images."""

import pytest
import torch

from steelgen.config.base import parse_config
from steelgen.config.solver import SolverSection
from steelgen.config.train import TrainConfig
from steelgen.generators import DrawRequest
from steelgen.sampling.generate import prepare_generator
from steelgen.training.loop import train
from steelgen.training.setup import prepare_training
from tests.conftest import write_tiny_dataset
from tests.generators.latent import autoencoder_config, latent_config
from tests.standin.device import steelgen_on_device
from tests.training.test_loop import Recorder

QUIET = {"log_every": 6, "trackers": [], "checkpoint_every": 100, "mixed_precision": "bf16", "max_steps": 6}
KINDS = ("autoencoder", "joint_diffusion", "semantic_diffusion")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A dataset, and generators of random weights by kind."""
    root = tmp_path_factory.mktemp("latent")
    found = {"dataset": write_tiny_dataset(root / "tiny")}
    for kind in KINDS:
        values = build_config(kind, found["dataset"], root / "unused", root / "autoencoder")
        generator, _ = prepare_training(parse_config(values, TrainConfig))
        for network in generator.networks.values() if kind != "autoencoder" else ():
            for parameter in network.parameters():
                torch.nn.init.normal_(parameter, std=0.05)
        generator.save(root / kind)
        found[kind] = root / kind
    return found


def build_config(kind, dataset, run_dir, codec, **train):
    if kind == "autoencoder":
        return autoencoder_config(dataset, run_dir, **train)
    return latent_config(kind, dataset, run_dir, codec, **train)


@pytest.mark.parametrize("kind", KINDS[:2])
def test_a_plain_step_never_waits(folders, tmp_path, kind):
    values = build_config(kind, folders["dataset"], tmp_path / "run", folders["autoencoder"], **QUIET)
    values |= {"preview": {"num_images": 0}, "validation": {"split": None}, "measurement": {"every": None}}
    taken = {}
    with steelgen_on_device() as waits:
        train(parse_config(values, TrainConfig), Recorder(lambda step: taken.update({step: waits.take()})))
    for step in (2, 3, 4, 5):
        assert taken[step].count() == 0, f"waits in step {step}:\n{taken[step].report()}"


@pytest.mark.parametrize("kind", KINDS)
def test_images_are_the_cpus(folders, kind):
    masks = torch.arange(2 * 16 * 16).view(2, 16, 16) % 3
    images = torch.linspace(-1, 1, 2 * 256).view(2, 1, 16, 16)
    given = {"images": images} if kind == "autoencoder" else {"masks": masks}

    def draw():
        request = DrawRequest([3, 4], solver=SolverSection(num_inference_steps=3), **given)
        return prepare_generator(folders[kind]).draw(request).images

    expected = draw()
    with steelgen_on_device():
        found = draw()
        device = found.device.type
        found = found.cpu()
    assert device != "cpu"
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=0)
