"""Feature extractors: shapes, preprocessing, weights from a file, errors."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from steelgen.errors import InputError
from steelgen.evaluation import features as module
from steelgen.evaluation.features import (
    FeatureExtractor,
    build_extractor,
    compute_cached_features,
    compute_features,
    fetch_inception_weights,
)
from steelgen.models.inception import InceptionFeatures, resize_bilinear_tf1

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 40, 40), dtype=np.uint8)


def mean_features(images: torch.Tensor) -> torch.Tensor:
    return images.mean(dim=(2, 3))


def test_efficientnet_features_are_of_the_published_weights() -> None:
    extractor = build_extractor("efficientnet-lite0")
    features = compute_features(IMAGES, extractor, batch_size=2)
    assert features.shape == (3, 1280)
    assert extractor.frechet_name == "FD-EfficientNetLite0"
    # Features do not depend on the batch size, and gray equals RGB with equal channels.
    rgb = np.repeat(IMAGES[..., None], 3, axis=3)
    np.testing.assert_allclose(compute_features(rgb, extractor, batch_size=3), features, atol=1e-4)


def list_published_convolutions() -> dict[str, tuple[int, int, int, int]]:
    """Names and shapes in the published state dict, by the tables of Szegedy et al. 2016 (arXiv 1512.00567)."""
    shapes = {
        "Conv2d_1a_3x3": (32, 3, 3, 3),
        "Conv2d_2a_3x3": (32, 32, 3, 3),
        "Conv2d_2b_3x3": (64, 32, 3, 3),
        "Conv2d_3b_1x1": (80, 64, 1, 1),
        "Conv2d_4a_3x3": (192, 80, 3, 3),
        "Mixed_6a.branch3x3": (384, 288, 3, 3),
        "Mixed_7a.branch3x3_1": (192, 768, 1, 1),
        "Mixed_7a.branch3x3_2": (320, 192, 3, 3),
        "Mixed_7a.branch7x7x3_1": (192, 768, 1, 1),
        "Mixed_7a.branch7x7x3_2": (192, 192, 1, 7),
        "Mixed_7a.branch7x7x3_3": (192, 192, 7, 1),
        "Mixed_7a.branch7x7x3_4": (192, 192, 3, 3),
    }
    for block, width, pool in (("5b", 192, 32), ("5c", 256, 64), ("5d", 288, 64), ("6a", 288, 0)):
        name = f"Mixed_{block}"
        shapes[f"{name}.branch3x3dbl_1"] = (64, width, 1, 1)
        shapes[f"{name}.branch3x3dbl_2"] = (96, 64, 3, 3)
        shapes[f"{name}.branch3x3dbl_3"] = (96, 96, 3, 3)
        if pool:
            shapes[f"{name}.branch1x1"] = (64, width, 1, 1)
            shapes[f"{name}.branch5x5_1"] = (48, width, 1, 1)
            shapes[f"{name}.branch5x5_2"] = (64, 48, 5, 5)
            shapes[f"{name}.branch_pool"] = (pool, width, 1, 1)
    for block, width in (("6b", 128), ("6c", 160), ("6d", 160), ("6e", 192)):
        name = f"Mixed_{block}"
        shapes[f"{name}.branch1x1"] = shapes[f"{name}.branch_pool"] = (192, 768, 1, 1)
        shapes[f"{name}.branch7x7_1"] = shapes[f"{name}.branch7x7dbl_1"] = (width, 768, 1, 1)
        shapes[f"{name}.branch7x7_2"] = shapes[f"{name}.branch7x7dbl_3"] = (width, width, 1, 7)
        shapes[f"{name}.branch7x7dbl_2"] = shapes[f"{name}.branch7x7dbl_4"] = (width, width, 7, 1)
        shapes[f"{name}.branch7x7_3"] = (192, width, 7, 1)
        shapes[f"{name}.branch7x7dbl_5"] = (192, width, 1, 7)
    for block, width in (("7b", 1280), ("7c", 2048)):
        name = f"Mixed_{block}"
        shapes[f"{name}.branch1x1"] = (320, width, 1, 1)
        shapes[f"{name}.branch3x3_1"] = (384, width, 1, 1)
        shapes[f"{name}.branch3x3dbl_1"] = (448, width, 1, 1)
        shapes[f"{name}.branch3x3dbl_2"] = (384, 448, 3, 3)
        for part in ("branch3x3_2", "branch3x3dbl_3"):
            shapes[f"{name}.{part}a"], shapes[f"{name}.{part}b"] = (384, 384, 1, 3), (384, 384, 3, 1)
        shapes[f"{name}.branch_pool"] = (192, width, 1, 1)
    return shapes


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights in the published format: plain tensors, batch norms without batch counts, 1008 outputs."""
    generator = torch.Generator().manual_seed(0)
    state = {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}
    for name, shape in list_published_convolutions().items():
        fan_in = shape[1] * shape[2] * shape[3]
        state[f"{name}.conv.weight"] = torch.randn(shape, generator=generator) * (2 / fan_in) ** 0.5
        for key, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 1.0)):
            state[f"{name}.bn.{key}"] = torch.full((shape[0],), value)
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(state, path)
    return path


