"""What goes on around the optimizer's steps: metrics, the best epoch, previews, checkpoints, the export."""

from __future__ import annotations

import shutil

from accelerate import Accelerator
from torch import Tensor

from steelgen.config.train import RunConfig
from steelgen.data.crops import CropDataset
from steelgen.runs import MetricsLog, save_result
from steelgen.training.checkpoint import newest_checkpoint, save_checkpoint
from steelgen.training.ema import WeightAverage
from steelgen.training.epochs import NO_IMPROVEMENT
from steelgen.training.meter import LossMeter
from steelgen.training.observer import TrainingObserver, TrainingResult
from steelgen.training.power_ema import PowerAverage, remove_later_snapshots, save_snapshot
from steelgen.training.preview import PreviewDrawer
from steelgen.training.setup import effective_batch
from steelgen.training.state import TrainingState
from steelgen.training.stopping import OUT_OF_TIME, StopRequest, agree_on_stop


class Upkeep:
    """Looks after a run; every process has one, and the first alone writes.

    Args:
        config: the run's.
        state: what is trained; its step is counted by the loop.
        crops: what is trained on.
        accelerator: this process.
        observer: is told of everything.
        last_step: the step at which training ends.
    """

    def __init__(
        self,
        config: RunConfig,
        state: TrainingState,
        crops: CropDataset,
        accelerator: Accelerator,
        observer: TrainingObserver,
        last_step: int,
    ) -> None:
        self._config = config
        self._state = state
        self._epoch_crops = len(crops)
        self._accelerator = accelerator
        self._observer = observer
        self._last_step = last_step
        self._writes = accelerator.is_main_process
        self._step_crops = effective_batch(config.train, accelerator.num_processes)
        self._meter = LossMeter(crops, accelerator.num_processes)
        self._log = MetricsLog(config.run_dir, state.step) if self._writes else None
        draws = self._writes and config.preview.num_images
        self._previews = PreviewDrawer(config, state.generator, crops.micrographs) if draws else None

    def begin(self) -> None:
        """Before the first step."""
        if self._writes:
            remove_later_snapshots(self._config.run_dir, self._state.step)
        self._observer.on_start(self._state.step, self._last_step)
        if self._state.step == 0:
            self._draw_preview()

    def find_reason_to_stop(self, request: StopRequest) -> str | None:
        """Why to stop now; the same in all processes."""
        if reason := agree_on_stop(request, self._accelerator):
            return reason
        return NO_IMPROVEMENT if self._state.epochs.given_up(self._state.step) else None

    def note_losses(self, numbers: Tensor, losses: Tensor) -> None:
        """Takes in the losses (N,) of crops `numbers` (N,) in the step that is being taken; waits for nothing."""
        self._meter.add(self._state.step + 1, numbers, losses)
        self._state.epochs.add(self._accelerator.gather(losses.detach()))

    def after_step(self, grad_norm: Tensor, learning_rate: float) -> None:
        """Everything that is due after the step that the state has now.

        Raises:
            InputError: if the loss is not finite or has exploded.
        """
        step, options = self._state.step, self._config.train
        values = self._close_epoch()
        logs, saves = step % options.log_every == 0 or step == self._last_step, step % options.checkpoint_every == 0
        if logs or saves:
            self._meter.check(newest_checkpoint(self._config.run_dir))
        shown: dict[str, float] = {}
        if logs:
            shown = self._meter.read(grad_norm, learning_rate)
            shown["epoch"] = step * self._step_crops / self._epoch_crops
        if self._log and (shown or values):
            self._log.write(step, {**shown, **values})
        self._observer.on_step(step, shown)
        if step % self._config.preview.every == 0 and step < self._last_step:
            self._draw_preview()
        if step % options.ema_snapshots_every == 0:
            self._save_snapshots()
        if saves:
            self._save()

    def finish(self, reason: str | None) -> TrainingResult:
        """After the last step: the checkpoint and, unless a signal cut training short, preview and exports."""
        self._meter.check(newest_checkpoint(self._config.run_dir))
        self._save()
        run_dir, step = self._config.run_dir, self._state.step
        finished, stopped_by = reason in (None, OUT_OF_TIME, NO_IMPROVEMENT), reason or "max_steps"
        if finished:
            self._draw_preview()
            self._save_snapshots()
        if finished and self._writes:
            self._export(self._state.average, "export")
            for more in self._state.averages[1:]:
                if not isinstance(more, PowerAverage):  # `steelgen ema` makes generators of these
                    self._export(more, f"export-ema-{more.name}")
        if self._log:
            self._log.close()
        self._accelerator.wait_for_everyone()
        self._accelerator.end_training()
        if self._writes:
            save_result(run_dir, {"global_step": step, "stopped_by": stopped_by, "finished": finished})
        return TrainingResult(step, stopped_by, run_dir / "export" if finished else None)

    def _close_epoch(self) -> dict[str, float]:
        """The loss of an epoch that ended with this step; keeps the generator where it is the best so far."""
        step, epochs = self._state.step, self._state.epochs
        loss = epochs.close_epoch(step, step * self._step_crops)
        if loss is None:
            return {}
        if self._config.train.keep_best and epochs.best_step == step and self._writes:
            self._export(self._state.average, "best")
            self._observer.on_event(f"best epoch so far: loss {loss:.4f} at step {step}")
        return {"epoch_loss": loss}

    def _draw_preview(self) -> None:
        if self._previews:
            with self._state.average.applied(), self._accelerator.autocast():
                self._observer.on_event(f"drew {self._previews.draw(self._state.step)}")

    def _save_snapshots(self) -> None:
        for average in self._state.averages if self._writes else ():
            if isinstance(average, PowerAverage):
                save_snapshot(self._config.run_dir, self._state.step, average)

    def _save(self) -> None:
        self._accelerator.wait_for_everyone()
        if self._writes:
            folder = save_checkpoint(self._config.run_dir, self._state, self._config.train.keep_checkpoints)
            self._observer.on_event(f"saved {folder}")
        self._accelerator.wait_for_everyone()

    def _export(self, average: WeightAverage, name: str) -> None:
        """Replaces the folder `name` of the run by the generator with averaged weights."""
        run_dir = self._config.run_dir
        fresh = run_dir / f"{name}.new"
        shutil.rmtree(fresh, ignore_errors=True)
        with average.applied():
            self._state.generator.save(fresh)
        shutil.rmtree(run_dir / name, ignore_errors=True)
        fresh.rename(run_dir / name)
