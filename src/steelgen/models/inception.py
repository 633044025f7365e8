"""InceptionV3 in the form that the Fréchet Inception Distance is defined on.

The network of Szegedy et al. (2016, arXiv 1512.00567) as frozen on 2015-12-05, with the names of the state
dict that is published as pt_inception-2015-12-05. It differs from later InceptionV3s in its average pools,
which leave the padding out of the mean, in the max pool of the last block, and in its 1008 classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn


class InceptionFeatures(nn.Module):
    """The 2048 features of the last average pool: the space of FID (Heusel et al. 2017, arXiv 1706.08500)."""

    num_features = 2048
    input_size = 299

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = ConvNorm(3, 32, 3, stride=2)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, 3)
        self.Conv2d_2b_3x3 = ConvNorm(32, 64, 3, padding=1)
        self.Conv2d_3b_1x1 = ConvNorm(64, 80, 1)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, 3)
        self.Mixed_5b = BlockA(192, 32)
        self.Mixed_5c = BlockA(256, 64)
        self.Mixed_5d = BlockA(288, 64)
        self.Mixed_6a = ReductionA(288)
        self.Mixed_6b = BlockB(128)
        self.Mixed_6c = BlockB(160)
        self.Mixed_6d = BlockB(160)
        self.Mixed_6e = BlockB(192)
        self.Mixed_7a = ReductionB(768)
        self.Mixed_7b = BlockC(1280, pool="average")
        self.Mixed_7c = BlockC(2048, pool="max")
        self.fc = nn.Linear(2048, 1008)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) in [0, 1] → (N, 2048); resized to 299 px as TensorFlow 1 did."""
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
    """Convolution without bias, batch norm, ReLU."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_channels, eps=0.001)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, H, W) → (N, out_channels, H', W'), not negative."""
        return F.relu(self.bn(self.conv(x)))


class BlockA(nn.Module):
    """35×35 grid: 1×1, 5×5, double 3×3 and pooled branches; `224 + pool_features` channels out."""

    def __init__(self, in_channels: int, pool_features: int) -> None:
        super().__init__()
        self.branch1x1 = ConvNorm(in_channels, 64, 1)
        self.branch5x5_1 = ConvNorm(in_channels, 48, 1)
        self.branch5x5_2 = ConvNorm(48, 64, 5, padding=2)
        self.branch3x3dbl_1 = ConvNorm(in_channels, 64, 1)
        self.branch3x3dbl_2 = ConvNorm(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvNorm(96, 96, 3, padding=1)
        self.branch_pool = ConvNorm(in_channels, pool_features, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, H, W) → (N, 224 + pool_features, H, W)."""
        branches = [
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch_pool(_average_pool(x)),
        ]
        return torch.cat(branches, dim=1)


class ReductionA(nn.Module):
    """35×35 → 17×17 grid; `480 + in_channels` channels out."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branch3x3 = ConvNorm(in_channels, 384, 3, stride=2)
        self.branch3x3dbl_1 = ConvNorm(in_channels, 64, 1)
        self.branch3x3dbl_2 = ConvNorm(64, 96, 3, padding=1)
        self.branch3x3dbl_3 = ConvNorm(96, 96, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, H, W) → (N, in_channels + 480, ⌊(H − 1)/2⌋, ⌊(W − 1)/2⌋)."""
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], dim=1)


class BlockB(nn.Module):
    """17×17 grid: 7×7 convolutions factored into 1×7 and 7×1; 768 channels in and out."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        across: dict = {"kernel_size": (1, 7), "padding": (0, 3)}
        along: dict = {"kernel_size": (7, 1), "padding": (3, 0)}
        self.branch1x1 = ConvNorm(768, 192, 1)
        self.branch7x7_1 = ConvNorm(768, channels, 1)
        self.branch7x7_2 = ConvNorm(channels, channels, **across)
        self.branch7x7_3 = ConvNorm(channels, 192, **along)
        self.branch7x7dbl_1 = ConvNorm(768, channels, 1)
        self.branch7x7dbl_2 = ConvNorm(channels, channels, **along)
        self.branch7x7dbl_3 = ConvNorm(channels, channels, **across)
        self.branch7x7dbl_4 = ConvNorm(channels, channels, **along)
        self.branch7x7dbl_5 = ConvNorm(channels, 192, **across)
        self.branch_pool = ConvNorm(768, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, 768, H, W) → (N, 768, H, W)."""
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        branches = [
            self.branch1x1(x),
            self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
            self.branch7x7dbl_5(self.branch7x7dbl_4(double)),
            self.branch_pool(_average_pool(x)),
        ]
        return torch.cat(branches, dim=1)


class ReductionB(nn.Module):
    """17×17 → 8×8 grid; `512 + in_channels` channels out."""

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.branch3x3_1 = ConvNorm(in_channels, 192, 1)
        self.branch3x3_2 = ConvNorm(192, 320, 3, stride=2)
        self.branch7x7x3_1 = ConvNorm(in_channels, 192, 1)
        self.branch7x7x3_2 = ConvNorm(192, 192, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = ConvNorm(192, 192, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = ConvNorm(192, 192, 3, stride=2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, H, W) → (N, in_channels + 512, ⌊(H − 1)/2⌋, ⌊(W − 1)/2⌋)."""
        wide = self.branch7x7x3_4(self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x))))
        return torch.cat([self.branch3x3_2(self.branch3x3_1(x)), wide, F.max_pool2d(x, 3, stride=2)], dim=1)


class BlockC(nn.Module):
    """8×8 grid: 3×3 convolutions spread into 1×3 and 3×1 side by side; 2048 channels out."""

    def __init__(self, in_channels: int, pool: str) -> None:
        super().__init__()
        self.pool = pool
        self.branch1x1 = ConvNorm(in_channels, 320, 1)
        self.branch3x3_1 = ConvNorm(in_channels, 384, 1)
        self.branch3x3_2a = ConvNorm(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3_2b = ConvNorm(384, 384, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = ConvNorm(in_channels, 448, 1)
        self.branch3x3dbl_2 = ConvNorm(448, 384, 3, padding=1)
        self.branch3x3dbl_3a = ConvNorm(384, 384, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = ConvNorm(384, 384, (3, 1), padding=(1, 0))
        self.branch_pool = ConvNorm(in_channels, 192, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, in_channels, H, W) → (N, 2048, H, W)."""
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        pooled = F.max_pool2d(x, 3, stride=1, padding=1) if self.pool == "max" else _average_pool(x)
        branches = [
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(pooled),
        ]
        return torch.cat(branches, dim=1)


def resize_bilinear_tf1(images: torch.Tensor, size: int) -> torch.Tensor:
    """Bilinear resize of TensorFlow 1: pixel i samples the source at i·source/size, without half-pixel shift.

    Args:
        images: (N, C, H, W).
        size: edge of the result.

    Returns:
        (N, C, size, size).
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


def _average_pool(x: torch.Tensor) -> torch.Tensor:
    return F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
