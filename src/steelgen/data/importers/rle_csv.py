"""Run lengths in a CSV: the Severstal competition's `ImageId,ClassId,EncodedPixels`, down the columns, 1-based."""

from __future__ import annotations

from pathlib import Path

from steelgen.data.annotations import AnnotatedImage, AnnotatedSet, Annotation
from steelgen.data.importers.names import is_background
from steelgen.data.importers.options import ReadOptions
from steelgen.data.importers.sources import ImageIndex, build_set, error_location, read_csv, read_csv_header
from steelgen.data.runlength import parse_pairs
from steelgen.errors import InputError


def read_rle_csv(src: Path, options: ReadOptions) -> AnnotatedSet:
    """Reads a CSV, or the only such CSV in a folder; the images are below its folder.

    The older form `ImageId_ClassId,EncodedPixels` (`a.jpg_3`) is supported, too. Empty EncodedPixels mean no pixels of
    the class. Images that are not in the CSV are all background. Each name in the column `annotator`, which is
    optional, is an annotator.
    """
    table = _find_table(src)
    index = ImageIndex(table.parent, options.skip_missing)
    regions: dict[Path, list[Annotation]] = {path: [] for path in index.paths}
    annotators: dict[Path, dict[str, None]] = {path: {} for path in index.paths}
    seen: set[tuple[Path, int, str]] = set()
    wanted = tuple(name for name in options.class_names if not is_background(name))
    columns = ("imageid", "classid") if "classid" in read_csv_header(table) else ("imageid_classid",)
    for number, row in read_csv(table, (*columns, "encodedpixels")):
        where = f"{table}:{number}"
        with error_location(where):
            name, class_index = _read_name(row, columns, highest=len(wanted) or 254)
        found = index.require(name, where)
        if found is None:
            continue
        annotator = row.get("annotator", "")
        if (found, class_index, annotator) in seen:
            raise InputError(f"{where}: a second row for {name!r:.120} and class {class_index}")
        seen.add((found, class_index, annotator))
        annotators[found][annotator] = None
        if row["encodedpixels"] not in ("", "nan", "NaN"):
            with error_location(where):
                runs = parse_pairs(row["encodedpixels"])
            # A row contains all objects of a class, so it is not an instance.
            regions[found].append(Annotation(class_index, runs=runs, annotator=annotator, is_instance=False))
    used = max((region.class_index for found in regions.values() for region in found), default=1)
    names = wanted or tuple(f"class_{index}" for index in range(1, used + 1))
    images = [
        AnnotatedImage(path, annotations=tuple(found), annotators=tuple(annotators[path]) or ("",))
        for path, found in regions.items()
    ]
    return build_set(table.parent, ["background", *names], images)


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
        raise InputError(f"{src}: has {len(found)} CSV files with EncodedPixels, expected 1; give the path of the file")
    return found[0]


def _read_name(row: dict[str, str], columns: tuple[str, ...], highest: int) -> tuple[str, int]:
    if len(columns) == 2:
        name, class_id = row["imageid"], row["classid"]
    else:
        name, _, class_id = row["imageid_classid"].rpartition("_")
    if not (class_id.isascii() and class_id.isdigit() and len(class_id) < 10) or not 1 <= int(class_id) <= highest:
        raise InputError(f"ClassId {class_id!r:.40} must be an integer from 1 to {highest}")
    return name, int(class_id)
