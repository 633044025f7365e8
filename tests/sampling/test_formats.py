"""What lies on disk: the dataset folder, rows and text chunks, COCO, a full disk."""

import gc
import hashlib
import json
import os
import shutil
import subprocess
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from steelgen.cli.app import app
from steelgen.config.train import TrainConfig
from steelgen.data.crops import load_micrographs
from steelgen.data.folder import DatasetInfo, load_dataset_info, load_mask, load_metadata
from steelgen.files import load_json
from steelgen.generators.saved import hash_weights
from steelgen.sampling.formats import PNG_KEY
from steelgen.sampling.generate import Pair
from steelgen.sampling.replay import replay
from steelgen.training.loop import train
from tests.conftest import tiny_train_config
from tests.data.samples import decode_counts
from tests.sampling.test_sample import draw
from tests.training.test_loop import Recorder

INFO = DatasetInfo(name="x", class_names=["matrix", "island", "film"])


def test_coco_file_round_trips_through_the_importer(trained, tmp_path):
    out = draw(trained, tmp_path / "out", coco=True, num_samples=4)
    document = load_json(out / "coco.json")
    assert [image["file_name"] for image in document["images"]] == [f"samples/{index:06d}.png" for index in range(4)]
    assert [category["name"] for category in document["categories"]] == ["island", "film"]
    identities = [annotation["id"] for annotation in document["annotations"]]
    assert identities == list(range(1, len(identities) + 1))
    assert not [path for path in out.iterdir() if path.name.startswith((".", "tmp"))]
    masks = {}
    for annotation in document["annotations"]:
        rle = annotation["segmentation_rle"]
        mask = masks.setdefault(annotation["image_id"], np.zeros(rle["size"], np.uint8))
        mask[decode_counts(rle["counts"], *rle["size"])] = annotation["category_id"]
    for number, mask in masks.items():
        assert np.array_equal(mask, load_mask(out / f"labels/{number - 1:06d}.png", INFO))

    source = tmp_path / "coco"
    shutil.copytree(out / "samples", source / "samples")
    shutil.copy(out / "coco.json", source)
    result = CliRunner().invoke(
        app, ["data", "import", "coco", str(source), str(tmp_path / "back"), "--split", "0.5,0.25,0.25"]
    )
    assert result.exit_code == 0, result.stderr
    info = load_dataset_info(tmp_path / "back")
    for path in (tmp_path / "back").glob("*/masks/*.png"):
        assert np.array_equal(load_mask(path, info), load_mask(out / "labels" / path.name, INFO))


def test_dataset_output_can_be_trained_on(trained, tmp_path):
    out = draw(trained, tmp_path / "out", output_format="dataset", num_samples=4)
    micrographs = load_micrographs(out, "train")
    assert micrographs.stems == [f"{index:06d}" for index in range(4)]
    assert "synthetic" in micrographs.info.source
    assert sorted(path.name for path in out.iterdir()) == [
        "contact_sheet.png",
        "dataset.json",
        "metadata.jsonl",
        "sampling.json",
        "train",
    ]
    assert list(load_metadata(out)) == [f"train/images/{index:06d}.png" for index in range(4)]
    # Hugging Face's imagefolder reads the split alone (tried with datasets 5.2).
    assert list(load_metadata(out / "train")) == [f"images/{index:06d}.png" for index in range(4)]
    assert replay(out / "train/metadata.jsonl", 2)[1]
    values = tiny_train_config(out, tmp_path / "run", max_steps=1)
    values["data"]["crop_size"] = 16
    train(TrainConfig.model_validate(values), Recorder())
    folders = draw(trained, tmp_path / "folders", num_samples=4)
    for index in range(4):
        images = [
            np.asarray(Image.open(root / f"{index:06d}.png")) for root in (out / "train/images", folders / "samples")
        ]
        assert np.array_equal(*images)


