"""A small Stable Diffusion of our own: steelgen's autoencoder, and a U-Net trained without labels on its latents.

No pretrained weights can be downloaded where steelgen is built. This base is made like one: it has seen micrographs of
many materials, and no mask. It has the format of diffusers, so that `latent_adapter` loads it like any other.
"""

from __future__ import annotations

import copy
import string
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from common import LinePrinter, summarize
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from fitting import train_to_end
from steps import TrainingStep
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from steelgen.config.adapter import LatentAdapterSection
from steelgen.config.base import parse_config
from steelgen.config.train import TrainConfig
from steelgen.errors import InputError
from steelgen.files import load_json, new_folder, save_json
from steelgen.generators.autoencoder.generator import Autoencoder
from steelgen.generators.families import load_generator
from steelgen.generators.latent_adapter.base import load_base
from steelgen.generators.latent_adapter.generator import LatentAdapter
from steelgen.generators.latent_adapter.network import AdaptedNetwork
from steelgen.training.checkpoint import load_checkpoint, newest_checkpoint, save_checkpoint
from steelgen.training.micrographs import crop_geometry, load_training_data
from steelgen.training.setup import build_learning_rate

UHCS = Path(__file__).parents[1] / "data" / "uhcs"
MIXTURE = Path(__file__).parents[1] / "configs" / "bundled" / "base.json"
"""Its datasets, crop sizes and shares, to which the training micrographs of uhcs are added."""
UHCS_WEIGHT = 4.0
PROMPT = "a micrograph"
"""The prompt of four fifths of the crops; the others have the empty one."""
CODEC = {
    "kind": "autoencoder",
    "downsample_factor": 2,
    "latent_channels": 4,
    "base_channels": 16,
    "adversarial_weight": 0.0,
}
WIDTHS = (32, 64, 128, 192)
_FINE = 2
"""Levels without attention, which on the second one takes a third of a step's time."""
TEXT_WIDTH, PROMPT_LENGTH = 64, 40
IMAGE_SIZE = 64


def build_values(pretraining: Path, run_dir: Path, generator: dict[str, Any], **training: Any) -> dict[str, Any]:
    """Builds a training config on images without masks: the pretraining sets and the training micrographs of uhcs."""
    sets = [
        {**each, "dataset": str(pretraining / Path(each["dataset"]).name), "unconditional": True}
        for each in load_json(MIXTURE)["data"]["datasets"]
    ]
    for each in sets:
        if not Path(each["dataset"]).is_dir():
            raise InputError(f"--pretraining {pretraining}: has no folder {Path(each['dataset']).name}")
    sets.append({"dataset": str(UHCS), "weight": UHCS_WEIGHT, "unconditional": True})
    return {
        "run_dir": str(run_dir),
        "data": {
            "datasets": sets,
            "image_size": IMAGE_SIZE,
            "crop_size": 128,
            "scale_range": [0.8, 1.25],
            "unconditional": True,
        },
        "generator": generator,
        "train": {
            "train_batch_size": 16,
            "lr_scheduler": "cosine",
            "warmup_steps": 50,
            "mixed_precision": "auto",
            "checkpoint_every": 100,
            "keep_checkpoints": 1,
            "trackers": [],
            **training,
        },
        "preview": {"num_images": 0},
        "validation": {"split": None},
        "measurement": {"every": None},
    }


def measure_step(step: TrainingStep, repeats: int = 3) -> float:
    """Median CPU seconds of a training step, after a first one."""
    seconds = []
    for _ in range(1 + repeats):
        begin = time.process_time()
        step()
        seconds.append(time.process_time() - begin)
    return summarize(seconds[1:])["median"]


def count_steps(run_dir: Path, minutes: float, build: Callable[[], TrainingStep]) -> int:
    """Counts the training steps that fit into CPU minutes; the time of one is measured once."""
    path = run_dir.with_name(f"{run_dir.name}-step.json")
    if not path.is_file():
        save_json(path, {"seconds": measure_step(build())})
    return max(1, round(60 * minutes / load_json(path)["seconds"]))


def train_codec(pretraining: Path, run_dir: Path, minutes: float) -> Autoencoder:
    """Trains the autoencoder, or resumes or loads it.

    Raises:
        InputError: if a signal ended training.
    """

    def build(steps: int) -> TrainConfig:
        options = {"max_steps": steps, "train_batch_size": 8, "learning_rate": 2e-3, "ema_decay": 0.99}
        return parse_config(build_values(pretraining, run_dir, CODEC, **options), TrainConfig)

    steps = count_steps(run_dir, minutes, lambda: TrainingStep(build(1)))
    codec = load_generator(train_to_end(build(steps)))
    assert isinstance(codec, Autoencoder)
    return codec


