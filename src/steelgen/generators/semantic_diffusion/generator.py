"""Semantic diffusion as a `Generator`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from diffusers.utils import logging as diffusers_logging
from safetensors import safe_open
from torch import nn

from steelgen import __version__
from steelgen.config.generator import SemanticDiffusionSection
from steelgen.config.solver import SolverSection
from steelgen.data.conditions import Condition, outline
from steelgen.data.crops import Micrographs
from steelgen.data.folder import DatasetInfo
from steelgen.data.placement import CropGeometry
from steelgen.diffusion.noise import NoiseSchedule, build_noise_schedule
from steelgen.errors import InputError, first_line
from steelgen.files import new_folder, save_json
from steelgen.generators import Drawn, DrawRequest
from steelgen.generators.families import load_generator
from steelgen.generators.saved import DESCRIPTION_FILE, check_weights
from steelgen.generators.semantic_diffusion.description import load_description
from steelgen.generators.semantic_diffusion.pipeline import SemanticDiffusionPipeline
from steelgen.models.semantic_unet import SemanticUNet


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
    conditions: tuple[Condition, ...] = ()
    """What the network may be told of an image besides its mask."""
    _weak: tuple[Path, SemanticUNet] | None = field(default=None, repr=False)

    kind = "semantic_diffusion"
    makes = frozenset({"images"})

    @property
    def takes(self) -> frozenset[str]:
        """See `Generator.takes`."""
        return frozenset({"solver", "start", "noise", *(["conditions"] if self.conditions else [])})

    @property
    def needs(self) -> frozenset[str]:
        """Masks, unless it was trained without them."""
        return frozenset({"masks"}) if self.info.num_classes else frozenset()

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """See `Generator.networks`."""
        return {"unet": self.network}

    @property
    def value_range(self) -> tuple[float, float]:
        """The gray levels -1 and 1 in the network's units."""
        mean, deviation = self.intensity
        return (-1 - mean) / deviation, (1 - mean) / deviation

    def draw(self, request: DrawRequest) -> Drawn:
        """See `Generator.draw`; without masks, all pixels are ignored pixels."""
        edge = self.geometry.image_size
        masks, solver, start = request.masks, request.solver or SolverSection(), request.start
        if masks is None:
            masks = torch.full((len(request.seeds), edge, edge), self.info.ignore_index)
        training = self.network.training
        self.network.eval()
        autoguidance = getattr(solver, "autoguidance", None)
        told = request.conditions is not None and not bool(request.conditions.isnan().all())
        if autoguidance is None and not told and not (masks < self.info.num_classes).any():
            # With nothing given the conditional prediction equals the null one; guidance would compute it twice.
            solver = solver.model_copy(update={"guidance_scale": 1.0})
        mean, deviation = self.intensity
        try:
            image = self._pipeline()(
                masks,
                request.seeds,
                solver,
                noise=request.noise,
                start_images=(start.images - mean) / deviation if start else None,
                strength=start.strength if start else 1.0,
                value_range=self.value_range,
                weak_unet=self._load_weak_unet(autoguidance),
                conditions=request.conditions if told else None,
            )
        finally:
            self.network.train(training)
        image = image * deviation + mean
        # Infinite pixels become NaN, not white, because callers check for NaN.
        return Drawn(image.clamp(-1, 1).where(image.isfinite(), math.nan))

    def save(self, folder: Path) -> None:
        """Writes a diffusers pipeline folder with a generator.json in it."""
        with new_folder(folder) as working:
            self._pipeline().save_pretrained(working)
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
                    "conditions": [condition.model_dump(mode="json") for condition in self.conditions],
                },
            )

    def _load_weak_unet(self, path: Path | None) -> SemanticUNet | None:
        """Loads the weaker network of autoguidance once, on the device of the stronger one."""
        if path is None:
            return None
        if self._weak is None or self._weak[0] != path:
            weak = load_generator(path)
            assert isinstance(weak, SemanticDiffusion)
            for theirs, ours, names in (
                (weak.network.config, self.network.config, ("image_size", "in_channels", "num_classes")),
                (weak.schedule.config, self.schedule.config, ("num_train_timesteps", "prediction_type")),
            ):
                for name in names:
                    if theirs[name] != ours[name]:
                        raise InputError(
                            f"{path}: autoguidance needs {name} {ours[name]}, this generator has {theirs[name]}"
                        )
            if outline(weak.conditions) != outline(self.conditions):
                raise InputError(f"{path}: autoguidance needs a generator with the same conditions")
            self._weak = (path, weak.network.eval().to(self.network.device))
        return self._weak[1]

    def _pipeline(self) -> SemanticDiffusionPipeline:
        return SemanticDiffusionPipeline(self.network, self.schedule.scheduler)


def build_semantic_diffusion(
    config: SemanticDiffusionSection, micrographs: Micrographs, geometry: CropGeometry
) -> SemanticDiffusion:
    """Builds an untrained semantic diffusion model; its initial weights follow torch's global seed."""
    conditions = micrographs.columns
    info, noise = micrographs.info, config.noise
    network = SemanticUNet(
        image_size=geometry.image_size,
        in_channels=geometry.in_channels,
        num_classes=info.num_classes,
        **config.unet.model_dump(),
        conditions=[len(condition.categories) for condition in conditions],
    )
    schedule = build_noise_schedule(
        noise.num_train_timesteps, noise.beta_schedule, noise.prediction_type, noise.zero_terminal_snr
    )
    mean, deviation = micrographs.compute_intensity() if noise.standardize else (0.0, 1.0)
    if deviation == 0:
        raise InputError(f"{info.name}: all pixels of the training micrographs have the same gray level")
    return SemanticDiffusion(
        network, schedule, info, geometry, (mean, deviation), noise.objective, noise.vlb_weight, conditions
    )


def load_semantic_diffusion(folder: Path) -> SemanticDiffusion:
    """Reads a folder written by `SemanticDiffusion.save`.

    Raises:
        InputError: if a file is missing, damaged or belongs to another architecture.
    """
    description = load_description(folder)
    diffusers_logging.disable_progress_bar()
    try:
        pipeline = SemanticDiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    except Exception as error:  # diffusers and safetensors raise many kinds on damaged folders
        raise InputError(f"{folder}: not a complete semantic diffusion model: {first_line(error)}") from None
    _check_complete(pipeline.unet, folder / "unet")
    check_weights(pipeline.unet, folder / "unet")
    return SemanticDiffusion(
        pipeline.unet,
        pipeline.schedule,
        description.dataset,
        description.geometry,
        description.intensity,
        description.objective,
        description.vlb_weight,
        tuple(description.conditions),
    )


def _check_complete(network: SemanticUNet, folder: Path) -> None:
    """Raises InputError naming a missing or extra tensor, which diffusers would initialize or ignore."""
    stored = {name for path in folder.glob("*.safetensors") for name in safe_open(path, "pt").keys()}  # noqa: SIM118
    if differing := sorted(stored ^ network.state_dict().keys()):
        lacking = "the network of config.json" if differing[0] in stored else "the weights file"
        raise InputError(f"{folder}: {lacking} has no {differing[0]!r}")
