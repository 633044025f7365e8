"""Noise schedules, losses, solvers and the sampler, against diffusers and closed forms."""

import math

import diffusers
import numpy as np
import pytest
import torch
from torch import nn

from steelgen.config.solver import SolverSection
from steelgen.data.folder import DatasetInfo
from steelgen.data.placement import CropGeometry
from steelgen.devices import randn_by_seed
from steelgen.diffusion.guidance import Guide, GuidedNetwork, rescale_contrast
from steelgen.diffusion.loss import compute_target, one_hot_with_dropout
from steelgen.diffusion.noise import build_noise_schedule
from steelgen.diffusion.randomness import sample_fractions
from steelgen.diffusion.solvers import DiffusersSolver, space_by_logistic, space_by_power
from steelgen.diffusion.timesteps import EvenTimesteps
from steelgen.errors import InputError
from steelgen.generators.drawing import draw_for_masks
from steelgen.generators.semantic_diffusion.generator import SemanticDiffusion
from steelgen.generators.semantic_diffusion.pipeline import SemanticDiffusionPipeline
from steelgen.generators.semantic_diffusion.sampler import SemanticSampler
from tests.diffusion.calls import compute_loss, draw
from tests.models.test_semantic_unet import build_network

SOLVERS = ["dpmsolver++", "sde-dpmsolver++", "unipc", "ddim", "ddpm", "euler", "heun"]


@pytest.mark.parametrize("beta_schedule", ["linear", "squaredcos_cap_v2", "sigmoid", "scaled_linear"])
def test_schedule_equals_diffusers(beta_schedule):
    ours = build_noise_schedule(1000, beta_schedule, "epsilon", zero_terminal_snr=False)
    ends = {"scaled_linear": {"beta_start": 0.00085, "beta_end": 0.012}}.get(beta_schedule, {})
    theirs = diffusers.DDPMScheduler(1000, beta_schedule=beta_schedule, **ends)
    torch.testing.assert_close(ours.alphas_cumprod.float(), theirs.alphas_cumprod)


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


def test_timesteps_are_uniform_and_a_function_of_the_crop_number():
    numbers = torch.arange(20_000)
    timesteps, _ = EvenTimesteps(1000).draw(sample_fractions(numbers, seed=3))
    counts = torch.bincount(timesteps, minlength=1000)
    assert counts.min() >= 17
    assert counts.max() <= 23
    assert torch.equal(EvenTimesteps(1000).draw(sample_fractions(numbers[777:780], 3))[0], timesteps[777:780])


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
    losses, _ = compute_loss(network, schedule, batch, mask_dropout=0.2)
    dropped = (network.mask.sum(dim=(1, 2, 3)) == 0).float().mean()
    assert 0.17 < dropped < 0.23
    part = {key: value[500:508] for key, value in batch.items()}
    again, _ = compute_loss(Recorder(), schedule, part, mask_dropout=0.2)
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


def solve(scheduler, oracle, x):
    x = x * scheduler.init_noise_sigma
    for timestep in scheduler.timesteps:
        network_input = scheduler.scale_model_input(x, timestep)
        x = scheduler.step(oracle(network_input, timestep), timestep, x).prev_sample
    return x


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_solvers_find_a_single_image(solver, zero_terminal_snr):
    schedule = build_noise_schedule(1000, "squaredcos_cap_v2", "v_prediction", zero_terminal_snr)
    image = torch.linspace(-0.8, 0.8, 16).view(1, 1, 4, 4)
    scheduler = DiffusersSolver(
        SolverSection(name=solver, num_inference_steps=20, timestep_spacing="trailing"), schedule
    ).scheduler
    assert scheduler.timesteps[0] == 999
    x = torch.randn(1, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(solve(scheduler, PointOracle(schedule, image), x), image, atol=2e-2, rtol=0)


@pytest.mark.parametrize("solver", ["dpmsolver++", "unipc", "euler", "heun"])
def test_karras_sigmas_are_the_papers(solver):
    schedule = build_noise_schedule(1000, "linear", "v_prediction", False)
    scheduler = DiffusersSolver(
        SolverSection(name=solver, num_inference_steps=8, karras_sigmas=True), schedule
    ).scheduler
    sigmas = scheduler.sigmas[scheduler.sigmas > 0].unique().flip(0)  # Heun lists its inner ones twice
    high, low = sigmas[0] ** (1 / 7), sigmas[-1] ** (1 / 7)
    expected = (high + torch.linspace(0, 1, 8) * (low - high)) ** 7
    torch.testing.assert_close(sigmas.float(), expected.float(), rtol=1e-3, atol=1e-4)


def test_power_spacing_by_hand():
    # 1000·(1/4)² − 1, 1000·(2/4)² − 1 …
    assert space_by_power(1000, 4, 2) == [61, 249, 561, 999]
    assert space_by_power(1000, 4, 1) == [249, 499, 749, 999]
    # Where they would fall on each other, the first ones follow one by one.
    assert space_by_power(12, 10, 3) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 11]


