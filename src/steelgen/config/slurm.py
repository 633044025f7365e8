"""Site profile: the settings of a cluster for all batch scripts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from steelgen.config.base import Section

Word = Annotated[str, StringConstraints(pattern=r"^[^\s'\"]+$")]
"""One word in an #SBATCH line."""
_TIME = r"(\d+|\d+:\d{2}(:\d{2})?|\d+-\d{1,2}(:\d{2}){0,2})"
"""Slurm's time limits: minutes, minutes:seconds, hours:minutes:seconds, days-hours[:minutes[:seconds]]."""


class SlurmProfile(Section):
    """Site settings of `steelgen slurm` and `steelgen workflow --slurm`; one file per site or partition."""

    partition: Word | None = None
    """Slurm partition; null uses the cluster's default."""
    account: Word | None = None
    """Account to charge."""
    qos: Word | None = None
    """Quality of service."""
    constraint: Word | None = None
    """Node features, e.g. a100."""
    time: str = "24:00:00"
    """Time limit of a job; training requeues itself and resumes when it is reached."""
    nodes: int = Field(1, ge=1, le=100000)
    """Nodes of a training job."""
    gpus_per_node: int = Field(1, ge=0, le=1024)
    """GPUs per node; training runs one process per GPU. 0 requests no GPU and runs one process per node."""
    gpu_type: Word | None = None
    """GPU type to request, e.g. h100."""
    gpu_option: Literal["gpus-per-node", "gres"] = "gpus-per-node"
    """Form of the GPU request: --gpus-per-node=N or --gres=gpu:N."""
    cpus_per_task: int | None = Field(None, ge=1, le=100000)
    """CPU cores per node; null uses the cluster's default."""
    memory: Word | None = None
    """Memory per node, e.g. 64G; null uses the cluster's default."""
    sbatch: list[str] = []
    """Additional sbatch options, e.g. "--reservation=course"."""
    modules: list[Word] = []
    """Environment modules to load, in order."""
    venv: Path | None = None
    """Folder of the virtual environment to activate."""
    conda: Word | None = None
    """Name or folder of the conda environment to activate. Without venv and conda, a job uses the environment of the
    submitting command."""
    environment: dict[str, str] = {}
    """Additional environment variables, e.g. NCCL_SOCKET_IFNAME."""
    signal_seconds: int = Field(300, ge=1, le=65535)
    """Seconds before the time limit at which a job is signaled to save; Slurm may be up to a minute early."""
    max_requeues: int = Field(100, ge=0, le=1000000)
    """Maximum number of times that a job requeues itself; 0 disables requeueing."""

    @field_validator("time")
    @classmethod
    def _check_time(cls, value: str) -> str:
        if not re.fullmatch(_TIME, value):
            raise ValueError("must be a Slurm time limit, e.g. 04:00:00 or 2-00:00:00")
        return value

    @model_validator(mode="after")
    def _check_options(self) -> SlurmProfile:
        if self.venv and self.conda:
            raise ValueError("venv and conda are mutually exclusive")
        for option in self.sbatch:
            if not option.startswith("-") or "\n" in option:
                raise ValueError(f"sbatch: {option!r} must be a single option, e.g. --reservation=course")
        for name in self.environment:
            if not name.isidentifier():
                raise ValueError(f"environment: {name!r} is not a valid variable name")
        return self
