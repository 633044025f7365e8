"""Configs of `steelgen train` and `steelgen finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from steelgen.config.base import (
    MAX_BATCH_SIZE,
    MAX_CROP_SIZE,
    MAX_IMAGE_SIZE,
    MAX_IMAGES,
    MAX_LEARNING_RATE,
    MAX_SEED,
    MAX_STEPS,
    FactorRange,
    Section,
)
from steelgen.config.generator import (
    AnyGeneratorSection,
    DiffusionTrainingSection,
    SemanticDiffusionSection,
)
from steelgen.config.solver import SolverSection

_Decay = Annotated[float, Field(ge=0, lt=1)]


class DataSection(Section):
    """Which micrographs are trained on, and how they become network input."""

    dataset: Path
    """A dataset folder (see `steelgen data import`)."""
    split: Literal["train", "val", "test"] = "train"
    """The split that is trained on."""
    image_size: int = Field(64, ge=8, le=MAX_IMAGE_SIZE)
    """Edge of the network's images, in pixels."""
    crop_size: int | None = Field(None, ge=8, le=MAX_CROP_SIZE)
    """Edge of the square cut from a micrograph, in its own pixels, then resized to image_size; null: image_size."""
    scale_range: FactorRange = (1.0, 1.0)
    """Each crop's edge is crop_size times a factor drawn log-uniformly from this range."""
    in_channels: Literal[1, 3] = 1
    """1 for gray micrographs (no tint is possible then), 3 for RGB."""
    augment: bool | Literal["mirror"] = True
    """Draw one of the 8 flips and rotations for each crop, for materials without a preferred direction; or mirror every
    other crop left to right."""
    num_classes: int | None = Field(None, ge=1, le=255)
    """Classes of a dataset without dataset.json, where its masks may not hold all of them; null: those found."""
    unconditional: bool = False
    """Leave the masks alone and learn to draw micrographs as such; so it is in any case without masks."""
    any_angle: bool = False
    """Also turn each crop by any angle; beyond the micrograph's edge lies its mirror image."""
    brightness: float = Field(0.0, ge=0, le=0.5)
    """Add or take away up to this share of the gray range, at random."""
    contrast: float = Field(0.0, ge=0, le=1)
    """Multiply contrast by a random factor between exp(-contrast) and exp(contrast)."""
    num_workers: int | None = Field(None, ge=0, le=1024)
    """Processes that cut crops and draw their noise; null: none on a CPU, up to 8 beside a GPU."""


