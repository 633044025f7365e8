"""Finding and reading the files of a source folder, for all readers."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from steelgen.data.folder import IMAGE_SUFFIXES
from steelgen.errors import InputError

_TILE = re.compile(r"(?P<parent>.+)_(?P<x0>\d{1,7})_(?P<y0>\d{1,7})_(?P<x1>\d{1,7})_(?P<y1>\d{1,7})")
_MAX_FIELD = 50_000_000
"""Longest CSV field in characters; a polygon or a run-length code of a large micrograph is long."""


def list_files(root: Path, suffixes: Iterable[str] = IMAGE_SUFFIXES) -> list[Path]:
    """All files below `root` with one of the suffixes, sorted; hidden files and folders are passed over.

    Raises:
        InputError: if `root` is no folder or a file is a link out of it.
    """
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    home, wanted = root.resolve(), tuple(suffixes)
    found = []
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        for name in names:
            if name.lower().endswith(wanted) and not name.startswith("."):
                path = Path(folder, name)
                if path.is_symlink() and not path.resolve().is_relative_to(home):
                    raise InputError(f"{path}: is a link that leaves {root}")
                found.append(path)
    return sorted(found)


def base_name(name: str) -> str:
    """The last part of a path or URL as some machine wrote it, with / or \\."""
    return re.split(r"[\\/]", name.partition("?")[0])[-1]


def parent_of(stem: str) -> str:
    """The micrograph that a tile was cut from, by the name NAME_x0_y0_x1_y1; else the stem itself."""
    match = _TILE.fullmatch(stem)
    if match and int(match["x0"]) < int(match["x1"]) and int(match["y0"]) < int(match["y1"]):
        return match["parent"]
    return stem


class ImageIndex:
    """Images below a folder, found by base name."""

    def __init__(self, root: Path, paths: Iterable[Path]) -> None:
        self.root = root
        self._by_name: dict[str, list[Path]] = {}
        for path in paths:
            self._by_name.setdefault(path.name, []).append(path)

    def find(self, name: str, hint: str = "") -> Path | None:
        """The image that a source calls `name`; None where there is none.

        Args:
            name: with or without folders in front.
            hint: a folder name that decides between images of the same name (a split).

        Raises:
            InputError: if several images fit equally well.
        """
        paths = self._by_name.get(base_name(name), [])
        if len(paths) > 1:
            folders = [part for part in re.split(r"[\\/]", name)[:-1] if part not in ("", ".", "..")]
            wanted = tuple(folders) or ((hint,) if hint else ())
            paths = [path for path in paths if path.parent.parts[-len(wanted) or None :] == wanted] or paths
            paths = [path for path in paths if hint in path.parent.parts] or paths if hint else paths
        if len(paths) > 1:
            raise InputError(f"{paths[0]}: {paths[1]} has the same name, and {name!r:.120} can mean either")
        return paths[0] if paths else None


def read_csv_header(path: Path) -> list[str]:
    """The column names of a CSV, lower case; empty for a file without text.

    Raises:
        InputError: if the first line is no CSV header or names a column twice.
    """
    with _open_text(path) as lines:
        try:
            first = lines.readline(1_000_000)
            fields = next(csv.reader([first.rstrip("\r\n")], delimiter=_delimiter(first), strict=True), [])
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from None
        except csv.Error as error:
            raise InputError(f"{path}:1: {error}") from None
    names = [name.strip().lower() for name in fields]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}:1: two columns are called {name!r:.60}")
    return names


def read_csv(path: Path, columns: Iterable[str]) -> list[tuple[int, dict[str, str]]]:
    """Reads a CSV with a header, separated by `;`, `,` or tabs, UTF-8 with or without a byte-order mark, any line ends.

    Returns:
        (line number, {column in lower case: text}) a row; empty lines are passed over.

    Raises:
        InputError: if a column of `columns` is missing or a row has more or fewer fields than the header.
    """
    csv.field_size_limit(_MAX_FIELD)
    header = read_csv_header(path)
    for column in columns:
        if column.lower() not in header:
            raise InputError(f"{path}:1: no column {column!r} (has: {', '.join(header)[:200]})")
    rows = []
    with _open_text(path) as lines:
        try:
            first = lines.readline()
            reader = csv.reader(lines, delimiter=_delimiter(first), strict=True)
            for fields in reader:
                number = reader.line_num + 1
                if not any(field.strip() for field in fields):
                    continue
                if len(fields) != len(header):
                    raise InputError(f"{path}:{number}: {len(fields)} fields, but the header has {len(header)}")
                rows.append((number, {name: field.strip() for name, field in zip(header, fields, strict=True)}))
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from None
        except csv.Error as error:
            raise InputError(f"{path}:{reader.line_num + 1}: {error}") from None
    return rows


def _open_text(path: Path) -> TextIO:
    return open(path, encoding="utf-8-sig", newline="")


def _delimiter(header: str) -> str:
    return max(";,\t", key=header.count)
