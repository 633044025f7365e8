"""Rotation invariance and information content of the latents of `rvae`.

    python benchmarks/rvae.py [--uhcs data/uhcs] [--ma data/ma_islands]

Measured on ellipses of known angle, aspect ratio, and size, on rotated letters, and on islands of two real datasets.
Compared with a plain variational autoencoder of about the same size and, for the real datasets, with principal
components and hand-crafted shape measures.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import LinePrinter, save_results
from matplotlib.font_manager import findfont
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from skimage.measure import regionprops

from steelgen.config.base import parse_config
from steelgen.config.mask_sources import ProceduralMasks
from steelgen.config.train import TrainConfig
from steelgen.data.cache import Micrographs
from steelgen.data.crops import load_micrographs
from steelgen.data.folder import list_splits, load_metadata
from steelgen.data.importers.options import ReadOptions
from steelgen.data.importing import WriteOptions, import_dataset
from steelgen.data.patches import Patch, select_island
from steelgen.data.placement import CropGeometry, Placement
from steelgen.evaluation.clusters import compute_adjusted_rand, find_clusters
from steelgen.evaluation.fidelity import compute_mmd
from steelgen.evaluation.islands import IslandSet, describe_islands
from steelgen.generators.describing import Describer, load_describer
from steelgen.models.rvae import RotationVae, list_coordinates
from steelgen.sampling.procedural import ProceduralSource
from steelgen.training.loop import train

LETTERS = "ABCEFGJKLPQRTY245"
"""No letter is a rotation of another."""
EDGE = 24
PARTS = ("ellipses", "letters", "uhcs", "ma")
KINDS = {"rvae": True, "plain VAE": False}
TURNS = np.linspace(0, 2 * np.pi, 12, endpoint=False) + 0.1
"""Radians; no quarter turns."""
Array = NDArray[Any]


def fit(patches: Array, invariant: bool, steps: int, starts: int = 2) -> tuple[RotationVae, float]:
    """Trains a network of two latents on gray patches (N, S, S); also returns the CPU seconds."""
    torch.manual_seed(0)
    network = RotationVae(EDGE, 1, 0, 2, 12, 64, 3, starts, invariant, None, 0.1, 0.0)
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3, betas=(0.9, 0.99))
    warm = max(1, steps // 20)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min(1.0, (step + 1) / warm) * (0.5 + 0.5 * np.cos(np.pi * step / steps))
    )
    generator = torch.Generator().manual_seed(0)
    batches, start = to_batch(patches), time.process_time()
    for step in range(steps):
        chosen = torch.randint(len(batches), (32,), generator=generator)
        elbo = network(batches[chosen], torch.randn(32, 6, generator=generator))
        weight = min(1.0, 2 * step / steps)
        divergence = elbo.kl_latents + elbo.kl_turn + elbo.kl_nuisances
        (weight * divergence - elbo.log_likelihood).mean().backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 10.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
    return network.eval(), time.process_time() - start


@torch.no_grad()
def encode(network: RotationVae, patches: Array) -> tuple[Array, Array]:
    """Returns latents (N, 2) and angles (N,)."""
    batch = to_batch(patches)
    posterior = network.encode(batch)
    chosen = network.choose_starts(posterior, batch)
    return posterior.latents.numpy(), posterior.turns.gather(1, chosen[:, None])[:, 0].numpy()


def to_batch(patches: Array) -> torch.Tensor:
    """Standardizes patches to (N, 1, S, S) by constants, so that a patch is the same in every set."""
    return torch.from_numpy(((patches[:, None] - 0.2) / 0.4).astype(np.float32))


def draw_ellipses(count: int, seed: int) -> tuple[Array, Array, Array, Array]:
    """Returns noisy patches (N, S, S) with angles (radians mod π), aspect ratios, and area shares."""
    rng = np.random.default_rng(seed)
    angles, aspects, shares = rng.uniform(0, np.pi, count), rng.uniform(1.3, 3, count), rng.uniform(0.09, 0.27, count)
    length = np.sqrt(4 * shares * aspects / np.pi)[:, None]
    x, y = list_coordinates(EDGE).numpy().T
    cosine, sine = np.cos(angles)[:, None], np.sin(angles)[:, None]
    along, across = (x * cosine - y * sine) / length, (x * sine + y * cosine) / length * aspects[:, None]
    shown = 1 / (1 + np.exp(8 * (np.hypot(along, across) - 1)))
    noised = shown + rng.normal(0, 0.1, shown.shape)
    return noised.reshape(count, EDGE, EDGE), angles, aspects, shares


def draw_letter(letter: str, angle: float) -> Array:
    """Renders a letter, (S, S) in [0, 1], rotated by radians about its center."""
    scale = 8
    font = ImageFont.truetype(findfont("DejaVu Sans:bold"), 14 * scale)
    canvas = Image.new("L", (EDGE * scale, EDGE * scale))
    ImageDraw.Draw(canvas).text((EDGE * scale / 2, EDGE * scale / 2), letter, fill=255, font=font, anchor="mm")
    turned = canvas.rotate(np.degrees(angle), Image.Resampling.BICUBIC)
    return np.asarray(turned.resize((EDGE, EDGE), Image.Resampling.BOX)) / 255


def compute_circular_correlation(first: Array, second: Array) -> float:
    """Computes the circular correlation (Fisher & Lee 1983, Biometrika 70, 327), 1 for a constant offset."""
    a, b = first, second
    numerator = (np.cos(a) * np.cos(b)).sum() * (np.sin(a) * np.sin(b)).sum()
    numerator -= (np.cos(a) * np.sin(b)).sum() * (np.sin(a) * np.cos(b)).sum()
    spreads = [len(x) ** 2 - np.cos(2 * x).sum() ** 2 - np.sin(2 * x).sum() ** 2 for x in (a, b)]
    return float(4 * numerator / np.sqrt(spreads[0] * spreads[1]))


def compute_r2(latents: Array, wanted: Array) -> float:
    """Computes the held-out R² of a cubic polynomial of two latents."""
    z = (latents - latents.mean(axis=0)) / latents.std(axis=0)
    terms = np.stack([z[:, 0] ** i * z[:, 1] ** j for i in range(4) for j in range(4 - i)], axis=1)
    half = len(z) // 2
    weights = np.linalg.lstsq(terms[:half], wanted[:half], rcond=None)[0]
    rest = wanted[half:] - terms[half:] @ weights
    return float(1 - (rest**2).mean() / wanted[half:].var())


def compute_movement(turned: Array) -> float:
    """Computes the spread of latents (turns, N, D) over turns relative to that over objects; the worse latent."""
    within = np.sqrt(turned.var(axis=0).mean(axis=0))
    return float((within / turned.mean(axis=0).std(axis=0)).max())


def measure_ellipses(steps: int) -> dict[str, Any]:
    """Measures angle correlation and R² of aspect ratio and area for both networks."""
    patches, _, _, _ = draw_ellipses(2000, seed=0)
    held_out, angles, aspects, shares = draw_ellipses(1000, seed=1)
    found: dict[str, Any] = {}
    for name, invariant in KINDS.items():
        network, seconds = fit(patches, invariant, steps)
        latents, turns = encode(network, held_out)
        found[name] = {
            "angle_correlation": compute_circular_correlation(2 * turns, 2 * angles) if invariant else None,
            "aspect_r2": compute_r2(latents, aspects),
            "area_r2": compute_r2(latents, shares),
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "seconds": seconds,
        }
        print("ellipses", name, found[name], flush=True)
    return found


def measure_letters(steps: int) -> dict[str, Any]:
    """Measures the spread of latents over angles relative to that over letters, for both networks."""
    rng = np.random.default_rng(0)
    patches = np.stack([draw_letter(letter, rng.uniform(0, 2 * np.pi)) for letter in LETTERS for _ in range(120)])
    turned = np.stack([[draw_letter(letter, angle) for letter in LETTERS] for angle in TURNS])
    found = {}
    for name, invariant in KINDS.items():
        network, seconds = fit(patches + rng.normal(0, 0.05, patches.shape), invariant, steps)
        latents = np.stack([encode(network, at_angle)[0] for at_angle in turned])
        found[name] = {"within_over_between": compute_movement(latents), "seconds": seconds}
        print("letters", name, found[name], flush=True)
    return {"letters": LETTERS, **found}


def train_describer(dataset: Path, folder: Path, crop_size: int, invariant: bool, steps: int) -> Describer:
    """Trains through `steelgen.training.loop.train`."""
    values = {
        "run_dir": str(folder),
        "data": {"dataset": str(dataset), "image_size": EDGE, "crop_size": crop_size, "any_angle": True},
        "generator": {"kind": "rvae", "invariant": invariant, "kl_crops": 16 * steps},
        "train": {
            "max_steps": steps,
            "train_batch_size": 32,
            "learning_rate": 3e-3,
            "warmup_steps": steps // 20,
            "lr_scheduler": "cosine",
            "ema_decay": 0.99,
            "trackers": [],
        },
        "preview": {"num_images": 0},
        "validation": {"every": steps, "crops": 64},
        "measurement": {"every": None},
    }
    train(parse_config(values, TrainConfig), LinePrinter())
    return load_describer(folder)


def measure_real(
    dataset: Path, crop_size: int, steps: int, label: Callable[[IslandSet, Path], Array]
) -> dict[str, Any]:
    """Measures invariance, agreement of clusters with labels, and the MMD² of procedural layouts."""
    with tempfile.TemporaryDirectory() as folder:
        describers = {
            name: train_describer(dataset, Path(folder) / str(invariant), crop_size, invariant, steps)
            for name, invariant in KINDS.items()
        }
    splits = {split: load_micrographs(dataset, split) for split in list_splits(dataset)}
    whole = join(list(splits.values()))
    described = {name: describe_islands(whole, describer) for name, describer in describers.items()}
    ours = described["rvae"]
    labels = label(ours, dataset)
    rows = choose_evenly(labels)
    patches = np.stack([cut(ours.patches[row], ours, 0.0) for row in rows])
    vectors = {name: islands.description.latents[rows] for name, islands in described.items()}
    vectors["PCA"] = project(patches.reshape(len(rows), -1))
    vectors["shape measures"] = np.stack([measure_shape(ours.patches[row], ours) for row in rows])
    agreement = {
        name: {
            "adjusted_rand": compute_adjusted_rand(find_clusters(points, len(set(labels[rows]))).labels, labels[rows]),
            "neighbors": compute_neighbor_accuracy(points, labels[rows]),
        }
        for name, points in vectors.items()
    }
    turned_every = max(1, len(ours) // 400)
    turned = np.stack([[cut(patch, ours, angle) for patch in ours.patches[::turned_every]] for angle in TURNS]).astype(
        np.float32
    )
    movement = {
        name: compute_movement(np.stack([describer.describe(None, at_angle).latents for at_angle in turned]))
        for name, describer in describers.items()
    }
    found = {
        "islands": len(ours),
        "labeled": {str(value): int((labels[rows] == value).sum()) for value in sorted(set(labels[rows]))},
        "movement": movement,
        "agreement": agreement,
        **measure_floor(dataset, splits, describers["rvae"]),
    }
    print(dataset.name, found, flush=True)
    return found


def measure_ma(source: Path, steps: int) -> dict[str, Any]:
    """Runs `measure_real` on the published MA islands."""
    with tempfile.TemporaryDirectory() as folder:
        imported = Path(folder) / "ma"
        import_dataset("ma-islands", source, imported, ReadOptions(), WriteOptions())
        return measure_real(imported, 160, steps, take_temperatures)


def measure_floor(dataset: Path, splits: dict[str, Micrographs], describer: Describer) -> dict[str, Any]:
    """Computes MMD² of held-out islands to training islands and to islands of procedural layouts."""
    held_out = join([micrographs for split, micrographs in splits.items() if split != "train"])
    source = ProceduralSource(ProceduralMasks(dataset=dataset), held_out.info, CropGeometry(256, 256), 0)
    masks = [source.draw(index).mask for index in range(16)]
    blank = [np.zeros(mask.shape, np.uint8) for mask in masks]
    drawn = Micrographs(held_out.info, [str(index) for index in range(len(masks))], blank, masks)
    points = {}
    for name, micrographs in (("held out", held_out), ("train", splits["train"]), ("procedural", drawn)):
        latents = describe_islands(micrographs, describer).description.latents.astype(np.float64)
        points[name] = latents[np.random.default_rng(0).permutation(len(latents))[:1500]]

    def compare(name: str) -> float:
        pair = points[name], points["held out"]
        return float(compute_mmd(*pair, *(np.ones((1, len(latents))) for latents in pair))[0])

    counts = {name: len(latents) for name, latents in points.items()}
    return {"mmd_floor": compare("train"), "mmd_procedural": compare("procedural"), "mmd_islands": counts}


def join(sets: list[Micrographs]) -> Micrographs:
    """Joins splits."""
    parts = ([item for each in sets for item in getattr(each, name)] for name in ("stems", "images", "masks"))
    return Micrographs(sets[0].info, *parts)


def cut(patch: Patch, islands: IslandSet, angle: float) -> Array:
    """Cuts a rotated patch of the micrograph's mask, (S, S) in [0, 1]."""
    edge = islands.geometry.crop_size
    place = Placement(patch.center[0] - edge // 2, patch.center[1] - edge // 2, edge, EDGE, 0, angle)
    shown = select_island(patch, islands.micrographs, islands.centers.kind, neighbors=False)
    return place.cut_share(shown, mirrored=False)


def measure_shape(patch: Patch, islands: IslandSet) -> Array:
    """Measures log area, aspect ratio, solidity, extent, and circularity, (5,)."""
    own = select_island(patch, islands.micrographs, islands.centers.kind, neighbors=False)[patch.box]
    region = regionprops(own)[0]
    circularity = 4 * np.pi * region.area / max(region.perimeter, 1) ** 2
    return np.array([np.log(patch.area), patch.aspect_ratio, region.solidity, region.extent, circularity])


def project(points: Array) -> Array:
    """Projects points to two principal components, (N, 2)."""
    centered = points - points.mean(axis=0)
    return centered @ np.linalg.svd(centered, full_matrices=False)[2][:2].T


def choose_evenly(labels: Array) -> Array:
    """Samples equally many rows of each label, without labels below a tenth of an even share."""
    names, counts = np.unique(labels, return_counts=True)
    frequent = names[counts >= 0.1 * len(labels) / len(names)]
    count = counts[counts >= 0.1 * len(labels) / len(names)].min()
    rng = np.random.default_rng(0)
    return np.concatenate([rng.choice(np.flatnonzero(labels == name), count, replace=False) for name in frequent])


def compute_neighbor_accuracy(points: Array, labels: Array) -> float:
    """Computes the accuracy of the majority label of the 7 nearest neighbors, on standardized dimensions."""
    scaled = points / points.std(axis=0)
    distances = np.linalg.norm(scaled[:, None] - scaled[None], axis=2)
    np.fill_diagonal(distances, np.inf)
    nearest = labels[np.argsort(distances, axis=1)[:, :7]]
    names = np.unique(labels)
    votes = np.stack([(nearest == name).sum(axis=1) for name in names], axis=1)
    return float((names[votes.argmax(axis=1)] == labels).mean())


def take_classes(islands: IslandSet, dataset: Path) -> Array:
    """Returns the class of each island, (N,)."""
    return np.array([islands.micrographs.info.class_names[patch.label] for patch in islands.patches])


def take_temperatures(islands: IslandSet, dataset: Path) -> Array:
    """Returns the temperature in °C of each island's micrograph from metadata.jsonl, (N,)."""
    by_stem = {Path(name).stem: row["temperature"] for name, row in load_metadata(dataset).items()}
    return np.array([by_stem[islands.micrographs.stems[patch.micrograph]] for patch in islands.patches])


def main() -> None:
    """Runs all measurements and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--uhcs", type=Path, default=Path("data/uhcs"), help="dataset folder")
    parser.add_argument("--ma", type=Path, default=Path("data/ma_islands"), help="folder of the published MA islands")
    parser.add_argument("--steps", type=int, default=400, help="steps per training; two trainings per part")
    parser.add_argument(
        "--only", nargs="+", choices=PARTS, default=PARTS, help="parts to measure; others keep their stored results"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "rvae.json")
    arguments = parser.parse_args()
    steps = arguments.steps
    measures: dict[str, Callable[[], dict[str, Any]]] = {
        "ellipses": lambda: measure_ellipses(steps),
        "letters": lambda: measure_letters(steps),
        "uhcs": lambda: measure_real(arguments.uhcs, 48, steps, take_classes),
        "ma": lambda: measure_ma(arguments.ma, steps),
    }
    stored = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.is_file() else {}
    parts = {name: stored[name] for name in PARTS if name in stored}
    for name in arguments.only:
        parts[name] = {"steps": steps, **measures[name]()}
        save_results(arguments.out, {name: parts[name] for name in PARTS if name in parts}, show=False)
    print(json.dumps(parts, indent=2))


if __name__ == "__main__":
    main()