def convert_codec(codec: Autoencoder) -> AutoencoderKL:
    """Converts steelgen's autoencoder to one that takes images in [-1, 1] and has latents without a shift.

    The shifts and factors of standardized images and latents go into the outermost weights. It differs only along the
    edges of an image, around which it sees a gray level of 0 in place of the mean.
    """
    vae = copy.deepcopy(codec.image_codec.vae).float().eval()
    shift, scale = codec.intensity
    statistics = codec.image_codec.statistics
    variance = (statistics.square - statistics.mean.square()).mean()
    with torch.no_grad():
        first, last = vae.encoder.conv_in, vae.decoder.conv_out
        first.weight /= scale
        first.bias -= first.weight.sum(dim=(1, 2, 3)) * shift
        vae.quant_conv.bias[: len(statistics.mean)] -= statistics.mean
        vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ statistics.mean
        last.weight *= scale
        last.bias.mul_(scale).add_(shift)
    vae.register_to_config(scaling_factor=float(variance.rsqrt()))
    return vae


def build_pipeline(vae: AutoencoderKL) -> StableDiffusionPipeline:
    """Builds a Stable Diffusion with untrained U-Net and text encoder; torch's global seed determines their weights.

    Letters are tokens: the vocabulary has no merges. The schedule is that of Stable Diffusion 2, without signal at the
    last step, so that brightness is learned.
    """
    letters = string.ascii_lowercase + string.digits + "<>,."
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(
        vocab={word: index for index, word in enumerate(words)}, merges=[], model_max_length=PROMPT_LENGTH
    )
    text_encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words),
            hidden_size=TEXT_WIDTH,
            intermediate_size=2 * TEXT_WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=PROMPT_LENGTH,
            bos_token_id=len(words) - 2,
            eos_token_id=len(words) - 1,
        )
    )
    channels, coarse = vae.config.latent_channels, len(WIDTHS) - _FINE
    unet = UNet2DConditionModel(
        sample_size=IMAGE_SIZE // 2 ** (len(vae.config.block_out_channels) - 1),
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownBlock2D",) * _FINE + ("CrossAttnDownBlock2D",) * coarse,
        up_block_types=("CrossAttnUpBlock2D",) * coarse + ("UpBlock2D",) * _FINE,
        block_out_channels=WIDTHS,
        layers_per_block=1,
        attention_head_dim=4,
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=16,
    )
    scheduler = DDPMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        steps_offset=1,
        timestep_spacing="trailing",
        clip_sample=False,
    )
    return StableDiffusionPipeline(
        vae, text_encoder, tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    )


class WholeBase(LatentAdapter):
    """A base whose U-Net is trained as a whole; it is saved as a base, not as adapters of one."""

    def save(self, folder: Path) -> None:
        """Writes all networks in the format of diffusers."""
        pipeline = StableDiffusionPipeline.from_pretrained(self.section.base, local_files_only=True)
        pipeline.unet.load_state_dict(self.base.unet.state_dict())
        with new_folder(folder) as working:
            pipeline.save_pretrained(working)


def train_base(pretraining: Path, run_dir: Path, codec: Autoencoder, minutes: float) -> Path:
    """Trains the U-Net of the base without labels, or resumes or finds it; returns the base's folder.

    The adapters' own loss, checkpoints and averages, with all weights of the U-Net in place of adapters.
    """
    if (run_dir / "base").is_dir():
        return run_dir / "base"
    untrained = run_dir / "untrained"
    if not untrained.is_dir():
        torch.manual_seed(0)
        pipeline = build_pipeline(convert_codec(codec))
        with new_folder(untrained) as working:
            pipeline.save_pretrained(working)

    def build(steps: int) -> tuple[TrainConfig, TrainingStep]:
        # The config needs an adapter to train, here unused.
        section = {"kind": "latent_adapter", "base": str(untrained), "prompt": PROMPT}
        options = {"max_steps": steps, "learning_rate": 1e-3, "ema_decay": 0.998}
        values = {**build_values(pretraining, run_dir, section, **options), "diffusion": {"mask_dropout": 0.2}}
        config = parse_config(values, TrainConfig)
        micrographs = load_training_data(config)
        base = load_base(untrained, torch.float32)
        base.unet.requires_grad_(True)
        assert isinstance(config.generator, LatentAdapterSection)
        network = AdaptedNetwork(base, None)
        generator = WholeBase(base, network, config.generator, micrographs.info, crop_geometry(config), "")
        return config, TrainingStep(config, prepared=(generator, micrographs))

    total = count_steps(run_dir, minutes, lambda: build(1)[1])
    config, step = build(total)
    state = step.state
    (optimizer,) = state.optimizers.values()
    rate, printer = build_learning_rate(config.train, optimizer, total), LinePrinter()
    if newest := newest_checkpoint(run_dir):
        load_checkpoint(newest, state)
    printer.on_start(state.step, total)
    while state.step < total:
        for group in optimizer.param_groups:
            group["lr"] = rate(state.step)
        loss = step()
        if state.step % 100 == 0:
            printer.on_step(state.step, {"loss": float(loss)})
        if state.step % config.train.checkpoint_every == 0:
            save_checkpoint(run_dir, state, config.train.keep_checkpoints)
    with state.averaged():
        state.generator.save(run_dir / "base")
    return run_dir / "base"
