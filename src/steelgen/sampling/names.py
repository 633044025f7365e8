"""File stems of images that are named by the file their mask comes from, as ISDM names them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from steelgen.errors import InputError
from steelgen.sampling.masks import FileMaskSource, MaskSource


def build_stems(source: MaskSource, batch_size: int) -> Callable[[int], str]:
    """Image number → its stem, NAME_<batch>: the file's stem up to its first dot, and number // batch_size.

    Where ISDM would write a name twice, none is lost: a mask that comes round again within a batch gives
    NAME_<batch>-2, and stems are kept whole where two of them are the same up to the first dot.

    Raises:
        InputError: if the masks come from no files, or two files have the same stem.
    """
    if not isinstance(source, FileMaskSource):
        raise InputError("file_stems 'source': masks of this kind do not come from one file each; use 'number'")
    stem, uses = Counter(source.stems).most_common(1)[0]
    if uses > 1:
        raise InputError(f"file_stems 'source': {uses} masks are called {stem!r}; use 'number'")
    cut = len({stem.split(".")[0] for stem in source.stems}) == len(source.stems)

    def name(index: int) -> str:
        batch, stem = index // batch_size, source.trace(index)
        repeats = sum(source.trace(other) == stem for other in range(batch * batch_size, index))
        return f"{stem.split('.')[0] if cut else stem}_{batch}" + (f"-{repeats + 1}" if repeats else "")

    return name
