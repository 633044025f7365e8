"""Rendering of masks into images: a small forward model of the scanning electron microscope.

Source: the steps of Cizmar et al. 2008, "Simulated SEM images for resolution measurement", Scanning 30, 381-391 (shape,
edge effect, point spread, noise), with a charging gradient and uneven scan lines. Simulated images are a source for
translation (`generator.kind` translation), which adds what this model leaves out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steelgen.data.cache import Micrographs
from steelgen.data.folder import DatasetInfo, save_dataset_info, save_mask, save_metadata
from steelgen.data.images import save_micrograph
from steelgen.data.instances import compute_instance_edges
from steelgen.errors import InputError
from steelgen.files import new_folder

_MAX_EFFECT = 1000.0


@dataclass(frozen=True)
class RenderOptions:
    """The forward model; gray levels and their changes are shares of the gray range. Each effect is off at 0."""

    levels: tuple[float, ...]
    """Gray level of each class, from 0 (black) to 1 (white)."""
    edge: float = 0.1
    """Brightening at boundaries between classes, where more secondary electrons escape."""
    edge_width: float = 1.5
    """Distance from a boundary at which the brightening has fallen to 1/e, px."""
    blur: float = 0.8
    """Standard deviation of the point spread, px."""
    charging: float = 0.05
    """Largest difference of brightness between the middle of the image and its border, a ramp of random direction."""
    dose: float = 300.0
    """Electrons of a white pixel: Poisson noise has the variance level / dose."""
    noise: float = 0.03
    """Standard deviation of Gaussian noise of the detector."""
    scan_lines: float = 0.01
    """Standard deviation of the brightness of rows."""

    def check(self, info: DatasetInfo) -> None:
        """Raises InputError if a value is out of range or the levels do not fit the classes."""
        if len(self.levels) != info.num_classes:
            raise InputError(f"levels: {len(self.levels)} gray levels for {info.num_classes} classes")
        if not all(0 <= level <= 1 for level in self.levels):
            raise InputError(f"levels {', '.join(f'{level:g}' for level in self.levels)}: must be from 0 to 1")
        if not 0 < self.edge_width <= _MAX_EFFECT:
            raise InputError(f"edge_width {self.edge_width:g}: must be above 0")
        for name in ("edge", "blur", "charging", "noise", "scan_lines"):
            if not 0 <= getattr(self, name) <= _MAX_EFFECT:
                raise InputError(f"{name} {getattr(self, name):g}: must be at least 0; 0 disables it")
        if not 0 <= self.dose <= 1e9:
            raise InputError(f"dose {self.dose:g}: must be at least 0; 0 disables Poisson noise")


def render_mask(mask: NDArray[np.uint8], options: RenderOptions, rng: np.random.Generator) -> NDArray[np.uint8]:
    """Renders a mask.

    Args:
        mask: (H, W) class indices; other values, which are ignored, get the mean level.

    Returns:
        (H, W) uint8.
    """
    from scipy.ndimage import distance_transform_edt, gaussian_filter

    levels = np.full(256, np.mean(options.levels))
    levels[: len(options.levels)] = options.levels
    image = levels[mask]
    if options.edge:
        borders = compute_instance_edges(mask)
        if borders.any():
            image = image + options.edge * np.exp(-distance_transform_edt(~borders) / options.edge_width)
    if options.blur:
        image = gaussian_filter(image, options.blur, mode="reflect")
    if options.charging:
        angle, strength = rng.uniform(0, 2 * np.pi), options.charging * rng.uniform(-1, 1)
        down, right = (np.linspace(-1, 1, edge) for edge in mask.shape)
        image = image + strength * (np.sin(angle) * down[:, None] + np.cos(angle) * right[None]) / np.sqrt(2)
    if options.dose:
        image = rng.poisson(options.dose * image.clip(0)) / options.dose
    if options.noise:
        image = image + rng.normal(0, options.noise, mask.shape)
    if options.scan_lines:
        image = image + rng.normal(0, options.scan_lines, (mask.shape[0], 1))
    return (255 * image.clip(0, 1)).round().astype(np.uint8)


def measure_levels(micrographs: Micrographs) -> tuple[float, ...]:
    """Measures the mean gray level of each class, from 0 to 1.

    Raises:
        InputError: if there are no classes, or one does not occur.
    """
    info = micrographs.info
    if not info.num_classes:
        raise InputError(f"{info.name}: has no masks to measure the gray levels of classes")
    sums, counts = np.zeros(256), np.zeros(256)
    for image, mask in zip(micrographs.images, micrographs.masks, strict=True):
        counts += np.bincount(mask.ravel(), minlength=256)
        sums += np.bincount(mask.ravel(), weights=image.ravel(), minlength=256)
    for index, name in enumerate(info.class_names):
        if not counts[index]:
            raise InputError(f"{info.name}: class {name!r} does not occur, so that its gray level cannot be measured")
    return tuple(float(sums[index] / counts[index] / 255) for index in range(info.num_classes))


def render_dataset(
    masks: Iterable[tuple[str, NDArray[np.uint8]]],
    count: int,
    info: DatasetInfo,
    out: Path,
    options: RenderOptions,
    seed: int = 0,
    report: Callable[[int, int], None] | None = None,
) -> None:
    """Renders masks into the training split of a new dataset folder, with the masks beside the images.

    Args:
        masks: (name, (H, W) class indices) each.
        count: number of masks.
        seed: with the number of a mask determines all randomness of its image.

    Raises:
        InputError: if an option is out of range or `out` is in use.
    """
    options.check(info)
    rows = []
    with new_folder(out) as working:
        for number, (name, mask) in enumerate(masks):
            file = f"{number:06d}.png"
            save_micrograph(
                working / "train/images" / file, render_mask(mask, options, np.random.default_rng((seed, number)))
            )
            save_mask(working / "train/masks" / file, mask, info.palette)
            rows.append({"file_name": f"train/images/{file}", "layout": name, "synthetic": True})
            if report:
                report(number + 1, count)
        save_metadata(working, rows)
        save_dataset_info(
            working, info.model_copy(update={"name": out.resolve().name, "source": "rendered by steelgen"})
        )
