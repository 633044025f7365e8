"""A run while it trains: its figures and pictures, from what lies in its folder."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steelgen.errors import InputError
from steelgen.runs import RESULT_FILE, load_result, load_settings
from steelgen.training.curves import load_points, plot_curves


@dataclass(frozen=True)
class RunView:
    """What is shown of a run."""

    step: int
    last_step: int | None
    """Where training ends by its config, if by a number of steps."""
    ended_by: str | None
    """Why it ended; None while it trains, or where it was killed."""
    latest: dict[str, float]
    """The last value of each figure."""
    curves: NDArray[np.uint8] | None
    """(H, W, 3) charts; None before the first figure."""
    previews: list[Path]
    """By step, the newest last."""
    copies: list[Path]
    """Drawn images beside the training images that they copy, by step; none as long as nothing was copied."""


def read_run(folder: Path) -> RunView:
    """Reads a run folder as it is at this moment.

    Raises:
        InputError: if it is no run folder.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: not a run folder (no config.json)")
    settings = load_settings(folder)
    metrics = folder / "metrics.jsonl"
    points = load_points(metrics) if metrics.is_file() else {}
    latest = {name: values[max(values)] for name, values in points.items() if name != "step"}
    return RunView(
        step=max((max(values) for values in points.values()), default=0),
        last_step=settings.train.max_steps,
        ended_by=load_result(folder).stopped_by if (folder / RESULT_FILE).is_file() else None,
        latest=latest,
        curves=plot_curves(points),
        previews=sorted((folder / "previews").glob("step-*.png")),
        copies=sorted((folder / "previews").glob("copies-*.png")),
    )


def fingerprint(folder: Path) -> str:
    """Changes whenever what `read_run` gives does, and costs no reading."""
    paths = [folder / name for name in ("config.json", "metrics.jsonl", RESULT_FILE)]
    paths += sorted((folder / "previews").glob("*.png"))
    seen = [(path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in paths if path.is_file()]
    return json.dumps([str(folder), seen])
