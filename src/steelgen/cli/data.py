"""`steelgen data`: import, export, check, tile, split and fetch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from steelgen.cli.data_output import describe_counts, report_check, report_import
from steelgen.cli.options import JsonOption, QuietOption, parse_pair, split_names
from steelgen.cli.output import errors_as_lines, print_json, print_table, progress_bar
from steelgen.errors import InputError

GroupOption = Annotated[str, Option(help="Keep images with the same value in one split: parent or a metadata column.")]
data_app = typer.Typer(no_args_is_help=True)


@data_app.command("import")
@errors_as_lines()
def import_command(
    kind: Annotated[
        str,
        Argument(
            help="coco, voc, cvat, labelme, yolo, roi, via, geojson, label-studio, nnunet, labels, folder, rle-csv or "
            "ma-islands; see docs/data.md."
        ),
    ],
    src: Annotated[Path, Argument(help="Annotated micrographs: a folder or one annotation file.")],
    out: Annotated[Path, Argument(help="Dataset folder to write; must not exist.")],
    split: Annotated[
        str | None,
        Option(help="Fractions of train,val,test. Default: the source's own splits, else 0.7,0.15,0.15."),
    ] = None,
    split_by: GroupOption = "parent",
    seed: Annotated[int, Option(help="Seed of the split.")] = 0,
    overlap: Annotated[
        Literal["later", "smaller", "ignore"],
        Option(help="Which of two overlapping annotations wins; ignore: neither, if their classes differ."),
    ] = "later",
    annotators: Annotated[
        Literal["union", "intersection", "majority"],
        Option(help="How foreground of several annotators is combined."),
    ] = "majority",
    deep_scaling: Annotated[
        Literal["percentiles", "full"],
        Option(help="Scaling of images over 8 bits: between --percentiles, or the full range."),
    ] = "percentiles",
    percentiles: Annotated[str, Option(help="Two percentiles, applied per image.")] = "0.1,99.9",
    page: Annotated[int, Option(min=0, help="Page of multi-page TIFFs, counted from 0.")] = 0,
    data_bar: Annotated[str, Option(help="Data bar: auto (detect and crop), none, or its height in pixels.")] = "auto",
    pixel_size_um: Annotated[
        float | None, Option(help="Edge length of a pixel in µm. Default: from SEM metadata.")
    ] = None,
    skip_missing: Annotated[bool, Option("--skip-missing", help="Skip annotations without an image.")] = False,
    include_excluded: Annotated[bool, Option("--include-excluded", help="ma-islands: read excluded_PNG/ too.")] = False,
    poi_columns: Annotated[
        str, Option(help="ma-islands: image and point columns of the points-of-interest CSV.")
    ] = "image_url,point",
    class_names: Annotated[
        str,
        Option(help="Class names by index, e.g. background,pore,crack; not for coco, nnunet and ma-islands."),
    ] = "",
    layout: Annotated[str, Option(help="folder: auto, isdm, cityscapes, ade20k or celeba.")] = "auto",
    class_by: Annotated[Literal["name", "group"], Option(help="roi: source of an ROI's class.")] = "name",
    attribute: Annotated[str, Option(help="via: region attribute with the class. Default: the only one.")] = "",
    objects: Annotated[bool, Option("--objects", help="labels: values are object ids of one class.")] = False,
    colors: Annotated[
        str, Option(help="folder, labels, voc: classes of mask colors, e.g. 255,0,0=oxide,#00ff00=pore.")
    ] = "",
    color_tolerance: Annotated[
        int, Option(min=0, max=255, help="folder, labels, voc: maximum difference per color channel.")
    ] = 0,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Convert annotated micrographs to a dataset folder."""
    from steelgen.data.importers.legend import parse_colors
    from steelgen.data.importing import ReadOptions, WriteOptions, import_dataset
    from steelgen.data.micrograph import ImageOptions
    from steelgen.data.splits import parse_fractions

    if pixel_size_um is not None and not 0 < pixel_size_um < 1e6:
        raise InputError(f"--pixel-size-um {pixel_size_um}: must be above 0 and below 1e6")
    low, high = parse_pair("--percentiles", percentiles, float, "numbers")
    if not 0 <= low < high <= 100:
        raise InputError(f"--percentiles {percentiles}: must be two numbers from 0 to 100 in increasing order")
    try:
        legend = parse_colors(colors)
    except InputError as error:
        raise InputError(f"--colors {error}") from None
    read = ReadOptions(
        skip_missing=skip_missing,
        include_excluded=include_excluded,
        poi_columns=parse_pair("--poi-columns", poi_columns, str, "column names"),
        class_names=split_names(class_names),
        layout=layout,
        class_by=class_by,
        attribute=attribute,
        objects=objects,
        colors=legend,
        color_tolerance=color_tolerance,
    )
    images = ImageOptions(deep_scaling, (low, high), page, _parse_data_bar(data_bar), pixel_size_um)
    fractions = parse_fractions(split) if split else None
    write = WriteOptions(overlap, annotators, fractions, split_by, seed, images)
    with progress_bar("import", quiet) as report:
        info = import_dataset(kind, src, out, read, write, report)
    report_import(out, info, quiet, as_json)


