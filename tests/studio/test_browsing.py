"""Browsing of pairs, without a browser."""

import numpy as np
import pytest
from PIL import Image

from steelgen.config.base import parse_config
from steelgen.config.sample import SampleConfig
from steelgen.data.folder import load_mask
from steelgen.errors import InputError
from steelgen.sampling.sample import sample

pytest.importorskip("gradio", reason="needs gradio: pip install 'steelgen[studio]'")

from steelgen.studio.browse_tab import (
    measure_classes,
    open_collection,
    set_rejected,
    show_pair,
)


def test_dataset_opens_by_split(tiny_dataset):
    collection = open_collection(tiny_dataset)
    assert list(collection.subsets) == ["train", "val", "test"]
    assert [pair.stem for pair in collection.subsets["val"].pairs] == ["val0", "val1"]


def test_rejecting_is_written_and_taken_back(tiny_dataset):
    subset = open_collection(tiny_dataset).subsets["train"]
    set_rejected(subset, "train1", True)
    set_rejected(subset, "train3", True)
    assert (tiny_dataset / "train" / "rejects.txt").read_text() == "train1\ntrain3\n"
    again = open_collection(tiny_dataset).subsets["train"]
    assert again.rejects == {"train1", "train3"}
    assert len(again.pairs) == 4
    set_rejected(again, "train1", False)
    assert subset.rejects == {"train3"}
    with pytest.raises(InputError, match="no pair"):
        set_rejected(subset, "../val/val0", True)


@pytest.mark.parametrize("layout", ["folders", "dataset"])
def test_samples_open_in_both_formats(tmp_path, layout):
    values = {"generator": "bundled:uhcs", "output_dir": str(tmp_path / "out"), "num_samples": 3}
    values |= {"mask_source": {"kind": "folder", "folder": "bundled:uhcs/masks"}, "solver": {"num_inference_steps": 1}}
    out = sample(parse_config({**values, "output_format": layout, "files_per_folder": 2}, SampleConfig))
    (subset,) = open_collection(out).subsets.values()
    assert [pair.stem for pair in subset.pairs] == ["000000", "000001", "000002"]
    set_rejected(subset, "000002", True)
    place = out if layout == "folders" else out / "train"
    assert (place / "rejects.txt").read_text() == "000002\n"
    assert subset.rejects == {"000002"}


def test_pictures_of_a_pair(tiny_dataset):
    collection = open_collection(tiny_dataset)
    pair = collection.subsets["train"].pairs[0]
    gray = np.asarray(Image.open(pair.image))
    mask = load_mask(pair.mask, collection.info)
    assert (show_pair(pair, collection.info, "image") == gray[..., None]).all()
    colors = np.array(collection.info.palette)[mask]
    assert (show_pair(pair, collection.info, "mask") == colors).all()
    overlay = show_pair(pair, collection.info, "overlay")
    assert (overlay[mask == 0] == gray[mask == 0][:, None]).all()
    assert np.allclose(overlay[mask > 0], (0.6 * gray[..., None] + 0.4 * colors)[mask > 0], atol=1)


def test_plain_folder_of_images_has_no_masks(tmp_path):
    Image.new("L", (500, 400), 90).save(tmp_path / "a.png")
    collection = open_collection(tmp_path)
    subset = collection.subsets["train"]
    assert show_pair(subset.pairs[0], collection.info, "overlay").shape == (256, 320, 3)
    assert measure_classes(subset.pairs, collection.info) == ([], 0)
    set_rejected(subset, "a", True)
    assert (tmp_path / "rejects.txt").read_text() == "a\n"


def test_figures_by_hand(tiny_dataset):
    collection = open_collection(tiny_dataset)
    pairs = collection.subsets["test"].pairs
    masks = [load_mask(pair.mask, collection.info) for pair in pairs]
    figures, count = measure_classes(pairs, collection.info)
    assert count == 2
    for label, figure in enumerate(figures):
        assert figure.share == pytest.approx(np.mean([mask == label for mask in masks]))
    assert figures[2].islands == 2  # the last squares that were painted, which nothing hides
    assert figures[2].diameter == pytest.approx(np.sqrt(4 / np.pi * 144))


def test_folder_without_pairs_is_named(tmp_path):
    with pytest.raises(InputError, match="not a dataset folder"):
        open_collection(tmp_path)
    with pytest.raises(InputError, match="no such"):
        open_collection(tmp_path / "nowhere")
    (tmp_path / "samples").mkdir()
    with pytest.raises(InputError, match="contains no images yet"):
        open_collection(tmp_path)
