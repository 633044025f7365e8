"""A tiny training config of joint diffusion, and a network that knows the answer."""

import torch
from torch import nn

from tests.conftest import tiny_train_config

SECTION = {
    "kind": "joint_diffusion",
    "unet": {
        "base_channels": 8,
        "channel_mult": [1, 2],
        "num_res_blocks": 1,
        "attention_resolutions": [],
        "num_head_channels": 8,
        "norm_groups": 4,
        "dropout": 0.1,
    },
    "noise": {"num_train_timesteps": 100},
}


def joint_config(dataset, run_dir, generator=None, **train):
    values = tiny_train_config(dataset, run_dir, **train)
    return {**values, "generator": {**SECTION, **(generator or {})}, "measurement": {"every": None}}


class KnownNetwork(nn.Module):
    """The best network for pixels without neighbors: bits are 1 with probability `share`, the image is its bit.

    Of the mask it predicts class logits, or else the velocity."""

    def __init__(self, schedule, edge, share, classes):
        super().__init__()
        self.schedule, self.share, self.classes = schedule, share, classes
        self.config = type("Config", (), {"sample_size": edge})
        self.anchor = nn.Parameter(torch.zeros(()))
        self.device, self.dtype = torch.device("cpu"), torch.float32

    def forward(self, inputs, image_time, mask_time, return_dict=True):
        noisy, velocity = inputs[:, :2], []
        evidence = torch.full_like(noisy[:, 0], torch.logit(torch.tensor(self.share)).item() / 2)
        levels = []
        for channel, time in enumerate((image_time, mask_time)):
            signal, spread = (1.0, 0.0) if time[0] == 0 else self.schedule.interpolate_levels(float(time[0]) - 1)
            levels.append((signal, spread))
            evidence = evidence + (1e4 * noisy[:, channel] if spread == 0 else signal * noisy[:, channel] / spread**2)
        for channel, (signal, spread) in enumerate(levels):
            original = torch.tanh(evidence)
            velocity.append((signal * noisy[:, channel] - original) / max(spread, 1e-6))
        predicted = [velocity[0], -evidence, evidence] if self.classes else velocity
        return (torch.stack(predicted, dim=1),)
