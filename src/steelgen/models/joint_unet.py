"""The U-Net of joint diffusion: diffusers' UNet2DModel with a time embedding for the image and one for the mask."""

from __future__ import annotations

from collections.abc import Sequence

from diffusers import UNet2DModel


def build_joint_unet(
    image_size: int,
    channels: int,
    out_channels: int,
    *,
    base_channels: int,
    channel_mult: Sequence[int],
    num_res_blocks: int,
    attention_resolutions: Sequence[int],
    num_head_channels: int,
    norm_groups: int,
    dropout: float,
    self_conditioning: bool,
) -> UNet2DModel:
    """Builds the network; its `timestep` is the image's time, its `class_labels` the mask's.

    Args:
        image_size: edge in px; a multiple of 2 to the number of levels minus 1.
        channels: channels of image and mask; the input has twice as many with self-conditioning.
        out_channels: channels of what is predicted of both.
    """
    edges = [image_size >> level for level in range(len(channel_mult))]
    attends = [edge in attention_resolutions for edge in edges]
    return UNet2DModel(
        sample_size=image_size,
        in_channels=channels * (2 if self_conditioning else 1),
        out_channels=out_channels,
        down_block_types=tuple("AttnDownBlock2D" if attended else "DownBlock2D" for attended in attends),
        up_block_types=tuple("AttnUpBlock2D" if attended else "UpBlock2D" for attended in reversed(attends)),
        block_out_channels=tuple(factor * base_channels for factor in channel_mult),
        layers_per_block=num_res_blocks,
        attention_head_dim=num_head_channels,
        norm_num_groups=norm_groups,
        dropout=dropout,
        resnet_time_scale_shift="scale_shift",
        # Both embeddings are added, each after linear layers of its own.
        class_embed_type="timestep",
    )


def estimate_activation_bytes(network: UNet2DModel) -> int:
    """Estimates the fp32 memory of sampling one image of the network's size, besides the weights.

    Counts the skip connections, and the input, hidden features and norms of a residual block at the finest level.
    """
    config = network.config
    area, widths = config.sample_size**2, config.block_out_channels
    skips = sum((config.layers_per_block + 1) * width * area / 4**level for level, width in enumerate(widths))
    return int(4 * (skips + 8 * widths[0] * area))
