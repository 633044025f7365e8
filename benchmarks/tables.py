"""Markdown tables of the stored results, one function per benchmark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

Results = dict[str, Any]
Lines = list[str]


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> Lines:
    """A Markdown table; the first `texts` columns are left-aligned, the numbers right-aligned."""
    rule = "---|" * texts + "--:|" * (len(columns) - texts)
    return [f"| {' | '.join(columns)} |", f"|{rule}", *(f"| {' | '.join(row)} |" for row in rows)]


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:#.3g}"


def _spread(summary: dict[str, float]) -> str:
    median = _number(summary["median"])
    if summary["min"] == summary["max"]:
        return median
    return f"{median} ({_number(summary['min'])} to {_number(summary['max'])})"


def _mean_and_range(values: Sequence[float], digits: int = 1) -> str:
    mean = f"{fmean(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def _kid(score: dict[str, float]) -> str:
    return f"{1e3 * score['kid']:.1f} ± {1e3 * score['kid_std']:.1f}"


def tabulate_families(stored: Results) -> Lines:
    """Generators by the figures of their comparison, the best one of each bold."""
    shown = stored["figures"]

    def cell(row: Results, name: str) -> str:
        figure = row["figures"][name]
        if figure is None:
            return "–"
        text = _show_figure(figure["value"], figure["interval"])
        return f"**{text}**" if name in row["best"] else text

    rows = [
        [
            family["name"],
            f"{family['parameters'] / 1e6:.2f}",
            str(family["steps"]),
            *(cell(row, family["name"]) for row in shown),
        ]
        for family in stored["families"]
    ]
    floors = ["–" if row["floor"] is None else _show_figure(row["floor"], None) for row in shown]
    columns = ["generator", "10⁶ parameters", "steps", *(f"{row['metric']} ({row['better']})" for row in shown)]
    return [
        f"{stored['image_size']} px, {stored['minutes']:g} min of training each, {stored['num_samples']} images.",
        "",
        *_table(columns, [*rows, ["floor", "–", "–", *floors]]),
    ]


def _show_figure(value: float, interval: Sequence[float | None] | None) -> str:
    if interval is None or interval[0] is None:
        return f"{value:.3g}"
    return f"{value:.3g} [{interval[0]:.3g}, {interval[1]:.3g}]"


def tabulate_translation(stored: Results) -> Lines:
    """Systems by data with the simple filters beside them, then IoU of segmenters on real target images."""
    groups: dict[tuple[str, int, str], list[dict[str, float]]] = {}
    for run in sorted(stored["scores"], key=lambda run: (run["data"], run["steps"])):
        key = (run["data"], run["steps"])
        groups.setdefault((*key, run["system"]), []).append(run["score"])
        for name, score in run["beside"].items():
            groups[(*key, name)] = [score]
    columns = ("kid", "gray_kl", "scan_line_power", "spectrum", "iou_share", "area_shift")
    rows = []
    for (data, steps, name), scores in groups.items():
        cells = [_mean_and_range([score[key] for score in scores], 3) if key in scores[0] else "–" for key in columns]
        rows.append([data, str(steps), name, *cells, str(len(scores))])
    heads = ["KID", "gray KL", "scan-line power", "spectrum", "label IoU / truth's", "area shift", "seeds"]
    lines = _table(["data", "steps", "images", *heads], rows, texts=3)
    ious: dict[tuple[str, str, str], list[float]] = {}
    seen: dict[tuple[str, str, str], list[float]] = {}
    for run in stored["segmenters"]:
        for found, figures in ((ious, run["iou"]), (seen, run.get("labels_seen", {}))):
            for kind, classes in figures.items():
                found.setdefault((run["data"], run["system"], kind), []).append(fmean(classes))
    if ious:
        trained = [
            [*key, *(_mean_and_range(each[key], 3) if key in each else "–" for each in (ious, seen)), str(len(values))]
            for key, values in sorted(ious.items())
        ]
        heads = ["mIoU on real images", "mIoU of one trained on true pairs on these", "seeds"]
        lines += ["", *_table(["data", "system", "segmenter trained on", *heads], trained, texts=3)]
    return lines


def tabulate_unlabeled(stored: Results) -> Lines:
    """Ways without a label on the target, means over seeds."""
    groups: dict[tuple[str, int], list[Results]] = {}
    for run in stored["runs"]:
        groups.setdefault((run["way"], run["steps"]), []).append(run["score"])
    rows = []
    for (way, steps), scores in groups.items():
        kids, seen, ious = (
            [score[name] if name == "kid" else fmean(score[name]) for score in scores]
            for name in ("kid", "labels_seen", "iou")
        )
        rows.append([way, str(steps), *(_mean_and_range(each, 3) for each in (kids, seen, ious)), str(len(scores))])
    heads = ["KID", "mIoU of one trained on real pairs on these", "mIoU of one trained on these on real images"]
    return _table(["way", "steps", *heads, "seeds"], rows)


def tabulate_gan(stored: Results) -> Lines:
    """Systems by dataset, means over seeds, and the share of lamellae with the correct orientation."""
    groups: dict[tuple[str, str], list[Results]] = {}
    for run in stored["runs"]:
        groups.setdefault((run["data"], run["system"]), []).append(run)
    rows = []
    for (data, system), runs in sorted(groups.items()):
        above = [1e3 * (run["score"]["kid"] - run["floor"]["kid"]) for run in runs]
        means = {key: fmean(run["score"][key] for run in runs) for key in ("fd", "precision", "recall", "copies")}
        longest = [run["score"]["longest_step"] for run in runs if "longest_step" in run["score"]]
        rows.append(
            [
                data,
                system,
                _mean_and_range(above),
                f"{means['fd']:.0f}",
                f"{means['precision']:.2f}, {means['recall']:.2f}",
                f"{means['copies']:.2f}",
                _number(fmean(run["score"]["images_per_second"] for run in runs)),
                f"{fmean(longest):.1f}" if longest else "–",
                str(len(runs)),
            ]
        )
    floors = {run["data"]: run["floor"] for run in stored["runs"]}
    for data, floor in sorted(floors.items()):
        fidelity = f"{floor['precision']:.2f}, {floor['recall']:.2f}"
        rows.append([data, "floor", "0", f"{floor['fd']:.0f}", fidelity, f"{floor['copies']:.2f}", "–", "–", "–"])
    columns = ["micrographs", "system", "KID·10³ above the floor", "FD", "precision, recall", "copies", "images/s"]
    minutes = sorted({run["minutes"] for run in stored["runs"]})
    lines = [
        f"32 px, {' or '.join(f'{value:g}' for value in minutes)} min on one core per run, "
        f"{stored['runs'][0]['images']} images each.",
        "",
        *_table([*columns, "longest step / mean", "seeds"], rows, texts=2),
    ]
    if leak := stored["leak"]:
        lines += [
            "",
            f"Lamellae within 20° of their direction: {leak['real']:.3f} of real ones, {leak['drawn']:.3f} of "
            f"those generated after {leak['steps']} steps at a mean augmentation p of {leak['mean_strength']:.2f}.",
        ]
    return lines


def tabulate_training(stored: Results) -> Lines:
    """Throughput and memory of a training step."""
    settings, ours = stored["settings"], stored["precision_of_ours"]
    rows = [
        [
            f"{name}, {'fp32' if name.startswith('ISDM') else ours}",
            _spread(row["images_per_second"]),
            _spread(row["times_faster_than_isdm"]),
            _number(row["peak_memory_gib"]),
            f"{100 * row['share_of_isdms_memory']:.0f}",
        ]
        for name, row in stored["variants"].items()
    ]
    return [
        f"{settings['image_size']} px, {settings['channels']} channels, {settings['batch_size']} crops per step, on "
        f"{settings['device']}; medians of {settings['repeats']} repeats.",
        "",
        *_table(["step", "images/s", "speedup", "peak memory (GiB)", "memory (% of ISDM's)"], rows),
    ]


def tabulate_speed(stored: Results) -> Lines:
    """Time per image; every row adds one change."""
    rows = [
        [name, _spread(row["seconds_per_image"]), _spread(row["times_faster_than_isdm"])]
        for name, row in stored["variants"].items()
    ]
    return [
        f"Medians of {stored['repeats']} repeats of {stored['images']} images.",
        "",
        *_table(["procedure", "time per image (s)", "speedup"], rows),
    ]


def tabulate_beside(stored: Results) -> Lines:
    """Throughput with sequential and with parallel work."""
    seconds, images = stored["seconds"], stored["images"]
    rows = []
    for what in dict.fromkeys(name.rpartition(", ")[0] for name in seconds):
        in_turn, beside = (seconds[f"{what}, {how}"] for how in ("in turn", "beside"))
        rates = [f"{images / row['median']:.2f}" for row in (in_turn, beside)]
        rows.append([what, *rates, f"{in_turn['median'] / beside['median']:.2f}"])
    return [
        f"Medians of repeats of {images} images.",
        "",
        *_table(["masks and filter", "images/s, sequential", "images/s, parallel", "speedup"], rows),
    ]


_JUDGED = ["KID·10³", "FD", "mIoU with the masks"]


def _judge(score: dict[str, float]) -> list[str]:
    return [_kid(score), f"{score['fd']:.1f}", f"{score['miou']:.3f}"]


def tabulate_quality(stored: Results) -> Lines:
    """Scores of both procedures; ours with mean and range over seeds."""
    scores = stored["scores"]
    ours = [score for name, score in scores.items() if name.startswith("default")]
    mean = [_mean_and_range([factor * score[key] for score in ours], digits) for key, factor, digits in _MEANS]
    others = {name: score for name, score in scores.items() if not name.startswith("default")}
    rows = [[name, *_judge(score)] for name, score in others.items()]
    rows += [[f"default, mean of {len(ours)} seeds", *mean]]
    rows += [[name, *_judge(score)] for name, score in scores.items() if name not in others]
    rows += [["floor (real vs real)", *_judge(stored["floor"])]]
    return [f"{stored['images']} images each.", "", *_table(["procedure", *_JUDGED], rows)]


_MEANS = (("kid", 1e3, 1), ("fd", 1.0, 1), ("miou", 1.0, 3))


def tabulate_curve(stored: Results) -> Lines:
    """KID; a row per solver, a column per number of evaluations."""
    solvers = stored["solvers"]
    counts = list(next(iter(solvers.values())))
    rows = [[name, *(_kid(scores[count]) for count in counts)] for name, scores in solvers.items()]
    columns = ["KID·10³ by solver", *(f"{count} evaluations" for count in counts)]
    return [f"{stored['images']} images each; floor {_kid(stored['floor'])}.", "", *_table(columns, rows)]


def tabulate_guide(stored: Results) -> Lines:
    """Scores; a row per spacing, guidance scale and interval."""

    def judge(row: Results) -> list[str]:
        return [*_judge(row), f"{row['recall']:.2f}", *(f"{ratio:.2f}" for ratio in row["spread"].values())]

    rows = []
    for row in stored["guides"]:
        low, high = row["guidance_interval"] or (0, "∞")
        guide = "none" if row["guidance_scale"] == 1 else f"{row['guidance_scale']:g}, {low:g} to {high}"
        rows.append([row["timestep_spacing"], guide, *judge(row)])
    rows.append(["floor", "", *judge(stored["floor"])])
    spreads = [f"spread of {name}" for name in stored["floor"]["spread"]]
    columns = ["spacing", "guidance, noise levels", *_JUDGED, "recall", *spreads]
    return [f"{stored['images']} images each, 12 steps.", "", *_table(columns, rows, texts=2)]


def tabulate_scores(runs: Sequence[Results]) -> Lines:
    """Scores of the recipe; a row per variant, budget and weights, with mean and range over seeds."""
    grouped: dict[tuple[str, float, str], list[Results]] = {}
    for run in runs:
        for label, score in run["scores"].items():
            above = score["kid"] - run["floor"]["kid"]
            grouped.setdefault((run["variant"], run["budget_seconds"], label), []).append({**score, "above": above})
    rows = []
    for (variant, budget, label), scores in sorted(grouped.items()):
        cells = [_mean_and_range([factor * score[key] for score in scores]) for key, factor in _SCORES]
        rows.append([variant, f"{budget:g}", label, str(scores[0]["step"]), str(len(scores)), *cells])
    columns = ["variant", "budget (s)", "weights", "steps", "seeds", "KID·10³ above the floor", "KID·10³", "FD"]
    lines = _table(columns, rows, texts=3)
    floors = [run["floor"] for run in runs]
    return lines + (["", f"Floor: KID·10³ {1e3 * floors[0]['kid']:.1f}, FD {floors[0]['fd']:.1f}."] if floors else [])


_SCORES = (("above", 1e3), ("kid", 1e3), ("fd", 1.0))


def tabulate_recipe(stored: Results) -> Lines:
    """Scores, and the step times behind the budgets."""
    times = [[name, _spread(summary)] for name, summary in stored["seconds_a_step"].items()]
    return [*tabulate_scores(stored["runs"]), "", *_table(["variant", "CPU time per step (s)"], times)]


def tabulate_utility(stored: Results) -> Lines:
    """Differences to the real-only codes, scores, and gains of other pairs and mixtures."""
    scores = [
        [row["code"], row["architecture"], f"{row['mean_iou']:.3f}", ", ".join(f"{v:.3f}" for v in row["by_seed"])]
        for row in stored["scores"]
    ]
    columns = ["codes", "architecture", "difference in mIoU", "95 % interval", "by seed"]
    return [
        *_table(columns, [_show_difference(row) for row in stored["differences"]], texts=2),
        "",
        *_table(["code", "architecture", "mIoU", "by seed"], scores, texts=2),
        "",
        *_table(["study", *columns], [[row["study"], *_show_difference(row)] for row in stored["variants"]], texts=3),
    ]


def tabulate_folds(stored: Results) -> Lines:
    """Scores by number of micrographs, then differences over folds with the share of the gap that they close."""
    scores = [
        [row["code"], str(row["num_generated"]), *_ious(row), _to_range(row["interval"], "")]
        for row in stored["scores"]
    ]
    gaps = {row["code"]: row for row in stored["gaps"] if row["closed"] is not None}
    classes = {(row["code"], row["baseline"]): row for row in stored["by_class"]}
    differences = []
    for row in stored["differences"]:
        gap, by_class = gaps.get(row["code"]), classes[row["code"], row["baseline"]]
        is_gain = gap is not None and gap["baseline"] == row["baseline"]
        differences.append(
            [
                f"{row['code']} − {row['baseline']}",
                f"{row['difference']:+.3f}",
                _to_range(row["interval"]),
                ", ".join(f"{value:+.3f}" for value in row["by_fold"]),
                *(f"{value:+.3f}" for value in by_class["class_iou"]),
                "–" if by_class["boundary_f1"] is None else f"{by_class['boundary_f1']:+.3f}",
                f"{100 * gap['closed']:.0f} %" if is_gain else "–",
                f"{100 * gap['interval'][0]:.0f} to {100 * gap['interval'][1]:.0f} %"
                if is_gain and gap["interval"]
                else "–",
            ]
        )
    names = stored["class_names"]
    return [
        f"Folds {', '.join(map(str, stored['folds']))}; seeds {', '.join(map(str, stored['seeds']))}.",
        "",
        *_table(["code", "pairs", *names, "mIoU", "95 % interval"], scores),
        "",
        *_table(
            [
                *("codes", "difference in mIoU", "95 % interval", "by fold"),
                *(f"in {name}" for name in names),
                *("in boundary F1", "share of the gap closed", "95 % interval of the share"),
            ],
            differences,
        ),
    ]


def _to_range(interval: Sequence[float | None] | None, sign: str = "+") -> str:
    return "–" if interval is None else " to ".join(f"{end:{sign}.3f}" for end in interval)


def tabulate_steering(stored: Results) -> Lines:
    """Differences of each arm to real micrographs and to the plain mix, and what is in the sets of pairs."""
    names = list(next(iter(stored["sets"].values()))["class_share"])
    sets = [
        [
            name,
            *(f"{values['class_share'][each]:.3f}" for each in names),
            str(values["dropped"]),
            f"{stored['sampling_seconds'][name]:.0f}",
        ]
        for name, values in stored["sets"].items()
    ]
    emphasis = [[name, *(f"{each[label]:.3f}" for label in names)] for name, each in stored["emphasis"].items()]
    columns = ["arm", "codes", "architecture", "difference in mIoU", "95 % interval", "by seed"]
    return [
        *_table(columns, [[row["arm"], *_show_difference(row)] for row in stored["differences"]], texts=3),
        "",
        *_table(["set", *(f"share of {name}" for name in names), "dropped", "CPU s"], sets),
        "",
        *_table(["of the emphasis", *names], emphasis),
    ]


def _show_difference(row: Results) -> list[str]:
    return [
        f"{row['code']} − {row['baseline']}",
        row["architecture"],
        f"{row['difference']:+.3f}",
        " to ".join(f"{end:+.3f}" for end in row["interval"]),
        ", ".join(f"{value:+.3f}" for value in row["by_seed"]),
    ]


def tabulate_segmentation(stored: Results) -> Lines:
    """IoU by fold; then judges of images at half the resolution, by training time and by scale."""
    names = stored["class_names"]
    lengths: dict[str, list[Results]] = {}
    for row in stored["folds"]:
        lengths.setdefault(row["name"].rsplit("-", 1)[1], []).append(row)
    folds = []
    for length, rows in lengths.items():
        folds += [[f"{row['fold']}", length, *_ious(row), str(row["steps"])] for row in rows]
        means = [fmean(values) for values in zip(*(row["class_iou"] for row in rows), strict=True)]
        mean = {"class_iou": means, "mean_iou": fmean(row["mean_iou"] for row in rows)}
        folds.append(["mean", length, *_ious(mean), ""])
    judges = [
        [row["name"].split("-seed")[0], f"{row['seconds']:g}", *_ious(row)]
        for row in [*stored["times"], *stored["scales"]]
    ]
    lines = _table(["fold", "training", *names, "mIoU", "steps"], folds, texts=2)
    if judges:
        lines += ["", *_table(["judge", "training (s on one core)", *names, "mIoU"], judges)]
    return lines


def _ious(row: Results) -> list[str]:
    return [f"{value:.3f}" for value in [*row["class_iou"], row["mean_iou"]]]


def tabulate_evaluation(stored: Results) -> Lines:
    """Time of each stage."""
    rows = [[name, _number(seconds)] for name, seconds in stored["stages"].items()]
    rows += [["all", _number(stored["seconds"])], ["all, CPU time", _number(stored["cpu_seconds"])]]
    return [
        f"{stored['count']} images of {stored['image_size']} px, one run; peak memory "
        f"{_number(stored['peak_memory_gib'])} GiB.",
        "",
        *_table(["stage", "time (s)"], rows),
    ]


def tabulate_copies(stored: Results) -> Lines:
    """Time per image of both searches, and the agreement of their answers."""
    compared = stored["compared"]
    rows = [[f"{name}, alternately", _number(row["median"])] for name, row in compared["cpu_seconds"].items()]
    rows += [
        [f"filter, crop sizes × {scale}", _number(seconds)] for scale, seconds in stored["filter_cpu_seconds"].items()
    ]
    return [
        f"{stored['images']} images among {stored['micrographs']} micrographs: {_number(stored['cpu_seconds'])} s of "
        f"one core, of which {_number(stored['prepare_cpu_seconds'])} s to shrink the micrographs, or "
        f"{_number(stored['cpu_seconds_of_1000'])} s for 1,000 images; peak memory "
        f"{_number(stored['peak_memory_gib'])} GiB, the micrographs included. Planted copies found: "
        f"{stored['planted_found']:.3f}; others flagged: {stored['others_flagged']:.3f}.",
        "",
        *_table(["search", "CPU time per image (s)"], rows),
        "",
        f"{compared['images']} images searched for both ways, {compared['copies']} of them copies: recall "
        f"{compared['recall']:.3f}, precision {compared['precision']:.3f}, the same place in "
        f"{compared['same_place']:.3f} of the copies. The nearest place of the other images is "
        f"{compared['farther']:.3f} times as far.",
    ]


def tabulate_import(stored: Results) -> Lines:
    """Time and memory of import and check."""
    rows = [
        [f"`steelgen data {name}`", _number(stored[name]["seconds"]), _number(stored[name]["peak_mb"])]
        for name in ("import", "check")
    ]
    return [
        f"{stored['images']} images, {stored['polygons']} polygons, one run.",
        "",
        *_table(["command", "time (s)", "peak memory (MB)"], rows),
    ]


def tabulate_loader(stored: Results) -> Lines:
    """Crops per second of each source."""
    rows = [[name, _number(rate)] for name, rate in stored["crops_per_second"].items()]
    return [
        *_table(["source", "crops/s (median)"], rows),
        "",
        f"The cache is {_number(stored['cache_to_training'])} times as fast as training and "
        f"{_number(stored['cache_to_decoding'])} times as fast as decoding; building it takes "
        f"{_number(stored['cache_build_seconds'])} s, opening it {_number(stored['cache_open_seconds'])} s.",
    ]


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
            cells.append(f"{_mean_and_range(known, digits)}{few}" if known else "–")
        rows.append([dataset, start, str(count), *cells[:-1], f"{cells[-1]} %", str(len(seeds))])
    columns = ["dataset", "start", "micrographs", "validation loss", "steps to scratch's loss"]
    return _table([*columns, "KID·10³ above the floor", "steps to scratch's KID", "copies", "seeds"], rows, texts=2)


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
            cells += [_mean_and_range(kids), f"{recall:.2f} of {runs[0]['floor'][f'recall_{scale}']:.2f}"]
        rows.append([dataset, variant, stages, *cells, f"{runs[0]['minutes']:g}", str(len(runs))])
    heads = ["layout: KID·10³ above the floor", "recall", "detail: KID·10³ above the floor", "recall"]
    return _table(["dataset", "choice", "crops", *heads, "minutes", "seeds"], rows, texts=3)


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
                *_table(["value", "training images", "held out", *real, *generated], table),
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


def tabulate_isdm(stored: Results) -> Lines:
    """Differences from ISDM's outputs, and class shares before and after balancing."""
    differences = [
        [f"`{name}`", f"{row['absolute']:.1e}", f"{row['relative']:.1e}"] for name, row in stored["differences"].items()
    ]
    shares = [
        [name, *(f"{100 * share:.1f}" for share in row.values())]
        for name, row in stored["class_shares"].items()
        if "often" in row
    ]
    return [
        *_table(["output", "largest difference", "relative to the largest value"], differences),
        "",
        *_table(["masks", "class “often” (% of pixels)", "class “rare” (% of pixels)"], shares),
    ]


