"""An adversarial model as a `Generator`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from pydantic import Field
from safetensors.torch import load_file
from torch import nn

from steelgen import __version__
from steelgen.config.generator import GanSection
from steelgen.data.crops import Micrographs
from steelgen.data.folder import DatasetInfo
from steelgen.data.placement import CropGeometry
from steelgen.devices import map_on_single_threads, randn_by_seed
from steelgen.errors import InputError, first_line
from steelgen.files import Record, load_record, new_folder, save_json, save_tensors
from steelgen.generators import Drawn, DrawRequest
from steelgen.generators.saved import DESCRIPTION_FILE, check_weights
from steelgen.models.dcgan import DcganGenerator

_WEIGHTS_FILE = "weights.safetensors"


@dataclass
class Gan:
    """The half of an adversarial pair that draws."""

    network: DcganGenerator
    section: GanSection
    info: DatasetInfo
    """Without classes: masks are neither seen nor made."""
    geometry: CropGeometry

    kind = "gan"
    needs = frozenset[str]()
    takes = frozenset[str]()
    makes = frozenset({"images"})

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """See `Generator.networks`."""
        return {"generator": self.network}

    @torch.inference_mode()
    def draw(self, request: DrawRequest) -> Drawn:
        """See `Generator.draw`; on the CPU each image by itself, since its last bits would depend on the batch."""
        latents = randn_by_seed((self.section.latent_dim,), request.seeds)
        device = next(self.network.parameters()).device
        training = self.network.training
        self.network.eval()
        try:
            if device.type != "cpu":
                return Drawn(self.network(latents.to(device)).float())
            rows = map_on_single_threads(lambda index: self.network(latents[index : index + 1]), len(latents))
            return Drawn(torch.cat(rows).float())
        finally:
            self.network.train(training)

    def save(self, folder: Path) -> None:
        """See `Generator.save`."""
        with new_folder(folder) as working:
            save_tensors(working / _WEIGHTS_FILE, self.network.state_dict())
            save_json(
                working / DESCRIPTION_FILE,
                {
                    "kind": self.kind,
                    "steelgen_version": __version__,
                    "dataset": self.info.model_dump(mode="json"),
                    "geometry": asdict(self.geometry),
                    "section": self.section.model_dump(mode="json"),
                },
            )


class _Description(Record):
    dataset: DatasetInfo
    geometry: CropGeometry
    section: GanSection = Field(GanSection())


def build_gan(section: GanSection, micrographs: Micrographs, geometry: CropGeometry) -> Gan:
    """An untrained one; its initial weights follow torch's global seed."""
    return Gan(_build_network(section, geometry), section, micrographs.without_masks().info, geometry)


def load_gan(folder: Path) -> Gan:
    """Reads what `Gan.save` wrote.

    Raises:
        InputError: if a file is missing, damaged or belongs to another architecture.
    """
    description = load_record(folder / DESCRIPTION_FILE, _Description)
    network = _build_network(description.section, description.geometry)
    try:
        network.load_state_dict(load_file(folder / _WEIGHTS_FILE))
    except Exception as error:  # safetensors has an exception type of its own for damaged files
        raise InputError(f"{folder / _WEIGHTS_FILE}: not the weights of this generator: {first_line(error)}") from None
    check_weights(network, folder / _WEIGHTS_FILE)
    return Gan(network, description.section, description.dataset, description.geometry)


def _build_network(section: GanSection, geometry: CropGeometry) -> DcganGenerator:
    return DcganGenerator(geometry.image_size, geometry.in_channels, section.latent_dim, section.base_channels)
