"""Damaged and hostile input: an `InputError` or the right dataset, never anything else.

STEELGEN_FUZZ_CASES sets the number of cases; 2,000 without it.
"""

from __future__ import annotations

import ast
import base64
import csv
import io
import json
import os
import shutil
import struct
import tempfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import roifile
import tifffile
from PIL import Image

from steelgen.data.check import check_dataset
from steelgen.data.exporting import WRITERS, export_dataset
from steelgen.data.folder import list_pairs, list_splits, load_dataset_info, load_mask, load_pair
from steelgen.data.importing import READERS, WriteOptions, import_dataset
from steelgen.data.micrograph import load_micrograph
from steelgen.data.runlength import parse_counts, parse_pairs
from steelgen.errors import InputError
from tests.damage import CASES, Rng, assert_readable, mutate, mutate_json
from tests.data.samples import BUNDLED, coco, square

_SLOWEST_S = 10.0
_ALL_TRAIN = WriteOptions(fractions={"train": 1.0})


def _png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


_IMAGE = np.asarray(Image.open(BUNDLED / "uhcs" / "train" / "images" / "uhcs0007.png"))[200:240, 300:350]
_MASK = (np.random.default_rng(1).random((40, 50)) < 0.4).astype(np.uint8)


def _first_rows(path: Path, count: int) -> str:
    """Real rows, scaled down to the small images."""
    lines = path.read_text().splitlines()[: count + 1]
    return "\r\n".join([lines[0], *(line.replace("IMG_00007", "a") for line in lines[1:])])


def _ma_polygons(root: Path, rng: Rng) -> str:
    (root / "PNG").mkdir()
    (root / "PNG" / "a.png").write_bytes(_png(np.tile(_IMAGE, (17, 19))))
    table = _first_rows(next((BUNDLED / "ma_islands").glob("*polygon.csv")), int(rng.integers(1, 4)))
    (root / "polygon.csv").write_bytes(mutate(table.encode(), rng))
    return "ma-islands"


def _ma_metadata(root: Path, rng: Rng) -> str:
    (root / "PNG").mkdir()
    (root / "PNG" / "a.png").write_bytes(_png(_IMAGE))
    (root / "polygon.csv").write_text("image_url;point;polygon\na.png;(1, 1);[(2, 2), (9, 2), (9, 9)]\n")
    (root / "metadata.csv").write_bytes(mutate(b"image_url,type,temperature\r\na.png,01,450\r\n", rng))
    (root / "points_POI.csv").write_bytes(mutate(b"image_url;point\na.png;(1, 1)\n", rng))
    return "ma-islands"


def _coco(root: Path, rng: Rng) -> str:
    (root / "a.png").write_bytes(_png(_IMAGE))
    document: Any = coco(
        [
            {"segmentation": [square(3, 3, 10), square(30, 20, 15)]},
            {"segmentation": {"size": [40, 50], "counts": [5, 30, 1000, 20, 945]}, "category_id": 7},
            {"segmentation": {"size": [40, 50], "counts": "P1370mk1"}, "iscrowd": 1},
        ]
    )
    if rng.random() < 0.6:
        text = json.dumps(mutate_json(document, rng)).encode()
    else:
        text = mutate(json.dumps(document).encode(), rng)
    (root / "labels.json").write_bytes(text)
    return "coco"


def _labelme(root: Path, rng: Rng) -> str:
    (root / "a.png").write_bytes(_png(_IMAGE))
    mask = base64.b64encode(_png(_MASK[:8, :8] * np.uint8(255))).decode()
    shapes = [
        {"label": "pore", "points": [[1, 1], [9, 1], [9, 9]], "shape_type": "polygon"},
        {"label": "crack", "points": [[20, 20], [27, 27]], "shape_type": "mask", "mask": mask},
        {"label": "pore", "points": [[30, 30], [33, 33]], "shape_type": "circle"},
    ]
    document = {"imagePath": "a.png", "imageHeight": 40, "imageWidth": 50, "shapes": shapes}
    if rng.random() < 0.6:
        text = json.dumps(mutate_json(document, rng)).encode()
    else:
        text = mutate(json.dumps(document).encode(), rng)
    (root / "a.json").write_bytes(text)
    return "labelme"


