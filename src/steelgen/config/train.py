"""Configs of `steelgen train` and `steelgen finetune`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from steelgen.config.base import (
    MAX_BATCH_SIZE,
    MAX_IMAGES,
    MAX_LEARNING_RATE,
    MAX_SEED,
    MAX_STEPS,
    Section,
)
from steelgen.config.data import DataSection
from steelgen.config.generator import AnyGeneratorSection, DiffusionTrainingSection, SemanticDiffusionSection
from steelgen.config.solver import REFINING_FIELDS, SolverSection
from steelgen.config.translation import TranslationSection

_Decay = Annotated[float, Field(ge=0, lt=1)]


class OptimizationSection(Section):
    """Optimizer, averages, precision and checkpoints."""

    removed = {
        "further_ema_decays": "averages of different lengths measured alike (KID·10³ 21.3 for σ_rel 0.05 to 0.15); "
        "ema_power_stds gives any length after training"
    }

    max_steps: int | None = Field(None, ge=0, le=MAX_STEPS)
    """Maximum number of optimizer steps."""
    max_epochs: int | None = Field(None, ge=1, le=MAX_STEPS)
    """Maximum number of epochs; an epoch covers the area of every micrograph once on average."""
    max_minutes: float | None = Field(None, gt=0, le=1000000)
    """Maximum minutes of this run, for machines of unknown speed; training stops after the current step."""
    train_batch_size: int = Field(16, ge=1, le=MAX_BATCH_SIZE)
    """Crops per forward pass and process."""
    gradient_accumulation_steps: int = Field(1, ge=1, le=MAX_BATCH_SIZE)
    """Forward passes per optimizer step."""
    learning_rate: float = Field(2e-4, gt=0, le=MAX_LEARNING_RATE)
    """AdamW's learning rate after warm-up."""
    lr_scheduler: Literal[
        "constant_with_warmup", "constant_then_linear", "cosine", "cosine_with_restarts", "linear", "polynomial"
    ] = "constant_with_warmup"
    """diffusers' name of the schedule; all but constant_with_warmup decay to zero at max_steps. warmup_steps 0 gives
    diffusers' `constant`. constant_then_linear, usual for translation, decays in the second half of training."""
    lr_restarts: int = Field(0, ge=0, le=1000000)
    """Restarts from the full learning rate, for cosine_with_restarts."""
    lr_power: float = Field(1.0, gt=0, le=100)
    """Exponent of the decay, for polynomial; 1 is linear to 1e-7."""
    warmup_steps: int = Field(100, ge=0, le=MAX_STEPS)
    """Steps of linear warmup from zero; 0 disables it."""
    weight_decay: float = Field(0.01, ge=0, le=1000)
    """AdamW's decoupled weight decay."""
    adam_betas: tuple[_Decay, _Decay] = (0.9, 0.99)
    """AdamW's moment decays."""
    max_grad_norm: float | None = Field(1.0, gt=0, le=1000000000)
    """Max norm for gradient clipping; null disables it."""
    ema_decay: float = Field(0.999, ge=0, lt=1)
    """Decay of the exponential moving average of the weights."""
    ema_warmup: bool = True
    """Limits the decay to (1 + step) / (10 + step), so that the average forgets the random initialization sooner."""
    ema_power_stds: list[Annotated[float, Field(gt=0, le=0.28)]] = []
    """Relative lengths σ_rel of power-function averages of the weights, for example 0.05 and 0.1. `steelgen ema` turns
    their snapshots in ema/ into an average of any length (Karras et al. 2024, arXiv 2312.02696). Each needs memory, and
    a file per snapshot, of the size of the weights."""
    ema_snapshots_every: int = Field(1000, ge=1, le=MAX_STEPS)
    """Steps between snapshots of the power-function averages; there is one at the end too."""
    mixed_precision: Literal["no", "bf16", "fp16", "auto"] = "no"
    """Precision of the forward and backward pass; weights stay fp32. bf16 also speeds up CPUs that support it; auto is
    bf16 where supported, else no."""
    tf32: bool = True
    """TF32 (10 bits of mantissa) for fp32 products on GPUs since Ampere: much faster, without known loss of quality."""
    deterministic: bool = False
    """Only deterministic kernels on GPUs, so that runs repeat and resume bit by bit, at some loss of speed; always the
    case on CPUs."""
    gradient_checkpointing: bool = False
    """Recomputes activations inside blocks in the backward pass: much less memory for one more forward pass per
    step."""
    channels_last: bool = True
    """Channels-last memory layout, which convolutions prefer."""
    compile: bool | Literal["cudagraphs"] = False
    """torch.compile for the networks; pays off in long runs on a GPU. "cudagraphs" replays the kernels of eager mode
    from CUDA graphs instead of generating new ones: it starts within seconds, and removes the time between kernels,
    most of the time of small networks. Neither is possible with gradient penalties."""
    log_every: int = Field(10, ge=1, le=MAX_STEPS)
    """Steps between log lines in metrics.jsonl and the trackers."""
    trackers: list[Literal["tensorboard", "wandb"]] = ["tensorboard"]
    """Trackers besides metrics.jsonl. wandb is Weights & Biases (`pip install 'steelgen[wandb]'`); a resumed run keeps
    its id, stored in wandb.json. Without network set the environment variable WANDB_MODE=offline and run `wandb sync`
    later; WANDB_PROJECT changes the project from steelgen."""
    checkpoint_every: int = Field(1000, ge=1, le=MAX_STEPS)
    """Steps between checkpoints."""
    keep_checkpoints: int = Field(2, ge=1, le=MAX_STEPS)
    """Number of latest checkpoints to keep."""

    @model_validator(mode="after")
    def _check_end(self) -> OptimizationSection:
        if self.max_steps is None and self.max_epochs is None:
            raise ValueError("one of max_steps and max_epochs is required")
        if self.lr_scheduler != "constant_with_warmup" and self.max_steps is None:
            raise ValueError(f"lr_scheduler {self.lr_scheduler!r} needs max_steps, the end of its decay")
        return self


