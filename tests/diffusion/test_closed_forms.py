"""Solvers and guidance with an exact denoiser of normally distributed images, against closed forms."""

import diffusers
import pytest
import torch

from steelgen.config.solver import RespacedSolverSection, SolverSection
from steelgen.data.folder import DatasetInfo
from steelgen.data.placement import CropGeometry
from steelgen.devices import randn_by_seed
from steelgen.diffusion.noise import build_noise_schedule
from steelgen.generators import DrawRequest, StartImages
from steelgen.generators.drawing import draw_for_masks
from steelgen.generators.semantic_diffusion.generator import SemanticDiffusion
from steelgen.generators.semantic_diffusion.sampler import SemanticSampler
from tests.diffusion.calls import draw
from tests.diffusion.gaussian import EDGE, GaussianNetwork

FIRST_ORDER = ["ddim", "euler"]
FLOWS = [*FIRST_ORDER, "dpmsolver++", "unipc", "heun"]
RANDOM = ["ddpm", "sde-dpmsolver++"]
MASKS = torch.arange(3).repeat_interleave(22)[: EDGE * EDGE].view(1, EDGE, EDGE)
NOISE = randn_by_seed((1, EDGE, EDGE), [0])
PLAIN = {"guidance_scale": 1.0}


def one_hot(masks):
    return torch.nn.functional.one_hot(masks, 3).movedim(-1, 1).float()


def build(zero_terminal_snr=True, prediction_type="v_prediction", beta_schedule="squaredcos_cap_v2", **options):
    schedule = build_noise_schedule(1000, beta_schedule, prediction_type, zero_terminal_snr)
    network = GaussianNetwork(schedule, **options)
    return SemanticSampler(network, schedule), network


@pytest.mark.parametrize("solver", FLOWS)
@pytest.mark.parametrize(
    ("zero_terminal_snr", "prediction_type", "beta_schedule"),
    [(True, "v_prediction", "squaredcos_cap_v2"), (False, "epsilon", "linear"), (True, "sample", "linear")],
)
def test_solvers_converge_to_the_same_image(solver, zero_terminal_snr, prediction_type, beta_schedule):
    sampler, network = build(zero_terminal_snr, prediction_type, beta_schedule)
    mean, abar = network.compute_mean(one_hot(MASKS)), float(sampler.schedule.alphas_cumprod[-1])
    expected = network.solve(NOISE, mean, abar)
    few, many = (
        (draw(sampler, MASKS, [0], solver, steps, noise=NOISE, **PLAIN) - expected).abs().max() for steps in (10, 120)
    )
    assert many < (0.05 if solver in FIRST_ORDER else 0.02)
    assert many < few / 5


@pytest.mark.parametrize("steps", [6, 12])
@pytest.mark.parametrize("solver", ["dpmsolver++", "unipc", "heun"])
@pytest.mark.parametrize(
    ("prediction_type", "beta_schedule"), [("v_prediction", "squaredcos_cap_v2"), ("sample", "linear")]
)
def test_the_second_order_pays_from_the_first_steps_on(solver, prediction_type, beta_schedule, steps):
    """Also where drawing starts without signal, from which Heun's own second half of a step would lead far astray."""
    sampler, network = build(True, prediction_type, beta_schedule)
    mean, abar = network.compute_mean(one_hot(MASKS)), float(sampler.schedule.alphas_cumprod[-1])
    expected = network.solve(NOISE, mean, abar)
    options = {"noise": NOISE, "timestep_spacing": "power", **PLAIN}
    second, first = (
        (draw(sampler, MASKS, [0], name, steps, **options) - expected).abs().max() for name in (solver, "ddim")
    )
    assert second < 0.6 * first


@pytest.mark.parametrize("solver", ["dpmsolver++", "unipc", "euler", "heun"])
def test_karras_sigmas_lead_to_the_same_image(solver):
    sampler, network = build(False, "epsilon", "linear")
    expected = network.solve(NOISE, network.compute_mean(one_hot(MASKS)), float(sampler.schedule.alphas_cumprod[-1]))
    drawn = draw(sampler, MASKS, [0], solver, 100, noise=NOISE, karras_sigmas=True, **PLAIN)
    assert (drawn - expected).abs().max() < (0.06 if solver in FIRST_ORDER else 0.01)


@pytest.mark.parametrize("solver", ["dpmsolver++", "unipc", "euler", "heun"])
def test_karras_sigmas_may_lie_closer_than_timesteps(solver):
    """Without terminal signal they start at σ = 4096, and some of them round to the same timestep."""
    sampler, _ = build()
    assert draw(sampler, MASKS, [0], solver, 5, karras_sigmas=True, **PLAIN).isfinite().all()


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_ddim_is_that_of_diffusers(zero_terminal_snr):
    sampler, network = build(zero_terminal_snr)
    theirs = diffusers.DDIMScheduler.from_config(sampler.schedule.config, timestep_spacing="trailing")
    theirs.set_timesteps(20)
    features, image = network.compute_mask_features(one_hot(MASKS), 0), NOISE
    for timestep in theirs.timesteps:
        image = theirs.step(network(image, timestep[None], features), timestep, image).prev_sample
    drawn = draw(sampler, MASKS, [0], "ddim", 20, noise=NOISE, timestep_spacing="trailing", **PLAIN)
    torch.testing.assert_close(drawn, image, atol=1e-3, rtol=0)


