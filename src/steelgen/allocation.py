"""What a job asked for against what it got."""

from __future__ import annotations

from collections.abc import Mapping

from steelgen.errors import InputError

_RENDEZVOUS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""What a process needs to know to meet the others of a training."""
_START_SEVERAL = (
    "start them by `python -m torch.distributed.run --standalone --nproc_per_node N -m steelgen …` or by "
    "`accelerate launch --multi_gpu`"
)


def read_count(environment: Mapping[str, str], name: str, default: int | None = None) -> int:
    """A whole number ≥ 0 from the environment.

    Args:
        environment: the environment variables.
        name: of the variable.
        default: where it is not set; None: it has to be.

    Raises:
        InputError: if it is missing or no such number.
    """
    text = environment.get(name)
    if text is None and default is not None:
        return default
    if text is None:
        raise InputError(f"{name}: is not set in the environment, though others of its kind are")
    if not (text.isascii() and text.isdigit()):
        raise InputError(f"{name}={text}: must be a whole number")
    return int(text)


def check_launch(environment: Mapping[str, str]) -> None:
    """Raises InputError if what a launcher of several processes should have told this one is missing or no number."""
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        read_count(environment, name, 0)
    told = "LOCAL_RANK" if "LOCAL_RANK" in environment else "WORLD_SIZE"
    missing = [name for name in _RENDEZVOUS if name not in environment]
    if missing and (told == "LOCAL_RANK" or read_count(environment, told, 1) > 1):
        raise InputError(f"{told}={environment[told]} is set, but {', '.join(missing)} is not; {_START_SEVERAL}")


def check_allocation(environment: Mapping[str, str], num_processes: int, num_gpus: int) -> None:
    """Compares the processes, nodes and GPUs that a job asked for with those that training has.

    A batch script says what it asked for in STEELGEN_EXPECTED_PROCESSES, STEELGEN_EXPECTED_NODES and
    STEELGEN_EXPECTED_GPUS (a node); what is not set is not checked. Nodes are counted by torchrun. Launchers that start
    several processes which do not find each other, or one in place of several, give themselves away too.

    Args:
        environment: the environment variables.
        num_processes: the world size of training, from the library that trains rather than from a variable.
        num_gpus: GPUs that this process sees.

    Raises:
        InputError: if one of them differs or is no number.
    """
    got = {
        "PROCESSES": num_processes,
        "NODES": read_count(environment, "GROUP_WORLD_SIZE", 1),
        "GPUS": num_gpus,
    }
    for name, count in got.items():
        expected = read_count(environment, f"STEELGEN_EXPECTED_{name}", count)
        if expected != count:
            unit = "GPUs on this node" if name == "GPUS" else name.lower()
            raise InputError(
                f"STEELGEN_EXPECTED_{name}={expected}: training has {count} {unit}; "
                "check the job's request and how its processes were started"
            )
    if num_processes == 1:
        _check_alone(environment)


def _check_alone(environment: Mapping[str, str]) -> None:
    """Raises InputError if whoever started this one process seems to have wanted several."""
    for name in ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS"):
        if read_count(environment, name, 1) > 1:
            raise InputError(
                f"{name}={environment[name]}: several processes were asked for, but each would train by itself; "
                f"{_START_SEVERAL}"
            )
    # `accelerate launch` announces where processes meet if there are to be several, but without GPUs starts only one.
    if "ACCELERATE_DYNAMO_MODE" in environment and "MASTER_ADDR" in environment and "WORLD_SIZE" not in environment:
        raise InputError(
            f"accelerate launch: several processes were asked for, but for CPUs it starts only one; {_START_SEVERAL}"
        )