class PreviewSection(Section):
    """Preview images during training, always for the same masks and seeds."""

    every: int = Field(1000, ge=1, le=MAX_STEPS)
    """Steps between previews; there is one at step 0 and one at the end too."""
    num_images: int = Field(8, ge=0, le=1000)
    """Images per preview, or rows and columns of the grid of an rvae's first two latents; 0 disables previews."""
    solver: SolverSection = SolverSection()
    """Solver of the previews."""


class ValidationSection(Section):
    """Validation loss of the averaged weights, always with the same crops, noise and timesteps."""

    split: Literal["train", "val", "test"] | None = "val"
    """The held-out split; null, or a split missing in the dataset, disables validation and measurement."""
    every: int = Field(500, ge=1, le=MAX_STEPS)
    """Steps between validations; one costs about as much as crops / (3 · batch) steps."""
    crops: int = Field(128, ge=1, le=MAX_IMAGES)
    """Validation crops; their timesteps are spread evenly over the noise schedule."""
    bins: int = Field(8, ge=1, le=1000)
    """Equal parts of the noise schedule for additional loss values, also in training; bin 0 is the clean end."""

    @model_validator(mode="after")
    def _check_bins(self) -> ValidationSection:
        if self.crops < self.bins:
            raise ValueError(f"{self.crops} crops cannot fill {self.bins} bins")
        return self


class MeasurementSection(Section):
    """KID and copies of images generated during training for held-out masks, or without if the generator makes masks;
    not applicable to generators of masks alone."""

    every: int | None = Field(5000, ge=1, le=MAX_STEPS)
    """Steps between measurements; null disables them."""
    num_images: int = Field(128, ge=4, le=MAX_IMAGES)
    """Generated images, with the same masks and seeds each time, compared with as many held-out ones."""
    searched_images: int = Field(32, ge=1, le=MAX_IMAGES)
    """Number of them to search for in all training micrographs, the main cost of a measurement."""
    solver: SolverSection = SolverSection(num_inference_steps=10)
    """Solver of the measurements."""
    max_copies: float = Field(0.05, ge=0, le=1)
    """Maximum share of copies: images much closer to one place than to any other (d1/d2 < 1/3)."""
    checks: int = Field(2, ge=1, le=MAX_STEPS)
    """Consecutive measurements above max_copies that count as copying."""
    segmenter: Path | None = None
    """Output folder of `steelgen segment train` with the classes of the masks. Adds mask_iou: the mean IoU of the masks
    and its predictions on the images generated for them. null: not measured."""


class SelectionSection(Section):
    """Selection of best/ and early stopping."""

    criterion: Literal["auto", "val_loss", "kid", "train_epoch_loss", "none"] = "auto"
    """Value to minimize: the validation loss, the KID of generated images, or the mean training loss of an epoch (as in
    ISDM; it keeps falling while the generator overfits). auto is val_loss with a held-out split, else none."""
    patience_steps: int | None = Field(None, ge=1, le=MAX_STEPS)
    """Steps without a better value until training stops; null disables early stopping."""
    min_mask_iou: float = Field(0.0, ge=0, le=1)
    """Minimum measured mask_iou of a step to become best/, so that images keep their masks, with criterion kid and
    measurement.segmenter; 0 accepts all."""
    stop_at_copies: bool = False
    """Stops training when copying is detected; see measurement."""

    @model_validator(mode="after")
    def _check_patience(self) -> SelectionSection:
        if self.criterion == "none" and self.patience_steps is not None:
            raise ValueError("patience_steps needs a criterion")
        return self


