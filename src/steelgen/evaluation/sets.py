"""Image sets of an evaluation, and how they are found, read and cut."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from steelgen.config.base import MAX_CROP_SIZE, MAX_IMAGE_SIZE, FactorRange
from steelgen.config.evaluate import EvaluateConfig, GeometrySection
from steelgen.data.crops import CropDataset, Micrographs, load_micrographs
from steelgen.data.folder import DatasetInfo, list_images, load_dataset_info, load_mask
from steelgen.data.images import load_image, to_channels
from steelgen.data.placement import CropGeometry, resize_image, resize_mask
from steelgen.data.rejects import load_rejects
from steelgen.devices import pick_device
from steelgen.errors import InputError
from steelgen.evaluation.figures import Figure
from steelgen.files import Record, default_cache_dir, load_record

MIN_IMAGES = 4
"""Precision and recall need three neighbors."""


@dataclass(frozen=True)
class ImageSet:
    """Images of one size, with masks if there are any."""

    name: str
    """Name in tables: generated, test, train …"""
    images: NDArray[np.uint8]
    """(N, S, S) gray or (N, S, S, 3) RGB."""
    masks: NDArray[np.uint8] | None
    """(N, S, S) class indices or ignore_index; None for images without masks."""
    names: list[str]
    """Name of each image: file name, or micrograph and crop number."""

    def __len__(self) -> int:
        return len(self.images)


class _Source(Record):
    kind: str | None = None


class _SampleConfig(Record):
    mask_source: _Source = _Source()
    labels: dict[str, Any] | None = None
    stages: list[dict[str, Any]] = []


class SamplingGeometry(Record):
    """Geometry of generated images from sampling.json, and where their masks are from; None for missing values."""

    image_size: int | None = Field(None, ge=1, le=MAX_IMAGE_SIZE)
    crop_size: int | None = Field(None, ge=1, le=MAX_CROP_SIZE)
    scale_range: FactorRange | None = None
    in_channels: Literal[1, 3] | None = None
    source_split: str | None = None
    makes_masks: bool = False
    config: _SampleConfig = _SampleConfig()

    @property
    def new_masks(self) -> bool:
        """Whether the masks are new: of a generator, in pairs or before the images, or drawn by rules."""
        kind = self.config.mask_source.kind
        pairs = kind == "none" and self.makes_masks and self.config.labels is None
        return pairs or kind in ("learned", "procedural")


@dataclass(frozen=True)
class GeneratedFolder:
    """Paths of generated images and masks."""

    images: list[Path]
    masks: list[Path] | None
    sampling: SamplingGeometry
    """Content of sampling.json; all None without it."""


def find_generated(folder: Path, masks_folder: Path | None = None) -> GeneratedFolder:
    """Finds images and masks in a samples folder (both formats), a folder with images/ and masks/, or a plain folder.

    For the dataset format, `folder` may be the dataset folder or its train/. Numbered subfolders of images and masks
    are included, rejected images are not.

    Args:
        masks_folder: folder of the masks, if not in `folder`.

    Raises:
        InputError: if the folder is missing or has fewer than 4 images, or an image has no mask.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder of generated images")
    root = folder / "train" if (folder / "train" / "images").is_dir() else folder
    image_folder = next((root / name for name in ("samples", "images") if (root / name).is_dir()), root)
    mask_folder = masks_folder or next((root / name for name in ("labels", "masks") if (root / name).is_dir()), None)
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
            raise InputError(f"{path}: no mask with the same stem in {mask_folder}")
        if stem in seen:
            raise InputError(f"{path}: {seen[stem].name} has the same stem; masks are paired by stem")
        seen[stem] = path
    return [masks[stem] for stem in seen]


