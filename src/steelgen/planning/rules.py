"""The rules of a plan: pure functions from a fingerprint and a machine to a choice with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steelgen.turns import LEAST_TURNS, REFINING_SHARE, TURNS

MIN_ORIENTATION = 0.1
"""Strength from which on a direction counts: five sets without a direction have 0.06 to 0.09, melt pools 0.15.
Chance strengths grow as fewer micrographs are averaged: below 9 it is 0.3 / √number."""
MIN_RAYLEIGH = 4.6
"""Number of micrographs × agreement² at which directions agree by chance with a probability of 1 %, exp(-4.6)."""
MANY_MICROGRAPHS = 200
"""Training micrographs from which on a generator is trained from scratch if there is time."""
LONG_MINUTES = 75
"""Minutes that the bundled model was trained for, from scratch, on one CPU core."""
SMALL_NETWORK: Mapping[str, Any] = {
    "base_channels": 32,
    "channel_mult": [0.5, 1, 2, 4],
    "num_res_blocks": 1,
    "attention_resolutions": [8],
    "num_head_channels": 16,
    "spade_channels": 16,
    "norm_groups": 8,
}
"""The bundled model's network."""
LARGE_NETWORK: Mapping[str, Any] = {
    "base_channels": 64,
    "channel_mult": [1, 1, 2, 3, 4],
    "num_res_blocks": 2,
    "attention_resolutions": [16, 8],
    "num_head_channels": 32,
    "spade_channels": 64,
    "dropout": 0.1,
}
"""The network of configs/train.json."""
REFINING_NETWORK: Mapping[str, Any] = {
    "base_channels": 32,
    "channel_mult": [1, 1, 2],
    "num_res_blocks": 1,
    "attention_resolutions": [],
    "middle_attention": False,
    "patch_size": 2,
    "spade_channels": 16,
    "norm_groups": 8,
}
"""The network of configs/refine.json; a step takes a third of one of the bundled model's."""
MIN_TURN_MINUTES = 2
"""Shortest turn: each ends with a preview and an export, which take some seconds."""
_EVALUATIONS_PER_IMAGE = 18
"""Network evaluations of 12 solver steps, about half of them guided."""
_FORWARD_SHARE = 1 / 3
"""Share of the forward pass in a training step; the backward pass takes two thirds."""
_REFINED_COST = 1.9
"""Time of an image of a cascade with a bundled second stage, relative to that of its first stage (docs/cascade.md)."""


@dataclass(frozen=True)
class Choice:
    """One choice of a plan."""

    name: str
    value: Any
    because: str


def choose_split(minutes: float, held_out: str | None) -> Choice:
    """Chooses the minutes of the refining stage; None divides the time by measured gain.

    Args:
        minutes: of both stages.
        held_out: the split for validation.
    """
    turn = minutes / TURNS
    if held_out and turn >= MIN_TURN_MINUTES:
        because = (
            f"by measured gain: {TURNS} turns of {turn:.3g} minutes, each next one for the stage whose validation "
        )
        return Choice(
            "refining_minutes", None, f"{because}loss falls by the larger share per minute, {LEAST_TURNS} at least"
        )
    own = minutes * REFINING_SHARE
    why = f"turns of {turn:.2g} minutes are too short" if held_out else "there is no val split"
    because = f"refine gets {own:.3g} of {minutes:.3g} minutes, by rule: {why} to measure the gain of each stage"
    return Choice("refining_minutes", own, because)


def choose_augment(strength: float, direction: float, agreement: float, count: int) -> Choice:
    """Chooses the flips and rotations of training crops by the direction that micrographs have in common.

    Args:
        strength: see `Fingerprint.orientation`.
        direction: in degrees, [0, 180).
        agreement: see `Fingerprint.agreement`.
        count: number of micrographs with independent directions; see `Fingerprint.parents`.
    """
    least = max(MIN_ORIENTATION, 0.3 / count**0.5)
    # Few micrographs cannot reach MIN_RAYLEIGH: they have to agree almost fully.
    if strength < least or count * agreement**2 < min(MIN_RAYLEIGH, 0.8 * count):
        because = f"no common direction (strength {strength:.2f}, {name_count(count)}): all 8 flips and rotations"
        return Choice("augment", True, because)
    found = f"a common direction of {direction:.0f}° with strength {strength:.2f}"
    # A mirror image turns a direction of a degrees to -a.
    if min(direction % 90, -direction % 90) <= 10:
        return Choice("augment", "mirror", f"{found}: mirroring left to right keeps it, rotations do not")
    return Choice("augment", False, f"{found}: oblique, so that neither mirroring nor rotations keep it")


