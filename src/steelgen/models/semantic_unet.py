"""The semantic U-Net: a residual U-Net with SPADE norms in the middle and decoder."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from diffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config
from diffusers.models.embeddings import get_timestep_embedding
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from steelgen.models.blocks import (
    Downsample,
    PatchSplit,
    ResidualBlock,
    SelfAttention,
    UNetStage,
    Upsample,
    zero_initialized,
)
from steelgen.models.conditions import ConditionEmbedding
from steelgen.models.spade import GroupNorm, MaskFeatures, Modulation, SpadeNorm, build_mask_pyramid, mark_edges


class SemanticUNet(ModelMixin, ConfigMixin):
    """Predicts the target of the noise schedule from a noisy image, a timestep and a mask.

    Plain residual blocks in the encoder, SPADE blocks in the middle and decoder (Wang et al. 2022, arXiv 2207.00050).

    Args:
        image_size: edge of the images in pixels; attention_resolutions refer to it. Other sizes run too.
        in_channels: 1 for gray micrographs, 3 for RGB.
        num_classes: channels of the one-hot mask; 0 builds plain norms only.
        base_channels, channel_mult, num_res_blocks, attention_resolutions, num_heads, num_heads_upsample,
        num_head_channels, spade_channels, norm_groups, dropout, scale_shift, resample_in_blocks, learn_sigma,
        mask_resize, instance_edges, middle_attention, patch_size, timestep_scale: see
        `steelgen.config.generator.UNetSection`.
        coarse_channels: channels of the enlarged coarse image that a refining network also sees; 0 for others.
        conditions: number of categories of each condition, 0 for a number; see `ConditionEmbedding`.
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
        middle_attention: bool = True,
        coarse_channels: int = 0,
        conditions: Sequence[int] = (),
        patch_size: int = 1,
    ) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        # Read by the forward pass; entries of `config` would become guards of torch.compile's graphs.
        self._num_classes, self._base_channels, self._patch_size = num_classes, base_channels, patch_size
        self._levels = len(channel_mult) + int(math.log2(patch_size))
        self._instance_edges, self._mask_resize, self._timestep_scale = instance_edges, mask_resize, timestep_scale
        widths = [int(factor * base_channels) for factor in channel_mult]
        time_channels = 4 * base_channels
        attended = {image_size // patch_size // resolution for resolution in attention_resolutions}
        mask_channels = num_classes + instance_edges if num_classes else None

        def build_block(cin: int, cout: int, with_mask: bool, resample_by: Any = None) -> ResidualBlock:
            return ResidualBlock(
                cin,
                cout,
                time_channels,
                mask_channels=mask_channels if with_mask else None,
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
        seen_channels = in_channels + coarse_channels
        self.conv_in = nn.Conv2d(seen_channels * patch_size**2, widths[0], 3, padding=1)

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

        middle = build_attention(widths[-1], num_heads) if middle_attention else None
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
        self.to_pixels: PatchSplit | None = None
        if patch_size > 1:
            self.to_pixels = PatchSplit(
                channels, -(-channels // 2), seen_channels, patch_size, mask_channels, spade_channels
            )
            channels = -(-channels // 2)
        self.conv_out = zero_initialized(nn.Conv2d(channels, in_channels * (2 if learn_sigma else 1), 3, padding=1))
        # Last, because the initial weights of all other layers follow torch's generator.
        self.coarse_noise_mlp = (
            nn.Sequential(
                nn.Linear(1, base_channels), nn.SiLU(), zero_initialized(nn.Linear(base_channels, time_channels))
            )
            if coarse_channels
            else None
        )
        self.condition_embedding = ConditionEmbedding(conditions, time_channels) if conditions else None

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **options: Any) -> Any:
        """See `ConfigMixin.extract_init_dict`; drops a field of version 0.1, which is 0."""
        kept = {name: value for name, value in config_dict.items() if name != "augmentation_channels"}
        return super().extract_init_dict(kept, **options)

    def save_pretrained(self, *arguments: Any, **options: Any) -> None:
        """See `ModelMixin.save_pretrained`; keeps it from growing the config, a guard of torch.compile's graphs."""
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

    def compute_mask_features(
        self, one_hot_mask: Tensor, max_bytes: float = math.inf, conditions: Tensor | None = None
    ) -> MaskFeatures:
        """Computes γ and β of every SPADE norm for masks (N, num_classes, H, W); all zeros is the null mask.

        With instance_edges the masks may have one more channel for these; by default class edges are used.

        Args:
            max_bytes: memory for all γ and β in fp32; norms beyond it, the finest first, recompute theirs in each
                forward pass.
            conditions: (N, K); see `ConditionEmbedding`. None is the null condition.
        """
        height, width = one_hot_mask.shape[-2:]
        if height % self.downsampling_factor or width % self.downsampling_factor:
            raise ValueError(f"the mask is {width}x{height}, not a multiple of {self.downsampling_factor}")
        embedded = None
        if self.condition_embedding is not None and conditions is not None:
            embedded = self.condition_embedding(conditions)
        if not self._num_classes:
            return MaskFeatures((), (), embedded)
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
        return MaskFeatures(tuple(modulations), masks, embedded)

    def forward(
        self,
        noisy_image: Tensor,
        timesteps: Tensor,
        one_hot_mask: Tensor | None = None,
        mask_features: MaskFeatures | None = None,
        coarse: Tensor | None = None,
        coarse_noise: Tensor | None = None,
        conditions: Tensor | None = None,
    ) -> Tensor:
        """Predicts the target of the noise schedule.

        Args:
            noisy_image: (N, in_channels, H, W).
            timesteps: (N,) integers or floats.
            one_hot_mask: (N, num_classes, H, W) in [0, 1]; required without `mask_features`.
            mask_features: output of `compute_mask_features` for the same masks and conditions.
            coarse: (N, coarse_channels, H, W), the enlarged coarse image; required with coarse_channels.
            coarse_noise: (N,), standard deviation of the noise on it.
            conditions: (N, K) for `one_hot_mask`; see `ConditionEmbedding`.

        Returns:
            (N, in_channels, H, W), or (N, 2·in_channels, H, W) with learn_sigma.
        """
        if mask_features is None:
            if one_hot_mask is None:
                raise ValueError("either one_hot_mask or mask_features is needed")
            # With checkpointing, γ and β are recomputed in the backward pass too: they are as large as the features.
            max_bytes = 0 if self._checkpoints else math.inf
            mask_features = self.compute_mask_features(one_hot_mask, max_bytes, conditions)
        masks = self._iterate_masks(mask_features)

        if not timesteps.is_floating_point():
            timesteps = timesteps.float()
        scaled = timesteps * self._timestep_scale
        embedding = get_timestep_embedding(scaled, self._base_channels, flip_sin_to_cos=True, downscale_freq_shift=0)
        embedding = self.time_mlp(embedding.to(noisy_image.dtype))
        if self.coarse_noise_mlp is not None:
            if coarse is None or coarse_noise is None:
                raise ValueError("a refining network needs a coarse image and its noise")
            embedding = embedding + self.coarse_noise_mlp(coarse_noise[:, None].to(noisy_image.dtype))
            noisy_image = torch.cat([noisy_image, coarse], dim=1)
        if mask_features.conditions is not None:
            embedding = embedding + _repeat_last(mask_features.conditions, len(embedding)).to(embedding.dtype)
        embedding = F.silu(embedding)

        patch = self._patch_size
        features = self.conv_in(F.pixel_unshuffle(noisy_image, patch) if patch > 1 else noisy_image)
        skips = [features]
        for stage in self.encoder:
            is_block = not isinstance(stage, Downsample)
            features = self._run(stage, features, embedding, masks) if is_block else stage(features)
            skips.append(features)
        for stage in self.middle:
            features = self._run(stage, features, embedding, masks)
        for stage in self.decoder:
            features = self._run(stage, torch.cat([features, skips.pop()], dim=1), embedding, masks)
        features = F.silu(self.norm_out(features))
        if self.to_pixels is not None:
            features = F.silu(self._run(self.to_pixels, features, noisy_image, masks))
        return self.conv_out(features)

    def estimate_activation_bytes(self) -> int:
        """Estimates the fp32 memory of sampling one image of image_size, besides weights and mask features.

        Counts the skip connections, and the input, hidden features and norms of a residual block at the finest level.
        """
        area = (self.config.image_size // self._patch_size) ** 2
        widths = [int(factor * self._base_channels) for factor in self.config.channel_mult]
        skips = sum((self.config.num_res_blocks + 1) * width * area / 4**level for level, width in enumerate(widths))
        return int(4 * (skips + 8 * widths[0] * area))

    @property
    def _checkpoints(self) -> bool:
        return torch.is_grad_enabled() and self.gradient_checkpointing

    def _run(self, stage: nn.Module, features: Tensor, beside: Tensor, masks: Iterator[Modulation | Tensor]) -> Tensor:
        """Runs a stage on features and what it gets beside them, the time embedding or the pixels.

        `masks` continues with γ and β of its SPADE norms, or masks to compute them from.
        """
        norms = [(module, next(masks)) for module in stage.modules() if isinstance(module, SpadeNorm)]

        def run(features: Tensor, beside: Tensor) -> Tensor:
            modulations = [norm.compute_modulation(mask) if isinstance(mask, Tensor) else mask for norm, mask in norms]
            return stage(features, beside, modulations)

        if self._checkpoints:
            return self._gradient_checkpointing_func(run, features, beside)
        return run(features, beside)

    def _iterate_masks(self, mask_features: MaskFeatures) -> Iterator[Modulation | Tensor]:
        for (_, level), cached in zip(self._spade_norms(), mask_features.modulations, strict=True):
            yield cached or mask_features.pyramid[level]

    def _spade_norms(self) -> Iterator[tuple[SpadeNorm, int]]:
        """Yields every SPADE norm in the order of the forward pass, with its level (log2 of the downsampling)."""
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
        if self.to_pixels is not None:
            yield self.to_pixels.norm, 0  # type: ignore[misc]


def _repeat_last(rows: Tensor, count: int) -> Tensor:
    """Repeats the last row of (M, D), that of the null mask, so that there are `count`."""
    return torch.cat([rows[:-1], rows[-1:].expand(count - len(rows) + 1, -1)]) if len(rows) < count else rows
