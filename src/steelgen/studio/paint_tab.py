"""The tab to paint on: a mask, micrographs drawn for it, and a folder for those worth keeping."""

from __future__ import annotations

import contextvars
import hashlib
import tempfile
from collections.abc import Iterator
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
from steelgen.studio.masks import decode_mask, encode_mask, lay_out, read_mask
from steelgen.studio.pictures import build_figure, encode_picture, load_script, show_status
from steelgen.studio.session import Cancelled, GeneratedPair, Studio

_MAX_VARIANTS = 8
_MAX_SEED = 2**31 - 1
_CANVAS = """
<div class="frame"><canvas class="board"></canvas><canvas class="cursor" tabindex="0" role="application"
 aria-label="Mask to paint. Arrow keys move, Space paints, 1 to 9 choose the class, left and right bracket the
 brush's width, F fills a region, A fills everything, U takes back."></canvas></div>
<div class="brushes" role="radiogroup" aria-label="class to paint"></div>
<div class="tools"><button type="button" data-tool="brush">Brush</button>
<button type="button" data-tool="fill">Fill region</button>
<label class="width">width <input type="range" class="radius" min="1" step="1"> <span class="diameter"></span></label>
<button type="button" class="undo">Undo</button><button type="button" class="redo">Redo</button>
<button type="button" class="all">Fill all</button></div>
<p class="hint">Keys on the canvas: arrows move (Shift: further), Space paints, 1–9 class, [ ] width, F fill, B brush,
 A all, U undo.</p><span class="said" aria-live="polite"></span>
"""


class Requests:
    """Which browser tabs wait for a drawing, so that one that is closed or changes its mind stops it."""

    def __init__(self) -> None:
        self._waiting: dict[str, Event] = {}

    def begin(self, session: str) -> Event:
        """A flag that says, once set, that nobody waits any more."""
        self._waiting[session] = Event()
        return self._waiting[session]

    def forget(self, session: str, flag: Event) -> None:
        """Takes a flag out again."""
        if self._waiting.get(session) is flag:
            del self._waiting[session]

    def cancel(self, request: gr.Request) -> None:
        """Stops what the tab of a request waits for."""
        if flag := self._waiting.pop(str(request.session_hash), None):
            flag.set()


