"""Scores and differences of studies whose metrics are resampled over seeds and test micrographs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from steelgen.evaluation.figures import to_json
from steelgen.evaluation.intervals import center_interval, resample_weights
from steelgen.evaluation.utility.statistics import POOLED, find_baselines

_SEED_STREAM, PARENT_STREAM = 0, 1
"""Separate streams of resamples: seeds and micrographs are crossed."""


def summarize_resampled(
    measured: Mapping[tuple[str, str], NDArray[np.float64]],
    architectures: Sequence[str],
    counts: Mapping[str, tuple[int, int]],
) -> dict[str, Any]:
    """Summarizes the metrics of every code, and their differences to the codes of `find_baselines`.

    Intervals are percentile bootstraps crossed over seeds and test micrographs (the pigeonhole bootstrap; Owen 2007,
    doi 10.1214/07-AOAS122): each resample draws both independently, a micrograph with all that is cut from it, the same
    for all codes and architectures. Architectures are fixed effects.

    Args:
        measured: (1 + B, A, S) by code and metric, of the test set and of B resamples of its micrographs, drawn with
            `PARENT_STREAM`; the first metric decides.
        architectures: names of the A architectures.
        counts: number of real and of generated images of every code.

    Returns:
        JSON values: `scores`, one row per code and architecture, and `differences`, one per code, baseline and
        architecture, both with pooled rows. `interval`, `by_seed` and, of a difference, `difference` are those of the
        first metric; the others and their intervals have fields of their own. An interval is None where the metric is
        undefined in too many resamples.
    """
    metrics = list(dict.fromkeys(metric for _, metric in measured))
    num_resamples, _, num_seeds = next(iter(measured.values())).shape
    by_seed = resample_weights(num_seeds, 0, _SEED_STREAM, num_resamples - 1)

    def describe(values: Mapping[str, NDArray[np.float64]], lowest: float, decisive: str) -> list[dict[str, Any]]:
        pools = [(name, [index]) for index, name in enumerate(architectures)]
        if len(architectures) > 1:
            pools.append((POOLED, list(range(len(architectures)))))
        rows = []
        for name, chosen in pools:
            row: dict[str, Any] = {"architecture": name}
            for metric in metrics:
                pooled = values[metric][:, chosen].mean(axis=1)  # (1 + B, S)
                over_seeds = (by_seed * pooled).sum(axis=1) / num_seeds
                fields = metric, f"{metric}_interval"
                if metric == metrics[0]:
                    fields = decisive, "interval"
                    row["by_seed"] = pooled[0]
                row.update(zip(fields, (over_seeds[0], _interval(over_seeds, lowest)), strict=True))
            rows.append(row)
        return rows

    found: dict[str, list[dict[str, Any]]] = {"scores": [], "differences": []}
    for code, (num_real, num_generated) in counts.items():
        start = {"code": code, "num_real": num_real, "num_generated": num_generated}
        own = {metric: measured[code, metric] for metric in metrics}
        found["scores"] += [{**start, **row} for row in describe(own, 0.0, metrics[0])]
        for baseline in find_baselines(code, counts):
            gained = {metric: own[metric] - measured[baseline, metric] for metric in metrics}
            rows = describe(gained, -1.0, "difference")
            found["differences"] += [{**start, "baseline": baseline, **row} for row in rows]
    return to_json(found)


def _interval(values: NDArray[np.float64], lowest: float) -> tuple[float, float] | None:
    low, high = center_interval(values, lowest, 1.0)
    return None if np.isnan(low) else (low, high)
