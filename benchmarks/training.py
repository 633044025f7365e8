"""Training step of ISDM's network, ISDM's way and ours: images/s and peak memory, measured alternately.

    python benchmarks/training.py [--image-size 64] [--channels 64] [--batch-size 4] [--repeats 5] [--threads 2]
    python benchmarks/training.py --device cuda --image-size 256 --channels 128 --batch-size 8

ISDM's way: fp32, NCHW, AdamW that loops over parameters, the full mask resized in every SPADE norm with separate
convolutions for γ and β, a second forward pass for the loss (without gradients, in its favor), and an EMA that loops
over parameters. Ours: a step of `steelgen train` with mixed_precision auto, for the same network and weights. On a GPU,
`ours, compiled` is measured too. Memory is the peak of a new process per variant (CPU) or
torch.cuda.max_memory_allocated.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from common import save_results, summarize, time_alternately
from diffusers import DDPMScheduler
from torch import Tensor, nn
from torch.utils.data import default_collate

from steelgen.config.generator import DiffusionTrainingSection
from steelgen.config.isdm import IsdmNetworkSection
from steelgen.data.placement import CropGeometry
from steelgen.devices import autocast, resolve_precision
from steelgen.diffusion.noise import NoiseSchedule
from steelgen.diffusion.randomness import CropRandomness
from steelgen.generators.semantic_diffusion.generator import SemanticDiffusion
from steelgen.generators.semantic_diffusion.isdm.network import build_isdm_info, build_isdm_network
from steelgen.generators.semantic_diffusion.training import SemanticDiffusionTraining
from steelgen.models.semantic_unet import SemanticUNet
from steelgen.models.spade import MaskFeatures, Modulation, SpadeNorm, mark_edges
from steelgen.training.ema import WeightAverage

CLASSES = 3
Step = Callable[[], Any]


class IsdmForward(nn.Module):
    """The same network run as by ISDM, with two forward passes."""

    def __init__(self, network: SemanticUNet) -> None:
        super().__init__()
        self.network = network

    def forward(self, noisy_image: Tensor, timesteps: Tensor, one_hot_mask: Tensor) -> Tensor:
        with torch.no_grad():
            self._run(noisy_image, timesteps, one_hot_mask)
        return self._run(noisy_image, timesteps, one_hot_mask)

    def _run(self, noisy_image: Tensor, timesteps: Tensor, one_hot_mask: Tensor) -> Tensor:
        mask = torch.cat([one_hot_mask, mark_edges(one_hot_mask)], dim=1)
        edge = mask.shape[-1]
        modulations = tuple(_modulate(norm, mask, edge >> level) for norm, level in self.network._spade_norms())
        return self.network(noisy_image, timesteps, mask_features=MaskFeatures(modulations, ()))


def _modulate(norm: SpadeNorm, mask: Tensor, edge: int) -> Modulation:
    hidden = F.relu(norm.shared(F.interpolate(mask, size=(edge, edge), mode="nearest")))
    weights, biases = norm.to_modulation.weight.chunk(2), norm.to_modulation.bias.chunk(2)
    gamma, beta = (F.conv2d(hidden, w, b, padding=1) for w, b in zip(weights, biases, strict=True))
    return gamma, beta


def build_generator(arguments: argparse.Namespace) -> SemanticDiffusion:
    """ISDM's network as a generator, with seeded weights."""
    torch.manual_seed(0)
    settings = IsdmNetworkSection(
        image_size=arguments.image_size,
        num_channels=arguments.channels,
        num_classes=CLASSES,
        resblock_updown=True,
        num_head_channels=min(64, arguments.channels),
    )
    network = build_isdm_network(settings).to(arguments.device).train()
    geometry = CropGeometry(arguments.image_size, arguments.image_size, (1.0, 1.0), in_channels=3)
    return SemanticDiffusion(
        network, NoiseSchedule(DDPMScheduler(1000)), build_isdm_info(CLASSES, "benchmark"), geometry
    )


