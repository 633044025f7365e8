"""Drawing an image again from its line in metadata.jsonl."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from pydantic import TypeAdapter, ValidationError

from steelgen.config.solver import AnySolverSection
from steelgen.data.folder import load_mask
from steelgen.data.images import load_image
from steelgen.errors import InputError
from steelgen.sampling.drawing import draw_images, prepare_generator
from steelgen.sampling.formats import hash_generator, save_png
from steelgen.sampling.masks import NoSource
from steelgen.sampling.places import load_place

_ValueT = TypeVar("_ValueT")


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
    row = load_row(metadata, line)
    where = f"{metadata}:{line}"
    draw: dict[str, Any] = _read(row, "draw", dict, where)
    name = Path(_read(row, "file_name", str, where))
    out = out or metadata.parent / f"replay-{name.name}"
    if out.exists():
        raise InputError(f"{out}: already exists; name another file or remove it")
    try:
        solver = TypeAdapter[Any](AnySolverSection).validate_python(_read(draw, "solver", dict, where))
    except ValidationError as error:
        raise InputError(f"{where}: solver: {error.errors()[0]['msg']}") from None
    folder = generator or Path(_read(row, "generator", str, where))
    _check_weights(folder, _read(row, "model_sha256", str, where), where)
    if guide := getattr(solver, "autoguidance", None):
        _check_weights(guide, _read(draw, "autoguidance_sha256", str, where), where)
    model = prepare_generator(folder, bool(draw.get("channels_last")))
    if "mask" in row:
        mask = load_mask(metadata.parent / _read(row, "mask", str, where), model.info)
    else:
        mask = NoSource(model.info, model.geometry).draw(0).mask
    precision = _read(draw, "mixed_precision", str, where)
    start = None
    if "strength" in draw:
        described = _read(row, "start_image", dict, where)
        image = load_place(described, model.geometry.in_channels, where)
        start = ([image], _read(draw, "strength", float, where))
    if "noise_prior_sha256" in draw:
        raise InputError(f"{where}: started from a noise prior, which was removed; older versions draw it")
    image = draw_images(model, [mask], [_read(row, "seed", int, where)], solver, precision, start)[0]
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
    try:
        row = json.loads(text)
    except json.JSONDecodeError as error:
        raise InputError(f"{metadata}:{line}:{error.colno}: not valid JSON: {error.msg}") from None
    if not isinstance(row, dict):
        raise InputError(f"{metadata}:{line}: must be a JSON object, not {type(row).__name__}")
    return row


def _check_weights(generator: Path, expected: str, where: str) -> None:
    found = hash_generator(generator)
    if found != expected:
        raise InputError(
            f"{generator}: these are not the weights of {where} (SHA-256 {found[:16]}…, there {expected[:16]}…); "
            "name the right ones with --generator"
        )


def _read(values: dict[str, Any], key: str, kind: type[_ValueT], where: str) -> _ValueT:
    value = values.get(key)
    if not isinstance(value, kind):
        raise InputError(f"{where}: {key!r} is missing or not what steelgen sample writes; it cannot be drawn again")
    return value
