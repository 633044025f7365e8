"""Shared code of the benchmarks: timing, medians, log lines, and saving of results with machine and versions."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

from steelgen.files import load_json, save_json
from steelgen.runs import describe_environment


def time_alternately(
    variants: dict[str, Callable[[], Any]], repeats: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Times every variant `repeats` times, A B C A B C …, after one warm-up each; returns seconds.

    Variants alternate, so that a slowdown of the machine affects all of them.

    Args:
        clock: time.process_time measures CPU time, independent of other load.
    """
    for run in variants.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, run in variants.items():
            start = clock()
            run()
            seconds[name].append(clock() - start)
    return seconds


def summarize(seconds: list[float]) -> dict[str, float]:
    """Median, minimum and maximum."""
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}


def save_results(path: Path, results: dict[str, Any], show: bool = True, run_dir: Path | None = None) -> None:
    """Writes results with machine, versions, command and date, and prints them if `show`.

    Args:
        run_dir: a training run among those that are gathered, whose machine is named instead of this one.
    """
    if run_dir is None:
        environment = {**describe_environment(), "cpu": _cpu_name()}
    else:
        environment = load_json(run_dir / "environment.json")
    environment |= {"command": [*_name_launcher(), *_drop_output(sys.argv)], "date": date.today().isoformat()}
    save_json(path, {"environment": environment, **results})
    if show:
        print(json.dumps(results, indent=2))


class LinePrinter:
    """Training observer that prints flushed lines."""

    def on_start(self, first_step: int, last_step: int) -> None:
        """See `TrainingObserver`."""
        print(f"steps {first_step} to {last_step}", flush=True)

    def on_step(self, step: int, values: dict[str, float]) -> None:
        """See `TrainingObserver`."""
        if values and step % 100 == 0:
            # Of several phases, each has its own.
            losses = [f"{name} {value:.4f}" for name, value in values.items() if name.split("_")[0] == "loss"]
            print(f"step {step}: {', '.join(losses[:2])}", flush=True)

    def on_event(self, message: str) -> None:
        """See `TrainingObserver`."""


def _name_launcher() -> list[str]:
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return ["python"]
    return f"python -m torch.distributed.run --standalone --nproc_per_node {os.environ['WORLD_SIZE']}".split()


def _drop_output(arguments: list[str]) -> list[str]:
    """Arguments without --out and its value, which readers of the results do not need."""
    if "--out" not in arguments:
        return arguments
    index = arguments.index("--out")
    return arguments[:index] + arguments[index + 2 :]


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
