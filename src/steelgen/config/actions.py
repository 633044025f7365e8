"""Config models by command, and their output folders."""

from __future__ import annotations

from pathlib import Path

from steelgen.config.base import Section
from steelgen.config.classify import ClassifyConfig
from steelgen.config.evaluate import EvaluateConfig
from steelgen.config.families import FamiliesConfig
from steelgen.config.instance import InstanceConfig
from steelgen.config.sample import SampleConfig
from steelgen.config.segment import SegmentConfig
from steelgen.config.slurm import SlurmProfile
from steelgen.config.train import FinetuneConfig, RunConfig, TrainConfig
from steelgen.config.tune import TuneConfig
from steelgen.config.utility import UtilityConfig
from steelgen.config.workflow import WorkflowConfig

ACTIONS: dict[str, type[Section]] = {
    "train": TrainConfig,
    "finetune": FinetuneConfig,
    "sample": SampleConfig,
    "evaluate": EvaluateConfig,
    "segment": SegmentConfig,
    "utility": UtilityConfig,
    "utility-instance": InstanceConfig,
    "utility-classify": ClassifyConfig,
    "workflow": WorkflowConfig,
    "families": FamiliesConfig,
    "tune": TuneConfig,
    "slurm-profile": SlurmProfile,
}


def find_output(config: Section) -> Path:
    """Returns the output folder of a command: run_dir or output_dir of its config."""
    return config.run_dir if isinstance(config, RunConfig) else config.output_dir  # type: ignore[attr-defined]
