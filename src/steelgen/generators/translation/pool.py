"""Earlier generated images, which keep discriminators from forgetting.

Source: Shrivastava et al. 2017, "Learning from Simulated and Unsupervised Images through Adversarial Training" (arXiv
1612.07828), section 2.3, as in Zhu et al. 2017 (arXiv 1703.10593), section 4.
"""

from __future__ import annotations

import torch
from torch import Tensor

from steelgen.generators import Gather

POOL_NUMBERS = 2
"""Uniform random numbers per image."""


class ImagePool:
    """The same pool in all processes; it changes only between steps.

    Args:
        size: images in the pool.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._images: Tensor | None = None
        self._pending: list[tuple[Tensor, Tensor]] = []

    def choose(self, images: Tensor, numbers: Tensor) -> Tensor:
        """Replaces about half of the images by earlier ones, once the pool is full.

        Args:
            images: (N, C, H, W) generated in this step, which `update` adds in place of those taken.
            numbers: (N, POOL_NUMBERS) in [0, 1); the only source of randomness.
        """
        self._pending.append((images.detach(), numbers))
        if self._images is None or len(self._images) < self._size:
            return images
        self._images = self._images.to(images)
        return torch.where((numbers[:, 0] < 0.5)[:, None, None, None], self._images[self._find_places(numbers)], images)

    def update(self, gather: Gather) -> None:
        """Adds the images of a step from all processes."""
        images, numbers = (gather(torch.cat(parts)) for parts in zip(*self._pending, strict=True))
        self._pending = []
        if self._images is None or len(self._images) < self._size:
            known = images if self._images is None else torch.cat([self._images.to(images), images])
            self._images = known[: self._size].contiguous()
            return
        # Those not taken go to one more place, which is dropped: their number is known only on the device.
        places = torch.where(numbers[:, 0] < 0.5, self._find_places(numbers), self._size)
        self._images = torch.cat([self._images, images[:1]]).index_put((places,), images)[: self._size].contiguous()

    def tensor(self) -> Tensor | None:
        """Returns the images (M, C, H, W), up to the pool's size; None before the first step."""
        return self._images

    def restore(self, images: Tensor | None) -> None:
        """Restores the result of `tensor`."""
        self._images = images

    def _find_places(self, numbers: Tensor) -> Tensor:
        return (numbers[:, 1] * self._size).long()
