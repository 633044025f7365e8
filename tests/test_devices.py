"""Precision by name."""

import pytest
import torch

from steelgen import devices
from steelgen.errors import InputError


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "no")])
def test_auto_takes_bf16_only_where_it_is_native(monkeypatch, native, expected):
    monkeypatch.setattr(devices, "_has_bf16_instructions", lambda: native)
    assert devices.resolve_precision("auto", torch.device("cpu")) == expected
    assert devices.resolve_precision("fp16", torch.device("cpu")) == "fp16"


def test_auto_takes_no_bf16_where_torch_lacks_its_kernels(monkeypatch):
    """As on a Mac, whose torch does not have the operator that tells."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops, "mkldnn", None)
    assert devices.resolve_precision("auto", torch.device("cpu")) == "no"


def test_networks_compute_in_the_precision_asked_for():
    layer, x = torch.nn.Linear(4, 4), torch.ones(1, 4)
    for name, dtype in (("no", torch.float32), ("bf16", torch.bfloat16)):
        with devices.autocast(name, torch.device("cpu")):
            assert layer(x).dtype == dtype


def test_calls_side_by_side_have_one_thread_and_the_callers_precision():
    def describe(index):
        return index, torch.get_num_threads(), torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu")

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            found = devices.map_on_single_threads(describe, 5)
        assert found == [(index, 1, True, torch.bfloat16) for index in range(5)]
        assert devices.map_on_single_threads(lambda index: torch.is_autocast_enabled("cpu"), 2) == [False, False]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_errors_side_by_side_reach_the_caller():
    with pytest.raises(InputError, match="call 0"):
        devices.map_on_single_threads(lambda index: (_ for _ in ()).throw(InputError(f"call {index}")), 2)


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, 0), ({"LOCAL_RANK": "2"}, 2), ({"SLURM_LOCALID": "3"}, 3), ({"LOCAL_RANK": "1", "SLURM_LOCALID": "0"}, 1)],
)
@pytest.mark.parametrize("name", ["auto", "cuda"])
def test_each_process_takes_a_gpu_of_its_own(monkeypatch, environment, expected, name):
    chosen = [0]
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.delenv("SLURM_LOCALID", raising=False)
    for key, value in environment.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: chosen.append(index))
    monkeypatch.setattr(torch.cuda, "current_device", lambda: chosen[-1])
    assert devices.pick_device(name) == torch.device("cuda", expected)
    assert chosen[-1] == expected
    # As under srun with a GPU a task, where each sees its own alone.
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert devices.pick_device(name) == torch.device("cuda", 0)


def test_a_rank_that_is_no_number_is_one_line(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "x")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(InputError, match="LOCAL_RANK=x: must be a non-negative integer"):
        devices.pick_device()
