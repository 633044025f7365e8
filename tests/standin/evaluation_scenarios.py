"""Evaluation, segmentation and the utility study on the pretended device: the CPU's figures."""

import numpy as np
import pytest

from steelgen.config.base import parse_config
from steelgen.config.evaluate import EvaluateConfig
from steelgen.config.segment import SegmentConfig
from steelgen.config.train import TrainConfig
from steelgen.config.utility import UtilityConfig
from steelgen.data.images import load_index_image
from steelgen.evaluation.evaluate import evaluate
from steelgen.evaluation.labeled_folders import label_folder
from steelgen.evaluation.labeler import load_labeler
from steelgen.evaluation.segment import train_labeler
from steelgen.evaluation.study import utility
from steelgen.training.setup import prepare_training
from tests.conftest import tiny_train_config, write_tiny_dataset
from tests.standin.device import steelgen_on_device

GEOMETRY = {"image_size": 24, "crop_size": 24}
SEGMENTER = {"steps": 3, "batch_size": 2, "base_channels": 8, "num_levels": 1, "train_size": 24}


@pytest.fixture
def dataset(tmp_path):
    return write_tiny_dataset(tmp_path / "tiny", splits=(("train", 4), ("val", 2), ("test", 4)))


@pytest.fixture
def pairs(tmp_path):
    """Four pairs in place of generated ones."""
    return write_tiny_dataset(tmp_path / "pairs", size=(24, 24), splits=(("train", 4),)) / "train"


def compare(act, tmp_path):
    """What `act` returns for an output folder, on the device and on the CPU."""
    with steelgen_on_device():
        on_device = act(tmp_path / "device")
    return on_device, act(tmp_path / "cpu")


def test_evaluate(dataset, pairs, tmp_path):
    def act(out):
        paths = {"generated": str(pairs), "dataset": str(dataset), "output_dir": str(out / "report")}
        values = {"cache_dir": str(out / "cache"), "geometry": GEOMETRY, "segmenter": SEGMENTER}
        result = evaluate(parse_config({**paths, **values, "memorization": {"search_size": 8}}, EvaluateConfig))
        return {(figure["section"], figure["metric"], figure["compared"]): figure for figure in result["figures"]}

    on_device, on_cpu = compare(act, tmp_path)
    assert {"fidelity", "faithfulness", "microstructure", "memorization"} == {section for section, *_ in on_cpu}
    for name, figure in on_cpu.items():
        for key in ("value", "floor"):
            # A segmenter of three steps may miss a class: then neither is defined.
            expected = figure[key] if figure[key] is None else pytest.approx(figure[key], rel=1e-3, abs=1e-4)
            assert on_device[name][key] == expected, name


def test_segment(dataset, tmp_path):
    def act(out):
        values = {"dataset": str(dataset), "output_dir": str(out / "segmenter"), "segmenter": SEGMENTER}
        scores = train_labeler(parse_config({**values, **GEOMETRY}, SegmentConfig))
        label_folder(load_labeler(out / "segmenter"), dataset / "test" / "images", out / "labels")
        masks = [load_index_image(path) for path in sorted((out / "labels" / "masks").glob("*.png"))]
        return scores["mean_iou"], np.stack(masks)

    (iou_on_device, on_device), (iou_on_cpu, on_cpu) = compare(act, tmp_path)
    assert iou_on_device == pytest.approx(iou_on_cpu, abs=1e-3)
    assert np.mean(on_device != on_cpu) < 1e-3
    assert len(np.unique(on_cpu)) > 1


@pytest.mark.parametrize("kind", ["diffusion", "multiscale"])
def test_heads_on_features(kind, dataset, tmp_path):
    features = {"kind": kind, "ensemble_size": 2, "crops": 4, "steps": 5}
    if kind == "diffusion":
        values = tiny_train_config(dataset, tmp_path / "unused")
        generator, _ = prepare_training(parse_config({**values, "data": {**values["data"], **GEOMETRY}}, TrainConfig))
        generator.save(tmp_path / "generator")
        features["generator"] = str(tmp_path / "generator")

    def act(out):
        values = {"dataset": str(dataset), "output_dir": str(out / "heads"), "segmenter": {"train_size": 24}}
        train_labeler(parse_config({**values, **GEOMETRY, "features": features}, SegmentConfig))
        label_folder(load_labeler(out / "heads"), dataset / "test" / "images", out / "labels")
        masks = [load_index_image(path) for path in sorted((out / "labels" / "masks").glob("*.png"))]
        return np.stack(masks)

    on_device, on_cpu = compare(act, tmp_path)
    assert np.mean(on_device != on_cpu) < 1e-2
    assert len(np.unique(on_cpu)) > 1


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_utility(precision, dataset, pairs, tmp_path):
    """One cell; the figures are the CPU's in fp32 alone, since CUDA takes other operators to bf16."""

    def act(out):
        paths = {"dataset": str(dataset), "generated": str(pairs), "output_dir": str(out)}
        training = {"steps": 2, "batch_size": 2, "base_channels": 8, "validate_every": 2}
        values = {"codes": ["R2F2"], "architectures": ["unet"], "seeds": [0], "mixed_precision": precision}
        config = {**paths, **values, "training": training, "num_bootstrap": 100, "geometry": GEOMETRY}
        return utility(parse_config(config, UtilityConfig))["scores"][0]["mean_iou"]

    on_device, on_cpu = compare(act, tmp_path)
    assert 0 < on_device <= 1
    assert precision != "no" or on_device == pytest.approx(on_cpu, abs=1e-3)
