"""`Generator` of an adapted Stable Diffusion."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel
from torch import Tensor, nn

from steelgen.config.adapter import LatentAdapterSection
from steelgen.config.solver import SolverSection
from steelgen.data.crops import Micrographs
from steelgen.data.drivers import DriverOptions, compute_drivers
from steelgen.data.folder import DatasetInfo
from steelgen.data.placement import CropGeometry
from steelgen.devices import in_evaluation_mode, map_rows
from steelgen.errors import InputError
from steelgen.generators import Drawn, DrawRequest
from steelgen.generators.images import keep_known, limit
from steelgen.generators.latent_adapter.base import Base, load_base
from steelgen.generators.latent_adapter.hub import find_base, hash_base
from steelgen.generators.latent_adapter.lora import add_lora, find_lora, load_lora
from steelgen.generators.latent_adapter.network import AdaptedNetwork
from steelgen.generators.latent_adapter.prompts import Prompts, build_prompts, tokenize
from steelgen.generators.latent_adapter.sampling import LatentInputs, sample_latents
from steelgen.generators.latent_adapter.saving import AdapterSettings, load_adapters, save_adapters

_EMBEDDING_CHANNELS = (16, 32, 96, 256)
"""Channels of ControlNet's layers from drivers to latents, each half the resolution of the one before (Zhang et al.
2023, arXiv 2302.05543, section 3.3)."""
_MAX_TINT = 0.02
"""Mean difference between an image's color channels, as a share of the gray range, above which a warning is given."""


@dataclass
class LatentAdapter:
    """A base with its adapters, the classes of its masks and the geometry of its images."""

    base: Base
    network: AdaptedNetwork
    section: LatentAdapterSection
    info: DatasetInfo
    geometry: CropGeometry
    base_hash: str
    """See `hash_base`."""
    _warned: bool = field(default=False, repr=False)

    kind = "latent_adapter"
    takes = frozenset({"solver", "start", "known"})
    makes = frozenset({"images"})

    @property
    def needs(self) -> frozenset[str]:
        """Masks, with a ControlNet or a prompt made from them."""
        return frozenset({"masks"}) if self.uses_masks else frozenset()

    @property
    def uses_masks(self) -> bool:
        """Whether the images depend on masks."""
        return self.section.control is not None or self.prompts.uses_classes

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """See `Generator.networks`."""
        return {"adapters": self.network}

    @cached_property
    def prompts(self) -> Prompts:
        """The prompt of each mask."""
        return build_prompts(self.section, self.info.class_names)

    @property
    def drivers(self) -> DriverOptions | None:
        """The planes that the ControlNet sees; None without one."""
        control = self.section.control
        return None if control is None else DriverOptions(tuple(control.drivers), control.coarsen)

    def draw(self, request: DrawRequest) -> Drawn:
        """See `Generator.draw`. A mask in which every pixel is ignored counts as none.

        On the CPU images are generated one by one, since the last bits depend on the batch size. Color channels of the
        autoencoder are averaged for gray images, with one warning if they differ by more than 2 % of the gray range.

        Raises:
            InputError: for a respaced solver, whose noise schedule is not the base's.
        """
        solver = request.solver or SolverSection()
        if not isinstance(solver, SolverSection):
            raise InputError(f"solver.name {solver.name}: not applicable to generators of kind {self.kind}")
        if solver.autoguidance is not None:
            raise InputError(f"solver.autoguidance: not applicable to generators of kind {self.kind}")
        edge, control = self.geometry.image_size, self.section.control
        height, width = (edge, edge) if request.masks is None else request.masks.shape[1:]
        if request.start is not None:
            height, width = request.start.images.shape[2:]
        if request.known is not None:
            height, width = request.known.shape[1:]
        # Padded to whole latents, and cut off again.
        grid = self.base.factor
        pad = (0, -width % grid, 0, -height % grid)
        prompts = self._tokenize(request)
        drivers, start, given, known = self._draw_drivers(request, pad), None, None, None
        if request.start is not None:
            start = nn.functional.pad(request.start.images, pad, mode="replicate")
        if request.known is not None and request.images is not None:
            given = nn.functional.pad(request.images, pad, mode="replicate")
            known = nn.functional.pad(request.known, pad, value=True)

        def generate(rows: slice) -> Tensor:
            inputs = LatentInputs(
                request.seeds[rows],
                (height + pad[3], width + pad[1]),
                prompts[rows],
                self.null_prompt,
                edge,
                None if drivers is None else drivers[rows],
                None if start is None else start[rows],
                request.start.strength if request.start else 1.0,
                control.scale if control else 1.0,
                None if given is None else given[rows],
                None if known is None else known[rows],
            )
            return sample_latents(self.network, self.base, inputs, solver)

        with in_evaluation_mode(self.network):
            images = map_rows(generate, len(request.seeds), next(self.network.parameters()).device)
        return Drawn(keep_known(self._finish(images[:, :, :height, :width]), request))

    @cached_property
    def null_prompt(self) -> Tensor:
        """Token ids (L,) of the empty prompt."""
        return tokenize(self.base.tokenizer, "")

    def save(self, folder: Path) -> None:
        """See `StoredGenerator.save`; writes the adapters, and path and hash of the base."""
        settings = AdapterSettings(
            dataset=self.info, geometry=self.geometry, section=self.section, base_hash=self.base_hash
        )
        save_adapters(folder, self.kind, settings, self.base, self.network.control)

    def _tokenize(self, request: DrawRequest) -> Tensor:
        """Token ids (N, L) of the images' prompts."""
        masks = [None] * len(request.seeds) if request.masks is None else request.masks.cpu().numpy()
        written = [self.prompts.write(mask) for mask in masks]
        known = {prompt: tokenize(self.base.tokenizer, prompt) for prompt in set(written)}
        return torch.stack([known[prompt] for prompt in written])

    def _draw_drivers(self, request: DrawRequest, pad: tuple[int, int, int, int]) -> Tensor | None:
        """(N, D, H, W); None if the generator uses none, or none of the masks has classes."""
        if self.drivers is None or request.masks is None or not (request.masks < self.info.num_classes).any():
            return None
        masks = request.masks.cpu().numpy()
        masks = np.pad(masks, ((0, 0), (pad[2], pad[3]), (pad[0], pad[1])), mode="edge")
        return torch.from_numpy(compute_drivers(masks, self.info.num_classes, self.drivers))

    def _finish(self, images: Tensor) -> Tensor:
        if self.geometry.in_channels == 1:
            tint = compute_tint(images)
            if tint > _MAX_TINT and not self._warned:
                self._warned = True
                warnings.warn(
                    f"the base's images have a tint: color channels differ by {100 * tint:.1f} % of the gray range on "
                    "average; their mean is kept. Train for longer on gray micrographs to remove it",
                    stacklevel=3,
                )
            images = images.mean(dim=1, keepdim=True)
        return limit(images)


