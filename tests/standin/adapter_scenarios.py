"""Adapters on the pretended device: LoRA and ControlNet with class images; no wait in a plain step."""

import pytest
import torch

from steelgen.config.base import parse_config
from steelgen.config.solver import SolverSection
from steelgen.config.train import TrainConfig
from steelgen.generators import DrawRequest, StartImages
from steelgen.generators.families import load_generator
from steelgen.generators.latent_adapter import class_images
from steelgen.sampling.generate import prepare_generator
from steelgen.training.loop import train
from tests.conftest import write_tiny_dataset
from tests.generators.test_latent_adapter import CONTROL, FEW, build_config
from tests.generators.tiny_base import save_tiny_base
from tests.standin.device import steelgen_on_device
from tests.training.test_loop import Recorder


@pytest.mark.filterwarnings("ignore:the base's images have a tint")
def test_steps_of_training_and_sampling_never_wait(tmp_path, monkeypatch):
    monkeypatch.setattr(class_images, "_SOLVER", SolverSection(num_inference_steps=1))
    save_tiny_base(tmp_path / "base")
    write_tiny_dataset(tmp_path / "tiny")
    section = {"control": CONTROL, "prior_loss_weight": 1.0, "num_class_images": 1}
    section["lora"] = {"rank": 2, "text_encoder": True}
    quiet = {"log_every": 4, "trackers": [], "checkpoint_every": 100, "mixed_precision": "bf16", "max_steps": 4}
    values = build_config(tmp_path, "run", {**quiet, "gradient_checkpointing": True}, **section)
    config = parse_config({**values, "validation": {"split": None}}, TrainConfig)
    masks = torch.zeros(1, 16, 24, dtype=torch.int64)
    masks[:, 4:9, 3:12] = 1
    start = StartImages(torch.zeros(1, 1, 16, 24), 0.8)
    solvers = (FEW, FEW.model_copy(update={"num_inference_steps": 4}))
    requests = [DrawRequest([0], masks, solver=solver, start=start) for solver in solvers]
    taken, drawn = {}, []
    with steelgen_on_device() as waits:
        train(config, Recorder(lambda step: taken.update({step: waits.take()})), False)
        generator = prepare_generator(tmp_path / "run")
        for request in requests:
            waits.take()
            images = generator.draw(request).images
            drawn.append(waits.take())
    assert taken[3].count() == 0, f"waits in step 3:\n{taken[3].report()}"
    assert drawn[0].count() == drawn[1].count(), drawn[1].report()  # inputs and windows, not steps
    expected = load_generator(tmp_path / "run").draw(requests[1]).images
    torch.testing.assert_close(images.cpu(), expected, atol=1e-4, rtol=0)
