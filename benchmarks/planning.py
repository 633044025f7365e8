"""What `steelgen plan` chooses against three other choices, at equal training time, on sets of micrographs.

    python benchmarks/planning.py run --dataset data/uhcs --variant plan --seed 0
    python benchmarks/planning.py table

plan: as planned for `--minutes`, a cascade. one-stage: crops as large as the islands and the texture allow, without a
refining stage. one-stage-scratch: the same, trained from scratch. native: crops at the micrographs' own resolution,
without a refining stage. coarse: crops of twice the edge of those of one-stage. A set without a val split is divided;
masks of its held-out micrographs are drawn, 256 px of the micrographs each, and images of a coarser scale enlarged
bicubically. KID to other held-out places: of the whole images shrunk to 64 px (layout), and of their quarters as they
are (detail). `run` resumes with the same arguments; `table` gathers all runs.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transfer
from cascade import FIRST, Drawing, draw_images
from common import save_results
from fitting import train_to_end
from numpy.typing import NDArray

from steelgen.config.base import parse_config
from steelgen.config.sample import REFINING_SOLVER
from steelgen.config.train import FinetuneConfig, TrainConfig
from steelgen.data.crops import cut_crops, load_micrographs
from steelgen.data.images import save_image
from steelgen.data.placement import CropGeometry, find_whole_size, resize_image, resize_mask
from steelgen.data.sheets import build_sheet
from steelgen.evaluation.features import build_extractor, compute_features
from steelgen.evaluation.fidelity import compute_kid, compute_precision_recall
from steelgen.files import load_json, save_json
from steelgen.generators import Generator
from steelgen.generators.cascade import build_cascade
from steelgen.generators.families import load_generator
from steelgen.planning import rules, scale
from steelgen.planning.plan import plan

RESULTS = Path(__file__).parent / "results"
DATASETS = ("data/uhcs", "data/pretraining/uhcs_spheroidite", "data/pretraining/tem_316l_loops")
VARIANTS = ("plan", "one-stage", "one-stage-scratch", "native", "coarse")
FIELD, LAYOUT = 256, 64
"""Edge of the images that are scored, in px of the micrographs, and of the same shrunk."""


def prepare_dataset(source: Path, folder: Path) -> Path:
    """Returns the dataset folder, divided as in transfer.py if it has no val split."""
    return source if (source / "val").is_dir() else transfer.prepare_dataset(source, 0, 0, folder)


def load_plan(dataset: Path, folder: Path, minutes: float) -> dict[str, Any]:
    """Plans once; returns the stages, the seconds of a training step of the first, and the crops of one stage."""
    if not folder.is_dir():
        found = plan(dataset, folder, minutes)
        size, measured = found.training.data.image_size, found.fingerprint
        crop = scale.choose_crop_size(size, measured.smallest_edge, measured.features, measured.detail).value
        save_json(folder / "one_stage.json", {"crop_size": crop, "smallest_edge": measured.smallest_edge})
    return {
        "stages": load_json(folder / "workflow.json"),
        "seconds": load_json(folder / "plan.json")["step"]["seconds"],
        **load_json(folder / "one_stage.json"),
    }


def build_stages(variant: str, planned: dict[str, Any], minutes: float) -> list[dict[str, Any]] | None:
    """Builds the configs of a variant's training stages, the first and its refining one; None if equal to one-stage.

    Args:
        variant: one of VARIANTS.
        planned: from `load_plan`.
        minutes: time for training.
    """
    stages, crop = planned["stages"], planned["crop_size"]
    first = stages.get("finetune") or stages["train"]
    size = first["data"]["image_size"]
    if variant == "plan":
        return [first, stages["refine"]] if "refine" in stages else [first]
    chosen = {"native": size, "coarse": min(2 * crop, planned["smallest_edge"] // 8 * 8)}.get(variant, crop)
    if chosen == crop and not variant.startswith("one-stage"):
        return None
    steps = rules.choose_steps(minutes, planned["seconds"]).value
    training = {
        **first["train"],
        "max_steps": steps,
        "ema_decay": rules.choose_ema_decay(steps).value,
        "warmup_steps": min(100, steps // 10),
    }
    stage = {**first, "data": {**first["data"], "crop_size": chosen}, "train": training}
    if variant == "one-stage-scratch":
        stage = {name: section for name, section in stage.items() if name != "checkpoint"}
        stage["generator"] = {"unet": dict(rules.SMALL_NETWORK)}
        training["learning_rate"] = rules.choose_learning_rate(None, rules.SMALL_NETWORK["base_channels"]).value
    return [stage]


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
    return load_generator(train_to_end(parse_config(values, FinetuneConfig if "checkpoint" in values else TrainConfig)))


def draw_fields(generators: list[Generator], masks: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """Draws images (N, FIELD, FIELD) for masks of this size, at the scale of the last generator, and enlarges them."""
    geometry = generators[-1].geometry
    height, width = find_whole_size((FIELD, FIELD), geometry)
    margin = max(0, geometry.image_size - height + 1) // 2  # a coarse network sees more than the field
    system = Drawing(generators[0], FIRST, margin)
    if len(generators) > 1:
        names = [Path("first"), Path("refining")]
        system = Drawing(build_cascade(generators, [FIRST, REFINING_SOLVER], names), None, margin)
    images, _ = draw_images(system, np.stack([resize_mask(mask, height, width) for mask in masks]), seed)
    return np.stack([resize_image(image, FIELD, FIELD) for image in images])


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
    planned = load_plan(dataset, runs / f"plan-{source.name}-{arguments.minutes:g}min", arguments.minutes)
    chosen = build_stages(variant, planned, arguments.minutes)
    described = {"dataset": source.name, "variant": variant, "seed": arguments.seed, "minutes": arguments.minutes}
    if chosen is None:
        save_json(path, {**described, "equal": "one-stage"})
        return
    generators = [train_stage(stage, runs / name / str(number), arguments.seed) for number, stage in enumerate(chosen)]
    judge = Judge(dataset, arguments.images)
    images = draw_fields(generators, judge.masks, arguments.seed)
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
        found = [load_json(path) for path in (arguments.runs / "scores").glob("*.json")]
        found.sort(key=lambda run: (run["dataset"], VARIANTS.index(run["variant"]), run["seed"]))
        save_results(RESULTS / "planning.json", {"runs": found})


if __name__ == "__main__":
    main()
