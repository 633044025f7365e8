"""Exports, read by other tools and by our importers."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
import roifile
import skimage.draw
from PIL import Image
from pycocotools.coco import COCO
from typer.testing import CliRunner

from steelgen.cli.app import app
from steelgen.data.exporting import ExportOptions, export_dataset
from steelgen.data.folder import (
    DatasetInfo,
    list_pairs,
    list_splits,
    load_dataset_info,
    load_pair,
    save_dataset_info,
    save_mask,
    save_metadata,
)
from steelgen.data.importing import WriteOptions, import_dataset
from steelgen.data.instances import save_instances
from steelgen.errors import InputError
from steelgen.files import save_json
from tests.data.samples import random_mask, save_noise

_NAMES = ["background", "island", "größe <&> 2"]
_ROUND_TRIPS = sorted({"coco", "yolo", "nnunet", "voc", "labelme", "cvat", "roi"})
_KEEP_IGNORED = {"nnunet", "voc", "labelme", "cvat", "roi"}
_OUT = {"nnunet": "Dataset007_steel"}


def _save_dataset(root: Path, ignores: bool = False, color: bool = False) -> Path:
    """Saves three train, one val and two test images; masks have single pixels to large islands with holes."""
    rows = []
    for number, split in enumerate(("train", "train", "train", "val", "test", "test")):
        save_noise(root / split / "images" / f"i{number}.png", seed=number)
        if color:
            gray = np.asarray(Image.open(root / split / "images" / f"i{number}.png"))
            Image.fromarray(np.stack([gray, gray // 2, gray], axis=2)).save(root / split / "images" / f"i{number}.png")
        mask = random_mask(number, smooth=(0.0, 0.8, 2.0, 4.0, 1.0, 3.0)[number])
        if ignores:
            mask[5:9, 7:30] = 255
        (root / split / "masks").mkdir(exist_ok=True)
        save_mask(root / split / "masks" / f"i{number}.png", mask, [(0, 0, 0), (255, 0, 0), (0, 0, 255)])
        rows.append({"file_name": f"{split}/images/i{number}.png", "parent": f"steel{number}"})
    save_metadata(root, rows)
    save_dataset_info(root, DatasetInfo(name="steel", class_names=_NAMES))
    return root


def _save_samples(root: Path, count: int = 5, names: list[str] | None = None) -> Path:
    """Saves a samples folder."""
    rows = []
    for number in range(count):
        save_noise(root / "samples" / f"{number:06d}.png", seed=100 + number)
        (root / "labels").mkdir(exist_ok=True)
        save_mask(root / "labels" / f"{number:06d}.png", random_mask(50 + number, smooth=2.0), [(0, 0, 0)] * 3)
        row = {"file_name": f"samples/{number:06d}.png", "mask": f"labels/{number:06d}.png", "seed": 40 + number}
        rows.append({**row, "synthetic": True, "generator": "runs/a", "model_sha256": "f" * 64})
    save_metadata(root, rows)
    save_json(root / "sampling.json", {})
    save_dataset_info(root, DatasetInfo(name="steel", class_names=names or _NAMES))
    return root


def _load_masks(root: Path) -> dict[tuple[str, str], np.ndarray]:
    info = load_dataset_info(root)
    return {
        (split, pair.stem): load_pair(pair, info)[1] for split in list_splits(root) for pair in list_pairs(root, split)
    }


def _read_provenance(out: Path) -> list[dict[str, str]]:
    with open(out / "provenance.csv", encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.parametrize("ignores", [False, True])
@pytest.mark.parametrize("kind", _ROUND_TRIPS)
def test_round_trip_keeps_the_mask(tmp_path: Path, kind: str, ignores: bool) -> None:
    """Polygons follow pixel borders, so islands of any size, holes and islands in holes are exact."""
    root = _save_dataset(tmp_path / "set", ignores)
    out = tmp_path / _OUT.get(kind, "out")
    summary = export_dataset(kind, root, out)
    assert summary.counts == {
        "train": {"real": 3, "generated": 0},
        "val": {"real": 1, "generated": 0},
        "test": {"real": 2, "generated": 0},
    }
    assert (summary.lost_ignored_pixels > 0) == (ignores and kind not in _KEEP_IGNORED)
    fractions = {"train": 1.0} if kind == "labelme" else None
    info = import_dataset(kind, out, tmp_path / "back", write=WriteOptions(fractions=fractions))
    assert sorted(info.class_names) == sorted(_NAMES)
    order = np.arange(256, dtype=np.uint8)
    order[: len(_NAMES)] = [_NAMES.index(name) for name in info.class_names]
    before, after = _load_masks(root), _load_masks(tmp_path / "back")
    if kind == "labelme":
        before = {("train", stem): mask for (_, stem), mask in before.items()}
    assert before.keys() == after.keys()
    for key, mask in before.items():
        if kind not in _KEEP_IGNORED:
            mask = np.where(mask == 255, 0, mask)
        np.testing.assert_array_equal(order[after[key]], mask, err_msg=str(key))
    for split, stem in _load_masks(root):
        image = np.asarray(Image.open(root / split / "images" / f"{stem}.png"))
        back = tmp_path / "back" / ("train" if kind == "labelme" else split) / "images" / f"{stem}.png"
        np.testing.assert_array_equal(np.asarray(Image.open(back)), image)


def test_pycocotools_decodes_the_mask(tmp_path: Path) -> None:
    """pycocotools has an independent rasterizer and decoder."""
    root = _save_dataset(tmp_path / "set")
    export_dataset("coco", root, tmp_path / "out")
    masks = _load_masks(root)
    for split in ("train", "val", "test"):
        coco = COCO(str(tmp_path / "out" / "annotations" / f"instances_{split}.json"))
        for image in coco.loadImgs(coco.getImgIds()):
            mask = masks[(split, Path(image["file_name"]).stem)]
            assert (tmp_path / "out" / split / image["file_name"]).is_file()
            for index in (1, 2):
                annotations = coco.loadAnns(coco.getAnnIds(imgIds=image["id"], catIds=[index]))
                rasterized = np.zeros(mask.shape, bool)
                exact = np.zeros(mask.shape, bool)
                for annotation in annotations:
                    rasterized |= coco.annToMask(annotation).astype(bool)
                    exact |= coco.annToMask({**annotation, "segmentation": annotation["segmentation_rle"]}).astype(bool)
                np.testing.assert_array_equal(exact, mask == index)
                overlap = (rasterized & exact).sum() / (rasterized | exact).sum()
                assert overlap >= 0.99, (split, image["file_name"], index, overlap)


def test_scikit_image_rasterizes_yolo_polygons(tmp_path: Path) -> None:
    """An even-odd rasterizer takes the pixels whose centers are inside: the mask, holes and small islands included."""
    root = _save_dataset(tmp_path / "set")
    export_dataset("yolo", root, tmp_path / "out")
    for (split, stem), mask in _load_masks(root).items():
        rasterized = np.zeros(mask.shape, np.uint8)
        for line in (tmp_path / "out" / "labels" / split / f"{stem}.txt").read_text().splitlines():
            index, *numbers = line.split()
            ring = np.array(numbers, float).reshape(-1, 2) * (mask.shape[1], mask.shape[0])
            rasterized[skimage.draw.polygon2mask(mask.shape, ring[:, ::-1] - 0.5)] = int(index) + 1
        np.testing.assert_array_equal(rasterized, mask)


def test_rois_are_polygons_and_composites_with_names_groups_and_colors(tmp_path: Path) -> None:
    export_dataset("roi", _save_dataset(tmp_path / "set"), tmp_path / "out")
    rois = roifile.roiread(tmp_path / "out" / "train" / "i2.zip")
    assert isinstance(rois, list)
    assert {(roi.name.rpartition("-")[0], roi.group, roi.hexcolor(roi.stroke_color)) for roi in rois} == {
        ("island", 1, "#e69f00"),
        (_NAMES[2], 2, "#56b4e9"),
    }
    assert {roi.composite for roi in rois} == {True, False}
    mask = _load_masks(tmp_path / "set")[("train", "i2")]
    for roi in rois:
        x, y = np.concatenate(roi.coordinates(multi=True)).T
        assert 0 <= x.min() < x.max() <= mask.shape[1]
        assert 0 <= y.min() < y.max() <= mask.shape[0]


@pytest.mark.parametrize("kind", ["coco", "labelme", "cvat", "roi"])
def test_touching_instances_stay_separate(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "set"
    save_noise(root / "train" / "images" / "a.png")
    (root / "train" / "masks").mkdir()
    instances = np.zeros((40, 50), np.uint16)
    instances[5:20, 5:10], instances[5:20, 10:20], instances[30:33, 2:8], instances[8:11, 7:9] = 3, 8, 8, 0
    mask = (instances > 0).astype(np.uint8)
    save_mask(root / "train" / "masks" / "a.png", mask, [(0, 0, 0), (9, 9, 9)])
    save_instances(root / "train" / "instances" / "a.png", instances)
    save_dataset_info(root, DatasetInfo(name="x", class_names=["background", "grain"]))
    export_dataset(kind, root, tmp_path / "out")
    import_dataset(kind, tmp_path / "out", tmp_path / "back", write=WriteOptions(fractions={"train": 1.0}))
    back = np.asarray(Image.open(tmp_path / "back" / "train" / "instances" / "a.png"))
    assert (back[instances == 3] == back[6, 6]).all()
    assert back[6, 6] not in (0, back[6, 15])
    assert ((back > 0) == (instances > 0)).all()
    # LabelMe's importer ignores groups, so each part of an instance is an instance.
    assert len(np.unique(back)) == (4 if kind == "labelme" else 3)


def test_real_and_generated_by_a_ratio(tmp_path: Path) -> None:
    root, samples = _save_dataset(tmp_path / "set"), _save_samples(tmp_path / "samples")
    options = ExportOptions(added=samples, ratio=1.0)
    summary = export_dataset("coco", root, tmp_path / "out", options)
    assert summary.counts["train"] == {"real": 3, "generated": 3}
    assert summary.counts["test"] == {"real": 2, "generated": 0}
    rows = _read_provenance(tmp_path / "out")
    generated = [row for row in rows if row["origin"] == "generated"]
    assert [row["split"] for row in generated] == ["train"] * 3
    for row in generated:
        assert row["generator"] == "runs/a"
        assert int(row["seed"]) == 40 + int(row["name"])
        source = Image.open(samples / row["source"])
        assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "train" / f"{row['name']}.png")), source)
    assert {row["parent"] for row in rows if row["origin"] == "real"} == {f"steel{number}" for number in range(6)}
    document = json.loads((tmp_path / "out" / "annotations" / "instances_train.json").read_text())
    assert [image["provenance"]["origin"] for image in document["images"]].count("generated") == 3
    export_dataset("coco", root, tmp_path / "again", options)
    assert _read_provenance(tmp_path / "again") == rows
    export_dataset("coco", root, tmp_path / "other", ExportOptions(added=samples, ratio=1.0, seed=3))
    assert _read_provenance(tmp_path / "other") != rows
    everything = export_dataset("voc", root, tmp_path / "all", ExportOptions(added=samples))
    assert everything.counts["train"] == {"real": 3, "generated": 5}


def test_samples_alone_in_numbered_folders_and_without_rejects(tmp_path: Path) -> None:
    samples = _save_samples(tmp_path / "samples")
    for folder in ("samples", "labels"):
        (samples / folder / "000").mkdir()
        (samples / folder / "000003.png").rename(samples / folder / "000" / "000003.png")
    (samples / "rejects.txt").write_text("000001\n\n000004\n")
    summary = export_dataset("voc", samples, tmp_path / "out")
    assert summary.counts == {"train": {"real": 0, "generated": 3}}
    assert summary.rejected == 2
    assert [row["name"] for row in _read_provenance(tmp_path / "out")] == ["000000", "000002", "000003"]
    (tmp_path / "set").mkdir()
    root = _save_dataset(tmp_path / "set")
    (root / "train" / "rejects.txt").write_text("i0\n")
    mixed = export_dataset("voc", root, tmp_path / "mixed", ExportOptions(added=samples, ratio=1.5))
    assert mixed.counts["train"] == {"real": 2, "generated": 3}
    assert mixed.rejected == 3


def test_duplicate_names_become_unique(tmp_path: Path) -> None:
    root, samples = _save_dataset(tmp_path / "set"), _save_samples(tmp_path / "samples", 2)
    for folder in ("images", "masks"):
        (root / "train" / folder / "i0.png").rename(root / "train" / folder / "000001.png")
        (root / "test" / folder / "i5.png").rename(root / "test" / folder / "I4.PNG")
        (root / "test" / folder / "I4.PNG").rename(root / "test" / folder / "i1.png")
    export_dataset("voc", root, tmp_path / "out", ExportOptions(added=samples))
    names = [path.stem for path in sorted((tmp_path / "out" / "JPEGImages").iterdir())]
    wanted = {"000000", "set_train_000001", "samples_train_000001", "train_i1", "test_i1", "i2", "i3", "i4"}
    assert set(names) == wanted
    masks = sorted(path.stem for path in (tmp_path / "out" / "SegmentationClass").iterdir())
    assert masks == names


def test_nnunet_requires_its_names_and_one_image_kind(tmp_path: Path) -> None:
    root = _save_dataset(tmp_path / "set", ignores=True, color=True)
    with pytest.raises(InputError, match="DatasetNNN_NAME"):
        export_dataset("nnunet", root, tmp_path / "steel")
    out = tmp_path / "Dataset007_steel"
    export_dataset("nnunet", root, out)
    described = json.loads((out / "dataset.json").read_text())
    info = load_dataset_info(root)
    save_dataset_info(root, info.model_copy(update={"class_names": ["a", "b", "ignore"]}))
    with pytest.raises(InputError, match="class name 'ignore' of steel is reserved"):
        export_dataset("nnunet", root, tmp_path / "Dataset009_steel")
    save_dataset_info(root, info)
    assert described["labels"] == {"background": 0, _NAMES[1]: 1, _NAMES[2]: 2, "ignore": 3}
    assert described["channel_names"] == {"0": "R", "1": "G", "2": "B"}
    assert described["numTraining"] == 4
    assert json.loads((out / "splits_final.json").read_text()) == [{"train": ["i0", "i1", "i2"], "val": ["i3"]}]
    save_noise(root / "val" / "images" / "i3.png")
    with pytest.raises(InputError, match="cannot mix gray and color"):
        export_dataset("nnunet", root, tmp_path / "Dataset008_steel")
    assert not (tmp_path / "Dataset008_steel").exists()


def test_hugging_face_folder_and_parquet(tmp_path: Path) -> None:
    root, samples = _save_dataset(tmp_path / "set", ignores=True), _save_samples(tmp_path / "samples")
    options = ExportOptions(added=samples)
    export_dataset("hf", root, tmp_path / "hf", options)
    lines = (tmp_path / "hf" / "train" / "metadata.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["origin"] for row in rows] == ["real"] * 3 + ["generated"] * 5
    mask = np.asarray(Image.open(tmp_path / "hf" / "train" / rows[0]["mask_file_name"]))
    assert np.array_equal(mask, _load_masks(root)[("train", "i0")])
    assert (tmp_path / "hf" / "validation" / rows[0]["file_name"].replace("i0", "i3")).is_file()
    export_dataset("parquet", root, tmp_path / "parquet", options)
    table = pyarrow.parquet.read_table(tmp_path / "parquet" / "data" / "train-00000-of-00001.parquet")
    assert table.column("seed").to_pylist() == [None] * 3 + [40, 41, 42, 43, 44]
    assert "huggingface" in str(table.schema.metadata)


def test_parquet_without_pyarrow_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"pip install 'steelgen\[parquet\]'"):
        export_dataset("parquet", _save_dataset(tmp_path / "set"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_command_prints_lines_json_or_nothing(tmp_path: Path) -> None:
    root = _save_dataset(tmp_path / "set", ignores=True)
    arguments = ["data", "export", "yolo", str(root)]
    printed = CliRunner().invoke(app, [*arguments, str(tmp_path / "a"), "--splits", "train,test"])
    assert printed.exit_code == 0, printed.output
    assert "3 real and 0 generated pairs in train" in printed.stdout
    assert "ignored pixels became background in yolo" in printed.stdout
    assert not (tmp_path / "a" / "images" / "val").exists()
    quiet = CliRunner().invoke(app, [*arguments, str(tmp_path / "b"), "--quiet"])
    assert (quiet.exit_code, quiet.output) == (0, "")
    as_json = CliRunner().invoke(app, [*arguments, str(tmp_path / "c"), "--json"])
    assert json.loads(as_json.stdout)["counts"]["val"] == {"real": 1, "generated": 0}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cocoo", "set", "y"), "export kind 'cocoo': must be one of coco"),
        (("coco", "nowhere", "y"), "nowhere: no such dataset folder"),
        (("coco", "set", "set"), "set: the output folder is already in use"),
        (("coco", "set", "y", "--splits", "training"), "set: no split 'training' (present: train, val, test)"),
        (("coco", "set", "y", "--ratio", "0.5"), "ratio: needs a samples folder"),
        (("coco", "set", "y", "--with", "samples", "--ratio", "-1"), "--ratio -1.0: must be above 0"),
        (("coco", "set", "y", "--with", "samples", "--ratio", "2"), "needs 6 generated pairs, but samples has 5"),
        (("coco", "set", "y", "--with", "others"), "others: classes (background, b, c) differ from those of set"),
        (("coco", "unlabeled", "y"), "there is nothing to export"),
        (("coco", "broken", "y"), "its image i0.png is 3x3"),
        (("coco", "unpaired", "y"), "has no mask of the same name"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    _save_dataset(Path("set"))
    _save_samples(Path("samples"))
    _save_samples(Path("others"), names=["background", "b", "c"])
    save_noise(Path("unlabeled") / "train" / "images" / "a.png")
    save_noise(_save_dataset(Path("broken")) / "train" / "images" / "i0.png", 3, 3)
    (_save_samples(Path("unpaired")) / "labels" / "000002.png").unlink()
    done = CliRunner().invoke(app, ["data", "export", *arguments])
    assert done.exit_code == 2
    line = done.output.strip().splitlines()[-1]
    assert line.startswith("steelgen: ")
    assert message in line
    assert not Path("y").exists()
    assert not [path for path in Path().iterdir() if path.name.startswith(".")]
