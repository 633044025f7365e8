"""From a config to what the loop works with: generator, micrographs, crops, devices, learning rate."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import timedelta

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, InitProcessGroupKwargs
from diffusers.optimization import get_scheduler
from torch import Tensor, nn
from torch.utils.data import DataLoader

from steelgen.allocation import check_allocation, check_launch
from steelgen.config.train import FinetuneConfig, OptimizationSection, RunConfig, TrainConfig
from steelgen.data.classes import declare_classes
from steelgen.data.crops import CropDataset, CropSampler, Micrographs, load_micrographs
from steelgen.data.folder import list_splits
from steelgen.data.placement import CropGeometry, Variation
from steelgen.devices import pick_device, resolve_precision, usable_cores
from steelgen.errors import InputError
from steelgen.generators import Generator, Trainable
from steelgen.generators.families import build_generator, load_generator

_MAX_WORKERS = 8
_PATIENCE = timedelta(minutes=10)
"""How long a process waits for another that says nothing; one whose connection breaks is noticed at once."""


def prepare_training(config: TrainConfig) -> tuple[Generator, Micrographs]:
    """The untrained generator and the micrographs of a training config."""
    micrographs = _load_training_data(config)
    torch.manual_seed(config.seed)
    generator = build_generator(config.generator, micrographs, crop_geometry(config))
    return generator, _hide_masks(micrographs, generator)


def prepare_finetuning(config: FinetuneConfig) -> tuple[Generator, Micrographs]:
    """The trained generator and the micrographs of a fine-tuning config.

    Raises:
        InputError: if the data's classes, size or channels do not fit the checkpoint.
    """
    generator = load_generator(config.checkpoint)
    trained, wanted = generator.geometry, crop_geometry(config)
    for name in ("image_size", "in_channels"):
        if getattr(trained, name) != getattr(wanted, name):
            raise InputError(
                f"{config.checkpoint}: was trained with {name} {getattr(trained, name)}, "
                f"data.{name} is {getattr(wanted, name)}"
            )
    micrographs = _hide_masks(_load_training_data(config), generator)
    if micrographs.info.num_classes != generator.info.num_classes:
        raise InputError(
            f"{config.data.dataset}: has {micrographs.info.num_classes} classes, "
            f"{config.checkpoint} was trained with {generator.info.num_classes}"
        )
    generator.info, generator.geometry = micrographs.info, wanted
    return generator, micrographs


def prepare(config: RunConfig) -> tuple[Generator, Micrographs]:
    """`prepare_training` or `prepare_finetuning`, by the kind of the config."""
    if isinstance(config, FinetuneConfig):
        return prepare_finetuning(config)
    assert isinstance(config, TrainConfig)
    return prepare_training(config)


def load_held_out(config: RunConfig, generator: Generator) -> Micrographs | None:
    """The micrographs to validate a generator on; None where none are held out."""
    data, split = config.data, config.validation.split
    if split is None or split not in list_splits(data.dataset):
        return None
    return _hide_masks(_load_split(config, split), generator)


def crop_geometry(config: RunConfig) -> CropGeometry:
    """The crop geometry of a config's data section."""
    data = config.data
    return CropGeometry(data.image_size, data.crop_size or data.image_size, data.scale_range, data.in_channels)


def count_steps(options: OptimizationSection, epoch_crops: int, num_processes: int = 1) -> int:
    """Optimizer steps until max_steps or max_epochs, whichever comes first."""
    limits = [] if options.max_steps is None else [options.max_steps]
    if options.max_epochs is not None:
        limits.append(math.ceil(options.max_epochs * epoch_crops / effective_batch(options, num_processes)))
    return min(limits)


def effective_batch(options: OptimizationSection, num_processes: int) -> int:
    """Crops an optimizer step takes in."""
    return options.train_batch_size * options.gradient_accumulation_steps * num_processes


