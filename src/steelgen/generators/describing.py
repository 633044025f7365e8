"""What `describe` and `evaluate` know of a generator that says what kind of island a patch shows."""

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
    """What is said of N patches."""

    latents: NDArray[np.float32]
    """(N, latent_dim)."""
    angles: NDArray[np.float32]
    """(N,) radians, counterclockwise from the pose in which the decoder shows objects; in [-π, π)."""
    shifts: NDArray[np.float32]
    """(N, 2) to the right and down, in half edges of the patch, in the object's frame."""
    scales: NDArray[np.float32]
    """(N,) by which the object is smaller than the decoder shows it; 1 where scale is not taken out."""
    errors: NDArray[np.float32]
    """(N,) root mean square difference of the decoded patch: large for what it knows not."""


@runtime_checkable
class Describer(LatentGenerator, Protocol):
    """A generator that describes the patches that it was trained on."""

    sees_image: bool
    """Whether gray levels are part of a patch."""
    sees_island: bool
    """Whether the mask is."""
    neighbors: bool
    """Whether the mask shows other islands of the class too."""

    def list_centers(self) -> PatchCenters:
        """Which places of a micrograph it describes."""
        ...

    def describe(self, images: NDArray[np.uint8] | None, islands: NDArray[np.float32] | None) -> Description:
        """Describes N patches of edge image_size.

        Args:
            images: (N, S, S) or (N, S, S, 3); None where it sees none.
            islands: (N, S, S) in [0, 1]; None where it sees none.
        """
        ...


def load_describer(path: Path) -> Describer:
    """Loads a generator that describes islands; see `load_generator`.

    Raises:
        InputError: also if it is of a kind that describes none.
    """
    generator = load_generator(path)
    if not isinstance(generator, Describer):
        raise InputError(f"{path}: is a generator of kind {generator.kind}, which describes no islands; train an rvae")
    return generator
