"""`steelgen config show` and `steelgen config schema`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from steelgen.cli.options import ConfigOption, SetOption
from steelgen.cli.output import errors_as_lines

config_app = typer.Typer(no_args_is_help=True)

ActionArgument = Annotated[str, typer.Argument(help="train, finetune, sample or evaluate.")]


@config_app.command("show")
def show_command(action: ActionArgument, config: ConfigOption, overrides: SetOption = None) -> None:
    """Print the resolved config of an action: every field, defaults included."""
    from steelgen.config.base import config_to_json, load_config

    with errors_as_lines():
        typer.echo(json.dumps(config_to_json(load_config(config, _find_action(action), overrides or ())), indent=2))


@config_app.command("schema")
def schema_command(
    action: Annotated[
        str | None, typer.Argument(help="train, finetune, sample or evaluate; all of them with --out.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Write <action>.json for every action into this folder.")] = None,
) -> None:
    """Print the JSON Schema of an action's config, or write all schemas into a folder."""
    from steelgen.config.actions import ACTIONS
    from steelgen.config.base import build_schema
    from steelgen.errors import InputError
    from steelgen.files import save_json

    with errors_as_lines():
        if out is not None:
            for name, kind in ACTIONS.items():
                save_json(out / f"{name}.json", build_schema(kind))
            typer.echo(f"{len(ACTIONS)} schemas in {out}")
        elif action is not None:
            typer.echo(json.dumps(build_schema(_find_action(action)), indent=2, ensure_ascii=False))
        else:
            raise InputError(f"config schema: name an action ({', '.join(ACTIONS)}) or a folder with --out")


def _find_action(name: str) -> type:
    from steelgen.config.actions import ACTIONS
    from steelgen.errors import InputError

    if name not in ACTIONS:
        raise InputError(f"no action {name!r}; known: {', '.join(ACTIONS)}")
    return ACTIONS[name]
