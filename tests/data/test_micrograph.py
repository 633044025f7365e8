from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageDraw

from steelgen.data.images import load_image
from steelgen.data.micrograph import ImageOptions, find_data_bar, load_micrograph
from steelgen.errors import InputError
from tests.data.samples import BUNDLED, save_noise

_RAMP = np.linspace(1000, 3000, 2000).astype(np.uint16).reshape(40, 50)


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp"])
def test_8_bit_is_not_scaled(tmp_path: Path, name: str) -> None:
    path = save_noise(tmp_path / name)
    np.testing.assert_array_equal(load_micrograph(path).image, np.asarray(Image.open(path)))


def test_jpeg(tmp_path: Path) -> None:
    path = save_noise(tmp_path / "a.jpg")
    np.testing.assert_array_equal(load_micrograph(path).image, np.asarray(Image.open(path).convert("L")))


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_16_bit_by_percentiles_and_by_full_range(tmp_path: Path, name: str) -> None:
    Image.fromarray(_RAMP).save(tmp_path / name)
    stretched = load_micrograph(tmp_path / name, ImageOptions(percentiles=(0, 100))).image
    assert (stretched.min(), stretched.max()) == (0, 255)
    full = load_micrograph(tmp_path / name, ImageOptions(deep_scaling="full")).image
    np.testing.assert_array_equal(full, np.round(_RAMP / 65535 * 255).astype(np.uint8))


def test_page_of_a_multi_page_tiff(tmp_path: Path) -> None:
    tifffile.imwrite(
        tmp_path / "a.tif",
        np.stack([np.full((40, 50), 7 * page, np.uint8) for page in range(3)]),
        photometric="minisblack",
    )
    assert load_micrograph(tmp_path / "a.tif", ImageOptions(page=2)).image[0, 0] == 14
    with pytest.raises(InputError, match="no page 3; the file has 3 pages"):
        load_micrograph(tmp_path / "a.tif", ImageOptions(page=3))


def test_floats_are_scaled_or_rejected(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", _RAMP.astype(np.float32))
    assert load_micrograph(tmp_path / "a.tif").image.max() == 255
    with pytest.raises(InputError, match="no full range"):
        load_micrograph(tmp_path / "a.tif", ImageOptions(deep_scaling="full"))
    tifffile.imwrite(tmp_path / "nan.tif", np.full((40, 50), np.nan, np.float32))
    with pytest.raises(InputError, match="not finite"):
        load_micrograph(tmp_path / "nan.tif")


def test_fei_tags_give_pixel_size_and_data_bar(tmp_path: Path) -> None:
    text = "[Scan]\r\nPixelWidth=2.5e-008\r\nPixelHeight=2.5e-008\r\n[Image]\r\nResolutionX=50\r\nResolutionY=34\r\n"
    noise = np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", noise, extratags=[(34682, "s", 0, text, True)])
    micrograph = load_micrograph(tmp_path / "a.tif")
    assert micrograph.pixel_size_um == pytest.approx(0.025)
    assert (micrograph.image.shape, micrograph.full_height) == ((34, 50), 40)


def test_zeiss_tags_give_pixel_size(tmp_path: Path) -> None:
    text = "\r\n".join(["1", "2", "AP_IMAGE_PIXEL_SIZE", "Image Pixel Size = 3.5 nm", ""])
    noise = np.random.default_rng(0).integers(0, 255, (40, 50), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", noise, extratags=[(34118, "s", 0, text, True)])
    assert load_micrograph(tmp_path / "a.tif").pixel_size_um == pytest.approx(0.0035)


@pytest.mark.parametrize("plain", [0, 255])
def test_data_bar_is_found(plain: int) -> None:
    image = np.asarray(Image.open(BUNDLED / "uhcs" / "train" / "images" / "uhcs0007.png"))
    bar = Image.new("L", (image.shape[1], 38), plain)
    draw = ImageDraw.Draw(bar)
    draw.text((10, 4), "20.0 kV  WD 10.3 mm  HFW 12.8 um  2026-11-21", fill=255 - plain)
    draw.line((400, 20, 600, 20), fill=255 - plain, width=3)
    assert find_data_bar(np.concatenate([image, np.asarray(bar)])) == pytest.approx(38, abs=1)


def test_no_real_micrograph_has_a_bar_by_mistake() -> None:
    paths = [*(BUNDLED / "uhcs").glob("*/images/*.png"), *(BUNDLED / "ma_islands" / "PNG").glob("*.png")]
    assert len(paths) == 28
    assert [path.name for path in paths if find_data_bar(load_image(path))] == []


def test_dark_rim_of_the_specimen_is_not_a_bar() -> None:
    noise = np.random.default_rng(0).integers(60, 220, (400, 500), np.uint8)
    surface = 330 + 12 * np.sin(np.arange(500) / 40)
    noise[np.arange(400)[:, None] > surface] = 3
    assert find_data_bar(noise) == 0


def test_given_height_is_cropped(tmp_path: Path) -> None:
    path = save_noise(tmp_path / "a.png")
    assert load_micrograph(path, ImageOptions(data_bar=10)).image.shape == (30, 50)
    with pytest.raises(InputError, match="40 rows leaves no image; the file has 40 rows"):
        load_micrograph(path, ImageOptions(data_bar=40))


def test_palette_and_equal_channels_collapse(tmp_path: Path) -> None:
    gray = Image.fromarray(np.arange(2000, dtype=np.uint16).reshape(40, 50).astype(np.uint8))
    gray.convert("RGB").save(tmp_path / "rgb.png")
    gray.convert("P").save(tmp_path / "palette.png")
    for name in ("rgb.png", "palette.png"):
        np.testing.assert_array_equal(load_micrograph(tmp_path / name).image, np.asarray(gray))
