"""Training and test of one cell of a study of instances."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from steelgen.config.instance import MASK2FORMER, InstanceConfig
from steelgen.data.crops import image_to_tensor
from steelgen.devices import autocast, pick_device
from steelgen.evaluation.figures import to_json
from steelgen.evaluation.instances.coco import describe_predicted, load_predicted
from steelgen.evaluation.instances.data import InstanceData, Tile, find_instances
from steelgen.evaluation.instances.matching import Matches, Predicted, match_tiles
from steelgen.evaluation.instances.statistics import METRICS, compute_metrics
from steelgen.evaluation.prediction import predict_probabilities
from steelgen.evaluation.segmentation import choose_enlargement
from steelgen.evaluation.utility.cells import Cell, predictions_path
from steelgen.evaluation.utility.training import build_network, describe_training, train_best, train_network
from steelgen.evaluation.utility.training_set import TrainingSet
from steelgen.files import save_json
from steelgen.models.mask2former import Mask2Former, Queries

_BATCH = 16
"""Tiles per forward pass of a prediction."""
_POINT_STREAM = 15
"""Random stream of the points of the loss."""
_LABELS = 256
"""Base of the packed targets."""


def build_instance_network(architecture: str, data: InstanceData, config: InstanceConfig) -> torch.nn.Module:
    """Builds a network of a study from torch's global random state.

    Raises:
        InputError: if it is unknown, or a package or weights are missing.
    """
    if architecture != MASK2FORMER:
        return build_network(architecture, data, config)
    factor = config.training.enlargement or choose_enlargement(data.train, data.geometry)
    return Mask2Former(data.geometry.in_channels, len(data.things), config.instance.queries, factor)


def check_instance_networks(config: InstanceConfig, data: InstanceData) -> None:
    """Raises InputError if a network of the study cannot be built."""
    for name in config.architectures:
        build_instance_network(name, data, config)


def run_instance_cell(
    cell: Cell,
    data: InstanceData,
    config: InstanceConfig,
    report_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Trains a network, selects the weights with the best validation AP, and tests them.

    The predicted instances of the test tiles are written beside the cell as COCO results.

    Args:
        cell: code, architecture, and seed.
        data: data of the study.
        config: config of the study.
        report_progress: called with (steps done, total steps).

    Returns:
        JSON values: the training set, validation AP by step, and of the test the micrographs, the numbers of true and
        predicted instances and each of `METRICS`.

    Raises:
        InputError: see `build_instance_network`.
    """
    training_set = TrainingSet(data, cell.code, cell.seed, config.training)
    device = pick_device(config.device)

    def validate(network: torch.nn.Module) -> float:
        matches = match_predicted(data, data.val_tiles, predict_tiles(network, data, data.val_tiles, config), config)
        return float(compute_metrics(matches)["ap"][0])

    # Dropout and the points of the loss use torch's global generator.
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(cell.seed)
        network = build_instance_network(cell.architecture, data, config).to(device)
        if isinstance(network, Mask2Former):
            sample_batch = partial(sample_targets, training_set, data, batch_size=config.training.batch_size)
            loss = partial(compute_query_loss, network, things=data.things)
            best = train_best(network, sample_batch, loss, config, validate, report_progress)
        else:
            best = train_network(network, training_set, data, config, report_progress, validate)
    results = [
        result
        for number, predicted in enumerate(predict_tiles(network, data, data.test_tiles, config))
        for result in describe_predicted(number, predicted)
    ]
    path = predictions_path(config.output_dir, cell)
    save_json(path, results)
    metrics = compute_metrics(match_predicted(data, data.test_tiles, load_predicted(path, data.test_tiles), config))
    return {
        **describe_training(cell, network, training_set),
        **best,
        "test": {
            "micrographs": data.test.stems,
            "num_instances": sum(len(tile.truth.labels) for tile in data.test_tiles),
            "num_predicted": len(results),
            **{name: to_json(float(metrics[name][0])) for name in METRICS},
        },
    }


def match_predicted(
    data: InstanceData, tiles: Sequence[Tile], predictions: Iterator[Predicted], config: InstanceConfig
) -> dict[str, list[Matches]]:
    """Matches the predictions of tiles with the settings of a study; see `match_tiles`."""
    return match_tiles(tiles, predictions, data.things, data.small_area, config.instance.boundary_width)


