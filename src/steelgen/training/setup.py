"""Setup of a training run: generator, micrographs, crops, devices, learning rate."""

from __future__ import annotations

import hashlib
import math
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from diffusers.optimization import get_scheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from steelgen.allocation import check_allocation, check_launch
from steelgen.config.train import FinetuneConfig, OptimizationSection, RunConfig, TrainConfig
from steelgen.data.conditions import outline
from steelgen.data.crops import CropDataset, CropSampler, Micrographs
from steelgen.data.placement import Variation
from steelgen.devices import pick_device, resolve_precision, usable_cores
from steelgen.errors import InputError
from steelgen.generators import Generator, Trainable
from steelgen.generators.drawing import conditions_of
from steelgen.generators.families import adapt_generator, build_generator, can_adapt, freeze_parts, load_generator
from steelgen.generators.saved import hash_generator
from steelgen.runs import BATCH_FIELD
from steelgen.training.micrographs import crop_geometry, hide_masks, load_training_data

_MAX_WORKERS = 8
_SOURCE_SEED_OFFSET = 2**32
"""Seed offset of the source's crops, whose placements shall not follow those of the dataset."""
_TIMEOUT = timedelta(minutes=10)
"""Wait for another process that does not answer; a broken connection is noticed at once."""


def prepare_training(config: TrainConfig) -> tuple[Generator, Micrographs]:
    """Builds the untrained generator and loads the micrographs of a training config."""
    micrographs = load_training_data(config)
    torch.manual_seed(config.seed)
    generator = build_generator(config.generator, micrographs, crop_geometry(config))
    return generator, hide_masks(micrographs, generator)


def prepare_finetuning(
    config: FinetuneConfig, report: Callable[[str], None] = lambda line: None
) -> tuple[Generator, Micrographs]:
    """Loads the trained generator and the micrographs of a fine-tuning config, and adapts the former to the latter.

    Args:
        report: called with one line about what was kept and what is new, if anything had to be adapted, and one about
            what is frozen.

    Raises:
        InputError: if the generator cannot be adapted to the data, or has no part that config.freeze names.
    """
    generator = load_generator(config.checkpoint)
    trained, wanted = generator.geometry, crop_geometry(config)
    if trained.in_channels != wanted.in_channels:
        raise InputError(
            f"{config.checkpoint}: was trained with in_channels {trained.in_channels}, data.in_channels is "
            f"{wanted.in_channels}"
        )
    if config.data.conditions and not hasattr(generator, "conditions"):
        raise InputError(f"data.conditions: not applicable to a generator of kind {generator.kind}")
    told = conditions_of(generator)
    micrographs = load_training_data(config, told)
    if not can_adapt(generator):
        micrographs = hide_masks(micrographs, generator)
    info = micrographs.inputs.info
    before, now = (
        (each.class_names, geometry.image_size, outline(columns))
        for each, geometry, columns in ((generator.info, trained, told), (info, wanted, micrographs.columns))
    )
    if not config.continue_training:
        torch.manual_seed(config.seed)
        generator, line = adapt_generator(generator, micrographs, wanted, config.keep_classes == "auto")
        if line:
            report(f"adapted {config.checkpoint}: {line}")
    elif before != now:
        raise InputError(
            f"continue_training: needs the classes, conditions and image_size of {config.checkpoint}; set it to false"
        )
    generator.info, generator.geometry = info, wanted
    if config.freeze:
        report(freeze_parts(generator, config.freeze))
    return generator, micrographs


def prepare(config: RunConfig) -> tuple[Generator, Micrographs]:
    """Calls `prepare_training` or `prepare_finetuning`, depending on the config."""
    if isinstance(config, FinetuneConfig):
        return prepare_finetuning(config)
    assert isinstance(config, TrainConfig)
    return prepare_training(config)


def count_steps(options: OptimizationSection, epoch_crops: int, num_processes: int = 1) -> int:
    """Returns the number of optimizer steps until max_steps or max_epochs, whichever comes first."""
    limits = [] if options.max_steps is None else [options.max_steps]
    if options.max_epochs is not None:
        limits.append(math.ceil(options.max_epochs * epoch_crops / effective_batch(options, num_processes)))
    return min(limits)


def effective_batch(options: OptimizationSection, num_processes: int) -> int:
    """Returns the number of crops per optimizer step."""
    return options.train_batch_size * options.gradient_accumulation_steps * num_processes


def describe_inputs(
    config: RunConfig, micrographs: Micrographs, held_out: Micrographs | None, num_processes: int
) -> dict[str, Any]:
    """Returns the digests of a run's inputs by dotted config field; a resumed run compares them instead of paths."""
    data = config.data
    digests = [
        {**each.model_dump(mode="json"), "dataset": share.digest}
        for each, share in zip(data.datasets, micrographs.shares, strict=True)
    ]
    if micrographs.conditions is not None:
        # metadata.jsonl is not among the hashed files of a split.
        told = hashlib.blake2b(micrographs.conditions.tobytes(), digest_size=16).hexdigest()
        conditions: dict[str, Any] = {"data.conditions": [*data.conditions, told]}
    else:
        conditions = {}
    inputs: dict[str, Any] = {
        **conditions,
        **({"data.datasets": digests} if digests else {"data.dataset": micrographs.digest}),
        **({"data.source.dataset": micrographs.source.digest} if micrographs.source else {}),
        BATCH_FIELD: effective_batch(config.train, num_processes),
    }
    if held_out:
        inputs["validation.split"] = held_out.digest
    latent = getattr(config.generator, "latent", None) if isinstance(config, TrainConfig) else None
    if latent is not None:
        inputs["generator.latent"] = hash_generator(latent)
    if isinstance(config, FinetuneConfig):
        inputs["checkpoint"] = hash_generator(config.checkpoint)
    return inputs


