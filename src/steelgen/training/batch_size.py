"""The largest batch that fits into memory, found by taking real training steps."""

from __future__ import annotations

import gc
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

import numpy as np
import torch
from torch.utils.data import default_collate

from steelgen.config.train import RunConfig
from steelgen.data.crops import Micrographs, cut_crops
from steelgen.devices import autocast, available_memory, is_out_of_memory, pick_device
from steelgen.errors import InputError
from steelgen.generators import draw_for_masks
from steelgen.generators.families import build_trainable
from steelgen.training.failures import split_batch
from steelgen.training.measurement import BATCH_SIZE
from steelgen.training.players import hold_fixed
from steelgen.training.setup import build_crops, check_precision, load_held_out, place_networks, prepare
from steelgen.training.state import TrainingState, build_state

_USED_SHARE = 0.9
"""Of the free memory; previews, fragments and other programs get the rest."""
_TIMED_STEPS = 2


@dataclass(frozen=True)
class BatchTrial:
    """What training steps of one batch size took."""

    batch_size: int
    memory_gib: float | None
    """Peak of the process (CPU) or of what torch reserved on the GPU; None where it did not fit."""
    images_per_second: float | None = None


@dataclass(frozen=True)
class BatchPlan:
    """Batch and accumulation that keep the number of crops a step."""

    train_batch_size: int
    gradient_accumulation_steps: int
    largest: int
    """The largest batch that fits, up to the crops a step."""
    limit_gib: float
    trials: tuple[BatchTrial, ...]


def tune_batch(
    config: RunConfig, memory_gib: float | None = None, report: Callable[[BatchTrial], None] = lambda trial: None
) -> BatchPlan:
    """Finds the largest train_batch_size of this machine that leaves the crops an optimizer step as they are.

    On a GPU by running out of its memory; on a CPU each batch is tried in a process of its own that is not allowed more
    than the limit, so that the system ends nothing. Batches beyond the config's crops a step are not tried.

    Args:
        config: of a training or a fine-tuning.
        memory_gib: take no more than this; by default nine tenths of what is free.
        report: called after each batch that was tried.

    Raises:
        InputError: if the data cannot be used, the device cannot train in that precision, or not even one crop fits.
    """
    device = pick_device()
    check_precision(config.train, device)
    limit = int(memory_gib * 2**30) if memory_gib else int(_USED_SHARE * _free_memory(device))
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
    """The largest number up to `most` that fits, by doubling, then bisection; 0 where not even 1 does."""
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
    """Takes training steps with a batch, in at most `limit` bytes."""
    if device.type == "cuda":
        torch.cuda.set_per_process_memory_fraction(min(1.0, limit / torch.cuda.mem_get_info()[1]))
        return take_steps(config, batch_size, device)
    # A process of its own, since the peak of a process never falls; forked from one that has torch imported.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_try_in_child, args=(config, batch_size, limit, sender), daemon=True)
    child.start()
    sender.close()
    try:
        outcome = receiver.recv()
    except EOFError:  # ended from outside
        outcome = BatchTrial(batch_size, None)
    child.join()
    if isinstance(outcome, InputError):
        raise outcome
    return outcome


def take_steps(config: RunConfig, batch_size: int, device: torch.device) -> BatchTrial:
    """Takes training steps with a batch on a device, as training does; tells where they do not fit."""
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
    return BatchTrial(batch_size, _peak_memory(device) / 2**30, batch_size / statistics.median(seconds))


def _time_steps(config: RunConfig, batch_size: int, device: torch.device) -> list[float]:
    """Seconds of each step after the first, which also sets up moments and buffers."""
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
        begun = time.perf_counter()
        for phase in trainable.phases:
            hold_fixed(trainable.networks, phase)
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
        seconds.append(time.perf_counter() - begun)
    _look(config, state, held_out=load_held_out(config, generator) or micrographs, device=device)
    return seconds[1:]


def _look(config: RunConfig, state: TrainingState, held_out: Micrographs, device: torch.device) -> None:
    """Draws as many images at once as previews and measurements do, whose guidance doubles the batch."""
    drawings = [(config.preview.num_images, config.preview.solver)]
    if config.measurement.every is not None:
        drawings.append((min(config.measurement.num_images, BATCH_SIZE), config.measurement.solver))
    for count, solver in drawings:
        if not count:
            continue
        _, masks = cut_crops(held_out, state.generator.geometry, count)
        everywhere = solver.model_copy(update={"num_inference_steps": 1, "guidance_interval": None})
        with state.averaged(), autocast(config.train.mixed_precision, device):
            draw_for_masks(state.generator, torch.from_numpy(masks.astype(np.int64)), range(count), everywhere)


def _try_in_child(config: RunConfig, batch_size: int, limit: int, sender: Connection) -> None:
    # What the limit leaves beside the imports, which are resident in part only.
    taken = _read_status("VmData") - _read_status("RssAnon")
    resource.setrlimit(resource.RLIMIT_DATA, (limit + taken, limit + taken))
    outcome: BatchTrial | InputError
    try:
        outcome = take_steps(config, batch_size, torch.device("cpu"))
    except InputError as error:
        outcome = error
    if isinstance(outcome, BatchTrial) and outcome.memory_gib and outcome.memory_gib * 2**30 > limit:
        outcome = BatchTrial(batch_size, None)
    sender.send(outcome)


def _read_status(name: str) -> int:
    """Bytes of an entry of /proc/self/status; 0 on systems without it."""
    try:
        with open("/proc/self/status", encoding="utf-8") as file:
            return next((1024 * int(line.split()[1]) for line in file if line.startswith(f"{name}:")), 0)
    except OSError:
        return 0


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved()
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _free_memory(device: torch.device) -> int:
    return torch.cuda.mem_get_info()[0] if device.type == "cuda" else available_memory()
