"""Drawing labelled images into a folder, so that a run can be stopped and goes on with what is missing."""

from __future__ import annotations

import json
import re
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path

from steelgen import __version__
from steelgen.config.base import config_to_json
from steelgen.config.sample import NoMasks, SampleConfig, SplitMasks
from steelgen.data.folder import DatasetInfo, save_dataset_info
from steelgen.data.images import load_image, load_index_image
from steelgen.data.rejects import load_rejects
from steelgen.devices import resolve_precision
from steelgen.errors import InputError
from steelgen.files import load_json, new_folder, save_json
from steelgen.generators import Generator
from steelgen.hpc.shards import Shard
from steelgen.sampling.balance import ATTEMPT_STRIDE, BalancedSource, save_balance
from steelgen.sampling.coco import save_coco
from steelgen.sampling.drawing import draw_images, prepare_generator, take_start
from steelgen.sampling.filtering import build_filter
from steelgen.sampling.formats import (
    Layout,
    build_row,
    describe_origin,
    iterate_rows,
    load_layout,
    save_pair,
    save_rows,
    select_decisive,
)
from steelgen.sampling.masks import DrawnMask, MaskSource, build_mask_source, replace_images
from steelgen.sampling.names import build_stems
from steelgen.sampling.noise_prior import PRIOR_FILE, NoisePrior, build_noise_prior, load_noise_prior
from steelgen.sampling.sheet import save_sheet

_SHEET_IMAGES = 24
_HALF_WRITTEN = re.compile(r"\..+\.\d+\.(png|jsonl?)")
"""Names under which `new_file` writes what a sampling run consists of."""
_ONE_FOLDER, _FILES_PER_FOLDER = 10_000, 1_000
"""Images up to which one folder holds them all, and images of each sub-folder beyond; see files_per_folder."""


@dataclass
class _Candidate:
    """One attempt at one image."""

    image: int
    number: int
    """Its place in the endless sequence of masks and seeds."""
    drawn: DrawnMask
    dropped: Counter[str] = field(default_factory=Counter)
    """Why the attempts before it were dropped."""


def sample(
    config: SampleConfig,
    report: Callable[[int, int], None] = lambda done, total: None,
    shard: Shard | None = None,
) -> Path:
    """Draws labelled images with matching masks, and metadata.jsonl.

    A folder that an earlier call with the same config left unfinished is completed; files in it stay as they are.
    Memory does not grow with the number of images.

    Args:
        report: called with (images done, images wanted) after every batch.
        shard: draw this part alone and leave metadata.jsonl and the contact sheet to a call without a shard; any
            number of shards may be drawn at once, on all machines that share the folder.

    Returns:
        The output folder.

    Raises:
        InputError: if the generator, the masks or the output folder cannot be used, or the filter keeps too few.
    """
    config = config.model_copy(update={"mixed_precision": resolve_precision(config.mixed_precision)})
    origin = describe_origin(config)
    generator = prepare_generator(config.generator, config.channels_last, config.compile)
    info, geometry = generator.info, generator.geometry
    prior = build_noise_prior(config.noise_prior, generator, config.solver) if config.noise_prior else None
    if prior:
        origin = replace(origin, draw={**origin.draw, "noise_prior_sha256": prior.sha256})
    mask_source = build_mask_source(config.mask_source, info, geometry, config.seed)
    source = replace_images(mask_source, config, info, geometry)
    pair_filter = build_filter(config.filter, info, geometry) if config.filter else None
    out = config.output_dir
    if config.file_stems == "source":
        build_stems(mask_source, config.batch_size)  # refuses before anything is written
    _open_folder(config, generator, prior, shared=shard is not None)
    layout = load_layout(out)
    if config.file_stems == "source":
        layout = replace(
            layout, name_stem=build_stems(mask_source, load_json(out / "sampling.json")["stem_batch_size"])
        )

    wanted = shard.indices(config.num_samples) if shard else range(config.num_samples)
    done, total = sum(layout.sample_path(out, index).is_file() for index in wanted), len(wanted)
    report(done, total)
    missing = (index for index in wanted if not layout.sample_path(out, index).is_file())
    waiting: deque[_Candidate] = deque()
    while batch := _next_batch(waiting, missing, source, config.batch_size):
        masks = [candidate.drawn.mask for candidate in batch]
        seeds = [config.seed + candidate.number for candidate in batch]
        start = take_start(config, [candidate.drawn for candidate in batch])
        images = draw_images(generator, masks, seeds, config.solver, config.mixed_precision, start, prior)
        for candidate, seed, image in zip(batch, seeds, images, strict=True):
            reason = pair_filter.judge(image, candidate.drawn.mask) if pair_filter else None
            if reason:
                assert config.filter is not None
                waiting.append(_retry(candidate, reason, source, config.filter.max_attempts))
                continue
            row = build_row(layout, origin, candidate.image, seed, candidate.drawn)
            if pair_filter:
                row["dropped"] = dict(candidate.dropped)
            save_pair(out, layout, row, candidate.drawn, image, info)
            done += 1
        report(done, total)
    if shard is None:
        _finish(config, layout, info)
        if isinstance(mask_source, BalancedSource):
            save_balance(out, mask_source.report(total))
    return out


