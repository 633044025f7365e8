"""Data folders of ISDM's dataset modes cityscapes, ade20k and celeba, converted once into the cache."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from steelgen.data.importers.options import ReadOptions
from steelgen.data.importers.sources import list_files
from steelgen.data.palette import isdm_palette
from steelgen.errors import InputError
from steelgen.files import default_cache_dir

TREE_MODES = ("cityscapes", "ade20k", "celeba")
"""Dataset modes whose folders must be converted to dataset folders."""


@dataclass(frozen=True)
class Tree:
    """Data folder of one of these modes."""

    source: Path
    mode: str
    num_classes: int
    folder: Path
    """The converted dataset folder."""


def find_tree(source: Path, mode: str, num_classes: int) -> Tree:
    """Finds the dataset folder of a data folder, which must exist; its name changes when a file changes."""
    digest = hashlib.blake2b(f"{source.resolve()}\0{mode}\0{num_classes}".encode(), digest_size=8)
    for path in list_files(source):
        about = path.stat()
        digest.update(f"\0{path.relative_to(source)}\0{about.st_size}\0{about.st_mtime_ns}".encode())
    name = f"{source.resolve().name}-{mode}-{digest.hexdigest()}"
    return Tree(source, mode, num_classes, default_cache_dir() / "datasets" / name)


def import_tree_once(tree: Tree, report: Callable[[int, int], None] | None = None) -> bool:
    """Imports the data folder unless it has been imported; returns whether it did.

    Images keep their names, and classes keep ISDM's indices and colors.

    Raises:
        InputError: see `read_trees` and `write_dataset`.
    """
    # Local imports, so that configs convert without the rasterizers.
    from steelgen.data.importers.trees import read_trees
    from steelgen.data.importing import WriteOptions, write_dataset
    from steelgen.data.micrograph import ImageOptions

    if (tree.folder / "dataset.json").is_file():
        return False
    names = tuple(f"class_{index}" for index in range(tree.num_classes))
    annotated = read_trees(tree.source, ReadOptions(class_names=names, layout=tree.mode))
    info = annotated.info.model_copy(update={"palette": isdm_palette(tree.num_classes)})
    images = [replace(image, stem=image.path.stem) for image in annotated.images]
    options = WriteOptions(images=ImageOptions(data_bar="none"))
    try:
        write_dataset(replace(annotated, info=info, images=images), tree.folder, options, report)
    except (InputError, OSError):
        # Another process may have imported it in the meantime.
        if not (tree.folder / "dataset.json").is_file():
            raise
    return True
