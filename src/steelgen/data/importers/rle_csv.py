"""Run lengths in a CSV: the Severstal competition's `ImageId,ClassId,EncodedPixels`, column by column, from 1."""

from __future__ import annotations

from pathlib import Path

from steelgen.data.annotations import AnnotatedImage, AnnotatedSet, Annotation
from steelgen.data.folder import DatasetInfo
from steelgen.data.importers.options import ReadOptions
from steelgen.data.importers.sources import ImageIndex, list_files, parent_of, read_csv, read_csv_header
from steelgen.data.runlength import parse_pairs
from steelgen.errors import InputError


def read_rle_csv(src: Path, options: ReadOptions) -> AnnotatedSet:
    """Reads run lengths of images that lie below the CSV's folder.

    `ImageId_ClassId,EncodedPixels` (`a.jpg_3`), the competition's older form, reads too. Empty EncodedPixels say that
    the image holds nothing of the class. Images that the CSV does not name are read as all background. Each name in a
    column `annotator`, where there is one, is an annotator.

    Args:
        src: the CSV, or a folder with one such CSV.

    Raises:
        InputError: if a column is missing, a row cannot be read, or an image is not there.
    """
    table = _find_table(src)
    paths = list_files(table.parent)
    index = ImageIndex(table.parent, paths)
    rows: dict[Path, list[Annotation]] = {path: [] for path in paths}
    annotators: dict[Path, dict[str, None]] = {path: {} for path in paths}
    seen: set[tuple[Path, int, str]] = set()
    chosen = tuple(name for name in options.class_names if name.lower() != "background")
    highest = len(chosen) or 254
    columns = ("imageid", "classid") if "classid" in read_csv_header(table) else ("imageid_classid",)
    for number, row in read_csv(table, (*columns, "encodedpixels")):
        try:
            name, class_index = _read_name(row, columns, highest)
            found = index.find(name)
            if found is None:
                if options.skip_missing:
                    continue
                raise InputError(f"no image {name!r:.120} below {table.parent} (--skip-missing leaves it out)")
            annotator = row.get("annotator", "")
            if (found, class_index, annotator) in seen:
                raise InputError(f"a second row for {name!r:.120} and class {class_index}")
            seen.add((found, class_index, annotator))
            annotators[found][annotator] = None
            if row["encodedpixels"] not in ("", "nan", "NaN"):
                runs = parse_pairs(row["encodedpixels"])
                # Runs mark all the class's objects together, not one.
                rows[found].append(Annotation(class_index, runs=runs, annotator=annotator, is_instance=False))
        except InputError as error:
            raise InputError(f"{table}:{number}: {error}") from None
    used = max((annotation.class_index for marked in rows.values() for annotation in marked), default=1)
    names = chosen or tuple(f"class_{index}" for index in range(1, used + 1))
    info = DatasetInfo(name=table.parent.resolve().name, class_names=["background", *names])
    images = [
        AnnotatedImage(
            path=path,
            stem=path.stem,
            parent=parent_of(path.stem),
            annotations=tuple(marked),
            annotators=tuple(annotators[path]) or ("",),
        )
        for path, marked in rows.items()
    ]
    if not images:
        raise InputError(f"{table.parent}: holds no images")
    return AnnotatedSet(info, images)


def _find_table(src: Path) -> Path:
    if src.is_file():
        return src
    if not src.is_dir():
        raise InputError(f"{src}: no such file or folder")
    found = [
        path
        for path in sorted(src.iterdir())
        if path.suffix.lower() == ".csv" and not path.name.startswith(".") and "encodedpixels" in read_csv_header(path)
    ]
    if len(found) != 1:
        raise InputError(f"{src}: {len(found)} CSV files with a column EncodedPixels; there must be one, or name it")
    return found[0]


def _read_name(row: dict[str, str], columns: tuple[str, ...], highest: int) -> tuple[str, int]:
    if len(columns) == 2:
        name, class_id = row["imageid"], row["classid"]
    else:
        name, _, class_id = row["imageid_classid"].rpartition("_")
    if not (class_id.isascii() and class_id.isdigit()) or not 1 <= int(class_id) <= highest:
        raise InputError(f"ClassId {class_id!r:.40} is not a whole number from 1 to {highest}")
    return name, int(class_id)
