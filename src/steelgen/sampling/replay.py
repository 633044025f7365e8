"""Replay of a generated image from its line in metadata.jsonl."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BeforeValidator, Field

from steelgen.config.base import MAX_CROP_SIZE
from steelgen.config.solver import AnySolverSection
from steelgen.data.folder import DatasetInfo, list_pairs, load_mask
from steelgen.data.images import load_image, to_channels
from steelgen.errors import InputError, first_line
from steelgen.files import Record, parse_json, parse_record
from steelgen.generators import Generator
from steelgen.generators.cascade import build_cascade
from steelgen.generators.drawing import conditions_of, find_factor
from steelgen.generators.saved import hash_weights
from steelgen.sampling.conditions import encode_conditions
from steelgen.sampling.formats import hash_pixels, save_png
from steelgen.sampling.generate import SamplingBatch, generate_pairs, prepare_generator
from steelgen.sampling.inpainting import InpaintRegion
from steelgen.sampling.masks import ImagePlace, NoSource

_Offset = Annotated[int, Field(ge=0, le=MAX_CROP_SIZE)]
_Edge = Annotated[int, Field(ge=1, le=MAX_CROP_SIZE)]


def _complete(solver: Any) -> Any:
    """Adds what was the only way when a row was written: mean gray levels from the network, and pairs unguided."""
    if isinstance(solver, dict) and not str(solver.get("name")).startswith("respaced_"):
        return {"brightness": "network", "guide_pairs": False, **solver}
    return solver


_Solver = Annotated[AnySolverSection, BeforeValidator(_complete)]


class _Stage(Record):
    """A stage of a cascade."""

    generator: Path
    model_sha256: str
    solver: _Solver
    autoguidance_sha256: str | None = None


class _Draw(Record):
    """Settings other than mask and seed that an image depends on."""

    solver: _Solver
    mixed_precision: Literal["no", "bf16", "fp16"]
    channels_last: bool = False
    strength: float | None = Field(None, gt=0, le=1)
    truncation: float | None = Field(None, ge=0, le=1)
    size: tuple[_Edge, _Edge] | None = None
    """Height and width of an image without mask."""
    autoguidance_sha256: str | None = None
    noise_prior_sha256: str | None = None
    stages: list[_Stage] = []
    """Those of a cascade."""


class _PlacedImage(Record):
    """See `ImagePlace`."""

    dataset: str
    split: str
    stem: str
    window: tuple[_Offset, _Offset, _Edge, _Edge]
    size: tuple[_Edge, _Edge]
    symmetry: int = Field(ge=0, le=7)
    sha256: str


class _GeneratedRow(Record):
    """Fields of a row of metadata.jsonl that replay uses."""

    file_name: str
    draw: _Draw
    generator: Path
    model_sha256: str
    seed: int = Field(ge=0, lt=2**63)
    mask: str | None = None
    labels: dict[str, Any] | None = None
    """Set if the mask was predicted from the image, which was then generated without."""
    mask_made: bool = False
    """Set if the generator made the mask along with the image."""
    start_image: _PlacedImage | None = None
    inpaint: InpaintRegion | None = None
    """The region of a real pair that the generator drew anew; the rest is that of `source_image` and its mask."""
    source_image: _PlacedImage | None = None
    """The image that the generator turned into another."""
    conditions: dict[str, float | str] = {}


def replay(
    metadata: Path, line: int, out: Path | None = None, generator: Path | None = None
) -> tuple[Path, bool | None]:
    """Generates the image of one line of a metadata.jsonl again, bit for bit on a CPU in fp32.

    This needs only the line, the mask that it names and the generator, and the image that it started from or turned
    into another.

    Args:
        metadata: the file; mask paths are relative to its folder.
        line: line number, from 1.
        out: PNG to write; by default replay-<name> next to metadata.jsonl.
        generator: current path of the generator, if it has moved.

    Returns:
        The PNG, and whether its pixels equal those of the original image; None if that does not exist.

    Raises:
        InputError: if the line is missing or damaged, the weights have changed, or `out` exists.
    """
    row, where = _load_row(metadata, line), f"{metadata}:{line}"
    record = parse_record(row, _GeneratedRow, where)
    draw, name = record.draw, Path(record.file_name)
    if draw.noise_prior_sha256 is not None:
        raise InputError(f"{where}: uses a noise prior, which was removed; replay it with an older steelgen")
    out = out or metadata.parent / f"replay-{name.name}"
    if out.exists():
        raise InputError(f"{out}: already exists; choose another file or delete it")
    model = _load_model(record, generator, where)
    images = None
    if record.source_image:
        images = [_load_image(record.source_image, model.geometry.in_channels, where)]
    if record.inpaint is not None:
        if record.source_image is None:
            raise InputError(f"{where}: source_image: is missing")
        mask = _load_mask(record.source_image, model.info, where)
    elif record.mask is not None and record.labels is None and not record.mask_made:
        path = metadata.parent / record.mask
        if model.info.num_classes:
            mask = load_mask(path, model.info)
        else:  # kept from the start image
            mask = np.full(load_image(path).shape[:2], model.info.ignore_index, np.uint8)
    elif images:
        size = [find_factor(model) * edge for edge in images[0].shape[:2]]
        mask = np.full(size, model.info.ignore_index, np.uint8)
    else:
        mask = NoSource(model.info, model.geometry, draw.size).draw(0).mask
    start = None
    if draw.strength is not None:
        if record.start_image is None:
            raise InputError(f"{where}: start_image: is missing")
        start = ([_load_image(record.start_image, model.geometry.in_channels, where)], draw.strength)
    batch = SamplingBatch(
        [mask],
        [record.seed],
        draw.solver,
        images=images,
        start=start,
        regions=None if record.inpaint is None else [record.inpaint],
        conditions=encode_conditions(conditions_of(model), [record.conditions]),
        truncation=draw.truncation,
    )
    pair = generate_pairs(model, batch, draw.mixed_precision)[0]
    save_png(out, pair.image, row)
    original = metadata.parent / name
    return out, bool(np.array_equal(load_image(original), load_image(out))) if original.is_file() else None


def _load_model(record: _GeneratedRow, generator: Path | None, where: str) -> Generator:
    """Loads the generator of a row, or the stages of its cascade, after checking the weights."""
    draw = record.draw
    if draw.stages and generator:
        raise InputError(f"--generator {generator}: not applicable to a cascade; its stages must be where they were")
    last = _Stage(
        generator=generator or record.generator,
        model_sha256=record.model_sha256,
        solver=draw.solver,
        autoguidance_sha256=draw.autoguidance_sha256,
    )
    stages = draw.stages or [last]
    for stage in stages:
        _check_weights(stage.generator, stage.model_sha256, where, hint=not draw.stages)
        if guide := getattr(stage.solver, "autoguidance", None):
            _check_weights(guide, stage.autoguidance_sha256 or "", where)
    models = [prepare_generator(stage.generator, draw.channels_last) for stage in stages]
    if not draw.stages:
        return models[0]
    return build_cascade(models, [stage.solver for stage in stages], [stage.generator for stage in stages])


def _load_row(metadata: Path, line: int) -> dict[str, Any]:
    if line < 1:
        raise InputError(f"{metadata}: line {line}: line numbers start at 1")
    if not metadata.is_file():
        raise InputError(f"{metadata}: no such file")
    with open(metadata, encoding="utf-8", errors="replace") as file:
        text = next(islice(file, line - 1, None), None)
    if text is None:
        raise InputError(f"{metadata}: has no line {line}")
    row = parse_json(text, str(metadata), line)
    if not isinstance(row, dict):
        raise InputError(f"{metadata}:{line}: must be a JSON object, not {type(row).__name__}")
    return row


def _load_image(start: _PlacedImage, in_channels: int, where: str) -> NDArray[np.uint8]:
    place = ImagePlace(start.dataset, start.split, start.stem, start.window, start.size, start.symmetry)
    name = f"{place.dataset}/{place.split}/images/{place.stem}"
    try:
        pairs = list_pairs(Path(place.dataset), place.split, with_rejects=True)
        paths = [pair.image for pair in pairs if pair.stem == place.stem]
        if not paths:
            raise InputError(f"{where}: the micrograph {name} does not exist")
        image = place.cut_image(to_channels(load_image(paths[0]), in_channels))
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: {name}: {first_line(error)}") from None
    if hash_pixels(image) != start.sha256:
        raise InputError(f"{where}: the pixels of the micrograph {name} have changed since sampling")
    return image


def _load_mask(start: _PlacedImage, info: DatasetInfo, where: str) -> NDArray[np.uint8]:
    """Loads the mask of a real image; which classes it has follows from `info`."""
    place = ImagePlace(start.dataset, start.split, start.stem, start.window, start.size, start.symmetry)
    pairs = list_pairs(Path(place.dataset), place.split, with_rejects=True)
    paths = [pair.mask for pair in pairs if pair.stem == place.stem and pair.mask is not None]
    if not paths:
        raise InputError(f"{where}: {place.dataset}/{place.split}/masks/{place.stem} does not exist")
    return place.cut_mask(load_mask(paths[0], info))


def _check_weights(generator: Path, expected: str, where: str, hint: bool = True) -> None:
    found = hash_weights(generator)
    if found != expected:
        raise InputError(
            f"{generator}: the weights differ from those of {where} (SHA-256 {found[:16]}…, not {expected[:16]}…)"
            + ("; pass the right generator with --generator" if hint else "")
        )
