"""One-line errors for machine failures: out of memory, a full disk, a lost process."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from steelgen.config.train import RunConfig
from steelgen.devices import describe_memory, is_out_of_memory
from steelgen.errors import InputError
from steelgen.files import is_disk_full
from steelgen.training.checkpoint import newest_checkpoint

_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "Timed out waiting", "NCCL")
"""Parts of torch's errors when another process is gone."""


@contextmanager
def explain_failures(config: RunConfig) -> Iterator[None]:
    """Inside the block, machine failures become InputErrors that say what to change, in numbers."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise InputError(f"{_advise_on_training_memory(config)}; {_describe_checkpoint(config)}") from error
        if is_disk_full(error):
            free = shutil.disk_usage(config.run_dir).free
            raise InputError(
                f"{config.run_dir}: the disk is full ({free / 2**20:.1f} MiB free); {_describe_checkpoint(config)}"
            ) from error
        if dist.is_initialized() and any(part in str(error) for part in _LOST):
            raise InputError(
                f"process {dist.get_rank()} of {dist.get_world_size()}: lost contact with another one (killed, or its "
                f"machine failed; see its last lines); {_describe_checkpoint(config)}"
            ) from error
        raise


def split_batch(effective: int, largest: int) -> tuple[int, int]:
    """Returns the largest divisor of `effective` up to `largest`, and the quotient."""
    batch = max(size for size in range(1, min(effective, largest) + 1) if effective % size == 0)
    return batch, effective // batch


def _advise_on_training_memory(config: RunConfig) -> str:
    options = config.train
    advice = []
    if options.train_batch_size > 1:
        effective = options.train_batch_size * options.gradient_accumulation_steps
        batch, accumulation = split_batch(effective, options.train_batch_size // 2)
        advice.append(
            f"train.train_batch_size={batch} with train.gradient_accumulation_steps={accumulation} "
            f"(still {effective} crops per step; `steelgen tune-batch` finds the largest batch that fits)"
        )
    if not options.gradient_checkpointing:
        advice.append("train.gradient_checkpointing=true")
    if options.mixed_precision == "no":
        advice.append("train.mixed_precision=bf16 (with --allow-changed train.mixed_precision)")
    if not advice:
        advice.append(f"a data.image_size below {config.data.image_size}, or a smaller generator.unet.base_channels")
    return (
        f"out of memory: train_batch_size {options.train_batch_size} at image_size {config.data.image_size} needs more "
        f"than {describe_memory()}; try {', '.join(advice)}"
    )


def _describe_checkpoint(config: RunConfig) -> str:
    checkpoint = newest_checkpoint(config.run_dir)
    return f"{checkpoint} is intact, resume with --resume auto" if checkpoint else "no checkpoint was saved"
