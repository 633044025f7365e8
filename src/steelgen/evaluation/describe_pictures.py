"""Charts and image sheets of described islands, as pixel arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from steelgen.charts import chart_style
from steelgen.data.palette import default_palette
from steelgen.data.sheets import build_sheet
from steelgen.evaluation.clusters import Clusters
from steelgen.evaluation.intervals import Interval

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ACROSS = 16
"""Cells per row and column of the layout."""
_TYPICAL = 12
_TILE = 48
_MOST_NAMES = 12
"""Largest number of legend entries."""


class Plane(NamedTuple):
    """Positions of islands in a chart."""

    places: NDArray[np.float64]
    """(N, 2) x, y."""
    labels: tuple[str, str]
    """Axis labels."""


def find_plane(latents: NDArray[np.float32], areas: NDArray[Any]) -> Plane:
    """Projects latents to a plane: two latents as they are, more by their principal components, one against the area.

    Args:
        latents: (N, D).
        areas: (N,) in px².
    """
    values = latents.astype(np.float64)
    if values.shape[1] == 1:
        return Plane(np.stack([values[:, 0], np.log10(areas)], axis=1), ("z1", "log₁₀ area (px)"))
    if values.shape[1] == 2:
        return Plane(values, ("z1", "z2"))
    centered = values - values.mean(axis=0)
    _, _, axes = np.linalg.svd(centered, full_matrices=False)
    return Plane(centered @ axes[:2].T, ("principal component 1", "principal component 2"))


def draw_scatter(
    plane: Plane, values: Sequence[Any], name: str, palette: Mapping[str, tuple[int, int, int]]
) -> NDArray[np.uint8]:
    """Plots one dot per island.

    Args:
        plane: positions.
        values: (N,) values for the color, all numbers or all text.
        name: name of the values.
        palette: colors of text values; missing ones get default colors.
    """
    figure = _create_figure()
    axes = figure.add_subplot(xlabel=plane.labels[0], ylabel=plane.labels[1])
    axes.set_title(f"{len(values)} islands by {name}", loc="left")
    size = float(np.clip(3000 / len(values), 3, 25))
    distinct = sorted(set(values))
    numbers = not isinstance(distinct[0], str)
    if numbers and len(distinct) > _MOST_NAMES:
        dots = axes.scatter(
            plane.places[:, 0], plane.places[:, 1], s=size, c=np.array(values, float), cmap="viridis", linewidths=0
        )
        figure.colorbar(dots, label=name)
    else:
        colors = _pick_colors(distinct, palette, numbers)
        # Random order, so that the last class does not cover the others.
        order = np.random.default_rng(0).permutation(len(values))
        x, y = plane.places[order].T
        axes.scatter(x, y, s=size, c=[colors[values[row]] for row in order], linewidths=0)
        for value in distinct[:_MOST_NAMES]:
            axes.scatter([], [], s=25, color=colors[value], label=str(value) or "(none)")
        more = len(distinct) - _MOST_NAMES
        figure.legend(title=f"and {more} more" if more > 0 else None, loc="outside right upper")
    low, high = np.percentile(plane.places, [0.5, 99.5], axis=0)
    margin = 0.1 * np.maximum(high - low, 1e-6)
    axes.set_xlim(low[0] - margin[0], high[0] + margin[0])
    axes.set_ylim(low[1] - margin[1], high[1] + margin[1])
    return _to_pixels(figure)


def draw_layout(plane: Plane, show: Callable[[int], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Shows the island nearest to the center of each grid cell of the plane; empty cells stay blank."""
    low, high = np.percentile(plane.places, [1, 99], axis=0)
    scaled = (plane.places - low) / np.maximum(high - low, 1e-9) * _ACROSS
    inside = ((scaled >= 0) & (scaled <= _ACROSS)).all(axis=1)
    cells = np.minimum(np.floor(scaled).astype(int), _ACROSS - 1)
    offsets = np.linalg.norm(scaled - cells - 0.5, axis=1)
    chosen: dict[tuple[int, int], int] = {}
    for row in np.argsort(-offsets, kind="stable"):
        if inside[row]:
            column, line = cells[row]
            chosen[int(line), int(column)] = int(row)
    blank = np.full((_TILE, _TILE), 255, np.uint8)
    # The second axis points up.
    return build_sheet(
        [
            [show(chosen[line, column]) if (line, column) in chosen else blank for column in range(_ACROSS)]
            for line in reversed(range(_ACROSS))
        ],
        tile=_TILE,
    )


def draw_clusters(clusters: Clusters, show: Callable[[int], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Shows typical islands of each cluster, one row per cluster, largest cluster first."""
    blank = np.full((_TILE, _TILE), 255, np.uint8)
    rows = []
    for cluster in range(len(clusters.centers)):
        typical = [show(int(row)) for row in clusters.list_typical(cluster, _TYPICAL)]
        rows.append([*typical, *[blank] * (_TYPICAL - len(typical))])
    return build_sheet(rows, tile=_TILE)


def draw_occupancy(occupancy: Mapping[Any, Sequence[tuple[float, Interval]]], name: str) -> NDArray[np.uint8]:
    """Plots cluster shares over the conditions with 95 % intervals: lines for numbers, dots for text."""
    figure = _create_figure()
    conditions = list(occupancy)
    numbers = not isinstance(conditions[0], str)
    positions = np.array(conditions, float) if numbers else np.arange(len(conditions))
    axes = figure.add_subplot(xlabel=name, ylabel="share of the islands")
    count = len(occupancy[conditions[0]])
    # Side by side, so that intervals do not overlap.
    gap = (np.diff(positions).min() if len(positions) > 1 else 1) * 0.5 / count
    colors = _pick_colors(range(count), {}, numbers=False)
    for cluster in range(count):
        shares = np.array([occupancy[condition][cluster][0] for condition in conditions])
        ends = np.array([occupancy[condition][cluster][1] for condition in conditions]).T
        x = positions + (cluster - (count - 1) / 2) * gap
        axes.vlines(x, *ends, color=colors[cluster], linewidth=1.5)
        axes.plot(x, shares, "o-" if numbers else "o", color=colors[cluster], label=f"cluster {cluster}")
    if not numbers:
        axes.set_xticks(positions, [str(condition) or "(none)" for condition in conditions], rotation=20, ha="right")
    axes.set_ylim(0, 1)
    axes.grid(axis="y")
    figure.legend(loc="outside right upper")
    return _to_pixels(figure)


def _create_figure() -> Figure:
    from matplotlib.figure import Figure

    with chart_style():
        return Figure((7.5, 5.5), dpi=120, layout="constrained")


def _pick_colors(
    values: Sequence[Any], palette: Mapping[str, tuple[int, int, int]], numbers: bool
) -> dict[Any, tuple[float, ...]]:
    """Returns colors in [0, 1]: viridis for numbers, otherwise from the palette or Okabe-Ito."""
    from matplotlib import colormaps

    if numbers:
        return {value: colormaps["viridis"](rank / max(1, len(values) - 1)) for rank, value in enumerate(values)}
    # The first color is black, reserved for the matrix.
    others = default_palette(len(values) + 1)[1:]
    colors = {value: palette.get(value, color) for value, color in zip(values, others, strict=True)}
    return {value: tuple(channel / 255 for channel in color) for value, color in colors.items()}


def _to_pixels(figure: Figure) -> NDArray[np.uint8]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    with chart_style():
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[..., :3].copy()
