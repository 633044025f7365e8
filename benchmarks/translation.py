"""Unpaired translation: a made world where the truth is known, and renderings of layouts into real micrographs.

    python benchmarks/translation.py run --system cut --steps 2000 --seed 0
    python benchmarks/translation.py run --system cut --data uhcs --steps 2000
    python benchmarks/translation.py run --system cut --data shares --steps 2000
    python benchmarks/translation.py run --system cut --data defects --steps 2000
    python benchmarks/translation.py segment --system cut --steps 2000 --seed 0
    python benchmarks/translation.py change --system cut --data defects --steps 2000
    python benchmarks/translation.py table

The sides are those of translation_world.py. Simple filters (histogram matching, spectrum matching, added noise) are
scored beside. `run` can be stopped at any time and resumes with the same arguments; `segment` trains segmenters on
pairs of every kind and tests them on real target images; `change` compares what a translation has changed with the
discs that a segmenter of real target images finds in its images; `table` adds all runs to the results.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import save_results
from fitting import train_to_end
from translation_world import COUNTS, EDGE, FILTERS, Images, Judge, find_sides, fit_segmenter, score_segmenter

from steelgen.config.base import parse_config
from steelgen.config.sample import ChangeLabelsSection
from steelgen.config.train import TrainConfig
from steelgen.data.crops import cut_crops, image_to_tensor, load_micrographs, tensor_to_image
from steelgen.data.folder import load_dataset_info
from steelgen.data.images import save_image
from steelgen.data.sheets import build_sheet
from steelgen.evaluation.iou import compute_confusion, compute_iou
from steelgen.evaluation.prediction import predict_masks
from steelgen.files import load_json, save_json
from steelgen.generators import Generator
from steelgen.generators.drawing import draw_for_masks
from steelgen.generators.families import load_generator
from steelgen.sampling.labeling import ChangeLabeler

RESULTS = Path(__file__).parent / "results"
_SMALL = {
    "kind": "translation",
    "width": 16,
    "blocks": 3,
    "discriminator_width": 16,
    "discriminator_layers": 2,
    "r1_gamma": 0.1,
    "fft": 4.0,
}
_MODES: dict[str, dict[str, Any]] = {
    "cut": {
        **_SMALL,
        "mode": "cut",
        "num_patches": 64,
        "nce": 2.0,
        "identity": 2.0,
        "row_noise_channels": 2,
        "fft_per_frequency": True,
    },
    "cyclegan": {**_SMALL, "mode": "cyclegan"},
}
_OF_DATA: dict[str, dict[str, dict[str, Any]]] = {
    "world": {},
    "shares": {},
    # What the target has more of is to be added, at random places.
    "defects": {"cut": {"nce": 0.5, "identity": 0.5, "noise_channels": 2}},
    # Micrographs have no lines, and differ in brightness and contrast.
    "uhcs": {"cut": {"fft": 0.5, "style_dim": 8}, "cyclegan": {"fft": 0.5}},
}
"""What differs by data and mode."""
DATA = tuple(_OF_DATA)
PARTS = ("scores", "segmenters", "changes")
SYSTEMS: dict[str, tuple[str, dict[str, Any]]] = {
    "cut": ("cut", {}),
    "cut-no-fft": ("cut", {"fft": 0.0, "fft_per_frequency": False}),
    "cut-no-rows": ("cut", {"row_noise_channels": 0}),
    "cut-no-weights": ("cut", {"fft_per_frequency": False}),
    "cut-no-style": ("cut", {"style_dim": 0}),
    "cut-no-identity": ("cut", {"identity": 0.0}),
    "fastcut": ("cut", {"nce": 10.0, "identity": 0.0}),
    "cut-ada": ("cut", {"ada_target": 0.5, "ada_images": 5000}),
    "cut-noise": ("cut", {"discriminator_noise": 0.15}),
    "cyclegan": ("cyclegan", {}),
    "cyclegan-no-fft": ("cyclegan", {"fft": 0.0}),
    "cyclegan-no-identity": ("cyclegan", {"identity": 0.0}),
}
"""Mode and changes to it, by name."""


def build_config(system: str, data: str, runs: Path, seed: int, steps: int) -> TrainConfig:
    """Builds a system's config; KID and losses are measured for the curve."""
    source, target = find_sides(data, runs)
    crop = {"crop_size": 2 * EDGE} if data == "uhcs" else {}
    mode, changes = SYSTEMS[system]
    values = {
        "run_dir": str(runs / name_run(system, data, seed, steps)),
        "seed": seed,
        "data": {
            "dataset": str(target),
            "source": {"dataset": str(source)},
            "image_size": EDGE,
            "augment": "mirror" if data != "uhcs" else True,
            **crop,
        },
        "generator": {**_MODES[mode], **_OF_DATA[data].get(mode, {}), **changes},
        "train": {
            "max_steps": steps,
            "train_batch_size": 4,
            "warmup_steps": 20,
            "learning_rate": 0.0005,
            "lr_scheduler": "constant_then_linear",
            "weight_decay": 0.0,
            "max_grad_norm": None,
            "ema_decay": 0.99,
            "checkpoint_every": 100,
            "keep_checkpoints": 1,
            "log_every": 50,
            "trackers": [],
        },
        "preview": {"num_images": 0},
        "measurement": {"every": max(1, steps // 4), "num_images": 64, "searched_images": 4},
    }
    return parse_config(values, TrainConfig)


def name_run(system: str, data: str, seed: int, steps: int) -> str:
    """Returns the name of a run's folder and of its scores."""
    return f"{system}-{data}-seed{seed}-{steps}"


def translate(generator: Generator, images: Images) -> Images:
    """Translates (N, S, S) images."""
    drawn = []
    for start in range(0, len(images), 32):
        given = torch.stack([image_to_tensor(image) for image in images[start : start + 32]])
        blank = torch.zeros(len(given), *given.shape[2:], dtype=torch.long)
        seeds = range(start, start + len(given))
        drawn += [tensor_to_image(image) for image in draw_for_masks(generator, blank, seeds, images=given)]
    return np.stack(drawn)


def run_system(arguments: argparse.Namespace) -> None:
    """Trains and scores one system; resumes an interrupted run.

    Raises:
        InputError: if a signal ended training.
    """
    runs, system, data = arguments.runs, arguments.system, arguments.data
    name = name_run(system, data, arguments.seed, arguments.steps)
    path = runs / "scores" / f"{name}.json"
    if path.is_file():
        return
    config = build_config(system, data, runs, arguments.seed, arguments.steps)
    start = time.process_time()
    export = train_to_end(config)
    seconds = time.process_time() - start
    judge = Judge(data, runs)
    images = translate(load_generator(export), judge.given)
    rows = [list(part[:12]) for part in (judge.given, images, judge.real)]
    save_image(runs / f"{name}.png", build_sheet(rows, 96))
    lines = [json.loads(line) for line in (config.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    curve = [line for line in lines if "kid" in line or "loss_generators" in line]
    kept = ("step", "kid", "loss_generators", "loss_discriminators")
    described = {
        "system": system,
        "data": data,
        "seed": arguments.seed,
        "steps": arguments.steps,
        "cpu_seconds": seconds,
    }
    filters = {name: judge.score(change(judge.given, judge.seen)) for name, change in FILTERS.items()}
    seen = {"real": judge.score(judge.seen, judge.real_masks)} if data == "uhcs" else {}
    save_json(
        path,
        {
            **described,
            "score": judge.score(images),
            "beside": {**filters, **seen},
            "curve": [{key: line[key] for key in kept if key in line} for line in curve],
        },
    )
    print(name, load_json(path)["score"], flush=True)


def run_segmenters(arguments: argparse.Namespace) -> None:
    """Trains segmenters on true pairs, translated ones and filtered ones; IoU on held-out target images."""
    runs, data, seed = arguments.runs, arguments.data, arguments.seed
    name = name_run(arguments.system, data, seed, arguments.steps)
    path = runs / "segmenters" / f"{name}.json"
    if path.is_file():
        return
    source, target = find_sides(data, runs)
    judge, count = Judge(data, runs), COUNTS["train"]
    images, masks = cut_crops(load_micrographs(source, "train"), judge.geometry, count, seed=3)
    real, real_masks = cut_crops(load_micrographs(target, "train"), judge.geometry, count, seed=3)
    generator = load_generator(runs / name)
    sets = {"true pairs": (real, real_masks), "translated": (translate(generator, images), masks)}
    sets |= {kind: (change(images, real), masks) for kind, change in FILTERS.items()}
    held_out = {"true pairs": (judge.real, judge.real_masks)}
    held_out |= {"translated": (translate(generator, judge.given), judge.masks)}
    held_out |= {kind: (change(judge.given, real), judge.masks) for kind, change in FILTERS.items()}
    info, found, seen = load_dataset_info(source), {}, {}
    for kind, (chosen, labels) in sets.items():
        segmenter = fit_segmenter(chosen, labels, info, seed)
        found[kind] = score_segmenter(segmenter, judge.real, judge.real_masks, info.num_classes)
        if kind == "true pairs":  # whether the labels are seen in images of each kind
            seen = {name: score_segmenter(segmenter, *pairs, info.num_classes) for name, pairs in held_out.items()}
        print(name, kind, found[kind], flush=True)
    described = {"system": arguments.system, "data": data, "seed": seed, "steps": arguments.steps}
    save_json(path, {**described, "iou": found, "labels_seen": seen})


def run_changes(arguments: argparse.Namespace) -> None:
    """Compares masks of what a translation has changed with a segmenter's."""
    runs, data, seed = arguments.runs, arguments.data, arguments.seed
    name = name_run(arguments.system, data, seed, arguments.steps)
    source, target = find_sides(data, runs)
    judge = Judge(data, runs)
    real, real_masks = cut_crops(load_micrographs(target, "train"), judge.geometry, COUNTS["train"], seed=3)
    info = load_dataset_info(source)
    segmenter = fit_segmenter(real, real_masks, info, seed)
    generator = load_generator(runs / name)
    translated = translate(generator, judge.given)
    found = predict_masks(segmenter, translated)
    labeler = ChangeLabeler(ChangeLabelsSection(kind="change"), generator)
    changed = np.stack(
        [labeler.label(image, before).mask.mask for image, before in zip(translated, judge.given, strict=True)]
    )
    iou = [float(value) for value in compute_iou(compute_confusion(found, changed, info.num_classes, 255))]
    own = score_segmenter(segmenter, judge.real, judge.real_masks, info.num_classes)
    shares = {
        "by_segmenter": float(found.mean()),
        "by_change": float(changed.mean()),
        "real": float(judge.real_masks.mean()),
    }
    described = {"system": arguments.system, "data": data, "seed": seed, "steps": arguments.steps}
    save_json(runs / "changes" / f"{name}.json", {**described, "iou": iou, "iou_on_real": own, "shares": shares})
    rows = [list(part[:12]) for part in (judge.given, translated, 255 * changed, 255 * found)]
    save_image(runs / f"{name}-change.png", build_sheet(rows, 96))
    print(name, iou, own, shares, flush=True)


def main() -> None:
    """Runs one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("run", "segment", "change", "table"))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/translation"), help="folder of runs")
    parser.add_argument("--system", choices=SYSTEMS, default="cut")
    parser.add_argument("--data", choices=DATA, default="world")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=2000)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.part == "run":
        run_system(arguments)
    elif arguments.part == "segment":
        run_segmenters(arguments)
    elif arguments.part == "change":
        run_changes(arguments)
    else:
        path = RESULTS / "translation.json"
        stored = load_json(path)
        parts = {part: {_identify(row): row for row in stored.get(part, [])} for part in PARTS}
        for part, rows in parts.items():
            rows |= {_identify(row): row for row in map(load_json, (arguments.runs / part).glob("*.json"))}
        save_results(path, {part: [rows[key] for key in sorted(rows)] for part, rows in parts.items()})


def _identify(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(row[name] for name in ("system", "data", "seed", "steps"))


if __name__ == "__main__":
    main()
