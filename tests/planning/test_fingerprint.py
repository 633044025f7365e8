"""What is measured of a set, on images and masks whose answers are known."""

import shutil

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import gaussian_filter, rotate

from steelgen.data.folder import DatasetInfo, save_dataset_info, save_mask, save_metadata
from steelgen.errors import InputError
from steelgen.planning.fingerprint import (
    compute_detail,
    compute_fingerprint,
    compute_gradient_moment,
    compute_weighted_median,
    compute_widths,
    pool_orientation,
)
from steelgen.planning.rules import choose_augment
from tests.conftest import write_tiny_dataset


def make_lamellae(angle, rng, size=128):
    """Lamellae of 8 px along a direction in degrees, counterclockwise from the horizontal, with noise."""
    rows, columns = np.mgrid[:size, :size]
    theta = np.radians(angle)
    across = columns * np.sin(theta) + rows * np.cos(theta)
    return 128 + 60 * np.sin(2 * np.pi * across / 16 + rng.uniform(0, 6)) + rng.normal(0, 15, (size, size))


def make_isotropic(rng, size=128):
    return 128 + 400 * gaussian_filter(rng.normal(size=(size, size)), 3)


def decide(images):
    found = pool_orientation([compute_gradient_moment(image) for image in images])
    return found, choose_augment(found.strength, found.direction, found.agreement, len(images)).value


@pytest.mark.parametrize("count", [3, 16])
def test_a_common_direction_is_found_and_chance_is_not(count):
    """The threshold's calibration: lamellae at 0 ± 7° against sets without a direction."""
    rng = np.random.default_rng(count)
    for _ in range(10):
        found, augment = decide([make_lamellae(rng.normal(0, 7), rng) for _ in range(count)])
        assert found.strength > 0.5
        # The mean direction of three may be off by more than the 10° up to which mirroring keeps it.
        assert augment in (["mirror"] if count > 3 else ["mirror", False])
        assert decide([make_isotropic(rng) for _ in range(count)])[1] is True


def test_directions_that_differ_between_micrographs_are_none():
    rng = np.random.default_rng(0)
    found, augment = decide([make_lamellae(angle, rng) for angle in range(0, 180, 15)])
    assert found.strength < 0.05
    assert augment is True


@pytest.mark.parametrize(("angle", "augment"), [(30, False), (90, "mirror"), (135, False), (178, "mirror")])
def test_direction(angle, augment):
    rng = np.random.default_rng(1)
    found, chosen = decide([make_lamellae(angle, rng) for _ in range(6)])
    assert abs((found.direction - angle + 90) % 180 - 90) < 2
    assert chosen == augment


@pytest.mark.parametrize("width", [1, 3, 7, 15])
def test_width_of_a_film(width):
    phase = np.zeros((80, 80), bool)
    phase[30 : 30 + width] = True
    assert np.median(compute_widths(phase)) == width


def test_width_of_a_turned_film_and_of_no_film():
    phase = np.zeros((120, 120), np.float64)
    phase[50:61] = 1
    turned = rotate(phase, 30, reshape=False, order=1) > 0.5
    assert np.median(compute_widths(turned)) == pytest.approx(11, abs=1.5)
    assert not len(compute_widths(np.ones((9, 9), bool)))
    assert not len(compute_widths(np.zeros((9, 9), bool)))


def test_specks_do_not_decide():
    diameters = np.array([3.0] * 50 + [40.0])
    assert compute_weighted_median(diameters, diameters**2) == 40
    assert compute_weighted_median(np.array([1.0, 2.0, 3.0]), np.ones(3)) == 2


def test_detail_of_stripes_coarse_texture_and_nothing():
    stripes = np.tile(np.array([0, 200], np.uint8), (48, 24))
    blocks = np.kron(np.indices((6, 6)).sum(axis=0) % 2, np.ones((8, 8))).astype(np.uint8) * 200
    assert compute_detail(stripes)[1] == 0  # pairs of 0 and 200 average to 100
    assert compute_detail(blocks)[3] == pytest.approx(1)  # blocks of 8 px survive shrinking 4 times
    assert compute_detail(np.full((48, 48), 7, np.uint8)) == [1] * 6


@pytest.fixture
def grid_dataset(tmp_path):
    """Three 96 px micrographs with 16 squares of 9 px, 24 px apart, and a film of 5 px in one; one is in val."""
    info = DatasetInfo(name="grid", class_names=["matrix", "square", "film", "nowhere"])
    rng = np.random.default_rng(0)
    for number, split in enumerate(("train", "train", "val")):
        mask = np.zeros((96, 96), np.uint8)
        for top in range(4, 96, 24):
            for left in range(4, 96, 24):
                mask[top : top + 9, left : left + 9] = 1
        if number == 0:
            mask[17:22] = 2
        image = (100 + 20 * number + 40 * (mask > 0) + rng.normal(0, 3, mask.shape)).clip(0, 255).astype(np.uint8)
        folder = tmp_path / "grid" / split / "images"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"m{number}.png")
        save_mask(tmp_path / "grid" / split / "masks" / f"m{number}.png", mask, info.palette)
    save_dataset_info(tmp_path / "grid", info)
    return tmp_path / "grid"


