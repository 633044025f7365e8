"""Everything around the optimizer steps: metrics, selection, previews, checkpoints, exports."""

from __future__ import annotations

import time
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from steelgen.config.train import RunConfig
from steelgen.data.crops import CropDataset
from steelgen.devices import resident_memory
from steelgen.errors import first_line
from steelgen.files import new_folder, save_json
from steelgen.generators import Losses, Phase
from steelgen.runs import OUT_OF_TIME, MetricsLog, save_result
from steelgen.training.checkpoint import newest_checkpoint, save_checkpoint, save_progress
from steelgen.training.curves import save_curves
from steelgen.training.held_out import HeldOutChecks
from steelgen.training.meter import LossMeter
from steelgen.training.observer import TrainingObserver, TrainingResult
from steelgen.training.post_hoc_ema import remove_later_snapshots, save_snapshot
from steelgen.training.preview import PreviewWriter
from steelgen.training.selection import COPIES, EPOCH_LOSS, NO_IMPROVEMENT
from steelgen.training.setup import effective_batch
from steelgen.training.state import TrainingState
from steelgen.training.stopping import StopRequest, agree_on_stop

SELECTION_FILE = "selection.json"
"""In best/: the criterion, its value and the step."""
_BARRIER_PAUSE = 0.1
"""Seconds after the last barrier; the interpreter switches threads within 0.005."""


