"""The training loop of all generator kinds: batch → loss → step, phase by phase → EMA → upkeep."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import set_seed

from steelgen.config.train import FinetuneConfig, RunConfig, TrainConfig
from steelgen.data.crops import Micrographs
from steelgen.files import save_json
from steelgen.generators import Generator
from steelgen.generators.families import build_trainable
from steelgen.runs import TRANSFER_FILE, RunFolder
from steelgen.trackers import check_trackers
from steelgen.training.checkpoint import find_training_state, load_checkpoint, newest_checkpoint, remove_unfinished
from steelgen.training.codec_check import check_codec
from steelgen.training.failures import explain_failures
from steelgen.training.held_out import HeldOutChecks
from steelgen.training.micrographs import load_held_out
from steelgen.training.observer import TrainingObserver, TrainingResult
from steelgen.training.phases import PreparedPhases
from steelgen.training.preview import PreviewWriter
from steelgen.training.selection import resolve_criterion
from steelgen.training.setup import (
    build_accelerator,
    build_crops,
    build_learning_rate,
    count_steps,
    describe_inputs,
    effective_batch,
    iterate_batches,
    place_networks,
    prepare_finetuning,
    prepare_training,
)
from steelgen.training.state import build_state
from steelgen.training.stopping import StopRequest
from steelgen.training.upkeep import Upkeep


def train(
    config: TrainConfig, observer: TrainingObserver, resume: bool = False, allow_changed: Sequence[str] = ()
) -> TrainingResult:
    """Trains a generator on a dataset folder; writes a run folder with checkpoints, previews, metrics and an export.

    Args:
        resume: resume from the latest checkpoint in config.run_dir, or start if there is none.
        allow_changed: fields and sections of the config that may differ from the first start of the run.

    Raises:
        InputError: if the data or the run folder cannot be used, another process trains in it, it was started with
            other settings or data, or the machine fails (see `explain_failures`).
    """
    with explain_failures(config), RunFolder(config, resume, allow_changed) as run:
        generator, micrographs = prepare_training(config)
        return _run(config, generator, micrographs, observer, run)


def finetune(
    config: FinetuneConfig, observer: TrainingObserver, resume: bool = False, allow_changed: Sequence[str] = ()
) -> TrainingResult:
    """Continues training a generator, on the same or new data; see `train`.

    Raises:
        InputError: also if the checkpoint cannot be adapted to the data.
    """
    with explain_failures(config), RunFolder(config, resume, allow_changed) as run:
        notes: list[str] = []
        generator, micrographs = prepare_finetuning(config, notes.append)
        start_from = find_training_state(config.checkpoint) if config.continue_training else None
        return _run(config, generator, micrographs, observer, run, start_from, notes)


def _run(
    config: RunConfig,
    generator: Generator,
    micrographs: Micrographs,
    observer: TrainingObserver,
    run: RunFolder,
    start_from: Path | None = None,
    notes: Sequence[str] = (),
) -> TrainingResult:
    options = config.train
    check_trackers(options.trackers)
    trainable = build_trainable(generator, config)
    accelerator = build_accelerator(options, broadcast_buffers=len(trainable.networks) == 1)
    crops = build_crops(config, trainable, micrographs)
    place_networks(trainable.networks, options, accelerator.device)
    held_out = load_held_out(config, generator)
    criterion = resolve_criterion(config, held_out is not None, trainable.criteria)
    state = build_state(config, trainable, accelerator.scaler, len(crops), criterion, accelerator.is_main_process)
    checks = HeldOutChecks(config, state, held_out, micrographs, accelerator) if held_out else None
    if accelerator.is_main_process:
        run.open(describe_inputs(config, micrographs, held_out, accelerator.num_processes), observer.on_event)
        remove_unfinished(config.run_dir)
        for note in notes:
            observer.on_event(note)
        if notes:
            save_json(config.run_dir / TRANSFER_FILE, {"note": "; ".join(notes)})
        check_codec(config.run_dir, generator, held_out or micrographs, accelerator.device, observer.on_event)
    accelerator.wait_for_everyone()
    trainable.prepare(config.run_dir, accelerator.process_index, accelerator.num_processes, observer.on_event)
    accelerator.wait_for_everyone()
    if run.resume and (checkpoint := newest_checkpoint(config.run_dir)):
        load_checkpoint(checkpoint, state)
        observer.on_event(f"resumed from {checkpoint}")
    elif start_from:
        load_checkpoint(start_from, state, with_progress=False)
        state.start_at(effective_batch(options, accelerator.num_processes))
        observer.on_event(f"continuing {start_from} from step {state.step}")
    last_step = count_steps(options, len(crops), accelerator.num_processes)
    phases = PreparedPhases(state, accelerator)
    learning_rate = build_learning_rate(options, state.optimizers[trainable.phases[0].name], last_step)
    batches = iterate_batches(crops, config, accelerator, state.step)
    previews = PreviewWriter(config, generator, held_out or micrographs) if config.preview.num_images else None
    upkeep = Upkeep(config, state, crops, previews, checks, accelerator, observer, last_step)
    upkeep.begin()
    reason = None
    with StopRequest(options.max_minutes) as stop:
        while state.step < last_step and not (reason := upkeep.find_reason_to_stop(stop)):
            run.lock.check()
            rate = learning_rate(state.step)
            _seed_step(config.seed, state.step, accelerator)
            micro_batches = phases.take(batches, options.gradient_accumulation_steps)
            for phase in phases.due(state.step):
                optimizer, networks = phases.prepare(phase, rate)
                for batch in micro_batches:
                    with accelerator.accumulate(*networks.trained):
                        with accelerator.autocast():
                            found = trainable.compute_loss(phase, networks.all, batch)
                        accelerator.backward(found.losses.mean())
                        upkeep.add_losses(phase, batch["number"], found)
                        if accelerator.sync_gradients:
                            norm = accelerator.clip_grad_norm_(networks.parameters, options.max_grad_norm or math.inf)
                            upkeep.add_norm(phase, norm)
                        optimizer.step()
                        optimizer.zero_grad(set_to_none=True)
            state.step += 1
            for average in state.averages:
                average.update(state.step)
            trainable.end_step(accelerator.gather)
            upkeep.after_step(rate)
        return upkeep.finish(reason)


def _seed_step(seed: int, step: int, accelerator: Accelerator) -> None:
    """Seeds the global generator, used only by dropout, so that every step is a function of its number."""
    set_seed((seed * 1_000_003 + step * accelerator.num_processes + accelerator.process_index) % 2**32)
