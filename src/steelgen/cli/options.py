"""Options and option parsers shared by several commands."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, TypeVar

from typer import Option

from steelgen.errors import InputError

ValueT = TypeVar("ValueT")

ConfigOption = Annotated[Path, Option("--config", "-c", help="JSON config; see configs/ and `steelgen config schema`.")]
SetOption = Annotated[
    list[str] | None,
    Option("--set", metavar="KEY=VALUE", help="Override a config value, e.g. train.learning_rate=1e-4; repeatable."),
]
ShardOption = Annotated[
    str | None,
    Option(
        metavar="I/N",
        help="Run only shard I of N, counted from 1. Default: taken from the environment under torchrun and in Slurm "
        "job arrays.",
    ),
]
AllowChangedOption = Annotated[
    list[str] | None,
    Option(
        "--allow-changed",
        metavar="FIELD",
        help="Resume although this config field or section, or the data behind it, has changed, e.g. "
        "train.learning_rate; repeatable. Changes are recorded in changes.jsonl.",
    ),
]
DryRunOption = Annotated[bool, Option("--dry-run", help="Print the plan and exit.")]
QuietOption = Annotated[bool, Option("--quiet", "-q", help="Print only errors.")]
JsonOption = Annotated[bool, Option("--json", help="Print the result as JSON.")]


def parse_pair(option: str, text: str, kind: Callable[[str], ValueT], what: str) -> tuple[ValueT, ValueT]:
    """Parses two comma-separated values with `kind`; raises InputError, which calls them `what`, if it cannot."""
    parts = [part.strip() for part in text.split(",")]
    try:
        if len(parts) == 2 and all(parts):
            return kind(parts[0]), kind(parts[1])
    except ValueError:
        pass
    raise InputError(f"{option} {text}: must be two {what} separated by a comma")


def split_names(text: str) -> tuple[str, ...]:
    """Splits comma-separated names."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
