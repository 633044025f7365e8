"""What `steelgen plan` chooses against three other choices, at equal training time, on sets of micrographs.

    python benchmarks/planning.py run --dataset data/uhcs --variant plan --seed 0
    python benchmarks/planning.py table

plan: as planned for `--minutes`. scratch: the same crops and networks, trained from scratch at the plan's rate for it.
half: crops at half the micrographs' resolution, and a refining stage of 2 with a quarter of the time. native: crops at
their own resolution, one stage. coarse: crops of twice the plan's edge, one stage. A set without a val split is
divided; masks of its held-out micrographs are drawn, 256 px of the micrographs each, and images of a coarser scale
enlarged bicubically. KID to other held-out places: of the whole images shrunk to 64 px (layout), and of their quarters
as they are (detail). `run` resumes with the same arguments; `table` gathers all runs.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import LinePrinter, save_results
from numpy.typing import NDArray

from steelgen.config.base import parse_config
from steelgen.config.sample import REFINING_SOLVER
from steelgen.config.solver import SolverSection
from steelgen.config.train import FinetuneConfig, TrainConfig
from steelgen.data.crops import cut_crops, load_micrographs, tensor_to_image
from steelgen.data.images import save_image
from steelgen.data.placement import CropGeometry, find_whole_size, resize_image, resize_mask
from steelgen.data.resplit import resplit_dataset
from steelgen.data.sheets import build_sheet
from steelgen.errors import InputError
from steelgen.evaluation.features import build_extractor, compute_features
from steelgen.evaluation.fidelity import compute_kid, compute_precision_recall
from steelgen.files import load_json, save_json
from steelgen.generators import Generator
from steelgen.generators.cascade import build_cascade
from steelgen.generators.drawing import draw_for_masks
from steelgen.generators.families import load_generator
from steelgen.planning import rules
from steelgen.planning.plan import plan
from steelgen.training.loop import finetune, train

RESULTS = Path(__file__).parent / "results"
DATASETS = ("data/uhcs", "data/pretraining/uhcs_spheroidite", "data/pretraining/tem_316l_loops")
VARIANTS = ("plan", "scratch", "half", "native", "coarse")
HELD_OUT = 0.4
FIELD, LAYOUT = 256, 64
"""Edge of the images that are scored, in px of the micrographs, and of the same shrunk."""
REFINING_COST = 0.31
"""CPU time of a training step of the second stage in steps of the first; see results/cascade.json."""
SOLVER = SolverSection(num_inference_steps=8, window_overlap=0.25)
BATCH = 8


def prepare_dataset(source: Path, folder: Path) -> Path:
    """Returns the dataset folder, divided if it has no val split."""
    if (source / "val").is_dir():
        return source
    if not (folder / source.name).is_dir():
        resplit_dataset(source, folder / source.name, {"train": 1 - HELD_OUT, "val": HELD_OUT})
    return folder / source.name


def load_plan(dataset: Path, folder: Path, minutes: float) -> tuple[dict[str, Any], float]:
    """Plans once; returns the stages and the seconds of a training step of the first."""
    if not folder.is_dir():
        plan(dataset, folder, minutes)
    return load_json(folder / "workflow.json"), load_json(folder / "plan.json")["step"]["seconds"]


def build_stages(
    variant: str, stages: dict[str, Any], seconds: float, minutes: float, edge: int
) -> list[dict[str, Any]] | None:
    """Builds the configs of a variant's training stages, the first and its refining one; None if equal to the plan.

    Args:
        variant: one of VARIANTS.
        stages: of the plan.
        seconds: of a training step of the first.
        minutes: time for training.
        edge: of the smallest micrograph.
    """
    first, refining = stages.get("finetune") or stages["train"], stages.get("refine")
    size, crop = first["data"]["image_size"], first["data"]["crop_size"]
    chosen = [first, refining] if refining else [first]
    if variant == "plan":
        return chosen
    if variant == "scratch":
        if "checkpoint" not in first:
            return None
        networks: tuple[dict[str, Any], ...] = ({"unet": dict(rules.SMALL_NETWORK)},)
        if refining:
            factor = round(crop / refining["data"]["crop_size"])
            networks += ({"unet": dict(rules.REFINING_NETWORK), "low_resolution": {"factor": factor}},)
        return [_start_anew(stage, network) for stage, network in zip(chosen, networks, strict=True)]
    other = {"half": 2 * size, "native": size, "coarse": min(2 * crop, edge // 8 * 8)}[variant]
    if variant != "half":
        return [_change(first, other, minutes, seconds)] if other != crop or refining else None
    if other == crop and refining:
        return None
    second = {**first, "checkpoint": f"{first['checkpoint']}/refine"}
    own = minutes * rules.REFINING_SHARE
    return [
        _change(first, other, minutes - own, seconds),
        _change(second, size, own, REFINING_COST * seconds, rules.REFINING_NETWORK["base_channels"]),
    ]


def _change(
    stage: dict[str, Any], crop: int, minutes: float, seconds: float, channels: int | None = None
) -> dict[str, Any]:
    """Changes the crops of a stage, and its steps to those that fit into the time."""
    steps = rules.choose_steps(minutes, seconds).value
    training = {"max_steps": steps, "ema_decay": rules.choose_ema_decay(steps).value}
    training |= {"warmup_steps": min(100, steps // 10)}
    if channels:
        training["learning_rate"] = rules.choose_learning_rate(stage["checkpoint"], channels).value
    return {**stage, "data": {**stage["data"], "crop_size": crop}, "train": {**stage["train"], **training}}


def _start_anew(stage: dict[str, Any], generator: dict[str, Any]) -> dict[str, Any]:
    rate = rules.choose_learning_rate(None, generator["unet"]["base_channels"]).value
    kept = {name: section for name, section in stage.items() if name != "checkpoint"}
    return {**kept, "generator": generator, "train": {**stage["train"], "learning_rate": rate}}


def train_stage(values: dict[str, Any], run_dir: Path, seed: int) -> Generator:
    """Trains a stage, or resumes or loads it."""
    training = {name: value for name, value in values["train"].items() if name != "max_minutes"}
    values = {
        **values,
        "run_dir": str(run_dir),
        "seed": seed,
        "train": {**training, "keep_checkpoints": 1, "trackers": []},
        "preview": {"num_images": 0},
        "measurement": {"every": None},
    }
    if "checkpoint" in values:
        result = finetune(parse_config(values, FinetuneConfig), LinePrinter(), resume=True)
    else:
        result = train(parse_config(values, TrainConfig), LinePrinter(), resume=True)
    if result.export is None:
        raise InputError(f"{run_dir}: stopped by {result.stopped_by}; run it again to resume")
    return load_generator(result.export)


def draw_images(generators: list[Generator], masks: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """Draws images (N, FIELD, FIELD) for masks of this size, at the scale of the last generator, and enlarges them."""
    generator: Generator = generators[0]
    solver: SolverSection | None = SOLVER
    if len(generators) > 1:
        names = [Path("first"), Path("refining")]
        generator, solver = build_cascade(generators, [SOLVER, REFINING_SOLVER], names), None
    geometry = generators[-1].geometry
    height, width = find_whole_size((FIELD, FIELD), geometry)
    margin = max(0, geometry.image_size - height + 1) // 2  # a coarse network sees more than the field
    small = np.stack([np.pad(resize_mask(mask, height, width), margin, mode="symmetric") for mask in masks])
    images = []
    for start in range(0, len(small), BATCH):
        batch = torch.from_numpy(small[start : start + BATCH].astype(np.int64))
        seeds = [10_000 * seed + start + number for number in range(len(batch))]
        images += [tensor_to_image(image) for image in draw_for_masks(generator, batch, seeds, solver)]
    cut = [image[margin : margin + height, margin : margin + width] for image in images]
    return np.stack([resize_image(image, FIELD, FIELD) for image in cut])


class Judge:
    """Scores images for the masks of held-out places against others.

    Args:
        dataset: dataset folder.
        count: images.
    """

    def __init__(self, dataset: Path, count: int) -> None:
        geometry = CropGeometry(FIELD, FIELD)
        held_out = load_micrographs(dataset, "val")
        self.real, _ = cut_crops(held_out, geometry, 4 * count, seed=1)
        _, self.masks = cut_crops(held_out, geometry, count, seed=2)
        self._extractor = build_extractor("efficientnet-lite0")
        self._features = self._find_features(self.real)
        self.floor = self.score(cut_crops(load_micrographs(dataset, "train"), geometry, count)[0])

    def score(self, images: NDArray[np.uint8]) -> dict[str, float]:
        """Returns KID and recall at both scales."""
        found = {}
        for name, features in self._find_features(images).items():
            found[f"kid_{name}"] = compute_kid(self._features[name], features)[0]
            found[f"recall_{name}"] = compute_precision_recall(self._features[name], features)[1]
        return found

    def _find_features(self, images: NDArray[np.uint8]) -> dict[str, NDArray[np.floating]]:
        half = FIELD // 2
        corners = [(top, left) for top in (0, half) for left in (0, half)]
        quarters = [image[top : top + half, left : left + half] for image in images for top, left in corners]
        views = {"layout": [resize_image(image, LAYOUT, LAYOUT) for image in images], "detail": quarters}
        return {name: compute_features(np.stack(view), self._extractor) for name, view in views.items()}


def run(arguments: argparse.Namespace) -> None:
    """Trains, draws and scores one variant on one set with one seed."""
    runs, source, variant = arguments.runs, Path(arguments.dataset), arguments.variant
    name = f"{source.name}-{variant}-seed{arguments.seed}-{arguments.minutes:g}min"
    path = runs / "scores" / f"{name}.json"
    if path.is_file():
        return
    dataset = prepare_dataset(source, runs / "data")
    stages, seconds = load_plan(dataset, runs / f"plan-{source.name}-{arguments.minutes:g}min", arguments.minutes)
    shortest = min(min(image.shape[:2]) for image in load_micrographs(dataset, "train").images)
    chosen = build_stages(variant, stages, seconds, arguments.minutes, shortest)
    described = {"dataset": source.name, "variant": variant, "seed": arguments.seed, "minutes": arguments.minutes}
    if chosen is None:
        save_json(path, {**described, "equal": "plan"})
        return
    generators = [train_stage(stage, runs / name / str(number), arguments.seed) for number, stage in enumerate(chosen)]
    judge = Judge(dataset, arguments.images)
    images = draw_images(generators, judge.masks, arguments.seed)
    save_image(runs / f"{name}.png", build_sheet([list(part[:6]) for part in (images, judge.real)], FIELD))
    shown = [
        {"crop_size": stage["data"]["crop_size"], "image_size": stage["data"]["image_size"]}
        | {"start": stage.get("checkpoint"), "steps": stage["train"]["max_steps"]}
        for stage in chosen
    ]
    save_json(path, {**described, "stages": shown, "floor": judge.floor, "score": judge.score(images)})
    print(name, load_json(path)["score"], flush=True)


def main() -> None:
    """Runs one of the two parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("run", "table"))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/planning"), help="folder of runs and scores")
    parser.add_argument("--dataset", default=DATASETS[0], help="a dataset folder with masks")
    parser.add_argument("--variant", choices=VARIANTS, default="plan")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=5, help="minutes of training")
    parser.add_argument("--images", type=int, default=24, help="images per score")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.part == "run":
        os.nice(10)
        run(arguments)
    else:
        found = [load_json(path) for path in sorted((arguments.runs / "scores").glob("*.json"))]
        save_results(RESULTS / "planning.json", {"runs": found})


if __name__ == "__main__":
    main()