def tabulate_scaling(stored: Results) -> Lines:
    """Measurements, and the efficiencies predicted from them."""
    measured, predicted = stored["measured"], stored["predicted_efficiency"]
    seconds = measured["seconds_a_step"]
    rows = [
        ["parameters (10⁶)", _number(measured["parameters"] / 1e6)],
        ["all-reduced per step (MB)", _number(measured["all_reduced_bytes_a_step"] / 1e6)],
        ["operations per crop, forward and backward (GFLOP)", _number(measured["flop_a_crop"] / 1e9)],
        ["step with all-reduce (s, median)", _number(seconds["with_all_reduce"])],
        ["step without all-reduce (s, median)", _number(seconds["without"])],
    ]
    efficiencies = [
        [name, *("–".join(dict.fromkeys(str(int(100 * share + 0.5)) for share in ends)) for ends in row.values())]
        for name, row in predicted.items()
    ]
    counts = list(next(iter(predicted.values())))
    return [
        f"{measured['processes']} processes, {measured['batch_size']} crops of {measured['image_size']} px each.",
        "",
        *_table(["measured", ""], rows),
        "",
        *_table(["predicted efficiency (%) on GPUs", *counts], efficiencies),
    ]


def tabulate_gpu(stored: Results) -> Lines:
    """Resume, steps, sampling, memory and several processes, as far as measured."""
    gpu, parts = stored["gpu"], stored["parts"]
    lines = [_describe_gpu(gpu) if gpu["name"] else "On a CPU."]
    if stored["dry"]:
        lines += ["", "A dry run with tiny networks that only checks that every part works."]
    for names, tabulate in _GPU_TABLES.items():
        measured = [parts[name]["measured"] for name in names if name in parts and parts[name]["measured"]]
        rows = [row for found in measured for row in (found if isinstance(found, list) else [found])]
        if rows:
            lines += ["", *tabulate(rows)]
    for name, part in parts.items():
        if "cut_after_seconds" in part:
            lines += ["", f"The part “{name}” was stopped after {part['cut_after_seconds']} s."]
        if "failed" in part:
            lines += ["", f"The part “{name}” failed: {' '.join(part['failed'])}"]
    return lines


