"""Flow matching on a schedule of unit variance.

Source: Lipman et al. 2022 (arXiv 2210.02747); Liu et al. 2022, "Rectified flow" (arXiv 2209.03003).

The straight path z_t = (1 − t)·x_0 + t·ε has the noise level σ = t/(1 − t). At the same σ a variance-preserving
schedule has x_t = √ᾱ·x_0 + √(1−ᾱ)·ε, which is z_t times √ᾱ + √(1−ᾱ). So the network sees z_t and predicts
u = ε − x_0, and all else, the solvers above all, goes on with x_t and v.
"""

from __future__ import annotations

from torch import Tensor

Level = Tensor | float


def scale_to_flow(noisy_image: Tensor, signal: Level, spread: Level) -> Tensor:
    """z_t from x_t.

    Args:
        noisy_image: (N, C, H, W).
        signal, spread: √ᾱ_t and √(1 − ᾱ_t); tensors broadcast with the images.
    """
    return noisy_image / (signal + spread)


def flow_to_velocity(noisy_image: Tensor, flow: Tensor, signal: Level, spread: Level) -> Tensor:
    """v = √ᾱ·ε − √(1−ᾱ)·x_0 from x_t and u = ε − x_0; arguments as in `scale_to_flow`."""
    return ((signal - spread) * noisy_image + flow) / (signal + spread)


def flow_to_original(noisy_image: Tensor, flow: Tensor, signal: Level, spread: Level) -> Tensor:
    """x_0 from x_t and u = ε − x_0; arguments as in `scale_to_flow`."""
    return (noisy_image - spread * flow) / (signal + spread)
