"""Loading of the sets that an evaluation compares."""

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
    """The image sets and settings that every section of an evaluation uses."""

    config: EvaluateConfig
    info: DatasetInfo
    geometry: CropGeometry
    generated: ImageSet
    held_out: ImageSet
    """Real crops of micrographs not used to train the generator."""
    train: ImageSet
    """Real crops of the generator's training micrographs."""
    train_halves: tuple[ImageSet, ImageSet] | None
    """Crops of two halves of the training micrographs, for the floor of comparisons with `train`."""
    train_micrographs: Micrographs
    cache_dir: Path
    device: str

    @property
    def comparisons(self) -> list[tuple[ImageSet, tuple[ImageSet, ImageSet] | None]]:
        """Each reference set with the two real sets of its floor."""
        return [(self.held_out, (self.train, self.held_out)), (self.train, self.train_halves)]


Judgment = tuple[list[Figure], dict[str, Any], list[str]]
"""Result of a section: figures, details for the JSON file, warnings."""


def load_evidence(config: EvaluateConfig) -> tuple[Evidence, list[str]]:
    """Reads the generated images, cuts the real sets, and notes what was assumed or converted.

    Raises:
        InputError: if images, masks or splits cannot be used, or held-out and training split are the same.
    """
    if config.held_out_split == config.train_split:
        raise InputError(f"held_out_split: {config.held_out_split!r} is also the train_split, so nothing is held out")
    found = find_generated(config.generated)
    geometry, notes = resolve_geometry(found, config.geometry)
    info = load_dataset_info(config.dataset)
    held_out = load_micrographs(config.dataset, config.held_out_split, geometry.in_channels)
    train = load_micrographs(config.dataset, config.train_split, geometry.in_channels)
    generated, conversions = load_generated(found, geometry, info)
    halves = split_micrographs(train, config.seed)
    if halves is None:
        notes.append(f"{config.dataset}: one training micrograph; comparisons with the training split have no floor")
    if found.sampling.source_split == config.held_out_split:
        notes.append(f"the generated images were sampled for masks of the held-out split {config.held_out_split!r}")

    def cut(name: str, micrographs: Micrographs, number: int) -> ImageSet:
        # Masks for sampling are cut with small seeds too; the crops here must not be the same windows.
        seed = config.seed + 100_003 + number
        return cut_real_set(name, micrographs, geometry, config.num_real or len(generated), seed)

    evidence = Evidence(
        config=config,
        info=info,
        geometry=geometry,
        generated=generated,
        held_out=cut(config.held_out_split, held_out, 0),
        train=cut(config.train_split, train, 1),
        train_halves=halves
        and (cut(f"{config.train_split} half A", halves[0], 2), cut(f"{config.train_split} half B", halves[1], 3)),
        train_micrographs=train,
        cache_dir=config.cache_dir or default_cache_dir(),
        device=str(pick_device(config.device)),
    )
    return evidence, notes + conversions


def describe_sets(evidence: Evidence) -> dict[str, Any]:
    """JSON values: path and size of every set, and the geometry that they share."""
    config, generated = evidence.config, evidence.generated
    path = str(config.dataset)
    return {
        "geometry": describe_geometry(evidence.geometry),
        "generated": {
            "path": str(config.generated),
            "count": len(generated),
            "masks": generated.masks is not None,
        },
        "held_out": {"path": path, "split": config.held_out_split, "count": len(evidence.held_out)},
        "train": {"path": path, "split": config.train_split, "count": len(evidence.train)},
    }
