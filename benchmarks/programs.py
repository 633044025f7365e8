"""Runs all benchmarks with the settings of the committed results and writes RESULTS.md.

    benchmarks/run                                   all; many hours on 2 CPU cores, mostly recipe and sampling-curve
    benchmarks/run --only training sampling-speed    some
    benchmarks/run --only gpu                        on a GPU; benchmarks/gpu has more options
    benchmarks/run --gather                          only writes RESULTS.md from benchmarks/results/*.json

Results in benchmarks/results are replaced. Sampling needs a trained generator, so benchmarks/configs/uhcs_32.json is
trained first unless its run exists. If a command fails, the others still run, it is named at the end and the exit code
is 1. The recipe resumes an interrupted run; remove runs/benchmarks/recipe to measure it again.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from report import write_report

ROOT = Path(__file__).parents[1]
GENERATOR_CONFIG = "benchmarks/configs/uhcs_32.json"
GENERATOR = json.loads((ROOT / GENERATOR_CONFIG).read_text(encoding="utf-8"))["run_dir"]
TRAIN_GENERATOR = f"-m steelgen train -c {GENERATOR_CONFIG} --resume auto"
LAUNCHER = "-m torch.distributed.run --standalone --nproc_per_node 2"


@dataclass(frozen=True)
class Benchmark:
    """Commands of a benchmark and what they need."""

    name: str
    commands: Sequence[str]
    """Without the leading `python`."""
    threads: int | None = None
    """OMP_NUM_THREADS of the committed results; None for all cores."""
    needs_generator: bool = False
    needs_gpu: bool = False
    """Runs only if named by --only."""


def _store(command: str, name: str, threads: int | None = None, needs_generator: bool = False) -> Benchmark:
    return Benchmark(name, [f"{command} --out benchmarks/results/{name}.json"], threads, needs_generator)


def _sample(part: str, settings: str, threads: int | None = None, generator: str = GENERATOR) -> Benchmark:
    command = f"benchmarks/sampling.py {part} --generator {generator} {settings}"
    return _store(command, f"sampling-{part}", threads, generator == GENERATOR)


def _list_recipe() -> Iterator[str]:
    """Step times; two recipes with three seeds at 300, 600 and 1,200 s; every variant with one seed at 150 s."""
    yield "benchmarks/recipe.py time"
    for variant in ("default", "isdm"):
        for seed in range(3):
            for budget in (300, 600, 1200):
                run = f"--variant {variant} --seed {seed} --budget-seconds {budget}"
                yield f"benchmarks/recipe.py run {run} --own-sampler {50 if budget >= 600 else 0} --stages"
    for variant in RECIPE_VARIANTS:
        yield f"benchmarks/recipe.py run --variant {variant} --seed 0 --budget-seconds 150 --stages"
    yield "benchmarks/recipe.py table"


def _list_cascade() -> Iterator[str]:
    """Step times, every system with three seeds, whole micrographs."""
    yield "benchmarks/cascade.py time"
    for seed in range(3):
        for system in CASCADE_SYSTEMS:
            yield f"benchmarks/cascade.py run --system {system} --seed {seed} {CASCADE_BUDGET}"
    for system in ("cascade-2-exact", "cascade-2-patch"):
        yield f"benchmarks/cascade.py picture --system {system} {CASCADE_BUDGET}"
    yield "benchmarks/cascade.py table"


CASCADE_SYSTEMS = (
    *("bicubic", "native", "cascade-2-exact", "cascade-2-consistent"),
    *("cascade-2-patch", "cascade-2-patch-exact", "cascade-4-exact"),
)
CASCADE_BUDGET = "--minutes 60"


def _list_gan() -> Iterator[str]:
    """Step times, every system on 16 micrographs, adaptive augmentation on 4 and on many, three seeds; the leak."""
    yield "benchmarks/gan.py time"
    for seed in range(GAN_SEEDS):
        for system, data in GAN_RUNS:
            yield f"benchmarks/gan.py run --system {system} --data {data} {GAN_LARGE} --seed {seed} {GAN_BUDGET}"
    yield f"benchmarks/gan.py leak {GAN_BUDGET}"
    yield "benchmarks/gan.py table"


def _list_translation() -> Iterator[str]:
    """Three seeds of both modes with segmenters; ablations, other class shares and uhcs."""
    for seed in range(TRANSLATION_SEEDS):
        for system in ("cut", "cyclegan"):
            chosen = f"--system {system} --seed {seed}"
            yield f"benchmarks/translation.py run {chosen}"
            yield f"benchmarks/translation.py segment {chosen}"
        for part in ("run", "segment"):
            yield f"benchmarks/translation.py {part} --system cut --data uhcs --seed {seed}"
    for system in TRANSLATION_ABLATIONS:
        yield f"benchmarks/translation.py run --system {system}"
    for system in ("cut", "cyclegan"):
        yield f"benchmarks/translation.py run --system {system} --data shares"
    yield "benchmarks/translation.py table"


TRANSLATION_SEEDS = 3
TRANSLATION_ABLATIONS = (
    "cut-no-fft",
    "cut-no-rows",
    "cut-no-weights",
    "cut-plain",
    "cut-no-identity",
    "fastcut",
    "cut-ada",
    "cut-noise",
    "cyclegan-no-fft",
    "cyclegan-no-identity",
)


def _list_folds() -> Iterator[str]:
    """Every fold with every number of micrographs, one seed; some ten hours of a CPU core, or minutes of a GPU."""
    for count in (4, 0, 1, 2):
        for fold in range(6):
            yield f"benchmarks/folds.py run --fold {fold} --micrographs {count}"
    yield "benchmarks/folds.py table"


def _list_levers() -> Iterator[str]:
    """Every fold with one micrograph and other uses of the pairs and of the other micrographs."""
    folder = "--runs runs/benchmarks/levers"
    few = f"--micrographs 1 --refining-steps 400 --segmenter-steps 600 --pairs 128 {folder}"
    for fold in range(6):
        run = f"benchmarks/folds.py run --fold {fold} --steps 200 {few}"
        yield f"{run} --codes RALLF000"
        yield f"{run} --codes RALLF000 --others predicted"
        yield f"{run} --codes RALLFALL --mix half --others predicted"
    yield f"benchmarks/folds.py table --result levers {folder}"


def _list_pairs() -> Iterator[str]:
    """Step times; every system with three seeds, and real masks for the images' network of masks-first."""
    yield "benchmarks/pairs.py time"
    for seed in range(3):
        for system in ("masks-first", "joint", "real-masks", "joint-unlabeled"):
            yield f"benchmarks/pairs.py run --system {system} --seed {seed} --minutes 3"
        yield f"benchmarks/pairs.py run --system real-masks --seed {seed} --minutes 1.5"
    yield "benchmarks/pairs.py table"


