"""Devices, precision, seeded noise and memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from steelgen.allocation import read_count
from steelgen.errors import InputError, first_line

_CGROUP = Path("/sys/fs/cgroup")
_CGROUP_FILES = (
    (_CGROUP / "memory.max", _CGROUP / "memory.current"),
    (_CGROUP / "memory/memory.limit_in_bytes", _CGROUP / "memory/memory.usage_in_bytes"),
)
"""Memory limit and usage of a container, in control groups version 2 and 1."""
_ResultT = TypeVar("_ResultT")
_DTYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """Returns the torch device of that name; auto is a GPU if there is one, else the CPU.

    On a node with several GPUs each process gets its own, by its local rank from torchrun (LOCAL_RANK) or srun
    (SLURM_LOCALID), and makes it torch's current device.

    Raises:
        InputError: if the device is not available.
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
        raise InputError(f"device {name!r}: not available ({first_line(error)})") from None


def resolve_precision(name: str, device: torch.device | None = None) -> str:
    """Resolves `auto` to `bf16` on devices that support it natively and to `no` on others.

    A CPU without bf16 instructions emulates them, many times slower than fp32.
    """
    if name != "auto":
        return name
    if (device or pick_device()).type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if _has_bf16_instructions() and torch.ops.mkldnn._is_mkldnn_bf16_supported() else "no"


def autocast(name: str, device: torch.device) -> torch.autocast:
    """Returns torch's autocast context for the precision `no`, `bf16`, `fp16` or `auto`."""
    dtype = _DTYPES[resolve_precision(name, device)]
    return torch.autocast(device.type, dtype, enabled=dtype is not None)


def is_compiled(network: torch.nn.Module) -> bool:
    """Returns whether torch.compile traces a network, which works in one thread only."""
    return network._compiled_call_impl is not None


def map_on_single_threads(function: Callable[[int], _ResultT], count: int) -> list[_ResultT]:
    """Calls a CPU function with 0 … count - 1 in parallel, each call on a single thread.

    The order of summation in a kernel depends on its number of threads: with one thread per call, results depend
    neither on the number of threads nor on `count`. For small tensors it is also faster than multithreaded kernels.
    """
    threads, casts = torch.get_num_threads(), torch.is_autocast_enabled("cpu")
    dtype, inference = torch.get_autocast_dtype("cpu"), torch.is_inference_mode_enabled()

    def call(index: int) -> _ResultT:
        # Like the number of threads, these modes are thread-local.
        with torch.autocast("cpu", dtype, enabled=casts), torch.inference_mode(inference):
            return function(index)

    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(call, range(count)))
    finally:
        torch.set_num_threads(threads)  # new threads inherit the last value set in any thread


def randn_by_seed(shape: Sequence[int], seeds: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
    """Generates standard normal noise (len(seeds), *shape); row i depends only on seeds[i].

    Generated on the CPU, so that a seed gives the same noise on every device.
    """
    rows = [torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
    return torch.stack(rows).to(device)


def usable_cores() -> int:
    """Returns the number of CPU cores available to this process."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether Python, torch's CPU allocator or the GPU ran out of memory."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(
        part in str(error).lower() for part in ("out of memory", "can't allocate memory", "not enough memory")
    )


def describe_memory() -> str:
    """Describes the memory of the device that networks run on."""
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        peak = torch.cuda.max_memory_reserved()
        return f"this GPU's {total / 2**30:.1f} GiB (peak {peak / 2**30:.1f} GiB, free {free / 2**30:.1f} GiB)"
    return f"the {available_memory() / 2**30:.1f} GiB of free memory"


def available_memory() -> int:
    """Returns the bytes of main memory still available to this process, within its control group's limit."""
    import psutil

    available = psutil.virtual_memory().available
    for limit, usage in _CGROUP_FILES:
        try:
            return min(available, max(0, int(limit.read_text()) - int(usage.read_text())))
        except (OSError, ValueError):  # no such control group, or "max"
            continue
    return available


def resident_memory() -> int:
    """Returns the bytes of main memory that this process uses, without its data loader workers."""
    import psutil

    return psutil.Process().memory_info().rss


def _has_bf16_instructions() -> bool:
    if not torch.backends.mkldnn.is_available():  # as on a Mac
        return False
    capability = torch.backends.cpu.get_cpu_capability()
    if not capability.startswith("AVX512"):
        return "SVE" in capability  # Arm's vector extension has bf16; AVX2 and older do not
    # Private, and newer than the oldest supported torch.
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return supported is not None and bool(supported())


def map_rows(function: Callable[[slice], torch.Tensor], count: int, device: torch.device) -> torch.Tensor:
    """Calls a function of a device with all of `count` rows, or on a CPU row by row, and joins the results.

    CPU kernels order their sums by the batch size, so rows would differ in the last bit between batch sizes.
    """
    if device.type != "cpu":
        return function(slice(None))
    return torch.cat(map_on_single_threads(lambda index: function(slice(index, index + 1)), count))


def map_windows(function: Callable[[int], torch.Tensor], count: int, network: torch.nn.Module) -> torch.Tensor:
    """Calls a function of a network with 0 … count - 1, on a CPU in parallel if it is not compiled, and joins the
    results."""
    if next(network.parameters()).device.type == "cpu" and not is_compiled(network):
        return torch.cat(map_on_single_threads(function, count))
    return torch.cat([function(index) for index in range(count)])


@contextmanager
def in_evaluation_mode(network: torch.nn.Module) -> Iterator[None]:
    """Inside the block a network is in evaluation mode."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)
