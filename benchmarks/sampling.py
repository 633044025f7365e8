"""Sampling: ISDM's procedure against steelgen's default, on the same weights, masks and machine.

    python benchmarks/sampling.py speed   --generator RUN [--images 4] [--repeats 3]
    python benchmarks/sampling.py quality --generator RUN [--images 256]
    python benchmarks/sampling.py curve   --generator RUN [--images 256]

`speed` turns the measures on one at a time: ISDM draws an image with 300 ancestral steps, two separate network passes a
step, fp32, and computes the mask features anew in every pass. `quality` compares both by FD and KID to held-out crops,
ours with three seeds. `curve` is KID over the number of steps for each solver. (A learned variance, which ISDM has too,
costs two more output channels and is left out: the weights are the same for all variants.)
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import save_results, summarise, time_in_turns
from torch import Tensor

from steelgen.config.solver import SolverSection
from steelgen.data.crops import cut_crops, load_micrographs, tensor_to_image
from steelgen.diffusion.generator import SemanticDiffusion
from steelgen.diffusion.loss import one_hot_with_dropout
from steelgen.diffusion.noise import build_solver, randn_by_seed
from steelgen.evaluation.features import build_extractor, compute_features
from steelgen.evaluation.fidelity import compute_frechet_distance, compute_kid
from steelgen.generators import load_generator

DATASET = Path(__file__).parents[1] / "data" / "uhcs"
ISDM_STEPS = 300
GUIDANCE = 1.5
CURVE_STEPS = (5, 8, 12, 20, 50)
CURVE_SOLVERS = ("dpmsolver++", "unipc", "ddim", "euler", "heun")


@torch.no_grad()
def draw_as_isdm(
    generator: SemanticDiffusion, masks: Tensor, seeds: list[int], cached: bool = False, batched: bool = False
) -> Tensor:
    """Ancestral sampling over 300 steps; each measure that does not change the image can be turned on."""
    unet, n = generator.network, len(masks)
    scheduler = build_solver("ddpm", generator.schedule)
    scheduler.set_timesteps(ISDM_STEPS)
    kept = torch.zeros(n, dtype=torch.bool)
    conditional = one_hot_with_dropout(masks, generator.info.num_classes, kept)
    null = torch.zeros_like(conditional)
    both = torch.cat([conditional, null])
    features = [unet.compute_mask_features(mask) for mask in (conditional, null, both)] if cached else [None] * 3
    rngs = [torch.Generator().manual_seed(seed) for seed in seeds]
    image = randn_by_seed((unet.config.in_channels, *masks.shape[1:]), seeds)
    for timestep in scheduler.timesteps:
        times = timestep.expand(2 * n)
        if batched:
            first, second = unet(torch.cat([image, image]), times, both, features[2]).chunk(2)
        else:
            first = unet(image, times[:n], conditional, features[0])
            second = unet(image, times[:n], null, features[1])
        prediction = second + GUIDANCE * (first - second)
        image = scheduler.step(prediction, timestep, image, generator=rngs).prev_sample
    mean, deviation = generator.intensity
    return (image * deviation + mean).clamp(-1, 1)


def measure_speed(generator: SemanticDiffusion, images: int, repeats: int) -> dict[str, Any]:
    """Seconds an image for ISDM's procedure, then with one measure more in each row."""
    masks, seeds = draw_masks(generator, images), list(range(images))
    default = SolverSection()
    slow = default.model_copy(update={"guidance_interval": None, "num_inference_steps": 20})

    def ours(solver: SolverSection, bf16: bool) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            generator.draw(masks, seeds, solver)

    seconds = time_in_turns(
        {
            "ISDM's procedure": lambda: draw_as_isdm(generator, masks, seeds),
            "+ mask features once": lambda: draw_as_isdm(generator, masks, seeds, cached=True),
            "+ both passes in one batch": lambda: draw_as_isdm(generator, masks, seeds, cached=True, batched=True),
            "+ DPM-Solver++ 2M, 20 steps": lambda: ours(slow, bf16=False),
            "+ default steps and guidance interval": lambda: ours(default, bf16=False),
            "+ bf16": lambda: ours(default, bf16=True),
        },
        repeats,
    )
    rows = {}
    base = np.array(seconds["ISDM's procedure"])
    for name, times in seconds.items():
        ratios = base / np.array(times)
        rows[name] = {
            "seconds_per_image": {key: value / images for key, value in summarise(times).items()},
            "times_faster_than_isdm": summarise(ratios.tolist()),
        }
    return {"images": images, "repeats": repeats, "default": default.model_dump(mode="json"), "variants": rows}