def build_accelerator(options: OptimizationSection, broadcast_buffers: bool = True) -> Accelerator:
    """This process's place among those that train.

    Args:
        broadcast_buffers: whether each forward pass of several processes begins by copying the first one's buffers;
            where networks play against each other, some run twice before their backward pass, which that spoils.

    Raises:
        InputError: if there are fewer processes than were asked for, or the device cannot train in that precision.
    """
    device = pick_device()
    check_precision(options, device)
    check_launch(os.environ)
    # Convolutions have TF32 by default in torch, matrix products (attention) have not.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = options.tf32
    torch.backends.cudnn.benchmark = not options.deterministic  # shapes stay the same from step to step
    if options.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before cuBLAS starts, which reads it
        torch.use_deterministic_algorithms(True)
    accelerator = Accelerator(
        cpu=device.type == "cpu",  # else accelerate waits to be told before several processes use it
        mixed_precision=resolve_precision(options.mixed_precision),
        gradient_accumulation_steps=options.gradient_accumulation_steps,
        kwargs_handlers=[
            InitProcessGroupKwargs(timeout=_PATIENCE),
            DistributedDataParallelKwargs(broadcast_buffers=broadcast_buffers),
        ],
    )
    check_allocation(os.environ, accelerator.num_processes, torch.cuda.device_count())
    return accelerator


def check_precision(options: OptimizationSection, device: torch.device) -> None:
    """Raises InputError if the device cannot train in the precision that is asked for."""
    if device.type == "cpu" and options.mixed_precision == "fp16":
        raise InputError("train.mixed_precision fp16: training in it needs a GPU; use bf16, auto or no on a CPU")


def build_crops(config: RunConfig, trainable: Trainable, micrographs: Micrographs) -> CropDataset:
    """The crops that are trained on."""
    data = config.data
    return CropDataset(
        micrographs,
        trainable.generator.geometry,
        config.seed,
        data.augment,
        Variation(data.any_angle, data.brightness, data.contrast),
        randomness=trainable.randomness(config.seed),
        **trainable.crop_options,
    )


def place_networks(networks: Mapping[str, nn.Module], options: OptimizationSection, device: torch.device) -> None:
    """Makes networks ready to be trained on a device.

    Raises:
        InputError: if they cannot save memory as they are asked to.
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
            network.compile()


def iterate_batches(
    crops: CropDataset, config: RunConfig, accelerator: Accelerator, step: int
) -> Iterator[dict[str, Tensor]]:
    """The batches of this process from optimizer step `step` on, on its device, endlessly.

    Workers cut the crops and draw all that is random of them. Batches for a GPU are pinned, so that nothing waits for
    their copies.
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
    # Starting the loader draws from the global generator: it is done here and now, not within the first step.
    loaded = iter(DataLoader(crops, batch_sampler=sampler, num_workers=workers, pin_memory=device.type != "cpu"))
    return ({key: value.to(device, non_blocking=True) for key, value in batch.items()} for batch in loaded)


def build_learning_rate(
    options: OptimizationSection, optimizer: torch.optim.Optimizer, last_step: int
) -> Callable[[int], float]:
    """The learning rate of the optimizer step that follows on so many, before the phases' own factors."""
    factor = get_scheduler(
        options.lr_scheduler,
        optimizer,
        num_warmup_steps=options.warmup_steps,
        num_training_steps=last_step,
        num_cycles=options.lr_restarts + 1,
        power=options.lr_power,
    ).lr_lambdas[0]
    return lambda step: options.learning_rate * factor(step)


def _load_training_data(config: RunConfig) -> Micrographs:
    data = config.data
    micrographs = _load_split(config, data.split)
    if data.num_classes is None or not micrographs.info.num_classes:
        return micrographs
    return replace(micrographs, info=declare_classes(micrographs.info, data.num_classes, data.dataset))


def _hide_masks(micrographs: Micrographs, generator: Generator) -> Micrographs:
    """The images alone, for a generator that does not see masks."""
    return micrographs if generator.info.num_classes else micrographs.without_masks()


def _load_split(config: RunConfig, split: str) -> Micrographs:
    micrographs = load_micrographs(config.data.dataset, split, config.data.in_channels)
    return micrographs.without_masks() if config.data.unconditional else micrographs