def build_accelerator(options: OptimizationSection, broadcast_buffers: bool = True) -> Accelerator:
    """Configures torch and builds the accelerator of this process.

    Args:
        broadcast_buffers: copy the first process's buffers to the others at each forward pass; must be False for
            networks that run twice before their backward pass, such as a discriminator.

    Raises:
        InputError: if there are fewer processes than requested, or the device does not support the precision.
    """
    device = pick_device()
    check_precision(options, device)
    check_launch(os.environ)
    # torch enables TF32 by default for convolutions but not for matrix products (attention).
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.tf32
    torch.backends.cudnn.benchmark = not options.deterministic  # shapes stay the same from step to step
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
        torch.use_deterministic_algorithms(True)
    precision = resolve_precision(options.mixed_precision)
    if AcceleratorState._shared_state.get("_mixed_precision", precision) != precision:
        # accelerate insists on the first precision of a process, but an earlier training, as in a notebook, is over.
        AcceleratorState._reset_state()
    accelerator = Accelerator(
        cpu=device.type == "cpu",  # required by accelerate for several processes on CPUs
        mixed_precision=precision,
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=_TIMEOUT),
            DistributedDataParallelKwargs(broadcast_buffers=broadcast_buffers),
        ],
    )
    check_allocation(os.environ, accelerator.num_processes, torch.cuda.device_count())
    return accelerator


def check_precision(options: OptimizationSection, device: torch.device) -> None:
    """Raises InputError if the device does not support the training precision."""
    if device.type == "cpu" and options.mixed_precision == "fp16":
        raise InputError("train.mixed_precision fp16: training needs a GPU; use bf16, auto or no on a CPU")


def build_crops(config: RunConfig, trainable: Trainable, micrographs: Micrographs) -> CropDataset:
    """Builds the dataset of training crops."""
    data, geometry, source = config.data, trainable.generator.geometry, micrographs.source
    variation = Variation(data.any_angle, data.brightness, data.contrast)
    return CropDataset(
        micrographs,
        geometry,
        config.seed,
        data.augment,
        variation,
        randomness=trainable.randomness(config.seed),
        source=None
        if source is None
        else CropDataset(source, geometry, config.seed + _SOURCE_SEED_OFFSET, data.augment, variation),
        **trainable.crop_options,
    )


def place_networks(networks: Mapping[str, nn.Module], options: OptimizationSection, device: torch.device) -> None:
    """Moves networks to a device and prepares them for training.

    Raises:
        InputError: if a network does not support gradient checkpointing.
    """
    for name, network in networks.items():
        if options.gradient_checkpointing and not hasattr(network, "enable_gradient_checkpointing"):
            raise InputError(f"train.gradient_checkpointing: not applicable to the network {name!r} of this generator")
        if options.gradient_checkpointing:
            network.enable_gradient_checkpointing()  # type: ignore[operator]
        if options.channels_last:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        network.to(device).train()
        if options.compile:
            network.compile(backend="cudagraphs" if options.compile == "cudagraphs" else "inductor")


def iterate_batches(
    crops: CropDataset, config: RunConfig, accelerator: Accelerator, step: int
) -> Iterator[dict[str, Tensor]]:
    """Returns the endless batches of this process from optimizer step `step` on, on its device.

    Workers cut the crops and compute their random tensors. Batches for a GPU are pinned, so that copies do not block.
    """
    options, device = config.train, accelerator.device
    workers = config.data.num_workers
    if workers is None:
        workers = 0 if device.type == "cpu" else min(_MAX_WORKERS, max(1, usable_cores() - 1))
    sampler = CropSampler(
        options.train_batch_size,
        accelerator.process_index,
        accelerator.num_processes,
        start=step * options.gradient_accumulation_steps,
    )
    # Starting the loader uses the global generator; start it here, not within the first step.
    loaded = iter(DataLoader(crops, batch_sampler=sampler, num_workers=workers, pin_memory=device.type != "cpu"))
    return ({key: value.to(device, non_blocking=True) for key, value in batch.items()} for batch in loaded)


def build_learning_rate(
    options: OptimizationSection, optimizer: torch.optim.Optimizer, last_step: int
) -> Callable[[int], float]:
    """Returns the learning rate as a function of the steps taken so far, without the factors of phases."""
    if options.lr_scheduler == "constant_then_linear":
        return lambda step: options.learning_rate * _scale_constant_then_linear(step, options.warmup_steps, last_step)
    factor = get_scheduler(
        options.lr_scheduler,
        optimizer,
        num_warmup_steps=options.warmup_steps,
        num_training_steps=last_step,
        num_cycles=options.lr_restarts + 1,
        power=options.lr_power,
    ).lr_lambdas[0]
    return lambda step: options.learning_rate * factor(step)


def _scale_constant_then_linear(step: int, warmup_steps: int, last_step: int) -> float:
    """Zhu et al. 2017 (arXiv 1703.10593), section 4: constant in the first half, linearly to zero in the second."""
    warm = min(1.0, step / warmup_steps) if warmup_steps else 1.0
    return warm * min(1.0, 2 * (last_step - step) / last_step)
