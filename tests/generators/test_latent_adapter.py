"""Adapters of a pretrained Stable Diffusion, on a tiny base with random weights: mechanics, exports, training."""

import json
import warnings

import numpy as np
import pytest
import torch
from diffusers import (
    ControlNetModel,
    DPMSolverMultistepScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
)
from safetensors.torch import load_file, save_file
from torch.utils.data import default_collate

from steelgen.config.base import parse_config
from steelgen.config.solver import SolverSection
from steelgen.config.train import TrainConfig
from steelgen.data.crops import image_to_tensor, load_micrographs
from steelgen.data.drivers import compute_drivers
from steelgen.data.images import load_image
from steelgen.data.placement import CropGeometry
from steelgen.devices import randn_by_seed
from steelgen.errors import InputError
from steelgen.files import hash_files
from steelgen.generators import DrawRequest, StartImages
from steelgen.generators.families import adapt_generator, build_trainable, load_generator
from steelgen.generators.latent_adapter import class_images
from steelgen.generators.latent_adapter.generator import compute_tint
from steelgen.generators.latent_adapter.hub import fetch_base, find_base
from steelgen.generators.latent_adapter.lora import LORA_FILE
from steelgen.training.batch_size import take_steps
from steelgen.training.loop import train
from steelgen.training.setup import build_crops, prepare_training
from tests.conftest import write_tiny_dataset
from tests.generators.tiny_base import save_tiny_base
from tests.training.test_loop import Recorder, assert_same_tensors

