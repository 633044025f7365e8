"""Search for the largest batch that fits into memory, by real training steps."""

from __future__ import annotations

import gc
import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
import psutil
import torch
from torch.utils.data import default_collate

from steelgen.config.train import RunConfig
from steelgen.data.crops import Micrographs, cut_crops, image_to_tensor
from steelgen.devices import autocast, available_memory, is_out_of_memory, pick_device
from steelgen.errors import InputError
from steelgen.generators import DrawRequest
from steelgen.generators.drawing import draw_example
from steelgen.generators.families import build_trainable
from steelgen.training.failures import split_batch
from steelgen.training.measurement import BATCH_SIZE
from steelgen.training.micrographs import load_held_out
from steelgen.training.phases import freeze_others
from steelgen.training.setup import build_crops, check_precision, place_networks, prepare
from steelgen.training.state import TrainingState, build_state

_USED_SHARE = 0.9
"""Share of the free memory; the rest is for fragmentation and other programs."""
_TIMED_STEPS = 2


@dataclass(frozen=True)
class BatchTrial:
    """Memory and speed of one batch size."""

    batch_size: int
    memory_gib: float | None
    """Peak of the process (CPU) or of torch's reserved memory (GPU); None if it does not fit."""
    images_per_second: float | None = None


@dataclass(frozen=True)
class BatchPlan:
    """Batch size and gradient accumulation for the same number of crops per step."""

    train_batch_size: int
    gradient_accumulation_steps: int
    largest: int
    """The largest batch that fits, up to the crops per step."""
    limit_gib: float
    trials: tuple[BatchTrial, ...]


def tune_batch(
    config: RunConfig, memory_gib: float | None = None, report: Callable[[BatchTrial], None] = lambda trial: None
) -> BatchPlan:
    """Finds the largest train_batch_size for this machine that keeps the number of crops per optimizer step.

    A GPU is tested until it runs out of memory. On a CPU each batch runs in a process of its own with a memory limit,
    so that the system kills nothing. Batches beyond the config's crops per step are not tested.

    Args:
        config: config of a training or a fine-tuning.
        memory_gib: memory limit; None uses nine tenths of the free memory.
        report: called after each tested batch.

    Raises:
        InputError: if the data cannot be used, the device does not support the precision, or not one crop fits.
    """
    device = pick_device()
    check_precision(config.train, device)
    free = torch.cuda.mem_get_info()[0] if device.type == "cuda" else available_memory()
    limit = int(memory_gib * 2**30) if memory_gib else int(_USED_SHARE * free)
    trials: list[BatchTrial] = []

    def fits(batch_size: int) -> bool:
        trials.append(try_batch(config, batch_size, limit, device))
        report(trials[-1])
        return trials[-1].memory_gib is not None

    effective = config.train.train_batch_size * config.train.gradient_accumulation_steps
    largest = find_largest(fits, effective)
    if largest == 0:
        raise InputError(
            f"not one crop of image_size {config.data.image_size} fits into {limit / 2**30:.2f} GiB; try "
            "train.gradient_checkpointing=true, train.mixed_precision=bf16 or a smaller network"
        )
    batch_size, accumulation = split_batch(effective, largest)
    return BatchPlan(batch_size, accumulation, largest, limit / 2**30, tuple(trials))


def find_largest(fits: Callable[[int], bool], most: int) -> int:
    """Returns the largest number up to `most` that fits, by doubling and bisection; 0 if not even 1 fits."""
    good, bad = 0, 1
    while bad <= most and fits(bad):
        good, bad = bad, min(2 * bad, most) if bad < most else most + 1
    while bad - good > 1 and good:
        middle = (good + bad) // 2
        if fits(middle):
            good = middle
        else:
            bad = middle
    return good


