"""Importers of annotation tools, tested with files of independent writers and examples of the documentation."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import roifile
import shapely
from shapely.geometry import mapping

from steelgen.data.folder import list_splits, load_dataset_info
from steelgen.data.importing import WriteOptions
from steelgen.data.instances import load_instance_ids
from steelgen.data.runlength import decode_brush
from steelgen.errors import InputError
from tests.data.samples import encode_counts, import_masks, imported_names, random_mask, save_indices, save_noise

# An 8x6 image encoded by label-studio-converter 0.0.59 (brush.mask2rle): a frame around two pixels, and one pixel.
_BRUSH = [0, 0, 0, 192, 57, 27, 254, 39, 0, 194, 127, 246, 192, 35, 255, 156, 2, 127, 251, 96, 24, 79, 255, 17, 128, 71,
          255, 134, 192, 0]  # fmt: skip
_BRUSHED = np.array(
    [
        [0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 1, 1, 1, 0],
        [0, 0, 1, 0, 0, 1, 1, 0],
        [0, 0, 1, 1, 1, 1, 1, 0],
        [0, 0, 0, 0, 0, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 0, 0],
    ],
    bool,
)


class TestRoi:
    def _roi(self, points: list[tuple[float, float]], name: str, group: int = 0) -> roifile.ImagejRoi:
        roi = roifile.ImagejRoi.frompoints(np.array(points), name=name)
        roi.group = group
        return roi

    def _save_zip(self, path: Path, rois: list[roifile.ImagejRoi]) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        for number, roi in enumerate(rois):
            roi.tofile(path, name=f"{number}.roi")

    def test_names_and_groups_of_integer_and_subpixel_polygons(self, tmp_path: Path) -> None:
        root = tmp_path / "set"
        save_noise(root / "a.tif")
        rois = [
            self._roi([(2, 2), (12, 2), (12, 7), (2, 7)], "pore-0001", 2),
            self._roi([(20.5, 10.0), (30.5, 10.0), (30.5, 20.0), (20.5, 20.0)], "crack", 1),
            self._roi([(35, 2), (40, 2), (40, 4), (35, 4)], "pore", 2),
            self._roi([(0, 30), (5, 30), (5, 35), (0, 35)], "ignore-2", 3),
        ]
        self._save_zip(root / "a_RoiSet.zip", rois)
        mask = import_masks("roi", root)["a"]
        assert imported_names(root) == ["background", "crack", "pore"]
        assert (mask[2:7, 2:12] == 2).all()
        assert np.bincount(mask.ravel())[[1, 2, 255]].tolist() == [100, 60, 25]
        root = root.rename(tmp_path / "again")
        by_group = import_masks("roi", root, class_by="group", class_names=("crack", "pore", "scratch"))["a"]
        assert imported_names(root) == ["background", "crack", "pore", "scratch"]
        assert np.bincount(by_group.ravel())[1:].tolist() == [100, 60, 25]

    def test_ovals_rectangles_composites_and_lines(self, tmp_path: Path) -> None:
        root = tmp_path / "set"
        save_noise(root / "a.png")
        oval, rectangle, ring, line = (roifile.ImagejRoi() for _ in range(4))
        oval.roitype, oval.left, oval.top, oval.right, oval.bottom = roifile.ROI_TYPE.OVAL, 2, 2, 22, 14
        rectangle.roitype, rectangle.left, rectangle.right = roifile.ROI_TYPE.RECT, 30, 35
        rectangle.top, rectangle.bottom = 3, 10
        # The rings of a composite may have any direction: this one has a hole with an island in it.
        path: list[float] = []
        for low, high in ((20, 36), (23, 33), (26, 30)):
            for number, (x, y) in enumerate(((low, low), (high, low), (high, high), (low, high))):
                path += [min(number, 1), x, y]
            path.append(4)
        ring.roitype, ring.shape_roi_size = roifile.ROI_TYPE.RECT, len(path)
        ring.multi_coordinates = np.array(path, np.float32)
        line.roitype, line.x2 = roifile.ROI_TYPE.LINE, 30.0
        for name, roi in {"oval": oval, "rectangle": rectangle, "ring": ring, "line": line}.items():
            roi.name = name
        self._save_zip(root / "a.zip", [oval, rectangle, ring, line])
        mask = import_masks("roi", root)["a"]
        areas = dict(zip(imported_names(root), np.bincount(mask.ravel()), strict=False))
        assert areas["oval"] == pytest.approx(math.pi * 10 * 6, abs=0.6)
        assert areas["rectangle"] == 35
        assert areas["ring"] == 16**2 - 10**2 + 4**2
        assert mask[28, 28] == mask[21, 21] == imported_names(root).index("ring")
        assert mask[24, 24] == 0

    def test_single_files_in_a_folder_of_the_images_name(self, tmp_path: Path) -> None:
        root = tmp_path / "set"
        for number, name in enumerate(("a", "b")):
            save_noise(root / f"{name}.tif", seed=number)
            (root / name).mkdir()
            # ImageJ's default name is not a class.
            self._roi([(0, 0), (5, 0), (5, 5), (0, 5 + number)], "0003-0012").tofile(root / name / "0003-0012.roi")
        masks = import_masks("roi", root)
        assert imported_names(root) == ["background", "roi"]
        assert [int(masks[name].sum()) for name in "ab"] == [25, 28]

    @pytest.mark.parametrize(
        ("names", "message"),
        [
            (["../../evil.roi"], "is outside the archive"),
            (["/etc/evil.roi"], "is outside the archive"),
            (["C:\\evil.roi"], "is outside the archive"),
            (["a.roi", "a.exe"], "'a.exe' is not an ROI"),
        ],
    )
    def test_archives_with_other_files(self, tmp_path: Path, names: list[str], message: str) -> None:
        root = tmp_path / "set"
        save_noise(root / "a.png")
        data = self._roi([(0, 0), (5, 0), (5, 5)], "x").tobytes()
        with zipfile.ZipFile(root / "a.zip", "w") as archive:
            for name in names:
                archive.writestr(name, data)
        with pytest.raises(InputError, match=message):
            import_masks("roi", root)
        assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.png", "a.zip", "set"]

    def test_bombs_are_rejected_unopened(self, tmp_path: Path) -> None:
        root = tmp_path / "set"
        save_noise(root / "a.png")
        with (
            zipfile.ZipFile(root / "a.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
            archive.open("a.roi", "w") as file,
        ):
            for _ in range(600):
                file.write(b"\0" * 1_000_000)
        assert (root / "a.zip").stat().st_size < 1_000_000
        with pytest.raises(InputError, match=r"has 1 files of 600,000,000 bytes; the limits are"):
            import_masks("roi", root)
        # The archive's directory states a size that is too small.
        small = bytearray((root / "a.zip").read_bytes())
        place = small.rindex(b"PK\1\2")
        small[place + 24 : place + 28] = (1000).to_bytes(4, "little")
        (root / "a.zip").write_bytes(small)
        with pytest.raises(InputError, match=r"larger than the archive states|not a readable zip|not a readable ROI"):
            import_masks("roi", root)

    def test_bad_sets(self, tmp_path: Path) -> None:
        root = tmp_path / "set"
        save_noise(root / "a.png")
        (root / "a.roi").write_bytes(b"Iout but no more")
        with pytest.raises(InputError, match=r"a\.roi: not a readable ROI: "):
            import_masks("roi", root)
        slices = [self._roi([(0, 0), (5, 0), (5, 5)], f"x-{number}") for number in (1, 2)]
        slices[0].position, slices[1].position = 1, 2
        (root / "a.roi").unlink()
        self._save_zip(root / "a.zip", slices)
        with pytest.raises(InputError, match=r"must be on one slice, got \[1, 2\]"):
            import_masks("roi", root)
        with pytest.raises(InputError, match="has no group"):
            import_masks("roi", root, class_by="group")
        (root / "a.png").unlink()
        with pytest.raises(InputError, match="no image 'a'"):
            import_masks("roi", root)


class TestCvat:
    # After https://docs.cvat.ai/docs/manual/advanced/xml_format/, "Annotation", with a task's labels in its meta.
    _EXAMPLE = """<?xml version="1.0" encoding="utf-8"?>
