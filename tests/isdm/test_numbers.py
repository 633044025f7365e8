"""The imported network and sampler against ISDM's own outputs, and against an independent derivation."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from steelgen.config.isdm import IsdmNetworkSection
from steelgen.config.solver import RespacedSolverSection, SolverSection
from steelgen.devices import randn_by_seed
from steelgen.diffusion import reverse, solvers
from steelgen.diffusion.guidance import Guide, GuidedNetwork
from steelgen.diffusion.noise import build_noise_schedule
from steelgen.diffusion.randomness import build_noise_sources
from steelgen.generators import DrawRequest
from steelgen.generators.drawing import draw_for_masks
from steelgen.generators.semantic_diffusion.isdm.checkpoint import load_isdm_checkpoint
from steelgen.generators.semantic_diffusion.isdm.network import build_isdm_network, convert_solver
from steelgen.generators.semantic_diffusion.isdm.state_dict import convert_from_isdm, convert_to_isdm
from tests.isdm.functional import Network, outline

DATA = Path(__file__).parent / "data"
CHECKPOINT = DATA / "ema_0.9999_000120.pt"


def reference_settings(**changes):
    values = json.loads((DATA / "isdm_config.json").read_text())
    known = {key: value for key, value in values.items() if key in IsdmNetworkSection.model_fields}
    return IsdmNetworkSection(**{**known, **changes})


@pytest.fixture(scope="module")
def expected():
    return {key: torch.from_numpy(value) for key, value in np.load(DATA / "expected.npz").items()}


@pytest.fixture(scope="module")
def generator():
    return load_isdm_checkpoint(CHECKPOINT, reference_settings())


@pytest.fixture(scope="module")
def one_hot(expected):
    return torch.nn.functional.one_hot(expected["label"][:, 0].long(), 4).permute(0, 3, 1, 2).float()


def relative(value, wanted):
    return ((value - wanted).abs().max() / wanted.abs().max()).item()


@torch.no_grad()
def test_network_output(generator, expected, one_hot):
    for mask, key in ((one_hot, "eps_and_var_cond"), (0 * one_hot, "eps_and_var_empty")):
        assert relative(generator.network(expected["x"], expected["scaled_t"], mask), expected[key]) < 1e-5


@torch.no_grad()
def guided_step(generator, expected, one_hot, learned, **options):
    network = GuidedNetwork(generator.network, one_hot, Guide(1.5))
    prediction, variance_output = network.predict(expected["x"], expected["scaled_t"], True).chunk(2, dim=1)
    process = reverse.build_reverse_process(build_noise_schedule(1000, "linear", "epsilon", False).betas)
    return reverse.compute_reverse_step(
        process,
        expected["t"],
        expected["x"],
        prediction,
        variance_output if learned else None,
        "epsilon",
        clip_range=(-1.0, 1.0),
        **options,
    )


def test_guided_step_with_learned_variance(generator, expected, one_hot):
    step = guided_step(generator, expected, one_hot, learned=True)
    assert relative(step.mean, expected["guided_mean"]) < 1e-5
    assert relative(step.log_variance, expected["guided_log_variance"]) < 1e-5
    # Divided by √ᾱ ≈ 0.04 at t = 800, the network's rounding grows as much.
    assert relative(step.pred_original, expected["guided_pred_xstart"]) < 1e-4


@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small"])
def test_guided_step_with_fixed_variance(generator, expected, one_hot, variance):
    step = guided_step(generator, expected, one_hot, learned=False, variance=variance)
    assert relative(step.mean, expected["guided_mean"]) < 1e-5
    alphas = 1 - np.linspace(1e-4, 0.02, 1000)
    bar = np.cumprod(alphas)
    for image, t in enumerate(expected["t"].tolist()):
        wanted = 1 - alphas[t]
        if variance == "fixed_small":
            wanted *= (1 - bar[t - 1]) / (1 - bar[t])
        assert step.log_variance[image].numpy() == pytest.approx(np.full((3, 32, 32), math.log(wanted)), rel=1e-5)


def test_first_step_of_both_fixed_variances_is_the_second_posterior_one():
    betas = np.linspace(1e-4, 0.02, 1000)
    bar = np.cumprod(1 - betas)
    wanted = math.log(betas[1] * (1 - bar[0]) / (1 - bar[1]))
    process = reverse.build_reverse_process(build_noise_schedule(1000, "linear", "epsilon", False).betas)
    assert process.log_variance_small[0].item() == pytest.approx(wanted, rel=1e-9)
    assert process.log_variance_large[0].item() == pytest.approx(wanted, rel=1e-9)


def test_ddim_over_50_steps(generator, expected):
    solver = convert_solver(reference_settings(diffusion_steps=50, rescale_timesteps=True), True, 1.5)
    masks = expected["label"][:, 0].long()
    image = generator.draw(DrawRequest([0, 1], masks, solver=solver, noise=expected["ddim_noise"])).images
    assert (image - expected["ddim50_sample"].clamp(-1, 1)).abs().max() < 1e-4


def test_ddim_by_a_network_that_scales_its_own_timesteps(expected):
    settings = reference_settings(diffusion_steps=50, rescale_timesteps=True)
    generator = load_isdm_checkpoint(CHECKPOINT, settings)
    assert generator.network.config.timestep_scale == 20
    masks, solver = expected["label"][:, 0].long(), convert_solver(settings, True, 1.5)
    image = generator.draw(DrawRequest([0, 1], masks, solver=solver, noise=expected["ddim_noise"])).images
    assert (image - expected["ddim50_sample"].clamp(-1, 1)).abs().max() < 1e-4


def test_the_default_solver_takes_isdms_steps(generator, expected):
    """Evenly spaced and guided throughout, it is ancestral sampling with the learned variance."""
    steps, masks = 10, expected["label"][:, 0].long()
    default = SolverSection(
        num_inference_steps=steps, timestep_spacing="linspace", guidance_scale=1.5, guidance_interval=None
    )
    isdm = RespacedSolverSection(
        name="respaced_ddpm",
        num_train_timesteps=generator.schedule.config.num_train_timesteps,
        respacing=str(steps),
        rescale_timesteps=generator.network.config.timestep_scale == 1 and reference_settings().rescale_timesteps,
    )
    ours, theirs = (draw_for_masks(generator, masks, [3, 4], solver) for solver in (default, isdm))
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)
    assert (ours[0] - ours[1]).std() > 0.1


@pytest.mark.parametrize(
    ("settings", "size"),
    [
        ({}, 32),
        ({"use_scale_shift_norm": False}, 32),
        ({"learn_sigma": False}, 32),
        ({"resblock_updown": False}, 32),
        ({"resblock_updown": False, "use_scale_shift_norm": False, "attention_resolutions": "64,8"}, 16),
        ({"num_heads": 2, "num_heads_upsample": 8}, 32),
        ({"num_head_channels": 16, "num_res_blocks": 2}, 32),
        ({"use_new_attention_order": True}, 32),
        ({"use_new_attention_order": True, "num_head_channels": 32}, 32),
        ({"no_instance": False}, 32),
        ({"image_size": 128}, 32),
        ({"image_size": 256, "attention_resolutions": "32,16,8"}, 32),
        ({"image_size": 512, "num_channels": 64, "attention_resolutions": "32,16,8"}, 64),
        ({"image_size": 96, "channel_mult": "1,0.5,2", "num_channels": 64, "attention_resolutions": "24"}, 16),
    ],
    ids=str,
)
@torch.no_grad()
def test_settings_against_the_papers(settings, size):
    independent = Network(settings)
    full = independent.settings
    rng = torch.Generator().manual_seed(1)
    label = torch.randint(0, full["num_classes"], (1, size // 4, size // 4), generator=rng)
    label = label.repeat_interleave(4, 1).repeat_interleave(4, 2)
    mask = torch.nn.functional.one_hot(label, full["num_classes"]).permute(0, 3, 1, 2).double()
    seen = mask if full["no_instance"] else torch.cat([mask, outline(label).double()], 1)
    x = torch.randn(1, 3, size, size, generator=rng).double()
    times = torch.tensor([612])
    wanted = independent(x, times, seen)

    network = build_isdm_network(IsdmNetworkSection(**full)).eval()
    network.load_state_dict(
        convert_from_isdm(network, independent.state, full["use_new_attention_order"], Path("random.pt"))
    )
    network.double()  # so that rounding hides nothing
    assert relative(network(x, times, mask), wanted) < 1e-5
    assert relative(network(x, times, 0 * mask), independent(x, times, 0 * seen)) < 1e-5
    back = convert_to_isdm(network, network.float().state_dict(), full["use_new_attention_order"])
    assert back.keys() == independent.state.keys()
    assert all(torch.equal(back[name], independent.state[name]) for name in back)


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("respacing", ["", "10", "4,7", "ddim10"])
@pytest.mark.parametrize("variance", ["fixed_large", "fixed_small", "learned"])
def test_ancestral_sampling_by_mean_and_variance_at_every_step(schedule, respacing, variance):
    total, size = 40, 24
    learned = variance == "learned"
    solver = RespacedSolverSection(
        name="respaced_ddpm",
        num_train_timesteps=total,
        beta_schedule=schedule,
        respacing=respacing,
        rescale_timesteps=True,
        variance="fixed_large" if learned else variance,
        guidance_scale=1,
    )

    def predict(image):
        prediction = 0.9 * image
        return torch.cat([prediction, 0.3 * torch.ones_like(image)], dim=1) if learned else prediction

    steps, taken = solvers.RespacedSolver(solver, "epsilon", value_range=(-1.0, 1.0)), []
    image = randn_by_seed((3, size, size), range(8))
    sources = build_noise_sources((3, size, size), range(8))
    for step in range(len(steps.times)):
        following = steps.advance(image, step, predict, sources)
        taken.append((image, following))
        image = following

    # Bayes' rule on the marginals q(x_t | x_0) of the whole schedule: x_s given x_t and x_0, for kept steps s < t.
    if schedule == "linear":
        bar = np.cumprod(1 - np.linspace(1e-4 * 1000 / total, 0.02 * 1000 / total, total))
    else:
        curve = np.cos((np.arange(total + 1) / total + 0.008) / 1.008 * np.pi / 2) ** 2
        bar = np.cumprod(np.maximum(curve[1:] / curve[:-1], 0.001))
    kept = {"": list(range(40)), "10": [0, 4, 9, 13, 17, 22, 26, 30, 35, 39], "ddim10": list(range(0, 40, 4))}.get(
        respacing, [0, 6, 13, 19, 20, 23, 26, 30, 33, 36, 39]
    )
    assert steps.times.tolist() == pytest.approx([t * 1000 / total for t in reversed(kept)])
    for (x_t, x_s), t, s in zip(taken, kept[::-1], [*kept[-2::-1], None], strict=True):
        x_t, x_s = x_t.double().numpy(), x_s.double().numpy()
        x_0 = ((x_t - math.sqrt(1 - bar[t]) * 0.9 * x_t) / math.sqrt(bar[t])).clip(-1, 1)
        if s is None:
            assert x_s == pytest.approx(x_0, abs=1e-5)
            continue
        between = bar[t] / bar[s]
        posterior = 1 / (1 / (1 - bar[s]) + between / (1 - between))
        mean = posterior * (math.sqrt(bar[s]) / (1 - bar[s]) * x_0 + math.sqrt(between) / (1 - between) * x_t)
        share = {"fixed_small": 0, "fixed_large": 1, "learned": 0.65}[variance]
        deviation = math.exp(0.5 * (share * math.log(1 - between) + (1 - share) * math.log(posterior)))
        standard = (x_s - mean) / deviation
        count = standard.size
        assert abs(standard.mean()) < 5 / math.sqrt(count)
        assert abs(standard.var() - 1) < 5 * math.sqrt(2 / count)
    assert len(taken) == len(kept)


@pytest.mark.parametrize(
    ("total", "respacing", "kept"),
    [
        (20, "", list(range(20))),
        (20, "5", [0, 5, 10, 14, 19]),
        (20, "ddim5", [0, 4, 8, 12, 16]),
        (21, "2,3", [0, 10, 11, 15, 20]),
        (6, "1,1", [0, 3]),
    ],
)
def test_kept_timesteps(total, respacing, kept):
    assert reverse.select_timesteps(total, respacing) == kept


@pytest.mark.parametrize("respacing", ["x", "0", "30", "ddim8", "3,30"])
def test_impossible_respacing(respacing):
    with pytest.raises(ValueError, match="timestep_respacing"):
        reverse.select_timesteps(20, respacing)


def test_impossible_schedule_says_why():
    with pytest.raises(ValueError, match=r"linear noise schedule of 20 steps would end at beta .* = 1,.*at least 21"):
        IsdmNetworkSection(diffusion_steps=20)
    assert IsdmNetworkSection(diffusion_steps=20, noise_schedule="cosine").diffusion_steps == 20
    assert IsdmNetworkSection(diffusion_steps=21).diffusion_steps == 21
