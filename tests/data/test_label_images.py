"""Label images of napari and ilastik, masks in colors, masks without the data bar."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image
from typer.testing import CliRunner

from steelgen.cli.app import app
from steelgen.data.folder import list_pairs, load_dataset_info, load_metadata, load_pair
from steelgen.data.importers.legend import parse_colors
from steelgen.data.importers.options import ReadOptions
from steelgen.data.importing import WriteOptions, import_dataset
from steelgen.data.instances import load_instance_ids
from steelgen.data.micrograph import ImageOptions, load_micrograph
from steelgen.errors import InputError
from tests.data.samples import BUNDLED, import_masks, imported_names, random_mask, save_indices, save_noise

_COLORS = np.array([(0, 0, 0), (255, 0, 0), (0, 200, 50)], np.uint8)
_LEGEND = (((255, 0, 0), "oxide"), ((0, 200, 50), "pore"))


def _import(kind: str, src: Path, images: ImageOptions | None = None, **read: Any) -> dict[str, np.ndarray]:
    write = WriteOptions(fractions={"train": 1.0}, images=images or ImageOptions())
    return import_masks(kind, src, write, **read)


class TestLabels:
    @pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint32, np.int64])
    def test_naparis_labels_of_any_depth_beside_an_ome_tiff(self, tmp_path: Path, dtype: type) -> None:
        root = tmp_path / "set"
        root.mkdir()
        image = np.random.default_rng(0).integers(0, 4000, (40, 50), np.uint16)
        metadata = {"axes": "YX", "PhysicalSizeX": 25.0, "PhysicalSizeXUnit": "nm"}
        tifffile.imwrite(root / "a.ome.tif", image, ome=True, metadata=metadata)
        mask = random_mask(2, smooth=2.0)
        # napari's writer is tifffile with zlib.
        tifffile.imwrite(root / "a_labels.tif", mask.astype(dtype), compression="zlib")
        np.testing.assert_array_equal(_import("labels", root, class_names=("ferrite", "oxide", "pore"))["a"], mask)
        assert load_dataset_info(tmp_path / "set-out").pixel_size_um == pytest.approx(0.025)

    def test_ilastik_counts_from_one(self, tmp_path: Path) -> None:
        root = tmp_path / "set"
        save_noise(root / "a.png")
        mask = random_mask(2)
        tifffile.imwrite(root / "a_Simple Segmentation.tiff", mask[None, ..., None] + 1)
        np.testing.assert_array_equal(_import("labels", root)["a"], mask)
        assert imported_names(root) == ["class_0", "class_1", "class_2"]

    def test_ids_of_objects(self, tmp_path: Path) -> None:
        root = tmp_path / "set"
        save_noise(root / "images" / "a.tif")
        ids = np.zeros((40, 50), np.int32)
        ids[2:9, 3:30], ids[9:12, 3:30] = 300, 70
        (root / "labels").mkdir()
        tifffile.imwrite(root / "labels" / "a.tif", ids)
        with pytest.raises(InputError, match=r"value 300 is not from 0 to 255 \(--objects"):
            _import("labels", root)
        np.testing.assert_array_equal(_import("labels", root, objects=True, class_names=("grain",))["a"], ids > 0)
        assert imported_names(root) == ["background", "grain"]
        back = load_instance_ids(tmp_path / "set-out" / "train" / "instances" / "a.png")
        np.testing.assert_array_equal(back, ids)
        tifffile.imwrite(root / "labels" / "a.tif", ids * 300)
        with pytest.raises(InputError, match="value 90000 is not from 0 to 65535"):
            import_dataset(
                "labels", root, tmp_path / "none", ReadOptions(objects=True), WriteOptions(fractions={"train": 1.0})
            )

    def test_pixel_size_of_imagejs_tiffs(self, tmp_path: Path) -> None:
        image = np.zeros((8, 8), np.uint8)
        for number, (unit, size) in enumerate({"micron": 0.5, "nm": 0.0005, "mm": 500.0, "pixel": None}.items()):
            path = tmp_path / f"{number}.tif"
            tifffile.imwrite(path, image, imagej=True, resolution=(2.0, 2.0), metadata={"unit": unit})
            found = load_micrograph(path).pixel_size_um
            assert found == (pytest.approx(size) if size else None)

    def test_bad_sources(self, tmp_path: Path) -> None:
        root = tmp_path / "set"
        save_noise(root / "a.png")
        with pytest.raises(InputError, match="no label images"):
            _import("labels", root)
        save_noise(root / "b_mask.png")
        with pytest.raises(InputError, match=r"b_mask\.png: no image 'b'"):
            _import("labels", root)
        save_noise(root / "b.png")
        save_noise(root / "b-labels.png")
        with pytest.raises(InputError, match="is also a label image of b"):
            _import("labels", root)
        (root / "b-labels.png").unlink()
        tifffile.imwrite(root / "b_mask.tif", np.zeros((3, 4, 5), np.int32))
        (root / "b_mask.png").unlink()
        with pytest.raises(InputError, match=r"b_mask\.tif: labels of shape \(3, 4, 5\) are not a 2D image"):
            _import("labels", root)


class TestColors:
    def _save(self, root: Path, folder: str = "masks", colors: np.ndarray = _COLORS) -> np.ndarray:
        save_noise(root / "images" / "a.png")
        mask = random_mask(5, smooth=2.0)
        save_indices(root / folder / "a.png", colors[mask])
        return mask

    def test_given_legend(self, tmp_path: Path) -> None:
        mask = self._save(tmp_path / "set")
        legend = (((0, 0, 0), "background"), *_LEGEND)
        np.testing.assert_array_equal(_import("folder", tmp_path / "set", colors=legend)["a"], mask)
        info = load_dataset_info(tmp_path / "set-out")
        assert info.class_names == ["background", "oxide", "pore"]
        assert np.array_equal(info.palette, _COLORS)

    def test_classes_without_a_background(self, tmp_path: Path) -> None:
        mask = self._save(tmp_path / "set", "labels")
        options = {"colors": _LEGEND, "class_names": ("pore", "oxide")}
        with pytest.raises(InputError, match=r"color 0,0,0 at \(\d+, \d+\) and \d+ more pixels"):
            _import("labels", tmp_path / "set", **options)
        transparent = np.dstack([_COLORS[mask], np.where(mask > 0, 255, 0).astype(np.uint8)])
        Image.fromarray(transparent).save(tmp_path / "set" / "labels" / "a.png")
        found = _import("labels", tmp_path / "set", **options)["a"]
        np.testing.assert_array_equal(found, np.array([255, 1, 0])[mask])
        assert imported_names(tmp_path / "set") == ["pore", "oxide"]

    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("labelmap.txt", "# label:color_rgb:parts:actions\nvoid:0,0,0::\noxide:255,0,0::\npore:0,200,50::\n"),
            ("label_colors.txt", "0 0 0 void\n255 0 0\toxide\n0 200 50 pore\n"),
            ("class_dict.csv", "name,r,g,b\nvoid,0,0,0\noxide,255,0,0\npore,0,200,50\n"),
        ],
    )
    def test_legend_files(self, tmp_path: Path, name: str, text: str) -> None:
        mask = self._save(tmp_path / "set")
        (tmp_path / "set" / name).write_text(text)
        found = _import("folder", tmp_path / "set")["a"]
        assert imported_names(tmp_path / "set") == ["background", "void", "oxide", "pore"]
        np.testing.assert_array_equal(found, mask + 1)

    def test_no_legend_but_few_colors(self, tmp_path: Path) -> None:
        mask = self._save(tmp_path / "set")
        found = _import("folder", tmp_path / "set")["a"]
        assert imported_names(tmp_path / "set") == ["background", "#00c832", "#ff0000"]
        np.testing.assert_array_equal(found, np.array([0, 2, 1])[mask])
        white = np.array([(250, 250, 250), (255, 0, 0), (0, 200, 50)], np.uint8)
        mask = self._save(tmp_path / "white", colors=white)
        assert np.bincount(mask.ravel()).argmax() == 0
        np.testing.assert_array_equal(_import("folder", tmp_path / "white")["a"], np.array([0, 2, 1])[mask])

    def test_colors_painted_over_a_copy_of_the_image(self, tmp_path: Path) -> None:
        root = tmp_path / "set"
        mask = self._save(root)
        image = np.asarray(Image.open(root / "images" / "a.png"))
        painted = np.where((mask > 0)[..., None], _COLORS[mask], image[..., None])
        Image.fromarray(painted).save(root / "masks" / "a.png")
        with pytest.raises(InputError, match="masks with more than 32 colors need --colors"):
            _import("folder", root)
        np.testing.assert_array_equal(_import("folder", root, colors=_LEGEND)["a"], mask)
        # A painted JPEG needs a tolerance; without it, the error has the color.
        Image.fromarray(painted).save(root / "masks" / "a.jpg", quality=98, subsampling=0)
        (root / "masks" / "a.png").unlink()
        lossy = tmp_path / "lossy"
        root.rename(lossy)
        with pytest.raises(InputError, match=r"a\.jpg: color .* --color-tolerance"):
            _import("folder", lossy, colors=_LEGEND)
        np.testing.assert_array_equal(_import("folder", lossy, colors=_LEGEND, color_tolerance=20)["a"], mask)

    def test_the_options_of_the_command(self, tmp_path: Path) -> None:
        self._save(tmp_path / "set")
        run = ["data", "import", "folder", str(tmp_path / "set"), str(tmp_path / "out"), "--split", "1,0,0"]
        done = CliRunner().invoke(app, [*run, "--colors", "0,0,0=background, #ff0000=oxide,0,200,50=large pore"])
        assert done.exit_code == 0, done.output
        assert load_dataset_info(tmp_path / "out").class_names == ["background", "oxide", "large pore"]
        broken = CliRunner().invoke(app, [*run, "--colors", "255,0=oxide"])
        assert broken.exit_code == 2
        assert "--colors '255,0=oxide' must be like 255,0,0=oxide" in broken.output

    def test_invalid_legends(self) -> None:
        assert parse_colors("") == ()
        assert parse_colors("1,2,3=a b,#0A0b0C=c") == (((1, 2, 3), "a b"), ((10, 11, 12), "c"))
        for text in ("1,2,3", "1,2,300=a", "1,2,3=", "#12345=a", "=a", "1,2,3=a;4,5,6=b"):
            with pytest.raises(InputError):
                parse_colors(text)


class TestMasksWithoutTheDataBar:
    def _save(self, root: Path, height: int) -> tuple[np.ndarray, np.ndarray]:
        """Saves a micrograph of 484 rows with a bar below row 400, and a mask without the bar."""
        image = np.asarray(Image.open(BUNDLED / "uhcs" / "train" / "images" / "uhcs0007.png")).copy()
        image[400:] = 20
        image[400:, ::5] = np.arange(0, 250, 250 / len(image[0, ::5]), np.uint8)[: len(image[0, ::5])]
        mask = random_mask(1, (height, image.shape[1]), smooth=5.0)
        (root / "images").mkdir(parents=True)
        Image.fromarray(image).save(root / "images" / "a.png")
        save_indices(root / "masks" / "a.png", mask)
        return image, mask

    def test_image_is_cropped_and_the_command_reports_it(self, tmp_path: Path) -> None:
        image, mask = self._save(tmp_path / "set", 400)
        run = ["data", "import", "folder", str(tmp_path / "set"), str(tmp_path / "out"), "--split", "1,0,0"]
        done = CliRunner().invoke(app, run)
        assert done.exit_code == 0, done.output
        assert "cropped 1 images at the bottom to the height of their masks" in done.output
        pair = list_pairs(tmp_path / "out", "train")[0]
        found, labels = load_pair(pair, load_dataset_info(tmp_path / "out"))
        np.testing.assert_array_equal(found, image[: len(found)])
        np.testing.assert_array_equal(labels, mask[: len(found)])
        row = load_metadata(tmp_path / "out")["train/images/a.png"]
        assert (row["mask_height"], row["data_bar_height"]) == (400, len(image) - len(found))

    def test_mask_decides_if_no_bar_is_detected(self, tmp_path: Path) -> None:
        image, mask = self._save(tmp_path / "set", 400)
        image = np.random.default_rng(0).integers(0, 255, image.shape, np.uint8)
        Image.fromarray(image).save(tmp_path / "set" / "images" / "a.png")
        np.testing.assert_array_equal(_import("folder", tmp_path / "set")["a"], mask)
        found = np.asarray(Image.open(tmp_path / "set-out" / "train" / "images" / "a.png"))
        np.testing.assert_array_equal(found, image[:400])

    @pytest.mark.parametrize(("bar", "fits"), [(84, True), (80, False), ("none", False)])
    def test_given_bar_must_match_the_missing_rows(self, tmp_path: Path, bar: Any, fits: bool) -> None:
        _, mask = self._save(tmp_path / "set", 400)
        assert len(np.asarray(Image.open(tmp_path / "set" / "images" / "a.png"))) == 484
        if fits:
            np.testing.assert_array_equal(_import("folder", tmp_path / "set", ImageOptions(data_bar=bar))["a"], mask)
            return
        with pytest.raises(InputError, match=r"but its mask .* is \d+x400"):
            _import("folder", tmp_path / "set", ImageOptions(data_bar=bar))

    def test_more_rows_than_a_bar_are_an_error(self, tmp_path: Path) -> None:
        self._save(tmp_path / "set", 300)
        with pytest.raises(InputError, match=r"but its mask .* is \d+x300"):
            _import("folder", tmp_path / "set")
