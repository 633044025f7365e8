"""Windows over large images: they cover, blend back to what was cut, and leave no seams."""

import itertools

import pytest
import torch

from steelgen.diffusion.windows import WindowLayout
from tests.diffusion.calls import draw
from tests.diffusion.test_diffusion import build_sampler

LAYOUTS = [(20, 33, False), (16, 16, False), (64, 17, False), (20, 33, True), (16, 16, True)]


@pytest.mark.parametrize(("height", "width", "periodic"), LAYOUTS)
def test_blending_what_was_cut_gives_the_image(height, width, periodic):
    image = torch.randn(2, 3, height, width)
    layout = WindowLayout(height, width, 16, 0.5, periodic)
    pieces = layout.cut(image)
    assert pieces.shape == (2 * len(layout.origins), 3, 16, 16)
    torch.testing.assert_close(layout.blend(pieces), image)


@pytest.mark.parametrize(("height", "width", "periodic"), LAYOUTS)
def test_neighboring_windows_overlap_as_asked(height, width, periodic):
    layout = WindowLayout(height, width, 16, 0.5, periodic)
    for axis, extent in ((0, height), (1, width)):
        starts = sorted({origin[axis] for origin in layout.origins})
        steps = [after - before for before, after in itertools.pairwise(starts)]
        if periodic:
            steps.append(starts[0] + extent - starts[-1])
        else:
            assert starts[0] == 0
            assert starts[-1] == extent - 16
        assert all(step <= 8 + 1 for step in steps)  # rounding moves a window by a pixel at most


def test_blending_is_smooth_across_window_borders():
    """Windows that disagree by a constant must not leave a step larger than the weights' slope allows."""
    layout = WindowLayout(16, 40, 16, 0.5, False)
    levels = torch.arange(len(layout.origins)).float()
    pieces = levels[:, None, None, None].expand(-1, 1, 16, 16)
    blended = layout.blend(pieces)
    assert blended.diff(dim=-1).abs().max() < 0.25


def test_large_images_are_drawn_in_windows():
    """Whatever the size, an image depends on its own mask and seed alone."""
    sampler = build_sampler()
    masks = torch.randint(3, (2, 24, 40), generator=torch.Generator().manual_seed(0))
    drawn = draw(sampler, masks, [0, 1], num_inference_steps=4)
    assert drawn.shape == (2, 1, 24, 40)
    alone = draw(sampler, masks[1:], [1], num_inference_steps=4)
    torch.testing.assert_close(drawn[1:], alone, atol=1e-5, rtol=0)


def test_periodic_images_commute_with_a_shift():
    """Shifting mask and noise by a window's stride shifts the image: no border is special."""
    sampler = build_sampler()
    masks = torch.randint(3, (1, 32, 32), generator=torch.Generator().manual_seed(0))
    noise = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    options = dict(num_inference_steps=4, periodic=True)
    image = draw(sampler, masks, [0], noise=noise, **options)
    shifted = draw(sampler, masks.roll((8, 16), (1, 2)), [0], noise=noise.roll((8, 16), (2, 3)), **options)
    torch.testing.assert_close(shifted, image.roll((8, 16), (2, 3)), atol=1e-4, rtol=0)
