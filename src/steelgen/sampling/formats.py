"""How generated pairs lie on disk, and what each of them says about itself."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from pydantic import Field

from steelgen.config.base import MAX_BATCH_SIZE, MAX_IMAGES, MAX_SEED, config_to_json
from steelgen.config.sample import SampleConfig
from steelgen.data.folder import DatasetInfo, save_mask
from steelgen.data.palette import color_mask
from steelgen.errors import InputError, first_line
from steelgen.files import Record, load_record, new_file, parse_json, parse_record
from steelgen.generators.saved import hash_generator, hash_weights
from steelgen.sampling.labeling import hash_segmenter
from steelgen.sampling.masks import SourceMask
from steelgen.sampling.places import describe_place

PNG_KEY = "steelgen"
"""Name of the PNG text chunk that holds an image's row of metadata.jsonl."""
FREE_KEYS = ("output_dir", "batch_size", "channels_last", "compile", "num_samples", "coco", "files_per_folder")
"""Config keys by which no image changes."""


def name_by_number(index: int) -> str:
    """The usual file stem of image number `index`."""
    return f"{index:06d}"


@dataclass(frozen=True)
class Layout:
    """Where the files of a pair go, below the output folder; None for what is not written."""

    samples: str
    labels: str | None
    images: str | None
    colored_labels: str | None
    confidence: str | None = None
    """Maps of how sure a segmenter is of the masks, where they are its own."""
    files_per_folder: int = 0
    """Images of each numbered sub-folder; 0: there are none."""
    name_stem: Callable[[int], str] = name_by_number
    """The file stem of image number `index`."""

    def name(self, index: int) -> str:
        """Where the files of image number `index` lie in each folder: 012345.png, or 012/012345.png."""
        name = f"{self.name_stem(index)}.png"
        return f"{index // self.files_per_folder:03d}/{name}" if self.files_per_folder else name

    def sample_path(self, out: Path, index: int) -> Path:
        """The generated image number `index`; once it is there, the pair is complete."""
        return out / self.samples / self.name(index)

    def label_path(self, out: Path, index: int) -> Path:
        """The mask of image number `index`, where there are masks."""
        assert self.labels is not None
        return out / self.labels / self.name(index)


LAYOUTS = {
    "folders": Layout("samples", "labels", "images", "colored_labels", "confidence"),
    "dataset": Layout("train/images", "train/masks", None, None, "confidence"),
}
"""By the config's output_format."""


class _Source(Record):
    kind: str


class _Settings(Record):
    """The config of a run as it was written, perhaps by an older steelgen."""

    output_format: Literal["folders", "dataset"] = "folders"
    file_stems: Literal["number", "source"] = "number"
    mask_source: _Source
    labels: dict[str, Any] | None = None
    num_samples: int = Field(ge=1, le=MAX_IMAGES)
    seed: int = Field(ge=0, le=MAX_SEED)


class Sampling(Record):
    """sampling.json: how a folder of drawn images was begun, and what the filter dropped."""

    config: _Settings
    files_per_folder: int = Field(0, ge=0, le=MAX_IMAGES)
    stem_batch_size: int = Field(1, ge=1, le=MAX_BATCH_SIZE)
    drawn_by: dict[str, str] = {}
    """Digests of the generators; not in folders of older versions."""
    kept: int = 0
    dropped: dict[str, int] = {}


class _Row(Record):
    """What is read of a row of metadata.jsonl, besides drawing the image again."""

    file_name: str
    seed: int = Field(ge=0, strict=True)
    mask: str | None = None
    dropped: dict[str, int] = {}


def load_sampling(out: Path) -> Sampling:
    """Reads sampling.json of an output folder.

    Raises:
        InputError: if it is missing or damaged.
    """
    return load_record(out / "sampling.json", Sampling)


def load_layout(out: Path) -> Layout:
    """The layout of an output folder, by its sampling.json; its files are taken to be named by their numbers."""
    sampling = load_sampling(out)
    layout = LAYOUTS[sampling.config.output_format]
    if sampling.config.mask_source.kind == "none":
        layout = replace(layout, images=None)
        if sampling.config.labels is None:
            layout = replace(layout, labels=None, colored_labels=None)
    if sampling.config.labels is None:
        layout = replace(layout, confidence=None)
    return replace(layout, files_per_folder=sampling.files_per_folder)


@dataclass(frozen=True)
class Origin:
    """What all images of a run have in common: model, settings, and the hashes that tell them apart."""

    generator: Path
    model_sha256: str
    config_sha256: str
    draw: dict[str, Any]
    """Everything but mask and seed that an image depends on, as JSON values."""


def describe_origin(config: SampleConfig) -> Origin:
    """Reads and hashes what the rows of a run refer to; once a run, since the weights may be large.

    Raises:
        InputError: if there is no generator.
    """
    settings = config_to_json(config)
    draw = {key: settings[key] for key in ("solver", "mixed_precision", "channels_last")}
    if guide := settings["solver"].get("autoguidance"):
        draw["autoguidance_sha256"] = hash_weights(Path(guide))
    if config.start_images:
        draw["strength"] = config.start_images.strength
    if config.truncation is not None:
        draw["truncation"] = config.truncation
    return Origin(config.generator, hash_weights(config.generator), hash_config(settings), draw)


