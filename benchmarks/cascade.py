"""Images at the micrographs' own resolution: enlarged, from native windows, and refined in a cascade.

    python benchmarks/cascade.py time
    python benchmarks/cascade.py run --system cascade-2-patch --seed 0 --minutes 10
    python benchmarks/cascade.py picture --system cascade-2-patch --minutes 10
    python benchmarks/cascade.py table

All systems start from the same generator of half the resolution, --base. bicubic: its images, enlarged. native: the
base, fine-tuned on crops at full resolution. cascade-2: a refining generator behind the base. cascade-4: the base,
fine-tuned at a quarter of the resolution for half of the time, and a refining generator of factor 4. `-patch`
after a cascade's name: the refining network sees 2 × 2 pixels as one; `-exact`: the same networks, with coarse_error 0;
`-consistent`: and with consistency.

Equal time does not depend on the load of the machine: `time` measures a training step of each configuration in CPU
seconds of one thread, and `run` trains for as many steps as fit into the minutes. `run` and `picture` can be stopped at
any time and resume with the same arguments. Images of crops of the test split are compared with other crops of it; the
floor compares training crops with the same. `picture` draws whole micrographs, timed, and looks for seams. `table`
writes the results.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import save_results, time_alternately
from fitting import train_to_end
from numpy.typing import NDArray
from steps import TrainingStep

from steelgen.config.base import parse_config
from steelgen.config.sample import REFINING_SOLVER
from steelgen.config.solver import SolverSection
from steelgen.config.train import FinetuneConfig, RunConfig, TrainConfig
from steelgen.data.crops import Micrographs, cut_crops, load_micrographs, tensor_to_image
from steelgen.data.images import save_image
from steelgen.data.palette import color_mask
from steelgen.data.placement import CropGeometry
from steelgen.data.thin import shrink_mask
from steelgen.diffusion.refinement import enlarge
from steelgen.diffusion.windows import WindowLayout
from steelgen.evaluation.features import build_extractor, compute_features
from steelgen.evaluation.fidelity import compute_kid, compute_precision_recall
from steelgen.files import load_json, save_json
from steelgen.generators import Generator
from steelgen.generators.cascade import build_cascade
from steelgen.generators.drawing import draw_for_masks
from steelgen.generators.families import load_generator

DATASET = Path(__file__).parents[1] / "data" / "uhcs"
RESULTS = Path(__file__).parent / "results"
REFINE = Path(__file__).parents[1] / "configs" / "refine.json"
EDGE = 128
"""Edge of scored crops, the base's 64 px at full resolution."""
BATCH = 8
FIRST = SolverSection(num_inference_steps=8, window_overlap=0.25)
NETWORKS: dict[str, dict[str, Any]] = {
    "pixel": {"channel_mult": [0.5, 1, 2], "patch_size": 1},
    "patch": {"channel_mult": [1, 1, 2], "patch_size": 2},
}
"""What refining networks have instead of the settings of configs/refine.json."""
CHANGES: dict[str, dict[str, Any]] = {
    "consistent": {"coarse_error": 0.0, "consistency": True},
    "exact": {"coarse_error": 0.0},
}
"""What the solver of refining networks has instead of REFINING_SOLVER's settings, by the end of a system's name."""
SYSTEMS = (
    *("bicubic", "native", "cascade-2-exact", "cascade-2-consistent"),
    *("cascade-2-patch", "cascade-2-patch-exact", "cascade-4-exact"),
)


def build_config(part: str, base: Path, run_dir: Path, seed: int = 0, steps: int = 1) -> RunConfig:
    """Builds the config of "native", "quarter", "refine-FACTOR", or "refine-FACTOR-patch"."""
    values = load_json(REFINE)
    refines = part.startswith("refine")
    values = {
        "run_dir": str(run_dir),
        "seed": seed,
        "data": {"dataset": str(DATASET), "image_size": 64, "crop_size": 256 if part == "quarter" else 64},
        "train": {
            **values["train"],
            "max_steps": steps,
            "learning_rate": 1e-3 if refines else 3e-4,
            "warmup_steps": 30,
            "ema_decay": 0.98,
            "checkpoint_every": 20,
            "keep_checkpoints": 1,
            "trackers": [],
        },
        "preview": {"num_images": 0},
        "validation": {"split": None},
        **({"generator": values["generator"]} if refines else {"checkpoint": str(base)}),
    }
    if refines:
        values["generator"]["low_resolution"]["factor"] = int(part.split("-")[1])
        values["generator"]["unet"] |= NETWORKS["patch" if part.endswith("-patch") else "pixel"]
    return parse_config(values, TrainConfig if refines else FinetuneConfig)


def measure_steps(base: Path, repeats: int) -> dict[str, float]:
    """Measures a training step of each part alternately, in median CPU seconds."""

    parts = {
        part: TrainingStep(build_config(part, base, Path("unused")))
        for part in ("native", "quarter", "refine-2", "refine-2-patch", "refine-4")
    }
    return {
        part: float(np.median(found)) for part, found in time_alternately(parts, repeats, time.process_time).items()
    }


