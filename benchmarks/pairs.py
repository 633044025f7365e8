"""Pairs with new masks at equal training time: masks first, then images, or both together (uhcs, 32 px).

    python benchmarks/pairs.py time
    python benchmarks/pairs.py run --system joint --seed 0 --minutes 3
    python benchmarks/pairs.py table

Systems: real-masks, semantic diffusion for masks of the training split; masks-first, half of the time for a generator
of masks alone and half for semantic diffusion; joint, image and mask in one model; joint-unlabeled, the same with a
third of the crops from micrographs without masks (--unlabeled FOLDER); joint-velocity, which predicts the velocity of
the mask's bits in place of its classes. All networks have about a million weights. All have seen the masks of the 16
training micrographs of uhcs, also where networks of the utility study see 4 of them.

`time` measures a training step of every network in CPU seconds of one thread, and `run` trains for as many steps as fit
into the minutes, samples pairs, and scores them. It can be stopped at any time and resumes with the same arguments.
`table` writes the results.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import LinePrinter, save_results, summarize, time_alternately
from gan import DATASET, RESULTS, UNET, build_values
from joint import compare_structure
from numpy.typing import NDArray
from steps import TrainingStep

from steelgen.config.base import parse_config
from steelgen.config.mask_sources import ProceduralMasks
from steelgen.config.sample import SampleConfig
from steelgen.config.segmenter import SegmenterSection
from steelgen.config.train import TrainConfig
from steelgen.config.utility import UtilityConfig
from steelgen.data.crops import cut_crops, load_micrographs
from steelgen.data.folder import DatasetInfo, list_samples, load_pair
from steelgen.data.placement import CropGeometry
from steelgen.errors import InputError
from steelgen.evaluation.copy_search import CopySearch
from steelgen.evaluation.features import build_extractor, compute_features
from steelgen.evaluation.fidelity import compute_kid, compute_precision_recall
from steelgen.evaluation.iou import can_judge, compute_scores
from steelgen.evaluation.judge_mask_copies import to_levels
from steelgen.evaluation.memorization import COPY_RATIO
from steelgen.evaluation.prediction import predict_masks
from steelgen.evaluation.segmentation import load_or_train_segmenter
from steelgen.evaluation.study import utility
from steelgen.evaluation.utility.statistics import t_interval
from steelgen.files import default_cache_dir, load_json, save_json
from steelgen.sampling.procedural import ProceduralSource
from steelgen.sampling.sample import sample
from steelgen.training.loop import train

Array = NDArray[np.uint8]

GEOMETRY = CropGeometry(32, 64)
_SEMANTIC = {**UNET, "spade_channels": 8}
_JOINT = {key: value for key, value in UNET.items() if key != "spade_channels"} | {"channel_mult": [1, 2, 5]}
# Pairs are sampled with equal noise levels, so the time is not shared with other uses of the model; guidance needs the
# crops whose mask is pure noise.
_MASK_DROPOUT = 0.15
_PAIRS = {"equal": 1 - _MASK_DROPOUT, "clean_mask": 0.0, "clean_image": 0.0, "no_image": 0.0}
_LEVELS = {"timestep_sampling": "lognormal", "lognormal_mean": 0.3, "lognormal_std": 1.5}
_BOTH = {"kind": "joint_diffusion", "unet": _JOINT, "self_conditioning": 0.0, "levels": _PAIRS}
NETWORKS: dict[str, dict[str, Any]] = {
    "images": {"kind": "semantic_diffusion", "unet": _SEMANTIC},
    "masks": {"kind": "joint_diffusion", "unet": _JOINT, "self_conditioning": 0.0, "image_channels": "none"},
    "joint": _BOTH,
    "joint-unlabeled": _BOTH,
    "joint-velocity": {**_BOTH, "mask_prediction": "velocity"},
}
SYSTEMS: dict[str, dict[str, float]] = {
    "real-masks": {"images": 1.0},
    "masks-first": {"masks": 0.5, "images": 0.5},
    "joint": {"joint": 1.0},
    "joint-unlabeled": {"joint-unlabeled": 1.0},
    "joint-velocity": {"joint-velocity": 1.0},
}
"""Each system's networks and their shares of the minutes."""
UNLABELED_WEIGHT = 0.5
"""Of the micrographs without masks, relative to those with masks."""
SOLVER = {"num_inference_steps": 20, "guidance_scale": 3, "guidance_interval": (0.1, 2.0)}
"""Of masks, which are not guided, and pairs; semantic diffusion has the default."""
SEARCHED = 32
"""Pairs of which the training set is searched for copies."""
MASK_COPY_RATIO = 0.75
"""Like `COPY_RATIO`, for masks. Masks are shrunk by nearest pixels, so a copy is further from its place than that of an
image is: the ratios of 96 % of 96 crops of training masks are below, and those of 2 % of crops of test masks."""
REFERENCE_MASKS = 1024
"""Masks of held-out crops with which the structure of generated masks is compared."""
MIN_SHARE = 0.05
"""Share of the area below which a class has too few islands in the crops: the third one is in one micrograph mostly."""
CODES = {"R4F000": "R4FALL", "RALLF000": "RALLFALL"}
"""Codes with pairs in the utility study, by that of the same micrographs alone."""
MASK_FIGURES = ("fraction", "s2", "lineal_path", "island_area", "island_count")
CONTRASTS = (
    ("masks-first", "joint"),
    ("joint-unlabeled", "joint"),
    ("joint", "joint-velocity"),
    ("masks-first", "real-masks"),
)


