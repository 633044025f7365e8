"""Cascades and refining generators through runs, shards and replay."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from steelgen.config.base import config_to_json, parse_config
from steelgen.config.sample import SampleConfig
from steelgen.config.slurm import SlurmProfile
from steelgen.config.train import TrainConfig
from steelgen.config.workflow import WorkflowConfig
from steelgen.data.crops import image_to_tensor
from steelgen.data.folder import load_dataset_info, save_mask
from steelgen.diffusion.refinement import shrink
from steelgen.errors import InputError
from steelgen.files import load_json
from steelgen.sampling.replay import replay
from steelgen.sampling.sample import sample
from steelgen.shards import Shard
from steelgen.training.loop import train
from steelgen.workflow import plan_workflow, submit_workflow
from tests.conftest import tiny_train_config
from tests.sampling.test_sample import draw
from tests.training.test_loop import Recorder

SOLVER = {"num_inference_steps": 2, "guidance_scale": 1, "window_overlap": 0.25}


def refine_values(dataset, run_dir, **low_resolution):
    values = tiny_train_config(dataset, run_dir, max_steps=2, learning_rate=0.01)
    # The first stage shrinks micrographs 24/16 times; half of a pixel of that is 12/16 px of the micrograph.
    values["data"] |= {"image_size": 16, "crop_size": 12}
    values["generator"]["unet"] |= {"attention_resolutions": [], "middle_attention": False}
    values["generator"]["low_resolution"] = {"factor": 2, **low_resolution}
    values["validation"] = {"every": 2, "crops": 8}
    return values


@pytest.fixture(scope="module")
def refining(trained, tmp_path_factory):
    """Run folder of a briefly trained refining generator for the `trained` one."""
    run_dir = tmp_path_factory.mktemp("refining") / "run"
    train(parse_config(refine_values(trained[0], run_dir), TrainConfig), Recorder())
    return run_dir


def stages(trained, refining):
    return [{"generator": str(trained[1]), "solver": SOLVER}, {"generator": str(refining), "solver": SOLVER}]


def draw_cascade(trained, refining, out, shard=None, **options):
    values = {
        "stages": stages(trained, refining),
        "output_dir": str(out),
        "mask_source": {"kind": "split", "dataset": str(trained[0]), "split": "test"},
        "num_samples": 3,
        **options,
    }
    return sample(parse_config(values, SampleConfig), shard=shard)


def pixels(path):
    return np.asarray(Image.open(path))


def rows(out):
    return [json.loads(line) for line in (out / "metadata.jsonl").read_text().splitlines()]


def test_training_writes_previews_and_validates_a_refining_generator(refining):
    assert pixels(refining / "previews/step-000002.png").size
    values = [json.loads(line) for line in (refining / "metrics.jsonl").read_text().splitlines()]
    assert 0.2 < values[-1]["val_loss"] < 5


def test_a_cascade_draws_at_the_scale_of_its_last_stage_and_replays(trained, refining, tmp_path):
    out = draw_cascade(trained, refining, tmp_path / "out", coco=True)
    assert pixels(out / "samples/000000.png").shape == pixels(out / "labels/000000.png").shape == (32, 32)
    assert load_json(out / "sampling.json")["crop_size"] == 24
    row = rows(out)[1]
    assert row["generator"] == str(refining)
    assert [stage["generator"] for stage in row["draw"]["stages"]] == [str(trained[1]), str(refining)]
    assert row["draw"]["stages"][1]["model_sha256"] == row["model_sha256"] != row["draw"]["stages"][0]["model_sha256"]
    for line in (1, 2, 3):
        assert replay(out / "metadata.jsonl", line)[1] is True
    with pytest.raises(InputError, match="--generator moved: not applicable to a cascade"):
        replay(out / "metadata.jsonl", 1, tmp_path / "again.png", type(tmp_path)("moved"))


def test_batches_and_shards_of_a_cascade_change_nothing(trained, refining, tmp_path):
    options = {"mask_source": {"kind": "split", "dataset": str(trained[0]), "split": "test", "whole": True}}
    whole = draw_cascade(trained, refining, tmp_path / "whole", **options)
    for number in (2, 1):
        draw_cascade(trained, refining, tmp_path / "shards", Shard(number, 2), batch_size=1, **options)
    draw_cascade(trained, refining, tmp_path / "shards", batch_size=1, **options)
    for index in range(3):
        name = f"samples/{index:06d}.png"
        assert sorted(pixels(whole / name).shape) == [53, 64]
        assert np.array_equal(pixels(whole / name), pixels(tmp_path / "shards" / name))


def test_other_weights_of_the_first_stage_are_noticed(trained, refining, tmp_path):
    moved = tmp_path / "first"
    moved.mkdir()
    for path in (trained[1] / "export").rglob("*"):
        if path.is_file():
            (moved / path.relative_to(trained[1] / "export")).parent.mkdir(parents=True, exist_ok=True)
            (moved / path.relative_to(trained[1] / "export")).write_bytes(path.read_bytes())
    first = (trained[0], moved)
    out = draw_cascade(first, refining, tmp_path / "out")
    weights = next(moved.rglob("*.safetensors"))
    values = load_file(weights)
    values["conv_in.bias"] += 1
    save_file(values, weights, {"format": "pt"})
    with pytest.raises(InputError, match=r"first: the weights differ from those of .*metadata\.jsonl:1"):
        replay(out / "metadata.jsonl", 1)
    with pytest.raises(InputError, match=r"stages\.0\.generator was .*, is now .*"):
        draw_cascade(first, refining, out, num_samples=4)


def test_images_of_a_folder_are_refined_with_and_without_masks(trained, refining, tmp_path):
    rng, info = np.random.default_rng(0), load_dataset_info(trained[0])
    sizes = {"a": (16, 16), "b": (21, 18)}
    (tmp_path / "images").mkdir()
    for name, size in sizes.items():
        smooth = np.kron(rng.integers(60, 200, (4, 4)), np.ones((6, 6)))[: size[0], : size[1]]
        Image.fromarray(smooth.astype(np.uint8)).save(tmp_path / f"images/{name}.png")
        mask = np.zeros([2 * edge - (name == "b") for edge in size], np.uint8)
        mask[: size[0]] = 1
        save_mask(tmp_path / f"masks/{name}.png", mask, info.palette)
    source = {"kind": "images", "folder": str(tmp_path / "images")}
    options = {"num_samples": 2, "solver": SOLVER}
    plain = draw((trained[0], refining), tmp_path / "plain", mask_source=source, **options)
    source["masks"] = str(tmp_path / "masks")
    labeled = draw((trained[0], refining), tmp_path / "labeled", mask_source=source, **options)
    for index, (name, (height, width)) in enumerate(sizes.items()):
        coarse = image_to_tensor(pixels(tmp_path / f"images/{name}.png"))[None]
        for out, odd in ((plain, 0), (labeled, name == "b")):
            refined = pixels(out / f"samples/{index:06d}.png")
            assert refined.shape == (2 * height - odd, 2 * width - odd)
            error = shrink(image_to_tensor(refined)[None], 2) - coarse
            assert 10 * torch.log10(4 / error.square().mean()) > 30
            assert replay(out / "metadata.jsonl", index + 1)[1] is True
        assert np.array_equal(pixels(labeled / f"labels/{index:06d}.png"), pixels(tmp_path / f"masks/{name}.png"))
    assert not (plain / "labels").exists()


def test_real_crops_are_refined_from_their_own_shrunken_copies(trained, refining, tmp_path):
    out = draw((trained[0], refining), tmp_path / "out", num_samples=2, solver=SOLVER)
    for index in range(2):
        real, refined = (image_to_tensor(pixels(out / f"{folder}/{index:06d}.png")) for folder in ("images", "samples"))
        error = shrink(refined[None], 2) - shrink(real[None], 2)
        assert 10 * torch.log10(4 / error.square().mean()) > 30
        assert replay(out / "metadata.jsonl", index + 1)[1] is True


@pytest.mark.parametrize("first", ["", "train", "finetune"])
def test_a_folder_that_holds_both_is_a_cascade(first, tmp_path):
    (tmp_path / "both" / "refine").mkdir(parents=True)
    (tmp_path / "both" / first).mkdir(exist_ok=True)
    masks = {"kind": "split", "dataset": str(tmp_path), "split": "test"}
    values = {"stages": str(tmp_path / "both"), "output_dir": str(tmp_path / "out"), "mask_source": masks}
    config = parse_config(values, SampleConfig)
    assert [stage.generator for stage in config.stages] == [tmp_path / "both" / first, tmp_path / "both" / "refine"]
    assert [stage.solver.num_inference_steps for stage in config.stages] == [12, 6]
    config = parse_config({**values, "solver": {"num_inference_steps": 3}}, SampleConfig)
    assert [stage.solver.num_inference_steps for stage in config.stages] == [3, 6]
    assert parse_config(config_to_json(config), SampleConfig) == config
    with pytest.raises(InputError, match=r"stages: .* has no folder 'refine', so it is no cascade"):
        parse_config({**values, "stages": str(tmp_path)}, SampleConfig)


def test_configs_and_masks_that_do_not_fit_are_refused_before_anything_is_written(trained, refining, tmp_path):
    out = tmp_path / "out"
    info = load_dataset_info(trained[0])
    save_mask(tmp_path / "small/a.png", np.zeros((30, 40), np.uint8), info.palette)
    save_mask(tmp_path / "other/b.png", np.zeros((30, 30), np.uint8), info.palette)
    (tmp_path / "images").mkdir()
    Image.fromarray(np.zeros((16, 16), np.uint8)).save(tmp_path / "images/b.png")
    both, masks = stages(trained, refining), {"kind": "folder", "folder": str(tmp_path / "small")}
    images = {"kind": "images", "folder": str(tmp_path / "images")}
    cases = [
        ({"generator": str(trained[1])}, "stages: not applicable with `generator`"),
        ({"stages": []}, "generator: is missing"),
        ({"stages": both[:1]}, "a cascade has at least two"),
        ({"stages": both[::-1]}, f"{refining} needs coarse images, so it cannot be the first stage"),
        ({"stages": [both[0], both[0]]}, "does not refine images, so it can only be the first stage"),
        ({"mask_source": masks}, "the mask is 40x30, smaller than the generator's image_size 32"),
        ({"mask_source": images}, "mask_source.kind 'images': not applicable to generators of kind cascade"),
        ({"solver": {"num_inference_steps": 9}}, "solver: not applicable with stages.0.solver, which is another"),
        ({"stages": [], "generator": str(refining), "mask_source": masks}, "kind 'folder': has no images"),
        (
            {"stages": [], "generator": str(refining), "mask_source": {**images, "masks": str(tmp_path / "other")}},
            "the mask is 30x30, but its image is 16x16, refined 2 times",
        ),
        (
            {"stages": [], "generator": str(trained[1]), "solver": {"consistency": False}},
            "solver.consistency: only applicable to refining generators",
        ),
    ]
    for options, message in cases:
        with pytest.raises(InputError) as caught:
            draw_cascade(trained, refining, out, **options)
        assert message in str(caught.value)
        assert "\n" not in str(caught.value)
        assert not out.exists()


def workflow_values(trained):
    return {
        "train": tiny_train_config(trained[0], "first"),
        "refine": refine_values(trained[0], "second"),
        "sample": {
            "stages": ["first", "second"],
            "output_dir": "samples",
            "mask_source": {"kind": "split", "dataset": str(trained[0])},
        },
    }


def test_a_workflow_trains_the_refining_stage_before_it_samples(trained):
    values = workflow_values(trained)
    planned = plan_workflow(parse_config(values, WorkflowConfig))
    assert [(stage.action, str(stage.output)) for stage in planned] == [
        ("train", "first"),
        ("refine", "second"),
        ("sample", "samples"),
    ]
    for change, message in (
        ({"stages": ["first", "third"]}, "sample.stages.1.generator is third, but must be in refine.run_dir second"),
        ({"stages": ["zeroth", "second"]}, "sample.stages.0.generator is zeroth, but must be in train.run_dir first"),
        ({"stages": [], "generator": "first"}, "refine: needs sample.stages, whose last one it trains"),
    ):
        with pytest.raises(InputError, match=message):
            parse_config({**values, "sample": {**values["sample"], **change}}, WorkflowConfig)


def test_a_refining_stage_is_a_training_job_of_its_own(trained, tmp_path, monkeypatch):
    jobs = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "steelgen.workflow.submit_job",
        lambda job, profile, after: jobs.append((job.action, str(job.output), after)) or str(len(jobs)),
    )
    submit_workflow(parse_config(workflow_values(trained), WorkflowConfig), SlurmProfile(), print)
    assert jobs == [
        ("train", "first", None),
        ("train", "second", "1"),
        ("sample", "samples", "2"),
        ("gather", "samples", "3"),
    ]
    assert load_json(tmp_path / "second.slurm" / "train.json")["generator"]["low_resolution"]["factor"] == 2
