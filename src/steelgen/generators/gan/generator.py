"""`Generator` of the GAN architectures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from steelgen.config.gan import GanSection
from steelgen.data.crops import Micrographs
from steelgen.data.folder import DatasetInfo
from steelgen.data.placement import CropGeometry
from steelgen.devices import in_evaluation_mode, map_on_single_threads, map_rows, randn_by_seed
from steelgen.diffusion.loss import one_hot_with_dropout
from steelgen.errors import InputError
from steelgen.files import load_record
from steelgen.generators import Drawn, DrawRequest, Latents
from steelgen.generators.gan.networks import GanNetwork, build_network, count_noise
from steelgen.generators.gan.projection import find_nearest_styles
from steelgen.generators.images import restore, standardize
from steelgen.generators.saved import DESCRIPTION_FILE, SavedSettings, load_saved_weights, save_generator
from steelgen.models.style_gan import StyleGenerator

_MEAN_OF = 1024
"""Random styles averaged into the center of truncation."""


@dataclass
class Gan:
    """Generator network of a GAN with its config and dataset settings."""

    network: GanNetwork
    section: GanSection
    info: DatasetInfo
    """Has no classes unless the generator is mask-conditioned."""
    geometry: CropGeometry
    intensity: tuple[float, float] = (0.0, 1.0)
    """Mean and standard deviation of the training images, used to standardize what the networks see."""

    kind = "gan"
    makes = frozenset({"images"})

    @property
    def needs(self) -> frozenset[str]:
        """See `Generator.needs`."""
        return frozenset({"masks"}) if self.section.condition == "mask" else frozenset()

    @property
    def takes(self) -> frozenset[str]:
        """See `Generator.takes`."""
        return frozenset({"latents", "truncation"}) if "w" in self.spaces else frozenset({"latents"})

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """See `Generator.networks`."""
        return {"generator": self.network}

    @property
    def spaces(self) -> tuple[str, ...]:
        """See `LatentSpace.spaces`."""
        return ("z", "w") if isinstance(self.network, StyleGenerator) else ("z",)

    def standardize(self, images: Tensor) -> Tensor:
        """Standardizes images in [-1, 1] for the networks."""
        return standardize(images, self.intensity)

    def count_numbers(self, size: tuple[int, int]) -> int:
        """Returns the length of the latent vector plus the noise of an image of `size` (H, W)."""
        return self.section.latent_dim + count_noise(self.network, size)

    @torch.inference_mode()
    def find_latents(self, seeds: Sequence[int], space: str, size: tuple[int, int]) -> Latents:
        """See `LatentSpace.find_latents`."""
        vectors = randn_by_seed((self.count_numbers(size),), seeds)
        styles, noise = vectors[:, : self.section.latent_dim], vectors[:, self.section.latent_dim :]
        return Latents(space, self._find_styles(styles) if space == "w" else styles, noise)

    @torch.inference_mode()
    def draw(self, request: DrawRequest) -> Drawn:
        """See `Generator.draw`. On the CPU images are generated one by one, since the last bits depend on batch size.

        Raises:
            InputError: if all mask pixels are ignored; unlike diffusion, a GAN is not trained without masks.
        """
        if request.masks is not None and not (request.masks < self.info.num_classes).any():
            raise InputError(f"{self.info.name}: masks contain only ignored pixels; this generator needs class masks")
        size = (self.geometry.image_size,) * 2 if request.masks is None else tuple(request.masks.shape[-2:])
        with in_evaluation_mode(self.network):
            latents = request.latents or self.find_latents(request.seeds, self.spaces[-1], (size[0], size[1]))
            if request.truncation is not None:
                latents = self._truncate(latents, request.truncation)
            images = map_rows(
                lambda rows: self._generate(latents, request.masks, rows), len(latents.styles), self._device
            )
        return Drawn(restore(images.float(), self.intensity))

    def project(self, images: Tensor, steps: int, report: Callable[[int, int], None]) -> tuple[Latents, Tensor]:
        """See `LatentSpace.project`.

        Raises:
            InputError: if the generator has no w space.
        """
        if not isinstance(self.network, StyleGenerator):
            raise InputError("projection: needs a generator with architecture 'style' and condition 'none'")
        with in_evaluation_mode(self.network):
            target = self.standardize(images.to(self._device))
            styles, rmse = find_nearest_styles(self.network, target, self._find_mean_style(), steps, report)
        noise = torch.zeros(len(images), count_noise(self.network, (self.geometry.image_size,) * 2))
        return Latents("w", styles.cpu(), noise), rmse.cpu() * self.intensity[1]

    def save(self, folder: Path) -> None:
        """See `StoredGenerator.save`."""
        settings = _Settings(dataset=self.info, geometry=self.geometry, section=self.section, intensity=self.intensity)
        save_generator(folder, self.kind, self.network, settings)

    @property
    def _device(self) -> torch.device:
        return next(self.network.parameters()).device

    def _truncate(self, latents: Latents, factor: float) -> Latents:
        styles = self._find_styles(latents.styles) if latents.space == "z" else latents.styles
        mean = self._find_mean_style().to(styles)
        return Latents("w", mean + factor * (styles - mean), latents.noise)

    def _generate(self, latents: Latents, masks: Tensor | None, rows: slice) -> Tensor:
        styles, noise = (tensor[rows].to(self._device) for tensor in (latents.styles, latents.noise))
        if isinstance(self.network, StyleGenerator):
            if latents.space == "z":
                styles = self.network.find_styles(styles)
            return self.network.synthesize(styles, noise)
        vectors = torch.cat([styles, noise], dim=1)
        if masks is None:
            return self.network(vectors)
        return self.network(vectors, one_hot_with_dropout(masks[rows].to(self._device), self.info.num_classes))

    def _find_styles(self, latents: Tensor) -> Tensor:
        assert isinstance(self.network, StyleGenerator)
        find_styles = self.network.find_styles
        return map_rows(lambda rows: find_styles(latents[rows].to(self._device)), len(latents), self._device).cpu()

    @torch.inference_mode()
    def _find_mean_style(self) -> Tensor:
        """Returns the mean style (1, latent_dim) of fixed latent vectors."""
        assert isinstance(self.network, StyleGenerator)
        latents = randn_by_seed((self.section.latent_dim,), range(_MEAN_OF))
        find_styles = self.network.find_styles
        (mean,) = map_on_single_threads(lambda _: find_styles(latents.to(self._device)).mean(dim=0, keepdim=True), 1)
        return mean


class _Settings(SavedSettings):
    section: GanSection = Field(GanSection())


def build_gan(section: GanSection, micrographs: Micrographs, geometry: CropGeometry) -> Gan:
    """Builds an untrained generator; torch's global seed determines its initial weights.

    Raises:
        InputError: if condition is mask and there are no masks, or all micrographs have the same gray level.
    """
    info = micrographs.info if section.condition == "mask" else micrographs.without_masks().info
    if section.condition == "mask" and not info.num_classes:
        raise InputError(f"{info.name}: has no masks; generator.condition 'mask' needs them, use 'none'")
    # DCGAN ends in tanh, so its images already lie in [-1, 1].
    intensity = micrographs.compute_intensity() if section.architecture == "style" else (0.0, 1.0)
    if intensity[1] == 0:
        raise InputError(f"{info.name}: all training micrographs have the same gray level everywhere")
    return Gan(build_network(section, geometry, info.num_classes), section, info, geometry, intensity)


def load_gan(folder: Path) -> Gan:
    """Loads a generator saved by `Gan.save`.

    Raises:
        InputError: if a file is missing, damaged, or from another architecture.
    """
    settings = load_record(folder / DESCRIPTION_FILE, _Settings)
    network = build_network(settings.section, settings.geometry, settings.dataset.num_classes)
    load_saved_weights(folder, network)
    return Gan(network, settings.section, settings.dataset, settings.geometry, settings.intensity)
