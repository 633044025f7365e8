from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from steelgen.data.folder import list_pairs, list_splits, load_dataset_info, load_metadata, load_pair
from steelgen.data.importers.options import ReadOptions
from steelgen.data.importing import WriteOptions, import_dataset
from steelgen.data.instances import load_instance_ids
from steelgen.errors import InputError
from tests.data.samples import (
    ALL_TRAIN,
    BUNDLED,
    coco,
    import_masks,
    save_coco,
    save_indices,
    save_ma,
    save_noise,
    square,
)


class TestMaIslands:
    def test_bundled_sample(self, tmp_path: Path) -> None:
        out = tmp_path / "out"
        info = import_dataset("ma-islands", BUNDLED / "ma_islands", out)
        assert info.class_names == ["background", "ma_island"]
        rows = load_metadata(out)
        assert {row["type"] for row in rows.values()} == {"01", "1", "12", "8"}
        assert all(isinstance(row["temperature"], int) for row in rows.values())
        for split in list_splits(out):
            for pair in list_pairs(out, split):
                image, mask = load_pair(pair, info)
                assert image.shape == (650, 910)
                assert 0 < mask.mean() < 0.1
                assert len(np.unique(load_instance_ids(pair.mask.parent.parent / "instances" / pair.mask.name))) == 13

    def test_image_without_polygons_is_background(self, tmp_path: Path) -> None:
        masks = import_masks("ma-islands", save_ma(tmp_path / "set", ["a.png;(4, 4);[(2, 2), (6, 2), (6, 6), (2, 6)]"]))
        assert masks["a"].sum() == 16
        assert not masks["b"].any()

    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
    @pytest.mark.parametrize("ends", ["\n", "\r\n"])
    def test_header_case_line_ends_and_names(self, tmp_path: Path, ends: str, encoding: str) -> None:
        root = save_ma(tmp_path / "set", [], names=("größe_1.png", "b.png"))
        lines = ["Image_URL;POINT;Polygon", "größe_1.png;(1, 1);[(2, 2), (6.0, 2), (6, 6), (2, 6)]", ""]
        (root / "set_annotations_polygon.csv").write_bytes(ends.join(lines).encode(encoding))
        assert import_masks("ma-islands", root)["größe_1"].sum() == 16

    def test_points_of_interest_and_excluded_images(self, tmp_path: Path) -> None:
        root = save_ma(tmp_path / "set", ["x.png;(4, 4);[(2, 2), (6, 2), (6, 6), (2, 6)]"], folder="TIFF")
        save_noise(root / "excluded_PNG" / "x.png")
        (root / "set_POI.csv").write_text('file;where\na.png;"(3, 4)"\na.png;"(5, 6)"\n')
        (root / "set_annotations_polygon.pickle").write_bytes(b"never opened")
        assert set(import_masks("ma-islands", root, poi_columns=("file", "where"))) == {"a", "b", "c"}
        rows = load_metadata(tmp_path / "set-out")
        assert rows["train/images/a.png"]["points_of_interest"] == [[3, 4], [5, 6]]
        import_dataset(
            "ma-islands",
            root,
            tmp_path / "all",
            ReadOptions(include_excluded=True, poi_columns=("file", "where")),
            ALL_TRAIN,
        )
        assert len(load_metadata(tmp_path / "all")) == 4
        with pytest.raises(InputError, match="--poi-columns"):
            import_dataset("ma-islands", root, tmp_path / "none")

    def test_several_annotators(self, tmp_path: Path) -> None:
        root = save_ma(tmp_path / "set", [])
        polygons = {"A": "[(2, 2), (6, 2), (6, 6), (2, 6)]", "B": "[(4, 2), (8, 2), (8, 6), (4, 6)]"}
        lines = ["image_url;polygon;annotator", *(f"a.png;{polygon};{name}" for name, polygon in polygons.items())]
        (root / "set_annotations_polygon.csv").write_text("\n".join(lines))
        for agreement, area in (("union", 24), ("intersection", 8)):
            write = WriteOptions(fractions={"train": 1.0}, agreement=agreement)  # type: ignore[arg-type]
            import_dataset("ma-islands", root, tmp_path / agreement, write=write)
            mask = load_pair(list_pairs(tmp_path / agreement, "train")[0], load_dataset_info(tmp_path / agreement))[1]
            assert mask.sum() == area

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ("a.png;(1, 1);[(1, 1), (2, 2)]", ":2: a polygon needs three points"),
            ("a.png;(1, 1);[(1, 1), (2, 2), (1e999, 3)]", ":2: not a point"),
            ("a.png;(1, 1);[(1, 1), (2, 2), (float('nan'), 3)]", ":2: not a list of points"),
            ("a.png;(1, 1);__import__('os').system('touch /tmp/pwned')", ":2: not a list of points"),
            ("a.png;(1, 1)", ":2: has 2 fields, but the header has 3"),
            ("z.png;(1, 1);[(1, 1), (2, 2), (3, 9)]", ":2: no image 'z'"),
            ("a.png;(1, 1);" + "[" * 5000, ":2: not a list of points"),
        ],
    )
    def test_bad_rows(self, tmp_path: Path, row: str, message: str) -> None:
        with pytest.raises(InputError, match="polygon.csv" + message.replace("(", r"\(")):
            import_masks("ma-islands", save_ma(tmp_path / "set", [row]))
        assert not (tmp_path / "set-out").exists()

    def test_link_out_of_the_folder(self, tmp_path: Path) -> None:
        root = save_ma(tmp_path / "set", [])
        (root / "PNG" / "secret.png").symlink_to(save_noise(tmp_path / "secret.png"))
        with pytest.raises(InputError, match="is a link to outside of"):
            import_masks("ma-islands", root)

    def test_split_by_type_keeps_types_together(self, tmp_path: Path) -> None:
        root = save_ma(tmp_path / "set", [], names=tuple(f"i{number}.png" for number in range(12)))
        table = "image_url,type\n" + "".join(f"i{number}.png,0{number % 4}\n" for number in range(12))
        (root / "set_metadata.csv").write_text(table)
        import_dataset("ma-islands", root, tmp_path / "out", write=WriteOptions(split_by="type"))
        splits: dict[str, set[str]] = {}
        for name, row in load_metadata(tmp_path / "out").items():
            splits.setdefault(row["type"], set()).add(name.split("/")[0])
        assert all(len(found) == 1 for found in splits.values())
        with pytest.raises(InputError, match="has no 'steel' to split by"):
            import_dataset("ma-islands", root, tmp_path / "other", write=WriteOptions(split_by="steel"))


