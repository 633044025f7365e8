"""`steelgen doctor`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from steelgen.cli.output import errors_as_lines, print_json


def doctor_command(
    run_dir: Annotated[Path, typer.Option(help="Where runs will be written: its disk is tried.")] = Path("runs"),
    as_json: Annotated[bool, typer.Option("--json", help="Print findings as JSON.")] = False,
) -> None:
    """Look over this machine: Python, torch, GPUs, disk, weights, Slurm. Exit code 1 if something must be mended."""
    from steelgen.doctor import examine_machine

    with errors_as_lines():
        findings = examine_machine(run_dir)
    if as_json:
        print_json([asdict(finding) for finding in findings])
    else:
        width = max(len(finding.name) for finding in findings)
        for finding in findings:
            typer.echo(f"{finding.state:<5}{finding.name:<{width}}  {finding.value}")
            if finding.advice:
                typer.echo(f"{'':<{5 + width}}  → {finding.advice}")
    if any(finding.state == "bad" for finding in findings):
        raise typer.Exit(1)
