"""Joint diffusion: losses against diffusers' scheduler, sampling against a network that knows the answer, resuming."""

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from steelgen.config.base import parse_config
from steelgen.config.joint import JointDiffusionSection, NoiseLevelsSection
from steelgen.config.solver import RespacedSolverSection, SolverSection
from steelgen.config.train import TrainConfig
from steelgen.data.folder import DatasetInfo
from steelgen.data.placement import CropGeometry
from steelgen.diffusion.analog_bits import encode_mask
from steelgen.diffusion.noise import build_noise_schedule
from steelgen.errors import InputError
from steelgen.generators import DrawRequest
from steelgen.generators.families import build_trainable, load_generator
from steelgen.generators.joint_diffusion.generator import JointDiffusion
from steelgen.generators.joint_diffusion.levels import CLEAN
from steelgen.generators.joint_diffusion.training import relate_timesteps
from steelgen.training.loop import train
from steelgen.training.setup import build_crops, prepare_training
from tests.conftest import write_tiny_dataset
from tests.generators.joint import KnownNetwork, joint_config
from tests.generators.runs import load_run
from tests.training.test_loop import Recorder, assert_same_tensors


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_tiny_dataset(tmp_path_factory.mktemp("joint") / "tiny")


@pytest.fixture(scope="module")
def run(dataset):
    """An undisturbed run."""
    folder = dataset.parent / "run"
    train(parse_config(joint_config(dataset, folder), TrainConfig), Recorder())
    return folder


def prepare(dataset, count=4, generator=None, **options):
    config = parse_config({**joint_config(dataset, "unused", generator), **options}, TrainConfig)
    built, micrographs = prepare_training(config)
    trainable = build_trainable(built, config)
    crops = build_crops(config, trainable, micrographs)
    batch = torch.utils.data.default_collate([crops[number] for number in range(count)])
    return built, trainable, batch


def compute(trainable, batch, **options):
    return trainable.compute_loss(trainable.phases[0], trainable.networks, batch, **options)


def test_resumed_it_is_bit_identical(dataset, run, tmp_path):
    for steps in (2, 4):
        values = joint_config(dataset, tmp_path / "run", max_steps=steps, checkpoint_every=1)
        train(parse_config(values, TrainConfig), Recorder(), resume=True)
    found = load_run(tmp_path / "run")
    assert len(found) > 100
    assert_same_tensors(load_run(run), found)


def test_losses_are_those_of_diffusers_for_a_clean_mask(dataset):
    """With relation 1 of a clean mask the network sees its bits without noise at time 0, and only the image counts."""
    section = {"self_conditioning": 0, "levels": {"equal": 0, "clean_mask": 1, "clean_image": 0, "no_image": 0}}
    generator, trainable, batch = prepare(dataset, generator=section, diffusion={"mask_dropout": 0})
    generator.network.eval()
    scheduler = DDPMScheduler.from_config(generator.schedule.config)
    times = (batch["fraction"] * 100).long()
    image = (batch["image"] - generator.intensity[0]) / generator.intensity[1]
    noise = batch["noise"][:, :1]
    noisy = scheduler.add_noise(image, noise, times)
    output = generator.network(torch.cat([noisy, encode_mask(batch["mask"], 3)], dim=1), times + 1, 0 * times).sample
    target = scheduler.get_velocity(image, noise, times)
    expected = (output[:, :1] - target).square().mean(dim=(1, 2, 3))
    found = compute(trainable, batch)
    torch.testing.assert_close(found.losses, expected, rtol=1e-3, atol=1e-4)
    assert (found.parts["mask_loss"] == 0).all()


@pytest.mark.parametrize("prediction", ["classes", "velocity"])
def test_losses_of_pairs_weigh_the_mask_and_leave_out_ignored_pixels(dataset, prediction):
    section = {"self_conditioning": 0, "mask_loss_weight": 3, "mask_prediction": prediction}
    generator, trainable, batch = prepare(dataset, generator=section)
    generator.network.eval()
    batch["mask"][:, :5] = 255
    scheduler = DDPMScheduler.from_config(generator.schedule.config)
    times = (batch["fraction"] * 100).long()
    image = (batch["image"] - generator.intensity[0]) / generator.intensity[1]
    clean = torch.cat([image, encode_mask(batch["mask"], 3)], dim=1)
    noisy = scheduler.add_noise(clean, batch["noise"], times)
    output = generator.network(noisy, times + 1, times + 1).sample
    velocity = scheduler.get_velocity(clean, batch["noise"], times)
    if prediction == "classes":
        errors = torch.nn.functional.cross_entropy(output[:, 1:], batch["mask"], ignore_index=255, reduction="none")
    else:
        errors = (output[:, 1:] - velocity[:, 1:]).square().mean(dim=1)
        errors[:, :5] = 0
    expected = (output[:, 0] - velocity[:, 0]).square().mean(dim=(1, 2)) + 3 * errors.mean(dim=(1, 2))
    torch.testing.assert_close(compute(trainable, batch, validates=True).losses, expected, rtol=1e-3, atol=1e-4)


