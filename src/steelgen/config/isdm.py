"""Config keys of ISDM (Rabensteiner 2023): one flat JSON for network, diffusion, training and sampling."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from steelgen.config.base import (
    MAX_BATCH_SIZE,
    MAX_CROP_SIZE,
    MAX_IMAGE_SIZE,
    MAX_IMAGES,
    MAX_LEARNING_RATE,
    MAX_STEPS,
    MAX_TIMESTEPS,
    Section,
)
from steelgen.config.solver import check_schedule

_DEFAULT_CHANNEL_MULT: dict[int, list[float]] = {
    512: [0.5, 1, 1, 2, 2, 4, 4],
    256: [1, 1, 2, 2, 4, 4],
    128: [1, 1, 2, 3, 4],
    64: [1, 2, 3, 4],
}


class IsdmNetworkSection(Section):
    """Network and diffusion settings of an ISDM checkpoint, which its file does not contain."""

    image_size: int = Field(64, ge=8, le=MAX_IMAGE_SIZE)
    """Edge of the images, in pixels."""
    num_classes: int = Field(151, ge=1, le=255)
    """Classes of the masks."""
    num_channels: int = Field(128, ge=1, le=4096)
    """Channels of the first level, before channel_mult."""
    channel_mult: str = ""
    """One factor per level, e.g. "1,2,4"; empty uses the default for image_size 512, 256, 128 or 64."""
    num_res_blocks: int = Field(2, ge=1, le=64)
    """Residual blocks per level."""
    num_heads: int = Field(4, ge=1, le=1024)
    """Attention heads if num_head_channels is -1."""
    num_heads_upsample: int = Field(-1, ge=-1, le=1024)
    """Attention heads of the decoder; -1 uses num_heads."""
    num_head_channels: int = Field(-1, ge=-1, le=4096)
    """Channels per attention head; -1 uses num_heads."""
    attention_resolutions: str = "16,8"
    """Edges, in feature pixels, of the levels with attention, e.g. "32,16,8"."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout probability inside the residual blocks."""
    resblock_updown: bool = False
    """Resample inside residual blocks instead of by convolutions."""
    use_scale_shift_norm: bool = True
    """Scale and shift the norms by the time embedding instead of adding it."""
    use_new_attention_order: bool = False
    """Checkpoint order of attention weights: queries of all heads, then keys, then values; else grouped by head."""
    no_instance: bool = False
    """Omit the input channel of instance edges."""
    learn_sigma: bool = False
    """Learn the reverse variance."""
    diffusion_steps: int = Field(1000, ge=2, le=MAX_TIMESTEPS)
    """Steps of the forward process."""
    noise_schedule: Literal["linear", "cosine"] = "linear"
    """Noise schedule."""
    timestep_respacing: str = ""
    """Sampling steps: "", "50", "10,20" or "ddim50"."""
    predict_xstart: bool = False
    """Predict the image instead of the noise."""
    use_kl: bool = False
    """Train on the variational bound only."""
    rescale_learned_sigmas: bool = False
    """Weight the variational bound by diffusion_steps/1000 relative to the squared error; else by 1."""
    rescale_timesteps: bool = False
    """Pass t·1000/diffusion_steps to the network instead of t."""

    @field_validator("channel_mult", "attention_resolutions", mode="before")
    @classmethod
    def _join_list(cls, value: Any) -> Any:
        if isinstance(value, list | tuple):
            return ",".join(str(part) for part in value)
        return str(value) if isinstance(value, int | float) else value

    @model_validator(mode="after")
    def _check(self) -> IsdmNetworkSection:
        check_schedule(self.noise_schedule, self.diffusion_steps)
        if self.num_heads_upsample == 0 or self.num_head_channels == 0:
            raise ValueError("num_heads_upsample and num_head_channels must be -1 or at least 1")
        for factor in self.multipliers:
            if int(factor * self.num_channels) % 32 or factor <= 0:
                channels = int(factor * self.num_channels)
                raise ValueError(
                    f"num_channels {self.num_channels} times channel_mult {factor:g} is {channels}, not a multiple of "
                    "the 32 groups of the norms"
                )
        if not all(1 <= edge <= self.image_size for edge in self.attention_edges):
            raise ValueError(f"attention_resolutions {self.attention_resolutions!r}: each must be from 1 to image_size")
        return self

    @property
    def multipliers(self) -> list[float]:
        """channel_mult as numbers; the default for image_size if it is empty."""
        if self.channel_mult.strip():
            return _parse_numbers("channel_mult", self.channel_mult, float)
        if self.image_size not in _DEFAULT_CHANNEL_MULT:
            known = ", ".join(map(str, _DEFAULT_CHANNEL_MULT))
            raise ValueError(f"image_size {self.image_size}: set channel_mult, which has defaults only for {known}")
        return _DEFAULT_CHANNEL_MULT[self.image_size]

    @property
    def attention_edges(self) -> list[int]:
        """attention_resolutions as numbers."""
        return _parse_numbers("attention_resolutions", self.attention_resolutions, int)


