"""A trained generator for the tests of sampling."""

import pytest

from steelgen.config.base import parse_config
from steelgen.config.train import TrainConfig
from steelgen.training.loop import train
from tests.conftest import tiny_train_config, write_tiny_dataset
from tests.training.test_loop import Recorder


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """(dataset folder, run folder) of a briefly trained generator."""
    root = tmp_path_factory.mktemp("trained")
    dataset = write_tiny_dataset(root / "tiny")
    train(
        parse_config(tiny_train_config(dataset, root / "run", max_steps=30, learning_rate=3e-3), TrainConfig),
        Recorder(),
    )
    return dataset, root / "run"