def choose_channels(colored: bool) -> Choice:
    """Chooses the channels of the images."""
    because = "most micrographs are in color" if colored else "micrographs are gray; one channel cannot drift in color"
    return Choice("in_channels", 3 if colored else 1, because)


def choose_network(image_size: int, device: str) -> Choice:
    """Chooses the U-Net; attention lies at levels of at most 16 px."""
    if device == "cuda" and image_size >= 128:
        return Choice("network", dict(LARGE_NETWORK), "the network of configs/train.json, for a GPU")
    return Choice("network", dict(SMALL_NETWORK), "the bundled model's network: 75 minutes of one CPU core trained it")


def choose_batch(device: str, epoch_crops: int) -> Choice:
    """Chooses the crops per step: a power of two, at most those of an epoch."""
    most = 32 if device == "cuda" else 16
    batch = 1 << (min(most, epoch_crops).bit_length() - 1)
    if batch < most:
        return Choice("batch", batch, f"the micrographs have {epoch_crops} crops; a batch takes no crop twice")
    return Choice("batch", batch, f"the batch of the {'GPU' if device == 'cuda' else 'bundled'} recipe")


def choose_start(count: int, minutes: float, bundled: Sequence[str], kindred: str | None = None) -> Choice:
    """Chooses the bundled model to fine-tune, as bundled:NAME; None trains from scratch.

    Args:
        kindred: the bundled model with the classes of the set, if there is one.
    """
    name = kindred or next((each for each in ("base", "uhcs") if each in bundled), None)
    if name is None:
        return Choice("start", None, "no model is bundled")
    if count >= MANY_MICROGRAPHS and minutes >= LONG_MINUTES:
        return Choice("start", None, f"{count} micrographs and {minutes:g} minutes are enough to train from scratch")
    few = f"{count} micrographs are few" if count < MANY_MICROGRAPHS else f"{minutes:g} minutes are short"
    return Choice("start", f"bundled:{name}", f"{few}: a trained model is ahead of a new one")


def choose_refining_start(start: str | None, bundled: str | None) -> Choice:
    """Chooses the refining stage to fine-tune; None trains it from scratch.

    Args:
        start: the model that the stage before starts from; None trains that from scratch.
        bundled: the refining stage that comes with it.
    """
    if start is None:
        return Choice("refining_start", None, "from scratch, as the stage before")
    if bundled is None:
        return Choice("refining_start", None, f"{start} has no refining stage")
    return Choice("refining_start", bundled, "as the stage before: a trained model is ahead of a new one")


def choose_learning_rate(start: str | None, base_channels: int) -> Choice:
    """Chooses AdamW's learning rate."""
    if start == "bundled:base":
        return Choice("learning_rate", 1e-3, "has seen none of the set; KID fell faster than with 0.0003 on three sets")
    if start:
        return Choice("learning_rate", 3e-4, "fine-tuning: as configs/quickstart.json")
    if base_channels > 32:
        return Choice("learning_rate", 2e-4, "the rate of configs/train.json for a wide network")
    return Choice("learning_rate", 1e-3, "the rate that trained the bundled model, whose network it is")


def choose_steps(minutes: float, seconds_per_step: float) -> Choice:
    """Chooses the optimizer steps that fit into the time, with a tenth left for checkpoints and validation."""
    steps = max(1, int(0.9 * 60 * minutes / seconds_per_step))
    return Choice("max_steps", steps, f"{minutes:g} minutes at {seconds_per_step:.2g} s per step, less a tenth")


def choose_ema_decay(steps: int) -> Choice:
    """Chooses the decay of the weight average: its memory is a tenth of the run, at most 2,000 steps."""
    decay = float(np.clip(1 - 10 / steps, 0, 0.9995)) if steps > 10 else 0.0
    return Choice("ema_decay", round(decay, 4), f"an average over about a tenth of {steps:,} steps")


def choose_mask_dropout(has_masks: bool) -> Choice:
    """Chooses the share of crops that are trained without their mask."""
    if has_masks:
        return Choice("mask_dropout", 0.1, "guidance needs predictions without a mask; 0.2 was no better on uhcs")
    return Choice("mask_dropout", 0.0, "there are no masks")


