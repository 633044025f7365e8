"""Sampling in the latent space of the base, with the solvers, seeds and windows of the house."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from steelgen.config.solver import SolverSection
from steelgen.devices import randn_by_seed
from steelgen.diffusion.guidance import Guide
from steelgen.diffusion.known import KnownPixels, find_whole_latents
from steelgen.diffusion.randomness import build_noise_sources
from steelgen.diffusion.solvers import DiffusersSolver
from steelgen.diffusion.windows import WindowLayout
from steelgen.generators.latent_adapter.base import Base
from steelgen.generators.latent_adapter.network import AdaptedNetwork


class LatentInputs(NamedTuple):
    """Inputs of N images; image i depends only on row i."""

    seeds: Sequence[int]
    size: tuple[int, int]
    """(H, W), a multiple of the pixels per latent."""
    prompts: Tensor
    """(N, L) token ids."""
    null_prompt: Tensor
    """(L,) token ids of the empty prompt."""
    window: int
    """Edge of the network's images, px."""
    drivers: Tensor | None
    """(N, D, H, W) in [0, 1]; None leaves the ControlNet out."""
    start: Tensor | None = None
    """(N, 1 or 3, H, W) images to start from."""
    strength: float = 1.0
    """See `StartImages`."""
    control_scale: float = 1.0
    """Factor on the ControlNet's output."""
    given: Tensor | None = None
    """(N, 1 or 3, H, W) images of which `known` is kept."""
    known: Tensor | None = None
    """(N, H, W) bool; None keeps nothing."""


@torch.no_grad()
def sample_latents(network: AdaptedNetwork, base: Base, inputs: LatentInputs, solver: SolverSection) -> Tensor:
    """Generates images in one batch; the host waits for the device at most once per step.

    Guidance extrapolates from the prediction for the empty prompt and zero drivers. Images larger than the network's
    are computed in overlapping windows, which share the prompt.

    Returns:
        (N, channels of the autoencoder, H, W) float32, about in [-1, 1].
    """
    device = next(network.parameters()).device
    height, width = (edge // base.factor for edge in inputs.size)
    shape = (base.latent_channels, height, width)
    predict = _build_predictor(network, base, inputs, solver)
    steps = DiffusersSolver(solver, base.schedule, device=device)
    sources = build_noise_sources(shape, inputs.seeds)
    start = None if inputs.start is None else network.encode(inputs.start.to(device))
    first, latents = steps.start(randn_by_seed(shape, inputs.seeds).to(device), start, inputs.strength)
    guide, times, kind = Guide.of(solver), steps.times.to(device), base.schedule.prediction_type
    kept: KnownPixels | None = None
    if inputs.known is not None and inputs.given is not None:
        known = find_whole_latents(inputs.known, base.factor)[:, None]
        kept = KnownPixels(known.to(device), network.encode(inputs.given.to(device)))
    for step in range(first, len(times)):
        time, sigma = times[step : step + 1], steps.sigmas[step]

        def predict_step(noisy: Tensor, time: Tensor = time, sigma: float = sigma) -> Tensor:
            output = predict(noisy, time, guide.acts_at(sigma))
            return kept.correct(output, noisy, sigma, kind) if kept else output

        latents = steps.advance(latents, step, predict_step, sources)
    return network.decode(latents)


def _build_predictor(
    network: AdaptedNetwork, base: Base, inputs: LatentInputs, solver: SolverSection
) -> Callable[[Tensor, Tensor, bool], Tensor]:
    """Guided predictions (latents, time, whether to guide), window by window."""
    device, guide, window = next(network.parameters()).device, Guide.of(solver), inputs.window
    embedded = network.embed(inputs.prompts.to(device))
    null = network.embed(inputs.null_prompt.to(device)[None])
    drivers = None if inputs.drivers is None else inputs.drivers.to(device)

    def run(noisy: Tensor, time: Tensor, guided: bool, embedded: Tensor, drivers: Tensor | None) -> Tensor:
        conditional = network.predict(noisy, time.expand(len(noisy)), embedded, drivers, inputs.control_scale)
        if not guided:
            return conditional
        nothing = None if drivers is None else torch.zeros_like(drivers)
        weak = network.predict(
            noisy, time.expand(len(noisy)), null.expand(len(noisy), -1, -1), nothing, inputs.control_scale
        )
        return guide.extrapolate(conditional, weak)

    if inputs.size == (window, window) and not solver.periodic:
        return lambda noisy, time, guided: run(noisy, time, guided, embedded, drivers)
    factor, edge = base.factor, window // base.factor
    height, width = (length // factor for length in inputs.size)
    layout = WindowLayout(height, width, edge, solver.window_overlap, solver.periodic, device)

    def predict(noisy: Tensor, time: Tensor, guided: bool) -> Tensor:
        pieces = layout.cut(noisy).unflatten(0, (len(noisy), -1))  # (N, windows, C, edge, edge)
        parts = []
        for index, (top, left) in enumerate(layout.origins):
            cut = None if drivers is None else _cut_window(drivers, top * factor, left * factor, window)
            parts.append(run(pieces[:, index], time, guided, embedded, cut))
        return layout.blend(torch.stack(parts, dim=1).flatten(0, 1))

    return predict


def _cut_window(drivers: Tensor, top: int, left: int, edge: int) -> Tensor:
    """Cuts (N, D, edge, edge) from (N, D, H, W), wrapped around its ends."""
    return torch.roll(drivers, (-top, -left), dims=(2, 3))[:, :, :edge, :edge]
