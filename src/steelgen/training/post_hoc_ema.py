"""Averages of any length, put together from snapshots of power-function averages after training.

Source: Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models" (arXiv 2312.02696),
appendix C: an average is a sum of the weights of all steps by its profile; the sum of snapshots whose profile comes
nearest to the wanted one, in the least-squares sense, is nearly the wanted average.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from steelgen.errors import InputError
from steelgen.files import check_output_free
from steelgen.generators import join_networks
from steelgen.generators.families import load_generator
from steelgen.training.checkpoint import check_same_architecture
from steelgen.training.power_ema import SNAPSHOT_FOLDER, compute_gamma, list_snapshots


def compute_coefficients(
    steps: Sequence[int], stds: Sequence[float], wanted_step: int, wanted_std: float
) -> tuple[NDArray[np.float64], float]:
    """The weights of snapshots whose sum has the profile nearest to the wanted one's (appendix C).

    Args:
        steps, stds: t and σ_rel of each snapshot.
        wanted_step, wanted_std: those of the average to put together.

    Returns:
        One factor a snapshot, and how far the sum's profile is from the wanted one, as a share of that one's L2 norm.
    """
    times = np.array([*steps, wanted_step], dtype=np.float64)
    gammas = np.array([compute_gamma(std) for std in (*stds, wanted_std)])
    products = _profile_product(times[:, None], gammas[:, None], times[None, :], gammas[None, :])
    norms = np.sqrt(products.diagonal())
    cosines = products / norms[:, None] / norms[None, :]
    inner, wanted = cosines[:-1, :-1], cosines[:-1, -1]
    # Neighboring profiles are nearly parallel: least squares without the smallest singular values.
    factors = np.linalg.lstsq(inner, wanted, rcond=1e-12)[0]
    error = 1 - 2 * factors @ wanted + factors @ inner @ factors
    return factors * norms[-1] / norms[:-1], math.sqrt(max(float(error), 0.0))


def _profile_product(
    time: NDArray[np.float64], gamma: NDArray[np.float64], other_time: NDArray[np.float64], other: NDArray[np.float64]
) -> NDArray[np.float64]:
    """∫ p(τ)·p'(τ) dτ of two profiles p(τ) = (γ + 1)·τ^γ/t^(γ+1) on [0, t]; the arrays broadcast."""
    # Up to the earlier end; written with the ratio of the ends, which does not overflow.
    earlier, later = np.minimum(time, other_time), np.maximum(time, other_time)
    later_gamma = np.where(time < other_time, other, gamma)
    return (gamma + 1) * (other + 1) / (gamma + other + 1) * (earlier / later) ** later_gamma / later


def reconstruct_average(run_dir: Path, std: float, step: int | None = None) -> tuple[dict[str, Tensor], int, float]:
    """The average of relative length `std` at a step, from a run's snapshots.

    Args:
        step: a step at which snapshots were saved; None: the last.

    Returns:
        The averaged weights by parameter name (fp32), the step, and the profile's error (see `compute_coefficients`).

    Raises:
        InputError: if the run has no snapshots, or none at that step.
    """
    snapshots = list_snapshots(run_dir)
    if not snapshots:
        raise InputError(f"{run_dir / SNAPSHOT_FOLDER}: no snapshots; train with train.ema_power_stds")
    available = sorted({snapshot.step for snapshot in snapshots})
    wanted = available[-1] if step is None else step
    if wanted not in available:
        raise InputError(f"{run_dir / SNAPSHOT_FOLDER}: no snapshot of step {wanted}; there are {_listing(available)}")
    used = [snapshot for snapshot in snapshots if snapshot.step <= wanted]
    factors, error = compute_coefficients(
        [snapshot.step for snapshot in used], [snapshot.std for snapshot in used], wanted, std
    )
    total: dict[str, Tensor] = {}
    for snapshot, factor in zip(used, factors, strict=True):
        with safe_open(snapshot.path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 - not a dictionary
                term = factor * file.get_tensor(name).double()
                total[name] = total[name] + term if name in total else term
    return {name: tensor.float() for name, tensor in total.items()}, wanted, error


def export_average(run_dir: Path, std: float, step: int | None, out: Path) -> tuple[int, float]:
    """Writes a run's generator with such an average for weights; arguments and errors as `reconstruct_average`.

    Returns:
        The step and the profile's error.
    """
    check_output_free(out)
    weights, found, error = reconstruct_average(run_dir, std, step)
    generator = load_generator(run_dir)
    network = join_networks(generator.networks)
    check_same_architecture(network, weights, run_dir / SNAPSHOT_FOLDER)
    network.load_state_dict(weights)
    generator.save(out)
    return found, error


def _listing(steps: list[int]) -> str:
    return ", ".join(map(str, steps)) if len(steps) <= 8 else f"{len(steps)} from {steps[0]} to {steps[-1]}"
