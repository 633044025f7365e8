"""Samples folders: layout of the files, and the metadata of each generated pair."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from pydantic import Field

from steelgen.config.base import MAX_BATCH_SIZE, MAX_IMAGES, MAX_SEED, config_to_json
from steelgen.config.learned import JointLabelsSection, LearnedMasks
from steelgen.config.mask_sources import NoMasks
from steelgen.config.sample import LabelsSection, SampleConfig
from steelgen.config.solver import AnySolverSection
from steelgen.data.folder import DatasetInfo, save_mask
from steelgen.data.palette import color_mask
from steelgen.errors import InputError, first_line
from steelgen.files import Record, load_record, new_file, parse_json, parse_record
from steelgen.generators.saved import hash_generator, hash_weights
from steelgen.sampling.labeling import hash_segmenter
from steelgen.sampling.masks import SourceMask

PNG_KEY = "steelgen"
"""PNG text chunk with the image's row of metadata.jsonl."""
_FREE_KEYS = ("output_dir", "batch_size", "channels_last", "compile", "num_samples", "coco", "files_per_folder")
"""Config keys that do not change the images."""


@dataclass(frozen=True)
class Layout:
    """Folders of a pair's files, relative to the samples folder; None for files that are not written."""

    samples: str
    labels: str | None
    images: str | None
    colored_labels: str | None
    confidence: str | None = None
    """Maps of how sure a segmenter is of the masks, where they are its own."""
    files_per_folder: int = 0
    """Images per numbered subfolder; 0 for no subfolders."""
    name_stem: Callable[[int], str] = "{:06d}".format
    """Function from image number to file stem."""

    def name(self, index: int) -> str:
        """Returns the file name of image number `index` in each folder: 012345.png, or 012/012345.png."""
        name = f"{self.name_stem(index)}.png"
        return f"{index // self.files_per_folder:03d}/{name}" if self.files_per_folder else name

    def sample_path(self, out: Path, index: int) -> Path:
        """Returns the path of generated image number `index`; if it exists, the pair is complete."""
        return out / self.samples / self.name(index)

    def label_path(self, out: Path, index: int) -> Path:
        """Returns the path of the mask of image number `index`."""
        assert self.labels is not None
        return out / self.labels / self.name(index)


LAYOUTS = {
    "folders": Layout("samples", "labels", "images", "colored_labels", "confidence"),
    "dataset": Layout("train/images", "train/masks", None, None, "confidence"),
}
"""Layouts by output_format."""


class _Source(Record):
    kind: str
    masks: str | None = None
    """Folder of the masks of kind images."""


class _Settings(Record):
    """Saved config of a run, possibly from an older steelgen."""

    output_format: Literal["folders", "dataset"] = "folders"
    file_stems: Literal["number", "source"] = "number"
    mask_source: _Source
    labels: dict[str, Any] | None = None
    num_samples: int = Field(ge=1, le=MAX_IMAGES)
    seed: int = Field(ge=0, le=MAX_SEED)


class Sampling(Record):
    """Contents of sampling.json: the settings of a samples folder and the counts of the filter."""

    config: _Settings
    files_per_folder: int = Field(0, ge=0, le=MAX_IMAGES)
    stem_batch_size: int = Field(1, ge=1, le=MAX_BATCH_SIZE)
    makes_masks: bool = False
    """The generator makes masks."""
    drawn_by: dict[str, str] = {}
    """Digests of the generators by config field; empty in folders of older versions."""
    notes: list[str] = []
    """Lines about conditions outside the range of training."""
    kept: int = 0
    dropped: dict[str, int] = {}


class _Row(Record):
    """Fields of a row of metadata.jsonl, without those that only `replay` reads."""

    file_name: str
    seed: int = Field(ge=0, strict=True)
    mask: str | None = None
    dropped: dict[str, int] = {}


def load_sampling(out: Path) -> Sampling:
    """Loads sampling.json of a samples folder.

    Raises:
        InputError: if it is missing or damaged.
    """
    return load_record(out / "sampling.json", Sampling)


