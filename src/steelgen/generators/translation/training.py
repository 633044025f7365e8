"""Adversarial training of translation in two phases: generators, then discriminators."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from steelgen.config.train import RunConfig
from steelgen.data.crops import CropDataset, load_micrographs
from steelgen.errors import InputError
from steelgen.generators import Batch, Gather, Generator, Losses, Phase, Randomness, Trainable
from steelgen.generators.adversarial import AdversarialTraining
from steelgen.generators.augment import AUGMENTATION_NUMBERS, augment
from steelgen.generators.image_losses import compute_distance, compute_log_power, compute_realness_loss
from steelgen.generators.penalty import compute_penalty
from steelgen.generators.translation.generator import Translator, build_network
from steelgen.generators.translation.losses import compute_contrast
from steelgen.generators.translation.pool import POOL_NUMBERS, ImagePool
from steelgen.models.patch_discriminator import PatchDiscriminator
from steelgen.models.translation import PatchProjector, SpectrumDiscriminator

_SPECTRUM_CROPS = 256
"""Crops that the mean spectrum of a side is measured on."""
_MIN_DEVIATION = 0.1
"""Smallest standard deviation of the log power at a frequency: that of noise is 1.3, that of a constant channel 0."""
_PROJECTION_SIZE = 256
"""Length of the vectors of the contrastive loss (arXiv 2007.15651, appendix)."""
_TRANSFORMS = 3
"""Augmentations per side: of the real image, and of the generated one in either phase."""


@dataclass(frozen=True)
class _TranslationRandomness:
    seed: int
    sides: int
    noise: tuple[int, ...]
    """Shape of the noise beside an image."""
    row_noise_channels: int
    style_dim: int
    places: tuple[int, ...]
    """Pixels of the feature maps of the contrastive loss."""
    num_patches: int

    def __call__(self, number: int) -> dict[str, Tensor]:
        """Samples the randomness of one crop.

        `noise` (2, noise_channels + row_noise_channels + style_dim, S, S) for the source and the target image;
        `places_K` (P,), positions in feature map K; `pool` (sides, POOL_NUMBERS);
        `transforms` (sides, 3, AUGMENTATION_NUMBERS).
        """
        # Disjoint from sampling seeds.
        source = torch.Generator().manual_seed((self.seed * 1_000_003 + number) % 2**62 + 2**62)
        drawn = {
            "pool": torch.rand(self.sides, POOL_NUMBERS, generator=source),
            "transforms": torch.rand(self.sides, _TRANSFORMS, AUGMENTATION_NUMBERS, generator=source),
        }
        noise = [torch.randn(2, *self.noise, generator=source)] if self.noise[0] else []
        for index, count in enumerate(self.places):
            drawn[f"places_{index}"] = torch.randperm(count, generator=source)[: self.num_patches]
        edge = self.noise[-1]
        for count, height in ((self.row_noise_channels, edge), (self.style_dim, 1)):
            if count:
                sampled = torch.randn(2, count, height, 1, generator=source)
                noise.append(sampled.expand(-1, -1, edge, edge))
        if noise:
            drawn["noise"] = torch.cat(noise, dim=1)
        return drawn


class TranslationTraining(AdversarialTraining):
    """See `Trainable`.

    Args:
        generator: the generator to train; the other networks are built here.
        config: config of the run.

    Raises:
        InputError: if the config has no source, or its data cannot be used.
    """

    averaged: tuple[str, ...] = ("generator",)
    criteria: tuple[str, ...] = ("kid",)

    def __init__(self, generator: Translator, config: RunConfig) -> None:
        if config.data.source is None:
            raise InputError("data.source: is missing; generators of kind translation need images to translate")
        section = generator.section
        super().__init__(config.train.train_batch_size, section.ada_target, section.ada_images)
        self.generator, self.section = generator, section
        self._is_cyclic = section.mode == "cyclegan"
        self.networks: Mapping[str, nn.Module] = self._build_networks(config)
        judges = tuple(name for name in self.networks if "discriminator" in name)
        makers = tuple(name for name in self.networks if name not in judges)
        self.phases: tuple[Phase, ...] = (
            Phase("generators", makers, adam_betas=section.adam_betas),
            Phase("discriminators", judges, adam_betas=section.adam_betas),
        )
        self.pools = [ImagePool(section.pool_size) for _ in range(2)] if section.pool_size else []
        self.generated: deque[list[Tensor]] = deque()
        """Images of the generators' phase, per micro-batch and side, for that of the discriminators."""

    def _build_networks(self, config: RunConfig) -> dict[str, nn.Module]:
        section, geometry, generator = self.section, self.generator.geometry, self.generator
        networks: dict[str, nn.Module] = {"generator": generator.network}
        if self._is_cyclic:
            networks["generator_back"] = generator.back = build_network(section, geometry, sees_noise=False)
        else:
            networks["projector"] = PatchProjector(generator.network.feature_channels, _PROJECTION_SIZE)
        sides = ("", "_back")[: 1 + self._is_cyclic]
        for side in sides:
            networks[f"discriminator{side}"] = PatchDiscriminator(
                geometry.in_channels,
                section.discriminator_width,
                section.discriminator_layers,
                section.discriminator_noise,
            )
        for side in sides if section.fft else ():
            mean, deviation = self._measure_spectrum(config, is_source=side == "_back")
            networks[f"spectrum_discriminator{side}"] = SpectrumDiscriminator(
                mean, deviation, section.discriminator_width, section.discriminator_layers, section.fft_per_frequency
            )
        return networks

    def _measure_spectrum(self, config: RunConfig, is_source: bool) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the log power of one side's crops at each frequency."""
        data, generator = config.data, self.generator
        assert data.source is not None
        chosen = data.source if is_source else data
        assert chosen.dataset is not None, "data.source is not applicable with data.datasets"
        micrographs = load_micrographs(chosen.dataset, chosen.split, data.in_channels)
        crops = CropDataset(micrographs, generator.geometry, config.seed, data.augment)
        images = torch.stack([crops[number]["image"] for number in range(_SPECTRUM_CROPS)])
        standardize = generator.standardize_source if is_source else generator.standardize
        deviation, mean = torch.std_mean(compute_log_power(standardize(images)), dim=0)
        return mean, deviation.clamp(min=_MIN_DEVIATION)

    def randomness(self, seed: int) -> Randomness:
        """See `Trainable.randomness`."""
        edge = self.generator.geometry.image_size
        maps = () if self._is_cyclic else self.generator.network.list_feature_edges(edge)
        noise = (self.section.noise_channels, edge, edge)
        places = tuple(found**2 for found in maps)
        section, sides = self.section, 1 + self._is_cyclic
        return _TranslationRandomness(
            seed, sides, noise, section.row_noise_channels, section.style_dim, places, section.num_patches or 0
        )

    def held_out_randomness(self, count: int) -> Randomness:
        """See `Trainable.held_out_randomness`; adversarial losses are not validated."""
        return self.randomness(0)

    def compute_loss(
        self, phase: Phase, networks: Mapping[str, nn.Module], batch: Batch, validates: bool = False
    ) -> Losses:
        """See `Trainable.compute_loss`."""
        step = _TranslationStep(self, networks, batch)
        return step.compute_generator_losses() if phase.name == "generators" else step.compute_discriminator_losses()

    def end_step(self, gather: Gather) -> None:
        """See `Trainable.end_step`."""
        super().end_step(gather)
        for pool in self.pools:
            pool.update(gather)

    def tensors(self) -> dict[str, Tensor]:
        """See `Trainable.tensors`."""
        found = {f"pool_{index}": pool.tensor() for index, pool in enumerate(self.pools)}
        return {name: images for name, images in found.items() if images is not None}

    def restore_tensors(self, tensors: dict[str, Tensor]) -> None:
        """See `Trainable.restore_tensors`."""
        for index, pool in enumerate(self.pools):
            pool.restore(tensors.get(f"pool_{index}"))


