"""Masks for generated images that have none: a segmenter trained on real micrographs labels them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelgen.config.sample import LabelsSection
from steelgen.data.images import to_channels
from steelgen.data.placement import CropGeometry
from steelgen.evaluation.segment import Labeler, label_by_windows, load_labeler
from steelgen.files import hash_files
from steelgen.sampling.masks import SourceMask

LOW_CONFIDENCE = "segmenter is not sure enough"
SEGMENTED = "segmenter"
"""The source of masks that were labeled."""


@dataclass(frozen=True)
class LabeledImage:
    """What the segmenter says of an image."""

    mask: SourceMask
    confidence: NDArray[np.float32]
    """(H, W), the probability of each pixel's class."""

    @property
    def mean_confidence(self) -> float:
        """By which a pair is kept or dropped."""
        return float(self.confidence.mean())


class ImageLabeler:
    """Labels the images of a generator, at the scale that the segmenter was trained at.

    Args:
        config: the segmenter and the threshold.
        geometry: of the images.

    Raises:
        InputError: if there is no segmenter.
    """

    def __init__(self, config: LabelsSection, geometry: CropGeometry) -> None:
        self.config = config
        self._labeler: Labeler = load_labeler(config.segmenter)
        self.info = self._labeler.info
        # The segmenter's crop size is in pixels of micrographs, of which an image's pixel may hold several.
        crop_size = self._labeler.config.crop_size * geometry.image_size / geometry.crop_size
        self._crop_size = max(1, round(crop_size))
        self._digest = hash_segmenter(config.segmenter)

    def label(self, image: NDArray[np.uint8]) -> LabeledImage:
        """Labels an (H, W) or (H, W, 3) uint8 image."""
        settings = self._labeler.config
        seen = to_channels(image, settings.in_channels)
        mask, confidence = label_by_windows(
            self._labeler.network, seen, settings.image_size, self._crop_size, self.info.num_classes
        )
        return LabeledImage(SourceMask(mask, None, SEGMENTED), confidence)

    def describe(self, labeled: LabeledImage) -> dict[str, Any]:
        """What a pair's row of metadata.jsonl says about its mask."""
        return {
            "segmenter": str(self.config.segmenter),
            "segmenter_sha256": self._digest,
            "confidence": round(labeled.mean_confidence, 6),
        }


def hash_segmenter(folder: Path) -> str:
    """SHA-256, in hex, of a segmenter's weights; "" where there are none."""
    path = folder / "segmenter.safetensors"
    return hash_files(path) if path.is_file() else ""