class TestCoco:
    def test_polygon_runs_crowd_and_categories(self, tmp_path: Path) -> None:
        counts = [0, 3, 40 * 50 - 3]
        document = coco(
            [
                {"segmentation": [square(10, 10, 5), square(20, 10, 5)]},
                {"category_id": 7, "segmentation": {"size": [40, 50], "counts": counts}, "iscrowd": 1},
            ]
        )
        masks = import_masks("coco", save_coco(tmp_path / "set", document))
        assert (masks["a"] == 1).sum() == 50
        assert (masks["a"][:3, 0] == 2).all()
        instances = load_instance_ids(tmp_path / "set-out" / "train" / "instances" / "a.png")
        assert np.unique(instances).tolist() == [0, 1]
        assert load_dataset_info(tmp_path / "set-out").class_names == ["background", "island", "pore"]

    def test_files_become_splits_and_images_are_found_by_base_name(self, tmp_path: Path) -> None:
        root = tmp_path / "set"
        for split in ("train", "validation"):
            save_noise(root / split / "x_0_0_50_40.png", seed=len(split))
            document = coco([{"segmentation": [square(45, 35, 10)]}], (f"./data/{split}/x_0_0_50_40.png",))
            (root / "annotations").mkdir(exist_ok=True)
            (root / "annotations" / f"{split}.json").write_text(json.dumps(document))
        masks = import_masks("coco", root, write=None)
        assert masks["x_0_0_50_40"].sum() == 25
        assert list_splits(tmp_path / "set-out") == ["train", "val"]
        assert {row["parent"] for row in load_metadata(tmp_path / "set-out").values()} == {"x"}

    def test_two_files_are_two_annotators(self, tmp_path: Path) -> None:
        root = save_coco(tmp_path / "set", coco([{"segmentation": [square(0, 0, 10)]}]), "alice.json")
        save_coco(root, coco([{"segmentation": [square(5, 0, 10)]}]), "bob.json")
        masks = import_masks("coco", root, WriteOptions(fractions={"train": 1.0}, agreement="intersection"))
        assert masks["a"].sum() == 50

    @pytest.mark.parametrize(
        ("document", "message"),
        [
            ([], "labels.json: must be a JSON object"),
            (coco([], images=[{"id": 1, "file_name": "a.png"}] * 2), "image id 1 occurs twice"),
            (coco([{"image_id": 9, "segmentation": []}]), "unknown image_id 9"),
            (coco([{"category_id": 9, "segmentation": []}]), "unknown category_id 9"),
            (coco([{"segmentation": [[1, 2, 3]]}]), "not a list of x, y"),
            (coco([{"segmentation": [[1, 2, 3, 4, float("nan"), 6]]}]), "NaN is not a JSON number"),
            (coco([{"segmentation": {"size": [9, 9], "counts": [81]}}]), "run lengths have size"),
            (coco([{"segmentation": {"size": [40, 50], "counts": [1999, 2]}}]), "reach pixel 2001 of 2000"),
            (coco([], images=[{"id": 1, "file_name": "a.png", "height": 4, "width": 4}]), "is 50x40, but"),
            (coco([], images=[{"id": 1, "file_name": "../b.png"}]), "no image '../b.png'"),
        ],
    )
    def test_bad_documents(self, tmp_path: Path, document: Any, message: str) -> None:
        save_noise(tmp_path / "set" / "a.png")
        (tmp_path / "set" / "labels.json").write_text(json.dumps(document))
        with pytest.raises(InputError, match=message):
            import_masks("coco", tmp_path / "set")
        assert not (tmp_path / "set-out").exists()


class TestLabelme:
    def _save(self, root: Path, shapes: list[dict[str, Any]], **changes: Any) -> Path:
        save_noise(root / "a.png")
        content = {"shapes": shapes, "imagePath": "a.png", "imageHeight": 40, "imageWidth": 50, **changes}
        (root / "a.json").write_text(json.dumps(content))
        return root

    def test_every_shape(self, tmp_path: Path) -> None:
        buffer = io.BytesIO()
        Image.fromarray(np.array([[255, 0], [255, 255]], np.uint8)).save(buffer, "PNG")
        shapes = [
            {"label": "a", "points": [[1, 1], [5, 1], [5, 5], [1, 5]], "shape_type": "polygon"},
            {"label": "b", "points": [[10, 10], [14, 13]], "shape_type": "rectangle"},
            {"label": "c", "points": [[30, 20], [36, 20]], "shape_type": "circle"},
            {"label": "d", "points": [[1, 30], [2, 31]], "shape_type": "mask", "mask": _base64(buffer)},
            {"label": "__ignore__", "points": [[40, 0], [45, 5]], "shape_type": "rectangle"},
            {"label": "a", "points": [[3, 3]], "shape_type": "point"},
        ]
        mask = import_masks("labelme", self._save(tmp_path / "set", shapes))["a"]
        assert np.bincount(mask.ravel())[[1, 2, 4, 255]].tolist() == [16, 12, 3, 25]
        assert (mask == 3).sum() == pytest.approx(np.pi * 36, abs=0.6)
        assert mask[30, 1] == 4
        assert mask[30, 2] == 0

    def test_folders_are_annotators(self, tmp_path: Path) -> None:
        save_noise(tmp_path / "set" / "a.png")
        for name, left in (("anna", 0), ("bert", 5)):
            (tmp_path / "set" / name).mkdir()
            shape = {"label": "a", "points": [[left, 0], [left + 10, 10]], "shape_type": "rectangle"}
            content = {"shapes": [shape], "imagePath": "../a.png"}
            (tmp_path / "set" / name / "a.json").write_text(json.dumps(content))
        write = WriteOptions(fractions={"train": 1.0}, agreement="union")
        assert import_masks("labelme", tmp_path / "set", write)["a"].sum() == 150

    @pytest.mark.parametrize(
        ("shape", "message"),
        [
            ({"label": "a", "points": [[1, 1]], "shape_type": "circle"}, "needs two points, got"),
            ({"label": "a", "points": None}, "not a list of points"),
            ({"points": []}, "has no label"),
            ({"label": "z", "points": []}, "is not in --class-names"),
            ({"label": "a", "points": [[1, 1], [2, 2]], "shape_type": "mask", "mask": "!!"}, "not base64"),
            ({"label": "a", "points": [[1, 1], [2, 2]], "shape_type": "mask", "mask": "AAAA"}, "not a readable PNG"),
            ({"label": "a", "points": [], "shape_type": "spline"}, "unknown shape_type 'spline'"),
        ],
    )
    def test_bad_shapes(self, tmp_path: Path, shape: dict[str, Any], message: str) -> None:
        with pytest.raises(InputError, match=message):
            import_masks("labelme", self._save(tmp_path / "set", [shape]), class_names=("a",))


