"""Studies of instances: COCO AP against pycocotools, islands and maps, Mask2Former, resuming, errors."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from scipy.ndimage import distance_transform_cdt
from typer.testing import CliRunner

from steelgen.cli.app import app
from steelgen.cluster.status import run_status
from steelgen.config.base import parse_config
from steelgen.config.instance import InstanceConfig
from steelgen.config.studies import choose_study
from steelgen.config.utility import UtilityConfig, parse_code
from steelgen.data.folder import DatasetInfo, save_dataset_info, save_mask
from steelgen.data.instances import save_instances
from steelgen.data.placement import CropGeometry
from steelgen.errors import InputError
from steelgen.evaluation.instances.coco import describe_predicted, load_predicted, save_truth
from steelgen.evaluation.instances.data import InstanceData, Instances, Tile, find_instances, load_instances
from steelgen.evaluation.instances.matching import Predicted, find_inner_boundaries, match_tiles
from steelgen.evaluation.instances.statistics import compute_metrics
from steelgen.evaluation.instances.training import (
    build_instance_network,
    collect_islands,
    collect_queries,
    compute_query_loss,
    predict_tiles,
    run_instance_cell,
    sample_targets,
)
from steelgen.evaluation.judge_utility import judge_utility
from steelgen.evaluation.study import utility
from steelgen.evaluation.study_views import build_study_page
from steelgen.evaluation.utility.cells import Cell
from steelgen.evaluation.utility.results import load_study_result
from steelgen.evaluation.utility.training_set import TrainingSet
from steelgen.evaluation.verdict import judge_study
from steelgen.files import save_json
from steelgen.models.mask2former import Mask2Former, Queries
from steelgen.shards import Shard

INFO = DatasetInfo(name="discs", class_names=["matrix", "bright", "dark"])
SMALL, WIDTH = 40.0, 1


def draw_discs(rng: np.random.Generator, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Separated bright and dark discs on a grid of 16 px: image, mask and ids."""
    rows, columns = np.mgrid[:size, :size]
    mask, ids = np.zeros((size, size), np.uint8), np.zeros((size, size), np.uint16)
    for number, (top, left) in enumerate(np.ndindex(size // 16, size // 16), start=1):
        if rng.random() < 0.6:
            y, x, r = 16 * top + rng.uniform(6, 10), 16 * left + rng.uniform(6, 10), rng.uniform(2.5, 5.5)
            inside = (rows - y) ** 2 + (columns - x) ** 2 < r * r
            mask[inside], ids[inside] = rng.integers(1, 3), number
    image = np.choose(mask, [120.0, 210.0, 30.0]) + rng.normal(0, 6, mask.shape)
    return image.clip(0, 255).astype(np.uint8), mask, ids


def save_discs(root: Path, counts: dict[str, int], maps: bool = False) -> None:
    root.mkdir(parents=True, exist_ok=True)
    for seed, (split, count) in enumerate(counts.items()):
        for kind in ("images", "masks", *(["instances"] if maps else [])):
            (root / split / kind).mkdir(parents=True)
        rng = np.random.default_rng(seed)
        for number in range(count):
            image, mask, ids = draw_discs(rng, 64)
            name = f"{split}{number}.png"
            Image.fromarray(image).save(root / split / "images" / name)
            save_mask(root / split / "masks" / name, mask, INFO.palette)
            if maps:
                save_instances(root / split / "instances" / name, ids)
    save_dataset_info(root, INFO)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("instances")
    save_discs(root / "real", {"train": 6, "val": 1, "test": 3})
    save_discs(root / "more", {"train": 8})
    (root / "more" / "train").rename(root / "pairs")
    return root


def build_values(root: Path, out: Path, **more: Any) -> dict[str, Any]:
    values = {
        "task": "instance",
        "dataset": str(root / "real"),
        "generated": str(root / "pairs"),
        "output_dir": str(out),
        "architectures": ["mask2former", "unet"],
        "seeds": [0, 1],
        "geometry": {"image_size": 32},
        "num_bootstrap": 100,
        "instance": {"queries": 10, **more.pop("instance", {})},
    }
    training = {"steps": 2, "batch_size": 2, "base_channels": 8, "validate_every": 1, **more.pop("training", {})}
    return {**values, "training": training, **more}


def build_config(root: Path, out: Path, **more: Any) -> InstanceConfig:
    return parse_config(build_values(root, out, **more), InstanceConfig)


def read_cells(out: Path) -> dict[str, Any]:
    """All cells without their times, and their predictions."""
    cells = {path.name: json.loads(path.read_text()) for path in (out / "cells").glob("*.json")}
    return {
        name: {key: value for key, value in cell.items() if key != "seconds"} if isinstance(cell, dict) else cell
        for name, cell in cells.items()
    }


def make_tiles(rng: np.random.Generator, count: int, size: int = 48) -> list[Tile]:
    """Tiles with rectangles of two classes, of which some touch."""
    tiles = []
    for number in range(count):
        ids, labels = np.zeros((size, size), np.int32), []
        for _ in range(0 if number == 1 else int(rng.integers(3, 9))):
            (top, left), (height, width) = rng.integers(0, size - 12, 2), rng.integers(3, 12, 2)
            window = np.s_[top : top + height, left : left + width]
            if not ids[window].any():
                labels.append(int(rng.integers(1, 3)))
                ids[window] = len(labels)
        truth = Instances(ids, np.array(labels, np.int64))
        tiles.append(Tile(number // 2, f"m{number // 2}", 0, 0, ids.astype(np.uint8), truth, ids >= 0))
    return tiles


def perturb(rng: np.random.Generator, tile: Tile) -> Predicted:
    """True instances shifted, twice, of another class or missing, and false ones; scores with ties."""
    masks, labels = [], []
    for mask, label in zip(tile.truth.masks, tile.truth.labels, strict=True):
        for _ in range(int(rng.choice([0, 1, 1, 2]))):
            masks.append(np.roll(mask, int(rng.choice([0, 0, 1])), int(rng.integers(2))))
            labels.append(label if rng.random() < 0.9 else 3 - label)
    for _ in range(int(rng.integers(3))):
        mask = np.zeros(tile.counted.shape, bool)
        top, left = rng.integers(0, 40, 2)
        mask[top : top + 5, left : left + 7] = True
        masks.append(mask)
        labels.append(int(rng.integers(1, 3)))
    shape = tile.counted.shape
    scores = rng.random(len(masks)).round(1)
    return Predicted(np.array(labels, np.int64), scores, np.array(masks, bool).reshape(-1, *shape))


class BoundaryEval(COCOeval):
    """pycocotools with the smaller of mask IoU and boundary IoU, the boundary taken from distances."""

    def computeIoU(self, image_id: int, category_id: int) -> Any:
        whole = super().computeIoU(image_id, category_id)
        if not len(whole):
            return whole
        order = np.argsort([-row["score"] for row in self._dts[image_id, category_id]], kind="mergesort")
        predicted = [self._dts[image_id, category_id][index] for index in order]
        edges = []
        for rows, coco in ((predicted, self.cocoDt), (self._gts[image_id, category_id], self.cocoGt)):
            masks = [np.pad(coco.annToMask(row), 1) for row in rows]
            edges.append([(mask > 0) & (distance_transform_cdt(mask, "chessboard") <= WIDTH) for mask in masks])
        boundary = [[(a & b).sum() / max((a | b).sum(), 1) for b in edges[1]] for a in edges[0]]
        return np.minimum(whole, boundary)


def score_by_library(
    truth: dict[str, Any], results: list[dict[str, Any]], kind: type, data_kind: type, **options: Any
) -> list[float]:
    """AP, AP50 and AP small of a library with the interface of pycocotools."""
    if data_kind is COCO:
        coco = COCO()
        coco.dataset = truth
        coco.createIndex()
    else:
        coco = data_kind(truth)
    judge = kind(coco, coco.loadRes(copy.deepcopy(results)), "segm", **options)
    judge.params.maxDets = [1, 10, 1000]
    judge.params.areaRng = [[0, 1e10], [0, SMALL]]
    judge.params.areaRngLbl = ["all", "small"]
    judge.evaluate()
    judge.accumulate()
    precision = judge.eval["precision"][..., 2]  # (T, R, K, areas)
    parts = precision[..., 0], precision[:1, ..., 0], precision[..., 1]
    return [float(part[part > -1].mean()) for part in parts]


def write_files(folder: Path, tiles: list[Tile], predictions: list[Predicted]) -> tuple[dict, list]:
    data = InstanceData(INFO, CropGeometry(48, 48), None, None, None, None, [], test_tiles=tiles)  # type: ignore[arg-type]
    save_truth(folder / "truth.json", data)
    results = [row for number, each in enumerate(predictions) for row in describe_predicted(number, each)]
    save_json(folder / "results.json", results)
    return json.loads((folder / "truth.json").read_text()), json.loads((folder / "results.json").read_text())


def test_average_precision_is_pycocotools_of_the_written_files(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for _ in range(6):
        tiles = make_tiles(rng, 6)
        predictions = [perturb(rng, tile) for tile in tiles]
        truth, results = write_files(tmp_path, tiles, predictions)
        read = load_predicted(tmp_path / "results.json", tiles)
        metrics = compute_metrics(match_tiles(tiles, read, [1, 2], SMALL, WIDTH))
        expected = score_by_library(truth, results, COCOeval, COCO)
        assert [float(metrics[name][0]) for name in ("ap", "ap50", "small_ap")] == pytest.approx(expected, abs=1e-9)
        edges = score_by_library(truth, results, BoundaryEval, COCO)
        assert metrics["boundary_ap"][0] == pytest.approx(edges[0], abs=1e-9)
        assert 0.02 < metrics["boundary_ap"][0] < metrics["ap"][0] < metrics["ap50"][0] < 0.9


def test_average_precision_is_faster_coco_evals(tmp_path: Path) -> None:
    library = pytest.importorskip("faster_coco_eval")
    rng = np.random.default_rng(1)
    tiles = make_tiles(rng, 8)
    predictions = [perturb(rng, tile) for tile in tiles]
    files = write_files(tmp_path, tiles, predictions)
    metrics = compute_metrics(match_tiles(tiles, predictions, [1, 2], SMALL, WIDTH))
    expected = score_by_library(*files, library.COCOeval_faster, library.COCO)
    assert [float(metrics[name][0]) for name in ("ap", "ap50", "small_ap")] == pytest.approx(expected, abs=1e-9)


def test_resampled_tiles_are_repeated_tiles() -> None:
    rng = np.random.default_rng(2)
    tiles = make_tiles(rng, 5)
    predictions = [perturb(rng, tile) for tile in tiles]
    # Without ties, whose order is a matter of taste.
    predictions = [each._replace(scores=rng.random(len(each.scores))) for each in predictions]
    weights = np.array([[1, 1, 1, 1, 1], [2, 0, 1, 3, 0], [0, 5, 0, 0, 0]], float)
    metrics = compute_metrics(match_tiles(tiles, predictions, [1, 2], SMALL, WIDTH), weights)
    for row, counts in enumerate(weights.astype(int)):
        drawn = np.repeat(np.arange(5), counts)
        again = match_tiles([tiles[n] for n in drawn], [predictions[n] for n in drawn], [1, 2], SMALL, WIDTH)
        for name, values in compute_metrics(again).items():
            assert metrics[name][row] == pytest.approx(values[0], nan_ok=True)
    assert np.isnan(metrics["ap"][2])  # a tile without instances


def test_boundaries_are_chessboard_distances() -> None:
    for tile in make_tiles(np.random.default_rng(3), 4):
        for width in (1, 2, 4):
            edges = find_inner_boundaries(tile.truth.ids, width)
            for number, mask in enumerate(tile.truth.masks, start=1):
                distance = distance_transform_cdt(np.pad(mask, 1), "chessboard")[1:-1, 1:-1]
                assert np.array_equal(edges == number, mask & (distance <= width))
                assert np.array_equal(find_inner_boundaries(mask, width), mask & (distance <= width))


def test_islands_of_each_class_are_instances() -> None:
    mask = np.array([[1, 0, 0, 2, 2], [0, 1, 0, 0, 0], [0, 0, 255, 0, 1], [2, 2, 1, 1, 1]], np.uint8)
    found = find_instances(mask, None, 0, 3, 1)
    # Diagonal pixels are one island, classes that touch are two; 255 belongs to none.
    assert found.ids.tolist() == [[1, 0, 0, 3, 3], [0, 1, 0, 0, 0], [0, 0, 0, 0, 2], [4, 4, 2, 2, 2]]
    assert found.labels.tolist() == [1, 1, 2, 2]
    assert found.areas.tolist() == [2, 4, 2, 2]
    large = find_instances(mask, None, 0, 3, 3)
    assert large.ids.tolist() == (found.ids == 2).astype(int).tolist()
    assert find_instances(mask, None, 1, 3, 5).labels.tolist() == [0]


def test_annotated_objects_are_instances_even_if_they_touch_or_are_in_parts() -> None:
    mask = np.array([[1, 1, 1, 1], [0, 0, 0, 2], [1, 0, 2, 2]], np.uint8)
    objects = np.array([[7, 7, 9, 9], [0, 4, 0, 9], [7, 0, 500, 500]], np.uint16)
    found = find_instances(mask, objects, 0, 3, 1)
    assert found.ids.tolist() == [[1, 1, 2, 2], [0, 0, 0, 2], [1, 0, 3, 3]]
    assert found.labels.tolist() == [1, 1, 2]  # by majority; object 4 lies in the background


def test_queries_become_instances_with_their_scores() -> None:
    masks = torch.full((3, 6, 6), -8.0)
    masks[0, 1:3, 1:4] = torch.logit(torch.tensor(0.75))
    masks[1, 4:, 4:] = 8.0
    # Classes 1 and 3 of the dataset; the last logit is of no instance.
    classes = torch.log(torch.tensor([[0.6, 0.3, 0.1], [0.05, 0.2, 0.75], [0.3, 0.3, 0.4]]))
    found = collect_queries(classes, masks, [1, 3])
    assert found.labels.tolist() == [1, 3, 1]
    assert found.scores == pytest.approx([0.6 * 0.75, 0.2 * torch.sigmoid(torch.tensor(8.0)).item(), 0.0])
    assert found.masks.sum(axis=(1, 2)).tolist() == [6, 4, 0]
    assert found.masks[0, 1:3, 1:4].all()


def test_the_islands_of_a_semantic_network_are_instances_with_its_mean_probability() -> None:
    probabilities = np.full((3, 4, 8), 0.1, np.float32)
    probabilities[0] = 0.8
    probabilities[:, 0:2, 0:2] = np.array([0.2, 0.5, 0.3])[:, None, None]
    probabilities[:, 0, 0] = 0.1, 0.9, 0.0
    probabilities[:, 3, 5:] = np.array([0.0, 0.3, 0.7])[:, None]
    found = collect_islands(probabilities, background=0)
    assert found.labels.tolist() == [1, 2]
    assert found.scores == pytest.approx([(0.9 + 3 * 0.5) / 4, 0.7])
    assert found.masks.sum(axis=(1, 2)).tolist() == [4, 3]


def encode_truth(tiles: list[Tile], num_queries: int, order: np.ndarray) -> Queries:
    """Confident logits of the true instances, at the given queries."""
    classes = torch.full((len(tiles), num_queries, 3), -6.0)
    masks = torch.full((len(tiles), num_queries, 48, 48), -6.0)
    classes[..., 2] = 6.0
    for index, tile in enumerate(tiles):
        for query, (label, mask) in zip(order, zip(tile.truth.labels, tile.truth.masks, strict=True), strict=False):
            classes[index, query] = torch.tensor([6.0 if label == 1 else -6.0, 6.0 if label == 2 else -6.0, -6.0])
            masks[index, query][torch.from_numpy(mask)] = 6.0
    return Queries((classes,), (masks,))


def test_the_loss_of_mask2former_assigns_queries_and_its_minimum_is_the_truth() -> None:
    tiles, order = make_tiles(np.random.default_rng(4), 3), np.random.default_rng(5).permutation(10)
    targets = torch.from_numpy(
        np.stack([256 * tile.truth.ids + np.append(0, tile.truth.labels)[tile.truth.ids] for tile in tiles])
    )
    network = Mask2Former(1, 2, num_queries=10)

    def measure(queries: Queries) -> float:
        torch.manual_seed(0)
        return float(compute_query_loss(network, queries, targets, [1, 2]))

    right = encode_truth(tiles, 10, order)
    assert measure(right) == pytest.approx(measure(encode_truth(tiles, 10, order[::-1])), rel=0.1)
    swapped = Queries((right.classes[0][..., [1, 0, 2]],), right.masks)
    shifted = Queries(right.classes, (right.masks[0].roll(6, -1),))
    # Not 0: points between the pixels of a border have logits between theirs.
    assert measure(right) < 2 < 4 < min(measure(swapped), measure(shifted))
    predicted = [collect_queries(right.classes[0][index], right.masks[0][index], [1, 2]) for index in range(len(tiles))]
    metrics = compute_metrics(match_tiles(tiles, predicted, [1, 2], SMALL, WIDTH))
    assert all(values[0] == 1 for values in metrics.values())


def test_mask2former_learns_to_find_discs(root: Path, tmp_path: Path) -> None:
    schedule = {"steps": 40, "batch_size": 4, "validate_every": 20, "enlargement": 2, "learning_rate": 3e-3}
    config = build_config(root, tmp_path, instance={"queries": 20}, training=schedule)
    data = load_instances(config)
    cell = run_instance_cell(Cell(parse_code("RALLF000"), "mask2former", 0), data, config)
    torch.manual_seed(0)
    untrained = build_instance_network("mask2former", data, config)
    matches = match_tiles(data.test_tiles, predict_tiles(untrained, data, data.test_tiles, config), [1, 2], 40, 1)
    assert compute_metrics(matches)["ap50"][0] < 0.05
    assert cell["test"]["ap50"] > 0.2


def test_codes_of_a_seed_share_crops_weights_and_the_points_of_the_loss(root: Path, tmp_path: Path) -> None:
    config = build_config(root, tmp_path)
    data = load_instances(config)
    alone, mixed = (TrainingSet(data, parse_code(code), 3, config.training) for code in ("RALLF000", "RALLFALL"))
    images, targets = sample_targets(alone, data, 5, 4)
    drawn = torch.rand(2)
    for number in range(4):
        crops, index = alone.pick(20 + number)
        assert torch.equal(images[number], crops[index]["image"])
        assert torch.equal(targets[number] % 256, torch.where(targets[number] < 256, 0, crops[index]["mask"]))
    sample_targets(mixed, data, 5, 4)
    assert torch.equal(torch.rand(2), drawn)
    sample_targets(mixed, data, 6, 4)
    assert not torch.equal(torch.rand(2), drawn)


def test_instance_maps_reach_the_targets_and_the_tiles(tmp_path: Path) -> None:
    save_discs(tmp_path / "real", {"train": 2, "val": 1, "test": 1}, maps=True)
    for path in (tmp_path / "real").glob("*/instances/*.png"):
        # Two objects in each disc, and one object for the discs of the lower half.
        ids = np.asarray(Image.open(path)).astype(np.uint16)
        ids[:32, ::2] += 100 * (ids[:32, ::2] > 0).astype(np.uint16)
        ids[32:][ids[32:] > 0] = 50
        save_instances(path, ids)
    config = build_config(tmp_path, tmp_path / "out", generated=None, codes=["RALLF000"])
    data = load_instances(config)
    assert "objects of the instance maps" in data.notes[0]
    whole = np.asarray(Image.open(tmp_path / "real" / "test" / "instances" / "test0.png"))
    mask = np.asarray(Image.open(tmp_path / "real" / "test" / "masks" / "test0.png"))
    for tile in data.test_tiles:
        window = np.s_[tile.top : tile.top + 32, tile.left : tile.left + 32]
        counts = np.unique(whole[window][mask[window] > 0], return_counts=True)[1]
        assert sorted(tile.truth.areas) == sorted(counts[counts >= 4])
    training_set = TrainingSet(data, parse_code("RALLF000"), 0, config.training)
    _, targets = sample_targets(training_set, data, 0, 6)
    islands = build_config(tmp_path, tmp_path / "out", generated=None, codes=["RALLF000"], instance={"maps": False})
    plain = load_instances(islands)
    assert plain.compute_hash() != data.compute_hash()
    alike = TrainingSet(plain, parse_code("RALLF000"), 0, config.training)
    _, others = sample_targets(alike, plain, 0, 6)
    assert (targets % 256 == others % 256).float().mean() > 0.99
    assert not torch.equal(targets, others)
    pasted = build_config(tmp_path, tmp_path / "out", generated=None, codes=["RALLF000P"])
    with pytest.raises(InputError, match="codes: RALLF000P: copy-paste cannot carry the instance maps of"):
        load_instances(pasted)


def test_a_study_from_config_to_report_and_resumed(root: Path, tmp_path: Path) -> None:
    whole = utility(build_config(root, tmp_path / "whole"))
    assert whole is not None
    assert utility(build_config(root, tmp_path / "parts"), shard=Shard(1, 2)) is None
    lines: list[str] = []
    rest = utility(build_config(root, tmp_path / "parts"), report=lines.append)
    assert len(lines) == 4
    assert all(": AP 0." in line for line in lines)
    assert read_cells(tmp_path / "whole") == read_cells(tmp_path / "parts")
    assert rest is not None
    assert (rest["scores"], rest["differences"]) == (whole["scores"], whole["differences"])
    status = {part.name: (part.done, part.wanted) for part in run_status(tmp_path / "parts")}
    names = [f"{code} {name}" for code in ("RALLF000", "RALLFALL") for name in ("mask2former", "unet")]
    assert status == {**dict.fromkeys(names, (2, 2)), "gathered": (1, 1)}

    read = load_study_result(tmp_path / "whole")
    truth = json.loads((tmp_path / "whole" / "truth.coco.json").read_text())
    assert len(truth["annotations"]) == read["num_instances"] == whole["num_instances"]
    for row in whole["scores"]:
        if row["architecture"] == "unet":
            tests = [read_cells(tmp_path / "whole")[f"{row['code']}-unet-seed{seed}.json"]["test"] for seed in (0, 1)]
            assert row["by_seed"] == [test["ap"] for test in tests]
            assert row["ap50"] == pytest.approx(np.mean([test["ap50"] for test in tests]))
    results = json.loads((tmp_path / "whole" / "cells" / "RALLFALL-unet-seed1.coco.json").read_text())
    cell = json.loads((tmp_path / "whole" / "cells" / "RALLFALL-unet-seed1.json").read_text())
    expected = score_by_library(truth, results, COCOeval, COCO)
    assert [cell["test"]["ap"], cell["test"]["ap50"]] == pytest.approx(expected[:2], abs=1e-9)

    # Two steps are too few for a set of queries.
    assert any(line.startswith("mask2former found no instance with any code and seed") for line in whole["warnings"])
    assert not any(line.startswith("unet found no instance") for line in whole["warnings"])
    page = build_study_page(whole)
    assert "AP small" in page
    assert f"{whole['num_instances']} true instances in 3 test micrographs" in page
    figures, _, _ = judge_utility(read)
    assert [figure.metric for figure in figures] == [
        "AP RALLF000 (pooled)",
        "AP RALLFALL (pooled)",
        "AP RALLFALL − RALLF000 (pooled)",
    ]
    assert judge_study(read)[0].question == "Do 8 generated pairs help in addition to 6 real micrographs?"


def test_the_command_prints_the_scores(root: Path, tmp_path: Path) -> None:
    values = build_values(root, tmp_path / "out", architectures=["unet"], seeds=[0], codes=["RALLF000"])
    path = tmp_path / "config.json"
    path.write_text(json.dumps(values))
    plan = CliRunner().invoke(app, ["utility", "-c", str(path), "--dry-run"])
    assert plan.exit_code == 0, plan.output
    assert "1 cells, 0 done" in plan.output
    ran = CliRunner().invoke(app, ["utility", "-c", str(path)], env={"COLUMNS": "200"})
    assert ran.exit_code == 0, ran.output
    assert "COCO AP on" in ran.output
    assert "boundary AP" in ran.output


def test_other_data_or_another_task_in_the_folder_are_errors(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    small = {"architectures": ["unet"], "seeds": [0], "codes": ["RALLF000"], "generated": None}
    utility(build_config(root, out, **small))
    with pytest.raises(InputError, match=r"instance\.min_area"):
        utility(build_config(root, out, **small, instance={"min_area": 9}))
    values = {key: value for key, value in build_values(root, out, **small).items() if key not in ("task", "instance")}
    with pytest.raises(InputError, match="contains a study of another task, not segment; use another folder"):
        utility(parse_config(values, UtilityConfig))
    predictions = out / "cells" / "RALLF000-unet-seed0.coco.json"
    kept = predictions.read_text()
    right = {"image_id": 1, "category_id": 2, "score": 0.5, "segmentation": {"size": [32, 32], "counts": "0"}}
    for broken, message in (
        ({}, "must be a list of COCO results"),
        ([{**right, "image_id": 99}], "image_id 99 of 12 tiles"),
        ([{**right, "segmentation": {"size": [16, 32], "counts": "0"}}], "size"),
        ([{**right, "score": 7}], "score"),
        ([{**right, "segmentation": {"size": [32, 32], "counts": "~"}}], "counts"),
    ):
        predictions.write_text(json.dumps(broken))
        with pytest.raises(InputError, match=message) as caught:
            utility(build_config(root, out, **small))
        assert "\n" not in str(caught.value)
    predictions.unlink()
    with pytest.raises(InputError, match=r"RALLF000-unet-seed0\.coco\.json"):
        utility(build_config(root, out, **small))
    predictions.write_text(kept)
    assert utility(build_config(root, out, **small)) is not None


def test_bad_input_is_one_line(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"instance": {"background": "ferite"}}, "'ferite' is no class of .* .has: matrix, bright, dark"),
        ({"instance": {"min_area": 4000}}, "no instances of at least 4000 px in the training micrographs"),
        ({"folds": 2}, "folds: 2, but task instance has no folds"),
        ({"architectures": ["mask3former"]}, "unknown architecture 'mask3former'"),
        ({"architectures": ["unet", "unet"]}, "'unet' is listed twice"),
    ]
    for more, message in cases:
        with pytest.raises(InputError, match=message) as caught:
            load_instances(build_config(root, tmp_path / "out", **more))
        assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="task must be segment, instance or classify"):
        choose_study({"task": "instances"}, "config.json")
    values = build_values(root, tmp_path / "out")
    del values["task"], values["instance"]
    with pytest.raises(InputError, match="mask2former"):
        parse_config(values, UtilityConfig)
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(InputError, match="architecture mask2former: needs `pip install transformers`"):
        utility(build_config(root, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
