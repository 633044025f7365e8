"""Import of annotated micrographs of any kind as a dataset folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from steelgen.data.annotations import AnnotatedImage, AnnotatedSet
from steelgen.data.compose import Agreement, Overlap, compose_mask, load_mask_file, merge_masks
from steelgen.data.folder import DatasetInfo, save_dataset_info, save_mask, save_metadata
from steelgen.data.images import save_micrograph
from steelgen.data.importers.coco import read_coco
from steelgen.data.importers.cvat import read_cvat
from steelgen.data.importers.geojson import read_geojson
from steelgen.data.importers.label_images import read_labels
from steelgen.data.importers.label_studio import read_label_studio
from steelgen.data.importers.labelme import read_labelme
from steelgen.data.importers.ma_islands import read_ma_islands
from steelgen.data.importers.nnunet import read_nnunet
from steelgen.data.importers.options import ReadOptions
from steelgen.data.importers.rle_csv import read_rle_csv
from steelgen.data.importers.roi import read_roi
from steelgen.data.importers.sources import error_location
from steelgen.data.importers.trees import read_trees
from steelgen.data.importers.via import read_via
from steelgen.data.importers.voc import read_voc
from steelgen.data.importers.yolo import read_yolo
from steelgen.data.instances import load_instance_ids, save_instances
from steelgen.data.micrograph import MAX_BAR_SHARE, ImageOptions, Micrograph, load_micrograph
from steelgen.data.pool import map_on_cores
from steelgen.data.splits import assign_splits
from steelgen.errors import InputError
from steelgen.files import check_output_free, new_folder

Report = Callable[[int, int], None]
"""Progress callback, called with (done, total)."""


class Reader(NamedTuple):
    """Reader of one annotation kind."""

    read: Callable[[Path, ReadOptions], AnnotatedSet]
    uses: tuple[str, ...]
    """Fields of ReadOptions that apply to it."""


READERS = {
    "ma-islands": Reader(read_ma_islands, ("skip_missing", "include_excluded", "poi_columns")),
    "coco": Reader(read_coco, ("skip_missing",)),
    "labelme": Reader(read_labelme, ("skip_missing", "class_names")),
    "voc": Reader(read_voc, ("skip_missing", "class_names", "colors", "color_tolerance")),
    "cvat": Reader(read_cvat, ("skip_missing", "class_names")),
    "yolo": Reader(read_yolo, ("class_names",)),
    "roi": Reader(read_roi, ("skip_missing", "class_names", "class_by")),
    "via": Reader(read_via, ("skip_missing", "class_names", "attribute")),
    "geojson": Reader(read_geojson, ("skip_missing", "class_names")),
    "label-studio": Reader(read_label_studio, ("skip_missing", "class_names")),
    "nnunet": Reader(read_nnunet, ()),
    "labels": Reader(read_labels, ("skip_missing", "class_names", "objects", "colors", "color_tolerance")),
    "rle-csv": Reader(read_rle_csv, ("skip_missing", "class_names")),
    "folder": Reader(read_trees, ("class_names", "layout", "colors", "color_tolerance")),
}


@dataclass(frozen=True)
class WriteOptions:
    """Rasterization, splits and image conversion."""

    overlap: Overlap = "later"
    agreement: Agreement = "majority"
    fractions: dict[str, float] | None = None
    """Share of each split; None means the source's own splits, or 70/15/15 % if it has none."""
    split_by: str = "parent"
    """Key of images that stay in the same split: `parent`, or a metadata column such as `type`."""
    seed: int = 0
    images: ImageOptions = field(default_factory=ImageOptions)


def import_dataset(
    kind: str,
    src: Path,
    out: Path,
    read: ReadOptions | None = None,
    write: WriteOptions | None = None,
    report: Report | None = None,
) -> DatasetInfo:
    """Reads annotated micrographs of one kind and writes a dataset folder.

    Raises:
        InputError: if the kind is unknown, an option does not apply to it, the source is invalid, or `out` is in use.
    """
    if kind not in READERS:
        raise InputError(f"import kind {kind!r}: must be one of {', '.join(READERS)}")
    read = read or ReadOptions()
    for option in fields(ReadOptions):
        if option.name not in READERS[kind].uses and getattr(read, option.name) != option.default:
            raise InputError(f"--{option.name.replace('_', '-')}: does not apply to {kind}")
    check_output_free(out)
    return write_dataset(READERS[kind].read(src, read), out, write, report)


def write_dataset(
    annotated: AnnotatedSet, out: Path, options: WriteOptions | None = None, report: Report | None = None
) -> DatasetInfo:
    """Rasterizes the annotations and writes a dataset folder; `out` is created when it is complete.

    Returns:
        Content of dataset.json.

    Raises:
        InputError: if an image is invalid, two images would get the same name, a split would be empty, or `out` is in
            use.
    """
    options = options or WriteOptions()
    splits = choose_splits(annotated.images, options)
    _check_names(annotated.images, splits)
    info = annotated.info
    rows = []
    with new_folder(out) as working:
        for split in dict.fromkeys(splits):
            (working / split / "images").mkdir(parents=True)
            (working / split / "masks").mkdir()
        tasks = list(zip(annotated.images, splits, strict=True))
        for row in map_on_cores(partial(_write_image, working, info, options), tasks):
            rows.append(row)
            if report:
                report(len(rows), len(tasks))
        pixel_sizes = {row.get("pixel_size_um") for row in rows}
        if len(pixel_sizes) == 1:
            info = info.model_copy(update={"pixel_size_um": pixel_sizes.pop()})
        save_metadata(working, rows)
        save_dataset_info(working, info)
    return info


