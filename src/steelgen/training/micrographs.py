"""Loading of the micrographs that a training config names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from steelgen.config.train import RunConfig
from steelgen.data.classes import declare_classes
from steelgen.data.conditions import Condition, Row, encode_rows, fit_conditions, load_rows
from steelgen.data.crops import Micrographs, load_micrographs
from steelgen.data.folder import list_splits
from steelgen.data.mixture import load_mixture
from steelgen.data.placement import CropGeometry
from steelgen.errors import InputError
from steelgen.generators import Generator
from steelgen.generators.drawing import conditions_of


def load_training_data(config: RunConfig, known: Sequence[Condition] = ()) -> Micrographs:
    """Loads the training micrographs of a config, with their conditions and the source of a translation.

    Args:
        known: conditions of a checkpoint, which keep their scale.

    Raises:
        InputError: if a dataset cannot be used.
    """
    micrographs, data = _load_split(config), config.data
    assert micrographs is not None, "a missing training split is an InputError"
    if data.source:
        micrographs = replace(micrographs, source=_load_source(config, data.source.split))
        _check_colors(config, micrographs)
    if data.conditions:
        told = _load_rows(config)
        columns = fit_conditions(data.conditions, told, known)
        micrographs = replace(micrographs, conditions=encode_rows(told, columns), columns=columns)
    if data.dataset is None or data.num_classes is None or not micrographs.info.num_classes:
        return micrographs
    return replace(micrographs, info=declare_classes(micrographs.info, data.num_classes, data.dataset))


def load_held_out(config: RunConfig, generator: Generator) -> Micrographs | None:
    """Loads the micrographs for validation; None if none are held out."""
    data, split = config.data, config.validation.split
    found = None if split is None else _load_split(config, split)
    if found is None or split is None:
        return None
    if columns := conditions_of(generator):
        found = replace(found, conditions=encode_rows(_load_rows(config, split), columns), columns=columns)
    held_out = hide_masks(found, generator)
    if data.source is None:
        return held_out
    # A source needs no split of its own: no loss compares its images with others.
    own = split if split in list_splits(data.source.dataset) else data.source.split
    return replace(held_out, source=_load_source(config, own))


def hide_masks(micrographs: Micrographs, generator: Generator) -> Micrographs:
    """Drops the masks for a generator that does not use them."""
    return micrographs if generator.info.num_classes else micrographs.without_masks()


def crop_geometry(config: RunConfig) -> CropGeometry:
    """Returns the crop geometry of a config."""
    data = config.data
    return CropGeometry(data.image_size, data.crop_size or data.image_size, data.scale_range, data.in_channels)


def _load_source(config: RunConfig, split: str) -> Micrographs:
    assert config.data.source is not None
    return load_micrographs(config.data.source.dataset, split, config.data.in_channels)


def _check_colors(config: RunConfig, micrographs: Micrographs) -> None:
    """Raises InputError if a network for RGB images would have to invent or remove the colors of one side."""
    data = config.data
    if data.in_channels == 1 or data.source is None or micrographs.source is None:
        return
    colored = [
        any((image[..., :1] != image).any() for image in side.images) for side in (micrographs, micrographs.source)
    ]
    if colored[0] != colored[1]:
        paths = [str(data.dataset), str(data.source.dataset)]
        gray, other = paths if colored[1] else paths[::-1]
        raise InputError(f"{gray}: images are gray, but those of {other} have colors; set data.in_channels to 1")


def _load_rows(config: RunConfig, held_out: str | None = None) -> list[list[Row]]:
    """The metadata of the micrographs of `_load_split`, dataset by dataset."""
    data = config.data
    return [
        load_rows(folder, held_out or split)
        for folder, split in zip(data.folders, data.splits, strict=True)
        if held_out is None or held_out in list_splits(folder)
    ]


def _load_split(config: RunConfig, held_out: str | None = None) -> Micrographs | None:
    """The training split, or the split `held_out`; None if no dataset has it."""
    data = config.data
    if data.dataset is None:
        micrographs = load_mixture(data.datasets, crop_geometry(config), data.merge_classes, held_out)
    elif held_out and held_out not in list_splits(data.dataset):
        micrographs = None
    else:
        micrographs = load_micrographs(data.dataset, held_out or data.split, data.in_channels)
    return micrographs.without_masks() if micrographs and data.unconditional else micrographs