@data_app.command("export")
@errors_as_lines()
def export_command(
    kind: Annotated[
        str, Argument(help="coco, yolo, nnunet, voc, labelme, cvat, roi, hf or parquet; see docs/data.md.")
    ],
    src: Annotated[Path, Argument(help="Dataset folder or samples folder.")],
    out: Annotated[Path, Argument(help="Folder to write; must not exist.")],
    splits: Annotated[str, Option(help="Splits to export, e.g. train,val. Default: all.")] = "",
    added: Annotated[
        Path | None, Option("--with", help="Samples folder whose pairs are added to the training split.")
    ] = None,
    ratio: Annotated[
        float | None, Option(help="Generated pairs per real training pair, chosen at random. Default: all.")
    ] = None,
    seed: Annotated[int, Option(help="Seed of that choice.")] = 0,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Export real pairs, generated pairs or both in the format of another tool; provenance.csv lists the sources."""
    from dataclasses import asdict

    from steelgen.data.exporting import ExportOptions, export_dataset

    if ratio is not None and not 0 < ratio < 1e6:
        raise InputError(f"--ratio {ratio}: must be above 0 and below 1e6")
    options = ExportOptions(split_names(splits), added, ratio, seed)
    with progress_bar("export", quiet) as report:
        summary = export_dataset(kind, src, out, options, report)
    if as_json:
        print_json({"folder": str(out), **asdict(summary)})
    elif not quiet:
        for split, counts in summary.counts.items():
            typer.echo(f"{out}: {counts['real']} real and {counts['generated']} generated pairs in {split}")
        if summary.rejected:
            typer.echo(f"{out}: skipped {summary.rejected} pairs listed in rejects.txt")
        if summary.lost_ignored_pixels:
            typer.echo(f"{out}: {summary.lost_ignored_pixels} ignored pixels became background in {kind}")


@data_app.command("check")
@errors_as_lines()
def check_command(
    folder: Annotated[Path, Argument(help="Dataset folder.")],
    out: Annotated[
        Path | None,
        Option("--out", "-o", help="Folder for contact_sheet.png and check.html. Default: FOLDER/check."),
    ] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Check every file of a dataset folder and summarize its content; exit code 1 if there are problems."""
    from steelgen.data.check import check_dataset
    from steelgen.data.check_page import save_page
    from steelgen.data.sheets import save_contact_sheet

    with progress_bar("check", quiet) as report:
        result = check_dataset(folder, report)
    target = out or folder / "check"
    legend = list(zip(result.info.class_names, result.info.palette, strict=True))[1:]
    save_contact_sheet(target / "contact_sheet.png", result.thumbnails, legend)
    save_page(target / "check.html", result)
    report_check(result, quiet, as_json)
    if not (quiet or as_json):
        typer.echo(f"overlays: {target / 'contact_sheet.png'}, page: {target / 'check.html'}")
    if result.problems:
        raise typer.Exit(1)


@data_app.command("tile")
@errors_as_lines()
def tile_command(
    folder: Annotated[Path, Argument(help="Dataset folder of micrographs.")],
    out: Annotated[Path, Argument(help="Dataset folder of tiles to write; must not exist.")],
    size: Annotated[int, Option(min=1, help="Edge of a tile, in pixels after scaling.")] = 256,
    stride: Annotated[int | None, Option(min=1, help="Step between tiles in pixels. Default: the tile size.")] = None,
    centered: Annotated[bool, Option("--centered", help="Cut one tile per island instead of a grid.")] = False,
    min_foreground: Annotated[float, Option(min=0, max=1, help="Minimum share of foreground pixels.")] = 0.0,
    whole: Annotated[bool, Option("--whole", help="Keep only tiles with islands, none cut by the edge.")] = False,
    scale: Annotated[float, Option(help="Factor by which micrographs are resized first.")] = 1.0,
) -> None:
    """Cut the micrographs of a dataset folder into tiles; splits stay the same."""
    from steelgen.data.tiles import TileOptions, tile_dataset

    options = TileOptions(size, stride, "centered" if centered else "grid", min_foreground, whole, scale)
    with progress_bar("tile") as report:
        counts = tile_dataset(folder, out, options, report)
    typer.echo(f"{out}: {describe_counts(counts, 'tiles')}")


@data_app.command("split")
@errors_as_lines()
def split_command(
    folder: Annotated[Path, Argument(help="Dataset folder.")],
    out: Annotated[Path, Argument(help="Dataset folder to write; must not exist.")],
    fractions: Annotated[str, Option(help="Fractions of train,val,test.")] = "0.7,0.15,0.15",
    by: GroupOption = "parent",
    stratify: Annotated[bool, Option("--stratify", help="Balance class shares across splits.")] = False,
    seed: Annotated[int, Option(help="Seed of the split.")] = 0,
    by_presence: Annotated[
        str | None,
        Option(metavar="CLASS", help="Keep the splits, but write OUT/with and OUT/without, by presence of this class."),
    ] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Copy a dataset folder with new splits, and report similar images across splits; or divide it by a class."""
    from steelgen.data.resplit import resplit_dataset, split_by_presence
    from steelgen.data.splits import parse_fractions

    if by_presence is not None:
        with progress_bar("split", quiet) as report:
            sides = split_by_presence(folder, out, by_presence, report)
        if as_json:
            print_json({"folder": str(out), "images": sides})
        elif not quiet:
            for side, found in sides.items():
                typer.echo(f"{out / side}: {describe_counts(found, 'images')}")
        return

    with progress_bar("split", quiet) as report:
        counts, leaks = resplit_dataset(folder, out, parse_fractions(fractions), by, stratify, seed, report)
    if as_json:
        print_json({"folder": str(out), "images": counts, "alike": [leak._asdict() for leak in leaks]})
    if quiet or as_json:
        return
    typer.echo(f"{out}: {describe_counts(counts, 'images')}")
    if leaks:
        print_table(f"similar images across splits: {len(leaks)}", ("image", "similar to", "correlation"), leaks)


@data_app.command("fetch")
@errors_as_lines()
def fetch_command(
    name: Annotated[
        str,
        Argument(help="ma-islands (1.2 GB), inception (91 MB, the network for FID), or model (a Stable Diffusion)."),
    ],
    out: Annotated[
        Path | None,
        Argument(help="Folder for the files. Default for inception: the cache. For model: OWNER/NAME on the hub."),
    ] = None,
    base_url: Annotated[str, Option(help="Mirror to download from instead of the original source.")] = "",
) -> None:
    """Download a published dataset or network; a second call resumes an interrupted download."""
    if name == "inception":
        from steelgen.evaluation.features import INCEPTION_BASE, fetch_inception_weights

        with progress_bar("fetch") as report:
            path = fetch_inception_weights(out, base_url or INCEPTION_BASE, report)
        typer.echo(f"Inception weights in {path}")
        return
    if name == "model":
        from steelgen.generators.latent_adapter.hub import fetch_base

        if out is None:
            raise InputError("fetch model: requires its name on the Hugging Face hub, OWNER/NAME")
        typer.echo(
            f"{fetch_base(out.as_posix(), base_url or None)}: complete; read its license before publishing images"
        )
        return
    if name != "ma-islands":
        raise InputError(f"fetch {name!r}: unknown; available: ma-islands, inception, model")
    if out is None:
        raise InputError("fetch ma-islands: requires a folder for the files")
    from steelgen.data.fetch import FIGSHARE, MA_ISLANDS, fetch_files

    with progress_bar("fetch") as report:
        fetch_files(MA_ISLANDS, out, base_url or FIGSHARE, report)
    typer.echo(f"{out}: complete")


def _parse_data_bar(text: str) -> Literal["auto", "none"] | int:
    if text in ("auto", "none"):
        return "auto" if text == "auto" else "none"
    if text.isascii() and text.isdigit():
        return int(text)
    raise InputError(f"--data-bar {text}: must be auto, none or a height in pixels")
