"""Untrained semantic diffusion models, and what is measured of the training micrographs."""

from __future__ import annotations

import math

from steelgen.config.generator import SemanticDiffusionSection
from steelgen.data.brightness import Brightness, measure_brightness
from steelgen.data.crops import Micrographs, image_to_tensor
from steelgen.data.placement import CropGeometry, resize_image
from steelgen.diffusion.noise import build_noise_schedule
from steelgen.diffusion.refinement import enlarge, shrink
from steelgen.errors import InputError
from steelgen.generators.autoencoder.codec import load_codec
from steelgen.generators.semantic_diffusion.generator import SemanticDiffusion
from steelgen.models.semantic_unet import SemanticUNet


def build_semantic_diffusion(
    config: SemanticDiffusionSection, micrographs: Micrographs, geometry: CropGeometry
) -> SemanticDiffusion:
    """Builds an untrained semantic diffusion model; its initial weights follow torch's global seed."""
    conditions = micrographs.columns
    info, noise = micrographs.info, config.noise
    # Its codec of masks is not used.
    codec = load_codec(config.latent, micrographs.without_masks().info, geometry, len(config.unet.channel_mult))
    network = SemanticUNet(
        image_size=geometry.image_size // (codec.factor if codec else 1),
        in_channels=codec.section.latent_channels if codec else geometry.in_channels,
        num_classes=info.num_classes,
        coarse_channels=geometry.in_channels if config.low_resolution else 0,
        **config.unet.model_dump(),
        conditions=[len(condition.categories) for condition in conditions],
    )
    schedule = build_noise_schedule(
        noise.num_train_timesteps, noise.beta_schedule, noise.prediction_type, noise.zero_terminal_snr
    )
    standardizes = noise.standardize and codec is None  # latents are standardized
    mean, deviation = micrographs.compute_intensity() if standardizes else (0.0, 1.0)
    if deviation == 0:
        raise InputError(f"{info.name}: all pixels of the training micrographs have the same gray level")
    generator = SemanticDiffusion(
        network, schedule, info, geometry, (mean, deviation), noise.objective, noise.vlb_weight, config.low_resolution
    )
    generator.conditions, generator.codec = conditions, codec
    if config.low_resolution and noise.standardize:
        generator.detail = measure_detail(micrographs, geometry, config.low_resolution.factor) / deviation
    generator.brightness = measure_own_brightness(generator, micrographs)
    return generator


def measure_own_brightness(generator: SemanticDiffusion, micrographs: Micrographs) -> tuple[Brightness, ...]:
    """Measures the brightness of training micrographs if a generator has a use for it: neither in latents nor where a
    coarse image has it already."""
    if generator.codec or generator.low_resolution:
        return ()
    return measure_brightness(micrographs, generator.geometry)


def measure_detail(micrographs: Micrographs, geometry: CropGeometry, factor: int) -> float:
    """Measures the root mean square of micrographs less their enlarged coarse images, at the scale of the crops.

    Raises:
        InputError: if there is none.
    """
    total, count = 0.0, 0
    for image in micrographs.images:
        height, width = (round(edge * geometry.image_size / geometry.crop_size) for edge in image.shape[:2])
        scaled = image_to_tensor(resize_image(image, height, width))[None]
        detail = scaled - enlarge(shrink(scaled, factor), factor, (height, width))
        total, count = total + float(detail.double().square().sum()), count + detail.numel()
    if total == 0:
        raise InputError(f"{micrographs.info.name}: the training micrographs have no detail to add at factor {factor}")
    return math.sqrt(total / count)
