"""ImageJ and Fiji: .roi files, and .zip files of them as saved by the ROI Manager."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from steelgen.data.annotations import AnnotatedImage, AnnotatedSet, Annotation
from steelgen.data.folder import SPLITS
from steelgen.data.images import decoder_errors
from steelgen.data.importers.names import annotate, collect_names, find_index, is_background
from steelgen.data.importers.options import ReadOptions
from steelgen.data.importers.shapes import build_box, build_ellipse, build_polygon, open_ring
from steelgen.data.importers.sources import ImageIndex, build_set, error_location, leaves_archive, list_files
from steelgen.data.outlines import join_even_odd
from steelgen.errors import InputError

if TYPE_CHECKING:
    from roifile import ImagejRoi

_MAX_ARCHIVE = 512_000_000
"""Largest total size of the ROIs in a zip, in bytes."""
_MAX_ROIS = 65_535
_DEFAULT_NAME = re.compile(r"([-_ ]*\d{4,}){2,3}$")
"""ImageJ's default name of an ROI: (slice,) y and x of its center."""
_COUNTER = re.compile(r"[-_ .#]\d+$")
_DEFAULT_CLASS = "roi"
"""Class of ROIs with a default name."""


class _Roi(NamedTuple):
    where: str
    roi: ImagejRoi


def read_roi(src: Path, options: ReadOptions) -> AnnotatedSet:
    """Reads the ROIs of all images that have some.

    The image of an ROI has the name of its file (a.zip, a_RoiSet.zip, a.roi) or its folder (a/0012-0034.roi), or is the
    only image in the folder. The class is the ROI's name without a counter (pore-0003), or its group. Points and lines
    have no area and are skipped.
    """
    paths = list_files(src, (".roi", ".zip"))
    if not paths:
        raise InputError(f"{src}: no .roi or .zip files found")
    index = ImageIndex(src, options.skip_missing)
    by_image: dict[Path, list[_Roi]] = {}
    for path in paths:
        image = _find_image(path, index)
        if image is not None:
            by_image.setdefault(image, []).extend(_read_file(path))
    labels = {_label(roi, options): roi.where for rois in by_image.values() for roi in rois}
    names = collect_names(labels, options.class_names, ordered=options.class_by == "group")
    images = []
    for image, rois in by_image.items():
        slices = {roi.position for _, roi in rois} - {0}
        if len(slices) > 1:
            raise InputError(f"{rois[0].where}: the ROIs of an image must be on one slice, got {sorted(slices)}")
        annotations: list[Annotation] = []
        for roi in rois:
            with decoder_errors(roi.where, "ROI"), error_location(roi.where):
                annotations += _read_shape(roi.roi, find_index(_label(roi, options), names))
        split = image.parent.name if image.parent.name in SPLITS else None
        images.append(AnnotatedImage(image, index.stem(image), annotations=tuple(annotations), split=split))
    return build_set(src, names, images)


def _find_image(path: Path, index: ImageIndex) -> Path | None:
    for name in (path.stem, path.parent.name):
        stem = re.sub(r"[-_ .]?RoiSet[-_ .]?", "", name, flags=re.IGNORECASE)
        if stem and (found := index.find_stem(stem, path)):
            return found
    beside = [image for image in index.paths if image.parent == path.parent]
    return beside[0] if len(beside) == 1 else index.require_stem(path.stem, path)


def _read_file(path: Path) -> list[_Roi]:
    import roifile

    rois = []
    for where, data in _read_archive(path) if path.suffix.lower() == ".zip" else [(str(path), path.read_bytes())]:
        with decoder_errors(where, "ROI"):
            rois.append(_Roi(where, roifile.ImagejRoi.frombytes(data)))
    return rois


def _read_archive(path: Path) -> list[tuple[str, bytes]]:
    """Reads the ROIs of a zip in its order, without unpacking to disk."""
    contents = []
    with decoder_errors(path, "zip"), zipfile.ZipFile(path) as archive:
        entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        total = sum(entry.file_size for entry in entries)
        if len(entries) > _MAX_ROIS or total > _MAX_ARCHIVE:
            raise InputError(
                f"{path}: has {len(entries)} files of {total:,} bytes; the limits are {_MAX_ROIS} and {_MAX_ARCHIVE:,}"
            )
        for entry in entries:
            where = f"{path}: {entry.filename!r:.80}"
            if leaves_archive(entry.filename):
                raise InputError(f"{where} is outside the archive")
            if not entry.filename.lower().endswith(".roi"):
                raise InputError(f"{where} is not an ROI")
            with archive.open(entry) as file:
                # The sizes stated in the archive may be wrong.
                data = file.read(entry.file_size + 1)
            if len(data) > entry.file_size:
                raise InputError(f"{where} is larger than the archive states")
            contents.append((where, data))
    return contents


def _label(roi: _Roi, options: ReadOptions) -> str:
    if options.class_by == "group":
        if not roi.roi.group:
            raise InputError(f"{roi.where}: has no group; use --class-by name")
        wanted = [name for name in options.class_names if not is_background(name)]
        return wanted[roi.roi.group - 1] if roi.roi.group <= len(wanted) else f"group_{roi.roi.group}"
    name = roi.roi.name.removesuffix(".roi").strip()
    stripped = _DEFAULT_NAME.sub("", name)
    return (stripped if stripped != name else _COUNTER.sub("", name)).strip() or _DEFAULT_CLASS


def _read_shape(roi: ImagejRoi, class_index: int) -> list[Annotation]:
    import roifile

    kinds = roifile.ROI_TYPE
    if roi.subtype in (roifile.ROI_SUBTYPE.TEXT, roifile.ROI_SUBTYPE.IMAGE, roifile.ROI_SUBTYPE.ARROW):
        return []
    if roi.composite:
        paths = roifile.ImagejRoi.path2coords(roi.multi_coordinates)
        polygon = join_even_odd([open_ring(build_polygon(path.tolist())) for path in paths])
    elif roi.roitype in (kinds.RECT, kinds.OVAL):
        box = (roi.left, roi.top, roi.right - roi.left, roi.bottom - roi.top)
        x, y, width, height = (roi.xd, roi.yd, roi.widthd, roi.heightd) if roi.subpixelrect else box
        if roi.roitype == kinds.OVAL:
            polygon = build_ellipse(x + width / 2, y + height / 2, width / 2, height / 2)
        else:
            polygon = build_box(x, y, width, height)
    elif roi.roitype in (kinds.POLYGON, kinds.FREEHAND, kinds.TRACED):
        polygon = build_polygon(roi.coordinates().tolist())
    else:
        return []
    return [annotate(class_index, polygon)]
