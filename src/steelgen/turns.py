"""Training of two stages of a workflow in turns: each next turn goes to the stage that gains more by it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from pydantic import Field

from steelgen.config.train import RunConfig
from steelgen.data.folder import list_splits
from steelgen.errors import InputError
from steelgen.files import Record, load_record, save_json
from steelgen.runs import OUT_OF_TIME, RESULT_FILE, load_result, read_metrics

TURNS_FILE = "turns.json"
"""In the run folder of the first stage: the turns of all stages."""
TURNS = 10
"""Turns that the time is divided into."""
LEAST_TURNS = 2
"""Turns that each stage gets in any case: two points of its curve, and a fifth of the time."""

REFINING_SHARE = 0.25
"""Share of the time for the refining stage, whose coarse part is given, where the gain cannot be measured."""


class Turn(Record):
    """A turn of a stage."""

    stage: str
    minutes: float = Field(gt=0)
    """Length of the turn."""
    step: int = Field(ge=0)
    """Steps of the stage at the end of the turn."""
    validated: int = Field(ge=0)
    """The step of its latest validation."""
    loss: float
    """Validation loss at that step."""
    ended: bool
    """Whether the stage stopped for another reason than time, such as its max_steps."""


class Turns(Record):
    """turns.json."""

    turns: list[Turn]


def measure_gain(turns: Sequence[Turn], stage: str) -> float | None:
    """Measures the share of its validation loss that a stage loses per minute, in its last turn.

    Losses of different stages are thus comparable: for mean squared errors, it is proportional to the gain of
    likelihood per pixel.

    Returns:
        None before a stage has had two turns.
    """
    own = [turn for turn in turns if turn.stage == stage]
    if len(own) < 2:
        return None
    before, last = own[-2:]
    # Validations need not be at the ends of turns.
    minutes = last.minutes * (last.validated - before.validated) / max(last.step - before.step, 1)
    return (1 - last.loss / before.loss) / minutes if minutes else 0.0


def choose_stage(turns: Sequence[Turn], stages: Sequence[str]) -> str | None:
    """Chooses the stage of the next turn.

    First each has `LEAST_TURNS` turns. Then the one that gained more in its last turn is next; of equal ones, that with
    fewer turns.

    Args:
        turns: those so far.
        stages: names, in the order of training.

    Returns:
        None if all stages have ended.
    """
    ended = {turn.stage for turn in turns if turn.ended}
    count = {stage: sum(turn.stage == stage for turn in turns) for stage in stages if stage not in ended}
    if few := [stage for stage in count if count[stage] < LEAST_TURNS]:
        return min(few, key=count.__getitem__)
    return max(count, key=lambda stage: (measure_gain(turns, stage) or 0.0, -count[stage]), default=None)


class SharedTime:
    """Stages that share the time of their training; see `choose_stage`.

    Args:
        stages: their configs by name, in the order of training.
        minutes: time of all together.

    Raises:
        InputError: if `TURNS_FILE` is damaged.
    """

    def __init__(self, stages: Mapping[str, RunConfig], minutes: float) -> None:
        self._stages, self._minutes = stages, minutes
        self._path = next(iter(stages.values())).run_dir / TURNS_FILE
        self._turns = load_record(self._path, Turns).turns if self._path.is_file() else []

    @property
    def complete(self) -> bool:
        """Whether the time is spent, or all stages have ended, and their runs are there."""
        return self._is_over and all(map(self._is_finished, self._stages))

    def train(self, run_stage: Callable[[str, RunConfig], None], report: Callable[[str], None]) -> None:
        """Trains in turns until the time is spent, after those so far.

        Args:
            run_stage: trains a stage by a config that limits its time; resumes from its latest checkpoint.
            report: receives a line per turn, and the split at the end.

        Raises:
            InputError: if there is nothing to validate on, a turn had no validation, or training was stopped.
        """
        self._check()
        while not self._is_over:
            stage = choose_stage(self._turns, list(self._stages))
            assert stage is not None, "time is over once all stages have ended"
            report(f"turn {len(self._turns) + 1}: {stage}, {self._describe_gains()}")
            self._turns.append(self._take_turn(stage, run_stage))
            save_json(self._path, Turns(turns=self._turns).model_dump())
        total = self._sum_minutes(*self._stages)
        for stage in self._stages:
            report(f"{stage}: got {self._sum_minutes(stage):.3g} of {total:.3g} minutes")

    def _take_turn(self, stage: str, run_stage: Callable[[str, RunConfig], None]) -> Turn:
        config, minutes = self._stages[stage], self._minutes / TURNS
        limited = config.train.model_copy(update={"max_minutes": minutes})
        run_stage(stage, config.model_copy(update={"train": limited}))
        if not self._is_finished(stage):
            raise InputError(f"{config.run_dir}: {stage} was stopped early; run the same command again to resume")
        result, metrics = load_result(config.run_dir), config.run_dir / "metrics.jsonl"
        ended = result.stopped_by != OUT_OF_TIME
        before = max((turn.validated for turn in self._turns if turn.stage == stage), default=0)
        losses = {int(row["step"]): row["val_loss"] for _, row in read_metrics(metrics) if "val_loss" in row}
        validated = max(losses, default=0)
        if not losses or (validated == before and not ended):
            raise InputError(
                f"{metrics}: no val_loss in the steps {before + 1} to {result.global_step}, a turn of {minutes:.3g} "
                f"minutes; training_minutes needs stages with a validation loss, and a {stage}.validation.every of "
                "fewer steps"
            )
        return Turn(
            stage=stage,
            minutes=minutes,
            step=result.global_step,
            validated=validated,
            loss=losses[validated],
            ended=ended,
        )

    def _check(self) -> None:
        """Raises InputError if a dataset has no micrographs to validate on, or a run with turns is gone."""
        for stage, config in self._stages.items():
            split, folders = config.validation.split, config.data.folders
            if not any(split in list_splits(folder) for folder in folders):
                raise InputError(f"{folders[0]}: has no split {split!r}, which training_minutes needs for validation")
            kept = any((config.run_dir / "checkpoints").glob("step-*"))
            if not kept and any(turn.stage == stage for turn in self._turns):
                raise InputError(
                    f"{self._path}: has turns of {stage}, but {config.run_dir} has no checkpoint; remove the run "
                    f"folders of {' and '.join(self._stages)} to start again"
                )

    def _describe_gains(self) -> str:
        gains = {stage: measure_gain(self._turns, stage) for stage in self._stages}
        if None in gains.values():
            return "to measure its gain"
        falls = ", ".join(f"{stage} {100 * (gain or 0):.2g} %" for stage, gain in gains.items())
        return f"by the fall of validation losses per minute: {falls}"

    @property
    def _is_over(self) -> bool:
        # Half a turn less, for rounding.
        spent = self._sum_minutes(*self._stages) > (1 - 0.5 / TURNS) * self._minutes
        return spent or choose_stage(self._turns, list(self._stages)) is None

    def _sum_minutes(self, *stages: str) -> float:
        return sum(turn.minutes for turn in self._turns if turn.stage in stages)

    def _is_finished(self, stage: str) -> bool:
        run_dir = self._stages[stage].run_dir
        return (run_dir / RESULT_FILE).is_file() and load_result(run_dir).finished
