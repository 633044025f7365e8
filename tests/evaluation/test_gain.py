"""Agreement of gradients: closed form, what a step does to the held-out loss, every architecture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from steelgen.errors import InputError
from steelgen.evaluation.gain import GainJudge, find_last_layer
from steelgen.models.architectures import build_architecture

WEIGHTS = torch.tensor([0.5, 1.0, 1.5])


class Pixelwise(nn.Module):
    """Logits of each pixel from its gray level x and x²; only `head` has a say in the gradient."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.scale = nn.Parameter(torch.tensor(1.3))
        self.head = nn.Conv2d(2, 3, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.scale * images, images**2], dim=1))


def draw_pairs(count: int, seed: int, shift: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Images whose gray level follows the mask; `shift` rotates the classes of the masks afterwards."""
    rng = np.random.default_rng(seed)
    masks = rng.integers(0, 3, (count, 8, 9)).astype(np.uint8)
    images = (40 + 80 * masks + rng.normal(0, 10, masks.shape)).clip(0, 255).astype(np.uint8)
    masks = ((masks + shift) % 3).astype(np.uint8)
    masks[:, 0, :2] = 255
    return images, masks


def differentiate(network: Pixelwise, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Gradient of Σ w_y · cross-entropy by hand: Σ w_y (p − y) fᵀ over the labeled pixels, and for the bias Σ w_y (p −
    y)."""
    x = image.astype(float).ravel() / 127.5 - 1
    features = np.stack([network.scale.item() * x, x**2, np.ones_like(x)])
    matrix = network.head.weight.detach().double().numpy()[:, :, 0, 0]
    logits = np.column_stack([matrix, network.head.bias.detach().double().numpy()]) @ features
    probabilities = np.exp(logits - logits.max(0))
    probabilities /= probabilities.sum(0)
    labels = mask.ravel()
    known = labels != 255
    errors = (probabilities - np.eye(3)[:, np.where(known, labels, 0)]) * np.where(
        known, WEIGHTS.double().numpy()[np.where(known, labels, 0)], 0
    )
    gradient = errors @ features.T
    return np.concatenate([gradient[:, :2].ravel(), gradient[:, 2]])


def test_agreement_is_the_cosine_of_the_gradients_in_closed_form() -> None:
    network = Pixelwise()
    judge = GainJudge(network, *draw_pairs(4, 1), WEIGHTS)
    wanted = sum(differentiate(network, *pair) for pair in zip(*draw_pairs(4, 1), strict=True))
    for shift in range(3):
        for image, mask in zip(*draw_pairs(3, 2, shift), strict=True):
            own = differentiate(network, image, mask)
            assert judge.differentiate(image, mask).numpy() == pytest.approx(own, rel=1e-4, abs=1e-4)
            cosine = own @ wanted / np.linalg.norm(own) / np.linalg.norm(wanted)
            assert judge.measure(image, mask) == pytest.approx(cosine, abs=1e-5)
    assert judge.measure(image, np.full_like(mask, 255)) == 0


def test_agreement_tells_what_a_step_does_to_the_held_out_loss() -> None:
    network = Pixelwise(seed=1)
    images, masks = draw_pairs(6, 3)
    judge = GainJudge(network, images, masks, WEIGHTS)

    def measure_loss(model: Pixelwise) -> float:
        batch = torch.from_numpy(images / 127.5 - 1).float()[:, None]
        true = torch.from_numpy(masks.astype(np.int64))
        with torch.no_grad():
            return float(F.cross_entropy(model(batch).double(), true, WEIGHTS.double(), ignore_index=255))

    before, signs = measure_loss(network), set()
    for shift in range(3):
        for image, mask in zip(*draw_pairs(3, 4, shift), strict=True):
            moved, gradient = Pixelwise(seed=1), judge.differentiate(image, mask)
            with torch.no_grad():
                moved.head.weight -= 1e-3 * (gradient[:6] / gradient.norm()).reshape(3, 2, 1, 1)
                moved.head.bias -= 1e-3 * gradient[6:] / gradient.norm()
            agreement = judge.measure(image, mask)
            if abs(agreement) > 0.05:
                assert (measure_loss(moved) < before) == (agreement > 0)
                signs.add(agreement > 0)
    assert signs == {True, False}


def test_the_segmenter_is_left_as_it_was() -> None:
    network = Pixelwise().train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    judge = GainJudge(network, *draw_pairs(2, 1), WEIGHTS)
    judge.measure(*(part[0] for part in draw_pairs(1, 5)))
    assert network.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    with pytest.raises(InputError, match=r"filter\.gain: the network of filter\.segmenter has no convolution to 4"):
        find_last_layer(network, 4)


@pytest.mark.parametrize(
    "architecture", ["unet", "unet:efficientnet-lite0", "unetplusplus", "segformer", "deeplabv3plus", "upernet"]
)
def test_every_architecture_has_a_last_layer(architecture: str) -> None:
    torch.manual_seed(0)
    network = build_architecture(architecture, 1, 3, 8)
    images, masks = draw_pairs(2, 0)
    images, masks = (np.kron(part, np.ones((4, 4), np.uint8)) for part in (images, masks))
    judge = GainJudge(network, images, masks, WEIGHTS)
    first, second = (judge.differentiate(image, mask) for image, mask in zip(images, masks, strict=True))
    # What the held-out crops teach agrees with each of them at first, when all is to be learned.
    assert F.cosine_similarity(first, second, dim=0) > 0.5
    assert judge.measure(images[0], masks[0]) > 0.5
