"""Adversarial generators and diffusion: KID, variety, copies, and speed after equal training time on one core.

    python benchmarks/gan.py time
    python benchmarks/gan.py run --system style --data 16 --seed 0 --minutes 20
    python benchmarks/gan.py leak --minutes 5
    python benchmarks/gan.py table

Systems: dcgan; style, the style-based generator with adaptive augmentation, style-no-ada without it, style-batch8 and
style-batch4 with 8 and 4 crops a step instead of 16; diffusion, semantic diffusion without masks; masked-fine, the
mask-conditioned adversarial generator, masked, the same without `fine_discriminator`, and masked-diffusion. Data: the
16 training micrographs of uhcs, 4 of them, or `large`, the training micrographs of the dataset folder given by --large.

Equal time does not depend on the load of the machine: `time` measures a training step of every system alternately, in
CPU seconds of one thread, and `run` trains for as many steps as fit into the minutes. `run` can be stopped at any time
and resumes with the same arguments. EMA weights are scored against crops of the test split; the floor compares training
crops with the same. `leak` trains on lamellae of nearly the same direction and counts how many generated ones have that
direction. `table` writes the results.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from charts import plot_curves
from common import save_results, summarize, time_alternately
from fitting import train_to_end
from numpy.typing import NDArray
from torch.utils.data import default_collate

from steelgen.config.base import parse_config
from steelgen.config.solver import SolverSection
from steelgen.config.train import TrainConfig
from steelgen.data.crops import cut_crops, load_micrographs, tensor_to_image
from steelgen.data.folder import DatasetInfo, list_splits, save_dataset_info, save_mask
from steelgen.data.images import save_image
from steelgen.data.sheets import build_sheet
from steelgen.errors import InputError
from steelgen.evaluation.copy_search import CopySearch
from steelgen.evaluation.features import build_extractor, compute_features
from steelgen.evaluation.fidelity import compute_frechet_distance, compute_kid, compute_precision_recall
from steelgen.evaluation.memorization import COPY_RATIO
from steelgen.files import load_json, new_folder, save_json
from steelgen.generators import Generator, Latents, LatentSpace
from steelgen.generators.drawing import draw_for_masks
from steelgen.generators.families import build_trainable, load_generator
from steelgen.sampling.interpolate import lerp
from steelgen.training.phases import freeze_others
from steelgen.training.setup import build_crops, place_networks, prepare_training
from steelgen.training.state import build_state

DATASET = Path(__file__).parents[1] / "data" / "uhcs"
RESULTS = Path(__file__).parent / "results"
FEW = 4
"""Micrographs in the small set."""
SEARCHED = 32
"""Images searched for copies."""
SOLVER = SolverSection(num_inference_steps=12)

_STYLE = {"kind": "gan", "architecture": "style", "base_channels": 16, "ada_images": 20000}
UNET = {
    "base_channels": 16,
    "channel_mult": [1, 2, 4],
    "num_res_blocks": 1,
    "attention_resolutions": [8],
    "num_head_channels": 16,
    "spade_channels": 32,
    "norm_groups": 8,
}
_DIFFUSION = {"kind": "semantic_diffusion", "unet": UNET}
_ADVERSARIAL_RATE = {"learning_rate": 0.002, "weight_decay": 0.0, "max_grad_norm": None}
_DIFFUSION_RATE = {"learning_rate": 0.001}
SYSTEMS: dict[str, dict[str, Any]] = {
    "dcgan": {
        "generator": {"kind": "gan", "base_channels": 32},
        "train": {"learning_rate": 0.0002, "weight_decay": 0.0, "max_grad_norm": None},
    },
    "style": {"generator": _STYLE, "train": _ADVERSARIAL_RATE},
    "style-batch8": {"generator": _STYLE, "train": {**_ADVERSARIAL_RATE, "train_batch_size": 8}},
    "style-batch4": {"generator": _STYLE, "train": {**_ADVERSARIAL_RATE, "train_batch_size": 4}},
    "style-no-ada": {"generator": {**_STYLE, "ada_target": None}, "train": _ADVERSARIAL_RATE},
    "diffusion": {"generator": _DIFFUSION, "train": _DIFFUSION_RATE, "unconditional": True},
    "masked": {
        "generator": {**_STYLE, "condition": "mask", "spade_channels": 16, "fine_discriminator": False},
        "train": {**_ADVERSARIAL_RATE, "lr_scheduler": "cosine"},
    },
    "masked-fine": {
        "generator": {**_STYLE, "condition": "mask", "spade_channels": 16},
        "train": {**_ADVERSARIAL_RATE, "lr_scheduler": "cosine"},
    },
    "masked-diffusion": {"generator": _DIFFUSION, "train": _DIFFUSION_RATE},
}
DATA = ("16", "4", "large")


def build_config(
    system: str, dataset: Path, run_dir: Path, seed: int = 0, steps: int = 1, **generator: Any
) -> TrainConfig:
    """Builds a system's config; see `build_values`."""
    values = build_values(SYSTEMS[system], dataset, run_dir, seed, steps)
    values["generator"] |= generator
    return parse_config(values, TrainConfig)


