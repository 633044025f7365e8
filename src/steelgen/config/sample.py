"""Config model of `steelgen sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, Tag, field_validator, model_validator

from steelgen.bundled import resolve_bundled
from steelgen.config.base import MAX_BATCH_SIZE, MAX_IMAGES, MAX_SEED, Section, by_kind
from steelgen.config.learned import InpaintSection, JointLabelsSection
from steelgen.config.mask_sources import AnyMasks, BalancedMasks, SplitMasks, has_masks
from steelgen.config.segmenter import SegmenterSection
from steelgen.config.solver import AnySolverSection, SolverSection
from steelgen.config.steering import EmphasisSection, GainSection

_Number = Annotated[float, Field(ge=-1e12, le=1e12)]


class FilterSection(Section):
    """Quality filter; a dropped pair is generated again with another mask and seed."""

    dataset: Path
    """Dataset folder that the generator was trained on."""
    split: Literal["train", "val", "test"] = "train"
    """Split that trains the segmenter and is searched for near-copies."""
    min_iou: Annotated[float, Field(ge=0, le=1)] | dict[str, Annotated[float, Field(ge=0, le=1)]] = 0.3
    """Minimum IoU of the mask and the segmenter's prediction: one value, or one per class name; 0 disables it."""
    min_share: float = Field(0.02, ge=0, le=1)
    """Minimum area share of a class, in the mask or the prediction, for its IoU to be checked."""
    max_correlation: float = Field(0.85, gt=0, le=1)
    """Maximum correlation of an image with any window of a real micrograph, over 8 flips and rotations; images above it
    are dropped as copies. 1 disables the check."""
    max_attempts: int = Field(20, ge=1, le=1000000)
    """Maximum attempts per image; the run stops with an error when they are used up."""
    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Seed of the segmenter's weights and crops."""
    segmenter: SegmenterSection = SegmenterSection()
    """Size and training of the segmenter, which is cached."""
    gain: GainSection | None = None
    """Check of what a pair teaches a briefly trained segmenter, for split train; null disables it."""

    @model_validator(mode="after")
    def _check_gain(self) -> FilterSection:
        if self.gain and self.split != "train":
            raise ValueError(
                f"gain: compares pairs with the validation split, so split must be train, not {self.split}"
            )
        return self


class LabelsSection(Section):
    """Masks for images generated without any, by a segmenter trained on real micrographs, with confidence maps."""

    kind: Literal["segmenter"] = "segmenter"
    """Type of labeling."""
    segmenter: Path
    """Output folder of `steelgen segment train`, of a network or of heads on features; its classes are those of the
    masks."""
    min_confidence: float = Field(0.0, ge=0, le=1)
    """Mean over the pixels of the probability of their classes, or of the agreement of an ensemble of heads; pairs
    below are dropped, counted and replaced. 0 keeps all."""
    max_attempts: int = Field(20, ge=1, le=1000000)
    """Attempts at an image before the run stops with a message."""


UNCHANGED = "unchanged"
"""Class of the pixels that a translation has not changed."""


class ChangeLabelsSection(Section):
    """Masks of what a translation has changed, such as the defect that it made in sound material: where the image
    differs from its source beyond brightness, contrast and grain, with confidence maps."""

    kind: Literal["change"]
    """Type of labeling."""
    class_name: str = Field("changed", min_length=1)
    """Class of the changed pixels; the others are "unchanged"."""
    threshold: float = Field(4.0, gt=0, le=1000)
    """Least difference of a changed region, in standard deviations of the differences in its image; its outline is at
    half of its height."""
    smoothing: float = Field(1.0, ge=0, le=100)
    """Standard deviation of a Gaussian filter on the differences, in px of the images; 0 disables it."""
    min_confidence: float = Field(0.0, ge=0, le=1)
    """Mean confidence over the pixels, 0.5 at the threshold; pairs below are dropped, counted, and replaced. 0 keeps
    all."""
    max_attempts: int = Field(20, ge=1, le=1000000)
    """Attempts at an image before the run stops with a message."""

    @model_validator(mode="after")
    def _check_name(self) -> ChangeLabelsSection:
        if self.class_name == UNCHANGED:
            raise ValueError(f"class_name {self.class_name!r}: is the class of all other pixels; use another")
        return self


AnyLabelsSection = Annotated[
    Annotated[LabelsSection, Tag("segmenter")]
    | Annotated[JointLabelsSection, Tag("joint")]
    | Annotated[ChangeLabelsSection, Tag("change")],
    by_kind("segmenter", "joint", "change", hint="; segmenter takes networks and heads on features"),
]