class TestVoc:
    def test_lists_objects_and_names(self, tmp_path: Path) -> None:
        root = tmp_path / "set"
        for number, split in enumerate(("train", "val")):
            save_noise(root / "JPEGImages" / f"i{number}.jpg")
            mask = np.full((40, 50), number, np.uint8)
            mask[0] = 255
            save_indices(root / "SegmentationClass" / f"i{number}.png", mask)
            save_indices(root / "SegmentationObject" / f"i{number}.png", np.where(mask == 255, 255, 3).astype(np.uint8))
            (root / "ImageSets" / "Segmentation").mkdir(parents=True, exist_ok=True)
            (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(f"i{number}\n")
        (root / "labels.txt").write_text("background\nmelt pool\n")
        masks = import_masks("voc", root, write=None)
        assert (masks["i1"][1:] == 1).all()
        assert (masks["i1"][0] == 255).all()
        assert load_dataset_info(tmp_path / "set-out").class_names == ["background", "melt pool"]
        assert np.unique(load_instance_ids(tmp_path / "set-out" / "val" / "instances" / "i1.png")).tolist() == [0, 3]

    def test_index_without_class(self, tmp_path: Path) -> None:
        save_noise(tmp_path / "set" / "JPEGImages" / "a.jpg")
        save_indices(tmp_path / "set" / "SegmentationClass" / "a.png", np.full((40, 50), 4, np.uint8))
        with pytest.raises(InputError, match="value 4 is not one of the 2 classes"):
            import_masks("voc", tmp_path / "set", class_names=("background", "pore"))


class TestRleCsv:
    def test_severstal(self, tmp_path: Path) -> None:
        root = tmp_path / "set"
        save_noise(root / "train_images" / "a.jpg")
        save_noise(root / "train_images" / "b.jpg")
        (root / "train.csv").write_text("ImageId,ClassId,EncodedPixels\na.jpg,1,1 3\na.jpg,4,41 2\n")
        masks = import_masks("rle-csv", root)
        assert masks["a"][:3, 0].tolist() == [1, 1, 1]
        assert masks["a"][:2, 1].tolist() == [4, 4]
        assert masks["a"].astype(int).sum() == 11
        assert not masks["b"].any()
        assert load_dataset_info(tmp_path / "set-out").num_classes == 5

    def test_older_form(self, tmp_path: Path) -> None:
        save_noise(tmp_path / "set" / "a.png")
        (tmp_path / "set" / "train.csv").write_text("ImageId_ClassId,EncodedPixels\na.png_1,\na.png_2,1 1\n")
        assert import_masks("rle-csv", tmp_path / "set")["a"].sum() == 2

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ("a.png,0,1 1", "ClassId '0'"),
            pytest.param("a.png," + "9" * 5000 + ",1 1", "ClassId '9+ must be", id="digits"),
            ("a.png,1,1", "must be pairs of start and length, got 1"),
            ("a.png,1,2000 2", "reach pixel 2001"),
            ("b.png,1,1 1", "no image 'b.png'"),
            ("a.png,1,1 1\na.png,1,3 1", ":3: a second row"),
        ],
    )
    def test_bad_rows(self, tmp_path: Path, row: str, message: str) -> None:
        save_noise(tmp_path / "set" / "a.png")
        (tmp_path / "set" / "train.csv").write_text(f"ImageId,ClassId,EncodedPixels\n{row}\n")
        with pytest.raises(InputError, match=message):
            import_masks("rle-csv", tmp_path / "set")


