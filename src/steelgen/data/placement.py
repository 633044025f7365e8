"""Placement of crops in micrographs, and resampling of images, masks and instance ids."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field

from steelgen.config.base import FactorRange


@dataclass(frozen=True)
class CropGeometry:
    """Size of crops: a square of `crop_size` micrograph pixels, resized to `image_size`."""

    image_size: Annotated[int, Field(ge=1, le=8192)]
    """Edge of the network's images in pixels."""
    crop_size: Annotated[int, Field(ge=1, le=65536)]
    """Edge of the square cut from the micrograph, in micrograph pixels."""
    scale_range: FactorRange = (1.0, 1.0)
    """Range of a log-uniform random factor for crop_size; (1, 1) keeps the size constant."""
    in_channels: Annotated[int, Field(ge=1, le=3)] = 1
    """1 for gray micrographs, 3 for RGB."""

    def scale_pixel_size(self, pixel_size_um: float | None) -> float | None:
        """Converts the pixel size of a micrograph in µm to that of the network's images; None stays None."""
        return None if pixel_size_um is None else pixel_size_um * self.crop_size / self.image_size


@dataclass(frozen=True)
class Variation:
    """Random changes of crops in addition to flips and quarter turns; none by default."""

    any_angle: bool = False
    """Rotate each crop by a random angle; beyond the micrograph, its mirror image is used."""
    brightness: float = 0.0
    """Largest shift of all gray levels up or down, as a share of the gray range; 0 disables it."""
    contrast: float = 0.0
    """Scale contrast about the crop's mean by a log-uniform random factor from exp(±contrast); 0 disables it."""


