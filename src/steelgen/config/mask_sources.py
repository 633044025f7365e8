"""Config sections of the mask sources."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from steelgen.config.base import MAX_CROP_SIZE, MAX_IMAGES, FactorRange, Section
from steelgen.config.learned import ImageSize, LearnedMasks


class _DatasetMasks(Section):
    kind: str
    dataset: Path
    """Dataset folder with the generator's classes."""
    split: Literal["train", "val", "test"] = "train"
    """Split of the dataset folder."""


class SplitMasks(_DatasetMasks):
    """Masks from one split of a dataset folder, cropped as in training."""

    kind: Literal["split"] = "split"
    """Type of mask source."""
    augment: bool = True
    """Apply a random flip and rotation (8 symmetries) to each mask."""
    in_order: bool = False
    """Iterate over the masks in file name order and repeat, as ISDM does; false shuffles them on each pass."""
    whole: bool = False
    """Use whole masks, resized to the scale of the crops; whole micrographs are generated from overlapping windows."""


class FolderMasks(Section):
    """Masks from a folder of single-channel or palette images of class indices, cropped as in training."""

    kind: Literal["folder"] = "folder"
    """Type of mask source."""
    folder: Path
    """Folder of mask images, used in file name order and repeated. bundled:uhcs/masks contains the masks of eight real
    micrographs that were held out when the bundled model was trained."""
    augment: bool = False
    """Apply a random flip and rotation (8 symmetries) to each mask."""
    whole: bool = False
    """Use whole masks, resized to the scale of the crops; whole micrographs are generated from overlapping windows."""


class AugmentedMasks(_DatasetMasks):
    """Rearranged masks of a split: rotated, warped, with islands scaled and moved to new places without overlap."""

    kind: Literal["augmented"] = "augmented"
    """Type of mask source."""
    flip: bool = True
    """Mirror masks at random, with probability 1/2."""
    max_rotation: float = Field(180.0, ge=0, le=180)
    """Maximum rotation angle, in degrees; angles are uniform in ±max_rotation."""
    warp: float = Field(3.0, ge=0, le=1000)
    """Strength of the elastic warp: standard deviation of the displacement, in px of the micrograph; 0 disables it."""
    warp_length: float = Field(32.0, gt=0, le=MAX_CROP_SIZE)
    """Correlation length of the elastic warp, in px of the micrograph."""
    move_share: float = Field(0.5, ge=0, le=1)
    """Probability of moving an island; islands cut by the border are never moved."""
    island_scale: FactorRange = (0.8, 1.25)
    """Range of the length scale factor of moved islands."""
    phase_fraction: dict[str, Annotated[float, Field(ge=0, le=0.6)]] = {}
    """Target phase fractions by class name; islands of other masks are added, or its own removed, to match them."""


class ProceduralMasks(_DatasetMasks):
    """Synthetic layouts sampled from measured island statistics: size, aspect ratio, orientation, spacing, fraction."""

    kind: Literal["procedural"] = "procedural"
    """Type of mask source."""
    phase_fraction: dict[str, Annotated[float, Field(ge=0, le=0.6)]] = {}
    """Target phase fractions by class name; other classes take the fractions of a random window of a real mask."""


class BalancedMasks(_DatasetMasks):
    """Masks of a split, chosen to balance the classes."""

    kind: Literal["balanced"] = "balanced"
    """Type of mask source."""
    max_class_dif: float = Field(0.1, ge=0, le=1000000)
    """Maximum class difference: largest class count / smallest class count − 1."""
    based_on_generated_data_only: bool = False
    """Balance the chosen masks alone; false balances them together with the masks of the split."""
    based_on_pixel_count: bool = True
    """Count the pixels of a class; false counts its objects (connected regions)."""
    ejection_classes: list[Annotated[int, Field(ge=0, le=254)]] = [0]
    """Indices of the classes to leave out of the balance; masks that contain only these are not used."""
    use_mask_augmentation: bool = False
    """Apply a random flip and rotation (8 symmetries) to each mask."""
    block_size: int = Field(64, ge=1, le=MAX_IMAGES)
    """Masks chosen together; the classes are balanced after each block. num_samples works best."""


class ImageMasks(Section):
    """Images from a folder, for generators that turn images into others, with or without their masks."""

    kind: Literal["images"] = "images"
    """Type of mask source."""
    folder: Path
    """Folder of images, used whole, in file name order and repeated. Images of the generator's image_size, and coarse
    images for a refining generator, are used as they are; others are resized to the scale of the crops."""
    masks: Path | None = None
    """Folder of masks with the stems and sizes of the images (for a refining generator, with the sizes of the refined
    images), which become the labels; null writes no labels."""


class NoMasks(Section):
    """No masks: pairs of a generator that makes masks, or unlabeled images of one trained without masks or with
    mask_dropout."""

    kind: Literal["none"]
    """Type of mask source."""
    size: ImageSize | None = None
    """Height and width of the images in px, for diffusion models trained with masks; null uses image_size. Larger
    images are generated from overlapping windows."""


AnyMasks = Annotated[
    NoMasks | SplitMasks | FolderMasks | ImageMasks | AugmentedMasks | ProceduralMasks | BalancedMasks | LearnedMasks,
    Field(discriminator="kind"),
]


def has_masks(source: AnyMasks) -> bool:
    """Whether a mask source has masks to write as labels."""
    return not isinstance(source, NoMasks) and not (isinstance(source, ImageMasks) and source.masks is None)
