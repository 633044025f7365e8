"""Mask2Former, a network that predicts a set of instances, small and with random weights."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from steelgen.models.architectures import import_package

_STRIDE = 32
"""The backbone's lowest resolution is 1/32 of the image."""
_LOSS_POINTS = 1024
"""Random points of each mask at which the loss is computed, instead of all pixels."""


class Queries(NamedTuple):
    """What each query predicts, after each layer of the decoder."""

    classes: tuple[torch.Tensor, ...]
    """(N, Q, num_classes + 1) logits, the last one of no instance."""
    masks: tuple[torch.Tensor, ...]
    """(N, Q, h, w) logits of the pixels of the instance, at a quarter of the enlarged image's resolution."""

    def float(self) -> Queries:
        """In float32, as a tensor's method."""
        return Queries(*(tuple(layer.float() for layer in layers) for layers in self))


class Mask2Former(nn.Module):
    """Mask2Former (Cheng et al. 2022, arXiv 2112.01527) of transformers on a small Swin backbone, 1.07 M parameters.

    Args:
        in_channels: 1 or 3.
        num_classes: classes of instances.
        num_queries: most instances in an image.
        enlargement: upsampling factor of images, rounded up to a multiple of 32 px.

    Raises:
        InputError: if transformers is missing.
    """

    def __init__(self, in_channels: int, num_classes: int, num_queries: int = 100, enlargement: float = 1.0) -> None:
        super().__init__()
        transformers = import_package("transformers", "mask2former")
        backbone = transformers.SwinConfig(
            num_channels=in_channels,
            embed_dim=24,
            depths=[1, 1, 2, 1],
            num_heads=[1, 2, 4, 8],
            drop_path_rate=0.0,
            out_features=["stage1", "stage2", "stage3", "stage4"],
        )
        config = transformers.Mask2FormerConfig(
            backbone_config=backbone,
            num_labels=num_classes,
            hidden_dim=64,
            feature_size=64,
            mask_feature_size=64,
            encoder_feedforward_dim=128,
            dim_feedforward=128,
            encoder_layers=2,
            decoder_layers=3,
            num_attention_heads=4,
            num_queries=num_queries,
            train_num_points=_LOSS_POINTS,
        )
        self.network = transformers.Mask2FormerForUniversalSegmentation(config)
        _initialize(self.network.model)
        self.enlargement = enlargement

    def forward(self, images: torch.Tensor) -> Queries:
        """(N, in_channels, H, W) in [-1, 1] → what the queries predict for images of these extents."""
        size = [_STRIDE * math.ceil(edge * self.enlargement / _STRIDE) for edge in images.shape[-2:]]
        if size != list(images.shape[-2:]):
            images = F.interpolate(images, size, mode="bicubic").clamp(-1, 1)
        output = self.network(images, output_auxiliary_logits=True)
        layers = [
            *((layer["class_queries_logits"], layer["masks_queries_logits"]) for layer in output.auxiliary_logits),
            (output.class_queries_logits, output.masks_queries_logits),
        ]
        return Queries(*zip(*layers, strict=True))

    def compute_loss(self, queries: Queries, labels: list[torch.Tensor], masks: list[torch.Tensor]) -> torch.Tensor:
        """Computes cross-entropy, binary cross-entropy and Dice of the best assignment of queries, over all layers.

        The points where masks are compared are drawn from torch's global generator.

        Args:
            queries: float32 output for N images.
            labels: N times (K,) int64 classes of the true instances.
            masks: N times (K, H, W) float32 of 0 and 1, of any resolution.

        Returns:
            Scalar.
        """
        *earlier, last = zip(*queries, strict=True)
        auxiliary = [{"class_queries_logits": classes, "masks_queries_logits": pixels} for classes, pixels in earlier]
        losses = self.network.get_loss_dict(
            masks_queries_logits=last[1],
            class_queries_logits=last[0],
            mask_labels=masks,
            class_labels=labels,
            auxiliary_predictions=auxiliary,
        )
        return self.network.get_loss(losses)


def _initialize(model: Any) -> None:
    """Initializes embeddings from N(0, 1) and the mask embedder as any linear layer, as the authors' code does.

    transformers up to 5.20, the newest for Python 3.10, starts them near 0: then no instance is found for long.
    """
    decoder = model.transformer_module
    nn.init.normal_(model.pixel_level_module.decoder.level_embed)
    embeddings = (decoder.queries_embedder, decoder.queries_features, decoder.level_embed)
    linear = (layer for layer in decoder.decoder.mask_predictor.mask_embedder.modules() if isinstance(layer, nn.Linear))
    for module in (*embeddings, *linear):
        module.reset_parameters()