def measure_quality(generator: SemanticDiffusion, images: int) -> dict[str, Any]:
    """FD and KID to held-out crops of ISDM's procedure and of the default, the latter with three seeds."""
    judge = Judge(generator, images)
    results = {
        "ISDM's procedure": judge.score(lambda masks, seeds: draw_as_isdm(generator, masks, seeds, True, True), 0)
    }
    for seed in range(3):
        results[f"default, seed {seed}"] = judge.score(
            lambda masks, seeds: judge.draw(SolverSection(), masks, seeds), seed
        )
    return {"images": images, "floor": judge.floor, "scores": results}


def measure_curve(generator: SemanticDiffusion, images: int) -> dict[str, Any]:
    """KID over the number of steps; Heun's count is of network evaluations, two a step."""
    judge = Judge(generator, images)
    rows: dict[str, dict[str, Any]] = {}
    for name in CURVE_SOLVERS:
        for steps in CURVE_STEPS:
            taken = max(2, (steps + 1) // 2) if name == "heun" else steps
            solver = SolverSection(name=name, num_inference_steps=taken)
            score = judge.score(lambda masks, seeds, solver=solver: judge.draw(solver, masks, seeds), 0)
            rows.setdefault(name, {})[str(steps)] = score
            print(name, steps, score, flush=True)
    return {"images": images, "floor": judge.floor, "solvers": rows}


class Judge:
    """Compares drawn images with real crops of the test split that have the same masks as a group."""

    def __init__(self, generator: SemanticDiffusion, images: int) -> None:
        self.generator = generator
        self.extractor = build_extractor("efficientnet-lite0")
        test, train = (load_micrographs(DATASET, split) for split in ("test", "train"))
        real, self.masks = cut_crops(test, generator.geometry, images, seed=0)
        self.real = compute_features(real, self.extractor)
        others, _ = cut_crops(train, generator.geometry, images, seed=0)
        self.floor = self._compare(compute_features(others, self.extractor))

    def draw(self, solver: SolverSection, masks: Tensor, seeds: list[int]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return self.generator.draw(masks, seeds, solver)

    def score(self, draw: Any, seed: int, batch: int = 32) -> dict[str, float]:
        drawn = []
        for start in range(0, len(self.masks), batch):
            masks = torch.from_numpy(self.masks[start : start + batch].astype(np.int64))
            seeds = [10_000 * seed + start + index for index in range(len(masks))]
            drawn += [tensor_to_image(image) for image in draw(masks, seeds)]
        return self._compare(compute_features(np.stack(drawn), self.extractor))

    def _compare(self, features: Any) -> dict[str, float]:
        kid, spread = compute_kid(self.real, features)
        return {"fd": compute_frechet_distance(self.real, features), "kid": kid, "kid_std": spread}


def draw_masks(generator: SemanticDiffusion, count: int) -> Tensor:
    """Masks of held-out crops, (count, S, S) int64."""
    _, masks = cut_crops(load_micrographs(DATASET, "test"), generator.geometry, count)
    return torch.from_numpy(masks.astype(np.int64))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("speed", "quality", "curve"))
    parser.add_argument("--generator", type=Path, required=True, help="run folder, checkpoint or export")
    parser.add_argument("--images", type=int)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/sampling-PART.json")
    arguments = parser.parse_args()
    generator = load_generator(arguments.generator)
    generator.network.requires_grad_(False).eval()
    generator.network.to(memory_format=torch.channels_last)
    if arguments.part == "speed":
        results = measure_speed(generator, arguments.images or 4, arguments.repeats)
    else:
        results = {"quality": measure_quality, "curve": measure_curve}[arguments.part](
            generator, arguments.images or 256
        )
    default = Path(__file__).parent / "results" / f"sampling-{arguments.part}.json"
    save_results(arguments.out or default, results)


if __name__ == "__main__":
    main()
