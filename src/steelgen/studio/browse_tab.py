"""The tab to look through a folder of pairs on, and to reject some."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from steelgen.data.folder import DatasetInfo, Pair
from steelgen.errors import InputError
from steelgen.pages import render
from steelgen.studio.browsing import Part, measure_classes, open_collection, set_rejected, show_pair
from steelgen.studio.pictures import build_figure, load_script, show_status

_PAGE = 24
"""Pairs shown at a time."""


def build_browse_tab(folders: list[Path], tab: gr.Tab) -> None:
    """Adds the tab's content to the page that is being built.

    Args:
        folders: that are offered; any other can be typed.
        tab: the tab, which is read anew each time it is chosen.
    """
    shown = gr.State([])
    with gr.Row():
        folder = gr.Dropdown(
            [str(path) for path in folders],
            value=str(folders[0]),
            label="Dataset or folder of samples",
            allow_custom_value=True,
            elem_id="folder",
            scale=4,
            min_width=260,
        )
        part = gr.Dropdown([], label="Part", elem_id="part", min_width=110)
        reload = gr.Button("Open", elem_id="open", variant="primary", min_width=90)
    with gr.Row():
        view = gr.Radio(["overlay", "image", "mask"], value="overlay", label="Show", elem_id="view", min_width=300)
        which = gr.Radio(["all", "kept", "rejected"], value="all", label="Pairs", elem_id="which", min_width=300)
        page = gr.Number(1, label="Page", precision=0, minimum=1, elem_id="page", min_width=90)
    status = gr.HTML(elem_id="browse-status", elem_classes="studio-status")
    figures = gr.HTML(elem_id="figures", elem_classes="studio-figures")
    cards = gr.HTML(js_on_load=load_script("cards.js"), elem_id="pairs", elem_classes="studio-cards")

    def look(folder: str | None, part: str | None, view: str, which: str, page: float | None) -> Any:
        try:
            collection = open_collection(Path(folder or "").expanduser())
            name = part if part in collection.parts else next(iter(collection.parts))
            chosen = collection.parts[name]
            pairs, rejects = _select(chosen, which), chosen.rejects
            last = max(1, -(-len(pairs) // _PAGE))
            number = max(1, min(int(page or 1), last))
            visible = pairs[(number - 1) * _PAGE : number * _PAGE]
            cards = [_show(pair, collection.info, view, pair.stem in rejects) for pair in visible]
            grid = render("studio_pairs.html", cards=cards)
            table = _describe(chosen, collection.info, rejects)
        except (InputError, OSError) as error:
            return gr.skip(), [], "", "", gr.skip(), show_status(str(error), bad=True)
        line = f"pairs: {len(pairs)}, page {number} of {last}" if pairs else "no such pairs"
        stems = [pair.stem for pair in visible]
        return gr.Dropdown(list(collection.parts), value=name), stems, grid, table, number, show_status(line)

    def reject(
        folder: str, part: str, view: str, which: str, page: float, stems: list[str], event: gr.EventData
    ) -> Any:
        try:
            chosen = open_collection(Path(folder).expanduser()).parts[part]
            stem = stems[int(event.number)]
            rejected = stem not in chosen.rejects
            set_rejected(chosen, stem, rejected)
        except (InputError, OSError) as error:
            return (*[gr.skip()] * 5, show_status(str(error), bad=True))
        except (KeyError, IndexError):
            return (*[gr.skip()] * 5, show_status("the folder has changed; open it again", bad=True))
        *found, _ = look(folder, part, view, which, page)
        return *found, show_status(f"{stem} is {'rejected' if rejected else 'taken back'}")

    inputs, outputs = [folder, part, view, which, page], [part, shown, cards, figures, page, status]
    quiet: Any = {"show_progress": "hidden", "api_visibility": "private"}
    for event in (reload.click, folder.input, part.input, view.input, which.input, page.submit, page.blur, tab.select):
        event(look, inputs, outputs, **quiet)
    cards.press(reject, [*inputs, shown], outputs, **quiet)


def _select(part: Part, which: str) -> list[Pair]:
    rejects = part.rejects
    if which == "all":
        return part.pairs
    return [pair for pair in part.pairs if (pair.stem in rejects) == (which == "rejected")]


def _describe(part: Part, info: DatasetInfo, rejects: frozenset[str]) -> str:
    kept = [pair for pair in part.pairs if pair.stem not in rejects]
    figures, measured = measure_classes(kept, info)
    counts = {"measured": measured, "kept": len(kept), "rejected": len(part.pairs) - len(kept)}
    return render("studio_classes.html", figures=figures, palette=info.palette, **counts)


def _show(pair: Pair, info: DatasetInfo, view: str, rejected: bool) -> dict[str, Any]:
    try:
        figure, problem = build_figure(show_pair(pair, info, view), pair.stem), ""
    except InputError as error:
        figure, problem = None, str(error)
    return {"figure": figure, "problem": problem, "rejected": rejected}
