"""Labeling of images generated without masks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from steelgen.config.learned import JointLabelsSection
from steelgen.config.sample import UNCHANGED, AnyLabelsSection, ChangeLabelsSection, LabelsSection
from steelgen.data.crops import image_to_tensor
from steelgen.data.folder import DatasetInfo
from steelgen.data.images import to_channels
from steelgen.data.palette import default_palette
from steelgen.data.placement import CropGeometry
from steelgen.errors import InputError
from steelgen.evaluation.labeler import load_labeler
from steelgen.evaluation.windows import label_by_windows
from steelgen.files import hash_files
from steelgen.generators import DrawRequest, Generator
from steelgen.generators.saved import hash_weights
from steelgen.sampling.change import compute_change, compute_levels
from steelgen.sampling.generate import prepare_generator
from steelgen.sampling.learned import check_scale
from steelgen.sampling.masks import SourceMask

SEGMENTED = "segmenter"
"""Source name of predicted masks."""


@dataclass(frozen=True)
class LabeledImage:
    """Predicted mask of an image and its confidence."""

    mask: SourceMask
    confidence: NDArray[np.float32]
    """(H, W), the probability of each pixel's class, or the share of the draws with it."""

    @property
    def mean_confidence(self) -> float:
        """Mean over pixels; pairs are dropped by it."""
        return float(self.confidence.mean())


class LabelSource(Protocol):
    """Labels generated images."""

    config: AnyLabelsSection
    info: DatasetInfo
    """Classes of the masks."""
    reason: str
    """Why images with a confidence below min_confidence are dropped."""

    def label(self, image: NDArray[np.uint8], source: NDArray[np.uint8] | None = None) -> LabeledImage:
        """Labels an (H, W) or (H, W, 3) uint8 image; may be called from several threads.

        Args:
            source: image that a translated one was made from, of the same size.
        """

    def describe(self, labeled: LabeledImage) -> dict[str, Any]:
        """Returns the entries of metadata.jsonl for a labeled image."""


def build_labeler(config: AnyLabelsSection, generator: Generator) -> LabelSource:
    """Builds the labeler of a config for the images of a generator.

    Raises:
        InputError: if it cannot be loaded, or labels at another scale.
    """
    if isinstance(config, JointLabelsSection):
        return JointLabeler(config, generator.geometry)
    if isinstance(config, ChangeLabelsSection):
        return ChangeLabeler(config, generator)
    return ImageLabeler(config, generator.geometry)


class ImageLabeler:
    """Labels generated images at the segmenter's training scale.

    Args:
        config: segmenter and threshold.
        geometry: geometry of the images.

    Raises:
        InputError: if the segmenter's folder cannot be loaded.
    """

    reason = "segmenter is not sure enough"

    def __init__(self, config: LabelsSection, geometry: CropGeometry) -> None:
        self.config: AnyLabelsSection = config
        self._folder = config.segmenter
        self._labeler = load_labeler(config.segmenter)
        self.info = self._labeler.info
        # The segmenter's crop_size is in micrograph pixels; convert it to image pixels.
        crop_size = self._labeler.config.crop_size * geometry.image_size / geometry.crop_size
        self._crop_size = max(1, round(crop_size))
        self._digest = hash_segmenter(config.segmenter)

    def label(self, image: NDArray[np.uint8], source: NDArray[np.uint8] | None = None) -> LabeledImage:
        """See `LabelSource.label`."""
        settings = self._labeler.config
        image = to_channels(image, settings.in_channels)
        mask, confidence = label_by_windows(
            self._labeler.network, image, settings.image_size, self._crop_size, self.info.num_classes
        )
        return LabeledImage(SourceMask(mask, None, SEGMENTED), confidence)

    def describe(self, labeled: LabeledImage) -> dict[str, Any]:
        """See `LabelSource.describe`."""
        return {
            "segmenter": str(self._folder),
            "segmenter_sha256": self._digest,
            "confidence": round(labeled.mean_confidence, 6),
        }


class JointLabeler:
    """Labels generated images by several masks drawn for each; see `JointLabelsSection`.

    Raises:
        InputError: if the generator cannot be loaded, makes no masks for images, or has another scale.
    """

    reason = "draws of the mask disagree"

    def __init__(self, config: JointLabelsSection, geometry: CropGeometry) -> None:
        self.config: AnyLabelsSection = config
        self._section = config
        self._generator = prepare_generator(config.generator)
        if "masks" not in self._generator.makes or "images" not in self._generator.takes:
            raise InputError(
                f"labels.generator: {config.generator} makes no masks for images; use one of kind joint_diffusion"
            )
        check_scale("labels.generator", config.generator, self._generator.geometry, geometry)
        self.info = self._generator.info
        self._digest = hash_weights(config.generator)
        self._lock = Lock()

    def label(self, image: NDArray[np.uint8], source: NDArray[np.uint8] | None = None) -> LabeledImage:
        """See `LabelSource.label`; the seeds are the same for every image."""
        shown = image_to_tensor(to_channels(image, self._generator.geometry.in_channels))
        seeds = range(self._section.draws)
        images = shown[None].expand(len(seeds), -1, -1, -1)
        with self._lock:
            masks = self._generator.draw(DrawRequest(seeds, images=images, solver=self._section.solver)).masks
        assert masks is not None
        votes = torch.nn.functional.one_hot(masks.cpu(), self.info.num_classes).float().mean(dim=0)  # (H, W, classes)
        confidence, mask = votes.max(dim=2)
        return LabeledImage(SourceMask(mask.numpy().astype(np.uint8), None, "joint"), confidence.numpy())

    def describe(self, labeled: LabeledImage) -> dict[str, Any]:
        """See `LabelSource.describe`."""
        return {
            "generator": str(self._section.generator),
            "generator_sha256": self._digest,
            "draws": self._section.draws,
            "confidence": round(labeled.mean_confidence, 6),
        }


class ChangeLabeler:
    """Labels translated images by what differs from their source; see `ChangeLabelsSection`.

    Raises:
        InputError: if the generator does not translate images.
    """

    reason = "change is not clear enough"

    def __init__(self, config: ChangeLabelsSection, generator: Generator) -> None:
        if "images" not in generator.needs:
            raise InputError(
                f"labels.kind change: needs a generator that turns images into others, not {generator.kind}"
            )
        self.config: AnyLabelsSection = config
        self._section = config
        names = [UNCHANGED, config.class_name]
        self.info = generator.info.model_copy(update={"class_names": names, "palette": default_palette(len(names))})

    def label(self, image: NDArray[np.uint8], source: NDArray[np.uint8] | None = None) -> LabeledImage:
        """See `LabelSource.label`."""
        assert source is not None, "translated images have a source"
        change = compute_change(source, image, self._section.smoothing)
        relative = change / compute_levels(change, self._section.threshold)
        changed = relative >= 1
        confidence = np.where(changed, relative, 1) / (1 + relative)
        return LabeledImage(SourceMask(changed.astype(np.uint8), None, "change"), confidence.astype(np.float32))

    def describe(self, labeled: LabeledImage) -> dict[str, Any]:
        """See `LabelSource.describe`."""
        return {
            "threshold": self._section.threshold,
            "changed": round(float(labeled.mask.mask.mean()), 6),
            "confidence": round(labeled.mean_confidence, 6),
        }


def hash_segmenter(folder: Path) -> str:
    """Returns the SHA-256 of a segmenter's weights in hex, with those of its feature network; "" if there are none."""
    paths = sorted(folder.rglob("*.safetensors"))
    return hash_files(*paths) if paths else ""
