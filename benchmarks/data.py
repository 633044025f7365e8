"""Import and check of a dataset as large as the MA-island set, and speed of crop loading.

    python benchmarks/data.py import [--images 1705] [--polygons 8909]
    python benchmarks/data.py loader [--repeats 5]

`import` simulates the dataset (1024x768 PNGs cut at random from the bundled ones; many look alike, so the check exits
with code 1), runs `steelgen data import` and `steelgen data check`, and measures wall time and the memory of all
processes together. `loader` measures crops per second from the memory-mapped cache, from micrographs in memory and from
PNGs decoded on the fly, all in one process, and the crops per second that a 64-channel SemanticUNet trains on at 64 px
on the same CPU.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from common import save_results, summarize, time_alternately
from PIL import Image

DATA = Path(__file__).parents[1] / "data"
BATCH_SIZE = 16


def simulate_set(root: Path, num_images: int, num_polygons: int) -> None:
    """Writes a dataset in the layout of the MA-island set."""
    sources = [np.asarray(Image.open(path)) for path in sorted((DATA / "ma_islands" / "PNG").glob("*.png"))]
    # Mirrored at the borders, so that a window of 1024x768 fits at every position.
    sources = [np.pad(source, ((0, 400), (0, 400)), mode="symmetric") for source in sources]
    rng = np.random.default_rng(0)
    (root / "PNG").mkdir(parents=True)
    for number in range(num_images):
        source = sources[number % len(sources)]
        top, left = rng.integers(0, [source.shape[0] - 768, source.shape[1] - 1024])
        Image.fromarray(source[top : top + 768, left : left + 1024]).save(
            root / "PNG" / f"IMG_{number:05}.png", compress_level=1
        )
    rows = ["image_url;point;polygon"]
    for _ in range(num_polygons):
        angles = np.linspace(0, 2 * np.pi, 20, endpoint=False)
        center, radius = rng.uniform((0, 0), (1024, 768)), rng.uniform(5, 40)
        reach = radius * (1 + 0.3 * np.sin(2 * angles + rng.uniform(0, 6)))
        points = (
            np.stack([center[0] + reach * np.cos(angles), center[1] + reach * np.sin(angles)], 1).round().astype(int)
        )
        polygon = [tuple(point) for point in points.tolist()]
        rows.append(f"IMG_{rng.integers(num_images):05}.png;{tuple(center.astype(int).tolist())};{polygon}")
    (root / "annotations_polygon.csv").write_text("\r\n".join(rows))


def run_measured(*arguments: str) -> dict[str, Any]:
    """Runs a steelgen command and measures wall time, peak memory of all its processes, and exit code."""
    start, peak = time.perf_counter(), 0
    with subprocess.Popen(
        [sys.executable, "-m", "steelgen", *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        watched = psutil.Process(process.pid)
        while process.poll() is None:
            try:
                peak = max(peak, sum(p.memory_info().rss for p in [watched, *watched.children(recursive=True)]))
            except psutil.NoSuchProcess:
                continue
            time.sleep(0.1)
    return {"seconds": time.perf_counter() - start, "peak_mb": peak / 1e6, "exit_code": process.returncode}


def benchmark_import(num_images: int, num_polygons: int) -> dict[str, Any]:
    """Measures import and check of a simulated dataset."""
    with tempfile.TemporaryDirectory() as folder:
        root, out = Path(folder, "set"), Path(folder, "out")
        simulate_set(root, num_images, num_polygons)
        imported = run_measured("data", "import", "ma-islands", str(root), str(out))
        checked = run_measured("data", "check", str(out), "-o", str(Path(folder, "check")))
    return {"images": num_images, "polygons": num_polygons, "import": imported, "check": checked}


def benchmark_loader(repeats: int) -> dict[str, Any]:
    """Measures crops per second of three loaders and of training."""
    import torch

    from steelgen.data.cache import open_cached_split
    from steelgen.data.crops import CropDataset, Micrographs, load_micrographs
    from steelgen.data.folder import list_pairs, load_dataset_info, load_pair
    from steelgen.data.importing import import_dataset
    from steelgen.data.placement import CropGeometry
    from steelgen.models.semantic_unet import SemanticUNet

    class Decoding:
        """Acts as a list of arrays, but reads the file on every access."""

        def __init__(self, part: int) -> None:
            self.part = part

        def __getitem__(self, index: int) -> np.ndarray:
            return load_pair(pairs[index], info)[self.part]

        def __iter__(self) -> Any:
            return (self[index] for index in range(len(pairs)))

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "set")
        simulate_set(Path(folder, "source"), 24, 120)
        import_dataset("ma-islands", Path(folder, "source"), root)
        info, pairs = load_dataset_info(root), list_pairs(root, "train")
        stems = [pair.stem for pair in pairs]
        start = time.perf_counter()
        cached = open_cached_split(root, "train", cache_root=Path(folder, "cache"))
        build_seconds = time.perf_counter() - start
        start = time.perf_counter()
        cached = open_cached_split(root, "train", cache_root=Path(folder, "cache"))
        open_seconds = time.perf_counter() - start
        geometry = CropGeometry(image_size=64, crop_size=128)
        sources = {
            "cache": Micrographs(info, stems, cached.images, cached.masks),
            "memory": load_micrographs(root, "train"),
            "decoding": Micrographs(info, stems, Decoding(0), Decoding(1)),  # type: ignore[arg-type]
        }
        loaders = {name: CropDataset(source, geometry, 0, True) for name, source in sources.items()}
        network = SemanticUNet(image_size=64, num_classes=2, base_channels=64)
        optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4)
        timesteps = torch.arange(BATCH_SIZE)
        batch = torch.utils.data.default_collate([loaders["memory"][number] for number in range(BATCH_SIZE)])

        def train() -> None:
            optimizer.zero_grad()
            one_hot = torch.nn.functional.one_hot(batch["mask"], 2).movedim(-1, 1).float()
            (network(batch["image"], timesteps, one_hot) - batch["image"]).square().mean().backward()
            optimizer.step()

        counts = {"cache": 512, "memory": 512, "decoding": BATCH_SIZE, "training": BATCH_SIZE}
        variants = {
            name: lambda name=name: [loaders[name][number] for number in range(counts[name])] for name in loaders
        }
        seconds = time_alternately({**variants, "training": train}, repeats)
    rates = {name: counts[name] / summarize(values)["median"] for name, values in seconds.items()}
    return {
        "crops_per_second": rates,
        "cache_to_training": rates["cache"] / rates["training"],
        "cache_to_decoding": rates["cache"] / rates["decoding"],
        "cache_build_seconds": build_seconds,
        "cache_open_seconds": open_seconds,
    }


def main() -> None:
    """Measures one part and saves its results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("import", "loader"))
    parser.add_argument("--images", type=int, default=1705)
    parser.add_argument("--polygons", type=int, default=8909)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file (default: runs/benchmarks/data-PART.json)")
    arguments = parser.parse_args()
    if arguments.part == "import":
        results = benchmark_import(arguments.images, arguments.polygons)
    else:
        results = benchmark_loader(arguments.repeats)
    save_results(arguments.out or Path("runs/benchmarks") / f"data-{arguments.part}.json", results)


if __name__ == "__main__":
    main()