class IsdmBalanceSection(Section):
    """balance_args."""

    max_class_dif: float = Field(0.1, ge=0, le=1000000)
    """Allowed excess of the most frequent class over the rarest."""
    based_on_generated_data_only: bool = False
    """Balance the generated masks only."""
    based_on_pixel_count: bool = True
    """Count pixels instead of objects."""
    ejection_classes: list[Annotated[int, Field(ge=0, le=254)]] = [0]
    """Classes to ignore."""
    use_mask_augmentation: bool = False
    """Rotate and flip the masks."""
    num_classes: int | None = Field(None, ge=0, le=255)
    """Same as in the main section."""
    height: int | None = Field(None, ge=0, le=MAX_CROP_SIZE)
    """Mask size at which ISDM counts."""
    width: int | None = Field(None, ge=0, le=MAX_CROP_SIZE)
    """Mask size at which ISDM counts."""


class IsdmConfig(IsdmNetworkSection):
    """All keys of ISDM's `main.py train|finetune|sample -c`."""

    root_log_dir: str = "."
    """Folder for runs."""
    data_dir: str = ""
    """Folder with train/images and train/masks."""
    dataset_mode: Literal["", "lemon-binary", "lemon-multi-class", "cityscapes", "ade20k", "celeba"] = ""
    """Layout of data_dir."""
    lr: float = Field(1e-4, gt=0, le=MAX_LEARNING_RATE)
    """Learning rate."""
    lr_anneal_steps: int = Field(0, ge=0, le=MAX_STEPS)
    """Steps over which the learning rate decays to 0, after which training stops; 0 keeps it constant."""
    batch_size: int = Field(1, ge=1, le=MAX_BATCH_SIZE)
    """Images per step."""
    microbatch: int = Field(-1, ge=-1, le=MAX_BATCH_SIZE)
    """Images per forward pass; -1 uses batch_size."""
    schedule_sampler: Literal["uniform", "loss-second-moment"] = "uniform"
    """Sampling of training timesteps."""
    class_cond: bool = False
    """Condition on the masks."""
    use_checkpoint: bool = False
    """Gradient checkpointing."""
    use_fp16: bool = False
    """Half precision."""
    fp16_scale_growth: float = Field(1e-3, ge=0, le=1000)
    """Growth of the loss scale."""
    weight_decay: float = Field(0.0, ge=0, le=1000)
    """AdamW's weight decay."""
    weights_decay: float | None = Field(None, ge=0, le=1000)
    """weight_decay as misspelled in ISDM's own configs."""
    ema_rate: str = "0.9999"
    """EMA decays, e.g. "0.9999,0.999"."""
    drop_rate: float = Field(0.0, ge=0, le=1)
    """Probability of dropping the mask in training."""
    log_interval: int = Field(10, ge=1, le=MAX_STEPS)
    """Steps between log lines."""
    save_interval: int = Field(10000, ge=1, le=MAX_STEPS)
    """Steps between checkpoints."""
    max_epochs: int = Field(20000, ge=1, le=MAX_STEPS)
    """Maximum number of epochs."""
    resume_checkpoint: str = ""
    """model<step>.pt to resume from."""
    num_samples: int = Field(10000, ge=1, le=MAX_IMAGES)
    """Images to sample."""
    model_path: str = ""
    """Checkpoint to sample from."""
    s: float = Field(1.0, ge=0, le=1000)
    """Guidance scale."""
    results_path: str = ""
    """Folder for sampled images."""
    use_ddim: bool = False
    """DDIM instead of ancestral sampling."""
    clip_denoised: bool = True
    """Clip predicted images."""
    is_train: bool | None = None
    """Use masks of the training split."""
    balance_args: IsdmBalanceSection | None = None
    """Balanced mask selection."""

    @field_validator("ema_rate", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int | float) else value

    @property
    def ema_decays(self) -> list[float]:
        """ema_rate as numbers."""
        return _parse_numbers("ema_rate", self.ema_rate, float)


class IsdmStudyConfig(Section):
    """Keys of segmentation_evaluation/config.json, including those that only its script reads."""

    train: str
    """Folder with images/ and masks/ for training."""
    test: str
    """Folder with images/ and masks/ for testing."""
    log: str = "./logs"
    """Folder for results."""
    image_size: int = Field(256, ge=16, le=MAX_IMAGE_SIZE)
    """Edge of the networks' images, in pixels."""
    generated_masks: str = ""
    """Folder of the masks of the generated images."""
    generated_images: str = ""
    """Folder of the generated images."""
    semantic_image_synthesis: bool | None = None
    """Location of generated masks if their folder is not set."""
    num_classes: int = Field(2, ge=1, le=255)
    """Classes of the masks."""
    test_codes: list[str] | None = None
    """R…F… codes; null uses eight defaults."""
    models: list[str] | None = None
    """Architectures of segmentation_models_pytorch; null uses three defaults."""
    action: str | None = None
    """Part of the script to run."""
    num_samples: int | None = Field(None, ge=0, le=MAX_IMAGES)
    """Required number of generated images."""
    segmentation_experiment_id: int | None = Field(None, ge=0, le=10**9)
    """Earlier experiment to test."""


def _parse_numbers(key: str, text: str, kind: type) -> list[Any]:
    try:
        values = [kind(part) for part in text.split(",") if part.strip()]
    except ValueError:
        values = [math.inf]
    if not all(abs(value) <= MAX_IMAGE_SIZE for value in values):
        raise ValueError(f"{key} {text!r}: must be numbers up to {MAX_IMAGE_SIZE}, separated by commas")
    return values
