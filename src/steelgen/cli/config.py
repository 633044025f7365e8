"""`steelgen config show`, `schema`, `reference` and `convert`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from typer import Argument, Option

from steelgen.cli.isdm import IsdmAction, load_utility_settings, report_conversion
from steelgen.cli.options import ConfigOption, SetOption
from steelgen.cli.output import errors_as_lines, log, print_config, print_json
from steelgen.errors import InputError

Action = Literal[
    "train",
    "finetune",
    "sample",
    "evaluate",
    "segment",
    "utility",
    "utility-instance",
    "utility-classify",
    "workflow",
    "families",
    "tune",
    "slurm-profile",
]
OutOption = Annotated[Path | None, Option("--out", "-o", help="File to write. Default: print it.")]
config_app = typer.Typer(no_args_is_help=True)


@config_app.command("show")
@errors_as_lines()
def show_command(
    action: Annotated[Action, Argument(help="Kind of config.")],
    config: ConfigOption,
    overrides: SetOption = None,
) -> None:
    """Print a resolved config: every field, including defaults."""
    from steelgen.config.actions import ACTIONS
    from steelgen.config.base import load_config

    if action == "utility":
        print_config(load_utility_settings(config, overrides), silent=False)
    else:
        print_config(load_config(config, ACTIONS[action], overrides or ()), silent=False)


@config_app.command("schema")
@errors_as_lines()
def schema_command(
    action: Annotated[Action | None, Argument(help="Kind of config.")] = None,
    out: Annotated[Path | None, Option(help="Folder to write the schemas of all configs to.")] = None,
) -> None:
    """Print the JSON Schema of a config, or write all schemas to a folder."""
    from steelgen.config.actions import ACTIONS
    from steelgen.config.base import build_schema
    from steelgen.files import save_json

    if out is not None:
        for name, kind in ACTIONS.items():
            save_json(out / f"{name}.json", build_schema(kind))
        typer.echo(f"{len(ACTIONS)} schemas in {out}")
    elif action is not None:
        print_json(build_schema(ACTIONS[action]))
    else:
        raise InputError(f"config schema: requires an action ({', '.join(ACTIONS)}) or --out FOLDER")


@config_app.command("reference")
@errors_as_lines()
def reference_command(out: OutOption = None) -> None:
    """Print the reference of all config fields as a Markdown page: values, default, meaning."""
    from steelgen.config.reference import build_reference
    from steelgen.files import new_file

    if out:
        with new_file(out) as working:
            working.write_text(build_reference(), encoding="utf-8")
    else:
        typer.echo(build_reference())


@config_app.command("convert")
@errors_as_lines()
def convert_command(
    old: Annotated[Path, Argument(help="An ISDM config.")],
    action: Annotated[IsdmAction | None, Option(help="Its action. Default: guessed from its keys.")] = None,
    out: OutOption = None,
) -> None:
    """Convert an ISDM config to steelgen's; prints the keys without effect, with the reason."""
    from steelgen.config.actions import ACTIONS
    from steelgen.config.base import config_to_json, parse_config
    from steelgen.files import load_json
    from steelgen.isdm.config import convert_isdm_config, guess_action, is_isdm_config
    from steelgen.isdm.utility import is_isdm_study

    values = load_json(old)
    if is_isdm_study(values):
        _write_config(config_to_json(load_utility_settings(old)), out)
        return
    if not is_isdm_config(values):
        raise InputError(f"{old}: not an ISDM config (contains none of its keys, such as diffusion_steps)")
    conversion = convert_isdm_config(values, action or guess_action(values), str(old))
    new = config_to_json(parse_config(conversion.config, ACTIONS[conversion.action], origin=str(old)))
    _write_config(new, out)
    report_conversion(old, conversion)
    if conversion.checkpoint:
        log(f"note: run `steelgen import isdm {conversion.checkpoint} {conversion.imported} -c {old}` first")


def _write_config(values: dict[str, Any], out: Path | None) -> None:
    from steelgen.files import save_json

    if out:
        save_json(out, values)
    else:
        print_json(values)