def _change(document: Any, rng: Rng) -> bytes:
    """Changes a value of a JSON document, or damages its text."""
    if rng.random() < 0.6:
        return json.dumps(mutate_json(document, rng)).encode()
    return mutate(json.dumps(document).encode(), rng)


def _cvat(root: Path, rng: Rng) -> str:
    (root / "a.png").write_bytes(_png(_IMAGE))
    text = (
        "<annotations><version>1.1</version><meta><task><labels><label><name>pore</name></label></labels></task></meta>"
        '<image id="0" name="a.png" subset="train" width="50" height="40">'
        '<polygon label="pore" points="1,1;9,1;9,9" z_order="1"/><box label="crack" xtl="5" ytl="5" xbr="9" ybr="9"/>'
        '<ellipse label="pore" cx="20" cy="20" rx="5" ry="4" rotation="30"/>'
        '<mask label="crack" rle="1, 3, 2" left="3" top="4" width="3" height="2"/></image></annotations>'
    )
    (root / "annotations.xml").write_bytes(mutate(text.encode(), rng))
    return "cvat"


def _yolo(root: Path, rng: Rng) -> str:
    for folder in ("images", "labels"):
        (root / folder).mkdir()
    (root / "images" / "a.png").write_bytes(_png(_IMAGE))
    labels, description = (
        b"0 0.1 0.1 0.5 0.1 0.5 0.5\n1 0 0 1 0 1 1\n",
        b"train: images\nval: images\nnames: {0: a, 1: b}\n",
    )
    damages_labels = rng.random() < 0.5
    (root / "labels" / "a.txt").write_bytes(mutate(labels, rng) if damages_labels else labels)
    (root / "data.yaml").write_bytes(description if damages_labels else mutate(description, rng))
    return "yolo"


def _rois() -> list[bytes]:
    polygon = roifile.ImagejRoi.frompoints(np.array([(2, 2), (12, 2), (12, 7)]), name="pore-1")
    fine = roifile.ImagejRoi.frompoints(np.array([(2.5, 2), (12, 2), (12, 7)]), name="crack")
    path = [0, 1, 1, 1, 9, 1, 1, 9, 9, 4, 0, 3, 2, 1, 8, 2, 1, 8, 7, 4]
    ring = roifile.ImagejRoi(roitype=roifile.ROI_TYPE.RECT, shape_roi_size=len(path), name="pore")
    ring.multi_coordinates = np.array(path, np.float32)
    oval = roifile.ImagejRoi(roitype=roifile.ROI_TYPE.OVAL, left=3, top=3, right=20, bottom=11, name="pore")
    return [roi.tobytes() for roi in (polygon, fine, ring, oval)]


def _roi(root: Path, rng: Rng) -> str:
    (root / "a.png").write_bytes(_png(_IMAGE))
    damages_archive = rng.random() < 0.4
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for number, data in enumerate(_rois()):
            archive.writestr(f"{number}.roi", data if damages_archive else mutate(data, rng))
    (root / "a.zip").write_bytes(mutate(buffer.getvalue(), rng) if damages_archive else buffer.getvalue())
    return "roi"


def _via(root: Path, rng: Rng) -> str:
    (root / "a.png").write_bytes(_png(_IMAGE))
    shapes = [
        {"name": "polygon", "all_points_x": [1, 9, 9], "all_points_y": [1, 1, 9]},
        {"name": "ellipse", "cx": 20, "cy": 20, "rx": 8, "ry": 3, "theta": 0.5},
        {"name": "rect", "x": 30, "y": 3, "width": 5, "height": 6},
    ]
    regions = [{"shape_attributes": shape, "region_attributes": {"phase": "pore"}} for shape in shapes]
    if rng.random() < 0.5:
        (root / "via.json").write_bytes(_change({"a.png1": {"filename": "a.png", "size": 1, "regions": regions}}, rng))
        return "via"
    with io.StringIO() as file:
        table = csv.writer(file)
        table.writerow(["filename", "region_count", "region_id", "region_shape_attributes", "region_attributes"])
        for shape in shapes:
            table.writerow(["a.png", 3, 0, json.dumps(shape), '{"phase": "pore"}'])
        (root / "via.csv").write_bytes(mutate(file.getvalue().encode(), rng))
    return "via"


