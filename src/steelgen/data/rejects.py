"""Pairs that a person has looked at and does not want: one file stem a line of rejects.txt, beside images/ and masks/.

Every file stays where it is; what lists the pairs of a folder to use them passes over those that are named.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from steelgen.files import load_text, new_file

REJECTS_FILE = "rejects.txt"
"""In a split of a dataset (train/), in a folder of samples, or in a plain folder of images."""


def load_rejects(images: Path) -> frozenset[str]:
    """The stems that a rejects.txt beside or in a folder of images or masks names; none where there is no such file.

    Raises:
        InputError: if the file is no text.
    """
    return _read(images / REJECTS_FILE) | _read(images.parent / REJECTS_FILE)


def save_rejects(folder: Path, stems: Iterable[str]) -> None:
    """Writes rejects.txt, sorted; without any stem it goes."""
    lines = sorted(stems)
    if not lines:
        (folder / REJECTS_FILE).unlink(missing_ok=True)
        return
    with new_file(folder / REJECTS_FILE) as working:
        working.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _read(path: Path) -> frozenset[str]:
    lines = load_text(path).splitlines() if path.is_file() else []
    return frozenset(line.strip() for line in lines if line.strip())
