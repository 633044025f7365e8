"""ImageJ and Fiji: .roi files, and .zip files of them as the ROI Manager saves."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from steelgen.data.annotations import AnnotatedImage, AnnotatedSet, Annotation
from steelgen.data.folder import DatasetInfo
from steelgen.data.importers.names import collect_names, find_index
from steelgen.data.importers.options import ReadOptions
from steelgen.data.importers.shapes import build_box, build_ellipse, build_polygon, open_ring
from steelgen.data.importers.sources import StemIndex, list_files, parent_of
from steelgen.data.outlines import join_even_odd
from steelgen.errors import InputError, first_line

if TYPE_CHECKING:
    from roifile import ImagejRoi

_MAX_ARCHIVE = 512_000_000
"""Bytes of all ROIs of a zip, unpacked."""
_MAX_ROIS = 65_535
_DEFAULT_NAME = re.compile(r"([-_ ]*\d{4,}){2,3}$")
"""What ImageJ calls an ROI: (slice,) y and x of its center."""
_COUNTER = re.compile(r"[-_ .#]\d+$")
_ONLY_CLASS = "roi"
"""The class of ROIs that bear ImageJ's own names."""


class _Roi(NamedTuple):
    where: str
    roi: ImagejRoi


def read_roi(src: Path, options: ReadOptions) -> AnnotatedSet:
    """Reads the ROIs of every image that has some.

    They belong to the image of their file's name (a.zip, a_RoiSet.zip, a.roi), of their folder's (a/0012-0034.roi), or
    to the only image in their folder. The class is an ROI's name without a counter (pore-0003), or its group. Points
    and lines have no area and are left out.

    Raises:
        InputError: if a file is no ROI, a zip is no set of ROIs or too large, ROIs are of several slices, an ROI has no
            group where groups are the classes, or an image is not there.
    """
    paths = list_files(src, (".roi", ".zip"))
    if not paths:
        raise InputError(f"{src}: holds no .roi and no .zip")
    image_paths = list_files(src)
    index = StemIndex(src, image_paths)
    by_image: dict[Path, list[_Roi]] = {}
    for path in paths:
        image = _find_image(path, index, image_paths, options.skip_missing)
        if image is not None:
            by_image.setdefault(image, []).extend(_read_file(path))
    if not by_image:
        raise InputError(f"{src}: none of the annotated images is there")
    labels = {_label(roi, options): roi.where for rois in by_image.values() for roi in rois}
    names = collect_names(labels, options.class_names, ordered=options.class_by == "group")
    images = []
    for image, rois in by_image.items():
        slices = {roi.position for _, roi in rois} - {0}
        if len(slices) > 1:
            raise InputError(f"{rois[0].where}: and others are of several slices ({sorted(slices)})")
        annotations = []
        for roi in rois:
            try:
                annotation = _read_shape(roi.roi, find_index(_label(roi, options), names))
            except InputError as error:
                raise InputError(f"{roi.where}: {error}") from None
            except Exception as error:  # roifile does not say what it raises on damaged paths
                raise InputError(f"{roi.where}: not a readable ROI: {first_line(error)}") from None
            if annotation:
                annotations.append(annotation)
        split = image.parent.name if image.parent.name in ("train", "val", "test") else None
        stem = index.stem(image)
        images.append(AnnotatedImage(image, stem, parent_of(stem), tuple(annotations), split=split))
    return AnnotatedSet(DatasetInfo(name=src.resolve().name, class_names=names), images)


def _find_image(path: Path, index: StemIndex, images: list[Path], skip_missing: bool) -> Path | None:
    for name in (path.stem, path.parent.name):
        stem = re.sub(r"[-_ .]?RoiSet[-_ .]?", "", name, flags=re.IGNORECASE)
        if stem and (found := index.find(stem, path)):
            return found
    beside = [image for image in images if image.parent == path.parent]
    return beside[0] if len(beside) == 1 else index.require(path.stem, path, skip_missing)


