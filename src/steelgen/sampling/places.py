"""Where a real image was cut from, in words that a line of metadata.jsonl can hold."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from steelgen.config.base import MAX_CROP_SIZE
from steelgen.data.folder import list_pairs
from steelgen.data.images import load_image, to_channels
from steelgen.data.placement import Placement, apply_symmetry, resize_image
from steelgen.errors import InputError, first_line
from steelgen.files import Record, parse_record


@dataclass(frozen=True)
class ImagePlace:
    """A window of a micrograph, resized and then turned."""

    dataset: str
    """The dataset folder."""
    split: str
    stem: str
    """The micrograph's file name without its ending."""
    window: tuple[int, int, int, int]
    """Top, left, height and width, in px of the micrograph."""
    size: tuple[int, int]
    """Height and width that the window is resized to."""
    symmetry: int
    """See `apply_symmetry`."""

    def cut_image(self, micrograph: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W) or (H, W, 3) uint8 → the image."""
        top, left, height, width = self.window
        window = np.ascontiguousarray(micrograph[top : top + height, left : left + width])
        return apply_symmetry(resize_image(window, *self.size), self.symmetry)


def place_crop(dataset: Path, split: str, stem: str, placement: Placement) -> ImagePlace:
    """The place of a crop that is neither turned by an angle nor varied in gray."""
    window = (placement.top, placement.left, placement.edge, placement.edge)
    return ImagePlace(str(dataset), split, stem, window, (placement.size, placement.size), placement.symmetry)


def describe_place(place: ImagePlace, image: NDArray[np.uint8]) -> dict[str, Any]:
    """The place as JSON values, with the SHA-256 of the image's pixels."""
    return {**asdict(place), "sha256": hash_pixels(image)}


_Offset = Annotated[int, Field(ge=0, le=MAX_CROP_SIZE)]
_Edge = Annotated[int, Field(ge=1, le=MAX_CROP_SIZE)]


class _Described(Record):
    """What `describe_place` returns."""

    dataset: str
    split: str
    stem: str
    window: tuple[_Offset, _Offset, _Edge, _Edge]
    size: tuple[_Edge, _Edge]
    symmetry: int = Field(ge=0, le=7)
    sha256: str


def load_place(described: dict[str, Any] | None, in_channels: int, where: str) -> NDArray[np.uint8]:
    """Cuts an image again.

    Args:
        described: what `describe_place` returned.
        in_channels: 1 or 3.
        where: the line it comes from, for messages.

    Raises:
        InputError: if the description is damaged, or the micrograph is missing or has changed.
    """
    values = parse_record(described, _Described, f"{where}: start_image").model_dump()
    expected = values["sha256"]
    place = ImagePlace(**{field.name: values[field.name] for field in fields(ImagePlace)})
    try:
        name = f"{place.dataset}/{place.split}/images/{place.stem}"
        pairs = list_pairs(Path(place.dataset), place.split, with_rejects=True)
        paths = [pair.image for pair in pairs if pair.stem == place.stem]
        if not paths:
            raise InputError(f"{where}: the micrograph {name} is not there any more")
        image = place.cut_image(to_channels(load_image(paths[0]), in_channels))
    except InputError:
        raise
    except (OSError, ValueError) as error:
        raise InputError(f"{where}: start_image: {first_line(error)}") from None
    if hash_pixels(image) != expected:
        raise InputError(f"{where}: {name} is not the micrograph that drawing started from (its pixels differ)")
    return image


def hash_pixels(image: NDArray[np.uint8]) -> str:
    """SHA-256, in hex, of an image's pixels."""
    return hashlib.sha256(image.tobytes()).hexdigest()
