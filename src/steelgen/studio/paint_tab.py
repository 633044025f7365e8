"""The Paint tab: a mask canvas, images generated for the mask, and saving of pairs."""

from __future__ import annotations

import contextvars
import hashlib
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from typing import Any

import gradio as gr
import numpy as np
from PIL import Image

from steelgen.data.folder import build_index_image
from steelgen.data.palette import color_mask
from steelgen.errors import InputError
from steelgen.pages import render
from steelgen.sampling.masks import SourceMask
from steelgen.studio.masks import decode_mask, encode_mask, place_random_islands, read_mask
from steelgen.studio.pictures import QUIET, build_figure, encode_picture, load_script, show_status
from steelgen.studio.session import Cancelled, GeneratedPair, Studio

_MAX_VARIANTS = 8
_MAX_SEED = 2**31 - 1
_CANVAS = """
<div class="frame"><canvas class="board"></canvas><canvas class="cursor" tabindex="0" role="application"
 aria-label="mask canvas" aria-describedby="canvas-keys"></canvas></div>
<div class="brushes" role="radiogroup" aria-label="class to paint"></div>
<div class="tools"><button type="button" data-tool="brush">Brush</button>
<button type="button" data-tool="fill">Fill region</button>
<label class="width">Width <input type="range" class="radius" min="1" step="1"> <span class="diameter"></span></label>
<button type="button" class="undo">Undo</button><button type="button" class="redo">Redo</button>
<button type="button" class="all">Fill all</button></div>
<p class="hint" id="canvas-keys">Keyboard: arrow keys move (Shift: faster), Space paints, 1–9 select a class,
 [ ] change the width, B brush, F fill region, A fill all, U undo.</p><span class="said" aria-live="polite"></span>
"""


class Requests:
    """Running requests by browser tab, so that Stop or closing the tab cancels them."""

    def __init__(self) -> None:
        self._running: dict[str, Event] = {}

    @contextmanager
    def track(self, request: gr.Request) -> Iterator[Event]:
        """Registers a request; the event is set when it is cancelled."""
        session = str(request.session_hash)
        cancelled = self._running[session] = Event()
        try:
            yield cancelled
        finally:
            if self._running.get(session) is cancelled:
                del self._running[session]

    def cancel(self, request: gr.Request) -> None:
        """Cancels the running request of the same browser tab."""
        if cancelled := self._running.pop(str(request.session_hash), None):
            cancelled.set()


