"""The rules of a plan: pure functions from a fingerprint and a machine to a choice with its reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from steelgen.planning.fingerprint import ClassFingerprint
from steelgen.turns import LEAST_TURNS, REFINING_SHARE, TURNS

MIN_ISLAND_PX = 8
"""Diameter, in px of the network, of the typical island: the area of a digital disk of 8 px is off by 2.6 % (root mean
square over positions; 6 px: 4 %, 4 px: 8 %), so that sizes can be learned and measured."""
MIN_WIDTH_PX = 2
"""Width, in px of the network, of a film that is kept: thinner than two samples it disappears (Nyquist)."""
MIN_CONTRAST = 0.8
"""Share of the contrast that shrinking must leave: the bundled model's micrographs keep 0.83 at its own crop size."""
MAX_CROP_SHARE = 0.75
"""Largest share of the smallest micrograph's edge that a crop takes, so that crops at random places differ."""
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


@dataclass(frozen=True)
class Choice:
    """One choice of a plan."""

    name: str
    value: Any
    because: str


def choose_image_size(smallest_edge: int, device: str, memory_gib: float, minutes: float) -> Choice:
    """Chooses the edge of the network's images; a multiple of 16, which every level of the networks divides."""
    size, because = 64, "a CPU core trains 64 px in minutes to hours, 128 px take four times as long"
    if device == "cuda":
        because = f"{memory_gib:.0f} GiB of GPU memory and {minutes:g} minutes; 128 px need 16 GiB and 60 minutes"
        if memory_gib >= 40 and minutes >= 720:
            size, because = 256, f"{memory_gib:.0f} GiB of GPU memory and {minutes / 60:g} hours"
        elif memory_gib >= 16 and minutes >= 60:
            size, because = 128, f"{memory_gib:.0f} GiB of GPU memory; 256 px need 40 GiB and 12 hours"
    if smallest_edge < size:
        size = smallest_edge // 16 * 16
        because = f"the smallest micrograph has an edge of {smallest_edge} px"
    return Choice("image_size", size, because)


