"""File stems of images that are named by the file their mask comes from, as ISDM names them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from steelgen.errors import InputError
from steelgen.sampling.masks import FileMaskSource, MaskSource


def build_stems(source: MaskSource) -> Callable[[int], str]:
    """Image number → its stem: NAME for the first mask from NAME's file, then NAME_2, NAME_3 …, none of them twice.

    ISDM writes NAME each time, so that only the last image of each mask is left, and cuts NAME at its first dot.
    Where a file is itself called NAME_2 the numbers follow two underscores, or more.

    Raises:
        InputError: if the masks come from no files, or two files have the same stem.
    """
    if not isinstance(source, FileMaskSource):
        raise InputError("file_stems 'source': masks of this kind do not come from one file each; use 'number'")
    stem, uses = Counter(source.stems).most_common(1)[0]
    if uses > 1:
        raise InputError(f"file_stems 'source': {uses} masks are called {stem!r}; use 'number'")
    separator = find_separator(source.stems)

    def name(index: int) -> str:
        stem, repeats = source.trace(index)
        return f"{stem}{separator}{repeats + 1}" if repeats else stem

    return name


def find_separator(stems: list[str]) -> str:
    """The fewest underscores such that no stem is another one, these underscores and a number."""
    separator, known = "_", set(stems)
    while any(tail.isdigit() and head in known for head, _, tail in (stem.rpartition(separator) for stem in stems)):
        separator += "_"
    return separator
