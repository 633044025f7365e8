"""`steelgen studio`."""

from __future__ import annotations

import secrets
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from steelgen.cli.output import errors_as_lines, fail


def studio_command(
    generator: Annotated[
        Path,
        typer.Argument(help="A run folder, a checkpoint, an export, or a model that comes with steelgen."),
    ] = Path("bundled:uhcs"),
    dataset: Annotated[
        Path | None,
        typer.Option(help="The dataset folder it was trained on: masks to take, and neighbors, to see copies."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Folder of samples that kept pairs go to; a later call adds to it.")
    ] = Path("studio-samples"),
    host: Annotated[
        str, typer.Option(help="Address to listen at; any but this machine's own asks visitors for the token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen at; 0 takes any that is free.")] = 7860,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="STEELGEN_STUDIO_TOKEN",
            help="What visitors must bring; without it one is made up where it is needed.",
        ),
    ] = None,
) -> None:
    """Paint masks in the browser and draw micrographs for them; look through folders; watch a run."""
    if find_spec("gradio") is None:
        fail("studio needs gradio, which is not installed: pip install 'steelgen[studio]'")
    typer.echo(f"loading {generator}", err=True)
    with errors_as_lines():
        from steelgen.studio.server import LOOPBACK, build_app, build_page, serve
        from steelgen.studio.session import Studio

        studio = Studio(generator, dataset, out)
        run = generator if (generator / "config.json").is_file() else None
        page = build_page(studio, [dataset] if dataset else [], run)
        if host not in LOOPBACK:
            token = token or secrets.token_urlsafe(24)

        def announce(address: str) -> None:
            typer.echo(f"steelgen studio: {address}/{f'?token={token}' if token else ''}  (Ctrl-C ends it)")

        serve(build_app(page, token or None), host, port, announce)
