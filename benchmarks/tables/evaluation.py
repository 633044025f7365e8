"""Tables of studies with segmentation networks, and of the evaluation's time."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from tables.markdown import Lines, Results, build_table, show_number


def tabulate_utility(stored: Results) -> Lines:
    """Differences to the real-only codes, scores, and gains of other pairs and mixtures."""
    scores = [
        [row["code"], row["architecture"], f"{row['mean_iou']:.3f}", ", ".join(f"{v:.3f}" for v in row["by_seed"])]
        for row in stored["scores"]
    ]
    columns = ["codes", "architecture", "difference in mIoU", "95 % interval", "by seed"]
    return [
        *build_table(columns, [_show_difference(row) for row in stored["differences"]], texts=2),
        "",
        *build_table(["code", "architecture", "mIoU", "by seed"], scores, texts=2),
        "",
        *build_table(
            ["study", *columns], [[row["study"], *_show_difference(row)] for row in stored["variants"]], texts=3
        ),
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
        *build_table(["code", "pairs", *names, "mIoU", "95 % interval"], scores),
        "",
        *build_table(
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
        *build_table(columns, [[row["arm"], *_show_difference(row)] for row in stored["differences"]], texts=3),
        "",
        *build_table(["set", *(f"share of {name}" for name in names), "dropped", "CPU s"], sets),
        "",
        *build_table(["of the emphasis", *names], emphasis),
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
    lines = build_table(["fold", "training", *names, "mIoU", "steps"], folds, texts=2)
    if judges:
        lines += ["", *build_table(["judge", "training (s on one core)", *names, "mIoU"], judges)]
    return lines


def _ious(row: Results) -> list[str]:
    return [f"{value:.3f}" for value in [*row["class_iou"], row["mean_iou"]]]


def tabulate_evaluation(stored: Results) -> Lines:
    """Time of each stage."""
    rows = [[name, show_number(seconds)] for name, seconds in stored["stages"].items()]
    rows += [["all", show_number(stored["seconds"])], ["all, CPU time", show_number(stored["cpu_seconds"])]]
    return [
        f"{stored['count']} images of {stored['image_size']} px, one run; peak memory "
        f"{show_number(stored['peak_memory_gib'])} GiB.",
        "",
        *build_table(["stage", "time (s)"], rows),
    ]


def tabulate_copies(stored: Results) -> Lines:
    """Time per image of both searches, and the agreement of their answers."""
    compared = stored["compared"]
    rows = [[f"{name}, alternately", show_number(row["median"])] for name, row in compared["cpu_seconds"].items()]
    rows += [
        [f"filter, crop sizes × {scale}", show_number(seconds)]
        for scale, seconds in stored["filter_cpu_seconds"].items()
    ]
    return [
        f"{stored['images']} images among {stored['micrographs']} micrographs: {show_number(stored['cpu_seconds'])} s "
        f"of one core, of which {show_number(stored['prepare_cpu_seconds'])} s to shrink the micrographs, or "
        f"{show_number(stored['cpu_seconds_of_1000'])} s for 1,000 images; peak memory "
        f"{show_number(stored['peak_memory_gib'])} GiB, the micrographs included. Planted copies found: "
        f"{stored['planted_found']:.3f}; others flagged: {stored['others_flagged']:.3f}.",
        "",
        *build_table(["search", "CPU time per image (s)"], rows),
        "",
        f"{compared['images']} images searched for both ways, {compared['copies']} of them copies: recall "
        f"{compared['recall']:.3f}, precision {compared['precision']:.3f}, the same place in "
        f"{compared['same_place']:.3f} of the copies. The nearest place of the other images is "
        f"{compared['farther']:.3f} times as far.",
    ]
