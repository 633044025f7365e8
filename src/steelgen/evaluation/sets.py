"""The sets of images that an evaluation compares."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from steelgen.config.base import MAX_CROP_SIZE, MAX_IMAGE_SIZE, FactorRange
from steelgen.config.evaluate import GeometrySection
from steelgen.data.crops import CropDataset, Micrographs
from steelgen.data.folder import DatasetInfo, list_images, load_mask
from steelgen.data.images import load_image, to_channels
from steelgen.data.placement import CropGeometry, resize_image, resize_mask
from steelgen.data.rejects import load_rejects
from steelgen.errors import InputError
from steelgen.files import Record, load_record

MIN_IMAGES = 4
"""Fewer have no third neighbor and hardly a covariance."""


@dataclass(frozen=True)
class ImageSet:
    """Images of one size, with masks where there are any."""

    name: str
    """As it stands in tables: generated, test, train …"""
    images: NDArray[np.uint8]
    """(N, S, S) gray or (N, S, S, 3) RGB."""
    masks: NDArray[np.uint8] | None
    """(N, S, S) class indices or ignore_index; None for images without masks."""
    names: list[str]
    """What each image is called: a file name, or micrograph and crop number."""

    def __len__(self) -> int:
        return len(self.images)

    def select(self, indices: NDArray[np.intp]) -> ImageSet:
        """The images of those indices."""
        masks = None if self.masks is None else self.masks[indices]
        return replace(self, images=self.images[indices], masks=masks, names=[self.names[i] for i in indices])


class Cut(Record):
    """How generated images were cut, by a sampling.json; None where it does not say."""

    image_size: int | None = Field(None, ge=1, le=MAX_IMAGE_SIZE)
    crop_size: int | None = Field(None, ge=1, le=MAX_CROP_SIZE)
    scale_range: FactorRange | None = None
    in_channels: Literal[1, 3] | None = None
    source_split: str | None = None


@dataclass(frozen=True)
class GeneratedFolder:
    """A folder of generated images, found but not read."""

    images: list[Path]
    masks: list[Path] | None
    sampling: Cut
    """Content of sampling.json; nothing for a folder made elsewhere."""


def find_generated(folder: Path, masks_folder: Path | None = None) -> GeneratedFolder:
    """Finds images and masks in what `steelgen sample` wrote (both formats), in images/ + masks/, or in a plain folder.

    Samples in the form of a dataset are found by the dataset folder or by its train/; numbered sub-folders of images
    and masks belong to the set.

    Args:
        folder: the folder.
        masks_folder: where the masks are, if not in the folder.

    Raises:
        InputError: if the folder is missing, holds fewer than 4 images that are not rejected, or an image lacks its
            mask.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of generated images")
    # "folders" and "dataset" are sample's two output formats.
    root = folder / "train" if (folder / "train" / "images").is_dir() else folder
    image_folder = next((root / name for name in ("samples", "images") if (root / name).is_dir()), root)
    inside = next((root / name for name in ("labels", "masks") if (root / name).is_dir()), None)
    mask_folder = masks_folder or inside
    rejects = load_rejects(image_folder)
    images = [path for path in list_images(image_folder) if path.stem not in rejects]
    if len(images) < MIN_IMAGES:
        raise InputError(f"{image_folder}: {len(images)} images; at least {MIN_IMAGES} are needed")
    masks = None if mask_folder is None else _pair_masks(images, image_folder, mask_folder)
    return GeneratedFolder(images, masks, _load_sampling(root))


def _pair_masks(images: list[Path], image_folder: Path, mask_folder: Path) -> list[Path]:
    masks = {path.relative_to(mask_folder).with_suffix(""): path for path in list_images(mask_folder)}
    seen: dict[Path, Path] = {}
    for path in images:
        stem = path.relative_to(image_folder).with_suffix("")
        if stem not in masks:
            raise InputError(f"{path}: has no mask of the same name in {mask_folder}")
        if stem in seen:
            raise InputError(f"{path}: {seen[stem].name} has the same stem; masks are found by stem")
        seen[stem] = path
    return [masks[stem] for stem in seen]


def _load_sampling(root: Path) -> Cut:
    """sampling.json of a folder, or of the dataset folder that it is the train/ of."""
    places = [root, root.parent] if root.name == "train" else [root]
    path = next((place / "sampling.json" for place in places if (place / "sampling.json").is_file()), None)
    return Cut() if path is None else load_record(path, Cut)