def _list_transfer() -> Iterator[str]:
    """Step time; every start on two datasets with few and with all micrographs, three seeds."""
    yield "benchmarks/transfer.py time"
    for seed in range(3):
        for dataset, counts in TRANSFER_COUNTS.items():
            for count in counts:
                for start in ("scratch", "uhcs", "base"):
                    run = f"--dataset data/pretraining/{dataset} --start {start} --micrographs {count}"
                    yield f"benchmarks/transfer.py run {run} --seed {seed} --minutes 4"
    yield "benchmarks/transfer.py table"


def _list_planning() -> Iterator[str]:
    """Every choice on three datasets, two seeds."""
    for seed in range(2):
        for dataset in ("uhcs", "pretraining/uhcs_spheroidite", "pretraining/tem_316l_loops"):
            for variant in ("plan", "one-stage", "one-stage-scratch", "native", "coarse"):
                run = f"--dataset data/{dataset} --variant {variant} --seed {seed}"
                yield f"benchmarks/planning.py run {run} --minutes 3 --images 16"
    yield "benchmarks/planning.py table"


def _list_variety() -> Iterator[str]:
    for dataset in ("uhcs", "pretraining/uhcs_spheroidite", "pretraining/tem_316l_loops"):
        yield f"benchmarks/variety.py run --dataset data/{dataset}"
    yield "benchmarks/variety.py table"


def _list_unlabeled() -> Iterator[str]:
    """Every way, three seeds."""
    for seed in range(3):
        for way in ("started-0.1", "started-0.2", "started-0.3", "labeled", "real-labeled", "real-masks"):
            yield f"benchmarks/unlabeled.py run --way {way} --seed {seed}"
    yield "benchmarks/unlabeled.py table"


def _list_conditions() -> Iterator[str]:
    """Both datasets."""
    for dataset in ("uhcs", "strips"):
        for part in ("run", "score"):
            yield f"benchmarks/conditions.py {part} --dataset {dataset}"
    yield "benchmarks/conditions.py table"


