"""Base of all configs: strict sections, loading from JSON, `--set` overrides, messages that name the nearest key."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, Field, ValidationError, model_validator

from steelgen.errors import InputError, describe_problem
from steelgen.files import is_writable, load_json, parse_json


class Section(BaseModel):
    """A section of a config; unknown keys are errors, and the docstring of a field is its description in the schema."""

    model_config = ConfigDict(
        extra="forbid",
        use_attribute_docstrings=True,
        validate_default=True,
        allow_inf_nan=False,
        protected_namespaces=(),
    )
    removed: ClassVar[Mapping[str, str]] = {}
    """Fields of older configs and why they were removed; their off values are still accepted."""

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
"""Half of torch's limit, since image indices are added to the seed."""
MAX_STEPS = 10**8
MAX_IMAGE_SIZE = 8192
"""Pixels, edge of a network's images."""
MAX_CROP_SIZE = 2**16
"""Pixels, edge of a crop."""
MAX_BATCH_SIZE = 2**16
MAX_SHARDS = 10**5
MAX_LEARNING_RATE = 10
MAX_TIMESTEPS = 10**5
"""Steps of the forward process; with more, neighboring steps are equal in fp32."""
MAX_IMAGES = 10**7
"""Images per sampling run."""

ConfigT = TypeVar("ConfigT", bound=Section)


def _check_factors(factors: tuple[float, float]) -> tuple[float, float]:
    if factors[0] > factors[1]:
        raise ValueError("the smaller factor must come first")
    return factors


_RENAMED = {"memorisation": "memorization", "standardise": "standardize"}

_Factor = Annotated[float, Field(gt=0, le=1000)]
FactorRange = Annotated[tuple[_Factor, _Factor], AfterValidator(_check_factors)]
"""Lowest and highest factor, both positive."""


def by_kind(default: str, *others: str, hint: str = "") -> Discriminator:
    """Chooses the section of a union by its field `kind`; each must be tagged with its kind.

    Args:
        default: the kind of sections without the field.
        others: all other kinds.
        hint: what the message about an unknown kind adds to the list of kinds.
    """

    def find_kind(value: Any) -> str:
        kind = value.get("kind") if isinstance(value, dict) else getattr(value, "kind", None)
        return str(kind) if kind is not None else default

    message = f"kind must be one of {', '.join([default, *others])}{hint}"
    return Discriminator(find_kind, custom_error_type="unknown_kind", custom_error_message=message)


def load_config(path: Path, kind: type[ConfigT], overrides: Sequence[str] = ()) -> ConfigT:
    """Reads a JSON config and applies `--set` overrides.

    Args:
        path: the JSON file; a `$schema` key, for editors, is ignored.
        kind: the config model of the action.
        overrides: `dotted.key=value` strings; the value is parsed as JSON if possible, else used as text.

    Raises:
        InputError: if the file is not a JSON object, a key is unknown (the message names the nearest known key) or a
            value is out of range.
    """
    values = load_json(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: must contain a JSON object, not {type(values).__name__}")
    return parse_config(values, kind, overrides, origin=str(path))


def parse_config(
    values: dict[str, Any], kind: type[ConfigT], overrides: Sequence[str] = (), origin: str = "config"
) -> ConfigT:
    """Applies overrides to a dictionary and validates it as a config; see `load_config`."""
    values = rename_old_keys({key: value for key, value in values.items() if key != "$schema"})
    for override in overrides:
        _apply_override(values, override)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{origin}: {_describe(error, kind, values)}") from None


def rename_old_keys(values: Any) -> Any:
    """Renames keys of version 0.1 to their current names, recursively."""
    if not isinstance(values, dict):
        return values
    return {_RENAMED.get(key, key): rename_old_keys(value) for key, value in values.items()}


def is_older(kind: type[Section], values: dict[str, Any], added: Collection[str]) -> bool:
    """Whether values are a section as an older version resolved it, which lacks nothing but the fields added since."""
    lacking = kind.model_fields.keys() - values.keys()
    return bool(lacking) and lacking <= set(added)


def config_to_json(config: Section) -> dict[str, Any]:
    """Converts a config to JSON values: every field, defaults included; sufficient to run again."""
    return config.model_dump(mode="json")


def build_schema(kind: type[Section]) -> dict[str, Any]:
    """Builds the JSON Schema of a config, which also allows a `$schema` key."""
    schema = kind.model_json_schema()
    schema["properties"] = {"$schema": {"type": "string"}, **schema["properties"]}
    return schema


def _apply_override(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not all(key.split(".")):
        raise InputError(f"--set {override}: must be dotted.key=value")
    if not is_writable(override):
        raise InputError(f"--set {override!r}: contains invalid characters")
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
    """Describes the first problem; unknown keys come first, since a misspelled required key is also missing."""
    first = min(error.errors(), key=lambda problem: problem["type"] != "extra_forbidden")
    place = _drop_tags(first["loc"], values)
    location = ".".join(str(part) for part in place)
    if first["type"] == "extra_forbidden":
        known = _known_keys(kind, first["loc"][:-1])
        nearest = difflib.get_close_matches(str(first["loc"][-1]), known, n=1, cutoff=0.5)
        hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(sorted(known))}"
        return f"unknown key {location!r}; {hint}"
    return describe_problem({**first, "loc": place})


def _drop_tags(location: Sequence[int | str], values: Any) -> tuple[int | str, ...]:
    """Removes the tags of discriminated unions, which are not keys of the document, from an error's location."""
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
        # The tag of a discriminated union is not a field.
        models = below or models
    return [name for model in models for name in model.model_fields]


def find_sections(annotation: Any) -> list[type[BaseModel]]:
    """Finds the config models in a type annotation, inside unions, lists and Annotated."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in find_sections(argument)]
