"""A dataset folder, or a folder of samples, → the format that another tool reads."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

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
    Pair,
    find_images,
    list_pairs,
    list_samples,
    list_splits,
    load_dataset_info,
    load_metadata,
    load_pair,
)
from steelgen.data.instances import load_instance_ids
from steelgen.data.rejects import load_rejects
from steelgen.errors import InputError
from steelgen.files import check_output_free, new_folder

PROVENANCE_FILE = "provenance.csv"

Report = Callable[[int, int], None]
"""Told (done, total) as the work goes on."""


class Writer(NamedTuple):
    """How one format is written."""

    write: Callable[[Path, DatasetInfo, Iterator[ExportPair]], None]
    holds_ignored: bool
    """Whether pixels to ignore stay apart from the background."""


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
    """Which pairs are exported."""

    splits: tuple[str, ...] = ()
    """Those of the folder that are wanted; all of them where empty."""
    added: Path | None = None
    """A folder of samples whose pairs join the training split."""
    ratio: float | None = None
    """Generated pairs for each real training pair; where None all of them."""
    seed: int = 0
    """Decides which generated pairs are taken where not all are."""


@dataclass(frozen=True)
class ExportSummary:
    """What was written."""

    counts: dict[str, dict[str, int]]
    """{split: {"real": …, "generated": …}}."""
    rejected: int = 0
    """Pairs left out since rejects.txt names them."""
    lost_ignored_pixels: int = 0
    """Pixels to ignore that the format cannot tell from background."""
    class_names: list[str] = field(default_factory=list)


def export_dataset(
    kind: str, src: Path, out: Path, options: ExportOptions | None = None, report: Report | None = None
) -> ExportSummary:
    """Writes the pairs of a dataset folder, or of what `steelgen sample` wrote, in the format of another tool.

    Samples are training pairs. Those that a rejects.txt names are left out. provenance.csv tells of every item where
    it comes from. `out` appears when all of it is there.

    Raises:
        InputError: if the kind is unknown, a folder cannot be used or holds no masks, the classes of the two folders
            differ, there are too few samples for the ratio, or `out` is in use.
    """
    if kind not in WRITERS:
        raise InputError(f"export kind {kind!r}: known are {', '.join(WRITERS)}")
    options = options or ExportOptions()
    check_output_free(out)
    info = load_dataset_info(src)
    items, rejected = collect_items(src, options.splits)
    if options.added:
        added_info = load_dataset_info(options.added)
        if added_info.class_names != info.class_names:
            raise InputError(
                f"{options.added}: its classes ({', '.join(added_info.class_names)}) are not those of {src} "
                f"({', '.join(info.class_names)})"
            )
        added, more = collect_items(options.added, ())
        rejected += more
        items = [*items, *_choose_added(items, added, options)]
    elif options.ratio is not None:
        raise InputError("ratio: means nothing without a folder of samples to add")
    if not info.num_classes:
        raise InputError(f"{src}: holds images without masks; there is nothing to export")
    if kind == "nnunet":
        check_nnunet(out, info)
    # Writers take one split after the other.
    items = _name_apart(sorted(items, key=lambda item: SPLITS.index(item.split)))
    ignored = Counter[str]()
    infos = {src: info} | ({options.added: added_info} if options.added else {})
    with new_folder(out) as working:
        WRITERS[kind].write(working, info, _load_items(items, infos, ignored, report))
        _save_provenance(working / PROVENANCE_FILE, items)
    counts: dict[str, Counter[str]] = {}
    for item in items:
        counts.setdefault(item.split, Counter(real=0, generated=0))[item.provenance["origin"]] += 1
    lost = 0 if WRITERS[kind].holds_ignored else ignored.total()
    return ExportSummary({split: dict(each) for split, each in counts.items()}, rejected, lost, info.class_names)


def collect_items(root: Path, splits: tuple[str, ...]) -> tuple[list[ExportItem], int]:
    """The pairs of a dataset folder or a folder of samples, without those that a rejects.txt names.

    Args:
        splits: those wanted; all where empty.

    Returns:
        (the items, sorted within each split; how many were left out).

    Raises:
        InputError: if there are no pairs, or a split is not there.
    """
    rows = load_metadata(root)
    is_samples = (root / "samples").is_dir()
    made_here = (root / "sampling.json").is_file()
    present = ["train"] if is_samples else list_splits(root)
    for split in splits:
        if split not in present:
            raise InputError(f"{root}: no split {split!r} (present: {', '.join(present)})")
    items, rejected = [], 0
    for split in splits or present:
        rejects = load_rejects(root / "samples" if is_samples else find_images(root, split))
        for pair in list_samples(root) if is_samples else list_pairs(root, split, with_rejects=True):
            if pair.mask is None and is_samples:
                raise InputError(f"{pair.image}: has no mask of the same name in {root / 'labels'}")
            if pair.mask is None:
                raise InputError(f"{root}: holds images without masks; there is nothing to export")
            if pair.stem in rejects:
                rejected += 1
                continue
            row = rows.get(pair.image.relative_to(root).as_posix(), {})
            instances = root / split / "instances" / f"{pair.stem}.png"
            items.append(
                ExportItem(
                    name=pair.stem,
                    split=split,
                    image=pair.image,
                    mask=pair.mask,
                    instances=instances if instances.is_file() else None,
                    folder=root,
                    generated=bool(row.get("synthetic", made_here)),
                    metadata=row,
                )
            )
    if not items:
        raise InputError(f"{root}: no pairs are left to export")
    return items, rejected


def _choose_added(real: list[ExportItem], added: list[ExportItem], options: ExportOptions) -> list[ExportItem]:
    """The generated pairs that join the training split."""
    if options.ratio is not None:
        wanted = round(options.ratio * sum(item.split == "train" for item in real))
        if not 0 < wanted <= len(added):
            raise InputError(
                f"ratio {options.ratio:g}: asks for {wanted} generated pairs, {options.added} holds {len(added)}"
            )
        chosen = np.random.default_rng(options.seed).choice(len(added), wanted, replace=False)
        added = [added[index] for index in sorted(chosen)]
    return [replace(item, split="train") for item in added]


def _name_apart(items: list[ExportItem]) -> list[ExportItem]:
    """Puts the split in front of stems that occur twice, and the folder where that is not enough.

    Raises:
        InputError: if names still clash.
    """
    for rename in (None, "{0.split}_{0.name}", "{0.folder.name}_{0.name}"):
        stems = Counter(item.name.casefold() for item in items)
        if rename and stems.total() > len(stems):
            items = [
                replace(item, name=rename.format(item)) if stems[item.name.casefold()] > 1 else item for item in items
            ]
    stems = Counter(item.name.casefold() for item in items)
    if stems.total() > len(stems):
        clash = next(item for item in items if stems[item.name.casefold()] > 1)
        raise InputError(f"{clash.image}: another image would get the same name {clash.name!r}")
    return items


def _load_items(
    items: list[ExportItem], infos: dict[Path, DatasetInfo], ignored: Counter[str], report: Report | None
) -> Iterator[ExportPair]:
    """Reads one pair after the other, and counts the ignored pixels of each."""
    for number, item in enumerate(items, start=1):
        info = infos[item.folder]
        image, mask = load_pair(Pair(item.name, item.image, item.mask), info)
        instances = load_instance_ids(item.instances) if item.instances else None
        if instances is not None and instances.shape != mask.shape:
            raise InputError(f"{item.instances}: is not of its mask's size {mask.shape[1]}x{mask.shape[0]}")
        ignored[item.name] = int((mask == info.ignore_index).sum())
        yield ExportPair(item, image, mask, instances)
        if report:
            report(number, len(items))


def _save_provenance(path: Path, items: list[ExportItem]) -> None:
    rows: list[dict[str, Any]] = [item.provenance for item in items]
    with open(path, "w", encoding="utf-8", newline="") as file:
        table = csv.DictWriter(file, rows[0].keys())
        table.writeheader()
        table.writerows(rows)
