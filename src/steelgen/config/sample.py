"""Config of `steelgen sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from steelgen.config.base import Section
from steelgen.config.solver import AnySolverSection, SolverSection


class SplitMasks(Section):
    """Masks from one split of a dataset folder, cut like the crops of training."""

    kind: Literal["split"] = "split"
    """Where masks come from."""
    dataset: Path
    """A dataset folder with the classes that the generator was trained on."""
    split: Literal["train", "val", "test"] = "train"
    """The split whose masks are used."""
    augment: bool = True
    """Draw one of the 8 flips and rotations for each mask."""
    whole: bool = False
    """Use whole masks at the scale of the crops: whole micrographs are drawn, from overlapping windows."""


class FolderMasks(Section):
    """Masks from a folder of single-channel or palette images of class indices, cut like the crops of training."""

    kind: Literal["folder"] = "folder"
    """Where masks come from."""
    folder: Path
    """The folder; its images are used in the order of their names, again from the start when they run out."""
    augment: bool = False
    """Draw one of the 8 flips and rotations for each mask."""
    whole: bool = False
    """Use whole masks at the scale of the crops: whole micrographs are drawn, from overlapping windows."""


class SampleConfig(Section):
    """`steelgen sample`: draw labelled synthetic micrographs."""

    generator: Path
    """A run folder, a checkpoint or an export."""
    output_dir: Path
    """Gets samples/, images/, labels/, colored_labels/, metadata.jsonl and a contact sheet; must not be in use."""
    mask_source: Annotated[SplitMasks | FolderMasks, Field(discriminator="kind")]
    """Where the masks come from."""
    num_samples: int = Field(64, ge=1)
    """Pairs to draw."""
    seed: int = Field(0, ge=0)
    """Image number i is drawn with seed + i, whatever the batch size."""
    batch_size: int = Field(16, ge=1)
    """Images drawn at a time; a matter of memory and speed alone."""
    solver: AnySolverSection = SolverSection()
    """How they are drawn."""
    mixed_precision: Literal["no", "bf16", "fp16"] = "no"
    """Precision of the network."""
    channels_last: bool = True
    """Memory layout that convolutions prefer."""
    compile: bool = False
    """torch.compile the network; pays off from a few hundred images on a GPU."""
