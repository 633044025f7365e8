"""report.html: the page of an evaluation."""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from steelgen.charts import COLORS, Curve, plot_chart
from steelgen.data.palette import color_mask
from steelgen.data.sheets import build_sheet
from steelgen.evaluation.copy_search import Match, cut_mask, cut_match
from steelgen.evaluation.figures import CLASSES_PER_TABLE
from steelgen.evaluation.sets import Evidence
from steelgen.evaluation.study_views import find_view
from steelgen.pages import embed_image, render, show_number

_SHOWN_IMAGES = 8
_PAIRS_PER_ROW = 10
_DESCRIPTORS = (
    ("phase_fraction", "phase fraction (%)", 100),
    ("mean_intercept", "mean intercept (px)", 1),
    ("mean_intercept_um", "mean intercept (µm)", 1),
    ("grain_size_number", "ASTM E112 grain-size number", 1),
    ("boundary_density", "boundary density (px⁻¹)", 1),
    ("islands_per_megapixel", "islands per megapixel", 1),
)


def build_report(
    result: dict[str, Any],
    evidence: Evidence,
    predicted: dict[str, NDArray[np.uint8]],
    study: dict[str, Any] | None = None,
    farthest: NDArray[np.uint8] | None = None,
) -> str:
    """Builds the page as self-contained HTML without scripts.

    Args:
        result: the content of evaluation.json.
        predicted: masks by set, from `see_masks`.
        study: the content of utility.json, if there is a study.
        farthest: the islands farthest from real ones, from `judge_descriptors`, if it ran.
    """
    structure = result["details"]["microstructure"]
    figures = result["figures"]
    samples, captions = _build_samples(evidence, predicted)
    return render(
        "evaluation.html",
        title=f"Evaluation of {evidence.config.generated.name}",
        result=result,
        samples=samples,
        captions=captions,
        class_names=evidence.info.class_names,
        palette=evidence.info.palette,
        sections={
            section: [figure for figure in figures if figure["section"] == section]
            for section in dict.fromkeys(figure["section"] for figure in figures)
        },
        descriptors=_list_descriptors(structure),
        distances=_list_distances(structure),
        colors=COLORS,
        charts=_plot_curves(result, evidence),
        utility_section=find_view(study).section(study) if study else "",
        farthest="" if farthest is None else embed_image(farthest, "PNG", optimize=True),
        pairs=_build_pairs(result, evidence),
        ratios=[f"{row['ratio']:.2f}" for row in result["details"]["memorization"]["closest"]],
        mask_pairs=_build_mask_pairs(result, evidence),
        masks=result["details"]["memorization"].get("masks", {}),
    )


