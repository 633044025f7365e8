"""The command line in terminals that are not UTF-8, and in front of a pipe that has read enough."""

import json
import os
import subprocess
import sys

import pytest

from tests.conftest import tiny_train_config, write_tiny_dataset

QUICK_SEGMENTER = {"steps": 2, "batch_size": 2, "base_channels": 8, "num_levels": 1, "train_size": 16}

# One process for all commands, since torch takes seconds to import; its streams are those of a real terminal.
RUN_ALL = """
import json, sys
from steelgen.cli.app import main
for arguments in json.loads(sys.argv[1]):
    sys.argv = ["steelgen", *arguments]
    try:
        main()
    except SystemExit as end:
        print("EXIT", end.code, *arguments[:2], flush=True)
"""


@pytest.fixture
def folder(tmp_path):
    """A dataset whose class names few encodings have, and a config for each command that prints a table."""
    root = tmp_path / "größe"
    dataset = write_tiny_dataset(root / "μm", num_classes=3)
    info = json.loads((dataset / "dataset.json").read_text())
    (dataset / "dataset.json").write_text(json.dumps({**info, "class_names": ["Matrix", "Körner", "α-鉄"]}))
    train = tiny_train_config(dataset, root / "run", max_steps=1)
    source = {"kind": "balanced", "dataset": str(dataset), "block_size": 4}
    filtered = {"dataset": str(dataset), "min_iou": 0, "max_correlation": 1, "segmenter": QUICK_SEGMENTER}
    sample = {"generator": str(root / "run"), "output_dir": str(root / "samples"), "mask_source": source}
    study = {"dataset": str(dataset), "generated": str(root / "samples"), "output_dir": str(root / "study")}
    configs = {
        "train": train,
        "sample": {**sample, "num_samples": 4, "solver": {"num_inference_steps": 1}, "filter": filtered},
        "evaluate": {
            "generated": str(root / "samples"),
            "dataset": str(dataset),
            "output_dir": str(root / "evaluation"),
            "segmenter": QUICK_SEGMENTER,
            "features": {"kinds": "tests.evaluation.test_features:mean_features"},
            "microstructure": {"max_images": 2},
            "memorization": {"max_images": 2, "search_size": 8},
        },
        "segment": {"dataset": str(dataset), "output_dir": str(root / "segmenter"), "image_size": 16, "crop_size": 24}
        | {"segmenter": QUICK_SEGMENTER},
        "utility": {**study, "architectures": ["unet"], "seeds": [0], "geometry": {"image_size": 16}}
        | {"training": {"steps": 1, "batch_size": 2, "base_channels": 8}, "num_bootstrap": 100},
        "pipeline": {
            "train": {**train, "run_dir": str(root / "run2")},
            "sample": {**sample, "generator": str(root / "run2"), "output_dir": str(root / "samples2")},
        },
    }
    for name, values in configs.items():
        (root / f"{name}.json").write_text(json.dumps(values))
    return root


def start(arguments, environment, **options):
    return subprocess.Popen(
        arguments,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def list_commands(root):
    def configured(*command):
        return [*command, "-c", str(root / f"{command[0]}.json")]

    evaluation = str(root / "evaluation")
    return [
        ["data", "check", str(root / "μm"), "--out", str(root / "check")],
        ["data", "split", str(root / "μm"), str(root / "split")],
        [*configured("train"), "--dry-run"],
        configured("train"),
        ["tune-batch", "-c", str(root / "train.json"), "--set", "train.train_batch_size=1"],
        configured("sample"),
        ["slurm", "status", str(root / "samples")],
        [*configured("evaluate"), "--dry-run"],
        configured("evaluate"),
        ["compare", evaluation, evaluation, "--out", str(root / "compare.html")],
        ["segment", "train", "-c", str(root / "segment.json")],
        [*configured("utility"), "--dry-run"],
        configured("utility"),
        [*configured("pipeline"), "--dry-run"],
        ["config", "show", "train", "-c", str(root / "train.json")],
        ["config", "schema", "train"],
        ["config", "reference"],
        ["doctor", "--run-dir", str(root)],
        ["--help"],
    ]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_a_terminal_lacks_is_replaced(folder, encoding):
    commands = list_commands(folder)
    if encoding == "latin-1":
        commands = [command for command in commands if command[0] in ("data", "config")]
    environment = {"PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}
    process = start([sys.executable, "-c", RUN_ALL, json.dumps(commands)], environment)
    # A stream that says ASCII typer takes for one of UTF-8 that is set up wrongly; rich, which prints tables, does not.
    out, err = (stream.decode(encoding, "replace") for stream in process.communicate())
    assert process.returncode == 0, err
    codes = [line.split() for line in out.splitlines() if line.startswith("EXIT")]
    assert len(codes) == len(commands)
    assert {code[1] for code in codes if code[2] != "doctor"} == {"0"}, err
    assert "K?rner" in out if encoding == "ascii" else "Körner" in out
    assert "?-?" in out
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "arguments",
    [["data", "check"], ["train", "--dry-run"], ["config", "show", "train"], ["config", "reference"], ["--help"]],
    ids=" ".join,
)
def test_a_pipe_that_has_read_enough_ends_quietly(folder, arguments):
    if arguments[0] == "data":
        arguments = [*arguments, str(folder / "μm")]
    elif arguments[-1] not in ("reference", "--help"):
        arguments = [*arguments, "-c", str(folder / "train.json")]
    process = start([sys.executable, "-m", "steelgen", *arguments], {})
    process.stdout.close()
    err = process.stderr.read().decode()
    assert process.wait() == 1
    assert "Traceback" not in err
    assert "Broken pipe" not in err
    assert "Exception ignored" not in err
    if arguments[0] == "data":
        assert (folder / "μm" / "check" / "check.html").is_file()  # what was asked for is there all the same
