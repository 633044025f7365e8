"""The site profile: what a cluster wants to be told in every job script."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from steelgen.config.base import Section

Word = Annotated[str, StringConstraints(pattern=r"^[^\s'\"]+$")]
"""Text that stands in a #SBATCH line: one word."""
_TIME = r"(\d+|\d+:\d{2}(:\d{2})?|\d+-\d{1,2}(:\d{2}){0,2})"
"""Slurm's forms of a time limit: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]]."""


class SlurmProfile(Section):
    """Site settings of `steelgen slurm` and `steelgen workflow --slurm`; one file a site or a partition."""

    partition: Word | None = None
    """Slurm's partition; null takes the cluster's default."""
    account: Word | None = None
    """The account that is charged."""
    qos: Word | None = None
    """The quality of service."""
    constraint: Word | None = None
    """Node features, e.g. a100."""
    time: str = "24:00:00"
    """Time limit of a job; training goes on in a new one when it is reached."""
    nodes: int = Field(1, ge=1, le=100000)
    """Nodes of a training job."""
    gpus_per_node: int = Field(1, ge=0, le=1024)
    """GPUs of a node; training runs one process a GPU. 0 asks for none and runs one process a node."""
    gpu_type: Word | None = None
    """Type of GPU in the request, e.g. h100."""
    gpu_option: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    """How the site wants GPUs asked for: --gpus-per-node=N or --gres=gpu:N."""
    cpus_per_task: int | None = Field(None, ge=1, le=100000)
    """CPU cores of each node's task; null takes the cluster's default."""
    memory: Word | None = None
    """Memory of a node, e.g. 64G; null takes the cluster's default."""
    sbatch: list[str] = []
    """Further options as #SBATCH lines, e.g. "--reservation=course"."""
    modules: list[Word] = []
    """Environment modules to load, in this order."""
    venv: Path | None = None
    """Folder of the virtual environment to activate."""
    conda: Word | None = None
    """Name or folder of the conda environment to activate. Without venv and conda a job runs in the environment that
    the command was called from."""
    environment: dict[str, str] = {}
    """Further environment variables, e.g. NCCL_SOCKET_IFNAME."""
    signal_seconds: int = Field(300, ge=1, le=65535)
    """How long before its time limit a job is told to save; Slurm may be up to a minute early."""
    max_requeues: int = Field(100, ge=0, le=1000000)
    """How often a job may put itself back into the queue."""

    @field_validator("time")
    @classmethod
    def _check_time(cls, value: str) -> str:
        if not re.fullmatch(_TIME, value):
            raise ValueError("must be one of Slurm's time limits, e.g. 04:00:00 or 2-00:00:00")
        return value

    @model_validator(mode="after")
    def _check_one_environment(self) -> SlurmProfile:
        if self.venv and self.conda:
            raise ValueError("one of venv and conda may be given, not both")
        for option in self.sbatch:
            if not option.startswith("-") or "\n" in option:
                raise ValueError(f"sbatch: {option!r} must be one option, e.g. --reservation=course")
        for name in self.environment:
            if not name.isidentifier():
                raise ValueError(f"environment: {name!r} is no name of a variable")
        return self
