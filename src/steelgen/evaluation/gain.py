"""Gain of a pair: agreement of what a segmenter would learn from it with what it would learn from held-out crops.

One step along the gradient of a pair lowers the loss of held-out crops, to first order, by the product of the two
gradients (Pruthi et al. 2020, arXiv 2002.08484; Killamsetty et al. 2021, arXiv 2103.00123); their cosine, between -1
and 1, does not depend on how far the segmenter is. Only the last layer is compared. A segmenter that has learned what
the real crops teach has nothing but noise in their gradient, so train it briefly.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import nn

from steelgen.data.crops import image_to_tensor
from steelgen.errors import InputError


class GainJudge:
    """Measures the agreement of pairs with held-out crops; may be used by several threads.

    The loss is the cross-entropy with class weights.

    Args:
        segmenter: (N, C, H, W) in [-1, 1] → logits (N, num_classes, H, W); is not changed.
        images: N held-out crops (S, S) or (S, S, 3) uint8.
        masks: their N masks (S, S) of class indices or ignore_index.
        class_weights: (num_classes,).
        ignore_index: mask value of ignored pixels.

    Raises:
        InputError: if the network has no last layer to compare.
    """

    def __init__(
        self,
        segmenter: nn.Module,
        images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
        masks: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
        class_weights: torch.Tensor,
        ignore_index: int = 255,
    ) -> None:
        self._network = copy.deepcopy(segmenter).eval().requires_grad_(False)
        self._parameters = list(find_last_layer(self._network, len(class_weights)).requires_grad_().parameters())
        self._class_weights, self._ignore_index = class_weights.to(self._parameters[0].device), ignore_index
        gradients = [self.differentiate(image, mask) for image, mask in zip(images, masks, strict=True)]
        self._wanted = torch.stack(gradients).sum(dim=0)

    def measure(self, image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> float:
        """Computes the cosine of the gradients of a pair and of all held-out crops; 0 if a gradient is zero.

        Args:
            image: (H, W) or (H, W, 3) uint8.
            mask: (H, W) class indices or ignore_index.
        """
        return float(F.cosine_similarity(self.differentiate(image, mask), self._wanted, dim=0))

    def differentiate(self, image: NDArray[np.uint8], mask: NDArray[np.uint8]) -> torch.Tensor:
        """Computes the gradient of the loss of a pair, summed over its pixels, by the P parameters of the last layer.

        Returns:
            (P,) float32; 0 if all pixels are ignored.
        """
        device = self._class_weights.device
        with torch.enable_grad():
            logits = self._network(image_to_tensor(image)[None].to(device)).float()
            true = torch.from_numpy(mask.astype(np.int64))[None].to(device)
            loss = F.cross_entropy(logits, true, self._class_weights, ignore_index=self._ignore_index, reduction="sum")
            return torch.cat([part.flatten() for part in torch.autograd.grad(loss, self._parameters)])


def find_last_layer(network: nn.Module, num_classes: int) -> nn.Conv2d:
    """Returns the last convolution to `num_classes` channels.

    Raises:
        InputError: if there is none.
    """
    layers = [each for each in network.modules() if isinstance(each, nn.Conv2d) and each.out_channels == num_classes]
    if not layers:
        raise InputError(f"filter.gain: the network of filter.segmenter has no convolution to {num_classes} classes")
    return layers[-1]
