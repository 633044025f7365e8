"""Time, memory and answers of the copy search among as many micrographs as the MA-island set has.

    python benchmarks/copies.py [--micrographs 1705] [--images 1000]

The micrographs are simulated, 1024×768 px each. A tenth of the 256 px images are copies of places in them, flipped,
turned, with noise and shifted gray levels; the rest are cut from other micrographs. The search that picks candidates is
timed on all images, then compared image by image with the search of every micrograph.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import save_results, summarize
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from steelgen.data.crops import Micrographs
from steelgen.data.folder import DatasetInfo
from steelgen.data.placement import CropGeometry, apply_symmetry
from steelgen.evaluation.copy_search import CopySearch
from steelgen.evaluation.memorization import COPY_RATIO

SHAPE = (768, 1024)
SIZE = 256
EXTRA = 64
"""Simulated micrographs that are not searched, for the images that are no copies."""


def simulate_micrographs(count: int, seed: int) -> NDArray[np.uint8]:
    """(count, 768, 1024): two random textures and brighter islands, each a window of one of four larger sheets."""
    rng = np.random.default_rng(seed)
    sheets = []
    for sigma, spread in ((1.5, 14), (4.0, 18), (14.0, 0)):
        fields = [gaussian_filter(rng.normal(size=(2048, 2560)).astype(np.float32), sigma) for _ in range(4)]
        levels = [field / field.std() for field in fields]
        sheets.append(
            [(45.0 * (x > 0.7) if not spread else 60 + spread * x).clip(0, 120).astype(np.uint8) for x in levels]
        )

    def cut(layer: int) -> NDArray[np.uint8]:
        sheet = sheets[layer][rng.integers(4)]
        top, left = (int(rng.integers(whole - part)) for whole, part in zip(sheet.shape, SHAPE, strict=True))
        window = sheet[top : top + SHAPE[0], left : left + SHAPE[1]]
        return window[:: rng.choice((1, -1)), :: rng.choice((1, -1))]

    # In place, so that the peak memory is that of the search.
    micrographs = np.empty((count, *SHAPE), np.uint8)
    for micrograph in micrographs:
        np.add(cut(0), cut(1), out=micrograph)
        np.add(micrograph, np.minimum(cut(2), 255 - micrograph), out=micrograph)
    return micrographs


def cut_images(
    searched: Sequence[NDArray[np.uint8]], others: Sequence[NDArray[np.uint8]], count: int
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """(N, 256, 256) windows, and which of them are copies: every tenth."""
    rng = np.random.default_rng(1)
    planted = np.arange(count) % 10 == 0
    images = []
    for copy in planted:
        pool = searched if copy else others
        source = pool[rng.integers(len(pool))]
        top, left = (int(rng.integers(edge - SIZE + 1)) for edge in SHAPE)
        window = apply_symmetry(source[top : top + SIZE, left : left + SIZE], int(rng.integers(8))).astype(float)
        changed = window + rng.normal(0, 6, window.shape) + rng.uniform(-20, 20)
        images.append((changed if copy else window).clip(0, 255).astype(np.uint8))
    return np.stack(images), planted


def compare(fast: CopySearch, exhaustive: CopySearch, images: NDArray[np.uint8]) -> dict[str, Any]:
    """Alternates both searches image by image; the exhaustive one is the truth of recall and precision."""
    seconds: dict[str, list[float]] = {"candidates": [], "exhaustive": []}
    flagged: dict[str, list[bool]] = {"candidates": [], "exhaustive": []}
    places: dict[str, list[tuple[int, ...]]] = {"candidates": [], "exhaustive": []}
    distances: dict[str, list[float]] = {"candidates": [], "exhaustive": []}
    for image in images:
        for name, search in (("candidates", fast), ("exhaustive", exhaustive)):
            start = time.process_time()
            match = search.find(image[None])[0]
            seconds[name].append(time.process_time() - start)
            flagged[name].append(match.ratio < COPY_RATIO)
            places[name].append((match.micrograph, match.top, match.left, match.symmetry))
            distances[name].append(match.distance)
    found, truth = (np.array(flagged[name]) for name in ("candidates", "exhaustive"))
    same = np.array([a == b for a, b in zip(*places.values(), strict=True)])
    farther = np.array(distances["candidates"]) / np.array(distances["exhaustive"])
    return {
        "images": len(images),
        "copies": int(truth.sum()),
        "recall": float((found & truth).sum() / truth.sum()),
        "precision": float((found & truth).sum() / max(int(found.sum()), 1)),
        "same_place": float(same[truth].mean()),
        "farther": float(farther[~truth].mean()),
        "cpu_seconds": {name: summarize(values) for name, values in seconds.items()},
    }


def time_filter(micrographs: Micrographs, images: NDArray[np.uint8], scale_range: tuple[float, float]) -> float:
    """CPU seconds per image of the filter's search."""
    search = CopySearch(micrographs, CropGeometry(SIZE, SIZE), scale_range=scale_range, blur=1.0)
    search.correlate(images[0])
    start = time.process_time()
    for image in images[1:]:
        search.correlate(image)
    return (time.process_time() - start) / (len(images) - 1)


def main() -> None:
    """Measures and saves the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--micrographs", type=int, default=1705)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--compared", type=int, default=40, help="images searched for both ways")
    parser.add_argument(
        "--filtered", type=int, default=8, help="images searched for as by the filter, at least 2; 0: none"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "copies.json")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    simulated = simulate_micrographs(arguments.micrographs + EXTRA, seed=0)
    searched, others = list(simulated[EXTRA:]), list(simulated[:EXTRA])
    info = DatasetInfo(name="simulated", class_names=["matrix", "island"], ignore_index=255, pixel_size_um=None)
    masks = [np.zeros(SHAPE, np.uint8)] * len(searched)
    micrographs = Micrographs(info, [f"m{index}" for index in range(len(searched))], searched, masks)
    images, planted = cut_images(searched, others, arguments.images)
    start, cpu = time.perf_counter(), time.process_time()
    fast = CopySearch(micrographs, CropGeometry(SIZE, SIZE))
    prepared = time.process_time() - cpu
    matches = fast.find(images)
    result: dict[str, Any] = {
        "micrographs": len(searched),
        "images": len(images),
        "threads": arguments.threads,
        "prepare_cpu_seconds": prepared,
        "cpu_seconds": time.process_time() - cpu,
        "cpu_seconds_of_1000": prepared + (time.process_time() - cpu - prepared) * 1000 / len(images),
        "seconds": time.perf_counter() - start,
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "planted_found": float(np.mean([match.ratio < COPY_RATIO for match in np.array(matches)[planted]])),
        "others_flagged": float(np.mean([match.ratio < COPY_RATIO for match in np.array(matches)[~planted]])),
    }
    print(result, flush=True)
    # Half of the images compared are copies.
    few = arguments.compared // 2
    chosen = np.sort(np.concatenate([np.flatnonzero(planted)[:few], np.flatnonzero(~planted)[:few]]))
    result["filter_cpu_seconds"] = {
        f"{low:g} to {high:g}": time_filter(micrographs, images[chosen[: arguments.filtered]], (low, high))
        for low, high in ((1.0, 1.0), (0.8, 1.25))
        if arguments.filtered
    }
    result["peak_memory_with_filter_gib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    exhaustive = CopySearch(micrographs, CropGeometry(SIZE, SIZE), candidates=None)
    save_results(arguments.out, {**result, "compared": compare(fast, exhaustive, images[chosen])})


if __name__ == "__main__":
    main()