def test_logistic_spacing_by_hand():
    # Mean 0 and scale 1 are even times of rectified flow, whose schedule they divide evenly.
    flow = build_noise_schedule(1000, "flow", "flow", True).log_sigmas
    assert space_by_logistic(flow, 4, 0, 1) == [249, 499, 749, 999]
    # A third of the steps at most at σ = e^m·(1/2)^s, two thirds at e^m·2^s; the cosine schedule has σ = tan(π/2·t).
    cosine = build_noise_schedule(1000, "squaredcos_cap_v2", "v_prediction", True).log_sigmas
    places = space_by_logistic(cosine, 3, -0.5, 1.5)
    expected = [2 / math.pi * math.atan(math.exp(-0.5) * 2.0**power) for power in (-1.5, 1.5)]
    np.testing.assert_allclose(np.array(places[:2]) / 1000, expected, atol=0.01)
    assert places[2] == 999
    # Where they would fall on each other, at either end, they follow one by one.
    assert space_by_logistic(flow[:12], 10, -50, 1) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 11]
    assert space_by_logistic(flow[:12], 10, 50, 1) == [2, 3, 4, 5, 6, 7, 8, 9, 10, 11]
    assert space_by_logistic(flow, 1, 0, 1) == [999]


@pytest.mark.parametrize("solver", [*SOLVERS, "ddpm"])
@pytest.mark.parametrize("kind", ["v_prediction", "epsilon"])
def test_even_power_spacing_is_diffusers_trailing(solver, kind):
    sampler = build_sampler(kind)
    masks = torch.randint(0, 3, (1, 16, 16), generator=torch.Generator().manual_seed(0))
    drawn, oracle = (
        draw(sampler, masks, [4], solver, 10, **spacing)
        for spacing in ({"timestep_spacing": "power", "spacing_power": 1.0}, {"timestep_spacing": "trailing"})
    )
    # Heun's images are scaled by σ, up to 4096, which takes digits from the float32 of both.
    torch.testing.assert_close(drawn, oracle, atol=2e-3, rtol=1e-2 if solver == "heun" else 1e-3)


@pytest.mark.parametrize(("spacing", "first"), [("trailing", 99), ("linspace", 0), ("power", 15), ("logistic", 1)])
def test_with_a_learned_variance_the_last_step_adds_no_noise(spacing, first):
    """Timestep 0 of its scheduler is the one that adds none."""
    schedule = build_noise_schedule(1000, "linear", "epsilon", False)
    section = SolverSection(name="ddpm", num_inference_steps=10, timestep_spacing=spacing)
    solver = DiffusersSolver(section, schedule, learned_variance=True)
    assert (int(solver.times[0]), int(solver.times[-1])) == (999, first)
    assert int(solver.scheduler.timesteps[-1]) == 0


def test_images_do_not_depend_on_the_number_of_threads():
    sampler, masks = build_sampler(), torch.zeros(4, 16, 16, dtype=torch.long)
    alone, before = draw(sampler, masks, [0, 1, 2, 3], num_inference_steps=3), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert torch.equal(draw(sampler, masks, [0, 1, 2, 3], num_inference_steps=3), alone)
    finally:
        torch.set_num_threads(before)


def test_network_is_told_the_times_of_the_training_schedule(monkeypatch):
    sampler, told = build_sampler(), []
    forward = sampler.unet.forward

    def note(image, timesteps, mask_features):
        told.append(int(timesteps[0]))
        return forward(image, timesteps, mask_features=mask_features)

    monkeypatch.setattr(sampler.unet, "forward", note)
    options = {"timestep_spacing": "power", "spacing_power": 2.0}
    draw(sampler, torch.zeros(1, 16, 16, dtype=torch.long), [0], num_inference_steps=5, **options)
    assert told == [99, 63, 35, 15, 3]


