"""ISDM's configs: recognized, converted key by key, and run as they are."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from steelgen.cli.app import app
from steelgen.config.actions import ACTIONS
from steelgen.config.base import load_config, parse_config
from steelgen.config.isdm import IsdmConfig
from steelgen.data.palette import isdm_palette
from steelgen.errors import InputError
from steelgen.generators.families import load_generator
from steelgen.isdm.config import convert_isdm_config, guess_action, is_isdm_config
from tests.conftest import tiny_train_config, write_tiny_dataset

OLD = {
    "root_log_dir": "OUT",
    "data_dir": "data/lemons",
    "dataset_mode": "lemon-multi-class",
    "diffusion_steps": 1000,
    "image_size": 256,
    "num_classes": 6,
    "class_cond": True,
    "num_channels": 256,
    "no_instance": True,
}


def convert(action="train", **changes):
    conversion = convert_isdm_config({**OLD, **changes}, action, "old.json")
    return parse_config(conversion.config, ACTIONS[conversion.action]), conversion


def test_recognized_by_its_keys(tmp_path):
    assert is_isdm_config(OLD)
    assert not is_isdm_config(tiny_train_config("data", tmp_path))
    assert not is_isdm_config([1])
    assert [
        guess_action(value) for value in (OLD, {**OLD, "resume_checkpoint": "m.pt"}, {**OLD, "model_path": "m"})
    ] == [
        "train",
        "finetune",
        "sample",
    ]


def test_training_key_by_key():
    config, conversion = convert(
        lr=3e-4,
        lr_anneal_steps=500,
        batch_size=32,
        microbatch=8,
        drop_rate=0.2,
        ema_rate="0.999,0.9999",
        schedule_sampler="loss-second-moment",
        weight_decay=0.1,
        use_checkpoint=True,
        log_interval=7,
        save_interval=9,
        learn_sigma=True,
        rescale_learned_sigmas=True,
        noise_schedule="cosine",
        predict_xstart=True,
        num_head_channels=64,
        num_heads_upsample=2,
        attention_resolutions="32,16,8",
        dropout=0.1,
        resblock_updown=True,
        use_scale_shift_norm=False,
    )
    train, unet, noise, diffusion = config.train, config.generator.unet, config.generator.noise, config.diffusion
    assert (train.learning_rate, train.lr_scheduler, train.max_steps, train.warmup_steps) == (3e-4, "linear", 500, 0)
    assert (train.train_batch_size, train.gradient_accumulation_steps, train.adam_betas) == (8, 4, (0.9, 0.999))
    assert (diffusion.mask_dropout, train.ema_decay, train.weight_decay, train.max_grad_norm) == (0.2, 0.999, 0.1, None)
    assert diffusion.timestep_sampling == "loss_second_moment"
    assert "ema_rate 0.999,0.9999: only the first average, 0.999, is kept" in conversion.notes
    assert not train.ema_warmup
    selection = config.selection
    assert (selection.criterion, selection.patience_steps) == ("train_epoch_loss", 100_000)
    assert train.max_epochs == 20000
    assert (train.gradient_checkpointing, train.log_every, train.checkpoint_every) == (True, 7, 9)
    assert (unet.base_channels, unet.channel_mult, unet.num_res_blocks) == (256, [1, 1, 2, 2, 4, 4], 2)
    assert (unet.attention_resolutions, unet.num_head_channels, unet.num_heads_upsample) == ([32, 16, 8], 64, 2)
    assert (unet.dropout, unet.resample_in_blocks, unet.scale_shift) == (0.1, True, False)
    assert (unet.learn_sigma, unet.mask_resize, unet.instance_edges, unet.spade_channels) == (
        True,
        "nearest",
        False,
        128,
    )
    assert (noise.beta_schedule, noise.prediction_type, noise.num_train_timesteps) == (
        "squaredcos_cap_v2",
        "sample",
        1000,
    )
    assert (noise.zero_terminal_snr, noise.standardize, noise.vlb_weight) == (False, False, 0.001)
    assert (config.data.in_channels, config.data.image_size, config.data.num_classes) == (3, 256, 6)
    assert conversion.config["data"]["augment"] == "mirror"


def test_sampling_key_by_key():
    config, _ = convert(
        "sample",
        model_path="runs/ema_0.9999_060204.pt",
        num_samples=10,
        batch_size=3,
        s=1.5,
        use_ddim=True,
        clip_denoised=False,
        timestep_respacing="ddim50",
        rescale_timesteps=True,
        results_path="res",
        balance_args={"max_class_dif": 0.2, "ejection_classes": [0, 1], "use_mask_augmentation": True},
    )
    solver, source = config.solver, config.mask_source
    assert (config.num_samples, config.batch_size, str(config.output_dir)) == (10, 3, "res")
    assert (solver.name, solver.respacing, solver.guidance_scale) == ("respaced_ddim", "ddim50", 1.5)
    assert (solver.clip_denoised, solver.rescale_timesteps, solver.num_train_timesteps) == (False, True, 1000)
    assert (source.kind, source.max_class_dif, source.ejection_classes, source.block_size) == (
        "balanced",
        0.2,
        [0, 1],
        10,
    )
    assert source.use_mask_augmentation
    assert str(config.generator) == "res-ema_0.9999_060204"


def test_the_misspelt_weight_decay_is_used_with_a_warning():
    config, conversion = convert(weights_decay=1e-5)
    assert config.train.weight_decay == 1e-5
    assert any(note.startswith("weights_decay") for note in conversion.notes)


def test_dead_keys_are_named_with_the_reason():
    _, conversion = convert(fp16_scale_growth=0.001, use_fp16=True, timestep_respacing="50", class_cond=False)
    for key in ("fp16_scale_growth", "use_fp16", "timestep_respacing", "class_cond"):
        assert any(note.startswith(key) for note in conversion.notes), key


@pytest.mark.parametrize(
    ("action", "changes", "message"),
    [
        ("train", {"num_chanels": 3}, "unknown key 'num_chanels'; did you mean 'num_channels'"),
        ("train", {"diffusion_steps": 20}, "linear noise schedule of 20 steps would end at beta"),
        ("train", {"image_size": 96}, "image_size 96: set channel_mult"),
        ("train", {"channel_mult": "1,x"}, "channel_mult '1,x': must be numbers"),
        ("train", {"data_dir": ""}, "data_dir: is missing"),
        ("sample", {}, "model_path: is missing"),
        ("finetune", {}, "resume_checkpoint: is missing"),
        ("train", {"num_channels": 48}, "not a multiple of the 32 groups"),
    ],
)
def test_bad_configs(action, changes, message):
    with pytest.raises(InputError, match=message):
        convert(action, **changes)


def test_every_key_of_the_issue_is_known():
    keys = (
        "root_log_dir data_dir dataset_mode lr lr_anneal_steps batch_size microbatch diffusion_steps "
        "timestep_respacing image_size learn_sigma predict_xstart use_kl rescale_timesteps "
        "rescale_learned_sigmas num_classes noise_schedule schedule_sampler class_cond num_channels "
        "channel_mult num_res_blocks num_heads num_heads_upsample num_head_channels attention_resolutions "
        "dropout resblock_updown use_scale_shift_norm use_new_attention_order use_checkpoint use_fp16 "
        "fp16_scale_growth no_instance weight_decay weights_decay ema_rate drop_rate log_interval "
        "save_interval resume_checkpoint num_samples model_path s results_path use_ddim clip_denoised "
        "is_train balance_args "
    )
    assert set(keys.split()) <= set(IsdmConfig.model_fields)


def test_convert_train_sample_and_finetune_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    root = write_tiny_dataset(tmp_path / "lemons", size=(40, 40), splits=(("train", 2),))
    (root / "dataset.json").unlink()
    old = {
        **OLD,
        "data_dir": "lemons",
        "diffusion_steps": 50,
        "image_size": 32,
        "num_classes": 4,  # one more than the masks hold
        "num_channels": 32,
        "channel_mult": "1,1",
        "num_res_blocks": 1,
        "attention_resolutions": "16",
        "learn_sigma": True,
        "resblock_updown": True,
    }
    (tmp_path / "train.json").write_text(json.dumps({**old, "batch_size": 2, "lr_anneal_steps": 2, "drop_rate": 0.5}))

    def run(*arguments):
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output
        return result.output

    shown = run("config", "convert", "train.json", "--out", "new.json")
    assert "train.json: ISDM config, converted to a config of `steelgen train`" in shown
    assert load_config(tmp_path / "new.json", ACTIONS["train"]).train.max_steps == 2
    assert "ISDM config, converted" in run("train", "-c", "train.json", "--set", "preview.num_images=0")
    run("export", "isdm", "OUT/train_lemons_d=50_c=4", "old/model000002.pt")

    sampling = {**old, "model_path": "old/model000002.pt", "num_samples": 3, "batch_size": 2, "timestep_respacing": "2"}
    (tmp_path / "sample.json").write_text(json.dumps({**sampling, "results_path": "res"}))
    assert "imported old/model000002.pt" in run("sample", "-c", "sample.json")
    for folder in ("samples", "images", "labels", "colored_labels"):
        names = {path.name for path in (tmp_path / "res" / folder).iterdir()}
        assert names == {"train0_0.png", "train1_0.png", "train0_1.png"}
    label, colors = (
        np.asarray(Image.open(tmp_path / "res" / folder / "train0_0.png")) for folder in ("labels", "colored_labels")
    )
    for index, color in enumerate([(0, 0, 0), (1, 0, 103), (213, 255, 0)]):
        assert (colors[label == index] == color).all()
    # What is trained on such a folder here has the same colors.
    assert load_generator(tmp_path / "OUT/train_lemons_d=50_c=4").info.palette == isdm_palette(4)

    tuning = {**old, "resume_checkpoint": "old/model000002.pt", "lr_anneal_steps": 3, "batch_size": 2}
    (tmp_path / "tune.json").write_text(json.dumps(tuning))
    assert "from step 2" in run("finetune", "-c", "tune.json", "--set", "preview.num_images=0")
