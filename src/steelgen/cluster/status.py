"""How far a run is, from its files alone."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from steelgen.cluster.submission import submitted_jobs
from steelgen.config.base import parse_config
from steelgen.config.utility import UtilityConfig
from steelgen.data.folder import list_images
from steelgen.errors import InputError
from steelgen.evaluation.utility.cells import cell_path, list_cells
from steelgen.evaluation.utility.results import RESULT_FILE as UTILITY_FILE
from steelgen.evaluation.utility.results import STUDY_FILE, load_study_start
from steelgen.runs import RESULT_FILE, load_result, load_settings
from steelgen.sampling.formats import load_layout, load_sampling, read_row
from steelgen.shards import Shard


@dataclass(frozen=True)
class Part:
    """One line of a status: a training run, one shard of an array, one code of a utility study."""

    name: str
    done: int
    wanted: int | None
    """None where the config gives no number of steps."""
    state: str
    """complete, partial or missing; of training finished, or when and why it stopped."""


def run_status(run: Path, shards: int | None = None) -> list[Part]:
    """The parts of a training run, a sampling run or a utility study and how far each is.

    Args:
        run: the run folder or the output folder.
        shards: shards of a sampling run or a study; None takes the number that was submitted, else one.

    Raises:
        InputError: if the folder is neither.
    """
    if (run / "sampling.json").is_file():
        return _sampling_status(run, shards)
    if (run / STUDY_FILE).is_file():
        return _study_status(run, shards)
    if (run / "config.json").is_file():
        return [_training_status(run)]
    raise InputError(
        f"{run}: neither a training run (config.json) nor a sampling run (sampling.json) nor a utility study "
        f"({STUDY_FILE})"
    )


def finished_indices(run: Path) -> set[int]:
    """The numbers of the images that a sampling run has finished."""
    folder = run / load_layout(run).samples
    paths = list_images(folder) if folder.is_dir() else []
    config = load_sampling(run).config
    if config.file_stems == "source":
        return {read_row(path)["seed"] - config.seed for path in paths}
    return {int(path.stem) for path in paths if path.stem.isdecimal()}


def _sampling_status(run: Path, shards: int | None) -> list[Part]:
    count = shards or submitted_jobs(run).get("sample", {}).get("shards", 1)
    total = load_sampling(run).config.num_samples
    drawn = finished_indices(run)
    gathered = (run / "metadata.jsonl").is_file()
    return [*_shard_parts(drawn, total, count), _build_part("gathered", int(gathered), 1)]


def _study_status(run: Path, shards: int | None) -> list[Part]:
    """One part a code and architecture, whose cells are its seeds; then the shards, where there are several."""
    count = shards or submitted_jobs(run).get("utility", {}).get("shards", 1)
    config = parse_config(load_study_start(run).config, UtilityConfig, origin=str(run / STUDY_FILE))
    cells = list_cells(config)
    done = {index for index, cell in enumerate(cells) if cell_path(run, cell).is_file()}
    parts = []
    for code in config.codes:
        for architecture in config.architectures:
            wanted = {
                index for index, cell in enumerate(cells) if (cell.code.text, cell.architecture) == (code, architecture)
            }
            parts.append(_build_part(f"{code} {architecture}", len(wanted & done), len(wanted)))
    gathered = (run / UTILITY_FILE).is_file()
    return [
        *parts,
        *(_shard_parts(done, len(cells), count) if count > 1 else []),
        _build_part("gathered", int(gathered), 1),
    ]


def _shard_parts(done: Set[int], total: int, count: int) -> list[Part]:
    parts = []
    for number in range(1, count + 1):
        wanted = Shard(number, count).indices(total)
        parts.append(_build_part(f"shard {number}/{count}", sum(index in done for index in wanted), len(wanted)))
    return parts


def _build_part(name: str, done: int, wanted: int) -> Part:
    return Part(name, done, wanted, "complete" if done == wanted else "partial" if done else "missing")


def _training_status(run: Path) -> Part:
    wanted = load_settings(run).train.max_steps
    if (run / RESULT_FILE).is_file():
        result = load_result(run)
        ended = f"finished ({result.stopped_by})" if result.finished else f"stopped by {result.stopped_by}"
        return Part("training", result.global_step, wanted, ended)
    steps = [int(path.name[5:]) for path in (run / "checkpoints").glob("step-*") if path.name[5:].isdecimal()]
    return Part("training", max(steps, default=0), wanted, "unfinished, newest checkpoint shown")
