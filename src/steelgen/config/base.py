"""What all configs share: strict sections, loading from JSON, `--set` overrides, messages that name the nearest key."""

from __future__ import annotations

import difflib
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from steelgen.errors import InputError, describe_problem
from steelgen.files import is_writable, load_json, parse_json


class Section(BaseModel):
    """A part of a config. Unknown keys are errors; the docstring under a field is its description in the schema."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )
    removed: ClassVar[Mapping[str, str]] = {}
    """Fields that older configs hold, and why they are gone; where they were off, the config goes on."""

    @model_validator(mode="before")
    @classmethod
    def _drop_removed(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for name in cls.removed.keys() & values.keys():
            if values[name] not in (None, False, []):
                raise ValueError(f"{name} was removed: {cls.removed[name]}")
        return {name: value for name, value in values.items() if name not in cls.removed}


MAX_SEED = 2**62
"""Half of what torch takes, since numbers of images are added to it."""
MAX_STEPS = 10**8
MAX_IMAGE_SIZE = 8192
"""px, of the edge of a network's images."""
MAX_CROP_SIZE = 2**16
"""px, of the edge of what is cut from a micrograph."""
MAX_BATCH_SIZE = 2**16
MAX_SHARDS = 10**5
MAX_LEARNING_RATE = 10
MAX_TIMESTEPS = 10**5
"""Steps of a forward process; with more, neighboring ones differ by less than fp32 can tell."""
MAX_IMAGES = 10**7
"""Of a set that is drawn."""

ConfigT = TypeVar("ConfigT", bound=Section)


def _check_factors(factors: tuple[float, float]) -> tuple[float, float]:
    if factors[0] > factors[1]:
        raise ValueError("the smaller factor must come first")
    return factors


_RENAMED = {"memorisation": "memorization", "standardise": "standardize"}

_Factor = Annotated[float, Field(gt=0, le=1000)]
FactorRange = Annotated[tuple[_Factor, _Factor], AfterValidator(_check_factors)]
"""The lowest and the highest of positive factors."""


def load_config(path: Path, kind: type[ConfigT], overrides: Sequence[str] = ()) -> ConfigT:
    """Reads a JSON config and applies `--set` overrides.

    Args:
        path: the JSON file; a `$schema` key is accepted for editors and ignored.
        kind: the config model of the action.
        overrides: `dotted.key=value` strings; a value that parses as JSON is taken as such, else as text.

    Raises:
        InputError: if the file is no JSON object, a key is unknown (the nearest known one is named) or a value is out
            of limits.
    """
    values = load_json(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: must hold a JSON object, not {type(values).__name__}")
    return parse_config(values, kind, overrides, origin=str(path))


def parse_config(
    values: dict[str, Any], kind: type[ConfigT], overrides: Sequence[str] = (), origin: str = "config"
) -> ConfigT:
    """Validates a dictionary as a config after applying overrides; see `load_config`."""
    values = rename_old_keys({key: value for key, value in values.items() if key != "$schema"})
    for override in overrides:
        _apply_override(values, override)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{origin}: {_describe(error, kind, values)}") from None


def rename_old_keys(values: Any) -> Any:
    """The values with the keys of configs of version 0.1 under the names they have now."""
    if not isinstance(values, dict):
        return values
    return {_RENAMED.get(key, key): rename_old_keys(value) for key, value in values.items()}


def config_to_json(config: Section) -> dict[str, Any]:
    """The resolved config as JSON values: every field, defaults included; enough to run again."""
    return config.model_dump(mode="json")


def build_schema(kind: type[Section]) -> dict[str, Any]:
    """The JSON Schema of a config, with a `$schema` key allowed in the document itself."""
    schema = kind.model_json_schema()
    schema["properties"] = {"$schema": {"type": "string"}, **schema["properties"]}
    return schema


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not all(key.split(".")):
        raise InputError(f"--set {override}: must be dotted.key=value")
    if not is_writable(override):
        raise InputError(f"--set {override!r}: holds what is no character")
    try:
        value = parse_json(text, f"--set {key}")
    except InputError:
        value = text
    *sections, name = key.split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise InputError(f"--set {override}: {section!r} is a value, not a section")
    values[name] = value


def _describe(error: ValidationError, kind: type[Section], values: dict[str, Any]) -> str:
    """The first problem, unknown keys before the errors that they cause (a misspelt required field is also missing)."""
    problems = sorted(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    first = problems[0]
    place = _drop_tags(first["loc"], values)
    location = ".".join(str(part) for part in place)
    if first["type"] == "extra_forbidden":
        known = _known_keys(kind, first["loc"][:-1])
        nearest = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(sorted(known))}"
        return f"unknown key {location!r}; {hint}"
    return describe_problem({**first, "loc": place})


def _drop_tags(location: Sequence[int | str], values: Any) -> tuple[int | str, ...]:
    """The place of a problem as the user wrote it: a discriminated union puts the member's tag in between."""
    place: list[int | str] = []
    for index, part in enumerate(location):
        if isinstance(values, dict) and part not in values and index < len(location) - 1:
            continue
        place.append(part)
        if isinstance(values, dict):
            values = values.get(part)
        elif isinstance(values, list) and isinstance(part, int):
            values = values[part]
    return tuple(place)


def _known_keys(kind: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    models = [kind]
    for part in location:
        below = [
            inner
            for model in models
            if part in model.model_fields
            for inner in find_sections(model.model_fields[part].annotation)
        ]
        # A discriminated union puts the member's tag into the location; it names no field.
        models = below or models
    return [name for model in models for name in model.model_fields]


def find_sections(annotation: Any) -> list[type[BaseModel]]:
    """The config models within a type annotation: in unions, lists, Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, types.UnionType, list) or get_args(annotation):
        return [model for argument in get_args(annotation) for model in find_sections(argument)]
    return []
