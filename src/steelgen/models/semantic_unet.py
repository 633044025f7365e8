"""The network: a residual U-Net whose middle and decoder see the mask through SPADE norms."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from steelgen.models.blocks import Downsample, ResidualBlock, SelfAttention, Upsample, zero_initialized
from steelgen.models.norm import GroupNorm
from steelgen.models.spade import Modulation, SpadeNorm, build_mask_pyramid, mark_edges


@dataclass(frozen=True)
class MaskFeatures:
    """γ and β of every SPADE norm of a network for a batch of masks, in the order of the forward pass.

    They may have fewer rows than the images they are used for; see `SpadeNorm.forward`.
    """

    modulations: tuple[Modulation | None, ...]
    """None where γ and β are computed anew in each forward pass, to save memory."""
    pyramid: tuple[Tensor, ...]
    """The masks at the resolution of each level."""

    def select(self, rows: slice) -> MaskFeatures:
        """The features of some of the masks."""
        return MaskFeatures(
            tuple(None if cached is None else (cached[0][rows], cached[1][rows]) for cached in self.modulations),
            tuple(mask[rows] for mask in self.pyramid),
        )


class UNetStage(nn.Module):
    """One residual block of an encoder or decoder with what follows it: attention, then a change of resolution."""

    def __init__(
        self, block: ResidualBlock, attention: SelfAttention | None = None, resampler: nn.Module | None = None
    ):
        super().__init__()
        self.block = block
        self.attention = attention
        self.resampler = resampler

    def forward(self, features: Tensor, time_embedding: Tensor, modulations: Sequence[Modulation] = ()) -> Tensor:
        """Maps the features; `modulations` are γ and β of the SPADE norms in here."""
        features = self.block(features, time_embedding, modulations[:2])
        if self.attention is not None:
            features = self.attention(features)
        if isinstance(self.resampler, ResidualBlock):
            return self.resampler(features, time_embedding, modulations[2:])
        return features if self.resampler is None else self.resampler(features)


class SemanticUNet(ModelMixin, ConfigMixin):
    """Predicts what the noise schedule asks for (noise, velocity or image) from a noisy image, a timestep and a mask.

    Plain residual blocks in the encoder, SPADE ones in the middle and the decoder (Wang et al. 2022, arXiv 2207.00050).

    Args:
        image_size: edge of the images in pixels; attention_resolutions refer to it. Other sizes run too.
        in_channels: 1 for gray micrographs, 3 for RGB.
        num_classes: channels of the one-hot mask; with 0 all norms are plain, and nothing is computed for masks.
        base_channels: channels of the first level (times channel_mult[0]) and a quarter of the time embedding.
        channel_mult: one factor a resolution level; each level halves the resolution.
        num_res_blocks: residual blocks a level.
        attention_resolutions: edges, in feature pixels, of the levels with self-attention. The middle always has it.
        num_heads: attention heads, where num_head_channels is None.
        num_heads_upsample: the decoder's attention heads, where they differ.
        num_head_channels: channels a head; the number of heads then follows from it.
        spade_channels: hidden width of the SPADE norms.
        norm_groups: groups of every GroupNorm.
        dropout: dropout probability inside the residual blocks.
        scale_shift: the time embedding scales and shifts the norms; else it is added.
        resample_in_blocks: change the resolution inside a residual block; else by a convolution.
        learn_sigma: a second set of output channels interpolates the reverse variance (Nichol & Dhariwal 2021).
        mask_resize: "area" or "nearest"; see `build_mask_pyramid`.
        instance_edges: the SPADE norms see where instances meet, as one more channel (see `mark_edges`).
        timestep_scale: the time embedding sees timesteps times this.
    """

    _supports_gradient_checkpointing = True

    @register_to_config
    def __init__(
        self,
        image_size: int = 64,
        in_channels: int = 1,
        num_classes: int = 2,
        base_channels: int = 64,
        channel_mult: Sequence[float] = (1, 2, 3, 4),
        num_res_blocks: int = 2,
        attention_resolutions: Sequence[int] = (16, 8),
        num_heads: int = 4,
        num_heads_upsample: int | None = None,
        num_head_channels: int | None = 32,
        spade_channels: int = 128,
        norm_groups: int = 32,
        dropout: float = 0.0,
        scale_shift: bool = True,
        resample_in_blocks: bool = True,
        learn_sigma: bool = False,
        mask_resize: str = "area",
        instance_edges: bool = False,
        timestep_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        # What the forward pass reads; read from `config`, it would be a guard of torch.compile's graphs each time.
        self._num_classes, self._levels, self._base_channels = num_classes, len(channel_mult), base_channels
        self._instance_edges, self._mask_resize, self._timestep_scale = instance_edges, mask_resize, timestep_scale
        widths = [int(factor * base_channels) for factor in channel_mult]
        time_channels = 4 * base_channels
        attended = {image_size // resolution for resolution in attention_resolutions}

        def build_block(cin: int, cout: int, with_mask: bool, resample_by: Any = None) -> ResidualBlock:
            return ResidualBlock(
                cin,
                cout,
                time_channels,
                mask_channels=num_classes + instance_edges if with_mask and num_classes else None,
                spade_channels=spade_channels,
                num_groups=norm_groups,
                dropout=dropout,
                scale_shift=scale_shift,
                resample_by=resample_by,
            )

        def build_attention(channels: int, heads: int) -> SelfAttention:
            heads = channels // num_head_channels if num_head_channels else heads
            return SelfAttention(channels, heads, norm_groups)

        self.time_mlp = nn.Sequential(
            nn.Linear(base_channels, time_channels), nn.SiLU(), nn.Linear(time_channels, time_channels)
        )
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)

        encoder: list[UNetStage | Downsample] = []
        skips = [widths[0]]
        for level, (before, width) in enumerate(pairwise([widths[0], *widths])):
            for index in range(num_res_blocks):
                block = build_block(before if index == 0 else width, width, with_mask=False)
                attention = build_attention(width, num_heads) if 2**level in attended else None
                encoder.append(UNetStage(block, attention))
                skips.append(width)
            if level < len(widths) - 1:
                down = build_block(width, width, False, "down") if resample_in_blocks else None
                encoder.append(UNetStage(down) if down else Downsample(width))
                skips.append(width)
        self.encoder = nn.ModuleList(encoder)

        middle = build_attention(widths[-1], num_heads)
        self.middle = nn.ModuleList(
            [
                UNetStage(build_block(widths[-1], widths[-1], with_mask=True), middle),
                UNetStage(build_block(widths[-1], widths[-1], with_mask=True)),
            ]
        )

        decoder = []
        channels = widths[-1]
        for level, width in reversed(list(enumerate(widths))):
            for index in range(num_res_blocks + 1):
                block = build_block(channels + skips.pop(), width, with_mask=True)
                attention = build_attention(width, num_heads_upsample or num_heads) if 2**level in attended else None
                up: nn.Module | None = None
                if level > 0 and index == num_res_blocks:
                    up = build_block(width, width, True, "up") if resample_in_blocks else Upsample(width)
                decoder.append(UNetStage(block, attention, up))
                channels = width
        self.decoder = nn.ModuleList(decoder)

        self.norm_out = GroupNorm(norm_groups, channels)
        self.conv_out = zero_initialized(nn.Conv2d(channels, in_channels * (2 if learn_sigma else 1), 3, padding=1))

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **options: Any) -> Any:
        """See `ConfigMixin.extract_init_dict`; drops what config.json held up to version 0.1, always 0 by now."""
        kept = {name: value for name, value in config_dict.items() if name != "augmentation_channels"}
        return super().extract_init_dict(kept, **options)

    def save_pretrained(self, *arguments: Any, **options: Any) -> None:
        """See `ModelMixin.save_pretrained`, which adds to the config, on whose length torch.compile's graphs depend."""
        config: Any = self._internal_dict  # type: ignore[has-type]
        self._internal_dict = FrozenDict(config)
        try:
            super().save_pretrained(*arguments, **options)
        finally:
            self._internal_dict = config

    @property
    def downsampling_factor(self) -> int:
        """Image edges must be multiples of this."""
        return 2 ** (self._levels - 1)

    def compute_mask_features(self, one_hot_mask: Tensor, max_bytes: float = math.inf) -> MaskFeatures:
        """γ and β of every SPADE norm for masks (N, num_classes, H, W); all zeros is the null mask of guidance.

        With instance_edges a further channel may say where instances meet; else it is where classes do.

        Args:
            max_bytes: what all γ and β may take, in fp32; norms beyond that, the finest first, are recomputed in each
                forward pass instead.
        """
        height, width = one_hot_mask.shape[-2:]
        if height % self.downsampling_factor or width % self.downsampling_factor:
            raise ValueError(f"the mask is {width}x{height}, not a multiple of {self.downsampling_factor}")
        if not self._num_classes:
            return MaskFeatures((), ())
        sizes = [(height >> level, width >> level) for level in range(self._levels)]
        if self._instance_edges and one_hot_mask.shape[1] == self._num_classes:
            one_hot_mask = torch.cat([one_hot_mask, mark_edges(one_hot_mask)], dim=1)
        pyramid = build_mask_pyramid(one_hot_mask, sizes, self._mask_resize)
        masks = tuple(pyramid[size] for size in sizes)
        modulations: list[Modulation | None] = []
        for norm, level in self._spade_norms():  # from coarse to fine
            rows, columns = sizes[level]
            max_bytes -= 4 * 2 * norm.norm.num_channels * rows * columns * len(one_hot_mask)
            modulations.append(norm.compute_modulation(masks[level]) if max_bytes >= 0 else None)
        return MaskFeatures(tuple(modulations), masks)

    def forward(
        self,
        noisy_image: Tensor,
        timesteps: Tensor,
        one_hot_mask: Tensor | None = None,
        mask_features: MaskFeatures | None = None,
    ) -> Tensor:
        """Predicts the target of the noise schedule.

        Args:
            noisy_image: (N, in_channels, H, W).
            timesteps: (N,) integers or floats.
            one_hot_mask: (N, num_classes, H, W) in [0, 1]; needed unless `mask_features` is given.
            mask_features: what `compute_mask_features` returned for the same masks.

        Returns:
            (N, in_channels, H, W), or (N, 2·in_channels, H, W) with learn_sigma.
        """
        if mask_features is None:
            if one_hot_mask is None:
                raise ValueError("either one_hot_mask or mask_features is needed")
            # Under checkpointing γ and β, as large as the features, are computed again in the backward pass too.
            mask_features = self.compute_mask_features(one_hot_mask, 0 if self._checkpoints else math.inf)
        masks = self._iterate_masks(mask_features)

        if not timesteps.is_floating_point():
            timesteps = timesteps.float()
        scaled = timesteps * self._timestep_scale
        embedding = get_timestep_embedding(scaled, self._base_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        embedding = F.silu(self.time_mlp(embedding.to(noisy_image.dtype)))

        features = self.conv_in(noisy_image)
        skips = [features]
        for stage in self.encoder:
            features = stage(features) if isinstance(stage, Downsample) else self._run(stage, features, embedding)
            skips.append(features)
        for stage in self.middle:
            features = self._run(stage, features, embedding, _take(masks, stage))
        for stage in self.decoder:
            features = torch.cat([features, skips.pop()], dim=1)
            features = self._run(stage, features, embedding, _take(masks, stage))
        return self.conv_out(F.silu(self.norm_out(features)))

    def estimate_activation_bytes(self) -> int:
        """About what drawing one image of image_size takes in fp32, besides weights and mask features.

        The skip connections of all levels, and at the finest one a residual block's input, hidden features and norms.
        """
        area = self.config.image_size**2
        widths = [int(factor * self._base_channels) for factor in self.config.channel_mult]
        skips = sum((self.config.num_res_blocks + 1) * width * area / 4**level for level, width in enumerate(widths))
        return int(4 * (skips + 8 * widths[0] * area))

    @property
    def _checkpoints(self) -> bool:
        return torch.is_grad_enabled() and self.gradient_checkpointing

    def _run(
        self, stage: nn.Module, features: Tensor, embedding: Tensor, masks: Sequence[Modulation | Tensor] = ()
    ) -> Tensor:
        """Runs a stage with γ and β of its SPADE norms, or the masks that these are computed from."""

        def run(features: Tensor, embedding: Tensor) -> Tensor:
            norms = [module for module in stage.modules() if isinstance(module, SpadeNorm)] if masks else []
            modulations = [
                norm.compute_modulation(mask) if isinstance(mask, Tensor) else mask
                for norm, mask in zip(norms, masks, strict=True)
            ]
            return stage(features, embedding, modulations)

        if self._checkpoints:
            return self._gradient_checkpointing_func(run, features, embedding)
        return run(features, embedding)

    def _iterate_masks(self, mask_features: MaskFeatures) -> Iterator[Modulation | Tensor]:
        for (_, level), cached in zip(self._spade_norms(), mask_features.modulations, strict=True):
            yield cached or mask_features.pyramid[level]

    def _spade_norms(self) -> Iterator[tuple[SpadeNorm, int]]:
        """Every SPADE norm in the order of the forward pass, with the level (log2 of the downsampling) it works at."""
        if not self._num_classes:
            return
        level = self._levels - 1
        for stage in [*self.middle, *self.decoder]:
            for block in (stage.block, stage.resampler):
                if isinstance(block, ResidualBlock):
                    yield block.norm_1, level  # type: ignore[misc]
                    level -= block.resample_by == "up"
                    yield block.norm_2, level  # type: ignore[misc]
            level -= isinstance(stage.resampler, Upsample)


def _take(masks: Iterator[Modulation | Tensor], stage: nn.Module) -> list[Modulation | Tensor]:
    """What the next SPADE norms, those of a stage, are steered by."""
    count = sum(isinstance(module, SpadeNorm) for module in stage.modules())
    return [next(masks) for _ in range(count)]
