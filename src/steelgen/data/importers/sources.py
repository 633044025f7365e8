"""Files of a source folder: listing, lookup of images, and reading of text, CSV and XML."""

from __future__ import annotations

import csv
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree
from xml.parsers import expat

from steelgen.data.annotations import AnnotatedImage, AnnotatedSet
from steelgen.data.folder import IMAGE_SUFFIXES, DatasetInfo
from steelgen.errors import InputError, first_line
from steelgen.files import load_text

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "test": "test",
    "testing": "test",
}
"""Split names in sources, and the splits they become."""
_MAX_FIELD = 50_000_000
"""Largest CSV field in characters; polygons and run lengths of large micrographs are long."""


@contextmanager
def error_location(where: object) -> Iterator[None]:
    """Prefixes the message of an `InputError` with its location."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def build_set(
    root: Path, class_names: list[str], images: Iterable[AnnotatedImage], origin: Path | None = None
) -> AnnotatedSet:
    """Builds a set with the name of its folder; raises an `InputError` at `origin`, or `root`, without images."""
    found = list(images)
    if not found:
        raise InputError(f"{origin or root}: no annotated images found")
    return AnnotatedSet(DatasetInfo(name=root.resolve().name, class_names=class_names), found)


def list_files(root: Path, suffixes: Iterable[str] = IMAGE_SUFFIXES) -> list[Path]:
    """Lists all files below `root` with one of the suffixes, sorted; skips hidden files and folders.

    Raises:
        InputError: if `root` is not a folder, or a file is a link to outside of it.
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
                    raise InputError(f"{path}: is a link to outside of {root}")
                found.append(path)
    return sorted(found)


def base_name(name: str) -> str:
    """Returns the last part of a path or URL of any platform, without its query."""
    return re.split(r"[\\/]", name.partition("?")[0])[-1]


def leaves_archive(name: str) -> bool:
    """Whether a path in an archive is absolute, names a drive, or contains `..`."""
    parts = name.replace("\\", "/").split("/")
    return not parts[0] or ":" in parts[0] or ".." in parts


class ImageIndex:
    """Images below a folder, found by base name or by stem.

    Args:
        root: folder of the images.
        skip_missing: return None for missing images, instead of raising an error.
        paths: image files; None means all below `root`.
    """

    def __init__(self, root: Path, skip_missing: bool = False, paths: Iterable[Path] | None = None) -> None:
        self.root = root
        self.paths = list_files(root) if paths is None else list(paths)
        self._skip_missing = skip_missing
        self._by_name: dict[str, list[Path]] = defaultdict(list)
        self._by_stem: dict[str, list[Path]] = defaultdict(list)
        for path in self.paths:
            self._by_name[path.name].append(path)
            self._by_stem[self.stem(path)].append(path)

    @staticmethod
    def stem(path: Path) -> str:
        """Returns the file stem, without the .ome of an OME-TIFF."""
        return path.stem.removesuffix(".ome")

    def find(self, name: str, hint: str = "") -> Path | None:
        """Finds an image by base name; None if it is missing.

        Args:
            name: file name, with or without folders.
            hint: folder name (such as a split) that selects one of several images with this name.

        Raises:
            InputError: if several images match equally well.
        """
        paths = self._by_name.get(base_name(name), [])
        if len(paths) > 1:
            folders = [part for part in re.split(r"[\\/]", name)[:-1] if part not in ("", ".", "..")]
            wanted = tuple(folders) or ((hint,) if hint else ())
            paths = [path for path in paths if path.parent.parts[-len(wanted) or None :] == wanted] or paths
            paths = [path for path in paths if hint in path.parent.parts] or paths if hint else paths
        if len(paths) > 1:
            raise InputError(f"{paths[0]}: {paths[1]} has the same name; {name!r:.120} matches both")
        return paths[0] if paths else None

    def find_stem(self, stem: str, near: Path) -> Path | None:
        """Finds an image by stem, of several the one in the folder of `near`; None if it is missing.

        Raises:
            InputError: if several images match equally well.
        """
        paths = self._by_stem.get(stem.removesuffix(".ome"), [])
        if len(paths) > 1:
            paths = [path for path in paths if path.parent == near.parent] or paths
        if len(paths) > 1:
            raise InputError(f"{near}: matches both {paths[0]} and {paths[1]}")
        return paths[0] if paths else None

    def require(self, name: str, where: object, hint: str = "") -> Path | None:
        """Finds an image by base name; None if it is missing and missing images are skipped.

        Raises:
            InputError: names `where`; if there is no image or several match.
        """
        return self._require(self.find(name, hint), name, where)

    def require_stem(self, stem: str, near: Path) -> Path | None:
        """Finds an image by stem, like `require`; errors name `near`."""
        return self._require(self.find_stem(stem, near), stem, near)

    def _require(self, found: Path | None, name: str, where: object) -> Path | None:
        if found is None and not self._skip_missing:
            raise InputError(f"{where}: no image {name!r:.120} below {self.root} (--skip-missing skips it)")
        return found


