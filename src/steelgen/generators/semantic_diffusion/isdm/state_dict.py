"""Conversion of state dicts between ISDM and a `SemanticUNet` of the same structure.

ISDM names modules by their position in sequential containers, stores γ and β of a SPADE norm in two convolutions, and
stores attention projections as 1D convolutions, by default with query, key and value grouped by head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from steelgen.errors import InputError
from steelgen.models.blocks import Downsample, ResidualBlock, SelfAttention, UNetStage
from steelgen.models.semantic_unet import SemanticUNet


@dataclass(frozen=True)
class KeyRule:
    """Mapping of one parameter of a `SemanticUNet` to ISDM."""

    name: str
    """Name of the parameter in the `SemanticUNet`."""
    isdm_names: tuple[str, ...]
    """ISDM's names; two for γ and β, which are concatenated along the first axis."""
    head_split: int = 0
    """Heads of a query-key-value projection that ISDM groups by head; 0 keeps the order."""
    line_convolution: bool = False
    """Whether ISDM's weight has a trailing axis of length 1."""

    def to_own(self, tensors: list[Tensor]) -> Tensor:
        """Converts ISDM's tensors to the network's parameter."""
        tensor = torch.cat(tensors)
        if self.line_convolution:
            tensor = tensor.squeeze(-1)
        if self.head_split:  # (heads, 3, channels) → (3, heads, channels)
            tensor = tensor.unflatten(0, (self.head_split, 3, -1)).transpose(0, 1).flatten(0, 2)
        return tensor.contiguous()

    def to_isdm(self, tensor: Tensor) -> list[Tensor]:
        """Converts the network's parameter to ISDM's tensors."""
        if self.head_split:
            tensor = tensor.unflatten(0, (3, self.head_split, -1)).transpose(0, 1).flatten(0, 2)
        if self.line_convolution:
            tensor = tensor.unsqueeze(-1)
        return [part.contiguous() for part in tensor.chunk(len(self.isdm_names))]


def list_key_rules(network: SemanticUNet, new_attention_order: bool) -> list[KeyRule]:
    """Lists the rules of all parameters; see `order_isdm_names` for ISDM's order."""
    rules = [
        *_affine("time_mlp.0", "time_embed.0"),
        *_affine("time_mlp.2", "time_embed.2"),
        *_affine("conv_in", "input_blocks.0.0"),
    ]
    for index, stage in enumerate(network.encoder):
        if isinstance(stage, Downsample):
            rules += _affine(f"encoder.{index}.conv", f"input_blocks.{index + 1}.0.op")
        else:
            rules += _stage(stage, f"encoder.{index}", f"input_blocks.{index + 1}", new_attention_order)
    first, last = network.middle
    rules += _stage(first, "middle.0", "middle_block", new_attention_order)
    rules += _block(last.get_submodule("block"), "middle.1.block", "middle_block.2")
    for index, stage in enumerate(network.decoder):
        rules += _stage(stage, f"decoder.{index}", f"output_blocks.{index}", new_attention_order)
    return [*rules, *_affine("norm_out", "out.0"), *_affine("conv_out", "out.2")]


def convert_from_isdm(
    network: SemanticUNet, state: dict[str, Tensor], new_attention_order: bool, origin: Path
) -> dict[str, Tensor]:
    """Converts ISDM's state dict for `network`; also works for averages or moments, keyed like parameters.

    Raises:
        InputError: if a key is missing, unknown or of another shape than in the network; the message names the first.
    """
    rules = list_key_rules(network, new_attention_order)
    wanted = {name: tuple(tensor.shape) for name, tensor in rename_for_isdm(rules, network.state_dict()).items()}
    for name, shape in wanted.items():
        if name not in state:
            raise InputError(f"{origin}: has no {name!r}; the network of the config has it with shape {shape}")
        if tuple(state[name].shape) != shape:
            raise InputError(
                f"{origin}: {name!r} has shape {tuple(state[name].shape)}, the network of the config needs {shape}"
            )
    for name, tensor in state.items():
        if name not in wanted:
            raise InputError(f"{origin}: {name!r} of shape {tuple(tensor.shape)} is not in the network of the config")
    return {rule.name: rule.to_own([state[name].float() for name in rule.isdm_names]) for rule in rules}