class OptimizationSection(Section):
    """The training loop."""

    max_steps: int | None = Field(None, ge=0, le=MAX_STEPS)
    """Stop after so many optimizer steps."""
    max_epochs: int | None = Field(None, ge=1, le=MAX_STEPS)
    """Stop after so many epochs; an epoch visits the area of every micrograph once on average."""
    max_minutes: float | None = Field(None, gt=0, le=1000000)
    """Stop at the first step boundary after so many minutes of this run, for a machine of unknown speed."""
    train_batch_size: int = Field(16, ge=1, le=MAX_BATCH_SIZE)
    """Crops a process and forward pass."""
    gradient_accumulation_steps: int = Field(1, ge=1, le=MAX_BATCH_SIZE)
    """Forward passes an optimizer step."""
    learning_rate: float = Field(2e-4, gt=0, le=MAX_LEARNING_RATE)
    """AdamW's learning rate after warm-up."""
    lr_scheduler: Literal["constant_with_warmup", "cosine", "cosine_with_restarts", "linear", "polynomial"] = (
        "constant_with_warmup"
    )
    """diffusers' name of the schedule; all but the constant one decay to zero at max_steps. Its `constant` is this one
    with warmup_steps 0."""
    lr_restarts: int = Field(0, ge=0, le=1000000)
    """Returns to the full learning rate, for cosine_with_restarts."""
    lr_power: float = Field(1.0, gt=0, le=100)
    """Exponent of the decay, for polynomial; 1 is linear, down to 1e-7."""
    warmup_steps: int = Field(100, ge=0, le=MAX_STEPS)
    """Steps over which the learning rate rises from zero."""
    weight_decay: float = Field(0.01, ge=0, le=1000)
    """AdamW's decoupled weight decay."""
    adam_betas: tuple[_Decay, _Decay] = (0.9, 0.99)
    """AdamW's moment decays."""
    max_grad_norm: float | None = Field(1.0, gt=0, le=1000000000)
    """Gradients are clipped to this norm; null: never."""
    ema_decay: float = Field(0.999, ge=0, lt=1)
    """Decay of the exponential moving average of the weights."""
    ema_warmup: bool = True
    """Decays start low, at most (1 + step) / (10 + step), so that the averages soon forget the random start."""
    further_ema_decays: list[_Decay] = []
    """Decays of more averages, kept in the checkpoints and exported beside the first as export-ema-<decay>/."""
    ema_power_stds: list[Annotated[float, Field(gt=0, le=0.28)]] = []
    """Relative lengths σ_rel of power-function averages of the weights, for instance 0.05 and 0.1, whose snapshots in
    ema/ `steelgen ema` turns into an average of any length (Karras et al. 2024, arXiv 2312.02696); each costs memory
    and a file of the size of the weights a snapshot."""
    ema_snapshots_every: int = Field(1000, ge=1, le=MAX_STEPS)
    """Steps between snapshots of the power-function averages; there is one at the end too."""
    mixed_precision: Literal["no", "bf16", "fp16", "auto"] = "no"
    """Precision of the forward and backward pass; weights stay fp32. bf16 also speeds up CPUs that have it; auto takes
    it where the machine has it."""
    tf32: bool = True
    """Let GPUs from Ampere on multiply fp32 numbers with 10 bits of mantissa: much faster, at no known loss."""
    deterministic: bool = False
    """Let GPUs use deterministic kernels alone, so that runs repeat and resume bit by bit, at some loss of speed; CPUs
    always do."""
    gradient_checkpointing: bool = False
    """Keep activations at the ends of blocks alone and compute the others again in the backward pass: much less memory
    for one more forward pass a step."""
    channels_last: bool = True
    """Memory layout that convolutions prefer."""
    compile: bool = False
    """torch.compile the network; pays off in long runs on a GPU."""
    log_every: int = Field(10, ge=1, le=MAX_STEPS)
    """Steps between lines of metrics.jsonl and points of the trackers."""
    trackers: list[Literal["tensorboard", "wandb"]] = ["tensorboard"]
    """Where these go beside metrics.jsonl. wandb is Weights & Biases, an extra: `pip install 'steelgen[wandb]'`; a
    resumed run goes on under its id, kept in wandb.json. On nodes without network set the environment variable
    WANDB_MODE to offline and call `wandb sync` later; WANDB_PROJECT names another project than steelgen."""
    checkpoint_every: int = Field(1000, ge=1, le=MAX_STEPS)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(2, ge=1, le=MAX_STEPS)
    """Newest checkpoints that are kept."""

    @model_validator(mode="after")
    def _check_end(self) -> OptimizationSection:
        if self.max_steps is None and self.max_epochs is None:
            raise ValueError("one of max_steps and max_epochs must be given")
        if self.lr_scheduler != "constant_with_warmup" and self.max_steps is None:
            raise ValueError(f"lr_scheduler {self.lr_scheduler!r} decays to max_steps, which is not given")
        return self


class PreviewSection(Section):
    """Pictures drawn during training, always from the same masks and seeds."""

    every: int = Field(1000, ge=1, le=MAX_STEPS)
    """Steps between previews; one is drawn at step 0 and one at the end too."""
    num_images: int = Field(8, ge=0, le=1000)
    """Images a preview, or rows and columns of the grid of an rvae's first two latents; 0 draws none."""
    solver: SolverSection = SolverSection()
    """How they are drawn."""


class ValidationSection(Section):
    """The loss on held-out micrographs: always of the same crops, noise and timesteps, with averaged weights."""

    split: Literal["train", "val", "test"] | None = "val"
    """The split that is held out; null, or one that the dataset has not: no validation and no measurement."""
    every: int = Field(500, ge=1, le=MAX_STEPS)
    """Steps between validations; each costs about as much as crops / (3 · batch) steps."""
    crops: int = Field(128, ge=1, le=MAX_IMAGES)
    """Crops that are looked at, their timesteps spread evenly over the noise schedule."""
    bins: int = Field(8, ge=1, le=1000)
    """Equal parts of the noise schedule that losses, of training too, are also told by; bin 0 is the clean end."""

    @model_validator(mode="after")
    def _check_bins(self) -> ValidationSection:
        if self.crops < self.bins:
            raise ValueError(f"{self.crops} crops cannot fill {self.bins} bins")
        return self


