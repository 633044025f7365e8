"""Training, sampling and evaluation without masks."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from steelgen.config.base import parse_config
from steelgen.config.evaluate import EvaluateConfig
from steelgen.config.sample import SampleConfig
from steelgen.config.train import TrainConfig
from steelgen.data.check import check_dataset
from steelgen.data.crops import load_micrographs
from steelgen.data.folder import list_splits, load_dataset_info
from steelgen.data.importers.options import ReadOptions
from steelgen.data.importing import READERS
from steelgen.data.resplit import resplit_dataset
from steelgen.errors import InputError
from steelgen.evaluation.evaluate import evaluate
from steelgen.generators.drawing import draw_for_masks
from steelgen.generators.families import load_generator
from steelgen.models.semantic_unet import SemanticUNet
from steelgen.models.spade import GroupNorm, SpadeNorm
from steelgen.sampling.replay import replay
from steelgen.sampling.sample import sample
from steelgen.training.loop import train
from tests.conftest import tiny_train_config
from tests.training.test_loop import Recorder

TINY = dict(image_size=16, base_channels=8, channel_mult=(1, 2), num_res_blocks=1, attention_resolutions=(8,))
TINY |= dict(num_head_channels=8, spade_channels=8, norm_groups=4)


@pytest.fixture
def unlabeled(tiny_dataset):
    """The tiny set without masks and without dataset.json."""
    (tiny_dataset / "dataset.json").unlink()
    for masks in tiny_dataset.glob("*/masks"):
        shutil.rmtree(masks)
    return tiny_dataset


def run_tiny(dataset, run_dir, noise=(), **data):
    values = tiny_train_config(dataset, run_dir, max_steps=2)
    values["data"].update(data)
    values["generator"]["noise"].update(noise)
    values["validation"] = {"every": 2, "crops": 8}
    train(parse_config(values, TrainConfig), Recorder())
    return load_generator(run_dir)


def linear_schedule():
    """ISDM's, which leaves signal at its last step."""
    return {"beta_schedule": "linear", "prediction_type": "epsilon", "zero_terminal_snr": False}


def sample_tiny(run_dir, out, **further):
    values = {"generator": str(run_dir), "output_dir": str(out), "mask_source": {"kind": "none"}, "num_samples": 5}
    values |= {"solver": {"num_inference_steps": 2}, **further}
    return sample(parse_config(values, SampleConfig))


def test_images_alone_are_trained_on_drawn_and_evaluated(unlabeled, tmp_path):
    generator = run_tiny(unlabeled, tmp_path / "run")
    assert generator.info.class_names == []
    assert not any(isinstance(module, SpadeNorm) for module in generator.network.modules())
    assert json.loads((tmp_path / "run/best/selection.json").read_text())["criterion"] == "val_loss"
    out = sample_tiny(tmp_path / "run", tmp_path / "samples")
    assert {path.name for path in out.iterdir() if path.is_dir()} == {"samples"}
    assert load_dataset_info(out).class_names == []
    path, same = replay(out / "metadata.jsonl", 3)
    assert same
    assert path.is_file()
    config = {"generated": str(out), "dataset": str(unlabeled), "output_dir": str(tmp_path / "evaluation")}
    result = evaluate(parse_config({**config, "memorization": {"max_images": 2}}, EvaluateConfig))
    assert {figure["section"] for figure in result["figures"]} == {"fidelity", "memorization"}
    assert "faithfulness is not measured: the dataset has no masks" in result["warnings"]
    assert (tmp_path / "evaluation/report.html").is_file()


def test_unconditional_though_there_are_masks(tiny_dataset, tmp_path):
    """Nothing of the masks goes in: the same run as on the images alone."""
    one = run_tiny(tiny_dataset, tmp_path / "masked", unconditional=True).network.state_dict()
    for masks in tiny_dataset.glob("*/masks"):
        shutil.rmtree(masks)
    (tiny_dataset / "dataset.json").unlink()
    other = run_tiny(tiny_dataset, tmp_path / "bare").network.state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_samples_without_masks_train_on(unlabeled, tmp_path):
    run_tiny(unlabeled, tmp_path / "run")
    out = sample_tiny(tmp_path / "run", tmp_path / "synthetic", output_format="dataset")
    assert list_splits(out) == ["train"]
    assert len(load_micrographs(out, "train")) == 5


def test_a_conditional_generator_draws_with_the_null_mask(tiny_dataset, tmp_path):
    generator = run_tiny(tiny_dataset, tmp_path / "run")
    out = sample_tiny(tmp_path / "run", tmp_path / "samples")
    null = torch.full((1, 16, 16), 255)
    solver = parse_config(
        {"generator": "x", "output_dir": "y", "mask_source": {"kind": "none"}, "solver": {"num_inference_steps": 2}},
        SampleConfig,
    ).solver
    drawn = draw_for_masks(generator, null, [3], solver.model_copy(update={"guidance_scale": 1.0}))[0, 0]
    expected = ((drawn + 1) * 127.5).round().numpy()
    assert np.array_equal(np.asarray(Image.open(out / "samples/000003.png")), expected)


