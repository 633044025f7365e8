"""Options of the importers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ReadOptions:
    """Options of all importers; `steelgen data import` rejects those that do not apply to the kind."""

    skip_missing: bool = False
    """Skip annotations whose image is missing, instead of raising an error."""
    include_excluded: bool = False
    """ma-islands: also read excluded_PNG."""
    poi_columns: tuple[str, str] = ("image_url", "point")
    """ma-islands: image column and point column of the points-of-interest CSV."""
    class_names: tuple[str, ...] = ()
    """Class names in the order of their indices; empty means the source's own."""
    layout: str = "auto"
    """folder: isdm, cityscapes, ade20k, celeba, or auto."""
    class_by: Literal["name", "group"] = "name"
    """roi: property of an ROI that determines its class."""
    attribute: str = ""
    """via: region attribute that contains the class; empty means the only one."""
    objects: bool = False
    """labels: the values are ids of objects, all of one class."""
    colors: tuple[tuple[tuple[int, int, int], str], ...] = ()
    """folder, labels, voc: (RGB 0-255, class name) of each color in the masks; empty means the source's own legend."""
    color_tolerance: int = 0
    """folder, labels, voc: largest difference per channel from a legend's color."""
