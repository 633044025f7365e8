"""What goes on around the optimizer's steps: metrics, the best step, previews, checkpoints, the export."""

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
from steelgen.runs import MetricsLog, save_result
from steelgen.training.checkpoint import newest_checkpoint, note_progress, save_checkpoint
from steelgen.training.curves import save_curves
from steelgen.training.held_out import HeldOutChecks
from steelgen.training.meter import LossMeter
from steelgen.training.observer import TrainingObserver, TrainingResult
from steelgen.training.power_ema import remove_later_snapshots, save_snapshot
from steelgen.training.preview import PreviewWriter
from steelgen.training.selection import COPIES, EPOCH_LOSS, NO_IMPROVEMENT
from steelgen.training.setup import effective_batch
from steelgen.training.state import TrainingState
from steelgen.training.stopping import OUT_OF_TIME, StopRequest, agree_on_stop

SELECTION_FILE = "selection.json"
"""In best/: the criterion, its value and the step."""
_BARRIER_PAUSE = 0.1
"""Seconds after the last barrier; the interpreter changes hands within 0.005."""


class Upkeep:
    """Looks after a run; every process has one, and the first alone writes.

    Args:
        config: the run's.
        state: what is trained; its step is counted by the loop.
        crops: what is trained on.
        previews: draws pictures; None for none.
        checks: looks at held-out micrographs; None where there are none.
        accelerator: this process.
        observer: is told of everything.
        last_step: the step at which training ends.
    """

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
        # Lines of a step that was saved but not looked at are written anew.
        known_step = state.step if state.unseen is None else state.step - 1
        self._log = MetricsLog(config.run_dir, known_step, config.train.trackers) if self._writes else None

    def begin(self) -> None:
        """Before the first step."""
        if self._writes:
            remove_later_snapshots(self._config.run_dir, self._state.step)
        self._observer.on_start(self._state.step, self._last_step)
        if self._state.step == 0:
            self._save_preview()
        elif self._state.unseen is not None:
            self._look(self._state.unseen)

    def find_reason_to_stop(self, request: StopRequest) -> str | None:
        """Why to stop now; the same in all processes."""
        if reason := agree_on_stop(request, self._accelerator, self._state.step):
            return reason
        if self._config.selection.stop_at_copies and self._state.copy_watch.begun_at is not None:
            return COPIES
        return NO_IMPROVEMENT if self._state.best.given_up else None

    def note_losses(self, phase: Phase, numbers: Tensor, found: Losses) -> None:
        """Takes in the losses of crops `numbers` (N,) in a phase of the step that is being taken, without a wait."""
        self._meter.add(self._state.step + 1, phase.name, numbers, found)
        if phase.name == self._first_phase:
            self._state.epochs.add(found.losses)

    def note_norm(self, phase: Phase, grad_norm: Tensor) -> None:
        """Takes in the norm of a phase's gradients; waits for nothing."""
        self._meter.note_norm(phase.name, grad_norm)

    def after_step(self, learning_rate: float) -> None:
        """Everything that is due after the step that the state has now.

        Args:
            learning_rate: of that step, before the phases' own factors.

        Raises:
            InputError: if the loss is not finite or has exploded.
        """
        step, options = self._state.step, self._config.train
        logs, saves = step % options.log_every == 0 or step == self._last_step, step % options.checkpoint_every == 0
        if logs or saves:
            self._meter.check(newest_checkpoint(self._config.run_dir))
        shown: dict[str, float] = {}
        if logs:
            shown = self._meter.read(learning_rate, self._accelerator.gather)
            shown["epoch"] = step * self._step_crops / self._epoch_crops
            shown |= self._measure_memory()
        if self._state.epochs.end_step(step, step * self._step_crops) and self._state.best.criterion == EPOCH_LOSS:
            logs = True  # so that the best weights are those at the end of the epoch
        if logs or saves:
            shown |= self._read_epochs()
        if saves:
            # First of all: what looks at a step may fail, and a run that goes on from here looks at it then.
            self._state.unseen = shown
            self._save()
        self._look(shown)

    def finish(self, reason: str | None) -> TrainingResult:
        """After the last step: the checkpoint and, unless a signal cut training short, preview and exports."""
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
        if self._log and self._log.path.is_file():
            save_curves(self._log.path, run_dir / "curves.png")
        self._accelerator.wait_for_everyone()
        if self._accelerator.num_processes > 1:
            # Gloo's thread needs the interpreter to let go of what the barrier used, and the end of the process group
            # waits for that thread without giving the interpreter away: without a pause both may wait for ever.
            time.sleep(_BARRIER_PAUSE)
        self._accelerator.end_training()
        if self._writes:
            save_result(run_dir, {"global_step": step, "stopped_by": stopped_by, "finished": finished})
        return TrainingResult(step, stopped_by, run_dir / "export" if finished else None)

    def _look(self, shown: dict[str, float]) -> None:
        """All that only looks at the step that the state has now: judgment, log, pictures, snapshots.

        Args:
            shown: its figures so far, empty at most steps.
        """
        step, run_dir = self._state.step, self._config.run_dir
        judged = self._judge(shown)
        if self._log and (shown or judged):
            self._log.write(step, {**shown, **judged})
            if "val_loss" in judged or "kid" in judged:
                save_curves(self._log.path, run_dir / "curves.png")
        self._observer.on_step(step, shown)
        if step % self._config.preview.every == 0 and step < self._last_step:
            self._save_preview()
        if step % self._config.train.ema_snapshots_every == 0:
            self._save_snapshots()
        if self._state.unseen is not None:
            self._state.unseen = None
            if self._writes:
                note_progress(run_dir, self._state)

    def _read_epochs(self) -> dict[str, float]:
        """The mean loss of the epoch that ends with this step; those that ended before get lines of their own."""
        losses = self._state.epochs.read(self._accelerator.gather)
        for step, loss in losses.items():
            if self._log and step < self._state.step:
                self._log.write(step, {EPOCH_LOSS: loss, "epoch": step * self._step_crops / self._epoch_crops})
        return {EPOCH_LOSS: losses[self._state.step]} if self._state.step in losses else {}

    def _measure_memory(self) -> dict[str, float]:
        """GiB of the process that has most: its main memory now, and the most that its tensors took of a GPU."""
        values = {"memory_gib": resident_memory() / 2**30}
        if torch.cuda.is_available():
            values["gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        own = torch.tensor([list(values.values())], device=self._accelerator.device)
        return dict(zip(values, self._accelerator.gather(own).amax(dim=0).tolist(), strict=True))

    def _judge(self, shown: dict[str, float]) -> dict[str, float]:
        """What held-out micrographs say of this step; keeps the generator where it is the best so far."""
        values = self._checks.run_due() if self._checks else {}
        if "copies" in values:
            self._watch_copies(values["copies"])
        if self._state.best.offer(self._state.step, {**shown, **values}) and self._writes:
            self._keep_best()
        return values

    def _watch_copies(self, share: float) -> None:
        options, begun = self._config.measurement, self._state.copy_watch.offer(self._state.step, share)
        if begun and self._checks and self._checks.picture is not None:
            path = self._checks.measurement.save_picture(self._state.step, self._checks.picture)
            self._observer.on_event(
                f"copies of training images have begun: {share:.0%} of the drawn ones at step {self._state.step} "
                f"(limit {options.max_copies:.0%}, measured {options.checks} times in a row); closest pairs in {path}"
            )

    def _keep_best(self) -> None:
        best = self._state.best
        chosen = {"criterion": best.criterion, "value": best.best_value, "step": best.best_step}
        self._export("best", chosen)
        self._observer.on_event(f"best so far: {best.criterion} {best.best_value:.4g} at step {best.best_step}")

    def _save_preview(self) -> None:
        """A picture that cannot be drawn, for want of memory say, is no reason to lose the run."""
        if not self._writes or not self._previews:
            return
        step = self._state.step
        try:
            with self._state.averaged(), self._accelerator.autocast():
                self._observer.on_event(f"drew {self._previews.draw(step)}")
        except Exception as error:
            self._observer.on_event(
                f"warning: the preview of step {step} failed, training goes on: {first_line(error)}"
            )

    def _save_snapshots(self) -> None:
        for average in self._state.power_averages if self._writes else ():
            save_snapshot(self._config.run_dir, self._state.step, average)

    def _save(self) -> None:
        self._state.epochs.settle(self._accelerator.gather)
        self._accelerator.wait_for_everyone()
        if self._writes:
            folder = save_checkpoint(self._config.run_dir, self._state, self._config.train.keep_checkpoints)
            self._observer.on_event(f"saved {folder}")
        self._accelerator.wait_for_everyone()

    def _export(self, name: str, chosen: dict[str, Any] | None = None) -> None:
        """Replaces the folder `name` of the run by the generator with averaged weights, `chosen` beside it."""
        with new_folder(self._config.run_dir / name, durable=True, replace=True) as working:
            with self._state.average.applied():
                self._state.generator.save(working)
            if chosen:
                save_json(working / SELECTION_FILE, chosen)
