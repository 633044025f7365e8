"""The dataset folder, which importers write and all other commands read.

    dataset.json                          name, class names, palette, ignore_index, pixel size, license, source
    metadata.jsonl                        optional; one line per image: file_name, parent micrograph, further metadata
    train/ val/ test/  images/  masks/    paired by file stem; without masks/ the dataset has no classes
                       instances/         optional; instance maps, see `instances`
    train/rejects.txt                     optional; stems that `list_pairs` skips, one per line

Masks are single-channel 8-bit palette PNGs: class indices on disk, colors in any viewer, 255 is "ignore".
Three other layouts are supported: ISDM's (train|test/{images,masks}, no dataset.json, binary masks of 0 and 255),
images/ and masks/ without splits, as a training split, and a plain folder of images, as one without masks.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from steelgen.data.images import find_mask_values, load_image, load_index_image
from steelgen.data.instances import load_instance_ids
from steelgen.data.palette import default_palette, isdm_palette, name_classes
from steelgen.data.rejects import REJECTS_FILE, load_rejects
from steelgen.errors import InputError
from steelgen.files import Record, load_record, load_text, new_file, parse_json, parse_record, save_json

SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")
_ISDM_LAYOUT = "ISDM folder layout (no dataset.json)"

Channel = Annotated[int, Field(ge=0, le=255)]
"""Channel of an RGB color."""


class DatasetInfo(BaseModel):
    """Content of dataset.json."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str
    class_names: list[str] = Field(max_length=255)
    """Class names by index; empty for images without masks."""
    palette: list[tuple[Channel, Channel, Channel]] = []
    """RGB color (0-255) per class, for viewing only; empty selects colors safe for color-vision deficiencies."""
    ignore_index: int = Field(255, ge=0, le=255)
    """Mask value of pixels without a class; they are excluded from losses and metrics."""
    pixel_size_um: float | None = Field(None, gt=0, lt=1e6)
    """Edge length of a pixel in µm; None if unknown."""
    licence: str = ""
    source: str = ""

    @model_validator(mode="after")
    def _check(self) -> DatasetInfo:
        self.palette = self.palette or default_palette(len(self.class_names))
        if len(self.palette) != len(self.class_names):
            raise ValueError(f"{len(self.palette)} palette colors for {len(self.class_names)} class names")
        if self.ignore_index < self.num_classes:
            raise ValueError(f"ignore_index {self.ignore_index} is also the index of a class")
        return self

    @property
    def num_classes(self) -> int:
        """Number of class names; masks contain 0 … num_classes − 1 and ignore_index."""
        return len(self.class_names)


@dataclass(frozen=True)
class Pair:
    """An image file and its mask file."""

    stem: str
    image: Path
    mask: Path | None
    """None in a dataset without masks."""

    @property
    def instances(self) -> Path | None:
        """Path of the instance map, which may not exist: SPLIT/instances/STEM.png; None without a mask."""
        if self.mask is None:
            return None
        folder = self.mask.parent.parent if self.mask.parent.name.isdigit() else self.mask.parent
        return folder.parent / "instances" / f"{self.stem}.png"


def load_dataset_info(root: Path) -> DatasetInfo:
    """Reads dataset.json, or infers it from the masks of a folder in ISDM's layout.

    Raises:
        InputError: if `root` is not a dataset folder or dataset.json is malformed.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such dataset folder")
    path = root / "dataset.json"
    if path.is_file():
        return load_record(path, DatasetInfo)
    if not list_splits(root):
        raise InputError(f"{root}: not a dataset folder: needs images, or train/, val/ or test/ with images/")
    return _infer_info(root)


def save_dataset_info(root: Path, info: DatasetInfo) -> None:
    """Writes dataset.json."""
    save_json(root / "dataset.json", info.model_dump(mode="json"))


def list_splits(root: Path) -> list[str]:
    """Lists the splits in a dataset folder, in the order train, val, test; one without splits is train."""
    splits = [split for split in SPLITS if (root / split / "images").is_dir()]
    if splits or not root.is_dir():
        return splits
    plain = not (root / "dataset.json").is_file() and list_images(root)
    return ["train"] if plain or _is_unsplit(root) else []


def find_images(root: Path, split: str) -> Path:
    """Returns the folder with the images of an existing split."""
    folder = root / split / "images"
    if folder.is_dir():
        return folder
    return root / "images" if _is_unsplit(root) else root


def _is_unsplit(root: Path) -> bool:
    return all((root / kind).is_dir() for kind in ("images", "masks"))


def find_masks(root: Path, split: str) -> Path:
    """Returns the folder with the masks of an existing split, which may be missing."""
    images = find_images(root, split)
    return (root / split if images == root else images.parent) / "masks"


def list_images(folder: Path) -> list[Path]:
    """Lists the image files in `folder` and its numbered subfolders, sorted; skips hidden files.

    `steelgen sample` writes large sets to numbered subfolders (000/, 001/ …).

    Raises:
        InputError: if the folder does not exist.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    numbered = [path for path in folder.iterdir() if path.name.isdigit() and path.is_dir()]
    return sorted(
        path
        for each in (folder, *numbered)
        for path in each.iterdir()
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")
    )


