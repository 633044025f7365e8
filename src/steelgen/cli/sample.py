"""`steelgen sample` and `steelgen interpolate`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer import Option

from steelgen.cli.isdm import load_settings
from steelgen.cli.options import (
    AllowChangedOption,
    ConfigOption,
    DryRunOption,
    JsonOption,
    QuietOption,
    SetOption,
    ShardOption,
)
from steelgen.cli.output import errors_as_lines, fail, log, print_config, print_json, print_table, progress_bar
from steelgen.errors import InputError

if TYPE_CHECKING:
    from steelgen.config.sample import SampleConfig
    from steelgen.shards import Shard


@errors_as_lines()
def sample_command(
    config: Annotated[
        Path | None, Option("--config", "-c", help="JSON config. Default: the bundled steel model.")
    ] = None,
    overrides: SetOption = None,
    shard: ShardOption = None,
    allow_changed: AllowChangedOption = None,
    dry_run: DryRunOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    replay: Annotated[
        tuple[Path, int] | None,
        Option(metavar="METADATA LINE", help="Reproduce the image of a line (from 1) of a metadata.jsonl."),
    ] = None,
    out: Annotated[
        Path | None, Option("--out", "-o", help="With --replay: PNG to write. Default: replay-NAME.")
    ] = None,
    generator: Annotated[
        Path | None, Option(help="With --replay: path of the generator. Default: the one in the metadata.")
    ] = None,
    tune: Annotated[
        Path | None,
        Option(metavar="CONFIG", help="Instead: choose a sample config by the validation mIoU of quick segmenters."),
    ] = None,
) -> None:
    """Sample labeled synthetic micrographs from a trained generator.

    Shards write into one folder; a final call without --shard writes metadata and contact sheet.
    """
    if tune:
        if config or shard or allow_changed or dry_run or replay or out or generator:
            fail("--tune: can only be combined with --set, --quiet, and --json; its config names the sample config")
        _tune(tune, overrides, quiet, as_json)
        return
    if replay:
        if config or overrides or shard or allow_changed or dry_run:
            fail("--replay: can only be combined with --out and --generator; the metadata sets everything else")
        _replay(*replay, out, generator)
        return
    if out or generator:
        fail("--out and --generator: require --replay; otherwise set output_dir and generator in the config")
    from steelgen.bundled import BUNDLED_SAMPLE_CONFIG, resolve_bundled

    settings = load_settings(resolve_bundled(config or BUNDLED_SAMPLE_CONFIG), "sample", overrides)
    silent = quiet or (as_json and not dry_run)
    print_config(settings, silent)
    if dry_run:
        from steelgen.sampling.generate import prepare_stages

        loaded = prepare_stages(settings)
        parameters = sum(weight.numel() for network in loaded.networks.values() for weight in network.parameters())
        names = ", ".join(loaded.info.class_names)
        if not silent:
            typer.echo(f"{parameters:,} parameters, {loaded.geometry.image_size} px, classes: {names}")
        return
    from steelgen.sampling.sample import sample
    from steelgen.shards import find_shard, parse_shard

    part = parse_shard(shard) if shard else find_shard(os.environ)
    with progress_bar("segmenter", silent) as report_filter, progress_bar("sampling", silent) as report:
        folder = sample(settings, report, part, allow_changed or (), report_filter)
    if not silent or as_json:
        _report_result(settings, folder, part, as_json)


def _tune(path: Path, overrides: list[str] | None, quiet: bool, as_json: bool) -> None:
    from steelgen.cli.workflow import run_stage
    from steelgen.config.base import load_config
    from steelgen.config.tune import TuneConfig
    from steelgen.sample_tuning import CHOSEN, tune_sample

    settings, silent = load_config(path, TuneConfig, overrides or ()), quiet or as_json
    print_config(settings, silent)
    result = tune_sample(settings, run_stage, (lambda line: None) if silent else log)
    if as_json:
        print_json(result)
    if silent:
        return
    rows = [
        [
            row["name"],
            f"{row['mean_iou']:.3f}",
            *(
                ", ".join(f"{value:{sign}.3f}" for value in row[key])
                for key, sign in (("by_seed", ""), ("difference", "+"))
            ),
        ]
        for row in result["choices"]
    ]
    first = result["choices"][0]["name"]
    print_table(f"mIoU on {settings.val_split}", ["choice", "mean", "by seed", f"minus {first}"], rows)
    typer.echo(f"chosen: {result['chosen']}; config: {settings.output_dir / CHOSEN}")


@errors_as_lines()
def interpolate_command(
    config: ConfigOption,
    out: Annotated[Path, Option("--out", "-o", help=".png for a strip or, with more points, a grid; .gif to animate.")],
    seeds: Annotated[str | None, Option(help="Seeds to interpolate between, in order. Default: 0,1.")] = None,
    frames: Annotated[int, Option(help="Number of frames from each point to the next, including both.")] = 8,
    mask: Annotated[int, Option(min=0, help="Index of the mask in the config's mask source.")] = 0,
    space: Annotated[
        str | None, Option(help="Latent space of adversarial generators: z (spherical) or w (linear).")
    ] = None,
    first: Annotated[
        Path | None, Option("--from", help="Start from this real micrograph: its center, projected to w.")
    ] = None,
    last: Annotated[Path | None, Option("--to", help="End at this real micrograph; required by --from.")] = None,
    projection_steps: Annotated[int, Option(min=1, help="Optimization steps of the projection.")] = 300,
    overrides: SetOption = None,
) -> None:
    """Interpolate between seeds or real micrographs, as a strip, grid or animation; uses a sample config."""
    from steelgen.config.base import load_config
    from steelgen.config.sample import SampleConfig

    try:
        points = [int(seed) for seed in (seeds or "0,1").split(",")]
    except ValueError:
        raise InputError(f"--seeds {seeds}: must be two or more integers separated by commas") from None
    if (first is None) != (last is None):
        raise InputError("--from and --to: require each other")
    if first and seeds:
        raise InputError(f"--seeds {seeds}: not applicable with --from and --to")
    settings = load_config(config, SampleConfig, overrides or ())
    from steelgen.sampling.interpolate import Walk, interpolate

    images = (first, last) if first and last else ()
    with progress_bar("frames") as report:
        errors = interpolate(settings, Walk(points, frames, space, images, projection_steps), mask, out, report)
    for path, error in zip(images, errors, strict=True):
        typer.echo(f"{path}: projected with an RMS error of {error:.1f} gray levels")
    typer.echo(f"{frames * max(1, len(points) - 1)} frames in {out}")


def _replay(metadata: Path, line: int, out: Path | None, generator: Path | None) -> None:
    from steelgen.sampling.replay import replay

    path, same = replay(metadata, line, out, generator)
    verdicts = {True: "identical to the original", False: "differs from the original", None: "original not found"}
    typer.echo(f"{path}: {verdicts[same]}")


def _report_result(settings: SampleConfig, folder: Path, shard: Shard | None, as_json: bool) -> None:
    """Prints the result; in JSON, values of the complete folder are null for a shard."""
    from steelgen.files import load_json
    from steelgen.sampling.formats import load_sampling

    sampling = load_sampling(folder)
    filtered = settings.filter is not None and not shard
    balanced = settings.mask_source.kind == "balanced" and not shard
    balance = load_json(folder / "balance.json") if balanced else None
    if as_json:
        print_json(
            {
                "folder": str(folder),
                "num_samples": settings.num_samples,
                "shard": str(shard) if shard else None,
                "dropped": sampling.dropped if filtered else None,
                "balance": balance,
            }
        )
    elif shard:
        typer.echo(f"shard {shard} is complete in {folder}; run the same command without --shard to gather all shards")
    else:
        if filtered:
            print_table("filter", ("outcome", "images"), [("kept", sampling.kept), *sorted(sampling.dropped.items())])
        if balance:
            _print_balance(balance)
        for note in sampling.notes:
            typer.echo(note)
        typer.echo(f"{settings.num_samples} labeled images in {folder}; overview in {folder / 'contact_sheet.png'}")


def _print_balance(balance: dict[str, Any]) -> None:
    shares = zip(balance["classes"], balance["before"], balance["after"], strict=True)
    rows = [(name, f"{before:.1%}", f"{after:.1%}") for name, before, after in shares]
    print_table("class shares (balance.png)", ("class", "real masks", "generated"), rows)
    reached, limit = balance["class_difference"], balance["max_class_dif"]
    result = "a class is missing" if reached is None else f"the most frequent class exceeds the rarest by {reached:.1%}"
    verdict = "within" if balance["met"] else "best result, exceeds"
    typer.echo(f"balance: {result}; {verdict} max_class_dif {limit:.1%}")
    if balance["absent"]:
        typer.echo(f"balance: no mask contains {', '.join(balance['absent'])}")
