"""Config section of generative adversarial networks."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from steelgen.config.base import Section, is_older

_GAN_DEFAULTS: dict[str, dict[str, Any]] = {
    "dcgan": {},
    "style": {
        "latent_dim": 64,
        "base_channels": 32,
        "noise_planes": 8,
        "adam_betas": (0.0, 0.99),
        "discriminator_rate": 3.0,
        "objective": "relativistic",
        "r1_gamma": 0.05,
        "r2_gamma": 0.05,
        "penalty_every": 4,
        "ada_target": 0.5,
    },
    "mask": {
        "spade_channels": 64,
        "fine_discriminator": True,
        "objective": "segmentation",
    },
}
"""Defaults of GanSection that depend on `architecture` and `condition`."""

_ADDED: dict[str, Any] = {"noise_planes": 1, "discriminator_rate": 1.0, "fine_discriminator": False}
"""Fields that resolved configs and generators of older versions lack, and what these did."""


class GanSection(Section):
    """Generative adversarial networks: DCGAN (Radford et al. 2016, arXiv 1511.06434) as a baseline, a style-based
    generator (Karras et al. 2020, arXiv 1912.04958), or, with condition mask, a SPADE generator with a segmentation
    discriminator (OASIS, arXiv 2012.04781). image_size must be a power of two."""

    kind: Literal["gan"] = "gan"
    """Generator kind."""
    architecture: Literal["dcgan", "style"] = "dcgan"
    """Network architecture. The defaults below are those of dcgan; style defaults to latent_dim 64, base_channels 32,
    noise_planes 8, adam_betas (0, 0.99), discriminator_rate 3, objective relativistic, r1_gamma and r2_gamma 0.05,
    penalty_every 4, and ada_target 0.5, with condition mask also to objective segmentation and fine_discriminator true,
    and needs a train.learning_rate of about 0.002."""
    condition: Literal["none", "mask"] = "none"
    """mask: generate images for masks; needs architecture style and a dataset with masks."""
    latent_dim: int = Field(100, ge=1, le=4096)
    """Length of the latent vector of an image."""
    base_channels: int = Field(64, ge=1, le=1024)
    """Channels of the finest feature maps; each coarser level doubles them, with style up to 8 times."""
    spade_channels: int | None = Field(None, ge=1, le=4096)
    """Hidden width of the SPADE norms, only with condition mask; defaults to 64 there."""
    noise_planes: int = Field(1, ge=1, le=64)
    """Independent planes of noise that the channels of a layer share; more than 1 only with style. With 1, the texture
    of all images is one plane seen through one filter, an oriented ripple."""
    adam_betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.5, 0.999)
    """AdamW's moment decay rates; replaces train.adam_betas."""
    discriminator_rate: float = Field(1.0, gt=0, le=1000)
    """Learning rate of the discriminator as a factor of train.learning_rate, which is that of the generator. If r_t
    stays near 0 without masks, the discriminator lags behind, and the images lack what it does not see: increase the
    factor."""
    fine_discriminator: bool = False
    """Downsample in the discriminator's blocks after both of their convolutions instead of between them, only with
    style: it sees finer detail, for a tenth more time. Without it, images for masks have a ripple."""
    objective: Literal["logistic", "relativistic", "segmentation"] = "logistic"
    """logistic: non-saturating logistic loss; relativistic: pairs of real and generated images (R3GAN, Huang et al.
    2024, arXiv 2501.05441); segmentation: pixelwise cross-entropy, required by and only for condition mask."""
    r1_gamma: float = Field(0.0, ge=0, le=1000000)
    """Weight γ of the gradient penalty γ/2·‖∇D‖² on real images (Mescheder et al. 2018, arXiv 1801.04406); 0 disables
    it. Larger values stabilize training but blur images. With style, images have standard deviation 1. γ should be
    proportional to the pixels of an image and inverse to the batch: 0.05 at 32 px and 16 crops, 0.1 at 64 px and 32."""
    r2_gamma: float = Field(0.0, ge=0, le=1000000)
    """Weight γ of the same penalty on generated images; 0 disables it."""
    penalty_every: int = Field(1, ge=1, le=1000)
    """Steps between gradient penalties, which are scaled by the same factor; a step with penalties takes about twice as
    long."""
    ada_target: float | None = Field(None, gt=0, lt=1)
    """Target of r_t for adaptive discriminator augmentation (Karras et al. 2020, arXiv 2006.06676); its probability
    rises while r_t exceeds the target; null disables augmentation."""
    ada_images: int = Field(50000, ge=1, le=1000000000)
    """Crops over which the augmentation probability can rise from 0 to 1."""

    steps_by_solver: ClassVar[bool] = False

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        defaults = _GAN_DEFAULTS.get(str(values.get("architecture", "dcgan")), {})
        if values.get("condition") == "mask":
            defaults = {**defaults, **_GAN_DEFAULTS["mask"]}
        if is_older(cls, values, _ADDED):
            defaults = _ADDED
        return {**defaults, **values}

    @model_validator(mode="after")
    def _check_condition(self) -> GanSection:
        if self.condition == "mask" and self.architecture != "style":
            raise ValueError(f"condition 'mask' needs architecture 'style', not {self.architecture!r}")
        if (self.objective == "segmentation") != (self.condition == "mask"):
            raise ValueError(f"objective {self.objective!r}: not applicable to condition {self.condition!r}")
        if self.noise_planes > 1 and self.architecture == "dcgan":
            raise ValueError(f"noise_planes {self.noise_planes}: not applicable to architecture 'dcgan'")
        if self.fine_discriminator and self.architecture == "dcgan":
            raise ValueError("fine_discriminator true: not applicable to architecture 'dcgan'")
        if (self.spade_channels is None) != (self.condition == "none"):
            raise ValueError(f"spade_channels {self.spade_channels}: not applicable to condition {self.condition!r}")
        return self

    def check_image_size(self, image_size: int) -> None:
        """See `SemanticDiffusionSection.check_image_size`."""
        if image_size & (image_size - 1):
            raise ValueError(f"data.image_size {image_size}: must be a power of two for generator.kind gan")