class StartImagesSection(Section):
    """Image-to-image sampling (SDEdit, Meng et al. 2022, arXiv 2108.01073) from noised real micrographs."""

    strength: float = Field(0.6, gt=0, le=1)
    """Starting point in the noise schedule, as a share of its length: small values change only texture, larger ones
    also shapes; 1 discards the micrograph."""
    dataset: Path | None = None
    """Dataset folder of the start images, independent of the masks; null uses the micrograph of each mask, for the mask
    sources split and balanced."""
    split: Literal["train", "val", "test"] = "train"
    """Split of the start images."""
    augment: bool = False
    """Apply a random flip and rotation (8 symmetries) to each start image of `dataset`."""


REFINING_SOLVER = SolverSection(
    num_inference_steps=6,
    timestep_spacing="power",  # the coarse image has the brightness
    guidance_scale=1.0,
    window_overlap=0.25,
    coarse_error=0.1,
    consistency=False,
)
"""Default of refining stages: most of their image is given, so few steps, no guidance and little overlap suffice, and
errors of the stage before should not be kept."""


class StageSection(Section):
    """A stage of a cascade; a path alone stands for `generator`."""

    generator: Path
    """Run folder, checkpoint, export, or bundled model; all but the first were trained with
    generator.low_resolution."""
    solver: AnySolverSection | None = None
    """Solver of this stage; null uses `solver` of the config for the first stage, and for the others 6 steps without
    guidance and without consistency in windows that overlap by a quarter, with coarse_error 0.1."""

    @model_validator(mode="before")
    @classmethod
    def _accept_path(cls, values: Any) -> Any:
        return {"generator": values} if isinstance(values, str | Path) else values


