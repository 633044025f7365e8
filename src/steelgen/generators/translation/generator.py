"""`Generator` of unpaired translation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from steelgen.config.translation import TranslationSection
from steelgen.data.crops import Micrographs
from steelgen.data.folder import DatasetInfo
from steelgen.data.placement import CropGeometry
from steelgen.devices import in_evaluation_mode, map_rows
from steelgen.errors import InputError
from steelgen.files import load_record
from steelgen.generators import Drawn, DrawRequest
from steelgen.generators.images import restore, standardize, take_images
from steelgen.generators.saved import DESCRIPTION_FILE, SavedSettings, load_saved_weights, save_generator
from steelgen.generators.translation.windows import translate_in_windows
from steelgen.models.translation import ALIGNMENT, TranslationGenerator


@dataclass
class Translator:
    """Generator network with its config, the classes of the source, and the gray levels of both sides."""

    network: TranslationGenerator
    section: TranslationSection
    info: DatasetInfo
    """Classes of the source, whose masks stay valid."""
    geometry: CropGeometry
    source_intensity: tuple[float, float]
    """Mean and standard deviation of the source's pixels, in [-1, 1]."""
    intensity: tuple[float, float]
    """Mean and standard deviation of the target's pixels."""
    back: nn.Module | None = field(default=None, repr=False)
    """Network of the opposite direction, in training with mode cyclegan."""

    kind = "translation"
    needs = frozenset({"images"})
    takes = frozenset[str]()
    makes = frozenset({"images"})

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """See `Generator.networks`."""
        return {"generator": self.network}

    def standardize_source(self, images: Tensor) -> Tensor:
        """Standardizes source images in [-1, 1] for the networks."""
        return standardize(images, self.source_intensity)

    def standardize(self, images: Tensor) -> Tensor:
        """Standardizes target images in [-1, 1] for the networks."""
        return standardize(images, self.intensity)

    @torch.inference_mode()
    def draw(self, request: DrawRequest) -> Drawn:
        """See `Generator.draw`. On the CPU images are translated one by one, since the last bits depend on batch size.

        Raises:
            InputError: if there are no images, or they have other channels than the training images.
        """
        images = self.standardize_source(take_images(request, self.geometry, self.kind))
        translated = self._map_rows(self.network, images, self._sample_noise(request.seeds, images))
        return Drawn(restore(translated, self.intensity))

    @torch.inference_mode()
    def draw_stages(self, images: Tensor, seeds: Sequence[int]) -> list[Tensor]:
        """See `StagedGenerator.draw_stages`: source, translated, and in training with mode cyclegan back again."""
        translated = self.draw(DrawRequest(seeds, images=images)).images
        assert translated is not None
        if not isinstance(self.back, TranslationGenerator):
            return [images, translated]
        again = self._map_rows(self.back, self.standardize(translated), None)
        return [images, translated, again * self.source_intensity[1] + self.source_intensity[0]]

    def save(self, folder: Path) -> None:
        """See `StoredGenerator.save`."""
        settings = _Settings(
            dataset=self.info,
            geometry=self.geometry,
            section=self.section,
            source_intensity=self.source_intensity,
            intensity=self.intensity,
        )
        save_generator(folder, self.kind, self.network, settings)

    def _sample_noise(self, seeds: Sequence[int], images: Tensor) -> Tensor | None:
        section, size = self.section, images.shape[-2:]
        return sample_noise(section, size, seeds) if section.has_noise else None

    def _map_rows(self, network: TranslationGenerator, images: Tensor, noise: Tensor | None) -> Tensor:
        """Translates all rows at once, or on the CPU and for large images row by row."""
        device = next(network.parameters()).device

        def translate(rows: slice) -> Tensor:
            part = None if noise is None else noise[rows].to(device)
            return self._translate(network, images[rows].to(device), part)

        with in_evaluation_mode(network):
            if device.type != "cpu" and max(images.shape[-2:]) > self.geometry.image_size:
                return torch.cat([translate(slice(index, index + 1)) for index in range(len(images))])
            return map_rows(translate, len(images), device)

    def _translate(self, network: TranslationGenerator, images: Tensor, noise: Tensor | None) -> Tensor:
        height, width = images.shape[-2:]
        padding = (0, -width % ALIGNMENT, 0, -height % ALIGNMENT)
        images = F.pad(images, padding, mode="reflect")
        noise = None if noise is None else F.pad(noise, padding, mode="reflect")
        edge = self.geometry.image_size
        if max(height, width) > edge:
            translated = translate_in_windows(network, images, noise, edge)
        else:
            found = network(images, noise)
            assert isinstance(found, Tensor)
            translated = found
        return translated[..., :height, :width].float()


class _Settings(SavedSettings):
    section: TranslationSection
    source_intensity: tuple[float, float]


def build_network(section: TranslationSection, geometry: CropGeometry, sees_noise: bool) -> TranslationGenerator:
    """Builds the network of one direction."""
    noise = (section.noise_channels, section.row_noise_channels, section.style_dim) if sees_noise else ()
    blocks = section.count_blocks(geometry.image_size)
    return TranslationGenerator(geometry.in_channels, section.width, blocks, *noise)


def sample_noise(section: TranslationSection, size: Sequence[int], seeds: Sequence[int]) -> Tensor:
    """Samples the standard normal noise beside whole images; that of image i depends only on seeds[i] and the size.

    Args:
        section: numbers of channels.
        size: height and width.
        seeds: one per image.

    Returns:
        (N, noise_channels + row_noise_channels + style_dim, H, W); the second part is constant along each row, the last
        one in each image.
    """
    height, width = size
    samples = []
    for seed in seeds:
        source = torch.Generator().manual_seed(seed)
        # Rows first: images of different widths have the same.
        row_noise = torch.randn(section.row_noise_channels, height, 1, generator=source)
        noise = torch.randn(section.noise_channels, height, width, generator=source)
        style = torch.randn(section.style_dim, 1, 1, generator=source).expand(-1, height, width)
        samples.append(torch.cat([noise, row_noise.expand(-1, -1, width), style]))
    return torch.stack(samples)


def build_translator(section: TranslationSection, micrographs: Micrographs, geometry: CropGeometry) -> Translator:
    """Builds an untrained generator; torch's global seed determines its initial weights.

    Raises:
        InputError: if all images of one side have the same gray level.
    """
    source = micrographs.source
    assert source is not None, "the config requires data.source"
    intensities = []
    for side in (source, micrographs):
        intensities.append(side.compute_intensity())
        if intensities[-1][1] == 0:
            raise InputError(f"{side.info.name}: all images have the same gray level everywhere")
    size = source.info.pixel_size_um or micrographs.info.pixel_size_um
    info = source.info.model_copy(update={"pixel_size_um": size})
    network = build_network(section, geometry, sees_noise=True)
    return Translator(network, section, info, geometry, intensities[0], intensities[1])


def load_translator(folder: Path) -> Translator:
    """Loads a generator saved by `Translator.save`.

    Raises:
        InputError: if a file is missing, damaged, or from another architecture.
    """
    settings = load_record(folder / DESCRIPTION_FILE, _Settings)
    network = build_network(settings.section, settings.geometry, sees_noise=True)
    load_saved_weights(folder, network)
    return Translator(
        network,
        settings.section,
        settings.dataset,
        settings.geometry,
        settings.source_intensity,
        settings.intensity,
    )
