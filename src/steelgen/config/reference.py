"""Markdown reference of all configs, generated from the docstrings of their fields."""

from __future__ import annotations

import inspect
import json
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from steelgen.config.actions import ACTIONS
from steelgen.config.base import find_sections

_OPENING = """# Every config, field by field

Generated from the docstrings of the config models by `steelgen config reference --out docs/configs.md`.
Configs are JSON files. An unknown key is an error that names the nearest known key. `--set train.learning_rate=1e-4`
overrides a value on the command line; `steelgen config show ACTION -c FILE` prints a config with all its defaults.
Editors complete and check the keys of a file that names its schema: `"$schema": "configs/schema/train.json"`.
"""


def build_reference() -> str:
    """Builds the page: a heading per action and section; a shared section appears once, where it first occurs."""
    seen: set[type[BaseModel]] = set()
    parts = [_OPENING]
    for action, kind in ACTIONS.items():
        parts.append(f"## {action}\n")
        waiting: list[tuple[str, type[BaseModel]]] = [("", kind)]
        while waiting:
            path, model = waiting.pop(0)
            if model in seen:
                continue
            seen.add(model)
            if path:
                parts.append(f"### {path}: {model.__name__}\n")
            parts.append(_describe_model(model))
            for name, field in model.model_fields.items():
                inner = f"{path}.{name}" if path else name
                waiting += [(inner, section) for section in find_sections(field.annotation)]
    return "\n".join(parts)


def _describe_model(model: type[BaseModel]) -> str:
    paragraphs = (inspect.getdoc(model) or "").split("\n\n")
    rows = ["| field | values | default | |", "|---|---|---|---|"]
    for name, field in model.model_fields.items():
        values = ", ".join([_describe_type(field.annotation), *_describe_limits(field.metadata)])
        default = "**required**" if field.is_required() else f"`{_describe_default(field)}`"
        rows.append(f"| `{name}` | {_in_cell(values)} | {default} | {_in_cell(field.description or '')} |")
    return "\n\n".join([*(" ".join(text.split()) for text in paragraphs), "\n".join(rows)]) + "\n"


def _describe_default(field: FieldInfo) -> str:
    default = field.get_default(call_default_factory=True)
    if isinstance(default, BaseModel):
        default = default.model_dump(mode="json", exclude_defaults=True)
    return json.dumps(default, default=str)


def _describe_type(annotation: Any) -> str:
    """Describes a type in JSON terms."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation.__name__
    kind, arguments = get_origin(annotation), get_args(annotation)
    if kind is Annotated:
        limits = [limit for part in arguments[1:] for limit in getattr(part, "metadata", [])]
        return " ".join([_describe_type(arguments[0]), *_describe_limits(limits)])
    if kind is Literal:
        return " or ".join(json.dumps(value) for value in arguments)
    if kind in (Union, types.UnionType):
        return " or ".join(_describe_type(argument) for argument in arguments)
    if kind is list:
        return f"list of {_describe_type(arguments[0])}"
    if kind is dict:
        return f"object of {_describe_type(arguments[1])}"
    if kind is tuple:
        return f"[{', '.join(_describe_type(argument) for argument in arguments)}]"
    return {type(None): "null", bool: "true or false", str: "text", Path: "path"}.get(annotation, annotation.__name__)


def _describe_limits(metadata: Sequence[Any]) -> list[str]:
    return [_LIMITS[type(limit).__name__](limit) for limit in metadata if type(limit).__name__ in _LIMITS]


_LIMITS: dict[str, Any] = {
    "Ge": lambda limit: f"≥ {limit.ge:,}",
    "Gt": lambda limit: f"> {limit.gt:,}",
    "Le": lambda limit: f"≤ {limit.le:,}",
    "Lt": lambda limit: f"< {limit.lt:,}",
    "MinLen": lambda limit: f"at least {limit.min_length}",
}


def _in_cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
