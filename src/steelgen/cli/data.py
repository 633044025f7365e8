"""`steelgen data`: annotated micrographs into a dataset folder, and what is in one."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from steelgen.cli.data_output import describe_counts, describe_import, describe_report, print_import, print_report
from steelgen.cli.options import JsonOption, QuietOption
from steelgen.cli.output import errors_as_lines, print_json, print_table, progress_bar
from steelgen.errors import InputError

if TYPE_CHECKING:
    pass

data_app = typer.Typer(no_args_is_help=True)


class Overlap(str, Enum):
    """Who gets a pixel that two annotations claim."""

    later = "later"
    smaller = "smaller"
    ignore = "ignore"


class Agreement(str, Enum):
    """What becomes foreground where several annotators differ."""

    union = "union"
    intersection = "intersection"
    majority = "majority"


class DeepScaling(str, Enum):
    """How 16-bit gray levels become 8-bit ones."""

    percentiles = "percentiles"
    full = "full"


class ClassBy(str, Enum):
    """What tells the class of an ImageJ ROI."""

    name = "name"
    group = "group"


@data_app.command("import")
def import_command(
    kind: Annotated[
        str,
        typer.Argument(
            help="coco, voc, cvat, labelme, yolo, roi, via, geojson, label-studio, nnunet, labels, folder, rle-csv or "
            "ma-islands; see docs/data.md."
        ),
    ],
    src: Annotated[Path, typer.Argument(help="The annotated micrographs: a folder, or one annotation file.")],
    out: Annotated[Path, typer.Argument(help="The dataset folder to write; must not exist yet.")],
    split: Annotated[
        str | None,
        typer.Option(
            help="Fractions of train,val,test, like 0.7,0.15,0.15. Without it the source's own splits, or these."
        ),
    ] = None,
    split_by: Annotated[
        str, typer.Option(help="Keep images with the same value together: parent, or a metadata column such as type.")
    ] = "parent",
    seed: Annotated[int, typer.Option(help="Decides which groups go to which split.")] = 0,
    overlap: Annotated[
        Overlap,
        typer.Option(help="Who gets a pixel that two annotations claim; ignore: nobody, if their classes differ."),
    ] = Overlap.later,
    annotators: Annotated[
        Agreement, typer.Option(help="What is foreground where several annotators differ.")
    ] = Agreement.majority,
    deep_scaling: Annotated[
        DeepScaling,
        typer.Option(
            help="How gray levels of more than 8 bit are scaled: between --percentiles, or by the full range."
        ),
    ] = DeepScaling.percentiles,
    percentiles: Annotated[str, typer.Option(help="The two percentiles of each image.")] = "0.1,99.9",
    page: Annotated[int, typer.Option(min=0, help="Page of multi-page TIFFs, counted from 0.")] = 0,
    data_bar: Annotated[
        str, typer.Option(help="The bar below the micrograph: auto (found and cropped), none, or its height in rows.")
    ] = "auto",
    pixel_size_um: Annotated[
        float | None, typer.Option(help="Edge length of a pixel in µm; without it what the SEM tags say.")
    ] = None,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out annotations whose image is not there.")
    ] = False,
    include_excluded: Annotated[
        bool, typer.Option("--include-excluded", help="ma-islands: also read excluded_PNG/.")
    ] = False,
    poi_columns: Annotated[
        str, typer.Option(help="ma-islands: the columns of the points-of-interest CSV with the image and the point.")
    ] = "image_url,point",
    class_names: Annotated[
        str,
        typer.Option(
            help="The names of the classes in order, like background,pore,crack; not for coco, nnunet and ma-islands."
        ),
    ] = "",
    layout: Annotated[str, typer.Option(help="folder: auto, isdm, cityscapes, ade20k or celeba.")] = "auto",
    class_by: Annotated[ClassBy, typer.Option(help="roi: what tells the class of an ROI.")] = ClassBy.name,
    attribute: Annotated[
        str, typer.Option(help="via: the region attribute that holds the class, where there are several.")
    ] = "",
    objects: Annotated[bool, typer.Option("--objects", help="labels: values are ids of objects of one class.")] = False,
    colors: Annotated[
        str,
        typer.Option(help="folder, labels, voc: what the colors of masks mean, like 255,0,0=oxide,#00ff00=pore."),
    ] = "",
    color_tolerance: Annotated[
        int, typer.Option(min=0, max=255, help="folder, labels, voc: how much each channel may differ.")
    ] = 0,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Turn annotated micrographs into a dataset folder."""
    with errors_as_lines():
        from steelgen.data.importing import ReadOptions, WriteOptions, import_dataset
        from steelgen.data.micrograph import ImageOptions
        from steelgen.data.splits import parse_fractions

        if pixel_size_um is not None and not 0 < pixel_size_um < 1e6:
            raise InputError(f"--pixel-size-um {pixel_size_um}: must be above 0")
        low, high = _parse_numbers("--percentiles", percentiles)
        if not 0 <= low < high <= 100:
            raise InputError(f"--percentiles {percentiles}: must be two numbers, 0 to 100, the lower one first")
        read = ReadOptions(
            skip_missing=skip_missing,
            include_excluded=include_excluded,
            poi_columns=_parse_pair("--poi-columns", poi_columns),
            class_names=tuple(name.strip() for name in class_names.split(",") if name.strip()),
            layout=layout,
            class_by=class_by.value,
            attribute=attribute,
            objects=objects,
            colors=_parse_colors(colors),
            color_tolerance=color_tolerance,
        )
        images = ImageOptions(
            deep_scaling=deep_scaling.value,
            percentiles=(low, high),
            page=page,
            data_bar=_parse_data_bar(data_bar),
            pixel_size_um=pixel_size_um,
        )
        write = WriteOptions(
            overlap=overlap.value,
            agreement=annotators.value,
            fractions=parse_fractions(split) if split else None,
            split_by=split_by,
            seed=seed,
            images=images,
        )
        with progress_bar("import", quiet) as report:
            info = import_dataset(kind, src, out, read, write, report)
        if as_json:
            print_json(describe_import(out, info))
        elif not quiet:
            print_import(out, info)


