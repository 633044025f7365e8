"""`Generator` and `Describer` of the rotation-invariant variational autoencoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from steelgen.config.rvae import RvaeSection
from steelgen.data.crops import Micrographs
from steelgen.data.folder import DatasetInfo
from steelgen.data.patches import PatchCenters
from steelgen.data.placement import CropGeometry
from steelgen.devices import in_evaluation_mode, map_on_single_threads, randn_by_seed
from steelgen.errors import InputError
from steelgen.files import load_record
from steelgen.generators import Drawn, DrawRequest
from steelgen.generators.describing import Description
from steelgen.generators.images import limit, restore, standardize
from steelgen.generators.saved import DESCRIPTION_FILE, SavedSettings, load_saved_weights, save_generator
from steelgen.models.rvae import RotationVae

_BATCH = 64
"""Patches per batch of `describe`."""


@dataclass
class Rvae:
    """Encoder and decoder with their config and dataset settings."""

    network: RotationVae
    section: RvaeSection
    info: DatasetInfo
    geometry: CropGeometry
    intensity: tuple[float, float]
    """Mean and standard deviation of the training micrographs' pixels, in [-1, 1]."""

    kind = "rvae"
    needs = frozenset[str]()
    takes = frozenset({"noise"})
    makes = frozenset({"images"})

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """See `Generator.networks`."""
        return {"rvae": self.network}

    @property
    def latent_dim(self) -> int:
        """See `LatentGenerator.latent_dim`."""
        return self.section.latent_dim

    @property
    def sees_image(self) -> bool:
        """See `Describer.sees_image`."""
        return self.section.channels != "mask"

    @property
    def sees_island(self) -> bool:
        """See `Describer.sees_island`."""
        return self.section.channels != "image"

    @property
    def neighbors(self) -> bool:
        """See `Describer.neighbors`."""
        return self.section.neighbors

    def list_centers(self) -> PatchCenters:
        """See `Describer.list_centers`."""
        section = self.section
        classes = None if section.classes is None else tuple(section.classes)
        spacing = section.spacing or max(2, self.geometry.crop_size // 2)
        return PatchCenters(section.patches, classes, section.min_area, spacing)

    @torch.inference_mode()
    def draw(self, request: DrawRequest) -> Drawn:
        """See `Generator.draw`. Samples objects from the prior, in the decoder's canonical orientation.

        Only the disc within a patch is decoded, since rotation moves the corners out of it; corners are mid-gray.
        Without gray levels the image is the probability of the island, from black (0) to white (1). On the CPU images
        are generated one by one, since the last bits depend on batch size.
        """
        latents = randn_by_seed((self.latent_dim,), request.seeds) if request.noise is None else request.noise
        device = next(self.network.parameters()).device
        if device.type != "cpu":
            return Drawn(self._decode_images(latents.to(device)))
        rows = map_on_single_threads(lambda index: self._decode_images(latents[index : index + 1]), len(latents))
        return Drawn(torch.cat(rows))

    @torch.inference_mode()
    def describe(self, images: NDArray[np.uint8] | None, islands: NDArray[np.float32] | None) -> Description:
        """See `Describer.describe`."""
        device = next(self.network.parameters()).device
        parts = []
        given = images if images is not None else islands
        assert given is not None
        with in_evaluation_mode(self.network):
            for start in range(0, len(given), _BATCH):
                batch: dict[str, Tensor] = {}
                if images is not None:
                    gray = torch.from_numpy(images[start : start + _BATCH].astype(np.float32)) / 127.5 - 1
                    batch["image"] = (gray[:, None] if gray.ndim == 3 else gray.permute(0, 3, 1, 2)).to(device)
                if islands is not None:
                    batch["island"] = torch.from_numpy(islands[start : start + _BATCH]).to(device)
                parts.append(self._describe(self.stack_patches(batch)))
        columns = (torch.cat(column).float().cpu().numpy() for column in zip(*parts, strict=True))
        return Description(*columns)

    def stack_patches(self, batch: Mapping[str, Tensor]) -> Tensor:
        """Stacks the network's input, (N, C, S, S): standardized gray levels, then the island."""
        channels = []
        if self.sees_image:
            channels.append(standardize(batch["image"], self.intensity))
        if self.sees_island:
            channels.append(batch["island"][:, None])
        return torch.cat(channels, dim=1)

    def save(self, folder: Path) -> None:
        """See `StoredGenerator.save`."""
        settings = _Settings(dataset=self.info, geometry=self.geometry, section=self.section, intensity=self.intensity)
        save_generator(folder, self.kind, self.network, settings)

    def _decode_images(self, latents: Tensor) -> Tensor:
        """(N, latent_dim) → (N, in_channels, S, S) in [-1, 1]."""
        network, edge = self.network, self.geometry.image_size
        count = len(latents)
        identity = latents.new_zeros(count, 3)
        decoded = network.decode(latents, identity[:, 0], identity, network.disc)
        if self.sees_image:
            shown = restore(decoded[:, : network.gray_channels], self.intensity)
        else:
            shown = limit(2 * decoded.sigmoid() - 1)
        images = shown.new_zeros(count, shown.shape[1], edge**2)
        images[:, :, network.disc] = shown
        return images.view(count, -1, edge, edge).expand(-1, self.geometry.in_channels, -1, -1)

    def _describe(self, patches: Tensor) -> tuple[Tensor, ...]:
        network = self.network
        posterior = network.encode(patches)
        chosen = network.choose_starts(posterior, patches)
        turns = posterior.turns.gather(1, chosen[:, None])[:, 0]
        decoded = network.decode(posterior.latents, turns, posterior.nuisances, network.disc)
        means = decoded.clone()
        means[:, network.gray_channels :] = means[:, network.gray_channels :].sigmoid()
        errors = (means - patches.flatten(2)[:, :, network.disc]).square().mean(dim=(1, 2)).sqrt()
        placement = posterior.nuisances * network.nuisance_priors
        return posterior.latents, turns, placement[:, :2], placement[:, 2].exp(), errors


class _Settings(SavedSettings):
    section: RvaeSection


def build_rvae(section: RvaeSection, micrographs: Micrographs, geometry: CropGeometry) -> Rvae:
    """Builds an untrained autoencoder; torch's global seed determines its initial weights.

    Raises:
        InputError: if masks are needed and there are none, or all micrographs have the same gray level.
    """
    info = micrographs.info
    if not info.num_classes and (section.channels != "image" or section.patches != "grid"):
        raise InputError(f"{info.name}: has no masks; generator.patches must be 'grid' and generator.channels 'image'")
    mean, deviation = micrographs.compute_intensity()
    if deviation == 0:
        raise InputError(f"{info.name}: all training micrographs have the same gray level everywhere")
    return Rvae(_build_network(section, geometry), section, info, geometry, (mean, deviation))


def load_rvae(folder: Path) -> Rvae:
    """Loads an autoencoder saved by `Rvae.save`.

    Raises:
        InputError: if a file is missing, damaged, or from another architecture.
    """
    settings = load_record(folder / DESCRIPTION_FILE, _Settings)
    network = _build_network(settings.section, settings.geometry)
    load_saved_weights(folder, network)
    return Rvae(network, settings.section, settings.dataset, settings.geometry, settings.intensity)


def _build_network(section: RvaeSection, geometry: CropGeometry) -> RotationVae:
    return RotationVae(
        image_size=geometry.image_size,
        gray_channels=0 if section.channels == "mask" else geometry.in_channels,
        binary_channels=0 if section.channels == "image" else 1,
        latent_dim=section.latent_dim,
        encoder_channels=section.encoder_channels,
        decoder_channels=section.decoder_channels,
        decoder_layers=section.decoder_layers,
        starts=section.angle_starts,
        invariant=section.invariant,
        turn_prior=section.rotation_prior,
        shift_prior=section.translation_prior,
        scale_prior=section.scale_prior,
    )
