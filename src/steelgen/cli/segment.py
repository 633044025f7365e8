"""`steelgen segment train` and `steelgen segment predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from typer import Argument, Option

from steelgen.cli.options import ConfigOption, DryRunOption, JsonOption, QuietOption, SetOption
from steelgen.cli.output import errors_as_lines, print_config, print_json, print_table, progress_bar

segment_app = typer.Typer(no_args_is_help=True)


@segment_app.command("train")
@errors_as_lines()
def train_command(
    config: ConfigOption,
    overrides: SetOption = None,
    dry_run: DryRunOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train the baseline segmenter on the real micrographs of a dataset and score it on held-out ones.

    With `unlabeled`, it then labels further micrographs, for generators to be trained on.
    """
    from steelgen.config.base import load_config
    from steelgen.config.segment import SegmentConfig

    settings = load_config(config, SegmentConfig, overrides or ())
    silent = quiet or (as_json and not dry_run)
    print_config(settings, silent)
    if dry_run:
        return
    from steelgen.evaluation.segment import COMPLETED, train_labeler
    from steelgen.pages import show_number

    with progress_bar("segmenter", silent) as report:
        scores = train_labeler(settings, report)
    if as_json:
        print_json(scores)
    if silent:
        return
    if "mean_iou" in scores:
        rows = [[name, show_number(iou)] for name, iou in zip(scores["class_names"], scores["class_iou"], strict=True)]
        title = f"IoU on {len(scores['micrographs'])} micrographs of {scores['split']}"
        print_table(title, ["class", "IoU"], [*rows, ["mean", show_number(scores["mean_iou"])]])
    typer.echo(f"segmenter in {settings.output_dir}")
    if "predicted" in scores:
        typer.echo(f"{scores['predicted']} micrographs labeled; with the others in {settings.output_dir / COMPLETED}")


@segment_app.command("predict")
@errors_as_lines()
def predict_command(
    segmenter: Annotated[Path, Argument(help="Output folder of `steelgen segment train`.")],
    images: Annotated[Path, Argument(help="Folder of images of any size, or a dataset folder.")],
    out: Annotated[Path, Argument(help="Output folder for images/, masks/, confidence/; must be new or empty.")],
    device: Annotated[str, Option(help="A torch device; auto uses a GPU if there is one.")] = "auto",
) -> None:
    """Predict masks for a folder of images or a dataset folder, with a confidence map for each.

    A dataset folder gives a dataset folder with the predicted masks, to train on.
    """
    from steelgen.evaluation.labeled_folders import label_folder
    from steelgen.evaluation.labeler import load_labeler

    labeler = load_labeler(segmenter, device)
    with progress_bar("labeling") as report:
        count = label_folder(labeler, images, out, report)
    typer.echo(f"{count} images labeled in {out}")