def _describe_gpu(gpu: Results) -> str:
    labels = (("driver", "driver"), ("CUDA", "cuda"), ("cuDNN", "cudnn"))
    versions = [f"{label} {gpu[key]}" for label, key in labels if gpu[key]]
    return f"{gpu['count']} × {gpu['name']}, {_number(gpu['memory_gib'])} GiB, {', '.join(versions)}."


def _name_precision(row: Results) -> str:
    return "fp32 (TF32)" if row["mixed_precision"] == "no" else row["mixed_precision"]


def _tabulate_resumption(rows: Sequence[Results]) -> Lines:
    columns = ["precision", "deterministic", "steps", "resumed: differing", "largest", "repeated: differing", "largest"]
    cells = [
        [
            _name_precision(row),
            "yes" if row["deterministic"] else "no",
            str(row["steps"]),
            *(_show_differences(row.get("resumed")) + _show_differences(row.get("repeated"))),
        ]
        for row in rows
    ]
    heading = (
        "Tensors of a checkpoint that differ from those of an uninterrupted run, after resuming from halfway and in a "
        "repeated run:"
    )
    failed = [f"{_name_precision(row)}, deterministic: {row['failed']}" for row in rows if "failed" in row]
    return [heading, "", *_table(columns, cells, texts=2), *(["", "Failed:", "", *failed] if failed else [])]


