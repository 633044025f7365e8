"""What the autoencoder of a latent diffusion model keeps of its training data, measured before training."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from steelgen.data.crops import Micrographs, cut_crops, image_to_tensor, tensor_to_image
from steelgen.data.images import save_image
from steelgen.data.palette import color_mask
from steelgen.data.sheets import build_sheet
from steelgen.evaluation.reconstruction import (
    THIN_WIDTH,
    ClassRecall,
    compute_codec_recall,
    compute_kept_detail,
    compute_psnr,
)
from steelgen.files import save_json
from steelgen.generators import Generator, LatentDiffusion

CODEC_FILE = "codec.json"
"""In the run folder of a latent diffusion model: what its autoencoder keeps; codec.png beside it shows some crops."""
MIN_RECALL = 0.95
"""Recall of each class, and of its thin parts, below which a warning is given."""
_MIN_PIXELS = 100
"""Fewer pixels, such as slivers at the edges of crops, give no warning."""
_CROPS = 32
_SHOWN_CROPS = 8
_MIN_TILE = 128


def check_codec(
    run_dir: Path, generator: Generator, micrographs: Micrographs, device: torch.device, report: Callable[[str], None]
) -> None:
    """Reconstructs crops with the autoencoder of a latent diffusion model; writes codec.json and codec.png.

    Generated masks have at most the pixels of a class that reconstructed ones have: no training of the diffusion model
    brings them back.

    Args:
        micrographs: held-out ones, if there are any.
        report: called with the lines of a table, and with one per class that is lost.
    """
    if not isinstance(generator, LatentDiffusion) or generator.codec is None:
        return
    images, masks = cut_crops(micrographs.inputs, generator.geometry, _CROPS)
    with_masks = "masks" in generator.makes
    with_images = "images" in generator.makes
    drawn = generator.codec.to(device).reconstruct(
        torch.stack([image_to_tensor(image) for image in images]),
        torch.from_numpy(masks.astype(np.int64)) if with_masks else None,
    )
    found: dict[str, object] = {"crops": _CROPS}
    shown: list[list[NDArray[np.uint8]]] = []
    report(f"autoencoder, {_CROPS} crops reconstructed:")
    if with_images and drawn.images is not None:
        restored = np.stack([tensor_to_image(image) for image in drawn.images])
        psnr, detail = compute_psnr(images, restored), compute_kept_detail(images, restored)
        found |= {"psnr_db": _finite(psnr), "kept_detail": _finite(detail)}
        report(f"  images: PSNR {psnr:.1f} dB; {detail:.0%} of the power above 0.25 cycles per px")
        shown += [list(images[:_SHOWN_CROPS]), list(restored[:_SHOWN_CROPS])]
    if drawn.masks is not None:
        predicted = drawn.masks.cpu().numpy().astype(np.uint8)
        recalls = compute_codec_recall(masks, predicted, generator.info.class_names)
        found["recall"] = {each.name: _describe(each) for each in recalls}
        for line in format_recalls(recalls):
            report(line)
        palette = generator.info.palette
        shown += [[color_mask(mask, palette) for mask in each[:_SHOWN_CROPS]] for each in (masks, predicted)]
    save_image(run_dir / "codec.png", build_sheet(shown, tile=max(_MIN_TILE, generator.geometry.image_size)))
    save_json(run_dir / CODEC_FILE, found)


def format_recalls(recalls: list[ClassRecall]) -> list[str]:
    """Formats a table of recalls, one line per class, and a warning per class that is lost."""
    width = max(len(each.name) for each in recalls)
    lines = [f"  recall of masks, {MIN_RECALL} wanted; thin: parts at most {THIN_WIDTH} px wide"]
    for each in recalls:
        whole, thin = _format(each.recall, each.pixels), _format(each.thin_recall, each.thin_pixels)
        lines.append(f"  {each.name:<{width}}  {whole}  thin {thin}")
    for each in recalls:
        parts = (("", each.recall, each.pixels), ("thin parts of ", each.thin_recall, each.thin_pixels))
        for part, recall, pixels in parts:
            if recall < MIN_RECALL and pixels >= _MIN_PIXELS:
                lines.append(
                    f"warning: the autoencoder keeps {recall:.3f} of the pixels of {part}{each.name}, less than "
                    f"{MIN_RECALL}; train one with a smaller generator.downsample_factor, more mask_latent_channels, "
                    "or for longer"
                )
    return lines


def _describe(each: ClassRecall) -> dict[str, float | None]:
    return {
        "pixels": each.pixels,
        "recall": _finite(each.recall),
        "thin_pixels": each.thin_pixels,
        "thin_recall": _finite(each.thin_recall),
    }


def _finite(value: float) -> float | None:
    return round(value, 4) if math.isfinite(value) else None


def _format(recall: float, pixels: int) -> str:
    return f"{'–' if math.isnan(recall) else f'{recall:.3f}':>5} of {pixels:>7,} px"