def train_part(part: str, arguments: argparse.Namespace, minutes: float) -> Generator:
    """Trains a part of a system, or resumes or loads it."""
    seconds = load_json(arguments.runs / "step_times.json")[part]
    steps = max(1, round(60 * minutes / seconds))
    run_dir = arguments.runs / f"{part}-seed{arguments.seed}-{minutes:g}min"
    config = build_config(part, arguments.base, run_dir, arguments.seed, steps)
    return load_generator(train_to_end(config))


class _Enlarged:
    """A generator's images, enlarged bicubically to the size of the masks."""

    def __init__(self, generator: Generator, factor: int) -> None:
        self.generator, self.factor = generator, factor

    def draw_coarse(self, masks: torch.Tensor, seeds: list[int]) -> torch.Tensor:
        small = np.stack([shrink_mask(mask.numpy().astype(np.uint8), self.factor) for mask in masks])
        return draw_for_masks(self.generator, torch.from_numpy(small.astype(np.int64)), seeds, FIRST)

    def draw(self, masks: torch.Tensor, seeds: list[int]) -> torch.Tensor:
        return enlarge(self.draw_coarse(masks, seeds), self.factor, masks.shape[1:]).clamp(-1, 1)


def build_system(name: str, arguments: argparse.Namespace) -> Any:
    """Trains and builds a system: an object whose `draw` returns images for masks and seeds."""
    base, minutes = load_generator(arguments.base), arguments.minutes
    if name == "bicubic":
        return _Enlarged(base, 2)
    if name == "native":
        return Drawing(train_part("native", arguments, minutes), FIRST)
    factor = int(name.split("-")[1])
    if factor == 4:
        base, minutes = train_part("quarter", arguments, minutes / 2), minutes / 2
    refining = train_part(f"refine-{factor}{'-patch' if 'patch' in name else ''}", arguments, minutes)
    solver = REFINING_SOLVER.model_copy(update=CHANGES.get(name.split("-")[-1], {}))
    cascade = build_cascade([base, refining], [FIRST, solver], [arguments.base, REFINE])
    # Masks of EDGE px are smaller than the first stage's images at a quarter of the resolution.
    return Drawing(cascade, None, max(0, factor * base.geometry.image_size - EDGE) // 2)


class Drawing:
    """A generator with its solver; masks are mirrored at their edges by `margin` px, which images lack again."""

    def __init__(self, generator: Any, solver: SolverSection | None, margin: int = 0) -> None:
        self._generator, self._solver, self._margin = generator, solver, margin

    def draw(self, masks: torch.Tensor, seeds: list[int]) -> torch.Tensor:
        margin, (height, width) = self._margin, masks.shape[1:]
        padded = np.pad(masks.numpy(), ((0, 0), (margin, margin), (margin, margin)), mode="symmetric")
        images = draw_for_masks(self._generator, torch.from_numpy(padded), seeds, self._solver)
        return images[:, :, margin : margin + height, margin : margin + width]


def draw_images(system: Any, masks: NDArray[np.uint8], seed: int) -> tuple[list[NDArray[np.uint8]], float]:
    """Draws an image per mask; also returns megapixels per CPU minute."""
    images, start_time = [], time.process_time()
    for start in range(0, len(masks), BATCH):
        batch = torch.from_numpy(masks[start : start + BATCH].astype(np.int64))
        seeds = [10_000 * seed + start + number for number in range(len(batch))]
        images += [tensor_to_image(image) for image in system.draw(batch, seeds)]
    minutes = (time.process_time() - start_time) / 60
    return images, sum(image.size for image in images) / 1e6 / minutes


def measure_upper_octave(images: NDArray[np.uint8]) -> float:
    """Measures the mean power of the frequencies between half of Nyquist's and Nyquist's, in any direction."""
    window = np.hanning(images.shape[1])[:, None] * np.hanning(images.shape[2])
    gray = images - images.mean(axis=(1, 2), keepdims=True)
    power = np.abs(np.fft.fft2(gray * window)) ** 2
    down, across = np.meshgrid(*(np.fft.fftfreq(edge) for edge in images.shape[1:]), indexing="ij")
    radius = np.hypot(down, across)
    return float(power[:, (radius >= 0.25) & (radius < 0.5)].mean())


def measure_seams(image: NDArray[np.uint8], edge: int, overlap: float) -> float:
    """Measures the mean gradient across the borders of windows, relative to that across all other pixel edges."""
    gray = image.astype(float)
    origins = WindowLayout(*image.shape, edge, overlap, False).origins
    ratios = []
    for axis, extent in enumerate(image.shape):
        starts = {origin[axis] for origin in origins}
        borders = sorted({place for start in starts for place in (start, start + edge) if 0 < place < extent})
        gradients = np.abs(np.diff(gray, axis=axis)).mean(axis=1 - axis)
        at = np.zeros(len(gradients), bool)
        at[[border - 1 for border in borders]] = True
        ratios.append(gradients[at].mean() / gradients[~at].mean())
    return float(np.mean(ratios))


class Judge:
    """Scores images of crops against others of the same split."""

    def __init__(self, count: int) -> None:
        geometry = CropGeometry(EDGE, EDGE)
        training, held_out = load_micrographs(DATASET, "train"), load_micrographs(DATASET, "test")
        self.real, _ = cut_crops(held_out, geometry, count, seed=1)
        _, self.masks = cut_crops(held_out, geometry, count, seed=2)
        self._extractor = build_extractor("efficientnet-lite0")
        self._features = compute_features(self.real, self._extractor)
        self.floor = self.compare(cut_crops(training, geometry, count)[0])

    def compare(self, images: NDArray[np.uint8]) -> dict[str, float]:
        """Returns KID, precision, recall and the power of the upper octave relative to real crops."""
        features = compute_features(images, self._extractor)
        kid, spread = compute_kid(self._features, features)
        precision, recall = compute_precision_recall(self._features, features)
        octave = measure_upper_octave(images) / measure_upper_octave(self.real)
        return {"kid": kid, "kid_std": spread, "precision": precision, "recall": recall, "upper_octave": octave}


def run_system(arguments: argparse.Namespace) -> None:
    """Trains, draws and scores one system with one seed."""
    name = f"{arguments.system}-seed{arguments.seed}-{arguments.minutes:g}min"
    path = arguments.runs / "scores" / f"{name}.json"
    if path.is_file():
        return
    system = build_system(arguments.system, arguments)
    judge = Judge(arguments.images)
    images, rate = draw_images(system, judge.masks, arguments.seed)
    score = {**judge.compare(np.stack(images)), "megapixels_per_minute": rate}
    described = {"system": arguments.system, "seed": arguments.seed, "minutes": arguments.minutes}
    save_json(path, {**described, "images": arguments.images, "floor": judge.floor, "score": score})
    print(name, score, flush=True)


def draw_pictures(arguments: argparse.Namespace) -> None:
    """Draws whole micrographs of the test split: mask | enlarged | cascade | real, and measures seams."""
    held_out: Micrographs = load_micrographs(DATASET, "test")
    names = ("bicubic", arguments.system)
    systems = {name: build_system(name, arguments) for name in names}
    for index in range(arguments.pictures):
        path = arguments.runs / f"whole-{index}-{arguments.system}-seed{arguments.seed}-{arguments.minutes:g}min.png"
        if path.is_file():
            continue
        mask, real = held_out.masks[index][None], np.asarray(held_out.images[index])
        drawn = {name: draw_images(system, mask, arguments.seed + index) for name, system in systems.items()}
        images = [np.asarray(drawn[name][0][0]) for name in names]
        seams = {
            name: measure_seams(image, 64, REFINING_SOLVER.window_overlap)
            for name, image in zip((*names, "real"), (*images, real), strict=True)
        }
        values = {"system": arguments.system, "seed": arguments.seed, "minutes": arguments.minutes, "seams": seams}
        rates = {name: rate for name, (_, rate) in drawn.items()}
        save_json(path.with_suffix(".json"), {**values, "megapixels_per_minute": rates})
        colored = color_mask(held_out.masks[index], held_out.info.palette)
        save_image(path, np.hstack([colored, *(np.stack([gray] * 3, -1) for gray in (*images, real))]))
        print(path, seams, rates, flush=True)


def write_table(arguments: argparse.Namespace) -> None:
    """Writes the results of all runs."""
    scores = [load_json(path) for path in sorted((arguments.runs / "scores").glob("*.json"))]
    seams = [load_json(path) for path in sorted(arguments.runs.glob("whole-*.json"))]
    times = load_json(arguments.runs / "step_times.json")
    save_results(RESULTS / "cascade.json", {"runs": scores, "whole": seams, "step_seconds": times})


def main() -> None:
    """Runs one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("time", "run", "picture", "table"))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/cascade"), help="folder of runs and scores")
    parser.add_argument("--base", type=Path, default=Path("bundled:uhcs"), help="generator of half the resolution")
    parser.add_argument("--system", choices=SYSTEMS, default="cascade-2-patch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--images", type=int, default=64, help="generated crops per score")
    parser.add_argument("--pictures", type=int, default=2, help="whole micrographs that `picture` draws")
    parser.add_argument("--repeats", type=int, default=3, help="steps of each part that `time` measures")
    arguments = parser.parse_args()
    if arguments.part == "picture" and not arguments.system.startswith("cascade"):
        parser.error(f"--system {arguments.system}: picture compares a cascade with its first stage")
    torch.set_num_threads(1)
    if arguments.part == "time":
        times = measure_steps(arguments.base, arguments.repeats)
        save_json(arguments.runs / "step_times.json", times)
        print(json.dumps(times))
    else:
        {"run": run_system, "picture": draw_pictures, "table": write_table}[arguments.part](arguments)


if __name__ == "__main__":
    main()