@dataclass(frozen=True)
class Placement:
    """Position and random changes of one crop, shared by its image, mask and instance ids.

    Pixels beyond the edge of the micrograph are reflected.
    """

    top: int
    left: int
    edge: int
    """Edge in micrograph pixels."""
    size: int
    """Edge of the resized crop in pixels."""
    symmetry: int
    """Element 0-7 of the symmetry group of the square, see `apply_symmetry`."""
    angle: float = 0.0
    """Rotation about the center in radians."""
    brightness: float = 0.0
    contrast: float = 1.0

    def cut_image(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Cuts (size, size) or (size, size, 3) uint8 from an (H, W) or (H, W, 3) image."""
        crop = apply_symmetry(resize_image(self._window(image, order=1), self.size, self.size), self.symmetry)
        if self.brightness == 0 and self.contrast == 1:
            return crop
        mean = crop.mean()
        varied = (crop - mean) * self.contrast + mean + 255 * self.brightness
        return varied.clip(0, 255).round().astype(np.uint8)

    def cut_mask(self, mask: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Cuts (size, size) from (H, W) class indices."""
        return apply_symmetry(resize_mask(self._window(mask, order=0), self.size, self.size), self.symmetry)

    def cut_share(self, shown: NDArray[np.uint8], mirrored: bool) -> NDArray[np.float32]:
        """Cuts (size, size) in [0, 1], the covered fraction of each pixel, from (H, W) of 0 and 1.

        Args:
            mirrored: reflect pixels beyond the edge; otherwise they are 0, for a single island.
        """
        placement = self
        if not mirrored:
            shown, placement = (
                _lift_out(shown, self.top, self.left, self.edge),
                replace(self, top=self.edge, left=self.edge),
            )
        window = Image.fromarray(placement._window(shown * np.uint8(255), order=1))
        method = Image.Resampling.BOX if self.edge > self.size else Image.Resampling.BILINEAR
        resized = np.asarray(window.resize((self.size, self.size), method), np.float32) / 255
        return apply_symmetry(resized, self.symmetry)

    def cut_instances(self, instances: NDArray[np.uint16]) -> NDArray[np.int32]:
        """Cuts (size, size) from (H, W) instance ids, by nearest neighbor."""
        window = Image.fromarray(self._window(instances, order=0).astype(np.int32))
        resized = window.resize((self.size, self.size), Image.Resampling.NEAREST)
        return apply_symmetry(np.asarray(resized), self.symmetry)

    def _window(self, array: NDArray[Any], order: int) -> NDArray[Any]:
        if self.angle == 0:
            bottom, right_end = self.top + self.edge, self.left + self.edge
            if self.top < 0 or self.left < 0 or bottom > array.shape[0] or right_end > array.shape[1]:
                rows = _reflect(self.top, self.edge, array.shape[0])
                return array[rows[:, None], _reflect(self.left, self.edge, array.shape[1])]
            return np.ascontiguousarray(array[self.top : bottom, self.left : right_end])
        from scipy.ndimage import map_coordinates

        offsets = np.arange(self.edge) - (self.edge - 1) / 2
        down, right = np.meshgrid(offsets, offsets, indexing="ij")
        sine, cosine = np.sin(self.angle), np.cos(self.angle)
        middle = (self.edge - 1) / 2
        rows = self.top + middle + cosine * down + sine * right
        columns = self.left + middle - sine * down + cosine * right
        channels = array[..., None] if array.ndim == 2 else array
        turned = [
            map_coordinates(channels[..., index], (rows, columns), order=order, mode="reflect")
            for index in range(channels.shape[-1])
        ]
        return turned[0] if array.ndim == 2 else np.stack(turned, axis=-1)


def sample_placement(
    height: int,
    width: int,
    geometry: CropGeometry,
    rng: np.random.Generator,
    augment: bool | str,
    variation: Variation | None = None,
) -> Placement:
    """Samples a crop of a micrograph of `height` x `width` pixels.

    Args:
        augment: True selects one of the 8 flips and rotations, "mirror" a flip with probability 1/2, False neither.
    """
    low, high = np.log(geometry.scale_range)
    # For micrographs smaller than the crop, the largest square.
    edge = min(round(geometry.crop_size * float(np.exp(rng.uniform(low, high)))), height, width)
    top = int(rng.integers(height - edge + 1))
    left = int(rng.integers(width - edge + 1))
    symmetry = sample_symmetry(augment, rng)
    if variation is None:
        return Placement(top, left, edge, geometry.image_size, symmetry)
    return Placement(
        top,
        left,
        edge,
        geometry.image_size,
        symmetry,
        angle=float(rng.uniform(0, 2 * np.pi)) if variation.any_angle else 0.0,
        brightness=float(rng.uniform(-1, 1)) * variation.brightness,
        contrast=float(np.exp(rng.uniform(-1, 1) * variation.contrast)),
    )


def place_around(
    center: tuple[int, int], geometry: CropGeometry, rng: np.random.Generator, augment: bool | str, variation: Variation
) -> Placement:
    """Samples a crop around a center, which may extend beyond the micrograph; otherwise like `sample_placement`."""
    low, high = np.log(geometry.scale_range)
    edge = max(1, round(geometry.crop_size * float(np.exp(rng.uniform(low, high)))))
    return Placement(
        center[0] - edge // 2,
        center[1] - edge // 2,
        edge,
        geometry.image_size,
        sample_symmetry(augment, rng),
        angle=float(rng.uniform(0, 2 * np.pi)) if variation.any_angle else 0.0,
        brightness=float(rng.uniform(-1, 1)) * variation.brightness,
        contrast=float(np.exp(rng.uniform(-1, 1) * variation.contrast)),
    )


def _lift_out(array: NDArray[np.uint8], top: int, left: int, edge: int) -> NDArray[np.uint8]:
    """(3 · edge, 3 · edge) around a window, which lies in its middle; 0 beyond the array."""
    around = np.zeros((3 * edge, 3 * edge), np.uint8)
    first_row, first_column = max(0, top - edge), max(0, left - edge)
    inside = array[first_row : max(0, top + 2 * edge), first_column : max(0, left + 2 * edge)]
    row, column = first_row - (top - edge), first_column - (left - edge)
    around[row : row + inside.shape[0], column : column + inside.shape[1]] = inside
    return around


def _reflect(start: int, count: int, length: int) -> NDArray[np.intp]:
    """Computes (count,) indices from `start` into an axis of `length`, reflected at its ends with the edge repeated."""
    folded = np.arange(start, start + count) % (2 * length)
    return np.where(folded < length, folded, 2 * length - 1 - folded)


def resize_image(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resizes an image to (height, width): by area average if smaller, bicubic if larger."""
    if image.shape[:2] == (height, width):
        return image
    method = Image.Resampling.BOX if image.shape[0] > height else Image.Resampling.BICUBIC
    return np.asarray(Image.fromarray(image).resize((width, height), method))


def resize_mask(mask: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resizes a mask to (height, width); each pixel gets the class that covers most of its area.

    Nearest-neighbor would drop thin films at random; this keeps a film that covers half a pixel.
    """
    if mask.shape == (height, width):
        return mask
    if mask.shape[0] < height:
        return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
    present = np.unique(mask)
    shares = [
        np.asarray(Image.fromarray((mask == index).astype(np.float32)).resize((width, height), Image.Resampling.BOX))
        for index in present
    ]
    return present[np.argmax(shares, axis=0)]


def scale_whole(mask: NDArray[np.uint8], geometry: CropGeometry) -> NDArray[np.uint8]:
    """Resizes a whole mask to `find_whole_size`."""
    return resize_mask(mask, *find_whole_size(mask.shape, geometry))


def find_whole_size(shape: tuple[int, ...], geometry: CropGeometry) -> tuple[int, int]:
    """Returns (height, width) of a micrograph at the scale of its crops: times image_size / crop_size, but not below
    image_size."""
    factor = geometry.image_size / geometry.crop_size
    height, width = (max(geometry.image_size, round(edge * factor)) for edge in shape[:2])
    return height, width


def sample_symmetry(augment: bool | str, rng: np.random.Generator) -> int:
    """Samples an element 0-7 of the symmetry group of the square; see `augment` of `sample_placement`."""
    if augment == "mirror":
        return 4 * int(rng.integers(2))
    return int(rng.integers(8)) if augment else 0


def apply_symmetry(array: NDArray[Any], symmetry: int) -> NDArray[Any]:
    """Applies element 0-7 of the symmetry group of the square: `symmetry % 4` quarter turns, then a flip for 4-7."""
    array = np.rot90(array, symmetry % 4)
    return np.ascontiguousarray(np.flip(array, axis=1) if symmetry >= 4 else array)