class Upkeep:
    """Looks after a run, whose loop counts `state.step`. Every process has one; only the main process writes."""

    def __init__(
        self,
        config: RunConfig,
        state: TrainingState,
        crops: CropDataset,
        previews: PreviewWriter | None,
        checks: HeldOutChecks | None,
        accelerator: Accelerator,
        observer: TrainingObserver,
        last_step: int,
    ) -> None:
        self._config = config
        self._state = state
        self._epoch_crops = len(crops)
        self._previews = previews
        self._checks = checks
        self._accelerator = accelerator
        self._observer = observer
        self._last_step = last_step
        self._writes = accelerator.is_main_process
        self._step_crops = effective_batch(config.train, accelerator.num_processes)
        phases = [phase.name for phase in state.trainable.phases]
        self._first_phase = phases[0]
        self._meter = LossMeter(crops, phases, config.validation.bins)
        # A step that was saved but not evaluated is logged again.
        known_step = state.step if state.unlogged is None else state.step - 1
        self._log = MetricsLog(config.run_dir, known_step, config.train.trackers) if self._writes else None

    def begin(self) -> None:
        """Called before the first step."""
        if self._writes:
            remove_later_snapshots(self._config.run_dir, self._state.step)
        self._observer.on_start(self._state.step, self._last_step)
        if self._state.step == 0:
            self._save_preview()
        elif self._state.unlogged is not None:
            self._evaluate(self._state.unlogged)

    def find_reason_to_stop(self, request: StopRequest) -> str | None:
        """Returns the reason to stop now, the same in all processes; None to continue."""
        if reason := agree_on_stop(request, self._accelerator, self._state.step):
            return reason
        if self._config.selection.stop_at_copies and self._state.copy_watch.detected_at is not None:
            return COPIES
        return NO_IMPROVEMENT if self._state.best.out_of_patience else None

    def add_losses(self, phase: Phase, numbers: Tensor, found: Losses) -> None:
        """Adds the losses of crops `numbers` (N,) in a phase of the current step, without synchronizing."""
        self._meter.add(self._state.step + 1, phase.name, numbers, found)
        if phase.name == self._first_phase:
            self._state.epochs.add(found.losses)

    def add_norm(self, phase: Phase, grad_norm: Tensor) -> None:
        """Adds the gradient norm of a phase, without synchronizing."""
        self._meter.norms[phase.name] = grad_norm

    def after_step(self, learning_rate: float) -> None:
        """Does everything that is due after the state's step.

        Args:
            learning_rate: of that step, without the factors of phases.

        Raises:
            InputError: if training diverged.
        """
        step, options = self._state.step, self._config.train
        logs, saves = step % options.log_every == 0 or step == self._last_step, step % options.checkpoint_every == 0
        if logs or saves:
            self._meter.check(newest_checkpoint(self._config.run_dir))
        values: dict[str, float] = {}
        if logs:
            values = self._meter.read(learning_rate, self._accelerator.gather)
            values["epoch"] = step * self._step_crops / self._epoch_crops
            values |= self._measure_memory()
        if self._state.epochs.end_step(step, step * self._step_crops) and self._state.best.criterion == EPOCH_LOSS:
            logs = True  # so that best/ has the weights at the end of the epoch
        if logs or saves:
            values |= self._read_epochs()
        if saves:
            # Before the evaluation, which may fail: a resumed run then repeats it.
            self._state.unlogged = values
            self._save()
        self._evaluate(values)

    def finish(self, reason: str | None) -> TrainingResult:
        """Saves a checkpoint after the last step and, unless a signal stopped training, preview and exports."""
        self._meter.check(newest_checkpoint(self._config.run_dir))
        self._save()
        run_dir, step = self._config.run_dir, self._state.step
        finished, stopped_by = reason in (None, OUT_OF_TIME, NO_IMPROVEMENT, COPIES), reason or "max_steps"
        if finished:
            self._save_preview()
            self._save_snapshots()
        if finished and self._writes:
            self._export("export")
        if self._log:
            self._log.close()
            if self._log.path.is_file():
                save_curves(self._log.path, run_dir / "curves.png")
        self._accelerator.wait_for_everyone()
        if self._accelerator.num_processes > 1:
            # Gloo's thread needs the interpreter to release the barrier's memory, and the end of the process group
            # waits for that thread while holding the interpreter: without a pause both may deadlock.
            time.sleep(_BARRIER_PAUSE)
        self._accelerator.end_training()
        if self._writes:
            save_result(run_dir, {"global_step": step, "stopped_by": stopped_by, "finished": finished})
        return TrainingResult(step, stopped_by, run_dir / "export" if finished else None)

    def _evaluate(self, values: dict[str, float]) -> None:
        """Evaluates and logs the state's step, without effect on training; `values` are its values so far."""
        step, run_dir = self._state.step, self._config.run_dir
        judged = self._run_checks(values)
        if self._log and (values or judged):
            self._log.write(step, {**values, **judged})
            if "val_loss" in judged or "kid" in judged:
                save_curves(self._log.path, run_dir / "curves.png")
        self._observer.on_step(step, values)
        if step % self._config.preview.every == 0 and step < self._last_step:
            self._save_preview()
        if step % self._config.train.ema_snapshots_every == 0:
            self._save_snapshots()
        if self._state.unlogged is not None:
            self._state.unlogged = None
            if self._writes and (saved := newest_checkpoint(run_dir)):
                save_progress(saved, self._state)

    def _run_checks(self, values: dict[str, float]) -> dict[str, float]:
        """Values on held-out micrographs that are due; exports the generator if it is the best so far."""
        judged = self._checks.run_due() if self._checks else {}
        if "copies" in judged:
            self._watch_copies(judged["copies"])
        best = self._state.best
        if best.offer(self._state.step, {**values, **judged}) and self._writes:
            self._export("best", {"criterion": best.criterion, "value": best.best_value, "step": best.best_step})
            self._observer.on_event(f"best so far: {best.criterion} {best.best_value:.4g} at step {best.best_step}")
        return judged

    def _watch_copies(self, share: float) -> None:
        options, detected = self._config.measurement, self._state.copy_watch.offer(self._state.step, share)
        if detected and self._checks and self._checks.picture is not None:
            path = self._checks.measurement.save_picture(self._state.step, self._checks.picture)
            self._observer.on_event(
                f"warning: the generator copies training images: {share:.0%} of its images at step {self._state.step} "
                f"(limit {options.max_copies:.0%}, {options.checks} measurements in a row); closest pairs in {path}"
            )

    def _read_epochs(self) -> dict[str, float]:
        """Mean loss of an epoch that ends with this step; earlier ones get log lines of their own."""
        losses = self._state.epochs.read(self._accelerator.gather)
        for step, loss in losses.items():
            if self._log and step < self._state.step:
                self._log.write(step, {EPOCH_LOSS: loss, "epoch": step * self._step_crops / self._epoch_crops})
        return {EPOCH_LOSS: losses[self._state.step]} if self._state.step in losses else {}

    def _measure_memory(self) -> dict[str, float]:
        """GiB of the process with the most: its current main memory and its peak of GPU tensors."""
        values = {"memory_gib": resident_memory() / 2**30}
        if torch.cuda.is_available():
            values["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        own = torch.tensor([list(values.values())], device=self._accelerator.device)
        return dict(zip(values, self._accelerator.gather(own).amax(dim=0).tolist(), strict=True))

    def _save_preview(self) -> None:
        """Writes a preview; failures, for example for lack of memory, do not stop the run."""
        if not self._writes or not self._previews:
            return
        step = self._state.step
        try:
            with self._state.averaged(), self._accelerator.autocast():
                self._observer.on_event(f"wrote {self._previews.draw(step)}")
        except Exception as error:
            self._observer.on_event(f"warning: preview of step {step} failed, training continues: {first_line(error)}")

    def _save_snapshots(self) -> None:
        for average in self._state.power_averages if self._writes else ():
            save_snapshot(self._config.run_dir, self._state.step, average)

    def _save(self) -> None:
        self._state.epochs.collect(self._accelerator.gather)
        self._accelerator.wait_for_everyone()
        if self._writes:
            folder = save_checkpoint(self._config.run_dir, self._state, self._config.train.keep_checkpoints)
            self._observer.on_event(f"saved {folder}")
        self._accelerator.wait_for_everyone()

    def _export(self, name: str, chosen: dict[str, Any] | None = None) -> None:
        """Replaces the folder `name` of the run by the generator with averaged weights, with `chosen` beside it."""
        with new_folder(self._config.run_dir / name, durable=True, replace=True) as working:
            with self._state.average.applied():
                self._state.generator.save(working)
            if chosen:
                save_json(working / SELECTION_FILE, chosen)
