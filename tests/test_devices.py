"""Precision by name."""

import pytest
import torch

from steelgen import devices


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "no")])
def test_auto_takes_bf16_only_where_it_is_native(monkeypatch, native, expected):
    monkeypatch.setattr(devices, "_has_bf16_instructions", lambda: native)
    assert devices.resolve_precision("auto", torch.device("cpu")) == expected
    assert devices.resolve_precision("fp16", torch.device("cpu")) == "fp16"


def test_networks_compute_in_the_precision_asked_for():
    layer, x = torch.nn.Linear(4, 4), torch.ones(1, 4)
    for name, dtype in (("no", torch.float32), ("bf16", torch.bfloat16)):
        with devices.autocast(name, torch.device("cpu")):
            assert layer(x).dtype == dtype
