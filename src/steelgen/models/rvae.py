"""Rotation- and translation-invariant variational autoencoder.

The decoder is a function of coordinates, which are rotated, scaled, and shifted first (Bepler et al. 2019, arXiv
1909.11663; Kalinin et al. 2021, Sci. Adv. 7, eabd5084). The encoder uses polar coordinates, where a rotation is a
cyclic shift (Esteves et al. 2018, arXiv 1709.01889): the amplitudes of Fourier modes along the angle are invariant, and
the phase of one mode gives the angle. So the latents are rotation-invariant by construction. Only the disc within a
patch is encoded and decoded, since rotation moves the corners out of the patch.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_MODES = 7
"""Number of Fourier modes along the angle whose amplitudes are encoded."""
_LOG_STD_RANGE = (-6.0, 1.0)
_LOG_NOISE_RANGE = (-4.0, 2.0)
_COARSE = 5
"""Pixel stride when comparing candidate angles."""


class Posterior(NamedTuple):
    """Means and log standard deviations of the posterior of N patches."""

    latents: Tensor
    """(N, latent_dim)."""
    latents_log_std: Tensor
    nuisances: Tensor
    """(N, 3), in standard deviations of their priors: shift right and down in the object's frame, log scale."""
    nuisances_log_std: Tensor
    turns: Tensor
    """(N, starts) radians, counterclockwise: equally spaced candidate angles; 0 for a plain autoencoder."""
    turn_log_std: Tensor
    """(N,)."""


class Elbo(NamedTuple):
    """Terms of the evidence lower bound, log_likelihood minus the three divergences; each (N,), in nats."""

    log_likelihood: Tensor
    kl_latents: Tensor
    kl_turn: Tensor
    kl_nuisances: Tensor