def _geojson(root: Path, rng: Rng) -> str:
    (root / "a.png").write_bytes(_png(_IMAGE))
    ring, hole = [[1, 1], [20, 1], [20, 20], [1, 20], [1, 1]], [[3, 3], [6, 3], [6, 6], [3, 3]]
    geometries = [
        {"type": "Polygon", "coordinates": [ring, hole]},
        {"type": "MultiPolygon", "coordinates": [[ring], [hole]]},
    ]
    properties = {"objectType": "annotation", "classification": {"name": "pore"}}
    features = [{"type": "Feature", "geometry": geometry, "properties": properties} for geometry in geometries]
    (root / "a.geojson").write_bytes(_change({"type": "FeatureCollection", "features": features}, rng))
    return "geojson"


def _label_studio(root: Path, rng: Rng) -> str:
    (root / "a.png").write_bytes(_png(_IMAGE))
    values = [
        {"points": [[1, 1], [50, 1], [50, 50]], "polygonlabels": ["pore"]},
        {"x": 10, "y": 10, "width": 20, "height": 30, "rotation": 15, "rectanglelabels": ["crack"]},
        {"x": 50, "y": 50, "radiusX": 10, "radiusY": 5, "rotation": 0, "ellipselabels": ["pore"]},
        # Bits by hand: 8000 values, of 8 bits, lengths of 16 bits; one run of all of them, 255.
        {"format": "rle", "rle": [0, 0, 31, 64, 63, 255, 252, 31, 63, 255], "brushlabels": ["crack"]},
    ]
    results = [{"id": "x", "original_width": 50, "original_height": 40, "value": value} for value in values]
    annotations = [{"completed_by": 1, "was_cancelled": False, "result": results}]
    (root / "a.json").write_bytes(_change([{"id": 1, "data": {"image": "a.png"}, "annotations": annotations}], rng))
    return "label-studio"


def _nnunet(root: Path, rng: Rng) -> str:
    for folder, name, array in (("imagesTr", "a_0000.png", _IMAGE), ("labelsTr", "a.png", _MASK)):
        (root / folder).mkdir()
        (root / folder / name).write_bytes(_png(array))
    labels = {"background": 0, "pore": 1, "ignore": 2}
    described = {"channel_names": {"0": "gray"}, "labels": labels, "numTraining": 1, "file_ending": ".png"}
    (root / "dataset.json").write_bytes(_change(described, rng))
    if rng.random() < 0.3:
        (root / "splits_final.json").write_bytes(_change([{"train": ["a"], "val": []}], rng))
    return "nnunet"


def _labels(root: Path, rng: Rng) -> str:
    """Label images of 32 bit, or in the colors of a legend."""
    (root / "a.png").write_bytes(_png(_IMAGE))
    if rng.random() < 0.5:
        buffer = io.BytesIO()
        tifffile.imwrite(buffer, _MASK.astype(np.int32), compression="zlib" if rng.random() < 0.5 else None)
        (root / "a_labels.tif").write_bytes(mutate(buffer.getvalue(), rng))
        return "labels"
    colors = np.array([(0, 0, 0), (255, 0, 0)], np.uint8)[_MASK]
    (root / "a_labels.png").write_bytes(_png(colors))
    (root / "labelmap.txt").write_bytes(mutate(b"# label:color\nbackground:0,0,0::\npore:255,0,0::\n", rng))
    return "labels"


def _export(root: Path, rng: Rng) -> str:
    """A dataset folder with damaged files, to be exported."""
    _dataset_folder(root, rng)
    (root / "train" / "rejects.txt").write_bytes(mutate(b"b\nc\n", rng))
    return "export"


def _rle_csv(root: Path, rng: Rng) -> str:
    (root / "a.png").write_bytes(_png(_IMAGE))
    text = b"ImageId,ClassId,EncodedPixels\r\na.png,1,1 30 90 7\r\na.png,2,500 40\r\n"
    (root / "train.csv").write_bytes(mutate(text, rng))
    return "rle-csv"


def _png_files(root: Path, rng: Rng) -> str:
    damages_mask = rng.random() < 0.5
    for folder, array, damaged in (("images", _IMAGE, not damages_mask), ("masks", _MASK, damages_mask)):
        (root / folder).mkdir()
        (root / folder / "a.png").write_bytes(mutate(_png(array), rng) if damaged else _png(array))
    return "folder"