def build_paint_tab(studio: Studio, requests: Requests) -> None:
    """Adds the tab's content to the page that is being built."""
    info, geometry = studio.info, studio.geometry
    archives = tempfile.TemporaryDirectory(prefix="steelgen-studio-")
    results, kept, taken, number = gr.State([]), gr.State({}), gr.State(None), gr.State(0)

    with gr.Row(equal_height=False):
        with gr.Column(scale=5, min_width=320):
            canvas = gr.HTML(
                "",
                html_template=_CANVAS,
                js_on_load=load_script("canvas.js"),
                elem_classes="studio-canvas",
                elem_id="canvas",
                classes=[
                    {"name": name, "color": list(color)}
                    for name, color in zip(info.class_names, info.palette, strict=True)
                ],
                size=geometry.image_size,
                store=f"{studio.path}-{geometry.image_size}",
            )
        with gr.Column(scale=4, min_width=300):
            with gr.Row():
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, maximum=_MAX_SEED, min_width=110)
                variants = gr.Slider(1, _MAX_VARIANTS, 2, step=1, label="Variants", min_width=160)
            guidance = gr.Slider(0, 5, 1.5, step=0.1, label="Guidance (higher: stricter to the mask)")
            with gr.Row():
                press = gr.Button("Draw", variant="primary", elem_id="draw", min_width=120)
                stop = gr.Button("Stop", elem_id="stop", min_width=80)
            status = gr.HTML(elem_id="paint-status", elem_classes="studio-status", min_height=56)
            with gr.Accordion("Masks that are there", open=True):
                with gr.Row():
                    if studio.sources:
                        source = gr.Dropdown(
                            studio.sources,
                            value=studio.sources[0],
                            label="Masks from",
                            show_label=False,
                            container=False,
                            elem_id="source",
                            min_width=190,
                        )
                        take = gr.Button("Take the next", elem_id="take", min_width=120)
                upload = gr.UploadButton(
                    "Load a mask from a file …", file_types=["image", ".tif", ".tiff"], elem_id="upload"
                )
            with gr.Accordion("Islands by numbers", open=False, elem_id="layout"):
                label = gr.Dropdown(
                    [(name, index) for index, name in enumerate(info.class_names)],
                    value=min(1, info.num_classes - 1),
                    label="Class",
                    elem_id="layout-class",
                )
                share = gr.Slider(0, 60, 20, step=1, label="Area share, %")
                longest = geometry.image_size / 2
                diameter = gr.Slider(2, longest, min(10, longest), step=1, label="Island diameter, px")
                aspect = gr.Slider(1, 6, 1.5, step=0.1, label="Aspect: length over width")
                scatter = gr.Button("Lay islands over the mask", elem_id="scatter")
    cards = gr.HTML(js_on_load=load_script("cards.js"), elem_classes="studio-cards", elem_id="results")
    with gr.Row():
        keep_all = gr.Button("Keep all", elem_id="keep-all", interactive=False, min_width=120)
        download = gr.DownloadButton("Download all as ZIP", elem_id="zip", interactive=False, min_width=160)

    def draw(
        text: str,
        source: SourceMask | None,
        seed: float | None,
        guidance: float,
        variants: int,
        request: gr.Request,
        progress: Any = gr.Progress(),  # noqa: B008, gradio finds it by its default
    ) -> Iterator[Any]:
        context = contextvars.copy_context()  # networks run in threads, which do not know whose progress it is
        session, pairs = str(request.session_hash), []
        flag = requests.begin(session)
        nothing = gr.skip()
        try:
            mask = _name_source(decode_mask(text, info, geometry.image_size), source)
            if seed is None or not 0 <= seed <= _MAX_SEED:
                raise InputError(f"seed: must be a number from 0 to {_MAX_SEED}")
            seeds = [int(seed) + index for index in range(max(1, min(int(variants), _MAX_VARIANTS)))]

            def report(done: int, total: int) -> None:
                context.run(progress, (done, total), desc="drawing", unit="steps")

            for drawn in studio.draw(mask, seeds, float(guidance), report, flag.is_set):
                pairs.append(drawn)
                line = show_status(f"{len(pairs)} of {len(seeds)} drawn")
                yield _show_results(studio, pairs, {}), pairs, {}, nothing, nothing, line
            line = show_status(f"drew {len(pairs)}; mask: {mask.source}")
            yield nothing, nothing, nothing, *hand_out(pairs, request), line
        except Cancelled:
            return
        except InputError as error:
            yield nothing, nothing, nothing, nothing, nothing, show_status(str(error), bad=True)
        finally:
            requests.forget(session, flag)

    def hand_out(pairs: list[GeneratedPair], request: gr.Request) -> tuple[Any, Any]:
        """The buttons for all pairs of a browser's tab, which has one ZIP at a time."""
        tab = hashlib.sha256(str(request.session_hash).encode()).hexdigest()  # what a browser sends may be any path
        path = Path(archives.name) / tab / "samples.zip"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(studio.pack(pairs))
        return gr.DownloadButton(value=str(path), interactive=True), gr.Button(interactive=True)

    def stop_sampling(pairs: list[GeneratedPair], request: gr.Request) -> Any:
        requests.cancel(request)
        buttons = hand_out(pairs, request) if pairs else (gr.skip(), gr.skip())
        return *buttons, show_status("stopped")

    def keep(pairs: list[GeneratedPair], kept: dict[int, str], chosen: list[int]) -> Any:
        try:
            new = [index for index in chosen if 0 <= index < len(pairs) and index not in kept]
            stems = studio.keep([pairs[index] for index in new]) if new else []
        except (InputError, OSError) as error:
            return gr.skip(), gr.skip(), show_status(str(error), bad=True)
        kept = {**kept, **dict(zip(new, stems, strict=True))}
        line = f"kept {', '.join(stems)} in {studio.out}" if stems else "nothing new to keep"
        return _show_results(studio, pairs, kept), kept, show_status(line)

    def keep_one(pairs: list[GeneratedPair], kept: dict[int, str], event: gr.EventData) -> Any:
        return keep(pairs, kept, [int(event.number)])

    def keep_them(pairs: list[GeneratedPair], kept: dict[int, str]) -> Any:
        return keep(pairs, kept, list(range(len(pairs))))

    def take_next(name: str, number: int) -> Any:
        try:
            found = studio.take_mask(name, number)
        except InputError as error:
            return gr.skip(), gr.skip(), number, show_status(str(error), bad=True)
        return encode_mask(found.mask), found, number + 1, show_status(f"mask: {found.source}")

    def load(path: str | None) -> Any:
        if path is None:
            return gr.skip(), gr.skip(), gr.skip()
        try:
            mask, note = read_mask(Path(path), info, geometry)
        except InputError as error:
            return gr.skip(), gr.skip(), show_status(str(error), bad=True)
        return encode_mask(mask), SourceMask(mask, None, Path(path).name), show_status(f"mask: {note}")

    def scatter_islands(text: str, label: int, share: float, diameter: float, aspect: float, number: int) -> Any:
        try:
            mask = decode_mask(text, info, geometry.image_size)
        except InputError as error:
            return gr.skip(), gr.skip(), number, show_status(str(error), bad=True)
        mask = lay_out(mask, label, share / 100, diameter, aspect, number)
        name = info.class_names[label]
        source = f"layout {number}: {share:g} % {name}, islands of {diameter:g} px, aspect {aspect:g}"
        return (
            encode_mask(mask),
            SourceMask(mask, None, source),
            number + 1,
            show_status(f"{source}; again for another"),
        )

    drawing = press.click(
        draw,
        [canvas, taken, seed, guidance, variants],
        [cards, results, kept, download, keep_all, status],
        concurrency_limit=1,
        concurrency_id="generator",
        show_progress_on=[status],
        api_visibility="private",
    )
    quiet: Any = {"show_progress": "hidden", "api_visibility": "private"}
    stop.click(stop_sampling, results, [download, keep_all, status], cancels=[drawing], queue=False, **quiet)
    cards.press(keep_one, [results, kept], [cards, kept, status], **quiet)
    keep_all.click(keep_them, [results, kept], [cards, kept, status], **quiet)
    upload.upload(load, upload, [canvas, taken, status], **quiet)
    scatter.click(
        scatter_islands, [canvas, label, share, diameter, aspect, number], [canvas, taken, number, status], **quiet
    )
    if studio.sources:
        take.click(take_next, [source, number], [canvas, taken, number, status], **quiet)


