"""Joint diffusion as a `Generator`."""

from __future__ import annotations

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
from steelgen.diffusion.known import find_whole_latents
from steelgen.diffusion.noise import NoiseSchedule, build_noise_schedule
from steelgen.errors import InputError
from steelgen.files import load_record
from steelgen.generators import Drawn, DrawRequest
from steelgen.generators.autoencoder.codec import CODEC_FOLDER, load_codec, load_saved_codec
from steelgen.generators.autoencoder.generator import Autoencoder
from steelgen.generators.images import keep_known, restore, standardize
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
    codec: Autoencoder | None = None
    """The autoencoder whose latents are generated in place of gray levels and bits; None for pixels."""

    kind = "joint_diffusion"
    needs = frozenset[str]()

    @property
    def takes(self) -> frozenset[str]:
        """Masks to generate images for, images to generate masks for, and phase fractions of the masks generated."""
        given = {"masks", "images", "known"} if self.channels else set()
        # Latents have no class probabilities to set fractions by, and their noise is none of images.
        of_pixels = {"fractions"} | ({"noise"} if self.channels else set())
        return frozenset({"solver"} | given | (set() if self.codec else of_pixels))

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
        """Channels of the image or its latents; 0 for a generator of masks alone."""
        return _count_channels(self.section, self.info, self.geometry, self.codec)[0]

    @property
    def bits(self) -> int:
        """Channels of the mask: bits, or latents."""
        return _count_channels(self.section, self.info, self.geometry, self.codec)[1]

    @property
    def factor(self) -> int:
        """Pixels per pixel of the network, along an edge."""
        return self.codec.factor if self.codec else 1

    def encode_images(self, images: Tensor) -> Tensor:
        """Converts images (N, C, H, W) in [-1, 1] to the network's units, (N, channels, h, w)."""
        if self.codec and not self.channels:
            return images.new_zeros(len(images), 0, *self._find_state_size(None, images))
        if self.codec:
            return self.codec.to(self.network.device).encode_images(images)
        return standardize(images, self.intensity)[:, : self.channels]

    def encode_masks(self, masks: Tensor) -> Tensor:
        """Converts masks (N, H, W) to the network's bits or latents, (N, bits, h, w)."""
        if self.codec:
            return self.codec.to(self.network.device).encode_masks(masks)
        return encode_mask(masks, self.info.num_classes)

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
        size = self._find_size(masks, images)
        drawn = self._decode_masks(state[:, self.channels :], size)
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
        return Drawn(keep_known(self._decode_images(state[:, : self.channels], size), request), drawn)

    def _decode_images(self, state: Tensor, size: tuple[int, int]) -> Tensor:
        """(N, channels, h, w) in the network's units → (N, C, *size) in [-1, 1]."""
        if self.codec:
            return self.codec.to(self.network.device).decode_images(state, size)
        return restore(state, self.intensity)

    def _decode_masks(self, state: Tensor, size: tuple[int, int]) -> Tensor:
        """(N, bits, h, w) → (N, *size) int64."""
        if self.codec:
            return self.codec.to(self.network.device).decode_masks(state, size).argmax(dim=1)
        return decode_mask(state, self.info.num_classes)

    def _find_size(self, masks: Tensor | None, images: Tensor | None) -> tuple[int, int]:
        """Height and width of the pairs, px."""
        shown = masks if masks is not None else images
        edge = self.geometry.image_size
        return (edge, edge) if shown is None else (int(shown.shape[-2]), int(shown.shape[-1]))

    def _find_state_size(self, masks: Tensor | None, images: Tensor | None) -> tuple[int, int]:
        """The same in pixels of the network."""
        height, width = self._find_size(masks, images)
        return -(-height // self.factor), -(-width // self.factor)

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
        if self.codec:
            known, known_mask = (find_whole_latents(each, self.factor) for each in (known, known_mask))
        parts = (known, self.channels), (known_mask, self.bits)
        kept = torch.cat([part[:, None].expand(-1, channels, -1, -1) for part, channels in parts], dim=1)
        rows = zip(self.encode_images(images), self.encode_masks(masks), kept, strict=True)
        size = self._find_state_size(masks, images)
        return [Given(size, *row) for row in rows]

    def _list_given(self, count: int, masks: Tensor | None, images: Tensor | None) -> list[Given]:
        """Returns what is known of each of `count` pairs."""
        num_classes, size = self.info.num_classes, self._find_state_size(masks, images)
        if images is not None:
            if masks is not None and (masks < num_classes).any():
                raise InputError(f"{self.info.name}: the images have masks already; give either images or masks")
            return [Given(size, image=image) for image in self.encode_images(images)]
        if masks is None or not self.channels:
            return [Given(size)] * count
        return [
            Given(size, mask=self.encode_masks(mask[None])[0]) if (mask < num_classes).any() else Given(size)
            for mask in masks
        ]

    def save(self, folder: Path) -> None:
        """See `StoredGenerator.save`."""
        settings = _Settings(dataset=self.info, geometry=self.geometry, section=self.section, intensity=self.intensity)
        parts = {CODEC_FOLDER: self.codec} if self.codec else {}
        save_generator(folder, self.kind, self.network, settings, parts)


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
    codec = load_codec(section.latent, info, geometry, len(section.unet.channel_mult))
    standardizes = section.noise.standardize and codec is None  # latents are standardized
    mean, deviation = micrographs.compute_intensity() if standardizes else (0.0, 1.0)
    if deviation == 0:
        raise InputError(f"{info.name}: all pixels of the training micrographs have the same gray level")
    network, schedule = _build_parts(section, info, geometry, codec)
    return JointDiffusion(network, schedule, section, info, geometry, (mean, deviation), codec)


def load_joint_diffusion(folder: Path) -> JointDiffusion:
    """Loads a generator saved by `JointDiffusion.save`.

    Raises:
        InputError: if a file is missing, damaged, or from another architecture.
    """
    settings = load_record(folder / DESCRIPTION_FILE, _Settings)
    section, info, geometry = settings.section, settings.dataset, settings.geometry
    codec = load_saved_codec(folder) if section.latent else None
    network, schedule = _build_parts(section, info, geometry, codec)
    load_saved_weights(folder, network)
    return JointDiffusion(network, schedule, section, info, geometry, settings.intensity, codec)


def _count_channels(
    section: JointDiffusionSection, info: DatasetInfo, geometry: CropGeometry, codec: Autoencoder | None
) -> tuple[int, int]:
    """Returns the network's channels of image and mask."""
    images, masks = geometry.in_channels, count_bits(info.num_classes)
    if codec:
        images, masks = codec.section.latent_channels, codec.section.mask_latent_channels
    return images if section.image_channels == "all" else 0, masks


def _build_parts(
    section: JointDiffusionSection, info: DatasetInfo, geometry: CropGeometry, codec: Autoencoder | None
) -> tuple[UNet2DModel, NoiseSchedule]:
    channels, bits = _count_channels(section, info, geometry, codec)
    network = build_joint_unet(
        geometry.image_size // (codec.factor if codec else 1),
        channels + bits,
        channels + (info.num_classes if section.mask_prediction == "classes" else bits),
        **section.unet.model_dump(),
        self_conditioning=section.self_conditioning > 0,
    )
    noise = section.noise
    schedule = build_noise_schedule(noise.num_train_timesteps, noise.beta_schedule, "v_prediction", True)
    return network, schedule
