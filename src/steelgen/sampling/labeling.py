"""Labeling of images generated without masks."""

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
"""Source name of predicted masks."""


@dataclass(frozen=True)
class LabeledImage:
    """Predicted mask of an image and its confidence."""

    mask: SourceMask
    confidence: NDArray[np.float32]
    """(H, W), the probability of each pixel's class."""

    @property
    def mean_confidence(self) -> float:
        """Mean over pixels; pairs are dropped by it."""
        return float(self.confidence.mean())


class ImageLabeler:
    """Labels generated images at the segmenter's training scale.

    Args:
        config: segmenter and threshold.
        geometry: geometry of the images.

    Raises:
        InputError: if the segmenter's folder cannot be loaded.
    """

    def __init__(self, config: LabelsSection, geometry: CropGeometry) -> None:
        self.config = config
        self._labeler: Labeler = load_labeler(config.segmenter)
        self.info = self._labeler.info
        # The segmenter's crop_size is in micrograph pixels; convert it to image pixels.
        crop_size = self._labeler.config.crop_size * geometry.image_size / geometry.crop_size
        self._crop_size = max(1, round(crop_size))
        self._digest = hash_segmenter(config.segmenter)

    def label(self, image: NDArray[np.uint8]) -> LabeledImage:
        """Labels an (H, W) or (H, W, 3) uint8 image."""
        settings = self._labeler.config
        image = to_channels(image, settings.in_channels)
        mask, confidence = label_by_windows(
            self._labeler.network, image, settings.image_size, self._crop_size, self.info.num_classes
        )
        return LabeledImage(SourceMask(mask, None, SEGMENTED), confidence)

    def describe(self, labeled: LabeledImage) -> dict[str, Any]:
        """Returns the entries of metadata.jsonl for a labeled image."""
        return {
            "segmenter": str(self.config.segmenter),
            "segmenter_sha256": self._digest,
            "confidence": round(labeled.mean_confidence, 6),
        }


def hash_segmenter(folder: Path) -> str:
    """Returns the SHA-256 of a segmenter's weights in hex; "" if there are none."""
    path = folder / "segmenter.safetensors"
    return hash_files(path) if path.is_file() else ""
