"""The verdict: figures as answers to the reader's questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from steelgen.config.utility import find_rivals
from steelgen.evaluation.figures import Figure
from steelgen.evaluation.iou import MIN_REAL_IOU, can_judge
from steelgen.evaluation.utility.words import WORDS, StudyWords, find_words
from steelgen.files import Record

Standing = Literal["good", "fair", "poor", "unknown"]
"""unknown: nothing was measured."""


class Answer(Record):
    """A question and its answer."""

    question: str
    answer: str
    standing: Standing


def compute_verdict(figures: Sequence[Figure]) -> list[Answer]:
    """Answers four questions from figures and floors.

    Real: KID against held-out images within two standard deviations of its floor is good, within ten fair.
    Microstructure: at least 80 % of the descriptors at most 1.5 × their floor is good, 50 % fair.
    Masks: mIoU of at least 0.9 × its floor is good, 0.7 fair; classes that the segmenter cannot judge are left out.
    Copies: no more flagged images, and masks where they are new, than among held-out ones and both C_T above -3 is
    good, above -5 fair.
    """
    judged = {
        "Do the images look real?": _judge_looks(figures),
        "Is the microstructure right?": _judge_structure(figures),
        "Do the images match their masks?": _judge_masks(figures),
        "Are the images more than copies?": _judge_copies(figures),
    }
    return [Answer(question=question, answer=text, standing=standing) for question, (standing, text) in judged.items()]


def judge_study(study: dict[str, Any]) -> list[Answer]:
    """Answers whether generated data helps from the content of utility.json; see `judge_differences`."""
    return judge_differences(study["differences"], find_words(study))


def judge_differences(differences: Sequence[dict[str, Any]], words: StudyWords = WORDS["segment"]) -> list[Answer]:
    """Answers whether the data of each code helps, compared with each baseline, from pooled rows of `differences`.

    Good if the 95 % interval of the difference is above 0, poor if below, fair if it includes 0 or there is only one
    seed, which says nothing about the spread. With folds, the interval is over folds, one test split says less.

    Args:
        differences: rows of a study; an interval may be None where `words.undefined` says why.
        words: those of the study's task.
    """
    last = {(row["code"], row["baseline"]): row for row in differences}  # the pooled row comes last
    return [_judge_difference(row, words) for row in last.values()]


def _judge_difference(row: dict[str, Any], words: StudyWords) -> Answer:
    question, metric = _ask(row, words), f"{words.metric} on {words.tested}"
    if row["interval"] is None:
        text = f"Inconclusive: {words.undefined}"
        return Answer(question=question, answer=f"{text} ({row['code']} − {row['baseline']}).", standing="fair")
    low, high = row["interval"]
    folds = row.get("by_fold")
    single = len(folds or row["by_seed"]) < 2
    standing: Standing = "fair" if single else "good" if low > 0 else "poor" if high < 0 else "fair"
    interval = f"the interval of the {words.metric} difference"
    found = {
        "good": f"Yes: {metric} is higher",
        "fair": f"Inconclusive: {'only one seed' if single else f'{interval} includes 0'}",
        "poor": f"No: {metric} is lower",
    }
    text = (
        f"{found[standing]} ({row['code']} − {row['baseline']}, {row['architecture']}: {row['difference']:+.3f}, "
        f"95 % interval {low:+.3f} to {high:+.3f}{f' over {len(folds)} folds' if folds else ''})."
    )
    return Answer(question=question, answer=text, standing=standing)


def _ask(row: dict[str, Any], words: StudyWords) -> str:
    pairs, real = f"{row['num_generated']} {words.added}", f"{row['num_real']} {words.given}"
    added, rival = (find_rivals(row[key]) for key in ("code", "baseline"))
    if not row["num_real"]:
        return f"Are {pairs} better than real micrographs?"
    if rival and not added:
        return f"Are {pairs} better than {rival}, with {real}?"
    if not row["num_generated"]:
        return f"{'Does' if added == 'copy-paste' else 'Do'} {added} help in addition to {real}?"
    more, given = "" if added == rival else f" and {added}", f"{real} and {rival}" if rival else real
    return f"Do {pairs}{more} help in addition to {given}?"


def _judge_looks(figures: Sequence[Figure]) -> tuple[Standing, str]:
    # The first reference is the held-out split.
    kid = next((f for f in figures if f.metric.startswith("KID-")), None)
    if kid is None or kid.floor is None or kid.spread is None:
        return "unknown", "Not measured."
    excess = (kid.value - kid.floor) / max(kid.spread, 1e-12)
    standing: Standing = "good" if excess <= 2 else "fair" if excess <= 10 else "poor"
    words = {
        "good": "Yes, indistinguishable from real micrographs by these features",
        "fair": "Close, but distinguishable from real micrographs by these features",
        "poor": "No, clearly different from real micrographs",
    }
    return (
        standing,
        f"{words[standing]}: {kid.metric} is {kid.value:.4f} ± {kid.spread:.4f}, its floor {kid.floor:.4f}.",
    )


def _judge_structure(figures: Sequence[Figure]) -> tuple[Standing, str]:
    found = [f for f in figures if f.section == "microstructure" and f.metric.endswith("of images")]
    measured = [f for f in found if f.floor is not None and math.isfinite(f.value) and math.isfinite(f.floor)]
    if not measured:
        return "unknown", "Not measured."
    wrong = [f for f in measured if f.value > 1.5 * (f.floor or 0)]
    wrong.sort(key=lambda f: f.value / max(f.floor or 0, 1e-12), reverse=True)
    right = len(measured) - len(wrong)
    share = right / len(measured)
    text = f"{right} of {len(measured)} descriptors differ from real micrographs by at most 1.5 times their floor"
    if wrong:
        text += f"; largest deviations: {', '.join(f.metric.removesuffix(' of images') for f in wrong[:3])}"
    return "good" if share >= 0.8 else "fair" if share >= 0.5 else "poor", text + "."


def _judge_masks(figures: Sequence[Figure]) -> tuple[Standing, str]:
    faithfulness = [f for f in figures if f.section == "faithfulness"]
    miou = next((f for f in faithfulness if f.metric == "mIoU"), None)
    if miou is None or not miou.floor:
        return "unknown", "Not measured: there are no masks."
    value, floor, excluded = miou.value, miou.floor, ""
    classes = [f for f in faithfulness if f.metric.startswith("IoU ") and math.isfinite(f.value)]
    unseen = [f.metric.removeprefix("IoU ") for f in classes if not can_judge(f.floor or 0)]
    if unseen:
        judged = [f for f in classes if can_judge(f.floor or 0)]
        reason = f"the segmenter's IoU on real held-out images is below {MIN_REAL_IOU}"
        if not judged:
            return "unknown", f"Cannot be judged for any class: {reason}."
        value, floor = (
            sum(values) / len(judged) for values in zip(*((f.value, f.floor or 0) for f in judged), strict=True)
        )
        excluded = f" Not judged: {', '.join(unseen)}; {reason}."
    share = value / floor
    standing: Standing = "good" if share >= 0.9 else "fair" if share >= 0.7 else "poor"
    words = {"good": "Yes", "fair": "Partly", "poor": "No"}
    return standing, (
        f"{words[standing]}: a segmenter trained on real micrographs reproduces the masks with mIoU {value:.3f}; "
        f"on real images it reaches {floor:.3f}.{excluded}"
    )


def _judge_copies(figures: Sequence[Figure]) -> tuple[Standing, str]:
    copies = next((f for f in figures if f.metric.startswith("copies")), None)
    if copies is None:
        return "unknown", "Not measured."
    lowest = min((f.value for f in figures if f.metric.startswith("C_T")), default=0.0)
    masks = [f for f in figures if f.metric.startswith("mask copies")]
    details = [f for f in figures if f.metric.startswith("detail copies")]
    flagged = any(f.value > (f.floor or 0) for f in (copies, *masks, *details))
    standing: Standing = "poor" if flagged or lowest < -5 else "fair" if lowest < -3 else "good"
    words = {
        "good": "Yes: no sign of copying",
        "fair": "Closer to the training images than held-out images are",
        "poor": f"No: some are copies of training images{' or masks' if masks else ''} or too close to them",
    }
    counts = f"{100 * copies.value:.1f} % of {copies.n[0]} images flagged as copies; lowest C_T {lowest:.1f}"
    for kind, found in (("masks", masks), ("details", details)):
        for each in found:
            counts += f"; {100 * each.value:.1f} % of {each.n[0]} {kind} flagged as copies"
    return standing, f"{words[standing]} ({counts})."