def compute_tint(images: Tensor) -> float:
    """Mean absolute difference of the color channels (N, C, H, W) in [-1, 1] to their mean, as a share of the range."""
    return float((images - images.mean(dim=1, keepdim=True)).abs().mean() / 2)


def build_latent_adapter(
    section: LatentAdapterSection, micrographs: Micrographs, geometry: CropGeometry
) -> LatentAdapter:
    """Loads the base and adds adapters; new ones follow torch's global seed and change nothing yet.

    Raises:
        InputError: if the base, the LoRA, the image size or a prompt cannot be used.
    """
    info = micrographs.info
    if section.control is not None and not info.num_classes:
        raise InputError(f"{info.name}: has no masks; set generator.control to null")
    lora = find_lora(section.lora) if isinstance(section.lora, Path) else None
    path = find_base(section.base)
    base = load_base(path, getattr(torch, {"fp32": "float32", "bf16": "bfloat16"}[section.base_precision]))
    generator = _assemble(base, section, info, geometry, lora, None, hash_base(path))
    check_prompts(generator)
    return generator


def load_latent_adapter(folder: Path) -> LatentAdapter:
    """Loads adapters saved by `LatentAdapter.save`, and their base.

    Raises:
        InputError: see `load_adapters`.
    """
    settings, base, lora, control = load_adapters(folder)
    return _assemble(base, settings.section, settings.dataset, settings.geometry, lora, control, settings.base_hash)


def _assemble(
    base: Base,
    section: LatentAdapterSection,
    info: DatasetInfo,
    geometry: CropGeometry,
    lora: Path | None,
    control: ControlNetModel | None,
    base_hash: str,
) -> LatentAdapter:
    """Puts adapters into a loaded base.

    Args:
        lora: file of trained low-rank updates; None makes new ones if the section has any.
        control: trained ControlNet; None makes a new one if the section has any.
    """
    base.check_image_size(geometry.image_size)
    channels = int(base.vae.config.in_channels)
    if geometry.in_channels not in (1, channels):
        raise InputError(f"data.in_channels {geometry.in_channels}: the base's autoencoder has {channels}; use 1")
    if section.control is not None and control is None:
        # Copies layers of the U-Net, so before low-rank updates change their names.
        control = build_control(base, section, info.num_classes)
    if control is not None:
        control.float().requires_grad_(section.control is not None)
    if lora is not None:
        load_lora(base, lora)
    elif section.lora is not None and not isinstance(section.lora, Path):
        add_lora(base, section.lora)
    for network in (base.unet, base.text_encoder):
        for name, parameter in network.named_parameters():
            parameter.requires_grad_("lora_" in name and section.trains_lora)
    return LatentAdapter(base, AdaptedNetwork(base, control), section, info, geometry, base_hash)


def build_control(base: Base, section: LatentAdapterSection, num_classes: int) -> ControlNetModel:
    """Builds an untrained ControlNet: a copy of the U-Net's encoder behind a few layers for the drivers."""
    assert section.control is not None
    levels = base.factor.bit_length()
    if levels > len(_EMBEDDING_CHANNELS):
        raise InputError(f"generator.base {section.base!r}: {base.factor} pixels per latent, at most 8 are supported")
    planes = DriverOptions(tuple(section.control.drivers)).list_planes(num_classes)
    return ControlNetModel.from_unet(
        base.unet,
        conditioning_channels=len(planes),
        conditioning_embedding_out_channels=_EMBEDDING_CHANNELS[:levels],
    )


def check_prompts(generator: LatentAdapter) -> None:
    """Raises InputError if a prompt is too long for the tokenizer."""
    tokenize(generator.base.tokenizer, generator.prompts.write_longest())
    if generator.section.prior_loss_weight:
        tokenize(generator.base.tokenizer, generator.section.class_prompt, "generator.class_prompt")
