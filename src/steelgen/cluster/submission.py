"""Submission of jobs to Slurm, and their record in jobs.json."""

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
    """Loads the site profile and applies the options of one command.

    Args:
        name: a file, or the name of one in ~/.config/steelgen/slurm; None uses $STEELGEN_SLURM_PROFILE, else the
            profile named default, else steelgen's defaults.
        given: fields to override; None keeps the profile's value.

    Raises:
        InputError: if there is no such profile or a value is out of range.
    """
    wanted = name or os.environ.get(PROFILE_VARIABLE)
    folder = find_home() / ".config" / "steelgen" / "slurm"
    path = Path(wanted) if wanted else folder / "default.json"
    if wanted and not path.is_file() and os.sep not in wanted:
        path = folder / f"{wanted}.json"
    if wanted and not path.is_file():
        known = ", ".join(sorted(file.stem for file in folder.glob("*.json"))) or "none"
        raise InputError(f"{wanted}: no such site profile, neither a file nor a name in {folder} (known: {known})")
    profile = load_config(path, SlurmProfile) if path.is_file() else SlurmProfile()
    values = {**config_to_json(profile), **{key: value for key, value in given.items() if value is not None}}
    return parse_config(values, SlurmProfile, origin="slurm options")


def write_job(job: Job, profile: SlurmProfile, folder: Path) -> Path:
    """Writes the script of a job as <action>.sbatch into a folder and returns its path."""
    path = folder / f"{job.action}.sbatch"
    with new_file(path) as working:
        working.write_text(render_script(job, profile, Path.cwd()), encoding="utf-8")
        working.chmod(0o755)
    return path


def freeze_config(action: str, config: Section, output: Path) -> Path:
    """Copies a resolved config beside the output folder, so that later edits do not affect a queued job."""
    path = slurm_folder(output) / f"{action}.json"
    save_json(path, config_to_json(config))
    return path


def submit_job(job: Job, profile: SlurmProfile, after: str | None = None) -> str:
    """Writes the script of a job, submits it with sbatch, records it in jobs.json and returns its id.

    Args:
        after: id of a job that must succeed first; if it fails, Slurm cancels this one.

    Raises:
        InputError: if Slurm is missing, a job for the same output is queued or running, or sbatch rejects the job.
    """
    folder = slurm_folder(job.output)
    check_not_queued(job.output, job.action)
    script = write_job(job, profile, folder)
    command = ["sbatch", "--parsable"]
    if after:
        command += [f"--dependency=afterok:{after}", "--kill-on-invalid-dep=yes"]
    job_id = _run_slurm([*command, str(script)]).split(";")[0].strip()
    record = {
        "job_id": job_id,
        "script": str(script),
        "shards": job.shards,
        "after": after,
        "submitted": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    save_json(folder / "jobs.json", {**submitted_jobs(job.output), job.action: record})
    return job_id


class _Job(Record):
    job_id: str
    script: str
    shards: int = Field(1, ge=1, le=MAX_SHARDS)


class _Jobs(RootModel[dict[str, _Job]]):
    """jobs.json."""


def submitted_jobs(output: Path) -> dict[str, dict[str, Any]]:
    """Reads the last job of each action from jobs.json; raises InputError if the file is damaged."""
    path = slurm_folder(output) / "jobs.json"
    return load_record(path, _Jobs).model_dump() if path.is_file() else {}


def check_not_queued(output: Path, action: str) -> None:
    """Raises InputError if the last job of this action for an output folder is queued or running."""
    job = submitted_jobs(output).get(action)
    if job and queue_state(job["job_id"]):
        raise InputError(f"{output}: {action} job {job['job_id']} is still in the queue; wait for it or `scancel` it")


def queue_state(job_id: str) -> str:
    """Returns the states of a job and its array tasks from squeue, e.g. "RUNNING"; empty if not in the queue."""
    if not shutil.which("squeue"):
        return ""
    found = subprocess.run(["squeue", "--noheader", "--jobs", job_id, "--format=%T"], capture_output=True, text=True)
    return ", ".join(sorted(set(found.stdout.split())))


def _run_slurm(command: Sequence[str]) -> str:
    if not shutil.which(command[0]):
        raise InputError(f"{command[0]}: not found; without Slurm, run the command directly")
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"{command[0]}: {done.stderr.strip() or f'exit code {done.returncode}'}")
    return done.stdout
