"""Labels that people wrote → class names and indices; some of them mean background, or pixels to ignore."""

from __future__ import annotations

from collections.abc import Mapping

from steelgen.errors import InputError

IGNORE_INDEX = 255
_IGNORE_LABELS = ("__ignore__", "ignore", "ignore*")
_BACKGROUND_LABELS = ("_background_", "background")


def collect_names(labels: Mapping[str, object], wanted: tuple[str, ...] = (), ordered: bool = False) -> list[str]:
    """Background, then the classes asked for, or all labels, in alphabetical order unless theirs counts.

    Args:
        labels: {label: where it occurs, for errors}.
        wanted: names of the classes in order, with or without a background.

    Raises:
        InputError: if a label is not among those wanted, or there are too many.
    """
    meant = [label for label in labels if not _is_special(label)]
    chosen = [name for name in wanted if not is_background(name)] or (meant if ordered else sorted(meant))
    for label in sorted(set(meant) - set(chosen)):
        raise InputError(f"{labels[label]}: the label {label!r:.60} is not among --class-names {','.join(chosen)}")
    if len(chosen) > 254:
        where = labels.get(chosen[0], "--class-names")
        raise InputError(f"{where}: {len(chosen)} labels; a mask holds 254 beside the background")
    return ["background", *chosen]


def find_index(label: str, names: list[str]) -> int:
    """The class index of a label: 0 for background, 255 for pixels to ignore."""
    if label.casefold() in _IGNORE_LABELS and label not in names:
        return IGNORE_INDEX
    return 0 if is_background(label) else names.index(label)


def is_background(label: str) -> bool:
    """Whether a label means the background."""
    return label.casefold() in _BACKGROUND_LABELS


def _is_special(label: str) -> bool:
    return is_background(label) or label.casefold() in _IGNORE_LABELS
