"""Conversion of ISDM's network and diffusion settings to steelgen's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from steelgen.config.generator import NoiseSection, UNetSection
from steelgen.config.isdm import IsdmNetworkSection
from steelgen.config.solver import RespacedSolverSection
from steelgen.data.folder import DatasetInfo
from steelgen.data.palette import isdm_palette

if TYPE_CHECKING:
    from steelgen.models.semantic_unet import SemanticUNet

WHOLE_MICROGRAPH = 65536
"""A crop_size larger than any micrograph, since ISDM resizes whole micrographs."""
BETA_SCHEDULES = {"linear": "linear", "cosine": "squaredcos_cap_v2"}
"""Noise schedules: ISDM's names to diffusers' names."""


def convert_network(settings: IsdmNetworkSection) -> UNetSection:
    """Converts the network settings."""
    return UNetSection(
        base_channels=settings.num_channels,
        channel_mult=settings.multipliers,
        num_res_blocks=settings.num_res_blocks,
        attention_resolutions=settings.attention_edges,
        num_heads=settings.num_heads,
        num_heads_upsample=None if settings.num_heads_upsample == -1 else settings.num_heads_upsample,
        num_head_channels=None if settings.num_head_channels == -1 else settings.num_head_channels,
        spade_channels=128,
        norm_groups=32,
        dropout=settings.dropout,
        scale_shift=settings.use_scale_shift_norm,
        resample_in_blocks=settings.resblock_updown,
        learn_sigma=settings.learn_sigma,
        mask_resize="nearest",
        instance_edges=not settings.no_instance,
        timestep_scale=1000 / settings.diffusion_steps if settings.rescale_timesteps else 1.0,
    )


def convert_noise(settings: IsdmNetworkSection) -> NoiseSection:
    """Converts the settings of the noise schedule and the objective."""
    return NoiseSection(
        num_train_timesteps=settings.diffusion_steps,
        beta_schedule=BETA_SCHEDULES[settings.noise_schedule],
        prediction_type="sample" if settings.predict_xstart else "epsilon",
        zero_terminal_snr=False,
        standardize=False,
        objective="variational" if settings.use_kl else "simple",
        vlb_weight=0.001 if settings.rescale_learned_sigmas else 1 / settings.diffusion_steps,
    )


def convert_solver(
    settings: IsdmNetworkSection, use_ddim: bool, guidance_scale: float, clip_denoised: bool = True
) -> RespacedSolverSection:
    """Converts the sampling settings; ISDM applies guidance only above a scale of 1."""
    return RespacedSolverSection(
        name="respaced_ddim" if use_ddim else "respaced_ddpm",
        num_train_timesteps=settings.diffusion_steps,
        beta_schedule=BETA_SCHEDULES[settings.noise_schedule],
        respacing=settings.timestep_respacing,
        rescale_timesteps=settings.rescale_timesteps,
        clip_denoised=clip_denoised,
        guidance_scale=max(guidance_scale, 1.0),
    )


def build_isdm_network(settings: IsdmNetworkSection) -> SemanticUNet:
    """Builds a `SemanticUNet` with random weights from the settings."""
    # Local import, so that configs convert without torch.
    from steelgen.models.semantic_unet import SemanticUNet

    return SemanticUNet(
        image_size=settings.image_size,
        in_channels=3,
        num_classes=settings.num_classes,
        **convert_network(settings).model_dump(),
    )


def build_isdm_info(num_classes: int, name: str) -> DatasetInfo:
    """Builds a dataset description with numbered class names, since ISDM has none, and ISDM's colors."""
    names = ["background", "foreground"] if num_classes == 2 else [f"class_{index}" for index in range(num_classes)]
    return DatasetInfo(name=name, class_names=names, palette=isdm_palette(num_classes))
