"""Config of `steelgen workflow`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import Discriminator, Field, Tag, model_validator

from steelgen.config.base import MAX_SHARDS, Section
from steelgen.config.evaluate import EvaluateConfig
from steelgen.config.sample import SampleConfig
from steelgen.config.segment import SegmentConfig
from steelgen.config.train import FinetuneConfig, RunConfig, TrainConfig
from steelgen.config.utility import FOLD, UtilityConfig


def _choose_command(values: Any) -> str:
    """The command of a training config, by the field that only fine-tuning has."""
    has_checkpoint = "checkpoint" in values if isinstance(values, dict) else hasattr(values, "checkpoint")
    return "finetune" if has_checkpoint else "train"


AnyRunConfig = Annotated[
    Annotated[TrainConfig, Tag("train")] | Annotated[FinetuneConfig, Tag("finetune")], Discriminator(_choose_command)
]


class WorkflowConfig(Section):
    """`steelgen workflow`: segment, train, finetune or both, refine, sample, evaluate and utility, each on earlier
    outputs.

    With {fold} in utility.generated, the stages with {fold} in their paths run for each fold of the study; the dataset
    folder of the generator is then written for each fold, without its test micrographs in train and val.
    """

    segment: SegmentConfig | None = None
    """The config of `steelgen segment train` with `unlabeled`: it completes a dataset of few labeled micrographs by
    others, with predicted masks, for the generators to be trained on; null without unlabeled micrographs."""
    train: TrainConfig | None = None
    """The config of `steelgen train`; null starts with fine-tuning, of a bundled model for example."""
    finetune: FinetuneConfig | None = None
    """The config of `steelgen finetune`; null skips fine-tuning."""
    refine: AnyRunConfig | None = None
    """The config of `steelgen train`, or with a `checkpoint` of `steelgen finetune`, for the last of `sample.stages`;
    null for a single generator, or one trained before."""
    training_minutes: float | None = Field(None, gt=0, le=1_000_000)
    """Minutes that the last of train and finetune shares with refine, in ten turns: at least two of each, and each next
    one for the stage whose validation loss fell by the larger share per minute in its last turn; as Slurm jobs, a
    quarter for refine. null trains each by its own max_steps and max_minutes."""
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
        if self.segment:
            self._check_completion(self.segment)
        if self.finetune and self.train:
            _check_link("finetune.checkpoint", self.finetune.checkpoint, "train.run_dir", self.train.run_dir)
        writer = "finetune.run_dir" if self.finetune else "train.run_dir"
        readers = list(self.sample.generators.items())
        _check_link(f"sample.{readers[0][0]}", readers[0][1], writer, last.run_dir)
        if self.refine:
            if len(readers) < 2:
                raise ValueError("refine: needs sample.stages, whose last one it trains")
            if isinstance(self.refine, TrainConfig) and not getattr(self.refine.generator, "low_resolution", None):
                raise ValueError("refine.generator.low_resolution: is missing; it makes a generator a refining one")
            _check_link(f"sample.{readers[-1][0]}", readers[-1][1], "refine.run_dir", self.refine.run_dir)
        if self.training_minutes:
            self._check_turns()
        if self.evaluate:
            _check_link("evaluate.generated", self.evaluate.generated, "sample.output_dir", self.sample.output_dir)
        if self.utility and self.utility.generated:
            _check_link("utility.generated", self.utility.generated, "sample.output_dir", self.sample.output_dir)
        if self.utility and self.utility.predicted and self.segment:
            written = self.segment.output_dir
            _check_link("utility.predicted", self.utility.predicted, "segment.output_dir", written)
        if self.has_folds:
            self._check_folds()
        return self

    def _check_completion(self, segment: SegmentConfig) -> None:
        if segment.unlabeled is None:
            raise ValueError("segment.unlabeled: is missing; no stage reads the output of segment without")
        name = "finetune" if self.finetune else "train"
        for key, section in ((name, self.last_training), ("refine", self.refine)):
            if section:
                folders = section.data.folders
                read = next((each for each in folders if segment.output_dir in each.parents), folders[0])
                _check_link(f"{key}.data.dataset", read, "segment.output_dir", segment.output_dir)

    def _check_turns(self) -> None:
        if self.refine is None:
            raise ValueError("training_minutes: needs refine, with which the time is shared")
        if self.has_folds:
            raise ValueError(f"training_minutes: not applicable to stages with {FOLD}")
        for key, training in self.sharing.items():
            if training.train.max_minutes is not None:
                raise ValueError(f"{key}.train.max_minutes: not applicable with training_minutes")
            if training.validation.split is None:
                raise ValueError(f"{key}.validation.split: training_minutes needs a validation loss, so not null")

    def _check_folds(self) -> None:
        assert self.utility is not None
        name = "finetune" if self.finetune else "train"
        sections: dict[str, SegmentConfig | RunConfig | SampleConfig | EvaluateConfig | None] = {
            "segment": self.segment,
            name: self.last_training,
            "refine": self.refine,
            "sample": self.sample,
            "evaluate": self.evaluate,
        }
        for key, section in sections.items():
            if section is None:
                continue
            output = section.run_dir if isinstance(section, RunConfig) else section.output_dir
            if FOLD not in str(output):
                raise ValueError(f"{key}: writes to {output} in every fold; put {FOLD} into the path")
            if self.utility.dataset in _list_paths(section):
                raise ValueError(
                    f"{key}: reads {self.utility.dataset}, which has the test micrographs of every fold; use a folder "
                    f"with {FOLD} in its path, which the workflow writes"
                )
        read = {f"{name}.data.dataset": self.last_training.data.dataset}
        if self.refine:
            read["refine.data.dataset"] = self.refine.data.dataset
        if self.segment:
            read["segment.dataset"] = self.segment.dataset
        for key, folder in read.items():
            if FOLD not in str(folder):
                raise ValueError(f"{key}: {folder} is the same in every fold; needs {FOLD}")

    @property
    def has_folds(self) -> bool:
        """Whether each fold of the utility study has its own generator."""
        return self.utility is not None and self.utility.folds is not None and FOLD in str(self.utility.generated)

    @property
    def fold_dataset(self) -> Path | None:
        """The dataset folder that is written for each fold, with {fold} in its path; None without folds."""
        if not self.has_folds:
            return None
        return self.segment.dataset if self.segment else self.last_training.data.dataset

    @property
    def sharing(self) -> dict[str, RunConfig]:
        """The configs that share training_minutes, by stage; empty without."""
        if self.training_minutes is None or self.refine is None:
            return {}
        return {"finetune" if self.finetune else "train": self.last_training, "refine": self.refine}

    @property
    def last_training(self) -> RunConfig:
        """The config of the generator that is sampled."""
        last = self.finetune or self.train
        assert last is not None
        return last


def _list_paths(section: Section) -> list[Path]:
    """All paths in a section and its subsections."""
    values = [value for _, field in section for value in (field if isinstance(field, list) else [field])]
    deeper = [path for value in values if isinstance(value, Section) for path in _list_paths(value)]
    return [value for value in values if isinstance(value, Path)] + deeper


def _check_link(reader: str, path: Path, writer: str, written: Path) -> None:
    if path != written and written not in path.parents:
        raise ValueError(f"{reader} is {path}, but must be in {writer} {written}, the output of the stage before")
