"""Adaptive discriminator augmentation (ADA).

Source: Karras et al. 2020, "Training Generative Adversarial Networks with Limited Data" (arXiv 2006.06676), section 3
and appendix B. Only pixel blitting and geometric transforms are used, the ones that help micrographs (Lambard et al.
2023). They are composed into one affine map, so an image is interpolated once. Each transform is skipped with some
probability, which keeps it from leaking into generated images.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from steelgen.generators import Gather

AUGMENTATION_NUMBERS = 18
"""Uniform random numbers per image."""
MAX_STRENGTH = 0.8
"""Upper limit of the probability; above it, transforms may leak (section 2.2)."""
_SHIFT = 0.125
"""Largest whole-pixel shift, and standard deviation of fractional shifts, as a fraction of the edge."""
_SCALE = 0.2
"""Standard deviation of log2 of the scales."""
_MEMORY = 256
"""Crops over which r_t is averaged."""


def augment(images: Tensor, numbers: Tensor, strength: Tensor, mode: str = "bicubic") -> Tensor:
    """Applies random geometric transforms to each image, with reflection padding.

    Args:
        images: (N, C, H, W), H = W.
        numbers: (N, AUGMENTATION_NUMBERS) in [0, 1); the only source of randomness.
        strength: scalar, the probability p of each transform.
        mode: interpolation mode; "nearest" for masks.
    """
    maps = build_maps(numbers, strength, images.shape[-1])
    grid = F.affine_grid(maps[:, :2], list(images.shape), align_corners=False)
    return _Resample.apply(images.to(grid.dtype), grid, _MODES[mode])


_MODES = {"bilinear": 0, "nearest": 1, "bicubic": 2}
_REFLECTION = 2
"""torch's numbers of interpolation and padding modes."""


class _Resample(torch.autograd.Function):
    """`F.grid_sample` with reflection padding, twice differentiable with respect to the images.

    Gradient penalties differentiate through it twice, for which torch below 2.13 has no derivative. It is linear in the
    images and so is its derivative, whose derivative is the resampling itself. Grids get no gradient.
    """

    @staticmethod
    def forward(context: Any, images: Tensor, grid: Tensor, mode: int) -> Tensor:
        context.save_for_backward(images, grid)
        context.mode = mode
        return torch.ops.aten.grid_sampler_2d(images, grid, mode, _REFLECTION, False)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        images, grid = context.saved_tensors
        return _ResampleBackward.apply(gradient, images.detach(), grid, context.mode), None, None


class _ResampleBackward(torch.autograd.Function):
    """The derivative of `_Resample`, a linear map of the gradient of its output."""

    @staticmethod
    def forward(context: Any, gradient: Tensor, images: Tensor, grid: Tensor, mode: int) -> Tensor:
        context.save_for_backward(grid)
        context.mode = mode
        wanted = [True, False]  # the images' gradient, the grid's gradient
        return torch.ops.aten.grid_sampler_2d_backward(gradient, images, grid, mode, _REFLECTION, False, wanted)[0]

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        return _Resample.apply(gradient, *context.saved_tensors, context.mode), None, None, None


def augment_mask(mask: Tensor, numbers: Tensor, strength: Tensor) -> Tensor:
    """Applies the transforms of `augment` to masks (N, H, W) of class indices."""
    return augment(mask[:, None].float(), numbers, strength, "nearest")[:, 0].to(mask.dtype)