def _load_sampling(root: Path) -> SamplingGeometry:
    """sampling.json of a samples folder; that of the dataset format is beside train/."""
    folders = [root, root.parent] if root.name == "train" else [root]
    path = next((folder / "sampling.json" for folder in folders if (folder / "sampling.json").is_file()), None)
    return SamplingGeometry() if path is None else load_record(path, SamplingGeometry)


def resolve_geometry(found: GeneratedFolder, section: GeometrySection) -> tuple[CropGeometry, list[str]]:
    """Resolves the geometry of real crops from the config, else sampling.json, else the first generated image.

    Returns:
        The geometry, and a note for each value that was assumed.
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
        notes.append(f"crop_size {known['image_size']} assumed: generated images and micrographs have the same scale")
    low, high = known.get("scale_range", (1.0, 1.0))
    geometry = CropGeometry(known["image_size"], known["crop_size"], (float(low), float(high)), known["in_channels"])
    return geometry, notes


def load_generated(found: GeneratedFolder, geometry: CropGeometry, info: DatasetInfo) -> tuple[ImageSet, list[str]]:
    """Reads generated images and masks and converts them to the size and channels of the geometry.

    Returns:
        The set, and a note for each kind of conversion and for constant images.

    Raises:
        InputError: if a file is unreadable, an image is not square, sizes differ, or a mask does not fit.
    """
    images, masks, notes = [], [], []
    raw = [load_image(path) for path in found.images]
    edge, size = raw[0].shape[0], geometry.image_size
    for path, image in zip(found.images, raw, strict=True):
        height, width = image.shape[:2]
        if height != width:
            raise InputError(f"{path}: is {width}x{height} px; generated images must be square")
        if height != edge:
            raise InputError(f"{path}: is {width}x{height} px, but {found.images[0].name} is {edge}x{edge} px")
        images.append(resize_image(to_channels(image, geometry.in_channels), size, size))
    for path, image in zip(found.masks or [], raw, strict=False):
        mask = load_mask(path, info)
        if mask.shape != image.shape[:2]:
            height, width = mask.shape
            raise InputError(f"{path}: the mask is {width}x{height} px, but its image is {edge}x{edge} px")
        masks.append(resize_mask(mask, size, size))
    if edge != size:
        notes.append(f"generated images resized from {edge} to {size} px")
    colored = sum(image.ndim == 3 for image in raw)
    if colored and geometry.in_channels == 1:
        notes.append(f"{colored} of {len(raw)} generated images are RGB and were converted to gray (ITU-R 601 luma)")
    constant = sum(int(image.min() == image.max()) for image in raw)
    if constant:
        notes.append(f"{constant} of {len(raw)} generated images are constant")
    names = [path.name for path in found.images]
    return ImageSet("generated", np.stack(images), np.stack(masks) if masks else None, names), notes


def cut_real_set(name: str, micrographs: Micrographs, geometry: CropGeometry, count: int, seed: int) -> ImageSet:
    """Cuts `count` random crops without flips, evenly distributed over the micrographs."""
    crops = CropDataset(micrographs, geometry, seed, augment=False)
    images, masks = zip(*(crops.cut(number) for number in range(count)), strict=True)
    names = [f"{micrographs.stems[crops.micrograph_index(number)]} crop {number}" for number in range(count)]
    return ImageSet(name, np.stack(images), np.stack(masks), names)


def split_micrographs(micrographs: Micrographs, seed: int) -> tuple[Micrographs, Micrographs] | None:
    """Splits micrographs into two random halves; None if there is only one."""
    if len(micrographs) < 2:
        return None
    order = np.random.default_rng(seed).permutation(len(micrographs))
    half = len(order) // 2
    return micrographs.select(sorted(order[:half])), micrographs.select(sorted(order[half:]))


def describe_geometry(geometry: CropGeometry) -> str:
    """One line for reports: size and channels of the images, and the size of their crops."""
    low, high = geometry.scale_range
    scale = "" if low == high == 1 else f" × {low:g}-{high:g}"
    kind = "gray" if geometry.in_channels == 1 else "RGB"
    return f"{geometry.image_size} px, {kind}, from crops of {geometry.crop_size}{scale} px"


@dataclass(frozen=True)
class Evidence:
    """The image sets and settings that every section of an evaluation uses."""

    config: EvaluateConfig
    info: DatasetInfo
    geometry: CropGeometry
    generated: ImageSet
    held_out: ImageSet
    """Real crops of micrographs not used to train the generator."""
    train: ImageSet
    """Real crops of the generator's training micrographs."""
    train_halves: tuple[ImageSet, ImageSet] | None
    """Crops of two halves of the training micrographs, for the floor of comparisons with `train`."""
    train_micrographs: Micrographs
    cache_dir: Path
    device: str
    new_masks: bool = False
    """Whether the generated masks are known to be new; see `SamplingGeometry`."""
    cascaded: bool = False
    """Whether the images are those of a cascade, by sampling.json."""

    @property
    def comparisons(self) -> list[tuple[ImageSet, tuple[ImageSet, ImageSet] | None]]:
        """Each reference set with the two real sets of its floor."""
        return [(self.held_out, (self.train, self.held_out)), (self.train, self.train_halves)]


