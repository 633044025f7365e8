"""Parts of the semantic U-Net that fine-tuning may freeze."""

from __future__ import annotations

from torch import nn

from steelgen.generators.semantic_diffusion.generator import SemanticDiffusion
from steelgen.models.spade import SpadeNorm

_PARTS = {
    "time_mlp": "time",
    "coarse_noise_mlp": "time",
    "conv_in": "input",
    "encoder": "encoder",
    "middle": "middle",
    "decoder": "decoder",
    "condition_embedding": "conditions",
    "norm_out": "output",
    "to_pixels": "output",
    "conv_out": "output",
}
"""Part by child of the network."""


def list_parts(generator: SemanticDiffusion) -> dict[str, list[nn.Parameter]]:
    """Returns the parameters of the network by part; each is in one.

    The parts are input, time, encoder, middle, decoder, output, and, if there are any, conditions and spade, the layers
    that see the mask.
    """
    network = generator.network
    spade = {parameter for norm in network.modules() if isinstance(norm, SpadeNorm) for parameter in norm.parameters()}
    parts: dict[str, list[nn.Parameter]] = {}
    for name, parameter in network.named_parameters():
        part = "spade" if parameter in spade else _PARTS[name.split(".")[0]]
        parts.setdefault(part, []).append(parameter)
    return parts