def build_paint_tab(studio: Studio, requests: Requests) -> None:
    """Adds the content of the tab to the page."""
    info, size = studio.info, studio.geometry.image_size
    archives = tempfile.TemporaryDirectory(prefix="steelgen-studio-")
    results, saved, loaded, mask_number = gr.State([]), gr.State({}), gr.State(None), gr.State(0)

    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            colors = zip(info.class_names, info.palette, strict=True)
            canvas = gr.HTML(
                "",
                html_template=_CANVAS,
                js_on_load=load_script("canvas.js"),
                elem_classes="studio-canvas",
                elem_id="canvas",
                classes=[{"name": name, "color": list(color)} for name, color in colors],
                size=size,
                store=f"{studio.path}-{size}",
            )
        with gr.Column(scale=4, min_width=300):
            with gr.Row():
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=_MAX_SEED, min_width=110)
                variants = gr.Slider(1, _MAX_VARIANTS, 2, step=1, label="Variants", min_width=160)
            guidance = gr.Slider(0, 5, 2.0, step=0.1, label="Guidance (higher: closer to the mask)")
            with gr.Row():
                start = gr.Button("Generate", variant="primary", elem_id="generate", min_width=120)
                stop = gr.Button("Stop", elem_id="stop", min_width=80)
            status = gr.HTML(elem_id="paint-status", elem_classes="studio-status", min_height=56)
            with gr.Accordion("Load a mask", open=True):
                if studio.sources:
                    plain: Any = {"show_label": False, "container": False, "min_width": 190}
                    with gr.Row():
                        source = gr.Dropdown(list(studio.sources), label="Mask source", elem_id="source", **plain)
                        load_next = gr.Button("Load next", elem_id="load-next", min_width=120)
                upload = gr.UploadButton("Upload a file…", file_types=["image", ".tif", ".tiff"], elem_id="upload")
            with gr.Accordion("Random islands", open=False, elem_id="islands"):
                label = gr.Dropdown(
                    [(name, index) for index, name in enumerate(info.class_names)],
                    value=min(1, info.num_classes - 1),
                    label="Class",
                    elem_id="islands-class",
                )
                percent = gr.Slider(0, 60, 20, step=1, label="Phase fraction (%)")
                diameter = gr.Slider(2, size / 2, min(10, size / 2), step=1, label="Mean diameter (px)")
                aspect = gr.Slider(1, 6, 1.5, step=0.1, label="Aspect ratio (length / width)")
                place = gr.Button("Place islands", elem_id="place")
    cards = gr.HTML(js_on_load=load_script("cards.js"), elem_classes="studio-cards", elem_id="results")
    with gr.Row():
        save_all = gr.Button("Save all", elem_id="save-all", interactive=False, min_width=120)
        download = gr.DownloadButton("Download all (ZIP)", elem_id="zip", interactive=False, min_width=160)

    def show_error(error: Exception) -> dict[Any, Any]:
        return {status: show_status(str(error), bad=True)}

    def show_mask(mask: SourceMask, note: str) -> dict[Any, Any]:
        return {canvas: encode_mask(mask.mask), loaded: mask, status: show_status(f"mask: {note}")}

    def generate(
        text: str,
        loaded: SourceMask | None,
        seed: float | None,
        guidance: float,
        variants: int,
        request: gr.Request,
        progress: Any = gr.Progress(),  # noqa: B008, gradio looks for this default
    ) -> Iterator[Any]:
        context = contextvars.copy_context()  # networks run in threads that do not know the event of `progress`
        pairs: list[GeneratedPair] = []

        def report(done: int, total: int) -> None:
            context.run(progress, (done, total), desc="generating", unit="steps")

        try:
            mask = _describe_source(decode_mask(text, info, size), loaded)
            if seed is None or not 0 <= seed <= _MAX_SEED:
                raise InputError(f"seed: must be a number from 0 to {_MAX_SEED}")
            seeds = [int(seed) + index for index in range(max(1, min(int(variants), _MAX_VARIANTS)))]
            with requests.track(request) as cancelled:
                for pair in studio.generate(mask, seeds, float(guidance), report, cancelled.is_set):
                    pairs.append(pair)
                    line = f"{len(pairs)} of {len(seeds)} images generated"
                    yield {cards: _render(studio, pairs, {}), results: pairs, saved: {}, status: show_status(line)}
            yield {**enable_buttons(pairs, request), status: show_status(f"{line}; mask: {mask.source}")}
        except Cancelled:
            return
        except InputError as error:
            yield show_error(error)

    def enable_buttons(pairs: list[GeneratedPair], request: gr.Request) -> dict[Any, Any]:
        """Writes the ZIP of a browser tab and enables the buttons below the results."""
        tab = hashlib.sha256(str(request.session_hash).encode()).hexdigest()  # a browser could send any path
        path = Path(archives.name) / tab / "samples.zip"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(studio.build_zip(pairs))
        return {download: gr.DownloadButton(value=str(path), interactive=True), save_all: gr.Button(interactive=True)}

    def cancel(pairs: list[GeneratedPair], request: gr.Request) -> Any:
        requests.cancel(request)
        return {**(enable_buttons(pairs, request) if pairs else {}), status: show_status("stopped")}

    def save(pairs: list[GeneratedPair], stems: dict[int, str], chosen: Iterable[int]) -> Any:
        new = [index for index in chosen if 0 <= index < len(pairs) and index not in stems]
        if not new:
            return {status: show_status("no unsaved pairs")}
        try:
            added = studio.save([pairs[index] for index in new])
        except (InputError, OSError) as error:
            return show_error(error)
        stems = {**stems, **dict(zip(new, added, strict=True))}
        line = show_status(f"saved {', '.join(added)} to {studio.out}")
        return {cards: _render(studio, pairs, stems), saved: stems, status: line}

    def save_one(pairs: list[GeneratedPair], stems: dict[int, str], event: gr.EventData) -> Any:
        return save(pairs, stems, [int(event.number)])

    def show_next(name: str, number: int) -> Any:
        try:
            found = studio.get_mask(name, number)
        except InputError as error:
            return show_error(error)
        return {**show_mask(found, found.source), mask_number: number + 1}

    def show_upload(path: str) -> Any:
        try:
            mask, note = read_mask(Path(path), info, studio.geometry)
        except InputError as error:
            return show_error(error)
        return show_mask(SourceMask(mask, None, Path(path).name), note)

    def show_islands(text: str, label: int, percent: float, diameter: float, aspect: float, number: int) -> Any:
        try:
            mask = decode_mask(text, info, size)
        except InputError as error:
            return show_error(error)
        mask = place_random_islands(mask, label, percent / 100, diameter, aspect, number)
        name = info.class_names[label]
        source = f"layout {number} ({percent:g} % {name}, mean diameter {diameter:g} px, aspect ratio {aspect:g})"
        return {**show_mask(SourceMask(mask, None, source), source), mask_number: number + 1}

    generating = start.click(
        generate,
        [canvas, loaded, seed, guidance, variants],
        [cards, results, saved, download, save_all, status],
        concurrency_limit=1,
        concurrency_id="generator",
        show_progress_on=[status],
        api_visibility="private",
    )
    stop.click(cancel, results, [download, save_all, status], cancels=[generating], queue=False, **QUIET)
    inputs, outputs = [results, saved], [cards, saved, status]
    cards.press(save_one, inputs, outputs, **QUIET)
    save_all.click(lambda pairs, stems: save(pairs, stems, range(len(pairs))), inputs, outputs, **QUIET)
    upload.upload(show_upload, upload, [canvas, loaded, status], **QUIET)
    shown = [canvas, loaded, mask_number, status]
    place.click(show_islands, [canvas, label, percent, diameter, aspect, mask_number], shown, **QUIET)
    if studio.sources:
        load_next.click(show_next, [source, mask_number], shown, **QUIET)