class _TranslationStep:
    """Losses of all networks on one batch. Side 0 is the target, side 1 the source."""

    def __init__(self, training: TranslationTraining, networks: Mapping[str, nn.Module], batch: Batch) -> None:
        self._training, self._section, self._networks, self._batch = training, training.section, networks, batch
        generator = training.generator
        self._target = generator.standardize(batch["image"])
        self._source = generator.standardize_source(batch["source_image"])
        self._noise: Sequence[Tensor | None] = batch["noise"].unbind(dim=1) if "noise" in batch else (None, None)
        self._is_cyclic = self._section.mode == "cyclegan"

    def compute_generator_losses(self) -> Losses:
        """Computes the losses of the generators, and keeps their images for the discriminators."""
        return self._compute_cycle_losses() if self._is_cyclic else self._compute_contrast_losses()

    def compute_discriminator_losses(self) -> Losses:
        """Computes the losses of the discriminators of all sides."""
        training = self._training
        generated = training.generated.popleft()
        losses, parts = torch.zeros(len(self._target), device=self._target.device), {}
        for side, (real, fake) in enumerate(zip((self._target, self._source), generated, strict=False)):
            if training.pools:
                fake = training.pools[side].choose(fake, self._batch["pool"][:, side])
            found = self._judge(side, real, fake)
            losses = losses + found.losses
            if side == 0:
                parts = dict(found.parts)
        return Losses(losses, parts=parts)

    def _compute_cycle_losses(self) -> Losses:
        """Source: Zhu et al. 2017 (arXiv 1703.10593), eqs. 1 to 3; the identity loss is that of section 5.2."""
        assert self._section.cycle is not None
        forth, back = self._networks["generator"], self._networks["generator_back"]
        to_target = forth(self._source, self._noise[0]).float()
        to_source = back(self._target).float()
        cycle = compute_distance(back(to_target).float(), self._source)
        cycle = cycle + compute_distance(forth(to_source, self._noise[1]).float(), self._target)
        losses = self._fool(0, to_target) + self._fool(1, to_source) + self._section.cycle * cycle
        parts = {"cycle": cycle}
        if self._section.identity:
            same = compute_distance(forth(self._target, self._noise[1]).float(), self._target)
            same = same + compute_distance(back(self._source).float(), self._source)
            losses, parts["identity"] = losses + self._section.identity * same, same
        self._training.generated.append([to_target.detach(), to_source.detach()])
        return Losses(losses, parts=parts)

    def _compute_contrast_losses(self) -> Losses:
        """Source: Park et al. 2020 (arXiv 2007.15651), eq. 5."""
        assert self._section.nce is not None
        forth = self._networks["generator"]
        to_target, maps = forth(self._source, self._noise[0], features=True)
        to_target = to_target.float()
        contrast = self._contrast(to_target, maps, self._noise[0])
        losses = self._fool(0, to_target) + self._section.nce * contrast
        parts = {"nce": contrast}
        if self._section.identity:
            unchanged, maps = forth(self._target, self._noise[1], features=True)
            same = self._contrast(unchanged.float(), maps, self._noise[1])
            losses, parts["identity"] = losses + self._section.identity * same, same
        self._training.generated.append([to_target.detach()])
        return Losses(losses, parts=parts)

    def _contrast(self, images: Tensor, maps: list[Tensor], noise: Tensor | None) -> Tensor:
        """Contrastive loss between output images and the encoder's maps of their inputs, (N,)."""
        section = self._section
        assert section.nce_temperature is not None
        _, own = self._networks["generator"](images, noise, features=True, decode=False)
        places = [self._batch[f"places_{index}"] for index in range(len(maps))]
        project = self._networks["projector"]
        # One call for both: a second one would confuse the gradient synchronization of several processes.
        vectors = project(
            [torch.cat(pair) for pair in zip(own, maps, strict=True)], [place.repeat(2, 1) for place in places]
        )
        losses = []
        for found in vectors:
            queries, keys = found.chunk(2)
            losses.append(compute_contrast(queries, keys.detach(), section.nce_temperature))
        return torch.stack(losses).mean(dim=0)

    def _fool(self, side: int, fake: Tensor) -> Tensor:
        """Adversarial loss of a generator, (N,)."""
        image_scores, spectrum_scores = self._score(side, fake, 2)
        losses = compute_realness_loss(image_scores, real=True)
        if spectrum_scores is not None:
            losses = losses + self._section.fft * compute_realness_loss(spectrum_scores, real=True)
        return losses

    def _judge(self, side: int, real: Tensor, fake: Tensor) -> Losses:
        """Losses of the discriminators of a side."""
        section, training = self._section, self._training
        penalizes = section.r1_gamma > 0 and training.steps % section.penalty_every == 0
        real = real.requires_grad_(penalizes)
        of_real, of_fake = self._score(side, real, 0, penalizes), self._score(side, fake, 1)
        losses = torch.zeros(len(real), device=real.device)
        parts: dict[str, Tensor] = {}
        for name, weight, first, second in zip(("score", "fft_score"), (1, section.fft), of_real, of_fake, strict=True):
            if first is None or second is None:
                continue
            losses = losses + weight * (compute_realness_loss(first, True) + compute_realness_loss(second, False)) / 2
            parts |= {f"{name}_real": first.mean(dim=(1, 2)), f"{name}_generated": second.mean(dim=(1, 2))}
            if penalizes:
                penalty = compute_penalty(first.mean(dim=(1, 2)), real)
                losses = losses + weight * section.penalty_every * section.r1_gamma / 2 * penalty
        if training.strength:
            lead = (of_real[0].mean(dim=(1, 2)) - 0.5).sign()
            training.strength.record(lead)
            parts |= {"r_t": lead, "ada_p": training.strength.on(lead.device).expand(len(lead))}
        return Losses(losses, parts=parts)

    def _score(self, side: int, images: Tensor, number: int, precise: bool = False) -> tuple[Tensor, Tensor | None]:
        """Scores of images, augmented by transform `number`, and of their spectra, (N, h, w) each."""
        suffix, strength, seen = ("", "_back")[side], self._training.strength, images
        if strength:
            with torch.autocast(images.device.type, enabled=False):
                seen = augment(images, self._batch["transforms"][:, side, number], strength.on(images.device))
        judge = self._networks[f"discriminator{suffix}"]
        scores = judge(seen, full_precision=precise).float()
        judge_spectrum = self._networks.get(f"spectrum_discriminator{suffix}")
        if judge_spectrum is None:
            return scores, None
        return scores, judge_spectrum(compute_log_power(images), full_precision=precise).float()


def build_trainable(generator: Generator, config: RunConfig) -> Trainable:
    """See `steelgen.generators.families`."""
    assert isinstance(generator, Translator)
    return TranslationTraining(generator, config)
