"""Generator and discriminator networks of each architecture."""

from __future__ import annotations

from torch import nn

from steelgen.config.gan import GanSection
from steelgen.data.placement import CropGeometry
from steelgen.models.dcgan import DcganDiscriminator, DcganGenerator
from steelgen.models.spade_gan import SegmentingDiscriminator, SpadeGenerator
from steelgen.models.style_gan import StyleDiscriminator, StyleGenerator

GanNetwork = DcganGenerator | StyleGenerator | SpadeGenerator


def build_network(section: GanSection, geometry: CropGeometry, num_classes: int) -> GanNetwork:
    """Builds the generator network."""
    size, channels = geometry.image_size, geometry.in_channels
    if section.spade_channels is not None:
        return SpadeGenerator(
            size,
            channels,
            num_classes,
            section.latent_dim,
            section.base_channels,
            section.spade_channels,
            section.noise_planes,
        )
    if section.architecture == "style":
        return StyleGenerator(size, channels, section.latent_dim, section.base_channels, section.noise_planes)
    return DcganGenerator(size, channels, section.latent_dim, section.base_channels)


def build_discriminator(section: GanSection, geometry: CropGeometry, num_classes: int) -> nn.Module:
    """Builds the discriminator."""
    size, channels, fine = geometry.image_size, geometry.in_channels, section.fine_discriminator
    if section.condition == "mask":
        return SegmentingDiscriminator(size, channels, num_classes, section.base_channels, fine)
    if section.architecture == "style":
        return StyleDiscriminator(size, channels, section.base_channels, fine)
    return DcganDiscriminator(size, channels, section.base_channels)


def count_noise(network: GanNetwork, size: tuple[int, int]) -> int:
    """Returns the number of noise values of an image of `size` (H, W), besides its latent vector."""
    if isinstance(network, SpadeGenerator):
        return network.count_noise(*size)
    return network.noise_size if isinstance(network, StyleGenerator) else 0
