"""Tiny training configs of the autoencoder, and of diffusion of its latents."""

from tests.conftest import tiny_train_config
from tests.generators.joint import joint_config

SECTION = {
    "kind": "autoencoder",
    "base_channels": 8,
    "norm_groups": 4,
    "mask_channels": 8,
    "adversarial_start": 2,
    "discriminator_width": 4,
    "discriminator_layers": 1,
}


def autoencoder_config(dataset, run_dir, generator=None, **train):
    values = tiny_train_config(dataset, run_dir, **train)
    return {
        **values,
        "generator": {**SECTION, **(generator or {})},
        "preview": {"num_images": 2},
        "validation": {"every": 2, "crops": 4, "bins": 2},
        "measurement": {"every": 4, "num_images": 4, "searched_images": 2},
    }


def latent_config(kind, dataset, run_dir, codec, generator=None, **train):
    if kind == "joint_diffusion":
        return joint_config(dataset, run_dir, {"latent": str(codec), **(generator or {})}, **train)
    values = tiny_train_config(dataset, run_dir, **train)
    unet = {**values["generator"]["unet"], "attention_resolutions": [], **(generator or {}).pop("unet", {})}
    section = {**values["generator"], "unet": unet, "latent": str(codec), **(generator or {})}
    return {**values, "generator": section, "measurement": {"every": None}}
