"""Segmentation networks of other hands: shapes, learning, what is said where a package is missing."""

import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steelgen.config.utility import BUILT_IN
from steelgen.errors import InputError
from steelgen.models.architectures import build_architecture


@pytest.mark.parametrize("name", BUILT_IN)
@pytest.mark.parametrize(("channels", "height", "width"), [(1, 32, 32), (3, 40, 56)])
def test_logits_are_as_large_as_the_image(name, channels, height, width):
    network = build_architecture(name, channels, 3, base_channels=8).eval()
    assert network(torch.zeros(2, channels, height, width)).shape == (2, 3, height, width)


@pytest.mark.parametrize("name", BUILT_IN)
def test_training_steps_lower_the_loss(name):
    torch.manual_seed(0)
    network = build_architecture(name, 1, 2, base_channels=8)
    masks = torch.zeros(4, 32, 32, dtype=torch.long)
    masks[:, :, 16:] = 1
    images = masks[:, None] - 0.5 + 0.1 * torch.randn(4, 1, 32, 32)
    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    losses = []
    for _ in range(8):
        loss = F.cross_entropy(network(images), masks)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert min(losses[-3:]) < 0.8 * losses[0]


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_batch_in_eval_mode_is_its_images_one_by_one(name):
    torch.manual_seed(0)
    network = build_architecture(name, 1, 2, base_channels=8).eval()
    images = torch.randn(3, 1, 32, 32)
    together = network(images)
    for index in range(3):
        torch.testing.assert_close(together[index], network(images[index : index + 1])[0], rtol=1e-4, atol=1e-5)


def test_smp_is_imported_late_and_asked_for_what_was_named(monkeypatch):
    asked = []

    def create_model(name, **given):
        if name == "Unknown":
            raise KeyError(name)
        asked.append((name, given))
        return nn.Conv2d(given["in_channels"], given["classes"], 1)

    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", SimpleNamespace(create_model=create_model))
    assert build_architecture("smp:FPN", 1, 4)(torch.zeros(1, 1, 20, 33)).shape == (1, 4, 20, 33)
    build_architecture("smp:UnetPlusPlus:efficientnet-b0", 3, 2)
    weights = {"encoder_weights": None}
    assert asked == [
        ("FPN", {"encoder_name": "resnet34", "in_channels": 1, "classes": 4, **weights}),
        ("UnetPlusPlus", {"encoder_name": "efficientnet-b0", "in_channels": 3, "classes": 2, **weights}),
    ]
    with pytest.raises(InputError, match="smp:Unknown: segmentation_models_pytorch refuses it"):
        build_architecture("smp:Unknown", 1, 2)


@pytest.mark.parametrize(
    ("name", "module", "package"),
    [
        ("unetplusplus", "monai.networks.nets", "monai"),
        ("segformer", "transformers", "transformers"),
        ("smp:Unet", "segmentation_models_pytorch", "segmentation-models-pytorch"),
    ],
)
def test_a_missing_package_is_one_line(name, module, package, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=f"architecture {name}: needs `pip install {package}`") as caught:
        build_architecture(name, 1, 2)
    assert "\n" not in str(caught.value)


def test_an_unknown_architecture_is_one_line():
    with pytest.raises(InputError, match="unknown architecture 'unett'; known: unet, unetplusplus"):
        build_architecture("unett", 1, 2)
