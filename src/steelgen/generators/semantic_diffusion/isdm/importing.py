"""ISDM checkpoints into steelgen's generator folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from steelgen.config.isdm import IsdmNetworkSection
from steelgen.errors import InputError
from steelgen.files import check_output_free, new_folder
from steelgen.generators.saved import DESCRIPTION_FILE
from steelgen.generators.semantic_diffusion.generator import SemanticDiffusion
from steelgen.generators.semantic_diffusion.isdm.checkpoint import find_step, load_isdm_checkpoint
from steelgen.generators.semantic_diffusion.isdm.training_state import save_training_state


@dataclass(frozen=True)
class ImportResult:
    """What came in."""

    generator: SemanticDiffusion
    step: int | None
    """The step in the file's name."""
    siblings: list[str]
    """Files of averages and moments that were taken along."""


def import_isdm(path: Path, settings: IsdmNetworkSection, out: Path) -> ImportResult:
    """Writes an ISDM checkpoint as a new generator folder that `load_generator` reads.

    The weights are those of `path`. For a `model<step>.pt`, the folder's training/ also holds what fine-tuning needs to
    go on from there: the averages and moments of the siblings with the same step.

    Raises:
        InputError: see `load_isdm_checkpoint`; also if `out` is in use.
    """
    check_output_free(out)
    generator = load_isdm_checkpoint(path, settings)
    siblings: list[str] = []
    with new_folder(out) as working:
        generator.save(working)
        if path.name.startswith("model") and find_step(path) is not None:
            order = settings.use_new_attention_order
            siblings = save_training_state(path, generator.network, order, working / "training")
    return ImportResult(generator, find_step(path), siblings)


def import_once(path: Path, settings: IsdmNetworkSection, out: Path) -> bool:
    """Imports unless `out` already holds a generator; returns whether it did.

    Raises:
        InputError: see `import_isdm`.
    """
    if (out / DESCRIPTION_FILE).is_file():
        return False
    if not path.is_file():
        raise InputError(f"{path}: no such checkpoint file")
    try:
        import_isdm(path, settings, out)
    except (InputError, OSError):
        # Another process of the same job may have done it in the meantime, which is as good.
        if not (out / DESCRIPTION_FILE).is_file():
            raise
    return True