def test_each_image_says_what_it_is(trained, tmp_path):
    """JSONL and text chunk agree, and hold model, config, seed, source mask and that the image is synthetic."""
    out = draw(trained, tmp_path / "out", num_samples=3)
    weights = list((trained[1] / "export").rglob("*.safetensors"))
    assert len(weights) == 1
    expected = hashlib.sha256(weights[0].read_bytes()).hexdigest()
    assert hash_weights(trained[1]) == expected
    with_stages = tmp_path / "stages"
    shutil.copytree(trained[1] / "export", with_stages)
    shutil.copytree(trained[1] / "export", with_stages / "refine")  # another generator, not a part of this one
    assert hash_weights(with_stages) == expected
    rows = [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]
    for index, row in enumerate(rows):
        with Image.open(out / row["file_name"]) as image:
            assert json.loads(image.info[PNG_KEY]) == row
        assert row["synthetic"] is True
        assert row["seed"] == index
        assert row["model_sha256"] == expected
        assert len(row["config_sha256"]) == 64
        assert row["source_mask"].startswith("test/masks/")
        assert not os.path.isabs(row["file_name"])
    other = draw(trained, tmp_path / "other", num_samples=1, seed=5)
    more = draw(trained, tmp_path / "more", num_samples=1, batch_size=3)
    hashes = [json.loads((folder / "metadata.jsonl").read_text())["config_sha256"] for folder in (other, more)]
    assert hashes[0] != rows[0]["config_sha256"] == hashes[1]


def test_memory_does_not_grow_with_the_number_of_images(trained, tmp_path, monkeypatch):
    """Writing 100 pairs and all that describes them takes no more than writing 30, to 50 kB."""
    import steelgen.sampling.sample as run

    def draw_nothing(generator, batch, mixed_precision):
        pairs = zip(batch.masks, batch.seeds, strict=True)
        return [Pair(np.full(mask.shape, seed % 256, np.uint8), None) for mask, seed in pairs]

    monkeypatch.setattr(run, "generate_pairs", draw_nothing)
    draw(trained, tmp_path / "warm", num_samples=30, batch_size=4, coco=True)

    def measure_peak(count, attempt):
        gc.collect()
        tracemalloc.start()
        draw(trained, tmp_path / f"{count}-{attempt}", num_samples=count, batch_size=4, coco=True)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    # The smaller of two, since threads and garbage that other tests have left may add to a peak.
    peaks = [min(measure_peak(count, attempt) for attempt in range(2)) for count in (30, 100)]
    assert peaks[1] < peaks[0] + 50_000


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("mount") is None, reason="needs root to mount a small disk")
def test_a_full_disk_is_one_line_and_leaves_nothing_half_written(trained, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"mounting is not allowed here: {mounted.stderr.decode().strip()}")
    try:
        dataset, run = trained
        config = {
            "generator": str(run),
            "output_dir": str(disk / "out"),
            "mask_source": {"kind": "split", "dataset": str(dataset), "split": "test"},
            "num_samples": 200,
            "solver": {"num_inference_steps": 1},
        }
        (tmp_path / "sample.json").write_text(json.dumps(config))
        result = CliRunner().invoke(app, ["sample", "-c", str(tmp_path / "sample.json")])
        assert result.exit_code == 2
        lines = [line for line in result.stderr.splitlines() if line.startswith("steelgen:")]
        assert len(lines) == 1
        assert "No space left on device" in lines[0]
        written = [path for path in (disk / "out").rglob("*") if path.is_file()]
        assert not [path for path in written if path.name.startswith(".")]
        for path in written:
            if path.suffix == ".png":
                Image.open(path).load()
            else:
                json.loads(path.read_text())
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("size", "value", "generator", "message"),
    [
        ((16, 16), 9, None, "a.png: mask index 9 is not below num_classes 3"),
        ((15, 17), 0, None, "a.png: the mask is 17x15, smaller than the generator's image_size 16"),
        ((16, 16), 0, "nowhere", "nowhere: no such run, checkpoint or export"),
        ((16, 16), 0, "damaged", "damaged: not a complete semantic diffusion model"),
        ((16, 16), 0, "empty", "empty: no weights"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(trained, tmp_path, size, value, generator, message):
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.full(size, value, np.uint8)).save(tmp_path / "masks/a.png")
    for name in ("damaged", "empty"):
        shutil.copytree(trained[1] / "export", tmp_path / name)
        weights = next((tmp_path / name).rglob("*.safetensors"))
        weights.write_bytes(weights.read_bytes()[:1000]) if name == "damaged" else weights.unlink()
    config = {
        "generator": str(tmp_path / generator if generator else trained[1]),
        "output_dir": str(tmp_path / "out"),
        "mask_source": {"kind": "folder", "folder": str(tmp_path / "masks")},
    }
    (tmp_path / "sample.json").write_text(json.dumps(config))
    result = CliRunner().invoke(app, ["sample", "-c", str(tmp_path / "sample.json")])
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert message in result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["damaged", "empty", "masks", "sample.json"]
