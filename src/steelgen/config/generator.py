"""Config sections of semantic diffusion, and the choice among all kinds of generators."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, Tag, model_validator

from steelgen.config.adapter import LatentAdapterSection
from steelgen.config.autoencoder import AutoencoderSection
from steelgen.config.base import MAX_IMAGE_SIZE, MAX_TIMESTEPS, Section, by_kind
from steelgen.config.gan import GanSection
from steelgen.config.joint import JointDiffusionSection
from steelgen.config.rvae import RvaeSection
from steelgen.config.solver import check_schedule
from steelgen.config.translation import TranslationSection


class UNetSection(Section):
    """The semantic U-Net; sizes of images and masks follow from the data section."""

    removed = {"augmentation_conditioning": "it measured like the default (KID·10³ 35.3 against 35.7 ± 4.6)"}

    base_channels: int = Field(64, ge=1, le=4096)
    """Channels of the first level, before channel_mult."""
    channel_mult: list[Annotated[float, Field(ge=0, le=64)]] = Field([1, 2, 3, 4], min_length=1, max_length=12)
    """Factor on base_channels per resolution level; each level halves the resolution."""
    num_res_blocks: int = Field(2, ge=1, le=64)
    """Residual blocks per level."""
    attention_resolutions: list[Annotated[int, Field(ge=1, le=MAX_IMAGE_SIZE)]] = [16, 8]
    """Edges, in feature pixels, of the levels with self-attention; see middle_attention for the middle block."""
    num_heads: int = Field(4, ge=1, le=1024)
    """Attention heads if num_head_channels is null."""
    num_heads_upsample: int | None = Field(None, ge=1, le=1024)
    """Attention heads of the decoder; null uses num_heads."""
    num_head_channels: int | None = Field(32, ge=1, le=4096)
    """Channels per attention head; null uses num_heads."""
    spade_channels: int = Field(128, ge=1, le=4096)
    """Hidden width of the SPADE norms (128 in SPADE, SDM and ISDM); the main cost at high resolution."""
    norm_groups: int = Field(32, ge=1, le=4096)
    """Groups of every GroupNorm; the channels of each level must be a multiple."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability inside the residual blocks."""
    scale_shift: bool = True
    """The time embedding scales and shifts the norms; false adds it to the features."""
    resample_in_blocks: bool = True
    """Changes the resolution inside residual blocks; false uses separate convolutions."""
    learn_sigma: bool = False
    """Learns the reverse variance in additional output channels (Nichol & Dhariwal 2021, arXiv 2102.09672)."""
    mask_resize: Literal["area", "nearest"] = "area"
    """Downsampling of the mask for coarse levels: area shares per class, or nearest pixels (SPADE, ISDM)."""
    instance_edges: bool = False
    """Adds outlines of the mask's regions as a channel of the SPADE norms' input (ISDM with no_instance false)."""
    middle_attention: bool = True
    """Self-attention in the middle block; false, for refining stages, lets the time per pixel not depend on
    image_size."""
    patch_size: Literal[1, 2] = 1
    """Edge of the squares of pixels that are channels of one for the levels (Hoogeboom et al. 2023, arXiv 2301.11093).
    With 2, the first level has half the edge of the images, at a quarter of the cost per channel; a thin last layer
    sees pixels and mask at full resolution."""
    timestep_scale: float = Field(1.0, gt=0, le=1000)
    """Factor on the timesteps in the time embedding (ISDM's rescale_timesteps: 1000 / num_train_timesteps)."""

    @model_validator(mode="after")
    def _check_widths(self) -> UNetSection:
        for factor in self.channel_mult:
            width = int(factor * self.base_channels)
            if width <= 0 or width % self.norm_groups:
                raise ValueError(
                    f"base_channels {self.base_channels} times channel_mult {factor:g} gives {width} channels, "
                    f"not a multiple of norm_groups {self.norm_groups}"
                )
            if (
                self.num_head_channels
                and width % self.num_head_channels
                and (self.attention_resolutions or (self.middle_attention and factor == self.channel_mult[-1]))
            ):
                raise ValueError(f"{width} channels are not a multiple of num_head_channels {self.num_head_channels}")
        return self