class RotationVae(nn.Module):
    """Rotation-invariant variational autoencoder.

    Args:
        image_size: edge S of the patches.
        gray_channels: channels with a Gaussian likelihood of learned noise; they come first.
        binary_channels: channels in [0, 1] with a Bernoulli likelihood.
        latent_dim: length of the latents.
        encoder_channels: channels of the encoder's first convolution.
        decoder_channels: width of the decoder.
        decoder_layers: hidden layers of the decoder.
        starts: number of candidate angles, and the order of the Fourier mode whose phase gives the angle. 2 suits
            objects with near twofold symmetry, such as most islands, whose first mode is weak.
        invariant: False gives a plain variational autoencoder of about the same size, without angle, shift, or scale.
        turn_prior: standard deviation of the angle's normal prior; None for a uniform prior.
        shift_prior: standard deviation of the shift's prior, in half edges; 0 disables shifts.
        scale_prior: standard deviation of the log scale's prior; 0 disables scaling.
    """

    coordinates: Tensor
    disc: Tensor
    nuisance_priors: Tensor

    def __init__(
        self,
        image_size: int,
        gray_channels: int,
        binary_channels: int,
        latent_dim: int,
        encoder_channels: int,
        decoder_channels: int,
        decoder_layers: int,
        starts: int,
        invariant: bool,
        turn_prior: float | None,
        shift_prior: float,
        scale_prior: float,
    ) -> None:
        super().__init__()
        self.gray_channels, self.latent_dim, self.starts = gray_channels, latent_dim, starts if invariant else 1
        self.invariant, self.turn_prior = invariant, turn_prior
        channels = gray_channels + binary_channels
        # Means and log standard deviations of latents, shift, and scale; log standard deviation of the angle.
        outputs = 2 * latent_dim + 7
        self.encoder: PolarEncoder | PlainEncoder
        if invariant:
            self.encoder = PolarEncoder(image_size, channels, encoder_channels, outputs, starts)
        else:
            self.encoder = PlainEncoder(image_size, channels, encoder_channels, outputs)
        self.decoder = SpatialDecoder(latent_dim, channels, decoder_channels, decoder_layers)
        # Initial noise of about a third of the contrast; with more, shapes are learned late.
        self.log_noise = nn.Parameter(torch.full((gray_channels, 1), -1.0))
        coordinates = list_coordinates(image_size)
        self.register_buffer("coordinates", coordinates, persistent=False)
        self.register_buffer("disc", (coordinates.norm(dim=1) <= 1).nonzero()[:, 0], persistent=False)
        priors = [shift_prior, shift_prior, scale_prior] if invariant else [0.0] * 3
        self.register_buffer("nuisance_priors", torch.tensor(priors), persistent=False)

    def encode(self, patches: Tensor) -> Posterior:
        """Encodes patches (N, C, S, S)."""
        outputs, vectors = self.encoder(patches)
        size = self.latent_dim
        means, log_std, nuisances, nuisances_log_std, turn_log_std = outputs.float().split([size, size, 3, 3, 1], dim=1)
        right, up = vectors.float().unbind(dim=1)
        turns = torch.atan2(up, right) / self.starts
        candidates = torch.arange(self.starts, device=turns.device) * (2 * math.pi / self.starts)
        low, high = _LOG_STD_RANGE
        return Posterior(
            means,
            log_std.clamp(low, high),
            nuisances,
            nuisances_log_std.clamp(low, high),
            # Wrapped to [-π, π) for the prior around 0.
            (turns[:, None] + candidates + math.pi) % (2 * math.pi) - math.pi,
            (turn_log_std[:, 0] - 2).clamp(low, high),
        )

    def decode(self, latents: Tensor, turns: Tensor, nuisances: Tensor, pixels: Tensor) -> Tensor:
        """Decodes the channels at given pixels.

        Args:
            latents: (N, latent_dim).
            turns: (N,) radians.
            nuisances: (N, 3), see `Posterior`.
            pixels: (P,) row-major pixel indices.

        Returns:
            (N, C, P) float32: means of gray channels, logits of binary channels.
        """
        cosine, sine = turns.cos(), turns.sin()
        # Coordinates rotate clockwise so that the object rotates counterclockwise; y points down.
        rotation = torch.stack([torch.stack([cosine, sine], dim=-1), torch.stack([-sine, cosine], dim=-1)], dim=-2)
        placement = nuisances * self.nuisance_priors
        places = self.coordinates[pixels] @ rotation  # (N, P, 2)
        places = places * placement[:, None, 2:].exp() + placement[:, None, :2]
        return self.decoder(latents, places).float()

    def compute_log_likelihood(self, decoded: Tensor, patches: Tensor, pixels: Tensor) -> Tensor:
        """Computes log p (N,) of patches (N, C, S, S) at pixels (P,), given their decoded channels (N, C, P)."""
        target = patches.flatten(2)[:, :, pixels]
        gray, binary = target.tensor_split([self.gray_channels], dim=1)
        means, logits = decoded.tensor_split([self.gray_channels], dim=1)
        log_noise = self.log_noise.clamp(*_LOG_NOISE_RANGE)
        gaussian = -0.5 * ((gray - means) * (-log_noise).exp()) ** 2 - log_noise - 0.5 * math.log(2 * math.pi)
        bernoulli = -F.binary_cross_entropy_with_logits(logits, binary, reduction="none")
        return gaussian.sum(dim=(1, 2)) + bernoulli.sum(dim=(1, 2))

    @torch.no_grad()
    def choose_starts(self, posterior: Posterior, patches: Tensor) -> Tensor:
        """Returns the indices (N,) of the candidate angles of highest likelihood on a subset of pixels."""
        if self.starts == 1:
            return torch.zeros(len(patches), dtype=torch.long, device=patches.device)
        pixels = self.disc[::_COARSE]
        likelihoods = []
        for turns in posterior.turns.unbind(dim=1):
            decoded = self.decode(posterior.latents, turns, posterior.nuisances, pixels)
            likelihoods.append(self.compute_log_likelihood(decoded, patches, pixels))
        return torch.stack(likelihoods, dim=1).argmax(dim=1)

    def forward(self, patches: Tensor, noise: Tensor) -> Elbo:
        """Estimates the evidence lower bound from one posterior sample.

        Args:
            patches: (N, C, S, S).
            noise: (N, latent_dim + 4) standard normal, for latents, angle, shift, and scale.
        """
        posterior = self.encode(patches)
        latents, nuisances = posterior.latents, posterior.nuisances
        turns = posterior.turns.gather(1, self.choose_starts(posterior, patches)[:, None])[:, 0]
        kl_latents = _compute_normal_divergence(latents, posterior.latents_log_std).sum(dim=1)
        used = (self.nuisance_priors > 0).float()
        kl_nuisances = (_compute_normal_divergence(nuisances, posterior.nuisances_log_std) * used).sum(dim=1)
        kl_turn = self._compute_turn_divergence(turns, posterior.turn_log_std)
        for_latents, for_turns, for_nuisances = noise.split([self.latent_dim, 1, 3], dim=1)
        latents = latents + posterior.latents_log_std.exp() * for_latents
        nuisances = nuisances + posterior.nuisances_log_std.exp() * for_nuisances
        if self.invariant:
            turns = turns + posterior.turn_log_std.exp() * for_turns[:, 0]
        decoded = self.decode(latents, turns, nuisances, self.disc)
        return Elbo(self.compute_log_likelihood(decoded, patches, self.disc), kl_latents, kl_turn, kl_nuisances)

    def _compute_turn_divergence(self, turns: Tensor, log_std: Tensor) -> Tensor:
        """Computes the KL divergence (N,) of a normal distribution of angles from the prior; at least 0."""
        if not self.invariant:
            return torch.zeros_like(turns)
        if self.turn_prior is None:
            # Uniform prior: ln 2π minus the entropy, valid while the posterior barely wraps around.
            return (math.log(2 * math.pi) - 0.5 * math.log(2 * math.pi * math.e) - log_std).clamp(min=0)
        scaled = (turns**2 + (2 * log_std).exp()) / self.turn_prior**2
        return 0.5 * (scaled - 1) + math.log(self.turn_prior) - log_std