def choose_intervals(steps: int, minutes: float, held_out: str | None, validations: int = 10) -> Choice:
    """Chooses the steps between previews, validations, measurements (None: none) and checkpoints."""
    values = {
        "preview": max(1, steps // 5),
        "validation": max(1, steps // validations),
        "measurement": max(1, steps // 4) if held_out and minutes >= 60 else None,
        "checkpoint": max(1, steps // 4),
    }
    because = f"5 previews, {validations} validations, 4 checkpoints per run"
    if values["measurement"]:
        return Choice("intervals", values, f"{because}, 4 measurements of KID and copies")
    why = "takes minutes, for runs from an hour on" if held_out else "needs a val split"
    return Choice("intervals", values, f"{because}; measuring KID and copies {why}")


def choose_labeling(labeled: int, unlabeled: int, minutes: float) -> Choice:
    """Chooses the training steps of the segmenter that labels unlabeled micrographs.

    Args:
        labeled: training micrographs with masks.
        unlabeled: further ones.
        minutes: of training.
    """
    steps = int(np.clip(20 * minutes, 200, 600))
    because = f"a segmenter of {name_count(labeled)} with masks labels {unlabeled} others; generators learn from all"
    return Choice("labeling_steps", steps, because)


def choose_real_share() -> Choice:
    """Chooses the share of real crops in each batch of the utility study, beside pairs of predicted masks."""
    return Choice("real_share", 0.5, "micrographs with masks stay half of what segmenters see, as in docs/utility.md")


def choose_mask_source(num_masks: int, predicted: int = 0) -> Choice:
    """Chooses where the masks of generated images come from.

    Args:
        num_masks: of all training micrographs.
        predicted: those of them that a segmenter predicts.
    """
    if num_masks == 0:
        return Choice("mask_source", "none", "the set has no masks")
    if num_masks < 8:
        because = f"{num_masks} masks are few layouts: they are rotated and warped, their islands moved"
        return Choice("mask_source", "augmented", because)
    if predicted:
        because = f"crops of {num_masks} masks, {predicted} of them predicted: the layouts of all micrographs"
        return Choice("mask_source", "split", because)
    because = f"crops of {num_masks} real masks; in the study of docs/utility.md they help more than made-up layouts"
    return Choice("mask_source", "split", because)


def choose_num_samples(minutes: float, seconds_per_image: float, refined: bool = False) -> Choice:
    """Chooses the number of generated images: a quarter of the training time, 16 to 256 images.

    Args:
        minutes: of training.
        seconds_per_image: of training, per crop.
        refined: a second stage follows.
    """
    seconds = _EVALUATIONS_PER_IMAGE * _FORWARD_SHARE * seconds_per_image * (_REFINED_COST if refined else 1)
    count = round(min(max(60 * minutes / 4 / seconds, 16), 256))
    return Choice("num_samples", count, f"about {seconds:.2g} s per image; a quarter of the training time, 16 to 256")


def choose_filter(has_masks: bool, minutes: float) -> Choice:
    """Chooses whether a segmenter drops generated pairs that disobey their mask."""
    if not has_masks:
        return Choice("filter", False, "without masks there is nothing to disobey")
    if minutes < 30:
        return Choice("filter", False, "training its segmenter would take a large part of the time")
    return Choice("filter", True, "drops pairs that disobey their mask or copy a micrograph; it did no harm on uhcs")


def choose_judge_steps(minutes: float) -> Choice:
    """Chooses the training steps of segmenters, for evaluation, filter and utility study."""
    steps = int(np.clip(15 * minutes, 10, 300))
    because = "the default" if steps == 300 else "15 per minute of training, at most 300"
    return Choice("segmenter_steps", steps, because)


def choose_codes(count: int, has_masks: bool, has_test: bool, predicted: int = 0) -> Choice:
    """Chooses the training sets of the utility study; none without masks or without a test split.

    Args:
        count: micrographs with masks.
        has_masks: whether there are any.
        has_test: whether there is a test split.
        predicted: further micrographs, with predicted masks.
    """
    if not has_masks or not has_test:
        missing = "masks" if not has_masks else "a test split"
        return Choice("utility", [], f"a study needs {missing}")
    rivals, rival = (["RALLF000L"], f"; or with the {predicted} predicted masks alone") if predicted else ([], "")
    codes = ["RALLF000", *rivals, "RALLFALL"]
    if count < 8:
        return Choice("utility", codes, f"{name_count(count)}, with and without generated pairs{rival}")
    because = f"a quarter and all of {count} micrographs, each with and without generated pairs{rival}"
    return Choice("utility", ["R25%F000", "R25%FALL", *codes], because)


def name_count(micrographs: int) -> str:
    """Returns "1 micrograph" or "N micrographs"."""
    return f"{micrographs} micrograph{'' if micrographs == 1 else 's'}"