def resolve_geometry(found: GeneratedFolder, section: GeometrySection) -> tuple[CropGeometry, list[str]]:
    """How real micrographs are cut: by the config, else sampling.json, else the first generated image.

    Returns:
        The geometry, and a sentence for each value that had to be assumed.
    """
    notes = []
    known = {key: value for known in (found.sampling, section) for key, value in known if value is not None}
    first = load_image(found.images[0])
    if "image_size" not in known:
        known["image_size"] = first.shape[0]
        notes.append(f"image_size {first.shape[0]} taken from the generated images (no sampling.json)")
    if "in_channels" not in known:
        known["in_channels"] = 1 if first.ndim == 2 else 3
        notes.append(f"in_channels {known['in_channels']} taken from the generated images (no sampling.json)")
    if "crop_size" not in known:
        known["crop_size"] = known["image_size"]
        notes.append(f"crop_size {known['image_size']} assumed: generated images at the scale of the micrographs")
    low, high = known.get("scale_range", (1.0, 1.0))
    geometry = CropGeometry(known["image_size"], known["crop_size"], (float(low), float(high)), known["in_channels"])
    return geometry, notes


def load_generated(found: GeneratedFolder, geometry: CropGeometry, info: DatasetInfo) -> tuple[ImageSet, list[str]]:
    """Reads generated images and masks, brought to the size and channels of the geometry.

    Returns:
        The set, and a sentence for every conversion that was made and every oddity that was seen.

    Raises:
        InputError: if a file is unreadable, an image is not square, sizes differ, or a mask does not fit.
    """
    images, masks, notes, size = [], [], [], geometry.image_size
    raw = [load_image(path) for path in found.images]
    for path, image in zip(found.images, raw, strict=True):
        height, width = image.shape[:2]
        if height != width:
            raise InputError(f"{path}: generated images must be square, this one is {width}x{height}")
        if image.shape[:2] != raw[0].shape[:2]:
            size = raw[0].shape[0]
            raise InputError(f"{path}: is {width}x{height}, but {found.images[0].name} is {size}x{size}")
        images.append(resize_image(to_channels(image, geometry.in_channels), geometry.image_size, geometry.image_size))
    for path, image in zip(found.masks or [], raw, strict=False):
        mask = load_mask(path, info)
        if mask.shape != image.shape[:2]:
            (h, w), (mh, mw) = image.shape[:2], mask.shape
            raise InputError(f"{path}: the mask is {mw}x{mh} but its image is {w}x{h}")
        masks.append(resize_mask(mask, geometry.image_size, geometry.image_size))
    if raw[0].shape[0] != geometry.image_size:
        notes.append(f"generated images resized from {raw[0].shape[0]} to {geometry.image_size} px")
    colored = sum(image.ndim == 3 for image in raw)
    if colored and geometry.in_channels == 1:
        notes.append(f"{colored} of {len(raw)} generated images are RGB and were turned gray (ITU-R 601 luma)")
    constant = sum(int(image.min() == image.max()) for image in raw)
    if constant:
        notes.append(f"{constant} of {len(raw)} generated images are constant")
    stack = np.stack(images)
    return ImageSet("generated", stack, np.stack(masks) if masks else None, [p.name for p in found.images]), notes


def cut_real_set(name: str, micrographs: Micrographs, geometry: CropGeometry, count: int, seed: int) -> ImageSet:
    """Cuts `count` random crops, evenly over the micrographs of a split, without flips."""
    crops = CropDataset(micrographs, geometry, seed, augment=False)
    images, masks = zip(*(crops.cut(number) for number in range(count)), strict=True)
    names = [f"{micrographs.stems[crops.micrograph_index(number)]} crop {number}" for number in range(count)]
    return ImageSet(name, np.stack(images), np.stack(masks), names)


def split_micrographs(micrographs: Micrographs, seed: int) -> tuple[Micrographs, Micrographs] | None:
    """Two halves of a split without a common micrograph; None where there is only one micrograph."""
    if len(micrographs) < 2:
        return None
    order = np.random.default_rng(seed).permutation(len(micrographs))
    half = len(order) // 2
    return micrographs.select(sorted(order[:half])), micrographs.select(sorted(order[half:]))


def describe_geometry(geometry: CropGeometry) -> str:
    """One line for reports: the size of the images, of the crop behind them, the channels."""
    low, high = asdict(geometry)["scale_range"]
    scale = "" if low == high == 1 else f" × {low:g}-{high:g}"
    kind = "gray" if geometry.in_channels == 1 else "RGB"
    return f"{geometry.image_size} px {kind}, crops of {geometry.crop_size}{scale} px of the micrographs"