def convert_to_isdm(network: SemanticUNet, state: dict[str, Tensor], new_attention_order: bool) -> dict[str, Tensor]:
    """Converts a state dict of `network` to ISDM's, in ISDM's order."""
    rules = list_key_rules(network, new_attention_order)
    tensors = rename_for_isdm(rules, state)
    return {name: tensors[name] for name in order_isdm_names(rules)}


def rename_for_isdm(rules: list[KeyRule], state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Converts tensors keyed like parameters to ISDM's names, in no particular order."""
    return {
        name: part for rule in rules for name, part in zip(rule.isdm_names, rule.to_isdm(state[rule.name]), strict=True)
    }


def order_isdm_names(rules: list[KeyRule]) -> list[str]:
    """Orders ISDM's parameter names as its optimizer numbers them: by module, weight before bias."""
    modules: dict[str, list[str]] = {}
    for rule in rules:
        for name in rule.isdm_names:
            modules.setdefault(name.rpartition(".")[0], []).append(name)
    return [name for names in modules.values() for name in names]


def _affine(name: str, isdm_name: str, head_split: int = 0, line_convolution: bool = False) -> list[KeyRule]:
    return [
        KeyRule(f"{name}.weight", (f"{isdm_name}.weight",), head_split, line_convolution),
        KeyRule(f"{name}.bias", (f"{isdm_name}.bias",), head_split),
    ]


def _stage(stage: nn.Module, name: str, isdm_name: str, new_attention_order: bool) -> Iterator[KeyRule]:
    """Yields the rules of a stage, whose modules ISDM numbers within one container."""
    assert isinstance(stage, UNetStage)
    yield from _block(stage.block, f"{name}.block", f"{isdm_name}.0")
    if stage.attention is not None:
        yield from _attention(stage.attention, f"{name}.attention", f"{isdm_name}.1", new_attention_order)
    position = f"{isdm_name}.{1 if stage.attention is None else 2}"
    if isinstance(stage.resampler, ResidualBlock):
        yield from _block(stage.resampler, f"{name}.resampler", position)
    elif stage.resampler is not None:
        yield from _affine(f"{name}.resampler.conv", f"{position}.conv")


def _block(block: nn.Module, name: str, isdm_name: str) -> list[KeyRule]:
    assert isinstance(block, ResidualBlock)
    # A plain norm is the first module of its container, a SPADE norm is outside; so the convolutions' numbers differ.
    plain = isinstance(block.norm_1, nn.GroupNorm)

    def norm(number: int, side: str) -> list[KeyRule]:
        if plain:
            return _affine(f"{name}.norm_{number}", f"{isdm_name}.{side}_layers.0")
        return _spade(f"{name}.norm_{number}", f"{isdm_name}.{side}_norm")

    return [
        *norm(1, "in"),
        *_affine(f"{name}.conv_1", f"{isdm_name}.in_layers.{2 if plain else 1}"),
        *_affine(f"{name}.time", f"{isdm_name}.emb_layers.1"),
        *norm(2, "out"),
        *_affine(f"{name}.conv_2", f"{isdm_name}.out_layers.{3 if plain else 2}"),
        *([] if isinstance(block.skip, nn.Identity) else _affine(f"{name}.skip", f"{isdm_name}.skip_connection")),
    ]


def _spade(name: str, isdm_name: str) -> list[KeyRule]:
    rules = _affine(f"{name}.shared", f"{isdm_name}.mlp_shared.0")
    for kind in ("weight", "bias"):
        isdm_names = (f"{isdm_name}.mlp_gamma.{kind}", f"{isdm_name}.mlp_beta.{kind}")
        rules.append(KeyRule(f"{name}.to_modulation.{kind}", isdm_names))
    return rules


def _attention(attention: SelfAttention, name: str, isdm_name: str, new_attention_order: bool) -> list[KeyRule]:
    heads = 0 if new_attention_order else attention.num_heads
    return [
        *_affine(f"{name}.norm", f"{isdm_name}.norm"),
        *_affine(f"{name}.to_qkv", f"{isdm_name}.qkv", head_split=heads, line_convolution=True),
        *_affine(f"{name}.to_out", f"{isdm_name}.proj_out", line_convolution=True),
    ]
