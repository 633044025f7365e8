"""Conditions on real metadata: images for a value against real images of that value and of others.

    python benchmarks/conditions.py run --dataset uhcs
    python benchmarks/conditions.py score --dataset uhcs
    python benchmarks/conditions.py table

Datasets: uhcs, 60 micrographs of ultrahigh carbon steel (24 of data/uhcs, 36 of data/pretraining/uhcs_plain), with edge
length of a pixel and microconstituent as recorded by UHCSDB (DeCost et al. 2017, doi 10.1007/s40192-017-0097-0,
hdl.handle.net/11256/940, CC BY 3.0 US; benchmarks/configs/uhcs_conditions.csv); specimens are held out as a whole.
strips, 1,360 surface photographs of hot-rolled strip (data/pretraining/xsdd_plain, no micrographs) with the kind of
defect; the last fifth of each kind, by number, is held out.

`run` trains semantic diffusion without masks, and resumes after interruption if called with the same arguments. `score`
generates images for each value of each condition, the others left open, for numbers from the whole range, and with all
conditions left open. KID is that to real held-out crops of the same value (within) and the mean of those to each other
value (between); real training crops have the same. A ridge regression on features of real training crops reads the
values of images; its own score is that of specimens left out, and of held-out crops. `table` gathers all scores.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import LinePrinter, save_results
from numpy.typing import NDArray
from scipy.stats import spearmanr

from steelgen.config.base import parse_config
from steelgen.config.solver import SolverSection
from steelgen.config.train import FinetuneConfig, TrainConfig
from steelgen.data.conditions import load_rows
from steelgen.data.crops import CropDataset, cut_crops, load_micrographs, tensor_to_image
from steelgen.data.folder import DatasetInfo, save_dataset_info, save_metadata
from steelgen.data.images import save_image
from steelgen.data.placement import CropGeometry
from steelgen.data.sheets import build_sheet
from steelgen.devices import pick_device
from steelgen.errors import InputError
from steelgen.evaluation.features import build_extractor, compute_features
from steelgen.evaluation.fidelity import compute_kid
from steelgen.files import load_json, new_folder, save_json
from steelgen.generators import DrawRequest, Generator
from steelgen.generators.drawing import conditions_of, draw
from steelgen.planning.rules import SMALL_NETWORK
from steelgen.runs import read_metrics
from steelgen.sampling.conditions import encode_conditions
from steelgen.sampling.generate import prepare_generator
from steelgen.training.loop import finetune, train

RESULTS = Path(__file__).parent / "results"
UHCS_TABLE = Path(__file__).parent / "configs" / "uhcs_conditions.csv"
UHCS, UHCS_PLAIN = Path("data/uhcs"), Path("data/pretraining/uhcs_plain")
STRIPS = Path("data/pretraining/xsdd_plain")
GEOMETRY = CropGeometry(64, 128)
RATES = {"scratch": 1e-3, "base": 3e-4}
"""The rates of `steelgen plan`."""
HELD_OUT = 0.2
FOLDS = 5
STRENGTHS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
"""Penalties of the ridge regression, in units of the features' total variance."""
CROPS_EACH = {"uhcs": 16, "strips": 1}
"""Crops of each training image for the regression; one of strips is the whole photograph."""
SHOWN = 8

Images = NDArray[np.uint8]
Features = NDArray[np.float32]
Value = float | str
Item = tuple[str, Path, dict[str, Any]]
"""Split, path and metadata of an image; `group` names images that must not be in different folds."""


@dataclass(frozen=True)
class Setting:
    """A dataset and its conditions."""

    list_items: Callable[[], Iterator[Item]]
    augment: bool | str
    values: Mapping[str, Sequence[Value]]
    """The values that are asked for, by condition; an image belongs to the nearest one."""


