"""What an evaluation compares: the generated set, the real ones, and how they were cut."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from steelgen.config.evaluate import EvaluateConfig
from steelgen.data.crops import Micrographs, load_micrographs
from steelgen.data.folder import DatasetInfo, load_dataset_info
from steelgen.data.placement import CropGeometry
from steelgen.devices import pick_device
from steelgen.errors import InputError
from steelgen.evaluation.figures import Figure
from steelgen.evaluation.sets import (
    ImageSet,
    cut_real_set,
    describe_geometry,
    find_generated,
    load_generated,
    resolve_geometry,
    split_micrographs,
)
from steelgen.files import default_cache_dir


@dataclass(frozen=True)
class Evidence:
    """Everything that the sections compare."""

    config: EvaluateConfig
    info: DatasetInfo
    geometry: CropGeometry
    generated: ImageSet
    held_out: ImageSet
    """Real crops of micrographs that the generator never saw."""
    train: ImageSet
    """Real crops of the micrographs that it was trained on."""
    train_halves: tuple[ImageSet, ImageSet] | None
    """Crops of two halves of the training micrographs: the floor of a comparison with `train`."""
    train_micrographs: Micrographs
    cache_dir: Path
    device: str

    @property
    def comparisons(self) -> list[tuple[ImageSet, tuple[ImageSet, ImageSet] | None]]:
        """Each reference with the two real sets that give its floor."""
        return [(self.held_out, (self.train, self.held_out)), (self.train, self.train_halves)]


Judgment = tuple[list[Figure], dict[str, Any], list[str]]
"""What a section of an evaluation comes to: figures, details for the JSON file, warnings."""


def load_evidence(config: EvaluateConfig) -> tuple[Evidence, list[str]]:
    """Reads the generated images and cuts the real sets; with notes on what was assumed or converted.

    Raises:
        InputError: if images, masks or splits cannot be used, or nothing is held out.
    """
    if config.held_out_split == config.train_split:
        raise InputError(
            f"held_out_split: {config.held_out_split!r} is also the train_split; nothing would be held out"
        )
    found = find_generated(config.generated)
    geometry, notes = resolve_geometry(found, config.geometry)
    info = load_dataset_info(config.dataset)
    held_out = load_micrographs(config.dataset, config.held_out_split, geometry.in_channels)
    train = load_micrographs(config.dataset, config.train_split, geometry.in_channels)
    generated, conversions = load_generated(found, geometry, info)
    count = config.num_real or len(generated)
    halves = split_micrographs(train, config.seed)
    # Masks for sampling are cut with small seeds too: the crops here must not be the very same windows.
    crop_seed = config.seed + 100_003
    if halves is None:
        notes.append(f"{config.dataset}: one training micrograph; the comparison with training images has no floor")
    if found.sampling.source_split == config.held_out_split:
        notes.append(f"the masks of the generated images are those of the held-out split {config.held_out_split!r}")
    evidence = Evidence(
        config=config,
        info=info,
        geometry=geometry,
        generated=generated,
        held_out=cut_real_set(config.held_out_split, held_out, geometry, count, crop_seed),
        train=cut_real_set(config.train_split, train, geometry, count, crop_seed + 1),
        train_halves=halves
        and (
            cut_real_set(f"{config.train_split} half A", halves[0], geometry, count, crop_seed + 2),
            cut_real_set(f"{config.train_split} half B", halves[1], geometry, count, crop_seed + 3),
        ),
        train_micrographs=train,
        cache_dir=config.cache_dir or default_cache_dir(),
        device=str(pick_device(config.device)),
    )
    return evidence, notes + conversions


def describe_sets(evidence: Evidence) -> dict[str, Any]:
    """Name, place and size of every set, with the geometry that they share."""
    config = evidence.config
    return {
        "geometry": describe_geometry(evidence.geometry),
        "generated": {
            "path": str(config.generated),
            "count": len(evidence.generated),
            "masks": evidence.generated.masks is not None,
        },
        "held_out": {
            "path": str(config.dataset),
            "split": config.held_out_split,
            "count": len(evidence.held_out),
        },
        "train": {"path": str(config.dataset), "split": config.train_split, "count": len(evidence.train)},
    }
