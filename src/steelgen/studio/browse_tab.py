"""The Browse tab: pairs of a folder, class statistics, and rejection of pairs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import gradio as gr
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from steelgen.data.folder import (
    DatasetInfo,
    Pair,
    find_images,
    list_pairs,
    list_samples,
    list_splits,
    load_dataset_info,
    load_pair,
)
from steelgen.data.islands import compute_island_areas
from steelgen.data.palette import color_mask
from steelgen.data.rejects import load_rejects, save_rejects
from steelgen.data.sheets import build_thumbnail
from steelgen.errors import InputError
from steelgen.pages import render
from steelgen.sampling.formats import LAYOUTS
from steelgen.studio.pictures import QUIET, build_figure, load_script, show_status

_PAGE = 24
"""Pairs per page."""
_EDGE = 320
"""Maximum edge of thumbnails, px."""
_MAX_MEASURED = 100
"""Maximum number of masks that statistics are computed from, evenly spaced over a folder."""
_SAMPLES = LAYOUTS["folders"].samples


@dataclass(frozen=True)
class Subset:
    """Pairs that share a rejects.txt: a split of a dataset folder, or the samples of a samples folder."""

    pairs: list[Pair]
    images: Path
    """Folder of the images, possibly with numbered subfolders."""

    @property
    def folder(self) -> Path:
        """Folder of the rejects.txt: next to the folder of images, or a plain folder of images itself."""
        return self.images.parent if self.images.name in ("images", _SAMPLES) else self.images

    @property
    def rejects(self) -> frozenset[str]:
        """Stems of the rejected pairs."""
        return load_rejects(self.images)


@dataclass(frozen=True)
class Collection:
    """A dataset folder, a samples folder, or a plain folder of images."""

    info: DatasetInfo
    subsets: dict[str, Subset]


class ClassStatistics(NamedTuple):
    """Statistics of one class over the masks of a subset."""

    name: str
    share: float
    """Area share among the pixels that are not ignored, in [0, 1]."""
    islands: int
    diameter: float
    """Median equivalent circle diameter of the islands, px; NaN without islands."""


def open_collection(folder: Path) -> Collection:
    """Lists the pairs of a folder without decoding images.

    Raises:
        InputError: if it contains no pairs, or images and masks do not match.
    """
    if (folder / _SAMPLES).is_dir():
        pairs = list_samples(folder)
        if not pairs:
            raise InputError(f"{folder / _SAMPLES}: contains no images yet")
        return Collection(load_dataset_info(folder), {_SAMPLES: Subset(pairs, folder / _SAMPLES)})
    info = load_dataset_info(folder)
    subsets = {
        split: Subset(list_pairs(folder, split, with_rejects=True), find_images(folder, split))
        for split in list_splits(folder)
    }
    if not subsets:
        raise InputError(f"{folder}: contains no train/, val/ or test/ with images/")
    return Collection(info, subsets)


def set_rejected(subset: Subset, stem: str, rejected: bool) -> None:
    """Adds a stem to the rejects.txt of a subset, or removes it.

    Raises:
        InputError: if there is no such pair.
    """
    if all(pair.stem != stem for pair in subset.pairs):
        raise InputError(f"{subset.folder}: contains no pair {stem!r}")
    before = subset.rejects
    save_rejects(subset.folder, before | {stem} if rejected else before - {stem})


def show_pair(pair: Pair, info: DatasetInfo, view: str) -> NDArray[np.uint8]:
    """Renders a thumbnail of a pair.

    Args:
        view: overlay, image or mask.

    Returns:
        (h, w, 3) uint8 RGB with a maximum edge of 320 px.

    Raises:
        InputError: if the pair cannot be read.
    """
    image, mask = load_pair(pair, info if pair.mask else info.model_copy(update={"class_names": [], "palette": []}))
    if view != "mask":
        return build_thumbnail(image, mask, info.palette if view == "overlay" else [], _EDGE)
    small = Image.fromarray(mask)
    small.thumbnail((_EDGE, _EDGE), Image.Resampling.NEAREST)
    return color_mask(np.asarray(small), info.palette)


def measure_classes(pairs: Sequence[Pair], info: DatasetInfo) -> tuple[list[ClassStatistics], int]:
    """Measures each class over at most 100 masks; also returns the number of masks measured.

    Raises:
        InputError: if a mask cannot be read.
    """
    masks = [(pair, pair.mask) for pair in pairs if pair.mask]
    chosen = masks[:: max(1, -(-len(masks) // _MAX_MEASURED))]
    text = info.model_dump_json()
    measured = [_measure(pair, path.stat().st_mtime_ns, text) for pair, path in chosen]
    pixels = np.sum([counts for counts, _ in measured], axis=0) if measured else np.zeros(info.num_classes)
    statistics = []
    for label, name in enumerate(info.class_names):
        areas = np.concatenate([islands[label] for _, islands in measured] or [np.zeros(0, np.int64)])
        diameter = float(np.sqrt(4 / np.pi * np.median(areas))) if len(areas) else np.nan
        statistics.append(ClassStatistics(name, float(pixels[label] / max(pixels.sum(), 1)), len(areas), diameter))
    return statistics, len(chosen)


@lru_cache(maxsize=4096)
def _measure(pair: Pair, modified: int, info: str) -> tuple[NDArray[np.int64], list[NDArray[np.int64]]]:
    """Measures pixels and island areas per class; a new modification time invalidates the cached result."""
    classes = DatasetInfo.model_validate_json(info)
    _, mask = load_pair(pair, classes)
    counts = np.bincount(mask.ravel(), minlength=256)[: classes.num_classes]
    return counts, [compute_island_areas(mask == label) for label in range(classes.num_classes)]


def build_browse_tab(folders: list[Path], tab: gr.Tab) -> None:
    """Adds the content of the tab to the page.

    Args:
        folders: folders to offer; any other can be typed.
        tab: the tab; selecting it reloads its content.
    """
    stems = gr.State([])
    with gr.Row():
        folder = gr.Dropdown(
            [str(path) for path in folders],
            value=str(folders[0]),
            label="Dataset folder or samples folder",
            allow_custom_value=True,
            elem_id="folder",
            scale=4,
            min_width=260,
        )
        subset = gr.Dropdown([], label="Split", elem_id="subset", min_width=110)
        reload = gr.Button("Open", elem_id="open", variant="primary", min_width=90)
    with gr.Row():
        view = gr.Radio(["overlay", "image", "mask"], value="overlay", label="View", elem_id="view", min_width=300)
        which = gr.Radio(["all", "kept", "rejected"], value="all", label="Pairs", elem_id="which", min_width=300)
        page = gr.Number(1, label="Page", precision=0, minimum=1, elem_id="page", min_width=90)
    status = gr.HTML(elem_id="browse-status", elem_classes="studio-status")
    classes = gr.HTML(elem_id="classes", elem_classes="studio-classes")
    cards = gr.HTML(js_on_load=load_script("cards.js"), elem_id="pairs", elem_classes="studio-cards")

    def show(folder: str | None, name: str | None, view: str, which: str, number: float | None) -> dict[Any, Any]:
        try:
            collection = open_collection(Path(folder or "").expanduser())
            name = name if name in collection.subsets else next(iter(collection.subsets))
            chosen, info = collection.subsets[name], collection.info
            rejects = chosen.rejects
            pairs = [pair for pair in chosen.pairs if which == "all" or (pair.stem in rejects) == (which == "rejected")]
            last = max(1, -(-len(pairs) // _PAGE))
            number = max(1, min(int(number or 1), last))
            visible = pairs[(number - 1) * _PAGE : number * _PAGE]
            kept = [pair for pair in chosen.pairs if pair.stem not in rejects]
            statistics, measured = measure_classes(kept, info)
            counts = {"measured": measured, "kept": len(kept), "rejected": len(chosen.pairs) - len(kept)}
            described = [_describe(pair, info, view, pair.stem in rejects) for pair in visible]
        except (InputError, OSError) as error:
            return {stems: [], cards: "", classes: "", status: show_status(str(error), bad=True)}
        return {
            subset: gr.Dropdown(list(collection.subsets), value=name),
            stems: [pair.stem for pair in visible],
            cards: render("studio_pairs.html", cards=described),
            classes: render("studio_classes.html", classes=statistics, palette=info.palette, **counts),
            page: number,
            status: show_status(f"pairs: {len(pairs)} · page {number} of {last}"),
        }

    def reject(
        folder: str, name: str, view: str, which: str, number: float, shown: list[str], event: gr.EventData
    ) -> dict[Any, Any]:
        try:
            chosen = open_collection(Path(folder).expanduser()).subsets[name]
            stem = shown[int(event.number)]
            rejected = stem not in chosen.rejects
            set_rejected(chosen, stem, rejected)
        except (InputError, OSError) as error:
            return {status: show_status(str(error), bad=True)}
        except (KeyError, IndexError):
            return {status: show_status("the folder has changed; press Open to reload it", bad=True)}
        line = show_status(f"{stem} {'rejected' if rejected else 'restored'}")
        return {**show(folder, name, view, which, number), status: line}

    inputs, outputs = [folder, subset, view, which, page], [subset, stems, cards, classes, page, status]
    changes = (folder.input, subset.input, view.input, which.input, page.submit, page.blur)
    for event in (reload.click, tab.select, *changes):
        # By default gradio drops an event while another is answered, such as a folder typed while the first one opens.
        event(show, inputs, outputs, trigger_mode="always_last", **QUIET)
    cards.press(reject, [*inputs, stems], outputs, **QUIET)


def _describe(pair: Pair, info: DatasetInfo, view: str, rejected: bool) -> dict[str, Any]:
    try:
        figure, problem = build_figure(show_pair(pair, info, view), pair.stem), ""
    except InputError as error:
        figure, problem = None, str(error)
    return {"figure": figure, "problem": problem, "rejected": rejected}
