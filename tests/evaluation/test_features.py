"""Named features: shapes, preprocessing, weights from a file, messages."""

from __future__ import annotations

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
    # The batch does not matter, and grey is RGB with equal channels.
    rgb = np.repeat(IMAGES[..., None], 3, axis=3)
    np.testing.assert_allclose(compute_features(rgb, extractor, batch_size=3), features, atol=1e-4)


def test_inception_reads_a_file_of_the_published_format(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = InceptionFeatures().eval()
    body = sum(value.numel() for name, value in network.named_parameters() if not name.startswith("fc."))
    assert body == 21_785_568  # InceptionV3 without auxiliary head and classifier
    assert network.fc.weight.shape == (1008, 2048)
    path = tmp_path / "weights.pth"
    torch.save(network.state_dict(), path)
    extractor = build_extractor("inception", path)
    assert extractor.frechet_name == "FID"
    features = compute_features(IMAGES[:2], extractor)
    assert features.shape == (2, 2048)
    expected = network(torch.from_numpy(IMAGES[:2]).float()[:, None].repeat(1, 3, 1, 1) / 255).detach().numpy()
    np.testing.assert_allclose(features, expected, atol=1e-4)


def test_missing_or_foreign_inception_weights_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Inception weights are not there; run `steelgen data fetch inception`"):
        build_extractor("inception", cache_dir=tmp_path)
    path = tmp_path / "other.pth"
    torch.save({"conv.weight": torch.zeros(1)}, path)
    with pytest.raises(InputError, match=r"other\.pth: not weights of InceptionFeatures"):
        build_extractor("inception", path)


def test_fetch_refuses_what_is_not_the_published_file(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(b"not the weights")
    with pytest.raises(InputError, match="is not the published"):
        fetch_inception_weights(tmp_path / "cache", url=source.as_uri())
    with pytest.raises(InputError, match="cannot be downloaded"):
        fetch_inception_weights(tmp_path / "cache", url=(tmp_path / "nothing").as_uri())
    assert not list((tmp_path / "cache").iterdir())


def test_tensorflow_resize_samples_without_a_half_pixel_shift() -> None:
    ramp = torch.arange(4.0).expand(1, 1, 4, 4)
    assert resize_bilinear_tf1(ramp, 8)[0, 0, 0].tolist() == [0, 0.5, 1, 1.5, 2, 2.5, 3, 3]
    # Align-corners sampling of a (size-1)·k+1 grid is the same rule away from the last pixel.
    image = torch.rand(1, 2, 5, 5)
    expected = F.interpolate(image, (9, 9), mode="bilinear", align_corners=True)
    torch.testing.assert_close(resize_bilinear_tf1(image, 10)[..., :9, :9], expected)


def test_torchscript_and_imported_features(tmp_path: Path) -> None:
    path = tmp_path / "mean.pt"
    torch.jit.script(torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten())).save(str(path))
    scripted = compute_features(IMAGES, build_extractor(str(path)))
    imported = compute_features(IMAGES, build_extractor(f"{__name__}:mean_features"))
    np.testing.assert_allclose(scripted, imported, rtol=1e-5)
    with pytest.raises(InputError, match="not known"):
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
