"""Protocol of generators that describe islands."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from steelgen.data.patches import PatchCenters
from steelgen.errors import InputError
from steelgen.generators import LatentGenerator
from steelgen.generators.families import load_generator


class Description(NamedTuple):
    """Latents and pose of N patches."""

    latents: NDArray[np.float32]
    """(N, latent_dim)."""
    angles: NDArray[np.float32]
    """(N,) radians in [-π, π), counterclockwise from the decoder's canonical orientation."""
    shifts: NDArray[np.float32]
    """(N, 2) right and down in the object's frame, in half edges of the patch."""
    scales: NDArray[np.float32]
    """(N,) decoded size divided by the object's size; 1 if the model is not scale-invariant."""
    errors: NDArray[np.float32]
    """(N,) root mean square reconstruction error; large for unfamiliar objects."""


@runtime_checkable
class Describer(LatentGenerator, Protocol):
    """A generator that describes patches of micrographs."""

    sees_image: bool
    """Whether patches include gray levels."""
    sees_island: bool
    """Whether patches include the mask."""
    neighbors: bool
    """Whether the mask includes other islands of the same class."""

    def list_centers(self) -> PatchCenters:
        """Returns the rule that selects patches of a micrograph."""
        ...

    def describe(self, images: NDArray[np.uint8] | None, islands: NDArray[np.float32] | None) -> Description:
        """Describes N patches of edge image_size.

        Args:
            images: (N, S, S) or (N, S, S, 3); None without `sees_image`.
            islands: (N, S, S) in [0, 1]; None without `sees_island`.
        """
        ...


def load_describer(path: Path) -> Describer:
    """Loads a generator that describes islands; see `load_generator`.

    Raises:
        InputError: also if the generator's kind cannot describe islands.
    """
    generator = load_generator(path)
    if not isinstance(generator, Describer):
        raise InputError(f"{path}: generators of kind {generator.kind} cannot describe islands; use kind rvae")
    return generator
