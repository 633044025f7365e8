"""Config section of unpaired translation."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from steelgen.config.base import Section

_TRANSLATION_DEFAULTS: dict[str, dict[str, Any]] = {
    "cyclegan": {"cycle": 10.0, "identity": 5.0, "pool_size": 50},
    "cut": {"nce": 2.0, "identity": 2.0, "nce_temperature": 0.07, "num_patches": 256},
}
"""Defaults of TranslationSection that depend on `mode`."""
_MODE_FIELDS = {"cyclegan": ("cycle", "pool_size"), "cut": ("nce", "nce_temperature", "num_patches")}


class TranslationSection(Section):
    """Unpaired translation of the images of data.source into images like those of data.dataset, which keep the masks of
    the source: CycleGAN (Zhu et al. 2017, arXiv 1703.10593) or CUT (Park et al. 2020, arXiv 2007.15651)."""

    kind: Literal["translation"] = "translation"
    """Generator kind."""
    mode: Literal["cyclegan", "cut"] = "cut"
    """cyclegan: two generators, one for each direction, and a cycle loss; cut: one generator and a patchwise
    contrastive loss, half the networks in about the same time."""
    width: int = Field(64, ge=1, le=1024)
    """Channels of the generators at full resolution."""
    blocks: int | None = Field(None, ge=1, le=64)
    """Residual blocks of the generators; null: 6 up to image_size 128, else 9."""
    noise_channels: int = Field(0, ge=0, le=64)
    """Channels of noise beside the image, so that one image gives many; 0 gives one image per source image."""
    row_noise_channels: int = Field(0, ge=0, le=64)
    """Channels of noise that is the same along each row, from which scan lines can be made; 0 disables it."""
    style_dim: int = Field(0, ge=0, le=64)
    """Random numbers per image that set its look, such as brightness, contrast and the strength of texture, where
    images of the target differ in it; 0 disables them. Only with mode cut: a cycle cannot bring back a look."""
    discriminator_width: int = Field(64, ge=1, le=1024)
    """Channels of the first layer of the discriminators."""
    discriminator_layers: int = Field(3, ge=1, le=6)
    """Convolutions of stride 2 in the discriminators, which judge patches of 16, 34, 70 px with 1, 2, 3."""
    discriminator_noise: float = Field(0.0, ge=0, le=10)
    """Standard deviation of Gaussian noise in every layer of the image discriminators, whose inputs have standard
    deviation 1; 0 disables it."""
    fft: float = Field(0.5, ge=0, le=1000)
    """Weight of the discriminators of power spectra (Khan et al. 2023) beside those of images; 0 disables them."""
    fft_per_frequency: bool = False
    """Give these discriminators a weight per frequency beside their convolutions, which do not tell one frequency from
    another: to them, a peak that is too weak in every image, like that of scan lines, looks like chance."""
    cycle: float | None = Field(None, ge=0, le=1000)
    """Weight of the cycle loss, only with mode cyclegan; defaults to 10 there."""
    nce: float | None = Field(None, gt=0, le=1000)
    """Weight of the contrastive loss, only with mode cut; defaults to 2 there. CUT has 1, FastCUT 10 and identity 0.
    Larger values keep more of the source, smaller ones may add what the target has more of."""
    identity: float = Field(2.0, ge=0, le=1000)
    """Weight of the same loss on target images, which the generator should not change; 0 disables it. Defaults to 5 for
    cyclegan, an absolute difference, and to 2 for cut, a contrastive loss."""
    nce_temperature: float | None = Field(None, gt=0, le=10)
    """Temperature of the contrastive loss, only with mode cut; defaults to 0.07 there."""
    num_patches: int | None = Field(None, ge=2, le=65536)
    """Places per image and feature map that the contrastive loss compares, only with mode cut; defaults to 256
    there."""
    pool_size: int | None = Field(None, ge=0, le=100000)
    """Earlier generated images that the discriminators are shown half of the time, only with mode cyclegan; defaults to
    50 there. 0 disables the pool."""
    r1_gamma: float = Field(0.0, ge=0, le=1000000)
    """Weight γ of the gradient penalty γ/2·‖∇D‖² on real images and spectra; 0 disables it."""
    penalty_every: int = Field(8, ge=1, le=1000)
    """Steps between gradient penalties, which are scaled by the same factor."""
    ada_target: float | None = Field(None, gt=0, lt=1)
    """Target of r_t for adaptive augmentation of the image discriminators; null disables augmentation. See
    `generator.ada_target` of gan."""
    ada_images: int = Field(50000, ge=1, le=1000000000)
    """Crops over which the augmentation probability can rise from 0 to 1."""
    adam_betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.5, 0.999)
    """AdamW's moment decay rates; replaces train.adam_betas."""

    steps_by_solver: ClassVar[bool] = False

    @model_validator(mode="before")
    @classmethod
    def _fill_defaults(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {**_TRANSLATION_DEFAULTS.get(str(values.get("mode", "cut")), {}), **values}

    @model_validator(mode="after")
    def _check_mode(self) -> TranslationSection:
        for mode, names in _MODE_FIELDS.items():
            for name in names:
                value = getattr(self, name)
                if (value is None) == (mode == self.mode):
                    raise ValueError(f"{name} {value}: not applicable to mode {self.mode!r}")
        if self.style_dim and self.mode != "cut":
            raise ValueError(f"style_dim {self.style_dim}: not applicable to mode {self.mode!r}")
        if self.fft_per_frequency and not self.fft:
            raise ValueError("fft_per_frequency true: not applicable with fft 0, without discriminators of spectra")
        return self

    @property
    def has_noise(self) -> bool:
        """Whether the generator sees anything random beside an image."""
        return self.noise_channels + self.row_noise_channels + self.style_dim > 0

    def check_image_size(self, image_size: int) -> None:
        """See `SemanticDiffusionSection.check_image_size`."""
        # Two convolutions of 4 px without stride follow; spectra have half the width.
        smallest = (6 if self.fft else 3) * 2**self.discriminator_layers
        if image_size % 4 or image_size < smallest:
            raise ValueError(
                f"data.image_size {image_size}: must be a multiple of 4 and at least {smallest} for "
                f"generator.discriminator_layers {self.discriminator_layers}"
            )
        # Half of the rows that the network filters.
        if self.row_noise_channels and image_size < 16:
            raise ValueError(f"data.image_size {image_size}: must be at least 16 for generator.row_noise_channels")

    def count_blocks(self, image_size: int) -> int:
        """Returns the number of residual blocks."""
        return self.blocks or (6 if image_size <= 128 else 9)
