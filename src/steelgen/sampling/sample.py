"""Resumable sampling of labeled images into a samples folder."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelgen import __version__
from steelgen.changes import list_changes, list_known_changes, note_changes, refresh_config, refuse_changes
from steelgen.config.base import config_to_json
from steelgen.config.sample import SampleConfig, SplitMasks
from steelgen.data.exporters.coco import CocoImage, save_coco
from steelgen.data.folder import DatasetInfo, load_mask, save_dataset_info
from steelgen.data.images import load_image, load_index_image
from steelgen.data.rejects import load_rejects
from steelgen.devices import resolve_precision
from steelgen.errors import InputError
from steelgen.files import load_json, new_folder, remove_leftovers, save_json
from steelgen.generators import Generator
from steelgen.generators.drawing import find_factor
from steelgen.sampling.balance import ATTEMPT_STRIDE, BalancedSource, save_balance
from steelgen.sampling.conditions import ConditionSource
from steelgen.sampling.filtering import build_filter
from steelgen.sampling.formats import (
    Layout,
    build_row,
    describe_origin,
    load_layout,
    load_sampling,
    read_row,
    save_pair,
    save_rows,
    select_image_settings,
)
from steelgen.sampling.generate import (
    check_taken,
    generate_pairs,
    makes_mask,
    prepare_stages,
    take_images,
    take_start,
    writes_labels,
)
from steelgen.sampling.inpainting import choose_region
from steelgen.sampling.labeling import build_labeler
from steelgen.sampling.mask_sources import build_mask_source, replace_images
from steelgen.sampling.masks import BatchedMaskSource, MaskSource, build_stems
from steelgen.sampling.sheet import save_sheet
from steelgen.sampling.workers import Candidate, PairWriter, iterate_masks
from steelgen.shards import Shard

_SHEET_IMAGES = 24
_FILTER_KEYS = ("kept", "dropped", "notes")
"""Keys of sampling.json that are written after it was created: when the filter has checked every image, and notes on
conditions."""
_ONE_FOLDER, _FILES_PER_FOLDER = 10_000, 1_000
"""Maximum number of images without subfolders, and images per subfolder above it; see files_per_folder."""


def sample(
    config: SampleConfig,
    report: Callable[[int, int], None] = lambda done, total: None,
    shard: Shard | None = None,
    allow_changed: Sequence[str] = (),
    report_filter: Callable[[int, int], None] | None = None,
) -> Path:
    """Samples images with matching masks, and writes metadata.jsonl.

    An unfinished folder with the same config is completed; its files are not changed. Memory does not grow with the
    number of images.

    Args:
        report: called with (images done, images in total) after every batch.
        shard: sample only this part, without metadata.jsonl and contact sheet, which a later call without a shard
            writes; shards may run at the same time on all machines that share the folder.
        allow_changed: fields and sections of the config that may differ from those of the unfinished folder;
            `generator` also allows other weights.
        report_filter: called with (steps done, steps in total) while the filter's segmenter is trained.

    Returns:
        The samples folder.

    Raises:
        InputError: if the generator, the masks or the output folder cannot be used, or the filter drops too many.
    """
    config = config.model_copy(update={"mixed_precision": resolve_precision(config.mixed_precision)})
    origin = describe_origin(config)
    generator = prepare_stages(config, config.compile)
    info, geometry = generator.info, generator.geometry
    check_taken(config, generator)
    told = ConditionSource(config, generator)
    mask_source = build_mask_source(config.mask_source, info, geometry, config.seed, find_factor(generator))
    source = replace_images(mask_source, config, info, geometry)
    labeler = build_labeler(config.labels, generator) if config.labels else None
    info = labeler.info if labeler else info
    pair_filter = build_filter(config.filter, info, geometry, report_filter) if config.filter else None
    out = config.output_dir
    if config.file_stems == "source":
        build_stems(mask_source, config.batch_size)  # raises before anything is written
    if config.inpaint:
        choose_region(config.inpaint, config.seed, 0, source.draw(0).size)  # the same
    _open_folder(config, generator, info, origin.models, shard is not None, allow_changed)
    if told.notes:
        save_json(out / "sampling.json", {**load_json(out / "sampling.json"), "notes": told.notes})
    if pair_filter:
        save_json(out / "filter.json", pair_filter.describe())
    layout = load_layout(out)
    if config.file_stems == "source":
        layout = replace(layout, name_stem=build_stems(mask_source, load_sampling(out).stem_batch_size))

    indices = shard.indices(config.num_samples) if shard else range(config.num_samples)
    missing = [index for index in indices if not layout.sample_path(out, index).is_file()]
    done, total = len(indices) - len(missing), len(indices)
    report(done, total)
    # Networks stay in this process.
    use_workers = len(missing) > config.batch_size and not isinstance(mask_source, BatchedMaskSource)
    first = iterate_masks(source, missing, use_workers, config.batch_size)

    def finish(candidate: Candidate, image: NDArray[np.uint8]) -> str | None:
        """Returns the reason for dropping a pair, or writes it."""
        if pair_filter and (reason := pair_filter.judge(image, candidate.source_mask.mask)):
            return reason
        labeled = labeler.label(image) if labeler else None
        if labeled and labeler and labeled.mean_confidence < labeler.config.min_confidence:
            return labeler.reason
        source_mask = candidate.source_mask
        if labeled:
            source_mask = replace(source_mask, mask=labeled.mask.mask, source=labeled.mask.source)
        seed = config.seed + candidate.number
        values = told.choose(seed, candidate.source_mask)
        row = build_row(layout, origin, candidate.image, seed, source_mask, candidate.uses_image)
        if candidate.region:
            row["inpaint"] = candidate.region.model_dump(mode="json")
        if candidate.makes_mask and not labeled:
            row["mask_made"] = True
        if labeled and labeler:
            row["labels"] = labeler.describe(labeled)
        if values:
            row["conditions"] = values
        if pair_filter or labeler:
            row["dropped"] = dict(candidate.dropped)
        save_pair(out, layout, row, source_mask, image, info, labeled.confidence if labeled else None)
        return None

    retries: deque[Candidate] = deque()
    with PairWriter(finish) as writer:
        while (batch := _next_batch(retries, first, config.batch_size)) or writer.busy:
            if batch:
                masks = [candidate.source_mask.mask for candidate in batch]
                seeds = [config.seed + candidate.number for candidate in batch]
                taken = [candidate.source_mask for candidate in batch]
                images, regions = take_images(generator, taken), None
                if config.inpaint:
                    images = [each.image for each in taken if each.image is not None]
                    regions = [
                        choose_region(config.inpaint, config.seed, candidate.number, candidate.source_mask.size)
                        for candidate in batch
                    ]
                pairs = generate_pairs(
                    generator,
                    masks,
                    seeds,
                    config.solver,
                    config.mixed_precision,
                    take_start(config, taken),
                    truncation=config.truncation,
                    images=images,
                    regions=regions,
                    conditions=told.encode(
                        [told.choose(seed, candidate.source_mask) for seed, candidate in zip(seeds, batch, strict=True)]
                    ),
                )
                for row, (candidate, pair) in enumerate(zip(batch, pairs, strict=True)):
                    candidate.uses_image = images is not None
                    candidate.region = regions[row] if regions else None
                    if pair.mask is not None and makes_mask(generator, candidate.source_mask.mask):
                        candidate.makes_mask = True
                        made = replace(candidate.source_mask, mask=pair.mask, source=f"made by {generator.kind}")
                        candidate.source_mask = made
                    elif pair.mask is not None and regions:
                        candidate.source_mask = replace(candidate.source_mask, mask=pair.mask)
                    writer.put(candidate, pair.image)
            for candidate, dropped in writer.take(left=len(batch)):
                if dropped:
                    retries.append(_retry(candidate, dropped, source, config))
                else:
                    done += 1
            report(done, total)
    if shard is None:
        _finish(config, layout, info)
        if isinstance(mask_source, BalancedSource):
            save_balance(out, mask_source.report(total))
    return out


def _next_batch(waiting: deque[Candidate], first: Iterator[Candidate], batch_size: int) -> list[Candidate]:
    """Returns up to `batch_size` candidates with masks of the same size: those waiting, then first attempts."""
    batch: list[Candidate] = []
    while len(batch) < batch_size:
        if not waiting and (candidate := next(first, None)):
            waiting.append(candidate)
        if not waiting or (batch and waiting[0].source_mask.mask.shape != batch[0].source_mask.mask.shape):
            break
        batch.append(waiting.popleft())
    return batch


def _retry(candidate: Candidate, reason: str, source: MaskSource, config: SampleConfig) -> Candidate:
    name, limit = ("labels", "min_confidence") if config.labels else ("filter", "min_iou")
    section = config.labels or config.filter
    assert section is not None, "nothing else drops pairs"
    dropped = candidate.dropped + Counter([reason])
    if dropped.total() >= section.max_attempts:
        reasons = ", ".join(f"{count} {why}" for why, count in sorted(dropped.items()))
        raise InputError(
            f"{name}: image {candidate.image} was dropped in all of {section.max_attempts} attempts ({reasons}); "
            f"lower {name}.{limit}, raise {name}.max_attempts, or train the generator for longer"
        )
    number = candidate.image + dropped.total() * ATTEMPT_STRIDE
    return Candidate(candidate.image, number, source.draw(number), dropped)


def _open_folder(
    config: SampleConfig,
    generator: Generator,
    info: DatasetInfo,
    models: dict[str, str],
    shared: bool,
    allow_changed: Sequence[str],
) -> None:
    """Creates the samples folder, or checks that the existing one has the same config.

    Several calls may do this at the same time; the first one creates the folder. A `shared` call, one with a shard,
    leaves an existing sampling.json unchanged.

    Args:
        info: classes of the masks.
    """
    out, files_per_folder = config.output_dir, config.files_per_folder
    path = out / "sampling.json"
    if not path.is_file():
        default = _FILES_PER_FOLDER if config.num_samples > _ONE_FOLDER else 0
        chosen = default if files_per_folder is None else files_per_folder
        try:
            with new_folder(out) as working:
                describe_folder(working, config, generator, info, models, chosen, config.batch_size)
        except (InputError, OSError):
            if not path.is_file():
                raise
        else:
            return
    sampling = load_sampling(out)
    fixed = sampling.files_per_folder
    if files_per_folder not in (None, fixed):
        raise InputError(f"{out}: files_per_folder is {fixed} and cannot be changed to {files_per_folder}")
    before, now = refresh_config(sampling.config.model_dump(exclude_unset=True), SampleConfig), config_to_json(config)
    changes = [
        *list_known_changes(sampling.drawn_by, models),
        *list_changes(select_image_settings(before), select_image_settings(now)),
    ]
    refuse_changes(out, changes, allow_changed)
    note_changes(out, changes)
    if not shared:
        describe_folder(out, config, generator, info, models, fixed, sampling.stem_batch_size)


def describe_folder(
    folder: Path,
    config: SampleConfig,
    generator: Generator,
    info: DatasetInfo,
    models: dict[str, str],
    files_per_folder: int,
    stem_batch_size: int,
) -> None:
    """Writes dataset.json, with the classes of the masks, and sampling.json."""
    paths = ", ".join(map(str, config.generators.values()))
    changed: dict[str, Any] = {
        "source": f"synthetic, generated by steelgen {__version__} from {paths}",
        "pixel_size_um": generator.geometry.scale_pixel_size(generator.info.pixel_size_um),
    }
    if not writes_labels(config, generator):
        changed |= {"class_names": [], "palette": []}
    save_dataset_info(folder, info.model_copy(update=changed))
    path = folder / "sampling.json"
    # Keeps the counts of another call on the same folder, which may be about to read them.
    counts = {key: value for key, value in load_json(path).items() if key in _FILTER_KEYS} if path.is_file() else {}
    save_json(
        path,
        {
            **counts,
            **asdict(generator.geometry),
            "source_split": config.mask_source.split if isinstance(config.mask_source, SplitMasks) else None,
            "files_per_folder": files_per_folder,
            "stem_batch_size": stem_batch_size,
            "makes_masks": "masks" in generator.makes,
            "drawn_by": models,
            "config": config_to_json(config),
            "steelgen_version": __version__,
        },
    )


def _finish(config: SampleConfig, layout: Layout, info: DatasetInfo) -> None:
    """Writes the files that describe the whole folder."""
    out, count = config.output_dir, config.num_samples
    remove_leftovers(out)
    save_rows(out, layout, count)
    if config.coco:
        images = (
            CocoImage(layout.sample_path(Path(), index).as_posix(), load_mask(layout.label_path(out, index), info))
            for index in range(count)
        )
        save_coco(out / "coco.json", info, images, synthetic=True)
    if config.filter or config.labels:
        dropped: Counter[str] = Counter()
        for index in range(count):
            dropped.update(read_row(layout.sample_path(out, index))["dropped"])
        path = out / "sampling.json"
        save_json(path, {**load_json(path), "kept": count, "dropped": dict(dropped)})
    save_contact_sheet(out, layout, count, info)


def save_contact_sheet(out: Path, layout: Layout, count: int, info: DatasetInfo) -> None:
    """Writes contact_sheet.png of the first of `count` pairs that are not rejected; removes it if all are."""
    rejects = load_rejects(out / layout.samples)
    kept = (index for index in range(count) if layout.name_stem(index) not in rejects)
    shown = list(islice(kept, _SHEET_IMAGES))
    if not shown:
        (out / "contact_sheet.png").unlink(missing_ok=True)
        return
    images = [load_image(layout.sample_path(out, index)) for index in shown]
    masks = [load_index_image(layout.label_path(out, index)) for index in shown] if layout.labels else []
    real = [
        load_image(path) if layout.images and (path := out / layout.images / layout.name(index)).is_file() else None
        for index in shown
    ]
    save_sheet(out / "contact_sheet.png", masks, images, real, info.palette if layout.labels else [])