def build_config(network: str, run_dir: Path, seed: int, steps: int, unlabeled: Path) -> TrainConfig:
    """Builds the training config of a network."""
    system = {"generator": NETWORKS[network], "train": {"learning_rate": 1e-3, "checkpoint_every": 200}}
    values = build_values(system, DATASET, run_dir, seed, steps)
    if network != "images":
        values["diffusion"] = _LEVELS if network == "masks" else {**_LEVELS, "mask_dropout": _MASK_DROPOUT}
    if network == "joint-unlabeled":
        del values["data"]["dataset"]
        sets = [{"dataset": str(DATASET)}, {"dataset": str(unlabeled), "weight": UNLABELED_WEIGHT}]
        values["data"]["datasets"] = sets
    values["measurement"] = {"every": None}
    return parse_config(values, TrainConfig)


def measure_times(runs: Path, repeats: int, unlabeled: Path) -> None:
    """Measures the training steps of all networks."""
    steps = {name: TrainingStep(build_config(name, Path("unused"), 0, 1, unlabeled)) for name in NETWORKS}
    seconds = time_alternately(steps, repeats, time.process_time)
    sizes = {name: sum(each.numel() for each in step.state.network.parameters()) for name, step in steps.items()}
    rows = {name: {**summarize(seconds[name]), "parameters": sizes[name]} for name in steps}
    save_results(runs / "step_times.json", {"threads": 1, "seconds_a_step": rows})


def train_network(network: str, minutes: float, seed: int, runs: Path, unlabeled: Path) -> Path:
    """Trains a network for CPU minutes, or resumes or finds it; returns its folder.

    Raises:
        InputError: if no step times were measured, or a signal ended training.
    """
    seconds = load_json(runs / "step_times.json")["seconds_a_step"][network]["median"]
    run_dir = runs / "generators" / f"{network}-seed{seed}-{minutes:g}min"
    steps = max(1, round(60 * minutes / seconds))
    result = train(build_config(network, run_dir, seed, steps, unlabeled), LinePrinter(), resume=True)
    if result.export is None:
        raise InputError(f"{run_dir}: stopped by {result.stopped_by} at step {result.global_step}; run again to resume")
    return run_dir


def build_sampling(system: str, folders: dict[str, Path], output: Path, seed: int, count: int) -> SampleConfig:
    """Builds the config of the pairs of a system with trained networks."""
    sources: dict[str, dict[str, Any]] = {
        "real-masks": {"kind": "split", "dataset": str(DATASET)},
        "masks-first": {"kind": "learned", "generator": str(folders.get("masks")), "solver": SOLVER},
    }
    source = sources.get(system, {"kind": "none"})
    values = {
        "generator": str(folders["images" if system in sources else system]),
        "output_dir": str(output),
        "mask_source": source,
        "num_samples": count,
        "batch_size": 32,
        "seed": seed,
        "solver": {} if system in sources else SOLVER,
    }
    return parse_config(values, SampleConfig)


def compare_masks(masks: Array, reference: Array, num_classes: int) -> dict[str, float]:
    """Compares masks (N, 32, 32) with the reference: means of absolute deviations of `compare_structure` over the
    classes but the first one, the matrix, and rare ones. A class that never occurs deviates by all that the reference
    has."""
    rows = []
    for label in range(1, num_classes):
        tiles, wanted = masks == label, reference == label
        if wanted.mean() >= MIN_SHARE:
            absent = dict.fromkeys(MASK_FIGURES, 1.0) | {"fraction": float(wanted.mean())}
            rows.append(compare_structure(tiles, wanted) if tiles.any() else absent)
    return {name: float(np.mean([abs(row[name]) for row in rows])) for name in MASK_FIGURES}


