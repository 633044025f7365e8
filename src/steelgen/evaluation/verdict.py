"""What the figures say, in plain words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel

from steelgen.evaluation.figures import Figure
from steelgen.evaluation.iou import MIN_REAL_IOU, can_judge


class Answer(BaseModel):
    """One question that a reader has, answered."""

    question: str
    answer: str
    standing: str
    """good, fair, poor, or unknown where nothing was measured."""


def compute_verdict(figures: Sequence[Figure]) -> list[Answer]:
    """Answers the four questions from figures and floors.

    Look real: KID against held-out images, good within two standard deviations of its floor, fair within ten.
    Right structure: share of descriptors at most 1.5 × their floor; good from 80 %, fair from 50 %.
    Obey masks: mIoU over its floor, without classes that the segmenter cannot judge; good from 0.9, fair from 0.7.
    Copies: good with no more flagged images than held-out ones and both C_T above -3.
    """
    return [_judge_looks(figures), _judge_structure(figures), _judge_masks(figures), _judge_copies(figures)]


def judge_differences(differences: Sequence[dict[str, Any]]) -> list[Answer]:
    """Does generated data help? One answer a code, from the pooled row of a utility study's differences.

    Good where the 95 % interval of the difference lies above 0, poor where it lies below, fair where it includes 0 or
    rests on a single seed, which says nothing of how much the result varies.
    """
    last = {row["code"]: row for row in differences}  # the pooled row stands last
    return [_judge_difference(row) for row in last.values()]


def _judge_difference(row: dict[str, Any]) -> Answer:
    if row["num_real"]:
        question = f"Do {row['num_generated']} generated pairs help beside {row['num_real']} real micrographs?"
    else:
        question = f"Do {row['num_generated']} generated pairs do better than real micrographs?"
    low, high = row["interval"]
    single = len(row["by_seed"]) < 2
    standing = "fair" if single else "good" if low > 0 else "poor" if high < 0 else "fair"
    words = {
        "good": "Yes: mIoU on held-out real micrographs is higher",
        "fair": f"Not shown: {'one seed alone' if single else 'the interval of the difference in mIoU includes 0'}",
        "poor": "No: mIoU on held-out real micrographs is lower",
    }
    text = (
        f"{words[standing]} ({row['code']} − {row['baseline']}, {row['architecture']}: {row['difference']:+.3f}, "
        f"95 % interval {low:+.3f} … {high:+.3f})."
    )
    return Answer(question=question, answer=text, standing=standing)


def _judge_looks(figures: Sequence[Figure]) -> Answer:
    question = "Do the images look real?"
    # Held-out images are the first reference that is compared with.
    kid = next((f for f in figures if f.metric.startswith("KID-")), None)
    if kid is None or kid.floor is None or kid.spread is None:
        return Answer(question=question, answer="Not measured.", standing="unknown")
    excess = (kid.value - kid.floor) / max(kid.spread, 1e-12)
    standing = "good" if excess <= 2 else "fair" if excess <= 10 else "poor"
    words = {
        "good": "As far as these features can tell, as real as other real micrographs",
        "fair": "Close to real, but a network can tell",
        "poor": "No: clearly different from real micrographs",
    }
    text = f"{words[standing]}: {kid.metric} {kid.value:.4f} ± {kid.spread:.4f} against {kid.floor:.4f} for real ones."
    return Answer(question=question, answer=text, standing=standing)


def _judge_structure(figures: Sequence[Figure]) -> Answer:
    question = "Is the microstructure right?"
    measured = [f for f in figures if f.section == "microstructure" and f.metric.endswith("of images") and _defined(f)]
    if not measured:
        return Answer(question=question, answer="Not measured.", standing="unknown")
    right = [f for f in measured if f.value <= 1.5 * (f.floor or 0)]
    share = len(right) / len(measured)
    standing = "good" if share >= 0.8 else "fair" if share >= 0.5 else "poor"
    wrong = sorted(set(measured) - set(right), key=lambda f: f.value / max(f.floor or 0, 1e-12), reverse=True)
    text = f"{len(right)} of {len(measured)} descriptors differ no more than those of other real micrographs do"
    if wrong:
        text += f"; farthest off: {', '.join(f.metric.removesuffix(' of images') for f in wrong[:3])}"
    return Answer(question=question, answer=text + ".", standing=standing)


def _judge_masks(figures: Sequence[Figure]) -> Answer:
    question = "Do they obey their masks?"
    faithfulness = [f for f in figures if f.section == "faithfulness"]
    miou = next((f for f in faithfulness if f.metric == "mIoU"), None)
    if miou is None or not miou.floor:
        return Answer(question=question, answer="Not measured: there are no masks.", standing="unknown")
    value, floor, beside = miou.value, miou.floor, ""
    classes = [f for f in faithfulness if f.metric.startswith("IoU ") and _defined(f)]
    unseen = [f.metric.removeprefix("IoU ") for f in classes if not can_judge(f.floor or 0)]
    if unseen:
        judged = [f for f in classes if can_judge(f.floor or 0)]
        reason = f"the segmenter finds them on real held-out images with IoU below {MIN_REAL_IOU}"
        if not judged:
            return Answer(question=question, answer=f"Cannot be judged, no class: {reason}.", standing="unknown")
        value, floor = (
            sum(values) / len(judged) for values in zip(*((f.value, f.floor or 0) for f in judged), strict=True)
        )
        beside = f" Left out: {', '.join(unseen)}; {reason}."
    share = value / floor
    standing = "good" if share >= 0.9 else "fair" if share >= 0.7 else "poor"
    words = {"good": "Yes", "fair": "In part", "poor": "No"}
    text = f"{words[standing]}: a segmenter trained on real micrographs finds the masks with mIoU {value:.3f}"
    return Answer(question=question, answer=f"{text}; on real ones it reaches {floor:.3f}.{beside}", standing=standing)


def _judge_copies(figures: Sequence[Figure]) -> Answer:
    question = "Are they more than copies?"
    copies = next((f for f in figures if f.metric.startswith("copies")), None)
    tests = [f for f in figures if f.metric.startswith("C_T")]
    if copies is None:
        return Answer(question=question, answer="Not measured.", standing="unknown")
    lowest = min((f.value for f in tests), default=0.0)
    flagged = copies.value > (copies.floor or 0)
    standing = "poor" if flagged or lowest < -5 else "fair" if lowest < -3 else "good"
    words = {
        "good": "Yes: no sign of copying",
        "fair": "Nearer to the training images than unseen ones are",
        "poor": "Training images are found among them, or close by",
    }
    text = (
        f"{words[standing]} ({100 * copies.value:.1f} % flagged as copies of {copies.n[0]}; lowest C_T {lowest:.1f})."
    )
    return Answer(question=question, answer=text, standing=standing)


def _defined(figure: Figure) -> bool:
    return figure.value == figure.value and figure.floor is not None and figure.floor == figure.floor