def _show_differences(found: Results | None) -> list[str]:
    if found is None:
        return ["–", "–"]
    return [f"{found['differing']} of {found['tensors']}", f"{found['largest_difference']:.1e}"]


def _tabulate_gpu_steps(rows: Sequence[Results]) -> Lines:
    columns = ["px", "crops", "precision", "layout", "compiled", "steps/s", "images/s", "memory (GiB)", "waits/step"]
    columns.append("start (s)")
    cells = []
    for row in rows:
        layout = "channels last" if row["channels_last"] else "NCHW"
        compiled = {False: "no", True: "yes"}.get(row["compile"], row["compile"])
        shown = [str(row["image_size"]), str(row["batch_size"]), _name_precision(row), layout, compiled]
        if "failed" in row:
            cells.append([*shown, row["failed"], "", "", "", ""])
            continue
        rates = [_spread(row["steps_per_second"]), _spread(row["images_per_second"])]
        start = _number(row["seconds_to_start"]) if "seconds_to_start" in row else "–"
        cells.append([*shown, *rates, _show_memory(row), _number(row["waits_a_step"]), start])
    place = "through `steelgen train`" if "seconds_in_all" in rows[0] else "on batches on the GPU"
    return [
        f"Training steps {place}; medians over blocks of steps:",
        "",
        *_table(columns, cells, texts=5),
    ]