<annotations>
  <version>1.1</version>
  <meta><task><name>steel</name><mode>annotation</mode><labels>
    <label><name>pore</name><color>#c06060</color><attributes></attributes></label>
    <label><name>crack</name><attributes></attributes></label>
    <label><name>ignore</name><attributes></attributes></label>
  </labels></task></meta>
  <image id="0" name="train/a.png" subset="Train" width="50" height="40">
    <polygon label="crack" source="manual" points="20.00,0.00;30.00,0.00;30.00,10.00;20.00,10.00" z_order="1">
    </polygon>
    <box label="pore" source="manual" occluded="0" xtl="25.00" ytl="5.00" xbr="35.00" ybr="15.00" z_order="0"></box>
    <ellipse label="pore" source="manual" occluded="0" cx="10.00" cy="30.00" rx="8.00" ry="4.00" z_order="0"></ellipse>
    <mask label="pore" source="manual" rle="1, 3, 2, 1, 2" left="1" top="2" width="3" height="3" z_order="0">
    </mask>
    <box label="ignore" rotation="90.00" xtl="38.00" ytl="30.00" xbr="48.00" ybr="34.00" z_order="0"/>
    <points label="pore" source="manual" occluded="0" points="1.00,1.00" z_order="0"></points>
    <tag label="crack" source="manual"></tag>
  </image>
  <image id="1" name="b.png" subset="Validation" width="50" height="40"></image>