FEW = SolverSection(name="ddim", num_inference_steps=3, guidance_scale=1.0, timestep_spacing="trailing")
SEEDS = (3, 4)
CONTROL = {"drivers": ["classes", "outlines"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny base in `base`, a dataset in `tiny`; class images take few steps."""
    folder = tmp_path_factory.mktemp("adapter")
    save_tiny_base(folder / "base")
    write_tiny_dataset(folder / "tiny")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(class_images, "_SOLVER", class_images._SOLVER.model_copy(update={"num_inference_steps": 3}))
        yield folder


def build_config(folder, run_dir="unused", train=None, **section):
    return {
        "run_dir": str(folder / run_dir),
        "data": {"dataset": str(folder / "tiny"), "image_size": 16, "crop_size": 24},
        "generator": {
            "kind": "latent_adapter",
            "base": str(folder / "base"),
            "token": "zq",
            "prompt": "{token} steel",
            "class_prompt": "steel",
            **{"lora": {"rank": 2, "alpha": 6}, **section},
        },
        "train": {
            "max_steps": 4,
            "train_batch_size": 2,
            "warmup_steps": 0,
            "learning_rate": 0.05,
            "checkpoint_every": 2,
            "log_every": 1,
            **(train or {}),
        },
        "preview": {"num_images": 0},
        "validation": {"every": 2, "crops": 8},
        "measurement": {"every": None},
    }


def build(folder, **section):
    return prepare_training(parse_config(build_config(folder, **section), TrainConfig))[0]


def draw(generator, masks=None, solver=FEW, seeds=SEEDS, **request):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tint of random weights
        return generator.draw(DrawRequest(list(seeds), masks, solver=solver, **request)).images


def make_masks(height=16, width=16):
    masks = torch.zeros(2, height, width, dtype=torch.int64)
    masks[0, 4:12, 2:9], masks[1, 1:6] = 1, 2
    return masks


def draw_plainly(pipeline, prompt, **options):
    """What diffusers makes with the same noise and solver, in color, clipped to [-1, 1]."""
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = DPMSolverMultistepScheduler.from_config(
        pipeline.scheduler.config, algorithm_type="dpmsolver++", solver_order=1, timestep_spacing="trailing"
    )
    fixed = {"num_inference_steps": 3, "guidance_scale": 1.0, "height": 16, "width": 16, "output_type": "pt"}
    latents = randn_by_seed((4, 8, 8), SEEDS)
    return 2 * pipeline([prompt] * len(SEEDS), latents=latents, **fixed, **options).images - 1


def assert_same_gray(found, plain):
    """Compares gray images with the mean of color images, where no channel was clipped."""
    inside = (plain.abs() < 0.999).all(dim=1, keepdim=True)
    assert inside.float().mean() > 0.5
    torch.testing.assert_close(found[inside], plain.mean(dim=1, keepdim=True)[inside], atol=2e-5, rtol=0)


def shake(network):
    """Gives all trained adapters weights of their own."""
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))


@pytest.fixture(scope="module")
def trained(folder):
    """Runs with LoRA alone and with class images, and a ControlNet upon the first."""
    runs = {
        "concept": {"prior_loss_weight": 1.0, "num_class_images": 3},
        "control": {"lora": str(folder / "concept"), "control": {**CONTROL, "dropout": 0.3}},
    }
    for name, section in runs.items():
        train(parse_config(build_config(folder, name, **section), TrainConfig), Recorder())
    return folder


def test_untrained_adapters_leave_the_base_as_it_is(folder):
    plain = draw_plainly(StableDiffusionPipeline.from_pretrained(folder / "base"), "zq steel")
    both = build(folder, control=CONTROL, lora={"rank": 2, "text_encoder": True})
    alone = draw(both)
    assert torch.equal(draw(both, make_masks()), alone)
    assert_same_gray(alone, plain)


def test_lora_off_is_the_base_and_merged_is_unmerged(folder):
    base = draw(build(folder))
    generator = build(folder)
    shake(generator.network)
    adapted = draw(generator)
    assert (adapted - base).abs().mean() > 0.01
    with generator.network.without_lora():
        assert torch.equal(draw(generator), base)
    assert torch.equal(draw(generator), adapted)
    from peft.tuners.tuners_utils import BaseTunerLayer

    for layer in (module for module in generator.network.modules() if isinstance(module, BaseTunerLayer)):
        layer.merge()
    torch.testing.assert_close(draw(generator), adapted, atol=1e-5, rtol=0)


def test_exports_load_in_plain_diffusers_and_give_the_same_image(folder, tmp_path):
    masks = make_masks()
    generator = build(folder, control=CONTROL)
    shake(generator.network)
    generator.save(tmp_path / "export")
    control = ControlNetModel.from_pretrained(tmp_path / "export/controlnet")
    pipeline = StableDiffusionControlNetPipeline.from_pretrained(
        folder / "base", controlnet=control, requires_safety_checker=False
    )
    pipeline.load_lora_weights(tmp_path / "export")
    drivers = generator._draw_drivers(DrawRequest([0, 0], masks), (0, 0, 0, 0))
    plain = draw_plainly(pipeline, "zq steel", image=drivers)
    found = draw(generator, masks)
    assert_same_gray(found, plain)
    assert (found - draw(generator)).abs().mean() > 1e-3


@pytest.mark.parametrize("section", [{"lora": {"rank": 2, "alpha": 5, "text_encoder": True}}, {"control": CONTROL}])
def test_a_saved_generator_is_the_same_without_a_copy_of_the_base(folder, tmp_path, section):
    generator = build(folder, **section)
    shake(generator.network)
    generator.save(tmp_path / "saved")
    found = load_generator(tmp_path / "saved")
    masks = make_masks() if "control" in section else None
    assert torch.equal(draw(found, masks), draw(generator, masks))
    saved = sum(file.stat().st_size for file in (tmp_path / "saved").rglob("*.safetensors"))
    adapters = 4 * sum(parameter.numel() for parameter in generator.network.parameters())
    assert adapters < saved < adapters + 40_000  # headers


def test_lora_of_kohya_loads(folder, tmp_path):
    """The names and the alpha of kohya's scripts; down and up are the updates of one layer."""
    generator = build(folder, lora={"rank": 2, "alpha": 2, "target_modules": ["attn1.to_q"]})
    shake(generator.network)
    generator.save(tmp_path / "own")
    kohya = {}
    for name, tensor in load_file(tmp_path / "own" / LORA_FILE).items():
        layer, end = name.removeprefix("unet.").split(".lora")
        key = f"lora_unet_{layer.replace('.', '_')}"
        kohya[f"{key}.lora_{'down' if 'down' in end or '_A' in end else 'up'}.weight"] = tensor
        kohya[f"{key}.alpha"] = torch.tensor(2.0)
    save_file(kohya, tmp_path / "kohya.safetensors")
    found = build(folder, lora=str(tmp_path / "kohya.safetensors"))
    torch.testing.assert_close(draw(found), draw(generator), atol=1e-6, rtol=0)
    assert (draw(found) - draw(build(folder))).abs().mean() > 1e-3


def test_images_depend_on_seed_and_mask_alone(folder):
    generator = build(folder, control=CONTROL, prompt="{token} {classes}")
    shake(generator.network)
    guided = SolverSection(num_inference_steps=2, guidance_scale=3, guidance_interval=None)
    masks = make_masks(20, 27)  # windows, and half a latent at the right end
    both = draw(generator, masks, guided)
    assert both.shape == (2, 1, 20, 27)
    assert torch.equal(both[1:], draw(generator, masks[1:], guided, seeds=[4]))
    assert not torch.equal(both[1:], draw(generator, masks[1:], guided, seeds=[5]))
    assert not torch.equal(both[1:], draw(generator, masks[:1], guided, seeds=[4]))
    assert not torch.equal(both, draw(generator, masks, guided.model_copy(update={"guidance_scale": 1.0})))


def test_little_noise_keeps_the_start_image(folder):
    generator = build(folder)
    images = torch.rand(2, 1, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    kept = generator.network.decode(generator.network.encode(images)).mean(dim=1, keepdim=True).clamp(-1, 1)
    solver = SolverSection(name="ddim", num_inference_steps=20, guidance_scale=1)  # the last step is at t = 4
    far = [
        (draw(generator, solver=solver, start=StartImages(images, strength)) - kept).abs().mean()
        for strength in (0.005, 0.5, 1.0)
    ]
    assert far[0] < 0.5 * far[1]
    assert far[1] < far[2]


def test_known_pixels_stay_and_the_latents_of_others_change(folder):
    """A latent of which a pixel is not known is sampled."""
    generator = build(folder)
    images = torch.rand(2, 1, 16, 19, generator=torch.Generator().manual_seed(0)) * 2 - 1
    known = torch.ones(2, 16, 19, dtype=torch.bool)
    known[:, 3:9, 4:10] = False
    drawn = generator.draw(DrawRequest([3, 4], images=images, solver=FEW, known=known)).images
    assert torch.equal(drawn[known[:, None]], images[known[:, None]])
    assert (drawn[~known[:, None]] - images[~known[:, None]]).abs().mean() > 0.05
    other = generator.draw(DrawRequest([5, 4], images=images, solver=FEW, known=known)).images
    assert not torch.equal(other[0], drawn[0])
    assert torch.equal(other[1], drawn[1])


def test_training_changes_the_adapters_alone(trained):
    rows = [json.loads(line) for line in (trained / "concept/metrics.jsonl").read_text().splitlines()]
    assert {"instance_loss", "prior_loss", "val_loss"} <= rows[1].keys()
    generator = load_generator(trained / "control")
    fresh = build(trained, control=CONTROL)
    before = {name: value for name, value in torch.nn.Module.state_dict(fresh.network).items() if "lora_" not in name}
    after = torch.nn.Module.state_dict(generator.network)
    frozen = {name for name in before if not name.startswith("control.")}
    assert frozen
    assert_same_tensors({name: before[name] for name in frozen}, {name: after[name] for name in frozen})
    assert any(not torch.equal(before[name], after[name]) for name in before.keys() - frozen)
    assert hash_files(trained / "concept/export" / LORA_FILE) == hash_files(trained / "control/export" / LORA_FILE)
    saved = load_file(trained / "control/checkpoints/step-000004/weights.safetensors")
    assert saved
    assert all(name.startswith("control.") for name in saved)
    saved = load_file(trained / "concept/checkpoints/step-000004/weights.safetensors")
    assert saved
    assert all("lora_" in name for name in saved)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_loss_is_that_of_diffusers(folder, tmp_path, prediction_type):
    save_tiny_base(tmp_path / "base", prediction_type=prediction_type)
    section = {"control": CONTROL, "base": str(tmp_path / "base"), "prompt": "{token} {classes}"}
    config = parse_config(build_config(folder, **section), TrainConfig)
    generator, micrographs = prepare_training(config)
    shake(generator.network)
    trainable = build_trainable(generator, config)
    crops = build_crops(config, trainable, micrographs)
    batch = default_collate([crops[number] for number in range(3)])
    batch["dropped"] = torch.tensor([False, True, False])
    batch["kept"] = torch.tensor([[1.0, 1, 1, 1], [1, 1, 1, 1], [0, 0, 0, 1]])
    losses = trainable.compute_loss(trainable.phases[0], trainable.networks, batch).losses

    network, pipeline = generator.network, StableDiffusionPipeline.from_pretrained(tmp_path / "base")
    scheduler, tokenizer = pipeline.scheduler, pipeline.tokenizer
    present = [sorted(set(mask.flatten().tolist())) for mask in batch["mask"]]
    names = micrographs.info.class_names
    prompts = ["zq " + " and ".join(names[index] for index in found) for found in present]
    prompts[1] = ""
    drivers = torch.from_numpy(compute_drivers(batch["mask"].numpy(), 3, generator.drivers))
    drivers[1] = 0
    drivers[2, :3] = 0
    with torch.no_grad():
        ids = tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids
        embedded = pipeline.text_encoder(ids)[0]
        color = batch["image"].repeat(1, 3, 1, 1)
        latents = pipeline.vae.encode(color).latent_dist.mean * pipeline.vae.config.scaling_factor
        times = (1000 * batch["fraction"]).long()
        noisy = scheduler.add_noise(latents, batch["noise"], times)
        down, middle = network.control(noisy, times, embedded, drivers, return_dict=False)
        predicted = network.unet(
            noisy, times, embedded, down_block_additional_residuals=down, mid_block_additional_residual=middle
        ).sample
        target = batch["noise"]
        if prediction_type == "v_prediction":
            target = scheduler.get_velocity(latents, batch["noise"], times)
    expected = (predicted - target).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(losses, expected, rtol=1e-4, atol=1e-5)


def test_dropped_drivers_follow_seed_and_number(folder):
    values = build_config(folder, control={"drivers": ["classes", "distance"], "dropout": 0.3})
    values["diffusion"] = {"mask_dropout": 0.2}
    config = parse_config(values, TrainConfig)
    trainable = build_trainable(prepare_training(config)[0], config)
    found = [trainable.randomness(3)(number) for number in range(400)]
    kept = torch.stack([each["kept"] for each in found])
    assert (kept[:, 0] == kept[:, 1]).all()  # the classes are one driver
    assert (kept[:, 0] == kept[:, 2]).all()
    rates = [(1 - kept[:, plane]).mean().item() for plane in (0, 3)]
    assert rates == pytest.approx([0.3, 0.3], abs=0.08)
    assert (kept[:, 0] + kept[:, 3] == 0).float().mean() == pytest.approx(0.09, abs=0.05)  # independent
    assert torch.stack([each["dropped"] for each in found]).float().mean() == pytest.approx(0.2, abs=0.07)
    again = trainable.randomness(3)(17)
    assert all(torch.equal(again[name], found[17][name]) for name in again)
    held_out = trainable.held_out_randomness(400)(17)
    assert held_out["kept"].all()
    assert not held_out["dropped"]


def test_class_images_are_those_of_the_base_alone(trained):
    plain = build(trained, prompt="steel")
    expected = draw(plain, solver=class_images._SOLVER, seeds=[2])
    kept = image_to_tensor(load_image(trained / "concept/class_images/00002.png"))
    torch.testing.assert_close(kept[None], expected, atol=1 / 255, rtol=0)


def test_resuming_is_exact(trained, tmp_path):
    values = build_config(trained, "resumed", prior_loss_weight=1.0, num_class_images=3)
    halves = {**values, "train": {**values["train"], "max_steps": 2}}
    train(parse_config(halves, TrainConfig), Recorder())
    (trained / "resumed/class_images/00001.png").unlink()
    train(parse_config(values, TrainConfig), Recorder(), resume=True)
    for file in ("weights", "average", "optimizer"):
        whole, resumed = (
            load_file(trained / run / f"checkpoints/step-000004/{file}.safetensors") for run in ("concept", "resumed")
        )
        assert_same_tensors(whole, resumed)


def test_other_precision_and_base_of_velocities_train(folder, tmp_path):
    save_tiny_base(folder / "velocity", prediction_type="v_prediction", channels=1)
    section = {"base": str(folder / "velocity"), "base_precision": "bf16", "control": CONTROL}
    values = build_config(folder, "velocity-run", {"gradient_checkpointing": True}, **section)
    train(parse_config(values, TrainConfig), Recorder())
    generator = load_generator(folder / "velocity-run")
    assert generator.base.schedule.prediction_type == "v_prediction"
    assert {parameter.dtype for parameter in generator.network.parameters()} == {torch.float32}
    assert torch.isfinite(draw(generator, make_masks())).all()


def break_base(folder, tmp_path, change):
    import shutil

    shutil.copytree(folder / "base", tmp_path / "base")
    change(tmp_path / "base")
    return str(tmp_path / "base")


def rename_class(base):
    index = json.loads((base / "model_index.json").read_text())
    index |= {"_class_name": "FluxPipeline", "unet": ["diffusers", "FluxTransformer2DModel"]}
    (base / "model_index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (rename_class, r"a model of another kind \(FluxPipeline\): unet is .*FluxTransformer2DModel"),
        (lambda base: (base / "model_index.json").unlink(), "not a model in the format of diffusers"),
        (
            lambda base: (base / "unet/diffusion_pytorch_model.safetensors").unlink(),
            "unet/diffusion_pytorch_model.safetensors: no such file; the base is incomplete, fetch it again",
        ),
        (lambda base: (base / "vae/config.json").unlink(), "vae/config.json: no such file"),
        (lambda base: (base / "text_encoder/model.safetensors").write_bytes(b"no"), "not the weights of"),
        (
            lambda base: [path.write_text("{") for path in (base / "tokenizer").iterdir()],
            "not a complete tokenizer",
        ),
        (lambda base: (base / "scheduler/scheduler_config.json").unlink(), "scheduler_config.json: no such file"),
    ],
)
def test_broken_bases_are_named_in_one_line(folder, tmp_path, change, message):
    with pytest.raises(InputError, match=message) as caught:
        build(folder, base=break_base(folder, tmp_path, change))
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_named_in_one_line(folder, tmp_path, monkeypatch):
    long = "a " * 40
    build(folder, lora={"rank": 2}).save(tmp_path / "lora")
    path = tmp_path / "lora" / LORA_FILE
    tensors = load_file(path)
    name = next(name for name in tensors if "_A" in name or "down" in name)
    save_file({**tensors, name: tensors[name][:, :-1].contiguous()}, tmp_path / "other.safetensors")
    save_file({"transformer.x.lora_A.weight": torch.zeros(2, 2)}, tmp_path / "flux.safetensors")
    (tmp_path / "damaged.safetensors").write_bytes(b"no")
    for section, message in [
        ({"prompt": long}, r"generator.prompt .*has 42 tokens with start and end, the base takes at most 40"),
        ({"class_prompt": long, "prior_loss_weight": 1}, "generator.class_prompt .*has 42 tokens"),
        ({"prompt": "{token} {classes}", "lora": str(tmp_path / "other.safetensors")}, "updates of another base"),
        ({"lora": str(tmp_path / "flux.safetensors")}, "not low-rank updates of Stable Diffusion 1.x or 2.x, but of"),
        ({"lora": str(tmp_path / "damaged.safetensors")}, "damaged.safetensors: low-rank updates do not fit"),
        ({"lora": str(tmp_path / "none")}, "none: no such file or folder"),
        ({"lora": {"target_modules": ["nothing"]}}, r"target_modules \['nothing'\]: not in the U-Net"),
        ({"base": str(tmp_path / "none")}, "none': no such folder"),
    ]:
        with pytest.raises(InputError, match=message) as caught:
            build(folder, **section)
        assert "\n" not in str(caught.value)
    values = build_config(folder)
    values["data"]["image_size"] = 18
    with pytest.raises(InputError, match="image_size 18: must be a multiple of 4"):
        prepare_training(parse_config(values, TrainConfig))


def test_without_network_one_line_says_what_to_fetch(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="run `steelgen data fetch model some/model` where there is a network"):
        find_base("some/model")
    with pytest.raises(InputError, match=r"^fetch model some/model: [^\n]+$"):
        fetch_base("some/model", endpoint="http://127.0.0.1:9")


def test_other_classes_and_sizes_keep_the_concept(folder):
    generator = build(folder)
    shake(generator.network)
    other = CropGeometry(20, 20)
    unlabeled = load_micrographs(folder / "tiny", "val").without_masks()
    adapted, _ = adapt_generator(generator, unlabeled, other, True)
    assert adapted.info.num_classes == 0
    assert draw(adapted).shape == (2, 1, 20, 20)
    assert adapted.network is generator.network
    with pytest.raises(InputError, match="ControlNet for the classes matrix, island, film cannot be adapted"):
        adapt_generator(build(folder, control=CONTROL), unlabeled, other, True)


def test_the_batch_is_tuned_without_class_images(folder):
    config = parse_config(build_config(folder, "tuned", prior_loss_weight=1.0), TrainConfig)
    tried = take_steps(config, 2, torch.device("cpu"))
    assert tried.memory_gib > 0
    assert not (folder / "tuned").exists()


def test_another_base_in_its_place_is_refused(folder, tmp_path):
    save_tiny_base(tmp_path / "moved")
    build(folder, base=str(tmp_path / "moved")).save(tmp_path / "saved")
    save_tiny_base(tmp_path / "moved", seed=1)
    with pytest.raises(InputError, match="has other weights than in training"):
        load_generator(tmp_path / "saved")
    config = parse_config(build_config(folder), TrainConfig)
    started, resumed = (
        build_trainable(build(folder, base=str(base)), config) for base in (folder / "base", tmp_path / "moved")
    )
    started.restore(started.state())
    with pytest.raises(InputError, match="has other weights than when the run was started"):
        resumed.restore(started.state())


def test_a_tint_is_reported_once(folder):
    generator = build(folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        drawn = [generator.draw(DrawRequest([0], solver=FEW)).images for _ in range(2)]
    tints = [str(each.message) for each in caught if "tint" in str(each.message)]
    assert len(tints) == 1
    images = generator.network.decode(torch.zeros(1, 4, 8, 8))
    gray = images.mean(dim=1)
    share = np.mean([float((images[0, index] - gray).abs().mean()) for index in range(3)]) / 2
    assert compute_tint(images) == pytest.approx(share, rel=1e-5)
    assert torch.equal(*drawn)