def describe_models(config: SampleConfig, origin: Origin) -> dict[str, str]:
    """By dotted field of the config, the digest of the generator that lies there."""
    models = {"generator": hash_generator(config.generator, origin.model_sha256)}
    if guide := getattr(config.solver, "autoguidance", None):
        models["solver.autoguidance"] = hash_generator(guide)
    if config.labels:
        models["labels.segmenter"] = hash_segmenter(config.labels.segmenter)
    return models


def hash_config(settings: dict[str, Any]) -> str:
    """SHA-256, in hex, of a resolved config without what changes no image."""
    return hashlib.sha256(json.dumps(select_decisive(settings), sort_keys=True).encode()).hexdigest()


def select_decisive(settings: dict[str, Any]) -> dict[str, Any]:
    """The part of a resolved config that images depend on; two runs that agree in it may fill the same folder."""
    decisive = {key: value for key, value in settings.items() if key not in FREE_KEYS}
    for section in ("filter", "labels"):
        if decisive.get(section):
            # More attempts only go on where fewer stopped.
            decisive[section] = {key: value for key, value in decisive[section].items() if key != "max_attempts"}
    return decisive


def build_row(layout: Layout, origin: Origin, index: int, seed: int, drawn: SourceMask) -> dict[str, Any]:
    """The row of metadata.jsonl for one image: with the mask beside it, if any, enough to draw it again.

    `file_name` is what Hugging Face's imagefolder calls the image, relative to metadata.jsonl.
    """
    name = layout.name(index)
    mask = {"mask": f"{layout.labels}/{name}", "source_mask": drawn.source} if layout.labels else {}
    row = {
        "file_name": f"{layout.samples}/{name}",
        **mask,
        "seed": seed,
        "synthetic": True,
        "generator": str(origin.generator),
        "model_sha256": origin.model_sha256,
        "config_sha256": origin.config_sha256,
        "draw": origin.draw,
    }
    if "strength" in origin.draw:
        assert drawn.image is not None
        assert drawn.place is not None
        row["start_image"] = describe_place(drawn.place, drawn.image)
    return row


def save_pair(
    out: Path,
    layout: Layout,
    row: dict[str, Any],
    drawn: SourceMask,
    image: NDArray[np.uint8],
    info: DatasetInfo,
    confidence: NDArray[np.float32] | None = None,
) -> None:
    """Writes the files of one image; the image last, since its presence says that the pair is complete.

    Args:
        confidence: (H, W) in [0, 1], saved as 255 times that.
    """
    name = Path(row["file_name"]).relative_to(layout.samples)
    if layout.labels:
        save_mask(out / layout.labels / name, drawn.mask, info.palette)
    if layout.colored_labels:
        save_png(out / layout.colored_labels / name, color_mask(drawn.mask, info.palette))
    if layout.images and drawn.image is not None:
        save_png(out / layout.images / name, drawn.image)
    if layout.confidence and confidence is not None:
        save_png(out / layout.confidence / name, np.rint(255 * confidence).astype(np.uint8))
    save_png(out / layout.samples / name, image, row)


def save_png(path: Path, image: NDArray[np.uint8], row: dict[str, Any] | None = None) -> None:
    """Writes an (H, W) or (H, W, 3) uint8 image, its row of metadata.jsonl in a text chunk."""
    text = PngImagePlugin.PngInfo()
    if row:
        text.add_text(PNG_KEY, json.dumps(row))
    with new_file(path) as working:
        Image.fromarray(image).save(working, pnginfo=text)


def iterate_rows(out: Path, layout: Layout, count: int) -> Iterator[dict[str, Any]]:
    """The rows of images 0 to count − 1, from their text chunks, one at a time.

    Raises:
        InputError: if an image is not one of ours.
    """
    for index in range(count):
        yield read_row(layout.sample_path(out, index))


def read_row(path: Path) -> dict[str, Any]:
    """The row of metadata.jsonl that an image carries in its text chunk.

    Raises:
        InputError: if the image is not one of ours, or damaged.
    """
    try:
        with Image.open(path) as image:
            text = image.info.get(PNG_KEY)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InputError(f"{path}: not a readable image: {first_line(error)}") from None
    if not isinstance(text, str):
        raise InputError(f"{path}: was not written by steelgen sample (no {PNG_KEY!r} text chunk)")
    row = parse_json(text, f"{path}: {PNG_KEY}")
    parse_record(row, _Row, f"{path}: {PNG_KEY}")
    return row


def save_rows(out: Path, layout: Layout, count: int) -> None:
    """Writes metadata.jsonl, row by row: any number of images takes the same memory.

    A dataset folder gets one below train/ too: Hugging Face's imagefolder reads a split without what lies above it.
    """
    split = Path(layout.samples).parent
    for folder in dict.fromkeys([Path(), split]):
        with new_file(out / folder / "metadata.jsonl") as working, open(working, "w", encoding="utf-8") as file:
            for row in iterate_rows(out, layout, count):
                present = [key for key in ("file_name", "mask") if key in row]
                paths = {key: Path(os.path.relpath(row[key], folder)).as_posix() for key in present}
                file.write(json.dumps({**row, **paths}) + "\n")
