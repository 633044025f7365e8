"""Config section of the rotation-invariant variational autoencoder."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator

from steelgen.config.base import MAX_IMAGE_SIZE, MAX_TIMESTEPS, Section


class RvaeSection(Section):
    """Rotation- and translation-invariant variational autoencoder (Bepler et al. 2019, arXiv 1909.11663; Kalinin et al.
    2021, Sci. Adv. 7, eabd5084). Describes islands by a few latents, for `steelgen describe` and `steelgen evaluate`.
    data.crop_size is the edge of a patch in micrograph pixels; image_size must be a multiple of 8."""

    kind: Literal["rvae"] = "rvae"
    """Generator kind."""
    patches: Literal["islands", "instances", "grid"] = "islands"
    """Center patches on the islands of the masks, on annotated instances (which may touch), or on a grid."""
    classes: list[str] | None = Field(None, min_length=1)
    """Classes whose islands are described; null: all but the first, which is the matrix."""
    min_area: int = Field(30, ge=1, le=MAX_IMAGE_SIZE**2)
    """Area of the smallest island, in micrograph pixels."""
    spacing: int | None = Field(None, ge=2, le=MAX_IMAGE_SIZE)
    """Distance between grid patches, px; null: half of data.crop_size."""
    channels: Literal["image", "mask", "both"] = "mask"
    """Input channels: gray levels, the island's mask, or both."""
    neighbors: bool = False
    """Include other islands of the same class in the mask; always the case on a grid."""
    latent_dim: int = Field(2, ge=1, le=64)
    """Number of latents per island."""
    invariant: bool = True
    """Make latents invariant to rotation, shift, and scale; false gives a plain variational autoencoder of about the
    same size, for comparison."""
    angle_starts: int = Field(2, ge=1, le=6)
    """Number of equally spaced candidate angles per patch: 2 for objects with near twofold symmetry, 3 for threefold, 1
    for none."""
    rotation_prior: float | None = Field(None, gt=0, le=100)
    """Standard deviation of the angle's normal prior, radians, for materials with a preferred direction; null: uniform
    prior."""
    translation_prior: float = Field(0.1, ge=0, le=1)
    """Standard deviation of the shift's prior, in half edges of the patch; 0 disables shift invariance."""
    scale_prior: float = Field(0.0, ge=0, le=2)
    """Standard deviation of the log scale's prior; 0 disables scale invariance, so latents describe size."""
    kl_weight: float = Field(1.0, ge=0, le=1000)
    """Weight β of the KL divergence (Higgins et al. 2017); smaller values make latents more informative."""
    kl_crops: int = Field(10_000, ge=0, le=MAX_TIMESTEPS**2)
    """Training crops over which kl_weight is annealed from 0; 0 disables annealing. Validation uses the full weight."""
    encoder_channels: int = Field(16, ge=1, le=512)
    """Channels of the encoder's first convolution."""
    decoder_channels: int = Field(64, ge=1, le=2048)
    """Width of the decoder."""
    decoder_layers: int = Field(3, ge=1, le=16)
    """Hidden layers of the decoder."""

    steps_by_solver: ClassVar[bool] = False

    @model_validator(mode="after")
    def _check_channels(self) -> RvaeSection:
        if self.patches == "grid" and self.classes is not None:
            raise ValueError("classes: not applicable to patches 'grid'")
        if self.patches != "grid" and self.spacing is not None:
            raise ValueError(f"spacing: not applicable to patches {self.patches!r}")
        return self

    def check_image_size(self, image_size: int) -> None:
        """See `SemanticDiffusionSection.check_image_size`."""
        if image_size % 8:
            raise ValueError(f"data.image_size {image_size}: must be a multiple of 8 for generator.kind rvae")
