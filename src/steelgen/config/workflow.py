"""Config of `steelgen workflow`."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, model_validator

from steelgen.config.base import MAX_SHARDS, Section
from steelgen.config.evaluate import EvaluateConfig
from steelgen.config.sample import SampleConfig
from steelgen.config.train import FinetuneConfig, TrainConfig
from steelgen.config.utility import UtilityConfig


class WorkflowConfig(Section):
    """`steelgen workflow`: train, finetune or both, refine, sample, evaluate and utility, each on earlier outputs."""

    train: TrainConfig | None = None
    """The config of `steelgen train`; null starts with fine-tuning, of a bundled model for example."""
    finetune: FinetuneConfig | None = None
    """The config of `steelgen finetune`; null skips fine-tuning."""
    refine: TrainConfig | None = None
    """The config of `steelgen train` for the last of `sample.stages`; null for a single generator, or one trained
    before."""
    sample: SampleConfig
    """The config of `steelgen sample`."""
    evaluate: EvaluateConfig | None = None
    """The config of `steelgen evaluate`; null skips the evaluation."""
    utility: UtilityConfig | None = None
    """The config of `steelgen utility`; null skips the study."""
    shards: int = Field(1, ge=1, le=MAX_SHARDS)
    """Tasks of each job array (sampling, utility study) with --slurm; unused without it."""

    @model_validator(mode="after")
    def _check_chain(self) -> WorkflowConfig:
        last = self.finetune or self.train
        if last is None:
            raise ValueError("one of train and finetune must be given")
        if self.finetune and self.train:
            _check_link("finetune.checkpoint", self.finetune.checkpoint, "train.run_dir", self.train.run_dir)
        writer = "finetune.run_dir" if self.finetune else "train.run_dir"
        readers = list(self.sample.generators.items())
        _check_link(f"sample.{readers[0][0]}", readers[0][1], writer, last.run_dir)
        if self.refine:
            if len(readers) < 2:
                raise ValueError("refine: needs sample.stages, whose last one it trains")
            _check_link(f"sample.{readers[-1][0]}", readers[-1][1], "refine.run_dir", self.refine.run_dir)
        if self.evaluate:
            _check_link("evaluate.generated", self.evaluate.generated, "sample.output_dir", self.sample.output_dir)
        if self.utility and self.utility.generated:
            _check_link("utility.generated", self.utility.generated, "sample.output_dir", self.sample.output_dir)
        return self


def _check_link(reader: str, path: Path, writer: str, written: Path) -> None:
    if path != written and written not in path.parents:
        raise ValueError(f"{reader} is {path}, but must be in {writer} {written}, the output of the stage before")
