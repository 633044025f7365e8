"""Handing jobs to Slurm, and remembering which."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from pydantic import Field, RootModel

from steelgen.cluster.scripts import Job, render_script, slurm_folder
from steelgen.config.base import MAX_SHARDS, Section, config_to_json, load_config, parse_config
from steelgen.config.slurm import SlurmProfile
from steelgen.errors import InputError
from steelgen.files import Record, find_home, load_record, new_file, save_json

PROFILE_VARIABLE = "STEELGEN_SLURM_PROFILE"


def load_profile(name: str | None, **given: Any) -> SlurmProfile:
    """The site profile with the options of one command in place of its own.

    Args:
        name: a file, or the name of one in ~/.config/steelgen/slurm; None takes $STEELGEN_SLURM_PROFILE, else the
            profile named default there, else steelgen's defaults.
        given: fields to replace; None leaves the profile's.

    Raises:
        InputError: if there is no such profile or a value is out of limits.
    """
    wanted = name or os.environ.get(PROFILE_VARIABLE)
    folder = find_home() / ".config" / "steelgen" / "slurm"
    path = Path(wanted) if wanted else folder / "default.json"
    if wanted and not path.is_file() and os.sep not in wanted:
        path = folder / f"{wanted}.json"
    if wanted and not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.json"))) or "none"
        raise InputError(f"{wanted}: no such site profile, nor one of that name in {folder} (known: {known})")
    profile = load_config(path, SlurmProfile) if path.is_file() else SlurmProfile()
    values = {**config_to_json(profile), **{key: value for key, value in given.items() if value is not None}}
    return parse_config(values, SlurmProfile, origin="slurm options")


def write_job(job: Job, profile: SlurmProfile, folder: Path) -> Path:
    """Writes a job's script as <action>.sbatch into a folder and returns its path."""
    path = folder / f"{job.action}.sbatch"
    with new_file(path) as working:
        working.write_text(render_script(job, profile, Path.cwd()), encoding="utf-8")
        working.chmod(0o755)
    return path


def freeze_config(action: str, config: Section, output: Path) -> Path:
    """Writes a resolved config beside the output folder, so that a queued job does not see later edits of the file."""
    path = slurm_folder(output) / f"{action}.json"
    save_json(path, config_to_json(config))
    return path


def submit_job(job: Job, profile: SlurmProfile, after: str | None = None) -> str:
    """Writes a job's script, hands it to sbatch and notes it in jobs.json.

    Args:
        after: run only when this job has ended well; when it has not, the job is dropped.

    Returns:
        The job's id.

    Raises:
        InputError: if there is no Slurm, a job on the same output is still queued or running, or sbatch refuses it.
    """
    folder = slurm_folder(job.output)
    check_not_queued(job.output, job.action)
    script = write_job(job, profile, folder)
    command = ["sbatch", "--parsable"]
    if after:
        command += [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"]
    job_id = _run_slurm([*command, str(script)]).split(";")[0].strip()
    noted = {
        "job_id": job_id,
        "script": str(script),
        "shards": job.shards,
        "after": after,
        "submitted": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    save_json(folder / "jobs.json", {**submitted_jobs(job.output), job.action: noted})
    return job_id


class _Job(Record):
    job_id: str
    script: str
    shards: int = Field(1, ge=1, le=MAX_SHARDS)


class _Jobs(RootModel[dict[str, _Job]]):
    """jobs.json."""


def submitted_jobs(output: Path) -> dict[str, dict[str, Any]]:
    """What jobs.json notes of an output folder's last jobs, by action.

    Raises:
        InputError: if it is damaged.
    """
    path = slurm_folder(output) / "jobs.json"
    return load_record(path, _Jobs).model_dump() if path.is_file() else {}


def check_not_queued(output: Path, action: str) -> None:
    """Raises InputError if the last such job of an output folder is still queued or running."""
    noted = submitted_jobs(output).get(action)
    if noted and queue_state(noted["job_id"]):
        raise InputError(
            f"{output}: its {action} job {noted['job_id']} is still in the queue; wait for it or `scancel` it"
        )


def queue_state(job_id: str) -> str:
    """The states that squeue shows for a job and its array tasks, e.g. "RUNNING"; empty once it has left the queue."""
    if not shutil.which("squeue"):
        return ""
    found = subprocess.run(["squeue", "--noheader", "--jobs", job_id, "--format=%T"], capture_output=True, text=True)
    return ", ".join(sorted(set(found.stdout.split())))


def _run_slurm(command: Sequence[str]) -> str:
    if not shutil.which(command[0]):
        raise InputError(f"{command[0]}: not found; on a machine without Slurm run the command itself")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{command[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout
