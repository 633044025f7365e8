"""`steelgen sample`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from steelgen.cli.isdm import load_settings
from steelgen.cli.options import AllowChangedOption, DryRunOption, JsonOption, QuietOption, SetOption
from steelgen.cli.output import errors_as_lines, fail, print_json, print_table, progress_bar

if TYPE_CHECKING:
    from steelgen.config.sample import SampleConfig
    from steelgen.shards import Shard


def sample_command(
    config: Annotated[
        Path | None,
        typer.Option(
            "--config",
            "-c",
            help="JSON config; see configs/ and `steelgen config schema`. Without it the bundled steel model draws.",
        ),
    ] = None,
    overrides: SetOption = None,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Draw part I of N alone, from 1; a last call without it writes metadata and contact sheet. Under "
            "torchrun and in a Slurm job array it follows from the environment.",
        ),
    ] = None,
    allow_changed: AllowChangedOption = None,
    dry_run: DryRunOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
    again: Annotated[
        tuple[Path, int] | None,
        typer.Option(
            "--replay", metavar="METADATA LINE", help="Draw the image of a line (from 1) of a metadata.jsonl again."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="With --replay: the PNG to write; replay-NAME without it.")
    ] = None,
    generator: Annotated[
        Path | None, typer.Option(help="With --replay: where the generator is now, if not where the line says.")
    ] = None,
) -> None:
    """Draw labeled synthetic micrographs with a trained generator."""
    if again:
        if config or overrides or shard or allow_changed or dry_run:
            fail("--replay: takes everything from the line; of all options only --out and --generator go with it")
        _replay(*again, out, generator)
        return
    if out or generator:
        fail("--out and --generator mean something with --replay alone; set output_dir and generator in the config")
    from steelgen.bundled import BUNDLED_SAMPLE_CONFIG, resolve_bundled
    from steelgen.config.base import config_to_json

    with errors_as_lines():
        settings = load_settings(config or resolve_bundled(BUNDLED_SAMPLE_CONFIG), "sample", overrides or ())
        silent = quiet or (as_json and not dry_run)
        if not silent:
            print_json(config_to_json(settings))
        if dry_run:
            from steelgen.generators.families import load_generator

            loaded = load_generator(settings.generator)
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
        if as_json:
            print_json(_describe_folder(settings, folder, part))
        if silent:
            return
        if part:
            typer.echo(f"shard {part} is complete in {folder}; the same command without a shard gathers all")
            return
        if settings.filter:
            _print_filter(folder)
        if settings.mask_source.kind == "balanced":
            _print_balance(folder)
        typer.echo(f"{settings.num_samples} labeled images in {folder}; look at {folder / 'contact_sheet.png'}")


def _replay(metadata: Path, line: int, out: Path | None, generator: Path | None) -> None:
    with errors_as_lines():
        from steelgen.sampling.replay import replay

        path, same = replay(metadata, line, out, generator)
        verdict = {
            True: "the same pixels as the original",
            False: "differs from the original",
            None: "original not there",
        }
        typer.echo(f"{path}: {verdict[same]}")


def _describe_folder(settings: SampleConfig, folder: Path, shard: Shard | None) -> dict[str, Any]:
    """What was drawn, as JSON values; what is known of the whole folder alone is null for a shard."""
    from steelgen.files import load_json
    from steelgen.sampling.formats import load_sampling

    sampling = load_sampling(folder)
    balance = folder / "balance.json"
    return {
        "folder": str(folder),
        "num_samples": settings.num_samples,
        "shard": str(shard) if shard else None,
        "dropped": sampling.dropped if settings.filter and not shard else None,
        "balance": load_json(balance) if settings.mask_source.kind == "balanced" and not shard else None,
    }


def _print_filter(folder: Path) -> None:
    from steelgen.sampling.formats import load_sampling

    sampling = load_sampling(folder)
    rows = [(reason, count) for reason, count in sorted(sampling.dropped.items())]
    print_table("filter", ("outcome", "images"), [("kept", sampling.kept), *rows])


def _print_balance(folder: Path) -> None:
    from steelgen.files import load_json

    balance = load_json(folder / "balance.json")
    shares = zip(balance["classes"], balance["before"], balance["after"], strict=True)
    rows = [(name, f"{before:.1%}", f"{after:.1%}") for name, before, after in shares]
    print_table("class shares (balance.png)", ("class", "real masks", "drawn"), rows)
    reached, wanted = balance["class_difference"], balance["max_class_dif"]
    described = "a class is missing" if reached is None else f"the most frequent exceeds the rarest by {reached:.1%}"
    verdict = "within" if balance["met"] else "the best that was reached, not within"
    typer.echo(f"balance: {described}, {verdict} max_class_dif {wanted:.1%}")
    if balance["absent"]:
        typer.echo(f"balance: no mask holds {', '.join(balance['absent'])}")