def _next_batch(
    waiting: deque[_Candidate], missing: Iterator[int], source: MaskSource, batch_size: int
) -> list[_Candidate]:
    """At most `batch_size` candidates whose masks have the same size; those to be drawn again come first."""
    batch: list[_Candidate] = []
    while len(batch) < batch_size:
        if not waiting:
            image = next(missing, None)
            if image is None:
                break
            waiting.append(_Candidate(image, image, source.draw(image)))
        if batch and waiting[0].drawn.mask.shape != batch[0].drawn.mask.shape:
            break
        batch.append(waiting.popleft())
    return batch


def _retry(candidate: _Candidate, reason: str, source: MaskSource, max_attempts: int) -> _Candidate:
    dropped = candidate.dropped + Counter([reason])
    if dropped.total() >= max_attempts:
        reasons = ", ".join(f"{count} {name}" for name, count in sorted(dropped.items()))
        raise InputError(
            f"filter: image {candidate.image} was dropped in all of {max_attempts} attempts ({reasons}); "
            "lower filter.min_iou, raise filter.max_attempts, or train the generator for longer"
        )
    number = candidate.image + dropped.total() * ATTEMPT_STRIDE
    return _Candidate(candidate.image, number, source.draw(number), dropped)


def _open_folder(config: SampleConfig, generator: Generator, prior: NoisePrior | None, shared: bool) -> None:
    """Starts an output folder or checks that the one present was begun with the same config.

    Args:
        shared: other shards may open it at this very moment: the first one makes it, the others leave it as it is.
    """
    path = config.output_dir / "sampling.json"
    if not path.is_file():
        try:
            with new_folder(config.output_dir) as working:
                describe_folder(working, config, generator, _choose_files_per_folder(config), config.batch_size)
                if prior:
                    (working / PRIOR_FILE).write_bytes(prior.to_bytes())
        except (InputError, OSError):
            if not (shared and path.is_file()):
                raise
        else:
            return
    sampling = load_json(path)
    begun, files_per_folder = sampling["config"], sampling.get("files_per_folder", 0)
    if config.files_per_folder not in (None, files_per_folder):
        raise InputError(
            f"{config.output_dir}: was begun with files_per_folder {files_per_folder}, which cannot be changed to "
            f"{config.files_per_folder}"
        )
    decisive, present = select_decisive(config_to_json(config)), select_decisive(begun)
    for key in sorted(decisive):
        if present.get(key) != decisive[key]:
            raise InputError(
                f"{config.output_dir}: the output folder is already in use by a run with another "
                f"{key} ({json.dumps(begun.get(key))}); name another folder or remove it"
            )
    if prior:
        load_noise_prior(config.output_dir / PRIOR_FILE, prior.sha256)
    if not shared:
        describe_folder(config.output_dir, config, generator, files_per_folder, sampling["stem_batch_size"])


def _choose_files_per_folder(config: SampleConfig) -> int:
    if config.files_per_folder is not None:
        return config.files_per_folder
    return _FILES_PER_FOLDER if config.num_samples > _ONE_FOLDER else 0


def describe_folder(
    folder: Path, config: SampleConfig, generator: Generator, files_per_folder: int, stem_batch_size: int
) -> None:
    """Writes dataset.json and sampling.json."""
    split = config.mask_source.split if isinstance(config.mask_source, SplitMasks) else None
    unlabelled = isinstance(config.mask_source, NoMasks)
    save_dataset_info(
        folder,
        generator.info.model_copy(
            update={
                **({"class_names": [], "palette": []} if unlabelled else {}),
                "source": f"synthetic, drawn by steelgen {__version__} from {config.generator}",
                "pixel_size_um": generator.geometry.scale_pixel_size(generator.info.pixel_size_um),
            }
        ),
    )
    save_json(
        folder / "sampling.json",
        {
            **asdict(generator.geometry),
            "source_split": split,
            "files_per_folder": files_per_folder,
            "stem_batch_size": stem_batch_size,
            "config": config_to_json(config),
            "steelgen_version": __version__,
        },
    )


def _finish(config: SampleConfig, layout: Layout, info: DatasetInfo) -> None:
    """What describes the whole folder, from what lies in it."""
    out, count = config.output_dir, config.num_samples
    for leftover in out.rglob(".*"):
        # Half-written files of calls that were killed; every image is there, so none is in use.
        if _HALF_WRITTEN.fullmatch(leftover.name):
            leftover.unlink(missing_ok=True)
    save_rows(out, layout, count)
    if config.coco:
        save_coco(out, layout, count, info)
    if config.filter:
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
