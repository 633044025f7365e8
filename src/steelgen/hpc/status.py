"""How far a run is, from its files alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from steelgen.data.folder import list_images
from steelgen.errors import InputError
from steelgen.files import load_json
from steelgen.hpc.shards import Shard
from steelgen.hpc.submission import submitted_jobs
from steelgen.runs import RESULT_FILE
from steelgen.sampling.formats import load_layout, read_row


@dataclass(frozen=True)
class Part:
    """One line of a status: a training run or one shard of a sampling run."""

    name: str
    done: int
    wanted: int | None
    """None where the config gives no number of steps."""
    state: str
    """complete, partial or missing; of training finished, or when and why it stopped."""


def run_status(run: Path, shards: int | None = None) -> list[Part]:
    """The parts of a training run or a sampling run and how far each is.

    Args:
        run: the run folder or the sampling output folder.
        shards: shards of a sampling run; None takes the number that was submitted, else one.

    Raises:
        InputError: if the folder is neither.
    """
    if (run / "sampling.json").is_file():
        return _sampling_status(run, shards)
    if (run / "config.json").is_file():
        return [_training_status(run)]
    raise InputError(f"{run}: neither a training run (config.json) nor a sampling run (sampling.json)")


def drawn_indices(run: Path) -> set[int]:
    """The numbers of the images that a sampling run has finished."""
    folder = run / load_layout(run).samples
    paths = list_images(folder) if folder.is_dir() else []
    config = load_json(run / "sampling.json")["config"]
    if config.get("file_stems") == "source":
        return {read_row(path)["seed"] - config["seed"] for path in paths}
    return {int(path.stem) for path in paths if path.stem.isdigit()}


def _sampling_status(run: Path, shards: int | None) -> list[Part]:
    count = shards or submitted_jobs(run).get("sample", {}).get("shards", 1)
    total = load_json(run / "sampling.json")["config"]["num_samples"]
    drawn = drawn_indices(run)
    parts = []
    for number in range(1, count + 1):
        wanted = Shard(number, count).indices(total)
        done = sum(index in drawn for index in wanted)
        state = "complete" if done == len(wanted) else "partial" if done else "missing"
        parts.append(Part(f"shard {number}/{count}", done, len(wanted), state))
    gathered = (run / "metadata.jsonl").is_file()
    parts.append(Part("gathered", int(gathered), 1, "complete" if gathered else "missing"))
    return parts


def _training_status(run: Path) -> Part:
    wanted = load_json(run / "config.json")["train"]["max_steps"]
    if (run / RESULT_FILE).is_file():
        result = load_json(run / RESULT_FILE)
        ended = f"finished ({result['stopped_by']})" if result["finished"] else f"stopped by {result['stopped_by']}"
        return Part("training", result["global_step"], wanted, ended)
    steps = [int(path.name.removeprefix("step-")) for path in (run / "checkpoints").glob("step-*")]
    return Part("training", max(steps, default=0), wanted, "unfinished, newest checkpoint shown")