def try_batch(config: RunConfig, batch_size: int, limit: int, device: torch.device) -> BatchTrial:
    """Runs training steps with a batch in at most `limit` bytes."""
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / torch.cuda.mem_get_info()[1]))
        return take_steps(config, batch_size, device)
    # A process of its own, because the peak of a process never falls; forked from one that has imported torch.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_try_in_child, args=(config, batch_size, limit, sender), daemon=True)
    child.start()
    sender.close()
    try:
        outcome = receiver.recv()
    except EOFError:  # killed
        outcome = BatchTrial(batch_size, None)
    child.join()
    if isinstance(outcome, InputError):
        raise outcome
    return outcome


def take_steps(config: RunConfig, batch_size: int, device: torch.device) -> BatchTrial:
    """Runs training steps with a batch on a device as training does."""
    try:
        seconds = _time_steps(config, batch_size, device)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return BatchTrial(batch_size, None)
    finally:
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    if device.type == "cuda":
        peak = torch.cuda.max_memory_reserved()
    else:
        unit = 1 if sys.platform == "darwin" else 1024  # bytes
        peak = unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return BatchTrial(batch_size, peak / 2**30, batch_size / statistics.median(seconds))


def _time_steps(config: RunConfig, batch_size: int, device: torch.device) -> list[float]:
    """Seconds of each step after the first, which also allocates moments and buffers."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    generator, micrographs = prepare(config)
    options = config.train
    trainable = build_trainable(generator, config)
    crops = build_crops(config, trainable, micrographs)
    place_networks(trainable.networks, options, device)
    scaler = torch.amp.GradScaler(device.type, enabled=options.mixed_precision == "fp16")
    state = build_state(config, trainable, scaler, len(crops), criterion=None)
    batch = {key: value.to(device) for key, value in default_collate([crops[n] for n in range(batch_size)]).items()}
    seconds = []
    for _ in range(1 + _TIMED_STEPS):
        start = time.perf_counter()
        for phase in trainable.phases:
            freeze_others(trainable.networks, phase)
            with autocast(options.mixed_precision, device):
                losses = trainable.compute_loss(phase, trainable.networks, batch).losses
            scaler.scale(losses.mean()).backward()
            scaler.step(state.optimizers[phase.name])
            state.network.zero_grad(set_to_none=True)
        scaler.update()
        state.step += 1
        for average in state.averages:
            average.update(state.step)
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    _generate(config, state, held_out=load_held_out(config, generator) or micrographs, device=device)
    return seconds[1:]


def _generate(config: RunConfig, state: TrainingState, held_out: Micrographs, device: torch.device) -> None:
    """Generates as many images at once as previews and measurements do; guidance doubles the batch."""
    batches = [(config.preview.num_images, config.preview.solver)]
    if config.measurement.every is not None:
        batches.append((min(config.measurement.num_images, BATCH_SIZE), config.measurement.solver))
    for count, solver in batches:
        if not count:
            continue
        images, masks = cut_crops(held_out.inputs, state.generator.geometry, count)
        given = torch.stack([image_to_tensor(image) for image in images])
        guided = solver.model_copy(update={"num_inference_steps": 1, "guidance_interval": None})
        with state.averaged(), autocast(config.train.mixed_precision, device):
            tensors = torch.from_numpy(masks.astype(np.int64)), given
            draw_example(state.generator, DrawRequest(range(count), *tensors, guided))


def _try_in_child(config: RunConfig, batch_size: int, limit: int, sender: Connection) -> None:
    # The limit excludes imports, which are only partly resident.
    memory = psutil.Process().memory_info()
    imported = memory.data + memory.shared - memory.rss if hasattr(memory, "data") else 0  # Linux only
    resource.setrlimit(resource.RLIMIT_DATA, (limit + imported, limit + imported))
    outcome: BatchTrial | InputError
    try:
        outcome = take_steps(config, batch_size, torch.device("cpu"))
    except InputError as error:
        outcome = error
    if isinstance(outcome, BatchTrial) and outcome.memory_gib and outcome.memory_gib * 2**30 > limit:
        outcome = BatchTrial(batch_size, None)
    sender.send(outcome)