def _read_file(path: Path) -> list[_Roi]:
    if path.suffix.lower() == ".roi":
        return [_Roi(str(path), _parse(path.read_bytes(), str(path)))]
    return [_Roi(where, _parse(data, where)) for where, data in _read_archive(path)]


def _read_archive(path: Path) -> Iterator[tuple[str, bytes]]:
    """The ROIs of a zip, in its order; nothing is unpacked to disk."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            total = sum(entry.file_size for entry in entries)
            if len(entries) > _MAX_ROIS or total > _MAX_ARCHIVE:
                raise InputError(f"{path}: {len(entries)} files of {total:,} bytes are too many for a set of ROIs")
            for entry in entries:
                name = PurePosixPath(entry.filename.replace("\\", "/"))
                if name.is_absolute() or ".." in name.parts or ":" in name.parts[0]:
                    raise InputError(f"{path}: {entry.filename!r:.80} leaves the archive")
                if name.suffix.lower() != ".roi":
                    raise InputError(f"{path}: {entry.filename!r:.80} is no ROI")
                with archive.open(entry) as file:
                    # What the archive says of its sizes need not be true.
                    data = file.read(entry.file_size + 1)
                if len(data) > entry.file_size:
                    raise InputError(f"{path}: {entry.filename!r:.80} is larger than it says")
                yield f"{path}: {entry.filename!r:.80}", data
    except InputError:
        raise
    except Exception as error:  # zipfile and the decompressors raise nearly anything on damaged files
        raise InputError(f"{path}: not a readable zip: {first_line(error)}") from None


def _parse(data: bytes, where: str) -> ImagejRoi:
    import roifile

    try:
        return roifile.ImagejRoi.frombytes(data)
    except Exception as error:  # roifile does not say what it raises on damaged files
        raise InputError(f"{where}: not a readable ROI: {first_line(error)}") from None


def _label(roi: _Roi, options: ReadOptions) -> str:
    if options.class_by == "group":
        if not roi.roi.group:
            raise InputError(f"{roi.where}: is of no group (--class-by name takes the names)")
        wanted = [name for name in options.class_names if name.lower() != "background"]
        return wanted[roi.roi.group - 1] if roi.roi.group <= len(wanted) else f"group_{roi.roi.group}"
    name = roi.roi.name.removesuffix(".roi").strip()
    stripped = _DEFAULT_NAME.sub("", name)
    return (stripped if stripped != name else _COUNTER.sub("", name)).strip() or _ONLY_CLASS


def _read_shape(roi: ImagejRoi, class_index: int) -> Annotation | None:
    import roifile

    kinds = roifile.ROI_TYPE
    if roi.subtype in (roifile.ROI_SUBTYPE.TEXT, roifile.ROI_SUBTYPE.IMAGE, roifile.ROI_SUBTYPE.ARROW):
        return None
    polygons: tuple[NDArray[np.float64], ...]
    if roi.composite:
        paths = roifile.ImagejRoi.path2coords(roi.multi_coordinates)
        polygons = (join_even_odd([open_ring(build_polygon(path.tolist())) for path in paths]),)
    elif roi.roitype in (kinds.RECT, kinds.OVAL):
        box = (roi.left, roi.top, roi.right - roi.left, roi.bottom - roi.top)
        x, y, width, height = (roi.xd, roi.yd, roi.widthd, roi.heightd) if roi.subpixelrect else box
        oval = roi.roitype == kinds.OVAL
        polygons = (
            build_ellipse(x + width / 2, y + height / 2, width / 2, height / 2)
            if oval
            else build_box(x, y, width, height),
        )
    elif roi.roitype in (kinds.POLYGON, kinds.FREEHAND, kinds.TRACED):
        polygons = (build_polygon(roi.coordinates().tolist()),)
    else:
        return None
    return Annotation(class_index, polygons, is_instance=class_index not in (0, 255))
