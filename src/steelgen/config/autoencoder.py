"""Config section of the autoencoder of latent diffusion."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from steelgen.config.base import MAX_STEPS, Section

_Weight = Annotated[float, Field(ge=0, le=1000)]


class AutoencoderSection(Section):
    """Autoencoder of images and masks, below diffusion with generator.latent (Rombach et al. 2022, arXiv 2112.10752).
    Images have a variational autoencoder; masks, if the dataset has any, one that is trained by cross-entropy alone.
    As a generator it reconstructs images."""

    kind: Literal["autoencoder"] = "autoencoder"
    """Generator kind."""
    downsample_factor: Literal[2, 4] = 2
    """Pixels per latent along an edge. 4 makes diffusion about four times faster, but films of 1 to 3 px may be
    lost."""
    latent_channels: int = Field(4, ge=1, le=64)
    """Channels of the latents of images; more keep more texture and are harder to generate."""
    mask_latent_channels: int = Field(4, ge=1, le=64)
    """Channels of the latents of masks."""
    base_channels: int = Field(32, ge=4, le=1024)
    """Channels of the images' autoencoder at full resolution; each coarser level doubles them."""
    num_res_blocks: int = Field(1, ge=1, le=16)
    """Residual blocks per level."""
    norm_groups: int = Field(8, ge=1, le=1024)
    """Groups of every GroupNorm; base_channels must be a multiple."""
    mask_channels: int = Field(32, ge=4, le=1024)
    """Channels of the masks' autoencoder."""
    kl_weight: _Weight = 1e-6
    """Weight of the KL divergence of the images' latents from a standard normal distribution, in nats per gray value;
    larger values smooth the latents and blur the images."""
    spectral_weight: _Weight = 0.05
    """Weight of the absolute difference of log power spectra beside that of standardized gray levels, which alone
    blurs; 0 disables it."""
    mask_weight: float = Field(1.0, gt=0, le=1000)
    """Weight of the cross-entropy of the masks, in nats per pixel."""
    adversarial_weight: _Weight = 0.05
    """Weight of the patch discriminator's loss; 0 trains without a discriminator."""
    adversarial_start: int = Field(5000, ge=0, le=MAX_STEPS)
    """Step at which the discriminator starts. Started before the images are sharp, it makes textures that are not in
    the micrograph."""
    discriminator_width: int = Field(32, ge=1, le=1024)
    """Channels of the discriminator's first layer."""
    discriminator_layers: int = Field(2, ge=1, le=6)
    """Convolutions of stride 2 in the discriminator, which judges patches of 16, 34, 70 px with 1, 2, 3."""

    steps_by_solver: ClassVar[bool] = False

    @property
    def levels(self) -> int:
        """Number of times that the resolution is halved."""
        return self.downsample_factor.bit_length() - 1

    @model_validator(mode="after")
    def _check_groups(self) -> AutoencoderSection:
        if self.base_channels % self.norm_groups:
            raise ValueError(
                f"base_channels {self.base_channels}: must be a multiple of norm_groups {self.norm_groups}"
            )
        return self

    def check_image_size(self, image_size: int) -> None:
        """See `SemanticDiffusionSection.check_image_size`."""
        if image_size % self.downsample_factor:
            raise ValueError(
                f"data.image_size {image_size}: must be a multiple of generator.downsample_factor "
                f"{self.downsample_factor}"
            )
        # Two convolutions of 4 px without stride follow.
        smallest = 3 * 2**self.discriminator_layers
        if self.adversarial_weight and image_size < smallest:
            raise ValueError(
                f"data.image_size {image_size}: must be at least {smallest} for generator.discriminator_layers "
                f"{self.discriminator_layers}"
            )
