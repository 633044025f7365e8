"""EfficientNet-Lite (Tan and Le 2019, arXiv 1905.11946) as a feature extractor and as an encoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from efficientnet_lite_pytorch import EfficientNet
from torch import nn


class EfficientNetLite0Features(nn.Module):
    """The 1280 pooled features of EfficientNet-Lite0."""

    num_features = 1280
    input_size = 224

    def __init__(self) -> None:
        super().__init__()
        self.network = EfficientNet.from_name("efficientnet-lite0")

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) in [0, 1] → (N, 1280); resized to 224 px (bilinear, antialiased)."""
        size = (self.input_size, self.input_size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bilinear", antialias=True)
        return self.network.extract_features(normalize(images)).mean(dim=(2, 3))


class EfficientNetLiteEncoder(nn.Module):
    """Feature maps of EfficientNet-Lite before each stride and at the end.

    Batch norm keeps its pretrained statistics and is folded into the preceding convolutions, which halves time and
    memory.

    Args:
        name: efficientnet-lite0, efficientnet-lite1 or efficientnet-lite2.
        state: state dict of that network in efficientnet_lite_pytorch; None for random weights.
    """

    stride = 32

    def __init__(self, name: str, state: dict[str, torch.Tensor] | None = None) -> None:
        super().__init__()
        network = EfficientNet.from_name(name)
        if state is not None:
            network.load_state_dict(state)
        self.stem = _fold(network._conv_stem, network._bn0)
        self.blocks = nn.ModuleList(_InvertedBottleneck(block) for block in network._blocks)
        self.channels = [
            block.in_channels for block in self.blocks if isinstance(block, _InvertedBottleneck) and block.strided
        ]
        self.channels.append(network._conv_head.in_channels)
        """Channels of the feature maps at 1/2, 1/4, 1/8, 1/16, and 1/32 of the image size."""

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """(N, 1 or 3, H, W) in [-1, 1], H and W multiples of 32 → maps (N, channels[i], H / 2^(i+1), W / 2^(i+1))."""
        x = normalize((images + 1) / 2).expand(-1, 3, -1, -1)
        maps = []
        x = F.relu6(self.stem(x))
        for block in self.blocks:
            if block.strided:
                maps.append(x)
            x = block(x)
        return [*maps, x]


def normalize(images: torch.Tensor) -> torch.Tensor:
    """[0, 1] → the input range of the published weights, (gray level - 127) / 128."""
    return (images * 255 - 127) / 128


class _InvertedBottleneck(nn.Module):
    """Inverted bottleneck (Sandler et al. 2018, arXiv 1801.04381); Lite variants have no squeeze-and-excitation."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.expand = _fold(block._expand_conv, block._bn0) if hasattr(block, "_expand_conv") else nn.Identity()
        self.depthwise = _fold(block._depthwise_conv, block._bn1)
        self.project = _fold(block._project_conv, block._bn2)
        first = self.expand if isinstance(self.expand, nn.Conv2d) else self.depthwise
        self.in_channels = first.in_channels
        self.strided = self.depthwise.stride[0] == 2
        self.residual = not self.strided and self.in_channels == self.project.out_channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x if isinstance(self.expand, nn.Identity) else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y)))
        return x + y if self.residual else y


class _SamePadded(nn.Conv2d):
    """Convolution with TensorFlow's "same" padding for even sizes, asymmetric at stride 2."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:
            return F.conv2d(x, self.weight, self.bias, 1, kernel // 2, 1, self.groups)
        before = (kernel - stride) // 2
        after = kernel - stride - before
        return F.conv2d(F.pad(x, (before, after, before, after)), self.weight, self.bias, stride, 0, 1, self.groups)


@torch.no_grad()
def _fold(convolution: object, norm: object) -> _SamePadded:
    """Folds the batch norm after a convolution into it, using the running statistics."""
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    folded = _SamePadded(
        convolution.in_channels,
        convolution.out_channels,
        convolution.kernel_size[0],
        convolution.stride[0],
        groups=convolution.groups,
    )
    scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    folded.weight.copy_(convolution.weight * scale[:, None, None, None])
    assert folded.bias is not None
    folded.bias.copy_(norm.bias - norm.running_mean * scale)
    return folded
