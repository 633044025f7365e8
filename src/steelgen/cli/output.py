"""How the command line speaks: one-line errors, tables, progress bars that are silent in a log."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from steelgen.errors import InputError

if TYPE_CHECKING:
    from rich.progress import Progress


def fail(message: str) -> NoReturn:
    """Prints one line to stderr and leaves with exit code 2."""
    typer.echo(f"steelgen: {' '.join(message.split())}", err=True)
    raise typer.Exit(2)


@contextmanager
def errors_as_lines() -> Iterator[None]:
    """Turns `InputError` and failures of the file system into one line and exit code 2; bugs keep their traceback."""
    try:
        yield
    except InputError as error:
        fail(str(error))
    except BrokenPipeError:
        raise  # `| head` has read enough; typer and rich end quietly then, with Python's exit code 1
    except OSError as error:
        fail(f"{error.filename or 'file system'}: {error.strerror or error}")


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints a table; numbers are aligned right. Outside a terminal it is up to 160 characters wide."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Text rather than strings, in which rich takes [words] in brackets for its markup.
    table = Table(title=Text(title, "table.title"), title_justify="left", box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float) or row[index] in ("", "–") for row in rows)
        table.add_column(Text(column), justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def print_json(value: Any) -> None:
    """Prints a value as indented JSON on stdout; escaped, so that any terminal passes all of it on."""
    typer.echo(json.dumps(value, indent=2))


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


_shown: list[Progress] = []
"""The bar that the terminal shows now."""


@contextmanager
def progress_bar(title: str, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Yields a function of (done, total) that moves a bar on stderr; in a log it is a line every tenth of the way.

    A bar appears when it first moves, and gives way to another that begins inside its block.

    Args:
        quiet: nothing is shown.
    """
    if quiet:
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    if not sys.stderr.isatty():
        told = [-1]

        def print_line(done: int, total: int) -> None:
            tenth = 10 * done // max(total, 1)
            if tenth > told[0]:
                told[0] = tenth
                typer.echo(f"{title}: {done}/{total}", err=True)

        yield print_line
        return
    columns = (
        TextColumn(title),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    progress = Progress(*columns, console=Console(stderr=True))
    task = progress.add_task(title, total=None)

    def move(done: int, total: int) -> None:
        if _shown[-1:] != [progress]:
            # A terminal holds one bar: the one that moved last.
            for earlier in _shown:
                earlier.stop()
            _shown[:] = [progress]
            progress.start()
        progress.update(task, completed=done, total=total)

    try:
        yield move
    finally:
        progress.stop()
        _shown.clear()