def build_maps(numbers: Tensor, strength: Tensor, edge: int) -> Tensor:
    """Builds affine maps from positions in the transformed image to positions in the original image.

    Args:
        numbers, strength: see `augment`.
        edge: edge of the image in pixels.

    Returns:
        (N, 3, 3) in the coordinates of `affine_grid`, where the image spans -1 to 1.
    """
    u = numbers.unbind(dim=1)
    normal = torch.special.ndtri(numbers.clamp(1e-6, 1 - 1e-6)).unbind(dim=1)
    zero = torch.zeros_like(u[0])
    # Quarter turns and free turns before and after the anisotropic scale are together as likely as any other transform.
    # Each as likely, only (1 - p)² of the images would lie as they did: too few to tell in training how they lie.
    turn_strength = 1 - (1 - strength) ** (1 / 3)

    def gate(index: int, value: Tensor, limit: Tensor = strength) -> Tensor:
        return torch.where(u[index] < limit, value, zero)

    mirrored = gate(0, (u[1] < 0.5).to(zero))
    quarter = gate(2, (4 * u[3]).floor(), turn_strength) * (torch.pi / 2)
    shifts = [gate(4, ((2 * u[index] - 1) * _SHIFT * edge).round() * (2 / edge)) for index in (5, 6)]
    size = gate(7, normal[8] * _SCALE)
    turn_before = gate(9, (2 * u[10] - 1) * torch.pi, turn_strength)
    stretch = gate(11, normal[12] * _SCALE)
    turn_after = gate(13, (2 * u[14] - 1) * torch.pi, turn_strength)
    parts = [gate(15, normal[index] * (2 * _SHIFT)) for index in (16, 17)]
    maps = _scale(1 - 2 * mirrored, torch.ones_like(zero)) @ _turn(quarter) @ _shift(*shifts)
    maps = maps @ _scale(size.exp2(), size.exp2()) @ _turn(turn_before)
    return maps @ _scale(stretch.exp2(), (-stretch).exp2()) @ _turn(turn_after) @ _shift(*parts)


def _stack(rows: list[list[Tensor]]) -> Tensor:
    return torch.stack([torch.stack(row, dim=-1) for row in rows], dim=-2)


def _scale(across: Tensor, down: Tensor) -> Tensor:
    zero, one = torch.zeros_like(across), torch.ones_like(across)
    return _stack([[across, zero, zero], [zero, down, zero], [zero, zero, one]])


def _turn(angle: Tensor) -> Tensor:
    zero, one, cosine, sine = torch.zeros_like(angle), torch.ones_like(angle), angle.cos(), angle.sin()
    return _stack([[cosine, -sine, zero], [sine, cosine, zero], [zero, zero, one]])


def _shift(across: Tensor, down: Tensor) -> Tensor:
    zero, one = torch.zeros_like(across), torch.ones_like(across)
    return _stack([[one, zero, across], [zero, one, down], [zero, zero, one]])


class AdaptiveStrength:
    """Probability of the transforms; it rises while the discriminator overfits and falls otherwise.

    Args:
        target: target of r_t, the mean sign of the discriminator's logits on training images, in (0, 1): 0 means no
            overfitting, 1 complete overfitting.
        images: crops over which the probability can change by 1.
    """

    def __init__(self, target: float, images: int) -> None:
        self._target, self._images = target, images
        self._pending: list[Tensor] = []
        self._lead = torch.zeros(())
        self._strength = torch.zeros(())

    def on(self, device: torch.device) -> Tensor:
        """Returns p as a scalar tensor on a device, without synchronizing."""
        if self._strength.device != device:
            self._strength, self._lead = self._strength.to(device), self._lead.to(device)
        return self._strength

    def record(self, signs: Tensor) -> None:
        """Stores the signs (N,) of a batch for `update`."""
        self._pending.append(signs.detach().float())

    def update(self, gather: Gather) -> None:
        """Adjusts p by the signs recorded since the last update; they are gathered from all processes."""
        signs = gather(torch.cat(self._pending))
        self._pending = []
        self._lead = self._lead.to(signs).lerp(signs.mean(), min(1.0, len(signs) / _MEMORY))
        change = (self._lead - self._target).sign() * (len(signs) / self._images)
        self._strength = (self.on(signs.device) + change).clamp(0, MAX_STRENGTH)

    def state(self) -> dict[str, Any]:
        """Returns the state for `restore` as JSON values."""
        return {"strength": self._strength.item(), "lead": self._lead.item()}

    def restore(self, state: dict[str, Any]) -> None:
        """Restores the result of `state`."""
        self._strength, self._lead = torch.tensor(state["strength"]), torch.tensor(state["lead"])
