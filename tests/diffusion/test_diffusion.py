"""Noise schedules, losses, solvers and the pipeline, against diffusers and closed forms."""

import diffusers
import numpy as np
import pytest
import torch
from torch import nn

from steelgen.diffusion.loss import (
    compute_diffusion_loss,
    compute_loss_weights,
    compute_target,
    draw_timesteps,
    one_hot_with_dropout,
)
from steelgen.diffusion.noise import build_noise_schedule, build_solver, randn_by_seed
from steelgen.diffusion.pipeline import SemanticDiffusionPipeline
from tests.models.test_semantic_unet import build_network

SOLVERS = ["dpmsolver++", "unipc", "ddim", "ddpm", "euler"]


@pytest.mark.parametrize("beta_schedule", ["linear", "squaredcos_cap_v2", "sigmoid", "scaled_linear"])
def test_schedule_equals_diffusers(beta_schedule):
    ours = build_noise_schedule(1000, beta_schedule, "epsilon", zero_terminal_snr=False)
    ends = {"scaled_linear": {"beta_start": 0.00085, "beta_end": 0.012}}.get(beta_schedule, {})
    theirs = diffusers.DDPMScheduler(1000, beta_schedule=beta_schedule, **ends)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod)


def test_zero_terminal_snr_leaves_no_signal():
    assert build_noise_schedule(1000, "linear", "v_prediction", True).alphas_cumprod[-1] == 0
    assert build_noise_schedule(1000, "linear", "v_prediction", False).alphas_cumprod[-1] > 0