def test_crops_without_labels_teach_the_image_alone(dataset):
    generator, trainable, batch = prepare(dataset)
    batch["mask"][:] = 255
    for validates in (False, True):
        compute(trainable, batch, validates=validates).losses.sum().backward()
        weight, bias = generator.network.conv_out.weight.grad, generator.network.conv_out.bias.grad
        assert (weight[1:] == 0).all()
        assert (bias[1:] == 0).all()
        assert bias[0] != 0


def test_the_noise_levels_have_the_shares_of_the_config():
    count, levels = 20_000, NoiseLevelsSection(equal=0.3, clean_mask=0.2, clean_image=0.1, no_image=0.05)
    drawn, mask_drawn = (torch.randint(0, 99, (count,), generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    relation = (torch.arange(count) + 0.5) / count
    unlabeled = torch.arange(count) % 10 == 0
    image, mask = relate_timesteps(drawn, mask_drawn, relation, unlabeled, levels, 0.15, last=99)
    assert (mask[unlabeled] == 99).all()
    assert (image[unlabeled] == drawn[unlabeled]).all()
    image, mask = image[~unlabeled], mask[~unlabeled]
    shares = [mask == 99, (image == mask) & (mask != 99), mask == CLEAN, image == CLEAN, image == 99]
    assert [float(share.float().mean()) for share in shares] == pytest.approx([0.15, 0.3, 0.2, 0.1, 0.05], abs=0.005)
    free = relation[~unlabeled] > 0.8
    assert abs(np.corrcoef(image[free], mask[free])[0, 1]) < 0.05


def test_noise_and_levels_are_functions_of_seed_and_number(dataset):
    _, trainable, _ = prepare(dataset)
    one, other = trainable.randomness(3), trainable.randomness(4)
    first, again = one(17), trainable.randomness(3)(17)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other(17)[name]) for name in ("noise", "mask_fraction", "relation"))
    many = [one(number) for number in range(400)]
    assert np.mean([bool(each["reuses"]) for each in many]) == pytest.approx(0.5, abs=0.08)
    for name in ("mask_fraction", "relation"):
        values = np.array([float(each[name]) for each in many])
        assert values.mean() == pytest.approx(0.5, abs=0.05)
        assert abs(np.corrcoef(values, [float(each["fraction"]) for each in many])[0, 1]) < 0.15


def build_known(edge=16, share=0.25, prediction="classes"):
    """A generator whose network is the best for independent pixels."""
    schedule = build_noise_schedule(1000, "squaredcos_cap_v2", "v_prediction", True)
    section = JointDiffusionSection(self_conditioning=0, mask_prediction=prediction)
    info = DatasetInfo(name="known", class_names=["matrix", "island"])
    network = KnownNetwork(schedule, edge, share, prediction == "classes")
    return JointDiffusion(network, schedule, section, info, CropGeometry(edge, edge))


@pytest.mark.parametrize("prediction", ["classes", "velocity"])
def test_pairs_of_a_known_network_have_its_statistics(prediction):
    generator = build_known(prediction=prediction)
    drawn = generator.draw(DrawRequest(range(20), solver=SolverSection(num_inference_steps=20)))
    assert drawn.masks.float().mean() == pytest.approx(0.25, abs=0.02)
    assert (drawn.images[:, 0].sign() == 2 * drawn.masks - 1).float().mean() > 0.99


def test_images_of_pairs_are_guided_by_their_masks():
    """The best network's images are ±1, whether the mask is known or not: guidance moves them along the difference of
    both expectations, and no mask by itself."""

    def sample(**options):
        solver = SolverSection(num_inference_steps=20, guidance_interval=(0.1, 5.0), **options)
        return build_known(share=0.5).draw(DrawRequest(range(6), solver=solver))

    plain, unguided, guided = sample(guidance_scale=1), sample(guide_pairs=False), sample(guidance_scale=3)
    assert torch.equal(plain.images, unguided.images)
    assert torch.equal(plain.masks, unguided.masks)
    assert not torch.equal(plain.images, guided.images)
    assert guided.masks.float().mean() == pytest.approx(0.5, abs=0.04)
    assert (guided.images[:, 0].sign() == 2 * guided.masks - 1).float().mean() > 0.99
    network = build_known().draw(DrawRequest([1], wanted=frozenset({"masks"}), solver=SolverSection(guidance_scale=3)))
    alone = build_known().draw(DrawRequest([1], wanted=frozenset({"masks"}), solver=SolverSection(guidance_scale=1)))
    assert torch.equal(network.masks, alone.masks)


