"""Masks that lose classes by the timestep: marginals, monotony, and the same in training and sampling."""

import pytest
import scipy.stats
import torch
from torch import nn

from steelgen.config.solver import RespacedSolverSection
from steelgen.data.folder import DatasetInfo
from steelgen.data.placement import CropGeometry
from steelgen.diffusion.generator import SemanticDiffusion, load_semantic_diffusion
from steelgen.diffusion.loss import LossOptions, compute_diffusion_loss
from steelgen.diffusion.mask_noise import absorb_classes, draw_lifetimes
from steelgen.diffusion.noise import build_noise_schedule
from steelgen.diffusion.pipeline import SemanticDiffusionPipeline
from steelgen.errors import InputError
from steelgen.models.semantic_unet import SemanticUNet
from tests.models.test_semantic_unet import build_network


def test_marginals_and_absorption():
    lifetimes = draw_lifetimes([0, 1], 100, 100)
    assert not torch.equal(lifetimes[0], lifetimes[1])
    mask = torch.zeros(2, 3, 100, 100)
    mask[:, 1] = 1
    before = mask
    for timestep in (0, 24, 49, 74, 99):
        kept = absorb_classes(mask, lifetimes, torch.full((2,), (timestep + 1) / 100))
        count = int(kept.sum())
        assert scipy.stats.binomtest(count, 20_000, 1 - (timestep + 1) / 100).pvalue > 1e-3
        assert (kept <= before).all()
        before = kept
    assert before.sum() == 0


class Listener(nn.Module):
    def forward(self, noisy_image, timesteps, one_hot_mask):
        self.timesteps, self.mask = timesteps, one_hot_mask
        return torch.zeros_like(noisy_image)


def test_training_hides_the_share_of_the_timestep():
    schedule = build_noise_schedule(1000, "squaredcos_cap_v2", "v_prediction", True)
    n, network = 64, Listener()
    batch = {
        "image": torch.zeros(n, 1, 32, 32),
        "mask": torch.ones(n, 32, 32, dtype=torch.long),
        "number": torch.arange(n),
    }
    compute_diffusion_loss(network, schedule, batch, 2, 0, 0.0, LossOptions(mask_noise=True))
    hidden = 1 - network.mask.sum(dim=1).mean(dim=(1, 2))
    expected = (network.timesteps + 1) / 1000
    deviation = (expected * (1 - expected) / 32**2).sqrt()
    assert ((hidden - expected).abs() <= 4.5 * deviation + 1e-6).all()
    compute_diffusion_loss(network, schedule, batch, 2, 0, 0.0, LossOptions())
    assert network.mask.sum(dim=1).eq(1).all()


@pytest.mark.parametrize("size", [16, 24])
def test_sampling_shows_the_mask_bit_by_bit(size, monkeypatch):
    """At the first step nothing of the mask is seen, then ever more, and the image depends on its own seed alone."""
    pipeline = SemanticDiffusionPipeline(
        build_network(), build_noise_schedule(100, "squaredcos_cap_v2", "v_prediction", True)
    )
    masks = torch.randint(3, (2, size, size), generator=torch.Generator().manual_seed(0))
    seen = []
    compute = SemanticUNet.compute_mask_features

    def listen(self, one_hot_mask, max_bytes):
        seen.append(float(one_hot_mask[0].sum(dim=0).mean()))
        return compute(self, one_hot_mask, max_bytes)

    both = pipeline(masks, [5, 6], num_inference_steps=4, timestep_spacing="trailing", mask_noise=True)
    assert torch.equal(
        pipeline(masks[1:], [6], num_inference_steps=4, timestep_spacing="trailing", mask_noise=True), both[1:]
    )
    monkeypatch.setattr(SemanticUNet, "compute_mask_features", listen)
    pipeline(masks[:1], [5], num_inference_steps=4, timestep_spacing="trailing", mask_noise=True)
    windows = len(seen) // 4
    shares = [sum(seen[step * windows : (step + 1) * windows]) / windows for step in range(4)]
    assert shares == pytest.approx([0, 0.25, 0.5, 0.75], abs=0.1)
    assert shares[0] == 0


def test_a_generator_remembers_and_refuses_clean_mask_solvers(tmp_path):
    network = build_network()
    generator = SemanticDiffusion(
        network,
        build_noise_schedule(100, "squaredcos_cap_v2", "v_prediction", True),
        DatasetInfo(name="x", class_names=["a", "b", "c"]),
        CropGeometry(16, 16),
        mask_noise=True,
    )
    generator.save(tmp_path / "saved")
    loaded = load_semantic_diffusion(tmp_path / "saved")
    assert loaded.mask_noise
    solver = RespacedSolverSection(name="respaced_ddpm", num_train_timesteps=100, respacing="5")
    with pytest.raises(InputError, match="clean masks"):
        loaded.draw(torch.zeros(1, 16, 16, dtype=torch.long), [0], solver)