def test_linear_schedule_ends_alike_for_any_number_of_steps():
    short, long = (build_noise_schedule(n, "linear", "epsilon", False).alphas_cumprod[-1].item() for n in (500, 1000))
    assert short == pytest.approx(long, rel=0.15)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_target_and_noisy_image_determine_the_image(prediction_type):
    """diffusers' own solver must recover x0 in one step from our target."""
    schedule = build_noise_schedule(1000, "squaredcos_cap_v2", prediction_type, False)
    image, noise = torch.rand(2, 1, 4, 4) * 2 - 1, torch.randn(2, 1, 4, 4)
    for timestep in (50, 600):
        timesteps = torch.full((2,), timestep)
        target = compute_target(schedule, image, noise, timesteps)
        noisy = schedule.add_noise(image, noise, timesteps)
        ddim = diffusers.DDIMScheduler.from_config(schedule.config, clip_sample=False)
        ddim.set_timesteps(1000)
        torch.testing.assert_close(ddim.step(target, timestep, noisy).pred_original_sample, image, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_min_snr_weights_are_the_papers(prediction_type):
    schedule = build_noise_schedule(1000, "linear", prediction_type, False)
    timesteps = torch.arange(0, 1000, 50)
    alphas = schedule.alphas_cumprod[timesteps].numpy()
    snr = alphas / (1 - alphas)
    expected = np.minimum(snr, 5) / {"epsilon": snr, "v_prediction": snr + 1, "sample": 1}[prediction_type]
    np.testing.assert_allclose(compute_loss_weights(schedule, timesteps, 5.0), expected, rtol=1e-4)


def test_timesteps_are_uniform_and_a_function_of_the_crop_number():
    numbers = torch.arange(20_000)
    timesteps = draw_timesteps(numbers, seed=3, num_train_timesteps=1000)
    counts = torch.bincount(timesteps, minlength=1000)
    assert counts.min() >= 17
    assert counts.max() <= 23
    assert torch.equal(draw_timesteps(numbers[777:780], 3, 1000), timesteps[777:780])


def test_one_hot_ignores_and_drops():
    mask = torch.tensor([[[0, 1], [255, 2]], [[0, 1], [255, 2]]])
    one_hot = one_hot_with_dropout(mask, 3, torch.tensor([False, True]))
    assert one_hot[0].sum(0).tolist() == [[1, 1], [0, 1]]
    assert one_hot[0, 2, 1, 1] == 1
    assert one_hot[1].abs().sum() == 0


class Recorder(nn.Module):
    """Predicts zero and remembers what it was given."""

    def forward(self, noisy_image, timesteps, one_hot_mask):
        self.mask = one_hot_mask
        return torch.zeros_like(noisy_image)


def test_mask_dropout_rate_and_independence_of_batching():
    schedule = build_noise_schedule(1000, "squaredcos_cap_v2", "v_prediction", True)
    n = 2000
    batch = {
        "image": torch.zeros(n, 1, 2, 2),
        "mask": torch.ones(n, 2, 2, dtype=torch.long),
        "number": torch.arange(n),
    }
    network = Recorder()
    losses = compute_diffusion_loss(network, schedule, batch, 2, seed=0, mask_dropout=0.2, snr_gamma=None)
    dropped = (network.mask.sum(dim=(1, 2, 3)) == 0).float().mean()
    assert 0.17 < dropped < 0.23
    part = {key: value[500:508] for key, value in batch.items()}
    again = compute_diffusion_loss(Recorder(), schedule, part, 2, seed=0, mask_dropout=0.2, snr_gamma=None)
    torch.testing.assert_close(again, losses[500:508])


def test_noise_belongs_to_its_seed():
    both = randn_by_seed((1, 4, 4), [5, 9])
    assert torch.equal(both[1:], randn_by_seed((1, 4, 4), [9]))
    assert not torch.equal(both[0], both[1])


class PointOracle(nn.Module):
    """The exact denoiser of a data set with a single image: every solver must arrive at it."""

    def __init__(self, schedule, image):
        super().__init__()
        self.alphas, self.image = schedule.alphas_cumprod, image

    def forward(self, noisy, timestep):
        alpha = self.alphas[timestep.long()].clamp(min=2**-24)
        noise = (noisy - alpha.sqrt() * self.image) / (1 - alpha).sqrt()
        return alpha.sqrt() * noise - (1 - alpha).sqrt() * self.image


@pytest.mark.parametrize("solver", ["dpmsolver++", "unipc", "ddim", "ddpm"])
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_solvers_find_a_single_image(solver, zero_terminal_snr):
    schedule = build_noise_schedule(1000, "squaredcos_cap_v2", "v_prediction", zero_terminal_snr)
    image = torch.linspace(-0.8, 0.8, 16).view(1, 1, 4, 4)
    oracle = PointOracle(schedule, image)
    scheduler = build_solver(solver, schedule)
    scheduler.set_timesteps(20)
    assert scheduler.timesteps[0] == 999
    x = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for timestep in scheduler.timesteps:
        x = scheduler.step(oracle(x, timestep), timestep, x).prev_sample
    torch.testing.assert_close(x, image, atol=2e-2, rtol=0)


def build_pipeline(prediction_type="v_prediction"):
    schedule = build_noise_schedule(100, "squaredcos_cap_v2", prediction_type, prediction_type != "epsilon")
    return SemanticDiffusionPipeline(build_network(), schedule)


@pytest.mark.parametrize("solver", SOLVERS)
def test_same_seed_same_image_whatever_the_batch(solver):
    pipeline = build_pipeline()
    masks = torch.randint(3, (5, 16, 16), generator=torch.Generator().manual_seed(0))
    options = dict(solver=solver, num_inference_steps=4)
    together = pipeline(masks, [10, 11, 12, 13, 14], **options)
    one_by_one = torch.cat([pipeline(masks[i : i + 1], [10 + i], **options) for i in range(5)])
    torch.testing.assert_close(together, one_by_one, atol=1e-5, rtol=0)
    assert not torch.equal(together[0], pipeline(masks[:1], [99], **options)[0])


def test_guidance_is_the_linear_extrapolation():
    pipeline = build_pipeline()
    unet = pipeline.unet
    masks = torch.randint(3, (2, 16, 16), generator=torch.Generator().manual_seed(0))
    x, timestep = torch.randn(2, 1, 16, 16), torch.tensor(50)
    kept, dropped = torch.zeros(2, dtype=torch.bool), torch.ones(2, dtype=torch.bool)
    conditional = unet(x, timestep.expand(2), one_hot_with_dropout(masks, 3, kept))
    null = unet(x, timestep.expand(2), one_hot_with_dropout(masks, 3, dropped))
    for scale in (0.0, 1.0, 2.5):
        features = pipeline._compute_guided_features(masks, scale)
        guided = pipeline._predict(x, timestep, features, scale)
        torch.testing.assert_close(guided, null + scale * (conditional - null), atol=1e-5, rtol=1e-5)


def test_pipeline_folder_loads_through_diffusers(tmp_path):
    pipeline = build_pipeline()
    pipeline.save_pretrained(tmp_path)
    loaded = SemanticDiffusionPipeline.from_pretrained(tmp_path)
    masks = torch.zeros(1, 16, 16, dtype=torch.long)
    assert torch.equal(loaded(masks, [0], num_inference_steps=3), pipeline(masks, [0], num_inference_steps=3))
