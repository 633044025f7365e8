"""The `steelgen` command: one module a group of commands."""

from __future__ import annotations

import io
import sys
from typing import Annotated

import typer

from steelgen import __version__
from steelgen.cli.compare import compare_command
from steelgen.cli.config import config_app
from steelgen.cli.data import data_app
from steelgen.cli.describe import describe_command
from steelgen.cli.doctor import doctor_command
from steelgen.cli.ema import ema_command
from steelgen.cli.evaluate import evaluate_command
from steelgen.cli.interpolate import interpolate_command
from steelgen.cli.isdm import export_app, import_app
from steelgen.cli.sample import sample_command
from steelgen.cli.segment import segment_app
from steelgen.cli.slurm import slurm_app
from steelgen.cli.studio import studio_command
from steelgen.cli.train import finetune_command, train_command
from steelgen.cli.tune_batch import tune_batch_command
from steelgen.cli.utility import utility_command
from steelgen.cli.workflow import workflow_command

app = typer.Typer(
    name="steelgen",
    help="Labeled synthetic micrographs: learn from a few annotated ones, draw many more with exact masks, "
    "prove whether they help.",
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
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


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
app.command("pipeline", hidden=True)(workflow_command)  # its name until version 0.2
app.command("doctor")(doctor_command)
app.command("compare")(compare_command)
app.add_typer(slurm_app, name="slurm", help="Batch scripts for a cluster: print, submit, and see how far a run is.")
app.add_typer(config_app, name="config", help="Show a resolved config or its JSON Schema.")
app.add_typer(data_app, name="data", help="Annotated micrographs into a dataset folder, and what is in one.")
app.add_typer(segment_app, name="segment", help="A baseline segmenter of real micrographs, and labels by it.")
app.add_typer(import_app, name="import", help="Take over the checkpoints of other programs.")
app.add_typer(export_app, name="export", help="Write checkpoints for other programs.")


def main() -> None:
    """Entry point of the console script."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal that is not UTF-8 shows "?" for what it lacks; stderr is made so by Python itself.
        sys.stdout.reconfigure(errors="replace")
    app(prog_name="steelgen" if sys.argv[0].endswith("__main__.py") else None)
