"""`steelgen data`: render, drivers and reconstruct, which make images from masks and micrographs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from steelgen.cli.data import data_app
from steelgen.cli.data_output import describe_counts
from steelgen.cli.options import JsonOption, QuietOption, split_names
from steelgen.cli.output import errors_as_lines, print_json, print_table, progress_bar
from steelgen.errors import InputError


@data_app.command("render")
@errors_as_lines()
def render_command(
    layouts: Annotated[
        Path,
        Argument(help="Folder of masks, dataset folder (its training masks), or sample config (its mask_source)."),
    ],
    out: Annotated[Path, Argument(help="Dataset folder to write; must not exist.")],
    like: Annotated[
        Path | None, Option(help="Dataset folder whose mean gray levels and names the classes get.")
    ] = None,
    levels: Annotated[str, Option(help="Gray level of each class, from 0 to 1, e.g. 0.3,0.7; instead of --like.")] = "",
    count: Annotated[int | None, Option(min=1, help="Images. Default: each mask once; 64 of a mask source.")] = None,
    image_size: Annotated[int, Option(min=8, help="Edge of the layouts of a mask source, px.")] = 64,
    crop_size: Annotated[
        int | None, Option(min=8, help="Edge of the crops they are modeled on, px. Default: image_size.")
    ] = None,
    edge: Annotated[float, Option(help="Brightening at boundaries; 0 disables it, as for all effects below.")] = 0.1,
    edge_width: Annotated[float, Option(help="Decay length of the brightening, px.")] = 1.5,
    blur: Annotated[float, Option(help="Standard deviation of the point spread, px.")] = 0.8,
    charging: Annotated[float, Option(help="Largest ramp of brightness, middle to border.")] = 0.05,
    dose: Annotated[float, Option(help="Electrons of a white pixel, for Poisson noise.")] = 300.0,
    noise: Annotated[float, Option(help="Standard deviation of Gaussian noise.")] = 0.03,
    scan_lines: Annotated[float, Option(help="Standard deviation of the brightness of rows.")] = 0.01,
    seed: Annotated[int, Option(min=0, help="Seed of layouts and noise.")] = 0,
    quiet: QuietOption = False,
) -> None:
    """Render masks by a forward model of the electron microscope: a labeled source for translation."""
    from steelgen.data.crops import load_micrographs
    from steelgen.data.folder import load_dataset_info
    from steelgen.data.render import RenderOptions, measure_levels, render_dataset
    from steelgen.sampling.layouts import LayoutSize, load_layouts

    if (like is None) == (not levels):
        raise InputError("render: needs the gray levels of the classes: one of --like and --levels")
    info = load_dataset_info(like) if like else None
    grays = measure_levels(load_micrographs(like, "train")) if like else _parse_levels(levels)
    options = RenderOptions(grays, edge, edge_width, blur, charging, dose, noise, scan_lines)
    info, total, masks = load_layouts(layouts, info, count, LayoutSize(image_size, crop_size), seed)
    with progress_bar("render", quiet) as report:
        render_dataset(masks, total, info, out, options, seed, report)
    if not quiet:
        typer.echo(f"{out}: {total} images of {info.num_classes} classes, gray levels {_join_levels(grays)}")


@data_app.command("drivers")
@errors_as_lines()
def drivers_command(
    folder: Annotated[Path, Argument(help="Dataset folder with masks.")],
    out: Annotated[Path, Argument(help="Folder to write; must not exist.")],
    drivers: Annotated[
        str, Option(help="Planes to write: classes, outlines, skeletons, distance.")
    ] = "classes,outlines,skeletons,distance",
    coarsen: Annotated[
        int, Option(min=1, max=1024, help="Edge of blocks to average over, px; 1 keeps all detail.")
    ] = 1,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write what a ControlNet sees of the masks, as gray images; see docs/adapters.md."""
    from steelgen.data.drivers import save_drivers

    with progress_bar("drivers", quiet) as report:
        counts = save_drivers(folder, out, split_names(drivers), coarsen, report)
    if as_json:
        print_json({"folder": str(out), "masks": counts})
    elif not quiet:
        typer.echo(f"{out}: drivers of {describe_counts(counts, 'masks')}")


@data_app.command("reconstruct")
@errors_as_lines()
def reconstruct_command(
    folder: Annotated[Path, Argument(help="Dataset folder.")],
    base: Annotated[str, Argument(help="Stable Diffusion: a folder, or a name on the hub that was fetched.")],
    out: Annotated[Path, Argument(help="Folder to write; must not exist.")],
    split: Annotated[str, Option(help="Split to take crops from.")] = "train",
    image_size: Annotated[int, Option(min=8, max=8192, help="Edge of the crops, px.")] = 512,
    count: Annotated[int, Option(min=1, max=10_000, help="Number of crops.")] = 16,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Measure what the autoencoder of a Stable Diffusion keeps of each class, before training adapters on it."""
    from steelgen.generators.latent_adapter import check_installed

    check_installed()
    from steelgen.generators.latent_adapter.reconstruction import describe_contrasts, reconstruct_dataset

    with progress_bar("reconstruct", quiet) as report:
        contrasts = reconstruct_dataset(folder, base, out, split, image_size, count, report)
    described = describe_contrasts(contrasts)
    if as_json:
        print_json({"folder": str(out), "classes": described})
    elif not quiet:
        rows = [(name, *("–" if value is None else value for value in row.values())) for name, row in described.items()]
        columns = ("class", "pixels", "contrast", "reconstructed", "share kept")
        print_table(f"{out}: contrast of each class with its surroundings, gray levels", columns, rows)


def _parse_levels(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise InputError(f"--levels {text}: must be numbers from 0 to 1 separated by commas") from None


def _join_levels(levels: tuple[float, ...]) -> str:
    return ", ".join(f"{level:.2f}" for level in levels)
