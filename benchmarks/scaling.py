"""Communication of data-parallel training, and its scaling by a simple model (docs/scaling.md).

    python -m torch.distributed.run --standalone --nproc_per_node 2 benchmarks/scaling.py [--config configs/train.json]

Measures the bytes that DistributedDataParallel all-reduces per step, the time of a step with and without all-reduce,
and the floating-point operations per step. Predicts the efficiency from 1 to 64 GPUs.
"""

# No `from __future__ import annotations` here: DistributedDataParallel reads the hook's annotations as objects.
import argparse
import json
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from common import save_results
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.utils.flop_counter import FlopCounterMode

from steelgen.config.base import load_config
from steelgen.config.train import TrainConfig
from steelgen.generators.families import build_trainable
from steelgen.training.setup import build_crops, prepare_training

GPU_COUNTS = (1, 2, 4, 8, 16, 32, 64)
GPUS_PER_NODE = 8
SUSTAINED_FLOPS = 40e12
"""Assumed for a GPU in bf16 with channels_last: an eighth of the peak of an A100."""
INTERCONNECTS = {"InfiniBand HDR": (200e9, 20e9, 5e-6), "100 Gb/s Ethernet": (200e9, 8e9, 30e-6)}
"""Assumed bytes/s of all-reduce within a node and between nodes, and latency per hop in seconds."""
OVERLAP = 0.5
"""Assumed share of the step time that can overlap with communication: the backward pass without its first bucket."""


def measure(config: TrainConfig, batch_size: int, repeats: int) -> dict[str, Any]:
    """Measures bytes, seconds and operations of a training step of this process."""
    generator, micrographs = prepare_training(config)
    trainable = build_trainable(generator, config)
    crops = build_crops(config, trainable, micrographs)
    items = [crops[number] for number in range(batch_size)]
    batch = {key: torch.stack([torch.as_tensor(item[key]) for item in items]) for key in items[0]}
    network = trainable.networks["unet"].to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    counter = FlopCounterMode(display=False)
    with counter:
        trainable.compute_loss(trainable.phases[0], {"unet": network}, batch).losses.mean().backward()
    sent = [0]

    def count_bytes(state: Any, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        sent[0] += bucket.buffer().numel() * bucket.buffer().element_size()
        return allreduce_hook(state, bucket)

    wrapped = nn.parallel.DistributedDataParallel(network)
    wrapped.register_comm_hook(dist.group.WORLD, count_bytes)

    def step() -> float:
        start = time.perf_counter()
        trainable.compute_loss(trainable.phases[0], {"unet": wrapped}, batch).losses.mean().backward()
        return time.perf_counter() - start

    def step_alone() -> float:
        with wrapped.no_sync():
            return step()

    step()
    seconds: dict[str, list[float]] = {"with_all_reduce": [], "without": []}
    for _ in range(repeats):
        dist.barrier()
        seconds["with_all_reduce"].append(step())
        dist.barrier()
        seconds["without"].append(step_alone())
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "image_size": config.data.image_size,
        "batch_size": batch_size,
        "processes": dist.get_world_size(),
        "all_reduced_bytes_a_step": sent[0] // (1 + repeats),
        "seconds_a_step": {name: float(np.median(values)) for name, values in seconds.items()},
        "flop_a_crop": counter.get_total_flops() / batch_size,
    }


def predict_efficiency(
    step: float, volume: float, gpus: int, interconnect: tuple[float, float, float], hidden: float, jitter: float
) -> float:
    """Share of the ideal speedup: step / (step + wait for the slowest GPU + all-reduce time that does not overlap).

    Args:
        step: seconds per step of a GPU without communication.
        volume: bytes of the gradients.
        gpus: number of GPUs, at least 1.
        interconnect: bytes/s within a node and between nodes, latency per hop in seconds.
        hidden: share of the step that overlaps with communication.
        jitter: relative standard deviation of step times; the slowest of n is late by √(2 ln n) of them.
    """
    within, between, latency = interconnect
    bandwidth = within if gpus <= GPUS_PER_NODE else between
    reduce = 2 * (gpus - 1) / gpus * volume / bandwidth + 2 * (gpus - 1) * latency
    late = jitter * step * math.sqrt(2 * math.log(gpus))
    return step / (step + late + max(0.0, reduce - hidden * step))


def predict_scaling(flop_a_crop: float, volume: float, crops_a_gpu: int) -> dict[str, Any]:
    """Efficiencies by interconnect and number of GPUs: [no overlap and 3 % jitter, half overlap and no jitter].

    Weak scaling keeps crops_a_gpu on each GPU; strong scaling distributes the crops of 8 GPUs over all.
    """
    step = flop_a_crop * crops_a_gpu / SUSTAINED_FLOPS
    table: dict[str, Any] = {}
    for name, interconnect in INTERCONNECTS.items():
        for kind, steps in (
            ("weak", {count: step for count in GPU_COUNTS}),
            ("strong", {count: step * 8 / count for count in GPU_COUNTS}),
        ):
            table[f"{name}, {kind}"] = {
                str(count): [
                    round(predict_efficiency(seconds, volume, count, interconnect, hidden, jitter), 3)
                    for hidden, jitter in ((0.0, 0.03), (OVERLAP, 0.0))
                ]
                for count, seconds in steps.items()
            }
    return table


def main() -> None:
    """Measures under torchrun; the first process predicts, and prints or saves."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/train.json"))
    parser.add_argument("--batch-size", type=int, default=2, help="crops per process in the measured step")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    arguments = parser.parse_args()
    dist.init_process_group("gloo")
    config = load_config(arguments.config, TrainConfig)
    measured = measure(config, arguments.batch_size, arguments.repeats)
    if dist.get_rank() == 0:
        volume = measured["all_reduced_bytes_a_step"]
        predicted = predict_scaling(measured["flop_a_crop"], volume, config.train.train_batch_size)
        if arguments.out:
            save_results(arguments.out, {"measured": measured, "predicted_efficiency": predicted})
        else:
            print(json.dumps({"measured": measured, "predicted_efficiency": predicted}, indent=2))
    dist.destroy_process_group()


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