def find_only_file(src: Path, suffix: str) -> Path:
    """Returns `src` if it is a file, otherwise the only file with the suffix below it.

    Raises:
        InputError: if there is none, or several.
    """
    if src.is_file():
        return src
    found = list_files(src, (suffix,))
    if len(found) != 1:
        raise InputError(f"{src}: has {len(found)} {suffix[1:].upper()} files, expected 1; give the path of the file")
    return found[0]


def read_lines(path: Path) -> list[str]:
    """Reads the lines of a text file, without surrounding whitespace; see `load_text`."""
    return [line.strip() for line in load_text(path).splitlines()]


def read_xml(path: Path) -> ElementTree.Element:
    """Reads an XML file without a document type, whose entities could expand without limit.

    Raises:
        InputError: if the file is missing, not XML, or declares a document type.
    """

    def refuse(*declared: object) -> NoReturn:
        raise InputError(f"{path}: declares a document type, which is not supported")

    # This parser stops at an error in a handler, unlike ElementTree's.
    guard = expat.ParserCreate()
    guard.StartDoctypeDeclHandler = refuse
    try:
        data = path.read_bytes()
        guard.Parse(data, True)
        return ElementTree.fromstring(data)
    except InputError:
        raise
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path}: no such file") from None
    except (expat.ExpatError, ElementTree.ParseError, ValueError, LookupError) as error:
        raise InputError(f"{path}: not readable XML: {first_line(error)}") from None


def read_csv_header(path: Path) -> list[str]:
    """Reads the column names of a CSV in lower case; empty for an empty file.

    Raises:
        InputError: if the header is not valid CSV or has a column twice.
    """
    names = [name.strip().lower() for name in next(_iterate_csv(path), (1, []))[1]]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}:1: two columns have the name {name!r:.60}")
    return names


def read_csv(path: Path, columns: Iterable[str]) -> list[tuple[int, dict[str, str]]]:
    """Reads a CSV with a header, separated by `;`, `,` or tabs, in UTF-8, with any line endings.

    Returns:
        (line number, {column in lower case: text}) of each row that is not empty.

    Raises:
        InputError: if one of `columns` is missing or a row and the header have different numbers of fields.
    """
    header = read_csv_header(path)
    for column in columns:
        if column.lower() not in header:
            raise InputError(f"{path}:1: no column {column!r} (has: {', '.join(header)[:200]})")
    rows = []
    for number, fields in islice(_iterate_csv(path), 1, None):
        texts = [field.strip() for field in fields]
        if any(texts) and len(texts) != len(header):
            raise InputError(f"{path}:{number}: has {len(texts)} fields, but the header has {len(header)}")
        if any(texts):
            rows.append((number, dict(zip(header, texts, strict=True))))
    return rows


def _iterate_csv(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields (line number, fields) of all rows, including the header."""
    csv.field_size_limit(_MAX_FIELD)
    with open(path, encoding="utf-8-sig", newline="") as lines:
        try:
            delimiter = max(";,\t", key=lines.readline(1_000_000).count)
            lines.seek(0)
            reader = csv.reader(lines, delimiter=delimiter, strict=True)
            for fields in reader:
                yield reader.line_num, fields
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 text: {error.reason} at byte {error.start}") from None
        except csv.Error as error:
            raise InputError(f"{path}:{reader.line_num}: {error}") from None
