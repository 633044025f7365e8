"""Gray levels, edges, and textures at several scales, the features of interactive pixel classifiers."""

from __future__ import annotations

import inspect

import numpy as np
import torch
from torch import Tensor, nn


class MultiscaleFeatures(nn.Module):
    """`skimage.feature.multiscale_basic_features` of each image.

    At every scale these are the smoothed gray level, its gradient, and the eigenvalues of its Hessian; RGB images have
    them per channel.

    Args:
        sigma_max: largest standard deviation of the Gaussian filters, px; the smallest is 0.5.
    """

    stride = 1

    def __init__(self, sigma_max: float) -> None:
        super().__init__()
        self._sigma_max = sigma_max

    def forward(self, images: Tensor) -> list[Tensor]:
        """(N, C, H, W) in [-1, 1] → one map (N, features, H, W)."""
        from skimage.feature import multiscale_basic_features

        # scikit-image 0.26, which needs Python 3.11, renamed the argument.
        named = inspect.signature(multiscale_basic_features).parameters
        threads = "workers" if "workers" in named else "num_workers"
        options = {"sigma_max": self._sigma_max, "channel_axis": 0, threads: 1}
        levels = ((images.cpu().numpy() + 1) / 2).astype(np.float32)
        features = [multiscale_basic_features(image, **options) for image in levels]
        return [torch.from_numpy(np.stack(features)).movedim(3, 1).to(images)]
