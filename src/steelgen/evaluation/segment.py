"""Training of a segmenter on real micrographs and labeling of images with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from steelgen.config.base import config_to_json, parse_config
from steelgen.config.features import DiffusionFeaturesSection
from steelgen.config.segment import SegmentConfig
from steelgen.data.crops import Micrographs, load_micrographs
from steelgen.data.folder import (
    DatasetInfo,
    find_images,
    index_by_stem,
    list_images,
    list_splits,
    load_metadata,
    save_dataset_info,
    save_mask,
    save_metadata,
)
from steelgen.data.images import load_image, save_image, to_channels
from steelgen.data.placement import CropGeometry
from steelgen.data.rejects import load_rejects
from steelgen.devices import pick_device
from steelgen.errors import InputError, first_line
from steelgen.evaluation.figures import to_json
from steelgen.evaluation.iou import compute_confusion, compute_mean_iou, compute_scores
from steelgen.evaluation.pixel_training import build_features, train_pixel_heads
from steelgen.evaluation.prediction import averaging_of
from steelgen.evaluation.segmentation import build_segmenter, resolve_settings, train_segmenter
from steelgen.evaluation.windows import label_by_windows
from steelgen.files import Record, check_output_free, load_record, new_folder, save_json, save_tensors
from steelgen.generators.families import load_generator
from steelgen.generators.saved import hash_weights
from steelgen.models.pixel_heads import FeatureSegmenter, PixelHeads

_GENERATOR = "generator"
"""Folder with the network of the features, beside the weights of the heads."""


@dataclass(frozen=True)
class Labeler:
    """A trained segmenter with its config and dataset description."""

    network: torch.nn.Module
    config: SegmentConfig
    info: DatasetInfo


def train_labeler(config: SegmentConfig, report_progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Trains a segmenter, scores it on whole held-out micrographs, and writes both.

    Args:
        config: see `SegmentConfig`.
        report_progress: called with (steps done, total steps).

    Returns:
        The contents of scores.json: mean_iou, class_iou, image_iou, boundary F1, confusion matrix, and the mIoU of
        each validation.

    Raises:
        InputError: if the dataset or the output folder cannot be used.
    """
    check_output_free(config.output_dir)
    train = load_micrographs(config.dataset, config.train_split, config.in_channels)
    test = load_micrographs(config.dataset, config.test_split, config.in_channels)
    geometry = _geometry(config)
    if config.features is None:
        config = config.model_copy(update={"segmenter": resolve_settings(config.segmenter, train, geometry)})
    val = load_validation(config)
    course: list[float] = []

    def validate(network: torch.nn.Module) -> float:
        assert val is not None
        course.append(_validate(network, val, config))
        return course[-1]

    device = str(pick_device(config.device))
    network: torch.nn.Module
    if config.features is not None:
        network, course = train_pixel_heads(train, val, geometry, config, device, report_progress)
    else:
        network = train_segmenter(
            train,
            geometry,
            config.segmenter,
            config.seed,
            device,
            report_progress,
            None if val is None else (validate, config.validate_every, config.patience),
        )
    labeler = Labeler(network, config, train.info)
    scores = []
    for image, mask in zip(test.images, test.masks, strict=True):
        predicted, _ = label_micrograph(labeler, image)
        scores.append((mask, predicted))
    result = {
        "split": config.test_split,
        "micrographs": test.stems,
        **_score(scores, train.info),
        "validation": to_json(course),
    }
    with new_folder(config.output_dir) as folder:
        description = {"config": config_to_json(config), "dataset": train.info.model_dump(mode="json")}
        _save_network(folder, labeler, description)
        save_json(folder / "scores.json", result)
    return result


def _save_network(folder: Path, labeler: Labeler, description: dict[str, Any]) -> None:
    """Writes segmenter.safetensors and segmenter.json, and the feature network in generator/, if there is one."""
    network, section = labeler.network, labeler.config.features
    weights = network.heads if isinstance(network, FeatureSegmenter) else network
    if isinstance(section, DiffusionFeaturesSection):
        description = {**description, "generator_sha256": hash_weights(section.generator)}
        load_generator(section.generator).save(folder / _GENERATOR)
    save_tensors(folder / "segmenter.safetensors", weights.state_dict())
    save_json(folder / "segmenter.json", description)


class _Description(Record):
    """segmenter.json."""

    config: dict[str, Any]
    dataset: DatasetInfo


def load_labeler(folder: Path, device: str = "auto") -> Labeler:
    """Loads a segmenter written by `train_labeler`.

    Raises:
        InputError: if the folder contains no segmenter, or its weights do not fit segmenter.json.
    """
    from safetensors.torch import load_file

    description = load_record(folder / "segmenter.json", _Description)
    path = folder / "segmenter.safetensors"
    try:
        config = parse_config(_read_old(description.config), SegmentConfig, origin=str(folder / "segmenter.json"))
        info, state = description.dataset, load_file(path)
        network = _build_network(folder, config, info.num_classes, state)
    except InputError:
        raise
    except Exception as error:  # safetensors and torch raise different errors on damaged files
        raise InputError(f"{path}: does not fit segmenter.json: {first_line(error)}") from None
    return Labeler(network.to(pick_device(device)).eval(), config, info)


