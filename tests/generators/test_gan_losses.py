"""Losses and penalties of adversarial training, against closed forms, and on a ring of Gaussians."""

import math

import torch
import torch.nn.functional as F
from torch import nn

from steelgen.generators.gan.losses import balance_classes, compute_lead, compute_player_losses
from steelgen.generators.image_losses import compute_cross_entropy
from steelgen.generators.penalty import compute_penalty
from steelgen.models.spade_gan import compute_log_odds


def test_penalty_of_a_quadratic_form():
    """D(x) = xᵀAx/2 + bᵀx has the gradient Ax + b, the penalty ‖Ax + b‖², and that has 2(Ax + b) for b."""
    torch.manual_seed(0)
    root = torch.randn(12, 12, dtype=torch.float64)
    matrix, offset = root + root.T, torch.randn(12, dtype=torch.float64, requires_grad=True)
    images = torch.randn(5, 3, 2, 2, dtype=torch.float64, requires_grad=True)
    flat = images.flatten(1)
    scores = (flat @ matrix * flat).sum(dim=1) / 2 + flat @ offset
    penalty = compute_penalty(scores, images)
    slope = flat.detach() @ matrix + offset.detach()
    torch.testing.assert_close(penalty, slope.square().sum(dim=1))
    penalty.sum().backward()
    torch.testing.assert_close(offset.grad, 2 * slope.sum(dim=0))


def test_penalty_has_the_gradients_that_differences_give():
    torch.manual_seed(0)
    images = torch.randn(3, 1, 4, 4, dtype=torch.float64)

    def penalize(weight):
        copies = images.clone().requires_grad_()
        return compute_penalty(F.conv2d(copies, weight).tanh().sum(dim=(1, 2, 3)), copies)

    assert torch.autograd.gradcheck(penalize, torch.randn(2, 1, 3, 3, dtype=torch.float64, requires_grad=True))


def test_losses_of_the_players():
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 0.5])
    judging, drawing = compute_player_losses(real, fake, "relativistic")
    torch.testing.assert_close(judging, torch.log1p(torch.exp(fake - real)))
    torch.testing.assert_close(drawing, torch.log1p(torch.exp(real - fake)))
    judging, drawing = compute_player_losses(real, fake, "logistic")
    bce = nn.functional.binary_cross_entropy_with_logits
    ones, zeros = torch.ones(2), torch.zeros(2)
    torch.testing.assert_close(judging, bce(real, ones, reduction="none") + bce(fake, zeros, reduction="none"))
    torch.testing.assert_close(drawing, bce(fake, ones, reduction="none"))


def test_classes_of_a_mask_count_alike_and_ignored_pixels_not():
    mask = torch.tensor([[[0, 0, 0], [0, 0, 0], [1, 1, 9]]])
    weights = balance_classes(mask, 3)
    torch.testing.assert_close(weights, torch.tensor([8 / 12, 8 / 4, 0.0]))
    logits = torch.zeros(1, 4, 3, 3)
    loss = compute_cross_entropy(logits, mask, torch.cat([weights, torch.ones(1)]))
    torch.testing.assert_close(loss, torch.tensor([math.log(4)]))  # of equal logits, weights 1 on average
    logits[0, 0, 2, 2] = 50  # an ignored pixel
    torch.testing.assert_close(
        compute_cross_entropy(logits, mask, torch.cat([weights, torch.ones(1)])), torch.tensor([math.log(4)])
    )


def test_lead_over_generated_images_is_none_where_nothing_tells_them_apart():
    """The best discriminator that sees only the classes, found by L-BFGS, leads by nothing: it only seems
    sure that the pixels of the frequent class are generated."""
    mask = torch.zeros(1, 8, 8, dtype=torch.int64)
    mask[0, 0, :4], mask[0, 7, 7] = 1, 9  # 59 pixels, 4, and an ignored one
    weights = torch.cat([balance_classes(mask, 2), torch.ones(1)]).double()
    table = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)  # logits by class of the pixel
    optimizer = torch.optim.LBFGS([table], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")
    counted = mask[0] < 2
    rows = mask[0].where(counted, 0)

    def compute_loss():
        optimizer.zero_grad()
        logits = table[rows].permute(2, 0, 1)[None]
        generated = torch.full_like(mask, 2).where(counted, 3)
        loss = compute_cross_entropy(logits, mask, weights) + compute_cross_entropy(logits, generated, weights)
        loss.sum().backward()
        return loss

    optimizer.step(compute_loss)
    logits = table.detach()[rows].permute(2, 0, 1)[None]
    odds = compute_log_odds(logits)
    torch.testing.assert_close(odds[0, 4, 4].exp(), weights[0], rtol=1e-3, atol=0)
    torch.testing.assert_close(odds[0, 0, 0].exp(), weights[1], rtol=1e-3, atol=0)
    assert odds[0, 4, 4] < 0 < odds[0, 0, 0]
    assert compute_lead(odds + 0.01, mask, weights).item() == 1
    assert compute_lead(odds - 0.01, mask, weights).item() == -1
    half = odds + 0.01 * torch.where(torch.arange(64).reshape(8, 8) % 2 == 0, 1, -1)
    assert abs(compute_lead(half, mask, weights).item()) < 0.05


def build_mlp(inputs, outputs):
    return nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, outputs))


def test_a_ring_of_eight_gaussians_is_drawn_whole():
    """All 8 modes, which generators without penalties at generated points often lose (R3GAN, section 2)."""
    torch.manual_seed(0)
    generate, judge = build_mlp(2, 2), build_mlp(2, 1)
    optimizers = [torch.optim.Adam(network.parameters(), 2e-3, (0.0, 0.9)) for network in (judge, generate)]
    angles = torch.arange(8) * (math.pi / 4)
    centers = torch.stack([angles.cos(), angles.sin()], dim=1)
    for _ in range(800):
        real = (centers[torch.randint(8, (128,))] + 0.05 * torch.randn(128, 2))[:, :, None, None].requires_grad_()
        fake = generate(torch.randn(128, 2)).detach()[:, :, None, None].requires_grad_()
        scores = [judge(points.flatten(1))[:, 0] for points in (real, fake)]
        loss = compute_player_losses(*scores, "relativistic")[0]
        loss = loss + sum(0.05 * compute_penalty(s, points) for s, points in zip(scores, (real, fake), strict=True))
        optimizers[0].zero_grad()
        loss.mean().backward()
        optimizers[0].step()
        scores = [judge(points.flatten(1))[:, 0] for points in (real.detach(), generate(torch.randn(128, 2)))]
        optimizers[1].zero_grad()
        compute_player_losses(*scores, "relativistic")[1].mean().backward()
        optimizers[1].step()
    drawn = generate(torch.randn(2000, 2)).detach()
    distances = torch.cdist(drawn, centers)
    near = distances.min(dim=1).values < 0.2
    share = torch.bincount(distances.argmin(dim=1)[near], minlength=8) / 2000
    assert near.float().mean() > 0.7
    assert (share > 0.03).all(), share  # of an eighth each
