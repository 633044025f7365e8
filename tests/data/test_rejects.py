"""Rejected pairs are skipped, and their files stay in place."""

import numpy as np
import pytest
from PIL import Image

from steelgen.config.base import parse_config
from steelgen.config.mask_sources import FolderMasks
from steelgen.config.sample import SampleConfig
from steelgen.data.crops import load_micrographs
from steelgen.data.folder import list_pairs, load_dataset_info
from steelgen.data.placement import CropGeometry
from steelgen.data.rejects import REJECTS_FILE, load_rejects, save_rejects
from steelgen.errors import InputError
from steelgen.evaluation.sets import find_generated
from steelgen.sampling.formats import load_layout
from steelgen.sampling.mask_sources import build_mask_source
from steelgen.sampling.sample import sample
from steelgen.sampling.samples_folder import save_contact_sheet

GEOMETRY = CropGeometry(16, 24)


def test_one_stem_per_line_and_no_file_without_stems(tmp_path):
    save_rejects(tmp_path, ["b", "a"])
    assert (tmp_path / REJECTS_FILE).read_text() == "a\nb\n"
    (tmp_path / REJECTS_FILE).write_bytes("\ufeff a \r\n\r\nÄ\n".encode())
    assert load_rejects(tmp_path) == load_rejects(tmp_path / "images") == {"a", "Ä"}
    save_rejects(tmp_path, [])
    assert not (tmp_path / REJECTS_FILE).exists()
    assert load_rejects(tmp_path / "images") == frozenset()


def test_file_that_is_not_text(tmp_path):
    (tmp_path / REJECTS_FILE).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"rejects\.txt: not UTF-8"):
        load_rejects(tmp_path)


def test_rejected_pairs_of_a_split_are_skipped(tiny_dataset):
    save_rejects(tiny_dataset / "train", ["train1", "val0"])
    assert [pair.stem for pair in list_pairs(tiny_dataset, "train")] == ["train0", "train2", "train3"]
    assert load_micrographs(tiny_dataset, "train").stems == ["train0", "train2", "train3"]
    assert len(list_pairs(tiny_dataset, "train", with_rejects=True)) == 4
    assert len(list_pairs(tiny_dataset, "val")) == 2
    save_rejects(tiny_dataset / "train", [f"train{index}" for index in range(4)])
    with pytest.raises(InputError, match="rejects all images of the split"):
        list_pairs(tiny_dataset, "train")


def test_rejected_masks_of_a_folder_are_skipped(tiny_dataset):
    save_rejects(tiny_dataset / "train", ["train0"])
    config = FolderMasks(folder=tiny_dataset / "train" / "masks")
    source = build_mask_source(config, load_dataset_info(tiny_dataset), GEOMETRY, 0)
    assert {source.draw(index).source for index in range(6)} == {"train1.png", "train2.png", "train3.png"}


def test_rejected_samples_are_skipped(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    values = {
        "generator": "bundled:uhcs",
        "output_dir": "out",
        "mask_source": {"kind": "folder", "folder": "bundled:uhcs/masks"},
        "num_samples": 6,
        "solver": {"num_inference_steps": 1},
    }
    out = sample(parse_config(values, SampleConfig))
    sheet = np.asarray(Image.open(out / "contact_sheet.png"))
    save_rejects(out, ["000001"])
    assert [path.stem for path in find_generated(out).images] == ["000000", *(f"00000{i}" for i in range(2, 6))]
    assert [path.stem for path in find_generated(out / "samples", out / "labels").images][1] == "000002"
    info = load_dataset_info(out)
    save_contact_sheet(out, load_layout(out), 6, info)
    without = np.asarray(Image.open(out / "contact_sheet.png"))
    pitch = 2 * (2 * 64 + 4)  # mask and image, and the gap, doubled
    assert (without[:128, pitch : pitch + 256] == sheet[:128, 2 * pitch : 2 * pitch + 256]).all()
    save_rejects(out, [f"00000{i}" for i in range(3)])
    with pytest.raises(InputError, match="3 images; at least 4"):
        find_generated(out)
