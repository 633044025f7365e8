"""Progress of a run, read from its files."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from pathlib import Path

from steelgen.cluster.submission import submitted_jobs
from steelgen.config.base import parse_config
from steelgen.config.studies import choose_study
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
    """A line of the status: a training run, a shard of an array or a code of a utility study."""

    name: str
    done: int
    wanted: int | None
    """None if the config sets no number of steps."""
    state: str
    """complete, partial or missing; for training whether it has finished or why it stopped."""


def run_status(run: Path, shards: int | None = None) -> list[Part]:
    """Lists the progress of a training run, a sampling run or a utility study.

    Args:
        run: the run folder or the output folder.
        shards: shards of a sampling run or a study; None uses the submitted number, or 1.

    Raises:
        InputError: if the folder is none of these.
    """
    if (run / "sampling.json").is_file():
        return _sampling_status(run, shards)
    if (run / STUDY_FILE).is_file():
        return _study_status(run, shards)
    if (run / "config.json").is_file():
        return [_training_status(run)]
    raise InputError(
        f"{run}: contains no training run (config.json), sampling run (sampling.json) or utility study ({STUDY_FILE})"
    )


def finished_indices(run: Path) -> set[int]:
    """Returns the indices of the images that a sampling run has finished."""
    folder = run / load_layout(run).samples
    paths = list_images(folder) if folder.is_dir() else []
    config = load_sampling(run).config
    if config.file_stems == "source":
        return {read_row(path)["seed"] - config.seed for path in paths}
    return {int(path.stem) for path in paths if path.stem.isdecimal()}


def _sampling_status(run: Path, shards: int | None) -> list[Part]:
    count = shards or submitted_jobs(run).get("sample", {}).get("shards", 1)
    parts = _shard_parts(finished_indices(run), load_sampling(run).config.num_samples, count)
    return [*parts, _build_part("gathered", (run / "metadata.jsonl").is_file(), 1)]


def _study_status(run: Path, shards: int | None) -> list[Part]:
    """One part per code and architecture, which counts its seeds; then the shards if there are several."""
    count = shards or submitted_jobs(run).get("utility", {}).get("shards", 1)
    start = load_study_start(run)
    origin = str(run / STUDY_FILE)
    config = parse_config(start.config, choose_study(start.config, origin), origin=origin)
    cells = list_cells(config, start.folds)
    done = {index for index, cell in enumerate(cells) if cell_path(run, cell).is_file()}
    members: dict[str, set[int]] = {}
    for index, cell in enumerate(cells):
        members.setdefault(f"{cell.code.text} {cell.architecture}", set()).add(index)
    parts = [_build_part(name, len(wanted & done), len(wanted)) for name, wanted in members.items()]
    if count > 1:
        parts += _shard_parts(done, len(cells), count)
    return [*parts, _build_part("gathered", (run / UTILITY_FILE).is_file(), 1)]


def _shard_parts(done: Set[int], total: int, count: int) -> list[Part]:
    parts = []
    for shard in (Shard(number, count) for number in range(1, count + 1)):
        wanted = shard.indices(total)
        parts.append(_build_part(f"shard {shard}", sum(index in done for index in wanted), len(wanted)))
    return parts


def _build_part(name: str, done: int, wanted: int) -> Part:
    return Part(name, int(done), wanted, "complete" if done == wanted else "partial" if done else "missing")


def _training_status(run: Path) -> Part:
    wanted = load_settings(run).train.max_steps
    if (run / RESULT_FILE).is_file():
        result = load_result(run)
        ended = f"finished ({result.stopped_by})" if result.finished else f"stopped by {result.stopped_by}"
        return Part("training", result.global_step, wanted, ended)
    steps = [int(path.name[5:]) for path in (run / "checkpoints").glob("step-*") if path.name[5:].isdecimal()]
    return Part("training", max(steps, default=0), wanted, "unfinished (latest checkpoint)")
