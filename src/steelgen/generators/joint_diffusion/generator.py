"""Joint diffusion as a `Generator`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from steelgen.config.joint import JointDiffusionSection
from steelgen.config.solver import RespacedSolverSection, SolverSection
from steelgen.data.crops import Micrographs
from steelgen.data.folder import DatasetInfo
from steelgen.data.placement import CropGeometry
from steelgen.devices import in_evaluation_mode
from steelgen.diffusion.analog_bits import count_bits, decode_mask, encode_mask
from steelgen.diffusion.noise import NoiseSchedule, build_noise_schedule
from steelgen.errors import InputError
from steelgen.files import load_record
from steelgen.generators import Drawn, DrawRequest
from steelgen.generators.joint_diffusion.sampling import Given, sample_jointly
from steelgen.generators.saved import DESCRIPTION_FILE, SavedSettings, load_saved_weights, save_generator
from steelgen.models.joint_unet import build_joint_unet


@dataclass
class JointDiffusion:
    """A U-Net of image and mask with its config and dataset settings."""

    network: UNet2DModel
    schedule: NoiseSchedule
    section: JointDiffusionSection
    info: DatasetInfo
    geometry: CropGeometry
    intensity: tuple[float, float] = (0.0, 1.0)
    """Mean and standard deviation of the training images, which are shifted and scaled to 0 and 1."""

    kind = "joint_diffusion"
    needs = frozenset[str]()

    @property
    def takes(self) -> frozenset[str]:
        """Masks to generate images for, images to generate masks for, and phase fractions of the masks generated."""
        return frozenset({"solver", "fractions"} | ({"masks", "images", "noise", "known"} if self.channels else set()))

    @property
    def makes(self) -> frozenset[str]:
        """See `Generator.makes`."""
        return frozenset({"images", "masks"} if self.channels else {"masks"})

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """See `Generator.networks`."""
        return {"unet": self.network}

    @property
    def channels(self) -> int:
        """Channels of the image; 0 for a generator of masks alone."""
        return self.geometry.in_channels if self.section.image_channels == "all" else 0

    @property
    def bits(self) -> int:
        """Channels of the mask."""
        return count_bits(self.info.num_classes)

    def standardize(self, image: Tensor) -> Tensor:
        """Converts gray levels in [-1, 1] to the network's units."""
        mean, deviation = self.intensity
        return (image - mean) / deviation

    def clip_bits(self, estimate: Tensor) -> Tensor:
        """Limits the mask's channels of an estimate (N, channels + bits, H, W) to [-1, 1], where expected bits are."""
        return torch.cat([estimate[:, : self.channels], estimate[:, self.channels :].clamp(-1, 1)], dim=1)

    def draw(self, request: DrawRequest) -> Drawn:
        """See `Generator.draw`: images for masks, masks for images, or else pairs.

        Masks in which every pixel is ignored are none, and give only the size of the pairs. A given mask is returned as
        it is. With phase fractions masks come first, then images for them: in a pair the image, whose fractions cannot
        be set, would draw the mask back to those of the training set.

        Raises:
            InputError: if masks and images are given, or the solver has a schedule of its own.
        """
        solver = request.solver or SolverSection()
        if isinstance(solver, RespacedSolverSection):
            raise InputError(f"solver.name {solver.name!r}: not applicable to generators of kind {self.kind}")
        masks, images, known = request.masks, request.images, request.known
        if known is None:
            given = self._list_given(len(request.seeds), masks, images)
        else:
            self._check_sizes(request)
            assert masks is not None, "parts are known only of pairs"
            # Ignored pixels of a real pair are not known.
            given = self._list_known(masks, images, known, known & (masks < self.info.num_classes))
        masks_alone = not self.channels or request.wanted == {"masks"} or request.fractions is not None
        masks_alone = masks_alone and (images is None or known is not None)
        state = self._sample(given, request, solver, request.fractions, masks_alone)
        drawn = decode_mask(state[:, self.channels :], self.info.num_classes)
        if masks is not None:
            same = torch.tensor([each.mask is not None for each in given])[:, None, None] if known is None else known
            drawn = torch.where(same.to(drawn.device), masks.to(drawn.device), drawn)
        if masks_alone:
            if request.wanted == {"masks"} or not self.channels:
                return Drawn(masks=drawn)
            made = drawn.cpu()
            if known is None:
                given = self._list_given(len(made), made, None)
            else:
                given = self._list_known(made, images, known, torch.ones_like(known))
            state = self._sample(given, request, solver)
        mean, deviation = self.intensity
        image = state[:, : self.channels] * deviation + mean
        # Infinite pixels become NaN, not white, because callers check for NaN.
        image = image.clamp(-1, 1).where(image.isfinite(), math.nan)
        if known is not None and images is not None:
            image = torch.where(known[:, None].to(image.device), images.to(image.device), image)
        return Drawn(image, drawn)

    def _sample(
        self,
        given: list[Given],
        request: DrawRequest,
        solver: SolverSection,
        fractions: Tensor | None = None,
        masks_alone: bool = False,
    ) -> Tensor:
        """See `sample_jointly`."""
        with in_evaluation_mode(self.network):
            return sample_jointly(self, given, request.seeds, solver, request.noise, fractions, masks_alone)

    def _check_sizes(self, request: DrawRequest) -> None:
        """Raises InputError if image, mask and known parts have different sizes."""
        tensors = [each for each in (request.images, request.masks, request.known) if each is not None]
        sizes = [f"{each.shape[-1]}x{each.shape[-2]}" for each in tensors]
        if len(set(sizes)) > 1:
            raise InputError(
                f"{self.info.name}: image, mask, and known parts have different sizes: {', '.join(sizes)} px"
            )

    def _list_known(self, masks: Tensor, images: Tensor | None, known: Tensor, known_mask: Tensor) -> list[Given]:
        """Returns pairs known in parts, (N, H, W) bool for images and for masks."""
        assert images is not None, "parts are known only of pairs"
        parts = (known, self.channels), (known_mask, self.bits)
        kept = torch.cat([part[:, None].expand(-1, channels, -1, -1) for part, channels in parts], dim=1)
        rows = zip(self.standardize(images), encode_mask(masks, self.info.num_classes), kept, strict=True)
        size = (int(masks.shape[1]), int(masks.shape[2]))
        return [Given(size, *row) for row in rows]

    def _list_given(self, count: int, masks: Tensor | None, images: Tensor | None) -> list[Given]:
        """Returns what is known of each of `count` pairs."""
        num_classes, edge = self.info.num_classes, self.geometry.image_size
        shown = masks if masks is not None else images
        size = (edge, edge) if shown is None else (int(shown.shape[-2]), int(shown.shape[-1]))
        if images is not None:
            if masks is not None and (masks < num_classes).any():
                raise InputError(f"{self.info.name}: the images have masks already; give either images or masks")
            return [Given(size, image=image) for image in self.standardize(images)]
        if masks is None or not self.channels:
            return [Given(size)] * count
        return [
            Given(size, mask=encode_mask(mask[None], num_classes)[0]) if (mask < num_classes).any() else Given(size)
            for mask in masks
        ]

    def save(self, folder: Path) -> None:
        """See `StoredGenerator.save`."""
        settings = _Settings(dataset=self.info, geometry=self.geometry, section=self.section, intensity=self.intensity)
        save_generator(folder, self.kind, self.network, settings)


