"""Joint diffusion in sampling: pairs, images for masks, masks for images, masks for another generator, labels."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from steelgen.cli.app import app
from steelgen.config.base import parse_config
from steelgen.config.sample import SampleConfig
from steelgen.config.train import TrainConfig
from steelgen.data.crops import tensor_to_image
from steelgen.data.folder import load_dataset_info, load_mask
from steelgen.data.images import load_image
from steelgen.errors import InputError
from steelgen.evaluation.labeler import load_labeler
from steelgen.evaluation.windows import label_by_windows
from steelgen.generators import DrawRequest
from steelgen.generators.families import load_generator
from steelgen.sampling.labeling import hash_segmenter
from steelgen.sampling.replay import replay
from steelgen.sampling.sample import sample
from steelgen.shards import Shard
from steelgen.training.loop import train
from tests.generators.joint import joint_config
from tests.training.test_loop import Recorder


@pytest.fixture(scope="module")
def joint(trained):
    """(dataset folder, run folder) of a joint model of the classes and the scale of `trained`."""
    dataset, run = trained
    values = joint_config(dataset, run.parent / "joint", max_steps=40, learning_rate=3e-3)
    train(parse_config({**values, "preview": {"num_images": 2}}, TrainConfig), Recorder())
    return dataset, run.parent / "joint"


def build(run, out, **options):
    return {
        "generator": str(run),
        "output_dir": str(out),
        "mask_source": {"kind": "none"},
        "num_samples": 3,
        "solver": {"num_inference_steps": 2},
        **options,
    }


def draw(run, out, shard=None, **options):
    return sample(parse_config(build(run, out, **options), SampleConfig), shard=shard)


def load_rows(out):
    return [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]


def read_files(out):
    return {path.relative_to(out): path.read_bytes() for path in sorted(out.rglob("*.png"))}


def test_previews_show_the_pairs_of_the_model(joint):
    preview = np.asarray(Image.open(joint[1] / "previews/step-000040.png"))
    drawn = load_generator(joint[1]).draw(DrawRequest([0, 1], solver=None))
    assert preview.shape[:2] == (128, 2 * 3 * 128 + 4 * 8)
    assert drawn.masks.shape == (2, 16, 16)


def test_pairs_are_written_as_drawn_and_replayed(joint, tmp_path):
    dataset, run = joint
    out = draw(run, tmp_path / "out", coco=True, batch_size=2)
    assert load_dataset_info(out).class_names == load_dataset_info(dataset).class_names
    assert not (out / "images").exists()
    generator = load_generator(run)
    solver = parse_config(build(run, out), SampleConfig).solver
    for index, row in enumerate(load_rows(out)):
        drawn = generator.draw(DrawRequest([index], solver=solver))
        assert row["mask_made"]
        assert row["source_mask"] == "made by joint_diffusion"
        assert np.array_equal(load_image(out / row["file_name"]), tensor_to_image(drawn.images[0]))
        assert np.array_equal(load_mask(out / row["mask"], generator.info), drawn.masks[0].numpy())
    assert len(json.loads((out / "coco.json").read_text())["images"]) == 3
    assert replay(out / "metadata.jsonl", 2)[1]


def test_unguided_pairs_of_older_versions_are_replayed(joint, tmp_path):
    options = {"num_samples": 1, "solver": {"num_inference_steps": 4, "guidance_interval": None}}
    guided = draw(joint[1], tmp_path / "guided", **options)
    options["solver"]["guide_pairs"] = False
    out = draw(joint[1], tmp_path / "out", **options)
    row = json.loads((out / "metadata.jsonl").read_text())
    del row["draw"]["solver"]["guide_pairs"]
    (out / "metadata.jsonl").write_text(json.dumps(row) + "\n")
    assert replay(out / "metadata.jsonl", 1)[1] is True
    assert (guided / row["file_name"]).read_bytes() != (out / row["file_name"]).read_bytes()


def test_shards_and_batch_sizes_give_the_same_folder(joint, tmp_path):
    whole = draw(joint[1], tmp_path / "whole", num_samples=4)
    for index in (1, 2):
        draw(joint[1], tmp_path / "parts", shard=Shard(index, 2), num_samples=4, batch_size=1)
    parts = draw(joint[1], tmp_path / "parts", num_samples=4)
    assert read_files(parts) == read_files(whole)


def test_pairs_larger_than_the_network(joint, tmp_path):
    out = draw(joint[1], tmp_path / "out", mask_source={"kind": "none", "size": [24, 40]}, num_samples=1)
    (row,) = load_rows(out)
    assert load_image(out / row["file_name"]).shape == (24, 40)
    assert load_mask(out / row["mask"], load_dataset_info(out)).shape == (24, 40)
    assert replay(out / "metadata.jsonl", 1)[1]


def test_images_without_masks_have_any_size_too(trained, tmp_path):
    out = draw(trained[1], tmp_path / "out", mask_source={"kind": "none", "size": [20, 36]}, num_samples=1)
    assert load_image(out / "samples/000000.png").shape == (20, 36)
    assert replay(out / "metadata.jsonl", 1)[1]
    with pytest.raises(InputError, match=r"mask_source.size \[20, 12\]: smaller than the generator's image_size 16"):
        draw(trained[1], tmp_path / "small", mask_source={"kind": "none", "size": [20, 12]})


def test_the_filter_judges_the_masks_of_the_pairs_and_replaces_both(joint, tmp_path, monkeypatch):
    judged = []

    class DropsFirst:
        def describe(self):
            return {}

        def judge(self, image, mask):
            judged.append((image, mask))
            return "first" if len(judged) == 1 else None

        def weigh(self, image, mask):
            return {}

    monkeypatch.setattr("steelgen.sampling.sample.build_filter", lambda *_: DropsFirst())
    out = draw(joint[1], tmp_path / "out", filter={"dataset": str(joint[0])}, batch_size=1, num_samples=2)
    rows = load_rows(out)
    assert [row["dropped"] for row in rows] == [{"first": 1}, {}]
    assert rows[0]["seed"] == 10**9
    kept = [(load_image(out / row["file_name"]), load_mask(out / row["mask"], load_dataset_info(out))) for row in rows]
    for image, mask in kept:
        assert any(np.array_equal(image, one) and np.array_equal(mask, other) for one, other in judged[1:])


def test_images_for_masks_and_masks_for_images(joint, tmp_path):
    dataset, run = joint
    source = {"kind": "split", "dataset": str(dataset), "split": "test"}
    out = draw(run, tmp_path / "for-masks", mask_source=source)
    (first, *_) = rows = load_rows(out)
    assert not any("mask_made" in row or "source_image" in row for row in rows)
    generator = load_generator(run)
    solver = parse_config(build(run, out), SampleConfig).solver
    mask = load_mask(out / first["mask"], generator.info)
    given = torch.from_numpy(mask.astype(np.int64))[None]
    drawn = generator.draw(DrawRequest([0], masks=given, solver=solver))
    assert np.array_equal(load_image(out / first["file_name"]), tensor_to_image(drawn.images[0]))
    assert replay(out / "metadata.jsonl", 1)[1]

    labeled = draw(run, tmp_path / "for-images", mask_source={"kind": "images", "folder": str(out / "samples")})
    for row in load_rows(labeled):
        name = Path(row["file_name"]).name
        assert np.array_equal(load_image(labeled / row["file_name"]), load_image(out / "samples" / name))
        assert row["mask_made"]
    mask = load_mask(labeled / "labels/000000.png", generator.info)
    drawn = generator.draw(DrawRequest([0], images=drawn.images.mul(127.5).round().div(127.5), solver=solver))
    assert (mask == drawn.masks[0].numpy()).mean() > 0.98


def test_a_region_of_real_pairs_is_inpainted(joint, tmp_path):
    """Outside everything is real; with the phase fraction of a class in the region, and replayed."""
    dataset, run = joint
    source = {"kind": "split", "dataset": str(dataset), "split": "test"}
    real = draw(run, tmp_path / "real", mask_source=source)
    region = {"size": [8, 6], "phase_fraction": {"film": 0.4}}
    out = draw(run, tmp_path / "out", mask_source=source, inpaint=region, batch_size=2)
    boxes, info = [], load_dataset_info(out)
    for row in load_rows(out):
        name = Path(row["mask"]).name
        top, left, height, width = row["inpaint"]["box"]
        boxes.append((top, left))
        assert (height, width) == (8, 6)
        inside = np.zeros((16, 16), bool)
        inside[top : top + height, left : left + width] = True
        image, mask = load_image(out / row["file_name"]), load_mask(out / row["mask"], info)
        before = load_image(out / "images" / name), load_mask(real / "labels" / name, info)
        for found, wanted in zip((image, mask), before, strict=True):
            assert np.array_equal(found[~inside], wanted[~inside])
        assert not np.array_equal(image[inside], before[0][inside])
        assert row["source_mask"].startswith("test/masks/")
        assert "mask_made" not in row
    assert len(set(boxes)) == 3
    assert replay(out / "metadata.jsonl", 2)[1]
    for change, message in [
        ({"size": [17, 4]}, r"inpaint.size \[17, 4\]: larger than the image, 16x16 px"),
        ({"position": [10, 3]}, "the region of 8x6 px at 10, 3 exceeds the image, 16x16 px"),
        ({"phase_fraction": {"carbide": 0.1}}, "inpaint.phase_fraction: 'carbide' is not among the classes"),
        ({"phase_fraction": {"film": 0.9, "island": 0.3}}, "inpaint.phase_fraction: fractions add up to 1.2"),
    ]:
        with pytest.raises(InputError, match=message):
            draw(run, tmp_path / "refused", mask_source=source, inpaint={**region, **change})
        assert not (tmp_path / "refused").exists()
    with pytest.raises(
        InputError, match=r"inpaint needs real pairs: mask_source.kind 'split' or 'balanced', not 'none'"
    ):
        draw(run, tmp_path / "refused", inpaint=region)


def test_learned_masks_come_with_both_generators(joint, trained, tmp_path):
    dataset, run = trained
    source = {"kind": "learned", "generator": str(joint[1]), "solver": {"num_inference_steps": 3}, "tolerance": 0.25}
    source["phase_fraction"] = {"film": [0.1, 0.3]}
    out = draw(run, tmp_path / "out", mask_source=source, num_samples=4)
    generator, asked = load_generator(joint[1]), []
    solver = parse_config(build(run, out, solver=source["solver"]), SampleConfig).solver
    for row in load_rows(out):
        origin, mask = row["mask_origin"], load_mask(out / row["mask"], load_dataset_info(out))
        assert (row["generator"], origin["generator"]) == (str(run), str(joint[1]))
        assert row["model_sha256"] != origin["model_sha256"]
        assert 1 <= origin["attempts"] <= 20
        asked.append(origin["phase_fraction"]["film"])
        assert 0.1 <= asked[-1] <= 0.3
        fractions = torch.tensor([[float("nan"), float("nan"), asked[-1]]])
        request = DrawRequest([origin["seed"]], solver=solver, fractions=fractions, wanted=frozenset({"masks"}))
        assert np.array_equal(mask, generator.draw(request).masks[0].numpy())
    assert len(set(asked)) == 4
    assert replay(out / "metadata.jsonl", 2)[1]
    alone = draw(run, tmp_path / "alone", mask_source=source, num_samples=4, batch_size=1)
    assert read_files(alone / "labels") == read_files(out / "labels")
    start = {"strength": 0.5, "dataset": str(dataset)}
    started = draw(run, tmp_path / "started", mask_source=source, num_samples=1, start_images=start)
    assert load_rows(started)[0]["mask_origin"] == load_rows(out)[0]["mask_origin"]
    whole = draw(run, tmp_path / "large", mask_source={**source, "size": [20, 36]}, num_samples=1)
    assert load_image(whole / "samples/000000.png").shape == (20, 36)
    sampling = json.loads((out / "sampling.json").read_text())
    assert sampling["drawn_by"].keys() == {"generator", "mask_source.generator"}


def test_masks_that_cannot_be_are_one_line(joint, trained, tmp_path):
    _, run = trained
    for change, message in [
        ({"phase_fraction": {"carbide": 0.1}}, "'carbide' is not among the classes matrix, island, film"),
        ({"phase_fraction": {"film": 0.8, "island": 0.4}}, "fractions add up to 1.2, more than 1"),
        ({"phase_fraction": {"film": 0.1, "island": 0.1, "matrix": 0.1}}, "all classes add up to 0.3, less than 1"),
        ({"phase_fraction": {"film": [0.4, 0.1]}}, r"film \[0.4, 0.1\]: the smaller fraction must come first"),
        ({"generator": str(run)}, "is of kind semantic_diffusion, which makes no masks"),
        ({"size": [8, 32]}, r"mask_source.size \[8, 32\]: smaller than an image_size of 16"),
    ]:
        source = {"kind": "learned", "generator": str(joint[1]), **change}
        with pytest.raises(InputError, match=message):
            draw(run, tmp_path / "out", mask_source=source)
        assert not (tmp_path / "out").exists()
    missed = {
        "phase_fraction": {"film": 0.5},
        "tolerance": 1e-9,
        "max_attempts": 2,
        "solver": {"num_inference_steps": 1},
    }
    with pytest.raises(InputError, match=r"mask 0 missed 'film' 0.5 \(closest 0.\d+\) in all of 2 attempts"):
        draw(run, tmp_path / "missed", mask_source={"kind": "learned", "generator": str(joint[1]), **missed})
    other = tmp_path / "other"
    shutil.copytree(joint[1] / "export", other)
    description = json.loads((other / "generator.json").read_text())
    description["geometry"]["crop_size"] = 32
    (other / "generator.json").write_text(json.dumps(description))
    for options in (
        {"mask_source": {"kind": "learned", "generator": str(other)}},
        {"labels": {"kind": "joint", "generator": str(other)}, "generator": str(joint[1])},
    ):
        with pytest.raises(
            InputError, match=r"a pixel of .*other is 2 px of a micrograph, but 1.5 px in the generator"
        ):
            draw(run, tmp_path / "out", **options)


def test_labels_are_the_votes_of_several_draws(joint, tmp_path):
    run = joint[1]
    labels = {"kind": "joint", "generator": str(run), "draws": 3, "solver": {"num_inference_steps": 2}}
    out = draw(run, tmp_path / "out", labels=labels)
    generator, config = load_generator(run), parse_config(build(run, out), SampleConfig)
    for row in load_rows(out):
        image = torch.from_numpy(load_image(out / row["file_name"]).astype(np.float32) / 127.5 - 1)[None, None]
        drawn = generator.draw(DrawRequest(range(3), images=image.expand(3, -1, -1, -1), solver=config.solver))
        counts = np.stack([(drawn.masks.numpy() == index).sum(axis=0) for index in range(3)])
        mask = load_mask(out / row["mask"], generator.info)
        assert np.array_equal(mask, counts.argmax(axis=0))
        confidence = np.asarray(Image.open(out / "confidence" / Path(row["mask"]).name))
        assert np.array_equal(confidence, np.rint(255 * counts.max(axis=0) / 3))
        assert row["labels"]["confidence"] == pytest.approx(counts.max(axis=0).mean() / 3, abs=1e-4)
        assert "mask_made" not in row
    assert replay(out / "metadata.jsonl", 1)[1]
    with pytest.raises(InputError, match=r"dropped in all of 2 attempts \(2 draws of the mask disagree\)"):
        draw(run, tmp_path / "sure", labels={**labels, "min_confidence": 1, "max_attempts": 2})


def test_heads_on_the_features_of_a_generator_label_images(joint, tmp_path):
    """With their agreement as confidence; unsure pairs are dropped, counted, and replaced."""
    dataset, run = joint
    values = {"dataset": str(dataset), "image_size": 16, "crop_size": 24, "segmenter": {"flips": False}}
    (tmp_path / "segment.json").write_text(json.dumps({**values, "output_dir": str(tmp_path / "heads")}))
    quick = ["timesteps=[10]", "ensemble_size=3", "crops=12", "steps=40", f"generator={run}"]
    overrides = [part for setting in quick for part in ("--set", f"features.{setting}")]
    done = CliRunner().invoke(app, ["segment", "train", "-c", str(tmp_path / "segment.json"), *overrides])
    assert done.exit_code == 0, done.output
    labels, labeler = {"segmenter": str(tmp_path / "heads")}, load_labeler(tmp_path / "heads")

    out = draw(run, tmp_path / "out", labels=labels, num_samples=6)
    rows = load_rows(out)
    for row in rows:
        # Generated images have the scale of the crops already.
        mask, confidence = label_by_windows(labeler.network, load_image(out / row["file_name"]), 16, 16, 3)
        assert np.array_equal(load_mask(out / row["mask"], labeler.info), mask)
        written = np.asarray(Image.open(out / "confidence" / Path(row["mask"]).name))
        assert np.array_equal(written, np.rint(255 * confidence).astype(np.uint8))
        assert row["labels"]["confidence"] == pytest.approx(confidence.mean(), abs=1e-5)
    assert replay(out / "metadata.jsonl", 1)[1]

    median = float(np.median([row["labels"]["confidence"] for row in rows]))
    sure = draw(run, tmp_path / "sure", labels={**labels, "min_confidence": median}, num_samples=6)
    kept = load_rows(sure)
    assert min(row["labels"]["confidence"] for row in kept) >= median
    counted = json.loads((sure / "sampling.json").read_text())
    dropped = sum(count for row in kept for count in row["dropped"].values())
    assert dropped >= 1
    assert (counted["kept"], counted["dropped"]) == (6, {"segmenter is not sure enough": dropped})

    # Other weights of the feature network are another segmenter.
    before = hash_segmenter(tmp_path / "heads")
    assert rows[0]["labels"]["segmenter_sha256"] == before
    weights = tmp_path / "heads/generator/weights.safetensors"
    tensors = load_file(weights)
    save_file({name: tensor + 0.01 for name, tensor in tensors.items()}, weights)
    assert hash_segmenter(tmp_path / "heads") != before


def test_generators_of_masks_alone_are_for_masks(joint, tmp_path):
    values = joint_config(joint[0], tmp_path / "masks", {"image_channels": "none"}, max_steps=2)
    train(parse_config(values, TrainConfig), Recorder())
    assert (tmp_path / "masks/previews/step-000002.png").is_file()
    (tmp_path / "sample.json").write_text(json.dumps(build(tmp_path / "masks", tmp_path / "out")))
    refused = CliRunner().invoke(app, ["sample", "-c", str(tmp_path / "sample.json")])
    assert refused.exit_code == 2
    assert "makes masks alone; use it as generator of mask_source.kind 'learned'" in refused.stderr
    with pytest.raises(InputError, match=r"labels.generator: .* makes no masks for images"):
        draw(joint[1], tmp_path / "out", labels={"kind": "joint", "generator": str(tmp_path / "masks")})
    source = {"kind": "learned", "generator": str(tmp_path / "masks"), "solver": {"num_inference_steps": 2}}
    assert len(load_rows(draw(joint[1], tmp_path / "pairs", mask_source=source))) == 3
