"""The benchmarks' own base: its autoencoder is steelgen's, its training resumes exactly, and adapters load it."""

import importlib
import json

import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from steelgen.config.base import parse_config
from steelgen.config.train import TrainConfig
from steelgen.generators.families import build_trainable
from steelgen.generators.latent_adapter.base import load_base
from steelgen.training.setup import build_crops, prepare_training
from tests.conftest import write_tiny_dataset
from tests.generators.latent import SECTION
from tests.test_benchmarks import BENCHMARKS

STEPS = 4


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """The module, with two tiny datasets in `folder`, a tiny network and frequent checkpoints."""
    folder = tmp_path_factory.mktemp("small")
    for name in ("uhcs", "other"):
        write_tiny_dataset(folder / name, (72, 72))
    (folder / "mixture.json").write_text(json.dumps({"data": {"datasets": [{"dataset": "elsewhere/other"}]}}))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        module = importlib.import_module("small_base")
        build_values = module.build_values

        def build_tiny_values(*arguments, **training):
            return build_values(*arguments, **{"train_batch_size": 2, "checkpoint_every": 2, **training})

        patch.setattr(module, "build_values", build_tiny_values)
        patch.setattr(module, "UHCS", folder / "uhcs")
        patch.setattr(module, "MIXTURE", folder / "mixture.json")
        patch.setattr(module, "WIDTHS", (16, 16, 32))
        patch.setattr(module, "CODEC", {**SECTION, "adversarial_weight": 0.0})
        patch.setattr(module, "count_steps", lambda run_dir, minutes, build: STEPS)
        yield module, folder


@pytest.fixture(scope="module")
def codec(small):
    module, folder = small
    return module.train_codec(folder, folder / "codec", 1)


def test_the_converted_autoencoder_is_the_trained_one(small, codec):
    module, _ = small
    torch.manual_seed(1)
    images = torch.rand(2, 1, 32, 32) * 2 - 1
    statistics = codec.image_codec.statistics
    statistics.mean.copy_(torch.randn(codec.section.latent_channels))
    statistics.square.copy_(statistics.mean.square() + 1.7)
    shift, scale = codec.intensity
    assert abs(shift) > 0.1
    vae = module.convert_codec(codec)
    factor = vae.config.scaling_factor
    with torch.no_grad():
        latents = vae.encode(images).latent_dist.mode() * factor
        expected = codec.encode_images(images)
        decoded = vae.decode(expected / factor).sample
    torch.testing.assert_close(decoded, codec.image_codec.decode(expected) * scale + shift, atol=1e-5, rtol=1e-4)
    # Its first layer sees another gray level around the image, unless the mean is 0.
    assert not torch.allclose(latents, expected, atol=1e-4)
    codec.intensity = (0.0, scale)
    with torch.no_grad():
        latents = module.convert_codec(codec).encode(images).latent_dist.mode() * factor
    torch.testing.assert_close(latents, codec.encode_images(images), atol=1e-5, rtol=1e-4)
    codec.intensity = (shift, scale)


def test_training_the_base_resumes_exactly_and_changes_the_unet_alone(small, codec, monkeypatch):
    module, folder = small
    whole = module.train_base(folder, folder / "whole", codec, 1)
    take = module.TrainingStep.__call__

    def stop_after_two(step):
        if step.state.step == 2:
            raise KeyboardInterrupt
        return take(step)

    with monkeypatch.context() as patch:
        patch.setattr(module.TrainingStep, "__call__", stop_after_two)
        with pytest.raises(KeyboardInterrupt):
            module.train_base(folder, folder / "resumed", codec, 1)
    assert not (folder / "resumed/base").exists()
    resumed = module.train_base(folder, folder / "resumed", codec, 1)

    def load(base, part, name="diffusion_pytorch_model"):
        return load_file(base / part / f"{name}.safetensors")

    untrained = folder / "whole/untrained"
    for base in (whole, resumed):
        assert load(base, "vae").keys() == load(untrained, "vae").keys()
        assert all(torch.equal(tensor, load(untrained, "vae")[name]) for name, tensor in load(base, "vae").items())
    found, wanted, before = (load(base, "unet") for base in (resumed, whole, untrained))
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in found.items())
    assert not any(torch.equal(tensor, before[name]) for name, tensor in found.items() if tensor.ndim == 4)


def test_adapters_of_the_base_train_and_diffusers_loads_it(small, codec):
    module, folder = small
    base = module.train_base(folder, folder / "whole", codec, 1)
    assert StableDiffusionPipeline.from_pretrained(base).unet.config.in_channels == codec.section.latent_channels
    assert load_base(base, torch.float32).schedule.alphas_cumprod[-1] == 0
    config = parse_config(
        {
            "run_dir": "unused",
            "data": {"dataset": str(folder / "uhcs"), "image_size": 64},
            "generator": {
                "kind": "latent_adapter",
                "base": str(base),
                "lora": None,
                "control": {},
                "prompt": module.PROMPT,
            },
            "train": {"max_steps": 1},
        },
        TrainConfig,
    )
    generator, micrographs = prepare_training(config)
    trainable = build_trainable(generator, config)
    crops = build_crops(config, trainable, micrographs)
    batch = torch.utils.data.default_collate([crops[number] for number in range(2)])
    losses = trainable.compute_loss(trainable.phases[0], trainable.networks, batch).losses
    losses.mean().backward()
    assert torch.isfinite(losses).all()
    # A ControlNet begins with zeros behind it: at first only those learn.
    moved = {
        name for name, tensor in generator.network.named_parameters() if tensor.grad is not None and tensor.grad.any()
    }
    assert moved
    assert all("controlnet_" in name for name in moved)