def test_predicted_noise_is_held_to_the_gray_levels_as_by_diffusers():
    """Limits that a third of the pixels reach; only predictions of noise have them."""
    limit = 0.5
    sampler, network = build(False, "epsilon")
    theirs = diffusers.DDIMScheduler.from_config(
        sampler.schedule.config, timestep_spacing="trailing", clip_sample=True, clip_sample_range=limit
    )
    theirs.set_timesteps(20)
    features, image = network.compute_mask_features(one_hot(MASKS), 0), NOISE
    for timestep in theirs.timesteps:
        prediction = network(image, timestep[None], features)
        image = theirs.step(prediction, timestep, image, use_clipped_model_output=True).prev_sample
    options = {"noise": NOISE, "timestep_spacing": "trailing", **PLAIN}
    clipped = draw(sampler, MASKS, [0], "ddim", 20, value_range=(-limit, limit), **options)
    torch.testing.assert_close(clipped, image, atol=1e-3, rtol=0)
    assert (clipped.abs() > limit - 1e-3).float().mean() > 0.2
    other, _ = build(prediction_type="v_prediction")
    assert torch.equal(
        draw(other, MASKS, [0], "ddim", 20, value_range=(-limit, limit), **options),
        draw(other, MASKS, [0], "ddim", 20, **options),
    )


@pytest.mark.parametrize("steps", [30, 120, 300])
def test_ddim_steps_need_not_divide_the_schedule(steps):
    """Steps of ⌊T/steps⌋ would leave noise: 0.09 off at 300, where 200 are 0.014 off. Euler's method is as exact."""
    sampler, network = build()
    expected = network.solve(NOISE, network.compute_mean(one_hot(MASKS)), 0.0)
    ddim, euler = (
        (draw(sampler, MASKS, [0], solver, steps, noise=NOISE, **PLAIN) - expected).abs().max().item()
        for solver in ("ddim", "euler")
    )
    assert ddim == pytest.approx(euler, rel=0.02)


def test_second_order_solvers_need_fewer_steps():
    sampler, network = build(False, "epsilon", "linear")
    expected = network.solve(NOISE, network.compute_mean(one_hot(MASKS)), float(sampler.schedule.alphas_cumprod[-1]))
    errors = {
        solver: (draw(sampler, MASKS, [0], solver, 20, noise=NOISE, **PLAIN) - expected).std() for solver in FLOWS
    }
    worst = max(error for solver, error in errors.items() if solver not in FIRST_ORDER)
    assert worst < 0.5 * min(errors[solver] for solver in FIRST_ORDER)


@pytest.mark.parametrize("name", [*RANDOM, "respaced_ddpm"])
def test_random_steps_draw_from_the_distribution(name):
    """Mean and standard deviation of 4,096 pixels: N(μ, 0.5²) to three standard errors."""
    sampler, _ = build(False, "epsilon", "linear")
    masks, seeds = torch.zeros(64, EDGE, EDGE, dtype=torch.long), list(range(64))
    if name in RANDOM:
        drawn = draw(sampler, masks, seeds, name, 100, batch=True, guidance_scale=1.0)
    else:
        solver = RespacedSolverSection(
            name=name, respacing="100", variance="fixed_small", clip_denoised=False, guidance_scale=1
        )
        drawn = sampler.sample_batch(masks, seeds, solver)
    assert drawn.mean().item() == pytest.approx(0.3, abs=3 * 0.5 / 64)
    assert drawn.std().item() == pytest.approx(0.5, abs=0.03)


@pytest.mark.parametrize("name", RANDOM)
def test_the_noise_of_a_step_is_not_that_of_the_start(name):
    """From pure noise the first step keeps next to nothing of it: what it leads to is the mean and noise of its own."""
    sampler, network = build(edge=32)
    seen = []
    network.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].flatten()))
    draw(sampler, torch.zeros(1, 32, 32, dtype=torch.long), [7], name, 8, timestep_spacing="trailing", **PLAIN)
    first, second, third = seen[:3]
    assert second.std() > 0.9
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 0.15  # 1,024 pixels: 0.03 by chance
    assert torch.corrcoef(torch.stack([second, third]))[0, 1] > 0.3  # further down a part of it stays


