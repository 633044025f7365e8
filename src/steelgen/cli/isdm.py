"""`steelgen import isdm` and `steelgen export isdm`; loading of configs that may be ISDM's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer import Argument, Option

from steelgen.cli.output import errors_as_lines, log, progress_bar
from steelgen.errors import InputError

if TYPE_CHECKING:
    from steelgen.config.studies import StudyConfig
    from steelgen.isdm.config import Conversion

IsdmAction = Literal["train", "finetune", "sample"]
import_app = typer.Typer(no_args_is_help=True)
export_app = typer.Typer(no_args_is_help=True)


@import_app.command("isdm")
@errors_as_lines()
def import_command(
    checkpoint: Annotated[Path, Argument(help="model<step>.pt or ema_<rate>_<step>.pt.")],
    out: Annotated[Path, Argument(help="Generator folder to write.")],
    config: Annotated[
        Path | None, Option("--config", "-c", help="ISDM config of the run. Default: the one beside it.")
    ] = None,
) -> None:
    """Convert an ISDM checkpoint to a generator folder that reproduces its outputs."""
    from steelgen.generators.semantic_diffusion.isdm.checkpoint import find_isdm_settings, load_isdm_settings
    from steelgen.generators.semantic_diffusion.isdm.importing import import_isdm

    settings = load_isdm_settings(config) if config else find_isdm_settings(checkpoint)
    result = import_isdm(checkpoint, settings, out)
    parameters = sum(parameter.numel() for parameter in result.generator.network.parameters())
    siblings = f", with {', '.join(result.siblings)}" if result.siblings else ""
    typer.echo(
        f"{out}: {parameters:,} parameters of {checkpoint.name}{siblings}; {settings.image_size} px, "
        f"{settings.num_classes} classes, {settings.noise_schedule} schedule of {settings.diffusion_steps} steps"
    )


@export_app.command("isdm")
@errors_as_lines()
def export_command(
    generator: Annotated[Path, Argument(help="Run folder, checkpoint, export or import.")],
    out: Annotated[Path, Argument(help="The .pt file to write; its settings go into a .json beside it.")],
    new_attention_order: Annotated[bool, Option(help="Write for a config with use_new_attention_order true.")] = False,
) -> None:
    """Write a generator as a checkpoint that ISDM loads."""
    from steelgen.generators.families import load_generator
    from steelgen.generators.semantic_diffusion.generator import SemanticDiffusion
    from steelgen.generators.semantic_diffusion.isdm.checkpoint import export_isdm

    loaded = load_generator(generator)
    if not isinstance(loaded, SemanticDiffusion):
        raise InputError(f"{generator}: not a semantic diffusion model; ISDM supports no other")
    typer.echo(f"{out} and {export_isdm(loaded, out, new_attention_order)}")


def load_settings(path: Path, action: IsdmAction, overrides: Sequence[str] | None) -> Any:
    """Reads a steelgen or ISDM config; imports the checkpoint and the data of an ISDM config if necessary.

    Prints the notes of the conversion to stderr.

    Returns:
        A config of `action`; of finetune for an ISDM config for `train` that resumes from a checkpoint.

    Raises:
        InputError: see `load_any_config`, `import_isdm` and `import_tree_once`.
    """
    from steelgen.isdm.config import load_any_config

    settings, conversion = load_any_config(path, action, overrides or ())
    if conversion:
        report_conversion(path, conversion)
        if conversion.checkpoint and conversion.imported:
            from steelgen.generators.semantic_diffusion.isdm.importing import import_once

            if import_once(conversion.checkpoint, conversion.settings, conversion.imported):
                log(f"imported {conversion.checkpoint} to {conversion.imported}")
    return settings


def load_utility_settings(config: Path, overrides: Sequence[str] | None = None) -> StudyConfig:
    """Reads a config of `steelgen utility`, of any task, or of ISDM's segmentation_evaluation.

    Prints notes to stderr.
    """
    from steelgen.config.base import load_config, parse_config
    from steelgen.config.studies import choose_study
    from steelgen.config.utility import UtilityConfig
    from steelgen.files import load_json
    from steelgen.isdm.utility import convert_isdm_study, is_isdm_study

    values = load_json(config)
    if not is_isdm_study(values):
        return load_config(config, choose_study(values, str(config)), overrides or ())
    converted, notes = convert_isdm_study(values, str(config))
    _report_notes(config, "segmentation_evaluation", "utility", notes)
    return parse_config(converted, UtilityConfig, overrides or (), origin=str(config))


def report_conversion(path: Path, conversion: Conversion) -> None:
    """Prints the notes of a converted ISDM config to stderr, and imports its data folder if necessary."""
    _report_notes(path, "ISDM", conversion.action, conversion.notes)
    if conversion.tree:
        from steelgen.isdm.trees import import_tree_once

        with progress_bar("import") as report:
            imported = import_tree_once(conversion.tree, report)
        if imported:
            log(f"imported {conversion.tree.source} ({conversion.tree.mode}) to {conversion.tree.folder}")


def _report_notes(path: Path, kind: str, action: str, notes: list[str]) -> None:
    log(f"{path}: {kind} config, converted to a config of `steelgen {action}`")
    for note in notes:
        log(f"note: {note}")