</annotations>
"""

    def _save(self, root: Path, text: str) -> Path:
        save_noise(root / "images" / "train" / "a.png")
        save_noise(root / "images" / "b.png", seed=1)
        (root / "annotations.xml").write_text(text)
        return root

    def test_the_documentations_example(self, tmp_path: Path) -> None:
        root = self._save(tmp_path / "set", self._EXAMPLE)
        masks = import_masks("cvat", root, write=None)
        assert imported_names(root) == ["background", "pore", "crack"]
        assert list_splits(tmp_path / "set-out") == ["train", "val"]
        assert not masks["b"].any()
        mask = masks["a"]
        assert (mask[0:10, 20:30] == 2).all()  # on top because of its z_order
        assert (mask == 2).sum() == 100
        assert (mask[5:15, 25:35] == 1).sum() == 75
        assert mask[2:5, 1:4].tolist() == [[0, 1, 1], [1, 0, 0], [1, 0, 0]]
        assert (mask[20:] == 1).sum() == pytest.approx(math.pi * 8 * 4, abs=0.6)
        assert (mask[27:37, 41:45] == 255).all()  # rotated by 90 degrees around its center
        assert (mask == 255).sum() == 40

    @pytest.mark.parametrize(
        ("old", "new", "message"),
        [
            ("<annotations>", "<nonsense>", "not readable XML"),
            ("20.00,0.00;30.00", "20.00,0.00;wide", "not a point"),
            ('cx="10.00"', 'cx="nan"', "finite number"),
            ('left="1"', 'left="49"', "exceeds the image of 50x40"),
            ('rle="1, 3, 2, 1, 2"', 'rle="1, 3, 2, 1, 99999999"', "do not fill a box of 3x3"),
            ('rle="1, 3, 2, 1, 2"', 'rle="1, -3"', "do not fill a box of 3x3"),
            pytest.param('rle="1, 3, 2, 1, 2"', f'rle="{"9" * 5000}"', "is not an integer", id="digits"),
            ('width="50" height="40"', 'width="50" height="four"', "height is 'four'"),
            ('width="50" height="40"', 'width="900000" height="900000"', "at most 400,000,000 pixels"),
            ('name="train/a.png"', 'name="z.png"', "no image 'z.png'"),
            ("<box label=", "<cube label=", "not readable XML"),
            (
                'label="crack" source="manual" points',
                'label="" points',
                "a polygon of 'train/a.png' has no label",
            ),
        ],
    )
    def test_bad_files(self, tmp_path: Path, old: str, new: str, message: str) -> None:
        root = self._save(tmp_path / "set", self._EXAMPLE.replace(old, new))
        with pytest.raises(InputError, match=message):
            import_masks("cvat", root)

    def test_document_types_are_rejected(self, tmp_path: Path) -> None:
        entities = "".join(f'<!ENTITY l{n} "{f"&l{n - 1};" * 10}">' for n in range(1, 12))
        bomb = f'<!DOCTYPE annotations [<!ENTITY l0 "lol">{entities}]>'
        for doctype in (bomb, '<!DOCTYPE annotations SYSTEM "file:///etc/passwd">'):
            text = self._EXAMPLE.replace("<annotations>", f"{doctype}<annotations>").replace(">steel<", ">&l11;<")
            with pytest.raises(InputError, match=r"^\S+annotations\.xml: declares a document type"):
                import_masks("cvat", self._save(tmp_path / "set", text))

    def test_video_tracks_are_rejected(self, tmp_path: Path) -> None:
        root = self._save(tmp_path / "set", "<annotations><track id='0' label='pore'></track></annotations>")
        with pytest.raises(InputError, match="CVAT for video"):
            import_masks("cvat", root)

    def test_its_coco_has_masks_as_crowds(self, tmp_path: Path) -> None:
        # https://docs.cvat.ai/docs/manual/advanced/formats/format-coco/: images/default/ beside
        # annotations/instances_default.json, masks as uncompressed run lengths with iscrowd 1.
        root = tmp_path / "set"
        save_noise(root / "images" / "default" / "a.png")
        mask = random_mask(3, smooth=2.0)
        annotations = [
            {"id": index, "image_id": 1, "category_id": index, "iscrowd": 1, "bbox": [0, 0, 50, 40], "area": 1.0,
             "segmentation": {"counts": encode_counts(mask == index), "size": [40, 50]},
             "attributes": {"occluded": False}}
            for index in (1, 2)
        ]  # fmt: skip
        document = {
            "licenses": [{"name": "", "id": 0, "url": ""}],
            "info": {"contributor": "", "date_created": ""},
            "categories": [{"id": index, "name": name, "supercategory": ""} for index, name in ((1, "b"), (2, "a"))],
            "images": [{"id": 1, "width": 50, "height": 40, "file_name": "a.png", "license": 0, "coco_url": ""}],
            "annotations": annotations,
        }
        (root / "annotations").mkdir()
        (root / "annotations" / "instances_default.json").write_text(json.dumps(document))
        np.testing.assert_array_equal(import_masks("coco", root)["a"], mask)
        assert imported_names(root) == ["background", "b", "a"]

    def test_its_segmentation_masks_are_voc_in_colors(self, tmp_path: Path) -> None:
        # https://docs.cvat.ai/docs/manual/advanced/formats/format-smask/
        root = tmp_path / "set"
        save_noise(root / "JPEGImages" / "a.jpg")
        mask = random_mask(3, smooth=2.0)
        colors = np.array([(0, 0, 0), (10, 10, 128), (10, 128, 10)], np.uint8)
        (root / "SegmentationObject").mkdir()
        save_indices(root / "SegmentationClass" / "a.png", colors[mask])
        save_indices(root / "SegmentationObject" / "a.png", colors[mask])
        (root / "ImageSets" / "Segmentation").mkdir(parents=True)
        (root / "ImageSets" / "Segmentation" / "default.txt").write_text("a\n")
        (root / "labelmap.txt").write_text(
            "# label:color_rgb:parts:actions\nbackground:0,0,0::\npore:10,10,128::\ncrack:10,128,10::\n"
        )
        np.testing.assert_array_equal(import_masks("voc", root)["a"], mask)
        assert load_dataset_info(tmp_path / "set-out").palette == [tuple(color) for color in colors.tolist()]
        root = root.rename(tmp_path / "broken")
        (root / "labelmap.txt").write_text("background:0,0,0::\npore:10,10,300::\n")
        with pytest.raises(InputError, match=r"labelmap\.txt: '10,10,300' is not a color"):
            import_masks("voc", root)


class TestYolo:
    # After https://docs.ultralytics.com/datasets/segment/, "Ultralytics YOLO format".
    _YAML = "path: ../datasets/steel\ntrain: images/train\nval: images/val\ntest:\nnames:\n  0: pore\n  1: crack\n"

    def _save(self, root: Path, labels: str = "", yaml: str = _YAML) -> Path:
        for number, split in enumerate(("train", "val")):
            save_noise(root / "images" / split / f"{split}.png", seed=number)
            (root / "labels" / split).mkdir(parents=True, exist_ok=True)
        (root / "labels" / "train" / "train.txt").write_text(labels)
        (root / "data.yaml").write_text(yaml)
        return root

    def test_the_documentations_example(self, tmp_path: Path) -> None:
        labels = "1 0.2 0.25 0.4 0.25 0.4 0.5 0.2 0.5\n\n0 0.0 0.0 0.1 0.0 0.1 0.1\n"
        root = self._save(tmp_path / "set", labels)
        masks = import_masks("yolo", root, write=None)
        assert imported_names(root) == ["background", "pore", "crack"]
        assert (masks["train"][10:20, 10:20] == 2).all()
        assert np.bincount(masks["train"].ravel())[1:].tolist() == [10, 100]
        assert not masks["val"].any()
        assert list_splits(tmp_path / "set-out") == ["train", "val"]

    def test_other_layouts(self, tmp_path: Path) -> None:
        labels = "0 0 0 1 0 1 1 0 1\n"
        roboflow = self._save(tmp_path / "roboflow", labels, "train: ../images/train\nnames: [pore]\nnc: 1\n")
        assert (import_masks("yolo", roboflow)["train"] == 1).all()
        cvat = self._save(tmp_path / "cvat", labels, "path: .\ntrain: train.txt\nnames: {0: pore}\n")
        (cvat / "train.txt").write_text("data/images/train/train.png\n")
        assert (import_masks("yolo", cvat / "data.yaml")["train"] == 1).all()
        label_studio = self._save(tmp_path / "studio", labels)
        (label_studio / "data.yaml").unlink()
        (label_studio / "classes.txt").write_text("pore\n")
        assert set(import_masks("yolo", label_studio)) == {"train", "val"}

    @pytest.mark.parametrize(
        ("labels", "yaml", "message"),
        [
            ("0 0.1 0.1 0.2 0.2\n", _YAML, r"train\.txt:1: is a box"),
            ("2 0 0 1 0 1 1\n", _YAML, r"train\.txt:1: class '2' must be from 0 to 1"),
            ("\n0 0 0 1 0 1\n", _YAML, r"train\.txt:2: must be a class and pairs"),
            ("0 0 0 1 0 1 50\n", _YAML, "relative to the image size"),
            ("0 0 0 1 0 1 nan\n", _YAML, "relative to the image size"),
            pytest.param("9" * 5000 + " 0 0 1 0 1 1\n", _YAML, "must be from 0 to 1", id="digits"),
            ("0 0 0 1 0 1 x\n", _YAML, r"train\.txt:1: could not convert string to float: 'x'"),
            ("", "train: images/train\nnames: {1: pore}", "names must be a list of names or a mapping from 0"),
            ("", "train: images/none\nnames: [pore]", "no 'images/none' below"),
            ("", "train: ../../..\nnames: [pore]", r"no '\.\./\.\./\.\.' below"),
            ("", "train: [3]\nnames: [pore]", "3 must be a folder"),
            ("", "a: [", "not valid YAML"),
            ("", "!!python/object/apply:os.system ['touch pwned']", "not valid YAML"),
            ("", "names: [pore, pore]", "'pore' twice"),
        ],
    )
    def test_bad_files(self, tmp_path: Path, labels: str, yaml: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            import_masks("yolo", self._save(tmp_path / "set", labels, yaml))


class TestVia:
    # After the user guide of version 2, https://www.robots.ox.ac.uk/~vgg/software/via/docs/user_guide.html, and the
    # files that via-2.0.12 saves.
    _REGIONS = [
        ({"name": "polygon", "all_points_x": [10, 20, 20, 10], "all_points_y": [5, 5, 15, 15]}, "pore"),
        ({"name": "rect", "x": 30, "y": 2, "width": 6, "height": 4}, "crack"),
        ({"name": "circle", "cx": 10, "cy": 30, "r": 5}, "pore"),
        ({"name": "ellipse", "cx": 35, "cy": 25, "rx": 8, "ry": 3, "theta": 1.5708}, "crack"),
        ({"name": "point", "cx": 3, "cy": 3}, "pore"),
    ]

    def _entry(self, regions: Any) -> dict[str, Any]:
        return {"filename": "a.png", "size": 2161, "regions": regions, "file_attributes": {"caption": ""}}

    def _check(self, root: Path, masks: dict[str, np.ndarray]) -> None:
        assert imported_names(root) == ["background", "crack", "pore"]
        areas = np.bincount(masks["a"].ravel())
        assert areas[1] == pytest.approx(24 + math.pi * 24, abs=0.6)
        assert areas[2] == pytest.approx(100 + math.pi * 25, abs=0.6)
        assert (masks["a"][20:30, 35] == 1).all()  # the ellipse is rotated
        assert not masks["b"].any()

    def _save(self, root: Path, document: Any) -> Path:
        for number, name in enumerate(("a.png", "b.png")):
            save_noise(root / name, seed=number)
        (root / "via_project.json").write_text(json.dumps(document))
        return root

    @pytest.mark.parametrize("version", [1, 2])
    @pytest.mark.parametrize("project", [False, True])
    def test_json(self, tmp_path: Path, version: int, project: bool) -> None:
        regions: Any = [
            {"shape_attributes": shape, "region_attributes": {"phase": name if version == 1 else {name: True}}}
            for shape, name in self._REGIONS
        ]
        if version == 1:
            regions = {str(number): region for number, region in enumerate(regions)}
        entries = {"a.png2161": self._entry(regions), "b.png9": {**self._entry([]), "filename": "b.png"}}
        document = {"_via_settings": {}, "_via_img_metadata": entries, "_via_attributes": {}} if project else entries
        root = self._save(tmp_path / "set", document)
        self._check(root, import_masks("via", root))

    @pytest.mark.parametrize("version", [1, 2])
    def test_csv(self, tmp_path: Path, version: int) -> None:
        root = tmp_path / "set"
        for number, name in enumerate(("a.png", "b.png")):
            save_noise(root / name, seed=number)
        header = ["filename", "file_size", "file_attributes", "region_count", "region_id", "region_shape_attributes",
                  "region_attributes"]  # fmt: skip
        header[0] = ("#" if version == 1 else "") + header[0]
        with open(root / "via_export.csv", "w", newline="") as file:
            table = csv.writer(file)
            table.writerow(header)
            for number, (shape, name) in enumerate(self._REGIONS):
                table.writerow(["a.png", 2161, "{}", 5, number, json.dumps(shape), json.dumps({"phase": name})])
            table.writerow(["b.png", 9, "{}", 0, 0, "{}", "{}"])
        self._check(root, import_masks("via", root))

    @pytest.mark.parametrize(
        ("regions", "message"),
        [
            ({"0": 3}, "region 1 of 'a.png': has no shape_attributes"),
            ([{"shape_attributes": {"name": "star"}, "region_attributes": {"k": "x"}}], "unknown shape 'star'"),
            ([{"shape_attributes": {"name": "rect", "x": "1"}, "region_attributes": {"k": "x"}}], "finite number"),
            ([{"shape_attributes": {"name": "circle", "cx": 1, "cy": 1, "r": -1}, "region_attributes": {"k": "x"}}],
             "a radius is negative"),
            ([{"shape_attributes": {"name": "polygon", "all_points_x": [1], "all_points_y": [1, 2]},
               "region_attributes": {"k": "x"}}], "lists of one length"),
            ([{"shape_attributes": {}, "region_attributes": {"k": {"x": True, "y": True}}}], "k must be a class name"),
            ([{"shape_attributes": {}, "region_attributes": {"k": "x", "l": "y"}}], "choose one with --attribute"),
        ],
    )  # fmt: skip
    def test_bad_regions(self, tmp_path: Path, regions: Any, message: str) -> None:
        with pytest.raises(InputError, match=message):
            import_masks("via", self._save(tmp_path / "set", {"a.png2161": self._entry(regions)}))


class TestGeoJson:
    def test_polygons_with_holes_as_shapely_writes_them(self, tmp_path: Path) -> None:
        root = tmp_path / "set"
        save_noise(root / "images" / "a.ome.tif")
        ring = shapely.box(2, 2, 22, 22).difference(shapely.box(6, 6, 12, 12))
        parts = shapely.MultiPolygon([shapely.box(30, 2, 34, 6), shapely.box(36, 2, 40, 6)])
        features = [
            # https://qupath.readthedocs.io/en/stable/docs/advanced/exporting_annotations.html
            {"type": "Feature", "id": "PathAnnotationObject", "geometry": mapping(ring),
             "properties": {"objectType": "annotation", "classification": {"name": "Pore", "color": [200, 0, 0]}}},
            {"type": "Feature", "geometry": mapping(parts), "properties": {"classification": {"name": "Crack"}}},
            {"type": "Feature", "geometry": mapping(shapely.box(40, 30, 50, 40)),
             "properties": {"classification": {"name": "Ignore*"}}},
            {"type": "Feature", "geometry": mapping(shapely.Point(1, 1)), "properties": {}},
        ]  # fmt: skip
        (root / "a.ome.tif.geojson").write_text(json.dumps({"type": "FeatureCollection", "features": features}))
        mask = import_masks("geojson", root)["a"]
        assert imported_names(root)[:3] == ["background", "Crack", "Pore"]
        areas = np.bincount(mask.ravel())
        assert areas[[1, 2, 255]].tolist() == [32, 400 - 36, 100]
        assert not mask[6:12, 6:12].any()
        # QuPath also writes a bare list.
        (root / "a.ome.tif.geojson").write_text(json.dumps(features[:2]))
        assert (_import_again("geojson", root)["a"] == 2).sum() == 364

    @pytest.mark.parametrize(
        ("feature", "message"),
        [
            ({"type": "Feature", "geometry": {"type": "Curve"}}, "feature 1: geometry type 'Curve' is not supported"),
            ({"type": "Feature", "geometry": None}, "geometry type None is not supported"),
            ({"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[0, 0], [1, 1]]]}}, "three points"),
            ({"type": "Feature", "geometry": {"type": "Polygon", "coordinates": "here"}}, "not a list of rings"),
            ({"type": "Feature", "geometry": {"type": "MultiPolygon", "coordinates": 4}}, "must be a list, got 4"),
            ({"type": "Feature", "properties": {"classification": 4}}, "the class of a feature must be text, got 4"),
            ({"type": "Thing"}, "must contain features only"),
        ],
    )
    def test_bad_files(self, tmp_path: Path, feature: Any, message: str) -> None:
        save_noise(tmp_path / "set" / "a.png")
        (tmp_path / "set" / "a.geojson").write_text(json.dumps([feature]))
        with pytest.raises(InputError, match=message):
            import_masks("geojson", tmp_path / "set")


class TestLabelStudio:
    def _result(self, kind: str, value: dict[str, Any], label: str = "pore") -> dict[str, Any]:
        # https://labelstud.io/guide/export#Label-Studio-JSON-format-of-annotated-tasks and the tags' own pages.
        size = {"original_width": 8, "original_height": 6, "image_rotation": 0}
        return {"id": "x1", "type": kind, **size, "value": {**value, kind: [label]}}

    def _save(
        self, root: Path, *annotations: list[dict[str, Any]], name: str = "/data/upload/3/0a1b2c3d-a.png"
    ) -> Path:
        save_noise(root / "images" / "a.png", 6, 8)
        rows = [
            {
                "id": number,
                "completed_by": {"id": number, "email": f"{number}@lab"},
                "was_cancelled": False,
                "result": each,
            }
            for number, each in enumerate(annotations)
        ]
        tasks = [
            {"id": 7, "data": {"image": name, "steel": "X5"}, "annotations": rows},
            {"id": 8, "data": {"image": "/data/local-files/?d=other/b.png"}, "annotations": []},
        ]
        (root / "project.json").write_text(json.dumps(tasks))
        return root

    def test_brushes_polygons_boxes_and_ellipses(self, tmp_path: Path) -> None:
        brush = self._result("brushlabels", {"format": "rle", "rle": _BRUSH})
        np.testing.assert_array_equal(import_masks("label-studio", self._save(tmp_path / "a", [brush]))["a"], _BRUSHED)
        polygon = self._result("polygonlabels", {"points": [[0, 0], [50, 0], [50, 50], [0, 50]], "closed": True})
        mask = import_masks("label-studio", self._save(tmp_path / "b", [polygon]))["a"]
        assert (mask[:3, :4] == 1).all()
        assert mask.sum() == 12
        # Rotated by 90 degrees around its top left corner, (4, 1), it covers columns 2 and 3.
        box = self._result(
            "rectanglelabels", {"x": 50, "y": 100 / 6, "width": 37.5, "height": 100 / 3, "rotation": 90}, "crack"
        )
        mask = import_masks("label-studio", self._save(tmp_path / "c", [box], name="/data/local-files/?d=x/a.png"))["a"]
        assert np.argwhere(mask).tolist() == [[row, column] for row in (1, 2, 3) for column in (2, 3)]
        ellipse = self._result("ellipselabels", {"x": 50, "y": 50, "radiusX": 25, "radiusY": 100 / 3, "rotation": 0})
        choice = {"type": "choices", "value": {"choices": ["good"]}}
        mask = import_masks("label-studio", self._save(tmp_path / "d", [ellipse, choice], name="s3://b/a.png?X=1"))["a"]
        assert mask.sum() == round(math.pi * 4)

    def test_several_people_are_annotators(self, tmp_path: Path) -> None:
        squares = [
            [self._result("polygonlabels", {"points": [[x, 0], [x + 50, 0], [x + 50, 50], [x, 50]]})] for x in (0, 25)
        ]
        write = WriteOptions(fractions={"train": 1.0}, agreement="intersection")
        assert import_masks("label-studio", self._save(tmp_path / "set", *squares), write)["a"].sum() == 6

    def test_invalid_brushes(self) -> None:
        data = bytes(_BRUSH)
        np.testing.assert_array_equal(decode_brush(data, 192).reshape(6, 8, 4)[..., 3] > 0, _BRUSHED)
        with pytest.raises(InputError, match="192 values, expected 4"):
            decode_brush(data, 4)
        with pytest.raises(InputError, match="truncated after 12 bytes"):
            decode_brush(data[:12], 192)
        with pytest.raises(InputError, match="reach value"):
            decode_brush(bytes([0, 0, 0, 4, 63, 255, 255, 255, 255, 255]), 4)
        rng = np.random.default_rng(0)
        for _ in range(300):
            broken = data[:7] + bytes(rng.integers(0, 256, 30, np.uint8))
            with contextlib.suppress(InputError):
                assert decode_brush(broken, 192).shape == (192,)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"value": {"rle": [300], "brushlabels": ["a"]}}, "must be a list of bytes"),
            (
                {"value": {"rle": _BRUSH[:9], "brushlabels": ["a"]}},
                "task 7: result 'x1': brush: run lengths",
            ),
            ({"value": {"rle": _BRUSH, "brushlabels": ["a", "b"]}}, "must have one label"),
            ({"original_width": 9}, "expected 216"),
            ({"original_width": None}, "task 7: original: height 6 and width None must be"),
            ({"value": {"points": [[1, 1], [2, "x"], [1, 2]], "polygonlabels": ["a"]}}, "not a point"),
        ],
    )
    def test_bad_results(self, tmp_path: Path, change: dict[str, Any], message: str) -> None:
        result = {**self._result("brushlabels", {"rle": _BRUSH}), **change}
        with pytest.raises(InputError, match=message):
            import_masks("label-studio", self._save(tmp_path / "set", [result]))

    def test_another_json(self, tmp_path: Path) -> None:
        save_noise(tmp_path / "set" / "a.png")
        (tmp_path / "set" / "a.json").write_text('[{"image": "a.png", "label": []}]')
        with pytest.raises(InputError, match='not as "JSON-MIN"'):
            import_masks("label-studio", tmp_path / "set")


class TestNnUnet:
    def _save(self, root: Path, **changes: Any) -> Path:
        # https://github.com/MIC-DKFZ/nnUNet/blob/master/documentation/dataset_format.md and ignore_label.md
        described = {
            "channel_names": {"0": "gray"},
            "labels": {"background": 0, "pore": 1, "crack": 2, "ignore": 3},
            "numTraining": 2,
            "file_ending": ".png",
        }
        mask = random_mask(1)
        mask[0] = 3
        for number, (end, case) in enumerate((("Tr", "steel_001"), ("Tr", "steel_002"), ("Ts", "steel_003"))):
            save_noise(root / f"images{end}" / f"{case}_0000.png", seed=number)
            save_indices(root / f"labels{end}" / f"{case}.png", mask)
        (root / "dataset.json").write_text(json.dumps({**described, **changes}))
        return root

    def test_the_documentations_layout(self, tmp_path: Path) -> None:
        root = self._save(tmp_path / "Dataset001_Steel")
        (root / "splits_final.json").write_text('[{"train": ["steel_001"], "val": ["steel_002"]}]')
        masks = import_masks("nnunet", root, write=None)
        assert imported_names(root) == ["background", "pore", "crack"]
        assert list_splits(tmp_path / "Dataset001_Steel-out") == ["train", "val", "test"]
        np.testing.assert_array_equal(masks["steel_002"][1:], random_mask(1)[1:])
        assert (masks["steel_002"][0] == 255).all()

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"file_ending": ".nii.gz"}, r"file_ending '\.nii\.gz' must be one of"),
            ({"labels": {"background": 0, "all": [1, 2]}}, r"label 'all' is \[1, 2\]"),
            ({"labels": {"background": 0, "pore": 1, "crack": 1}}, "has the same value 1 as another label"),
            ({"labels": {"background": 0, "pore": 1}}, "value 3 is not one of the 2 classes"),
            ({"labels": []}, "has no labels"),
            ({"dataset": {}}, "in 'dataset' is not supported"),
        ],
    )
    def test_bad_descriptions(self, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            import_masks("nnunet", self._save(tmp_path / "set", **changes))

    def test_cases_without_a_partner(self, tmp_path: Path) -> None:
        root = self._save(tmp_path / "set")
        (root / "imagesTr" / "steel_001_0000.png").rename(root / "imagesTr" / "steel_004_0000.png")
        with pytest.raises(InputError, match=r"steel_001\.png: has 0 images"):
            import_masks("nnunet", root)
        save_noise(root / "imagesTr" / "steel_001_0000.png")
        with pytest.raises(InputError, match=r"steel_004_0000\.png: has no label"):
            import_masks("nnunet", root)


def _import_again(kind: str, root: Path) -> dict[str, np.ndarray]:
    return import_masks(kind, root.rename(root.parent / "again"))


def test_instances_of_shapes(tmp_path: Path) -> None:
    root = tmp_path / "set"
    save_noise(root / "a.png")
    regions = [
        {"shape_attributes": {"name": "rect", "x": x, "y": 2, "width": 6, "height": 4}, "region_attributes": {}}
        for x in (2, 8)
    ]
    (root / "via.json").write_text(json.dumps({"a": {"filename": "a.png", "regions": regions}}))
    assert (import_masks("via", root)["a"] == 1).sum() == 48
    ids = load_instance_ids(tmp_path / "set-out" / "train" / "instances" / "a.png")
    assert np.unique(ids).tolist() == [0, 1, 2]
