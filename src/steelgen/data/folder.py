"""The dataset folder: what every importer writes and everything else reads.

    dataset.json                          name, class names, palette, ignore_index, pixel size, licence, source
    metadata.jsonl                        optional; one line an image: file_name, parent micrograph, anything else known
    train/ val/ test/  images/  masks/    paired by file stem; without masks/ the dataset has no classes
    train/rejects.txt                     optional; stems that `list_pairs` passes over, one a line

Masks are single-channel 8-bit palette PNGs: class indices on disk, colors in any viewer, 255 is "ignore".
ISDM's own layout (train|test/{images,masks}, no dataset.json, binary masks of 0 and 255) reads too, and so does a plain
folder of images, as a training split without masks.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict, Field, model_validator

from steelgen.data.images import load_image, load_index_image
from steelgen.data.palette import default_palette, isdm_palette
from steelgen.data.rejects import REJECTS_FILE, load_rejects
from steelgen.errors import InputError
from steelgen.files import Record, load_record, load_text, new_file, parse_json, parse_record, save_json

SPLITS = ("train", "val", "test")
IMAGE_SUFFIXES = (".png", ".tif", ".tiff", ".jpg", ".jpeg", ".bmp")


Channel = Annotated[int, Field(ge=0, le=255)]
"""Of a color."""


class DatasetInfo(BaseModel):
    """The content of dataset.json."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    name: str
    class_names: list[str] = Field(max_length=255)
    """None for images without masks."""
    palette: list[tuple[Channel, Channel, Channel]] = []
    """One RGB color (0-255) a class, for viewing only; colors that all can tell apart where none are given."""
    ignore_index: int = Field(255, ge=0, le=255)
    """Mask value of pixels that belong to no class and count nowhere."""
    pixel_size_um: float | None = Field(None, gt=0, lt=1e6)
    """Edge length of a pixel in µm, where known."""
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
        """Classes that have names; masks hold 0 … num_classes − 1 and ignore_index."""
        return len(self.class_names)


@dataclass(frozen=True)
class Pair:
    """One micrograph and its mask on disk."""

    stem: str
    image: Path
    mask: Path | None
    """None in a dataset without masks."""


def load_dataset_info(root: Path) -> DatasetInfo:
    """Reads dataset.json, or infers it from the masks of a folder in ISDM's layout.

    Raises:
        InputError: if `root` is no dataset folder or dataset.json is malformed.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such dataset folder")
    path = root / "dataset.json"
    if path.is_file():
        return load_record(path, DatasetInfo)
    if not list_splits(root):
        raise InputError(
            f"{root}: not a dataset folder (no dataset.json, no train/, val/ or test/ with images/, and no images)"
        )
    return _infer_info(root)


def save_dataset_info(root: Path, info: DatasetInfo) -> None:
    """Writes dataset.json."""
    save_json(root / "dataset.json", info.model_dump(mode="json"))


def list_splits(root: Path) -> list[str]:
    """The splits present in a dataset folder, in the order train, val, test; a plain folder of images is train."""
    splits = [split for split in SPLITS if (root / split / "images").is_dir()]
    plain = not splits and root.is_dir() and not (root / "dataset.json").is_file() and list_images(root)
    return ["train"] if plain else splits


def find_images(root: Path, split: str) -> Path:
    """The folder with the images of a split that is present."""
    folder = root / split / "images"
    return folder if folder.is_dir() else root


def list_images(folder: Path) -> list[Path]:
    """The image files in `folder` and in its numbered sub-folders, sorted; hidden files are passed over.

    Numbered sub-folders (000/, 001/ …) are how `steelgen sample` lays down large sets.

    Raises:
        InputError: if there is no such folder.
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


def list_pairs(root: Path, split: str, with_rejects: bool = False) -> list[Pair]:
    """The image/mask pairs of one split, sorted by stem; without a folder of masks the images alone.

    Args:
        with_rejects: also those that the split's rejects.txt names.

    Raises:
        InputError: if the split is missing or empty, all of it is rejected, a stem occurs twice, or an image or a mask
            lacks its partner.
    """
    present, folder = list_splits(root), root / split
    if split not in present and not folder.is_dir():
        known = f"{', '.join(present)}; `steelgen data split` makes others" if present else "none"
        raise InputError(f"{root}: no split {split!r} (present: {known})")
    image_folder = find_images(root, split) if split in present else folder / "images"
    images = _by_stem(image_folder)
    masks: dict[str, Path] | None = None
    if not images or (folder / "masks").is_dir():
        masks = _by_stem(folder / "masks")
        for stem in images.keys() ^ masks.keys():
            path, other = (images[stem], "mask") if stem in images else (masks[stem], "image")
            raise InputError(f"{path}: has no {other} of the same name")
    if not images:
        raise InputError(f"{folder}: the split is empty")
    rejects = frozenset() if with_rejects else load_rejects(image_folder)
    pairs = [Pair(stem, images[stem], masks[stem] if masks else None) for stem in images if stem not in rejects]
    if not pairs:
        raise InputError(f"{image_folder}: {REJECTS_FILE} names every image of the split")
    return pairs


