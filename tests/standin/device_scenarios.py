"""The pretended device itself: it refuses, waits and casts as CUDA does."""

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tests.standin.device import NAME, on_device

REFUSED = {
    "two devices": lambda here, there: here + there,
    "a CPU tensor indexed on the device": lambda here, there: here[there.long()],
    "numpy": lambda here, there: np.asarray(there),
    "the CPU's generator": lambda here, there: torch.randn(3, generator=torch.Generator(), device=NAME),
    "two types": lambda here, there: there.outer(there).half() @ there.outer(there),
    "an early read": lambda here, there: there.to("cpu", non_blocking=True),
}
WAITING = {
    "item": lambda here, there: float(there.sum()),
    "tolist": lambda here, there: there.tolist(),
    "copy to host": lambda here, there: there.cpu(),
    "copy from host": lambda here, there: here.to(NAME),
    "copy from unpinned host memory": lambda here, there: here.to(NAME, non_blocking=True),
    "index by booleans": lambda here, there: there[there > 0],
    "nonzero": lambda here, there: there.nonzero(),
}


@pytest.mark.parametrize("act", REFUSED.values(), ids=REFUSED)
def test_it_refuses(act):
    with on_device():
        there = torch.arange(3.0, device=NAME)
        with pytest.raises((RuntimeError, TypeError)):
            act(torch.arange(3.0), there)


@pytest.mark.parametrize("kind", WAITING)
def test_it_waits(kind):
    with on_device() as waits:
        there = torch.arange(3.0, device=NAME)
        assert waits.count() == 0
        WAITING[kind](torch.arange(3.0), there)
    assert [entry[0] for entry in waits.entries] == [kind]


def test_pinned_copies_and_arithmetic_never_wait():
    with on_device() as waits:
        here = next(iter(DataLoader(torch.arange(6.0), batch_size=6, pin_memory=True)))
        there = here.to(NAME, non_blocking=True)
        there[there > 2] = 0.0
        there = torch.fft.irfft(torch.fft.rfft(there) * torch.fft.rfft(there).conj())
        assert waits.count() == 0, waits.report()
        expected = [5.0, 2.0, 0.0, 0.0, 0.0, 2.0]  # autocorrelation of 0 1 2 0 0 0
        torch.testing.assert_close(there.cpu(), torch.tensor(expected))


def test_autocast_is_cudas():
    """There normalization computes in fp32, which the CPU takes to bf16."""
    with on_device(), torch.autocast(NAME, torch.bfloat16):
        there = torch.ones(2, 4, device=NAME)
        assert (there @ there.T).dtype == torch.bfloat16
        assert torch.nn.functional.group_norm((there @ there.T)[None], 1).dtype == torch.float32
