"""Tables of what the base model is worth: transfer, plans, conditions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from tables.markdown import Lines, Results, build_table, show_mean_and_range

CURVES = ("val_loss", "kid")
"""What is measured over the steps of `transfer`."""


def tabulate_transfer(stored: Results) -> Lines:
    """Loss and KID of each start, and steps to those of training from scratch; means and ranges over seeds."""
    found = {(run["dataset"], run["training_micrographs"], run["start"], run["seed"]): run for run in stored["runs"]}
    groups: dict[tuple[str, int, str], list[list[float | None]]] = {}
    for (dataset, count, start, seed), run in found.items():
        loss, kid, floor, copies = (run[name][-1][1] for name in (*CURVES, "kid_floor", "copies"))
        scratch = found.get((dataset, count, "scratch", seed))
        reached = [None if scratch is None else find_crossing(run[name], scratch[name][-1][1]) for name in CURVES]
        figures = [loss, reached[0], 1000 * (kid - floor), reached[1], 100 * copies]
        groups.setdefault((dataset, count, start), []).append(figures)
    rows = []
    for (dataset, count, start), seeds in groups.items():
        cells = []
        for digits, values in zip((3, 0, 1, 0, 0), zip(*seeds, strict=True), strict=True):
            known = [value for value in values if value is not None]
            few = f" in {len(known)} of {len(values)}" if len(known) < len(values) else ""
            cells.append(f"{show_mean_and_range(known, digits)}{few}" if known else "–")
        rows.append([dataset, start, str(count), *cells[:-1], f"{cells[-1]} %", str(len(seeds))])
    columns = ["dataset", "start", "micrographs", "validation loss", "steps to scratch's loss"]
    return build_table(
        [*columns, "KID·10³ above the floor", "steps to scratch's KID", "copies", "seeds"], rows, texts=2
    )


def find_crossing(curve: Sequence[Sequence[float]], goal: float) -> float | None:
    """Finds the first step at which a curve of (step, value), linear between its points, is at most a goal."""
    for (step, value), (before, above) in zip(curve, [(0, math.inf), *curve], strict=False):
        if value <= goal:
            return step if math.isinf(above) else before + (step - before) * (above - goal) / (above - value)
    return None


def tabulate_planning(stored: Results) -> Lines:
    """Variants by dataset, means over seeds; KID above the floor at both scales."""
    groups: dict[tuple[str, str], list[Results]] = {}
    for run in stored["runs"]:
        groups.setdefault((run["dataset"], run["variant"]), []).append(run)
    rows = []
    for (dataset, variant), runs in groups.items():
        if any("equal" in run for run in runs):
            rows.append([dataset, variant, f"as {runs[0]['equal']}", *["–"] * 6])
            continue
        stages = " + ".join(
            f"{stage['crop_size']} px at {stage['image_size']} px from {stage['start'] or 'scratch'}, "
            f"{stage['steps']} steps"
            for stage in runs[0]["stages"]
        )
        cells = []
        for scale in ("layout", "detail"):
            kids = [1e3 * (run["score"][f"kid_{scale}"] - run["floor"][f"kid_{scale}"]) for run in runs]
            recall = fmean(run["score"][f"recall_{scale}"] for run in runs)
            cells += [show_mean_and_range(kids), f"{recall:.2f} of {runs[0]['floor'][f'recall_{scale}']:.2f}"]
        rows.append([dataset, variant, stages, *cells, f"{runs[0]['minutes']:g}", str(len(runs))])
    heads = ["layout: KID·10³ above the floor", "recall", "detail: KID·10³ above the floor", "recall"]
    return build_table(["dataset", "choice", "crops", *heads, "minutes", "seeds"], rows, texts=3)


def tabulate_conditions(stored: Results) -> Lines:
    """KID of the images for each value to held-out crops of it and of others, and what a regression reads."""
    lines: Lines = []
    for run in stored["runs"]:
        for name, found in run["conditions"].items():
            rows = found["rows"]
            table = []
            for index, row in enumerate(rows):
                value = f"{row['value']:.3g}" if found["is_number"] else row["value"]
                kids = row["generated"]
                nearest = min((kid, place) for place, kid in enumerate(kids) if kid is not None)[1]
                is_nearest = "yes" if nearest == index else "no" if kids[index] is not None else "–"
                read = f"{row['read']:.3g}" if found["is_number"] else f"{100 * row['read']:.0f} %"
                cells = [value, str(row["training"]), str(row["held_out"]), *_within_and_between(row["real"], index)]
                opened = _within_and_between(found["open"], index)[0]
                table.append([*cells, *_within_and_between(kids, index), opened, is_nearest, read])
            real = ["real: within", "between"]
            generated = ["generated: within", "between", "left open: within", "nearest is own", "read"]
            score = "rank correlation" if found["is_number"] else "mean share read correctly"
            reader = found["reader"]
            lines += [
                f"{run['dataset']}, `{name}`, {run['steps']} steps of {run['batch_size']} crops from {run['start']}, "
                f"{run['images']} images per value. {score.capitalize()}: real groups left out "
                f"{reader['cross_validated']:.2f}, real held-out crops {reader['held_out']:.2f}, generated "
                f"{reader['generated']:.2f}, left open {reader['open']:.2f}.",
                "",
                *build_table(["value", "training images", "held out", *real, *generated], table),
                "",
            ]
    return lines[:-1]


def _within_and_between(kids: Sequence[float | None] | None, index: int) -> list[str]:
    """KID·10³ to the crops of the value `index`, and the mean of those to each other value."""
    if kids is None:
        return ["–", "–"]
    others = [kid for place, kid in enumerate(kids) if kid is not None and place != index]
    own = kids[index]
    return ["–" if own is None else f"{1000 * own:.0f}", f"{1000 * fmean(others):.0f}"]
