"""The schedule, the encoder that rests, the clock, and the choice of the best step."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from torch import nn

from steelgen.evaluation.segmenter_training import Recipe, scale_learning_rate, train_steps, train_to_best


class Tiny(nn.Module):
    """A segmenter whose first convolution counts as a pretrained encoder, with a norm that has statistics."""

    pretrained_part = "encoder"

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encoder = nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4))
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(images))


def sample_batch(step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(step)
    masks = torch.randint(2, (4, 8, 8), generator=generator)
    return 3 + 2 * masks[:, None].float(), masks


def train(network: nn.Module, recipe: Recipe) -> Iterator[int]:
    return train_steps(network, sample_batch, nn.functional.cross_entropy, recipe)


def test_the_learning_rate_rises_over_a_tenth_and_falls_to_nothing() -> None:
    factors = [scale_learning_rate(step / 1000, 1000) for step in range(1001)]
    assert factors.index(max(factors)) == 100
    assert max(factors) == pytest.approx(1)
    assert factors[0] == pytest.approx(1 / 101)
    assert factors[550] == pytest.approx(0.5)
    assert factors[1000] == pytest.approx(0, abs=1e-9)
    assert scale_learning_rate(0.0, 1) == pytest.approx(1 / 1.1)


def test_a_pretrained_encoder_rests_then_learns_slowly_and_keeps_its_statistics() -> None:
    network = Tiny()
    before = {name: value.clone() for name, value in network.state_dict().items()}

    def moved(name: str) -> float:
        return float((network.state_dict()[name] - before[name]).abs().max())

    steps = train(network, Recipe(10, 0.01, weight_decay=0.0, encoder_factor=0.1, frozen_share=0.5))
    for done in itertools.islice(steps, 5):
        assert moved("encoder.0.weight") == 0, done
    assert moved("head.weight") > 0
    list(steps)
    # Adam moves each weight by about the learning rate a step.
    assert 0 < moved("encoder.0.weight") <= 5 * 0.001 * 1.05
    assert moved("encoder.1.running_mean") == 0
    assert moved("encoder.1.num_batches_tracked") == 0


def test_an_encoder_factor_of_0_leaves_the_encoder_as_it_is() -> None:
    network = Tiny()
    before = [parameter.clone() for parameter in network.encoder.parameters()]
    list(train(network, Recipe(4, 0.01, encoder_factor=0.0)))
    for found, wanted in zip(network.encoder.parameters(), before, strict=True):
        torch.testing.assert_close(found, wanted, rtol=0, atol=0)


def test_training_ends_by_the_clock_with_its_schedule() -> None:
    ticks = itertools.count()
    steps = list(train(Tiny(), Recipe(1000, 0.01, max_seconds=10, clock=lambda: float(next(ticks)))))
    assert steps == list(range(1, 10))
    late = itertools.count(0, 100)
    assert list(train(Tiny(), Recipe(1000, 0.01, max_seconds=10, clock=lambda: float(next(late))))) == [1]


def test_the_best_validation_is_kept_and_patience_ends() -> None:
    network = Tiny()
    values = iter([0.2, 0.5, 0.4, 0.5, 0.3, 0.9])
    states, reported = [], []

    def validate(network: nn.Module) -> float:
        states.append(network.head.weight.detach().clone())
        return next(values)

    steps = train(network, Recipe(60, 0.01))
    report = lambda done, total: reported.append((done, total))  # noqa: E731
    best, course = train_to_best(network, steps, 60, validate, 10, patience=3, report_progress=report)
    assert (best, course) == (20, [(10, 0.2), (20, 0.5), (30, 0.4), (40, 0.5), (50, 0.3)])
    torch.testing.assert_close(network.head.weight, states[1], rtol=0, atol=0)
    assert reported[-1] == (60, 60)


def test_there_is_a_validation_at_the_end() -> None:
    network = Tiny()
    values = iter([0.1, 0.3])
    steps = train(network, Recipe(7, 0.01))
    assert train_to_best(network, steps, 7, lambda _: next(values), 5) == (7, [(5, 0.1), (7, 0.3)])