def list_samples(root: Path) -> list[Pair]:
    """The pairs of samples/ and labels/, as `steelgen sample` writes them, by stem; perhaps without masks so far."""
    pairs = []
    for image in list_images(root / "samples"):
        mask = root / "labels" / image.relative_to(root / "samples")
        pairs.append(Pair(image.stem, image, mask if mask.is_file() else None))
    return sorted(pairs, key=lambda pair: pair.stem)


def load_pair(pair: Pair, info: DatasetInfo) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Reads one pair.

    Returns:
        image: (H, W) or (H, W, 3) uint8; mask: (H, W) uint8 class indices or ignore_index, which is all there is where
        there is no mask.

    Raises:
        InputError: if a file is unreadable, the sizes differ, the mask holds an unknown index, or is missing though
            there are classes.
    """
    image = load_image(pair.image)
    if pair.mask is None:
        if info.num_classes:
            raise InputError(f"{pair.image}: has no mask, but its dataset has classes ({', '.join(info.class_names)})")
        return image, np.full(image.shape[:2], info.ignore_index, np.uint8)
    mask = load_mask(pair.mask, info)
    if image.shape[:2] != mask.shape:
        (h, w), (mh, mw) = image.shape[:2], mask.shape
        raise InputError(f"{pair.mask}: the mask is {mw}x{mh} but its image {pair.image.name} is {w}x{h}")
    return image, mask


def load_mask(path: Path, info: DatasetInfo) -> NDArray[np.uint8]:
    """Reads a mask as (H, W) uint8 class indices; a binary mask of 0 and 255 becomes classes 0 and 1.

    Raises:
        InputError: if the file is unreadable or holds an index that is neither a class nor ignore_index.
    """
    mask = load_index_image(path)
    present = np.flatnonzero(np.bincount(mask.ravel(), minlength=256))
    if _is_isdm_binary(info, present):
        return (mask == 255).astype(np.uint8)
    unknown = present[(present >= info.num_classes) & (present != info.ignore_index)]
    if unknown.size:
        raise InputError(
            f"{path}: mask index {unknown[0]} is not below num_classes {info.num_classes} "
            f"(and not ignore_index {info.ignore_index})"
        )
    return mask


def save_mask(path: Path, mask: NDArray[np.uint8], palette: list[tuple[int, int, int]]) -> None:
    """Writes (H, W) uint8 class indices as a palette PNG; index 255 shows as white."""
    with new_file(path) as working:
        build_index_image(mask, palette).save(working, optimize=True)


def build_index_image(mask: NDArray[np.uint8], palette: list[tuple[int, int, int]]) -> Image.Image:
    """(H, W) uint8 class indices as a palette image; index 255 shows as white."""
    image = Image.fromarray(mask)
    image.putpalette(bytes(channel for color in palette for channel in color) + b"\xff" * (768 - 3 * len(palette)))
    return image


def load_metadata(root: Path) -> dict[str, dict[str, Any]]:
    """Reads metadata.jsonl as {file_name: row}; empty where there is none.

    Raises:
        InputError: if a line is not a JSON object with a file_name; the message gives the line.
    """
    path = root / "metadata.jsonl"
    if not path.is_file():
        return {}
    rows: dict[str, dict[str, Any]] = {}
    for number, line in enumerate(load_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        row = parse_json(line, str(path), number)
        rows[parse_record(row, _MetadataRow, f"{path}:{number}").file_name] = row
    return rows


class _MetadataRow(Record):
    file_name: str
    pixel_size_um: float | None = Field(None, gt=0, lt=1e6, strict=True)


def save_metadata(root: Path, rows: list[dict[str, Any]]) -> None:
    """Writes metadata.jsonl; each row holds `file_name`, the path of the image below `root`."""
    with new_file(root / "metadata.jsonl") as working:
        working.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def _by_stem(folder: Path) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for path in list_images(folder):
        if path.stem in paths:
            raise InputError(f"{path}: {paths[path.stem].name} has the same stem; pairs are found by stem")
        paths[path.stem] = path
    return paths


def _is_isdm_binary(info: DatasetInfo, present: NDArray[np.intp]) -> bool:
    # With a dataset.json 255 is "ignore" by definition; without one the root was inferred as two classes.
    return info.source == _ISDM_LAYOUT and info.num_classes == 2 and set(present) <= {0, 255}


_ISDM_LAYOUT = "ISDM folder layout (no dataset.json)"


def _infer_info(root: Path) -> DatasetInfo:
    splits = [split for split in list_splits(root) if (root / split / "masks").is_dir()]
    if not splits:
        return DatasetInfo(name=root.resolve().name, class_names=[], source="images without masks (no dataset.json)")
    highest, binary = 0, True
    for split in splits:
        for path in list_images(root / split / "masks"):
            present = np.unique(load_index_image(path))
            binary &= set(present) <= {0, 255}
            classes = present[present != 255]
            highest = max(highest, int(classes.max()) if classes.size else 0)
    names = ["background", "foreground"] if binary else [f"class_{index}" for index in range(highest + 1)]
    return DatasetInfo(
        name=root.resolve().name, class_names=names, palette=isdm_palette(len(names)), source=_ISDM_LAYOUT
    )
