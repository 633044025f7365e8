"""The reverse process of image and mask: both, or one for a given other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from steelgen.config.solver import SolverSection
from steelgen.devices import is_compiled, map_on_single_threads, map_windows, randn_by_seed
from steelgen.diffusion.guidance import Guide
from steelgen.diffusion.randomness import build_noise_sources
from steelgen.diffusion.solvers import DiffusersSolver
from steelgen.diffusion.windows import WindowLayout
from steelgen.errors import InputError
from steelgen.generators.joint_diffusion.estimate import JointModel, estimate_clean
from steelgen.models.joint_unet import estimate_activation_bytes

Part = Literal["moves", "clean", "noise"]
"""What happens to the image or the mask in sampling: it is denoised, has no noise, or is pure noise throughout."""
Network = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(input (N, C, H, W), the image's time (1,), the mask's time (1,)) → velocities of the image, and velocities or class
logits of the mask (N, ·, H, W)."""


@dataclass(frozen=True)
class Given:
    """What is known of a pair of `size` (H, W) before sampling: its image, its mask, neither, or parts of both."""

    size: tuple[int, int]
    image: Tensor | None = None
    """(channels, H, W) in the network's units."""
    mask: Tensor | None = None
    """(bits, H, W), 0 in ignored pixels."""
    kept: Tensor | None = None
    """(channels + bits, H, W) bool, where image and mask are known; None is everywhere that they are given."""

    @property
    def parts(self) -> tuple[bool, bool, bool]:
        """Whether the image and the mask are known, and whether in parts."""
        return self.image is not None, self.mask is not None, self.kept is not None


@torch.inference_mode()
def sample_jointly(
    generator: JointModel,
    given: Sequence[Given],
    seeds: Sequence[int],
    solver: SolverSection,
    noise: Tensor | None = None,
    fractions: Tensor | None = None,
    masks_alone: bool = False,
) -> Tensor:
    """Samples what is not given of N pairs of one size.

    On the CPU each pair is computed by itself, because CPU kernels order their sums by the batch size and pairs would
    differ in the last bit between batch sizes.

    Args:
        noise: (N, channels, H, W) standard normal noise that replaces the image's noise of the seeds.
        fractions: (N, num_classes) phase fractions of the generated masks; NaN leaves a class free.
        masks_alone: sample the masks for images of pure noise, which stays in the result.

    Returns:
        (N, channels + bits, H, W) float32, image in the network's units and analog bits.
    """

    def sample(rows: Sequence[int]) -> Tensor:
        own_noise, own_fractions = (None if tensor is None else tensor[list(rows)] for tensor in (noise, fractions))
        own = [given[row] for row in rows], [seeds[row] for row in rows]
        return _sample_batch(generator, *own, solver, own_noise, own_fractions, masks_alone)

    network, count = generator.network, len(given)
    if network.device.type == "cpu":
        if given[0].size != (network.config.sample_size,) * 2 or solver.periodic or is_compiled(network):
            return torch.cat([sample([row]) for row in range(count)])
        return torch.cat(map_on_single_threads(lambda row: sample([row]), count))
    # Rows with the same parts given are a batch.
    groups: dict[tuple[bool, bool, bool], list[int]] = {}
    for row, each in enumerate(given):
        groups.setdefault(each.parts, []).append(row)
    order = [row for rows in groups.values() for row in rows]
    sampled = torch.cat([sample(rows) for rows in groups.values()])
    return sampled[torch.tensor(order).argsort().to(sampled.device)]


def _sample_batch(
    generator: JointModel,
    given: Sequence[Given],
    seeds: Sequence[int],
    solver: SolverSection,
    noise: Tensor | None,
    fractions: Tensor | None,
    masks_alone: bool,
) -> Tensor:
    """Samples pairs with the same parts given; see `sample_jointly`."""
    device, channels, bits = generator.network.device, generator.channels, generator.bits
    shape = (channels + bits, *given[0].size)
    start = randn_by_seed(shape, seeds)
    if noise is not None:
        start = torch.cat([noise, start[:, channels:]], dim=1)
    start = start.to(device)
    known_image, known_mask, in_parts = given[0].parts
    clean = start
    if known_image:
        images = torch.stack([each.image for each in given if each.image is not None]).to(device)
        clean = torch.cat([images, start[:, channels:]], dim=1)
    if known_mask:
        masks = torch.stack([each.mask for each in given if each.mask is not None]).to(device)
        clean = torch.cat([clean[:, :channels], masks], dim=1)
    kept = None
    if in_parts:
        kept = torch.stack([each.kept for each in given if each.kept is not None]).to(device)
        known_image, known_mask = (bool(each.all()) for each in (kept[:, :channels], kept[:, channels:]))
    # Without image channels both times are equal in training.
    image_part: Part = "moves" if not channels else "noise" if masks_alone else "clean" if known_image else "moves"
    mask_part: Part = "clean" if known_mask else "moves"
    if kept is not None and image_part == "noise":
        kept = torch.cat([torch.zeros_like(kept[:, :channels]), kept[:, channels:]], dim=1)
    image_context, mask_context = (clean if part == "clean" else start for part in (image_part, mask_part))
    context = torch.cat([image_context[:, :channels], mask_context[:, channels:]], dim=1)
    moving = slice(0 if image_part == "moves" else channels, channels + (bits if mask_part == "moves" else 0))
    steps = DiffusersSolver(solver, generator.schedule, device=device)
    guide = Guide.of(solver)
    if solver.autoguidance is not None:
        raise InputError("solver.autoguidance: not applicable to generators of kind joint_diffusion")
    run = _build_network(generator, given[0].size, solver)
    times = steps.times.tolist()
    keep = None if kept is None else (kept, clean)
    conditional = _Prediction(generator, run, times, image_part, mask_part, keep, fractions)
    # Guidance away from images without a mask. Unlike in arXiv 2303.06555, masks are not guided: they would look surer
    # than they are.
    guided = channels > 0 and image_part == "moves" and (known_mask or solver.guide_pairs)
    free = _Prediction(generator, run, times, "moves", "noise", keep) if guided else None
    sources = build_noise_sources(shape, seeds)
    _, state = steps.start(start[:, moving], None, 1.0)
    for step in range(len(times)):

        def predict(noisy: Tensor, step: int = step) -> Tensor:
            joined = torch.cat([context[:, : moving.start], noisy, context[:, moving.stop :]], dim=1)
            velocity = conditional.predict(joined, step)[:, moving]
            if free is None or not guide.acts_at(steps.sigmas[step]):
                return velocity
            weak = free.predict(torch.cat([noisy[:, :channels], start[:, channels:]], dim=1), step)
            image = guide.extrapolate(velocity[:, :channels], weak[:, :channels])
            return torch.cat([image, velocity[:, channels:]], dim=1)

        state = steps.advance(state, step, predict, sources)
    return torch.cat([context[:, : moving.start], state, context[:, moving.stop :]], dim=1)