class TestTrees:
    def test_isdm_binary_masks(self, tmp_path: Path) -> None:
        root = tmp_path / "set"
        for split in ("train", "test"):
            save_noise(root / split / "images" / "a.png")
            save_indices(root / split / "masks" / "a.png", np.tile(np.array([0, 255], np.uint8), (40, 25)))
        masks = import_masks("folder", root, write=None)
        assert masks["a"].mean() == 0.5
        assert list_splits(tmp_path / "set-out") == ["train", "test"]

    def test_cityscapes(self, tmp_path: Path) -> None:
        root = tmp_path / "set"
        save_noise(root / "leftImg8bit" / "train" / "aachen" / "aachen_0_0_leftImg8bit.png")
        folder = root / "gtFine" / "train" / "aachen"
        save_indices(folder / "aachen_0_0_gtFine_labelIds.png", np.full((40, 50), 26, np.uint8))
        save_indices(folder / "aachen_0_0_gtFine_instanceIds.png", np.full((40, 50), 26001, np.uint16))
        assert (import_masks("folder", root, write=None)["aachen_0_0"] == 26).all()
        assert (load_instance_ids(tmp_path / "set-out" / "train" / "instances" / "aachen_0_0.png") == 26001).all()

    def test_ade20k_counts_from_one(self, tmp_path: Path) -> None:
        root = tmp_path / "set"
        for name in ("training", "validation"):
            save_noise(root / "images" / name / f"{name}.jpg")
            save_indices(root / "annotations" / name / f"{name}.png", np.tile(np.array([0, 3], np.uint8), (40, 25)))
        masks = import_masks("folder", root, write=None)
        assert np.unique(masks["training"]).tolist() == [2, 255]

    def test_celeba_reads_labels_as_instances(self, tmp_path: Path) -> None:
        root = tmp_path / "set"
        save_noise(root / "train" / "images" / "a.jpg")
        save_indices(root / "train" / "labels" / "a.png", np.tile(np.array([0, 2], np.uint8), (40, 25)))
        assert np.unique(import_masks("folder", root, write=None)["a"]).tolist() == [0, 2]
        assert (tmp_path / "set-out" / "train" / "instances" / "a.png").is_file()

    def test_mask_folders_of_annotators(self, tmp_path: Path) -> None:
        root = tmp_path / "set"
        save_noise(root / "images" / "a.png")
        for name, edge in (("anna", 2), ("bert", 4)):
            mask = np.zeros((40, 50), np.uint8)
            mask[:edge, :edge] = 1
            save_indices(root / f"masks_{name}" / "a.png", mask)
        write = WriteOptions(fractions={"train": 1.0}, agreement="intersection")
        assert import_masks("folder", root, write)["a"].sum() == 4

    def test_size_mismatch(self, tmp_path: Path) -> None:
        save_noise(tmp_path / "set" / "images" / "a.png")
        save_indices(tmp_path / "set" / "masks" / "a.png", np.zeros((9, 9), np.uint8))
        with pytest.raises(InputError, match=r"is 50x40, but its mask .* is 9x9"):
            import_masks("folder", tmp_path / "set")


def test_option_of_another_kind_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="--layout: does not apply to coco"):
        import_dataset("coco", tmp_path, tmp_path / "out", ReadOptions(layout="isdm"))


def test_unknown_kind(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'cocoo': must be one of ma-islands, coco"):
        import_dataset("cocoo", tmp_path, tmp_path / "out")


def _base64(buffer: io.BytesIO) -> str:
    return base64.b64encode(buffer.getvalue()).decode()