class PolarEncoder(nn.Module):
    """Convolutional encoder in polar coordinates, circular in the angle.

    Args:
        image_size: edge of the patches.
        in_channels: channels of the patches.
        base_channels: channels of the first convolution; the last has four times as many.
        outputs: number of rotation-invariant outputs.
        mode: order of the Fourier mode whose phase gives the angle.
    """

    grid: Tensor
    waves: Tensor

    def __init__(self, image_size: int, in_channels: int, base_channels: int, outputs: int, mode: int) -> None:
        super().__init__()
        self.mode = mode
        radii, angles = max(8, image_size // 2), max(24, 8 * round(image_size / 6))
        self.register_buffer("grid", _list_polar_grid(radii, angles), persistent=False)
        steps = torch.arange(angles) * (2 * math.pi / angles)
        modes = torch.arange(max(_MODES, mode + 1))
        phases = modes[:, None] * steps
        self.register_buffer("waves", torch.stack([phases.cos(), phases.sin()]) / angles, persistent=False)
        widths = [in_channels, base_channels, 2 * base_channels, 4 * base_channels]
        self.convolutions = nn.ModuleList(
            nn.Conv2d(before, after, (3, 5), stride=(stride, 1), padding=(1, 0))
            for before, after, stride in zip(widths, widths[1:], (1, 2, 2), strict=False)
        )
        rows = -(-radii // 4)
        self.gather = nn.Conv2d(widths[-1], widths[-1], (rows, 1))
        self.direction = nn.Parameter(torch.randn(2, widths[-1]) / math.sqrt(widths[-1]))
        hidden = 8 * base_channels
        self.head = nn.Sequential(
            nn.Linear(len(modes) * widths[-1], hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()
        )
        self.out = nn.Linear(hidden, outputs)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, S, S) → (N, outputs), and vectors (N, 2) whose direction is `mode` times the angle."""
        grid = self.grid.expand(len(patches), -1, -1, -1)
        features = F.grid_sample(patches, grid, mode="bilinear", padding_mode="border", align_corners=False)
        for convolution in self.convolutions:
            features = F.silu(convolution(F.pad(features, (2, 2, 0, 0), mode="circular")))
        features = F.silu(self.gather(features))[:, :, 0].float()  # (N, F, angles)
        cosines, sines = (features @ wave.T for wave in self.waves)  # (N, F, modes)
        amplitudes = (cosines**2 + sines**2 + 1e-8).sqrt()
        real, imaginary = cosines[:, :, self.mode], sines[:, :, self.mode]
        # One complex weight per channel; a rotation adds the same angle to all phases.
        vectors = torch.stack(
            [
                real @ self.direction[0] - imaginary @ self.direction[1],
                imaginary @ self.direction[0] + real @ self.direction[1],
            ],
            dim=1,
        )
        # Logarithms, since amplitudes span orders of magnitude.
        return self.out(self.head((amplitudes + 1e-2).log().flatten(1))), vectors


class PlainEncoder(nn.Module):
    """Convolutional encoder of a plain variational autoencoder; see `PolarEncoder` for the arguments."""

    def __init__(self, image_size: int, in_channels: int, base_channels: int, outputs: int) -> None:
        super().__init__()
        widths = [in_channels, base_channels, 2 * base_channels, 4 * base_channels]
        layers: list[nn.Module] = []
        for before, after in pairwise(widths):
            layers += [nn.Conv2d(before, after, 4, stride=2, padding=1), nn.SiLU()]
        edge = image_size // 8
        hidden = 8 * base_channels
        self.head = nn.Sequential(
            *layers,
            nn.Flatten(),
            nn.Linear(widths[-1] * edge**2, hidden),
            nn.SiLU(),
            nn.Linear(hidden, hidden),
            nn.SiLU(),
        )
        self.out = nn.Linear(hidden, outputs)

    def forward(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """(N, C, S, S) → (N, outputs), and unit vectors (N, 2) of angle 0."""
        outputs = self.out(self.head(patches))
        return outputs, outputs.new_tensor([1.0, 0.0]).expand(len(outputs), 2)


class SpatialDecoder(nn.Module):
    """Coordinate MLP with tanh: position in the object's frame and latents → channels (Bepler et al. 2019, section 2).

    Args:
        latent_dim: length of the latents.
        out_channels: output channels.
        width: width of the hidden layers.
        layers: number of hidden layers.
    """

    def __init__(self, latent_dim: int, out_channels: int, width: int, layers: int) -> None:
        super().__init__()
        self.from_places = nn.Linear(2, width)
        self.from_latents = nn.Linear(latent_dim, width, bias=False)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(layers - 1))
        self.out = nn.Linear(width, out_channels)

    def forward(self, latents: Tensor, places: Tensor) -> Tensor:
        """(N, latent_dim) and (N, P, 2) → (N, C, P)."""
        features = torch.tanh(self.from_places(places) + self.from_latents(latents)[:, None])
        for layer in self.hidden:
            features = torch.tanh(layer(features))
        return self.out(features).transpose(1, 2)


def list_coordinates(image_size: int) -> Tensor:
    """Returns pixel centers (S·S, 2), x right and y down, in half edges from the center of the patch."""
    steps = (torch.arange(image_size) + 0.5) * (2 / image_size) - 1
    down, right = torch.meshgrid(steps, steps, indexing="ij")
    return torch.stack([right.flatten(), down.flatten()], dim=1)


def _list_polar_grid(radii: int, angles: int) -> Tensor:
    """Returns sampling positions (1, radii, angles, 2), counterclockwise from the x axis."""
    radius = ((torch.arange(radii) + 0.5) / radii)[:, None]
    angle = (torch.arange(angles) * (2 * math.pi / angles))[None]
    return torch.stack([radius * angle.cos(), -radius * angle.sin()], dim=-1)[None]


def _compute_normal_divergence(means: Tensor, log_std: Tensor) -> Tensor:
    """Computes the elementwise KL divergence of N(mean, std²) from N(0, 1) (Kingma & Welling 2014, appendix B)."""
    return 0.5 * (means**2 + (2 * log_std).exp() - 1) - log_std
