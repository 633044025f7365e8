"""Every config there is, by its command's name."""

from __future__ import annotations

from steelgen.config.base import Section
from steelgen.config.evaluate import EvaluateConfig
from steelgen.config.pipeline import PipelineConfig
from steelgen.config.sample import SampleConfig
from steelgen.config.segment import SegmentConfig
from steelgen.config.slurm import SlurmProfile
from steelgen.config.train import FinetuneConfig, TrainConfig
from steelgen.config.utility import UtilityConfig

ACTIONS: dict[str, type[Section]] = {
    "train": TrainConfig,
    "finetune": FinetuneConfig,
    "sample": SampleConfig,
    "evaluate": EvaluateConfig,
    "segment": SegmentConfig,
    "utility": UtilityConfig,
    "pipeline": PipelineConfig,
    "slurm-profile": SlurmProfile,
}
