"""The rules of a plan's scale: image and crop size, and a refining stage, from the sizes of islands and films."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from steelgen.planning.fingerprint import ClassFingerprint
from steelgen.planning.rules import Choice

MIN_ISLAND_PX = 8
"""Diameter, in px of the network, of the typical island: the area of a digital disk of 8 px is off by 2.6 % (root mean
square over positions; 6 px: 4 %, 4 px: 8 %), so that sizes can be learned and measured."""
MIN_WIDTH_PX = 2
"""Width, in px of the network, of a film that is kept: thinner than two samples it disappears (Nyquist)."""
MIN_CONTRAST = 0.8
"""Share of the contrast that shrinking must leave: the bundled model's micrographs keep 0.83 at its own crop size."""
REFINING_FACTOR = 2
"""Factor of a plan's refining stage: that of the bundled ones."""
MAX_CROP_SHARE = 0.75
"""Largest share of the smallest micrograph's edge that a crop takes, so that crops at random places differ."""


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


def choose_cascade(image_size: int, smallest_edge: int, has_masks: bool) -> Choice:
    """Chooses the factor of a refining stage, whose images have the micrographs' own resolution; None without.

    Args:
        image_size: edge of the network's images in px.
        smallest_edge: shortest edge of the micrographs in px.
        has_masks: the micrographs are labeled; images without masks are as large as the crops, which should be large.
    """
    if not has_masks:
        return Choice("cascade", None, "without masks, an image is one crop, and should show much of a micrograph")
    if REFINING_FACTOR * image_size > MAX_CROP_SHARE * smallest_edge:
        because = f"crops of {REFINING_FACTOR * image_size} px are too large for micrographs of {smallest_edge} px"
        return Choice("cascade", None, because)
    because = "pairs at the micrographs' own resolution; at equal time better in detail than one coarser stage"
    return Choice("cascade", REFINING_FACTOR, because)


def choose_crop_size(
    image_size: int,
    smallest_edge: int,
    classes: Sequence[ClassFingerprint],
    detail: Mapping[float, float],
    cascade: int | None = None,
) -> Choice:
    """Chooses the edge of the crops: as much of a micrograph as possible without losing islands, films or texture.

    Args:
        image_size: edge of the network's images in px.
        smallest_edge: shortest edge of the micrographs in px.
        classes: all but the matrix; empty for images without masks.
        detail: contrast left by shrinking factor; see `Fingerprint`.
        cascade: factor of the refining stage, which restores what the crops of the first stage lose.

    Returns:
        A multiple of 8 px between image_size and smallest_edge; the reason names the limit that decides.
    """
    if cascade:
        because = f"1/{cascade} of the full resolution; the refining stage restores it"
        return Choice("crop_size", cascade * image_size, because)
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
