"""The `steelgen` command."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer
from typer import Option

from steelgen import __version__
from steelgen.cli.config import config_app
from steelgen.cli.data_images import data_app
from steelgen.cli.describe import describe_command
from steelgen.cli.doctor import doctor_command
from steelgen.cli.evaluate import compare_command, evaluate_command, utility_command
from steelgen.cli.isdm import export_app, import_app
from steelgen.cli.plan import plan_command
from steelgen.cli.sample import interpolate_command, sample_command
from steelgen.cli.segment import segment_app
from steelgen.cli.slurm import slurm_app
from steelgen.cli.studio import studio_command
from steelgen.cli.train import ema_command, finetune_command, train_command, tune_batch_command
from steelgen.cli.workflow import workflow_command

app = typer.Typer(
    name="steelgen",
    help="Labeled synthetic micrographs: train on a few annotated ones, sample many more with exact masks, measure "
    "whether they help.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"steelgen {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


app.command("plan")(plan_command)
app.command("train")(train_command)
app.command("finetune")(finetune_command)
app.command("tune-batch")(tune_batch_command)
app.command("ema")(ema_command)
app.command("sample")(sample_command)
app.command("interpolate")(interpolate_command)
app.command("studio")(studio_command)
app.command("evaluate")(evaluate_command)
app.command("describe")(describe_command)
app.command("utility")(utility_command)
app.command("workflow")(workflow_command)
app.command("pipeline", hidden=True)(workflow_command)  # its name before version 0.2
app.command("doctor")(doctor_command)
app.command("compare")(compare_command)
app.add_typer(slurm_app, name="slurm", help="Print and submit batch scripts, and show the progress of a run.")
app.add_typer(config_app, name="config", help="Show, document and convert configs.")
app.add_typer(data_app, name="data", help="Import, check, tile, split and export datasets.")
app.add_typer(segment_app, name="segment", help="Train a baseline segmenter and predict masks with it.")
app.add_typer(import_app, name="import", help="Import checkpoints of other programs.")
app.add_typer(export_app, name="export", help="Export checkpoints for other programs.")


def main() -> None:
    """Entry point of the console script."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Non-UTF-8 terminals show "?" for missing characters; for stderr Python does this by default.
        sys.stdout.reconfigure(errors="replace")
    app(prog_name="steelgen" if sys.argv[0].endswith("__main__.py") else None)