def test_inception_loads_the_published_format(inception_weights: Path) -> None:
    state = torch.load(inception_weights, weights_only=True)
    body = sum(value.numel() for name, value in state.items() if "running" not in name and not name.startswith("fc."))
    assert body == 21_785_568  # InceptionV3 without auxiliary head and classifier
    extractor = build_extractor("inception", inception_weights)
    assert extractor.frechet_name == "FID"
    features = compute_features(IMAGES[:2], extractor)
    assert features.shape == (2, 2048)
    network = InceptionFeatures().eval()
    assert set(state) == {name for name in network.state_dict() if not name.endswith("num_batches_tracked")}
    network.load_state_dict(state)
    expected = network(torch.from_numpy(IMAGES[:2]).float()[:, None].repeat(1, 3, 1, 1) / 255).detach().numpy()
    np.testing.assert_allclose(features, expected, atol=1e-4)


def test_fetched_inception_weights_are_found_by_name(
    inception_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from typer.testing import CliRunner

    from steelgen.cli.app import app

    mirror = tmp_path / "mirror"
    mirror.mkdir()
    digest = hashlib.sha256(inception_weights.read_bytes()).hexdigest()
    # The published name ends in the file's own digest.
    name = f"pt_inception-2015-12-05-{digest[:8]}.pth"
    shutil.copy(inception_weights, mirror / name)
    monkeypatch.setattr(module, "INCEPTION_FILE", name)
    cache = tmp_path / "cache"
    arguments = ["data", "fetch", "inception", str(cache), "--base-url", mirror.as_uri()]
    for _ in range(2):
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        (mirror / name).unlink(missing_ok=True)  # the second call uses the cache
    assert build_extractor("inception", cache_dir=cache).name == "Inception"


def test_missing_or_wrong_inception_weights_give_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no Inception weights; run `steelgen data fetch inception`"):
        build_extractor("inception", cache_dir=tmp_path)
    path = tmp_path / "other.pth"
    torch.save({"conv.weight": torch.zeros(1)}, path)
    with pytest.raises(InputError, match=r"other\.pth: not weights of InceptionFeatures"):
        build_extractor("inception", path)


def test_fetch_refuses_other_files(tmp_path: Path) -> None:
    source = tmp_path / module.INCEPTION_FILE
    source.write_bytes(b"not the weights")
    with pytest.raises(InputError, match="is not the published"):
        fetch_inception_weights(tmp_path / "cache", base_url=source.parent.as_uri())
    with pytest.raises(InputError, match="cannot be downloaded"):
        fetch_inception_weights(tmp_path / "cache", base_url=(tmp_path / "nothing").as_uri())
    assert not list((tmp_path / "cache").iterdir())


def test_tensorflow_resize_samples_without_a_half_pixel_shift() -> None:
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    assert resize_bilinear_tf1(ramp, 8)[0, 0, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]
    # Align-corners sampling on a (size-1)·k+1 grid is the same except for the last pixel.
    image = torch.rand(1, 2, 5, 5)
    expected = F.interpolate(image, (9, 9), mode="bilinear", align_corners=True)
    torch.testing.assert_close(resize_bilinear_tf1(image, 10)[..., :9, :9], expected)


def test_torchscript_and_imported_features(tmp_path: Path) -> None:
    path = tmp_path / "mean.pt"
    torch.jit.script(torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())).save(str(path))
    scripted = compute_features(IMAGES, build_extractor(str(path)))
    imported = compute_features(IMAGES, build_extractor(f"{__name__}:mean_features"))
    np.testing.assert_allclose(scripted, imported, rtol=1e-5)
    with pytest.raises(InputError, match="unknown; use"):
        build_extractor("resnet")
    with pytest.raises(InputError, match="no_such"):
        build_extractor(f"{__name__}:no_such")


def test_nan_features_and_wrong_shapes_are_refused() -> None:
    def broken(images: torch.Tensor) -> torch.Tensor:
        return torch.where(images.mean(dim=(2, 3)) > 2, 0.0, float("nan"))

    with pytest.raises(InputError, match="image 0 has features that are infinite or NaN"):
        compute_features(IMAGES, FeatureExtractor("broken", broken, "broken"))
    with pytest.raises(InputError, match=r"must return \(N, D\)"):
        compute_features(IMAGES, FeatureExtractor("flat", lambda images: images.mean(), "flat"))


def test_cached_features_are_computed_once_per_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(images: torch.Tensor) -> torch.Tensor:
        calls.append(len(images))
        return mean_features(images)

    extractor = FeatureExtractor("mean", counted, "mean-1")
    first = compute_cached_features(IMAGES, extractor, tmp_path)
    np.testing.assert_array_equal(compute_cached_features(IMAGES, extractor, tmp_path), first)
    assert len(calls) == 1
    compute_cached_features(255 - IMAGES, extractor, tmp_path)
    compute_cached_features(IMAGES, FeatureExtractor("mean", counted, "mean-2"), tmp_path)
    assert len(calls) == 3


def test_default_cache_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STEELGEN_CACHE", str(tmp_path))
    assert module.default_cache_dir() == tmp_path
    monkeypatch.delenv("STEELGEN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert module.default_cache_dir() == tmp_path / "steelgen"
