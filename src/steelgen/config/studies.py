"""The three kinds of studies of `steelgen utility`."""

from __future__ import annotations

from typing import Any

from steelgen.config.classify import ClassifyConfig
from steelgen.config.instance import InstanceConfig
from steelgen.config.utility import UtilityConfig
from steelgen.errors import InputError, quote_value

StudyConfig = UtilityConfig | ClassifyConfig
"""Config of `steelgen utility`, by its field `task`; InstanceConfig is a UtilityConfig."""

_KINDS: dict[str, type[UtilityConfig] | type[ClassifyConfig]] = {
    "segment": UtilityConfig,
    "classify": ClassifyConfig,
    "instance": InstanceConfig,
}


def choose_study(values: Any, origin: str) -> type[UtilityConfig] | type[ClassifyConfig]:
    """Chooses the config model of a study by the field `task` of its JSON values.

    Raises:
        InputError: if there is no such task.
    """
    task = values.get("task", "segment") if isinstance(values, dict) else "segment"
    if not isinstance(task, str) or task not in _KINDS:
        raise InputError(f"{origin}: task must be segment, instance or classify (got {quote_value(task)})")
    return _KINDS[task]
