"""How an image is drawn from noise."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from steelgen.config.base import Section


class SolverSection(Section):
    """The solver of the reverse process and its guidance."""

    name: Literal["dpmsolver++", "unipc", "ddim", "ddpm", "euler"] = "dpmsolver++"
    """DPM-Solver++ 2M (Lu et al. 2022, arXiv 2211.01095), UniPC, DDIM, ancestral DDPM or Euler."""
    num_inference_steps: int = Field(20, ge=1)
    """Steps of the solver; each costs one network evaluation, two under guidance."""
    guidance_scale: float = Field(1.5, ge=0)
    """Classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598): null + s·(conditional − null).
    1 is the plain conditional model, above it the mask is obeyed more strictly."""
