"""Finding and reading the files of a source folder, for all readers."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import NoReturn, TextIO
from xml.etree import ElementTree
from xml.parsers import expat

from steelgen.data.folder import IMAGE_SUFFIXES
from steelgen.errors import InputError, first_line
from steelgen.files import load_text

_TILE = re.compile(r"(?P<parent>.+)_(?P<x0>\d{1,7})_(?P<y0>\d{1,7})_(?P<x1>\d{1,7})_(?P<y1>\d{1,7})")
SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""What sources call their splits."""
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

    def require(self, name: str, where: object, skip_missing: bool, hint: str = "") -> Path | None:
        """The image that a source calls `name`; None where there is none and that is no error. See `find`.

        Args:
            where: named in errors.

        Raises:
            InputError: if there is none, or several fit.
        """
        found = self.find(name, hint)
        if found is None and not skip_missing:
            raise InputError(f"{where}: no image {name!r:.120} below {self.root} (--skip-missing leaves it out)")
        return found


class StemIndex:
    """Images below a folder, found by the stem of their name; that of an OME-TIFF is what stands before .ome.tif."""

    def __init__(self, root: Path, paths: Iterable[Path]) -> None:
        self.root = root
        self._by_stem: dict[str, list[Path]] = {}
        for path in paths:
            self._by_stem.setdefault(self.stem(path), []).append(path)

    @staticmethod
    def stem(path: Path) -> str:
        """What stands before the suffix of an image's name."""
        return path.stem.removesuffix(".ome")

    def find(self, stem: str, near: Path) -> Path | None:
        """The image of a stem; of several the one in the folder of `near`; None where there is none.

        Raises:
            InputError: if several images fit equally well.
        """
        paths = self._by_stem.get(stem.removesuffix(".ome"), [])
        if len(paths) > 1:
            paths = [path for path in paths if path.parent == near.parent] or paths
        if len(paths) > 1:
            raise InputError(f"{near}: can belong to {paths[0]} as well as to {paths[1]}")
        return paths[0] if paths else None

    def require(self, stem: str, near: Path, skip_missing: bool) -> Path | None:
        """As `find`; None only where a missing image is no error.

        Raises:
            InputError: if there is no image, or several fit.
        """
        found = self.find(stem, near)
        if found is None and not skip_missing:
            raise InputError(f"{near}: no image {stem!r:.120} below {self.root} (--skip-missing leaves it out)")
        return found


def find_only_file(src: Path, suffix: str) -> Path:
    """`src` itself where it is a file, else the only file with a suffix below it.

    Raises:
        InputError: if there is none, or several.
    """
    if src.is_file():
        return src
    found = list_files(src, (suffix,))
    if len(found) != 1:
        raise InputError(f"{src}: {len(found)} {suffix[1:].upper()} files; there must be one, or name it")
    return found[0]


def read_lines(path: Path) -> list[str]:
    """The lines of a text file, without blanks at their ends.

    Raises:
        InputError: if the file is missing or no UTF-8 text.
    """
    return [line.strip() for line in load_text(path).splitlines()]


def read_xml(path: Path) -> ElementTree.Element:
    """Reads an XML file; one with a document type, whose entities could grow without end, is refused.

    Raises:
        InputError: if the file is missing, not XML, or declares a document type.
    """

    def refuse(*declared: object) -> NoReturn:
        raise InputError(f"{path}: declares a document type, which no annotation file needs")

    # An error in a handler stops this parser at once; ElementTree's goes on to the end of what it was given.
    guard = expat.ParserCreate()
    guard.StartDoctypeDeclHandler = refuse
    try:
        data = path.read_bytes()
        guard.Parse(data, True)
        return ElementTree.fromstring(data)
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path}: no such file") from None
    except (expat.ExpatError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise InputError(f"{path}: not readable XML: {first_line(error)}") from None


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
