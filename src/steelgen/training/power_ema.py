"""Power-function averages of the weights, and snapshots of them.

Source: Karras et al. 2024, "Analyzing and improving the training dynamics of diffusion models" (arXiv 2312.02696),
section 3 and appendix C. After t steps the weights of step τ count in proportion to τ^γ, so that the average's length
grows with training; the relative deviation σ_rel of that profile, as a share of t, names it. Snapshots of two such
averages suffice to put together any other; see `post_hoc_ema`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import safe_open
from torch import nn

from steelgen.errors import InputError
from steelgen.files import new_file, save_tensors
from steelgen.training.ema import WeightAverage

SNAPSHOT_FOLDER = "ema"
"""In a run folder: step-<step>-<std>.safetensors, weights in fp32 by parameter name."""


def compute_gamma(std: float) -> float:
    """γ of the profile τ^γ whose relative deviation is `std`: σ_rel² = (γ + 1)/((γ + 2)²(γ + 3)).

    Raises:
        InputError: if no γ ≥ 0 has it.
    """
    if not 0 < std <= 12**-0.5:
        raise InputError(f"a power-function average's std must be above 0 and at most {12**-0.5:.3f}, not {std:g}")
    return float(np.roots([1, 7, 16 - std**-2, 12 - std**-2]).real.max())


class PowerAverage(WeightAverage):
    """θ̄ ← β_t·θ̄ + (1 − β_t)·θ with β_t = (1 − 1/t)^(γ+1), which makes θ̄ the mean of the steps τ ≤ t with weights ∝ τ^γ.

    Args:
        network: the network whose parameters are averaged, in fp32.
        std: σ_rel.
    """

    def __init__(self, network: nn.Module, std: float) -> None:
        super().__init__(network, 0.0)
        self.std = std
        self._gamma = compute_gamma(std)

    def decay_at(self, step: int) -> float:
        """See `WeightAverage.decay_at`."""
        return (1 - 1 / step) ** (self._gamma + 1)


@dataclass(frozen=True)
class Snapshot:
    """One saved average."""

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
    """The snapshots of a run, in no particular order.

    Raises:
        InputError: if one is damaged.
    """
    snapshots = []
    for path in sorted((run_dir / SNAPSHOT_FOLDER).glob("step-*.safetensors")):
        try:
            with safe_open(path, "pt") as file:
                described = file.metadata()
        except Exception as error:  # safetensors has an exception type of its own for damaged files
            raise InputError(f"{path}: damaged snapshot: {error}") from None
        snapshots.append(Snapshot(path, int(described["step"]), float(described["std"])))
    return snapshots


def remove_later_snapshots(run_dir: Path, step: int) -> None:
    """Removes what an earlier attempt saved after `step`, from where training goes on."""
    for snapshot in list_snapshots(run_dir):
        if snapshot.step > step:
            snapshot.path.unlink()