def _build_samples(evidence: Evidence, predicted: dict[str, NDArray[np.uint8]]) -> tuple[str, list[str]]:
    """A sheet of images and masks as a data URI, and the captions of its rows."""
    generated, held_out = evidence.generated, evidence.held_out
    count = min(_SHOWN_IMAGES, len(generated), len(held_out))

    def color(masks: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        return [color_mask(mask, evidence.info.palette) for mask in masks[:count]]

    rows = {f"real ({held_out.name})": list(held_out.images[:count]), "generated": list(generated.images[:count])}
    if generated.masks is not None:
        rows["masks given to the generator"] = color(generated.masks)
    if predicted:
        rows["masks predicted by the segmenter"] = color(predicted["generated"])
    sheet = build_sheet(list(rows.values()), tile=max(112, min(256, evidence.geometry.image_size)))
    return embed_image(sheet, "PNG", optimize=True), list(rows)


def _list_descriptors(structure: dict[str, Any]) -> list[list[str]]:
    """Descriptors by class of generated, held-out and training images, from predicted masks."""
    rows = []
    for index, name in enumerate(structure["class_names"]):
        for key, title, factor in _DESCRIPTORS:
            values = [structure["images"][part][index].get(key) for part in ("generated", "held_out", "train")]
            if any(value is not None for value in values):
                shown = [show_number(None if value is None else factor * value) for value in values]
                rows.append([name, title, *shown])
    return rows


def _list_distances(structure: dict[str, Any]) -> dict[str, list[tuple[list[str], list[Any]]]]:
    """Distances of each class to the held-out split: class names and rows of each table, by heading."""
    headings, names = {}, structure["class_names"]
    for source, title in (("images", "predicted masks"), ("masks", "given masks")):
        if source not in structure:
            continue
        tables = []
        for start in range(0, len(names), CLASSES_PER_TABLE):
            shown = slice(start, start + CLASSES_PER_TABLE)
            rows = []
            for metric, values in structure[source]["distances"].items():
                columns = (values[key][shown] for key in ("generated", "interval", "floor"))
                cells = [{"value": v, "interval": i, "floor": f} for v, i, f in zip(*columns, strict=True)]
                rows.append((metric, cells))
            tables.append((names[shown], rows))
        headings[title] = tables
    return headings


def _plot_curves(result: dict[str, Any], evidence: Evidence) -> list[Markup]:
    names = {"generated": "generated", "held_out": evidence.held_out.name, "train": evidence.train.name}
    details = result["details"]
    spectra = {
        key: np.log10(np.maximum(details["fidelity"]["power_spectra"][name], 1e-3)) for key, name in names.items()
    }
    charts = [_plot("power spectrum, log₁₀", 1, spectra, names, "cycles per image")]
    structure = details["microstructure"]["images"]
    for index, class_name in enumerate(evidence.info.class_names):
        for key, title, first in (("s2", "S₂(r)", 0), ("lineal_path", "L(z)", 1)):
            curves = {name: structure[name][index][key] for name in names}
            charts.append(_plot(f"{title} of {class_name}", first, curves, names, "px"))
    return charts


def _plot(title: str, first: int, curves: dict[str, Any], names: dict[str, str], x_label: str) -> Markup:
    real = np.array([curves["held_out"], curves["train"]], dtype=np.float64)
    lines = [
        Curve(names[key], curves[key], COLORS[key], key != "generated") for key in ("train", "held_out", "generated")
    ]
    x = range(first, first + len(curves["generated"]))
    return Markup(plot_chart(title, x, lines, x_label, band=(list(real.min(axis=0)), list(real.max(axis=0)))))


def _build_pairs(result: dict[str, Any], evidence: Evidence) -> str:
    """A sheet of the closest generated images above their training locations, as a data URI."""
    closest, geometry = result["details"]["memorization"]["closest"], evidence.geometry
    images = [evidence.generated.images[row["index"]] for row in closest]
    places = [
        cut_match(evidence.train_micrographs, each, geometry.crop_size, geometry.image_size)
        for each in _find_places(closest, evidence)
    ]
    return _stack_pairs(images, places)


def _build_mask_pairs(result: dict[str, Any], evidence: Evidence) -> str:
    """The same of masks; empty if they were not searched."""
    masks, geometry = result["details"]["memorization"].get("masks", {}), evidence.geometry
    if not masks.get("searched"):
        return ""
    assert evidence.generated.masks is not None
    given = [evidence.generated.masks[row["index"]] for row in masks["closest"]]
    places = [
        cut_mask(evidence.train_micrographs, each, geometry.crop_size, geometry.image_size)
        for each in _find_places(masks["closest"], evidence)
    ]
    return _stack_pairs(*([color_mask(mask, evidence.info.palette) for mask in part] for part in (given, places)))


def _find_places(closest: list[dict[str, Any]], evidence: Evidence) -> list[Match]:
    stems = evidence.train_micrographs.stems
    return [
        Match(row["distance"], 0.0, stems.index(row["micrograph"]), row["top"], row["left"], row["symmetry"])
        for row in closest
    ]


def _stack_pairs(above: list[NDArray[np.uint8]], below: list[NDArray[np.uint8]]) -> str:
    """A sheet of pairs, ten side by side, as a data URI."""
    blank = [np.full_like(above[0], 255)] * (-len(above) % _PAIRS_PER_ROW)
    rows = [
        row[start : start + _PAIRS_PER_ROW]
        for start in range(0, len(above), _PAIRS_PER_ROW)
        for row in (above + blank, below + blank)
    ]
    return embed_image(build_sheet(rows, tile=96), "PNG", optimize=True)