class _Prediction:
    """Predictions of the network along one trajectory, with its own last estimate as an input.

    Args:
        run: the network, for images of any size.
        times: the timesteps of the trajectory.
        keep: (N, channels + bits, H, W) bool and the values there, which replace those of each estimate (Wang et al.
            2022, arXiv 2212.00490, eq. 8, for a mask of pixels).
        fractions: see `sample_jointly`; of the pixels not kept.
    """

    def __init__(
        self,
        generator: JointModel,
        run: Network,
        times: Sequence[float],
        image: Part,
        mask: Part,
        keep: tuple[Tensor, Tensor] | None = None,
        fractions: Tensor | None = None,
    ) -> None:
        self._generator, self._run, self._keep = generator, run, keep
        schedule, device = generator.schedule, generator.network.device
        self._fractions = None if fractions is None else fractions.to(device)
        self._free = None if keep is None else ~keep[0][:, generator.channels :].all(dim=1)
        self._estimate: Tensor | None = None
        constant = {"clean": (0.0, 1.0, 0.0), "noise": (float(len(schedule)), 0.0, 1.0)}
        moving = [(time + 1, *schedule.interpolate_levels(time)) for time in times]
        # (steps, 3) each: the time input, the signal's level, the noise's level. On the device once, not in each step.
        rows = [torch.tensor([constant.get(part, row) for row in moving]).to(device) for part in (image, mask)]
        self._times = [table[:, 0] for table in rows]
        counts = torch.tensor([generator.channels, generator.bits], device=device)
        levels = torch.stack(rows, dim=1)[:, :, 1:].repeat_interleave(counts, dim=1)  # (steps, channels + bits, 2)
        self._signal, self._spread = levels.unbind(dim=2)

    def predict(self, noisy: Tensor, step: int) -> Tensor:
        """Predicts the velocities (N, channels + bits, H, W) of image and mask at a step of the trajectory."""
        generator = self._generator
        signal, spread = (table[step].view(1, -1, 1, 1) for table in (self._signal, self._spread))
        inputs = noisy
        if generator.section.self_conditioning:
            estimate = torch.zeros_like(noisy) if self._estimate is None else self._estimate
            inputs = torch.cat([noisy, estimate], dim=1)
        output = self._run(inputs, *(times[step : step + 1] for times in self._times))
        estimate = estimate_clean(generator, noisy, output, signal, spread, self._fractions, self._free)
        if self._keep is not None:
            estimate = torch.where(*self._keep, estimate)
        self._estimate = estimate
        # The velocity of a part without noise, where this is no velocity, is not used.
        return (signal * noisy - estimate) / spread.clamp(min=1e-6)


def _build_network(generator: JointModel, size: tuple[int, int], solver: SolverSection) -> Network:
    """Returns the network for images of a size; those larger than its own are computed in overlapping windows."""
    network = generator.network
    edge, on_cpu = network.config.sample_size, network.device.type == "cpu"

    def run(inputs: Tensor, image_time: Tensor, mask_time: Tensor) -> Tensor:
        times = (time.expand(len(inputs)) for time in (image_time, mask_time))
        return network(inputs.to(network.dtype), *times, return_dict=False)[0].float()

    if size == (edge, edge) and not solver.periodic:
        return run
    layout = WindowLayout(*size, edge, solver.window_overlap, solver.periodic, network.device)
    chunk = 1
    if not on_cpu:
        chunk = max(1, int(solver.window_memory_gib * 2**30 / estimate_activation_bytes(network)))

    def run_windows(inputs: Tensor, image_time: Tensor, mask_time: Tensor) -> Tensor:
        pieces = layout.cut(inputs).split(chunk)

        def run_part(index: int) -> Tensor:
            return run(pieces[index], image_time, mask_time)

        return layout.blend(map_windows(run_part, len(pieces), network))

    return run_windows
