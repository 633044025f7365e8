"""Exact resume, speed, memory and host waits of training and sampling on a GPU, within minutes and without downloads.

    benchmarks/gpu                    the committed results: nine minutes on an otherwise idle GPU
    benchmarks/gpu --only resume      some parts; results of the others are kept
    benchmarks/gpu --dry              the same with tiny networks on a CPU in a minute or two, to check that it works

Training uses configs/train.json on the micrographs in data/uhcs at three image sizes: its steps alone, on batches that
are on the GPU already, and through `steelgen.train` with its loader, EMA and metrics. Each part runs in its own process
with its share of the remaining time, the most important ones first. Measurements made before a part times out or fails
are kept in the results.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState
from common import LinePrinter, save_results, summarize
from safetensors.torch import load_file
from steps import TrainingStep
from tables.gpu import tabulate_gpu

from steelgen.config.base import parse_config
from steelgen.config.solver import SolverSection
from steelgen.config.train import TrainConfig
from steelgen.devices import is_out_of_memory, pick_device
from steelgen.errors import first_line
from steelgen.files import load_json, save_json
from steelgen.generators.families import load_generator
from steelgen.planning.rules import SMALL_NETWORK
from steelgen.sampling.generate import SamplingBatch, generate_images, prepare_generator
from steelgen.training.batch_size import tune_batch
from steelgen.training.loop import train
from steelgen.training.setup import prepare_training

ROOT = Path(__file__).parents[1]
TINY = {
    "base_channels": 8,
    "channel_mult": [1, 2],
    "num_res_blocks": 1,
    "attention_resolutions": [8],
    "num_head_channels": 8,
    "spade_channels": 8,
    "norm_groups": 4,
}
Results = dict[str, Any]
Save = Callable[[Any], None]


@dataclass(frozen=True)
class Scale:
    """Settings of the committed results or of a dry run."""

    batches: dict[int, int]
    """Crops per step by image size in px."""
    precisions: tuple[str, ...]
    unet: dict[str, Any]
    """Changes of the network section of configs/train.json."""
    small_unet: dict[str, Any]
    """Those of the part `resume`, which writes many checkpoints."""
    warm_up: int
    """Steps before measuring, for memory allocation and kernel selection."""
    watched: int
    """Steps in which waits are counted."""
    block: int
    """Steps per time measurement, which waits for the GPU."""
    blocks: int
    images: int
    """Images per batch in sampling."""
    micrograph: tuple[int, int]
    """Height and width in px of an image sampled in windows."""
    solver_steps: int
    memory_gib: float | None
    """Memory limit for the largest batch; None uses the free memory."""
    most_crops: int
    """Crops per step in the search for the largest batch."""


FULL = Scale({64: 64, 128: 32, 256: 16}, ("bf16", "no"), {}, SMALL_NETWORK, 6, 5, 4, 6, 16, (512, 512), 12, 16.0, 256)
DRY = Scale({16: 2}, ("no",), TINY, TINY, 1, 1, 1, 2, 2, (24, 40), 2, None, 1)


def build_config(scale: Scale, run_dir: Path, size: int, **train: Any) -> TrainConfig:
    """Training on crops of `size` px without previews and intermediate checkpoints."""
    values = load_json(ROOT / "configs" / "train.json")
    steps = scale.warm_up + scale.watched + scale.block * scale.blocks
    quiet = {"max_steps": steps, "warmup_steps": 2, "log_every": 10_000, "checkpoint_every": 10_000, "trackers": []}
    values["run_dir"] = str(run_dir)
    values["data"] |= {"dataset": str(ROOT / "data" / "uhcs"), "image_size": size, "crop_size": max(192, 3 * size // 2)}
    values["data"]["num_workers"] = None if torch.cuda.is_available() else 0
    values["generator"]["unet"] |= scale.unet
    values["train"] |= {**quiet, "train_batch_size": scale.batches[size], **train}
    values |= {"preview": {"num_images": 0}, "validation": {"split": None}, "measurement": {"every": None}}
    return parse_config({**values, "selection": {"criterion": "none"}}, TrainConfig)


def train_isolated(config: TrainConfig, observer: LinePrinter, resume: bool = False) -> None:
    """Trains as in a new process."""
    _reset_torch()
    train(config, observer, resume)


def _reset_torch() -> None:
    """Forgets the precision and determinism set by earlier trainings."""
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.use_deterministic_algorithms(False)


class Watch(LinePrinter):
    """Counts the waits of some training steps, within `stack`, then times blocks of steps."""

    def __init__(self, scale: Scale, stack: ExitStack) -> None:
        self._scale, self._stack = scale, stack
        self.waits: Counter[str] = Counter()
        self.seconds: list[float] = []
        """Seconds per step, one value per block."""
        self._since = 0.0

    def on_step(self, step: int, values: dict[str, float]) -> None:
        """See `TrainingObserver`."""
        counted = self._scale.warm_up + self._scale.watched
        if step == self._scale.warm_up:
            self.waits = self._stack.enter_context(count_waits())
        elif step >= counted and (step - counted) % self._scale.block == 0:
            self._stack.close()
            synchronize()
            now = time.perf_counter()
            if step > counted:
                self.seconds.append((now - self._since) / self._scale.block)
            self._since = now


@contextmanager
def count_waits() -> Iterator[Counter[str]]:
    """Counts, by file and line, the operators within the block that make the host wait for the GPU."""
    found: Counter[str] = Counter()
    if not torch.cuda.is_available():
        yield found
        return
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield found
        finally:
            torch.cuda.set_sync_debug_mode("default")
    syncs = [each for each in caught if "synchronizing CUDA operation" in str(each.message)]
    found.update(f"{Path(each.filename).name}:{each.lineno}" for each in syncs)


def synchronize() -> None:
    """Waits for the GPU, if there is one."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def watch_memory(row: Results) -> Iterator[None]:
    """Adds the peak GPU memory of the block to a row, allocated by tensors and reserved by torch, in GiB."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield
    if torch.cuda.is_available():
        row["allocated_gib"] = torch.cuda.max_memory_allocated() / 2**30
        row["reserved_gib"] = torch.cuda.max_memory_reserved() / 2**30


def measure_steps(scale: Scale, folder: Path, save: Save) -> None:
    """Measures steps on resident batches: eager in fp32 (with TF32) and bf16, in both layouts, and from CUDA graphs."""
    kinds = list(itertools.product((True, False), scale.precisions, scale.batches))
    eager = [(size, precision, last, False) for last, precision, size in kinds]
    graphs = [(size, scale.precisions[0], True, "cudagraphs") for size in scale.batches]
    _measure_steps(scale, folder, save, [*eager[: len(graphs)], *graphs, *eager[len(graphs) :]])


def measure_compiled(scale: Scale, folder: Path, save: Save) -> None:
    """Measures steps compiled to new kernels, which may take minutes to start."""
    _measure_steps(scale, folder, save, [(_middle(scale), scale.precisions[0], True, True)])


def _middle(scale: Scale) -> int:
    return sorted(scale.batches)[len(scale.batches) // 2]


def _measure_steps(scale: Scale, folder: Path, save: Save, kinds: list[tuple[int, str, bool, bool | str]]) -> None:
    rows: list[Results] = []
    for size, precision, channels_last, compiled in kinds:
        options = {"mixed_precision": precision, "channels_last": channels_last, "compile": compiled}
        row = {"image_size": size, "batch_size": scale.batches[size], **options}
        start = time.perf_counter()
        try:
            with watch_memory(row):
                _reset_torch()
                step = TrainingStep(build_config(scale, folder / "unused", size, **options), resident=2)
                _run_steps(step, scale.warm_up)
                row["seconds_to_start"] = time.perf_counter() - start
                seconds = [_run_steps(step, scale.block) / scale.block for _ in range(scale.blocks)]
                with count_waits() as waits:
                    _run_steps(step, scale.watched, wait=False)
        except Exception as error:
            if not is_out_of_memory(error.__cause__ or error):
                raise
            row["failed"] = "out of memory"
        else:
            row |= _rate(seconds, scale.batches[size])
            row["waits_a_step"], row["waits"] = waits.total() / scale.watched, dict(waits.most_common(10))
        rows.append(row)
        save(rows)


def _run_steps(step: TrainingStep, count: int, wait: bool = True) -> float:
    """Takes steps; returns the seconds until the GPU has finished them."""
    start = time.perf_counter()
    for _ in range(count):
        step()
    if wait:
        synchronize()
    return time.perf_counter() - start


def _rate(seconds: list[float], batch_size: int) -> Results:
    rates = [1 / each for each in seconds]
    return {"steps_per_second": summarize(rates), "images_per_second": summarize([batch_size * rate for rate in rates])}


def measure_training(scale: Scale, folder: Path, save: Save) -> None:
    """Measures `steelgen.train` with its loader, and counts its waits."""
    rows: list[Results] = []
    for size, batch_size in scale.batches.items():
        options = {"mixed_precision": scale.precisions[0], "channels_last": True, "compile": False}
        row = {"image_size": size, "batch_size": batch_size, **options}
        start = time.perf_counter()
        with ExitStack() as stack, watch_memory(row), tempfile.TemporaryDirectory(dir=folder) as place:
            watch = Watch(scale, stack)
            train_isolated(build_config(scale, Path(place) / "run", size, **options), watch)
        row |= _rate(watch.seconds, batch_size)
        row |= {"waits_a_step": watch.waits.total() / scale.watched, "waits": dict(watch.waits.most_common(10))}
        row["seconds_in_all"] = time.perf_counter() - start
        rows.append(row)
        save(rows)


def measure_resume(scale: Scale, folder: Path, save: Save) -> None:
    """Compares the weights after N + N steps, stopped by a signal in between, with those after 2 N steps.

    A second run of 2 N steps shows whether differences come from resuming or from nondeterministic kernels.
    """
    size, half = min(scale.batches), scale.watched
    rows: list[Results] = []
    for deterministic, precision in itertools.product((True, False), scale.precisions):
        options = {"mixed_precision": precision, "deterministic": deterministic, "max_steps": 2 * half}
        row = {"image_size": size, "steps": 2 * half, "mixed_precision": precision, "deterministic": deterministic}
        rows.append(row)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            names = ("whole", "repeated", "parts")
            small = replace(scale, unet=scale.small_unet)
            whole, repeated, parts = (build_config(small, Path(place) / name, size, **options) for name in names)
            try:
                train_isolated(whole, LinePrinter())
                train_isolated(repeated, LinePrinter())
                train_isolated(parts, _Stop(half))
                train_isolated(parts, LinePrinter(), resume=True)
            except RuntimeError as error:  # an operator without a deterministic kernel
                row["failed"] = first_line(error)
            else:
                weights = _load_weights(whole.run_dir, 2 * half)
                row["resumed"] = _compare(weights, _load_weights(parts.run_dir, 2 * half))
                row["repeated"] = _compare(weights, _load_weights(repeated.run_dir, 2 * half))
        save(rows)


class _Stop(LinePrinter):
    """Stops training after a step as a cluster would."""

    def __init__(self, step: int) -> None:
        self._step = step

    def on_step(self, step: int, values: dict[str, float]) -> None:
        if step == self._step:
            os.kill(os.getpid(), signal.SIGTERM)


def _load_weights(run_dir: Path, step: int) -> dict[str, torch.Tensor]:
    folder, found = run_dir / "checkpoints" / f"step-{step:06d}", {}
    for name in ("weights", "average", "optimizer"):
        found |= {f"{name}.{key}": tensor for key, tensor in load_file(folder / f"{name}.safetensors").items()}
    return found


def _compare(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> Results:
    assert first.keys() == second.keys()
    differing = [name for name in first if not torch.equal(first[name], second[name])]
    largest = max((float((first[name] - second[name]).abs().max()) for name in differing), default=0.0)
    return {"tensors": len(first), "differing": len(differing), "largest_difference": largest}


def measure_sampling(scale: Scale, folder: Path, save: Save) -> None:
    """Measures the default solver with untrained networks of every size, and a larger image in windows."""
    rows: list[Results] = []
    sizes = {size: (size, size) for size in scale.batches}
    middle = _middle(scale)
    solver = SolverSection(num_inference_steps=scale.solver_steps)
    for network, shape in [*sizes.items(), (middle, scale.micrograph)]:
        path = folder / str(network)
        if not path.is_dir():
            generator, _ = prepare_training(build_config(scale, folder / "unused", network))
            generator.save(path)
        count = scale.images if shape == sizes[network] else 1
        classes = load_generator(path).info.num_classes
        masks = (np.indices((count, *shape)).sum(axis=0) // 8 % classes).astype(np.uint8)  # stripes
        for precision in scale.precisions:
            row: Results = {"network_size": network, "height": shape[0], "width": shape[1], "images": count}
            row |= {"mixed_precision": precision, "solver_steps": scale.solver_steps}
            with watch_memory(row):
                ready = prepare_generator(path)

                def sample() -> float:
                    start = time.perf_counter()
                    generate_images(ready, SamplingBatch(list(masks), range(count), solver), precision)  # noqa: B023
                    return time.perf_counter() - start

                sample()  # kernels are selected in the first call
                with count_waits() as waits:
                    sample()
                seconds = [sample() for _ in range(scale.blocks)]
            row["images_per_second"] = summarize([count / each for each in seconds])
            row["waits_a_batch"] = waits.total()
            row["waits"] = dict(waits.most_common(10))
            rows.append(row)
            save(rows)


def measure_memory(scale: Scale, folder: Path, save: Save) -> None:
    """Measures the largest batch found by `steelgen tune-batch` and the memory of training with it."""
    size = _middle(scale)
    options = {"mixed_precision": scale.precisions[0], "train_batch_size": scale.most_crops}
    config = build_config(scale, folder / "run", size, **options)
    plan = tune_batch(config, scale.memory_gib)
    planned = {trial.batch_size: trial.memory_gib for trial in plan.trials}
    row: Results = {"image_size": size, "limit_gib": plan.limit_gib, "largest": plan.largest}
    row |= {"batch_size": plan.train_batch_size, "planned_gib": planned[plan.train_batch_size], "trials": planned}
    save(row)
    fitting = {
        "train_batch_size": plan.train_batch_size,
        "gradient_accumulation_steps": plan.gradient_accumulation_steps,
        "max_steps": 2,
    }
    with watch_memory(row):
        train_isolated(build_config(scale, folder / "run", size, **options | fitting), LinePrinter())
    network = prepare_training(config)[0].network
    bytes_of_each = 4 * (4 + 1)  # weights, gradients, two moments; one average (docs/memory.md)
    row["weights_gib"] = bytes_of_each * sum(each.numel() for each in network.parameters()) / 2**30
    save(row)


def measure_families(scale: Scale, folder: Path, save: Save) -> None:
    """Trains the configs of all kinds of generators for some steps, with a preview; says which fail."""
    rows: list[Results] = []
    for name in FAMILIES:
        values = load_json(ROOT / "configs" / f"{name}.json")
        steps = scale.warm_up
        values |= {"run_dir": str(folder / name), "measurement": {"every": None}, "selection": {"criterion": "none"}}
        values["data"]["dataset"] = str(ROOT / "data" / "uhcs")
        if "source" in values["data"]:
            values["data"]["source"] = {"dataset": str(ROOT / "data" / "uhcs"), "split": "val"}
        values["train"] |= {"max_steps": steps, "checkpoint_every": steps, "warmup_steps": 1, "trackers": []}
        values["preview"] = {"every": steps, "num_images": 2}
        values["validation"] = {"split": None}
        row: Results = {"config": name, "steps": steps}
        start = time.perf_counter()
        try:
            with watch_memory(row):
                train_isolated(parse_config(values, TrainConfig), LinePrinter())
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {first_line(error)}"
        row["seconds"] = time.perf_counter() - start
        rows.append(row)
        save(rows)


def measure_processes(scale: Scale, folder: Path, save: Save) -> None:
    """Measures images per second of two processes, each with its own GPU and the batch that `training` gives one."""
    if torch.cuda.is_available() and torch.cuda.device_count() < 2:
        save({"skipped": "one GPU"})
        return
    size, steps = _middle(scale), scale.block * scale.blocks
    options = {"mixed_precision": scale.precisions[0], "max_steps": 2 * steps, "log_every": steps}
    config = build_config(scale, folder / "run", size, **options)
    save_json(folder / "train.json", config.model_dump(mode="json"))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command = [*launcher, "-m", "steelgen", "train", "-c", str(folder / "train.json")]
    environment = os.environ if torch.cuda.is_available() else {**os.environ, "ACCELERATE_USE_CPU": "1"}
    subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
    lines = (config.run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    rate = json.loads(lines[-1])["images_per_second"]
    save({"image_size": size, "batch_size": scale.batches[size], "images_per_second": rate})


FAMILIES = ("train", "refine", "gan", "gan-masked", "joint", "autoencoder", "rvae", "translation")
"""Configs of the part `families`."""
PARTS: dict[str, tuple[Callable[[Scale, Path, Save], None], int]] = {
    "steps": (measure_steps, 9),
    "resume": (measure_resume, 4),
    "training": (measure_training, 4),
    "sampling": (measure_sampling, 4),
    "memory": (measure_memory, 3),
    "families": (measure_families, 5),
    "processes": (measure_processes, 3),
    "compiled": (measure_compiled, 5),
}
"""Parts by importance, with their shares of the time; unused time goes to the following ones."""


def run_parts(names: list[str], arguments: argparse.Namespace, results: Results) -> None:
    """Runs each part in its own process and saves all results after each."""
    end = time.monotonic() + 60 * arguments.minutes - 5  # for writing the results
    for number, name in enumerate(names):
        shares = [PARTS[each][1] for each in names[number:]]
        limit = (end - time.monotonic()) * shares[0] / sum(shares)
        print(f"{name}: at most {limit:.0f} s", flush=True)
        results["parts"][name] = run_part(name, arguments.dry, limit)
        save_results(arguments.out, results, show=False)


def run_part(name: str, dry: bool, limit: float) -> Results:
    """Results of a part within `limit` seconds, and why it ended early if it did."""
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder) / "part.json", Path(folder) / "log"
        # Forked from a server that has imported everything but never used the GPU.
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(_IMPORTED)
        process = context.Process(target=_measure_part, args=(name, dry, out, log))
        start = time.monotonic()
        process.start()
        process.join(limit)
        cut = process.exitcode is None
        _end_group(process)
        ended: Results = {"cut_after_seconds": round(limit)} if cut else {}
        if not cut and process.exitcode:
            errors = log.read_text(errors="replace")
            sys.stderr.write(errors)
            ended = {"failed": errors.strip().splitlines()[-1:]}
        measured = load_json(out)["measured"] if out.is_file() else None
        return {"measured": measured, "seconds": round(time.monotonic() - start, 1), **ended}


_IMPORTED = [
    "steelgen.generators.semantic_diffusion.training",
    "steelgen.sampling.generate",
    "steelgen.training.batch_size",
    "steelgen.training.loop",
]


def _measure_part(name: str, dry: bool, out: Path, log: Path) -> None:
    os.setsid()
    with log.open("w") as errors:
        os.dup2(errors.fileno(), 2)
    # The caller removes this folder even if this process is killed.
    PARTS[name][0](DRY if dry else FULL, out.parent, lambda measured: save_json(out, {"measured": measured}))


def _end_group(process: multiprocessing.process.BaseProcess) -> None:
    """Ends a part and its child processes; torchrun forwards SIGTERM to processes outside its group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid or 0, number)
        except ProcessLookupError:
            return
        process.join(5)


def describe_gpu() -> Results:
    """The GPU, its driver and CUDA libraries; None for missing ones."""
    if not torch.cuda.is_available():
        return {"name": None}
    device = torch.cuda.get_device_properties(0)
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        driver = subprocess.run(query, capture_output=True, text=True, check=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = None
    versions = {"driver": driver, "cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    place = {"name": device.name, "count": torch.cuda.device_count(), "memory_gib": device.total_memory / 2**30}
    return {**place, "capability": f"{device.major}.{device.minor}", **versions}


def main() -> int:
    """Measures, saves and prints; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="benchmarks/gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dry", action="store_true", help="use tiny networks; works on a CPU")
    parser.add_argument("--minutes", type=float, default=9.0, help="time limit of all parts together (default 9)")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--out", type=Path, help="JSON file; tables are written next to it as .md")
    arguments = parser.parse_args()
    on_cpu = pick_device().type == "cpu"
    if on_cpu and not arguments.dry:
        print("no GPU found; use --dry to run every part on the CPU", file=sys.stderr)
        return 2
    folder = ROOT / "runs" / "benchmarks" / "dry" if arguments.dry else ROOT / "benchmarks" / "results"
    arguments.out = arguments.out or folder / "gpu.json"
    # Compilation for a CPU differs from that for a GPU and needs a C++ compiler; the tests train all families on CPUs.
    names = arguments.only or [name for name in PARTS if not (on_cpu and name in ("compiled", "families"))]
    kept = load_json(arguments.out)["parts"] if arguments.only and arguments.out.is_file() else {}
    results = {"dry": arguments.dry, "gpu": describe_gpu(), "minutes": arguments.minutes, "parts": kept}
    run_parts(names, arguments, results)
    page = "\n".join(["# On a GPU", "", *tabulate_gpu(results)])
    arguments.out.with_suffix(".md").write_text(page + "\n", encoding="utf-8")
    print(page)
    return 1 if any("failed" in part for part in results["parts"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
