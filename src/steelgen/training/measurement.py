"""Measurement of generated images during training: distance to held-out images, and copies of training images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray

from steelgen.config.train import RunConfig
from steelgen.data.crops import Micrographs, cut_crops, look_up_conditions, tensor_to_image
from steelgen.data.images import save_image
from steelgen.data.sheets import build_sheet
from steelgen.evaluation.copy_search import CopySearch, Match
from steelgen.evaluation.features import build_extractor, compute_features
from steelgen.evaluation.fidelity import compute_frechet_distance, compute_kid
from steelgen.evaluation.memorization import COPY_RATIO
from steelgen.generators import Generator, draw_for_masks

_SEED = 0
BATCH_SIZE = 16
"""Images generated at once by each process."""
_MAX_SEARCH_SIZE = 32
"""Maximum edge of images in the copy search, in pixels."""
_SHOWN_PAIRS = 8


class Measurement:
    """Generates images for held-out masks and compares them with held-out and training images.

    Processes share the images; the first compares them. The run's seed has no effect, so that runs are comparable.
    """

    def __init__(
        self,
        config: RunConfig,
        generator: Generator,
        held_out: Micrographs,
        training: Micrographs,
        accelerator: Accelerator,
    ) -> None:
        self._options = config.measurement
        self._folder = config.run_dir / "previews"
        self._generator = generator
        self._accelerator = accelerator
        self._real, self._masks = cut_crops(held_out, generator.geometry, self._options.num_images, _SEED)
        self._conditions = look_up_conditions(held_out, generator.geometry, self._options.num_images, _SEED)
        self._search: CopySearch | None = None
        self._floors: dict[str, float] = {}
        if accelerator.is_main_process:
            self._extractor = build_extractor("efficientnet-lite0", device=str(accelerator.device))
            self._real_features = compute_features(self._real, self._extractor)
            size = min(_MAX_SEARCH_SIZE, generator.geometry.image_size)
            self._search = CopySearch(training, generator.geometry, size, str(accelerator.device))
            crops, _ = cut_crops(training, generator.geometry, self._options.num_images, _SEED)
            floor, _ = compute_kid(compute_features(crops, self._extractor), self._real_features)
            matches = self._search.find(self._real[: self._options.searched_images])
            self._floors = {"kid_floor": floor, "copies_floor": _share_copies(matches)}

    def measure(self) -> tuple[dict[str, float], NDArray[np.uint8] | None]:
        """Measures kid, fd_efficientnet_lite0, copies, copy_ratio (the median of d1/d2) and the floors of real images.

        Returns:
            The values, the same in all processes; in the first process also a picture of the generated images closest
            to the training set, each above its closest crop.
        """
        images = self._generate()
        values, picture = {}, None
        if self._search is not None:
            features = compute_features(images, self._extractor)
            kid, _ = compute_kid(features, self._real_features)
            searched = images[: self._options.searched_images]
            matches = self._search.find(searched)
            values = {
                "kid": kid,
                "fd_efficientnet_lite0": compute_frechet_distance(features, self._real_features),
                "copies": _share_copies(matches),
                "copy_ratio": float(np.median([match.ratio for match in matches])),
                **self._floors,
            }
            picture = _show_closest(searched, matches, self._search)
        return broadcast_object_list([values])[0], picture

    def save_picture(self, step: int, picture: NDArray[np.uint8]) -> Path:
        """Writes previews/copies-<step>.png and returns its path."""
        path = self._folder / f"copies-{step:06d}.png"
        save_image(path, picture)
        return path

    def _generate(self) -> NDArray[np.uint8]:
        """All images, (N, S, S) or (N, S, S, 3); each process generates its share."""
        accelerator = self._accelerator
        own = range(accelerator.process_index, len(self._masks), accelerator.num_processes)
        generated = torch.zeros(self._real.shape, device=accelerator.device)
        for start in range(0, len(own), BATCH_SIZE):
            seeds = list(own[start : start + BATCH_SIZE])
            masks = torch.from_numpy(self._masks[seeds].astype(np.int64))
            with accelerator.autocast():
                told = None if self._conditions is None else self._conditions[seeds]
                images = draw_for_masks(self._generator, masks, seeds, self._options.solver, conditions=told)
            generated[seeds] = torch.from_numpy(np.stack([tensor_to_image(image) for image in images])).to(generated)
        return accelerator.reduce(generated, "sum").to(torch.uint8).cpu().numpy()


def _share_copies(matches: list[Match]) -> float:
    return float(np.mean([match.ratio < COPY_RATIO for match in matches]))


def _show_closest(images: NDArray[np.uint8], matches: list[Match], search: CopySearch) -> NDArray[np.uint8]:
    order = np.argsort([match.ratio for match in matches])[:_SHOWN_PAIRS]
    size = images.shape[1]
    return build_sheet(
        [[images[index] for index in order], [search.cut(matches[index], size) for index in order]], tile=max(96, size)
    )
