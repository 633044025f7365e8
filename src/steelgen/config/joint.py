"""Config section of the joint diffusion model of images and masks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from steelgen.config.base import MAX_IMAGE_SIZE, MAX_TIMESTEPS, Section, is_older
from steelgen.config.solver import check_schedule

_Share = Annotated[float, Field(ge=0, le=1)]


class JointUNetSection(Section):
    """The U-Net of image and mask (diffusers' UNet2DModel); its channels follow from the data section."""

    base_channels: int = Field(64, ge=4, le=4096)
    """Channels of the first level, before channel_mult."""
    channel_mult: list[Annotated[int, Field(ge=1, le=64)]] = Field([1, 2, 2, 2], min_length=1, max_length=12)
    """Factor on base_channels per resolution level; each level halves the resolution."""
    num_res_blocks: int = Field(2, ge=1, le=64)
    """Residual blocks per level."""
    attention_resolutions: list[Annotated[int, Field(ge=1, le=MAX_IMAGE_SIZE)]] = [16, 8]
    """Edges, in feature pixels, of the levels with self-attention; the middle block always has it."""
    num_head_channels: int = Field(32, ge=1, le=4096)
    """Channels per attention head."""
    norm_groups: int = Field(32, ge=1, le=4096)
    """Groups of every GroupNorm; the channels of each level must be a multiple."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability inside the residual blocks."""

    @model_validator(mode="after")
    def _check_widths(self) -> JointUNetSection:
        for factor in self.channel_mult:
            width = factor * self.base_channels
            for name, divisor in (("norm_groups", self.norm_groups), ("num_head_channels", self.num_head_channels)):
                if width % divisor:
                    raise ValueError(
                        f"base_channels {self.base_channels} times channel_mult {factor} gives {width} channels, "
                        f"not a multiple of {name} {divisor}"
                    )
        return self


class JointNoiseSection(Section):
    """The noise schedule of image and mask. It ends without signal (Lin et al. 2023, arXiv 2305.08891), and the
    network predicts the velocity (Salimans & Ho 2022, arXiv 2202.00512)."""

    num_train_timesteps: int = Field(1000, ge=2, le=MAX_TIMESTEPS)
    """Steps of the forward process."""
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "flow"] = "squaredcos_cap_v2"
    """diffusers' name; squaredcos_cap_v2 is the cosine schedule (Nichol & Dhariwal 2021, arXiv 2102.09672). flow has
    the noise levels of rectified flow, σ = t/(1 − t) (Liu et al. 2022, arXiv 2209.03003)."""
    standardize: bool = True
    """Shifts and scales gray levels so that the training set has mean 0 and standard deviation 1."""

    @model_validator(mode="after")
    def _check_schedule(self) -> JointNoiseSection:
        check_schedule(self.beta_schedule, self.num_train_timesteps)
        return self


class NoiseLevelsSection(Section):
    """Shares of the training crops with related noise levels of image and mask; those of all other crops are
    independent. diffusion.mask_dropout is the share of crops whose mask is pure noise."""

    equal: _Share = 0.35
    """Both have the same noise level, as in sampling of pairs."""
    clean_mask: _Share = 0.15
    """The mask has no noise, as in sampling of images for masks."""
    clean_image: _Share = 0.15
    """The image has no noise, as in sampling of masks for images."""
    no_image: _Share = 0.15
    """The image is pure noise, as in sampling of masks alone."""

    @property
    def total(self) -> float:
        """Sum of the shares."""
        return self.equal + self.clean_mask + self.clean_image + self.no_image

    @model_validator(mode="after")
    def _check_total(self) -> NoiseLevelsSection:
        if self.total > 1 + 1e-9:
            raise ValueError(f"the shares add up to {self.total:g}, more than 1")
        return self


class JointDiffusionSection(Section):
    """Diffusion of image and mask together, each with a noise level of its own (UniDiffuser, Bao et al. 2023, arXiv
    2303.06555), with the mask as analog bits (Chen et al. 2022, arXiv 2208.04202). Generates pairs, images for masks,
    masks for images, and images alone; micrographs without masks train it, too."""

    kind: Literal["joint_diffusion"] = "joint_diffusion"
    """Generator kind."""
    unet: JointUNetSection = JointUNetSection()
    """The network."""
    noise: JointNoiseSection = JointNoiseSection()
    """The noise schedule."""
    levels: NoiseLevelsSection = NoiseLevelsSection()
    """How the noise levels of image and mask are related in training."""
    image_channels: Literal["all", "none"] = "all"
    """none trains a generator of masks alone, for the mask source `learned`."""
    self_conditioning: _Share = 0.5
    """Probability of giving the network its own estimate of image and mask (Chen et al. 2022, section 2.2), which costs
    a second evaluation; 0 builds a network without this input."""
    mask_prediction: Literal["classes", "velocity"] = "classes"
    """What the network predicts of the mask. classes: the class of each pixel, trained by cross-entropy; the expected
    bits follow from the probabilities (Dieleman et al. 2022, arXiv 2211.15089, "score interpolation"). velocity: the
    velocity of the bits, as of the image. Defaults to velocity with latent, and in resolved configs of versions without
    this field."""
    mask_loss_weight: float = Field(1.0, gt=0, le=1000)
    """Weight of the mask's loss relative to the image's. Each is a mean over pixels, that of velocities also over
    channels; cross-entropy is in nats."""
    latent: Path | None = None
    """Run folder or export of an autoencoder trained with masks, whose latents are generated in place of pixels. The
    generator's folder has a copy of it. attention_resolutions are then edges in latents. null generates pixels."""

    steps_by_solver: ClassVar[bool] = True

    @model_validator(mode="before")
    @classmethod
    def _choose_prediction(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "mask_prediction" in values:
            return values
        velocity = values.get("latent") or is_older(cls, values, ["mask_prediction"])
        return {**values, "mask_prediction": "velocity"} if velocity else values

    @model_validator(mode="after")
    def _check_prediction(self) -> JointDiffusionSection:
        if self.latent and self.mask_prediction == "classes":
            raise ValueError("mask_prediction 'classes': not applicable to latent, whose channels are no bits")
        return self

    @model_validator(mode="after")
    def _check_images(self) -> JointDiffusionSection:
        if self.image_channels == "none" and self.levels != NoiseLevelsSection():
            raise ValueError("levels: not applicable to image_channels 'none'")
        return self

    def check_image_size(self, image_size: int) -> None:
        """See `SemanticDiffusionSection.check_image_size`."""
        levels = len(self.unet.channel_mult)
        factor = 2 ** (levels - 1)
        if image_size % factor:
            raise ValueError(f"data.image_size {image_size} is not a multiple of {factor}, needed for {levels} levels")