def build_batch(arguments: argparse.Namespace) -> dict[str, Tensor]:
    """Random images, and masks of 8 px squares."""
    size, rng = (arguments.batch_size, arguments.image_size, arguments.image_size), np.random.default_rng(0)
    coarse = rng.integers(0, CLASSES, (size[0], -(-size[1] // 8), -(-size[2] // 8)))
    mask = coarse.repeat(8, axis=1).repeat(8, axis=2)[:, : size[1], : size[2]]
    image = rng.uniform(-1, 1, (size[0], 3, *size[1:])).astype(np.float32)
    randomness = CropRandomness(0, image.shape[1:], mask_dropout=0.2)
    noise = default_collate([randomness(number) for number in range(size[0])])
    batch = {"image": torch.from_numpy(image), "mask": torch.from_numpy(mask), "number": torch.arange(size[0]), **noise}
    return {name: tensor.to(arguments.device) for name, tensor in batch.items()}


def build_isdm_step(arguments: argparse.Namespace) -> Step:
    """A training step of ISDM."""
    generator, batch = build_generator(arguments), build_batch(arguments)
    trainable = SemanticDiffusionTraining(generator, DiffusionTrainingSection())
    forward, parameters = IsdmForward(generator.network), list(generator.network.parameters())
    optimizer = torch.optim.AdamW(parameters, lr=1e-4, foreach=False, fused=False)
    averages = [parameter.detach().clone() for parameter in parameters]

    def step() -> Tensor:
        loss = trainable.compute_loss(trainable.phases[0], {"unet": forward}, batch).losses.mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)
        with torch.no_grad():
            for average, parameter in zip(averages, parameters, strict=True):
                average.mul_(0.9999).add_(parameter, alpha=1 - 0.9999)
        return _finish(loss)

    return step


def build_our_step(arguments: argparse.Namespace, compiled: bool = False) -> Step:
    """A training step of `steelgen train`."""
    generator, batch = build_generator(arguments), build_batch(arguments)
    trainable = SemanticDiffusionTraining(generator, DiffusionTrainingSection())
    network = generator.network.to(memory_format=torch.channels_last)
    if compiled:
        network.compile()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    average = WeightAverage(network, 0.9999, warmup=False)

    def step() -> Tensor:
        with autocast("auto", torch.device(arguments.device)):
            loss = trainable.compute_loss(trainable.phases[0], {"unet": network}, batch).losses.mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        average.update(1)
        return _finish(loss)

    return step


def _finish(loss: Tensor) -> Tensor:
    if loss.is_cuda:
        torch.cuda.synchronize()
    return loss.detach()


VARIANTS: dict[str, Callable[[argparse.Namespace], Step]] = {
    "ISDM's way": build_isdm_step,
    "ours": build_our_step,
    "ours, compiled": lambda arguments: build_our_step(arguments, compiled=True),
}


def measure_memory(arguments: argparse.Namespace, name: str) -> float:
    """Peak memory of two steps of a variant, in GiB."""
    if arguments.device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        step = VARIANTS[name](arguments)
        step(), step()
        return torch.cuda.max_memory_allocated() / 2**30
    done = subprocess.run([sys.executable, *sys.argv, "--memory-of", name], check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Images per second and memory of every variant, and the ratios to ISDM's way by repeat."""
    names = list(VARIANTS) if arguments.device == "cuda" else list(VARIANTS)[:2]
    memory = {name: measure_memory(arguments, name) for name in names}
    seconds = time_alternately({name: VARIANTS[name](arguments) for name in names}, arguments.repeats)
    base = np.array(seconds[names[0]])
    return {
        "settings": {key: value for key, value in vars(arguments).items() if key not in ("out", "memory_of")},
        "precision_of_ours": resolve_precision("auto", torch.device(arguments.device)),
        "variants": {
            name: {
                "images_per_second": summarize((arguments.batch_size / np.array(times)).tolist()),
                "times_faster_than_isdm": summarize((base / np.array(times)).tolist()),
                "peak_memory_gib": memory[name],
                "share_of_isdms_memory": memory[name] / memory[names[0]],
            }
            for name, times in seconds.items()
        },
    }


def main() -> None:
    """Measures all variants and saves the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "training.json")
    parser.add_argument(
        "--memory-of", choices=VARIANTS, help="only run two steps of this variant and print the peak memory"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory_of:
        step = VARIANTS[arguments.memory_of](arguments)
        step(), step()
        print(json.dumps(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20))
        return
    save_results(arguments.out, measure(arguments))


if __name__ == "__main__":
    main()