def _describe_source(mask: np.ndarray, loaded: SourceMask | None) -> SourceMask:
    """Returns the mask with its source; a mask that was painted over no longer has a micrograph."""
    if loaded is None:
        return SourceMask(mask, None, "painted")
    return loaded if np.array_equal(mask, loaded.mask) else SourceMask(mask, None, f"painted over {loaded.source}")


def _render(studio: Studio, pairs: list[GeneratedPair], stems: dict[int, str]) -> str:
    cards = [_describe(studio, pair, stems.get(index)) for index, pair in enumerate(pairs)]
    return render("studio_results.html", cards=cards, has_dataset=studio.has_dataset)


def _describe(studio: Studio, pair: GeneratedPair, stem: str | None) -> dict[str, Any]:
    palette, nearest = studio.info.palette, pair.nearest
    figures = [build_figure(color_mask(pair.mask.mask, palette), "mask"), build_figure(pair.image, "generated")]
    if pair.mask.image is not None:
        figures.append(build_figure(pair.mask.image, "real image"))
    if nearest:
        figures.append(build_figure(nearest.image, f"nearest crop: {nearest.stem}"))
    return {
        "figures": figures,
        "nearest": nearest,
        "seed": pair.seed,
        "stem": stem,
        "image": encode_picture(Image.fromarray(pair.image)),
        "mask": encode_picture(build_index_image(pair.mask.mask, palette)),
    }
