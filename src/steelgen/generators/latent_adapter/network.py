"""The base and its adapters as one network whose weights are those of the adapters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import ControlNetModel
from torch import Tensor, nn

from steelgen.generators.latent_adapter.base import Base


class AdaptedNetwork(nn.Module):
    """The base with low-rank updates in its layers and a ControlNet beside it.

    `parameters`, `named_parameters` and `state_dict` are those of the trained adapters alone, so that optimizers,
    averages and checkpoints leave the frozen base out; `to` moves everything.

    Args:
        base: with low-rank updates in place, if any. Parameters that require gradients are trained.
        control: the ControlNet, or None.
    """

    def __init__(self, base: Base, control: ControlNetModel | None) -> None:
        super().__init__()
        self.unet, self.vae, self.text_encoder = base.unet, base.vae, base.text_encoder
        self.control = control
        self.dtype = base.vae.dtype
        self._trained = frozenset(name for name, parameter in super().named_parameters() if parameter.requires_grad)
        self._trains_text = any(name.startswith("text_encoder.") for name in self._trained)
        self._scaling = float(base.vae.config.scaling_factor)
        self._channels = int(base.vae.config.in_channels)

    def named_parameters(self, *arguments: Any, **options: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """Yields the parameters of the trained adapters."""
        for name, parameter in super().named_parameters(*arguments, **options):
            if self._is_trained(name):
                yield name, parameter

    def state_dict(self, *arguments: Any, **options: Any) -> dict[str, Any]:  # type: ignore[override]
        """Returns the tensors of the trained adapters by name."""
        state = super().state_dict(*arguments, **options)
        return {name: tensor for name, tensor in state.items() if self._is_trained(name)}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Restores the output of `state_dict`."""
        assert not strict or state_dict.keys() == self._trained, "checked by the callers"
        return super().load_state_dict(state_dict, strict=False, assign=assign)

    def train(self, mode: bool = True) -> AdaptedNetwork:
        """Has no effect on the frozen base, which stays in evaluation mode."""
        self.training = mode
        if self.control is not None:
            self.control.train(mode)
        return self

    def enable_gradient_checkpointing(self) -> None:
        """Recomputes activations of the U-Net and the ControlNet in the backward pass."""
        self.unet.enable_gradient_checkpointing()
        if self.control is not None:
            self.control.enable_gradient_checkpointing()

    def forward(
        self, noisy: Tensor, timesteps: Tensor, prompts: Tensor, drivers: Tensor | None = None, scale: float = 1.0
    ) -> Tensor:
        """Predicts the target of the base.

        Args:
            noisy: (N, C, h, w) noisy latents.
            timesteps: (N,) int64.
            prompts: (N, L) int64 token ids.
            drivers: (N, D, H, W) in [0, 1]; None leaves the ControlNet out.
            scale: factor on the ControlNet's output.

        Returns:
            (N, C, h, w) float32.
        """
        return self.predict(noisy, timesteps, self.embed(prompts), drivers, scale)

    def embed(self, prompts: Tensor) -> Tensor:
        """Embeds token ids (N, L) as (N, L, width)."""
        with torch.set_grad_enabled(self._trains_text and torch.is_grad_enabled()):
            return self.text_encoder(prompts)[0]

    def predict(
        self, noisy: Tensor, timesteps: Tensor, embedded: Tensor, drivers: Tensor | None = None, scale: float = 1.0
    ) -> Tensor:
        """See `forward`, with the output of `embed` in place of token ids."""
        noisy, embedded = noisy.to(self.dtype), embedded.to(self.dtype)
        residuals: dict[str, Any] = {}
        if self.control is not None and drivers is not None:
            own = self.control.dtype
            down, middle = self.control(
                noisy.to(own),
                timesteps,
                encoder_hidden_states=embedded.to(own),
                controlnet_cond=drivers.to(own),
                conditioning_scale=scale,
                return_dict=False,
            )
            residuals = {
                "down_block_additional_residuals": [residual.to(self.dtype) for residual in down],
                "mid_block_additional_residual": middle.to(self.dtype),
            }
        return self.unet(noisy, timesteps, encoder_hidden_states=embedded, **residuals).sample.float()

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Images (N, 1 or 3, H, W) in [-1, 1] → latents (N, C, h, w): the mean of the autoencoder's posterior.

        Gray images are repeated to the autoencoder's channels.
        """
        shown = images.expand(-1, self._channels, -1, -1) if images.shape[1] == 1 else images
        return self.vae.encode(shown.to(self.dtype)).latent_dist.mode().float() * self._scaling

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Latents (N, C, h, w) → images (N, 1 or 3, H, W), about in [-1, 1]; one by one, which saves memory."""
        return torch.cat(
            [self.vae.decode((row / self._scaling).to(self.dtype)).sample for row in latents.split(1)]
        ).float()

    @contextmanager
    def without_lora(self) -> Iterator[None]:
        """Inside the block the base has no low-rank updates."""
        from peft.tuners.tuners_utils import BaseTunerLayer

        layers = [module for module in self.modules() if isinstance(module, BaseTunerLayer)]
        try:
            for layer in layers:
                layer.enable_adapters(False)
            yield
        finally:
            for layer in layers:
                layer.enable_adapters(True)
                # Enabling makes every adapter require gradients.
                for name, parameter in layer.named_parameters():
                    if "lora_" in name:
                        parameter.requires_grad_(self._trains_lora)

    @property
    def _trains_lora(self) -> bool:
        return any("lora_" in name for name in self._trained)

    def _is_trained(self, name: str) -> bool:
        return name in self._trained
