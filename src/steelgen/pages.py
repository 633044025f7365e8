"""Pages from templates/, which escape every value; a page needs nothing from outside and has no script."""

from __future__ import annotations

import base64
import io
import json
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image


def render(template: str, **values: Any) -> str:
    """A page, or a part of one, as HTML.

    Args:
        template: a file of templates/.
        values: what it shows; of these markupsafe's `Markup` alone is taken for HTML.
    """
    return _environment().get_template(template).render(values)


def embed_image(image: NDArray[np.uint8], kind: Literal["PNG", "JPEG"], **options: Any) -> str:
    """(H, W) or (H, W, 3) uint8 as a data URI, with Pillow's options of saving."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()


def show_number(value: float | None) -> str:
    """Four digits, or a dash for what is not defined."""
    return "–" if value is None else f"{value:.4g}"


def show_value(figure: dict[str, Any]) -> str:
    """The value of a figure in evaluation.json and its 95 % interval, where it has one."""
    interval = figure["interval"]
    if figure["value"] is None or interval is None or interval[0] is None:
        return show_number(figure["value"])
    return f"{show_number(figure['value'])} [{show_number(interval[0])}, {show_number(interval[1])}]"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals.update(show_number=show_number, show_value=show_value, show_json=_show_json)
    return environment


def _show_json(value: Any) -> str:
    return json.dumps(value, indent=2)
