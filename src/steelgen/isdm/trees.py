"""The data folders of ISDM's further dataset modes: converted once, into the cache, and read from there."""

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
"""The dataset modes whose folders are no dataset folders as they are."""


@dataclass(frozen=True)
class Tree:
    """One such folder."""

    source: Path
    mode: str
    num_classes: int
    folder: Path
    """The dataset folder that it becomes."""


def find_tree(source: Path, mode: str, num_classes: int) -> Tree:
    """Looks a data folder up; its dataset folder is another one when a file has changed since.

    Raises:
        InputError: if there is no such folder.
    """
    digest = hashlib.blake2b(f"{source.resolve()}\0{mode}\0{num_classes}".encode(), digest_size=8)
    for path in list_files(source):
        about = path.stat()
        digest.update(f"\0{path.relative_to(source)}\0{about.st_size}\0{about.st_mtime_ns}".encode())
    name = f"{source.resolve().name}-{mode}-{digest.hexdigest()}"
    return Tree(source, mode, num_classes, default_cache_dir() / "datasets" / name)


def import_tree_once(tree: Tree, report: Callable[[int, int], None] | None = None) -> bool:
    """Imports unless that has been done; returns whether it did.

    Images keep their names, and classes ISDM's numbers and colors.

    Raises:
        InputError: see `read_trees` and `write_dataset`.
    """
    # Here, so that configs convert without what draws masks.
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
        # Another process may have done it in the meantime, which is as good.
        if not (tree.folder / "dataset.json").is_file():
            raise
    return True
