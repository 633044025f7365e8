"""Refining generators and cascades of untrained networks whose output is not zero."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from steelgen.config.base import parse_config
from steelgen.config.generator import SemanticDiffusionSection
from steelgen.config.solver import SolverSection
from steelgen.config.train import TrainConfig
from steelgen.data.conditions import Condition
from steelgen.data.crops import Micrographs, load_micrographs
from steelgen.data.placement import CropGeometry
from steelgen.data.thin import shrink_mask
from steelgen.diffusion.refinement import enlarge, shrink
from steelgen.errors import InputError
from steelgen.generators import DrawRequest, StartImages
from steelgen.generators.cascade import build_cascade, derive_seed
from steelgen.generators.drawing import draw_for_masks
from steelgen.generators.families import adapt_generator, build_generator, build_trainable, load_generator
from tests.conftest import tiny_train_config

UNET = tiny_train_config("", "")["generator"]["unet"]
SOLVER = SolverSection(num_inference_steps=2, guidance_scale=1.0, window_overlap=0.25)


def build(micrographs, factor=None, image_size=16, crop_size=None, channels=1, **options):
    """An untrained generator; refining with a factor."""
    low_resolution = {"factor": factor} if factor else None
    section = SemanticDiffusionSection(
        unet=UNET, noise={"num_train_timesteps": 100}, low_resolution=low_resolution, **options
    )
    torch.manual_seed(0)
    geometry = CropGeometry(image_size, crop_size or image_size, in_channels=channels)
    generator = build_generator(section, micrographs, geometry)
    torch.manual_seed(1)
    for parameter in generator.network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    return generator


@pytest.fixture
def micrographs(tiny_dataset) -> Micrographs:
    return load_micrographs(tiny_dataset, "train")


def cut(micrographs, height, width):
    mask = torch.from_numpy(micrographs.masks[0][:height, :width].astype(np.int64))
    image = torch.from_numpy(micrographs.images[0][:height, :width].astype(np.float32) / 127.5 - 1)
    return image[None, None], mask[None]


def refine(generator, image, mask, seed=3, **options):
    solver = SOLVER.model_copy(update=options)
    return draw_for_masks(generator, mask, [seed], solver, images=image)


@pytest.mark.parametrize("size", [(16, 16), (40, 48), (37, 29)])
def test_refined_images_agree_with_their_coarse_image_and_differ_from_bicubic(micrographs, size):
    generator = build(micrographs, 2)
    image, mask = cut(micrographs, *size)
    coarse = shrink(image, 2)
    refined = refine(generator, coarse, mask)
    assert refined.shape == image.shape
    assert 10 * torch.log10(4 / (shrink(refined, 2) - coarse).square().mean()) > 30
    assert (refined - enlarge(coarse, 2, size)).abs().mean() > 0.02
    without = refine(generator, coarse, mask, consistency=False)
    assert (shrink(without, 2) - coarse).square().mean() > 3 * (shrink(refined, 2) - coarse).square().mean()
    # An image of the size of its mask is shrunk first.
    assert torch.equal(refine(generator, image, mask), refined)


def test_an_untrained_network_adds_only_noise_of_the_measured_detail(micrographs):
    generator = build(micrographs, 2)
    image = torch.from_numpy(np.stack(micrographs.images).astype(np.float32) / 127.5 - 1)[:, None]
    detail = image - enlarge(shrink(image, 2), 2, image.shape[2:])
    expected = detail.square().mean().sqrt() / generator.intensity[1]
    assert generator.detail == pytest.approx(float(expected), rel=1e-4)


def test_a_row_does_not_depend_on_its_batch_nor_windows_on_the_cache(micrographs):
    generator = build(micrographs, 2)
    image, mask = cut(micrographs, 40, 48)
    images, masks = torch.cat([image, -image, image / 2]), torch.cat([mask, mask, mask.flip(1)])
    solver = SOLVER.model_copy(update={"coarse_noise": 0.2})
    together = draw_for_masks(generator, masks, [5, 6, 7], solver, images=images)
    for row in range(3):
        alone = draw_for_masks(generator, masks[row : row + 1], [5 + row], solver, images=images[row : row + 1])
        assert torch.equal(alone[0], together[row])
    for size in (0.0, 1e-4):
        uncached = solver.model_copy(update={"mask_cache_gib": size})
        assert torch.equal(draw_for_masks(generator, masks, [5, 6, 7], uncached, images=images), together)


def test_noise_on_coarse_images_changes_the_result_and_is_told_to_the_network(micrographs):
    generator = build(micrographs, 2)
    image, mask = cut(micrographs, 16, 16)
    plain = refine(generator, image, mask, consistency=False)
    noisy = refine(generator, image, mask, consistency=False, coarse_noise=0.3)
    assert (plain - noisy).abs().mean() > 0.01
    for parameter in generator.network.coarse_noise_mlp.parameters():
        torch.nn.init.zeros_(parameter)
    assert (refine(generator, image, mask, consistency=False, coarse_noise=0.3) - noisy).abs().max() > 1e-4


def test_an_assumed_error_is_told_to_the_network_and_adds_nothing(micrographs):
    generator = build(micrographs, 2)
    torch.nn.init.normal_(generator.network.coarse_noise_mlp[-1].weight)
    image, mask = cut(micrographs, 16, 16)
    told = []

    def record(module, inputs):
        told.append(float(inputs[0][0, 0]))

    generator.network.coarse_noise_mlp.register_forward_pre_hook(record)
    results = [
        refine(generator, image, mask, consistency=False, coarse_noise=noise, coarse_error=error)
        for noise, error in ((0.0, 0.0), (0.0, 0.1), (0.12, 0.05), (0.0, 7.0))
    ]
    assert [told[index] for index in (0, len(told) // 4, len(told) // 2, -1)] == pytest.approx([0, 0.1, 0.13, 0.3])
    assert not torch.equal(results[0], results[1])
    # A network that does not listen draws the same: nothing is added to the coarse image.
    for parameter in generator.network.coarse_noise_mlp.parameters():
        torch.nn.init.zeros_(parameter)
    deaf = [refine(generator, image, mask, consistency=False, coarse_error=error) for error in (0.0, 0.1)]
    assert torch.equal(*deaf)


def test_starting_from_the_coarse_image_at_full_strength_is_starting_from_noise(micrographs):
    generator = build(micrographs, 2)
    image, mask = cut(micrographs, 16, 16)
    coarse = shrink(image, 2)
    drawn = [
        generator.draw(DrawRequest([2], mask, coarse, SOLVER, StartImages(enlarge(coarse, 2, (16, 16)), strength)))
        for strength in (1.0, 0.2)
    ]
    assert torch.equal(drawn[0].images, refine(generator, coarse, mask, seed=2))
    base = enlarge(coarse, 2, (16, 16))
    assert (drawn[1].images - base).abs().mean() < (drawn[0].images - base).abs().mean()


def test_unlabeled_pixels_are_the_null_mask_and_a_generator_without_classes_refines_too(micrographs):
    generator = build(micrographs, 2)
    image, mask = cut(micrographs, 40, 48)
    unlabeled = torch.full_like(mask, 255)
    assert not torch.equal(refine(generator, image, unlabeled), refine(generator, image, mask))
    guided = refine(generator, image, unlabeled, guidance_scale=3.0, guidance_interval=None)
    assert torch.equal(guided, refine(generator, image, unlabeled))
    without = build(micrographs.without_masks(), 2)
    assert without.needs == {"images"}
    assert refine(without, shrink(image, 2), unlabeled).shape == image.shape


def test_a_saved_refining_generator_draws_the_same(micrographs, tmp_path):
    generator = build(micrographs, 4)
    image, mask = cut(micrographs, 24, 40)
    generator.save(tmp_path / "saved")
    loaded = load_generator(tmp_path / "saved")
    assert (loaded.low_resolution, loaded.detail) == (generator.low_resolution, generator.detail)
    torch.testing.assert_close(refine(loaded, image, mask), refine(generator, image, mask), atol=1e-5, rtol=0)


def test_the_loss_is_that_of_the_detail_given_the_told_noise(micrographs, tiny_dataset):
    """The network is an oracle: it returns the velocity of the true detail, so the loss must vanish."""
    values = tiny_train_config(tiny_dataset, "run")
    values["generator"]["low_resolution"] = {"factor": 2, "max_noise": 0.4}
    config = parse_config(values, TrainConfig)
    generator = build(micrographs, 2)
    generator.low_resolution = config.generator.low_resolution
    trainable = build_trainable(generator, config)
    image, mask = cut(micrographs, 16, 16)
    randomness = {name: tensor[None] for name, tensor in trainable.randomness(0)(7).items()}
    seen = {}

    def oracle(noisy, timesteps, one_hot, coarse, coarse_noise):
        seen.update(coarse=coarse, coarse_noise=coarse_noise)
        mean, deviation = generator.intensity
        detail = ((image - mean) / deviation - coarse) / generator.detail
        signal, spread = generator.schedule.compute_levels(timesteps)
        torch.testing.assert_close(noisy, signal * detail + spread * randomness["noise"])
        return signal * randomness["noise"] - spread * detail

    batch = {"image": image, "mask": mask, **randomness}
    losses = trainable.compute_loss(trainable.phases[0], {"unet": oracle}, batch).losses
    assert float(losses.max()) < 1e-10
    assert float(seen["coarse_noise"]) == pytest.approx(0.4 * float(randomness["coarse_noise"]))
    held_out = trainable.held_out_randomness(8)(7)
    assert (held_out["blur"], held_out["coarse_noise"]) == (0.5, 0.5)


def cascade_of(*generators, solvers=None):
    names = [Path(name) for name in ("one", "two", "three")[: len(generators)]]
    return build_cascade(generators, solvers or [SOLVER] * len(generators), names)


def test_a_cascade_is_its_stages_one_after_the_other(micrographs):
    first, second = build(micrographs, crop_size=32), build(micrographs, 2)
    cascade = cascade_of(first, second)
    assert (cascade.geometry.image_size, cascade.geometry.crop_size) == (32, 32)
    _, mask = cut(micrographs, 37, 45)
    small = torch.from_numpy(shrink_mask(mask[0].numpy().astype(np.uint8), 2).astype(np.int64))[None]
    coarse = first.draw(DrawRequest([4], small, solver=SOLVER)).images
    expected = second.draw(DrawRequest([derive_seed(4, 1)], mask, coarse, SOLVER)).images
    assert torch.equal(draw_for_masks(cascade, mask, [4]), expected)
    both = draw_for_masks(cascade, torch.cat([mask.flip(2), mask]), [9, 4])
    assert torch.equal(both[1:], expected)


def test_each_stage_is_told_the_conditions_that_it_was_trained_with(micrographs):
    heat, steel = Condition(name="heat", center=800, scale=50), Condition(name="steel", categories=["a", "b"])
    values = np.zeros((len(micrographs), 1), np.float32)
    first = build(replace(micrographs, conditions=values, columns=(heat,)), crop_size=32)
    both = replace(micrographs, conditions=np.repeat(values, 2, axis=1), columns=(steel, heat))
    second = build(both, 2)
    cascade = cascade_of(first, second)
    assert cascade.conditions == (heat, steel)
    _, mask = cut(micrographs, 37, 45)
    told = torch.tensor([[1.5, 1.0]])
    small = torch.from_numpy(shrink_mask(mask[0].numpy().astype(np.uint8), 2).astype(np.int64))[None]
    coarse = first.draw(DrawRequest([4], small, solver=SOLVER, conditions=told[:, :1])).images
    expected = second.draw(DrawRequest([derive_seed(4, 1)], mask, coarse, SOLVER, conditions=told.flip(1))).images
    assert torch.equal(cascade.draw(DrawRequest([4], mask, conditions=told)).images, expected)
    assert not torch.equal(cascade.draw(DrawRequest([4], mask)).images, expected)

    second.conditions = (steel, heat.model_copy(update={"center": 700}))
    with pytest.raises(InputError, match="one and two were trained with other values of 'heat'; train both"):
        cascade_of(first, second)


def test_three_stages_reach_the_product_of_their_factors(micrographs):
    stages = build(micrographs, image_size=8, crop_size=32), build(micrographs, 2, 8, 16), build(micrographs, 2, 8)
    cascade = cascade_of(*stages)
    assert cascade.factors == (4, 2, 1)
    _, mask = cut(micrographs, 40, 48)
    assert draw_for_masks(cascade, mask, [0]).shape == (1, 1, 40, 48)


def test_stages_that_do_not_fit_are_refused(micrographs):
    first, second = build(micrographs, crop_size=32), build(micrographs, 2)
    two_classes = Micrographs(
        micrographs.info.model_copy(update={"class_names": ["a", "b"]}),
        micrographs.stems,
        micrographs.images,
        [np.minimum(mask, 1) for mask in micrographs.masks],
    )
    colored = Micrographs(
        micrographs.info,
        micrographs.stems,
        [np.stack([image] * 3, -1) for image in micrographs.images],
        micrographs.masks,
    )
    cases = [
        ((second, first), "one needs coarse images, so it cannot be the first stage"),
        ((first, first), "two does not refine images, so it can only be the first stage"),
        ((first, build(micrographs, 4)), "one draws pixels of 2 px .* two, of factor 4, refines pixels of 4 px"),
        ((first, build(two_classes, 2)), "one has the classes matrix, island, film, two has a, b"),
        ((first, build(colored, 2, channels=3)), "one has in_channels 1, two has 3"),
    ]
    for stages, message in cases:
        with pytest.raises(InputError, match=message):
            cascade_of(*stages)
    noisy = SOLVER.model_copy(update={"coarse_noise": 0.31})
    with pytest.raises(InputError, match=r"stages\.1\.solver\.coarse_noise 0\.31: .* at most 0\.3"):
        cascade_of(first, second, solvers=[SOLVER, noisy])
    with pytest.raises(InputError, match=r"stages\.0\.solver\.coarse_noise: only applicable to refining generators"):
        cascade_of(first, second, solvers=[noisy, SOLVER])
    _, mask = cut(micrographs, 30, 48)
    with pytest.raises(InputError, match="mask is 48x30 px, smaller than 2 times the first stage's image_size 16"):
        draw_for_masks(cascade_of(first, second), mask, [0])
    with pytest.raises(InputError, match="coarse images of 24x15 px do not fit masks of 48x32 px: at factor 2"):
        second.draw(DrawRequest([0], cut(micrographs, 32, 48)[1], torch.zeros(1, 1, 15, 24)))


def test_sections_that_do_not_fit_a_refining_network_are_refused():
    for options, message in (
        ({"noise": {"objective": "variational"}}, "low_resolution: not applicable to noise.objective 'variational'"),
        ({"unet": {"learn_sigma": True}}, "low_resolution: not applicable to unet.learn_sigma"),
    ):
        with pytest.raises(ValueError, match=message):
            SemanticDiffusionSection(low_resolution={"factor": 2}, **options)
    values = tiny_train_config("tiny", "run")
    values["generator"]["low_resolution"] = {"factor": 8}
    values["data"] |= {"image_size": 20}
    with pytest.raises(InputError, match=r"image_size 20 is not a multiple of generator\.low_resolution\.factor 8"):
        parse_config(values, TrainConfig)
    values = tiny_train_config("tiny", "run")
    values["preview"]["solver"]["coarse_noise"] = 0.1
    with pytest.raises(InputError, match=r"preview\.solver\.coarse_noise: only applicable with generator\.low_resol"):
        parse_config(values, TrainConfig)


def test_a_refining_generator_is_fine_tuned_on_other_micrographs(micrographs):
    generator = build(micrographs, 8)
    pale = Micrographs(
        micrographs.info.model_copy(update={"class_names": ["matrix", "film"]}),
        micrographs.stems,
        [image // 2 for image in micrographs.images],
        [np.minimum(mask, 1) for mask in micrographs.masks],
    )
    adapted, line = adapt_generator(generator, pale, CropGeometry(16, 16), True)
    assert "classes kept: matrix" in line
    assert adapted.low_resolution == generator.low_resolution
    # Half of the contrast has half of the detail; both are relative to the contrast.
    assert adapted.intensity[1] == pytest.approx(generator.intensity[1] / 2, rel=0.01)
    assert adapted.detail == pytest.approx(generator.detail, rel=0.01)
    image, mask = cut(pale, 24, 32)
    assert refine(adapted, image, mask).isfinite().all()
    with pytest.raises(InputError, match=r"data\.image_size 20: must be a multiple of 8, the factor"):
        adapt_generator(generator, micrographs, CropGeometry(20, 20), True)