TRANSFER_COUNTS = {"uhcs_spheroidite": (1, 2, 4, 0), "tem_316l_loops": (1, 2, 4, 8, 0)}
"""Training micrographs; 0 takes all, 6 and 10."""
GAN_SEEDS, GAN_BUDGET, GAN_LARGE = 3, "--minutes 20", "--large data/large"
"""The large set is no part of steelgen: any dataset folder of a thousand images or more."""
GAN_RUNS = (
    *(
        (system, "16")
        for system in ("dcgan", "style", "style-no-ada", "diffusion", "masked", "masked-fine", "masked-diffusion")
    ),
    *((system, data) for data in ("4", "large") for system in ("style", "style-no-ada")),
)
UTILITY_STUDIES = (
    "main",
    "augmented",
    "procedural",
    "filtered",
    "unguided",
    "guided-everywhere",
    "half-real",
    "pretrain",
    "fewer",
    "longer",
    "own",
)
RECIPE_VARIANTS = (
    "default",
    "isdm",
    "x0",
    "epsilon",
    "linear",
    "not-standardized",
    "lognormal",
    "flow",
    "mask-dropout-0.2",
    "dropout-0.1",
    "nearest-masks",
    "loss-aware",
    "cosine-rate",
    "isdm-our-average",
)
BENCHMARKS = (
    _store("benchmarks/data.py import", "data-import"),
    _store("benchmarks/data.py loader --repeats 3", "data-loader"),
    _store("benchmarks/training.py --repeats 5", "training"),
    _sample("speed", "--images 2 --repeats 3"),
    _sample("quality", "--images 256", threads=1),
    _sample("curve", "--images 128", threads=1),
    _sample("guide", "--images 128", threads=1, generator="bundled:uhcs"),
    Benchmark("variety", list(_list_variety()), threads=1),
    _sample("beside", "--images 16 --repeats 3", generator="bundled:uhcs"),
    Benchmark("recipe", list(_list_recipe())),
    Benchmark("cascade", list(_list_cascade()), threads=1),
    Benchmark("families", [f"benchmarks/families.py {part}" for part in ("run", "table")], threads=1),
    Benchmark("gan", list(_list_gan()), threads=1),
    Benchmark("translation", list(_list_translation()), threads=1),
    Benchmark("unlabeled", list(_list_unlabeled()), threads=1),
    Benchmark("transfer", list(_list_transfer()), threads=1),
    Benchmark("planning", list(_list_planning()), threads=1),
    Benchmark("conditions", list(_list_conditions()), threads=1),
    Benchmark("adapter", ["benchmarks/adapter.py all"], threads=1),
    Benchmark(
        "segmentation",
        [f"benchmarks/segmentation.py {part}" for part in ("folds", "times", "scales", "table")],
    ),
    Benchmark(
        "utility",
        [*(f"benchmarks/utility.py run --study {name}" for name in UTILITY_STUDIES), "benchmarks/utility.py table"],
    ),
    Benchmark("folds", list(_list_folds()), threads=1),
    Benchmark("levers", list(_list_levers()), threads=1),
    Benchmark("steering", ["benchmarks/steering.py run", "benchmarks/steering.py table"], threads=1),
    _store("benchmarks/evaluation.py --count 1000 --image-size 256", "evaluation-speed"),
    _store("benchmarks/evaluation.py --simulated 1705", "evaluation-large"),
    _store("benchmarks/copies.py", "copies", threads=1),
    _store("benchmarks/isdm.py", "isdm", threads=1),
    _store("benchmarks/rvae.py", "rvae", threads=1),
    Benchmark("joint", ["benchmarks/joint.py train", "benchmarks/joint.py measure"], threads=1),
    Benchmark("pairs", list(_list_pairs()), threads=1),
    Benchmark("labels", [f"benchmarks/labels.py {part}" for part in ("run", "memory", "table")], threads=1),
    _store(f"{LAUNCHER} benchmarks/scaling.py", "scaling", threads=1),
    Benchmark("gpu", ["benchmarks/gpu.py"], needs_gpu=True),
)


def run_benchmarks(chosen: Sequence[Benchmark]) -> list[str]:
    """Runs benchmarks from the repository root; returns the commands that failed."""
    failed = []
    if any(benchmark.needs_generator for benchmark in chosen) and not (ROOT / GENERATOR / "export").is_dir():
        failed += _run(TRAIN_GENERATOR, None)
    for benchmark in chosen:
        for command in benchmark.commands:
            failed += _run(command, benchmark.threads)
    return failed


def _run(command: str, threads: int | None) -> list[str]:
    print(f"$ python {command}", flush=True)
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    done = subprocess.run([sys.executable, *shlex.split(command)], cwd=ROOT, env=environment)
    return [f"python {command} (exit code {done.returncode})"] if done.returncode else []


def list_commands() -> Iterator[str]:
    """Lines with the name of each benchmark and its commands."""
    yield f"(trained generator, if {GENERATOR}/export is missing)"
    yield f"  python {TRAIN_GENERATOR}"
    for benchmark in BENCHMARKS:
        yield benchmark.name
        prefix = f"OMP_NUM_THREADS={benchmark.threads} " if benchmark.threads else ""
        yield from (f"  {prefix}python {command}" for command in benchmark.commands)


def main() -> int:
    """Runs, lists or gathers; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [benchmark.name for benchmark in BENCHMARKS]
    on_cpu = [benchmark.name for benchmark in BENCHMARKS if not benchmark.needs_gpu]
    parser.add_argument("--only", nargs="+", choices=names, default=on_cpu, metavar="NAME", help="see --list")
    parser.add_argument("--list", action="store_true", help="print names and commands without running them")
    parser.add_argument("--gather", action="store_true", help="only write RESULTS.md from the stored results")
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of results")
    parser.add_argument("--report", type=Path, default=ROOT / "benchmarks" / "RESULTS.md", help="file to write")
    arguments = parser.parse_args()
    if arguments.list:
        print("\n".join(list_commands()))
        return 0
    failed = []
    if not arguments.gather:
        failed = run_benchmarks([benchmark for benchmark in BENCHMARKS if benchmark.name in arguments.only])
    for name in write_report(arguments.results, arguments.report):
        print(f"{arguments.results / name}.json: not in the report; benchmarks/report.py has no section for it")
    print(f"wrote {arguments.report}")
    for command in failed:
        print(f"failed: {command}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
