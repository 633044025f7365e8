"""PNG charts of the benchmarks."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator


def plot_curves(
    curves: dict[str, list[tuple[float, float]]],
    x_label: str,
    y_label: str,
    bold: Collection[str],
    path: Path,
    logarithmic: bool = True,
) -> None:
    """Plots curves, on logarithmic axes by default.

    Args:
        curves: positive (x, y) points by name, at least one, sorted by x.
        x_label, y_label: axis labels.
        bold: names of curves to plot thicker and opaque.
        path: the .png file.
    """
    figure = Figure((8.7, 4.8), layout="constrained")
    scale = "log" if logarithmic else "linear"
    axes = figure.add_subplot(xlabel=x_label, ylabel=y_label, xscale=scale, yscale=scale)
    # The legend follows the order of the last points.
    ordered = sorted(curves.items(), key=lambda item: -item[1][-1][1])
    for number, (name, points) in enumerate(ordered):
        strong = name in bold
        axes.plot(
            *zip(*points, strict=True),
            "o-",
            color=colormaps["turbo"](number * 0.618 % 1),
            alpha=1 if strong else 0.6,
            linewidth=3 if strong else 1.5,
            markersize=4,
            label=f"{name}: {points[-1][1]:.4g}",
        )
    axes.grid(alpha=0.3)
    if logarithmic:
        axes.set_xticks(sorted({x for points in curves.values() for x, _ in points}), minor=False)
        axes.set_xticks([], minor=True)
        axes.set_yticks([], minor=True)
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter("{x:g}")
    figure.legend(loc="outside right upper", fontsize=7)
    figure.savefig(path)


def plot_grid(
    charts: Mapping[tuple[str, str], Mapping[str, Sequence[Sequence[tuple[float, float]]]]],
    x_label: str,
    path: Path,
) -> None:
    """Plots a grid of charts with a common legend; the vertical axes start at 0.

    Args:
        charts: curves by name, one per seed, for each chart by its row and its quantity.
        x_label: label of the horizontal axes.
        path: the .png file.
    """
    row_places: dict[str, list[tuple[str, str]]] = {}
    for place in charts:
        row_places.setdefault(place[0], []).append(place)
    width = max(len(places) for places in row_places.values())
    figure = Figure((3.4 * width + 1, 2.4 * len(row_places)), layout="constrained")
    names = list(dict.fromkeys(name for curves in charts.values() for name in curves))
    grid = figure.subplots(len(row_places), width, squeeze=False)
    for line, places in zip(grid, row_places.values(), strict=True):
        for axes, place in zip(line, places, strict=False):
            for name, curves in charts[place].items():
                for curve in curves:
                    color = colormaps["tab10"](names.index(name))
                    axes.plot(*zip(*curve, strict=True), "o-", color=color, markersize=3, label=name)
            axes.set_title(", ".join(place), fontsize=8)
            axes.set_ylim(bottom=0)
            axes.grid(alpha=0.3)
            axes.tick_params(labelsize=7)
        for axes in line[len(places) :]:
            axes.set_axis_off()
    figure.supxlabel(x_label, fontsize=8)
    handles = {
        label: handle for axes in grid.flat for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside right upper", fontsize=8)
    figure.savefig(path, dpi=110)
