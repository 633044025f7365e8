"""Parts of the page: figures, status lines and scripts."""

from __future__ import annotations

import base64
import io
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from steelgen.pages import render

_SMALL_EDGE = 160
"""px; images up to this edge are lossless and shown without smoothing."""
QUIET: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
"""Options of gradio events that show no progress."""


class Figure(NamedTuple):
    """An image with its caption."""

    source: str
    """Data URI."""
    caption: str
    small: bool
    """Whether to show it without smoothing."""


def build_figure(image: NDArray[np.uint8], caption: str, exact: bool = False) -> Figure:
    """Builds a figure from an image (H, W) or (H, W, 3); `exact` encodes large images without loss, too."""
    small = max(image.shape[:2]) <= _SMALL_EDGE
    return Figure(encode_picture(Image.fromarray(image), "PNG" if small or exact else "JPEG"), caption, small)


def encode_picture(picture: Image.Image, kind: str = "PNG") -> str:
    """Encodes an image as a data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=88)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def show_status(text: str, bad: bool = False) -> str:
    """Renders a status line; `bad` marks it as an error."""
    return render("studio_status.html", text=" ".join(text.split()), bad=bad)


def load_script(name: str) -> str:
    """Loads a script of the page."""
    return (Path(__file__).parent / name).read_text(encoding="utf-8")