Judgment = tuple[list[Figure], dict[str, Any], list[str]]
"""Result of a section: figures, details for the JSON file, warnings."""


def load_evidence(config: EvaluateConfig) -> tuple[Evidence, list[str]]:
    """Reads the generated images, cuts the real sets, and notes what was assumed or converted.

    Raises:
        InputError: if images, masks or splits cannot be used, or held-out and training split are the same.
    """
    if config.held_out_split == config.train_split:
        raise InputError(f"held_out_split: {config.held_out_split!r} is also the train_split, so nothing is held out")
    found = find_generated(config.generated)
    geometry, notes = resolve_geometry(found, config.geometry)
    info = load_dataset_info(config.dataset)
    held_out = load_micrographs(config.dataset, config.held_out_split, geometry.in_channels)
    train = load_micrographs(config.dataset, config.train_split, geometry.in_channels)
    generated, conversions = load_generated(found, geometry, info)
    halves = split_micrographs(train, config.seed)
    if halves is None:
        notes.append(f"{config.dataset}: one training micrograph; comparisons with the training split have no floor")
    if found.sampling.source_split == config.held_out_split:
        notes.append(f"the generated images were sampled for masks of the held-out split {config.held_out_split!r}")

    def cut(name: str, micrographs: Micrographs, number: int) -> ImageSet:
        # Masks for sampling are cut with small seeds too; the crops here must not be the same windows.
        seed = config.seed + 100_003 + number
        return cut_real_set(name, micrographs, geometry, config.num_real or len(generated), seed)

    evidence = Evidence(
        config=config,
        info=info,
        geometry=geometry,
        generated=generated,
        held_out=cut(config.held_out_split, held_out, 0),
        train=cut(config.train_split, train, 1),
        train_halves=halves
        and (cut(f"{config.train_split} half A", halves[0], 2), cut(f"{config.train_split} half B", halves[1], 3)),
        train_micrographs=train,
        cache_dir=config.cache_dir or default_cache_dir(),
        device=str(pick_device(config.device)),
        new_masks=found.sampling.new_masks,
        cascaded=bool(found.sampling.config.stages),
    )
    return evidence, notes + conversions


def describe_sets(evidence: Evidence) -> dict[str, Any]:
    """JSON values: path and size of every set, and the geometry that they share."""
    config, generated = evidence.config, evidence.generated
    path = str(config.dataset)
    return {
        "geometry": describe_geometry(evidence.geometry),
        "generated": {"path": str(config.generated), "count": len(generated), "masks": generated.masks is not None},
        "held_out": {"path": path, "split": config.held_out_split, "count": len(evidence.held_out)},
        "train": {"path": path, "split": config.train_split, "count": len(evidence.train)},
    }
