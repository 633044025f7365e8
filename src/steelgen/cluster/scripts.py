"""Batch scripts, rendered from the templates of scripts/slurm."""

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
"""Commands that run as a job array, one shard per task."""
_SINGLE = {"evaluate": ("evaluate",), "segment": ("segment", "train")}
"""Commands that write their output at once, and their words."""


@dataclass(frozen=True)
class Job:
    """A batch job."""

    action: str
    """segment, train, finetune, sample, utility, gather or evaluate."""
    config: Path
    """The command's config; for a gather job that of the array."""
    output: Path
    """The folder that the command writes: run_dir or output_dir."""
    overrides: tuple[str, ...] = ()
    """`--set` overrides of the config."""
    shards: int = 1
    """Tasks of a job array."""
    array_limit: int | None = None
    """Maximum number of tasks that run at once."""
    gathers: str = "sample"
    """For a gather job: the command of the array."""
    evaluate_config: Path | None = None
    """For a gather job: config of an evaluation that follows; None skips it."""


def slurm_folder(output: Path) -> Path:
    """Returns the folder for scripts, frozen configs and logs: beside the output folder, which must start empty."""
    return output.with_name(f"{output.name}.slurm")


def parse_array(text: str) -> tuple[int, int | None]:
    """Parses `--array N` or `N%LIMIT` into the number of shards and the maximum number that run at once.

    Raises:
        InputError: if it is neither.
    """
    match = re.fullmatch(r"([1-9]\d{0,5})(?:%([1-9]\d{0,5}))?", text)
    if not match:
        raise InputError(f"--array {text}: must be the number of shards, e.g. 100, or 100%8 to run 8 at once")
    return int(match[1]), int(match[2]) if match[2] else None


def render_script(job: Job, profile: SlurmProfile, directory: Path) -> str:
    """Renders the batch script of a job; `directory` is its working directory.

    Raises:
        InputError: if the signal would be sent before the job has started.
    """
    limit = _parse_time(profile.time)
    if 0 < limit <= profile.signal_seconds:  # 0 is no limit
        raise InputError(
            f"signal_seconds {profile.signal_seconds}: must be less than the time limit {profile.time} ({limit} s)"
        )
    kinds = {"train": TRAINING, "array": ARRAYS, "single": _SINGLE, "gather": ("gather",)}
    template = next(kind for kind, actions in kinds.items() if job.action in actions)
    text = (resources.files("steelgen.cluster") / "templates" / f"{template}.sbatch").read_text(encoding="utf-8")
    header = "".join(f"#SBATCH {option}\n" for option in _header(job, profile, directory))
    text = re.sub(r"(?:#SBATCH .*\n)+", lambda _: header, text, count=1)
    text = _fill(text, "site", _site_lines(profile))
    return _fill(text, "settings", _settings_lines(job, profile))


def _fill(text: str, part: str, lines: list[str]) -> str:
    """Replaces the lines between `# <part>: …` and `# end of <part>`."""
    pattern = rf"(# {part}: .*\n)(?:.*\n)*?(# end of {part}\n)"
    body = "".join(f"{line}\n" for line in lines)
    filled, count = re.subn(pattern, lambda match: match[1] + body + match[2], text)
    assert count == 1, part
    return filled


def _header(job: Job, profile: SlurmProfile, directory: Path) -> list[str]:
    training, array = job.action in TRAINING, job.action in ARRAYS
    gpus = profile.gpus_per_node if training else min(profile.gpus_per_node, 1)
    name = shlex.quote(f"{job.action}-{job.output.name}")
    options = [f"--job-name={name}", f"--chdir={shlex.quote(str(directory))}"]
    for option in ("partition", "account", "qos", "constraint"):
        if value := getattr(profile, option):
            options.append(f"--{option}={value}")
    options += [f"--nodes={profile.nodes if training else 1}", "--ntasks-per-node=1"]
    if gpus:
        request = "gpus-per-node=" if profile.gpu_option == "gpus-per-node" else "gres=gpu:"
        options.append(f"--{request}{f'{profile.gpu_type}:' if profile.gpu_type else ''}{gpus}")
    if profile.cpus_per_task:
        options.append(f"--cpus-per-task={profile.cpus_per_task}")
    if profile.memory:
        options.append(f"--mem={profile.memory}")
    options.append(f"--time={profile.time}")
    if array:
        options.append(f"--array=1-{job.shards}{f'%{job.array_limit}' if job.array_limit else ''}")
    options.append("--requeue")
    if training or array:
        options.append(f"--signal=B:USR1@{profile.signal_seconds}")
    log = slurm_folder(job.output) / ("%x-%A_%a.log" if array else "%x-%j.log")
    return [*options, "--open-mode=append", f"--output={shlex.quote(str(log))}", *profile.sbatch]


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
    options = [word for item in job.overrides for word in ("--set", item)]
    arguments = f"arguments=({shlex.join(['--config', str(job.config), *options])})"
    requeues = f"max_requeues={profile.max_requeues}"
    if job.action in TRAINING:
        return [
            f"action={job.action}",
            arguments,
            f"run_dir={shlex.quote(str(job.output))}",
            f"nodes={profile.nodes}",
            f"gpus_per_node={profile.gpus_per_node}",
            requeues,
        ]
    if job.action in ARRAYS:
        return [f"action={job.action}", arguments, f"shards={Shard(1, job.shards).count}", requeues]
    if job.action == "gather":
        evaluate = ["--config", str(job.evaluate_config)] if job.evaluate_config else []
        return [f"action={job.gathers}", arguments, f"evaluate_arguments=({shlex.join(evaluate)})"]
    return [f"command=({shlex.join(_SINGLE[job.action])})", arguments]


def _parse_time(time: str) -> int:
    """Converts a Slurm time limit to seconds."""
    days, dash, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    if not dash and len(parts) < 3:  # minutes[:seconds]
        parts.insert(0, 0)
    hours, minutes, seconds = [*parts, 0, 0][:3]
    return ((int(days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds
