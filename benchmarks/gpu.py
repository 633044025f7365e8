"""steelgen on a GPU, within minutes and without a download: does it resume exactly, how fast is it, what does it take?

    benchmarks/gpu                    the committed results: nine minutes, with the GPU to itself
    benchmarks/gpu --only resume      some parts; the results of the others stay
    benchmarks/gpu --dry              the same of tiny networks on a CPU, in a minute or two: that every line runs

Training is that of configs/train.json on the micrographs in data/uhcs, at three image sizes, through `steelgen.train`
with its loader, averages and metrics. Each part runs in a process of its own with its share of the time that is left,
the most telling ones first. What a part has measured when its time is up, or it fails, stays in the results.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState
from common import LinePrinter, save_results, summarize
from safetensors.torch import load_file
from tables import tabulate_gpu

from steelgen.config.base import parse_config
from steelgen.config.solver import SolverSection
from steelgen.config.train import TrainConfig
from steelgen.devices import is_out_of_memory, pick_device
from steelgen.errors import first_line
from steelgen.files import load_json, save_json
from steelgen.generators.families import load_generator
from steelgen.sampling.generate import generate_images, prepare_generator
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
    """What is measured: of the committed results, or of a dry run."""

    batches: dict[int, int]
    """Crops a step by image size in px."""
    precisions: tuple[str, ...]
    unet: dict[str, Any]
    """Changes of the network in configs/train.json."""
    warm_up: int
    """Steps before anything is measured: memory is taken, kernels are chosen."""
    watched: int
    """Steps whose waits are counted."""
    block: int
    """Steps between two looks at the clock, for which the host waits."""
    blocks: int
    images: int
    """Drawn at once."""
    micrograph: tuple[int, int]
    """Height and width in px, drawn in windows."""
    solver_steps: int
    memory_gib: float | None
    """Limit that the largest batch is looked for under; None: what is free."""
    most_crops: int
    """Crops a step that are spread over batches and accumulation there."""


FULL = Scale({64: 64, 128: 32, 256: 16}, ("bf16", "no"), {}, 6, 5, 4, 6, 16, (512, 512), 12, 16.0, 256)
DRY = Scale({16: 2}, ("no",), TINY, 1, 1, 1, 2, 2, (24, 40), 2, None, 1)


def build_config(scale: Scale, run_dir: Path, size: int, **train: Any) -> TrainConfig:
    """Training without previews and checkpoints on the way, of crops of `size` px."""
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


def train_anew(config: TrainConfig, observer: LinePrinter, resume: bool = False) -> None:
    """Trains as in a process of its own: accelerate keeps the first precision, torch the wish for determinism."""
    AcceleratorState._reset_state(reset_partial_state=True)
    torch.use_deterministic_algorithms(False)
    train(config, observer, resume)


class Watch(LinePrinter):
    """Counts waits of some steps of a training, within `stack`, then times blocks of steps."""

    def __init__(self, scale: Scale, stack: ExitStack) -> None:
        self._scale, self._stack = scale, stack
        self.waits: Counter[str] = Counter()
        self.seconds: list[float] = []
        """Of a step, one value a block."""
        self._since = 0.0

    def on_step(self, step: int, values: dict[str, float]) -> None:
        """See `TrainingObserver`."""
        counted = self._scale.warm_up + self._scale.watched
        if step == self._scale.warm_up:
            self.waits = self._stack.enter_context(count_waits())
        elif step >= counted and (step - counted) % self._scale.block == 0:
            self._stack.close()
            finish()
            now = time.perf_counter()
            if step > counted:
                self.seconds.append((now - self._since) / self._scale.block)
            self._since = now


@contextmanager
def count_waits() -> Iterator[Counter[str]]:
    """Counts within the block, by file and line, the operators for which the host waits until the GPU is done."""
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
    noted = [each for each in caught if "synchronizing CUDA operation" in str(each.message)]
    found.update(f"{Path(each.filename).name}:{each.lineno}" for each in noted)


def finish() -> None:
    """Waits until the GPU has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


@contextmanager
def watch_memory(row: Results) -> Iterator[None]:
    """Adds to a row the most that tensors took of the GPU within the block, and the most that torch reserved, GiB."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    yield
    if torch.cuda.is_available():
        row["allocated_gib"] = torch.cuda.max_memory_allocated() / 2**30
        row["reserved_gib"] = torch.cuda.max_memory_reserved() / 2**30


def measure_training(scale: Scale, folder: Path, save: Save) -> None:
    """Steps of every size in fp32 (with TF32) and bf16, in both memory layouts."""
    kinds = itertools.product((True, False), scale.precisions, scale.batches)
    _measure_steps(scale, folder, save, [(size, precision, last, False) for last, precision, size in kinds])


def measure_compiled(scale: Scale, folder: Path, save: Save) -> None:
    """Compiled steps, which take a minute or more to begin."""
    kinds = [(size, precision, True, True) for precision in scale.precisions for size in scale.batches]
    _measure_steps(scale, folder, save, kinds)


def _measure_steps(scale: Scale, folder: Path, save: Save, kinds: list[tuple[int, str, bool, bool]]) -> None:
    rows: list[Results] = []
    for size, precision, channels_last, compiled in kinds:
        options = {"mixed_precision": precision, "channels_last": channels_last, "compile": compiled}
        row = {"image_size": size, "batch_size": scale.batches[size], **options}
        begun = time.perf_counter()
        try:
            with ExitStack() as stack, watch_memory(row), tempfile.TemporaryDirectory(dir=folder) as place:
                watch = Watch(scale, stack)
                train_anew(build_config(scale, Path(place) / "run", size, **options), watch)
        except Exception as error:
            if not is_out_of_memory(error.__cause__ or error):
                raise
            row["failed"] = "out of memory"
        else:
            rates = [1 / seconds for seconds in watch.seconds]
            row["steps_per_second"] = summarize(rates)
            row["images_per_second"] = summarize([scale.batches[size] * rate for rate in rates])
            row["waits_a_step"] = watch.waits.total() / scale.watched
            row["waits"] = dict(watch.waits.most_common(10))
            row["seconds_in_all"] = time.perf_counter() - begun
        rows.append(row)
        save(rows)


def measure_resume(scale: Scale, folder: Path, save: Save) -> None:
    """Trains N + N steps, stopped by a signal between, and 2 N steps, the latter twice: do all weights agree?

    The second run of 2 N steps tells whether a difference is the resumption's, or whether kernels order their sums as
    they please.
    """
    size, half = min(scale.batches), scale.watched
    rows: list[Results] = []
    for deterministic, precision in itertools.product((True, False), scale.precisions):
        options = {"mixed_precision": precision, "deterministic": deterministic, "max_steps": 2 * half}
        row = {"image_size": size, "steps": 2 * half, "mixed_precision": precision, "deterministic": deterministic}
        rows.append(row)
        with tempfile.TemporaryDirectory(dir=folder) as place:
            names = ("whole", "again", "parts")
            whole, again, parts = (build_config(scale, Path(place) / name, size, **options) for name in names)
            try:
                train_anew(whole, LinePrinter())
                train_anew(again, LinePrinter())
                train_anew(parts, _Stop(half))
                train_anew(parts, LinePrinter(), resume=True)
            except RuntimeError as error:  # an operator that torch has no deterministic kernel of
                row["failed"] = first_line(error)
            else:
                weights = _load_weights(whole.run_dir, 2 * half)
                row["resumed"] = _compare(weights, _load_weights(parts.run_dir, 2 * half))
                row["repeated"] = _compare(weights, _load_weights(again.run_dir, 2 * half))
        save(rows)


class _Stop(LinePrinter):
    """Ends training after a step as a cluster would."""

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
    """Images of the default solver by networks of every size with random weights; at last a micrograph in windows."""
    rows: list[Results] = []
    sizes = {size: (size, size) for size in scale.batches}
    middle = sorted(sizes)[len(sizes) // 2]
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

                def draw() -> float:
                    begun = time.perf_counter()
                    generate_images(ready, list(masks), list(range(count)), solver, precision)  # noqa: B023
                    return time.perf_counter() - begun

                draw()  # the first time kernels are chosen
                with count_waits() as waits:
                    draw()
                seconds = [draw() for _ in range(scale.blocks)]
            row["images_per_second"] = summarize([count / each for each in seconds])
            row["waits_a_batch"] = waits.total()
            row["waits"] = dict(waits.most_common(10))
            rows.append(row)
            save(rows)


def measure_memory(scale: Scale, folder: Path, save: Save) -> None:
    """The largest batch that `steelgen tune-batch` finds under a limit, and what training with it takes then."""
    size = sorted(scale.batches)[len(scale.batches) // 2]
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
        train_anew(build_config(scale, folder / "run", size, **options | fitting), LinePrinter())
    network = prepare_training(config)[0].network
    bytes_of_each = 4 * (4 + 1)  # weights, gradients, two moments; one average (docs/memory.md)
    row["weights_gib"] = bytes_of_each * sum(each.numel() for each in network.parameters()) / 2**30
    save(row)


def measure_processes(scale: Scale, folder: Path, save: Save) -> None:
    """Images a second of one and of two processes, each with a GPU of its own and the same batch."""
    if torch.cuda.is_available() and torch.cuda.device_count() < 2:
        save({"skipped": "one GPU"})
        return
    size = sorted(scale.batches)[len(scale.batches) // 2]
    row: Results = {"image_size": size, "batch_size": scale.batches[size]}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
    environment = os.environ if torch.cuda.is_available() else {**os.environ, "ACCELERATE_USE_CPU": "1"}
    for processes in (1, 2):
        run_dir = folder / str(processes)
        steps = scale.block * scale.blocks
        options = {"mixed_precision": scale.precisions[0], "max_steps": 2 * steps, "log_every": steps}
        config = build_config(scale, run_dir, size, **options)
        save_json(folder / f"{processes}.json", config.model_dump(mode="json"))
        command = [*launcher, str(processes), "-m", "steelgen", "train", "-c", str(folder / f"{processes}.json")]
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
        lines = (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        row[f"images_per_second_of_{processes}"] = json.loads(lines[-1])["images_per_second"]
        save(row)


PARTS: dict[str, tuple[Callable[[Scale, Path, Save], None], int]] = {
    "resume": (measure_resume, 4),
    "training": (measure_training, 9),
    "sampling": (measure_sampling, 4),
    "memory": (measure_memory, 3),
    "compiled": (measure_compiled, 7),
    "processes": (measure_processes, 3),
}
"""In the order of their worth, each with its share of the time; one that ends early leaves the rest to the others."""


def run_parts(names: list[str], arguments: argparse.Namespace, results: Results) -> None:
    """Runs parts in processes of their own, and saves what all have measured after each."""
    end = time.monotonic() + 60 * arguments.minutes - 5  # to write the results in
    for number, name in enumerate(names):
        shares = [PARTS[each][1] for each in names[number:]]
        limit = (end - time.monotonic()) * shares[0] / sum(shares)
        print(f"{name}: at most {limit:.0f} s", flush=True)
        results["parts"][name] = run_part(name, arguments.dry, limit)
        save_results(arguments.out, results, show=False)


def run_part(name: str, dry: bool, limit: float) -> Results:
    """What a part has measured within `limit` seconds, and why it ended early if it did."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "part.json"
        command = [sys.executable, __file__, "--part", name, "--out", str(out), *(["--dry"] if dry else [])]
        begun = time.monotonic()
        process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
        try:
            _, errors = process.communicate(timeout=limit)
            ended = {"failed": errors.strip().splitlines()[-1:]} if process.returncode else {}
            sys.stderr.write(errors if process.returncode else "")
        except subprocess.TimeoutExpired:
            ended = {"cut_after_seconds": round(limit)}
        finally:
            _end_group(process)
        measured = load_json(out)["measured"] if out.is_file() else None
        return {"measured": measured, "seconds": round(time.monotonic() - begun, 1), **ended}


def _end_group(process: subprocess.Popen) -> None:
    """Ends a part and what it has started: torchrun passes SIGTERM on to processes that are not of its group."""
    for sent in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, sent)
            process.communicate(timeout=5)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def describe_gpu() -> Results:
    """The GPU, its driver and the libraries that torch was built with; None for what is not there."""
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
    parser.add_argument("--dry", action="store_true", help="tiny networks; works on a CPU")
    parser.add_argument("--minutes", type=float, default=9.0, help="for all parts together (default 9)")
    parser.add_argument("--only", nargs="+", choices=PARTS, metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--out", type=Path, help="the JSON file; the tables lie beside it as .md")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        measure, scale = PARTS[arguments.part][0], DRY if arguments.dry else FULL
        # In the folder that the caller removes, also where this process is killed.
        measure(scale, arguments.out.parent, lambda measured: save_json(arguments.out, {"measured": measured}))
        return 0
    on_cpu = pick_device().type == "cpu"
    if on_cpu and not arguments.dry:
        print("there is no GPU here; --dry tries every part on the CPU", file=sys.stderr)
        return 2
    folder = ROOT / "runs" / "benchmarks" / "dry" if arguments.dry else ROOT / "benchmarks" / "results"
    arguments.out = arguments.out or folder / "gpu.json"
    # Compilation for a CPU says nothing of that for a GPU, and needs a compiler of C++.
    names = arguments.only or [name for name in PARTS if not (on_cpu and name == "compiled")]
    kept = load_json(arguments.out)["parts"] if arguments.only and arguments.out.is_file() else {}
    results = {"dry": arguments.dry, "gpu": describe_gpu(), "minutes": arguments.minutes, "parts": kept}
    run_parts(names, arguments, results)
    page = "\n".join(["# On a GPU", "", *tabulate_gpu(results)])
    arguments.out.with_suffix(".md").write_text(page + "\n", encoding="utf-8")
    print(page)
    return 1 if any("failed" in part for part in results["parts"].values()) else 0


if __name__ == "__main__":
    sys.exit(main())
