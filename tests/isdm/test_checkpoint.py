"""ISDM checkpoints in and out: bit-exact round trips, siblings by step, and files that are refused."""

import hashlib
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from steelgen.cli.app import app
from steelgen.config.isdm import IsdmNetworkSection
from steelgen.errors import InputError
from steelgen.files import load_json, save_json
from steelgen.generators.families import load_generator
from steelgen.generators.semantic_diffusion.isdm.checkpoint import (
    export_isdm,
    find_ema_siblings,
    find_step,
    load_isdm_checkpoint,
)
from steelgen.generators.semantic_diffusion.isdm.importing import import_isdm, load_moments
from steelgen.generators.semantic_diffusion.isdm.network import build_isdm_network
from steelgen.generators.semantic_diffusion.isdm.state_dict import list_key_rules, order_isdm_names
from steelgen.models.semantic_unet import SemanticUNet
from tests.isdm.functional import Network

DATA = Path(__file__).parent / "data"
SMALL = {
    "image_size": 32,
    "channel_mult": "1,2",
    "num_classes": 3,
    "attention_resolutions": "16",
    "num_res_blocks": 1,
    "num_channels": 32,
}


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def small(tmp_path):
    """The folder of an ISDM run at step 20: model, two averages and its train_config.json."""
    for seed, name in enumerate(["model000020.pt", "ema_0.9999_000020.pt", "ema_0.999_000020.pt"]):
        torch.save(random_state(seed), tmp_path / name)
    (tmp_path / "train_config.json").write_text(json.dumps({**SMALL, "no_instance": True, "lr": 1e-4}))
    return tmp_path


def random_state(seed, **changes):
    network = Network({**SMALL, "learn_sigma": False, "resblock_updown": False, **changes}, seed=seed)
    network(torch.zeros(1, 3, 8, 8).double(), torch.tensor([1]), torch.zeros(1, 3, 8, 8).double())
    return network.state


def settings():
    return IsdmNetworkSection(**SMALL, no_instance=True)


@pytest.mark.parametrize("new_order", [False, True])
def test_round_trip_of_the_reference_is_bit_exact(tmp_path, new_order):
    source = DATA / "ema_0.9999_000120.pt"
    values = {**json.loads((DATA / "isdm_config.json").read_text()), "use_new_attention_order": new_order}
    values.pop("guidance_scale_used")
    config = tmp_path / "old.json"
    config.write_text(json.dumps(values))
    imported = run("import", "isdm", source, tmp_path / "generator", "--config", config)
    assert imported.exit_code == 0, imported.output
    flags = ["--new-attention-order"] if new_order else []
    assert run("export", "isdm", tmp_path / "generator", tmp_path / "back.pt", *flags).exit_code == 0
    original = torch.load(source, weights_only=True)
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert list(back) == list(original)
    assert all(torch.equal(back[name], original[name]) for name in original)
    written = json.loads((tmp_path / "back.json").read_text())
    assert {key: written[key] for key in values if key in written and key != "use_checkpoint"} == {
        key: value for key, value in values.items() if key in written
    }


def test_names_and_siblings(small):
    assert find_step(Path("ema_0.9999_060204.pt")) == 60204
    assert find_step(Path("other.pt")) is None
    (small / "ema_0.5_000030.pt").touch()
    found = find_ema_siblings(small / "model000020.pt")
    assert {rate: path.name for rate, path in found.items()} == {
        0.999: "ema_0.999_000020.pt",
        0.9999: "ema_0.9999_000020.pt",
    }


def test_pt_files_load_directly_beside_their_config(small):
    generator = load_generator(small / "ema_0.999_000020.pt")
    assert torch.equal(generator.network.conv_in.weight, random_state(2)["input_blocks.0.0.weight"])
    (small / "train_config.json").unlink()
    with pytest.raises(InputError, match="does not contain its network settings"):
        load_generator(small / "ema_0.999_000020.pt")


def numbered_moments(names, state):
    """AdamW's state as ISDM would save it, each moment of a parameter made from its value."""
    return {
        index: {"step": torch.tensor(20.0), "exp_avg": state[name] + 1, "exp_avg_sq": state[name] ** 2}
        for index, name in enumerate(names)
    }


@pytest.mark.parametrize("fp16", [False, True])
def test_moments_follow_their_parameters(small, fp16):
    network = build_isdm_network(settings())
    state = random_state(0)
    names = order_isdm_names(list_key_rules(network, False))
    assert names == list(state)
    moments = numbered_moments(names, state)
    if fp16:  # one flat parameter of all vectors, one of the rest
        groups = [[n for n in names if state[n].ndim <= 1], [n for n in names if state[n].ndim > 1]]
        moments = {
            index: {
                "step": 20,
                "exp_avg": torch.cat([state[n].flatten() + 1 for n in group]).view(*shape),
                "exp_avg_sq": torch.cat([state[n].flatten() ** 2 for n in group]).view(*shape),
            }
            for index, (group, shape) in enumerate(zip(groups, [(-1,), (1, -1)], strict=True))
        }
    torch.save({"state": moments, "param_groups": []}, small / "opt000020.pt")
    result = import_isdm(small / "model000020.pt", settings(), small / "out")
    assert result.siblings == ["ema_0.9999_000020.pt", "opt000020.pt"]
    flat = load_moments(small / "opt000020.pt", network, False)
    for index, parameter in enumerate(result.generator.network.parameters()):
        assert torch.equal(flat[f"{index}.exp_avg"], parameter + 1)
        assert torch.equal(flat[f"{index}.exp_avg_sq"], parameter**2)
        assert flat[f"{index}.step"] == 20