def _show_memory(row: Results) -> str:
    return _number(row["allocated_gib"]) if "allocated_gib" in row else "–"


def _tabulate_gpu_sampling(rows: Sequence[Results]) -> Lines:
    columns = ["network (px)", "images", "precision", "images/s", "memory (GiB)", "waits/batch"]
    cells = [
        [
            str(row["network_size"]),
            f"{row['images']} of {row['height']}×{row['width']} px",
            _name_precision(row),
            _spread(row["images_per_second"]),
            _show_memory(row),
            str(row["waits_a_batch"]),
        ]
        for row in rows
    ]
    heading = f"Sampling with the default solver in {rows[0]['solver_steps']} steps, larger images in windows:"
    return [heading, "", *_table(columns, cells, texts=3)]


def _tabulate_gpu_memory(rows: Sequence[Results]) -> Lines:
    row, planned = rows[0], _number(rows[0]["planned_gib"])
    cells = [
        ["limit", _number(row["limit_gib"])],
        [f"planned by `steelgen tune-batch` for a batch of {row['batch_size']} at {row['image_size']} px", planned],
    ]
    if "weights_gib" in row:
        reserved = _number(row["reserved_gib"]) if "reserved_gib" in row else "–"
        cells += [["reserved by training with it", reserved], ["peak of tensors in training", _show_memory(row)]]
        cells += [["weights, gradients, moments and EMA alone", _number(row["weights_gib"])]]
    return [f"Largest batch under a memory limit: {row['largest']}.", "", *_table(["GiB", ""], cells)]


