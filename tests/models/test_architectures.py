"""Segmentation networks of other hands: shapes, learning, what is said where a package is missing."""

import sys
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steelgen.config.segmenter import BUILT_IN
from steelgen.errors import InputError
from steelgen.models.architectures import build_architecture, find_pretrained_part


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
    with pytest.raises(InputError, match="smp:Unknown: rejected by segmentation_models_pytorch"):
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


@pytest.fixture
def smp(monkeypatch):
    """A stand-in for segmentation_models_pytorch: an encoder of one convolution, whose weights are on the hub."""

    class Network(nn.Module):
        def __init__(self, in_channels, classes):
            super().__init__()
            self.encoder = nn.Sequential(nn.Conv2d(in_channels, 4, 1), nn.BatchNorm2d(4))
            self.head = nn.Conv2d(4, classes, 1)

        def forward(self, images):
            return self.head(self.encoder(images))

    def create_model(name, encoder_name, encoder_weights, in_channels, classes):
        assert encoder_weights is None
        return Network(in_channels, classes)

    settings = {"pretrained_settings": {"imagenet": {"repo_id": "smp-hub/nothing.here", "revision": "0" * 40}}}
    known = SimpleNamespace(encoders={"resnet50": settings})
    monkeypatch.setitem(
        sys.modules, "segmentation_models_pytorch", SimpleNamespace(create_model=create_model, encoders=known)
    )


def test_weights_that_the_user_has_fill_the_encoder_of_smp(smp, tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    places = tmp_path / "hub" / "checkpoints"
    with pytest.raises(
        InputError, match=r"weights micronet: .*resnet50_pretrained_microscopynet_v1\.1\.pth\.tar not found"
    ):
        build_architecture("smp:Unet:resnet50", 1, 2, weights="micronet")
    encoder = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    state = {f"module.{name}": value for name, value in encoder.state_dict().items()}
    places.mkdir(parents=True)
    file = places / "resnet50_pretrained_microscopynet_v1.1.pth.tar"
    torch.save({**state, "module.fc.weight": torch.zeros(2)}, file)
    network = build_architecture("smp:Unet:resnet50", 1, 2, weights="micronet").eval()
    part = find_pretrained_part(network)
    torch.testing.assert_close(part[0].weight, encoder[0].weight, rtol=0, atol=0)

    # Gray is repeated and normalized by ImageNet's means and deviations before the encoder.
    seen = []
    part.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    assert network(torch.full((1, 1, 32, 32), 0.5)).shape == (1, 2, 32, 32)
    for channel, (mean, std) in enumerate([(0.485, 0.229), (0.456, 0.224), (0.406, 0.225)]):
        torch.testing.assert_close(seen[0][:, channel], torch.full((1, 32, 32), (0.75 - mean) / std))

    torch.save({**state, "module.0.weight": torch.zeros(8, 3, 1, 1)}, file)
    with pytest.raises(InputError, match=r"do not fit Sequential: 0\.weight is \(8, 3, 1, 1\), not \(4, 3, 1, 1\)"):
        build_architecture("smp:Unet:resnet50", 1, 2, weights=str(file))
    torch.save({"0.weight": torch.zeros(4, 3, 1, 1)}, file)
    with pytest.raises(InputError, match=r"do not fit Sequential: 0\.bias is missing"):
        build_architecture("smp:Unet:resnet50", 1, 2, weights=str(file))


def test_weights_that_nobody_fetched_are_one_line(smp, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(InputError, match=r"smp-hub/nothing\.here is not in the Hugging Face cache; run `hf download"):
        build_architecture("smp:Unet:resnet50", 1, 2, weights="imagenet")
    with pytest.raises(InputError, match="weights imagenet: not available for vgg99; set weights to a file"):
        build_architecture("smp:Unet:vgg99", 1, 2, weights="imagenet")


@pytest.mark.parametrize(("name", "weights"), [("unet", "imagenet"), ("unetplusplus", "micronet")])
def test_weights_without_an_encoder_are_one_line(name, weights):
    with pytest.raises(
        InputError, match=f"architecture {name}: has no pretrained encoder; weights must be null or auto"
    ):
        build_architecture(name, 1, 2, weights=weights)


def test_encoders_of_transformers_come_from_a_folder(tmp_path):
    import transformers

    shape = {"hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 2, 4, 8], "depths": [1, 1, 1, 1]}
    saved = {
        "segformer": transformers.SegformerForImageClassification(transformers.SegformerConfig(**shape)),
        "deeplabv3plus": transformers.MobileNetV2Model(transformers.MobileNetV2Config()),
        "upernet": transformers.ConvNextModel(
            transformers.ConvNextConfig(hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
        ),
    }
    for name, classifier in saved.items():
        classifier.save_pretrained(tmp_path / name)
        network = build_architecture(name, 1, 5, weights=str(tmp_path / name)).eval()
        part = find_pretrained_part(network)
        wanted = {key.removeprefix("segformer."): value for key, value in classifier.state_dict().items()}
        shared = [key for key in part.state_dict() if key in wanted]
        assert len(shared) > 0.8 * len(part.state_dict())
        for key in shared:
            torch.testing.assert_close(part.state_dict()[key], wanted[key], rtol=0, atol=0)
        assert network(torch.zeros(1, 1, 40, 56)).shape == (1, 5, 40, 56)
    with pytest.raises(InputError, match=r"weights .*none: not a folder with config\.json"):
        build_architecture("segformer", 1, 2, weights=str(tmp_path / "none"))
    with pytest.raises(InputError, match="architecture segformer: weights micronet: only available for smp:"):
        build_architecture("segformer", 1, 2, weights="micronet")


def test_an_unknown_architecture_is_one_line():
    with pytest.raises(InputError, match="unknown architecture 'unett'; known: unet, unet:efficientnet-lite0"):
        build_architecture("unett", 1, 2)
