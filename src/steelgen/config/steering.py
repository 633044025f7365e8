"""Config sections in which a segmenter steers what is sampled."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from steelgen.config.base import MAX_STEPS, Section


class EmphasisSection(Section):
    """Draws more masks with classes that a segmenter gets wrong on validation micrographs, or is unsure of."""

    segmenter: Path
    """Output folder of `steelgen segment train`, with the generator's classes and a val_split, which is scored."""
    measure: Literal["error", "doubt"] = "error"
    """error: 1 − IoU of each class; doubt: mean of 1 − confidence over the pixels of each class, for heads on features
    the disagreement of their ensemble."""
    strength: float = Field(0.5, gt=0, le=1)
    """Weight of a mask is 1 − strength + strength · the mean over its pixels of error / area share of their class, in
    units of the mean over the validation micrographs. Near 0 changes nothing; 1 never chooses masks without errors."""
    candidates: int = Field(8, ge=2, le=1000)
    """Masks of mask_source from which each mask is chosen, in proportion to their weights; the largest factor by which
    a mask can become more frequent."""


class GainSection(Section):
    """Gain of a pair for a segmenter: agreement of what it would learn from the pair with what it would learn from real
    crops of the validation split, the cosine of the two gradients of its last layer, from -1 to 1."""

    min_agreement: float = Field(0.0, ge=-1, lt=1)
    """Minimum agreement; pairs below are dropped. -1 keeps all."""
    weigh: bool = False
    """Also write the agreement, or 0 if it is negative, as pair_weight to metadata.jsonl; `steelgen utility` shows
    pairs in proportion to it. false shows all kept pairs equally often."""
    crops: int = Field(64, ge=1, le=100000)
    """Real crops of the validation split."""
    steps: int = Field(100, ge=1, le=MAX_STEPS)
    """Optimizer steps of the segmenter, which otherwise has the settings of filter.segmenter. Few are best: a segmenter
    that has learned all from the real crops takes their noise for what it lacks."""
