"""Measurement of generated images during training: distance to held-out images, and copies of training images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from numpy.typing import NDArray

from steelgen.config.sample import LabelsSection
from steelgen.config.train import RunConfig
from steelgen.data.crops import Micrographs, cut_crops, image_to_tensor, look_up_conditions, tensor_to_image
from steelgen.data.images import save_image
from steelgen.data.sheets import build_sheet
from steelgen.errors import InputError
from steelgen.evaluation.copy_search import CopySearch, Match
from steelgen.evaluation.features import build_extractor, compute_features
from steelgen.evaluation.fidelity import compute_frechet_distance, compute_kid
from steelgen.evaluation.iou import compute_confusion, compute_mean_iou
from steelgen.evaluation.memorization import COPY_RATIO
from steelgen.generators import DrawRequest, Generator
from steelgen.generators.drawing import draw_example
from steelgen.sampling.labeling import ImageLabeler

_SEED = 0
BATCH_SIZE = 16
"""Images generated at once by each process."""
_MAX_SEARCH_SIZE = 32
"""Maximum edge of images in the copy search, in pixels."""
_SHOWN_PAIRS = 8


class Measurement:
    """Generates images for held-out masks and compares them with held-out and training images.

    Processes share the images; the first compares them. The run's seed has no effect, so that runs are comparable.

    Args:
        labeler: segmenter that looks for the masks in the generated images; see `load_mask_judge`.
    """

    def __init__(
        self,
        config: RunConfig,
        generator: Generator,
        held_out: Micrographs,
        training: Micrographs,
        accelerator: Accelerator,
        labeler: ImageLabeler | None = None,
    ) -> None:
        self._labeler = labeler
        self._options = config.measurement
        self._folder = config.run_dir / "previews"
        self._generator = generator
        self._accelerator = accelerator
        self._real, _ = cut_crops(held_out, generator.geometry, self._options.num_images, _SEED)
        self._given, self._masks = cut_crops(held_out.inputs, generator.geometry, self._options.num_images, _SEED)
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
        """Measures kid, fd_efficientnet_lite0, copies, copy_ratio (the median of d1/d2), the floors of real images, and
        with a segmenter mask_iou.

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
            if self._labeler:
                values["mask_iou"] = self._compute_mask_iou(images, self._labeler)
            picture = _show_closest(searched, matches, self._search)
        return broadcast_object_list([values])[0], picture

    def save_picture(self, step: int, picture: NDArray[np.uint8]) -> Path:
        """Writes previews/copies-<step>.png and returns its path."""
        path = self._folder / f"copies-{step:06d}.png"
        save_image(path, picture)
        return path

    def _compute_mask_iou(self, images: NDArray[np.uint8], labeler: ImageLabeler) -> float:
        predicted = np.stack([labeler.label(image).mask.mask for image in images])
        confusion = compute_confusion(self._masks, predicted, labeler.info.num_classes, labeler.info.ignore_index)
        return float(compute_mean_iou(confusion))

    def _generate(self) -> NDArray[np.uint8]:
        """All images, (N, S, S) or (N, S, S, 3); each process generates its share."""
        accelerator = self._accelerator
        own = range(accelerator.process_index, len(self._masks), accelerator.num_processes)
        generated = torch.zeros(self._real.shape, device=accelerator.device)
        for start in range(0, len(own), BATCH_SIZE):
            seeds = list(own[start : start + BATCH_SIZE])
            masks = torch.from_numpy(self._masks[seeds].astype(np.int64))
            given = torch.stack([image_to_tensor(image) for image in self._given[seeds]])
            with accelerator.autocast():
                told = None if self._conditions is None else self._conditions[seeds]
                request = DrawRequest(seeds, masks, given, self._options.solver, conditions=told)
                images = draw_example(self._generator, request).images
            assert images is not None, "generators of masks alone are not measured"
            generated[seeds] = torch.from_numpy(np.stack([tensor_to_image(image) for image in images])).to(generated)
        return accelerator.reduce(generated, "sum").to(torch.uint8).cpu().numpy()


def load_mask_judge(config: RunConfig, generator: Generator) -> ImageLabeler | None:
    """Loads the segmenter of measurement.segmenter; None without one.

    Raises:
        InputError: if it cannot be loaded, has other classes than the generator, or the generator makes its own masks.
    """
    folder = config.measurement.segmenter
    if folder is None or config.measurement.every is None:
        return None
    if "masks" in generator.makes:
        raise InputError(
            f"measurement.segmenter: not applicable to generators of kind {generator.kind}, which make masks"
        )
    labeler = ImageLabeler(LabelsSection(segmenter=folder), generator.geometry)
    if labeler.info.class_names != generator.info.class_names:
        names = [", ".join(info.class_names) or "none" for info in (labeler.info, generator.info)]
        raise InputError(f"{folder}: the segmenter's classes are {names[0]}, those of the masks {names[1]}")
    return labeler


def _share_copies(matches: list[Match]) -> float:
    return float(np.mean([match.ratio < COPY_RATIO for match in matches]))


def _show_closest(images: NDArray[np.uint8], matches: list[Match], search: CopySearch) -> NDArray[np.uint8]:
    order = np.argsort([match.ratio for match in matches])[:_SHOWN_PAIRS]
    size = images.shape[1]
    return build_sheet(
        [[images[index] for index in order], [search.cut(matches[index], size) for index in order]], tile=max(96, size)
    )