def _tabulate_gpu_families(rows: Sequence[Results]) -> Lines:
    cells = [
        [f"configs/{row['config']}.json", row.get("failed", "trained"), _number(row["seconds"]), _show_memory(row)]
        for row in rows
    ]
    heading = f"Trainings of {rows[0]['steps']} steps from start to export, with a preview:"
    return [heading, "", *_table(["config", "result", "seconds", "memory (GiB)"], cells, texts=2)]


def _tabulate_gpu_processes(rows: Sequence[Results]) -> Lines:
    row = rows[0]
    if "skipped" in row:
        return [f"Two processes were not measured: {row['skipped']}."]
    batch = f"a batch of {row['batch_size']} at {row['image_size']} px each"
    return [f"Two processes with {batch}: {_number(row['images_per_second'])} images/s."]


_GPU_TABLES = {
    ("resume",): _tabulate_resumption,
    ("steps", "compiled"): _tabulate_gpu_steps,
    ("training",): _tabulate_gpu_steps,
    ("sampling",): _tabulate_gpu_sampling,
    ("memory",): _tabulate_gpu_memory,
    ("families",): _tabulate_gpu_families,
    ("processes",): _tabulate_gpu_processes,
}


def tabulate_rvae(stored: Results) -> Lines:
    """Recovery of known parameters, then agreement of real islands with their labels and MMD²."""
    kinds = ("rvae", "plain VAE")
    rows = []
    if "ellipses" in stored:
        for name, key, wanted in (
            ("ellipses: correlation of the angle, mod π", "angle_correlation", "≥ 0.95"),
            ("ellipses: R² of the aspect ratio", "aspect_r2", "≥ 0.9"),
            ("ellipses: R² of the area", "area_r2", ""),
        ):
            values = [stored["ellipses"][kind][key] for kind in kinds]
            rows.append([name, *("none" if value is None else f"{value:.3f}" for value in values), wanted])
    if "letters" in stored:
        values = [stored["letters"][kind]["within_over_between"] for kind in kinds]
        rows.append(["letters: movement", *(f"{value:.3f}" for value in values), "≤ 0.1"])
    real = {name: stored[key] for name, key in (("uhcs", "uhcs"), ("MA islands", "ma")) if key in stored}
    for name, part in real.items():
        rows.append([f"{name}: movement", *(f"{part['movement'][kind]:.3f}" for kind in kinds), "< 0.1"])
    lines = _table(["quantity", *kinds, "target for rvae"], rows)
    for name, part in real.items():
        labels = ", ".join(f"{count} of {label}" for label, count in part["labeled"].items())
        scores = [
            [kind, f"{score['adjusted_rand']:.3f}", f"{score['neighbors']:.3f}"]
            for kind, score in part["agreement"].items()
        ]
        lines += [
            "",
            f"Islands of {name} ({part['islands']}; labels: {labels}). MMD² of held-out islands to training islands: "
            f"{part['mmd_floor']:.4f}, to islands of procedural layouts: {part['mmd_procedural']:.4f}.",
            "",
            *_table(["by", "adjusted Rand", "nearest neighbors"], scores),
        ]
    return lines


def tabulate_cascade(stored: Results) -> Lines:
    """Systems at full resolution, means over seeds, and seams of whole micrographs."""
    groups: dict[tuple[float, str], list[Results]] = {}
    for run in stored["runs"]:
        groups.setdefault((run["minutes"], run["system"]), []).append(run)
    rows = []
    for (minutes, system), runs in sorted(groups.items()):
        above = [1e3 * (run["score"]["kid"] - run["floor"]["kid"]) for run in runs]
        means = {key: fmean(run["score"][key] for run in runs) for key in ("precision", "recall", "upper_octave")}
        rows.append(
            [
                system,
                f"{minutes:g}",
                _mean_and_range(above),
                f"{means['precision']:.2f}, {means['recall']:.2f}",
                f"{means['upper_octave']:.2f}",
                _number(fmean(run["score"]["megapixels_per_minute"] for run in runs)),
                str(len(runs)),
            ]
        )
    floor = stored["runs"][0]["floor"]
    fidelity = f"{floor['precision']:.2f}, {floor['recall']:.2f}"
    rows.append(["floor", "–", "0", fidelity, f"{floor['upper_octave']:.2f}", "–", "–"])
    columns = ["system", "minutes", "KID·10³ above the floor", "precision, recall", "upper octave", "MP/min", "seeds"]
    lines = [f"{stored['runs'][0]['images']} crops each.", "", *_table(columns, rows)]
    for system in sorted({each["system"] for each in stored["whole"]}):
        whole = [each for each in stored["whole"] if each["system"] == system]
        seams = [f"{name} {fmean(each['seams'][name] for each in whole):.3f}" for name in whole[0]["seams"]]
        rates = [fmean(each["megapixels_per_minute"][name] for each in whole) for name in ("bicubic", system)]
        lines += ["", f"Gradient at window borders relative to elsewhere, {len(whole)} whole: {', '.join(seams)}."]
        lines.append(f"{system} draws them in {rates[0] / rates[1]:.2f} times the time of its first stage.")
    return lines


