"""Drawing an image again from its line in metadata.jsonl."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from steelgen.config.solver import AnySolverSection
from steelgen.data.folder import load_mask
from steelgen.data.images import load_image
from steelgen.errors import InputError
from steelgen.files import Record, parse_json, parse_record
from steelgen.generators.saved import hash_weights
from steelgen.sampling.formats import save_png
from steelgen.sampling.generate import generate_images, prepare_generator
from steelgen.sampling.masks import NoSource
from steelgen.sampling.places import load_place


class _Draw(Record):
    """Everything but mask and seed that an image depends on."""

    solver: AnySolverSection
    mixed_precision: Literal["no", "bf16", "fp16"]
    channels_last: bool = False
    strength: float | None = Field(None, gt=0, le=1)
    truncation: float | None = Field(None, ge=0, le=1)
    autoguidance_sha256: str | None = None
    noise_prior_sha256: str | None = None


class _GeneratedRow(Record):
    """What of a row of metadata.jsonl its image is drawn again by."""

    file_name: str
    draw: _Draw
    generator: Path
    model_sha256: str
    seed: int = Field(ge=0, lt=2**63)
    mask: str | None = None
    labels: dict[str, Any] | None = None
    """Of a mask that was made from the image, which is then drawn without."""
    start_image: dict[str, Any] | None = None


def replay(
    metadata: Path, line: int, out: Path | None = None, generator: Path | None = None
) -> tuple[Path, bool | None]:
    """Draws the image of one line of a metadata.jsonl again: on a CPU in fp32 the very same bits.

    Only the line, the mask that it names and the generator are needed; for image to image also the micrograph that it
    started from.

    Args:
        metadata: the file; the masks lie below its folder.
        line: counted from 1.
        out: the PNG to write; by default replay-<name> beside metadata.jsonl.
        generator: where the generator is now, if not where the line says.

    Returns:
        The PNG, and whether its pixels equal those of the image that the line names; None if that one is not there.

    Raises:
        InputError: if the line is missing or damaged, the weights are not those it names, or `out` exists.
    """
    row, where = load_row(metadata, line), f"{metadata}:{line}"
    drawn = parse_record(row, _GeneratedRow, where)
    draw, name = drawn.draw, Path(drawn.file_name)
    if draw.noise_prior_sha256 is not None:
        raise InputError(f"{where}: started from a noise prior, which was removed; older versions draw it")
    out = out or metadata.parent / f"replay-{name.name}"
    if out.exists():
        raise InputError(f"{out}: already exists; name another file or remove it")
    folder = generator or drawn.generator
    _check_weights(folder, drawn.model_sha256, where)
    if guide := getattr(draw.solver, "autoguidance", None):
        _check_weights(guide, draw.autoguidance_sha256 or "", where)
    model = prepare_generator(folder, draw.channels_last)
    if drawn.mask is not None and drawn.labels is None:
        mask = load_mask(metadata.parent / drawn.mask, model.info)
    else:
        mask = NoSource(model.info, model.geometry).draw(0).mask
    start = None
    if draw.strength is not None:
        start = ([load_place(drawn.start_image, model.geometry.in_channels, where)], draw.strength)
    image = generate_images(
        model, [mask], [drawn.seed], draw.solver, draw.mixed_precision, start, truncation=draw.truncation
    )[0]
    save_png(out, image, row)
    original = metadata.parent / name
    return out, bool(np.array_equal(load_image(original), load_image(out))) if original.is_file() else None


def load_row(metadata: Path, line: int) -> dict[str, Any]:
    """Line number `line` ≥ 1 of a metadata.jsonl.

    Raises:
        InputError: if there is no such file or line, or it holds no JSON object.
    """
    if line < 1:
        raise InputError(f"{metadata}: line {line}: lines are counted from 1")
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


def _check_weights(generator: Path, expected: str, where: str) -> None:
    found = hash_weights(generator)
    if found != expected:
        raise InputError(
            f"{generator}: these are not the weights of {where} (SHA-256 {found[:16]}…, there {expected[:16]}…); "
            "name the right ones with --generator"
        )