class Judge:
    """Scores pairs against crops of the test split.

    Args:
        count: number of pairs and of real crops.
        searched: datasets whose images are searched for copies.
    """

    def __init__(self, count: int, searched: Sequence[Path]) -> None:
        self.training, test = (load_micrographs(DATASET, split) for split in ("train", "test"))
        self.info = self.training.info
        self.held_out, self._masks = cut_crops(test, GEOMETRY, count, seed=1)
        _, self._reference = cut_crops(test, GEOMETRY, REFERENCE_MASKS, seed=2)
        self._extractor = build_extractor("efficientnet-lite0")
        self._features = compute_features(self.held_out, self._extractor)
        settings = SegmenterSection()
        self._segmenter = load_or_train_segmenter(self.training, GEOMETRY, settings, default_cache_dir())
        levels = [to_levels(mask, self.info.num_classes) for mask in self.training.masks]
        self._image_searches = [CopySearch(load_micrographs(each, "train"), GEOMETRY, 32) for each in searched]
        self._mask_search = CopySearch(replace(self.training, images=levels, digest=""), GEOMETRY, 32)
        real = self._find_iou(self.held_out, self._masks)
        self._judged = [can_judge(iou) for iou in real]
        self.real_iou = float(np.nanmean(real[self._judged]))

    def score(self, images: Array, masks: Array) -> dict[str, float]:
        """Scores images and masks, (N, 32, 32) each."""
        kid, spread = compute_kid(self._features, features := compute_features(images, self._extractor))
        precision, recall = compute_precision_recall(self._features, features)
        return {
            "kid": kid,
            "kid_std": spread,
            "precision": precision,
            "recall": recall,
            "mean_iou": float(np.nanmean(self._find_iou(images, masks)[self._judged])),
            **self.score_masks(masks),
            **self.count_copies(images, masks),
        }

    def score_masks(self, masks: Array) -> dict[str, float]:
        """Scores masks by their structure."""
        return compare_masks(masks, self._reference, self.info.num_classes)

    def score_floor(self) -> dict[str, float]:
        """Scores crops of the training split; copies are those among crops of the test split."""
        images, masks = cut_crops(self.training, GEOMETRY, len(self.held_out))
        copies = self.count_copies(self.held_out, self._masks)
        return {**self.score(images, masks), **copies, "mean_iou": self.real_iou}

    def count_copies(self, images: Array, masks: Array) -> dict[str, float]:
        """Shares of the first images and masks that are copies."""
        levels = np.stack([to_levels(mask, self.info.num_classes) for mask in masks[:SEARCHED]])
        ratios = [[match.ratio for match in search.find(images[:SEARCHED])] for search in self._image_searches]
        mask_ratios = [match.ratio for match in self._mask_search.find(levels)]
        return {
            "image_copies": float((np.min(ratios, axis=0) < COPY_RATIO).mean()),
            "mask_copies": float((np.array(mask_ratios) < MASK_COPY_RATIO).mean()),
        }

    def _find_iou(self, images: Array, masks: Array) -> NDArray[np.float64]:
        predicted = predict_masks(self._segmenter, images)
        return compute_scores(masks, predicted, self.info.num_classes, self.info.ignore_index).class_iou


def draw_procedural(info: DatasetInfo, count: int) -> Array:
    """Samples layouts by the rules of the mask source `procedural`."""
    source = ProceduralSource(ProceduralMasks(dataset=DATASET), info, GEOMETRY, 0)
    return np.stack([source.draw(index).mask for index in range(count)])


def run_study(codes: list[str], seed: int, steps: int, output: Path, generated: Path | None = None) -> list[float]:
    """Trains the networks of a utility study with one seed, or finds them; returns the mIoU of each code."""
    values = {
        "dataset": str(DATASET),
        "generated": None if generated is None else str(generated),
        "output_dir": str(output),
        "codes": codes,
        "architectures": ["unet"],
        "seeds": [seed],
        "geometry": {"image_size": GEOMETRY.image_size, "crop_size": GEOMETRY.crop_size},
        # Validation of whole micrographs takes as long as 20 steps, so only the last step is tested.
        "training": {"steps": steps, "validate_every": steps},
    }
    study = utility(parse_config(values, UtilityConfig), lambda line: print(output.name, line, flush=True))
    scores = {row["code"]: row["mean_iou"] for row in study["scores"]}
    return [scores[code] for code in codes]


