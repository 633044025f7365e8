"""`steelgen doctor`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from steelgen.cli.output import errors_as_lines, print_json


@errors_as_lines()
def doctor_command(
    run_dir: Annotated[Path, Option(help="Folder for runs; its disk is tested.")] = Path("runs"),
    as_json: Annotated[bool, Option("--json", help="Print findings as JSON.")] = False,
) -> None:
    """Check this machine: Python, torch, GPUs, disk, weights, Slurm; exit code 1 if something must be fixed."""
    from steelgen.doctor import examine_machine

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