def _build_network(
    folder: Path, config: SegmentConfig, num_classes: int, state: dict[str, torch.Tensor]
) -> torch.nn.Module:
    """Builds the network of a segmenter's folder with the weights of segmenter.safetensors."""
    if config.features is None:
        network = build_segmenter(config.in_channels, num_classes, config.segmenter)
        network.load_state_dict(state)
        return network
    features = build_features(config.features, _geometry(config), folder / _GENERATOR)
    heads = PixelHeads(len(state["mean"]), num_classes, config.features.ensemble_size)
    heads.load_state_dict(state)
    return FeatureSegmenter(features, heads)


def label_folder(
    labeler: Labeler,
    images: Path,
    output_dir: Path,
    report_progress: Callable[[int, int], None] | None = None,
) -> int:
    """Labels every image of a folder, or of each split of a dataset folder, which gives a dataset folder.

    Writes masks/ (palette PNGs of class indices), confidence/ (gray PNGs, 255 × confidence, see `label_micrograph`),
    dataset.json with the segmenter's classes, and copies of the images in images/; masks of the dataset folder are not
    read, and images in rejects.txt are left out.

    Args:
        labeler: from `load_labeler`.
        images: a folder of images of any size, or a dataset folder.
        output_dir: must be new or empty.
        report_progress: called with (images done, total images).

    Returns:
        Number of images.

    Raises:
        InputError: if the folder is missing or empty, an image is unreadable, or two images have the same stem.
    """
    splits = [split for split in list_splits(images) if find_images(images, split) != images]
    paths = {split: _list_kept(find_images(images, split)) for split in splits} or {"": list_images(images)}
    total, done = sum(map(len, paths.values())), 0
    if not total:
        raise InputError(f"{images}: contains no images")
    for each in paths.values():
        index_by_stem(each)  # raises if two have the same
    with new_folder(output_dir) as folder:
        save_dataset_info(folder, labeler.info)
        for split, each in paths.items():
            for path in each:
                image = load_image(path)
                mask, confidence = label_micrograph(labeler, to_channels(image, labeler.config.in_channels))
                save_mask(folder / split / "masks" / f"{path.stem}.png", mask, labeler.info.palette)
                shown = np.rint(255 * confidence).astype(np.uint8)
                save_image(folder / split / "confidence" / f"{path.stem}.png", shown)
                save_image(folder / split / "images" / f"{path.stem}.png", image)
                done += 1
                if report_progress:
                    report_progress(done, total)
        rows = {str(Path(name).with_suffix(".png")): row for name, row in load_metadata(images).items()}
        if kept := [{**row, "file_name": name} for name, row in rows.items() if (folder / name).is_file()]:
            save_metadata(folder, kept)
    return total


def _list_kept(folder: Path) -> list[Path]:
    rejects = load_rejects(folder)
    return [path for path in list_images(folder) if path.stem not in rejects]


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


def load_validation(config: SegmentConfig) -> Micrographs | None:
    """Loads the validation split of a segmenter; None if there is none.

    Raises:
        InputError: if it is also the training or test split, or cannot be read.
    """
    if config.val_split is None or not (config.dataset / config.val_split).is_dir():
        return None
    if config.val_split in (config.train_split, config.test_split):
        raise InputError(f"val_split: {config.val_split!r} is also the train_split or test_split; use another or null")
    return load_micrographs(config.dataset, config.val_split, config.in_channels)


def _validate(network: torch.nn.Module, val: Micrographs, config: SegmentConfig) -> float:
    """Computes the mIoU on whole micrographs, without test-time augmentation to save time."""
    network.eval()
    info = val.info
    confusion = np.zeros((info.num_classes, info.num_classes), np.int64)
    for image, mask in zip(val.images, val.masks, strict=True):
        predicted, _ = label_by_windows(network, image, config.image_size, config.crop_size, info.num_classes)
        confusion += compute_confusion(mask, predicted, info.num_classes, info.ignore_index)
    return float(compute_mean_iou(confusion))


def _read_old(config: dict[str, Any]) -> dict[str, Any]:
    """Upgrades the config of a segmenter saved before architectures were selectable."""
    settings = config.get("segmenter")
    if not isinstance(settings, dict) or "architecture" in settings:
        return config
    return {**config, "segmenter": {**settings, "architecture": "unet", "enlargement": 1.0}}


def _geometry(config: SegmentConfig) -> CropGeometry:
    return CropGeometry(config.image_size, config.crop_size, config.scale_range, config.in_channels)


def _score(pairs: list[tuple[NDArray[np.uint8], NDArray[np.uint8]]], info: DatasetInfo) -> dict[str, Any]:
    # Micrographs of different sizes cannot be stacked, so all pixels are concatenated to one row.
    agreements = [compute_scores(t[None], p[None], info.num_classes, info.ignore_index) for t, p in pairs]
    true, predicted = (np.concatenate([pair[i].ravel() for pair in pairs])[None, None] for i in (0, 1))
    whole = compute_scores(true, predicted, info.num_classes, info.ignore_index)
    return {
        "class_names": info.class_names,
        "mean_iou": to_json(whole.mean_iou),
        "class_iou": to_json(whole.class_iou),
        "image_iou": to_json([float(agreement.image_iou[0]) for agreement in agreements]),
        "image_boundary_f1": to_json([agreement.mean_boundary_f1 for agreement in agreements]),
        "confusion": to_json(whole.confusion),
    }
