"""Checks that a training got the processes, nodes and GPUs that its job requested."""

from __future__ import annotations

from collections.abc import Mapping

from steelgen.errors import InputError

_RENDEZVOUS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables by which the processes of a training find each other."""
_LAUNCH_HINT = (
    "start several processes with `python -m torch.distributed.run --standalone --nproc_per_node N -m steelgen …` or "
    "`accelerate launch --multi_gpu`"
)


def read_count(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    """Reads a non-negative integer from the environment; without a default the variable is required.

    Raises:
        InputError: if the variable is missing or not a non-negative integer.
    """
    text = environment.get(name)
    if text is None and default is not None:
        return default
    if text is None:
        raise InputError(f"{name} is not set, but related environment variables are")
    if not (text.isascii() and text.isdigit()):
        raise InputError(f"{name}={text}: must be a non-negative integer")
    return int(text)


def check_launch(environment: Mapping[str, str]) -> None:
    """Raises InputError if variables set by a multi-process launcher are incomplete or not integers."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        read_count(environment, name, 0)
    launched_by = "LOCAL_RANK" if "LOCAL_RANK" in environment else "WORLD_SIZE"
    missing = [name for name in _RENDEZVOUS if name not in environment]
    if missing and (launched_by == "LOCAL_RANK" or read_count(environment, launched_by, 1) > 1):
        raise InputError(
            f"{launched_by}={environment[launched_by]} is set, but {', '.join(missing)} is not; {_LAUNCH_HINT}"
        )


def check_allocation(environment: Mapping[str, str], num_processes: int, num_gpus: int) -> None:
    """Compares the requested processes, nodes and GPUs with those that training got.

    Batch scripts state the request in STEELGEN_EXPECTED_PROCESSES, STEELGEN_EXPECTED_NODES and STEELGEN_EXPECTED_GPUS
    (per node); a variable that is not set is not checked. torchrun counts the nodes. Also detects launchers whose
    processes do not find each other, or that start one process instead of several.

    Args:
        environment: environment variables.
        num_processes: world size as reported by the training library, not by a variable.
        num_gpus: GPUs visible to this process.

    Raises:
        InputError: if a count differs or is not an integer.
    """
    actual = {"PROCESSES": num_processes, "NODES": read_count(environment, "GROUP_WORLD_SIZE", 1), "GPUS": num_gpus}
    for name, count in actual.items():
        expected = read_count(environment, f"STEELGEN_EXPECTED_{name}", count)
        if expected != count:
            unit = "GPUs on this node" if name == "GPUS" else name.lower()
            raise InputError(
                f"STEELGEN_EXPECTED_{name}={expected}: training has {count} {unit}; "
                "check the job's resource request and how its processes were launched"
            )
    if num_processes > 1:
        return
    for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        if read_count(environment, name, 1) > 1:
            raise InputError(
                f"{name}={environment[name]}: several processes were requested, but each would train on its own; "
                f"{_LAUNCH_HINT}"
            )
    # `accelerate launch` sets the rendezvous address for several processes, but without GPUs starts only one.
    if "ACCELERATE_DYNAMO_MODE" in environment and "MASTER_ADDR" in environment and "WORLD_SIZE" not in environment:
        raise InputError(
            f"accelerate launch: several processes were requested, but it starts only one on CPUs; {_LAUNCH_HINT}"
        )