def list_kept(folder: Path) -> list[Path]:
    """Lists the images in a folder that are not in its rejects.txt; see `list_images`."""
    rejects = load_rejects(folder)
    return [path for path in list_images(folder) if path.stem not in rejects]


def list_pairs(root: Path, split: str, with_rejects: bool = False) -> list[Pair]:
    """Lists the image/mask pairs of a split, sorted by stem; the images only if there is no masks/.

    Args:
        with_rejects: include the pairs in the split's rejects.txt.

    Raises:
        InputError: if the split is missing, empty or rejected as a whole, a stem occurs twice, or an image or mask has
            no partner.
    """
    present, folder = list_splits(root), root / split
    if split not in present and not folder.is_dir():
        known = f"{', '.join(present)}; `steelgen data split` creates others" if present else "none"
        raise InputError(f"{root}: no split {split!r} (present: {known})")
    image_folder = find_images(root, split) if split in present else folder / "images"
    images = index_by_stem(list_images(image_folder))
    masks: dict[str, Path] | None = None
    mask_folder = find_masks(root, split) if split in present else folder / "masks"
    if mask_folder.is_dir():
        masks = index_by_stem(list_images(mask_folder))
        if alone := sorted(masks.keys() - images.keys()):
            raise InputError(f"{masks[alone[0]]}: has no image of the same name")
        if unlabeled := sorted(images.keys() - masks.keys()):
            raise InputError(
                f"{images[unlabeled[0]]}: has no mask of the same name, {len(unlabeled)} of {len(images)} images have "
                "none; unlabeled micrographs belong into a folder of their own, see `steelgen plan --unlabeled`"
            )
    if not images:
        raise InputError(f"{folder}: the split is empty")
    rejects = frozenset() if with_rejects else load_rejects(image_folder)
    pairs = [Pair(stem, images[stem], masks[stem] if masks else None) for stem in images if stem not in rejects]
    if not pairs:
        raise InputError(f"{image_folder}: {REJECTS_FILE} rejects all images of the split")
    return pairs


def list_samples(root: Path) -> list[Pair]:
    """Lists the pairs of samples/ and labels/ in a samples folder, sorted by stem; masks may still be missing."""
    pairs = []
    for image in list_images(root / "samples"):
        mask = root / "labels" / image.relative_to(root / "samples")
        pairs.append(Pair(image.stem, image, mask if mask.is_file() else None))
    return sorted(pairs, key=lambda pair: pair.stem)


