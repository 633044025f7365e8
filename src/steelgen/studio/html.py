"""Small pieces of HTML; every text from outside goes through `escape`."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from steelgen.data.folder import DatasetInfo
from steelgen.studio.browsing import ClassFigures

_SMALL_EDGE = 160
"""Images up to this edge, px, are shown in hard pixels and without loss."""


def show_status(text: str, bad: bool = False) -> str:
    """One line below a form; a bad one is read out at once by screen readers."""
    line = escape(" ".join(text.split()))
    return f'<span class="bad" role="alert">{line}</span>' if bad else f'<span role="status">{line}</span>'


def show_image(image: NDArray[np.uint8], text: str, exact: bool = False) -> str:
    """An image (H, W) or (H, W, 3) with its description, in the page itself.

    Args:
        exact: without loss, though it is large.
    """
    small = max(image.shape[:2]) <= _SMALL_EDGE
    source = encode_image(image, "PNG" if small or exact else "JPEG")
    return f'<img class="{"small" if small else "large"}" src="{source}" alt="{escape(text)}">'


def encode_image(image: NDArray[np.uint8], kind: str = "PNG") -> str:
    """An image (H, W) or (H, W, 3) as a data URI."""
    return encode_picture(Image.fromarray(image), kind)


def encode_picture(picture: Image.Image, kind: str = "PNG") -> str:
    """A Pillow image as a data URI."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, quality=88)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def show_figure(image: NDArray[np.uint8], caption: str, exact: bool = False) -> str:
    """An image above its caption."""
    return f"<figure>{show_image(image, caption, exact)}<figcaption>{escape(caption)}</figcaption></figure>"


def show_grid(cards: Sequence[str], width: int) -> str:
    """Cards side by side, each at least `width` px wide where there is room."""
    return f'<div class="grid" style="--card: {width}px">{"".join(cards)}</div>' if cards else ""


def show_legend(info: DatasetInfo) -> str:
    """Names of the classes beside their colours."""
    return " &nbsp; ".join(
        f'<span class="swatch" style="background:rgb{tuple(color)}"></span> {escape(name)}'
        for name, color in zip(info.class_names, info.palette, strict=True)
    )


def show_classes(figures: Sequence[ClassFigures], info: DatasetInfo, note: str) -> str:
    """A table of the figures of each class."""
    rows = "".join(
        f'<tr><td><span class="swatch" style="background:rgb{tuple(color)}"></span> {escape(figure.name)}</td>'
        f'<td class="number">{figure.share:.1%}</td><td class="number">{figure.islands:,}</td>'
        f'<td class="number">{"–" if math.isnan(figure.diameter) else f"{figure.diameter:.1f}"}</td></tr>'
        for figure, color in zip(figures, info.palette, strict=True)
    )
    head = '<tr><th>class</th><th class="number">area</th><th class="number">islands</th>'
    table = f'<table>{head}<th class="number">median diameter, px</th></tr>{rows}</table>' if rows else ""
    return f'{table}<p class="note">{escape(note)}</p>'
