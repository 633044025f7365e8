"""Batch scripts without a cluster: golden files, syntax, what is refused. STEELGEN_WRITE_GOLDEN=1 writes new ones."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from steelgen.cluster.scripts import Job, parse_array, render_script, slurm_folder
from steelgen.cluster.submission import load_profile, submit_job
from steelgen.config.base import load_config, parse_config
from steelgen.config.slurm import SlurmProfile
from steelgen.errors import InputError

ROOT = Path(__file__).parents[2]
GOLDEN = Path(__file__).parent / "golden"
TEMPLATES = sorted((ROOT / "scripts/slurm").glob("*.sbatch"))
SITE = load_config(ROOT / "configs/slurm-profile.json", SlurmProfile)
OTHER = parse_config(
    {"nodes": 2, "gpu_option": "gres", "conda": "steelgen", "sbatch": ["--reservation=course"]},
    SlurmProfile,
)
JOBS = {
    "train": (
        Job("train", Path("configs/train.json"), Path("runs/a"), ("train.max_steps=9", "data.dataset=my data")),
        SITE,
    ),
    "finetune": (Job("finetune", Path("configs/finetune.json"), Path("runs/fine tuned")), OTHER),
    "sample": (Job("sample", Path("configs/sample.json"), Path("runs/b"), shards=100, array_limit=8), SITE),
    "gather": (Job("gather", Path("s.json"), Path("runs/b"), evaluate_config=Path("e.json")), SITE),
    "utility": (Job("utility", Path("configs/utility.json"), Path("runs/d"), shards=12), OTHER),
    "gather-utility": (Job("gather", Path("u.json"), Path("runs/d"), gathers="utility"), OTHER),
    "segment": (Job("segment", Path("configs/segment.json"), Path("runs/e")), SITE),
    "evaluate": (Job("evaluate", Path("configs/evaluate.json"), Path("runs/c")), OTHER),
}


@pytest.mark.parametrize("name", JOBS)
def test_rendered_script_is_the_golden_one(name):
    job, profile = JOBS[name]
    text = render_script(job, profile, Path("/home/user/project"))
    golden = GOLDEN / f"{name}.sbatch"
    if os.environ.get("STEELGEN_WRITE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()


@pytest.mark.parametrize("path", [*TEMPLATES, *sorted(GOLDEN.glob("*.sbatch"))], ids=lambda path: str(path.name))
def test_scripts_are_sound_bash(path):
    subprocess.run(["bash", "-n", path], check=True)
    if shutil.which("shellcheck"):
        # SC1091: the environments that are activated are not here to be read.
        found = subprocess.run(["shellcheck", "--exclude=SC1091", path], text=True, capture_output=True)
        assert found.returncode == 0, found.stdout


def test_templates_are_there_by_hand_and_in_the_package():
    assert {path.name for path in TEMPLATES} == {"train.sbatch", "array.sbatch", "gather.sbatch", "single.sbatch"}
    for path in TEMPLATES:
        assert (ROOT / "src/steelgen/cluster/templates" / path.name).read_bytes() == path.read_bytes()


def test_no_gpus_asks_for_none():
    text = render_script(JOBS["train"][0], SITE.model_copy(update={"gpus_per_node": 0}), Path("/"))
    assert "#SBATCH --gpus" not in text
    assert "#SBATCH --gres" not in text


@pytest.mark.parametrize(("text", "meant"), [("4", (4, None)), ("100%8", (100, 8))])
def test_array(text, meant):
    assert parse_array(text) == meant


@pytest.mark.parametrize("text", ["0", "1-4", "4%", "%2", "4%0", "four", "-4"])
def test_impossible_arrays_are_refused(text):
    with pytest.raises(InputError, match="--array"):
        parse_array(text)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"partitoin": "gpu"}, "did you mean 'partition'"),
        ({"partition": "gpu --exclusive"}, "partition"),
        ({"time": "soon"}, "must be a Slurm time limit"),
        ({"venv": ".venv", "conda": "x"}, "venv and conda are mutually exclusive"),
        ({"sbatch": ["reservation"]}, "must be a single option"),
        ({"environment": {"A B": "1"}}, "not a valid variable name"),
    ],
)
def test_bad_profiles_name_the_value(values, message):
    with pytest.raises(InputError, match=message):
        parse_config(values, SlurmProfile)


@pytest.mark.parametrize("time", ["5", "5:00", "0:05:00", "0-0:05"])
def test_a_signal_before_the_start_is_refused(time):
    late = SITE.model_copy(update={"time": time, "signal_seconds": 299})
    assert "USR1@299" in render_script(JOBS["train"][0], late, Path("/"))
    with pytest.raises(InputError, match="signal_seconds 300"):
        render_script(JOBS["train"][0], late.model_copy(update={"signal_seconds": 300}), Path("/"))


def test_profiles_by_name_by_variable_and_by_default(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("STEELGEN_SLURM_PROFILE", raising=False)
    folder = tmp_path / ".config/steelgen/slurm"
    folder.mkdir(parents=True)
    assert load_profile(None) == SlurmProfile()
    (folder / "default.json").write_text('{"partition": "small"}')
    (folder / "big.json").write_text('{"partition": "big", "nodes": 8}')
    assert load_profile(None).partition == "small"
    assert load_profile("big", nodes=2, account=None).nodes == 2
    monkeypatch.setenv("STEELGEN_SLURM_PROFILE", str(folder / "big.json"))
    assert load_profile(None).partition == "big"
    with pytest.raises(InputError, match="known: big, default"):
        load_profile("huge")


def test_submitting_without_slurm_says_so(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    output = tmp_path / "run"
    with pytest.raises(InputError, match="sbatch: not found"):
        submit_job(Job("train", Path("train.json"), output), SlurmProfile())
    assert (slurm_folder(output) / "train.sbatch").is_file()
