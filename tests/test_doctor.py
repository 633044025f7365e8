"""The doctor and the check of what a job got."""

import json
import subprocess
import sys

import pytest

from steelgen import doctor
from steelgen.allocation import check_allocation
from steelgen.errors import InputError


def test_doctor_speaks_json_and_leaves_nothing(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "steelgen", "doctor", "--json", "--run-dir", str(tmp_path / "not" / "yet")],
        text=True,
        capture_output=True,
        timeout=120,
    )
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert done.returncode == any(finding["state"] == "bad" for finding in findings.values())
    for name in ("Python", "packages", "torch", "bf16", "distributed backends", "disk space", "write speed"):
        assert findings[name]["value"], name
    for name in ("file locking", "rename"):
        assert findings[name]["state"] == "ok"
    assert not any(tmp_path.iterdir())


def test_doctor_names_the_package_to_mend(monkeypatch):
    versions = {"torch": "1.0"}
    real = doctor.metadata.version
    monkeypatch.setattr(doctor.metadata, "version", lambda name: versions.get(name) or real(name))
    (finding,) = doctor._examine_packages()
    assert (finding.name, finding.state, finding.value) == ("torch", "bad", "1.0")
    assert "pip install" in finding.advice


def test_doctor_compares_with_constraints(tmp_path):
    path = tmp_path / "constraints.txt"
    path.write_text("# pinned\ntorch==1.0\nnot-installed==2\n")
    (finding,) = doctor._examine_constraints(path)
    assert finding.state == "note"
    assert "==1.0" in finding.value


@pytest.mark.parametrize(("precision", "state"), [("bf16", "ok"), ("no", "note")])
def test_doctor_says_of_bf16_what_training_takes(monkeypatch, precision, state):
    """On a GPU without bf16 torch would emulate it, and a CPU's flags do not say whether torch uses them."""
    monkeypatch.setattr("steelgen.devices.resolve_precision", lambda name: precision)
    assert doctor._examine_bf16(count=0).state == state


def test_doctor_finds_no_slurm(monkeypatch):
    monkeypatch.setenv("PATH", "")
    (finding,) = doctor._examine_slurm()
    assert finding.value == "not found"


def test_doctor_on_a_path_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    assert doctor._existing_folder(tmp_path / "file" / "run") == tmp_path


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"STEELGEN_EXPECTED_PROCESSES": "8"}, "PROCESSES=8: training has 4 processes"),
        ({"STEELGEN_EXPECTED_NODES": "2"}, "NODES=2: training has 1 nodes"),
        ({"STEELGEN_EXPECTED_GPUS": "8"}, "GPUS=8: training has 4 GPUs on this node"),
    ],
)
def test_less_than_asked_for_is_refused(environment, message):
    with pytest.raises(InputError, match=message):
        check_allocation(environment, num_processes=4, num_gpus=4)


def test_what_was_asked_for_is_fine():
    expected = {
        f"STEELGEN_EXPECTED_{name}": str(count) for name, count in (("PROCESSES", 8), ("NODES", 2), ("GPUS", 4))
    }
    check_allocation({**expected, "GROUP_WORLD_SIZE": "2"}, num_processes=8, num_gpus=4)
    check_allocation({}, num_processes=3, num_gpus=0)


@pytest.mark.parametrize(
    "environment",
    [
        {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"},
        {"SLURM_STEP_NUM_TASKS": "4"},
        {"ACCELERATE_DYNAMO_MODE": "default", "MASTER_ADDR": "127.0.0.1"},  # accelerate launch --cpu --num_processes 2
    ],
)
def test_one_process_where_several_were_wanted_is_refused(environment):
    with pytest.raises(InputError, match=r"several processes were requested.*torch\.distributed\.run"):
        check_allocation(environment, num_processes=1, num_gpus=0)
    check_allocation(environment, num_processes=2, num_gpus=0)


def test_one_process_that_was_wanted_alone_is_fine():
    check_allocation({"ACCELERATE_DYNAMO_MODE": "default"}, num_processes=1, num_gpus=0)
    check_allocation({"WORLD_SIZE": "1", "MASTER_ADDR": "x", "ACCELERATE_DYNAMO_MODE": "default"}, 1, 0)
