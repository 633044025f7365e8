"""The page of a plan, plan.html: the choices with their reasons, the fingerprint, and crops at the chosen scale."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from steelgen.data.folder import list_pairs, load_dataset_info, load_pair
from steelgen.data.images import to_channels
from steelgen.data.palette import blend_overlay
from steelgen.data.placement import Placement
from steelgen.data.sheets import build_sheet
from steelgen.pages import embed_image, render, show_number
from steelgen.planning.rules import name_count

if TYPE_CHECKING:
    from steelgen.planning.fingerprint import Fingerprint
    from steelgen.planning.result import Plan

_SHOWN = 3
"""Micrographs on the page."""
_CROPS = 3
"""Crops of each."""
_EDGE = 390
"""Height of a whole micrograph on the page in px; a crop is shown at a third of it."""
_FRAME = (230, 30, 30)


def build_page(plan: Plan) -> str:
    """Returns plan.html, without external resources."""
    fingerprint = plan.fingerprint
    numbers = [f"{name_count(count)} in {split}" for split, count in fingerprint.micrographs.items()]
    if fingerprint.unlabeled:
        numbers.append(f"{name_count(fingerprint.unlabeled)} without masks")
    step = f"{plan.step.seconds:.2g} s per step of {plan.step.batch_size * plan.step.accumulation} crops"
    return render(
        "plan.html",
        title=f"Plan for {fingerprint.name}",
        facts=[*numbers, plan.machine.describe(), step, f"{plan.minutes:g} minutes of training"],
        warnings=plan.warnings,
        choices=[(choice.name, describe_value(choice.value), choice.because) for choice in plan.choices],
        facts_of_set=_list_facts(fingerprint),
        classes=list_classes(fingerprint),
        pictures=[(caption, embed_image(image, "JPEG", quality=90)) for caption, image in _draw_micrographs(plan)],
        image_size=plan.training.data.image_size,
        crop_size=plan.training.data.crop_size,
    )


def describe_value(value: object) -> str:
    """Formats the value of a choice for a table."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {describe_value(each)}" for key, each in value.items())
    if isinstance(value, list):
        return " ".join(describe_value(each) for each in value) or "none"
    if value is None:
        return "none"
    return str(value).lower() if isinstance(value, bool) else str(value)


def list_classes(fingerprint: Fingerprint) -> list[list[str]]:
    """Builds the table of classes: name, area %, islands, diameter quartiles, typical diameter, width, spacing."""
    return [
        [
            each.name,
            f"{100 * each.share:.2f}",
            f"{each.islands:,}",
            " / ".join(show_number(value) for value in each.diameter_quartiles or ()) or "–",
            show_number(each.typical_diameter),
            show_number(each.width),
            show_number(each.spacing),
        ]
        for each in fingerprint.classes
    ]


def _list_facts(fingerprint: Fingerprint) -> list[tuple[str, str]]:
    pixel_size = f"{fingerprint.pixel_size_um:g} µm" if fingerprint.pixel_size_um else "unknown"
    sizes = ", ".join(f"{name} ({count})" for name, count in list(fingerprint.sizes.items())[:6])
    detail = ", ".join(f"{share:.2f} at {factor:g}×" for factor, share in fingerprint.detail.items())
    direction = f"strength {fingerprint.orientation:.2f} at {fingerprint.direction:.0f}°"
    return [
        ("micrographs measured", str(fingerprint.measured)),
        ("sizes in px", sizes + (" …" if len(fingerprint.sizes) > 6 else "")),
        ("pixel size", pixel_size),
        ("mean gray level", "{:.1f} ± {:.1f} over micrographs".format(*fingerprint.gray_mean)),
        ("contrast", "{:.1f} ± {:.1f} over micrographs".format(*fingerprint.contrast)),
        ("contrast left after shrinking", detail),
        (
            "common direction",
            f"{direction}, agreement of {fingerprint.parents} micrographs {fingerprint.agreement:.2f}",
        ),
        ("look-alikes", f"{fingerprint.look_alikes} pairs in train, {fingerprint.leaks} across splits"),
        ("instances", "yes" if fingerprint.instances else "no"),
    ]


def _draw_micrographs(plan: Plan) -> list[tuple[str, NDArray[np.uint8]]]:
    """Draws whole micrographs with the frames of crops, and the crops and their masks as the network sees them."""
    info, data = load_dataset_info(plan.dataset), plan.training.data
    edge, size = data.crop_size or data.image_size, data.image_size
    pairs = list_pairs(plan.dataset, "train")
    pictures = []
    for index in np.unique(np.linspace(0, len(pairs) - 1, _SHOWN).round().astype(int)):
        image, mask = load_pair(pairs[index], info)
        height, width = mask.shape
        shown = Image.fromarray(to_channels(image, 3))
        draw = ImageDraw.Draw(shown)
        tiles = []
        for number in range(_CROPS):
            # Along the diagonal, so that the crops overlap as little as possible.
            share = (number + 0.5) / _CROPS
            top, left = round(share * (height - edge)), round(share * (width - edge))
            frame = (left, top, left + edge - 1, top + edge - 1)
            draw.rectangle(frame, outline=_FRAME, width=max(1, height // 150))
            placement = Placement(top, left, edge, size, symmetry=0)
            crop = placement.cut_image(image)
            row = [crop]
            if info.num_classes:
                row.append(blend_overlay(crop, placement.cut_mask(mask), info.palette))
            tiles.append(row)
        sheet = build_sheet(tiles, _EDGE // _CROPS - 3)
        whole = np.asarray(shown.resize((max(1, round(width * sheet.shape[0] / height)), sheet.shape[0])))
        gap = np.full((sheet.shape[0], 8, 3), 255, np.uint8)
        pictures.append((f"train/{pairs[index].stem}", np.concatenate([whole, gap, sheet], axis=1)))
    return pictures
