"""The machine of a plan: its device and memory, and a timed training step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from steelgen.devices import available_memory, pick_device, usable_cores
from steelgen.errors import InputError

if TYPE_CHECKING:
    from steelgen.config.train import RunConfig

_USED_SHARE = 0.9
"""Share of the available memory that a batch may take."""


@dataclass(frozen=True)
class Machine:
    """What trains."""

    device: str
    """cpu or cuda."""
    name: str
    """The GPU's name; empty for a CPU."""
    cores: int
    memory_gib: float
    """Memory of the GPU, or main memory that is still available."""

    def describe(self) -> str:
        """Describes the machine in a few words."""
        memory = f"{self.memory_gib:.1f} GiB"
        return f"{self.name}, {memory}" if self.name else f"{self.cores} CPU cores, {memory} of memory available"


@dataclass(frozen=True)
class StepTime:
    """A timed training step."""

    batch_size: int
    accumulation: int
    """Batches per step, if the crops of a step do not fit into memory at once."""
    seconds: float
    """Of one optimizer step, the first, which sets up buffers, left out."""
    memory_gib: float
    """Peak memory of training, previews included."""

    @property
    def seconds_per_image(self) -> float:
        """Seconds of training per crop."""
        return self.seconds / (self.batch_size * self.accumulation)


def examine_device() -> Machine:
    """Examines the device that networks run on."""
    import torch

    if pick_device().type == "cuda":
        memory = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        return Machine("cuda", torch.cuda.get_device_name(), usable_cores(), round(memory / 2**30, 1))
    return Machine("cpu", "", usable_cores(), round(available_memory() / 2**30, 1))


def time_step(config: RunConfig, machine: Machine) -> StepTime:
    """Takes training steps of a config, as `tune-batch` does, and halves the batch until it fits into memory.

    Raises:
        InputError: if the data cannot be used or not even one crop fits.
    """
    import torch

    from steelgen.training.batch_size import try_batch

    device = torch.device(machine.device)
    limit = int(_USED_SHARE * machine.memory_gib * 2**30)
    crops = batch_size = config.train.train_batch_size
    while batch_size:
        trial = try_batch(config, batch_size, limit, device)
        if trial.memory_gib is not None and trial.images_per_second:
            accumulation = crops // batch_size
            seconds = batch_size * accumulation / trial.images_per_second
            return StepTime(batch_size, accumulation, seconds, trial.memory_gib)
        batch_size //= 2
    raise InputError(
        f"{config.data.folders[0]}: not one crop of image_size {config.data.image_size} fits into "
        f"{limit / 2**30:.2f} GiB of memory; close other programs"
    )
