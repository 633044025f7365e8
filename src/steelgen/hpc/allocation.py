"""What a job asked for against what it got."""

from __future__ import annotations

from collections.abc import Mapping

from steelgen.errors import InputError


def check_allocation(environment: Mapping[str, str], num_processes: int, num_gpus: int) -> None:
    """Compares the processes, nodes and GPUs that a batch script asked for with those that training has.

    The script says what it asked for in STEELGEN_EXPECTED_PROCESSES, STEELGEN_EXPECTED_NODES and
    STEELGEN_EXPECTED_GPUS (a node); what is not set is not checked. Nodes are counted by torchrun.

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
