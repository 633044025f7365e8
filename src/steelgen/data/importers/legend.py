"""Classes of the colors in masks: as given, from a legend file in the source, or one class per color."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from steelgen.data.annotations import AnnotatedImage, AnnotatedSet, Legend
from steelgen.data.folder import DatasetInfo
from steelgen.data.images import load_rgba
from steelgen.data.importers.names import IGNORE_INDEX, collect_names, find_index, is_background
from steelgen.data.importers.options import ReadOptions
from steelgen.data.importers.sources import read_csv, read_lines
from steelgen.data.palette import default_palette
from steelgen.errors import InputError

Color = tuple[int, int, int]
_MAX_COLORS = 32
"""Largest number of colors that can be classes without a legend."""
_ENTRY = re.compile(r"\s*(?:#([0-9a-fA-F]{6})|(\d{1,3})\s*,\s*(\d{1,3})\s*,\s*(\d{1,3}))\s*=\s*([^,=]+?)\s*(?:,|$)")


def parse_colors(text: str) -> tuple[tuple[Color, str], ...]:
    """Parses `255,0,0=oxide,#00ff00=pore`.

    Raises:
        InputError: if it is anything else.
    """
    colors = []
    position = 0
    while position < len(text):
        match = _ENTRY.match(text, position)
        if match is None:
            raise InputError(f"{text[position:]!r:.60} must be like 255,0,0=oxide or #ff0000=oxide")
        channels = bytes.fromhex(match[1]) if match[1] else [int(match[index]) for index in (2, 3, 4)]
        colors.append((_check_color(channels, text), match[5]))
        position = match.end()
    return tuple(colors)


def build_colored_set(images: list[AnnotatedImage], src: Path, options: ReadOptions) -> AnnotatedSet:
    """Builds a set of images with masks in colors; their legend is `options.colors`, a file in `src`, or their colors.

    If class names are given without a background, unlabeled pixels are ignored.

    Raises:
        InputError: if a legend file is invalid, a class is not in the class names, or there are too many colors.
    """
    found = options.colors or find_legend(src) or _collect_colors(images)
    colors = [color for color, _ in found]
    for color in colors:
        if colors.count(color) > 1:
            raise InputError(f"{src}: color {','.join(map(str, color))} is twice in the legend")
    names = collect_names(dict.fromkeys((label for _, label in found), src), options.class_names, ordered=True)
    if options.class_names and not any(is_background(label) for label in options.class_names):
        names = names[1:]
    has_background = names[0] == "background"
    indices = [
        IGNORE_INDEX if is_background(label) and not has_background else find_index(label, names) for _, label in found
    ]
    palette = default_palette(len(names))
    for color, index in list(zip(colors, indices, strict=True))[::-1]:
        if index < len(names):
            palette[index] = color
    unlabeled = 0 if has_background else IGNORE_INDEX
    legend = Legend(tuple(colors), tuple(indices), unlabeled, options.color_tolerance)
    with_legend = [
        replace(image, masks=tuple(replace(mask, legend=legend, instances=None) for mask in image.masks))
        for image in images
    ]
    return AnnotatedSet(DatasetInfo(name=src.resolve().name, class_names=names, palette=palette), with_legend)


def find_legend(src: Path) -> tuple[tuple[Color, str], ...]:
    """Reads the legend in labelmap.txt (CVAT), label_colors.txt (CamVid) or class_dict.csv; empty without these."""
    if (path := src / "labelmap.txt").is_file():
        # label:color_rgb:parts:actions
        rows = [line.split(":") for line in read_lines(path) if line and not line.startswith("#")]
        return tuple((_check_color(row[1].split(",") if len(row) > 1 else (), path), row[0]) for row in rows)
    if (path := src / "label_colors.txt").is_file():
        rows = [line.split(None, 3) for line in read_lines(path) if line and not line.startswith("#")]
        return tuple((_check_color(row[:3], path), row[-1]) for row in rows)
    if (path := src / "class_dict.csv").is_file():
        table = read_csv(path, ("name", "r", "g", "b"))
        return tuple((_check_color([row[key] for key in "rgb"], path), row["name"]) for _, row in table)
    return ()


def _check_color(channels: Sequence[int | str] | bytes, where: object) -> Color:
    texts = [str(channel).strip() for channel in channels]
    numbers = [int(text) if text.isascii() and text.isdigit() and len(text) < 4 else -1 for text in texts]
    if len(numbers) != 3 or not all(0 <= number <= 255 for number in numbers):
        raise InputError(f"{where}: {','.join(texts)!r:.40} is not a color (three numbers from 0 to 255)")
    return numbers[0], numbers[1], numbers[2]


def _collect_colors(images: list[AnnotatedImage]) -> tuple[tuple[Color, str], ...]:
    """Collects the colors of masks; the background is black, or else the most frequent color."""
    counts: dict[int, int] = {}
    for path in (mask.path for image in images for mask in image.masks):
        rgba = load_rgba(path).astype(np.int64)
        codes = (rgba[..., 0] << 16 | rgba[..., 1] << 8 | rgba[..., 2])[rgba[..., 3] > 0]
        for code, count in zip(*np.unique(codes, return_counts=True), strict=True):
            counts[int(code)] = counts.get(int(code), 0) + int(count)
        if len(counts) > _MAX_COLORS:
            raise InputError(f"{path}: masks with more than {_MAX_COLORS} colors need --colors")
    background = 0 if 0 in counts else max(counts, key=lambda code: counts[code], default=0)
    ordered = sorted(counts, key=lambda code: (code != background, code))
    return tuple(
        ((code >> 16, code >> 8 & 255, code & 255), "background" if code == background else f"#{code:06x}")
        for code in ordered
    )
