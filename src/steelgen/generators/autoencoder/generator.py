"""The autoencoder as a `Generator`, which reconstructs images, and as the codec of latent diffusion."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelgen.config.autoencoder import AutoencoderSection
from steelgen.data.crops import Micrographs
from steelgen.data.folder import DatasetInfo
from steelgen.data.placement import CropGeometry
from steelgen.devices import in_evaluation_mode, map_rows
from steelgen.diffusion.loss import one_hot_with_dropout
from steelgen.errors import InputError
from steelgen.files import load_record
from steelgen.generators import Drawn, DrawRequest, join_networks
from steelgen.generators.images import restore, standardize, take_images
from steelgen.generators.saved import DESCRIPTION_FILE, SavedSettings, load_saved_weights, save_generator
from steelgen.models.autoencoder import ImageCodec, MaskCodec

Size = tuple[int, int]
"""Height and width."""


@dataclass
class Autoencoder:
    """Autoencoders of images and masks with their config and dataset settings.

    Latents are standardized. Images and masks whose edges are no multiple of the factor are padded by their last rows
    and columns.
    """

    image_codec: ImageCodec
    mask_codec: MaskCodec | None
    """None for a dataset without masks."""
    section: AutoencoderSection
    info: DatasetInfo
    geometry: CropGeometry
    intensity: tuple[float, float]
    """Mean and standard deviation of the training images, used to standardize what the networks see."""

    kind = "autoencoder"
    needs = frozenset({"images"})
    takes = frozenset[str]()
    makes = frozenset({"images"})

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """See `Generator.networks`."""
        masks = {} if self.mask_codec is None else {"masks": self.mask_codec}
        return {"images": self.image_codec, **masks}

    @property
    def factor(self) -> int:
        """Pixels per latent along an edge."""
        return self.section.downsample_factor

    def standardize(self, images: Tensor) -> Tensor:
        """Standardizes images in [-1, 1] for the networks."""
        return standardize(images, self.intensity)

    def draw(self, request: DrawRequest) -> Drawn:
        """See `Generator.draw`: reconstructions of the images.

        Raises:
            InputError: if there are no images, or they have other channels than the training images.
        """
        return self.reconstruct(take_images(request, self.geometry, self.kind), None)

    def draw_stages(self, images: Tensor, seeds: Sequence[int]) -> list[Tensor]:
        """See `StagedGenerator.draw_stages`: the images and their reconstructions."""
        drawn = self.draw(DrawRequest(seeds, images=images)).images
        assert drawn is not None
        return [images, drawn.cpu()]

    def reconstruct(self, images: Tensor, masks: Tensor | None) -> Drawn:
        """Encodes and decodes images (N, C, H, W) in [-1, 1] and masks (N, H, W) int64."""
        size = (int(images.shape[2]), int(images.shape[3]))
        restored = self.decode_images(self.encode_images(images), size)
        if masks is None:
            return Drawn(restored)
        return Drawn(restored, self.decode_masks(self.encode_masks(masks), size).argmax(dim=1))

    def encode_images(self, images: Tensor) -> Tensor:
        """(N, C, H, W) in [-1, 1] → latents (N, latent_channels, ceil(H / factor), ceil(W / factor))."""
        return self._map(self.image_codec, self.image_codec.encode, self._pad(self.standardize(images)))

    def decode_images(self, latents: Tensor, size: Size) -> Tensor:
        """Latents (N, latent_channels, h, w) → images (N, C, *size) in [-1, 1]; NaN where they are not finite."""
        decoded = self._map(self.image_codec, self.image_codec.decode, latents)[:, :, : size[0], : size[1]]
        return restore(decoded, self.intensity)

    def encode_masks(self, masks: Tensor) -> Tensor:
        """(N, H, W) int64 → latents (N, mask_latent_channels, ceil(H / factor), ceil(W / factor))."""
        assert self.mask_codec is not None, "trained without masks"
        one_hot = one_hot_with_dropout(masks, self.info.num_classes)
        return self._map(self.mask_codec, self.mask_codec.encode, self._pad(one_hot))

    def decode_masks(self, latents: Tensor, size: Size) -> Tensor:
        """Latents (N, mask_latent_channels, h, w) → logits (N, num_classes, *size)."""
        assert self.mask_codec is not None, "trained without masks"
        return self._map(self.mask_codec, self.mask_codec.decode, latents)[:, :, : size[0], : size[1]]

    def to(self, device: torch.device) -> Autoencoder:
        """See `Codec.to`."""
        if next(self.image_codec.parameters()).device != device:
            for network in self.networks.values():
                network.to(device)
        return self

    def save(self, folder: Path) -> None:
        """See `StoredGenerator.save`."""
        settings = AutoencoderSettings(
            dataset=self.info, geometry=self.geometry, section=self.section, intensity=self.intensity
        )
        save_generator(folder, self.kind, join_networks(self.networks), settings)

    @torch.no_grad()
    def _map(self, network: nn.Module, function: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
        """Runs a network; on a CPU row by row, since the last bits depend on batch size."""
        device = next(network.parameters()).device
        inputs = inputs.to(device)
        with in_evaluation_mode(network):
            return map_rows(lambda rows: function(inputs[rows]), len(inputs), device)

    def _pad(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        return F.pad(images, (0, -width % self.factor, 0, -height % self.factor), mode="replicate")


class AutoencoderSettings(SavedSettings):
    """generator.json."""

    section: AutoencoderSection


def build_autoencoder(section: AutoencoderSection, micrographs: Micrographs, geometry: CropGeometry) -> Autoencoder:
    """Builds an untrained autoencoder; torch's global seed determines its initial weights.

    Raises:
        InputError: if all micrographs have the same gray level.
    """
    info = micrographs.info
    intensity = micrographs.compute_intensity()
    if intensity[1] == 0:
        raise InputError(f"{info.name}: all training micrographs have the same gray level everywhere")
    return Autoencoder(*_build_codecs(section, info, geometry), section, info, geometry, intensity)


def load_autoencoder(folder: Path) -> Autoencoder:
    """Loads an autoencoder saved by `Autoencoder.save`.

    Raises:
        InputError: if a file is missing, damaged, or from another architecture.
    """
    settings = load_record(folder / DESCRIPTION_FILE, AutoencoderSettings)
    codecs = _build_codecs(settings.section, settings.dataset, settings.geometry)
    loaded = Autoencoder(*codecs, settings.section, settings.dataset, settings.geometry, settings.intensity)
    load_saved_weights(folder, join_networks(loaded.networks))
    return loaded


def _build_codecs(
    section: AutoencoderSection, info: DatasetInfo, geometry: CropGeometry
) -> tuple[ImageCodec, MaskCodec | None]:
    widths = [section.base_channels * 2**level for level in range(section.levels + 1)]
    images = ImageCodec(
        geometry.in_channels, section.latent_channels, widths, section.num_res_blocks, section.norm_groups
    )
    if not info.num_classes:
        return images, None
    return images, MaskCodec(info.num_classes, section.mask_latent_channels, section.mask_channels, section.levels)
