"""Which device and which precision a machine offers."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from steelgen.allocation import read_count
from steelgen.errors import InputError, first_line

_CGROUP_FILES = tuple(
    (Path("/sys/fs/cgroup") / limit, Path("/sys/fs/cgroup") / usage)
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    )
)
"""Limit and usage of a container's memory, in control groups of version 2 and 1."""
_ResultT = TypeVar("_ResultT")
_DTYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """The torch device of that name; auto is a GPU where there is one, else the CPU.

    Of several GPUs each process of a node takes its own, by the rank that torchrun (LOCAL_RANK) or srun (SLURM_LOCALID)
    gave it, and makes it torch's current one.

    Raises:
        InputError: if the device is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if name == "cuda" and torch.cuda.is_available():
            rank = read_count(os.environ, "LOCAL_RANK", read_count(os.environ, "SLURM_LOCALID", 0))
            torch.cuda.set_device(rank % torch.cuda.device_count())
            return torch.device("cuda", torch.cuda.current_device())
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r}: cannot be used ({first_line(error)})") from None


def resolve_precision(name: str, device: torch.device | None = None) -> str:
    """Turns `auto` into `bf16` where the device computes in it natively and into `no` elsewhere; others stay.

    A CPU without bf16 instructions emulates them, many times slower than fp32.
    """
    if name != "auto":
        return name
    if (device or pick_device()).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if torch.ops.mkldnn._is_mkldnn_bf16_supported() and _has_bf16_instructions() else "no"


def autocast(name: str, device: torch.device) -> torch.autocast:
    """A context in which networks compute in the precision `no`, `bf16`, `fp16` or `auto`."""
    dtype = _DTYPES[resolve_precision(name, device)]
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def map_on_single_threads(function: Callable[[int], _ResultT], count: int) -> list[_ResultT]:
    """Calls a function of tensors on the CPU with 0 … count - 1, each call on one thread, many calls side by side.

    A kernel orders its sums by the number of its threads: on one thread each, results depend neither on that number nor
    on count. It is also faster than all threads together on one call after the other, where tensors are small.
    """
    threads, casts = torch.get_num_threads(), torch.is_autocast_enabled("cpu")
    dtype, inference = torch.get_autocast_dtype("cpu"), torch.is_inference_mode_enabled()

    def call(index: int) -> _ResultT:
        # Like the number of threads, these modes hold for one thread alone.
        with torch.autocast("cpu", dtype, enabled=casts), torch.inference_mode(inference):
            return function(index)

    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(call, range(count)))
    finally:
        torch.set_num_threads(threads)  # threads that begin later take over what was set last, anywhere


def randn_by_seed(shape: Sequence[int], seeds: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Standard normal noise (len(seeds), *shape) in which row i depends on seeds[i] alone.

    Drawn on the CPU, so that a seed means the same noise on every device.
    """
    rows = [torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows).to(device)


def usable_cores() -> int:
    """CPU cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_out_of_memory(error: BaseException) -> bool:
    """Whether Python, torch's CPU allocator or the GPU has run out of memory."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        part in str(error).lower() for part in ("out of memory", "can't allocate memory", "not enough memory")
    )


def describe_memory() -> str:
    """What memory there is to compute in, in words."""
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        peak = torch.cuda.max_memory_reserved()
        return (
            f"this GPU's {total / 2**30:.1f} GiB ({peak / 2**30:.1f} GiB were in use here, {free / 2**30:.1f} are free)"
        )
    return f"the {available_memory() / 2**30:.1f} GiB that this machine has free"


def available_memory() -> int:
    """Bytes of main memory that this process may still take: what is free, within its control group's limit."""
    import psutil

    available = psutil.virtual_memory().available
    for limit, usage in _CGROUP_FILES:
        try:
            return min(available, max(0, int(limit.read_text()) - int(usage.read_text())))
        except (OSError, ValueError):  # no such control group, or "max"
            continue
    return available


def resident_memory() -> int:
    """Bytes of main memory that this process takes, without those that load its data."""
    import psutil

    return psutil.Process().memory_info().rss


def _has_bf16_instructions() -> bool:
    capability = torch.backends.cpu.get_cpu_capability()
    if not capability.startswith("AVX512"):
        return "SVE" in capability  # Arm's vector units with bf16; AVX2 and older have none
    # Private, and younger than the oldest torch that steelgen runs on.
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return supported is not None and bool(supported())
