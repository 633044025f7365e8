"""Annotated micrographs of any kind → a dataset folder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from steelgen.data.annotations import AnnotatedImage, AnnotatedSet
from steelgen.data.compose import Agreement, Overlap, compose_mask, merge_masks
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
from steelgen.data.importers.trees import read_trees
from steelgen.data.importers.via import read_via
from steelgen.data.importers.voc import read_voc
from steelgen.data.importers.yolo import read_yolo
from steelgen.data.instances import load_instance_ids, save_instances
from steelgen.data.mask_files import load_mask_file
from steelgen.data.micrograph import MAX_BAR_SHARE, ImageOptions, Micrograph, load_micrograph
from steelgen.data.pool import map_on_cores
from steelgen.data.splits import assign_splits
from steelgen.errors import InputError
from steelgen.files import check_output_free, new_folder

Report = Callable[[int, int], None]
"""Told (done, total) as the work goes on."""


class Reader(NamedTuple):
    """How one kind of annotation is read."""

    read: Callable[[Path, ReadOptions], AnnotatedSet]
    uses: tuple[str, ...]
    """The fields of ReadOptions that mean something for it."""


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
    """How annotations are drawn and which split they go to."""

    overlap: Overlap = "later"
    agreement: Agreement = "majority"
    fractions: dict[str, float] | None = None
    """Share of each split; where None the source's own splits, or 70/15/15 % where it has none."""
    split_by: str = "parent"
    """Images with the same value stay together: `parent`, or a metadata column such as `type`."""
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
    """Reads annotated micrographs of a kind and writes them as a dataset folder.

    Raises:
        InputError: if the kind is unknown, an option means nothing for it, the source cannot be used, or `out` is in
            use.
    """
    if kind not in READERS:
        raise InputError(f"import kind {kind!r}: known are {', '.join(READERS)}")
    read = read or ReadOptions()
    for option in fields(ReadOptions):
        if option.name not in READERS[kind].uses and getattr(read, option.name) != option.default:
            raise InputError(f"--{option.name.replace('_', '-')}: means nothing for {kind}")
    check_output_free(out)
    return write_dataset(READERS[kind].read(src, read), out, write, report)


def write_dataset(
    annotated: AnnotatedSet, out: Path, options: WriteOptions | None = None, report: Report | None = None
) -> DatasetInfo:
    """Draws the masks and writes the dataset folder, one image after the other; `out` appears when all of it is there.

    Returns:
        the content of dataset.json.

    Raises:
        InputError: if an image cannot be used, two images would get the same name, a split would be empty, or
            `out` is in use.
    """
    options = options or WriteOptions()
    splits = choose_splits(annotated.images, options)
    _check_names(annotated.images, splits)
    info = annotated.info
    pixel_sizes = set()
    rows = []
    with new_folder(out) as working:
        for split in dict.fromkeys(splits):
            (working / split / "images").mkdir(parents=True)
            (working / split / "masks").mkdir()
        tasks = list(zip(annotated.images, splits, strict=True))
        for number, row in enumerate(map_on_cores(partial(_write_image, working, info, options), tasks)):
            pixel_sizes.add(row.get("pixel_size_um"))
            rows.append(row)
            if report:
                report(number + 1, len(splits))
        if len(pixel_sizes) == 1:
            info = info.model_copy(update={"pixel_size_um": pixel_sizes.pop()})
        save_metadata(working, rows)
        save_dataset_info(working, info)
    return info


def choose_splits(images: list[AnnotatedImage], options: WriteOptions) -> list[str]:
    """The split of each image: by the fractions asked for, else the source's own, else 70/15/15 %.

    Raises:
        InputError: if a split would be empty, or an image lacks the column to split by.
    """
    suggested = [image.split for image in images if image.split is not None]
    if options.fractions is None and len(suggested) == len(images):
        return suggested
    if options.fractions is None and suggested:
        stray = next(image for image in images if image.split is None)
        raise InputError(f"{stray.path}: is in none of the source's splits; ask for new ones with --split")
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
            raise InputError(f"{image.path}: {image.stem!r} cannot be the name of an image in a dataset folder")
        other = taken.setdefault((split, image.stem.casefold()), image.path)
        if other is not image.path:
            raise InputError(f"{image.path}: {other} would get the same name in {split}")


def _write_image(
    root: Path, info: DatasetInfo, options: WriteOptions, task: tuple[AnnotatedImage, str]
) -> dict[str, Any]:
    image, split = task
    micrograph = load_micrograph(image.path, options.images)
    height, width = micrograph.full_height, micrograph.image.shape[1]
    if image.size not in (None, (height, width)):
        stated = f"{image.size[1]}x{image.size[0]}" if image.size else ""
        raise InputError(f"{image.path}: is {width}x{height}, but its annotations are for {stated}")
    try:
        mask, instances = _draw(image, micrograph, info, options)
    except InputError as error:
        raise InputError(f"{image.path}: {error}") from None
    # Masks may lack the data bar of their image.
    rows = min(micrograph.image.shape[0], mask.shape[0])
    kept = slice(0, rows)
    file_name = f"{split}/images/{image.stem}.png"
    save_micrograph(root / file_name, micrograph.image[kept])
    save_mask(root / split / "masks" / f"{image.stem}.png", mask[kept], info.palette)
    if instances is not None:
        save_instances(root / split / "instances" / f"{image.stem}.png", instances[kept])
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


def _draw(
    image: AnnotatedImage, micrograph: Micrograph, info: DatasetInfo, options: WriteOptions
) -> tuple[NDArray[np.uint8], NDArray[np.uint16] | None]:
    """The mask of a whole image, or, where it is a file without the data bar, of what is above; its instance map too,
    where one annotator drew objects."""
    height, width = micrograph.full_height, micrograph.image.shape[1]
    if image.masks:
        masks = [load_mask_file(mask, micrograph, info) for mask in image.masks]
        for mask, source in zip(masks, image.masks, strict=True):
            lacks_bar = mask.shape == (masks[0].shape[0], width) and _is_bar(
                height - mask.shape[0], height, options.images.data_bar
            )
            if mask.shape != (height, width) and not lacks_bar:
                raise InputError(f"is {width}x{height}, but its mask {source.path} is {mask.shape[1]}x{mask.shape[0]}")
        first = image.masks[0].instances
        instances = load_instance_ids(first) if first and len(masks) == 1 else None
        if instances is not None and instances.shape != masks[0].shape:
            raise InputError(f"is {width}x{height}, but {first} is {instances.shape[1]}x{instances.shape[0]}")
        if instances is not None:
            instances[masks[0] == info.ignore_index] = 0
    else:
        drawn = [
            compose_mask(
                [annotation for annotation in image.annotations if annotation.annotator == annotator],
                height,
                width,
                options.overlap,
                info.ignore_index,
            )
            for annotator in image.annotators
        ]
        masks = [mask for mask, _ in drawn]
        instances = drawn[0][1] if len(drawn) == 1 else None
    if len(masks) == 1:
        return masks[0], instances
    return merge_masks(masks, options.agreement, info.ignore_index), None


def _is_bar(rows: int, height: int, data_bar: Literal["auto", "none"] | int) -> bool:
    """Whether `rows` that a mask lacks at the bottom can be the data bar of its image."""
    return 0 < rows <= MAX_BAR_SHARE * height if data_bar == "auto" else rows == data_bar
