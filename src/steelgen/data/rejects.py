"""Rejected pairs: rejects.txt beside images/ and masks/, one file stem per line.

The files stay in place; functions that list the pairs of a folder for use skip the rejected ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from steelgen.files import load_text, new_file

REJECTS_FILE = "rejects.txt"
"""Located in a split of a dataset (train/), a samples folder, or a plain folder of images."""


def load_rejects(images: Path) -> frozenset[str]:
    """Reads the rejected stems from the rejects.txt in, or beside, a folder of images or masks; empty without one.

    Raises:
        InputError: if the file is not text.
    """
    paths = [folder / REJECTS_FILE for folder in (images, images.parent)]
    lines = [line.strip() for path in paths if path.is_file() for line in load_text(path).splitlines()]
    return frozenset(filter(None, lines))


def save_rejects(folder: Path, stems: Iterable[str]) -> None:
    """Writes rejects.txt, sorted; removes it if there are no stems."""
    lines = sorted(stems)
    if not lines:
        (folder / REJECTS_FILE).unlink(missing_ok=True)
        return
    with new_file(folder / REJECTS_FILE) as working:
        working.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