def _tiff_files(root: Path, rng: Rng) -> str:
    (root / "images").mkdir()
    (root / "masks").mkdir()
    buffer = io.BytesIO()
    deep = rng.random() < 0.7
    tags = [(34682, "s", 0, "[Scan]\r\nPixelWidth=2.5e-008\r\n[Image]\r\nResolutionY=34\r\n", True)]
    array = _IMAGE.astype(np.uint16) * 256 if deep else _IMAGE
    tifffile.imwrite(buffer, array, compression="zlib" if rng.random() < 0.5 else None, extratags=tags)
    (root / "images" / "a.tif").write_bytes(mutate(buffer.getvalue(), rng))
    (root / "masks" / "a.png").write_bytes(_png(_MASK))
    return "folder"


def _dataset_folder(root: Path, rng: Rng) -> str:
    """A dataset folder with damaged files, to be checked."""
    for folder, array in (("images", _IMAGE), ("masks", _MASK)):
        (root / "train" / folder).mkdir(parents=True)
        (root / "train" / folder / "a.png").write_bytes(_png(array))
    info = b'{"name": "a", "class_names": ["matrix", "island"], "palette": [[0, 0, 0], [1, 2, 3]]}'
    row = b'{"file_name": "train/images/a.png", "parent": "a"}\n'
    (root / "dataset.json").write_bytes(mutate(info, rng) if rng.random() < 0.5 else info)
    (root / "metadata.jsonl").write_bytes(mutate(row, rng))
    return "check"


_SOURCES: Sequence[Callable[[Path, Rng], str]] = (
    _ma_polygons,
    _ma_metadata,
    _coco,
    _labelme,
    _rle_csv,
    _png_files,
    _tiff_files,
    _dataset_folder,
    _cvat,
    _yolo,
    _roi,
    _via,
    _geojson,
    _label_studio,
    _nnunet,
    _labels,
    _export,
)


def _assert_sound(root: Path, out: Path, kind: str) -> None:
    """Checks that the dataset folder is valid and has the mask of the source."""
    info = load_dataset_info(out)
    masks = {}
    for split in list_splits(out):
        for pair in list_pairs(out, split):
            image, mask = load_pair(pair, info)
            assert image.size
            masks[pair.stem] = mask
    if kind == "folder":
        # Checksums of PNGs detect all damage, so the masks are those of undamaged files.
        rows = masks["a"].shape[0]
        np.testing.assert_array_equal(masks["a"], _MASK[:rows])
    if kind == "ma-islands" and (root / "metadata.csv").is_file() is False:
        _assert_covers(masks["a"], _read_polygons(root / "polygon.csv"))


def _read_polygons(path: Path) -> list[np.ndarray]:
    """Reads the polygons of image a independently of steelgen."""
    with open(path, encoding="utf-8-sig", newline="") as lines:
        rows = csv.DictReader((line for line in lines), delimiter=";")
        rows.fieldnames = [name.strip().lower() for name in rows.fieldnames or ()]
        return [
            np.array(ast.literal_eval(row["polygon"].strip()), float).reshape(-1, 2) for row in rows if row["polygon"]
        ]


def _assert_covers(mask: np.ndarray, polygons: list[np.ndarray]) -> None:
    """Checks the pixels that are more than one pixel from all edges by their winding number."""
    rows, columns = np.mgrid[: mask.shape[0], : mask.shape[1]] + 0.5
    filled = np.zeros(mask.shape, bool)
    near = np.zeros(mask.shape, bool)
    for polygon in polygons:
        winding = np.zeros(mask.shape, int)
        for (x0, y0), (x1, y1) in zip(polygon, np.roll(polygon, -1, axis=0), strict=True):
            side = (x1 - x0) * (rows - y0) - (columns - x0) * (y1 - y0)
            winding += ((y0 <= rows) & (rows < y1) & (side > 0)).astype(int)
            winding -= ((y1 <= rows) & (rows < y0) & (side < 0)).astype(int)
            length = max((x1 - x0) ** 2 + (y1 - y0) ** 2, 1e-12)
            along = (((columns - x0) * (x1 - x0) + (rows - y0) * (y1 - y0)) / length).clip(0, 1)
            near |= np.hypot(columns - x0 - along * (x1 - x0), rows - y0 - along * (y1 - y0)) < 1
        filled |= winding != 0
    np.testing.assert_array_equal((mask == 1)[~near], filled[~near])