def test_a_network_without_classes_is_plain_and_calls_nothing_for_masks(monkeypatch):
    torch.manual_seed(0)
    network = SemanticUNet(num_classes=0, instance_edges=True, **TINY)
    masked = SemanticUNet(num_classes=2, **TINY)
    # All parameters but those of the norms are the same as those of the conditional network.
    shapes = {name: p.shape for name, p in network.named_parameters() if ".norm_" not in name}
    assert shapes == {name: p.shape for name, p in masked.named_parameters() if ".norm_" not in name}
    blocks = [module for name, module in network.named_modules() if name.endswith(("norm_1", "norm_2"))]
    assert blocks
    assert all(type(module) is GroupNorm for module in blocks)
    image, timesteps = torch.randn(2, 1, 16, 16), torch.tensor([3, 7])
    nn.init.normal_(network.conv_out.weight)
    output = network(image, timesteps, torch.zeros(2, 0, 16, 16))
    assert output.shape == image.shape
    assert torch.isfinite(output).all()
    assert output.std() > 0


def test_without_masks_an_image_costs_one_evaluation_a_step(unlabeled, tmp_path):
    generator = run_tiny(unlabeled, tmp_path / "run")
    rows = []
    generator.network.register_forward_hook(lambda module, arguments, output: rows.append(len(output)))
    solver = parse_config(tiny_train_config("x", "y"), TrainConfig).preview.solver
    assert solver.guidance_scale == 2
    draw_for_masks(generator, torch.full((1, 16, 16), 255), [0], solver)
    assert rows == [1, 1]


def test_a_plain_folder_of_images(tmp_path, unlabeled):
    folder = tmp_path / "plain"
    shutil.copytree(unlabeled / "train/images", folder)
    assert list_splits(folder) == ["train"]
    micrographs = load_micrographs(folder, "train")
    assert micrographs.stems == ["train0", "train1", "train2", "train3"]
    assert {int(mask.min()) for mask in micrographs.masks} == {255}
    report = check_dataset(folder)
    assert report.problems == []
    assert report.splits["train"].num_images == 4
    run_tiny(folder, tmp_path / "run")
    counts, _ = resplit_dataset(folder, tmp_path / "split", {"train": 0.5, "val": 0.25, "test": 0.25})
    assert counts == {"test": 1, "train": 2, "val": 1}
    assert not list((tmp_path / "split").glob("*/masks"))
    with pytest.raises(InputError, match="has images without masks, which `steelgen train` reads directly"):
        READERS["folder"].read(folder, ReadOptions())


def test_masks_that_are_missing_where_there_are_classes(tiny_dataset, tmp_path):
    shutil.rmtree(tiny_dataset / "train/masks")
    with pytest.raises(InputError, match=r"has no mask, but its dataset has classes \(matrix, island, film\)"):
        load_micrographs(tiny_dataset, "train")
    assert "no such folder" in {problem.message for problem in check_dataset(tiny_dataset).problems}


def test_masks_for_a_generator_without(unlabeled, tiny_dataset, tmp_path):
    run_tiny(unlabeled, tmp_path / "run")
    masks = {"kind": "split", "dataset": str(tiny_dataset), "split": "test"}
    with pytest.raises(InputError, match="the generator was trained without masks; use kind 'none'"):
        sample_tiny(tmp_path / "run", tmp_path / "samples", mask_source=masks)
    with pytest.raises(InputError, match="coco needs masks"):
        sample_tiny(tmp_path / "run", tmp_path / "samples", coco=True)


@pytest.mark.parametrize("masked", [False, True])
def test_without_masks_from_real_images(tiny_dataset, tmp_path, masked):
    """Of a generator without masks on bare images, and of one with masks on a dataset that has them."""
    if not masked:
        (tiny_dataset / "dataset.json").unlink()
        for masks in tiny_dataset.glob("*/masks"):
            shutil.rmtree(masks)
    run_tiny(tiny_dataset, tmp_path / "run", noise=linear_schedule())
    dataset = {"dataset": str(tiny_dataset)}
    plain = sample_tiny(tmp_path / "run", tmp_path / "plain")
    faint = sample_tiny(tmp_path / "run", tmp_path / "faint", start_images={**dataset, "strength": 0.05})
    assert not (faint / "labels").exists()
    assert replay(faint / "metadata.jsonl", 2)[1]
    assert (faint / "samples/000001.png").read_bytes() != (plain / "samples/000001.png").read_bytes()
    row = json.loads((faint / "metadata.jsonl").read_text().splitlines()[1])
    assert row["draw"]["strength"] == 0.05
    with pytest.raises(InputError, match=r"start_images\.dataset: is missing; masks of the source 'none'"):
        sample_tiny(tmp_path / "run", tmp_path / "refused", start_images={"strength": 0.5})
    assert not (tmp_path / "refused").exists()
