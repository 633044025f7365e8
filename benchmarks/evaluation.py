"""Time and memory of `steelgen evaluate` without a utility study.

    python benchmarks/evaluation.py [--count 1000] [--image-size 256]
    python benchmarks/evaluation.py --simulated 1705 --out benchmarks/results/evaluation-large.json

The generated images are validation crops with noise, so no generator has to be trained; the cache is empty.
`--simulated` evaluates against a simulated dataset of as many micrographs of 1024×768 px (the MA-island set has 1,705),
many of which look alike, so that its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import numpy as np
from common import save_results
from PIL import Image

from data import run_measured, simulate_set
from steelgen.config.base import parse_config
from steelgen.config.evaluate import EvaluateConfig
from steelgen.data.crops import cut_crops, load_micrographs
from steelgen.data.folder import save_mask
from steelgen.data.placement import CropGeometry
from steelgen.evaluation.evaluate import evaluate

POLYGONS_EACH = 5
"""Islands per simulated micrograph, as in the MA-island set."""


def write_generated(dataset: Path, folder: Path, geometry: CropGeometry, count: int) -> None:
    """Writes validation crops with noise, and their masks, as a samples folder."""
    micrographs = load_micrographs(dataset, "val")
    images, masks = cut_crops(micrographs, geometry, count, seed=1)
    rng = np.random.default_rng(0)
    (folder / "samples").mkdir(parents=True)
    for number, (image, mask) in enumerate(zip(images, masks, strict=True)):
        noised = (image + rng.normal(0, 8, image.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noised).save(folder / "samples" / f"{number:06d}.png")
        save_mask(folder / "labels" / f"{number:06d}.png", mask, micrographs.info.palette)
    values = {"image_size": geometry.image_size, "crop_size": geometry.crop_size, "in_channels": 1}
    (folder / "sampling.json").write_text(json.dumps(values))


def main() -> None:
    """Runs `evaluate` once and saves the times of its stages."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", type=Path, default=Path("data/uhcs"))
    parser.add_argument("--simulated", type=int, default=0, help="micrographs of a simulated dataset; 0: none")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--image-size", type=int, default=256)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "evaluation-speed.json")
    arguments = parser.parse_args()
    stages: list[tuple[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        geometry = CropGeometry(arguments.image_size, arguments.image_size)
        dataset = arguments.dataset
        if arguments.simulated:
            dataset = root / "dataset"
            simulate_set(root / "source", arguments.simulated, POLYGONS_EACH * arguments.simulated)
            run_measured("data", "import", "ma-islands", str(root / "source"), str(dataset))
        write_generated(dataset, root / "generated", geometry, arguments.count)
        values = {
            "generated": str(root / "generated"),
            "dataset": str(dataset),
            "output_dir": str(root / "out"),
            "cache_dir": str(root / "cache"),
        }
        config = parse_config(values, EvaluateConfig)
        start, cpu = time.perf_counter(), time.process_time()
        stages.append(("reading", start))

        def note(line: str) -> None:
            stages.append((line, time.perf_counter()))
            print(f"{stages[-1][1] - start:7.1f} s  {line}", flush=True)

        evaluate(config, note)
        end, cpu_end = time.perf_counter(), time.process_time()
    ends = [moment for _, moment in stages[1:]] + [end]
    result = {
        "micrographs": arguments.simulated or None,
        "count": arguments.count,
        "image_size": arguments.image_size,
        "seconds": end - start,
        "cpu_seconds": cpu_end - cpu,
        "stages": {name: stop - begin for (name, begin), stop in zip(stages, ends, strict=True)},
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }
    save_results(arguments.out, result)


if __name__ == "__main__":
    main()