def load_pair(pair: Pair, info: DatasetInfo) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Reads one pair.

    Returns:
        image: (H, W) or (H, W, 3) uint8; mask: (H, W) uint8 class indices or ignore_index, which fills the mask in a
        dataset without masks.

    Raises:
        InputError: if a file is unreadable, the sizes differ, the mask contains an unknown index, or a dataset with
            classes has no mask.
    """
    image = load_image(pair.image)
    if pair.mask is None:
        if info.num_classes:
            raise InputError(f"{pair.image}: has no mask, but its dataset has classes ({', '.join(info.class_names)})")
        return image, np.full(image.shape[:2], info.ignore_index, np.uint8)
    mask = load_mask(pair.mask, info)
    if image.shape[:2] != mask.shape:
        (h, w), (mh, mw) = image.shape[:2], mask.shape
        raise InputError(f"{pair.mask}: the mask is {mw}x{mh}, but its image {pair.image.name} is {w}x{h}")
    return image, mask


def load_instances(pair: Pair, shape: tuple[int, ...]) -> NDArray[np.uint16] | None:
    """Reads the instance map of a pair as (H, W) ids; None if it has none.

    Raises:
        InputError: if the file is unreadable or its size is not `shape`, the (H, W) of the mask.
    """
    path = pair.instances
    if path is None or not path.is_file():
        return None
    instances = load_instance_ids(path)
    if instances.shape != shape:
        (h, w), (mh, mw) = instances.shape, shape
        raise InputError(f"{path}: the instance map is {w}x{h}, but its mask is {mw}x{mh}")
    return instances


def load_mask(path: Path, info: DatasetInfo) -> NDArray[np.uint8]:
    """Reads a mask as (H, W) uint8 class indices; a binary mask of 0 and 255 becomes classes 0 and 1.

    Raises:
        InputError: if the file is unreadable or contains an index that is neither a class nor ignore_index.
    """
    mask = load_index_image(path)
    present = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    # With a dataset.json, 255 means "ignore"; without one, the info of such masks was inferred as two classes.
    if info.source == _ISDM_LAYOUT and info.num_classes == 2 and set(present) <= {0, 255}:
        return (mask == 255).astype(np.uint8)
    unknown = present[(present >= info.num_classes) & (present != info.ignore_index)]
    if unknown.size:
        raise InputError(
            f"{path}: mask index {unknown[0]} is not below num_classes {info.num_classes} "
            f"(and not ignore_index {info.ignore_index})"
        )
    return mask


def save_mask(path: Path, mask: NDArray[np.uint8], palette: list[tuple[int, int, int]]) -> None:
    """Writes (H, W) uint8 class indices as a palette PNG; index 255 is white."""
    with new_file(path) as working:
        build_index_image(mask, palette).save(working, optimize=True)


def build_index_image(mask: NDArray[np.uint8], palette: list[tuple[int, int, int]]) -> Image.Image:
    """Converts (H, W) uint8 class indices to a palette image; index 255 is white."""
    image = Image.fromarray(mask)
    image.putpalette(bytes(channel for color in palette for channel in color) + b"\xff" * (768 - 3 * len(palette)))
    return image


def load_metadata(root: Path) -> dict[str, dict[str, Any]]:
    """Reads metadata.jsonl as {file_name: row}; empty without the file.

    Raises:
        InputError: if a line is not a JSON object with a file_name; the message has the line number.
    """
    path = root / "metadata.jsonl"
    rows: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(load_text(path).split("\n") if path.is_file() else (), start=1):
        if line.strip():
            row = parse_json(line, str(path), number)
            rows[parse_record(row, _MetadataRow, f"{path}:{number}").file_name] = row
    return rows


class _MetadataRow(Record):
    file_name: str
    pixel_size_um: float | None = Field(None, gt=0, lt=1e6, strict=True)


def save_metadata(root: Path, rows: list[dict[str, Any]]) -> None:
    """Writes metadata.jsonl; each row contains `file_name`, the path of the image relative to `root`."""
    with new_file(root / "metadata.jsonl") as working:
        working.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def index_by_stem(paths: Iterable[Path]) -> dict[str, Path]:
    """Maps file stems to paths; raises an `InputError` if two paths have the same stem."""
    found: dict[str, Path] = {}
    for path in paths:
        if found.setdefault(path.stem, path) is not path:
            raise InputError(f"{path}: {found[path.stem]} has the same stem; files are paired by stem")
    return found


def _infer_info(root: Path) -> DatasetInfo:
    splits = [split for split in list_splits(root) if find_masks(root, split).is_dir()]
    if not splits:
        return DatasetInfo(name=root.resolve().name, class_names=[], source="images without masks (no dataset.json)")
    values = find_mask_values(path for split in splits for path in list_images(find_masks(root, split)))
    names = ["background", "foreground"] if set(values) <= {0, 255} else name_classes(values)
    return DatasetInfo(
        name=root.resolve().name, class_names=names, palette=isdm_palette(len(names)), source=_ISDM_LAYOUT
    )
