"""The timed step: batches are halved until they fit, and accumulation keeps the crops per step."""

import pytest

from steelgen.config.base import parse_config
from steelgen.config.train import TrainConfig
from steelgen.errors import InputError
from steelgen.planning.machine import Machine, time_step
from steelgen.training import batch_size
from steelgen.training.batch_size import BatchTrial
from tests.conftest import tiny_train_config

MACHINE = Machine("cpu", "", 2, 10.0)


@pytest.fixture
def config():
    return parse_config(tiny_train_config("tiny", "run", train_batch_size=16), TrainConfig)


def test_batches_are_halved_until_they_fit(config, monkeypatch):
    tried = []

    def try_batch(config, size, limit, device):
        tried.append(size)
        assert limit == 9 * 2**30  # nine tenths of the memory
        return BatchTrial(size, 2.0, 8.0) if size <= 4 else BatchTrial(size, None)

    monkeypatch.setattr(batch_size, "try_batch", try_batch)
    step = time_step(config, MACHINE)
    assert tried == [16, 8, 4]
    assert (step.batch_size, step.accumulation, step.seconds) == (4, 4, 2.0)
    assert step.seconds_per_image == 1 / 8


def test_a_machine_without_memory(config, monkeypatch):
    monkeypatch.setattr(batch_size, "try_batch", lambda config, size, limit, device: BatchTrial(size, None))
    with pytest.raises(InputError, match=r"tiny: not one crop of image_size 16 fits into 9.00 GiB of memory"):
        time_step(config, MACHINE)
