"""The Run tab: metrics and previews of a run folder during training."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from numpy.typing import NDArray

from steelgen.data.images import load_image
from steelgen.errors import InputError
from steelgen.pages import render
from steelgen.runs import RESULT_FILE, load_result, load_settings
from steelgen.studio.pictures import QUIET, Figure, build_figure, show_status
from steelgen.training.curves import load_points, plot_curves

_EVERY_S = 5
_SHOWN = ("loss", "val_loss", "kid", "copies", "images_per_second")
_NUM_PREVIEWS = 4


@dataclass(frozen=True)
class RunView:
    """The state of a run."""

    step: int
    max_steps: int | None
    """Number of steps of the run, if its config limits them."""
    stopped_by: str | None
    """Reason for the end of training; None while it runs, or if it was killed."""
    latest: dict[str, float]
    """Latest value of each metric."""
    curves: NDArray[np.uint8] | None
    """(H, W, 3) charts; None before the first metric."""
    previews: list[Path]
    """Previews in order of steps."""
    copies: list[Path]
    """Generated images next to the training images they copy, in order of steps; empty without copies."""


def read_run(folder: Path) -> RunView:
    """Reads the current state of a run folder.

    Raises:
        InputError: if it is not a run folder.
    """
    if not (folder / "config.json").is_file():
        raise InputError(f"{folder}: not a run folder (no config.json)")
    max_steps = load_settings(folder).train.max_steps
    metrics = folder / "metrics.jsonl"
    points = load_points(metrics) if metrics.is_file() else {}
    return RunView(
        step=max((max(values) for values in points.values()), default=0),
        max_steps=max_steps,
        stopped_by=load_result(folder).stopped_by if (folder / RESULT_FILE).is_file() else None,
        latest={name: values[max(values)] for name, values in points.items() if name != "step"},
        curves=plot_curves(points),
        previews=sorted((folder / "previews").glob("step-*.png")),
        copies=sorted((folder / "previews").glob("copies-*.png")),
    )


def fingerprint(folder: Path) -> str:
    """Returns a text that changes with the result of `read_run`, without reading the files."""
    paths = [folder / name for name in ("config.json", "metrics.jsonl", RESULT_FILE)]
    paths += sorted((folder / "previews").glob("*.png"))
    seen = [(path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in paths if path.is_file()]
    return json.dumps([str(folder), seen])


def build_run_tab(run: Path | None, tab: gr.Tab) -> None:
    """Adds the content of the tab to the page.

    Args:
        run: run folder to show first.
        tab: the tab; selecting it reloads its content.
    """
    seen = gr.State("")
    with gr.Row():
        folder = gr.Textbox(str(run or ""), label="Run folder", elem_id="run", scale=4, min_width=260)
        watch = gr.Button("Watch", elem_id="watch", variant="primary", min_width=90)
    status = gr.HTML(elem_id="run-status", elem_classes="studio-status")
    curves = gr.HTML(elem_id="curves", elem_classes="studio-cards")
    previews = gr.HTML(elem_id="previews", elem_classes="studio-cards")
    timer = gr.Timer(_EVERY_S)

    def update(folder: str, before: str) -> Any:
        if not folder.strip():
            return {curves: "", previews: "", status: show_status("enter a run folder")}
        path = Path(folder.strip()).expanduser()
        try:
            now = fingerprint(path)
            if now == before:
                return {seen: now}
            view = read_run(path)
            charts = ""
            if view.curves is not None:
                charts = render("studio_curves.html", figure=build_figure(view.curves, "training curves", exact=True))
            newest = [*view.copies[-1:], *view.previews[: -_NUM_PREVIEWS - 1 : -1]]
            pictures = render("studio_previews.html", figures=[_load_figure(path) for path in newest])
        except (InputError, OSError) as error:
            return {curves: "", previews: "", seen: "", status: show_status(str(error), bad=True)}
        return {curves: charts, previews: pictures, seen: now, status: show_status(_describe(view))}

    outputs = [curves, previews, seen, status]
    for event in (watch.click, folder.submit, tab.select):
        event(lambda folder: update(folder, ""), folder, outputs, trigger_mode="always_last", **QUIET)
    timer.tick(update, [folder, seen], outputs, **QUIET)


def _load_figure(path: Path) -> Figure:
    kind, _, step = path.stem.partition("-")
    text = "generated images and the training images they copy" if kind == "copies" else "preview"
    return build_figure(load_image(path), f"{text}, step {step.lstrip('0') or '0'}", exact=True)


def _describe(view: RunView) -> str:
    parts = [f"step {view.step:,}" + (f" of {view.max_steps:,}" if view.max_steps else "")]
    parts += [f"{name} {view.latest[name]:.4g}" for name in _SHOWN if name in view.latest]
    if view.copies:
        parts.append("generated images copy training images")
    if view.stopped_by:
        parts.append(f"stopped by {view.stopped_by}")
    return " · ".join(parts)
