"""Masks from the canvas, from files, and of random islands."""

import base64
import json

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage.measure import regionprops

from steelgen.data.folder import DatasetInfo, save_mask
from steelgen.data.palette import color_mask
from steelgen.data.placement import CropGeometry
from steelgen.errors import InputError
from steelgen.studio import masks
from steelgen.studio.masks import decode_mask, encode_mask, place_random_islands, read_mask

INFO = DatasetInfo(name="test", class_names=["matrix", "island", "film"])
GEOMETRY = CropGeometry(32, 64)


def blocks(height=32, width=32):
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : height // 2, width // 4 : width // 2] = 1
    mask[height // 2 :, width // 2 :] = 2
    return mask


def test_mask_comes_back_from_the_page():
    assert (decode_mask(encode_mask(blocks()), INFO, 32) == blocks()).all()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "null",
        "[]",
        "{}",
        '{"width": 32, "height": 32, "indices": "?"}',
        '{"width": 32, "height": 32, "indices": 7}',
        '{"width": "x", "height": 32, "indices": "AAAA"}',
        '{"width": -1, "height": -3, "indices": "AAAA"}',
        "[" * 100_000,
        encode_mask(np.zeros((16, 16), np.uint8)),
        encode_mask(np.full((32, 32), 3, np.uint8)),
        json.dumps({"width": 32, "height": 32, "indices": base64.b64encode(b"\0" * 1023).decode()}),
    ],
)
def test_anything_else_from_a_browser_is_refused_in_one_line(text):
    with pytest.raises(InputError) as caught:
        decode_mask(text, INFO, 32)
    assert "\n" not in str(caught.value)


def test_file_of_the_networks_size_is_taken_as_it_is(tmp_path):
    save_mask(tmp_path / "a.png", blocks(), INFO.palette)
    Image.fromarray(color_mask(blocks(), INFO.palette)).save(tmp_path / "colored.png")
    for name in ("a.png", "colored.png"):
        mask, note = read_mask(tmp_path / name, INFO, GEOMETRY)
        assert (mask == blocks()).all()
        assert note == name


def test_soft_edges_of_a_painted_picture_go_to_the_nearest_class(tmp_path):
    picture = Image.fromarray(color_mask(blocks(), INFO.palette)).resize((128, 128), Image.Resampling.BICUBIC)
    picture.save(tmp_path / "soft.jpg", quality=95)
    mask, note = read_mask(tmp_path / "soft.jpg", INFO, GEOMETRY)
    middle = np.asarray(Image.fromarray(blocks()).resize((128, 128), Image.Resampling.NEAREST))[::2, ::2][16:48, 16:48]
    assert (mask == middle).mean() > 0.95
    assert note == "soft.jpg (128x128 px), resized to the scale of the generator and cropped to the center"


def test_a_larger_file_is_brought_to_scale(tmp_path):
    save_mask(tmp_path / "big.png", blocks(100, 200), INFO.palette)
    mask, _ = read_mask(tmp_path / "big.png", INFO, GEOMETRY)
    assert mask.shape == (32, 32)
    assert (mask == blocks(100, 200)[::2, ::2][9:41, 34:66]).mean() > 0.95
    save_mask(tmp_path / "between.png", blocks(48, 48), INFO.palette)
    mask, _ = read_mask(tmp_path / "between.png", INFO, GEOMETRY)
    assert (mask == blocks()).mean() > 0.95


def test_ignored_pixels_become_the_first_class(tmp_path):
    mask = blocks()
    mask[:2] = 255
    save_mask(tmp_path / "a.png", mask, INFO.palette)
    assert (read_mask(tmp_path / "a.png", INFO, GEOMETRY)[0][:2] == 0).all()


def test_bad_files_are_called_by_name_alone(tmp_path):
    (tmp_path / "text.png").write_text("<script>alert(1)</script>")
    Image.new("L", (64, 64), 7).save(tmp_path / "gray.png")
    Image.effect_noise((64, 64), 50).convert("RGB").rotate(1).save(tmp_path / "small.png")
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (64, 64, 3), np.uint8)).save(tmp_path / "photo.png")
    save_mask(tmp_path / "tiny.png", blocks(8, 8), INFO.palette)
    for name, words in {
        "text.png": "not a readable image",
        "gray.png": "index 7 is not below",
        "photo.png": "of the pixels have a class color",
        "tiny.png": "smaller than the generator's 32x32 px",
    }.items():
        with pytest.raises(InputError, match=words) as caught:
            read_mask(tmp_path / name, INFO, GEOMETRY)
        assert str(tmp_path) not in str(caught.value)
        assert str(caught.value).startswith(name)


def test_a_hundred_megapixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch):
    Image.new("L", (10_000, 10_000)).save(tmp_path / "huge.png")
    monkeypatch.setattr(masks, "load_image", None)
    with pytest.raises(InputError, match=r"huge\.png: 10000x10000 px exceeds the limit of 50,000,000 pixels"):
        read_mask(tmp_path / "huge.png", INFO, GEOMETRY)


@pytest.mark.parametrize("label", [0, 1, 2])
def test_layout_meets_its_share_to_the_pixel(label):
    mask = place_random_islands(blocks(64, 64), label, 0.25, 8, 2, seed=3)
    assert (mask == label).sum() == round(0.25 * 64 * 64)
    again = place_random_islands(blocks(64, 64), label, 0.25, 8, 2, seed=3)
    assert (mask == again).all()
    assert (place_random_islands(blocks(64, 64), label, 0.25, 8, 2, seed=4) != mask).any()


def test_islands_have_the_size_and_the_aspect_that_was_asked_for():
    sizes, aspects = [], []
    for seed in range(8):
        mask = place_random_islands(np.zeros((256, 256), np.uint8), 1, 0.15, 18, 3, seed)
        labeled, _ = ndimage.label(mask == 1)
        for island in regionprops(labeled):
            top, left, bottom, right = island.bbox
            if min(top, left) > 0 and max(bottom, right) < 256:  # the border's are cut
                sizes.append(island.area)
                aspects.append(island.axis_major_length / island.axis_minor_length)
    assert np.sqrt(4 / np.pi * np.mean(sizes)) == pytest.approx(18, rel=0.15)
    assert np.median(aspects) == pytest.approx(3, rel=0.2)


def test_what_is_painted_stays_beside_the_islands():
    painted = blocks(64, 64)
    mask = place_random_islands(painted, 1, 0.1, 8, 1, seed=0)
    untouched = mask != 1
    assert (mask[untouched] == np.where(painted == 1, 0, painted)[untouched]).all()
    assert (place_random_islands(painted, 1, 0, 8, 1, seed=0) == np.where(painted == 1, 0, painted)).all()