def run_system(arguments: argparse.Namespace) -> None:
    """Trains, samples and measures one system with one seed; resumes an interrupted run."""
    runs, system, seed, minutes = arguments.runs, arguments.system, arguments.seed, arguments.minutes
    name = f"{system}-seed{seed}-{minutes:g}min"
    path = runs / "scores" / f"{name}.json"
    if path.is_file():
        return
    folders = {
        network: train_network(network, share * minutes, seed, runs, arguments.unlabeled)
        for network, share in SYSTEMS[system].items()
    }
    start = time.process_time()
    pairs = sample(build_sampling(system, folders, runs / "pairs" / name, seed, arguments.images))
    seconds = time.process_time() - start
    judge = Judge(arguments.images, [DATASET, arguments.unlabeled] if "unlabeled" in system else [DATASET])
    found = [load_pair(pair, judge.info) for pair in list_samples(pairs)]
    images, masks = (np.stack(part) for part in zip(*found, strict=True))
    steps, studies = arguments.study_steps, runs / "studies"
    alone = run_study(list(CODES), seed, steps, studies / f"real-seed{seed}")
    with_pairs = run_study(list(CODES.values()), seed, steps, studies / name, pairs)
    save_json(
        path,
        {
            "system": system,
            "seed": seed,
            "minutes": minutes,
            "images": arguments.images,
            "steps": {network: load_json(folder / "result.json")["global_step"] for network, folder in folders.items()},
            "seconds_a_pair": seconds / len(found),
            "score": judge.score(images, masks),
            "alone": dict(zip(CODES, alone, strict=True)),
            "with_pairs": dict(zip(CODES.values(), with_pairs, strict=True)),
        },
    )
    print(name, load_json(path), flush=True)


def score_references(runs: Path, count: int) -> dict[str, dict[str, float]]:
    """Scores real crops and procedural masks, and the search for copies on crops of the training set, once."""
    path = runs / f"references-{count}.json"
    if not path.is_file():
        judge = Judge(count, [DATASET])
        masks = draw_procedural(judge.info, count)
        copies = judge.count_copies(judge.held_out, masks)["mask_copies"]
        procedural = {**judge.score_masks(masks), "mask_copies": copies}
        found = judge.count_copies(*cut_crops(judge.training, GEOMETRY, SEARCHED))
        save_json(path, {"floor": judge.score_floor(), "procedural": procedural, "found": found})
    return load_json(path)


def flatten(run: dict[str, Any], floor: dict[str, float]) -> dict[str, float]:
    """The figures of a run by name: KID above the floor, mIoU also as a share of that of real crops, and the gains of
    the utility study over real micrographs alone."""
    score = run["score"]
    relative = {"kid": score["kid"] - floor["kid"], "iou_share": score["mean_iou"] / floor["mean_iou"]}
    return {
        **score,
        **relative,
        **{code: run["with_pairs"][code] - run["alone"][alone] for alone, code in CODES.items()},
    }


def compare_systems(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean differences of two systems, first minus second, after equal time, with 95 % intervals: Student's t over
    their common seeds."""
    found = {(run["minutes"], run["system"], run["seed"]): run["figures"] for run in runs}
    rows, seeds = [], sorted({run["seed"] for run in runs})
    for minutes in sorted({run["minutes"] for run in runs}):
        for first, second in CONTRASTS:
            pairs = [(found.get((minutes, first, seed)), found.get((minutes, second, seed))) for seed in seeds]
            both = [(one, other) for one, other in pairs if one and other]
            for name in both[0][0] if both else ():
                values = np.array([one[name] - other[name] for one, other in both])
                row = {"minutes": minutes, "first": first, "second": second, "figure": name}
                row |= {"difference": float(values.mean()), "interval": t_interval(values)}
                rows.append({**row, "by_seed": values.tolist()})
    return rows


def main() -> None:
    """Runs one part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("time", "run", "table"))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/pairs"), help="folder of runs and scores")
    parser.add_argument("--system", choices=SYSTEMS, default="joint")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=3, help="minutes of one core, for the training steps")
    parser.add_argument("--images", type=int, default=128, help="pairs per system and seed")
    parser.add_argument("--study-steps", type=int, default=100, help="training steps of the study's networks")
    parser.add_argument("--repeats", type=int, default=8, help="steps of each network that `time` measures")
    parser.add_argument(
        "--unlabeled", type=Path, default=Path("data/pretraining/uhcs_plain"), help="micrographs without masks"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.part == "time":
        measure_times(arguments.runs, arguments.repeats, arguments.unlabeled)
    elif arguments.part == "run":
        run_system(arguments)
    else:
        runs = [load_json(path) for path in sorted((arguments.runs / "scores").glob("*.json"))]
        references = score_references(arguments.runs, runs[0]["images"])
        runs = [{**run, "figures": flatten(run, references["floor"])} for run in runs]
        stored = {
            "networks": load_json(arguments.runs / "step_times.json")["seconds_a_step"],
            **references,
            "runs": runs,
            "differences": compare_systems(runs),
        }
        save_results(RESULTS / "pairs.json", stored)


if __name__ == "__main__":
    main()