def _run_case(number: int, folder: Path) -> bool:
    """Builds, mutates and imports source number `number`; whether it was accepted."""
    rng = np.random.default_rng((7, number))
    root, out = folder / "set", folder / "out"
    root.mkdir()
    kind = _SOURCES[number % len(_SOURCES)](root, rng)
    start = time.perf_counter()
    try:
        if kind == "check":
            check_dataset(root)
        elif kind == "export":
            export_dataset(list(WRITERS)[number // len(_SOURCES) % len(WRITERS)], root, folder / "Dataset001_out")
        else:
            import_dataset(kind, root, out, write=_ALL_TRAIN)
    except (InputError, OSError) as error:
        assert_readable(str(error))
        assert sorted(path.name for path in folder.iterdir()) == ["set"], "temporary files are left"
        return False
    finally:
        assert time.perf_counter() - start < _SLOWEST_S
    if kind not in ("check", "export"):
        _assert_sound(root, out, kind)
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]
    return True


@pytest.fixture
def quick_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory if possible, since thousands of small files are written and flushed."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    folder = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("part", range(8))
def test_mutated_sources(part: int, quick_path: Path) -> None:
    accepted = 0
    numbers = range(part, CASES, 8)
    for number in numbers:
        folder = quick_path / str(number)
        folder.mkdir()
        try:
            accepted += _run_case(number, folder)
        except Exception as error:
            raise AssertionError(f"case {number} of {CASES}") from error
        shutil.rmtree(folder)
    # Without rejected cases, the fuzz would test nothing.
    assert accepted < len(numbers)


def test_bombs_are_rejected_before_decoding(tmp_path: Path) -> None:
    header = struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )
    (tmp_path / "bomb.png").write_bytes(data)
    tifffile.imwrite(tmp_path / "small.tif", _IMAGE)
    tiff = bytearray((tmp_path / "small.tif").read_bytes())
    for tag in (256, 257):
        place = tiff.index(struct.pack("<H", tag))
        tiff[place + 2 : place + 12] = struct.pack("<HII", 4, 1, 40_000)
    (tmp_path / "bomb.tif").write_bytes(tiff)
    for name in ("bomb.png", "bomb.tif"):
        with pytest.raises(InputError, match=r"1600000000 pixels|40000x40000"):
            load_micrograph(tmp_path / name)


def test_nothing_is_executed(tmp_path: Path) -> None:
    sentinel = tmp_path / "executed"
    call = f"__import__('pathlib').Path({str(sentinel)!r}).touch()"
    root = tmp_path / "set"
    (root / "PNG").mkdir(parents=True)
    (root / "PNG" / "a.png").write_bytes(_png(_IMAGE))
    (root / "polygon.csv").write_text(f'image_url;polygon\na.png;"[({call}, 1), (2, 2), (3, 3)]"\n')
    (root / "polygon.pickle").write_bytes(b"cos\nsystem\n(S'touch " + str(sentinel).encode() + b"'\ntR.")
    with pytest.raises(InputError):
        import_dataset("ma-islands", root, tmp_path / "out")
    assert not sentinel.exists()


@pytest.mark.parametrize("kind", [kind for kind in READERS])
def test_empty_and_missing_sources(tmp_path: Path, kind: str) -> None:
    (tmp_path / "empty").mkdir()
    for name in ("empty", "missing"):
        with pytest.raises(InputError, match=name):
            import_dataset(kind, tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_run_lengths_of_any_bytes() -> None:
    rng = np.random.default_rng(0)
    for _ in range(500):
        text = bytes(rng.integers(32, 127, int(rng.integers(0, 30)), np.uint8)).decode()
        for parse in (parse_counts, parse_pairs):
            try:
                assert parse(text).shape[1] == 2
            except InputError as error:
                assert_readable(str(error))


def test_one_bit_mask_is_classes_0_and_1(tmp_path: Path) -> None:
    Image.fromarray(_MASK.astype(bool)).save(tmp_path / "a.png")
    info = load_dataset_info(BUNDLED / "uhcs")
    np.testing.assert_array_equal(load_mask(tmp_path / "a.png", info), _MASK)
