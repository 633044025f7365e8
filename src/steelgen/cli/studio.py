"""`steelgen studio`."""

from __future__ import annotations

import secrets
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from steelgen.cli.output import errors_as_lines, fail, log


@errors_as_lines()
def studio_command(
    generator: Annotated[Path, Argument(help="Run folder, checkpoint, export or bundled generator.")] = Path(
        "bundled:uhcs"
    ),
    dataset: Annotated[
        Path | None, Option(help="Training dataset folder, as a source of masks and to find copied images.")
    ] = None,
    out: Annotated[
        Path, Option("--out", "-o", help="Samples folder for the pairs you keep; later calls add to it.")
    ] = Path("studio-samples"),
    host: Annotated[
        str, Option(help="Address to listen on; visitors need the token unless it is local.")
    ] = "127.0.0.1",
    port: Annotated[int, Option(min=0, max=65535, help="Port to listen on; 0 picks a free one.")] = 7860,
    token: Annotated[
        str | None,
        Option(envvar="STEELGEN_STUDIO_TOKEN", help="Access token. Default: random for non-local addresses."),
    ] = None,
) -> None:
    """Open the browser interface: paint masks and generate micrographs, browse folders, watch a run."""
    if find_spec("gradio") is None:
        fail("studio needs gradio, which is not installed: pip install 'steelgen[studio]'")
    log(f"loading {generator}")
    from steelgen.studio.server import LOOPBACK, build_app, build_page, serve
    from steelgen.studio.session import Studio

    studio = Studio(generator, dataset, out)
    run = generator if (generator / "config.json").is_file() else None
    page = build_page(studio, [dataset] if dataset else [], run)
    if host not in LOOPBACK:
        token = token or secrets.token_urlsafe(24)

    def announce(address: str) -> None:
        typer.echo(f"steelgen studio: {address}/{f'?token={token}' if token else ''}  (Ctrl-C to stop)")

    serve(build_app(page, token or None), host, port, announce)
