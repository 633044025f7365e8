"""Batch scripts: the templates of scripts/slurm with their marked parts filled in."""

from __future__ import annotations

import re
import shlex
import sys
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from steelgen.config.slurm import SlurmProfile
from steelgen.errors import InputError
from steelgen.shards import Shard

TRAINING = ("train", "finetune")
ARRAYS = ("sample", "utility")
"""Commands that run as a job array, one shard a task."""


@dataclass(frozen=True)
class Job:
    """One batch job: which command it runs, on what, and where its output goes."""

    action: str
    """train, finetune, sample, utility, gather or evaluate."""
    config: Path
    """The command's config; of a gathering job that of the array."""
    output: Path
    """The folder that the command writes: run_dir or output_dir."""
    overrides: tuple[str, ...] = ()
    """`--set` overrides of the config."""
    shards: int = 1
    """Tasks of an array."""
    array_limit: int | None = None
    """Tasks of it that may run at once."""
    gathers: str = "sample"
    """Of a gathering job: the command of the array."""
    evaluate_config: Path | None = None
    """What a gathering job evaluates by; None: nothing."""


def slurm_folder(output: Path) -> Path:
    """Where scripts, frozen configs and logs of an output folder's jobs lie: beside it, since it must start empty."""
    return output.with_name(f"{output.name}.slurm")


def parse_array(text: str) -> tuple[int, int | None]:
    """Reads `--array N` or `N%LIMIT`: the number of shards, and how many may run at once.

    Raises:
        InputError: if it is neither.
    """
    match = re.fullmatch(r"([1-9]\d{0,5})(?:%([1-9]\d{0,5}))?", text)
    if not match:
        raise InputError(f"--array {text}: must be the number of shards, e.g. 100, or 100%8 for 8 of them at once")
    return int(match[1]), int(match[2]) if match[2] else None


def render_script(job: Job, profile: SlurmProfile, directory: Path) -> str:
    """The batch script of a job.

    Args:
        job: what it runs.
        profile: the site's settings.
        directory: the folder it runs in, which relative paths of the config start from.

    Raises:
        InputError: if the signal would come before the job has started.
    """
    # Slurm takes 0 for no limit.
    if 0 < _seconds(profile.time) <= profile.signal_seconds:
        raise InputError(
            f"signal_seconds {profile.signal_seconds}: must be less than the time limit {profile.time} "
            f"({_seconds(profile.time)} s)"
        )
    template = "train" if job.action in TRAINING else "array" if job.action in ARRAYS else job.action
    text = (resources.files("steelgen.cluster") / "templates" / f"{template}.sbatch").read_text(encoding="utf-8")
    header = "".join(f"#SBATCH {option}\n" for option in _header(job, profile, directory))
    text = re.sub(r"(?:#SBATCH .*\n)+", lambda _: header, text, count=1)
    text = _fill(text, "site", _site_lines(profile))
    return _fill(text, "settings", _settings_lines(job, profile))


def _fill(text: str, part: str, lines: list[str]) -> str:
    """Replaces what stands between `# <part>: …` and `# end of <part>`."""
    pattern = rf"(# {part}: .*\n)(?:.*\n)*?(# end of {part}\n)"
    body = "".join(f"{line}\n" for line in lines)
    filled, count = re.subn(pattern, lambda match: match[1] + body + match[2], text)
    assert count == 1, part
    return filled


def _header(job: Job, profile: SlurmProfile, directory: Path) -> list[str]:
    training = job.action in TRAINING
    gpus = profile.gpus_per_node if training else min(profile.gpus_per_node, 1)
    log = "%x-%A_%a.log" if job.action in ARRAYS else "%x-%j.log"
    options = [
        f"--job-name={shlex.quote(f'{job.action}-{job.output.name}')}",
        f"--chdir={shlex.quote(str(directory))}",
        *(
            f"--{name}={value}"
            for name in ("partition", "account", "qos", "constraint")
            if (value := getattr(profile, name))
        ),
        f"--nodes={profile.nodes if training else 1}",
        "--ntasks-per-node=1",
    ]
    if gpus:
        kind = f"{profile.gpu_type}:" if profile.gpu_type else ""
        options.append(
            f"--gpus-per-node={kind}{gpus}" if profile.gpu_option == "gpus-per-node" else f"--gres=gpu:{kind}{gpus}"
        )
    if profile.cpus_per_task:
        options.append(f"--cpus-per-task={profile.cpus_per_task}")
    if profile.memory:
        options.append(f"--mem={profile.memory}")
    options.append(f"--time={profile.time}")
    if job.action in ARRAYS:
        limit = f"%{job.array_limit}" if job.array_limit else ""
        options.append(f"--array=1-{job.shards}{limit}")
    options.append("--requeue")
    if training or job.action in ARRAYS:
        options.append(f"--signal=B:USR1@{profile.signal_seconds}")
    options += ["--open-mode=append", f"--output={shlex.quote(str(slurm_folder(job.output) / log))}"]
    return options + profile.sbatch


def _site_lines(profile: SlurmProfile) -> list[str]:
    lines = [f"module load {name}" for name in profile.modules]
    lines += [f"export {name}={shlex.quote(value)}" for name, value in profile.environment.items()]
    if profile.venv:
        lines.append(f"source {shlex.quote(str(profile.venv / 'bin/activate'))}")
    elif profile.conda:
        lines += ['eval "$(conda shell.bash hook)"', f"conda activate {shlex.quote(profile.conda)}"]
    else:
        lines.append(f'export PATH={shlex.quote(str(Path(sys.executable).parent))}:"$PATH"')
    return lines


def _settings_lines(job: Job, profile: SlurmProfile) -> list[str]:
    arguments = ["--config", str(job.config), *(word for item in job.overrides for word in ("--set", item))]
    if job.action in TRAINING:
        return [
            f"action={job.action}",
            f"arguments=({shlex.join(arguments)})",
            f"run_dir={shlex.quote(str(job.output))}",
            f"nodes={profile.nodes}",
            f"gpus_per_node={profile.gpus_per_node}",
            f"max_requeues={profile.max_requeues}",
        ]
    if job.action in ARRAYS:
        Shard(1, job.shards)
        return [
            f"action={job.action}",
            f"arguments=({shlex.join(arguments)})",
            f"shards={job.shards}",
            f"max_requeues={profile.max_requeues}",
        ]
    if job.action == "gather":
        evaluate = ["--config", str(job.evaluate_config)] if job.evaluate_config else []
        return [
            f"action={job.gathers}",
            f"arguments=({shlex.join(arguments)})",
            f"evaluate_arguments=({shlex.join(evaluate)})",
        ]
    return [f"arguments=({shlex.join(arguments)})"]


def _seconds(time: str) -> int:
    """Seconds of one of Slurm's forms of a time limit."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if dash:
        parts += [0] * (3 - len(parts))
        return int(days) * 86400 + parts[0] * 3600 + parts[1] * 60 + parts[2]
    if len(parts) == 1:
        return parts[0] * 60
    if len(parts) == 2:
        return parts[0] * 60 + parts[1]
    return parts[0] * 3600 + parts[1] * 60 + parts[2]