def choose_crop_size(
    image_size: int, smallest_edge: int, classes: Sequence[ClassFingerprint], detail: Mapping[float, float]
) -> Choice:
    """Chooses the edge of the crops: as much of a micrograph as possible without losing islands, films or texture.

    Args:
        image_size: edge of the network's images in px.
        smallest_edge: shortest edge of the micrographs in px.
        classes: all but the matrix; empty for images without masks.
        detail: contrast left by shrinking factor; see `Fingerprint`.

    Returns:
        A multiple of 8 px between image_size and smallest_edge; the reason names the limit that decides.
    """
    room = f"crops of more than {MAX_CROP_SHARE} of the smallest micrograph, {smallest_edge} px, hardly differ"
    limits = [(MAX_CROP_SHARE * smallest_edge / image_size, room)]
    factors, kept = [1.0, *detail], [1.0, *detail.values()]
    # The contrast falls with the factor.
    factor = float(np.interp(-MIN_CONTRAST, [-each for each in kept], factors))
    texture = f"shrinking {factor:.3g} times leaves {np.interp(factor, factors, kept):.2f} of the contrast"
    limits.append((factor, f"{texture}; {MIN_CONTRAST} is the limit"))
    if diameter := find_typical_diameter(classes):
        because = f"the typical island of {diameter:.3g} px must span {MIN_ISLAND_PX} px of the network"
        limits.append((diameter / MIN_ISLAND_PX, because))
    if thinnest := find_thinnest(classes):
        assert thinnest.width is not None
        because = f"{thinnest.name}, {thinnest.width:.3g} px wide, must keep {MIN_WIDTH_PX} px"
        limits.append((thinnest.width / MIN_WIDTH_PX, because))
    factor, because = min(limits)
    if factor < 1:
        because += "; crops are never enlarged"
    crop = min(max(image_size, int(image_size * factor + 1e-6) // 8 * 8), smallest_edge)
    return Choice("crop_size", crop, because)


def find_typical_diameter(classes: Sequence[ClassFingerprint]) -> float | None:
    """Finds the median over classes, weighted by area share, of the typical island diameter; None without islands."""
    known = [(each.typical_diameter, each.share) for each in classes if each.typical_diameter]
    if not known:
        return None
    known.sort()
    reached = np.cumsum([share for _, share in known])
    return known[int(np.searchsorted(reached, reached[-1] / 2))][0]


def find_thinnest(classes: Sequence[ClassFingerprint]) -> ClassFingerprint | None:
    """Finds the thinnest class of at least 2 px; the thinnest of all if none is that wide.

    A class that is thinner in the micrographs themselves cannot be kept and does not decide about the others.
    """
    known = [each for each in classes if each.width is not None]
    wide = [each for each in known if each.width is not None and each.width >= MIN_WIDTH_PX]
    return min(wide or known, key=lambda each: each.width or 0, default=None)


def find_lost_classes(classes: Sequence[ClassFingerprint], factor: float) -> list[str]:
    """Describes each class that is thinner than 2 px after shrinking by `factor`."""
    return [
        f"{each.name} is {each.width / factor:.2g} px wide at the network's scale ({each.width:.2g} px in the "
        f"micrographs); below {MIN_WIDTH_PX} px a class is easily lost"
        for each in classes
        if each.width is not None and each.width / factor < MIN_WIDTH_PX
    ]


def choose_cascade(image_size: int, crop_size: int, classes: Sequence[ClassFingerprint]) -> Choice:
    """Chooses the factor of a refining stage behind the generator; None without.

    The largest of 2, 4 and 8 that does not enlarge the micrographs, if a class is lost at the scale of the crops.
    """
    scale = crop_size / image_size
    lost = [each for each in classes if each.width is not None and each.width / scale < MIN_WIDTH_PX]
    factor = max((factor for factor in (2, 4, 8) if factor <= scale), default=None)
    if not lost:
        return Choice("cascade", None, f"no class is thinner than {MIN_WIDTH_PX} px at the network's scale")
    thinnest = min(lost, key=lambda each: each.width or 0)
    assert thinnest.width is not None
    width = f"{thinnest.name} is {thinnest.width / scale:.2g} px wide at the network's scale"
    if factor is None:
        return Choice("cascade", None, f"{width}, but a refining stage would enlarge the micrographs")
    return Choice("cascade", factor, f"{width}, {thinnest.width * factor / scale:.2g} px after a stage of {factor}×")


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
        because = f"no common direction (strength {strength:.2f}, {count} micrographs): all 8 flips and rotations"
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


def choose_mask_source(num_masks: int) -> Choice:
    """Chooses where the masks of generated images come from."""
    if num_masks == 0:
        return Choice("mask_source", "none", "the set has no masks")
    if num_masks < 8:
        because = f"{num_masks} masks are few layouts: they are rotated and warped, their islands moved"
        return Choice("mask_source", "augmented", because)
    because = f"crops of {num_masks} real masks; in the study of docs/utility.md they help more than made-up layouts"
    return Choice("mask_source", "split", because)


def choose_num_samples(minutes: float, seconds_per_image: float) -> Choice:
    """Chooses the number of generated images: a quarter of the training time, 16 to 256 images.

    Args:
        minutes: of training.
        seconds_per_image: of training, per crop.
    """
    seconds = _EVALUATIONS_PER_IMAGE * _FORWARD_SHARE * seconds_per_image
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


def choose_codes(count: int, has_masks: bool, has_test: bool) -> Choice:
    """Chooses the training sets of the utility study; none without masks or without a test split."""
    if not has_masks or not has_test:
        missing = "masks" if not has_masks else "a test split"
        return Choice("utility", [], f"a study needs {missing}")
    codes = ["RALLF000", "RALLFALL"]
    if count < 8:
        return Choice("utility", codes, f"{count} micrographs, with and without generated pairs")
    because = f"a quarter and all of {count} micrographs, each with and without generated pairs"
    return Choice("utility", ["R25%F000", "R25%FALL", *codes], because)