def load_layout(out: Path) -> Layout:
    """Loads the layout of a samples folder from sampling.json; files are assumed to be named by number."""
    sampling = load_sampling(out)
    layout = replace(LAYOUTS[sampling.config.output_format], files_per_folder=sampling.files_per_folder)
    source = sampling.config.mask_source
    if source.kind == "none":
        layout = replace(layout, images=None)
    has_masks = source.kind != "none" and not (source.kind == "images" and source.masks is None)
    if sampling.config.labels is None and not has_masks and not sampling.makes_masks:
        layout = replace(layout, labels=None, colored_labels=None)
    if sampling.config.labels is None:
        layout = replace(layout, confidence=None)
    return layout


@dataclass(frozen=True)
class Origin:
    """Metadata shared by all images of a run."""

    generator: Path
    """Of a cascade the last one; the others are in `draw`."""
    model_sha256: str
    config_sha256: str
    draw: dict[str, Any]
    """Settings other than mask and seed that an image depends on, as JSON values."""
    models: dict[str, str]
    """Digests of the generators by dotted config field; see `hash_generator`."""


def describe_origin(config: SampleConfig) -> Origin:
    """Hashes the generators and the config of a run.

    Raises:
        InputError: if there is no generator.
    """
    settings = config_to_json(config)
    weights = {field: hash_weights(path) for field, path in config.generators.items()}
    draw = {key: settings[key] for key in ("solver", "mixed_precision", "channels_last")}
    models = {field: hash_generator(path, weights[field]) for field, path in config.generators.items()}

    def hash_guide(solver: AnySolverSection | None, field: str) -> dict[str, str]:
        if guide := getattr(solver, "autoguidance", None):
            models[f"{field}.autoguidance"] = hash_generator(guide, found := hash_weights(guide))
            return {"autoguidance_sha256": found}
        return {}

    draw |= hash_guide(config.solver, "solver")
    if config.stages:
        draw["stages"] = [
            {
                **stage,
                "model_sha256": weights[f"stages.{number}.generator"],
                **hash_guide(config.stages[number].solver, f"stages.{number}.solver"),
            }
            for number, stage in enumerate(settings["stages"])
        ]
    if config.start_images:
        draw["strength"] = config.start_images.strength
    if config.truncation is not None:
        draw["truncation"] = config.truncation
    if isinstance(config.labels, LabelsSection):
        models["labels.segmenter"] = hash_segmenter(config.labels.segmenter)
    elif isinstance(config.labels, JointLabelsSection):
        models["labels.generator"] = hash_generator(config.labels.generator)
    if isinstance(config.mask_source, LearnedMasks):
        models["mask_source.generator"] = hash_generator(config.mask_source.generator)
    if config.emphasis:
        models["emphasis.segmenter"] = hash_segmenter(config.emphasis.segmenter)
    if isinstance(config.mask_source, NoMasks) and config.mask_source.size:
        draw["size"] = list(config.mask_source.size)
    last, path = list(config.generators.items())[-1]
    return Origin(path, weights[last], hash_config(settings), draw, models)


def hash_config(settings: dict[str, Any]) -> str:
    """Computes the SHA-256, in hex, of the part of a resolved config that images depend on."""
    return hashlib.sha256(json.dumps(select_image_settings(settings), sort_keys=True).encode()).hexdigest()


def hash_pixels(image: NDArray[np.uint8]) -> str:
    """Computes the SHA-256, in hex, of an image's pixels."""
    return hashlib.sha256(image.tobytes()).hexdigest()


