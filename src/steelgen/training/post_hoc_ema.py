"""Weight averages of any length, reconstructed after training from snapshots of power-function averages.

Source: Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models" (arXiv 2312.02696),
appendix C: an average weights the steps by its profile; the linear combination of snapshots whose profile is nearest to
the wanted one, in the least-squares sense, is close to the wanted average.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from steelgen.errors import InputError
from steelgen.files import check_output_free, new_file, save_tensors
from steelgen.generators import join_networks
from steelgen.generators.families import load_generator
from steelgen.training.checkpoint import check_same_architecture
from steelgen.training.ema import PowerAverage, compute_gamma

SNAPSHOT_FOLDER = "ema"
"""In a run folder: step-<step>-<std>.safetensors, weights in fp32 by parameter name."""


class Snapshot(NamedTuple):
    """A saved average."""

    path: Path
    step: int
    std: float


def save_snapshot(run_dir: Path, step: int, average: PowerAverage) -> None:
    """Writes ema/step-<step>-<std>.safetensors of a run."""
    folder = run_dir / SNAPSHOT_FOLDER
    folder.mkdir(exist_ok=True)
    with new_file(folder / f"step-{step:06d}-{average.std:g}.safetensors") as working:
        save_tensors(working, average.state_dict(), {"step": str(step), "std": repr(average.std)})


def list_snapshots(run_dir: Path) -> list[Snapshot]:
    """Lists the snapshots of a run.

    Raises:
        InputError: if one is damaged.
    """
    snapshots = []
    for path in sorted((run_dir / SNAPSHOT_FOLDER).glob("step-*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata()
        except Exception as error:  # safetensors has an exception type of its own for damaged files
            raise InputError(f"{path}: damaged snapshot: {error}") from None
        snapshots.append(Snapshot(path, int(metadata["step"]), float(metadata["std"])))
    return snapshots


def remove_later_snapshots(run_dir: Path, step: int) -> None:
    """Removes snapshots that an earlier attempt saved after `step`, where training resumes."""
    for snapshot in list_snapshots(run_dir):
        if snapshot.step > step:
            snapshot.path.unlink()


def compute_coefficients(
    steps: Sequence[int], stds: Sequence[float], wanted_step: int, wanted_std: float
) -> tuple[NDArray[np.float64], float]:
    """Computes the weights of snapshots whose sum has the profile nearest to the wanted one (appendix C).

    Args:
        steps, stds: t and σ_rel of each snapshot.
        wanted_step, wanted_std: those of the wanted average.

    Returns:
        One factor per snapshot, and the L2 distance of the two profiles relative to the norm of the wanted one.
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
    # Written with the ratio of the ends, which does not overflow.
    earlier, later = np.minimum(time, other_time), np.maximum(time, other_time)
    later_gamma = np.where(time < other_time, other, gamma)
    return (gamma + 1) * (other + 1) / (gamma + other + 1) * (earlier / later) ** later_gamma / later


def reconstruct_average(run_dir: Path, std: float, step: int | None = None) -> tuple[dict[str, Tensor], int, float]:
    """Reconstructs the average of relative length `std` at a step from a run's snapshots.

    Args:
        step: a step with snapshots; None uses the last.

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
        listed = ", ".join(map(str, available))
        if len(available) > 8:
            listed = f"{len(available)} from {available[0]} to {available[-1]}"
        raise InputError(f"{run_dir / SNAPSHOT_FOLDER}: no snapshot of step {wanted}; available: {listed}")
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
    """Exports a run's generator with a reconstructed average; arguments and errors as in `reconstruct_average`.

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
