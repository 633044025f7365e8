"""Config of `steelgen sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from steelgen.config.base import MAX_BATCH_SIZE, MAX_CROP_SIZE, MAX_IMAGES, MAX_SEED, FactorRange, Section
from steelgen.config.segmenter import SegmenterSection
from steelgen.config.solver import AnySolverSection, SolverSection


class SplitMasks(Section):
    """Masks from one split of a dataset folder, cut like the crops of training."""

    kind: Literal["split"] = "split"
    """Where masks come from."""
    dataset: Path
    """A dataset folder with the classes that the generator was trained on."""
    split: Literal["train", "val", "test"] = "train"
    """The split whose masks are used."""
    augment: bool = True
    """Draw one of the 8 flips and rotations for each mask."""
    in_order: bool = False
    """Take the masks in the order of their names, again from the start when they run out, as ISDM does; else in a fresh
    random order each time round."""
    whole: bool = False
    """Use whole masks at the scale of the crops: whole micrographs are drawn, from overlapping windows."""


class FolderMasks(Section):
    """Masks from a folder of single-channel or palette images of class indices, cut like the crops of training."""

    kind: Literal["folder"] = "folder"
    """Where masks come from."""
    folder: Path
    """The folder; its images are used in the order of their names, again from the start when they run out.
    bundled:uhcs/masks are those of eight real micrographs that the bundled model has not seen."""
    augment: bool = False
    """Draw one of the 8 flips and rotations for each mask."""
    whole: bool = False
    """Use whole masks at the scale of the crops: whole micrographs are drawn, from overlapping windows."""


class AugmentedMasks(Section):
    """Masks of a split, rearranged: turned, warped, their islands cut out, scaled and placed anew without overlap."""

    kind: Literal["augmented"] = "augmented"
    """Where masks come from."""
    dataset: Path
    """A dataset folder with the classes that the generator was trained on."""
    split: Literal["train", "val", "test"] = "train"
    """The split whose masks are used."""
    flip: bool = True
    """Mirror every other mask."""
    max_rotation: float = Field(180.0, ge=0, le=180)
    """Turn each mask by an angle of up to so many degrees either way."""
    warp: float = Field(3.0, ge=0, le=1000)
    """Elastic warp: standard deviation of the displacement, in px of the micrograph."""
    warp_length: float = Field(32.0, gt=0, le=MAX_CROP_SIZE)
    """Distance over which the displacement changes, in px of the micrograph."""
    move_share: float = Field(0.5, ge=0, le=1)
    """Share of the islands that are cut out and placed anew; those cut by the border stay."""
    island_scale: FactorRange = (0.8, 1.25)
    """Length of an island placed anew, relative to what it was."""
    phase_fraction: dict[str, Annotated[float, Field(ge=0, le=0.6)]] = {}
    """Area share to be met by class name: islands are added from other masks, or taken away."""


class ProceduralMasks(Section):
    """Layouts drawn from measured island statistics: sizes, aspect ratios, orientations, spacings, area shares."""

    kind: Literal["procedural"] = "procedural"
    """Where masks come from."""
    dataset: Path
    """A dataset folder with the classes that the generator was trained on."""
    split: Literal["train", "val", "test"] = "train"
    """The split that is measured."""
    phase_fraction: dict[str, Annotated[float, Field(ge=0, le=0.6)]] = {}
    """Area share to be met by class name, instead of that of a random place of a real mask."""


class BalancedMasks(Section):
    """Masks of a split, chosen so that all classes are drawn about as often."""

    kind: Literal["balanced"] = "balanced"
    """Where masks come from."""
    dataset: Path
    """A dataset folder with the classes that the generator was trained on."""
    split: Literal["train", "val", "test"] = "train"
    """The split whose masks are used."""
    max_class_dif: float = Field(0.1, ge=0, le=1000000)
    """By how much the most frequent class may exceed the rarest, relative to the rarest."""
    based_on_generated_data_only: bool = False
    """Balance what is drawn; else what is drawn together with the split's own masks."""
    based_on_pixel_count: bool = True
    """Count a class by its pixels; else by its objects (connected regions)."""
    ejection_classes: list[Annotated[int, Field(ge=0, le=254)]] = [0]
    """Indices of classes that are not balanced; a mask that holds nothing else is not drawn."""
    use_mask_augmentation: bool = False
    """Draw one of the 8 flips and rotations each time."""
    block_size: int = Field(64, ge=1, le=MAX_IMAGES)
    """Masks that are chosen together; the classes are balanced after each block. Best: num_samples."""


class NoMasks(Section):
    """No masks: micrographs as such, from a generator trained without masks or also without (mask_dropout)."""

    kind: Literal["none"]
    """Where masks come from."""


AnyMasks = Annotated[
    NoMasks | SplitMasks | FolderMasks | AugmentedMasks | ProceduralMasks | BalancedMasks, Field(discriminator="kind")
]


class FilterSection(Section):
    """Which pairs are kept; a dropped one is drawn anew with another mask and seed."""

    dataset: Path
    """The real dataset folder that the generator was trained on."""
    split: Literal["train", "val", "test"] = "train"
    """The split that the segmenter is trained on and near-copies are looked for in."""
    min_iou: Annotated[float, Field(ge=0, le=1)] | dict[str, Annotated[float, Field(ge=0, le=1)]] = 0.3
    """IoU of the mask and what the segmenter sees, at least: one number, or one by class name; 0 asks nothing."""
    min_share: float = Field(0.02, ge=0, le=1)
    """A class that covers a smaller share of the image, in the mask and as seen, is not judged."""
    max_correlation: float = Field(0.85, gt=0, le=1)
    """An image that correlates more with any place of a real micrograph, at any of 8 flips and rotations, is a copy;
    1 lets all pass."""
    max_attempts: int = Field(20, ge=1, le=1000000)
    """Attempts at an image before the run stops with a message."""
    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Of the segmenter's weights and crops."""
    segmenter: SegmenterSection = SegmenterSection()
    """Size and training of the segmenter; it is kept in the cache."""


