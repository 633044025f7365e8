"""`steelgen import isdm` and `steelgen export isdm`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from steelgen.cli.output import errors_as_lines, progress_bar

if TYPE_CHECKING:
    from steelgen.isdm.config import Conversion
    from steelgen.isdm.trees import Tree

import_app = typer.Typer(no_args_is_help=True)
export_app = typer.Typer(no_args_is_help=True)


@import_app.callback()
def _import_group() -> None:
    pass


@export_app.callback()
def _export_group() -> None:
    pass


@import_app.command("isdm")
def import_command(
    checkpoint: Annotated[Path, typer.Argument(help="model<step>.pt or ema_<rate>_<step>.pt.")],
    out: Annotated[Path, typer.Argument(help="The generator folder to write.")],
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="ISDM's config of that run; by default the one beside it.")
    ] = None,
) -> None:
    """Turn an ISDM checkpoint into a generator folder that computes the same numbers."""
    with errors_as_lines():
        from steelgen.generators.semantic_diffusion.isdm.checkpoint import find_isdm_settings, load_isdm_settings
        from steelgen.generators.semantic_diffusion.isdm.importing import import_isdm

        settings = load_isdm_settings(config) if config else find_isdm_settings(checkpoint)
        result = import_isdm(checkpoint, settings, out)
        parameters = sum(parameter.numel() for parameter in result.generator.network.parameters())
        taken = f", with {', '.join(result.siblings)}" if result.siblings else ""
        typer.echo(
            f"{out}: {parameters:,} parameters of {checkpoint.name}{taken}; {settings.image_size} px, "
            f"{settings.num_classes} classes, {settings.noise_schedule} schedule of {settings.diffusion_steps} steps"
        )


@export_app.command("isdm")
def export_command(
    generator: Annotated[Path, typer.Argument(help="A run folder, a checkpoint, an export or an import.")],
    out: Annotated[Path, typer.Argument(help="The .pt file to write; its settings go into a .json beside it.")],
    new_attention_order: Annotated[
        bool, typer.Option(help="Write for a config with use_new_attention_order true.")
    ] = False,
) -> None:
    """Write a generator as a checkpoint that ISDM loads."""
    with errors_as_lines():
        from steelgen.errors import InputError
        from steelgen.generators.families import load_generator
        from steelgen.generators.semantic_diffusion.generator import SemanticDiffusion
        from steelgen.generators.semantic_diffusion.isdm.checkpoint import export_isdm

        loaded = load_generator(generator)
        if not isinstance(loaded, SemanticDiffusion):
            raise InputError(f"{generator}: not a semantic diffusion model, which alone ISDM can hold")
        typer.echo(f"{out} and {export_isdm(loaded, out, new_attention_order)}")


def load_settings(path: Path, action: Literal["train", "finetune", "sample"], overrides: Sequence[str] = ()) -> Any:
    """Reads a config of steelgen's or of ISDM's; the latter's checkpoint and data are imported where they are not yet.

    What an ISDM config was taken for, and the keys that mean nothing any more, are said on stderr.

    Returns:
        A config of `action`; a fine-tuning where an ISDM config for `train` goes on from a checkpoint.

    Raises:
        InputError: see `load_any_config`, `import_isdm` and `import_tree_once`.
    """
    from steelgen.isdm.config import load_any_config

    settings, conversion = load_any_config(path, action, overrides)
    if conversion:
        report_conversion(path, conversion)
        if conversion.checkpoint and conversion.imported:
            from steelgen.generators.semantic_diffusion.isdm.importing import import_once

            if import_once(conversion.checkpoint, conversion.settings, conversion.imported):
                typer.echo(f"imported {conversion.checkpoint} as {conversion.imported}", err=True)
    return settings


def report_conversion(path: Path, conversion: Conversion) -> None:
    """Says on stderr what an ISDM config was taken for and what means nothing any more; imports its data folder."""
    typer.echo(f"{path}: taken for an ISDM config, read as `steelgen {conversion.action}`", err=True)
    for note in conversion.notes:
        typer.echo(f"note: {note}", err=True)
    if conversion.tree:
        _import_tree(conversion.tree)


def _import_tree(tree: Tree) -> None:
    """Turns the data folder of an ISDM config into a dataset folder in the cache, unless that has been done."""
    from steelgen.isdm.trees import import_tree_once

    with progress_bar("import") as report:
        done = import_tree_once(tree, report)
    if done:
        typer.echo(f"imported {tree.source}, {tree.mode}, as {tree.folder}", err=True)
