"""Validation of the JSON files in a saved generator folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from steelgen.config.base import MAX_IMAGE_SIZE, MAX_TIMESTEPS
from steelgen.config.generator import LowResolutionSection, UNetSection
from steelgen.data.brightness import Brightness
from steelgen.data.conditions import MAX_CATEGORIES, Condition
from steelgen.data.folder import DatasetInfo
from steelgen.data.placement import CropGeometry
from steelgen.errors import InputError, quote_value
from steelgen.files import Record, load_json, load_record
from steelgen.generators.autoencoder.codec import CODEC_FOLDER
from steelgen.generators.autoencoder.generator import AutoencoderSettings
from steelgen.generators.saved import DESCRIPTION_FILE

INDEX_FILE = "model_index.json"
"""Lists the components of a diffusers pipeline and their classes."""
COMPONENTS = {"scheduler": ["diffusers", "DDPMScheduler"], "unet": ["steelgen.models.semantic_unet", "SemanticUNet"]}
"""Module and class of each component in INDEX_FILE."""


class Description(Record):
    """generator.json. Fields with a default are missing in older ones."""

    dataset: DatasetInfo
    geometry: CropGeometry
    intensity: tuple[Annotated[float, Field(ge=-1, le=1)], Annotated[float, Field(ge=1e-9, le=1)]]
    objective: Literal["simple", "variational"] = "simple"
    vlb_weight: float = Field(0.001, ge=0)
    low_resolution: LowResolutionSection | None = None
    detail: float = Field(1.0, gt=0, le=10)
    conditions: list[Condition] = []
    brightness: list[Brightness] = []
    latent: bool = False
    """Whether there is an autoencoder in the folder `CODEC_FOLDER`, whose latents are generated."""
    mask_noise: bool = False
    """A removed option that changes sampling."""

    @model_validator(mode="after")
    def _check_brightness(self) -> Description:
        for group in self.brightness:
            if len(group.levels) != max(1, len(group.classes)):
                raise ValueError(f"brightness: {len(group.levels)} levels for {len(group.classes)} classes")
            if any(not 0 <= index < self.dataset.num_classes for index in group.classes):
                raise ValueError(f"brightness: classes {group.classes}, there are {self.dataset.num_classes}")
        return self


class _Schedule(Record):
    """The fields of scheduler_config.json that steelgen depends on."""

    model_config = ConfigDict(strict=True)

    num_train_timesteps: int = Field(ge=2, le=MAX_TIMESTEPS)
    beta_start: float = Field(gt=0, lt=1)
    beta_end: float = Field(gt=0, lt=1)
    beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "flow"]
    trained_betas: list[Annotated[float, Field(ge=0, le=1)]] | None = None
    prediction_type: Literal["v_prediction", "epsilon", "sample", "flow"]
    rescale_betas_zero_snr: bool = False
    timestep_spacing: Literal["trailing", "linspace", "leading"]
    variance_type: Literal["fixed_small", "fixed_large", "learned_range"]
    clip_sample: bool

    @model_validator(mode="after")
    def _check_betas(self) -> _Schedule:
        if self.trained_betas is not None and len(self.trained_betas) != self.num_train_timesteps:
            raise ValueError(f"{len(self.trained_betas)} trained_betas for {self.num_train_timesteps} timesteps")
        return self


class _Network(UNetSection):
    """config.json of the network: a `UNetSection` with fields of the data and of diffusers."""

    model_config = ConfigDict(strict=True)
    removed = {"augmentation_channels": UNetSection.removed["augmentation_conditioning"]}

    image_size: int = Field(ge=1, le=MAX_IMAGE_SIZE)
    in_channels: int = Field(ge=1, le=64)
    num_classes: int = Field(ge=0, le=255)
    coarse_channels: int = Field(0, ge=0, le=3)
    conditions: list[Annotated[int, Field(ge=0, le=MAX_CATEGORIES)]] = []

    @model_validator(mode="before")
    @classmethod
    def _drop_notes(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        return {name: value for name, value in values.items() if not name.startswith("_")}


def load_description(folder: Path) -> Description:
    """Reads generator.json and checks the JSON files of diffusers in the same folder.

    Raises:
        InputError: if a file is missing or damaged, or the files disagree; file and field are named.
    """
    description = load_record(folder / DESCRIPTION_FILE, Description)
    if description.mask_noise:
        raise InputError(f"{folder / DESCRIPTION_FILE}: mask_noise was removed; sample with an older steelgen")
    load_record(folder / "scheduler" / "scheduler_config.json", _Schedule)
    path = folder / "unet" / "config.json"
    network = load_record(path, _Network)
    edge, channels = description.geometry.image_size, description.geometry.in_channels
    if description.latent:
        codec = load_record(folder / CODEC_FOLDER / DESCRIPTION_FILE, AutoencoderSettings).section
        edge, channels = edge // codec.downsample_factor, codec.latent_channels
    wanted = {
        "image_size": edge,
        "in_channels": channels,
        "num_classes": description.dataset.num_classes,
        "coarse_channels": description.geometry.in_channels if description.low_resolution else 0,
        "conditions": [len(condition.categories) for condition in description.conditions],
    }
    for name, value in wanted.items():
        if getattr(network, name) != value:
            raise InputError(f"{path}: {name}: is {getattr(network, name)}, but {value} in {DESCRIPTION_FILE}")
    _check_components(folder / INDEX_FILE)
    return description


def _check_components(path: Path) -> None:
    """Raises InputError if INDEX_FILE names other components than `SemanticDiffusion.save` writes.

    diffusers would import any class it finds there and ignore extra components.
    """
    index = load_json(path)
    if not isinstance(index, dict):
        raise InputError(f"{path}: must be a JSON object, not {type(index).__name__}")
    found = {name: value for name, value in index.items() if not name.startswith("_")}
    for name in sorted(found.keys() | COMPONENTS.keys()):
        value, expected = found.get(name), COMPONENTS.get(name)
        if value != expected:
            raise InputError(f"{path}: {name} is {quote_value(value)}, must be {json.dumps(expected)}")
