"""ImageJ and Fiji: SPLIT/NAME.png and SPLIT/NAME.zip, with one ROI per island."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from steelgen.data.exporters.pairs import ExportPair, color_classes, label_classes
from steelgen.data.folder import DatasetInfo
from steelgen.data.images import save_micrograph
from steelgen.data.outlines import Region, iterate_regions


def write_roi(out: Path, info: DatasetInfo, pairs: Iterator[ExportPair]) -> None:
    """Writes ROIs named CLASS-0001 …, with the group and color of the class; composite if they have holes or parts."""
    labels, colors = label_classes(info), color_classes(info)
    for pair in pairs:
        folder = out / pair.item.split
        save_micrograph(folder / f"{pair.item.name}.png", pair.image)
        with zipfile.ZipFile(folder / f"{pair.item.name}.zip", "w", zipfile.ZIP_DEFLATED) as archive:
            for number, region in enumerate(iterate_regions(pair.mask, labels, pair.instances), start=1):
                roi = build_roi(region)
                roi.name = f"{labels[region.class_index]}-{number:04d}"
                roi.group = region.class_index
                roi.stroke_color = bytes((255, *colors[region.class_index]))
                # Class names may contain characters that file names must not.
                archive.writestr(f"{number:04d}.roi", roi.tobytes())


def build_roi(region: Region) -> Any:
    """Builds an ImageJ polygon along the pixel borders of a region, or a composite if it has holes or parts."""
    import roifile

    rings = region.trace_rings()
    if len(rings) == 1:
        roi = roifile.ImagejRoi.frompoints(rings[0])
        roi.roitype = roifile.ROI_TYPE.POLYGON
        roi.options = roifile.ROI_OPTIONS(0)
        return roi
    path: list[float] = []
    for ring in rings:
        # 0: move to, 1: line to, 4: close.
        steps = np.concatenate([np.ones((len(ring), 1)), ring], axis=1)
        steps[0, 0] = 0
        path += [*steps.ravel(), 4]
    height, width = region.pixels.shape
    roi = roifile.ImagejRoi()
    roi.roitype = roifile.ROI_TYPE.RECT
    roi.left, roi.top, roi.right, roi.bottom = region.left, region.top, region.left + width, region.top + height
    roi.multi_coordinates = np.array(path, np.float32)
    roi.shape_roi_size = len(path)
    return roi
