"""Export items: pairs with unique names and their provenance."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelgen.data.folder import DatasetInfo, Pair


@dataclass(frozen=True)
class ExportItem:
    """A pair to export, on disk."""

    name: str
    """Unique file stem in the export."""
    split: str
    pair: Pair
    folder: Path
    """Dataset folder or samples folder of the pair."""
    generated: bool
    metadata: dict[str, Any]
    """Row of metadata.jsonl."""

    @property
    def provenance(self) -> dict[str, Any]:
        """Origin of the pair, with the columns of provenance.csv."""
        row = self.metadata
        return {
            "name": self.name,
            "split": self.split,
            "origin": "generated" if self.generated else "real",
            "source": self.pair.image.relative_to(self.folder).as_posix(),
            "parent": row.get("parent") or row.get("source_mask") or "",
            **{key: row.get(key, "") for key in ("generator", "model_sha256", "seed")},
        }


@dataclass(frozen=True)
class ExportPair:
    """A decoded pair."""

    item: ExportItem
    image: NDArray[np.uint8]
    """(H, W) or (H, W, 3)."""
    mask: NDArray[np.uint8]
    """(H, W) class indices or ignore_index."""
    instances: NDArray[np.uint16] | None


IGNORE_LABEL = "__ignore__"
"""Label of ignored pixels in formats with objects; `data import` reads it."""


def label_classes(info: DatasetInfo) -> dict[int, str]:
    """Maps mask values to labels of objects: all classes except the background, and ignored pixels."""
    return dict(enumerate(info.class_names[1:], start=1)) | {info.ignore_index: IGNORE_LABEL}


def color_classes(info: DatasetInfo) -> dict[int, tuple[int, int, int]]:
    """Maps the mask values of `label_classes` to colors (0-255)."""
    return dict(enumerate(info.palette[1:], start=1)) | {info.ignore_index: (255, 255, 255)}