def tabulate_adapter(stored: Results) -> Lines:
    """Systems by share of labeled micrographs and minutes, means over seeds."""
    floor, codec = stored["autoencoder"]["floor"], stored["autoencoder"]["score"]
    groups: dict[tuple[float, float, str], list[dict[str, float]]] = {}
    for run in stored["runs"]:
        groups.setdefault((run["fraction"], run["minutes"], run["system"]), []).append(run["score"])

    def row(name: str, share: str, minutes: str, scores: Sequence[dict[str, float]]) -> list[str]:
        above = [1e3 * (score["kid"] - floor["kid"]) for score in scores]
        fidelity = [f"{fmean(score[key] for score in scores):.2f}" for key in ("precision", "recall")]
        seen = _mean_and_range([score["mask_iou"] for score in scores], 3)
        copies = f"{100 * fmean(score['copies'] for score in scores):.0f} %"
        return [name, share, minutes, _mean_and_range(above), ", ".join(fidelity), seen, copies, str(len(scores))]

    rows = [
        row(system, f"{100 * fraction:g} %", f"{minutes:g}", scores)
        for (fraction, minutes, system), scores in sorted(groups.items())
    ]
    rows += [row("autoencoder", "–", "–", [codec]), row("floor", "–", "–", [floor])]
    head = ["labeled", "minutes", "KID·10³ above the floor", "precision, recall", "mask IoU", "copies", "seeds"]
    made = stored["minutes"]
    lines = [
        f"The base took {made['autoencoder']:g} minutes for its autoencoder (PSNR {codec['psnr_db']:.1f} dB, "
        f"{100 * codec['kept_detail']:.0f} % of the finest octave kept) and {made['base']:g} for its U-Net. The "
        f"floor's KID·10³ is {1e3 * floor['kid']:.1f}, the IoU of masks and other crops {floor['chance']:.3f}; "
        f"{stored['runs'][0]['images']} images each.",
        "",
        *_table(["system", *head], rows),
    ]
    gains: dict[tuple[float, float, str], list[dict[str, float]]] = {}
    for run in stored["utility"]:
        gains.setdefault((run["fraction"], run["minutes"], run["system"]), []).append(run["mean_iou"])
    if not gains:
        return lines
    trained = []
    for (fraction, minutes, system), ious in sorted(gains.items()):
        added = [iou["with pairs"] - iou["real"] for iou in ious]
        cells = [_mean_and_range([iou[key] for iou in ious], 3) for key in ("real", "with pairs")]
        gained = _mean_and_range(added, 3)
        trained.append([system, f"{100 * fraction:g} %", f"{minutes:g}", *cells, gained, str(len(ious))])
    head = ["pairs of", "labeled", "minutes", "mIoU, real alone", "with pairs", "difference", "seeds"]
    return [*lines, "", "Segmenters trained on the same micrographs, test split:", "", *_table(head, trained)]


def tabulate_joint(stored: Results) -> Lines:
    """Statistics of pairs, then phase fractions, images for masks, and masks for images."""
    titles = {
        "fraction": "phase fraction",
        "s2": "S2 (relative L1)",
        "lineal_path": "lineal path (relative L1)",
        "island_area": "island area W1",
        "island_count": "islands per tile W1",
        "pair_iou": "IoU of mask and cut image",
        "mask_copies": "copies of masks",
        "image_copies": "copies of images",
    }
    bars = ("≤ 0.02", "≤ 0.06", "≤ 0.08", "≤ 0.12", "≤ 0.15", "≥ 0.85", "≤ floor + 0.05", "≤ floor + 0.05")
    systems = stored["systems"]
    rows = []
    for (key, title), bar in zip(titles.items(), bars, strict=True):
        missed = [name for name in systems if key in stored["failures"][name]]
        values = [f"**{part[key]:.3f}**" if name in missed else f"{part[key]:.3f}" for name, part in systems.items()]
        rows.append([title, *values, bar])
    asked = []
    for name, part in stored["fractions"].items():
        means = [f"{mean:.3f}" for mean in part["means"].values()]
        asked.append([name, *means, f"{part['rank_correlation']:.3f}", f"{part['attempts_per_mask']:.1f}"])
    fractions = [f"asked {name}" for name in next(iter(stored["fractions"].values()))["means"]]
    # Masks asked for the same fraction tie in one of the two rankings.
    rank = f"rank correlation (at most {math.sqrt(1 - 1 / len(fractions) ** 2):.3f})"
    training, disagree = stored["training"], stored["error_where_they_disagree"]
    errors = f"errors where all draws agree {stored['error_where_draws_agree']:.1%}"
    if disagree is not None:
        errors += f", where they disagree {disagree:.1%}"
    return [
        *_table(["deviation", *systems, "bar"], rows),
        "",
        f"Bold: misses its bar. {training['steps']:,} steps of 16 tiles in {training['cpu_seconds'] / 60:.0f} minutes "
        f"of a core; {stored['count']} pairs, {stored['solver_steps']} solver steps, "
        f"{stored['seconds_per_pair']:.2f} s each.",
        "",
        *_table(["mean phase fraction of masks", *fractions, rank, "attempts per mask"], asked),
        "",
        f"Images for held-out masks: IoU {stored['image_for_mask_iou']:.3f}. Masks for held-out images, the majority "
        f"of 4 draws: IoU {stored['mask_for_image_iou']:.3f}, of the cut images {stored['threshold_iou']:.3f}; "
        f"{errors}.",
    ]


