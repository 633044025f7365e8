"""The result of planning."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from steelgen.config.base import Section
from steelgen.config.train import RunConfig
from steelgen.config.workflow import WorkflowConfig
from steelgen.planning.fingerprint import Fingerprint
from steelgen.planning.machine import Machine, StepTime
from steelgen.planning.rules import Choice


@dataclass(frozen=True)
class Plan:
    """Configs for a dataset folder and how they came about."""

    dataset: Path
    minutes: float
    fingerprint: Fingerprint
    machine: Machine
    step: StepTime
    choices: tuple[Choice, ...]
    warnings: tuple[str, ...]
    workflow: WorkflowConfig
    """All stages; each is also written as a config of its own."""

    @property
    def training(self) -> RunConfig:
        """The config of the training stage, from scratch or fine-tuning."""
        config = self.workflow.finetune or self.workflow.train
        assert config is not None
        return config

    def list_configs(self) -> dict[str, Section]:
        """Lists the configs by command: train or finetune, sample, evaluate, utility, workflow."""
        fields = {name: getattr(self.workflow, name) for name in type(self.workflow).model_fields}
        stages = {name: config for name, config in fields.items() if isinstance(config, Section)}
        return {**stages, "workflow": self.workflow}
