"""InceptionV3 as the Fréchet Inception Distance defines it.

The network of Szegedy et al. (2016, arXiv 1512.00567) as frozen on 2015-12-05, with the parameter names of
pt_inception-2015-12-05. It differs from later InceptionV3s in its average pools, which exclude the padding, in the max
pool of the last block, and in its 1008 classes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import nn

Kernel = tuple[int, int]
_1X1, _3X3, _5X5, _1X7, _7X1, _1X3, _3X1 = (1, 1), (3, 3), (5, 5), (1, 7), (7, 1), (1, 3), (3, 1)


class InceptionFeatures(nn.Module):
    """The 2048 features of the last average pool: the space of FID (Heusel et al. 2017, arXiv 1706.08500)."""

    num_features = 2048
    input_size = 299

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, _3X3, stride=2)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, _3X3, padded=False)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, _3X3)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, _1X1)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, _3X3, padded=False)
        self.Mixed_5b = _build_block_a(192, 32)
        self.Mixed_5c = _build_block_a(256, 64)
        self.Mixed_5d = _build_block_a(288, 64)
        # 35×35 → 17×17 grid; 768 channels out
        self.Mixed_6a = Block(288, {"3x3": [(384, _3X3)], "3x3dbl": [(64, _1X1), (96, _3X3), (96, _3X3)]}, stride=2)
        self.Mixed_6b = _build_block_b(128)
        self.Mixed_6c = _build_block_b(160)
        self.Mixed_6d = _build_block_b(160)
        self.Mixed_6e = _build_block_b(192)
        # 17×17 → 8×8 grid; 1280 channels out
        wide = [(192, _1X1), (192, _1X7), (192, _7X1), (192, _3X3)]
        self.Mixed_7a = Block(768, {"3x3": [(192, _1X1), (320, _3X3)], "7x7x3": wide}, stride=2)
        self.Mixed_7b = _build_block_c(1280)
        self.Mixed_7c = _build_block_c(2048, max_pool=True)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) in [0, 1] → (N, 2048); resized to 299 px as in TensorFlow 1."""
        x = resize_bilinear_tf1(images * 255, self.input_size)
        x = (x - 128) / 128
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x))
        x = F.max_pool2d(x, 3, stride=2)
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x)))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x)))))
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))
        return x.mean(dim=(2, 3))


class ConvNorm(nn.Module):
    """Convolution without bias, batch norm, ReLU; keeps the resolution if `padded` and stride is 1."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: Kernel, stride: int = 1, padded: bool = True
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if padded and stride == 1 else 0
        self.conv = nn.Conv2d(in_channels, out_channels, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, H, W) → (N, out_channels, H', W'), not negative."""
        return F.relu(self.bn(self.conv(x)))


class Block(nn.Module):
    """Parallel chains of convolutions whose outputs are concatenated.

    Args:
        in_channels: channels of the input.
        branches: layers (out_channels, kernel) of each chain. Two kernels in a last layer are two parallel
            convolutions. The chain "_pool" starts with a 3×3 pool.
        stride: of each last layer; 2 also appends the max-pooled input.
        max_pool: "_pool" starts with a max pool; else with an average pool.
    """

    def __init__(
        self, in_channels: int, branches: Mapping[str, list[tuple]], stride: int = 1, max_pool: bool = False
    ) -> None:
        super().__init__()
        self.stride, self.max_pool = stride, max_pool
        self.chains: list[list[list[str]]] = []
        """Names of the modules of each chain, layer by layer."""
        for branch, layers in branches.items():
            channels, chain = in_channels, []
            for number, (width, *kernels) in enumerate(layers, start=1):
                name = f"branch{branch}_{number}" if len(layers) > 1 else f"branch{branch}"
                names = [f"{name}{letter}" for letter in "ab"] if len(kernels) > 1 else [name]
                for full_name, kernel in zip(names, kernels, strict=True):
                    last = number == len(layers)
                    self.add_module(full_name, ConvNorm(channels, width, kernel, stride if last else 1))
                chain.append(names)
                channels = width
            self.chains.append(chain)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, H, W) → (N, C, H, W), or (N, C, ⌊(H − 1)/2⌋, ⌊(W − 1)/2⌋) with stride 2."""
        outputs = []
        for *chain, last in self.chains:
            features = self._pool(x) if last == ["branch_pool"] else x
            for (name,) in chain:
                features = self.get_submodule(name)(features)
            outputs += [self.get_submodule(name)(features) for name in last]
        if self.stride == 2:
            outputs.append(F.max_pool2d(x, 3, stride=2))
        return torch.cat(outputs, dim=1)

    def _pool(self, x: torch.Tensor) -> torch.Tensor:
        if self.max_pool:
            return F.max_pool2d(x, 3, stride=1, padding=1)
        return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)


def _build_block_a(in_channels: int, pool_features: int) -> Block:
    """35×35 grid; 224 + pool_features channels out."""
    double = [(64, _1X1), (96, _3X3), (96, _3X3)]
    pooled = [(pool_features, _1X1)]
    return Block(in_channels, {"1x1": [(64, _1X1)], "5x5": [(48, _1X1), (64, _5X5)], "3x3dbl": double, "_pool": pooled})


def _build_block_b(width: int) -> Block:
    """17×17 grid, 7×7 convolutions factored into 1×7 and 7×1; 768 channels in and out."""
    single = [(width, _1X1), (width, _1X7), (192, _7X1)]
    double = [(width, _1X1), (width, _7X1), (width, _1X7), (width, _7X1), (192, _1X7)]
    return Block(768, {"1x1": [(192, _1X1)], "7x7": single, "7x7dbl": double, "_pool": [(192, _1X1)]})


def _build_block_c(in_channels: int, max_pool: bool = False) -> Block:
    """8×8 grid, 3×3 convolutions spread into parallel 1×3 and 3×1; 2048 channels out."""
    single = [(384, _1X1), (384, _1X3, _3X1)]
    double = [(448, _1X1), (384, _3X3), (384, _1X3, _3X1)]
    branches: dict[str, list[tuple]] = {"1x1": [(320, _1X1)], "3x3": single, "3x3dbl": double, "_pool": [(192, _1X1)]}
    return Block(in_channels, branches, max_pool=max_pool)


def resize_bilinear_tf1(images: torch.Tensor, size: int) -> torch.Tensor:
    """Bilinear resize of TensorFlow 1, (N, C, H, W) → (N, C, size, size).

    Pixel i samples the source at i·source/size, without half-pixel shift.
    """
    rows = _interpolation_matrix(images.shape[-2], size).to(images)
    columns = _interpolation_matrix(images.shape[-1], size).to(images)
    return rows @ images @ columns.T


def _interpolation_matrix(source: int, size: int) -> torch.Tensor:
    positions = torch.arange(size, dtype=torch.float64) * (source / size)
    low = positions.floor().long().clamp(max=source - 1)
    high = (low + 1).clamp(max=source - 1)
    fraction = positions - low
    matrix = torch.zeros(size, source, dtype=torch.float64)
    matrix[torch.arange(size), low] += 1 - fraction
    matrix[torch.arange(size), high] += fraction
    return matrix
