"""Where files lie and what they are called: stems of the masks' files, numbered sub-folders."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from steelgen.cluster.status import finished_indices, run_status
from steelgen.data.folder import list_pairs
from steelgen.errors import InputError
from steelgen.evaluation.sets import find_generated
from steelgen.sampling.masks import build_stems
from steelgen.sampling.replay import replay
from tests.sampling.test_sample import FOLDERS, draw


class InTurn:
    """Masks of some files, one after the other."""

    def __init__(self, stems):
        self.stems = stems

    def draw(self, index):
        raise NotImplementedError

    def trace(self, index):
        return self.stems[index % len(self.stems)]


@given(st.lists(st.text("a_1-.2", min_size=1, max_size=5), min_size=1, max_size=6, unique=True), st.integers(1, 9))
def test_no_name_occurs_twice(stems, batch_size):
    name = build_stems(InTurn(stems), batch_size)
    names = [name(index) for index in range(4 * len(stems))]
    assert len(set(names)) == len(names)


def test_names_by_hand():
    """ISDM: image_sample.py joins the path's stem, cut at its first dot, and the number of the batch."""
    name = build_stems(InTurn(["a", "a_2", "b.c"]), 2)
    assert [name(index) for index in range(6)] == ["a_0", "a_2_0", "b_1", "a_1", "a_2_2", "b_2"]
    name = build_stems(InTurn(["a", "b"]), 3)
    assert [name(index) for index in range(6)] == ["a_0", "b_0", "a_0-2", "b_1", "a_1", "b_1-2"]
    name = build_stems(InTurn(["a.b", "a.c"]), 2)
    assert [name(index) for index in range(3)] == ["a.b_0", "a.c_0", "a.b_1"]


def test_files_of_the_same_stem_are_refused():
    with pytest.raises(InputError, match="2 masks have the stem 'a'"):
        build_stems(InTurn(["a", "a", "b"]), 1)


SOURCES = [
    {"kind": "split"},
    {"kind": "augmented"},
    {"kind": "balanced", "use_mask_augmentation": True, "block_size": 3},
]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source["kind"])
def test_images_are_called_like_the_files_of_their_masks(trained, tmp_path, source):
    options = {
        "mask_source": {**source, "dataset": str(trained[0]), "split": "train"},
        "file_stems": "source",
        "num_samples": 8,
        "batch_size": 3,
    }
    out = draw(trained, tmp_path / "out", **options)
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    names = [Path(row["file_name"]).stem for row in rows]
    assert len(set(names)) == 8
    for index, (name, row) in enumerate(zip(names, rows, strict=True)):
        assert name.split("-")[0] == f"{Path(row['source_mask']).name}_{index // 3}"
    for folder in (folder for folder in FOLDERS if (out / folder).is_dir()):
        assert {path.stem for path in (out / folder).iterdir()} == set(names)
    (out / rows[5]["file_name"]).unlink()
    assert finished_indices(out) == set(range(8)) - {5}
    draw(trained, tmp_path / "out", **options | {"batch_size": 5})
    assert finished_indices(out) == set(range(8))
    assert replay(out / "metadata.jsonl", 6) == (out / f"replay-{names[5]}.png", True)


def test_masks_without_files_cannot_name_images(trained, tmp_path):
    source = {"kind": "procedural", "dataset": str(trained[0])}
    with pytest.raises(InputError, match="does not take each mask from one file"):
        draw(trained, tmp_path / "out", mask_source=source, file_stems="source")
    with pytest.raises(InputError, match="the filter may replace the mask of an image"):
        draw(trained, tmp_path / "out", filter={"dataset": str(trained[0])}, file_stems="source")


@pytest.mark.parametrize("output_format", ["folders", "dataset"])
def test_large_sets_lie_in_numbered_folders(trained, tmp_path, output_format):
    options = {"output_format": output_format, "coco": True, "num_samples": 5}
    flat = draw(trained, tmp_path / "flat", **options)
    out = draw(trained, tmp_path / "out", files_per_folder=2, **options)
    samples = "samples" if output_format == "folders" else "train/images"
    wanted = [f"{samples}/{index // 2:03d}/{index:06d}.png" for index in range(5)]
    assert [json.loads(line)["file_name"] for line in (out / "metadata.jsonl").read_text().splitlines()] == wanted
    assert [image["file_name"] for image in json.loads((out / "coco.json").read_text())["images"]] == wanted
    pixels = [path.relative_to(out) for path in sorted(out.rglob("0*.png"))]
    assert sorted(path.name for path in pixels) == sorted(path.name for path in flat.rglob("0*.png"))

    (out / wanted[3]).unlink()
    assert [(part.done, part.wanted) for part in run_status(out, 2)][:2] == [(3, 3), (1, 2)]
    kept = (out / wanted[2]).stat().st_mtime_ns
    draw(trained, tmp_path / "out", **options)  # the folder knows
    assert finished_indices(out) == set(range(5))
    assert (out / wanted[2]).stat().st_mtime_ns == kept
    assert replay(out / "metadata.jsonl", 4)[1]
    with pytest.raises(InputError, match="files_per_folder is 2 and cannot be changed to 3"):
        draw(trained, tmp_path / "out", files_per_folder=3, **options)
    if output_format == "dataset":
        assert [pair.image.relative_to(out).as_posix() for pair in list_pairs(out, "train")] == wanted
        assert all(pair.mask.stem == pair.image.stem for pair in list_pairs(out, "train"))
    else:
        found = find_generated(out)
        assert [path.relative_to(out).as_posix() for path in found.images] == wanted
        assert [path.stem for path in found.masks] == [path.stem for path in found.images]


def test_sub_folders_begin_above_ten_thousand_images(trained, tmp_path, monkeypatch):
    monkeypatch.setattr("steelgen.sampling.samples_folder._ONE_FOLDER", 3)
    monkeypatch.setattr("steelgen.sampling.samples_folder._FILES_PER_FOLDER", 2)
    small = draw(trained, tmp_path / "small", num_samples=3)
    assert (small / "samples/000002.png").is_file()
    draw(trained, tmp_path / "small", num_samples=4)  # a folder once begun stays as it is
    assert (small / "samples/000003.png").is_file()
    large = draw(trained, tmp_path / "large", num_samples=4)
    assert (large / "samples/001/000003.png").is_file()
    plain = draw(trained, tmp_path / "plain", num_samples=4, files_per_folder=0)
    assert (plain / "samples/000003.png").is_file()
