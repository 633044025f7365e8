"""Output of the command line: one-line errors, tables, JSON and progress bars."""

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

    from steelgen.config.base import Section


def fail(message: str) -> NoReturn:
    """Prints one line to stderr and exits with code 2."""
    log(f"steelgen: {' '.join(message.split())}")
    raise typer.Exit(2)


@contextmanager
def errors_as_lines() -> Iterator[None]:
    """Turns `InputError` and file system errors into one line and exit code 2; also a decorator of commands."""
    try:
        yield
    except InputError as error:
        fail(str(error))
    except BrokenPipeError:
        raise  # from e.g. `| head`; typer and rich exit quietly with code 1
    except OSError as error:
        fail(f"{error.filename or 'file system'}: {error.strerror or error}")


def log(message: str) -> None:
    """Prints a line to stderr."""
    typer.echo(message, err=True)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Prints a table with numbers aligned right; outside a terminal it is up to 160 characters wide."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    # Text instead of strings, in which rich interprets [words] in brackets as markup.
    table = Table(title=Text(title, "table.title"), title_justify="left", box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float) or row[index] in ("", "–") for row in rows)
        table.add_column(Text(column), justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(Text(f"{value:.4g}" if isinstance(value, float) else str(value)) for value in row))
    Console(width=None if sys.stdout.isatty() else 160).print(table)


def print_json(value: Any) -> None:
    """Prints a value as indented JSON on stdout, escaped to ASCII for any terminal."""
    typer.echo(json.dumps(value, indent=2))


def print_config(settings: Section, silent: bool) -> None:
    """Prints a resolved config as JSON unless `silent`."""
    from steelgen.config.base import config_to_json

    if not silent:
        print_json(config_to_json(settings))


_shown: list[Progress] = []
"""The progress bar currently in the terminal."""


@contextmanager
def progress_bar(title: str, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """Yields a function of (done, total) that updates a bar on stderr; in a log it prints a line per 10 %.

    A bar appears at its first update and is replaced by another that starts inside its block; `quiet` shows none.
    """
    if quiet:
        yield lambda done, total: None
        return
    if not sys.stderr.isatty():
        last_tenth = -1

        def print_line(done: int, total: int) -> None:
            nonlocal last_tenth
            tenth = 10 * done // max(total, 1)
            if tenth > last_tenth:
                last_tenth = tenth
                log(f"{title}: {done}/{total}")

        yield print_line
        return
    from rich import progress as bars
    from rich.console import Console

    columns = (bars.TextColumn(title), bars.BarColumn(), bars.MofNCompleteColumn())
    times = (bars.TimeElapsedColumn(), bars.TimeRemainingColumn())
    progress = bars.Progress(*columns, *times, console=Console(stderr=True))
    task = progress.add_task(title, total=None)

    def update(done: int, total: int) -> None:
        if _shown[-1:] != [progress]:
            # A terminal shows one bar: the one that was updated last.
            for earlier in _shown:
                earlier.stop()
            _shown[:] = [progress]
            progress.start()
        progress.update(task, completed=done, total=total)

    try:
        yield update
    finally:
        progress.stop()
        _shown.clear()