def select_image_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Selects the part of a resolved config that images depend on; runs that agree in it can share a folder."""
    selected = {key: value for key, value in settings.items() if key not in _FREE_KEYS}
    for section in ("filter", "labels"):
        if selected.get(section):
            # More attempts only continue where fewer stopped.
            selected[section] = {key: value for key, value in selected[section].items() if key != "max_attempts"}
    return _drop_later(selected)


def _drop_later(settings: dict[str, Any]) -> dict[str, Any]:
    """Leaves out sections that older versions lack where they are null, so that the hashes of configs stay the same."""
    settings = {key: value for key, value in settings.items() if key != "emphasis" or value is not None}
    if (section := settings.get("filter")) and section.get("gain") is None:
        settings["filter"] = {key: value for key, value in section.items() if key != "gain"}
    return settings


def build_row(
    layout: Layout, origin: Origin, index: int, seed: int, source_mask: SourceMask, uses_image: bool = False
) -> dict[str, Any]:
    """Builds the row of metadata.jsonl from which, together with the mask, the image can be generated again.

    Paths are relative to the samples folder; `file_name` is the key of Hugging Face's imagefolder.

    Args:
        uses_image: the generator was given the image of `source_mask`.
    """
    name = layout.name(index)
    mask = {"mask": f"{layout.labels}/{name}", "source_mask": source_mask.source} if layout.labels else {}
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
        row["start_image"] = _describe_image(source_mask)
    if source_mask.origin:
        row["mask_origin"] = dict(source_mask.origin)
    if source_mask.emphasis is not None:
        row["emphasis"] = source_mask.emphasis
    if uses_image and source_mask.image is not None:
        row["source_image"] = _describe_image(source_mask)
    return row


def _describe_image(source_mask: SourceMask) -> dict[str, Any]:
    assert source_mask.image is not None
    assert source_mask.place is not None
    return {**asdict(source_mask.place), "sha256": hash_pixels(source_mask.image)}


def save_pair(
    out: Path,
    layout: Layout,
    row: dict[str, Any],
    source_mask: SourceMask,
    image: NDArray[np.uint8],
    info: DatasetInfo,
    confidence: NDArray[np.float32] | None = None,
) -> None:
    """Writes the files of one pair; the image last, since its presence marks the pair as complete.

    Args:
        confidence: (H, W) in [0, 1], saved as 255 times that.
    """
    name = Path(row["file_name"]).relative_to(layout.samples)
    if layout.labels:
        save_mask(out / layout.labels / name, source_mask.mask, info.palette)
    if layout.colored_labels:
        save_png(out / layout.colored_labels / name, color_mask(source_mask.mask, info.palette))
    if layout.images and source_mask.image is not None:
        save_png(out / layout.images / name, source_mask.image)
    if layout.confidence and confidence is not None:
        save_png(out / layout.confidence / name, np.rint(255 * confidence).astype(np.uint8))
    save_png(out / layout.samples / name, image, row)


def save_png(path: Path, image: NDArray[np.uint8], row: dict[str, Any] | None = None) -> None:
    """Writes an (H, W) or (H, W, 3) uint8 image with its row of metadata.jsonl in a text chunk."""
    text = PngImagePlugin.PngInfo()
    if row:
        text.add_text(PNG_KEY, json.dumps(row))
    with new_file(path) as working:
        Image.fromarray(image).save(working, pnginfo=text)


def read_row(path: Path) -> dict[str, Any]:
    """Reads the row of metadata.jsonl from the text chunk of an image.

    Raises:
        InputError: if the image is damaged or was not written by steelgen.
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
    """Writes metadata.jsonl row by row, in constant memory.

    A dataset folder gets a second one in train/, since Hugging Face's imagefolder can load a split alone.
    """
    split = Path(layout.samples).parent
    for folder in dict.fromkeys([Path(), split]):
        with new_file(out / folder / "metadata.jsonl") as working, open(working, "w", encoding="utf-8") as file:
            for index in range(count):
                row = read_row(layout.sample_path(out, index))
                present = [key for key in ("file_name", "mask") if key in row]
                paths = {key: Path(os.path.relpath(row[key], folder)).as_posix() for key in present}
                file.write(json.dumps({**row, **paths}) + "\n")
