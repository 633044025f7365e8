"""Fine-tuning on other classes, without masks, at another image size, with other gray levels."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from steelgen.config.base import parse_config
from steelgen.config.train import FinetuneConfig, TrainConfig
from steelgen.data.crops import load_micrographs
from steelgen.data.folder import load_dataset_info, save_dataset_info
from steelgen.data.placement import CropGeometry
from steelgen.errors import InputError
from steelgen.generators.families import adapt_generator, load_generator
from steelgen.training.loop import finetune, train
from steelgen.training.setup import prepare_finetuning
from tests.conftest import tiny_train_config, write_tiny_dataset
from tests.training.test_loop import Recorder


@pytest.fixture
def trained(tiny_dataset, tmp_path):
    return train_base(tiny_dataset, tmp_path)


def train_base(dataset, folder, **unet):
    values = tiny_train_config(dataset, folder / "base", max_steps=3)
    values["generator"]["unet"] |= unet
    train(parse_config(values, TrainConfig), Recorder())
    return folder / "base"


def finetune_values(trained, dataset, run_dir, **data):
    values = tiny_train_config(dataset, run_dir)
    del values["generator"]
    return {**values, "checkpoint": str(trained), "data": {**values["data"], **data}}


def list_mask_weights(network):
    return {name: weight for name, weight in network.state_dict().items() if name.endswith(".shared.weight")}


@pytest.mark.parametrize(("keep", "patch_size"), [(True, 1), (False, 1), (True, 2), (False, 2)])
def test_planes_of_classes_with_the_same_name_are_kept_and_the_others_are_new(tiny_dataset, tmp_path, keep, patch_size):
    trained = train_base(tiny_dataset, tmp_path, patch_size=patch_size)
    dataset = write_tiny_dataset(tmp_path / "other")
    names = ["film", "pore", "matrix"]  # the checkpoint has matrix, island, film
    save_dataset_info(dataset, load_dataset_info(dataset).model_copy(update={"class_names": names}))
    old, micrographs = load_generator(trained), load_micrographs(dataset, "train")
    torch.manual_seed(7)
    new, line = adapt_generator(old, micrographs, old.geometry, keep)
    torch.manual_seed(7)
    fresh = type(old.network)(**{key: value for key, value in old.network.config.items() if key[0] != "_"})
    before, created = list_mask_weights(old.network), list_mask_weights(fresh)
    assert before
    for name, weight in list_mask_weights(new.network).items():
        expected = [before[name][:, 2], created[name][:, 1], before[name][:, 0]] if keep else created[name].unbind(1)
        assert all(torch.equal(plane, other) for plane, other in zip(weight.unbind(1), expected, strict=True))
    others = {name: weight for name, weight in new.network.state_dict().items() if name not in before}
    assert all(torch.equal(weight, old.network.state_dict()[name]) for name, weight in others.items())
    assert new.info.class_names == names
    assert ("classes kept: film, matrix; classes new: pore; classes dropped: island" in line) == keep
    assert ("classes new: film, pore, matrix" in line) != keep


def test_another_number_of_classes_and_size_trains_and_resumes(trained, tmp_path):
    dataset = write_tiny_dataset(tmp_path / "two", num_classes=2)
    values = finetune_values(trained, dataset, tmp_path / "run", image_size=32, crop_size=32)
    finetune(parse_config(values, FinetuneConfig), Recorder())
    note = json.loads((tmp_path / "run/transfer.json").read_text())["note"]
    assert "image_size 16 -> 32" in note
    assert "classes kept: matrix, island; classes dropped: film" in note
    generator = load_generator(tmp_path / "run")
    assert (generator.info.num_classes, generator.geometry.image_size) == (2, 32)
    assert list(generator.network.config["attention_resolutions"]) == [16]  # the same level as before
    stopped = {**values, "run_dir": str(tmp_path / "stopped")}
    stopped["train"] = {**values["train"], "max_steps": 2}
    finetune(parse_config(stopped, FinetuneConfig), Recorder())
    stopped["train"] = values["train"]
    finetune(parse_config(stopped, FinetuneConfig), Recorder(), resume=True)
    resumed = load_generator(tmp_path / "stopped").network.state_dict()
    assert all(torch.equal(weight, resumed[name]) for name, weight in generator.network.state_dict().items())


def test_from_masks_to_none_and_back(trained, tmp_path):
    dataset = write_tiny_dataset(tmp_path / "other")
    without = finetune_values(trained, dataset, tmp_path / "without", unconditional=True)
    finetune(parse_config(without, FinetuneConfig), Recorder())
    generator = load_generator(tmp_path / "without")
    assert generator.info.num_classes == 0
    assert not list_mask_weights(generator.network)
    back = finetune_values(tmp_path / "without", dataset, tmp_path / "back")
    finetune(parse_config(back, FinetuneConfig), Recorder())
    assert load_generator(tmp_path / "back").info.class_names == ["matrix", "island", "film"]


def test_gray_levels_are_those_of_the_new_set(trained, tiny_dataset, tmp_path):
    dataset = write_tiny_dataset(tmp_path / "dark")
    for path in (dataset / "train/images").iterdir():
        Image.fromarray((np.asarray(Image.open(path)) // 2).astype(np.uint8)).save(path)
    lines = []
    config = parse_config(finetune_values(trained, dataset, tmp_path / "run"), FinetuneConfig)
    generator, micrographs = prepare_finetuning(config, lines.append)
    assert generator.intensity == micrographs.compute_intensity() != load_generator(trained).intensity
    assert "gray levels " in lines[0]
    same = parse_config(finetune_values(trained, tiny_dataset, tmp_path / "run"), FinetuneConfig)
    generator, _ = prepare_finetuning(same, lines.append)
    assert generator.intensity == load_generator(trained).intensity
    assert len(lines) == 1


def test_what_cannot_be_adapted_is_one_line(trained, tmp_path):
    dataset = write_tiny_dataset(tmp_path / "two", num_classes=2)
    old, micrographs = load_generator(trained), load_micrographs(dataset, "train")
    with pytest.raises(InputError, match=r"data\.image_size 17: must be a multiple of 2"):
        adapt_generator(old, micrographs, CropGeometry(17, 24), True)
    flat = replace(micrographs, images=[np.full_like(image, 9) for image in micrographs.images])
    with pytest.raises(InputError, match="all pixels of the training micrographs have the same gray level"):
        adapt_generator(old, flat, old.geometry, True)
    values = {**finetune_values(trained, dataset, tmp_path / "run"), "continue_training": True}
    with pytest.raises(InputError, match="continue_training: needs the classes, conditions and image_size of"):
        prepare_finetuning(parse_config(values, FinetuneConfig))
    color = finetune_values(trained, dataset, tmp_path / "run", in_channels=3)
    with pytest.raises(InputError, match=r"was trained with in_channels 1, data\.in_channels is 3"):
        prepare_finetuning(parse_config(color, FinetuneConfig))


def test_frozen_parts_stay_bit_for_bit_and_are_not_in_the_optimizer(trained, tiny_dataset, tmp_path):
    values = {**finetune_values(trained, tiny_dataset, tmp_path / "run"), "freeze": ["encoder", "spade", "time"]}
    finetune(parse_config(values, FinetuneConfig), Recorder())
    before, after = (load_generator(path).network for path in (trained, tmp_path / "run"))
    live = load_file(sorted((tmp_path / "run/checkpoints").iterdir())[-1] / "weights.safetensors")
    frozen = {
        name
        for name, _ in before.named_parameters()
        if name.split(".")[0] in ("encoder", "time_mlp") or ".shared." in name or ".to_modulation." in name
    }
    for name, weight in before.state_dict().items():
        for changed in (after.state_dict()[name], live[name]):
            assert torch.equal(weight, changed) == (name in frozen), name
    moments = load_file(sorted((tmp_path / "run/checkpoints").iterdir())[-1] / "optimizer.safetensors")
    assert len([key for key in moments if key.endswith(".exp_avg")]) == len(before.state_dict()) - len(frozen)
    count = sum(before.state_dict()[name].numel() for name in frozen)
    note = json.loads((tmp_path / "run/transfer.json").read_text())["note"]
    assert f"frozen: encoder, spade, time ({count:,} of " in note


def test_a_frozen_run_resumes_bit_by_bit(trained, tiny_dataset, tmp_path):
    values = {**finetune_values(trained, tiny_dataset, tmp_path / "whole"), "freeze": ["middle"]}
    finetune(parse_config(values, FinetuneConfig), Recorder())
    part = {**values, "run_dir": str(tmp_path / "part"), "train": {**values["train"], "max_steps": 2}}
    finetune(parse_config(part, FinetuneConfig), Recorder())
    finetune(parse_config({**part, "train": values["train"]}, FinetuneConfig), Recorder(), resume=True)
    whole, resumed = (load_generator(tmp_path / name).network.state_dict() for name in ("whole", "part"))
    assert all(torch.equal(weight, resumed[name]) for name, weight in whole.items())


def test_wrong_parts_are_one_line(trained, tiny_dataset, tmp_path):
    values = finetune_values(trained, tiny_dataset, tmp_path / "run")
    parts = ["time", "input", "encoder", "middle", "spade", "decoder", "output"]
    for freeze, message in [
        (["decodr"], r"freeze: the generator has no part 'decodr'; its parts are .*decoder"),
        (parts, "names all parts of the generator"),
    ]:
        with pytest.raises(InputError, match=message):
            finetune(parse_config({**values, "freeze": freeze}, FinetuneConfig), Recorder())
    assert not (tmp_path / "run").exists()
    with pytest.raises(InputError, match="not applicable with continue_training"):
        parse_config({**values, "freeze": ["input"], "continue_training": True}, FinetuneConfig)
    without = finetune_values(trained, tiny_dataset, tmp_path / "run", unconditional=True)
    with pytest.raises(InputError, match="has no part 'spade'"):
        prepare_finetuning(parse_config({**without, "freeze": ["spade"]}, FinetuneConfig))
