"""Instance maps: the annotated object at each pixel, which keeps touching objects of a class apart.

In a dataset folder they are 16-bit PNGs in SPLIT/instances/; 0 means no object.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from steelgen.data.images import load_integers
from steelgen.files import new_file

MAX_INSTANCES = 65535
"""Largest id in an instance map."""


def load_instance_ids(path: Path) -> NDArray[np.uint16]:
    """Reads an instance map as (H, W) uint16; ids need not be consecutive.

    Raises:
        InputError: if the file is unreadable or in color, or an id does not fit 16 bits.
    """
    return load_integers(path, MAX_INSTANCES).astype(np.uint16)


def save_instances(path: Path, instances: NDArray[np.uint16]) -> None:
    """Writes an (H, W) instance map as a 16-bit PNG."""
    with new_file(path) as working:
        Image.fromarray(instances).save(working, compress_level=6)


def compute_instance_edges(instances: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Marks the pixels with a neighbor (left, right, above, below) of another id, as an (H, W) boolean mask.

    Both sides of an edge are marked; the image border is not an edge. ISDM, and pix2pixHD before it, append this plane
    to the one-hot mask.
    """
    edges = np.zeros(instances.shape, bool)
    across = instances[:, 1:] != instances[:, :-1]
    down = instances[1:] != instances[:-1]
    edges[:, 1:] |= across
    edges[:, :-1] |= across
    edges[1:] |= down
    edges[:-1] |= down
    return edges
