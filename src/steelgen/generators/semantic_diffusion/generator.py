"""Semantic diffusion as a `Generator`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.utils import logging as diffusers_logging
from safetensors import safe_open
from torch import nn

from steelgen import __version__
from steelgen.config.generator import SemanticDiffusionSection
from steelgen.config.solver import SolverSection
from steelgen.data.crops import Micrographs
from steelgen.data.folder import DatasetInfo
from steelgen.data.placement import CropGeometry
from steelgen.diffusion.noise import NoiseSchedule, build_noise_schedule
from steelgen.errors import InputError, first_line, quote_value
from steelgen.files import load_json, new_folder, save_json
from steelgen.generators import Drawn, DrawRequest
from steelgen.generators.families import load_generator
from steelgen.generators.saved import DESCRIPTION_FILE, check_weights
from steelgen.generators.semantic_diffusion.description import load_description
from steelgen.generators.semantic_diffusion.pipeline import SemanticDiffusionPipeline
from steelgen.models.semantic_unet import SemanticUNet

_COMPONENTS = {"scheduler": ["diffusers", "DDPMScheduler"], "unet": ["steelgen.models.semantic_unet", "SemanticUNet"]}
"""The components of a pipeline folder: the module and the class of each."""


@dataclass
class SemanticDiffusion:
    """A SPADE U-Net with its noise schedule, the classes of its masks and the geometry of its images."""

    network: SemanticUNet
    schedule: NoiseSchedule
    info: DatasetInfo
    geometry: CropGeometry
    intensity: tuple[float, float] = (0.0, 1.0)
    """Mean and standard deviation of the training images, which the network sees as 0 and 1."""
    objective: str = "simple"
    vlb_weight: float = 0.001
    """What training minimizes; see `NoiseSection`."""
    _weak: tuple[Path, SemanticUNet] | None = field(default=None, repr=False)

    kind = "semantic_diffusion"
    takes = frozenset({"solver", "start", "noise"})
    makes = frozenset({"images"})

    @property
    def needs(self) -> frozenset[str]:
        """Masks, unless it was trained without."""
        return frozenset({"masks"}) if self.info.num_classes else frozenset()

    @property
    def networks(self) -> Mapping[str, nn.Module]:
        """See `Generator.networks`."""
        return {"unet": self.network}

    @property
    def value_range(self) -> tuple[float, float]:
        """The gray levels -1 and 1 as the network sees them."""
        mean, deviation = self.intensity
        return (-1 - mean) / deviation, (1 - mean) / deviation

    def draw(self, request: DrawRequest) -> Drawn:
        """See `Generator.draw`; without masks it draws as if all pixels were to be ignored."""
        edge = self.geometry.image_size
        masks, solver, start = request.masks, request.solver or SolverSection(), request.start
        if masks is None:
            masks = torch.full((len(request.seeds), edge, edge), self.info.ignore_index)
        training = self.network.training
        self.network.eval()
        autoguidance = getattr(solver, "autoguidance", None)
        if autoguidance is None and not (masks < self.info.num_classes).any():
            # Without a mask the conditional prediction is the null one: guidance would compute it twice.
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
            )
        finally:
            self.network.train(training)
        image = image * deviation + mean
        # An infinite pixel must not pass for a white one: whoever brings the image to the host looks for NaN.
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
                },
            )

    def _load_weak_unet(self, path: Path | None) -> SemanticUNet | None:
        """Autoguidance's weaker network, loaded once, on the device of the stronger one."""
        if path is None:
            return None
        if self._weak is None or self._weak[0] != path:
            weak = load_generator(path)
            assert isinstance(weak, SemanticDiffusion)
            found = _describe_prediction(weak)
            for name, wanted in _describe_prediction(self).items():
                if found[name] != wanted:
                    raise InputError(f"{path}: autoguidance needs {name} {wanted}, this generator has {found[name]}")
            self._weak = (path, weak.network.eval().to(self.network.device))
        return self._weak[1]

    def _pipeline(self) -> SemanticDiffusionPipeline:
        return SemanticDiffusionPipeline(self.network, self.schedule.scheduler)


def _describe_prediction(generator: SemanticDiffusion) -> dict[str, Any]:
    """What two generators must share for the difference of their predictions to mean anything."""
    network, schedule = generator.network.config, generator.schedule.config
    return {
        **{name: network[name] for name in ("image_size", "in_channels", "num_classes")},
        **{name: schedule[name] for name in ("num_train_timesteps", "prediction_type")},
    }


def build_semantic_diffusion(
    config: SemanticDiffusionSection, micrographs: Micrographs, geometry: CropGeometry
) -> SemanticDiffusion:
    """An untrained semantic diffusion model; its initial weights follow torch's global seed."""
    info, noise = micrographs.info, config.noise
    network = SemanticUNet(
        image_size=geometry.image_size,
        in_channels=geometry.in_channels,
        num_classes=info.num_classes,
        **config.unet.model_dump(),
    )
    schedule = build_noise_schedule(
        noise.num_train_timesteps, noise.beta_schedule, noise.prediction_type, noise.zero_terminal_snr
    )
    mean, deviation = micrographs.compute_intensity() if noise.standardize else (0.0, 1.0)
    if deviation == 0:
        raise InputError(f"{info.name}: all training micrographs have the same gray level everywhere")
    return SemanticDiffusion(
        network,
        schedule,
        info,
        geometry,
        (mean, deviation),
        noise.objective,
        noise.vlb_weight,
    )


def load_semantic_diffusion(folder: Path) -> SemanticDiffusion:
    """Reads what `SemanticDiffusion.save` wrote.

    Raises:
        InputError: if a file is missing, damaged or belongs to another architecture.
    """
    description = load_description(folder)
    _check_components(folder / DiffusionPipeline.config_name)
    diffusers_logging.disable_progress_bar()
    try:
        pipeline = SemanticDiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    except Exception as error:  # diffusers and safetensors raise many kinds on damaged folders
        raise InputError(f"{folder}: not a complete semantic diffusion model: {first_line(error)}") from None
    if description.mask_noise:
        raise InputError(f"{folder / DESCRIPTION_FILE}: mask_noise was removed; older versions draw with it")
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
    )


def _check_complete(network: SemanticUNet, folder: Path) -> None:
    """Raises InputError naming a tensor that files or network lack; diffusers would fill it in or pass over it."""
    stored = {name for path in folder.glob("*.safetensors") for name in safe_open(path, "pt").keys()}  # noqa: SIM118
    if differing := sorted(stored ^ network.state_dict().keys()):
        lacking = "the network of its config.json" if differing[0] in stored else "its files of weights"
        raise InputError(f"{folder}: {lacking} has no {differing[0]!r}")


def _check_components(path: Path) -> None:
    """Raises InputError if a model_index.json names other components than `SemanticDiffusion.save` writes.

    diffusers would import whatever stands there, and pass over what the pipeline has no use for.
    """
    index = load_json(path)
    if not isinstance(index, dict):
        raise InputError(f"{path}: must hold a JSON object, not {type(index).__name__}")
    found = {name: value for name, value in index.items() if not name.startswith("_")}
    for name in sorted(found.keys() | _COMPONENTS.keys()):
        there, wanted = found.get(name), _COMPONENTS.get(name)
        if there != wanted:
            raise InputError(f"{path}: {name} is {quote_value(there)}, must be {json.dumps(wanted)}")