def test_more_steps_than_the_schedule_has():
    with pytest.raises(InputError, match="num_inference_steps 101: the noise schedule has only 100 steps"):
        draw(build_sampler(), torch.zeros(1, 16, 16, dtype=torch.long), [0], num_inference_steps=101)


def build_sampler(prediction_type="v_prediction"):
    schedule = build_noise_schedule(100, "squaredcos_cap_v2", prediction_type, prediction_type != "epsilon")
    return SemanticSampler(build_network(), schedule)


@pytest.mark.parametrize("solver", SOLVERS)
def test_same_seed_same_image_whatever_the_batch(solver):
    sampler = build_sampler()
    masks = torch.randint(3, (5, 16, 16), generator=torch.Generator().manual_seed(0))
    options = dict(solver=solver, num_inference_steps=4)
    one_by_one = torch.cat([draw(sampler, masks[i : i + 1], [10 + i], **options) for i in range(5)])
    assert torch.equal(draw(sampler, masks, [10, 11, 12, 13, 14], **options), one_by_one)
    # As one batch, as on a GPU, sums run in another order. The noise levels of Heun and Euler go up to 4096 here, where
    # float32 has three decimals.
    batch = draw(sampler, masks, [10, 11, 12, 13, 14], batch=True, **options)
    torch.testing.assert_close(batch, one_by_one, atol=1e-3 if solver in ("heun", "euler") else 1e-5, rtol=0)
    assert not torch.equal(one_by_one[0], draw(sampler, masks[:1], [99], **options)[0])


def two_predictions(sampler, masks, x, timestep):
    kept, dropped = torch.zeros(len(x), dtype=torch.bool), torch.ones(len(x), dtype=torch.bool)
    timesteps = timestep.expand(len(x))
    return [sampler.unet(x, timesteps, one_hot_with_dropout(masks, 3, which)) for which in (kept, dropped)]


@pytest.mark.parametrize("max_bytes", [float("inf"), 40_000, 0])
def test_guidance_is_the_linear_extrapolation_whatever_is_cached(max_bytes):
    sampler = build_sampler()
    masks = torch.randint(3, (2, 16, 16), generator=torch.Generator().manual_seed(0))
    x, timestep = torch.randn(2, 1, 16, 16), torch.tensor(50)
    conditional, null = two_predictions(sampler, masks, x, timestep)
    one_hot = one_hot_with_dropout(masks, 3, torch.zeros(2, dtype=torch.bool))
    for scale in (0.0, 1.0, 2.5):
        guide = Guide(scale)
        network = GuidedNetwork(sampler.unet, one_hot, guide, max_bytes)
        cached = [modulation is not None for modulation in network._strong.modulations]
        assert all(cached) if max_bytes > 40_000 else not all(cached)
        guided = network.predict(x, timestep[None], guide.acts_at(1.0))
        torch.testing.assert_close(guided, null + scale * (conditional - null), atol=1e-5, rtol=1e-5)
        plain = network.predict(x, timestep[None], False)
        torch.testing.assert_close(plain, conditional, atol=1e-6, rtol=1e-6)


def test_caching_changes_an_image_by_less_than_a_millionth():
    sampler = build_sampler()
    masks = torch.randint(3, (2, 16, 16), generator=torch.Generator().manual_seed(0))
    images = [draw(sampler, masks, [0, 1], num_inference_steps=5, mask_cache_gib=size) for size in (4, 0)]
    assert (images[0] - images[1]).abs().max() <= 1e-6 * images[1].abs().max()


def test_autoguidance_extrapolates_from_the_weaker_network():
    sampler, weak = build_sampler(), build_network(channel_mult=(1, 1))
    masks = torch.randint(3, (2, 16, 16), generator=torch.Generator().manual_seed(0))
    x, timestep = torch.randn(2, 1, 16, 16), torch.tensor(50)
    one_hot = one_hot_with_dropout(masks, 3, torch.zeros(2, dtype=torch.bool))
    guide = Guide(2.0, weak_unet=weak)
    strong_output, weak_output = (unet(x, timestep.expand(2), one_hot) for unet in (sampler.unet, weak))
    guided = GuidedNetwork(sampler.unet, one_hot, guide).predict(x, timestep[None], True)
    torch.testing.assert_close(guided, 2 * strong_output - weak_output, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("steps", "prediction_type", "message"),
    [
        (100, "sample", "weak: autoguidance needs prediction_type v_prediction, this generator has sample"),
        (50, "v_prediction", "weak: autoguidance needs num_train_timesteps 100, this generator has 50"),
    ],
)
def test_autoguidance_needs_a_network_that_predicts_the_same(tmp_path, steps, prediction_type, message):
    info, geometry = DatasetInfo(name="x", class_names=["a", "b", "c"]), CropGeometry(16, 16)
    schedules = (
        build_noise_schedule(100, "linear", "v_prediction", True),
        build_noise_schedule(steps, "linear", prediction_type, True),
    )
    strong, weak = (SemanticDiffusion(build_network(), schedule, info, geometry) for schedule in schedules)
    weak.save(tmp_path / "weak")
    solver = SolverSection(num_inference_steps=1, autoguidance=tmp_path / "weak")
    with pytest.raises(InputError, match=message):
        draw_for_masks(strong, torch.zeros(1, 16, 16, dtype=torch.long), [0], solver)