def build_values(chosen: dict[str, Any], dataset: Path, run_dir: Path, seed: int, steps: int) -> dict[str, Any]:
    """Builds the values of a config from those of a system, with frequent checkpoints and without validation and
    measurement."""
    return {
        "run_dir": str(run_dir),
        "seed": seed,
        "data": {
            "dataset": str(dataset),
            "image_size": 32,
            "crop_size": 64,
            "unconditional": chosen.get("unconditional", False),
        },
        "generator": dict(chosen["generator"]),
        "train": {
            "max_steps": steps,
            "train_batch_size": 16,
            "warmup_steps": 50,
            "ema_decay": 0.995,
            "checkpoint_every": 100,
            "keep_checkpoints": 1,
            "trackers": [],
            **chosen["train"],
        },
        "preview": {"num_images": 0},
        "validation": {"split": None},
    }


def build_step(system: str) -> Callable[[], None]:
    """Builds a function that runs one complete training step of a system."""
    config = build_config(system, DATASET, Path("unused"))
    generator, micrographs = prepare_training(config)
    trainable = build_trainable(generator, config)
    crops = build_crops(config, trainable, micrographs)
    place_networks(trainable.networks, config.train, torch.device("cpu"))
    state = build_state(config, trainable, None, len(crops), criterion=None)

    def step() -> None:
        first = state.step * config.train.train_batch_size
        batch = default_collate([crops[first + index] for index in range(config.train.train_batch_size)])
        for phase in trainable.phases:
            freeze_others(trainable.networks, phase)
            trainable.compute_loss(phase, trainable.networks, batch).losses.mean().backward()
            state.optimizers[phase.name].step()
            state.network.zero_grad(set_to_none=True)
        state.step += 1
        for average in state.averages:
            average.update(state.step)
        trainable.end_step(lambda tensor: tensor)

    return step


