"""Semantic diffusion as a `Generator`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from diffusers import DDPMScheduler
from diffusers.utils import logging as diffusers_logging
from torch import Tensor, nn

from steelgen import __version__
from steelgen.config.generator import SemanticDiffusionSection
from steelgen.config.solver import RespacedSolverSection, SolverSection
from steelgen.data.crops import Micrographs
from steelgen.data.folder import DatasetInfo
from steelgen.data.placement import AUGMENTATION_CHANNELS, CropGeometry
from steelgen.diffusion.description import load_description
from steelgen.diffusion.loss import CropLosses, LossOptions, compute_diffusion_loss
from steelgen.diffusion.loss_history import LossHistory
from steelgen.diffusion.noise import build_noise_schedule, build_solver
from steelgen.diffusion.pipeline import SemanticDiffusionPipeline
from steelgen.diffusion.respaced import build_respaced_process, draw_respaced
from steelgen.diffusion.timesteps import LogNormalTimesteps
from steelgen.errors import InputError, first_line
from steelgen.files import new_folder, save_json
from steelgen.generators import DESCRIPTION_FILE, ImageMoments, StartImages, find_generator
from steelgen.models.semantic_unet import SemanticUNet


@dataclass
class SemanticDiffusion:
    """A SPADE U-Net with its noise schedule, the classes of its masks and the geometry of its images."""

    network: SemanticUNet
    schedule: DDPMScheduler
    info: DatasetInfo
    geometry: CropGeometry
    intensity: tuple[float, float] = (0.0, 1.0)
    """Mean and standard deviation of the training images, which the network sees as 0 and 1."""
    snr_gamma: float | None = None
    objective: str = "simple"
    vlb_weight: float = 0.001
    """What training minimises; see `NoiseSection`."""
    mask_noise: bool = False
    """Masks lose classes by the timestep, in training and in sampling."""
    timestep_distribution: LossHistory | LogNormalTimesteps | None = None
    """Where given, training draws timesteps by it, else all alike."""
    _weak: tuple[Path, SemanticUNet] | None = field(default=None, repr=False)

    def start_loss_history(self) -> LossHistory:
        """See `Generator.start_loss_history`."""
        self.timestep_distribution = LossHistory(self.schedule.config.num_train_timesteps)
        return self.timestep_distribution

    def draw_timesteps_lognormally(self, mean: float, std: float) -> None:
        """See `Generator.draw_timesteps_lognormally`."""
        self.timestep_distribution = LogNormalTimesteps(self.schedule, mean, std)

    @property
    def value_range(self) -> tuple[float, float]:
        """The grey levels -1 and 1 as the network sees them."""
        mean, deviation = self.intensity
        return (-1 - mean) / deviation, (1 - mean) / deviation

    def compute_loss(
        self,
        network: nn.Module,
        batch: dict[str, Tensor],
        seed: int,
        mask_dropout: float,
        positions: Tensor | None = None,
    ) -> CropLosses:
        """See `Generator.compute_loss`."""
        mean, deviation = self.intensity
        batch = {**batch, "image": (batch["image"] - mean) / deviation}
        options = LossOptions(self.snr_gamma, self.objective, self.vlb_weight, self.value_range, self.mask_noise)
        return compute_diffusion_loss(
            network,
            self.schedule,
            batch,
            self.info.num_classes,
            seed,
            mask_dropout,
            options,
            self.timestep_distribution,
            positions,
        )

    def draw(
        self,
        masks: Tensor,
        seeds: Sequence[int],
        solver: SolverSection | RespacedSolverSection,
        start: StartImages | None = None,
        noise: Tensor | None = None,
        moments: ImageMoments | None = None,
    ) -> Tensor:
        """See `Generator.draw`."""
        training = self.network.training
        self.network.eval()
        if getattr(solver, "autoguidance", None) is None and not (masks < self.info.num_classes).any():
            # Without a mask the conditional prediction is the null one: guidance would compute it twice.
            solver = solver.model_copy(update={"guidance_scale": 1.0})
        mean, deviation = self.intensity
        options: dict[str, Any] = {"noise": noise}
        if start:
            options |= {"start_images": (start.images - mean) / deviation, "strength": start.strength}
        if moments:
            options["moments"] = ((moments.mean - mean) / deviation, moments.deviation / deviation)
        try:
            if isinstance(solver, RespacedSolverSection):
                image = self._draw_respaced(masks, seeds, solver, options)
            else:
                image = self._draw_by_pipeline(masks, seeds, solver, options)
        finally:
            self.network.train(training)
        return (image * deviation + mean).clamp(-1, 1)

    def _draw_by_pipeline(
        self, masks: Tensor, seeds: Sequence[int], solver: SolverSection, options: dict[str, Any]
    ) -> Tensor:
        """Images as the network sees them."""
        return self._pipeline()(
            masks,
            seeds,
            self._choose_solver(solver),
            solver.num_inference_steps,
            guidance_scale=solver.guidance_scale,
            guidance_interval=solver.guidance_interval,
            guidance_rescale=solver.guidance_rescale,
            weak_unet=self._load_weak_unet(solver.autoguidance),
            timestep_spacing=solver.timestep_spacing,
            spacing_power=solver.spacing_power,
            karras_sigmas=solver.karras_sigmas,
            mask_cache_bytes=solver.mask_cache_gib * 2**30,
            window_overlap=solver.window_overlap,
            periodic=solver.periodic,
            mask_noise=self.mask_noise,
            value_range=self.value_range,
            **options,
        )

    def _draw_respaced(
        self, masks: Tensor, seeds: Sequence[int], solver: RespacedSolverSection, options: dict[str, Any]
    ) -> Tensor:
        """Images as the network sees them."""
        edge = self.geometry.image_size
        if masks.shape[1:] != (edge, edge):
            raise InputError(
                f"the solver {solver.name!r} draws images of the network's own {edge}x{edge} px; for larger images "
                "choose another, for instance dpmsolver++"
            )
        if self.mask_noise:
            raise InputError(f"the solver {solver.name!r} draws with clean masks; this generator needs mask_noise's")
        return draw_respaced(
            self.network,
            self.schedule.config.prediction_type,
            masks.to(self.network.device),
            seeds,
            solver,
            self.value_range,
            **options,
        )

    def _choose_solver(self, solver: SolverSection) -> str:
        return solver.choose_name(self.schedule.config.prediction_type, self.network.config.learn_sigma)

    def compute_first_signal(self, solver: SolverSection | RespacedSolverSection) -> float:
        """See `Generator.compute_first_signal`."""
        if isinstance(solver, RespacedSolverSection):
            return float(build_respaced_process(solver).alphas_cumprod[-1].sqrt())
        laid_out = build_solver(
            self._choose_solver(solver),
            self.schedule,
            solver.num_inference_steps,
            solver.timestep_spacing,
            solver.spacing_power,
            solver.karras_sigmas,
        )
        return float(self.schedule.alphas_cumprod[round(float(laid_out.times[0]))].sqrt())

    def save(self, folder: Path) -> None:
        """Writes a diffusers pipeline folder with a generator.json in it."""
        with new_folder(folder) as working:
            self._pipeline().save_pretrained(working)
            save_json(
                working / DESCRIPTION_FILE,
                {
                    "kind": "semantic_diffusion",
                    "steelgen_version": __version__,
                    "dataset": self.info.model_dump(mode="json"),
                    "geometry": asdict(self.geometry),
                    "snr_gamma": self.snr_gamma,
                    "objective": self.objective,
                    "vlb_weight": self.vlb_weight,
                    "mask_noise": self.mask_noise,
                    "intensity": self.intensity,
                },
            )

    def _load_weak_unet(self, path: Path | None) -> SemanticUNet | None:
        """Autoguidance's weaker network, loaded once, on the device of the stronger one."""
        if path is None:
            return None
        if self._weak is None or self._weak[0] != path:
            weak = load_semantic_diffusion(find_generator(path))
            found = _describe_prediction(weak)
            for name, wanted in _describe_prediction(self).items():
                if found[name] != wanted:
                    raise InputError(f"{path}: autoguidance needs {name} {wanted}, this generator has {found[name]}")
            self._weak = (path, weak.network.requires_grad_(False).eval().to(self.network.device))
        return self._weak[1]

    def _pipeline(self) -> SemanticDiffusionPipeline:
        return SemanticDiffusionPipeline(self.network, self.schedule)


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
        augmentation_channels=AUGMENTATION_CHANNELS if config.unet.augmentation_conditioning else 0,
        **config.unet.model_dump(exclude={"augmentation_conditioning"}),
    )
    schedule = build_noise_schedule(
        noise.num_train_timesteps, noise.beta_schedule, noise.prediction_type, noise.zero_terminal_snr
    )
    mean, deviation = micrographs.compute_intensity() if noise.standardise else (0.0, 1.0)
    if deviation == 0:
        raise InputError(f"{info.name}: all training micrographs have the same grey level everywhere")
    return SemanticDiffusion(
        network,
        schedule,
        info,
        geometry,
        (mean, deviation),
        noise.snr_gamma,
        noise.objective,
        noise.vlb_weight,
        noise.mask_noise,
    )


def load_semantic_diffusion(folder: Path) -> SemanticDiffusion:
    """Reads what `SemanticDiffusion.save` wrote.

    Raises:
        InputError: if a file is missing, damaged or belongs to another architecture.
    """
    description = load_description(folder)
    diffusers_logging.disable_progress_bar()
    try:
        pipeline = SemanticDiffusionPipeline.from_pretrained(folder, use_safetensors=True)
    except Exception as error:  # diffusers and safetensors raise many kinds on damaged folders
        raise InputError(f"{folder}: not a complete semantic diffusion model: {first_line(error)}") from None
    return SemanticDiffusion(
        pipeline.unet,
        pipeline.scheduler,
        description.dataset,
        description.geometry,
        description.intensity,
        description.snr_gamma,
        description.objective,
        description.vlb_weight,
        description.mask_noise,
    )
