"""Which device and which precision a machine offers."""

from __future__ import annotations

import torch

from steelgen.errors import InputError

_DTYPES = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def pick_device(name: str = "auto") -> torch.device:
    """The torch device of that name; auto is the GPU where there is one, else the CPU.

    Raises:
        InputError: if the device is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device {name!r}: cannot be used ({str(error).splitlines()[0]})") from None


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


def _has_bf16_instructions() -> bool:
    capability = torch.backends.cpu.get_cpu_capability()
    if not capability.startswith("AVX512"):
        return "SVE" in capability  # Arm's vector units with bf16; AVX2 and older have none
    # Private, and younger than the oldest torch that steelgen runs on.
    supported = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return supported is not None and bool(supported())