def list_uhcs() -> Iterator[Item]:
    """Lists the micrographs of ultrahigh carbon steel."""
    with open(UHCS_TABLE, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            path = next(
                (root for root in (UHCS, UHCS_PLAIN) for root in root.glob(f"*/images/{row['name']}.png")), None
            )
            if path is None:
                raise InputError(f"{UHCS}, {UHCS_PLAIN}: no image {row['name']}.png")
            pixel_size = float(row["bar_um"]) / float(row["bar_px"])
            known = {"pixel_size_um": pixel_size, "constituent": row["constituent"]}
            yield row["split"], path, {**known, "group": row["specimen"] or row["name"]}


def list_strips() -> Iterator[Item]:
    """Lists the photographs of strip."""
    kinds: dict[str, list[Path]] = {}
    for path in sorted((STRIPS / "train" / "images").glob("*.png")):
        kinds.setdefault(path.stem.rsplit("_", 1)[0], []).append(path)
    for kind, paths in kinds.items():
        for number, path in enumerate(paths):
            split = "val" if number >= round((1 - HELD_OUT) * len(paths)) else "train"
            # Neighboring numbers may be of the same strip.
            yield split, path, {"kind": kind, "group": f"{kind}-{number // 10}"}


SETTINGS = {
    "uhcs": Setting(
        list_uhcs,
        True,
        {
            "pixel_size_um": [5 / 129, 10 / 103, 20 / 103, 50 / 129, 100 / 103, 200 / 103, 500 / 129],
            "constituent": [
                "network",
                "spheroidite",
                "spheroidite+widmanstatten",
                "pearlite",
                "pearlite+spheroidite",
                "martensite",
            ],
        },
    ),
    "strips": Setting(
        list_strips,
        "mirror",
        {
            "kind": [
                "finishing_roll_printing",
                "iron_sheet_ash",
                "oxide_scale_of_plate_system",
                "oxide_scale_of_temperature_system",
                "red_iron",
                "slag_inclusion",
                "surface_scratch",
            ]
        },
    ),
}


def prepare_dataset(name: str, folder: Path) -> Path:
    """Writes a dataset folder with metadata.jsonl and without masks, once."""
    out = folder / name
    if not out.is_dir():
        with new_folder(out) as working:
            rows = []
            for split, path, known in SETTINGS[name].list_items():
                target = working / split / "images" / path.name
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, target)
                rows.append({"file_name": str(target.relative_to(working)), **known})
            save_metadata(working, rows)
            save_dataset_info(working, DatasetInfo(name=name, class_names=[]))
    return out


def name_run(arguments: argparse.Namespace) -> str:
    """Returns the name of a run's folder."""
    return f"{arguments.dataset}-{arguments.start}-seed{arguments.seed}-{arguments.steps}steps"


