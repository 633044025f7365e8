"""What tests of the diffusion call again and again: a loss with its randomness, a sampler with a solver's options."""

from torch.utils.data import default_collate

from steelgen.config.solver import SolverSection
from steelgen.diffusion.loss import LossOptions, compute_diffusion_loss
from steelgen.diffusion.randomness import CropRandomness
from steelgen.diffusion.reverse import build_reverse_process
from steelgen.diffusion.timesteps import EvenTimesteps


def compute_loss(network, schedule, batch, options=None, distribution=None, seed=0, mask_dropout=0.0):
    """`compute_diffusion_loss` for two classes, with what the loader's workers would add to the batch."""
    randomness = CropRandomness(seed, tuple(batch["image"].shape[1:]), mask_dropout)
    drawn = default_collate([randomness(int(number)) for number in batch["number"]])
    distribution = distribution or EvenTimesteps(len(schedule))
    process = build_reverse_process(schedule.betas)
    return compute_diffusion_loss(
        network, schedule, {**batch, **drawn}, 2, options or LossOptions(), distribution, process
    )


def draw(sampler, masks, seeds, solver="dpmsolver++", num_inference_steps=12, *, batch=False, **options):
    """Draws with a solver by name, guided at every step unless an interval is given; as one batch if asked to."""
    given = {name: options.pop(name) for name in list(options) if name in SolverSection.model_fields}
    section = SolverSection(
        name=solver, num_inference_steps=num_inference_steps, **{"guidance_interval": None, **given}
    )
    return (sampler.sample_batch if batch else sampler)(masks, seeds, section, **options)
