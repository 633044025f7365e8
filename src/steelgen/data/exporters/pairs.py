"""What the writers are given: pairs with names that are theirs alone, and where each comes from."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelgen.data.folder import DatasetInfo


@dataclass(frozen=True)
class ExportItem:
    """A pair on disk."""

    name: str
    """File stem in the export; no two items share one."""
    split: str
    image: Path
    mask: Path
    instances: Path | None = None
    folder: Path = Path()
    """The dataset or samples folder that it lies in."""
    generated: bool = False
    metadata: dict[str, Any] = field(default_factory=dict)
    """Its row of metadata.jsonl."""

    @property
    def provenance(self) -> dict[str, Any]:
        """Where it comes from, in the columns of provenance.csv."""
        row = self.metadata
        return {
            "name": self.name,
            "split": self.split,
            "origin": "generated" if self.generated else "real",
            "source": self.image.relative_to(self.folder).as_posix(),
            "parent": row.get("parent") or row.get("source_mask") or "",
            "generator": row.get("generator", ""),
            "model_sha256": row.get("model_sha256", ""),
            "seed": row.get("seed", ""),
        }


@dataclass(frozen=True)
class ExportPair:
    """A pair that was read."""

    item: ExportItem
    image: NDArray[np.uint8]
    """(H, W) or (H, W, 3)."""
    mask: NDArray[np.uint8]
    """(H, W) class indices or ignore_index."""
    instances: NDArray[np.uint16] | None


IGNORE_LABEL = "__ignore__"
"""What pixels to ignore are labeled in formats of objects; `data import` knows it."""


def label_classes(info: DatasetInfo) -> dict[int, str]:
    """Mask value → label of all that is drawn as objects: the classes but the background, and pixels to ignore."""
    return dict(enumerate(info.class_names[1:], start=1)) | {info.ignore_index: IGNORE_LABEL}


def color_classes(info: DatasetInfo) -> dict[int, tuple[int, int, int]]:
    """Mask value → color (0-255) of what `label_classes` labels."""
    return dict(enumerate(info.palette[1:], start=1)) | {info.ignore_index: (255, 255, 255)}
