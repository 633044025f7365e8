"""The training loop: batch → loss → step → EMA → upkeep."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from diffusers.optimization import get_scheduler
from torch.utils.data import DataLoader

from steelgen.config.train import FinetuneConfig, OptimisationSection, RunConfig, TrainConfig
from steelgen.data.classes import declare_classes
from steelgen.data.crops import CropDataset, CropSampler, Micrographs, load_micrographs
from steelgen.data.placement import CropGeometry, Variation
from steelgen.devices import resolve_precision
from steelgen.errors import InputError
from steelgen.generators import Generator, build_generator, load_generator
from steelgen.hpc.allocation import check_allocation
from steelgen.runs import MetricsLog, open_run, save_result
from steelgen.training.checkpoint import (
    find_training_state,
    load_checkpoint,
    load_progress,
    newest_checkpoint,
    remove_unfinished,
    save_checkpoint,
)
from steelgen.training.ema import WeightAverage
from steelgen.training.epochs import NO_IMPROVEMENT, EpochTracker
from steelgen.training.meter import LossMeter
from steelgen.training.preview import PreviewDrawer
from steelgen.training.stopping import OUT_OF_TIME, StopRequest


class TrainingObserver(Protocol):
    """Is told how training goes; the command line shows a progress bar."""

    def on_start(self, first_step: int, last_step: int) -> None:
        """Called once, before the first step."""

    def on_step(self, step: int, values: dict[str, float]) -> None:
        """Called after each step; `values` is empty between log lines."""

    def on_event(self, message: str) -> None:
        """Called when a checkpoint or a preview was written."""


@dataclass(frozen=True)
class TrainingResult:
    """How training ended."""

    global_step: int
    stopped_by: str
    """"max_steps", "max_minutes" or a signal's name."""
    export: Path | None
    """The exported generator; None where a signal cut training short."""


def train(config: TrainConfig, observer: TrainingObserver, resume: bool = False) -> TrainingResult:
    """Trains a generator on a dataset folder; leaves a run folder with checkpoints, previews, metrics and an export.

    Args:
        resume: go on from the newest checkpoint in config.run_dir, or start if there is none.

    Raises:
        InputError: if the data or the run folder cannot be used.
    """
    generator, micrographs = prepare_training(config)
    return _run(config, generator, micrographs, observer, resume)


def finetune(config: FinetuneConfig, observer: TrainingObserver, resume: bool = False) -> TrainingResult:
    """Continues training a generator, on the same or new data; see `train`.

    Raises:
        InputError: also if the data's classes, size or channels do not fit the checkpoint.
    """
    generator, micrographs = prepare_finetuning(config)
    start_from = find_training_state(config.checkpoint) if config.continue_training else None
    return _run(config, generator, micrographs, observer, resume, start_from)


def prepare_training(config: TrainConfig) -> tuple[Generator, Micrographs]:
    """The untrained generator and the micrographs of a training config."""
    micrographs = _load_training_data(config)
    torch.manual_seed(config.seed)
    return build_generator(config.generator, micrographs, crop_geometry(config)), micrographs


def prepare_finetuning(config: FinetuneConfig) -> tuple[Generator, Micrographs]:
    """The trained generator and the micrographs of a fine-tuning config."""
    generator = load_generator(config.checkpoint)
    trained, wanted = generator.geometry, crop_geometry(config)
    for name in ("image_size", "in_channels"):
        if getattr(trained, name) != getattr(wanted, name):
            raise InputError(
                f"{config.checkpoint}: was trained with {name} {getattr(trained, name)}, "
                f"data.{name} is {getattr(wanted, name)}"
            )
    micrographs = _load_training_data(config)
    if micrographs.info.num_classes != generator.info.num_classes:
        raise InputError(
            f"{config.data.dataset}: has {micrographs.info.num_classes} classes, "
            f"{config.checkpoint} was trained with {generator.info.num_classes}"
        )
    generator.info, generator.geometry = micrographs.info, wanted
    return generator, micrographs


def _load_training_data(config: RunConfig) -> Micrographs:
    data = config.data
    micrographs = load_micrographs(data.dataset, data.split, data.in_channels)
    if data.num_classes is None:
        return micrographs
    return replace(micrographs, info=declare_classes(micrographs.info, data.num_classes, data.dataset))


