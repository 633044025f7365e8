"""What the readers can be told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class ReadOptions:
    """Settings of the readers; each reader uses some, and `steelgen data import` refuses the others."""

    skip_missing: bool = False
    """Leave out annotations whose image is not there, instead of an error."""
    include_excluded: bool = False
    """ma-islands: also read excluded_PNG."""
    poi_columns: tuple[str, str] = ("image_url", "point")
    """ma-islands: the columns of the points-of-interest CSV that hold the image and the point."""
    class_names: tuple[str, ...] = ()
    """Names of the classes in the order of their indices; where empty, the source's own."""
    layout: str = "auto"
    """folder: isdm, cityscapes, ade20k, celeba, or auto."""
    class_by: Literal["name", "group"] = "name"
    """roi: what tells the class of an ROI."""
    attribute: str = ""
    """via: the region attribute that holds the class; where empty, the only one there is."""
    objects: bool = False
    """labels: the values are ids of objects, all of one class."""
    colors: tuple[tuple[tuple[int, int, int], str], ...] = ()
    """folder, labels, voc: RGB colors (0-255) of masks and the class of each; where empty, the source's own legend."""
    color_tolerance: int = 0
    """folder, labels, voc: how much each channel may differ from a legend's color."""