class NoiseSection(Section):
    """The noise schedule and the network's target."""

    removed = {
        "mask_noise": "with sound masks it doubled the distance to real images (KID·10³ 70.9 against 35.7)",
        "snr_gamma": "Min-SNR weighting measured no better than equal weights (KID·10³ 41.1 against 35.7 ± 4.6)",
    }

    num_train_timesteps: int = Field(1000, ge=2, le=MAX_TIMESTEPS)
    """Steps of the forward process."""
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "flow"] = "squaredcos_cap_v2"
    """diffusers' name; squaredcos_cap_v2 is the cosine schedule (Nichol & Dhariwal 2021, arXiv 2102.09672). flow has
    the noise levels of rectified flow, σ = t/(1 − t) (Liu et al. 2022, arXiv 2209.03003)."""
    prediction_type: Literal["v_prediction", "epsilon", "sample", "flow"] = "v_prediction"
    """The network's target: velocity (Salimans & Ho 2022, arXiv 2202.00512), noise, the image, or noise − image given
    (1 − t)·image + t·noise: flow matching (Lipman et al. 2022, arXiv 2210.02747)."""
    zero_terminal_snr: bool = True
    """Rescales the schedule to leave no signal at the last step (Lin et al. 2023, arXiv 2305.08891), so that brightness
    and contrast are learned; needs v_prediction, sample or flow."""
    standardize: bool = True
    """Shifts and scales gray levels so that the training set has mean 0 and standard deviation 1. Without it, most
    steps of a schedule for unit variance (Karras et al. 2022, arXiv 2206.00364, table 1: σ_data) are pure noise,
    because micrographs have little contrast."""
    objective: Literal["simple", "variational"] = "simple"
    """Squared error of the prediction, or the variational bound L_vlb (ISDM's use_kl)."""
    vlb_weight: float = Field(0.001, ge=0, le=1000000)
    """λ of L_simple + λ·L_vlb (Nichol & Dhariwal 2021, eq. 16) for unet.learn_sigma; L_vlb sums over all timesteps."""

    @model_validator(mode="after")
    def _check_terminal_snr(self) -> NoiseSection:
        check_schedule(self.beta_schedule, self.num_train_timesteps)
        if self.zero_terminal_snr and self.prediction_type == "epsilon":
            raise ValueError("zero_terminal_snr needs prediction_type v_prediction, sample or flow, not epsilon")
        if self.beta_schedule == "flow" and not self.zero_terminal_snr:
            raise ValueError("beta_schedule flow ends without signal: zero_terminal_snr must be true")
        return self


class LowResolutionSection(Section):
    """Conditioning on a coarse image, for a refining stage (Ho et al. 2022, arXiv 2106.15282; Saharia et al. 2021,
    arXiv 2104.07636). In training, the coarse image is the crop, shrunk and degraded at random."""

    factor: Literal[2, 4, 8]
    """Edge of the images divided by that of their coarse images."""
    max_blur: float = Field(0.6, ge=0, le=8)
    """Largest standard deviation of the Gaussian blur of coarse images, in their pixels; the network is not told it. 0
    disables blur; larger values make the network sharpen more."""
    max_noise: float = Field(0.3, ge=0, le=10)
    """Largest standard deviation of the noise on coarse images, relative to that of the training images if
    noise.standardize is set; the network is told it. 0 disables noise; with too little, the errors of the stage before
    multiply."""


class DiffusionTrainingSection(Section):
    """Training options of diffusion models."""

    mask_dropout: float = Field(0.1, ge=0, le=1)
    """Probability of replacing a crop's mask by the null mask, for classifier-free guidance (ISDM's drop_rate)."""
    timestep_sampling: Literal["even", "loss_second_moment", "lognormal"] = "even"
    """Distribution of training timesteps: uniform; by loss, with importance weights (Nichol & Dhariwal 2021,
    arXiv 2102.09672, section 3.3); or log-normal in σ = √((1 − ᾱ)/ᾱ) (Karras et al. 2022, arXiv 2206.00364, table 1,
    whose training is otherwise equal to v-prediction of standardized images)."""
    lognormal_mean: float = Field(-0.5, ge=-20, le=20)
    """Mean of ln σ for lognormal. The paper's P_mean is -1.2 for σ_data 0.5, here 1. Mean 0 and standard deviation 1
    are the logit-normal times of Stable Diffusion 3 (Esser et al. 2024, arXiv 2403.03206)."""
    lognormal_std: float = Field(1.2, gt=0, le=20)
    """Standard deviation of ln σ (P_std)."""


