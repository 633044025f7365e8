"""The workflow on a workstation: skipping, going on, refusing what would mix; without any network."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from typer.testing import CliRunner

from steelgen.cli.app import app
from steelgen.config.base import parse_config
from steelgen.config.workflow import WorkflowConfig
from steelgen.errors import InputError
from steelgen.workflow import plan_workflow
from tests.conftest import tiny_train_config, write_tiny_dataset

OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


def workflow_values(evaluate=False):
    values = {
        "train": tiny_train_config("tiny", "run", max_steps=2),
        "sample": {
            "generator": "run",
            "output_dir": "samples",
            "mask_source": {"kind": "split", "dataset": "tiny", "split": "test"},
            "num_samples": 4,
            "solver": {"num_inference_steps": 2},
            "mixed_precision": "auto",
        },
    }
    if evaluate:
        values["evaluate"] = {
            "generated": "samples",
            "dataset": "tiny",
            "output_dir": "evaluation",
            "segmenter": {"steps": 2, "num_levels": 1, "base_channels": 8},
            "cache_dir": "cache",
        }
    return values


def utility_values():
    return {
        "generated": "samples",
        "dataset": "tiny",
        "output_dir": "utility",
        "architectures": ["unet"],
        "seeds": [0],
        "training": {"steps": 1, "batch_size": 2, "base_channels": 8},
        "num_bootstrap": 100,
    }


def plan(**changes):
    values = workflow_values()
    for key, value in changes.items():
        section, *inner, last = key.split("__")
        target = values[section]
        for name in inner:
            target = target[name]
        target[last] = value
    return {stage.action: stage.complete for stage in plan_workflow(parse_config(values, WorkflowConfig))}


def run(folder, *arguments, code=0):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done = CliRunner().invoke(app, ["workflow", "-c", "workflow.json", *arguments])
    assert done.exit_code == code, done.output
    return done.output


def run_offline(folder, *wrap):
    """Runs the workflow in a process of its own, behind the command `wrap`."""
    done = subprocess.run(
        [*wrap, sys.executable, "-m", "steelgen", "workflow", "-c", "workflow.json"],
        cwd=folder,
        env={**os.environ, **OFFLINE},
        text=True,
        capture_output=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_stages_are_skipped_gone_on_with_or_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tiny_dataset(tmp_path / "tiny")
    (tmp_path / "workflow.json").write_text(json.dumps(workflow_values()))
    assert plan() == {"train": False, "sample": False}
    run(tmp_path)
    assert plan() == {"train": True, "sample": True}
    assert run(tmp_path).count("complete in") == 2

    assert plan(sample__num_samples=6) == {"train": True, "sample": False}
    run(tmp_path, "--set", "sample.num_samples=6")
    assert len((tmp_path / "samples/metadata.jsonl").read_text().splitlines()) == 6

    with pytest.raises(
        InputError, match=r"run: contains the output of another config \(train.learning_rate was 0.0002, is now"
    ):
        plan(train__train__learning_rate=1e-3)
    # A longer training goes on, so that what was drawn before is no longer of this generator.
    with pytest.raises(InputError, match="samples: was made before train"):
        plan(train__train__max_steps=4)
    line = run(tmp_path, "--set", "train.train.max_steps=4", code=2).strip()
    assert line.startswith("steelgen: samples: was made before")
    assert "\n" not in line
    shutil.rmtree(tmp_path / "samples")
    assert plan(train__train__max_steps=4) == {"train": False, "sample": False}
    assert "resumed from" in run(tmp_path, "--set", "train.train.max_steps=4")

    os.utime(tmp_path / "run/result.json")
    with pytest.raises(InputError, match="samples: was made before train"):
        plan(train__train__max_steps=4)


@pytest.mark.parametrize(
    ("section", "key", "message"),
    [
        ("sample", "generator", "sample.generator is elsewhere"),
        ("evaluate", "generated", "evaluate.generated is"),
        ("utility", "generated", "utility.generated is"),
    ],
)
def test_stages_that_do_not_follow_each_other_are_refused(section, key, message):
    values = workflow_values(evaluate=True)
    values["utility"] = utility_values()
    values[section][key] = "elsewhere"
    with pytest.raises(InputError, match=message):
        parse_config(values, WorkflowConfig)


def test_a_workflow_may_start_with_fine_tuning():
    values = workflow_values()
    section = {key: value for key, value in values.pop("train").items() if key != "generator"}
    with pytest.raises(InputError, match="one of train and finetune must be given"):
        parse_config(values, WorkflowConfig)
    values["finetune"] = {**section, "checkpoint": "bundled:uhcs"}
    assert [stage.action for stage in plan_workflow(parse_config(values, WorkflowConfig))] == ["finetune", "sample"]
    values["sample"]["generator"] = "elsewhere"
    with pytest.raises(InputError, match=r"sample.generator is elsewhere, but must be in finetune.run_dir run"):
        parse_config(values, WorkflowConfig)


def test_a_utility_study_ends_the_workflow(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tiny_dataset(tmp_path / "tiny")
    values = {**workflow_values(), "utility": utility_values()}
    (tmp_path / "workflow.json").write_text(json.dumps(values))
    done = CliRunner().invoke(app, ["workflow", "-c", "workflow.json"])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "utility/utility.json").read_text())["differences"]

    def plan_study(**changes):
        changed = {**values, "utility": {**values["utility"], **changes}}
        return {stage.action: stage.complete for stage in plan_workflow(parse_config(changed, WorkflowConfig))}

    assert plan_study() == {"train": True, "sample": True, "utility": True}
    assert plan_study(seeds=[0, 1]) == {"train": True, "sample": True, "utility": False}
    os.utime(tmp_path / "samples/metadata.jsonl")
    with pytest.raises(InputError, match="utility: was made before sample"):
        plan_study()


def test_unlabeled_micrographs_belong_to_a_dataset_that_is_trained_on():
    values = workflow_values()
    values["segment"] = {"dataset": "tiny", "output_dir": "segmenter"}
    with pytest.raises(InputError, match=r"segment.unlabeled: is missing"):
        parse_config(values, WorkflowConfig)
    values["segment"]["unlabeled"] = "more"
    with pytest.raises(InputError, match=r"train.data.dataset is tiny, but must be in segment.output_dir segmenter"):
        parse_config(values, WorkflowConfig)
    values["train"]["data"]["dataset"] = "segmenter/dataset"
    rival = {"codes": ["RALLF000", "RALLF000L"], "predicted": "tiny"}
    with pytest.raises(InputError, match=r"utility.predicted is tiny, but must be in segment.output_dir segmenter"):
        parse_config({**values, "utility": {**utility_values(), **rival}}, WorkflowConfig)
    stages = plan_workflow(parse_config(values, WorkflowConfig))
    assert [stage.action for stage in stages] == ["segment", "train", "sample"]


def fold_values():
    values = json.loads(
        json.dumps({**workflow_values(), "utility": utility_values()}).replace('"tiny"', '"{fold}/data"')
    )
    values["train"]["run_dir"] = values["sample"]["generator"] = "{fold}/run"
    values["sample"]["output_dir"] = values["utility"]["generated"] = "{fold}/samples"
    values["sample"]["mask_source"]["split"] = "train"
    values["utility"] |= {"dataset": "tiny", "folds": 2, "codes": ["R1F000", "R1FALL"], "val_share": 0.3}
    return values


def test_each_fold_has_a_generator_that_never_saw_its_test_micrographs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_tiny_dataset(tmp_path / "tiny")
    (tmp_path / "workflow.json").write_text(json.dumps(fold_values()))
    done = CliRunner().invoke(app, ["workflow", "-c", "workflow.json"])
    assert done.exit_code == 0, done.output
    assert "train of fold 2: → 2/run" in done.output
    tested = []
    for fold in "12":
        cells = [
            json.loads(path.read_text()) for path in sorted((tmp_path / "utility/cells").glob(f"*-fold{fold}.json"))
        ]
        test = set(cells[0]["test"]["micrographs"])
        stems = {
            split: {path.stem for path in (tmp_path / fold / "data" / split / "images").iterdir()}
            for split in ("train", "val", "test")
        }
        assert stems["test"] == test
        assert test.isdisjoint(stems["train"] | stems["val"])
        # The networks train and validate on the micrographs that the generator trained and validated on.
        assert all(set(cell["real"]) <= stems["train"] for cell in cells)
        assert [cell["num_generated"] for cell in cells] == [0, 4]
        assert json.loads((tmp_path / fold / "run/config.json").read_text())["data"]["dataset"] == f"{fold}/data"
        tested += sorted(test)
    micrographs = {path.stem for path in (tmp_path / "tiny").glob("*/images/*")}
    assert len(tested) == len(set(tested)) == len(micrographs)
    again = CliRunner().invoke(app, ["workflow", "-c", "workflow.json"])
    assert again.output.count("complete in") == 5
    removed = next((tmp_path / "2/data/train/images").iterdir())
    (tmp_path / "2/data/train/masks" / removed.name).unlink()
    removed.unlink()
    broken = CliRunner().invoke(app, ["workflow", "-c", "workflow.json"])
    assert broken.exit_code == 2
    assert f"2/data: train differs from that of the fold (by {removed.stem})" in broken.output


@pytest.mark.parametrize(
    ("section", "key", "value", "message"),
    [
        ("train", "run_dir", "run", "must be in train.run_dir run"),
        ("train", "data", "tiny", "train: reads tiny, which has the test micrographs of every fold"),
        ("train", "data", "other", "train.data.dataset: other is the same in every fold"),
        ("sample", "mask_source", "tiny", "sample: reads tiny"),
        ("sample", "output_dir", "samples", "utility.generated is"),
    ],
)
def test_folds_that_share_what_they_must_not_are_refused(section, key, value, message):
    values = fold_values()
    values[section][key] = {**values[section][key], "dataset": value} if key in ("data", "mask_source") else value
    with pytest.raises(InputError, match=message):
        parse_config(values, WorkflowConfig)


def without_network():
    """The command that runs another in a network namespace with loopback alone, or why there is none."""
    command = ["unshare", "--net", "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
    if not shutil.which("unshare") or not shutil.which("ip"):
        return None, "no unshare or ip here"
    tried = subprocess.run([*command, "true"], capture_output=True, text=True)
    return (None, f"no network namespace: {tried.stderr.strip()}") if tried.returncode else (command, "")


def test_workflow_without_network(tmp_path):
    """All stages in a namespace with no interface but loopback."""
    command, reason = without_network()
    if command is None:
        pytest.skip(reason)
    probe = "import socket; socket.create_connection(('192.0.2.1', 80), 2)"
    cut_off = subprocess.run([*command, sys.executable, "-c", probe], capture_output=True, text=True)
    assert "Network is unreachable" in cut_off.stderr
    write_tiny_dataset(tmp_path / "tiny")
    (tmp_path / "workflow.json").write_text(json.dumps(workflow_values(evaluate=True)))
    run_offline(tmp_path, *command)
    assert json.loads((tmp_path / "evaluation/evaluation.json").read_text())["figures"]
    assert run(tmp_path).count("complete in") == 3