def choose_splits(images: list[AnnotatedImage], options: WriteOptions) -> list[str]:
    """Returns the split of each image: by `fractions` if given, else the source's own, else 70/15/15 %.

    Raises:
        InputError: if a split would be empty, or an image has no value for `split_by`.
    """
    own = [image.split for image in images if image.split is not None]
    if options.fractions is None and len(own) == len(images):
        return own
    if options.fractions is None and own:
        stray = next(image for image in images if image.split is None)
        raise InputError(f"{stray.path}: is in none of the source's splits; use --split to create new ones")
    groups = []
    for image in images:
        value = image.parent if options.split_by == "parent" else image.metadata.get(options.split_by)
        if value is None:
            known = ", ".join(["parent", *image.metadata])
            raise InputError(f"{image.path}: has no {options.split_by!r} to split by (has: {known})")
        groups.append(str(value))
    return assign_splits(groups, options.fractions or {"train": 0.7, "val": 0.15, "test": 0.15}, options.seed)


def _check_names(images: list[AnnotatedImage], splits: list[str]) -> None:
    taken: dict[tuple[str, str], Path] = {}
    for image, split in zip(images, splits, strict=True):
        if not image.stem or image.stem.startswith(".") or not image.stem.isprintable():
            raise InputError(f"{image.path}: {image.stem!r} is not a valid name of an image in a dataset folder")
        other = taken.setdefault((split, image.stem.casefold()), image.path)
        if other is not image.path:
            raise InputError(f"{image.path}: {other} would get the same name in {split}")


def _write_image(
    root: Path, info: DatasetInfo, options: WriteOptions, task: tuple[AnnotatedImage, str]
) -> dict[str, Any]:
    image, split = task
    micrograph = load_micrograph(image.path, options.images)
    height, width = micrograph.full_height, micrograph.image.shape[1]
    if image.size and image.size != (height, width):
        stated = f"{image.size[1]}x{image.size[0]}"
        raise InputError(f"{image.path}: is {width}x{height}, but its annotations are for {stated}")
    with error_location(image.path):
        mask, instances = _build_mask(image, micrograph, info, options)
    # The mask may not include the data bar of the image.
    rows = min(micrograph.image.shape[0], mask.shape[0])
    file_name = f"{split}/images/{image.stem}.png"
    save_micrograph(root / file_name, micrograph.image[:rows])
    save_mask(root / split / "masks" / f"{image.stem}.png", mask[:rows], info.palette)
    if instances is not None:
        save_instances(root / split / "instances" / f"{image.stem}.png", instances[:rows])
    row: dict[str, Any] = {"file_name": file_name, "parent": image.parent, "source": image.path.name}
    if micrograph.pixel_size_um:
        row["pixel_size_um"] = micrograph.pixel_size_um
    if rows < height:
        row["data_bar_height"] = height - rows
    if mask.shape[0] < height:
        row["mask_height"] = mask.shape[0]
    if len(image.annotators) > 1:
        row["annotators"] = list(image.annotators)
    return {**image.metadata, **row}


def _build_mask(
    image: AnnotatedImage, micrograph: Micrograph, info: DatasetInfo, options: WriteOptions
) -> tuple[NDArray[np.uint8], NDArray[np.uint16] | None]:
    """Builds the mask of a whole image, or of the part above the data bar if the mask file is that small; and the
    instance map if there is one annotator with objects."""
    height, width = micrograph.full_height, micrograph.image.shape[1]
    instances: NDArray[np.uint16] | None = None
    if image.masks:
        masks = [load_mask_file(mask, micrograph, info) for mask in image.masks]
        for mask, source in zip(masks, image.masks, strict=True):
            without_bar = mask.shape == (masks[0].shape[0], width) and _is_bar(
                height - mask.shape[0], height, options.images.data_bar
            )
            if mask.shape != (height, width) and not without_bar:
                raise InputError(f"is {width}x{height}, but its mask {source.path} is {mask.shape[1]}x{mask.shape[0]}")
        path = image.masks[0].instances
        if path and len(masks) == 1:
            instances = load_instance_ids(path)
            if instances.shape != masks[0].shape:
                raise InputError(f"is {width}x{height}, but {path} is {instances.shape[1]}x{instances.shape[0]}")
            instances[masks[0] == info.ignore_index] = 0
    else:
        composed = [
            compose_mask(
                [annotation for annotation in image.annotations if annotation.annotator == annotator],
                height,
                width,
                options.overlap,
                info.ignore_index,
            )
            for annotator in image.annotators
        ]
        masks = [mask for mask, _ in composed]
        instances = composed[0][1]
    if len(masks) == 1:
        return masks[0], instances
    return merge_masks(masks, options.agreement, info.ignore_index), None


def _is_bar(rows: int, height: int, data_bar: Literal["auto", "none"] | int) -> bool:
    """Whether the rows that are missing at the bottom of a mask can be the data bar of its image."""
    return 0 < rows <= MAX_BAR_SHARE * height if data_bar == "auto" else rows == data_bar
