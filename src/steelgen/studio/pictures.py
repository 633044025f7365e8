"""Pictures, lines and scripts as the page takes them."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from steelgen.pages import render

_SMALL_EDGE = 160
"""Images up to this edge, px, are shown in hard pixels and without loss."""


class Figure(NamedTuple):
    """A picture and what stands below it."""

    source: str
    """A data URI."""
    caption: str
    small: bool
    """Its pixels are shown hard."""


def build_figure(image: NDArray[np.uint8], caption: str, exact: bool = False) -> Figure:
    """An image (H, W) or (H, W, 3) for a template.

    Args:
        exact: without loss, though it is large.
    """
    small = max(image.shape[:2]) <= _SMALL_EDGE
    return Figure(encode_picture(Image.fromarray(image), "PNG" if small or exact else "JPEG"), caption, small)


def encode_picture(picture: Image.Image, kind: str = "PNG") -> str:
    """A picture as a data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=88)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def show_status(text: str, bad: bool = False) -> str:
    """One line below a form, as HTML."""
    return render("studio_status.html", text=" ".join(text.split()), bad=bad)


def load_script(name: str) -> str:
    """One of the page's scripts."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
