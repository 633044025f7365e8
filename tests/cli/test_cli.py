"""The command line as a user meets it: whole runs, one-line errors, exit codes, start-up time."""

import json
import os
import shutil
import subprocess
import sys
from typing import get_args

import pytest
from typer.testing import CliRunner

from steelgen import __version__
from steelgen.cli.app import app
from steelgen.cli.config import Action
from steelgen.config.actions import ACTIONS
from steelgen.data.folder import load_dataset_info, save_dataset_info
from tests.conftest import tiny_train_config, write_tiny_dataset


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def write_config(path, values):
    path.write_text(json.dumps(values))
    return path


@pytest.fixture
def train_json(tiny_dataset, tmp_path):
    return write_config(tmp_path / "train.json", tiny_train_config(tiny_dataset, tmp_path / "run", max_steps=2))


def sample_values(dataset, tmp_path, **options):
    return {
        "generator": str(tmp_path / "run"),
        "output_dir": str(tmp_path / "samples"),
        "mask_source": {"kind": "split", "dataset": str(dataset), "split": "test"},
        "num_samples": 2,
        "solver": {"num_inference_steps": 2},
        **options,
    }


def test_train_finetune_sample(tiny_dataset, train_json, tmp_path):
    trained = run("train", "-c", train_json)
    assert trained.exit_code == 0
    assert '"learning_rate": 0.0002' in trained.stdout  # the resolved config, defaults included
    assert "finished at step 2 (max_steps)" in trained.stdout
    values = json.loads(train_json.read_text())
    del values["generator"]
    values |= {"checkpoint": str(tmp_path / "run"), "run_dir": str(tmp_path / "tuned")}
    tuned = run("finetune", "-c", write_config(tmp_path / "tune.json", values), "--set", "train.mask_dropout=0.5")
    assert tuned.exit_code == 0
    sampled = run("sample", "-c", write_config(tmp_path / "sample.json", sample_values(tiny_dataset, tmp_path)))
    assert sampled.exit_code == 0
    assert "2 labeled images in" in sampled.stdout


def test_dry_run_shows_the_plan_and_writes_nothing(train_json, tmp_path):
    result = run("train", "-c", train_json, "--dry-run", "--set", "train.max_steps=77")
    assert result.exit_code == 0
    for part in ('"max_steps": 77', "parameters", "4 (48x40 px)", "class matrix"):
        assert part in result.stdout
    assert not (tmp_path / "run").exists()


def test_resume_auto_goes_on(train_json, tmp_path):
    run("train", "-c", train_json)
    again = run("train", "-c", train_json, "--resume", "auto", "--set", "train.max_steps=3")
    assert "finished at step 3" in again.stdout
    assert "resumed from" in again.stderr


def break_dataset(root, how):
    """Damages a tiny dataset and returns what the error must name."""
    mask, image = root / "train/masks/train1.png", root / "train/images/train1.png"
    if how == "missing dataset":
        root.rename(root.with_name("moved"))
        return str(root), "no such dataset folder"
    if how == "mask index":
        from PIL import Image

        Image.new("L", (48, 40), 7).save(mask)
        return str(mask), "mask index 7 is not below num_classes 3"
    if how == "truncated image":
        image.write_bytes(image.read_bytes()[:200])
        return str(image), "not a readable image"
    if how == "size mismatch":
        from PIL import Image

        Image.new("L", (30, 40), 0).save(mask)
        return str(mask), "the mask is 30x40, but its image train1.png is 48x40"
    if how == "missing mask":
        mask.unlink()
        return str(image), "has no mask of the same name"
    if how == "empty split":
        for path in [*(root / "train/images").iterdir(), *(root / "train/masks").iterdir()]:
            path.unlink()
        return str(root / "train"), "the split is empty"
    (root / "dataset.json").write_text('{"name": "x"}')
    return str(root / "dataset.json"), "class_names"


@pytest.mark.parametrize(
    "how",
    [
        "missing dataset",
        "mask index",
        "truncated image",
        "size mismatch",
        "missing mask",
        "empty split",
        "dataset.json",
    ],
)
def test_bad_data_is_one_line_and_leaves_nothing(train_json, tiny_dataset, tmp_path, how):
    named = break_dataset(tiny_dataset, how)
    result = run("train", "-c", train_json)
    assert result.exit_code == 2
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1
    assert all(part in lines[0] for part in named)
    assert not (tmp_path / "run").exists()


