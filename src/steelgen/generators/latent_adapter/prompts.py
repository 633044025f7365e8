"""Prompts made from the classes in a mask, as tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPTokenizer

from steelgen.config.adapter import LatentAdapterSection
from steelgen.errors import InputError


@dataclass(frozen=True)
class Prompts:
    """The prompt of each mask; picklable, for the workers of a data loader."""

    template: str
    token: str
    class_names: tuple[str, ...]

    @property
    def uses_classes(self) -> bool:
        """Whether the prompt depends on the mask."""
        return "{classes}" in self.template

    def write(self, mask: NDArray[np.integer] | None) -> str:
        """Returns the prompt of a mask (H, W), with the names of its classes in the dataset's order."""
        present = [] if mask is None else [index for index in np.unique(mask) if index < len(self.class_names)]
        return self._fill(self.class_names[index] for index in present)

    def write_longest(self) -> str:
        """Returns the prompt of a mask with all classes."""
        return self._fill(self.class_names)

    def _fill(self, names: Any) -> str:
        return self.template.replace("{token}", self.token).replace("{classes}", " and ".join(names))


def build_prompts(section: LatentAdapterSection, class_names: Sequence[str]) -> Prompts:
    """Builds the prompts of a section.

    Raises:
        InputError: if the prompt needs classes that there are not.
    """
    prompts = Prompts(section.prompt, section.token, tuple(class_names))
    if prompts.uses_classes and not class_names:
        raise InputError(f"generator.prompt {section.prompt!r}: the dataset has no masks to take {{classes}} from")
    return prompts


def tokenize(tokenizer: CLIPTokenizer, prompt: str, field: str = "generator.prompt") -> Tensor:
    """Converts a prompt to token ids, (L,) int64, padded to the length of the tokenizer.

    Raises:
        InputError: if it is too long.
    """
    limit = int(tokenizer.model_max_length)
    ids = tokenizer(prompt, padding="max_length", max_length=limit, truncation=False).input_ids
    if len(ids) > limit:
        raise InputError(
            f"{field} {prompt!r}: has {len(ids)} tokens with start and end, the base takes at most {limit}; shorten it"
        )
    return torch.tensor(ids, dtype=torch.int64)