def build_config(arguments: argparse.Namespace, dataset: Path) -> TrainConfig | FinetuneConfig:
    """Builds the config of a run."""
    steps, setting = arguments.steps, SETTINGS[arguments.dataset]
    values: dict[str, Any] = {
        "run_dir": str(arguments.runs / name_run(arguments)),
        "seed": arguments.seed,
        "data": {
            "dataset": str(dataset),
            "image_size": GEOMETRY.image_size,
            "crop_size": GEOMETRY.crop_size,
            "augment": setting.augment,
            "conditions": list(setting.values),
        },
        "train": {
            "max_steps": steps,
            "max_minutes": arguments.minutes,
            "train_batch_size": arguments.batch_size,
            "learning_rate": RATES[arguments.start],
            "warmup_steps": min(100, max(1, steps // 10)),
            "ema_decay": round(1 - 10 / max(steps, 20), 4),
            "mixed_precision": "auto",
            "checkpoint_every": max(1, steps // 6),
            "keep_checkpoints": 1,
        },
        "preview": {"num_images": 0},
        "validation": {"every": max(1, steps // 6), "crops": 64},
        "measurement": {"every": None},
    }
    if arguments.start == "scratch":
        return parse_config({**values, "generator": {"unet": dict(SMALL_NETWORK)}}, TrainConfig)
    return parse_config({**values, "checkpoint": f"bundled:{arguments.start}"}, FinetuneConfig)


def run(arguments: argparse.Namespace) -> None:
    """Trains one dataset's generator, or resumes it."""
    config = build_config(arguments, prepare_dataset(arguments.dataset, arguments.runs / "data"))
    if isinstance(config, FinetuneConfig):
        finetune(config, LinePrinter(), resume=True)
    else:
        train(config, LinePrinter(), resume=True)


def generate(generator: Generator, rows: Sequence[Mapping[str, Value]], first_seed: int) -> Images:
    """Generates an image (64, 64) for each row of values; conditions that a row lacks are left open."""
    found: list[Images] = []
    for start in range(0, len(rows), 32):
        part = [dict(row) for row in rows[start : start + 32]]
        seeds = range(first_seed + start, first_seed + start + len(part))
        told = encode_conditions(conditions_of(generator), part)
        drawn = draw(generator, DrawRequest(seeds, solver=SolverSection(), conditions=told))
        assert drawn.images is not None
        found += [tensor_to_image(image) for image in drawn.images]
    return np.stack(found)


class RealCrops:
    """Real crops of one split of a dataset, with values.

    Args:
        name: of the dataset.
        dataset: its folder.
    """

    def __init__(self, name: str, dataset: Path, split: str, measure: Callable[[Images], Features]) -> None:
        self._micrographs, self._measure = load_micrographs(dataset, split).without_masks(), measure
        self._augment = SETTINGS[name].augment
        rows = [row.values for row in load_rows(dataset, split)]
        each, count = CROPS_EACH[name], len(rows)
        crops = CropDataset(self._micrographs, GEOMETRY, 0, augment=self._augment, in_order=True)
        self.features = measure(np.stack([crops.cut(number)[0] for number in range(each * count)]))
        """(N, D), CROPS_EACH of every image."""
        self.groups = [str(row["group"]) for row in rows] * each
        self._nearest = {
            condition: [find_nearest(row[condition], values) for row in rows]
            for condition, values in SETTINGS[name].values.items()
        }
        self.known = {condition: [row[condition] for row in rows] * each for condition in self._nearest}
        """The value of each crop, by condition."""
        self.nearest = {condition: np.array(found * each) for condition, found in self._nearest.items()}
        """The index of the nearest value that is asked for, of each crop, by condition."""

    def count(self, condition: str, index: int) -> int:
        """Counts the images with a value."""
        return self._nearest[condition].count(index)

    def cut(self, condition: str, index: int, count: int) -> Images | None:
        """Cuts crops of the images with a value; None if there are none."""
        chosen = [number for number, found in enumerate(self._nearest[condition]) if found == index]
        if not chosen:
            return None
        return cut_crops(self._micrographs.select(chosen), GEOMETRY, count, seed=1, augment=bool(self._augment))[0]


def find_nearest(value: Value, asked: Sequence[Value]) -> int:
    """Finds the index of the value that is asked for nearest to one, numbers by their ratio."""
    if isinstance(value, str):
        return asked.index(value)
    return int(np.argmin([abs(math.log(value / float(each))) for each in asked]))


def predict(known: Features, targets: NDArray, weights: NDArray, strength: float, features: Features) -> NDArray:
    """Predicts targets of features by ridge regression.

    Args:
        known: (N, D), with targets (N, T) and weights (N,).
        strength: of the penalty.
        features: (M, D).

    Returns:
        (M, T).
    """
    scale = known.std(axis=0) * math.sqrt(known.shape[1]) + 1e-12
    x, others = (known - known.mean(axis=0)) / scale, (features - known.mean(axis=0)) / scale
    root, center = np.sqrt(weights)[:, None], np.average(targets, axis=0, weights=weights)
    gram = root * (x @ x.T) * root.T + strength * np.eye(len(x))
    return others @ (x.T @ (root * np.linalg.solve(gram, root * (targets - center)))) + center


class Reader:
    """Reads the values of a condition from the features of an image; see `predict`.

    All values that are asked for have the same weight. Numbers are read as logarithms.
    """

    def __init__(self, real: RealCrops, condition: str, count: int) -> None:
        self._real, self._condition, self._is_number = real, condition, isinstance(real.known[condition][0], float)
        nearest = real.nearest[condition]
        self._weights = (1 / np.bincount(nearest, minlength=count).clip(1))[nearest]
        self._weights *= len(nearest) / self._weights.sum()
        self._targets = np.log(real.known[condition])[:, None] if self._is_number else np.eye(count)[nearest]
        names = sorted(set(real.groups))
        order = np.random.default_rng(0).permutation(len(names))
        folds = np.array([order[names.index(group)] % FOLDS for group in real.groups])
        scores = {strength: self._cross_validate(folds, strength) for strength in STRENGTHS}
        self.strength = max(scores, key=lambda strength: scores[strength])
        self.cross_validated = scores[self.strength]
        """The score of groups left out."""

    def read(self, features: Features) -> NDArray:
        """Reads the values of images: (M,) numbers, or indices of categories."""
        return self._decode(predict(self._real.features, self._targets, self._weights, self.strength, features))

    def summarize(self, found: NDArray, index: int) -> float:
        """Geometric mean of the numbers that were read, or the share of images read as the category `index`."""
        return float(np.exp(np.log(found).mean()) if self._is_number else (found == index).mean())

    def score(self, found: NDArray, asked: Sequence[Value], nearest: NDArray) -> float:
        """Rank correlation of numbers, or mean over the categories of the share that is read correctly."""
        if self._is_number:
            return float(spearmanr(found, np.array(asked, float)).statistic)
        return float(np.mean([(found[nearest == index] == index).mean() for index in np.unique(nearest)]))

    def _decode(self, predicted: NDArray) -> NDArray:
        return np.exp(predicted[:, 0]) if self._is_number else predicted.argmax(axis=1)

    def _cross_validate(self, folds: NDArray, strength: float) -> float:
        real, found = self._real, np.zeros(len(folds))
        for fold in range(FOLDS):
            out = folds == fold
            seen = (real.features[~out], self._targets[~out], self._weights[~out])
            found[out] = self._decode(predict(*seen, strength, real.features[out]))
        return self.score(found, real.known[self._condition], real.nearest[self._condition])


def compare(features: Features, real: Sequence[Features | None]) -> list[float | None]:
    """KID of images to real crops of each value; None where there are none."""
    return [None if other is None else compute_kid(features, other)[0] for other in real]


def score(arguments: argparse.Namespace) -> None:
    """Generates images of one run and scores them."""
    run_dir, count = arguments.runs / name_run(arguments), arguments.images
    generator = prepare_generator(run_dir)
    extractor = build_extractor("efficientnet-lite0", device=pick_device().type)

    def measure(images: Images) -> Features:
        return compute_features(images, extractor)

    dataset = prepare_dataset(arguments.dataset, arguments.runs / "data")
    training, held_out = (RealCrops(arguments.dataset, dataset, split, measure) for split in ("train", "val"))
    open_features = measure(generate(generator, [{}] * arguments.range_images, 0))
    conditions, shown, real_shown = {}, [], []
    for condition in conditions_of(generator):
        name, asked = condition.name, SETTINGS[arguments.dataset].values[condition.name]
        reader = Reader(training, name, len(asked))
        crops = [held_out.cut(name, index, count) for index in range(len(asked))]
        real = [None if images is None else measure(images) for images in crops]
        seen_crops = [training.cut(name, index, count) for index in range(len(asked))]
        seen = [None if images is None else measure(images) for images in seen_crops]
        rows, read = [], []
        for index, value in enumerate(asked):
            images = generate(generator, [{name: value}] * count, 10_000)
            features, known = measure(images), seen[index]
            read.append(reader.read(features))
            row = {
                "value": value,
                "training": training.count(name, index),
                "held_out": held_out.count(name, index),
                "real": None if known is None else compare(known, real),
                "generated": compare(features, real),
                "generated_to_training": compare(features, seen),
                "read": reader.summarize(read[-1], index),
            }
            rows.append(row)
            print(name, json.dumps(row), flush=True)
            shown.append(list(images[:SHOWN]))
            held = crops[index]
            real_shown.append(list(np.full_like(images[:SHOWN], 255) if held is None else held[:SHOWN]))
        scores = {
            "cross_validated": reader.cross_validated,
            "held_out": reader.score(reader.read(held_out.features), held_out.known[name], held_out.nearest[name]),
        }
        if condition.categories:
            places, open_places = np.repeat(np.arange(len(asked)), count), np.arange(len(open_features)) % len(asked)
            scores["generated"] = reader.score(np.concatenate(read), [], places)
            scores["open"] = reader.score(reader.read(open_features), [], open_places)
        else:
            low, high = math.log(condition.low), math.log(condition.high)
            wanted = [float(each) for each in np.exp(np.random.default_rng(1).uniform(low, high, len(open_features)))]
            features = measure(generate(generator, [{name: value} for value in wanted], 0))
            scores["generated"] = reader.score(reader.read(features), wanted, np.empty(0))
            scores["open"] = reader.score(reader.read(open_features), wanted, np.empty(0))
        print(name, json.dumps(scores), flush=True)
        found = {"rows": rows, "open": compare(open_features, real), "reader": scores, "strength": reader.strength}
        conditions[name] = {**found, "is_number": not condition.categories}
    save_image(run_dir / "generated.png", build_sheet(shown, 80))
    beside = [[*first, *second] for first, second in zip(real_shown, shown, strict=True)]
    save_image(run_dir / "beside-real.png", build_sheet(beside, 80))
    steps = load_json(run_dir / "result.json")["global_step"]
    losses = [row["val_loss"] for _, row in read_metrics(run_dir / "metrics.jsonl") if "val_loss" in row]
    described = {"dataset": arguments.dataset, "start": arguments.start, "seed": arguments.seed, "steps": steps}
    counts = {"images": count, "range_images": arguments.range_images, "batch_size": arguments.batch_size}
    save_json(run_dir / "score.json", {**described, **counts, "val_losses": losses, "conditions": conditions})


def write_table(arguments: argparse.Namespace) -> None:
    """Gathers the scores and pictures of all runs."""
    runs = []
    for path in sorted(arguments.runs.glob("*/score.json")):
        runs.append(load_json(path))
        shutil.copyfile(path.parent / "generated.png", RESULTS / f"conditions-{runs[-1]['dataset']}.png")
    made_by = next(arguments.runs.glob("*/score.json")).parent if runs else None
    save_results(RESULTS / "conditions.json", {"runs": runs}, show=False, run_dir=made_by)


def main() -> None:
    """Runs one of the three parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("run", "score", "table"))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/conditions"), help="folder of the runs")
    parser.add_argument("--dataset", choices=sorted(SETTINGS), default="uhcs")
    parser.add_argument("--start", choices=sorted(RATES), default="scratch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch-size", type=int, default=32, help="crops per step")
    parser.add_argument("--minutes", type=float, help="most minutes of training")
    parser.add_argument("--images", type=int, default=64, help="generated and real images per value")
    parser.add_argument("--range-images", type=int, default=256, help="images for numbers of the whole range, and open")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    {"run": run, "score": score, "table": write_table}[arguments.part](arguments)


if __name__ == "__main__":
    main()
