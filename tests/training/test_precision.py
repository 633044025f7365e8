"""Options that change memory and speed but not what is learned."""

import pytest
import torch

from steelgen.config.base import parse_config
from steelgen.config.train import TrainConfig
from steelgen.training.setup import build_crops, place_network, prepare_training
from tests.conftest import tiny_train_config


def compute_gradients(dataset, tmp_path, dropout, **options):
    values = tiny_train_config(dataset, tmp_path / "run", **options)
    values["generator"]["unet"]["dropout"] = dropout
    config = parse_config(values, TrainConfig)
    generator, micrographs = prepare_training(config)
    torch.manual_seed(1)
    for parameter in generator.network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # else the zero-initialised output keeps gradients from the rest
    place_network(generator.network, config.train, torch.device("cpu"))
    crops = build_crops(config, generator, micrographs)
    items = [crops[number] for number in range(2)]
    batch = {key: torch.stack([item[key] for item in items]) for key in items[0]}
    torch.manual_seed(2)
    generator.compute_loss(generator.network, batch, 0, 0.1).mean().backward()
    return {name: parameter.grad for name, parameter in generator.network.named_parameters()}


@pytest.mark.parametrize(
    ("options", "dropout"),
    # Dropout draws in the order of memory, which channels_last changes.
    [({"gradient_checkpointing": True}, 0.1), ({"channels_last": False}, 0.0)],
)
def test_gradients_stay(tiny_dataset, tmp_path, options, dropout):
    plain, other = (compute_gradients(tiny_dataset, tmp_path, dropout, **each) for each in ({}, options))
    for name in plain:
        torch.testing.assert_close(other[name], plain[name], atol=1e-5, rtol=1e-3)