def test_bad_runs_are_one_line(tiny_dataset, train_json, tmp_path):
    sample_json = write_config(tmp_path / "sample.json", sample_values(tiny_dataset, tmp_path))
    missing = run("sample", "-c", sample_json)
    run("train", "-c", train_json)
    used = run("train", "-c", train_json)
    changed = run("train", "-c", train_json, "--resume", "auto", "--set", "generator.unet.base_channels=16")
    unknown = run("sample", "-c", sample_json, "--set", "num_sample=3")
    no_file = run("sample", "-c", tmp_path / "nothing.json")
    other = write_tiny_dataset(tmp_path / "two", num_classes=2)
    info = load_dataset_info(other)
    save_dataset_info(other, info.model_copy(update={"class_names": ["ferrite", "pore"]}))
    classes = run("sample", "-c", sample_json, "--set", f"mask_source.dataset={other}")
    cases = [
        (missing, "run: no such run, checkpoint or export"),
        (used, "run: the output folder is already in use"),
        (changed, "generator.unet.base_channels was 8, is now"),
        (unknown, "unknown key 'num_sample'; did you mean 'num_samples'?"),
        (no_file, "nothing.json: no such file"),
        (classes, "has 2 classes, the generator was trained with 3"),
    ]
    for result, message in cases:
        assert result.exit_code == 2, message
        assert len(result.stderr.strip().splitlines()) == 1, result.stderr
        assert message in result.stderr
    assert not (tmp_path / "samples").exists()


def test_config_show_and_schema(train_json, tmp_path):
    shown = json.loads(run("config", "show", "train", "-c", train_json).stdout)
    assert shown["train"]["adam_betas"] == [0.9, 0.99]
    assert json.loads(run("config", "schema", "train").stdout)["properties"]["run_dir"]["description"]
    assert run("config", "schema", "--out", tmp_path / "schema").exit_code == 0
    assert (tmp_path / "schema/finetune.json").is_file()
    assert run("config", "schema", "trian").exit_code == 2
    assert get_args(Action) == tuple(ACTIONS)


def test_names_in_brackets_stay_in_tables(capsys):
    from steelgen.cli.output import print_table

    print_table("runs/[test]", ["class [b]", "share"], [["[bainite]", 0.5], ["[/]", 0.25]])
    shown = capsys.readouterr().out
    assert all(text in shown for text in ("runs/[test]", "class [b]", "[bainite]", "[/]", "0.25"))


def list_imported(code, *names):
    """Which of some modules a process has imported after running `code`."""
    code = f"import sys; {code}; print([name for name in {names!r} if name in sys.modules])"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def test_help_imports_nothing_heavy():
    code = (
        "from typer.testing import CliRunner; from steelgen.cli.app import app; "
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0"
    )
    assert list_imported(code, "torch", "diffusers", "scipy", "skimage", "numpy") == "[]"


def test_windows_is_named_in_one_line():
    code = "import sys; sys.platform = 'win32'; sys.modules['fcntl'] = None; import steelgen.cli.app"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "steelgen: needs Linux or macOS; on Windows, install it in WSL2: `wsl --install`\n"


def test_semantic_diffusion_imports_no_pipelines_of_diffusers():
    """They take a second, which every training and sampling would wait for."""
    code = "import steelgen.generators.semantic_diffusion.generator"
    assert list_imported(code, "diffusers.pipelines.pipeline_utils", "diffusers.models.transformers") == "[]"


@pytest.mark.skipif(not shutil.which("bash"), reason="no bash")
def test_bash_completes_without_torch(tmp_path):
    """The script that `--install-completion` installs, run by bash; a torch that raises shows that nothing loads it."""
    (tmp_path / "torch.py").write_text("raise AssertionError('torch was imported')")
    command = tmp_path / "steelgen"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m steelgen "$@"\n')
    command.chmod(0o755)
    script = """
        eval "$(steelgen --show-completion bash)"
        complete_words() {
            COMP_WORDS=(steelgen "$@"); COMP_CWORD=$#
            _steelgen_completion steelgen
            echo "${COMPREPLY[@]}"
        }
        complete_words data t; complete_words train --re
    """
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
        "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1",  # takes the name of the shell as an argument instead
    }
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["tile", "--resume"]
    assert done.stderr == ""


def test_version_is_that_of_the_package():
    assert run("--version").stdout == f"steelgen {__version__}\n"