class SampleConfig(Section):
    """`steelgen sample`: sample images with matching masks from a generator."""

    removed = {
        "noise_prior": "schedules without signal at their last step, the default, do not need it; train with "
        "generator.noise.zero_terminal_snr"
    }

    generator: Path | None = None
    """Run folder, checkpoint, export, or bundled model (bundled:uhcs); null only with `stages`."""
    stages: list[StageSection] = Field([], max_length=8)
    """Instead of `generator`, a cascade of at least two generators, from the coarsest scale to the final one: each
    refines the images of the one before. Masks are those of the final images. A folder stands for its subfolders
    `train` (or `finetune`, or itself) and `refine`. Empty for a single generator."""
    output_dir: Path
    """Samples folder to write: images, masks, metadata.jsonl and a contact sheet. It must be new, or unfinished and
    started with this config."""
    output_format: Literal["folders", "dataset"] = "folders"
    """Layout of output_dir: samples/, images/ (the real ones, if any), labels/ and colored_labels/; or a dataset folder
    for training, with train/images/ and train/masks/."""
    files_per_folder: int | None = Field(None, ge=0, le=MAX_IMAGES)
    """Images per numbered subfolder (000/, 001/, …); 0 writes no subfolders. null writes none up to 10,000 images, else
    1,000 per subfolder, since shared file systems are slow with large folders. Fixed when the folder is created."""
    file_stems: Literal["number", "source"] = "number"
    """Name files by image number; or, as ISDM does, by mask file and batch number: NAME_0.png, or NAME_0-2.png if it
    repeats within the batch. A resumed folder keeps the batch_size it was created with for these names."""
    coco: bool = False
    """Also write coco.json with a polygon and a run-length encoding of every island."""
    mask_source: AnyMasks
    """Source of the masks."""
    emphasis: EmphasisSection | None = None
    """Emphasis of masks that a segmenter has difficulties with; null draws all masks of mask_source alike."""
    num_samples: int = Field(64, ge=1, le=MAX_IMAGES)
    """Number of image-mask pairs."""
    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Base seed; image i uses seed + i, independent of the batch size."""
    batch_size: int = Field(16, ge=1, le=MAX_BATCH_SIZE)
    """Images generated at once; affects only memory and speed."""
    solver: AnySolverSection = SolverSection()
    """Solver of the reverse process; with `stages`, of the first stage."""
    start_images: StartImagesSection | None = None
    """Start images for image-to-image sampling; null starts from noise."""
    truncation: float | None = Field(None, ge=0, le=1)
    """Truncation factor of style-based adversarial generators: scales the distance of styles from their mean. Lower
    values give less variety and fewer odd images; null or 1 disables it."""
    conditions: dict[str, _Number | tuple[_Number, _Number] | str] | Literal["micrograph"] = {}
    """Conditions of the images by name, for generators trained with data.conditions: a value, or a range [low, high] of
    a number, uniform per image (in its logarithm where training used that). Others are left open. "micrograph": those
    of the micrograph of each mask, for the mask sources split and balanced."""
    labels: AnyLabelsSection | None = None
    """Labeling of images generated without masks (mask_source.kind none, or images with masks null); null leaves them
    unlabeled."""
    inpaint: InpaintSection | None = None
    """Region of real pairs (mask_source.kind split or balanced) to generate anew: image and mask by joint_diffusion,
    the image for its mask by semantic_diffusion and latent_adapter; null generates whole images."""
    mixed_precision: Literal["no", "bf16", "fp16", "auto"] = "no"
    """Precision of the network; auto uses bf16 where the hardware supports it; the resolved value is recorded."""
    channels_last: bool = True
    """Use the channels-last memory format, which speeds up convolutions."""
    compile: bool = False
    """Compile the network with torch.compile; pays off from a few hundred images on a GPU."""
    filter: FilterSection | None = None
    """Quality filter; null keeps all pairs."""

    @field_validator("stages", mode="before")
    @classmethod
    def _accept_folder(cls, stages: Any) -> Any:
        if not isinstance(stages, str | Path):
            return stages
        folder = resolve_bundled(Path(stages))
        if not (folder / "refine").is_dir():
            raise ValueError(f"{stages} has no folder 'refine', so it is no cascade")
        names = [name for name in ("train", "finetune") if (folder / name).is_dir()]
        return [str(Path(stages, *names[:1])), str(Path(stages, "refine"))]

    @model_validator(mode="after")
    def _check_stages(self) -> SampleConfig:
        if (self.generator is None) == (not self.stages):
            raise ValueError(
                "generator: is missing" if self.generator is None else "stages: not applicable with `generator`"
            )
        if len(self.stages) == 1:
            raise ValueError("stages: a cascade has at least two; set `generator` for a single one")
        for number, stage in enumerate(self.stages):
            if stage.solver is None:
                stage.solver = REFINING_SOLVER if number else self.solver
            elif number == 0 and self.solver not in (SolverSection(), stage.solver):
                raise ValueError("solver: not applicable with stages.0.solver, which is another")
        if self.stages:
            self.solver = SolverSection()  # now that of the first stage
        return self

    @property
    def generators(self) -> dict[str, Path]:
        """Paths of all generators by dotted config field, from the first stage to the last."""
        if self.generator is not None:
            return {"generator": self.generator}
        return {f"stages.{number}.generator": stage.generator for number, stage in enumerate(self.stages)}

    @model_validator(mode="after")
    def _check_combinations(self) -> SampleConfig:
        kind, start = self.mask_source.kind, self.start_images
        if self.conditions == "micrograph" and (kind not in ("split", "balanced") or (start and start.dataset)):
            raise ValueError("conditions 'micrograph': needs mask_source.kind split or balanced without start_images")
        if isinstance(self.conditions, dict):
            for name, value in self.conditions.items():
                if isinstance(value, tuple) and value[0] > value[1]:
                    raise ValueError(f"conditions.{name}: the smaller limit must come first")
        if self.labels and has_masks(self.mask_source):
            raise ValueError(f"labels needs mask_source.kind 'none', not {kind!r}, which has masks")
        if self.file_stems == "source" and self.filter:
            raise ValueError("file_stems 'source': the filter may replace the mask of an image; use 'number'")
        if self.emphasis:
            self._check_emphasis()
        if self.inpaint and kind not in ("split", "balanced"):
            raise ValueError(f"inpaint needs real pairs: mask_source.kind 'split' or 'balanced', not {kind!r}")
        if self.inpaint and start:
            raise ValueError("inpaint and start_images cannot be combined")
        if start and start.dataset is None and kind not in ("split", "balanced"):
            raise ValueError(f"start_images.dataset: is missing; masks of the source {kind!r} have no micrograph")
        return self

    def _check_emphasis(self) -> None:
        source = self.mask_source
        if isinstance(source, BalancedMasks) or not has_masks(source):
            raise ValueError(f"emphasis: not applicable to mask_source.kind {source.kind!r}")
        if isinstance(source, SplitMasks) and source.in_order:
            raise ValueError("emphasis: not applicable with mask_source.in_order")
        if self.file_stems == "source":
            raise ValueError("file_stems 'source': emphasis chooses the mask of an image; use 'number'")
