"""A trained segmenter on disk, and what it makes of an image."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steelgen.config.base import config_to_json, parse_config
from steelgen.config.features import DiffusionFeaturesSection
from steelgen.config.segment import SegmentConfig
from steelgen.data.folder import DatasetInfo
from steelgen.data.placement import CropGeometry
from steelgen.devices import pick_device
from steelgen.errors import InputError, first_line
from steelgen.evaluation.pixel_training import build_features
from steelgen.evaluation.prediction import averaging_of
from steelgen.evaluation.segmentation import build_segmenter
from steelgen.evaluation.windows import label_by_windows
from steelgen.files import Record, load_record, save_json, save_tensors
from steelgen.generators.families import load_generator
from steelgen.generators.saved import hash_weights
from steelgen.models.architectures import find_package
from steelgen.models.pixel_heads import FeatureSegmenter, PixelHeads
from steelgen.runs import describe_environment

SEGMENTER_FILE = "segmenter.json"
_WEIGHTS_FILE = "segmenter.safetensors"
_GENERATOR = "generator"
"""Folder with the network of the features, beside the weights of the heads."""


@dataclass(frozen=True)
class Labeler:
    """A trained segmenter with its config and dataset description."""

    network: torch.nn.Module
    config: SegmentConfig
    info: DatasetInfo


def save_labeler(folder: Path, labeler: Labeler) -> None:
    """Writes segmenter.safetensors and segmenter.json, and the feature network in generator/, if there is one."""
    description: dict[str, Any] = {
        "config": config_to_json(labeler.config),
        "dataset": labeler.info.model_dump(mode="json"),
        "environment": describe_environment(),
    }
    network, section = labeler.network, labeler.config.features
    weights = network.heads if isinstance(network, FeatureSegmenter) else network
    if isinstance(section, DiffusionFeaturesSection):
        description["generator_sha256"] = hash_weights(section.generator)
        load_generator(section.generator).save(folder / _GENERATOR)
    save_tensors(folder / _WEIGHTS_FILE, weights.state_dict())
    save_json(folder / SEGMENTER_FILE, description)


class _Environment(Record):
    """The part of `describe_environment` that is read."""

    packages: dict[str, str]


class _Description(Record):
    """segmenter.json."""

    config: dict[str, Any]
    dataset: DatasetInfo
    environment: _Environment = _Environment(packages={})


def load_segment_config(folder: Path) -> SegmentConfig:
    """Loads the config that a segmenter was trained with.

    Raises:
        InputError: if the folder contains no segmenter.
    """
    path = folder / SEGMENTER_FILE
    return parse_config(_read_old(load_record(path, _Description).config), SegmentConfig, origin=str(path))


def load_labeler(folder: Path, device: str = "auto") -> Labeler:
    """Loads a segmenter written by `train_labeler`.

    Raises:
        InputError: if the folder contains no segmenter, or its weights do not fit segmenter.json.
    """
    from safetensors.torch import load_file

    description, config = load_record(folder / SEGMENTER_FILE, _Description), load_segment_config(folder)
    path = folder / _WEIGHTS_FILE
    try:
        state = load_file(path)
        network = _build_network(folder, config, description.dataset.num_classes, state)
    except InputError:
        raise
    except Exception as error:  # safetensors and torch raise different errors on damaged files
        # Versions name weights differently, such as transformers 4 and 5 those of segformer.
        if package := find_package(config.segmenter.architecture):
            saved, installed = description.environment.packages.get(package, "an unknown version"), version(package)
            if saved != installed:
                raise InputError(
                    f"{path}: does not fit {package} {installed}; saved with {saved}: {first_line(error)}"
                ) from None
        raise InputError(f"{path}: does not fit segmenter.json: {first_line(error)}") from None
    return Labeler(network.to(pick_device(device)).eval(), config, description.dataset)


def _build_network(
    folder: Path, config: SegmentConfig, num_classes: int, state: dict[str, torch.Tensor]
) -> torch.nn.Module:
    """Builds the network of a segmenter's folder with the weights of segmenter.safetensors."""
    if config.features is None:
        network = build_segmenter(config.in_channels, num_classes, config.segmenter)
        network.load_state_dict(state)
        return network
    features = build_features(config.features, build_geometry(config), folder / _GENERATOR)
    heads = PixelHeads(len(state["mean"]), num_classes, config.features.ensemble_size)
    heads.load_state_dict(state)
    return FeatureSegmenter(features, heads)


def label_micrograph(labeler: Labeler, image: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Labels one image of any size; see `label_by_windows`.

    Args:
        labeler: from `load_labeler`.
        image: (H, W) or (H, W, 3) uint8 with the labeler's channels.

    Returns:
        mask: (H, W) uint8 class indices; confidence: (H, W) float32, the probability of that class, or for heads on
        features their agreement.
    """
    config = labeler.config
    return label_by_windows(
        labeler.network,
        image,
        config.image_size,
        config.crop_size,
        labeler.info.num_classes,
        averaging_of(config.segmenter),
    )


def _read_old(config: dict[str, Any]) -> dict[str, Any]:
    """Upgrades the config of a segmenter saved before architectures were selectable."""
    settings = config.get("segmenter")
    if not isinstance(settings, dict) or "architecture" in settings:
        return config
    return {**config, "segmenter": {**settings, "architecture": "unet", "enlargement": 1.0}}


def build_geometry(config: SegmentConfig) -> CropGeometry:
    """Builds the geometry of the windows that a segmenter sees."""
    return CropGeometry(config.image_size, config.crop_size, config.scale_range, config.in_channels)