def test_masks_alone_have_the_same_time_inputs_in_training_and_sampling(dataset):
    section = {"image_channels": "none", "self_conditioning": 0}
    generator, trainable, batch = prepare(dataset, generator=section)
    times = []
    generator.network.register_forward_pre_hook(lambda _, inputs: times.append(torch.stack(inputs[1:3])))
    compute(trainable, batch)
    generator.draw(DrawRequest([1], solver=SolverSection(num_inference_steps=5)))
    trained, drawn = times[0], torch.cat(times[1:], dim=1)
    assert torch.equal(trained[0], trained[1])
    assert drawn.shape == (2, 5)
    assert torch.equal(drawn[0], drawn[1])
    assert drawn[0, 0] == 100


@pytest.mark.parametrize("prediction", ["classes", "velocity"])
@pytest.mark.parametrize("wanted", [0.1, 0.4])
def test_phase_fractions_are_met_and_pairs_still_match(wanted, prediction):
    fractions = torch.tensor([[float("nan"), wanted]]).expand(8, -1)
    request = DrawRequest(range(8), solver=SolverSection(num_inference_steps=20), fractions=fractions)
    drawn = build_known(prediction=prediction).draw(request)
    assert drawn.masks.float().mean() == pytest.approx(wanted, abs=0.02)
    assert (drawn.images[:, 0].sign() == 2 * drawn.masks - 1).float().mean() > 0.98


def test_masks_are_drawn_without_images():
    generator = build_known()
    drawn = generator.draw(DrawRequest([3, 4], wanted=frozenset({"masks"})))
    assert drawn.images is None
    assert 0.15 < drawn.masks.float().mean() < 0.35


def test_what_is_given_decides_the_other():
    generator = build_known()
    mask = (torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)) < 0.5).long()
    image = (2 * mask[:, None] - 1).float()
    for scale in (1.0, 1.5):
        drawn = generator.draw(DrawRequest([4, 5, 6], masks=mask, solver=SolverSection(guidance_scale=scale)))
        assert torch.equal(drawn.images.sign(), image)
        assert torch.equal(drawn.masks, mask)
    drawn = generator.draw(DrawRequest([4, 5, 6], images=image))
    assert torch.equal(drawn.masks, mask)
    torch.testing.assert_close(drawn.images, image)


@pytest.mark.parametrize("wanted", [None, 0.6])
def test_what_is_known_stays_and_the_rest_is_new(wanted):
    """With a phase fraction of the new part alone, also beside ignored pixels."""
    generator = build_known(edge=24)
    mask = (torch.rand(6, 24, 24, generator=torch.Generator().manual_seed(0)) < 0.1).long()
    mask[:, :3] = 255
    image = (2 * mask[:, None] - 1).float().clamp(-1, 1) * 0.8
    known = torch.ones(6, 24, 24, dtype=torch.bool)
    known[:, 8:20, 6:22] = False
    fractions = None if wanted is None else torch.tensor([[float("nan"), wanted]]).expand(6, -1)
    request = DrawRequest(
        range(6), mask, image, SolverSection(num_inference_steps=20), known=known, fractions=fractions
    )
    drawn = generator.draw(request)
    assert torch.equal(drawn.masks[known], mask[known])
    assert torch.equal(drawn.images[:, 0][known], image[:, 0][known])
    new = drawn.masks[:, 8:20, 6:22]
    assert new.float().mean() == pytest.approx(wanted or 0.25, abs=0.03)
    assert (drawn.images[:, 0, 8:20, 6:22].sign() == 2 * new - 1).float().mean() > 0.98
    with pytest.raises(InputError, match="image, mask, and known parts have different sizes: 24x24, 24x24, 20x24 px"):
        generator.draw(DrawRequest(range(6), mask, image, known=known[:, :, :20]))


def test_large_layouts_are_those_of_the_windows():
    """A network without neighbors gives the same pixels in windows as alone, wherever the windows are."""
    small, large = build_known(edge=16), build_known(edge=40)
    blank = torch.full((2, 40, 40), 255)
    for periodic in (False, True):
        found = small.draw(DrawRequest([1, 2], masks=blank, solver=SolverSection(periodic=periodic)))
        expected = large.draw(DrawRequest([1, 2], masks=blank))
        torch.testing.assert_close(found.images, expected.images, atol=1e-3, rtol=0)
        assert torch.equal(found.masks, expected.masks)


