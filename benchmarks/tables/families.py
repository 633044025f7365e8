"""Tables of the other generator families, and of all side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from tables.markdown import Lines, Results, build_table, show_mean_and_range, show_number


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
        *build_table(columns, [*rows, ["floor", "–", "–", *floors]]),
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
        cells = [
            show_mean_and_range([score[key] for score in scores], 3) if key in scores[0] else "–" for key in columns
        ]
        rows.append([data, str(steps), name, *cells, str(len(scores))])
    heads = ["KID", "gray KL", "scan-line power", "spectrum", "label IoU / truth's", "area shift", "seeds"]
    lines = build_table(["data", "steps", "images", *heads], rows, texts=3)
    ious: dict[tuple[str, str, str], list[float]] = {}
    seen: dict[tuple[str, str, str], list[float]] = {}
    for run in stored["segmenters"]:
        for found, figures in ((ious, run["iou"]), (seen, run.get("labels_seen", {}))):
            for kind, classes in figures.items():
                found.setdefault((run["data"], run["system"], kind), []).append(fmean(classes))
    if ious:
        trained = [
            [
                *key,
                *(show_mean_and_range(each[key], 3) if key in each else "–" for each in (ious, seen)),
                str(len(values)),
            ]
            for key, values in sorted(ious.items())
        ]
        heads = ["mIoU on real images", "mIoU of one trained on true pairs on these", "seeds"]
        lines += ["", *build_table(["data", "system", "segmenter trained on", *heads], trained, texts=3)]
    if stored.get("changes"):
        changes = [
            [
                run["data"],
                run["system"],
                *(f"{value:.3f}" for value in (run["iou"][1], run["iou_on_real"][1], *run["shares"].values())),
            ]
            for run in stored["changes"]
        ]
        heads = ["IoU with the segmenter's discs", "the segmenter's own IoU on real images"]
        heads += ["area found by it", "area changed", "area in real images"]
        lines += ["", *build_table(["data", "system", *heads], changes, texts=2)]
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
        rows.append([way, str(steps), *(show_mean_and_range(each, 3) for each in (kids, seen, ious)), str(len(scores))])
    heads = ["KID", "mIoU of one trained on real pairs on these", "mIoU of one trained on these on real images"]
    return build_table(["way", "steps", *heads, "seeds"], rows)


def tabulate_gan(stored: Results) -> Lines:
    """Systems by dataset and time, means over seeds, and the share of lamellae with the correct orientation."""
    groups: dict[tuple[int, str, float], list[Results]] = {}
    for run in stored["runs"]:
        groups.setdefault((run["micrographs"], run["system"], run["minutes"]), []).append(run)
    rows = []
    for (micrographs, system, minutes), runs in sorted(groups.items()):
        above = [1e3 * (run["score"]["kid"] - run["floor"]["kid"]) for run in runs]
        means = {key: fmean(run["score"][key] for run in runs) for key in ("fd", "precision", "recall", "copies")}
        longest = [run["score"]["longest_step"] for run in runs if "longest_step" in run["score"]]
        rows.append(
            [
                str(micrographs),
                system,
                f"{minutes:g}",
                show_mean_and_range(above),
                f"{means['fd']:.0f}",
                f"{means['precision']:.2f}, {means['recall']:.2f}",
                f"{means['copies']:.2f}",
                show_number(fmean(run["score"]["images_per_second"] for run in runs)),
                f"{fmean(longest):.1f}" if longest else "–",
                str(len(runs)),
            ]
        )
    floors = {run["micrographs"]: run["floor"] for run in stored["runs"]}
    for micrographs, floor in sorted(floors.items()):
        fidelity = f"{floor['precision']:.2f}, {floor['recall']:.2f}"
        measured = ["0", f"{floor['fd']:.0f}", fidelity, f"{floor['copies']:.2f}"]
        rows.append([str(micrographs), "floor", "–", *measured, "–", "–", "–"])
    names = {run["micrographs"]: run["dataset"] for run in stored["runs"]}
    columns = [
        "micrographs",
        "system",
        "min",
        "KID·10³ above the floor",
        "FD",
        "precision, recall",
        "copies",
        "images/s",
    ]
    lines = [
        f"32 px, equal minutes (min) on one core per run, {stored['runs'][0]['images']} images each; "
        f"{', '.join(f'{count} of {name}' for count, name in sorted(names.items()))}.",
        "",
        *build_table([*columns, "longest step / mean", "seeds"], rows, texts=2),
    ]
    if leak := stored["leak"]:
        lines += [
            "",
            f"Lamellae within 20° of their direction: {leak['real']:.3f} of real ones, {leak['drawn']:.3f} of "
            f"those generated after {leak['steps']} steps at a mean augmentation p of {leak['mean_strength']:.2f}.",
        ]
    return lines


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
    lines = build_table(["quantity", *kinds, "target for rvae"], rows)
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
            *build_table(["by", "adjusted Rand", "nearest neighbors"], scores),
        ]
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
        seen = show_mean_and_range([score["mask_iou"] for score in scores], 3)
        copies = f"{100 * fmean(score['copies'] for score in scores):.0f} %"
        return [name, share, minutes, show_mean_and_range(above), ", ".join(fidelity), seen, copies, str(len(scores))]

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
        *build_table(["system", *head], rows),
    ]
    gains: dict[tuple[float, float, str], list[dict[str, float]]] = {}
    for run in stored["utility"]:
        gains.setdefault((run["fraction"], run["minutes"], run["system"]), []).append(run["mean_iou"])
    if not gains:
        return lines
    trained = []
    for (fraction, minutes, system), ious in sorted(gains.items()):
        added = [iou["with pairs"] - iou["real"] for iou in ious]
        cells = [show_mean_and_range([iou[key] for iou in ious], 3) for key in ("real", "with pairs")]
        gained = show_mean_and_range(added, 3)
        trained.append([system, f"{100 * fraction:g} %", f"{minutes:g}", *cells, gained, str(len(ious))])
    head = ["pairs of", "labeled", "minutes", "mIoU, real alone", "with pairs", "difference", "seeds"]
    return [*lines, "", "Segmenters trained on the same micrographs, test split:", "", *build_table(head, trained)]


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
        *build_table(["deviation", *systems, "bar"], rows),
        "",
        f"Bold: misses its bar. {training['steps']:,} steps of 16 tiles in {training['cpu_seconds'] / 60:.0f} minutes "
        f"of a core; {stored['count']} pairs, {stored['solver_steps']} solver steps, "
        f"{stored['seconds_per_pair']:.2f} s each.",
        "",
        *build_table(["mean phase fraction of masks", *fractions, rank, "attempts per mask"], asked),
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
            return show_mean_and_range([factor * run["figures"][name] for run in runs], digits)

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
    real = [show_mean_and_range([scores[code] for scores in alone], 3) for code in example["alone"]]
    networks = ", ".join(
        f"{name} {row['parameters'] / 1e6:.2f} million weights, {row['median']:.2f} s per step"
        for name, row in stored["networks"].items()
    )
    head = ["pairs", "min", "training steps", "KID·10³ above the floor", "precision", "recall", "mIoU / real", "copies"]
    deviations = ["fraction", "S2", "lineal path", "island area W1", "islands per crop W1", "copies"]
    lines = [
        f"32 px, training on one core, {example['images']} pairs per run. Networks: {networks}.",
        "",
        *build_table([*head, "s per pair", "seeds"], pairs),
        "",
        *build_table(["masks: deviation", "min", *deviations], masks),
        "",
        f"Of crops of the training set, the search for copies finds {stored['found']['image_copies']:.0%} of images "
        f"and {stored['found']['mask_copies']:.0%} of masks.",
        "",
        *build_table(
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
    return [*lines, "", *build_table(["difference", *titles], rows)]


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
        *build_table(["mIoU on test crops", *counts, "training (s)"], main),
        "",
        *build_table(["bundled:base minus", *counts], differences),
        "",
        *build_table([f"without the least sure {stored['dropped']:.0%}", *counts], kept),
        "",
        f"Seeds: {seeds}. Dropping by agreement raises the mIoU of heads in {raised} of {total} rows.",
    ]
    if stored["memory"]:
        lines += ["", f"Peak memory with 100 images of 256 px: {stored['memory']['peak_gib']:.1f} GiB."]
    return lines


def _show_interval(value: float, interval: list[float], sign: str = "") -> str:
    low, high = interval
    return f"{value:{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"
