"""Export of a dataset folder or a samples folder to the formats of other tools."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from steelgen.data.exporters.coco import write_coco
from steelgen.data.exporters.cvat import write_cvat
from steelgen.data.exporters.hf import write_hf, write_parquet
from steelgen.data.exporters.labelme import write_labelme
from steelgen.data.exporters.nnunet import check_nnunet, write_nnunet
from steelgen.data.exporters.pairs import ExportItem, ExportPair
from steelgen.data.exporters.roi import write_roi
from steelgen.data.exporters.voc import write_voc
from steelgen.data.exporters.yolo import write_yolo
from steelgen.data.folder import (
    SPLITS,
    DatasetInfo,
    find_images,
    list_pairs,
    list_samples,
    list_splits,
    load_dataset_info,
    load_instances,
    load_metadata,
    load_pair,
)
from steelgen.data.rejects import load_rejects
from steelgen.errors import InputError
from steelgen.files import check_output_free, new_folder

PROVENANCE_FILE = "provenance.csv"

Report = Callable[[int, int], None]
"""Progress callback, called with (done, total)."""


class Writer(NamedTuple):
    """Writer of one format."""

    write: Callable[[Path, DatasetInfo, Iterator[ExportPair]], None]
    holds_ignored: bool
    """Whether the format distinguishes ignored pixels from background."""


WRITERS = {
    "coco": Writer(write_coco, False),
    "yolo": Writer(write_yolo, False),
    "nnunet": Writer(write_nnunet, True),
    "voc": Writer(write_voc, True),
    "labelme": Writer(write_labelme, True),
    "cvat": Writer(write_cvat, True),
    "roi": Writer(write_roi, True),
    "hf": Writer(write_hf, True),
    "parquet": Writer(write_parquet, True),
}


@dataclass(frozen=True)
class ExportOptions:
    """Selection of the pairs to export."""

    splits: tuple[str, ...] = ()
    """Splits to export; empty means all."""
    added: Path | None = None
    """Samples folder whose pairs are added to the training split."""
    ratio: float | None = None
    """Number of generated pairs per real training pair; None means all pairs of `added`."""
    seed: int = 0
    """Determines which generated pairs are selected by `ratio`."""


@dataclass(frozen=True)
class ExportSummary:
    """Result of an export."""

    counts: dict[str, dict[str, int]]
    """{split: {"real": …, "generated": …}}."""
    rejected: int = 0
    """Number of pairs omitted because of rejects.txt."""
    lost_ignored_pixels: int = 0
    """Number of ignored pixels that the format does not distinguish from background."""
    class_names: list[str] = field(default_factory=list)


def export_dataset(
    kind: str, src: Path, out: Path, options: ExportOptions | None = None, report: Report | None = None
) -> ExportSummary:
    """Exports the pairs of a dataset folder, or the samples of a samples folder as training pairs.

    Omits the pairs in rejects.txt. provenance.csv lists the origin of each pair. `out` is created when it is complete.

    Raises:
        InputError: if the kind is unknown, a folder is invalid or has no masks, the classes of the two folders differ,
            there are too few samples for the ratio, or `out` is in use.
    """
    if kind not in WRITERS:
        raise InputError(f"export kind {kind!r}: must be one of {', '.join(WRITERS)}")
    options = options or ExportOptions()
    check_output_free(out)
    infos = {folder: load_dataset_info(folder) for folder in (src, options.added) if folder}
    info = infos[src]
    items, rejected = collect_items(src, options.splits)
    if options.added:
        if (added_names := infos[options.added].class_names) != info.class_names:
            raise InputError(
                f"{options.added}: classes ({', '.join(added_names)}) differ from those of {src} "
                f"({', '.join(info.class_names)})"
            )
        added, more = collect_items(options.added, ())
        rejected += more
        items = [*items, *_choose_added(items, added, options)]
    elif options.ratio is not None:
        raise InputError("ratio: needs a samples folder to add")
    if not info.num_classes:
        raise InputError(f"{src}: has no masks; there is nothing to export")
    if kind == "nnunet":
        check_nnunet(out, info)
    # Writers expect the pairs sorted by split.
    items = _make_names_unique(sorted(items, key=lambda item: SPLITS.index(item.split)))
    ignored = Counter[str]()
    with new_folder(out) as working:
        WRITERS[kind].write(working, info, _load_items(items, infos, ignored, report))
        _save_provenance(working / PROVENANCE_FILE, items)
    counts: dict[str, Counter[str]] = {}
    for item in items:
        counts.setdefault(item.split, Counter(real=0, generated=0))[item.provenance["origin"]] += 1
    lost = 0 if WRITERS[kind].holds_ignored else ignored.total()
    return ExportSummary({split: dict(each) for split, each in counts.items()}, rejected, lost, info.class_names)


def collect_items(root: Path, splits: tuple[str, ...]) -> tuple[list[ExportItem], int]:
    """Lists the pairs of a dataset folder or samples folder, without rejected ones.

    Args:
        splits: splits to list; empty means all.

    Returns:
        The items, sorted within each split; the number of rejected pairs.

    Raises:
        InputError: if there are no pairs, or a split does not exist.
    """
    rows = load_metadata(root)
    is_samples = (root / "samples").is_dir()
    generated_here = (root / "sampling.json").is_file()
    present = ["train"] if is_samples else list_splits(root)
    for split in splits:
        if split not in present:
            raise InputError(f"{root}: no split {split!r} (present: {', '.join(present)})")
    items, rejected = [], 0
    for split in splits or present:
        rejects = load_rejects(root / "samples" if is_samples else find_images(root, split))
        for pair in list_samples(root) if is_samples else list_pairs(root, split, with_rejects=True):
            if pair.mask is None:
                missing = f"{pair.image}: has no mask of the same name in {root / 'labels'}"
                raise InputError(missing if is_samples else f"{root}: has no masks; there is nothing to export")
            if pair.stem in rejects:
                rejected += 1
                continue
            row = rows.get(pair.image.relative_to(root).as_posix(), {})
            items.append(ExportItem(pair.stem, split, pair, root, bool(row.get("synthetic", generated_here)), row))
    if not items:
        raise InputError(f"{root}: has no pairs to export; all are rejected")
    return items, rejected


def _choose_added(real: list[ExportItem], added: list[ExportItem], options: ExportOptions) -> list[ExportItem]:
    """Selects the generated pairs that are added to the training split."""
    if options.ratio is not None:
        wanted = round(options.ratio * sum(item.split == "train" for item in real))
        if not 0 < wanted <= len(added):
            raise InputError(
                f"ratio {options.ratio:g}: needs {wanted} generated pairs, but {options.added} has {len(added)}"
            )
        chosen = np.random.default_rng(options.seed).choice(len(added), wanted, replace=False)
        added = [added[index] for index in sorted(chosen)]
    return [replace(item, split="train") for item in added]


def _make_names_unique(items: list[ExportItem]) -> list[ExportItem]:
    """Prefixes stems that occur twice with the split, and with the folder if that is not enough."""
    for prefixed in ("{0.split}_{0.name}", "{0.folder.name}_{0.name}"):
        stems = Counter(item.name.casefold() for item in items)
        items = [
            replace(item, name=prefixed.format(item)) if stems[item.name.casefold()] > 1 else item for item in items
        ]
    stems = Counter(item.name.casefold() for item in items)
    for item in items:
        if stems[item.name.casefold()] > 1:
            raise InputError(f"{item.pair.image}: another image would get the same name {item.name!r}")
    return items


def _load_items(
    items: list[ExportItem], infos: dict[Path, DatasetInfo], ignored: Counter[str], report: Report | None
) -> Iterator[ExportPair]:
    """Reads the pairs one at a time, and counts the ignored pixels of each."""
    for number, item in enumerate(items, start=1):
        info = infos[item.folder]
        image, mask = load_pair(item.pair, info)
        ignored[item.name] = int((mask == info.ignore_index).sum())
        yield ExportPair(item, image, mask, load_instances(item.pair, mask.shape))
        if report:
            report(number, len(items))


def _save_provenance(path: Path, items: list[ExportItem]) -> None:
    rows = [item.provenance for item in items]
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