@pytest.mark.parametrize("given", ["nothing", "masks", "images"])
def test_batches_change_nothing(run, given):
    generator = load_generator(run)
    options = {"solver": SolverSection(name="sde-dpmsolver++", num_inference_steps=3)}
    if given == "masks":
        options["masks"] = (torch.arange(3 * 256).view(3, 16, 16) // 40) % 3
        options["masks"][2] = 255  # a pair beside images for masks
    if given == "images":
        options["images"] = torch.linspace(-1, 1, 3 * 256).view(3, 1, 16, 16)
    together = generator.draw(DrawRequest([7, 8, 9], **options))
    for row, seed in enumerate((7, 8, 9)):
        own = {name: value[row : row + 1] if torch.is_tensor(value) else value for name, value in options.items()}
        alone = generator.draw(DrawRequest([seed], **own))
        assert torch.equal(alone.images[0], together.images[row])
        assert torch.equal(alone.masks[0], together.masks[row])
    if given == "masks":
        assert together.masks[2].max() < 3
        assert torch.equal(together.masks[:2], options["masks"][:2])


def test_masks_alone_are_trained_and_drawn(dataset, tmp_path):
    values = joint_config(dataset, tmp_path / "run", {"image_channels": "none"}, max_steps=2)
    train(parse_config({**values, "preview": {"num_images": 0}}, TrainConfig), Recorder())
    generator = load_generator(tmp_path / "run")
    assert (generator.makes, generator.network.config.in_channels) == ({"masks"}, 4)  # bits and their own estimate
    assert generator.network.config.out_channels == 3  # logits
    drawn = generator.draw(DrawRequest([1, 2], solver=SolverSection(num_inference_steps=2)))
    assert drawn.images is None
    assert drawn.masks.shape == (2, 16, 16)
    assert not torch.equal(drawn.masks[0], drawn.masks[1])


def test_masks_of_older_generators_and_of_latents_are_velocities():
    assert JointDiffusionSection().mask_prediction == "classes"
    assert JointDiffusionSection(latent="a").mask_prediction == "velocity"
    older = JointDiffusionSection().model_dump(mode="json")
    assert JointDiffusionSection.model_validate(older).mask_prediction == "classes"
    del older["mask_prediction"]
    assert JointDiffusionSection.model_validate(older).mask_prediction == "velocity"


def test_what_it_cannot_do_is_one_line(dataset, run, tmp_path):
    for change, message in [
        ({"data": {"image_size": 17}}, "image_size 17 is not a multiple of 2"),
        ({"data": {"unconditional": True}}, "tiny: has no masks, which generator.kind joint_diffusion learns"),
        ({"diffusion": {"mask_dropout": 0.5}}, "diffusion.mask_dropout 0.5 and .* add up to 1.3, more than 1"),
        ({"diffusion": {"timestep_sampling": "loss_second_moment"}}, "loss_second_moment: not applicable"),
        ({"generator": {"levels": {"equal": 0.9, "clean_mask": 0.2}}}, "add up to 1.4, more than 1"),
        ({"generator": {"image_channels": "none", "levels": {"equal": 0.1}}}, "levels: not applicable"),
        ({"generator": {"latent": "a", "mask_prediction": "classes"}}, "mask_prediction 'classes': not applicable"),
        (
            {"generator": {"image_channels": "none"}, "diffusion": {"mask_dropout": 0.5}},
            "diffusion.mask_dropout 0.5: not applicable to generator.image_channels none",
        ),
        ({"generator": {"unet": {"base_channels": 20}}}, "gives 20 channels, not a multiple of norm_groups 32"),
    ]:
        values = joint_config(dataset, tmp_path / "refused")
        for section, fields in change.items():
            values[section] = {**values.get(section, {}), **fields}
        with pytest.raises(InputError, match=message):
            train(parse_config(values, TrainConfig), Recorder())
        assert not (tmp_path / "refused/config.json").exists()
    generator, mask = load_generator(run), torch.zeros(1, 16, 16, dtype=torch.int64)
    with pytest.raises(InputError, match="give either images or masks"):
        generator.draw(DrawRequest([0], masks=mask, images=torch.zeros(1, 1, 16, 16)))
    with pytest.raises(InputError, match="respaced_ddpm': not applicable"):
        generator.draw(DrawRequest([0], solver=RespacedSolverSection(name="respaced_ddpm")))
