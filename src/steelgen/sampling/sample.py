"""Drawing labeled images into a folder, so that a run can be stopped and goes on with what is missing."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steelgen import __version__
from steelgen.changes import list_changes, list_known_changes, note_changes, refresh_config, refuse_changes
from steelgen.config.base import config_to_json
from steelgen.config.sample import NoMasks, SampleConfig, SplitMasks
from steelgen.data.exporters.coco import CocoImage, save_coco
from steelgen.data.folder import DatasetInfo, load_mask, save_dataset_info
from steelgen.data.images import load_image, load_index_image
from steelgen.data.rejects import load_rejects
from steelgen.devices import resolve_precision
from steelgen.errors import InputError
from steelgen.files import load_json, new_folder, remove_leftovers, save_json
from steelgen.generators import Generator
from steelgen.sampling.balance import ATTEMPT_STRIDE, BalancedSource, save_balance
from steelgen.sampling.beside import Candidate, PairWriter, iterate_masks
from steelgen.sampling.filtering import build_filter
from steelgen.sampling.formats import (
    Layout,
    build_row,
    describe_models,
    describe_origin,
    iterate_rows,
    load_layout,
    load_sampling,
    save_pair,
    save_rows,
    select_decisive,
)
from steelgen.sampling.generate import check_taken, generate_images, prepare_generator, take_start
from steelgen.sampling.labeling import LOW_CONFIDENCE, ImageLabeler
from steelgen.sampling.mask_sources import build_mask_source, replace_images
from steelgen.sampling.masks import MaskSource
from steelgen.sampling.names import build_stems
from steelgen.sampling.sheet import save_sheet
from steelgen.shards import Shard

_SHEET_IMAGES = 24
_FOUND_KEYS = ("kept", "dropped")
"""In sampling.json once the filter has judged every image."""
_ONE_FOLDER, _FILES_PER_FOLDER = 10_000, 1_000
"""Images up to which one folder holds them all, and images of each sub-folder beyond; see files_per_folder."""


def sample(
    config: SampleConfig,
    report: Callable[[int, int], None] = lambda done, total: None,
    shard: Shard | None = None,
    allow_changed: Sequence[str] = (),
    report_filter: Callable[[int, int], None] | None = None,
) -> Path:
    """Draws labeled images with matching masks, and metadata.jsonl.

    A folder that an earlier call with the same config left unfinished is completed; files in it stay as they are.
    Memory does not grow with the number of images.

    Args:
        report: called with (images done, images wanted) after every batch.
        shard: draw this part alone and leave metadata.jsonl and the contact sheet to a call without a shard; any
            number of shards may be drawn at once, on all machines that share the folder.
        allow_changed: fields and sections of the config that may differ from those the folder was begun with;
            `generator` also stands for what lies there.
        report_filter: told (steps done, steps in all) while the filter's segmenter is trained.

    Returns:
        The output folder.

    Raises:
        InputError: if the generator, the masks or the output folder cannot be used, or the filter keeps too few.
    """
    config = config.model_copy(update={"mixed_precision": resolve_precision(config.mixed_precision)})
    origin = describe_origin(config)
    generator = prepare_generator(config.generator, config.channels_last, config.compile)
    info, geometry = generator.info, generator.geometry
    check_taken(config, generator)
    mask_source = build_mask_source(config.mask_source, info, geometry, config.seed)
    source = replace_images(mask_source, config, info, geometry)
    labeler = ImageLabeler(config.labels, geometry) if config.labels else None
    info = labeler.info if labeler else info
    pair_filter = build_filter(config.filter, info, geometry, report_filter) if config.filter else None
    out = config.output_dir
    if config.file_stems == "source":
        build_stems(mask_source, config.batch_size)  # refuses before anything is written
    _open_folder(config, generator, info, describe_models(config, origin), shard is not None, allow_changed)
    if pair_filter:
        save_json(out / "filter.json", pair_filter.describe())
    layout = load_layout(out)
    if config.file_stems == "source":
        layout = replace(layout, name_stem=build_stems(mask_source, load_sampling(out).stem_batch_size))

    wanted = shard.indices(config.num_samples) if shard else range(config.num_samples)
    done, total = sum(layout.sample_path(out, index).is_file() for index in wanted), len(wanted)
    report(done, total)
    missing = [index for index in wanted if not layout.sample_path(out, index).is_file()]
    first = iterate_masks(source, missing, beside=len(missing) > config.batch_size)

    def finish(candidate: Candidate, image: NDArray[np.uint8]) -> str | None:
        """Why a pair is dropped; None once it is written."""
        if pair_filter and (reason := pair_filter.judge(image, candidate.drawn.mask)):
            return reason
        labeled = labeler.label(image) if labeler else None
        if labeled and labeler and labeled.mean_confidence < labeler.config.min_confidence:
            return LOW_CONFIDENCE
        drawn = labeled.mask if labeled else candidate.drawn
        row = build_row(layout, origin, candidate.image, config.seed + candidate.number, drawn)
        if labeled and labeler:
            row["labels"] = labeler.describe(labeled)
        if pair_filter or labeler:
            row["dropped"] = dict(candidate.dropped)
        save_pair(out, layout, row, drawn, image, info, labeled.confidence if labeled else None)
        return None

    waiting: deque[Candidate] = deque()
    with PairWriter(finish) as writer:
        while (batch := _next_batch(waiting, first, config.batch_size)) or writer.busy:
            if batch:
                masks = [candidate.drawn.mask for candidate in batch]
                seeds = [config.seed + candidate.number for candidate in batch]
                start = take_start(config, [candidate.drawn for candidate in batch])
                images = generate_images(
                    generator,
                    masks,
                    seeds,
                    config.solver,
                    config.mixed_precision,
                    start,
                    truncation=config.truncation,
                )
                for candidate, image in zip(batch, images, strict=True):
                    writer.put(candidate, image)
            for candidate, dropped in writer.take(left=len(batch)):
                if dropped:
                    waiting.append(_retry(candidate, dropped, source, config))
                else:
                    done += 1
            report(done, total)
    if shard is None:
        _finish(config, layout, info)
        if isinstance(mask_source, BalancedSource):
            save_balance(out, mask_source.report(total))
    return out


def _next_batch(waiting: deque[Candidate], first: Iterator[Candidate], batch_size: int) -> list[Candidate]:
    """At most `batch_size` candidates whose masks have the same size; those to be drawn again come first.

    Args:
        first: the first attempts that are left.
    """
    batch: list[Candidate] = []
    while len(batch) < batch_size:
        if not waiting and (candidate := next(first, None)):
            waiting.append(candidate)
        if not waiting or (batch and waiting[0].drawn.mask.shape != batch[0].drawn.mask.shape):
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
    drawn_by: dict[str, str],
    shared: bool,
    allow_changed: Sequence[str],
) -> None:
    """Starts an output folder or checks that the one present was begun with the same config.

    Another call may open it at this very moment: the first one makes it.

    Args:
        info: classes of the masks.
        drawn_by: see `describe_models`.
        shared: leave it as it is, for the call without a shard to describe.
    """
    path = config.output_dir / "sampling.json"
    if not path.is_file():
        try:
            with new_folder(config.output_dir) as working:
                describe_folder(
                    working, config, generator, info, drawn_by, _choose_files_per_folder(config), config.batch_size
                )
        except (InputError, OSError):
            if not path.is_file():
                raise
        else:
            return
    sampling = load_sampling(config.output_dir)
    begun, files_per_folder = sampling.config.model_dump(), sampling.files_per_folder
    if config.files_per_folder not in (None, files_per_folder):
        raise InputError(
            f"{config.output_dir}: was begun with files_per_folder {files_per_folder}, which cannot be changed to "
            f"{config.files_per_folder}"
        )
    changes = [
        *list_known_changes(sampling.drawn_by, drawn_by),
        *list_changes(select_decisive(refresh_config(begun, SampleConfig)), select_decisive(config_to_json(config))),
    ]
    refuse_changes(config.output_dir, changes, allow_changed)
    note_changes(config.output_dir, changes)
    if not shared:
        describe_folder(
            config.output_dir, config, generator, info, drawn_by, files_per_folder, sampling.stem_batch_size
        )


def _choose_files_per_folder(config: SampleConfig) -> int:
    if config.files_per_folder is not None:
        return config.files_per_folder
    return _FILES_PER_FOLDER if config.num_samples > _ONE_FOLDER else 0


def describe_folder(
    folder: Path,
    config: SampleConfig,
    generator: Generator,
    info: DatasetInfo,
    drawn_by: dict[str, str],
    files_per_folder: int,
    stem_batch_size: int,
) -> None:
    """Writes dataset.json, with the classes of the masks, and sampling.json."""
    split = config.mask_source.split if isinstance(config.mask_source, SplitMasks) else None
    unlabeled = isinstance(config.mask_source, NoMasks) and config.labels is None
    save_dataset_info(
        folder,
        info.model_copy(
            update={
                **({"class_names": [], "palette": []} if unlabeled else {}),
                "source": f"synthetic, drawn by steelgen {__version__} from {config.generator}",
                "pixel_size_um": generator.geometry.scale_pixel_size(generator.info.pixel_size_um),
            }
        ),
    )
    path = folder / "sampling.json"
    # What another call has found about the whole folder stays: it may be about to read it.
    found = {key: value for key, value in load_json(path).items() if key in _FOUND_KEYS} if path.is_file() else {}
    save_json(
        path,
        {
            **found,
            **asdict(generator.geometry),
            "source_split": split,
            "files_per_folder": files_per_folder,
            "stem_batch_size": stem_batch_size,
            "drawn_by": drawn_by,
            "config": config_to_json(config),
            "steelgen_version": __version__,
        },
    )


def _finish(config: SampleConfig, layout: Layout, info: DatasetInfo) -> None:
    """What describes the whole folder, from what lies in it."""
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
        for row in iterate_rows(out, layout, count):
            dropped.update(row["dropped"])
        path = out / "sampling.json"
        save_json(path, {**load_json(path), "kept": count, "dropped": dict(dropped)})
    save_contact_sheet(out, layout, count, info)


def save_contact_sheet(out: Path, layout: Layout, count: int, info: DatasetInfo) -> None:
    """Writes contact_sheet.png of the first of `count` pairs that are not rejected; where all are, it goes."""
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