def find_dataset(data: str, runs: Path, large: Path | None) -> Path:
    """Returns the dataset folder with 16, 4, or many micrographs."""
    if data == "16":
        return DATASET
    if data == "large":
        if large is None:
            raise InputError("--data large: needs a dataset folder, --large FOLDER")
        return large
    few = runs / "few"
    if not few.is_dir():
        with new_folder(few) as working:
            shutil.copy(DATASET / "dataset.json", working)
            for split in list_splits(DATASET):
                for kind in ("images", "masks"):
                    files = sorted((DATASET / split / kind).iterdir())
                    (working / split / kind).mkdir(parents=True)
                    for file in files[:: len(files) // FEW][:FEW] if split == "train" else files:
                        shutil.copy(file, working / split / kind)
    return few


class Judge:
    """Scores generated images against crops of the test split."""

    def __init__(self, dataset: Path, generator: Generator, images: int) -> None:
        training, held_out = (load_micrographs(dataset, split) for split in ("train", "test"))
        masks_from = load_micrographs(dataset, "val") if "val" in list_splits(dataset) else training
        self.micrographs = len(training)
        real, _ = cut_crops(held_out, generator.geometry, images, seed=1)
        self._masks = cut_crops(masks_from, generator.geometry, images)[1]
        self._search = CopySearch(training, generator.geometry, 32)
        self._extractor = build_extractor("efficientnet-lite0")
        self._real = compute_features(real, self._extractor)
        seen = cut_crops(training, generator.geometry, images)[0]
        self.floor = self._compare(seen, real)

    def score(self, generator: Generator, seed: int) -> tuple[dict[str, float], NDArray[np.uint8]]:
        """Samples one image per mask and returns their scores and the images."""
        drawn: list[NDArray[np.uint8]] = []
        start_time = time.process_time()
        for start in range(0, len(self._masks), 32):
            masks = torch.from_numpy(self._masks[start : start + 32].astype(np.int64))
            seeds = [10_000 * seed + start + index for index in range(len(masks))]
            drawn += [tensor_to_image(image) for image in draw_for_masks(generator, masks, seeds, SOLVER)]
        rate = len(drawn) / (time.process_time() - start_time)
        images = np.stack(drawn)
        return {**self._compare(images, images), "images_per_second": rate}, images

    def _compare(self, images: NDArray[np.uint8], searched: NDArray[np.uint8]) -> dict[str, float]:
        features = compute_features(images, self._extractor)
        kid, spread = compute_kid(self._real, features)
        precision, recall = compute_precision_recall(self._real, features)
        matches = self._search.find(searched[:SEARCHED])
        return {
            "kid": kid,
            "kid_std": spread,
            "fd": compute_frechet_distance(self._real, features),
            "precision": precision,
            "recall": recall,
            "copies": float(np.mean([match.ratio < COPY_RATIO for match in matches])),
        }

    def walk(self, generator: Generator, steps: int = 16) -> float:
        """Returns the largest feature distance between steps of a walk in w, relative to the mean distance."""
        assert isinstance(generator, LatentSpace)
        edge = generator.geometry.image_size
        ends = generator.find_latents([0, 1], "w", (edge, edge))
        shares = [float(share) for share in np.linspace(0, 1, steps)]
        styles = torch.stack([lerp(ends.styles[0], ends.styles[1], share) for share in shares])
        latents = Latents("w", styles, ends.noise[:1].expand(steps, -1))  # constant noise
        images = draw_for_masks(generator, torch.zeros(steps, edge, edge), [0] * steps, latents=latents)
        features = compute_features(np.stack([tensor_to_image(image) for image in images]), self._extractor)
        lengths = np.linalg.norm(np.diff(features, axis=0), axis=1)
        return float(lengths.max() / lengths.mean())


def run_system(arguments: argparse.Namespace) -> None:
    """Trains and scores one system with one seed on one dataset; resumes an interrupted run.

    Raises:
        InputError: if no step times were measured, or a signal ended training.
    """
    runs, system, seed = arguments.runs, arguments.system, arguments.seed
    seconds = load_json(runs / "step_times.json")["seconds_a_step"][system]["median"]
    steps = round(60 * arguments.minutes / seconds)
    name = f"{system}-{arguments.data}-seed{seed}-{arguments.minutes:g}min"
    path = runs / "scores" / f"{name}.json"
    if path.is_file():
        return
    dataset = find_dataset(arguments.data, runs, arguments.large)
    generator = load_generator(train_to_end(build_config(system, dataset, runs / name, seed, steps)))
    judge = Judge(dataset, generator, arguments.images)
    score, images = judge.score(generator, seed)
    if system.startswith("style"):
        score["longest_step"] = judge.walk(generator)
    save_image(runs / f"{name}.png", build_sheet([list(images[start : start + 12]) for start in range(0, 48, 12)], 64))
    described = {"system": system, "data": arguments.data, "seed": seed, "minutes": arguments.minutes, "steps": steps}
    described |= {"dataset": generator.info.name, "micrographs": judge.micrographs}
    lines = [json.loads(line) for line in (runs / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    curve = [[line["step"], round(line["r_t"], 3), round(line["ada_p"], 3)] for line in lines if "ada_p" in line]
    curve = curve[:: max(1, len(curve) // 150)]
    save_json(path, {**described, "images": arguments.images, "floor": judge.floor, "score": score, "curve": curve})
    print(name, score, flush=True)


def draw_lamellae(count: int, edge: int, seed: int) -> NDArray[np.uint8]:
    """Creates noisy parallel bands, (count, edge, edge), at 0 ± 7° with random widths and phases."""
    rng = np.random.default_rng(seed)
    rows, columns = np.mgrid[:edge, :edge]
    images = []
    for _ in range(count):
        angle, period, phase = np.deg2rad(rng.normal(0, 7)), rng.uniform(6, 10), rng.uniform(0, 2 * np.pi)
        across = rows * np.cos(angle) + columns * np.sin(angle)
        wave = np.sin(2 * np.pi * across / period + phase)
        images.append(128 + 50 * wave + rng.normal(0, 8, wave.shape))
    return np.stack(images).clip(0, 255).astype(np.uint8)


def count_lying(images: NDArray[np.uint8], within: float = 20) -> float:
    """Computes the share of images whose bands lie within some degrees of 0, by the structure tensor."""
    down, across = np.gradient(images.astype(float), axis=(1, 2))
    terms = [(a * b).mean(axis=(1, 2)) for a, b in ((down, down), (across, across), (down, across))]
    angles = np.rad2deg(0.5 * np.arctan2(2 * terms[2], terms[0] - terms[1]))
    return float((np.abs(angles) < within).mean())


def run_leak(arguments: argparse.Namespace) -> None:
    """Trains on lamellae of nearly the same direction."""
    runs, path = arguments.runs, arguments.runs / "leak.json"
    seconds = load_json(runs / "step_times.json")["seconds_a_step"]["style"]["median"]
    steps = round(60 * arguments.minutes / seconds)
    dataset = runs / "lamellae"
    if not dataset.is_dir():
        with new_folder(dataset) as working:
            info = DatasetInfo(name="lamellae", class_names=["matrix"])
            for number, image in enumerate(draw_lamellae(64, 64, seed=0)):
                save_image(working / f"train/images/{number:03}.png", image)
                save_mask(working / f"train/masks/{number:03}.png", np.zeros_like(image), info.palette)
            save_dataset_info(working, info)
    config = build_config("style", dataset, runs / "leak", 0, steps)
    config = config.model_copy(update={"data": config.data.model_copy(update={"augment": False})})
    generator = load_generator(train_to_end(config))
    edge = generator.geometry.image_size
    drawn = draw_for_masks(generator, torch.zeros(256, edge, edge), range(256))
    images = np.stack([tensor_to_image(image) for image in drawn])
    save_image(runs / "leak.png", build_sheet([list(images[start : start + 12]) for start in range(0, 48, 12)], 64))
    lines = [json.loads(line) for line in (runs / "leak/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    real = load_micrographs(dataset, "train")
    seen = cut_crops(real, generator.geometry, 256)[0]
    save_json(
        path,
        {
            "steps": steps,
            "real": count_lying(seen),
            "drawn": count_lying(images),
            "mean_strength": float(np.mean([line["ada_p"] for line in lines if "ada_p" in line])),
        },
    )
    print(path.read_text(encoding="utf-8"), flush=True)


def main() -> None:
    """Runs one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("time", "run", "leak", "table"))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/gan"), help="folder of runs and scores")
    parser.add_argument("--system", choices=SYSTEMS, default="style")
    parser.add_argument("--data", choices=DATA, default="16")
    parser.add_argument("--large", type=Path, help="dataset folder of `--data large`")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=20)
    parser.add_argument("--images", type=int, default=256, help="generated images per score")
    parser.add_argument("--repeats", type=int, default=12, help="steps of each system that `time` measures")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.part == "time":
        steps = {name: build_step(name) for name in SYSTEMS}
        # Penalties occur every 4 steps, so a step costs the mean of 4.
        grouped = {name: _take(step, 4) for name, step in steps.items()}
        seconds = time_alternately(grouped, arguments.repeats // 4, time.process_time)
        rows = {name: summarize([value / 4 for value in values]) for name, values in seconds.items()}
        save_results(arguments.runs / "step_times.json", {"threads": 1, "seconds_a_step": rows})
    elif arguments.part == "run":
        run_system(arguments)
    elif arguments.part == "leak":
        run_leak(arguments)
    else:
        scores = [load_json(path) for path in sorted((arguments.runs / "scores").glob("*.json"))]
        for score in scores:
            if score["seed"] or score["system"] != "style":
                del score["curve"]
        curves = {
            f"{what} on {score['micrographs']} micrographs": [(step, values[index]) for step, *values in score["curve"]]
            for score in sorted(scores, key=lambda score: score["minutes"])  # of equal names the longest stays
            if "curve" in score
            for index, what in enumerate(("r_t", "p"))
        }
        plot_curves(curves, "step", "r_t and p", set(curves), RESULTS / "gan.png", logarithmic=False)
        leak = arguments.runs / "leak.json"
        times = load_json(arguments.runs / "step_times.json")["seconds_a_step"]
        stored = {"seconds_a_step": times, "runs": scores, "leak": load_json(leak) if leak.is_file() else None}
        save_results(RESULTS / "gan.json", stored, show=False)


def _take(step: Callable[[], None], count: int) -> Callable[[], None]:
    def take() -> None:
        for _ in range(count):
            step()

    return take


if __name__ == "__main__":
    main()
