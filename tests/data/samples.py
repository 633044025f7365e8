"""Small annotated sources for the tests of the importers, and short forms of functions under test."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import scipy.ndimage
from PIL import Image

from steelgen.data.folder import list_pairs, list_splits, load_dataset_info, load_pair
from steelgen.data.importers.options import ReadOptions
from steelgen.data.importing import WriteOptions, import_dataset
from steelgen.data.rasterize import compute_coverage, select_pixels
from steelgen.data.runlength import count_runs, encode_runs

BUNDLED = Path(__file__).parents[2] / "data"
ALL_TRAIN = WriteOptions(fractions={"train": 1.0})


def save_noise(path: Path, height: int = 40, width: int = 50, seed: int = 0) -> Path:
    """Writes an 8-bit gray image of noise."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(40, 200, (height, width), np.uint8)).save(path)
    return path


def save_indices(path: Path, mask: np.ndarray) -> Path:
    """Writes a single-channel PNG or TIFF of values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(mask).save(path)
    return path


def coco(annotations: list[dict[str, Any]], names: tuple[str, ...] = ("a.png",), **changes: Any) -> dict[str, Any]:
    """A COCO document of 50x40 images, ids from 1, with the categories island (0) and pore (7)."""
    return {
        "images": [{"id": i, "file_name": name, "height": 40, "width": 50} for i, name in enumerate(names, 1)],
        "categories": [{"id": 0, "name": "island"}, {"id": 7, "name": "pore"}],
        "annotations": [
            {"id": i, "image_id": 1, "category_id": 0, "iscrowd": 0, "area": 1, **row}
            for i, row in enumerate(annotations)
        ],
        **changes,
    }


def save_coco(root: Path, document: dict[str, Any], name: str = "labels.json") -> Path:
    """Writes a COCO document and noise for each of its images."""
    for seed, image in enumerate(document["images"]):
        save_noise(root / Path(image["file_name"]).name, seed=seed)
    (root / name).write_text(json.dumps(document))
    return root


def save_ma(
    root: Path, rows: list[str], names: tuple[str, ...] = ("a.png", "b.png", "c.png"), folder: str = "PNG"
) -> Path:
    """Writes a small set in the layout of the MA-island set."""
    for seed, name in enumerate(names):
        save_noise(root / folder / name, seed=seed)
    (root / "set_annotations_polygon.csv").write_text("image_url;point;polygon\n" + "".join(row + "\n" for row in rows))
    return root


def square(left: float, top: float, edge: float) -> list[float]:
    """COCO's flat list of a square's corners."""
    return [left, top, left + edge, top, left + edge, top + edge, left, top + edge]


def random_mask(seed: int, size: tuple[int, int] = (40, 50), smooth: float = 1.0) -> np.ndarray:
    """A mask of classes 0 to 2, of single pixels (smooth 0) to large islands with holes."""
    field = scipy.ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=size), smooth)
    return np.digitize(field, np.quantile(field, [0.4, 0.75])).astype(np.uint8)


def import_masks(kind: str, src: Path, write: WriteOptions | None = ALL_TRAIN, **read: Any) -> dict[str, np.ndarray]:
    """Imports a source as SOURCE-out beside it and returns the masks by stem."""
    out = src.parent / f"{src.stem}-out"
    import_dataset(kind, src, out, ReadOptions(**read), write)
    info = load_dataset_info(out)
    pairs = [pair for split in list_splits(out) for pair in list_pairs(out, split)]
    return {pair.stem: load_pair(pair, info)[1] for pair in pairs}


def imported_names(src: Path) -> list[str]:
    """Returns the class names of a source that `import_masks` has imported."""
    return load_dataset_info(src.parent / f"{src.stem}-out").class_names


def rasterize_polygons(polygons: list[np.ndarray], height: int, width: int) -> np.ndarray:
    """Rasterizes the union of polygons as a boolean mask."""
    mask = np.zeros((height, width), bool)
    coverage = compute_coverage(polygons, height, width)
    mask[coverage.window] = select_pixels(coverage.share)
    return mask


def encode_counts(mask: np.ndarray) -> list[int]:
    """Encodes a boolean mask as COCO's uncompressed counts."""
    return count_runs(encode_runs(mask), mask.size)


def decode_counts(counts: list[int], height: int, width: int) -> np.ndarray:
    """COCO's definition, pixel by pixel: runs of background and foreground in turn, down the columns."""
    pixels = []
    for number, count in enumerate(counts):
        pixels += [number % 2] * count
    assert len(pixels) == height * width
    return np.array(pixels, bool).reshape(width, height).T
