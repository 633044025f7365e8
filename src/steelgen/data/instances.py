"""Instance maps: which object each pixel belongs to, so that touching ones can be told apart.

In a dataset folder they are 16-bit PNGs in SPLIT/instances/, 0 where there is no object.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from steelgen.data.images import load_whole_numbers
from steelgen.errors import InputError
from steelgen.files import new_file

MAX_INSTANCE_ID = 65535


def load_instance_ids(path: Path) -> NDArray[np.uint16]:
    """Reads an instance map as (H, W) uint16; ids need not be consecutive.

    Raises:
        InputError: if the file is unreadable or in color, or an id does not fit 16 bits.
    """
    ids = load_whole_numbers(path)
    if ids.size and not 0 <= ids.min() <= ids.max() <= MAX_INSTANCE_ID:
        value = ids.max() if ids.max() > MAX_INSTANCE_ID else ids.min()
        raise InputError(f"{path}: the id {value} is not from 0 to {MAX_INSTANCE_ID}")
    return ids.astype(np.uint16)


def save_instances(path: Path, instances: NDArray[np.uint16]) -> None:
    """Writes an (H, W) instance map as a 16-bit PNG."""
    with new_file(path) as working:
        Image.fromarray(instances).save(working, compress_level=6)


def compute_instance_edges(instances: NDArray[np.integer]) -> NDArray[np.bool_]:
    """The pixels with a neighbor (left, right, above, below) of another id, as an (H, W) boolean mask.

    Both sides of a border are marked; the image's own border is none. This is the plane that ISDM, and pix2pixHD before
    it, append to the one-hot mask.
    """
    edges = np.zeros(instances.shape, bool)
    across = instances[:, 1:] != instances[:, :-1]
    down = instances[1:] != instances[:-1]
    edges[:, 1:] |= across
    edges[:, :-1] |= across
    edges[1:] |= down
    edges[:-1] |= down
    return edges