def test_fingerprint_of_a_known_set(grid_dataset):
    found = compute_fingerprint(grid_dataset)
    assert found.micrographs == {"train": 2, "val": 1}
    assert found.sizes == {"96 x 96": 2}
    matrix, square, film, nowhere = found.classes
    assert found.matrix == 0
    assert [each.name for each in found.features] == ["square", "film"]
    assert square.islands == 32
    assert square.share == pytest.approx(32 * 81 / (2 * 96**2))
    assert square.diameter_quartiles == pytest.approx([np.sqrt(4 * 81 / np.pi)] * 3)
    assert square.spacing == 24
    assert film.width == 5
    assert film.spacing is None
    assert matrix.share == pytest.approx(1 - square.share - film.share)
    assert (nowhere.share, nowhere.islands, nowhere.width) == (0, 0, None)
    # The squares cover 14 %, the film 5 % of the first micrograph; 107.7 and 125.6 less half a level of rounding.
    assert found.gray_mean == pytest.approx((116.2, 8.96), abs=0.1)
    assert not found.instances


def test_tiles_of_one_micrograph_count_once(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / "train" / "images").mkdir(parents=True)
    rows = []
    for number, (parent, angle) in enumerate([("a", 0)] * 6 + [("b", 90)]):
        image = make_lamellae(angle, rng, 64).clip(0, 255).astype(np.uint8)
        Image.fromarray(image).save(tmp_path / "train" / "images" / f"{number}.png")
        rows.append({"file_name": f"train/images/{number}.png", "parent": parent})
    assert compute_fingerprint(tmp_path).orientation > 0.5
    save_metadata(tmp_path, rows)
    found = compute_fingerprint(tmp_path)
    assert found.parents == 2
    assert found.orientation < 0.1


def test_unlabeled_micrographs_count(tmp_path):
    root = write_tiny_dataset(tmp_path / "tiny", (64, 96), splits=(("train", 1), ("test", 1)))
    copied, small = tmp_path / "copied.png", tmp_path / "small.png"
    shutil.copyfile(next((root / "test/images").iterdir()), copied)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50), np.uint8)).save(small)
    found = compute_fingerprint(root, unlabeled=[copied, small])
    assert (found.unlabeled, found.count, found.micrographs) == (2, 3, {"train": 1, "test": 1})
    assert found.smallest_edge == 40
    assert found.leaks == 1  # a test micrograph among the unlabeled ones
    Image.fromarray(np.zeros((20, 50), np.uint8)).save(small)
    with pytest.raises(InputError, match=r"small.png: 50x20 px; a plan needs edges of at least 32 px"):
        compute_fingerprint(root, unlabeled=[small])


def test_look_alikes_and_leaks(tmp_path):
    rng = np.random.default_rng(0)
    texture = make_isotropic(rng, 64).clip(0, 255).astype(np.uint8)
    other = make_isotropic(rng, 64).clip(0, 255).astype(np.uint8)
    images = {"train/images/a": texture, "train/images/b": other, "train/images/c": other.T}
    for name, image in {**images, "val/images/d": texture[::-1]}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(image)).save(tmp_path / f"{name}.png")
    found = compute_fingerprint(tmp_path)
    assert (found.leaks, found.look_alikes) == (1, 1)


def test_colors_and_images_alone(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "train" / "images"
    folder.mkdir(parents=True)
    for number in range(2):
        image = rng.integers(0, 256, (40, 40, 3), np.uint8)
        Image.fromarray(image).save(folder / f"{number}.png")
    found = compute_fingerprint(tmp_path)
    assert found.colored
    assert found.classes == ()
    assert found.matrix is None
    assert found.features == []


@pytest.mark.parametrize(
    ("splits", "size", "message"),
    [
        ((("val", 2),), (40, 48), r"has no train split \(present: val\); `steelgen data split"),
        ((("train", 1), ("test", 1)), (40, 48), "1 micrograph in train; a plan needs at least 2"),
        ((("train", 2),), (31, 48), r"train0.png: 48x31 px; a plan needs edges of at least 32 px"),
    ],
)
def test_sets_that_cannot_be_planned_for(tmp_path, splits, size, message):
    with pytest.raises(InputError, match=message):
        compute_fingerprint(write_tiny_dataset(tmp_path / "tiny", size, splits=splits))
