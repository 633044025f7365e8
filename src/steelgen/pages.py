"""Self-contained HTML pages without scripts, rendered from templates/ with every value escaped."""

from __future__ import annotations

import base64
import io
import json
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray
from PIL import Image


def render(template: str, **values: Any) -> str:
    """Renders a template as HTML.

    Args:
        template: a file in templates/.
        values: variables of the template; all but markupsafe's `Markup` are escaped.
    """
    return _environment().get_template(template).render(values)


def embed_image(image: NDArray[np.uint8], kind: Literal["PNG", "JPEG"], **options: Any) -> str:
    """Encodes an image, (H, W) or (H, W, 3) uint8, as a data URI; `options` are those of Pillow's save."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64," + base64.b64encode(buffer.getvalue()).decode()


def show_number(value: float | None) -> str:
    """Formats a number with four significant digits; a dash for an undefined one."""
    return "–" if value is None else f"{value:.4g}"


def show_value(figure: dict[str, Any]) -> str:
    """Formats the value of a figure in evaluation.json, with its 95 % interval if it has one."""
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
    show_json = partial(json.dumps, indent=2)
    environment.globals.update(show_number=show_number, show_value=show_value, show_json=show_json)
    return environment