def test_without_a_name_networks_that_predict_noise_get_fresh_noise_at_each_step():
    for zero_terminal_snr, name in [(True, "dpmsolver++"), (False, "sde-dpmsolver++")]:
        generator = build_generator(zero_terminal_snr)
        by_default, by_name = (
            draw_for_masks(generator, MASKS, [0], SolverSection(**kind)) for kind in ({}, {"name": name})
        )
        assert torch.equal(by_default, by_name)
    assert SolverSection().choose_name("epsilon", learned_variance=True) == "ddpm"
    assert SolverSection(name="heun").choose_name("epsilon", learned_variance=True) == "heun"


def test_guidance_moves_the_mean_as_computed():
    """Guided by s, a one-step solver from noise alone gives null + s·(conditional − null) = s·μ."""
    sampler, network = build()
    mean = network.compute_mean(one_hot(MASKS)).float()
    drawn = draw(sampler, MASKS, [0], "ddim", 1, guidance_scale=3.0, noise=NOISE)
    torch.testing.assert_close(drawn, 3 * mean, atol=2e-3, rtol=0)  # ᾱ is 2⁻²⁴, not 0


def test_steps_outside_the_guidance_interval_cost_one_pass():
    sampler, network = build()
    for interval, expected in [(None, 20), ((0.0, 1e-9), 10), ((0.3, 3.0), None)]:
        network.passes = 0
        options = {"guidance_scale": 2.0, "guidance_interval": interval, "timestep_spacing": "trailing"}
        draw(sampler, MASKS, [0], "ddim", 10, **options)
        if expected is None:
            alphas = sampler.schedule.alphas_cumprod[torch.arange(99, 1000, 100)]
            sigmas = ((1 - alphas) / alphas).sqrt()
            expected = 10 + int(((sigmas > 0.3) & (sigmas <= 3.0)).sum())
            assert 10 < expected < 20
        assert network.passes == expected


@pytest.mark.parametrize("solver", [*FLOWS, *RANDOM])
@pytest.mark.parametrize("spacing", ["logistic", "power", "trailing", "linspace"])
def test_without_terminal_signal_drawing_starts_at_the_last_step(solver, spacing):
    sampler, network = build()
    seen = []
    network.register_forward_pre_hook(lambda module, inputs: seen.append(float(inputs[1][0])))
    draw(sampler, MASKS, [0], solver, 7, timestep_spacing=spacing, **PLAIN)
    assert seen[0] == 999
    assert len(seen) == (12 if solver == "heun" else 7)  # two a step, but the first and the last


def build_generator(zero_terminal_snr, intensity=(0.0, 1.0), **options):
    prediction_type = "v_prediction" if zero_terminal_snr else "epsilon"
    sampler, network = build(zero_terminal_snr, prediction_type, "linear", **options)
    info = DatasetInfo(name="x", class_names=["a", "b", "c"])
    return SemanticDiffusion(network, sampler.schedule, info, CropGeometry(network.config.image_size, 8), intensity)


STARTERS = [
    *(
        SolverSection(name=name, num_inference_steps=200, guidance_scale=1, timestep_spacing="trailing")
        for name in [*FLOWS, *RANDOM]
    ),
    RespacedSolverSection(name="respaced_ddpm", respacing="200", clip_denoised=False, guidance_scale=1),
    RespacedSolverSection(name="respaced_ddim", respacing="200", clip_denoised=False, guidance_scale=1),
]
RAMP = torch.linspace(-0.8, 0.8, EDGE * EDGE).view(1, 1, EDGE, EDGE)


def start_from(generator, solver, strength, noise=None):
    return generator.draw(DrawRequest([0], MASKS, solver=solver, start=StartImages(RAMP, strength), noise=noise)).images


@pytest.mark.parametrize("solver", STARTERS, ids=lambda solver: solver.name)
def test_image_to_image_goes_from_the_image_to_plain_drawing(solver):
    generator = build_generator(False)
    kept = start_from(generator, solver, 0.001)
    assert (kept - RAMP).abs().max() < 0.1  # one step is run, from σ = 0.03
    plain = draw_for_masks(generator, MASKS, [0], solver)
    assert torch.equal(start_from(generator, solver, 1.0), plain)
    assert (plain - RAMP).abs().max() > 0.5


@pytest.mark.parametrize(
    "solver", [s for s in STARTERS if "ddpm" not in s.name and s.name not in RANDOM], ids=lambda solver: solver.name
)
def test_image_to_image_follows_the_flow_from_the_noised_image(solver):
    """At strength ½: x = √ᾱ·start + √(1 − ᾱ)·noise at the middle step, then the closed form of the flow."""
    generator = build_generator(False)
    timestep = 497 if isinstance(solver, RespacedSolverSection) else 499
    abar = float(generator.schedule.alphas_cumprod[timestep])
    noisy = abar**0.5 * RAMP + (1 - abar) ** 0.5 * NOISE
    expected = generator.network.solve(noisy, generator.network.compute_mean(one_hot(MASKS)), abar).clamp(-1, 1)
    drawn = start_from(generator, solver, 0.5, NOISE)
    assert (drawn - expected).abs().max() < (0.03 if solver.name.endswith(("ddim", "euler")) else 0.003)
