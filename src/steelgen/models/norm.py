"""Group normalization in the precision of the features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """GroupNorm (Wu & He 2018, arXiv 1803.08494) that keeps bf16 and fp16 features in their type.

    CUDA's autocast would run it in fp32, and so keep an fp32 copy of every feature map for the backward pass; mean and
    variance are summed in fp32 by the kernels either way.
    """

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, ...) → the same shape and type."""
        if features.dtype == torch.float32:
            return super().forward(features)
        weight, bias = (None if tensor is None else tensor.to(features.dtype) for tensor in (self.weight, self.bias))
        with torch.autocast(features.device.type, enabled=False):
            return F.group_norm(features, self.num_groups, weight, bias, self.eps)