def test_moments_of_another_network_are_refused(small):
    torch.save(
        {"state": {0: {"step": 1, "exp_avg": torch.ones(3), "exp_avg_sq": torch.ones(3)}}}, small / "opt000020.pt"
    )
    with pytest.raises(InputError, match=r"opt000020.pt: not the state of AdamW"):
        import_isdm(small / "model000020.pt", settings(), small / "out")
    assert not (small / "out").exists()


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("write", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_pickle_that_would_run_code_is_refused_and_does_not_run(small, write):
    path = small / "model000030.pt"
    write({"time_embed.0.weight": Evil(str(small / "it-ran"))}, path)
    result = run("import", "isdm", path, small / "out")
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert "model000030.pt: refused" in result.output
    assert not (small / "it-ran").exists()
    assert not (small / "out").exists()


def test_other_shapes_name_the_first_key_and_both(small):
    with pytest.raises(
        InputError, match=r"'input_blocks.0.0.weight' has shape \(32, 3, 3, 3\), .* needs \(64, 3, 3, 3\)"
    ):
        load_isdm_checkpoint(small / "model000020.pt", settings().model_copy(update={"channel_mult": "2,2"}))
    with pytest.raises(InputError, match=r"has no 'input_blocks.2.0.in_layers.0.weight'; .* shape \(32,\)"):
        load_isdm_checkpoint(small / "model000020.pt", settings().model_copy(update={"resblock_updown": True}))
    state = {**random_state(0), "extra": torch.ones(2)}
    torch.save(state, small / "model000021.pt")
    with pytest.raises(InputError, match=r"'extra' of shape \(2,\) is not in"):
        load_isdm_checkpoint(small / "model000021.pt", settings())


@pytest.mark.parametrize("content", [b"", b"not a pickle", pickle.dumps([1, 2])])
def test_files_that_are_no_checkpoints(small, content):
    path = small / "model000040.pt"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"model000040.pt: (not a|refused)"):
        load_isdm_checkpoint(path, settings())


def test_what_isdm_cannot_hold_is_named(small):
    generator = load_isdm_checkpoint(small / "model000020.pt", settings())
    generator.intensity = (0.1, 0.5)
    with pytest.raises(InputError, match=r"ISDM does not support intensity \(0.1, 0.5\)"):
        export_isdm(generator, small / "back.pt")
    config = {key: value for key, value in generator.network.config.items() if key[0] != "_"}
    generator.network = SemanticUNet(**{**config, "patch_size": 2})
    with pytest.raises(InputError, match="ISDM does not support patch_size 2, only 1"):
        export_isdm(generator, small / "back.pt")


def test_a_generator_trained_with_mask_noise_is_refused(small):
    """With sound masks, which its network never saw at noisy steps, its images would be wrong."""
    load_isdm_checkpoint(small / "model000020.pt", settings()).save(small / "own")
    save_json(small / "own/generator.json", {**load_json(small / "own/generator.json"), "mask_noise": True})
    with pytest.raises(InputError, match=r"own/generator\.json: mask_noise was removed"):
        load_generator(small / "own")


def test_a_generator_without_classes_is_refused(small):
    generator = load_isdm_checkpoint(small / "model000020.pt", settings())
    generator.network.register_to_config(num_classes=0)
    with pytest.raises(InputError, match=r"model000020: not supported by ISDM: num_classes: .* than or equal to 1"):
        export_isdm(generator, small / "back.pt")


def test_missing_files_and_used_folders(small):
    assert "no such checkpoint file" in run("import", "isdm", small / "model9.pt", small / "out").output
    shutil.copytree(DATA, small / "used")
    result = run("import", "isdm", small / "model000020.pt", small / "used")
    assert result.exit_code == 2
    assert "already in use" in result.output


def test_sample_and_replay_take_a_pt_file(small):
    """Beside its config, as `load_generator` does; what is drawn is what the imported generator draws."""
    masks = small / "masks"
    masks.mkdir()
    Image.fromarray(np.arange(32 * 32, dtype=np.uint8).reshape(32, 32) % 3).save(masks / "mask.png")
    assert run("import", "isdm", small / "ema_0.999_000020.pt", small / "imported").exit_code == 0
    for name, generator in (("direct", "ema_0.999_000020.pt"), ("through", "imported")):
        values = {
            "generator": str(small / generator),
            "output_dir": str(small / name),
            "mask_source": {"kind": "folder", "folder": str(masks)},
            "num_samples": 2,
            "solver": {"num_inference_steps": 1, "autoguidance": str(small / "model000020.pt")},
        }
        (small / f"{name}.json").write_text(json.dumps(values))
        result = run("sample", "-c", small / f"{name}.json")
        assert result.exit_code == 0, result.output
    for index in range(2):
        direct, through = (
            np.asarray(Image.open(small / name / f"samples/{index:06d}.png")) for name in ("direct", "through")
        )
        assert np.array_equal(direct, through)
    rows = [json.loads(line) for line in (small / "direct/metadata.jsonl").read_text().splitlines()]
    assert {row["model_sha256"] for row in rows} == {
        hashlib.sha256((small / "ema_0.999_000020.pt").read_bytes()).hexdigest()
    }
    replayed = run("sample", "--replay", small / "direct/metadata.jsonl", 2)
    assert "identical to the original" in replayed.output, replayed.output
    (small / "ema_0.999_000020.pt").unlink()
    result = run("sample", "-c", small / "direct.json")
    assert result.exit_code == 2
    assert "ema_0.999_000020.pt: no such checkpoint file" in result.stderr


def test_a_pt_file_with_weights_that_are_not_finite_is_refused(small):
    state = random_state(0)
    state["out.2.bias"][0] = torch.nan
    torch.save(state, small / "model000020.pt")
    with pytest.raises(InputError, match=r"model000020\.pt: '\S+' contains NaN"):
        load_generator(small / "model000020.pt")
