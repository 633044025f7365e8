"""report.html: one page that says whether the generated micrographs can be believed, and shows why."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelgen.data.palette import color_mask
from steelgen.evaluation.copy_search import Match, cut_match
from steelgen.evaluation.evidence import Evidence
from steelgen.evaluation.page import CLASSES_ABREAST, build_lines, build_page, build_verdict, show_number, show_value
from steelgen.evaluation.plots import COLORS, Curve, build_sheet, draw_chart, embed_png

_SHOWN = 8


def build_report(
    result: dict[str, Any], evidence: Evidence, seen: dict[str, NDArray[np.uint8]], utility_section: str = ""
) -> str:
    """The page.

    Args:
        result: the content of evaluation.json.
        evidence: the sets, for the pictures.
        seen: from `see_masks`, for the pictures.
        utility_section: HTML of a utility study, where there is one.

    Returns:
        HTML without anything from outside: pictures and charts are inside, there is no script.
    """
    body = [
        f"<h1>Evaluation of {html.escape(str(evidence.config.generated))}</h1>",
        f'<p class="muted">{html.escape(_describe(result))}</p>',
        build_verdict(result["verdict"]),
        build_lines("Warnings", result["warnings"]),
        build_lines("Notes", result["notes"]),
        "<h2>Real, generated, masks</h2>",
        _draw_samples(evidence, seen),
        "<h2>Figures</h2>",
        '<p class="muted">The floor is the same metric between two sets of real images that share no micrograph: '
        "as good as it can get. Intervals say how far a value would move with other images of the same kind, as many "
        "and from the same micrographs. N counts the images of the two sets.</p>",
        build_tables(result["figures"]),
        "<h2>Microstructure by class</h2>",
        _build_class_table(result["details"]["microstructure"]),
        _build_distance_tables(result["details"]["microstructure"]),
        "<h2>Curves</h2>",
        _draw_curves(result, evidence),
        utility_section,
        "<h2>Closest training images</h2>",
        _draw_pairs(result, evidence),
        "<h2>How it was made</h2>",
        f"<pre>{html.escape(json.dumps(result['config'], indent=2))}</pre>",
        f"<pre>{html.escape(json.dumps(result['environment'], indent=2))}</pre>",
    ]
    return build_page(f"Evaluation of {evidence.config.generated.name}", body)


def build_tables(figures: Sequence[dict[str, Any]]) -> str:
    """One table a section, of figures as they stand in evaluation.json."""
    parts = []
    for section in dict.fromkeys(figure["section"] for figure in figures):
        rows = "".join(
            f"<tr><td>{html.escape(figure['metric'])}</td><td>{html.escape(figure['compared'])}</td>"
            f'<td class="n">{show_value(figure)}</td>'
            f'<td class="n">{show_number(figure["floor"])}</td><td>{figure["better"]}</td>'
            f'<td class="n">{figure["n"][0]} / {figure["n"][1]}</td><td class="n">{figure["seed"]}</td></tr>'
            for figure in figures
            if figure["section"] == section
        )
        parts.append(
            f"<h3>{section.capitalize()}</h3><table><thead><tr><th>metric</th><th>compared</th>"
            f"<th class=n>value [95 % interval]</th><th class=n>floor</th>"
            "<th>better</th><th class=n>N</th><th class=n>seed</th></tr></thead>"
            f"{rows}</table>"
        )
    return "".join(parts)


def _describe(result: dict[str, Any]) -> str:
    sets = result["sets"]
    return (
        f"{sets['generated']['count']} generated images against {sets['held_out']['count']} crops of the held-out "
        f"split {sets['held_out']['split']!r} and {sets['train']['count']} of the training split "
        f"{sets['train']['split']!r} of {sets['held_out']['path']}; {sets['geometry']}; "
        f"seed {result['config']['seed']}; steelgen {result['steelgen']}."
    )


def _draw_samples(evidence: Evidence, seen: dict[str, NDArray[np.uint8]]) -> str:
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
    keys = "".join(
        f'<span style="background:rgb{color};padding:0 .7em;margin:0 .4em 0 1em"></span>{html.escape(name)}'
        for name, color in zip(evidence.info.class_names, palette, strict=True)
    )
    sheet = embed_png(build_sheet(rows, tile=max(112, min(256, evidence.geometry.image_size))))
    return (
        f'<figure><img src="{sheet}" alt="samples"><figcaption>Rows: {html.escape("; ".join(captions))}.'
        f"{keys}</figcaption></figure>"
    )


def _build_class_table(structure: dict[str, Any]) -> str:
    """Descriptors of what the segmenter sees, class by class: generated, held-out and training images."""
    rows = []
    for index, name in enumerate(structure["class_names"]):
        for key, title, factor in _DESCRIPTORS:
            values = [structure["images"][part][index].get(key) for part in ("generated", "held_out", "train")]
            if any(value is not None for value in values):
                cells = "".join(
                    f'<td class="n">{show_number(None if value is None else factor * value)}</td>' for value in values
                )
                rows.append(f"<tr><td>{html.escape(name)}</td><td>{title}</td>{cells}</tr>")
    columns = "".join(f"<th class=n>{part}</th>" for part in ("generated", "held out", "train"))
    head = f"<thead><tr><th>class</th><th>descriptor</th>{columns}</tr></thead>"
    return f"<table>{head}{''.join(rows)}</table>"


def _build_distance_tables(structure: dict[str, Any]) -> str:
    """Distances of each class to the held-out split: what the figures above average."""
    parts, names = [], structure["class_names"]
    for source, title in (("images", "as the segmenter sees it in the images"), ("masks", "in the masks")):
        if source not in structure:
            continue
        parts.append(f"<h3>Distance to held out, {title}</h3>")
        for start in range(0, len(names), CLASSES_ABREAST):
            shown = slice(start, start + CLASSES_ABREAST)
            rows = []
            for metric, values in structure[source]["distances"].items():
                columns = zip(*(values[key][shown] for key in ("generated", "interval", "floor")), strict=True)
                cells = "".join(
                    f'<td class="n">{show_value({"value": value, "interval": interval})}'
                    f'<br><span class="muted">floor {show_number(floor)}</span></td>'
                    for value, interval, floor in columns
                )
                rows.append(f"<tr><td>{html.escape(metric)}</td>{cells}</tr>")
            head = "".join(f"<th class=n>{html.escape(name)}</th>" for name in names[shown])
            parts.append(f"<table><thead><tr><th>metric</th>{head}</tr></thead>{''.join(rows)}</table>")
    return "".join(parts)


_DESCRIPTORS = (
    ("phase_fraction", "phase fraction (%)", 100),
    ("mean_intercept", "mean intercept (px)", 1),
    ("mean_intercept_um", "mean intercept (µm)", 1),
    ("grain_size_number", "ASTM E112 grain-size number", 1),
    ("boundary_density", "boundary density (px⁻¹)", 1),
    ("islands_per_megapixel", "islands per megapixel", 1),
)


def _draw_curves(result: dict[str, Any], evidence: Evidence) -> str:
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
    legend = (
        f'<p class=legend><b style="color:{COLORS["generated"]}">generated</b> (solid), '
        f'<b style="color:{COLORS["held_out"]}">{html.escape(names["held_out"])}</b> (dashed), '
        f'<b style="color:{COLORS["train"]}">{html.escape(names["train"])}</b> (dashed); the band lies between the '
        "two real sets. S₂ and L of what the segmenter sees in the images.</p>"
    )
    return f'{legend}<div class="charts">{"".join(charts)}</div>'


def _draw(title: str, x: Any, curves: dict[str, Any], names: dict[str, str], x_label: str) -> str:
    real = np.array([curves["held_out"], curves["train"]], dtype=np.float64)
    lines = [
        Curve(names[key], curves[key], COLORS[key], key != "generated") for key in ("train", "held_out", "generated")
    ]
    return draw_chart(title, list(x), lines, x_label, band=(list(real.min(axis=0)), list(real.max(axis=0))))


def _draw_pairs(result: dict[str, Any], evidence: Evidence) -> str:
    closest = result["details"]["memorisation"]["closest"]
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
    ratios = ", ".join(f"{row['ratio']:.2f}" for row in closest)
    return (
        f'<figure><img src="{embed_png(build_sheet(rows, tile=96))}" alt="pairs"><figcaption>Above: generated; below: '
        f"the nearest place in the training micrographs, turned the same way. d1/d2 from the first pair on: {ratios}. "
        "Below 0.33 it counts as a copy.</figcaption></figure>"
    )
