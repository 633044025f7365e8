"""Semantic diffusion as a `Generator`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from diffusers import __version__ as diffusers_version
from safetensors import safe_open
from torch import Tensor, nn

from steelgen import __version__
from steelgen.config.generator import LowResolutionSection
from steelgen.config.solver import AnySolverSection, SolverSection
from steelgen.data.brightness import Brightness, sample_levels
from steelgen.data.conditions import Condition, outline
from steelgen.data.folder import DatasetInfo
from steelgen.data.placement import CropGeometry
from steelgen.devices import in_evaluation_mode, randn_by_seed
from steelgen.diffusion.guidance import Coarse
from steelgen.diffusion.known import Known, KnownMean, KnownPixels, find_whole_latents
from steelgen.diffusion.noise import NoiseSchedule
from steelgen.diffusion.refinement import agree_with, draw_coarse_noise, enlarge
from steelgen.errors import InputError, first_line
from steelgen.files import new_folder, save_json
from steelgen.generators import Drawn, DrawRequest
from steelgen.generators.autoencoder.codec import CODEC_FOLDER, is_same_codec, load_saved_codec
from steelgen.generators.autoencoder.generator import Autoencoder
from steelgen.generators.families import load_generator
from steelgen.generators.images import keep_known, restore, standardize
from steelgen.generators.saved import DESCRIPTION_FILE, check_weights
from steelgen.generators.semantic_diffusion.description import COMPONENTS, INDEX_FILE, load_description
from steelgen.generators.semantic_diffusion.sampler import SemanticSampler
from steelgen.models.semantic_unet import SemanticUNet

_COMMON = ("image_size", "in_channels", "num_classes", "coarse_channels")
"""Settings that a network has in common with the weaker network of autoguidance."""


@dataclass
class SemanticDiffusion:
    """A SPADE U-Net with its noise schedule, the classes of its masks and the geometry of its images."""

    network: SemanticUNet
    schedule: NoiseSchedule
    info: DatasetInfo
    geometry: CropGeometry
    intensity: tuple[float, float] = (0.0, 1.0)
    """Mean and standard deviation of the training images, which are shifted and scaled to 0 and 1."""
    objective: str = "simple"
    vlb_weight: float = 0.001
    """The training objective; see `NoiseSection`."""
    low_resolution: LowResolutionSection | None = None
    """Set for a refining generator."""
    detail: float = 1.0
    """Root mean square of the detail of the training images, in units of `intensity`; the network's images are details
    divided by it. See `steelgen.diffusion.refinement`."""
    conditions: tuple[Condition, ...] = ()
    """What the network may be told of an image besides its mask."""
    brightness: tuple[Brightness, ...] = ()
    """Mean gray levels of the training micrographs; empty leaves those of images to the network."""
    codec: Autoencoder | None = None
    """The autoencoder whose latents are generated in place of gray levels; None for pixels."""
    _weak: tuple[Path, SemanticUNet] | None = field(default=None, repr=False)

    kind = "semantic_diffusion"
    makes = frozenset({"images"})

    @property
    def takes(self) -> frozenset[str]:
        """See `Generator.takes`."""
        # Images are not noised by the noise of latents.
        noise = [] if self.codec else ["noise"]
        known = [] if self.low_resolution else ["known"]
        return frozenset({"solver", "start", *noise, *known, *(["conditions"] if self.conditions else [])})

    @property
    def needs(self) -> frozenset[str]:
        """Masks, unless it was trained without them, and coarse images, if it refines."""
        masks = {"masks"} if self.info.num_classes else set()
        return frozenset(masks | {"images"} if self.low_resolution else masks)

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """See `Generator.networks`."""
        return {"unet": self.network}

    @property
    def factor(self) -> int:
        """Pixels per pixel of the network, along an edge."""
        return self.codec.factor if self.codec else 1

    def encode_images(self, images: Tensor) -> Tensor:
        """Converts images (N, C, H, W) in [-1, 1] to the network's units, (N, channels, h, w)."""
        if self.codec:
            return self.codec.to(self.network.device).encode_images(images)
        return standardize(images, self.intensity)

    @property
    def value_range(self) -> tuple[float, float] | None:
        """The gray levels -1 and 1 in the network's units; limits of the detail if it refines; None for latents."""
        if self.codec:
            return None
        mean, deviation = self.intensity
        if self.low_resolution:
            return -2 / (deviation * self.detail), 2 / (deviation * self.detail)
        return (-1 - mean) / deviation, (1 - mean) / deviation

    def draw(self, request: DrawRequest) -> Drawn:
        """See `Generator.draw`; without masks, all pixels are ignored pixels.

        Raises:
            InputError: if coarse images do not fit the masks.
        """
        masks, solver, start = request.masks, request.solver or SolverSection(), request.start
        if masks is None:
            masks = torch.full((len(request.seeds), *self._choose_size(request)), self.info.ignore_index)
        autoguidance = getattr(solver, "autoguidance", None)
        told = request.conditions is not None and not bool(request.conditions.isnan().all())
        if autoguidance is None and not told and not (masks < self.info.num_classes).any():
            # With nothing given the conditional prediction equals the null one; guidance would compute it twice.
            solver = solver.model_copy(update={"guidance_scale": 1.0})
        coarse = self._prepare_coarse(request, masks, solver) if self.low_resolution else None
        noise, known = request.noise, self._find_known(request)
        decided = told or known is not None or (start is not None and start.strength < 1)
        if self.brightness and getattr(solver, "brightness", "network") == "measured" and not decided:
            if noise is None:
                noise = randn_by_seed((self.geometry.in_channels, *masks.shape[1:]), request.seeds)
            known = KnownMean(self._choose_levels(masks, noise))
        base, scale = (coarse.images, self.detail) if coarse else (0.0, 1.0)
        with in_evaluation_mode(self.network):
            image = SemanticSampler(self.network, self.schedule, self.factor)(
                masks,
                request.seeds,
                solver,
                noise=noise,
                start_images=(self.encode_images(start.images) - base) / scale if start else None,
                strength=start.strength if start else 1.0,
                value_range=self.value_range,
                weak_unet=self._load_weak_unet(autoguidance),
                coarse=coarse,
                conditions=request.conditions if told else None,
                known=known,
            )
        if self.codec:
            size = (int(masks.shape[1]), int(masks.shape[2]))
            return Drawn(keep_known(self.codec.to(image.device).decode_images(image, size), request))
        if self.low_resolution and coarse and request.images is not None:
            image = image * self.detail + coarse.images.to(image.device)
            if solver.consistency:
                given = self.encode_images(request.images).to(image.device)
                image = agree_with(given, image, self.low_resolution.factor)
        return Drawn(keep_known(restore(image, self.intensity), request))

    def _choose_levels(self, masks: Tensor, noise: Tensor) -> Tensor:
        """Chooses mean gray levels (N,), in the network's units, for masks and noise; NaN for masks without a class.

        The random numbers are the noise in two patterns of alternating pixels. These are independent of each other and
        of its mean, and continuous in the noise between two images.
        """
        areas = torch.stack([(masks == index).sum(dim=(1, 2)) for index in range(self.info.num_classes or 1)], dim=1)
        rows, columns = (1 - 2 * (torch.arange(edge, dtype=torch.float64) % 2) for edge in noise.shape[2:])
        patterns = torch.stack([rows[:, None] * columns, columns.expand(len(rows), -1)])
        normal = torch.einsum("nchw,khw->nk", noise.double().cpu(), patterns) / math.sqrt(noise[0].numel())
        crops = max(1.0, masks[0].numel() / self.geometry.image_size**2)
        levels = sample_levels(self.brightness, areas.double().cpu().numpy(), normal.numpy(), crops)
        mean, deviation = self.intensity
        return torch.from_numpy((levels - mean) / deviation).float()

    def _find_known(self, request: DrawRequest) -> Known | None:
        if request.known is None:
            return None
        assert request.images is not None, "known pixels are those of images"
        known = find_whole_latents(request.known, self.factor) if self.codec else request.known
        return KnownPixels(known[:, None], self.encode_images(request.images))

    def _choose_size(self, request: DrawRequest) -> tuple[int, int]:
        """Height and width of images without masks: of the network, or of the coarse images times the factor."""
        if self.low_resolution is None or request.images is None:
            return self.geometry.image_size, self.geometry.image_size
        height, width = request.images.shape[2:]
        return height * self.low_resolution.factor, width * self.low_resolution.factor

    def _prepare_coarse(self, request: DrawRequest, masks: Tensor, solver: AnySolverSection) -> Coarse:
        """Enlarges the coarse images of a request, in units of `intensity`, with the solver's noise on them."""
        assert self.low_resolution is not None
        assert request.images is not None, "a refining generator needs images"
        factor, size = self.low_resolution.factor, masks.shape[1:]
        wanted = tuple(-(-edge // factor) for edge in size)
        if request.images.shape[2:] != wanted:
            found = "x".join(map(str, reversed(request.images.shape[2:])))
            raise InputError(
                f"coarse images of {found} px do not fit masks of {size[1]}x{size[0]} px: at factor {factor} they must "
                f"have {wanted[1]}x{wanted[0]} px"
            )
        images = self.encode_images(request.images)
        if solver.coarse_noise:
            noise = draw_coarse_noise(images.shape[1:], request.seeds)
            images = images + solver.coarse_noise * noise.to(images.device)
        told = min(math.hypot(solver.coarse_noise, solver.coarse_error), self.low_resolution.max_noise)
        return Coarse(enlarge(images, factor, size), torch.full((len(images),), told))

    def save(self, folder: Path) -> None:
        """Writes a diffusers pipeline folder with a generator.json in it."""
        index = {"_class_name": "SemanticDiffusionPipeline", "_diffusers_version": diffusers_version, **COMPONENTS}
        with new_folder(folder) as working:
            self.network.save_pretrained(working / "unet")
            self.schedule.scheduler.save_pretrained(working / "scheduler")
            save_json(working / INDEX_FILE, index)
            if self.codec:
                self.codec.save(working / CODEC_FOLDER)
            save_json(
                working / DESCRIPTION_FILE,
                {
                    "kind": self.kind,
                    "steelgen_version": __version__,
                    "dataset": self.info.model_dump(mode="json"),
                    "geometry": asdict(self.geometry),
                    "objective": self.objective,
                    "vlb_weight": self.vlb_weight,
                    "intensity": self.intensity,
                    **self._describe_low_resolution(),
                    **({"latent": True} if self.codec else {}),
                    "conditions": [condition.model_dump(mode="json") for condition in self.conditions],
                    "brightness": [group.model_dump() for group in self.brightness],
                },
            )

    def _describe_low_resolution(self) -> dict[str, Any]:
        if self.low_resolution is None:
            return {}
        return {"low_resolution": self.low_resolution.model_dump(), "detail": self.detail}

    def _load_weak_unet(self, path: Path | None) -> SemanticUNet | None:
        """Loads the weaker network of autoguidance once, on the device of the stronger one."""
        if path is None:
            return None
        if self._weak is None or self._weak[0] != path:
            weak = load_generator(path)
            assert isinstance(weak, SemanticDiffusion)
            for theirs, ours, names in (
                (weak.network.config, self.network.config, _COMMON),
                (weak.schedule.config, self.schedule.config, ("num_train_timesteps", "prediction_type")),
            ):
                for name in names:
                    if theirs[name] != ours[name]:
                        raise InputError(
                            f"{path}: autoguidance needs {name} {ours[name]}, this generator has {theirs[name]}"
                        )
            if not is_same_codec(weak.codec, self.codec):
                raise InputError(f"{path}: autoguidance needs a generator with the same autoencoder")
            if outline(weak.conditions) != outline(self.conditions):
                raise InputError(f"{path}: autoguidance needs a generator with the same conditions")
            self._weak = (path, weak.network.eval().to(self.network.device))
        return self._weak[1]


def load_semantic_diffusion(folder: Path) -> SemanticDiffusion:
    """Reads a folder written by `SemanticDiffusion.save`.

    Raises:
        InputError: if a file is missing, damaged or belongs to another architecture.
    """
    description = load_description(folder)
    try:
        network = SemanticUNet.from_pretrained(folder / "unet", use_safetensors=True)
        scheduler = DDPMScheduler.from_pretrained(folder / "scheduler")
    except Exception as error:  # diffusers and safetensors raise many kinds on damaged folders
        raise InputError(f"{folder}: not a complete semantic diffusion model: {first_line(error)}") from None
    _check_complete(network, folder / "unet")
    check_weights(network, folder / "unet")
    return SemanticDiffusion(
        network,
        NoiseSchedule(scheduler),
        description.dataset,
        description.geometry,
        description.intensity,
        description.objective,
        description.vlb_weight,
        description.low_resolution,
        description.detail,
        tuple(description.conditions),
        tuple(description.brightness),
        load_saved_codec(folder) if description.latent else None,
    )


def _check_complete(network: SemanticUNet, folder: Path) -> None:
    """Raises InputError naming a missing or extra tensor, which diffusers would initialize or ignore."""
    stored = {name for path in folder.glob("*.safetensors") for name in safe_open(path, "pt").keys()}  # noqa: SIM118
    if differing := sorted(stored ^ network.state_dict().keys()):
        lacking = "the network of config.json" if differing[0] in stored else "the weights file"
        raise InputError(f"{folder}: {lacking} has no {differing[0]!r}")
