"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="JSON config; see configs/ and `steelgen config schema`.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a config value, e.g. train.learning_rate=1e-4; repeatable.",
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Print what would be done, and stop.")]
AllowChangedOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-changed",
        metavar="FIELD",
        help="Go on although this field or section of the config, or what lies there, has changed since the folder was "
        "begun, e.g. train.learning_rate; repeatable. changes.jsonl keeps what has.",
    ),
]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors alone.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as JSON.")]
