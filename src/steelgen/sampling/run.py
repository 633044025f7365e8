"""Drawing labelled images into a folder, so that a run can be stopped and goes on with what is missing."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin

from steelgen import __version__
from steelgen.config.base import config_to_json
from steelgen.config.sample import SampleConfig, SplitMasks
from steelgen.data.crops import tensor_to_image
from steelgen.data.folder import DatasetInfo, save_dataset_info, save_mask
from steelgen.data.images import load_image
from steelgen.data.palette import color_mask
from steelgen.errors import InputError
from steelgen.files import check_output_free, load_json, new_file, save_json
from steelgen.generators import Generator, load_generator
from steelgen.sampling.masks import DrawnMask, MaskSource, build_mask_source
from steelgen.sampling.sheet import save_sheet

_SHEET_IMAGES = 24
# What may differ between two calls that fill the same folder: no image changes by it.
_FREE_KEYS = ("batch_size", "channels_last", "compile", "num_samples")


def sample(config: SampleConfig, report: Callable[[int, int], None] = lambda done, total: None) -> Path:
    """Draws labelled images: samples/ images/ labels/ colored_labels/ with matching stems, and metadata.jsonl.

    A folder that an earlier call with the same config left unfinished is completed; files in it stay as they are.

    Args:
        report: called with (images done, images wanted) after every batch.

    Returns:
        The output folder.

    Raises:
        InputError: if the generator, the masks or the output folder cannot be used.
    """
    generator = load_generator(config.generator)
    source = build_mask_source(config.mask_source, generator.info, generator.geometry, config.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    network = generator.network.to(device).requires_grad_(False)
    if config.channels_last:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if config.compile:
        network.compile()
    precision = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.mixed_precision)

    out = config.output_dir
    _open_folder(config, generator)
    missing = [index for index in range(config.num_samples) if not _sample_path(out, index).is_file()]
    done = config.num_samples - len(missing)
    report(done, config.num_samples)
    for indices, drawn_masks in _batches(missing, source, config.batch_size):
        masks = torch.from_numpy(np.stack([drawn.mask for drawn in drawn_masks]).astype(np.int64))
        with torch.autocast(device.type, precision, enabled=precision is not None):
            images = generator.draw(masks, [config.seed + index for index in indices], config.solver)
        for index, drawn, image in zip(indices, drawn_masks, images, strict=True):
            _write_pair(out, index, config.seed + index, drawn, image, generator.info)
        done += len(indices)
        report(done, config.num_samples)
    _write_metadata(out, config.num_samples)
    _write_contact_sheet(out, min(config.num_samples, _SHEET_IMAGES), generator.info)
    return out


def _batches(indices: list[int], source: MaskSource, batch_size: int) -> Iterator[tuple[list[int], list[DrawnMask]]]:
    """Consecutive images whose masks have the same size, at most `batch_size` of them."""
    batch: list[int] = []
    masks: list[DrawnMask] = []
    for index in indices:
        drawn = source.draw(index)
        if batch and (len(batch) == batch_size or drawn.mask.shape != masks[0].mask.shape):
            yield batch, masks
            batch, masks = [], []
        batch.append(index)
        masks.append(drawn)
    if batch:
        yield batch, masks


def _open_folder(config: SampleConfig, generator: Generator) -> None:
    """Starts an output folder or checks that the one present was begun with the same config."""
    settings = config_to_json(config)
    path = config.output_dir / "sampling.json"
    if path.is_file():
        begun = load_json(path)["config"]
        for key in settings.keys() - set(_FREE_KEYS):
            if begun.get(key) != settings[key]:
                raise InputError(
                    f"{config.output_dir}: the output folder is already in use by a run with another "
                    f"{key} ({json.dumps(begun.get(key))}); name another folder or remove it"
                )
    else:
        check_output_free(config.output_dir)
        config.output_dir.mkdir(parents=True, exist_ok=True)
    geometry = asdict(generator.geometry)
    split = config.mask_source.split if isinstance(config.mask_source, SplitMasks) else None
    save_dataset_info(
        config.output_dir,
        generator.info.model_copy(
            update={"source": f"synthetic, drawn by steelgen {__version__} from {config.generator}"}
        ),
    )
    save_json(path, {**geometry, "source_split": split, "config": settings, "steelgen_version": __version__})


def _sample_path(out: Path, index: int) -> Path:
    return out / "samples" / f"{index:06d}.png"


def _write_pair(out: Path, index: int, seed: int, drawn: DrawnMask, image: torch.Tensor, info: DatasetInfo) -> None:
    """Writes the files of one image; samples/ last, since its presence says that the pair is complete."""
    path = _sample_path(out, index)
    save_mask(out / "labels" / path.name, drawn.mask, info.palette)
    _save_png(out / "colored_labels" / path.name, color_mask(drawn.mask, info.palette))
    if drawn.image is not None:
        _save_png(out / "images" / path.name, drawn.image)
    row = {
        "file_name": f"samples/{path.name}",
        "mask": f"labels/{path.name}",
        "seed": seed,
        "source_mask": drawn.source,
        "synthetic": True,
    }
    _save_png(path, tensor_to_image(image), row)


def _save_png(path: Path, array: np.ndarray, row: dict[str, Any] | None = None) -> None:
    text = PngImagePlugin.PngInfo()
    if row:
        text.add_text("steelgen", json.dumps(row))
    with new_file(path) as working:
        Image.fromarray(array).save(working, pnginfo=text)


def _write_metadata(out: Path, count: int) -> None:
    """metadata.jsonl, gathered from the text chunks of the images."""
    lines = []
    for index in range(count):
        with Image.open(_sample_path(out, index)) as image:
            lines.append(image.info["steelgen"] + "\n")
    with new_file(out / "metadata.jsonl") as working:
        working.write_text("".join(lines), encoding="utf-8")


def _write_contact_sheet(out: Path, count: int, info: DatasetInfo) -> None:
    names = [_sample_path(out, index).name for index in range(count)]
    masks = [np.asarray(Image.open(out / "labels" / name)) for name in names]
    real = [load_image(path) if (path := out / "images" / name).is_file() else None for name in names]
    save_sheet(
        out / "contact_sheet.png",
        masks,
        [load_image(out / "samples" / name) for name in names],
        real,
        info.palette,
    )