class SemanticDiffusionSection(Section):
    """Mask-conditioned diffusion with a SPADE U-Net."""

    kind: Literal["semantic_diffusion"] = "semantic_diffusion"
    """Generator kind."""
    unet: UNetSection = UNetSection()
    """The network."""
    noise: NoiseSection = NoiseSection()
    """The noise schedule."""
    low_resolution: LowResolutionSection | None = None
    """The coarse image that a refining stage is also conditioned on; null generates from the mask alone."""
    latent: Path | None = None
    """Run folder or export of an autoencoder, whose latents are generated in place of pixels. The generator's folder
    has a copy. The network sees the mask at the resolution of the latents, by unet.mask_resize; attention_resolutions
    are edges in latents. null generates pixels."""

    steps_by_solver: ClassVar[bool] = True
    """Whether the sections `solver` and `diffusion` apply."""

    def check_image_size(self, image_size: int) -> None:
        """Raises ValueError if the network does not support the image size."""
        levels = len(self.unet.channel_mult)
        patch = self.unet.patch_size
        factor = patch * 2 ** (levels - 1)
        if image_size % factor:
            needed = f"{levels} levels" + (f" and unet.patch_size {patch}" if patch > 1 else "")
            raise ValueError(f"data.image_size {image_size} is not a multiple of {factor}, needed for {needed}")
        if self.low_resolution and image_size % self.low_resolution.factor:
            raise ValueError(
                f"data.image_size {image_size} is not a multiple of generator.low_resolution.factor "
                f"{self.low_resolution.factor}"
            )

    @model_validator(mode="after")
    def _check_low_resolution(self) -> SemanticDiffusionSection:
        # The bound counts gray levels, but a refining network predicts a difference of images.
        if self.low_resolution and (self.noise.objective == "variational" or self.unet.learn_sigma):
            name = "noise.objective 'variational'" if self.noise.objective == "variational" else "unet.learn_sigma"
            raise ValueError(f"low_resolution: not applicable to {name}")
        return self

    @model_validator(mode="after")
    def _check_latent(self) -> SemanticDiffusionSection:
        if self.latent is None:
            return self
        others = {
            "low_resolution": self.low_resolution is not None,
            "unet.instance_edges": self.unet.instance_edges,
            # The bound counts gray levels.
            "unet.learn_sigma": self.unet.learn_sigma,
            # Latents stand for patches already.
            "unet.patch_size 2": self.unet.patch_size == 2,
            "noise.objective 'variational'": self.noise.objective == "variational",
        }
        for name, is_set in others.items():
            if is_set:
                raise ValueError(f"latent: not applicable to {name}")
        return self


GENERATOR_KINDS = (
    "semantic_diffusion",
    "gan",
    "rvae",
    "joint_diffusion",
    "translation",
    "latent_adapter",
    "autoencoder",
)


AnyGeneratorSection = Annotated[
    Annotated[SemanticDiffusionSection, Tag("semantic_diffusion")]
    | Annotated[GanSection, Tag("gan")]
    | Annotated[RvaeSection, Tag("rvae")]
    | Annotated[JointDiffusionSection, Tag("joint_diffusion")]
    | Annotated[TranslationSection, Tag("translation")]
    | Annotated[LatentAdapterSection, Tag("latent_adapter")]
    | Annotated[AutoencoderSection, Tag("autoencoder")],
    by_kind(*GENERATOR_KINDS),
]
"""Section of any generator kind. A new kind is a section here and a folder of its name in `generators/`."""
