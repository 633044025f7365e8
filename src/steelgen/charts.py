"""Charts as inline SVG or as pixels, drawn by matplotlib without pyplot's global state."""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLORS = {"generated": "#d55e00", "held_out": "#0072b2", "train": "#56b4e9"}
"""Okabe and Ito's palette, distinguishable with all common color-vision deficiencies."""
INTERVAL_COLORS = ("#009e73", "#888888", "#d55e00")
"""Colors of an interval above 0, one that includes 0, and one below."""

_MAX_TICKS = 6
"""Up to this many positions each get a tick."""
_MAX_MARKERS = 50
"""Up to this many points of a curve are marked with dots."""
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": "#dddddd",
    "axes.labelcolor": "#444444",
    "axes.labelsize": 10,
    "axes.titlecolor": "#222222",
    "axes.titlesize": 10.5,
    "font.family": ["DejaVu Sans"],
    "font.size": 10,
    "grid.color": "#dddddd",
    "legend.frameon": False,
    "legend.labelcolor": "linecolor",
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "svg.fonttype": "none",
    "text.parse_math": False,
    "xtick.labelcolor": "#444444",
    "ytick.labelcolor": "#444444",
    **{f"{axis}tick.major.size": 0 for axis in "xy"},
    **{f"axes.spines.{side}": False for side in ("left", "right", "top")},
}


@dataclass(frozen=True)
class Curve:
    """One line of a chart."""

    name: str
    values: Sequence[float]
    """NaN where a value is missing; the line skips it."""
    color: str
    dashed: bool = False
    spread: tuple[Sequence[float], Sequence[float]] | None = None
    """Lower and upper ends of an error bar at each value; NaN for no bar."""


def plot_chart(
    title: str,
    x: Sequence[float],
    curves: Sequence[Curve],
    x_label: str,
    band: tuple[Sequence[float], Sequence[float]] | None = None,
) -> str:
    """Plots a line chart as an <svg> element.

    Args:
        title: above the chart; unique within the page.
        x: (K,) positions, increasing.
        curves: lines of K values each.
        x_label: below the axis.
        band: lower and upper K values of a shaded band.
    """
    with chart_style(title):
        figure, axes = _plot(title, x, curves, x_label)
        if band:
            axes.fill_between(x, *band, color=COLORS["held_out"], alpha=0.18, linewidth=0)
        return to_svg(figure)


def plot_pixels(
    title: str, x: Sequence[float], curves: Sequence[Curve], x_label: str, scale: int = 3
) -> NDArray[np.uint8]:
    """Plots the chart of `plot_chart` as (H, W, 3) uint8 pixels, with a legend and dots at the points.

    Args:
        title, x, curves, x_label: see `plot_chart`.
        scale: pixels per px of the SVG.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with chart_style():
        figure, axes = _plot(title, x, curves, x_label)
        for line in axes.lines:
            line.set_marker("o" if len(line.get_xdata()) <= _MAX_MARKERS else "")  # type: ignore[arg-type]
        axes.legend(fontsize=10, handlelength=0, handletextpad=0, markerscale=0)
        figure.set_dpi(72 * scale)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def plot_intervals(title: str, rows: Sequence[tuple[str, float, float, float]]) -> str:
    """Plots values with their intervals, one per row, around a line at 0, as an <svg> element.

    Args:
        title: above the chart; unique within the page.
        rows: name, value, lower and upper end of each.
    """
    names, values, lower, upper = zip(*rows, strict=True)
    left = max([250, *(16 + 6.5 * len(name) for name in names)])
    colors = [INTERVAL_COLORS[0 if low > 0 else 2 if high < 0 else 1] for _, _, low, high in rows]
    with chart_style(title):
        figure, axes = _new_figure(title, (left + 450, 50 + 18 * len(rows)), left, 24, 26, 20)
        axes.axvline(0, color="#888888", linewidth=1)
        axes.hlines(names, lower, upper, colors)
        axes.scatter(values, names, s=36, c=colors, zorder=3)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.xaxis.set_major_formatter("{x:+.3f}")
        return to_svg(figure)


@contextmanager
def chart_style(salt: str = "") -> Iterator[None]:
    """Sets the style of all charts; `salt` makes the ids of an SVG unique within a page."""
    from matplotlib import rc_context

    with rc_context({**_STYLE, "svg.hashsalt": salt}), warnings.catch_warnings():
        # Browsers substitute fonts for missing glyphs.
        warnings.filterwarnings("ignore", "Glyph .* missing")
        yield


def _new_figure(
    title: str, size: tuple[float, float], left: float, bottom: float, top: float, right: float
) -> tuple[Figure, Axes]:
    """Creates an empty chart; size and margins are in px."""
    from matplotlib.figure import Figure

    width, height = size
    figure = Figure((width / 72, height / 72), dpi=72)
    inner = (left / width, bottom / height, (width - left - right) / width, (height - bottom - top) / height)
    axes = figure.add_axes(inner)
    axes.set_title(title, loc="left", fontweight="bold")
    return figure, axes


def _plot(title: str, x: Sequence[float], curves: Sequence[Curve], x_label: str) -> tuple[Figure, Axes]:
    figure, axes = _new_figure(title, (330, 220), left=52, bottom=36, top=26, right=12)
    for curve in curves:
        known = [(position, value) for position, value in zip(x, curve.values, strict=True) if math.isfinite(value)]
        dashes = "--" if curve.dashed else "-"
        axes.plot(*np.reshape(known, (-1, 2)).T, dashes, color=curve.color, label=curve.name, clip_on=False, zorder=3)
        if curve.spread:
            axes.vlines(x, *curve.spread, curve.color, linewidth=1, clip_on=False)
    axes.margins(0)
    low, high = axes.get_ylim()
    axes.set_ylim(0 if 0 <= low < 0.3 * high else low, high)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.locator_params(axis="y", nbins=4)
    if len(x) <= _MAX_TICKS:
        axes.set_xticks(x)
    else:
        axes.locator_params(axis="x", nbins=5)
    axes.set_xlabel(x_label)
    return figure, axes


def to_svg(figure: Figure) -> str:
    """Returns the figure as a one-line <svg> element for a shared page: no <style>, only ids that are referenced."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata=dict.fromkeys(["Creator", "Date", "Format", "Type"]))
    svg = buffer.getvalue()
    svg = re.sub(r"<defs>\s*<style.*?</defs>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    referred = set(re.findall(r"#(\w+)", svg))
    svg = re.sub(r'<(\w+) id="([^"]*)"', lambda found: found[0] if found[2] in referred else f"<{found[1]}", svg)
    return re.sub(r"\s*\n\s*", " ", svg).strip()
