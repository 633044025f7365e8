"""Mean scores, differences and 95 % intervals from the confusion matrices of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats
from numpy.typing import NDArray

from steelgen.config.utility import find_rivals
from steelgen.evaluation.figures import to_json
from steelgen.evaluation.iou import compute_boundary_f1, compute_iou, compute_mean_iou, nanmean_rows

POOLED = "pooled"
"""Architecture name in rows that average over architectures."""
FEW_IMAGES, FEW_SEEDS = 10, 3
"""Bootstrap intervals of fewer are too narrow."""


def summarize(
    confusions: Mapping[tuple[str, str], NDArray[np.int64]],
    counts: Mapping[str, tuple[int, int]],
    num_bootstrap: int,
    folds: NDArray[np.int64] | None = None,
) -> dict[str, Any]:
    """Computes scores of every code, and its differences to the codes of `find_baselines`.

    Args:
        confusions: (S, N, C, C) pixels of each seed and test micrograph, in one order, by code and architecture.
        counts: number of real micrographs and of generated pairs of every code.
        num_bootstrap: resamples per interval of a difference.
        folds: (N,) fold of each test micrograph, from 0. The mIoU is then the mean over folds, and intervals are
            Student's t over folds, whose networks share neither test micrographs nor weights; differences also have
            `bootstrap_interval`, over folds, seeds and micrographs.

    Returns:
        JSON values: `scores`, one row per code and architecture, and `differences`, one per code, baseline and
        architecture, both with pooled rows; `gaps`, see `measure_gaps`.
    """
    architectures = list(dict.fromkeys(architecture for _, architecture in confusions))
    scores, differences = [], []
    for code, (num_real, num_generated) in counts.items():
        stack = np.stack([confusions[code, architecture] for architecture in architectures])
        row = {"code": code, "num_real": num_real, "num_generated": num_generated}
        scores += [{**row, **score} for score in _score(stack, architectures, folds)]
        for baseline in find_baselines(code, counts):
            control = np.stack([confusions[baseline, architecture] for architecture in architectures])
            compared = _compare(stack, control, architectures, num_bootstrap, folds)
            differences += [{**row, "baseline": baseline, **difference} for difference in compared]
    return to_json(
        {
            "scores": scores,
            "differences": differences,
            "gaps": measure_gaps(confusions, counts, num_bootstrap, folds),
        }
    )


def measure_gaps(
    confusions: Mapping[tuple[str, str], NDArray[np.int64]],
    counts: Mapping[str, tuple[int, int]],
    num_bootstrap: int,
    folds: NDArray[np.int64] | None = None,
) -> list[dict[str, Any]]:
    """Measures how much of the gap between few and all real micrographs generated pairs or their rivals close.

    Args:
        confusions, counts, num_bootstrap, folds: see `summarize`.

    Returns:
        A row per code with a baseline of fewer micrographs and architecture, with a pooled one: `gap`, the mIoU of the
        largest code of real micrographs alone (`full`) minus that of the baseline; `closed`, the difference to the
        baseline over the gap, None without a gap; `interval` of `closed`, a percentile bootstrap over folds, None
        without folds, or if resamples without a gap reach into it.
    """
    architectures = list(dict.fromkeys(architecture for _, architecture in confusions))
    alone = {code: real for code, (real, generated) in counts.items() if generated == 0 and not find_rivals(code)}
    if not alone:
        return []
    full = max(alone, key=lambda code: alone[code])

    def average(code: str) -> NDArray[np.float64]:
        stack = np.stack([confusions[code, architecture] for architecture in architectures])
        by_fold = _average_folds(stack, folds).mean(axis=2)  # (F, A)
        return np.hstack([by_fold, by_fold.mean(axis=1, keepdims=True)])

    rows = []
    for code, (num_real, num_generated) in counts.items():
        baseline = next((other for other in find_baselines(code, counts) if other in alone), None)
        if baseline is None or not 0 < num_real < alone[full]:
            continue
        gain, gap = average(code) - average(baseline), average(full) - average(baseline)
        weights = _draw_weights(np.random.default_rng(0), len(gain), num_bootstrap)
        for index, name in enumerate([*architectures, POOLED][: len(architectures) + (len(architectures) > 1)]):
            mean = gap[:, index].mean()
            resampled = weights @ gap[:, index]
            safe = folds is not None and (resampled > 0).mean() > 0.975
            ratios = (weights @ gain[:, index])[resampled > 0] / resampled[resampled > 0]
            rows.append(
                {
                    "code": code,
                    "baseline": baseline,
                    "full": full,
                    "architecture": name,
                    "num_real": num_real,
                    "num_generated": num_generated,
                    "gap": mean,
                    "closed": gain[:, index].mean() / mean if mean > 0 else None,
                    "interval": np.percentile(ratios, [2.5, 97.5]) if safe else None,
                }
            )
    return rows


def compare_classes(
    confusions: Mapping[tuple[str, str], NDArray[np.int64]],
    counts: Mapping[str, tuple[int, int]],
    boundaries: Mapping[tuple[str, str], NDArray[np.int64]] | None,
) -> list[dict[str, Any]]:
    """Compares each code with its baselines by class: what mIoU hides, such as thin classes and blurred boundaries.

    Args:
        confusions, counts: see `summarize`.
        boundaries: (S, N, 4, C) boundary counts (see `count_boundaries`), like the confusions; None if not counted.

    Returns:
        JSON values: a row per code, baseline and architecture with `class_iou`, the mean difference over seeds of the
        IoU of each class over all test micrographs, and `boundary_f1`, that of the mean boundary F1, or None.
    """
    architectures = list(dict.fromkeys(architecture for _, architecture in confusions))

    def average(code: str, architecture: str) -> tuple[NDArray[np.float64], float | None]:
        class_iou = compute_iou(confusions[code, architecture].sum(axis=1)).mean(axis=0)
        if boundaries is None:
            return class_iou, None
        f1 = compute_boundary_f1(boundaries[code, architecture].sum(axis=1))  # (S, C)
        return class_iou, float(nanmean_rows(f1).mean())

    rows = []
    for code in counts:
        for baseline in find_baselines(code, counts):
            for name in architectures:
                (iou, f1), (base_iou, base_f1) = average(code, name), average(baseline, name)
                difference = None if f1 is None or base_f1 is None else f1 - base_f1
                row = {"code": code, "baseline": baseline, "architecture": name}
                rows.append({**row, "class_iou": iou - base_iou, "boundary_f1": difference})
    return to_json(rows)


def find_baselines(code: str, counts: Mapping[str, tuple[int, int]]) -> list[str]:
    """Codes that a code is compared with.

    With the same real micrographs: these alone, and for a code with generated pairs also each of their rivals, such as
    copy-paste. For R000, the code with the most micrographs alone.
    """
    num_real, num_generated = counts[code]
    others = {other: real for other, (real, generated) in counts.items() if generated == 0 and other != code}
    alone = {other: real for other, real in others.items() if not find_rivals(other)}
    if num_real == 0:
        return [max(alone, key=lambda other: alone[other])] if alone else []
    same = [other for other in alone if alone[other] == num_real] if num_generated or find_rivals(code) else []
    rivals = [other for other in others if others[other] == num_real and other not in alone] if num_generated else []
    return same[:1] + rivals


def t_interval(values: NDArray[np.float64]) -> tuple[float, float] | None:
    """95 % interval of the mean of (S,) independent values by Student's t; None for a single value."""
    if len(values) < 2:
        return None
    half = scipy.stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def bootstrap_differences(
    treated: NDArray[np.int64],
    control: NDArray[np.int64],
    num_resamples: int,
    seed: int = 0,
    folds: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """Resampled differences in mIoU between two codes, paired over seeds and test micrographs.

    Seeds and micrographs are crossed: each resample draws both independently with replacement, the same for both codes
    and all architectures (the pigeonhole bootstrap; Owen 2007, doi 10.1214/07-AOAS122). IoUs are computed from the
    summed matrices of the resampled micrographs, and differences averaged over the resampled seeds. Architectures are
    fixed effects and not resampled. With folds, each resample draws folds, and micrographs within each fold.

    Args:
        treated: (A, S, N, C, C) of the code with generated pairs.
        control: same shape, of its baseline.
        folds: (N,) fold of each micrograph, from 0; None for one test split.

    Returns:
        (num_resamples, A).
    """
    num_seeds = treated.shape[1]
    rng = np.random.default_rng(seed)
    seed_weights = _draw_weights(rng, num_seeds, num_resamples)
    groups = [np.arange(treated.shape[2])] if folds is None else [np.flatnonzero(folds == f) for f in np.unique(folds)]
    differences = []
    for group in groups:
        weights = _draw_weights(rng, len(group), num_resamples)
        values = [
            compute_mean_iou(np.einsum("dn,asnij->dasij", weights, confusion[:, :, group]))
            for confusion in (treated, control)
        ]
        differences.append(np.einsum("ds,das->da", seed_weights / num_seeds, values[0] - values[1]))
    if folds is None:
        return differences[0]
    fold_weights = _draw_weights(rng, len(groups), num_resamples) / len(groups)
    return np.einsum("df,fda->da", fold_weights, np.stack(differences))


def _draw_weights(rng: np.random.Generator, count: int, num_resamples: int) -> NDArray[np.int64]:
    """(num_resamples, count): how often each of `count` units is drawn."""
    return rng.multinomial(count, np.full(count, 1 / count), size=num_resamples)


def find_warnings(num_seeds: int, num_test: int) -> list[str]:
    """Warnings about too few seeds or test micrographs."""
    warnings = []
    if num_test < FEW_IMAGES:
        warnings.append(
            f"{num_test} test micrographs: below about {FEW_IMAGES} the intervals are too narrow, and other test "
            "micrographs may reverse the result"
        )
    if num_seeds < FEW_SEEDS:
        warnings.append(
            f"{num_seeds} seed{'s' * (num_seeds > 1)}: at least {FEW_SEEDS} are needed to estimate the spread"
        )
    return warnings


def _average_folds(stack: NDArray[np.int64], folds: NDArray[np.int64] | None) -> NDArray[np.float64]:
    """(A, S, N, C, C) → (F, A, S) mIoU of each fold; one fold with all micrographs if there are none."""
    groups = [slice(None)] if folds is None else [folds == fold for fold in np.unique(folds)]
    return np.stack([compute_mean_iou(stack[:, :, group].sum(axis=2)) for group in groups])


def _score(
    stack: NDArray[np.int64], architectures: Sequence[str], folds: NDArray[np.int64] | None
) -> list[dict[str, Any]]:
    """Scores of one code from (A, S, N, C, C): a row per architecture and the pooled one."""
    mean_iou = _average_folds(stack, folds)  # (F, A, S)
    image_iou = np.nanmean(compute_mean_iou(stack), axis=2)  # (A, S)
    class_iou = compute_iou(stack.sum(axis=2))  # (A, S, C)
    rows = [
        (name, mean_iou[:, index], image_iou[index], class_iou[index].mean(axis=0))
        for index, name in enumerate(architectures)
    ]
    if len(architectures) > 1:
        rows.append((POOLED, mean_iou.mean(axis=1), image_iou.mean(axis=0), class_iou.mean(axis=(0, 1))))
    return [
        {
            "architecture": name,
            "mean_iou": values.mean(),
            "interval": t_interval(values.mean(axis=0 if folds is None else 1)),
            "by_seed": values.mean(axis=0),
            **({} if folds is None else {"by_fold": values.mean(axis=1)}),
            "image_iou": images.mean(),
            "class_iou": classes,
        }
        for name, values, images, classes in rows
    ]


def _compare(
    treated: NDArray[np.int64],
    control: NDArray[np.int64],
    architectures: Sequence[str],
    num_bootstrap: int,
    folds: NDArray[np.int64] | None,
) -> list[dict[str, Any]]:
    """Differences of one code to a baseline: a row per architecture and the pooled one."""
    difference = _average_folds(treated, folds) - _average_folds(control, folds)  # (F, A, S)
    draws = bootstrap_differences(treated, control, num_bootstrap, folds=folds)  # (D, A)
    rows = [(name, difference[:, index], draws[:, index]) for index, name in enumerate(architectures)]
    if len(architectures) > 1:
        rows.append((POOLED, difference.mean(axis=1), draws.mean(axis=1)))
    found = []
    for name, values, resampled in rows:
        bootstrap, by_fold = np.percentile(resampled, [2.5, 97.5]), values.mean(axis=1)
        row = {"architecture": name, "difference": values.mean(), "interval": bootstrap, "by_seed": values.mean(axis=0)}
        if folds is not None:
            row |= {"interval": t_interval(by_fold), "by_fold": by_fold, "bootstrap_interval": bootstrap}
        found.append(row)
    return found