def crop_geometry(config: RunConfig) -> CropGeometry:
    """The crop geometry of a config's data section."""
    data = config.data
    return CropGeometry(data.image_size, data.crop_size or data.image_size, data.scale_range, data.in_channels)


def count_steps(config: OptimisationSection, epoch_crops: int, num_processes: int = 1) -> int:
    """Optimizer steps until max_steps or max_epochs, whichever comes first."""
    effective_batch = config.train_batch_size * config.gradient_accumulation_steps * num_processes
    limits = [] if config.max_steps is None else [config.max_steps]
    if config.max_epochs is not None:
        limits.append(math.ceil(config.max_epochs * epoch_crops / effective_batch))
    return min(limits)


def _run(
    config: RunConfig,
    generator: Generator,
    micrographs: Micrographs,
    observer: TrainingObserver,
    resume: bool,
    start_from: Path | None = None,
) -> TrainingResult:
    options = config.train
    accelerator = Accelerator(
        mixed_precision=resolve_precision(options.mixed_precision),
        gradient_accumulation_steps=options.gradient_accumulation_steps,
    )
    check_allocation(os.environ, accelerator.num_processes, torch.cuda.device_count())
    dataset = CropDataset(
        micrographs,
        generator.geometry,
        config.seed,
        config.data.augment,
        Variation(config.data.any_angle, config.data.brightness, config.data.contrast),
        instance_edges=getattr(generator.network.config, "instance_edges", False),
    )
    network = generator.network
    if options.gradient_checkpointing:
        network.enable_gradient_checkpointing()  # type: ignore[operator]
    if options.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    network.to(accelerator.device).train()
    if options.compile:
        network.compile()
    optimizer = torch.optim.AdamW(
        network.parameters(),
        lr=options.learning_rate,
        betas=options.adam_betas,
        weight_decay=options.weight_decay,
        fused=True,
    )
    decays = (options.ema_decay, *options.further_ema_decays)
    averages = [WeightAverage(network, decay, options.ema_warmup) for decay in decays]
    average, *further = averages
    epochs = EpochTracker(len(dataset), options.patience_steps)
    history = generator.start_loss_history() if options.timestep_sampling == "loss_second_moment" else None
    if accelerator.is_main_process:
        open_run(config.run_dir, config, resume)
        remove_unfinished(config.run_dir)
    accelerator.wait_for_everyone()

    effective_batch = options.train_batch_size * options.gradient_accumulation_steps * accelerator.num_processes
    step, last_step = 0, count_steps(options, len(dataset), accelerator.num_processes)
    if resume and (checkpoint := newest_checkpoint(config.run_dir)):
        step = load_checkpoint(checkpoint, generator, average, optimizer, accelerator.scaler, further)
        progress = load_progress(checkpoint)
        if "epochs" in progress:
            epochs.restore(progress["epochs"])
        if history and progress.get("loss_history"):
            history.restore(progress["loss_history"])
        observer.on_event(f"resumed from {checkpoint}")
    elif start_from:
        step = load_checkpoint(start_from, generator, average, optimizer, accelerator.scaler, further)
        epochs.start_at(step, step * effective_batch)
        observer.on_event(f"goes on from {start_from} at step {step}")
    wrapped, optimizer = accelerator.prepare(network, optimizer)
    learning_rate_factor = get_scheduler(
        options.lr_scheduler, optimizer, num_warmup_steps=options.warmup_steps, num_training_steps=last_step
    ).lr_lambdas[0]
    sampler = CropSampler(
        options.train_batch_size,
        accelerator.process_index,
        accelerator.num_processes,
        start=step * options.gradient_accumulation_steps,
    )
    batches = iter(DataLoader(dataset, batch_sampler=sampler, num_workers=config.data.num_workers))
    main = accelerator.is_main_process
    log = MetricsLog(config.run_dir, step) if main else None
    previews = PreviewDrawer(config, generator, micrographs) if main and config.preview.num_images else None

    def save() -> None:
        accelerator.wait_for_everyone()
        if main:
            inner = getattr(optimizer, "optimizer", optimizer)
            progress = {"epochs": epochs.state(), "loss_history": history.state() if history else None}
            folder = save_checkpoint(
                config.run_dir,
                step,
                generator,
                average,
                inner,
                accelerator.scaler,
                options.keep_checkpoints,
                further,
                progress,
            )
            observer.on_event(f"saved {folder}")
        accelerator.wait_for_everyone()

    def preview() -> None:
        if previews:
            with average.applied(), accelerator.autocast():
                observer.on_event(f"drew {previews.draw(step)}")

    observer.on_start(step, last_step)
    if step == 0:
        preview()
    meter = LossMeter(dataset, accelerator.num_processes)
    reason: str | None = None
    with StopRequest(options.max_minutes) as stop:
        while step < last_step and not (reason := _agree_on_stop(stop, accelerator)):
            if epochs.given_up(step):
                reason = NO_IMPROVEMENT
                break
            for group in optimizer.param_groups:
                group["lr"] = options.learning_rate * learning_rate_factor(step)
            # Only dropout uses the global generator; seeding it here makes every step a function of its number.
            set_seed((config.seed * 1_000_003 + step * accelerator.num_processes + accelerator.process_index) % 2**32)
            for _ in range(options.gradient_accumulation_steps):
                batch = {key: value.to(accelerator.device, non_blocking=True) for key, value in next(batches).items()}
                with accelerator.accumulate(wrapped):
                    with accelerator.autocast():
                        losses = generator.compute_loss(wrapped, batch, config.seed, options.mask_dropout)
                    accelerator.backward(losses.mean())
                    meter.add(step + 1, batch["number"], losses)
                    epochs.add(accelerator.gather(losses.detach()))
                    if accelerator.sync_gradients:
                        norm = accelerator.clip_grad_norm_(wrapped.parameters(), options.max_grad_norm or math.inf)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
            step += 1
            for each in averages:
                each.update(step)
            if history:
                history.absorb(accelerator.gather)
            epoch_loss = epochs.close_epoch(step, step * effective_batch)
            if options.keep_best and epoch_loss is not None and epochs.best_step == step and main:
                _export(generator, average, config.run_dir, "best")
                observer.on_event(f"best epoch so far: loss {epoch_loss:.4f} at step {step}")

            values: dict[str, float] = {}
            logs, saves = step % options.log_every == 0 or step == last_step, step % options.checkpoint_every == 0
            if logs or saves:
                meter.check(newest_checkpoint(config.run_dir))
            if logs:
                values = meter.read(norm, optimizer.param_groups[0]["lr"])
                values["epoch"] = step * effective_batch / len(dataset)
            if log and (values or epoch_loss is not None):
                log.write(step, values if epoch_loss is None else {**values, "epoch_loss": epoch_loss})
            observer.on_step(step, values)
            if step % config.preview.every == 0 and step < last_step:
                preview()
            if saves:
                save()
        meter.check(newest_checkpoint(config.run_dir))
        save()

        finished = reason in (None, OUT_OF_TIME, NO_IMPROVEMENT)
        export = config.run_dir / "export" if finished else None
        if finished:
            preview()
            if main:
                _export(generator, average, config.run_dir, "export")
                for more in further:
                    _export(generator, more, config.run_dir, f"export-ema-{more.decay:g}")
        if log:
            log.close()
        accelerator.wait_for_everyone()
        accelerator.end_training()
        stopped_by = reason or "max_steps"
        if main:
            save_result(config.run_dir, {"global_step": step, "stopped_by": stopped_by, "finished": finished})
        return TrainingResult(step, stopped_by, export)


def _agree_on_stop(stop: StopRequest, accelerator: Accelerator) -> str | None:
    """Why to stop now, if any process was asked to: all must leave the loop at the same step, for the same reason."""
    asked = [stop.signal_number, int(stop.out_of_time)]
    if accelerator.num_processes > 1:
        asked = accelerator.gather(torch.tensor([asked], device=accelerator.device)).amax(dim=0).tolist()
    if asked[0]:
        return signal.Signals(asked[0]).name
    return OUT_OF_TIME if asked[1] else None


def _export(generator: Generator, average: WeightAverage, run_dir: Path, name: str) -> None:
    """Replaces the folder `name` of a run by the generator with averaged weights."""
    import shutil

    fresh = run_dir / f"{name}.new"
    shutil.rmtree(fresh, ignore_errors=True)
    with average.applied():
        generator.save(fresh)
    shutil.rmtree(run_dir / name, ignore_errors=True)
    fresh.rename(run_dir / name)