class RunConfig(Section):
    """Common config of training and fine-tuning."""

    run_dir: Path
    """The run folder: resolved config, environment, metrics, previews, checkpoints, export."""
    seed: int = Field(0, ge=0, le=MAX_SEED)
    """Seed of all random numbers."""
    data: DataSection
    """The training data."""
    train: OptimizationSection
    """The training loop."""
    diffusion: DiffusionTrainingSection = DiffusionTrainingSection()
    """Training options of diffusion models."""
    preview: PreviewSection = PreviewSection()
    """Preview images."""
    validation: ValidationSection = ValidationSection()
    """Validation loss."""
    measurement: MeasurementSection = MeasurementSection()
    """KID and copies of generated images."""
    selection: SelectionSection = SelectionSection()
    """Selection of best/ and early stopping."""

    @model_validator(mode="before")
    @classmethod
    def _move_diffusion(cls, values: Any) -> Any:
        """Moves options of diffusion models that older configs have in train."""
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
        if self.validation.split in self.data.splits:
            raise ValueError(f"validation.split {self.validation.split!r} is the training split; use another or null")
        return self

    @model_validator(mode="after")
    def _check_min_mask_iou(self) -> RunConfig:
        if self.selection.min_mask_iou and self.selection.criterion != "kid":
            raise ValueError(f"selection.min_mask_iou: needs criterion 'kid', not {self.selection.criterion!r}")
        if self.selection.min_mask_iou and self.measurement.segmenter is None:
            raise ValueError("selection.min_mask_iou: needs measurement.segmenter")
        return self


class TrainConfig(RunConfig):
    """`steelgen train`: trains a generator on annotated micrographs."""

    generator: AnyGeneratorSection = SemanticDiffusionSection()
    """The generator to train."""

    @model_validator(mode="after")
    def _check_generator(self) -> TrainConfig:
        self.generator.check_image_size(self.data.image_size)
        if isinstance(self.generator, TranslationSection) != (self.data.source is not None):
            problem = "is missing; generator.kind translation needs images to translate"
            if self.data.source:
                problem = f"not applicable to generator.kind {self.generator.kind}"
            raise ValueError(f"data.source: {problem}")
        default, refines = SolverSection(), getattr(self.generator, "low_resolution", None) is not None
        for name, solver in (("preview", self.preview.solver), ("measurement", self.measurement.solver)):
            for field in REFINING_FIELDS:
                if not refines and getattr(solver, field) != getattr(default, field):
                    raise ValueError(f"{name}.solver.{field}: only applicable with generator.low_resolution")
        if self.data.conditions and not isinstance(self.generator, SemanticDiffusionSection):
            raise ValueError(f"data.conditions: not applicable to generator.kind {self.generator.kind}")
        if not self.generator.steps_by_solver:
            # Compared with the defaults, because resolved configs have them all.
            unused = ["preview.solver"] if self.preview.solver != PreviewSection().solver else []
            unused += ["measurement.solver"] if self.measurement.solver != MeasurementSection().solver else []
            unused += ["diffusion"] if self.diffusion != DiffusionTrainingSection() else []
            if unused:
                raise ValueError(f"{unused[0]}: not applicable to generator.kind {self.generator.kind}")
        return self


class FinetuneConfig(RunConfig):
    """`steelgen finetune`: continues from a trained generator, on the same or new data.

    Network and noise schedule are those of the checkpoint, and in_channels must match it. The data may have other
    classes, no masks, another image_size that the levels of the network divide, and other gray levels: weights that
    fit are kept, the others are new, and transfer.json in run_dir says which.
    """

    checkpoint: Path
    """A run folder, a checkpoint, an export or a bundled model (bundled:uhcs) to start from."""
    keep_classes: Literal["auto", "none"] = "auto"
    """auto keeps the mask weights of classes with the same name as in the checkpoint; none initializes all of them if
    the classes differ."""
    freeze: list[str] = []
    """Parts of the network that are not trained and stay as they are. semantic_diffusion has the parts input, time,
    encoder, middle, decoder, spade (the layers that see the mask), conditions and output."""
    continue_training: bool = False
    """Also restores the checkpoint's averages, AdamW moments and step count; false resets them."""

    @model_validator(mode="after")
    def _check_freeze(self) -> FinetuneConfig:
        if self.freeze and self.continue_training:
            raise ValueError("freeze: not applicable with continue_training, whose moments are of all weights")
        return self