def tabulate_pairs(stored: Results) -> Lines:
    """Pairs by system, their masks with procedural ones beside, the utility study, and differences of systems."""
    groups: dict[tuple[float, str], list[Results]] = {}
    for run in stored["runs"]:
        groups.setdefault((run["minutes"], run["system"]), []).append(run)
    floor, example = stored["floor"], stored["runs"][0]
    structure = ("fraction", "s2", "lineal_path", "island_area", "island_count", "mask_copies")
    pairs, masks, trained = [], [], []
    for (minutes, system), runs in sorted(groups.items()):

        def show(name: str, digits: int = 3, factor: float = 1, runs: Sequence[Results] = runs) -> str:
            return _mean_and_range([factor * run["figures"][name] for run in runs], digits)

        title = [system, f"{minutes:g}"]
        steps = " + ".join(str(count) for count in runs[0]["steps"].values())
        shown = [show("kid", 1, 1e3), *(show(name, 2) for name in ("precision", "recall", "iou_share", "image_copies"))]
        seconds = f"{fmean(run['seconds_a_pair'] for run in runs):.2f}"
        pairs.append([*title, steps, *shown, seconds, str(len(runs))])
        masks.append([*title, *(show(name) for name in structure)])
        trained.append([*title, *(show(code) for code in example["with_pairs"])])
    shown = [f"{value:.2f}" for value in (floor["precision"], floor["recall"], 1.0, floor["image_copies"])]
    pairs.append(["floor", "–", "–", "0.0", *shown, "–", "–"])
    for name in ("floor", "procedural"):
        masks.append([name, "–", *(f"{stored[name][key]:.3f}" for key in structure)])
    alone = {run["seed"]: run["alone"] for run in stored["runs"]}.values()
    real = [_mean_and_range([scores[code] for scores in alone], 3) for code in example["alone"]]
    networks = ", ".join(
        f"{name} {row['parameters'] / 1e6:.2f} million weights, {row['median']:.2f} s per step"
        for name, row in stored["networks"].items()
    )
    head = ["pairs", "min", "training steps", "KID·10³ above the floor", "precision", "recall", "mIoU / real", "copies"]
    deviations = ["fraction", "S2", "lineal path", "island area W1", "islands per crop W1", "copies"]
    lines = [
        f"32 px, training on one core, {example['images']} pairs per run. Networks: {networks}.",
        "",
        *_table([*head, "s per pair", "seeds"], pairs),
        "",
        *_table(["masks: deviation", "min", *deviations], masks),
        "",
        f"Of crops of the training set, the search for copies finds {stored['found']['image_copies']:.0%} of images "
        f"and {stored['found']['mask_copies']:.0%} of masks.",
        "",
        *_table(
            ["mIoU of a U-Net", "min", *(code.split("F")[0] for code in example["alone"])],
            [["real alone", "–", *real], *trained],
        ),
    ]
    found = {(row["minutes"], row["first"], row["second"], row["figure"]): row for row in stored["differences"]}
    contrasts = list(dict.fromkeys(key[:3] for key in found))
    names = ("kid", "precision", "recall", "iou_share", *structure[:-1], *example["with_pairs"])
    rows = []
    for name, title in zip(names, [*head[3:7], *deviations[:-1], *example["with_pairs"]], strict=True):
        factor = 1e3 if name == "kid" else 1
        rows.append([title, *(_show_contrast(found[(*key, name)], factor) for key in contrasts)])
    titles = (f"{first} − {second}, {minutes:g} min" for minutes, first, second in contrasts)
    return [*lines, "", *_table(["difference", *titles], rows)]


def _show_contrast(row: Results, factor: float) -> str:
    """A difference with its interval, bold if the interval excludes 0."""
    digits = 1 if factor > 1 else 3
    if row["interval"] is None:
        return f"{factor * row['difference']:+.{digits}f}"
    low, high = (factor * end for end in row["interval"])
    text = f"{factor * row['difference']:+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
    return f"**{text}**" if low > 0 or high < 0 else text


def tabulate_labels(stored: Results) -> Lines:
    """mIoU by system and number of labeled crops, then differences and what dropping unsure crops gives."""
    titles = {
        "base": "heads, features of bundled:base",
        "untrained": "heads, features of an untrained network",
        "multiscale": "heads, multiscale features",
        "scratch": "U-Net from random weights",
    }
    rows, crops = stored["rows"], sorted({row["crops"] for row in stored["rows"]})
    found = {(row["system"], row["crops"]): row for row in rows}
    main, kept = [], []
    for system, title in titles.items():
        cells = [found[system, count] for count in crops]
        seconds = " / ".join(f"{cell['training_seconds']:.0f}" for cell in cells)
        main.append([title, *(_show_interval(cell["mean_iou"], cell["interval"]) for cell in cells), seconds])
        kept.append([title, *(f"{cell['mean_iou']:.3f} → {cell['kept_mean_iou']:.3f}" for cell in cells)])
    compared = {(row["rival"], row["crops"]): row for row in stored["differences"]}
    differences = []
    for rival in list(titles)[1:]:
        cells = [compared[rival, count] for count in crops]
        differences.append(
            [titles[rival], *(_show_interval(cell["difference"], cell["interval"], "+") for cell in cells)]
        )
    counts = [f"{count} crops" for count in crops]
    seeds = ", ".join(f"{len(found['base', count]['by_seed'])} with {count} crops" for count in crops)
    raised, total = stored["raised_by_dropping"]
    lines = [
        *_table(["mIoU on test crops", *counts, "training (s)"], main),
        "",
        *_table(["bundled:base minus", *counts], differences),
        "",
        *_table([f"without the least sure {stored['dropped']:.0%}", *counts], kept),
        "",
        f"Seeds: {seeds}. Dropping by agreement raises the mIoU of heads in {raised} of {total} rows.",
    ]
    if stored["memory"]:
        lines += ["", f"Peak memory with 100 images of 256 px: {stored['memory']['peak_gib']:.1f} GiB."]
    return lines


def _show_interval(value: float, interval: list[float], sign: str = "") -> str:
    low, high = interval
    return f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"
