"""Joint diffusion on the pretended device: no wait in a plain step, the CPU's pairs, at most one wait a solver step."""

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
from tests.generators.joint import joint_config
from tests.standin.device import steelgen_on_device
from tests.training.test_loop import Recorder

FEW, MANY = 3, 6


def test_a_plain_step_never_waits(tiny_dataset, tmp_path):
    quiet = {"log_every": 6, "trackers": [], "checkpoint_every": 100, "mixed_precision": "bf16", "max_steps": 6}
    values = {**joint_config(tiny_dataset, tmp_path / "run", **quiet), "preview": {"num_images": 0}}
    taken = {}
    with steelgen_on_device() as waits:
        train(parse_config(values, TrainConfig), Recorder(lambda step: taken.update({step: waits.take()})))
    for step in (2, 3, 4, 5):
        assert taken[step].count() == 0, f"waits in step {step}:\n{taken[step].report()}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A generator of random weights."""
    root = tmp_path_factory.mktemp("joint")
    dataset = write_tiny_dataset(root / "tiny")
    generator, _ = prepare_training(parse_config(joint_config(dataset, root / "unused"), TrainConfig))
    for parameter in generator.network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    generator.save(root / "run")
    return root / "run"


def draw(folder, steps, given, size=16):
    fields = {
        "nothing": {},
        "fractions": {"fractions": torch.tensor([[float("nan"), 0.2, 0.3]]).expand(2, -1)},
        "masks": {
            "masks": torch.stack([torch.arange(size * size).view(size, size) % 3, torch.full((size, size), 255)])
        },
        "images": {"images": torch.linspace(-1, 1, 2 * size * size).view(2, 1, size, size)},
    }[given]
    drawn = prepare_generator(folder).draw(
        DrawRequest([3, 4], solver=SolverSection(num_inference_steps=steps), **fields)
    )
    return drawn.images.cpu(), drawn.masks.cpu(), drawn.images.device.type


@pytest.mark.parametrize(("given", "size"), [("nothing", 16), ("fractions", 16), ("masks", 16), ("images", 24)])
def test_pairs_are_the_cpus_and_a_solver_step_waits_at_most_once(folder, given, size):
    images, masks, _ = draw(folder, FEW, given, size)
    counts = []
    for steps in (FEW, MANY):
        with steelgen_on_device() as waits:
            found, labels, device = draw(folder, steps, given, size)
        counts.append(waits.take())
        assert device != "cpu"
        if steps == FEW:
            torch.testing.assert_close(found, images, atol=2e-3, rtol=0)
            assert (labels == masks).float().mean() > 0.98
    runs = 2 if given in ("fractions", "masks") else 1  # masks then images; a batch with masks and one without
    more = counts[1].count() - counts[0].count()
    assert more <= runs * (MANY - FEW), f"{more} more waits in {MANY} steps:\n{counts[1].report()}"