def sample_targets(
    training_set: TrainingSet, data: InstanceData, step: int, batch_size: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Batch of step `step`, from 0, with instances; seeds torch's global generator by the seed and the step.

    Returns:
        images: (N, C, S, S) in [-1, 1]; targets: (N, S, S) int64, 256 · number of the instance + class; below 256
        outside.
    """
    images, masks = training_set.sample_batch(step, batch_size)
    scale = (data.geometry.image_size / data.geometry.crop_size) ** 2
    targets = []
    for offset, mask in enumerate(masks.numpy().astype(np.uint8)):
        crops, number = training_set.pick(step * batch_size + offset)
        maps, objects = crops.micrographs.instances, None
        if maps is not None:
            objects = crops.place(number).cut_instances(maps[crops.micrograph_index(number)])
        found = find_instances(mask, objects, data.background, data.info.num_classes, scale * data.min_area)
        labels = np.concatenate([[0], found.labels])
        targets.append(_LABELS * found.ids.astype(np.int64) + labels[found.ids])
    torch.manual_seed(int(np.random.default_rng((training_set.seed, step, _POINT_STREAM)).integers(2**62)))
    return images, torch.from_numpy(np.stack(targets))


def compute_query_loss(
    network: Mask2Former, queries: Queries, targets: torch.Tensor, things: Sequence[int]
) -> torch.Tensor:
    """Computes the loss of Mask2Former for the targets of `sample_targets`."""
    labels, masks = [], []
    for target in targets:
        packed = target[target >= _LABELS].unique()
        masks.append((target == packed[:, None, None]).float())
        labels.append(torch.searchsorted(torch.tensor(things, device=packed.device), packed % _LABELS))
    return network.compute_loss(queries, labels, masks)


def predict_tiles(
    network: torch.nn.Module, data: InstanceData, tiles: Sequence[Tile], config: InstanceConfig
) -> Iterator[Predicted]:
    """Predicts the instances of each tile, at the resolution of the micrograph.

    Ignored pixels are taken out, and then instances below min_area.
    """
    network.eval()
    device = next(network.parameters()).device
    for start in range(0, len(tiles), _BATCH):
        part = tiles[start : start + _BATCH]
        images = torch.cat([_resize(tile.image, data.geometry.image_size) for tile in part]).to(device)
        with torch.inference_mode(), autocast(config.mixed_precision, device):
            output = network(images) if isinstance(network, Mask2Former) else predict_probabilities(network, images)
        output = output.float()
        for index, tile in enumerate(part):
            shape = tile.counted.shape
            if isinstance(output, Queries):
                pixels = _enlarge(output.masks[-1][index], shape)
                found = collect_queries(output.classes[-1][index].cpu(), pixels, data.things)
            else:
                found = collect_islands(_enlarge(output[index], shape).numpy(), data.background)
            masks = found.masks & tile.counted
            kept = masks.sum(axis=(1, 2)) >= data.min_area
            yield Predicted(found.labels[kept], found.scores[kept], masks[kept])


def _resize(image: NDArray[np.uint8], size: int) -> torch.Tensor:
    """(h, w) or (h, w, 3) uint8 → (1, C, size, size) in [-1, 1], as `label_by_windows` does."""
    tensor = image_to_tensor(image)[None]
    if tensor.shape[-1] == size:
        return tensor
    return F.interpolate(tensor, (size, size), mode="area" if tensor.shape[-1] > size else "bicubic").clamp(-1, 1)


def _enlarge(maps: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """(K, h, w) → (K, *shape) on the CPU."""
    return F.interpolate(maps[None], shape, mode="bilinear")[0].cpu()


def collect_queries(classes: torch.Tensor, masks: torch.Tensor, things: Sequence[int]) -> Predicted:
    """Takes the most likely class of each query but none, and the pixels that are more likely inside than outside.

    The score is the probability of the class times the mean probability of these pixels, as in the code of Cheng et al.
    2022 (arXiv 2112.01527).

    Args:
        classes: (Q, num_classes + 1) logits.
        masks: (Q, h, w) logits.
        things: class indices of the num_classes outputs.
    """
    likeliest, labels = classes.softmax(dim=1)[:, :-1].max(dim=1)
    inside = masks > 0
    mean = (masks.sigmoid() * inside).sum(dim=(1, 2)) / inside.sum(dim=(1, 2)).clamp(min=1)
    return Predicted(np.asarray(things, np.int64)[labels.numpy()], (likeliest * mean).double().numpy(), inside.numpy())


def collect_islands(probabilities: NDArray[np.float32], background: int) -> Predicted:
    """Takes the islands of the most likely classes; the score is the mean probability of the class inside.

    Args:
        probabilities: (num_classes, h, w).
        background: class index without instances.
    """
    mask = probabilities.argmax(axis=0).astype(np.uint8)
    found = find_instances(mask, None, background, len(probabilities), 1)
    masks = found.masks
    inside = np.take_along_axis(probabilities, mask[None].astype(np.int64), axis=0)[0].astype(np.float64)
    sums = np.bincount(found.ids.ravel(), inside.ravel(), minlength=len(masks) + 1)[1:]
    return Predicted(found.labels, (sums / found.areas).clip(0, 1), masks)
