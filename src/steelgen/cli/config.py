"""`steelgen config show`, `schema`, `reference` and `convert`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from steelgen.cli.isdm import report_conversion
from steelgen.cli.options import ConfigOption, SetOption
from steelgen.cli.output import errors_as_lines, print_json
from steelgen.cli.utility import load_utility_settings

config_app = typer.Typer(no_args_is_help=True)


class IsdmAction(str, Enum):
    """What an ISDM config is for."""

    train = "train"
    finetune = "finetune"
    sample = "sample"


_ACTION_HELP = "train, finetune, sample, evaluate, segment, utility, workflow or slurm-profile"
ActionArgument = Annotated[str, typer.Argument(help=f"{_ACTION_HELP}.")]


@config_app.command("show")
def show_command(action: ActionArgument, config: ConfigOption, overrides: SetOption = None) -> None:
    """Print the resolved config of an action: every field, defaults included."""
    from steelgen.config.base import config_to_json, load_config

    with errors_as_lines():
        print_json(config_to_json(load_config(config, _find_action(action), overrides or ())))


@config_app.command("schema")
def schema_command(
    action: Annotated[str | None, typer.Argument(help=f"{_ACTION_HELP}; all of them with --out.")] = None,
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
            print_json(build_schema(_find_action(action)))
        else:
            raise InputError(f"config schema: name an action ({', '.join(ACTIONS)}) or a folder with --out")


@config_app.command("reference")
def reference_command(
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write it here; without this it is printed.")] = None,
) -> None:
    """Every field of every config, with its values, default and meaning, as a Markdown page."""
    from steelgen.config.reference import build_reference
    from steelgen.files import new_file

    with errors_as_lines():
        if out:
            with new_file(out) as working:
                working.write_text(build_reference(), encoding="utf-8")
        else:
            typer.echo(build_reference())


@config_app.command("convert")
def convert_command(
    old: Annotated[Path, typer.Argument(help="One of ISDM's JSON configs.")],
    action: Annotated[IsdmAction | None, typer.Option(help="What it is for; by default guessed from its keys.")] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write it here; without this it is printed.")] = None,
) -> None:
    """Turn one of ISDM's configs into steelgen's; says what means nothing any more, and why."""
    from steelgen.config.actions import ACTIONS
    from steelgen.config.base import config_to_json, parse_config
    from steelgen.errors import InputError
    from steelgen.files import load_json
    from steelgen.isdm.config import convert_isdm_config, guess_action, is_isdm_config
    from steelgen.isdm.utility import is_isdm_study

    with errors_as_lines():
        values = load_json(old)
        if is_isdm_study(values):
            _write_config(config_to_json(load_utility_settings(old, None)), out)
            return
        if not is_isdm_config(values):
            raise InputError(f"{old}: not one of ISDM's configs (none of its telling keys, such as diffusion_steps)")
        conversion = convert_isdm_config(values, action.value if action else guess_action(values), str(old))
        new = config_to_json(parse_config(conversion.config, ACTIONS[conversion.action], origin=str(old)))
        _write_config(new, out)
        report_conversion(old, conversion)
        if conversion.checkpoint:
            typer.echo(
                f"note: it needs `steelgen import isdm {conversion.checkpoint} {conversion.imported} -c {old}`",
                err=True,
            )


def _write_config(values: dict[str, Any], out: Path | None) -> None:
    from steelgen.files import save_json

    if out:
        save_json(out, values)
    else:
        print_json(values)


def _find_action(name: str) -> type:
    from steelgen.config.actions import ACTIONS
    from steelgen.errors import InputError

    if name not in ACTIONS:
        raise InputError(f"no action {name!r}; known: {', '.join(ACTIONS)}")
    return ACTIONS[name]