class MeasurementSection(Section):
    """Images drawn in training for held-out masks: their distance to held-out images, and whether they are copies."""

    every: int | None = Field(5000, ge=1, le=MAX_STEPS)
    """Steps between measurements; null: none."""
    num_images: int = Field(128, ge=4, le=MAX_IMAGES)
    """Images that are drawn, from the same masks and seeds each time; KID and Fréchet distance against as many."""
    searched_images: int = Field(32, ge=1, le=MAX_IMAGES)
    """So many of them are looked for in all places of all training micrographs: most of what a measurement costs."""
    solver: SolverSection = SolverSection(num_inference_steps=10)
    """How they are drawn."""
    max_copies: float = Field(0.05, ge=0, le=1)
    """Share of images much nearer to one place than to any other (d1/d2 < 1/3) from which on they count as copying."""
    checks: int = Field(2, ge=1, le=MAX_STEPS)
    """Measurements in a row above max_copies after which copies are said to have begun."""


class SelectionSection(Section):
    """Which generator is kept in best/, and when training has gone on for long enough."""

    criterion: Literal["auto", "val_loss", "kid", "train_epoch_loss", "none"] = "auto"
    """What is to be lowest: the validation loss, the KID of drawn images, or the mean training loss of an epoch (ISDM's
    way; it falls on while the generator learns by heart). auto: val_loss where a split is held out, else none."""
    patience_steps: int | None = Field(None, ge=1, le=MAX_STEPS)
    """Stop after so many steps without a better value; null: never."""
    stop_at_copies: bool = False
    """Stop when copies are said to have begun; see measurement."""

    @model_validator(mode="after")
    def _check_patience(self) -> SelectionSection:
        if self.criterion == "none" and self.patience_steps is not None:
            raise ValueError("patience_steps needs a criterion")
        return self


class RunConfig(Section):
    """What training and fine-tuning share."""

    run_dir: Path
    """The run folder: resolved config, environment, metrics, previews, checkpoints, export."""
    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Everything random follows from it."""
    data: DataSection
    """The training data."""
    train: OptimizationSection
    """The training loop."""
    diffusion: DiffusionTrainingSection = DiffusionTrainingSection()
    """What only the training of diffusion models knows."""
    preview: PreviewSection = PreviewSection()
    """Pictures during training."""
    validation: ValidationSection = ValidationSection()
    """The loss on held-out micrographs."""
    measurement: MeasurementSection = MeasurementSection()
    """Quality and originality of what is drawn."""
    selection: SelectionSection = SelectionSection()
    """The best generator, and stopping early."""

    @model_validator(mode="before")
    @classmethod
    def _move_diffusion(cls, values: Any) -> Any:
        """Older configs have in train what belongs to diffusion alone."""
        train = values.get("train") if isinstance(values, dict) else None
        if not isinstance(train, dict) or not (moved := DiffusionTrainingSection.model_fields.keys() & train.keys()):
            return values
        kept = {name: value for name, value in train.items() if name not in moved}
        return {
            **values,
            "train": kept,
            "diffusion": {name: train[name] for name in moved} | values.get("diffusion", {}),
        }

    @model_validator(mode="after")
    def _check_held_out(self) -> RunConfig:
        if self.validation.split == self.data.split:
            raise ValueError(f"validation.split {self.validation.split!r} is what is trained on; name another or null")
        return self


class TrainConfig(RunConfig):
    """`steelgen train`: learn a generator from annotated micrographs."""

    generator: AnyGeneratorSection = SemanticDiffusionSection()
    """What is trained."""

    @model_validator(mode="after")
    def _check_generator(self) -> TrainConfig:
        self.generator.check_image_size(self.data.image_size)
        if not self.generator.steps_by_solver:
            looking = {"preview": self.preview, "measurement": self.measurement}
            unused = [f"{name}.solver" for name, section in looking.items() if "solver" in section.model_fields_set]
            unused += ["diffusion"] if self.diffusion != DiffusionTrainingSection() else []
            if unused:
                raise ValueError(f"{unused[0]}: not applicable to generator.kind {self.generator.kind}")
        return self


class FinetuneConfig(RunConfig):
    """`steelgen finetune`: continue from a trained generator, usually with more mask_dropout, on the same or new data.

    The network and its noise schedule are the checkpoint's; so image_size, in_channels and the classes must match it.
    """

    checkpoint: Path
    """A run folder, a checkpoint, an export or a bundled model (bundled:uhcs) to start from."""
    continue_training: bool = False
    """Go on with the checkpoint's averages, AdamW moments and step count; else these start afresh."""