class _Settings(SavedSettings):
    section: JointDiffusionSection


def build_joint_diffusion(
    section: JointDiffusionSection, micrographs: Micrographs, geometry: CropGeometry
) -> JointDiffusion:
    """Builds an untrained generator; torch's global seed determines its initial weights.

    Raises:
        InputError: if no micrograph has a mask, or all have the same gray level.
    """
    info = micrographs.info
    if not any((mask < info.num_classes).any() for mask in micrographs.masks):
        raise InputError(
            f"{info.name}: has no masks, which generator.kind joint_diffusion learns; add a labeled dataset, or use "
            "semantic_diffusion for images alone"
        )
    mean, deviation = micrographs.compute_intensity() if section.noise.standardize else (0.0, 1.0)
    if deviation == 0:
        raise InputError(f"{info.name}: all pixels of the training micrographs have the same gray level")
    network, schedule = _build_parts(section, info, geometry)
    return JointDiffusion(network, schedule, section, info, geometry, (mean, deviation))


def load_joint_diffusion(folder: Path) -> JointDiffusion:
    """Loads a generator saved by `JointDiffusion.save`.

    Raises:
        InputError: if a file is missing, damaged, or from another architecture.
    """
    settings = load_record(folder / DESCRIPTION_FILE, _Settings)
    network, schedule = _build_parts(settings.section, settings.dataset, settings.geometry)
    load_saved_weights(folder, network)
    return JointDiffusion(network, schedule, settings.section, settings.dataset, settings.geometry, settings.intensity)


def _build_parts(
    section: JointDiffusionSection, info: DatasetInfo, geometry: CropGeometry
) -> tuple[UNet2DModel, NoiseSchedule]:
    channels = geometry.in_channels if section.image_channels == "all" else 0
    network = build_joint_unet(
        geometry.image_size,
        channels + count_bits(info.num_classes),
        **section.unet.model_dump(),
        self_conditioning=section.self_conditioning > 0,
    )
    noise = section.noise
    schedule = build_noise_schedule(noise.num_train_timesteps, noise.beta_schedule, "v_prediction", True)
    return network, schedule