def _name_source(mask: np.ndarray, taken: SourceMask | None) -> SourceMask:
    """The mask with where it comes from; what was painted over has no micrograph any more."""
    if taken is None:
        return SourceMask(mask, None, "painted")
    if np.array_equal(mask, taken.mask):
        return taken
    return SourceMask(mask, None, f"painted over {taken.source}")


def _show_results(studio: Studio, pairs: list[GeneratedPair], kept: dict[int, str]) -> str:
    cards = [_describe(studio, drawn, kept.get(index)) for index, drawn in enumerate(pairs)]
    return render("studio_results.html", cards=cards, knows_training=studio.knows_training)


def _describe(studio: Studio, drawn: GeneratedPair, stem: str | None) -> dict[str, Any]:
    palette, nearest = studio.info.palette, drawn.nearest
    figures = [build_figure(color_mask(drawn.mask.mask, palette), "mask"), build_figure(drawn.image, "drawn")]
    if drawn.mask.image is not None:
        figures.append(build_figure(drawn.mask.image, "real, of this mask"))
    if nearest:
        figures.append(build_figure(nearest.image, f"nearest real: {nearest.stem}"))
    return {
        "figures": figures,
        "nearest": nearest,
        "seed": drawn.seed,
        "stem": stem,
        "image": encode_picture(Image.fromarray(drawn.image)),
        "mask": encode_picture(build_index_image(drawn.mask.mask, palette)),
    }
