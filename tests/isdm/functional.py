"""ISDM's network written down a second time, as plain functions on its state dict, straight from the papers.

Dhariwal & Nichol 2021 (arXiv 2105.05233) for the U-Net, Park et al. 2019 (arXiv 1903.07291) and Wang et al. 2022
(arXiv 2207.00050) for the SPADE blocks. Nothing of steelgen is used, so it can judge the importer.
"""

import math

import torch
import torch.nn.functional as F

DEFAULTS = {
    "image_size": 64,
    "num_classes": 3,
    "num_channels": 32,
    "channel_mult": "",
    "num_res_blocks": 1,
    "num_heads": 4,
    "num_heads_upsample": -1,
    "num_head_channels": -1,
    "attention_resolutions": "16,8",
    "resblock_updown": True,
    "use_scale_shift_norm": True,
    "use_new_attention_order": False,
    "no_instance": True,
    "learn_sigma": True,
}
MULTIPLIERS = {512: (0.5, 1, 1, 2, 2, 4, 4), 256: (1, 1, 2, 2, 4, 4), 128: (1, 1, 2, 3, 4), 64: (1, 2, 3, 4)}


class Network:
    """Evaluates a state dict in float64; parameters that it lacks are drawn at random, so a first pass makes one."""

    def __init__(self, settings, state=None, seed=0):
        self.settings = {**DEFAULTS, **settings}
        self.state = {} if state is None else state
        self.generator = torch.Generator().manual_seed(seed)

    def parameter(self, name, *shape):
        if name not in self.state:
            fan_in = math.prod(shape[1:]) if len(shape) > 1 else 1
            self.state[name] = torch.randn(*shape, generator=self.generator) / math.sqrt(2 * fan_in)
        assert self.state[name].shape == shape, name
        return self.state[name].double()

    def conv(self, name, x, out, size=3, stride=1):
        weight = self.parameter(f"{name}.weight", out, x.shape[1], size, size)
        return F.conv2d(x, weight, self.parameter(f"{name}.bias", out), stride=stride, padding=size // 2)

    def linear(self, name, x, out):
        weight = self.parameter(f"{name}.weight", out, x.shape[1])
        return x @ weight.T + self.parameter(f"{name}.bias", out)

    def norm(self, x):
        groups = x.reshape(len(x), 32, -1)
        mean = groups.mean(2, keepdim=True)
        variance = ((groups - mean) ** 2).mean(2, keepdim=True)
        return ((groups - mean) / (variance + 1e-5).sqrt()).reshape(x.shape)

    def group_norm(self, name, x):
        scale = self.parameter(f"{name}.weight", x.shape[1])
        return self.norm(x) * scale[:, None, None] + self.parameter(f"{name}.bias", x.shape[1])[:, None, None]

    def spade(self, name, x, mask):
        step = mask.shape[-1] // x.shape[-1]
        shared = self.conv(f"{name}.mlp_shared.0", mask[..., ::step, ::step], 128).clamp(min=0)
        gamma = self.conv(f"{name}.mlp_gamma", shared, x.shape[1])
        beta = self.conv(f"{name}.mlp_beta", shared, x.shape[1])
        return self.norm(x) * (1 + gamma) + beta

    def block(self, name, x, time, out, mask=None, change=None):
        """norm, SiLU, (resize), conv, time, norm, SiLU, conv, and the skip."""
        silu = lambda v: v * torch.sigmoid(v)  # noqa: E731
        h = self.group_norm(f"{name}.in_layers.0", x) if mask is None else self.spade(f"{name}.in_norm", x, mask)
        h = silu(h)
        if change == "up":
            h, x = (v.repeat_interleave(2, 2).repeat_interleave(2, 3) for v in (h, x))
        if change == "down":
            n, c, height, width = x.shape
            h, x = (v.reshape(n, c, height // 2, 2, width // 2, 2).mean((3, 5)) for v in (h, x))
        h = self.conv(f"{name}.in_layers.{2 if mask is None else 1}", h, out)
        both = self.settings["use_scale_shift_norm"]
        shift = self.linear(f"{name}.emb_layers.1", silu(time), 2 * out if both else out)[:, :, None, None]
        if not both:
            h = h + shift
        h = self.group_norm(f"{name}.out_layers.0", h) if mask is None else self.spade(f"{name}.out_norm", h, mask)
        if both:
            h = h * (1 + shift[:, :out]) + shift[:, out:]
        h = self.conv(f"{name}.out_layers.{3 if mask is None else 2}", silu(h), out)
        return h + (x if x.shape[1] == out else self.conv(f"{name}.skip_connection", x, out, size=1))

    def attention(self, name, x, heads):
        """One head after the other, by the definition softmax(QKᵀ/√d)V."""
        n, channels = x.shape[:2]
        if self.settings["num_head_channels"] != -1:
            heads = channels // self.settings["num_head_channels"]
        size = channels // heads
        pixels = self.group_norm(f"{name}.norm", x).reshape(n, channels, -1)
        qkv = self.parameter(f"{name}.qkv.weight", 3 * channels, channels, 1)[:, :, 0] @ pixels
        qkv = qkv + self.parameter(f"{name}.qkv.bias", 3 * channels)[:, None]
        results = []
        for head in range(heads):
            if self.settings["use_new_attention_order"]:
                starts = [part * channels + head * size for part in range(3)]
            else:
                starts = [(3 * head + part) * size for part in range(3)]
            q, k, v = (qkv[:, start : start + size] for start in starts)
            weights = torch.softmax(q.transpose(1, 2) @ k / math.sqrt(size), dim=-1)
            results.append(v @ weights.transpose(1, 2))
        projection = self.parameter(f"{name}.proj_out.weight", channels, channels, 1)[:, :, 0]
        h = projection @ torch.cat(results, 1) + self.parameter(f"{name}.proj_out.bias", channels)[:, None]
        return x + h.reshape(x.shape)

    def __call__(self, x, times, mask):
        """(N, 3, H, W), (N,), (N, K or K+1, H, W) → (N, 3 or 6, H, W), all float64."""
        s = self.settings
        base, blocks = s["num_channels"], s["num_res_blocks"]
        text = s["channel_mult"]
        multipliers = [float(m) for m in text.split(",")] if text else MULTIPLIERS[s["image_size"]]
        widths = [int(m * base) for m in multipliers]
        attended = {s["image_size"] // int(edge) for edge in s["attention_resolutions"].split(",")}
        down_heads = s["num_heads"]
        up_heads = down_heads if s["num_heads_upsample"] == -1 else s["num_heads_upsample"]

        frequencies = torch.exp(-math.log(10000) * torch.arange(base // 2) / (base // 2))
        angles = times.float()[:, None] * frequencies
        time = self.linear("time_embed.0", torch.cat([angles.cos(), angles.sin()], 1).double(), 4 * base)
        time = self.linear("time_embed.2", time * torch.sigmoid(time), 4 * base)

        h = self.conv("input_blocks.0.0", x, widths[0])
        skips, index = [h], 1
        for level, width in enumerate(widths):
            for _ in range(blocks):
                h = self.block(f"input_blocks.{index}.0", h, time, width)
                if 2**level in attended:
                    h = self.attention(f"input_blocks.{index}.1", h, down_heads)
                skips.append(h)
                index += 1
            if level + 1 < len(widths):
                if s["resblock_updown"]:
                    h = self.block(f"input_blocks.{index}.0", h, time, width, change="down")
                else:
                    h = self.conv(f"input_blocks.{index}.0.op", h, width, stride=2)
                skips.append(h)
                index += 1
        h = self.block("middle_block.0", h, time, widths[-1], mask)
        h = self.attention("middle_block.1", h, down_heads)
        h = self.block("middle_block.2", h, time, widths[-1], mask)
        index = 0
        for level in reversed(range(len(widths))):
            for number in range(blocks + 1):
                name, width = f"output_blocks.{index}", widths[level]
                h = self.block(f"{name}.0", torch.cat([h, skips.pop()], 1), time, width, mask)
                position = 1
                if 2**level in attended:
                    h = self.attention(f"{name}.1", h, up_heads)
                    position = 2
                if level and number == blocks:
                    if s["resblock_updown"]:
                        h = self.block(f"{name}.{position}", h, time, width, mask, change="up")
                    else:
                        h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
                        h = self.conv(f"{name}.{position}.conv", h, width)
                index += 1
        h = self.group_norm("out.0", h)
        return self.conv("out.2", h * torch.sigmoid(h), 6 if s["learn_sigma"] else 3)


def outline(label):
    """(N, H, W) class indices → (N, 1, H, W): 1 where one of the four neighbors differs; pixel by pixel."""
    edges = torch.zeros(label.shape)
    n, height, width = label.shape
    for i in range(n):
        for row in range(height):
            for column in range(width):
                for r, c in ((row + 1, column), (row - 1, column), (row, column + 1), (row, column - 1)):
                    if 0 <= r < height and 0 <= c < width and label[i, r, c] != label[i, row, column]:
                        edges[i, row, column] = 1
    return edges[:, None]
