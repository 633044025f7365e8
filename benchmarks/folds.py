"""How many micrographs do generated pairs replace? Folds of uhcs or another set, at the micrographs' own resolution.

    python benchmarks/folds.py run --fold 0 --micrographs 4
    python benchmarks/folds.py table

For each fold and number of micrographs, both stages of a cascade are fine-tuned from the bundled base model, which has
seen no micrograph of uhcs, uhcs_spheroidite and tem_316l_loops, on these micrographs alone; they generate pairs of
128 px for crops of the same masks; and a segmenter with a pretrained encoder is trained on the micrographs alone, with
copy-paste of islands, with the pairs, and with both, for the same steps. It is tested on the fold's micrographs, whole,
four of uhcs. As many others select the best step of generators and segmenters. The micrographs of fewer are among those
of more. `run` resumes after interruption; `table` computes the study's statistics over all finished folds.

    python benchmarks/folds.py run --fold 0 --micrographs 1 --mix half --others unlabeled --codes RALLFALL

`--mix` shows the pairs in another way than in proportion to the crops, and `--masks` takes other layouts. `--others`
uses the fold's other training micrographs without their masks, as a laboratory has many of which it labeled a few:
generators learn from them with the null mask (unlabeled), or with the masks that a segmenter of the labeled ones
predicts (predicted). These then also are the layouts of the pairs, and with the code RALLF000 they are labels to train
a segmenter on, the cheap rival; `--real all` trains one on them and on the pairs.

    python benchmarks/folds.py run --dataset data/loops --folds 5 --fold 1 --runs runs/benchmarks/folds-loops
    python benchmarks/folds.py table --dataset data/loops --runs runs/benchmarks/folds-loops --result folds-loops
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import save_results
from fitting import train_to_end
from numpy.typing import NDArray

from steelgen.config.base import parse_config
from steelgen.config.sample import SampleConfig
from steelgen.config.segment import SegmentConfig
from steelgen.config.train import FinetuneConfig
from steelgen.config.utility import UtilityConfig, find_rivals, parse_code
from steelgen.data.folder import load_dataset_info
from steelgen.devices import pick_device
from steelgen.errors import InputError
from steelgen.evaluation.segment import COMPLETED, train_labeler
from steelgen.evaluation.study import utility
from steelgen.evaluation.utility.folds import divide_folds
from steelgen.evaluation.utility.statistics import compare_classes, summarize
from steelgen.evaluation.utility.training_set import choose_subset
from steelgen.files import load_json
from steelgen.fold_workflow import write_division
from steelgen.sampling.sample import sample

DATASET = Path(__file__).parents[1] / "data" / "uhcs"
RESULTS = Path(__file__).parent / "results"
ARMS = ("RALLF000", "RALLF000P", "RALLFALL", "RALLFALLP")
"""Codes within one number of micrographs, all of which are in its dataset folder."""
ARCHITECTURE = "unet:efficientnet-lite0"
EDGE = 128
"""Edge of the pairs and of the segmenters' crops, px of the micrographs."""
STAGES: dict[str, dict[str, Any]] = {
    "first": {"checkpoint": "bundled:base", "data": {"image_size": EDGE // 2, "crop_size": EDGE}},
    "refine": {"checkpoint": "bundled:base/refine", "data": {"image_size": EDGE // 2, "crop_size": EDGE // 2}},
}
MIXES: dict[str, dict[str, Any]] = {
    "plain": {},
    "half": {"real_share": 0.5},
    "pretrain": {"schedule": "pretrain"},
}
"""How real and generated crops are mixed in training, as fields of the study's `training`."""
OTHERS = ("unused", "unlabeled", "predicted")
REAL = ("labeled", "all")
DEFAULTS = ("plain", "split", "unused", "labeled")
"""Mix, masks, others and real micrographs that names of folders leave out."""
SEGMENTERS = {"batch_size": 8, "augmentation": {}, "enlargement": 1.5, "validate_every": 100}


def prepare_dataset(arguments: argparse.Namespace, count: int, out: Path) -> Path:
    """Writes the dataset folder of a fold with `count` (0: all) of its training micrographs, once."""
    if out.is_dir():
        return out
    folds = int(arguments.folds) if arguments.folds.isdecimal() else arguments.folds
    config = UtilityConfig(dataset=arguments.dataset, output_dir=out, folds=folds, codes=["RALLF000"])
    divided = divide_folds(config)[arguments.fold]
    total = len(divided["train"])
    chosen = choose_subset(total, count or total, arguments.seed)
    divided["train"] = [divided["train"][index] for index in chosen]
    write_division(config, divided, out)
    return out


def predict_others(dataset: Path, whole: Path, out: Path, seed: int, steps: int) -> Path:
    """Trains a segmenter of the labeled micrographs that labels the others of the fold, once.

    Args:
        dataset: dataset folder of the labeled micrographs.
        whole: dataset folder of all.
        out: folder of the segmenter.
        seed: seed of the segmenter.
        steps: its training steps.

    Returns:
        Dataset folder with the masks of `dataset` and predicted ones in train/, and the splits val/ and test/ as they
        were.
    """
    if not out.is_dir():
        values = {
            "dataset": str(dataset),
            "output_dir": str(out),
            "unlabeled": str(whole),
            "image_size": EDGE,
            "crop_size": EDGE,
            "validate_every": SEGMENTERS["validate_every"],
            "segmenter": {
                "architecture": ARCHITECTURE,
                "steps": steps,
                **{name: SEGMENTERS[name] for name in ("batch_size", "augmentation", "enlargement")},
            },
            "seed": seed,
        }
        train_labeler(parse_config(values, SegmentConfig))
    return out / COMPLETED


def train_stage(name: str, data: dict[str, Any], run_dir: Path, seed: int, steps: int) -> Path:
    """Fine-tunes a stage of the cascade; returns the weights with the lowest validation loss.

    Args:
        name: the stage.
        data: fields of the config's `data` that name its datasets.
        run_dir: run folder.
        seed: seed of the run.
        steps: training steps.

    Raises:
        InputError: if a signal stopped training.
    """
    stage = STAGES[name]
    values = {
        "run_dir": str(run_dir),
        "seed": seed,
        "checkpoint": stage["checkpoint"],
        "data": {**data, **stage["data"]},
        "train": {
            "max_steps": steps,
            "train_batch_size": 16,
            "learning_rate": 3e-4,
            "warmup_steps": max(1, steps // 20),
            "ema_decay": round(1 - 10 / max(steps, 20), 4),
            "mixed_precision": "auto",
            "compile": "cudagraphs" if pick_device().type == "cuda" else False,
            "checkpoint_every": max(1, steps // 4),
            "keep_checkpoints": 1,
            "trackers": [],
        },
        "preview": {"num_images": 0},
        "validation": {"every": max(1, steps // 8), "crops": 64},
        "measurement": {"every": None},
    }
    train_to_end(parse_config(values, FinetuneConfig))
    return run_dir / "best"


def sample_pairs(stages: list[Path], masks: str, dataset: Path, out: Path, seed: int, count: int) -> Path:
    """Samples pairs for masks from the training micrographs, by a `mask_source` of this kind; returns their folder."""
    values = {
        "stages": [{"generator": str(stage)} for stage in stages],
        "output_dir": str(out),
        "mask_source": {"kind": masks, "dataset": str(dataset)},
        "num_samples": count,
        "batch_size": 32,
        "seed": seed,
        "mixed_precision": "auto",
    }
    return sample(parse_config(values, SampleConfig), lambda done, total: None)


def find_place(folder: Path, kind: str, *choices: str) -> Path:
    """Returns the folder of what was made with these choices."""
    return folder / "-".join([kind, *(choice for choice in choices if choice not in DEFAULTS)])


def run(arguments: argparse.Namespace) -> None:
    """Trains generators, samples pairs, and trains segmenters for one fold and number of micrographs."""
    count, seed = arguments.micrographs, arguments.seed
    folder = arguments.runs / f"fold{arguments.fold}-{count or 'all'}-seed{seed}"
    dataset = prepare_dataset(arguments, count, folder / "data")
    masks, others = arguments.masks, arguments.others
    labeled, data = dataset, {"dataset": str(dataset)}
    if others != "unused":
        whole = prepare_dataset(arguments, 0, folder / "whole")
        if others == "unlabeled":
            plain = {"dataset": str(whole), "unconditional": True}
            data = {"datasets": [{"dataset": str(dataset)}, plain], "merge_classes": True}
        else:
            labeled = predict_others(dataset, whole, folder / "segmenter", seed, arguments.segmenter_steps)
            data = {"dataset": str(labeled)}
    needs_pairs = any(parse_code(code).needs_generated for code in arguments.codes)
    pairs = None
    if needs_pairs:
        steps = {"first": arguments.steps, "refine": arguments.refining_steps}
        stages = [train_stage(name, data, find_place(folder, name, others), seed, steps[name]) for name in STAGES]
        place = find_place(folder, "pairs", masks, others)
        pairs = sample_pairs(stages, masks, labeled, place, seed, arguments.pairs)
    study = {
        "dataset": str(dataset if needs_pairs and arguments.real == "labeled" else labeled),
        "generated": pairs and str(pairs),
        "output_dir": str(find_place(folder, "study", arguments.mix, masks, others, arguments.real)),
        "codes": arguments.codes,
        "architectures": [ARCHITECTURE],
        "seeds": [seed],
        "geometry": {"image_size": EDGE, "crop_size": EDGE},
        "training": {**SEGMENTERS, **MIXES[arguments.mix], "steps": arguments.segmenter_steps},
        "mixed_precision": "auto",
    }
    utility(parse_config(study, UtilityConfig), lambda line: print(line, flush=True))


def gather(runs: Path, dataset: Path = DATASET) -> dict[str, Any]:
    """Computes scores, differences and closed gaps over folds; codes that lack folds of others are left out."""
    found: dict[tuple[str, int], dict[int, dict[str, Any]]] = {}
    counts: dict[str, tuple[int, int]] = {}
    for path in sorted(runs.glob("fold*-seed*/study*/cells/*.json")):
        fold, count, _ = path.parts[-4].split("-")
        cell = load_json(path)
        code = cell["code"].replace("RALL", "RALL" if count == "all" else f"R{count}")
        code = " ".join([code, *path.parts[-3].split("-")[1:]])
        found.setdefault((code, cell["seed"]), {})[int(fold.removeprefix("fold"))] = cell["test"]
        labeled = len(cell["real"]) if count == "all" else int(count)
        counts[code] = labeled, len(cell["real"]) - labeled + cell["num_generated"]
    if not found:
        raise InputError(f"{runs}: has no finished segmenter")
    folds = sorted(max(found.values(), key=len))
    complete = {key for key, tests in found.items() if sorted(tests) == folds}
    by_seed = {seed: {code for code, other in complete if other == seed} for _, seed in sorted(complete)}
    most = max(by_seed.values(), key=len)
    codes = sorted(most, key=lambda code: (*counts[code], find_rivals(code.split()[0]), code))
    seeds = sorted(seed for seed, found_codes in by_seed.items() if found_codes >= most)

    def stack(field: str) -> dict[tuple[str, str], NDArray[np.int64]]:
        """(S, N, …) counts of all seeds and test micrographs, by code and architecture."""
        return {
            (code, ARCHITECTURE): np.array(
                [[each for fold in folds for each in found[code, seed][fold][field]] for seed in seeds]
            )
            for code in codes
        }

    tested = [len(found[codes[0], seeds[0]][fold]["confusion"]) for fold in folds]
    chosen = {code: counts[code] for code in codes}
    bootstrap = UtilityConfig.model_fields["num_bootstrap"].default
    confusions = stack("confusion")
    return {
        "class_names": load_dataset_info(dataset).class_names,
        "folds": folds,
        "seeds": seeds,
        **summarize(confusions, chosen, bootstrap, np.repeat(np.arange(len(folds)), tested)),
        "by_class": compare_classes(confusions, chosen, stack("boundaries")),
    }


def main() -> None:
    """Runs one fold and number of micrographs, or gathers all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("run", "table"))
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks/folds"), help="folder of all outputs")
    parser.add_argument("--dataset", type=Path, default=DATASET, help="dataset folder, whose splits are pooled")
    parser.add_argument("--folds", default="cv_fold", help="column of metadata.jsonl, or number of random folds")
    parser.add_argument("--fold", default="0", help="name of the fold; of random ones a number from 1 on")
    parser.add_argument("--micrographs", type=int, default=4, help="training micrographs; 0 takes all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1000, help="of 16 crops, of the first stage")
    parser.add_argument("--refining-steps", type=int, default=500, help="of 16 crops, of the second stage")
    parser.add_argument("--segmenter-steps", type=int, default=800, help="of 8 crops, of every segmenter")
    parser.add_argument("--pairs", type=int, default=256, help="generated pairs")
    parser.add_argument("--mix", choices=MIXES, default="plain", help="how real crops and pairs are mixed")
    parser.add_argument("--masks", choices=("split", "augmented"), default="split", help="mask_source of the pairs")
    parser.add_argument("--others", choices=OTHERS, default="unused", help="use of the other micrographs")
    parser.add_argument("--real", choices=REAL, default="labeled", help="real micrographs beside the pairs")
    parser.add_argument("--result", default="folds", help="name of the table's result")
    parser.add_argument("--codes", nargs="+", choices=ARMS, default=list(ARMS), help="training sets")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.part == "run":
        run(arguments)
    else:
        made_by = next(arguments.runs.glob("fold*/first*"), None)
        found = gather(arguments.runs, arguments.dataset)
        save_results(RESULTS / f"{arguments.result}.json", found, show=False, run_dir=made_by)


if __name__ == "__main__":
    main()
