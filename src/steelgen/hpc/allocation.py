"""What a job asked for against what it got."""

from __future__ import annotations

from collections.abc import Mapping

from steelgen.errors import InputError

_START_SEVERAL = (
    "start them by `python -m torch.distributed.run --standalone --nproc_per_node N -m steelgen …` or by "
    "`accelerate launch --multi_gpu`"
)


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
        InputError: if one of them differs.
    """
    got = {
        "PROCESSES": num_processes,
        "NODES": int(environment.get("GROUP_WORLD_SIZE", 1)),
        "GPUS": num_gpus,
    }
    for name, count in got.items():
        expected = environment.get(f"STEELGEN_EXPECTED_{name}")
        if expected is not None and int(expected) != count:
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
        if int(environment.get(name, 1)) > 1:
            raise InputError(
                f"{name}={environment[name]}: several processes were asked for, but each would train by itself; "
                f"{_START_SEVERAL}"
            )
    # `accelerate launch` announces where processes meet if there are to be several, but without GPUs starts only one.
    if "ACCELERATE_DYNAMO_MODE" in environment and "MASTER_ADDR" in environment and "WORLD_SIZE" not in environment:
        raise InputError(
            f"accelerate launch: several processes were asked for, but for CPUs it starts only one; {_START_SEVERAL}"
        )
