"""report.html: one page that says whether the generated micrographs can be believed, and shows why."""

from __future__ import annotations

from typing import Any

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from steelgen.charts import COLORS, Curve, plot_chart
from steelgen.data.palette import color_mask
from steelgen.data.sheets import build_sheet
from steelgen.evaluation.copy_search import Match, cut_match
from steelgen.evaluation.evidence import Evidence
from steelgen.evaluation.figures import CLASSES_ABREAST
from steelgen.evaluation.utility.study_page import build_utility_section
from steelgen.pages import embed_image, render, show_number

_SHOWN = 8


def build_report(
    result: dict[str, Any],
    evidence: Evidence,
    seen: dict[str, NDArray[np.uint8]],
    study: dict[str, Any] | None = None,
    farthest: NDArray[np.uint8] | None = None,
) -> str:
    """The page.

    Args:
        result: the content of evaluation.json.
        evidence: the sets, for the pictures.
        seen: from `see_masks`, for the pictures.
        study: the content of utility.json, where there is one.
        farthest: from `judge_descriptors`, where it judged.

    Returns:
        HTML without anything from outside: pictures and charts are inside, there is no script.
    """
    structure = result["details"]["microstructure"]
    figures = result["figures"]
    samples, captions = _sample(evidence, seen)
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
        utility_section=build_utility_section(study) if study else "",
        farthest="" if farthest is None else embed_image(farthest, "PNG", optimize=True),
        pairs=_sample_pairs(result, evidence),
        ratios=[f"{row['ratio']:.2f}" for row in result["details"]["memorization"]["closest"]],
    )


def _sample(evidence: Evidence, seen: dict[str, NDArray[np.uint8]]) -> tuple[str, list[str]]:
    """A sheet as a data URI, and what its rows are."""
    palette, generated, held_out = evidence.info.palette, evidence.generated, evidence.held_out
    count = min(_SHOWN, len(generated), len(held_out))

    def colored(masks: NDArray[np.uint8]) -> list[NDArray[np.uint8]]:
        return [color_mask(mask, palette) for mask in masks[:count]]

    rows = [list(held_out.images[:count]), list(generated.images[:count])]
    captions = [f"real ({held_out.name})", "generated"]
    if generated.masks is not None:
        rows.append(colored(generated.masks))
        captions.append("the masks they were drawn for")
    if seen:
        rows.append(colored(seen["generated"]))
        captions.append("what the segmenter sees in them")
    sheet = build_sheet(rows, tile=max(112, min(256, evidence.geometry.image_size)))
    return embed_image(sheet, "PNG", optimize=True), captions


def _list_descriptors(structure: dict[str, Any]) -> list[list[str]]:
    """Descriptors of what the segmenter sees, class by class: generated, held-out and training images."""
    rows = []
    for index, name in enumerate(structure["class_names"]):
        for key, title, factor in _DESCRIPTORS:
            values = [structure["images"][part][index].get(key) for part in ("generated", "held_out", "train")]
            if any(value is not None for value in values):
                shown = [show_number(None if value is None else factor * value) for value in values]
                rows.append([name, title, *shown])
    return rows


def _list_distances(structure: dict[str, Any]) -> dict[str, list[tuple[list[str], list[Any]]]]:
    """Distances of each class to the held-out split: what the figures above average.

    Returns:
        By heading: class names and rows of each table, a few classes abreast.
    """
    headings, names = {}, structure["class_names"]
    for source, title in (("images", "as the segmenter sees it in the images"), ("masks", "in the masks")):
        if source not in structure:
            continue
        tables = []
        for start in range(0, len(names), CLASSES_ABREAST):
            shown = slice(start, start + CLASSES_ABREAST)
            rows = []
            for metric, values in structure[source]["distances"].items():
                columns = zip(*(values[key][shown] for key in ("generated", "interval", "floor")), strict=True)
                cells = [dict(zip(("value", "interval", "floor"), column, strict=True)) for column in columns]
                rows.append((metric, cells))
            tables.append((names[shown], rows))
        headings[title] = tables
    return headings


_DESCRIPTORS = (
    ("phase_fraction", "phase fraction (%)", 100),
    ("mean_intercept", "mean intercept (px)", 1),
    ("mean_intercept_um", "mean intercept (µm)", 1),
    ("grain_size_number", "ASTM E112 grain-size number", 1),
    ("boundary_density", "boundary density (px⁻¹)", 1),
    ("islands_per_megapixel", "islands per megapixel", 1),
)


def _plot_curves(result: dict[str, Any], evidence: Evidence) -> list[Markup]:
    names = {"generated": "generated", "held_out": evidence.held_out.name, "train": evidence.train.name}
    details = result["details"]
    spectra = {
        key: np.log10(np.maximum(details["fidelity"]["power_spectra"][name], 1e-3)) for key, name in names.items()
    }
    frequencies = np.arange(1, len(spectra["generated"]) + 1)
    charts = [_draw("power spectrum, log₁₀", frequencies, spectra, names, "cycles per image")]
    structure = details["microstructure"]["images"]
    for index, class_name in enumerate(evidence.info.class_names):
        for key, title, first in (("s2", "S₂(r)", 0), ("lineal_path", "L(z)", 1)):
            curves = {name: structure[name][index][key] for name in names}
            x = np.arange(first, first + len(curves["generated"]))
            charts.append(_draw(f"{title} of {class_name}", x, curves, names, "px"))
    return charts


def _draw(title: str, x: Any, curves: dict[str, Any], names: dict[str, str], x_label: str) -> Markup:
    real = np.array([curves["held_out"], curves["train"]], dtype=np.float64)
    lines = [
        Curve(names[key], curves[key], COLORS[key], key != "generated") for key in ("train", "held_out", "generated")
    ]
    return Markup(plot_chart(title, list(x), lines, x_label, band=(list(real.min(axis=0)), list(real.max(axis=0)))))


def _sample_pairs(result: dict[str, Any], evidence: Evidence) -> str:
    """A sheet as a data URI: ten pairs abreast."""
    closest = result["details"]["memorization"]["closest"]
    indices = {stem: index for index, stem in enumerate(evidence.train_micrographs.stems)}
    size = evidence.geometry.image_size
    found = [
        cut_match(
            evidence.train_micrographs,
            Match(row["distance"], 0.0, indices[row["micrograph"]], row["top"], row["left"], row["symmetry"]),
            evidence.geometry.crop_size,
            size,
        )
        for row in closest
    ]
    rows = []
    for start in range(0, len(closest), 10):
        part = closest[start : start + 10]
        blank = [np.full((size, size), 255, np.uint8)] * (10 - len(part))
        rows.append([evidence.generated.images[row["index"]] for row in part] + blank)
        rows.append(found[start : start + 10] + blank)
    return embed_image(build_sheet(rows, tile=96), "PNG", optimize=True)
