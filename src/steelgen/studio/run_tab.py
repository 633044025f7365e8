"""The tab to watch a run on while it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr
import numpy as np
from numpy.typing import NDArray

from steelgen.data.images import load_image
from steelgen.errors import InputError
from steelgen.pages import render
from steelgen.studio.pictures import Figure, build_figure, show_status
from steelgen.studio.watching import RunView, fingerprint, read_run

_EVERY_S = 5
_SHOWN = ("loss", "val_loss", "kid", "copies", "images_per_second")
_PREVIEWS = 4
"""The newest so many are shown."""


def build_run_tab(run: Path | None, tab: gr.Tab) -> None:
    """Adds the tab's content to the page that is being built.

    Args:
        run: the run folder that is shown at first.
        tab: the tab, which is read anew each time it is chosen.
    """
    seen = gr.State("")
    with gr.Row():
        folder = gr.Textbox(str(run or ""), label="Run folder", elem_id="run", scale=4, min_width=260)
        watch = gr.Button("Watch", elem_id="watch", variant="primary", min_width=90)
    status = gr.HTML(elem_id="run-status", elem_classes="studio-status")
    curves = gr.HTML(elem_id="curves", elem_classes="studio-cards")
    previews = gr.HTML(elem_id="previews", elem_classes="studio-cards")
    timer = gr.Timer(_EVERY_S)

    def look(folder: str, seen: str) -> Any:
        """Reads the run again where anything in it is new."""
        if not folder.strip():
            return "", "", seen, show_status("name the folder of a run that trains or has trained")
        path = Path(folder.strip()).expanduser()
        try:
            now = fingerprint(path)
            if now == seen:
                return gr.skip(), gr.skip(), seen, gr.skip()
            view = read_run(path)
            charts = "" if view.curves is None else _show_curves(view.curves)
            newest = [*view.copies[-1:], *view.previews[: -_PREVIEWS - 1 : -1]]
            pictures = render("studio_previews.html", figures=[_load_figure(path) for path in newest])
        except (InputError, OSError) as error:
            return "", "", "", show_status(str(error), bad=True)
        return charts, pictures, now, show_status(_describe(view))

    def look_anew(folder: str) -> Any:
        return look(folder, "")

    outputs = [curves, previews, seen, status]
    quiet: Any = {"show_progress": "hidden", "api_visibility": "private"}
    for event in (watch.click, folder.submit, tab.select):
        event(look_anew, folder, outputs, **quiet)
    timer.tick(look, [folder, seen], outputs, **quiet)


def _show_curves(curves: NDArray[np.uint8]) -> str:
    return render("studio_curves.html", figure=build_figure(curves, "by step", exact=True))


def _load_figure(path: Path) -> Figure:
    kind, _, step = path.stem.partition("-")
    text = f"{'drawn beside what it copies' if kind == 'copies' else 'preview'}, step {step.lstrip('0') or '0'}"
    return build_figure(load_image(path), text, exact=True)


def _describe(view: RunView) -> str:
    parts = [f"step {view.step:,}" + (f" of {view.last_step:,}" if view.last_step else "")]
    parts += [f"{name} {view.latest[name]:.4g}" for name in _SHOWN if name in view.latest]
    if view.copies:
        parts.append("it has begun to copy training images")
    if view.ended_by:
        parts.append(f"ended by {view.ended_by}")
    return " · ".join(parts)
