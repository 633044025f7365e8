"""Config section of adapters for a pretrained Stable Diffusion."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from steelgen.config.base import MAX_IMAGES, Section

DriverName = Literal["classes", "outlines", "skeletons", "distance"]
_Name = Annotated[str, Field(min_length=1, max_length=200)]
_Prompt = Annotated[str, Field(max_length=2000)]


class LoraSection(Section):
    """Low-rank updates of the base's attention layers (LoRA, Hu et al. 2021, arXiv 2106.09685)."""

    rank: int = Field(8, ge=1, le=1024)
    """Rank of the updates; 4 to 16 is common."""
    alpha: float | None = Field(None, gt=0, le=100000)
    """The updates are multiplied by alpha / rank; null uses the rank, which multiplies by 1."""
    target_modules: list[_Name] = Field(["to_q", "to_k", "to_v", "to_out.0"], min_length=1)
    """Ends of the names of the U-Net's layers that are updated."""
    text_encoder: bool = False
    """Also update the attention layers of the text encoder, which learns the token better and overfits sooner."""


class ControlSection(Section):
    """A ControlNet (Zhang et al. 2023, arXiv 2302.05543) that steers the base by drivers made from the mask."""

    drivers: list[DriverName] = Field(["classes"], min_length=1, max_length=4)
    """Planes made from the mask: classes (one per class), outlines of the islands, their skeletons, and the distance to
    the nearest border between classes."""
    coarsen: int = Field(1, ge=1, le=1024)
    """Edge, in px, of blocks over which the drivers are averaged, for masks that are only a sketch; 1 keeps all
    detail."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Probability of zeroing a driver of a training crop, for each driver by itself, so that none is relied on alone.
    The classes count as one driver. diffusion.mask_dropout zeroes all at once."""
    scale: float = Field(1.0, ge=0, le=10)
    """Factor on the ControlNet's output in sampling; 0 ignores the mask, training uses 1."""

    @model_validator(mode="after")
    def _check_drivers(self) -> ControlSection:
        if len(set(self.drivers)) < len(self.drivers):
            raise ValueError(f"drivers {self.drivers}: each may appear once")
        return self


class LatentAdapterSection(Section):
    """Adapters of a pretrained Stable Diffusion 1.x or 2.x, after Valvano et al. 2024 (arXiv 2401.03152): DreamBooth
    with LoRA teaches it the material, a ControlNet makes it follow masks. Needs `pip install 'steelgen[adapters]'`."""

    kind: Literal["latent_adapter"]
    """Generator kind."""
    base: str = Field(min_length=1, max_length=1000)
    """The pretrained model: a folder in the format of diffusers, or a name on the Hugging Face hub that
    `steelgen data fetch model NAME` has downloaded."""
    base_precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the frozen weights; bf16 halves their memory. Adapters are always fp32."""
    lora: LoraSection | Path | None = LoraSection()
    """Low-rank updates to train. A path starts from trained ones: a generator of this kind, or a file of diffusers'
    scripts or kohya's; with `control` they stay as they are. null leaves the base unchanged."""
    control: ControlSection | None = None
    """The ControlNet to train; null makes images without masks."""
    token: _Name = "sks"
    """A rare word that comes to stand for the material (DreamBooth, Ruiz et al. 2022, arXiv 2208.12242)."""
    prompt: _Prompt = "a micrograph of {token}"
    """Prompt of all images. {token} is the token, {classes} lists the classes in the mask."""
    class_prompt: _Prompt = "a micrograph"
    """Prompt of the class images, without the token."""
    prior_loss_weight: float = Field(0.0, ge=0, le=1000)
    """Weight of the loss on class images, which keeps the base from forgetting what else it knows; 0 disables it, and
    DreamBooth uses 1. It doubles the cost of a step."""
    num_class_images: int = Field(200, ge=1, le=MAX_IMAGES)
    """Images that the base makes for class_prompt before training, in class_images/ of the run folder."""

    steps_by_solver: ClassVar[bool] = True

    @property
    def trains_lora(self) -> bool:
        """Whether the low-rank updates are trained."""
        return self.lora is not None and not (self.control is not None and isinstance(self.lora, Path))

    @model_validator(mode="after")
    def _check_adapters(self) -> LatentAdapterSection:
        if self.lora is None and self.control is None:
            raise ValueError("lora and control are both null: there is nothing to train")
        if self.prior_loss_weight and not self.trains_lora:
            raise ValueError(f"prior_loss_weight {self.prior_loss_weight:g}: not applicable without lora to train")
        if "{token}" in self.class_prompt or "{classes}" in self.class_prompt:
            raise ValueError(f"class_prompt {self.class_prompt!r}: must be plain text")
        return self

    def check_image_size(self, image_size: int) -> None:
        """Does nothing: the base decides; see `steelgen.generators.latent_adapter.base.Base.check_image_size`."""