def test_guidance_interval_and_rescale():
    guide = Guide(2.0, interval=(0.5, 3.0))
    assert [guide.acts_at(sigma) for sigma in (0.4, 0.5, 0.6, 3.0, 3.1)] == [False, False, True, True, False]
    conditional, prediction = torch.randn(2, 1, 8, 8), 3 * torch.randn(2, 1, 8, 8)
    rescaled = rescale_contrast(prediction, conditional, 1.0)
    torch.testing.assert_close(rescaled.std(dim=(1, 2, 3)), conditional.std(dim=(1, 2, 3)))
    by_hand = [
        0.7 * x * np.std(c, ddof=1) / np.std(x, ddof=1) + 0.3 * x
        for x, c in zip(prediction.numpy(), conditional.numpy(), strict=True)
    ]
    np.testing.assert_allclose(rescale_contrast(prediction, conditional, 0.7), np.stack(by_hand), rtol=1e-5)


def test_an_interval_that_covers_all_or_nothing():
    sampler = build_sampler("epsilon")  # whose noisiest step has a finite σ
    masks = torch.randint(3, (1, 16, 16), generator=torch.Generator().manual_seed(0))
    options = dict(num_inference_steps=4)
    always = draw(sampler, masks, [0], guidance_scale=3.0, guidance_interval=(0.0, 1e8), **options)
    torch.testing.assert_close(always, draw(sampler, masks, [0], guidance_scale=3.0, **options))
    sampler = build_sampler()
    never = draw(sampler, masks, [0], guidance_scale=3.0, guidance_interval=(1e8, 1e9), **options)
    torch.testing.assert_close(never, draw(sampler, masks, [0], guidance_scale=1.0, **options))


@pytest.mark.parametrize("solver", ["dpmsolver++", "ddim", "euler"])
def test_image_to_image_keeps_more_at_less_strength(solver):
    sampler = build_sampler()
    masks = torch.zeros(1, 16, 16, dtype=torch.long)
    start = torch.linspace(-1, 1, 256).view(1, 1, 16, 16)
    options = dict(solver=solver, num_inference_steps=10, start_images=start)
    weak, strong = (draw(sampler, masks, [3], strength=strength, **options) for strength in (0.1, 0.9))
    assert (weak - start).abs().mean() < 0.5 * (strong - start).abs().mean()
    full = draw(sampler, masks, [3], strength=1.0, **options)
    torch.testing.assert_close(full, draw(sampler, masks, [3], solver=solver, num_inference_steps=10))


def test_a_saved_generator_is_a_pipeline_folder_of_diffusers(tmp_path):
    """The folder equals the one that diffusers writes, and diffusers samples the same images from it."""
    sampler, masks = build_sampler(), torch.zeros(1, 16, 16, dtype=torch.long)
    info = DatasetInfo(name="three", class_names=["a", "b", "c"])
    SemanticDiffusion(sampler.unet, sampler.schedule, info, CropGeometry(16, 16)).save(tmp_path / "ours")
    loaded = SemanticDiffusionPipeline.from_pretrained(tmp_path / "ours")
    expected = draw(sampler, masks, [0], num_inference_steps=3)
    assert torch.equal(draw(loaded, masks, [0], num_inference_steps=3), expected)

    SemanticDiffusionPipeline(sampler.unet, sampler.schedule.scheduler).save_pretrained(tmp_path / "theirs")
    names = [path.relative_to(tmp_path / "theirs") for path in (tmp_path / "theirs").rglob("*.*")]
    assert len(names) == 4
    for name in names:
        ours, theirs = ((tmp_path / who / name).read_bytes() for who in ("ours", "theirs"))
        assert ours == theirs, name
