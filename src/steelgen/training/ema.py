"""Moving averages of the weights: exponential, and with power-function profiles."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from steelgen.errors import InputError


class WeightAverage:
    """θ̄ ← θ̄ + (1 − β_t)(θ − θ̄) with β_t = min(decay, (1 + t)/(10 + t)), so that early averages forget the start.

    Buffers, such as the statistics of batch norms, are not averaged but copied from the latest step.

    Args:
        network: the network whose parameters are averaged, in fp32.
        decay: β in the long run.
        warmup: False uses β_t = decay from the first step on.
    """

    def __init__(self, network: nn.Module, decay: float, warmup: bool = True) -> None:
        self._decay, self._warmup = decay, warmup
        saved = network.state_dict().keys()
        self._network = network
        self._parameters = dict(network.named_parameters())
        self._averages = {name: parameter.detach().float().clone() for name, parameter in self._parameters.items()}
        self._buffers = {name: buffer.detach().clone() for name, buffer in network.named_buffers() if name in saved}

    @property
    def _live_buffers(self) -> dict[str, Tensor]:
        """Looked up anew: accelerate replaces the buffers of a network that it prepares for several processes."""
        if not self._buffers:
            return {}  # spares a walk through all modules at each step
        return {name: buffer for name, buffer in self._network.named_buffers() if name in self._buffers}

    def decay_at(self, step: int) -> float:
        """β of optimizer step number `step` (from 1)."""
        return min(self._decay, (1 + step) / (10 + step)) if self._warmup else self._decay

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Adds the weights after optimizer step number `step` (from 1)."""
        live = [parameter.float() for parameter in self._parameters.values()]
        torch._foreach_lerp_(list(self._averages.values()), live, 1 - self.decay_at(step))
        _copy(self._buffers, self._live_buffers)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside the block the network has the averaged weights."""
        network = {**self._parameters, **self._live_buffers}
        live = {name: tensor.detach().clone() for name, tensor in network.items()}
        try:
            _copy(network, self.state_dict())
            yield
        finally:
            _copy(network, live)

    def state_dict(self) -> dict[str, Tensor]:
        """Averages and buffers by name."""
        return {**self._averages, **self._buffers}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restores the output of `state_dict`."""
        _copy(self.state_dict(), state)


class PowerAverage(WeightAverage):
    """θ̄ ← β_t·θ̄ + (1 − β_t)·θ with β_t = (1 − 1/t)^(γ+1): the mean of the steps τ ≤ t with weights ∝ τ^γ.

    The length of the average, σ_rel·t, grows with training. Snapshots of two such averages suffice to reconstruct any
    other; see `post_hoc_ema`.

    Source: Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models" (arXiv 2312.02696),
    section 3.

    Args:
        network: the network whose parameters are averaged, in fp32.
        std: σ_rel, the relative standard deviation of the profile.
    """

    def __init__(self, network: nn.Module, std: float) -> None:
        super().__init__(network, 0.0)
        self.std = std
        self._gamma = compute_gamma(std)

    def decay_at(self, step: int) -> float:
        """See `WeightAverage.decay_at`."""
        return (1 - 1 / step) ** (self._gamma + 1)


def compute_gamma(std: float) -> float:
    """γ of the profile τ^γ with relative standard deviation `std`: σ_rel² = (γ + 1)/((γ + 2)²(γ + 3)).

    Raises:
        InputError: if no γ ≥ 0 has it.
    """
    if not 0 < std <= 12**-0.5:
        raise InputError(f"std {std:g} of a power-function average: must be above 0 and at most {12**-0.5:.3f}")
    return float(np.roots([1, 7, 16 - std**-2, 12 - std**-2]).real.max())


@torch.no_grad()
def _copy(targets: Mapping[str, Tensor], sources: Mapping[str, Tensor]) -> None:
    for name, target in targets.items():
        target.copy_(sources[name])
