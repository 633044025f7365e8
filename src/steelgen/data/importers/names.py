"""Class names and indices of the labels in a source; some labels mean background or pixels to ignore."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from steelgen.data.annotations import Annotation
from steelgen.errors import InputError

IGNORE_INDEX = 255
_IGNORE_LABELS = ("__ignore__", "ignore", "ignore*")
_BACKGROUND_LABELS = ("_background_", "background")


def collect_names(labels: Mapping[str, object], wanted: tuple[str, ...] = (), ordered: bool = False) -> list[str]:
    """Returns background and the classes: `wanted` if given, otherwise all labels.

    Args:
        labels: {label: origin for errors}.
        wanted: class names in order, with or without background.
        ordered: keep the order of the labels, instead of sorting them.

    Raises:
        InputError: if a label is not in `wanted`, or there are too many classes.
    """
    used = [label for label in labels if not is_background(label) and label.casefold() not in _IGNORE_LABELS]
    names = [name for name in wanted if not is_background(name)] or (used if ordered else sorted(used))
    for label in sorted(set(used) - set(names)):
        raise InputError(f"{labels[label]}: label {label!r:.60} is not in --class-names {','.join(names)}")
    if len(names) > 254:
        origin = labels.get(names[0], "--class-names")
        raise InputError(f"{origin}: {len(names)} labels; the limit is 254 in addition to the background")
    return ["background", *names]


def find_index(label: str, names: list[str]) -> int:
    """Returns the class index of a label: 0 for background, 255 for pixels to ignore."""
    if label.casefold() in _IGNORE_LABELS and label not in names:
        return IGNORE_INDEX
    return 0 if is_background(label) else names.index(label)


def is_background(label: str) -> bool:
    """Whether a label means background."""
    return label.casefold() in _BACKGROUND_LABELS


def annotate(
    class_index: int,
    *polygons: NDArray[np.float64],
    runs: NDArray[np.int64] | None = None,
    annotator: str = "",
) -> Annotation:
    """Builds an annotation, which is an instance unless it is background or to be ignored."""
    return Annotation(class_index, polygons, runs, annotator, is_instance=class_index not in (0, IGNORE_INDEX))
