"""Resumable sampling of labeled images into a samples folder."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from steelgen.config.sample import SampleConfig
from steelgen.devices import resolve_precision
from steelgen.errors import InputError
from steelgen.files import load_json, save_json
from steelgen.generators import Generator
from steelgen.generators.drawing import find_factor
from steelgen.sampling.balance import ATTEMPT_STRIDE, BalancedSource, save_balance
from steelgen.sampling.conditions import ConditionSource
from steelgen.sampling.emphasis import emphasize, measure_class_errors
from steelgen.sampling.filtering import LOW_GAIN, build_filter
from steelgen.sampling.formats import build_row, describe_origin, load_layout, load_sampling, save_pair
from steelgen.sampling.generate import (
    SamplingBatch,
    check_taken,
    generate_pairs,
    makes_mask,
    prepare_stages,
    take_images,
    take_start,
)
from steelgen.sampling.inpainting import choose_region
from steelgen.sampling.labeling import build_labeler
from steelgen.sampling.mask_sources import build_mask_source, find_label_classes, replace_images
from steelgen.sampling.masks import BatchedMaskSource, MaskSource, build_stems
from steelgen.sampling.samples_folder import finish_folder, open_folder
from steelgen.sampling.workers import Candidate, PairWriter, iterate_masks
from steelgen.shards import Shard


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
    info, geometry = find_label_classes(config, generator.info), generator.geometry
    check_taken(config, generator)
    told = ConditionSource(config, generator)
    mask_source = build_mask_source(config.mask_source, info, geometry, config.seed, find_factor(generator))
    class_errors = measure_class_errors(config.emphasis, info) if config.emphasis else None
    if config.emphasis and class_errors:
        mask_source = emphasize(mask_source, class_errors, config.emphasis, config.seed)
    source = replace_images(mask_source, config, info, geometry)
    labeler = build_labeler(config.labels, generator) if config.labels else None
    info = labeler.info if labeler else info
    pair_filter = build_filter(config.filter, info, geometry, report_filter) if config.filter else None
    out = config.output_dir
    if config.file_stems == "source":
        build_stems(mask_source, config.batch_size)  # raises before anything is written
    if config.inpaint:
        choose_region(config.inpaint, config.seed, 0, source.draw(0).size)  # the same
    open_folder(config, generator, info, origin.models, shard is not None, allow_changed)
    if told.notes:
        save_json(out / "sampling.json", {**load_json(out / "sampling.json"), "notes": told.notes})
    if class_errors:
        save_json(out / "emphasis.json", class_errors.describe())
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
        gain = None
        if pair_filter:
            if reason := pair_filter.judge(image, candidate.source_mask.mask):
                return reason
            gain = pair_filter.weigh(image, candidate.source_mask.mask)
            if gain is None:
                return LOW_GAIN
        labeled = labeler.label(image, candidate.source_mask.image) if labeler else None
        if labeled and labeler and labeled.mean_confidence < labeler.config.min_confidence:
            return labeler.reason
        source_mask = candidate.source_mask
        if labeled:
            source_mask = replace(source_mask, mask=labeled.mask.mask, source=labeled.mask.source)
        seed = config.seed + candidate.number
        row = build_row(layout, origin, candidate.image, seed, source_mask, candidate.uses_image)
        if candidate.region:
            row["inpaint"] = candidate.region.model_dump(mode="json")
        if candidate.makes_mask and not labeled:
            row["mask_made"] = True
        if labeled and labeler:
            row["labels"] = labeler.describe(labeled)
        if candidate.conditions:
            row["conditions"] = candidate.conditions
        if pair_filter or labeler:
            row["dropped"] = dict(candidate.dropped)
        row |= gain or {}
        save_pair(out, layout, row, source_mask, image, info, labeled.confidence if labeled else None)
        return None

    retries: deque[Candidate] = deque()
    with PairWriter(finish) as writer:
        while (batch := _next_batch(retries, first, config.batch_size)) or writer.busy:
            if batch:
                for candidate, image in zip(batch, _generate(generator, config, told, batch), strict=True):
                    writer.put(candidate, image)
            for candidate, dropped in writer.take(left=len(batch)):
                if dropped:
                    retries.append(_retry(candidate, dropped, source, config))
                else:
                    done += 1
            report(done, total)
    if shard is None:
        finish_folder(config, layout, info)
        if isinstance(mask_source, BalancedSource):
            save_balance(out, mask_source.report(total))
    return out


def _generate(
    generator: Generator, config: SampleConfig, told: ConditionSource, batch: Sequence[Candidate]
) -> list[NDArray[np.uint8]]:
    """Generates the images of a batch, and notes in the candidates what they were generated from."""
    taken, seeds = [each.source_mask for each in batch], [config.seed + each.number for each in batch]
    images = take_images(generator, taken)
    if config.inpaint:
        images = [each.image for each in taken if each.image is not None]
        for each in batch:
            each.region = choose_region(config.inpaint, config.seed, each.number, each.source_mask.size)
    for seed, each in zip(seeds, batch, strict=True):
        each.conditions, each.uses_image = told.choose(seed, each.source_mask), images is not None
    regions = [each.region for each in batch if each.region is not None]
    pairs = generate_pairs(
        generator,
        SamplingBatch(
            [each.mask for each in taken],
            seeds,
            config.solver,
            images=images,
            start=take_start(config, taken),
            regions=regions or None,
            conditions=told.encode([each.conditions for each in batch]),
            truncation=config.truncation,
        ),
        config.mixed_precision,
    )
    for each, pair in zip(batch, pairs, strict=True):
        if pair.mask is not None and makes_mask(generator, each.source_mask.mask):
            each.makes_mask = True
            each.source_mask = replace(each.source_mask, mask=pair.mask, source=f"made by {generator.kind}")
        elif pair.mask is not None and regions:
            each.source_mask = replace(each.source_mask, mask=pair.mask)
    return [pair.image for pair in pairs]


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
    limit = "gain.min_agreement" if reason == LOW_GAIN else limit
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