@data_app.command("export")
def export_command(
    kind: Annotated[
        str, typer.Argument(help="coco, yolo, nnunet, voc, labelme, cvat, roi, hf or parquet; see docs/data.md.")
    ],
    src: Annotated[Path, typer.Argument(help="A dataset folder, or what `steelgen sample` wrote.")],
    out: Annotated[Path, typer.Argument(help="The folder to write; must not exist yet.")],
    splits: Annotated[str, typer.Option(help="Only these splits, like train,val.")] = "",
    added: Annotated[
        Path | None, typer.Option("--with", help="A folder of samples whose pairs join the training split.")
    ] = None,
    ratio: Annotated[
        float | None,
        typer.Option(help="Generated pairs for each real training pair, taken at random; without it all of --with."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Decides which generated pairs are taken.")] = 0,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Write pairs, real, generated or both, in the format of another tool; provenance.csv tells which are which."""
    with errors_as_lines():
        from dataclasses import asdict

        from steelgen.data.exporting import ExportOptions, export_dataset

        if ratio is not None and not 0 < ratio < 1e6:
            raise InputError(f"--ratio {ratio}: must be above 0")
        wanted = tuple(split.strip() for split in splits.split(",") if split.strip())
        options = ExportOptions(wanted, added, ratio, seed)
        with progress_bar("export", quiet) as report:
            summary = export_dataset(kind, src, out, options, report)
        if as_json:
            print_json({"folder": str(out), **asdict(summary)})
        elif not quiet:
            for split, counts in summary.counts.items():
                typer.echo(f"{out}: {counts['real']} real and {counts['generated']} generated pairs in {split}")
            if summary.rejected:
                typer.echo(f"{out}: {summary.rejected} pairs that a rejects.txt names were left out")
            if summary.lost_ignored_pixels:
                typer.echo(f"{out}: {summary.lost_ignored_pixels} pixels to ignore became background in {kind}")


@data_app.command("check")
def check_command(
    folder: Annotated[Path, typer.Argument(help="A dataset folder.")],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Where to write contact_sheet.png and check.html; FOLDER/check without it."),
    ] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Open every file of a dataset folder and show what is in it; exit code 1 where something is wrong."""
    with errors_as_lines():
        from steelgen.data.check import check_dataset
        from steelgen.data.check_page import save_page
        from steelgen.data.sheets import save_contact_sheet

        with progress_bar("check", quiet) as report:
            result = check_dataset(folder, report)
        target = out or folder / "check"
        legend = list(zip(result.info.class_names, result.info.palette, strict=True))[1:]
        save_contact_sheet(target / "contact_sheet.png", result.thumbnails, legend)
        save_page(target / "check.html", result)
        if as_json:
            print_json(describe_report(result))
        elif not quiet:
            print_report(result)
            typer.echo(f"overlays: {target / 'contact_sheet.png'}, page: {target / 'check.html'}")
        if result.problems:
            raise typer.Exit(1)


@data_app.command("tile")
def tile_command(
    folder: Annotated[Path, typer.Argument(help="A dataset folder of micrographs.")],
    out: Annotated[Path, typer.Argument(help="The dataset folder of tiles to write; must not exist yet.")],
    size: Annotated[int, typer.Option(min=1, help="Edge of a tile, in pixels after scaling.")] = 256,
    stride: Annotated[
        int | None, typer.Option(min=1, help="Pixels from one tile to the next; the tile's edge without it.")
    ] = None,
    centered: Annotated[bool, typer.Option("--centered", help="One tile per island instead of a grid.")] = False,
    min_foreground: Annotated[
        float, typer.Option(min=0, max=1, help="Least share of pixels of classes other than 0.")
    ] = 0.0,
    whole: Annotated[
        bool, typer.Option("--whole", help="Only tiles with an island, and none that the tile's edge cuts.")
    ] = False,
    scale: Annotated[float, typer.Option(help="Resize the micrographs by this factor first.")] = 1.0,
) -> None:
    """Cut the micrographs of a dataset folder into tiles; they stay in their splits."""
    with errors_as_lines():
        from steelgen.data.tiles import TileOptions, tile_dataset

        options = TileOptions(size, stride, "centered" if centered else "grid", min_foreground, whole, scale)
        with progress_bar("tile") as report:
            counts = tile_dataset(folder, out, options, report)
        typer.echo(f"{out}: {describe_counts(counts, 'tiles')}")


@data_app.command("split")
def split_command(
    folder: Annotated[Path, typer.Argument(help="A dataset folder.")],
    out: Annotated[Path, typer.Argument(help="The dataset folder to write; must not exist yet.")],
    fractions: Annotated[str, typer.Option(help="Fractions of train,val,test.")] = "0.7,0.15,0.15",
    by: Annotated[
        str, typer.Option(help="Keep images with the same value together: parent, or a metadata column.")
    ] = "parent",
    stratify: Annotated[bool, typer.Option("--stratify", help="Share out each class's pixels alike.")] = False,
    seed: Annotated[int, typer.Option(help="Decides which groups go to which split.")] = 0,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Copy a dataset folder with new splits, and report images that look alike across them."""
    with errors_as_lines():
        from steelgen.data.resplit import resplit_dataset
        from steelgen.data.splits import parse_fractions

        with progress_bar("split", quiet) as report:
            counts, leaks = resplit_dataset(folder, out, parse_fractions(fractions), by, stratify, seed, report)
        if as_json:
            print_json({"folder": str(out), "images": counts, "alike": [leak._asdict() for leak in leaks]})
        if quiet or as_json:
            return
        typer.echo(f"{out}: {describe_counts(counts, 'images')}")
        if leaks:
            print_table(
                f"pairs that look alike across splits: {len(leaks)}", ("image", "looks like", "correlation"), leaks
            )


@data_app.command("fetch")
def fetch_command(
    name: Annotated[str, typer.Argument(help="ma-islands (1.2 GB), or inception (91 MB, the network that FID needs).")],
    out: Annotated[
        Path | None, typer.Argument(help="Folder for the published files; inception without it goes into the cache.")
    ] = None,
    base_url: Annotated[
        str, typer.Option(help="A mirror to take the files from, instead of where they were published.")
    ] = "",
) -> None:
    """Download a published set, on a machine with a network; a second call goes on where the first broke off."""
    with errors_as_lines():
        if name == "inception":
            from steelgen.evaluation.features import INCEPTION_BASE, fetch_inception_weights

            with progress_bar("fetch") as report:
                path = fetch_inception_weights(out, base_url or INCEPTION_BASE, report)
            typer.echo(f"Inception weights in {path}")
            return
        if name != "ma-islands":
            raise InputError(f"fetch {name!r}: known are ma-islands and inception")
        if out is None:
            raise InputError("fetch ma-islands: name the folder for the published files")
        from steelgen.data.fetch import FIGSHARE, MA_ISLANDS, fetch_files

        with progress_bar("fetch") as report:
            fetch_files(MA_ISLANDS, out, base_url or FIGSHARE, report)
        typer.echo(f"{out}: complete")


def _parse_colors(text: str) -> tuple[tuple[tuple[int, int, int], str], ...]:
    from steelgen.data.importers.legend import parse_colors

    try:
        return parse_colors(text)
    except InputError as error:
        raise InputError(f"--colors {error}") from None


def _parse_pair(option: str, text: str) -> tuple[str, str]:
    parts = [part.strip() for part in text.split(",")]
    if len(parts) != 2 or not all(parts):
        raise InputError(f"{option} {text}: must be two values with a comma between them")
    return parts[0], parts[1]


def _parse_numbers(option: str, text: str) -> tuple[float, float]:
    try:
        low, high = (float(part) for part in _parse_pair(option, text))
    except ValueError:
        raise InputError(f"{option} {text}: must be two numbers with a comma between them") from None
    return low, high


def _parse_data_bar(text: str) -> Literal["auto", "none"] | int:
    if text in ("auto", "none"):
        return "auto" if text == "auto" else "none"
    if text.isascii() and text.isdigit():
        return int(text)
    raise InputError(f"--data-bar {text}: must be auto, none or a number of rows")
