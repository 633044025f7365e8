"""Segmentation networks of other hands, all as images in [-1, 1] → logits of the same size, with random weights."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import nn

from steelgen.errors import InputError, first_line
from steelgen.models.segmenter import SegmenterUNet


class FullSizeLogits(nn.Module):
    """Gives any segmentation network one form: a tensor of logits as large as the image.

    Args:
        network: returns logits at any size as a tensor, as the first of a list, or as `.logits`.
        stride: images are padded to a multiple of it.
    """

    def __init__(self, network: nn.Module, stride: int) -> None:
        super().__init__()
        self.network = network
        self.stride = stride

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) in [-1, 1] → logits (N, num_classes, H, W)."""
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")
        output = self.network(padded)
        logits = output[0] if isinstance(output, list | tuple) else getattr(output, "logits", output)
        if logits.shape[-2:] != padded.shape[-2:]:
            logits = F.interpolate(logits, padded.shape[-2:], mode="bilinear")
        return logits[..., :height, :width]


def build_architecture(name: str, in_channels: int, num_classes: int, base_channels: int = 16) -> nn.Module:
    """Builds an untrained segmentation network.

    Args:
        name: unet, unetplusplus, segformer, deeplabv3plus, upernet, or smp:NAME[:ENCODER] for an architecture of
            segmentation_models_pytorch (resnet34 where no encoder is named).
        in_channels: 1 or 3.
        num_classes: classes of the masks.
        base_channels: width of the built-in ones, a multiple of 8.

    Returns:
        A module: (N, in_channels, H, W) in [-1, 1] → logits (N, num_classes, H, W).

    Raises:
        InputError: if there is no such architecture, or its package is missing.
    """
    if name == "unet":
        return SegmenterUNet(in_channels, num_classes, base_channels)
    if name.startswith("smp:"):
        return _build_smp(name, in_channels, num_classes)
    if name not in _BUILDERS:
        raise InputError(f"unknown architecture {name!r}; known: unet, {', '.join(_BUILDERS)}, smp:NAME[:ENCODER]")
    network, stride = _BUILDERS[name](in_channels, num_classes, base_channels)
    return FullSizeLogits(network, stride)


def _build_unetplusplus(in_channels: int, num_classes: int, width: int) -> tuple[nn.Module, int]:
    """UNet++ (Zhou et al. 2018, arXiv 1807.10165) with group norm, which small windows do not trouble."""
    networks = _import("monai.networks.nets", "unetplusplus", "monai")
    features = (width, width, 2 * width, 4 * width, 8 * width, width)
    norm = ("group", {"num_groups": 8})
    network = networks.BasicUNetPlusPlus(
        2, in_channels, num_classes, features=features, norm=norm, upsample="nontrainable"
    )
    return network, 16


def _build_segformer(in_channels: int, num_classes: int, width: int) -> tuple[nn.Module, int]:
    """SegFormer (Xie et al. 2021, arXiv 2105.15203): B0's depths and heads; its widths at 16 channels."""
    transformers = _import("transformers", "segformer", "transformers")
    config = transformers.SegformerConfig(
        num_channels=in_channels,
        num_labels=num_classes,
        hidden_sizes=[2 * width, 4 * width, 8 * width, 16 * width],
        num_attention_heads=[1, 2, 4, 8],
        decoder_hidden_size=8 * width,
        drop_path_rate=0.0,
    )
    return transformers.SegformerForSemanticSegmentation(config), 32


def _build_deeplabv3plus(in_channels: int, num_classes: int, width: int) -> tuple[nn.Module, int]:
    """DeepLabV3+ (Chen et al. 2018, arXiv 1802.02611) as transformers has it: MobileNetV2 with atrous convolutions at
    stride 8, image pooling, and no second, finer input to the head."""
    transformers = _import("transformers", "deeplabv3plus", "transformers")
    config = transformers.MobileNetV2Config(
        num_channels=in_channels,
        num_labels=num_classes,
        depth_multiplier=width / 32,
        output_stride=8,
        finegrained_output=False,
        classifier_dropout_prob=0.1,
    )
    network = transformers.MobileNetV2ForSemanticSegmentation(config)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            # There it is TensorFlow's 0.997 of the old value; to torch that means 0.997 of the newest batch.
            module.momentum = 0.1
    return network, 8


def _build_upernet(in_channels: int, num_classes: int, width: int) -> tuple[nn.Module, int]:
    """UPerNet (Xiao et al. 2018, arXiv 1807.10221) on a small ConvNeXt (Liu et al. 2022, arXiv 2201.03545)."""
    transformers = _import("transformers", "upernet", "transformers")
    backbone = transformers.ConvNextConfig(
        num_channels=in_channels,
        hidden_sizes=[2 * width, 4 * width, 8 * width, 16 * width],
        depths=[2, 2, 2, 2],
        # The usual 1e-6 is for much longer training: blocks would hardly leave the identity.
        layer_scale_init_value=0.1,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )
    config = transformers.UperNetConfig(
        num_labels=num_classes, hidden_size=4 * width, use_auxiliary_head=False, backbone_config=backbone
    )
    return transformers.UperNetForSemanticSegmentation(config), 32


_BUILDERS: dict[str, Callable[[int, int, int], tuple[nn.Module, int]]] = {
    "unetplusplus": _build_unetplusplus,
    "segformer": _build_segformer,
    "deeplabv3plus": _build_deeplabv3plus,
    "upernet": _build_upernet,
}


def _build_smp(name: str, in_channels: int, num_classes: int) -> nn.Module:
    _, architecture, *encoder = name.split(":")
    smp = _import("segmentation_models_pytorch", name, "segmentation-models-pytorch")
    try:
        network = smp.create_model(
            architecture,
            encoder_name=encoder[0] if encoder else "resnet34",
            encoder_weights=None,
            in_channels=in_channels,
            classes=num_classes,
        )
    except (KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"architecture {name}: segmentation_models_pytorch refuses it: {error}") from None
    return FullSizeLogits(network, 32)


def _import(module: str, architecture: str, package: str) -> ModuleType:
    import importlib

    try:
        return importlib.import_module(module)
    # An installed package may fail in its own imports, with other errors than ImportError.
    except (ImportError, RuntimeError) as error:
        message = f"architecture {architecture}: needs `pip install {package}` ({first_line(error)})"
        raise InputError(message) from None
