"""Differences of steelgen from ISDM's numbers, and balancing of a synthetic imbalance (docs/isdm.md).

python benchmarks/isdm.py [--out benchmarks/results/isdm.json]
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from common import save_results
from PIL import Image
from torch import Tensor

from steelgen.config.mask_sources import BalancedMasks
from steelgen.data.folder import DatasetInfo, save_dataset_info, save_mask
from steelgen.data.placement import CropGeometry
from steelgen.diffusion import reverse
from steelgen.diffusion.guidance import Guide, GuidedNetwork
from steelgen.diffusion.noise import build_noise_schedule
from steelgen.generators import DrawRequest
from steelgen.generators.semantic_diffusion.isdm.checkpoint import load_isdm_checkpoint, load_isdm_settings
from steelgen.generators.semantic_diffusion.isdm.network import convert_solver
from steelgen.sampling.balance import BalancedSource

REFERENCE = Path(__file__).parents[1] / "tests" / "isdm" / "data"
"""An ISDM checkpoint and ISDM's outputs with it (float32, CPU)."""
GUIDANCE_SCALE = 1.5


@torch.no_grad()
def compare_with_reference() -> dict[str, dict[str, float]]:
    """Largest difference from each of ISDM's outputs, absolute and relative to the largest value of the output."""
    settings = load_isdm_settings(REFERENCE / "isdm_config.json")
    generator = load_isdm_checkpoint(REFERENCE / "ema_0.9999_000120.pt", settings)
    expected = {key: torch.from_numpy(value) for key, value in np.load(REFERENCE / "expected.npz").items()}
    masks = expected["label"][:, 0].long()
    one_hot = torch.nn.functional.one_hot(masks, settings.num_classes).permute(0, 3, 1, 2).float()
    network = GuidedNetwork(generator.network, one_hot, Guide(GUIDANCE_SCALE))
    prediction, variance_output = network.predict(expected["x"], expected["scaled_t"], True).chunk(2, dim=1)
    schedule = build_noise_schedule(settings.diffusion_steps, "linear", "epsilon", False)
    process = reverse.build_reverse_process(schedule.betas)
    step = reverse.compute_reverse_step(
        process, expected["t"], expected["x"], prediction, variance_output, "epsilon", clip_range=(-1.0, 1.0)
    )
    fewer = settings.model_copy(update={"diffusion_steps": 50, "rescale_timesteps": True})
    solver = convert_solver(fewer, use_ddim=True, guidance_scale=GUIDANCE_SCALE)
    found = {
        "eps_and_var_cond": generator.network(expected["x"], expected["scaled_t"], one_hot),
        "eps_and_var_empty": generator.network(expected["x"], expected["scaled_t"], 0 * one_hot),
        "guided_mean": step.mean,
        "guided_log_variance": step.log_variance,
        "guided_pred_xstart": step.pred_original,
        "ddim50_sample": generator.draw(DrawRequest([0, 1], masks, solver, noise=expected["ddim_noise"])).images,
    }
    expected["ddim50_sample"] = expected["ddim50_sample"].clamp(-1, 1)
    return {name: _compare(value, expected[name]) for name, value in found.items()}


def _compare(value: Tensor, wanted: Tensor) -> dict[str, float]:
    largest = (value - wanted).abs().max()
    return {"absolute": float(largest), "relative": float(largest / wanted.abs().max())}


def balance_an_imbalance(number: int) -> dict[str, dict[str, float]]:
    """Pixel shares of two classes in 20 masks, of which two have the second class, and in `number` balanced masks."""
    with tempfile.TemporaryDirectory() as folder:
        info = DatasetInfo(name="imbalanced", class_names=["matrix", "often", "rare"])
        root = Path(folder)
        (root / "train" / "images").mkdir(parents=True)
        for index in range(20):
            mask = np.zeros((32, 32), np.uint8)
            mask[4:20, 4 : 12 + index % 5] = 1 if index < 18 else 2
            Image.fromarray(mask * 80).save(root / "train" / "images" / f"{index}.png")
            save_mask(root / "train" / "masks" / f"{index}.png", mask, info.palette)
        save_dataset_info(root, info)
        shares = {}
        for name, alone in (("drawn alone", True), ("drawn and real together", False)):
            config = BalancedMasks(dataset=root, based_on_generated_data_only=alone, block_size=number)
            report = BalancedSource(config, info, CropGeometry(32, 32), seed=0).report(number)
            shares["real"] = dict(zip(report.class_names, report.before, strict=True))
            shares[f"balanced, {name}"] = dict(zip(report.class_names, report.after, strict=True))
            shares[f"max/min - 1, {name}"] = {"counted": report.class_difference}
    return shares


def main() -> None:
    """Compares, and prints or saves the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-samples", type=int, default=100, help="number of balanced masks")
    parser.add_argument("--out", type=Path, help="write the results as JSON")
    arguments = parser.parse_args()
    results = {"differences": compare_with_reference(), "class_shares": balance_an_imbalance(arguments.num_samples)}
    if arguments.out:
        save_results(arguments.out, results)
    else:
        print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
