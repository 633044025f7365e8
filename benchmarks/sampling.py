"""Sampling: ISDM's procedure compared with steelgen's default, with the same weights, masks and machine.

    steelgen train -c benchmarks/configs/uhcs_32.json
    python benchmarks/sampling.py speed   --generator RUN [--images 2] [--repeats 3]
    python benchmarks/sampling.py quality --generator RUN [--images 256]
    python benchmarks/sampling.py curve   --generator RUN [--images 256]
    python benchmarks/sampling.py guide   --generator RUN [--images 256]
    python benchmarks/sampling.py beside  --generator RUN [--images 16] [--repeats 3]

ISDM samples an image with 300 ancestral steps of learned variance and two separate fp32 network passes per step, each
of which recomputes the mask features. `speed` adds our changes one at a time. `quality` compares both by KID and FD
to held-out crops, and by the mIoU of a segmenter trained on real crops with the masks, ours with three seeds. `curve`
gives KID over the number of steps of each solver, `guide` over spacings of the steps, guidance scales and intervals;
the defaults were chosen by them. `beside` compares sequential with parallel mask making, filtering and writing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from common import save_results, summarize, time_alternately
from numpy.typing import NDArray
from torch import Tensor

from steelgen.config.base import parse_config
from steelgen.config.evaluate import SegmenterSection
from steelgen.config.sample import SampleConfig
from steelgen.config.solver import RespacedSolverSection, SolverSection
from steelgen.data.crops import cut_crops, load_micrographs, tensor_to_image
from steelgen.devices import randn_by_seed
from steelgen.diffusion.loss import one_hot_with_dropout
from steelgen.diffusion.randomness import build_noise_sources
from steelgen.diffusion.solvers import RespacedSolver
from steelgen.evaluation.features import build_extractor, compute_features
from steelgen.evaluation.fidelity import (
    VARIATION,
    compute_frechet_distance,
    compute_kid,
    compute_precision_recall,
    compute_spread_ratios,
    compute_variation,
)
from steelgen.evaluation.iou import compute_scores
from steelgen.evaluation.prediction import predict_masks
from steelgen.evaluation.segmentation import train_segmenter
from steelgen.generators.drawing import draw_for_masks
from steelgen.generators.families import load_generator
from steelgen.generators.semantic_diffusion.generator import SemanticDiffusion
from steelgen.sampling import sample as sampling_module
from steelgen.sampling.workers import Candidate, iterate_masks

DATASET = Path(__file__).parents[1] / "data" / "uhcs"
GUIDANCE = 1.5
ISDM = RespacedSolverSection(
    name="respaced_ddpm", beta_schedule="squaredcos_cap_v2", respacing="300", guidance_scale=GUIDANCE
)
CURVE_STEPS = (5, 8, 12, 20, 50)
CURVE_SOLVERS = ("dpmsolver++", "sde-dpmsolver++", "unipc", "ddim", "euler", "heun", "ddpm")
GUIDES: tuple[tuple[str, float, tuple[float, float] | None, str], ...] = (
    ("logistic", 1.0, None, "network"),
    ("logistic", 1.5, (0.2, 2.0), "network"),
    ("logistic", 1.5, (0.2, 2.0), "measured"),
    ("logistic", 2.0, (0.1, 1.0), "network"),
    ("logistic", 2.0, (0.1, 1.0), "measured"),
    ("logistic", 1.5, (0.1, 1.0), "measured"),
    ("logistic", 3.0, (0.1, 1.0), "measured"),
    ("logistic", 2.0, (0.2, 1.0), "measured"),
    ("logistic", 2.0, (0.05, 1.0), "measured"),
    ("logistic", 2.0, (0.1, 2.0), "measured"),
    ("logistic", 1.5, (0.2, 50.0), "measured"),
    ("power", 2.0, (0.1, 1.0), "measured"),
)
"""Spacing of the steps, guidance scale, guidance interval in noise levels, and source of the mean gray level."""
Sample = Callable[[Tensor, list[int]], Tensor]
"""(N, H, W) int64 masks and N seeds → (N, C, H, W) images in [-1, 1]."""


@torch.no_grad()
def sample_as_isdm(
    generator: SemanticDiffusion, masks: Tensor, seeds: list[int], cached: bool = False, batched: bool = False
) -> Tensor:
    """Samples as ISDM does, over 300 ancestral steps; `cached` and `batched` are speedups that keep the images."""
    unet, n, channels = generator.network, len(masks), generator.geometry.in_channels
    schedule = generator.schedule
    steps = RespacedSolver(ISDM, schedule.prediction_type, unet.config.timestep_scale, generator.value_range)
    conditional = one_hot_with_dropout(masks, generator.info.num_classes)
    null = torch.zeros_like(conditional)
    both = torch.cat([conditional, null])
    features = [unet.compute_mask_features(mask) if cached else None for mask in (conditional, null, both)]

    def predict(image: Tensor, time: Tensor) -> Tensor:
        if batched:
            first, second = unet(torch.cat([image, image]), time.expand(2 * n), both, features[2]).chunk(2)
        else:
            first = unet(image, time.expand(n), conditional, features[0])
            second = unet(image, time.expand(n), null, features[1])
        prediction = second[:, :channels] + GUIDANCE * (first - second)[:, :channels]
        return torch.cat([prediction, first[:, channels:]], dim=1)

    shape = (channels, *masks.shape[1:])
    image, sources = randn_by_seed(shape, seeds), build_noise_sources(shape, seeds)
    for step, time in enumerate(steps.times):
        image = steps.advance(image, step, partial(predict, time=time), sources)
    mean, deviation = generator.intensity
    return (image * deviation + mean).clamp(-1, 1)


def measure_speed(generator: SemanticDiffusion, images: int, repeats: int) -> dict[str, Any]:
    """Seconds per image of ISDM's procedure, and with one change more in each row."""
    masks, seeds = cut_masks(generator, images), list(range(images))
    default = SolverSection()
    everywhere = default.model_copy(update={"guidance_interval": None})
    twenty = everywhere.model_copy(update={"num_inference_steps": 20})

    def isdm(layout: torch.memory_format, cached: bool, batched: bool) -> None:
        generator.network.to(memory_format=layout)
        sample_as_isdm(generator, masks, seeds, cached, batched)

    def ours(solver: SolverSection, bf16: bool) -> None:
        generator.network.to(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            draw_for_masks(generator, masks, seeds, solver)

    plain, last = torch.contiguous_format, torch.channels_last
    seconds = time_alternately(
        {
            "ISDM's procedure": lambda: isdm(plain, cached=False, batched=False),
            "+ channels last": lambda: isdm(last, cached=False, batched=False),
            "+ mask features once": lambda: isdm(last, cached=True, batched=False),
            "+ both passes in one batch": lambda: isdm(last, cached=True, batched=True),
            "+ DPM-Solver++ 2M, 20 steps": lambda: ours(twenty, bf16=False),
            f"+ {default.num_inference_steps} steps": lambda: ours(everywhere, bf16=False),
            "+ guidance interval": lambda: ours(default, bf16=False),
            "+ bf16": lambda: ours(default, bf16=True),
        },
        repeats,
    )
    rows = {}
    base = np.array(seconds["ISDM's procedure"])
    for name, times in seconds.items():
        ratios = base / np.array(times)
        rows[name] = {
            "seconds_per_image": {key: value / images for key, value in summarize(times).items()},
            "times_faster_than_isdm": summarize(ratios.tolist()),
        }
    return {"images": images, "repeats": repeats, "default": default.model_dump(mode="json"), "variants": rows}


def measure_quality(generator: SemanticDiffusion, images: int) -> dict[str, Any]:
    """Scores of ISDM's procedure and of the default with three seeds."""
    judge = Judge(generator, images)
    scores: dict[str, Any] = {}
    for seed in range(3):
        scores[f"default, seed {seed}"] = judge.score(
            lambda masks, seeds: judge.sample(SolverSection(), masks, seeds), seed
        )
        print(scores, flush=True)
    scores["ISDM's procedure"] = judge.score(
        lambda masks, seeds: sample_as_isdm(generator, masks, seeds, cached=True, batched=True), 0
    )
    return {
        "images": images,
        "floor": judge.floor,
        "default": SolverSection().model_dump(mode="json"),
        "scores": scores,
    }


def measure_curve(generator: SemanticDiffusion, images: int, solvers: Sequence[str] = CURVE_SOLVERS) -> dict[str, Any]:
    """KID over the number of network evaluations; Heun uses two per step."""
    judge = Judge(generator, images)
    rows: dict[str, dict[str, Any]] = {}
    for name in solvers:
        for steps in CURVE_STEPS:
            taken = max(2, (steps + 1) // 2) if name == "heun" else steps
            solver = SolverSection().model_copy(update={"name": name, "num_inference_steps": taken})
            score = judge.score(lambda masks, seeds, solver=solver: judge.sample(solver, masks, seeds), 0)
            rows.setdefault(name, {})[str(steps)] = score
            print(name, steps, score, flush=True)
    return {"images": images, "floor": judge.floor, "solvers": rows}


def measure_guides(generator: SemanticDiffusion, images: int) -> dict[str, Any]:
    """Scores of spacings, guidance scales and guidance intervals with 12 steps."""
    judge = Judge(generator, images)
    rows = []
    for spacing, scale, interval, brightness in GUIDES:
        changes = {
            "num_inference_steps": 12,
            "timestep_spacing": spacing,
            "guidance_scale": scale,
            "guidance_interval": interval,
            "brightness": brightness,
        }
        solver = SolverSection().model_copy(update=changes)
        score = judge.score(lambda masks, seeds, solver=solver: judge.sample(solver, masks, seeds), 0)
        rows.append({**changes, **score})
        print(rows[-1], flush=True)
    return {"images": images, "floor": judge.floor, "guides": rows}


class Judge:
    """Scores images sampled for masks of held-out micrographs against real crops of these and against the masks.

    The floor is measured on crops of the training split, that of mIoU on the held-out crops themselves.
    """

    def __init__(self, generator: SemanticDiffusion, images: int, dataset: Path = DATASET, split: str = "test") -> None:
        self.generator = generator
        self.extractor = build_extractor("efficientnet-lite0")
        test, train = (load_micrographs(dataset, each) for each in (split, "train"))
        self.segmenter = train_segmenter(train, generator.geometry, SegmenterSection())
        real, self.masks = cut_crops(test, generator.geometry, images, seed=0)
        self.real, self.variation = compute_features(real, self.extractor), compute_variation(real).sum(axis=0)
        others, _ = cut_crops(train, generator.geometry, images, seed=0)
        self.floor = {**self._compare(others), "miou": self._compute_miou(real)}

    def sample(self, solver: SolverSection, masks: Tensor, seeds: list[int]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return draw_for_masks(self.generator, masks, seeds, solver)

    def score(self, sample: Sample, seed: int, batch: int = 32) -> dict[str, float]:
        sampled = []
        for start in range(0, len(self.masks), batch):
            masks = torch.from_numpy(self.masks[start : start + batch].astype(np.int64))
            seeds = [10_000 * seed + start + index for index in range(len(masks))]
            sampled += [tensor_to_image(image) for image in sample(masks, seeds)]
        images = np.stack(sampled)
        return {**self._compare(images), "miou": self._compute_miou(images)}

    def _compare(self, images: Any) -> dict[str, float]:
        features = compute_features(images, self.extractor)
        kid, spread = compute_kid(self.real, features)
        variation = compute_variation(images).sum(axis=0)
        return {
            "fd": compute_frechet_distance(self.real, features),
            "kid": kid,
            "kid_std": spread,
            "recall": compute_precision_recall(self.real, features)[1],
            "spread": dict(zip(VARIATION, compute_spread_ratios(self.variation, variation).tolist(), strict=True)),
        }

    def _compute_miou(self, images: Any) -> float:
        info = self.generator.info
        predicted = predict_masks(self.segmenter, images)
        return compute_scores(self.masks, predicted, info.num_classes, info.ignore_index).mean_iou


class _InTurn:
    """Replacement of `PairWriter` that filters and writes each pair before the next ones are sampled."""

    def __init__(self, finish: Callable[[Candidate, NDArray[np.uint8]], str | None]) -> None:
        self._finish = finish
        self._outcomes: list[tuple[Candidate, str | None]] = []

    def __enter__(self) -> _InTurn:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    @property
    def busy(self) -> bool:
        return bool(self._outcomes)

    def put(self, candidate: Candidate, image: NDArray[np.uint8]) -> None:
        self._outcomes.append((candidate, self._finish(candidate, image)))

    def take(self, left: int) -> list[tuple[Candidate, str | None]]:
        outcomes, self._outcomes = self._outcomes, []
        return outcomes


def measure_beside(generator: Path, images: int, repeats: int) -> dict[str, Any]:
    """Times `steelgen sample` with masks, filter and files in sequence with the network and in parallel."""

    def build(folder: str, **values: Any) -> SampleConfig:
        masks = {"kind": "procedural", "dataset": str(DATASET), "split": "train"}
        described = {"generator": str(generator), "output_dir": f"{folder}/out", "num_samples": images, "batch_size": 8}
        return parse_config({**described, "mask_source": masks, **values}, SampleConfig)

    copies = {"filter": {"dataset": str(DATASET), "min_iou": 0, "max_correlation": 0.999}}

    def run(beside: bool, values: dict[str, Any]) -> None:
        in_turn = [
            mock.patch.object(sampling_module, "PairWriter", _InTurn),
            mock.patch.object(sampling_module, "iterate_masks", partial(iterate_masks, use_workers=False)),
        ]
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            for patch in [] if beside else in_turn:
                stack.enter_context(patch)
            sampling_module.sample(build(folder, **values))

    seconds = time_alternately(
        {
            f"{what}, {how}": partial(run, how == "beside", values)
            for what, values in (("procedural masks", {}), ("procedural masks and copy filter", copies))
            for how in ("in turn", "beside")
        },
        repeats,
    )
    return {"images": images, "seconds": {name: summarize(values) for name, values in seconds.items()}}


def cut_masks(generator: SemanticDiffusion, count: int) -> Tensor:
    """Masks of held-out crops, (count, S, S) int64."""
    _, masks = cut_crops(load_micrographs(DATASET, "test"), generator.geometry, count)
    return torch.from_numpy(masks.astype(np.int64))


def main() -> None:
    """Measures one part and saves its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("speed", "quality", "curve", "guide", "beside"))
    parser.add_argument("--generator", type=Path, required=True, help="run folder, checkpoint or export")
    parser.add_argument("--images", type=int)
    parser.add_argument("--solvers", nargs="+", choices=CURVE_SOLVERS, default=CURVE_SOLVERS, help="solvers of `curve`")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="default: benchmarks/results/sampling-PART.json")
    arguments = parser.parse_args()
    default = Path(__file__).parent / "results" / f"sampling-{arguments.part}.json"
    if arguments.part == "beside":
        save_results(
            arguments.out or default, measure_beside(arguments.generator, arguments.images or 16, arguments.repeats)
        )
        return
    generator = load_generator(arguments.generator)
    assert isinstance(generator, SemanticDiffusion)
    generator.network.requires_grad_(False).eval()
    if arguments.part == "speed":
        results = measure_speed(generator, arguments.images or 2, arguments.repeats)
    else:
        generator.network.to(memory_format=torch.channels_last)
        curve = partial(measure_curve, solvers=arguments.solvers)
        measure = {"quality": measure_quality, "curve": curve, "guide": measure_guides}[arguments.part]
        results = measure(generator, arguments.images or 256)
    results["threads"] = int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads()))
    save_results(arguments.out or default, results)


if __name__ == "__main__":
    main()