class LabelsSection(Section):
    """Masks for images generated without any, by a segmenter trained on real micrographs, with confidence maps."""

    segmenter: Path
    """Output folder of `steelgen segment train`; its classes are those of the masks."""
    min_confidence: float = Field(0.0, ge=0, le=1)
    """Mean probability of the pixels' classes; pairs below are dropped, counted and replaced. 0 keeps all."""
    max_attempts: int = Field(20, ge=1, le=1000000)
    """Attempts at an image before the run stops with a message."""


class StartImagesSection(Section):
    """Image to image (SDEdit, Meng et al. 2022, arXiv 2108.01073): real micrographs, noised, instead of noise alone."""

    strength: float = Field(0.6, gt=0, le=1)
    """Where in the noise schedule drawing starts, as a share of it. A small one changes texture alone, a large one
    shapes too; 1 leaves nothing of the micrograph."""
    dataset: Path | None = None
    """A dataset folder whose micrographs are used, whatever the masks; null: the micrograph that each mask belongs to,
    for the mask sources split and balanced."""
    split: Literal["train", "val", "test"] = "train"
    """Its split."""
    augment: bool = False
    """Draw one of the 8 flips and rotations for each of its micrographs."""


class SampleConfig(Section):
    """`steelgen sample`: draw labeled synthetic micrographs."""

    removed = {
        "noise_prior": "schedules without signal at their last step, the default, have no use for it; train with "
        "generator.noise.zero_terminal_snr"
    }

    generator: Path
    """A run folder, a checkpoint, an export, or a model that comes with steelgen: bundled:uhcs."""
    output_dir: Path
    """Gets the images, their masks, metadata.jsonl and a contact sheet; must not be in use."""
    output_format: Literal["folders", "dataset"] = "folders"
    """samples/, images/ (real, where there are any), labels/ and colored_labels/; or a dataset folder to train on, with
    train/images/ and train/masks/."""
    files_per_folder: int | None = Field(None, ge=0, le=MAX_IMAGES)
    """Images of each numbered sub-folder of those folders, 000/, 001/ …; 0: no sub-folders. null: none up to 10,000
    images, else 1,000 in each, since shared file systems are slow with large folders; a folder once begun stays as it
    is."""
    file_stems: Literal["number", "source"] = "number"
    """Name files by the image's number; or, as ISDM does, by the file that the mask comes from and the batch that the
    image is drawn in, NAME_0.png; for a mask that comes round again in that batch NAME_0-2.png. A folder once begun
    keeps counting in its first batch_size."""
    coco: bool = False
    """Also write coco.json: every island as polygon and as run lengths."""
    mask_source: AnyMasks
    """Where the masks come from."""
    num_samples: int = Field(64, ge=1, le=MAX_IMAGES)
    """Pairs to draw."""
    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Image number i is drawn with seed + i, whatever the batch size."""
    batch_size: int = Field(16, ge=1, le=MAX_BATCH_SIZE)
    """Images drawn at a time; a matter of memory and speed alone."""
    solver: AnySolverSection = SolverSection()
    """How they are drawn."""
    start_images: StartImagesSection | None = None
    """What drawing starts from beside noise; null: nothing."""
    truncation: float | None = Field(None, ge=0, le=1)
    """Factor on the distance of styles from their mean, for style-based adversarial generators: less variety, fewer odd
    images; null or 1: all of it."""
    labels: LabelsSection | None = None
    """How images that are generated without masks get some, for mask_source.kind none; null: they stay without."""
    mixed_precision: Literal["no", "bf16", "fp16", "auto"] = "no"
    """Precision of the network; auto takes bf16 where the machine has it, and is recorded as what it took."""
    channels_last: bool = True
    """Memory layout that convolutions prefer."""
    compile: bool = False
    """torch.compile the network; pays off from a few hundred images on a GPU."""
    filter: FilterSection | None = None
    """Which pairs are kept; null keeps all of them."""

    @model_validator(mode="after")
    def _check_masks(self) -> SampleConfig:
        if isinstance(self.mask_source, NoMasks):
            if self.filter or (self.coco and not self.labels):
                raise ValueError(f"{'filter' if self.filter else 'coco'} needs masks, and mask_source.kind is 'none'")
        elif self.labels:
            raise ValueError(f"labels needs mask_source.kind 'none', not {self.mask_source.kind!r}: masks are there")
        return self

    @model_validator(mode="after")
    def _check_stems(self) -> SampleConfig:
        if self.file_stems == "source" and self.filter:
            raise ValueError("file_stems 'source': an image that the filter drops gets another mask; use 'number'")
        return self

    @model_validator(mode="after")
    def _check_start(self) -> SampleConfig:
        start = self.start_images
        if start and start.dataset is None and self.mask_source.kind not in ("split", "balanced"):
            raise ValueError(
                f"start_images.dataset: is missing, and masks of the source {self.mask_source.kind!r} belong to no "
                "micrograph"
            )
        return self
